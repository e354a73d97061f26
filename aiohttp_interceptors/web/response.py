"""A response that is an event stream, with aiohttp-sse's interface, and that cannot change after commit."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from aiohttp import ClientConnectionResetError, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp_sse import EventSourceResponse

from ..sse.channel import CloseReason
from ..sse.event import Event
from ..sse.wire import encode
from .commit import CommitGuard
from .connection import Connection
from .context import RequestContext

if TYPE_CHECKING:
    from aiohttp.http_writer import StreamWriter

__all__ = ["EventStreamResponse"]


class EventStreamResponse(CommitGuard, EventSourceResponse):
    """An ``aiohttp_sse.EventSourceResponse`` whose client is watched and whose head cannot change once it is sent.

    ``sse_response(request, response_cls=EventStreamResponse)`` gives an aiohttp-sse application this stream. Unlike
    there: a disconnect is known at once and not at the next ping, heartbeats go to idle streams only and need no task,
    lines end with LF, ``Connection`` is left to aiohttp, and HEAD gets the head. ``ping_interval`` (seconds) may be
    ``None`` for no heartbeats.
    """

    DEFAULT_SEPARATOR = "\n"

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
            return await super(EventSourceResponse, self).prepare(request)
        if not self._allow_all_methods and request.method not in (hdrs.METH_GET, hdrs.METH_HEAD):
            raise web.HTTPMethodNotAllowed(request.method, (hdrs.METH_GET, hdrs.METH_HEAD))
        context = RequestContext.of(request)
        staged = None if context is None else context.staged
        if context is not None:
            content_type = self.headers[hdrs.CONTENT_TYPE]
            context.stage_into(self)
            self.headers[hdrs.CONTENT_TYPE] = content_type  # or it is no event stream to any browser
        self.headers.popall(hdrs.CONTENT_LENGTH, None)
        if request.version < (1, 1):
            self.force_close()  # without chunks, the end of the connection is the end of the stream
        try:
            writer = await super(EventSourceResponse, self).prepare(request)
        except Exception:
            if request.writer.output_size == 0:  # the answer to that error shall be framed and headed as it says
                cast("StreamWriter", request.writer).chunked = False
                if context is not None:
                    context.unstage(staged)
            raise
        self.head_sent = True
        self._sent_through = writer
        if context is not None:
            context.response = self
        if request.method != hdrs.METH_HEAD:
            self.connection = Connection(request, self._heartbeat, self._send_timeout)
        return writer

    async def write_eof(self, data: bytes = b"") -> None:
        """End the stream and let the connection go on without it."""
        self.stop_streaming()
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
        frame = encode(Event(data, event, id, retry))
        if self._sep != "\n":
            frame = frame.replace(b"\n", self._sep.encode())
        connection = self._open_connection()
        connection.write(frame)
        if connection.paused:
            try:
                async with asyncio.timeout(self._send_timeout):
                    await connection.writable()
            except TimeoutError:
                connection.lose(CloseReason.STALLED)
                connection.abort()
        if connection.loss is not None:
            self.stop_streaming()
            if connection.loss is CloseReason.STALLED:
                raise TimeoutError(f"the client has read nothing for {self._send_timeout} seconds")
            raise ClientConnectionResetError("the client has left the event stream")

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
        if self._ended is None:
            self._ended = asyncio.Event()
            connection.on_change = self._on_change
            self._on_change()  # it may be lost already
        await self._ended.wait()

    def stop_streaming(self) -> None:
        """Let ``wait`` return. Twice is once."""
        if self._ended is None:
            self._ended = asyncio.Event()
        self._ended.set()

    def _on_change(self) -> None:
        if self.connection is not None and self.connection.lost:
            self.stop_streaming()

    def _open_connection(self) -> Connection:
        if self.connection is None:
            raise RuntimeError("Response is not started")  # aiohttp-sse's words
        return self.connection
