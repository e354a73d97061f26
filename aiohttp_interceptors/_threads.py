"""Calls from other threads into an event loop, the futures of their results, and functions that run in a thread."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from ._logging import log
from .exceptions import EXIT_EXCEPTIONS

__all__ = ["LoopFuture", "call_in_loop", "check_loop", "run_in_loop", "run_in_thread"]


T = TypeVar("T")


class LoopFuture(Future[T]):
    """A ``concurrent.futures.Future`` that an event loop resolves.

    In the thread of that event loop, ``result`` and ``exception`` raise ``RuntimeError`` while there is no result,
    instead of blocking the loop for ever. ``asyncio.wrap_future(future)`` can be awaited there.

    Args:
        loop: The event loop that resolves the future.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop

    def result(self, timeout: float | None = None) -> T:
        """Wait for the result, ``timeout`` seconds at most, and return it or raise what the call raised."""
        self._check_thread()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the end of the call, ``timeout`` seconds at most, and return what it raised, or ``None``."""
        self._check_thread()
        return super().exception(timeout)

    def _check_thread(self) -> None:
        if not self.done() and _running_loop() is self._loop:
            raise RuntimeError(
                "the event loop of this thread resolves this future, and cannot while its thread waits for it; "
                "await asyncio.wrap_future(future) instead"
            )


def check_loop(loop: asyncio.AbstractEventLoop, call: str, instead: str) -> None:
    """Raise ``RuntimeError`` in any thread but that of a running event loop; ``instead`` is what to call there."""
    if loop.is_running() and _running_loop() is not loop:
        raise RuntimeError(
            f"{call} must be called from the thread of its event loop; from another thread, call {instead}"
        )


def call_in_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], T]) -> Future[T]:
    """Call a plain function in the event loop's thread. Raises ``RuntimeError`` if the loop is closed."""
    future: LoopFuture[T] = LoopFuture(loop)

    def run() -> None:
        if future.set_running_or_notify_cancel():
            try:
                result = call()
            except BaseException as error:
                future.set_exception(error)
                if isinstance(error, EXIT_EXCEPTIONS):
                    raise
            else:
                future.set_result(result)

    loop.call_soon_threadsafe(run)
    return future


def run_in_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
    """Run a coroutine function in the event loop's thread. Cancelling the future cancels the coroutine.

    The coroutine is created in that thread, so that none is left unawaited if the loop is closed; this raises
    ``RuntimeError`` then.
    """
    future: LoopFuture[T] = LoopFuture(loop)

    def finish(task: asyncio.Task[T]) -> None:
        if task.cancelled():
            future.cancel()
        if not future.set_running_or_notify_cancel():
            return
        error = task.exception()
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(task.result())

    def run() -> None:
        if future.cancelled():
            return
        task = loop.create_task(call())
        task.add_done_callback(finish)
        future.add_done_callback(lambda done: _cancel(loop, task) if done.cancelled() else None)

    loop.call_soon_threadsafe(run)
    return future


async def run_in_thread(name: str, function: Callable[[threading.Event], T]) -> T:
    """Call a function in a daemon thread, with an event that is set when it should stop, and return its result.

    ``name`` is that of the function, for the log. The first cancellation sets the event and waits for the function. A
    second one abandons the thread.
    """
    finished: Future[T] = Future()
    stop = threading.Event()

    def run() -> None:
        try:
            result = function(stop)
        except BaseException as error:
            finished.set_exception(error)
            if isinstance(error, EXIT_EXCEPTIONS):
                raise
        else:
            finished.set_result(result)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), name=name, daemon=True).start()
    waiter = asyncio.wrap_future(finished)
    try:
        return await asyncio.shield(waiter)
    except asyncio.CancelledError:
        stop.set()
        if not waiter.done():  # otherwise the function raised it
            try:
                await asyncio.shield(waiter)
            except asyncio.CancelledError:
                log.warning("thread_abandoned", function=name)
                waiter.add_done_callback(lambda done: done.cancelled() or done.exception())
                raise
        raise


def _cancel(loop: asyncio.AbstractEventLoop, task: asyncio.Task[T]) -> None:
    with suppress(RuntimeError):  # the loop is closed, so the task has ended
        loop.call_soon_threadsafe(task.cancel)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
