"""One tail of a stream of Redis: where it is, and what comes next."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import cast

from ..hub.broker import Joined, Lost, Place, Rewound, TailItem, UpToDate
from .redis_log import SCRIPT, Answer, Claim, RawEntry, RedisLog, position, stream_id
from .redis_session import RedisSession

__all__ = ["RedisTail"]

MOST = 1000  # entries in one batch
MOST_BYTES = 2**20  # of their payloads, if they are like those before
BLOCK = 2.0  # seconds at most that the server is asked to wait for something new, before it is asked for its health


class RedisTail:
    """Follow a log after a place, one item after the other. Raises ``BrokerError`` alone."""

    def __init__(self, session: RedisSession, log: RedisLog, silence: float) -> None:
        self._session = session
        self._log = log
        self._silence = silence
        self._block = min(BLOCK, silence / 3)
        self._at: Place
        self._answer: Answer  # of the script, the latest
        self._looked = 0.0  # when that was
        self._start: Place | None = None  # where to go on, when this place turned out to be void
        self._goal: int | None = None  # the position that is up to date; None when it is no news any more
        self._size = MOST_BYTES / 16  # of a payload, or less: as far as anybody knows

    async def join(self, after: Place | None) -> Joined:
        """Begin after a place. It comes first, and once."""
        await self._look(after)
        self._at = after or self._answer.start
        self._goal = self._answer.latest.position
        return Joined(self._at)

    async def items(self) -> Sequence[TailItem]:
        """Return what comes next; nothing, if nothing came for a while."""
        if self._start is not None:
            return [self._rewind(self._start)]
        if self._goal is not None and self._at.position >= self._goal:
            self._goal = None
            return [UpToDate()]
        through = self._answer.through
        if self._at.position == through or time.monotonic() - self._looked >= self._block:
            await self._look(self._at)
            return []
        latest = self._answer.latest.position
        behind = self._at.position < latest
        raws = await self._read(wait=not behind)
        if through is not None:
            raws = [raw for raw in raws if position(raw[0]) <= through]
        if raws:
            return await self._take(raws)
        return [self._lose(latest if through is None else through)] if behind else []

    async def _look(self, at: Place | None) -> None:
        """Ask the server what it makes of a place."""
        reply = await self._session.run(SCRIPT, *self._log.call(at), limit=self._silence)
        self._answer, self._looked = self._log.answer(cast("list[bytes]", reply)), time.monotonic()
        self._start = None if at is None or at == self._answer.start else self._answer.start
        if self._goal is not None:
            self._goal = min(self._goal, self._answer.latest.position)
        self._claim(self._answer.start)

    def _claim(self, place: Place) -> None:
        """Note what the server must not lose; it said now, or in this life, that it had it."""
        self._log.given = Claim(place.epoch, self._answer.latest.life, place.position)

    async def _read(self, *, wait: bool) -> Sequence[RawEntry]:
        """Read entries after the place; if it may wait, for some time until there are some."""
        count = min(MOST, int(MOST_BYTES / self._size) or 1)
        block = ("BLOCK", int(self._block * 1000) or 1) if wait else ()
        streams = ("STREAMS", self._log.stream, stream_id(self._at.position))
        reply = await self._session.ask("XREAD", "COUNT", count, *block, *streams, limit=self._silence)
        if not reply:
            return []
        if isinstance(reply, dict):  # RESP 3
            return cast("list[RawEntry]", next(iter(reply.values())))
        return cast("list[tuple[bytes, list[RawEntry]]]", reply)[0][1]

    async def _take(self, raws: Sequence[RawEntry]) -> Sequence[TailItem]:
        items: list[TailItem] = []
        now = self._answer.now + int((time.monotonic() - self._looked) * 1000)
        entries, before = self._log.entries(raws, self._at.position, now)
        if entries:
            items.append(entries)
            self._at = Place(self._at.epoch, entries[-1].position)
            self._claim(self._at)
            self._size = max(sum([len(entry.payload) for entry in entries]) / len(entries), self._size / 2, 1.0)
        if before is not None:
            items.append(await self._explain(before))
        return items

    async def _explain(self, before: int) -> Lost | Rewound:
        """Find out why the next entry follows another place than this; it is read again then."""
        if before > self._at.position:
            return self._lose(before)
        await self._look(self._at)
        if self._start is None:  # the server knows of no loss, and yet lacks this
            self._log.given = Claim(self._at.epoch, "", self._at.position)
            await self._look(self._at)
        return self._rewind(self._start or self._answer.start)

    def _lose(self, through: int) -> Lost:
        self._at = Place(self._at.epoch, through)
        self._claim(self._at)
        return Lost(through)

    def _rewind(self, place: Place) -> Rewound:
        self._start, self._at = None, place
        return Rewound(place)
