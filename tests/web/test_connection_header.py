"""A stream does not announce the end of its connection, so that proxies and clients keep it."""

from __future__ import annotations

import pytest
from aiohttp import web

from aiohttp_interceptors import EventStreamResponse, setup
from tests.ready.site import KINDS, STREAMS


async def respond(request: web.Request) -> web.StreamResponse:
    response = EventStreamResponse(allow_all_methods=True)
    await response.prepare(request)
    await response.send("one")
    return response


def application(kind: str, **limits) -> web.Application:
    app = web.Application()
    setup(app, **limits)
    app.router.add_route("*", "/", {"response": lambda: respond, **KINDS}[kind]())
    return app


@pytest.mark.parametrize("kind", [*STREAMS, "response"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_a_stream_does_not_close_its_connection_which_serves_the_next_one(serve, kind, method):
    raw = await (await serve(application(kind))).connect(f"{method} / HTTP/1.1\nHost: x\nContent-Length: 0\n\n" * 2)
    for _ in range(2):
        head = await raw.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nConnection:" not in head
        if method != "HEAD":
            await raw.until(b"0\r\n\r\n")
    await raw.close()


@pytest.mark.parametrize("kind", [*STREAMS, "refused"])
async def test_a_refusal_does_not_close_its_connection(serve, kind):
    limits = {} if kind == "refused" else {"max_streams": 0}
    raw = await (await serve(application(kind, **limits))).connect("GET / HTTP/1.1\nHost: x\n\n" * 2)
    for _ in range(2):
        head = await raw.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 403 " if kind == "refused" else b"HTTP/1.1 503 ")
        assert b"\r\nConnection:" not in head
        await raw.reader.readexactly(int(head.partition(b"Content-Length: ")[2].split(b"\r")[0]))
    await raw.close()


async def test_a_client_that_closes_its_connections_is_told_so(serve):
    answer = await (await serve(application("stream"))).exchange("GET / HTTP/1.1\nHost: x\nConnection: close\n\n")
    assert b"\r\nConnection: close\r\n" in answer
