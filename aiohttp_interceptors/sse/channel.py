"""The pipe from one producer to one stream: ``put`` and ``close`` on one side, the pump on the other."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from enum import StrEnum
from itertools import islice

from ..errors import ChannelFull
from .event import Event

__all__ = ["CloseReason", "EventChannel", "EventQueue"]

EventQueue = asyncio.Queue[Event]


class CloseReason(StrEnum):
    """Why a stream ended."""

    CLIENT_LEFT = "client_left"
    CLOSED = "closed"
    ERROR = "error"
    SHUTDOWN = "shutdown"
    STALLED = "stalled"
    LAGGED = "lagged"
    EXPIRED = "expired"
    KICKED = "kicked"


class EventChannel:
    """Carry events from a producer to a stream, in order.

    ``buffer`` is how many events may wait, or a factory of an ``asyncio.Queue``: what that queue's ``full`` and
    ``put_nowait`` do when there is no room (wait, slide, drop) is the channel's policy. One event loop; any number of
    tasks may put.
    """

    __slots__ = ("_closed", "_over", "_queue", "_told", "_waiting", "_wake", "reason")

    reason: CloseReason | None
    """Why the stream ended; ``None`` as long as it has not."""

    def __init__(self, buffer: int | Callable[[], EventQueue] = 10) -> None:
        self._queue = new_queue(buffer)
        self._waiting: deque[asyncio.Future[None]] = deque()  # a put each, oldest first
        self._over: set[asyncio.Future[None]] = set()  # a wait_closed each
        self._wake: Callable[[], None] = _nobody
        self._closed = False
        self._told = False
        self.reason = None

    @property
    def closed(self) -> bool:
        """Whether the channel takes no more events; those it has are still sent if the client is there."""
        return self._closed

    async def put(self, event: Event | str) -> bool:
        """Hand over an event, waiting for room, and return ``True``; ``False`` once the stream is over, at once.

        Also a ``put`` that was waiting when the client left returns ``False``. Cancelling is safe: the event was not
        taken. Raises ``TypeError`` for what is no event.
        """
        event = as_event(event)
        if self._closed:
            self._told = True
            await asyncio.sleep(0)  # or a producer that ignores False would never let anybody else run
            return False
        if (self._waiting or self._queue.full()) and not await self._room():
            return False
        self._take(event)
        return True

    def put_nowait(self, event: Event | str) -> bool:
        """Hand over an event and return ``True``, or ``False`` once the stream is over. Raises ``ChannelFull``."""
        event = as_event(event)
        if self._closed:
            return False
        if self._waiting or self._queue.full():
            raise ChannelFull(f"the channel holds {self._queue.qsize()} events and has no room; put() waits for it")
        self._take(event)
        return True

    def close(self) -> None:
        """Take no more events, and end the stream when all that were put have been sent. Twice is once."""
        if not self._closed:
            self._closed = True
            self._told = _release(self._waiting)
            self._wake()

    def end(self, reason: CloseReason) -> None:
        """End the stream now, for this reason, without what was put and not yet sent. The first reason counts.

        Whoever waits for the end, or to put, is told now. ``CloseReason.KICKED`` is for an application's own use.
        """
        if self.reason is None:
            self.reason = reason
            if self._closed:
                self._wake()
            self.close()
            self._wake = _nobody
            self._told = _release(self._over) or self._told

    async def wait_closed(self) -> CloseReason:
        """Wait until the stream is over and return why. Cancelling is safe."""
        while self.reason is None:
            waiter = _new_waiter()
            self._over.add(waiter)
            try:
                await waiter
            finally:
                self._over.discard(waiter)
        return self.reason

    # The stream's side.

    def attach(self, wake: Callable[[], None]) -> None:
        """Have this called whenever there is something to take, or the channel was closed."""
        self._wake = wake

    def take(self) -> list[Event]:
        """Take all events that are there, and make room for as many."""
        queue, events = self._queue, []
        while not queue.empty():
            events.append(queue.get_nowait())
        self._wake_next(len(events))
        return events

    @property
    def told(self) -> bool:
        """Whether somebody knows that it closed: was waiting on it then, or has tried to put since."""
        return self._told

    def _take(self, event: Event) -> None:
        self._queue.put_nowait(event)
        self._wake()

    async def _room(self) -> bool:
        """Wait in line, and say whether there is room now; there is none in a closed channel."""
        waiter = _new_waiter()
        self._waiting.append(waiter)
        try:
            await waiter
            while self._queue.full() and not self._closed:  # one in front of us put more than was taken
                place = self._waiting.index(waiter)
                self._waiting[place] = waiter = _new_waiter()
                await waiter
        except asyncio.CancelledError:
            self._wake_next(1)  # perhaps there is room that was meant for us, and nobody else would be told of it
            raise
        finally:
            self._waiting.remove(waiter)
        return not self._closed

    def _wake_next(self, count: int) -> None:
        """Wake that many of those in line who have not been woken, oldest first."""
        for waiter in islice((waiter for waiter in self._waiting if not waiter.done()), count):
            waiter.set_result(None)


def _new_waiter() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


def _release(waiters: Iterable[asyncio.Future[None]]) -> bool:
    """Let all go that wait, and say whether there was anybody."""
    anybody = False
    for waiter in waiters:
        if not waiter.cancelled():
            anybody = True
            if not waiter.done():
                waiter.set_result(None)
    return anybody


def new_queue(buffer: int | Callable[[], EventQueue]) -> EventQueue:
    """Make a channel's queue, or say what is wrong with ``buffer``."""
    if callable(buffer):
        queue = buffer()
        if not isinstance(queue, asyncio.Queue):
            raise TypeError(f"buffer is a number of events or makes an asyncio.Queue; {buffer!r} made {queue!r}")
        return queue
    if type(buffer) is not int:
        raise TypeError(f"buffer is a number of events or makes an asyncio.Queue, not {buffer!r}")
    if buffer < 1:
        raise ValueError(f"buffer is 1 event or more, not {buffer!r}: without a bound a slow client fills the memory")
    return asyncio.Queue(buffer)


def as_event(event: Event | str) -> Event:
    """Make an event of what was put; a ``str`` is its data."""
    if isinstance(event, Event):
        return event
    if isinstance(event, str):
        return Event(event)
    raise TypeError(f"put takes an Event or a str, not {event!r}; Event.json(value) makes an event of anything else")


def _nobody() -> None:
    """Wake nobody."""
