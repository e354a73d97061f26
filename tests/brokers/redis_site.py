"""A stream of Redis or Valkey where brokers share a log, and what others do to it."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from aiohttp_interceptors.brokers.redis import RedisBroker
from tests.servers.valkey import Valkey

STREAM, LOG = "{events}", "{events}:log"


async def ask(server, *command):
    """Do something to a server that the broker has no word for."""
    async with Redis.from_url(server.url, protocol=2) as client:
        return await client.execute_command(*command)


class RedisSite:
    """A stream of a server."""

    def __init__(self, server: Valkey) -> None:
        self.server = server

    def broker(self, **options):
        return RedisBroker(self.server.url, **options)

    async def wipe(self):
        await self.ask("FLUSHALL")

    async def ask(self, *command):
        return await ask(self.server, *command)

    async def backup(self):
        """Return what there is, as an administrator does who makes backups."""
        return [await self.ask("DUMP", key) for key in (STREAM, LOG)]

    async def restore(self, dumps):
        for key, dump in zip((STREAM, LOG), dumps, strict=True):
            await self.ask("RESTORE", key, 0, dump, "REPLACE")


@pytest.fixture(scope="module", params=["valkey", "redis"])
def server(request, tmp_path_factory):
    """A server for a whole file of tests."""
    server = Valkey(tmp_path_factory.mktemp(request.param), engine=request.param)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def site(server):
    site = RedisSite(server)
    await site.wipe()
    return site


@pytest.fixture
def servers(tmp_path):
    """Make servers, which are ended at the end."""
    made = []

    def make(*options, **settings):
        made.append(Valkey(tmp_path / f"{len(made)}", *options, **settings))
        made[-1].start()
        return made[-1]

    yield make
    for server in made:
        server.kill()


@pytest.fixture
def node(hub_on):
    """Make Hubs, each as one process has it."""
    return lambda connect, *, ready=True, **options: hub_on(RedisBroker(connect, **options), ready=ready)
