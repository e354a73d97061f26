"""Connecting within a limit, whatever a server's client makes of being cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import TypeVar

from ..hub.ending import end

__all__ = ["connect_within"]

GRACE = 0.25  # seconds that a client has to end by itself, and again when it is cancelled
C = TypeVar("C")
_closing: set[asyncio.Future[None]] = set()  # so that none that came too late is forgotten before it is closed


async def connect_within(
    limit: float, connecting: Coroutine[object, object, C], close: Callable[[C], Awaitable[None]], what: str
) -> C:
    """Return the connection that a coroutine makes within ``limit`` seconds.

    The coroutine runs in a task, which is cancelled at the limit. When the caller is cancelled the task has a moment
    to end by itself before, since a client that is cancelled while it connects may leave its connection open. One that
    comes too late is closed.

    Raises:
        TimeoutError: The limit is over.
        Exception: What the coroutine raises.

    """
    task = asyncio.create_task(connecting)
    try:
        await asyncio.wait([task], timeout=limit)
    except asyncio.CancelledError:
        try:
            await asyncio.wait([task], timeout=GRACE)
        finally:
            await _give_up(task, close, what)
        raise
    if not task.done():
        await _give_up(task, close, what)
        raise TimeoutError
    return task.result()


async def _give_up(task: asyncio.Task[C], close: Callable[[C], Awaitable[None]], what: str) -> None:
    try:
        await end(task, GRACE, what)
    finally:
        if not task.done():
            task.add_done_callback(lambda task: _close_later(task, close))
        elif _came(task):
            await close(task.result())


def _came(task: asyncio.Task[C]) -> bool:
    return not task.cancelled() and task.exception() is None


def _close_later(task: asyncio.Task[C], close: Callable[[C], Awaitable[None]]) -> None:
    if _came(task):
        closing = asyncio.ensure_future(close(task.result()))
        _closing.add(closing)
        closing.add_done_callback(_closing.discard)
