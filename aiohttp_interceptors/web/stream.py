"""One open stream: pump a channel into a connection until one of them is over, and wind up."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine
from typing import TypeAlias

from ..observe.logs import log
from ..sse.channel import CloseReason, EventChannel
from ..sse.wire import encode
from .connection import Connection
from .context import RequestContext
from .response import EventStreamResponse

__all__ = ["OnClose", "Stream", "StreamReady"]

StreamReady: TypeAlias = Callable[[EventChannel, RequestContext], object]
OnClose: TypeAlias = Callable[[RequestContext, CloseReason], object]

# Seconds that a producer has to return once it knows that its stream is over. It is for cleaning up, which must be
# allowed to wait for a database; longer than this and it keeps the rest of the chain from leaving.
GRACE = 5.0


class Stream:
    """One open stream: its channel, its connection, and the one reason for its end."""

    def __init__(
        self,
        context: RequestContext,
        response: EventStreamResponse,
        connection: Connection,
        channel: EventChannel,
        retry: int | None,
    ) -> None:
        self._context = context
        self._response = response
        self._connection = connection
        self._channel = channel
        self._retry = retry
        self._failed = False
        self._events = 0
        self._began = time.monotonic()
        self._waiter: asyncio.Future[None] | None = None
        channel.attach(self._wake)
        connection.on_change = self._on_change

    async def run(self, stream_ready: StreamReady, on_close: OnClose | None) -> None:
        """Keep the stream until it is over. Cancelling ends it, and the cancellation goes on."""
        producer = asyncio.create_task(self._produce(stream_ready))
        try:
            self._on_change()  # it may be lost already
            await self._pump()
            await self._end_of_body()
        finally:
            self.end(CloseReason.SHUTDOWN)  # unless it is over already: we are being cancelled
            await _in_full(self._wind_up(producer, on_close))

    async def _wind_up(self, producer: asyncio.Task[None], on_close: OnClose | None) -> None:
        """See the producer off, tell the hook, and log."""
        knows = self._channel.told or self._channel.reason is CloseReason.CLOSED
        if not knows:
            producer.cancel()
        await self._tell(on_close)
        await self._end_of(producer)
        log.debug(
            "stream_closed",
            reason=str(self._channel.reason),
            events=self._events,
            bytes=self._connection.bytes,
            seconds=round(time.monotonic() - self._began, 3),
            path=self._context.request.path,
            execution_id=self._context.execution_id,
        )

    def end(self, reason: CloseReason) -> None:
        """End the stream at once, for this reason if it is the first: a ``put`` that waits is told now."""
        self._channel.end(reason)
        self._wake()

    def _on_change(self) -> None:
        if self._connection.lost:
            self.end(CloseReason.CLIENT_LEFT)
        self._wake()

    async def _pump(self) -> None:
        """Write what is put, all that is there in one piece, until the channel is over."""
        channel, connection = self._channel, self._connection
        while channel.reason is None:
            events = [] if connection.paused else channel.take()
            if events:
                self._events += len(events)
                first, self._retry = self._retry, None
                connection.write(encode(events[0], retry=first) + b"".join(map(encode, events[1:])))
            elif channel.closed and not connection.paused:
                self.end(CloseReason.ERROR if self._failed else CloseReason.CLOSED)
            else:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _end_of_body(self) -> None:
        """Tell the client that the stream is complete, if it is there to be told."""
        if self._connection.paused:
            self._connection.abort()  # it does not read, and there is nothing more that it must have
        elif not self._connection.lost:
            await self._response.write_eof()

    async def _produce(self, stream_ready: StreamReady) -> None:
        """Call the producer; what it raises ends the stream after what it put."""
        try:
            result = stream_ready(self._channel, self._context)
            if inspect.isawaitable(result):
                await result
        except (Exception, asyncio.CancelledError) as error:  # whatever it is, the stream ends
            if isinstance(error, asyncio.CancelledError) and self._channel.reason is not None:
                raise  # it is over, and that is why; else the producer awaited something that was cancelled
            self._failed = True
            log.exception(
                "stream_producer_failed",
                producer=getattr(stream_ready, "__qualname__", repr(stream_ready)),
                path=self._context.request.path,
                execution_id=self._context.execution_id,
                exc_info=error,
            )
            self._channel.close()

    async def _tell(self, on_close: OnClose | None) -> None:
        """Call ``on_close``; what it raises is logged and hinders nothing."""
        if on_close is None:
            return
        try:
            told = on_close(self._context, self._channel.reason or CloseReason.CLOSED)
            if inspect.isawaitable(told):
                await told
        except Exception as error:  # noqa: BLE001  # the stream is over, whatever its observer thinks of it
            log.exception("stream_on_close_failed", execution_id=self._context.execution_id, exc_info=error)

    async def _end_of(self, producer: asyncio.Task[None]) -> None:
        """Let a producer that knows of the end return by itself; give up on one that does not."""
        done, _ = await asyncio.wait([producer], timeout=GRACE)
        if not done:
            producer.cancel()
        done, _ = await asyncio.wait([producer], timeout=GRACE)
        if not done:
            log.warning(
                "stream_producer_ignores_its_end",
                seconds=GRACE,
                path=self._context.request.path,
                execution_id=self._context.execution_id,
            )


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
