"""Event IDs that cannot be resolved yet are resolved once, as soon as possible, and at the latest after a timeout."""

from __future__ import annotations

import asyncio

import pytest

from aiohttp_interceptors.hub.history import History
from aiohttp_interceptors.hub.pending import FUTURE_ID_TIMEOUT, PendingSubscriptions
from aiohttp_interceptors.hub.record import GapReason, Record
from aiohttp_interceptors.hub.topic_history import RetentionPolicy

FUTURE = 3, GapReason.FUTURE


class Process:
    """A history that ends at offset 3, and the owners whose IDs were resolved, in order."""

    def __init__(self, *, remote=True, caught_up=True):
        self.history = History(RetentionPolicy(10, None, None), "e")
        self.pending = PendingSubscriptions(self.history, remote=remote)
        self.resolved = []
        self.append(3)
        if remote and caught_up:
            self.pending.on_caught_up()

    def append(self, offset):
        self.history.add(Record(offset, f"e-{offset}", "a", None, b"data: x\n\n", None, 0.0))

    def add(self, owner, event_id):
        self.pending.add(owner, event_id, lambda resolved: self.resolved.append((owner, resolved)))


class Clock:
    """The event loop's time, which the test advances, and the timers that were set."""

    def __init__(self, loop):
        self.now = 1000.0
        self._asked = []
        self._call_at = loop.call_at

    def call_at(self, time, call, *arguments, **keywords):
        self._asked.append(getattr(call, "__self__", None))
        return self._call_at(time, call, *arguments, **keywords)

    def timers(self, owner):
        """Return the number of timers that an object has set."""
        return self._asked.count(owner)

    async def advance(self, seconds):
        self.now += seconds
        for _ in range(5):
            await asyncio.sleep(0)


@pytest.fixture
async def clock(monkeypatch):
    loop = asyncio.get_running_loop()
    clock = Clock(loop)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "time", lambda: clock.now)
        patch.setattr(loop, "call_at", clock.call_at)
        yield clock


class TestWithoutABroker:
    @pytest.mark.parametrize("event_id", [None, "e-2", "e-3", "e-4", "f-1", "7"])
    async def test_every_id_is_resolved_at_once(self, event_id):
        pending = Process(remote=False).pending
        assert (pending.loaded, pending.caught_up) == (True, True)
        expected = {None: (3, None), "e-2": (2, None), "e-3": (3, None), "e-4": FUTURE}
        foreign = {"f-1": (0, GapReason.FOREIGN), "7": (3, GapReason.UNKNOWN)}
        assert pending.resolve(event_id) == {**expected, **foreign}[event_id]


class TestBeforeTheHistoryIsLoaded:
    @pytest.mark.parametrize("event_id", [None, "e-2", "e-4", "f-1", "7"])
    async def test_no_id_is_resolved_however_long_it_has_waited(self, event_id, clock):
        pending = Process(caught_up=False).pending
        assert (pending.loaded, pending.caught_up) == (False, False)
        assert pending.resolve(event_id) is None
        assert pending.resolve(event_id, clock.now - 1_000) is None

    async def test_all_ids_are_resolved_in_order_when_it_is_loaded(self):
        process = Process(caught_up=False)
        for event_id in "e-2", None, "e-3", "7":
            process.add(str(event_id), event_id)
        process.pending.resolve_all()
        assert process.resolved == []
        process.pending.on_caught_up()
        assert process.resolved == [
            ("e-2", (2, None)),
            ("None", (3, None)),
            ("e-3", (3, None)),
            ("7", (3, GapReason.UNKNOWN)),
        ]
        process.pending.resolve_all()
        assert len(process.resolved) == 4

    async def test_the_timeout_of_a_future_id_starts_when_it_is_loaded(self, clock):
        process = Process(caught_up=False)
        process.add("early", "e-4")
        await clock.advance(1_000)
        assert (process.resolved, clock.timers(process.pending)) == ([], 0)
        process.pending.on_caught_up()
        await clock.advance(FUTURE_ID_TIMEOUT - 0.5)
        assert process.resolved == []
        await clock.advance(0.5)
        assert process.resolved == [("early", FUTURE)]


class TestFutureIds:
    async def test_an_id_ahead_of_the_history_is_waited_for(self, clock):
        pending = Process().pending
        assert pending.resolve("e-4") is None
        assert pending.resolve("e-4", clock.now - FUTURE_ID_TIMEOUT + 0.5) is None
        assert pending.resolve("e-4", clock.now - FUTURE_ID_TIMEOUT) == FUTURE

    async def test_an_epoch_that_another_process_has_received_first_is_waited_for(self, clock):
        process = Process()
        process.add("new epoch", "f-1")
        await clock.advance(FUTURE_ID_TIMEOUT - 0.5)
        assert process.resolved == []
        process.history.truncate("f", 2)
        process.pending.resolve_all()
        assert process.resolved == [("new epoch", (2, GapReason.TRUNCATED))]

    async def test_an_epoch_that_does_not_arrive_is_foreign(self, clock):
        process = Process()
        process.add("foreign", "f-1")
        await clock.advance(FUTURE_ID_TIMEOUT)
        assert process.resolved == [("foreign", (0, GapReason.FOREIGN))]

    @pytest.mark.parametrize("event_id", [None, "e-0", "e-3", "9"])
    async def test_no_other_id_is_waited_for(self, event_id):
        assert Process().pending.resolve(event_id) is not None

    async def test_an_id_is_resolved_when_its_record_arrives_and_later_ones_wait(self):
        process = Process()
        process.add("five", "e-5")
        process.add("four", "e-4")
        process.pending.resolve_all()
        assert process.resolved == []
        process.append(4)
        process.pending.resolve_all()
        assert process.resolved == [("four", (4, None))]
        process.append(6)
        process.pending.resolve_all()
        assert process.resolved == [("four", (4, None)), ("five", (5, None))]
        process.pending.close()

    async def test_a_truncation_resolves_the_id_to_the_end_of_the_old_epoch(self):
        process = Process()
        process.add("ahead", "e-4")
        process.history.truncate("f", 2)
        process.pending.resolve_all()
        assert process.resolved == [("ahead", (2, GapReason.TRUNCATED))]
        process.pending.close()

    async def test_each_id_becomes_a_gap_after_its_own_timeout(self, clock):
        process = Process()
        for name in "one", "two", "three":
            process.add(name, "e-9")
            await clock.advance(FUTURE_ID_TIMEOUT / 4)
        await clock.advance(FUTURE_ID_TIMEOUT / 4 - 0.125)
        assert process.resolved == []
        await clock.advance(0.125)
        assert process.resolved == [("one", FUTURE)]
        await clock.advance(FUTURE_ID_TIMEOUT / 4)
        assert process.resolved == [("one", FUTURE), ("two", FUTURE)]
        await clock.advance(FUTURE_ID_TIMEOUT / 4)
        assert process.resolved == [("one", FUTURE), ("two", FUTURE), ("three", FUTURE)]
        await clock.advance(1_000)
        assert clock.timers(process.pending) == 3

    async def test_while_the_broker_is_down_no_id_becomes_a_gap_and_the_timeout_starts_again_after_it(self, clock):
        process = Process()
        process.add("before", "e-4")
        process.pending.caught_up = False
        process.add("meanwhile", "e-5")
        assert process.pending.resolve("e-4", clock.now - 1_000) is None
        await clock.advance(1_000)
        assert process.resolved == []
        assert clock.timers(process.pending) == 1, "no timer is set while the broker is down"
        process.pending.on_caught_up()
        await clock.advance(FUTURE_ID_TIMEOUT - 0.125)
        assert process.resolved == []
        await clock.advance(0.125)
        assert process.resolved == [("before", FUTURE), ("meanwhile", FUTURE)]

    async def test_while_the_broker_is_down_known_ids_are_resolved(self):
        pending = Process().pending
        pending.caught_up = False
        assert [pending.resolve(event_id) for event_id in (None, "e-2", "7")] == [
            *((3, None), (2, None)),
            (3, GapReason.UNKNOWN),
        ]

    async def test_ten_thousand_ids_need_one_timer(self, clock):
        process = Process()
        for number in range(10_000):
            process.add(number, "e-4")
        assert clock.timers(process.pending) == 1
        process.append(4)
        process.pending.resolve_all()
        assert process.resolved == [(number, (4, None)) for number in range(10_000)]
        process.pending.close()


class TestDiscard:
    async def test_a_discarded_owner_is_not_called(self):
        process = Process(caught_up=False)
        process.add("gone", "e-2")
        process.add("there", "e-3")
        process.pending.discard("gone")
        process.pending.discard("gone")
        process.pending.discard("unknown")
        process.pending.on_caught_up()
        assert process.resolved == [("there", (3, None))]

    async def test_a_callback_can_discard_other_owners(self):
        process = Process(caught_up=False)

        def discard_all(resolved):
            for owner in "first", "second", "third":
                process.pending.discard(owner)

        process.pending.add("first", None, discard_all)
        process.add("second", None)
        process.add("third", "e-4")
        process.pending.on_caught_up()
        process.append(4)
        process.pending.resolve_all()
        assert process.resolved == []

    async def test_a_callback_can_add_its_owner_again(self):
        process = Process(caught_up=False)
        process.pending.add("again", "e-2", lambda resolved: process.add("again", "e-4"))
        process.pending.on_caught_up()
        process.pending.resolve_all()
        assert process.resolved == []
        process.append(4)
        process.pending.resolve_all()
        assert process.resolved == [("again", (4, None))]
        process.pending.close()

    async def test_a_timer_without_owners_is_not_set_again(self, clock):
        process = Process()
        process.add("gone", "e-4")
        process.pending.discard("gone")
        await clock.advance(1_000)
        assert clock.timers(process.pending) == 1
        process.add("next", "e-4")
        await clock.advance(FUTURE_ID_TIMEOUT)
        assert process.resolved == [("next", FUTURE)]


class TestClose:
    async def test_no_timer_stays_in_the_event_loop(self, clock):
        process = Process()
        process.add("ahead", "e-4")
        process.pending.close()
        process.pending.close()
        await clock.advance(1_000)
        assert process.resolved == []

    async def test_owners_added_after_close_get_a_timer(self, clock):
        process = Process()
        process.add("before", "e-4")
        process.pending.close()
        process.add("after", "e-5")
        await clock.advance(FUTURE_ID_TIMEOUT)
        assert process.resolved == [("before", FUTURE), ("after", FUTURE)]
