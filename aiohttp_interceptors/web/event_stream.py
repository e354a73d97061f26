"""Event streams with a channel: ``start_event_stream``, ``event_stream``, and the stream that they open."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeAlias, Unpack, cast, overload

from aiohttp import hdrs, web
from aiohttp.abc import AbstractView

from .._checks import check_seconds, unwrap_partial
from ..chain import EMPTY_CHAIN, compile_chain
from ..channel import CloseReason, EventChannel, EventQueue
from ..compression import Compression
from ..encoder import Encoder, check_encoder, default_encoder, to_json
from ..exceptions import EXIT_EXCEPTIONS
from ..facts import EventsDropped
from ..interceptor import Interceptor
from .access import ExpiresAt, Owner, Revalidate, access_of
from .app import Streams
from .context import RequestContext
from .generators import collect, is_generator_function, ready_from_generator
from .lifecycle import Prepare, StreamFactory, StreamLifecycle, make_interceptor, run_stream
from .middleware import Handler, run_chain
from .producer import EarlyProducer, Producer, StreamReady, function_name
from .request import has_json_body, read_body, route_of, wants_event_stream
from .response import ChannelResponse
from .settings import DEFAULT_MAX_EVENT_SIZE, ChannelSettings, ErrorEvent, OnClose, StreamOptions, check_function
from .signature import bind_function, check_function_or_method
from .stream import StreamStatistics
from .timers import FlushQueue, flush_queue
from .transport import BATCH_SIZE, Connection

__all__ = ["ChannelStream", "event_stream", "start_event_stream"]


AsJson: TypeAlias = Callable[[list[Any]], object]


def start_event_stream(  # noqa: PLR0913  # each option is independent and has a default
    stream_ready: StreamReady,
    *,
    heartbeat: float | None = 10.0,
    buffer: int | Callable[[], EventQueue] = 10,
    retry: int | None = None,
    on_close: OnClose | None = None,
    name: str | None = None,
    stall_timeout: float | None = 60.0,
    max_age: float | None = None,
    max_event_size: int | None = DEFAULT_MAX_EVENT_SIZE,
    error_event: ErrorEvent | None = None,
    finite: bool | None = None,
    grace: float = 5.0,
    strict: bool = False,
    owner: Owner | None = None,
    expires_at: ExpiresAt | None = None,
    revalidate: Revalidate | None = None,
    revalidate_interval: float = 60.0,
    compress: bool | Compression = False,
) -> Interceptor[RequestContext]:
    """Make an interceptor that opens an event stream, and pauses the chain until the stream has closed.

    Its ``enter`` sends the response headers and calls ``stream_ready(channel, context)`` once. The stream stays open
    when ``stream_ready`` returns; ``channel.close()`` ends it after all events are sent. HEAD requests get the headers
    only.

    A request body is read first, and can still be read with ``await context.request.post()``, ``multipart()`` or
    ``json()``. The answer is 413 for a body larger than the application's ``client_max_size``, 408 if no data arrives
    for ``stall_timeout`` seconds, and 400 if the body is malformed.

    When the stream ends, ``put`` returns ``False``, also to a caller that is waiting. The chain continues when
    ``stream_ready`` has returned.

    An exception in ``stream_ready`` ends the stream, and ``enter`` raises it after the end of the body, so that
    ``error`` stages, ``@around`` and aiohttp treat it like the exception of a handler. An ``HTTPException`` is dropped
    and logged, because the headers are already sent. A ``BaseException`` is raised as the cause of a ``RuntimeError``.

    Args:
        stream_ready: A plain or async function that puts the events.
        heartbeat: Seconds of idleness after which a comment is sent; ``None`` for no heartbeats.
        buffer: Number of events that may wait in the channel, or a factory of ``asyncio.Queue``.
        retry: The reconnection time of browsers in milliseconds, sent with the first event.
        on_close: A plain or async function that is called once as ``on_close(context, reason)`` when the stream has
            ended, for any reason.
        name: Name of the interceptor. Default: made from the name of ``stream_ready``.
        stall_timeout: Seconds after which a client that acknowledges none of the sent bytes is disconnected, with the
            reason ``stalled``; ``None`` for no limit. If nothing is sent to a client that vanished, the time starts
            with the next heartbeat.
        max_age: Seconds after which the stream ends with the reason ``expired``, so that the client reconnects; the
            time is shortened by a random part of up to a fifth. ``None`` for no limit.
        max_event_size: Bytes of an encoded event above which ``put`` raises ``EventTooLarge``; ``None`` for no limit.
        error_event: The final event if ``stream_ready`` raises, or a function that makes the event from the exception.
            By default the body ends without its last chunk, so that the client detects an incomplete response.
        finite: Whether the response has an end, after which the client does not reconnect. Default: for each method
            but GET. A stopping server waits for a finite stream for the drain's ``grace``. If a finite stream ends
            before ``channel.close()``, the body ends without its last chunk. With HTTP/1.0 a client cannot detect this.
        grace: Seconds that ``stream_ready`` has, after the end of the stream, to call ``put``. Then it is cancelled;
            with 0 it is cancelled at once. While the server stops, the drain's ``timeout`` may end this earlier.
        strict: Answer 406 if the request's ``Accept`` header excludes event streams.
        owner: A plain function ``owner(context)`` that returns whose the stream is: a text such as ``"user:7"``,
            several, or ``None``. ``Hub.disconnect`` and ``Streams.disconnect`` end all streams of an owner. It and
            ``expires_at`` are called before anything else is done for the stream. An invalid owner is answered with
            400.
        expires_at: A plain function ``expires_at(context)`` that returns when the stream ends with the reason
            ``expired``, such as the ``exp`` of a token: seconds of the Unix epoch, a ``datetime`` with a time zone, or
            ``None``. A moment that is over is answered with 401.
        revalidate: A plain or async function ``revalidate(context)`` that returns whether the stream may go on.
            ``False`` ends it as ``kicked``. An exception is logged and ends it as ``error``, so that the client has to
            ask again.
        revalidate_interval: Seconds between two calls of ``revalidate``, shortened by a random part of up to a fifth.
            It is also the time that an async one may take.
        compress: Whether the stream is compressed with gzip for clients that accept it, or how. Each stream has a
            compressor of its own, which takes 192 KiB, or less with ``Compression(window=...)``.

    Returns:
        An interceptor for a chain that runs for an aiohttp request.

    Raises:
        TypeError: An argument has the wrong type, or a function does not take the arguments described.
        ValueError: A number is out of range, or ``name`` is blank.
    """
    check_function("stream_ready", stream_ready, "channel", "context")
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
        owner=owner,
        expires_at=expires_at,
        revalidate=revalidate,
        revalidate_interval=revalidate_interval,
        compress=compress,
    )
    if name is None:
        name = f"start_event_stream({getattr(stream_ready, '__name__', 'stream_ready')})"
    return make_interceptor(name, settings, _factory(settings, stream_ready))


@overload
def event_stream(function: Callable[..., object], /) -> Handler: ...
@overload
def event_stream(
    *,
    encoder: Encoder = ...,
    open_after: float = ...,
    as_json: AsJson | None = ...,
    **options: Unpack[StreamOptions],
) -> Callable[[Callable[..., object]], Handler]: ...
def event_stream(
    function: Callable[..., object] | None = None,
    /,
    *,
    encoder: Encoder = default_encoder,
    open_after: float = 0.25,
    as_json: AsJson | None = None,
    **options: Unpack[StreamOptions],
) -> Handler | Callable[[Callable[..., object]], Handler]:
    """Decorate a function that produces events, and make it the handler of a route.

    ``@event_stream`` and ``@event_stream(heartbeat=5)`` both work. The function is one of:

    * an async generator function of the context or the request, which yields events. When the client of an open
      stream disconnects, the generator is cancelled at once;
    * a plain generator function of the same, which runs in a thread of its own. When the client disconnects, it is
      closed at its next ``yield``;
    * a ``stream_ready(channel, context)``, as for ``start_event_stream``.

    A parameter that is annotated as ``web.Request``, or named ``request``, gets the request, any other the context. The
    function may also be a method of a class or of a ``web.View``.

    The response headers are sent when a generator yields its first event, ends, or has not done so for ``open_after``
    seconds. Until then it may raise an ``HTTPException``, or stage headers; another exception is like one of a plain
    handler. The stream ends when the generator ends. For a ``stream_ready`` the headers are sent first.

    Args:
        function: The function to decorate.
        encoder: A plain function that makes an event, or its data, of what a generator yields, unless it is an
            ``Event``. The default is ``default_encoder``. What the encoder raises is raised at the ``yield``.
        open_after: Seconds to wait for the first event before the headers are sent without one.
        as_json: A plain or async function that makes the JSON answer from the list of what a generator yields, or
            returns a response. It answers a client that does not ask for a stream, see ``wants_event_stream``, once
            the generator has ended. By default every client gets a stream. ``owner`` and ``expires_at`` refuse such a
            client, too; ``revalidate`` and a disconnect are for streams only.
        **options: Options of ``start_event_stream``. A generator takes no ``grace``.

    Returns:
        A handler, or with options a decorator that makes one.

    Raises:
        TypeError: As for ``start_event_stream``, or a generator has a ``grace``.
        ValueError: As for ``start_event_stream``, or ``open_after`` is negative.
    """
    if unknown := options.keys() - StreamOptions.__annotations__.keys():
        raise TypeError(f"event_stream() has no option {min(unknown)!r}")
    check_encoder(encoder)
    check_seconds("open_after", open_after, "", minimum=0)
    if as_json is not None:
        check_function("as_json", as_json, "values")
    if function is None:
        return lambda decorated: _make_handler(decorated, encoder, open_after, as_json, options)
    return _make_handler(function, encoder, open_after, as_json, options)


def _make_handler(
    function: Callable[..., object],
    encoder: Encoder,
    open_after: float,
    as_json: AsJson | None,
    options: StreamOptions,
) -> Handler:
    """Return the handler that opens a stream whose events the function produces."""
    if isinstance(function, staticmethod | classmethod):
        method: Any = type(function)
        return cast("Handler", method(_make_handler(function.__func__, encoder, open_after, as_json, options)))
    chosen: dict[str, Any] = {**options}
    name = chosen.pop("name", None)
    if name is None:
        name = getattr(function, "__name__", None) or function_name(function)
    generates = is_generator_function(function)
    if generates:
        chosen.setdefault("grace", 0.0)
    _check_decorated(function, name, generates=generates, has_grace=bool(chosen.get("grace")), as_json=as_json)
    opener = _Opener(function, encoder if generates else None, open_after, as_json, ChannelSettings(**chosen))
    unbound = compile_chain((make_interceptor(name, opener.settings, *opener.bind()),))

    async def handler(*args: Any) -> web.StreamResponse:
        *bound, last = args
        is_view = isinstance(last, AbstractView)
        if not (bound or is_view or as_json):
            return await run_chain(unbound, last, None)
        call = functools.partial(opener.respond, args if is_view else tuple(bound), is_view=is_view)
        call.__name__ = name  # type: ignore[attr-defined]  # for logs and errors
        return await run_chain(EMPTY_CHAIN, last.request if is_view else last, call)

    functools.update_wrapper(handler, cast("Callable[..., Any]", unwrap_partial(function)))
    handler.__name__ = name
    if as_json is not None:
        handler.as_json = as_json  # type: ignore[attr-defined]  # openapi() reads its annotation
    return handler


def _check_decorated(
    function: Callable[..., object], name: str, *, generates: bool, has_grace: bool, as_json: object
) -> None:
    """Raise ``TypeError`` if a function does not take the arguments that it will get, or an option is not for it."""
    if not generates:
        if as_json is not None:
            raise TypeError(f"as_json is for a generator, whose values it collects, and {function!r} is none")
        try:
            what = "the function of event_stream()"
            check_function_or_method(what, "stream_ready", function, "channel", "context")
        except TypeError as error:
            error.add_note("If it should be a generator of one argument, it has no yield.")
            raise
        return
    check_function_or_method("a generator of events", name, function, "context")
    if has_grace:
        raise TypeError(f"grace is for a function that calls put; {function!r} is a generator, and is ended at once")


class _Opener:
    """Opens the streams of one decorated function. Without an encoder, it is a ``stream_ready`` function."""

    def __init__(
        self,
        function: Callable[..., object],
        encoder: Encoder | None,
        open_after: float,
        as_json: AsJson | None,
        settings: ChannelSettings,
    ) -> None:
        self.settings: ChannelSettings = settings
        self._function = function
        self._encoder = encoder
        self._open_after = open_after
        self._as_json = as_json

    def bind(self, bound: tuple[object, ...] = (), *, is_view: bool = False) -> tuple[StreamFactory, Prepare | None]:
        """Return what ``run_stream`` takes for the function, or for the method that is bound to these arguments."""
        if self._encoder is None:
            return _factory(self.settings, bind_function(self._function, 2, bound, is_view=is_view)), None
        generate = bind_function(self._function, 1, bound, is_view=is_view)
        ready = ready_from_generator(self._function, generate, self._encoder)

        async def prepare(context: RequestContext) -> EarlyProducer:
            streams = Streams.of(context.request)
            streams.check_admission(context.request, context.execution_id)
            early = EarlyProducer(context, self.settings, ready, streams.stop_timeout)
            if not await early.start():
                waiting = functools.partial(early.wait, self._open_after)
                await streams.run_unless_shutdown(context.request, context.execution_id, waiting)
            early.check()
            return early

        return _factory(self.settings, None), prepare

    async def respond(self, bound: tuple[object, ...], request: web.Request, *, is_view: bool) -> web.StreamResponse:
        """Respond to a request with a stream, or with JSON."""
        context = RequestContext.of(request)
        if self._as_json is not None:
            context.response_headers.add(hdrs.VARY, hdrs.ACCEPT)
            streams = Streams.of(request)
            if has_json_body(request):
                body = functools.partial(read_body, request, self.settings.stall_timeout)
                await streams.run_unless_shutdown(request, context.execution_id, body)
            if not await wants_event_stream(request):
                access = access_of(context, self.settings.owner, self.settings.expires_at)
                access.check_expiry()
                generate = bind_function(self._function, 1, bound, is_view=is_view)
                collecting = functools.partial(collect, self._function, generate, context)
                values = await streams.run_unless_shutdown(request, context.execution_id, collecting)
                access.check_expiry()
                return await _json_response(self._as_json(values))
        await run_stream(context, self.settings, *self.bind(bound, is_view=is_view))
        return cast("web.StreamResponse", context.response)


async def _json_response(answer: object) -> web.StreamResponse:
    if inspect.isawaitable(answer):
        answer = await answer
    return answer if isinstance(answer, web.StreamResponse) else web.json_response(text=to_json(answer))


def _factory(settings: ChannelSettings, stream_ready: StreamReady | None) -> StreamFactory:
    """Return the function that makes a stream, of an ``EarlyProducer`` if there is one."""

    def make(
        context: RequestContext, response: ChannelResponse, connection: Connection, streams: Streams, early: object
    ) -> StreamLifecycle:
        producing = early if isinstance(early, EarlyProducer) else cast("StreamReady", stream_ready)
        stream_class = ObservedChannelStream if streams._observers else ChannelStream
        return stream_class(context, response, connection, streams, settings, producing)

    return make


class ChannelStream(StreamLifecycle):
    """An open stream that sends the events of its channel."""

    __slots__ = (
        "_events_sent",
        "_flush_queue",
        "_flush_scheduled",
        "_producing",
        "_queue_failed",
        "_reported_dropped",
        "channel",
    )

    def __init__(
        self,
        context: RequestContext,
        response: ChannelResponse,
        connection: Connection,
        streams: Streams,
        settings: ChannelSettings,
        producing: StreamReady | EarlyProducer,
    ) -> None:
        super().__init__(context, response, connection, streams, settings)
        self._producing: StreamReady | EarlyProducer | None = producing  # until it was started
        if isinstance(producing, EarlyProducer):
            self.channel: EventChannel = producing.channel
            producer = producing.producer
        else:
            self.channel = settings.create_channel()
            producer = Producer(self, context)
        self._producer: Producer = producer  # type: ignore[mutable-override]  # assigned once
        self._flush_queue: FlushQueue = flush_queue()
        self._flush_scheduled = False
        self._queue_failed = False  # a queue of the application raised, and is not used again
        self._events_sent = 0
        self._reported_dropped = 0
        self.channel._attach(self._schedule_flush, self._write_before_drop)

    # State

    @property
    def reason(self) -> CloseReason | None:
        return self.channel.reason

    @property
    def closed(self) -> bool:
        return self.channel.closed

    @property
    def end_observed(self) -> bool:
        return self.channel._end_observed

    @property
    def kind(self) -> str:
        return "channel"

    @property
    def behind(self) -> int:
        return self._buffered

    @property
    def _buffered(self) -> int:
        if self._queue_failed:
            return 0
        try:
            return self.channel.buffered
        except EXIT_EXCEPTIONS:
            raise
        except BaseException as error:  # noqa: BLE001  # statistics are also read for all streams at once
            self._end_with_queue_error(error)
            return 0

    def statistics(self) -> StreamStatistics:
        return StreamStatistics(
            events=self._events_sent,
            bytes=self._connection.frame_bytes,
            bytes_sent=self._connection.bytes_sent,
            buffered=self._buffered,
            unsent=self._connection.unsent,
            dropped=self.channel.dropped,
            seconds=self._duration,
            reason=self.channel.reason,
        )

    # Opening and ending

    def _start_producer(self) -> None:
        producing, self._producing = self._producing, None
        if isinstance(producing, EarlyProducer):
            producing.attach(self)
        elif producing is not None:
            self._producer.start(producing, self.channel, self._context)

    def end(self, reason: CloseReason) -> None:
        self.channel.end(reason)
        self._schedule_flush()

    def producer_failed(self) -> None:
        self.channel.close()

    def connection_changed(self) -> None:
        """Called when the client has disconnected, or writing can resume."""
        if self._connection.close_reason is not None:
            self.channel.end(self._connection.close_reason)
        self._schedule_flush()

    async def close(self, *, allow_grace: bool) -> None:
        """Report dropped events, and close the stream."""
        try:
            self.end(CloseReason.SHUTDOWN)
            self._report_dropped()
        finally:
            await super().close(allow_grace=allow_grace)

    def _end_with_queue_error(self, error: BaseException) -> None:
        """End the stream because the application's queue raised."""
        if not self._queue_failed:
            self._queue_failed = True
            if self._closed_at is None:
                self._producer.fail(error)
        self.end(CloseReason.ERROR)

    # Writing

    def _schedule_flush(self) -> None:
        """Have ``flush`` called once, in the next event loop iteration."""
        if self.channel.reason is not None:
            self._mark_ended()
        elif not self._flush_scheduled:
            self._flush_queue.add(self)
            self._flush_scheduled = True

    def flush(self) -> None:
        """Write the events of the channel, and end the stream if it is closed and all events are written."""
        self._flush_scheduled = False
        channel = self.channel
        if channel.reason is not None:
            return
        try:
            self._write_events()
            complete = channel.closed and not channel.buffered and not self._connection.paused
        except EXIT_EXCEPTIONS:
            raise
        except BaseException as error:  # noqa: BLE001  # an application's queue must not affect other streams
            self._end_with_queue_error(error)
            return
        if complete:
            self.end(CloseReason.CLOSED if self._producer.error is None else CloseReason.ERROR)

    def _write_events(self) -> None:
        """Write events in batches until the connection is paused."""
        channel, connection = self.channel, self._connection
        while not connection.paused and connection.close_reason is None:
            frames = channel._get_frames(BATCH_SIZE)
            if not frames:
                break
            self._events_sent += len(frames)
            connection.write_frames(frames[0] if len(frames) == 1 else b"".join(frames))
            channel._frames_written(len(frames))
        # While the client does not read, report only when the number has doubled, and not for each event.
        if channel.lossy and (not connection.paused or channel.dropped >= 2 * self._reported_dropped):
            self._report_dropped()

    def _write_before_drop(self) -> None:
        """Write what the connection accepts before a lossy queue drops an event."""
        if self.channel.reason is None:
            self._write_events()

    def _write_remaining(self) -> bool:
        if self._queue_failed:
            return False
        try:
            self._write_events()
        except EXIT_EXCEPTIONS:
            raise
        except BaseException as error:  # noqa: BLE001  # the stream ends without the remaining events
            self._end_with_queue_error(error)
        return self._buffered > 0

    def _report_dropped(self) -> None:
        total = self.channel.dropped
        if total != self._reported_dropped:
            count, self._reported_dropped = total - self._reported_dropped, total
            request = self._request
            self._streams.report(
                EventsDropped(self._context.execution_id, request.path, count, total, route=route_of(request))
            )


class ObservedChannelStream(ChannelStream):
    """An open stream that reports its first event, which others need not look for."""

    __slots__ = ("_first_event_since",)

    def __init__(
        self,
        context: RequestContext,
        response: ChannelResponse,
        connection: Connection,
        streams: Streams,
        settings: ChannelSettings,
        producing: StreamReady | EarlyProducer,
    ) -> None:
        super().__init__(context, response, connection, streams, settings, producing)
        began = producing.started_at if isinstance(producing, EarlyProducer) else self._opened_at
        self._first_event_since: float | None = began  # None once it was reported

    def _write_events(self) -> None:
        super()._write_events()
        since = self._first_event_since
        if since is not None and self._events_sent:
            self._first_event_since = None
            self._report_first_event(since)
