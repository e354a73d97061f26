"""Clients of a Hub that read slowly, or not at all for a while."""

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

SMALL = 4096  # bytes that a client keeps unread, about
MAX_PIPELINED_BYTES = 128 * 1024  # bytes that the server may hold for one that does not read
KILOBYTE = "x" * 1024

pytestmark = [
    *BOTH_LOOPS,
    pytest.mark.skipif(sys.platform not in {"linux", "darwin"}, reason="the kernel takes what it likes"),
]


@pytest.fixture(autouse=True)
def quiet(logged):
    """Keep what is logged of streams to ourselves."""


class Flood:
    """A Hub whose topic ``a`` is published faster than one client reads."""

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

    async def until_behind(self, streams: int = 1) -> None:
        """Publish until so many streams are paused."""
        await until(lambda: len(self.streams) >= streams and self.hub.statistics().behind == 0)
        while self.hub.statistics().behind < streams:
            await self.publish(1)


async def numbers(listener: Listener, last: int) -> list[int | dict]:
    """Read events until that number, and return their numbers, and what gaps say."""
    seen: list[int | dict] = []
    while last not in seen:
        event = await listener.event()
        seen.append(json.loads(event.data) if event.name == "gap" else int(event.data.split()[0]))
    return seen


class TestAClientThatStopsReading:
    async def test_costs_nothing_delays_nobody_and_gets_all_of_it_when_it_reads_on(self, serve):
        """peer bugs 31, 32 and 37."""
        flood = Flood(Hub(history=10_000, history_bytes=None))
        server = await serve(flood.app)
        stopped = await listen(server, room=SMALL)
        await flood.until_behind()
        begun = len(flood.published)
        others = [await listen(server) for _ in range(10)]
        await until(lambda: flood.hub.statistics().behind == 1 and len(flood.streams) == 11)
        held = flood.streams[0].statistics().unsent
        for number in range(begun, begun + 300):
            await flood.publish(1)
            for other in others:
                assert (await other.event()).id == flood.published[number]
            assert flood.streams[0].statistics().unsent == held <= MAX_PIPELINED_BYTES
            assert flood.hub.statistics().behind == 1
        assert await numbers(stopped, begun + 299) == list(range(begun + 300))
        assert stopped.last_event_id == flood.published[-1]
        await until(lambda: flood.hub.statistics().behind == 0)
        await flood.publish(1)
        assert await numbers(stopped, begun + 300) == [begun + 300]
        assert flood.hub.statistics().gaps == 0
        for listener in stopped, *others:
            await listener.close()

    async def test_has_no_queue_whatever_is_published(self, serve):
        """peer bug 32: twenty megabytes, of which nothing stays but the history."""
        flood = Flood(Hub(history=10, history_bytes=None))
        listener = await listen(await serve(flood.app), room=SMALL)
        await flood.until_behind()
        event = Event("y" * 10_000)
        tracemalloc.start()
        try:
            for _ in range(100):  # so that the history has its size
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

    async def test_is_told_of_what_is_gone_when_it_reads_on(self, serve):
        """peer bug 33: all before, one gap that says which, all after."""
        flood = Flood(Hub(history=20))
        listener = await listen(await serve(flood.app), room=SMALL)
        for _ in range(2):  # and the second time of what is gone since
            await flood.until_behind()
            await flood.publish(100)
            last = len(flood.published) - 1
            first = last - 19
            seen = await numbers(listener, last)
            place = next(place for place, what in enumerate(seen) if isinstance(what, dict))
            before = seen[place - 1]
            assert seen[:place] == list(range(seen[0], before + 1))
            gap = {"reason": "evicted", "after": flood.published[before], "first": flood.published[first]}
            assert seen[place:] == [gap, *range(first, last + 1)]
            await until(lambda: flood.hub.statistics().behind == 0)
        assert flood.hub.statistics().gaps == 2
        assert flood.reasons == []
        await listener.close()

    async def test_is_ended_as_lagged_with_close_and_told_when_it_returns(self, serve):
        flood = Flood(Hub(history=20), on_gap="close")
        server = await serve(flood.app)
        listener = await listen(server, room=SMALL)
        await flood.until_behind()
        await flood.publish(100)
        assert flood.reasons == []  # it might never read again
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

    async def test_gets_the_latest_of_each_key_with_conflate_and_no_gap(self, serve):
        flood = Flood(Hub(history=20), on_gap="conflate")
        listener = await listen(await serve(flood.app), room=SMALL)
        await until(lambda: flood.hub.statistics().subscribers == 1 and flood.hub.statistics().behind == 0)
        while flood.hub.statistics().behind == 0:
            await flood.publish(1, key="0")
        begun = len(flood.published)
        for _ in range(50):
            for key in "0123":
                await flood.publish(1, key=key)
        await flood.publish(1)  # it has no key, and stands for itself
        last = len(flood.published) - 1
        seen = await numbers(listener, last)
        assert seen == [*range(len(seen) - 5), last - 4, last - 3, last - 2, last - 1, last]
        assert len(seen) - 5 <= begun
        assert flood.hub.statistics().gaps == 0
        await until(lambda: flood.hub.statistics().behind == 0)
        while flood.hub.statistics().behind == 0:
            await flood.publish(1, key="0")
        await flood.publish(5, key="0")  # nothing is gone this time, so nothing is left out
        assert await numbers(listener, len(flood.published) - 1) == list(range(last + 1, len(flood.published)))
        await listener.close()

    async def test_is_told_with_conflate_of_what_nothing_makes_up_for(self, serve):
        flood = Flood(Hub(history=20), on_gap="conflate")
        listener = await listen(await serve(flood.app), room=SMALL)
        await flood.until_behind()
        await flood.publish(50)
        await flood.publish(50, key="0")
        last = len(flood.published) - 1
        seen = await numbers(listener, last)
        assert [what for what in seen if isinstance(what, dict)] == [seen[-2]]
        assert seen[-2]["reason"] == "evicted"
        assert seen[-1] == last
        await listener.close()

    async def test_is_cut_as_stalled_and_nobody_else(self, serve):
        """peer bug 34."""
        flood = Flood(Hub(history=10), stall_timeout=2.5)
        server = await serve(flood.app)
        other, stopped = await listen(server), await listen(server, room=SMALL)
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

    async def test_gets_all_of_what_is_published_at_once_and_is_too_much_for_it(self, serve):
        """It is paused in the middle of what is written in one turn of the event loop."""
        flood = Flood(Hub())
        listener = await listen(await serve(flood.app), room=SMALL)
        await until(lambda: flood.hub.statistics().subscribers == 1 and flood.hub.statistics().behind == 0)
        for _ in range(3):
            begun = len(flood.published)
            for number in range(begun, begun + 500):
                flood.published.append(await flood.hub.publish("a", f"{number} {KILOBYTE}"))
            assert await numbers(listener, begun + 499) == list(range(begun, begun + 500))
            await until(lambda: flood.hub.statistics().behind == 0)
        await listener.close()

    async def test_hears_of_a_topic_that_is_added_meanwhile_from_then_on(self, serve):
        flood = Flood(Hub())
        listener = await listen(await serve(flood.app), room=SMALL)
        await flood.until_behind()
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

    async def test_may_leave_without_reading_on(self, serve, handler_cancellation):
        flood = Flood(Hub(history=10))
        listener = await listen(await serve(flood.app, handler_cancellation=handler_cancellation), room=SMALL)
        await flood.until_behind()
        listener.raw.reset()
        await until(lambda: flood.reasons == [CloseReason.CLIENT_LEFT])
        statistics = flood.hub.statistics()
        assert statistics.subscribers == statistics.behind == statistics.groups == 0
        await flood.publish(10)
        await listener.close()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_clients_that_stop_and_go_get_everything_in_order_or_are_told(serve, tls):
    """Ten clients, each of which pauses at its own times: each gap tells exactly what is missing between its events."""
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
        listener = await listen(server, room=SMALL, trust=trust)
        before, missed = -1, False
        while before < 1999:
            for _ in range((before * 7 + number * 13) % 40):
                await asyncio.sleep(0)
            event = await listener.event()
            if event.name == "gap":
                told = json.loads(event.data)
                assert told["after"] == flood.published[before]
                before, missed = flood.published.index(told["first"]) - 1, True
            else:
                assert event.id == flood.published[before + 1]
                before += 1
        gaps.append(missed)
        await listener.close()

    gaps: list[bool] = []
    async with asyncio.TaskGroup() as group:
        for number in range(10):
            group.create_task(follow(number))
        await until(lambda: flood.hub.statistics().subscribers == 10 and flood.hub.statistics().behind == 0)
        await flood.publish(2000)
    assert any(gaps)
