"""A Hub's log in PostgreSQL, as a client sees it: what is asked, and what the answers mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple, TypeAlias, cast

from ...hub.broker import Entry, LogPosition
from ...hub.epochs import successor
from ..base import Draft
from .connection import PostgresSession, Row

__all__ = ["Page", "PostgresLog"]


_payload = itemgetter(2)
LIVES = 64  # of the server, that are remembered; what is of an older one was trimmed long ago

# Entries; then, without payloads, which one is at the place itself, which is the last of them (for there are no holes,
# unless somebody has made some), and which is where we have stored one; then the end of the log. All as of one moment.
_PAGE = """
(SELECT position, topic, payload, date_part('epoch', clock_timestamp() - created)
  FROM {t} WHERE position > %(after)s::bigint ORDER BY position LIMIT %(count)s)
UNION ALL SELECT position, life::text, NULL, date_part('epoch', created) FROM {t} WHERE position = ANY (ARRAY[
  %(after)s::bigint, %(stored)s::bigint, (SELECT max(position) FROM {t} WHERE position <= %(after)s::bigint + %(count)s)
])
UNION ALL SELECT last, epoch, NULL, 0 FROM {t}_log
"""
_CREATE = "SELECT epoch FROM {t}_lock()"
_APPEND = "SELECT * FROM {t}_append(%s::text[], %s::bytea[], %s::text[], %s::text, %s::bigint, %s::text)"
_REWIND = "SELECT {t}_rewind(%s::text, %s::bigint, %s::text[]::integer[], %s::text, %s::text)"
_BORDER = "SELECT (eras ->> %s::text)::bigint FROM {t}_log"
_LIVES = "SELECT DISTINCT life::text FROM {t} WHERE position > %s AND position <= %s"
_TRIM = "SELECT {t}_trim(%s::bigint, %s::float8)"

Mark: TypeAlias = tuple[str, float]
"""The life of the server that took an entry, and when: no other has both."""


Stored: TypeAlias = tuple[LogPosition, str]
"""A place, and the life of the server that took its entry."""


class Page(NamedTuple):
    """What follows a position."""

    epoch: str
    last: int
    """The position of the latest entry that there ever was."""
    marks: dict[int, Mark]
    """By position: of what is where it was asked for, of the last, and of what we have stored."""
    rows: list[Row]
    start: int
    """The position before the first entry that is left after the one that was asked for."""
    stored: Stored | None
    """What we had stored before this was asked for."""

    @property
    def size(self) -> int:
        """In bytes of payload."""
        return sum(map(len, cast("Iterator[bytes]", map(_payload, self.rows))))

    def runs(self) -> Iterator[list[Entry]]:
        """Walk the entries, in lists that have no holes: one, unless somebody has deleted some."""
        make = tuple.__new__  # what an Entry's own does, less a call for each
        entries: list[Entry] = [make(Entry, row) for row in self.rows]
        while entries:
            first = entries[0].offset
            end = len(entries)
            if entries[-1].offset != first + end - 1:
                end = next(n for n, entry in enumerate(entries) if entry.offset != first + n)
            yield entries[:end]
            entries = entries[end:]


class PostgresLog:
    """Read and write a table, and know what the server must have."""

    def __init__(self) -> None:
        self._seen: tuple[LogPosition, Mark] | None = None  # by the tail, latest
        self._stored: Stored | None = None  # by publish, latest
        self._lives: dict[str, None] = {}
        self.past: set[str] = set()
        """Epochs that were left: one that is back is that of a copy."""

    async def read(self, session: PostgresSession, after: int, count: int, limit: float) -> Page:
        """Read up to ``count`` entries after a position."""
        stored = self._stored  # before the server looks, or it might be too new for what that sees
        values = {"after": after, "count": count, "stored": stored[0].offset if stored else after}
        rows = await session.run(_PAGE, values, limit)
        if not rows or rows[-1][2] is not None:  # nobody has published yet, or somebody has deleted all
            await session.run(_CREATE, (), limit)
            rows = await session.run(_PAGE, values, limit)
        last, epoch, _, _ = cast("tuple[int, str, None, float]", rows.pop())
        marks: dict[int, Mark] = {}
        while rows and rows[-1][2] is None:
            offset, life, _, time = cast("tuple[int, str, None, float]", rows.pop())
            marks[offset] = life, time
        start = cast("int", rows[0][0]) - 1 if rows else last
        return Page(epoch, last, marks, rows, start, stored)

    def void(self, at: LogPosition, page: Page) -> LogPosition | None:
        """Return a place that the server must have and has not, or has another entry at."""
        seen = self._seen
        if page.last < at.offset:
            return at
        if seen is not None and seen[0] == at and page.marks.get(at.offset, seen[1]) != seen[1]:
            return at
        if page.stored is None or page.stored[0].epoch != at.epoch:
            return None
        position, life = page.stored
        other = page.marks.get(position.offset, (life, 0.0))[0] != life
        return position if other or page.last < position.offset else None

    async def learn(self, session: PostgresSession, page: Page, limit: float) -> None:
        """Note of which lives the entries of a page are, if that can be another than that of those before."""
        last = cast("int", page.rows[-1][0]) if page.rows else 0
        mark = page.marks.get(last)
        if mark is not None and mark[0] not in self._lives:
            for (life,) in await session.run(_LIVES, (page.start, last), limit):
                self._note(cast("str", life))

    def see(self, at: LogPosition, page: Page) -> None:
        """Note a place up to which a page was given."""
        mark = page.marks.get(at.offset)
        if mark is not None:
            self._seen = at, mark

    async def append(
        self, session: PostgresSession, drafts: Sequence[Draft], bell: str | None, limit: float
    ) -> list[LogPosition]:
        """Store drafts, all or none, and return their places."""
        epoch, offset = known = self._stored[0] if self._stored else LogPosition("", 0)
        columns = [list(column) for column in zip(*drafts, strict=True)] or [[], [], []]
        ((era, life, positions),) = await session.run(_APPEND, (*columns, epoch, offset, bell), limit)
        if positions is None:
            await self.rewind(session, known, limit)
            self._stored = None
            return await self.append(session, drafts, bell, limit)
        made = [LogPosition(cast("str", era), position) for position in cast("list[int]", positions)]
        if made:
            self._stored = max(made), str(life)
            self._note(str(life))
        return made

    async def rewind(
        self, session: PostgresSession, void: LogPosition, limit: float, *, left: str | None = None
    ) -> None:
        """Have the log go on in another epoch, because the server has lost what was at a place.

        That goes on after the latest entry before it that is of a life of which we have had some, and is named after
        ``left``, an epoch that the server does not even know any more, if there is such a one.
        """
        left = left or void.epoch
        await session.run(_REWIND, (*void, list(self._lives), left, successor(left)), limit)

    async def border(self, session: PostgresSession, position: LogPosition, limit: float) -> int | None:
        """Return the position up to which what is of a former epoch is still there; None if it is not one of ours."""
        rows = await session.run(_BORDER, (position.epoch,), limit)
        border = cast("int | None", rows[0][0]) if rows else None
        return None if border is None else min(border, position.offset)

    async def trim(self, session: PostgresSession, most: int, age: float | None, limit: float) -> bool:
        """Delete some of what is too much or too old, and tell whether there is more."""
        ((more,),) = await session.run(_TRIM, (most, age), limit)
        return more is True

    def _note(self, life: str) -> None:
        self._lives[life] = None
        if len(self._lives) > LIVES:
            del self._lives[next(iter(self._lives))]
