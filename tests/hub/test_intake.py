"""What a tail brings reaches log and streams, also what it says is gone, at every moment."""

from __future__ import annotations

import pytest
from tests.hub.sink import Sink, drain, live, start, subscribe, turn

from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.hub.broker import CaughtUp, Entry, LogPosition, Subscribed, Trimmed, Truncated
from aiohttp_interceptors.hub.dispatcher import BATCH
from aiohttp_interceptors.hub.hub import Hub
from aiohttp_interceptors.hub.record import GapReason
from aiohttp_interceptors.hub.replication import Replicator


class Process:
    """A Hub whose tail the test is."""

    def __init__(self, **bounds) -> None:
        self.hub = Hub(MemoryBroker(MemoryLog()), **bounds)
        self.hub._replication_task = None
        self.replicator = Replicator(self.hub._dispatcher)

    def take(self, *items) -> None:
        for item in items:
            self.replicator.take(item)

    def publish(self, *offsets: int, topic: str = "a", payload: bytes | None = None) -> None:
        self.take([Entry(offset, topic, payload or b"\x10data: %d\n\n" % offset) for offset in offsets])


@pytest.fixture
async def process():
    process = Process()
    process.hub.open()
    process.take(Subscribed(LogPosition("e", 0)), CaughtUp())
    return process


async def test_the_next_tail_goes_on_where_the_last_has_come(process):
    assert Process().replicator.position is None
    assert process.replicator.position == LogPosition("e", 0)
    process.publish(1, 5)
    assert process.replicator.position == LogPosition("e", 5)
    process.take(Subscribed(LogPosition("e", 5)), CaughtUp())
    assert process.hub.log.records == 2


async def test_what_was_before_the_beginning_is_gone():
    process = Process()
    process.hub.open()
    process.take(Subscribed(LogPosition("e", 40)))
    process.publish(41, 42)
    process.take(CaughtUp())
    assert process.hub.log.locate("e-30") == (30, None)
    assert process.hub.log.after(30, ["a"]).missing == 40
    assert process.hub.log.after(40, ["a"]).missing == 0


async def test_a_stream_that_is_paused_between_publish_and_flush_has_its_position_after_a_rewind(process):
    process.publish(1, 2, 3, 4, 5)
    sink = await live(process.hub, "a")
    process.publish(6)
    await turn()
    process.take(Truncated(LogPosition("f", 1)))
    await turn()
    assert sink.subscription.live
    process.publish(2)
    sink.pause()
    process.publish(3)
    await drain(sink)
    assert sink.texts == ["6", "gap", "2", "3"]


async def test_a_rewind_tells_with_an_id_that_tells_it_once(process):
    process.publish(1, 2)
    sink = await live(process.hub, "a")
    process.take(Truncated(LogPosition("f", 1)))
    await turn()
    assert sink.texts == ["gap"]
    assert sink.last_event_id == "f-1"
    again = start(process.hub, "a", after="f-1")
    process.publish(2)
    await turn()
    assert again.texts == ["2"]


async def test_a_rewind_is_told_once_however_much_there_is_to_read_then(process):
    large = b"\x10data: " + b"x" * BATCH + b"\n\n"
    process.publish(1, 2, 3, 4, payload=large)
    sink = await live(process.hub, "a")
    sink.pause()
    process.publish(5, payload=large)
    process.take(Truncated(LogPosition("f", 5)))
    process.publish(6, 7, 8, payload=large)
    await drain(sink)
    await turn(3)
    assert [text[:3] for text in sink.texts] == ["gap", *["xxx"] * 4]


async def test_a_rewind_before_a_stream_starts_is_a_gap_for_who_asks(process):
    process.publish(1, 2, 3)
    sink = subscribe(process.hub, "a", after="e-3")
    process.take(Truncated(LogPosition("f", 1)))
    gap = sink.subscription.gap()
    assert (gap.reason, gap.after) == (GapReason.REWOUND, "e-3")


async def test_who_is_to_be_told_of_another_gap_is_told_of_that(process):
    process.publish(1, 2, 3)
    sink = subscribe(process.hub, "a", after="strange")
    process.take(Truncated(LogPosition("f", 1)))
    gap = sink.subscription.gap()
    assert (gap.reason, gap.after) == (GapReason.UNKNOWN, "strange")
    sink.subscription.start()
    await turn()
    assert sink.texts == ["gap"]


async def test_a_topic_that_was_added_before_a_rewind_is_heard_from_its_border_on(process):
    sink = await live(process.hub, "a")
    process.publish(1, 2, 3, 4)
    await turn()
    sink.pause()
    sink.subscriber.add("b")
    process.take(Truncated(LogPosition("f", 2)))
    process.publish(3, topic="b")
    await drain(sink)
    assert sink.texts == ["1", "2", "3", "4", "gap", "3"]


async def test_what_is_evicted_after_a_rewind_is_told_to_who_was_told_of_more_before():
    process = Process(history=2, history_bytes=None)
    process.hub.open()
    process.take(Subscribed(LogPosition("e", 0)), CaughtUp())
    sink = await live(process.hub, "a")
    sink.pause()
    sink.room = 1  # so that it pauses again after each piece, which is one of the large ones
    large = b"\x10data: " + b"x" * BATCH + b"\n\n"
    process.publish(*range(1, 9), payload=large)
    sink.resume()
    await turn()
    assert [text[:3] for text in sink.texts] == ["gap", "xxx"]
    process.take(Truncated(LogPosition("f", 1)))
    process.publish(2, payload=large)
    sink.resume()
    await turn()
    assert [text[:3] for text in sink.texts] == ["gap", "xxx", "gap", "xxx"]
    process.publish(3, 4, 5, 6)
    await drain(sink)
    assert sink.texts[4:] == ["gap", "5", "6"]


async def test_nobody_reads_what_was_read_before_a_rewind(process):
    process.publish(1, 2, 3)
    before = start(process.hub, "a", after="e-1")
    await turn()
    assert before.texts == ["2", "3"]
    before.subscription.close()
    process.take(Truncated(LogPosition("f", 2)))
    process.publish(3, payload=b"\x10data: new\n\n")
    after = start(process.hub, "a", after="e-1")
    await turn()
    assert after.texts == ["gap", "2", "new"]


async def test_what_is_said_to_be_lost_but_is_here_is_here(process):
    process.publish(1, 2, 3)
    process.take(Trimmed(2))
    assert process.replicator.position == LogPosition("e", 3)
    process.publish(3, 4)
    assert process.hub.log.after(0, ["a"]).missing == 0


async def test_what_is_lost_under_live_streams_is_told_to_all(process):
    sinks = [await live(process.hub, "a"), await live(process.hub, ">"), await live(process.hub, "b")]
    process.publish(1)
    process.take(Trimmed(7))
    process.publish(8)
    await turn()
    assert [sink.texts for sink in sinks] == [["1", "gap", "8"], ["1", "gap", "8"], ["gap"]]
    process.publish(9)
    await turn()
    assert sinks[0].texts[-1] == "9"


async def test_a_stream_that_ends_while_the_log_is_changed_harms_no_other(process):
    class Ends(Sink):
        def write(self, payload, now):
            super().write(payload, now)
            self.subscription.close()

    ends = start(process.hub, "a", sink=Ends())
    other = start(process.hub, "a")
    await turn()
    process.publish(1)
    process.take(Trimmed(3))
    process.publish(4)
    await turn()
    assert ends.texts == ["1"]
    assert other.texts == ["1", "gap", "4"]
