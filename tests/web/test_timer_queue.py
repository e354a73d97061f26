from __future__ import annotations

import asyncio
import heapq

import pytest
import uvloop

from aiohttp_interceptors.web.timers import TIMER_SLACK, timer_queue


class Stream:
    """Send a heartbeat an interval after the last write, as an idle stream does."""

    def __init__(self, clock: Clock, interval: float) -> None:
        self.clock = clock
        self.interval = interval
        self.last_write = clock.now
        self.heartbeats: list[float] = []

    def on_timer(self, now: float) -> float:
        assert now == self.clock.now
        if now - self.last_write >= self.interval - TIMER_SLACK:
            self.heartbeats.append(round(now, 6))
            self.last_write = now
        return self.last_write + self.interval


class Once:
    """Run an action when a timer is due, and reschedule it if ``next_due`` is given."""

    def __init__(self, action=lambda: None, next_due: float | None = None) -> None:
        self.calls: list[float] = []
        self._action = action
        self._next_due = next_due

    def on_timer(self, now: float) -> float | None:
        self.calls.append(round(now, 6))
        self._action()
        return self._next_due


class Clock(asyncio.SelectorEventLoop):
    """An event loop with a clock that tests advance."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.timers: list[asyncio.TimerHandle] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when, callback, *args, context=None):
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self.timers, handle)
        return handle

    def pending(self) -> list[float]:
        return sorted(handle.when() for handle in self.timers if not handle.cancelled())

    def advance(self, seconds: float) -> None:
        """Advance the clock and run the timers that are due, each at its time."""
        until = self.now + seconds
        while self.timers and self.timers[0].when() <= until:
            handle = heapq.heappop(self.timers)
            if not handle.cancelled():
                self.now = max(self.now, handle.when())
                handle._run()
        self.now = until


@pytest.fixture
def clock():
    loop = Clock()
    asyncio._set_running_loop(loop)
    yield loop
    asyncio._set_running_loop(None)
    loop.close()


def start(*streams: Stream) -> list:
    return [timer_queue().add(each, each.last_write + each.interval) for each in streams]


def test_an_idle_stream_sends_one_heartbeat_per_interval(clock):
    stream = Stream(clock, 10)
    start(stream)
    clock.advance(35)
    assert stream.heartbeats == [110, 120, 130]


def test_each_write_postpones_the_next_heartbeat(clock):
    """With an interval of 1 s, an event at 0.7 s postpones the heartbeat to 1.7 s."""
    stream = Stream(clock, 1)
    start(stream)
    clock.advance(0.7)
    stream.last_write = clock.now
    clock.advance(1.5)
    assert stream.heartbeats == [101.7]


def test_a_busy_stream_sends_no_heartbeat(clock):
    stream = Stream(clock, 1)
    start(stream)
    for _ in range(50):
        clock.advance(0.5)
        stream.last_write = clock.now
    assert stream.heartbeats == []


def test_one_timer_of_the_event_loop_serves_streams_with_different_intervals(clock):
    streams = [Stream(clock, 1 if number % 2 else 2.5) for number in range(100)]
    for stream in streams:
        start(stream)
        assert len(clock.pending()) == 1
    clock.advance(5)
    assert streams[1].heartbeats == [101, 102, 103, 104, 105]
    assert streams[0].heartbeats == [102.5, 105]
    assert len(clock.pending()) == 1


def test_timers_that_are_due_within_the_slack_run_together(clock):
    one, two = Stream(clock, 1), Stream(clock, 1)
    two.last_write += TIMER_SLACK / 2
    start(one, two)
    clock.advance(1)
    assert one.heartbeats == two.heartbeats == [101]


def test_an_earlier_timer_that_is_added_later_runs_in_time(clock):
    slow, quick = Stream(clock, 10), Stream(clock, 1)
    start(slow, quick)
    clock.advance(1)
    assert (slow.heartbeats, quick.heartbeats) == ([], [101])


def test_the_timer_of_the_event_loop_is_cancelled_with_the_last_one(clock):
    one, two = Stream(clock, 1), Stream(clock, 1)
    first, second = start(one, two)
    first.cancel()
    first.cancel()
    assert first.cancelled
    clock.advance(1)
    assert (one.heartbeats, two.heartbeats) == ([], [101])
    second.cancel()
    assert clock.pending() == []
    start(one)
    assert len(clock.pending()) == 1


def test_a_timer_whose_callback_returns_none_stops(clock):
    once = Once()
    timer = timer_queue().add(once, clock.now + 1)
    clock.advance(5)
    assert once.calls == [101]
    assert timer.cancelled
    assert clock.pending() == []


def test_a_timer_that_is_always_due_does_not_block_the_event_loop(clock):
    eager = Once(next_due=0.0)
    timer_queue().add(eager, clock.now)
    clock.advance(1)
    assert 10 < len(eager.calls) <= 1 / (TIMER_SLACK / 2) + 1


def test_a_callback_may_cancel_its_own_timer_and_others(clock):
    timers = []

    def cancel_all() -> None:
        for timer in timers:
            timer.cancel()

    first, second, third = Once(cancel_all, next_due=102.0), Once(), Once()
    timers += [timer_queue().add(each, clock.now + 1) for each in (first, second, third)]
    clock.advance(5)
    assert (first.calls, second.calls, third.calls) == ([101], [], [])
    assert clock.pending() == []


def test_a_callback_may_add_a_timer(clock):
    late = Once()
    timer_queue().add(Once(lambda: timer_queue().add(late, clock.now + 2)), clock.now + 1)
    clock.advance(5)
    assert late.calls == [103]
    assert clock.pending() == []


def test_cancelled_timers_do_not_accumulate(clock):
    """Short streams with a long max_age leave cancelled timers. Their number is bounded by that of open streams."""
    open_streams = [Stream(clock, 10) for _ in range(10)]
    start(*open_streams)
    for _ in range(10_000):
        timer_queue().add(Once(), clock.now + 3600).cancel()
    assert len(timer_queue()._heap) < 200
    clock.advance(10)
    assert all(stream.heartbeats == [110] for stream in open_streams)


async def test_each_event_loop_has_its_own_queue():
    assert timer_queue() is timer_queue()
    other = await asyncio.to_thread(asyncio.run, _queue_of_another_loop())
    assert other is not timer_queue()


async def _queue_of_another_loop():
    return timer_queue()


def test_an_exception_in_a_callback_is_reported_and_does_not_affect_other_timers(clock):
    reported = []
    clock.set_exception_handler(lambda loop, context: reported.append(context["exception"]))

    def fail() -> None:
        raise LookupError("broken")

    broken, other = Once(fail), Once()
    timer_queue().add(broken, clock.now + 1)
    timer_queue().add(other, clock.now + 1)
    clock.advance(100)
    assert (broken.calls, other.calls) == ([101], [101])
    assert [str(error) for error in reported] == ["broken"]
    assert clock.pending() == []


def test_overdue_timers_run_on_uvloop_too():
    """uvloop returns a handle without a time for a timer that is already due."""

    async def add_two() -> list[float]:
        done, loop = asyncio.Event(), asyncio.get_running_loop()
        first, second = Once(), Once(done.set)
        timer_queue().add(first, loop.time() - 1)
        timer_queue().add(second, loop.time() - 1)
        await asyncio.wait_for(done.wait(), 10)
        return [*first.calls, *second.calls]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert len(runner.run(add_two())) == 2
