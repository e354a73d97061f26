"""What waits in a channel: an ``asyncio.Queue``, a lean one or the user's own."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from enum import StrEnum
from functools import lru_cache
from itertools import islice
from threading import get_ident
from types import new_class
from typing import TYPE_CHECKING, NoReturn, Protocol

from ._threads import check_loop, run_in_loop
from .exceptions import ChannelClosed, ChannelFull, EventTooLarge
from .queues import LossyQueue
from .sse import Event, encode, is_comment, is_larger

__all__ = [
    "BoundedQueue",
    "ChannelQueue",
    "CloseReason",
    "EventChannel",
    "EventQueue",
    "Owner",
    "check_buffer",
    "new_buffer",
]


EventQueue = asyncio.Queue[Event]


class Owner(Protocol):
    """The channel that a queue is the buffer of, as the queue sees it."""

    def _accept(self, item: Event | str) -> Event:
        """Check what is put into the queue directly, and return it as an event. Raises what ``put`` raises."""

    def _check_get(self) -> None:
        """Raise ``RuntimeError`` in another thread than the event loop's."""

    def _wake_stream(self) -> None:
        """Have the stream take what is there."""

    def _made_room(self) -> None:
        """Note that an event was taken by somebody else than the stream."""

    def close(self) -> None:
        """Take no more events."""


class _Over:
    """The owner of a queue whose stream is over."""

    def _accept(self, item: Event | str) -> NoReturn:
        raise ChannelClosed(f"the stream of this queue is over, and {str(item)[:60]!r} was not taken")

    def _check_get(self) -> None:
        """Allow it: nothing waits any more."""

    _wake_stream = _made_room = close = _check_get


_OVER = _Over()


class ChannelQueue(asyncio.Queue[Event]):
    """An ``asyncio.Queue`` that is a channel's buffer.

    ``put`` and ``put_nowait`` check what is put, wake the stream, and raise ``ChannelClosed`` once the channel takes
    no more events, also in a ``put`` that was waiting. ``join`` returns when all that was put has been written, or the
    stream is over.
    """

    # This class stands in front of a user's own, so the names that are only ours have a prefix.
    __slots__ = ()
    _channel_owner: Owner = _OVER
    if TYPE_CHECKING:  # asyncio.Queue's own, of which there is no public way to release those who wait

        @property
        def _putters(self) -> deque[asyncio.Future[None]]: ...
        @property
        def _getters(self) -> deque[asyncio.Future[None]]: ...
        @property
        def _finished(self) -> asyncio.Event: ...

    def put_nowait(self, item: Event | str) -> None:
        """Hand an event to the stream. Raises ``asyncio.QueueFull``, ``ChannelClosed``, and what ``put`` raises."""
        owner = self._channel_owner
        super().put_nowait(owner._accept(item))
        owner._wake_stream()  # a class of the user's need not come by _put

    async def put(self, item: Event | str) -> None:
        """Hand an event to the stream, waiting for room. Cancelling is safe: the event was not taken."""
        await super().put(self._channel_owner._accept(item))

    def get_nowait(self) -> Event:
        """Take an event that the stream then does not send. Raises ``asyncio.QueueEmpty``."""
        self._channel_owner._check_get()
        event = super().get_nowait()
        self._channel_owner._made_room()
        return event

    async def get(self) -> Event:
        """Wait for an event and take it. Raises ``ChannelClosed`` when there is none and the stream is over."""
        self._channel_owner._check_get()
        if self._channel_owner is _OVER and self.empty():
            raise ChannelClosed("the stream of this queue is over, and no event will come")
        return await super().get()

    if sys.version_info >= (3, 13):

        def shutdown(self, immediate: bool = False) -> None:  # noqa: FBT001, FBT002  # as asyncio has it
            """Take no more events and end the stream when all are sent; ``immediate`` drops what waits."""
            self._channel_owner._check_get()
            super().shutdown(immediate)
            self._channel_owner.close()

    def _put(self, item: Event) -> None:
        self._channel_owner._wake_stream()  # before anything changes
        super()._put(item)

    # The channel's side.

    def _channel_add(self, event: Event) -> None:
        """Append an event that was checked; the stream is woken already."""
        super().put_nowait(event)

    def _channel_take(self) -> Event:
        """Take the first event for the stream."""
        return super().get_nowait()

    def _channel_written(self, count: int) -> None:
        """Note that so many events that were taken have been written."""
        try:
            for _ in range(count):
                self.task_done()
        except ValueError:  # a class of the user's does not count what is put
            pass

    def _channel_release_puts(self) -> bool:
        """Have each ``put`` that waits raise ``ChannelClosed``, and return whether there was one."""
        return _fail(self._putters)

    def _channel_release(self) -> None:
        """Let all go that wait: the stream is over, which is true of each direct call from now on too."""
        self._channel_owner = _OVER
        _fail(self._putters)
        _fail(self._getters)
        self._finished.set()


class _Waits:
    """The parts of an ``asyncio.Queue`` that only those need who wait."""

    __slots__ = ("finished", "getters", "putters")

    def __init__(self, *, finished: bool) -> None:
        self.getters: deque[asyncio.Future[None]] = deque()
        self.putters: deque[asyncio.Future[None]] = deque()
        self.finished = asyncio.Event()
        if finished:
            self.finished.set()


class BoundedQueue(ChannelQueue):
    """A lean ``asyncio.Queue`` of events: its parts are made when they are first needed, and idle it has none."""

    __slots__ = ("_channel_owner", "_in_hand", "_maxsize", "_queue", "_waits")

    _is_shutdown = False  # asyncio's, from Python 3.13 on

    def __init__(self, maxsize: int, owner: Owner) -> None:  # asyncio.Queue's would make all parts
        self._channel_owner: Owner = owner
        self._maxsize = maxsize
        self._queue: list[Event] | deque[Event] | None = None  # a list until some are taken and others stay
        self._in_hand = 0  # taken, but not by the stream, and not done
        self._waits: _Waits | None = None

    def qsize(self) -> int:
        """Count what can be taken."""
        return len(self._queue) if self._queue else 0

    def empty(self) -> bool:
        """Tell whether there is nothing to take."""
        return not self._queue

    def full(self) -> bool:
        """Tell whether a producer has to wait."""
        queue = self._queue
        return queue is not None and len(queue) >= self._maxsize

    def put_nowait(self, item: Event | str) -> None:
        """Hand an event to the stream. Raises ``asyncio.QueueFull``, ``ChannelClosed``, and what ``put`` raises."""
        event = self._channel_owner._accept(item)
        if self.full():
            raise ChannelFull(f"the queue holds {self.qsize()} events and has no room; put() waits for it")
        self._channel_owner._wake_stream()
        self._channel_add(event)

    def get_nowait(self) -> Event:
        """Take an event that the stream then does not send. Raises ``asyncio.QueueEmpty``."""
        self._channel_owner._check_get()
        event = self._channel_take()
        self._in_hand += 1
        self._channel_owner._made_room()
        return event

    def task_done(self) -> None:
        """Note that an event that was taken has been dealt with. Raises ``ValueError`` if there was none."""
        if not self._unfinished_tasks:
            raise ValueError("task_done() called too many times")
        self._unfinished_tasks -= 1
        self._channel_written(1)

    async def join(self) -> None:
        """Wait until all that was put has been written, or the stream is over. Cancelling is safe."""
        if self._channel_owner is not _OVER:
            await super().join()

    def _channel_add(self, event: Event) -> None:
        queue = self._queue
        if queue is None:
            self._queue = [event]
        else:
            queue.append(event)
        if self._waits is not None:
            self._waits.finished.clear()
            _wake_next(self._waits.getters, 1)

    def _channel_take(self) -> Event:
        queue = self._queue
        if not queue:
            raise asyncio.QueueEmpty
        event = queue[0]
        self._channel_leave(1)
        return event

    def _channel_leave(self, count: int) -> None:
        """Let go of so many events, which were taken; their room is for those who wait in ``put``."""
        queue = self._queue
        if not queue or count == len(queue):
            self._queue = None  # frees the room that a burst took
        else:
            if isinstance(queue, list):
                queue = self._queue = deque(queue)
            for _ in range(count):
                queue.popleft()
        if self._waits is not None:
            _wake_next(self._waits.putters, count)

    def _channel_written(self, count: int) -> None:  # noqa: ARG002  # those that the stream takes are not counted
        if self._waits is not None and not self._unfinished_tasks:
            self._waits.finished.set()

    def _channel_release_puts(self) -> bool:
        return self._waits is not None and _fail(self._waits.putters)

    def _channel_release(self) -> None:
        if self._waits is None:
            self._channel_owner = _OVER
        else:
            super()._channel_release()

    # Under asyncio.Queue's own names, so that what it does while somebody waits, or shuts it down, holds here too.

    def _get(self) -> Event:
        event = self._channel_take()
        self._in_hand += 1
        return event

    @property
    def _unfinished_tasks(self) -> int:
        return self.qsize() + self._in_hand

    @_unfinished_tasks.setter
    def _unfinished_tasks(self, count: int) -> None:
        self._in_hand = count - self.qsize()

    @property
    def _parts(self) -> _Waits:
        if self._waits is None:
            self._waits = _Waits(finished=not self._unfinished_tasks)
        return self._waits

    @property
    def _getters(self) -> deque[asyncio.Future[None]]:
        return self._parts.getters

    @property
    def _putters(self) -> deque[asyncio.Future[None]]:
        return self._parts.putters

    @property
    def _finished(self) -> asyncio.Event:
        return self._parts.finished


def check_buffer(buffer: object) -> None:
    """Raise ``TypeError`` or ``ValueError`` for what is neither a number of events nor a factory."""
    if callable(buffer):
        return
    if type(buffer) is not int:
        raise TypeError(f"buffer is a number of events or makes an asyncio.Queue, not {buffer!r}")
    if buffer < 1:
        raise ValueError(f"buffer is 1 event or more, not {buffer!r}: without a bound a slow client fills the memory")


def new_buffer(buffer: int | Callable[[], EventQueue], owner: Owner) -> ChannelQueue:
    """Make a channel's buffer, or say what is wrong with ``buffer``."""
    check_buffer(buffer)
    return _owned(buffer, owner) if callable(buffer) else BoundedQueue(buffer, owner)


def _owned(factory: Callable[[], EventQueue], owner: Owner) -> ChannelQueue:
    """Make a queue of the user's a channel's: the methods that the channel must hear of go before its class's own."""
    queue = factory()
    if not isinstance(queue, asyncio.Queue):
        raise TypeError(f"buffer is a number of events or makes an asyncio.Queue; {factory!r} made {queue!r}")
    if isinstance(queue, ChannelQueue):
        if queue._channel_owner is not _OVER:
            raise ValueError(f"a queue is of one stream; {factory!r} made {queue!r}, which another open stream has")
    else:
        own: type[object] = type(queue)
        try:
            queue.__class__ = _channel_class(own)  # type: ignore[arg-type]  # mypy takes no class for a Hashable
        except TypeError as error:
            raise TypeError(f"{queue!r} cannot be a channel's buffer: {error}") from error
        assert isinstance(queue, ChannelQueue)  # noqa: S101  # its class is one now
    queue._channel_owner = owner
    return queue


@lru_cache(64)
def _channel_class(of_queue: type[object]) -> type[ChannelQueue]:
    """Make the class of a user's queue that is a channel's."""
    names = {"__slots__": (), "__module__": of_queue.__module__, "__qualname__": of_queue.__qualname__}
    made: type[ChannelQueue] = new_class(
        of_queue.__name__, (ChannelQueue, of_queue), {}, lambda body: body.update(names)
    )
    return made


def _wake_next(waiters: deque[asyncio.Future[None]], count: int) -> None:
    """Wake that many of those who wait, oldest first."""
    while count and waiters:
        waiter = waiters.popleft()
        if not waiter.done():
            waiter.set_result(None)
            count -= 1


def _fail(waiters: Iterable[asyncio.Future[None]]) -> bool:
    """Have each of those who wait raise ``ChannelClosed``, and return whether there was one."""
    anybody = False
    for waiter in list(waiters):
        if not waiter.done():
            waiter.set_exception(ChannelClosed("the stream of this queue is over"))
            anybody = True
    return anybody


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
