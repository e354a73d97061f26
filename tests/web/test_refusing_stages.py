"""A response that an ``enter`` stage attaches, raises or sends ends the enter phase, with and without an observer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from contextvars import ContextVar

import pytest
from aiohttp import web

from aiohttp_interceptors import (
    ContextKey,
    RequestContext,
    after,
    around,
    before,
    execute,
    intercept,
    interceptor_middleware,
    setup,
)

GET = "GET / HTTP/1.1\nHost: x\nConnection: close\n\n"
VARIABLE: ContextVar[int] = ContextVar("variable", default=0)
RESPONSE = ContextKey[web.StreamResponse]("response")


@pytest.fixture(params=["observed", "unobserved"])
def observing(request):
    """Return an interceptor that adds an observer, or none."""

    @before
    def observe(context: RequestContext) -> None:
        context.add_observer(lambda fact: None)

    return [observe] if request.param == "observed" else []


@before
def refuse(context: RequestContext) -> None:
    context.response = web.Response(status=401)


@before
def refuse_by_raising(context: RequestContext) -> None:
    raise web.HTTPUnauthorized


@before
def noop(context: RequestContext) -> None:
    """Do nothing; a bug could continue the chain after it."""


async def answer(serve, chain, handler=None, *, set_up=False) -> tuple[int, list[str]]:
    """Serve a handler behind a chain. Return the status of the response, and what ran behind the refusal."""
    ran: list[str] = []

    @before
    def behind(context: RequestContext) -> None:
        ran.append("stage")

    async def secret(request: web.Request) -> web.Response:
        ran.append("handler")
        return web.Response(text="secret")

    app = web.Application()
    if set_up:
        setup(app)
    app.router.add_get("/", intercept(*chain, behind if handler is None else None)(handler or secret))
    server = await serve(app)
    head, _, body = (await server.exchange(GET)).partition(b"\r\n\r\n")
    assert b"secret" not in body
    assert b"HTTP/1.1" not in body
    return int(head.split()[1]), ran


@pytest.mark.parametrize("refusal", [refuse, refuse_by_raising])
async def test_a_refusal_ends_the_chain_while_an_execution_runs_that_a_plain_stage_started(
    serve, observing, refusal
) -> None:
    """``asyncio.eager_task_factory`` starts a task while it is created."""
    left: list[object] = []

    @before
    async def wait(context: RequestContext) -> None:
        await asyncio.sleep(0)

    @before
    def start(context: RequestContext) -> None:
        inner = execute(context, wait)
        left.append(inner)
        inner.send(None)

    status, ran = await answer(serve, [*observing, start, refusal])
    left.pop().close()  # type: ignore[attr-defined]
    assert status == 500  # the stage that started the execution has returned before it ended
    assert ran == []


@pytest.mark.parametrize("returns", ["nothing", "the context", "a copy"])
async def test_a_refusal_in_an_execution_that_a_plain_stage_did_not_await_fails_the_request(
    serve, observing, returns
) -> None:
    left: list[object] = []

    @before
    async def auth(context: RequestContext) -> None:
        await asyncio.sleep(0)
        context.response = web.Response(status=401)

    @before
    def start(context: RequestContext) -> RequestContext | None:
        inner = execute(context, auth)
        left.append(inner)
        inner.send(None)
        return {"nothing": None, "the context": context, "a copy": context.copy()}[returns]

    assert await answer(serve, [*observing, start]) == (500, [])
    left.pop().close()  # type: ignore[attr-defined]


async def test_a_refusal_in_a_predicate_ends_the_enter_phase_immediately(serve, observing) -> None:
    def refuse_once(context: RequestContext) -> bool:
        if context.response is None:
            context.response = web.Response(status=401)
        return False

    @before
    def ask(context: RequestContext) -> None:
        context.terminate_when(refuse_once)

    assert await answer(serve, [*observing, ask]) == (401, [])


@pytest.mark.parametrize("leaves", [0, 1])
async def test_an_error_that_a_handler_attaches_is_the_outcome(serve, observing, leaves) -> None:
    seen: list[type[BaseException]] = []

    @after
    def leave(context: RequestContext) -> None:
        seen.append(type(context.response))

    async def handler(request: web.Request) -> web.Response:
        context = RequestContext.of(request)
        assert context is not None
        context.with_error(web.HTTPForbidden())
        return web.Response(text="secret")

    assert await answer(serve, [*observing, *[leave] * leaves], handler) == (403, [])
    assert seen == [web.HTTPForbidden] * leaves


async def test_bindings_of_a_handler_are_visible_to_all_later_stages(serve, observing) -> None:
    seen: list[int] = []

    @after
    def leave(context: RequestContext) -> None:
        seen.append(VARIABLE.get())

    async def handler(request: web.Request) -> web.Response:
        context = RequestContext.of(request)
        assert context is not None
        context.bind(VARIABLE, 1)
        return web.Response()

    assert await answer(serve, [*observing, leave, leave], handler) == (200, [])
    assert seen == [1, 1]


@pytest.mark.parametrize("how", ["attached", "raised"])
async def test_a_refusal_with_the_previous_response_ends_the_enter_phase(serve, observing, how) -> None:
    @before
    def auth(context: RequestContext) -> None:
        response = context.response
        if how == "raised":
            assert isinstance(response, web.HTTPException)
            raise response
        context.response = response

    @before
    async def ask(context: RequestContext) -> None:
        await execute(context, auth)

    ran: list[str] = []

    @before
    def behind(context: RequestContext) -> None:
        ran.append("behind")

    @before
    async def refused_already(context: RequestContext) -> None:
        context.response = web.HTTPUnauthorized()
        await execute(context, ask, behind)

    assert await answer(serve, [*observing, refused_already]) == (401, [])
    assert ran == []


async def test_a_refusal_replaces_the_previous_response_of_a_returned_copy(serve, observing) -> None:
    @before
    def auth(context: RequestContext) -> RequestContext:
        copy = context.copy()
        context.response = web.Response(status=401)
        return copy

    @before
    async def answered(context: RequestContext) -> None:
        context.response = web.Response(text="secret")
        await execute(context, auth)

    assert await answer(serve, [*observing, answered]) == (401, [])


async def test_a_second_attempt_after_a_committed_response_sends_nothing(serve, observing) -> None:
    ran: list[str] = []

    @web.middleware
    async def twice(request, handler):
        await handler(request)
        return await handler(request)

    @intercept(*observing, noop)
    async def handler(request: web.Request) -> web.StreamResponse:
        ran.append("handler")
        response = web.StreamResponse()
        if len(ran) == 1:
            await response.prepare(request)
        return response

    app = web.Application(middlewares=[interceptor_middleware(), twice])
    app.router.add_get("/", handler)
    server = await serve(app)
    assert (await server.exchange(GET)).count(b"HTTP/1.1") == 1
    assert ran == ["handler"] * 2


async def test_a_copy_of_a_copy_with_a_response_is_executed(serve, observing) -> None:
    ran: list[str] = []

    @before
    async def refused(context: RequestContext) -> RequestContext:
        copy = context.copy()
        copy.response = web.Response(status=401)
        await execute(copy.copy(), noop, before(lambda _: ran.append("inner"), name="inner"))
        return copy

    assert await answer(serve, [*observing, refused]) == (401, [])
    assert ran == ["inner"]


async def send(request: web.Request) -> None:
    """Refuse without a context, as other aiohttp code does."""
    response = web.Response(status=403, text="no")
    await response.prepare(request)
    await response.write_eof()


@pytest.mark.parametrize("application", ["set up", "bare"])
@pytest.mark.parametrize("how", ["stage", "task", "nested", "around", "copy"])
async def test_a_complete_response_sent_by_a_stage_ends_the_enter_phase(serve, observing, how, application) -> None:
    ran: list[str] = []

    @before
    async def refused(context: RequestContext) -> RequestContext | None:
        if how == "nested":
            sends = before(lambda inner: send(inner.request), name="sends")
            await execute(context, sends, before(lambda _: ran.append("inner"), name="inner"))
            return None
        await send(context.request)
        return context.copy() if how == "copy" else None

    @around
    async def refused_around(context: RequestContext) -> AsyncIterator[None]:
        await send(context.request)
        yield

    interceptors = {
        "task": before(lambda context: asyncio.ensure_future(send(context.request)), name="refused"),
        "around": refused_around,
    }
    left = after(lambda _: ran.append("left"), name="left")
    chain = [*observing, left, interceptors.get(how, refused)]
    assert await answer(serve, chain, set_up=application == "set up") == (403, [])
    assert ran == ["left"]


async def test_a_response_that_a_stage_only_prepares_does_not_end_the_enter_phase(serve, observing) -> None:
    @around
    async def opened(context: RequestContext) -> AsyncIterator[None]:
        context[RESPONSE] = response = web.StreamResponse()
        await response.prepare(context.request)
        yield
        await response.write_eof()

    async def handler(request: web.Request) -> web.StreamResponse:
        context = RequestContext.of(request)
        assert context is not None
        await context[RESPONSE].write(b"written behind it")
        return context[RESPONSE]

    app = web.Application()
    app.router.add_get("/", intercept(*observing, opened, noop)(handler))
    assert b"written behind it" in await (await serve(app)).exchange(GET)


@pytest.mark.parametrize("outer", ["middleware", "chain", "stage"])
async def test_a_chain_that_starts_after_a_complete_response_runs(serve, observing, outer) -> None:
    ran: list[str] = []

    @before
    async def wait(context: RequestContext) -> None:
        await asyncio.sleep(0)
        ran.append("wait")

    async def handler(request: web.Request) -> web.Response:
        ran.append("handler")
        return web.Response()

    @web.middleware
    async def answered(request, handler):
        await send(request)
        return await handler(request)

    @before
    async def audited(context: RequestContext) -> None:
        await send(context.request)
        await execute(context, *observing, wait, before(lambda _: ran.append("handler"), name="last"))

    middlewares = [interceptor_middleware(), answered] if outer == "chain" else [answered]
    app = web.Application(middlewares=[] if outer == "stage" else middlewares)
    app.router.add_get("/", intercept(*([audited] if outer == "stage" else [*observing, wait]))(handler))
    assert (await (await serve(app)).exchange(GET)).count(b"HTTP/1.1") == 1
    assert ran == ["wait", "handler"]


@pytest.mark.parametrize("how", ["wait_for", "timeout", "cancel"])
@pytest.mark.parametrize("earlier", [False, True])
async def test_a_refusal_in_a_cancelled_execution_ends_the_enter_phase(serve, observing, how, earlier) -> None:
    """The cancelled execution may have left the refusing one running."""
    ran: list[str] = []
    response = web.Response(status=401)
    deepest: list[asyncio.Task[RequestContext]] = []
    refused = asyncio.Event()

    def refuse_with_it(context: RequestContext) -> None:
        context.response = response
        refused.set()

    @before
    async def leave_running(context: RequestContext) -> None:
        chain = before(refuse_with_it, name="refuse"), after(lambda _: asyncio.Event().wait(), name="hang")
        deepest.append(asyncio.create_task(execute(context, *chain[::-1])))
        await asyncio.Event().wait()

    @before
    async def cancel_it(context: RequestContext) -> None:
        running = asyncio.create_task(execute(context, leave_running))
        await refused.wait()
        with suppress(TimeoutError, asyncio.CancelledError):
            if how == "wait_for":
                await asyncio.wait_for(running, 0)
            elif how == "timeout":
                async with asyncio.timeout(0):
                    await running
            else:
                running.cancel()
                await running

    @before
    async def outermost(context: RequestContext) -> None:
        if earlier:
            context.response = response
        await execute(context, cancel_it, before(lambda _: ran.append("behind"), name="behind"))

    assert await answer(serve, [*observing, outermost]) == (401, [])
    assert ran == []
    deepest[0].cancel()


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("how", ["return", "execute"])
async def test_a_copy_whose_execution_continues_with_another_copy_is_in_use(serve, observing, how, deep) -> None:
    """Otherwise the refusal of the running execution would be lost."""
    running: list[asyncio.Task[RequestContext]] = []
    hanging = asyncio.Event()

    @before
    def refuse_in_a_copy(context: RequestContext) -> RequestContext:
        copy = context.copy()
        copy.response = web.Response(status=401)
        return copy

    @after
    async def hang(context: RequestContext) -> None:
        hanging.set()
        await asyncio.Event().wait()

    @before
    async def check(context: RequestContext) -> None:
        await execute(context, hang, refuse_in_a_copy)

    @before
    async def give_up(context: RequestContext) -> RequestContext:
        copy = context.copy()
        running.append(asyncio.create_task(execute(copy, *([check] if deep else [hang, refuse_in_a_copy]))))
        await hanging.wait()
        return copy if how == "return" else await execute(copy, noop)

    assert await answer(serve, [*observing, give_up]) == (500, [])
    running[0].cancel()
