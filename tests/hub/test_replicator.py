"""The items of a tail reach the history and the streams, trimmed and truncated records included."""

from __future__ import annotations

import pytest

from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.hub.broker import CaughtUp, Entry, LogPosition, Subscribed, Trimmed, Truncated
from aiohttp_interceptors.hub.dispatcher import BATCH_SIZE
from aiohttp_interceptors.hub.hub import Hub
from aiohttp_interceptors.hub.record import GapReason
from aiohttp_interceptors.hub.replication import Replicator
from tests.hub.sink import Sink, drain, live, start, subscribe
from tests.waiting import run_other_tasks


class Process:
    """A Hub whose tail is written by the test."""

    def __init__(self, **options) -> None:
        self.hub = Hub(MemoryBroker(MemoryLog()), **options)
        self.hub._replication_task = None
        self.replicator = Replicator(self.hub._dispatcher)

    def apply(self, *items) -> None:
        for item in items:
            self.replicator.apply(item)

    def publish(self, *offsets: int, topic: str = "a", payload: bytes | None = None) -> None:
        self.apply([Entry(offset, topic, payload or b"\x10data: %d\n\n" % offset) for offset in offsets])


@pytest.fixture
async def process():
    process = Process()
    process.hub.open()
    process.apply(Subscribed(LogPosition("e", 0)), CaughtUp())
    return process


async def test_the_next_tail_resumes_after_the_last_entry(process):
    assert Process().replicator.position is None
    assert process.replicator.position == LogPosition("e", 0)
    process.publish(1, 5)
    assert process.replicator.position == LogPosition("e", 5)
    process.apply(Subscribed(LogPosition("e", 5)), CaughtUp())
    assert process.hub.history.records == 2


async def test_records_before_the_first_entry_are_missing():
    process = Process()
    process.hub.open()
    process.apply(Subscribed(LogPosition("e", 40)))
    process.publish(41, 42)
    process.apply(CaughtUp())
    assert process.hub.history.resolve("e-30") == (30, None)
    assert process.hub.history.read(30, ["a"]).missing_through == 40
    assert process.hub.history.read(40, ["a"]).missing_through == 0


async def test_a_stream_that_pauses_between_publish_and_flush_keeps_its_position_after_a_truncation(process):
    process.publish(1, 2, 3, 4, 5)
    sink = await live(process.hub, "a")
    process.publish(6)
    await run_other_tasks(1)
    process.apply(Truncated(LogPosition("f", 1)))
    await run_other_tasks(1)
    assert sink.subscription.live
    process.publish(2)
    sink.pause()
    process.publish(3)
    await drain(sink)
    assert sink.texts == ["6", "gap", "2", "3"]


async def test_the_gap_of_a_truncation_has_an_id_that_does_not_repeat_it(process):
    process.publish(1, 2)
    sink = await live(process.hub, "a")
    process.apply(Truncated(LogPosition("f", 1)))
    await run_other_tasks(1)
    assert sink.texts == ["gap"]
    assert sink.last_event_id == "f-1"
    again = start(process.hub, "a", after="f-1")
    process.publish(2)
    await run_other_tasks(1)
    assert again.texts == ["2"]


async def test_a_truncation_is_reported_once_although_several_batches_follow(process):
    large = b"\x10data: " + b"x" * BATCH_SIZE + b"\n\n"
    process.publish(1, 2, 3, 4, payload=large)
    sink = await live(process.hub, "a")
    sink.pause()
    process.publish(5, payload=large)
    process.apply(Truncated(LogPosition("f", 5)))
    process.publish(6, 7, 8, payload=large)
    await drain(sink)
    await run_other_tasks(3)
    assert [text[:3] for text in sink.texts] == ["gap", *["xxx"] * 4]


async def test_find_gap_returns_a_truncation_before_the_start(process):
    process.publish(1, 2, 3)
    sink = subscribe(process.hub, "a", after="e-3")
    process.apply(Truncated(LogPosition("f", 1)))
    gap = sink.subscription.find_gap()
    assert (gap.reason, gap.after) == (GapReason.TRUNCATED, "e-3")


async def test_a_truncation_does_not_replace_an_earlier_gap(process):
    process.publish(1, 2, 3)
    sink = subscribe(process.hub, "a", after="strange")
    process.apply(Truncated(LogPosition("f", 1)))
    gap = sink.subscription.find_gap()
    assert (gap.reason, gap.after) == (GapReason.UNKNOWN, "strange")
    sink.subscription.start()
    await run_other_tasks(1)
    assert sink.texts == ["gap"]


async def test_a_topic_that_was_added_before_a_truncation_counts_from_the_truncated_offset(process):
    sink = await live(process.hub, "a")
    process.publish(1, 2, 3, 4)
    await run_other_tasks(1)
    sink.pause()
    sink.subscriber.add("b")
    process.apply(Truncated(LogPosition("f", 2)))
    process.publish(3, topic="b")
    await drain(sink)
    assert sink.texts == ["1", "2", "3", "4", "gap", "3"]


async def test_an_eviction_after_a_truncation_is_reported_although_a_later_offset_was_reported_before():
    process = Process(history=2, history_bytes=None)
    process.hub.open()
    process.apply(Subscribed(LogPosition("e", 0)), CaughtUp())
    sink = await live(process.hub, "a")
    sink.pause()
    sink.room = 1  # pauses after each batch, which is one large record
    large = b"\x10data: " + b"x" * BATCH_SIZE + b"\n\n"
    process.publish(*range(1, 9), payload=large)
    sink.resume()
    await run_other_tasks(1)
    assert [text[:3] for text in sink.texts] == ["gap", "xxx"]
    process.apply(Truncated(LogPosition("f", 1)))
    process.publish(2, payload=large)
    sink.resume()
    await run_other_tasks(1)
    assert [text[:3] for text in sink.texts] == ["gap", "xxx", "gap", "xxx"]
    process.publish(3, 4, 5, 6)
    await drain(sink)
    assert sink.texts[4:] == ["gap", "5", "6"]


async def test_a_cached_read_from_before_a_truncation_is_not_used(process):
    process.publish(1, 2, 3)
    before = start(process.hub, "a", after="e-1")
    await run_other_tasks(1)
    assert before.texts == ["2", "3"]
    before.subscription.close()
    process.apply(Truncated(LogPosition("f", 2)))
    process.publish(3, payload=b"\x10data: new\n\n")
    after = start(process.hub, "a", after="e-1")
    await run_other_tasks(1)
    assert after.texts == ["gap", "2", "new"]


async def test_records_that_were_received_before_they_were_trimmed_are_kept(process):
    process.publish(1, 2, 3)
    process.apply(Trimmed(2))
    assert process.replicator.position == LogPosition("e", 3)
    process.publish(3, 4)
    assert process.hub.history.read(0, ["a"]).missing_through == 0


async def test_trimmed_records_are_a_gap_for_all_live_streams(process):
    sinks = [await live(process.hub, "a"), await live(process.hub, ">"), await live(process.hub, "b")]
    process.publish(1)
    process.apply(Trimmed(7))
    process.publish(8)
    await run_other_tasks(1)
    assert [sink.texts for sink in sinks] == [["1", "gap", "8"], ["1", "gap", "8"], ["gap"]]
    process.publish(9)
    await run_other_tasks(1)
    assert sinks[0].texts[-1] == "9"


async def test_a_stream_that_ends_while_the_history_changes_affects_no_other(process):
    class Ends(Sink):
        def write(self, payload, now):
            super().write(payload, now)
            self.subscription.close()

    ends = start(process.hub, "a", sink=Ends())
    other = start(process.hub, "a")
    await run_other_tasks(1)
    process.publish(1)
    process.apply(Trimmed(3))
    process.publish(4)
    await run_other_tasks(1)
    assert ends.texts == ["1"]
    assert other.texts == ["1", "gap", "4"]
