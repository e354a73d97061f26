from __future__ import annotations

import asyncio
from types import SimpleNamespace

from aiohttp import web

from aiohttp_interceptors import CloseReason, EventStreamResponse
from tests.waiting import within

GET = "GET / HTTP/1.1\nHost: x\n\n"


class OpenStream:
    """A handler that opens a stream, exposes its connection, and returns when ``done`` is set."""

    def __init__(self) -> None:
        self.connection = asyncio.get_running_loop().create_future()
        self.done = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        response = EventStreamResponse(ping_interval=None)
        await response.prepare(request)
        if not self.connection.done():
            self.connection.set_result(response.connection)
        await self.done.wait()
        return response

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/", self.handle)
        return app


async def test_requests_pipelined_behind_a_stream_are_answered_after_it(serve):
    opened = OpenStream()
    server = await serve(opened.application())
    raw = await server.connect(GET)
    connection = await opened.connection
    raw.writer.write(GET.replace("\n", "\r\n").encode() * 3)  # received by the interposed protocol
    connection.write_frames(b"data: x\n\n")
    assert (await raw.until(b"data: x\n\n\r\n")).count(b"HTTP/1.1 200 OK") == 1
    opened.done.set()
    for _ in range(3):
        assert b"HTTP/1.1 200 OK" in await raw.until(b"\r\n\r\n0\r\n\r\n")
    await raw.close()


async def test_the_output_size_includes_the_chunk_framing(serve):
    opened = OpenStream()
    server = await serve(opened.application())
    raw = await server.connect(GET)
    connection = await opened.connection
    before = connection._writer.output_size
    connection.write_frames(b"data: x\n\n")
    connection.detach()
    assert connection._writer.output_size - before == len(b"9\r\ndata: x\n\n\r\n")
    assert connection.frame_bytes == 9
    opened.done.set()
    await raw.close()


async def test_detaching_restores_the_protocol_and_is_idempotent(serve):
    opened = OpenStream()
    server = await serve(opened.application())
    raw = await server.connect(GET)
    connection = await opened.connection
    transport = connection._transport
    interposed = transport.get_protocol()
    connection.detach()
    assert transport.get_protocol() is interposed.wrapped
    connection.detach()
    connection.write_frames(b"data: discarded\n\n")
    connection.abort()
    assert connection.frame_bytes == 0
    opened.done.set()
    assert (await raw.until(b"\r\n\r\n0\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
    await raw.close()


async def test_detaching_does_not_replace_the_protocol_of_another_library(serve):
    opened = OpenStream()
    server = await serve(opened.application())
    raw = await server.connect(GET)
    connection = await opened.connection
    transport = connection._transport
    other = transport.get_protocol().wrapped
    transport.set_protocol(other)
    connection.detach()
    assert transport.get_protocol() is other
    opened.done.set()
    await raw.close()


async def test_a_write_to_a_closing_transport_marks_the_client_as_disconnected(serve):
    opened = OpenStream()
    server = await serve(opened.application())
    raw = await server.connect(GET)
    connection = await opened.connection
    notified = []
    connection.listener = SimpleNamespace(connection_changed=lambda: notified.append(connection.disconnected))
    connection._transport.close()
    connection.write_frames(b"data: x\n\n")
    assert connection.paused
    assert connection.frame_bytes == 0
    assert not await within(connection.wait_writable())
    assert connection.close_reason is CloseReason.CLIENT_LEFT
    assert notified == [True]
    opened.done.set()
    await raw.close()


async def test_a_paused_connection_sends_no_heartbeat(serve):
    opened = OpenStream()
    server = await serve(opened.application())
    raw = await server.connect(GET)
    connection = await opened.connection
    await raw.until(b"\r\n\r\n")
    connection.paused = True
    connection.send_heartbeat()
    connection.paused = False
    connection.send_heartbeat()
    connection.write_frames(b"data: x\n\n")
    assert await raw.until(b"data: x\n\n\r\n") == b"a\r\n: ping\r\n\r\n\r\n9\r\ndata: x\n\n\r\n"
    opened.done.set()
    await raw.close()


async def test_several_tasks_may_wait_until_the_connection_is_writable(serve):
    opened = OpenStream()
    server = await serve(opened.application())
    raw = await server.connect(GET)
    connection = await opened.connection
    raw.writer.transport.pause_reading()
    while not connection.paused:
        connection.write_frames(b"x" * 65536)
        await asyncio.sleep(0)
    waiting = [asyncio.create_task(connection.wait_writable()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    raw.reset()
    done, _ = await asyncio.wait(waiting)
    assert [task.cancelled() or task.result() for task in waiting] == [True, False, False]
    assert len(done) == 3
    opened.done.set()
