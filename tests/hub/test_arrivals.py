"""Who comes before the Hub can say from where he goes on is told as soon as it can, once, and at last in any case."""

from __future__ import annotations

import asyncio

import pytest

from aiohttp_interceptors.hub.dispatcher import PATIENCE, PendingSubscriptions
from aiohttp_interceptors.hub.history import History
from aiohttp_interceptors.hub.record import GapReason, Record
from aiohttp_interceptors.hub.topic_history import RetentionPolicy

FUTURE = 3, GapReason.FUTURE


class Process:
    """A log whose last position is 3, and who has been told where he goes on, in the order in which they were."""

    def __init__(self, *, remote=True, begun=True):
        self.log = History(RetentionPolicy(10, None, None), "e")
        self.pending = PendingSubscriptions(self.log, remote=remote)
        self.told = []
        self.grow(3)
        if remote and begun:
            self.pending.begin()

    def grow(self, offset):
        self.log.add(Record(offset, f"e-{offset}", "a", None, b"data: x\n\n", None, 0.0))

    def wait(self, owner, given):
        self.pending.wait(owner, given, lambda located: self.told.append((owner, located)))


class Clock:
    """The event loop's time, which goes on when the test says so, and what was asked to be called later."""

    def __init__(self, loop):
        self.now = 1000.0
        self._asked = []
        self._call_at = loop.call_at

    def call_at(self, time, call, *arguments, **keywords):
        self._asked.append(getattr(call, "__self__", None))
        return self._call_at(time, call, *arguments, **keywords)

    def timers(self, owner):
        """Return how often somebody has asked."""
        return self._asked.count(owner)

    async def go_on(self, seconds):
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
    @pytest.mark.parametrize("given", [None, "e-2", "e-3", "e-4", "f-1", "7"])
    async def test_nobody_waits(self, given):
        pending = Process(remote=False).pending
        assert (pending.open, pending.up) == (True, True)
        expected = {None: (3, None), "e-2": (2, None), "e-3": (3, None), "e-4": FUTURE}
        foreign = {"f-1": (0, GapReason.FOREIGN), "7": (3, GapReason.UNKNOWN)}
        assert pending.locate(given) == {**expected, **foreign}[given]


class TestBeforeTheHistory:
    @pytest.mark.parametrize("given", [None, "e-2", "e-4", "f-1", "7"])
    async def test_nobody_can_be_told_however_long_he_has_waited(self, given, clock):
        pending = Process(begun=False).pending
        assert (pending.open, pending.up) == (False, False)
        assert pending.locate(given) is None
        assert pending.locate(given, clock.now - 1_000) is None

    async def test_all_are_told_in_their_order_when_it_has_been_read(self):
        process = Process(begun=False)
        for given in "e-2", None, "e-3", "7":
            process.wait(str(given), given)
        process.pending.look()
        assert process.told == []
        process.pending.begin()
        assert process.told == [
            ("e-2", (2, None)),
            ("None", (3, None)),
            ("e-3", (3, None)),
            ("7", (3, GapReason.UNKNOWN)),
        ]
        process.pending.look()
        assert len(process.told) == 4

    async def test_who_waited_for_it_has_his_time_for_what_is_ahead_from_then_on(self, clock):
        process = Process(begun=False)
        process.wait("early", "e-4")
        await clock.go_on(1_000)
        assert (process.told, clock.timers(process.pending)) == ([], 0)
        process.pending.begin()
        await clock.go_on(PATIENCE - 0.5)
        assert process.told == []
        await clock.go_on(0.5)
        assert process.told == [("early", FUTURE)]


class TestWhatIsAhead:
    async def test_it_may_be_on_its_way_and_is_waited_for(self, clock):
        pending = Process().pending
        assert pending.locate("e-4") is None
        assert pending.locate("e-4", clock.now - PATIENCE + 0.5) is None
        assert pending.locate("e-4", clock.now - PATIENCE) == FUTURE

    async def test_an_epoch_that_another_process_was_told_of_first_is_waited_for(self, clock):
        process = Process()
        process.wait("of a new epoch", "f-1")
        await clock.go_on(PATIENCE - 0.5)
        assert process.told == []
        process.log.truncate("f", 2)
        process.pending.look()
        assert process.told == [("of a new epoch", (2, GapReason.REWOUND))]

    async def test_an_epoch_that_does_not_come_is_foreign(self, clock):
        process = Process()
        process.wait("foreign", "f-1")
        await clock.go_on(PATIENCE)
        assert process.told == [("foreign", (0, GapReason.FOREIGN))]

    @pytest.mark.parametrize("given", [None, "e-0", "e-3", "9"])
    async def test_nothing_else_is_waited_for(self, given):
        assert Process().pending.locate(given) is not None

    async def test_who_waits_is_told_as_soon_as_it_is_there_and_the_others_wait_on(self):
        process = Process()
        process.wait("five", "e-5")
        process.wait("four", "e-4")
        process.pending.look()
        assert process.told == []
        process.grow(4)
        process.pending.look()
        assert process.told == [("four", (4, None))]
        process.grow(6)
        process.pending.look()
        assert process.told == [("four", (4, None)), ("five", (5, None))]
        process.pending.close()

    async def test_when_the_log_is_rewound_meanwhile_that_is_what_is_told(self):
        process = Process()
        process.wait("ahead", "e-4")
        process.log.truncate("f", 2)
        process.pending.look()
        assert process.told == [("ahead", (2, GapReason.REWOUND))]
        process.pending.close()

    async def test_it_is_a_gap_in_the_end_for_each_when_he_has_waited_as_long(self, clock):
        process = Process()
        for name in "one", "two", "three":
            process.wait(name, "e-9")
            await clock.go_on(PATIENCE / 4)
        await clock.go_on(PATIENCE / 4 - 0.125)
        assert process.told == []
        await clock.go_on(0.125)
        assert process.told == [("one", FUTURE)]
        await clock.go_on(PATIENCE / 4)
        assert process.told == [("one", FUTURE), ("two", FUTURE)]
        await clock.go_on(PATIENCE / 4)
        assert process.told == [("one", FUTURE), ("two", FUTURE), ("three", FUTURE)]
        await clock.go_on(1_000)
        assert clock.timers(process.pending) == 3

    async def test_while_the_broker_is_away_it_is_no_gap_and_the_time_begins_anew_with_it(self, clock):
        process = Process()
        process.wait("before", "e-4")
        process.pending.up = False
        process.wait("meanwhile", "e-5")
        assert process.pending.locate("e-4", clock.now - 1_000) is None
        await clock.go_on(1_000)
        assert process.told == []
        assert clock.timers(process.pending) == 1, "what comes to nothing is not tried again and again"
        process.pending.begin()
        await clock.go_on(PATIENCE - 0.125)
        assert process.told == []
        await clock.go_on(0.125)
        assert process.told == [("before", FUTURE), ("meanwhile", FUTURE)]

    async def test_while_the_broker_is_away_what_is_known_is_told(self):
        pending = Process().pending
        pending.up = False
        assert [pending.locate(given) for given in (None, "e-2", "7")] == [
            *((3, None), (2, None)),
            (3, GapReason.UNKNOWN),
        ]

    async def test_ten_thousand_who_wait_need_one_timer(self, clock):
        process = Process()
        for number in range(10_000):
            process.wait(number, "e-4")
        assert clock.timers(process.pending) == 1
        process.grow(4)
        process.pending.look()
        assert process.told == [(number, (4, None)) for number in range(10_000)]
        process.pending.close()


class TestWhoWaitsNoMore:
    async def test_he_is_told_nothing(self):
        process = Process(begun=False)
        process.wait("gone", "e-2")
        process.wait("there", "e-3")
        process.pending.discard("gone")
        process.pending.discard("gone")
        process.pending.discard("nobody")
        process.pending.begin()
        assert process.told == [("there", (3, None))]

    async def test_also_when_it_is_another_who_is_told_that_discards_him(self):
        process = Process(begun=False)

        def discard_all(located):
            for owner in "first", "second", "third":
                process.pending.discard(owner)

        process.pending.wait("first", None, discard_all)
        process.wait("second", None)
        process.wait("third", "e-4")
        process.pending.begin()
        process.grow(4)
        process.pending.look()
        assert process.told == []

    async def test_who_is_told_may_wait_again(self):
        process = Process(begun=False)
        process.pending.wait("again", "e-2", lambda located: process.wait("again", "e-4"))
        process.pending.begin()
        process.pending.look()
        assert process.told == []
        process.grow(4)
        process.pending.look()
        assert process.told == [("again", (4, None))]
        process.pending.close()

    async def test_a_timer_for_nobody_is_the_last_one(self, clock):
        process = Process()
        process.wait("gone", "e-4")
        process.pending.discard("gone")
        await clock.go_on(1_000)
        assert clock.timers(process.pending) == 1
        process.wait("next", "e-4")
        await clock.go_on(PATIENCE)
        assert process.told == [("next", FUTURE)]


class TestClose:
    async def test_nothing_that_waits_stays_in_the_event_loop(self, clock):
        process = Process()
        process.wait("ahead", "e-4")
        process.pending.close()
        process.pending.close()
        await clock.go_on(1_000)
        assert process.told == []

    async def test_a_hub_that_goes_on_in_another_event_loop_has_timers_there(self, clock):
        process = Process()
        process.wait("before", "e-4")
        process.pending.close()
        process.wait("after", "e-5")
        await clock.go_on(PATIENCE)
        assert process.told == [("before", FUTURE), ("after", FUTURE)]
