"""What open streams of a Hub are given: their topics, their selection, from any thread."""

from __future__ import annotations

import asyncio
import threading

import pytest
from aiohttp import web

from aiohttp_interceptors import CloseReason, Hub, Subscriber
from tests.listener import application, listen
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import until

pytestmark = BOTH_LOOPS


@pytest.fixture(autouse=True)
def quiet(logged):
    """Keep what is logged of streams to ourselves."""


class TransportListener:
    """Streams of a Hub, and what it knows of them."""

    def __init__(self, topics="a", **options: object) -> None:
        self.hub = Hub()
        self.opened: list[Subscriber] = []
        self.reasons: list[CloseReason] = []
        self.app = application(
            self.hub,
            topics,
            stream_ready=lambda subscriber, context: self.opened.append(subscriber),
            on_close=lambda context, reason: self.reasons.append(reason),
            **options,
        )

    async def until_open(self, streams: int = 1) -> None:
        await until(lambda: self.hub.statistics().subscribers == streams and self.hub.statistics().behind == 0)


class TestTopicsOfAnOpenStream:
    async def test_are_changed_by_another_request(self, serve):
        watched = TransportListener()
        subscribers = {}

        async def change(request: web.Request) -> web.Response:
            subscriber = watched.opened[0]
            getattr(subscriber, request.match_info["verb"])(request.match_info["topic"])
            subscribers[request.path] = subscriber.topics
            return web.Response()

        watched.app.router.add_get("/{verb}/{topic}", change)
        server = await serve(watched.app)
        listener = await listen(server)
        await watched.until_open()
        for path in "/add/b.*", "/remove/a", "/remove/none":
            await watched.hub.publish("a", f"a before {path}")
            await watched.hub.publish("b.1", f"b before {path}")
            await server.exchange(f"GET {path} HTTP/1.1\nHost: x\nConnection: close\n\n")
        await watched.hub.publish("b.2", "end")
        assert await listener.data(4) == ["a before /add/b.*", "a before /remove/a", "b before /remove/a",
                                          "b before /remove/none"]  # fmt: skip
        assert await listener.data(1) == ["end"]
        assert subscribers == {"/add/b.*": {"a", "b.*"}, "/remove/a": {"b.*"}, "/remove/none": {"b.*"}}
        assert (watched.hub.subscribers("a"), watched.hub.subscribers("b.x")) == (0, 1)
        await listener.close()
        await until(lambda: watched.hub.statistics().subscribers == 0)
        watched.opened[0].add("a")  # in vain
        assert watched.hub.subscribers("a") == 0

    async def test_are_changed_by_another_thread(self, serve):
        watched = TransportListener([])
        listener = await listen(await serve(watched.app))
        await watched.until_open()
        subscriber = watched.opened[0]
        await asyncio.to_thread(subscriber.add, "b", "c")
        await until(lambda: watched.hub.subscribers("b") == 1)
        await asyncio.to_thread(watched.hub.publish_threadsafe("b", "x").result, 10)
        await asyncio.to_thread(subscriber.remove, "b")
        await until(lambda: watched.hub.subscribers("b") == 0)
        for topic in "b", "c":
            await watched.hub.publish(topic, topic)
        assert await listener.data(2) == ["x", "c"]
        await listener.close()

    async def test_give_ids_that_only_rise_however_they_change(self, serve):
        watched = TransportListener()
        listener = await listen(await serve(watched.app))
        await watched.until_open()
        subscriber = watched.opened[0]
        for number in range(500):
            getattr(subscriber, "add" if number % 3 else "remove")("abcd"[number % 4])
            for topic in "abcd":
                await watched.hub.publish(topic, str(number))
            if number % 7 == 0:
                await asyncio.sleep(0)
        subscriber.add("end")
        await watched.hub.publish("end", "end")
        offsets = []
        while (event := await listener.event()).data != "end":
            offsets.append(int(event.id.partition("-")[2]))
        assert len(offsets) > 500
        assert offsets == sorted(set(offsets))
        await listener.close()


async def test_other_threads_publish_to_a_loop_that_waits(serve):
    """peer bug 38: nothing else is going on that would wake it."""
    watched = TransportListener()
    listener = await listen(await serve(watched.app))
    await watched.until_open()
    threads = [
        threading.Thread(target=lambda: [watched.hub.publish_threadsafe("a", "x") for _ in range(100)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    events = [await listener.event() for _ in range(400)]
    assert [event.id for event in events] == [watched.hub.log.id_of(offset) for offset in range(1, 401)]
    for thread in threads:
        thread.join()
    await listener.close()


@pytest.mark.parametrize("wrong", ["\ud800", 5, None, {"a": 1}, b"x"])
async def test_what_cannot_be_sent_fails_who_publishes_it_and_no_stream(serve, wrong):
    """peer bug 41."""
    watched = TransportListener()
    listener = await listen(await serve(watched.app))
    await watched.until_open()
    for call in watched.hub.publish, watched.hub.publish_threadsafe:
        with pytest.raises((TypeError, ValueError)):
            await asyncio.wrap_future(call("a", wrong)) if call == watched.hub.publish_threadsafe else await call(
                "a", wrong
            )
    assert await watched.hub.publish("a", "x") == watched.hub.log.id_of(1)
    assert await listener.data(1) == ["x"]
    assert watched.reasons == []
    await listener.close()


async def test_select_gives_each_client_its_own(serve):
    """peer bug 46: live, and what it missed."""

    def select(context, record) -> bool:
        return record.key != context.request.query["name"]

    watched = TransportListener(select=select)
    server = await serve(watched.app)
    anna, bert = await listen(server, "/?name=anna"), await listen(server, "/?name=bert")
    await watched.until_open(2)
    for number in range(10):
        await watched.hub.publish("a", str(number), key="anna" if number % 2 else "bert")
        await watched.hub.publish("a", f"e{number}", key="anna" if number % 2 else "bert", ephemeral=True)
    assert await anna.data(10) == [f"{e}{number}" for number in range(0, 10, 2) for e in ("", "e")]
    assert await bert.data(10) == [f"{e}{number}" for number in range(1, 10, 2) for e in ("", "e")]
    again = await listen(server, "/?name=anna", after=watched.hub.log.id_of(0))
    assert await again.data(5) == ["0", "2", "4", "6", "8"]
    for listener in anna, bert, again:
        await listener.close()
