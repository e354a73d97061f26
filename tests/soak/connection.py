"""A client's TCP connection that can read slowly, stop reading, reset, half-close, and send arbitrary bytes."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from dataclasses import dataclass

RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, with a timeout of 0
READ_TIMEOUT = 8.0  # seconds; the server sends heartbeats far more often, also on a busy machine


class ConnectionLost(Exception):
    """The connection ended before the body did."""


class ReadTimedOut(Exception):
    """The server sent nothing for ``read_timeout`` seconds."""


@dataclass
class Head:
    """The status and the headers of a response."""

    status: int
    headers: dict[str, str]

    @property
    def chunked(self) -> bool:
        return self.headers.get("transfer-encoding") == "chunked"


class Connection:
    """One connection. All methods that read raise ``ConnectionLost`` and ``ReadTimedOut``."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.head = Head(0, {})
        self.read_timeout = READ_TIMEOUT

    @classmethod
    async def open(cls, port: int, *, receive_buffer: int = 0) -> Connection:
        """Connect. With a small ``receive_buffer``, in bytes, the server soon notices a slow client. 0: the default."""
        sock = socket.socket()
        sock.setblocking(False)
        try:
            if receive_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
            return cls(*await asyncio.open_connection(sock=sock, limit=4096 if receive_buffer else 65536))
        except BaseException:
            sock.close()
            raise

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    def request(self, method: str, path: str, version: str = "1.1", body: bytes = b"", **headers: str | None) -> None:
        """Send a request. Underscores in the names of headers become hyphens; headers that are None are omitted."""
        lines = [f"{method} {path} HTTP/{version}", "Host: soak"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items() if value is not None]
        self.send("\r\n".join([*lines, "", ""]).encode() + body)

    async def read_head(self) -> Head:
        """Read the head of a response."""
        block = (await self._wait(self._reader.readuntil(b"\r\n\r\n"))).decode()
        status, *lines = block.strip().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        self.head = Head(int(status.split()[1]), headers)
        return self.head

    async def read_chunk(self) -> bytes:
        """Read a part of the body. The empty string is its end."""
        if self.head.chunked:
            size = int(await self._wait(self._reader.readuntil(b"\r\n")), 16)
            data = await self._wait(self._reader.readexactly(size + 2))
            if not data.endswith(b"\r\n"):
                raise AssertionError(f"a chunk ends with {data[-8:]!r}")
            return data[:-2]
        if "content-length" in self.head.headers:
            length, self.head.headers["content-length"] = self.head.headers["content-length"], "0"
            return await self._wait(self._reader.readexactly(int(length)))
        return await self._wait(self._reader.read(2**16))

    async def read_body(self) -> bytes:
        """Read the whole body."""
        chunks = []
        while chunk := await self.read_chunk():
            chunks.append(chunk)
        return b"".join(chunks)

    async def wait_closed_by_server(self) -> None:
        """Read until the server has closed the connection."""
        try:
            while await self._wait(self._reader.read(2**16)):
                pass
        except ConnectionLost:
            pass

    def half_close(self) -> None:
        self._writer.write_eof()

    def reset(self) -> None:
        if not self._writer.is_closing():
            self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            self._writer.transport.abort()

    def close(self, rng: random.Random) -> None:
        """Close or reset, at random."""
        if rng.random() < 0.5:
            self.reset()
        else:
            self._writer.close()

    async def _wait(self, reading):
        try:
            async with asyncio.timeout(self.read_timeout):
                return await reading
        except asyncio.IncompleteReadError as error:
            raise ConnectionLost(f"after {error.partial[:40]!r}") from None
        except ConnectionError as error:
            raise ConnectionLost(repr(error)) from None
        except TimeoutError:
            raise ReadTimedOut from None
