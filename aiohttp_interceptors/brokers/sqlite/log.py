"""The log in the tables of ``schema.sql``: append, read, delete old entries. Blocking, for one thread."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from ...hub.broker import IDEMPOTENCY_WINDOW, Entry, LogPosition
from ...hub.epochs import new_epoch
from ..base import AppendRequest, LogRetention, lost_before_erasing
from .connection import FileOptions, SqliteFile, transaction

__all__ = ["HighWaterMark", "SqliteLog", "SqlitePage"]


MAX_PAGE_ENTRIES = 1000
MAX_PAGE_BYTES = 2**20  # of payload; a page with one entry may have more
# A write deletes twice as many rows as it inserts and this many more: no write takes long, and deleting catches up.
DELETE_STEP = 100
ERASE_STEP = 10_000  # offsets that one transaction erases: others publish between two
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_SCHEMA = resources.files(__package__).joinpath("schema.sql").read_text("utf-8")
_SELECT_PAGE = """
SELECT offset, topic, payload, max(0.0, ? - published_at) FROM entry WHERE offset > ? ORDER BY offset LIMIT ?
"""
_SELECT_COMMON_OFFSET = """
SELECT min(last_offset) FROM past_epoch WHERE number >= (SELECT number FROM past_epoch WHERE epoch = ?)
"""
_SELECT_EXPIRED = """
SELECT max(offset) FROM (SELECT offset, published_at FROM entry ORDER BY offset LIMIT ?) WHERE published_at < ?
"""
_ERASE = "UPDATE entry SET payload = x'' WHERE topic = ? AND offset > ? AND offset <= ? AND payload <> x''"
_DELETE_KEYS = """
DELETE FROM idempotency_key WHERE used_at < ? AND number < (SELECT min(number) FROM idempotency_key) + ?
"""


class HighWaterMark:
    """The newest position that this process has read or had acknowledged: a log that ends before it lost entries."""

    def __init__(self) -> None:
        self.position: LogPosition | None = None

    def advance(self, position: LogPosition) -> None:
        """Note a position that was read or acknowledged."""
        known = self.position
        if known is None or known.epoch != position.epoch or known.offset < position.offset:
            self.position = position


class SqlitePage(NamedTuple):
    """What follows a position in the log."""

    start: LogPosition
    """The position before the entries: the one that was asked for, unless the log was truncated or trimmed."""
    truncated: LogPosition | None
    """The last position that is still valid, if the one that was asked for is not."""
    trimmed: bool
    """Whether entries before ``start`` were deleted."""
    entries: list[Entry]
    has_more: bool
    """Whether there may be more entries."""


class SqliteLog:
    """The log in a database file. All methods raise only ``BrokerError``.

    The log starts a new epoch when it may have lost entries: when it ends before the high-water mark, when its file is
    a copy, when its ``-wal`` was deleted, and with ``synchronous=NORMAL`` after a crash of the machine.

    Args:
        path: The database file.
        lock_timeout: Seconds to wait for a lock that another process holds.
        synchronous: ``"FULL"`` or ``"NORMAL"``.
        retention: When entries are deleted.
        corruption_suspected: Shared by the logs of a process; see ``SqliteFile``.
        high_water_mark: Shared by the logs of a process.
    """

    def __init__(
        self,
        path: Path,
        lock_timeout: float,
        synchronous: str,
        retention: LogRetention,
        corruption_suspected: threading.Event,
        high_water_mark: HighWaterMark,
    ) -> None:
        self._synchronous = synchronous
        self._retention = retention
        self._high_water_mark = high_water_mark
        options = FileOptions(
            path, lock_timeout, synchronous, _create_tables, self._verify_identity, self._begin_unrelated_epoch
        )
        self._file = SqliteFile(options, corruption_suspected)

    def append(self, requests: Sequence[AppendRequest]) -> list[LogPosition]:
        """Store all requests or none, and return their positions."""
        high_water_mark = self._high_water_mark.position

        def work(connection: sqlite3.Connection) -> list[LogPosition]:
            with transaction(connection):
                if _ends_before(connection, high_water_mark):
                    _begin_epoch(connection)
                return _append(connection, requests, self._retention)

        return self._file.run(work)

    def read(self, after: LogPosition | None) -> SqlitePage:
        """Return what follows a position, or the beginning of the log for ``None``."""
        high_water_mark = self._high_water_mark.position

        def work(connection: sqlite3.Connection) -> SqlitePage:
            if _ends_before(connection, high_water_mark):
                with transaction(connection):
                    if _ends_before(connection, high_water_mark):
                        _begin_epoch(connection)
            connection.execute("BEGIN")
            try:
                return _read_page(connection, after)
            finally:
                if connection.in_transaction:  # some errors roll back
                    connection.execute("COMMIT")

        return self._file.run(work)

    def erase(self, topic: str, after: int, before: LogPosition) -> int | None:
        """Erase the payloads of a topic in a part of the log, which begins after an offset.

        Returns:
            The offset after which to continue, or ``None`` if this was the last part.
        """

        def work(connection: sqlite3.Connection) -> int | None:
            with _secure_delete(connection), transaction(connection):
                epoch, trimmed = connection.execute("SELECT epoch, trimmed_through FROM log").fetchone()
                if epoch != before.epoch:
                    raise lost_before_erasing(topic)
                end = max(after, trimmed) + ERASE_STEP
                limits = max(after, trimmed), min(end, before.offset - 1)
                connection.execute(_ERASE, (topic, *limits))
                connection.execute("DELETE FROM idempotency_key WHERE used_at < ?", (time.time() - IDEMPOTENCY_WINDOW,))
            return end if end < before.offset - 1 else None

        return self._file.run(work)

    def checkpoint(self) -> None:
        """Empty the ``-wal``, which has former contents of the file, unless another process reads."""
        self._file.checkpoint()

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._file.close()

    def _verify_identity(self, connection: sqlite3.Connection, inode: int) -> None:
        """Begin an epoch unless this is the file that was written last, and since the same start of the machine."""
        identity = f"{inode}"
        if self._synchronous != "FULL":  # a crash of the machine can lose transactions
            with suppress(OSError):
                identity += f" {BOOT_ID.read_text().strip()}"
        if _identity(connection) != identity:
            with transaction(connection):
                if _identity(connection) not in {"", identity}:
                    _begin_epoch(connection)
                connection.execute("UPDATE log SET identity = ?", (identity,))

    @staticmethod
    def _begin_unrelated_epoch(connection: sqlite3.Connection) -> None:
        """Begin an epoch that shares nothing with the last one: its lost offsets may be in use again."""
        with transaction(connection):
            _begin_epoch(connection, shared_through=0)


@contextmanager
def _secure_delete(connection: sqlite3.Connection) -> Iterator[None]:
    """Overwrite what is deleted with zeros. Otherwise it stays in the file until its space is used again."""
    (before,) = connection.execute("PRAGMA secure_delete").fetchone()
    connection.execute("PRAGMA secure_delete = ON")
    try:
        yield
    finally:
        connection.execute(f"PRAGMA secure_delete = {before}")


def _create_tables(connection: sqlite3.Connection) -> None:
    for statement in _SCHEMA.split(";"):  # executescript() would commit the transaction
        connection.execute(statement)
    connection.execute("INSERT INTO log VALUES (?, 0, 0, '')", (new_epoch(),))


def _identity(connection: sqlite3.Connection) -> str:
    (identity,) = connection.execute("SELECT identity FROM log").fetchone()
    return str(identity)


def _begin_epoch(connection: sqlite3.Connection, shared_through: float = float("inf")) -> None:
    """Begin an epoch, which shares entries up to an offset with the last one."""
    connection.execute(
        "INSERT INTO past_epoch (epoch, last_offset) SELECT epoch, min(last_offset, ?) FROM log", (shared_through,)
    )
    connection.execute("UPDATE log SET epoch = ?", (new_epoch(),))


def _ends_before(connection: sqlite3.Connection, position: LogPosition | None) -> bool:
    if position is None:
        return False
    epoch, last = connection.execute("SELECT epoch, last_offset FROM log").fetchone()
    return bool(epoch == position.epoch and last < position.offset)


def _append(
    connection: sqlite3.Connection, requests: Sequence[AppendRequest], retention: LogRetention
) -> list[LogPosition]:
    epoch, last, trimmed = connection.execute("SELECT epoch, last_offset, trimmed_through FROM log").fetchone()
    now = time.time()
    positions: list[LogPosition] = []
    rows: list[tuple[int, float, str, bytes]] = []
    for topic, payload, key in requests:
        repeated = None if key is None else _find_or_add_key(connection, key, last + 1, now)
        if repeated is None:
            last += 1
            rows.append((last, now, topic, payload))
        positions.append(LogPosition(epoch, last if repeated is None else repeated))
    connection.executemany("INSERT INTO entry VALUES (?, ?, ?, ?)", rows)
    limit = DELETE_STEP + 2 * len(rows)
    if any(request.idempotency_key is not None for request in requests):
        connection.execute(_DELETE_KEYS, (now - IDEMPOTENCY_WINDOW, limit))
    trimmed = _trim(connection, last, trimmed, retention, limit)
    connection.execute("UPDATE log SET last_offset = ?, trimmed_through = ?", (last, trimmed))
    return positions


def _find_or_add_key(connection: sqlite3.Connection, key: str, offset: int, now: float) -> int | None:
    """Return the offset that was stored with a key, or store this one and return ``None``."""
    found = connection.execute(
        "SELECT offset FROM idempotency_key WHERE key = ? AND used_at >= ?", (key, now - IDEMPOTENCY_WINDOW)
    ).fetchone()
    if found is not None:
        return int(found[0])
    connection.execute(
        "INSERT OR REPLACE INTO idempotency_key (key, used_at, offset) VALUES (?, ?, ?)", (key, now, offset)
    )
    return None


def _trim(connection: sqlite3.Connection, last: int, trimmed: int, retention: LogRetention, limit: int) -> int:
    """Delete entries that exceed the retention, up to a limit, and return the offset of the last deleted one."""
    end = last - retention.max_records
    if retention.max_age is not None:
        (expired,) = connection.execute(_SELECT_EXPIRED, (limit, time.time() - retention.max_age)).fetchone()
        end = max(end, expired or 0)
    end = min(end, trimmed + limit)
    if end <= trimmed:
        return trimmed
    connection.execute("DELETE FROM entry WHERE offset <= ?", (end,))
    return end


def _read_page(connection: sqlite3.Connection, after: LogPosition | None) -> SqlitePage:
    epoch, trimmed_through = connection.execute("SELECT epoch, trimmed_through FROM log").fetchone()
    start = LogPosition(epoch, trimmed_through) if after is None else after
    truncated = None
    if start.epoch != epoch:
        (common,) = connection.execute(_SELECT_COMMON_OFFSET, (start.epoch,)).fetchone()
        start = truncated = LogPosition(epoch, min(start.offset, common or 0))
    trimmed = start.offset < trimmed_through
    if trimmed:
        start = LogPosition(epoch, trimmed_through)
    entries: list[Entry] = []
    size = 0
    for row in connection.execute(_SELECT_PAGE, (time.time(), start.offset, MAX_PAGE_ENTRIES)):
        entries.append(Entry(*row))
        size += len(row[2])
        if size >= MAX_PAGE_BYTES:
            break
    has_more = len(entries) == MAX_PAGE_ENTRIES or size >= MAX_PAGE_BYTES
    return SqlitePage(start, truncated, trimmed, entries, has_more)
