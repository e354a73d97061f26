"""An owner whose streams are ended by another process, over each engine."""

from __future__ import annotations

import asyncio
import sys

import pytest
from aiohttp import web

from aiohttp_interceptors import Hub, event_stream, setup, topic_stream
from aiohttp_interceptors.web.app import STREAMS
from tests.brokers.disconnect_process import OWNER
from tests.brokers.run_process import ROOT, START_TIMEOUT, broker, line
from tests.listener import listen
from tests.waiting import until, within


@event_stream(owner=lambda context: OWNER, heartbeat=None)
async def endless(context):
    yield "hello"
    await asyncio.Event().wait()


async def run_disconnect(engine, address):
    """Start the process, and return it when it has disconnected the owner."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.brokers.disconnect_process", engine, str(address), cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert await line(process) == "disconnected"
        moment = asyncio.get_running_loop().time()
        assert await within(process.wait(), START_TIMEOUT) == 0
        return moment
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("engine", ["sqlite", "redis", "postgres", "nats"])
async def test_a_disconnect_of_another_process_ends_streams_within_a_second(serve, logged, engine, address):
    hub, app = Hub(broker(engine, address)), web.Application()
    setup(app, hub)
    app.router.add_get("/", topic_stream(hub, ">", owner=lambda context: OWNER, heartbeat=None))
    app.router.add_get("/endless", endless)
    app.router.add_get("/other", topic_stream(hub, ">", owner=lambda context: "user:8", heartbeat=None))
    server = await serve(app)
    await until(lambda: hub.ready)
    times: list[float] = []

    async def rest(listener):
        events = await listener.rest()
        times.append(asyncio.get_running_loop().time())
        return events

    for _ in range(2):  # the second login is not ended by the first disconnect
        listeners = [await listen(server, path) for path in ("/", "/endless", "/other")]
        await until(lambda: len(app[STREAMS]) == 3)
        ended = [asyncio.create_task(rest(listener)) for listener in listeners[:2]]
        disconnected_at = await run_disconnect(engine, address)
        for task in ended:
            assert (await within(task))[-1].name == "logout"
        assert max(times) - disconnected_at < 1
        await hub.publish("a", "x")
        assert await listeners[2].data(1) == ["x"]
        for listener in listeners:
            await listener.close()
        await until(lambda: len(app[STREAMS]) == 0)
