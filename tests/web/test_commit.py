"""After commit every change of the response is dropped and logged once, and the client receives the same bytes."""

from __future__ import annotations

import operator
import re
import subprocess
import sys
import traceback
from datetime import UTC, datetime

import pytest
from aiohttp import ETag, web
from aiohttp_sse import sse_response

from aiohttp_interceptors import (
    EventStreamResponse,
    Interceptor,
    RequestContext,
    ResponseCommitted,
    around,
    as_handler,
    interceptor_middleware,
    setup,
    start_event_stream,
)

GET = "GET / HTTP/1.1\nHost: x\nConnection: close\n\n"


async def two_events(channel, context) -> None:
    await channel.put("one")
    await channel.put("two")
    channel.close()


async def own_stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"X-Own": "1"})
    await response.prepare(request)
    await response.write(b"body")
    return response


async def sse(request: web.Request) -> web.StreamResponse:
    async with sse_response(request, response_cls=EventStreamResponse) as response:
        await response.send("one")
        response.stop_streaming()
    return response


async def prepared_response(request: web.Request) -> web.StreamResponse:
    response = web.Response(text="body")
    await response.prepare(request)
    await response.write_eof()
    return response


KINDS = {
    "event stream": as_handler(start_event_stream(two_events, heartbeat=None)),
    "sse_response": sse,
    "own StreamResponse": own_stream,
    "prepared Response": prepared_response,
}


def application(handler, *interceptors: Interceptor) -> web.Application:
    app = web.Application(middlewares=[interceptor_middleware(*interceptors)])
    app.router.add_get("/", handler)
    return app


def undated(answer: bytes) -> bytes:
    return re.sub(rb"\r\nDate: [^\r]*", b"", answer)


@pytest.fixture
async def wire_with(serve, logged):
    """Return the bytes of a response, without and with an interceptor that changes it after commit."""

    async def exchange(handler, late: Interceptor) -> tuple[bytes, bytes]:
        logged.clear()
        plain = await (await serve(application(handler))).exchange(GET)
        assert errors(logged) == []
        tried = await (await serve(application(handler, late))).exchange(GET)
        return undated(plain), undated(tried)

    return exchange


def errors(logged) -> list[dict]:
    return [line for line in logged if line["log_level"] == "error"]


MUTATIONS = {
    "set_status": (lambda r: r.set_status(500), "set_status(500)"),
    "headers[]=": (lambda r: r.headers.__setitem__("X-Late", "1"), "headers['X-Late'] = '1'"),
    "del headers[]": (lambda r: r.headers.__delitem__("Server"), "del headers['Server']"),
    "headers.add": (lambda r: r.headers.add("X-Late", "1"), "headers.add('X-Late', '1')"),
    "headers.extend": (lambda r: r.headers.extend({"X-Late": "1"}), "headers.extend({'X-Late': '1'})"),
    "headers.merge": (lambda r: r.headers.merge({"X-Late": "1"}), "headers.merge({'X-Late': '1'})"),
    "headers.update": (lambda r: r.headers.update(x="1"), "headers.update(x='1')"),
    "headers.setdefault": (lambda r: r.headers.setdefault("X-Late", "1"), "headers.setdefault('X-Late', '1')"),
    "headers.pop": (lambda r: r.headers.pop("Server"), "headers.pop('Server')"),
    "headers.popone": (lambda r: r.headers.popone("Server"), "headers.popone('Server')"),
    "headers.popall": (lambda r: r.headers.popall("Server"), "headers.popall('Server')"),
    "headers.popitem": (lambda r: r.headers.popitem(), "headers.popitem()"),
    "headers.clear": (lambda r: r.headers.clear(), "headers.clear()"),
    "cookies[]=": (lambda r: r.cookies.__setitem__("late", "1"), "cookies['late'] = '1'"),
    "del cookies[]": (lambda r: r.cookies.__delitem__("early"), "del cookies['early']"),
    "cookies.load": (lambda r: r.cookies.load("late=1"), "cookies.load('late=1')"),
    "cookies.update": (lambda r: r.cookies.update({"late": "1"}), "cookies.update({'late': '1'})"),
    "cookies.setdefault": (lambda r: r.cookies.setdefault("late", "1"), "cookies.setdefault('late', '1')"),
    "cookies.pop": (lambda r: r.cookies.pop("late", None), "cookies.pop('late', None)"),
    "cookies |=": (lambda r: operator.ior(r.cookies, {"late": "1"}), "cookies |= {'late': '1'}"),
    "cookies.clear": (lambda r: r.cookies.clear(), "cookies.clear()"),
    "set_cookie": (lambda r: r.set_cookie("late", "1", path="/x"), "set_cookie('late', '1', path='/x')"),
    "del_cookie": (lambda r: r.del_cookie("late"), "del_cookie('late')"),
    "content_type": (lambda r: setattr(r, "content_type", "text/html"), "content_type = 'text/html'"),
    "charset": (lambda r: setattr(r, "charset", "latin-1"), "charset = 'latin-1'"),
    "content_length": (lambda r: setattr(r, "content_length", 3), "content_length = 3"),
    "last_modified": (lambda r: setattr(r, "last_modified", 0), "last_modified = 0"),
    "etag": (lambda r: setattr(r, "etag", "x"), "etag = 'x'"),
    "enable_compression": (lambda r: r.enable_compression(), "enable_compression()"),
    "enable_chunked_encoding": (lambda r: r.enable_chunked_encoding(), "enable_chunked_encoding()"),
}


class TestEveryMutator:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("mutation", MUTATIONS)
    async def test_is_dropped_and_logged_once_with_the_line_that_called_it(self, wire_with, logged, kind, mutation):
        change, attempted = MUTATIONS[mutation]

        def offend(context: RequestContext) -> None:
            change(context.response)

        plain, tried = await wire_with(KINDS[kind], Interceptor("late", leave=offend))
        assert tried == plain
        assert plain.startswith(b"HTTP/1.1 200 OK\r\n")
        (record,) = errors(logged)
        error = record.pop("exc_info")
        assert isinstance(record.pop("execution_id"), int)
        assert record == {
            "event": "change_after_commit_dropped",
            "log_level": "error",
            "attempted": attempted,
            "interceptor": "late",
            "stage": "leave",
        }
        assert isinstance(error, ResponseCommitted)
        assert str(error) == f"{attempted}: the response headers were already sent, so this was dropped"
        lines = traceback.extract_tb(error.__traceback__)
        assert lines[0].name == "offend"
        assert lines[0].line == "change(context.response)"
        assert lines[-1].line.startswith(f'"{mutation}": (lambda')

    @pytest.mark.parametrize("name", ["body", "text"])
    async def test_is_dropped_for_the_body_of_a_response_prepared_by_hand(self, wire_with, logged, name):
        def offend(context: RequestContext) -> None:
            setattr(context.response, name, "late")

        plain, tried = await wire_with(prepared_response, Interceptor("late", leave=offend))
        assert tried == plain
        assert [record["attempted"] for record in errors(logged)] == [f"{name} = 'late'"]

    async def test_does_not_affect_reads_and_connection_settings(self, wire_with, logged):
        def look(context: RequestContext) -> None:
            response = context.response
            response["key"] = "value"
            response.force_close()
            assert (response["key"], response.status, response.content_type) == ("value", 200, "text/event-stream")
            assert response.headers["X-Accel-Buffering"] == "no"
            assert "X-Nothing" not in response.headers
            assert response.headers.setdefault("X-Accel-Buffering", "yes") == "no"
            assert response.cookies == {}
            assert response.charset is None
            assert response.last_modified is None
            assert response.etag is None

        plain, tried = await wire_with(KINDS["event stream"], Interceptor("look", leave=look))
        assert tried == plain
        assert errors(logged) == []

    async def test_of_cookies_still_returns_the_value_that_was_sent(self, serve, logged):
        async def handler(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            response.set_cookie("early", "1")
            await response.prepare(request)
            return response

        seen = []

        def look(context: RequestContext) -> None:
            cookies = context.response.cookies
            seen.append(cookies["early"].value)
            seen.append(cookies.setdefault("early", "2").value)
            seen.append(cookies.pop("early").value)
            seen.append(cookies.popitem()[0])

        answer = await (await serve(application(handler, Interceptor("look", leave=look)))).exchange(GET)
        assert b"Set-Cookie: early=1" in answer
        assert seen == ["1", "1", "1", "early"]
        assert [record["attempted"] for record in errors(logged)] == ["cookies.pop('early')", "cookies.popitem()"]


MORSEL = {
    "[]=": (lambda m: m.__setitem__("path", "/late"), "cookies['early']['path'] = '/late'"),
    "del []": (lambda m: m.__delitem__("path"), "del cookies['early']['path']"),
    "update": (lambda m: m.update({"path": "/late"}), "cookies['early'].update({'path': '/late'})"),
    "|=": (lambda m: operator.ior(m, {"path": "/late"}), "cookies['early'] |= {'path': '/late'}"),
    "set": (lambda m: m.set("early", "2", "2"), "cookies['early'].set('early', '2', '2')"),
    "setdefault": (lambda m: m.setdefault("priority", "1"), "cookies['early'].setdefault('priority', '1')"),
    "pop": (lambda m: m.pop("path"), "cookies['early'].pop('path')"),
    "popitem": (lambda m: m.popitem(), "cookies['early'].popitem()"),
    "clear": (lambda m: m.clear(), "cookies['early'].clear()"),
}


async def with_cookie(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    response.set_cookie("early", "1", path="/x")
    await response.prepare(request)
    return response


WITH_COOKIE = {
    "event stream": lambda request: with_cookie(request, EventStreamResponse()),
    "own StreamResponse": lambda request: with_cookie(request, web.StreamResponse()),
    "prepared Response": lambda request: with_cookie(request, web.Response(text="body")),
    "prepared HTTPException": lambda request: with_cookie(request, web.HTTPConflict()),
}


class TestMutableAttributes:
    @pytest.mark.parametrize("kind", WITH_COOKIE)
    @pytest.mark.parametrize("mutation", MORSEL)
    @pytest.mark.filterwarnings("ignore:returning HTTPException")
    async def test_a_single_cookie_drops_changes(self, serve, logged, kind, mutation):
        change, attempted = MORSEL[mutation]

        async def handler(request: web.Request) -> web.StreamResponse:
            return await WITH_COOKIE[kind](request)

        seen = []

        def offend(context: RequestContext) -> None:
            morsel = context.response.cookies["early"]
            change(morsel)
            seen.append((morsel.value, morsel["path"], morsel.OutputString()))

        answer = await (await serve(application(handler, Interceptor("late", leave=offend)))).exchange(GET)
        assert b"\r\nSet-Cookie: early=1; Path=/x\r\n" in answer
        assert seen == [("1", "/x", "early=1; Path=/x")]
        assert [line["attempted"] for line in errors(logged)] == [attempted]
        assert errors(logged)[0]["interceptor"] == "late"

    @pytest.mark.parametrize("kind", WITH_COOKIE)
    @pytest.mark.filterwarnings("ignore:returning HTTPException")
    async def test_cookies_obtained_before_commit_drop_changes(self, serve, logged, kind):
        kept = []

        async def handler(request: web.Request) -> web.StreamResponse:
            response = {
                "event stream": EventStreamResponse,
                "own StreamResponse": web.StreamResponse,
                "prepared Response": web.Response,
                "prepared HTTPException": web.HTTPConflict,
            }[kind]()
            kept.append(response.cookies)
            return await with_cookie(request, response)

        def offend(context: RequestContext) -> None:
            kept[0]["late"] = "1"
            kept[0]["early"]["path"] = "/late"

        await (await serve(application(handler, Interceptor("late", leave=offend)))).exchange(GET)
        assert [line["attempted"] for line in errors(logged)] == [
            "cookies['late'] = '1'",
            "cookies['early']['path'] = '/late'",
        ]

    async def test_copies_can_be_changed(self, serve, logged):
        def copy(context: RequestContext) -> None:
            headers = context.response.headers.copy()
            headers["X-Mine"] = "1"
            cookie = context.response.cookies["early"].copy()
            cookie["path"] = "/mine"

        async def handler(request: web.Request) -> web.StreamResponse:
            return await WITH_COOKIE["event stream"](request)

        await (await serve(application(handler, Interceptor("copy", leave=copy)))).exchange(GET)
        assert errors(logged) == []

    async def test_a_bytearray_body_cannot_grow(self, serve, logged, caplog):
        async def handler(request: web.Request) -> web.StreamResponse:
            response = web.Response(body=bytearray(b"body"))
            await response.prepare(request)
            return response

        raised = []

        def offend(context: RequestContext) -> None:
            assert context.response.body == b"body"
            try:
                context.response.body.extend(b" and more")
            except AttributeError as error:
                raised.append(error)

        answer = await (await serve(application(handler, Interceptor("late", leave=offend)))).exchange(GET)
        assert answer.endswith(b"\r\n\r\nbody")
        assert len(raised) == 1


class TestOtherChanges:
    async def test_replacing_the_response_is_dropped(self, wire_with, logged):
        def offend(context: RequestContext) -> None:
            context.response = web.Response(text="no")

        plain, tried = await wire_with(KINDS["event stream"], Interceptor("late", leave=offend))
        assert tried == plain
        (record,) = errors(logged)
        assert record["attempted"] == "context.response = <Response OK not prepared>"
        (line,) = traceback.extract_tb(record["exc_info"].__traceback__)
        assert line.line == 'context.response = web.Response(text="no")'

    async def test_removing_the_response_is_dropped(self, wire_with, logged):
        def offend(context: RequestContext) -> None:
            context.response = None

        plain, tried = await wire_with(KINDS["own StreamResponse"], Interceptor("late", leave=offend))
        assert tried == plain
        assert [record["attempted"] for record in errors(logged)] == ["context.response = None"]

    async def test_setting_the_same_response_is_allowed(self, wire_with, logged):
        def keep(context: RequestContext) -> None:
            context.response = context.response

        plain, tried = await wire_with(KINDS["own StreamResponse"], Interceptor("late", leave=keep))
        assert tried == plain
        assert errors(logged) == []

    async def test_a_raised_http_exception_is_dropped_and_the_remaining_leave_stages_run(self, serve, logged):
        left = []

        def offend(context: RequestContext) -> None:
            raise web.HTTPFound("/elsewhere")

        outer = Interceptor("outer", leave=lambda context: left.append(context.error))
        app = web.Application(middlewares=[interceptor_middleware(outer)])
        app.router.add_get("/", as_handler(Interceptor("late", leave=offend), KINDS["event stream"]))
        tried = undated(await (await serve(app)).exchange(GET))
        plain = undated(await (await serve(application(KINDS["event stream"]))).exchange(GET))
        assert tried == plain
        assert left == [None]
        (record,) = errors(logged)
        assert record["attempted"] == "raise <HTTPFound Found not prepared>"
        assert isinstance(record["exc_info"], web.HTTPFound)
        assert traceback.extract_tb(record["exc_info"].__traceback__)[-1].line == 'raise web.HTTPFound("/elsewhere")'

    async def test_staged_headers_are_dropped(self, wire_with, logged):
        def offend(context: RequestContext) -> None:
            context.response_headers["X-Late"] = "1"

        plain, tried = await wire_with(KINDS["event stream"], Interceptor("late", leave=offend))
        assert tried == plain
        assert [record["attempted"] for record in errors(logged)] == ["headers['X-Late'] = '1'"]

    @pytest.mark.parametrize("with_setup", [True, False], ids=["set up", "not set up"])
    @pytest.mark.parametrize("way", ["return another response", "return None", "raise HTTPException"])
    async def test_a_second_response_of_a_handler_is_dropped(self, serve, logged, way, with_setup):
        """aiohttp alone would write the second response into the body of the first."""

        async def twice(request: web.Request):
            await own_stream(request)
            if way == "raise HTTPException":
                raise web.HTTPBadRequest
            return web.Response(text="second") if way == "return another response" else None

        seen = []
        look = Interceptor("look", leave=lambda context: seen.append(context.response.headers.get("X-Own")))
        app = application(twice, look)
        if with_setup:
            setup(app)
        answer = await (await serve(app)).exchange(GET)
        end = b"" if way == "raise HTTPException" else b"0\r\n\r\n"  # an exception leaves the body incomplete
        assert answer.split(b"\r\n\r\n", 1)[1] == b"4\r\nbody\r\n" + end
        assert answer.count(b"HTTP/1.1") == 1
        assert seen == ["1" if with_setup else None]
        (record,) = errors(logged)
        assert (record["event"], record["interceptor"], record["stage"]) == (
            "change_after_commit_dropped",
            "twice",
            "enter",
        )
        assert (
            record["attempted"]
            == {
                "return another response": "return <Response OK not prepared>",
                "return None": "return None",
                "raise HTTPException": "raise <HTTPBadRequest Bad Request not prepared>",
            }[way]
        )

    async def test_a_websocket_response_is_committed_after_its_handshake(self, serve, session, logged):
        async def talk(request: web.Request) -> web.StreamResponse:
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            await socket.send_str("hello")
            await socket.close()
            return socket

        def offend(context: RequestContext) -> None:
            assert isinstance(context.response, web.WebSocketResponse)
            assert type(context.response).__name__ == "WebSocketResponse"
            context.response.set_cookie("late", "1")

        server = await serve(application(talk, Interceptor("late", leave=offend)))
        async with session.ws_connect(server.url) as socket:
            assert await socket.receive_str() == "hello"
            assert (await socket.receive()).type.name == "CLOSE"
        await server.stop()
        assert [record["attempted"] for record in errors(logged)] == ["set_cookie('late', '1')"]

    async def test_a_stage_can_attach_a_response_that_it_sent(self, serve, logged):
        async def stream(context: RequestContext) -> None:
            context.response = await own_stream(context.request)

        app = web.Application()
        app.router.add_get("/", as_handler(Interceptor("stream", stream)))
        answer = await (await serve(app)).exchange(GET)
        assert answer.endswith(b"4\r\nbody\r\n0\r\n\r\n")
        assert errors(logged) == []

    async def test_an_around_interceptor_is_named_with_its_stage(self, serve, logged):
        @around
        async def bracket(context: RequestContext):
            yield
            context.response.set_status(404)

        await (await serve(application(KINDS["event stream"], bracket))).exchange(GET)
        (record,) = errors(logged)
        assert (record["interceptor"], record["stage"]) == ("bracket", "leave")
        assert traceback.extract_tb(record["exc_info"].__traceback__)[0].name == "bracket"

    async def test_without_a_chain_there_is_no_interceptor_to_name(self, serve, logged):
        async def handler(request: web.Request) -> web.StreamResponse:
            response = await sse(request)
            response.headers["X-Late"] = "1"
            return response

        app = web.Application()
        app.router.add_get("/", handler)
        await (await serve(app)).exchange(GET)
        (record,) = errors(logged)
        assert (record["interceptor"], record["stage"], record["execution_id"]) == (None, None, None)
        assert traceback.extract_tb(record["exc_info"].__traceback__)[-1].name == "handler"


class TestBeforeCommit:
    async def test_everything_can_be_changed(self, serve, logged):
        committed = []

        class Early(EventStreamResponse):
            def __init__(self) -> None:
                super().__init__()
                self.set_status(201)
                self.set_cookie("early", "1")
                self.del_cookie("gone")
                self.cookies["other"] = "2"
                self.headers["X-Early"] = "1"
                self.etag = ETag("tag")
                self.last_modified = datetime(2026, 1, 1, tzinfo=UTC)

        async def handler(request: web.Request) -> web.StreamResponse:
            response = Early()
            await response.prepare(request)
            return response

        watch = Interceptor(
            "watch",
            *(lambda context: committed.append(context.committed),) * 2,  # enter and leave
        )
        answer = await (await serve(application(handler, watch))).exchange(GET)
        for expected in (
            b"201 Created",
            b"early=1",
            b"other=2",
            b"gone=",
            b"X-Early: 1",
            b'Etag: "tag"',
            b"01 Jan 2026",
        ):
            assert expected in answer
        assert committed == [False, True]
        assert errors(logged) == []

    async def test_a_response_whose_headers_cannot_be_sent_is_not_committed(self, serve, caplog):
        async def handler(request: web.Request) -> web.StreamResponse:
            response = EventStreamResponse(headers={"X-Bad": "a\nb"})
            try:
                await response.prepare(request)
            except ValueError:
                assert not RequestContext.of(request).committed
                raise
            return response

        answer = await (await serve(application(handler, Interceptor("a", leave=lambda context: None)))).exchange(GET)
        assert answer.startswith(b"HTTP/1.1 500")


def test_changes_are_dropped_with_assertions_disabled():
    """aiohttp guards ``set_status`` with an ``assert``, which ``python -O`` drops."""
    program = """
import asyncio, sys
from aiohttp import web, ClientSession
from aiohttp_interceptors import *
from aiohttp_interceptors.testing import captured_logs

async def ready(channel, context):
    await channel.put("one")
    channel.close()

def offend(context):
    context.response.set_status(500)
    raise web.HTTPFound("/")

async def main():
    app = web.Application(middlewares=[interceptor_middleware(Interceptor("late", leave=offend))])
    app.router.add_get("/", as_handler(start_event_stream(ready)))
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    with captured_logs() as logged:
        async with ClientSession() as session, session.get(f"http://127.0.0.1:{runner.addresses[0][1]}") as response:
            print(response.status, await response.text())
        await runner.cleanup()
    print(*(line["attempted"] for line in logged if line["log_level"] == "error"), sep="; ")

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-O", "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    assert done.stdout == "200 data: one\n\n\nset_status(500); raise <HTTPFound Found not prepared>\n"
