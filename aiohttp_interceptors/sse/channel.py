"""The pipe from one producer to one stream: ``put`` and ``close`` on one side, the pump on the other."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from enum import StrEnum
from itertools import islice
from threading import get_ident

from ..errors import ChannelClosed, ChannelFull, EventTooLarge
from .buffer import BoundedQueue, ChannelQueue, EventQueue, new_buffer
from .event import Event
from .queues import LossyQueue
from .threadsafe import check_loop, run_in_loop
from .wire import encode, is_comment, is_larger

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
    (milliseconds) rides in the first frame that is no comment; ``max_event_size`` is in bytes on the wire.

    Any number of tasks of the stream's event loop may put. From other threads there is ``put_threadsafe``; every other
    call that changes the channel raises ``RuntimeError`` there, and changes nothing.
    """

    __slots__ = ("_asleep", "_buffer", "_closed", "_loop", "_lossy", "_max_event_size", "_over", "_relieve", "_retry",
                 "_thread", "_told", "_waiting", "_wake", "reason")  # fmt: skip

    reason: CloseReason | None
    """Why the stream ended; ``None`` as long as it has not."""

    def __init__(
        self,
        buffer: int | Callable[[], EventQueue] = 10,
        *,
        retry: int | None = None,
        max_event_size: int | None = None,
    ) -> None:
        self._buffer: ChannelQueue = new_buffer(buffer, self)
        self._lossy = self._buffer if isinstance(self._buffer, LossyQueue) else None  # looked at for each put
        self._retry = retry
        self._max_event_size = max_event_size
        # Both are made when first needed: most streams have nobody in line, and an open one shall cost little.
        self._waiting: deque[asyncio.Future[None]] | None = None  # a put each, oldest first
        self._over: list[asyncio.Future[None]] | None = None  # a wait_closed each
        self._wake: Callable[[], None] = _nobody
        self._relieve: Callable[[], None] = _nobody
        self._asleep = True  # whether the stream must be told of the next event
        self._loop: asyncio.AbstractEventLoop | None = None  # the stream's
        self._thread = 0  # the loop's; 0 while there is no stream
        self._closed = False
        self._told = False
        self.reason = None

    @property
    def closed(self) -> bool:
        """Whether the channel takes no more events; those it has are still sent if the client is there."""
        return self._closed

    @property
    def buffer(self) -> EventQueue:
        """The ``asyncio.Queue`` of the events that wait; what is put into it directly is sent too."""
        return self._buffer

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
        if get_ident() != self._thread:
            self._check_thread("await channel.put(event)", PUT_ELSEWHERE)
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
        if get_ident() != self._thread:
            self._check_thread("channel.put_nowait(event)", PUT_ELSEWHERE)
        if self._closed:
            self._told = True
            return False
        if self._waiting or self._buffer.full():
            raise ChannelFull(f"the channel holds {self.buffered} events and has no room; put() waits for it")
        self._take(event)
        return True

    def put_threadsafe(self, event: Event | str) -> Future[bool]:
        """Hand over an event from any thread, and return a future of what ``put`` returns; it need not be asked.

        Events of one thread keep their order. ``result`` waits for room as ``put`` does, and raises ``RuntimeError``
        in the event loop's own thread instead of blocking it. Cancelling the future takes back an event that waits
        for room; in the moment when there is room, it may be taken all the same.

        Raises ``TypeError`` or ``EventTooLarge`` as ``put``, and ``RuntimeError`` when there is no stream, or its event
        loop is closed.
        """
        event = self._checked(event)
        if self._loop is None:
            raise RuntimeError("this channel has no stream yet, and so no event loop that could take the event")
        return run_in_loop(self._loop, lambda: self.put(event))

    def close(self) -> None:
        """Take no more events, and end the stream when all that were put have been sent. Idempotent."""
        if get_ident() != self._thread:
            self._check_thread("channel.close()", "loop.call_soon_threadsafe(channel.close)")
        if not self._closed:
            self._closed = True
            self._told = _release(self._waiting) | self._buffer._channel_release_puts()
            self._wake()

    def end(self, reason: CloseReason) -> None:
        """End the stream now, for this reason, without what its client does not take at once. The first reason counts.

        Whoever waits for the end, or to put, is told now. ``CloseReason.KICKED`` is for an application's own use.
        """
        if get_ident() != self._thread:
            self._check_thread("end(reason)", "loop.call_soon_threadsafe(stream.end, reason)")
        if self.reason is None:
            self.reason = reason
            if self._closed:
                self._wake()
            self.close()
            self._wake = self._relieve = _nobody
            self._told = _release(self._over) or self._told
            self._buffer._channel_release()

    async def wait_closed(self) -> CloseReason:
        """Wait until the stream is over and return why. Cancelling is safe."""
        if get_ident() != self._thread:
            self._check_thread(
                "await channel.wait_closed()", "asyncio.run_coroutine_threadsafe(channel.wait_closed(), loop)"
            )
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
        From here on the channel belongs to the running event loop.
        """
        self._loop = asyncio.get_running_loop()
        thread = get_ident()
        self._thread = _threads.setdefault(thread, thread)
        self._wake = wake
        self._relieve = relieve or _nobody

    def take(self) -> list[Event]:
        """Take all events that are there, and make room for as many."""
        events = []
        while not self._buffer.empty():
            events.append(self._buffer._channel_take())
        self._taken(len(events))
        self._buffer._channel_written(len(events))
        return events

    def take_frames(self, most: int) -> list[bytes]:
        """Take events until their frames have that many bytes, or there are no more, and make room for as many.

        ``written`` is to be called when they are.
        """
        buffer, size = self._buffer, 0
        frames: list[bytes] = []
        lean = buffer if type(buffer) is BoundedQueue else None  # as most are: no calls for each event
        events = (_taken_from(buffer) if lean is None else lean._queue or ()) if most > 0 else ()
        for event in events:
            if self._retry is None or is_comment(event):  # it waits for an event that ends in a blank line anyhow
                frame = encode(event)
            else:
                frame, self._retry = encode(event, self._retry), None
            frames.append(frame)
            size += len(frame)
            if size >= most:
                break
        count = len(frames)
        if lean is not None and count:
            lean._channel_leave(count)
        self._taken(count)
        return frames

    def written(self, count: int) -> None:
        """Note that so many events that were taken have been written."""
        self._buffer._channel_written(count)

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
        if self._asleep:
            self._wake()  # before anything changes, as it may fail; a stream that is woken for nothing writes nothing
            self._asleep = False
        self._buffer._channel_add(event)

    def _check_thread(self, call: str, instead: str) -> None:
        """Refuse a call from another thread than the stream's, unless that has no event loop any more."""
        if self._loop is not None:
            check_loop(self._loop, call, instead)

    # The buffer's side: what is put into it directly.

    def _accept(self, item: Event | str) -> Event:
        """Check what is put into the buffer directly, and return it as an event."""
        event = self._checked(item)
        if get_ident() != self._thread:
            self._check_thread("put on the channel's queue", PUT_ELSEWHERE)
        if self._closed:
            self._told = True
            raise ChannelClosed(f"the channel takes no more events, and {str(event)[:60]!r} was not taken")
        lossy = self._lossy
        if lossy is not None and lossy.qsize() >= lossy.maxsize:
            self._relieve()
        return event

    def _check_get(self) -> None:
        """Refuse another thread."""
        if get_ident() != self._thread:
            self._check_thread("a call on the channel's queue", "loop.call_soon_threadsafe")

    def _wake_stream(self) -> None:
        """Have the stream take what is there."""
        if self._asleep:
            self._wake()
            self._asleep = False

    def _made_room(self) -> None:
        """Note that an event was taken by somebody else than the stream."""
        if self._waiting:
            self._wake_next(1)

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


PUT_ELSEWHERE = "channel.put_threadsafe(event), which returns a future,"
_threads: dict[int, int] = {}  # one int of each thread's number, instead of one for each open stream


def _taken_from(buffer: ChannelQueue) -> Iterator[Event]:
    """Take events as long as there are any."""
    while not buffer.empty():
        yield buffer._channel_take()


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
