"""Interceptors that copy the context, or open a transaction, a timeout or a task group with ``@around``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from aiohttp import web

from aiohttp_interceptors import (
    Interceptor,
    RequestContext,
    around,
    as_handler,
    before,
    execute,
    intercept,
    interceptor_middleware,
)
from aiohttp_interceptors.web.context import contexts


async def secret(request: web.Request) -> web.Response:
    return web.Response(text="secret")


def refused(context: RequestContext, depth: int) -> RequestContext:
    for _ in range(depth):
        context = context.copy()
    context.response = web.Response(status=401, text="no")
    return context


def plain(depth: int) -> Interceptor[RequestContext]:
    return before(lambda context: refused(context, depth), name="auth")


def asynchronous(depth: int) -> Interceptor[RequestContext]:
    async def auth(context: RequestContext) -> RequestContext:
        await asyncio.sleep(0)
        return refused(context, depth)

    return before(auth)


def nested(depth: int) -> Interceptor[RequestContext]:
    async def auth(context: RequestContext) -> None:
        await execute(context, plain(depth))

    return before(auth)


def nested_on_a_copy(depth: int) -> Interceptor[RequestContext]:
    async def auth(context: RequestContext) -> RequestContext:
        copy = context.copy()
        await execute(copy, plain(depth))
        return copy

    return before(auth)


def as_middleware(auth: Interceptor[RequestContext]) -> web.Application:
    app = web.Application(middlewares=[interceptor_middleware(auth)])
    app.router.add_get("/", secret)
    return app


def as_decorator(auth: Interceptor[RequestContext]) -> web.Application:
    app = web.Application()
    app.router.add_get("/", intercept(auth)(secret))
    return app


def as_route(auth: Interceptor[RequestContext]) -> web.Application:
    app = web.Application()
    app.router.add_get("/", as_handler(auth, secret))
    return app


async def get(serve, session, app: web.Application) -> tuple[int, str]:
    server = await serve(app)
    async with session.get(server.url) as response:
        return response.status, await response.text()


class TestAResponseOnACopy:
    @pytest.mark.parametrize("depth", [0, 1, 2])
    @pytest.mark.parametrize("make", [plain, asynchronous, nested, nested_on_a_copy])
    @pytest.mark.parametrize("place", [as_middleware, as_decorator, as_route])
    async def test_skips_the_handler(self, serve, session, place, make, depth):
        assert await get(serve, session, place(make(depth))) == (401, "no")
        assert contexts == {}

    async def test_keeps_the_headers_staged_on_the_copy(self, serve, session):
        @before
        def auth(context: RequestContext) -> RequestContext:
            copy = context.copy()
            copy.response_headers["X-Why"] = "no token"
            return copy

        server = await serve(as_middleware(auth))
        async with session.get(server.url) as response:
            assert response.headers["X-Why"] == "no token"

    async def test_is_the_one_that_an_around_interceptor_changes(self, serve, session):
        @around
        async def stamped(context: RequestContext) -> Any:
            yield
            context.response.headers["X-Stamp"] = "1"
            context.response_headers["X-Staged"] = "1"

        copy = before(lambda context: context.copy(), name="copy")
        app = web.Application(middlewares=[interceptor_middleware(stamped, copy)])
        app.router.add_get("/", intercept(copy, stamped, copy)(secret))
        server = await serve(app)
        async with session.get(server.url) as response:
            assert (response.headers.getall("X-Stamp"), response.headers["X-Staged"]) == (["1"], "1")

    async def test_is_seen_in_the_context_that_a_middleware_in_between_has(self, serve, session):
        @web.middleware
        async def between(request: web.Request, handler: Any) -> web.StreamResponse:
            context = RequestContext.of(request)
            response = await handler(request)
            assert RequestContext.of(request) is context
            context.response_headers["X-User"] = str(context["user"])
            return response

        @before
        def user(context: RequestContext) -> RequestContext:
            copy = context.copy()
            copy["user"] = "alice"
            return copy

        app = web.Application(middlewares=[interceptor_middleware(user), between])
        app.router.add_get("/", intercept(user)(secret))
        server = await serve(app)
        async with session.get(server.url) as response:
            assert response.headers["X-User"] == "alice"


class TestAnAroundInterceptorCatchesTheExceptionsThatAMiddlewareWould:
    @staticmethod
    def transaction(seen: list[object]) -> Interceptor[RequestContext]:
        @around
        async def transaction(context: RequestContext) -> Any:
            try:
                yield
            except Exception as error:
                seen.append(("rolled back", type(error)))
                raise
            else:
                seen.append("committed")

        return transaction

    async def conflict_raised(self, request: web.Request) -> web.Response:
        raise web.HTTPConflict(text="conflict")

    async def conflict_attached(self, request: web.Request) -> web.Response:
        context = RequestContext.of(request)
        assert context is not None

        def attach(context: RequestContext) -> None:
            context.response = web.HTTPConflict(text="conflict")

        await execute(context, Interceptor("attach", leave=attach))
        return context.response

    @pytest.mark.filterwarnings("ignore:returning HTTPException:DeprecationWarning")
    @pytest.mark.parametrize("how", ["conflict_raised", "conflict_attached"])
    async def test_an_http_exception_raised_or_attached_by_the_handler(self, serve, session, how):
        seen: list[object] = []
        app = web.Application(middlewares=[interceptor_middleware(self.transaction(seen))])
        app.router.add_get("/", getattr(self, how))
        assert await get(serve, session, app) == (409, "conflict")
        assert seen == [("rolled back", web.HTTPConflict)]

    async def test_an_http_exception_that_a_stage_attaches(self, serve, session):
        seen: list[object] = []

        def attach(context: RequestContext) -> None:
            context.response = web.HTTPForbidden(text="no")

        app = as_middleware(before(attach))
        app.middlewares.insert(0, interceptor_middleware(self.transaction(seen)))
        assert await get(serve, session, app) == (403, "no")
        assert seen == [("rolled back", web.HTTPForbidden)]

    async def test_no_exception_for_a_plain_response(self, serve, session):
        seen: list[object] = []
        assert await get(serve, session, as_middleware(self.transaction(seen))) == (200, "secret")
        assert seen == ["committed"]

    async def test_leave_stages_run_and_error_stages_do_not(self, serve, session):
        seen: list[object] = []
        look = Interceptor(
            "look",
            leave=lambda context: seen.append(("leave", context.response.status)),
            error=lambda context, exception: seen.append(("error", exception)),
        )
        app = web.Application(middlewares=[interceptor_middleware(look, self.transaction([]), look)])
        app.router.add_get("/", self.conflict_raised)
        assert (await get(serve, session, app))[0] == 409
        assert seen == [("leave", 409), ("leave", 409)]

    @pytest.mark.parametrize("other", [None, web.Response(status=200, text="instead")])
    async def test_a_generator_that_catches_it_keeps_the_response_or_sets_another(self, serve, session, other):
        @around
        async def swallows(context: RequestContext) -> Any:
            try:
                yield
            except web.HTTPConflict:
                if other is not None:
                    context.response = other

        app = web.Application(middlewares=[interceptor_middleware(swallows)])
        app.router.add_get("/", self.conflict_raised)
        assert await get(serve, session, app) == ((409, "conflict") if other is None else (200, "instead"))

    async def test_another_http_exception_replaces_it(self, serve, session):
        seen: list[object] = []

        @around
        async def replaces(context: RequestContext) -> Any:
            try:
                yield
            except web.HTTPConflict:
                raise web.HTTPGone(text="gone") from None

        app = web.Application(middlewares=[interceptor_middleware(self.transaction(seen), replaces)])
        app.router.add_get("/", self.conflict_raised)
        assert await get(serve, session, app) == (410, "gone")
        assert seen == [("rolled back", web.HTTPGone)]

    async def test_another_exception_is_a_failure(self, serve, session):
        offered: list[BaseException] = []

        @around
        async def fails(context: RequestContext) -> Any:
            try:
                yield
            except web.HTTPConflict:
                raise KeyError("cannot roll back") from None

        def handle(context: RequestContext, exception: Exception) -> None:
            offered.append(exception)
            context.response = web.Response(status=500, text="failed")

        app = web.Application(middlewares=[interceptor_middleware(Interceptor("on error", error=handle), fails)])
        app.router.add_get("/", self.conflict_raised)
        assert await get(serve, session, app) == (500, "failed")
        assert [type(exception) for exception in offered] == [KeyError]


async def never(request: web.Request) -> web.Response:
    await asyncio.Event().wait()
    raise AssertionError


def times_out(manager: Callable[[], Any]) -> Interceptor[RequestContext]:
    @around
    async def limited(context: RequestContext) -> Any:
        try:
            manages = manager()
            if hasattr(manages, "__aenter__"):
                async with manages:
                    yield
            else:
                with manages:
                    yield
        except TimeoutError:
            raise web.HTTPGatewayTimeout(text="too slow") from None

    return limited


class TestAnAroundInterceptorThatCancels:
    @pytest.mark.parametrize("manager", [lambda: asyncio.timeout(0.05), lambda: anyio.fail_after(0.05)])
    async def test_can_turn_a_timeout_into_a_response(self, serve, session, manager):
        trail: list[object] = []

        @around
        async def inner(context: RequestContext) -> Any:
            try:
                yield
            except asyncio.CancelledError:
                trail.append("cancelled")
                raise

        app = web.Application()
        look = Interceptor(
            "look", leave=lambda _: trail.append("leave"), error=lambda _, exception: trail.append(exception)
        )
        outer = Interceptor("outer", leave=lambda context: trail.append(context.response.status))
        app.router.add_get("/", as_handler(outer, times_out(manager), look, inner, never))
        assert await get(serve, session, app) == (504, "too slow")
        assert trail == ["cancelled", 504]
        assert contexts == {}

    async def test_fails_with_the_timeout_error_otherwise(self, serve, session):
        @around
        async def limited(context: RequestContext) -> Any:
            async with asyncio.timeout(0.05):
                yield

        app = web.Application()
        offered: list[object] = []

        def handle(context: RequestContext, exception: Exception) -> None:
            offered.append((type(exception), context.error.interceptor, context.error.stage))
            context.response = web.Response(status=503)

        app.router.add_get("/", as_handler(Interceptor("on error", error=handle), limited, never))
        assert (await get(serve, session, app))[0] == 503
        assert offered == [(TimeoutError, "limited", "leave")]

    async def test_raises_the_exception_of_a_task_group(self, serve, session):
        async def child() -> None:
            await asyncio.sleep(0)
            raise KeyError("child")

        @around
        async def grouped(context: RequestContext) -> Any:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(child())
                    yield
            except* KeyError:
                raise_later.append(True)
            if raise_later:
                raise web.HTTPBadGateway(text="child failed")

        raise_later: list[bool] = []
        app = web.Application()
        app.router.add_get("/", as_handler(grouped, never))
        assert await get(serve, session, app) == (502, "child failed")

    async def test_can_swallow_the_cancellation_and_attach_a_response(self, serve, session):
        @around
        async def limited(context: RequestContext) -> Any:
            with anyio.move_on_after(0.05):
                yield
            if context.response is None:
                context.response = web.Response(status=200, text="partial")

        app = web.Application()
        app.router.add_get("/", as_handler(limited, never))
        assert await get(serve, session, app) == (200, "partial")

    async def test_raises_no_response_if_it_attaches_none(self, serve, session, caplog):
        @around
        async def limited(context: RequestContext) -> Any:
            with anyio.move_on_after(0.05):
                yield

        app = web.Application()
        app.router.add_get("/", as_handler(limited, never))
        assert (await get(serve, session, app))[0] == 500
        assert "NoResponse" in caplog.text

    async def test_runs_the_leave_stages_outside_of_it(self, serve, session):
        seen: list[object] = []
        app = web.Application()
        outer = Interceptor("outer", leave=lambda _: seen.append("leave"))
        app.router.add_get("/", as_handler(outer, times_out(lambda: asyncio.timeout(0.05)), never))
        assert (await get(serve, session, app))[0] == 504
        assert seen == ["leave"]


class TestNoContextStaysRegistered:
    @pytest.mark.parametrize("inside", [False, True])
    async def test_after_a_chain_that_never_started(self, serve, session, inside):
        @web.middleware
        async def impatient(request: web.Request, handler: Any) -> web.StreamResponse:
            try:
                return await asyncio.wait_for(handler(request), 0)
            except TimeoutError:
                pass
            task = asyncio.ensure_future(handler(request))
            task.cancel()
            await asyncio.wait([task])
            return await handler(request)

        middlewares = [impatient, interceptor_middleware(before(lambda _: None, name="a"))]
        if inside:
            middlewares.insert(0, interceptor_middleware(before(lambda _: None, name="b")))
        app = web.Application(middlewares=middlewares)
        app.router.add_get("/", secret)
        server = await serve(app)
        for _ in range(3):
            async with session.get(server.url) as response:
                assert await response.text() == "secret"
        assert contexts == {}

    async def test_after_two_concurrent_runs_of_a_handler(self, serve, session):
        @web.middleware
        async def twice(request: web.Request, handler: Any) -> web.StreamResponse:
            return (await asyncio.gather(handler(request), handler(request)))[1]

        app = web.Application(middlewares=[twice])
        app.router.add_get("/", as_handler(before(lambda context: context.copy(), name="copy"), secret))
        assert await get(serve, session, app) == (200, "secret")
        assert contexts == {}
