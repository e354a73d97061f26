"""A kit for testing interceptors and streams: chains without a server, producers without a client, streams that end.

``TcpProxy`` is the network between two of them, or to a database, that can be slow, cut, and silent.

::

    async def test_the_counter_counts(aiohttp_client):
        client = await aiohttp_client(make_app())
        async with open_stream(client, "/count") as stream:
            event = await stream.next()
            assert event.data == "1"
"""

from __future__ import annotations

import asyncio
import inspect
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Self, TypeVar, cast
from unittest import mock

from aiohttp import ClientResponse, ClientSession, ClientTimeout
from aiohttp.test_utils import TestClient, make_mocked_request

from ._logging import captured_logs
from .chain import Context, execute
from .channel import CloseReason, EventChannel
from .interceptor import InterceptorLike
from .sse import Decoder, Event
from .web.context import RequestContext

if TYPE_CHECKING:
    from .web.producer import StreamReady

__all__ = ["OpenStream", "TcpProxy", "captured_logs", "collect_events", "open_stream", "request_context", "run_chain"]


C = TypeVar("C", bound=Context)

# Seconds that a test waits for what should come at once; long enough for a busy machine, short enough for a person.
PATIENCE = 10.0


async def run_chain(context: C, /, *interceptors: InterceptorLike[C]) -> C:
    """Run a context through one interceptor, or several, without a server, and return the context that comes out.

    A ``RequestContext`` behaves as in aiohttp: attaching a response ends the way in, a raised ``HTTPException`` is
    attached as the response. Raises what nobody handled.
    """
    return await execute(context, *interceptors)


def request_context(
    method: str = "GET",
    path: str = "/",
    *,
    headers: Mapping[str, str] | None = None,
    match_info: Mapping[str, str] | None = None,
) -> RequestContext:
    """Make the context of a request that came from nowhere: nothing is committed, and nothing can be sent."""
    writer = mock.Mock(output_size=0)
    request = make_mocked_request(method, path, headers=headers, match_info=dict(match_info or {}), writer=writer)
    return RequestContext(request)


async def collect_events(
    stream_ready: StreamReady,
    context: RequestContext | None = None,
    *,
    limit: int | None = None,
    buffer: int = 10,
    patience: float = PATIENCE,
) -> list[Event]:
    """Call a ``stream_ready`` function without a server, and return the events that it put.

    Ends when the function closes its channel, or after ``limit`` events as if the client had left: a function that
    then waits for something else than its channel is cancelled, as in a server. Raises what the function raises, and
    ``TimeoutError`` after ``patience`` seconds.
    """
    channel = EventChannel(buffer)
    asked = request_context() if context is None else context  # one without values is false
    arrived = asyncio.Event()
    channel.attach(arrived.set)
    events: list[Event] = []

    async def produce() -> None:
        result = stream_ready(channel, asked)
        if inspect.isawaitable(result):
            await result

    producer = asyncio.ensure_future(produce())
    producer.add_done_callback(lambda done: channel.close() if done.cancelled() or done.exception() else None)
    try:
        async with asyncio.timeout(patience):
            while limit is None or len(events) < limit:
                events += channel.take()
                if channel.closed:
                    break
                if limit is None or len(events) < limit:
                    await arrived.wait()
                    arrived.clear()
            channel.end(CloseReason.CLOSED if channel.closed else CloseReason.CLIENT_LEFT)
            unaware = channel.reason is CloseReason.CLIENT_LEFT and not channel.told
            if unaware:
                producer.cancel()
            await asyncio.wait([producer])
    finally:
        producer.cancel()
        await asyncio.wait([producer], timeout=patience)  # it may have to clean up
    if not (unaware and producer.cancelled()):
        producer.result()
    return events[:limit]


class OpenStream:
    """A live event stream, read as a browser reads it; made by ``open_stream``."""

    def __init__(self, response: ClientResponse, patience: float) -> None:
        self.response = response
        """The response: its status and headers are there already."""
        self.raw: bytes = b""
        """Every byte of the body that came so far."""
        self._decoder = Decoder()
        self._patience = patience
        self._frames: deque[Event] = deque()

    @property
    def last_event_id(self) -> str:
        """What a browser would send as ``Last-Event-ID`` if the stream were cut now."""
        return self._decoder.last_event_id

    async def next(self) -> Event:
        """Wait for the next event that a page would see, and return it.

        Raises ``StopAsyncIteration`` at the end of the stream, ``aiohttp.ClientPayloadError`` where it was cut (a
        producer has failed, say), ``TimeoutError`` when the patience is at its end.
        """
        async with asyncio.timeout(self._patience):
            while (frame := await self.next_frame()).data is None:
                pass
        return frame

    @property
    def heartbeats(self) -> int:
        """How many heartbeats came so far: a lone ``:`` each, which is no frame."""
        return self._decoder.heartbeats

    async def next_heartbeat(self) -> None:
        """Wait for one more heartbeat; frames that come before it stay for ``next_frame``. Raises as ``next``."""
        seen = self._decoder.heartbeats
        async with asyncio.timeout(self._patience):
            while self._decoder.heartbeats == seen:
                await self._read()

    async def next_frame(self) -> Event:
        """Wait for the next frame, seen by a page or not. Raises as ``next``."""
        async with asyncio.timeout(self._patience):
            while not self._frames:
                await self._read()
        return self._frames.popleft()

    async def _read(self) -> None:
        chunk = await self.response.content.readany()
        if not chunk:
            raise StopAsyncIteration
        self.raw += chunk
        self._frames.extend(self._decoder.feed(chunk))

    async def rest(self) -> list[Event]:
        """Read to the end of the stream and return the events that a page would see. Raises as ``next``."""
        return [event async for event in self]

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        return await self.next()


EVENT_SOURCE = {"Accept": "text/event-stream", "Cache-Control": "no-cache", "Pragma": "no-cache"}
"""The headers of a browser's ``EventSource``."""


@asynccontextmanager
async def open_stream(
    client: ClientSession | TestClient,  # type: ignore[type-arg]  # of any application
    url: str,
    *,
    last_event_id: str | None = None,
    headers: Mapping[str, str] | None = None,
    method: str = "GET",
    patience: float = PATIENCE,
) -> AsyncIterator[OpenStream]:
    """Open an event stream over a real connection, and close the connection at the end of the block.

    The request has a browser's headers, and ``last_event_id`` is sent as a browser that reconnects sends it. Waits
    longer than ``patience`` seconds raise ``TimeoutError``. A refusal is a response too: look at
    ``stream.response.status``.
    """
    sent = {**EVENT_SOURCE, **(headers or {})}
    if last_event_id is not None:
        sent["Last-Event-ID"] = last_event_id
    async with asyncio.timeout(patience):
        response = await client.request(method, url, headers=sent, timeout=ClientTimeout(total=None))
    try:
        yield OpenStream(response, patience)
    finally:
        response.close()


class TcpProxy:
    """A TCP port of 127.0.0.1 that leads to another, until the network between fails.

    ::

        async with TcpProxy("127.0.0.1", server.port) as proxy:
            client = await connect("127.0.0.1", proxy.port)
            proxy.stall()
    """

    def __init__(self, host: str, port: int) -> None:
        self.delay: float = 0.0
        """Seconds that each piece takes, in both directions."""
        self.rate: float | None = None
        """Bytes that pass in a second, in each direction of each connection; ``None`` for all."""
        self.cut_after: int | None = None
        """Bytes from the server after which a connection is cut; ``None`` for never."""
        self.port: int = 0
        """Where it listens, once it does."""
        self._target = host, port
        self._passing = asyncio.Event()
        self._passing.set()
        self._cut = False
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, ...]] = {}

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    def cut(self) -> None:
        """Reset all connections, and each new one, until ``restore``. Twice is once."""
        self._cut = True
        for writers in self._connections.values():
            for writer in writers:
                _reset(writer)

    def stall(self) -> None:
        """Let nothing pass, and cut nothing, until ``restore``: both sides wait for the other. Twice is once."""
        self._passing.clear()

    def restore(self) -> None:
        """Be a good network again: what waited passes now. Twice is once."""
        self._cut = False
        self._passing.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None  # noqa: S101  # entered before
        self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._connections[task] = (writer,)
        try:
            if not self._cut:
                await self._passing.wait()
                there, back = await asyncio.open_connection(*self._target)
                self._connections[task] = writer, back
                await asyncio.gather(self._pump(reader, back, None), self._pump(there, writer, self.cut_after))
        except OSError:
            pass
        finally:
            for one in self._connections.pop(task):
                _reset(one)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int | None) -> None:
        while piece := await reader.read(4096 if self.rate else 65536):
            await asyncio.sleep(self.delay + (len(piece) / self.rate if self.rate else 0))
            await self._passing.wait()
            writer.write(piece if most is None else piece[:most])
            await writer.drain()
            if most is not None:
                most -= len(piece)
                if most <= 0:
                    raise ConnectionResetError
        if writer.can_write_eof():
            writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection as one that broke."""
    at_once = struct.pack("ii", 1, 0)  # l_onoff and l_linger: nothing is sent any more, but that it is over
    with suppress(OSError):  # it is closed, by the other side
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
    writer.transport.abort()
