"""Chains around aiohttp handlers: their order, the shared context, and what becomes of responses and exceptions."""

from __future__ import annotations

import asyncio

import pytest
import structlog
from aiohttp import web

from aiohttp_interceptors import (
    Context,
    ContextKey,
    Interceptor,
    NoResponse,
    RequestContext,
    around,
    as_handler,
    before,
    intercept,
    interceptor_middleware,
    on_error,
    start_event_stream,
)
from aiohttp_interceptors.web.context import contexts

TRACE = ContextKey[list[str]]("trace")


class Tracer:
    """Make interceptors that record the stages that ran, and their contexts."""

    def __init__(self) -> None:
        self.trace: list[str] = []
        self.contexts: list[Context] = []

    def __call__(self, name: str, **stages: object) -> Interceptor:
        def enter(context: RequestContext) -> None:
            self.trace.append(f"enter {name}")
            self.contexts.append(context)

        def leave(context: RequestContext) -> None:
            self.trace.append(f"leave {name}")

        return Interceptor(name, stages.get("enter", enter), stages.get("leave", leave), stages.get("error"))

    def handler(self, text: str = "hello"):
        async def handler(request: web.Request) -> web.Response:
            self.trace.append("handler")
            return web.Response(text=text)

        return handler


@pytest.fixture
def tracer() -> Tracer:
    return Tracer()


async def get(serve, session, app, path="/", method="GET", **kwargs):
    server = await serve(app)
    async with session.request(method, server.url + path, **kwargs) as response:
        return response.status, await response.text(), response.headers


class TestOneChain:
    async def test_interceptors_of_the_application_run_around_those_of_the_route(self, serve, session, tracer):
        app = web.Application()
        app.middlewares.append(interceptor_middleware(tracer("a"), None, tracer("b")))
        app.router.add_get("/", intercept(tracer("c"))(tracer.handler()))
        app.router.add_get("/other", tracer.handler())
        server = await serve(app)
        async with session.get(server.url) as response:
            assert await response.text() == "hello"
        inner = ["enter c", "handler", "leave c"]
        assert tracer.trace == ["enter a", "enter b", *inner, "leave b", "leave a"]
        assert len({id(context) for context in tracer.contexts}) == 1
        tracer.trace.clear()
        async with session.get(server.url + "/other"):
            pass
        assert tracer.trace == ["enter a", "enter b", "handler", "leave b", "leave a"]

    async def test_as_handler_continues_the_chain_of_the_application(self, serve, session, tracer):
        @before
        def page(context: RequestContext) -> None:
            context.response = web.Response(text=f"page of {context['user']}")

        @before
        def user(context: RequestContext) -> None:
            context["user"] = "ada"

        app = web.Application(middlewares=[interceptor_middleware(user, tracer("a"))])
        app.router.add_get("/", as_handler(tracer("b"), page, tracer("never entered")))
        assert (await get(serve, session, app))[1] == "page of ada"
        assert tracer.trace == ["enter a", "enter b", "leave b", "leave a"]

    async def test_as_handler_can_end_with_an_aiohttp_handler_and_has_its_name(self, serve, session, tracer):
        handler = tracer.handler()
        route = as_handler(tracer("a"), handler)
        assert route.__name__ == "handler"
        app = web.Application()
        app.router.add_get("/", route)
        assert (await get(serve, session, app))[1] == "hello"
        assert tracer.trace == ["enter a", "handler", "leave a"]

    async def test_an_application_and_its_subapplication_share_a_context_across_other_middlewares(
        self, serve, session, tracer
    ):
        @web.middleware
        async def plain(request: web.Request, handler) -> web.StreamResponse:
            tracer.trace.append("plain in")
            response = await handler(request.clone())
            tracer.trace.append("plain out")
            return response

        requests = []

        def remember(context: RequestContext) -> None:
            requests.append(context.request)

        look = Interceptor("look", remember, remember)
        sub = web.Application(middlewares=[interceptor_middleware(tracer("sub"), look)])
        sub.router.add_get("/", intercept(tracer("route"))(tracer.handler()))
        app = web.Application(middlewares=[interceptor_middleware(tracer("parent"), look), plain])
        app.add_subapp("/sub", sub)
        assert (await get(serve, session, app, "/sub/"))[1] == "hello"
        ins, outs = (
            ["enter parent", "plain in", "enter sub", "enter route"],
            ["leave route", "leave sub", "plain out", "leave parent"],
        )
        assert tracer.trace == [*ins, "handler", *outs]
        assert len({id(context) for context in tracer.contexts}) == 1
        outside, inside = requests[0], requests[1]
        assert inside is not outside
        assert [request is inside for request in requests] == [False, True, True, False]

    async def test_an_exception_of_a_route_is_offered_to_error_stages_of_the_application_with_its_origin(
        self, serve, session, tracer
    ):
        failures = []

        @on_error(LookupError)
        def apologise(context: RequestContext, error: LookupError) -> None:
            failures.append(str(context.error))
            context.response = web.Response(status=503, text="sorry")

        @before
        def broken(context: RequestContext) -> None:
            raise LookupError("no such thing")

        app = web.Application(middlewares=[interceptor_middleware(tracer("a"), apologise, tracer("b"))])
        app.router.add_get("/", intercept(tracer("c"), broken)(tracer.handler()))
        status, text, _ = await get(serve, session, app)
        assert (status, text) == (503, "sorry")
        assert failures == ["LookupError in interceptor 'broken', stage enter: no such thing"]
        assert tracer.trace == ["enter a", "enter b", "enter c", "leave a"]

    async def test_enqueued_interceptors_are_entered_before_the_handler(self, serve, session, tracer):
        @before
        def more(context: RequestContext) -> None:
            context.enqueue(tracer("z"))

        app = web.Application(middlewares=[interceptor_middleware(more, tracer("b"))])
        app.router.add_get("/", tracer.handler())
        await get(serve, session, app)
        assert tracer.trace == ["enter b", "enter z", "handler", "leave z", "leave b"]

    async def test_a_returned_context_replaces_the_first_one_in_all_parts_of_the_chain(self, serve, session, tracer):
        @before
        def replace(context: RequestContext) -> RequestContext:
            twin = context.copy()
            twin["twin"] = True
            return twin

        seen = []
        look = Interceptor("look", leave=lambda context: seen.append(("twin" in context, context.response.text)))

        async def handler(request: web.Request) -> web.Response:
            assert "twin" in RequestContext.of(request)
            return web.Response(text="hello")

        app = web.Application(middlewares=[interceptor_middleware(look, replace)])
        app.router.add_get("/", intercept(look, replace)(handler))
        assert (await get(serve, session, app))[1] == "hello"
        assert contexts == {}
        assert seen == [(True, "hello"), (True, "hello")]

    async def test_a_returned_context_of_another_class_is_an_error(self, serve, session, tracer):
        @before
        def wrong(context: RequestContext) -> Context:
            return Context()

        app = web.Application(middlewares=[interceptor_middleware(wrong)])
        app.router.add_get("/", tracer.handler())
        assert (await get(serve, session, app))[0] == 500

    async def test_concurrent_requests_have_separate_contexts_and_log_variables(self, serve, session):
        everyone = asyncio.Event()
        waiting = 0

        async def handler(request: web.Request) -> web.Response:
            nonlocal waiting
            before = structlog.contextvars.get_contextvars()["execution_id"]
            waiting += 1
            if waiting == 20:
                everyone.set()
            await everyone.wait()
            after = structlog.contextvars.get_contextvars()["execution_id"]
            return web.json_response([before, after, RequestContext.of(request).execution_id])

        app = web.Application(middlewares=[interceptor_middleware(Interceptor("a", enter=lambda c: None))])
        app.router.add_get("/", handler)
        server = await serve(app)

        async def ask() -> list[int]:
            async with session.get(server.url) as response:
                return await response.json()

        answers = await asyncio.gather(*(ask() for _ in range(20)))
        assert all(len(set(answer)) == 1 for answer in answers)
        assert len({answer[0] for answer in answers}) == 20


class TestHandlers:
    @pytest.mark.parametrize("kind", ["view", "method", "view method"])
    async def test_views_and_methods_are_intercepted(self, serve, session, tracer, kind):
        class Page(web.View):
            async def get(self) -> web.Response:
                tracer.trace.append("handler")
                return web.Response(text=self.request.path)

        class Methods:
            @intercept(tracer("a"))
            async def get(self, request: web.Request) -> web.Response:
                tracer.trace.append("handler")
                return web.Response(text=request.path)

        class Verb(web.View):
            @intercept(tracer("a"))
            async def get(self) -> web.Response:
                tracer.trace.append("handler")
                return web.Response(text=self.request.path)

        app = web.Application()
        if kind == "method":
            app.router.add_get("/x", Methods().get)
        else:
            app.router.add_view("/x", intercept(tracer("a"))(Page) if kind == "view" else Verb)
        assert (await get(serve, session, app, "/x"))[1] == "/x"
        assert tracer.trace == ["enter a", "handler", "leave a"]

    async def test_an_intercepted_view_keeps_its_name_and_responds_with_405(self, serve, session, tracer):
        @intercept(tracer("a"))
        class Page(web.View):
            """A page."""

            async def get(self) -> web.Response:
                return web.Response()

        assert (Page.__name__, Page.__doc__) == ("Page", "A page.")
        app = web.Application()
        app.router.add_view("/", Page)
        assert (await get(serve, session, app, method="POST"))[0] == 405
        assert tracer.trace == ["enter a", "leave a"]

    async def test_an_intercepted_handler_keeps_its_name_and_attributes(self, tracer):
        async def handler(request: web.Request) -> web.Response:
            """Answer."""
            return web.Response()

        handler.scope = "public"
        wrapped = intercept(tracer("a"))(handler)
        assert (wrapped.__name__, wrapped.__doc__, wrapped.scope) == ("handler", "Answer.", "public")

    @pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("POST", "/", 405)])
    async def test_404_and_405_run_leave_stages_and_no_error_stages(self, serve, session, tracer, method, path, status):
        offered = []
        a = tracer("a", error=lambda context, error: offered.append(error))
        app = web.Application(middlewares=[interceptor_middleware(a)])
        app.router.add_get("/", tracer.handler())
        assert (await get(serve, session, app, path, method))[0] == status
        assert tracer.trace == ["enter a", "leave a"]
        assert offered == []


class TestOutcomes:
    async def test_a_response_attached_in_enter_skips_the_remaining_interceptors_and_the_handler(
        self, serve, session, tracer
    ):
        @before
        def early(context: RequestContext) -> None:
            context.response = web.Response(text="early")

        app = web.Application(middlewares=[interceptor_middleware(tracer("a"), early, tracer("b"))])
        app.router.add_get("/", tracer.handler())
        assert (await get(serve, session, app))[1] == "early"
        assert tracer.trace == ["enter a", "leave a"]

    @pytest.mark.parametrize("stage", ["enter", "leave", "error"])
    async def test_an_http_exception_is_a_response_in_every_stage(self, serve, session, tracer, stage):
        def refuse(context: RequestContext, *error: Exception) -> None:
            raise web.HTTPForbidden(text="no", headers={"X-Why": stage})

        def fail(context: RequestContext) -> None:
            raise KeyError(1)

        stages = [tracer("outer"), tracer("refusing", **{stage: refuse})]
        if stage == "error":
            stages.append(tracer("failing", enter=fail))
        app = web.Application(middlewares=[interceptor_middleware(*stages)])
        app.router.add_get("/", tracer.handler())
        status, text, headers = await get(serve, session, app)
        assert (status, text, headers["X-Why"]) == (403, "no", stage)
        assert tracer.trace[-1] == "leave outer"
        assert ("leave refusing" in tracer.trace) is (stage == "enter")

    async def test_leave_stages_can_change_an_http_exception(self, serve, session, tracer):
        def change(context: RequestContext) -> None:
            context.response.headers["X-Seen"] = str(context.response.status)

        app = web.Application(middlewares=[interceptor_middleware(tracer("a", leave=change))])
        assert (await get(serve, session, app))[2]["X-Seen"] == "404"

    async def test_a_middleware_in_between_can_catch_the_http_exception(self, serve, session, tracer):
        caught = []

        @web.middleware
        async def plain(request: web.Request, handler) -> web.StreamResponse:
            try:
                return await handler(request)
            except web.HTTPException as exception:
                caught.append(exception.status)
                raise

        app = web.Application(
            middlewares=[interceptor_middleware(tracer("a")), plain, interceptor_middleware(tracer("b"))]
        )
        assert (await get(serve, session, app))[0] == 404
        assert caught == [404]
        assert tracer.trace == ["enter a", "enter b", "leave b", "leave a"]

    async def test_any_other_exception_is_raised_to_aiohttp_with_a_note_and_the_client_gets_no_details(
        self, serve, session, tracer, caplog
    ):
        def broken(context: RequestContext) -> None:
            raise LookupError("a secret")

        app = web.Application(middlewares=[interceptor_middleware(tracer("a"), tracer("b", leave=broken))])
        app.router.add_get("/", tracer.handler())
        status, text, _ = await get(serve, session, app)
        assert status == 500
        assert "secret" not in text
        (record,) = [record for record in caplog.records if record.name == "aiohttp.server"]
        assert isinstance(record.exc_info[1], LookupError)
        assert record.exc_info[1].__notes__ == ["raised in interceptor 'b', stage leave"]

    async def test_an_exception_of_the_handler_names_the_handler(self, serve, session, tracer):
        failures = []

        @on_error(ValueError)
        def answer(context: RequestContext, error: ValueError) -> None:
            failures.append((context.error.interceptor, context.error.stage))
            context.response = web.Response(text="handled")

        async def get_user(request: web.Request) -> web.Response:
            raise ValueError

        app = web.Application(middlewares=[interceptor_middleware(answer)])
        app.router.add_get("/", get_user)
        assert (await get(serve, session, app))[1] == "handled"
        assert failures == [("get_user", "enter")]

    async def test_a_chain_without_a_response_is_a_500_and_the_error_says_what_to_do(
        self, serve, session, tracer, caplog
    ):
        app = web.Application()
        app.router.add_get("/here", as_handler(tracer("a")))
        assert (await get(serve, session, app, "/here"))[0] == 500
        (record,) = [record for record in caplog.records if record.name == "aiohttp.server"]
        assert isinstance(record.exc_info[1], NoResponse)
        assert "GET /here" in str(record.exc_info[1])
        assert "set context.response" in str(record.exc_info[1])

    @pytest.mark.parametrize("value", [None, "text", 42])
    async def test_a_handler_that_does_not_return_a_response_is_named_with_the_value(
        self, serve, session, tracer, value, caplog
    ):
        async def forgetful(request: web.Request):
            return value

        app = web.Application(middlewares=[interceptor_middleware(tracer("a"))])
        app.router.add_get("/", forgetful)
        assert (await get(serve, session, app))[0] == 500
        (record,) = [record for record in caplog.records if record.name == "aiohttp.server"]
        assert f"forgetful returned {value!r}" in str(record.exc_info[1])

    async def test_an_attached_value_that_is_not_a_response_is_named_with_its_interceptor(
        self, serve, session, tracer, caplog
    ):
        @before
        def sloppy(context: RequestContext) -> None:
            context.response = "hello"

        app = web.Application(middlewares=[interceptor_middleware(sloppy)])
        assert (await get(serve, session, app))[0] == 500
        (record,) = [record for record in caplog.records if record.name == "aiohttp.server"]
        assert "'hello'" in str(record.exc_info[1])
        assert record.exc_info[1].__notes__ == ["raised in interceptor 'sloppy', stage enter"]

    async def test_cancellation_by_aiohttp_is_raised_in_a_waiting_enter_and_at_the_yields_of_around_in_reverse(
        self, serve, tracer
    ):
        closed = []
        entered, over = asyncio.Event(), asyncio.Event()

        def bracket(name: str) -> Interceptor:
            async def generator(context: RequestContext):
                try:
                    yield
                finally:
                    closed.append(name)
                    if len(closed) == 2:
                        over.set()

            generator.__name__ = name
            return around(generator)

        @before
        async def wait(context: RequestContext) -> None:
            entered.set()
            await asyncio.Event().wait()

        app = web.Application(
            middlewares=[interceptor_middleware(bracket("outer"), tracer("a"), bracket("inner"), wait)]
        )
        server = await serve(app, handler_cancellation=True)
        raw = await server.connect("GET / HTTP/1.1\nHost: x\n\n")
        await entered.wait()
        await raw.close()
        await asyncio.wait_for(over.wait(), 10)
        assert closed == ["inner", "outer"]
        assert tracer.trace == ["enter a"]


class TestMisuse:
    @pytest.mark.parametrize("build", [interceptor_middleware, intercept, as_handler])
    @pytest.mark.parametrize("wrong", ["text", 42, {"enter": None}, Interceptor, object()])
    def test_a_value_that_is_not_an_interceptor_is_a_type_error(self, build, wrong):
        with pytest.raises(TypeError, match="interceptor"):
            build(wrong)

    def test_intercept_without_parentheses_is_explained(self, tracer):
        with pytest.raises(TypeError, match="takes interceptors and then decorates a handler; it got <function"):
            intercept(tracer.handler())

    @pytest.mark.parametrize("wrong", [None, 42, Tracer, before, start_event_stream])
    def test_intercept_decorates_handlers_only(self, tracer, wrong):
        with pytest.raises(
            TypeError, match=r"decorates a handler, such as an async function or a web\.View class, not"
        ):
            intercept(tracer("a"))(wrong)

    @pytest.mark.parametrize("nothing", [(), (None,)])
    def test_as_handler_needs_an_interceptor(self, nothing):
        with pytest.raises(TypeError, match="as_handler takes at least one interceptor"):
            as_handler(*nothing)

    async def test_a_middleware_can_serve_two_applications(self, serve, session, tracer):
        middleware = interceptor_middleware(tracer("a"))
        for _ in range(2):
            app = web.Application(middlewares=[middleware])
            assert (await get(serve, session, app))[0] == 404
        assert tracer.trace == ["enter a", "leave a"] * 2
