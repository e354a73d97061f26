"""Calls from other threads: the methods that reject them, and the thread-safe ones."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from functools import partial

import pytest
from aiohttp import web
from aiohttp_sse import sse_response

from aiohttp_interceptors import (
    CloseReason,
    EventChannel,
    EventStreamResponse,
    Hub,
    as_handler,
    setup,
    start_event_stream,
    start_topic_stream,
)
from aiohttp_interceptors.exceptions import EventTooLarge
from aiohttp_interceptors.testing import open_stream
from tests.waiting import run_other_tasks, within


def threaded(call, *arguments):
    return within(asyncio.to_thread(call, *arguments))


class Opened:
    """A ``stream_ready`` function that provides the channel and the context of its stream."""

    def __init__(self):
        self.stream = asyncio.get_running_loop().create_future()

    async def __call__(self, channel, context):
        self.stream.set_result((channel, context))
        await channel.wait_closed()


async def serving(serve, **options):
    opened = Opened()
    app = web.Application()
    app.router.add_route("*", "/", as_handler(start_event_stream(opened, **options)))
    return await serve(app), opened


REJECTED = {
    "put_nowait": (lambda channel, _: channel.put_nowait("a"), r"put_threadsafe\(event\)"),
    "put": (lambda channel, _: asyncio.run(channel.put("a")), r"put_threadsafe\(event\)"),
    "close": (lambda channel, _: channel.close(), r"call_soon_threadsafe\(channel\.close\)"),
    "end": (lambda _, context: context.stream.end(CloseReason.KICKED), r"call_soon_threadsafe\(stream\.end, reason\)"),
    "wait_closed": (lambda channel, _: asyncio.run(channel.wait_closed()), r"run_coroutine_threadsafe"),
}


@pytest.mark.parametrize("name", REJECTED)
async def test_a_call_from_another_thread_raises_and_has_no_effect(serve, session, name):
    call, words = REJECTED[name]
    server, opened = await serving(serve)
    async with open_stream(session, server.url) as stream:
        channel, context = await within(opened.stream)
        for _ in range(2):
            with pytest.raises(RuntimeError, match=words):
                await threaded(call, channel, context)
            assert (channel.buffered, channel.closed, channel.reason) == (0, False, None)
        assert await channel.put("a")
        assert (await stream.next()).data == "a"
        channel.close()
        assert await stream.rest() == []


async def test_events_from_another_thread_keep_their_order(serve, session):
    server, opened = await serving(serve, buffer=2)

    def produce(channel):
        futures = [channel.put_threadsafe(str(number)) for number in range(100)]
        assert all(isinstance(future, Future) for future in futures)
        return [future.result(10) for future in futures]

    async with open_stream(session, server.url) as stream:
        channel, _ = await within(opened.stream)
        assert await threaded(produce, channel) == [True] * 100
        assert [(await stream.next()).data for _ in range(100)] == [str(number) for number in range(100)]
        channel.close()
        assert await stream.rest() == []
        assert await threaded(lambda: channel.put_threadsafe("late").result(10)) is False


async def test_a_waiting_put_from_another_thread_is_false_when_the_client_disconnects():
    channel = EventChannel(1)
    channel._attach(lambda: None)
    assert channel.put_nowait("a")
    waits = await threaded(channel.put_threadsafe, "b")
    await run_other_tasks()
    assert not waits.done()
    channel.end(CloseReason.CLIENT_LEFT)
    assert await within(asyncio.wrap_future(waits)) is False
    assert await within(asyncio.wrap_future(await threaded(channel.put_threadsafe, "late"))) is False


async def test_an_invalid_event_raises_in_the_thread_that_puts_it(serve, session):
    server, opened = await serving(serve, max_event_size=100)
    async with open_stream(session, server.url) as stream:
        channel, _ = await within(opened.stream)
        with pytest.raises(TypeError, match="put takes an Event or a str"):
            await threaded(channel.put_threadsafe, 7)
        with pytest.raises(EventTooLarge):
            await threaded(channel.put_threadsafe, "x" * 100)
        assert await within(asyncio.wrap_future(channel.put_threadsafe("a")))
        assert (await stream.next()).data == "a"


async def test_waiting_for_the_future_in_the_thread_of_the_loop_raises(serve, session):
    hub = Hub()
    hub.open()
    server, opened = await serving(serve)
    async with open_stream(session, server.url) as stream:
        channel, _ = await within(opened.stream)
        for call in (partial(channel.put_threadsafe, "a"), partial(hub.publish_threadsafe, "t", "a")):
            future = call()
            for wait in (future.result, future.exception):
                with pytest.raises(RuntimeError, match=r"await asyncio\.wrap_future\(future\)"):
                    wait(5)
            result = await within(asyncio.wrap_future(future))
            assert future.result() == result
            assert future.exception() is None
        assert (await stream.next()).data == "a"
    await hub.close()


async def test_cancelling_the_future_withdraws_an_event_that_waits_for_room(serve, session):
    server, opened = await serving(serve, buffer=1)
    async with open_stream(session, server.url) as stream:
        channel, _ = await within(opened.stream)
        assert channel.put_nowait("a")  # written in the next iteration of the event loop, after the next await
        future = channel.put_threadsafe("b")
        assert future.cancel()
        assert await channel.put("c")
        channel.close()
        assert [event.data for event in await stream.rest()] == ["a", "c"]


async def test_a_publication_that_fails_in_the_loop_fails_its_future(monkeypatch):
    hub = Hub()
    hub.open()

    def fail(*_):
        raise OSError("no room")

    monkeypatch.setattr(hub.history, "append", fail)
    with pytest.raises(OSError, match="no room"):
        await within(asyncio.wrap_future(await threaded(hub.publish_threadsafe, "t", "a")))
    await hub.close()


async def test_ending_a_topic_stream_from_another_thread_raises_and_has_no_effect(serve, session):
    hub = Hub()
    contexts = []
    app = web.Application()
    setup(app, hub)
    topics = lambda context: contexts.append(context) or "t"
    app.router.add_get("/", as_handler(start_topic_stream(hub, topics)))
    server = await serve(app)
    async with open_stream(session, server.url) as stream:
        subscribed = contexts[0].stream
        with pytest.raises(RuntimeError, match="call_soon_threadsafe"):
            await threaded(partial(subscribed.end, CloseReason.KICKED))
        assert subscribed.reason is None
        await hub.publish("t", "a")
        assert (await stream.next()).data == "a"
        await threaded(asyncio.get_running_loop().call_soon_threadsafe, subscribed.end, CloseReason.KICKED)
        assert await stream.rest() == []


async def test_stop_streaming_from_another_thread_raises(serve, session):
    responses = asyncio.Queue()

    async def handler(request):
        async with sse_response(request, response_cls=EventStreamResponse) as response:
            responses.put_nowait(response)
            await response.wait()
        return response

    app = web.Application()
    app.router.add_get("/", handler)
    server = await serve(app)
    async with open_stream(session, server.url) as stream:
        response = await within(responses.get())
        with pytest.raises(RuntimeError, match=r"call_soon_threadsafe\(response\.stop_streaming\)"):
            await threaded(response.stop_streaming)
        assert response.is_connected()
        response.stop_streaming()
        assert await stream.rest() == []


async def test_a_waiting_put_from_another_thread_can_be_cancelled():
    channel = EventChannel(1)
    channel._attach(lambda: None)
    channel.put_nowait("first")
    waiting = await threaded(channel.put_threadsafe, "second")
    await run_other_tasks()
    assert not waiting.done()
    assert waiting.cancel()
    await run_other_tasks()
    assert channel.buffered == 1


async def test_get_on_the_queue_of_a_channel_waits_for_a_put():
    channel = EventChannel(2)
    taking = asyncio.ensure_future(channel.buffer.get())
    await asyncio.sleep(0)
    channel.put_nowait("a")
    assert (await within(taking)).data == "a"
    channel.buffer.task_done()
    await within(channel.buffer.join())
