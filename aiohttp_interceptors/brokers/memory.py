"""A broker within one process: a small reference for the ``Broker`` protocol, and a server to test applications with.

Several Hubs of a process share a ``MemoryLog``, which a test can stop, restart and truncate.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import suppress
from itertools import islice
from operator import attrgetter
from typing import NamedTuple

from .._checks import check_count
from ..exceptions import BrokerDown
from ..hub.broker import CaughtUp, DeduplicationWindow, Entry, LogPosition, Subscribed, TailItem, Trimmed, Truncated
from ..hub.epochs import new_epoch
from .base import lost_before_erasing

__all__ = ["MemoryBroker", "MemoryLog"]


MAX_ENTRIES = 500  # in one batch of a tail, so that the event loop runs other tasks between two batches
CONFIRM_INTERVAL = 1.0  # seconds between two CaughtUp of a tail
_offset = attrgetter("offset")


class _Stored(NamedTuple):
    offset: int
    topic: str
    payload: bytes
    time: float


class MemoryLog:
    """The log that several ``MemoryBroker`` share.

    ``stop``, ``restart`` and ``truncate`` do to it what happens to a server, so that a test can see how an application
    reacts.

    Args:
        max_records: Number of entries to keep. The oldest are deleted.

    Raises:
        TypeError: ``max_records`` is not an int.
        ValueError: ``max_records`` is less than 1.
    """

    def __init__(self, max_records: int = 100_000) -> None:
        check_count("max_records", max_records, 1)
        self.up: bool = True
        """Whether brokers can use the log."""
        self.end: int = 0
        """Offset of the newest entry."""
        self.trimmed: int = 0
        """Offset of the newest deleted entry, or 0."""
        self._epochs = [LogPosition(new_epoch(), 0)]  # where each begins
        self._entries: deque[_Stored] = deque()
        self._max_records = max_records
        self._deduplication: DeduplicationWindow[LogPosition] = DeduplicationWindow()
        self._changed: asyncio.Event = asyncio.Event()

    @property
    def epoch(self) -> str:
        """The epoch of new entries."""
        return self._epochs[-1].epoch

    @property
    def start(self) -> LogPosition:
        """The position before the first entry."""
        number = max(bisect_right(self._epochs, self.trimmed, key=_offset) - 1, 0)
        return LogPosition(self._epochs[number].epoch, self.trimmed)

    def append(self, topic: str, payload: bytes, idempotency_key: str | None) -> LogPosition:
        """Append an entry.

        Args:
            topic: The topic of the entry.
            payload: The bytes that every tail receives.
            idempotency_key: Calls with the same key within two minutes append one entry.

        Returns:
            The position of the entry, or of the earlier one with the same key.
        """
        now = asyncio.get_running_loop().time()
        repeated = None if idempotency_key is None else self._deduplication.find(idempotency_key, now)
        if repeated is not None:
            return repeated[0]
        self.end += 1
        self._entries.append(_Stored(self.end, topic, payload, now))
        if len(self._entries) > self._max_records:
            self.trimmed = self._entries.popleft().offset
        position = LogPosition(self.epoch, self.end)
        if idempotency_key is not None:
            self._deduplication.add(idempotency_key, position, now)
        self._notify()
        return position

    def erase(self, topic: str, before: LogPosition) -> None:
        """Delete the payloads of the entries of a topic before a position.

        Args:
            topic: The topic.
            before: The position of a later entry.

        Raises:
            OutcomeUnknown: The log was truncated since, and has lost that entry.
        """
        if before.epoch != self.epoch:
            raise lost_before_erasing(topic)
        for number, stored in enumerate(self._entries):
            if stored.offset >= before.offset:
                break
            if stored.topic == topic:
                self._entries[number] = stored._replace(payload=b"")

    def stop(self) -> None:
        """Stop, as a server does: tails end, and ``publish`` raises ``BrokerDown``. Idempotent."""
        self.up = False
        self._notify()

    def restart(self) -> None:
        """Start again with the same entries. Idempotent."""
        self.up = True

    def truncate(self, offset: int) -> None:
        """Lose entries, as a server does that acknowledged what it had not yet written to disk. Starts a new epoch.

        Args:
            offset: Offset of the last entry that is kept; 0 keeps none.
        """
        while self._entries and self._entries[-1].offset > offset:
            self._entries.pop()
        self._epochs = [LogPosition(begin.epoch, min(begin.offset, offset)) for begin in self._epochs]
        self._epochs.append(LogPosition(new_epoch(), offset))
        self.end, self.trimmed = offset, min(self.trimmed, offset)
        self._deduplication.discard_if(lambda position: position.offset > offset)
        self._notify()

    def after(self, position: LogPosition) -> Trimmed | Truncated | list[Entry]:
        """Return the entries that follow a position in its epoch, or why they do not follow.

        Args:
            position: The position of the last entry that was received.
        """
        number = next((number for number, begin in enumerate(self._epochs) if begin.epoch == position.epoch), None)
        if number is None:
            return Truncated(self.start)
        following = self._epochs[number + 1] if number + 1 < len(self._epochs) else None
        if following is not None and position.offset >= following.offset:
            return Truncated(following)
        end = self.end if following is None else following.offset
        if position.offset < self.trimmed:
            return Trimmed(min(self.trimmed, end))
        now = asyncio.get_running_loop().time()
        first = position.offset - self.trimmed
        last = min(first + MAX_ENTRIES, end - self.trimmed)
        return [
            Entry(stored.offset, stored.topic, stored.payload, now - stored.time)
            for stored in islice(self._entries, first, last)
        ]

    async def wait(self, seconds: float) -> None:
        """Wait for a change of the log. Cancelling is safe.

        Args:
            seconds: How long to wait at most.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class MemoryBroker:
    """A ``Broker`` within one process, for tests.

    Args:
        log: The log to use. Hubs whose brokers have the same log receive the same events.

    Raises:
        TypeError: ``log`` is not a ``MemoryLog``.
    """

    confirms: float = CONFIRM_INTERVAL
    """Seconds between two ``CaughtUp`` of a tail."""

    def __init__(self, log: MemoryLog) -> None:
        if not isinstance(log, MemoryLog):
            raise TypeError(f"a MemoryBroker takes the MemoryLog that its Hubs share, not {log!r}")
        self._log = log
        self._closed = False

    async def publish(
        self, topic: str, payload: bytes, *, idempotency_key: str | None = None, connection: object = None
    ) -> LogPosition:
        """Append an entry to the log.

        Args:
            topic: The topic of the entry.
            payload: The bytes that every tail receives.
            idempotency_key: Calls with the same key within two minutes append one entry.
            connection: Not supported.

        Returns:
            The position of the entry. With a key that was used before, that of the first entry.

        Raises:
            TypeError: ``connection`` was given.
            BrokerDown: The log is stopped, or this broker is closed.
        """
        if connection is not None:
            raise TypeError("MemoryBroker does not support `connection`; only PostgresBroker does")
        if self._closed:
            raise BrokerDown(f"an event under {topic!r} was published after the broker was closed")
        if not self._log.up:
            raise BrokerDown(f"an event under {topic!r} was not stored: the MemoryLog is stopped")
        return self._log.append(topic, payload, idempotency_key)

    async def erase(self, topic: str, before: LogPosition) -> None:
        """Delete the payloads of the entries of a topic before a position. Idempotent.

        Args:
            topic: The topic.
            before: The position of a later entry.

        Raises:
            BrokerDown: The log is stopped, or this broker is closed.
            OutcomeUnknown: The log was truncated since, and has lost that entry.
        """
        if self._closed or not self._log.up:
            raise BrokerDown(f"{topic!r} was not erased: the MemoryLog is stopped, or the broker closed")
        self._log.erase(topic, before)

    async def tail(self, after: LogPosition | None) -> AsyncGenerator[TailItem, None]:
        """Follow the log after a position, until the log is stopped.

        Cancelling and closing the generator are safe.

        Args:
            after: The position of the last entry that was received, or ``None`` for the whole log.

        Yields:
            ``Subscribed`` first, then entries and events of the log as ``Broker`` describes them.

        Raises:
            BrokerDown: The log is stopped.
        """
        log = self._log
        if not log.up:
            raise BrokerDown("the MemoryLog is stopped")
        position = after or log.start
        yield Subscribed(position)
        loop = asyncio.get_running_loop()
        next_confirmation = loop.time()
        while log.up:
            following, end = log.after(position), log.end
            if isinstance(following, Truncated):
                position = following.position
                yield following
            elif isinstance(following, Trimmed):
                position = LogPosition(position.epoch, following.through)
                yield following
            elif following:
                position = LogPosition(position.epoch, following[-1].offset)
                yield following
                await asyncio.sleep(0)
            is_at_end = not isinstance(following, Trimmed | Truncated) and position.offset >= end
            if is_at_end and loop.time() >= next_confirmation:
                next_confirmation = loop.time() + self.confirms
                yield CaughtUp()
            elif not following:
                await log.wait(next_confirmation - loop.time())

    async def close(self) -> None:
        """Refuse further publishes. Idempotent."""
        self._closed = True
