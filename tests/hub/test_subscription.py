"""One stream of a Hub: its topics while it is open, what it gets after a pause, and what it is told of gaps."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from aiohttp_interceptors.hub.audience import BATCH
from aiohttp_interceptors.hub.hub import Hub
from aiohttp_interceptors.hub.log import EMPTIED
from aiohttp_interceptors.sse.channel import CloseReason
from aiohttp_interceptors.sse.event import Event
from tests.hub.outlet import Outlet, drain, live, start, subscribe, turn
from tests.waiting import until, within


async def publish(hub, texts, topic="a", **options):
    return [await hub.publish(topic, text, **options) for text in texts]


def gaps(stream):
    return [json.loads(frame.data) for frame in stream.frames if frame.name == "gap"]


class TestBeginning:
    async def test_nothing_comes_before_the_start_and_then_all_since_it_was_registered(self):
        hub = Hub()
        await publish(hub, ["before"])
        stream = subscribe(hub, "a")
        await publish(hub, ["1"])
        await turn(2)
        assert stream.payloads == []
        assert not stream.subscription.live
        stream.subscription.start()
        stream.subscription.start()
        await publish(hub, ["2"])
        await turn()
        assert stream.texts == ["1", "2"]
        assert stream.subscription.live

    async def test_the_first_frame_has_the_id_to_return_with_and_the_time_to_wait(self):
        """peer bug 57"""
        hub = Hub()
        last = (await publish(hub, ["before"]))[0]
        stream = await live(hub, "a", prime=True, retry=1234)
        assert stream.frames == [Event(id=last, retry=1234)]
        await publish(hub, ["1"])
        assert stream.subscription.events == 0
        returned = await live(hub, "a", after=stream.last_event_id)
        assert returned.texts == ["1"]

    async def test_what_is_not_kept_reaches_it_too_from_its_start_on(self):
        """peer bug 54"""
        hub = Hub()
        other = await live(hub, "a")
        await publish(hub, ["too early"], ephemeral=True)
        stream = start(hub, "a")
        await publish(hub, ["typing"], ephemeral=True)
        await publish(hub, ["1"])
        await turn()
        await publish(hub, ["typing again"], ephemeral=True)
        await turn()
        assert sorted(stream.texts) == ["1", "typing", "typing again"]
        assert stream.subscription.events == 3
        assert other.texts == ["too early", "typing", "1", "typing again"]

    async def test_without_a_priming_frame_the_first_event_has_the_time_to_wait_and_no_other(self):
        hub = Hub()
        stream = start(hub, "a", prime=False, retry=1234)
        await turn(2)
        assert stream.frames == []
        ids = await publish(hub, ["1", "2"])
        await turn()
        await publish(hub, ["3"])
        await turn()
        assert [(frame.data, frame.id, frame.retry) for frame in stream.frames[:2]] == [
            ("1", ids[0], 1234),
            ("2", ids[1], None),
        ]
        assert stream.frames[2].retry is None

    @pytest.mark.parametrize(
        ("replay", "texts"), [(0, ["6"]), (2, ["4", "5", "6"]), (9, ["1", "2", "3", "4", "5", "6"])]
    )
    async def test_one_without_an_id_begins_with_the_latest_records_if_it_likes(self, replay, texts):
        hub = Hub()
        await publish(hub, ["1", "2", "3", "4", "5"])
        await publish(hub, ["other"], "b")
        stream = start(hub, "a", replay=replay)
        await publish(hub, ["6"])
        await turn()
        assert stream.texts == texts

    async def test_a_replay_begins_after_what_was_evicted_before_it_was_written(self):
        """Two topics: a hole amid the latest records would be one that nothing tells of."""
        hub = Hub(history=3)
        for topic, text in ("b", "1"), ("a", "2"), ("b", "3"), ("a", "4"):
            await hub.publish(topic, text)
        stream = subscribe(hub, "a", "b", replay=4)
        for text in "56":
            await hub.publish("a", text)
        stream.subscription.start()
        await turn()
        assert stream.texts == ["3", "4", "5", "6"]

    async def test_what_is_evicted_amid_a_replay_is_told(self):
        hub = Hub(history=3)
        for topic, text in ("a", "1"), ("b", "2"), ("b", "3"):
            await hub.publish(topic, text + " " * BATCH)
        stream = subscribe(hub, "a", "b", outlet=Outlet(room=1), replay=3)
        stream.subscription.start()
        await turn()
        for text in "456":
            await hub.publish("b", text)
        stream.resume()
        await until(lambda: stream.texts[-1] == "6")
        assert [text.strip() for text in stream.texts] == ["1", "gap", "4", "5", "6"]

    async def test_a_full_outlet_begins_when_there_is_room(self):
        hub = Hub()
        stream = subscribe(hub, "a")
        stream.pause()
        stream.subscription.start()
        await publish(hub, ["1"])
        await turn(2)
        assert stream.payloads == []
        stream.resume()
        await turn()
        assert stream.texts == ["1"]

    async def test_room_before_the_start_starts_nothing(self):
        hub = Hub()
        stream = subscribe(hub, "a")
        stream.pause()
        stream.resume()
        await publish(hub, ["1"])
        await turn(2)
        assert stream.payloads == []

    async def test_who_writes_the_first_frames_itself_gets_each_record_once_too(self):
        hub = Hub()
        others = [await live(hub, "a") for _ in range(2)]
        last = (await publish(hub, ["1"]))[0]
        await publish(hub, ["2"])
        stream = subscribe(hub, "a", after=last)
        stream.relay(stream.wrap(stream.subscription.first()), 0)
        assert stream.subscription.first() == b""
        await publish(hub, ["3"])
        await turn(2)
        assert stream.texts == ["2", "3"]
        assert stream.subscription.live
        assert [other.texts for other in others] == [["1", "2", "3"]] * 2

    async def test_one_that_was_closed_does_not_start(self):
        hub = Hub()
        stream = subscribe(hub, "a")
        stream.subscription.close()
        stream.subscription.close()
        stream.subscription.start()
        stream.resume()
        await publish(hub, ["1"])
        await turn(2)
        assert stream.payloads == []
        assert stream.ends == []
        assert stream.subscription.topics == frozenset()
        assert hub.statistics().subscribers == 0


class TestPause:
    async def test_what_was_published_in_the_turn_in_which_it_paused_comes_when_there_is_room(self):
        hub = Hub()
        await publish(hub, ["before"])
        stream = start(hub, "a")
        await publish(hub, ["caught up with"])
        await turn()
        await publish(hub, ["1"])
        stream.pause()
        await publish(hub, ["2"])
        await turn()
        assert stream.texts == ["caught up with"]
        assert not stream.subscription.live
        stream.resume()
        await turn()
        assert stream.texts == ["caught up with", "1", "2"]

    async def test_what_was_before_an_audience_does_not_come_back_by_a_pause(self):
        hub = Hub()
        await publish(hub, ["before"])
        stream = await live(hub, "a")
        await publish(hub, ["1"])
        stream.pause()
        stream.resume()
        await turn()
        assert stream.texts == ["1"]

    async def test_who_pauses_after_another_has_come_loses_nothing(self):
        hub = Hub()
        stream = await live(hub, "a")
        await publish(hub, ["1"])
        other = start(hub, "a")
        stream.pause()
        stream.resume()
        await publish(hub, ["2"])
        await turn()
        assert stream.texts == ["1", "2"]
        assert other.texts == ["2"]

    async def test_room_for_who_keeps_up_changes_nothing(self):
        hub = Hub()
        stream = await live(hub, "a")
        stream.subscription.resume()
        await publish(hub, ["1"])
        stream.subscription.resume()
        await turn(2)
        assert stream.texts == ["1"]
        assert hub.statistics().behind == 0
        stream.subscription.close()
        assert hub.statistics().behind == 0

    async def test_who_pauses_and_has_room_again_in_one_turn_is_written_to_in_that_turn(self):
        hub = Hub()
        stream = await live(hub, "a")
        await publish(hub, ["1"])
        stream.pause()
        stream.resume()
        await publish(hub, ["2"])
        await turn()
        assert stream.texts == ["1", "2"]


class TestTopics:
    async def test_an_added_topic_counts_from_then_and_a_removed_one_until_then(self):
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
        await turn()
        assert stream.texts == ["a1", "b2", "c1", "a2", "b3"]
        assert stream.subscription.topics == {"b", "c.>"}
        assert [hub.subscribers(topic) for topic in ("a", "b", "c.x.y")] == [0, 1, 1]

    @pytest.mark.parametrize("waits", [False, True])
    async def test_also_while_it_is_paused_or_about_to_catch_up(self, waits):
        hub = Hub()
        stream = await live(hub, "a", "z")
        stream.pause()
        await publish(hub, ["b1"], "b")
        await publish(hub, ["a1"])
        if waits:
            stream.resume()
        stream.subscriber.add("b")
        stream.subscriber.remove("z")
        await publish(hub, ["b2"], "b")
        await publish(hub, ["z1"], "z")
        await publish(hub, ["a2"])
        await turn()
        stream.resume()
        await turn()
        assert stream.texts == ["a1", "b2", "a2"]

    async def test_what_is_added_before_the_start_counts_from_the_beginning(self):
        hub = Hub()
        last = (await publish(hub, ["0"]))[0]
        await publish(hub, ["b1"], "b")
        stream = subscribe(hub, "a", after=last)
        stream.subscriber.add("b")
        await publish(hub, ["b2"], "b")
        stream.subscription.start()
        await turn()
        assert stream.texts == ["b1", "b2"]

    async def test_a_topic_of_a_wildcard_that_is_added_by_name_while_paused_is_not_cut_short(self):
        hub = Hub()
        stream = await live(hub, "a.*")
        stream.pause()
        await publish(hub, ["1"], "a.x")
        stream.subscriber.add("a.x")
        await publish(hub, ["2"], "a.x")
        stream.resume()
        await turn()
        assert stream.texts == ["1", "2"]

    async def test_who_keeps_up_hears_of_an_added_topic_at_once_also_what_is_not_kept(self):
        """peer bug 54"""
        hub = Hub()
        others = [await live(hub, "room"), await live(hub, "a", "room")]
        stream = await live(hub, "a")
        stream.subscriber.add("room")
        assert stream.subscription.live
        await hub.publish("room", "ann is here", ephemeral=True)
        await turn()
        assert [each.texts for each in (stream, *others)] == [["ann is here"]] * 3
        stream.subscriber.remove("room")
        await hub.publish("room", "ann is gone", ephemeral=True)
        await turn()
        assert len(stream.texts) == 1

    async def test_who_adds_a_topic_gets_nothing_that_others_of_it_have_yet_to_get(self):
        hub = Hub()
        stream, other = await live(hub, "a"), await live(hub, "a", "b")
        await publish(hub, ["before"], "b")
        stream.subscriber.add("b")
        await publish(hub, ["after"], "b")
        await turn()
        assert stream.texts == ["after"]
        assert other.texts == ["before", "after"]

    async def test_a_stream_without_topics_hears_of_nothing_until_it_has_one(self):
        hub = Hub()
        stream = await live(hub)
        await publish(hub, ["1"])
        stream.subscriber.add("a")
        await publish(hub, ["2"])
        stream.subscriber.remove("a")
        await publish(hub, ["3"])
        await turn()
        assert stream.texts == ["2"]

    async def test_topics_that_change_nothing_change_nothing(self):
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
    async def test_what_is_no_topic_is_refused_and_the_stream_stays_as_it_is(self, wrong, error):
        stream = await live(Hub(), "a")
        with pytest.raises(error):
            stream.subscriber.add("b", wrong)
        assert stream.subscription.topics == {"a"}

    async def test_what_another_thread_changes_waits_for_the_event_loop(self):
        hub = Hub()
        stream = await live(hub, "a")
        await publish(hub, ["1"])
        with ThreadPoolExecutor(1) as pool:  # which is waited for, so that the loop does nothing meanwhile
            pool.submit(stream.subscriber.add, "b").result()
        assert stream.payloads == []
        assert stream.subscription.topics == {"a"}
        await turn()
        assert stream.texts == ["1"]
        assert stream.subscription.topics == {"a", "b"}

    async def test_other_threads_may_change_topics(self):
        asyncio.get_running_loop().set_debug(True)  # then it minds who calls it
        hub = Hub()
        stream = await live(hub, "a")
        await within(asyncio.to_thread(stream.subscriber.add, "b"))
        await within(asyncio.to_thread(stream.subscriber.remove, "a"))
        await turn()
        assert stream.subscription.topics == {"b"}
        stream.subscription.close()
        await within(asyncio.to_thread(stream.subscriber.add, "c"))
        await turn()
        assert hub.statistics().audiences == 0

    async def test_one_that_is_over_takes_no_topics(self):
        hub = Hub()
        stream = await live(hub, "a")
        stream.subscription.close()
        stream.subscriber.add("b")
        stream.subscriber.remove("a")
        assert stream.subscription.topics == frozenset()
        assert hub.subscribers("b") == 0

    async def test_a_change_of_topics_that_finds_the_client_gone_leaves_nothing_behind(self):
        """peer bug 44: what was published before is written first, and that may end the stream."""
        hub = Hub()
        stream = await live(hub, "a")
        stream.relay = lambda payload, now: stream.subscription.close()
        await publish(hub, ["1"])
        stream.subscriber.add("b")
        await turn()
        statistics = hub.statistics()
        assert (statistics.subscribers, statistics.behind, statistics.audiences) == (0, 0, 0)
        assert hub.subscribers("a") == hub.subscribers("b") == 0


class TestEnd:
    async def test_what_was_published_before_its_end_is_for_it_too(self):
        hub = Hub()
        stream, other = await live(hub, "a"), await live(hub, "a")
        await publish(hub, ["1", "2"])
        stream.subscription.close()
        await publish(hub, ["3"])
        await turn()
        assert stream.texts == ["1", "2"]
        assert other.texts == ["1", "2", "3"]
        assert len(other.payloads) == 2

    async def test_numbers_of_what_was_written_do_not_depend_on_how(self):
        """peer bug 44"""
        hub = Hub(history=5)
        streams = [await live(hub, "a", outlet=Outlet(room)) for room in (float("inf"), 100, 0)]
        for burst in (1, 3, 1, 9, 2):
            await publish(hub, ["x"] * burst)
            await turn()
            streams[1].resume()
        await drain(*streams)
        late = start(hub, "a", replay=9)
        await turn()
        for stream in (*streams, late):
            written = sum(len(stream._unwrapped(payload)) for payload in stream.payloads)
            events = sum(stream._unwrapped(payload).count(b"data: ") for payload in stream.payloads)
            assert (stream.subscription.events, stream.subscription.written) == (events, written)
            stream.subscription.close()
            assert (stream.subscription.events, stream.subscription.written) == (events, written)


class TestAClientThatMissedMuch:
    async def test_reads_one_piece_in_a_turn_whatever_its_outlet_takes(self):
        hub = Hub(history_bytes=None)
        ids = await publish(hub, [f"{number} {'x' * 1000}" for number in range(400)])
        returned = start(hub, "a", after=ids[0])
        turns = 0
        while not returned.subscription.live:
            await turn()
            turns += 1
            assert len(returned.payloads) <= turns
            assert max(map(len, returned.payloads)) < BATCH + 2_000
        assert len(returned.texts) == 399
        assert turns >= 400_000 // BATCH

    async def test_and_many_of_them_leave_time_for_others(self, monkeypatch):
        """There is no time but for one in a turn, and each has its turn: none is last again and again."""
        monkeypatch.setattr("aiohttp_interceptors.hub.fanout.CATCHING_UP", 1e-9)
        hub = Hub(history_bytes=None)
        ids = await publish(hub, [f"{number} {'x' * 1000}" for number in range(400)])
        other = await live(hub, "b")
        returned = [start(hub, "a", f"x.{number % 5}", after=ids[0]) for number in range(20)]
        turns = 0
        while not all(stream.subscription.live for stream in returned):
            await publish(hub, ["now"], "b")
            await turn()
            turns += 1
            assert len(other.texts) == turns
            assert turns < 2_000
            pieces = [len(stream.payloads) for stream in returned]
            assert max(pieces) - min(pieces) <= 1
        assert all(len(stream.texts) == 399 for stream in returned)

    async def test_begins_with_the_latest_and_is_told_of_no_gap_when_some_go_meanwhile(self):
        hub = Hub(history=3)
        await publish(hub, ["1", "2", "3"])
        stream = subscribe(hub, "a", replay=3)
        await publish(hub, ["4"])
        stream.subscription.start()
        await turn(2)
        assert stream.texts == ["2", "3", "4"]


class TestGaps:
    async def test_signal_tells_once_what_is_missing_and_goes_on(self):
        hub = Hub(history=2)
        stream = await live(hub, "a", "b")
        ids = await publish(hub, ["1"])
        await turn()
        stream.pause()
        await publish(hub, ["quiet"], "b")
        ids += await publish(hub, ["2", "3", "4", "5"])
        stream.resume()
        await turn()
        await publish(hub, ["6"])
        await turn()
        assert stream.texts == ["1", "gap", "quiet", "4", "5", "6"]
        told = {"reason": "evicted", "after": ids[0], "first": stream.frames[2].id, "last": ids[2]}
        assert gaps(stream) == [told]
        assert hub.statistics().gaps == 1

    async def test_a_gap_is_told_once_however_many_pieces_follow(self):
        hub = Hub(history=2, history_bytes=None)
        large = "x" * 40_000
        paused = await live(hub, "a", "b")
        paused.pause()
        await publish(hub, ["quiet " + large, "quieter " + large], "b")
        await publish(hub, ["1", "2", "3", "4"])
        paused.resume()
        foreign = start(hub, "a", "b", after="0123456789-1", outlet=Outlet(0))
        await turn(4)  # a piece in each
        await drain(foreign)
        for stream in (paused, foreign):
            assert [text.split()[0] for text in stream.texts] == ["gap", "quiet", "quieter", "3", "4"]
            assert len(stream.payloads) == 3
        assert [gap["reason"] for gap in gaps(foreign)] == ["foreign"]

    async def test_a_stream_that_missed_nothing_is_told_of_no_gap_whatever_others_lost(self):
        hub = Hub(history=2)
        stream = await live(hub, "b")
        stream.pause()
        await publish(hub, ["1"], "b")
        await publish(hub, "123456")
        await publish(hub, ["2"], "b")
        stream.resume()
        await turn()
        assert stream.texts == ["1", "2"]

    async def test_a_quiet_stream_that_was_paused_is_told_of_no_gap_whatever_was_forgotten(self):
        hub = Hub(history=0)
        stream = await live(hub, "quiet.*")
        for number in range(EMPTIED + 2):
            await hub.publish(f"busy.{number}", "x")
        stream.pause()
        stream.resume()
        await turn()
        assert stream.texts == []

    async def test_the_last_of_many_is_told_with_the_id_to_return_with(self):
        hub = Hub(history=0)
        stream = await live(hub, "a")
        stream.pause()
        ids = await publish(hub, ["1", "2"])
        stream.resume()
        await turn()
        assert [(frame.name, frame.id) for frame in stream.frames] == [("gap", ids[1])]
        assert gaps(stream)[0]["first"] is None
        again = await live(hub, "a", after=stream.last_event_id)
        assert again.frames == []

    async def test_close_ends_the_stream_as_lagged_and_it_is_told_when_it_comes_back(self):
        hub = Hub(history=2)
        stream, other = [await live(hub, "a", on_gap="close", prime=True) for _ in range(2)]
        stream.pause()
        await publish(hub, "1234")
        stream.resume()
        await turn()
        assert stream.ends == [(CloseReason.LAGGED, None)]
        assert stream.texts == []
        assert other.texts == list("1234")
        assert hub.statistics().subscribers == 1
        again = await live(hub, "a", on_gap="close", after=stream.last_event_id)
        assert again.texts == ["gap", "3", "4"]
        assert again.ends == []
        cut = await live(hub, "a", after=again.frames[0].id)  # after the gap, and before anything else came
        assert cut.texts == ["3", "4"]

    async def test_conflate_gives_the_latest_of_each_key_and_tells_only_of_what_nothing_makes_up_for(self):
        hub = Hub(history=4)
        streams = [await live(hub, "a", on_gap="conflate") for _ in range(2)]
        streams[0].pause()
        for number in range(6):
            await publish(hub, [f"k{number}"], key="k")
            await publish(hub, [f"l{number}"], key="l")
        streams[0].resume()
        await turn()
        assert streams[0].texts == ["k5", "l5"]
        assert len(streams[1].texts) == 12
        streams[0].pause()
        await publish(hub, ["alone"])
        for number in range(4):
            await publish(hub, [f"m{number}"], key="m")
        streams[0].resume()
        await turn()
        assert streams[0].texts[2:] == ["gap", "m3"]

    async def test_conflate_leaves_out_nothing_while_nothing_is_missing(self):
        hub = Hub(history=4)
        stream = await live(hub, "a", on_gap="conflate")
        stream.pause()
        await publish(hub, "1234", key="k")
        stream.resume()
        await turn()
        assert stream.texts == list("1234")
        stream.pause()
        await publish(hub, "567890", key="k")
        stream.resume()
        await turn()
        stream.pause()
        await publish(hub, "abcd", key="k")
        stream.resume()
        await turn()
        assert stream.texts[4:] == ["0", *"abcd"]

    async def test_conflate_tells_of_a_record_that_went_while_it_was_catching_up_again(self):
        """Evictions that were made up for, in a busy topic, are no excuse for one in a quiet topic that was not."""
        hub = Hub(history=3, history_bytes=None)
        stream = await live(hub, "busy", "quiet", outlet=Outlet(0), on_gap="conflate")
        stream.pause()
        large = "x" * 40_000
        await publish(hub, ["q1 " + large, "q2", "q3"], "quiet")
        for number in range(5):
            await publish(hub, [f"b{number}"], "busy", key="k")
        stream.resume()
        await turn()
        assert [text[:2] for text in stream.texts] == ["q1"]
        assert stream.paused
        await publish(hub, ["q4", "q5"], "quiet")
        await drain(stream)
        assert [text[:3] for text in stream.texts[1:]] == ["gap", "q3", "b4", "q4", "q5"]

    async def test_conflate_looks_at_all_that_is_kept_however_large_it_is(self):
        hub = Hub(history=6, history_bytes=None)
        stream = await live(hub, "a", on_gap="conflate")
        stream.pause()
        await publish(hub, [f"{number} {'x' * 20_000}" for number in range(9)], key="k")
        stream.resume()
        await turn(4)  # a piece of what is kept in each
        assert [text[0] for text in stream.texts] == ["8"]

    async def test_conflate_does_so_in_the_later_pieces_too(self):
        hub = Hub(history=4, history_bytes=None)
        stream = await live(hub, "a", on_gap="conflate")
        stream.pause()
        await publish(hub, ["gone"], key="k")
        await publish(hub, ["alone " + "x" * 40_000])
        await publish(hub, [f"k{number} {'x' * 20_000}" for number in range(3)], key="k")
        stream.resume()
        await turn(4)  # a piece of what is kept in each
        assert [text.split()[0] for text in stream.texts] == ["alone", "k2"]

    async def test_keys_of_different_topics_are_different(self):
        hub = Hub(history=2)
        stream = await live(hub, "a", "b", on_gap="conflate")
        stream.pause()
        await publish(hub, "123", "a", key="k")
        await publish(hub, "456", "b", key="k")
        stream.resume()
        await turn()
        assert stream.texts == ["3", "6"]
