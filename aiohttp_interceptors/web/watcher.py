"""The protocol between the event loop and aiohttp's own while a stream is open."""

from __future__ import annotations

import asyncio
from typing import Protocol

from ..sse.channel import CloseReason

__all__ = ["Watched", "Watcher"]

# Bytes of further requests that are kept for after the stream. A browser sends none; whoever sends more than this is
# read no further, and its leaving is then noticed by a failing write.
HELD = 64 * 1024


class Watched(Protocol):
    """What is told."""

    def lose(self, reason: CloseReason) -> None:
        """Note that the client has left, or that the connection broke."""

    def pause(self) -> None:
        """Note that the transport's buffer is full."""

    def resume(self) -> None:
        """Note that the transport's buffer has room again."""


class Watcher(asyncio.Protocol):
    """Forward the event loop's calls to aiohttp's protocol, and tell the stream's connection of those that matter.

    With ``hold``, what the client sends meanwhile is kept and handed on when the stream is over: aiohttp stops reading
    after some requests that it cannot answer yet, and who does not read does not see the client leave.
    """

    __slots__ = ("_connection", "_held", "_transport", "_was_reading", "inner")

    def __init__(
        self, connection: Watched, transport: asyncio.Transport, inner: asyncio.Protocol, *, hold: bool
    ) -> None:
        self._connection = connection
        self._transport = transport
        self.inner = inner
        self._held: bytearray | None = bytearray() if hold else None
        self._was_reading = transport.is_reading()
        transport.set_protocol(self)
        if hold and not self._was_reading:
            transport.resume_reading()

    def step_aside(self) -> None:
        """Put aiohttp's protocol back, in the state that it believes the transport to be in."""
        transport = self._transport
        if transport.get_protocol() is not self:
            return
        transport.set_protocol(self.inner)
        held, self._held = self._held, None
        if held is None or transport.is_closing():
            return
        if self._was_reading:
            transport.resume_reading()
        else:
            transport.pause_reading()
        if held:
            self.inner.data_received(bytes(held))

    def data_received(self, data: bytes) -> None:
        if self._held is None:
            self.inner.data_received(data)
            return
        self._held += data
        if len(self._held) > HELD:
            self._transport.pause_reading()

    def eof_received(self) -> bool | None:
        self._connection.lose(CloseReason.CLIENT_LEFT)  # aiohttp closes on EOF, also on a half-close
        keep_open = self.inner.eof_received()
        # A full buffer would keep the connection for as long as the client does not read it.
        self._transport.abort()
        return keep_open

    def connection_lost(self, exc: Exception | None) -> None:
        # The kernel's own limit for a client that confirms nothing may strike before ours.
        self._connection.lose(CloseReason.STALLED if isinstance(exc, TimeoutError) else CloseReason.CLIENT_LEFT)
        self.inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self.inner.pause_writing()
        self._connection.pause()

    def resume_writing(self) -> None:
        self.inner.resume_writing()
        self._connection.resume()
