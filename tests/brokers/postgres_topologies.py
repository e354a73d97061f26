"""A primary of PostgreSQL with a streaming standby, which can be killed, frozen, promoted and joined again."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import psycopg

from aiohttp_interceptors.brokers.postgres import PostgresBroker
from aiohttp_interceptors.brokers.postgres.schema import migration
from tests.servers.postgres import PASSWORD, Postgres, binary, prefix

TIMEOUT = 30.0  # seconds for each step, on a busy machine
CHECK_INTERVAL = 0.02  # seconds


class StandbySite:
    """Two servers with one log: ``primary`` accepts writes, ``standby`` follows it, and ``promote`` swaps them.

    Unless ``synchronous`` is false, a commit waits for the standby (``synchronous_standby_names``), so that what was
    acknowledged outlives the primary. The methods block, so that fixtures and programs of any kind can use them.
    """

    def __init__(
        self, folder: Path, *, template: Path | None = None, table: str = "records", synchronous: bool = True,
        **options: str,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.table = table
        self._synchronous = synchronous
        # After a restart of the primary, commits wait for the standby, which retries only at this interval.
        self._options = {"wal_keep_size": "64MB", "wal_retrieve_retry_interval": "1s", **options}
        self.primary = Postgres(folder / "one", template=template, **self._options)
        self.standby: Postgres | None = None

    @property
    def servers(self) -> list[Postgres]:
        """The servers in the order of their folders, which a promotion does not change."""
        found = [self.primary, self.standby]
        return sorted((server for server in found if server is not None), key=lambda server: server.folder.name)

    def dsn_of(self, *servers: Postgres, attributes: str = "read-write", **parameters: str) -> str:
        """Return a DSN with several hosts: the given servers, or all of them in the order of ``servers``."""
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers or self.servers)
        settings = {"target_session_attrs": attributes, **parameters}
        query = "&".join(f"{name}={value}" for name, value in settings.items())
        return f"postgresql://tester:{PASSWORD}@{hosts}/postgres?{query}"

    @property
    def dsn(self) -> str:
        return self.dsn_of()

    def broker(self, connect=None, **options) -> PostgresBroker:
        return PostgresBroker(connect or self.dsn, **{"table": self.table, **options})

    def start(self) -> None:
        """Start both, create the tables, and wait until the standby follows."""
        self.primary.start()
        self.sql(migration(self.table))
        self.join()

    def join(self) -> None:
        """Create a standby from a copy of the primary. A former one is killed, and its folder is used again."""
        folder = self.folder / "two" if self.standby is None else self.standby.folder
        port = None if self.standby is None else self.standby.port
        if self.standby is not None:
            self.standby.kill()
        shutil.rmtree(folder / "data", ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        self._set_synchronous("")  # the copy shall not have it, and no commit may wait while there is no standby
        subprocess.run(
            [
                *prefix(), binary("pg_basebackup"), "-h", "127.0.0.1", "-p", str(self.primary.port), "-U", "tester",
                "-D", str(folder / "data"), "-R", "-X", "stream", "-c", "fast", "--no-sync",
            ],
            check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, timeout=TIMEOUT,
            env={**os.environ, "PGPASSWORD": PASSWORD},
        )  # fmt: skip
        self.standby = Postgres(folder, **self._options)
        self.standby.port = port or self.standby.port
        self.standby.start()
        self.follows()
        if self._synchronous:
            self._set_synchronous("*")

    def follows(self) -> None:
        """Wait until the standby streams from the primary and has replayed what the primary has now."""
        (end,) = self._row(self.primary, "SELECT pg_current_wal_lsn()")
        streaming = "SELECT count(*) > 0 FROM pg_stat_replication WHERE state = 'streaming'"
        replayed = f"SELECT pg_last_wal_replay_lsn() >= '{end}'"
        self._wait(
            lambda: self._row(self.primary, streaming) == self._row(self.standby, replayed) == (True,),
            "the standby does not follow",
        )

    def promote(self) -> None:
        """Promote the standby. The former primary, in whatever state, is ``standby`` from then on."""
        assert self.standby is not None
        assert self._row(self.standby, f"SELECT pg_promote(true, {int(TIMEOUT)})") == (True,)
        self.primary, self.standby = self.standby, self.primary

    def kill(self, server: Postgres | None = None) -> None:
        """Kill a server, by default the primary."""
        (server or self.primary).kill()

    def freeze(self, server: Postgres | None = None) -> None:
        """Freeze a server, by default the primary."""
        (server or self.primary).freeze()

    def thaw(self, server: Postgres | None = None) -> None:
        """Thaw a server, by default the primary."""
        (server or self.primary).thaw()

    def restart(self, server: Postgres | None = None) -> None:
        """Restart a server, by default the primary. It keeps its data. If it runs, it is stopped in order before."""
        server = server or self.primary
        server.stop()
        server.restart()

    def end(self) -> None:
        """Kill both. Idempotent."""
        for server in self.servers:
            server.kill()

    def sql(self, statement: str, *values: object) -> list[tuple[object, ...]] | None:
        """Run a statement on the primary behind the broker's back."""
        with self._connected(self.primary) as connection:
            cursor = connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else None

    def _set_synchronous(self, names: str) -> None:
        self.sql(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
        self.sql("SELECT pg_reload_conf()")
        self._wait(
            lambda: self._row(self.primary, "SHOW synchronous_standby_names") == (names,),
            "the primary does not apply its setting",
        )

    def _row(self, server: Postgres, statement: str) -> tuple[object, ...]:
        with self._connected(server) as connection:
            return connection.execute(statement).fetchone()

    def _connected(self, server: Postgres) -> psycopg.Connection:
        return psycopg.connect(
            server.dsn, autocommit=True, connect_timeout=int(TIMEOUT), options=f"-cstatement_timeout={TIMEOUT:.0f}s"
        )

    def _wait(self, condition, what: str) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{what} within {TIMEOUT} s")
            time.sleep(CHECK_INTERVAL)
