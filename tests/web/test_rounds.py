from __future__ import annotations

import asyncio
import heapq

import pytest
import uvloop

from aiohttp_interceptors.web.timers import TIMER_SLACK, timer_queue


class Clockwork:
    """Something that wants to be visited an interval after it last wrote, as an idle stream does for its heartbeat."""

    def __init__(self, clock: Clock, interval: float) -> None:
        self.clock = clock
        self.interval = interval
        self.last_write = clock.now
        self.beats: list[float] = []

    def on_timer(self, now: float) -> float:
        assert now == self.clock.now
        if now - self.last_write >= self.interval - TIMER_SLACK:
            self.beats.append(round(now, 6))
            self.last_write = now
        return self.last_write + self.interval


class Once:
    """Something that wants to be visited once, and that may do something then."""

    def __init__(self, action=lambda: None, again: float | None = None) -> None:
        self.timers: list[float] = []
        self._action = action
        self._again = again

    def on_timer(self, now: float) -> float | None:
        self.timers.append(round(now, 6))
        self._action()
        return self._again


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time moves only when a test moves it."""

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
        """Run every timer up to then, each at its time."""
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


def start(*clockworks: Clockwork) -> list:
    return [timer_queue().add(each, each.last_write + each.interval) for each in clockworks]


def test_an_idle_stream_is_visited_once_an_interval(clock):
    """Behaviour 103; peer bug 17."""
    stream = Clockwork(clock, 10)
    start(stream)
    clock.advance(35)
    assert stream.beats == [110, 120, 130]


def test_the_timer_restarts_after_every_event(clock):
    """Behaviour 104: with an interval of 1 s, an event at 0.7 s puts the heartbeat off to 1.7 s."""
    stream = Clockwork(clock, 1)
    start(stream)
    clock.advance(0.7)
    stream.last_write = clock.now
    clock.advance(1.5)
    assert stream.beats == [101.7]


def test_a_busy_stream_never_beats(clock):
    """peer bug 17."""
    stream = Clockwork(clock, 1)
    start(stream)
    for _ in range(50):
        clock.advance(0.5)
        stream.last_write = clock.now
    assert stream.beats == []


def test_one_timer_serves_all_each_with_its_interval(clock):
    streams = [Clockwork(clock, 1 if number % 2 else 2.5) for number in range(100)]
    for stream in streams:
        start(stream)
        assert len(clock.pending()) == 1
    clock.advance(5)
    assert streams[1].beats == [101, 102, 103, 104, 105]
    assert streams[0].beats == [102.5, 105]
    assert len(clock.pending()) == 1


def test_visits_that_are_nearly_due_go_together(clock):
    one, two = Clockwork(clock, 1), Clockwork(clock, 1)
    two.last_write += TIMER_SLACK / 2
    start(one, two)
    clock.advance(1)
    assert one.beats == two.beats == [101]


def test_an_earlier_visit_that_comes_later_is_in_time(clock):
    slow, quick = Clockwork(clock, 10), Clockwork(clock, 1)
    start(slow, quick)
    clock.advance(1)
    assert (slow.beats, quick.beats) == ([], [101])


def test_with_the_last_one_the_timer_goes(clock):
    one, two = Clockwork(clock, 1), Clockwork(clock, 1)
    visit_of_one, visit_of_two = start(one, two)
    visit_of_one.cancel()
    visit_of_one.cancel()
    assert visit_of_one.cancelled
    clock.advance(1)
    assert (one.beats, two.beats) == ([], [101])
    visit_of_two.cancel()
    assert clock.pending() == []
    start(one)
    assert len(clock.pending()) == 1


def test_who_wants_no_other_visit_is_forgotten(clock):
    once = Once()
    timer = timer_queue().add(once, clock.now + 1)
    clock.advance(5)
    assert once.timers == [101]
    assert timer.cancelled
    assert clock.pending() == []


def test_one_that_is_always_due_leaves_time_for_the_others(clock):
    eager = Once(again=0.0)
    timer_queue().add(eager, clock.now)
    clock.advance(1)
    assert 10 < len(eager.timers) <= 1 / (TIMER_SLACK / 2) + 1


def test_a_visit_may_cancel_its_own_and_those_of_others(clock):
    timers = []

    def cancel_all() -> None:
        for timer in timers:
            timer.cancel()

    first, second, third = Once(cancel_all, again=102.0), Once(), Once()
    timers += [timer_queue().add(each, clock.now + 1) for each in (first, second, third)]
    clock.advance(5)
    assert (first.timers, second.timers, third.timers) == ([101], [], [])
    assert clock.pending() == []


def test_a_visit_may_make_an_appointment_for_somebody_else(clock):
    late = Once()
    timer_queue().add(Once(lambda: timer_queue().add(late, clock.now + 2)), clock.now + 1)
    clock.advance(5)
    assert late.timers == [103]
    assert clock.pending() == []


def test_appointments_that_were_cancelled_do_not_pile_up(clock):
    """Streams that live shortly and have a max_age of hours: what they leave is bounded by what is open."""
    open_streams = [Clockwork(clock, 10) for _ in range(10)]
    start(*open_streams)
    for _ in range(10_000):
        timer_queue().add(Once(), clock.now + 3600).cancel()
    assert len(timer_queue()._due) < 200
    clock.advance(10)
    assert all(stream.beats == [110] for stream in open_streams)


async def test_each_event_loop_has_its_own():
    assert timer_queue() is timer_queue()
    other = await asyncio.to_thread(asyncio.run, _rounds_of_another_loop())
    assert other is not timer_queue()


async def _rounds_of_another_loop():
    return timer_queue()


def test_one_that_raises_is_told_of_and_keeps_nobody_else_waiting(clock):
    told = []
    clock.set_exception_handler(lambda loop, context: told.append(context["exception"]))

    def fail() -> None:
        raise LookupError("broken")

    broken, other = Once(fail), Once()
    timer_queue().add(broken, clock.now + 1)
    timer_queue().add(other, clock.now + 1)
    clock.advance(100)
    assert (broken.timers, other.timers) == ([101], [101])
    assert [str(error) for error in told] == ["broken"]
    assert clock.pending() == []


def test_what_is_overdue_is_visited_on_uvloop_too():
    """There, what is due at once gets a handle that does not know its time."""

    async def add_two() -> list[float]:
        done, loop = asyncio.Event(), asyncio.get_running_loop()
        first, second = Once(), Once(done.set)
        timer_queue().add(first, loop.time() - 1)
        timer_queue().add(second, loop.time() - 1)
        await asyncio.wait_for(done.wait(), 10)
        return [*first.timers, *second.timers]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert len(runner.run(add_two())) == 2
