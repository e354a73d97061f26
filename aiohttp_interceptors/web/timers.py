"""One timer of an event loop for all its streams: heartbeats, stalled clients, and streams that are old enough."""

from __future__ import annotations

import asyncio
import heapq
from typing import Protocol
from weakref import WeakKeyDictionary

from ..exceptions import FATAL

__all__ = ["TIMER_SLACK", "FlushQueue", "Flushable", "Timer", "TimerOwner", "TimerQueue", "flush_queue", "timer_queue"]


# What is due within this many seconds is done with what is due now: fewer wake-ups, and a proxy's idle timeout is
# thousands of times as long.
TIMER_SLACK = 0.02
# Cancelled appointments that may stay, besides as many as there are others: a max_age can be hours away.
SPARE = 100


class TimerOwner(Protocol):
    """What has something to do from time to time."""

    def on_timer(self, now: float) -> float | None:
        """Do what is due, and return when to come again, in the loop's seconds, or ``None`` for never."""


class Timer:
    """An appointment; ``cancel`` is all that its owner does with it."""

    __slots__ = ("_queue", "due", "owner")

    def __init__(self, queue: TimerQueue, due: float, owner: TimerOwner) -> None:
        self._queue: TimerQueue | None = queue
        self.due: float = due
        self.owner: TimerOwner | None = owner

    def __lt__(self, other: Timer) -> bool:
        return self.due < other.due

    @property
    def cancelled(self) -> bool:
        """Whether nobody is to be visited any more."""
        return self.owner is None

    def cancel(self) -> None:
        """Do not come any more. Twice is once."""
        queue, self._queue, self.owner = self._queue, None, None
        if queue is not None:
            queue._leave()


class TimerQueue:
    """Visit each of many when it is due."""

    def __init__(self) -> None:
        self._due: list[Timer] = []  # a heap; some of those that were cancelled stay until they come up
        self._expected = 0
        self._timer: asyncio.Handle | None = None
        self._when = 0.0  # the timer goes off; uvloop gives a handle that does not know, if that is now

    def add(self, owner: TimerOwner, due: float) -> Timer:
        """Make an appointment, in the loop's seconds."""
        timer = Timer(self, due, owner)
        heapq.heappush(self._due, timer)
        self._expected += 1
        self._schedule()
        return timer

    def _leave(self) -> None:
        """Note that one is not expected any more; with the last one the timer goes too."""
        self._expected -= 1
        if not self._expected:
            self._due.clear()
            self._schedule()
        elif len(self._due) > 2 * self._expected + SPARE:
            self._due = [timer for timer in self._due if not timer.cancelled]
            heapq.heapify(self._due)

    def _schedule(self) -> None:
        """Have the timer go off when the first one is due."""
        if self._timer is not None:
            if self._due and self._when <= self._due[0].due:
                return
            self._timer.cancel()
            self._timer = None
        if self._due:
            self._when = self._due[0].due
            self._timer = asyncio.get_running_loop().call_at(self._when, self._go)

    def _go(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        due = []  # all of them first: one that wants to be visited again soon is not visited twice
        while self._due and self._due[0].due <= now + TIMER_SLACK:
            due.append(heapq.heappop(self._due))
        left = iter(due)
        try:
            for timer in left:
                self._fire(timer, now)
        finally:
            for timer in left:  # the process is ending, and the event loop may go on for a while
                heapq.heappush(self._due, timer)
            self._schedule()

    def _fire(self, timer: Timer, now: float) -> None:
        if timer.owner is None:
            return
        again: float | None = None
        try:
            again = timer.owner.on_timer(now)
        except FATAL:
            raise
        except BaseException as error:  # noqa: BLE001  # of one, and no reason not to visit the others
            context = {"message": f"{timer.owner!r} raised when it was visited", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)
        if timer.cancelled:  # during the visit
            return
        if again is None:
            timer.cancel()
        else:
            timer.due = max(again, now + TIMER_SLACK / 2)  # whoever wants to come at once leaves time for others
            heapq.heappush(self._due, timer)


_of_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, TimerQueue] = WeakKeyDictionary()


def timer_queue() -> TimerQueue:
    """Return those of the running event loop."""
    loop = asyncio.get_running_loop()
    found = _of_loop.get(loop)
    if found is None:
        found = _of_loop[loop] = TimerQueue()
    return found


class Flushable(Protocol):
    """An open stream, as the event loop's turn sees it."""

    def pump(self) -> None:
        """Write what was put."""


class FlushQueue:
    """Pump each stream that has something to write, once, before the event loop waits again."""

    __slots__ = ("_streams",)

    def __init__(self) -> None:
        self._streams: list[Flushable] = []

    def add(self, stream: Flushable) -> None:
        """Have this stream pumped in this turn."""
        if not self._streams:
            asyncio.get_running_loop().call_soon(self._pump)
        self._streams.append(stream)

    def _pump(self) -> None:
        streams, self._streams = self._streams, []
        left = iter(streams)
        try:
            for stream in left:
                try:
                    stream.pump()
                except FATAL:
                    raise
                except BaseException as error:  # noqa: BLE001  # of one stream, and no reason not to pump the others
                    context = {"message": f"{stream!r} raised when it was pumped", "exception": error}
                    asyncio.get_running_loop().call_exception_handler(context)
        finally:  # the process is ending; those behind still have their turn if the event loop goes on
            for stream in left:
                self.add(stream)


_turn_of_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, FlushQueue] = WeakKeyDictionary()


def flush_queue() -> FlushQueue:
    """Return that of the running event loop."""
    loop = asyncio.get_running_loop()
    found = _turn_of_loop.get(loop)
    if found is None:
        found = _turn_of_loop[loop] = FlushQueue()
    return found
