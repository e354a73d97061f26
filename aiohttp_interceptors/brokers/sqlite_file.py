"""A file of SQLite in WAL mode that may be taken away or replaced under us: opening it, and what its errors mean."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

from ..errors import BrokerDown, BrokerError, BrokerRefused, OutcomeUnknown

__all__ = ["SqliteFile", "transaction"]

APPLICATION = 0x61695365  # what we, and file(1), know our files by
VERSION = 1
WAL_LIMIT = 2**24  # bytes that what is beside the file keeps of the disk when it begins anew
WAL_PAGES = 256  # of 4 KiB, after which it is taken into the file: four times as many fill a small disk before that
NAP = 0.01  # seconds after which SQLite is asked again for a lock; by itself it comes to sleep ten times as long
BESIDE = ("-wal", "-shm")

# After these, the same may be done again: it is locked, or full, or the disk does not answer.
_PASSING = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PROTOCOL,
}
# What damage looks like; what SQLite has in its cache may hide it from a connection for long.
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR_SHORT_READ}
# When a commit fails by these, its last bytes, which make it one, were not written.
_SURE = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE}
_MOVE = "move it away with what is beside it, and a new one is made"
_ADVICE = {
    sqlite3.SQLITE_BUSY: "another process is writing, or was stopped while it did",
    sqlite3.SQLITE_CANTOPEN: "its folder has to be there, and this process has to be allowed to write in it",
    sqlite3.SQLITE_READONLY: "this process has to be allowed to write it, and to make files beside it",
    sqlite3.SQLITE_CORRUPT: _MOVE,
    sqlite3.SQLITE_FULL: "beside it has to be room for some MiB more",
    sqlite3.SQLITE_NOTADB: f"give another path, or {_MOVE}",
}

_Identity: TypeAlias = tuple[int, int]
T = TypeVar("T")


class Opening(NamedTuple):
    """How to open a file."""

    path: Path
    patience: float
    """Seconds to wait for the lock of another process."""
    synchronous: str
    create: Callable[[sqlite3.Connection], None]
    """Make the tables, in a transaction."""
    claim: Callable[[sqlite3.Connection, int], None]
    """Take note of its inode."""


class SqliteFile:
    """A connection to whatever file is at a path. For one thread; opened when it is first used.

    While ``doubt`` is set, which all connections of a process share, the file is read as a whole before it is used,
    and refused if it is damaged. One of them sets it that meets damage, or a file that became smaller: ours never do.
    """

    def __init__(self, opening: Opening, doubt: threading.Event) -> None:
        self._opening = opening
        self._doubt = doubt
        self._connection: sqlite3.Connection | None = None
        self._files: list[_Identity | None] = []  # it and those beside it, when it was opened
        self._extent = 0, 0  # when it was used last
        self._full = False  # whether there was no room, and all that is beside the file is still there

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do something with a connection, and again from its beginning while that meets the lock of another process.

        Raises what SQLite raises as a ``BrokerError``.
        """
        deadline = time.monotonic() + self._opening.patience
        if self._full:
            self._clear()
        while True:
            try:
                return work(self._open())
            except (sqlite3.Error, OSError) as error:
                busy = _is_busy(error)
                if busy and time.monotonic() < deadline:
                    continue
                if not busy:
                    self.close()  # what it knows of the file may be wrong
                if _is_damage(error):
                    self._doubt.set()
                if _is_full(error) and not self._full:
                    self._full = True
                    self._clear()
                    continue
                raise _explained(error, self._opening.path) from error

    def close(self) -> None:
        """Give the connection back. The last one takes what is beside the file into it. Twice is once."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def _open(self) -> sqlite3.Connection:
        """Return a connection to the file that is at the path now."""
        path = self._opening.path
        before, extent = _identity(path), _extent(path)
        same = bool(self._files) and before == self._files[0]
        if same and any(now < then for now, then in zip(extent, self._extent, strict=True)):
            self._doubt.set()
        self._extent = extent
        if self._connection is not None:
            if not same:
                self._leave(self._connection)
            elif self._doubt.is_set():
                self.close()
            else:
                return self._connection
        connection = sqlite3.connect(path, timeout=NAP, isolation_level=None)
        try:
            _prepare(connection, self._opening)
            if self._doubt.is_set():
                _check_whole(connection, path)
                self._doubt.clear()
            self._opening.claim(connection, _same(path, before, _identity(path)))
            self._files = [_identity(Path(f"{path}{end}")) for end in ("", *BESIDE)]
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _clear(self) -> None:
        """Take what is beside the file into it, which may be most of what fills the disk, before more comes there."""
        with suppress(sqlite3.Error, OSError, BrokerError):
            (busy, _, _) = self._open().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._full = bool(busy)

    def _leave(self, connection: sqlite3.Connection) -> None:
        """Close a file that is no longer at the path, and take away what is beside that because of it.

        All who have it open do so, one at a time. What they leave would be taken for the new file's.
        """
        try:
            with transaction(connection):
                for end, identity in zip(BESIDE, self._files[1:], strict=True):
                    beside = Path(f"{self._opening.path}{end}")
                    if identity is not None and identity == _identity(beside):
                        beside.unlink()
        except sqlite3.Error as error:
            if _is_busy(error):
                raise
        self.close()


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Do all of a block or nothing, alone. Raises ``OutcomeUnknown`` if nobody knows which."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        _commit(connection)
    except BaseException:
        if connection.in_transaction:
            with suppress(sqlite3.Error):  # after which the connection is closed, which undoes it too
                connection.execute("ROLLBACK")
        raise


def _commit(connection: sqlite3.Connection) -> None:
    try:
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        if {_code(error), _code(error) & 0xFF} & _SURE:
            raise
        raise OutcomeUnknown(f"a transaction may have been stored or not: {error}") from error


def _prepare(connection: sqlite3.Connection, opening: Opening) -> None:
    """Make the file ours if it is new, and refuse one that is somebody else's."""
    if not _is_ours(connection, opening.path):
        with transaction(connection):
            if not _is_ours(connection, opening.path):
                opening.create(connection)
                connection.execute(f"PRAGMA application_id = {APPLICATION}")
                connection.execute(f"PRAGMA user_version = {VERSION}")
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise BrokerRefused(
            f"{opening.path} is where SQLite has no shared memory, so that its journal mode is {mode} and not wal: "
            "give a path on a local file system"
        )
    connection.execute(f"PRAGMA synchronous = {opening.synchronous}")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT}")
    connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")


def _is_ours(connection: sqlite3.Connection, path: Path) -> bool:
    """Tell whether a file has our tables; one that has none can be given them. Raises ``BrokerRefused`` for others."""
    tables, application, version = connection.execute(
        "SELECT (SELECT count(*) FROM sqlite_master), application_id, user_version "
        "FROM pragma_application_id, pragma_user_version"
    ).fetchone()
    if application == APPLICATION and version == VERSION:
        return True
    if application == APPLICATION:
        raise BrokerRefused(
            f"{path} has tables of version {version}, and this release knows {VERSION}: have all processes use one "
            "release, or move the file away, and a new one is made"
        )
    if tables or application:
        raise BrokerRefused(f"{path} is a database of something else: give a path of its own")
    return False


def _check_whole(connection: sqlite3.Connection, path: Path) -> None:
    """Raise ``BrokerRefused`` for a file that is damaged. Reads all of it."""
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise BrokerRefused(f"{path} is damaged, perhaps cut short: {' '.join(found.split())}; {_MOVE}")


def _identity(path: Path) -> _Identity | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _extent(path: Path) -> tuple[int, int]:
    """Return the bytes of a file, and its blocks: what is cut and grows again has holes, and fewer of these."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_size, getattr(found, "st_blocks", 0)


def _same(path: Path, before: _Identity | None, after: _Identity | None) -> int:
    """Return the inode of a file that was, or was not, there before it was opened."""
    if after is None or before not in {None, after}:
        raise BrokerDown(f"{path} was replaced while it was opened")
    return after[1]


def _is_busy(error: Exception) -> bool:
    return _code(error) & 0xFF == sqlite3.SQLITE_BUSY


def _is_damage(error: Exception) -> bool:
    return bool({_code(error), _code(error) & 0xFF} & _DAMAGE)


def _is_full(error: Exception) -> bool:
    """Tell whether there was no room, or a limit of the file's size: surely nothing was stored."""
    return _code(error) in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE}


def _code(error: Exception) -> int:
    """Return SQLite's code for an error, with what it says in particular in the upper bits."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)


def _explained(error: sqlite3.Error | OSError, path: Path) -> BrokerError:
    """Return what an error means for a publisher, and for who looks after the file."""
    code = sqlite3.SQLITE_CORRUPT if _code(error) == sqlite3.SQLITE_IOERR_SHORT_READ else _code(error) & 0xFF
    if isinstance(error, OSError):
        code = sqlite3.SQLITE_CANTOPEN
    passing = code in _PASSING or _code(error) == sqlite3.SQLITE_READONLY_DBMOVED
    advice = _ADVICE.get(code)
    return (BrokerDown if passing else BrokerRefused)(f"{path}: {error}" + (f"; {advice}" if advice else ""))
