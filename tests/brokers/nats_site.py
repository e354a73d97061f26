"""A stream that the brokers of a test share, and what an administrator can do to it."""

from __future__ import annotations

import itertools
from contextlib import asynccontextmanager

import pytest
from nats.aio.client import Client
from nats.js.errors import NotFoundError

from aiohttp_interceptors.brokers.nats import NatsBroker

_names = (f"events-{number}" for number in itertools.count())


@asynccontextmanager
async def jetstream(url):
    """Connect as an administrator."""
    client = Client()
    await client.connect(url)
    try:
        yield client.jetstream()
    finally:
        await client.close()


class NatsSite:
    """A stream with a name that no other test uses."""

    def __init__(self, server):
        self.server = server
        self.stream = next(_names)

    def broker(self, **options):
        return NatsBroker(**{"connect": self.server.url, "stream": self.stream, **options})

    def administrator(self):
        return jetstream(self.server.url)

    async def wipe(self):
        async with self.administrator() as js:
            try:
                await js.delete_stream(self.stream)
            except NotFoundError:
                pass


@pytest.fixture
def site(nats):
    return NatsSite(nats)
