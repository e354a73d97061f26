"""The one object that touches a stream's transport: it writes, and it knows at once when the client has left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast

from aiohttp import web

from ..sse.channel import CloseReason
from ..sse.wire import HEARTBEAT
from .rounds import TOGETHER, Visit, rounds
from .socket_options import SocketOptions, shared
from .stall import LOOKS, Stall
from .watcher import Watcher

if TYPE_CHECKING:
    from aiohttp.http_writer import StreamWriter

__all__ = ["BATCH", "HIGH_WATER", "Connection", "Owner"]

# Bytes that may wait in the transport before it says that it has no room; it has again at a quarter of them (uvloop's
# own lower mark is at 16 bytes). Together with a batch, half of what a stalled stream may hold.
HIGH_WATER = 16 * 1024
# Bytes to write in one piece. A larger one would save no system call worth speaking of.
BATCH = 16 * 1024


class Owner(Protocol):
    """Whose connection it is, and who is told of what happens to it."""

    def connection_changed(self) -> None:
        """Note that it is lost, or has room again."""

    def connection_paused(self) -> None:
        """Note that it has no room any more."""

    def response_ended(self) -> None:
        """Note that the response was ended, by whomever."""


class Connection:
    """Write frames of one committed response to its transport.

    A protocol that forwards what aiohttp must know stands in front of aiohttp's own while the stream is open: it is
    told by the event loop of loss, pause and resume, so that nobody polls, and nobody waits in aiohttp's ``drain``,
    which does not survive being cancelled. ``release`` puts back the protocol, the transport's limits and the socket's
    options for the next request of the connection. ``heartbeat`` and ``stall_timeout`` are in seconds, or ``None``.
    With ``soon`` the first heartbeat goes out right behind the head, unless something else does before.
    """

    __slots__ = ("_beat", "_counted", "_heartbeat", "_limits", "_options", "_stall", "_stall_timeout", "_transport",
                 "_visit", "_waiting", "_watcher", "_writer", "bytes", "last_write", "loop", "loss", "owner", "paused",
                 "sent", "wrap")  # fmt: skip

    def __init__(
        self,
        request: web.BaseRequest,
        heartbeat: float | None,
        stall_timeout: float | None,
        beat: bytes = HEARTBEAT,
        high_water: int = HIGH_WATER,
        *,
        soon: bool = False,
    ) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._transport = request.transport
        self._writer = request.writer
        self.wrap: Callable[[bytes], bytes] = _chunk if cast("StreamWriter", request.writer).chunked else _plain
        self._waiting: list[asyncio.Future[None]] | None = None
        self._watcher: Watcher | None = None
        self._visit: Visit | None = None
        self._heartbeat = heartbeat
        self._beat = beat
        self.last_write: float = self.loop.time()
        self._stall_timeout = stall_timeout
        self._stall: Stall | None = None  # while the client is owed something, which it mostly is not
        self.owner: Owner | None = None
        self.bytes: int = 0  # of frames, without heartbeats, chunk sizes, and what was relayed
        self.sent: int = 0  # bytes handed to the transport
        self._counted = 0  # of those, the ones that aiohttp has been told of
        self.paused: bool = False
        self.loss: CloseReason | None = None  # why it was lost, once it is
        if self._transport is None or self._transport.is_closing():
            self.loss = CloseReason.CLIENT_LEFT
        else:
            self._take_over(self._transport, request, stall_timeout, high_water, soon=soon)

    def _take_over(
        self,
        transport: asyncio.Transport,
        request: web.BaseRequest,
        stall_timeout: float | None,
        high_water: int,
        *,
        soon: bool,
    ) -> None:
        """Stand between the event loop and aiohttp, and have the kernel tell early what it notices."""
        self._options = SocketOptions(transport, stall_timeout)
        self._limits = shared(transport.get_write_buffer_limits())
        if transport.get_extra_info("sslcontext") is not None:
            high_water = 1  # below is one more buffer, of 64 KiB, whose limits nobody can set: let none wait above it
        transport.set_write_buffer_limits(high=high_water, low=high_water // 4)
        self.paused = request.protocol.writing_paused
        inner = cast("asyncio.Protocol", transport.get_protocol())
        self._watcher = Watcher(self, transport, inner, hold=request.content.is_eof())
        due = self.last_write + TOGETHER if soon and self._begins else self._next_visit(self.last_write)
        if due is not None:
            self._visit = rounds().add(self, due)

    @property
    def lost(self) -> bool:
        """Whether the client has left, or the connection broke."""
        return self.loss is not None

    @property
    def closing(self) -> bool:
        """Whether nothing can be written any more, be it only that the event loop has yet to say why."""
        return self.loss is not None or self._transport is None or self._transport.is_closing()

    @property
    def overrun(self) -> bool:
        """Whether the client sent more requests behind this one than are kept, so that it cannot be answered."""
        return self._watcher is not None and self._watcher.overrun

    @property
    def unsent(self) -> int:
        """How many bytes the transport holds that the kernel has not taken."""
        transport = self._transport
        if transport is None or transport.is_closing():  # asyncio's, with TLS, can then not be asked any more
            return 0
        return transport.get_write_buffer_size()

    def write(self, frames: bytes) -> None:
        """Hand whole frames to the transport, in one piece; on a lost connection do nothing."""
        if self._send(frames):
            self.bytes += len(frames)

    def relay(self, payload: bytes, now: float) -> None:
        """Hand to the transport what ``wrap`` made of frames, at this time of the event loop.

        The same bytes go to many connections, one after the other: what is done here is paid for by each of them.
        """
        transport = self._transport
        if transport is None or transport.is_closing():
            self._lose_soon()
            return
        transport.write(payload)
        self.sent += len(payload)
        self.last_write = now

    def beat_soon(self) -> None:
        """Send the first heartbeat within ``TOGETHER`` seconds unless something is written before."""
        if self._visit is not None and self._begins:
            self._visit.cancel()
            self._visit = rounds().add(self, self.loop.time() + TOGETHER)

    @property
    def _begins(self) -> bool:
        """Whether the body has yet to begin, with a heartbeat if need be: a proxy may hold the head back until then.

        A client of HTTP/1.0 is left alone: to some of them a body is a file.
        """
        return not self.sent and self._heartbeat is not None and self.wrap is _chunk

    def note_sent(self, size: int) -> None:
        """Note that so many bytes of the body went out with the head, through aiohttp, which has counted them."""
        self.sent += size
        self._counted += size

    def beat(self) -> None:
        """Write a heartbeat; a paused connection has older bytes to send than that."""
        if not self.paused:
            self._send(self._beat)

    def beat_no_more(self) -> None:
        """Write no heartbeat from now on."""
        self._heartbeat = None

    async def writable(self) -> bool:
        """Wait until the transport takes more, and return whether the client is there. Cancelling is safe."""
        while self.paused and not self.lost:
            waiter = self.loop.create_future()
            if self._waiting is None:
                self._waiting = []
            self._waiting.append(waiter)
            await waiter
        return not self.lost

    def release(self) -> None:
        """Touch the transport no more, and leave it as it was before the stream. Twice is once."""
        transport, watcher = self._transport, self._watcher
        self._transport = self._watcher = self.owner = None
        self._count()
        if transport is None or watcher is None:
            return
        self._cancel_visit()
        if not transport.is_closing():
            self._options.restore()
            low, high = self._limits
            transport.set_write_buffer_limits(high=high, low=low)
        watcher.step_aside()

    def abort(self) -> None:
        """Drop what is not sent and close the connection now."""
        if self._transport is not None:
            self._transport.abort()

    def _send(self, data: bytes) -> bool:
        transport = self._transport
        if transport is None or self.loss is not None:
            return False
        if transport.is_closing():
            self._lose_soon()
            return False
        data = self.wrap(data)
        transport.write(data)
        self.sent += len(data)
        self.last_write = self.loop.time()
        return True

    def _count(self) -> None:
        """Have aiohttp count what was sent, for the access log."""
        self._writer.output_size += self.sent - self._counted
        self._counted = self.sent

    # From time to time.

    def visit(self, now: float) -> float | None:
        """Send a heartbeat if the stream is idle, and give up on a client that takes nothing."""
        if self._heartbeat is not None and (
            now - self.last_write >= self._heartbeat - TOGETHER or (self._beat is HEARTBEAT and self._begins)
        ):
            self.beat()
        if self._transport is None or self._transport.is_closing():  # and its socket cannot be asked any more
            self._lose_soon()
            return None
        if self._stall_timeout is not None and self._is_stalled(now, self._stall_timeout):
            self.lose(CloseReason.STALLED)
            self.abort()
            return None
        return self._next_visit(now)

    def _next_visit(self, now: float) -> float | None:
        beat = None if self._heartbeat is None else self.last_write + self._heartbeat
        if beat is not None and beat <= now:  # it is paused, and gets its heartbeat when it is not
            beat = now + cast("float", self._heartbeat)
        look: float | None = None
        if self._stall is not None:
            look = self._stall.next_look(now)
        elif self._stall_timeout is not None:
            look = now + self._stall_timeout / LOOKS
        return min((due for due in (beat, look) if due is not None), default=None)

    def _is_stalled(self, now: float, timeout: float) -> bool:
        """Tell whether the client takes nothing any more of what it is owed."""
        taken, owed = self._taken_and_owed()
        if not owed:
            self._stall = None
            return False
        if self._stall is None:
            self._stall = Stall(timeout, now, taken)
        return self._stall.look(now, taken, owed)

    def _taken_and_owed(self) -> tuple[int, int]:
        """Count the bytes that the client has confirmed, and those that it has not."""
        owed = self.unsent + self._options.unacknowledged()
        taken = self._options.acknowledged()
        return self.sent - owed if taken is None else taken, owed

    def _cancel_visit(self) -> None:
        if self._visit is not None:
            self._visit.cancel()
            self._visit = None

    # What the event loop says, through the watcher.

    def lose(self, reason: CloseReason) -> None:
        """Note that the client has left, or that the connection broke. The first reason counts."""
        if self.loss is None:
            self.loss = reason
            self._count()
            self._cancel_visit()
            self._wake()

    def _lose_soon(self) -> None:
        """Take no more for a closing transport, and note its loss once the event loop could say why it closes.

        It tells of a failed write in its next turn, and with TLS in the one after that.
        """
        if self._transport is None:
            return
        self.paused = True
        self.loop.call_soon(self.loop.call_soon, self.lose, CloseReason.CLIENT_LEFT)

    def pause(self) -> None:
        """Note that the transport's buffer is full."""
        self.paused = True
        if self.owner is not None:
            self.owner.connection_paused()

    def resume(self) -> None:
        """Note that the transport's buffer has room again."""
        self.paused = False
        self._wake()

    def _wake(self) -> None:
        if self.owner is not None:
            self.owner.connection_changed()
        waiting, self._waiting = self._waiting, None
        for waiter in waiting or ():
            if not waiter.done():
                waiter.set_result(None)


def _chunk(frames: bytes) -> bytes:
    """Wrap frames as HTTP/1.1 does (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(frames), frames)


def _plain(frames: bytes) -> bytes:
    """Leave frames as they are, for HTTP/1.0."""
    return frames
