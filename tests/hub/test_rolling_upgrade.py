"""Two adjacent releases on one broker: an entry that the older one cannot read is a gap for its topic only."""

from __future__ import annotations

import json

import pytest

from aiohttp_interceptors import Event, Hub
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.hub.broker import CaughtUp, Entry, LogPosition, Subscribed
from aiohttp_interceptors.hub.message import FLAG_EPHEMERAL, FLAG_KEY, VERSION_1
from aiohttp_interceptors.hub.replication import Replicator
from tests.hub.sink import drain, live, start
from tests.waiting import run_other_tasks, until

NEW_FLAG, VERSION_2 = 0x08, 0x20  # what a later release may write
UNREADABLE = [
    VERSION_1 | NEW_FLAG,
    VERSION_1 | NEW_FLAG | FLAG_KEY,
    VERSION_2,
    VERSION_2 | FLAG_KEY | FLAG_EPHEMERAL,
    0xFF,
]


def unreadable(flags, text=b"x"):
    return b"%cdata: %b\n\n" % (flags, text)


class Process:
    """A process of the older release. The test supplies the items of its tail."""

    def __init__(self, **options):
        self.hub = Hub(MemoryBroker(MemoryLog()), **options)
        self.hub._replication_task = None
        self.replicator = Replicator(self.hub._dispatcher)
        self.hub.open()
        self.feed(Subscribed(LogPosition("e", 0)), CaughtUp())

    def feed(self, *items):
        for item in items:
            self.replicator.apply(item)

    def deliver(self, *offsets, topic="a"):
        self.feed([Entry(offset, topic, b"\x10data: %d\n\n" % offset) for offset in offsets])

    def deliver_unreadable(self, *offsets, topic="a", flags=VERSION_2):
        self.feed([Entry(offset, topic, unreadable(flags)) for offset in offsets])


@pytest.fixture
async def process():
    return Process()


def gaps(sink):
    return [json.loads(frame.data) for frame in sink.frames if frame.name == "gap"]


@pytest.mark.parametrize("flags", UNREADABLE)
async def test_an_unreadable_entry_is_a_gap_for_the_streams_of_its_topic_only(process, flags):
    exact, below, other = [await live(process.hub, topic) for topic in ("a.b", "a.>", "c")]
    process.deliver(1, topic="a.b")
    process.deliver_unreadable(2, topic="a.b", flags=flags)
    process.deliver(3, topic="a.b")
    process.deliver(4, topic="c")
    await run_other_tasks(1)
    assert exact.texts == below.texts == ["1", "gap", "3"]
    assert gaps(exact) == [{"reason": "evicted", "after": "e-1", "first": "e-3"}]
    assert other.texts == ["4"]
    process.deliver(5, topic="a.b")
    await run_other_tasks(1)
    assert exact.texts == ["1", "gap", "3", "5"]
    assert exact.subscription.live


async def test_the_gap_is_reported_at_once_and_only_once(process):
    sink = await live(process.hub, "a")
    process.deliver_unreadable(1)
    await run_other_tasks(1)
    assert sink.texts == ["gap"]
    assert sink.last_event_id == "e-1"
    process.deliver(2)
    sink.pause()
    await drain(sink)
    assert sink.texts == ["gap", "2"]


async def test_many_unreadable_entries_of_one_batch_are_one_gap(process):
    sink = await live(process.hub, "a")
    process.feed([Entry(n, "a", unreadable(VERSION_2) if n % 2 else b"\x10data: %d\n\n" % n) for n in range(1, 100)])
    await run_other_tasks(1)
    assert sink.texts.count("gap") == 1
    assert [text for text in sink.texts if text != "gap"] == [str(n) for n in range(2, 100, 2)]


@pytest.mark.parametrize(
    "flags", [VERSION_1 | NEW_FLAG | FLAG_EPHEMERAL, VERSION_1 | NEW_FLAG | FLAG_EPHEMERAL | FLAG_KEY]
)
async def test_an_unreadable_ephemeral_entry_is_not_a_gap(process, flags):
    sink = await live(process.hub, "a")
    process.deliver_unreadable(1, flags=flags)
    process.deliver(2)
    await run_other_tasks(1)
    assert sink.texts == ["2"]


async def test_a_client_that_reconnects_with_an_earlier_id_has_a_gap_and_one_with_a_later_id_has_none(process):
    process.deliver(1)
    process.deliver_unreadable(2)
    process.deliver(3, 4)
    process.deliver_unreadable(5, topic="b")
    before, after, at = [start(process.hub, "a", after=f"e-{n}") for n in (1, 3, 2)]
    await run_other_tasks(1)
    assert before.texts == ["gap", "3", "4"]
    assert after.texts == ["4"]
    assert at.texts == ["3", "4"]


async def test_a_paused_stream_gets_the_gap_when_it_resumes(process):
    sink = await live(process.hub, "a")
    sink.pause()
    process.deliver(1)
    process.deliver_unreadable(2)
    process.deliver(3)
    sink.resume()
    await run_other_tasks(1)
    assert sink.texts == ["gap", "1", "3"]
    assert gaps(sink) == [{"reason": "evicted", "after": "e-0", "first": "e-1", "last": "e-2"}]


async def test_a_stream_with_on_gap_close_ends(process):
    sink = await live(process.hub, "a", on_gap="close")
    process.deliver_unreadable(1)
    await run_other_tasks(1)
    assert sink.ends == [("lagged", None)]


async def test_the_readable_records_of_the_topic_are_kept_and_evicted_as_usual():
    process = Process(history=2)
    process.deliver(1)
    process.deliver_unreadable(2)
    process.deliver(3, 4)  # evicts 1, which is older than the unreadable 2
    assert process.hub.history.read(0, ["a"]).missing_through == 2
    assert process.hub.history.read(1, ["a"]).missing_through == 2
    assert process.hub.history.read(2, ["a"]).missing_through == 0
    process.deliver(5)
    assert process.hub.history.read(2, [">"]).missing_through == 3


async def test_a_topic_without_a_readable_record_has_a_gap(process):
    process.deliver_unreadable(1, topic="only.later")
    assert process.hub.history.topics == process.hub.history.records == 0
    sink = start(process.hub, "only.*", after="e-0")
    await run_other_tasks(1)
    assert sink.texts == ["gap"]
    process.deliver(2, topic="only.later")
    await run_other_tasks(1)
    assert sink.texts == ["gap", "2"]
    assert process.hub.history.topics == 1


async def test_no_key_supersedes_an_unreadable_entry(process):
    sink = await live(process.hub, "a", on_gap="conflate")
    process.deliver_unreadable(1)
    process.deliver(2)
    await run_other_tasks(1)
    assert sink.texts == ["gap", "2"]


async def test_unreadable_entries_are_logged_once_for_each_first_byte(process, logged):
    process.deliver_unreadable(*range(1, 50))
    process.deliver_unreadable(50, flags=VERSION_1 | NEW_FLAG)
    lines = [line for line in logged if line["event"] == "hub_entry_skipped"]
    assert [line["offset"] for line in lines] == [1, 50]
    assert "the same release" in lines[0]["advice"]


async def test_both_releases_on_one_broker():
    """The older process reports a gap for what it cannot read, and the IDs of both are the same."""
    log = MemoryLog()
    older = Hub(MemoryBroker(log))
    older.open()
    await until(lambda: older.ready)
    newer = MemoryBroker(log)
    sink, quiet = start(older, "a"), start(older, "b")
    await until(lambda: sink.subscription.live and quiet.subscription.live)
    await older.publish("a", Event("old"))
    position = await newer.publish("a", unreadable(VERSION_2, b"new"))
    last = await older.publish("a", Event("old again"))
    await until(lambda: sink.texts[-1:] == ["old again"])
    assert sink.texts == ["old", "gap", "old again"]
    assert quiet.texts == []
    # A client that received the newer entry from the newer process reconnects to the older one.
    again = start(older, "a", after=f"{position.epoch}-{position.offset}")
    await until(lambda: again.texts == ["old again"])
    assert again.last_event_id == last
    await older.close()
