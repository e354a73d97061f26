from __future__ import annotations

import asyncio
from types import SimpleNamespace

from aiohttp import web

from aiohttp_interceptors import CloseReason, EventStreamResponse
from tests.waiting import within

GET = "GET / HTTP/1.1\nHost: x\n\n"


class Opened:
    """A handler that opens a stream, hands out its connection, and waits to be let go."""

    def __init__(self) -> None:
        self.connection = asyncio.get_running_loop().create_future()
        self.go = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        response = EventStreamResponse(ping_interval=None)
        await response.prepare(request)
        if not self.connection.done():
            self.connection.set_result(response.connection)
        await self.go.wait()
        return response

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/", self.handle)
        return app


async def test_requests_pipelined_behind_a_stream_are_answered_after_it(serve):
    opened = Opened()
    server = await serve(opened.application())
    raw = await server.connect(GET)
    connection = await opened.connection
    raw.writer.write(GET.replace("\n", "\r\n").encode() * 3)  # through the watcher, while the stream is open
    connection.write_frames(b"data: x\n\n")
    assert (await raw.until(b"data: x\n\n\r\n")).count(b"HTTP/1.1 200 OK") == 1
    opened.go.set()
    for _ in range(3):
        assert b"HTTP/1.1 200 OK" in await raw.until(b"\r\n\r\n0\r\n\r\n")
    await raw.close()


async def test_what_is_written_is_counted_with_its_chunk_size(serve):
    opened = Opened()
    server = await serve(opened.application())
    raw = await server.connect(GET)
    connection = await opened.connection
    before = connection._writer.output_size
    connection.write_frames(b"data: x\n\n")
    connection.release()
    assert connection._writer.output_size - before == len(b"9\r\ndata: x\n\n\r\n")
    assert connection.bytes == 9
    opened.go.set()
    await raw.close()


async def test_aiohttps_protocol_is_put_back_once(serve):
    opened = Opened()
    server = await serve(opened.application())
    raw = await server.connect(GET)
    connection = await opened.connection
    transport = connection._transport
    watcher = transport.get_protocol()
    connection.release()
    assert transport.get_protocol() is watcher.inner
    connection.release()
    connection.write_frames(b"data: nobody\n\n")
    connection.abort()
    assert connection.bytes == 0
    opened.go.set()
    assert (await raw.until(b"\r\n\r\n0\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
    await raw.close()


async def test_somebody_elses_protocol_is_left_where_it_is(serve):
    opened = Opened()
    server = await serve(opened.application())
    raw = await server.connect(GET)
    connection = await opened.connection
    transport = connection._transport
    theirs = transport.get_protocol().inner
    transport.set_protocol(theirs)
    connection.release()
    assert transport.get_protocol() is theirs
    opened.go.set()
    await raw.close()


async def test_a_write_to_a_closing_transport_finds_the_client_gone(serve):
    opened = Opened()
    server = await serve(opened.application())
    raw = await server.connect(GET)
    connection = await opened.connection
    told = []
    connection.owner = SimpleNamespace(connection_changed=lambda: told.append(connection.lost))
    connection._transport.close()
    connection.write_frames(b"data: x\n\n")
    assert connection.paused
    assert connection.bytes == 0
    assert not await within(connection.writable())
    assert connection.loss is CloseReason.CLIENT_LEFT
    assert told == [True]
    opened.go.set()
    await raw.close()


async def test_a_paused_connection_is_not_bothered_with_heartbeats(serve):
    opened = Opened()
    server = await serve(opened.application())
    raw = await server.connect(GET)
    connection = await opened.connection
    await raw.until(b"\r\n\r\n")
    connection.paused = True
    connection.beat()
    connection.paused = False
    connection.beat()
    connection.write_frames(b"data: x\n\n")
    assert await raw.until(b"data: x\n\n\r\n") == b"a\r\n: ping\r\n\r\n\r\n9\r\ndata: x\n\n\r\n"
    opened.go.set()
    await raw.close()


async def test_several_may_wait_for_room(serve):
    opened = Opened()
    server = await serve(opened.application())
    raw = await server.connect(GET)
    connection = await opened.connection
    raw.writer.transport.pause_reading()
    while not connection.paused:
        connection.write_frames(b"x" * 65536)
        await asyncio.sleep(0)
    waiting = [asyncio.create_task(connection.writable()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    raw.reset()
    done, _ = await asyncio.wait(waiting)
    assert [task.cancelled() or task.result() for task in waiting] == [True, False, False]
    assert len(done) == 3
    opened.go.set()
