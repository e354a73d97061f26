"""The request context: staged headers, the last event ID, copies and snapshots."""

from __future__ import annotations

import pytest
from aiohttp import web
from multidict import CIMultiDict

from aiohttp_interceptors import Interceptor, RequestContext, after, before, interceptor_middleware, setup
from aiohttp_interceptors.testing import request_context, run_chain

GET = "GET / HTTP/1.1\nHost: x\nConnection: close\n\n"


@before
def stage(context: RequestContext) -> None:
    context.response_headers["X-Staged"] = "staged"
    context.response_headers["Server"] = "ours"
    context.response_headers.add("Vary", "Origin")
    context.response_headers.add("Set-Cookie", "staged=1")


def application(handler, *interceptors: Interceptor) -> web.Application:
    app = web.Application(middlewares=[interceptor_middleware(*interceptors)])
    app.router.add_get("/", handler)
    return app


async def plain(request: web.Request) -> web.StreamResponse:
    response = web.Response(text="x", headers={"X-Staged": "own", "Vary": "Accept"})
    response.set_cookie("own", "1")
    return response


async def raised(request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("/", headers={"X-Staged": "own", "Vary": "Accept", "Set-Cookie": "own=1"})


async def prepared(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"X-Staged": "own", "Vary": "Accept"})
    response.headers["Set-Cookie"] = "own=1"
    await response.prepare(request)
    return response


@pytest.mark.parametrize("handler", [plain, raised, prepared])
async def test_staged_headers_are_merged_into_every_kind_of_response(serve, handler):
    """A staged header replaces one of its name; cookies and Vary are added."""
    app = application(handler, stage)
    setup(app)
    head = (await (await serve(app)).exchange(GET)).split(b"\r\n\r\n")[0].decode().split("\r\n")
    headers = CIMultiDict(line.split(": ", 1) for line in head[1:])
    assert headers.getall("X-Staged") == ["staged"]
    assert headers.getall("Vary") == ["Accept", "Origin"]
    assert headers.getall("Server") == ["ours"]
    assert {cookie.split(";")[0] for cookie in headers.getall("Set-Cookie")} == {"staged=1", "own=1"}


async def test_headers_staged_in_leave_are_merged(serve):
    @after
    def late(context: RequestContext) -> None:
        context.response_headers["X-Late"] = "1"

    assert b"X-Late: 1" in await (await serve(application(plain, late))).exchange(GET)


async def test_reading_staged_headers_stages_nothing(serve):
    look = Interceptor("look", leave=lambda context: context.response_headers.get("x"))
    answer = await (await serve(application(plain, look))).exchange(GET)
    assert b"X-Staged: own" in answer


class TestLastEventId:
    @pytest.mark.parametrize(
        ("path", "headers", "expected"),
        [
            ("/", {}, None),
            ("/", {"Last-Event-ID": "7"}, "7"),
            ("/", {"Last-Event-ID": ""}, None),
            ("/?last_event_id=5", {}, "5"),
            ("/?last_event_id=5", {"Last-Event-ID": "7"}, "7"),
            ("/?last_event_id=", {}, None),
            ("/?lastEventId=6", {}, "6"),
            ("/?lastEventID=6", {}, "6"),
            ("/?LASTEVENTID=6", {}, "6"),
            ("/?last_event_id=5&lastEventId=6", {}, "6"),
            ("/?lastEventId=6&last_event_id=5", {}, "6"),
            ("/?lastEventId=6", {"Last-Event-ID": "7"}, "7"),
            ("/?lastEventId=6", {"Last-Event-ID": ""}, "6"),
            ("/?lastEventId=&last_event_id=5", {}, "5"),
            ("/?lastEventId=", {}, None),
            ("/?lastEventId", {}, None),
            ("/?lastEventId=4&lastEventId=6", {}, "6"),
            ("/?lastEventId=6&lastEventId=", {}, "6"),
            ("/?last_event_id=4&x=1&last_event_id=5", {}, "5"),
            ("/?x=1&lastEventId=a%2Bb%20%C3%A9", {}, "a+b é"),
            ("/", {"Last-Event-ID": "späť"}, "späť"),
        ],
    )
    def test_is_the_header_or_the_query_parameter_of_a_polyfill_or_of_the_page(self, path, headers, expected):
        """An empty value is skipped. A browser reconnects to the same URL, to which a polyfill appends."""
        assert request_context("GET", path, headers=headers).last_event_id == expected

    async def test_is_none_if_it_is_not_utf_8(self, serve):
        """aiohttp decodes other bytes to surrogates, which could not be sent back."""
        seen = []
        look = Interceptor("look", enter=lambda context: seen.append(context.last_event_id))
        server = await serve(application(plain, look))
        raw = await server.connect("")
        raw.writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nLast-Event-ID: \xe9\r\n\r\n")
        await raw.reader.read()
        await raw.close()
        assert seen == [None]


class TestWithoutAServer:
    async def test_a_chain_runs_on_a_mocked_context(self):
        @before
        def answer(context: RequestContext) -> None:
            context.response = web.Response(text=context.request.match_info["name"])

        context = await run_chain(request_context(match_info={"name": "ada"}), answer)
        assert context.response.text == "ada"
        assert not context.committed

    async def test_a_snapshot_has_the_response_and_the_staged_headers(self):
        context = request_context()
        context["key"] = "value"
        context.response_headers["X-Staged"] = "1"
        context.response = response = web.Response()
        assert context.snapshot() == {"key": "value", "response": response, "response_headers": {"X-Staged": "1"}}

    def test_a_copy_shares_the_request_but_not_the_staged_headers(self):
        context = request_context()
        context.response_headers["X-Staged"] = "1"
        twin = context.copy()
        twin.response_headers["X-Staged"] = "2"
        assert twin.request is context.request
        assert context.response_headers["X-Staged"] == "1"
        assert request_context().copy().response is None

    @pytest.mark.parametrize("wrong", ["text", 42, web.Response])
    def test_a_response_of_another_type_is_a_type_error(self, wrong):
        with pytest.raises(TypeError, match=r"context.response is a web.StreamResponse or None, not"):
            request_context().response = wrong

    def test_a_response_can_be_removed_before_commit(self):
        context = request_context()
        context.response = web.Response()
        context.response = None
        assert context.response is None
