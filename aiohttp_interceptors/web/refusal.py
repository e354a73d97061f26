"""The answers to a request that gets no stream."""

from __future__ import annotations

import math
import random

from aiohttp import web

__all__ = ["StopReconnecting", "not_acceptable", "stopping", "too_large", "too_many", "too_slow", "unreadable"]

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
