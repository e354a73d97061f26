"""A subscription: its start, pauses, changes of its topics, its end, and gaps."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from aiohttp_interceptors.channel import CloseReason
from aiohttp_interceptors.hub.dispatcher import BATCH_SIZE, State
from aiohttp_interceptors.hub.history import MAX_EMPTY_TOPICS
from aiohttp_interceptors.hub.hub import Hub
from aiohttp_interceptors.sse import Event
from tests.hub.sink import Sink, drain, live, start, subscribe
from tests.waiting import run_other_tasks, until, within


async def publish(hub, texts, topic="a", **options):
    return [await hub.publish(topic, text, **options) for text in texts]


def gaps(stream):
    return [json.loads(frame.data) for frame in stream.frames if frame.name == "gap"]


class TestState:
    async def test_a_subscription_is_pending_until_it_is_started(self):
        stream = subscribe(Hub(), "a")
        assert stream.subscription.state is State.PENDING
        stream.subscription.start()
        assert stream.subscription.state is State.CATCHING_UP
        await run_other_tasks(1)
        assert stream.subscription.state is State.LIVE

    async def test_a_subscription_is_paused_from_the_start_if_its_sink_is(self):
        stream = subscribe(Hub(), "a")
        stream.pause()
        assert stream.subscription.state is State.PENDING
        stream.subscription.start()
        assert stream.subscription.state is State.PAUSED

    async def test_a_subscription_catches_up_after_a_pause_and_after_new_topics(self):
        hub = Hub()
        stream = await live(hub, "a")
        stream.pause()
        assert stream.subscription.state is State.PAUSED
        stream.subscriber.add("b")
        assert stream.subscription.state is State.PAUSED
        stream.resume()
        assert stream.subscription.state is State.CATCHING_UP
        await run_other_tasks(1)
        await publish(hub, ["1"], "c")
        await live(hub, "a", "b", "c")
        await publish(hub, ["2"], "c")
        stream.subscriber.add("c")  # whose group has a pending record
        assert stream.subscription.state is State.CATCHING_UP
        await run_other_tasks(1)
        assert stream.subscription.state is State.LIVE

    @pytest.mark.parametrize("started", [False, True])
    async def test_a_closed_subscription_stays_closed(self, started):
        stream = subscribe(Hub(), "a")
        if started:
            stream.subscription.start()
        stream.subscription.close()
        stream.pause()
        stream.resume()
        stream.subscription.start()
        stream.subscriber.add("b")
        await run_other_tasks(1)
        assert stream.subscription.state is State.CLOSED


class TestStart:
    async def test_nothing_is_written_before_start_and_then_everything_since_it_subscribed(self):
        hub = Hub()
        await publish(hub, ["before"])
        stream = subscribe(hub, "a")
        await publish(hub, ["1"])
        await run_other_tasks(2)
        assert stream.payloads == []
        assert not stream.subscription.live
        stream.subscription.start()
        stream.subscription.start()
        await publish(hub, ["2"])
        await run_other_tasks(1)
        assert stream.texts == ["1", "2"]
        assert stream.subscription.live

    async def test_the_initial_frame_has_the_id_and_the_reconnection_time(self):
        hub = Hub()
        last = (await publish(hub, ["before"]))[0]
        stream = await live(hub, "a", prime=True, retry=1234)
        assert stream.frames == [Event(id=last, retry=1234)]
        await publish(hub, ["1"])
        assert stream.subscription.events_written == 0
        returned = await live(hub, "a", after=stream.last_event_id)
        assert returned.texts == ["1"]

    async def test_ephemeral_events_are_written_from_the_start_on(self):
        hub = Hub()
        other = await live(hub, "a")
        await publish(hub, ["too early"], ephemeral=True)
        stream = start(hub, "a")
        await publish(hub, ["typing"], ephemeral=True)
        await publish(hub, ["1"])
        await run_other_tasks(1)
        await publish(hub, ["typing again"], ephemeral=True)
        await run_other_tasks(1)
        assert sorted(stream.texts) == ["1", "typing", "typing again"]
        assert stream.subscription.events_written == 3
        assert other.texts == ["too early", "typing", "1", "typing again"]

    async def test_without_an_initial_frame_only_the_first_event_has_the_reconnection_time(self):
        hub = Hub()
        stream = start(hub, "a", prime=False, retry=1234)
        await run_other_tasks(2)
        assert stream.frames == []
        ids = await publish(hub, ["1", "2"])
        await run_other_tasks(1)
        await publish(hub, ["3"])
        await run_other_tasks(1)
        assert [(frame.data, frame.id, frame.retry) for frame in stream.frames[:2]] == [
            ("1", ids[0], 1234),
            ("2", ids[1], None),
        ]
        assert stream.frames[2].retry is None

    @pytest.mark.parametrize(
        ("replay", "texts"), [(0, ["6"]), (2, ["4", "5", "6"]), (9, ["1", "2", "3", "4", "5", "6"])]
    )
    async def test_replay_starts_a_client_without_an_id_with_the_latest_records(self, replay, texts):
        hub = Hub()
        await publish(hub, ["1", "2", "3", "4", "5"])
        await publish(hub, ["other"], "b")
        stream = start(hub, "a", replay=replay)
        await publish(hub, ["6"])
        await run_other_tasks(1)
        assert stream.texts == texts

    async def test_a_paused_sink_is_written_when_it_resumes(self):
        hub = Hub()
        stream = subscribe(hub, "a")
        stream.pause()
        stream.subscription.start()
        await publish(hub, ["1"])
        await run_other_tasks(2)
        assert stream.payloads == []
        stream.resume()
        await run_other_tasks(1)
        assert stream.texts == ["1"]

    async def test_resume_before_the_start_writes_nothing(self):
        hub = Hub()
        stream = subscribe(hub, "a")
        stream.pause()
        stream.resume()
        await publish(hub, ["1"])
        await run_other_tasks(2)
        assert stream.payloads == []

    async def test_start_and_read_returns_the_first_frames_and_the_records_that_follow_are_written(self):
        hub = Hub()
        others = [await live(hub, "a") for _ in range(2)]
        last = (await publish(hub, ["1"]))[0]
        await publish(hub, ["2"])
        stream = subscribe(hub, "a", after=last)
        stream.write(stream.encoder(stream.subscription.start_and_read()), 0)
        assert stream.subscription.start_and_read() == b""
        await publish(hub, ["3"])
        await run_other_tasks(2)
        assert stream.texts == ["2", "3"]
        assert stream.subscription.live
        assert [other.texts for other in others] == [["1", "2", "3"]] * 2

    async def test_a_closed_subscription_does_not_start(self):
        hub = Hub()
        stream = subscribe(hub, "a")
        stream.subscription.close()
        stream.subscription.close()
        stream.subscription.start()
        stream.resume()
        await publish(hub, ["1"])
        await run_other_tasks(2)
        assert stream.payloads == []
        assert stream.ends == []
        assert stream.subscription.topics == frozenset()
        assert hub.statistics().subscribers == 0


class TestPause:
    async def test_events_of_the_turn_in_which_it_paused_are_written_when_it_resumes(self):
        hub = Hub()
        await publish(hub, ["before"])
        stream = start(hub, "a")
        await publish(hub, ["caught up with"])
        await run_other_tasks(1)
        await publish(hub, ["1"])
        stream.pause()
        await publish(hub, ["2"])
        await run_other_tasks(1)
        assert stream.texts == ["caught up with"]
        assert not stream.subscription.live
        stream.resume()
        await run_other_tasks(1)
        assert stream.texts == ["caught up with", "1", "2"]

    async def test_a_pause_does_not_replay_events_from_before_the_group(self):
        hub = Hub()
        await publish(hub, ["before"])
        stream = await live(hub, "a")
        await publish(hub, ["1"])
        stream.pause()
        stream.resume()
        await run_other_tasks(1)
        assert stream.texts == ["1"]

    async def test_a_stream_that_pauses_after_another_has_subscribed_loses_nothing(self):
        hub = Hub()
        stream = await live(hub, "a")
        await publish(hub, ["1"])
        other = start(hub, "a")
        stream.pause()
        stream.resume()
        await publish(hub, ["2"])
        await run_other_tasks(1)
        assert stream.texts == ["1", "2"]
        assert other.texts == ["2"]

    async def test_resuming_a_live_stream_has_no_effect(self):
        hub = Hub()
        stream = await live(hub, "a")
        stream.subscription.resume()
        await publish(hub, ["1"])
        stream.subscription.resume()
        await run_other_tasks(2)
        assert stream.texts == ["1"]
        assert hub.statistics().catching_up == 0
        stream.subscription.close()
        assert hub.statistics().catching_up == 0

    async def test_a_stream_that_pauses_and_resumes_in_one_turn_is_written_in_that_turn(self):
        hub = Hub()
        stream = await live(hub, "a")
        await publish(hub, ["1"])
        stream.pause()
        stream.resume()
        await publish(hub, ["2"])
        await run_other_tasks(1)
        assert stream.texts == ["1", "2"]


class TestTopics:
    async def test_topics_take_effect_when_they_are_added_or_removed(self):
        hub = Hub()
        stream = await live(hub, "a")
        await publish(hub, ["b1"], "b")
        await publish(hub, ["a1"])
        stream.subscriber.add("b", "c.>")
        await publish(hub, ["b2"], "b")
        await publish(hub, ["c1"], "c.x")
        await publish(hub, ["a2"])
        stream.subscriber.remove("a", "never")
        await publish(hub, ["a3"])
        await publish(hub, ["b3"], "b")
        await run_other_tasks(1)
        assert stream.texts == ["a1", "b2", "c1", "a2", "b3"]
        assert stream.subscription.topics == {"b", "c.>"}
        assert [hub.subscribers(topic) for topic in ("a", "b", "c.x.y")] == [0, 1, 1]

    @pytest.mark.parametrize("queued", [False, True])
    async def test_topics_take_effect_while_the_stream_is_paused_or_queued(self, queued):
        hub = Hub()
        stream = await live(hub, "a", "z")
        stream.pause()
        await publish(hub, ["b1"], "b")
        await publish(hub, ["a1"])
        if queued:
            stream.resume()
        stream.subscriber.add("b")
        stream.subscriber.remove("z")
        await publish(hub, ["b2"], "b")
        await publish(hub, ["z1"], "z")
        await publish(hub, ["a2"])
        await run_other_tasks(1)
        stream.resume()
        await run_other_tasks(1)
        assert stream.texts == ["a1", "b2", "a2"]

    async def test_topics_added_before_the_start_count_from_the_start_position(self):
        hub = Hub()
        last = (await publish(hub, ["0"]))[0]
        await publish(hub, ["b1"], "b")
        stream = subscribe(hub, "a", after=last)
        stream.subscriber.add("b")
        await publish(hub, ["b2"], "b")
        stream.subscription.start()
        await run_other_tasks(1)
        assert stream.texts == ["b1", "b2"]

    async def test_adding_a_topic_that_a_wildcard_matches_already_loses_nothing(self):
        hub = Hub()
        stream = await live(hub, "a.*")
        stream.pause()
        await publish(hub, ["1"], "a.x")
        stream.subscriber.add("a.x")
        await publish(hub, ["2"], "a.x")
        stream.resume()
        await run_other_tasks(1)
        assert stream.texts == ["1", "2"]

    async def test_a_live_stream_gets_ephemeral_events_of_an_added_topic_at_once(self):
        hub = Hub()
        others = [await live(hub, "room"), await live(hub, "a", "room")]
        stream = await live(hub, "a")
        stream.subscriber.add("room")
        assert stream.subscription.live
        await hub.publish("room", "ann is here", ephemeral=True)
        await run_other_tasks(1)
        assert [each.texts for each in (stream, *others)] == [["ann is here"]] * 3
        stream.subscriber.remove("room")
        await hub.publish("room", "ann is gone", ephemeral=True)
        await run_other_tasks(1)
        assert len(stream.texts) == 1

    async def test_events_that_were_published_before_a_topic_was_added_are_not_written(self):
        hub = Hub()
        stream, other = await live(hub, "a"), await live(hub, "a", "b")
        await publish(hub, ["before"], "b")
        stream.subscriber.add("b")
        await publish(hub, ["after"], "b")
        await run_other_tasks(1)
        assert stream.texts == ["after"]
        assert other.texts == ["before", "after"]

    async def test_a_stream_without_topics_gets_nothing_until_one_is_added(self):
        hub = Hub()
        stream = await live(hub)
        await publish(hub, ["1"])
        stream.subscriber.add("a")
        await publish(hub, ["2"])
        stream.subscriber.remove("a")
        await publish(hub, ["3"])
        await run_other_tasks(1)
        assert stream.texts == ["2"]

    async def test_adding_or_removing_no_topic_has_no_effect(self):
        hub = Hub()
        stream = await live(hub, "a", "b.*")
        stream.subscriber.add("a")
        stream.subscriber.add()
        stream.subscriber.remove("b")
        assert stream.subscription.live
        assert stream.subscription.topics == {"a", "b.*"}

    @pytest.mark.parametrize(
        ("wrong", "error"), [(7, TypeError), (["b"], TypeError), ("b..c", ValueError), ("", ValueError)]
    )
    async def test_an_invalid_topic_is_refused_and_the_topics_do_not_change(self, wrong, error):
        stream = await live(Hub(), "a")
        with pytest.raises(error):
            stream.subscriber.add("b", wrong)
        assert stream.subscription.topics == {"a"}

    async def test_a_change_by_another_thread_takes_effect_in_the_event_loop(self):
        hub = Hub()
        stream = await live(hub, "a")
        await publish(hub, ["1"])
        with ThreadPoolExecutor(1) as pool:  # blocks the event loop until the thread has ended
            pool.submit(stream.subscriber.add, "b").result()
        assert stream.payloads == []
        assert stream.subscription.topics == {"a"}
        await run_other_tasks(1)
        assert stream.texts == ["1"]
        assert stream.subscription.topics == {"a", "b"}

    async def test_other_threads_may_change_topics(self):
        asyncio.get_running_loop().set_debug(True)  # detects calls from the wrong thread
        hub = Hub()
        stream = await live(hub, "a")
        await within(asyncio.to_thread(stream.subscriber.add, "b"))
        await within(asyncio.to_thread(stream.subscriber.remove, "a"))
        await run_other_tasks(1)
        assert stream.subscription.topics == {"b"}
        stream.subscription.close()
        await within(asyncio.to_thread(stream.subscriber.add, "c"))
        await run_other_tasks(1)
        assert hub.statistics().groups == 0

    async def test_a_closed_subscription_takes_no_topics(self):
        hub = Hub()
        stream = await live(hub, "a")
        stream.subscription.close()
        stream.subscriber.add("b")
        stream.subscriber.remove("a")
        assert stream.subscription.topics == frozenset()
        assert hub.subscribers("b") == 0

    async def test_a_change_of_topics_may_find_the_client_disconnected(self):
        """The events that were published before are written first, and that may close the subscription."""
        hub = Hub()
        stream = await live(hub, "a")
        stream.write = lambda payload, now: stream.subscription.close()
        await publish(hub, ["1"])
        stream.subscriber.add("b")
        await run_other_tasks(1)
        statistics = hub.statistics()
        assert (statistics.subscribers, statistics.catching_up, statistics.groups) == (0, 0, 0)
        assert hub.subscribers("a") == hub.subscribers("b") == 0


class TestClose:
    async def test_events_published_before_close_are_written(self):
        hub = Hub()
        stream, other = await live(hub, "a"), await live(hub, "a")
        await publish(hub, ["1", "2"])
        stream.subscription.close()
        await publish(hub, ["3"])
        await run_other_tasks(1)
        assert stream.texts == ["1", "2"]
        assert other.texts == ["1", "2", "3"]
        assert len(other.payloads) == 2

    async def test_the_counters_do_not_depend_on_how_events_were_written(self):
        hub = Hub(history=5)
        streams = [await live(hub, "a", sink=Sink(room)) for room in (float("inf"), 100, 0)]
        for burst in (1, 3, 1, 9, 2):
            await publish(hub, ["x"] * burst)
            await run_other_tasks(1)
            streams[1].resume()
        await drain(*streams)
        late = start(hub, "a", replay=9)
        await run_other_tasks(1)
        for stream in (*streams, late):
            written = sum(len(stream._unwrapped(payload)) for payload in stream.payloads)
            events = sum(stream._unwrapped(payload).count(b"data: ") for payload in stream.payloads)
            assert (stream.subscription.events_written, stream.subscription.bytes_written) == (events, written)
            stream.subscription.close()
            assert (stream.subscription.events_written, stream.subscription.bytes_written) == (events, written)


class TestCatchingUp:
    async def test_a_replay_starts_after_records_that_were_evicted_before_it_was_written(self):
        """With two topics, there would otherwise be a hole among the latest records that no gap announces."""
        hub = Hub(history=3)
        for topic, text in ("b", "1"), ("a", "2"), ("b", "3"), ("a", "4"):
            await hub.publish(topic, text)
        stream = subscribe(hub, "a", "b", replay=4)
        for text in "56":
            await hub.publish("a", text)
        stream.subscription.start()
        await run_other_tasks(1)
        assert stream.texts == ["3", "4", "5", "6"]

    async def test_records_that_are_evicted_during_a_replay_are_announced_as_a_gap(self):
        hub = Hub(history=3)
        for topic, text in ("a", "1"), ("b", "2"), ("b", "3"):
            await hub.publish(topic, text + " " * BATCH_SIZE)
        stream = subscribe(hub, "a", "b", sink=Sink(room=1), replay=3)
        stream.subscription.start()
        await run_other_tasks(1)
        for text in "456":
            await hub.publish("b", text)
        stream.resume()
        await until(lambda: stream.texts[-1] == "6")
        assert [text.strip() for text in stream.texts] == ["1", "gap", "4", "5", "6"]

    async def test_a_stream_reads_one_batch_per_turn_although_its_sink_is_not_full(self):
        hub = Hub(history_bytes=None)
        ids = await publish(hub, [f"{number} {'x' * 1000}" for number in range(400)])
        returned = start(hub, "a", after=ids[0])
        turns = 0
        while not returned.subscription.live:
            await run_other_tasks(1)
            turns += 1
            assert len(returned.payloads) <= turns
            assert max(map(len, returned.payloads)) < BATCH_SIZE + 2_000
        assert len(returned.texts) == 399
        assert turns >= 400_000 // BATCH_SIZE

    async def test_many_streams_share_the_budget_fairly_and_do_not_delay_live_ones(self, monkeypatch):
        """The budget of a flush is enough for one stream."""
        monkeypatch.setattr("aiohttp_interceptors.hub.dispatcher.CATCH_UP_BUDGET", 1e-9)
        hub = Hub(history_bytes=None)
        ids = await publish(hub, [f"{number} {'x' * 1000}" for number in range(400)])
        other = await live(hub, "b")
        returned = [start(hub, "a", f"x.{number % 5}", after=ids[0]) for number in range(20)]
        turns = 0
        while not all(stream.subscription.live for stream in returned):
            await publish(hub, ["now"], "b")
            await run_other_tasks(1)
            turns += 1
            assert len(other.texts) == turns
            assert turns < 2_000
            pieces = [len(stream.payloads) for stream in returned]
            assert max(pieces) - min(pieces) <= 1
        assert all(len(stream.texts) == 399 for stream in returned)

    async def test_records_evicted_between_subscribe_and_start_are_no_gap_for_a_replay(self):
        hub = Hub(history=3)
        await publish(hub, ["1", "2", "3"])
        stream = subscribe(hub, "a", replay=3)
        await publish(hub, ["4"])
        stream.subscription.start()
        await run_other_tasks(2)
        assert stream.texts == ["2", "3", "4"]


class TestGaps:
    async def test_signal_reports_the_gap_once_and_continues(self):
        hub = Hub(history=2)
        stream = await live(hub, "a", "b")
        ids = await publish(hub, ["1"])
        await run_other_tasks(1)
        stream.pause()
        await publish(hub, ["quiet"], "b")
        ids += await publish(hub, ["2", "3", "4", "5"])
        stream.resume()
        await run_other_tasks(1)
        await publish(hub, ["6"])
        await run_other_tasks(1)
        assert stream.texts == ["1", "gap", "quiet", "4", "5", "6"]
        expected = {"reason": "evicted", "after": ids[0], "first": stream.frames[2].id, "last": ids[2]}
        assert gaps(stream) == [expected]
        assert hub.statistics().gaps == 1

    async def test_a_gap_is_reported_once_although_several_batches_follow(self):
        hub = Hub(history=2, history_bytes=None)
        large = "x" * 40_000
        paused = await live(hub, "a", "b")
        paused.pause()
        await publish(hub, ["quiet " + large, "quieter " + large], "b")
        await publish(hub, ["1", "2", "3", "4"])
        paused.resume()
        foreign = start(hub, "a", "b", after="0123456789-1", sink=Sink(0))
        await run_other_tasks(4)  # one batch in each
        await drain(foreign)
        for stream in (paused, foreign):
            assert [text.split()[0] for text in stream.texts] == ["gap", "quiet", "quieter", "3", "4"]
            assert len(stream.payloads) == 3
        assert [gap["reason"] for gap in gaps(foreign)] == ["foreign"]

    async def test_an_eviction_in_another_topic_is_no_gap(self):
        hub = Hub(history=2)
        stream = await live(hub, "b")
        stream.pause()
        await publish(hub, ["1"], "b")
        await publish(hub, "123456")
        await publish(hub, ["2"], "b")
        stream.resume()
        await run_other_tasks(1)
        assert stream.texts == ["1", "2"]

    async def test_a_forgotten_topic_is_no_gap_for_a_stream_that_was_paused_at_the_end(self):
        hub = Hub(history=0)
        stream = await live(hub, "quiet.*")
        for number in range(MAX_EMPTY_TOPICS + 2):
            await hub.publish(f"busy.{number}", "x")
        stream.pause()
        stream.resume()
        await run_other_tasks(1)
        assert stream.texts == []

    async def test_a_gap_without_following_records_has_the_id_of_the_newest_one(self):
        hub = Hub(history=0)
        stream = await live(hub, "a")
        stream.pause()
        ids = await publish(hub, ["1", "2"])
        stream.resume()
        await run_other_tasks(1)
        assert [(frame.name, frame.id) for frame in stream.frames] == [("gap", ids[1])]
        assert gaps(stream)[0]["first"] is None
        again = await live(hub, "a", after=stream.last_event_id)
        assert again.frames == []

    async def test_close_ends_the_stream_as_lagged_and_the_gap_is_reported_after_reconnecting(self):
        hub = Hub(history=2)
        stream, other = [await live(hub, "a", on_gap="close", prime=True) for _ in range(2)]
        stream.pause()
        await publish(hub, "1234")
        stream.resume()
        await run_other_tasks(1)
        assert stream.ends == [(CloseReason.LAGGED, None)]
        assert stream.texts == []
        assert other.texts == list("1234")
        assert hub.statistics().subscribers == 1
        again = await live(hub, "a", on_gap="close", after=stream.last_event_id)
        assert again.texts == ["gap", "3", "4"]
        assert again.ends == []
        cut = await live(hub, "a", after=again.frames[0].id)  # disconnected right after the gap
        assert cut.texts == ["3", "4"]

    async def test_conflate_writes_the_latest_of_each_key_and_reports_only_unsuperseded_records(self):
        hub = Hub(history=4)
        streams = [await live(hub, "a", on_gap="conflate") for _ in range(2)]
        streams[0].pause()
        for number in range(6):
            await publish(hub, [f"k{number}"], key="k")
            await publish(hub, [f"l{number}"], key="l")
        streams[0].resume()
        await run_other_tasks(1)
        assert streams[0].texts == ["k5", "l5"]
        assert len(streams[1].texts) == 12
        streams[0].pause()
        await publish(hub, ["alone"])
        for number in range(4):
            await publish(hub, [f"m{number}"], key="m")
        streams[0].resume()
        await run_other_tasks(1)
        assert streams[0].texts[2:] == ["gap", "m3"]

    async def test_conflate_omits_nothing_while_nothing_is_missing(self):
        hub = Hub(history=4)
        stream = await live(hub, "a", on_gap="conflate")
        stream.pause()
        await publish(hub, "1234", key="k")
        stream.resume()
        await run_other_tasks(1)
        assert stream.texts == list("1234")
        stream.pause()
        await publish(hub, "567890", key="k")
        stream.resume()
        await run_other_tasks(1)
        stream.pause()
        await publish(hub, "abcd", key="k")
        stream.resume()
        await run_other_tasks(1)
        assert stream.texts[4:] == ["0", *"abcd"]

    async def test_conflate_reports_a_record_that_was_evicted_while_catching_up(self):
        """A superseded eviction in a busy topic does not hide an unsuperseded one in a quiet topic."""
        hub = Hub(history=3, history_bytes=None)
        stream = await live(hub, "busy", "quiet", sink=Sink(0), on_gap="conflate")
        stream.pause()
        large = "x" * 40_000
        await publish(hub, ["q1 " + large, "q2", "q3"], "quiet")
        for number in range(5):
            await publish(hub, [f"b{number}"], "busy", key="k")
        stream.resume()
        await run_other_tasks(1)
        assert [text[:2] for text in stream.texts] == ["q1"]
        assert stream.paused
        await publish(hub, ["q4", "q5"], "quiet")
        await drain(stream)
        assert [text[:3] for text in stream.texts[1:]] == ["gap", "q3", "b4", "q4", "q5"]

    async def test_conflate_considers_all_kept_records_across_batches(self):
        hub = Hub(history=6, history_bytes=None)
        stream = await live(hub, "a", on_gap="conflate")
        stream.pause()
        await publish(hub, [f"{number} {'x' * 20_000}" for number in range(9)], key="k")
        stream.resume()
        await run_other_tasks(4)  # one batch of the kept records in each
        assert [text[0] for text in stream.texts] == ["8"]

    async def test_conflate_applies_to_later_batches(self):
        hub = Hub(history=4, history_bytes=None)
        stream = await live(hub, "a", on_gap="conflate")
        stream.pause()
        await publish(hub, ["gone"], key="k")
        await publish(hub, ["alone " + "x" * 40_000])
        await publish(hub, [f"k{number} {'x' * 20_000}" for number in range(3)], key="k")
        stream.resume()
        await run_other_tasks(4)  # one batch of the kept records in each
        assert [text.split()[0] for text in stream.texts] == ["alone", "k2"]

    async def test_equal_keys_of_different_topics_are_independent(self):
        hub = Hub(history=2)
        stream = await live(hub, "a", "b", on_gap="conflate")
        stream.pause()
        await publish(hub, "123", "a", key="k")
        await publish(hub, "456", "b", key="k")
        stream.resume()
        await run_other_tasks(1)
        assert stream.texts == ["3", "6"]
