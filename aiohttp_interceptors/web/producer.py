"""The function that feeds a stream: called once, and seen off when the stream is over."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, Protocol, TypeAlias

from .._logging import log
from ..channel import CloseReason, EventChannel
from ..exceptions import FATAL, ChannelClosed
from ..interceptor import unwrapped
from .context import RequestContext
from .settings import OnClose

__all__ = ["Fed", "Producer", "StreamReady", "name_of"]


StreamReady: TypeAlias = Callable[[EventChannel, RequestContext], object]

P = ParamSpec("P")


class Fed(Protocol):
    """What a producer feeds, a channel or a stream."""

    @property
    def reason(self) -> CloseReason | None:
        """Why it is over; ``None`` as long as it is not."""

    @property
    def told(self) -> bool:
        """Whether the producer can know that it is over."""

    def close(self) -> None:
        """Take no more, and be over once all is sent."""


# Seconds that a producer has to clean up once it knows that its stream is over, or was cancelled. Cleaning up may wait
# for a database; a producer that takes longer keeps the rest of the chain from leaving.
CLEAN_UP = 5.0


class _Farewell:
    """What ends the waiting for a producer early."""

    __slots__ = ("abandoned", "hurried")

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.abandoned: asyncio.Future[None] = loop.create_future()
        self.hurried: asyncio.Future[None] = loop.create_future()


class Producer:
    """Call a ``stream_ready`` function, and let what it raises end its stream."""

    __slots__ = ("_context", "_farewell", "_fed", "_task", "error", "name")

    error: BaseException | None
    """What it raised, if it did."""

    def __init__(self, fed: Fed, context: RequestContext, name: str = "") -> None:
        self._fed = fed
        self._context = context
        self.name: str = name
        """In the log; the function's own unless given."""
        self._task: asyncio.Future[Any] | None = None
        self._farewell: _Farewell | None = None
        self.error = None

    @property
    def failure(self) -> Exception | None:
        """The exception that the stage which opened the stream raises; a ``BaseException`` is the cause of another."""
        error = self.error
        if error is None or isinstance(error, (Exception, *FATAL)):
            return error if isinstance(error, Exception) else None
        failure = RuntimeError(f"the producer {self.name} raised {error!r}, which is no Exception")
        failure.__cause__ = error
        return failure

    def start(self, function: Callable[P, object], *arguments: P.args, **named: P.kwargs) -> None:
        """Call it; only what it returns to be awaited gets a task."""
        self.name = self.name or name_of(function)
        try:
            result = function(*arguments, **named)
        except FATAL:
            raise
        except ChannelClosed as error:
            self._end_by(error)
            return
        except BaseException as error:  # noqa: BLE001  # whatever it is, the stream ends
            self.fail(error)
            return
        if inspect.isawaitable(result):
            self._task = asyncio.ensure_future(result)
            self._task.add_done_callback(self._returned)

    def fail(self, error: BaseException) -> None:
        """End the stream because of an error. The first one is the stream's; others are logged."""
        if self.error is None:
            self.error = error
            self._fed.close()
        else:
            self.log(error)

    def log(self, error: BaseException) -> None:
        """Log an error that is not raised to aiohttp, which would log it."""
        log.exception(
            "stream_producer_failed",
            producer=self.name,
            path=self._context.request.path,
            execution_id=self._context.execution_id,
            exc_info=error,
        )

    async def see_off(self, on_close: OnClose | None, grace: float) -> None:
        """Tell ``on_close`` why the stream ended, and wait until the producer has cleaned up.

        A producer that waits in its channel was told. Another one has ``grace`` seconds to come back to its channel,
        and is cancelled then. Either has some seconds to clean up. Runs to its end also while being cancelled, and the
        cancellation goes on.
        """
        task = self._task
        if task is not None and not task.done() and not grace and not self._knows():
            task.cancel()
        told = self._tell(on_close)
        if told is not None or (task is not None and not task.done()):
            await _in_full(self._wait(told, grace))

    def hurry(self) -> None:
        """Cancel it now if it has not come back to its channel yet."""
        if self._farewell is not None and not self._farewell.hurried.done():
            self._farewell.hurried.set_result(None)

    def abandon(self) -> None:
        """Wait for it no longer."""
        if self._task is not None:
            self._task.cancel()
        if self._farewell is None:
            self._farewell = _Farewell()
        if not self._farewell.abandoned.done():
            self._farewell.abandoned.set_result(None)

    def _knows(self) -> bool:
        return self._fed.told or self._fed.reason is CloseReason.CLOSED

    def _returned(self, task: asyncio.Future[object]) -> None:
        error: BaseException | None
        try:
            error = task.exception()
        except asyncio.CancelledError as cancelled:
            if self._fed.reason is not None:
                return  # the stream is over, and that is why
            error = cancelled  # it awaited something that was cancelled
        if isinstance(error, ChannelClosed):
            self._end_by(error)
        elif error is not None:
            self.fail(error)

    def _end_by(self, error: ChannelClosed) -> None:
        """Take what a direct put on the channel's queue raises for the end that it is, and for an error before that."""
        if self._fed.reason is None and not (isinstance(self._fed, EventChannel) and self._fed.closed):
            self.fail(error)

    def _tell(self, on_close: OnClose | None) -> Awaitable[object] | None:
        """Call ``on_close`` now, and return what of it is to be awaited."""
        if on_close is None:
            return None
        try:
            told = on_close(self._context, self._fed.reason or CloseReason.CLOSED)
        except FATAL:
            raise
        except BaseException as error:  # noqa: BLE001  # the stream is over, whatever its observer thinks of it
            self._on_close_failed(error)
            return None
        return told if inspect.isawaitable(told) else None

    async def _wait(self, told: Awaitable[object] | None, grace: float) -> None:
        if self._farewell is None:
            self._farewell = _Farewell()
        # Most have returned by now, and need no timer: asyncio keeps a cancelled one, and with it all of the request.
        task = self._task if self._task is not None and not self._task.done() else None
        if task is None:
            if told is not None:
                await self._until_told(told, self._farewell)
        elif told is None:
            await self._until_it_returns(task, self._farewell, grace)
        else:
            await asyncio.gather(
                self._until_told(told, self._farewell), self._until_it_returns(task, self._farewell, grace)
            )

    async def _until_told(self, told: Awaitable[object], farewell: _Farewell) -> None:
        """Let ``on_close`` return by itself, unless nobody waits any longer."""
        future: asyncio.Future[Any] = asyncio.ensure_future(told)
        await asyncio.wait([future, farewell.abandoned], return_when=asyncio.FIRST_COMPLETED)
        if not future.done():
            future.cancel()
            await asyncio.wait([future], timeout=0)  # its turn to go
        error = future.exception() if future.done() and not future.cancelled() else None
        if error is not None and not isinstance(error, FATAL):
            self._on_close_failed(error)

    async def _until_it_returns(self, task: asyncio.Future[Any], farewell: _Farewell, grace: float) -> None:
        """Let a producer return by itself once it knows of the end, and give up on one that does not."""
        if grace and not self._knows():
            await asyncio.wait(
                [task, farewell.abandoned, farewell.hurried], timeout=grace, return_when=asyncio.FIRST_COMPLETED
            )
            if not self._knows():
                task.cancel()
        for _ in range(2):
            await asyncio.wait([task, farewell.abandoned], timeout=CLEAN_UP, return_when=asyncio.FIRST_COMPLETED)
            task.cancel()
            if farewell.abandoned.done():
                await asyncio.wait([task], timeout=0)  # its turn to go
            if task.done():
                return
        if self.error is None:
            task.add_done_callback(self._too_late)
        log.warning(
            "stream_producer_ignores_its_end",
            producer=self.name,
            path=self._context.request.path,
            execution_id=self._context.execution_id,
        )

    def _too_late(self, _: object) -> None:
        """Log what a producer raised that was given up."""
        if self.error is not None:
            self.log(self.error)

    def _on_close_failed(self, error: BaseException) -> None:
        log.exception("stream_on_close_failed", execution_id=self._context.execution_id, exc_info=error)


def name_of(function: Callable[..., object]) -> str:
    """Name a user's function as the log does."""
    own = unwrapped(function)
    return getattr(own, "__qualname__", "") or type(own).__qualname__


async def _in_full(coroutine: Coroutine[None, None, None]) -> None:
    """Run something to its end, also while being cancelled, as ``handler_cancellation`` does when a client leaves."""
    task = asyncio.create_task(coroutine)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()
