"""The servers that the tests of brokers share, each started at its first use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psycopg
import pytest

from aiohttp_interceptors.brokers.postgres.schema import migration
from tests.servers.nats import Nats
from tests.servers.postgres import Postgres, initialize
from tests.servers.process import ServerProcess
from tests.servers.valkey import Valkey

S = TypeVar("S", bound=ServerProcess)
Own = Callable[..., S]


def started(server: S) -> Iterator[S]:
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nats]:
    yield from started(Nats(tmp_path_factory.mktemp("nats")))


@pytest.fixture(scope="session")
def postgres_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory that no server has used."""
    folder = tmp_path_factory.mktemp("postgres-template")
    initialize(folder)
    return folder


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory, postgres_template: Path) -> Iterator[Postgres]:
    yield from started(Postgres(tmp_path_factory.mktemp("postgres"), template=postgres_template))


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Callable[[ServerProcess], ServerProcess]]:
    """Start a server for one test, which is killed after it: ``own(Valkey(tmp_path / "a"))``."""
    servers: list[ServerProcess] = []

    def start(server: S) -> S:
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.kill()


@pytest.fixture
def address(request: pytest.FixtureRequest, engine: str, tmp_path: Path) -> object:
    """The address of a broker without events, for the programs that use the table ``runs``."""
    if engine == "sqlite":
        return tmp_path / "hub.db"
    if engine == "redis":
        return request.getfixturevalue("own")(Valkey(tmp_path)).url
    if engine == "nats":
        return request.getfixturevalue("nats").url
    dsn = request.getfixturevalue("postgres").dsn
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(migration("runs"))
    return dsn
