"""Streams that start with the latest value of each key, over HTTP."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web

from aiohttp_interceptors import Hub, Snapshot, as_handler, setup, start_topic_stream, topic_stream
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from tests.listener import application, listen
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import until

pytestmark = BOTH_LOOPS

BIG = "x" * 20_000  # two of them are a batch


def streams(hub: Hub, topics="t", **options):
    return application(hub, topics, replay="latest", **options)


async def publish_keys(hub: Hub, keys: str, padding: str = "", topic: str = "t") -> None:
    """Publish a value of each key, which is the key and its number."""
    for number, key in enumerate(keys, 1):
        await hub.publish(topic, f"{key}{number}{padding}", key=key)


async def open_streams(hub: Hub, count: int = 1) -> None:
    await until(lambda: hub.statistics().subscribers == count and hub.statistics().catching_up == 0)


@pytest.mark.parametrize("browser", [True, False], ids=["a browser", "another client"])
async def test_a_newcomer_gets_the_latest_value_of_each_key_and_then_what_is_new(serve, browser):
    hub = Hub(latest=100, history=1)
    server = await serve(streams(hub, retry=3000))
    await publish_keys(hub, "aba")
    listener = await listen(server, browser=browser)
    first, second = await listener.event(), await listener.event()
    assert [event.data for event in (first, second)] == ["b2", "a3"]
    assert (first.id, second.id) == (f"{hub.history.epoch}-partial", hub.history.id_of(3))
    assert listener.retry == 3000
    new = await hub.publish("t", "c4", key="c")
    assert await listener.data(1) == ["c4"]
    assert listener.last_event_id == new
    await listener.close()


async def test_without_values_a_browser_gets_the_initial_frame(serve):
    hub = Hub(latest=100)
    listener = await listen(await serve(streams(hub)))
    frame = await listener.frame()
    assert (frame.data, frame.id) == (None, hub.history.id_of(0))
    await publish_keys(hub, "a")
    assert await listener.data(1) == ["a1"]
    await listener.close()


async def test_a_client_that_is_back_gets_only_what_it_missed(serve):
    hub = Hub(latest=100)
    server = await serve(streams(hub))
    await publish_keys(hub, "abc")
    listener = await listen(server)
    await listener.data(3)
    await listener.close()
    await hub.publish("t", "a4", key="a")
    await hub.publish("t", "no b", key="b", tombstone=True)
    again = await listen(server, after=listener.last_event_id)
    assert await again.data(2) == ["a4", "no b"]
    newcomer = await listen(server)
    assert await newcomer.data(2) == ["c3", "a4"]
    await again.close()
    await newcomer.close()


@pytest.mark.parametrize(("after", "reason"), [("nonsense", "unknown"), ("0123456789-1", "foreign"), (0, "evicted")])
async def test_a_client_for_which_records_are_missing_gets_a_gap_and_all_values(serve, after, reason):
    hub = Hub(latest=100, history=1)
    server = await serve(streams(hub))
    await publish_keys(hub, "aba")
    listener = await listen(server, after=after or hub.history.id_of(0))
    gap = await listener.event()
    assert (gap.name, gap.id, json.loads(gap.data)["reason"]) == ("gap", None, reason)
    assert await listener.data(2) == ["b2", "a3"]
    assert listener.last_event_id == hub.history.id_of(3)
    await listener.close()


async def test_a_client_that_leaves_amid_the_values_gets_a_gap_and_all_again(serve):
    hub = Hub(latest=1000, latest_bytes=None)
    server = await serve(streams(hub))
    for number in range(200):
        await hub.publish("t", f"{number} {BIG}", key=str(number))
    listener = await listen(server, receive_buffer=4096)
    assert [data.split()[0] for data in await listener.data(5)] == ["0", "1", "2", "3", "4"]
    await listener.close()
    again = await listen(server, after=listener.last_event_id)
    gap = await again.event()
    assert (gap.name, json.loads(gap.data)["reason"]) == ("gap", "unknown")
    assert [data.split()[0] for data in await again.data(200)] == [str(number) for number in range(200)]
    assert again.last_event_id == hub.history.id_of(200)
    await again.close()


async def test_a_slow_client_delays_no_other_and_misses_nothing(serve):
    hub = Hub(latest=1000, latest_bytes=None, history=10_000, history_bytes=None)
    server = await serve(streams(hub))
    for number in range(200):
        await hub.publish("t", f"{number} {BIG}", key=str(number))
    slow = await listen(server, receive_buffer=4096)
    assert (await slow.data(1))[0].split()[0] == "0"
    quick = await listen(server)
    await quick.data(200)
    for number in range(5):
        await hub.publish("t", f"new {number}", key=str(number))
    assert await quick.data(5) == [f"new {number}" for number in range(5)]
    received = await slow.data(204)
    assert [data.split()[0] for data in received[:199]] == [str(number) for number in range(1, 200)]
    assert received[199:] == [f"new {number}" for number in range(5)]
    await slow.close()
    await quick.close()


async def test_a_slow_client_that_lags_gets_a_gap_and_all_values_again(serve):
    hub = Hub(latest=1000, latest_bytes=None, history=1)
    server = await serve(streams(hub))
    for number in range(200):
        await hub.publish("t", f"{number} {BIG}", key=str(number))
    slow = await listen(server, receive_buffer=4096)
    await slow.data(1)
    for number in range(5):
        await hub.publish("t", f"new {number}", key=str(number))
    await slow.data(199)
    assert (await slow.event()).name == "gap"
    received = await slow.data(200)
    assert {data.split()[0] for data in received[:195]} == {str(number) for number in range(5, 200)}
    assert received[195:] == [f"new {number}" for number in range(5)]
    await hub.publish("t", "end", key="end")
    assert await slow.data(1) == ["end"]
    await slow.close()


async def test_wildcards_and_select_choose_the_values(serve):
    hub = Hub(latest=100)

    def visible(context, record) -> bool:
        return record.key == context.request.query["user"]

    server = await serve(streams(hub, "orders.*", select=visible))
    for topic, key in [("orders.eu", "anna"), ("orders.us", "bert"), ("orders.us", "anna"), ("news", "anna")]:
        await hub.publish(topic, f"{topic} of {key}", key=key)
    anna, nobody = await listen(server, "/?user=anna"), await listen(server, "/?user=nobody")
    assert await anna.data(2) == ["orders.eu of anna", "orders.us of anna"]
    assert anna.last_event_id == hub.history.id_of(4)
    await hub.publish("orders.eu", "for nobody", key="nobody")
    assert await nobody.data(1) == ["for nobody"]
    await anna.close()
    await nobody.close()


async def test_the_values_of_a_topic_that_is_added_come_first(serve):
    hub, subscribers = Hub(latest=100), []
    app = streams(hub, "a", stream_ready=lambda subscriber, context: subscribers.append(subscriber))
    server = await serve(app)
    await publish_keys(hub, "k", topic="a")
    await publish_keys(hub, "lml", topic="b")
    listener = await listen(server)
    assert await listener.data(1) == ["k1"]
    await open_streams(hub)
    subscribers[0].add("b")
    await hub.publish("b", "m4", key="m")
    assert await listener.data(3) == ["m2", "l3", "m4"]
    await listener.close()


async def test_a_topic_that_stream_ready_adds_at_once_belongs_to_the_table(serve):
    hub = Hub(latest=100)
    server = await serve(streams(hub, "a", stream_ready=lambda subscriber, context: subscriber.add("b")))
    await publish_keys(hub, "k", topic="a")
    await publish_keys(hub, "lm", topic="b")
    listener = await listen(server)
    assert await listener.data(3) == ["k1", "l1", "m2"]
    await listener.close()


async def test_a_newcomer_to_a_finished_topic_gets_its_values_and_the_end_and_204_when_it_is_back(serve):
    hub = Hub(latest=100)
    server = await serve(streams(hub))
    await publish_keys(hub, "aba")
    await hub.finish("t", "end", key="end")
    listener = await listen(server)
    assert [event.data for event in await listener.rest()] == ["b2", "a3", "end"]
    assert listener.complete
    again = await listen(server, after=listener.last_event_id)
    assert again.status == 204
    await listener.close()
    await again.close()


async def test_many_newcomers_get_the_same_table_while_values_change(serve):
    hub = Hub(latest=1000)
    server = await serve(streams(hub))
    await publish_keys(hub, "abcdefghij", "x" * 5000)
    listeners = []
    for number in range(20):
        listeners.append(await listen(server))
        await hub.publish("t", f"{'abcde'[number % 5]} {number}", key="abcde"[number % 5])
    await hub.publish("t", "z", key="z")
    for listener in listeners:
        table, seen = {}, []
        while (data := (await listener.event()).data) != "z":
            table[data[0]] = data
            seen.append(data)
        assert len(set(seen)) == len(seen)
        assert {key: table[key] for key in "abcde"} == {key: f"{key} {15 + n}" for n, key in enumerate("abcde")}
        assert set(table) == set("abcdefghij")
        await listener.close()


async def test_a_server_that_is_started_later_has_the_same_table(serve):
    log = MemoryLog()
    first = Hub(MemoryBroker(log), latest=100, history=1)
    await serve(streams(first))
    await publish_keys(first, "abac")
    await first.publish("t", "no c", key="c", tombstone=True)
    second = Hub(MemoryBroker(log), latest=100, history=1)
    listener = await listen(await serve(streams(second)))
    assert await listener.data(2) == ["b2", "a3"]
    await first.publish("t", "d6", key="d")
    assert await listener.data(1) == ["d6"]
    await listener.close()


async def test_statistics_count_the_values(serve):
    hub, opened = Hub(latest=100), []
    server = await serve(streams(hub, stream_ready=lambda subscriber, context: opened.append(context.stream)))
    await publish_keys(hub, "aba")
    listener = await listen(server)
    await listener.data(2)
    await open_streams(hub)
    statistics = opened[0].statistics()
    assert (statistics.events, statistics.bytes) == (2, len(listener.body))
    assert (hub.statistics().latest, hub.statistics().delivered) == (2, 2)
    await listener.close()


async def test_a_head_request_takes_no_values(serve):
    hub = Hub(latest=100)
    server = await serve(streams(hub))
    await publish_keys(hub, "ab")
    listener = await listen(server, method="HEAD")
    assert (listener.status, listener.body) == (200, b"")
    await until(lambda: hub.statistics().subscribers == 0)
    await listener.close()


async def test_a_stream_that_is_ended_before_its_client_reads_still_gets_the_values(serve):
    hub, opened = Hub(latest=1000, latest_bytes=None), []
    server = await serve(streams(hub, stream_ready=lambda subscriber, context: opened.append(subscriber)))
    for number in range(100):
        await hub.publish("t", f"{number} {BIG}", key=str(number))
    listener = await listen(server, receive_buffer=4096)
    await until(lambda: opened)
    opened[0].close()
    assert [event.data.split()[0] for event in await listener.rest()] == [str(number) for number in range(100)]
    assert (listener.complete, listener.last_event_id) == (True, hub.history.id_of(100))
    await listener.close()


@pytest.mark.parametrize("make", [start_topic_stream, topic_stream])
def test_a_hub_that_keeps_no_values_is_refused(make):
    words = r"replay='latest' needs a Hub that keeps the latest records, such as Hub\(latest=10_000\)"
    with pytest.raises(ValueError, match=words):
        make(Hub(), "t", replay="latest")


def test_a_snapshot_and_the_values_exclude_each_other():
    with pytest.raises(ValueError, match="a stream starts with a snapshot or with a replay of records, not with both"):
        start_topic_stream(Hub(latest=1), "t", replay="latest", snapshot=lambda context: Snapshot(["state"]))


async def test_two_routes_of_one_hub_start_differently(serve):
    hub, app = Hub(latest=100), web.Application()
    setup(app, hub)
    for path, replay in [("/table", "latest"), ("/two", 2), ("/new", 0)]:
        app.router.add_get(path, as_handler(start_topic_stream(hub, "t", replay=replay, heartbeat=None)))
    server = await serve(app)
    await publish_keys(hub, "abaa")
    listeners = [await listen(server, path) for path in ("/table", "/two", "/new")]
    await open_streams(hub, 3)
    await hub.publish("t", "end", key="end")
    received = await asyncio.gather(*[each.data(count) for each, count in zip(listeners, [3, 3, 1], strict=True)])
    assert received == [["b2", "a4", "end"], ["a3", "a4", "end"], ["end"]]
    for listener in listeners:
        await listener.close()
