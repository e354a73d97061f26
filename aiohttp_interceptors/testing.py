"""A kit for testing interceptors and streams: chains without a server, producers without a client, streams that end.

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
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar
from unittest import mock

from aiohttp import ClientResponse, ClientSession, ClientTimeout
from aiohttp.test_utils import TestClient, make_mocked_request

from .chain.context import Context
from .chain.execute import execute
from .chain.interceptor import InterceptorLike
from .observe.logs import captured_logs
from .sse.channel import CloseReason, EventChannel
from .sse.event import Event
from .sse.wire import Decoder
from .web.context import RequestContext

if TYPE_CHECKING:
    from .web.producer import StreamReady

__all__ = ["OpenStream", "captured_logs", "collect_events", "open_stream", "request_context", "run_chain"]

C = TypeVar("C", bound=Context)

# Seconds that a test waits for what should come at once; long enough for a busy machine, short enough for a person.
PATIENCE = 10.0


async def run_chain(context: C, /, *interceptors: InterceptorLike[C]) -> C:
    """Run a context through one interceptor, or several, without a server, and return the context that comes out.

    A ``RequestContext`` behaves as in aiohttp: attaching a response ends the way in, a raised ``HTTPException`` is
    attached as the response. Raises what nobody handled.
    """
    if isinstance(context, RequestContext):
        context.register()
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

        Raises ``StopAsyncIteration`` at the end of the stream, ``TimeoutError`` when the patience is at its end.
        """
        async with asyncio.timeout(self._patience):
            while (frame := await self.next_frame()).data is None:
                pass
        return frame

    async def next_frame(self) -> Event:
        """Wait for the next frame, seen by a page or not: a heartbeat is ``Event(comment="")``. Raises as ``next``."""
        async with asyncio.timeout(self._patience):
            while not self._frames:
                chunk = await self.response.content.readany()
                if not chunk:
                    raise StopAsyncIteration
                self.raw += chunk
                self._frames.extend(self._decoder.feed(chunk))
        return self._frames.popleft()

    async def rest(self) -> list[Event]:
        """Read to the end of the stream and return the events that a page would see."""
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
    patience: float = PATIENCE,
) -> AsyncIterator[OpenStream]:
    """Open an event stream over a real connection, and close the connection at the end of the block.

    ``last_event_id`` is sent as a reconnecting browser sends it. Waits longer than ``patience`` seconds raise
    ``TimeoutError``. A refusal is a response too: look at ``stream.response.status``.
    """
    sent = {"Accept": "text/event-stream", **(headers or {})}
    if last_event_id is not None:
        sent["Last-Event-ID"] = last_event_id
    async with asyncio.timeout(patience):
        response = await client.request(method, url, headers=sent, timeout=ClientTimeout(total=None))
    try:
        yield OpenStream(response, patience)
    finally:
        response.close()
