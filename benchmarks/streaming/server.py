"""The servers that are measured: the natural program of each library for the same jobs, with its stock settings.

    python -m streaming.server ours|aiohttp-sse|sse-starlette|bare asyncio|uvloop CORE

Prints its port. ``/burst`` and ``/paced`` send ``?events=`` events when they are told, ``/idle`` and ``/plain`` none,
and ``/watched?number=`` notes when it knows that its client has left. ``/control`` tells, and asks, all of them.
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

EVENT_STREAM = {"Content-Type": "text/event-stream"}


def ours(control: Control) -> web.Application:
    """Serve with this library."""
    from aiohttp_interceptors import (  # noqa: PLC0415  # what one server needs must not be in another's memory
        CloseReason,
        Event,
        EventChannel,
        RequestContext,
        as_handler,
        setup,
        start_event_stream,
    )

    class NoRoom(asyncio.Queue[Event]):
        """A queue in which every put waits, so that it is seen how long until it is told."""

        def full(self) -> bool:
            return True

    async def burst(channel: EventChannel, context: RequestContext) -> None:
        load, events = control.load, int(context.request.query["events"])
        await load.go.wait()
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
        assert not await channel.put("there is no room"), "the put did not wait"
        control.refused[int(context.request.query["number"])] = time.monotonic()

    def on_close(context: RequestContext, reason: CloseReason) -> None:
        control.closed[int(context.request.query["number"])] = time.monotonic()

    app = web.Application()
    setup(app)
    for ready in (burst, paced, idle, plain):
        app.router.add_get(f"/{ready.__name__}", as_handler(start_event_stream(ready)))
    app.router.add_get("/watched", as_handler(start_event_stream(watched, buffer=NoRoom, on_close=on_close)))
    return app


def aiohttp_sse(control: Control) -> web.Application:
    """Serve with aiohttp-sse."""
    from aiohttp_sse import sse_response  # noqa: PLC0415  # as above

    async def burst(request: web.Request) -> web.StreamResponse:
        load, events = control.load, int(request.query["events"])
        async with sse_response(request) as response:
            await load.go.wait()
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

    return routed(burst, paced, idle, watched)


def bare(control: Control) -> web.Application:
    """Serve with aiohttp alone: frames that are there already are written, or a handler waits."""

    async def burst(request: web.Request) -> web.StreamResponse:
        load, response = control.load, web.StreamResponse(headers=EVENT_STREAM)
        await response.prepare(request)
        await load.go.wait()
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

    return routed(burst, paced, idle)


def routed(*handlers: Handler) -> web.Application:
    """Make an application of handlers, under their names."""
    app = web.Application()
    for handler in handlers:
        app.router.add_get(f"/{handler.__name__}", handler)
    return app


async def serve_aiohttp(app: web.Application, control: Control, listening: socket.socket) -> None:
    """Serve until killed."""

    async def obey(request: web.Request) -> web.Response:
        return web.json_response(control.obey(request.query["verb"], int(request.query["events"])))

    app.router.add_get("/control", obey)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.SockSite(runner, listening).start()
    await asyncio.Event().wait()


async def serve_starlette(control: Control, listening: socket.socket) -> None:
    """Serve with sse-starlette on uvicorn until killed."""
    import uvicorn  # noqa: PLC0415  # as above
    from sse_starlette import EventSourceResponse  # noqa: PLC0415  # as above
    from starlette.applications import Starlette  # noqa: PLC0415  # as above
    from starlette.requests import Request  # noqa: PLC0415  # as above
    from starlette.responses import Response  # noqa: PLC0415  # as above
    from starlette.routing import Route  # noqa: PLC0415  # as above

    async def burst(request: Request) -> Response:
        load, events = control.load, int(request.query_params["events"])

        async def generate() -> AsyncIterator[str]:
            await load.go.wait()
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

    async def obey(request: Request) -> Response:
        query = request.query_params
        return Response(json.dumps(control.obey(query["verb"], int(query["events"]))))

    routes = [Route(f"/{handler.__name__}", handler) for handler in (burst, paced, watched)]
    app = Starlette(routes=[*routes, Route("/control", obey)])
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
    """Serve what the command line says."""
    name, loop, core = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if loop == "uvloop":
        import uvloop  # noqa: PLC0415  # as above

        factory = uvloop.new_event_loop
    listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
    print(listening.getsockname()[1], flush=True)
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(name, listening))


if __name__ == "__main__":
    main()
