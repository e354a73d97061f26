"""A Hub can be closed at every moment, also if its broker's client swallows a cancellation.

``asyncio.wait_for`` of Python 3.11 does, if the cancellation arrives just when the awaited future is done. The clients
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
from aiohttp_interceptors.hub import replication
from aiohttp_interceptors.hub.broker import Broker
from aiohttp_interceptors.hub.hub import Hub
from aiohttp_interceptors.testing import TcpProxy
from tests.brokers.postgres_site import PostgresSite
from tests.servers.valkey import Valkey
from tests.waiting import until

DELAYS = range(41)  # iterations of the event loop
CLOSE_TIMEOUT = 10.0  # seconds
numbers = itertools.count()


@dataclass
class Engine:
    """A server, and a function that makes brokers which connect to it through a port."""

    port: int
    broker: Callable[[int], Broker]


@pytest.fixture
def cancel_once(monkeypatch):
    """Make a close that needs a second cancellation hang."""
    monkeypatch.setattr(hub_module, "TAIL_CLOSE_TIMEOUT", 3600.0)


@pytest.fixture(scope="module")
def valkey(tmp_path_factory):
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["redis", "redis_factory", "postgres", "postgres_factory", "nats", "nats_factory"])
def engine(request) -> Engine:
    """Each engine with a server, by its URL and by a factory that connects with ``asyncio.wait_for``."""
    name, _, factory = request.param.partition("_")
    server = request.getfixturevalue({"redis": "valkey"}.get(name, name))

    def with_port(url: str, port: int) -> str:
        return url.replace(f":{server.port}", f":{port}")

    def redis(port):
        async def connect():
            client = Redis.from_url(with_port(server.url, port), protocol=2)
            try:
                await asyncio.wait_for(client.ping(), 5)
            except BaseException:
                await client.aclose()
                raise
            return client

        return RedisBroker(connect if factory else with_port(server.url, port))

    def postgres(port):
        async def connect():
            connecting = psycopg.AsyncConnection.connect(with_port(server.dsn, port))
            return await asyncio.wait_for(connecting, 5)

        return PostgresBroker(connect if factory else with_port(server.dsn, port), table=table)

    def nats(port):
        async def connect(**options):
            client = Client()
            try:
                await asyncio.wait_for(client.connect(with_port(server.url, port), **options), 5)
            except BaseException:
                await client.close()
                raise
            return client

        return NatsBroker(connect if factory else with_port(server.url, port), stream=stream)

    table = PostgresSite(server).table if name == "postgres" else ""
    stream = f"closing-{next(numbers)}"
    return Engine(server.port, {"redis": redis, "postgres": postgres, "nats": nats}[name])


@contextlib.asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Check that all tasks of a block end."""
    before = asyncio.all_tasks()
    yield
    await until(lambda: asyncio.all_tasks() <= before)


async def close(hub: Hub, delay: int) -> None:
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await hub.close()
    except TimeoutError:
        pytest.fail(f"closing hangs after {delay} iterations of the event loop")


async def sweep(make: Callable[[], Broker], *, publishing: bool = False) -> None:
    """Open a Hub and close it after each number of iterations of the event loop."""
    for delay in DELAYS:
        async with nothing_left():
            hub = Hub(make())
            hub.open()
            publish = asyncio.create_task(hub.publish("t", "x")) if publishing else None
            for _ in range(delay):
                await asyncio.sleep(0)
            await close(hub, delay)
            if publish is not None:
                with contextlib.suppress(BrokerError):
                    await asyncio.wait_for(publish, CLOSE_TIMEOUT)


@pytest.mark.parametrize("publishing", [False, True])
async def test_a_hub_in_memory_closes_at_every_moment(cancel_once, publishing):
    await sweep(lambda: MemoryBroker(MemoryLog()), publishing=publishing)


@pytest.mark.parametrize("publishing", [False, True])
async def test_a_hub_on_a_file_closes_at_every_moment(tmp_path, cancel_once, publishing):
    await sweep(lambda: SqliteBroker(tmp_path / "hub.db"), publishing=publishing)


@pytest.mark.parametrize("publishing", [False, True])
async def test_a_hub_that_is_connecting_closes_at_every_moment(engine, cancel_once, publishing):
    await sweep(lambda: engine.broker(engine.port), publishing=publishing)


async def test_a_hub_that_is_reconnecting_closes_at_every_moment(engine, cancel_once, monkeypatch):
    monkeypatch.setattr(replication, "MIN_RECONNECT_DELAY", 0.0)
    for delay in DELAYS:
        async with nothing_left(), TcpProxy("127.0.0.1", engine.port) as proxy:
            hub = Hub(engine.broker(proxy.port))
            hub.open()
            await until(lambda hub=hub: hub.ready)
            proxy.cut()
            proxy.restore()
            await until(lambda hub=hub: not hub.ready)
            for _ in range(delay):
                await asyncio.sleep(0)
            await close(hub, delay)


@pytest.mark.parametrize("engine", ["redis", "postgres", "nats"], indirect=True)
async def test_a_hub_whose_network_stalls_closes_while_it_connects(engine):
    async with nothing_left(), TcpProxy("127.0.0.1", engine.port) as proxy:
        proxy.stall()
        hub = Hub(engine.broker(proxy.port))
        hub.open()
        await until(lambda: proxy.connections)
        await close(hub, 0)
