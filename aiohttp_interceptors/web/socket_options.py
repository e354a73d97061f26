"""What a stream asks of the kernel for its socket: to tell early that a client is slow, and at last that it is gone."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING or sys.platform != "win32":
    import fcntl
    import termios

__all__ = ["SocketOptions", "options_on", "shared"]

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
