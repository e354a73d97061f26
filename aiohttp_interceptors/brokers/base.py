"""What a log keeps."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

from .._tasks import check_cancelled, end
from ..exceptions import BrokerDown, BrokerError, OutcomeUnknown
from ..hub.broker import LogPosition

__all__ = ["Draft", "Outcome", "Retention", "Write", "Writer", "connect_within"]


class Retention(NamedTuple):
    """What is kept, whichever is reached first."""

    max_records: int
    max_age: float | None
    """In seconds; ``None`` is no limit."""


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


MOST = 500  # publishes in one write, and
MOST_BYTES = 2**20  # of their payloads: so that no server is busy with one of ours for longer than others can wait
ENDING = 2.0  # seconds that a write has to clean up


class Draft(NamedTuple):
    """What is to be stored."""

    topic: str
    payload: bytes
    idempotency_key: str | None


Outcome: TypeAlias = LogPosition | BrokerError
Write: TypeAlias = Callable[[Sequence[Draft]], Awaitable[Sequence[Outcome]]]
_Waiting: TypeAlias = tuple[asyncio.Future[LogPosition], Draft]


class Writer:
    """Have one write at a time done, in a task of its own, so that who cancels a publish cuts no connection.

    ``write`` stores drafts in their order and returns what became of each, or raises a ``BrokerError`` that all of
    them get. It has ``timeout`` seconds, and is cancelled then, and once more two seconds later.
    """

    def __init__(self, write: Write, timeout: float) -> None:
        self._write = write
        self._timeout = timeout
        self._waiting: OrderedDict[asyncio.Future[LogPosition], Draft] = OrderedDict()  # without those that were taken
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def put(self, draft: Draft) -> LogPosition:
        """Store a draft and return its place. Raises ``BrokerError`` within the timeout. Cancelling is safe."""
        if self._closed:
            raise BrokerDown(f"{draft.topic!r} was published after this broker was closed")
        future: asyncio.Future[LogPosition] = asyncio.get_running_loop().create_future()
        self._waiting[future] = draft
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        try:
            async with asyncio.timeout(self._timeout):
                return await future
        except TimeoutError:
            what = f"no answer of the broker for {self._timeout} s about an event under {draft.topic!r}"
            if future in self._waiting:
                raise BrokerDown(f"{what}, which was not sent") from None
            raise OutcomeUnknown(what) from None
        finally:
            self._waiting.pop(future, None)

    async def close(self) -> None:
        """Take no more, and wait for what is on its way, as long as anything that was put can wait. Idempotent."""
        self._closed = True
        if self._task is not None:
            await asyncio.wait([self._task], timeout=self._timeout)
        if self._task is not None:  # each that was put has had its answer, or the end of its time
            await end(self._task, ENDING, "a write that nothing waits for any more")

    async def _run(self) -> None:
        try:
            while self._waiting:
                taken = self._take()
                outcomes = await self._outcomes([draft for _, draft in taken])
                for (future, _), outcome in zip(taken, outcomes, strict=True):
                    if future.done():
                        continue
                    if isinstance(outcome, BrokerError):
                        future.set_exception(outcome)
                    else:
                        future.set_result(outcome)
                check_cancelled()
        finally:
            self._task = None

    def _take(self) -> list[_Waiting]:
        taken = [self._waiting.popitem(last=False)]
        size = len(taken[0][1].payload)
        while self._waiting and len(taken) < MOST and size < MOST_BYTES:
            taken.append(self._waiting.popitem(last=False))
            size += len(taken[-1][1].payload)
        return taken

    async def _outcomes(self, drafts: Sequence[Draft]) -> Sequence[Outcome]:
        error: BrokerError
        try:
            # The outer one cancels what has swallowed the inner one's cancellation, and would hold up all that follow.
            async with asyncio.timeout(self._timeout + ENDING), asyncio.timeout(self._timeout):
                return await self._write(drafts)
        except TimeoutError:
            error = OutcomeUnknown(f"no answer of the broker for {self._timeout} s")
        except BrokerError as failure:
            error = failure
        except (Exception, asyncio.CancelledError) as failure:  # a defect, and nobody knows what it left
            task = asyncio.current_task()
            if isinstance(failure, asyncio.CancelledError) and task is not None and task.cancelling():
                raise  # or else a client has cancelled what it was asked for, as one does that closes
            error = OutcomeUnknown(f"publishing failed: {failure!r}")
            error.__cause__ = failure
        return [_copy(error) for _ in drafts]


def _copy(error: BrokerError) -> BrokerError:
    """Return one that somebody of its own can raise."""
    copy = type(error)(*error.args).with_traceback(error.__traceback__)
    copy.__cause__ = error.__cause__
    return copy
