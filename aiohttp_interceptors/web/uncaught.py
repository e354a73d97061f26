"""What a client gets, and a log, for an exception that no other interceptor handled."""

from __future__ import annotations

import traceback
from collections.abc import Callable

from aiohttp import web

from ..chain.interceptor import Interceptor
from ..observe.logs import log
from .context import RequestContext

__all__ = ["uncaught_exception"]


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
