"""``timeout``: answers 504 if a response has not begun in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from aiohttp import web

from .._checks import check_seconds
from ..decorators import around
from ..interceptor import Interceptor
from ..web.context import RequestContext

__all__ = ["timeout"]


def timeout(seconds: float) -> Interceptor[RequestContext]:
    """Make an interceptor that answers 504 if the inner interceptors and the handler take too long.

    What runs is cancelled, and the cancellation is raised where it waits, as by ``asyncio.timeout``. No ``leave`` stage
    further in runs; ``@around`` generators do. Code that swallows the cancellation, and a plain function that blocks
    the event loop, are not ended.

    The time counts until commit: an open stream is not ended by it, and neither is a download whose headers were sent.
    ``max_age`` limits the time of a stream.

    Args:
        seconds: The time until the headers must have been sent, or the chain further in has ended.

    Returns:
        The interceptor.

    Raises:
        TypeError: ``seconds`` is not a number.
        ValueError: ``seconds`` is not more than 0.
    """
    check_seconds("seconds", seconds, "")

    async def timeout(context: RequestContext) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        scope = asyncio.timeout(None)

        def expire() -> None:
            if not context.committed:
                scope.reschedule(loop.time())

        timer = loop.call_later(seconds, expire)
        try:
            async with scope:
                try:
                    yield
                finally:
                    timer.cancel()
        except TimeoutError:
            if not scope.expired() or context.committed:
                raise
            raise web.HTTPGatewayTimeout(text="The server did not answer in time.\n") from None

    return around(timeout)
