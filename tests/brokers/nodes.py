"""Hubs that stand for processes, and helpers of the fault tests."""

from __future__ import annotations

import asyncio

import pytest

from aiohttp_interceptors.exceptions import BrokerDown, OutcomeUnknown
from aiohttp_interceptors.hub.hub import Hub
from aiohttp_interceptors.testing import TcpProxy
from tests.hub.sink import start
from tests.waiting import until, within


@pytest.fixture
async def hub_on():
    """Make Hubs, each of which stands for one process, and close them after the test."""
    hubs = []

    async def make(broker, *, ready=True):
        hub = Hub(broker)
        hubs.append(hub)
        hub.open()
        if ready:
            await until(lambda: hub.ready)
        return hub

    yield make
    for hub in hubs:
        await hub.close()


@pytest.fixture
async def network(server):
    """The network between a process and its server."""
    async with TcpProxy("127.0.0.1", server.port) as proxy:
        yield proxy


def texts(sink, count):
    """Wait until a sink has received ``count`` events."""
    return until(lambda: len(sink.texts) >= count)


def changes(logged):
    """Return the log events about Hubs that went down or up."""
    return [entry["event"] for entry in logged if entry["event"].startswith("hub_")]


async def persist(hub, text):
    """Publish until the record is acknowledged."""
    while True:
        try:
            return await hub.publish("t", text, idempotency_key=text)
        except (BrokerDown, OutcomeUnknown):
            await asyncio.sleep(0)


async def closed_at_every_moment(broker, moments=41):
    """Close Hubs after 0, 1, 2, … iterations of the event loop. Each must close soon and leave no task."""
    for moment in range(moments):
        before = asyncio.all_tasks()
        hub = Hub(broker())
        hub.open()
        for _ in range(moment):
            await asyncio.sleep(0)
        await within(hub.close())
        await until(lambda before=before: asyncio.all_tasks() <= before)


async def waits_for_an_id_that_may_still_come(hub, server):
    """Check that a Hub gives no gap for an unknown ID while its server is frozen: another process may have it."""
    position = await hub.publish("t", "x")
    epoch, _, offset = position.partition("-")
    server.freeze()
    returned = start(hub, "t", after=f"{epoch}-{int(offset) + 1}")
    await until(lambda: not hub.ready)
    assert returned.texts == []
    assert not returned.subscription.live
    server.thaw()
    await until(lambda: hub.ready)
    await until(lambda: returned.texts == ["gap"])
    await hub.publish("t", "y")
    await texts(returned, 2)
    assert returned.texts == ["gap", "y"]
