"""A response that is an event stream, with aiohttp-sse's interface, and that cannot change after commit."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, cast

from aiohttp import ClientConnectionResetError, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp_sse import EventSourceResponse
from multidict import CIMultiDict

from .._threads import check_loop
from ..channel import CloseReason
from ..sse import HEARTBEAT, Event, encode
from .app import AWAKE, Drain, Streams
from .commit import FRAMING, CommitGuard, GuardedHeaders, drop, drop_framing, is_committed, seal
from .context import RequestContext
from .transport import HIGH_WATER, Connection

if TYPE_CHECKING:
    from aiohttp.http_writer import StreamWriter

__all__ = ["ChannelResponse", "EventStreamResponse", "TopicResponse"]


HEARING = 5.0  # seconds that a handler has at most, on stop, to see that its stream is over
_LEFT = "the client has left the event stream"
_SUPERSEDED = "nothing of this event stream is sent, because another response was"


@lru_cache(64)
def _shared(headers: tuple[tuple[str, str], ...]) -> CIMultiDict[str]:
    """Return headers that were sent, without their date: which streams of one kind have in common."""
    return CIMultiDict(headers)


def _is_committed(request: web.BaseRequest) -> bool:
    context = RequestContext.of(request)
    return is_committed(request.writer) if context is None else context.committed


class EventStreamResponse(CommitGuard, EventSourceResponse):
    """An ``aiohttp_sse.EventSourceResponse`` whose client is watched and whose head cannot change once it is sent.

    ``sse_response(request, response_cls=EventStreamResponse)`` gives an aiohttp-sse application this stream, with the
    same bytes. Unlike there: a disconnect is known at once and not at the next ping, pings go to idle streams only and
    need no task, the head says ``no-transform`` and leaves ``Connection`` to aiohttp, and a second ``prepare`` for a
    client that has left raises ``ConnectionResetError``. ``ping_interval`` (seconds) may be ``None`` for no pings.

    When the client leaves, ``wait`` returns and ``send`` raises, also one that was waiting. A handler that waits for
    something else is cancelled if ``handler_cancellation`` is set in a subclass, and goes on otherwise.

    When an application stops that ``setup(app)`` has prepared, the client gets the drain's farewell, ``wait`` returns
    and ``is_connected()`` is false. A handler that has not returned after most of the drain's timeout, 5 seconds at
    most, is cancelled, and the body ends. It ends as cut for any method but GET, after the drain's grace: such a client
    does not come back for the rest. Without ``setup(app)`` nothing ends the stream, and aiohttp waits for its handler
    twice its ``shutdown_timeout``.
    """

    event_stream: bool = True  # whatever its Content-Type
    _date: str | None = None
    _is_cut = False
    handler_cancellation = False
    """Whether the handler is cancelled when its client leaves, as aiohttp does with its setting of this name."""
    _handler: asyncio.Task[None] | None = None  # the request's, while it is one of the application's open streams
    _streams: Streams | None = None
    _last_call: asyncio.TimerHandle | None = None
    _beats_soon = False  # aiohttp-sse sends its first ping after the interval
    _high_water = 64 * 1024  # asyncio's and so aiohttp-sse's: an application may count on sends that do not wait

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
        self._ended: asyncio.Event | None = None
        self._sent_through: AbstractStreamWriter | None = None
        del self._headers[hdrs.CONNECTION]
        self._headers[hdrs.CACHE_CONTROL] = "no-cache, no-transform"
        self.connection: Connection | None = None
        """What writes to the client; there is none before ``prepare``, and none for HEAD."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Commit: send the head, with what interceptors staged, and begin to watch the client. Twice is once."""
        if self.prepared:
            if request.transport is None or request.transport.is_closing():
                raise ClientConnectionResetError(_LEFT)
            return await super(EventSourceResponse, self).prepare(request)
        if not self._allow_all_methods and request.method != hdrs.METH_GET:
            raise web.HTTPMethodNotAllowed(request.method, (hdrs.METH_GET,))
        if _is_committed(request):
            return self._supersede(request)
        if request.version < (1, 1):
            self.force_close()  # without chunks, the end of the connection is the end of the stream
        self._sent_through = await self._commit(request, RequestContext.of(request))
        if request.method == hdrs.METH_HEAD:
            self._end()
        else:
            self.connection = Connection(
                request, self._heartbeat, self._send_timeout, self._beat(), self._high_water, soon=self._beats_soon
            )
            self._join(request)
        return self._sent_through

    def _supersede(self, request: web.BaseRequest) -> AbstractStreamWriter:
        """Send nothing, because another response was: this one only ends that one's body."""
        context = RequestContext.of(request)
        attempted = f"prepare {self!r}"
        if context is None:
            drop(attempted, None)
        else:
            context.supersedes(attempted)
        self._req, self._payload_writer = request, request.writer
        self.superseded = True
        seal(self)
        self._end()
        return request.writer

    async def _commit(self, request: web.BaseRequest, context: RequestContext | None) -> AbstractStreamWriter | None:
        """Send the head, with what is staged; if that fails, leave the connection fit for another answer."""
        staged = None if context is None else context.staged
        drop_framing(self._headers, context, (*FRAMING, "content-encoding"))
        if context is not None:
            context.stage_into(self)
        try:
            writer = await super(EventSourceResponse, self).prepare(request)
        except Exception:
            if not _is_committed(request):  # the answer to that error shall be framed and headed as it says
                cast("StreamWriter", request.writer).chunked = False
                if context is not None:
                    context.unstage(staged)
            raise
        self._date = self._headers.get(hdrs.DATE)
        self._headers = _shared(tuple([item for item in self._headers.items() if item[0] != hdrs.DATE]))
        seal(self)
        if context is not None:
            context.response = self
        return writer

    async def _write_headers(self) -> None:
        """Write the head, and nothing in it that an ``on_response_prepare`` handler put there to frame it otherwise."""
        request = cast("web.BaseRequest", self._req)
        drop_framing(self._headers, RequestContext.of(request), ("content-length", "content-encoding"))
        await super()._write_headers()

    @property
    def headers(self) -> CIMultiDict[str]:
        """The headers; after commit a copy that drops changes."""
        headers = self._headers
        if not self.head_sent:
            if type(headers) is CIMultiDict and getattr(self, "connection", self) is None:  # it is made
                headers = self._headers = GuardedHeaders.of(headers, self)  # who keeps them changes nothing later
            return headers
        headers = super().headers
        if self._date is not None:
            CIMultiDict.add(headers, hdrs.DATE, self._date)
        return headers

    def cut(self) -> None:
        """Have the body end without its last chunk, so that it does not look complete, and then the connection."""
        self._is_cut = True
        self.force_close()
        if self.connection is not None:
            self.connection.beat_no_more()

    async def write_eof(self, data: bytes = b"") -> None:
        """End the stream and let the connection go on without it, unless it was cut."""
        self._end()
        self._part()
        if self.connection is not None:
            if self.connection.owner is not None:
                self.connection.owner.response_ended()
            if self.connection.overrun:
                self.force_close()
            self.connection.release()
        if not self._is_cut:
            await super().write_eof(data)

    async def send(
        self,
        data: str,
        id: str | None = None,  # noqa: A002  # aiohttp-sse's name for it
        event: str | None = None,
        retry: int | None = None,
    ) -> None:
        """Send an event, and wait while the client reads more slowly than it is sent.

        Raises ``ValueError`` for fields that cannot be sent, ``ConnectionResetError`` when the client has left, and
        ``TimeoutError``, after it closed the connection, when the client read nothing for ``send_timeout`` seconds.
        """
        frame = self._frame(data, id, event, retry)
        if self._eof_sent:
            raise RuntimeError("Cannot call write() after write_eof()")  # aiohttp's words
        connection = self._open_connection()
        if connection is None:
            if self.superseded:
                raise ClientConnectionResetError(_SUPERSEDED)
            return
        connection.write_frames(frame)
        if connection.paused and not connection.closing:
            try:
                async with asyncio.timeout(self._send_timeout):
                    await connection.writable()
            except TimeoutError:
                connection.lose(CloseReason.STALLED)
                connection.abort()
        if connection.closing:
            self._end()
            if connection.loss is CloseReason.STALLED:
                raise TimeoutError(f"the client has read nothing for {self._send_timeout} seconds")
            raise ClientConnectionResetError(_LEFT)

    @property
    def body_length(self) -> int:
        """Bytes on the wire so far, the head included: for the access log, also of a client that left."""
        return super().body_length or (0 if self._sent_through is None else self._sent_through.output_size)

    def is_connected(self) -> bool:
        """Tell whether the stream is open and the client there."""
        connection = self.connection
        return connection is not None and not connection.lost and not (self._ended is not None and self._ended.is_set())

    async def wait(self) -> None:
        """Wait until the client has left or ``stop_streaming`` was called. Cancelling is safe."""
        connection = self._open_connection()
        if connection is not None and self._ended is None:
            self._ended = asyncio.Event()
            connection.owner = self
            self.connection_changed()  # it may be lost already
        if self._ended is not None:
            await self._ended.wait()

    def stop_streaming(self) -> None:
        """Let ``wait`` return. Idempotent."""
        connection = self._open_connection()
        if connection is not None:
            check_loop(connection.loop, "stop_streaming()", "loop.call_soon_threadsafe(response.stop_streaming)")
            connection.beat_no_more()
        self._end()

    def _end(self) -> None:
        if self._ended is None:
            self._ended = asyncio.Event()
        self._ended.set()

    def connection_paused(self) -> None:
        """Do nothing: who sends waits."""

    def response_ended(self) -> None:
        """Do nothing: it has ended itself."""

    def connection_changed(self) -> None:
        """Note that the client has left."""
        if self.connection is not None and self.connection.lost:
            self._end()
            if self._handler is not None and self.handler_cancellation:
                self._handler.cancel()

    # As one of an application's open streams.

    def _join(self, request: web.BaseRequest) -> None:
        """Be an open stream of the application until the body or the handler has ended."""
        if not isinstance(request, web.Request) or self.connection is None:
            return  # a server without an application has no streams
        self._handler = request.task
        self._streams = Streams.of(request)
        self._handler.add_done_callback(self._part)
        self.connection.owner = self
        self.connection_changed()  # it may be lost already
        self._streams.add(self)

    def _part(self, _: object = None) -> None:
        """Be none any more."""
        if self._last_call is not None:
            self._last_call.cancel()
        if self._handler is not None:
            self._handler.remove_done_callback(self._part)
        if self._streams is not None:
            self._streams.discard(self)
        self._handler = self._streams = self._last_call = None

    @property
    def finite(self) -> bool:
        """Whether the stream is an answer that ends by itself; a GET's is taken up again by its client."""
        return self._req is not None and self._req.method != hdrs.METH_GET

    def say_farewell(self, drain: Drain) -> None:
        """Have the handler see that the stream is over, because the server stops, and cancel it later."""
        if self._handler is None or self._last_call is not None or self.connection is None:
            return
        if drain.farewell is not None and self.is_connected():
            self.connection.write_frames(encode(drain.farewell).replace(b"\n", self._sep.encode()))
        if self.finite and self.is_connected():  # also if its handler sees the end and returns
            self.cut()
        self.stop_streaming()
        seconds = 0.0 if self.connection.lost else min(HEARING, drain.timeout * AWAKE)
        self._last_call = asyncio.get_running_loop().call_later(seconds, self.hurry)

    def hurry(self) -> None:
        """End the body and cancel the handler, which has not returned."""
        handler, connection = self._handler, self.connection
        if handler is None or connection is None or self._eof_sent:
            return
        self._eof_sent = True
        self.force_close()
        if not self.finite:
            connection.write_frames(b"")  # the last chunk
        handler.cancel()

    def abort(self) -> None:
        """End, and do not wait for the client or the producer."""
        self.hurry()
        if self.connection is not None:
            self.connection.abort()

    def _open_connection(self) -> Connection | None:
        """Return the connection; there is none for HEAD, whose answer has no body."""
        if self.connection is None and not self.prepared:
            raise RuntimeError("Response is not started")  # aiohttp-sse's words
        return self.connection

    def _beat(self) -> bytes:
        """Return the bytes that keep an idle stream alive: aiohttp-sse's."""
        return f": ping{self._sep}{self._sep}".encode()

    def _frame(self, data: str, id: str | None, event: str | None, retry: int | None) -> bytes:  # noqa: A002  # as above
        """Encode an event with aiohttp-sse's bytes, which begin with the id, and refuse it in aiohttp-sse's words."""
        if data is None:
            raise TypeError("data is a str, not None")
        if isinstance(id, str) and (self.LINE_SEP_EXPR.search(id) or "\0" in id):
            raise ValueError(f"id must not contain line separators or null characters, and {id!r} does")
        if isinstance(event, str) and self.LINE_SEP_EXPR.search(event):
            raise ValueError(f"event must not contain line separators, and {event!r} does")
        if isinstance(retry, int) and retry < 0:
            raise ValueError(f"retry must not be negative, and {retry!r} is")
        frame = encode(Event(data, event, None, retry))
        if id is not None and (first := Event(id=id)).id is not None:
            frame = encode(first)[:-1] + frame
        return frame if self._sep == "\n" else frame.replace(b"\n", self._sep.encode())


class ChannelResponse(EventStreamResponse):
    """The response of a stream with a channel: lines end with LF, and a heartbeat is the shortest there is.

    It is the stream that belongs to the application, and that the connection tells what happens.
    """

    DEFAULT_SEPARATOR = "\n"
    _beats_soon = True
    _high_water = HIGH_WATER

    def _join(self, request: web.BaseRequest) -> None:
        pass

    def _beat(self) -> bytes:
        return HEARTBEAT


class TopicResponse(ChannelResponse):
    """The response of a Hub's stream: its head waits for ``begin``, and goes out with the first frames."""

    _send_headers_immediately = False
    _beats_soon = False  # unless nothing goes with the head
    # What the kernel does not take the log keeps for all; and uvloop writes at once only what is more than this.
    _high_water = 1

    async def begin(self, frames: bytes) -> None:
        """Send the head and these frames, in one piece: what a client that returns costs is mostly system calls."""
        writer = self._payload_writer
        if writer is None:
            return
        try:
            if frames:
                await cast("StreamWriter", writer).write(frames, drain=False)
            writer.send_headers()  # twice is once
        except ConnectionError:  # the event loop has yet to say so
            return
        if self.connection is not None:
            if frames:
                self.connection.note_sent(len(frames))
            else:
                self.connection.beat_soon()
