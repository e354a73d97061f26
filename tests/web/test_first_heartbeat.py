"""A proxy may hold a head back until the first byte of the body: a silent stream sends a heartbeat soon after it."""

from __future__ import annotations

import asyncio
import time

import pytest
from aiohttp import web
from aiohttp_sse import sse_response

from aiohttp_interceptors import (
    Event,
    EventStreamResponse,
    Hub,
    as_handler,
    setup,
    start_event_stream,
    start_topic_stream,
)
from tests.waiting import within

GET = "GET / HTTP/1.1\nHost: x\n\n"
HEAD = b"\r\n\r\n"
BEAT = b"2\r\n:\n\r\n"  # one chunk


def silent(**options):
    async def ready(channel, context):
        await channel.wait_closed()

    return as_handler(start_event_stream(ready, **options))


async def opened(serve, handler):
    app = web.Application()
    app.router.add_route("*", "/", handler)
    return await serve(app)


async def test_a_silent_stream_sends_a_heartbeat_soon_after_its_head(serve):
    raw = await (await opened(serve, silent(heartbeat=1000))).connect(GET)
    await raw.until(HEAD)
    began = time.monotonic()
    assert await within(raw.reader.readexactly(len(BEAT))) == BEAT
    assert time.monotonic() - began < 30  # and not after a thousand seconds
    await raw.close()


async def test_it_is_one_and_the_next_one_comes_after_the_interval(serve):
    raw = await (await opened(serve, silent(heartbeat=3.0))).connect(GET)
    await raw.until(HEAD)
    await within(raw.reader.readexactly(len(BEAT)))
    began = time.monotonic()
    assert await within(raw.reader.readexactly(len(BEAT))) == BEAT
    assert time.monotonic() - began > 0.5  # the first one may have lain here for a while
    await raw.close()


async def test_a_stream_that_has_something_to_say_begins_with_it(serve):
    async def ready(channel, context):
        await channel.put("a")
        await asyncio.sleep(0.1)
        await channel.put("b")
        channel.close()

    server = await opened(serve, as_handler(start_event_stream(ready)))
    answer = await server.exchange("GET / HTTP/1.1\nHost: x\nConnection: close\n\n")
    assert b"data: a" in answer
    assert b":\n\r\n" not in answer


@pytest.mark.parametrize(
    ("request_line", "options"),
    [("HEAD / HTTP/1.1", {}), ("GET / HTTP/1.0", {}), ("GET / HTTP/1.1", {"heartbeat": None})],
    ids=["HEAD", "HTTP/1.0", "heartbeat=None"],
)
async def test_no_heartbeat_goes_where_none_is_wanted(serve, request_line, options):
    """Without heartbeats there is none behind the head either."""

    async def ready(channel, context):
        await asyncio.sleep(0.1)  # five times as long as it would take
        channel.close()

    server = await opened(serve, as_handler(start_event_stream(ready, **options)))
    answer = await server.exchange(f"{request_line}\nHost: x\nConnection: close\n\n")
    assert answer.partition(HEAD)[2] in (b"", b"0\r\n\r\n")


async def test_aiohttp_sse_has_its_ping_and_no_other(serve):
    async def handler(request):
        async with sse_response(request, response_cls=EventStreamResponse) as response:
            response.ping_interval = 1000
            await asyncio.sleep(0.1)
        return response

    answer = await (await opened(serve, handler)).exchange("GET / HTTP/1.1\nHost: x\nConnection: close\n\n")
    assert answer.partition(HEAD)[2] == b"0\r\n\r\n"


async def hub_answer(serve, hub, **options):
    app = web.Application()
    setup(app, hub)
    app.router.add_get("/", as_handler(start_topic_stream(hub, "t", heartbeat=1000, **options)))
    return await (await serve(app)).connect(GET)


async def test_a_hubs_stream_that_begins_with_nothing_sends_one_likewise(serve):
    hub = Hub()
    raw = await hub_answer(serve, hub, prime=False)
    await raw.until(HEAD)
    assert await within(raw.reader.readexactly(len(BEAT))) == BEAT
    await hub.publish("t", "a")
    assert b"data: a\n\n" in await raw.until(b"data: a\n\n")
    await raw.close()


async def test_a_hubs_stream_that_begins_with_its_position_sends_none(serve):
    hub = Hub()
    raw = await hub_answer(serve, hub, prime=True)
    await raw.until(HEAD)
    await asyncio.sleep(0.1)
    await hub.publish("t", "a")
    answer = await raw.until(b"data: a\n\n")
    assert answer.partition(b"\r\n")[2].startswith(b"id: ")
    assert b":\n\r\n" not in answer
    await raw.close()


async def test_a_comment_leaves_the_reconnection_time_to_the_next_event(serve):
    async def ready(channel, context):
        await channel.put(Event(comment="c"))
        await asyncio.sleep(0)
        await channel.put("a")
        channel.close()

    server = await opened(serve, as_handler(start_event_stream(ready, retry=5)))
    answer = await server.exchange("GET / HTTP/1.0\n\n")
    assert answer.partition(HEAD)[2] == b": c\n:\ndata: a\nretry: 5\n\n"


async def test_a_comment_that_a_hub_published_has_its_id(serve):
    hub = Hub()
    raw = await hub_answer(serve, hub, prime=True)
    await raw.until(b"\n\n")
    identity = await hub.publish("t", Event(comment="c"))
    assert f"id: {identity}\n: c\n:\n\n".encode() in await raw.until(b":\n\n")
    await raw.close()
