"""A SQLite file that brokers share, and what other programs do to it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from aiohttp_interceptors.brokers.sqlite import SqliteBroker
from aiohttp_interceptors.brokers.sqlite.connection import SUFFIXES


class SqliteSite:
    """A database file."""

    def __init__(self, path):
        self.path = path

    def broker(self, **options):
        return SqliteBroker(self.path, **options)

    async def wipe(self):
        self.remove()

    def remove(self):
        """Delete the file with its ``-wal`` and ``-shm``."""
        for suffix in SUFFIXES:
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)

    def move(self, path, suffixes=SUFFIXES):
        """Move the files with these suffixes away, in this order."""
        for suffix in suffixes:
            if Path(f"{self.path}{suffix}").exists():
                Path(f"{self.path}{suffix}").rename(f"{path}{suffix}")

    @property
    def fifos(self):
        """The directory of the FIFOs."""
        return Path(f"{self.path}-notify")

    def sql(self, statement):
        """Run a statement on the file behind the broker's back."""
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            return connection.execute(statement).fetchall()

    def copy(self, path):
        """Make a backup of the file."""
        with closing(sqlite3.connect(self.path)) as source, closing(sqlite3.connect(path)) as target:
            source.backup(target)


@pytest.fixture
def site(tmp_path):
    return SqliteSite(tmp_path / "hub.db")
