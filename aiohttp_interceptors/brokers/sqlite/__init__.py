"""A file of SQLite: history that outlives a restart, and processes of one machine as one. Nothing to install."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from pathlib import Path

from ..._checks import check_count, check_seconds
from ...exceptions import BrokerDown
from ...hub.broker import CaughtUp, LogPosition, Subscribed, TailItem, Trimmed, Truncated
from ..base import Draft, Retention, Writer
from .log import Page, SqliteLog
from .notifier import Bell, ring
from .thread import SqliteThread

__all__ = ["SqliteBroker"]


SILENCE = 10.0  # seconds after which a disk that does not answer is lost
POLL = 0.25  # seconds after which one looks for what no bell has told, and
CONFIRM = 0.25  # seconds between two confirmations, at least, and
CONFIRMED_WITHIN = 2.0  # seconds, at most, that the disk had for one: an older answer says nothing of now
POLL_WITHOUT_BELL = 0.015  # where there are none: so that it is soon all the same


class SqliteBroker:
    """Keep the records of a Hub in a file, for this process and all others of this machine. A ``Broker``.

    ``path`` is a file on a local disk, which is made if it is missing, in a folder that is there; beside it are made
    those with ``-wal`` and ``-shm``, for moments ``-lock``, and a folder with ``-bells`` after its name. It keeps the
    latest ``max_records`` entries that are not older than ``max_age`` seconds (``None`` is no limit), and deletes
    others as it publishes.

    What is acknowledged outlives the crash of a process, and with ``synchronous="FULL"`` that of the machine; with
    ``"NORMAL"`` the latest may be lost then, which all clients are told of. ``publish`` raises within
    ``publish_timeout`` seconds. A disk that is full, and a file that is locked for half that time, are ``BrokerDown``;
    a file that is damaged, or not ours, is ``BrokerRefused``. Raises ``TypeError`` or ``ValueError`` for arguments that
    cannot work.
    """

    confirms: float = 1.0
    """Seconds at most between two ``CaughtUp`` while the disk answers."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_records: int = 100_000,
        max_age: float | None = 86400.0,
        publish_timeout: float = 5.0,
        synchronous: str = "FULL",
    ) -> None:
        check_count("max_records", max_records, 1)
        check_seconds("max_age", max_age, "no limit")
        check_seconds("publish_timeout", publish_timeout, "")
        if synchronous not in {"FULL", "NORMAL"}:
            raise ValueError(f'synchronous is "FULL" or "NORMAL", not {synchronous!r}')
        file = _checked_path(path)
        patience, retention, doubt = publish_timeout / 2, Retention(max_records, max_age), threading.Event()
        self._bells = Path(f"{file}-bells")
        self._bell: Bell | None = None
        self._known: LogPosition | None = None
        self._news = asyncio.Event()
        self._writer = Writer(self._write, publish_timeout)
        # Each has a thread and a connection, so that to read waits neither for a commit nor for a lock.
        self._writing = SqliteThread(SqliteLog(file, patience, synchronous, retention, doubt), "write")
        self._reading = SqliteThread(SqliteLog(file, patience, synchronous, retention, doubt), "read")

    async def publish(
        self, topic: str, payload: bytes, *, idempotency_key: str | None = None, connection: object = None
    ) -> LogPosition:
        """Append an entry, as every ``Broker`` does. A key that has no UTF-8 is a ``ValueError``."""
        if connection is not None:
            raise TypeError("a SqliteBroker writes in nobody's transaction; connection is for PostgreSQL")
        if idempotency_key is not None:
            idempotency_key.encode()  # here and not in the thread, where it would be the end of others too
        return await self._writer.put(Draft(topic, payload, idempotency_key))

    async def tail(self, after: LogPosition | None) -> AsyncGenerator[TailItem, None]:
        """Follow the entries after a place, as every ``Broker`` does."""
        if after is not None and self._known is None:
            self._known = after
        clock = asyncio.get_running_loop().time
        try:
            asked, page = clock(), await self._read(after)
            self._hang_bell()
            yield Subscribed(page.start if after is None else after)
            confirmed = float("-inf")
            while True:
                if page.rewound is not None:
                    self._note(page.rewound)
                    yield Truncated(page.rewound)
                if page.lost:
                    yield Trimmed(page.start.offset)
                position = page.start
                if page.entries:
                    position = LogPosition(position.epoch, page.entries[-1].offset)
                    self._note(position)
                    yield page.entries
                now = clock()
                if not page.more and now >= confirmed + CONFIRM and (now <= asked + CONFIRMED_WITHIN or confirmed < 0):
                    confirmed = now
                    yield CaughtUp()
                rung = page.more or await self._wait()
                self._news.clear()
                asked, page = clock(), await self._read(position)
                if page.entries and not rung:
                    self._hang_bell()  # who stored them has not found it
        finally:
            self._take_bell_down()

    async def close(self) -> None:
        """Give back the file and the threads, after those publishes that are on their way. Twice is once."""
        await self._writer.close()
        await asyncio.gather(self._writing.close(SILENCE), self._reading.close(SILENCE))

    async def _write(self, drafts: Sequence[Draft]) -> Sequence[LogPosition]:
        own = None if self._bell is None else self._bell.path
        positions = await self._writing.run(lambda log: self._append(log, drafts, own))
        self._note(max(positions))
        self._news.set()
        return positions

    def _append(self, log: SqliteLog, drafts: Sequence[Draft], own: Path | None) -> list[LogPosition]:
        positions = log.append(drafts, self._known)
        ring(self._bells, own)
        return positions

    async def _read(self, after: LogPosition | None) -> Page:
        try:
            async with asyncio.timeout(SILENCE):
                return await self._reading.run(lambda log: log.read(after, self._known))
        except TimeoutError:
            raise BrokerDown(f"the disk has not answered for {SILENCE} s") from None

    def _note(self, position: LogPosition) -> None:
        """Note that a place was given or acknowledged."""
        if self._known is None or self._known.epoch != position.epoch or self._known.offset < position.offset:
            self._known = position

    async def _wait(self) -> bool:
        """Wait until there may be something new, and tell whether that was told."""
        try:
            async with asyncio.timeout(POLL_WITHOUT_BELL if self._bell is None else POLL):
                await self._news.wait()
        except TimeoutError:
            return False
        return True

    def _hang_bell(self) -> None:
        self._take_bell_down()
        with suppress(OSError, NotImplementedError):  # then there is none
            self._bell = bell = Bell(self._bells)
            asyncio.get_running_loop().add_reader(bell.file, self._on_ring, bell)
            self._news.set()  # of what was stored before it hung
            return
        self._take_bell_down()

    def _on_ring(self, bell: Bell) -> None:
        bell.hush()
        self._news.set()

    def _take_bell_down(self) -> None:
        bell, self._bell = self._bell, None
        if bell is not None:
            asyncio.get_running_loop().remove_reader(bell.file)
            bell.close()


def _checked_path(path: object) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"the path of a SqliteBroker is a str or a path, not {path!r}")
    name = os.fspath(path)
    if not isinstance(name, str):
        raise TypeError(f"the path of a SqliteBroker is text, not {name!r}")
    if not name or name == ":memory:" or name.startswith("file:"):
        raise ValueError(f"a SqliteBroker needs the path of a file, which {name!r} is not")
    return Path(os.path.abspath(name))  # a process may change its folder  # noqa: PTH100
