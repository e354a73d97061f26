"""The thread in which a log in SQLite is used, which a hanging disk may hold for ever."""

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


GIVE_WAY = 0.02  # seconds after which a job that runs is given the interpreter, and each time as much later, for
GIVEN = 0.002  # seconds at most: an event loop that never rests takes it back before a thread has woken

T = TypeVar("T")
_Jobs: TypeAlias = SimpleQueue[Callable[[], None] | None]


class SqliteThread:
    """Do things with a log in one thread, in the order of the calls.

    It is a daemon, unlike those of a ``ThreadPoolExecutor``: a process that has ended does not wait for a disk.
    """

    def __init__(self, log: SqliteLog, name: str) -> None:
        self._log = log
        self._name = f"sqlite-{name}"
        self._closed = False
        self._jobs: _Jobs = SimpleQueue()
        self._begun = False
        weakref.finalize(self, self._jobs.put, None)  # the thread of a broker that was not closed ends with it

    async def run(self, work: Callable[[SqliteLog], T]) -> T:
        """Have something done. Cancelling it leaves it going on, or not begun."""
        if self._closed:
            raise BrokerDown("this broker was closed")
        return await self._hand_over(work)

    async def close(self, limit: float) -> None:
        """Close the log, and end the thread; one that a disk holds for ``limit`` seconds is left to itself. Idempotent.

        Then a line ``did_not_end`` in the log names it.
        """
        if self._closed:
            return
        self._closed = True
        if not self._begun:
            return
        closing = self._hand_over(SqliteLog.close)
        self._jobs.put(None)
        await asyncio.wait([closing], timeout=limit)
        if not closing.done():
            closing.cancel()
            logger.warning("did_not_end", what=f"the thread {self._name!r}, which the disk holds", seconds=limit)

    def _hand_over(self, work: Callable[[SqliteLog], T]) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        log = self._log
        running = threading.Lock()
        running.acquire()  # by the job, until it is over

        def job() -> None:
            if future.cancelled():
                return
            settle: Callable[[], None]
            try:
                settle = partial(_succeed, future, work(log))
            except BaseException as error:  # noqa: BLE001  # it is raised where the work was asked for
                settle = partial(_fail, future, error)
            finally:
                running.release()
            with suppress(RuntimeError):  # the event loop is closed, and nothing waits in it
                loop.call_soon_threadsafe(settle)

        if not self._begun:
            self._begun = True
            threading.Thread(target=_work, args=[self._jobs], name=self._name, daemon=True).start()
        self._jobs.put(job)
        loop.call_later(GIVE_WAY, _give_way, loop, future, running, GIVE_WAY)
        return future


def _give_way(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[T], running: threading.Lock, after: float
) -> None:
    """Let go of the interpreter for a moment, so that a thread has it though the event loop never rests."""
    if not future.done() and not running.acquire(timeout=GIVEN):
        loop.call_later(after + GIVE_WAY, _give_way, loop, future, running, after + GIVE_WAY)


def _work(jobs: _Jobs) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # or it would hold its broker until the next one


def _succeed(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[T], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
