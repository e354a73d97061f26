"""The threads in which a broker uses its logs: a disk that hangs blocks such a thread, and not the event loop."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import TypeAlias, TypeVar

from ..._logging import log as logger
from ...exceptions import BrokerDown
from .log import SqliteLog

__all__ = ["SqliteThread"]


# An event loop that is never idle takes the GIL back before another thread has woken up. Therefore the event loop
# sleeps for YIELD_SECONDS while a job has run for YIELD_AFTER seconds, and then after increasing intervals.
YIELD_AFTER = 0.02
YIELD_SECONDS = 0.002

T = TypeVar("T")
_Jobs: TypeAlias = SimpleQueue[Callable[[], None] | None]


class SqliteThread:
    """One thread that calls functions with a log, in the order of the calls. It starts with the first one.

    It is a daemon, unlike the threads of a ``ThreadPoolExecutor``, so that the process can exit while a disk hangs.

    Args:
        log: The log, which is used only in this thread.
        name: A suffix for the name of the thread.
    """

    def __init__(self, log: SqliteLog, name: str) -> None:
        self._log = log
        self._name = f"sqlite-{name}"
        self._closed = False
        self._jobs: _Jobs = SimpleQueue()
        self._started = False
        weakref.finalize(self, self._jobs.put, None)  # ends the thread of a broker that was not closed

    async def run(self, work: Callable[[SqliteLog], T]) -> T:
        """Call a function with the log and return its result. If cancelled, a call that has started is completed."""
        if self._closed:
            raise BrokerDown("the broker is closed")
        return await self._submit(work)

    async def close(self, close_timeout: float) -> None:
        """Close the log and end the thread. Idempotent.

        A thread that has not ended after ``close_timeout`` seconds is abandoned, with a ``did_not_end`` line in the
        log.
        """
        if self._closed:
            return
        self._closed = True
        if not self._started:
            return
        closing = self._submit(SqliteLog.close)
        self._jobs.put(None)
        await asyncio.wait([closing], timeout=close_timeout)
        if not closing.done():
            closing.cancel()
            what = f"the thread {self._name!r}, which waits for the disk"
            logger.warning("did_not_end", what=what, seconds=close_timeout)

    def _submit(self, work: Callable[[SqliteLog], T]) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        log = self._log
        running = threading.Lock()
        running.acquire()  # until the job is done

        def job() -> None:
            if future.cancelled():
                return
            deliver: Callable[[], None]
            try:
                deliver = partial(_set_result, future, work(log))
            except BaseException as error:  # noqa: BLE001  # it is raised by run()
                deliver = partial(_set_exception, future, error)
            finally:
                running.release()
            with suppress(RuntimeError):  # the event loop is closed, and nothing waits for the result
                loop.call_soon_threadsafe(deliver)

        if not self._started:
            self._started = True
            threading.Thread(target=_run_jobs, args=[self._jobs], name=self._name, daemon=True).start()
        self._jobs.put(job)
        loop.call_later(YIELD_AFTER, _yield_gil, loop, future, running, YIELD_AFTER)
        return future


def _yield_gil(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[T], running: threading.Lock, interval: float
) -> None:
    """Release the GIL until the job is done, for a short time, and again later."""
    if not future.done() and not running.acquire(timeout=YIELD_SECONDS):
        loop.call_later(interval + YIELD_AFTER, _yield_gil, loop, future, running, interval + YIELD_AFTER)


def _run_jobs(jobs: _Jobs) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # it would keep its broker alive until the next job


def _set_result(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: asyncio.Future[T], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
