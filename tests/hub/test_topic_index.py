"""The index of topic histories finds what a list finds, and does not visit topics that did not change."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from aiohttp_interceptors.hub.index import TopicIndex
from aiohttp_interceptors.hub.record import Record
from aiohttp_interceptors.hub.topic_history import TopicHistory
from aiohttp_interceptors.hub.topics import is_wildcard
from aiohttp_interceptors.sse import Event
from tests.hub.reference import matches, patterns, topics

EVENT = Event("x")


def change(index, history, offset):
    history.append(Record(offset, str(offset), history.topic, EVENT, b"x", None, 0.0))
    index.update(history)


def _greatest(pairs):
    return [max((pair[which] for pair in pairs), default=0) for which in (0, 1)]


class TopicIndexAgainstAList(RuleBasedStateMachine):
    """Topics change, evict records, are removed, and are added again."""

    def __init__(self):
        super().__init__()
        self.index = TopicIndex()
        self.histories = {}
        self.missing_through = {}
        self.end = 0

    @rule(topic=topics)
    def change(self, topic):
        self.end += 1
        change(self.index, self.histories.setdefault(topic, TopicHistory(topic, 0)), self.end)

    @rule(data=st.data())
    def change_existing(self, data):
        if self.histories:
            self.change(data.draw(st.sampled_from(list(self.histories))))

    @rule(data=st.data())
    def remove(self, data):
        if self.histories:
            topic = data.draw(st.sampled_from(list(self.histories)))
            self.index.remove(topic)
            del self.histories[topic]

    @rule(data=st.data())
    def evict(self, data):
        histories = [history for history in self.histories.values() if history]
        if histories:
            history = data.draw(st.sampled_from(histories))
            history.evict()
            self.index.index_eviction(history)
            before = self.missing_through.get(history.topic, (0, 0))
            self.missing_through[history.topic] = max(before, (history.evicted_through, history.unsuperseded_through))

    @rule(wildcard=patterns().filter(is_wildcard))
    def find_evictions(self, wildcard):
        """The offsets never decrease, but those of a removed topic may be forgotten."""
        ever = {topic: pair for topic, pair in self.missing_through.items() if matches(wildcard, topic)}
        present = [pair for topic, pair in ever.items() if topic in self.histories]
        bounds = zip(self.index.missing_through(wildcard), _greatest(present), _greatest(ever.values()), strict=True)
        for found, least, most in bounds:
            assert least <= found <= most

    @rule(wildcard=patterns().filter(is_wildcard), back=st.integers(0, 50), max_steps=st.integers(0, 30))
    def find_within_a_number_of_steps(self, wildcard, back, max_steps):
        offset = max(self.end - back, 0)
        found = self.index.changed_after(wildcard, offset, max_steps)
        if found is not None:
            assert len(found) <= max_steps
            assert found == self.index.changed_after(wildcard, offset)
        assert self.index.changed_after(wildcard, offset, 10_000) == self.index.changed_after(wildcard, offset)

    @rule(wildcard=patterns().filter(is_wildcard), back=st.integers(0, 50))
    def find(self, wildcard, back):
        offset = max(self.end - back, 0)
        found = self.index.changed_after(wildcard, offset)
        assert len(found) == len(set(map(id, found)))
        assert set(found) == {
            history
            for topic, history in self.histories.items()
            if matches(wildcard, topic) and history.last_offset > offset
        }


def test_the_index_finds_what_a_list_finds():
    run_state_machine_as_test(TopicIndexAgainstAList)


def index_of(topics):
    index = TopicIndex()
    histories = {topic: TopicHistory(topic, 0) for topic in topics}
    for offset, history in enumerate(histories.values(), 1):
        change(index, history, offset)
    return index, histories


NAMES = ["{}", "a.{}", "{}.b", "a.{}.c"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wildcard", [">", "*", "a.>", "a.*", "*.b", "a.*.c", "*.>"])
def test_the_cost_of_a_search_depends_on_the_changed_topics_and_not_on_all(operations, name, wildcard):
    def search(quiet):
        index, histories = index_of([name.format(number) for number in range(quiet)])
        end = quiet
        for number in 3, 7, 7, 1, 3:
            end += 1
            change(index, histories[name.format(number)], end)
        return operations(index.changed_after, wildcard, end), operations(index.changed_after, wildcard, end - 5)

    assert search(5_000) == search(10)


@pytest.mark.parametrize("name", NAMES)
def test_the_cost_of_an_update_depends_on_the_tokens_of_the_topic_and_not_on_the_topics(operations, name):
    def update(quiet):
        index, histories = index_of([name.format(number) for number in range(quiet)])
        return operations(index.update, histories[name.format(3)])

    assert update(5_000) == update(10)


@pytest.mark.parametrize("wildcard", [">", "*", "a.>", "a.*", "*.*", "*.b"])
def test_evictions_are_found_without_visiting_the_topics(operations, wildcard):
    def search(quiet):
        index, histories = index_of([f"a.{number}" for number in range(quiet)])
        for history in histories.values():
            history.evict()
            index.index_eviction(history)
        assert index.missing_through("a.*") == index.missing_through(">") == (quiet, quiet)
        return operations(index.missing_through, wildcard)

    assert search(5_000) == search(10)


def test_a_search_stops_after_the_given_number_of_steps(operations):
    index, _ = index_of([f"a.{number}.b" for number in range(5_000)])
    for wildcard in ">", "a.*.b", "a.*.c", "*.*.c", "*.>":
        assert index.changed_after(wildcard, 0, 50) is None
        assert operations(index.changed_after, wildcard, 0, 50) < 1_000


def test_removed_topics_leave_nothing_to_search(operations):
    index, _ = index_of([name.format(number) for number in range(100) for name in NAMES])
    for number in range(100):
        for name in NAMES:
            index.remove(name.format(number))
    fresh, _ = index_of([])
    for each in index, fresh:
        change(each, TopicHistory("z.y", 0), 1_000)
    for wildcard in ">", "*.*", "a.*.c":
        assert operations(index.changed_after, wildcard, 0) == operations(fresh.changed_after, wildcard, 0)


def test_a_topic_that_is_the_prefix_of_another_can_be_removed_first():
    index, histories = index_of(["a", "a.b", "a.b.c"])
    index.remove("a.b")
    assert set(index.changed_after(">", 0)) == {histories["a"], histories["a.b.c"]}
    index.remove("a.b.c")
    assert index.changed_after(">", 0) == [histories["a"]]
    assert index.changed_after("a.>", 0) == []
