"""Run interceptors around aiohttp handlers: for an application, around one handler, or as a handler.

Chains of one request are nested: they share one ``RequestContext`` and behave as one chain.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
import traceback
import types
import warnings
from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeAlias, TypeGuard, TypeVar, cast

from aiohttp import web
from aiohttp.abc import AbstractView
from aiohttp.typedefs import Middleware

from .._checks import unwrap_partial
from .._logging import log
from ..chain import Chain, Execution, compile_chain, run_execution
from ..interceptor import STAGES, Interceptor, InterceptorLike, interceptors_of
from .context import RequestContext, contexts

__all__ = ["Handler", "as_handler", "intercept", "interceptor_middleware", "run_chain", "uncaught_exception"]


Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]
H = TypeVar("H")
_PACKAGE = f"{__name__.partition('.')[0]}."


def interceptor_middleware(*interceptors: InterceptorLike[RequestContext]) -> Middleware:
    """Make a middleware that runs interceptors for every request of an application, also for a 404 or 405.

    ``app.middlewares.append(interceptor_middleware(a, b))``

    Args:
        *interceptors: The interceptors, outermost first. ``None`` is skipped.

    Returns:
        The middleware. It can serve several applications.

    Raises:
        TypeError: An argument is not an interceptor.
    """
    chain = compile_chain(interceptors_of(interceptors))

    def middleware(request: web.Request, handler: Handler) -> Awaitable[web.StreamResponse]:
        return run_chain(chain, request, handler)

    return web.middleware(middleware)


def intercept(*interceptors: InterceptorLike[RequestContext]) -> Callable[[H], H]:
    """Make a decorator that runs interceptors around one handler.

    It decorates every handler that aiohttp accepts, a ``web.View`` class, or a method of a class or view. A plain
    function works as in aiohttp, with aiohttp's ``DeprecationWarning``. The interceptors run inside those of the
    applications. A decorator that adds a route goes above this one, because ``@routes.get("/")`` adds what is below it.

    Args:
        *interceptors: The interceptors, outermost first. ``None`` is skipped.

    Returns:
        The decorator. It raises ``TypeError`` if what it decorates is not a handler.

    Raises:
        TypeError: An argument is not an interceptor.
    """
    for candidate in interceptors:
        if inspect.isroutine(candidate) or inspect.isclass(candidate):
            raise TypeError(f"@intercept(…) takes interceptors and then decorates a handler; it got {candidate!r}")
    chain = compile_chain(interceptors_of(interceptors))

    def decorate(decorated: H) -> H:
        if isinstance(decorated, staticmethod | classmethod):
            return cast("H", type(decorated)(decorate(decorated.__func__)))
        if _is_view(decorated):
            return cast("H", _intercepted_view(chain, decorated))
        handler = _handler_of(decorated)
        if handler is None:
            raise TypeError(
                f"@intercept(…) decorates a handler, such as an async function or a web.View class, not {decorated!r}"
            )

        @functools.wraps(handler)
        async def intercepted(*args: Any) -> web.StreamResponse:
            *bound, last = args

            async def call(request: web.Request) -> web.StreamResponse:
                return await handler(*bound, last if isinstance(last, AbstractView) else request)

            call.__name__ = intercepted.__name__
            return await run_chain(chain, last.request if isinstance(last, AbstractView) else last, call)

        intercepted.__name__ = _name_of(decorated)
        return cast("H", intercepted)

    return decorate


def _handler_of(candidate: object) -> Callable[..., Awaitable[web.StreamResponse]] | None:
    """Return an async handler, or ``None`` if aiohttp refuses the candidate or cannot run it.

    The forms are those of aiohttp's ``AbstractRoute``: it awaits what is marked as a coroutine function, and wraps
    every other callable.
    """
    function: Any = unwrap_partial(candidate)
    if not callable(function) or inspect.isclass(function):
        return cast("Handler", candidate) if _is_view(candidate) else None
    called = getattr(function, "__call__", None)  # noqa: B004  # that of an object; a function's has no marks
    if any(_is_coroutine_function(form) for form in (candidate, function, called)):
        return cast("Handler", candidate)
    if any(inspect.isgeneratorfunction(form) or inspect.isasyncgenfunction(form) for form in (function, called)):
        return None  # the result cannot be awaited
    if (getattr(function, "__module__", None) or "").startswith(_PACKAGE):
        return None  # such as start_event_stream, passed without being called
    bare = cast("Callable[..., Any]", candidate)

    @functools.wraps(bare)
    async def handler(*args: Any) -> web.StreamResponse:
        result = bare(*args)
        return cast("web.StreamResponse", await result if inspect.isawaitable(result) else result)

    handler.__name__ = _name_of(candidate)
    warnings.warn(f"Bare functions are deprecated, use async ones: {candidate!r}", DeprecationWarning, stacklevel=3)
    return handler


def _is_view(candidate: object) -> TypeGuard[type[AbstractView]]:
    return inspect.isclass(candidate) and issubclass(candidate, AbstractView)


def _is_coroutine_function(candidate: object) -> bool:
    """Return whether a callable is marked as one that returns an awaitable."""
    if inspect.iscoroutinefunction(candidate):
        return True
    if sys.version_info < (3, 14) and asyncio.iscoroutinefunction(candidate):  # marked by asyncio
        return True
    function = getattr(candidate, "__func__", candidate)
    return inspect.isfunction(function) and bool(function.__code__.co_flags & inspect.CO_ITERABLE_COROUTINE)


def _name_of(handler: object) -> str:
    """Return the name of a handler for logs and errors."""
    function = unwrap_partial(handler)
    return getattr(function, "__name__", None) or type(function).__name__


def _intercepted_view(chain: Chain, view: type[AbstractView]) -> type[AbstractView]:
    """Make a subclass of a view whose requests run through the chain."""

    class Intercepted(view):  # type: ignore[misc, valid-type]  # the base is only known at run time
        def __await__(self) -> Generator[Any, None, web.StreamResponse]:
            @types.coroutine
            def call(_: web.Request) -> Generator[Any, None, web.StreamResponse]:
                response: web.StreamResponse = yield from super(Intercepted, self).__await__()
                return response

            call.__name__ = view.__name__
            return run_chain(chain, self.request, call).__await__()

    functools.update_wrapper(Intercepted, view, updated=())
    return Intercepted


def as_handler(*interceptors: InterceptorLike[RequestContext] | Handler | type[AbstractView]) -> Handler:
    """Make a handler for a route from interceptors, one of which attaches the response.

    ``app.router.add_get("/", as_handler(auth, page))``

    If the chain ends without a response, the handler raises ``NoResponse``, and aiohttp responds with 500.

    Args:
        *interceptors: The interceptors, outermost first. ``None`` is skipped. The last one may be any handler that
            aiohttp accepts, or a ``web.View`` class. An object with stages is an interceptor, even if it is callable.

    Returns:
        The handler, with the name of the last argument.

    Raises:
        TypeError: An argument is not an interceptor and not a handler, or there is none.
    """
    *links, last = interceptors or (None,)
    handler = None if _has_stages(last) else _handler_of(last)
    chain = compile_chain(interceptors_of(links if handler is not None else interceptors))
    if not chain.interceptors and handler is None:
        raise TypeError("as_handler takes at least one interceptor")

    async def chain_handler(request: web.Request) -> web.StreamResponse:
        return await run_chain(chain, request, handler)

    name = chain.interceptors[-1].name if handler is None else _name_of(last)
    chain_handler.__name__ = chain_handler.__qualname__ = name
    return chain_handler


def _has_stages(candidate: object) -> bool:
    return not inspect.isclass(candidate) and any(callable(getattr(candidate, stage, None)) for stage in STAGES)


def run_chain(chain: Chain, request: web.Request, handler: Handler | None) -> Awaitable[web.StreamResponse]:
    """Run a chain around a handler, in the request's context if it has one, or else in a new one.

    The context is registered when the coroutine starts, so that one that never starts leaves nothing behind.
    """
    context = RequestContext(request)
    if context._writer in contexts:
        return _run_nested(chain, request, handler)
    execution = Execution(context, chain)
    if getattr(context._writer, "_eof", False):
        execution.initial_result = context._current_result()  # a middleware further out has responded
    return run_execution(execution, handler, RequestContext._final_response)


async def _run_nested(chain: Chain, request: web.Request, handler: Handler | None) -> web.StreamResponse:
    """Run a chain inside the one that is running for the request, in the same context."""
    context = contexts.get(request.writer)
    if context is None:  # the outer chain ended before this one began
        return await run_chain(chain, request, handler)
    outer_request, outer_response = context.request, context._response
    context.request = request  # a middleware in between may have cloned it
    if outer_response is not None and not context.committed:
        context._response = None  # it is the response of an earlier attempt
    execution = Execution(context, chain)
    execution.initial_result = context._current_result()  # if there is one, it is committed
    try:
        await run_execution(execution, handler)
    except BaseException:
        if context._response is None:
            context._response = outer_response
        raise
    finally:
        context.request = outer_request
    return context._final_response()


def uncaught_exception(
    *, analyze: Callable[[RequestContext, Exception], Exception | None] | None = None, debug: bool = False
) -> Interceptor[RequestContext]:
    """Make an interceptor that logs an unhandled exception and responds with 500, as plain text without details.

    Put it first, so that it handles the exceptions of all other interceptors. After commit it re-raises the exception,
    so that aiohttp logs it and closes the connection.

    Args:
        analyze: A plain function of the context and the exception. It returns the exception to log instead, or ``None``
            to log nothing.
        debug: Whether the response has the traceback and the context's values, readable for any origin. Only for
            development.

    Returns:
        The interceptor.

    Raises:
        TypeError: ``analyze`` cannot be called.
    """
    if analyze is not None and not callable(analyze):
        raise TypeError(f"analyze is a function of the context and the exception, not {analyze!r}")

    def error(context: RequestContext, exception: Exception) -> None:
        if context.committed:
            raise exception
        logged = exception if analyze is None else analyze(context, exception)
        if logged is not None:
            failure = context.error
            log.exception(
                "uncaught_exception",
                interceptor=failure and failure.interceptor,
                stage=failure and failure.stage,
                method=context.request.method,
                path=context.request.path,
                execution_id=context.execution_id,
                exc_info=logged,
            )
        context.response = _debug_response(context, exception) if debug else _plain_response()

    return Interceptor("uncaught_exception", error=error)


def _plain_response() -> web.Response:
    return web.Response(status=500, text="500 Internal Server Error\n")


def _debug_response(context: RequestContext, exception: Exception) -> web.Response:
    values = "\n".join(f"{key!r}: {value!r}" for key, value in context.snapshot().items())
    text = f"{context.error}\n\n{''.join(traceback.format_exception(exception))}\n{context!r}\n{values}\n"
    return web.Response(status=500, text=text, headers={"Access-Control-Allow-Origin": "*"})
