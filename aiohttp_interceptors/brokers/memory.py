"""Several Hubs of one process as one: the reference of what a broker is, and something for tests."""

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

__all__ = ["MemoryBroker", "MemoryLog"]


MOST = 500  # entries in one batch, so that others have their turn of the event loop in between
CONFIRMS = 1.0  # seconds after which a tail says again that it is up to date
_offset = attrgetter("offset")


class _Stored(NamedTuple):
    offset: int
    topic: str
    payload: bytes
    time: float


class MemoryLog:
    """What the Hubs have in common: the latest ``max_records`` entries, in one order.

    It can be taken away and lose something, so that a test sees what an application makes of that.
    """

    def __init__(self, max_records: int = 100_000) -> None:
        check_count("max_records", max_records, 1)
        self.up: bool = True
        self.end: int = 0
        self.trimmed: int = 0
        """The position of the latest entry that is gone."""
        self._epochs = [LogPosition(new_epoch(), 0)]  # where each begins
        self._entries: deque[_Stored] = deque()
        self._max_records = max_records
        self._repeats: DeduplicationWindow[LogPosition] = DeduplicationWindow()
        self._news: asyncio.Event = asyncio.Event()

    @property
    def epoch(self) -> str:
        """What is appended now is of this one."""
        return self._epochs[-1].epoch

    @property
    def start(self) -> LogPosition:
        """The place before the first entry."""
        era = max(bisect_right(self._epochs, self.trimmed, key=_offset) - 1, 0)
        return LogPosition(self._epochs[era].epoch, self.trimmed)

    def append(self, topic: str, payload: bytes, idempotency_key: str | None) -> LogPosition:
        """Append an entry, unless its key has come before, and return its place."""
        now = asyncio.get_running_loop().time()
        repeated = None if idempotency_key is None else self._repeats.find(idempotency_key, now)
        if repeated is not None:
            return repeated[0]
        self.end += 1
        self._entries.append(_Stored(self.end, topic, payload, now))
        if len(self._entries) > self._max_records:
            self.trimmed = self._entries.popleft().offset
        position = LogPosition(self.epoch, self.end)
        if idempotency_key is not None:
            self._repeats.note(idempotency_key, position, now)
        self._wake()
        return position

    def stop(self) -> None:
        """Be away, as a server that has stopped: tails end, and publishing raises ``BrokerDown``. Twice is once."""
        self.up = False
        self._wake()

    def restart(self) -> None:
        """Be back, with all there was. Twice is once."""
        self.up = True

    def truncate(self, offset: int) -> None:
        """Lose what is after a position, as a server does whose disk lied."""
        while self._entries and self._entries[-1].offset > offset:
            self._entries.pop()
        self._epochs = [LogPosition(era.epoch, min(era.offset, offset)) for era in self._epochs]
        self._epochs.append(LogPosition(new_epoch(), offset))
        self.end, self.trimmed = offset, min(self.trimmed, offset)
        self._repeats.forget(lambda position: position.offset > offset)
        self._wake()

    def after(self, position: LogPosition) -> Trimmed | Truncated | list[Entry]:
        """Return what comes after a place: the next entries of its era, or what there is to say before."""
        era = next((number for number, era in enumerate(self._epochs) if era.epoch == position.epoch), None)
        if era is None:
            return Truncated(self.start)
        following = self._epochs[era + 1] if era + 1 < len(self._epochs) else None
        if following is not None and position.offset >= following.offset:
            return Truncated(following)
        border = self.end if following is None else following.offset
        if position.offset < self.trimmed:
            return Trimmed(min(self.trimmed, border))
        now = asyncio.get_running_loop().time()
        first = position.offset - self.trimmed
        most = min(first + MOST, border - self.trimmed)
        return [
            Entry(stored.offset, stored.topic, stored.payload, now - stored.time)
            for stored in islice(self._entries, first, most)
        ]

    async def change(self, seconds: float) -> None:
        """Wait until there is something new, for so many seconds at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class MemoryBroker:
    """Join the Hubs that have brokers with the same ``log``. A ``Broker``."""

    confirms: float = CONFIRMS

    def __init__(self, log: MemoryLog) -> None:
        if not isinstance(log, MemoryLog):
            raise TypeError(f"a MemoryBroker is made with the MemoryLog that its Hubs share, not {log!r}")
        self._log = log
        self._closed = False

    async def publish(
        self, topic: str, payload: bytes, *, idempotency_key: str | None = None, connection: object = None
    ) -> LogPosition:
        """Append an entry, as every ``Broker`` does."""
        if connection is not None:
            raise TypeError("a MemoryBroker writes in nobody's transaction; connection is for PostgreSQL")
        if self._closed:
            raise BrokerDown(f"{topic!r} was published after this broker was closed")
        if not self._log.up:
            raise BrokerDown(f"an event under {topic!r} was not stored, for the MemoryLog is stopped")
        return self._log.append(topic, payload, idempotency_key)

    async def tail(self, after: LogPosition | None) -> AsyncGenerator[TailItem, None]:
        """Follow the entries after a place, as every ``Broker`` does."""
        log = self._log
        if not log.up:
            raise BrokerDown("the MemoryLog is stopped")
        at = after or log.start
        yield Subscribed(at)
        loop = asyncio.get_running_loop()
        due = loop.time()
        while log.up:
            following, end = log.after(at), log.end
            if isinstance(following, Truncated):
                at = following.position
                yield following
            elif isinstance(following, Trimmed):
                at = LogPosition(at.epoch, following.through)
                yield following
            elif following:
                at = LogPosition(at.epoch, following[-1].offset)
                yield following
                await asyncio.sleep(0)
            if not isinstance(following, Trimmed | Truncated) and at.offset >= end and loop.time() >= due:
                due = loop.time() + self.confirms
                yield CaughtUp()
            elif not following:
                await log.change(due - loop.time())

    async def close(self) -> None:
        """Publish no more. Twice is once."""
        self._closed = True
