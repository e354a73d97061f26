"""The connection to the database file of a ``SqliteBroker``.

The file may be deleted, moved, replaced or truncated while it is open. ``SqliteFile`` notices that before each use,
opens the file that is at the path now, and translates the errors of SQLite and of the operating system.
"""

from __future__ import annotations

import errno
import operator
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from ...exceptions import BrokerDown, BrokerError, BrokerRefused, OutcomeUnknown

if sys.platform != "win32":
    import fcntl

__all__ = ["FileOptions", "SqliteFile", "transaction"]


APPLICATION_ID = 0x61695365  # "aiSe": marks our files, for us and for file(1)
VERSION = 1  # of the tables
JOURNAL_SIZE_LIMIT = 2**24  # bytes to which SQLite truncates the -wal when it starts again from its beginning
AUTOCHECKPOINT = 256  # pages of 4 KiB in the -wal until a checkpoint; SQLite's default, 1000, fills a small disk
ORPHAN_DELAY = 1.0  # seconds until a -wal or -shm without its database file is deleted: it may be about to be moved too
RETRY_INTERVAL = 0.01  # seconds between two attempts to get a lock; SQLite's own busy handler sleeps up to 0.1
SUFFIXES = ("", "-wal", "-shm")  # the database file, and those that SQLite keeps beside it

# A retry may succeed: the file is locked, the disk is full or does not answer.
_TRANSIENT = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PROTOCOL,
}
# Errors of the operating system that mean the same.
_ERRNO_CODES = {
    errno.EDQUOT: sqlite3.SQLITE_FULL,
    errno.EIO: sqlite3.SQLITE_IOERR,
    errno.EMFILE: sqlite3.SQLITE_NOMEM,
    errno.ENFILE: sqlite3.SQLITE_NOMEM,
    errno.ENOSPC: sqlite3.SQLITE_FULL,
}
# Signs of corruption, which another connection may not see for long because of its page cache.
_CORRUPTION = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR_SHORT_READ}
# A COMMIT with one of these did not write its commit record, so the transaction is not stored.
_NOT_COMMITTED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE}
_MOVE_AWAY = "move it away with its -wal and -shm, and a new one is created"
_ADVICE = {
    sqlite3.SQLITE_BUSY: "another process is writing, or was stopped during a write",
    sqlite3.SQLITE_CANTOPEN: "its directory must exist, and this process must be allowed to write to it",
    sqlite3.SQLITE_READONLY: "this process must be allowed to write to it, and to create files beside it",
    sqlite3.SQLITE_CORRUPT: _MOVE_AWAY,
    sqlite3.SQLITE_FULL: "the disk needs some MiB more for the files beside it",
    sqlite3.SQLITE_NOTADB: f"give another path, or {_MOVE_AWAY}",
}

T = TypeVar("T")


class _FileStat(NamedTuple):
    identity: tuple[int, int]
    """Device and inode."""
    extent: tuple[int, int]
    """Bytes and blocks. A file that was truncated and grew again is sparse, and has fewer blocks."""


class FileOptions(NamedTuple):
    """How to open a database file."""

    path: Path
    lock_timeout: float
    """Seconds to wait for a lock that another process holds."""
    synchronous: str
    """The value of ``PRAGMA synchronous``."""
    create_tables: Callable[[sqlite3.Connection], None]
    """Called within a transaction, for a new file."""
    verify_identity: Callable[[sqlite3.Connection, int], None]
    """Called with the inode of each file that is opened."""
    on_wal_lost: Callable[[sqlite3.Connection], None]
    """Called when the ``-wal`` or ``-shm`` was deleted while the file was open, so that transactions may be lost."""


class SqliteFile:
    """A connection to the database file at a path, opened at the first use. For one thread.

    The connection is replaced when the file, its ``-wal`` or its ``-shm`` is another one than before.

    Args:
        options: How to open the file.
        corruption_suspected: Shared by the connections of a process. A connection sets it when it finds corruption, or
            a file that became smaller, which the broker never does. While it is set, the file is opened again and read
            as a whole before it is used, and refused if it is corrupt.
    """

    def __init__(self, options: FileOptions, corruption_suspected: threading.Event) -> None:
        self._options = options
        self._corruption_suspected = corruption_suspected
        self._connection: sqlite3.Connection | None = None
        self._path = options.path  # with symbolic links resolved, as SQLite does for the -wal and -shm
        self._files: list[_FileStat | None] = [None] * len(SUFFIXES)  # at the last use
        self._wal_lost = False  # the -wal or -shm was deleted while the last connection was open
        self._missing_since: float | None = None  # when the file was missing first while its -wal or -shm was there
        self._disk_full = False  # and the -wal has not been checkpointed since

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Call a function with a connection, and again while it meets a lock, up to the lock timeout.

        Raises:
            BrokerError: For any error of SQLite or of the operating system.
        """
        deadline = time.monotonic() + self._options.lock_timeout
        if self._disk_full:
            self.checkpoint()
        while True:
            try:
                return work(self._open())
            except (sqlite3.Error, OSError) as error:
                busy = _is_busy(error)
                if busy and time.monotonic() < deadline:
                    # Another process may have to open or close the file first.
                    if self._connection is None or isinstance(error, BlockingIOError):
                        time.sleep(RETRY_INTERVAL)
                    continue
                if not busy:
                    self.close()  # its page cache may be wrong
                if _is_corruption(error):
                    self._corruption_suspected.set()
                if _is_disk_full(error) and not self._disk_full:
                    self._disk_full = True
                    self.checkpoint()
                    continue
                raise _translate(error, self._options.path) from error

    def checkpoint(self) -> None:
        """Move the content of the ``-wal`` into the file and truncate it, unless another connection uses it."""
        with suppress(sqlite3.Error, OSError, BrokerError):
            (busy, _, _) = self._open().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._disk_full = self._disk_full and bool(busy)  # it may be most of what fills the disk

    def close(self) -> None:
        """Close the connection. The last one of all processes checkpoints the ``-wal`` and deletes it. Idempotent."""
        if self._connection is None:
            return
        # Under the lock, because of two that close at the same time neither may be the last.
        with suppress(OSError), _exclusive(self._path, self._options.lock_timeout):
            self._close_connection()
        self._close_connection()  # if the lock was not available

    def _open(self) -> sqlite3.Connection:
        """Return a connection to the file that is at the path now."""
        files = self._stat_files()
        if _is_same(files[0], self._files[0]) and _has_shrunk(files[0], self._files[0]):
            self._corruption_suspected.set()
        is_current = all(map(_is_same, files, self._files))
        if self._connection is not None and not self._corruption_suspected.is_set() and is_current:
            self._files = files
            return self._connection
        path = Path(os.path.realpath(self._options.path))
        with _exclusive(path, 0):
            self._close_replaced()
            self._path = path
            connection, self._files = self._connect()
        try:
            if self._corruption_suspected.is_set():
                _quick_check(connection, path)
                self._corruption_suspected.clear()
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _close_replaced(self) -> None:
        """Close a database file that was replaced, and delete its stale ``-wal`` and ``-shm``.

        SQLite would apply them to the new file.
        """
        if self._connection is not None:
            files = self._stat_files()
            if _is_same(files[0], self._files[0]):
                self._wal_lost |= not all(map(_is_same, files, self._files))
            else:
                stats = zip(SUFFIXES, files, self._files, strict=True)
                self._delete(suffix for suffix, now, before in stats if suffix and _is_same(now, before))
        self._close_connection()

    def _connect(self) -> tuple[sqlite3.Connection, list[_FileStat | None]]:
        """Open the file at the path, or create it. Return the connection and the files that it uses."""
        path, before = self._path, self._stat_files()
        file, wal, _ = before
        if file is None:
            before = self._delete_orphans(before)
        elif wal is not None and wal.extent[0] and not file.extent[0]:
            # SQLite would create a new database while other processes still use the old one.
            raise BrokerRefused(f"{path} is damaged: it was truncated to nothing; {_MOVE_AWAY}")
        connection = sqlite3.connect(path, timeout=RETRY_INTERVAL, isolation_level=None)
        try:
            _initialize(connection, self._options)
            (file,) = _verify_unchanged(before[:1], self._stat_files()[:1])
            self._options.verify_identity(connection, file.identity[1])
            if self._wal_lost:
                self._options.on_wal_lost(connection)
            files = _verify_unchanged(before, self._stat_files())
        except BaseException:
            connection.close()
            raise
        self._wal_lost, self._missing_since = False, None
        return connection, [*files]

    def _delete_orphans(self, files: list[_FileStat | None]) -> list[_FileStat | None]:
        """Delete the ``-wal`` and ``-shm`` of a file that was moved away, unless they may be about to be moved too."""
        if files == [None] * len(SUFFIXES):
            return files
        self._missing_since = self._missing_since or time.monotonic()
        if time.monotonic() < self._missing_since + ORPHAN_DELAY:
            raise BlockingIOError("the file is missing, but its -wal or -shm is still there")
        self._delete(SUFFIXES[1:])
        return [None] * len(SUFFIXES)

    def _stat_files(self) -> list[_FileStat | None]:
        return [_stat(self._options.path), *(_stat(f"{self._path}{suffix}") for suffix in SUFFIXES[1:])]

    def _delete(self, suffixes: Iterable[str]) -> None:
        for suffix in suffixes:
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)

    def _close_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Run a block in a write transaction. Raises ``OutcomeUnknown`` if it is unknown whether it was committed."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        _commit(connection)
    except BaseException:
        if connection.in_transaction:
            with suppress(sqlite3.Error):  # then the connection is closed, which rolls back too
                connection.execute("ROLLBACK")
        raise


def _commit(connection: sqlite3.Connection) -> None:
    try:
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        if {_error_code(error), _error_code(error) & 0xFF} & _NOT_COMMITTED:
            raise
        raise OutcomeUnknown(f"a transaction may have been stored or not: {error}") from error


def _initialize(connection: sqlite3.Connection, options: FileOptions) -> None:
    """Create the tables in a new file, refuse the database of another application, and set the pragmas."""
    if not _has_tables(connection, options.path):
        with transaction(connection):
            if not _has_tables(connection, options.path):
                options.create_tables(connection)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {VERSION}")
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise BrokerRefused(
            f"SQLite has no shared memory at {options.path}, so that its journal mode is {mode} and not wal: "
            "give a path on a local file system"
        )
    connection.execute(f"PRAGMA synchronous = {options.synchronous}")
    connection.execute(f"PRAGMA journal_size_limit = {JOURNAL_SIZE_LIMIT}")
    connection.execute(f"PRAGMA wal_autocheckpoint = {AUTOCHECKPOINT}")


def _has_tables(connection: sqlite3.Connection, path: Path) -> bool:
    """Return whether a file has our tables or is empty. Raises ``BrokerRefused`` for any other database."""
    tables, application_id, version = connection.execute(
        "SELECT (SELECT count(*) FROM sqlite_master), application_id, user_version "
        "FROM pragma_application_id, pragma_user_version"
    ).fetchone()
    if application_id == APPLICATION_ID and version == VERSION:
        return True
    if application_id == APPLICATION_ID:
        raise BrokerRefused(
            f"{path} has tables of version {version}, and this release supports {VERSION}: run all processes with the "
            "same release, or move the file away, and a new one is created"
        )
    if tables or application_id:
        raise BrokerRefused(f"{path} is the database of another application: give another path")
    return False


def _quick_check(connection: sqlite3.Connection, path: Path) -> None:
    """Read the whole file. Raises ``BrokerRefused`` if it is corrupt."""
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise BrokerRefused(f"{path} is damaged, perhaps truncated: {' '.join(found.split())}; {_MOVE_AWAY}")


@contextmanager
def _exclusive(path: Path, lock_timeout: float) -> Iterator[None]:
    """Keep other processes from opening or closing a file. Raises ``BlockingIOError`` after the timeout."""
    deadline = time.monotonic() + lock_timeout
    lock = Path(f"{path}-lock")
    while (file := _try_lock(lock)) is None:
        if time.monotonic() >= deadline:
            raise BlockingIOError("another process is opening it")
        time.sleep(RETRY_INTERVAL)
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink()
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_UN)  # a process that was forked meanwhile has the file open too
        os.close(file)


def _try_lock(lock: Path) -> int | None:
    """Return a locked file descriptor, or ``None`` if another process has the lock.

    Windows needs no lock, because open files cannot be moved there.
    """
    file = os.open(lock, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    locked = False
    try:
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked = os.path.samestat(os.fstat(file), lock.stat())  # otherwise its former owner has deleted it
    except (BlockingIOError, FileNotFoundError):
        pass
    finally:
        if not locked:
            os.close(file)
    return file if locked else None


def _stat(path: Path | str) -> _FileStat | None:
    try:
        found = os.stat(path)  # noqa: PTH116  # at each use
    except FileNotFoundError:
        return None
    return _FileStat((found.st_dev, found.st_ino), (found.st_size, getattr(found, "st_blocks", 0)))


def _is_same(now: _FileStat | None, before: _FileStat | None) -> bool:
    return now is not None and before is not None and now.identity == before.identity


def _has_shrunk(now: _FileStat | None, before: _FileStat | None) -> bool:
    return now is not None and before is not None and any(map(operator.lt, now.extent, before.extent))


def _verify_unchanged(before: Sequence[_FileStat | None], after: Sequence[_FileStat | None]) -> list[_FileStat]:
    """Return the files after opening. Raises ``BlockingIOError`` if one is missing, or another one than before."""
    found = [now for now in after if now is not None]
    replaced = [then for then, now in zip(before, after, strict=True) if then is not None and not _is_same(now, then)]
    if len(found) < len(after) or replaced:
        raise BlockingIOError("it was replaced while it was opened")
    return found


def _is_busy(error: Exception) -> bool:
    return isinstance(error, BlockingIOError) or _error_code(error) & 0xFF == sqlite3.SQLITE_BUSY


def _is_corruption(error: Exception) -> bool:
    return bool({_error_code(error), _error_code(error) & 0xFF} & _CORRUPTION)


def _is_disk_full(error: Exception) -> bool:
    """Return whether a write failed for lack of space, or at a limit of the file size: nothing was stored."""
    return _error_code(error) in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE}


def _error_code(error: Exception) -> int:
    """Return SQLite's extended result code: the primary code is its lower 8 bits."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)


def _translate(error: sqlite3.Error | OSError, path: Path) -> BrokerError:
    """Return the ``BrokerError`` for an error, with advice for the administrator."""
    extended = _error_code(error)
    code = sqlite3.SQLITE_CORRUPT if extended == sqlite3.SQLITE_IOERR_SHORT_READ else extended & 0xFF
    if isinstance(error, OSError):
        code = sqlite3.SQLITE_BUSY if _is_busy(error) else _ERRNO_CODES.get(error.errno or 0, sqlite3.SQLITE_CANTOPEN)
    transient = code in _TRANSIENT or extended == sqlite3.SQLITE_READONLY_DBMOVED
    advice = _ADVICE.get(code)
    return (BrokerDown if transient else BrokerRefused)(f"{path}: {error}" + (f"; {advice}" if advice else ""))
