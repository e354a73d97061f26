"""An open stream with a channel: what its producer puts is pumped into the connection."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Unpack, overload

from ..channel import CloseReason, EventChannel, EventQueue
from ..exceptions import FATAL
from ..facts import EventsDropped
from ..interceptor import Interceptor, check_call
from ..sse import Event
from .app import Streams
from .context import RequestContext
from .middleware import Handler, as_handler
from .producer import Producer, StreamReady
from .response import ChannelResponse
from .settings import MAX_EVENT_SIZE, ChannelSettings, ErrorEvent, OnClose, StreamOptions
from .stream import Stream, StreamStatistics, enter_stream
from .timers import FlushQueue, flush_queue
from .transport import BATCH, Connection

__all__ = ["ChannelStream", "event_stream", "start_event_stream"]


class ChannelStream(Stream):
    """One open stream of one producer."""

    __slots__ = ("_broken", "_dropped", "_due", "_error", "_events", "_feeder", "_flush_queue", "_ready", "channel")

    def __init__(
        self,
        context: RequestContext,
        response: ChannelResponse,
        connection: Connection,
        streams: Streams,
        settings: ChannelSettings,
        stream_ready: StreamReady,
    ) -> None:
        super().__init__(context, response, connection, streams, settings)
        self.channel: EventChannel = EventChannel(
            settings.buffer, retry=settings.retry, max_event_size=settings.max_event_size
        )
        self._producer = self._feeder = Producer(self.channel, context)
        self._error = settings.error_event
        self._ready = stream_ready
        self._flush_queue: FlushQueue = flush_queue()
        self._broken = False  # its queue raised, and is not asked again
        self._due = False  # in this turn's pumping already
        self._events = self._dropped = 0
        self.channel.attach(self._wake, self._relieve)

    @property
    def reason(self) -> CloseReason | None:
        """Why it ended; ``None`` as long as it has not."""
        return self.channel.reason

    def end(self, reason: CloseReason) -> None:
        """End the stream, for this reason if it is the first: a ``put`` that waits is told now."""
        self.channel.end(reason)
        self._wake()

    def statistics(self) -> StreamStatistics:
        """Return what the stream has done so far."""
        return StreamStatistics(
            events=self._events,
            bytes=self._connection.bytes,
            buffered=self._buffered,
            unsent=self._connection.unsent,
            dropped=self.channel.dropped,
            seconds=self._seconds,
            reason=self.channel.reason,
        )

    async def wind_up(self, *, patient: bool) -> None:
        """See the producer off and tell how it went. Runs to its end also while being cancelled."""
        try:
            self.end(CloseReason.SHUTDOWN)
            self._report_dropped()
        finally:
            await super().wind_up(patient=patient)

    def pump(self) -> None:
        """Write what was put, and end the stream when it was closed and all is sent."""
        self._due = False
        channel = self.channel
        if channel.reason is not None:
            return
        try:
            self._flush()
            sent = channel.closed and not channel.buffered and not self._connection.paused
        except FATAL:
            raise
        except BaseException as error:  # noqa: BLE001  # a queue of the user's own: its stream ends, and no other
            self._fail(error)
            return
        if sent:
            self.end(CloseReason.CLOSED if self._feeder.error is None else CloseReason.ERROR)

    def _fail(self, error: BaseException) -> None:
        """End the stream because its queue raised, which is not asked again."""
        if not self._broken:
            self._broken = True
            self._feeder.fail(error)
        self.end(CloseReason.ERROR)

    @property
    def _buffered(self) -> int:
        if self._broken:
            return 0
        try:
            return self.channel.buffered
        except FATAL:
            raise
        except BaseException as error:  # noqa: BLE001  # statistics are asked for by who looks at all streams
            self._fail(error)
            return 0

    def _start(self) -> None:
        self._feeder.start(self._ready, self.channel, self._context)

    def connection_changed(self) -> None:
        """Note that the connection is lost, or has room again."""
        if self._connection.loss is not None:
            self.channel.end(self._connection.loss)
        self._wake()

    def _wake(self) -> None:
        if self.channel.reason is not None:
            self._finish()
        elif not self._due:
            self._flush_queue.add(self)
            self._due = True

    def _flush(self) -> None:
        """Write, in pieces of about a batch, as much as the connection takes."""
        channel, connection = self.channel, self._connection
        while not connection.paused and connection.loss is None:
            frames = channel.take_frames(BATCH)
            if not frames:
                break
            self._events += len(frames)
            connection.write_frames(frames[0] if len(frames) == 1 else b"".join(frames))
            channel.written(len(frames))
        # While the client reads nothing each doubling is told, or there would be a line in the log for every event.
        if channel.lossy and (not connection.paused or channel.dropped >= 2 * self._dropped):
            self._report_dropped()

    def _relieve(self) -> None:
        """Write now what a queue would lose otherwise."""
        if self.channel.reason is None:
            self._flush()

    def _write_rest(self) -> bool:
        if self._broken:
            return False
        try:
            self._flush()
        except FATAL:
            raise
        except BaseException as error:  # noqa: BLE001  # the rest is lost with the queue, and the stream still ends
            self._fail(error)
        return self._buffered > 0

    def _error_event(self) -> ErrorEvent | None:
        return self._error

    def _report_dropped(self) -> None:
        total = self.channel.dropped
        if total != self._dropped:
            count, self._dropped = total - self._dropped, total
            self._streams.tell(
                EventsDropped(self._context.execution_id, self._context.request.path, count=count, total=total)
            )


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
