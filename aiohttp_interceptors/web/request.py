"""What a stream reads of a request (``Accept``, ``Last-Event-ID``, the body), and the responses that refuse it."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Mapping
from typing import cast

from aiohttp import StreamReader, web
from aiohttp.http import HttpProcessingError

__all__ = [
    "StopReconnecting",
    "accepts_event_stream",
    "combined_header",
    "has_json_body",
    "invalid_value",
    "is_event_source_request",
    "last_event_id_of",
    "not_acceptable",
    "read_body",
    "route_of",
    "server_stopping",
    "too_many_streams",
    "wants_event_stream",
]


# Seconds over which clients that were refused for a limit are asked to retry: enough to spread them, and a short wait.
RETRY_WINDOW = 10.0

# Media ranges that include an event stream, and how specific each is.
_SPECIFICITY = {"text/event-stream": 3, "text/*": 2, "*/*": 1}


# What a request is for.


def route_of(request: web.Request) -> str:
    """Return the path of a request's route with its parameters, such as ``"/rooms/{room}"``; ``""`` without a route.

    Unlike the path of the request it has few values, so that it can be a label.
    """
    route = getattr(request.match_info, "route", None)  # an application's own router may have none
    canonical = getattr(getattr(route, "resource", None), "canonical", "")
    return canonical if isinstance(canonical, str) else ""  # that of a mocked request is a mock


def combined_header(request: web.BaseRequest, name: str) -> str | None:
    """Return the value of a header, whose lines are joined (RFC 9110, 5.3)."""
    lines = request.headers.getall(name, [])
    return ",".join(lines) if lines else None


# The Accept header and the kind of client.


def accepts_event_stream(accept: str | None) -> bool:
    """Return whether an ``Accept`` header allows ``text/event-stream``. A request without one accepts everything.

    The most specific range that matches decides, and a weight of 0 excludes. Source: RFC 9110, 12.5.1.
    """
    if accept is None or not accept.strip():
        return True
    specificity, accepted = 0, False
    for part in accept.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        found = _SPECIFICITY.get(name, 0)
        if found > specificity:
            specificity, accepted = found, _weight(parameters) > 0
    return accepted


def _weight(parameters: list[str]) -> float:
    """Return the value of ``q``; 1 if it is missing or not a number."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 1.0
    return 1.0


async def wants_event_stream(request: web.Request) -> bool:
    """Return whether a client asks for an event stream, from a route that can also answer with JSON.

    ``"stream": true`` or ``false`` in a JSON body decides, as for chat completions. Without it, the ``Accept`` header
    decides: it must name ``text/event-stream``, and not prefer ``application/json``.

    The body is read, and ``read``, ``text`` and ``json`` still return it. If this is cancelled while the body arrives,
    what was read is lost.

    Args:
        request: The request.

    Raises:
        web.HTTPException: The body is larger than the application's ``client_max_size``.
    """
    if has_json_body(request):
        try:
            body = await request.json()
        except (ValueError, LookupError, RecursionError):  # no JSON, or an unknown charset: the handler refuses it
            body = None
        if isinstance(body, dict) and isinstance(body.get("stream"), bool):
            return cast("bool", body["stream"])
    weights = {"text/event-stream": 0.0, "application/json": 0.0}
    for line in request.headers.getall("Accept", []):
        for part in line.lower().split(","):
            name, *parameters = (piece.strip() for piece in part.split(";"))
            if name in weights:
                weights[name] = _weight(parameters)
    return weights["text/event-stream"] > 0 and weights["text/event-stream"] >= weights["application/json"]


def has_json_body(request: web.Request) -> bool:
    """Return whether a request has a body of JSON, even if it was read before."""
    return request.body_exists and request.content_type.endswith("json")


def is_event_source_request(headers: Mapping[str, str]) -> bool:
    """Return whether a request comes from an ``EventSource``, which parses a stream as the standard specifies.

    Such a request has the cache mode ``no-store``, for which the Fetch standard sends ``Pragma`` and ``Cache-Control``.
    Proxies may drop ``Pragma``. Requests of ``fetch``, and of libraries that send only some of these headers, may be
    parsed differently. Source: WHATWG HTML 9.2.2, WHATWG Fetch 4.5.
    """
    if headers.get("Accept") != "text/event-stream" or "no-cache" not in headers.get("Cache-Control", ""):
        return False
    return (
        headers.get("Pragma") == "no-cache"
        or "Sec-Fetch-Mode" in headers
        or headers.get("User-Agent", "").startswith("Mozilla/")
    )


# The Last-Event-ID header.


def last_event_id_of(request: web.BaseRequest) -> str | None:
    """Return the ID of the last event that a client received, as it was sent, or ``None``.

    It is the first of these that is not empty: the header ``Last-Event-ID``, which browsers send when they reconnect;
    the query parameter ``lastEventId``, in any case, which polyfills append that cannot send the header; and the query
    parameter ``last_event_id``, which a page sets for its first connection. Of several values the last one counts,
    because a polyfill appends its own to the URL of the page. Source of the header: WHATWG HTML 9.2.4.
    """
    header = request.headers.get("Last-Event-ID")
    if header or not request.query_string:
        return header or None
    from_polyfill = from_page = None
    for name, value in request.query.items():
        if value and name == "last_event_id":
            from_page = value
        elif value and name.lower() == "lasteventid":
            from_polyfill = value
    return from_polyfill or from_page


# The body.


async def read_body(request: web.Request, read_timeout: float | None, max_size: int | None = None) -> None:
    """Read the body to its end, and restore it so that the request's own methods still return it.

    aiohttp detects a disconnect only after the request was read to its end. Afterwards ``read``, ``text``, ``json``,
    ``post``, ``multipart`` and ``content`` return what was sent.

    Raises the response to a client that sends nothing for ``read_timeout`` seconds (408), more than ``client_max_size``
    or ``max_size`` bytes (413), or a malformed body (400). If cancelled, the bytes that were read are lost.
    """
    if not request.can_read_body:
        return
    content = request.content
    limits = [limit for limit in (request.client_max_size, max_size) if limit]
    try:
        body = await _read_all(content, min(limits, default=0), read_timeout)
    except TimeoutError:
        raise _body_timeout() from None
    except (web.RequestPayloadError, HttpProcessingError):  # the latter from aiohttp's parser in Python
        content.feed_eof()  # or aiohttp would read on after the response, and log the error
        raise _malformed_body() from None
    except OSError:  # the client disconnected and reads no response
        raise _body_timeout() from None
    _restore_body(content, request, body)
    _restore_body(content, request, await request.read())  # cached there; the memory is shared


async def _read_all(content: StreamReader, limit: int, read_timeout: float | None) -> bytes:
    """Read to the end. ``limit`` is in bytes, 0 for none; ``read_timeout`` is in seconds, for each piece."""
    body = bytearray()
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(read_timeout) as timeout:
        while piece := await content.readany():
            body += piece
            if 0 < limit < len(body):
                raise _body_too_large(len(body), limit)
            if read_timeout is not None:
                timeout.reschedule(loop.time() + read_timeout)
    return bytes(body)


def _restore_body(content: StreamReader, request: web.Request, body: bytes) -> None:
    """Reset the request's reader to one that has received this body and its end.

    aiohttp has no other public way: a clone of the request has the same reader, and ``unread_data`` is deprecated.
    """
    low, _ = content.get_read_buffer_limits()
    limit = max(low, len(body))  # a body above the limit would pause reading
    StreamReader.__init__(content, request.protocol, limit, loop=asyncio.get_running_loop())
    content.feed_data(body)
    content.feed_eof()


# Responses that refuse a request.


class StopReconnecting(web.HTTPNoContent):
    """A 204 response, which stops a browser's ``EventSource`` from reconnecting.

    Raise it in an interceptor before the stream is opened. Source: WHATWG HTML 9.2.3.
    """


def server_stopping(spread: float) -> web.HTTPException:
    """Make the 503 response of a server that stops. Clients retry within ``spread`` seconds."""
    return web.HTTPServiceUnavailable(headers=_retry_after(spread), text="The server is stopping.\n")


def too_many_streams(*, per_key: bool) -> web.HTTPException:
    """Make the response to a request above a limit: 429 for that of its client, 503 for that of the application."""
    if per_key:
        return web.HTTPTooManyRequests(headers=_retry_after(RETRY_WINDOW), text="You have too many streams open.\n")
    return web.HTTPServiceUnavailable(headers=_retry_after(RETRY_WINDOW), text="There are too many streams.\n")


def not_acceptable() -> web.HTTPException:
    """Make the 406 response to a client that does not accept event streams."""
    return web.HTTPNotAcceptable(text="This is an event stream (text/event-stream).\n")


def invalid_value(what: str) -> web.HTTPException:
    """Make the 400 response to a request of which the application made an invalid topic, owner or identity."""
    return web.HTTPBadRequest(text=f"The {what} of this request is not valid.\n")


def _body_timeout() -> web.HTTPException:
    return web.HTTPRequestTimeout(text="The request's body did not arrive in time.\n")


def _body_too_large(size: int, limit: int) -> web.HTTPException:
    return web.HTTPRequestEntityTooLarge(max_size=limit, actual_size=size)


def _malformed_body() -> web.HTTPException:
    """Make the 400 response to a body that contradicts its headers. The connection closes after it."""
    refusal = web.HTTPBadRequest(text="The request's body cannot be read.\n")
    refusal.force_close()
    return refusal


def _retry_after(window: float) -> dict[str, str]:
    """Choose a random number of seconds, so that clients do not all retry at once (RFC 9110, 10.2.3)."""
    return {"Retry-After": str(random.randint(1, max(1, math.ceil(window))))}  # noqa: S311  # not a secret
