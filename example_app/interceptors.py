"""What surrounds the requests: their log line, their time, a header for all of them, and one deliberate mistake."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import structlog
from aiohttp import web

from aiohttp_interceptors import ContextKey, RequestContext, after, around, before

from .streams import WHOLE_SEED

__all__ = ["content_security", "late_cookie", "request_log", "same_origin", "timing"]

SECONDS = ContextKey[float]("seconds")

log = structlog.get_logger("example_app")


@after
def request_log(context: RequestContext) -> None:
    """Log one line per request. The chain pauses while a stream is open, so for a stream that is at its end."""
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
    """Measure the request and tell the browser, in whose network panel it shows."""
    began = time.perf_counter()
    try:
        yield
    finally:  # also for a request that failed
        seconds = context[SECONDS] = time.perf_counter() - began
        if not context.committed:  # the head of a stream went out long ago
            context.response_headers["Server-Timing"] = f"app;dur={seconds * 1000:.1f}"


@before
def content_security(context: RequestContext) -> None:
    """Allow the page nothing but its own server. Staged on the way in, so that it reaches streams too."""
    context.response_headers["Content-Security-Policy"] = "default-src 'self'; base-uri 'none'; frame-ancestors 'none'"


@before
def same_origin(context: RequestContext) -> None:
    """Refuse what a page of another site asks for behind its visitor's back. A browser tells; who is none need not."""
    if context.request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
        raise web.HTTPForbidden


@after
def late_cookie(context: RequestContext) -> None:
    """Try to note in a cookie that the page got the whole seed, which is a mistake: the head left before the seed.

    aiohttp alone would take the cookie and lose it in silence. Here the log has ``change_after_commit_dropped``, with
    this line in its traceback, and the stream is none the worse for it.
    """
    if context.response is not None and context.get(WHOLE_SEED):
        context.response.set_cookie("seed", "seen")
