"""Names of topics, wildcards as NATS has them, and what is found under them."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from aiohttp_interceptors.hub.topics import MAX_TOPIC, Patterns, check_pattern, check_topic, is_wildcard
from tests.hub.reference import matches, patterns, topics

NAMES = ["a", "orders", "orders.42.paid", "a-b_c:d/e", "é.日本", "😀", "a*b", "a>b.c", "*x", "x" * MAX_TOPIC]
WILDCARDS = ["*", ">", "a.*", "*.a", "a.>", "*.>", "a.*.c", "*.*", "x" * (MAX_TOPIC - 2) + ".>"]
NEITHER = [
    *("", ".", "a.", ".a", "a..b", "a b", " a", "a\n", "\ta", "a\0b", "a\x1f", "\x7f", "a\x85", "\x9b31m"),
    *("a\u2028b", "\u3000", "a\ud800", "\udfff", ">.a", "a.>.b", ">.>", "x" * (MAX_TOPIC + 1), "x" * 10_000_000),
]
NO_TEXT = [None, 1, b"a", ["a"], ("a",), object()]


class TestWhatATopicIs:
    @pytest.mark.parametrize("name", NAMES)
    def test_a_name_is_a_topic_and_stands_for_itself(self, name):
        assert check_topic(name) == check_pattern(name) == name
        assert not is_wildcard(name)

    @pytest.mark.parametrize("pattern", WILDCARDS)
    def test_a_wildcard_stands_for_many_and_nothing_is_published_under_it(self, pattern):
        assert check_pattern(pattern) == pattern
        assert is_wildcard(pattern)
        with pytest.raises(ValueError, match="is a wildcard for many"):
            check_topic(pattern)

    @pytest.mark.parametrize("text", NEITHER, ids=lambda text: ascii(text[:20]))
    def test_what_is_neither_is_refused_with_a_message_of_bounded_length(self, text):
        for check in (check_topic, check_pattern):
            with pytest.raises(ValueError, match=r"^a topic is|^the wildcard > ") as refused:
                check(text)
            assert len(str(refused.value)) < 500

    @pytest.mark.parametrize("value", NO_TEXT, ids=repr)
    def test_what_is_no_text_is_refused(self, value):
        for check in (check_topic, check_pattern):
            with pytest.raises(TypeError, match=r"^a topic is a str, not "):
                check(value)


def found_under(pattern, topic):
    values = Patterns()
    values.add(pattern, "here")
    return values.matching(topic) == ("here",)


class TestWhatAWildcardMatches:
    @settings(deadline=None)  # a busy machine is no bug
    @given(pattern=patterns(), topic=topics)
    @example(pattern="a.>", topic="a")
    @example(pattern="a.*", topic="a.b.c")
    @example(pattern="*", topic="a.b")
    @example(pattern=">", topic="a")
    @example(pattern="*.>", topic="a")
    def test_it_matches_what_nats_says(self, pattern, topic):
        assert found_under(pattern, topic) == matches(pattern, topic)

    @pytest.mark.parametrize(
        ("pattern", "yes", "no"),
        [
            ("orders", ["orders"], ["order", "orders.1", "Orders"]),
            ("orders.*", ["orders.1", "orders.x"], ["orders", "orders.1.paid", "order.1"]),
            ("orders.>", ["orders.1", "orders.1.paid", "orders.1.a.b.c"], ["orders", "order.1", "x.orders.1"]),
            ("*.paid", ["1.paid"], ["paid", "1.2.paid", "1.paid.x"]),
            ("orders.*.paid", ["orders.1.paid"], ["orders.paid", "orders.1.2.paid", "orders.1.sent"]),
            (">", ["orders", "orders.1.paid"], []),
            ("a*", ["a*"], ["ab", "a"]),
        ],
    )
    def test_it_matches_what_its_sentence_says(self, pattern, yes, no):
        """The matcher that the others are compared with is held to the sentences, too."""
        for found in found_under, matches:
            assert [topic for topic in [*yes, *no] if found(pattern, topic)] == yes


class PatternsAgainstAList(RuleBasedStateMachine):
    """Values come and go under names and wildcards, some twice, some that were never there."""

    def __init__(self):
        super().__init__()
        self.patterns = Patterns()
        self.listed = []

    @rule(pattern=patterns(), value=st.integers(0, 3))
    def add(self, pattern, value):
        self.patterns.add(pattern, value)
        if (pattern, value) not in self.listed:
            self.listed.append((pattern, value))

    @rule(data=st.data())
    def discard(self, data):
        if self.listed:
            pattern, value = data.draw(st.sampled_from(self.listed))
            self.listed.remove((pattern, value))
            self.patterns.discard(pattern, value)

    @rule(pattern=patterns(), value=st.integers(0, 3))
    def discard_perhaps_another(self, pattern, value):
        self.patterns.discard(pattern, value)
        if (pattern, value) in self.listed:
            self.listed.remove((pattern, value))

    @rule(topic=topics)
    def find(self, topic):
        found = self.patterns.matching(topic)
        assert len(found) == len(set(found))
        assert set(found) == {value for pattern, value in self.listed if matches(pattern, topic)}

    @invariant()
    def the_same_are_there(self):
        assert len(self.patterns) == len(self.listed)


def test_in_any_order_the_values_found_are_those_of_a_list():
    run_state_machine_as_test(PatternsAgainstAList)


def test_a_value_is_found_once_however_many_of_its_patterns_match():
    """Peer bug 39: who asked for two names that match has an event once."""
    patterns = Patterns()
    for pattern in "a.b", "a.*", "*.b", "a.>", ">":
        patterns.add(pattern, "me")
    assert patterns.matching("a.b") == ("me",)


def test_names_under_which_nothing_is_any_more_are_forgotten(operations):
    """Finding costs what it did before, and so does the next name."""

    def find(patterns):
        return operations(patterns.matching, "a.b.c")

    patterns, fresh = Patterns(), Patterns()
    names = [f"{first}.{second}.{third}" for first in "a*" for second in "b*x" for third in "c*>y"]
    for name in names:
        patterns.add(name, 1)
    full = find(patterns)
    for name in names:
        patterns.discard(name, 1)
    assert full > find(patterns) == find(fresh)
    for some in patterns, fresh:
        some.add("z.>", 2)
    assert find(patterns) == find(fresh)


def test_finding_costs_the_tokens_of_the_topic_and_not_the_names(operations):
    def find(count):
        patterns = Patterns()
        for number in range(count):
            patterns.add(f"a.{number}", number)
            patterns.add(f"a.{number}.*", number)
            patterns.add(f"{number}.>", number)
        return operations(patterns.matching, "a.b")

    assert find(2_000) == find(2)


def test_tokens_that_all_could_be_any_cost_no_more_than_the_patterns_there_are(operations):
    """A topic of many tokens does not make the search grow as two to their number."""
    patterns = Patterns()
    for pattern in (".".join(["*"] * 100), ".".join(["a"] * 100), ".".join(["a", "*"] * 50)):
        patterns.add(pattern, pattern)
    topic = ".".join(["a"] * 100)
    assert len(patterns.matching(topic)) == 3
    # Each node is reached by one path; each generator on it is resumed for what is below.
    assert operations(patterns.matching, topic) < 3 * 100 * 20
