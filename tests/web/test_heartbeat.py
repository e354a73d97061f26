from __future__ import annotations

import asyncio
import heapq

import pytest

from aiohttp_interceptors.web.heartbeat import TOGETHER, Heartbeat, heartbeat


class Clockwork:
    """A connection that only knows when it last wrote, and a timer that goes off when it is told to."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.last_write = clock.now
        self.beats: list[float] = []

    def beat(self) -> None:
        self.beats.append(round(self.clock.now, 6))
        self.last_write = self.clock.now


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


def test_an_idle_connection_beats_once_an_interval(clock):
    """Behaviour 103; peer bug 17."""
    heart, connection = Heartbeat(), Clockwork(clock)
    heart.add(connection, 10)
    clock.advance(35)
    assert connection.beats == [110, 120, 130]


def test_the_timer_restarts_after_every_event(clock):
    """Behaviour 104: with an interval of 1 s, an event at 0.7 s puts the heartbeat off to 1.7 s."""
    heart, connection = Heartbeat(), Clockwork(clock)
    heart.add(connection, 1)
    clock.advance(0.7)
    connection.last_write = clock.now
    clock.advance(1.5)
    assert connection.beats == [101.7]


def test_a_busy_connection_never_beats(clock):
    heart, connection = Heartbeat(), Clockwork(clock)
    heart.add(connection, 1)
    for _ in range(50):
        clock.advance(0.5)
        connection.last_write = clock.now
    assert connection.beats == []


def test_one_timer_serves_all_connections_each_with_its_interval(clock):
    heart = Heartbeat()
    connections = [Clockwork(clock) for _ in range(100)]
    for number, connection in enumerate(connections):
        heart.add(connection, 1 if number % 2 else 2.5)
        assert len(clock.pending()) == 1
    clock.advance(5)
    assert connections[1].beats == [101, 102, 103, 104, 105]
    assert connections[0].beats == [102.5, 105]
    assert len(clock.pending()) == 1


def test_beats_that_are_nearly_due_go_together(clock):
    heart, one, two = Heartbeat(), Clockwork(clock), Clockwork(clock)
    heart.add(one, 1)
    two.last_write += TOGETHER / 2
    heart.add(two, 1)
    clock.advance(1)
    assert one.beats == two.beats == [101]


def test_a_shorter_interval_that_comes_later_is_in_time(clock):
    heart, slow, quick = Heartbeat(), Clockwork(clock), Clockwork(clock)
    heart.add(slow, 10)
    heart.add(quick, 1)
    clock.advance(1)
    assert (slow.beats, quick.beats) == ([], [101])


def test_with_the_last_connection_the_timer_goes(clock):
    heart, one, two = Heartbeat(), Clockwork(clock), Clockwork(clock)
    heart.add(one, 1)
    heart.add(two, 1)
    heart.discard(one)
    heart.discard(one)
    clock.advance(1)
    assert (one.beats, two.beats) == ([], [101])
    heart.discard(two)
    assert clock.pending() == []
    heart.add(one, 1)
    assert len(clock.pending()) == 1


async def test_each_event_loop_has_one():
    assert heartbeat() is heartbeat()
    other = await asyncio.to_thread(asyncio.run, _heartbeat_of_another_loop())
    assert other is not heartbeat()


async def _heartbeat_of_another_loop() -> Heartbeat:
    return heartbeat()
