"""The servers: for each library the usual program for the same tasks, with default settings.

    python -m streaming.server ours|aiohttp-sse|sse-starlette|bare asyncio|uvloop CORE

Prints its port. ``/burst`` and ``/paced`` send ``?events=`` events after a command, ``/idle`` and ``/plain`` send none,
and ``/watched?number=`` records when a disconnect is detected. ``/control`` executes commands.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog
from aiohttp import web

from .control import Control, frames, texts

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SHORT = "an event"
EVENT_STREAM = {"Content-Type": "text/event-stream"}


async def short(context: object) -> AsyncIterator[str]:
    """Yield one event."""
    yield SHORT


def ours(control: Control) -> web.Application:
    """Serve with this library."""
    from aiohttp_interceptors import (  # noqa: PLC0415  # a server imports only what it needs: memory is measured
        CloseReason,
        Event,
        EventChannel,
        RequestContext,
        as_handler,
        event_stream,
        setup,
        start_event_stream,
    )

    class FullQueue(asyncio.Queue[Event]):
        """A queue that is always full, to measure when a waiting put returns."""

        def full(self) -> bool:
            return True

    async def burst(channel: EventChannel, context: RequestContext) -> None:
        load, events = control.load, int(context.request.query["events"])
        await load.start.wait()
        for text in texts(events):
            await channel.put(text)
        await load.done.wait()
        channel.close()

    async def paced(channel: EventChannel, context: RequestContext) -> None:
        load = control.load
        load.sinks.append(channel.put)
        await load.done.wait()
        channel.close()

    async def idle(channel: EventChannel, context: RequestContext) -> None:
        await channel.wait_closed()

    def plain(channel: EventChannel, context: RequestContext) -> None:
        pass

    async def watched(channel: EventChannel, context: RequestContext) -> None:
        assert not await channel.put("never sent"), "the put did not wait"
        control.refused[int(context.request.query["number"])] = time.monotonic()

    def on_close(context: RequestContext, reason: CloseReason) -> None:
        control.closed[int(context.request.query["number"])] = time.monotonic()

    app = web.Application()
    setup(app)
    for ready in (burst, paced, idle, plain):
        app.router.add_get(f"/{ready.__name__}", as_handler(start_event_stream(ready)))
    app.router.add_get("/short", event_stream(short))
    app.router.add_get("/watched", as_handler(start_event_stream(watched, buffer=FullQueue, on_close=on_close)))
    return app


def aiohttp_sse(control: Control) -> web.Application:
    """Serve with aiohttp-sse."""
    from aiohttp_sse import sse_response  # noqa: PLC0415  # only in this server

    async def burst(request: web.Request) -> web.StreamResponse:
        load, events = control.load, int(request.query["events"])
        async with sse_response(request) as response:
            await load.start.wait()
            for text in texts(events):
                await response.send(text)
            await load.done.wait()
        return response

    async def paced(request: web.Request) -> web.StreamResponse:
        load = control.load
        async with sse_response(request) as response:
            load.sinks.append(response.send)
            await load.done.wait()
        return response

    async def idle(request: web.Request) -> web.StreamResponse:
        async with sse_response(request) as response:
            await response.wait()
        return response

    async def watched(request: web.Request) -> web.StreamResponse:
        async with sse_response(request) as response:
            await response.wait()
            control.closed[int(request.query["number"])] = time.monotonic()
        return response

    async def short(request: web.Request) -> web.StreamResponse:
        async with sse_response(request) as response:
            await response.send(SHORT)
        return response

    return routed(burst, paced, idle, watched, short)


def bare(control: Control) -> web.Application:
    """Serve with aiohttp alone: handlers write encoded frames, or wait."""

    async def burst(request: web.Request) -> web.StreamResponse:
        load, response = control.load, web.StreamResponse(headers=EVENT_STREAM)
        await response.prepare(request)
        await load.start.wait()
        for frame in frames(int(request.query["events"])):
            await response.write(frame)
        await load.done.wait()
        return response

    async def paced(request: web.Request) -> web.StreamResponse:
        load, response = control.load, web.StreamResponse(headers=EVENT_STREAM)
        ready = iter(frames(int(request.query["events"])))
        await response.prepare(request)
        load.sinks.append(lambda _: response.write(next(ready)))
        await load.done.wait()
        return response

    async def idle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=EVENT_STREAM)
        await response.prepare(request)
        await asyncio.get_running_loop().create_future()
        return response

    async def short(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=EVENT_STREAM)
        await response.prepare(request)
        await response.write(b"data: %b\n\n" % SHORT.encode())
        return response

    return routed(burst, paced, idle, short)


def routed(*handlers: Handler) -> web.Application:
    """Create an application with a route for each handler, under its name."""
    app = web.Application()
    for handler in handlers:
        app.router.add_get(f"/{handler.__name__}", handler)
    return app


async def serve_aiohttp(app: web.Application, control: Control, listening: socket.socket) -> None:
    """Serve until killed."""

    async def execute(request: web.Request) -> web.Response:
        return web.json_response(control.execute(request.query["verb"], int(request.query["events"])))

    app.router.add_get("/control", execute)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.SockSite(runner, listening).start()
    await asyncio.Event().wait()


async def serve_starlette(control: Control, listening: socket.socket) -> None:
    """Serve with sse-starlette on uvicorn until killed."""
    import uvicorn  # noqa: PLC0415  # only in this server
    from sse_starlette import EventSourceResponse  # noqa: PLC0415  # only in this server
    from starlette.applications import Starlette  # noqa: PLC0415  # only in this server
    from starlette.requests import Request  # noqa: PLC0415  # only in this server
    from starlette.responses import Response  # noqa: PLC0415  # only in this server
    from starlette.routing import Route  # noqa: PLC0415  # only in this server

    async def burst(request: Request) -> Response:
        load, events = control.load, int(request.query_params["events"])

        async def generate() -> AsyncIterator[str]:
            await load.start.wait()
            for text in texts(events):
                yield text
            await load.done.wait()

        return EventSourceResponse(generate())

    async def paced(request: Request) -> Response:
        load, events, queue = control.load, int(request.query_params["events"]), asyncio.Queue[str]()
        load.sinks.append(queue.put)

        async def generate() -> AsyncIterator[str]:
            for _ in range(events):
                yield await queue.get()
            await load.done.wait()

        return EventSourceResponse(generate())

    async def watched(request: Request) -> Response:
        async def generate() -> AsyncIterator[str]:
            try:
                await asyncio.Event().wait()
                yield ""
            finally:
                control.closed[int(request.query_params["number"])] = time.monotonic()

        return EventSourceResponse(generate())

    async def execute(request: Request) -> Response:
        query = request.query_params
        return Response(json.dumps(control.execute(query["verb"], int(query["events"]))))

    routes = [Route(f"/{handler.__name__}", handler) for handler in (burst, paced, watched)]
    app = Starlette(routes=[*routes, Route("/control", execute)])
    await uvicorn.Server(uvicorn.Config(app, log_level="warning")).serve([listening])


async def serve(name: str, listening: socket.socket) -> None:
    """Serve with the library of this name."""
    control = Control()
    if name == "sse-starlette":
        await serve_starlette(control, listening)
    else:
        app = {"ours": ours, "aiohttp-sse": aiohttp_sse, "bare": bare}[name](control)
        await serve_aiohttp(app, control, listening)


def main() -> None:
    """Serve with the library, the event loop and the core of the command line."""
    name, loop, core = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if loop == "uvloop":
        import uvloop  # noqa: PLC0415  # only in this server

        factory = uvloop.new_event_loop
    listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
    print(listening.getsockname()[1], flush=True)
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(name, listening))


if __name__ == "__main__":
    main()
