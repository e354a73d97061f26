"""Connecting within a limit, whatever a server's client makes of being cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import TypeVar

from ..hub.ending import end

__all__ = ["connect_within"]

GRACE = 0.25  # seconds that a client has to end when it is cancelled, before it is cancelled again
C = TypeVar("C")
_late: set[asyncio.Future[None]] = set()  # connections that are being closed because they came too late


async def connect_within(
    limit: float, connecting: Coroutine[object, object, C], close: Callable[[C], Awaitable[None]], what: str
) -> C:
    """Return the connection that a coroutine makes within ``limit`` seconds.

    The coroutine runs in a task that is cancelled at the limit, and when the caller is; a connection that comes all
    the same is closed.

    Raises:
        TimeoutError: The limit is over.
        Exception: What the coroutine raises.

    """
    task = asyncio.create_task(connecting)
    try:
        await asyncio.wait([task], timeout=limit)
    except asyncio.CancelledError:
        await _give_up(task, close, what)
        raise
    if not task.done():
        await _give_up(task, close, what)
        raise TimeoutError
    return task.result()


async def _give_up(task: asyncio.Task[C], close: Callable[[C], Awaitable[None]], what: str) -> None:
    def close_what_came(task: asyncio.Task[C]) -> None:
        if not task.cancelled() and task.exception() is None:
            closing = asyncio.ensure_future(close(task.result()))
            _late.add(closing)
            closing.add_done_callback(_late.discard)

    task.add_done_callback(close_what_came)
    await end(task, GRACE, what)
