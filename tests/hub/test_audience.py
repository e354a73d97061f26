"""Streams that are told the same: what a turn of the event loop brings them, in how many pieces, and who is spared."""

from __future__ import annotations

import asyncio
import gc

import pytest
from tests.hub.sink import Sink, at_once, drain, live, plain, start, subscribe, turn

from aiohttp_interceptors.channel import CloseReason
from aiohttp_interceptors.hub.dispatcher import BATCH, SubscriberGroup
from aiohttp_interceptors.hub.hub import Hub


class Broken(Sink):
    """Its transport raises, from some write on."""

    def __init__(self, after: int = 0, **options) -> None:
        super().__init__(**options)
        self.after = after
        self.error = OSError("no such wire")

    def write(self, payload, now):
        if len(self.payloads) == self.after:
            raise self.error
        super().write(payload, now)


def numbered(count: int, size: int) -> list[str]:
    return [f"{number} {'x' * size}" for number in range(count)]


async def publish(hub, texts, topic="a", **options):
    for text in texts:
        await hub.publish(topic, text, **options)


class TestOneTurn:
    async def test_a_burst_leaves_in_one_piece_per_stream_and_in_order(self):
        hub = Hub()
        streams = [await live(hub, *topics) for topics in (["a"], ["a"], ["a", "b"], [">"])]
        texts = numbered(50, 10)
        for text in texts:
            await hub.publish("a", text)
            assert not streams[0].payloads
        await turn()
        for stream in streams:
            assert len(stream.payloads) == 1
            assert stream.texts == texts
        await turn(3)
        assert all(len(stream.payloads) == 1 for stream in streams)

    async def test_a_burst_asks_the_event_loop_for_one_turn(self, monkeypatch):
        hub, loop, asked = Hub(), asyncio.get_running_loop(), []
        for topic in ("a", "b"):
            await live(hub, topic)
        call_soon = loop.call_soon
        monkeypatch.setattr(loop, "call_soon", lambda *call, **more: (asked.append(call), call_soon(*call, **more))[1])
        await publish(hub, numbered(50, 10))
        await publish(hub, numbered(50, 10), "b")
        assert len(asked) == 1

    async def test_each_turn_has_a_piece_of_its_own(self):
        hub = Hub()
        stream = await live(hub, "a")
        for text in ("1", "2", "3"):
            await hub.publish("a", text)
            await turn()
            assert stream.texts[-1] == text
        assert len(stream.payloads) == 3

    async def test_all_streams_of_an_audience_are_given_the_same_object(self):
        hub = Hub()
        topics = ["a", "b"], ["b", "a"], ["a", "b", "a"]
        streams = [await live(hub, *names, sink=Sink(wrap=plain)) for names in topics]
        sized = [await live(hub, *names) for names in topics]
        assert hub.statistics().groups == 2
        for burst in (1, 1, 40):
            await publish(hub, numbered(burst, 10))
            await turn()
            for alike in (streams, sized):
                assert all(stream.payloads[-1] is alike[0].payloads[-1] for stream in alike)
        assert streams[0].payloads[-1] is not sized[0].payloads[-1]
        assert streams[0].texts == sized[0].texts

    async def test_one_event_alone_is_not_even_copied_for_who_takes_frames_as_they_are(self):
        hub = Hub()
        streams = [await live(hub, *topics, sink=Sink(wrap=plain)) for topics in (["a"], [">"])]
        await hub.publish("a", "text")
        await turn()
        assert streams[0].payloads[0] is streams[1].payloads[0]

    async def test_a_client_in_two_matching_topics_gets_an_event_once(self):
        """peer bug 39"""
        hub = Hub()
        streams = [await live(hub, *names) for names in (["a.b", "a.*", "a.>", ">"], ["a.b", "a.*"], ["*.b", "a.*"])]
        behind = start(hub, "a.b", "a.*", "*.b", "a.>", ">")
        await hub.publish("a.b", "once")
        await hub.publish("a.b", "fleeting", ephemeral=True)
        await turn(2)
        assert [stream.texts for stream in (*streams, behind)] == [["once", "fleeting"]] * 4


class TestPieces:
    async def test_a_turn_leaves_in_one_piece_up_to_a_batch_and_in_several_above(self):
        hub = Hub(history_bytes=None)
        stream = await live(hub, "a")
        await publish(hub, numbered(3, BATCH // 4))
        await turn()
        assert len(stream.payloads) == 1
        await publish(hub, texts := numbered(20, BATCH // 4))
        await turn()
        assert len(stream.payloads) == 1 + 5
        assert max(map(len, stream.payloads)) < BATCH + BATCH // 4 + 100
        assert stream.texts[3:] == texts

    @pytest.mark.parametrize("behind", [False, True])
    async def test_a_burst_of_a_megabyte_puts_no_megabyte_into_an_outlet_that_pauses(self, behind):
        hub = Hub(history_bytes=None)
        room = 16 * 1024
        full = await live(hub, "a", sink=Sink(room))
        fast = await live(hub, "a")
        if behind:
            full.pause()
        texts = numbered(512, 2048)
        await publish(hub, texts)
        await turn()
        assert fast.texts == texts
        held = []
        full.resume = lambda: (held.append(full.unread), Sink.resume(full))
        await drain(full)
        assert max(held) <= room + BATCH + 2048 + 200
        assert full.texts == texts
        assert len(full.payloads) > 20

    async def test_who_pauses_within_a_flush_loses_nothing_and_gets_nothing_twice(self):
        hub = Hub(history_bytes=None)
        streams = [await live(hub, "a", sink=Sink(room)) for room in (0, BATCH // 2, BATCH * 2, BATCH * 5)]
        texts = numbered(40, BATCH // 4)
        await publish(hub, texts)
        await turn()
        assert [len(stream.payloads) for stream in streams] == [1, 1, 2, 5]
        await drain(*streams)
        assert all(stream.texts == texts for stream in streams)
        assert hub.statistics().behind == 0

    async def test_who_pauses_and_has_room_again_within_a_flush_gets_nothing_twice(self):
        class Flickering(Sink):
            def write(self, payload, now):
                super().write(payload, now)
                self.pause()
                self.resume()

        hub = Hub()
        stream = await live(hub, "a", sink=Flickering())
        await publish(hub, ["fleeting"], ephemeral=True)
        await publish(hub, ["1", "2"])
        await turn(3)
        assert stream.texts == ["fleeting", "1", "2"]

    async def test_who_pauses_within_a_flush_loses_nothing_of_what_it_selects(self):
        hub = Hub(history_bytes=None)
        stream = await live(hub, "a", sink=Sink(0), select=lambda record: int(record.event.data.split()[0]) % 2)
        texts = numbered(40, BATCH // 4)
        await publish(hub, texts)
        await turn()
        assert stream.paused
        assert len(stream.payloads) == 1
        await drain(stream)
        assert stream.texts == texts[1::2]


class TestASelectFunctionWhoseAnswerIsToBeAwaited:
    """A lambda over a coroutine function: what it returns is true, whatever it is about to say."""

    @staticmethod
    def lazy(record):
        async def judge():
            return False

        return judge()

    @staticmethod
    def generating(record):
        yield False

    @pytest.mark.parametrize("select", [lazy, generating])
    @pytest.mark.parametrize("ephemeral", [False, True])
    async def test_delivers_nothing_and_ends_the_stream_as_an_error(self, select, ephemeral):
        hub = Hub()
        stream, other = await live(hub, "a", select=select.__func__), await live(hub, "a")
        await publish(hub, ["1"], ephemeral=ephemeral)
        await turn()
        assert (stream.payloads, other.texts) == ([], ["1"])
        ((reason, error),) = stream.ends
        assert (reason, type(error)) == (CloseReason.ERROR, TypeError)
        assert "select returned <" in str(error)
        assert hub.statistics().subscribers == 1

    @pytest.mark.parametrize("select", [lazy, generating])
    async def test_delivers_nothing_from_the_history_either(self, select):
        hub = Hub()
        await publish(hub, ["1"])
        stream = start(hub, "a", after=hub.log.id_of(0), select=select.__func__)
        await turn(2)
        assert stream.payloads == []
        assert [reason for reason, _ in stream.ends] == [CloseReason.ERROR]

    async def test_delivers_nothing_that_is_not_kept_to_one_that_catches_up(self):
        hub = Hub()
        stream = start(hub, "a", select=self.lazy)
        await publish(hub, ["fleeting"], ephemeral=True)
        await turn(2)
        assert stream.payloads == []
        assert [reason for reason, _ in stream.ends] == [CloseReason.ERROR]

    async def test_delivers_nothing_of_the_rest(self, logged):
        hub = Hub()
        stream = await live(hub, "a", select=self.lazy)
        stream.pause()
        await publish(hub, ["1"])
        stream.subscription.close()
        stream.paused = False
        assert not stream.subscription.rest()
        assert stream.payloads == []
        assert [line["event"] for line in logged] == ["stream_rest_failed"]


@pytest.mark.parametrize("failure", [asyncio.CancelledError, GeneratorExit, BaseExceptionGroup("", [GeneratorExit()])])
async def test_a_select_function_that_raises_no_exception_ends_its_stream_and_no_other(failure):
    def select(record):
        raise failure

    hub = Hub()
    before, failing, after = await live(hub, "a"), await live(hub, "a", select=select), await live(hub, "a", "b")
    await publish(hub, ["1"])
    await turn()
    assert before.texts == after.texts == ["1"]
    assert [reason for reason, _ in failing.ends] == [CloseReason.ERROR]
    behind = start(hub, "a", after=hub.log.id_of(0), select=select)
    last = start(hub, "a", after=hub.log.id_of(0))
    await turn(2)
    assert [reason for reason, _ in behind.ends] == [CloseReason.ERROR]
    assert last.texts == ["1"]


class TestWhoFails:
    async def test_an_outlet_that_raises_ends_only_its_own_stream(self, logged):
        hub = Hub()
        streams = [await live(hub, "a", sink=sink) for sink in (Sink(), Broken(), Sink(), Broken(), Sink())]
        await publish(hub, ["1", "2"])
        await turn()
        await publish(hub, ["3"])
        await turn()
        for stream in streams[::2]:
            assert stream.texts == ["1", "2", "3"]
            assert not stream.ends
        for stream in streams[1::2]:
            assert stream.ends == [(CloseReason.ERROR, stream.error)]
        assert hub.statistics().subscribers == hub.subscribers("a") == 3
        assert [line["event"] for line in logged] == ["stream_write_failed"] * 2

    async def test_an_outlet_that_raises_while_others_catch_up_ends_only_its_own_stream(self):
        hub = Hub()
        streams = [start(hub, "a", sink=sink) for sink in (Broken(), Sink(), Broken(1), Sink())]
        await hub.publish("a", "1")
        await turn()
        await hub.publish("a", "2")
        await turn(2)
        assert [stream.texts for stream in streams] == [[], ["1", "2"], ["1"], ["1", "2"]]
        assert [stream.ends for stream in streams[::2]] == [
            [(CloseReason.ERROR, stream.error)] for stream in streams[::2]
        ]
        assert not streams[1].ends
        assert hub.statistics().subscribers == 2
        assert hub.statistics().behind == 0

    async def test_what_an_owner_raises_when_told_of_the_end_harms_nobody_else(self, logged):
        hub = Hub()
        broken, stream, behind = Broken(), Sink(), Sink()
        broken.ended = lambda reason, error: 1 / 0
        for sink in (broken, stream):
            await live(hub, "a", sink=sink)
        start(hub, "a", sink=behind)
        await hub.publish("a", "1")
        await turn(2)
        assert stream.texts == behind.texts == ["1"]
        assert hub.statistics().subscribers == 2
        assert "stream_end_failed" in [line["event"] for line in logged]

    @pytest.mark.parametrize("keeps_up", [True, False])
    async def test_a_select_function_that_raises_ends_only_its_own_stream(self, keeps_up):
        hub = Hub()
        error = LookupError("whose is it?")

        def fails(record):
            if record.event.data == "2":
                raise error
            return True

        async def opened(select):
            return await live(hub, "a", select=select) if keeps_up else start(hub, "a", select=select)

        streams = [await opened(select) for select in (None, fails, lambda record: record.event.data != "1")]
        await publish(hub, ["1", "2", "3"])
        await turn(2)
        assert [stream.texts for stream in streams] == [["1", "2", "3"], [], ["2", "3"]]
        assert [stream.ends for stream in streams] == [[], [(CloseReason.ERROR, error)], []]
        assert hub.statistics().subscribers == hub.statistics().groups == 2

    async def test_all_streams_that_share_a_select_function_end_when_it_raises(self):
        hub = Hub()
        streams = [await live(hub, "a", select=fails) for fails in [lambda record: 1 / 0] * 3]
        other = await live(hub, "a")
        await hub.publish("a", "1")
        await turn()
        assert [stream.ends[0][0] for stream in streams] == [CloseReason.ERROR] * 3
        assert other.texts == ["1"]
        assert hub.statistics().subscribers == hub.statistics().groups == 1

    async def test_each_stream_selects_for_itself(self):
        """peer bug 46"""
        hub = Hub()
        streams = [await live(hub, "a", select=lambda record, me=me: record.key != me) for me in ("ann", "bob", "eve")]
        for name in ("ann", "bob", "eve"):
            await hub.publish("a", f"from {name}", key=name)
        await hub.publish("a", "typing", key="ann", ephemeral=True)
        await turn()
        everything = ["from ann", "from bob", "from eve", "typing"]
        assert streams[0].texts == everything[1:3]
        assert streams[1].texts == [everything[0], *everything[2:]]
        assert streams[2].texts == [*everything[:2], everything[3]]

    async def test_streams_that_share_a_select_function_share_what_it_says(self):
        hub = Hub()
        asked = []
        streams = [await live(hub, "a", select=asked.append) for _ in range(3)]
        await publish(hub, ["1", "2"])
        await turn()
        assert [record.event.data for record in asked] == ["1", "2"]
        assert [stream.payloads for stream in streams] == [[], [], []]
        assert hub.statistics().behind == 0


class TestWhatCallbacksDo:
    """They run within a flush, and what they change must not come between its records."""

    async def test_what_a_select_function_publishes_comes_after(self):
        hub = Hub()

        def echo(record):
            if record.event.data.isdigit():
                at_once(hub.publish("a", f"echo {record.event.data}"))
            return True

        echoing, other = await live(hub, "a", select=echo), await live(hub, "a")
        await publish(hub, ["1", "2"])
        await turn(3)
        assert echoing.texts == other.texts == ["1", "2", "echo 1", "echo 2"]

    async def test_what_is_published_because_a_stream_ended_comes_after(self):
        hub = Hub()
        breaking = [Broken(), Broken()]
        before, between, last = Sink(), Sink(), Sink()
        for sink in (before, breaking[0], between, breaking[1], last):
            await live(hub, "a", sink=sink)
        for sink in breaking:
            sink.ended = lambda *_: at_once(hub.publish("a", "somebody left"))
        await publish(hub, ["1", "2"])
        await turn(3)
        for stream in (before, between, last):
            assert stream.texts == ["1", "2", "somebody left", "somebody left"]

    @pytest.mark.parametrize("what", ["add", "remove", "close", "pause"])
    @pytest.mark.parametrize("whose", ["before", "after"])
    async def test_what_is_done_to_a_stream_because_another_ended_costs_it_nothing(self, what, whose):
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
        texts = numbered(8, BATCH // 2)  # four pieces
        await publish(hub, texts)
        await turn()
        stream.resume()
        await turn(4)  # a piece in each
        assert stream.texts == (texts[:2] if what in ("close", "remove") else texts)
        other = last if whose == "before" else first
        assert other.texts == texts
        await publish(hub, ["to a"])
        await publish(hub, ["to b"], "b")
        await turn()
        assert other.texts[8:] == ["to a"]
        left = {"add": ["to a", "to b"], "remove": ["to b"], "close": [], "pause": ["to a"]}[what]
        assert stream.texts[len(texts) if what not in ("close", "remove") else 2 :] == left

    @pytest.mark.parametrize("what", ["add", "close"])
    async def test_what_would_flush_within_a_flush_mixes_up_nothing(self, what):
        hub = Hub()
        before, broken, after = Sink(), Broken(), Sink()
        for sink in (before, broken, after):
            await live(hub, "a", sink=sink)

        def ended(*_):
            at_once(hub.publish("a", "somebody left"))
            getattr(before.subscription, what)(*(["b"] if what == "add" else []))

        broken.ended = ended
        await publish(hub, ["1", "2"])
        await turn(3)
        everything = ["1", "2", "somebody left"]
        assert after.texts == everything
        assert before.texts == (everything if what == "add" else everything[:2])

    async def test_who_comes_in_the_middle_of_a_flush_gets_nothing_of_it(self):
        hub = Hub(history_bytes=None)
        broken, stream = Broken(1), Sink()
        for topics, sink in (["a", "b"], broken), (["a"], stream):
            await live(hub, *topics, sink=sink)
        other = await live(hub, "a", "b")
        broken.ended = lambda *_: stream.subscriber.add("b")
        texts = numbered(8, BATCH // 2)
        await publish(hub, texts, "b")
        await turn(2)
        await publish(hub, ["later"], "b")
        await turn()
        assert stream.texts == ["later"]
        assert other.texts == [*texts, "later"]

    async def test_a_select_function_may_change_its_streams_topics_and_close_it(self):
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
        await turn(2)
        await publish(hub, ["3"], "b")
        await publish(hub, ["4"])
        await turn(2)
        assert stream.texts == ["1", "add b", "2", "3", "4"]
        assert stream.subscription.live
        await publish(hub, ["5", "remove a", "6"])
        await turn(2)
        assert stream.subscription.topics == {"b"}
        await publish(hub, ["close"], "b")
        await publish(hub, ["7"], "b")
        await turn(2)
        assert "7" not in stream.texts
        assert hub.statistics().subscribers == hub.statistics().groups == 0

    @pytest.mark.parametrize("keeps_up", [True, False])
    async def test_a_stream_that_ends_twice_is_told_once(self, keeps_up):
        hub = Hub()
        sink = Sink()

        def fails(record):
            sink.subscription.close()
            raise LookupError

        stream = await live(hub, "a", sink=sink, select=fails) if keeps_up else start(hub, "a", sink=sink, select=fails)
        await publish(hub, ["1", "2"])
        await turn()
        assert stream.ends == []  # its owner closed it, and knows
        broken = await live(hub, "a", sink=Broken())
        await hub.publish("a", "3")
        broken.subscription.close()  # writes what was published before, and fails
        assert broken.ends == [(CloseReason.ERROR, broken.error)]
        await turn()
        assert hub.statistics().subscribers == 0


async def test_an_audience_that_nobody_is_in_any_more_is_freed():
    def groups():
        gc.collect()
        return sum(isinstance(thing, SubscriberGroup) for thing in gc.get_objects())

    hub, at_first = Hub(), groups()
    streams = [start(hub, "a", f"b.{number}.*", select=lambda record: True) for number in range(10)]
    await hub.publish("a", "1")
    streams += [subscribe(hub, "c") for _ in range(3)]
    await turn()
    assert hub.statistics().groups == 11
    assert groups() == at_first + 11
    for stream in streams[:5]:
        stream.subscriber.add("d")
    assert hub.statistics().groups == 11
    for stream in streams:
        stream.subscription.close()
    assert hub.statistics().groups == 0
    await turn()
    assert groups() == at_first
    assert hub.subscribers("a") == hub.subscribers("b.1.x") == 0
