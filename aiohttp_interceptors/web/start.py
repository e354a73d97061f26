"""Interceptors that are event streams: commit, pause the chain, and go on when the stream is over."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TypedDict, Unpack, overload

from aiohttp import web

from ..chain.interceptor import Interceptor, check_call
from ..sse.channel import EventChannel, EventQueue, new_queue
from ..sse.event import Event
from .context import RequestContext
from .lifespan import Streams
from .middleware import Handler, as_handler
from .response import EventStreamResponse
from .stream import OnClose, Stream, StreamReady

__all__ = ["StreamOptions", "event_stream", "start_event_stream"]


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
    _check_options(stream_ready, heartbeat, buffer, retry, on_close)
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
            stream = Stream(context, response, response.connection, EventChannel(buffer), retry)
            streams.add(stream)
            try:
                await stream.run(stream_ready, on_close)
            finally:
                streams.discard(stream)

    return Interceptor(name, enter)


class StreamOptions(TypedDict, total=False):
    """The options of ``start_event_stream``."""

    heartbeat: float | None
    buffer: int | Callable[[], EventQueue]
    retry: int | None
    on_close: OnClose | None
    name: str | None


@overload
def event_stream(function: Callable[..., object], /) -> Handler: ...
@overload
def event_stream(**options: Unpack[StreamOptions]) -> Callable[[Callable[..., object]], Handler]: ...
def event_stream(
    function: Callable[..., object] | None = None, /, **options: Unpack[StreamOptions]
) -> Handler | Callable[[Callable[..., object]], Handler]:
    """Make a route's handler of a ``stream_ready`` function, or of an async generator of events.

    A ``stream_ready`` takes the channel and the context. A generator takes the context and yields events or strings;
    the stream ends when it does, and it is closed when the client leaves. Options as for ``start_event_stream``.
    """
    if function is None:
        return lambda decorated: _handler_of(decorated, options)
    return _handler_of(function, options)


def _handler_of(function: Callable[..., object], options: StreamOptions) -> Handler:
    options = {"name": getattr(function, "__name__", None), **options}
    ready = _pump_of(function) if inspect.isasyncgenfunction(function) else function
    return as_handler(start_event_stream(ready, **options))


def _pump_of(generate: Callable[[RequestContext], AsyncGenerator[Event | str, None]]) -> StreamReady:
    """Make a ``stream_ready`` function of an async generator function."""
    check_call("a generator of events", generate.__name__, generate, "context")

    async def ready(channel: EventChannel, context: RequestContext) -> None:
        async with aclosing(generate(context)) as events:
            async for event in events:
                if not await channel.put(event):
                    return
        channel.close()

    ready.__name__ = generate.__name__
    return ready


def _check_options(
    stream_ready: object, heartbeat: object, buffer: int | Callable[[], EventQueue], retry: int | None, on_close: object
) -> None:
    """Refuse what cannot work, before anybody opens a stream."""
    if not callable(stream_ready):
        raise TypeError(f"stream_ready is a plain or an async function, not {stream_ready!r}")
    check_call("stream_ready", "stream_ready", stream_ready, "channel", "context")
    if heartbeat is not None:
        if isinstance(heartbeat, bool) or not isinstance(heartbeat, (int, float)):
            raise TypeError(f"heartbeat is a number of seconds or None, not {heartbeat!r}")
        if not 0 < heartbeat < float("inf"):
            raise ValueError(f"heartbeat is more than 0 seconds, not {heartbeat!r}; None means no heartbeat")
    if not callable(buffer):
        new_queue(buffer)
    Event("", retry=retry)
    if on_close is not None:
        if not callable(on_close):
            raise TypeError(f"on_close is a plain or an async function, not {on_close!r}")
        check_call("on_close", "on_close", on_close, "context", "reason")
