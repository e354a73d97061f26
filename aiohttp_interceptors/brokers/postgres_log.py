"""A Hub's log in PostgreSQL, as a client sees it: what is asked, and what the answers mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias, cast

from ..hub.broker import Entry, Place
from ..hub.eras import successor
from .postgres_session import PostgresSession, Row
from .writer import Draft

__all__ = ["Page", "PostgresLog"]

LIVES = 64  # of the server, that are remembered; what is of an older one was trimmed long ago

# Entries, then the end of the log with what is at the position itself, all as of one moment.
_PAGE = """
(SELECT position, topic, payload, date_part('epoch', clock_timestamp() - created), life, date_part('epoch', created)
  FROM {t} WHERE position > %s ORDER BY position LIMIT %s)
UNION ALL SELECT last, epoch, NULL, 0, record.life, date_part('epoch', created)
  FROM {t}_log LEFT JOIN {t} AS record ON position = %s
"""
_CREATE = "SELECT epoch FROM {t}_lock()"
_APPEND = "SELECT * FROM {t}_append(%s::text[], %s::bytea[], %s::text[], %s::text, %s::bigint, %s::text)"
_REWIND = "SELECT {t}_rewind(%s::text, %s::bigint, %s::integer[], %s::text)"
_BORDER = "SELECT (eras ->> %s::text)::bigint FROM {t}_log"
_TRIM = "SELECT {t}_trim(%s::bigint, %s::float8)"

Mark: TypeAlias = tuple[object, object]
"""The life of the server that took an entry, and when: no other has both."""


class Page(NamedTuple):
    """What follows a position."""

    epoch: str
    last: int
    """The position of the latest entry that there ever was."""
    mark: Mark
    """Of the entry at the position that was asked for; of ``None`` if there is none."""
    rows: list[Row]
    start: int
    """The position before the first entry that is left after the one that was asked for."""

    @property
    def size(self) -> int:
        """In bytes of payload."""
        return sum([len(cast("bytes", row[2])) for row in self.rows])

    def runs(self) -> Iterator[list[Entry]]:
        """Walk the entries, in lists that have no holes: one, unless somebody has deleted some."""
        make = tuple.__new__  # what an Entry's own does, less a call for each
        entries: list[Entry] = [make(Entry, row[:4]) for row in self.rows]
        while entries:
            first = entries[0].position
            end = len(entries)
            if entries[-1].position != first + end - 1:
                end = next(n for n, entry in enumerate(entries) if entry.position != first + n)
            yield entries[:end]
            entries = entries[end:]


class PostgresLog:
    """Read and write a table, and know what the server must have."""

    def __init__(self) -> None:
        self._seen: tuple[Place, Mark] | None = None  # by the tail, latest
        self._stored: tuple[Place, object] | None = None  # by publish, latest, and its life
        self._lives: dict[object, None] = {}

    async def read(self, session: PostgresSession, after: int, count: int, limit: float) -> Page:
        """Read up to ``count`` entries after a position."""
        rows = await session.run(_PAGE, (after, count, after), limit)
        if not rows or rows[-1][2] is not None:  # nobody has published yet, or somebody has deleted all
            await session.run(_CREATE, (), limit)
            rows = await session.run(_PAGE, (after, count, after), limit)
        last, epoch, _, _, *mark = rows.pop()
        start = cast("int", rows[0][0]) - 1 if rows else cast("int", last)
        return Page(cast("str", epoch), cast("int", last), (mark[0], mark[1]), rows, start)

    def void(self, at: Place, page: Page) -> Place | None:
        """Return a place that the server must have and has not, or has another entry at."""
        if self._seen is not None and self._seen[0] == at and page.mark not in {self._seen[1], (None, None)}:
            return at
        if page.last < at.position:
            return at
        if self._stored is None or self._stored[0].epoch != at.epoch:
            return None
        place, life = self._stored
        index = place.position - at.position - 1
        other = 0 <= index < len(page.rows) and page.rows[index][0] == place.position and page.rows[index][4] != life
        return place if other or page.last < place.position else None

    def see(self, at: Place, page: Page) -> None:
        """Note a place up to which a page was given."""
        if page.rows:
            self._seen = at, (page.rows[-1][4], page.rows[-1][5])
            self._note(page.rows[0][4])
        elif self._seen is None or self._seen[0] != at:
            self._seen = at, page.mark
        if self._seen[1][0] is not None:
            self._note(self._seen[1][0])

    async def append(
        self, session: PostgresSession, drafts: Sequence[Draft], bell: str | None, limit: float
    ) -> list[Place]:
        """Store drafts, all or none, and return their places."""
        epoch, position = known = self._stored[0] if self._stored else Place("", 0)
        columns = [list(column) for column in zip(*drafts, strict=True)] or [[], [], []]
        ((era, life, places),) = await session.run(_APPEND, (*columns, epoch, position, bell), limit)
        if places is None:
            await self.rewind(session, known, limit)
            self._stored = None
            return await self.append(session, drafts, bell, limit)
        made = [Place(cast("str", era), place) for place in cast("list[int]", places)]
        if made:
            self._stored = max(made), life
            self._note(life)
        return made

    async def rewind(self, session: PostgresSession, void: Place, limit: float) -> None:
        """Have the log go on in another epoch, because the server has lost what was at a place.

        That goes on after the latest entry before it that is of a life of which we have had some.
        """
        values = (*void, list(self._lives), successor(void.epoch))
        await session.run(_REWIND, values, limit)

    async def border(self, session: PostgresSession, place: Place, limit: float) -> int | None:
        """Return the position up to which what is of a former epoch is still there; None if it is not one of ours."""
        rows = await session.run(_BORDER, (place.epoch,), limit)
        border = cast("int | None", rows[0][0]) if rows else None
        return None if border is None else min(border, place.position)

    async def trim(self, session: PostgresSession, most: int, age: float | None, limit: float) -> None:
        """Delete some of what is too much or too old."""
        await session.run(_TRIM, (most, age), limit)

    def _note(self, life: object) -> None:
        self._lives[life] = None
        if len(self._lives) > LIVES:
            del self._lives[next(iter(self._lives))]
