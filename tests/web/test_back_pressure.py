from __future__ import annotations

import asyncio
import re
import socket
import ssl
import sys

import pytest
import trustme
from aiohttp import web

from aiohttp_interceptors import (
    CloseReason,
    ConflatingQueue,
    DroppingQueue,
    Event,
    EventChannel,
    EventsDropped,
    RequestContext,
    SlidingQueue,
    StreamClosed,
    as_handler,
    setup,
    start_event_stream,
)
from aiohttp_interceptors.queues import dropped_comment, dropped_event
from aiohttp_interceptors.sse import Decoder
from aiohttp_interceptors.web.app import STREAMS
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import TIMEOUT, until

KEEP = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
EVENT = "x" * (1024 - len("data: \n\n"))  # 1 KiB in the stream
MAX_PUT = 256 * 1024  # bytes that may be put before a put waits
MAX_UNSENT = 64 * 1024  # bytes of them that may be in the write buffer

pytestmark = BOTH_LOOPS


@pytest.fixture(params=["plain", "tls"])
def tls(request) -> bool:
    return request.param == "tls"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def connect(serve, tls, authority):
    """Serve an application, and return the socket of a client that doesn't read."""
    sockets = []

    async def start(app: web.Application) -> socket.socket:
        server = await serve(app)
        address, trust = server.runner.addresses[0], None
        if tls:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            authority.issue_cert("localhost").configure_cert(context)
            await web.TCPSite(server.runner, "127.0.0.1", 0, ssl_context=context).start()
            address, trust = server.runner.addresses[-1], ssl.create_default_context()
            authority.configure_trust(trust)

        def dial() -> socket.socket:
            sock = socket.create_connection(address[:2], timeout=TIMEOUT)
            if trust is not None:
                sock = trust.wrap_socket(sock, server_hostname="localhost")
            sock.sendall(KEEP)
            return sock

        sockets.append(await asyncio.to_thread(dial))
        return sockets[-1]

    yield start
    for sock in sockets:
        sock.close()


async def until_stable(value) -> None:
    """Wait until a value has not changed for a thousand iterations of the event loop."""
    async with asyncio.timeout(TIMEOUT):
        last, same = value(), 0
        while same < 1000:
            await asyncio.sleep(0)
            same = same + 1 if value() == last else 0
            last = value()


class ProducedStream:
    """An application with a stream whose producer puts events of 1 KiB until ``put`` returns ``False``."""

    def __init__(self, feed: bool = True, **options: object) -> None:
        self.put = 0
        self.put_results: list[bool] = []
        self.opened = asyncio.Event()
        self.over = asyncio.Event()
        self.channel: EventChannel | None = None
        self.context: RequestContext | None = None
        self.facts: list[object] = []

        async def ready(channel: EventChannel, context: RequestContext) -> None:
            self.channel, self.context = channel, context
            self.opened.set()
            while feed:
                if not await channel.put(EVENT):
                    self.put_results.append(False)
                    return
                self.put += 1
                if channel.lossy:
                    await asyncio.sleep(0)

        def on_close(context: RequestContext, reason: CloseReason) -> None:
            self.over.set()

        self.app = web.Application()
        setup(self.app, observer=self.facts.append)
        options = {"heartbeat": None, "on_close": on_close, **options}
        self.app.router.add_get("/", as_handler(start_event_stream(ready, **options)))

    @property
    def connection(self):
        return self.context.response.connection

    def statistics(self):
        return self.context.stream.statistics()


class TestWaitingPut:
    @pytest.mark.skipif(sys.platform not in {"linux", "darwin"}, reason="the kernel has no limit for unsent data")
    async def test_it_waits_within_256_kib_if_the_client_does_not_read(self, connect):
        """With default options. The stream holds the events of its channel and 64 KiB of them."""
        stream = ProducedStream()
        await connect(stream.app)
        await asyncio.wait_for(stream.opened.wait(), TIMEOUT)
        await until(lambda: stream.channel._putters)
        await until_stable(lambda: stream.put)
        assert 10 <= stream.put <= MAX_PUT / 1024
        assert stream.channel._putters
        done = stream.statistics()
        assert done.buffered == stream.channel.buffered == 10
        assert done.unsent <= MAX_UNSENT
        assert done.events + done.buffered == stream.put

    async def test_it_continues_when_the_client_reads_and_no_event_is_lost(self, connect):
        stream = ProducedStream()
        sock = await connect(stream.app)
        await asyncio.wait_for(stream.opened.wait(), TIMEOUT)
        await until(lambda: stream.channel._putters and stream.connection.paused)
        put = stream.put

        def read() -> bytes:
            body = b""
            while body.count(b"data: ") < put + 1:
                body += sock.recv(65536)
            return body

        body = await asyncio.wait_for(asyncio.to_thread(read), TIMEOUT)
        assert body.count(b"data: " + EVENT.encode() + b"\n\n") >= put
        assert stream.put > put


class TestLossyQueue:
    """A stalled client does not delay its producer, and dropped events are counted and reported."""

    @pytest.mark.parametrize("queue", [SlidingQueue, DroppingQueue, ConflatingQueue])
    async def test_put_never_waits_and_dropped_events_are_counted_exactly(self, connect, queue):
        stream = ProducedStream(buffer=lambda: queue(20))
        await connect(stream.app)
        await asyncio.wait_for(stream.opened.wait(), TIMEOUT)
        await until(lambda: stream.channel.dropped >= 100 and stream.connection.paused)
        await until_stable(lambda: stream.statistics().events)
        done = stream.statistics()
        assert done.dropped == stream.channel.dropped
        assert done.events + done.buffered + done.dropped == stream.put
        assert done.buffered == 20
        assert done.unsent <= MAX_UNSENT

    async def test_the_observer_receives_dropped_events_in_batches_that_add_up(self, connect):
        stream = ProducedStream(feed=False, buffer=lambda: SlidingQueue(20))
        sock = await connect(stream.app)
        await asyncio.wait_for(stream.opened.wait(), TIMEOUT)
        while stream.channel.dropped < 500:
            assert stream.channel.put_nowait(EVENT)
            await asyncio.sleep(0)
        dropped = stream.channel.dropped
        stream.context.stream.abort()
        await asyncio.wait_for(stream.over.wait(), TIMEOUT)
        await until(lambda: any(isinstance(fact, StreamClosed) for fact in stream.facts))
        facts = [fact for fact in stream.facts if isinstance(fact, EventsDropped)]
        assert sum(fact.count for fact in facts) == facts[-1].total == dropped
        assert [fact.total for fact in facts] == sorted({fact.total for fact in facts})
        assert len(facts) < 20  # not one for each event
        closed = next(fact for fact in stream.facts if isinstance(fact, StreamClosed))
        assert closed.dropped == dropped
        sock.close()

    @pytest.mark.parametrize("notice", [dropped_comment, dropped_event])
    async def test_a_notice_in_the_stream_replaces_dropped_events(self, connect, notice):
        """The notice needs no room in the queue, and tells the client how many events are missing."""
        stream = ProducedStream(feed=False, buffer=lambda: SlidingQueue(20, notice=notice))
        sock = await connect(stream.app)
        await asyncio.wait_for(stream.opened.wait(), TIMEOUT)
        number = 0
        while stream.channel.dropped < 500:
            assert stream.channel.put_nowait(Event(f"{number} {EVENT}"))
            number += 1
            await asyncio.sleep(0)
        stream.channel.close()

        def read() -> bytes:
            body = b""
            while not body.endswith(b"\r\n0\r\n\r\n"):
                body += sock.recv(65536)
            return body

        frames = Decoder().feed(_unchunked(await asyncio.wait_for(asyncio.to_thread(read), TIMEOUT)))
        expected, dropped = 0, 0
        for event in frames:
            match = re.search(r"dropped\D*(\d+)", event.comment or f"{event.name} {event.data}")
            if match:
                count = int(match[1])
                assert event == notice(count)
                dropped += count
                expected += count
            else:
                assert int(event.data.split()[0]) == expected
                expected += 1
        assert (expected, dropped) == (number, stream.channel.dropped)

    async def test_a_kick_does_not_wait_for_a_full_queue(self, connect):
        stream = ProducedStream()
        await connect(stream.app)
        await asyncio.wait_for(stream.opened.wait(), TIMEOUT)
        await until(lambda: stream.channel._putters and stream.connection.paused)
        stream.channel.end(CloseReason.KICKED)
        await asyncio.wait_for(stream.over.wait(), TIMEOUT)
        await until(lambda: len(stream.app[STREAMS]) == 0)
        assert stream.put_results == [False]


def _unchunked(answer: bytes) -> bytes:
    """Decode the body of a chunked response."""
    _, rest = answer.split(b"\r\n\r\n", 1)
    body = b""
    while rest:
        size, rest = rest.split(b"\r\n", 1)
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return body
