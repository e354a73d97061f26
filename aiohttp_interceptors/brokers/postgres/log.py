"""The log in the tables of ``schema.sql``: append, read, begin an epoch, delete old entries.

``PostgresLog`` also remembers what the server has confirmed to this process, and finds out when the server lost it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

from ...hub.broker import Entry, LogPosition
from ...hub.epochs import successor
from ..base import AppendRequest, LogRetention, lost_before_erasing
from .connection import PostgresConnection, Row

__all__ = ["Checkpoint", "PostgresLog", "PostgresPage"]


TRIM_INTERVAL = 10.0  # seconds between two deletions of old entries by a tail
ERASE_STEP = 10_000  # positions that one statement erases
TRIM_AFTER = 500  # appended entries until the next deletion by publishing
MAX_RUN_IDS = 64  # runs of the server to remember; entries of earlier ones were trimmed long ago

# In one snapshot: the entries; then the checkpoints, which are the rows without a payload: the entry at the offset, the
# last one of the page (offsets have no holes, unless rows were deleted by hand), and the one that this process has
# appended last; then the end of the log.
_SELECT_PAGE = """
(SELECT position, topic, payload, date_part('epoch', clock_timestamp() - published_at)
  FROM {table} WHERE position > %(after)s::bigint ORDER BY position LIMIT %(count)s)
UNION ALL SELECT position, run_id::text, NULL, date_part('epoch', published_at) FROM {table}
  WHERE position = ANY (ARRAY[
    %(after)s::bigint, %(appended)s::bigint,
    (SELECT max(position) FROM {table} WHERE position <= %(after)s::bigint + %(count)s)
  ])
UNION ALL SELECT last_position, epoch, NULL, 0 FROM {table}_log
"""
_CREATE_LOG = "SELECT epoch FROM {table}_lock()"
_APPEND = "SELECT * FROM {table}_append(%s::text[], %s::bytea[], %s::text[], %s::text, %s::bigint, %s::text)"
_BEGIN_EPOCH = "SELECT {table}_begin_epoch(%s::text, %s::bigint, %s::text[]::integer[], %s::text, %s::text)"
_SELECT_SHARED = "SELECT (past_epochs ->> %s::text)::bigint FROM {table}_log"
_SELECT_RUN_IDS = "SELECT DISTINCT run_id::text FROM {table} WHERE position > %s AND position <= %s"
# The epoch is that of the same snapshot: in another one, the positions may be those of other entries.
_ERASE = """
WITH erased AS (
  UPDATE {table} SET payload = '' WHERE topic = %(topic)s AND octet_length(payload) > 0
    AND position > %(after)s AND position <= %(through)s AND %(epoch)s = (SELECT epoch FROM {table}_log)
)
SELECT epoch, trimmed_through FROM {table}_log
"""
_TRIM = "SELECT {table}_trim(%s::bigint, %s::float8)"


class Checkpoint(NamedTuple):
    """An entry that the server has confirmed. One with another run or time at its position is another entry."""

    position: LogPosition
    run_id: str
    """The run of the server in which the entry was stored."""
    published_at: float | None = None
    """Unix time in seconds by the server's clock, if it is known."""


class PostgresPage(NamedTuple):
    """What follows an offset in the log."""

    epoch: str
    last_offset: int
    """The offset of the newest entry that was ever appended."""
    start: int
    """The offset before the first entry of the page, or of the newest entry if the page is empty."""
    entries: list[Entry]
    checkpoints: dict[int, Checkpoint]
    """By offset: at the offset that was asked for, of the last entry of the page, and at ``appended``."""
    appended: Checkpoint | None
    """The last entry that this process had appended before it asked for the page."""

    @property
    def size(self) -> int:
        """The bytes of all payloads."""
        return sum([len(payload) for _, _, payload, _ in self.entries])

    def batches(self) -> Iterator[list[Entry]]:
        """Return the entries in lists without holes: one list, unless rows were deleted by hand."""
        entries = self.entries
        while entries:
            first = entries[0].offset
            end = len(entries)
            if entries[-1].offset != first + end - 1:
                end = next(n for n, entry in enumerate(entries) if entry.offset != first + n)
            yield entries[:end]
            entries = entries[end:]


class PostgresLog:
    """The log, as one process knows it.

    Args:
        retention: When entries are deleted.
        channel: The channel to notify of appended entries, or ``None``.
    """

    def __init__(self, retention: LogRetention, channel: str | None) -> None:
        self._retention = retention
        self._channel = channel
        self._read: Checkpoint | None = None  # the last entry that a tail returned
        self._appended: Checkpoint | None = None  # the last entry that was acknowledged
        self._run_ids: dict[str, None] = {}  # of entries that were read or acknowledged; an ordered set
        self._appended_since_trim = 0
        self._trimmed_at = float("-inf")
        self.past_epochs: set[str] = set()
        """Epochs that a tail has left. If the server has one of them again, it was restored from a backup."""

    async def append(self, connection: PostgresConnection, requests: Sequence[AppendRequest]) -> list[LogPosition]:
        """Append all requests or none, and return their positions."""
        known = self._appended.position if self._appended else LogPosition("", 0)
        columns = [list(column) for column in zip(*requests, strict=True)] or [[], [], []]
        ((epoch, run_id, offsets),) = await connection.request(_APPEND, (*columns, *known, self._channel))
        if offsets is None:
            await self.begin_epoch(connection, known)
            self._appended = None
            return await self.append(connection, requests)
        positions = [LogPosition(cast("str", epoch), offset) for offset in cast("list[int]", offsets)]
        if positions:
            self._appended = Checkpoint(max(positions), str(run_id))
            self._add_run_id(str(run_id))
        self._appended_since_trim += len(positions)
        return positions

    async def read(self, connection: PostgresConnection, after: int, count: int) -> PostgresPage:
        """Return a page of up to ``count`` entries after an offset."""
        appended = self._appended  # before the statement: a later one is not in its snapshot
        parameters = {"after": after, "count": count, "appended": appended.position.offset if appended else after}
        rows = await connection.request(_SELECT_PAGE, parameters)
        if not rows or rows[-1][2] is not None:  # nothing was ever published, or the tables were emptied
            await connection.request(_CREATE_LOG)
            rows = await connection.request(_SELECT_PAGE, parameters)
        return _page(rows, appended)

    def find_lost(self, position: LogPosition, page: PostgresPage) -> LogPosition | None:
        """Return a position at which the server has lost an entry or has another one.

        Args:
            position: That of the last entry that the tail returned.
            page: The page after it, of the same epoch.
        """
        if page.last_offset < position.offset:
            return position
        read = self._read
        if read is not None and read.position == position and page.checkpoints.get(position.offset, read) != read:
            return position
        appended = page.appended
        if appended is None or appended.position.epoch != position.epoch:
            return None
        offset = appended.position.offset
        replaced = page.checkpoints.get(offset, appended).run_id != appended.run_id
        return appended.position if replaced or page.last_offset < offset else None

    async def add_run_ids(self, connection: PostgresConnection, page: PostgresPage) -> None:
        """Remember the runs in which the entries of a page were stored, if its last entry is of an unknown one."""
        last = page.entries[-1].offset if page.entries else 0
        checkpoint = page.checkpoints.get(last)
        if checkpoint is not None and checkpoint.run_id not in self._run_ids:
            for (run_id,) in await connection.request(_SELECT_RUN_IDS, (page.start, last)):
                self._add_run_id(cast("str", run_id))

    def set_read(self, position: LogPosition, page: PostgresPage) -> None:
        """Remember the entry at a position, up to which a page was returned by the tail."""
        checkpoint = page.checkpoints.get(position.offset)
        if checkpoint is not None:
            self._read = checkpoint

    async def begin_epoch(self, connection: PostgresConnection, lost: LogPosition, *, left: str | None = None) -> None:
        """Begin another epoch, because the server has lost the entry at a position.

        The new epoch shares the entries through the last one before that position that was stored in a known run of
        the server. Its name follows from ``left``, an epoch that the tail has read and the server has lost, if given.
        """
        left = left or lost.epoch
        await connection.request(_BEGIN_EPOCH, (*lost, list(self._run_ids), left, successor(left)))

    async def shared_offset(self, connection: PostgresConnection, position: LogPosition) -> int | None:
        """Return the last offset up to a position of a past epoch that the current epoch shares.

        ``None`` if the log never had that epoch.
        """
        rows = await connection.request(_SELECT_SHARED, (position.epoch,))
        shared = cast("int | None", rows[0][0]) if rows else None
        return None if shared is None else min(shared, position.offset)

    async def erase(self, connection: PostgresConnection, topic: str, before: LogPosition) -> None:
        """Erase the payloads of a topic before a position, step by step."""
        after, last = 0, before.offset - 1
        while after < last:
            parameters = {"topic": topic, "after": after, "through": min(after + ERASE_STEP, last)}
            rows = await connection.request(_ERASE, {**parameters, "epoch": before.epoch})
            if not rows or rows[0][0] != before.epoch:
                raise lost_before_erasing(topic)
            after = max(after + ERASE_STEP, cast("int", rows[0][1]))

    def is_trim_due(self, *, after_append: bool = False) -> bool:
        """Return whether ``trim`` is due: after an append by the number of entries, else by the time."""
        if after_append:
            return self._appended_since_trim >= TRIM_AFTER
        return time.monotonic() - self._trimmed_at >= TRIM_INTERVAL

    async def trim(self, connection: PostgresConnection, read_timeout: float | None = None) -> None:
        """Delete some of the entries that exceed the retention. If there are more, it is due again immediately."""
        ((has_more,),) = await connection.request(_TRIM, self._retention, read_timeout)
        self._appended_since_trim = 0
        self._trimmed_at = float("-inf") if has_more is True else time.monotonic()

    def _add_run_id(self, run_id: str) -> None:
        self._run_ids[run_id] = None
        if len(self._run_ids) > MAX_RUN_IDS:
            del self._run_ids[next(iter(self._run_ids))]


def _page(rows: list[Row], appended: Checkpoint | None) -> PostgresPage:
    """Return the page that the rows of ``_SELECT_PAGE`` describe."""
    last_offset, epoch, _, _ = cast("tuple[int, str, None, float]", rows.pop())
    checkpoints: dict[int, Checkpoint] = {}
    while rows and rows[-1][2] is None:
        offset, run_id, _, published_at = cast("tuple[int, str, None, float]", rows.pop())
        checkpoints[offset] = Checkpoint(LogPosition(epoch, offset), run_id, published_at)
    entries = [Entry._make(row) for row in rows]
    start = entries[0].offset - 1 if entries else last_offset
    return PostgresPage(epoch, last_offset, start, entries, checkpoints, appended)
