"""The bytes that a stream counts, before and after compression, are those that its client has received."""

from __future__ import annotations

import zlib

import pytest
from aiohttp import web

from aiohttp_interceptors import (
    CloseReason,
    Hub,
    Interceptor,
    RequestContext,
    StreamClosed,
    as_handler,
    setup,
    start_event_stream,
    start_topic_stream,
)
from aiohttp_interceptors.sse import HEARTBEAT
from aiohttp_interceptors.web.app import STREAMS
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import until, within

pytestmark = [
    *BOTH_LOOPS,
    pytest.mark.parametrize("version", ["1.0", "1.1"]),
    pytest.mark.parametrize("compress", [False, True]),
    pytest.mark.parametrize("path", ["/topics", "/channel"]),
]
TEXT = "the same words, " * 60


class Site:
    """Streams of both kinds, and what was reported of their ends."""

    def __init__(self, compress, **options):
        self.hub = Hub()
        self.channels = []
        self.contexts: list[RequestContext] = []
        self.closed: list[StreamClosed] = []
        self.app = web.Application()
        setup(self.app, self.hub, observer=self._observe)
        topics = start_topic_stream(self.hub, "t", compress=compress, **options)
        channel = start_event_stream(self._ready, compress=compress, **options)
        keep = Interceptor("keep", self.contexts.append)
        self.app.router.add_get("/topics", as_handler(keep, topics))
        self.app.router.add_get("/channel", as_handler(keep, channel))

    async def send(self, text):
        """Send a text to all streams."""
        await self.hub.publish("t", text)
        for channel in self.channels:
            await channel.put(text)

    def end(self, reason):
        """End all streams."""
        for stream in self.app[STREAMS]:
            stream.end(reason)

    async def _ready(self, channel, context):
        self.channels.append(channel)
        await channel.wait_closed()

    def _observe(self, fact):
        if isinstance(fact, StreamClosed):
            self.closed.append(fact)


class Client:
    """A client that keeps what it has received."""

    def __init__(self, raw):
        self.raw = raw
        self.received = b""

    async def read(self):
        """Read what arrives next, and return whether it is not the end."""
        data = await within(self.raw.reader.read(65536))
        self.received += data
        return bool(data)

    async def until(self, condition):
        """Read until the content of the body is as expected."""
        while not condition(self.content):
            assert await self.read()

    @property
    def body(self):
        return self.received.partition(b"\r\n\r\n")[2]

    @property
    def content(self):
        """What was received of the body, without chunks and compression."""
        head, _, body = self.received.partition(b"\r\n\r\n")
        if b"Transfer-Encoding: chunked" in head:
            chunks, body = body, b""
            while b"\r\n" in chunks:
                size, _, chunks = chunks.partition(b"\r\n")
                body += chunks[: int(size, 16)]
                chunks = chunks[int(size, 16) + 2 :]
        return zlib.decompressobj(31).decompress(body) if b"Content-Encoding: gzip" in head else body


@pytest.fixture
async def connect(serve):
    clients = []

    async def connect(site, path, version):
        server = await serve(site.app)
        lines = f"GET {path} HTTP/{version}\nHost: x\nAccept-Encoding: gzip\nConnection: close\n\n"
        clients.append(client := Client(await server.connect(lines)))
        return client

    yield connect
    for client in clients:
        await client.raw.close()


def is_line_of(line, fact):
    return line["event"] == "stream_closed" and (line["bytes"], line["bytes_sent"]) == (fact.bytes, fact.bytes_sent)


@pytest.mark.parametrize("reason", [CloseReason.KICKED, CloseReason.ERROR])
async def test_an_idle_stream_has_sent_its_heartbeats(connect, logged, path, compress, version, reason):
    """One that fails ends without its last chunk, and without the checksum of what is compressed."""
    site = Site(compress, heartbeat=0.05)
    client = await connect(site, path, version)
    await client.until(lambda content: content.count(HEARTBEAT) >= 3)
    site.end(reason)
    while await client.read():
        pass
    await until(lambda: site.closed)
    (fact,) = site.closed
    assert fact.bytes_sent == len(client.body)
    assert fact.bytes == len(client.content.replace(HEARTBEAT, b""))
    assert [is_line_of(line, fact) for line in logged if line["event"] == "stream_closed"] == [True]


async def test_a_stream_has_sent_its_events(connect, path, compress, version):
    site = Site(compress, heartbeat=None)
    client = await connect(site, path, version)
    await until(lambda: len(site.app[STREAMS]) == 1 and (path == "/topics" or site.channels))
    for number in range(1, 4):
        await site.send(TEXT)
        await client.until(lambda content, number=number: content.count(TEXT.encode()) == number)
    (stream,) = site.app[STREAMS]
    assert stream.statistics().bytes_sent == len(client.body)
    assert stream.statistics().bytes == len(client.content)
    site.end(CloseReason.KICKED)
    while await client.read():
        pass
    await until(lambda: site.closed)
    assert (site.closed[0].bytes, site.closed[0].bytes_sent) == (len(client.content), len(client.body))
    assert (site.closed[0].bytes_sent < site.closed[0].bytes) is compress


async def test_a_stream_has_sent_what_the_application_wrote_into_its_response(connect, path, compress, version):
    site = Site(compress, heartbeat=None)
    client = await connect(site, path, version)
    await until(lambda: len(site.app[STREAMS]) == 1 and (path == "/topics" or site.channels))
    (context,) = site.contexts
    for data in (b": 1\n\n", b"", bytearray(b": 2\n\n"), TEXT.encode()):
        await context.response.write(data)
    await client.until(lambda content: content.endswith(TEXT.encode()))
    assert context.stream.statistics().bytes_sent == len(client.body)
    site.end(CloseReason.KICKED)
    while await client.read():
        pass
    await until(lambda: site.closed)
    assert (site.closed[0].bytes, site.closed[0].bytes_sent) == (0, len(client.body))


async def test_a_stream_whose_client_leaves_has_sent_at_least_what_it_received(connect, path, compress, version):
    site = Site(compress, heartbeat=0.05)
    client = await connect(site, path, version)
    await client.until(lambda content: HEARTBEAT in content)
    await client.raw.close()
    await until(lambda: site.closed)
    assert site.closed[0].bytes_sent >= len(client.body)
