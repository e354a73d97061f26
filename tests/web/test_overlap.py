"""Concurrent runs of one request's chain, as started by a middleware that does not wait for the first."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from aiohttp_interceptors import RequestContext, around, as_handler, before, intercept, interceptor_middleware
from tests.waiting import TIMEOUT

GET = "GET / HTTP/1.1\nHost: x\nConnection: close\n\n"


class Gate:
    """An ``auth`` interceptor that waits until it is opened and then refuses, and the handler that it protects."""

    def __init__(self, refusal: str) -> None:
        self.refusal = refusal
        self.opens = [asyncio.Event(), asyncio.Event()]
        self.entered = [asyncio.Event(), asyncio.Event()]
        self.calls = 0
        self.let_in = 0

    def interceptor(self):
        @before
        async def auth(context: RequestContext) -> RequestContext | None:
            call, self.calls = self.calls, self.calls + 1
            self.entered[call].set()
            await self.opens[call].wait()
            match self.refusal:
                case "response":
                    context.response = web.Response(status=401)
                case "terminate":
                    context.terminate()
                case "with_error":
                    return context.with_error(PermissionError())
                case "raise":
                    raise web.HTTPUnauthorized
            return None

        return auth

    async def secret(self, request: web.Request) -> web.Response:
        self.let_in += 1
        return web.Response(text="secret")

    def page(self):
        @before
        def page(context: RequestContext) -> None:
            self.let_in += 1
            context.response = web.Response(text="secret")

        return page


def place(kind: str, gate: Gate, between) -> web.Application:
    """Put a middleware outside of the interceptor that refuses, or between it and an outer one."""
    outer = interceptor_middleware(before(lambda context: None, name="outer"))
    match kind:
        case "outside":
            app = web.Application(middlewares=[between, interceptor_middleware(gate.interceptor())])
            handler = gate.secret
        case "intercept":
            app = web.Application(middlewares=[outer, between])
            handler = intercept(gate.interceptor())(gate.secret)
        case "as_handler":
            app = web.Application(middlewares=[outer, between])
            handler = as_handler(gate.interceptor(), gate.page())
    app.router.add_get("/", handler)
    return app


@pytest.mark.parametrize("refusal", ["response", "terminate", "with_error", "raise"])
@pytest.mark.parametrize("kind", ["outside", "intercept", "as_handler"])
async def test_a_refusal_holds_while_a_second_attempt_runs(serve, kind, refusal) -> None:
    gate = Gate(refusal)
    attempts = []

    @web.middleware
    async def hedge(request, handler):
        attempts.append(asyncio.ensure_future(handler(request)))
        await gate.entered[0].wait()
        attempts.append(asyncio.ensure_future(handler(request)))
        await gate.entered[1].wait()
        gate.opens[0].set()
        await asyncio.wait(attempts[:1])
        gate.opens[1].set()
        await asyncio.wait(attempts)
        attempts[1].exception()
        return attempts[0].result()

    server = await serve(place(kind, gate, hedge))
    answer = await server.exchange(GET)
    assert gate.let_in == 0
    assert answer.split()[1] in ({b"401"} if refusal == "raise" else {b"500"})


@pytest.mark.parametrize("kind", ["outside", "intercept", "as_handler"])
async def test_a_middleware_can_respond_for_a_handler_that_it_left_running(serve, raised, kind) -> None:
    """As with ``asyncio.wait_for(asyncio.shield(handler(request)), 1)``. The handler has no effect any more."""
    gate, left, contexts = Gate("response"), [], []

    @web.middleware
    async def give_up(request, handler):
        left.append(asyncio.ensure_future(handler(request)))
        await gate.entered[0].wait()
        contexts.append(RequestContext.of(request))
        return web.Response(status=504)

    server = await serve(place(kind, gate, give_up))
    assert (await server.exchange(GET)).split()[1] == b"504"
    gate.opens[0].set()
    async with asyncio.timeout(TIMEOUT):
        await asyncio.wait(left)
    assert gate.let_in == 0
    assert raised() == []
    assert RequestContext.find(contexts[0].request) is None
    with pytest.raises(LookupError, match="no chain runs for <Request GET /"):
        RequestContext.of(contexts[0].request)
    if kind != "outside":
        with pytest.raises(RuntimeError, match="twice at the same time"):
            left[0].result()


async def test_a_transaction_that_was_left_running_rolls_back(serve, raised) -> None:
    entered, opens, seen, left = asyncio.Event(), asyncio.Event(), [], []

    @around
    async def transaction(context):
        try:
            yield
        except RuntimeError as error:
            seen.append(error)
            raise

    @intercept(transaction)
    async def handler(request):
        entered.set()
        await opens.wait()
        return web.Response(text="late")

    @web.middleware
    async def give_up(request, handler):
        left.append(asyncio.ensure_future(handler(request)))
        await entered.wait()
        return web.Response(status=504)

    app = web.Application(middlewares=[interceptor_middleware(before(lambda context: None, name="outer")), give_up])
    app.router.add_get("/", handler)
    server = await serve(app)
    assert (await server.exchange(GET)).split()[1] == b"504"
    opens.set()
    async with asyncio.timeout(TIMEOUT):
        await asyncio.wait(left)
    assert [left[0].exception()] == seen
    assert raised() == []
