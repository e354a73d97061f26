"""Timers and writes that the streams of an event loop share.

``TimerQueue`` runs heartbeats, stall checks and ``max_age`` of all streams with one timer of the event loop.
``FlushQueue`` writes the events of all streams in one callback.
"""

from __future__ import annotations

import asyncio
import heapq
from typing import Protocol
from weakref import WeakKeyDictionary

from ..exceptions import EXIT_EXCEPTIONS

__all__ = ["TIMER_SLACK", "FlushQueue", "Flushable", "Timer", "TimerOwner", "TimerQueue", "flush_queue", "timer_queue"]


# Seconds by which a timer may run early. Timers that are due within it share one wake-up. The idle timeouts of proxies
# are thousands of times longer.
TIMER_SLACK = 0.02
# Cancelled timers that may stay in the heap, in addition to as many as there are active ones. Without a limit, timers
# of a long max_age would accumulate.
MAX_CANCELLED = 100


class TimerOwner(Protocol):
    """An object that a timer calls."""

    def on_timer(self, now: float) -> float | None:
        """Handle the timer.

        Args:
            now: Time of the event loop, in seconds.

        Returns:
            The next time to call, or ``None`` to stop the timer.
        """


class Timer:
    """A timer in a ``TimerQueue``."""

    __slots__ = ("_queue", "due", "owner")

    def __init__(self, queue: TimerQueue, due: float, owner: TimerOwner) -> None:
        self._queue: TimerQueue | None = queue
        self.due: float = due
        self.owner: TimerOwner | None = owner

    def __lt__(self, other: Timer) -> bool:
        return self.due < other.due

    @property
    def cancelled(self) -> bool:
        """Whether the timer was cancelled, or has stopped."""
        return self.owner is None

    def cancel(self) -> None:
        """Cancel the timer. Idempotent."""
        queue, self._queue, self.owner = self._queue, None, None
        if queue is not None:
            queue._discard_one()


class TimerQueue:
    """Runs many timers with one timer of the event loop."""

    def __init__(self) -> None:
        self._heap: list[Timer] = []  # cancelled timers are removed lazily
        self._active = 0
        self._handle: asyncio.Handle | None = None
        self._when = 0.0  # when _handle runs; uvloop's handle does not know it if it was due immediately

    def add(self, owner: TimerOwner, due: float) -> Timer:
        """Schedule a call of ``owner.on_timer`` at this time of the event loop, in seconds."""
        timer = Timer(self, due, owner)
        heapq.heappush(self._heap, timer)
        self._active += 1
        self._schedule()
        return timer

    def _discard_one(self) -> None:
        """Account for a cancelled timer, and compact the heap if most of it is cancelled."""
        self._active -= 1
        if not self._active:
            self._heap.clear()
            self._schedule()
        elif len(self._heap) > 2 * self._active + MAX_CANCELLED:
            self._heap = [timer for timer in self._heap if not timer.cancelled]
            heapq.heapify(self._heap)

    def _schedule(self) -> None:
        """Schedule the event loop's timer for the first of ours."""
        if self._handle is not None:
            if self._heap and self._when <= self._heap[0].due:
                return
            self._handle.cancel()
            self._handle = None
        if self._heap:
            self._when = self._heap[0].due
            self._handle = asyncio.get_running_loop().call_at(self._when, self._run)

    def _run(self) -> None:
        self._handle = None
        now = asyncio.get_running_loop().time()
        due = []  # collected first, so that a timer that reschedules itself runs once
        while self._heap and self._heap[0].due <= now + TIMER_SLACK:
            due.append(heapq.heappop(self._heap))
        remaining = iter(due)
        try:
            for timer in remaining:
                self._fire(timer, now)
        finally:
            for timer in remaining:  # an exit exception was raised, and the event loop may continue for a while
                heapq.heappush(self._heap, timer)
            self._schedule()

    def _fire(self, timer: Timer, now: float) -> None:
        if timer.owner is None:
            return
        next_due: float | None = None
        try:
            next_due = timer.owner.on_timer(now)
        except EXIT_EXCEPTIONS:
            raise
        except BaseException as error:  # noqa: BLE001  # the other timers must still run
            context = {"message": f"exception in the timer of {timer.owner!r}", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)
        if timer.cancelled:  # by on_timer
            return
        if next_due is None:
            timer.cancel()
        else:
            timer.due = max(next_due, now + TIMER_SLACK / 2)  # a timer that is always due must not block the loop
            heapq.heappush(self._heap, timer)


class Flushable(Protocol):
    """A stream with buffered events."""

    def flush(self) -> None:
        """Write the buffered events."""


class FlushQueue:
    """Flushes each stream that has buffered events once per iteration of the event loop."""

    __slots__ = ("_streams",)

    def __init__(self) -> None:
        self._streams: list[Flushable] = []

    def add(self, stream: Flushable) -> None:
        """Schedule a call of ``stream.flush`` for the next iteration."""
        if not self._streams:
            asyncio.get_running_loop().call_soon(self._run)
        self._streams.append(stream)

    def _run(self) -> None:
        streams, self._streams = self._streams, []
        remaining = iter(streams)
        try:
            for stream in remaining:
                try:
                    stream.flush()
                except EXIT_EXCEPTIONS:
                    raise
                except BaseException as error:  # noqa: BLE001  # the other streams must still be flushed
                    context = {"message": f"exception while flushing {stream!r}", "exception": error}
                    asyncio.get_running_loop().call_exception_handler(context)
        finally:
            for stream in remaining:  # an exit exception was raised, and the event loop may continue for a while
                self.add(stream)


_timer_queues: WeakKeyDictionary[asyncio.AbstractEventLoop, TimerQueue] = WeakKeyDictionary()
_flush_queues: WeakKeyDictionary[asyncio.AbstractEventLoop, FlushQueue] = WeakKeyDictionary()


def timer_queue() -> TimerQueue:
    """Return the timer queue of the running event loop."""
    loop = asyncio.get_running_loop()
    queue = _timer_queues.get(loop)
    if queue is None:
        queue = _timer_queues[loop] = TimerQueue()
    return queue


def flush_queue() -> FlushQueue:
    """Return the flush queue of the running event loop."""
    loop = asyncio.get_running_loop()
    queue = _flush_queues.get(loop)
    if queue is None:
        queue = _flush_queues[loop] = FlushQueue()
    return queue
