"""Cancel tasks and wait for them with a timeout: some code swallows a cancellation, and some hangs in its cleanup."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import TypeVar

from ._logging import log as logger

__all__ = ["cancel_and_wait", "cancellable", "check_cancelled", "run_with_timeout"]


CANCEL_TIMEOUT = 1.0
"""Seconds to wait for a task after it was cancelled for the last time."""

_T = TypeVar("_T")


async def cancel_and_wait(task: asyncio.Future[_T], timeout: float, what: str) -> bool:  # noqa: ASYNC109
    """Cancel a task, wait until it has ended, and return whether it did.

    A task that has not ended after ``timeout`` seconds is cancelled once more. If that does not help either, a line
    ``did_not_end`` is logged, and the task is left running. What the task raises is logged as ``ended_by_an_error``,
    not raised. ``what`` names the task in the log. Cancelling is safe: the task was cancelled before.
    """
    if not task.done():
        task.add_done_callback(lambda ended: _log_error(ended, what))
        task.cancel()
        await asyncio.wait([task], timeout=timeout)
    if not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=CANCEL_TIMEOUT)
    if not task.done():
        logger.warning("did_not_end", what=what, seconds=timeout + CANCEL_TIMEOUT)
    return task.done()


async def run_with_timeout(
    coroutine: Coroutine[object, object, _T],
    timeout: float,  # noqa: ASYNC109
    what: str,
) -> _T | None:
    """Run a coroutine and return its result, or ``None`` if it was cancelled after ``timeout`` seconds.

    Unlike ``asyncio.wait_for``, it does not wait for a coroutine that swallows the cancellation. What the coroutine
    raises in time is raised. Cancelling is safe: it cancels the coroutine.
    """
    task = asyncio.ensure_future(coroutine)
    try:
        await asyncio.wait([task], timeout=timeout)
    except asyncio.CancelledError:
        await cancel_and_wait(task, CANCEL_TIMEOUT, what)
        raise
    if task.done():
        return task.result()
    logger.warning("took_too_long", what=what, seconds=timeout)
    await cancel_and_wait(task, CANCEL_TIMEOUT, what)
    return None


def check_cancelled() -> None:
    """Raise ``CancelledError`` if the current task was cancelled and the cancellation was swallowed.

    ``asyncio.wait_for`` of Python 3.11 swallows it if what it waits for ends in the same iteration of the event loop.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def cancellable(awaitable: Awaitable[_T], undo: Callable[[_T], Awaitable[object]] | None = None) -> _T:
    """Await something that may swallow a cancellation, and raise ``CancelledError`` afterwards if it did.

    ``undo`` releases the result that is discarded then.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    result = await awaitable
    if task and task.cancelling() > before:
        if undo is not None:
            await undo(result)
        raise asyncio.CancelledError
    return result


def _log_error(task: asyncio.Future[_T], what: str) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        logger.exception("ended_by_an_error", what=what, exc_info=error)
