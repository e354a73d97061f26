"""Ending what runs in a task, within a limit: some code swallows a cancellation, and some hangs in its cleanup."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import TypeVar

from ._logging import log as logger

__all__ = ["check_cancelled", "end", "finish", "heeding"]


AGAIN = 1.0  # seconds that a task has after it was cancelled for the second time
_T = TypeVar("_T")


async def end(task: asyncio.Future[_T], limit: float, what: str) -> bool:
    """Cancel a task, wait until it has ended, and return whether it did.

    A task that has not ended after ``limit`` seconds is cancelled once more, and left to itself a second later, after
    a line ``did_not_end`` in the log that names it as ``what``. What a task raises is logged as ``ended_by_an_error``
    with the same name, and not raised. Cancelling is safe: the task was cancelled before.
    """
    if not task.done():
        task.add_done_callback(lambda ended: _log_error(ended, what))
        task.cancel()
        await asyncio.wait([task], timeout=limit)
    if not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=AGAIN)
    if not task.done():
        logger.warning("did_not_end", what=what, seconds=limit + AGAIN)
    return task.done()


async def finish(doing: Coroutine[object, object, _T], limit: float, what: str) -> _T | None:
    """Run something to its end and return its result, or ``None`` when it was ended after ``limit`` seconds.

    Then it is cancelled, as by ``end``. Raises what it raises before. Cancelling cancels it.
    """
    task = asyncio.ensure_future(doing)
    try:
        await asyncio.wait([task], timeout=limit)
    except asyncio.CancelledError:
        await end(task, AGAIN, what)
        raise
    if task.done():
        return task.result()
    logger.warning("took_too_long", what=what, seconds=limit)
    await end(task, AGAIN, what)
    return None


def check_cancelled() -> None:
    """Raise ``CancelledError`` if the current task was cancelled and something has swallowed that.

    ``asyncio.wait_for`` of Python 3.11 does, when what it waits for ends in the same moment, and with it its callers.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def heeding(doing: Awaitable[_T], undo: Callable[[_T], Awaitable[object]] | None = None) -> _T:
    """Await what may swallow a cancellation, and raise that after it; ``undo`` gives back what came all the same."""
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    done = await doing
    if task and task.cancelling() > before:
        if undo is not None:
            await undo(done)
        raise asyncio.CancelledError
    return done


def _log_error(ended: asyncio.Future[_T], what: str) -> None:
    error = None if ended.cancelled() else ended.exception()
    if error is not None:
        logger.exception("ended_by_an_error", what=what, exc_info=error)
