"""The limits of a Hub's history in all: what is evicted first, and which client is told of it."""

from __future__ import annotations

import tracemalloc

import pytest

from aiohttp_interceptors import CloseReason, Event, Hub
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.hub import history as history_module
from aiohttp_interceptors.hub.history import History
from aiohttp_interceptors.hub.topic_history import RetentionPolicy
from tests.hub.sink import Sink, drain, live, start
from tests.waiting import run_other_tasks, until


def topics_of(hub):
    return sorted({record.topic for record in hub.history.read(0, [">"]).records})


async def publish(hub, *topics):
    return [await hub.publish(topic, "x") for topic in topics]


async def read(hub, *topics, **options):
    """Return what a client of some topics is sent immediately."""
    sink = start(hub, *topics, **options)
    await until(lambda: sink.subscription.live)
    sink.subscription.close()
    return sink.texts


class TestTopics:
    async def test_the_topic_that_was_published_to_first_is_evicted_with_all_its_records(self):
        hub = Hub(max_topics=2)
        ids = await publish(hub, "a", "b", "b", "a", "c")
        assert topics_of(hub) == ["a", "c"]
        assert (hub.statistics().topics, hub.statistics().records, hub.statistics().evicted) == (2, 3, 2)
        assert await read(hub, "b", after=ids[1]) == ["gap"]
        assert await read(hub, "b", after=ids[2]) == []
        assert await read(hub, "a", after=ids[0]) == ["x"]

    @pytest.mark.parametrize("how", ["stream", "listener", "add", "resumed"])
    async def test_a_stream_that_begins_to_read_a_topic_by_its_name_uses_it(self, how):
        hub = Hub(max_topics=2)
        ids = await publish(hub, "a", "b")
        if how == "stream":
            await live(hub, "a", "unknown")
        elif how == "listener":
            hub.listen("a")
        elif how == "resumed":
            assert await read(hub, "a", after=ids[0]) == []
        else:
            stream = await live(hub, "other")
            stream.subscriber.add("a")
        await publish(hub, "c")
        assert topics_of(hub) == ["a", "c"]

    async def test_a_wildcard_and_an_open_stream_alone_are_no_use(self):
        hub = Hub(max_topics=2)
        await live(hub, "a")
        await publish(hub, "a", "b")
        await live(hub, "*")
        await publish(hub, "c")
        assert topics_of(hub) == ["b", "c"]

    async def test_an_open_stream_of_an_evicted_topic_goes_on_without_a_gap(self):
        hub = Hub(max_topics=1)
        stream = await live(hub, "a")
        await publish(hub, "a", "b", "a", "b", "a")
        await run_other_tasks(1)
        stream.pause()
        stream.resume()
        await run_other_tasks(1)
        assert stream.texts == ["x"] * 3

    async def test_a_stalled_stream_gets_a_gap(self):
        hub = Hub(max_topics=1)
        stream, ending = await live(hub, "a"), await live(hub, "a", on_gap="close")
        stream.pause()
        ending.pause()
        await publish(hub, "a", "b")
        stream.resume()
        ending.resume()
        await until(lambda: stream.texts and ending.ends)
        assert stream.texts == ["gap"]
        assert ending.ends == [(CloseReason.LAGGED, None)]

    async def test_a_topic_that_is_used_again_has_the_gap_still(self):
        hub = Hub(max_topics=1)
        ids = await publish(hub, "a", "a", "b", "a")
        assert await read(hub, "a", after=ids[0]) == ["gap", "x"]
        assert await read(hub, "a", after=ids[1]) == ["x"]

    async def test_a_record_that_is_too_large_for_its_topic_evicts_no_other_topic(self):
        hub = Hub(max_topics=1, history_bytes=100)
        await publish(hub, "a")
        await hub.publish("b", "x" * 200)
        assert topics_of(hub) == ["a"]


class TestBytes:
    async def test_the_oldest_records_of_the_topic_that_was_not_used_for_longest_are_evicted(self):
        hub = Hub(max_bytes=1000)
        ids = [await hub.publish(topic, "x" * 200) for topic in "aabb"]
        await hub.publish("b", "x" * 150)
        assert [record.topic for record in hub.history.read(0, [">"]).records] == ["a", "b", "b", "b"]
        assert hub.history.bytes <= 1000
        assert hub.statistics().evicted == 1
        assert len(await read(hub, "a", after=ids[0])) == 1
        assert (await read(hub, "a", "b", after=hub.history.id_of(0)))[0] == "gap"

    async def test_a_single_topic_keeps_its_latest_records(self):
        hub = Hub(max_bytes=1000)
        for number in range(100):
            await hub.publish("a", f"{number:0200}")
        assert [int(record.event.data) for record in hub.history.read(0, ["a"]).records] == [96, 97, 98, 99]

    async def test_an_event_larger_than_all_of_them_may_be_is_sent_and_not_kept(self):
        hub = Hub(max_bytes=1000)
        stream = await live(hub, "a")
        first, _ = await publish(hub, "a", "b")
        last = await hub.publish("a", "x" * 2000)
        await run_other_tasks(1)
        assert [len(text) for text in stream.texts] == [1, 2000]
        assert await read(hub, "a", after=last) == []
        assert await read(hub, "a", after=first) == ["gap"]
        await publish(hub, "a")
        assert topics_of(hub) == ["a", "b"]

    async def test_an_event_larger_than_all_of_them_may_be_evicts_no_other_topic(self):
        hub = Hub(max_bytes=1000)
        first, _ = await publish(hub, "b", "b")
        await publish(hub, "a")
        await hub.publish("a", "x" * 2000)
        assert topics_of(hub) == ["b"]
        assert (hub.statistics().evicted, hub.history.bytes) == (2, 2 * len(hub.history.newest("b").frame))
        assert await read(hub, "b", after=first) == ["x"]
        await hub.publish("c", "x" * 2000)
        assert topics_of(hub) == ["b"]


class TestManyTopics:
    """Of more topics than are remembered, one that is not known may have lost what is newer than a stream has."""

    @pytest.fixture(autouse=True)
    def few_are_remembered(self, monkeypatch):
        monkeypatch.setattr(history_module, "MAX_EMPTY_TOPICS", 1)

    @pytest.fixture
    async def hub(self):
        return Hub(max_topics=1)

    async def stream(self, hub, **options):
        """Open a stream of a topic that is not used, while others are."""
        stream = await live(hub, "quiet", **options)
        await publish(hub, *"abcdef")
        await run_other_tasks(1)
        return stream

    async def test_a_stream_that_an_ephemeral_event_has_paused_has_no_gap(self, hub):
        stream = await self.stream(hub, sink=Sink(room=1))
        await hub.publish("quiet", "x", ephemeral=True)
        await until(lambda: stream.paused)
        await drain(stream)
        await publish(hub, "quiet")
        await until(lambda: len(stream.texts) == 2)
        assert stream.texts == ["x", "x"]

    async def test_a_stream_that_is_paused_before_it_is_sent_an_event_has_no_gap(self, hub):
        stream = await self.stream(hub)
        await publish(hub, "quiet")
        stream.pause()
        await drain(stream)
        assert stream.texts == ["x"]

    async def test_a_stream_that_is_paused_before_it_is_told_who_joins_has_no_gap(self, hub):
        stream = await self.stream(hub, presence_event="who")
        listener = hub.listen("quiet", identity="ann")
        stream.pause()
        await drain(stream)
        assert "gap" not in stream.texts
        await listener.aclose()

    async def test_a_stream_that_was_paused_meanwhile_has_one(self, hub):
        stream = await live(hub, "quiet")
        stream.pause()
        await publish(hub, *"abcdef")
        await drain(stream)
        assert stream.texts == ["gap"]


async def test_the_latest_records_are_kept_with_their_own_limits():
    hub = Hub(max_topics=1, latest=10)
    for topic in "abc":
        await hub.publish(topic, topic, key="k")
    assert hub.statistics().topics == 1
    assert await read(hub, ">", replay="latest") == ["a", "b", "c"]


async def test_a_finished_topic_without_records_remains_finished():
    hub = Hub(max_topics=1)
    (first,) = await publish(hub, "a")
    await hub.finish("a", "end")
    await publish(hub, "b")
    stream = start(hub, "a", after=first)
    await until(lambda: stream.ends)
    while stream.subscription.write_backlog():
        pass
    assert stream.texts == ["gap"]
    assert stream.ends == [(CloseReason.CLOSED, None)]


async def test_with_a_broker_each_process_has_its_own_limits():
    log = MemoryLog()
    small, large = Hub(MemoryBroker(log), max_topics=1), Hub(MemoryBroker(log), max_topics=None, max_bytes=None)
    for hub in small, large:
        hub.open()
        await until(lambda hub=hub: hub.ready)
    ids = await publish(small, "a", "a", "b")
    await until(lambda: small.history.end == large.history.end == 3)
    assert await read(small, "a", after=ids[0]) == ["gap"]
    assert await read(large, "a", after=ids[0]) == ["x"]
    for hub in small, large:
        await hub.close()


async def test_a_process_that_starts_keeps_of_a_larger_log_what_was_used_last():
    log = MemoryLog()
    before = Hub(MemoryBroker(log))
    ids = await publish(before, *"abcabc")
    await before.close()
    hub = Hub(MemoryBroker(log), max_bytes=60)
    hub.open()
    await until(lambda: hub.ready)
    assert hub.history.bytes <= 60
    assert (topics_of(hub), hub.statistics().evicted) == (["b", "c"], 4)
    assert await read(hub, "a", after=ids[0]) == ["gap"]
    assert await read(hub, "a", after=ids[3]) == []
    assert await read(hub, "b", after=ids[1]) == ["x"]
    await hub.close()


async def test_the_first_eviction_is_logged(logged):
    hub = Hub(max_topics=2)
    await publish(hub, *"abcdef")
    (line,) = [line for line in logged if line["event"] == "hub_history_full"]
    assert (line["log_level"], line["topics"], line["records"]) == ("warning", 3, 3)


@pytest.mark.parametrize("name", ["max_topics", "max_bytes"])
@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_invalid_limits_are_refused(name, value, error):
    with pytest.raises(error, match=f"{name} is "):
        Hub(**{name: value})


@pytest.mark.parametrize("age", [None, 3600.0, 0.01])
@pytest.mark.parametrize("limits", [{"max_topics": 10}, {"max_bytes": 2000}, {"max_topics": 1000}])
def test_topics_that_were_evicted_leave_no_memory(monkeypatch, age, limits):
    """Neither those that the limits evicted, nor those whose records expired before."""
    monkeypatch.setattr(history_module, "MAX_EMPTY_TOPICS", 10)
    monkeypatch.setattr(history_module, "HEAP_SLACK", 10)
    history = History(RetentionPolicy(10, None, age, **limits))

    def append(times):
        for _ in range(times):
            history.append(f"a.{history.end}.b", Event("x" * 100), str(history.end), float(history.end) / 1000)

    append(2000)
    tracemalloc.start()
    try:
        append(1_500)  # replaces all that was not traced
        before, _ = tracemalloc.get_traced_memory()
        append(2_500)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 30_000 + before // 5  # a heap is compacted when half of its entries are left over
    assert history.topics <= 1000


@pytest.mark.parametrize("limits", [{"max_topics": 100}, {"max_bytes": 20_000}])
def test_the_cost_of_a_publish_beyond_the_limits_is_bounded(operations, limits):
    """Also if all topics are used again and again, so that the order of their uses always changes."""

    def cost(topics):
        history = History(RetentionPolicy(10, None, 3600.0, **limits))
        for number in range(topics):
            history.append(f"t{number}", Event("x"), None, 0.0)

        def publish():
            for number in range(2000):
                history.append(f"t{number * 7919 % topics}", Event("x" * 100), None, 0.0)

        return operations(publish) / 2000

    assert cost(2000) < cost(200) * 1.5
