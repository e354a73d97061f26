"""The headers of streams of one kind, of which all but the first are sent those that aiohttp made before."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import pytest
from aiohttp import web

from aiohttp_interceptors import Hub, Interceptor, RequestContext, as_handler, setup, start_event_stream
from aiohttp_interceptors import start_topic_stream as topic_stream
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import TIMEOUT, until

pytestmark = BOTH_LOOPS

unused = itertools.count(54_321)  # heartbeats
"""Heartbeats that no other test has: what responses share is kept for each of them."""
GET = "GET / HTTP/1.1\nHost: x\n\n"
GZIP = "GET / HTTP/1.1\nHost: x\nAccept-Encoding: gzip\n\n"


@pytest.fixture
def hub():
    return Hub()


KINDS = {
    "topics": lambda hub, heartbeat, **options: topic_stream(hub, "t", heartbeat=heartbeat, prime=True, **options),
    "snapshot": lambda hub, heartbeat, **options: topic_stream(
        hub, "t", heartbeat=heartbeat, snapshot=lambda context: ["state"], **options
    ),
    "channel": lambda hub, heartbeat, **options: start_event_stream(
        lambda channel, context: channel.put_nowait("first"), heartbeat=heartbeat, **options
    ),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def application(hub, *interceptors, prepared=None):
    app = web.Application()
    setup(app, hub)
    if prepared is not None:
        app.on_response_prepare.append(prepared)
    app.router.add_route("*", "/", as_handler(*interceptors))
    return app


async def head_of(server, request=GET):
    """Return the status line and the headers of a response, without its date."""
    raw = await server.connect(request)
    head = await raw.until(b"\r\n\r\n")
    await raw.close()
    return [line for line in head.decode().split("\r\n") if not line.startswith("Date: ")]


async def date_of(server):
    raw = await server.connect(GET)
    head = (await raw.until(b"\r\n\r\n")).decode()
    await raw.close()
    return [line[6:] for line in head.split("\r\n") if line.startswith("Date: ")]


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("request_text", [GET, GZIP], ids=["identity", "gzip"])
async def test_each_stream_of_a_kind_has_the_headers_of_the_first(serve, hub, kind, compress, request_text):
    """The first is the one for which a handler of on_response_prepare makes aiohttp make the headers."""

    async def does_nothing(request, response):
        pass

    interceptor = kind(hub, 61, compress=compress)
    made_by_aiohttp = await serve(application(hub, interceptor, prepared=does_nothing))
    server = await serve(application(hub, interceptor))
    expected = await head_of(made_by_aiohttp, request_text)
    assert ("Content-Encoding: gzip" in expected) == (compress and request_text == GZIP)
    for _ in range(3):
        assert sorted(await head_of(server, request_text)) == sorted(expected)


async def test_each_kind_of_stream_has_its_own_headers(serve, hub, kind):
    heartbeats = [None, 62, 63.5]
    servers = [await serve(application(hub, kind(hub, heartbeat))) for heartbeat in heartbeats]
    for _ in range(2):
        told = [[line for line in await head_of(server) if "Heartbeat" in line] for server in servers]
        assert told == [[], ["Event-Stream-Heartbeat: 62"], ["Event-Stream-Heartbeat: 63.5"]]


async def test_the_date_is_that_of_each_stream(serve, hub, kind):
    server = await serve(application(hub, kind(hub, 64)))
    first = await date_of(server)
    assert len(first) == 1

    async with asyncio.timeout(TIMEOUT):
        while await date_of(server) == first:
            pass
    (second,) = await date_of(server)
    assert abs(datetime.now(UTC) - parsedate_to_datetime(second)) < timedelta(minutes=1)


async def test_a_header_is_sent_to_the_stream_for_which_it_was_staged(serve, hub, kind):
    def stage(context: RequestContext) -> None:
        if context.request.query_string:
            context.response_headers["X-Staged"] = "yes"

    server = await serve(application(hub, Interceptor("stage", stage), kind(hub, 65)))
    for query, expected in [("", []), ("", []), ("?1", ["X-Staged: yes"]), ("", []), ("?1", ["X-Staged: yes"])]:
        lines = await head_of(server, f"GET /{query} HTTP/1.1\nHost: x\n\n")
        assert [line for line in lines if line.startswith("X-Staged")] == expected


async def test_a_function_of_on_commit_is_called_for_each_stream_that_has_one(serve, hub, kind):
    def name(response: web.StreamResponse) -> None:
        response.headers["X-Committed"] = "yes"

    def ask(context: RequestContext) -> None:
        if context.request.query_string:
            context.on_commit(name)

    server = await serve(application(hub, Interceptor("ask", ask), kind(hub, 66)))
    for query in ("", "", "?1", "", "?1"):
        lines = await head_of(server, f"GET /{query} HTTP/1.1\nHost: x\n\n")
        assert ("X-Committed: yes" in lines) == bool(query)


async def test_a_handler_of_on_response_prepare_is_called_for_each_stream(serve, hub, kind):
    async def number(request: web.Request, response: web.StreamResponse) -> None:
        numbers.append(len(numbers))
        response.headers["X-Number"] = str(numbers[-1])

    numbers: list[int] = []
    interceptor = kind(hub, 67)
    plain = await serve(application(hub, interceptor))
    numbered = await serve(application(hub, interceptor, prepared=number))
    for expected in range(3):
        assert not [line for line in await head_of(plain) if line.startswith("X-Number")]
        assert f"X-Number: {expected}" in await head_of(numbered)


async def test_a_request_that_frames_its_response_differently_is_answered_so_after_others(serve, hub, kind):
    server = await serve(application(hub, kind(hub, 68)))
    for _ in range(2):
        assert "Transfer-Encoding: chunked" in await head_of(server)
        closing = await head_of(server, "GET / HTTP/1.1\nHost: x\nConnection: close\n\n")
        assert {"Connection: close", "Transfer-Encoding: chunked"} <= {*closing}
        old = await head_of(server, "GET / HTTP/1.0\nHost: x\nConnection: keep-alive\n\n")
        assert "HTTP/1.0 200 OK" in old
        assert not [line for line in old if line.startswith("Transfer-Encoding")]
        head = await head_of(server, "HEAD / HTTP/1.1\nHost: x\n\n")
        assert "Content-Type: text/event-stream" in head
        assert not [line for line in head if line.startswith("Transfer-Encoding")]


async def test_no_stream_can_change_the_headers_of_the_others(serve, hub, kind, logged):
    def change(context: RequestContext) -> None:
        assert context.response is not None
        context.response.headers["X-Late"] = "yes"
        context.response.headers.popall("Content-Type")
        context.response.set_cookie("late", "yes")
        context.response = web.Response()

    server = await serve(application(hub, Interceptor("change", leave=change), kind(hub, 69)))
    expected = await head_of(server)
    for number in range(2, 5):
        assert await head_of(server) == expected

        def all_are_dropped(number=number):
            return [line["event"] for line in logged].count("change_after_commit_dropped") == 4 * number

        await until(all_are_dropped)


@pytest.mark.parametrize("make_note", [list, itertools.count(1).__next__], ids=["object", "number"])
async def test_responses_share_nothing_that_another_aiohttp_gives_them(serve, hub, kind, make_note, monkeypatch):
    responses: list[web.StreamResponse] = []
    make = web.StreamResponse.__init__

    def make_another(self, **options):
        make(self, **options)
        self._note = make_note()

    monkeypatch.setattr(web.StreamResponse, "__init__", make_another)
    keep = Interceptor("keep", leave=lambda context: responses.append(context.response))
    server = await serve(application(hub, keep, kind(hub, next(unused))))
    for _ in range(2):
        await head_of(server)
    await until(lambda: len(responses) == 2)
    first, second = responses
    assert first._note is not second._note
    assert first._state is not second._state


async def test_an_instrumentation_of_prepare_sees_each_stream(serve, hub, kind, monkeypatch):
    prepared: list[web.StreamResponse] = []
    prepare = web.StreamResponse.prepare

    async def wrapped(self, request):
        prepared.append(self)
        return await prepare(self, request)

    monkeypatch.setattr(web.StreamResponse, "prepare", wrapped)
    server = await serve(application(hub, kind(hub, 70)))
    for expected in 1, 2, 3:
        await head_of(server)
        assert len(prepared) == expected


CHANGES = {
    "header": (lambda response, request: response.headers.add("X-Who", request.query_string), "X-Who: "),
    "cookie": (lambda response, request: response.set_cookie("who", request.query_string), "Set-Cookie: who="),
    "staged": (
        lambda response, request: RequestContext.of(request).response_headers.add("X-Who", request.query_string),
        "X-Who: ",
    ),
    "replaced": (
        lambda response, request: setattr(
            response, "_headers", type(response.headers)({"X-Who": request.query_string, **response.headers})
        ),
        "X-Who: ",
    ),
    "reason": (lambda response, request: response.set_status(200, request.query_string), "HTTP/1.1 200 "),
    "closing": (lambda response, request: response.force_close(), "Connection: close"),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_what_an_instrumentation_changes_in_prepare_is_sent_to_that_stream_only(
    serve, hub, kind, change, monkeypatch
):
    change_response, start = CHANGES[change]
    prepare = web.StreamResponse.prepare

    async def wrapped(self, request):
        if request.query_string:
            change_response(self, request)
        return await prepare(self, request)

    monkeypatch.setattr(web.StreamResponse, "prepare", wrapped)
    server = await serve(application(hub, kind(hub, 72)))

    async def changed(query):
        lines = await head_of(server, f"GET /{query} HTTP/1.1\nHost: x\n\n")
        return {line.removesuffix("; Path=/") for line in lines if line.startswith(start)}

    usual = {"HTTP/1.1 200 OK"} if change == "reason" else set()
    for name in ("ann", "", "bob", "", "ann"):
        text = start if change == "closing" else start + name
        assert await changed(f"?{name}" if name else "") == ({text} if name else usual)


async def test_a_header_that_an_instrumentation_adds_too_late_is_sent_to_no_stream(serve, hub, kind, monkeypatch):
    prepare = web.StreamResponse.prepare

    async def wrapped(self, request):
        writer = await prepare(self, request)
        self.headers["X-Late"] = "yes"
        return writer

    monkeypatch.setattr(web.StreamResponse, "prepare", wrapped)
    server = await serve(application(hub, kind(hub, 73)))
    expected = await head_of(server)
    assert not [line for line in expected if line.startswith("X-Late")]
    for _ in range(2):
        assert await head_of(server) == expected
        assert len(await date_of(server)) == 1
