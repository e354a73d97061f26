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

from ..sse.channel import CloseReason
from ..sse.event import Event
from ..sse.threadsafe import check_loop
from ..sse.wire import HEARTBEAT, encode
from .commit import CommitGuard
from .connection import HIGH_WATER, Connection
from .context import RequestContext

if TYPE_CHECKING:
    from aiohttp.http_writer import StreamWriter

__all__ = ["ChannelResponse", "EventStreamResponse", "TopicResponse"]

_LEFT = "the client has left the event stream"


@lru_cache(64)
def _shared(headers: tuple[tuple[str, str], ...]) -> CIMultiDict[str]:
    """Return headers that were sent, without their date: which streams of one kind have in common."""
    return CIMultiDict(headers)


class EventStreamResponse(CommitGuard, EventSourceResponse):
    """An ``aiohttp_sse.EventSourceResponse`` whose client is watched and whose head cannot change once it is sent.

    ``sse_response(request, response_cls=EventStreamResponse)`` gives an aiohttp-sse application this stream, with the
    same bytes. Unlike there: a disconnect is known at once and not at the next ping, pings go to idle streams only and
    need no task, the head says ``no-transform`` and leaves ``Connection`` to aiohttp, and a second ``prepare`` for a
    client that has left raises ``ConnectionResetError``. ``ping_interval`` (seconds) may be ``None`` for no pings.
    """

    _date: str | None = None
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
        self.connection: Connection | None = None
        """What writes to the client; there is none before ``prepare``, and none for HEAD."""
        del self.headers[hdrs.CONNECTION]
        self.headers[hdrs.CACHE_CONTROL] = "no-cache, no-transform"

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Commit: send the head, with what interceptors staged, and begin to watch the client. Twice is once."""
        if self.prepared:
            if request.transport is None or request.transport.is_closing():
                raise ClientConnectionResetError(_LEFT)
            return await super(EventSourceResponse, self).prepare(request)
        if not self._allow_all_methods and request.method != hdrs.METH_GET:
            raise web.HTTPMethodNotAllowed(request.method, (hdrs.METH_GET,))
        self.headers.popall(hdrs.CONTENT_LENGTH, None)
        if request.version < (1, 1):
            self.force_close()  # without chunks, the end of the connection is the end of the stream
        self._sent_through = await self._commit(request, RequestContext.of(request))
        if request.method == hdrs.METH_HEAD:
            self._end()
        else:
            self.connection = Connection(
                request, self._heartbeat, self._send_timeout, self._beat(), self._high_water, soon=self._beats_soon
            )
        return self._sent_through

    async def _commit(self, request: web.BaseRequest, context: RequestContext | None) -> AbstractStreamWriter | None:
        """Send the head, with what is staged; if that fails, leave the connection fit for another answer."""
        staged = None if context is None else context.staged
        if context is not None:
            content_type = self.headers[hdrs.CONTENT_TYPE]
            context.stage_into(self)
            self.headers[hdrs.CONTENT_TYPE] = content_type  # or it is no event stream to any browser
        try:
            writer = await super(EventSourceResponse, self).prepare(request)
        except Exception:
            if request.writer.output_size == 0:  # the answer to that error shall be framed and headed as it says
                cast("StreamWriter", request.writer).chunked = False
                if context is not None:
                    context.unstage(staged)
            raise
        self._date = self._headers.get(hdrs.DATE)
        self._headers = _shared(tuple([item for item in self._headers.items() if item[0] != hdrs.DATE]))
        self.head_sent = True
        if context is not None:
            context.response = self
        return writer

    @property
    def headers(self) -> CIMultiDict[str]:
        """The headers; after commit a copy that drops changes."""
        if not self.head_sent:
            return self._headers
        headers = super().headers
        if self._date is not None:
            CIMultiDict.add(headers, hdrs.DATE, self._date)
        return headers

    async def write_eof(self, data: bytes = b"") -> None:
        """End the stream and let the connection go on without it."""
        self._end()
        if self.connection is not None:
            if self.connection.overrun:
                self.force_close()
            self.connection.release()
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
            return
        connection.write(frame)
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

    def connection_changed(self) -> None:
        """Note that the client has left."""
        if self.connection is not None and self.connection.lost:
            self._end()

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
    """The response of a stream with a channel: lines end with LF, and a heartbeat is the shortest there is."""

    DEFAULT_SEPARATOR = "\n"
    _beats_soon = True
    _high_water = HIGH_WATER

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
