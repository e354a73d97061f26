"""A middleware between two parts of a chain that calls its handler again: the second attempt runs completely."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

import pytest
from aiohttp import web

from aiohttp_interceptors import (
    RequestContext,
    after,
    before,
    execute,
    intercept,
    interceptor_middleware,
    on_error,
)

GET = "GET / HTTP/1.1\nHost: x\nConnection: close\n\n"
VARIABLE: ContextVar[int] = ContextVar("variable")


@web.middleware
async def retry(request, handler):
    answer = await handler(request)
    return await handler(request) if answer.status == 503 else answer


@pytest.fixture
def trail() -> list[str]:
    return []


def noted(trail: list[str], effect: str):
    """Make an interceptor with an effect that the chain handles after its stage."""

    @before
    def note(context: RequestContext) -> RequestContext | None:
        trail.append("note")
        match effect:
            case "observed":
                context.add_observer(lambda fact: None)
            case "binds":
                context.bind(VARIABLE, 1)
            case "copies":
                return context.copy()
        return None

    return note


@pytest.mark.parametrize("effect", ["nothing", "observed", "binds", "copies"])
async def test_a_second_attempt_enters_all_interceptors_again(serve, trail, effect) -> None:
    @intercept(noted(trail, effect))
    async def handler(request):
        trail.append("handler")
        return web.Response(status=503 if trail.count("handler") == 1 else 200)

    app = web.Application(middlewares=[interceptor_middleware(), retry])
    app.router.add_get("/", handler)
    server = await serve(app)
    assert (await server.exchange(GET)).split()[1] == b"200"
    assert trail == ["note", "handler"] * 2


@pytest.mark.parametrize("end", ["terminates", "handles"])
async def test_a_second_attempt_without_a_response_does_not_return_that_of_the_first(serve, end) -> None:
    attempts = []

    @before
    def auth(context: RequestContext) -> None:
        attempts.append(1)
        if len(attempts) == 2:
            if end == "terminates":
                context.terminate()
            else:
                raise PermissionError

    @on_error(PermissionError)
    def handled(context: RequestContext, error: PermissionError) -> None:
        pass

    @intercept(handled, auth)
    async def handler(request):
        return web.Response(status=503, text="of the first attempt")

    app = web.Application(middlewares=[interceptor_middleware(), retry])
    app.router.add_get("/", handler)
    server = await serve(app)
    answer = await server.exchange(GET)
    assert answer.split()[1] == b"500"
    assert b"of the first attempt" not in answer


@pytest.mark.parametrize("whose", ["the context", "a copy"])
@pytest.mark.parametrize("effect", ["nothing", "observed", "binds", "copies"])
async def test_an_execution_on_a_context_with_a_response_enters_all_of_its_interceptors(
    serve, trail, effect, whose
) -> None:
    @before
    def last(context: RequestContext) -> None:
        trail.append("last")

    @after
    async def audit(context: RequestContext) -> None:
        await execute(context if whose == "the context" else context.copy(), noted(trail, effect), last)

    async def handler(request):
        return web.Response(text="x")

    app = web.Application(middlewares=[interceptor_middleware(audit)])
    app.router.add_get("/", handler)
    server = await serve(app)
    assert (await server.exchange(GET)).split()[1] == b"200"
    assert trail == ["note", "last"]


DENIED = {"again": "the response that it has", "other": "another response", "raised": "an exception"}


@pytest.mark.parametrize("copies", [0, 1, 2])
@pytest.mark.parametrize("how", DENIED)
async def test_an_execution_on_a_context_with_a_response_stops_where_one_is_attached(serve, trail, how, copies) -> None:
    @before
    def auth(context: RequestContext) -> RequestContext:
        for _ in range(copies):
            context = context.copy()
        if how == "raised":
            raise web.HTTPUnauthorized
        context.response = context.response if how == "again" else web.Response(status=401)
        return context

    @before
    def secret(context: RequestContext) -> None:
        trail.append("secret")

    @after
    async def leave(context: RequestContext) -> None:
        await execute(context, auth, secret)

    async def handler(request):
        return web.Response(text="x")

    app = web.Application(middlewares=[interceptor_middleware(leave)])
    app.router.add_get("/", handler)
    server = await serve(app)
    assert (await server.exchange(GET)).split()[1] == (b"200" if how == "again" else b"401")
    assert trail == []


@pytest.mark.parametrize("way", ["the context", "RequestContext.of"])
@pytest.mark.parametrize("returned", ["a copy", "a new context"])
async def test_a_response_set_on_the_given_context_counts_when_the_stage_returns_another_one(
    serve, trail, way, returned
) -> None:
    @before
    def auth(context: RequestContext) -> RequestContext:
        other = context.copy() if returned == "a copy" else RequestContext(context.request)
        given = context if way == "the context" else RequestContext.of(context.request)
        assert given is not None
        given.response = web.Response(status=401)
        return other

    async def secret(request):
        trail.append("secret")
        return web.Response(text="secret")

    app = web.Application(middlewares=[interceptor_middleware(auth)])
    app.router.add_get("/", secret)
    server = await serve(app)
    assert (await server.exchange(GET)).split()[1] == b"401"
    assert trail == []


async def test_a_response_removed_from_a_copy_is_removed(serve, trail) -> None:
    @before
    def change_of_mind(context: RequestContext) -> RequestContext:
        context.response = web.Response(status=401)
        other = context.copy()
        other.response = None
        return other

    async def handler(request):
        trail.append("handler")
        return web.Response(text="x")

    app = web.Application(middlewares=[interceptor_middleware(change_of_mind)])
    app.router.add_get("/", handler)
    server = await serve(app)
    assert (await server.exchange(GET)).split()[1] == b"200"
    assert trail == ["handler"]


async def test_a_second_attempt_is_independent_of_a_copy_that_the_first_left_running(serve) -> None:
    attempts: list[asyncio.Task[RequestContext]] = []
    audited = asyncio.Event()

    @web.middleware
    async def once_more(request, handler):
        try:
            return await handler(request)
        except ValueError:
            await asyncio.sleep(0)  # the copy's execution begins here, after the chain has ended
            return await handler(request)

    @before
    async def audit(context: RequestContext) -> None:
        await audited.wait()

    @before
    def start(context: RequestContext) -> None:
        attempts.append(asyncio.ensure_future(execute(context.copy(), audit)))

    @intercept(start)
    async def handler(request):
        if len(attempts) == 1:
            raise ValueError
        audited.set()
        await attempts[0]
        return web.Response(text="fine")

    app = web.Application(middlewares=[once_more])
    app.router.add_get("/", handler)
    server = await serve(app)
    assert (await server.exchange(GET)).endswith(b"fine")
    await asyncio.gather(*attempts)
