"""Staged headers: which are sent with which response, which are dropped, and which raise."""

from __future__ import annotations

import asyncio
import re
import traceback

import pytest
from aiohttp import web
from aiohttp_sse import sse_response

from aiohttp_interceptors import (
    CloseReason,
    EventStreamResponse,
    Hub,
    Interceptor,
    RequestContext,
    as_handler,
    interceptor_middleware,
    on_error,
    setup,
    start_event_stream,
    start_topic_stream,
)
from tests.waiting import TIMEOUT

GET = "GET / HTTP/1.1\nHost: x\nConnection: close\n\n"
NEXT = "GET /next HTTP/1.1\nHost: x\nConnection: close\n\n"

FRAMING = {
    "Content-Length": "5",
    "Transfer-Encoding": "gzip",
    "Trailer": "X-Sum",
    "Connection": "upgrade",
    "Keep-Alive": "timeout=5",
    "Upgrade": "h2c",
}
CODING = {"Content-Encoding": "gzip", "Content-Type": "text/plain"}


def errors(logged) -> list[dict]:
    return [line for line in logged if line["log_level"] == "error"]


def dropped(logged) -> list[tuple[str, str, str | None]]:
    lines = [line for line in errors(logged) if line["event"] == "framing_header_dropped"]
    return [(line["header"], line["value"], line["interceptor"]) for line in lines]


async def two_events(channel, context) -> None:
    await channel.put("one")
    await channel.put("two")
    channel.close()


async def sse(request: web.Request) -> web.StreamResponse:
    async with sse_response(request, response_cls=EventStreamResponse) as response:
        await response.send("one")
    return response


def topic_stream():
    async def ready(subscriber, context) -> None:
        context.stream.end(CloseReason.CLOSED)

    return start_topic_stream(Hub(), "a", heartbeat=None, stream_ready=ready)


STREAMS = {
    "channel": lambda: as_handler(start_event_stream(two_events, heartbeat=None)),
    "topic": lambda: as_handler(topic_stream()),
    "sse_response": lambda: sse,
}


def application(handler, *interceptors: Interceptor, **routes) -> web.Application:
    app = web.Application(middlewares=[interceptor_middleware(*interceptors)])
    app.router.add_route("*", "/", handler)

    async def after(request: web.Request) -> web.StreamResponse:
        return web.Response(text="next")

    app.router.add_get("/next", after)
    setup(app)
    return app


def staging(name: str, value: str) -> Interceptor:
    def stage(context: RequestContext) -> None:
        if context.request.path == "/":
            context.response_headers[name] = value

    return Interceptor("stage", stage)


async def both(server, first: str) -> bytes:
    """Send two requests on one connection, and return the bytes received until the server closes it."""
    raw = await server.connect(first + NEXT)
    async with asyncio.timeout(TIMEOUT):
        answer = await raw.reader.read()
    await raw.close()
    return answer


def head_of(answer: bytes) -> str:
    return answer.partition(b"\r\n\r\n")[0].decode().lower()


def body_of(answer: bytes) -> bytes:
    """Return the body of the first of two responses, without the IDs, which differ between Hubs."""
    return re.sub(rb"id: \w+", b"id: ", answer.split(b"\r\n\r\n", 1)[1].partition(b"HTTP/1.1")[0])


class TestAnEventStream:
    @pytest.mark.parametrize("kind", STREAMS)
    @pytest.mark.parametrize("name", [*FRAMING, *CODING])
    async def test_drops_and_logs_headers_that_contradict_its_framing(self, serve, logged, kind, name):
        value = {**FRAMING, **CODING}[name]
        plain = await both(await serve(application(STREAMS[kind]())), GET.replace("Connection: close\n", ""))
        logged.clear()
        app = application(STREAMS[kind](), staging(name, value))
        answer = await both(await serve(app), GET.replace("Connection: close\n", ""))
        assert f"\r\n{name}: {value}".lower() not in head_of(answer)
        assert "\r\ncontent-type: text/event-stream" in head_of(answer)
        assert "\r\ntransfer-encoding: chunked" in head_of(answer)
        assert body_of(answer) == body_of(plain)
        assert answer.endswith(b"\r\n\r\nnext")
        assert dropped(logged) == [(name, value, "stage" if name in FRAMING else None)]

    async def test_over_http_1_0_ends_with_the_connection(self, serve, logged):
        app = application(STREAMS["channel"](), staging("Connection", "keep-alive"))
        answer = await (await serve(app)).exchange("GET / HTTP/1.0\n\n")
        assert answer.endswith(b"data: two\n\n")
        assert dropped(logged) == [("Connection", "keep-alive", "stage")]

    async def test_accepts_a_header_equal_to_its_own(self, serve, logged):
        answer = await (await serve(application(sse, staging("Content-Type", "text/event-stream")))).exchange(GET)
        assert head_of(answer).count("content-type: text/event-stream") == 1
        assert errors(logged) == []

    async def test_with_the_interface_of_aiohttp_sse_drops_framing_headers_of_its_handler_too(self, serve, logged):
        async def handler(request: web.Request) -> web.StreamResponse:
            response = EventStreamResponse(headers={"Content-Encoding": "br", "X-Own": "1"})
            response.headers["Transfer-Encoding"] = "gzip"
            response.headers["Content-Length"] = "3"
            await response.prepare(request)
            await response.send("one")
            return response

        answer = await (await serve(application(handler))).exchange(GET)
        assert "x-own: 1" in head_of(answer)
        assert "content-encoding" not in head_of(answer)
        assert "content-length" not in head_of(answer)
        assert answer.endswith(b"data: one\r\n\r\n\r\n0\r\n\r\n")
        assert {name for name, _, _ in dropped(logged)} == {"content-encoding", "transfer-encoding", "content-length"}

    async def test_drops_framing_headers_of_an_on_response_prepare_handler(self, serve, logged):
        async def hook(request: web.Request, response: web.StreamResponse) -> None:
            response.headers["Content-Length"] = "3"

        app = application(STREAMS["channel"]())
        app.on_response_prepare.append(hook)
        answer = await (await serve(app)).exchange(GET)
        assert "content-length" not in head_of(answer)
        assert answer.endswith(b"\r\n0\r\n\r\n")
        assert dropped(logged) == [("content-length", "3", None)]


class TestAnyResponse:
    @pytest.mark.parametrize("name", FRAMING)
    @pytest.mark.parametrize("way", ["[]=", "add", "extend", "update", "merge", "setdefault"])
    async def test_drops_framing_headers_when_they_are_staged(self, serve, logged, name, way):
        value = FRAMING[name]

        def stage(context: RequestContext) -> None:
            headers = context.response_headers
            pairs = [("X-Own", "1"), (name, value)]
            if context.request.path == "/next":
                return
            if way == "[]=":
                for pair in pairs:
                    headers.__setitem__(*pair)
            elif way in {"add", "setdefault"}:
                for pair in pairs:
                    getattr(headers, way)(*pair)
            else:
                getattr(headers, way)(pairs)
            assert list(headers.items()) == [("X-Own", "1")]

        async def handler(request: web.Request) -> web.StreamResponse:
            return web.Response(text="eleven char")

        app = application(handler, Interceptor("stage", stage))
        answer = await both(await serve(app), GET.replace("Connection: close\n", ""))
        assert "\r\nx-own: 1" in head_of(answer)
        assert "\r\ncontent-length: 11" in head_of(answer)
        assert f"{name}: {value}".lower() not in head_of(answer)
        assert b"eleven char" in answer
        assert answer.endswith(b"\r\n\r\nnext")
        assert dropped(logged) == [(name, value, "stage")]
        (line,) = errors(logged)
        assert traceback.extract_tb(line["exc_info"].__traceback__)[0].name == "stage"

    @pytest.mark.parametrize("status", [200, 204, 304])
    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    async def test_without_a_body_gets_no_framing_headers(self, serve, logged, method, status):
        async def handler(request: web.Request) -> web.StreamResponse:
            return web.Response(status=status)

        def stage(context: RequestContext) -> None:
            if context.request.path == "/":
                context.response_headers.update({"Content-Length": "5", "Transfer-Encoding": "chunked"})

        app = application(handler, Interceptor("stage", stage))
        answer = await both(await serve(app), f"{method} / HTTP/1.1\nHost: x\n\n")
        assert "transfer-encoding" not in head_of(answer)
        assert "content-length: 5" not in head_of(answer)
        assert answer.endswith(b"\r\n\r\nnext")

    async def test_can_have_a_content_encoding_staged(self, serve, logged):
        async def handler(request: web.Request) -> web.StreamResponse:
            return web.Response(body=b"compressed")

        answer = await (await serve(application(handler, staging("Content-Encoding", "br")))).exchange(GET)
        assert "content-encoding: br" in head_of(answer)
        assert errors(logged) == []

    async def test_of_a_websocket_keeps_its_handshake_headers(self, serve, session, logged):
        async def talk(request: web.Request) -> web.StreamResponse:
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            await socket.send_str("hello")
            await socket.close()
            return socket

        def stage(context: RequestContext) -> None:
            context.response_headers["Connection"] = "close"
            context.response_headers["Sec-WebSocket-Accept"] = "x"
            context.response_headers["X-Own"] = "1"

        server = await serve(application(talk, Interceptor("stage", stage)))
        async with session.ws_connect(server.url) as socket:
            assert await socket.receive_str() == "hello"
            assert socket._response.headers["X-Own"] == "1"
        assert [name for name, _, _ in dropped(logged)] == ["Connection", "Sec-WebSocket-Accept"]

    async def test_drops_framing_headers_staged_on_a_copy(self, serve, logged):
        def stage(context: RequestContext) -> RequestContext:
            twin = context.copy()
            twin.response_headers["Content-Length"] = "5"
            twin.response_headers["X-Own"] = "1"
            return twin

        async def handler(request: web.Request) -> web.StreamResponse:
            return web.Response(text="eleven char")

        answer = await (await serve(application(handler, Interceptor("stage", stage)))).exchange(GET)
        assert answer.endswith(b"\r\n\r\neleven char")
        assert "x-own: 1" in head_of(answer)
        assert [name for name, _, _ in dropped(logged)] == ["Content-Length"]


BAD = {
    "line feed": ("X-Bad", "a\nSet-Cookie: b=c", ValueError),
    "both": ("X-Bad", "a\r\n\r\n<html>", ValueError),
    "NUL": ("X-Bad", "a\0b", ValueError),
    "surrogate": ("X-Bad", "a\udc80", ValueError),
    "in the name": ("X-Bad: a\r\nX", "b", ValueError),
    "no text": ("X-Bad", 5, TypeError),
}


class TestAHeaderThatCannotBeSent:
    @pytest.mark.parametrize("bad", BAD)
    @pytest.mark.parametrize("kind", [*STREAMS, "Response"])
    @pytest.mark.parametrize("where", ["enter", "leave"])
    async def test_is_a_complete_500_response(self, serve, logged, caplog, bad, kind, where):
        name, value, _ = BAD[bad]

        async def plain(request: web.Request) -> web.StreamResponse:
            return web.Response(text="body")

        def stage(context: RequestContext) -> None:
            if not context.committed:
                context.response_headers[name] = value

        handler = plain if kind == "Response" or where == "leave" else STREAMS[kind]()
        app = application(handler, Interceptor("stage", **{where: stage}))
        answer = await (await serve(app)).exchange(GET)
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert answer.count(b"HTTP/1.1") == 1
        assert b"X-Bad" not in answer
        assert b"b=c" not in answer
        assert b"<html>" not in answer

    @pytest.mark.parametrize("bad", BAD)
    async def test_raises_in_the_stage_that_stages_it(self, serve, logged, bad):
        name, value, error = BAD[bad]
        caught = []

        @on_error(error)
        def instead(context: RequestContext, error: Exception) -> None:
            caught.append((context.error.interceptor, context.error.stage))
            context.response = web.Response(status=400)

        async def handler(request: web.Request) -> web.StreamResponse:
            return web.Response()

        answer = await (await serve(application(handler, instead, staging(name, value)))).exchange(GET)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert caught == [("stage", "enter")]

    @pytest.mark.parametrize("value", ["tab\tinside", "ümläut", "", "日本"])
    async def test_is_not_one_with_a_tab_or_non_ascii_text(self, serve, logged, value):
        async def handler(request: web.Request) -> web.StreamResponse:
            return web.Response(text="body")

        answer = await (await serve(application(handler, staging("X-Odd", value)))).exchange(GET)
        assert f"X-Odd: {value}".encode() in answer
        assert errors(logged) == []


class TestWithoutSetup:
    async def test_headers_staged_for_a_prepared_response_are_logged_as_lost(self, serve, logged):
        async def own_stream(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            return response

        app = web.Application(middlewares=[interceptor_middleware(staging("X-Own", "1"))])
        app.router.add_get("/", own_stream)
        answer = await (await serve(app)).exchange(GET)
        assert "x-own" not in head_of(answer)
        (line,) = [line for line in logged if line["event"] == "staged_headers_lost"]
        assert (line["log_level"], line["headers"], line["path"]) == ("warning", ["X-Own"], "/")
        assert "setup(app)" in line["hint"]


class TestAfterCommit:
    async def test_staged_headers_obtained_before_commit_drop_changes_and_log_them(self, serve, logged):
        kept = []

        def enter(context: RequestContext) -> None:
            kept.append(context.response_headers)
            kept[0]["X-Early"] = "1"

        def late(context: RequestContext) -> None:
            kept[0]["X-Late"] = "1"

        app = application(STREAMS["channel"](), Interceptor("stage", enter, late))
        answer = await (await serve(app)).exchange(GET)
        assert "x-early: 1" in head_of(answer)
        assert [(line["attempted"], line["interceptor"], line["stage"]) for line in errors(logged)] == [
            ("headers['X-Late'] = '1'", "stage", "leave")
        ]

    async def test_headers_of_a_stream_obtained_before_commit_drop_changes_too(self, serve, logged):
        async def handler(request: web.Request) -> web.StreamResponse:
            response = EventStreamResponse()
            kept = response.headers
            kept["X-Early"] = "1"
            await response.prepare(request)
            kept["X-Late"] = "1"
            return response

        answer = await (await serve(application(handler))).exchange(GET)
        assert "x-early: 1" in head_of(answer)
        assert [line["attempted"] for line in errors(logged)] == ["headers['X-Late'] = '1'"]
