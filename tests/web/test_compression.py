"""Compressed streams on the wire: who gets one, what it contains, and how it ends."""

from __future__ import annotations

import asyncio
import random
import ssl
import zlib
from pathlib import Path

import pytest
import trustme
from aiohttp import ClientSession, TCPConnector, web

from aiohttp_interceptors import (
    CloseReason,
    Compression,
    Decoder,
    Drain,
    Event,
    Hub,
    Snapshot,
    as_handler,
    before,
    setup,
    start_event_stream,
    start_topic_stream,
)
from aiohttp_interceptors.compression import MIN_SHARED, _compressors, compress_replay
from aiohttp_interceptors.testing import open_stream
from aiohttp_interceptors.web.app import STREAMS
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import run_other_tasks, until, within

pytestmark = BOTH_LOOPS
GZIP = {"Accept-Encoding": "gzip"}
TEXT = "the same words, " * 60


async def put_two(channel, context):
    await channel.put(TEXT)
    await channel.put(TEXT)
    channel.close()


@pytest.fixture
def hub():
    return Hub()


@pytest.fixture
def site(serve, hub):
    """Serve ``/topics`` and ``/channel``, both compressed."""

    async def start(*interceptors, on_response_prepare=None, **options):
        app = web.Application()
        setup(app, hub)
        compress = options.pop("compress", True)
        topics = start_topic_stream(hub, "t", compress=compress, **options)
        app.router.add_get("/topics", as_handler(*interceptors, topics))
        app.router.add_get("/channel", as_handler(*interceptors, start_event_stream(put_two, compress=compress)))
        if on_response_prepare is not None:
            app.on_response_prepare.append(on_response_prepare)
        return await serve(app)

    return start


@before
def forbid(context):
    context.response_headers["Cache-Control"] = "no-cache, no-transform"


class Client:
    """A client that reads what arrives, and decompresses it."""

    def __init__(self, raw):
        self.raw = raw
        self.received = b""
        self.content = b""
        self.decompressor = zlib.decompressobj(31)
        self.events: list[Event] = []
        self._decoder = Decoder()

    async def close(self):
        await self.raw.close()

    async def read(self, number=None):
        """Read until there are ``number`` events, or to the end."""
        while number is None or len(self.events) < number:
            data = await within(self.raw.reader.read(65536))
            if not data:
                break
            self.received += data
            content = self.decompressor.decompress(data)
            self.content += content
            self.events += [event for event in self._decoder.feed(content) if event.data is not None]
        return [event.data for event in self.events]


@pytest.fixture
async def connect():
    """Open streams with HTTP/1.0, which has no chunks, and close them after the test."""
    clients = []

    async def connect(server, path, **headers):
        lines = "".join(f"{name}: {value}\n" for name, value in {**GZIP, **headers}.items())
        raw = await server.connect(f"GET {path} HTTP/1.0\nHost: x\n{lines}\n")
        clients.append(client := Client(raw))
        assert b"Content-Encoding: gzip" in await raw.until(b"\r\n\r\n")
        return client

    yield connect
    for client in clients:
        await client.close()


# Who gets a compressed stream.


@pytest.mark.parametrize("path", ["/topics", "/channel"])
class TestNegotiation:
    async def test_a_client_that_accepts_gzip_gets_it(self, site, session, path):
        server = await site()
        async with session.get(server.url + path, headers=GZIP) as response:
            assert response.headers["Content-Encoding"] == "gzip"
            assert response.headers.getall("Vary") == ["Accept-Encoding"]

    @pytest.mark.parametrize("accept", ["identity", "gzip;q=0", "br"])
    async def test_others_do_not_and_caches_know(self, site, session, path, accept):
        server = await site()
        async with session.get(server.url + path, headers={"Accept-Encoding": accept}) as response:
            assert "Content-Encoding" not in response.headers
            assert response.headers["Vary"] == "Accept-Encoding"

    async def test_head_tells_what_get_would(self, site, session, path):
        server = await site()
        async with session.head(server.url + path, headers=GZIP) as response:
            assert response.headers["Content-Encoding"] == "gzip"
            assert await response.read() == b""

    async def test_a_staged_no_transform_forbids_it(self, site, session, path):
        server = await site(forbid)
        async with session.get(server.url + path, headers=GZIP) as response:
            assert "Content-Encoding" not in response.headers

    async def test_a_no_transform_of_a_signal_forbids_it(self, site, session, path):
        async def forbid(request, response):
            response.headers["Cache-Control"] = "private, No-Transform"

        server = await site(on_response_prepare=forbid)
        async with open_stream(session, server.url + path, headers=GZIP) as stream:
            assert "Content-Encoding" not in stream.response.headers

    async def test_a_vary_of_a_signal_does_not_hide_it_from_caches(self, site, session, path):
        async def vary(request, response):
            response.headers["Vary"] = "Cookie"

        server = await site(on_response_prepare=vary)
        async with session.get(server.url + path, headers=GZIP) as response:
            assert response.headers.getall("Vary") == ["Cookie", "Accept-Encoding"]

    async def test_an_accept_encoding_of_several_lines_is_read_as_one(self, site, path):
        server = await site()
        raw = await server.connect(f"GET {path} HTTP/1.0\nHost: x\nAccept-Encoding: br\nAccept-Encoding: gzip\n\n")
        assert b"Content-Encoding: gzip" in await raw.until(b"\r\n\r\n")
        await raw.close()

    @pytest.mark.parametrize("error", [web.HTTPForbidden, RuntimeError])
    async def test_an_error_before_the_headers_is_answered_without_compression(self, site, session, path, error):
        async def refuse(request, response):
            if response.content_type == "text/event-stream":
                raise error

        server = await site(on_response_prepare=refuse)
        async with session.get(server.url + path, headers=GZIP) as response:
            assert response.status in {403, 500}
            assert not {"Content-Encoding", "Transfer-Encoding"} & response.headers.keys()
            assert response.content_length == len(await response.read())

    async def test_without_the_option_nothing_is_compressed(self, site, session, path):
        server = await site(compress=False)
        async with session.get(server.url + path, headers=GZIP) as response:
            assert not {"Content-Encoding", "Vary"} & response.headers.keys()


def select_all(context, record):
    return True


def test_select_is_refused_unless_told(hub):
    with pytest.raises(ValueError, match="with_select=True"):
        start_topic_stream(hub, "t", select=select_all, compress=True)
    start_topic_stream(hub, "t", select=select_all, compress=Compression(with_select=True))


@pytest.mark.parametrize("make", [lambda compress: start_event_stream(put_two, compress=compress), None])
def test_the_option_is_checked_when_an_interceptor_is_made(hub, make):
    make = make or (lambda compress: start_topic_stream(hub, "t", compress=compress))
    with pytest.raises(TypeError, match="compress is a bool or a Compression, not 'gzip'"):
        make("gzip")


# What it contains, and how it ends.


@pytest.mark.parametrize("options", [{}, {"compress": Compression(level=9, window=512)}])
async def test_a_channel_has_its_own_compressor_and_a_trailer_at_its_end(site, options, connect):
    server = await site(**options)
    client = await connect(server, "/channel")
    assert await client.read() == [TEXT, TEXT]
    assert client.decompressor.eof  # with the right checksum and size, or zlib would raise
    assert len(client.received) < len(client.content) / 5


async def test_streams_that_join_leave_and_stay_get_the_same_events(site, hub, connect):
    server = await site(replay=3)
    expected = {}
    clients = []
    for number in range(45):
        client = await connect(server, "/topics")
        clients.append(client)
        await hub.publish("t", f"{number} {TEXT}")
        expected[client] = number
        await client.read(min(number, 3) + 1)
        if number % 5 == 4:
            await clients[number - 2].close()
    stayed = [client for index, client in enumerate(clients) if index % 5 != 2]
    await until(lambda: hub.statistics().subscribers == len(stayed))
    await hub.publish("t", "last")
    await server.stop()
    last = len(clients) - 1
    for client in stayed:
        texts = await client.read()
        numbers = [int(text.split()[0]) for text in texts[:-1]]
        assert numbers == list(range(max(0, expected[client] - 3), last + 1))
        assert texts[-1] == "last"
        assert client.decompressor.eof


async def test_an_idle_stream_gets_heartbeats_which_its_page_sees(site, hub, connect):
    server = await site(heartbeat=0.05)
    clients = [await connect(server, "/topics") for _ in range(MIN_SHARED)]
    for number in range(3):
        for client in clients:
            before = client.content.count(b":\n")
            while client.content.count(b":\n") == before:
                data = await within(client.raw.reader.read(65536))
                client.content += client.decompressor.decompress(data)
        await hub.publish("t", f"{number} {TEXT}")
    await server.stop()
    for client in clients:
        await client.read()
        assert client.content.count(TEXT.encode()) == 3
        assert client.decompressor.eof


async def test_a_snapshot_comes_before_the_records(site, hub, connect):
    server = await site(snapshot=lambda context: Snapshot([f"state {TEXT}"]))
    client = await connect(server, "/topics")
    await client.read(1)
    await hub.publish("t", f"change {TEXT}")
    texts = await client.read(2)
    assert [text.split()[0] for text in texts] == ["state", "change"]


async def test_a_client_that_resumes_gets_what_it_missed(site, hub, connect):
    server = await site()
    first = await hub.publish("t", "0")
    await hub.publish("t", "1")
    client = await connect(server, "/topics", **{"Last-Event-ID": first})
    assert await client.read(1) == ["1"]


async def test_an_erased_record_is_not_kept_as_a_replay_either(site, hub, connect):
    server = await site(replay=1)
    await hub.publish("t", "personal data")
    assert await (await connect(server, "/topics")).read(1) == ["personal data"]
    assert compress_replay.cache_info().currsize > 0
    await hub.erase("t")
    assert compress_replay.cache_info().currsize == 0


@pytest.mark.parametrize("count", [1, MIN_SHARED])
async def test_no_compressor_remembers_an_erased_record(site, hub, connect, count):
    server = await site()
    clients = [await connect(server, "/topics") for _ in range(count)]
    words = random.Random(1).randbytes(1000).hex()
    sizes = []
    for number in (1, 2):
        before = len(clients[0].received)
        await hub.publish("t", words)
        for client in clients:
            await client.read(number)
        sizes.append(len(clients[0].received) - before)
        await hub.erase("t")
    assert min(sizes) > 1000  # the second one does not refer to the first
    assert not _compressors.by_settings


@pytest.mark.parametrize("count", [1, MIN_SHARED])
@pytest.mark.parametrize("busy", [False, True])
async def test_no_compressor_or_replay_outlives_the_age_of_the_history(serve, connect, count, busy):
    """Also while there always is something in the history: records of another topic."""
    hub = Hub(history_age=0.05)
    app = web.Application()
    setup(app, hub)
    app.router.add_get("/", as_handler(start_topic_stream(hub, "t", compress=True, heartbeat=None)))
    server = await serve(app)
    clients = [await connect(server, "/") for _ in range(count)]
    words = random.Random(1).randbytes(1000).hex()
    sizes = []
    for number in (1, 2, 3):
        before = len(clients[0].received)
        compress_replay(Compression(), b"forgotten when records expire")
        await hub.publish("t", words)
        for client in clients:
            await client.read(number)
        sizes.append(len(clients[0].received) - before)
        if busy:
            await hub.publish("other", "x")
            while hub.statistics().topics == 2:
                await hub.publish("other", "x")
                await run_other_tasks()
            await hub.publish("other", "x")
            compress_replay(Compression(), b"forgotten when the record above expires")
        await until(lambda: compress_replay.cache_info().currsize == 0)
        assert not _compressors.by_settings
    assert min(sizes) > 1000  # none refers to an expired one


async def test_a_client_that_pauses_gets_everything(site, hub, connect):
    server = await site()
    others = [await connect(server, "/topics") for _ in range(MIN_SHARED)]
    slow = await connect(server, "/topics")
    texts = [f"{number} {bytes(range(33, 127)).decode() * 50}" for number in range(400)]
    for text in texts:
        await hub.publish("t", text)
        for client in others:
            await client.read(len(client.events) + 1)
    assert await slow.read(400) == texts


async def test_the_final_event_of_a_stopping_server_is_in_it(serve, hub, connect):
    app = web.Application()
    setup(app, hub, drain=Drain(farewell=Event("bye")))
    app.router.add_get("/", as_handler(start_topic_stream(hub, "t", compress=True)))
    server = await serve(app)
    clients = [await connect(server, "/") for _ in range(MIN_SHARED + 1)]
    await until(lambda: hub.statistics().subscribers == len(clients))
    await hub.publish("t", TEXT)
    await server.stop()
    for client in clients:
        assert await client.read() == [TEXT, "bye"]
        assert client.decompressor.eof


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
async def test_what_an_application_writes_itself_is_compressed_like_an_event(serve, connect, hub, make):
    async def put(channel, context):
        await channel.put("1")
        await context.response.send("2")  # written before what waits in the channel
        await context.response.write(make(b"data: 3\n\n"))
        await channel.put("4")
        channel.close()

    async def publish(subscriber, context):
        await hub.publish("t", "1")
        await context.response.send("2")
        await context.response.write(make(b"data: 3\n\n"))
        await hub.publish("t", "4")
        subscriber.close()

    app = web.Application()
    setup(app, hub)
    app.router.add_get("/channel", as_handler(start_event_stream(put, compress=True)))
    app.router.add_get("/topics", as_handler(start_topic_stream(hub, "t", stream_ready=publish, compress=True)))
    server = await serve(app)
    for path in ("/channel", "/topics"):
        client = await connect(server, path)
        assert sorted(await client.read()) == ["1", "2", "3", "4"]
        assert client.decompressor.eof


async def test_the_last_bytes_that_an_application_writes_are_before_the_trailer(serve, connect):
    async def end(channel, context):
        await channel.put("1")
        await until(lambda: not channel.buffered)
        context.stream.end(CloseReason.EXPIRED)
        await context.response.write_eof(b"data: 2\n\n")

    app = web.Application()
    setup(app)
    app.router.add_get("/", as_handler(start_event_stream(end, compress=True)))
    client = await connect(await serve(app), "/")
    assert await client.read() == ["1", "2"]
    assert client.decompressor.eof


async def test_a_stream_that_fails_has_no_trailer(serve, raised, connect):
    async def fail(channel, context):
        await channel.put(TEXT)
        raise RuntimeError("broken")

    app = web.Application()
    setup(app)
    app.router.add_get("/", as_handler(start_event_stream(fail, compress=True)))
    server = await serve(app)
    client = await connect(server, "/")
    assert await client.read() == [TEXT]
    assert not client.decompressor.eof
    assert [str(error) for error in raised()] == ["broken"]


async def test_the_chunks_of_http_1_1_are_complete(site, session, hub):
    server = await site()
    async with open_stream(session, f"{server.url}/topics", headers=GZIP) as stream:
        await hub.publish("t", TEXT)
        assert (await stream.next()).data == TEXT
    async with session.get(f"{server.url}/channel", headers=GZIP) as response:
        assert (await response.text()).count(TEXT) == 2
        assert response.connection is None  # returned to the pool, since the body has ended


async def test_the_statistics_count_frames_before_they_are_compressed(serve, hub, connect):
    app = web.Application()
    setup(app, hub)
    app.router.add_get("/", as_handler(start_topic_stream(hub, "t", compress=True, prime=False)))
    server = await serve(app)
    clients = [await connect(server, "/") for _ in range(MIN_SHARED)]
    await hub.publish("t", TEXT)
    for client in clients:
        await client.read(1)
    for stream in app[STREAMS]:
        assert stream.statistics().bytes == len(clients[0].content)
        assert stream.connection.bytes_sent == len(clients[0].received)


async def test_with_tls(site, hub, tmp_path: Path):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    server = await site()
    tls = web.TCPSite(server.runner, "127.0.0.1", 0, ssl_context=context)
    await tls.start()
    port = server.runner.addresses[-1][1]
    async with ClientSession(connector=TCPConnector(ssl=trust, limit=0)) as session, asyncio.TaskGroup() as group:

        async def read(ready):
            async with open_stream(session, f"https://localhost:{port}/topics", headers=GZIP) as stream:
                ready.set_result(None)
                for number in range(5):
                    assert (await stream.next()).data == f"{number} {TEXT}"

        loop = asyncio.get_running_loop()
        readies = [loop.create_future() for _ in range(MIN_SHARED)]
        for ready in readies:
            group.create_task(read(ready))
        await within(asyncio.gather(*readies))
        for number in range(5):
            await hub.publish("t", f"{number} {TEXT}")
            await asyncio.sleep(0)
