"""One tail of a stream of Redis: where it is, and what comes next."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import cast

from ...exceptions import BrokerDown
from ...hub.broker import CaughtUp, LogPosition, Subscribed, TailItem, Trimmed, Truncated
from .connection import RedisSession, Reply
from .log import SCRIPT, Answer, Break, RawEntry, RedisLog, offset, stream_id

__all__ = ["RedisTail"]


MOST = 1000  # entries in one batch
MOST_BYTES = 2**20  # of their payloads, if they are like those before
BLOCK = 1.5  # seconds at most that the server is asked to wait for something new, before it is asked for its health
# Seconds that an answer may be late. After a longer pause the server may have been replaced, and not know it yet.
LATE = 2.0
SMALL = 2**16  # bytes of an answer that no network needs long for


class RedisTail:
    """Follow a log after a place, one item after the other. Raises ``BrokerError`` alone."""

    def __init__(self, session: RedisSession, log: RedisLog, silence: float) -> None:
        self._session = session
        self._log = log
        self._silence = silence
        self._block = min(BLOCK, silence / 3)
        self._at: LogPosition
        self._answer: Answer  # of the script, the latest
        self._looked = 0.0  # when that was
        self._start: LogPosition | None = None  # where to go on, when this place turned out to be void
        # The position from which on it is up to date with the latest answer; None when that has been said.
        self._goal: int | None = None
        self._accepted = ""  # the mark of a life that began on the way from here to the end
        self._size = MOST_BYTES / 16  # of a payload, or less: as far as anybody knows

    @property
    def server(self) -> str:
        """The run id of the server that answered latest."""
        return self._answer.server

    async def join(self, after: LogPosition | None) -> Subscribed:
        """Begin after a place. It comes first, and once."""
        await self._look(after)
        self._at = after or self._answer.start
        return Subscribed(self._at)

    async def items(self) -> Sequence[TailItem]:
        """Return what comes next; nothing, if nothing came for a while."""
        if self._start is not None:
            return [self._rewind(self._start)]
        through = self._answer.through
        if self._goal is not None and self._at.offset >= self._goal and through is None:
            self._goal = None
            return [CaughtUp()]
        rest = self._looked + self._block - time.monotonic()
        if self._at.offset == through or rest <= 0:
            asked = time.monotonic()
            await self._look(self._at)
            self._check_time(asked)
            return []
        latest = self._answer.latest.offset
        behind = self._at.offset < latest
        raws = await self._read(None if behind else rest)
        if through is not None:
            raws = [raw for raw in raws if offset(raw[0]) <= through]
        if raws:
            return await self._take(raws)
        return [self._lose(latest if through is None else through)] if behind else []

    async def _look(self, at: LogPosition | None) -> None:
        """Ask the server what it makes of a place."""
        call = self._log.call(at)
        reply = await self._session.run(SCRIPT, *call.arguments, limit=self._silence)
        self._answer, self._looked = self._log.answer(cast("list[bytes]", reply), call), time.monotonic()
        self._start = None if at is None or at == self._answer.start else self._answer.start
        latest = self._answer.latest.offset
        self._goal = latest if self._goal is None else min(self._goal, latest)
        self._claim(self._answer.start)

    def _claim(self, position: LogPosition) -> None:
        """Note what the server must not lose; it said now, or in this life, that it had it."""
        self._log.given = self._log.claim(position.epoch, self._answer.latest.life, position.offset)

    async def _read(self, wait: float | None) -> Sequence[RawEntry]:
        """Read entries after the place; wait some seconds until there are some, or not at all."""
        count = min(MOST, int(MOST_BYTES / self._size) or 1)
        block = () if wait is None else ("BLOCK", int(wait * 1000) or 1)
        streams = ("STREAMS", self._log.stream, stream_id(self._at.offset))
        asked = time.monotonic()
        reply = await self._session.ask("XREAD", "COUNT", count, *block, *streams, limit=self._silence)
        raws = _entries(reply)
        if wait is not None and sum([len(fields[-1]) for _, fields in raws]) < SMALL:
            self._check_time(asked + wait)
        return raws

    @staticmethod
    def _check_time(due: float) -> None:
        """Raise ``BrokerDown`` for a server that was away, so that another one is found that took its place."""
        late = time.monotonic() - due
        if late > LATE:
            raise BrokerDown(f"the server answered {late:.1f} s late, and is connected to anew: it may be another now")

    async def _take(self, raws: Sequence[RawEntry]) -> Sequence[TailItem]:
        items: list[TailItem] = []
        answer = self._answer
        now = answer.now + int((time.monotonic() - self._looked) * 1000)
        marks = f"{self._at.epoch} {answer.latest.life}", self._accepted
        entries, broken = self._log.entries(raws, self._at.offset, now, marks)
        if entries:
            items.append(entries)
            self._at = LogPosition(self._at.epoch, entries[-1].offset)
            self._claim(self._at)
            self._size = max(sum([len(entry.payload) for entry in entries]) / len(entries), self._size / 2, 1.0)
        if broken is not None:
            items += await self._explain(broken)
        return items

    async def _explain(self, broken: Break) -> Sequence[Trimmed | Truncated]:
        """Find out why the next entry does not follow; it is read again then."""
        if broken.before > self._at.offset:
            return [self._lose(broken.before)]
        await self._look(self._at)
        if self._start is not None:
            return [self._rewind(self._start)]
        if broken.before < self._at.offset:
            raise BrokerDown(f"the server knows nothing of {stream_id(self._at.offset).decode()} any more, or too much")
        self._accepted = broken.mark  # a life without a loss, or one of those between here and the end
        return []

    def _lose(self, through: int) -> Trimmed:
        self._at = LogPosition(self._at.epoch, through)
        self._claim(self._at)
        return Trimmed(through)

    def _rewind(self, position: LogPosition) -> Truncated:
        self._start, self._at = None, position
        return Truncated(position)


def _entries(reply: Reply) -> Sequence[RawEntry]:
    if not reply:
        return []
    if isinstance(reply, dict):  # RESP 3
        return cast("list[RawEntry]", next(iter(reply.values())))
    return cast("list[tuple[bytes, list[RawEntry]]]", reply)[0][1]
