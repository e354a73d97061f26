"""A log in tables of SQLite, as one thread uses it: all that waits for a disk or for a lock."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ...hub.broker import IDEMPOTENCY_WINDOW, Entry, LogPosition
from ...hub.epochs import new_epoch
from ..base import Draft, Retention
from .connection import Opening, SqliteFile, transaction

__all__ = ["Page", "SqliteLog"]


MOST = 1000  # entries in a page, and
MOST_BYTES = 2**20  # of their payloads, unless there is but one
STEP = 100  # a write deletes twice as much as it stores, and this: so that none takes long, and all catch up
BOOT = Path("/proc/sys/kernel/random/boot_id")
# Of an entry, what is long comes last: to read what is before that takes one page of the file. An era is one that is
# over, and has the last position that was of it.
_TABLES = """
CREATE TABLE log (epoch TEXT NOT NULL, last INTEGER NOT NULL, trimmed INTEGER NOT NULL, home TEXT NOT NULL);
CREATE TABLE era (number INTEGER PRIMARY KEY, epoch TEXT NOT NULL, last INTEGER NOT NULL);
CREATE TABLE entry (position INTEGER PRIMARY KEY, time REAL NOT NULL, topic TEXT NOT NULL, payload BLOB NOT NULL);
CREATE TABLE repeat (number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, time REAL NOT NULL, position INTEGER)
"""
_PAGE = "SELECT position, topic, payload, max(0.0, ? - time) FROM entry WHERE position > ? ORDER BY position LIMIT ?"
_COMMON = "SELECT min(last) FROM era WHERE number >= (SELECT number FROM era WHERE epoch = ?)"
_OLD = "SELECT max(position) FROM (SELECT position, time FROM entry ORDER BY position LIMIT ?) WHERE time < ?"
_FORGET = "DELETE FROM repeat WHERE time < ? AND number < (SELECT min(number) FROM repeat) + ?"


class Page(NamedTuple):
    """What follows a place."""

    start: LogPosition
    """After which the entries come: the place that was asked for, unless that is void, or followed by a loss."""
    rewound: LogPosition | None
    lost: bool
    entries: list[Entry]
    more: bool
    """Whether there may be more."""


class SqliteLog:
    """Append to a log, and read it. Raises ``BrokerError`` alone.

    A log goes on in another epoch when it has lost something: when it no longer has ``known``, the latest place that
    was given or acknowledged, and when its file is a copy, or went through a crash of the machine that it need not
    have survived whole.
    """

    def __init__(
        self, path: Path, patience: float, synchronous: str, retention: Retention, doubt: threading.Event
    ) -> None:
        self._synchronous = synchronous
        self._retention = retention
        self._file = SqliteFile(Opening(path, patience, synchronous, self._create, self._claim, self._tear), doubt)

    def append(self, drafts: Sequence[Draft], known: LogPosition | None) -> list[LogPosition]:
        """Store drafts, all or none, and return their places."""

        def work(connection: sqlite3.Connection) -> list[LogPosition]:
            with transaction(connection):
                _check(connection, known)
                return _append(connection, drafts, self._retention)

        return self._file.run(work)

    def read(self, after: LogPosition | None, known: LogPosition | None) -> Page:
        """Return what follows a place; after ``None``, from the first entry that is left."""

        def work(connection: sqlite3.Connection) -> Page:
            if _is_behind(connection, known):
                with transaction(connection):
                    _check(connection, known)
            connection.execute("BEGIN")
            try:
                return _page(connection, after)
            finally:
                if connection.in_transaction:  # some errors end it
                    connection.execute("COMMIT")

        return self._file.run(work)

    def close(self) -> None:
        """Give back the connection. Twice is once."""
        self._file.close()

    @staticmethod
    def _create(connection: sqlite3.Connection) -> None:
        for table in _TABLES.split(";"):
            connection.execute(table)
        connection.execute("INSERT INTO log VALUES (?, 0, 0, '')", (new_epoch(),))

    def _claim(self, connection: sqlite3.Connection, inode: int) -> None:
        """Go on in another epoch unless this is the file, and in its own life, that was written last."""
        home = f"{inode}"
        if self._synchronous != "FULL":  # what the machine's crash takes is given again then
            with suppress(OSError):
                home += f" {BOOT.read_text().strip()}"
        if _home(connection) != home:
            with transaction(connection):
                found = _home(connection)
                if found not in {"", home}:
                    _begin_era(connection)
                connection.execute("UPDATE log SET home = ?", (home,))

    @staticmethod
    def _tear(connection: sqlite3.Connection) -> None:
        """Go on in another epoch: others may have given the positions a second time that are lost."""
        with transaction(connection):
            _begin_era(connection, common=0)


def _home(connection: sqlite3.Connection) -> str:
    (home,) = connection.execute("SELECT home FROM log").fetchone()
    return str(home)


def _begin_era(connection: sqlite3.Connection, common: float = float("inf")) -> None:
    """Go on in another epoch, with what came up to a position in common with the one before."""
    connection.execute("INSERT INTO era (epoch, last) SELECT epoch, min(last, ?) FROM log", (common,))
    connection.execute("UPDATE log SET epoch = ?", (new_epoch(),))


def _is_behind(connection: sqlite3.Connection, known: LogPosition | None) -> bool:
    if known is None:
        return False
    epoch, last = connection.execute("SELECT epoch, last FROM log").fetchone()
    return bool(epoch == known.epoch and last < known.offset)


def _check(connection: sqlite3.Connection, known: LogPosition | None) -> None:
    if _is_behind(connection, known):
        _begin_era(connection)


def _append(connection: sqlite3.Connection, drafts: Sequence[Draft], retention: Retention) -> list[LogPosition]:
    epoch, last, trimmed = connection.execute("SELECT epoch, last, trimmed FROM log").fetchone()
    now = time.time()
    positions: list[LogPosition] = []
    rows: list[tuple[int, float, str, bytes]] = []
    for topic, payload, key in drafts:
        repeated = None if key is None else _repeated(connection, key, last + 1, now)
        if repeated is None:
            last += 1
            rows.append((last, now, topic, payload))
        positions.append(LogPosition(epoch, last if repeated is None else repeated))
    connection.executemany("INSERT INTO entry VALUES (?, ?, ?, ?)", rows)
    step = STEP + 2 * len(rows)
    if any(draft.idempotency_key is not None for draft in drafts):
        connection.execute(_FORGET, (now - IDEMPOTENCY_WINDOW, step))
    trimmed = _trim(connection, last, trimmed, retention, step)
    connection.execute("UPDATE log SET last = ?, trimmed = ?", (last, trimmed))
    return positions


def _repeated(connection: sqlite3.Connection, key: str, offset: int, now: float) -> int | None:
    """Return the position of the entry that has come with a key; if there was none, note this one."""
    found = connection.execute(
        "SELECT position FROM repeat WHERE key = ? AND time >= ?", (key, now - IDEMPOTENCY_WINDOW)
    ).fetchone()
    if found is not None:
        return int(found[0])
    connection.execute("INSERT OR REPLACE INTO repeat (key, time, position) VALUES (?, ?, ?)", (key, now, offset))
    return None


def _trim(connection: sqlite3.Connection, last: int, trimmed: int, retention: Retention, step: int) -> int:
    """Delete entries that are too many or too old, and return the position of the latest one that is gone."""
    end = last - retention.max_records
    if retention.max_age is not None:
        (old,) = connection.execute(_OLD, (step, time.time() - retention.max_age)).fetchone()
        end = max(end, old or 0)
    end = min(end, trimmed + step)
    if end <= trimmed:
        return trimmed
    connection.execute("DELETE FROM entry WHERE position <= ?", (end,))
    return end


def _page(connection: sqlite3.Connection, after: LogPosition | None) -> Page:
    epoch, trimmed = connection.execute("SELECT epoch, trimmed FROM log").fetchone()
    start = LogPosition(epoch, trimmed) if after is None else after
    rewound = None
    if start.epoch != epoch:
        (common,) = connection.execute(_COMMON, (start.epoch,)).fetchone()
        start = rewound = LogPosition(epoch, min(start.offset, common or 0))
    lost = start.offset < trimmed
    if lost:
        start = LogPosition(epoch, trimmed)
    entries: list[Entry] = []
    size = 0
    make = tuple.__new__  # what an Entry's own does, less a call for each
    for row in connection.execute(_PAGE, (time.time(), start.offset, MOST)):
        entries.append(make(Entry, row))
        size += len(row[2])
        if size >= MOST_BYTES:
            break
    return Page(start, rewound, lost, entries, len(entries) == MOST or size >= MOST_BYTES)
