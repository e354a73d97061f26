"""The interface of aiohttp-sse on ``EventStreamResponse``."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from aiohttp_sse import EventSourceResponse, sse_response

from aiohttp_interceptors import EventStreamResponse, before, interceptor_middleware
from aiohttp_interceptors.testing import open_stream
from tests.waiting import until

GET = "GET / HTTP/1.1\nHost: x\nConnection: close\n\n"


def application(handler, **response) -> web.Application:
    async def handle(request: web.Request) -> web.StreamResponse:
        async with sse_response(request, response_cls=EventStreamResponse, **response) as stream:
            await handler(stream, request)
        return stream

    app = web.Application()
    app.router.add_route("*", "/", handle)
    return app


async def test_send_writes_the_bytes_of_aiohttp_sse(serve, session):
    async def handler(stream, request):
        assert isinstance(stream, EventSourceResponse)
        assert stream.is_connected()
        assert stream.last_event_id == "7"
        await stream.send("a\r\nb", id="8", event="news", retry=10)
        await stream.send("plain")

    server = await serve(application(handler))
    async with open_stream(session, server.url, last_event_id="7") as stream:
        assert [event.data async for event in stream] == ["a\nb", "plain"]
        assert stream.raw == b"id: 8\nevent: news\ndata: a\ndata: b\nretry: 10\n\ndata: plain\n\n".replace(
            b"\n", b"\r\n"
        )
        assert "Connection" not in stream.response.headers


async def test_a_custom_separator_is_kept(serve):
    async def handler(stream, request):
        await stream.send("x")

    assert b"data: x\r\r" in await (await serve(application(handler, sep="\r"))).exchange(GET)


async def test_wait_returns_at_once_when_the_client_disconnects(serve, handler_cancellation):
    done = asyncio.Event()

    async def handler(stream, request):
        try:
            await stream.wait()
            assert not stream.is_connected()
            with pytest.raises(ConnectionResetError, match="the client has disconnected"):
                await stream.send("x")
        finally:
            done.set()

    server = await serve(application(handler, ping_interval=60), handler_cancellation=handler_cancellation)
    raw = await server.connect(GET)
    await raw.until(b"\r\n\r\n")
    await raw.close()
    await asyncio.wait_for(done.wait(), 10)


async def test_wait_returns_when_streaming_is_stopped(serve):
    async def handler(stream, request):
        stream.stop_streaming()
        await stream.wait()
        assert not stream.is_connected()

    assert (await (await serve(application(handler))).exchange(GET)).endswith(b"\r\n\r\n0\r\n\r\n")


async def test_wait_returns_for_a_client_that_has_already_disconnected(serve):
    done = asyncio.Event()

    async def handler(stream, request):
        while not stream.connection.disconnected:
            await asyncio.sleep(0)
        await stream.wait()
        done.set()

    server = await serve(application(handler))
    raw = await server.connect(GET)
    await raw.until(b"\r\n\r\n")
    await raw.close()
    await asyncio.wait_for(done.wait(), 10)


async def test_a_client_that_reads_nothing_times_out_and_is_disconnected(serve):
    outcome = asyncio.Queue()

    async def handler(stream, request):
        with pytest.raises(TimeoutError):
            while True:
                await stream.send("x" * 1_000_000)
        outcome.put_nowait(stream.is_connected())

    server = await serve(application(handler, send_timeout=0.05))
    raw = await server.connect(GET)
    assert await asyncio.wait_for(outcome.get(), 10) is False
    raw.reset()


async def test_prepare_is_idempotent(serve):
    async def handler(stream, request):
        assert await stream.prepare(request) is not None

    assert (await (await serve(application(handler))).exchange(GET)).count(b"HTTP/1.1") == 1


async def test_a_second_prepare_for_a_disconnected_client_raises(serve):
    raised = asyncio.Event()

    async def handler(stream, request):
        request.transport.close()
        with pytest.raises(ConnectionResetError, match="the client has disconnected"):
            await stream.prepare(request)
        raised.set()

    await (await serve(application(handler))).exchange(GET)
    assert raised.is_set()


@pytest.mark.parametrize(
    ("method", "allowed", "status"),
    [("POST", False, 405), ("POST", True, 200), ("HEAD", False, 405), ("HEAD", True, 200)],
)
async def test_other_methods_are_refused_unless_allowed_and_head_gets_headers(serve, session, method, allowed, status):
    async def handler(stream, request):
        pass

    server = await serve(application(handler, allow_all_methods=allowed))
    async with session.request(method, server.url) as response:
        assert response.status == status
        if status == 405:
            assert response.headers["Allow"] == "GET"


async def test_an_idle_stream_gets_heartbeats_unless_the_interval_is_none(serve, session):
    async def handler(stream, request):
        await stream.wait()

    server = await serve(application(handler, ping_interval=0.01))
    async with open_stream(session, server.url) as stream:
        assert (await stream.next_frame()).comment == "ping"
        assert (await stream.next_frame()).comment == "ping"
    assert EventStreamResponse(ping_interval=None).connection is None


async def test_content_length_is_removed_and_staged_headers_are_sent(serve, session):
    @before
    def stage(context) -> None:
        context.response_headers["X-Staged"] = "1"

    async def handler(stream, request):
        await stream.send("x")

    app = application(handler, headers={"Content-Length": "3"})
    app.middlewares.append(interceptor_middleware(stage))
    async with open_stream(session, (await serve(app)).url) as stream:
        assert stream.response.headers["X-Staged"] == "1"
        assert "Content-Length" not in stream.response.headers
        assert (await stream.next()).data == "x"


def test_invalid_fields_are_refused():
    with pytest.raises(ValueError, match="ping interval must be positive"):
        EventStreamResponse(ping_interval=0)
    with pytest.raises(NotImplementedError, match="only for responses that are no EventStreamResponse"):
        EventStreamResponse().enable_compression()
    with pytest.raises(RuntimeError, match="Response is not started"):
        asyncio.run(EventStreamResponse().send("x"))
    assert not EventStreamResponse().is_connected()


async def test_a_stopped_stream_sends_no_heartbeats(serve):
    async def handler(stream, request):
        await stream.send("x")
        stream.stop_streaming()
        stream.connection.on_timer(asyncio.get_running_loop().time() + 1000)

    answer = await (await serve(application(handler, send_timeout=None))).exchange(GET)
    assert answer.endswith(b"\r\n\r\nb\r\ndata: x\r\n\r\n\r\n0\r\n\r\n")


async def test_data_none_raises_type_error_as_in_aiohttp_sse(serve, caplog):
    async def handler(stream, request):
        with pytest.raises(TypeError, match="data is a str, not None"):
            await stream.send(None)

    assert b"data" not in await (await serve(application(handler))).exchange(GET)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_send_in_another_task_ends_when_the_handler_returns(serve):
    """It waited for a client that reads slowly, and would wait for ever after the body has ended."""
    sending = []

    async def handler(stream, request):
        async def flood():
            while True:
                await stream.send("x" * 1_000_000)

        sending.append(asyncio.create_task(flood()))
        await until(lambda: stream.connection.paused)

    server = await serve(application(handler, send_timeout=None))
    raw = await server.connect(GET)
    await until(lambda: sending and sending[0].done())
    assert isinstance(sending[0].exception(), ConnectionResetError)
    raw.reset()
