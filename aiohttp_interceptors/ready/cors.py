"""``cors``: which pages of other origins may read a response. Source: the Fetch standard, 3.2 (CORS protocol)."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeAlias

from aiohttp import hdrs, web

from .._checks import check_count
from ..interceptor import Interceptor
from ..web.context import RequestContext
from ._fields import check_flag, check_origins, tokens

__all__ = ["Origins", "cors"]


Origins: TypeAlias = str | Iterable[str] | Callable[[RequestContext, str], bool | Awaitable[bool]]
"""``"*"``, a list of origins, or a plain or async function of the context and the origin."""

METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
HEADERS = ("Authorization", "Content-Type")
LAST_EVENT_ID = "Last-Event-ID"


def cors(
    origins: Origins,
    *,
    methods: Iterable[str] = METHODS,
    headers: Iterable[str] = HEADERS,
    expose: Iterable[str] = (),
    credentials: bool = False,
    max_age: int = 600,
) -> Interceptor[RequestContext]:
    """Make an interceptor that lets pages of some origins read the responses, streams included.

    A preflight request is answered with 204, or with 403 for an origin that is not allowed. In
    ``interceptor_middleware`` that needs no route, because aiohttp's middlewares also run where no method matched. For
    a single handler, add a route for OPTIONS too: ``app.router.add_route("*", …)``.

    Other requests of an origin that is not allowed pass without the headers, so that the browser withholds the response
    from the page. This does not keep a request from having an effect; ``csrf`` does.

    The headers are staged on the way in, so that streams, redirects and errors have them. An exception that leaves the
    chain becomes a response of aiohttp, without them: put ``uncaught_exception`` or ``problem_details`` into the chain.

    Source: the Fetch standard, 3.2.

    Args:
        origins: The origins that are allowed, such as ``["https://example.com"]``; ``"*"`` for all; or a plain or async
            function ``origins(context, origin)``. A function also gets ``"null"``, the origin of sandboxed documents
            and of files.
        methods: The methods that a preflight request allows.
        headers: The request headers that a preflight request allows. ``Last-Event-ID`` is always allowed, so that a
            client other than ``EventSource`` can resume a stream.
        expose: The response headers that a page may read beside the safelisted ones.
        credentials: Whether requests may have cookies or HTTP authentication. Not together with ``"*"``.
        max_age: Seconds for which a browser may remember the answer to a preflight request.

    Returns:
        The interceptor.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An origin is not written as browsers send it, a method or header is not a token, ``max_age`` is
            negative, or ``credentials`` are allowed for all origins.
    """
    is_allowed = _checked_origins(origins)
    for_all = is_allowed is None
    check_flag("credentials", credentials)
    if for_all and credentials:
        raise ValueError("credentials are never for all origins: list the origins, or give a function, instead of '*'")
    check_count("max_age", max_age, 0)
    allowed_methods = ", ".join(tokens("methods", methods))
    allowed_headers = ", ".join(dict.fromkeys([*tokens("headers", headers), LAST_EVENT_ID]))
    exposed = ", ".join(tokens("expose", expose))

    preflight_headers = {
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: allowed_methods,
        hdrs.ACCESS_CONTROL_ALLOW_HEADERS: allowed_headers,
        hdrs.ACCESS_CONTROL_MAX_AGE: str(max_age),
    }

    async def enter(context: RequestContext) -> None:
        staged, origin = context.response_headers, context.request.headers.get(hdrs.ORIGIN)
        if not for_all:
            staged.add(hdrs.VARY, hdrs.ORIGIN)
        if origin is None:
            return
        is_preflight = _is_preflight(context.request)
        # Of what is not printable ASCII a function is not asked: no browser sends it, and it cannot be sent back.
        is_origin = origin.isascii() and origin.isprintable()
        if is_allowed is not None and not (is_origin and await is_allowed(context, origin)):
            if is_preflight:
                raise web.HTTPForbidden(text="This origin is not allowed.\n")
            return
        staged[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = "*" if for_all else origin
        if credentials:
            staged[hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS] = "true"
        if is_preflight:
            staged.update(preflight_headers)
            context.response = web.Response(status=204)
        elif exposed:
            staged[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = exposed

    return Interceptor("cors", enter)


def _is_preflight(request: web.Request) -> bool:
    return request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers


def _checked_origins(origins: Origins) -> Callable[[RequestContext, str], Awaitable[bool]] | None:
    """Return an async function that decides about an origin, or ``None`` if all of them are allowed."""
    if callable(origins):
        decide = origins

        async def ask(context: RequestContext, origin: str) -> bool:
            answer = decide(context, origin)
            return bool(await answer if inspect.isawaitable(answer) else answer)

        return ask
    if origins == "*":
        return None
    listed = check_origins(origins)
    if not listed:
        raise ValueError("origins has no origin; without cors() no page of another origin can read a response")

    async def is_listed(_: RequestContext, origin: str) -> bool:
        return origin in listed

    return is_listed
