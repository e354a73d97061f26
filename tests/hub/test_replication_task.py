"""A Hub replicates its broker across outages: one tail after the other, and one log line per change."""

from __future__ import annotations

import asyncio

import pytest

from aiohttp_interceptors import BrokerDown, BrokerError, Event, Hub, HubDown, HubResumed, HubUp
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.channel import CloseReason
from aiohttp_interceptors.hub import replication
from aiohttp_interceptors.hub.broker import CaughtUp
from tests.hub.sink import Sink, start, subscribe
from tests.waiting import until, within


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Reconnect without delay: the server is in this process."""
    monkeypatch.setattr(replication, "MIN_RECONNECT_DELAY", 0.001)
    monkeypatch.setattr(replication, "MAX_RECONNECT_DELAY", 0.005)


@pytest.fixture
def log():
    return MemoryLog()


@pytest.fixture
async def hubs(log):
    """Make Hubs that share a log, each with the facts that it reported of its connection."""
    made = []

    def make(broker=None, **options) -> Hub:
        facts = []

        def observer(fact):
            if isinstance(fact, HubUp | HubDown | HubResumed):
                facts.append(fact)

        hub = Hub(broker or MemoryBroker(log), observer=observer, **options)
        hub.facts = facts
        hub.open()
        made.append(hub)
        return hub

    yield make
    for hub in made:
        await hub.close()


async def ready(*hubs: Hub) -> None:
    for hub in hubs:
        await until(lambda hub=hub: hub.ready)


async def has(sink: Sink, count: int) -> list[str]:
    await until(lambda: len(sink.texts) >= count)
    return sink.texts


def kinds(hub: Hub) -> list[type]:
    return [type(fact) for fact in hub.facts]


class TestUp:
    async def test_a_hub_is_ready_when_it_has_read_the_history(self, hubs, log):
        for number in range(3):
            await MemoryBroker(log).publish("a", b"\x10data: %d\n\n" % number)
        hub = hubs()
        assert not hub.ready
        await ready(hub)
        assert hub.facts == [HubUp(3)]
        assert [record.event.data for record in hub.history.read(0, ["a"]).records] == ["0", "1", "2"]

    async def test_a_hub_without_a_broker_is_always_ready(self):
        assert Hub().ready

    async def test_clients_of_all_processes_receive_an_event_once_and_with_the_same_id(self, hubs):
        four = [hubs() for _ in range(4)]
        await ready(*four)
        sinks = [start(hub, "a") for hub in four]
        event_id = await four[0].publish("a", Event("x", "named"))
        for sink in sinks:
            assert await has(sink, 1) == ["x"]
            assert sink.last_event_id == event_id
            assert sink.frames[0].name == "named"
            assert sink.payloads == sinks[0].payloads

    async def test_the_history_that_a_new_process_reads_is_not_written_to_open_streams(self, hubs):
        """Neither to those of other processes, nor to its own that connected before it had read the history."""
        early = hubs()
        await ready(early)
        open_one = start(early, "a")
        for number in range(3):
            await early.publish("a", str(number))
        await has(open_one, 3)
        late = hubs()
        its_own = start(late, "a")
        assert not its_own.subscription.has_start_position
        await ready(late)
        await early.publish("a", "new")
        assert await has(its_own, 1) == ["new"]
        assert await has(open_one, 4) == ["0", "1", "2", "new"]

    async def test_a_client_that_reconnects_before_the_history_is_read_resumes_after_its_id(self, hubs):
        early = hubs()
        await ready(early)
        ids = [await early.publish("a", str(number)) for number in range(5)]
        sink = start(hubs(), "a", after=ids[1])
        assert await has(sink, 3) == ["2", "3", "4"]

    async def test_replay_waits_for_the_history(self, hubs):
        early = hubs()
        for number in range(5):
            await early.publish("a", str(number))
        sink = start(hubs(), "a", replay=2)
        assert await has(sink, 2) == ["3", "4"]

    async def test_an_id_that_this_process_has_not_received_yet_is_waited_for(self, hubs, log, monkeypatch):
        monkeypatch.setattr("aiohttp_interceptors.hub.pending.FUTURE_ID_TIMEOUT", 60.0)
        one, other = hubs(), hubs()
        await ready(one, other)
        offset = log.append("a", b"\x10data: 1\n\n", None)
        event_id = f"{offset.epoch}-{offset.offset}"
        assert other.history.may_arrive(event_id)
        sink = start(other, "a", after=event_id)
        await other.publish("a", "2")
        assert await has(sink, 1) == ["2"]

    async def test_an_id_that_does_not_arrive_is_a_gap_after_a_timeout(self, hubs, monkeypatch):
        monkeypatch.setattr("aiohttp_interceptors.hub.pending.FUTURE_ID_TIMEOUT", 0.05)
        hub = hubs()
        await ready(hub)
        sink = start(hub, "a", after=f"{hub.history.epoch}-99")
        assert await has(sink, 1) == ["gap"]
        assert '"future"' in sink.frames[0].data

    async def test_an_ephemeral_event_reaches_all_processes_and_is_kept_by_none(self, hubs):
        one, other = hubs(), hubs()
        await ready(one, other)
        sink = start(other, "a")
        assert await one.publish("a", "typing", ephemeral=True) is None
        await one.publish("a", "kept")
        assert await has(sink, 2) == ["typing", "kept"]
        late = start(other, "a", replay=9)
        assert await has(late, 1) == ["kept"]

    async def test_records_from_a_broker_have_their_keys(self, hubs):
        one, other = hubs(), hubs()
        await ready(one, other)
        await one.publish("a", "1", key="k")
        await one.publish("a", "2", key="k")
        await until(lambda: other.history.records == 2)
        assert [record.key for record in other.history.read(0, ["a"]).records] == ["k", "k"]

    async def test_events_published_from_other_threads_reach_all_processes(self, hubs):
        one, other = hubs(), hubs()
        await ready(one, other)
        sink = start(other, "a")
        future = await asyncio.to_thread(one.publish_threadsafe, "a", "x", idempotency_key="k")
        assert await asyncio.wrap_future(future) == await one.publish("a", "x", idempotency_key="k")
        assert await has(sink, 1) == ["x"]

    async def test_an_entry_that_cannot_be_decoded_is_a_gap_and_is_logged(self, hubs, log, logged):
        hub = hubs()
        await ready(hub)
        sink = start(hub, "a")
        stranger = MemoryBroker(log)
        for payload in b"\x00", b"\xffwhat", b"\x11\xff\xff":
            await stranger.publish("a", payload)
        await until(lambda: hub.history.end == 3)
        await hub.publish("a", "x")
        await until(lambda: "x" in sink.texts)
        assert set(sink.texts[:-1]) == {"gap"}
        assert [line["offset"] for line in logged if line["event"] == "hub_entry_skipped"] == [1, 2, 3]

    async def test_the_age_of_a_record_counts_from_its_publication(self, log, hubs):
        early = hubs(history_age=60.0)
        await early.publish("a", "old")
        loop = asyncio.get_running_loop()
        published = loop.time()
        await until(lambda: loop.time() > published + 2.0)
        hub = hubs(history_age=60.0)
        await ready(hub)
        (record,) = hub.history.read(0, ["a"]).records
        assert record.time == pytest.approx(published, abs=1.0)


class TestDown:
    async def test_in_an_outage_streams_stay_open_publish_raises_and_missed_events_follow(self, hubs, log, logged):
        """The Hub is not ready meanwhile, nothing is lost, and each change is one log line."""
        here, away = hubs(), MemoryBroker(log)
        await ready(here)
        sink = start(here, "a")
        await here.publish("a", "before")
        await has(sink, 1)
        log.stop()
        await until(lambda: not here.ready)
        for _ in range(3):
            with pytest.raises(BrokerDown, match="not stored"):
                await here.publish("a", "lost", idempotency_key="k")
        assert sink.ends == []
        log.restart()
        await away.publish("a", b"\x10data: meanwhile\n\n")
        await ready(here)
        await here.publish("a", "after", idempotency_key="k")
        assert await has(sink, 3) == ["before", "meanwhile", "after"]
        assert kinds(here) == [HubUp, HubDown, HubResumed]
        assert here.facts[1].error == "the tail ended"
        assert here.facts[2].missed in {0, 1}  # the Hub may have reconnected before
        changes = [line["event"] for line in logged if line["event"].startswith("hub_")]
        assert changes == ["hub_up", "hub_down", "hub_resumed"]
        assert [line["log_level"] for line in logged if line["event"].startswith("hub_")] == ["info", "warning", "info"]

    async def test_a_tail_that_ends_without_an_error_is_restarted(self, hubs, log):

        class Ends(MemoryBroker):
            tails = 0

            async def tail(self, after):
                self.tails += 1
                async for item in super().tail(after):
                    yield item
                    if not hasattr(item, "offset") and self.tails < 3:
                        return

        broker = Ends(log)
        await MemoryBroker(log).publish("a", b"\x10data: x\n\n")
        hub = hubs(broker)
        await ready(hub)
        assert broker.tails == 3
        assert hub.history.end == 1

    async def test_an_event_that_is_published_again_after_an_outage_reaches_each_stream_once(self, hubs, log):
        one, other = hubs(), hubs()
        await ready(one, other)
        sinks = [start(one, "a"), start(other, "a")]
        log.stop()
        with pytest.raises(BrokerDown):
            await one.publish("a", "x", idempotency_key="order 7")
        log.restart()
        for _ in range(3):
            await one.publish("a", "x", idempotency_key="order 7")
        await other.publish("a", "last")
        for sink in sinks:
            assert await has(sink, 2) == ["x", "last"]

    async def test_a_server_that_is_down_at_the_start_is_waited_for(self, hubs, log):
        log.stop()
        hub = hubs()
        sink = start(hub, "a", after="whatever-1")
        await until(lambda: hub._replication_task._attempts > 3)
        assert kinds(hub) == [HubDown]
        assert not hub.ready
        assert sink.frames == sink.ends == []
        log.restart()
        await ready(hub)
        await hub.publish("a", "x")
        assert await has(sink, 2) == ["gap", "x"]
        assert kinds(hub) == [HubDown, HubResumed]
        assert hub._replication_task._attempts == 0  # the next outage starts with the first delay again

    async def test_each_outage_is_reported(self, hubs, log):
        hub = hubs()
        for _ in range(3):
            await ready(hub)
            log.stop()
            await until(lambda: not hub.ready)
            log.restart()
        await ready(hub)
        assert kinds(hub) == [HubUp, *[HubDown, HubResumed] * 3]

    async def test_entries_that_a_broker_delivers_twice_are_ignored(self, hubs, log):
        class Twice(MemoryBroker):
            async def tail(self, after):
                async for item in super().tail(after):
                    yield item
                    if isinstance(item, list):
                        yield item

        hub = hubs(Twice(log))
        await ready(hub)
        sink = start(hub, "a")
        for number in range(3):
            await hub.publish("a", str(number))
        assert await has(sink, 3) == ["0", "1", "2"]

    @pytest.mark.parametrize("failure", [asyncio.CancelledError, BaseExceptionGroup("", [asyncio.CancelledError()])])
    async def test_a_cancellation_by_the_client_of_a_broker_restarts_the_tail(self, hubs, log, logged, failure):
        class Cancelling(MemoryBroker):
            tails = 0

            async def tail(self, after):
                self.tails += 1
                async for item in super().tail(after):
                    yield item
                    if self.tails == 1 and isinstance(item, CaughtUp):
                        raise failure

        hub = hubs(Cancelling(log))
        sink = start(hub, "a")
        await until(lambda: HubResumed in kinds(hub))
        await hub.publish("a", "x")
        assert await has(sink, 1) == ["x"]

    async def test_closing_a_hub_ends_its_streams_and_refuses_new_ones(self, hubs, log):
        """Live, paused, not started, and waiting for its ID to be resolved."""
        hub = hubs()
        await ready(hub)
        live, paused, unstarted = start(hub, "a"), start(hub, "a"), subscribe(hub, "a")
        await until(lambda: live.subscription.live and paused.subscription.live)
        paused.pause()
        await hub.publish("a", "x")
        await has(live, 1)
        log.stop()
        await until(lambda: not hub.ready)
        ahead = start(hub, "b", after=f"{log.epoch}-7")
        await hub.close()
        assert [sink.ends for sink in (live, paused, unstarted, ahead)] == [[(CloseReason.SHUTDOWN, None)]] * 4
        assert hub.statistics().subscribers == hub.statistics().groups == 0
        paused.paused = False
        assert not paused.subscription.write_backlog()
        assert paused.texts == ["x"]
        with pytest.raises(RuntimeError, match="was closed"):
            start(hub, "a")
        assert hub.statistics().subscribers == 0

    async def test_a_stream_that_closes_while_its_id_is_waited_for_is_discarded(self, hubs, log):
        log.stop()
        hub = hubs()
        start(hub, "a").subscription.close()
        assert hub._pending._waiting == {}
        assert hub.statistics().subscribers == 0

    async def test_a_future_id_does_not_time_out_while_the_broker_is_down(self, hubs, log, monkeypatch):
        monkeypatch.setattr("aiohttp_interceptors.hub.pending.FUTURE_ID_TIMEOUT", 0.02)
        hub = hubs()
        await ready(hub)
        log.stop()
        await until(lambda: not hub.ready)
        sink = start(hub, "a", after=f"{log.epoch}-1")
        assert log.append("a", b"\x10data: 1\n\n", None).offset == 1
        loop = asyncio.get_running_loop()
        later = loop.time() + 0.1
        await until(lambda: loop.time() > later)
        assert sink.frames == []
        log.restart()
        await ready(hub)
        await hub.publish("a", "2")
        assert await has(sink, 1) == ["2"]

    async def test_an_unexpected_exception_of_a_broker_is_logged_and_the_tail_restarted(self, hubs, log, logged):
        class Breaks(MemoryBroker):
            tails = 0

            async def tail(self, after):
                self.tails += 1
                if self.tails < 3:
                    raise ZeroDivisionError("boom")
                async for item in super().tail(after):
                    yield item

        hub = hubs(Breaks(log))
        await ready(hub)
        assert {line["event"] for line in logged} == {"hub_tail_failed", "hub_down", "hub_resumed"}
        assert hub.facts[0].error == "boom"

    async def test_an_observer_that_raises_is_logged(self, log, logged):
        def observer(fact):
            raise ZeroDivisionError

        hub = Hub(MemoryBroker(log), observer=observer)
        hub.open()
        await ready(hub)
        await hub.close()
        assert "hub_observer_dropped" in {line["event"] for line in logged}

    async def test_an_ephemeral_event_from_an_outage_is_not_delivered(self, hubs, log):
        hub = hubs()
        await ready(hub)
        sink = start(hub, "a")
        log.stop()
        await until(lambda: not hub.ready)
        log.append("a", b"\x12data: typing\n\n", None)
        log.append("a", b"\x10data: said\n\n", None)
        log.restart()
        assert await has(sink, 1) == ["said"]

    async def test_delays_grow_up_to_a_limit_and_have_jitter(self, hubs, log, monkeypatch):
        monkeypatch.setattr(replication, "MIN_RECONNECT_DELAY", 0.1)
        monkeypatch.setattr(replication, "MAX_RECONNECT_DELAY", 5.0)
        task = hubs()._replication_task
        delays = [[task._next_delay() for _ in range(2000)] for _ in range(2)]
        for limit, one, other in zip([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0], *delays, strict=False):
            assert limit / 2 <= one <= limit or one <= 5.0
            assert other <= 5.0
        assert delays[0][:6] == sorted(delays[0][:6])
        assert len(set(delays[0][-100:])) > 50
        assert all(2.5 <= delay <= 5.0 for delay in delays[1])


class TestGaps:
    async def test_records_that_were_trimmed_while_a_process_was_disconnected_are_a_gap(self, hubs, log):
        hub = hubs()
        await ready(hub)
        sinks = [start(hub, "a"), start(hub, "b")]
        await hub.publish("a", "seen")
        await has(sinks[0], 1)
        log.stop()
        await until(lambda: not hub.ready)
        log._max_records = 2
        for number in range(5):
            log.append("a", b"\x10data: %d\n\n" % number, None)
        log.restart()
        assert await has(sinks[0], 4) == ["seen", "gap", "3", "4"]
        assert sinks[0].frames[1].data == (f'{{"reason":"evicted","after":"{log.epoch}-1","first":"{log.epoch}-5"}}')
        assert await has(sinks[1], 1) == ["gap"]  # their topics are unknown

    async def test_on_gap_close_ends_a_stream_whose_records_were_trimmed(self, hubs, log):
        hub = hubs()
        await ready(hub)
        sink = start(hub, "a", on_gap="close")
        await hub.publish("a", "seen")
        await has(sink, 1)
        log.stop()
        await until(lambda: not hub.ready)
        log._max_records = 1
        for _ in range(3):
            log.append("a", b"\x10data: x\n\n", None)
        log.restart()
        await until(lambda: sink.ends)
        assert sink.ends == [("lagged", None)]

    async def test_a_truncation_is_reported_and_nothing_is_repeated(self, hubs, log, logged):
        one, other = hubs(), hubs()
        await ready(one, other)
        sinks = [start(one, "a"), start(other, "a")]
        ids = [await one.publish("a", str(number)) for number in range(5)]
        for sink in sinks:
            await has(sink, 5)
        log.truncate(2)
        new = await other.publish("a", "new")
        for sink in sinks:
            assert await has(sink, 7) == ["0", "1", "2", "3", "4", "gap", "new"]
            assert f'"reason":"truncated","after":"{ids[4]}"' in sink.frames[5].data
            assert sink.last_event_id == new
        assert {line["event"] for line in logged} >= {"hub_truncated"}
        # A client with an ID from before gets a gap, and resumes after the records that the server still has.
        assert await has(start(one, "a", after=ids[4]), 2) == ["gap", "new"]
        assert await has(start(one, "a", after=ids[0]), 3) == ["gap", "1", "new"]
        assert await has(start(one, "a", after=new.replace("-3", "-2")), 1) == ["new"]

    async def test_a_paused_stream_gets_the_gap_of_a_truncation_when_it_resumes(self, hubs, log):
        hub = hubs()
        await ready(hub)
        slow = start(hub, "a")
        await hub.publish("a", "0")
        await has(slow, 1)
        slow.pause()
        for number in range(1, 4):
            await hub.publish("a", str(number))
        log.truncate(2)
        await hub.publish("a", "new")
        await until(lambda: hub.history.epoch == log.epoch)
        slow.resume()
        assert await has(slow, 4) == ["0", "gap", "1", "new"]

    async def test_an_id_from_before_a_wipe_of_the_server_is_foreign(self, hubs, log):
        hub = hubs()
        await ready(hub)
        sink = start(hub, "a")
        old = await hub.publish("a", "old")
        await has(sink, 1)
        log.truncate(0)
        await hub.publish("a", "new")
        assert await has(sink, 3) == ["old", "gap", "new"]
        again = start(hub, "a", after=old)
        assert await has(again, 2) == ["gap", "new"]
        assert '"foreign"' in again.frames[0].data


class TestClosing:
    async def test_a_closed_hub_is_not_ready_and_cannot_be_opened_again(self, log):
        hub = Hub(MemoryBroker(log))
        hub.open()
        await ready(hub)
        await hub.close()
        assert not hub.ready
        before = asyncio.all_tasks()
        with pytest.raises(RuntimeError, match="was closed, and its broker with it; make another Hub"):
            hub.open()
        assert asyncio.all_tasks() == before
        assert not hub.ready

    async def test_publish_opens_the_hub(self, log):
        hub = Hub(MemoryBroker(log))
        await hub.publish("a", "x")
        await ready(hub)
        await hub.close()

    async def test_a_closed_hub_leaves_no_task_and_publish_raises(self, log):
        hub = Hub(MemoryBroker(log))
        hub.open()
        await ready(hub)
        before = asyncio.all_tasks()
        await hub.close()
        await hub.close()
        assert asyncio.all_tasks() < before
        with pytest.raises(BrokerDown, match="closed"):
            await hub.publish("a", "x")

    async def test_a_hub_can_be_closed_while_its_server_is_down(self, log):
        log.stop()
        hub = Hub(MemoryBroker(log))
        hub.open()
        await until(lambda: hub._replication_task._attempts > 1)
        await within(hub.close())


async def test_an_object_that_is_not_a_broker_is_refused():
    with pytest.raises(TypeError, match="broker is a Broker or None, not 'redis://x'"):
        Hub("redis://x")


async def test_connection_requires_a_broker():
    with pytest.raises(TypeError, match="has no broker"):
        await Hub().publish("a", "x", connection=object())


async def test_an_idempotency_key_works_without_a_broker():
    hub = Hub()
    first = await hub.publish("a", "x", idempotency_key="k")
    assert await hub.publish("a", "x", idempotency_key="k") == first
    assert hub.history.records == 1


def test_broker_exceptions_have_one_base_class():
    assert issubclass(BrokerDown, BrokerError)
