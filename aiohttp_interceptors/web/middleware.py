"""Three ways to put interceptors around a request; together they are one chain with one context."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeAlias, TypeVar, cast

from aiohttp import web
from aiohttp.typedefs import Middleware

from ..chain.chain import Chain
from ..chain.execute import drive
from ..chain.execution import Execution
from ..chain.interceptor import InterceptorLike, interceptors_of
from .commit import contexts
from .context import RequestContext

__all__ = ["Handler", "as_handler", "intercept", "interceptor_middleware"]

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]
H = TypeVar("H")


def interceptor_middleware(*interceptors: InterceptorLike[RequestContext]) -> Middleware:
    """Make the middleware that runs these for every request of an application, also for 404 and 405.

    ``app.middlewares.append(interceptor_middleware(a, b))``; ``None`` among them is skipped.
    Raises ``TypeError`` for what is not an interceptor.
    """
    return web.middleware(functools.partial(_run, Chain(interceptors_of(interceptors))))


def intercept(*interceptors: InterceptorLike[RequestContext]) -> Callable[[H], H]:
    """Run these around one handler: an ``async`` function, a method, or a ``web.View`` class.

    They run inside those of the applications. Raises ``TypeError`` for what is not an interceptor or not a handler.
    """
    for candidate in interceptors:
        if inspect.isfunction(candidate) or inspect.isclass(candidate):
            raise TypeError(f"@intercept(…) takes interceptors and then decorates a handler; it got {candidate!r}")
    chain = Chain(interceptors_of(interceptors))

    def decorate(handler: H) -> H:
        if inspect.isclass(handler) and issubclass(handler, web.View):
            return cast("H", _intercepted_view(chain, handler))
        if not inspect.iscoroutinefunction(handler):
            raise TypeError(f"@intercept(…) decorates an async function or a web.View class, not {handler!r}")

        @functools.wraps(handler)
        async def intercepted(*args: Any) -> web.StreamResponse:
            request = args[-1].request if isinstance(args[-1], web.View) else args[-1]

            async def call(_: web.Request) -> web.StreamResponse:
                return cast("web.StreamResponse", await handler(*args))

            call.__name__ = handler.__name__
            return await _run(chain, request, call)

        return cast("H", intercepted)

    return decorate


def _intercepted_view(chain: Chain, view: type[web.View]) -> type[web.View]:
    """Make the subclass of a view whose requests take the chain."""

    class Intercepted(view):  # type: ignore[misc, valid-type]  # its base is known at run time only
        def __await__(self) -> Generator[Any, None, web.StreamResponse]:
            @types.coroutine
            def call(_: web.Request) -> Generator[Any, None, web.StreamResponse]:
                answer: web.StreamResponse = yield from super(Intercepted, self).__await__()
                return answer

            call.__name__ = view.__name__
            return _run(chain, self.request, call).__await__()

    functools.update_wrapper(Intercepted, view, updated=())
    return Intercepted


def as_handler(*interceptors: InterceptorLike[RequestContext] | Handler) -> Handler:
    """Make a route's handler of a chain in which some interceptor attaches the response.

    ``app.router.add_get("/", as_handler(auth, page))``; the last one may be an aiohttp handler. Without a response at
    the end, ``NoResponse`` is raised to aiohttp, which answers 500. Raises ``TypeError`` for what is no interceptor.
    """
    *links, last = interceptors or (None,)
    handler = cast("Handler", last) if inspect.iscoroutinefunction(last) else None
    chain = Chain(interceptors_of(links if handler is not None else interceptors))
    if not chain.steps and handler is None:
        raise TypeError("as_handler takes at least one interceptor")

    async def chain_handler(request: web.Request) -> web.StreamResponse:
        return await _run(chain, request, handler)

    chain_handler.__name__ = chain_handler.__qualname__ = getattr(handler, "__name__", None) or chain.steps[-1].name
    return chain_handler


def _run(chain: Chain, request: web.Request, handler: Handler | None) -> Awaitable[web.StreamResponse]:
    """Run a chain around a handler, in the context that the request has already or in a new one.

    The request gets its context when the coroutine starts: one that never starts leaves nothing behind.
    """
    context = RequestContext(request)
    if context._writer in contexts:
        return _run_inside(chain, request, handler)
    return drive(Execution(context, chain), handler, RequestContext.conclude)


async def _run_inside(chain: Chain, request: web.Request, handler: Handler | None) -> web.StreamResponse:
    """Run a chain as the inner part of the one that the request is in."""
    outer = contexts.get(request.writer)
    if outer is None:  # it ended before this began
        return await _run(chain, request, handler)
    asked = outer.request
    outer.request = request  # a middleware in between may have cloned it
    try:
        await drive(Execution(outer, chain), handler)
    finally:
        outer.request = asked
    return outer.conclude()
