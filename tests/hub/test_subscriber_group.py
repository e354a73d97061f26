"""Subscribers that get the same bytes: batches, the isolation of failures, and what callbacks may do in a flush."""

from __future__ import annotations

import asyncio
import gc

import pytest

from aiohttp_interceptors.channel import CloseReason
from aiohttp_interceptors.hub.dispatcher import BATCH_SIZE, SubscriberGroup
from aiohttp_interceptors.hub.hub import Hub
from tests.hub.sink import Sink, at_once, drain, live, plain, start, subscribe
from tests.waiting import run_other_tasks


class Broken(Sink):
    """A sink whose transport raises, from the given write on."""

    def __init__(self, after: int = 0, **options) -> None:
        super().__init__(**options)
        self.after = after
        self.error = OSError("broken pipe")

    def write(self, payload, now):
        if len(self.payloads) == self.after:
            raise self.error
        super().write(payload, now)


def numbered(count: int, size: int) -> list[str]:
    return [f"{number} {'x' * size}" for number in range(count)]


async def publish(hub, texts, topic="a", **options):
    for text in texts:
        await hub.publish(topic, text, **options)


class TestFlush:
    async def test_a_burst_is_one_write_per_stream_and_in_order(self):
        hub = Hub()
        streams = [await live(hub, *topics) for topics in (["a"], ["a"], ["a", "b"], [">"])]
        texts = numbered(50, 10)
        for text in texts:
            await hub.publish("a", text)
            assert not streams[0].payloads
        await run_other_tasks(1)
        for stream in streams:
            assert len(stream.payloads) == 1
            assert stream.texts == texts
        await run_other_tasks(3)
        assert all(len(stream.payloads) == 1 for stream in streams)

    async def test_a_burst_schedules_one_flush(self, monkeypatch):
        hub, loop, asked = Hub(), asyncio.get_running_loop(), []
        for topic in ("a", "b"):
            await live(hub, topic)
        call_soon = loop.call_soon
        monkeypatch.setattr(loop, "call_soon", lambda *call, **more: (asked.append(call), call_soon(*call, **more))[1])
        await publish(hub, numbered(50, 10))
        await publish(hub, numbered(50, 10), "b")
        assert len(asked) == 1

    async def test_each_turn_of_the_event_loop_is_one_write(self):
        hub = Hub()
        stream = await live(hub, "a")
        for text in ("1", "2", "3"):
            await hub.publish("a", text)
            await run_other_tasks(1)
            assert stream.texts[-1] == text
        assert len(stream.payloads) == 3

    async def test_all_streams_of_a_group_get_the_same_bytes_object(self):
        hub = Hub()
        topics = ["a", "b"], ["b", "a"], ["a", "b", "a"]
        streams = [await live(hub, *names, sink=Sink(encoder=plain)) for names in topics]
        sized = [await live(hub, *names) for names in topics]
        assert hub.statistics().groups == 2
        for burst in (1, 1, 40):
            await publish(hub, numbered(burst, 10))
            await run_other_tasks(1)
            for alike in (streams, sized):
                assert all(stream.payloads[-1] is alike[0].payloads[-1] for stream in alike)
        assert streams[0].payloads[-1] is not sized[0].payloads[-1]
        assert streams[0].texts == sized[0].texts

    async def test_a_single_event_is_not_copied_for_sinks_that_do_not_encode(self):
        hub = Hub()
        streams = [await live(hub, *topics, sink=Sink(encoder=plain)) for topics in (["a"], [">"])]
        await hub.publish("a", "text")
        await run_other_tasks(1)
        assert streams[0].payloads[0] is streams[1].payloads[0]

    async def test_an_event_that_matches_several_topics_of_a_stream_is_written_once(self):
        hub = Hub()
        streams = [await live(hub, *names) for names in (["a.b", "a.*", "a.>", ">"], ["a.b", "a.*"], ["*.b", "a.*"])]
        catching_up = start(hub, "a.b", "a.*", "*.b", "a.>", ">")
        await hub.publish("a.b", "once")
        await hub.publish("a.b", "fleeting", ephemeral=True)
        await run_other_tasks(2)
        assert [stream.texts for stream in (*streams, catching_up)] == [["once", "fleeting"]] * 4


class TestBatches:
    async def test_a_burst_larger_than_a_batch_is_several_writes(self):
        hub = Hub(history_bytes=None)
        stream = await live(hub, "a")
        await publish(hub, numbered(3, BATCH_SIZE // 4))
        await run_other_tasks(1)
        assert len(stream.payloads) == 1
        await publish(hub, texts := numbered(20, BATCH_SIZE // 4))
        await run_other_tasks(1)
        assert len(stream.payloads) == 1 + 5
        assert max(map(len, stream.payloads)) < BATCH_SIZE + BATCH_SIZE // 4 + 100
        assert stream.texts[3:] == texts

    @pytest.mark.parametrize("catching_up", [False, True])
    async def test_a_sink_that_pauses_holds_at_most_a_batch_more_than_its_room(self, catching_up):
        hub = Hub(history_bytes=None)
        room = 16 * 1024
        full = await live(hub, "a", sink=Sink(room))
        fast = await live(hub, "a")
        if catching_up:
            full.pause()
        texts = numbered(512, 2048)
        await publish(hub, texts)
        await run_other_tasks(1)
        assert fast.texts == texts
        held = []
        full.resume = lambda: (held.append(full.unread), Sink.resume(full))
        await drain(full)
        assert max(held) <= room + BATCH_SIZE + 2048 + 200
        assert full.texts == texts
        assert len(full.payloads) > 20

    async def test_a_stream_that_pauses_within_a_flush_loses_and_repeats_nothing(self):
        hub = Hub(history_bytes=None)
        streams = [
            await live(hub, "a", sink=Sink(room)) for room in (0, BATCH_SIZE // 2, BATCH_SIZE * 2, BATCH_SIZE * 5)
        ]
        texts = numbered(40, BATCH_SIZE // 4)
        await publish(hub, texts)
        await run_other_tasks(1)
        assert [len(stream.payloads) for stream in streams] == [1, 1, 2, 5]
        await drain(*streams)
        assert all(stream.texts == texts for stream in streams)
        assert hub.statistics().catching_up == 0

    async def test_a_stream_that_pauses_and_resumes_within_a_flush_repeats_nothing(self):
        class Flickering(Sink):
            def write(self, payload, now):
                super().write(payload, now)
                self.pause()
                self.resume()

        hub = Hub()
        stream = await live(hub, "a", sink=Flickering())
        await publish(hub, ["fleeting"], ephemeral=True)
        await publish(hub, ["1", "2"])
        await run_other_tasks(3)
        assert stream.texts == ["fleeting", "1", "2"]

    async def test_a_stream_that_pauses_within_a_flush_loses_no_selected_record(self):
        hub = Hub(history_bytes=None)
        stream = await live(hub, "a", sink=Sink(0), select=lambda record: int(record.event.data.split()[0]) % 2)
        texts = numbered(40, BATCH_SIZE // 4)
        await publish(hub, texts)
        await run_other_tasks(1)
        assert stream.paused
        assert len(stream.payloads) == 1
        await drain(stream)
        assert stream.texts == texts[1::2]


class TestASelectFunctionThatReturnsAnAwaitable:
    """For example a lambda that calls a coroutine function. A coroutine is always true."""

    @staticmethod
    def lazy(record):
        async def decide():
            return False

        return decide()

    @staticmethod
    def generating(record):
        yield False

    @pytest.mark.parametrize("select", [lazy, generating])
    @pytest.mark.parametrize("ephemeral", [False, True])
    async def test_it_ends_the_stream_with_an_error_and_delivers_nothing(self, select, ephemeral):
        hub = Hub()
        stream, other = await live(hub, "a", select=select.__func__), await live(hub, "a")
        await publish(hub, ["1"], ephemeral=ephemeral)
        await run_other_tasks(1)
        assert (stream.payloads, other.texts) == ([], ["1"])
        ((reason, error),) = stream.ends
        assert (reason, type(error)) == (CloseReason.ERROR, TypeError)
        assert "select returned <" in str(error)
        assert hub.statistics().subscribers == 1

    @pytest.mark.parametrize("select", [lazy, generating])
    async def test_it_delivers_nothing_from_the_history(self, select):
        hub = Hub()
        await publish(hub, ["1"])
        stream = start(hub, "a", after=hub.history.id_of(0), select=select.__func__)
        await run_other_tasks(2)
        assert stream.payloads == []
        assert [reason for reason, _ in stream.ends] == [CloseReason.ERROR]

    async def test_it_delivers_no_ephemeral_event_to_a_stream_that_catches_up(self):
        hub = Hub()
        stream = start(hub, "a", select=self.lazy)
        await publish(hub, ["fleeting"], ephemeral=True)
        await run_other_tasks(2)
        assert stream.payloads == []
        assert [reason for reason, _ in stream.ends] == [CloseReason.ERROR]

    async def test_it_delivers_nothing_of_the_backlog(self, logged):
        hub = Hub()
        stream = await live(hub, "a", select=self.lazy)
        stream.pause()
        await publish(hub, ["1"])
        stream.subscription.close()
        stream.paused = False
        assert not stream.subscription.write_backlog()
        assert stream.payloads == []
        assert [line["event"] for line in logged] == ["stream_rest_failed"]


@pytest.mark.parametrize("failure", [asyncio.CancelledError, GeneratorExit, BaseExceptionGroup("", [GeneratorExit()])])
async def test_a_select_function_that_raises_a_base_exception_ends_only_its_own_stream(failure):
    def select(record):
        raise failure

    hub = Hub()
    before, failing, after = await live(hub, "a"), await live(hub, "a", select=select), await live(hub, "a", "b")
    await publish(hub, ["1"])
    await run_other_tasks(1)
    assert before.texts == after.texts == ["1"]
    assert [reason for reason, _ in failing.ends] == [CloseReason.ERROR]
    catching_up = start(hub, "a", after=hub.history.id_of(0), select=select)
    last = start(hub, "a", after=hub.history.id_of(0))
    await run_other_tasks(2)
    assert [reason for reason, _ in catching_up.ends] == [CloseReason.ERROR]
    assert last.texts == ["1"]


class TestFailures:
    async def test_a_sink_that_raises_ends_only_its_own_stream(self, logged):
        hub = Hub()
        streams = [await live(hub, "a", sink=sink) for sink in (Sink(), Broken(), Sink(), Broken(), Sink())]
        await publish(hub, ["1", "2"])
        await run_other_tasks(1)
        await publish(hub, ["3"])
        await run_other_tasks(1)
        for stream in streams[::2]:
            assert stream.texts == ["1", "2", "3"]
            assert not stream.ends
        for stream in streams[1::2]:
            assert stream.ends == [(CloseReason.ERROR, stream.error)]
        assert hub.statistics().subscribers == hub.subscribers("a") == 3
        assert [line["event"] for line in logged] == ["stream_write_failed"] * 2

    async def test_a_sink_that_raises_while_catching_up_ends_only_its_own_stream(self):
        hub = Hub()
        streams = [start(hub, "a", sink=sink) for sink in (Broken(), Sink(), Broken(1), Sink())]
        await hub.publish("a", "1")
        await run_other_tasks(1)
        await hub.publish("a", "2")
        await run_other_tasks(2)
        assert [stream.texts for stream in streams] == [[], ["1", "2"], ["1"], ["1", "2"]]
        assert [stream.ends for stream in streams[::2]] == [
            [(CloseReason.ERROR, stream.error)] for stream in streams[::2]
        ]
        assert not streams[1].ends
        assert hub.statistics().subscribers == 2
        assert hub.statistics().catching_up == 0

    async def test_an_on_end_callback_that_raises_affects_no_other_stream(self, logged):
        hub = Hub()
        broken, stream, catching_up = Broken(), Sink(), Sink()
        broken.ended = lambda reason, error: 1 / 0
        for sink in (broken, stream):
            await live(hub, "a", sink=sink)
        start(hub, "a", sink=catching_up)
        await hub.publish("a", "1")
        await run_other_tasks(2)
        assert stream.texts == catching_up.texts == ["1"]
        assert hub.statistics().subscribers == 2
        assert "stream_end_failed" in [line["event"] for line in logged]

    @pytest.mark.parametrize("is_live", [True, False])
    async def test_a_select_function_that_raises_ends_only_its_own_stream(self, is_live):
        hub = Hub()
        error = LookupError("not found")

        def fails(record):
            if record.event.data == "2":
                raise error
            return True

        async def opened(select):
            return await live(hub, "a", select=select) if is_live else start(hub, "a", select=select)

        streams = [await opened(select) for select in (None, fails, lambda record: record.event.data != "1")]
        await publish(hub, ["1", "2", "3"])
        await run_other_tasks(2)
        assert [stream.texts for stream in streams] == [["1", "2", "3"], [], ["2", "3"]]
        assert [stream.ends for stream in streams] == [[], [(CloseReason.ERROR, error)], []]
        assert hub.statistics().subscribers == hub.statistics().groups == 2

    async def test_all_streams_that_share_a_select_function_end_when_it_raises(self):
        hub = Hub()
        streams = [await live(hub, "a", select=fails) for fails in [lambda record: 1 / 0] * 3]
        other = await live(hub, "a")
        await hub.publish("a", "1")
        await run_other_tasks(1)
        assert [stream.ends[0][0] for stream in streams] == [CloseReason.ERROR] * 3
        assert other.texts == ["1"]
        assert hub.statistics().subscribers == hub.statistics().groups == 1

    async def test_each_stream_has_its_own_select_function(self):
        hub = Hub()
        streams = [await live(hub, "a", select=lambda record, me=me: record.key != me) for me in ("ann", "bob", "eve")]
        for name in ("ann", "bob", "eve"):
            await hub.publish("a", f"from {name}", key=name)
        await hub.publish("a", "typing", key="ann", ephemeral=True)
        await run_other_tasks(1)
        everything = ["from ann", "from bob", "from eve", "typing"]
        assert streams[0].texts == everything[1:3]
        assert streams[1].texts == [everything[0], *everything[2:]]
        assert streams[2].texts == [*everything[:2], everything[3]]

    async def test_a_shared_select_function_is_called_once_per_record(self):
        hub = Hub()
        asked = []
        streams = [await live(hub, "a", select=asked.append) for _ in range(3)]
        await publish(hub, ["1", "2"])
        await run_other_tasks(1)
        assert [record.event.data for record in asked] == ["1", "2"]
        assert [stream.payloads for stream in streams] == [[], [], []]
        assert hub.statistics().catching_up == 0


class TestReentrancy:
    """Callbacks run within a flush. What they change takes effect after the records of that flush."""

    async def test_events_published_by_a_select_function_follow_the_flush(self):
        hub = Hub()

        def echo(record):
            if record.event.data.isdigit():
                at_once(hub.publish("a", f"echo {record.event.data}"))
            return True

        echoing, other = await live(hub, "a", select=echo), await live(hub, "a")
        await publish(hub, ["1", "2"])
        await run_other_tasks(3)
        assert echoing.texts == other.texts == ["1", "2", "echo 1", "echo 2"]

    async def test_events_published_by_on_end_follow_the_flush(self):
        hub = Hub()
        breaking = [Broken(), Broken()]
        before, between, last = Sink(), Sink(), Sink()
        for sink in (before, breaking[0], between, breaking[1], last):
            await live(hub, "a", sink=sink)
        for sink in breaking:
            sink.ended = lambda *_: at_once(hub.publish("a", "left"))
        await publish(hub, ["1", "2"])
        await run_other_tasks(3)
        for stream in (before, between, last):
            assert stream.texts == ["1", "2", "left", "left"]

    @pytest.mark.parametrize("what", ["add", "remove", "close", "pause"])
    @pytest.mark.parametrize("whose", ["before", "after"])
    async def test_a_change_of_another_stream_by_on_end_loses_nothing(self, what, whose):
        hub = Hub(history_bytes=None)
        first, broken, last = Sink(), Broken(), Sink()
        for sink in (first, broken, last):
            await live(hub, "a", sink=sink)
        stream = first if whose == "before" else last
        does = {
            "add": lambda: stream.subscriber.add("b"),
            "remove": lambda: (stream.subscriber.add("b"), stream.subscriber.remove("a")),
            "close": lambda: stream.subscription.close(),
            "pause": lambda: stream.pause(),
        }
        broken.ended = lambda *_: does[what]()
        texts = numbered(8, BATCH_SIZE // 2)  # four batches
        await publish(hub, texts)
        await run_other_tasks(1)
        stream.resume()
        await run_other_tasks(4)  # one batch in each
        assert stream.texts == (texts[:2] if what in ("close", "remove") else texts)
        other = last if whose == "before" else first
        assert other.texts == texts
        await publish(hub, ["to a"])
        await publish(hub, ["to b"], "b")
        await run_other_tasks(1)
        assert other.texts[8:] == ["to a"]
        left = {"add": ["to a", "to b"], "remove": ["to b"], "close": [], "pause": ["to a"]}[what]
        assert stream.texts[len(texts) if what not in ("close", "remove") else 2 :] == left

    @pytest.mark.parametrize("what", ["add", "close"])
    async def test_a_flush_within_a_flush_keeps_the_order(self, what):
        hub = Hub()
        before, broken, after = Sink(), Broken(), Sink()
        for sink in (before, broken, after):
            await live(hub, "a", sink=sink)

        def ended(*_):
            at_once(hub.publish("a", "left"))
            getattr(before.subscription, what)(*(["b"] if what == "add" else []))

        broken.ended = ended
        await publish(hub, ["1", "2"])
        await run_other_tasks(3)
        everything = ["1", "2", "left"]
        assert after.texts == everything
        assert before.texts == (everything if what == "add" else everything[:2])

    async def test_a_stream_that_subscribes_within_a_flush_gets_nothing_of_it(self):
        hub = Hub(history_bytes=None)
        broken, stream = Broken(1), Sink()
        for topics, sink in (["a", "b"], broken), (["a"], stream):
            await live(hub, *topics, sink=sink)
        other = await live(hub, "a", "b")
        broken.ended = lambda *_: stream.subscriber.add("b")
        texts = numbered(8, BATCH_SIZE // 2)
        await publish(hub, texts, "b")
        await run_other_tasks(2)
        await publish(hub, ["later"], "b")
        await run_other_tasks(1)
        assert stream.texts == ["later"]
        assert other.texts == [*texts, "later"]

    async def test_a_select_function_may_change_the_topics_of_its_stream_and_close_it(self):
        hub = Hub()
        sink = Sink()

        def follow(record):
            kind, _, value = record.event.data.partition(" ")
            if kind in ("add", "remove"):
                getattr(sink.subscriber, kind)(value)
            elif kind == "close":
                sink.subscription.close()
            return True

        stream = await live(hub, "a", sink=sink, select=follow)
        await publish(hub, ["1", "add b", "2"])
        await run_other_tasks(2)
        await publish(hub, ["3"], "b")
        await publish(hub, ["4"])
        await run_other_tasks(2)
        assert stream.texts == ["1", "add b", "2", "3", "4"]
        assert stream.subscription.live
        await publish(hub, ["5", "remove a", "6"])
        await run_other_tasks(2)
        assert stream.subscription.topics == {"b"}
        await publish(hub, ["close"], "b")
        await publish(hub, ["7"], "b")
        await run_other_tasks(2)
        assert "7" not in stream.texts
        assert hub.statistics().subscribers == hub.statistics().groups == 0

    @pytest.mark.parametrize("is_live", [True, False])
    async def test_on_end_is_called_at_most_once(self, is_live):
        hub = Hub()
        sink = Sink()

        def fails(record):
            sink.subscription.close()
            raise LookupError

        stream = await live(hub, "a", sink=sink, select=fails) if is_live else start(hub, "a", sink=sink, select=fails)
        await publish(hub, ["1", "2"])
        await run_other_tasks(1)
        assert stream.ends == []  # the owner closed it
        broken = await live(hub, "a", sink=Broken())
        await hub.publish("a", "3")
        broken.subscription.close()  # flushes what was published before, which fails
        assert broken.ends == [(CloseReason.ERROR, broken.error)]
        await run_other_tasks(1)
        assert hub.statistics().subscribers == 0


async def test_an_empty_group_is_freed():
    def groups():
        gc.collect()
        return sum(isinstance(thing, SubscriberGroup) for thing in gc.get_objects())

    hub, at_first = Hub(), groups()
    streams = [start(hub, "a", f"b.{number}.*", select=lambda record: True) for number in range(10)]
    await hub.publish("a", "1")
    streams += [subscribe(hub, "c") for _ in range(3)]
    await run_other_tasks(1)
    assert hub.statistics().groups == 11
    assert groups() == at_first + 11
    for stream in streams[:5]:
        stream.subscriber.add("d")
    assert hub.statistics().groups == 11
    for stream in streams:
        stream.subscription.close()
    assert hub.statistics().groups == 0
    await run_other_tasks(1)
    assert groups() == at_first
    assert hub.subscribers("a") == hub.subscribers("b.1.x") == 0
