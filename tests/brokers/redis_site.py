"""A stream on a Redis or Valkey server, and what administrators do to it."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from aiohttp_interceptors.brokers.redis import RedisBroker
from tests.servers.valkey import Valkey

STREAM, LOG = "{events}", "{events}:log"


async def execute(server, *command):
    """Execute a command on a server."""
    async with Redis.from_url(server.url, protocol=2) as client:
        return await client.execute_command(*command)


class RedisSite:
    """A stream on a server."""

    def __init__(self, server: Valkey) -> None:
        self.server = server

    def broker(self, **options):
        return RedisBroker(self.server.url, **options)

    async def wipe(self):
        await self.execute("FLUSHALL")

    async def execute(self, *command):
        return await execute(self.server, *command)

    async def backup(self):
        """Make a backup of the log."""
        return [await self.execute("DUMP", key) for key in (STREAM, LOG)]

    async def restore(self, dumps):
        for key, dump in zip((STREAM, LOG), dumps, strict=True):
            await self.execute("RESTORE", key, 0, dump, "REPLACE")


@pytest.fixture(scope="module", params=["valkey", "redis"])
def server(request, tmp_path_factory):
    """A server that the tests of a file share."""
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
    """Start servers, which are killed after the test."""
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
    """Make Hubs, each of which stands for one process."""
    return lambda connect, *, ready=True, **options: hub_on(RedisBroker(connect, **options), ready=ready)
