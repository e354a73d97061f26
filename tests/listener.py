"""A client of event streams on a bare connection: it sees every byte, and what a browser makes of them."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque

from aiohttp import web

from aiohttp_interceptors import Decoder, Event, Hub, as_handler, setup, start_topic_stream
from tests.conftest import Raw
from tests.waiting import PATIENCE

EVENT_SOURCE = "Accept: text/event-stream\nCache-Control: no-cache\nPragma: no-cache\n"


class Listener:
    """One connection to an event stream, whose head has come."""

    def __init__(self, raw, head: bytes) -> None:
        self.raw = raw
        self.head = head
        self.status = int(head.split()[1])
        self.body = b""  # without the sizes of chunks
        self.received = 0  # bytes, with those sizes
        self.complete = False  # the server said that this was all
        self._chunked = b"\r\ntransfer-encoding: chunked\r\n" in head.lower()
        self._wire = b""
        self._left = 0  # bytes of the chunk that are to come, its line end among them
        self._decoder = Decoder()
        self._frames: deque[Event] = deque()

    @property
    def last_event_id(self) -> str:
        """What a browser would return with."""
        return self._decoder.last_event_id

    @property
    def retry(self) -> int | None:
        return self._decoder.retry

    async def read(self, most: int = 65536) -> list[Event]:
        """Read what there is, but not more than that, and return the frames that it completes."""
        async with asyncio.timeout(PATIENCE):
            data = await self.raw.reader.read(most)
        if not data:
            raise EOFError
        self.received += len(data)
        body = self._unwrap(data)
        self.body += body
        return self._decoder.feed(body)

    async def frame(self) -> Event:
        """Wait for the next frame, dispatched by a browser or not. Raises ``EOFError`` at the end."""
        while not self._frames:
            if self.complete:
                raise EOFError
            self._frames.extend(await self.read())
        return self._frames.popleft()

    async def heartbeat(self) -> None:
        """Wait for one more heartbeat; frames that come before it stay for ``frame``."""
        seen = self._decoder.heartbeats
        while self._decoder.heartbeats == seen:
            self._frames.extend(await self.read())

    async def event(self) -> Event:
        """Wait for the next event that a page would see. Raises ``EOFError`` at the end."""
        while (frame := await self.frame()).data is None:
            pass
        return frame

    async def data(self, count: int) -> list[str]:
        """Wait for the data of the next events."""
        return [(await self.event()).data for _ in range(count)]

    async def rest(self) -> list[Event]:
        """Read to the end, and return the events that a page would see."""
        events = []
        try:
            while True:
                events.append(await self.event())
        except EOFError:
            return events

    async def close(self) -> None:
        await self.raw.close()

    def _unwrap(self, data: bytes) -> bytes:
        """Return what of the body came, as it comes: a browser does not wait for a chunk's end either."""
        if not self._chunked:
            return data
        self._wire += data
        body = b""
        while True:
            if self._left > 2:
                piece = self._wire[: self._left - 2]
                body += piece
                self._wire = self._wire[len(piece) :]
                self._left -= len(piece)
            if self._left > 2 or b"\r\n" not in self._wire:
                return body
            line, _, self._wire = self._wire.partition(b"\r\n")
            if self._left:
                assert line == b""
                self._left = 0
            else:
                self._left = int(line, 16) + 2
                self.complete = self.complete or self._left == 2


async def listen(
    server,
    path: str = "/",
    *,
    after: str | None = None,
    version: str = "1.1",
    method: str = "GET",
    room: int = 0,
    trust: ssl.SSLContext | None = None,
    browser: bool = True,
) -> Listener:
    """Open a stream, and wait for its head; with ``room`` the client keeps about that many bytes that nobody reads.

    With ``trust``, of whom it trusts, it uses TLS.
    """
    request = f"{method} {path} HTTP/{version}\nHost: x\n{EVENT_SOURCE if browser else ''}"
    if after is not None:
        request += f"Last-Event-ID: {after}\n"
    raw = await (server.connect("") if not room else _connect_with(server.port, room, trust))
    raw.writer.write((request + "\n").replace("\n", "\r\n").encode())
    return Listener(raw, await raw.until(b"\r\n\r\n"))


async def _connect_with(port: int, room: int, trust: ssl.SSLContext | None) -> Raw:
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    name = None if trust is None else "localhost"
    return Raw(*await asyncio.open_connection(sock=sock, limit=room, ssl=trust, server_hostname=name))


def application(hub: Hub, topics, *interceptors, middlewares=(), **options) -> web.Application:
    """Make an application that streams these topics at ``/``."""
    app = web.Application(middlewares=middlewares)
    setup(app, hub)
    options.setdefault("heartbeat", None)
    app.router.add_route("*", "/", as_handler(*interceptors, start_topic_stream(hub, topics, **options)))
    return app
