"""Topics and wildcards: which are valid, what a wildcard matches, and the index of patterns."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from aiohttp_interceptors.hub.topics import (
    MAX_TOPIC,
    PatternIndex,
    check_pattern,
    check_topic,
    compile_patterns,
    is_wildcard,
)
from tests.hub.reference import matches, patterns, topics

NAMES = ["a", "orders", "orders.42.paid", "a-b_c:d/e", "é.日本", "😀", "a*b", "a>b.c", "*x", "x" * MAX_TOPIC]
WILDCARDS = ["*", ">", "a.*", "*.a", "a.>", "*.>", "a.*.c", "*.*", "x" * (MAX_TOPIC - 2) + ".>"]
INVALID = [
    *("", ".", "a.", ".a", "a..b", "a b", " a", "a\n", "\ta", "a\0b", "a\x1f", "\x7f", "a\x85", "\x9b31m"),
    *("a\u2028b", "\u3000", "a\ud800", "\udfff", ">.a", "a.>.b", ">.>", "x" * (MAX_TOPIC + 1), "x" * 10_000_000),
]
NOT_STRINGS = [None, 1, b"a", ["a"], ("a",), object()]


class TestValidation:
    @pytest.mark.parametrize("name", NAMES)
    def test_a_topic_is_valid_to_publish_under_and_to_subscribe_to(self, name):
        assert check_topic(name) == check_pattern(name) == name
        assert not is_wildcard(name)

    @pytest.mark.parametrize("pattern", WILDCARDS)
    def test_a_wildcard_is_valid_to_subscribe_to_only(self, pattern):
        assert check_pattern(pattern) == pattern
        assert is_wildcard(pattern)
        with pytest.raises(ValueError, match=r"is a wildcard$"):
            check_topic(pattern)

    @pytest.mark.parametrize("text", INVALID, ids=lambda text: ascii(text[:20]))
    def test_an_invalid_name_is_refused_with_a_message_of_bounded_length(self, text):
        for check in (check_topic, check_pattern):
            with pytest.raises(ValueError, match=r"^a topic is|^the wildcard > ") as refused:
                check(text)
            assert len(str(refused.value)) < 500

    @pytest.mark.parametrize("value", NOT_STRINGS, ids=repr)
    def test_a_value_that_is_not_a_str_is_refused(self, value):
        for check in (check_topic, check_pattern):
            with pytest.raises(TypeError, match=r"^a topic is a str, not "):
                check(value)


def index_matches(pattern, topic):
    index = PatternIndex()
    index.add(pattern, "value")
    return index.matching(topic) == ("value",)


def compiled_matches(pattern, topic):
    return bool(compile_patterns(frozenset([pattern]))(topic))


class TestMatching:
    @settings(deadline=None)  # the machine may be busy
    @given(pattern=patterns(), topic=topics)
    @example(pattern="a.>", topic="a")
    @example(pattern="a.*", topic="a.b.c")
    @example(pattern="*", topic="a.b")
    @example(pattern=">", topic="a")
    @example(pattern="*.>", topic="a")
    def test_a_pattern_matches_as_nats_specifies(self, pattern, topic):
        assert index_matches(pattern, topic) == compiled_matches(pattern, topic) == matches(pattern, topic)

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
    def test_a_pattern_matches_these_topics(self, pattern, yes, no):
        """Also checks the reference implementation."""
        for match in index_matches, compiled_matches, matches:
            assert [topic for topic in [*yes, *no] if match(pattern, topic)] == yes


class PatternIndexAgainstAList(RuleBasedStateMachine):
    """Values are added and discarded, some twice, some that were never added."""

    def __init__(self):
        super().__init__()
        self.index = PatternIndex()
        self.listed = []

    @rule(pattern=patterns(), value=st.integers(0, 3))
    def add(self, pattern, value):
        self.index.add(pattern, value)
        if (pattern, value) not in self.listed:
            self.listed.append((pattern, value))

    @rule(data=st.data())
    def discard(self, data):
        if self.listed:
            pattern, value = data.draw(st.sampled_from(self.listed))
            self.listed.remove((pattern, value))
            self.index.discard(pattern, value)

    @rule(pattern=patterns(), value=st.integers(0, 3))
    def discard_any(self, pattern, value):
        self.index.discard(pattern, value)
        if (pattern, value) in self.listed:
            self.listed.remove((pattern, value))

    @rule(topic=topics)
    def find(self, topic):
        found = self.index.matching(topic)
        assert len(found) == len(set(found))
        assert set(found) == {value for pattern, value in self.listed if matches(pattern, topic)}

    @invariant()
    def the_lengths_agree(self):
        assert len(self.index) == len(self.listed)


def test_the_index_finds_what_a_list_finds():
    run_state_machine_as_test(PatternIndexAgainstAList)


def test_a_value_is_found_once_if_several_of_its_patterns_match():
    index = PatternIndex()
    for pattern in "a.b", "a.*", "*.b", "a.>", ">":
        index.add(pattern, "value")
    assert index.matching("a.b") == ("value",)


def test_discarded_patterns_leave_nothing_to_search(operations):
    def find(index):
        return operations(index.matching, "a.b.c")

    index, fresh = PatternIndex(), PatternIndex()
    names = [f"{first}.{second}.{third}" for first in "a*" for second in "b*x" for third in "c*>y"]
    for name in names:
        index.add(name, 1)
    full = find(index)
    for name in names:
        index.discard(name, 1)
    assert full > find(index) == find(fresh)
    for each in index, fresh:
        each.add("z.>", 2)
    assert find(index) == find(fresh)


def test_the_cost_of_a_search_depends_on_the_tokens_of_the_topic_and_not_on_the_patterns(operations):
    def find(count):
        index = PatternIndex()
        for number in range(count):
            index.add(f"a.{number}", number)
            index.add(f"a.{number}.*", number)
            index.add(f"{number}.>", number)
        return operations(index.matching, "a.b")

    assert find(2_000) == find(2)


def test_the_cost_of_a_search_does_not_grow_exponentially_with_the_tokens(operations):
    index = PatternIndex()
    for pattern in (".".join(["*"] * 100), ".".join(["a"] * 100), ".".join(["a", "*"] * 50)):
        index.add(pattern, pattern)
    topic = ".".join(["a"] * 100)
    assert len(index.matching(topic)) == 3
    # Each node is reached by one path, and each generator on that path is resumed once for each node below it.
    assert operations(index.matching, topic) < 3 * 100 * 20
