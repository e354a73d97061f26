"""The retention policy, and the history of one topic: what it keeps, what it evicted, and the memory that it takes."""

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


class TestRetentionPolicy:
    @pytest.mark.parametrize("history", [0, 1, 10**9])
    @pytest.mark.parametrize("history_bytes", [None, 1, 2**40])
    @pytest.mark.parametrize("history_age", [None, 1e-9, 1, 3600.0, 10**9])
    def test_valid_limits_are_accepted(self, history, history_bytes, history_age):
        policy = RetentionPolicy(history, history_bytes, history_age)
        assert (policy.history, policy.history_bytes, policy.history_age) == (history, history_bytes, history_age)

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
    def test_an_invalid_limit_is_refused_by_its_name(self, wrong, error, message):
        with pytest.raises(error, match=message):
            RetentionPolicy(**{"history": 1, "history_bytes": None, "history_age": None, **wrong})


class TopicHistoryAgainstAList(RuleBasedStateMachine):
    """Records with and without keys are appended, and the oldest are evicted."""

    def __init__(self):
        super().__init__()
        self.end = self.start = 7
        self.history = TopicHistory("a", self.start)
        self.kept = []
        self.evicted = []  # offsets, and whether a later record superseded that one when it was evicted

    @rule(key=st.sampled_from([None, "k", "l", ""]), size=st.integers(1, 9), step=st.integers(1, 3))
    def append(self, key, size, step):
        self.end += step  # the offsets in between are of other topics
        self.kept.append(record(self.end, key, b"x" * size))
        self.history.append(self.kept[-1])

    @rule(key=st.sampled_from([None, "k"]), times=st.integers(1, 3 * SLACK))
    def append_many(self, key, times):
        for _ in range(times):
            self.append(key, 1, 1)

    @rule(times=st.integers(1, 3 * SLACK))
    @precondition(lambda self: self.kept)
    def evict(self, times):
        for _ in range(min(times, len(self.kept))):
            oldest = self.kept.pop(0)
            assert self.history.oldest is oldest
            self.history.evict()
            superseded = oldest.key is not None and any(oldest.key == later.key for later in self.kept)
            self.evicted.append((oldest.offset, superseded))

    @rule(back=st.integers(0, 200), max_records=st.none() | st.integers(0, 9))
    def read(self, back, max_records):
        offset = self.end - back
        expected = [kept for kept in self.kept if kept.offset > offset][:max_records]
        assert self.history.after(offset, max_records) == expected

    @invariant()
    def they_agree(self):
        assert len(self.history) == len(self.kept)
        assert self.history.bytes == sum(len(kept.frame) for kept in self.kept)
        assert self.history.last_offset == self.end
        lost = [offset for offset, superseded in self.evicted if not superseded]
        assert self.history.evicted_through == max([offset for offset, _ in self.evicted], default=self.start)
        assert self.history.unsuperseded_through == max(lost, default=self.start)


def test_a_topic_history_has_what_a_list_has():
    run_state_machine_as_test(TopicHistoryAgainstAList)


class TestMemory:
    def test_an_evicted_record_is_freed_at_once(self):
        class Watched(Event):
            """An event that supports weak references."""

        history, seen = TopicHistory("a", 0), []
        for offset in range(1, 200):
            event = Watched("x")
            seen.append(weakref.ref(event))
            history.append(record(offset, event=event))
            del event
            if len(history) > 5:
                history.evict()
        gc.collect()
        assert [offset for offset, event in enumerate(seen, 1) if event() is not None] == list(range(195, 200))

    def test_an_emptied_history_is_as_small_as_a_new_one(self):
        histories = [TopicHistory("a", 0) for _ in range(50)]
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for history in histories:
                for offset in range(1, 501):
                    history.append(record(offset, str(offset)))
                while history:
                    history.evict()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < 50 * 200

    def test_the_memory_of_a_short_history_does_not_grow_with_the_records_that_it_evicted(self):
        history = TopicHistory("a", 0)

        def append_and_evict(times):
            for _ in range(times):
                history.append(record(history.last_offset + 1, str(history.last_offset)))
                if len(history) > 5:
                    history.evict()

        append_and_evict(1_000)
        tracemalloc.start()
        try:
            append_and_evict(1_000)
            before, _ = tracemalloc.get_traced_memory()
            append_and_evict(50_000)
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < 4_000
