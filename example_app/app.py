"""The application: its routes and their interceptors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
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

from . import rooms, runs
from .interceptors import content_security, late_cookie, local_name, request_log, same_origin, timing
from .machine import Machine
from .pages import PAGES, drop, droppable
from .streams import MACHINE, SEED_INTERVAL, load, resume_seed, seed

__all__ = ["make_app"]

STATIC = Path(__file__).parent / "static"
ROOT = Path(__file__).parents[1]  # of the checkout
SOURCE = "{path:README[.]md|docs/[a-z]+[.]md|(?:example_app|examples)/[a-z_]+[.]py}"  # the files that pages link to
RETRY = 1000  # milliseconds after which a browser reconnects; Chromium's default is three seconds
LATEST = 50  # lines that a page receives when it enters a room


def make_app(
    broker: Broker | None = None, *, sample_interval: float = 1.0, seed_interval: float = 1.0, run_interval: float = 0.2
) -> web.Application:
    """Create the application.

    Args:
        broker: What keeps the rooms. Applications with the same broker share them. Default: the memory of this process.
        sample_interval: Seconds between two samples of the machine's load.
        seed_interval: Seconds between two events of the seed stream.
        run_interval: Seconds between two events of a job or an answer.

    """
    app = web.Application()
    # The latest event of each topic is kept for pages that come back to a job.
    app[rooms.HUB] = hub = Hub(broker, latest=1000, max_runs=runs.MAX_RUNS)
    app[rooms.STORE] = "memory" if broker is None else type(broker).__name__
    metrics = PrometheusMetrics(registry=CollectorRegistry())
    metrics.watch(hub)
    setup(app, hub, observer=metrics.streams)  # open streams end when the server stops
    app[MACHINE] = Machine()
    app[PAGES] = {}
    app[SEED_INTERVAL] = seed_interval
    app[runs.RUN_INTERVAL] = run_interval

    async def background_tasks(app: web.Application) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(app[MACHINE].take_samples(sample_interval)),
            asyncio.create_task(rooms.announce_counts(app)),
        ]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=5)

    app.cleanup_ctx.append(background_tasks)

    # Around every request, outermost first. request_log runs last, when the response to an exception is known too.
    app.middlewares.append(interceptor_middleware(request_log, uncaught_exception(), timing, content_security))

    app.router.add_get("/", page)
    app.router.add_get("/experiments", page)
    app.router.add_get(f"/source/{SOURCE}", source)
    app.router.add_static("/static", STATIC)
    app.router.add_get("/events/load", as_handler(droppable, start_event_stream(load, retry=RETRY)))
    seeds = start_event_stream(seed, retry=RETRY)
    # If resume_seed raises HTTPNoContent, late_cookie is not entered, so its leave stage does not run either.
    app.router.add_get("/events/seed", as_handler(droppable, resume_seed, late_cookie, seeds))
    app.router.add_post("/drop", drop)

    topic_stream = partial(start_topic_stream, hub, retry=RETRY)
    room = topic_stream(
        rooms.topics, replay=LATEST, stream_ready=rooms.announce_join, on_close=rooms.announce_leave, owner=rooms.owner
    )
    app.router.add_get("/rooms", intercept(rooms.enter)(room_page))
    app.router.add_get("/events/room", as_handler(droppable, room))

    job = topic_stream(runs.run_topic, replay="latest")  # the latest progress is enough
    answer = topic_stream(runs.run_topic)  # from the ID in the address
    app.router.add_post("/runs/{kind:jobs|answers}", intercept(same_origin)(runs.start))
    app.router.add_post(f"/runs/{{topic:(?:jobs|answers){runs.ID}}}/cancel", intercept(same_origin)(runs.cancel))
    app.router.add_get(f"/events/{{topic:jobs{runs.ID}}}", as_handler(droppable, job))
    app.router.add_get(f"/events/{{topic:answers{runs.ID}}}", as_handler(droppable, answer))

    app.router.add_get("/health", rooms.health)
    app.router.add_get("/live", live_handler())
    app.router.add_get("/ready", ready_handler(hub))
    app.router.add_get("/metrics", as_handler(local_name, metrics.handler))
    app.add_subapp("/inspector", inspector(hub, interceptors=[local_name], show_data=True))
    app.router.add_post("/say", intercept(same_origin)(rooms.say))
    app.router.add_post("/logout", intercept(same_origin)(rooms.logout))
    return app


async def page(request: web.Request) -> web.FileResponse:
    """Serve the page of the machine or of the experiments."""
    return web.FileResponse(STATIC / ("index.html" if request.path == "/" else "experiments.html"))


async def room_page(request: web.Request) -> web.FileResponse:
    """Serve the page of a room, or a page that leads back from an invalid name."""
    try:
        rooms.topic_of(request)
    except web.HTTPBadRequest as error:
        return web.FileResponse(STATIC / "no_room.html", status=error.status)
    return web.FileResponse(STATIC / "rooms.html")


async def source(request: web.Request) -> web.FileResponse:
    """Serve a file of the checkout as text: the code of an experiment, or a page of the documentation."""
    return web.FileResponse(ROOT / request.match_info["path"], headers={"Content-Type": "text/plain; charset=utf-8"})
