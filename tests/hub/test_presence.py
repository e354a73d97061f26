"""Presence: who has an open stream of a topic, on all nodes, and what streams are told about it."""

from __future__ import annotations

import asyncio
import gc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiohttp_interceptors import CloseReason, Hub
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.hub import nodes
from aiohttp_interceptors.hub.cursor import SubscriptionPolicy
from aiohttp_interceptors.hub.dispatcher import State
from tests.hub.sink import live, plain, start
from tests.hub.watcher import EVENT, Cable, Cluster, Watcher, fold, join, quick, seen, watch
from tests.waiting import run_other_tasks, until, within


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture
async def cluster(monkeypatch):
    quick(monkeypatch)
    cluster = Cluster()
    yield cluster
    await cluster.close()


@pytest.fixture
async def pair(cluster):
    """Two nodes that know each other."""
    hubs = [await cluster.node(), await cluster.node()]
    for each in hubs:
        each.presence("room")
    return hubs


async def everywhere(hubs, *identities, topic="room"):
    """Wait until all nodes know the same identities."""
    await until(lambda: all(seen(hub, topic) == set(identities) for hub in hubs))


class TestWhoIsPresent:
    async def test_it_is_who_has_an_open_stream_of_the_topic(self, hub):
        ann, bob = join(hub, "room", identity="ann"), join(hub, "room", "other", identity="bob")
        assert hub.presence("room") == {"ann", "bob"}
        assert hub.presence("other") == {"bob"}
        assert hub.presence("third") == set()
        ann.subscription.close()
        bob.subscription.close()
        assert hub.presence("room") == hub.presence("other") == set()

    async def test_streams_without_an_identity_do_not_count(self, hub):
        start(hub, "room")
        watch(hub, "room")
        assert hub.presence("room") == set()

    async def test_wildcards_do_not_count(self, hub):
        join(hub, "room.*", ">", "room.a", identity="ann")
        assert hub.presence("room.a") == {"ann"}
        assert hub.presence("room.b") == set()

    async def test_the_topic_of_a_question_has_no_wildcard(self, hub):
        with pytest.raises(ValueError, match=r"room\.\*"):
            hub.presence("room.*")

    async def test_several_streams_of_one_identity_count_once(self, hub):
        tabs = [join(hub, "room", identity="ann") for _ in range(3)]
        watcher = await live_watcher(hub)
        for tab in tabs:
            assert hub.presence("room") == {"ann"}
            tab.subscription.close()
        await run_other_tasks()
        assert watcher.told == [{"topic": "room", "present": ["ann"]}, {"topic": "room", "left": "ann"}]

    async def test_a_page_that_is_reloaded_leaves_and_joins(self, hub):
        ann = join(hub, "room", identity="ann")
        watcher = await live_watcher(hub)
        ann.subscription.close()
        join(hub, "room", identity="ann")
        await run_other_tasks()
        assert watcher.told[1:] == [{"topic": "room", "left": "ann"}, {"topic": "room", "joined": "ann"}]

    @pytest.mark.parametrize("end", ["close", "kick", "select", "sink"])
    async def test_however_a_stream_ends_its_identity_leaves_once(self, hub, end):
        class Broken(Watcher):
            def write(self, payload, now):
                if b"data: x" in payload:
                    raise ConnectionResetError
                super().write(payload, now)

        options = {"sink": Broken()} if end == "sink" else {}
        if end == "select":
            options["select"] = lambda record: 1 / 0
        ann = join(hub, "room", identity="ann", **options)
        watcher = await live_watcher(hub)
        if end == "close":
            ann.subscription.close()
            ann.subscription.close()
        elif end == "kick":
            ann.subscriber.close()
        else:
            await hub.publish("room", "x")
            await run_other_tasks()
        ann.subscription.close()
        await run_other_tasks()
        assert hub.presence("room") == set()
        assert watcher.told[1:] == [{"topic": "room", "left": "ann"}]

    async def test_a_stream_that_was_never_started_leaves_as_well(self, hub):
        subscription = hub.subscribe(["room"], Watcher(), lambda *end: None, identity="ann")
        assert hub.presence("room") == {"ann"}
        subscription.close()
        assert hub.presence("room") == set()

    async def test_the_end_of_the_topic_is_the_end_of_the_stream(self, hub):
        ann = join(hub, "room", identity="ann")
        await hub.finish("room", "over")
        await run_other_tasks()
        assert ann.ends == [(CloseReason.CLOSED, None)]
        assert hub.presence("room") == set()

    async def test_added_and_removed_topics_count(self, hub):
        ann = join(hub, "room", identity="ann")
        ann.subscriber.add("other", "other.*")
        assert (seen(hub), seen(hub, "other")) == ({"ann"}, {"ann"})
        ann.subscriber.remove("room")
        assert (seen(hub), seen(hub, "other")) == (set(), {"ann"})
        ann.subscriber.remove("other", "other.*")
        assert seen(hub, "other") == set()
        ann.subscriber.add("room")
        assert seen(hub) == {"ann"}

    @pytest.mark.parametrize(
        ("identity", "error"),
        [(5, TypeError), (b"ann", TypeError), ("", ValueError), ("a\nb", ValueError), ("x" * 256, ValueError)],
    )
    async def test_an_identity_is_a_short_printable_string(self, hub, identity, error):
        with pytest.raises(error, match="identity"):
            join(hub, "room", identity=identity)
        with pytest.raises(error, match="identity"):
            hub.listen("room", identity=identity)
        assert hub.statistics().subscribers == 0
        join(hub, "room", identity="Änn 😀" + "x" * 200)

    def test_the_name_of_the_events_is_checked(self):
        with pytest.raises(ValueError, match="presence_event"):
            SubscriptionPolicy(presence_event="")


async def live_watcher(hub, *topics, **options) -> Watcher:
    """Open a stream that watches, and wait until it knows who is present."""
    watcher = watch(hub, *(topics or ["room"]), **options)
    await until(lambda: watcher.subscription.live)
    return watcher


class TestWhatStreamsAreTold:
    async def test_a_stream_is_told_who_is_there_and_then_who_joins_and_leaves(self, hub):
        join(hub, "room", identity="bob")
        ann = join(hub, "room", identity="ann")
        await run_other_tasks()
        cat = join(hub, "room", identity="cat", watches=False)
        await run_other_tasks()
        cat.subscription.close()
        await run_other_tasks()
        assert ann.told == [
            {"topic": "room", "present": ["ann", "bob"]},
            {"topic": "room", "joined": "cat"},
            {"topic": "room", "left": "cat"},
        ]
        assert cat.told == []

    async def test_each_topic_without_a_wildcard_has_its_own_list(self, hub):
        join(hub, "b", identity="ann")
        watcher = await live_watcher(hub, "b", "a", "a.*")
        join(hub, "a.b", identity="bob")
        await run_other_tasks()
        assert watcher.told == [{"topic": "a", "present": []}, {"topic": "b", "present": ["ann"]}]

    async def test_the_list_comes_after_the_records_of_the_history(self, hub):
        await hub.publish("room", "1")
        await hub.publish("room", "2")
        watcher = await live_watcher(hub, replay=2)
        assert [frame.name for frame in watcher.frames] == [None, None, EVENT]

    async def test_the_events_have_no_id(self, hub):
        await hub.publish("room", "1")
        watcher = await live_watcher(hub, replay=1)
        last = watcher.last_event_id
        join(hub, "room", identity="ann")
        await run_other_tasks()
        assert {frame.id for frame in watcher.frames if frame.name == EVENT} == {None}
        assert watcher.last_event_id == last
        assert hub.statistics().records == 1

    async def test_a_list_counts_as_an_event(self, hub):
        watcher = await live_watcher(hub, "a", "b")
        join(hub, "a", identity="ann")
        await run_other_tasks()
        assert watcher.subscription.events_written == 3
        assert watcher.subscription.bytes_written == sum(len(watcher._unwrapped(each)) for each in watcher.payloads)

    async def test_select_is_not_asked(self, hub):
        asked = []
        watcher = await live_watcher(hub, select=asked.append)
        join(hub, "room", identity="ann")
        await run_other_tasks()
        assert watcher.present == {"room": {"ann"}}
        assert asked == []

    async def test_streams_that_do_not_watch_are_told_nothing(self, hub):
        sinks = [await live(hub, "room"), await live(hub, ">"), await live(hub, "_hub")]
        join(hub, "room", identity="ann")
        await run_other_tasks()
        assert [sink.frames for sink in sinks] == [[], [], []]

    async def test_only_streams_that_watch_have_a_group_of_their_own(self, hub):
        for _ in range(3):
            start(hub, "room")
        for identity in "abc":
            join(hub, "room", identity=identity, watches=False)
        assert hub.statistics().groups == 1
        for identity in "abc":
            join(hub, "room", identity=identity)
        assert hub.statistics().groups == 2

    @pytest.mark.parametrize("encoder", ["sized", "plain"])
    async def test_a_slow_client_gets_the_list_again_when_it_reads_on(self, hub, encoder):
        options = {"encoder": plain} if encoder == "plain" else {}
        watcher = await live_watcher(hub, sink=Watcher(**options))
        watcher.pause()
        ann = join(hub, "room", identity="ann")
        join(hub, "room", identity="bob")
        ann.subscription.close()
        await run_other_tasks()
        assert watcher.present == {"room": set()}
        watcher.resume()
        await run_other_tasks()
        assert watcher.told[1:] == [{"topic": "room", "present": ["bob"]}]

    async def test_a_client_that_pauses_in_the_middle_misses_nothing(self, hub):
        """Its buffer is full after the first of several writes in one flush."""
        watcher = await live_watcher(hub, sink=Watcher(room=2000))
        crowd = [join(hub, "room", identity=f"{number:0200}", watches=False) for number in range(200)]
        await until(lambda: watcher.paused)
        assert len(watcher.present["room"]) < len(crowd)
        watcher.room = float("inf")
        watcher.resume()
        await until(lambda: watcher.present["room"] == seen(hub))

    async def test_a_client_whose_buffer_is_full_after_the_list_gets_it_once(self, hub):
        watcher = watch(hub, "room", sink=Watcher(room=1))
        await until(lambda: watcher.paused)
        for _ in range(5):
            watcher.resume()
            await run_other_tasks()
        assert watcher.told == [{"topic": "room", "present": []}]

    async def test_the_reconnection_time_comes_with_the_list_instead_of_an_initial_frame(self, hub):
        watcher = await live_watcher(hub, retry=1000)
        assert [(frame.name, frame.retry) for frame in watcher.frames] == [(EVENT, 1000)]

    async def test_added_topics_have_a_list(self, hub):
        join(hub, "b", identity="bob")
        watcher = await live_watcher(hub, "a")
        watcher.subscriber.add("b")
        join(hub, "b", identity="cat")
        join(hub, "a", identity="ann")
        await run_other_tasks()
        assert watcher.present == {"a": {"ann"}, "b": {"bob", "cat"}}

    async def test_removed_topics_are_not_reported_any_more(self, hub):
        watcher = await live_watcher(hub, "a", "b")
        watcher.subscriber.remove("b")
        await run_other_tasks()
        before = len(watcher.told)
        join(hub, "b", identity="bob")
        await run_other_tasks()
        assert len(watcher.told) == before

    async def test_topics_may_change_at_every_moment(self, hub):
        """Also before the stream has caught up, and while it is paused."""
        for moment in range(6):
            watcher = watch(hub, "a")
            await run_other_tasks(moment)
            watcher.subscriber.add("b")
            bob = join(hub, "b", identity="bob")
            await run_other_tasks(moment % 3)
            if moment % 2:
                watcher.pause()
                watcher.subscriber.add("c")
                cat = join(hub, "c", identity="cat")
                watcher.resume()
                cat.subscription.close()
            await run_other_tasks()
            assert watcher.present["b"] == {"bob"}
            bob.subscription.close()
            await run_other_tasks()
            assert all(watcher.present[topic] == set() for topic in watcher.subscriber.topics)
            watcher.subscription.close()

    async def test_select_may_change_the_topics(self, hub):
        def select(record):
            watcher.subscriber.add("b")
            return True

        join(hub, "b", identity="bob")
        await hub.publish("a", "x")
        watcher = watch(hub, "a", select=select, replay=1)
        await run_other_tasks()
        assert watcher.present == {"a": set(), "b": {"bob"}}

    async def test_a_thousand_identities_in_a_room(self, hub):
        names = [f"user-{number}" for number in range(1000)]
        crowd = [join(hub, "room", identity=name, watches=name.endswith("99")) for name in names]
        watchers = crowd[99::100]
        await until(lambda: all(each.present == {"room": set(names)} for each in watchers))
        assert seen(hub) == set(names)
        for each in crowd[:-1]:
            each.subscription.close()
        await until(lambda: watchers[-1].present == {"room": {"user-999"}})


class TestListeners:
    async def test_a_listener_is_present_until_it_is_closed(self, hub):
        async with hub.listen("room", identity="ann"):
            assert hub.presence("room") == {"ann"}
        assert hub.presence("room") == set()

    async def test_a_listener_that_is_forgotten_leaves(self, hub):
        watcher = await live_watcher(hub)
        listener = hub.listen("room", identity="ann")
        assert hub.presence("room") == {"ann"}
        del listener
        gc.collect()
        await run_other_tasks()
        assert hub.presence("room") == set()
        assert watcher.told[1:] == [{"topic": "room", "joined": "ann"}, {"topic": "room", "left": "ann"}]

    async def test_a_listener_is_told_who_is_present(self, hub):
        present = {}
        listener = hub.listen("room", identity="ann", presence_event=EVENT, select=lambda record: False)
        bob = None
        for step in range(3):
            record = await within(anext(listener))
            assert (record.id, record.topic, record.event.name) == (None, "room", EVENT)
            fold(present, record.event)
            if step == 0:
                bob = join(hub, "room", identity="bob")
            elif step == 1:
                assert present == {"room": {"ann", "bob"}}
                bob.subscription.close()
        assert present == {"room": {"ann"}}
        await listener.aclose()

    async def test_a_listener_with_a_small_buffer_is_told_once(self, hub):
        async with hub.listen("room", presence_event=EVENT, buffer=1) as listener:
            assert (await within(anext(listener))).event.name == EVENT
            await hub.publish("room", "x")
            assert (await within(anext(listener))).event.data == "x"

    def test_a_listener_that_is_forgotten_after_its_event_loop_leaves_nobody_behind(self, hub):
        async def listen():
            return hub.listen("room", identity="ann")

        listener = asyncio.run(listen())
        assert hub.presence("room") == {"ann"}
        del listener
        gc.collect()
        assert hub.presence("room") == set()

    async def test_the_end_of_the_hub_ends_listeners(self, hub):
        listener = hub.listen("room", identity="ann")
        await hub.close()
        assert hub.presence("room") == set()
        with pytest.raises(StopAsyncIteration):
            await within(anext(listener))

    async def test_a_hub_without_a_broker_can_be_opened_again(self, hub):
        ann = join(hub, "room", identity="ann")
        await hub.close()
        assert hub.presence("room") == {"ann"}  # without a broker streams stay open
        ann.subscription.close()
        hub.open()
        bob = join(hub, "room", identity="bob")
        await run_other_tasks()
        assert bob.present == {"room": {"bob"}}


class TestSeveralNodes:
    async def test_each_node_knows_who_is_present_on_the_others(self, pair):
        here, there = pair
        ann, bob = join(here, "room", identity="ann"), join(there, "room", identity="bob")
        await everywhere(pair, "ann", "bob")
        await until(lambda: ann.present == bob.present == {"room": {"ann", "bob"}})
        ann.subscription.close()
        await everywhere(pair, "bob")
        await until(lambda: bob.present == {"room": {"bob"}})

    async def test_two_tabs_on_two_nodes_count_once(self, pair):
        here, there = pair
        tabs = [join(here, "room", identity="ann"), join(there, "room", identity="ann")]
        watcher = await live_watcher(here)
        join(there, "room", identity="last")
        await everywhere(pair, "ann", "last")
        tabs[0].subscription.close()
        await run_other_tasks()
        assert "ann" in seen(here)
        tabs[1].subscription.close()
        await everywhere(pair, "last")
        await until(lambda: watcher.present == {"room": {"last"}})
        assert [each for each in watcher.told if "left" in each] == [{"topic": "room", "left": "ann"}]

    async def test_topics_that_change_are_told_to_the_others(self, pair):
        here, there = pair
        ann = join(here, "a", identity="ann")
        await everywhere(pair, "ann", topic="a")
        ann.subscriber.add("b", "b.*")
        ann.subscriber.remove("a")
        await everywhere(pair, "ann", topic="b")
        await everywhere(pair, topic="a")
        assert there.presence("b.c") == set()

    async def test_a_node_that_starts_later_asks(self, cluster, pair):
        join(pair[0], "room", identity="ann")
        join(pair[1], "room", identity="bob")
        late = await cluster.node()
        watcher = watch(late, "room")
        await until(lambda: watcher.present == {"room": {"ann", "bob"}})

    async def test_a_node_that_begins_to_use_presence_later_asks(self, cluster, pair):
        late = await cluster.node()
        join(pair[0], "room", identity="ann")
        await everywhere(pair, "ann")
        late.presence("room")
        await until(lambda: seen(late) == {"ann"})

    async def test_a_node_that_is_not_ready_yet_asks_once_it_is(self, cluster, pair):
        join(pair[0], "room", identity="ann")
        late = await cluster.node(ready=False)
        assert late.presence("room") == set()
        await until(lambda: seen(late) == {"ann"})

    async def test_a_list_has_as_many_messages_as_it_needs(self, monkeypatch, cluster, pair):
        monkeypatch.setattr("aiohttp_interceptors.hub.presence.BATCH_SIZE", 12)
        for number in range(10):
            join(pair[0], "room", identity=f"{number}", watches=False)
        await everywhere(pair, *"0123456789")
        late = await cluster.node()
        late.presence("room")
        await until(lambda: seen(late) == set("0123456789"))

    async def test_the_size_of_a_message_is_counted_in_bytes(self, cluster, pair):
        for number in range(100):
            join(pair[0], "room", identity=f"{number}{'😀' * 250}", watches=False)
        await until(lambda: len(seen(pair[1])) == 100)
        assert max(len(entry.payload) for entry in cluster.log.after(cluster.log.start)) < 40_000

    async def test_the_first_question_of_a_thread_is_refused_and_harmless(self, cluster):
        hub = await cluster.node()
        with pytest.raises(RuntimeError, match="event loop"):
            await asyncio.to_thread(hub.presence, "room")
        assert hub.presence("room") == set()
        join(await cluster.node(), "room", identity="ann")
        await everywhere(cluster.hubs, "ann")

    async def test_who_leaves_in_the_same_moment_is_not_told_of_the_others(self, cluster):
        hub = await cluster.node()
        crowd = [join(hub, "room", identity=f"{number}") for number in range(10)]
        await until(lambda: all(len(each.present.get("room", ())) == 10 for each in crowd))
        before = [len(each.told) for each in crowd]
        await hub.close()
        assert [len(each.told) for each in crowd] == before

    async def test_the_others_learn_of_a_change_without_waiting_for_a_lease(self, monkeypatch, cluster):
        for name in "LEASE_INTERVAL", "LEASE_TIMEOUT", "CHECK_INTERVAL", "RETRY_DELAY":
            monkeypatch.setattr(nodes, name, 1000.0)
        hubs = [await cluster.node() for _ in range(3)]
        for hub in hubs:
            join(hub, "room", identity="all")
        await until(lambda: len(cluster.control_messages()) >= 3 and all(hub.presence("room") for hub in hubs))
        await run_other_tasks(50)  # all questions are answered
        ann = join(hubs[0], "room", identity="ann")
        await everywhere(hubs, "all", "ann")
        ann.subscription.close()
        await everywhere(hubs, "all")

    async def test_a_page_that_is_reloaded_is_one_message(self, cluster, pair):
        here, there = pair
        join(here, "room", identity="last")
        ann = join(here, "room", identity="ann")
        await everywhere(pair, "ann", "last")
        watcher = await live_watcher(there)
        ann.subscription.close()
        join(here, "room", identity="ann")
        join(here, "room", identity="bob")
        await everywhere(pair, "ann", "bob", "last")
        await run_other_tasks()
        assert watcher.told == [{"topic": "room", "present": ["ann", "last"]}, {"topic": "room", "joined": "bob"}]

    async def test_a_second_tab_on_the_same_node_sends_nothing(self, monkeypatch, cluster, pair):
        monkeypatch.setattr(nodes, "LEASE_INTERVAL", 1000.0)
        join(pair[0], "room", identity="ann")
        await everywhere(pair, "ann")
        await run_other_tasks(20)  # the lease that was due
        before = cluster.log.end
        join(pair[0], "room", identity="ann").subscription.close()
        join(pair[0], "room", identity="bob")
        await everywhere(pair, "ann", "bob")
        assert [each["joined"] for each in cluster.control_messages()[before:]] == [[["room", "bob"]]]

    async def test_nothing_is_sent_if_presence_is_not_used(self, cluster):
        hubs = [await cluster.node() for _ in range(2)]
        sinks = [await live(hub, ">") for hub in hubs]
        position = await hubs[0].publish("room", "x")
        await until(lambda: all(sink.texts == ["x"] for sink in sinks))
        assert cluster.log.end == 1
        assert position == hubs[1].history.id_of(1)

    async def test_no_stream_and_no_listener_receives_control_messages(self, cluster, pair):
        here, there = pair
        sinks = [start(there, ">"), start(there, "_hub"), start(there, "*")]
        listener = there.listen(">")
        join(here, "room", identity="ann")
        await everywhere(pair, "ann")
        await here.publish("room", "x")
        assert (await within(anext(listener))).event.data == "x"
        await until(lambda: sinks[0].texts == sinks[2].texts == ["x"])
        assert [[frame.name for frame in sink.frames] for sink in sinks] == [[None], [], [None]]
        assert cluster.control_messages()
        await listener.aclose()

    async def test_a_client_resumes_after_control_messages_without_a_gap(self, cluster, pair):
        here, there = pair
        sink = start(here, "room")
        position = await here.publish("room", "1")
        join(here, "room", identity="ann")
        await everywhere(pair, "ann")
        await here.publish("room", "2")
        back = start(there, "room", after=position)
        await until(lambda: back.texts == ["2"])
        await until(lambda: sink.texts == ["1", "2"])


class TestOutages:
    async def test_local_users_stay_known_while_the_broker_is_down(self, cluster, pair):
        here, there = pair
        join(here, "room", identity="ann")
        bob = join(there, "room", identity="bob")
        await everywhere(pair, "ann", "bob")
        watcher = await live_watcher(here)
        cluster.log.stop()
        await until(lambda: not here.ready and not there.ready)
        cat = join(here, "room", identity="cat")
        await until(lambda: cat.present == watcher.present == {"room": {"ann", "bob", "cat"}})
        bob.subscription.close()
        dan = join(there, "room", identity="dan")
        assert seen(there) == {"ann", "dan"}
        cluster.log.restart()
        await everywhere(pair, "ann", "cat", "dan")
        await until(lambda: watcher.present == dan.present == {"room": {"ann", "cat", "dan"}})

    async def test_nobody_is_declared_dead_because_the_broker_is_down(self, monkeypatch, cluster, pair):
        here, there = pair
        join(there, "room", identity="bob")
        await everywhere(pair, "bob")
        watcher = await live_watcher(here)
        cluster.log.stop()
        await until(lambda: not here.ready and not there.ready)
        monkeypatch.setattr(nodes, "LEASE_TIMEOUT", 0.05)
        deadline = asyncio.get_running_loop().time() + 0.2
        await until(lambda: asyncio.get_running_loop().time() > deadline)  # a lease has expired
        monkeypatch.setattr(nodes, "LEASE_TIMEOUT", 60.0)
        assert seen(here) == {"bob"}
        cluster.log.restart()
        await until(lambda: here.ready and there.ready)
        await everywhere(pair, "bob")
        assert watcher.told == [{"topic": "room", "present": ["bob"]}]

    async def test_what_a_node_missed_while_it_was_cut_off_is_told_again(self, cluster, pair):
        here, there = pair
        cable = Cable(cluster.log)
        third = await cluster.node(cable)
        ann = join(here, "room", identity="ann")
        watcher = watch(third, "room")
        await until(lambda: watcher.present == {"room": {"ann"}})
        cable.cut = True
        ann.subscription.close()
        join(there, "room", identity="bob")
        join(third, "room", identity="cat", watches=False)
        await everywhere(pair, "bob")
        await until(lambda: not third.ready)
        assert seen(third) == {"ann", "cat"}
        cable.cut = False
        await everywhere([*pair, third], "bob", "cat")
        await until(lambda: watcher.present == {"room": {"bob", "cat"}})

    async def test_the_log_that_lost_everything_is_filled_again(self, cluster, pair):
        here, there = pair
        join(here, "room", identity="ann")
        bob = join(there, "room", identity="bob")
        await everywhere(pair, "ann", "bob")
        cluster.log.stop()
        await until(lambda: not here.ready and not there.ready)
        cluster.log.truncate(0)
        bob.subscription.close()
        cluster.log.restart()
        await everywhere(pair, "ann")
        late = await cluster.node()
        late.presence("room")
        await everywhere([late], "ann")

    async def test_a_message_that_the_log_lost_before_it_was_received_is_sent_again(self, cluster, pair):
        end = cluster.log.end
        join(pair[0], "room", identity="ann")
        await until(lambda: cluster.log.end > end)
        cluster.log.truncate(end)
        await everywhere(pair, "ann")

    async def test_what_a_node_missed_since_it_was_slow_is_told_again(self, cluster):
        class Slow(MemoryBroker):
            fast = asyncio.Event()

            async def tail(self, after):
                async for item in super().tail(after):
                    yield item
                    await self.fast.wait()

        Slow.fast.set()
        cluster.log = MemoryLog(max_records=5)
        here, there = pair = [await cluster.node(), await cluster.node(Slow(cluster.log))]
        there.presence("room")
        join(here, "room", identity="bob")
        ann = join(here, "room", identity="ann")
        await everywhere(pair, "ann", "bob")
        Slow.fast.clear()
        await here.publish("other", "x")
        await until(lambda: here.history.end == cluster.log.end)
        ann.subscription.close()
        await until(lambda: any(message.get("left") for message in cluster.control_messages()))
        for _ in range(20):
            await here.publish("other", "x")
        Slow.fast.set()
        await everywhere(pair, "bob")

    async def test_a_hub_that_starts_without_its_broker_knows_its_own_users(self, cluster):
        cluster.log.stop()
        hub = await cluster.node(ready=False)
        ann = join(hub, "room", identity="ann")
        assert hub.presence("room") == {"ann"}
        assert ann.frames == []
        cluster.log.restart()
        await until(lambda: ann.present == {"room": {"ann"}})


TOPICS = ["a", "b"]
WHO = ["ann", "bob", "cat"]
HUBS = 3
LEASE_TIMEOUT = 0.05
hubs_of = st.integers(0, HUBS - 1)
streams_of = st.integers(0, 5)
topics_of = st.lists(st.sampled_from([*TOPICS, "*"]), min_size=1, max_size=3, unique=True)
joins = st.tuples(st.just("join"), hubs_of, st.sampled_from([*WHO, None]), topics_of, st.booleans())
steps = st.one_of(
    joins,
    joins,
    joins,
    st.tuples(st.just("leave"), streams_of),
    st.tuples(st.sampled_from(["add", "remove"]), streams_of, topics_of),
    st.tuples(st.sampled_from(["pause", "resume"]), streams_of),
    st.tuples(st.just("wait"), st.integers(1, 5)),
    st.tuples(st.just("look")),
    st.tuples(st.just("lapse")),
    st.tuples(st.just("stop_log")),
    st.tuples(st.just("restart_log"), st.booleans()),
    st.tuples(st.sampled_from(["cut", "mend", "freeze", "thaw", "die", "close"]), hubs_of),
)


class World:
    """Nodes and their streams. What all nodes must know in the end is what the streams say."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self.cables: list[Cable] = []
        self.hubs: list[Hub] = []
        self.streams: list[tuple[int, str | None, Watcher]] = []

    async def open(self) -> None:
        for _ in range(HUBS):
            self.cables.append(Cable(self.cluster.log))
            self.hubs.append(await self._node(self.cables[-1]))

    async def _node(self, cable: Cable) -> Hub:
        hub = await self.cluster.node(cable, ready=False)
        hub.presence("a")
        return hub

    def _stream(self, which: int) -> tuple[int, str | None, Watcher] | None:
        return self.streams[which % len(self.streams)] if self.streams else None

    async def join(self, which, identity, topics, selects) -> None:
        select = (lambda record: False) if selects else None
        sink = join(self.hubs[which], *topics, identity=identity, select=select)
        self.streams.append((which, identity, sink))

    async def leave(self, which) -> None:
        if stream := self._stream(which):
            self.streams.remove(stream)
            stream[2].subscription.close()

    async def add(self, which, topics) -> None:
        if stream := self._stream(which):
            stream[2].subscriber.add(*topics)

    async def remove(self, which, topics) -> None:
        if stream := self._stream(which):
            stream[2].subscriber.remove(*topics)
            for topic in topics:
                stream[2].present.pop(topic, None)

    async def pause(self, which) -> None:
        if stream := self._stream(which):
            stream[2].pause()

    async def resume(self, which) -> None:
        if stream := self._stream(which):
            stream[2].resume()

    async def wait(self, switches) -> None:
        await run_other_tasks(switches)

    async def look(self) -> None:
        """Each stream that is not paused soon knows what its node knows."""
        await until(lambda: all(self._agrees(which, sink) for which, _, sink in self.streams))

    def _agrees(self, which: int, sink: Watcher) -> bool:
        exact = sink.subscriber.topics - {"*"}
        waits = sink.paused or sink.subscription.state is State.PENDING
        return waits or sink.present == {topic: seen(self.hubs[which], topic) for topic in exact}

    async def lapse(self) -> None:
        """Wait until the leases of nodes that are cut off or frozen have expired."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + 2 * LEASE_TIMEOUT
        await until(lambda: loop.time() > deadline)

    async def stop_log(self) -> None:
        self.cluster.log.stop()
        await run_other_tasks()

    async def restart_log(self, loses) -> None:
        if not self.cluster.log.up and loses:
            self.cluster.log.truncate(self.cluster.log.end // 2)
        self.cluster.log.restart()

    async def cut(self, which) -> None:
        self.cables[which].cut = True

    async def mend(self, which) -> None:
        self.cables[which].cut = False

    async def freeze(self, which) -> None:
        self.cables[which].freeze()

    async def thaw(self, which) -> None:
        self.cables[which].thaw()

    async def die(self, which) -> None:
        """The process is gone, and another one takes its place."""
        self.cables[which].cut = True
        self.cables[which].thaw()
        await self._replace(which)

    async def close(self, which) -> None:
        self.cables[which].thaw()
        await self.hubs[which].close()
        await self._replace(which)

    async def _replace(self, which) -> None:
        self.streams = [stream for stream in self.streams if stream[0] != which]
        self.cables[which] = Cable(self.cluster.log)
        self.hubs[which] = await self._node(self.cables[which])

    async def close_all(self) -> None:
        for cable in self.cables:
            cable.thaw()
        await self.cluster.close()

    def expected(self, topic: str) -> set[str]:
        return {identity for _, identity, sink in self.streams if identity and topic in sink.subscriber.topics}

    async def check(self) -> None:
        """Once everything works again, all nodes and all streams agree."""
        self.cluster.log.restart()
        for cable in self.cables:
            cable.cut = False
            cable.thaw()
        for _, _, sink in self.streams:
            sink.resume()
        await until(lambda: all(hub.ready for hub in self.hubs))
        await until(lambda: all(seen(hub, topic) == self.expected(topic) for hub in self.hubs for topic in TOPICS))
        await self.look()


@settings(max_examples=40, deadline=None)
@given(st.lists(steps, min_size=5, max_size=40))
def test_in_the_end_all_nodes_and_all_streams_agree(run):
    async def check() -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            quick(monkeypatch, lease_timeout=LEASE_TIMEOUT)
            world = World()
            await world.open()
            try:
                for name, *arguments in run:
                    await getattr(world, name)(*arguments)
                await world.check()
            finally:
                await world.close_all()

    asyncio.run(check())
