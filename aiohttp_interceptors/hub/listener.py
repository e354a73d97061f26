"""Listeners, which receive the records of some topics in the process itself. See ``Hub.listen``."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import Self

from ..channel import CloseReason
from .cursor import OnGap
from .dispatcher import RecordSubscription, as_records
from .record import Gap, Record

__all__ = ["Lagged", "Listener"]


class Lagged(Exception):
    """Raised when records are missing for a ``Listener``.

    This happens when the listener was too slow, or when it asked for records that are not in the history.

    Args:
        gap: The records that are missing.
    """

    def __init__(self, gap: Gap) -> None:
        super().__init__(f"records after {gap.after} are missing: {gap.reason}")
        self.gap: Gap = gap
        """The records that are missing."""


class Listener:
    """An asynchronous iterator over the records of some topics.

    A listener provides the same guarantees as a stream. Listeners are created by ``Hub.listen``. They are not
    thread-safe.

    ``async with hub.listen("orders.>") as records`` ends the subscription when exiting the block. If you do not use
    ``async with``, the subscription ends when the iterator is deleted.

    Args:
        buffer: The number of records to buffer for the consumer.
        on_gap: What to do when records are missing. See ``Hub.listen``.
    """

    def __init__(self, buffer: int, on_gap: OnGap) -> None:
        self._sink = _ListenerSink(buffer, raises=on_gap == "close")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Record | Gap:
        """Wait for the next record and return it.

        If ``on_gap`` is ``"signal"``, a ``Gap`` may be returned instead of a record. Cancellation is safe. There is no
        risk of losing a record.

        Raises:
            StopAsyncIteration: If ``aclose`` was called, the Hub was closed, or all topics are finished.
            Lagged: If records are missing and ``on_gap`` is ``"close"``.
            Exception: If ``select`` raised an exception.
        """
        return await self._sink.next()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the subscription and drop the records that were not read. This method is idempotent."""
        self._sink.close()

    def __del__(self) -> None:
        with suppress(RuntimeError, AttributeError):  # if the loop is closed, or the constructor failed
            self._sink.subscription.call_threadsafe(self._sink.close)


class _ListenerSink:
    """The buffer of a listener.

    The Hub holds a reference to this object rather than to the listener, so that the listener can be deleted.
    """

    encoder = staticmethod(as_records)
    subscription: RecordSubscription

    def __init__(self, buffer: int, *, raises: bool) -> None:
        self.paused: bool = False
        self._buffer = buffer
        self._raises = raises  # whether to raise Lagged if there is a gap
        self._items: deque[Record | Gap] = deque()
        self._ended = False
        self._error: BaseException | None = None  # raised once, after all items were read
        self._waiters: list[asyncio.Future[None]] = []

    def write(self, payload: bytes, now: float) -> None:
        """Do nothing. The Hub calls ``write_records`` instead."""

    def write_records(self, records: list[Record], gap: Gap | None) -> None:
        if gap is not None:
            if self._raises:
                self.subscription.close()
                self.subscription.drop_backlog()
                self._ended, self._error = True, Lagged(gap)
                self._wake()
                return
            self._items.append(gap)
        self._items.extend(records)
        if len(self._items) >= self._buffer:
            self.paused = True
            self.subscription.pause()
        self._wake()

    async def next(self) -> Record | Gap:
        while not self._items:
            if self._ended:
                more = self.subscription.write_backlog()
                if self._items:
                    break
                if more:
                    await asyncio.sleep(0)
                    continue
                error, self._error = self._error, None
                if error is not None:
                    raise error
                raise StopAsyncIteration
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                self._waiters.remove(waiter)
        item = self._items.popleft()
        if self.paused and len(self._items) <= self._buffer // 2:
            self.paused = False
            self.subscription.resume()
        return item

    def ended(self, reason: CloseReason, error: BaseException | None) -> None:
        if reason is not CloseReason.CLOSED:  # only a listener whose topics are finished gets the rest
            self.subscription.drop_backlog()
        self._end(error)

    def fail(self, error: BaseException) -> None:
        self._error = error
        self._wake()

    def close(self) -> None:
        self.subscription.close()
        self.subscription.drop_backlog()
        self._items.clear()
        self._end(None)

    def _end(self, error: BaseException | None) -> None:
        if not self._ended:
            self._ended, self._error = True, error
            self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
