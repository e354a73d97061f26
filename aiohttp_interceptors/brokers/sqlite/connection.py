"""A file of SQLite in WAL mode that may be taken away or replaced under us: opening it, and what its errors mean."""

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

__all__ = ["SqliteFile", "transaction"]


APPLICATION = 0x61695365  # what we, and file(1), know our files by
VERSION = 1
WAL_LIMIT = 2**24  # bytes that what is beside the file keeps of the disk when it begins anew
WAL_PAGES = 256  # of 4 KiB, after which it is taken into the file: four times as many fill a small disk before that
MOVING = 1.0  # seconds in which what is beside a file may be moved after it: it would be taken for the new one's
NAP = 0.01  # seconds after which SQLite is asked again for a lock; by itself it comes to sleep ten times as long
FILES = ("", "-wal", "-shm")  # it, and what SQLite makes beside it

# After these, the same may be done again: it is locked, or full, or the disk does not answer.
_PASSING = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PROTOCOL,
}
# What the operating system says that is one of them, when it opens a file.
_CODES = {
    errno.EDQUOT: sqlite3.SQLITE_FULL,
    errno.EIO: sqlite3.SQLITE_IOERR,
    errno.EMFILE: sqlite3.SQLITE_NOMEM,
    errno.ENFILE: sqlite3.SQLITE_NOMEM,
    errno.ENOSPC: sqlite3.SQLITE_FULL,
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

T = TypeVar("T")


class _Found(NamedTuple):
    """What is at a path."""

    identity: tuple[int, int]
    extent: tuple[int, int]
    """Its bytes and its blocks: what is cut and grows again has holes, and fewer of these."""


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
    tear: Callable[[sqlite3.Connection], None]
    """Take note that something may be lost which was in it."""


class SqliteFile:
    """A connection to whatever file is at a path. For one thread; opened when it is first used.

    It is left when the file at the path, or one of those beside it, is another one. While ``doubt`` is set, which all
    connections of a process share, the file is read as a whole before it is used, and refused if it is damaged. One of
    them sets it that meets damage, or a file that became smaller: ours never do.
    """

    def __init__(self, opening: Opening, doubt: threading.Event) -> None:
        self._opening = opening
        self._doubt = doubt
        self._connection: sqlite3.Connection | None = None
        self._path = opening.path  # without symbolic links: SQLite has its files beside what they lead to
        self._files: list[_Found | None] = [None] * len(FILES)  # as they were when they were used last
        self._torn = False  # whether what was beside the file is no longer there, and with it what was stored
        self._missed: float | None = None  # since when it is not there, though what was beside it is
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
                    if self._connection is None or isinstance(error, BlockingIOError):
                        time.sleep(NAP)  # those may be let in who have to open or close it first
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
        if self._connection is None:
            return
        with suppress(OSError), _alone(self._path, self._opening.patience):  # of two at once neither would be the last
            self._drop()
        self._drop()  # if the lock could not be had

    def _open(self) -> sqlite3.Connection:
        """Return a connection to the file that is at the path now."""
        files = self._find()
        if _is_same(files[0], self._files[0]) and _is_smaller(files[0], self._files[0]):
            self._doubt.set()
        if self._connection is not None and not self._doubt.is_set() and all(map(_is_same, files, self._files)):
            self._files = files
            return self._connection
        path = Path(os.path.realpath(self._opening.path))
        with _alone(path, 0):
            self._leave()
            self._path = path
            connection, self._files = self._connect()
        try:
            if self._doubt.is_set():
                _check_whole(connection, path)
                self._doubt.clear()
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _leave(self) -> None:
        """Close what was open. Of a file that is no longer at the path what is beside that is taken away.

        It would be taken for the new file's.
        """
        if self._connection is not None:
            files = self._find()
            if _is_same(files[0], self._files[0]):
                self._torn |= not all(map(_is_same, files, self._files))
            else:
                together = zip(FILES, files, self._files, strict=True)
                self._remove(end for end, now, then in together if end and _is_same(now, then))
        self._drop()

    def _connect(self) -> tuple[sqlite3.Connection, list[_Found | None]]:
        """Return a connection to the file at the path, which is made if there is none, and what was found there."""
        path, before = self._path, self._find()
        file, wal, _ = before
        if file is None:
            before = self._before_new(before)
        elif wal is not None and wal.extent[0] and not file.extent[0]:
            # SQLite would begin anew, among others who go on.
            raise BrokerRefused(f"{path} is damaged, cut to nothing; {_MOVE}")
        connection = sqlite3.connect(path, timeout=NAP, isolation_level=None)
        try:
            _prepare(connection, self._opening)
            (file,) = _checked(before[:1], self._find()[:1])
            self._opening.claim(connection, file.identity[1])
            if self._torn:
                self._opening.tear(connection)
            files = _checked(before, self._find())
        except BaseException:
            connection.close()
            raise
        self._torn, self._missed = False, None
        return connection, [*files]

    def _before_new(self, files: list[_Found | None]) -> list[_Found | None]:
        """Take away what is beside a file that was moved away, unless somebody may be about to move that too."""
        if files == [None] * len(FILES):
            return files
        self._missed = self._missed or time.monotonic()
        if time.monotonic() < self._missed + MOVING:
            raise BlockingIOError("it is not there, and what is beside it is")
        self._remove(FILES[1:])
        return [None] * len(FILES)

    def _clear(self) -> None:
        """Take what is beside the file into it, which may be most of what fills the disk, before more comes there."""
        with suppress(sqlite3.Error, OSError, BrokerError):
            (busy, _, _) = self._open().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._full = bool(busy)

    def _find(self) -> list[_Found | None]:
        """Return what is at the path, and beside it."""
        return [_found(self._opening.path), *(_found(f"{self._path}{end}") for end in FILES[1:])]

    def _remove(self, ends: Iterable[str]) -> None:
        for end in ends:
            Path(f"{self._path}{end}").unlink(missing_ok=True)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()


@contextmanager
def _alone(path: Path, patience: float) -> Iterator[None]:
    """Open or close a file while no other connection does. Raises ``BlockingIOError`` if one does for long."""
    deadline = time.monotonic() + patience
    lock = Path(f"{path}-lock")
    while (file := _locked(lock)) is None:
        if time.monotonic() >= deadline:
            raise BlockingIOError("another process opens it")
        time.sleep(NAP)
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink()
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_UN)  # a process that was forked meanwhile has it open too
        os.close(file)


def _locked(lock: Path) -> int | None:
    """Return a file that is locked, or ``None`` if somebody has it. Where open files cannot be moved none is needed."""
    file = os.open(lock, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    held = False
    try:
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = os.path.samestat(os.fstat(file), lock.stat())  # else somebody had it, and has taken it away
    except (BlockingIOError, FileNotFoundError):
        pass
    finally:
        if not held:
            os.close(file)
    return file if held else None


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


def _found(path: Path | str) -> _Found | None:
    try:
        found = os.stat(path)  # noqa: PTH116  # with each use
    except FileNotFoundError:
        return None
    return _Found((found.st_dev, found.st_ino), (found.st_size, getattr(found, "st_blocks", 0)))


def _is_same(now: _Found | None, then: _Found | None) -> bool:
    return now is not None and then is not None and now.identity == then.identity


def _is_smaller(now: _Found | None, then: _Found | None) -> bool:
    return now is not None and then is not None and any(map(operator.lt, now.extent, then.extent))


def _checked(before: Sequence[_Found | None], after: Sequence[_Found | None]) -> list[_Found]:
    """Return files that were, or were not, there before they were opened."""
    found = [now for now in after if now is not None]
    others = [then for then, now in zip(before, after, strict=True) if then is not None and not _is_same(now, then)]
    if len(found) < len(after) or others:
        raise BlockingIOError("it was replaced while it was opened")
    return found


def _is_busy(error: Exception) -> bool:
    return isinstance(error, BlockingIOError) or _code(error) & 0xFF == sqlite3.SQLITE_BUSY


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
        code = sqlite3.SQLITE_BUSY if _is_busy(error) else _CODES.get(error.errno or 0, sqlite3.SQLITE_CANTOPEN)
    passing = code in _PASSING or _code(error) == sqlite3.SQLITE_READONLY_DBMOVED
    advice = _ADVICE.get(code)
    return (BrokerDown if passing else BrokerRefused)(f"{path}: {error}" + (f"; {advice}" if advice else ""))
