"""Publishing: validation, threads and event loops; and that a Hub frees what it no longer needs."""

from __future__ import annotations

import asyncio
import gc
import threading
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import pytest

from aiohttp_interceptors.channel import CloseReason
from aiohttp_interceptors.exceptions import EventTooLarge
from aiohttp_interceptors.hub.cursor import SubscriptionPolicy
from aiohttp_interceptors.hub.history import MAX_EMPTY_TOPICS
from aiohttp_interceptors.hub.hub import Hub
from aiohttp_interceptors.hub.topic_history import TopicHistory
from aiohttp_interceptors.sse import Event
from tests.hub.sink import Sink, live, start, subscribe
from tests.waiting import run_other_tasks, until, within


class FailingSink(Sink):
    """A sink whose transport fails on every write."""

    def write(self, payload, now):
        raise OSError("gone")


def in_thread(call):
    """Call a function in another thread, and wait for its result."""
    return within(asyncio.to_thread(call))


class TestPublish:
    async def test_ids_are_consecutive_across_topics(self):
        hub = Hub()
        ids = [await hub.publish(topic, "x") for topic in ("a", "b.c", "a")]
        assert ids == [f"{hub.history.epoch}-{offset}" for offset in (1, 2, 3)]

    async def test_an_ephemeral_event_has_no_id_is_not_kept_and_does_not_change_the_last_event_id(self):
        hub = Hub()
        stream = await live(hub, "a")
        before = await hub.publish("a", "1")
        assert await hub.publish("a", "fleeting", ephemeral=True) is None
        await run_other_tasks(1)
        assert [(frame.data, frame.id) for frame in stream.frames] == [("1", before), ("fleeting", None)]
        assert stream.last_event_id == before
        late = start(hub, "a", after=before)
        await run_other_tasks(1)
        assert late.frames == []
        assert hub.statistics().records == 1
        assert hub.statistics().published == 2

    async def test_ephemeral_events_are_delivered_in_order_with_others(self):
        hub = Hub()
        stream = await live(hub, "a")
        for number in range(6):
            await hub.publish("a", f"{number}", ephemeral=number % 2 == 0)
        await run_other_tasks(1)
        assert stream.texts == list("012345")

    async def test_an_ephemeral_event_creates_no_topic(self):
        hub = Hub()
        await hub.publish("typing", "x", ephemeral=True)
        assert hub.statistics().topics == 0

    async def test_an_event_is_delivered_unchanged_but_for_its_id(self):
        hub = Hub()
        stream = await live(hub, "a")
        event = Event("two\nlines", "name", retry=7, comment="a comment")
        event_id = await hub.publish("a", event)
        await run_other_tasks(1)
        assert stream.frames == [Event("two\nlines", "name", event_id, 7, "a comment")]

    async def test_changing_a_value_after_publishing_has_no_effect(self):
        hub = Hub()
        stream, late = await live(hub, "a"), subscribe(hub, "a")
        value = {"list": [1]}
        await hub.publish("a", Event.json(value))
        value["list"].append(2)
        late.subscription.start()
        await run_other_tasks(1)
        assert stream.texts == late.texts == ['{"list":[1]}']

    async def test_cancelling_the_publisher_neither_repeats_nor_loses_the_event(self):
        hub = Hub()
        stream = await live(hub, "a")
        task = asyncio.create_task(hub.publish("a", "1"))
        await run_other_tasks(1)
        task.cancel()
        await run_other_tasks(1)
        assert task.done()
        assert not task.cancelled()
        assert stream.texts == ["1"]


class TestValidation:
    WRONG = (
        ("a", object(), TypeError, "an event is made of an Event, a str, .*, not of <object"),
        ("a", b"x", TypeError, "not of b'x'; encoder= encodes anything else"),
        ("a", {"x": object()}, TypeError, "JSON has no form for <object"),
        ("a", None, TypeError, "an event is made of .*, not of None"),
        ("a", float("nan"), ValueError, "JSON"),
        ("a", "\ud800", ValueError, "UTF-8"),
        ("a", Event("x", id="7"), ValueError, "the Hub assigns the ids of events"),
        ("a", "x" * 101, EventTooLarge, "more than 100 bytes was published under 'a'; see max_event_size"),
        ("a.*", "x", ValueError, "is a wildcard"),
        (">", "x", ValueError, "is a wildcard"),
        ("a..b", "x", ValueError, "tokens separated by single dots"),
        ("", "x", ValueError, "a topic is 1 to 255 characters"),
        ("a b", "x", ValueError, "without whitespace"),
        (7, "x", TypeError, "a topic is a str, not 7"),
        (None, "x", TypeError, "a topic is a str, not None"),
        (["a"], "x", TypeError, "."),
    )

    @pytest.mark.parametrize(("topic", "event", "error", "message"), WRONG)
    @pytest.mark.parametrize("ephemeral", [False, True])
    async def test_an_invalid_event_raises_in_publish_and_affects_no_stream(
        self, topic, event, error, message, ephemeral
    ):
        hub = Hub(max_event_size=100)
        stream = await live(hub, ">")
        before = hub.statistics()
        with pytest.raises(error, match=message):
            await hub.publish(topic, event, ephemeral=ephemeral)
        with pytest.raises(error, match=message):
            hub.publish_threadsafe(topic, event, ephemeral=ephemeral)
        await run_other_tasks(2)
        assert hub.statistics() == before
        await hub.publish("a", "good")
        await run_other_tasks(1)
        assert stream.texts == ["good"]
        assert stream.ends == []

    async def test_a_key_must_be_a_string(self):
        with pytest.raises(TypeError, match="an event's key is a str or None, not 7"):
            await Hub().publish("a", "x", key=7)

    async def test_an_event_of_max_event_size_is_accepted(self):
        hub = Hub(max_event_size=100)
        await hub.publish("a", "x" * (100 - len("data: \n\n")))
        with pytest.raises(EventTooLarge):
            await hub.publish("a", "x" * (101 - len("data: \n\n")))
        assert await Hub(max_event_size=None).publish("a", "x" * 2**21)

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"history": -1}, ValueError),
            ({"history": None}, TypeError),
            ({"history_bytes": 0}, ValueError),
            ({"history_age": 0}, ValueError),
            ({"max_event_size": 0}, ValueError),
            ({"max_event_size": "1"}, TypeError),
        ],
    )
    def test_invalid_arguments_of_a_hub_are_refused(self, options, error):
        with pytest.raises(error, match=f"{next(iter(options))} is "):
            Hub(**options)

    async def test_a_subscription_to_an_invalid_topic_is_refused_and_not_counted(self):
        hub, sink = Hub(), Sink()
        for topics in (["a", "b..c"], [7], ["a b"]):
            with pytest.raises((TypeError, ValueError)):
                hub.subscribe(topics, sink, sink.ended)
        assert hub.statistics().subscribers == hub.statistics().groups == 0

    async def test_topics_may_be_a_single_string(self):
        hub, sink = Hub(), Sink()
        sink.subscription = hub.subscribe("abc", sink, sink.ended, policy=SubscriptionPolicy())
        assert sink.subscription.topics == {"abc"}


class TestThreads:
    async def test_a_thread_wakes_an_idle_event_loop(self):
        """Without any timer that would wake it."""
        hub, arrived = Hub(history_age=None), asyncio.Event()
        stream = await live(hub, "a")
        stream.received = lambda frames: arrived.set()
        thread = threading.Thread(target=hub.publish_threadsafe, args=("a", "x"))
        thread.start()
        await within(arrived.wait())
        thread.join()

    async def test_the_future_resolves_to_the_id(self):
        hub = Hub()
        stream = await live(hub, "a")
        event_id = await in_thread(lambda: hub.publish_threadsafe("a", "x").result())
        assert event_id == hub.history.id_of(1)
        await run_other_tasks(1)
        assert stream.frames[0].id == event_id
        assert await in_thread(lambda: hub.publish_threadsafe("a", "x", ephemeral=True, key="k").result()) is None

    @pytest.mark.parametrize("asks", [False, True])
    async def test_events_of_each_thread_stay_in_order(self, asks):
        hub = Hub()
        streams = [await live(hub, "t.>") for _ in range(3)]

        def work(name):
            futures = []
            for number in range(100):
                future = hub.publish_threadsafe(f"t.{name}", f"{name} {number}", key=f"{name}")
                futures.append(future.result() if asks else future)
            return futures

        with ThreadPoolExecutor(8) as pool:
            loop = asyncio.get_running_loop()
            results = await within(asyncio.gather(*(loop.run_in_executor(pool, work, name) for name in range(8))))
        await until(lambda: len(streams[0].texts) == 800)
        for stream in streams:
            for name in range(8):
                mine = [text for text in stream.texts if text.startswith(f"{name} ")]
                assert mine == [f"{name} {number}" for number in range(100)]
        ids = [future if asks else future.result(0) for futures in results for future in futures]
        assert sorted(ids, key=lambda id_: int(id_.split("-")[1])) == [frame.id for frame in streams[0].frames]

    async def test_a_cancelled_future_is_not_published(self):
        hub = Hub()
        stream = await live(hub, "a")
        futures = [
            hub.publish_threadsafe("a", text) for text in "123"
        ]  # in the event loop's thread: published in its next turn
        assert futures[1].cancel()
        await run_other_tasks(2)
        assert stream.texts == ["1", "3"]
        assert not futures[0].cancel()
        with pytest.raises(CancelledError):
            futures[1].result(0)

    def test_publish_threadsafe_requires_an_event_loop(self):
        hub = Hub()
        with pytest.raises(RuntimeError, match=r"no event loop yet; setup\(app, hub\)"):
            hub.publish_threadsafe("a", "x")
        assert hub.statistics().published == 0

        async def opened():
            hub.open()
            hub.open()
            return await in_thread(lambda: hub.publish_threadsafe("a", "x").result())

        assert asyncio.run(opened()) == hub.history.id_of(1)

    def test_publish_threadsafe_raises_after_the_event_loop_was_closed(self):
        hub = Hub()

        async def opened():
            hub.open()

        asyncio.run(opened())
        with pytest.raises(RuntimeError, match="closed"):
            hub.publish_threadsafe("a", "x")
        assert hub.statistics().published == 0


class TestEventLoops:
    def test_a_hub_continues_in_a_second_event_loop(self):
        hub = Hub()

        async def first():
            stream = await live(hub, "a")
            await hub.publish("a", "1")
            await run_other_tasks(1)
            await hub.publish("a", "2")
            stream.subscription.close()
            return stream.frames[0].id

        async def second(after):
            stream = start(hub, "a", after=after)
            assert await in_thread(lambda: hub.publish_threadsafe("a", "3").result()) == hub.history.id_of(3)
            await run_other_tasks(1)
            return stream.texts

        last = asyncio.run(first())
        assert asyncio.run(second(last)) == ["2", "3"]

    def test_a_flush_that_the_first_loop_did_not_run_is_run_by_the_second(self):
        hub = Hub()
        loop = asyncio.new_event_loop()

        async def first():
            stream = await live(hub, "a")
            await hub.publish("a", "1")
            loop.stop()  # after this turn, before the flush
            return stream

        async def second():
            hub.open()
            await run_other_tasks(1)
            assert task.result().texts == ["1"]
            stream = await live(hub, "a")
            await hub.publish("a", "2")
            await run_other_tasks(1)
            return stream.texts

        task = loop.create_task(first())
        loop.run_forever()
        loop.close()
        assert task.result().texts == []
        assert asyncio.run(second()) == ["2"]
        assert task.result().texts == ["1", "2"]

    async def test_another_event_loop_is_refused_while_the_first_is_running(self):
        hub = Hub()
        hub.open()

        def publish():
            with pytest.raises(RuntimeError, match="belongs to another event loop; from here, publish with"):
                asyncio.run(hub.publish("a", "x"))
            return True

        assert await in_thread(publish)
        assert hub.statistics().published == 0
        assert await hub.publish("a", "x") == hub.history.id_of(1)

    def test_another_event_loop_is_refused_while_the_first_has_open_streams(self):
        hub = Hub()
        loop = asyncio.new_event_loop()
        stream = loop.run_until_complete(live(hub, "a"))
        with pytest.raises(RuntimeError, match="belongs to another event loop"):
            asyncio.run(hub.publish("a", "x"))
        stream.subscription.close()
        assert asyncio.run(hub.publish("a", "x")) == hub.history.id_of(1)
        loop.close()


class TestResources:
    async def test_all_counters_return_to_zero_although_streams_failed(self):
        hub = Hub(history_age=0.001)
        options = [{}, {"sink": FailingSink()}, {"select": lambda record: 1 / 0}, {"sink": Sink(0)}, {"retry": 5}]
        streams = [start(hub, "a", f"b.{number}", **each) for number, each in enumerate(options)]
        never_started = subscribe(hub, "a", "c.*")
        assert hub.statistics().subscribers == hub.subscribers("a") == 6
        assert hub.statistics().catching_up == 6
        await run_other_tasks(1)
        for _ in range(3):
            await hub.publish("a", "x")
            await run_other_tasks(1)
        assert [stream.ends[0][0] for stream in streams if stream.ends] == [CloseReason.ERROR] * 2
        statistics = hub.statistics()
        assert (statistics.subscribers, statistics.groups, statistics.catching_up) == (4, 4, 2)
        assert statistics.published == 3
        for stream in (*streams, never_started):
            stream.subscription.close()
            stream.resume()
        await run_other_tasks(1)
        await until(lambda: hub.statistics().records == 0)
        statistics = hub.statistics()
        assert (statistics.subscribers, statistics.groups, statistics.catching_up) == (0, 0, 0)
        assert (statistics.topics, statistics.bytes) == (0, 0)
        assert hub.subscribers("a") == hub.subscribers("c.x") == 0

    async def test_deliveries_are_counted_per_stream(self):
        hub = Hub()
        streams = [await live(hub, "a") for _ in range(3)]
        catching_up = start(hub, "a")
        for _ in range(4):
            await hub.publish("a", "x")
        await hub.publish("b", "x")
        await run_other_tasks(1)
        assert hub.statistics().delivered == sum(len(stream.texts) for stream in (*streams, catching_up)) == 16

    async def test_an_idle_hub_frees_expired_records(self):
        hub = Hub(history_age=0.001)
        for number in range(3):
            await hub.publish(f"a.{number}", "x")
        assert hub.statistics().published == 3
        await until(lambda: hub.statistics().records == 0)
        assert hub.statistics().topics == hub.statistics().bytes == 0

    def test_an_idle_hub_frees_records_of_an_earlier_event_loop(self):
        hub = Hub(history_age=0.05)

        async def publish():
            await hub.publish("a", "x")

        async def idle():
            hub.open()
            await until(lambda: hub.statistics().records == 0)

        asyncio.run(publish())
        assert hub.statistics().records == 1
        asyncio.run(idle())

    async def test_topics_without_subscribers_and_records_are_freed(self):

        def topic_histories():
            gc.collect()
            return sum(isinstance(thing, TopicHistory) for thing in gc.get_objects())

        at_first = topic_histories()
        hub = Hub(history=0)
        streams = [await live(hub, f"user.{number}") for number in range(3)]
        for number in range(2 * MAX_EMPTY_TOPICS):
            await hub.publish(f"user.{number}", "x")
        for stream in streams:
            stream.subscription.close()
        await run_other_tasks(1)
        assert hub.statistics().topics == hub.statistics().records == hub.statistics().groups == 0
        assert topic_histories() - at_first <= MAX_EMPTY_TOPICS

    async def test_a_closed_hub_leaves_no_timer_in_the_event_loop(self):
        def timers():
            gc.collect()
            return sum(isinstance(t, asyncio.TimerHandle) and not t.cancelled() for t in gc.get_objects())

        at_first = timers()
        hub = Hub()
        await hub.publish("a", "x")
        assert timers() == at_first + 1
        await hub.close()
        await hub.close()
        assert timers() == at_first
        assert hub.statistics().records == 1

    @pytest.mark.parametrize("again", ["open", "publish"])
    async def test_a_hub_without_a_broker_is_ready_unless_it_is_closed(self, again):
        hub = Hub()
        assert hub.ready
        await hub.publish("a", "x")
        await hub.close()
        assert not hub.ready
        if again == "open":
            hub.open()
        else:
            await hub.publish("a", "y")
        assert hub.ready
        assert hub.statistics().records == (1 if again == "open" else 2)
        await hub.close()

    async def test_a_future_may_be_ignored(self):
        hub = Hub()
        hub.open()
        assert isinstance(hub.publish_threadsafe("a", "x"), Future)
        gc.collect()
        await run_other_tasks(1)
        assert hub.statistics().published == 1
