"""Interceptors that are event streams: commit, pause the chain, and go on when the stream is over."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Unpack, overload

from ..chain.interceptor import Interceptor, check_call
from ..sse.buffer import EventQueue
from ..sse.channel import EventChannel
from ..sse.event import Event
from .channel_stream import ChannelStream
from .connection import Connection
from .context import RequestContext
from .middleware import Handler, as_handler
from .opening import enter_stream
from .producer import StreamReady
from .response import ChannelResponse
from .settings import MAX_EVENT_SIZE, ChannelSettings, ErrorEvent, OnClose, StreamOptions
from .stream import Stream
from .streams import Streams

__all__ = ["event_stream", "start_event_stream"]


def start_event_stream(  # noqa: PLR0913  # each is an option of its own, and has a default
    stream_ready: StreamReady,
    *,
    heartbeat: float | None = 10.0,
    buffer: int | Callable[[], EventQueue] = 10,
    retry: int | None = None,
    on_close: OnClose | None = None,
    name: str | None = None,
    stall_timeout: float | None = 60.0,
    max_age: float | None = None,
    max_event_size: int | None = MAX_EVENT_SIZE,
    error_event: ErrorEvent | None = None,
    finite: bool | None = None,
    grace: float = 5.0,
    strict: bool = False,
) -> Interceptor[RequestContext]:
    """Make an interceptor that commits an event stream and pauses the chain for as long as the stream is open.

    ``stream_ready(channel, context)``, plain or ``async``, is called once, when the head is on the wire and heartbeats
    run. Its return does not end the stream; ``channel.close()`` does, after all that was put has been sent. For HEAD it
    is not called. A request's body is read before and can be read again: ``await context.request.post()``,
    ``multipart()``, ``json()``. A body of more than the application's ``client_max_size`` bytes is answered 413, one of
    which nothing comes for ``stall_timeout`` seconds 408, and one that cannot be read 400.

    When the stream is over, ``put`` returns ``False`` at once, also to a caller that waits. A ``stream_ready`` that
    waits for something else has ``grace`` seconds to come to its next ``put``, and is cancelled then; on stop the drain
    may allow less. With 0 it is cancelled at once. The chain goes on when it has returned.

    What it raises ends the stream, with the ``error_event`` (an event, or a function of the exception that makes one)
    if there is one, and is then raised by this ``enter``: ``error`` stages, ``@around`` and aiohttp see it as they see
    a handler's. An ``HTTPException`` comes after commit and is dropped. An exception that is no ``Exception`` is the
    cause of a ``RuntimeError``.

    ``heartbeat`` is in seconds of idleness, ``None`` for none. ``buffer`` is how many events may wait, or a factory of
    an ``asyncio.Queue``. ``retry``, in milliseconds, goes out with the first event. ``on_close(context, reason)``,
    plain or ``async``, is called once, after the channel has closed, whatever closed it.

    A client that takes nothing of what was sent to it for ``stall_timeout`` seconds is cut, with reason ``stalled``;
    one that vanished is owed something from the next heartbeat on. After ``max_age`` seconds, less up to a fifth by
    chance, a stream ends as ``expired`` and the client comes back. An event of more than ``max_event_size`` bytes is
    refused where it is put. A ``strict`` stream answers 406 to a request whose ``Accept`` excludes event streams.

    A ``finite`` stream is an answer with an end: by default each but those of GET. When the server stops it may go on
    for the drain's grace. If it ends before its producer closed it, or any stream because of an error that no
    ``error_event`` told of, the body ends without its last chunk, and the client sees that it was cut. A client of
    HTTP/1.0 cannot: there the end of the connection is the end of the body.

    Raises ``TypeError`` or ``ValueError`` for arguments that cannot work.
    """
    if not callable(stream_ready):
        raise TypeError(f"stream_ready is a plain or an async function, not {stream_ready!r}")
    check_call("stream_ready", "stream_ready", stream_ready, "channel", "context")
    settings = ChannelSettings(
        heartbeat=heartbeat,
        buffer=buffer,
        retry=retry,
        on_close=on_close,
        stall_timeout=stall_timeout,
        max_age=max_age,
        max_event_size=max_event_size,
        error_event=error_event,
        finite=finite,
        grace=grace,
        strict=strict,
    )
    if name is None:
        name = f"start_event_stream({getattr(stream_ready, '__name__', 'stream_ready')})"

    def make(
        context: RequestContext, response: ChannelResponse, connection: Connection, streams: Streams, _: object
    ) -> Stream:
        return ChannelStream(context, response, connection, streams, settings, stream_ready)

    def enter(context: RequestContext) -> Coroutine[None, None, None]:
        if not isinstance(context, RequestContext):
            raise TypeError(f"{name} needs the RequestContext of an aiohttp request, not {context!r}")
        return enter_stream(context, settings, make)

    return Interceptor(name, enter)


@overload
def event_stream(function: Callable[..., object], /) -> Handler: ...
@overload
def event_stream(**options: Unpack[StreamOptions]) -> Callable[[Callable[..., object]], Handler]: ...
def event_stream(
    function: Callable[..., object] | None = None, /, **options: Unpack[StreamOptions]
) -> Handler | Callable[[Callable[..., object]], Handler]:
    """Make a route's handler of a ``stream_ready`` function, or of an async generator of events.

    A ``stream_ready`` takes the channel and the context. A generator takes the context and yields events or strings;
    the stream ends when it does, and it is cancelled at once when the client leaves. Options as for
    ``start_event_stream``; a generator has no ``grace``, because no ``put`` tells it of the end.
    """
    if function is None:
        return lambda decorated: _handler_of(decorated, options)
    return _handler_of(function, options)


def _handler_of(function: Callable[..., object], options: StreamOptions) -> Handler:
    options = {"name": getattr(function, "__name__", None), **options}
    if not inspect.isasyncgenfunction(function):
        return as_handler(start_event_stream(function, **options))
    if options.setdefault("grace", 0.0):
        raise TypeError(
            f"grace is for a function that calls put; {function!r} is a generator, and is cancelled at once"
        )
    return as_handler(start_event_stream(_pump_of(function), **options))


def _pump_of(generate: Callable[[RequestContext], AsyncGenerator[Event | str, None]]) -> StreamReady:
    """Make a ``stream_ready`` function of an async generator function."""
    check_call("a generator of events", generate.__name__, generate, "context")

    async def ready(channel: EventChannel, context: RequestContext) -> None:
        async with aclosing(generate(context)) as events:
            async for event in events:
                if not await channel.put(event):
                    return
        channel.close()

    ready.__name__, ready.__qualname__ = generate.__name__, generate.__qualname__
    return ready
