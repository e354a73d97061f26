"""Channels that carry events from producers to an event stream.

Producers put events into an ``EventChannel``. The stream removes them in batches and writes them to the client. By
default, events are buffered in a ``BoundedQueue``. When this buffer is full, ``put`` waits until it has room, which
applies backpressure to the producer. Applications can use any other ``asyncio.Queue`` as the buffer.
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
    """The reason why a stream ended. It appears in the log and is passed to ``on_close``."""

    CLIENT_LEFT = "client_left"
    """The client disconnected."""
    CLOSED = "closed"
    """The channel was closed and all of its events were sent."""
    ERROR = "error"
    """The producer, another function of the application, or the buffer raised an exception."""
    SHUTDOWN = "shutdown"
    """The server is shutting down."""
    STALLED = "stalled"
    """The client did not acknowledge any data for ``stall_timeout`` seconds."""
    LAGGED = "lagged"
    """``on_gap`` is "close" and the client fell so far behind that its next record was evicted from the history."""
    EXPIRED = "expired"
    """The stream reached its ``max_age``."""
    KICKED = "kicked"
    """The application ended the stream, or a newer stream with the same key replaced it."""


class EventChannel:
    """A channel that carries events from one or more producers to a single stream.

    Once the channel is closed, it does not accept any more events, but the stream still sends the events in the buffer.
    Once the stream has ended, ``reason`` is set. See ``end`` for what happens to events that are still in the buffer.

    This class is not thread-safe, except for ``put_threadsafe``. While the event loop of the stream is running, calling
    another method from a different thread raises ``RuntimeError`` and has no effect. Properties do not check the
    thread.

    Args:
        buffer: Maximum number of events in the buffer, or a function that creates an ``asyncio.Queue``. The ``full``
            and ``put_nowait`` methods of that queue determine whether an event waits for room, is dropped, or replaces
            another event.
        retry: Reconnection time in milliseconds. It is sent with the first event that is not just a comment.
        max_event_size: Maximum size of an encoded event, in bytes. If ``None``, the size is not limited.

    Raises:
        TypeError: If ``buffer`` is neither an integer nor callable, or if it returns something other than an
            ``asyncio.Queue``.
        ValueError: If ``buffer`` is less than 1, or if it returns the queue of another open stream.
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
    """The reason why the stream ended, or ``None`` if it has not ended yet."""

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
        # These are created on first use because most streams never have a waiting task.
        self._putters: deque[asyncio.Future[None]] | None = None
        self._close_waiters: list[asyncio.Future[None]] | None = None
        self._on_ready: Callable[[], None] = _do_nothing
        self._on_overflow: Callable[[], None] = _do_nothing
        # Whether to call _on_ready for the next event. Each call to _get_frames() sets this to True.
        self._notify_stream = True
        # Event loop of the stream and the ID of its thread. They are None and 0 until _attach() is called.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread_id = 0
        self._closed = False
        # Whether a producer has observed the end, either because it was waiting in put() or wait_closed() at that time,
        # or because it has called put() since then.
        self._end_observed = False
        self.reason = None

    @property
    def closed(self) -> bool:
        """Whether the channel has stopped accepting events.

        Events in the buffer are still sent, unless the stream ends first.
        """
        return self._closed

    @property
    def buffer(self) -> EventQueue:
        """The queue of events that are waiting to be sent. You can also put events into it directly."""
        return self._buffer

    @property
    def buffered(self) -> int:
        """Number of events that are waiting to be sent, including the notices of a ``LossyQueue``."""
        return self._buffer.qsize()

    @property
    def lossy(self) -> bool:
        """Whether the buffer is a ``LossyQueue`` and may drop events."""
        return self._lossy_buffer is not None

    @property
    def dropped(self) -> int:
        """Number of events that the buffer has dropped. This is always 0 unless the buffer is a ``LossyQueue``."""
        return 0 if self._lossy_buffer is None else self._lossy_buffer.dropped

    async def put(self, event: Event | str) -> bool:
        """Put an event into the channel, waiting until the buffer has room.

        If several tasks are waiting, they are served in the order in which they called ``put``.

        Cancelling ``put`` is safe and leaves the channel unchanged. This makes it possible to enforce a timeout by
        wrapping ``put`` in ``asyncio.timeout``.

        Args:
            event: Event to send, or its data.

        Returns:
            ``True`` if the event was put into the channel, or ``False`` if the channel is closed. When the channel is
            closed or the stream ends, pending calls return ``False``.

        Raises:
            TypeError: If ``event`` is neither an ``Event`` nor a ``str``.
            ValueError: If ``event`` is a ``str`` that cannot be encoded as UTF-8.
            EventTooLarge: If the event exceeds ``max_event_size``.
            RuntimeError: If this method is called outside the event loop's thread.
            Exception: Any exception raised by the application's queue.
        """
        if type(event) is not Event or self._max_event_size is not None:
            event = self._validate(event)
        if get_ident() != self._thread_id:
            self._check_thread("await channel.put(event)", _PUT_THREADSAFE)
        if self._closed:
            self._end_observed = True
            await asyncio.sleep(0)  # prevent a producer that ignores the result from blocking the event loop
            return False
        if (self._putters or self._buffer.full()) and not await self._wait_for_room():
            return False
        self._put(event)
        return True

    def put_nowait(self, event: Event | str) -> bool:
        """Put an event into the channel without waiting.

        Args:
            event: Event to send, or its data.

        Returns:
            ``True`` if the event was put into the channel, or ``False`` if the channel is closed.

        Raises:
            ChannelFull: If the buffer has no room.
            TypeError: If ``event`` is neither an ``Event`` nor a ``str``.
            ValueError: If ``event`` is a ``str`` that cannot be encoded as UTF-8.
            EventTooLarge: If the event exceeds ``max_event_size``.
            RuntimeError: If this method is called outside the event loop's thread.
            Exception: Any exception raised by the application's queue.
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
        """Put an event into the channel from any thread.

        Events that are put by the same thread keep their order.

        If the event is still waiting for room, cancelling the future withdraws it. Since this races with the event
        loop, the event may be sent even though the future was cancelled.

        Args:
            event: Event to send, or its data.

        Returns:
            A future for the return value of ``put``. It can be ignored. In the event loop's thread, calling
            ``result()`` before the future is done raises ``RuntimeError`` instead of deadlocking. Use
            ``await asyncio.wrap_future(future)`` in that thread.

        Raises:
            TypeError: If ``event`` is neither an ``Event`` nor a ``str``.
            ValueError: If ``event`` is a ``str`` that cannot be encoded as UTF-8.
            EventTooLarge: If the event exceeds ``max_event_size``.
            RuntimeError: If the channel has no stream yet, or if the event loop is closed.
        """
        event = self._validate(event)
        if self._loop is None:
            raise RuntimeError("the channel is not attached to a stream yet, and has no event loop")
        return run_in_loop(self._loop, lambda: self.put(event))

    def close(self) -> None:
        """Stop accepting events. The stream ends once all events in the buffer have been written to the transport.

        This method returns immediately. Pending calls to ``put`` return ``False``. Closing a channel more than once has
        no effect.
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

        With ``CloseReason.KICKED``, events in the buffer are written only until the transport pauses. Pending calls to
        ``put`` and ``wait_closed`` return. If the stream has already ended, the first reason is kept.

        Args:
            reason: Reason to report. Applications should use ``CloseReason.KICKED``.
        """
        if get_ident() != self._thread_id:
            self._check_thread("end(reason)", "loop.call_soon_threadsafe(stream.end, reason)")
        if self.reason is None:
            self.reason = reason
            was_closed = self._closed
            self.close()
            if was_closed:
                self._on_ready()  # in this case, close() does not notify the stream again
            self._on_ready = self._on_overflow = _do_nothing
            self._end_observed = _wake_all(self._close_waiters) or self._end_observed
            self._buffer._channel_detach()

    async def wait_closed(self) -> CloseReason:
        """Wait until the stream has ended.

        This may take longer than closing the channel, because the events in the buffer are sent first.

        Cancelling ``wait_closed`` is safe.

        Returns:
            The reason why the stream ended.
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

    # Methods called by the stream

    def _attach(self, on_ready: Callable[[], None], on_overflow: Callable[[], None] | None = None) -> None:
        """Bind the channel to a stream and to the running event loop.

        ``on_ready`` is called for the first event that is put after each call to ``_get_frames``. It is also called
        when the channel is closed or ended. ``on_overflow`` is called before a ``LossyQueue`` drops an event. This
        gives the stream a chance to write events first.
        """
        self._loop = asyncio.get_running_loop()
        self._thread_id = get_ident()
        self._on_ready = on_ready
        self._on_overflow = on_overflow or _do_nothing

    def _get_frames(self, min_bytes: int) -> list[bytes]:
        """Remove events from the buffer and encode them until the frames contain at least ``min_bytes`` bytes.

        The caller must call ``_frames_written`` once it has written the frames.
        """
        buffer = self._buffer
        bounded = buffer if type(buffer) is BoundedQueue else None
        events: Iterable[Event]
        if min_bytes <= 0:
            events = ()
        elif bounded is not None:  # the events are removed below, all at once, to save a call per event
            events = bounded._queue
        else:
            events = _drain(buffer)
        frames: list[bytes] = []
        size = 0
        for event in events:
            # Don't send ``retry`` with a comment because the frame would then end with a blank line. Some clients
            # dispatch an empty event when they receive a blank line.
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
        """Mark ``count`` events as done so that ``buffer.join()`` can return."""
        self._buffer._channel_done(count)

    # Methods called by the buffer when the application puts events directly into it or removes events from it

    def _check_put(self, item: Event | str) -> Event:
        """Validate an event that is put directly into the buffer.

        If the buffer is a ``LossyQueue`` and is full, let the stream write events before one is dropped.

        Raises ``ChannelClosed`` if the channel is closed, and the same exceptions as ``_validate``.
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
        """Notify the stream that the buffer contains events."""
        if self._notify_stream:
            self._on_ready()
            self._notify_stream = False

    def _event_removed(self) -> None:
        """Called when the application has removed an event from the buffer. Wakes a task that is waiting for room."""
        if self._putters:
            self._wake_putters(1)

    # Private methods

    def _validate(self, event: Event | str) -> Event:
        """Convert ``event`` to an ``Event`` and check its size.

        Raises ``TypeError``, ``ValueError`` or ``EventTooLarge`` if the event is not valid.
        """
        event = _as_event(event)
        limit = self._max_event_size
        if limit is not None and is_larger(event, limit):
            raise EventTooLarge(
                f"the event has {len(encode(event))} bytes and max_event_size is {limit}: {str(event)[:60]}…"
            )
        return event

    def _check_thread(self, call: str, alternative: str) -> None:
        """Raise ``RuntimeError`` when called from a thread other than the event loop's."""
        if self._loop is not None:
            check_loop(self._loop, call, alternative)

    def _put(self, event: Event) -> None:
        lossy = self._lossy_buffer
        if lossy is not None and lossy.qsize() >= lossy.maxsize:
            self._on_overflow()
        if self._notify_stream:  # same as _notify(), inlined because put() is a hot path
            self._on_ready()  # called first so that the event is not in the buffer if this raises
            self._notify_stream = False
        self._buffer._channel_put(event)

    async def _wait_for_room(self) -> bool:
        """Wait until the buffer has room, in the order of the calls. Return whether the channel is still open."""
        if self._putters is None:
            self._putters = deque()
        waiter = _create_waiter()
        self._putters.append(waiter)
        try:
            await waiter
            # Removing one event does not always make enough room, because an application's queue may limit something
            # other than the number of events, such as their size.
            while self._buffer.full() and not self._closed:
                index = self._putters.index(waiter)
                self._putters[index] = waiter = _create_waiter()
                await waiter
        except asyncio.CancelledError:
            self._wake_putters(1)  # this task may already have been woken, so wake the next one instead
            raise
        finally:
            self._putters.remove(waiter)
        return not self._closed

    def _wake_putters(self, count: int) -> None:
        """Wake up to ``count`` tasks that have not been woken yet. The tasks remove their waiters themselves."""
        for waiter in islice((waiter for waiter in self._putters or () if not waiter.done()), count):
            waiter.set_result(None)


class _NoChannel:
    """Replaces the channel of a queue once the stream has ended.

    Putting an event raises ``ChannelClosed``. All other methods do nothing.
    """

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
    """Base class for queues that a channel uses as its buffer.

    ``put`` and ``put_nowait`` validate the event and notify the stream. Once the channel is closed, they raise
    ``ChannelClosed``. This includes calls to ``put`` that are already waiting. ``join`` returns once all events have
    been written or the stream has ended.
    """

    # _create_buffer() creates a class that inherits from this class and the class of the application's queue. New
    # attributes have a prefix so that they do not clash with the attributes of the application's class.
    __slots__ = ()
    _channel_owner: EventChannel | _NoChannel = _NO_CHANNEL
    if TYPE_CHECKING:  # private attributes, used because asyncio.Queue has no public API for waking tasks

        @property
        def _putters(self) -> deque[asyncio.Future[None]]: ...
        @property
        def _getters(self) -> deque[asyncio.Future[None]]: ...
        @property
        def _finished(self) -> asyncio.Event: ...
        def _wakeup_next(self, waiters: deque[asyncio.Future[None]]) -> None: ...

    def put_nowait(self, item: Event | str) -> None:
        """Put an event into the queue without waiting.

        Raises ``asyncio.QueueFull`` if the queue is full, ``ChannelClosed`` if the channel is closed, and the same
        exceptions as ``EventChannel.put``.
        """
        owner = self._channel_owner
        super().put_nowait(owner._check_put(item))
        owner._notify()  # in case an application's queue overrides put_nowait() without calling _put()

    async def put(self, item: Event | str) -> None:
        """Put an event into the queue, waiting until it has room. Cancelling ``put`` is safe.

        Raises the same exceptions as ``put_nowait``, except for ``QueueFull``.
        """
        # Check the event now in order to fail before waiting. put_nowait() checks it again because the channel may be
        # closed in the meantime.
        await super().put(self._channel_owner._check_put(item))

    def get_nowait(self) -> Event:
        """Remove and return an event. The stream will not send this event.

        Raises ``asyncio.QueueEmpty`` if the queue is empty.
        """
        self._channel_owner._check_get()
        event = self._channel_get()
        self._channel_owner._event_removed()
        return event

    async def get(self) -> Event:
        """Remove and return an event, waiting until there is one. The stream will not send this event.

        Cancelling ``get`` is safe.

        Raises ``ChannelClosed`` once the stream has ended and the queue is empty.
        """
        self._channel_owner._check_get()
        if self._channel_owner is _NO_CHANNEL and self.empty():
            raise ChannelClosed("the stream of this queue has ended, and no event will be put")
        return await super().get()

    if sys.version_info >= (3, 13):

        def shutdown(self, immediate: bool = False) -> None:  # noqa: FBT001, FBT002  # asyncio's signature
            """Close the channel. If ``immediate`` is true, drop the events in the queue."""
            self._channel_owner._check_get()
            super().shutdown(immediate)
            self._channel_owner.close()

    def _put(self, item: Event) -> None:
        self._channel_owner._notify()  # called first so that the event is not in the queue if this raises
        super()._put(item)

    # Methods called by the channel

    def _channel_put(self, event: Event) -> None:
        """Append an event. The caller has already validated it and notified the stream."""
        super().put_nowait(event)

    def _channel_get(self) -> Event:
        return super().get_nowait()

    def _channel_done(self, count: int) -> None:
        """Mark ``count`` events as done."""
        try:
            for _ in range(count):
                self.task_done()
        except ValueError:  # raised if the application's queue does not count unfinished tasks
            pass

    def _channel_fail_puts(self) -> bool:
        """Make pending calls to ``put`` raise ``ChannelClosed``. Return whether there were any."""
        return _fail_all(self._putters)

    def _channel_detach(self) -> None:
        """Detach the queue from its channel.

        Pending calls to ``put`` and ``get`` raise ``ChannelClosed``. Pending calls to ``join`` return.
        """
        self._channel_owner = _NO_CHANNEL
        _fail_all(self._putters)
        _fail_all(self._getters)
        self._finished.set()


class BoundedQueue(ChannelQueue):
    """The default buffer of a channel.

    It is an ``asyncio.Queue`` that does not allocate anything until it is used. This matters because there is one
    buffer per open stream and most buffers are empty most of the time.
    """

    __slots__ = ("_channel_owner", "_maxsize", "_queue", "_unfinished_tasks", "_waiters")

    _is_shutdown = False  # set by asyncio.Queue.__init__() from Python 3.13 on

    def __init__(self, maxsize: int, owner: EventChannel) -> None:  # do not call super() because it allocates
        self._channel_owner: EventChannel | _NoChannel = owner
        self._maxsize = maxsize
        # All events are usually removed at once. In this case, a list is smaller and faster than a deque.
        self._queue: list[Event] | deque[Event] | tuple[()] = ()
        self._unfinished_tasks = 0
        self._waiters: _Waiters | None = None

    def full(self) -> bool:
        """Return whether the queue is full, in which case ``put`` waits."""
        return len(self._queue) >= self._maxsize

    def put_nowait(self, item: Event | str) -> None:
        """Put an event into the queue without waiting.

        Raises ``ChannelFull`` if the queue is full, ``ChannelClosed`` if the channel is closed, and the same exceptions
        as ``EventChannel.put``.
        """
        event = self._channel_owner._check_put(item)
        if self.full():
            raise ChannelFull(f"the queue holds {self.qsize()} events and has no room; put() waits for room")
        self._channel_owner._notify()
        self._channel_put(event)

    async def join(self) -> None:
        """Wait until all events have been written or the stream has ended. Cancelling ``join`` is safe."""
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
        """Remove the first ``count`` events. Wake up to ``count`` tasks that are waiting in ``put`` of this queue."""
        queue = self._queue
        if count == len(queue):
            self._queue = ()  # free the memory used by a burst of events
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

    # Attributes of asyncio.Queue that are created on first use

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
    """The state that an ``asyncio.Queue`` needs only while tasks are waiting."""

    __slots__ = ("finished", "getters", "putters")

    def __init__(self, *, finished: bool) -> None:
        self.getters: deque[asyncio.Future[None]] = deque()
        self.putters: deque[asyncio.Future[None]] = deque()
        self.finished = asyncio.Event()
        if finished:
            self.finished.set()


def check_buffer(buffer: object) -> None:
    """Check that ``buffer`` is callable or a valid number of events.

    Raises ``TypeError`` if ``buffer`` is neither an integer nor callable, and ``ValueError`` if it is less than 1.
    """
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
            # Change the class of the existing object because the application may keep a reference to its queue and put
            # events into it.
            queue.__class__ = _derive_class(queue_class)  # type: ignore[arg-type]  # mypy: a class is not Hashable
        except TypeError as error:
            raise TypeError(f"{queue!r} cannot be a channel's buffer: {error}") from error
        assert isinstance(queue, ChannelQueue)  # noqa: S101  # because of its new class
    queue._channel_owner = owner
    return queue


@lru_cache(64)
def _derive_class(queue_class: type[object]) -> type[ChannelQueue]:
    """Create a class that inherits from ``ChannelQueue`` and ``queue_class``. It has the name of ``queue_class``."""
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
        if not waiter.cancelled():  # if the waiter is done, its task was woken but has not run yet
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
