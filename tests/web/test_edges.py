"""Streams in HTTP: methods, versions, bodies, ``Accept``, and errors before and after the response headers."""

from __future__ import annotations

import asyncio
import json
import logging
import warnings

import httpx
import pytest
import uvloop
from aiohttp import web
from httpx_sse import aconnect_sse

from aiohttp_interceptors import (
    CloseReason,
    Event,
    StopReconnecting,
    StreamFirstEvent,
    as_handler,
    before,
    on_error,
    setup,
    start_event_stream,
)
from aiohttp_interceptors.web.app import STREAMS
from tests.waiting import until, within

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture is deprecated")

LAST = b"0\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.14 on
        return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


async def echo(channel, context):
    """Stream as a chat completion API does: one event per token, and a final one."""
    body = await context.request.json()
    for token in body["prompt"].split():
        await channel.put(Event.json({"token": token}))
    await channel.put("[DONE]")
    channel.close()


def one(channel, context):
    channel.put_nowait("x")
    channel.close()


class Edge:
    """An application with a stream at ``/`` and a plain response at ``/next``."""

    def __init__(self, ready=one, *interceptors, limits=None, **options):
        self.called = 0
        self.closes = []
        self.facts = []

        def counted(channel, context):
            self.called += 1
            return ready(channel, context)

        options.setdefault("heartbeat", None)
        stream = start_event_stream(counted, on_close=lambda context, why: self.closes.append(why), **options)
        self.app = web.Application(client_max_size=1000)
        setup(self.app, observer=self.facts.append, **(limits or {}))
        self.app.router.add_route("*", "/", as_handler(*interceptors, stream))
        self.app.router.add_get("/next", self.next)

    async def next(self, request):
        return web.Response(text="next")

    @property
    def taken(self):
        return self.app[STREAMS]._limits.in_use


async def serves_the_next(raw):
    """Check that the next bytes on the connection are the response to another request."""
    raw.writer.write(NEXT)
    assert (await raw.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
    assert await raw.until(b"next") == b"next"
    await raw.close()


class TestHead:
    async def test_it_gets_the_headers_of_a_stream_and_no_stream_is_opened_or_counted(self, serve):
        edge = Edge(limits={"max_streams": 1})
        server = await serve(edge.app)
        raw = await server.connect("HEAD / HTTP/1.1\nHost: x\n\n")
        head = await raw.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\r\nContent-Type: text/event-stream\r\n" in head
        await serves_the_next(raw)
        assert (edge.called, edge.closes, edge.facts, edge.taken) == (0, [], [], 0)

    @pytest.mark.parametrize("keep_alive", ["", "Connection: keep-alive\n"])
    async def test_it_gets_the_headers_over_http_1_0_too(self, serve, keep_alive):
        server = await serve(Edge().app)
        answer = await server.exchange(f"HEAD / HTTP/1.0\n{keep_alive}\n")
        assert answer.startswith(b"HTTP/1.0 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\n")
        assert answer.count(b"\r\n\r\n") == 1
        assert b"chunked" not in answer

    async def test_it_is_refused_like_a_stream_when_strict(self, serve):
        server = await serve(Edge(strict=True).app)
        answer = await server.exchange("HEAD / HTTP/1.1\nHost: x\nAccept: text/html\nConnection: close\n\n")
        assert answer.startswith(b"HTTP/1.1 406 ")


class TestHttp10:
    @pytest.mark.parametrize("keep_alive", ["", "Connection: keep-alive\n"])
    async def test_the_stream_ends_with_the_connection_without_chunks_or_keep_alive(self, serve, keep_alive):
        edge = Edge()
        server = await serve(edge.app)
        head, _, body = (await server.exchange(f"GET / HTTP/1.0\n{keep_alive}\n")).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.0 200 OK\r\n")
        assert b"chunked" not in head
        assert b"keep-alive" not in head.lower()
        assert body == b"data: x\n\n"
        await until(lambda: edge.taken == 0)
        assert edge.closes == [CloseReason.CLOSED]

    async def test_the_error_event_is_sent_too(self, serve):
        def ready(channel, context):
            channel.put_nowait("x")
            raise ValueError("broken")

        server = await serve(Edge(ready, error_event=Event("sorry", "error")).app)
        answer = await server.exchange("GET / HTTP/1.0\n\n")
        assert answer.endswith(b"\r\n\r\ndata: x\n\nevent: error\ndata: sorry\n\n")


def post(body, *headers, path="/", length=None):
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\n".join([*lines, "", body])


class TestPost:
    async def test_httpx_sse_as_a_client_of_a_chat_completion_api_gets_all_tokens(self, serve):
        edge = Edge(echo, strict=True)
        server = await serve(edge.app)
        prompt = {"prompt": "one two three", "stream": True}
        async with (
            httpx.AsyncClient(trust_env=False) as client,
            aconnect_sse(client, "POST", server.url, json=prompt) as source,
        ):
            got = [event.data async for event in source.aiter_sse()]
        assert [json.loads(data)["token"] for data in got[:-1]] == ["one", "two", "three"]
        assert got[-1] == "[DONE]"
        await until(lambda: edge.closes == [CloseReason.CLOSED])

    @pytest.mark.parametrize("expect", [(), ("Expect: 100-continue",)])
    @pytest.mark.parametrize("read_in_front", [False, True])
    async def test_the_body_is_read_first_and_the_connection_stays_usable(self, serve, expect, read_in_front):
        @before
        async def read(context):
            if read_in_front:
                await context.request.read()

        server = await serve(Edge(echo, read).app)
        raw = await server.connect(post("", *expect, length=16))
        if expect:
            assert await raw.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.writer.write(b'{"prompt":"a b"}')
        await raw.until(b"\r\n\r\n")
        body = await raw.until(LAST)
        assert body.count(b"data: ") == 3
        await serves_the_next(raw)

    @pytest.mark.parametrize("chunked", [False, True])
    async def test_a_body_that_is_too_large_gets_413(self, serve, chunked):
        edge = Edge(echo)
        server = await serve(edge.app)
        if chunked:
            request = f"POST / HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\n3e9\n{'x' * 1001}\n0\n\n"
        else:
            request = post("x" * 1001)
        raw = await server.connect(request)
        assert (await raw.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 413 ")
        assert (edge.called, edge.taken, edge.facts) == (0, 0, [])
        await raw.close()

    async def test_a_body_that_does_not_arrive_gets_408(self, serve):
        edge = Edge(echo, stall_timeout=0.02)
        server = await serve(edge.app)
        raw = await server.connect(post('{"prompt', length=100))
        assert (await raw.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 408 ")
        assert (edge.called, edge.taken, edge.facts) == (0, 0, [])
        await raw.close()

    async def test_a_disconnect_in_the_body_is_not_logged_as_an_error(self, serve, logged, caplog):
        arrived = asyncio.Event()
        edge = Edge(echo, before(lambda context: arrived.set(), name="arrived"))
        tasks = asyncio.all_tasks()
        server = await serve(edge.app)
        raw = await server.connect(post('{"prompt', length=100))
        await asyncio.wait_for(arrived.wait(), 10)
        raw.reset()
        await until(lambda: len(asyncio.all_tasks()) <= len(tasks))
        assert (edge.called, edge.taken, edge.facts) == (0, 0, [])
        assert not [line for line in logged if line["log_level"] in ("error", "warning")]
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


class TestAccept:
    @pytest.mark.parametrize(
        ("accept", "strict", "status"),
        [
            ("", True, 200),
            ("Accept: text/event-stream\n", True, 200),
            ("Accept: application/json\n", True, 406),
            ("Accept: application/json\n", False, 200),
            ("Accept: application/json\nAccept: text/event-stream\n", True, 200),
            ("Accept: */*\nAccept: text/event-stream;q=0\n", True, 406),
        ],
    )
    async def test_a_client_that_does_not_accept_event_streams_gets_406_when_strict(
        self, serve, accept, strict, status
    ):
        edge = Edge(strict=strict)
        server = await serve(edge.app)
        raw = await server.connect(f"GET / HTTP/1.1\nHost: x\n{accept}\n")
        head = await raw.until(b"\r\n\r\n")
        assert head.startswith(f"HTTP/1.1 {status} ".encode())
        await raw.until(LAST if status == 200 else b"(text/event-stream).\n")
        assert edge.called == (status == 200)
        await serves_the_next(raw)


class TestBeforeTheResponseHeaders:
    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (web.HTTPForbidden, 403),
            (lambda: web.HTTPSeeOther("/next"), 303),
            (StopReconnecting, 204),
            (lambda: ValueError("broken"), 500),
        ],
    )
    async def test_an_interceptor_can_refuse_with_any_status(self, serve, error, status):
        @before
        def refuse(context):
            raise error()

        edge = Edge(one, refuse)
        server = await serve(edge.app)
        raw = await server.connect("GET / HTTP/1.1\nHost: x\nConnection: close\n\n")
        answer = await asyncio.wait_for(raw.reader.read(), 10)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert b"event-stream" not in answer
        if status == 204:
            assert answer.endswith(b"\r\n\r\n")
            assert b"Content-Length" not in answer
        assert (edge.called, edge.closes, edge.facts, edge.taken) == (0, [], [], 0)
        await raw.close()

    async def test_stop_reconnecting_keeps_the_connection_open(self, serve):
        @before
        def over(context):
            raise StopReconnecting

        server = await serve(Edge(one, over).app)
        raw = await server.connect("GET / HTTP/1.1\nHost: x\n\n")
        assert (await raw.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 204 No Content\r\n")
        await serves_the_next(raw)


class TestAFailedPrepare:
    @pytest.mark.parametrize("fault", ["signal", "connection", "http", "staged"])
    @pytest.mark.parametrize("handled", [True, False])
    async def test_is_a_framed_error_response_with_staged_headers_and_the_connection_stays_usable(
        self, serve, fault, handled, logged
    ):
        @before
        def stage(context):
            context.response_headers["X-Staged"] = "yes"
            if fault == "staged":
                context.response_headers["X-Bad"] = "a\r\nX-Injected: b"

        async def fail(request, response):
            if isinstance(response, web.Response):
                return
            if fault == "signal":
                raise RuntimeError("broken")
            if fault == "connection":
                raise ConnectionRefusedError("the database is down")
            if fault == "http":
                raise web.HTTPForbidden

        @on_error(Exception)
        def answer(context, error):
            context.response_headers.pop("X-Bad", None)
            context.response = web.json_response({"error": "sorry"}, status=500)

        edge = Edge(one, *([answer] if handled else []), stage)
        edge.app.on_response_prepare.append(fail)
        server = await serve(edge.app)
        raw = await server.connect("GET / HTTP/1.1\nHost: x\n\n")
        head = await raw.until(b"\r\n\r\n")
        status = 403 if fault == "http" else 500
        assert head.startswith(f"HTTP/1.1 {status} ".encode())
        assert b"chunked" not in head
        assert b"event-stream" not in head
        assert b"X-Injected" not in head
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        assert len(await raw.reader.readexactly(length)) == length
        assert (edge.called, edge.closes, edge.facts, edge.taken) == (0, [], [], 0)
        if handled:
            assert b"X-Staged: yes" in head
            await serves_the_next(raw)
        else:
            await raw.close()


class TestAfterTheResponseHeaders:
    @pytest.mark.parametrize(
        ("error_event", "frame"),
        [
            (None, b""),
            (Event("sorry", "error"), b"event: error\ndata: sorry\n\n"),
            (lambda error: Event(str(error), "error"), b"event: error\ndata: broken\n\n"),
        ],
    )
    @pytest.mark.parametrize("kind", ["plain", "async"])
    async def test_an_exception_is_raised_to_aiohttp_and_the_body_is_complete_only_with_an_error_event(
        self, serve, logged, raised, error_event, frame, kind
    ):
        def plain(channel, context):
            channel.put_nowait("x")
            raise ValueError("broken")

        async def ready(channel, context):
            plain(channel, context)

        edge = Edge(plain if kind == "plain" else ready, error_event=error_event)
        server = await serve(edge.app)
        raw = await server.connect("GET / HTTP/1.1\nHost: x\n\n")
        await raw.until(b"\r\n\r\n")
        body = await within(raw.reader.read())
        await raw.close()
        assert b"data: x\n\n" in body
        assert frame in body
        assert (b"event: error" in body) is (error_event is not None)
        assert body.endswith(b"\r\n" + LAST) is (error_event is not None)
        assert edge.closes == [CloseReason.ERROR]
        assert edge.taken == 0
        assert [str(error) for error in raised()] == ["broken"]
        assert [line for line in logged if line["log_level"] in ("error", "warning")] == []

    @pytest.mark.parametrize("wrong", [lambda error: error.absent, lambda error: None, lambda error: "text"])
    async def test_an_error_event_function_that_fails_is_logged_and_the_body_is_incomplete(
        self, serve, logged, raised, wrong
    ):
        def ready(channel, context):
            raise ValueError("broken")

        server = await serve(Edge(ready, error_event=wrong).app)
        raw = await server.connect("GET / HTTP/1.1\nHost: x\n\n")
        await raw.until(b"\r\n\r\n")
        assert await within(raw.reader.read()) == b""
        await raw.close()
        assert [line["event"] for line in logged if line["log_level"] == "error"] == ["stream_error_event_failed"]
        assert [str(error) for error in raised()] == ["broken"]


async def closed(channel, context):
    await channel.put("x")
    channel.close()


async def kicked(channel, context):
    await channel.put("x")
    channel.end(CloseReason.KICKED)


async def waits(channel, context):
    await channel.put("x")
    await channel.wait_closed()


class TestTheConnectionStaysOpen:
    @pytest.mark.parametrize(
        ("ready", "options", "reason"),
        [
            (closed, {}, CloseReason.CLOSED),
            (kicked, {}, CloseReason.KICKED),
            (waits, {"max_age": 0.01}, CloseReason.EXPIRED),
        ],
    )
    async def test_after_the_server_ends_a_stream(self, serve, ready, options, reason):
        edge = Edge(ready, **options)
        server = await serve(edge.app)
        raw = await server.connect("GET / HTTP/1.1\nHost: x\n\n")
        for count in range(1, 4):
            await raw.until(b"\r\n\r\n")
            assert (await raw.until(LAST)).endswith(b"data: x\n\n\r\n" + LAST)
            await until(lambda count=count: len(edge.closes) == count)
            raw.writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" if count < 3 else b"")
        assert edge.closes == [reason] * 3
        await serves_the_next(raw)
        assert edge.taken == 0


class TestCancelled:
    @pytest.mark.parametrize("where", ["body", "prepare", "open", "full", "on_close"])
    async def test_a_handler_that_is_cancelled_at_any_await_releases_its_slot_and_reports_the_end_once(
        self, serve, where
    ):
        handler, arrived, closes = [], asyncio.Event(), []

        @before
        def note(context):
            handler.append(asyncio.current_task())
            if where == "body":
                arrived.set()

        async def slow(request, response):
            if where == "prepare":
                arrived.set()
                await asyncio.Event().wait()

        async def ready(channel, context):
            if where == "open":
                arrived.set()
            if where == "on_close":
                channel.close()
                return
            if where == "full":
                while not context.response.connection.paused:
                    channel.put_nowait("x" * 65536)
                    await asyncio.sleep(0)
                channel.close()
                arrived.set()
                return
            await channel.wait_closed()

        release = asyncio.Event()

        async def on_close(context, reason):
            closes.append(reason)
            if where == "on_close":
                arrived.set()
                await release.wait()

        facts = []
        app = web.Application()
        setup(app, observer=facts.append)
        app.on_response_prepare.append(slow)
        stream = start_event_stream(ready, heartbeat=None, on_close=on_close)
        app.router.add_route("*", "/", as_handler(note, stream))
        server = await serve(app)
        raw = await server.connect(post("", length=1 if where == "body" else 0))
        await asyncio.wait_for(arrived.wait(), 10)
        if where == "full":
            await until(lambda: app[STREAMS] and all(s.channel.closed for s in app[STREAMS]))
        handler[0].cancel()
        release.set()
        await until(lambda: handler[0].done() or app[STREAMS]._limits.in_use == 0)
        await until(lambda: app[STREAMS]._limits.in_use == 0 and len(app[STREAMS]) == 0)
        opened = where in ("open", "full", "on_close")
        assert len(closes) == opened
        kinds = [type(fact).__name__ for fact in facts if not isinstance(fact, StreamFirstEvent)]
        assert kinds == ["StreamOpened", "StreamClosed"] * opened
        raw.reset()
