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
from ..hub.broker import Entry, Joined, Lost, Place, Repeats, Rewound, TailItem, UpToDate
from ..hub.epochs import new_epoch

__all__ = ["MemoryBroker", "MemoryLog"]


MOST = 500  # entries in one batch, so that others have their turn of the event loop in between
CONFIRMS = 1.0  # seconds after which a tail says again that it is up to date
_position = attrgetter("position")


class _Stored(NamedTuple):
    position: int
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
        self._eras = [Place(new_epoch(), 0)]  # where each begins
        self._entries: deque[_Stored] = deque()
        self._max_records = max_records
        self._repeats: Repeats[Place] = Repeats()
        self._news: asyncio.Event = asyncio.Event()

    @property
    def epoch(self) -> str:
        """What is appended now is of this one."""
        return self._eras[-1].epoch

    @property
    def start(self) -> Place:
        """The place before the first entry."""
        era = max(bisect_right(self._eras, self.trimmed, key=_position) - 1, 0)
        return Place(self._eras[era].epoch, self.trimmed)

    def append(self, topic: str, payload: bytes, idempotency_key: str | None) -> Place:
        """Append an entry, unless its key has come before, and return its place."""
        now = asyncio.get_running_loop().time()
        repeated = None if idempotency_key is None else self._repeats.find(idempotency_key, now)
        if repeated is not None:
            return repeated[0]
        self.end += 1
        self._entries.append(_Stored(self.end, topic, payload, now))
        if len(self._entries) > self._max_records:
            self.trimmed = self._entries.popleft().position
        place = Place(self.epoch, self.end)
        if idempotency_key is not None:
            self._repeats.note(idempotency_key, place, now)
        self._wake()
        return place

    def stop(self) -> None:
        """Be away, as a server that has stopped: tails end, and publishing raises ``BrokerDown``. Twice is once."""
        self.up = False
        self._wake()

    def restart(self) -> None:
        """Be back, with all there was. Twice is once."""
        self.up = True

    def rewind(self, position: int) -> None:
        """Lose what is after a position, as a server does whose disk lied."""
        while self._entries and self._entries[-1].position > position:
            self._entries.pop()
        self._eras = [Place(era.epoch, min(era.position, position)) for era in self._eras]
        self._eras.append(Place(new_epoch(), position))
        self.end, self.trimmed = position, min(self.trimmed, position)
        self._repeats.forget(lambda place: place.position > position)
        self._wake()

    def after(self, place: Place) -> Lost | Rewound | list[Entry]:
        """Return what comes after a place: the next entries of its era, or what there is to say before."""
        era = next((number for number, era in enumerate(self._eras) if era.epoch == place.epoch), None)
        if era is None:
            return Rewound(self.start)
        following = self._eras[era + 1] if era + 1 < len(self._eras) else None
        if following is not None and place.position >= following.position:
            return Rewound(following)
        border = self.end if following is None else following.position
        if place.position < self.trimmed:
            return Lost(min(self.trimmed, border))
        now = asyncio.get_running_loop().time()
        first = place.position - self.trimmed
        most = min(first + MOST, border - self.trimmed)
        return [
            Entry(stored.position, stored.topic, stored.payload, now - stored.time)
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
    ) -> Place:
        """Append an entry, as every ``Broker`` does."""
        if connection is not None:
            raise TypeError("a MemoryBroker writes in nobody's transaction; connection is for PostgreSQL")
        if self._closed:
            raise BrokerDown(f"{topic!r} was published after this broker was closed")
        if not self._log.up:
            raise BrokerDown(f"an event under {topic!r} was not stored, for the MemoryLog is stopped")
        return self._log.append(topic, payload, idempotency_key)

    async def tail(self, after: Place | None) -> AsyncGenerator[TailItem, None]:
        """Follow the entries after a place, as every ``Broker`` does."""
        log = self._log
        if not log.up:
            raise BrokerDown("the MemoryLog is stopped")
        at = after or log.start
        yield Joined(at)
        loop = asyncio.get_running_loop()
        due = loop.time()
        while log.up:
            following, end = log.after(at), log.end
            if isinstance(following, Rewound):
                at = following.place
                yield following
            elif isinstance(following, Lost):
                at = Place(at.epoch, following.through)
                yield following
            elif following:
                at = Place(at.epoch, following[-1].position)
                yield following
                await asyncio.sleep(0)
            if not isinstance(following, Lost | Rewound) and at.position >= end and loop.time() >= due:
                due = loop.time() + self.confirms
                yield UpToDate()
            elif not following:
                await log.change(due - loop.time())

    async def close(self) -> None:
        """Publish no more. Twice is once."""
        self._closed = True
