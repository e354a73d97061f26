"""Channels that carry events from producers to an event stream.

Producers put events into an ``EventChannel``; the stream takes them out in batches and writes them to the client. By
default, events are buffered in a ``BoundedQueue``: when it is full, ``put`` waits, which applies backpressure to the
producer. Applications can supply any other ``asyncio.Queue``.
"""

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
from typing import TYPE_CHECKING, NoReturn

from ._threads import check_loop, run_in_loop
from .exceptions import ChannelClosed, ChannelFull, EventTooLarge
from .queues import LossyQueue
from .sse import Event, encode, is_comment, is_larger

__all__ = ["BoundedQueue", "ChannelQueue", "CloseReason", "EventChannel", "EventQueue", "check_buffer"]


EventQueue = asyncio.Queue[Event]

_PUT_THREADSAFE = "channel.put_threadsafe(event)"


class CloseReason(StrEnum):
    """Why a stream ended. The values appear in the log, and are passed to ``on_close``."""

    CLIENT_LEFT = "client_left"
    """The client disconnected."""
    CLOSED = "closed"
    """The channel was closed, and everything in it was sent."""
    ERROR = "error"
    """The producer, another function of the application, or the buffer raised an exception."""
    SHUTDOWN = "shutdown"
    """The server is shutting down."""
    STALLED = "stalled"
    """The client acknowledged nothing for ``stall_timeout`` seconds."""
    LAGGED = "lagged"
    """The client fell so far behind that its next record was evicted from the history, and ``on_gap`` is "close"."""
    EXPIRED = "expired"
    """The stream reached its ``max_age``."""
    KICKED = "kicked"
    """The application ended the stream, or a newer stream of the same key replaced it."""


class EventChannel:
    """A channel of events from one or more producers to one stream.

    A channel is open, then closed, then ended. A closed channel accepts no more events, but still sends those in its
    buffer. Once it has ended, ``reason`` is set and nothing more is sent.

    Not thread-safe, except for ``put_threadsafe``. While the stream's event loop is running, calling another method
    from a different thread raises ``RuntimeError`` and has no effect. Properties are not checked.

    Args:
        buffer: The capacity in events, or a factory of an ``asyncio.Queue``. ``full`` and ``put_nowait`` of that queue
            determine whether an event waits for room, is dropped, or replaces another.
        retry: Reconnection time in milliseconds, sent with the first event that is not only a comment.
        max_event_size: Maximum size of an encoded event, in bytes; ``None`` for no limit.

    Raises:
        TypeError: ``buffer`` is neither an integer nor callable, or the factory did not return an ``asyncio.Queue``.
        ValueError: ``buffer`` is less than 1, or the factory returned the queue of another open stream.
    """

    __slots__ = (
        "_buffer",
        "_close_waiters",
        "_closed",
        "_end_observed",
        "_loop",
        "_lossy_buffer",
        "_max_event_size",
        "_notify_stream",
        "_on_overflow",
        "_on_ready",
        "_putters",
        "_retry",
        "_thread_id",
        "reason",
    )

    reason: CloseReason | None
    """Why the stream ended. ``None`` while it is open."""

    def __init__(
        self,
        buffer: int | Callable[[], EventQueue] = 10,
        *,
        retry: int | None = None,
        max_event_size: int | None = None,
    ) -> None:
        self._buffer: ChannelQueue = _create_buffer(buffer, self)
        queue: EventQueue = self._buffer
        self._lossy_buffer = queue if isinstance(queue, LossyQueue) else None
        self._retry = retry
        self._max_event_size = max_event_size
        # Created on first use: in most streams no task ever waits.
        self._putters: deque[asyncio.Future[None]] | None = None
        self._close_waiters: list[asyncio.Future[None]] | None = None
        self._on_ready: Callable[[], None] = _do_nothing
        self._on_overflow: Callable[[], None] = _do_nothing
        self._notify_stream = True  # call _on_ready for the next event; set by each _get_frames()
        # Event loop of the stream, and the ID of its thread; None and 0 until _attach().
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread_id = 0
        self._closed = False
        # Whether a producer has observed the end: a task was waiting in put or wait_closed, or has called put since.
        self._end_observed = False
        self.reason = None

    @property
    def closed(self) -> bool:
        """Whether the channel accepts no more events. Those in the buffer are still sent, until ``reason`` is set."""
        return self._closed

    @property
    def buffer(self) -> EventQueue:
        """The queue of events waiting to be sent. Events put directly into it are sent too."""
        return self._buffer

    @property
    def buffered(self) -> int:
        """Number of events waiting to be sent, including the notices of a ``LossyQueue``."""
        return self._buffer.qsize()

    @property
    def lossy(self) -> bool:
        """Whether the buffer is a ``LossyQueue``, which may drop events."""
        return self._lossy_buffer is not None

    @property
    def dropped(self) -> int:
        """Number of events that the buffer has dropped, if it is a ``LossyQueue``; otherwise 0."""
        return 0 if self._lossy_buffer is None else self._lossy_buffer.dropped

    async def put(self, event: Event | str) -> bool:
        """Put an event, waiting until the buffer has room.

        Waiting tasks are served in the order of their calls. Cancelling is safe: a cancelled ``put`` leaves the channel
        unchanged, so it can be wrapped in ``asyncio.timeout``.

        Args:
            event: The event, or its data.

        Returns:
            ``True``, or ``False`` if the channel is closed. A pending ``put`` returns ``False`` when the channel is
            closed or the stream ends.

        Raises:
            TypeError: ``event`` is neither an ``Event`` nor a ``str``.
            ValueError: ``event`` is a ``str`` that cannot be encoded as UTF-8.
            EventTooLarge: The event exceeds ``max_event_size``.
            RuntimeError: Called from a thread other than the event loop's.
            Exception: What the application's queue raises.
        """
        if type(event) is not Event or self._max_event_size is not None:
            event = self._validate(event)
        if get_ident() != self._thread_id:
            self._check_thread("await channel.put(event)", _PUT_THREADSAFE)
        if self._closed:
            self._end_observed = True
            await asyncio.sleep(0)  # a producer looping on put() after the close must not block the event loop
            return False
        if (self._putters or self._buffer.full()) and not await self._wait_for_room():
            return False
        self._put(event)
        return True

    def put_nowait(self, event: Event | str) -> bool:
        """Put an event without waiting.

        Args:
            event: The event, or its data.

        Returns:
            ``True``, or ``False`` if the channel is closed.

        Raises:
            ChannelFull: The buffer has no room.
            TypeError: ``event`` is neither an ``Event`` nor a ``str``.
            ValueError: ``event`` is a ``str`` that cannot be encoded as UTF-8.
            EventTooLarge: The event exceeds ``max_event_size``.
            RuntimeError: Called from a thread other than the event loop's.
            Exception: What the application's queue raises.
        """
        event = self._validate(event)
        if get_ident() != self._thread_id:
            self._check_thread("channel.put_nowait(event)", _PUT_THREADSAFE)
        if self._closed:
            self._end_observed = True
            return False
        if self._putters or self._buffer.full():
            raise ChannelFull(f"the channel holds {self.buffered} events and has no room; put() waits for room")
        self._put(event)
        return True

    def put_threadsafe(self, event: Event | str) -> Future[bool]:
        """Put an event from any thread. Events from one thread keep their order.

        Cancelling the future withdraws an event that is still waiting for room. This races with the event loop: a
        cancelled future does not guarantee that the event was not sent.

        Args:
            event: The event, or its data.

        Returns:
            A future for the return value of ``put``, which can be ignored. In the event loop's thread, calling
            ``result()`` on a pending future raises ``RuntimeError`` instead of deadlocking; there use
            ``await asyncio.wrap_future(future)``.

        Raises:
            TypeError: ``event`` is neither an ``Event`` nor a ``str``.
            ValueError: ``event`` is a ``str`` that cannot be encoded as UTF-8.
            EventTooLarge: The event exceeds ``max_event_size``.
            RuntimeError: The channel has no stream yet, or the event loop is closed.
        """
        event = self._validate(event)
        if self._loop is None:
            raise RuntimeError("the channel is not attached to a stream yet, and has no event loop")
        return run_in_loop(self._loop, lambda: self.put(event))

    def close(self) -> None:
        """Stop accepting events. The stream ends once the buffer has been written to the transport.

        Returns immediately. Pending ``put`` calls return ``False``. Idempotent.
        """
        if get_ident() != self._thread_id:
            self._check_thread("channel.close()", "loop.call_soon_threadsafe(channel.close)")
        if not self._closed:
            self._closed = True
            put_waited = _wake_all(self._putters)
            direct_put_waited = self._buffer._channel_fail_puts()
            self._end_observed = put_waited or direct_put_waited
            self._on_ready()

    def end(self, reason: CloseReason) -> None:
        """End the stream without waiting for the client.

        Buffered events are written only while the transport accepts them without pausing. Pending ``put`` and
        ``wait_closed`` calls return. Idempotent: the first reason is kept.

        Args:
            reason: The reason to report. Applications use ``CloseReason.KICKED``.
        """
        if get_ident() != self._thread_id:
            self._check_thread("end(reason)", "loop.call_soon_threadsafe(stream.end, reason)")
        if self.reason is None:
            self.reason = reason
            was_closed = self._closed
            self.close()
            if was_closed:
                self._on_ready()  # close() notifies the stream only once
            self._on_ready = self._on_overflow = _do_nothing
            self._end_observed = _wake_all(self._close_waiters) or self._end_observed
            self._buffer._channel_detach()

    async def wait_closed(self) -> CloseReason:
        """Wait until the stream has ended, which may be later than ``closed``: a closed channel first sends its buffer.

        Cancelling is safe.

        Returns:
            Why the stream ended.
        """
        if get_ident() != self._thread_id:
            self._check_thread(
                "await channel.wait_closed()", "asyncio.run_coroutine_threadsafe(channel.wait_closed(), loop)"
            )
        while self.reason is None:
            if self._close_waiters is None:
                self._close_waiters = []
            waiter = _create_waiter()
            self._close_waiters.append(waiter)
            try:
                await waiter
            finally:
                self._close_waiters.remove(waiter)
        return self.reason

    # Called by the stream.

    def _attach(self, on_ready: Callable[[], None], on_overflow: Callable[[], None] | None = None) -> None:
        """Bind the channel to a stream and to the running event loop.

        ``on_ready`` is called for the first event put after each ``_get_frames``, and when the channel is closed or
        ended. ``on_overflow`` is called before a ``LossyQueue`` drops an event, so that the stream can write first.
        """
        self._loop = asyncio.get_running_loop()
        self._thread_id = get_ident()
        self._on_ready = on_ready
        self._on_overflow = on_overflow or _do_nothing

    def _get_frames(self, min_bytes: int) -> list[bytes]:
        """Remove events and encode them, stopping once the frames have at least ``min_bytes`` in total.

        The caller reports the frames with ``_frames_written``.
        """
        buffer = self._buffer
        bounded = buffer if type(buffer) is BoundedQueue else None
        events: Iterable[Event]
        if min_bytes <= 0:
            events = ()
        elif bounded is not None:  # removed together below, which saves a call for each event
            events = bounded._queue
        else:
            events = _drain(buffer)
        frames: list[bytes] = []
        size = 0
        for event in events:
            # With ``retry``, a comment would end with a blank line, at which some clients dispatch an empty event.
            if self._retry is None or is_comment(event):
                frame = encode(event)
            else:
                frame, self._retry = encode(event, self._retry), None
            frames.append(frame)
            size += len(frame)
            if size >= min_bytes:
                break
        count = len(frames)
        if bounded is not None and count:
            bounded._channel_remove(count)
        self._notify_stream = True
        if self._putters:
            self._wake_putters(count)
        return frames

    def _frames_written(self, count: int) -> None:
        """Mark ``count`` events as done, for ``buffer.join()``."""
        self._buffer._channel_done(count)

    # Called by the buffer, when the application puts events directly into it or removes them.

    def _check_put(self, item: Event | str) -> Event:
        """Validate an event put directly into the buffer, and raise ``ChannelClosed`` if the channel is closed.

        If a ``LossyQueue`` would drop an event otherwise, the stream writes first.
        """
        event = self._validate(item)
        if get_ident() != self._thread_id:
            self._check_thread("channel.buffer.put(event)", _PUT_THREADSAFE)
        if self._closed:
            self._end_observed = True
            raise ChannelClosed(f"the channel is closed and does not accept {str(event)[:60]!r}")
        lossy = self._lossy_buffer
        if lossy is not None and lossy.qsize() >= lossy.maxsize:
            self._on_overflow()
        return event

    def _check_get(self) -> None:
        if get_ident() != self._thread_id:
            self._check_thread("a method of channel.buffer", "loop.call_soon_threadsafe(method)")

    def _notify(self) -> None:
        """Notify the stream that there are events."""
        if self._notify_stream:
            self._on_ready()
            self._notify_stream = False

    def _event_removed(self) -> None:
        """Wake a waiting ``put``, because the application took an event out of the buffer."""
        if self._putters:
            self._wake_putters(1)

    # Private methods.

    def _validate(self, event: Event | str) -> Event:
        """Convert ``event`` to an ``Event`` and check its size.

        Raises ``TypeError``, ``ValueError`` or ``EventTooLarge``.
        """
        event = _as_event(event)
        limit = self._max_event_size
        if limit is not None and is_larger(event, limit):
            raise EventTooLarge(
                f"the event has {len(encode(event))} bytes and max_event_size is {limit}: {str(event)[:60]}…"
            )
        return event

    def _check_thread(self, call: str, alternative: str) -> None:
        """Raise ``RuntimeError`` in a thread other than the stream's."""
        if self._loop is not None:
            check_loop(self._loop, call, alternative)

    def _put(self, event: Event) -> None:
        lossy = self._lossy_buffer
        if lossy is not None and lossy.qsize() >= lossy.maxsize:
            self._on_overflow()
        if self._notify_stream:  # as _notify, without the call: this is the hot path of put()
            self._on_ready()  # before the put: if it raises, the event must not be in the buffer
            self._notify_stream = False
        self._buffer._channel_put(event)

    async def _wait_for_room(self) -> bool:
        """Wait for room in the buffer, first come, first served. Return whether the channel is still open."""
        if self._putters is None:
            self._putters = deque()
        waiter = _create_waiter()
        self._putters.append(waiter)
        try:
            await waiter
            # An application's queue may measure something else, such as bytes, so one event removed may not be enough.
            while self._buffer.full() and not self._closed:
                index = self._putters.index(waiter)
                self._putters[index] = waiter = _create_waiter()
                await waiter
        except asyncio.CancelledError:
            self._wake_putters(1)  # this task may have been woken already: pass it on to the next one
            raise
        finally:
            self._putters.remove(waiter)
        return not self._closed

    def _wake_putters(self, count: int) -> None:
        """Wake up to ``count`` tasks that have not been woken yet. Each removes its own waiter."""
        for waiter in islice((waiter for waiter in self._putters or () if not waiter.done()), count):
            waiter.set_result(None)


class _NoChannel:
    """Replaces the channel of a queue once the stream has ended: puts fail, everything else has no effect."""

    def _check_put(self, item: Event | str) -> NoReturn:
        raise ChannelClosed(f"the stream of this queue has ended and does not accept {str(item)[:60]!r}")

    def _check_get(self) -> None:
        pass

    def _notify(self) -> None:
        pass

    def _event_removed(self) -> None:
        pass

    def close(self) -> None:
        pass


_NO_CHANNEL = _NoChannel()


class ChannelQueue(asyncio.Queue[Event]):
    """An ``asyncio.Queue`` that is the buffer of a channel.

    ``put`` and ``put_nowait`` validate the event and notify the stream. Once the channel is closed, they raise
    ``ChannelClosed``, and so does a pending ``put``. ``join`` returns when all events have been written, or the stream
    has ended.
    """

    # _create_buffer() derives a class from this one and that of the application's queue. Names that asyncio.Queue does
    # not have are prefixed, so that they do not clash with names of the application's class.
    __slots__ = ()
    _channel_owner: EventChannel | _NoChannel = _NO_CHANNEL
    if TYPE_CHECKING:  # private attributes of asyncio.Queue, which has no public way to wake waiting tasks

        @property
        def _putters(self) -> deque[asyncio.Future[None]]: ...
        @property
        def _getters(self) -> deque[asyncio.Future[None]]: ...
        @property
        def _finished(self) -> asyncio.Event: ...
        def _wakeup_next(self, waiters: deque[asyncio.Future[None]]) -> None: ...

    def put_nowait(self, item: Event | str) -> None:
        """Put an event. Raises ``asyncio.QueueFull``, ``ChannelClosed``, and what ``EventChannel.put`` raises."""
        owner = self._channel_owner
        super().put_nowait(owner._check_put(item))
        owner._notify()  # an application's queue may override put_nowait without calling _put

    async def put(self, item: Event | str) -> None:
        """Put an event, waiting until the queue has room. Cancelling is safe.

        Raises the same exceptions as ``put_nowait``, but never ``QueueFull``.
        """
        # Checked here to fail before waiting, and again by put_nowait(), because the channel may be closed meanwhile.
        await super().put(self._channel_owner._check_put(item))

    def get_nowait(self) -> Event:
        """Remove an event, which is then not sent. Raises ``asyncio.QueueEmpty``."""
        self._channel_owner._check_get()
        event = self._channel_get()
        self._channel_owner._event_removed()
        return event

    async def get(self) -> Event:
        """Remove and return an event, waiting for one if necessary. The event is not sent. Cancelling is safe.

        Raises ``ChannelClosed`` once the stream has ended and the queue is empty.
        """
        self._channel_owner._check_get()
        if self._channel_owner is _NO_CHANNEL and self.empty():
            raise ChannelClosed("the stream of this queue has ended, and no event will be put")
        return await super().get()

    if sys.version_info >= (3, 13):

        def shutdown(self, immediate: bool = False) -> None:  # noqa: FBT001, FBT002  # asyncio's signature
            """Close the channel. If ``immediate``, drop the events in the queue."""
            self._channel_owner._check_get()
            super().shutdown(immediate)
            self._channel_owner.close()

    def _put(self, item: Event) -> None:
        self._channel_owner._notify()  # before the put: if it raises, the event must not be in the queue
        super()._put(item)

    # Called by the channel.

    def _channel_put(self, event: Event) -> None:
        """Append a validated event. The stream has been notified."""
        super().put_nowait(event)

    def _channel_get(self) -> Event:
        return super().get_nowait()

    def _channel_done(self, count: int) -> None:
        """Mark ``count`` events as done."""
        try:
            for _ in range(count):
                self.task_done()
        except ValueError:  # the application's queue does not count unfinished tasks
            pass

    def _channel_fail_puts(self) -> bool:
        """Make pending ``put`` calls raise ``ChannelClosed``. Return whether there were any."""
        return _fail_all(self._putters)

    def _channel_detach(self) -> None:
        """Detach the queue from its channel: pending ``put`` and ``get`` raise ``ChannelClosed``, ``join`` returns."""
        self._channel_owner = _NO_CHANNEL
        _fail_all(self._putters)
        _fail_all(self._getters)
        self._finished.set()


class BoundedQueue(ChannelQueue):
    """The default buffer, an ``asyncio.Queue`` that allocates nothing until it is used.

    There is one per open stream, and most of them are empty most of the time.
    """

    __slots__ = ("_channel_owner", "_maxsize", "_queue", "_unfinished_tasks", "_waiters")

    _is_shutdown = False  # set by asyncio.Queue.__init__() from Python 3.13 on

    def __init__(self, maxsize: int, owner: EventChannel) -> None:  # does not call super(), which would allocate
        self._channel_owner: EventChannel | _NoChannel = owner
        self._maxsize = maxsize
        # Usually all events are removed together, and then a list is smaller and faster than a deque.
        self._queue: list[Event] | deque[Event] | tuple[()] = ()
        self._unfinished_tasks = 0
        self._waiters: _Waiters | None = None

    def full(self) -> bool:
        """Return whether ``put`` would wait."""
        return len(self._queue) >= self._maxsize

    def put_nowait(self, item: Event | str) -> None:
        """Put an event. Raises ``ChannelFull``, ``ChannelClosed``, and what ``EventChannel.put`` raises."""
        event = self._channel_owner._check_put(item)
        if self.full():
            raise ChannelFull(f"the queue holds {self.qsize()} events and has no room; put() waits for room")
        self._channel_owner._notify()
        self._channel_put(event)

    async def join(self) -> None:
        """Wait until all events were written or the stream has ended. Cancelling is safe."""
        if self._channel_owner is not _NO_CHANNEL:
            await super().join()

    def _get(self) -> Event:  # called by asyncio.Queue.shutdown()
        return self._channel_get()

    def _channel_put(self, event: Event) -> None:
        queue = self._queue
        if queue:
            queue.append(event)
        else:
            self._queue = [event]
        self._unfinished_tasks += 1
        waiters = self._waiters
        if waiters is not None:
            waiters.finished.clear()
            self._wakeup_next(waiters.getters)

    def _channel_get(self) -> Event:
        queue = self._queue
        if not queue:
            raise asyncio.QueueEmpty
        event = queue[0]
        self._channel_remove(1)
        return event

    def _channel_remove(self, count: int) -> None:
        """Remove the first ``count`` events, and wake up to ``count`` tasks waiting in the queue's own ``put``."""
        queue = self._queue
        if count == len(queue):
            self._queue = ()  # frees the memory of a burst
        else:
            if not isinstance(queue, deque):
                queue = self._queue = deque(queue)
            for _ in range(count):
                queue.popleft()
        if self._waiters is not None:
            for _ in range(count):
                self._wakeup_next(self._waiters.putters)

    def _channel_done(self, count: int) -> None:
        self._unfinished_tasks -= count
        if self._waiters is not None and self._unfinished_tasks <= 0:
            self._waiters.finished.set()

    def _channel_fail_puts(self) -> bool:
        return self._waiters is not None and _fail_all(self._waiters.putters)

    def _channel_detach(self) -> None:
        if self._waiters is None:
            self._channel_owner = _NO_CHANNEL
        else:
            super()._channel_detach()

    # Attributes of asyncio.Queue, created on first use.

    def _ensure_waiters(self) -> _Waiters:
        if self._waiters is None:
            self._waiters = _Waiters(finished=not self._unfinished_tasks)
        return self._waiters

    @property
    def _getters(self) -> deque[asyncio.Future[None]]:
        return self._ensure_waiters().getters

    @property
    def _putters(self) -> deque[asyncio.Future[None]]:
        return self._ensure_waiters().putters

    @property
    def _finished(self) -> asyncio.Event:
        return self._ensure_waiters().finished


class _Waiters:
    """State of an ``asyncio.Queue`` that is needed only while tasks wait."""

    __slots__ = ("finished", "getters", "putters")

    def __init__(self, *, finished: bool) -> None:
        self.getters: deque[asyncio.Future[None]] = deque()
        self.putters: deque[asyncio.Future[None]] = deque()
        self.finished = asyncio.Event()
        if finished:
            self.finished.set()


def check_buffer(buffer: object) -> None:
    """Raise ``TypeError`` or ``ValueError`` if ``buffer`` is neither a number of events nor callable."""
    if callable(buffer):
        return
    if type(buffer) is not int:
        raise TypeError(f"buffer is a number of events or a factory of asyncio.Queue, not {buffer!r}")
    if buffer < 1:
        raise ValueError(f"buffer is 1 event or more, not {buffer!r}: without a bound a slow client fills the memory")


def _create_buffer(buffer: int | Callable[[], EventQueue], owner: EventChannel) -> ChannelQueue:
    check_buffer(buffer)
    if not callable(buffer):
        return BoundedQueue(buffer, owner)
    queue = buffer()
    if not isinstance(queue, asyncio.Queue):
        raise TypeError(f"buffer is a number of events or a factory of asyncio.Queue; {buffer!r} returned {queue!r}")
    if isinstance(queue, ChannelQueue):
        if queue._channel_owner is not _NO_CHANNEL:
            raise ValueError(
                f"each stream needs its own queue; {buffer!r} returned {queue!r}, which another open stream uses"
            )
    else:
        queue_class: type[object] = type(queue)
        try:
            # The class is replaced in place, because the application may keep a reference to its queue and put into it.
            queue.__class__ = _derive_class(queue_class)  # type: ignore[arg-type]  # mypy: a class is not Hashable
        except TypeError as error:
            raise TypeError(f"{queue!r} cannot be a channel's buffer: {error}") from error
        assert isinstance(queue, ChannelQueue)  # noqa: S101  # because of its new class
    queue._channel_owner = owner
    return queue


@lru_cache(64)
def _derive_class(queue_class: type[object]) -> type[ChannelQueue]:
    """Derive a class from ``ChannelQueue`` and that of an application's queue, under the name of the latter."""
    names = {"__slots__": (), "__module__": queue_class.__module__, "__qualname__": queue_class.__qualname__}
    derived: type[ChannelQueue] = new_class(
        queue_class.__name__, (ChannelQueue, queue_class), {}, lambda namespace: namespace.update(names)
    )
    return derived


def _as_event(event: Event | str) -> Event:
    if isinstance(event, Event):
        return event
    if isinstance(event, str):
        return Event(event)
    raise TypeError(f"put takes an Event or a str, not {event!r}; Event.json(value) makes an event of anything else")


def _drain(buffer: ChannelQueue) -> Iterator[Event]:
    while not buffer.empty():
        yield buffer._channel_get()


def _create_waiter() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


def _wake_all(waiters: Iterable[asyncio.Future[None]] | None) -> bool:
    """Wake all waiting tasks. Return whether there were any."""
    woken = False
    for waiter in waiters or ():
        if not waiter.cancelled():  # a waiter that is done belongs to a task that was woken, and has not run yet
            woken = True
            if not waiter.done():
                waiter.set_result(None)
    return woken


def _fail_all(waiters: Iterable[asyncio.Future[None]]) -> bool:
    """Make all waiting tasks raise ``ChannelClosed``. Return whether there were any."""
    failed = False
    for waiter in list(waiters):
        if not waiter.done():
            waiter.set_exception(ChannelClosed("the channel of this queue is closed"))
            failed = True
    return failed


def _do_nothing() -> None:
    pass
