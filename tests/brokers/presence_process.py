"""Another node: a server whose streams have identities. It prints its port, and stops at SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from aiohttp_interceptors import Hub, setup, topic_stream
from aiohttp_interceptors.brokers.redis import RedisBroker
from aiohttp_interceptors.brokers.sqlite import SqliteBroker
from aiohttp_interceptors.hub import nodes
from tests.brokers.sqlite_process import ROOT, report

nodes.LEASE_INTERVAL = 0.1


async def serve(engine: str, place: str) -> None:
    """Serve the topic ``room``, to the user of the query."""
    hub = Hub(RedisBroker(place) if engine == "valkey" else SqliteBroker(place))
    app = web.Application()
    setup(app, hub)
    app.router.add_get("/", topic_stream(hub, "room", identity=lambda context: context.request.query["user"]))
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    report(runner.addresses[0][1])
    await stopped.wait()
    await runner.cleanup()


@asynccontextmanager
async def node(engine: str, place: object) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a node in a process, which is killed at the end of the block."""
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-m", "tests.brokers.presence_process", engine, str(place),
        cwd=ROOT, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.communicate()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
