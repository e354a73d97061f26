"""A bare client's connection: one that can read slowly, stop, reset, half-close and send what it likes."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from dataclasses import dataclass

AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset
PATIENCE = 8.0  # seconds in which a server with heartbeats says something, however busy the machine is


class Cut(Exception):
    """The connection ended before the body did."""


class Silent(Exception):
    """The server said nothing for too long."""


@dataclass
class Head:
    """A response's head."""

    status: int
    headers: dict[str, str]

    @property
    def chunked(self) -> bool:
        return self.headers.get("transfer-encoding") == "chunked"


class Wire:
    """One connection."""

    def __init__(self, cursor: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._cursor = cursor
        self._writer = writer
        self.head = Head(0, {})
        self.patience = PATIENCE

    @classmethod
    async def open(cls, port: int, *, room: int = 0) -> Wire:
        """Connect; ``room`` is how many bytes the kernel keeps unread, for the server to feel it; 0 for its usual."""
        sock = socket.socket()
        sock.setblocking(False)
        try:
            if room:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
            return cls(*await asyncio.open_connection(sock=sock, limit=4096 if room else 65536))
        except BaseException:
            sock.close()
            raise

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    def request(self, method: str, path: str, version: str = "1.1", body: bytes = b"", **headers: str | None) -> None:
        """Send a request; a header's name has _ for -, and it is left out if its value is None."""
        lines = [f"{method} {path} HTTP/{version}", "Host: soak"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items() if value is not None]
        self.send("\r\n".join([*lines, "", ""]).encode() + body)

    async def read_head(self) -> Head:
        """Read a head. Raises ``Cut`` and ``Silent``, as all that reads does."""
        block = (await self._patiently(self._cursor.readuntil(b"\r\n\r\n"))).decode()
        status, *lines = block.strip().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        self.head = Head(int(status.split()[1]), headers)
        return self.head

    async def piece(self) -> bytes:
        """Read a piece of the body; an empty one is its clean end."""
        if self.head.chunked:
            size = int(await self._patiently(self._cursor.readuntil(b"\r\n")), 16)
            data = await self._patiently(self._cursor.readexactly(size + 2))
            if not data.endswith(b"\r\n"):
                raise AssertionError(f"a chunk ends with {data[-8:]!r}")
            return data[:-2]
        if "content-length" in self.head.headers:
            length, self.head.headers["content-length"] = self.head.headers["content-length"], "0"
            return await self._patiently(self._cursor.readexactly(int(length)))
        return await self._patiently(self._cursor.read(2**16))

    async def body(self) -> bytes:
        """Read all of a body."""
        pieces = []
        while piece := await self.piece():
            pieces.append(piece)
        return b"".join(pieces)

    async def until_closed(self) -> None:
        """Read until the server has closed the connection."""
        try:
            while await self._patiently(self._cursor.read(2**16)):
                pass
        except Cut:
            pass

    def half_close(self) -> None:
        self._writer.write_eof()

    def reset(self) -> None:
        if not self._writer.is_closing():
            self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
            self._writer.transport.abort()

    def close(self, chance: random.Random) -> None:
        """Leave, in one way or another."""
        if chance.random() < 0.5:
            self.reset()
        else:
            self._writer.close()

    async def _patiently(self, reading):
        try:
            async with asyncio.timeout(self.patience):
                return await reading
        except asyncio.IncompleteReadError as error:
            raise Cut(f"after {error.partial[:40]!r}") from None
        except ConnectionError as error:
            raise Cut(repr(error)) from None
        except TimeoutError:
            raise Silent from None
