"""What the brokers of all engines share.

``BaseBroker`` is the broker itself: ``publish``, ``tail`` and ``close`` over the few operations that an engine
implements. ``BatchWriter`` gathers publishes into writes (group commit), and ``connect_within`` connects with a
timeout, whatever the client library does with one.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

from .._tasks import cancel_and_wait, check_cancelled
from ..exceptions import BrokerDown, BrokerError, OutcomeUnknown
from ..hub.broker import LogPosition, Subscribed, TailItem

__all__ = [
    "AppendRequest",
    "AppendResult",
    "BaseBroker",
    "BatchWriter",
    "LogRetention",
    "Tail",
    "WriteBatch",
    "connect_within",
    "lost_before_erasing",
]


MAX_BATCH_REQUESTS = 500  # in one write, and
MAX_BATCH_BYTES = 2**20  # of payload: a larger write would keep the server busy and delay other clients
WRITE_CLEANUP = 2.0  # seconds that a write has to clean up after it was cancelled
CONNECT_CLEANUP = 0.25  # seconds that a connection attempt has to finish, and again after it was cancelled

C = TypeVar("C")


class LogRetention(NamedTuple):
    """How much of its log a broker keeps: entries are deleted at whichever limit is reached first."""

    max_records: int
    max_age: float | None
    """In seconds; ``None`` is no limit."""


class AppendRequest(NamedTuple):
    """An entry to append to the log."""

    topic: str
    payload: bytes
    idempotency_key: str | None


AppendResult: TypeAlias = LogPosition | BrokerError
WriteBatch: TypeAlias = Callable[[Sequence[AppendRequest]], Awaitable[Sequence[AppendResult]]]
_Pending: TypeAlias = tuple[asyncio.Future[LogPosition], AppendRequest]


class Tail(Protocol):
    """One tail of a log. The methods raise ``BrokerError`` when the server is lost."""

    async def start(self, after: LogPosition | None) -> Subscribed:
        """Start after a position, or before the first entry of the log. Called once."""
        ...

    async def poll(self) -> Sequence[TailItem]:
        """Return the next items, or nothing if there are none for some time. Called until the tail is closed."""
        ...

    async def close(self) -> None:
        """Release the connection. Called once, also after an error or a cancellation."""
        ...


class BaseBroker(ABC):
    """A ``Broker`` on a server or a file.

    An engine implements ``_write``, ``_erase``, ``_open_tail`` and ``_disconnect``. ``MemoryBroker`` does not derive
    from this class: it stores without waiting, and has nothing to batch or to connect to.
    """

    def __init__(self, publish_timeout: float) -> None:
        self._writer = BatchWriter(self._write, publish_timeout)

    async def publish(
        self, topic: str, payload: bytes, *, idempotency_key: str | None = None, connection: object = None
    ) -> LogPosition | None:
        """Append an entry to the log.

        If the call is cancelled, the entry may be stored or not; other calls are not affected.

        Args:
            topic: The topic of the entry.
            payload: The bytes that every tail receives.
            idempotency_key: Calls with the same key within two minutes append one entry.
            connection: Supported only by ``PostgresBroker``.

        Returns:
            The position of the entry. With a key that was used before, that of the first entry.

        Raises:
            TypeError: ``connection`` was given.
            ValueError: The key cannot be encoded as UTF-8.
            BrokerDown: The entry was not stored. It is safe to retry.
            OutcomeUnknown: The entry may have been stored. It is safe to retry with the same key.
            BrokerRefused: The entry was not stored, and a retry will fail too.
        """
        if connection is not None:
            raise TypeError(f"{type(self).__name__} does not support `connection`; only PostgresBroker does")
        if idempotency_key is not None:
            idempotency_key.encode()  # within a batch it would fail the other requests too
        return await self._writer.append(AppendRequest(topic, payload, idempotency_key))

    async def tail(self, after: LogPosition | None) -> AsyncGenerator[TailItem, None]:
        """Follow the log after a position.

        Cancelling and closing the generator are safe.

        Args:
            after: The position of the last entry that was received, or ``None`` for the whole log.

        Yields:
            ``Subscribed`` first, then entries and events of the log as ``Broker`` describes them.

        Raises:
            BrokerDown: The server cannot be reached, or was lost.
            BrokerRefused: The server answers with an error that a retry does not resolve.
        """
        tail = await self._open_tail()
        try:
            yield await tail.start(after)
            while True:
                for item in await tail.poll():
                    yield item
        except OutcomeUnknown as error:  # for a reader, a request without an answer is a lost server
            raise BrokerDown(str(error)) from error
        finally:
            await tail.close()

    async def erase(self, topic: str, before: LogPosition) -> None:
        """Delete the contents of the entries of a topic before a position. Idempotent.

        Cancelling leaves the outcome unknown, and a second call completes it. A large log is erased in steps, between
        which others publish.

        Args:
            topic: The topic.
            before: The position of a later entry of this topic.

        Raises:
            BrokerDown: The server cannot be reached, or stopped answering. Some entries may be erased.
            OutcomeUnknown: The same, or the broker has lost the entry at the position.
            BrokerRefused: The server refused, and a retry will fail too.
        """
        if self._writer.closed:
            raise BrokerDown(f"{topic!r} was to be erased after the broker was closed")
        await self._erase(topic, before)

    async def close(self) -> None:
        """Finish the publishes in progress, within ``publish_timeout`` seconds, and disconnect. Idempotent."""
        await self._writer.close()
        await self._disconnect()

    @abstractmethod
    async def _write(self, requests: Sequence[AppendRequest]) -> Sequence[AppendResult]:
        """Append entries in their order. Raise a ``BrokerError`` that holds for all of them. Never concurrent."""

    @abstractmethod
    async def _erase(self, topic: str, before: LogPosition) -> None:
        """Erase entries, in steps that each end in a bounded time. Raise a ``BrokerError``. May be concurrent."""

    @abstractmethod
    async def _open_tail(self) -> Tail:
        """Connect, and return a tail that is not started."""

    @abstractmethod
    async def _disconnect(self) -> None:
        """Close the connections that are not those of a tail. Idempotent."""


class BatchWriter:
    """Appends entries one batch at a time: requests that arrive during a write go into the next one.

    Writes run in a separate task, so that cancelling a publish does not close a connection.

    Args:
        write: Stores requests in their order and returns one result for each, or raises a ``BrokerError`` for all.
        timeout: Seconds until ``append`` raises and the write is cancelled. A write that ignores the cancellation is
            cancelled again two seconds later.
    """

    def __init__(self, write: WriteBatch, timeout: float) -> None:
        self._write = write
        self._timeout = timeout
        self._pending: OrderedDict[asyncio.Future[LogPosition], AppendRequest] = OrderedDict()  # not yet in a write
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    async def append(self, request: AppendRequest) -> LogPosition:
        """Store an entry and return its position. Raises ``BrokerError`` within the timeout. Cancelling is safe."""
        if self._closed:
            raise BrokerDown(f"an event under {request.topic!r} was published after the broker was closed")
        future: asyncio.Future[LogPosition] = asyncio.get_running_loop().create_future()
        self._pending[future] = request
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        try:
            async with asyncio.timeout(self._timeout):
                return await future
        except TimeoutError:
            what = f"no answer from the broker within {self._timeout} s for an event under {request.topic!r}"
            if future in self._pending:
                raise BrokerDown(f"{what}, which was not sent") from None
            raise OutcomeUnknown(what) from None
        finally:
            self._pending.pop(future, None)

    async def close(self) -> None:
        """Refuse further requests, and finish those in progress within the timeout. Idempotent."""
        self._closed = True
        if self._task is not None:
            await asyncio.wait([self._task], timeout=self._timeout)
        if self._task is not None:  # every request has its result or has timed out
            await cancel_and_wait(self._task, WRITE_CLEANUP, "a write to the broker after its timeout")

    async def _run(self) -> None:
        try:
            while self._pending:
                batch = self._next_batch()
                results = await self._results([request for _, request in batch])
                for (future, _), result in zip(batch, results, strict=True):
                    if future.done():
                        continue
                    if isinstance(result, BrokerError):
                        future.set_exception(result)
                    else:
                        future.set_result(result)
                check_cancelled()
        finally:
            self._task = None

    def _next_batch(self) -> list[_Pending]:
        batch = [self._pending.popitem(last=False)]
        size = len(batch[0][1].payload)
        while self._pending and len(batch) < MAX_BATCH_REQUESTS and size < MAX_BATCH_BYTES:
            batch.append(self._pending.popitem(last=False))
            size += len(batch[-1][1].payload)
        return batch

    async def _results(self, requests: Sequence[AppendRequest]) -> Sequence[AppendResult]:
        error: BrokerError
        try:
            # The outer timeout cancels a client that swallowed the inner one, which would block all later writes.
            async with asyncio.timeout(self._timeout + WRITE_CLEANUP), asyncio.timeout(self._timeout):
                return await self._write(requests)
        except TimeoutError:
            error = OutcomeUnknown(f"no answer from the broker within {self._timeout} s")
        except BrokerError as failure:
            error = failure
        except (Exception, asyncio.CancelledError) as failure:  # a defect: the entries may have been stored
            task = asyncio.current_task()
            if isinstance(failure, asyncio.CancelledError) and task is not None and task.cancelling():
                raise  # otherwise it came from the client, which may cancel its own requests when it closes
            error = OutcomeUnknown(f"publishing failed: {failure!r}")
            error.__cause__ = failure
        return [_copy(error) for _ in requests]


def lost_before_erasing(topic: str) -> OutcomeUnknown:
    """Return the error for an erasure up to an entry that the log does not have."""
    return OutcomeUnknown(f"the broker has lost its latest entries, and with them the erasure of {topic!r}; repeat it")


def _copy(error: BrokerError) -> BrokerError:
    """Copy an error, so that each caller raises a separate instance."""
    copy = type(error)(*error.args).with_traceback(error.__traceback__)
    copy.__cause__ = error.__cause__
    return copy


_closing: set[asyncio.Future[None]] = set()  # strong references: the event loop holds only weak ones


async def connect_within(
    connect_timeout: float, connecting: Coroutine[object, object, C], close: Callable[[C], Awaitable[None]], what: str
) -> C:
    """Return the connection that a coroutine makes, or raise after ``connect_timeout`` seconds.

    The coroutine runs in a task that is cancelled at the timeout. If the caller is cancelled, the task first has a
    moment to finish, because a client that is cancelled while it connects may leave its connection open. A connection
    that is made after the timeout is closed.

    Raises:
        TimeoutError: The timeout is over.
        Exception: Whatever the coroutine raises.
    """
    task = asyncio.create_task(connecting)
    try:
        await asyncio.wait([task], timeout=connect_timeout)
    except asyncio.CancelledError:
        try:
            await asyncio.wait([task], timeout=CONNECT_CLEANUP)
        finally:
            await _abandon(task, close, what)
        raise
    if not task.done():
        await _abandon(task, close, what)
        raise TimeoutError
    return task.result()


async def _abandon(task: asyncio.Task[C], close: Callable[[C], Awaitable[None]], what: str) -> None:
    try:
        await cancel_and_wait(task, CONNECT_CLEANUP, what)
    finally:
        if not task.done():
            task.add_done_callback(lambda task: _close_late(task, close))
        elif _has_connected(task):
            await close(task.result())


def _has_connected(task: asyncio.Task[C]) -> bool:
    return not task.cancelled() and task.exception() is None


def _close_late(task: asyncio.Task[C], close: Callable[[C], Awaitable[None]]) -> None:
    if _has_connected(task):
        closing = asyncio.ensure_future(close(task.result()))
        _closing.add(closing)
        closing.add_done_callback(_closing.discard)
