"""The one object that touches a stream's transport: it writes, and it knows at once when the client has left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from aiohttp import hdrs, web

from ..sse.wire import HEARTBEAT
from .heartbeat import heartbeat

__all__ = ["Connection"]


class Connection:
    """Write frames of one committed response to its transport.

    A protocol that forwards everything to aiohttp's own stands in front of it while the stream is open: it is told by
    the event loop of loss, pause and resume, so that nobody polls, and nobody waits in aiohttp's ``drain``, which does
    not survive being cancelled. ``release`` puts aiohttp's protocol back for the next request of the connection.
    """

    __slots__ = ("__weakref__", "_chunked", "_loop", "_transport", "_waiting", "_watcher", "_writer",
                 "bytes", "last_write", "lost", "on_change", "paused")  # fmt: skip

    def __init__(self, request: web.BaseRequest, response: web.StreamResponse, interval: float | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = request.transport
        self._writer = request.writer
        self._chunked = response.headers.get(hdrs.TRANSFER_ENCODING) == "chunked"
        self._waiting: list[asyncio.Future[None]] = []
        self._watcher: _Watcher | None = None
        self.on_change: Callable[[], None] | None = None  # told when it is lost, and when it has room again
        self.bytes: int = 0  # of frames, without heartbeats and chunk sizes
        self.paused: bool = request.protocol.writing_paused
        self.last_write: float = self._loop.time()
        self.lost: bool = self._transport is None or self._transport.is_closing()
        if self._transport is not None and not self.lost:
            self._watcher = _Watcher(self, cast("asyncio.Protocol", self._transport.get_protocol()))
            self._transport.set_protocol(self._watcher)
            if interval is not None:
                heartbeat().add(self, interval)

    def write(self, frames: bytes) -> None:
        """Hand whole frames to the transport, in one piece; on a lost connection do nothing."""
        if self._send(frames):
            self.bytes += len(frames)

    def beat(self) -> None:
        """Write a heartbeat; a paused connection has older bytes to send than that."""
        if not self.paused:
            self._send(HEARTBEAT)

    async def writable(self) -> bool:
        """Wait until the transport takes more, and return whether the client is there. Cancelling is safe."""
        while self.paused and not self.lost:
            waiter = self._loop.create_future()
            self._waiting.append(waiter)
            await waiter
        return not self.lost

    def release(self) -> None:
        """Touch the transport no more, and put aiohttp's protocol back in its place. Twice is once."""
        transport, watcher = self._transport, self._watcher
        self._transport = self._watcher = self.on_change = None
        if transport is None or watcher is None:
            return
        heartbeat().discard(self)
        if transport.get_protocol() is watcher:
            transport.set_protocol(watcher.inner)

    def abort(self) -> None:
        """Drop what is not sent and close the connection now."""
        if self._transport is not None:
            self._transport.abort()

    def _send(self, data: bytes) -> bool:
        transport = self._transport
        if transport is None or self.lost:
            return False
        if transport.is_closing():  # a write failed; the event loop will say so in its next turn
            self.lose()
            return False
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        transport.write(data)
        self._writer.output_size += len(data)  # aiohttp counts what is sent, for the access log
        self.last_write = self._loop.time()
        return True

    # What the event loop says, through the watcher.

    def lose(self) -> None:
        """Note that the client has left, or that the connection broke. Twice is once."""
        if self.lost:
            return
        self.lost = True
        heartbeat().discard(self)
        self._wake()

    def pause(self) -> None:
        """Note that the transport's buffer is full."""
        self.paused = True

    def resume(self) -> None:
        """Note that the transport's buffer has room again."""
        self.paused = False
        self._wake()

    def _wake(self) -> None:
        if self.on_change is not None:
            self.on_change()
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)


class _Watcher(asyncio.Protocol):
    """Forward every call of the event loop to aiohttp's protocol, and tell the connection of those that matter."""

    __slots__ = ("_connection", "inner")

    def __init__(self, connection: Connection, inner: asyncio.Protocol) -> None:
        self._connection = connection
        self.inner = inner

    def data_received(self, data: bytes) -> None:
        self.inner.data_received(data)

    def eof_received(self) -> bool | None:
        self._connection.lose()  # aiohttp closes on EOF, also on a half-close
        return self.inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.lose()
        self.inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self.inner.pause_writing()
        self._connection.pause()

    def resume_writing(self) -> None:
        self.inner.resume_writing()
        self._connection.resume()
