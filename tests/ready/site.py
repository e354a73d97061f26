"""Applications that the tests of the ready-made interceptors serve: one handler of each kind, in each place."""

from __future__ import annotations

from aiohttp import web

from aiohttp_interceptors import (
    CloseReason,
    Hub,
    as_handler,
    event_stream,
    intercept,
    interceptor_middleware,
    setup,
    start_topic_stream,
)

PLACES = ("middleware", "route")


async def plain(request: web.Request) -> web.StreamResponse:
    return web.Response(text="plain")


async def redirect(request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("/elsewhere")


async def refused(request: web.Request) -> web.StreamResponse:
    raise web.HTTPForbidden


async def prepared(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"prepared")
    return response


@event_stream(heartbeat=None)
async def stream(request: web.Request):
    yield "one"


def topics():
    async def ready(subscriber, context) -> None:
        context.stream.end(CloseReason.CLOSED)

    return as_handler(start_topic_stream(Hub(), "a", heartbeat=None, stream_ready=ready))


KINDS = {
    "plain": lambda: plain,
    "redirect": lambda: redirect,
    "refused": lambda: refused,
    "prepared": lambda: prepared,
    "stream": lambda: stream,
    "topic": topics,
}
"""Makes a handler of each kind."""
STREAMS = ("stream", "topic")


def application(place: str, interceptors, handler=plain, path: str = "/", **options) -> web.Application:
    """Return an application with one route, whose interceptors are in a middleware or around the handler."""
    app = web.Application(**options)
    setup(app)
    if place == "middleware":
        app.middlewares.append(interceptor_middleware(*interceptors))
        app.router.add_route("*", path, handler)
    else:
        app.router.add_route("*", path, intercept(*interceptors)(handler))
    return app
