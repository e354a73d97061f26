"""``request_log``: one line for a request, and two for a stream."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from aiohttp import ClientPayloadError, web
from aiohttp_sse import sse_response

from aiohttp_interceptors import (
    EventStreamResponse,
    event_stream,
    interceptor_middleware,
    on_error,
    uncaught_exception,
)
from aiohttp_interceptors.ready import request_log
from aiohttp_interceptors.testing import open_stream
from tests.ready.site import STREAMS, application, plain, stream, topics
from tests.waiting import until, within


def ticking():
    """Return a clock that counts how often it was asked."""
    return itertools.count().__next__


def lines_of(logged) -> list[dict]:
    """Return the lines without what all of them have."""
    events = ("request", "stream_request_opened", "stream_request_closed")
    hidden = ("execution_id",)
    return [{k: v for k, v in line.items() if k not in hidden} for line in logged if line["event"] in events]


async def wait_for_lines(logged, count: int) -> list[dict]:
    """Wait until there are so many lines: a response that is sent early reaches its client before its line."""
    await until(lambda: len(lines_of(logged)) >= count)
    return lines_of(logged)


async def test_a_request_has_one_line_with_the_template_of_its_route(site, fetch, logged):
    server = await site(request_log(clock=ticking()), path="/users/{id}")
    assert (await fetch(server, path="/users/7?a=b"))[0] == 200
    (line,) = [line for line in logged if line["event"] == "request"]
    assert line["execution_id"]
    assert lines_of(logged) == [
        {
            "event": "request",
            "log_level": "info",
            "method": "GET",
            "route": "/users/{id}",
            "status": 200,
            "seconds": 1,
            "bytes": 5,
        }
    ]


async def test_the_path_is_logged_only_if_told(site, fetch, logged):
    await fetch(await site(request_log(paths=True), path="/users/{id}"), path="/users/7?a=b")
    assert [line["path"] for line in lines_of(logged)] == ["/users/7"]


async def test_a_request_without_a_route_is_logged_by_a_middleware(serve, fetch, logged):
    server = await serve(application("middleware", [request_log()]))
    assert (await fetch(server, path="/none"))[0] == 404
    assert [(line["route"], line["status"]) for line in lines_of(logged)] == [(None, 404)]


async def test_a_route_of_a_sub_application_has_its_prefix(serve, fetch, logged):
    inner = web.Application()
    inner.router.add_get("/{id}", plain)
    app = web.Application(middlewares=[interceptor_middleware(request_log())])
    app.add_subapp("/api", inner)
    await fetch(await serve(app), path="/api/7")
    assert [line["route"] for line in lines_of(logged)] == ["/api/{id}"]


@pytest.mark.parametrize("kind", STREAMS)
async def test_a_stream_has_a_line_when_it_opens_and_one_when_it_has_closed(site, fetch, logged, kind):
    server = await site(request_log(clock=ticking()), handler={"stream": stream, "topic": topics()}[kind])
    await fetch(server)
    opened, closed = await wait_for_lines(logged, 2)
    common = {"method": "GET", "route": "/", "status": 200, "log_level": "info", "seconds": 1}
    assert opened == {"event": "stream_request_opened", **common}
    events, size = (1, len("data: one\n\n")) if kind == "stream" else (0, 0)
    assert closed == {"event": "stream_request_closed", **common, "reason": "closed", "events": events, "bytes": size}


async def test_a_stream_that_is_open_has_its_first_line(site, session, logged):
    @event_stream
    async def handler(request: web.Request):
        yield "one"
        await asyncio.Event().wait()

    server = await site(request_log(), handler=handler)
    async with open_stream(session, server.url) as opened:
        await opened.next()
        assert [line["event"] for line in lines_of(logged)] == ["stream_request_opened"]
    _, closed = await wait_for_lines(logged, 2)
    assert closed["reason"] == "client_left"
    assert closed["events"] == 1


async def test_a_stream_of_aiohttp_sse_has_both_lines_without_a_reason(site, fetch, logged):
    async def handler(request: web.Request) -> web.StreamResponse:
        async with sse_response(request, response_cls=EventStreamResponse) as response:
            await response.send("one")
        return response

    await fetch(await site(request_log(), handler=handler))
    opened, closed = await wait_for_lines(logged, 2)
    assert (opened["event"], closed["event"]) == ("stream_request_opened", "stream_request_closed")
    assert "reason" not in closed


async def test_the_bytes_of_a_compressed_response_are_unknown(site, fetch, logged):
    async def handler(request: web.Request) -> web.Response:
        response = web.Response(text="a" * 5000)
        response.enable_compression()
        return response

    await fetch(await site(request_log(), handler=handler))
    assert "bytes" not in (await wait_for_lines(logged, 1))[0]


async def test_head_of_a_stream_is_a_plain_request(site, fetch, logged):
    await fetch(await site(request_log(), handler=stream), "HEAD")
    assert [(line["event"], line["bytes"]) for line in await wait_for_lines(logged, 1)] == [("request", 0)]


async def test_an_exception_is_a_warning_with_its_class_and_no_text(site, fetch, logged):
    async def handler(request: web.Request) -> web.Response:
        raise KeyError("secret")

    assert (await fetch(await site(request_log(), handler=handler)))[0] == 500
    (line,) = lines_of(logged)
    assert (line["log_level"], line["status"], line["error"]) == ("warning", 500, "KeyError")
    assert "secret" not in str(line)


async def test_an_exception_that_was_handled_further_in_is_its_response(site, fetch, logged):
    async def handler(request: web.Request) -> web.Response:
        raise KeyError("secret")

    @on_error(KeyError)
    def missing(context, error) -> None:
        context.response = web.Response(status=404)

    assert (await fetch(await site(request_log(), missing, handler=handler)))[0] == 404
    assert [(line["status"], line["log_level"]) for line in lines_of(logged)] == [(404, "info")]
    logged.clear()
    await fetch(await site(request_log(), uncaught_exception(), handler=handler))
    assert [(line["status"], line["log_level"]) for line in lines_of(logged)] == [(500, "warning")]


async def test_an_exception_in_an_open_stream_is_in_its_last_line(site, session, logged):
    async def ready(channel, context) -> None:
        raise KeyError("secret")

    @event_stream(heartbeat=None)
    async def handler(channel, context):
        await ready(channel, context)

    server = await site(request_log(), handler=handler)
    async with session.get(server.url) as response:
        with pytest.raises(ClientPayloadError):
            await response.read()
    opened, closed = await wait_for_lines(logged, 2)
    assert (opened["event"], opened.get("error")) == ("stream_request_opened", None)
    assert (closed["event"], closed["error"], closed["status"]) == ("stream_request_closed", "KeyError", 200)


async def test_a_raised_response_has_its_status_and_its_bytes(site, fetch, logged):
    async def handler(request: web.Request) -> web.Response:
        raise web.HTTPFound("/", text="moved")

    await fetch(await site(request_log(), handler=handler))
    assert [(line["status"], line["bytes"]) for line in lines_of(logged)] == [(302, 5)]


async def test_a_cancelled_request_is_a_warning_without_a_status(serve, place, logged):
    started = asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        started.set()
        await asyncio.Event().wait()

    server = await serve(application(place, [request_log()], handler), handler_cancellation=True)
    raw = await server.connect("GET / HTTP/1.1\nHost: x\n\n")
    await within(started.wait())
    await raw.close()
    (line,) = await wait_for_lines(logged, 1)
    assert (line["log_level"], line["status"], line["cancelled"]) == ("warning", None, True)


async def test_requests_can_be_ignored(site, fetch, logged):
    server = await site(request_log(ignore=lambda context: context.request.path == "/health"), path="/{any}")
    await fetch(server, path="/health")
    await fetch(server, path="/other")
    assert len(lines_of(logged)) == 1


@pytest.mark.parametrize("headers", [{}, {"Content-Length": "5"}])
async def test_the_bytes_of_a_response_that_a_handler_sends_itself_are_those_announced(site, fetch, logged, headers):
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        await response.write(b"12345")
        await response.write_eof()
        return response

    await fetch(await site(request_log(), handler=handler))
    (line,) = await wait_for_lines(logged, 1)
    assert line.get("bytes") == (5 if headers else None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"paths": 1}, "paths is True or False, not 1"),
        ({"ignore": "x"}, "ignore is a function, not 'x'"),
        ({"clock": None}, "clock is a function, not None"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(TypeError, match=message):
        request_log(**options)
