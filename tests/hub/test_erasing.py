"""Erased topics: no stream is sent what was erased, and what a client misses because of it is a gap."""

from __future__ import annotations

import asyncio
import json

import pytest

from aiohttp_interceptors import BrokerDown, BrokerRefused, CloseReason, Gap, OutcomeUnknown, TopicFinished
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.brokers.sqlite import SqliteBroker
from aiohttp_interceptors.hub.broker import Entry, Trimmed
from aiohttp_interceptors.hub.history import History
from aiohttp_interceptors.hub.message import Kind, decode_payload, encode_payload
from aiohttp_interceptors.hub.topic_history import RetentionPolicy
from tests.hub.sink import Sink, drain, live, start, subscribe
from tests.hub.test_rolling_upgrade import Process
from tests.hub.watcher import Cable
from tests.waiting import run_other_tasks, until, within

pytestmark = pytest.mark.usefixtures("quick")

BIG = "x" * 20_000  # two of them are a batch


@pytest.fixture(params=["alone", "memory", "sqlite"])
def new_hub(request, hub_on, tmp_path):
    """Make a Hub without a broker, or with one. Hubs of one test share their broker's log."""
    log = MemoryLog()

    def make(**options):
        if request.param == "alone":
            return hub_on(**options)
        return hub_on(MemoryBroker(log) if request.param == "memory" else SqliteBroker(tmp_path / "hub.db"), **options)

    return make


@pytest.fixture
async def hub(new_hub):
    return await new_hub(latest=100)


@pytest.fixture(params=["memory", "sqlite"])
async def new_node(request, hub_on, tmp_path):
    """Make processes of one Hub."""
    log = MemoryLog()
    return lambda **options: hub_on(
        MemoryBroker(log) if request.param == "memory" else SqliteBroker(tmp_path / "hub.db"), **options
    )


async def publish(hub, topic, *texts, **options):
    """Publish texts, wait until this process has them, and return their IDs."""
    ids = [await hub.publish(topic, text, **options) for text in texts]
    await until(lambda: hub.history.resolve(ids[-1])[1] is None)
    return ids


def gaps(sink):
    return [json.loads(frame.data) for frame in sink.frames if frame.name == "gap"]


async def read(hub, *topics, **options):
    """Return what a client of some topics is sent immediately."""
    sink = start(hub, *topics, **options)
    await until(lambda: sink.subscription.live)
    sink.subscription.close()
    return sink.texts


async def test_the_records_of_the_topic_are_gone_and_those_of_others_stay(hub):
    await publish(hub, "a", "1", "2")
    await publish(hub, "a.b", "3")
    await publish(hub, "b", "4")
    await hub.erase("a")
    assert [record.topic for record in hub.history.read(0, [">"]).records] == ["a.b", "b"]
    assert (hub.statistics().records, hub.statistics().topics) == (2, 2)
    assert hub.history.bytes == sum(len(record.frame) for record in hub.history.read(0, [">"]).records)


async def test_a_client_with_an_id_before_the_last_erased_record_gets_a_gap(hub):
    first, second, last = await publish(hub, "a", "1", "2", "3")
    await hub.erase("a")
    assert await read(hub, "a", after=first) == ["gap"]
    assert await read(hub, ">", after=second) == ["gap"]
    assert await read(hub, "a", after=last) == []
    after = await publish(hub, "a", "4")
    assert await read(hub, "a", after=first) == ["gap", "4"]
    assert await read(hub, "a", after=last) == ["4"]
    assert await read(hub, "a", after=after[0]) == []


async def test_it_is_no_gap_for_streams_of_other_topics(hub):
    (first,) = await publish(hub, "b", "1")
    await publish(hub, "a", "2")
    await publish(hub, "b", "3")
    await hub.erase("a")
    assert await read(hub, "b", after=first) == ["3"]


@pytest.mark.parametrize("on_gap", ["signal", "close", "conflate"])
async def test_a_stream_that_has_everything_goes_on_without_a_gap(hub, on_gap):
    sink = await live(hub, "a", on_gap=on_gap)
    await publish(hub, "a", "1")
    await hub.erase("a")
    await publish(hub, "a", "2")
    await until(lambda: sink.texts == ["1", "2"])
    sink.pause()
    await publish(hub, "a", "3")
    await drain(sink)
    assert sink.texts == ["1", "2", "3"]
    assert sink.ends == []


async def test_what_was_published_immediately_before_is_sent_to_open_streams(new_hub):
    hub = await new_hub()
    sink = await live(hub, "a")
    await hub.publish("a", "1")
    await hub.erase("a")
    assert sink.texts == ["1"]
    assert await read(hub, "a", replay=10) == []


async def test_a_stalled_stream_gets_a_gap_in_place_of_the_erased_records(hub):
    sink = await live(hub, "a", "b")
    sink.pause()
    await publish(hub, "a", "1", "2")
    await publish(hub, "b", "3")
    await hub.erase("a")
    await publish(hub, "a", "4")
    await drain(sink)
    await until(lambda: len(sink.texts) == 3)
    assert sink.texts == ["gap", "3", "4"]


async def test_a_stalled_stream_with_on_gap_close_ends(hub):
    sink = await live(hub, "a", on_gap="close")
    sink.pause()
    await publish(hub, "a", "1")
    await hub.erase("a")
    sink.resume()
    await until(lambda: sink.ends)
    assert sink.ends == [(CloseReason.LAGGED, None)]
    assert sink.texts == []


async def test_a_stalled_stream_that_conflates_gets_a_gap_also_if_the_last_record_superseded_the_others(hub):
    sink = await live(hub, "a", on_gap="conflate")
    sink.pause()
    await publish(hub, "a", "1", "2", key="k")
    await hub.erase("a")
    await drain(sink)
    await until(lambda: sink.texts)
    assert sink.texts == ["gap"]


async def test_a_stream_that_was_closed_does_not_write_erased_records_afterwards(hub):
    sink = await live(hub, "a")
    sink.pause()
    await publish(hub, "a", "1", "2")
    sink.subscription.close()
    await hub.erase("a")
    sink.paused = False
    while sink.subscription.write_backlog():
        await run_other_tasks(1)
    assert sink.texts == ["gap"]


async def test_newcomers_get_nothing_of_it_by_replay_or_as_latest_records(hub):
    await publish(hub, "a", "1", "2", key="k")
    await publish(hub, "a", "3")
    await hub.erase("a")
    assert hub.statistics().latest == 0
    assert await read(hub, "a", replay=10) == []
    assert await read(hub, "a", replay="latest") == []
    await publish(hub, "a", "4", key="k")
    assert await read(hub, "a", replay=10) == ["4"]
    assert await read(hub, "a", replay="latest") == ["4"]


async def test_a_newcomer_that_is_being_sent_the_latest_records_is_sent_no_erased_one(hub):
    for topic in "a", "b":
        await publish(hub, topic, BIG + "1", key="1")
        await publish(hub, topic, BIG + "2", key="2")
        await publish(hub, topic, BIG + "3", key="3")
    sink = Sink(room=1)
    start(hub, "a", "b", replay="latest", sink=sink)
    await until(lambda: sink.texts)
    sent = list(sink.texts)
    assert len(sent) < 3
    await hub.erase("a")
    await drain(sink)
    await until(lambda: sink.texts[-1:] == [BIG + "3"])
    assert sink.texts == [*sent, BIG + "1", BIG + "2", BIG + "3"]
    assert sink.subscription.live
    assert await read(hub, "a", "b", after=sink.last_event_id) == []


async def test_a_closed_newcomer_is_sent_no_erased_latest_record_afterwards(hub):
    for key in "1", "2", "3", "4":
        await publish(hub, "a", BIG + key, key=key)
    sink = Sink(room=1)
    start(hub, "a", replay="latest", sink=sink)
    await until(lambda: sink.texts)
    sent = list(sink.texts)
    sink.subscription.close()
    await hub.erase("a")
    sink.room, sink.paused = float("inf"), False
    while sink.subscription.write_backlog():
        pass
    assert sink.texts == sent


async def test_a_subscription_that_has_not_started_gets_a_gap_and_nothing_else(hub):
    before = await publish(hub, "a", "1")
    await publish(hub, "a", "2")
    sink = subscribe(hub, "a", after=before[0])
    await hub.erase("a")
    sink.subscription.start()
    await until(lambda: sink.texts)
    assert sink.texts == ["gap"]
    assert gaps(sink) == [{"reason": "evicted", "after": before[0], "first": None}]


async def test_a_listener_that_has_read_everything_goes_on(hub):
    async with hub.listen(["a", "b"]) as records:
        await publish(hub, "a", "1")
        assert (await within(anext(records))).event.data == "1"
        await hub.erase("a")
        await publish(hub, "a", "2")
        assert (await within(anext(records))).event.data == "2"


async def test_a_listener_after_an_older_id_gets_a_gap(hub):
    ids = await publish(hub, "a", "1", "2")
    await hub.erase("a")
    async with hub.listen("a", after=ids[0], on_gap="signal") as records:
        assert isinstance(await within(anext(records)), Gap)


async def test_erasing_again_or_a_topic_without_records_changes_nothing(hub):
    ids = await publish(hub, "a", "1")
    await hub.erase("a")
    await hub.erase("a")
    await hub.erase("unused")
    await publish(hub, "b", "2")
    assert await read(hub, ">", after=ids[0]) == ["2"]


async def test_a_retry_of_a_publish_before_the_erasure_does_not_publish_again(hub):
    ids = await publish(hub, "a", "1", idempotency_key="k")
    await hub.erase("a")
    assert await hub.publish("a", "1", idempotency_key="k") == ids[0]
    assert hub.history.records == 0


async def test_records_that_the_history_has_evicted_before_are_erased_too(new_hub):
    hub = await new_hub(history=1, latest=10)
    ids = await publish(hub, "a", "1", key="1")
    await publish(hub, "a", "2", key="2")
    await hub.erase("a")
    assert await read(hub, "a", replay="latest") == []
    assert await read(hub, "a", after=ids[0]) == ["gap"]


async def test_a_finished_topic_can_be_erased_and_remains_finished(hub):
    ids = await publish(hub, "a", "1")
    last = await hub.finish("a", "end")
    await hub.erase("a")
    assert hub.history.is_finished("a")
    with pytest.raises(TopicFinished):
        await hub.publish("a", "2")
    for after, texts in (None, []), (ids[0], ["gap"]), (last, []):
        sink = start(hub, "a", after=after)
        await until(lambda sink=sink: sink.ends)
        while sink.subscription.write_backlog():
            pass
        assert sink.texts == texts
        assert sink.ends == [(CloseReason.CLOSED, None)]


def test_a_topic_that_is_finished_again_by_an_erasure_is_forgotten_after_those_that_were_finished_before():
    history = History(RetentionPolicy(10, None, 10.0))
    for offset, topic in enumerate("aba", 1):
        history.finish(topic, offset, float(offset), None)
    history.expire(12.5)
    assert [history.is_finished(topic) for topic in "ab"] == [True, False]
    assert history.next_expiry() == 13.0


async def test_invalid_topics_are_refused(hub):
    await publish(hub, "a", "1")
    for error, topic in (
        (ValueError, "a.*"),
        (ValueError, ">"),
        (ValueError, "_hub"),
        (TypeError, b"a"),
        (ValueError, ""),
    ):
        with pytest.raises(error):
            await hub.erase(topic)
    assert hub.history.records == 1


async def test_it_can_be_called_in_another_thread(hub):
    await publish(hub, "a", "1")
    future = await asyncio.to_thread(hub.erase_threadsafe, "a")
    assert await within(asyncio.wrap_future(future)) is None
    assert hub.history.records == 0


# With a broker.


async def test_all_processes_erase_and_agree_on_what_came_before(new_node, logged):
    one, other = await new_node(latest=10), await new_node(latest=10)
    ids = await publish(one, "a", "1", "2")
    await one.erase("a")
    await publish(one, "a", "3")
    later = await new_node(latest=10)
    for hub in one, other, later:
        await until(lambda hub=hub: hub.history.end == one.history.end)
        assert await read(hub, "a", replay=10) == ["3"]
        assert await read(hub, "a", replay="latest") == ["3"]
        assert await read(hub, "a", after=ids[0]) == ["gap", "3"]
        assert await read(hub, "a", after=ids[1]) == ["3"]
    assert not [line for line in logged if line["event"] == "hub_entry_skipped"]


async def test_a_topic_that_was_finished_is_finished_in_a_process_that_starts_later(new_node):
    one = await new_node()
    await publish(one, "a", "1")
    await one.finish("a", "end")
    await one.erase("a")
    later = await new_node()
    with pytest.raises(TopicFinished):
        await later.publish("a", "2")
    assert await read_to_the_end(later, "a") == []


async def test_a_topic_that_another_process_finishes_meanwhile_is_finished_in_one_that_starts_later(hub_on):
    log = MemoryLog()

    class Slow(MemoryBroker):
        """Another process is faster than the first erasure of this one."""

        async def publish(self, topic, payload, **options):
            if decode_payload(payload).kind is Kind.ERASURE and not other.history.is_finished("a"):
                await other.finish("a", "end")
            return await super().publish(topic, payload, **options)

    one, other = await hub_on(Slow(log)), await hub_on(MemoryBroker(log))
    await publish(one, "a", "1")
    await one.erase("a")
    later = await hub_on(MemoryBroker(log))
    for hub in one, other, later:
        with pytest.raises(TopicFinished):
            await hub.publish("a", "2")
    assert await read_to_the_end(later, "a") == []


async def test_a_topic_can_be_finished_and_erased_at_once(new_node):
    hub = await new_node()
    await publish(hub, "a", "1")
    await within(asyncio.gather(hub.finish("a", "end"), hub.erase("a")))
    later = await new_node()
    for each in hub, later:
        assert await read_to_the_end(each, "a") == []


async def test_a_newcomer_gets_no_latest_record_that_may_have_been_erased_by_a_trimmed_entry():
    process = Process(latest=10)
    for offset, key in enumerate("abcd", 1):
        payload = encode_payload(b"data: %b\n\n" % BIG.encode(), key, ephemeral=False)
        process.feed([Entry(offset, "a", payload)])
    sink = Sink(room=1)
    start(process.hub, "a", replay="latest", sink=sink)
    await until(lambda: sink.texts)
    sent = len(sink.texts)
    process.feed(Trimmed(9))
    await drain(sink)
    await until(lambda: sink.texts[-1:] == ["gap"])
    assert sink.texts[sent:] == ["gap"]


async def test_how_a_run_ended_is_known_in_a_process_that_starts_later(new_node):
    async def answer():
        yield "secret"

    one = await new_node()
    run = await one.run("a", answer())
    await within(run.wait())
    await one.erase("a")
    later = await new_node()
    assert repr(later.find_run("a")) == repr(one.find_run("a")) == repr(run)


async def test_the_key_of_the_end_is_erased(hub):
    await hub.finish("a", "end", key="secret")
    await hub.erase("a")
    assert hub.history.finished_by("a") is None


async def test_the_key_of_the_end_that_an_application_gave_is_erased(tmp_path, hub_on):
    hub = await hub_on(SqliteBroker(tmp_path / "hub.db"))
    await hub.finish("a", "end", key="secret")
    await hub.erase("a")
    assert hub.history.finished_by("a") is None
    await hub.close()
    assert b"secret" not in (tmp_path / "hub.db").read_bytes()


async def read_to_the_end(hub, *topics):
    sink = start(hub, *topics)
    await until(lambda: sink.ends)
    while sink.subscription.write_backlog():
        pass
    return sink.texts


async def test_a_process_that_was_cut_off_drops_the_records_when_it_is_back(hub_on):
    log = MemoryLog()
    one, other = await hub_on(MemoryBroker(log)), await hub_on(Cable(log))
    ids = await publish(one, "a", "1", "2")
    await until(lambda: other.history.end == one.history.end)
    other._broker.cut = True
    await until(lambda: not other.ready)
    sink = start(other, "a", after=ids[0])
    await publish(one, "a", "3")
    await one.erase("a")
    await publish(one, "a", "4")
    assert sink.texts == ["2"]
    other._broker.cut = False
    await until(lambda: sink.texts[-1] == "4")
    assert sink.texts == ["2", "gap", "4"]
    assert await read(other, "a", replay=10) == ["4"]


async def test_while_the_broker_is_down_it_raises_and_nothing_is_erased(hub_on):
    log = MemoryLog()
    hub = await hub_on(MemoryBroker(log))
    await publish(hub, "a", "1")
    log.stop()
    with pytest.raises(BrokerDown):
        await hub.erase("a")
    assert await read(hub, "a", replay=10) == ["1"]
    log.restart()
    await until(lambda: hub.ready)
    assert await read(hub, "a", replay=10) == ["1"]


async def test_a_broker_that_cannot_erase_is_refused_before_anything_is_changed(hub_on):
    class Simple:
        """A broker of an application, without ``erase``."""

        def __init__(self):
            broker = MemoryBroker(MemoryLog())
            self.publish, self.tail, self.close = broker.publish, broker.tail, broker.close

    hub = await hub_on(Simple())
    await publish(hub, "a", "1")
    with pytest.raises(BrokerRefused, match=r"'a'.*has no method erase"):
        await hub.erase("a")
    assert await read(hub, "a", replay=10) == ["1"]
    assert hub.history.end == 1


async def test_a_second_call_completes_what_was_interrupted_between_the_two_steps(hub_on):
    log = MemoryLog()
    broker = MemoryBroker(log)
    hub = await hub_on(broker)
    ids = await publish(hub, "a", "secret")
    erase = broker.erase

    async def die(topic, before):
        raise BrokerDown("the server was killed")

    broker.erase = die
    with pytest.raises(OutcomeUnknown, match=r"'a' is erased in the memory.*call erase again: the server was killed"):
        await hub.erase("a")
    assert payloads(log, "a")[0].endswith(b"secret\n\n")
    # A process that reads the old entries drops them when it comes to the erasure.
    later = await hub_on(MemoryBroker(log))
    for each in hub, later:
        assert await read(each, "a", replay=10) == []
        assert await read(each, "a", after=f"{ids[0].partition('-')[0]}-0") == ["gap"]
    broker.erase = erase
    await hub.erase("a")
    assert payloads(log, "a")[:2] == [b"", b""]


def payloads(log, topic):
    return [stored.payload for stored in log._entries if stored.topic == topic]


async def test_two_processes_may_erase_at_once_while_a_third_one_publishes(new_node):
    one, other, third = [await new_node() for _ in range(3)]
    await publish(third, "a", *map(str, range(100)))
    done = asyncio.Event()
    published = []

    async def go_on():
        while not done.is_set():
            published.append(await third.publish("a", "more"))
            await asyncio.sleep(0)

    publishing = asyncio.create_task(go_on())
    await within(asyncio.gather(one.erase("a"), other.erase("a")))
    done.set()
    await within(publishing)
    last = (await publish(third, "a", "last"))[0]
    for hub in one, other, third, await new_node():
        await until(lambda hub=hub: hub.history.resolve(last)[1] is None)
        texts = await read(hub, "a", replay=1000)
        assert set(texts[:-1]) <= {"more"}
        assert texts[-1] == "last"


async def test_a_publish_that_was_called_before_is_erased_and_one_that_is_called_after_is_not(new_node):
    hub = await new_node()
    calls = [hub.publish("a", "before"), hub.erase("a"), hub.publish("a", "after")]
    await within(asyncio.gather(*calls))
    await until(lambda: hub.history.records == 1)
    assert await read(hub, "a", replay=10) == ["after"]


async def test_erasures_are_no_published_events(new_node):
    hub = await new_node()
    await publish(hub, "a", "1")
    await hub.erase("a")
    assert hub.statistics().published == 1


async def test_the_file_of_a_sqlite_broker_has_nothing_of_it_any_more(hub_on, tmp_path):
    hub, other = [await hub_on(SqliteBroker(tmp_path / "hub.db")) for _ in range(2)]
    for size in 0, 100, 3000, 100_000:
        await publish(hub, "a", "secret" + "x" * size, "x" * size + "secret", key="secret")
        await publish(hub, "b", "public" + "x" * size)
    await until(lambda: other.history.end == hub.history.end)
    await hub.erase("a")
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
    assert b"public" in content
    assert b"secret" not in content
