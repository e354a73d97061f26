"""A client of event streams on a TCP connection: it records every byte, and parses events as a browser does."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque

from aiohttp import web

from aiohttp_interceptors import Decoder, Event, Hub, as_handler, setup, start_topic_stream
from tests.conftest import Raw
from tests.waiting import TIMEOUT

EVENT_SOURCE = "Accept: text/event-stream\nCache-Control: no-cache\nPragma: no-cache\n"


class Listener:
    """One connection to an event stream whose response head was received."""

    def __init__(self, raw, head: bytes) -> None:
        self.raw = raw
        self.head = head
        self.status = int(head.split()[1])
        self.body = b""  # without chunk framing
        self.received = 0  # bytes, with chunk framing
        self.complete = False  # the final chunk was received
        self._chunked = b"\r\ntransfer-encoding: chunked\r\n" in head.lower()
        self._unparsed = b""
        self._chunk_left = 0  # bytes of the current chunk still expected, with its CRLF
        self._decoder = Decoder()
        self._frames: deque[Event] = deque()

    @property
    def last_event_id(self) -> str:
        """The ID that a browser would reconnect with."""
        return self._decoder.last_event_id

    @property
    def retry(self) -> int | None:
        return self._decoder.retry

    async def read(self, max_bytes: int = 65536) -> list[Event]:
        """Read what is available, and return the frames that it completes. Raises ``EOFError`` at the end."""
        async with asyncio.timeout(TIMEOUT):
            data = await self.raw.reader.read(max_bytes)
        if not data:
            raise EOFError
        self.received += len(data)
        body = self._decode_chunks(data)
        self.body += body
        return self._decoder.feed(body)

    async def frame(self) -> Event:
        """Wait for the next frame, also one without data. Raises ``EOFError`` at the end."""
        while not self._frames:
            if self.complete:
                raise EOFError
            self._frames.extend(await self.read())
        return self._frames.popleft()

    async def heartbeat(self) -> None:
        """Wait for one more heartbeat; frames before it are kept for ``frame``."""
        seen = self._decoder.heartbeats
        while self._decoder.heartbeats == seen:
            self._frames.extend(await self.read())

    async def event(self) -> Event:
        """Wait for the next event that a browser would dispatch. Raises ``EOFError`` at the end."""
        while (frame := await self.frame()).data is None:
            pass
        return frame

    async def data(self, count: int) -> list[str]:
        """Wait for the next ``count`` events and return their data."""
        return [(await self.event()).data for _ in range(count)]

    async def rest(self) -> list[Event]:
        """Read to the end, and return the events that a browser would dispatch."""
        events = []
        try:
            while True:
                events.append(await self.event())
        except EOFError:
            return events

    async def close(self) -> None:
        await self.raw.close()

    def _decode_chunks(self, data: bytes) -> bytes:
        """Remove chunk framing. Parts of a chunk are returned as they arrive, as in a browser."""
        if not self._chunked:
            return data
        self._unparsed += data
        body = b""
        while True:
            if self._chunk_left > 2:
                part = self._unparsed[: self._chunk_left - 2]
                body += part
                self._unparsed = self._unparsed[len(part) :]
                self._chunk_left -= len(part)
            if self._chunk_left > 2 or b"\r\n" not in self._unparsed:
                return body
            line, _, self._unparsed = self._unparsed.partition(b"\r\n")
            if self._chunk_left:
                assert line == b""
                self._chunk_left = 0
            else:
                self._chunk_left = int(line, 16) + 2
                self.complete = self.complete or self._chunk_left == 2


async def listen(
    server,
    path: str = "/",
    *,
    after: str | None = None,
    version: str = "1.1",
    method: str = "GET",
    receive_buffer: int = 0,
    ssl_context: ssl.SSLContext | None = None,
    browser: bool = True,
) -> Listener:
    """Open a stream and wait for its response head.

    Args:
        server: A ``Server`` of the ``serve`` fixture.
        path: The path and query.
        after: The value of ``Last-Event-ID``.
        version: The HTTP version.
        method: The HTTP method.
        receive_buffer: Size of the client's receive buffer in bytes; 0 for the default.
        ssl_context: Connect with TLS. Only with ``receive_buffer``.
        browser: Send the headers of an ``EventSource``.

    """
    request = f"{method} {path} HTTP/{version}\nHost: x\n{EVENT_SOURCE if browser else ''}"
    if after is not None:
        request += f"Last-Event-ID: {after}\n"
    raw = await (
        server.connect("") if not receive_buffer else _connect_with_buffer(server.port, receive_buffer, ssl_context)
    )
    raw.writer.write((request + "\n").replace("\n", "\r\n").encode())
    return Listener(raw, await raw.until(b"\r\n\r\n"))


async def _connect_with_buffer(port: int, size: int, ssl_context: ssl.SSLContext | None) -> Raw:
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)  # before connecting: the window scale is negotiated then
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    name = None if ssl_context is None else "localhost"
    return Raw(*await asyncio.open_connection(sock=sock, limit=size, ssl=ssl_context, server_hostname=name))


def application(hub: Hub, topics, *interceptors, middlewares=(), **options) -> web.Application:
    """Create an application that streams topics at ``/``."""
    app = web.Application(middlewares=middlewares)
    setup(app, hub)
    options.setdefault("heartbeat", None)
    app.router.add_route("*", "/", as_handler(*interceptors, start_topic_stream(hub, topics, **options)))
    return app
