"""The application: its routes and their interceptors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web
from prometheus_client import CollectorRegistry

from aiohttp_interceptors import (
    Hub,
    as_handler,
    intercept,
    interceptor_middleware,
    live_handler,
    ready_handler,
    setup,
    start_event_stream,
    start_topic_stream,
    uncaught_exception,
)
from aiohttp_interceptors.hub.broker import Broker
from aiohttp_interceptors.observe.inspector import inspector
from aiohttp_interceptors.observe.prometheus import PrometheusMetrics

from .interceptors import content_security, late_cookie, local_name, request_log, same_origin, timing
from .machine import Machine
from .pages import PAGES, drop, droppable
from .rooms import (
    HUB,
    announce_counts,
    announce_join,
    announce_leave,
    enter,
    health,
    logout,
    owner,
    say,
    topic_of,
    topics,
)
from .streams import MACHINE, SEED_INTERVAL, load, resume_seed, seed

__all__ = ["make_app"]

STATIC = Path(__file__).parent / "static"
RETRY = 1000  # milliseconds after which a browser reconnects; Chromium's default is three seconds
LATEST = 50  # lines that a page receives when it enters a room


def make_app(
    broker: Broker | None = None, *, sample_interval: float = 1.0, seed_interval: float = 1.0
) -> web.Application:
    """Create the application.

    Args:
        broker: What keeps the rooms. Applications with the same broker share them. Default: the memory of this process.
        sample_interval: Seconds between two samples of the machine's load.
        seed_interval: Seconds between two events of the seed stream.

    """
    app = web.Application()
    app[HUB] = hub = Hub(broker)
    metrics = PrometheusMetrics(registry=CollectorRegistry())
    metrics.watch(hub)
    setup(app, hub, observer=metrics.streams)  # open streams end when the server stops
    app[MACHINE] = Machine()
    app[PAGES] = {}
    app[SEED_INTERVAL] = seed_interval

    async def background_tasks(app: web.Application) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(app[MACHINE].take_samples(sample_interval)),
            asyncio.create_task(announce_counts(app)),
        ]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=5)

    app.cleanup_ctx.append(background_tasks)

    # Around every request, outermost first. request_log runs last, when the response to an exception is known too.
    app.middlewares.append(interceptor_middleware(request_log, uncaught_exception(), timing, content_security))

    app.router.add_get("/", page)
    app.router.add_static("/static", STATIC)
    app.router.add_get("/events/load", as_handler(droppable, start_event_stream(load, retry=RETRY)))
    # If resume_seed raises HTTPNoContent, late_cookie is not entered, so its leave stage does not run either.
    app.router.add_get("/events/seed", as_handler(resume_seed, late_cookie, start_event_stream(seed, retry=RETRY)))
    app.router.add_post("/drop", drop)

    room = start_topic_stream(
        hub, topics, replay=LATEST, stream_ready=announce_join, on_close=announce_leave, owner=owner, retry=RETRY
    )
    app.router.add_get("/rooms", intercept(enter)(room_page))
    app.router.add_get("/events/room", as_handler(droppable, room))
    app.router.add_get("/health", health)
    app.router.add_get("/live", live_handler())
    app.router.add_get("/ready", ready_handler(hub))
    app.router.add_get("/metrics", as_handler(local_name, metrics.handler))
    app.add_subapp("/inspector", inspector(hub, interceptors=[local_name], show_data=True))
    app.router.add_post("/say", intercept(same_origin)(say))
    app.router.add_post("/logout", intercept(same_origin)(logout))
    return app


async def page(_: web.Request) -> web.FileResponse:
    """Serve the page of the machine."""
    return web.FileResponse(STATIC / "index.html")


async def room_page(request: web.Request) -> web.FileResponse:
    """Serve the page of a room."""
    topic_of(request)  # raises HTTPBadRequest for an invalid name
    return web.FileResponse(STATIC / "rooms.html")
