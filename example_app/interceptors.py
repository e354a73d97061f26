"""Interceptors for logging, timing and security headers, and one with a deliberate mistake."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import structlog
from aiohttp import web

from aiohttp_interceptors import ContextKey, RequestContext, after, around, before

from .streams import WHOLE_SEED

__all__ = ["content_security", "late_cookie", "local_name", "request_log", "same_origin", "timing"]

SECONDS = ContextKey[float]("seconds")

log = structlog.get_logger("example_app")


@after
def request_log(context: RequestContext) -> None:
    """Log one line per request. The leave stage of a stream runs when the stream has ended."""
    request, response, seconds = context.request, context.response, context[SECONDS]
    log.info(
        "request",
        method=request.method,
        path=request.path,
        status=response and response.status,
        seconds=round(seconds, 3),
    )


@around
async def timing(context: RequestContext) -> AsyncIterator[None]:
    """Measure the duration of the request, and send it as ``Server-Timing`` for the browser's network panel."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds = context[SECONDS] = time.perf_counter() - started
        if not context.committed:  # the headers of a stream were already sent
            context.response_headers["Server-Timing"] = f"app;dur={seconds * 1000:.1f}"


@before
def content_security(context: RequestContext) -> None:
    """Set a content security policy. It is set on the way in, so that it is also sent with streams."""
    context.response_headers["Content-Security-Policy"] = "default-src 'self'; base-uri 'none'; frame-ancestors 'none'"


@before
def same_origin(context: RequestContext) -> None:
    """Refuse cross-site requests (CSRF). Browsers send ``Sec-Fetch-Site``; other clients are not affected."""
    if context.request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
        raise web.HTTPForbidden


@before
def local_name(context: RequestContext) -> None:
    """Refuse a request that was sent to another name. This stands for the authentication of operators.

    The server listens on this machine only. A page of another site could still reach it by a name of its own that
    resolves to this machine (DNS rebinding).
    """
    if context.request.url.host not in {"127.0.0.1", "localhost", "::1"}:
        raise web.HTTPForbidden


@after
def late_cookie(context: RequestContext) -> None:
    """Set a cookie after the seed was sent. This is a mistake, since the headers were sent before the first event.

    aiohttp alone would accept the cookie and never send it. Here ``change_after_commit_dropped`` is logged, with this
    line in the traceback, and the stream is not affected.
    """
    if context.response is not None and context.get(WHOLE_SEED):
        context.response.set_cookie("seed", "seen")
