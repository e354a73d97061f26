"""``timeout``: answers 504 if a response has not begun in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

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
        # asyncio.timeout cancels one iteration of the event loop after its time, in which a stream could open.
        task = cast("asyncio.Task[object]", asyncio.current_task())
        cancelling, expired, cancelled_by_others = task.cancelling(), False, False

        def expire() -> None:
            nonlocal expired
            if not context.committed:
                expired = task.cancel()

        timer = asyncio.get_running_loop().call_later(seconds, expire)
        try:
            try:
                yield
            finally:
                timer.cancel()
                cancelled_by_others = expired and task.uncancel() > cancelling
        except asyncio.CancelledError:
            if not expired or cancelled_by_others:
                raise
            if context.committed:  # by code that was cancelled
                raise TimeoutError(f"the response was not complete {seconds} seconds after the request") from None
            raise web.HTTPGatewayTimeout(text="The server did not answer in time.\n") from None

    return around(timeout)
