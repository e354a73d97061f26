"""The request body of a stream: the application can still read it, and a malformed one is a client error."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import logging
import random
import warnings

import pytest
import uvloop
from aiohttp import FormData, web

from aiohttp_interceptors import (
    Event,
    EventChannel,
    Hub,
    RequestContext,
    as_handler,
    before,
    event_stream,
    setup,
    start_event_stream,
    start_topic_stream,
)
from aiohttp_interceptors.web.app import STREAMS
from tests.waiting import until, within

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture is deprecated")

LAST = b"0\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE = 3 * 2**20  # bytes; far more than aiohttp buffers before it pauses reading
FILE = random.Random(6).randbytes(LARGE // 2)
FORM = {"a": "1", "b": "x y"}
BOUNDARY = b"--x\r\nContent-Disposition: form-data; name=n\r\n\r\nvalue\r\n--x--\r\n"
MULTIPART = "Content-Type: multipart/form-data; boundary=x\n"


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.14 on
        return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


class Reads:
    """An application with a stream of each kind, which sends the result of ``use(request)`` as an event."""

    def __init__(self, use, *interceptors, stall_timeout=60.0, heartbeat=None, client_max_size=2 * LARGE):
        self.opened = 0
        self.app = web.Application(client_max_size=client_max_size)
        setup(self.app)
        self.hub = Hub()
        options = {"stall_timeout": stall_timeout, "heartbeat": heartbeat}

        async def used(context: RequestContext) -> Event:
            self.opened += 1
            return Event.json(await use(context.request))

        async def ready(channel: EventChannel, context: RequestContext) -> None:
            await channel.put(await used(context))
            channel.close()

        @event_stream(**options)
        async def generated(context: RequestContext):
            yield await used(context)

        async def subscribed(subscriber, context: RequestContext) -> None:
            await self.hub.publish("a", await used(context))

        topics = start_topic_stream(self.hub, "a", stream_ready=subscribed, prime=False, **options)
        add = self.app.router.add_route
        add("*", "/channel", as_handler(*interceptors, start_event_stream(ready, **options)))
        add("*", "/generator", generated)
        add("*", "/topics", as_handler(*interceptors, topics))
        add("GET", "/next", self.next)

    async def next(self, request):
        return web.Response(text="next")


@pytest.fixture(params=["/channel", "/generator", "/topics"])
def path(request):
    return request.param


async def first(response):
    """Return the JSON of the first event."""
    assert response.status == 200
    async with asyncio.timeout(10):
        while not (line := await response.content.readline()).startswith(b"data: "):
            assert line
    return json.loads(line[6:])


async def serves_the_next(raw):
    raw.writer.write(NEXT)
    await is_the_next(raw)


async def is_the_next(raw):
    assert (await raw.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
    assert await raw.until(b"next") == b"next"
    await raw.close()


def errors(logged, caplog):
    """List the warnings and errors in the logs of the library and of aiohttp."""
    ours = [line for line in logged if line["log_level"] in ("error", "warning")]
    return ours + [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def by_post(request):
    form = await request.post()
    return {
        name: value if isinstance(value, str) else [value.filename, len(value.file.read())]
        for name, value in form.items()
    }


async def by_multipart(request):
    reader = await request.multipart()
    return {part.name: len(await part.read()) async for part in reader}


async def by_json(request):
    return await request.json()


async def by_text(request):
    return json.loads(await request.text())


async def by_read(request):
    return json.loads(await request.read())


async def by_content(request):
    return json.loads(await request.content.read())


async def by_lines(request):
    return json.loads(b"".join([line async for line in request.content]))


async def by_chunks(request):
    return json.loads(b"".join([data async for data, _ in request.content.iter_chunks()]))


JSON = [by_json, by_text, by_read, by_content, by_lines, by_chunks]


class TestTheApplicationReads:
    async def test_a_urlencoded_form(self, serve, session, path):
        server = await serve(Reads(by_post).app)
        async with session.post(server.url + path, data=FORM) as response:
            assert await first(response) == FORM

    @pytest.mark.parametrize("how", [by_post, by_multipart])
    async def test_a_multipart_form_with_a_large_file(self, serve, session, path, how):
        server = await serve(Reads(how).app)
        form = FormData(FORM)
        form.add_field("file", io.BytesIO(FILE), filename="f.bin")
        async with session.post(server.url + path, data=form) as response:
            file = ["f.bin", len(FILE)]
            expected = {**FORM, "file": file} if how is by_post else {"a": 1, "b": 3, "file": len(FILE)}
            assert await first(response) == expected

    @pytest.mark.parametrize("how", JSON)
    async def test_json(self, serve, session, path, how):
        server = await serve(Reads(how).app)
        async with session.post(server.url + path, json=FORM) as response:
            assert await first(response) == FORM

    @pytest.mark.parametrize("how", JSON)
    async def test_a_chunked_upload(self, serve, session, path, how):
        async def pieces():
            for byte in json.dumps(FORM).encode():
                yield bytes([byte])
                await asyncio.sleep(0)

        server = await serve(Reads(how).app)
        async with session.post(server.url + path, data=pieces()) as response:
            assert await first(response) == FORM

    @pytest.mark.parametrize("how", JSON)
    async def test_a_compressed_body(self, serve, session, path, how):
        server = await serve(Reads(how).app)
        body, headers = gzip.compress(json.dumps(FORM).encode()), {"Content-Encoding": "gzip"}
        async with session.post(server.url + path, data=body, headers=headers) as response:
            assert await first(response) == FORM

    async def test_a_compressed_multipart_form(self, serve, session, path):
        server = await serve(Reads(by_post).app)
        headers = {"Content-Encoding": "gzip", "Content-Type": "multipart/form-data; boundary=x"}
        async with session.post(server.url + path, data=gzip.compress(BOUNDARY), headers=headers) as response:
            assert await first(response) == {"n": "value"}

    async def test_a_body_sent_after_100_continue(self, serve, path):
        server = await serve(Reads(by_multipart).app)
        length = len(BOUNDARY)
        head = f"POST {path} HTTP/1.1\nHost: x\nContent-Length: {length}\n{MULTIPART}Expect: 100-continue\n\n"
        raw = await server.connect(head)
        assert await raw.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.writer.write(BOUNDARY)
        assert (await raw.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        assert b'data: {"n":5}' in (await raw.until(b"\n\n")).replace(b": 5", b":5")
        await raw.close()

    async def test_a_form_and_then_its_bytes(self, serve, session, path):
        async def both(request):
            return [await by_post(request), (await request.read()).decode()]

        server = await serve(Reads(both).app)
        async with session.post(server.url + path, data=FORM) as response:
            assert await first(response) == [FORM, "a=1&b=x+y"]

    async def test_the_part_that_an_earlier_stage_did_not_read(self, serve, session):
        @before
        async def line(context):
            assert await context.request.content.readline() == b"1\n"

        server = await serve(Reads(by_content, line).app)
        async with session.post(server.url + "/channel", data=b'1\n{"a":2}\n') as response:
            assert await first(response) == {"a": 2}

    async def test_the_body_in_a_function_that_chooses_topics(self, serve, session):
        chosen = []

        async def topics(context):
            chosen.append(await by_multipart(context.request))
            return "a"

        app = web.Application()
        setup(app)
        app.router.add_post("/", as_handler(start_topic_stream(Hub(), topics)))
        server = await serve(app)
        async with session.post(server.url, data=FormData(FORM, default_to_multipart=True)) as response:
            assert response.status == 200
        assert chosen == [{"a": 1, "b": 3}]

    async def test_the_body_after_the_client_disconnected(self, serve, session, logged, caplog):
        left, read = asyncio.Event(), asyncio.Future()

        async def late(request):
            await left.wait()
            read.set_result(await request.json())

        app = web.Application()
        setup(app)

        async def ready(channel, context):
            ready_now.set()
            await late(context.request)

        ready_now = asyncio.Event()
        stream = start_event_stream(ready, on_close=lambda context, why: left.set())
        app.router.add_post("/", as_handler(stream))
        server = await serve(app)
        response = await session.post(server.url, json=FORM)
        await within(ready_now.wait())
        response.close()
        assert await within(read) == FORM
        await until(lambda: not len(app[STREAMS]))
        assert errors(logged, caplog) == []


class TestTheConnectionStaysUsable:
    @pytest.mark.parametrize("read", [True, False])
    async def test_for_a_pipelined_request(self, serve, path, read):
        async def nothing(request):
            return None

        use = by_multipart if read else nothing
        server = await serve(Reads(use).app)
        raw = await server.connect(f"POST {path} HTTP/1.1\nHost: x\nContent-Length: {len(BOUNDARY)}\n{MULTIPART}\n")
        raw.writer.write(BOUNDARY + NEXT)
        await raw.until(b"data: ")
        if path == "/topics":
            await raw.close()  # this stream does not end
            return
        await raw.until(LAST)
        await is_the_next(raw)

    async def test_after_a_large_body_that_the_application_did_not_read(self, serve):
        async def nothing(request):
            return None

        server = await serve(Reads(nothing).app)
        raw = await server.connect(f"POST /channel HTTP/1.1\nHost: x\nContent-Length: {LARGE}\n\n")
        raw.writer.write(bytes(LARGE))
        await raw.until(b"data: null")
        await raw.until(LAST)
        await serves_the_next(raw)

    async def test_to_detect_the_disconnect_of_a_client_with_a_large_body(self, serve):
        closed = asyncio.Event()
        app = web.Application(client_max_size=2 * LARGE)
        setup(app)
        stream = start_event_stream(lambda channel, context: None, on_close=lambda context, why: closed.set())
        app.router.add_post("/", as_handler(stream))
        server = await serve(app)
        raw = await server.connect(f"POST / HTTP/1.1\nHost: x\nContent-Length: {LARGE}\n\n")
        raw.writer.write(bytes(LARGE))
        await raw.until(b"\r\n\r\n")
        await raw.close()
        await within(closed.wait())


class TestClientErrors:
    async def refused(self, serve, path, request, status, *, then=b"", **options):
        """Check the response and that no stream was opened, and return the connection."""
        reads = Reads(by_read, **options)
        server = await serve(reads.app)
        raw = await server.connect(f"POST {path} HTTP/1.1\nHost: x\n{request}")
        raw.writer.write(then)
        assert (await raw.until(b"\r\n\r\n")).startswith(f"HTTP/1.1 {status} ".encode())
        assert reads.opened == reads.app[STREAMS]._limits.in_use == 0
        return raw

    @pytest.mark.parametrize("chunked", [False, True])
    async def test_a_body_that_is_too_large(self, serve, path, logged, caplog, chunked):
        body = f"Transfer-Encoding: chunked\n\n3e9\n{'x' * 1001}\n0\n\n" if chunked else "Content-Length: 1001\n\n"
        then = b"" if chunked else b"x" * 1001
        raw = await self.refused(serve, path, body, 413, then=then, client_max_size=1000)
        assert errors(logged, caplog) == []
        await raw.close()

    async def test_a_body_that_is_too_large_when_decompressed(self, serve, path, logged, caplog):
        bomb = gzip.compress(bytes(10**6))
        head = f"Content-Encoding: gzip\nContent-Length: {len(bomb)}\n\n"
        raw = await self.refused(serve, path, head, 413, then=bomb, client_max_size=100_000)
        assert errors(logged, caplog) == []
        await raw.close()

    async def test_a_body_that_is_not_in_its_content_encoding(self, serve, path, logged, caplog):
        raw = await self.refused(serve, path, "Content-Encoding: gzip\nContent-Length: 5\n\nhello", 400)
        assert (await within(raw.reader.read())).endswith(
            b"The request's body cannot be read.\n"
        )  # and the connection is closed
        assert errors(logged, caplog) == []
        await raw.close()

    async def test_a_body_with_malformed_chunks(self, serve, path, logged, caplog):
        """If the headers came before, aiohttp's parser in C reports no error, and the body times out."""
        reads = Reads(by_read, stall_timeout=0.2)
        arrived = asyncio.Event()

        async def arrive(request, handler):
            arrived.set()
            return await handler(request)

        reads.app.middlewares.append(web.middleware(arrive))
        server = await serve(reads.app)
        raw = await server.connect(f"POST {path} HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\n5\nhello\n")
        await within(arrived.wait())
        raw.writer.write(b"zz\r\n")
        status = (await raw.until(b"\r\n\r\n")).split()[1]
        assert status in (b"400", b"408")
        assert reads.opened == 0
        assert [line for line in logged if line["log_level"] in ("error", "warning")] == []
        assert "Unhandled exception" not in caplog.text
        raw.reset()

    async def test_a_body_that_stops(self, serve, path, logged, caplog):
        raw = await self.refused(serve, path, "Content-Length: 100\n\nhello", 408, stall_timeout=0.1)
        assert errors(logged, caplog) == []
        await raw.close()

    @pytest.mark.parametrize("reset", [False, True])
    async def test_a_disconnect_in_the_body(self, serve, path, logged, caplog, handler_cancellation, reset):
        arrived = asyncio.Event()
        reads = Reads(by_read)

        async def arrive(request, handler):
            arrived.set()
            return await handler(request)

        reads.app.middlewares.append(web.middleware(arrive))
        tasks = asyncio.all_tasks()
        server = await serve(reads.app, handler_cancellation=handler_cancellation)
        raw = await server.connect(f"POST {path} HTTP/1.1\nHost: x\nContent-Length: 100\n\nhello")
        await within(arrived.wait())
        if reset:
            raw.reset()
        else:
            await raw.close()
        await until(lambda: len(asyncio.all_tasks()) <= len(tasks))
        assert reads.opened == reads.app[STREAMS]._limits.in_use == 0
        assert errors(logged, caplog) == []


async def test_a_steady_upload_can_take_longer_than_the_stall_timeout(serve, path):
    body = json.dumps(FORM).encode()
    stall = 3.0
    server = await serve(Reads(by_json, stall_timeout=stall).app)
    raw = await server.connect(f"POST {path} HTTP/1.1\nHost: x\nContent-Length: {len(body)}\n\n")
    loop = asyncio.get_running_loop()
    began = loop.time()
    for byte in body:
        raw.writer.write(bytes([byte]))
        await asyncio.sleep(1.2 * stall / len(body))
    assert loop.time() - began > stall
    assert (await raw.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
    assert b'"x y"' in await raw.until(b"\n\n")
    await raw.close()


async def test_a_body_of_any_size_without_client_max_size(serve, session):
    server = await serve(Reads(by_post, client_max_size=0).app)
    form = FormData()
    form.add_field("file", io.BytesIO(FILE), filename="f.bin")
    async with session.post(server.url + "/channel", data=form) as response:
        assert await first(response) == {"file": ["f.bin", len(FILE)]}


async def test_a_body_without_a_stall_timeout(serve, session):
    server = await serve(Reads(by_post, stall_timeout=None).app)
    async with session.post(server.url + "/channel", data=FORM) as response:
        assert await first(response) == FORM
