"""A client that sends any bytes, in any pieces, and ends its connection in any way."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from tests.hostile.site import Site
from tests.waiting import TIMEOUT

ENDS = ("close", "reset", "half-close")


@dataclass
class Reply:
    """What the server has answered first; the status is 0 if it has closed the connection without an answer."""

    status: int = 0
    head: bytes = b""
    body: bytes = field(default=b"", repr=False)
    error: str = ""

    @property
    def is_stream(self) -> bool:
        return self.status == 200 and b"text/event-stream" in self.head


async def send(site: Site, pieces: list[bytes], end: str = "close", *, body: bool = False) -> Reply:
    """Send bytes, wait for the head of the answer, and end the connection. Fails if no answer comes.

    Args:
        site: The server.
        pieces: The bytes.
        end: How the connection ends.
        body: Whether to read the body too, until the server closes.
    """
    reader, writer = await site.connect()
    reply = Reply()
    try:
        async with asyncio.timeout(TIMEOUT):
            try:
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                while reply.status < 200:  # 100 Continue is not the answer
                    reply.head = await reader.readuntil(b"\r\n\r\n")
                    reply.status = int(reply.head.split()[1])
                if body:
                    reply.body = await reader.read()
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                reply.error = repr(error)
        await _end(reader, writer, end)
    finally:
        writer.close()
    return reply


async def _end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, end: str) -> None:
    if end == "reset":
        writer.transport.abort()
    elif end == "half-close" and not writer.is_closing():
        try:
            writer.write_eof()
            async with asyncio.timeout(TIMEOUT):
                while await reader.read(65536):
                    pass
        except OSError:
            pass
