"""How an ``EventStreamResponse`` ends when its client disconnects and when the server stops."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from aiohttp_sse import sse_response

from aiohttp_interceptors import Drain, Event, EventStreamResponse, setup
from aiohttp_interceptors.web.app import STREAMS
from tests.waiting import until, within

GET = "GET / HTTP/1.1\nHost: x\n\n"
POST = "POST / HTTP/1.1\nHost: x\nContent-Length: 0\n\n"
LAST_CHUNK = b"\r\n0\r\n\r\n"


class CancelledResponse(EventStreamResponse):
    handler_cancellation = True


class Outcome:
    """What happened to a handler."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self.how = ""

    async def within(self, seconds: float = 10.0) -> str:
        async with asyncio.timeout(seconds):
            await self.ended.wait()
        return self.how


def application(handler, *, response_cls=EventStreamResponse, drain=None, with_setup=True):
    """Make an application that serves a handler, and record what happens to it."""
    outcome = Outcome()

    async def handle(request):
        try:
            async with sse_response(request, response_cls=response_cls, allow_all_methods=True) as stream:
                await stream.send("first")
                outcome.started.set()
                await handler(stream)
            outcome.how = "returned"
        except BaseException as error:
            outcome.how = type(error).__name__
            raise
        finally:
            outcome.ended.set()
        return stream

    app = web.Application()
    if with_setup:
        setup(app, drain=drain or Drain(farewell=Event("bye", name="farewell"), timeout=4.0))
    app.router.add_route("*", "/", handle)
    return app, outcome


async def read_at_stop(server, request: str) -> bytes:
    """Open a stream, stop the server after the first event, and return what follows."""
    client = await server.connect(request)
    await client.until(b"data: first\r\n\r\n")
    async with asyncio.timeout(10):
        await server.stop()
        body = await client.reader.read()
    await client.close()
    return body


async def waits_for_something_else(stream):
    await asyncio.Queue().get()


async def waits(stream):
    await stream.wait()


async def polls(stream):
    while stream.is_connected():
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("handler", [waits, polls])
async def test_on_stop_a_handler_that_observes_it_returns_and_its_body_ends(serve, handler, handler_cancellation):
    app, outcome = application(handler)
    body = await read_at_stop(await serve(app, shutdown_timeout=60.0, handler_cancellation=handler_cancellation), GET)
    assert outcome.how == "returned"
    assert b"event: farewell\r\ndata: bye\r\n\r\n" in body
    assert body.endswith(LAST_CHUNK)


async def test_on_stop_any_other_handler_is_cancelled_after_its_stream_has_ended(serve, handler_cancellation, logged):
    app, outcome = application(waits_for_something_else)
    body = await read_at_stop(await serve(app, shutdown_timeout=60.0, handler_cancellation=handler_cancellation), GET)
    assert outcome.how == "CancelledError"
    assert b"event: farewell\r\ndata: bye\r\n\r\n" in body
    assert body.endswith(LAST_CHUNK)
    assert [line for line in logged if line["event"] == "streams_aborted"] == []


async def test_on_stop_a_post_response_ends_incomplete(serve):
    app, outcome = application(waits_for_something_else)
    body = await read_at_stop(await serve(app, shutdown_timeout=60.0), POST)
    assert outcome.how == "CancelledError"
    assert not body.endswith(LAST_CHUNK)


@pytest.mark.parametrize("handler", [waits, polls])
async def test_on_stop_a_post_response_ends_incomplete_even_if_its_handler_returns(serve, handler):
    app, outcome = application(handler, drain=Drain(grace=0.05))
    body = await read_at_stop(await serve(app, shutdown_timeout=60.0), POST)
    assert outcome.how == "returned"
    assert not body.endswith(LAST_CHUNK)


async def test_a_post_response_that_ended_before_the_stop_is_complete(serve):
    ended, more = asyncio.Event(), asyncio.Event()

    async def handler(stream):
        stream.stop_streaming()
        ended.set()
        await more.wait()

    app, outcome = application(handler, drain=Drain(grace=0, timeout=60.0))
    server = await serve(app)
    client = await server.connect(POST)
    await within(ended.wait())
    stopping = asyncio.create_task(server.stop())
    await until(lambda: app[STREAMS].closing)
    await asyncio.sleep(0)
    more.set()
    await within(stopping)
    body = await within(client.reader.read())
    await client.close()
    assert outcome.how == "returned"
    assert body.endswith(LAST_CHUNK)


async def test_on_stop_a_post_response_may_continue_for_the_grace(serve):
    more = asyncio.Event()

    async def handler(stream):
        await more.wait()
        await stream.send("second")

    app, outcome = application(handler, drain=Drain(grace=60.0))
    server = await serve(app)
    client = await server.connect(POST)
    await client.until(b"data: first\r\n\r\n")
    stopping = asyncio.create_task(server.stop())
    while not app[STREAMS].closing:
        await asyncio.sleep(0)
    more.set()
    async with asyncio.timeout(10):
        await stopping
        body = await client.reader.read()
    await client.close()
    assert outcome.how == "returned"
    assert b"data: second\r\n\r\n" in body
    assert body.endswith(LAST_CHUNK)


async def test_a_handler_that_does_not_end_when_cancelled_is_aborted_with_the_drain(serve, logged):
    release = asyncio.Event()

    async def handler(stream):
        try:
            await asyncio.Queue().get()
        finally:
            await release.wait()

    app, outcome = application(handler, drain=Drain(timeout=0.1))
    server = await serve(app, shutdown_timeout=0.1)
    client = await server.connect(GET)
    await client.until(b"data: first\r\n\r\n")
    async with asyncio.timeout(10):
        await server.stop()
        assert "streams_aborted" in [line["event"] for line in logged]
        release.set()
        await outcome.within()
    await client.close()


async def test_on_stop_a_handler_whose_client_has_disconnected_is_cancelled(serve):
    app, outcome = application(waits_for_something_else, drain=Drain(timeout=1000.0))
    server = await serve(app)
    client = await server.connect(GET)
    await client.until(b"data: first\r\n\r\n")
    client.reset()
    (stream,) = app[STREAMS]
    async with asyncio.timeout(10):
        while stream.is_connected():
            await asyncio.sleep(0)
        assert len(app[STREAMS]) == 1
        await server.stop()
    assert await outcome.within() == "CancelledError"


async def test_without_setup_the_stream_ends_only_when_aiohttp_ends_it(serve):
    app, outcome = application(waits_for_something_else, with_setup=False)
    server = await serve(app, shutdown_timeout=0.2)
    client = await server.connect(GET)
    await client.until(b"data: first\r\n\r\n")
    async with asyncio.timeout(10):
        await server.stop()
        body = await client.reader.read()
    await client.close()
    assert await outcome.within() == "CancelledError"
    assert not body.endswith(LAST_CHUNK)


async def test_a_disconnect_cancels_the_handler_only_with_handler_cancellation(serve):
    app, outcome = application(waits_for_something_else, response_cls=CancelledResponse)
    server = await serve(app)
    client = await server.connect(GET)
    await client.until(b"data: first\r\n\r\n")
    await client.close()
    assert await outcome.within() == "CancelledError"

    app, outcome = application(waits_for_something_else)
    server = await serve(app)
    client = await server.connect(GET)
    await client.until(b"data: first\r\n\r\n")
    (stream,) = app[STREAMS]
    await client.close()
    async with asyncio.timeout(10):
        while stream.is_connected():
            await asyncio.sleep(0)
    assert not outcome.ended.is_set()


async def test_after_a_disconnect_the_next_send_raises_at_once(serve):
    async def handler(stream):
        while stream.is_connected():
            await asyncio.sleep(0)
        await stream.send("second")

    app, outcome = application(handler)
    server = await serve(app)
    client = await server.connect(GET)
    await client.until(b"data: first\r\n\r\n")
    client.reset()
    assert await outcome.within() == "ClientConnectionResetError"


async def test_a_disconnect_wakes_a_waiting_send(serve):
    async def handler(stream):
        while True:
            await stream.send("x" * 100_000)

    app, outcome = application(handler)
    server = await serve(app)
    client = await server.connect(GET)
    await client.until(b"data: first\r\n\r\n")
    (stream,) = app[STREAMS]
    async with asyncio.timeout(10):
        while not stream.connection.paused:
            await asyncio.sleep(0.01)
    client.reset()
    assert await outcome.within() == "ClientConnectionResetError"


async def test_an_ended_stream_is_not_counted_and_its_connection_is_kept(serve):
    async def handler(stream):
        pass

    app, _ = application(handler)
    server = await serve(app)
    client = await server.connect(GET)
    for _ in range(3):
        await client.until(LAST_CHUNK)
        assert len(app[STREAMS]) == 0
        client.writer.write(GET.replace("\n", "\r\n").encode())
    await client.close()


async def test_a_handler_that_raises_leaves_no_open_stream(serve):
    async def handler(stream):
        raise ValueError

    app, outcome = application(handler)
    server = await serve(app)
    client = await server.connect(GET)
    await client.reader.read()
    await client.close()
    await outcome.within()
    assert len(app[STREAMS]) == 0


async def test_a_head_request_has_no_stream(serve):
    app, _ = application(waits)
    server = await serve(app)
    client = await server.connect(GET.replace("GET", "HEAD"))
    await client.until(b"\r\n\r\n")
    assert len(app[STREAMS]) == 0
    await client.close()
