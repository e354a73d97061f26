"""The protocol between the event loop and aiohttp's own while a stream is open."""

from __future__ import annotations

import asyncio
from typing import Protocol

from ..sse.channel import CloseReason

__all__ = ["Watched", "Watcher"]

# Bytes of further requests that are kept for after the stream. A browser sends none; of whoever sends more than this
# nothing is kept, and its connection ends with the stream. It is read all the same, or its leaving would go unseen.
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

    __slots__ = ("_connection", "_held", "_hold", "_transport", "_was_reading", "inner", "overrun")

    def __init__(
        self, connection: Watched, transport: asyncio.Transport, inner: asyncio.Protocol, *, hold: bool
    ) -> None:
        self._connection = connection
        self._transport = transport
        self.inner: asyncio.Protocol = inner
        self._hold = hold
        self._held: bytearray | None = None  # most clients send nothing
        self.overrun: bool = False  # more was sent than is kept, and it is gone
        self._was_reading = transport.is_reading()
        transport.set_protocol(self)
        if hold and not self._was_reading:
            transport.resume_reading()

    def step_aside(self) -> None:
        """Put aiohttp's protocol back, in the state that it believes the transport to be in."""
        transport = self._transport
        if transport.is_closing() or transport.get_protocol() is not self:
            return
        transport.set_protocol(self.inner)
        held, self._held = self._held, None
        if not self._hold:
            return
        if self._was_reading:
            transport.resume_reading()
        else:
            transport.pause_reading()
        if held:
            self.inner.data_received(bytes(held))

    def data_received(self, data: bytes) -> None:
        if not self._hold:
            self.inner.data_received(data)
            return
        if self._held is None:
            self._held = bytearray()
        if self.overrun or len(self._held) + len(data) > HELD:
            self.overrun = True
            self._held.clear()
            return
        self._held += data

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
