"""The answers to a request that gets no stream."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Mapping

from aiohttp import StreamReader, web
from aiohttp.http import HttpProcessingError

__all__ = [
    "StopReconnecting",
    "accepts_event_stream",
    "is_of_event_source",
    "last_event_id_of",
    "not_acceptable",
    "read_body",
    "stopping",
    "too_large",
    "too_many",
    "too_slow",
    "unreadable",
]


# Seconds in which those who were refused for a limit may come back: long enough to spread them, and none waits long.
WINDOW = 10.0


class StopReconnecting(web.HTTPNoContent):
    """Answer 204, on which a browser's ``EventSource`` stops coming back. Raise it in an interceptor before the stream.

    Source: WHATWG HTML 9.2.3.
    """


def stopping(spread: float) -> web.HTTPException:
    """Make the answer of a server that stops; ``spread`` is in seconds."""
    return web.HTTPServiceUnavailable(headers=_retry_after(spread), text="The server is stopping.\n")


def too_many(*, of_one: bool) -> web.HTTPException:
    """Make the answer to one stream too many, of one client or in all."""
    if of_one:
        return web.HTTPTooManyRequests(headers=_retry_after(WINDOW), text="You have too many streams open.\n")
    return web.HTTPServiceUnavailable(headers=_retry_after(WINDOW), text="There are too many streams.\n")


def not_acceptable() -> web.HTTPException:
    """Make the answer to a client that takes no event stream."""
    return web.HTTPNotAcceptable(text="This is an event stream (text/event-stream).\n")


def too_slow() -> web.HTTPException:
    """Make the answer to a request whose body does not come."""
    return web.HTTPRequestTimeout(text="The request's body did not come.\n")


def too_large(size: int, limit: int) -> web.HTTPException:
    """Make the answer to a request whose body has more than ``limit`` bytes."""
    return web.HTTPRequestEntityTooLarge(max_size=limit, actual_size=size)


def unreadable() -> web.HTTPException:
    """Make the answer to a request whose body is not what its headers say, and close the connection after it."""
    refusal = web.HTTPBadRequest(text="The request's body cannot be read.\n")
    refusal.force_close()
    return refusal


def _retry_after(window: float) -> dict[str, str]:
    """Choose a whole second at random: one value for all would bring them back together (RFC 9110, 10.2.3)."""
    return {"Retry-After": str(random.randint(1, max(1, math.ceil(window))))}  # noqa: S311  # nothing secret


# The media ranges that an event stream is in, and how exactly each names it.
_RANGES = {"text/event-stream": 3, "text/*": 2, "*/*": 1}


def accepts_event_stream(accept: str | None) -> bool:
    """Tell whether an ``Accept`` header admits ``text/event-stream``; without one, everything is admitted.

    The most exact of the ranges that match decides, and a weight of 0 excludes. Source: RFC 9110, 12.5.1.
    """
    if accept is None or not accept.strip():
        return True
    exactness, accepted = 0, False
    for part in accept.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        found = _RANGES.get(name, 0)
        if found > exactness:
            exactness, accepted = found, _weight(parameters) > 0
    return accepted


def is_of_event_source(headers: Mapping[str, str]) -> bool:
    """Tell whether a request with these headers is an ``EventSource``'s, which reads frames as the standard says.

    Such a request has the cache mode ``no-store``, for which the Fetch standard sends ``Pragma`` and
    ``Cache-Control``; a proxy may drop the first. Libraries that copy a part of that, and requests of ``fetch``, read
    frames each in its own way. Source: WHATWG HTML 9.2.2, WHATWG Fetch 4.5.
    """
    if headers.get("Accept") != "text/event-stream" or "no-cache" not in headers.get("Cache-Control", ""):
        return False
    return (
        headers.get("Pragma") == "no-cache"
        or "Sec-Fetch-Mode" in headers
        or headers.get("User-Agent", "").startswith("Mozilla/")
    )


def _weight(parameters: list[str]) -> float:
    """Read ``q``; one that is no number counts as none."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 1.0
    return 1.0


def last_event_id_of(request: web.BaseRequest) -> str | None:
    """Return the id of the last event that a client had, as it was sent, or ``None``.

    It is the first of these that is not empty: the header ``Last-Event-ID``, which browsers send when they reconnect;
    the query's ``lastEventId``, in any case, to which polyfills that cannot send the header append theirs; and the
    query's ``last_event_id``, which the page gives with a first connection. Of several values the last one counts,
    because a client appends its own to the URL of the page.
    """
    header = request.headers.get("Last-Event-ID")
    if header or not request.query_string:
        return header or None
    appended = given = None
    for name, value in request.query.items():
        if value and name == "last_event_id":
            given = value
        elif value and name.lower() == "lasteventid":
            appended = value
    return appended or given


async def read_body(request: web.Request, silence: float | None) -> None:
    """Read the body to its end, and leave it in the request as if nothing had been read.

    A connection whose request was not read to its end does not show that its client leaves. Afterwards ``read``,
    ``text``, ``json``, ``post``, ``multipart`` and ``content`` of the request return what was sent.

    Raises the answer to a client that sends nothing for ``silence`` seconds (408), more than ``client_max_size`` bytes
    (413), or what is no body (400). If cancelled, the part that had come is lost.
    """
    if not request.can_read_body:
        return
    content = request.content
    try:
        body = await _all_of(content, request.client_max_size, silence)
    except TimeoutError:
        raise too_slow() from None
    except (web.RequestPayloadError, HttpProcessingError):  # the latter from aiohttp's parser that is in Python
        content.feed_eof()  # or aiohttp reads on behind the answer, and logs the error
        raise unreadable() from None
    except OSError:  # the client left, and reads no answer
        raise too_slow() from None
    _refill(content, request, body)
    _refill(content, request, await request.read())  # which is kept when the client leaves, and shares its memory


async def _all_of(content: StreamReader, limit: int, silence: float | None) -> bytes:
    """Read to the end, with a limit in bytes (0 for none) and one in seconds for each piece."""
    body = bytearray()
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(silence) as timeout:
        while piece := await content.readany():
            body += piece
            if 0 < limit < len(body):
                raise too_large(len(body), limit)
            if silence is not None:
                timeout.reschedule(loop.time() + silence)
    return bytes(body)


def _refill(content: StreamReader, request: web.Request, body: bytes) -> None:
    """Make the request's reader one that has received this body and its end.

    aiohttp has no other public way back: a clone of a request has the same reader, and ``unread_data`` is deprecated.
    """
    low, _ = content.get_read_buffer_limits()
    limit = max(low, len(body))  # or a large body would stop the reading of the connection
    StreamReader.__init__(content, request.protocol, limit, loop=asyncio.get_running_loop())
    content.feed_data(body)
    content.feed_eof()
