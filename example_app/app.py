"""The application: routes, and the interceptors around them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from aiohttp_interceptors import (
    Hub,
    as_handler,
    intercept,
    interceptor_middleware,
    setup,
    start_event_stream,
    start_topic_stream,
    uncaught_exception,
)
from aiohttp_interceptors.hub.broker import Broker

from .interceptors import content_security, late_cookie, request_log, same_origin, timing
from .machine import Machine
from .pages import PAGES, drop, droppable
from .rooms import HUB, health, joined, keep_telling, left, say, topic_of, topics
from .streams import MACHINE, SEED_INTERVAL, load, resume_seed, seed

__all__ = ["make_app"]

STATIC = Path(__file__).parent / "static"
RETRY = 1000  # milliseconds after which a browser comes back; Chromium's own choice would be three seconds
LATEST = 50  # lines that a page gets when it comes into a room


def make_app(
    broker: Broker | None = None, *, sample_interval: float = 1.0, seed_interval: float = 1.0
) -> web.Application:
    """Make the application, whose rooms are those of all with the same broker; the intervals are in seconds."""
    app = web.Application()
    app[HUB] = hub = Hub(broker)
    setup(app, hub)  # ends the open streams when the server stops
    app[MACHINE] = Machine()
    app[PAGES] = {}
    app[SEED_INTERVAL] = seed_interval

    async def sampling(app: web.Application) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(app[MACHINE].watch(sample_interval)), asyncio.create_task(keep_telling(app))]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=5)

    app.cleanup_ctx.append(sampling)

    # Around every request, outermost first: the log line is written last, when the answer to a failure is known too.
    app.middlewares.append(interceptor_middleware(request_log, uncaught_exception(), timing, content_security))

    app.router.add_get("/", page)
    app.router.add_static("/static", STATIC)
    app.router.add_get("/events/load", as_handler(droppable, start_event_stream(load, retry=RETRY)))
    # A page that resume_seed answers with 204 never enters late_cookie, so it does not leave it either.
    app.router.add_get("/events/seed", as_handler(resume_seed, late_cookie, start_event_stream(seed, retry=RETRY)))
    app.router.add_post("/drop", drop)

    room = start_topic_stream(hub, topics, replay=LATEST, stream_ready=joined, on_close=left, retry=RETRY)
    app.router.add_get("/rooms", room_page)
    app.router.add_get("/events/room", as_handler(droppable, room))
    app.router.add_get("/health", health)
    app.router.add_post("/say", intercept(same_origin)(say))
    return app


async def page(_: web.Request) -> web.FileResponse:
    """Answer with the machine's page."""
    return web.FileResponse(STATIC / "index.html")


async def room_page(request: web.Request) -> web.FileResponse:
    """Answer with the page of a room, if there can be one of that name."""
    topic_of(request)
    return web.FileResponse(STATIC / "rooms.html")
