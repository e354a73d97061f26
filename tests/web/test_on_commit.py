"""``context.on_commit``: called once with each response that is about to be sent, of any kind."""

from __future__ import annotations

import pytest
from aiohttp import web

from aiohttp_interceptors import Interceptor, RequestContext, before, interceptor_middleware, on_error
from aiohttp_interceptors.testing import request_context, run_chain
from tests.ready.site import KINDS, application, plain

STATUS = {"redirect": 302, "refused": 403}


@pytest.fixture
def seen() -> list:
    return []


@pytest.fixture
def watching(seen):
    @before
    def watch(context: RequestContext) -> None:
        def committed(response: web.StreamResponse) -> None:
            seen.append((response.status, context.committed, response.headers.get("X-Staged")))
            response.headers["X-Late"] = "late"

        context.on_commit(committed)
        context.response_headers["X-Staged"] = "staged"

    return watch


@pytest.mark.parametrize("place", ["middleware", "route"])
@pytest.mark.parametrize("kind", KINDS)
async def test_it_is_called_once_and_can_change_the_headers(serve, session, seen, watching, kind, place):
    server = await serve(application(place, [watching], KINDS[kind]()))
    async with session.get(server.url, allow_redirects=False) as response:
        await response.read()
        assert response.headers["X-Late"] == "late"
    assert seen == [(STATUS.get(kind, 200), False, "staged")]


@pytest.mark.parametrize("place", ["middleware", "route"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_cookie_that_it_sets_is_sent_once_beside_the_others(serve, session, kind, place):
    """aiohttp writes the cookies of a response into its headers before ``on_response_prepare``."""

    @before
    def stage(context: RequestContext) -> None:
        def committed(response: web.StreamResponse) -> None:
            response.set_cookie("late", "1")

        context.on_commit(lambda response: response.set_cookie("first", "1"))
        context.on_commit(committed)
        context.response_headers.add("Set-Cookie", "staged=1")

    server = await serve(application(place, [stage], KINDS[kind]()))
    async with session.get(server.url, allow_redirects=False) as response:
        await response.read()
        cookies = response.headers.getall("Set-Cookie")
    assert sorted(cookies) == ["first=1; Path=/", "late=1; Path=/", "staged=1"]


@pytest.mark.parametrize("kind", ["stream", "topic"])
async def test_a_cookie_that_a_signal_sets_is_sent_with_a_stream(serve, session, kind):
    """As packages do that save a session in ``on_response_prepare``."""

    async def save(request: web.Request, response: web.StreamResponse) -> None:
        response.set_cookie("session", "1")

    @before
    def stage(context: RequestContext) -> None:
        context.on_commit(lambda response: response.set_cookie("early", "1"))
        context.on_commit(lambda response: response.set_cookie("session", "0"))

    app = application("middleware", [stage], KINDS[kind]())
    app.on_response_prepare.append(save)
    server = await serve(app)
    for method in ("GET", "HEAD"):
        async with session.request(method, server.url) as response:
            assert response.headers.getall("Set-Cookie") == ["early=1; Path=/", "session=1; Path=/"]


@pytest.mark.parametrize("kind", ["stream", "topic", "prepared"])
async def test_a_cookie_that_a_signal_takes_out_of_the_headers_is_not_sent(serve, session, kind):
    async def strip(request: web.Request, response: web.StreamResponse) -> None:
        response.headers.popall("Set-Cookie")

    @before
    def stage(context: RequestContext) -> None:
        context.on_commit(lambda response: response.set_cookie("session", "0"))

    app = application("middleware", [stage], KINDS[kind]())
    app.on_response_prepare.append(strip)
    server = await serve(app)
    async with session.get(server.url) as response:
        assert "Set-Cookie" not in response.headers


@pytest.mark.parametrize("kind", ["stream", "topic", "prepared"])
async def test_a_response_that_could_not_be_sent_is_followed_by_a_call_with_the_next_one(serve, session, kind):
    statuses = []

    @before
    def refuse(context: RequestContext) -> None:
        def committed(response: web.StreamResponse) -> None:
            statuses.append(response.status)
            if response.status == 200:
                raise LookupError

        context.response_headers["X-Staged"] = "staged"
        context.on_commit(committed)

    @on_error(LookupError)
    def answer(context: RequestContext, error: LookupError) -> None:
        context.response = web.Response(status=418)

    server = await serve(application("middleware", [answer, refuse], KINDS[kind]()))
    async with session.get(server.url) as response:
        assert (response.status, response.headers["X-Staged"]) == (418, "staged")
    assert statuses == [200, 418]


async def test_after_commit_it_is_dropped_and_logged(serve, session, logged, seen):
    @before
    def send(context: RequestContext) -> None:
        context["on_commit"] = context.on_commit

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        RequestContext.of(request).on_commit(seen.append)
        return response

    server = await serve(application("route", [send], handler))
    async with session.get(server.url) as response:
        assert response.status == 200
    assert seen == []
    assert "change_after_commit_dropped" in [line["event"] for line in logged]


async def test_without_setup_a_response_that_a_handler_prepares_is_sent_without_it_and_that_is_logged(
    serve, session, logged, seen
):
    @before
    def watch(context: RequestContext) -> None:
        context.on_commit(seen.append)

    app = web.Application(middlewares=[interceptor_middleware(watch)])
    app.router.add_get("/", KINDS["prepared"]())
    async with session.get((await serve(app)).url) as response:
        assert response.status == 200
    assert seen == []
    assert "staged_headers_lost" in [line["event"] for line in logged]


async def test_a_copy_of_the_context_has_its_own_functions(serve, session, seen):
    @before
    def copy(context: RequestContext) -> None:
        context.on_commit(lambda response: seen.append("kept"))
        context.copy().on_commit(lambda response: seen.append("lost"))

    @before
    def replace(context: RequestContext) -> RequestContext:
        changed = context.copy()
        changed.on_commit(lambda response: seen.append("of the copy"))
        return changed

    async with session.get((await serve(application("route", [copy, replace], plain))).url):
        pass
    assert seen == ["kept", "of the copy"]


@pytest.mark.parametrize("function", [None, "x"])
def test_it_takes_a_plain_function(function):
    with pytest.raises(TypeError, match="on_commit takes a plain function of the response, not"):
        request_context().on_commit(function)


async def test_an_async_function_is_refused():
    async def later(response) -> None:
        """Is never called."""

    with pytest.raises(TypeError, match="plain function"):
        await run_chain(request_context(), Interceptor("stage", lambda context: context.on_commit(later)))
