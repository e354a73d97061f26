"""An interceptor that is an event stream: commit, call the producer, pump its channel until the stream is over."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeAlias, overload

from aiohttp import web

from ..chain.interceptor import Interceptor
from ..observe.logs import log
from ..sse.channel import CloseReason, EventChannel, EventQueue, new_queue
from ..sse.event import Event
from ..sse.wire import encode
from .connection import Connection
from .context import RequestContext
from .lifespan import Streams
from .middleware import Handler, as_handler
from .response import EventStreamResponse

__all__ = ["event_stream", "start_event_stream"]

StreamReady: TypeAlias = Callable[[EventChannel, RequestContext], object]
OnClose: TypeAlias = Callable[[RequestContext, CloseReason], object]

# Seconds that a producer has to return once it knows that its stream is over. It is for cleaning up, which must be
# allowed to wait for a database; longer than this and it keeps the rest of the chain from leaving.
GRACE = 5.0


def start_event_stream(
    stream_ready: StreamReady,
    *,
    heartbeat: float | None = 10.0,
    buffer: int | Callable[[], EventQueue] = 10,
    retry: int | None = None,
    on_close: OnClose | None = None,
    name: str | None = None,
) -> Interceptor[RequestContext]:
    """Make an interceptor that commits an event stream and pauses the chain for as long as the stream is open.

    ``stream_ready(channel, context)``, plain or ``async``, is called once, when the head is on the wire and heartbeats
    run. Its return does not end the stream; ``channel.close()`` does, after all that was put has been sent. When the
    client leaves, ``put`` returns ``False`` at once, also to a caller that waits; a ``stream_ready`` that waits for
    something else is cancelled. One that raises is logged, and the stream ends. For HEAD it is not called.

    ``heartbeat`` is in seconds of idleness, ``None`` for none. ``buffer`` is how many events may wait, or a factory of
    an ``asyncio.Queue``. ``retry``, in milliseconds, goes out with the first event. ``on_close(context, reason)``,
    plain or ``async``, is called once, after the channel has closed, whatever closed it.

    Raises ``TypeError`` or ``ValueError`` for arguments that cannot work.
    """
    _check_call("stream_ready", stream_ready, "channel", "context")
    if heartbeat is not None:
        if isinstance(heartbeat, bool) or not isinstance(heartbeat, (int, float)):
            raise TypeError(f"heartbeat is a number of seconds or None, not {heartbeat!r}")
        if not 0 < heartbeat < float("inf"):
            raise ValueError(f"heartbeat is more than 0 seconds, not {heartbeat!r}; None means no heartbeat")
    if not callable(buffer):
        new_queue(buffer)
    Event("", retry=retry)
    if on_close is not None:
        _check_call("on_close", on_close, "context", "reason")

    if name is None:
        name = f"start_event_stream({getattr(stream_ready, '__name__', 'stream_ready')})"

    async def enter(context: RequestContext) -> None:
        if not isinstance(context, RequestContext):
            raise TypeError(f"{name} needs the RequestContext of an aiohttp request, not {context!r}")
        streams = Streams.of(context.request)
        if streams.closing:
            raise web.HTTPServiceUnavailable(headers={"Retry-After": "1"}, text="The server is stopping.")
        response = EventStreamResponse(allow_all_methods=True, ping_interval=heartbeat)
        try:
            await response.prepare(context.request)
        except ConnectionError:  # the client left before the head; aiohttp notes that by itself
            context.response = response
            return
        context.response = response
        if response.connection is not None:
            stream = _Stream(context, response, response.connection, EventChannel(buffer), retry)
            streams.add(stream)
            try:
                await stream.run(stream_ready, on_close)
            finally:
                streams.discard(stream)

    return Interceptor(name, enter)


@overload
def event_stream(function: Callable[..., object], /) -> Handler: ...
@overload
def event_stream(
    *,
    heartbeat: float | None = 10.0,
    buffer: int | Callable[[], EventQueue] = 10,
    retry: int | None = None,
    on_close: OnClose | None = None,
    name: str | None = None,
) -> Callable[[Callable[..., object]], Handler]: ...
def event_stream(
    function: Callable[..., object] | None = None,
    /,
    *,
    heartbeat: float | None = 10.0,
    buffer: int | Callable[[], EventQueue] = 10,
    retry: int | None = None,
    on_close: OnClose | None = None,
    name: str | None = None,
) -> Handler | Callable[[Callable[..., object]], Handler]:
    """Make a route's handler of a ``stream_ready`` function, or of an async generator of events.

    A ``stream_ready`` takes the channel and the context. A generator takes the context and yields events or strings;
    the stream ends when it does, and it is closed when the client leaves. Arguments as for ``start_event_stream``.
    """

    def decorate(function: Callable[..., object]) -> Handler:
        ready = _pump_of(function) if inspect.isasyncgenfunction(function) else function
        stream = start_event_stream(
            ready, heartbeat=heartbeat, buffer=buffer, retry=retry, on_close=on_close,
            name=getattr(function, "__name__", None) if name is None else name,
        )  # fmt: skip
        return as_handler(stream)

    return decorate if function is None else decorate(function)


def _pump_of(generate: Callable[[RequestContext], AsyncIterator[Event | str]]) -> StreamReady:
    """Make a ``stream_ready`` function of an async generator function."""
    _check_call("a generator of events", generate, "context")

    async def ready(channel: EventChannel, context: RequestContext) -> None:
        async with aclosing(generate(context)) as events:  # type: ignore[type-var]  # an async generator has aclose
            async for event in events:
                if not await channel.put(event):
                    return
        channel.close()

    ready.__name__ = generate.__name__
    return ready


class _Stream:
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
        connection.on_lost = self._on_lost

    async def run(self, stream_ready: StreamReady, on_close: OnClose | None) -> None:
        """Keep the stream until it is over. Cancelling ends it, and the cancellation goes on."""
        producer = asyncio.create_task(self._produce(stream_ready))
        try:
            if self._connection.lost:
                self._on_lost()
            await self._pump()
            await self._end_of_body()
        finally:
            self.end(CloseReason.SHUTDOWN)  # unless it is over already: we are being cancelled
            await _in_full(self._wind_up(producer, on_close))

    async def _wind_up(self, producer: asyncio.Task[None], on_close: OnClose | None) -> None:
        """Tell the hook, see the producer off, and log."""
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

    def _on_lost(self) -> None:
        self.end(CloseReason.CLIENT_LEFT)

    async def _pump(self) -> None:
        """Write what is put, all that is there in one piece, until the channel is over."""
        channel, connection = self._channel, self._connection
        while channel.reason is None:
            events = channel.take()
            if events:
                self._events += len(events)
                first, self._retry = self._retry, None
                connection.write(encode(events[0], retry=first) + b"".join(map(encode, events[1:])))
                await connection.writable()
            elif channel.closed:
                self.end(CloseReason.ERROR if self._failed else CloseReason.CLOSED)
            else:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _end_of_body(self) -> None:
        """Tell the client that the stream is complete, if it is there to be told."""
        if self._connection.paused and self._channel.reason is not CloseReason.CLOSED:
            self._connection.abort()  # it does not read, and there is nothing more that it must have
        elif await self._connection.writable():
            await self._response.write_eof()

    async def _produce(self, stream_ready: StreamReady) -> None:
        """Call the producer; what it raises ends the stream after what it put."""
        try:
            result = stream_ready(self._channel, self._context)
            if inspect.isawaitable(result):
                await result
        except Exception as error:  # noqa: BLE001  # whatever a producer raises, its stream ends and the log says why
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
        """Let a producer that knows of the end return by itself; cancel one that cannot know."""
        if self._channel.told or self._channel.reason is CloseReason.CLOSED:
            await asyncio.wait([producer], timeout=GRACE)
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


def _check_call(what: str, function: Any, *arguments: str) -> None:  # noqa: ANN401  # anything can be passed wrongly
    """Refuse a function that does not take these arguments."""
    call = f"{what}({', '.join(arguments)})"
    if not callable(function):
        raise TypeError(f"{what} is a plain or an async function, called as {call}, not {function!r}")
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as mismatch:
        raise TypeError(f"{what} is called as {call}, which {function!r} does not take: {mismatch}") from None
