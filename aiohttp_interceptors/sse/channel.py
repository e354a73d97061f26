"""The pipe from one producer to one stream: ``put`` and ``close`` on one side, the pump on the other."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from enum import StrEnum
from itertools import islice

from ..errors import ChannelFull, EventTooLarge
from .buffer import EventQueue, new_buffer
from .event import Event
from .queues import LossyQueue
from .wire import encode, is_larger

__all__ = ["CloseReason", "EventChannel"]


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
    ``put_nowait`` do when there is no room (wait, slide, drop, conflate) is the channel's policy. ``retry``
    (milliseconds) rides in the first frame; ``max_event_size`` is in bytes on the wire. One event loop; any number of
    tasks may put.
    """

    __slots__ = ("_asleep", "_buffer", "_closed", "_lossy", "_max_event_size", "_over", "_relieve", "_retry", "_told",
                 "_waiting", "_wake", "reason")  # fmt: skip

    reason: CloseReason | None
    """Why the stream ended; ``None`` as long as it has not."""

    def __init__(
        self,
        buffer: int | Callable[[], EventQueue] = 10,
        *,
        retry: int | None = None,
        max_event_size: int | None = None,
    ) -> None:
        self._buffer = new_buffer(buffer)
        self._lossy = self._buffer if isinstance(self._buffer, LossyQueue) else None  # looked at for each put
        self._retry = retry
        self._max_event_size = max_event_size
        # Both are made when first needed: most streams have nobody in line, and an open one shall cost little.
        self._waiting: deque[asyncio.Future[None]] | None = None  # a put each, oldest first
        self._over: list[asyncio.Future[None]] | None = None  # a wait_closed each
        self._wake: Callable[[], None] = _nobody
        self._relieve: Callable[[], None] = _nobody
        self._asleep = True  # whether the stream must be told of the next event
        self._closed = False
        self._told = False
        self.reason = None

    @property
    def closed(self) -> bool:
        """Whether the channel takes no more events; those it has are still sent if the client is there."""
        return self._closed

    @property
    def buffered(self) -> int:
        """How many events wait to be sent."""
        return self._buffer.qsize()

    @property
    def lossy(self) -> bool:
        """Whether its queue may lose events."""
        return self._lossy is not None

    @property
    def dropped(self) -> int:
        """How many events a queue that loses events has lost so far."""
        return 0 if self._lossy is None else self._lossy.dropped

    async def put(self, event: Event | str) -> bool:
        """Hand over an event, waiting for room, and return ``True``; ``False`` once the stream is over, at once.

        Also a ``put`` that was waiting when the client left returns ``False``. Cancelling is safe: the event was not
        taken. Raises ``TypeError`` for what is no event, ``EventTooLarge`` for one over the limit.
        """
        if type(event) is not Event or self._max_event_size is not None:
            event = self._checked(event)
        if self._closed:
            self._told = True
            await asyncio.sleep(0)  # or a producer that ignores False would never let anybody else run
            return False
        if (self._waiting or self._buffer.full()) and not await self._room():
            return False
        self._take(event)
        return True

    def put_nowait(self, event: Event | str) -> bool:
        """Hand over an event and return ``True``, or ``False`` once the stream is over.

        Raises ``ChannelFull``, and what ``put`` raises.
        """
        event = self._checked(event)
        if self._closed:
            self._told = True
            return False
        if self._waiting or self._buffer.full():
            raise ChannelFull(f"the channel holds {self.buffered} events and has no room; put() waits for it")
        self._take(event)
        return True

    def close(self) -> None:
        """Take no more events, and end the stream when all that were put have been sent. Twice is once."""
        if not self._closed:
            self._closed = True
            self._told = _release(self._waiting)
            self._wake()

    def end(self, reason: CloseReason) -> None:
        """End the stream now, for this reason, without what its client does not take at once. The first reason counts.

        Whoever waits for the end, or to put, is told now. ``CloseReason.KICKED`` is for an application's own use.
        """
        if self.reason is None:
            self.reason = reason
            if self._closed:
                self._wake()
            self.close()
            self._wake = self._relieve = _nobody
            self._told = _release(self._over) or self._told

    async def wait_closed(self) -> CloseReason:
        """Wait until the stream is over and return why. Cancelling is safe."""
        while self.reason is None:
            if self._over is None:
                self._over = []
            waiter = _new_waiter()
            self._over.append(waiter)
            try:
                await waiter
            finally:
                self._over.remove(waiter)
        return self.reason

    # The stream's side.

    def attach(self, wake: Callable[[], None], relieve: Callable[[], None] | None = None) -> None:
        """Have ``wake`` called when there is something to take again, or the channel was closed.

        ``relieve`` is called before a queue that loses events would lose one: it takes what can be sent at once.
        """
        self._wake = wake
        self._relieve = relieve or _nobody

    def take(self) -> list[Event]:
        """Take all events that are there, and make room for as many."""
        events = []
        while not self._buffer.empty():
            events.append(self._buffer.get_nowait())
        self._taken(len(events))
        return events

    def take_frames(self, most: int) -> list[bytes]:
        """Take events until their frames have that many bytes, or there are no more, and make room for as many."""
        retry, self._retry = self._retry, None
        frames: list[bytes] = []
        buffer, size = self._buffer, 0
        while size < most and not buffer.empty():
            frame = encode(buffer.get_nowait(), retry)
            retry = None
            size += len(frame)
            frames.append(frame)
        if not frames:
            self._retry = retry
        self._taken(len(frames))
        return frames

    @property
    def told(self) -> bool:
        """Whether somebody knows that it closed: was waiting on it then, or has tried to put since."""
        return self._told

    def _checked(self, event: Event | str) -> Event:
        """Make an event of what was put, and refuse one that is too large."""
        event = as_event(event)
        limit = self._max_event_size
        if limit is not None and is_larger(event, limit):
            raise EventTooLarge(
                f"the event has {len(encode(event))} bytes and max_event_size is {limit}: {str(event)[:60]}…"
            )
        return event

    def _take(self, event: Event) -> None:
        lossy = self._lossy
        if lossy is not None and lossy.qsize() >= lossy.maxsize:
            self._relieve()
        self._buffer.put_nowait(event)
        if self._asleep:
            self._asleep = False
            self._wake()

    def _taken(self, count: int) -> None:
        self._asleep = True
        if self._waiting:
            self._wake_next(count)

    async def _room(self) -> bool:
        """Wait in line, and say whether there is room now; there is none in a closed channel."""
        if self._waiting is None:
            self._waiting = deque()
        waiter = _new_waiter()
        self._waiting.append(waiter)
        try:
            await waiter
            while self._buffer.full() and not self._closed:  # one in front of us put more than was taken
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
        for waiter in islice((waiter for waiter in self._waiting or () if not waiter.done()), count):
            waiter.set_result(None)


def _new_waiter() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


def _release(waiters: Iterable[asyncio.Future[None]] | None) -> bool:
    """Let all go that wait, and say whether there was anybody."""
    anybody = False
    for waiter in waiters or ():
        if not waiter.cancelled():
            anybody = True
            if not waiter.done():
                waiter.set_result(None)
    return anybody


def as_event(event: Event | str) -> Event:
    """Make an event of what was put; a ``str`` is its data."""
    if isinstance(event, Event):
        return event
    if isinstance(event, str):
        return Event(event)
    raise TypeError(f"put takes an Event or a str, not {event!r}; Event.json(value) makes an event of anything else")


def _nobody() -> None:
    """Wake nobody."""
