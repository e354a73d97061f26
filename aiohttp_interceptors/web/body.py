"""A request's body: read before an event stream begins, and left to be read again."""

from __future__ import annotations

import asyncio

from aiohttp import StreamReader, web
from aiohttp.http import HttpProcessingError

from .refusal import too_large, too_slow, unreadable

__all__ = ["read_body"]


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
