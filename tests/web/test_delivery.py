"""What open topic streams receive: their topics, their selection, records from any thread."""

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
    """Capture what streams log."""


class ObservedStreams:
    """Topic streams of a Hub, and their subscribers."""

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
        await until(lambda: self.hub.statistics().subscribers == streams and self.hub.statistics().catching_up == 0)


class TestTopicsOfAnOpenStream:
    async def test_another_request_changes_them(self, serve):
        streams = ObservedStreams()
        subscribers = {}

        async def change(request: web.Request) -> web.Response:
            subscriber = streams.opened[0]
            getattr(subscriber, request.match_info["verb"])(request.match_info["topic"])
            subscribers[request.path] = subscriber.topics
            return web.Response()

        streams.app.router.add_get("/{verb}/{topic}", change)
        server = await serve(streams.app)
        listener = await listen(server)
        await streams.until_open()
        for path in "/add/b.*", "/remove/a", "/remove/none":
            await streams.hub.publish("a", f"a before {path}")
            await streams.hub.publish("b.1", f"b before {path}")
            await server.exchange(f"GET {path} HTTP/1.1\nHost: x\nConnection: close\n\n")
        await streams.hub.publish("b.2", "end")
        assert await listener.data(4) == ["a before /add/b.*", "a before /remove/a", "b before /remove/a",
                                          "b before /remove/none"]  # fmt: skip
        assert await listener.data(1) == ["end"]
        assert subscribers == {"/add/b.*": {"a", "b.*"}, "/remove/a": {"b.*"}, "/remove/none": {"b.*"}}
        assert (streams.hub.subscribers("a"), streams.hub.subscribers("b.x")) == (0, 1)
        await listener.close()
        await until(lambda: streams.hub.statistics().subscribers == 0)
        streams.opened[0].add("a")  # has no effect
        assert streams.hub.subscribers("a") == 0

    async def test_another_thread_changes_them(self, serve):
        streams = ObservedStreams([])
        listener = await listen(await serve(streams.app))
        await streams.until_open()
        subscriber = streams.opened[0]
        await asyncio.to_thread(subscriber.add, "b", "c")
        await until(lambda: streams.hub.subscribers("b") == 1)
        await asyncio.to_thread(streams.hub.publish_threadsafe("b", "x").result, 10)
        await asyncio.to_thread(subscriber.remove, "b")
        await until(lambda: streams.hub.subscribers("b") == 0)
        for topic in "b", "c":
            await streams.hub.publish(topic, topic)
        assert await listener.data(2) == ["x", "c"]
        await listener.close()

    async def test_ids_only_increase_however_they_change(self, serve):
        streams = ObservedStreams()
        listener = await listen(await serve(streams.app))
        await streams.until_open()
        subscriber = streams.opened[0]
        for number in range(500):
            getattr(subscriber, "add" if number % 3 else "remove")("abcd"[number % 4])
            for topic in "abcd":
                await streams.hub.publish(topic, str(number))
            if number % 7 == 0:
                await asyncio.sleep(0)
        subscriber.add("end")
        await streams.hub.publish("end", "end")
        offsets = []
        while (event := await listener.event()).data != "end":
            offsets.append(int(event.id.partition("-")[2]))
        assert len(offsets) > 500
        assert offsets == sorted(set(offsets))
        await listener.close()


async def test_other_threads_publish_to_an_idle_event_loop(serve):
    """Nothing else wakes the loop."""
    streams = ObservedStreams()
    listener = await listen(await serve(streams.app))
    await streams.until_open()
    threads = [
        threading.Thread(target=lambda: [streams.hub.publish_threadsafe("a", "x") for _ in range(100)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    events = [await listener.event() for _ in range(400)]
    assert [event.id for event in events] == [streams.hub.history.id_of(offset) for offset in range(1, 401)]
    for thread in threads:
        thread.join()
    await listener.close()


@pytest.mark.parametrize("wrong", ["\ud800", None, {"a": object()}, b"x", float("nan")], ids=ascii)
async def test_an_invalid_event_raises_in_publish_and_ends_no_stream(serve, wrong):
    streams = ObservedStreams()
    listener = await listen(await serve(streams.app))
    await streams.until_open()
    for call in streams.hub.publish, streams.hub.publish_threadsafe:
        with pytest.raises((TypeError, ValueError)):
            await asyncio.wrap_future(call("a", wrong)) if call == streams.hub.publish_threadsafe else await call(
                "a", wrong
            )
    assert await streams.hub.publish("a", "x") == streams.hub.history.id_of(1)
    assert await listener.data(1) == ["x"]
    assert streams.reasons == []
    await listener.close()


async def test_select_filters_records_per_client(serve):
    """Both live and missed records."""

    def select(context, record) -> bool:
        return record.key != context.request.query["name"]

    streams = ObservedStreams(select=select)
    server = await serve(streams.app)
    anna, bert = await listen(server, "/?name=anna"), await listen(server, "/?name=bert")
    await streams.until_open(2)
    for number in range(10):
        await streams.hub.publish("a", str(number), key="anna" if number % 2 else "bert")
        await streams.hub.publish("a", f"e{number}", key="anna" if number % 2 else "bert", ephemeral=True)
    assert await anna.data(10) == [f"{e}{number}" for number in range(0, 10, 2) for e in ("", "e")]
    assert await bert.data(10) == [f"{e}{number}" for number in range(1, 10, 2) for e in ("", "e")]
    again = await listen(server, "/?name=anna", after=streams.hub.history.id_of(0))
    assert await again.data(5) == ["0", "2", "4", "6", "8"]
    for listener in anna, bert, again:
        await listener.close()
