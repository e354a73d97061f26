"""What waits in a channel: an ``asyncio.Queue``, a lean one or the user's own."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Iterable
from functools import lru_cache
from types import new_class
from typing import TYPE_CHECKING, NoReturn, Protocol

from ..errors import ChannelClosed, ChannelFull
from .event import Event

__all__ = ["BoundedQueue", "ChannelQueue", "EventQueue", "Owner", "check_buffer", "new_buffer"]

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
