"""A dashboard that several processes serve, behind nginx: each shows what all of them report, through Valkey."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

from aiohttp import web

from aiohttp_interceptors import STREAMS, BrokerError, Event, Hub, ready_handler, setup, topic_stream
from aiohttp_interceptors.brokers.redis import RedisBroker

VALKEY = "redis://localhost:6379/0"  # change: your server
PORT = int(sys.argv[1]) if sys.argv[1:] else 8081  # each process has its own
PAGE = Path(__file__).with_suffix(".html")
hub = Hub(RedisBroker(VALKEY, stream="dashboard"), latest=1000)


async def report(app: web.Application) -> None:
    """Publish what this process knows, each second."""
    while True:
        values = {"process": PORT, "load": os.getloadavg()[0], "streams": len(app[STREAMS])}  # change: your numbers
        with suppress(BrokerError):  # the next report replaces this one
            await hub.publish("reports", Event.json(values, name="report"), key=str(PORT))
        await asyncio.sleep(1)


async def reporting(app: web.Application) -> AsyncIterator[None]:
    task = asyncio.create_task(report(app))
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    with suppress(BrokerError):  # its row turns gray instead
        await hub.publish("reports", Event.json({"process": PORT}, name="gone"), key=str(PORT), tombstone=True)


async def page(request: web.Request) -> web.FileResponse:
    return web.FileResponse(PAGE)


app = web.Application()
setup(app, hub)
app.cleanup_ctx.append(reporting)
app.router.add_get("/", page)
app.router.add_get("/ready", ready_handler(hub))
app.router.add_get("/reports", topic_stream(hub, "reports", replay="latest"))
if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=PORT)
