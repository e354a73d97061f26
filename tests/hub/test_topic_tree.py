"""The rings under a wildcard that changed after a position: those of a list, and no look at any other."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from aiohttp_interceptors.hub.index import TopicTree
from aiohttp_interceptors.hub.record import Record
from aiohttp_interceptors.hub.topic_history import TopicHistory
from aiohttp_interceptors.hub.topics import is_wildcard
from aiohttp_interceptors.sse import Event
from tests.hub.reference import matches, patterns, topics

EVENT = Event("x")


def active(tree, wildcard, offset):
    return list(tree.active(wildcard, offset))


def change(tree, ring, offset):
    ring.append(Record(offset, str(offset), ring.topic, EVENT, b"x", None, 0.0))
    tree.touch(ring)


def _latest(pairs):
    return [max((pair[which] for pair in pairs), default=0) for which in (0, 1)]


class TreeAgainstAList(RuleBasedStateMachine):
    """Topics change, are forgotten, and come back."""

    def __init__(self):
        super().__init__()
        self.tree = TopicTree()
        self.rings = {}
        self.gone = {}
        self.end = 0

    @rule(topic=topics)
    def change(self, topic):
        self.end += 1
        change(self.tree, self.rings.setdefault(topic, TopicHistory(topic, 0)), self.end)

    @rule(data=st.data())
    def change_one_that_is_there(self, data):
        if self.rings:
            self.change(data.draw(st.sampled_from(list(self.rings))))

    @rule(data=st.data())
    def remove(self, data):
        if self.rings:
            topic = data.draw(st.sampled_from(list(self.rings)))
            self.tree.remove(topic)
            del self.rings[topic]

    @rule(data=st.data())
    def evict(self, data):
        rings = [ring for ring in self.rings.values() if ring]
        if rings:
            ring = data.draw(st.sampled_from(rings))
            ring.evict()
            self.tree.evict(ring)
            self.gone[ring.topic] = max(self.gone.get(ring.topic, (0, 0)), (ring.evicted, ring.lost))

    @rule(wildcard=patterns().filter(is_wildcard))
    def look_at_what_is_gone(self, wildcard):
        """It never becomes less; but a topic that was removed may be forgotten."""
        there = [pair for topic, pair in self.gone.items() if topic in self.rings and matches(wildcard, topic)]
        ever = [pair for topic, pair in self.gone.items() if matches(wildcard, topic)]
        for found, least, most in zip(self.tree.gone(wildcard), _latest(there), _latest(ever), strict=True):
            assert least <= found <= most

    @rule(wildcard=patterns().filter(is_wildcard), back=st.integers(0, 50), most=st.integers(0, 30))
    def look_at_a_few(self, wildcard, back, most):
        offset = max(self.end - back, 0)
        found = self.tree.few(wildcard, offset, most)
        if found is not None:
            assert len(found) <= most
            assert found == active(self.tree, wildcard, offset)
        assert self.tree.few(wildcard, offset, 10_000) == active(self.tree, wildcard, offset)

    @rule(wildcard=patterns().filter(is_wildcard), back=st.integers(0, 50))
    def look(self, wildcard, back):
        offset = max(self.end - back, 0)
        found = active(self.tree, wildcard, offset)
        assert len(found) == len(set(map(id, found)))
        assert set(found) == {
            ring for topic, ring in self.rings.items() if matches(wildcard, topic) and ring.last > offset
        }


def test_in_any_order_the_rings_found_are_those_of_a_list():
    run_state_machine_as_test(TreeAgainstAList)


def tree_of(names):
    tree = TopicTree()
    rings = {name: TopicHistory(name, 0) for name in names}
    for offset, ring in enumerate(rings.values(), 1):
        change(tree, ring, offset)
    return tree, rings


NAMES = ["{}", "a.{}", "{}.b", "a.{}.c"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wildcard", [">", "*", "a.>", "a.*", "*.b", "a.*.c", "*.>"])
def test_looking_costs_the_rings_that_changed_and_not_those_that_are_there(operations, name, wildcard):
    def look(quiet):
        tree, rings = tree_of([name.format(number) for number in range(quiet)])
        end = quiet
        for number in 3, 7, 7, 1, 3:
            end += 1
            change(tree, rings[name.format(number)], end)
        return operations(active, tree, wildcard, end), operations(active, tree, wildcard, end - 5)

    assert look(5_000) == look(10)


@pytest.mark.parametrize("name", NAMES)
def test_a_change_costs_the_tokens_of_the_topic_and_not_the_topics(operations, name):
    def touch(quiet):
        tree, rings = tree_of([name.format(number) for number in range(quiet)])
        return operations(tree.touch, rings[name.format(3)])

    assert touch(5_000) == touch(10)


@pytest.mark.parametrize("wildcard", [">", "*", "a.>", "a.*", "*.*", "*.b"])
def test_what_is_gone_costs_no_look_at_the_topics(operations, wildcard):
    def gone(quiet):
        tree, rings = tree_of([f"a.{number}" for number in range(quiet)])
        for ring in rings.values():
            ring.evict()
            tree.evict(ring)
        assert tree.gone("a.*") == tree.gone(">") == (quiet, quiet)
        return operations(tree.gone, wildcard)

    assert gone(5_000) == gone(10)


def test_a_few_cost_no_more_steps_than_they_may(operations):
    tree, _ = tree_of([f"a.{number}.b" for number in range(5_000)])
    for wildcard in ">", "a.*.b", "a.*.c", "*.*.c", "*.>":
        assert tree.few(wildcard, 0, 50) is None
        assert operations(tree.few, wildcard, 0, 50) < 1_000


def test_topics_that_were_removed_leave_nothing_to_look_at(operations):
    tree, _ = tree_of([name.format(number) for number in range(100) for name in NAMES])
    for number in range(100):
        for name in NAMES:
            tree.remove(name.format(number))
    fresh, _ = tree_of([])
    for some in tree, fresh:
        change(some, TopicHistory("z.y", 0), 1_000)
    for wildcard in ">", "*.*", "a.*.c":
        assert operations(active, tree, wildcard, 0) == operations(active, fresh, wildcard, 0)


def test_a_topic_may_lead_to_others_and_go_before_them():
    tree, rings = tree_of(["a", "a.b", "a.b.c"])
    tree.remove("a.b")
    assert set(active(tree, ">", 0)) == {rings["a"], rings["a.b.c"]}
    tree.remove("a.b.c")
    assert active(tree, ">", 0) == [rings["a"]]
    assert active(tree, "a.>", 0) == []
