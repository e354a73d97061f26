"""Producers that use the ``asyncio.Queue`` of their channel directly, the default one or their own."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from aiohttp import ClientError, web

from aiohttp_interceptors import (
    CloseReason,
    ConflatingQueue,
    SlidingQueue,
    as_handler,
    setup,
    start_event_stream,
)
from aiohttp_interceptors.testing import open_stream
from aiohttp_interceptors.web.app import STREAMS
from tests.waiting import until, within

BUFFERS = {
    "default": 2,
    "plain": asyncio.Queue,
    "lifo": asyncio.LifoQueue,
    "sliding": SlidingQueue,
    "conflating": ConflatingQueue,
}


@pytest.fixture(params=BUFFERS)
def buffer(request):
    make = BUFFERS[request.param]
    return make if isinstance(make, int) else lambda: make(2)


async def test_events_put_into_the_queue_are_sent_and_join_returns(serve, session, buffer):
    async def ready(channel, context):
        for number in range(20):
            await context.stream.channel.buffer.put(str(number))
            await channel.buffer.join()
        channel.close()

    app = web.Application()
    app.router.add_get("/", as_handler(start_event_stream(ready, buffer=buffer)))
    server = await serve(app)
    async with open_stream(session, server.url) as stream:
        assert [event.data for event in await within(stream.rest())] == [str(number) for number in range(20)]


@pytest.mark.parametrize("waits", [False, True])
async def test_a_producer_that_puts_directly_ends_with_its_stream_without_an_error(serve, session, logged, waits):
    ended, reasons = asyncio.Event(), []

    async def ready(channel, context):
        try:
            while True:
                await channel.buffer.put("x" * 100_000)
                if not waits:
                    await asyncio.sleep(0)
        finally:
            ended.set()

    app = web.Application()
    setup(app)
    app.router.add_get(
        "/", as_handler(start_event_stream(ready, on_close=lambda context, reason: reasons.append(reason)))
    )
    server = await serve(app)
    async with open_stream(session, server.url) as stream:
        await stream.next()
    await within(ended.wait())
    await until(lambda: not len(app[STREAMS]))
    assert reasons == [CloseReason.CLIENT_LEFT]
    assert not [line for line in logged if line["log_level"] in ("error", "warning")]


async def test_two_streams_cannot_share_a_queue(serve, session, logged):
    queue, channels = asyncio.Queue(), []

    async def ready(channel, context):
        channels.append(channel)
        await channel.wait_closed()

    app = web.Application()
    app.router.add_get("/", as_handler(start_event_stream(ready, buffer=lambda: queue)))
    server = await serve(app)
    async with open_stream(session, server.url) as first:
        await until(lambda: channels)
        with suppress(ClientError):  # the headers are sent, so that the connection is closed
            async with open_stream(session, server.url) as second:
                assert await second.rest() == []
        assert len(channels) == 1
        queue.put_nowait("a")
        assert (await first.next()).data == "a"
        channels[0].close()
        assert await first.rest() == []
