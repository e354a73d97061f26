"""A Hub closes at every moment, whatever its broker's client does with a cancellation.

``asyncio.wait_for`` of Python 3.11 swallows one that arrives in the turns in which what it waits for ends. The clients
of all servers use it, and so do many factories.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import psycopg
import pytest
from nats.aio.client import Client
from redis.asyncio import Redis

from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.brokers.nats import NatsBroker
from aiohttp_interceptors.brokers.postgres import PostgresBroker
from aiohttp_interceptors.brokers.redis import RedisBroker
from aiohttp_interceptors.brokers.sqlite import SqliteBroker
from aiohttp_interceptors.exceptions import BrokerError
from aiohttp_interceptors.hub import hub as hub_module
from aiohttp_interceptors.hub import replication as supervision
from aiohttp_interceptors.hub.broker import Broker
from aiohttp_interceptors.hub.hub import Hub
from aiohttp_interceptors.testing import TcpProxy
from tests.brokers.postgres_site import PostgresSite
from tests.servers.valkey import Valkey
from tests.waiting import until

TURNS = range(41)
LIMIT = 10.0  # seconds
numbers = itertools.count()


@dataclass
class Engine:
    """What makes brokers that connect to a port."""

    port: int
    broker: Callable[[int], Broker]


@pytest.fixture
def once(monkeypatch):
    """Have a close that needs a second cancellation hang."""
    monkeypatch.setattr(hub_module, "CLOSING", 3600.0)


@pytest.fixture(scope="module")
def valkey(tmp_path_factory):
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["redis", "redis_factory", "postgres", "postgres_factory", "nats", "nats_factory"])
def engine(request) -> Engine:
    """Each engine that has a server, reached by its URL and by a factory that waits for its client with a limit."""
    name, _, factory = request.param.partition("_")
    server = request.getfixturevalue({"redis": "valkey"}.get(name, name))

    def elsewhere(url: str, port: int) -> str:
        return url.replace(f":{server.port}", f":{port}")

    def redis(port):
        async def connect():
            client = Redis.from_url(elsewhere(server.url, port), protocol=2)
            try:
                await asyncio.wait_for(client.ping(), 5)
            except BaseException:
                await client.aclose()
                raise
            return client

        return RedisBroker(connect if factory else elsewhere(server.url, port))

    def postgres(port):
        async def connect():
            connecting = psycopg.AsyncConnection.connect(elsewhere(server.dsn, port))
            return await asyncio.wait_for(connecting, 5)

        return PostgresBroker(connect if factory else elsewhere(server.dsn, port), table=table)

    def nats(port):
        async def connect(**options):
            client = Client()
            try:
                await asyncio.wait_for(client.connect(elsewhere(server.url, port), **options), 5)
            except BaseException:
                await client.close()
                raise
            return client

        return NatsBroker(connect if factory else elsewhere(server.url, port), stream=stream)

    table = PostgresSite(server).table if name == "postgres" else ""
    stream = f"closing-{next(numbers)}"
    return Engine(server.port, {"redis": redis, "postgres": postgres, "nats": nats}[name])


@contextlib.asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Check that no task is left of a block, also none that is about to end."""
    before = asyncio.all_tasks()
    yield
    await until(lambda: asyncio.all_tasks() <= before)


async def close(hub: Hub, turns: int) -> None:
    try:
        async with asyncio.timeout(LIMIT):
            await hub.close()
    except TimeoutError:
        pytest.fail(f"it hangs when it is closed {turns} turns later")


async def sweep(make: Callable[[], Broker], *, publishing: bool = False) -> None:
    """Open a Hub and close it, at each of the first moments of its life."""
    for turns in TURNS:
        async with nothing_left():
            hub = Hub(make())
            hub.open()
            publish = asyncio.create_task(hub.publish("t", "x")) if publishing else None
            for _ in range(turns):
                await asyncio.sleep(0)
            await close(hub, turns)
            if publish is not None:
                with contextlib.suppress(BrokerError):
                    await asyncio.wait_for(publish, LIMIT)


@pytest.mark.parametrize("publishing", [False, True])
async def test_a_hub_in_memory_closes_at_every_moment(once, publishing):
    await sweep(lambda: MemoryBroker(MemoryLog()), publishing=publishing)


@pytest.mark.parametrize("publishing", [False, True])
async def test_a_hub_on_a_file_closes_at_every_moment(tmp_path, once, publishing):
    await sweep(lambda: SqliteBroker(tmp_path / "hub.db"), publishing=publishing)


@pytest.mark.parametrize("publishing", [False, True])
async def test_a_hub_that_is_connecting_closes_at_every_moment(engine, once, publishing):
    await sweep(lambda: engine.broker(engine.port), publishing=publishing)


async def test_a_hub_that_is_reconnecting_closes_at_every_moment(engine, once, monkeypatch):
    monkeypatch.setattr(supervision, "FIRST_DELAY", 0.0)
    for turns in TURNS:
        async with nothing_left(), TcpProxy("127.0.0.1", engine.port) as proxy:
            hub = Hub(engine.broker(proxy.port))
            hub.open()
            await until(lambda hub=hub: hub.ready)
            proxy.cut()
            proxy.restore()
            await until(lambda hub=hub: not hub.ready)
            for _ in range(turns):
                await asyncio.sleep(0)
            await close(hub, turns)


@pytest.mark.parametrize("engine", ["redis", "postgres", "nats"], indirect=True)
async def test_a_hub_whose_network_holds_still_closes_while_it_connects(engine):
    async with nothing_left(), TcpProxy("127.0.0.1", engine.port) as proxy:
        proxy.stall()
        hub = Hub(engine.broker(proxy.port))
        hub.open()
        await until(lambda: proxy.connections)
        await close(hub, 0)
