"""Finished topics: their last event is the last that anybody gets, and their streams end."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiohttp_interceptors import BrokerDown, CloseReason, Event, EventTooLarge, Hub, TopicFinished
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.brokers.sqlite import SqliteBroker
from tests.hub.reference import matches
from tests.hub.sink import Sink, at_once, live, start, subscribe
from tests.hub.watcher import Cable
from tests.waiting import run_other_tasks, until, within

pytestmark = pytest.mark.usefixtures("quick")

CLOSED = [(CloseReason.CLOSED, None)]


@pytest.fixture(params=["alone", "with a broker"])
def new_hub(request, hub_on):
    """Make a Hub without a broker, or with one."""
    return lambda **options: hub_on(None if request.param == "alone" else MemoryBroker(MemoryLog()), **options)


@pytest.fixture
async def hub(new_hub):
    return await new_hub()


@pytest.fixture(params=["memory", "sqlite"])
async def nodes(request, hub_on, tmp_path):
    """Two processes of one Hub."""
    log = MemoryLog()
    made = [MemoryBroker(log) if request.param == "memory" else SqliteBroker(tmp_path / "hub.db") for _ in range(2)]
    return [await hub_on(broker) for broker in made]


async def rest(sink):
    """Wait until a sink has ended, read what is left as a stream does, and return all texts."""
    await until(lambda: sink.ends)
    while sink.subscription.write_backlog():
        sink.resume()
        await run_other_tasks(1)
    assert sink.ends == CLOSED
    return sink.texts


async def stays_open(sink):
    await run_other_tasks(20)
    return not sink.ends


async def passed(seconds):
    """Wait until so much time has passed."""
    loop = asyncio.get_running_loop()
    since = loop.time()
    await until(lambda: loop.time() > since + seconds)


async def texts(records):
    async def read():
        return [record.frame.split(b"data: ")[1].strip().decode() async for record in records]

    return await within(read())


# finish and publish.


async def test_it_publishes_the_last_event_and_refuses_more(hub):
    event_id = await hub.finish("a", Event("end", "done"), key="k")
    [record] = hub.history.read(0, ["a"]).records
    assert (record.id, record.key) == (event_id, "k")
    assert b"event: done\ndata: end" in record.frame
    for attempt in hub.publish("a", "x"), hub.publish("a", "x", ephemeral=True), hub.finish("a"), hub.finish("a", "x"):
        with pytest.raises(TopicFinished, match="'a'"):
            await attempt
    with pytest.raises(TopicFinished):
        await within(asyncio.wrap_future(hub.publish_threadsafe("a", "x")))
    await hub.publish("b", "x")


async def test_without_an_event_only_the_end_has_an_id(hub):
    before = await hub.publish("a", "x")
    end = await hub.finish("a")
    after = await hub.publish("b", "x")
    assert [int(event_id.partition("-")[2]) for event_id in (before, end, after)] == [1, 2, 3]
    await until(lambda: hub.history.end == 3)
    assert hub.statistics().records == 2


async def test_what_cannot_be_published_finishes_nothing(hub):
    for error, arguments in (
        (ValueError, ("a.*",)),
        (ValueError, ("a", Event("x", id="1"))),
        (EventTooLarge, ("a", "x" * 2**21)),
        (TypeError, (b"a",)),
    ):
        with pytest.raises(error):
            await hub.finish(*arguments)
    await hub.publish("a", "x")


async def test_a_retry_with_the_same_key_returns_the_id_of_the_end(hub):
    first = await hub.finish("a", "end", idempotency_key="1")
    assert await hub.finish("a", "end", idempotency_key="1") == first
    with pytest.raises(TopicFinished):
        await hub.finish("a", "end", idempotency_key="2")
    assert hub.statistics().records == 1


async def test_another_thread_can_finish(hub):
    sink = await live(hub, "a")
    event_id = await asyncio.to_thread(lambda: hub.finish_threadsafe("a", "end").result(10))
    assert await rest(sink) == ["end"]
    assert sink.last_event_id == event_id


async def test_of_two_calls_at_once_one_finishes(hub):
    results = await asyncio.gather(hub.finish("a", "1"), hub.finish("a", "2"), return_exceptions=True)
    assert [type(result) for result in results] == [str, TopicFinished]
    assert hub.statistics().records == 1


async def test_the_key_of_an_ephemeral_event_finishes_nothing():
    hub = Hub()
    await hub.publish("a", "x", ephemeral=True, idempotency_key="1")
    with pytest.raises(ValueError, match="idempotency_key '1' was used for an ephemeral event"):
        await hub.finish("a", idempotency_key="1")
    await hub.publish("a", "x")


async def test_an_event_that_is_published_again_with_its_key_after_the_end_returns_its_id(hub):
    first = await hub.publish("a", "x", idempotency_key="1")
    await hub.finish("a")
    assert await hub.publish("a", "x", idempotency_key="1") == first
    with pytest.raises(TopicFinished):
        await hub.publish("a", "y", idempotency_key="2")


class Slow(MemoryBroker):
    """A broker that answers when it is told to."""

    def __init__(self, log):
        super().__init__(log)
        self.answers = asyncio.Event()

    async def publish(self, topic, payload, **options):
        await self.answers.wait()
        return await super().publish(topic, payload, **options)


async def test_an_event_is_not_refused_because_of_an_end_that_is_not_stored(hub_on):
    log = MemoryLog()
    hub = await hub_on(broker := Slow(log))
    attempts = [asyncio.create_task(hub.finish("a"))]
    await run_other_tasks()
    attempts.append(asyncio.create_task(hub.publish("a", "x")))
    await run_other_tasks()
    log.stop()
    broker.answers.set()
    results = await within(asyncio.gather(*attempts, return_exceptions=True))
    assert [type(result) for result in results] == [BrokerDown] * 2


async def test_two_calls_at_once_with_the_same_key_return_the_id_of_the_end(hub_on):
    hub = await hub_on(broker := Slow(MemoryLog()))
    attempts = [asyncio.create_task(hub.finish("a", "end", idempotency_key="1")) for _ in range(2)]
    await run_other_tasks()
    broker.answers.set()
    first, second = await within(asyncio.gather(*attempts))
    assert first == second


async def test_an_event_that_the_broker_stores_slowly_is_before_the_end(hub_on):
    class Reordering(MemoryBroker):
        async def publish(self, topic, payload, **options):
            if b"data: slow" in payload:
                await run_other_tasks(10)
            return await super().publish(topic, payload, **options)

    hub = await hub_on(Reordering(MemoryLog()))
    sink = await live(hub, "a")
    await asyncio.gather(hub.publish("a", "slow"), hub.finish("a", "end"))
    assert await rest(sink) == ["slow", "end"]


# Streams.


async def test_a_stream_gets_what_was_published_before_and_ends(hub):
    sink = await live(hub, "a")
    await hub.publish("a", "1")
    await hub.publish("a", "2", ephemeral=True)
    await hub.finish("a", "end")
    assert await rest(sink) == ["1", "2", "end"]
    assert hub.statistics().subscribers == 0


async def test_a_stream_of_several_topics_ends_with_the_last_of_them(hub):
    sink = await live(hub, "a", "b")
    await hub.finish("a", "end of a")
    assert await stays_open(sink)
    await hub.publish("b", "x")
    await hub.finish("b", "end of b")
    assert await rest(sink) == ["end of a", "x", "end of b"]


async def test_a_stream_with_a_wildcard_goes_on(hub):
    sinks = [await live(hub, *topics) for topics in ((">",), ("a", "b.*"), ("*",))]
    await hub.finish("a", "end")
    await hub.finish("b.c", "end of b.c")
    for sink in sinks:
        assert await stays_open(sink)
        assert "end" in sink.texts


async def test_a_stream_without_topics_stays_open(hub):
    await hub.finish("b", "end")
    sink = await live(hub, "a")
    sink.subscriber.remove("a")
    await hub.finish("a", "end")
    assert await stays_open(sink)
    assert sink.texts == []


async def test_a_paused_stream_gets_everything_when_it_has_room(hub):
    sink = await live(hub, "a")
    sink.pause()
    for number in range(5):
        await hub.publish("a", f"{number}" * 20_000)
    await hub.finish("a", "end")
    await run_other_tasks()
    assert sink.texts == []
    assert [text[0] for text in await rest(sink)] == ["0", "1", "2", "3", "4", "e"]


async def test_a_stream_that_catches_up_gets_everything(hub):
    for number in range(5):
        await hub.publish("a", f"{number}" * 20_000)
    await until(lambda: hub.history.end == 5)
    sink = start(hub, "a", after=hub.history.id_of(0))
    await hub.finish("a", "end")
    assert [text[0] for text in await rest(sink)] == ["0", "1", "2", "3", "4", "e"]


async def test_a_stream_that_is_started_later_gets_everything(hub):
    sink = subscribe(hub, "a")
    await hub.publish("a", "1")
    await hub.finish("a", "end")
    assert await stays_open(sink)
    sink.subscription.start()
    assert await rest(sink) == ["1", "end"]


async def test_a_stream_that_is_started_without_room_ends_before_it_has_room(hub):
    sink = subscribe(hub, "a")
    sink.pause()
    await hub.finish("a", "end")
    sink.subscription.start()
    await until(lambda: sink.ends)
    assert sink.texts == []
    assert await rest(sink) == ["end"]


async def test_a_stream_that_is_closed_by_its_owner_is_not_ended_too(hub):
    sink = await live(hub, "a")
    sink.subscription.close()
    await hub.finish("a", "end")
    await run_other_tasks()
    assert sink.ends == []


async def test_a_stream_that_its_owner_closes_before_its_end_is_flushed_ends_once():
    hub = Hub()
    sink = await live(hub, "a")
    await hub.finish("a", "end")
    sink.subscriber.close()
    await run_other_tasks()
    assert len(sink.ends) == 1


@pytest.mark.parametrize("moment", range(8))
async def test_a_stream_whose_hub_is_closed_when_its_end_arrives_ends_once(hub_on, moment):
    log = MemoryLog()
    hub = await hub_on(MemoryBroker(log))
    sink = await live(hub, "a")
    log.append("a", b"\x14\x01data: end\n\n", None)
    await run_other_tasks(moment)
    await hub.close()
    assert len(sink.ends) == 1


async def test_streams_end_although_one_of_them_raises_at_its_end(hub, logged):
    class Broken(Sink):
        def ended(self, reason, error):
            raise LookupError

    sinks = [await live(hub, "a", sink=sink) for sink in (Broken(), Sink(), Sink())]
    await hub.finish("a", "end")
    assert [await rest(sink) for sink in sinks[1:]] == [["end"]] * 2


async def test_the_id_of_the_end_is_also_told_if_the_rest_is_written_at_once(hub):
    class Prompt(Sink):
        def ended(self, reason, error):
            super().ended(reason, error)
            while self.subscription.write_backlog():
                pass

    sink = await live(hub, "a", sink=Prompt(), prime=True)
    end = await hub.finish("a")
    await rest(sink)
    assert sink.last_event_id == end


async def test_the_id_of_the_end_does_not_take_the_client_back(hub):
    sink = await live(hub, "a", "b", prime=True)
    await hub.finish("a")
    for number in range(3):
        await hub.publish("b", str(number))
    await until(lambda: len(sink.texts) == 3)
    sink.subscriber.remove("b")
    assert await rest(sink) == ["0", "1", "2"]
    assert (await live(hub, "a", "b", after=sink.last_event_id)).texts == []


async def test_a_select_that_finishes_the_topic_ends_its_stream_once():
    hub = Hub()

    def select(record):
        if record.event.data == "1":
            at_once(hub.publish("a", "2"))
            at_once(hub.finish("a", "end"))
        return True

    sink = await live(hub, "a", select=select)
    await hub.publish("a", "1")
    assert await rest(sink) == ["1", "2", "end"]


async def test_what_is_published_in_a_flush_arrives_before_the_end():
    hub, said = Hub(), []

    def select(record):
        if not said:
            said.append(record)
            at_once(hub.publish("a", "2"))
        return True

    sink = await live(hub, "a", select=select)
    await hub.publish("a", "1")
    await run_other_tasks()
    await hub.finish("a", "end")
    assert await rest(sink) == ["1", "2", "end"]


async def test_topics_that_are_removed_are_not_waited_for(hub):
    sink = await live(hub, "a", "b")
    await hub.finish("a", "end")
    assert await stays_open(sink)
    sink.subscriber.remove("b")
    assert await rest(sink) == ["end"]


async def test_topics_that_are_added_are_waited_for(hub):
    sink = await live(hub, "a")
    sink.subscriber.add("b")
    await hub.finish("a", "end of a")
    assert await stays_open(sink)
    await hub.finish("b", "end of b")
    assert await rest(sink) == ["end of a", "end of b"]


async def test_a_finished_topic_that_is_added_is_not_waited_for(hub):
    await hub.finish("b", "end of b")
    sink = await live(hub, "a")
    sink.subscriber.add("b")
    assert await stays_open(sink)
    await hub.finish("a", "end of a")
    assert await rest(sink) == ["end of a"]


# Clients that come later.


async def test_a_client_with_an_id_gets_what_it_missed_and_the_end(hub):
    ids = [await hub.publish("a", str(number)) for number in range(3)]
    ids.append(await hub.finish("a", "end"))
    assert await rest(start(hub, "a", after=ids[0])) == ["1", "2", "end"]
    assert await rest(start(hub, "a", after=ids[3])) == []


@pytest.mark.parametrize(
    ("replay", "expected"), [(0, ["end"]), (2, ["1", "end"]), (9, ["0", "1", "end"]), ("latest", ["1", "end"])]
)
async def test_a_client_without_an_id_gets_the_replay_or_the_last_event(new_hub, replay, expected):
    hub = await new_hub(latest=10)
    await hub.publish("a", "0", key="k")
    await hub.publish("a", "1", key="k")
    end = await hub.finish("a", "end")
    await hub.publish("b", "not this")
    await until(lambda: hub.history.end == 4)
    sink = start(hub, "a", replay=replay)
    assert await rest(sink) == expected
    assert await rest(start(hub, "a", after=sink.last_event_id)) == []
    assert int(sink.last_event_id.partition("-")[2]) >= int(end.partition("-")[2])


async def test_a_client_without_an_id_gets_the_last_event_of_each_finished_topic(hub):
    for topic in "cab":
        await hub.publish(topic, "before")
        await hub.finish(topic, f"end of {topic}")
    await hub.publish("d", "not this")
    await until(lambda: hub.history.end == 7)
    sink = start(hub, "a", "b", "c", "d")
    await until(lambda: sink.subscription.live)
    assert sink.texts == ["end of c", "end of a", "end of b"]
    await hub.finish("d", "end of d")
    assert await rest(sink) == ["end of c", "end of a", "end of b", "end of d"]


async def test_a_stream_with_a_wildcard_that_catches_up_gets_the_last_event_once(hub):
    first = await hub.publish("a", "1")
    sink = start(hub, ">", after=first)
    await hub.finish("a", "end")
    await until(lambda: sink.texts)
    assert await stays_open(sink)
    assert sink.texts == ["end"]


async def test_records_that_are_evicted_after_the_last_event_of_a_finished_topic_are_a_gap(new_hub):
    hub = await new_hub(history=5)
    await hub.finish("a", "end")
    for number in range(5):
        await hub.publish("b", str(number))
    await until(lambda: hub.history.end == 6)
    sink = start(hub, "a", "b", sink=Sink(room=1), replay=5, prime=True)
    await until(lambda: sink.paused)
    assert sink.texts == ["end"]
    for number in range(5, 8):
        await hub.publish("b", str(number))
    await until(lambda: hub.history.end == 9)
    sink.room = float("inf")
    sink.resume()
    await until(lambda: sink.subscription.live)
    assert sink.texts == ["end", "gap", "3", "4", "5", "6", "7"]


async def test_a_topic_that_nobody_has_used_can_be_finished(hub):
    end = await hub.finish("a")
    sink = start(hub, "a", prime=True)
    assert await rest(sink) == []
    assert sink.last_event_id == end


async def test_a_client_whose_records_are_gone_gets_a_gap_and_the_end(new_hub):
    hub = await new_hub(history=2)
    first = await hub.publish("a", "0")
    for number in range(1, 5):
        await hub.publish("a", str(number))
    await hub.finish("a", "end")
    assert await rest(start(hub, "a", after=first)) == ["gap", "4", "end"]
    assert await rest(start(hub, "a", after="strange")) == ["gap", "end"]


async def test_a_hub_without_a_history_still_ends_streams(new_hub):
    hub = await new_hub(history=0)
    sink = await live(hub, "a", prime=True)
    end = await hub.finish("a", "end")
    assert await rest(sink) == ["end"]
    assert sink.last_event_id == end
    assert await rest(start(hub, "a")) == []


@pytest.mark.parametrize("select", [None, lambda record: record.key == "yes"])
async def test_the_client_is_told_the_id_of_an_end_that_it_does_not_see(hub, select):
    sink = await live(hub, "a", prime=True, select=select)
    await hub.publish("a", "x", key="yes")
    end = await hub.finish("a", *([] if select is None else ["no"]))
    assert await rest(sink) == ["x"]
    assert (sink.last_event_id, sink.frames[-1].data) == (end, None)


async def test_a_client_that_takes_no_frames_without_data_gets_none(hub):
    sink = await live(hub, "a", prime=False)
    await hub.publish("a", "x")
    await hub.finish("a")
    assert await rest(sink) == ["x"]
    assert len(sink.frames) == 1


# Listeners.


async def test_a_listener_gets_all_records_and_stops(hub):
    records, slow = hub.listen("a"), hub.listen("a", buffer=2)
    for number in range(9):
        await hub.publish("a", str(number))
        await until(lambda number=number: hub.history.end > number)
        await run_other_tasks()
    assert hub.statistics().catching_up == 1
    await hub.finish("a", "end")
    await until(lambda: hub.statistics().subscribers == 0)
    expected = [*map(str, range(9)), "end"]
    assert await texts(records) == expected
    assert await texts(slow) == expected
    assert await texts(hub.listen("a", replay=3)) == ["7", "8", "end"]
    assert hub.statistics().subscribers == 0


async def test_a_listener_that_waits_stops(hub):
    reading = asyncio.create_task(texts(hub.listen("a")))
    await run_other_tasks()
    await hub.finish("a")
    assert await within(reading) == []


async def test_a_listener_that_comes_later_gets_nothing_of_the_past(hub):
    await hub.finish("a", "end")
    assert await texts(hub.listen("a")) == []


async def full(hub, **options):
    """Return a listener that lags behind, since its buffer is full."""
    records = hub.listen("a", buffer=1, **options)
    await run_other_tasks()
    for number in range(3):
        await hub.publish("a", str(number))
        await until(lambda number=number: hub.history.end > number)
        await run_other_tasks()
    assert hub.statistics().catching_up == 1
    return records


async def test_a_listener_raises_what_select_raises_for_the_rest(hub):
    def select(record):
        if record.event.data == "2":
            raise LookupError
        return True

    records = await full(hub, select=select)
    await hub.finish("a")
    with pytest.raises(LookupError):
        await texts(records)


@pytest.mark.parametrize("finished", [True, False])
async def test_a_listener_that_is_closed_yields_nothing(hub, finished):
    records = await full(hub)
    if finished:
        await hub.finish("a")
        await until(lambda: hub.statistics().subscribers == 0)
    await records.aclose()
    assert await texts(records) == []


async def test_the_stop_of_the_hub_does_not_take_the_rest_from_a_listener(hub):
    records = await full(hub)
    await hub.finish("a", "end")
    hub.end_listeners()
    assert await texts(records) == ["0", "1", "2", "end"]


# Forgetting.


async def test_a_topic_is_forgotten_after_history_age_and_can_be_used_again(new_hub):
    hub = await new_hub(history_age=0.05)
    end = await hub.finish("a", "end")
    await until(lambda: not hub.history.is_finished("a"))
    sink = await live(hub, "a", after=end)
    await hub.publish("a", "again")
    await until(lambda: sink.texts == ["again"])
    await hub.finish("a", "end again")
    assert await rest(sink) == ["again", "end again"]


async def test_a_topic_without_records_is_forgotten_too(new_hub):
    hub = await new_hub(history_age=0.05)
    await hub.finish("a")
    await until(lambda: not hub.history.has_finished_topics)
    await hub.publish("a", "again")


async def test_a_process_that_starts_reads_what_was_published_after_a_topic_was_forgotten(hub_on, logged):
    log = MemoryLog()
    old = await hub_on(MemoryBroker(log), history_age=0.05)
    await old.finish("a", "end")
    await until(lambda: not old.history.is_finished("a"))
    again = await old.publish("a", "again")
    new = await hub_on(MemoryBroker(log), history_age=0.05)
    assert new.history.id_of(new.history.end) == again
    assert [line for line in logged if line["event"] == "hub_published_after_finish"] == []
    assert not new.history.is_finished("a")


async def test_a_process_that_starts_later_has_forgotten_it_too(hub_on):
    log = MemoryLog()
    old = await hub_on(MemoryBroker(log), history_age=0.05)
    await old.finish("a", "end")
    await until(lambda: not old.history.is_finished("a"))
    new = await hub_on(MemoryBroker(log), history_age=0.05)
    await new.publish("a", "again")


async def test_a_topic_can_be_used_again_as_soon_as_history_age_has_passed(new_hub):
    """The next check for old records comes later."""
    hub = await new_hub(history_age=0.2)
    await hub.publish("b", "x")
    await passed(0.196)
    await hub.finish("a")
    await passed(0.2)
    await hub.publish("a", "again")


async def test_a_stream_of_several_topics_ends_although_the_first_of_them_is_forgotten(new_hub):
    hub = await new_hub(history_age=0.05)
    sink = await live(hub, "a", "b")
    await hub.finish("a", "end of a")
    await until(lambda: not hub.history.is_finished("a"))
    await hub.finish("b", "end of b")
    assert await rest(sink) == ["end of a", "end of b"]


async def test_a_stream_that_is_started_after_its_topic_was_forgotten_ends(new_hub):
    hub = await new_hub(history_age=0.05)
    sink = subscribe(hub, "a")
    await hub.finish("a", "end")
    await until(lambda: not hub.history.is_finished("a"))
    sink.subscription.start()
    await rest(sink)


async def test_a_stream_ends_on_a_node_that_was_cut_off_until_its_topic_was_forgotten(hub_on):
    log = MemoryLog(max_records=3)
    one = await hub_on(MemoryBroker(log), history_age=0.05)
    other = await hub_on(cable := Cable(log), history_age=0.05)
    sink = await live(other, "a")
    cable.cut = True
    await until(lambda: not other.ready)
    for number in range(3):
        await one.publish("b", str(number))
    await one.finish("a", "end")
    await one.publish("b", "x")
    await until(lambda: not one.history.is_finished("a"))
    cable.cut = False
    await until(lambda: sink.ends)
    await rest(sink)


# Several processes.


async def test_the_streams_of_every_process_end(nodes):
    one, other = nodes
    sinks = [await live(hub, "a") for hub in nodes]
    await one.publish("a", "1")
    await other.finish("a", "end")
    for sink in sinks:
        assert await rest(sink) == ["1", "end"]
    await until(lambda: one.history.is_finished("a"))
    for hub in nodes:
        with pytest.raises(TopicFinished):
            await hub.publish("a", "x")


async def test_one_of_two_processes_finishes(nodes, logged):
    results = await asyncio.gather(*(hub.finish("a", "end") for hub in nodes), return_exceptions=True)
    assert {type(result) for result in results} == {str, TopicFinished}
    for hub in nodes:
        await until(lambda hub=hub: hub.history.end == 2)
        assert hub.statistics().records == 1


async def test_an_event_after_the_end_is_dropped_by_every_process_and_logged_when_it_is_new(hub_on, logged):
    log = MemoryLog()
    hubs = [await hub_on(MemoryBroker(log)) for _ in range(2)]
    sinks = [await live(hub, ">") for hub in hubs]
    await hubs[0].finish("a", "end")
    log.append("a", b"\x10data: too late\n\n", None)
    await hubs[0].publish("b", "other")
    hubs.append(await hub_on(MemoryBroker(log)))
    for hub in hubs:
        await until(lambda hub=hub: hub.history.end == 3)
        assert hub.statistics().records == 2
    for sink in sinks:
        await until(lambda sink=sink: sink.texts == ["end", "other"])
    dropped = [line for line in logged if line["event"] == "hub_published_after_finish"]
    assert [(line["topic"], line["offset"], line["log_level"]) for line in dropped] == [("a", 2, "warning")] * 2


async def test_a_process_that_starts_later_knows_the_end(nodes, hub_on):
    one, other = nodes
    await one.finish("a", "end")
    await until(lambda: other.history.is_finished("a"))
    assert await rest(start(other, "a")) == ["end"]


async def test_a_stream_that_was_opened_before_the_history_was_read_ends(hub_on):
    log = MemoryLog()
    old = await hub_on(MemoryBroker(log))
    first = await old.publish("a", "1")
    end = await old.finish("a", "end")
    log.stop()
    await until(lambda: not old.ready)
    new = Hub(MemoryBroker(log))
    sinks = [start(new, "a", after=after) for after in (None, first, end)]
    await run_other_tasks()
    log.restart()
    assert [await rest(sink) for sink in sinks] == [["end"], ["end"], []]
    await new.close()


async def test_a_topic_is_not_finished_while_the_broker_is_down(hub_on):
    log = MemoryLog()
    hub = await hub_on(MemoryBroker(log))
    sink = await live(hub, "a")
    log.stop()
    with pytest.raises(BrokerDown):
        await hub.finish("a", "end")
    assert await stays_open(sink)
    log.restart()
    await until(lambda: hub.ready)
    await hub.publish("a", "1")
    await hub.finish("a", "end")
    assert await rest(sink) == ["1", "end"]


async def test_an_end_that_the_broker_has_lost_opens_the_topic_again(hub_on):
    log = MemoryLog()
    hub = await hub_on(MemoryBroker(log))
    first = await hub.publish("a", "1")
    lost = await hub.finish("a", "end")
    log.truncate(1)
    await until(lambda: not hub.history.is_finished("a"))
    sinks = [await live(hub, "a", after=after) for after in (None, first, lost)]
    await hub.publish("a", "2")
    await hub.finish("a", "end again")
    assert [await rest(sink) for sink in sinks] == [
        ["2", "end again"],
        ["gap", "2", "end again"],
        ["gap", "2", "end again"],
    ]


async def test_an_end_that_the_broker_has_kept_remains_the_end(hub_on):
    log = MemoryLog()
    hub = await hub_on(MemoryBroker(log))
    await hub.finish("a", "end")
    await hub.publish("b", "lost")
    await until(lambda: hub.history.end == 2)
    log.truncate(1)
    await until(lambda: hub.history.epoch == log.epoch)
    with pytest.raises(TopicFinished):
        await hub.publish("a", "x")


# A model.

TOPICS = ["a", "b", "b.c"]
SUBSCRIPTIONS = [("a",), ("b",), ("a", "b"), ("a", "b", "b.c"), (">",), ("a", "b.*")]


class Page(Sink):
    """A sink that may end only when all of its topics are finished."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client

    def received(self, frames: list[Event]) -> None:
        super().received(frames)
        self._client.seen += [frame.data for frame in frames if frame.data is not None]

    def ended(self, reason: CloseReason, error: BaseException | None) -> None:
        super().ended(reason, error)
        assert self.ends == CLOSED
        assert self._client.is_finished()


class Client:
    """A browser: it has one stream at a time, to any process, and reconnects with its last event ID."""

    def __init__(self, story: Story, topics: tuple[str, ...], *, prime: bool) -> None:
        self.story = story
        self.topics = topics
        self.prime = prime
        self.sink: Page | None = None
        self.given = ""
        self.reset()

    def reset(self) -> None:
        """Forget everything, as a page that is reloaded."""
        self.since = len(self.story.published)
        self.finished_before = set(self.story.finished)
        self.seen: list[str] = []

    def connect(self, hub: Hub) -> None:
        self.disconnect()
        if not self.given:
            self.reset()
        self.sink = start(hub, *self.topics, sink=Page(self), after=self.given or None, prime=self.prime)

    def disconnect(self) -> None:
        if self.sink is not None:
            self.sink.subscription.close()
            self.given = self.sink.last_event_id or self.given
            self.sink = None

    def write(self) -> None:
        """Write what an ended stream has left, as far as there is room."""
        if self.sink is not None and self.sink.ends:
            while not self.sink.paused and self.sink.subscription.write_backlog():
                pass

    def is_for(self, topic: str) -> bool:
        return any(matches(name, topic) for name in self.topics)

    def is_finished(self) -> bool:
        return all(topic in self.story.finished for topic in self.topics)

    def check(self) -> None:
        assert self.sink is not None
        assert bool(self.sink.ends) == self.is_finished()
        published = list(enumerate(self.story.published))
        expected = [str(number) for number, topic in published[self.since :] if self.is_for(topic)]
        last = {topic: str(number) for number, topic in published[: self.since] if topic in self.topics}
        count = len(self.seen) - len(expected)
        initial = self.seen[:count]
        assert self.seen[count:] == expected
        assert initial == sorted(initial, key=int)
        assert set(initial) <= {text for topic, text in last.items() if topic in self.story.finished}
        assert set(initial) >= {text for topic, text in last.items() if topic in self.finished_before}


class Story:
    """One process or two, some clients, and what was published."""

    def __init__(self, *, broker: bool) -> None:
        self.log = MemoryLog() if broker else None
        self.hubs = [Hub(MemoryBroker(self.log)) for _ in range(2)] if self.log is not None else [Hub()]
        self.published: list[str] = []  # the topic of each event; its data is its index
        self.finished: set[str] = set()
        self.clients: list[Client] = []

    def hub(self, which: int) -> Hub:
        return self.hubs[which % len(self.hubs)]

    async def publish(self, which: int, topic: str) -> None:
        try:
            await self.hub(which).publish(topic, str(len(self.published)))
        except BrokerDown:
            pass
        except TopicFinished:
            assert topic in self.finished
        else:
            if topic not in self.finished:
                self.published.append(topic)
            else:  # the other process has not received the end yet
                assert self.log is not None

    async def finish(self, which: int, topic: str, with_event: bool) -> None:
        hub, before = self.hub(which), set(self.finished)
        if self.log is not None and not self.log.up:
            with pytest.raises((BrokerDown, TopicFinished)):
                await hub.finish(topic)
            return
        self.finished.add(topic)
        number = len(self.published)
        if with_event and topic not in before:
            self.published.append(topic)
        try:
            await hub.finish(topic, str(number) if with_event else None)
        except TopicFinished:
            assert topic in before
        else:
            assert topic not in before

    async def connect(self, which: int, topics: tuple[str, ...], prime: bool) -> None:
        await self.synchronize()
        self.clients.append(Client(self, topics, prime=prime))
        self.clients[-1].connect(self.hub(which))

    async def reconnect(self, client: int, which: int) -> None:
        await self.synchronize()
        for each in self.clients[client : client + 1]:
            each.connect(self.hub(which))

    async def disconnect(self, client: int) -> None:
        for each in self.clients[client : client + 1]:
            each.disconnect()

    async def pause(self, client: int) -> None:
        for each in self.clients[client : client + 1]:
            if each.sink is not None:
                each.sink.pause()

    async def resume(self, client: int) -> None:
        for each in self.clients[client : client + 1]:
            if each.sink is not None:
                each.sink.resume()
                each.write()

    async def wait(self, turns: int) -> None:
        await run_other_tasks(turns)

    async def stop_server(self) -> None:
        if self.log is not None:
            self.log.stop()

    async def synchronize(self) -> None:
        """Wait until all processes have everything."""
        if self.log is not None:
            self.log.restart()
            for hub in self.hubs:
                hub.open()
                await until(lambda hub=hub: hub.ready and hub.history.end == self.log.end)

    async def check(self) -> None:
        await self.synchronize()
        for client in self.clients:
            if client.sink is None:
                client.connect(self.hubs[0])
        for _ in range(10):
            for client in self.clients:
                client.sink.resume()
                client.write()
            await run_other_tasks(3)
        for client in self.clients:
            client.check()

    async def close(self) -> None:
        for client in self.clients:
            client.disconnect()
        for hub in self.hubs:
            await hub.close()


def steps():
    which, client, topic = st.integers(0, 1), st.integers(0, 5), st.sampled_from(TOPICS)
    kinds = [
        st.tuples(st.just("publish"), which, topic),
        st.tuples(st.just("publish"), which, topic),
        st.tuples(st.just("finish"), which, topic, st.booleans()),
        st.tuples(st.just("connect"), which, st.sampled_from(SUBSCRIPTIONS), st.booleans()),
        st.tuples(st.just("reconnect"), client, which),
        st.tuples(st.just("disconnect"), client),
        st.tuples(st.just("pause"), client),
        st.tuples(st.just("resume"), client),
        st.tuples(st.just("wait"), st.integers(1, 8)),
        st.tuples(st.just("stop_server")),
    ]
    return st.lists(st.one_of(kinds), min_size=5, max_size=50)


@pytest.mark.parametrize("broker", [False, True], ids=["alone", "with a broker"])
@given(story=steps())
@settings(max_examples=200, deadline=None)
def test_each_client_gets_its_events_once_and_ends_when_its_topics_are_finished(broker, story):
    async def run():
        it = Story(broker=broker)
        try:
            for what, *arguments in story:
                await getattr(it, what)(*arguments)
            await it.check()
        finally:
            await it.close()

    asyncio.run(run())
