"""An application that is served again after it was cleaned up."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from aiohttp_interceptors import Hub, as_handler, setup, start_event_stream, start_topic_stream
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from tests.listener import listen


def one(channel, context):
    channel.put_nowait("x")


def application(*hubs):
    app, sub = web.Application(), web.Application()
    setup(app, *hubs)
    setup(sub)
    for each in (app, sub):
        each.router.add_get("/", as_handler(start_event_stream(one)))
    if hubs:
        app.router.add_get("/topics", as_handler(start_topic_stream(hubs[0], "a", prime=False)))
    app.add_subapp("/sub", sub)
    return app


@pytest.mark.parametrize("path", ["/", "/sub/"])
async def test_streams_open_and_end_each_time(serve, path):
    app = application()
    for _ in range(3):
        server = await serve(app)
        listener = await listen(server, path)
        assert listener.status == 200
        assert await listener.data(1) == ["x"]
        await server.stop()
        assert await listener.rest() == []
        assert listener.complete
        await listener.close()


async def test_a_hub_without_a_broker_keeps_its_history(serve):
    hub = Hub()
    app = application(hub)
    for number in range(2):
        server = await serve(app)
        assert hub.ready
        listener = await listen(server, "/topics")
        await hub.publish("a", str(number))
        assert await listener.data(1) == [str(number)]
        await server.stop()
        assert not hub.ready
        await listener.close()
    assert hub.statistics().records == 2


async def test_a_hub_with_a_closed_broker_raises_on_startup(serve):
    first, hub = Hub(), Hub(MemoryBroker(MemoryLog()))
    app = application(first, hub)
    server = await serve(app)
    await server.stop()
    assert not hub.ready
    runner = web.AppRunner(app)
    with pytest.raises(RuntimeError, match="was closed, and its broker with it; make another Hub"):
        await runner.setup()
    assert not first.ready  # it was closed again
    await runner.cleanup()


async def test_an_exception_while_closing_a_hub_does_not_keep_others_open(serve):
    class Broken(MemoryBroker):
        async def close(self):
            await super().close()
            raise OSError("away")

    hubs = Hub(MemoryBroker(MemoryLog())), Hub(Broken(MemoryLog())), Hub(MemoryBroker(MemoryLog()))
    tasks = asyncio.all_tasks()
    server = await serve(application(*hubs))
    with pytest.raises(Exception, match="away"):
        await server.stop()
    assert [hub.ready for hub in hubs] == [False] * 3
    assert asyncio.all_tasks() <= tasks
