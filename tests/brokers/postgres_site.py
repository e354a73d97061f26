"""A log on a server of PostgreSQL that brokers share, and what an administrator does to it."""

from __future__ import annotations

import itertools

import psycopg
import pytest

from aiohttp_interceptors.brokers.postgres import PostgresBroker
from aiohttp_interceptors.brokers.postgres.schema import migration

numbers = itertools.count()


class PostgresSite:
    """A table that no other test uses."""

    def __init__(self, server):
        self.server = server
        self.table = f"records_{next(numbers)}"
        self.sql(migration(self.table))

    def broker(self, connect=None, **options):
        return PostgresBroker(connect or self.server.dsn, **{"table": self.table, **options})

    async def wipe(self):
        for suffix in "", "_log", "_keys":
            self.sql(f"TRUNCATE {self.table}{suffix}")

    def sql(self, statement, *values):
        """Run a statement behind the broker's back."""
        with psycopg.connect(self.server.dsn, autocommit=True) as connection:
            cursor = connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else None


@pytest.fixture
def site(postgres):
    return PostgresSite(postgres)
