"""Records of some topics in the process itself: ``Hub.listen`` returns a ``Listener``."""

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
    """Records are missing for a ``Listener``: it was too slow, or the history does not have what it asked for.

    Args:
        gap: What is missing.
    """

    def __init__(self, gap: Gap) -> None:
        super().__init__(f"records after {gap.after} are missing: {gap.reason}")
        self.gap: Gap = gap
        """What is missing."""


class Listener:
    """An async iterator over the records of some topics, with the guarantees of a stream.

    ``async with hub.listen("orders.>") as records`` ends the subscription at the end of the block. Without it, the
    subscription ends when the iterator is deleted. Not thread-safe. ``Hub.listen`` makes listeners.

    Args:
        buffer: Number of records to hold for the consumer.
        on_gap: What happens if records are missing, as for ``Hub.listen``.
    """

    def __init__(self, buffer: int, on_gap: OnGap) -> None:
        self._sink = _ListenerSink(buffer, raises=on_gap == "close")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Record | Gap:
        """Return the next record, or a ``Gap`` with ``on_gap="signal"``. Cancelling is safe: no record is lost.

        Raises:
            StopAsyncIteration: ``aclose`` was called, or the Hub was closed.
            Lagged: Records are missing, and ``on_gap`` is ``"close"``.
            Exception: What ``select`` raised.
        """
        return await self._sink.next()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the subscription, and drop the records that were not read. Idempotent."""
        self._sink.close()

    def __del__(self) -> None:
        with suppress(RuntimeError, AttributeError):  # the event loop is closed, or the constructor raised
            self._sink.subscription.call_threadsafe(self._sink.close)


class _ListenerSink:
    """The buffer of a listener. The Hub refers to it and not to the listener, which can therefore be deleted."""

    encoder = staticmethod(as_records)
    subscription: RecordSubscription

    def __init__(self, buffer: int, *, raises: bool) -> None:
        self.paused: bool = False
        self._buffer = buffer
        self._raises = raises  # for a gap
        self._items: deque[Record | Gap] = deque()
        self._ended = False
        self._error: BaseException | None = None  # raised once, after the items
        self._waiters: list[asyncio.Future[None]] = []

    def write(self, payload: bytes, now: float) -> None:
        """Not called: the records are written by ``write_records``."""

    def write_records(self, records: list[Record], gap: Gap | None) -> None:
        if gap is not None:
            if self._raises:
                self._end(Lagged(gap))
                self.subscription.close()
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

    def ended(self, reason: CloseReason, error: BaseException | None) -> None:  # noqa: ARG002
        self._end(error)

    def close(self) -> None:
        self.subscription.close()
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
