"""The response of an event stream, which cannot change once its headers are sent.

``EventStreamResponse`` has the interface and the bytes of aiohttp-sse. The other two are the responses of the stream
interceptors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self, TypeAlias, cast

from aiohttp import ClientConnectionResetError, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import rfc822_formatted_time
from aiohttp_sse import EventSourceResponse
from multidict import CIMultiDict

from .._threads import check_loop
from ..channel import CloseReason
from ..compression import GZIP_HEAD, BodyEncoder, Framing, accepts_gzip
from ..sse import HEARTBEAT, Event, encode
from .app import CANCEL_FRACTION, Drain, Streams
from .commit import (
    FRAMING,
    NO_COOKIES,
    CommitGuard,
    GuardedHeaders,
    StagedHeaders,
    add_late_cookies,
    cookie_lines,
    freeze_response,
    is_committed,
    log_dropped_change,
    remove_framing_headers,
)
from .context import RequestContext, before_commit
from .request import combined_header
from .transport import HIGH_WATER, Connection

if TYPE_CHECKING:
    from aiohttp.http_writer import StreamWriter

__all__ = ["ChannelResponse", "EventStreamResponse", "TopicResponse"]


# Seconds, at most, that a handler has to return after its stream ended because the server stops.
MAX_HANDLER_GRACE = 5.0
# Says after how many seconds of idleness the stream sends a heartbeat. A client that receives nothing for longer knows
# that the connection is dead.
HEARTBEAT_HEADER = "Event-Stream-Heartbeat"

CACHE_CONTROL = "no-cache, no-transform"

_DISCONNECTED = "the client has disconnected from the event stream"
_DISCARDED = "the event stream is not sent, because another response was committed before"


class EventStreamResponse(CommitGuard, EventSourceResponse):
    """An ``aiohttp_sse.EventSourceResponse`` that detects disconnects at once and cannot change after commit.

    An application that uses aiohttp-sse passes it as ``sse_response(request, response_cls=EventStreamResponse)``. The
    bytes on the wire are the same. The differences are:

    * When the client disconnects, ``wait`` returns and ``send`` raises at once, also a ``send`` that is waiting. A
      handler that awaits something else continues, unless a subclass sets ``handler_cancellation``.
    * There is no ping task, and pings are sent to idle streams only.
    * ``Cache-Control`` contains ``no-transform``, and ``Connection`` is left to aiohttp.
    * A second ``prepare`` after a disconnect raises ``ConnectionResetError``.

    When an application with ``setup(app)`` stops, the client gets the drain's final event, ``wait`` returns and
    ``is_connected()`` is false. The handler is cancelled after four fifths of the drain's ``timeout``, and after 5
    seconds at the latest. The body is then complete for GET. For other methods, whose clients do not reconnect, the
    drain's ``grace`` is waited for before, and the body ends without its last chunk. Without ``setup(app)``, aiohttp
    waits for the handler for twice its ``shutdown_timeout``.

    Args:
        status: HTTP status code.
        reason: HTTP reason phrase.
        headers: Additional response headers.
        sep: Line separator; CRLF by default.
        allow_all_methods: Accept requests of other methods than GET.
        send_timeout: Seconds after which a client that does not read is disconnected; ``None`` for no limit.
        ping_interval: Seconds of idleness after which a ping is sent; ``None`` for no pings.

    Raises:
        ValueError: ``ping_interval`` is not positive.
    """

    handler_cancellation = False
    """Whether the handler is cancelled when its client disconnects, as with aiohttp's server option of this name."""

    _is_event_stream: bool = True  # for any Content-Type
    _incomplete = False
    _written_cookies: Mapping[str, str] = NO_COOKIES  # those set before on_response_prepare
    _date: str | None = None  # the Date header, which is not among the shared headers
    _handler: asyncio.Task[None] | None = None  # while the stream is registered with the application
    _streams: Streams | None = None
    _cancel_handle: asyncio.TimerHandle | None = None  # cancels the handler, once the server stops
    _opened_at = 0.0  # when the stream was registered, in seconds of the event loop's clock
    _early_heartbeat = False  # aiohttp-sse sends its first ping after the interval
    _tells_heartbeat = False  # the headers are those of aiohttp-sse
    _make_encoder: Callable[[Framing], BodyEncoder] | None = None  # of ChannelResponse alone, which sends the head

    _high_water = 64 * 1024  # bytes; asyncio's default, so that send() waits no earlier than aiohttp-sse's

    def __init__(
        self,
        *,
        status: int = 200,
        reason: str | None = None,
        headers: Mapping[str, str] | None = None,
        sep: str | None = None,
        allow_all_methods: bool = False,
        send_timeout: float | None = EventSourceResponse.DEFAULT_SEND_TIMEOUT,
        ping_interval: float | None = EventSourceResponse.DEFAULT_PING_INTERVAL,
    ) -> None:
        super().__init__(
            status=status,
            reason=reason,
            headers=headers,
            sep=sep,
            allow_all_methods=allow_all_methods,
            send_timeout=send_timeout,
            ping_interval=self.DEFAULT_PING_INTERVAL if ping_interval is None else ping_interval,
        )
        self._heartbeat = ping_interval
        if self._tells_heartbeat and ping_interval is not None:
            self._headers[HEARTBEAT_HEADER] = f"{ping_interval:.10g}"
        self._ended: asyncio.Event | None = None  # made when first needed
        self._head_writer: AbstractStreamWriter | None = None  # aiohttp forgets its own at the end of the body
        del self._headers[hdrs.CONNECTION]
        self._headers[hdrs.CACHE_CONTROL] = CACHE_CONTROL
        self.connection: Connection | None = None
        """The connection to the client, for internal use; ``None`` before ``prepare``, and for HEAD."""

    # Sending the headers

    def enable_compression(self, *args: Any, **kwargs: Any) -> None:
        """Not supported, because aiohttp holds events back until it has enough bytes to compress.

        Raises:
            NotImplementedError: Always, unless the headers are already sent.
        """
        if not self._headers_sent:
            raise NotImplementedError(
                "aiohttp cannot compress the response of an event stream, because it would hold events back; use "
                "compress=True of start_event_stream and start_topic_stream, and call enable_compression() only for "
                "responses that are no EventStreamResponse"
            )
        super().enable_compression(*args, **kwargs)  # dropped and logged

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send the headers, with those that interceptors staged, and start to watch the connection. Idempotent.

        Args:
            request: The request to respond to.

        Raises:
            web.HTTPMethodNotAllowed: For another method than GET, unless ``allow_all_methods`` is set.
            ConnectionResetError: It is called again after the client has disconnected.
        """
        if self.prepared:
            if request.transport is None or request.transport.is_closing():
                raise ClientConnectionResetError(_DISCONNECTED)
            return await super(EventSourceResponse, self).prepare(request)
        if not self._allow_all_methods and request.method != hdrs.METH_GET:
            raise web.HTTPMethodNotAllowed(request.method, (hdrs.METH_GET,))
        if _is_committed(request):
            return self._discard(request)
        if request.version < (1, 1):
            self.force_close()  # without chunks, the end of the connection is the end of the stream
        self._head_writer = await self._commit(request, RequestContext.find(request))
        if request.method == hdrs.METH_HEAD:
            self._set_ended()
        else:
            self.connection = Connection(
                request,
                self._heartbeat,
                self._send_timeout,
                self._heartbeat_frame(),
                self._high_water,
                early_heartbeat=self._early_heartbeat,
                make_encoder=self._make_encoder,
            )
            self._begin_body()
            self._register(request)
        return self._head_writer

    def _discard(self, request: web.BaseRequest) -> AbstractStreamWriter:
        """Send nothing, because another response was committed: this one can only end the body of that one."""
        context = RequestContext.find(request)
        attempted = f"prepare {self!r}"
        if context is None:
            log_dropped_change(attempted, None)
        else:
            context._drop_if_committed(attempted)
        self._req, self._payload_writer = request, request.writer
        self._discarded = True
        freeze_response(self)
        self._set_ended()
        return request.writer

    async def _commit(self, request: web.BaseRequest, context: RequestContext | None) -> AbstractStreamWriter | None:
        """Send the headers. If that fails before anything was written, another response can still be sent."""
        staged = None if context is None else context._staged_headers
        remove_framing_headers(self._headers, context, (*FRAMING, "content-encoding"))
        if context is not None:
            context._merge_staged_headers(self)
        if self._cookies:
            self._written_cookies = cookie_lines(self)
        return await self._send(request, context, staged)

    async def _send(
        self, request: web.BaseRequest, context: RequestContext | None, staged: StagedHeaders | None
    ) -> AbstractStreamWriter | None:
        try:
            writer = await super(EventSourceResponse, self).prepare(request)
        except Exception:
            if not _is_committed(request):  # the response to the error must not be chunked, and gets the staged headers
                cast("StreamWriter", request.writer).chunked = False
                if context is not None:
                    context._restore_staged_headers(staged)
            raise
        if not self._headers_sent:
            self._date, self._headers = self._headers.get(hdrs.DATE), _shared_without_date(self._headers)
            freeze_response(self)
        if context is not None:
            context._attach_committed(self)
        return writer

    async def _write_headers(self) -> None:
        """Write the headers, without those that frame the body and with the cookies of ``on_response_prepare``."""
        request = cast("web.BaseRequest", self._req)
        remove_framing_headers(self._headers, RequestContext.find(request), ("content-length", "content-encoding"))
        self._set_content_encoding()
        add_late_cookies(self, self._written_cookies)
        if HEARTBEAT_HEADER in self._headers and hdrs.ACCESS_CONTROL_ALLOW_ORIGIN in self._headers:
            CIMultiDict.add(self._headers, hdrs.ACCESS_CONTROL_EXPOSE_HEADERS, HEARTBEAT_HEADER)
        await super()._write_headers()

    def _set_content_encoding(self) -> None:
        """Do nothing: aiohttp-sse does not compress."""

    def _begin_body(self) -> None:
        """Do nothing: the body begins with the first event or heartbeat."""

    @property
    def headers(self) -> CIMultiDict[str]:
        """The headers. After commit a copy that drops changes."""
        headers = self._headers
        if not self._headers_sent:
            # Guarded from the end of __init__ on, so that a reference taken now drops changes after commit.
            if type(headers) is CIMultiDict and getattr(self, "connection", self) is None:
                headers = self._headers = GuardedHeaders.of(headers, self)
            return headers
        headers = super().headers
        if self._date is not None:
            CIMultiDict.add(headers, hdrs.DATE, self._date)
        return headers

    # Sending events

    async def send(
        self,
        data: str,
        id: str | None = None,  # noqa: A002  # aiohttp-sse's name
        event: str | None = None,
        retry: int | None = None,
    ) -> None:
        """Send an event, and wait while the client reads slowly. Cancelling is safe: the event is sent.

        Args:
            data: The data; each line becomes a ``data`` line.
            id: The event ID, which a client sends as ``Last-Event-ID`` when it reconnects.
            event: The event's name.
            retry: The reconnection time in milliseconds.

        Raises:
            ValueError: A field cannot be encoded.
            ConnectionResetError: The client has disconnected.
            TimeoutError: The client read nothing for ``send_timeout`` seconds. The connection is closed before.
            RuntimeError: The response was not prepared, or its body has ended.
        """
        frame = self._encode(data, id, event, retry)
        if self._eof_sent:
            raise RuntimeError("Cannot call write() after write_eof()")  # aiohttp's message
        connection = self._prepared_connection()
        if connection is None:
            if self._discarded:
                raise ClientConnectionResetError(_DISCARDED)
            return
        connection.write_frames(frame)
        if connection.paused and not connection.closing:
            try:
                async with asyncio.timeout(self._send_timeout):
                    await connection.wait_writable()
            except TimeoutError:
                connection.mark_disconnected(CloseReason.STALLED)
                connection.abort()
        if connection.closing:
            self._set_ended()
            if connection.close_reason is CloseReason.STALLED:
                raise TimeoutError(f"the client has read nothing for {self._send_timeout} seconds")
            raise ClientConnectionResetError(_DISCONNECTED)

    def _encode(self, data: str, id: str | None, event: str | None, retry: int | None) -> bytes:  # noqa: A002  # as above
        """Encode an event with the bytes and the error messages of aiohttp-sse, whose frames start with the ID."""
        if data is None:
            raise TypeError("data is a str, not None")
        if isinstance(id, str) and (self.LINE_SEP_EXPR.search(id) or "\0" in id):
            raise ValueError(f"id must not contain line separators or null characters, and {id!r} does")
        if isinstance(event, str) and self.LINE_SEP_EXPR.search(event):
            raise ValueError(f"event must not contain line separators, and {event!r} does")
        if isinstance(retry, int) and retry < 0:
            raise ValueError(f"retry must not be negative, and {retry!r} is")
        frame = encode(Event(data, event, None, retry))
        if id is not None and (id_event := Event(id=id)).id is not None:
            frame = encode(id_event)[:-1] + frame
        return frame if self._sep == "\n" else frame.replace(b"\n", self._sep.encode())

    def _heartbeat_frame(self) -> bytes:
        """Return aiohttp-sse's ping."""
        return f": ping{self._sep}{self._sep}".encode()

    # The end of the stream

    def is_connected(self) -> bool:
        """Return whether the client is connected and the stream has not ended."""
        ended = self._ended is not None and self._ended.is_set()
        return self.connection is not None and not self.connection.disconnected and not ended

    async def wait(self) -> None:
        """Wait until the client has disconnected or ``stop_streaming`` was called. Cancelling is safe.

        Raises:
            RuntimeError: The response was not prepared.
        """
        connection = self._prepared_connection()
        if connection is not None and self._ended is None:
            self._ended = asyncio.Event()
            connection.listener = self
            self.connection_changed()  # the client may have disconnected before
        if self._ended is not None:
            await self._ended.wait()

    def stop_streaming(self) -> None:
        """Make ``wait`` return. Idempotent.

        Raises:
            RuntimeError: The response was not prepared, or the calling thread is not the one of its event loop.
        """
        connection = self._prepared_connection()
        if connection is not None:
            check_loop(connection.loop, "stop_streaming()", "loop.call_soon_threadsafe(response.stop_streaming)")
            connection.stop_heartbeats()
        self._set_ended()

    async def write_eof(self, data: bytes = b"") -> None:
        """End the body and release the connection for its next request. aiohttp calls this after the handler."""
        self._set_ended()
        self._unregister()
        if self.connection is not None:
            if self.connection.listener is not None:
                self.connection.listener.response_ended()
            if self.connection.pipeline_overflowed:
                self.force_close()
            if not self._incomplete:
                data = (self.connection.encode(data) if data else b"") + self.connection.finish()
            self.connection.detach()
        if not self._incomplete:
            writer = self._head_writer
            before = 0 if writer is None else writer.output_size
            await super().write_eof(data)
            if writer is not None and self.connection is not None:
                self.connection.count_sent_by_aiohttp(writer.output_size - before)

    @property
    def body_length(self) -> int:
        """Bytes sent, for the access log. They include the headers while the body has not ended."""
        return super().body_length or (0 if self._head_writer is None else self._head_writer.output_size)

    def _mark_incomplete(self) -> None:
        """Make the body end without its last chunk, followed by the end of the connection, so that clients notice."""
        self._incomplete = True
        self.force_close()
        if self.connection is not None:
            self.connection.stop_heartbeats()

    def _set_ended(self) -> None:
        if self._ended is None:
            self._ended = asyncio.Event()
        self._ended.set()

    def _prepared_connection(self) -> Connection | None:
        """Return the connection, or ``None`` for HEAD and for a discarded response."""
        if self.connection is None and not self.prepared:
            raise RuntimeError("Response is not started")  # aiohttp-sse's message
        return self.connection

    # Events of the connection

    def connection_changed(self) -> None:
        """Called when the client has disconnected, or writing can resume."""
        if self.connection is not None and self.connection.disconnected:
            self._set_ended()
            if self._handler is not None and self.handler_cancellation:
                self._handler.cancel()

    def connection_paused(self) -> None:
        """Do nothing: ``send`` waits."""

    def response_ended(self) -> None:
        """Do nothing: ``write_eof`` calls this."""

    # Registration as an open stream of the application

    def _register(self, request: web.BaseRequest) -> None:
        """Register the stream with its application, until the body or the handler has ended."""
        if not isinstance(request, web.Request) or self.connection is None:
            return  # a low-level server has no application
        self._handler = request.task
        self._opened_at = self.connection.loop.time()
        self._streams = Streams.of(request)
        self._handler.add_done_callback(self._unregister)
        self.connection.listener = self
        self.connection_changed()  # the client may have disconnected before
        self._streams.add(self)

    def _unregister(self, _: object = None) -> None:
        """Idempotent."""
        if self._cancel_handle is not None:
            self._cancel_handle.cancel()
        if self._handler is not None:
            self._handler.remove_done_callback(self._unregister)
        if self._streams is not None:
            self._streams.discard(self)
        self._handler = self._streams = self._cancel_handle = None
        if self.connection is not None and self.connection.disconnected:  # aiohttp does not end the body
            self.connection.detach()

    @property
    def finite(self) -> bool:
        """Whether the response has an end. The client of a GET reconnects instead."""
        return self._req is not None and self._req.method != hdrs.METH_GET

    def shut_down(self, drain: Drain) -> None:
        """End the stream because the server stops, and cancel its handler if it does not return in time.

        Args:
            drain: How the application ends its streams.
        """
        if self._handler is None or self._cancel_handle is not None or self.connection is None:
            return
        if drain.farewell is not None and self.is_connected():
            self.connection.write_frames(encode(drain.farewell).replace(b"\n", self._sep.encode()))
        if self.finite and self.is_connected():  # even if the handler returns by itself
            self._mark_incomplete()
        self.stop_streaming()
        seconds = 0.0 if self.connection.disconnected else min(MAX_HANDLER_GRACE, drain.timeout * CANCEL_FRACTION)
        self._cancel_handle = asyncio.get_running_loop().call_later(seconds, self.cancel_producer)

    def cancel_producer(self) -> None:
        """End the body, and cancel the handler, which has not returned."""
        handler, connection = self._handler, self.connection
        if handler is None or connection is None or self._eof_sent:
            return
        self._eof_sent = True
        self.force_close()
        if not self.finite:
            connection.write_frames(b"")  # the last chunk
        handler.cancel()

    def abort(self) -> None:
        """End the stream without waiting for its client or its handler."""
        self.cancel_producer()
        if self.connection is not None:
            self.connection.abort()


class ChannelResponse(EventStreamResponse):
    """The response of a stream interceptor, with LF as the line separator and the shortest heartbeat.

    The application's registry holds the ``StreamLifecycle`` instead, which is also the connection's listener.
    """

    DEFAULT_SEPARATOR = "\n"
    _early_heartbeat = True
    _tells_heartbeat = True
    _high_water = HIGH_WATER
    _varies = False  # other clients get the stream in another coding
    _usual: _UsualHeaders | None = None  # of its kind, unless the application adds some

    @classmethod
    def of(cls, heartbeat: float | None, stall_timeout: float | None) -> Self:
        """Make a response to any method, for a third of the constructor's time."""
        attributes = _attributes(cls, heartbeat, stall_timeout)
        if attributes is None:
            return cls(allow_all_methods=True, ping_interval=heartbeat, send_timeout=stall_timeout)
        response = cls.__new__(cls)
        for name, value in attributes:
            setattr(response, name, value)
        response._state, response._headers = {}, CIMultiDict(response._headers)
        return response

    async def _commit(self, request: web.BaseRequest, context: RequestContext | None) -> AbstractStreamWriter | None:
        self._varies = self._make_encoder is not None
        if self._varies:
            CIMultiDict.add(self._headers, hdrs.VARY, hdrs.ACCEPT_ENCODING)
            staged = None if context is None else context._staged_headers
            # The stream's own no-transform is for proxies.
            if (staged and _forbids_coding(staged)) or not accepts_gzip(combined_header(request, hdrs.ACCEPT_ENCODING)):
                self._make_encoder = None
        if context is None or not _has_usual_headers(request, context):
            return await super()._commit(request, context)
        kind = type(self), self._heartbeat, self._varies, self._make_encoder is not None
        self._usual = usual = _usual_headers.get(kind) or _UsualHeaders(kind, self._headers)
        if usual.headers is None:
            return await super()._commit(request, context)
        context._preparing = self
        return await self._send(request, context, None)

    async def _start(self, request: web.BaseRequest) -> AbstractStreamWriter:
        """Write the headers. aiohttp's ``prepare`` calls this, also one that an instrumentation has wrapped."""
        usual = self._usual
        if usual is None or not usual.suits(self, request):
            return await super()._start(request)
        if usual.headers is None:
            writer = await super()._start(request)
            usual.remember(self._headers)
            return writer
        writer = cast("StreamWriter", request.writer)
        self._req, self._payload_writer, self._keep_alive = request, writer, True
        self._headers, self._date = usual.headers, rfc822_formatted_time()
        writer.enable_chunking()
        await writer.write_headers(STATUS_LINE, usual.dated(self._date))
        self._headers_sent = True  # there are no cookies to freeze
        if self._send_headers_immediately:
            writer.send_headers()
        return writer

    def _set_content_encoding(self) -> None:
        if _forbids_coding(self._headers) and self._headers[hdrs.CACHE_CONTROL] != CACHE_CONTROL:
            self._make_encoder = None  # an on_response_prepare handler forbids it
        if self._make_encoder is not None:
            CIMultiDict.add(self._headers, hdrs.CONTENT_ENCODING, "gzip")
        if self._varies and "accept-encoding" not in ",".join(self._headers.getall(hdrs.VARY, ())).lower():
            CIMultiDict.add(self._headers, hdrs.VARY, hdrs.ACCEPT_ENCODING)  # such a handler has replaced it

    def _begin_body(self) -> None:
        if self._make_encoder is not None and self.connection is not None and self._send_headers_immediately:
            self.connection.write_head(GZIP_HEAD)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes of the body. In a compressed stream they are compressed like an event."""
        connection = self.connection
        if connection is not None and not self._eof_sent:
            data = connection.encode(data)
            if data and not connection.closing:  # else aiohttp writes nothing
                connection.count_chunk_sent_by_aiohttp(len(data))
        await super().write(data)

    def _register(self, request: web.BaseRequest) -> None:
        pass

    def _heartbeat_frame(self) -> bytes:
        return HEARTBEAT


@lru_cache(64)
def _attributes(
    cls: type[ChannelResponse], heartbeat: float | None, stall_timeout: float | None
) -> tuple[tuple[str, object], ...] | None:
    """Return what the constructor sets, or ``None`` if two responses must not share it.

    They do not with another aiohttp, or with an instrumentation that wraps the constructor.
    """
    attributes, others = (
        vars(cls(allow_all_methods=True, ping_interval=heartbeat, send_timeout=stall_timeout)) for _ in range(2)
    )
    shared = {name: attributes[name] for name in attributes.keys() - {"_state", "_headers"}}
    if not all(value is None or isinstance(value, (str, int, float)) for value in shared.values()):
        return None
    return tuple(attributes.items()) if attributes == others else None


class TopicResponse(ChannelResponse):
    """The response of a topic stream, whose headers are sent together with the first frames."""

    _send_headers_immediately = False
    _early_heartbeat = False  # scheduled by send_headers() if there are no frames
    # What the kernel does not accept stays in the history, which all clients share. uvloop writes immediately only what
    # exceeds the mark.
    _high_water = 1

    async def send_headers(self, frames: bytes) -> None:
        """Send the headers and these frames with one system call, which is most of what a reconnection costs."""
        writer = self._payload_writer
        if writer is None:
            return
        encoder = None if self.connection is None else self.connection.encoder
        if isinstance(encoder, BodyEncoder):
            frames = GZIP_HEAD + (encoder.encode(frames) if frames else b"")
        try:
            if frames:
                await cast("StreamWriter", writer).write(frames, drain=False)
            writer.send_headers()  # idempotent
        except ConnectionError:  # connection_lost() is yet to be called
            return
        if self.connection is not None:
            if frames:
                self.connection.count_chunk_sent_by_aiohttp(len(frames))
            else:
                self.connection.schedule_first_heartbeat()


def _shared_without_date(headers: CIMultiDict[str]) -> CIMultiDict[str]:
    return _shared_headers(tuple([item for item in headers.items() if item[0] != hdrs.DATE]))


@lru_cache(64)
def _shared_headers(headers: tuple[tuple[str, str], ...]) -> CIMultiDict[str]:
    """Return a multidict that open streams with equal headers share, which saves 800 bytes for each of them."""
    return CIMultiDict(headers)


# The headers of streams with the same settings differ in their date only, unless the application adds some.

MAX_KINDS = 64
OK = 200, "OK"
STATUS_LINE = "HTTP/1.1 200 OK"


class _UsualHeaders:
    """The headers that aiohttp has made for a stream, and that others of its kind are sent.

    Threads share them.

    Args:
        kind: On what the headers depend.
        initial: The headers from which aiohttp makes them.
    """

    __slots__ = ("_dated", "_initial", "_kind", "headers")

    def __init__(self, kind: _Kind, initial: CIMultiDict[str]) -> None:
        self._kind = kind
        self._initial = CIMultiDict(initial)
        self._dated = "", self._initial  # a date, and the headers with it
        self.headers: CIMultiDict[str] | None = None
        """The headers without their date; ``None`` until a stream was sent them."""

    def suits(self, response: ChannelResponse, request: web.BaseRequest) -> bool:
        """Return whether a response is as it was made: an instrumentation that wraps ``prepare`` can change it."""
        context = RequestContext.find(request)
        return (
            response._headers == self._initial
            and not response._cookies
            and response._keep_alive is None
            and (response._status, response._reason) == OK
            and (context is None or context._staged_headers is None)
        )

    def remember(self, headers: CIMultiDict[str]) -> None:
        """Let other streams of the kind be sent the headers that aiohttp has made of the initial ones."""
        self.headers = _shared_without_date(headers)
        if len(_usual_headers) >= MAX_KINDS:
            _usual_headers.clear()
        _usual_headers[self._kind] = self

    def dated(self, date: str) -> CIMultiDict[str]:
        """Return the headers with a date, which the streams of a second share."""
        known, headers = self._dated
        if known != date:
            headers = CIMultiDict(cast("CIMultiDict[str]", self.headers))
            headers.add(hdrs.DATE, date)
            self._dated = date, headers
        return headers


_Kind: TypeAlias = tuple[type[ChannelResponse], float | None, bool, bool]
_usual_headers: dict[_Kind, _UsualHeaders] = {}


def _has_usual_headers(request: web.BaseRequest, context: RequestContext) -> bool:
    """Return whether the headers depend on the kind of stream only: the application cannot have added any."""
    if (
        context._staged_headers is not None
        or type(request) is not web.Request
        or request.method != hdrs.METH_GET
        or request.version != (1, 1)
        or not request.keep_alive
    ):
        return False
    for app in request.match_info.apps:
        hooks = app.on_response_prepare
        if len(hooks) > 1 or (hooks and hooks[0] is not before_commit):
            return False
    return True


def _forbids_coding(headers: Mapping[str, str]) -> bool:
    return "no-transform" in headers.get(hdrs.CACHE_CONTROL, "").lower()


def _is_committed(request: web.BaseRequest) -> bool:
    context = RequestContext.find(request)
    return is_committed(request.writer) if context is None else context.committed
