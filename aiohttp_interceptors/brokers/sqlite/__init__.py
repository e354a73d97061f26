"""A broker on a SQLite file: history that survives a restart, shared by the processes of one machine.

It needs no server and no dependency. ``SqliteBroker`` has two threads, each with its own connection, so that
reading waits neither for a commit nor for a lock.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from ..._checks import check_count, check_seconds
from ...exceptions import OutcomeUnknown
from ...hub.broker import LogPosition
from ..base import AppendRequest, BaseBroker, LogRetention
from .log import HighWaterMark, SqliteLog
from .notifier import Notifier, notify_others
from .tail import SqliteTail
from .thread import SqliteThread

__all__ = ["SqliteBroker"]


CLOSE_TIMEOUT = 10.0  # seconds until a thread that waits for the disk is abandoned


class SqliteBroker(BaseBroker):
    """A ``Broker`` that keeps the records of a Hub in a file, for all processes of this machine.

    An acknowledged record survives the crash of a process and, with ``synchronous="FULL"``, that of the machine. With
    ``"NORMAL"`` the latest records may be lost in a crash of the machine; clients then receive a gap event.

    ``publish`` and ``tail`` raise ``BrokerDown`` while the disk is full, the disk does not answer, or another process
    holds the lock for more than half of ``publish_timeout``. They raise ``BrokerRefused`` while the file is damaged or
    belongs to another application.

    Args:
        path: A file on a local disk. It is created if it is missing; its directory must exist. SQLite keeps files with
            the suffixes ``-wal`` and ``-shm`` beside it, and the broker creates a directory with the suffix
            ``-notify`` and for moments a file with the suffix ``-lock``.
        max_records: Number of records to keep.
        max_age: Seconds to keep a record, or ``None`` for no limit. Old records are deleted with the next publish.
        publish_timeout: Seconds until ``publish`` raises.
        synchronous: ``"FULL"`` or ``"NORMAL"``, as in ``PRAGMA synchronous``.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has a value that cannot work.
    """

    confirms: float = 1.0
    """Seconds between two ``CaughtUp`` of a tail, at most, while the disk answers."""

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
        super().__init__(publish_timeout)
        retention = LogRetention(max_records, max_age)
        corruption_suspected = threading.Event()
        self._high_water_mark = HighWaterMark()

        def log() -> SqliteLog:
            return SqliteLog(
                file, publish_timeout / 2, synchronous, retention, corruption_suspected, self._high_water_mark
            )

        self._publish_timeout = publish_timeout
        self._notifier = Notifier(Path(f"{file}-notify"))
        self._writing = SqliteThread(log(), "write")
        self._reading = SqliteThread(log(), "read")

    async def _write(self, requests: Sequence[AppendRequest]) -> Sequence[LogPosition]:
        own = self._notifier.path

        def append(log: SqliteLog) -> list[LogPosition]:
            positions = log.append(requests)
            notify_others(self._notifier.directory, own)
            return positions

        positions = await self._writing.run(append)
        self._high_water_mark.advance(max(positions))
        self._notifier.notify()
        return positions

    async def _erase(self, topic: str, before: LogPosition) -> None:
        after: int | None = 0
        while after is not None:
            after = await self._erase_step(topic, after, before)
        await self._writing.run(SqliteLog.checkpoint)

    async def _erase_step(self, topic: str, after: int, before: LogPosition) -> int | None:
        try:
            async with asyncio.timeout(self._publish_timeout):
                return await self._writing.run(lambda log: log.erase(topic, after, before))
        except TimeoutError:
            raise OutcomeUnknown(f"the disk has not answered for {self._publish_timeout} s") from None

    async def _open_tail(self) -> SqliteTail:
        return SqliteTail(self._reading, self._notifier, self._high_water_mark)

    async def _disconnect(self) -> None:
        await asyncio.gather(self._writing.close(CLOSE_TIMEOUT), self._reading.close(CLOSE_TIMEOUT))


def _checked_path(path: object) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"the path of a SqliteBroker is a str or a path-like object, not {path!r}")
    name = os.fspath(path)
    if not isinstance(name, str):
        raise TypeError(f"the path of a SqliteBroker is a str, not {name!r}")
    if not name or name == ":memory:" or name.startswith("file:"):
        raise ValueError(f"a SqliteBroker needs the path of a file, not {name!r}")
    return Path(os.path.abspath(name))  # the process may change its working directory  # noqa: PTH100
