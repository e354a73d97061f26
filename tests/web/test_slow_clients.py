"""Clients of topic streams that read slowly or pause."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import tracemalloc

import pytest
import trustme
from aiohttp import web

from aiohttp_interceptors import CloseReason, Event, Hub
from tests.listener import Listener, application, listen
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import until, within

SMALL = 4096  # receive buffer of a slow client, in bytes
MAX_BUFFERED = 128 * 1024  # bytes that the server may buffer for a client that does not read
KILOBYTE = "x" * 1024

pytestmark = [
    *BOTH_LOOPS,
    pytest.mark.skipif(sys.platform not in {"linux", "darwin"}, reason="the kernel buffers an unknown amount"),
]


@pytest.fixture(autouse=True)
def quiet(logged):
    """Capture what streams log."""


class Flood:
    """A Hub whose topic ``a`` is published to faster than one client reads."""

    def __init__(self, hub: Hub, **options: object) -> None:
        self.hub = hub
        self.streams = []
        self.reasons: list[CloseReason] = []
        self.published: list[str] = []
        options.setdefault("stall_timeout", None)
        self.app = application(
            hub,
            "a",
            stream_ready=lambda subscriber, context: self.streams.append(context.stream),
            on_close=lambda context, reason: self.reasons.append(reason),
            **options,
        )

    async def publish(self, count: int, key: str | None = None) -> None:
        for _ in range(count):
            number = len(self.published)
            self.published.append(await self.hub.publish("a", Event(f"{number} {KILOBYTE}"), key=key))
            await asyncio.sleep(0)

    async def until_paused(self, streams: int = 1) -> None:
        """Publish until that many streams are paused."""
        await until(lambda: len(self.streams) >= streams and self.hub.statistics().catching_up == 0)
        while self.hub.statistics().catching_up < streams:
            await self.publish(1)


async def numbers(listener: Listener, last: int) -> list[int | dict]:
    """Read events up to that number, and return their numbers and the gaps."""
    seen: list[int | dict] = []
    while last not in seen:
        event = await listener.event()
        seen.append(json.loads(event.data) if event.name == "gap" else int(event.data.split()[0]))
    return seen


class TestClientStopsReading:
    async def test_it_delays_no_other_client_and_gets_everything_when_it_reads_again(self, serve):
        flood = Flood(Hub(history=10_000, history_bytes=None))
        server = await serve(flood.app)
        stopped = await listen(server, receive_buffer=SMALL)
        await flood.until_paused()
        start = len(flood.published)
        others = [await listen(server) for _ in range(10)]
        await until(lambda: flood.hub.statistics().catching_up == 1 and len(flood.streams) == 11)
        unsent = flood.streams[0].statistics().unsent
        for number in range(start, start + 300):
            await flood.publish(1)
            for other in others:
                assert (await other.event()).id == flood.published[number]
            assert flood.streams[0].statistics().unsent == unsent <= MAX_BUFFERED
            assert flood.hub.statistics().catching_up == 1
        assert await numbers(stopped, start + 299) == list(range(start + 300))
        assert stopped.last_event_id == flood.published[-1]
        await until(lambda: flood.hub.statistics().catching_up == 0)
        await flood.publish(1)
        assert await numbers(stopped, start + 300) == [start + 300]
        assert flood.hub.statistics().gaps == 0
        for listener in stopped, *others:
            await listener.close()

    async def test_it_has_no_queue(self, serve):
        """Twenty megabytes are published, and only the history keeps any of it."""
        flood = Flood(Hub(history=10, history_bytes=None))
        listener = await listen(await serve(flood.app), receive_buffer=SMALL)
        await flood.until_paused()
        event = Event("y" * 10_000)
        tracemalloc.start()
        try:
            for _ in range(100):  # until the history is full
                await flood.hub.publish("a", event)
            await asyncio.sleep(0)
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            for _ in range(2000):
                await flood.hub.publish("a", event)
                await asyncio.sleep(0)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak - before < 200_000
        assert flood.reasons == []
        await listener.close()

    async def test_it_gets_a_gap_for_trimmed_records(self, serve):
        """It gets all records before, one gap event, and all records after."""
        flood = Flood(Hub(history=20))
        listener = await listen(await serve(flood.app), receive_buffer=SMALL)
        for _ in range(2):  # the second gap covers only what was trimmed since the first
            await flood.until_paused()
            await flood.publish(100)
            last = len(flood.published) - 1
            first = last - 19
            seen = await numbers(listener, last)
            index = next(index for index, item in enumerate(seen) if isinstance(item, dict))
            before = seen[index - 1]
            assert seen[:index] == list(range(seen[0], before + 1))
            gap = {"reason": "evicted", "after": flood.published[before], "first": flood.published[first]}
            assert seen[index:] == [gap, *range(first, last + 1)]
            await until(lambda: flood.hub.statistics().catching_up == 0)
        assert flood.hub.statistics().gaps == 2
        assert flood.reasons == []
        await listener.close()

    async def test_on_gap_close_ends_it_as_lagged_and_the_gap_follows_on_resume(self, serve):
        flood = Flood(Hub(history=20), on_gap="close")
        server = await serve(flood.app)
        listener = await listen(server, receive_buffer=SMALL)
        await flood.until_paused()
        await flood.publish(100)
        assert flood.reasons == []  # the stream ends only when the client reads again
        events = await listener.rest()
        assert listener.complete
        assert [event.id for event in events] == flood.published[: len(events)]
        await until(lambda: flood.reasons == [CloseReason.LAGGED])
        await listener.close()
        listener = await listen(server, after=listener.last_event_id)
        seen = await numbers(listener, len(flood.published) - 1)
        gap = {"reason": "evicted", "after": flood.published[len(events) - 1], "first": flood.published[-20]}
        assert seen == [gap, *range(len(flood.published) - 20, len(flood.published))]
        assert flood.hub.statistics().gaps == 1
        await listener.close()

    async def test_conflate_sends_the_latest_record_of_each_key_and_no_gap(self, serve):
        flood = Flood(Hub(history=20), on_gap="conflate")
        listener = await listen(await serve(flood.app), receive_buffer=SMALL)
        await until(lambda: flood.hub.statistics().subscribers == 1 and flood.hub.statistics().catching_up == 0)
        while flood.hub.statistics().catching_up == 0:
            await flood.publish(1, key="0")
        start = len(flood.published)
        for _ in range(50):
            for key in "0123":
                await flood.publish(1, key=key)
        await flood.publish(1)  # a record without a key is not superseded
        last = len(flood.published) - 1
        seen = await numbers(listener, last)
        assert seen == [*range(len(seen) - 5), last - 4, last - 3, last - 2, last - 1, last]
        assert len(seen) - 5 <= start
        assert flood.hub.statistics().gaps == 0
        await until(lambda: flood.hub.statistics().catching_up == 0)
        while flood.hub.statistics().catching_up == 0:
            await flood.publish(1, key="0")
        await flood.publish(5, key="0")  # nothing was trimmed, so nothing is conflated
        assert await numbers(listener, len(flood.published) - 1) == list(range(last + 1, len(flood.published)))
        await listener.close()

    async def test_conflate_sends_a_gap_for_records_that_no_later_one_supersedes(self, serve):
        flood = Flood(Hub(history=20), on_gap="conflate")
        listener = await listen(await serve(flood.app), receive_buffer=SMALL)
        await flood.until_paused()
        await flood.publish(50)
        await flood.publish(50, key="0")
        last = len(flood.published) - 1
        seen = await numbers(listener, last)
        assert [item for item in seen if isinstance(item, dict)] == [seen[-2]]
        assert seen[-2]["reason"] == "evicted"
        assert seen[-1] == last
        await listener.close()

    async def test_only_the_stalled_client_is_disconnected(self, serve):
        flood = Flood(Hub(history=10), stall_timeout=2.5)
        server = await serve(flood.app)
        other, stopped = await listen(server), await listen(server, receive_buffer=SMALL)
        reading = asyncio.create_task(other.rest())
        await until(lambda: len(flood.streams) == 2)
        while not flood.reasons:
            await flood.publish(1)
        assert flood.reasons == [CloseReason.STALLED]
        assert flood.hub.statistics().subscribers == 1
        flood.streams[0].end(CloseReason.KICKED)
        assert [event.id for event in await within(reading)] == flood.published
        await stopped.close()
        await other.close()

    async def test_it_gets_all_of_a_burst_that_exceeds_its_buffers(self, serve):
        """It is paused in the middle of one flush."""
        flood = Flood(Hub())
        listener = await listen(await serve(flood.app), receive_buffer=SMALL)
        await until(lambda: flood.hub.statistics().subscribers == 1 and flood.hub.statistics().catching_up == 0)
        for _ in range(3):
            start = len(flood.published)
            for number in range(start, start + 500):
                flood.published.append(await flood.hub.publish("a", f"{number} {KILOBYTE}"))
            assert await numbers(listener, start + 499) == list(range(start, start + 500))
            await until(lambda: flood.hub.statistics().catching_up == 0)
        await listener.close()

    async def test_a_topic_added_meanwhile_is_received_from_then_on(self, serve):
        flood = Flood(Hub())
        listener = await listen(await serve(flood.app), receive_buffer=SMALL)
        await flood.until_paused()
        subscriber = flood.streams[0].subscriber
        for topic in "b", "c":
            await flood.hub.publish(topic, f"{topic} before")
            subscriber.add(topic)
            await flood.hub.publish(topic, f"{topic} after")
        subscriber.remove("a", "c")
        await flood.publish(1)
        await flood.hub.publish("b", "end")
        seen = []
        while "end" not in seen:
            seen.append((await listener.event()).data)
        assert [data for data in seen if KILOBYTE not in data] == ["b after", "end"]
        await listener.close()

    async def test_it_may_disconnect_without_reading(self, serve, handler_cancellation):
        flood = Flood(Hub(history=10))
        listener = await listen(await serve(flood.app, handler_cancellation=handler_cancellation), receive_buffer=SMALL)
        await flood.until_paused()
        listener.raw.reset()
        await until(lambda: flood.reasons == [CloseReason.CLIENT_LEFT])
        statistics = flood.hub.statistics()
        assert statistics.subscribers == statistics.catching_up == statistics.groups == 0
        await flood.publish(10)
        await listener.close()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_clients_that_pause_get_everything_in_order_or_a_gap(serve, tls):
    """Ten clients pause at different times. Each gap names exactly the records that are missing."""
    flood = Flood(Hub(history=100, history_bytes=None))
    server, trust = await serve(flood.app), None
    if tls:
        context, trust = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
        authority = trustme.CA()
        authority.issue_cert("localhost").configure_cert(context)
        authority.configure_trust(trust)
        await web.TCPSite(server.runner, "127.0.0.1", 0, ssl_context=context).start()
        server.port = server.runner.addresses[-1][1]

    async def follow(number: int) -> None:
        listener = await listen(server, receive_buffer=SMALL, ssl_context=trust)
        before, missed = -1, False
        while before < 1999:
            for _ in range((before * 7 + number * 13) % 40):
                await asyncio.sleep(0)
            event = await listener.event()
            if event.name == "gap":
                gap = json.loads(event.data)
                assert gap["after"] == flood.published[before]
                before, missed = flood.published.index(gap["first"]) - 1, True
            else:
                assert event.id == flood.published[before + 1]
                before += 1
        gaps.append(missed)
        await listener.close()

    gaps: list[bool] = []
    async with asyncio.TaskGroup() as group:
        for number in range(10):
            group.create_task(follow(number))
        await until(lambda: flood.hub.statistics().subscribers == 10 and flood.hub.statistics().catching_up == 0)
        await flood.publish(2000)
    assert any(gaps)
