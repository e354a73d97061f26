"""The function that feeds a stream: called once, and seen off when the stream is over."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, Protocol, TypeAlias

from ..errors import ChannelClosed
from ..observe.logs import log
from ..sse.channel import CloseReason, EventChannel
from .context import RequestContext
from .settings import OnClose

__all__ = ["Fed", "Producer", "StreamReady"]

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


# Seconds that a producer has to return once it knows that its stream is over. It is for cleaning up, which must be
# allowed to wait for a database; longer than this and it keeps the rest of the chain from leaving.
GRACE = 5.0


class Producer:
    """Call a ``stream_ready`` function, and let what it raises end its stream."""

    __slots__ = ("_abandoned", "_context", "_fed", "_name", "_task", "error")

    error: BaseException | None
    """What it raised, if it did; logged already."""

    def __init__(self, fed: Fed, context: RequestContext, name: str = "") -> None:
        self._fed = fed
        self._context = context
        self._name = name  # in the log; else the function's own
        self._task: asyncio.Future[Any] | None = None
        self._abandoned: asyncio.Future[None] | None = None
        self.error = None

    def start(self, function: Callable[P, object], *arguments: P.args, **named: P.kwargs) -> None:
        """Call it; only what it returns to be awaited gets a task."""
        self._name = self._name or getattr(function, "__qualname__", "") or repr(function)
        try:
            result = function(*arguments, **named)
        except ChannelClosed as error:
            self._end_by(error)
            return
        except Exception as error:  # noqa: BLE001  # whatever it is, the stream ends
            self._fail(error)
            return
        if inspect.isawaitable(result):
            self._task = asyncio.ensure_future(result)
            self._task.add_done_callback(self._returned)

    async def see_off(self, on_close: OnClose | None) -> None:
        """Tell ``on_close`` why the stream ended, and wait until the producer has cleaned up.

        One that cannot know of the end, because it waits for something else than its channel, is cancelled; one that
        was told has some seconds. Runs to its end also while being cancelled, and the cancellation goes on.
        """
        task = self._task
        if task is not None and not task.done() and not self._knows():
            task.cancel()
        told = self._tell(on_close)
        if told is not None or (task is not None and not task.done()):
            await _in_full(self._wait(told))

    def abandon(self) -> None:
        """Wait for it no longer."""
        if self._task is not None:
            self._task.cancel()
        if self._abandoned is None:
            self._abandoned = asyncio.get_running_loop().create_future()
        if not self._abandoned.done():
            self._abandoned.set_result(None)

    def _knows(self) -> bool:
        return self._fed.told or self._fed.reason is CloseReason.CLOSED

    def _returned(self, task: asyncio.Future[object]) -> None:
        try:
            task.result()
        except asyncio.CancelledError as error:
            if self._fed.reason is None:  # else it is over, and that is why
                self._fail(error)  # it awaited something that was cancelled
        except ChannelClosed as error:
            self._end_by(error)
        except Exception as error:  # noqa: BLE001  # as above
            self._fail(error)

    def _end_by(self, error: ChannelClosed) -> None:
        """Take what a direct put on the channel's queue raises for the end that it is, and for an error before that."""
        if self._fed.reason is None and not (isinstance(self._fed, EventChannel) and self._fed.closed):
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self.error = error
        log.exception(
            "stream_producer_failed",
            producer=self._name,
            path=self._context.request.path,
            execution_id=self._context.execution_id,
            exc_info=error,
        )
        self._fed.close()

    def _tell(self, on_close: OnClose | None) -> Awaitable[object] | None:
        """Call ``on_close`` now, and return what of it is to be awaited."""
        if on_close is None:
            return None
        try:
            told = on_close(self._context, self._fed.reason or CloseReason.CLOSED)
        except Exception as error:  # noqa: BLE001  # the stream is over, whatever its observer thinks of it
            self._on_close_failed(error)
            return None
        return told if inspect.isawaitable(told) else None

    async def _wait(self, told: Awaitable[object] | None) -> None:
        if self._abandoned is None:
            self._abandoned = asyncio.get_running_loop().create_future()
        if told is not None:
            await self._until_told(asyncio.ensure_future(told), self._abandoned)
        # Most have returned by now, and need no timer: asyncio keeps a cancelled one, and with it all of the request.
        if self._task is not None and not self._task.done():
            await self._until_it_returns(self._task, self._abandoned)

    async def _until_told(self, told: asyncio.Future[Any], abandoned: asyncio.Future[None]) -> None:
        """Let ``on_close`` return by itself, unless nobody waits any longer."""
        await asyncio.wait([told, abandoned], return_when=asyncio.FIRST_COMPLETED)
        if not told.done():
            told.cancel()
            await asyncio.wait([told], timeout=0)  # its turn to go
        if told.done() and not told.cancelled() and isinstance(error := told.exception(), Exception):
            self._on_close_failed(error)

    async def _until_it_returns(self, task: asyncio.Future[Any], abandoned: asyncio.Future[None]) -> None:
        """Let a producer that knows of the end return by itself; give up on one that does not."""
        for _ in range(2):
            await asyncio.wait([task, abandoned], timeout=GRACE, return_when=asyncio.FIRST_COMPLETED)
            task.cancel()
            if abandoned.done():
                await asyncio.wait([task], timeout=0)  # its turn to go
            if task.done():
                return
        log.warning(
            "stream_producer_ignores_its_end",
            producer=self._name,
            path=self._context.request.path,
            execution_id=self._context.execution_id,
        )

    def _on_close_failed(self, error: Exception) -> None:
        log.exception("stream_on_close_failed", execution_id=self._context.execution_id, exc_info=error)


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
