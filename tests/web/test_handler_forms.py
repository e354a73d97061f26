"""Every form of handler that aiohttp accepts works with interceptors; every other one is refused when it is built."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
import types

import pytest
from aiohttp import web
from aiohttp.abc import AbstractView

from aiohttp_interceptors import (
    Interceptor,
    as_handler,
    before,
    event_stream,
    intercept,
    interceptor_middleware,
    start_event_stream,
)

GET = "GET / HTTP/1.1\nHost: x\nConnection: close\n\n"


async def function(request):
    return web.Response(text=request.path)


async def with_options(prefix, request, *, suffix=""):
    return web.Response(text=f"{prefix}{request.path}{suffix}")


class Callable:
    async def __call__(self, request):
        return web.Response(text=request.path)


class BareCallable:
    def __call__(self, request):
        return function(request)


class Methods:
    async def bound(self, request):
        return web.Response(text=request.path)

    @classmethod
    async def of_class(cls, request):
        return web.Response(text=request.path)

    @staticmethod
    async def static(request):
        return web.Response(text=request.path)


class View(web.View):
    async def get(self):
        return web.Response(text=self.request.path)


class OwnView(AbstractView):
    def __await__(self):
        return function(self.request).__await__()


@types.coroutine
def generator_based(request):
    yield from asyncio.sleep(0).__await__()
    return web.Response(text=request.path)


def decorated(handler):
    @functools.wraps(handler)
    def wrapper(request):
        return handler(request)

    return wrapper


ASYNC = {
    "async function": function,
    "partial": functools.partial(with_options, ""),
    "partial of a partial": functools.partial(functools.partial(with_options, ""), suffix=""),
    "object with async __call__": Callable(),
    "partial of an object": functools.partial(Callable()),
    "bound method": Methods().bound,
    "class method": Methods.of_class,
    "static method": Methods.static,
    "generator-based coroutine": generator_based,
    "web.View": View,
    "AbstractView": OwnView,
    "an event stream": event_stream(lambda channel, context: channel.close()),
    "another chain": as_handler(function),
}
if sys.version_info >= (3, 12):
    ASYNC["marked function"] = inspect.markcoroutinefunction(lambda request: function(request))
BARE = {
    "lambda that returns a coroutine": lambda request: function(request),
    "plain function that returns a response": lambda request: web.Response(text=request.path),
    "undecorated wrapper": decorated(function),
    "object with plain __call__": BareCallable(),
    "partial of a plain function": functools.partial(lambda request: function(request)),
}
TRACE: list[str] = []


def traced(name="trace"):
    return Interceptor(name, lambda context: TRACE.append("enter"), lambda context: TRACE.append("leave"))


BUILDERS = {
    "intercept": lambda form: intercept(traced())(form),
    "intercept within a chain": lambda form: intercept()(intercept(traced())(form)),
    "as_handler": lambda form: as_handler(traced(), form),
    "as_handler of intercept": lambda form: as_handler(intercept(traced())(form)),
}


@pytest.fixture(autouse=True)
def _trace():
    TRACE.clear()


def application(handler, middlewares=()):
    app = web.Application(middlewares=middlewares)
    app.add_routes([web.route("*", "/", handler)])
    return app


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
@pytest.mark.parametrize("form", ASYNC.values(), ids=ASYNC)
async def test_every_form_that_aiohttp_awaits_is_a_handler(serve, build, form):
    answer = await (await serve(application(build(form)))).exchange(GET)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert TRACE == ["enter", "leave"]


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
@pytest.mark.parametrize("form", BARE.values(), ids=BARE)
async def test_a_bare_function_works_with_the_warning_of_aiohttp(serve, build, form):
    with pytest.warns(DeprecationWarning, match="^Bare functions are deprecated, use async ones") as caught:
        handler = build(form)
    assert {warning.filename for warning in caught} == {__file__}
    answer = await (await serve(application(handler))).exchange(GET)
    assert answer.endswith(b"\r\n\r\n/")
    assert TRACE == ["enter", "leave"]


@pytest.mark.filterwarnings("ignore:Bare:DeprecationWarning")  # aiohttp's own
@pytest.mark.parametrize("form", (ASYNC | BARE).values(), ids=ASYNC | BARE)
async def test_every_form_works_with_the_middleware(serve, form):
    answer = await (await serve(application(form, [interceptor_middleware(traced())]))).exchange(GET)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert TRACE == ["enter", "leave"]


@pytest.mark.parametrize("kind", [staticmethod, classmethod])
async def test_intercept_works_above_and_below_staticmethod_and_classmethod(serve, kind):
    async def handler(*args):
        return web.Response(text=args[-1].path)

    class Above:
        get = intercept(traced())(kind(handler))

    class Below:
        get = kind(intercept(traced())(handler))

    for get in (Above.get, Above().get, Below.get, Below().get):
        TRACE.clear()
        assert (await (await serve(application(get))).exchange(GET)).endswith(b"\r\n\r\n/")
        assert TRACE == ["enter", "leave"]


async def test_intercept_works_below_the_decorator_of_a_route_table(serve):
    routes = web.RouteTableDef()

    @routes.get("/")
    @intercept(traced())
    async def get(request):
        return web.Response(text=request.path)

    @routes.view("/view")
    @intercept(traced())
    class Page(web.View):
        async def get(self):
            return web.Response(text=self.request.path)

    app = web.Application()
    app.add_routes(routes)
    server = await serve(app)
    assert (await server.exchange(GET)).endswith(b"\r\n\r\n/")
    assert (await server.exchange(GET.replace(" / ", " /view "))).endswith(b"\r\n\r\n/view")
    assert TRACE == ["enter", "leave"] * 2


async def test_a_view_at_the_end_of_as_handler_responds_with_405(serve):
    answer = await (await serve(application(as_handler(traced(), View)))).exchange(GET.replace("GET", "POST"))
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert TRACE == ["enter", "leave"]


async def test_a_handler_gets_the_request_that_a_stage_set(serve):
    @before
    def rewrite(context):
        context.request = context.request.clone(rel_url="/other")

    for handler in (intercept(rewrite)(function), as_handler(rewrite, function)):
        assert (await (await serve(application(handler))).exchange(GET)).endswith(b"\r\n\r\n/other")


def bare_generator(request):
    yield


async def async_generator(request):
    yield


class GeneratorCallable:
    def __call__(self, request):
        yield


@pytest.mark.parametrize(
    "form",
    [
        bare_generator, async_generator, GeneratorCallable(), functools.partial(bare_generator), web.Response, Callable,
        functools.partial(View), functools.partialmethod(function), 42, "handler", start_event_stream,
        functools.partial(start_event_stream), before, intercept(traced()),
    ],
)  # fmt: skip
def test_a_form_that_would_fail_at_every_request_is_refused_when_it_is_built(form):
    with pytest.raises(TypeError):
        intercept(traced())(form)
    with pytest.raises(TypeError):
        as_handler(traced(), form)
    with pytest.raises(TypeError):
        as_handler(form)


@pytest.mark.parametrize(
    ("form", "name"),
    [
        (functools.partial(with_options, ""), "with_options"),
        (Callable(), "Callable"),
        (function, "function"),
        (View, "View"),
        (Methods().bound, "bound"),
    ],
)
def test_a_handler_keeps_the_name_of_its_function_or_class(form, name):
    assert repr(web.route("GET", "/", intercept(traced())(form))) == f"<RouteDef GET / -> {name!r}>"
    assert as_handler(traced(), form).__name__ == name


def test_a_callable_object_with_stages_is_an_interceptor():
    class Both:
        def enter(self, context):
            pass

        async def __call__(self, request):
            raise AssertionError

    assert as_handler(Both()).__name__ == "Both"
