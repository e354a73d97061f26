from __future__ import annotations

import math
import re

import pytest
from aiohttp import web

from aiohttp_interceptors import (
    CloseReason,
    Drain,
    Event,
    RequestContext,
    as_handler,
    before,
    interceptor_middleware,
    setup,
    start_event_stream,
)
from aiohttp_interceptors.web.app import STREAMS

KEEP = "GET /s/ HTTP/1.1\nHost: x\n\n"


def test_setup_is_idempotent():
    app = web.Application()
    setup(app)
    setup(app)
    assert len(app.on_shutdown) == len(app.on_response_prepare) == 1


async def test_setup_raises_if_it_is_too_late(serve):
    app, sub = web.Application(), web.Application()
    app.add_subapp("/sub", sub)
    with pytest.raises(RuntimeError, match="before add_subapp"):
        setup(sub)
    await serve(app)
    with pytest.raises(RuntimeError, match="before the application starts"):
        setup(app)


@pytest.mark.parametrize("wrong", [None, "app", web.Application])
def test_setup_requires_an_application(wrong):
    with pytest.raises(TypeError, match=r"setup takes a web.Application, not"):
        setup(wrong)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"drain": 5}, TypeError, "drain is a Drain, not 5"),
        ({"drain": Drain}, TypeError, "drain is a Drain, not <class"),
        ({"observer": "log"}, TypeError, "observer is a function of a fact, not 'log'"),
        ({"max_streams": "5"}, TypeError, "max_streams is a number of streams or None, not '5'"),
        ({"max_streams": True}, TypeError, "max_streams is a number of streams or None, not True"),
        ({"max_streams": -1}, ValueError, "max_streams is 0 streams or more, not -1; None means no limit"),
        ({"max_streams_per_key": 1.5, "key": str}, TypeError, "max_streams_per_key is a number of streams or None"),
        ({"max_streams_per_key": -1, "key": str}, ValueError, "max_streams_per_key is 0 streams or more, not -1"),
        ({"max_streams_per_key": 1}, TypeError, "max_streams_per_key and key require each other"),
        ({"key": str}, TypeError, "max_streams_per_key and key require each other"),
        ({"max_streams_per_key": 1, "key": "user"}, TypeError, "key is a function of the request, not 'user'"),
    ],
)
def test_an_invalid_option_raises_and_nothing_is_set_up(options, error, message):
    app = web.Application()
    with pytest.raises(error, match=re.escape(message)):
        setup(app, **options)
    assert STREAMS not in app
    assert len(app.on_shutdown) == len(app.on_response_prepare) == 0


@pytest.mark.parametrize(
    "option",
    [{"drain": Drain()}, {"max_streams": 1}, {"max_streams_per_key": 1, "key": str}, {"observer": print}],
    ids=["drain", "max_streams", "max_streams_per_key", "observer"],
)
def test_options_in_a_second_call_raise(option):
    app = web.Application()
    setup(app, max_streams=5)
    with pytest.raises(RuntimeError, match="give it all its options in one call"):
        setup(app, **option)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"farewell": "bye"}, TypeError, "farewell is an Event or None, not 'bye'"),
        ({"spread": "5"}, TypeError, "spread is a number of seconds, not '5'"),
        ({"spread": None}, TypeError, "spread is a number of seconds, not None"),
        ({"spread": -1}, ValueError, "spread is 0 seconds or more, not -1"),
        ({"spread": math.inf}, ValueError, "spread is 0 seconds or more, not inf"),
        ({"spread": math.nan}, ValueError, "spread is 0 seconds or more, not nan"),
        ({"grace": None}, TypeError, "grace is a number of seconds, not None"),
        ({"grace": True}, TypeError, "grace is a number of seconds, not True"),
        ({"grace": -0.5}, ValueError, "grace is 0 seconds or more, not -0.5"),
        ({"grace": math.inf}, ValueError, "grace is 0 seconds or more, not inf"),
        ({"timeout": None}, TypeError, "timeout is a number of seconds, not None"),
        ({"timeout": 0}, ValueError, "timeout is more than 0 seconds, not 0"),
        ({"timeout": math.inf}, ValueError, "timeout is more than 0 seconds, not inf"),
    ],
)
def test_an_invalid_drain_raises(values, error, message):
    with pytest.raises(error, match=re.escape(message) + "$"):
        Drain(**values)


def test_spread_and_grace_may_be_zero():
    assert Drain(spread=0, grace=0) == Drain(spread=0.0, grace=0.0)


@pytest.mark.parametrize("which", ["parent", "sub", "both"])
async def test_streams_of_a_sub_application_end_with_any_application_that_was_set_up(serve, which):
    async def ready(channel, context):
        await channel.wait_closed()

    sub, app = web.Application(), web.Application()
    sub.router.add_get("/", as_handler(start_event_stream(ready)))
    for each in {"parent": [app], "sub": [sub], "both": [app, sub]}[which]:
        setup(each)
    app.add_subapp("/s", sub)
    server = await serve(app)
    raw = await server.connect(KEEP)
    await raw.until(b"\r\n\r\n")
    await server.stop()
    assert (await raw.reader.read()).removeprefix(b"2\r\n:\n\r\n") == b"0\r\n\r\n"  # possibly after a heartbeat
    await raw.close()


async def test_streams_end_as_the_innermost_application_with_setup_configures(serve):
    async def ready(channel, context):
        await channel.wait_closed()

    stream = as_handler(start_event_stream(ready))
    app, one, two, bare = (web.Application() for _ in range(4))
    for path, each in {"": app, "/one": one, "/two": two, "/bare": bare}.items():
        each.router.add_get("/s/", stream)
        if each is not bare:
            setup(each, drain=Drain(farewell=Event(f"bye {path}")))
        if each is not app:
            app.add_subapp(path, each)
    server = await serve(app, shutdown_timeout=1000)
    paths = {"": "", "/one": "/one", "/two": "/two", "/bare": ""}
    clients = [await server.connect(KEEP.replace("/s/", f"{path}/s/")) for path in paths]
    for client in clients:
        await client.until(b"\r\n\r\n")
    await server.stop()
    for client, owner in zip(clients, paths.values(), strict=True):
        frame = f"data: bye {owner}\n\n".encode()
        assert await client.reader.read() == b"%x\r\n%b\r\n0\r\n\r\n" % (len(frame), frame)
        await client.close()


async def test_without_setup_streams_end_at_the_shutdown_timeout_of_the_server(serve):
    """aiohttp waits for twice its timeout and does not end the body."""
    reasons = []

    async def ready(channel, context):
        await channel.wait_closed()

    app = web.Application()
    stream = start_event_stream(ready, on_close=lambda context, reason: reasons.append(reason))
    app.router.add_get("/s/", as_handler(stream))
    server = await serve(app, shutdown_timeout=0.05)
    raw = await server.connect(KEEP)
    await raw.until(b"\r\n\r\n")
    await server.stop()
    assert (await raw.reader.read()).removeprefix(b"2\r\n:\n\r\n") == b""  # possibly after a heartbeat
    assert reasons == [CloseReason.SHUTDOWN]
    await raw.close()


async def test_staged_headers_are_sent_with_a_websocket(serve, session):
    @before
    def stage(context: RequestContext) -> None:
        context.response_headers["X-Staged"] = "1"

    async def talk(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.close()
        return socket

    app = web.Application(middlewares=[interceptor_middleware(stage)])
    app.router.add_get("/", talk)
    setup(app)
    server = await serve(app)
    async with session.ws_connect(server.url) as socket:
        assert socket._response.headers["X-Staged"] == "1"
        await socket.receive()


async def test_responses_without_a_chain_are_unchanged(serve):
    async def page(request: web.Request) -> web.Response:
        return web.Response(text="x")

    app = web.Application()
    app.router.add_get("/", page)
    setup(app)
    answer = await (await serve(app)).exchange("GET / HTTP/1.1\nHost: x\nConnection: close\n\n")
    assert answer.endswith(b"\r\n\r\nx")
