"""Some proxies withhold the head until the body begins: an idle stream sends a heartbeat right after the head."""

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
HEARTBEAT = b"2\r\n:\n\r\n"  # one chunk


def idle(**options):
    async def ready(channel, context):
        await channel.wait_closed()

    return as_handler(start_event_stream(ready, **options))


async def serve_handler(serve, handler):
    app = web.Application()
    app.router.add_route("*", "/", handler)
    return await serve(app)


async def test_an_idle_stream_sends_a_heartbeat_right_after_its_head(serve):
    raw = await (await serve_handler(serve, idle(heartbeat=1000))).connect(GET)
    await raw.until(HEAD)
    start = time.monotonic()
    assert await within(raw.reader.readexactly(len(HEARTBEAT))) == HEARTBEAT
    assert time.monotonic() - start < 30  # not after a thousand seconds
    await raw.close()


async def test_the_next_heartbeat_follows_after_the_interval(serve):
    raw = await (await serve_handler(serve, idle(heartbeat=3.0))).connect(GET)
    await raw.until(HEAD)
    await within(raw.reader.readexactly(len(HEARTBEAT)))
    start = time.monotonic()
    assert await within(raw.reader.readexactly(len(HEARTBEAT))) == HEARTBEAT
    assert time.monotonic() - start > 0.5  # the first one may have been received some time before
    await raw.close()


async def test_a_stream_with_an_event_sends_no_first_heartbeat(serve):
    async def ready(channel, context):
        await channel.put("a")
        await asyncio.sleep(0.1)
        await channel.put("b")
        channel.close()

    server = await serve_handler(serve, as_handler(start_event_stream(ready)))
    answer = await server.exchange("GET / HTTP/1.1\nHost: x\nConnection: close\n\n")
    assert b"data: a" in answer
    assert b":\n\r\n" not in answer


@pytest.mark.parametrize(
    ("request_line", "options"),
    [("HEAD / HTTP/1.1", {}), ("GET / HTTP/1.0", {}), ("GET / HTTP/1.1", {"heartbeat": None})],
    ids=["HEAD", "HTTP/1.0", "heartbeat=None"],
)
async def test_no_first_heartbeat_is_sent_to_head_requests_and_http_1_0_and_without_heartbeats(
    serve, request_line, options
):
    async def ready(channel, context):
        await asyncio.sleep(0.1)  # five times the timer slack
        channel.close()

    server = await serve_handler(serve, as_handler(start_event_stream(ready, **options)))
    answer = await server.exchange(f"{request_line}\nHost: x\nConnection: close\n\n")
    assert answer.partition(HEAD)[2] in (b"", b"0\r\n\r\n")


async def test_an_aiohttp_sse_response_sends_no_first_heartbeat(serve):
    async def handler(request):
        async with sse_response(request, response_cls=EventStreamResponse) as response:
            response.ping_interval = 1000
            await asyncio.sleep(0.1)
        return response

    answer = await (await serve_handler(serve, handler)).exchange("GET / HTTP/1.1\nHost: x\nConnection: close\n\n")
    assert answer.partition(HEAD)[2] == b"0\r\n\r\n"


async def connect_to_hub(serve, hub, **options):
    app = web.Application()
    setup(app, hub)
    app.router.add_get("/", as_handler(start_topic_stream(hub, "t", heartbeat=1000, **options)))
    return await (await serve(app)).connect(GET)


async def test_a_hub_stream_without_an_initial_frame_sends_a_first_heartbeat(serve):
    hub = Hub()
    raw = await connect_to_hub(serve, hub, prime=False)
    await raw.until(HEAD)
    assert await within(raw.reader.readexactly(len(HEARTBEAT))) == HEARTBEAT
    await hub.publish("t", "a")
    assert b"data: a\n\n" in await raw.until(b"data: a\n\n")
    await raw.close()


async def test_a_hub_stream_with_an_initial_id_frame_sends_no_first_heartbeat(serve):
    hub = Hub()
    raw = await connect_to_hub(serve, hub, prime=True)
    await raw.until(HEAD)
    await asyncio.sleep(0.1)
    await hub.publish("t", "a")
    answer = await raw.until(b"data: a\n\n")
    assert answer.partition(b"\r\n")[2].startswith(b"id: ")
    assert b":\n\r\n" not in answer
    await raw.close()


async def test_retry_is_sent_with_the_first_event_and_not_with_a_comment(serve):
    async def ready(channel, context):
        await channel.put(Event(comment="c"))
        await asyncio.sleep(0)
        await channel.put("a")
        channel.close()

    server = await serve_handler(serve, as_handler(start_event_stream(ready, retry=5)))
    answer = await server.exchange("GET / HTTP/1.0\n\n")
    assert answer.partition(HEAD)[2] == b": c\n:\ndata: a\nretry: 5\n\n"


async def test_a_comment_published_by_a_hub_has_an_id(serve):
    hub = Hub()
    raw = await connect_to_hub(serve, hub, prime=True)
    await raw.until(b"\n\n")
    event_id = await hub.publish("t", Event(comment="c"))
    assert f"id: {event_id}\n: c\n:\n\n".encode() in await raw.until(b":\n\n")
    await raw.close()
