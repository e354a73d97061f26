"""A file of SQLite where brokers share a log, and what others do to it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from aiohttp_interceptors.brokers.sqlite import SqliteBroker


class SqliteSite:
    """A file."""

    def __init__(self, path):
        self.path = path

    def broker(self, **options):
        return SqliteBroker(self.path, **options)

    async def wipe(self):
        self.remove()

    def remove(self):
        for end in "", "-wal", "-shm":
            Path(f"{self.path}{end}").unlink(missing_ok=True)

    def move(self, path, files=("", "-wal", "-shm")):
        """Move it away with what is beside it, in some order."""
        for end in files:
            if Path(f"{self.path}{end}").exists():
                Path(f"{self.path}{end}").rename(f"{path}{end}")

    @property
    def bells(self):
        return Path(f"{self.path}-bells")

    def sql(self, statement):
        """Do something to the file that the broker has no word for."""
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            return connection.execute(statement).fetchall()

    def copy(self, path):
        """Copy the file as an administrator does who makes backups."""
        with closing(sqlite3.connect(self.path)) as source, closing(sqlite3.connect(path)) as target:
            source.backup(target)


@pytest.fixture
def site(tmp_path):
    return SqliteSite(tmp_path / "hub.db")
