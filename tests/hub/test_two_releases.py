"""Two adjacent releases on one broker: what the older one cannot read is told to those who asked for it alone."""

from __future__ import annotations

import json

import pytest
from tests.hub.sink import drain, live, start, turn

from aiohttp_interceptors import Event, Hub
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.hub.broker import CaughtUp, Entry, LogPosition, Subscribed
from aiohttp_interceptors.hub.message import EPHEMERAL, KEYED, PLAIN
from aiohttp_interceptors.hub.replication import Replicator
from tests.waiting import until

FLAG, FORMAT = 0x04, 0x20  # what a later release may write: another flag, or the next version of the format
LATER = [PLAIN | FLAG, PLAIN | FLAG | KEYED, FORMAT, FORMAT | KEYED | EPHEMERAL, 0xFF]


def written_later(flags, text=b"x"):
    return b"%cdata: %b\n\n" % (flags, text)


class Older:
    """A process of the older release, whose tail the test is."""

    def __init__(self, **bounds):
        self.hub = Hub(MemoryBroker(MemoryLog()), **bounds)
        self.hub._replication_task = None
        self.replicator = Replicator(self.hub._dispatcher)
        self.hub.open()
        self.take(Subscribed(LogPosition("e", 0)), CaughtUp())

    def take(self, *items):
        for item in items:
            self.replicator.take(item)

    def read(self, *offsets, topic="a"):
        self.take([Entry(offset, topic, b"\x10data: %d\n\n" % offset) for offset in offsets])

    def miss(self, *offsets, topic="a", flags=FORMAT):
        self.take([Entry(offset, topic, written_later(flags)) for offset in offsets])


@pytest.fixture
async def process():
    return Older()


def gaps(sink):
    return [json.loads(frame.data) for frame in sink.frames if frame.name == "gap"]


@pytest.mark.parametrize("flags", LATER)
async def test_who_asked_for_the_topic_is_told_and_no_other(process, flags):
    exact, below, other = [await live(process.hub, topic) for topic in ("a.b", "a.>", "c")]
    process.read(1, topic="a.b")
    process.miss(2, topic="a.b", flags=flags)
    process.read(3, topic="a.b")
    process.read(4, topic="c")
    await turn()
    assert exact.texts == below.texts == ["1", "gap", "3"]
    assert gaps(exact) == [{"reason": "evicted", "after": "e-1", "first": "e-3"}]
    assert other.texts == ["4"]
    process.read(5, topic="a.b")
    await turn()
    assert exact.texts == ["1", "gap", "3", "5"]
    assert exact.subscription.live


async def test_it_is_told_at_once_also_when_nothing_follows_and_once(process):
    sink = await live(process.hub, "a")
    process.miss(1)
    await turn()
    assert sink.texts == ["gap"]
    assert sink.last_event_id == "e-1"
    process.read(2)
    sink.pause()
    await drain(sink)
    assert sink.texts == ["gap", "2"]


async def test_many_of_one_batch_are_one_gap(process):
    sink = await live(process.hub, "a")
    process.take([Entry(n, "a", written_later(FORMAT) if n % 2 else b"\x10data: %d\n\n" % n) for n in range(1, 100)])
    await turn()
    assert sink.texts.count("gap") == 1
    assert [text for text in sink.texts if text != "gap"] == [str(n) for n in range(2, 100, 2)]


@pytest.mark.parametrize("flags", [PLAIN | FLAG | EPHEMERAL, PLAIN | FLAG | EPHEMERAL | KEYED])
async def test_what_is_for_those_alone_that_keep_up_is_no_gap(process, flags):
    sink = await live(process.hub, "a")
    process.miss(1, flags=flags)
    process.read(2)
    await turn()
    assert sink.texts == ["2"]


async def test_a_client_that_returns_with_an_id_from_before_is_told_and_one_from_after_is_not(process):
    process.read(1)
    process.miss(2)
    process.read(3, 4)
    process.miss(5, topic="b")
    before, after, at = [start(process.hub, "a", after=f"e-{n}") for n in (1, 3, 2)]
    await turn()
    assert before.texts == ["gap", "3", "4"]
    assert after.texts == ["4"]
    assert at.texts == ["3", "4"]


async def test_a_stream_that_does_not_read_is_told_when_it_reads_again(process):
    sink = await live(process.hub, "a")
    sink.pause()
    process.read(1)
    process.miss(2)
    process.read(3)
    sink.resume()
    await turn()
    assert sink.texts == ["gap", "1", "3"]
    assert gaps(sink) == [{"reason": "evicted", "after": "e-0", "first": "e-1", "last": "e-2"}]


async def test_a_stream_that_is_to_end_rather_than_miss_something_ends_and_its_client_may_find_a_later_process(process):
    sink = await live(process.hub, "a", on_gap="close")
    process.miss(1)
    await turn()
    assert sink.ends == [("lagged", None)]


async def test_what_is_kept_of_the_topic_stays_and_goes_as_before():
    process = Older(history=2)
    process.read(1)
    process.miss(2)
    process.read(3, 4)  # so that 1, which is older than what is missing, is evicted after it
    assert process.hub.log.after(0, ["a"]).missing == 2
    assert process.hub.log.after(1, ["a"]).missing == 2
    assert process.hub.log.after(2, ["a"]).missing == 0
    process.read(5)
    assert process.hub.log.after(2, [">"]).missing == 3


async def test_a_topic_of_which_nothing_can_be_read_is_known_to_lack_something(process):
    process.miss(1, topic="only.later")
    assert process.hub.log.topics == process.hub.log.records == 0
    sink = start(process.hub, "only.*", after="e-0")
    await turn()
    assert sink.texts == ["gap"]
    process.read(2, topic="only.later")
    await turn()
    assert sink.texts == ["gap", "2"]
    assert process.hub.log.topics == 1


async def test_a_keyed_record_makes_up_for_none_that_could_not_be_read(process):
    sink = await live(process.hub, "a", on_gap="conflate")
    process.miss(1)
    process.read(2)
    await turn()
    assert sink.texts == ["gap", "2"]


async def test_it_is_logged_once_for_each_mark_and_not_for_each_entry(process, logged):
    process.miss(*range(1, 50))
    process.miss(50, flags=PLAIN | FLAG)
    lines = [line for line in logged if line["event"] == "hub_entry_skipped"]
    assert [line["offset"] for line in lines] == [1, 50]
    assert "one release" in lines[0]["advice"]


async def test_both_releases_on_one_broker():
    """The newer process has all, the older one tells its streams what it cannot read, and both have the same ids."""
    log = MemoryLog()
    older = Hub(MemoryBroker(log))
    older.open()
    await until(lambda: older.ready)
    newer = MemoryBroker(log)
    sink, quiet = start(older, "a"), start(older, "b")
    await until(lambda: sink.subscription.live and quiet.subscription.live)
    await older.publish("a", Event("old"))
    position = await newer.publish("a", written_later(FORMAT, b"new"))
    last = await older.publish("a", Event("old again"))
    await until(lambda: sink.texts[-1:] == ["old again"])
    assert sink.texts == ["old", "gap", "old again"]
    assert quiet.texts == []
    again = start(
        older, "a", after=f"{position.epoch}-{position.offset}"
    )  # a client of the newer process, which had it
    await until(lambda: again.texts == ["old again"])
    assert again.last_event_id == last
    await older.close()
