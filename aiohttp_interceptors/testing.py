"""Test utilities: chains without a server, producers without a client, open streams, and network faults.

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
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Self, TypeVar, cast
from unittest import mock

from aiohttp import ClientResponse, ClientSession, ClientTimeout
from aiohttp.test_utils import TestClient, make_mocked_request

from ._logging import captured_logs
from .chain import Context, execute
from .channel import CloseReason, EventChannel
from .interceptor import InterceptorLike
from .sse import Decoder, Event
from .web.context import RequestContext
from .web.producer import StreamReady

__all__ = ["OpenStream", "TcpProxy", "captured_logs", "collect_events", "open_stream", "request_context", "run_chain"]


C = TypeVar("C", bound=Context)

# Seconds to wait for what should arrive at once: enough for a busy machine, and a failing test still ends soon.
DEFAULT_TIMEOUT = 10.0

EVENT_SOURCE = {"Accept": "text/event-stream", "Cache-Control": "no-cache", "Pragma": "no-cache"}
"""The request headers of a browser's ``EventSource``."""


async def run_chain(context: C, /, *interceptors: InterceptorLike[C]) -> C:
    """Run a context through interceptors, without a server.

    A ``RequestContext`` behaves as in aiohttp: no further interceptor is entered once a response is attached, and a
    raised ``HTTPException`` is attached as the response. An unhandled exception is raised.

    Args:
        context: The context, as from ``request_context``.
        *interceptors: The interceptors, outermost first.

    Returns:
        The context of the last stage: the one given, unless a stage returned another one.
    """
    return await execute(context, *interceptors)


def request_context(
    method: str = "GET",
    path: str = "/",
    *,
    headers: Mapping[str, str] | None = None,
    match_info: Mapping[str, str] | None = None,
) -> RequestContext:
    """Make the context of a mocked request. Its response is not committed, and nothing can be sent.

    Args:
        method: The HTTP method.
        path: The path, with a query if there is one.
        headers: The request headers.
        match_info: The variable parts of the route, as ``request.match_info`` has them.

    Returns:
        The context, which is in no chain yet.
    """
    writer = mock.Mock(output_size=0)
    request = make_mocked_request(method, path, headers=headers, match_info=dict(match_info or {}), writer=writer)
    return RequestContext(request)


async def collect_events(
    stream_ready: StreamReady,
    context: RequestContext | None = None,
    *,
    limit: int | None = None,
    buffer: int = 10,
    timeout: float = DEFAULT_TIMEOUT,  # noqa: ASYNC109  # it includes cleaning up
) -> list[Event]:
    """Call a ``stream_ready`` function without a server, and collect the events that it puts.

    The stream ends when the function closes its channel, or after ``limit`` events as if the client had disconnected.
    A function that then waits for anything but its channel is cancelled, as in a server. An exception of the function
    is raised. If this is cancelled, the function is cancelled too.

    Args:
        stream_ready: The function, plain or ``async``, of a channel and a context.
        context: The context; ``request_context()`` if ``None``.
        limit: Number of events after which the client disconnects; ``None`` for no limit.
        buffer: Number of events that the channel holds.
        timeout: Seconds that the function may take. Then it is cancelled, and has as many seconds to clean up.

    Returns:
        The events, at most ``limit``.

    Raises:
        TimeoutError: The function has not closed its channel and returned in time.
    """
    channel = EventChannel(buffer)
    current = request_context() if context is None else context  # a context without values is false
    ready = asyncio.Event()
    channel._attach(ready.set)
    decoder = Decoder()
    events: list[Event] = []

    async def produce() -> None:
        result = stream_ready(channel, current)
        if inspect.isawaitable(result):
            await result

    producer = asyncio.ensure_future(produce())
    producer.add_done_callback(lambda done: channel.close() if done.cancelled() or done.exception() else None)
    try:
        async with asyncio.timeout(timeout):
            while limit is None or len(events) < limit:
                frames = channel._get_frames(sys.maxsize)
                channel._frames_written(len(frames))
                events += decoder.feed(b"".join(frames))
                if channel.closed:
                    break
                if limit is None or len(events) < limit:
                    await ready.wait()
                    ready.clear()
            channel.end(CloseReason.CLOSED if channel.closed else CloseReason.CLIENT_LEFT)
            unnoticed = channel.reason is CloseReason.CLIENT_LEFT and not channel._end_observed
            if unnoticed:
                producer.cancel()
            await asyncio.wait([producer])
    finally:
        producer.cancel()
        await asyncio.wait([producer], timeout=timeout)  # it may clean up
    if not (unnoticed and producer.cancelled()):
        producer.result()
    return events[:limit]


class OpenStream:
    """An open event stream, parsed as a browser parses it. ``open_stream`` makes it.

    Iterating it yields the events until the end of the stream. Cancelling ``next`` is safe: no event is lost.

    Args:
        response: The response, whose body is not read yet.
        timeout: Seconds that each method waits for the server.

    Attributes:
        response: The response, with its status and headers.
        raw: The bytes of the body received so far.
    """

    def __init__(self, response: ClientResponse, timeout: float) -> None:
        self.response = response
        self.raw: bytes = b""
        self._decoder = Decoder()
        self._timeout = timeout
        self._frames: deque[Event] = deque()

    @property
    def last_event_id(self) -> str:
        """The ``Last-Event-ID`` that a browser would send if it reconnected now."""
        return self._decoder.last_event_id

    async def next(self) -> Event:
        """Wait for the next event that a browser would dispatch to a page.

        Returns:
            The event, which has data.

        Raises:
            StopAsyncIteration: At the end of the stream.
            aiohttp.ClientPayloadError: The body is incomplete, because a producer failed for example.
            TimeoutError: No event arrived in time.
        """
        async with asyncio.timeout(self._timeout):
            while (frame := await self.next_frame()).data is None:
                pass
        return frame

    @property
    def heartbeats(self) -> int:
        """Number of heartbeats received so far. A heartbeat is an empty comment, and not a frame."""
        return self._decoder.heartbeats

    async def next_heartbeat(self) -> None:
        """Wait for one more heartbeat. Frames before it are kept for ``next_frame``. Raises like ``next``."""
        seen = self._decoder.heartbeats
        async with asyncio.timeout(self._timeout):
            while self._decoder.heartbeats == seen:
                await self._read()

    async def next_frame(self) -> Event:
        """Wait for the next frame, also one without data, and return it. Raises like ``next``."""
        async with asyncio.timeout(self._timeout):
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
        """Read to the end of the stream, and return the events. Raises like ``next``, except at the end."""
        return [event async for event in self]

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        return await self.next()


@asynccontextmanager
async def open_stream(
    client: ClientSession | TestClient,  # type: ignore[type-arg]  # of any application
    url: str,
    *,
    last_event_id: str | None = None,
    headers: Mapping[str, str] | None = None,
    method: str = "GET",
    timeout: float = DEFAULT_TIMEOUT,  # noqa: ASYNC109  # for each wait, not for the block
) -> AsyncIterator[OpenStream]:
    """Open an event stream with a client, and close its connection at the end of the ``async with`` block.

    The request has the headers of a browser's ``EventSource``. A response that refuses the stream is not an error: test
    ``stream.response.status``.

    Args:
        client: The client: a ``TestClient``, or a ``ClientSession``.
        url: The URL, or for a ``TestClient`` the path.
        last_event_id: The ``Last-Event-ID`` of a client that reconnects; ``None`` for a first connection.
        headers: More headers, which replace those of the same name.
        method: The HTTP method.
        timeout: Seconds that each wait may take: for the response headers, and for each event.

    Yields:
        The stream.

    Raises:
        TimeoutError: A wait takes longer.
    """
    request_headers = {**EVENT_SOURCE, **(headers or {})}
    if last_event_id is not None:
        request_headers["Last-Event-ID"] = last_event_id
    async with asyncio.timeout(timeout):
        response = await client.request(method, url, headers=request_headers, timeout=ClientTimeout(total=None))
    try:
        yield OpenStream(response, timeout)
    finally:
        response.close()


class TcpProxy:
    """A TCP proxy on 127.0.0.1 that simulates a slow, stalled or broken network.

    ::

        async with TcpProxy("127.0.0.1", server.port) as proxy:
            client = await connect("127.0.0.1", proxy.port)
            proxy.stall()

    Args:
        host: The host of the server.
        port: The port of the server.

    Attributes:
        delay: Seconds that each chunk is delayed, in both directions.
        rate: Bytes per second, in each direction of each connection; ``None`` for no limit.
        cut_after: Bytes from the server after which a new connection is reset; ``None`` for never.
        port: The port of the proxy, inside the ``async with`` block.
    """

    def __init__(self, host: str, port: int) -> None:
        self.delay: float = 0.0
        self.rate: float | None = None
        self.cut_after: int | None = None
        self.port: int = 0
        self._target = host, port
        self._passing = asyncio.Event()
        self._passing.set()
        self._cut = False
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, ...]] = {}

    @property
    def connections(self) -> int:
        """Number of open connections."""
        return len(self._connections)

    def cut(self) -> None:
        """Reset all connections, and each new one, until ``restore``. Idempotent."""
        self._cut = True
        for writers in self._connections.values():
            for writer in writers:
                _reset(writer)

    def stall(self) -> None:
        """Hold all data, without closing connections, until ``restore``. Idempotent."""
        self._passing.clear()

    def restore(self) -> None:
        """Undo ``cut`` and ``stall``: data that was held is sent. Idempotent."""
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
                server_reader, server_writer = await asyncio.open_connection(*self._target)
                self._connections[task] = writer, server_writer
                await asyncio.gather(
                    self._forward(reader, server_writer, None), self._forward(server_reader, writer, self.cut_after)
                )
        except OSError:
            pass
        finally:
            for closing in self._connections.pop(task):
                _reset(closing)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int | None) -> None:
        """Forward one direction to its end. Raise ``ConnectionResetError`` after ``limit`` bytes."""
        while chunk := await reader.read(4096 if self.rate else 65536):
            await asyncio.sleep(self.delay + (len(chunk) / self.rate if self.rate else 0))
            await self._passing.wait()
            writer.write(chunk if limit is None else chunk[:limit])
            await writer.drain()
            if limit is not None:
                limit -= len(chunk)
                if limit <= 0:
                    raise ConnectionResetError
        if writer.can_write_eof():
            writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with a TCP reset."""
    no_linger = struct.pack("ii", 1, 0)  # l_onoff and l_linger
    with suppress(OSError):  # the other side has closed it
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
    writer.transport.abort()
