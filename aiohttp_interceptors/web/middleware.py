"""Three ways to put interceptors around a request; together they are one chain with one context."""

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

from .._logging import log
from ..chain import Chain, Execution, drive
from ..interceptor import STAGES, Interceptor, InterceptorLike, interceptors_of, unwrapped
from .commit import contexts
from .context import RequestContext

__all__ = ["Handler", "as_handler", "intercept", "interceptor_middleware", "uncaught_exception"]


Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]
H = TypeVar("H")
_OURS = f"{__name__.partition('.')[0]}."


def interceptor_middleware(*interceptors: InterceptorLike[RequestContext]) -> Middleware:
    """Make the middleware that runs these for every request of an application, also for 404 and 405.

    ``app.middlewares.append(interceptor_middleware(a, b))``; ``None`` among them is skipped.
    Raises ``TypeError`` for what is not an interceptor.
    """
    return web.middleware(functools.partial(_run, Chain(interceptors_of(interceptors))))


def intercept(*interceptors: InterceptorLike[RequestContext]) -> Callable[[H], H]:
    """Run these around one handler: whatever aiohttp takes for one, or a method of a class or of a ``web.View``.

    They run inside those of the applications. A decorator that adds a route stays above it: ``@routes.get("/")`` adds
    what is below. A plain function works as in aiohttp, with aiohttp's ``DeprecationWarning``. Raises ``TypeError`` for
    what is not an interceptor or not a handler.
    """
    for candidate in interceptors:
        if inspect.isroutine(candidate) or inspect.isclass(candidate):
            raise TypeError(f"@intercept(…) takes interceptors and then decorates a handler; it got {candidate!r}")
    chain = Chain(interceptors_of(interceptors))

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
            return await _run(chain, last.request if isinstance(last, AbstractView) else last, call)

        intercepted.__name__ = _name_of(decorated)
        return cast("H", intercepted)

    return decorate


def _handler_of(candidate: object) -> Callable[..., Awaitable[web.StreamResponse]] | None:
    """Return what is awaited for a response when it is called; ``None`` for what aiohttp refuses or cannot run.

    The forms are those of aiohttp's ``AbstractRoute``, which awaits what is marked as a coroutine function and wraps
    everything else that can be called.
    """
    function: Any = unwrapped(candidate)
    if not callable(function) or inspect.isclass(function):
        return cast("Handler", candidate) if _is_view(candidate) else None
    called = getattr(function, "__call__", None)  # noqa: B004  # that of an object; a function's has no marks
    if any(_is_coroutine_function(form) for form in (candidate, function, called)):
        return cast("Handler", candidate)
    if any(inspect.isgeneratorfunction(form) or inspect.isasyncgenfunction(form) for form in (function, called)):
        return None  # what it returns cannot be awaited
    if (getattr(function, "__module__", None) or "").startswith(_OURS):
        return None  # start_event_stream without its parentheses
    bare = cast("Callable[..., Any]", candidate)

    @functools.wraps(bare)
    async def answer(*args: Any) -> web.StreamResponse:
        result = bare(*args)
        return cast("web.StreamResponse", await result if inspect.isawaitable(result) else result)

    answer.__name__ = _name_of(candidate)
    warnings.warn(f"Bare functions are deprecated, use async ones: {candidate!r}", DeprecationWarning, stacklevel=3)
    return answer


def _is_view(candidate: object) -> TypeGuard[type[AbstractView]]:
    return inspect.isclass(candidate) and issubclass(candidate, AbstractView)


def _is_coroutine_function(candidate: object) -> bool:
    """Tell whether what it returns can be awaited, as far as its marks say so."""
    if inspect.iscoroutinefunction(candidate):
        return True
    if sys.version_info < (3, 14) and asyncio.iscoroutinefunction(candidate):  # what asyncio marked
        return True
    function = getattr(candidate, "__func__", candidate)
    return inspect.isfunction(function) and bool(function.__code__.co_flags & inspect.CO_ITERABLE_COROUTINE)


def _name_of(handler: object) -> str:
    """Return the name that logs and errors call a handler by."""
    own = unwrapped(handler)
    return getattr(own, "__name__", None) or type(own).__name__


def _intercepted_view(chain: Chain, view: type[AbstractView]) -> type[AbstractView]:
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


def as_handler(*interceptors: InterceptorLike[RequestContext] | Handler | type[AbstractView]) -> Handler:
    """Make a route's handler of a chain in which some interceptor attaches the response.

    ``app.router.add_get("/", as_handler(auth, page))``; the last one may be whatever aiohttp takes for a handler, a
    ``web.View`` class too. An object with stages is an interceptor, also one that can be called. Without a response at
    the end, ``NoResponse`` is raised to aiohttp, which answers 500. Raises ``TypeError`` for what is neither.
    """
    *links, last = interceptors or (None,)
    handler = None if _has_stages(last) else _handler_of(last)
    chain = Chain(interceptors_of(links if handler is not None else interceptors))
    if not chain.steps and handler is None:
        raise TypeError("as_handler takes at least one interceptor")

    async def chain_handler(request: web.Request) -> web.StreamResponse:
        return await _run(chain, request, handler)

    name = chain.steps[-1].name if handler is None else _name_of(last)
    chain_handler.__name__ = chain_handler.__qualname__ = name
    return chain_handler


def _has_stages(candidate: object) -> bool:
    return not inspect.isclass(candidate) and any(callable(getattr(candidate, stage, None)) for stage in STAGES)


def _run(chain: Chain, request: web.Request, handler: Handler | None) -> Awaitable[web.StreamResponse]:
    """Run a chain around a handler, in the context that the request has already or in a new one.

    The request gets its context when the coroutine starts: one that never starts leaves nothing behind.
    """
    context = RequestContext(request)
    if context._writer in contexts:
        return _run_inside(chain, request, handler)
    execution = Execution(context, chain)
    if getattr(context._writer, "_eof", False):
        execution.completed_before = context._completion()  # a middleware further out has answered already
    return drive(execution, handler, RequestContext.conclude)


async def _run_inside(chain: Chain, request: web.Request, handler: Handler | None) -> web.StreamResponse:
    """Run a chain as the inner part of the one that the request is in."""
    outer = contexts.get(request.writer)
    if outer is None:  # it ended before this began
        return await _run(chain, request, handler)
    asked, attached = outer.request, outer._response
    outer.request = request  # a middleware in between may have cloned it
    if attached is not None and not outer.committed:
        outer._response = None  # it is that of an earlier attempt, and says nothing of this one
    execution = Execution(outer, chain)
    execution.completed_before = outer._completion()  # it is committed, if there is any
    try:
        await drive(execution, handler)
    except BaseException:
        if outer._response is None:
            outer._response = attached
        raise
    finally:
        outer.request = asked
    return outer.conclude()


def uncaught_exception(
    *, analyze: Callable[[RequestContext, Exception], Exception | None] | None = None, debug: bool = False
) -> Interceptor[RequestContext]:
    """Make the outermost interceptor: it logs an unhandled exception and answers 500, as plain text without details.

    ``analyze(context, exception)`` gives the exception to log instead, or ``None`` to log nothing. With ``debug`` the
    answer holds the traceback and the context, and any origin may read it: for a developer's machine only. After
    commit it declines, so that aiohttp logs the exception and closes the connection.
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
        context.response = _in_full(context, exception) if debug else _without_details()

    return Interceptor("uncaught_exception", error=error)


def _without_details() -> web.Response:
    return web.Response(status=500, text="500 Internal Server Error\n")


def _in_full(context: RequestContext, exception: Exception) -> web.Response:
    values = "\n".join(f"{key!r}: {value!r}" for key, value in context.snapshot().items())
    text = f"{context.error}\n\n{''.join(traceback.format_exception(exception))}\n{context!r}\n{values}\n"
    return web.Response(status=500, text=text, headers={"Access-Control-Allow-Origin": "*"})
