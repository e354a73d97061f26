"""The connection of an event stream to its client.

``Connection`` writes frames to the transport of a request, sends heartbeats, and detects clients that disconnect or
stall. While a stream is open, ``InterposedProtocol`` replaces aiohttp's protocol and receives the callbacks of the
transport. ``StallDetector`` decides when a client has stalled. ``SocketOptions`` limits how much data the kernel
buffers and reports how much data the client has acknowledged.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast

from aiohttp import web

from ..channel import CloseReason
from ..compression import BodyEncoder, Framing
from ..sse import HEARTBEAT
from .timers import TIMER_SLACK, Timer, timer_queue

if TYPE_CHECKING:
    from aiohttp.http_writer import StreamWriter

if TYPE_CHECKING or sys.platform != "win32":
    import fcntl
    import termios

__all__ = [
    "BATCH_SIZE",
    "CHECKS_PER_TIMEOUT",
    "HIGH_WATER",
    "MAX_PIPELINED_BYTES",
    "Connection",
    "ConnectionListener",
    "InterposedProtocol",
    "SocketOptions",
    "StallDetector",
    "Tap",
    "Viewer",
    "socket_options",
]


# High-water mark of the transport's write buffer, in bytes. The low-water mark is a quarter of it because uvloop's
# default of 16 bytes would resume writing only when the buffer is almost empty. HIGH_WATER and BATCH_SIZE add up to
# half of the 64 KiB that docs/promises.md allows for a stalled stream.
HIGH_WATER = 16 * 1024
# Approximate size of one write, in bytes. Larger writes barely reduce the number of system calls.
BATCH_SIZE = 16 * 1024

# Maximum size of the pipelined requests that are kept until the stream ends, in bytes. Browsers do not send any. If a
# client sends more, the data is discarded and the connection is closed after the stream. We keep reading the
# connection because this is how we detect that the client disconnects.
MAX_PIPELINED_BYTES = 64 * 1024

# Number of stall checks per timeout. More checks would make it possible to report a stall more precisely, but they
# would also wake up the process more often.
CHECKS_PER_TIMEOUT = 4
# Tolerance for rounding errors when check intervals are added up, in seconds.
TIME_TOLERANCE = 1e-6

# Value of TCP_NOTSENT_LOWAT, in bytes. Without this option, the kernel buffers 3 to 4 MB before a slow client causes
# backpressure. With this option, the kernel buffers little more than the client's receive window.
NOTSENT_LOWAT = 16 * 1024
# Value of SO_SNDBUF on platforms without TCP_NOTSENT_LOWAT, in bytes. This is enough for 5 Mbit/s at a round-trip time
# of 100 ms.
SEND_BUFFER = 64 * 1024

PLATFORM: str = sys.platform  # type checkers would skip branches that test sys.platform directly

_LINUX_NOTSENT_LOWAT, _LINUX_USER_TIMEOUT = 25, 18  # <linux/tcp.h>
_LINUX_INFO, _BYTES_ACKED = 11, slice(120, 128)  # TCP_INFO and tcpi_bytes_acked, available since Linux 4.1
_DARWIN_NOTSENT_LOWAT, _DARWIN_CONNDROPTIME = 0x201, 0x80  # <netinet/tcp.h>
_DARWIN_NWRITE = 0x1024  # <sys/socket.h>

_SOCKET_ERRORS = (OSError, ValueError)  # a closed socket raises OSError with asyncio and ValueError with uvloop

SocketOption: TypeAlias = tuple[int, int, int]
"""Level, name and value of a socket option, in the order of the arguments of ``setsockopt``."""


class ConnectionListener(Protocol):
    """Interface for objects that are notified when the state of a ``Connection`` changes or its response ends."""

    def connection_changed(self) -> None:
        """Called when the client has disconnected or when writing can resume."""

    def connection_paused(self) -> None:
        """Called when the write buffer exceeds the high-water mark."""

    def response_ended(self) -> None:
        """Called when the response body has ended."""


class Viewer(Protocol):
    """Interface for objects that look at what a ``Connection`` writes."""

    def written(self, data: bytes) -> None:
        """Called with the bytes that were passed to the transport."""

    def ended(self) -> None:
        """Called when the stream has ended, or the client has disconnected."""


class Tap(asyncio.Transport):
    """The transport of a connection that is being looked at. It passes on what the connection calls.

    Args:
        transport: The transport of the connection.
    """

    __slots__ = ("transport", "viewers")

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self.transport: asyncio.Transport = transport
        self.viewers: tuple[Viewer, ...] = ()

    def end(self) -> None:
        """Tell the viewers that the stream has ended."""
        viewers, self.viewers = self.viewers, ()
        for viewer in viewers:
            viewer.ended()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.transport.write(data)
        for viewer in self.viewers:
            viewer.written(bytes(data))

    def is_closing(self) -> bool:
        return self.transport.is_closing()

    def get_write_buffer_size(self) -> int:
        return self.transport.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.transport.set_write_buffer_limits(high=high, low=low)

    def abort(self) -> None:
        self.transport.abort()


class Connection:
    """The connection of a response to its client.

    It intercepts the callbacks of the transport until ``detach`` is called. This makes it possible to detect a
    disconnect without polling. It also makes it possible to wait for a paused transport without calling aiohttp's
    ``drain()``, because ``drain()`` does not support cancellation.

    ``detach`` restores the protocol, the limits of the write buffer and the socket options for the next request on the
    same connection.

    Args:
        request: Request whose response is being prepared.
        heartbeat: Number of seconds without a write after which a heartbeat is sent. If ``None``, heartbeats are
            disabled.
        stall_timeout: Number of seconds after which the client is disconnected if there is outstanding data and it does
            not acknowledge any of it. If ``None``, there is no timeout.
        heartbeat_frame: Frame to send as a heartbeat.
        high_water: High-water mark of the write buffer, in bytes.
        early_heartbeat: Whether to send a heartbeat within ``TIMER_SLACK`` seconds, unless another frame is sent first.
            This is useful because some proxies do not forward the response headers until they receive part of the body.
        make_encoder: Makes the encoder of a compressed body from the function that frames it. If ``None``, the body is
            not compressed.
    """

    __slots__ = (
        "_bytes_reported",
        "_heartbeat",
        "_heartbeat_frame",
        "_interposed",
        "_options",
        "_stall_detector",
        "_stall_timeout",
        "_timer",
        "_transport",
        "_waiters",
        "_write_limits",
        "_writer",
        "bytes_sent",
        "close_reason",
        "encoder",
        "frame_bytes",
        "last_write",
        "listener",
        "loop",
        "paused",
    )

    def __init__(
        self,
        request: web.BaseRequest,
        heartbeat: float | None,
        stall_timeout: float | None,
        heartbeat_frame: bytes = HEARTBEAT,
        high_water: int = HIGH_WATER,
        *,
        early_heartbeat: bool = False,
        make_encoder: Callable[[Framing], BodyEncoder] | None = None,
    ) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._transport = request.transport
        self._writer = request.writer
        framing = _chunk if cast("StreamWriter", request.writer).chunked else _identity
        self.encoder: Callable[[bytes], bytes] = framing if make_encoder is None else make_encoder(framing)
        """Function that encodes frames as HTTP chunks, compressed or not. For HTTP/1.0, there are no chunks."""
        self.listener: ConnectionListener | None = None
        self._waiters: list[asyncio.Future[None]] | None = None  # created by wait_writable()

        # None after detach(), or if the client had already disconnected. In the latter case, _options and _write_limits
        # are not set.
        self._interposed: InterposedProtocol | None = None
        self._options: SocketOptions
        self._write_limits: tuple[int, int]  # limits of the transport before the stream

        self._timer: Timer | None = None  # for the next heartbeat or stall check
        self._heartbeat = heartbeat
        self._heartbeat_frame = heartbeat_frame
        self._stall_timeout = stall_timeout
        # The first check that finds outstanding data creates it. Once all data is acknowledged, it is dropped.
        self._stall_detector: StallDetector | None = None

        self.last_write: float = self.loop.time()
        """Time of the last write according to the event loop's clock, in seconds.

        Before the first write, this is the time when the connection object was created.
        """
        self.frame_bytes: int = 0
        """Number of bytes written with ``write_frames``, before transfer coding.

        This does not include the bytes written with ``write``.
        """
        self.bytes_sent: int = 0
        """Number of bytes of the body that were passed to the transport: compressed, with heartbeats and chunks."""
        self._bytes_reported = 0  # part of bytes_sent that was already added to output_size
        self.paused: bool = False
        """Whether the write buffer is above the high-water mark."""
        self.close_reason: CloseReason | None = None
        """The reason why the client is disconnected, or ``None`` if it is still connected."""

        if self._transport is None or self._transport.is_closing():
            self.close_reason = CloseReason.CLIENT_LEFT
        else:
            self._attach(self._transport, request, high_water, early_heartbeat=early_heartbeat)

    def _attach(
        self, transport: asyncio.Transport, request: web.BaseRequest, high_water: int, *, early_heartbeat: bool
    ) -> None:
        """Configure the socket and the transport, intercept the transport's callbacks, and start the timer."""
        self._options = SocketOptions(transport, self._stall_timeout)
        self._write_limits = transport.get_write_buffer_limits()
        if transport.get_extra_info("sslcontext") is not None:
            # With TLS, the underlying TCP transport has its own buffer of 64 KiB. We cannot change the limits of this
            # buffer, so we buffer almost nothing in the TLS transport.
            high_water = 1
        transport.set_write_buffer_limits(high=high_water, low=high_water // 4)
        self.paused = request.protocol.writing_paused
        wrapped = cast("asyncio.Protocol", transport.get_protocol())
        self._interposed = InterposedProtocol(self, transport, wrapped, hold=request.content.is_eof())
        if early_heartbeat and self._needs_first_heartbeat:
            due: float | None = self.last_write + TIMER_SLACK
        else:
            due = self._next_due(self.last_write)
        if due is not None:
            self._timer = timer_queue().add(self, due)

    # State

    @property
    def disconnected(self) -> bool:
        """Whether the client is disconnected."""
        return self.close_reason is not None

    @property
    def closing(self) -> bool:
        """Whether the client is disconnected or is about to be, because the transport is closing."""
        return self.close_reason is not None or self._transport is None or self._transport.is_closing()

    @property
    def pipeline_overflowed(self) -> bool:
        """Whether pipelined requests were discarded. If so, the connection cannot be reused."""
        return self._interposed is not None and self._interposed.overflowed

    @property
    def unsent(self) -> int:
        """Number of bytes in the transport's write buffer."""
        transport = self._transport
        if transport is None or transport.is_closing():  # asyncio's TLS transport raises if it is closing
            return 0
        return transport.get_write_buffer_size()

    # Writing

    def write_frames(self, frames: bytes) -> None:
        """Write frames to the transport. If the client is disconnected, do nothing."""
        if self._send(frames):
            self.frame_bytes += len(frames)

    def write(self, payload: bytes, now: float) -> None:
        """Write a payload that was already encoded with ``encoder``. It is not counted in ``frame_bytes``.

        The Hub encodes a payload once and then calls this method for every connection. For this reason, the method does
        as little as possible.

        Args:
            payload: Encoded frames.
            now: Current time of the event loop, in seconds.
        """
        transport = self._transport
        if transport is None or transport.is_closing():
            self._disconnect_soon()
            return
        transport.write(payload)
        self.bytes_sent += len(payload)
        self.last_write = now

    def _send(self, frames: bytes) -> bool:
        transport = self._transport
        if transport is None or self.close_reason is not None:
            return False
        if transport.is_closing():
            self._disconnect_soon()
            return False
        payload = self.encoder(frames)
        transport.write(payload)
        self.bytes_sent += len(payload)
        self.last_write = self.loop.time()
        return True

    def write_head(self, head: bytes) -> None:
        """Write the first bytes of a body that is compressed, which are not compressed themselves."""
        encoder = self.encoder
        if isinstance(encoder, BodyEncoder) and self._transport is not None:
            payload = encoder.framing(head)
            self._transport.write(payload)
            self.bytes_sent += len(payload)

    def encode(self, data: bytes | bytearray | memoryview) -> bytes:
        """Return bytes of the body as they are sent, compressed or not, without framing."""
        encoder, data = self.encoder, bytes(memoryview(data))
        return encoder.encode(data) if isinstance(encoder, BodyEncoder) else data

    def finish(self) -> bytes:
        """Return what ends the body before the last chunk: the end of what is compressed."""
        encoder = self.encoder
        return encoder.finish() if isinstance(encoder, BodyEncoder) else b""

    async def wait_writable(self) -> bool:
        """Wait until writing can resume, the client disconnects, or ``detach`` is called.

        Cancelling ``wait_writable`` is safe because it does not write anything.

        Returns:
            ``True`` if writing can resume, or ``False`` if the client has disconnected or ``detach`` was called.
        """
        while self.paused and not self.disconnected and self._transport is not None:
            waiter = self.loop.create_future()
            if self._waiters is None:
                self._waiters = []
            self._waiters.append(waiter)
            await waiter
        return not self.disconnected and self._transport is not None

    def count_chunk_sent_by_aiohttp(self, size: int) -> None:
        """Count bytes of the body that aiohttp sent as one chunk: with the headers, or for the application.

        Args:
            size: Number of bytes without the framing of the chunk.
        """
        is_chunked = cast("StreamWriter", self._writer).chunked
        self.count_sent_by_aiohttp(size + (len(f"{size:x}") + CHUNK_FRAMING if is_chunked else 0))

    def count_sent_by_aiohttp(self, size: int) -> None:
        """Count bytes of the body that aiohttp sent, and that it has already added to ``output_size``."""
        self.bytes_sent += size
        self._bytes_reported += size

    # Closing

    def detach(self) -> None:
        """Stop using the transport and restore its protocol, buffer limits and socket options.

        Calling this method more than once has no effect.
        """
        transport, interposed = self._transport, self._interposed
        self._transport = self._interposed = self.listener = None
        self._update_output_size()
        self._wake_waiters()
        if transport is None or interposed is None:
            return
        self._cancel_timer()
        if isinstance(transport, Tap):
            transport.end()
        if not transport.is_closing():
            self._options.restore()
            low, high = self._write_limits
            transport.set_write_buffer_limits(high=high, low=low)
        interposed.detach()

    # Looking at what is written

    def tap(self, viewer: Viewer) -> None:
        """Call a viewer with what is written to the transport from now on, until ``untap`` or the end of the stream.

        A connection without viewers is not affected: the tap takes the place of the transport.

        Args:
            viewer: Object to call. It must not raise.
        """
        if not isinstance(self._transport, Tap):
            if self._transport is None:
                viewer.ended()
                return
            self._transport = Tap(self._transport)
        self._transport.viewers += (viewer,)

    def untap(self, viewer: Viewer) -> None:
        """Stop calling a viewer. Calling this method more than once has no effect."""
        tap = self._transport
        if isinstance(tap, Tap):
            tap.viewers = tuple(each for each in tap.viewers if each is not viewer)
            if not tap.viewers:
                self._transport = tap.transport

    def abort(self) -> None:
        """Close the transport and discard its write buffer."""
        if self._transport is not None:
            self._transport.abort()

    def _update_output_size(self) -> None:
        """Add the bytes sent since the last update to the size reported in aiohttp's access log."""
        self._writer.output_size += self.bytes_sent - self._bytes_reported
        self._bytes_reported = self.bytes_sent

    def mark_disconnected(self, reason: CloseReason) -> None:
        """Set the close reason and notify the listener. If there already is a reason, it is kept."""
        if self.close_reason is None:
            self.close_reason = reason
            self._update_output_size()
            self._cancel_timer()
            if isinstance(self._transport, Tap):
                self._transport.end()
            self._notify()

    def _disconnect_soon(self) -> None:
        """Stop writing and mark the client as disconnected after two iterations of the event loop.

        This delay allows ``connection_lost`` to run first, because it knows the reason. After a failed write, the event
        loop calls ``connection_lost`` in the next iteration. With TLS, this takes one more iteration.
        """
        if self._transport is None:
            return
        self.paused = True
        # The calls are nested in order to skip one iteration.
        self.loop.call_soon(self.loop.call_soon, self.mark_disconnected, CloseReason.CLIENT_LEFT)

    # Flow control, called by InterposedProtocol

    def pause_writing(self) -> None:
        """Called when the write buffer exceeds the high-water mark."""
        self.paused = True
        if self.listener is not None:
            self.listener.connection_paused()

    def resume_writing(self) -> None:
        """Called when the write buffer has drained to the low-water mark."""
        self.paused = False
        self._notify()

    # Notifying

    def _notify(self) -> None:
        if self.listener is not None:
            self.listener.connection_changed()
        self._wake_waiters()

    def _wake_waiters(self) -> None:
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    # Heartbeats and stall checks

    def send_heartbeat(self) -> None:
        """Send a heartbeat, unless the connection is paused.

        A paused connection does not need a heartbeat because it still has unsent data.
        """
        if not self.paused:
            self._send(self._heartbeat_frame)

    def schedule_first_heartbeat(self) -> None:
        """Send a heartbeat within ``TIMER_SLACK`` seconds, unless another frame is sent first."""
        if self._timer is not None and self._needs_first_heartbeat:
            self._timer.cancel()
            self._timer = timer_queue().add(self, self.loop.time() + TIMER_SLACK)

    def stop_heartbeats(self) -> None:
        """Stop sending heartbeats."""
        self._heartbeat = None

    @property
    def _needs_first_heartbeat(self) -> bool:
        """Whether the body should begin with a heartbeat.

        This is always false for HTTP/1.0. If an HTTP/1.0 client saves a short response to a file, the file should not
        begin with a comment.
        """
        is_chunked = cast("StreamWriter", self._writer).chunked
        return not self.bytes_sent and self._heartbeat is not None and is_chunked

    def on_timer(self, now: float) -> float | None:
        """Called when a heartbeat or a stall check is due.

        Sends a heartbeat if the connection is idle, and aborts the connection if the client has stalled.
        """
        if self._heartbeat is not None and (
            now - self.last_write >= self._heartbeat - TIMER_SLACK
            # The ping of aiohttp-sse is a different frame and must not be sent before its interval has elapsed.
            or (self._heartbeat_frame is HEARTBEAT and self._needs_first_heartbeat)
        ):
            self.send_heartbeat()
        if self._transport is None or self._transport.is_closing():  # do not run the stall check on a closed socket
            self._disconnect_soon()
            return None
        if self._stall_timeout is not None and self._check_stall(now, self._stall_timeout):
            self.mark_disconnected(CloseReason.STALLED)
            self.abort()
            return None
        return self._next_due(now)

    def _next_due(self, now: float) -> float | None:
        due: list[float] = []
        if self._heartbeat is not None:
            heartbeat_due = self.last_write + self._heartbeat
            # The heartbeat may be overdue because none are sent while the connection is paused.
            due.append(heartbeat_due if heartbeat_due > now else now + self._heartbeat)
        if self._stall_detector is not None:
            due.append(self._stall_detector.next_check(now))
        elif self._stall_timeout is not None:
            due.append(now + self._stall_timeout / CHECKS_PER_TIMEOUT)
        return min(due, default=None)

    def _check_stall(self, now: float, timeout: float) -> bool:
        """Return whether the client has stalled.

        The stall detector only exists while there is outstanding data. This method creates, updates or drops it.
        """
        acked, outstanding = self._acked_and_outstanding()
        if not outstanding:
            self._stall_detector = None
            return False
        if self._stall_detector is None:
            self._stall_detector = StallDetector(timeout, now, acked)
        return self._stall_detector.check(now, acked, outstanding)

    def _acked_and_outstanding(self) -> tuple[int, int]:
        """Return the number of acknowledged bytes and the number of outstanding bytes.

        With TLS, the first number counts ciphertext while the second number includes plaintext. In this case, only
        changes of these numbers are meaningful.
        """
        outstanding = self.unsent + self._options.unacked_bytes()
        acked = self._options.acked_bytes()
        if acked is None:
            acked = self.bytes_sent - outstanding
        return acked, outstanding

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


CHUNK_FRAMING = 4  # bytes of the framing of a chunk: two line breaks, beside the digits of its size


def _chunk(frames: bytes) -> bytes:
    """Encode frames as a single chunk, as defined in RFC 9112, section 7.1."""
    return b"%x\r\n%b\r\n" % (len(frames), frames)


def _identity(frames: bytes) -> bytes:
    """Return frames unchanged because HTTP/1.0 does not support chunks."""
    return frames


class InterposedProtocol(asyncio.Protocol):
    """Protocol that forwards the transport's callbacks to aiohttp's protocol and notifies the stream's connection.

    aiohttp stops reading after it has received a few pipelined requests. However, a transport only detects a disconnect
    while it is reading. For this reason, this protocol keeps reading and holds the data until aiohttp can process it.

    Args:
        connection: Connection to notify.
        transport: Transport whose protocol is replaced.
        wrapped: The protocol of aiohttp.
        hold: Whether to hold data until ``detach`` is called. If this is false, data is forwarded immediately because
            it belongs to the body of the current request.
    """

    __slots__ = ("_connection", "_held", "_hold", "_transport", "_was_reading", "overflowed", "wrapped")

    def __init__(
        self, connection: Connection, transport: asyncio.Transport, wrapped: asyncio.Protocol, *, hold: bool
    ) -> None:
        self._connection = connection
        self._transport = transport
        self.wrapped: asyncio.Protocol = wrapped
        self._hold = hold
        self._held: bytearray | None = None  # created on first use because most clients do not send anything
        self.overflowed: bool = False
        """Whether data was discarded because it exceeded ``MAX_PIPELINED_BYTES``."""
        self._was_reading = transport.is_reading()
        transport.set_protocol(self)
        if hold and not self._was_reading:
            transport.resume_reading()

    def detach(self) -> None:
        """Reinstall aiohttp's protocol, pause or resume reading as before, and forward the data that was held.

        If the transport is closing, this method does nothing.
        """
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

    # asyncio.Protocol methods

    def data_received(self, data: bytes) -> None:
        if not self._hold:
            self.wrapped.data_received(data)
            return
        if self._held is None:
            self._held = bytearray()
        if self.overflowed or len(self._held) + len(data) > MAX_PIPELINED_BYTES:
            self.overflowed = True
            self._held.clear()
            return
        self._held += data

    def eof_received(self) -> bool | None:
        # aiohttp closes the connection on EOF, even if the client has only shut down its side for writing.
        self._connection.mark_disconnected(CloseReason.CLIENT_LEFT)
        keep_open = self.wrapped.eof_received()
        # close() would flush the write buffer first. This may never complete if the client has stalled.
        self._transport.abort()
        return keep_open

    def connection_lost(self, exc: Exception | None) -> None:
        # The connection fails with ETIMEDOUT if the timeout that SocketOptions sets in the kernel expires first.
        stalled = isinstance(exc, TimeoutError)
        self._connection.mark_disconnected(CloseReason.STALLED if stalled else CloseReason.CLIENT_LEFT)
        self.wrapped.connection_lost(exc)

    def pause_writing(self) -> None:
        self.wrapped.pause_writing()
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self.wrapped.resume_writing()
        self._connection.resume_writing()


class StallDetector:
    """Detects when a client stops acknowledging data. It does not perform any I/O.

    The checks are a quarter of ``timeout`` apart, so the exact time of an acknowledgment between two checks is not
    known. For this reason, a stall is reported between three quarters of ``timeout`` and ``timeout`` after the last
    acknowledgment, or after the oldest unacknowledged byte was sent. If the timer runs late, the report is delayed.

    Args:
        timeout: Stall timeout, in seconds.
        now: Current time, in seconds.
        acked: Number of bytes that the client has acknowledged so far.
    """

    __slots__ = ("_acked", "_since", "timeout")

    def __init__(self, timeout: float, now: float, acked: int = 0) -> None:
        self.timeout: float = timeout
        self._since = now
        self._acked = acked

    def next_check(self, now: float) -> float:
        """Return the time of the next check."""
        deadline = self._since + self.timeout * (1 - 1 / CHECKS_PER_TIMEOUT)
        next_check = now + self.timeout / CHECKS_PER_TIMEOUT
        return min(next_check, deadline) if deadline > now else next_check

    def check(self, now: float, acked: int, outstanding: int) -> bool:
        """Record the progress of the client and return whether it has stalled.

        Args:
            now: Current time, in seconds.
            acked: Number of bytes that the client has acknowledged so far.
            outstanding: Number of bytes that the client has not acknowledged yet, including bytes waiting to be sent.
        """
        if outstanding == 0 or acked > self._acked:
            self._since = now
        self._acked = acked
        return now - self._since >= self.timeout * (1 - 1 / CHECKS_PER_TIMEOUT) - TIME_TOLERANCE


class SocketOptions:
    """Configures the TCP socket of a transport and reports how much data the client has acknowledged.

    The constructor sets the options and ``restore`` resets them. If the socket is not a TCP socket, this has no effect.

    Args:
        transport: Transport whose socket is configured.
        stall_timeout: Number of seconds after which the kernel closes the connection of an unresponsive client. If
            ``None``, the default of the system applies.
    """

    __slots__ = ("_options", "_previous", "_socket")

    def __init__(self, transport: asyncio.Transport, stall_timeout: float | None) -> None:
        self._socket: socket.socket | None = transport.get_extra_info("socket")
        self._options: tuple[SocketOption, ...] = ()
        self._previous: tuple[int, ...] = ()
        if self._socket is not None:
            try:
                for option in socket_options(PLATFORM, stall_timeout):
                    self._previous += (_replace(self._socket, *option),)
                    self._options += (option,)
            except _SOCKET_ERRORS:  # not TCP, or closed, which the transport reports itself
                pass

    def restore(self) -> None:
        """Restore the previous values of the options. Calling this method more than once has no effect."""
        previous, self._previous = self._previous, ()
        if self._socket is not None:
            with suppress(*_SOCKET_ERRORS):
                for (level, name, _), value in zip(self._options, previous, strict=False):
                    self._socket.setsockopt(level, name, value)

    def acked_bytes(self) -> int | None:
        """Return the number of bytes that the client has acknowledged, or ``None`` if the platform does not report it.

        With TLS, this number counts ciphertext. It can be up to thirty times the number of bytes written, so you should
        only compare it with earlier values.
        """
        if PLATFORM != "linux" or self._socket is None or not self._options:
            return None
        try:
            info = self._socket.getsockopt(socket.IPPROTO_TCP, _LINUX_INFO, _BYTES_ACKED.stop)
        except _SOCKET_ERRORS:
            return None
        return int.from_bytes(info[_BYTES_ACKED], sys.byteorder) if len(info) == _BYTES_ACKED.stop else None

    def unacked_bytes(self) -> int:
        """Return the number of bytes in the kernel that the client has not acknowledged, or 0 if it is unknown."""
        fd = -1 if self._socket is None else self._socket.fileno()
        if fd < 0 or not self._options:
            return 0
        try:
            return _unacked_bytes(self._socket, fd)
        except _SOCKET_ERRORS:
            return 0


def _replace(sock: socket.socket, level: int, name: int, value: int) -> int:
    """Set a socket option and return its previous value."""
    previous = sock.getsockopt(level, name)
    sock.setsockopt(level, name, value)
    return previous


@lru_cache(64)  # streams use only a few different timeouts
def socket_options(platform: str, stall_timeout: float | None) -> tuple[SocketOption, ...]:
    """Return the options to set on a TCP socket.

    Args:
        platform: Name of the platform, as in ``sys.platform``.
        stall_timeout: Stall timeout, in seconds. If ``None``, there is no timeout.
    """
    if platform == "linux":
        options = [(socket.IPPROTO_TCP, _LINUX_NOTSENT_LOWAT, NOTSENT_LOWAT)]
        if stall_timeout is not None:  # in milliseconds, where 0 would select the system's default
            options.append((socket.IPPROTO_TCP, _LINUX_USER_TIMEOUT, max(1, int(stall_timeout * 1000))))
    elif platform == "darwin":
        options = [(socket.IPPROTO_TCP, _DARWIN_NOTSENT_LOWAT, NOTSENT_LOWAT)]
        if stall_timeout is not None:  # in seconds
            options.append((socket.IPPROTO_TCP, _DARWIN_CONNDROPTIME, max(1, int(stall_timeout))))
    else:
        options = [(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)]
    return tuple(options)


def _unacked_bytes(sock: socket.socket | None, fd: int) -> int:
    if PLATFORM == "linux":
        return int(struct.unpack("i", fcntl.ioctl(fd, termios.TIOCOUTQ, b"\0\0\0\0"))[0])  # SIOCOUTQ in tcp(7)
    if PLATFORM == "darwin" and sock is not None:
        return sock.getsockopt(socket.SOL_SOCKET, _DARWIN_NWRITE)
    return 0
