"""A response that ends early has no last chunk, so that no client takes it for complete."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from aiohttp import web

from aiohttp_interceptors import (
    CloseReason,
    Drain,
    Event,
    Hub,
    Interceptor,
    as_handler,
    setup,
    start_event_stream,
    start_topic_stream,
)
from aiohttp_interceptors.web.app import STREAMS
from tests.waiting import until, within

LAST = b"0\r\n\r\n"
LONG = 100.0


def request(method: str, version: str = "1.1") -> str:
    return f"{method} / HTTP/{version}\nHost: x\nContent-Length: 0\n\n"


async def waits(channel, context):
    await channel.put("x")
    await channel.wait_closed()


def application(ready=waits, drain: Drain | None = None, **options: object) -> web.Application:
    app = web.Application()
    setup(app, drain=drain)
    app.router.add_route("*", "/", as_handler(start_event_stream(ready, **options)))
    return app


async def opened(serve, app, method="GET", version="1.1", **settings):
    server = await serve(app, shutdown_timeout=LONG, **settings)
    raw = await server.connect(request(method, version))
    await raw.until(b"data: x\n\n")
    return server, raw


async def rest(raw) -> bytes:
    data = await within(raw.reader.read())
    await raw.close()
    return data


@pytest.mark.parametrize(
    ("method", "finite", "complete"),
    [("GET", None, True), ("GET", True, False), ("GET", False, True), ("POST", None, False), ("POST", True, False),
     ("POST", False, True), ("PUT", None, False)],
)  # fmt: skip
@pytest.mark.parametrize("how", ["stop", "expired", "kicked"])
async def test_a_stream_not_closed_by_its_producer_is_complete_only_if_it_is_endless(
    serve, logged, handler_cancellation, method, finite, complete, how
):
    """By default GET streams are endless."""

    async def ready(channel, context):
        await channel.put("x")
        if how == "kicked":
            await asyncio.sleep(0.01)
            context.stream.end(CloseReason.KICKED)
        await channel.wait_closed()

    app = application(ready, Drain(grace=0), finite=finite, max_age=0.02 if how == "expired" else None)
    server, raw = await opened(serve, app, method, handler_cancellation=handler_cancellation)
    if how == "stop":
        await within(server.stop())
    elif complete:
        assert (await raw.until(LAST)).endswith(b"\r\n" + LAST)
    data = b"" if how != "stop" and complete else await rest(raw)
    assert data.endswith(LAST) is (complete and how == "stop")
    await raw.close()
    assert [line for line in logged if line["log_level"] in {"warning", "error"}] == []


async def test_a_stream_closed_by_its_producer_is_complete_and_keeps_its_connection(serve):
    def ready(channel, context):
        channel.put_nowait("x")
        channel.close()

    server = await serve(application(ready))
    raw = await server.connect(request("POST") * 2)
    for _ in range(2):
        await raw.until(b"\r\n" + LAST)
    await raw.close()


async def test_a_stop_waits_some_seconds_for_finite_streams_by_default(serve):
    go = asyncio.Event()

    async def ready(channel, context):
        await channel.put("x")
        await go.wait()
        for number in range(3):
            await channel.put(str(number))
        channel.close()

    app = application(ready)
    server, raw = await opened(serve, app, "POST")
    stopping = asyncio.ensure_future(server.stop())
    await until(lambda: app[STREAMS].closing)
    go.set()
    data = await rest(raw)
    await within(stopping)
    assert data.endswith(b"data: 2\n\n\r\n" + LAST)


async def test_a_stop_does_not_wait_for_a_finite_stream_whose_client_disconnected(serve):
    async def ready(channel, context):
        await channel.put("x")
        await asyncio.sleep(LONG)

    app = application(ready, Drain(grace=LONG, timeout=0.1))
    server, raw = await opened(serve, app, "POST")
    await raw.close()
    (stream,) = app[STREAMS]
    await until(lambda: stream.reason)
    await within(server.stop())


async def test_a_client_detects_an_incomplete_response(serve):
    app = application(drain=Drain(grace=0.05))
    server = await serve(app, shutdown_timeout=LONG)
    async with aiohttp.ClientSession() as session, session.post(server.url) as response:
        assert await response.content.readuntil(b"\n\n") == b"data: x\n\n"
        stopping = asyncio.ensure_future(server.stop())
        with pytest.raises(aiohttp.ClientPayloadError):
            await within(response.read())
        await within(stopping)


async def test_an_error_event_completes_a_finite_stream(serve):
    async def ready(channel, context):
        await channel.put("x")
        raise LookupError

    _, raw = await opened(serve, application(ready, error_event=Event("sorry", "error")), "POST")
    assert (await rest(raw)).endswith(b"data: sorry\n\n\r\n" + LAST)


async def test_http_1_0_cannot_signal_an_incomplete_body(serve):
    server, raw = await opened(serve, application(drain=Drain(grace=0)), "POST", "1.0")
    await within(server.stop())
    assert await rest(raw) == b""


async def test_a_topic_stream_is_endless_for_any_method(serve):
    hub = Hub()
    app = web.Application()
    setup(app, hub)
    app.router.add_post("/", as_handler(start_topic_stream(hub, "a")))
    server = await serve(app, shutdown_timeout=LONG)
    raw = await server.connect(request("POST"))
    await raw.until(b"\r\n\r\n")
    await until(lambda: hub.statistics().subscribers == 1)
    await hub.publish("a", "x")
    await raw.until(b"data: x\n\n")
    await within(server.stop())
    assert (await rest(raw)).endswith(LAST)


async def test_an_incomplete_response_is_in_the_access_log(serve, caplog):
    caplog.set_level("INFO", "aiohttp.access")
    server, raw = await opened(serve, application(drain=Drain(grace=0)), "POST")
    await within(server.stop())
    await rest(raw)
    assert [record.levelname for record in caplog.records if record.name == "aiohttp.access"] == ["INFO"]
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_stage_that_cancels_its_finite_stream_leaves_the_body_incomplete(serve, method):
    stream = start_event_stream(waits)

    async def with_timeout(context):
        try:
            async with asyncio.timeout(0.05):
                await stream.enter(context)
        except TimeoutError:
            pass

    app = web.Application()
    setup(app)
    app.router.add_route(method, "/", as_handler(Interceptor("with_timeout", with_timeout)))
    _, raw = await opened(serve, app, method)
    if method == "GET":
        await raw.until(LAST)
        await raw.close()
    else:
        assert not (await rest(raw)).endswith(LAST)
    await until(lambda: app[STREAMS]._limits.in_use == 0)
