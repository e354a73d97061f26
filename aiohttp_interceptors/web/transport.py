"""What a stream asks of the kernel for its socket: to tell early that a client is slow, and at last that it is gone."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from aiohttp import web

from ..channel import CloseReason
from ..sse import HEARTBEAT
from .timers import TIMER_SLACK, Timer, timer_queue

if TYPE_CHECKING or sys.platform != "win32":
    import fcntl
    import termios

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiohttp.http_writer import StreamWriter

__all__ = [
    "BATCH",
    "CHECKS_PER_TIMEOUT",
    "HIGH_WATER",
    "Connection",
    "InterposedProtocol",
    "Owner",
    "SocketOptions",
    "StallDetector",
    "TransportListener",
    "options_on",
    "shared",
]


PLATFORM: str = sys.platform  # under a name of its own a type checker looks at all branches
# Bytes that the kernel takes beyond what the network has room for. Without a limit it hides a client that does not
# read until 3 to 4 MB are gone; with this one, no more than the client's own receive window does.
NOT_SENT = 16 * 1024
# Where there is no such option, the bytes that the kernel keeps in all. Enough for 5 Mbit/s over 100 ms.
SEND_BUFFER = 64 * 1024

_LINUX_NOTSENT_LOWAT, _LINUX_USER_TIMEOUT = 25, 18  # <linux/tcp.h>
_LINUX_INFO, _BYTES_ACKED = 11, slice(120, 128)  # TCP_INFO and a field of its struct, since Linux 4.1
_DARWIN_NOTSENT_LOWAT, _DARWIN_CONNDROPTIME = 0x201, 0x80  # <netinet/tcp.h>
_DARWIN_NWRITE = 0x1024  # <sys/socket.h>

_CLOSED = (OSError, ValueError)  # what a closed socket raises: asyncio's, and uvloop's

Numbers = TypeVar("Numbers", bound=tuple[int, ...])
Option = tuple[int, int, int]
"""Level, name and value, as ``setsockopt`` takes them."""


@lru_cache(64)  # streams share a few timeouts, and then their options too
def options_on(platform: str, stall_timeout: float | None) -> tuple[Option, ...]:
    """Return what a TCP socket gets on a platform; ``stall_timeout`` is in seconds, ``None`` for no limit."""
    if platform == "linux":
        options = [(socket.IPPROTO_TCP, _LINUX_NOTSENT_LOWAT, NOT_SENT)]
        if stall_timeout is not None:  # milliseconds; the kernel knows no 0 but "as long as ever"
            options.append((socket.IPPROTO_TCP, _LINUX_USER_TIMEOUT, max(1, int(stall_timeout * 1000))))
    elif platform == "darwin":
        options = [(socket.IPPROTO_TCP, _DARWIN_NOTSENT_LOWAT, NOT_SENT)]
        if stall_timeout is not None:
            options.append((socket.IPPROTO_TCP, _DARWIN_CONNDROPTIME, max(1, int(stall_timeout))))
    else:
        options = [(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)]
    return tuple(options)


@lru_cache(64)
def shared(values: Numbers) -> Numbers:
    """Return an equal tuple that others have too: ten thousand sockets are set in a few ways."""
    return values


class SocketOptions:
    """Set a stream's options on the socket of a transport, and put back what was there.

    A Unix socket, or a transport without one, is left alone: what is at its other end is this machine.
    """

    __slots__ = ("_before", "_options", "_socket")

    def __init__(self, transport: asyncio.Transport, stall_timeout: float | None) -> None:
        self._socket: socket.socket | None = transport.get_extra_info("socket")
        self._options: tuple[Option, ...] = ()
        self._before: tuple[int, ...] = ()
        if self._socket is not None:
            options = options_on(PLATFORM, stall_timeout)
            with suppress(*_CLOSED):  # it is a Unix socket, or it is closing, and the transport will say so
                self._before = shared(tuple([self._replace(*option) for option in options]))
                self._options = options

    def restore(self) -> None:
        """Put back what was there before the stream, for the next request of the connection. Twice is once."""
        before, self._before = self._before, ()
        if self._socket is not None:
            with suppress(*_CLOSED):  # as above
                for (level, name, _), value in zip(self._options, before, strict=False):
                    self._socket.setsockopt(level, name, value)

    def unacknowledged(self) -> int:
        """Count the bytes that the kernel has and the client's has not confirmed; 0 where nobody can tell."""
        number = -1 if self._socket is None else self._socket.fileno()
        if number < 0 or not self._options:
            return 0
        try:
            return _unacknowledged(self._socket, number)
        except _CLOSED:
            return 0

    def acknowledged(self) -> int | None:
        """Count the bytes that the client's kernel has ever confirmed; ``None`` where nobody can tell.

        With TLS what was sent does not tell it: one byte of ours may be thirty on the wire.
        """
        if PLATFORM != "linux" or self._socket is None or not self._options:
            return None
        try:
            told = self._socket.getsockopt(socket.IPPROTO_TCP, _LINUX_INFO, _BYTES_ACKED.stop)
        except _CLOSED:
            return None
        return int.from_bytes(told[_BYTES_ACKED], sys.byteorder) if len(told) == _BYTES_ACKED.stop else None

    def _replace(self, level: int, name: int, value: int) -> int:
        """Set an option and return what it was."""
        assert self._socket is not None  # noqa: S101  # the caller has looked
        before = self._socket.getsockopt(level, name)
        self._socket.setsockopt(level, name, value)
        return before


def _unacknowledged(sock: socket.socket | None, number: int) -> int:
    if PLATFORM == "linux":
        return int(struct.unpack("i", fcntl.ioctl(number, termios.TIOCOUTQ, b"\0\0\0\0"))[0])  # SIOCOUTQ in tcp(7)
    if PLATFORM == "darwin" and sock is not None:
        return sock.getsockopt(socket.SOL_SOCKET, _DARWIN_NWRITE)
    return 0


# Looks per timeout. More of them would find the last byte that was taken more exactly, and cost more.
CHECKS_PER_TIMEOUT = 4
ROUNDING = 1e-6  # seconds


class StallDetector:
    """Tell, from how much the client has taken and what it is owed, whether it takes nothing any more.

    It says so at the latest ``timeout`` seconds after the client took its last byte, or was first owed one, and not
    before half of that: between two looks nobody knows when a byte was sent or taken. Decides, and touches nothing.
    """

    __slots__ = ("_since", "_taken", "timeout")

    def __init__(self, timeout: float, now: float, taken: int = 0) -> None:
        self.timeout: float = timeout
        self._since = now
        self._taken = taken

    def next_look(self, now: float) -> float:
        """Return when to look again at the latest."""
        up = self._since + self.timeout * (1 - 1 / CHECKS_PER_TIMEOUT)
        return min(now + self.timeout / CHECKS_PER_TIMEOUT, up) if up > now else now + self.timeout / CHECKS_PER_TIMEOUT

    def look(self, now: float, taken: int, owed: int) -> bool:
        """Return whether the client is stalled, having taken so many bytes in all and being owed so many."""
        if owed == 0 or taken > self._taken:
            self._since = now
        self._taken = taken
        return now - self._since >= self.timeout * (1 - 1 / CHECKS_PER_TIMEOUT) - ROUNDING


# Bytes of further requests that are kept for after the stream. A browser sends none; of whoever sends more than this
# nothing is kept, and its connection ends with the stream. It is read all the same, or its leaving would go unseen.
MAX_PIPELINED_BYTES = 64 * 1024


class TransportListener(Protocol):
    """What is told."""

    def lose(self, reason: CloseReason) -> None:
        """Note that the client has left, or that the connection broke."""

    def pause(self) -> None:
        """Note that the transport's buffer is full."""

    def resume(self) -> None:
        """Note that the transport's buffer has room again."""


class InterposedProtocol(asyncio.Protocol):
    """Forward the event loop's calls to aiohttp's protocol, and tell the stream's connection of those that matter.

    With ``hold``, what the client sends meanwhile is kept and handed on when the stream is over: aiohttp stops reading
    after some requests that it cannot answer yet, and who does not read does not see the client leave.
    """

    __slots__ = ("_connection", "_held", "_hold", "_transport", "_was_reading", "overrun", "wrapped")

    def __init__(
        self, connection: TransportListener, transport: asyncio.Transport, wrapped: asyncio.Protocol, *, hold: bool
    ) -> None:
        self._connection = connection
        self._transport = transport
        self.wrapped: asyncio.Protocol = wrapped
        self._hold = hold
        self._held: bytearray | None = None  # most clients send nothing
        self.overrun: bool = False  # more was sent than is kept, and it is gone
        self._was_reading = transport.is_reading()
        transport.set_protocol(self)
        if hold and not self._was_reading:
            transport.resume_reading()

    def detach(self) -> None:
        """Put aiohttp's protocol back, in the state that it believes the transport to be in."""
        transport = self._transport
        if transport.is_closing() or transport.get_protocol() is not self:
            return
        transport.set_protocol(self.wrapped)
        held, self._held = self._held, None
        if not self._hold:
            return
        if self._was_reading:
            transport.resume_reading()
        else:
            transport.pause_reading()
        if held:
            self.wrapped.data_received(bytes(held))

    def data_received(self, data: bytes) -> None:
        if not self._hold:
            self.wrapped.data_received(data)
            return
        if self._held is None:
            self._held = bytearray()
        if self.overrun or len(self._held) + len(data) > MAX_PIPELINED_BYTES:
            self.overrun = True
            self._held.clear()
            return
        self._held += data

    def eof_received(self) -> bool | None:
        self._connection.lose(CloseReason.CLIENT_LEFT)  # aiohttp closes on EOF, also on a half-close
        keep_open = self.wrapped.eof_received()
        # A full buffer would keep the connection for as long as the client does not read it.
        self._transport.abort()
        return keep_open

    def connection_lost(self, exc: Exception | None) -> None:
        # The kernel's own limit for a client that confirms nothing may strike before ours.
        self._connection.lose(CloseReason.STALLED if isinstance(exc, TimeoutError) else CloseReason.CLIENT_LEFT)
        self.wrapped.connection_lost(exc)

    def pause_writing(self) -> None:
        self.wrapped.pause_writing()
        self._connection.pause()

    def resume_writing(self) -> None:
        self.wrapped.resume_writing()
        self._connection.resume()


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

    __slots__ = (
        "_beat",
        "_counted",
        "_heartbeat",
        "_interposed",
        "_limits",
        "_options",
        "_stall",
        "_stall_timeout",
        "_timer",
        "_transport",
        "_waiting",
        "_writer",
        "bytes",
        "last_write",
        "loop",
        "loss",
        "owner",
        "paused",
        "sent",
        "wrap",
    )  # fmt: skip

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
        self._interposed: InterposedProtocol | None = None
        self._timer: Timer | None = None
        self._heartbeat = heartbeat
        self._beat = beat
        self.last_write: float = self.loop.time()
        self._stall_timeout = stall_timeout
        self._stall: StallDetector | None = None  # while the client is owed something, which it mostly is not
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
        wrapped = cast("asyncio.Protocol", transport.get_protocol())
        self._interposed = InterposedProtocol(self, transport, wrapped, hold=request.content.is_eof())
        due = self.last_write + TIMER_SLACK if soon and self._begins else self._next_visit(self.last_write)
        if due is not None:
            self._timer = timer_queue().add(self, due)

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
        return self._interposed is not None and self._interposed.overrun

    @property
    def unsent(self) -> int:
        """How many bytes the transport holds that the kernel has not taken."""
        transport = self._transport
        if transport is None or transport.is_closing():  # asyncio's, with TLS, can then not be asked any more
            return 0
        return transport.get_write_buffer_size()

    def write_frames(self, frames: bytes) -> None:
        """Hand whole frames to the transport, in one piece; on a lost connection do nothing."""
        if self._send(frames):
            self.bytes += len(frames)

    def write(self, payload: bytes, now: float) -> None:
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
        """Send the first heartbeat within ``TIMER_SLACK`` seconds unless something is written before."""
        if self._timer is not None and self._begins:
            self._timer.cancel()
            self._timer = timer_queue().add(self, self.loop.time() + TIMER_SLACK)

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
        transport, watcher = self._transport, self._interposed
        self._transport = self._interposed = self.owner = None
        self._count()
        if transport is None or watcher is None:
            return
        self._cancel_visit()
        if not transport.is_closing():
            self._options.restore()
            low, high = self._limits
            transport.set_write_buffer_limits(high=high, low=low)
        watcher.detach()

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

    def on_timer(self, now: float) -> float | None:
        """Send a heartbeat if the stream is idle, and give up on a client that takes nothing."""
        if self._heartbeat is not None and (
            now - self.last_write >= self._heartbeat - TIMER_SLACK or (self._beat is HEARTBEAT and self._begins)
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
            look = now + self._stall_timeout / CHECKS_PER_TIMEOUT
        return min((due for due in (beat, look) if due is not None), default=None)

    def _is_stalled(self, now: float, timeout: float) -> bool:
        """Tell whether the client takes nothing any more of what it is owed."""
        taken, owed = self._taken_and_owed()
        if not owed:
            self._stall = None
            return False
        if self._stall is None:
            self._stall = StallDetector(timeout, now, taken)
        return self._stall.look(now, taken, owed)

    def _taken_and_owed(self) -> tuple[int, int]:
        """Count the bytes that the client has confirmed, and those that it has not."""
        owed = self.unsent + self._options.unacknowledged()
        taken = self._options.acknowledged()
        return self.sent - owed if taken is None else taken, owed

    def _cancel_visit(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

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
