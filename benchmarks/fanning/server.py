"""The Python servers: for each library the usual program that sends an event to all streams.

    python -m fanning.server ours|ours-prometheus|aiohttp-sse|sse-starlette|bare asyncio|uvloop [LOGS]

Prints its port. ``GET /stream`` opens a stream, ``POST /publish`` publishes each line of its body as an event, and
``POST /collect`` runs the garbage collector. Servers of aiohttp answer ``POST /connections`` with their number.
LOGS is ``filtered`` by structlog at WARNING, the default, ``unconfigured``, or ``rendered``: two lines for each stream.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from aiohttp import web

if TYPE_CHECKING:
    from aiohttp_interceptors import Hub

NEVER = 3600.0  # seconds; no heartbeat is sent during a measurement
HISTORY = 1000


class Queues:
    """One queue per stream, the usual broadcast without a library."""

    def __init__(self) -> None:
        self.all: set[asyncio.Queue[str]] = set()

    def add(self) -> asyncio.Queue[str]:
        """Create a queue for a stream."""
        queue = asyncio.Queue[str]()
        self.all.add(queue)
        return queue

    def publish(self, lines: list[str]) -> None:
        """Put the events into all queues."""
        for line in lines:
            for queue in self.all:
                queue.put_nowait(line)


def ours(*, prometheus: bool = False) -> web.Application:
    """Serve with this library, and its Prometheus metrics if that is asked for."""
    # A server imports only what it needs, since its memory is measured.
    from aiohttp_interceptors import Hub, as_handler, setup, start_topic_stream  # noqa: PLC0415

    hub = Hub(history=HISTORY)

    async def publish(request: web.Request) -> web.Response:
        for line in (await request.text()).split("\n"):
            await hub.publish("news", line)
        return web.Response(status=204)

    app = web.Application()
    if prometheus:
        from aiohttp_interceptors.observe.prometheus import PrometheusMetrics  # noqa: PLC0415

        metrics = PrometheusMetrics()
        metrics.watch(hub)
        setup(app, hub, observer=metrics.streams)
        app.router.add_get("/metrics", metrics.handler)
        app.router.add_post("/observe/{on}", exchange_observers(hub))
    else:
        setup(app, hub)
    app.router.add_get("/stream", as_handler(start_topic_stream(hub, "news", heartbeat=NEVER, prime=True)))
    app.router.add_post("/publish", publish)
    return app


def exchange_observers(hub: Hub) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Return a handler that switches the observers of a Hub on and off."""
    observers = hub._dispatcher.observers
    functions = observers._functions

    async def handler(request: web.Request) -> web.Response:
        observers._functions = functions if request.match_info["on"] == "1" else ()
        return web.Response(status=204)

    return handler


def aiohttp_sse() -> web.Application:
    """Serve with aiohttp-sse."""
    from aiohttp_sse import sse_response  # noqa: PLC0415  # only in this server

    queues = Queues()

    async def stream(request: web.Request) -> web.StreamResponse:
        queue = queues.add()
        try:
            async with sse_response(request, ping_interval=NEVER) as response:
                while response.is_connected():
                    await response.send(await queue.get())
        finally:
            queues.all.discard(queue)
        return response

    async def publish(request: web.Request) -> web.Response:
        queues.publish((await request.text()).split("\n"))
        return web.Response(status=204)

    app = web.Application()
    app.router.add_get("/stream", stream)
    app.router.add_post("/publish", publish)
    return app


def bare() -> web.Application:
    """Serve idle streams with aiohttp alone."""

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await asyncio.get_running_loop().create_future()
        return response

    app = web.Application()
    app.router.add_get("/stream", stream)
    return app


async def serve_aiohttp(app: web.Application, listening: socket.socket, *, cancel: bool = False) -> None:
    """Serve until killed, and cancel the handlers of clients that leave if that is asked for."""

    async def collect(request: web.Request) -> web.Response:
        gc.collect()
        return web.Response(status=204)

    async def connections(request: web.Request) -> web.Response:
        assert runner.server is not None
        return web.json_response(len(runner.server.connections))

    app.router.add_post("/collect", collect)
    app.router.add_post("/connections", connections)
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=NEVER, handler_cancellation=cancel)
    await runner.setup()
    await web.SockSite(runner, listening, backlog=4096).start()
    await asyncio.Event().wait()


async def serve_starlette(listening: socket.socket) -> None:
    """Serve with sse-starlette on uvicorn until killed."""
    import uvicorn  # noqa: PLC0415  # only in this server
    from sse_starlette import EventSourceResponse  # noqa: PLC0415  # only in this server
    from starlette.applications import Starlette  # noqa: PLC0415  # only in this server
    from starlette.requests import Request  # noqa: PLC0415  # only in this server
    from starlette.responses import Response  # noqa: PLC0415  # only in this server
    from starlette.routing import Route  # noqa: PLC0415  # only in this server

    queues = Queues()

    async def stream(request: Request) -> Response:
        queue = queues.add()

        async def generate() -> AsyncIterator[str]:
            try:
                while True:
                    yield await queue.get()
            finally:
                queues.all.discard(queue)

        return EventSourceResponse(generate(), ping=int(NEVER))

    async def publish(request: Request) -> Response:
        queues.publish((await request.body()).decode().split("\n"))
        return Response(status_code=204)

    async def collect(request: Request) -> Response:
        gc.collect()
        return Response(status_code=204)

    routes = [Route("/stream", stream)]
    routes += [Route(f"/{handler.__name__}", handler, methods=["POST"]) for handler in (publish, collect)]
    config = uvicorn.Config(
        Starlette(routes=routes), log_level="warning", access_log=False, timeout_keep_alive=int(NEVER), backlog=4096
    )
    await uvicorn.Server(config).serve([listening])


async def serve(name: str, listening: socket.socket) -> None:
    """Serve with the library of this name."""
    if name == "sse-starlette":
        await serve_starlette(listening)
    else:
        applications: dict[str, Callable[[], web.Application]] = {
            "ours": ours,
            "ours-prometheus": partial(ours, prometheus=True),
            "aiohttp-sse": aiohttp_sse,
            "bare": bare,
        }
        await serve_aiohttp(applications[name](), listening, cancel=name == "bare")


def main() -> None:
    """Serve with the library and the event loop of the command line."""
    name, loop, *logs = sys.argv[1:]
    if logs == ["rendered"]:
        structlog.configure(cache_logger_on_first_use=True)
    elif logs != ["unconfigured"]:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if loop == "uvloop":
        import uvloop  # noqa: PLC0415  # only in this server

        factory = uvloop.new_event_loop
    listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
    print(listening.getsockname()[1], flush=True)
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(name, listening))


if __name__ == "__main__":
    main()
