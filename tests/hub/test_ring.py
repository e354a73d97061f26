"""The bounds of a history, and one topic's latest records: what is there, what is gone, and what that costs."""

import gc
import tracemalloc
import weakref

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aiohttp_interceptors.hub.record import Record
from aiohttp_interceptors.hub.topic_history import SLACK, RetentionPolicy, TopicHistory
from aiohttp_interceptors.sse import Event

EVENT = Event("x")


def record(offset, key=None, frame=b"x", event=EVENT):
    return Record(offset, str(offset), "a", event, frame, key, 0.0)


class TestBounds:
    @pytest.mark.parametrize("history", [0, 1, 10**9])
    @pytest.mark.parametrize("history_bytes", [None, 1, 2**40])
    @pytest.mark.parametrize("history_age", [None, 1e-9, 1, 3600.0, 10**9])
    def test_what_can_be_meant_is_taken(self, history, history_bytes, history_age):
        bounds = RetentionPolicy(history, history_bytes, history_age)
        assert (bounds.history, bounds.history_bytes, bounds.history_age) == (history, history_bytes, history_age)

    @pytest.mark.parametrize(
        ("wrong", "error", "message"),
        [
            ({"history": -1}, ValueError, "history is 0 or more, not -1"),
            ({"history": None}, TypeError, "history is a whole number, not None"),
            ({"history": 1.0}, TypeError, "history is a whole number, not 1.0"),
            ({"history": True}, TypeError, "history is a whole number, not True"),
            ({"history_bytes": 0}, ValueError, "history_bytes is 1 or more, not 0"),
            ({"history_bytes": "1M"}, TypeError, "history_bytes is a whole number, not '1M'"),
            ({"history_bytes": False}, TypeError, "history_bytes is a whole number, not False"),
            ({"history_age": 0}, ValueError, "history_age is more than 0 seconds, not 0; None means no limit"),
            ({"history_age": -0.5}, ValueError, "history_age is more than 0 seconds, not -0.5"),
            ({"history_age": float("inf")}, ValueError, "history_age is more than 0 seconds, not inf"),
            ({"history_age": float("nan")}, ValueError, "history_age is more than 0 seconds, not nan"),
            ({"history_age": "1h"}, TypeError, "history_age is a number of seconds or None, not '1h'"),
            ({"history_age": True}, TypeError, "history_age is a number of seconds or None, not True"),
        ],
    )
    def test_what_cannot_be_meant_is_refused_by_its_name(self, wrong, error, message):
        with pytest.raises(error, match=message):
            RetentionPolicy(**{"history": 1, "history_bytes": None, "history_age": None, **wrong})


class RingAgainstAList(RuleBasedStateMachine):
    """Records come, with and without keys, and the oldest go."""

    def __init__(self):
        super().__init__()
        self.end = self.born = 7
        self.ring = TopicHistory("a", self.born)
        self.kept = []
        self.gone = []  # each with whether another one made up for it then

    @rule(key=st.sampled_from([None, "k", "l", ""]), size=st.integers(1, 9), step=st.integers(1, 3))
    def append(self, key, size, step):
        self.end += step  # between them are records of other topics
        self.kept.append(record(self.end, key, b"x" * size))
        self.ring.append(self.kept[-1])

    @rule(key=st.sampled_from([None, "k"]), times=st.integers(1, 3 * SLACK))
    def append_many(self, key, times):
        for _ in range(times):
            self.append(key, 1, 1)

    @rule(times=st.integers(1, 3 * SLACK))
    @precondition(lambda self: self.kept)
    def evict(self, times):
        for _ in range(min(times, len(self.kept))):
            oldest = self.kept.pop(0)
            assert self.ring.oldest is oldest
            self.ring.evict()
            made_up_for = oldest.key is not None and any(oldest.key == later.key for later in self.kept)
            self.gone.append((oldest.offset, made_up_for))

    @rule(back=st.integers(0, 200), most=st.none() | st.integers(0, 9))
    def read(self, back, most):
        offset = self.end - back
        assert self.ring.after(offset, most) == [kept for kept in self.kept if kept.offset > offset][:most]

    @invariant()
    def they_agree(self):
        assert len(self.ring) == len(self.kept)
        assert self.ring.bytes == sum(len(kept.frame) for kept in self.kept)
        assert self.ring.last == self.end
        assert self.ring.evicted == max([offset for offset, _ in self.gone], default=self.born)
        assert self.ring.lost == max([offset for offset, made_up_for in self.gone if not made_up_for],
                                     default=self.born)  # fmt: skip


def test_in_any_order_a_ring_has_what_a_list_has():
    run_state_machine_as_test(RingAgainstAList)


class TestMemory:
    def test_a_record_that_was_evicted_is_freed_at_once(self):
        class Watched(Event):
            """One that can be asked whether it is still there."""

        ring, seen = TopicHistory("a", 0), []
        for offset in range(1, 200):
            event = Watched("x")
            seen.append(weakref.ref(event))
            ring.append(record(offset, event=event))
            del event
            if len(ring) > 5:
                ring.evict()
        gc.collect()
        assert [offset for offset, event in enumerate(seen, 1) if event() is not None] == [*range(195, 200)]

    def test_a_ring_that_was_emptied_is_as_small_as_a_new_one(self):
        rings = [TopicHistory("a", 0) for _ in range(50)]
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for ring in rings:
                for offset in range(1, 501):
                    ring.append(record(offset, str(offset)))
                while ring:
                    ring.evict()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < 50 * 200

    def test_what_a_ring_of_a_few_needs_does_not_grow_with_what_came_and_went(self):
        ring = TopicHistory("a", 0)

        def turn_over(times):
            for _ in range(times):
                ring.append(record(ring.last + 1, str(ring.last)))
                if len(ring) > 5:
                    ring.evict()

        turn_over(1_000)
        tracemalloc.start()
        try:
            turn_over(1_000)
            before, _ = tracemalloc.get_traced_memory()
            turn_over(50_000)
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < 4_000
