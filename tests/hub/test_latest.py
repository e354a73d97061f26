"""The latest value of each key: where the Hub keeps it, and what a stream with ``replay="latest"`` sends of it."""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiohttp_interceptors import CloseReason, Decoder, Event, Gap, Hub, Lagged, start_topic_stream
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.hub import cursor, pending
from aiohttp_interceptors.hub.cursor import PARTIAL
from aiohttp_interceptors.hub.latest import LatestRecords
from aiohttp_interceptors.hub.record import Record, Tombstone
from tests.hub.reference import matches
from tests.hub.sink import Sink, drain, plain, start, subscribe
from tests.hub.watcher import Cable
from tests.waiting import run_other_tasks, until, within

BIG = "x" * 20_000  # two of them are a batch


def record(offset: int, topic: str = "t", key: str | None = None, size: int = 0) -> Record:
    return Record(offset, f"e-{offset}", topic, Event("x"), b"x" * size, key, 0.0)


def offsets(latest: LatestRecords, *topics: str) -> list[int]:
    return [each.offset for each in latest.read(frozenset(topics)).records]


class TestRecords:
    def test_the_latest_record_of_each_key_is_kept_in_the_order_of_publishing(self):
        latest = LatestRecords(10, None)
        for offset, key in enumerate("abac", 1):
            latest.add(record(offset, key=key))
        assert offsets(latest, "t") == [2, 3, 4]

    def test_a_key_belongs_to_its_topic(self):
        latest = LatestRecords(10, None)
        latest.add(record(1, "t", "a"))
        latest.add(record(2, "u", "a"))
        assert offsets(latest, "t") == [1]
        assert offsets(latest, "u", "t") == [1, 2]

    def test_records_without_a_key_count_as_those_of_one_key(self):
        latest = LatestRecords(10, None)
        latest.add(record(1))
        latest.add(record(2, key="a"))
        latest.add(record(3))
        assert offsets(latest, "t") == [2, 3]

    def test_an_earlier_record_does_not_replace_a_later_one(self):
        latest = LatestRecords(10, None)
        latest.add(record(2, key="a"))
        latest.add(record(1, key="a"))
        assert offsets(latest, "t") == [2]

    def test_beyond_the_number_of_records_the_one_that_was_published_first_is_evicted(self):
        latest = LatestRecords(2, None)
        for offset, key in enumerate("abac", 1):
            latest.add(record(offset, key=key))
        assert offsets(latest, "t") == [3, 4]
        assert (len(latest), latest.evicted) == (2, 1)

    def test_beyond_the_number_of_bytes_the_ones_that_were_published_first_are_evicted(self):
        latest = LatestRecords(10, 100)
        for offset in range(1, 5):
            latest.add(record(offset, key=str(offset), size=25))
        assert (len(latest), latest.bytes, latest.evicted) == (4, 100, 0)
        latest.add(record(5, key="1", size=50))
        assert offsets(latest, "t") == [3, 4, 5]
        assert (latest.bytes, latest.evicted) == (100, 1)

    def test_a_record_that_is_larger_than_all_of_them_may_be_evicts_only_its_own_key(self):
        latest = LatestRecords(10, 100)
        for offset, (key, size) in enumerate([("a", 10), ("b", 10), ("b", 101)], 1):
            latest.add(record(offset, key=key, size=size))
        assert offsets(latest, "t") == [1]
        assert (latest.bytes, latest.evicted) == (10, 1)

    def test_removing_is_idempotent_and_leaves_nothing_behind(self):
        latest = LatestRecords(10, None)
        latest.add(record(1, key="a", size=7))
        for _ in range(2):
            latest.remove("t", "a")
            latest.remove("u", None)
        assert (len(latest), latest.bytes, offsets(latest, ">")) == (0, 0, [])

    def test_a_record_that_matches_several_of_the_topics_is_read_once(self):
        latest = LatestRecords(10, None)
        for offset, topic in enumerate(["a", "a.b", "a.b.c", "b"], 1):
            latest.add(record(offset, topic))
        assert offsets(latest, "a.b", "a.*", "a.>", "*.b", "a.b") == [2, 3]
        assert offsets(latest, ">") == [1, 2, 3, 4]
        assert offsets(latest, "c", "*.c") == []

    def test_truncation_removes_the_later_records(self):
        latest = LatestRecords(10, None)
        for offset, key in enumerate("abc", 1):
            latest.add(record(offset, key=key, size=1))
        latest.restore([], 2)
        assert (offsets(latest, "t"), latest.bytes) == ([1, 2], 2)

    def test_what_a_truncation_does_not_bring_back_is_not_counted_as_evicted(self):
        latest = LatestRecords(2, None)
        records = [record(offset, key=key) for offset, key in enumerate("abcd", 1)]
        for each in records:
            latest.add(each)
        latest.restore(records, 4)
        assert (offsets(latest, "t"), latest.evicted) == ([3, 4], 2)

    def test_without_room_nothing_is_kept(self):
        assert not LatestRecords(0, None).enabled
        assert LatestRecords(1, None).enabled


topics = st.sampled_from(["a", "b", "a.b"])
keys = st.sampled_from([None, "1", "2", "3"])
changes = st.lists(
    st.one_of(
        st.tuples(st.just("add"), topics, keys, st.integers(0, 40)),
        st.tuples(st.just("add"), topics, keys, st.integers(0, 40)),
        st.tuples(st.just("remove"), topics, keys),
        st.tuples(st.just("truncate"), st.integers(0, 5)),
    ),
    max_size=60,
)


@given(changes, st.integers(1, 8), st.none() | st.integers(40, 200))
def test_the_records_are_those_of_a_dict_with_the_same_bounds(story, max_records, max_bytes):
    latest, model, end = LatestRecords(max_records, max_bytes), {}, 0
    for what, *arguments in story:
        if what == "add":
            topic, key, size = arguments
            end += 1
            latest.add(record(end, topic, key, size))
            model.pop((topic, key), None)
            model[topic, key] = end, size
        elif what == "remove":
            latest.remove(*arguments)
            model.pop(tuple(arguments), None)
        else:
            end = max(end - arguments[0], 0)
            latest.restore([], end)
            model = {place: value for place, value in model.items() if value[0] <= end}
        while len(model) > max_records or (
            max_bytes is not None and sum(size for _, size in model.values()) > max_bytes
        ):
            del model[next(iter(model))]
        assert len(latest) == len(model)
        assert latest.bytes == sum(size for _, size in model.values())
        for patterns in (["a"], ["b", "a.b"], ["*"], [">"], ["a.*", "a"]):
            expected = sorted(
                offset for (topic, _), (offset, _) in model.items() if any(matches(each, topic) for each in patterns)
            )
            assert offsets(latest, *patterns) == expected


# A Hub. Each test runs without a broker and with one.


@pytest.fixture(params=["without a broker", "with a broker"])
async def hub_with(request):
    """Make Hubs, which are closed after the test."""
    made = []

    def make(**options) -> Hub:
        broker = MemoryBroker(MemoryLog()) if request.param == "with a broker" else None
        made.append(Hub(broker, **{"latest": 1000, **options}))
        return made[-1]

    yield make
    for hub in made:
        await hub.close()


async def publish(hub: Hub, topic: str, data: str, key: str | None = None, **options: bool) -> str:
    """Publish, and wait until the Hub has the record."""
    event_id = await hub.publish(topic, data, key=key, **options)
    await until(lambda: hub.history.end >= int(event_id.partition("-")[2]))
    return event_id


async def publish_keys(hub: Hub, topic: str, keys: str, padding: str = "") -> None:
    """Publish a value of each key, which is the key and its number."""
    for number, key in enumerate(keys, 1):
        await publish(hub, topic, f"{key}{number}{padding}", key)


def join(hub: Hub, *topics: str, **options) -> Sink:
    return start(hub, *topics, **{"replay": "latest", **options})


async def settle(*sinks: Sink) -> None:
    """Wait until sinks are live."""
    await until(lambda: all(sink.subscription.live for sink in sinks))


def short(sink: Sink) -> list[str]:
    """Return the texts without their padding."""
    return [text.rstrip("x") for text in sink.texts]


def ids(sink: Sink) -> list[str | None]:
    """Return the IDs of the events; ``None`` for one that is not the position of a record."""
    found = [frame.id for frame in sink.frames if frame.data is not None]
    return [None if each is None or each.endswith(PARTIAL) else each for each in found]


def fold(texts: list[str]) -> dict[str, str]:
    """Return the table of a page that clears it at a gap. The key is the first letter of a text."""
    table: dict[str, str] = {}
    for text in texts:
        if text == "gap":
            table.clear()
        else:
            table[text[0]] = text
    return table


class TestNewcomers:
    async def test_a_newcomer_gets_the_latest_value_of_each_key_and_then_what_is_new(self, hub_with):
        hub = hub_with()
        await publish_keys(hub, "t", "aba")
        sink = join(hub, "t")
        await settle(sink)
        await publish(hub, "t", "a4", "a")
        await publish(hub, "t", "c5", "c")
        await until(lambda: len(sink.texts) == 4)
        assert sink.texts == ["b2", "a3", "a4", "c5"]

    async def test_only_the_last_of_the_values_has_an_id_that_of_the_position(self, hub_with):
        hub = hub_with()
        await publish_keys(hub, "t", "aba")
        position = await publish(hub, "other", "x")
        sink = join(hub, "t")
        await settle(sink)
        new = await publish(hub, "t", "a5", "a")
        await until(lambda: len(sink.texts) == 3)
        assert ids(sink) == [None, position, new]

    async def test_values_outlive_their_records_in_the_history(self, hub_with):
        hub = hub_with(history=0)
        await publish_keys(hub, "t", "aba")
        sink = join(hub, "t")
        await settle(sink)
        assert (sink.texts, hub.history.records) == (["b2", "a3"], 0)

    @pytest.mark.parametrize("bound", [{"history": 1}, {"history_bytes": 1}, {"history_age": 1e-9}])
    async def test_the_bounds_of_the_history_do_not_count(self, hub_with, bound):
        hub = hub_with(**bound)
        await publish_keys(hub, "t", "abcdef")
        sink = join(hub, "t")
        await settle(sink)
        assert sink.texts == ["a1", "b2", "c3", "d4", "e5", "f6"]

    async def test_values_have_bounds_of_their_own(self, hub_with):
        hub = hub_with(latest=2)
        await publish_keys(hub, "t", "abca")
        sink = join(hub, "t")
        await settle(sink)
        assert (sink.texts, hub.statistics().latest) == (["c3", "a4"], 2)

    async def test_values_have_a_bound_in_bytes(self, hub_with):
        hub = hub_with(latest_bytes=800)
        await publish_keys(hub, "t", "abcd", "x" * 300)
        sink = join(hub, "t")
        await settle(sink)
        assert short(sink) == ["c3", "d4"]

    async def test_a_topic_without_keys_has_one_value(self, hub_with):
        hub = hub_with()
        for number in range(3):
            await publish(hub, "t", str(number))
        sink = join(hub, "t")
        await settle(sink)
        assert sink.texts == ["2"]

    async def test_ephemeral_events_are_no_values(self, hub_with):
        hub = hub_with()
        await publish(hub, "t", "a1", "a")
        await hub.publish("t", "gone", key="a", ephemeral=True)
        sink = join(hub, "t")
        await settle(sink)
        assert sink.texts == ["a1"]

    async def test_a_key_with_a_tombstone_has_no_value_until_the_next_event(self, hub_with):
        hub = hub_with()
        await publish_keys(hub, "t", "ab")
        before = join(hub, "t")
        await settle(before)
        await publish(hub, "t", "no a", "a", tombstone=True)
        without = join(hub, "t")
        await settle(without)
        await publish(hub, "t", "a4", "a")
        after = join(hub, "t")
        await settle(after)
        await until(lambda: len(before.texts) == 4)
        assert before.texts == ["a1", "b2", "no a", "a4"]
        assert without.texts == ["b2", "a4"]
        assert after.texts == ["b2", "a4"]

    async def test_wildcards_match(self, hub_with):
        hub = hub_with()
        for topic in ("a.x", "a.y", "a.x.z", "b"):
            await publish(hub, topic, topic, "k")
        sinks = [join(hub, *patterns) for patterns in [("a.*",), ("a.>", "b"), (">", "a.x"), ("c.*",)]]
        await settle(*sinks)
        assert [sink.texts for sink in sinks] == [
            ["a.x", "a.y"],
            ["a.x", "a.y", "a.x.z", "b"],
            ["a.x", "a.y", "a.x.z", "b"],
            [],
        ]

    async def test_select_chooses_among_the_values_and_the_last_chosen_has_the_id(self, hub_with):
        hub = hub_with()
        await publish_keys(hub, "t", "abcd")
        sink = join(hub, "t", select=lambda record: record.key in "ac")
        await settle(sink)
        assert sink.texts == ["a1", "c3"]
        assert ids(sink) == [None, hub.history.id_of(4)]

    async def test_a_client_whose_select_takes_only_the_first_values_has_the_id_of_the_position(self, hub_with):
        hub = hub_with()
        await publish_keys(hub, "t", "abcdef", BIG)
        sink = join(hub, "t", select=lambda record: record.key in "ab")
        await settle(sink)
        assert (short(sink), sink.last_event_id) == (["a1", "b2"], hub.history.id_of(6))

    async def test_a_stream_that_is_ended_gets_the_values_of_that_moment(self, hub_with):
        hub = hub_with()
        await publish_keys(hub, "t", "a")
        await until(lambda: hub.ready)
        sink = join(hub, "t")
        sink.subscription.end(CloseReason.CLOSED)
        await publish(hub, "t", "b2", "b")
        while sink.subscription.write_backlog():
            await run_other_tasks(1)
        assert sink.texts == ["a1"]

    async def test_a_select_that_raises_ends_only_its_own_stream(self, hub_with):
        hub = hub_with()
        await publish_keys(hub, "t", "ab")
        good, bad = join(hub, "t"), join(hub, "t", select=lambda record: 1 / 0)
        await settle(good)
        await until(lambda: bad.ends)
        assert isinstance(bad.ends[0][1], ZeroDivisionError)
        assert (bad.texts, good.texts) == ([], ["a1", "b2"])

    async def test_what_is_published_before_the_first_read_is_sent_once(self, hub_with):
        hub = hub_with()
        await publish_keys(hub, "t", "ab")
        sink = subscribe(hub, "t", replay="latest")
        await publish(hub, "t", "a3", "a")
        sink.subscription.start()
        await publish(hub, "t", "b4", "b")
        await publish(hub, "t", "no a", "a", tombstone=True)
        await settle(sink)
        await publish(hub, "t", "c6", "c")
        await until(lambda: sink.texts and sink.texts[-1] == "c6")
        table = {text[0]: text for text in sink.texts if text != "no a"}
        assert len(set(sink.texts)) == len(sink.texts)
        assert (table["b"], table["c"]) == ("b4", "c6")
        assert "a3" not in sink.texts or "no a" in sink.texts

    async def test_a_big_table_is_sent_in_batches_while_others_are_served(self, hub_with):
        hub = hub_with()
        other = join(hub, "other")
        await publish_keys(hub, "t", "abcdefghij", BIG)
        sink = join(hub, "t")
        await until(lambda: sink.payloads)
        assert len(sink.texts) == 2
        await hub.publish("other", "meanwhile")
        await until(lambda: other.texts == ["meanwhile"])
        await settle(sink)
        assert len(sink.texts) == 10
        assert ids(sink) == [None] * 9 + [hub.history.id_of(10)]

    async def test_what_is_published_amid_the_values_follows_them(self, hub_with):
        hub = hub_with()
        await publish_keys(hub, "t", "abcdef", BIG)
        sink = join(hub, "t", sink=Sink(room=1))
        await until(lambda: sink.paused)
        assert short(sink) == ["a1", "b2"]
        await publish(hub, "t", "a7", "a")
        await publish(hub, "t", "no f", "f", tombstone=True)
        await drain(sink)
        await settle(sink)
        assert short(sink) == ["a1", "b2", "c3", "d4", "e5", "f6", "a7", "no f"]
        assert ids(sink) == [None] * 5 + [hub.history.id_of(number) for number in (6, 7, 8)]

    @pytest.mark.parametrize("prime", [True, False])
    async def test_the_reconnection_time_comes_with_the_first_value_instead_of_an_initial_frame(self, hub_with, prime):
        hub = hub_with()
        await publish_keys(hub, "t", "ab")
        sink = join(hub, "t", prime=prime, retry=3000)
        await settle(sink)
        assert [(frame.data, frame.retry) for frame in sink.frames] == [("a1", 3000), ("b2", None)]

    async def test_without_values_there_is_an_initial_frame(self, hub_with):
        hub = hub_with()
        await publish(hub, "other", "x")
        sink = join(hub, "t", prime=True, retry=3000)
        await settle(sink)
        assert [(frame.data, frame.id, frame.retry) for frame in sink.frames] == [(None, hub.history.id_of(1), 3000)]

    async def test_a_newcomer_to_a_finished_topic_gets_its_values_and_the_end(self, hub_with):
        hub = hub_with()
        await publish_keys(hub, "t", "aba")
        await hub.finish("t", "end", key="end")
        sink = join(hub, "t", prime=True)
        await until(lambda: sink.ends)
        while sink.subscription.write_backlog():
            await run_other_tasks(1)
        assert sink.texts == ["b2", "a3", "end"]
        assert sink.ends == [(CloseReason.CLOSED, None)]
        assert sink.last_event_id == hub.history.id_of(4)


class TestReconnecting:
    async def test_a_client_that_resumes_without_a_gap_gets_only_what_it_missed(self, hub_with):
        hub = hub_with()
        await publish_keys(hub, "t", "abc")
        sink = join(hub, "t")
        await settle(sink)
        sink.subscription.close()
        await publish(hub, "t", "a4", "a")
        await publish(hub, "t", "a5", "a")
        again = join(hub, "t", after=sink.last_event_id)
        await settle(again)
        assert again.texts == ["a4", "a5"]

    async def test_a_client_that_is_cut_before_the_last_value_gets_all_again(self, hub_with):
        hub = hub_with()
        await publish_keys(hub, "t", "abcdef", BIG)
        sink = join(hub, "t", sink=Sink(room=50_000))
        await until(lambda: sink.paused)
        assert short(sink) == ["a1", "b2", "c3", "d4"]
        sink.subscription.close()
        await publish(hub, "t", "", "b", tombstone=True)
        again = join(hub, "t", after=sink.last_event_id)
        await settle(again)
        assert short(again) == ["gap", "a1", "c3", "d4", "e5", "f6"]
        assert json.loads(again.frames[0].data)["reason"] == "unknown"

    @pytest.mark.parametrize(
        ("after", "reason"),
        [("nonsense", "unknown"), ("0123456789-5", "foreign"), ("{epoch}-0", "evicted")],
        ids=["unknown", "foreign", "evicted"],
    )
    async def test_a_client_for_which_records_are_missing_gets_a_gap_and_then_all_values(
        self, hub_with, monkeypatch, after, reason
    ):
        monkeypatch.setattr(pending, "FUTURE_ID_TIMEOUT", 0.05)
        hub = hub_with(history=1)
        await publish_keys(hub, "t", "aba")
        sink = join(hub, "t", after=after.format(epoch=hub.history.epoch), retry=100)
        await settle(sink)
        await publish(hub, "t", "c4", "c")
        await until(lambda: len(sink.texts) == 4)
        assert sink.texts == ["gap", "b2", "a3", "c4"]
        assert json.loads(sink.frames[0].data)["reason"] == reason
        assert [frame.retry for frame in sink.frames] == [100, None, None, None]
        assert ids(sink) == [None, None, hub.history.id_of(3), hub.history.id_of(4)]
        assert hub.statistics().gaps == 1

    async def test_a_client_that_is_cut_after_the_gap_gets_it_again(self, hub_with):
        hub = hub_with(history=1)
        await publish_keys(hub, "t", "abcdef", BIG)
        given = hub.history.id_of(0)
        for _ in range(2):
            sink = join(hub, "t", after=given, sink=Sink(room=1))
            await until(lambda sink=sink: sink.paused)
            assert short(sink) == ["gap", "a1", "b2"]
            given = sink.last_event_id or given
            sink.subscription.close()

    async def test_a_client_with_a_gap_and_no_value_gets_the_gap(self, hub_with):
        hub = hub_with(history=1)
        await publish(hub, "t", "a1", "a")
        await publish(hub, "t", "no a", "a", tombstone=True)
        sink = join(hub, "t", after=hub.history.id_of(0))
        await settle(sink)
        assert sink.texts[0] == "gap"
        assert "a1" not in sink.texts
        again = join(hub, "t", after=sink.last_event_id)
        await settle(again)
        assert again.texts == []

    @pytest.mark.parametrize("padding", ["", BIG], ids=["one batch", "several batches"])
    async def test_a_client_whose_select_takes_nothing_gets_the_gap_with_the_position(self, hub_with, padding):
        hub = hub_with(history=1)
        await publish_keys(hub, "t", "abc", padding)
        sink = join(hub, "t", after=hub.history.id_of(0), select=lambda record: False)
        await settle(sink)
        assert (sink.texts, sink.last_event_id) == (["gap"], hub.history.id_of(3))

    async def test_a_client_that_is_cut_after_any_byte_has_the_right_table_when_it_is_back(self, hub_with, monkeypatch):
        monkeypatch.setattr(cursor, "BATCH_SIZE", 60)
        hub = hub_with()
        await publish_keys(hub, "t", "abacbd")
        sink = join(hub, "t", sink=Sink(encoder=plain), prime=True, retry=1000)
        await settle(sink)
        await publish(hub, "t", "e7", "e")
        await until(lambda: sink.texts[-1] == "e7")
        await publish(hub, "t", "a8", "a")
        body = b"".join(sink.payloads)
        sinks = []
        for size in range(len(body) + 1):
            decoder = Decoder()
            received = [frame.data for frame in decoder.feed(body[:size]) if frame.data]
            after = decoder.last_event_id or None
            sinks.append((join(hub, "t", after=after), received if after else []))
        await settle(*[again for again, _ in sinks])
        for again, received in sinks:
            seen = [*received, *again.texts]
            assert fold(seen) == {"a": "a8", "b": "b5", "c": "c4", "d": "d6", "e": "e7"}
            if "gap" not in seen:
                assert len(set(seen)) == len(seen)


class TestLag:
    async def test_a_client_that_lagged_gets_a_gap_and_then_all_values(self, hub_with):
        hub = hub_with(history=2)
        await publish_keys(hub, "t", "ab")
        sink = join(hub, "t")
        await settle(sink)
        sink.pause()
        for number in range(3, 9):
            await publish(hub, "t", f"{'cd'[number % 2]}{number}", "cd"[number % 2])
        sink.resume()
        await settle(sink)
        await publish(hub, "t", "e9", "e")
        await until(lambda: sink.texts[-1] == "e9")
        assert sink.texts == ["a1", "b2", "gap", "a1", "b2", "d7", "c8", "e9"]

    @pytest.mark.parametrize("history", [0, 1])
    async def test_one_for_which_no_value_is_left_gets_a_gap_with_the_position(self, hub_with, history):
        hub = hub_with(history=history)
        await publish_keys(hub, "t", "a")
        sink = join(hub, "t")
        await settle(sink)
        sink.pause()
        for _ in range(2):
            await publish(hub, "t", "a", "a")
            await publish(hub, "t", "no a", "a", tombstone=True)
        sink.resume()
        await settle(sink)
        assert sink.texts[:2] == ["a1", "gap"]
        assert set(sink.texts[2:]) <= {"no a"}
        assert sink.last_event_id == hub.history.id_of(5)

    async def test_with_close_it_is_ended_and_gets_them_when_it_is_back(self, hub_with):
        hub = hub_with(history=2)
        await publish_keys(hub, "t", "ab")
        sink = join(hub, "t", on_gap="close")
        await settle(sink)
        sink.pause()
        await publish_keys(hub, "t", "cdcdc")
        sink.resume()
        await until(lambda: sink.ends)
        assert (sink.texts, sink.ends) == (["a1", "b2"], [(CloseReason.LAGGED, None)])
        again = join(hub, "t", on_gap="close", after=sink.last_event_id)
        await settle(again)
        assert again.texts == ["gap", "a1", "b2", "d4", "c5"]

    async def test_with_conflate_it_gets_the_latest_of_what_it_missed_if_that_is_kept(self, hub_with):
        hub = hub_with(history=2)
        await publish_keys(hub, "t", "ab")
        sink = join(hub, "t", on_gap="conflate")
        await settle(sink)
        sink.pause()
        await publish_keys(hub, "t", "cdcdcd")
        sink.resume()
        await settle(sink)
        assert sink.texts == ["a1", "b2", "c5", "d6"]

    async def test_with_conflate_it_gets_a_gap_and_all_values_if_not(self, hub_with):
        hub = hub_with(history=2)
        await publish_keys(hub, "t", "ab")
        sink = join(hub, "t", on_gap="conflate")
        await settle(sink)
        sink.pause()
        await publish_keys(hub, "t", "cdef")
        sink.resume()
        await settle(sink)
        assert sink.texts == ["a1", "b2", "gap", "a1", "b2", "c1", "d2", "e3", "f4"]

    async def test_one_that_lags_amid_the_values_gets_them_from_the_start(self, hub_with):
        hub = hub_with(history=2)
        await publish_keys(hub, "t", "abc", BIG)
        sink = join(hub, "t", sink=Sink(room=1))
        await until(lambda: sink.paused)
        await publish_keys(hub, "t", "aaab")
        await drain(sink)
        await settle(sink)
        assert short(sink) == ["a1", "b2", "c3", "gap", "c3", "a3", "b4"]


class TestTopics:
    async def test_the_values_of_an_added_topic_come_first(self, hub_with):
        hub = hub_with()
        await publish_keys(hub, "a", "aba")
        await publish_keys(hub, "b", "cdc")
        sink = join(hub, "a")
        await settle(sink)
        sink.subscriber.add("b")
        await publish(hub, "b", "c7", "c")
        await settle(sink)
        await until(lambda: sink.texts[-1] == "c7")
        assert sink.texts == ["b2", "a3", "d2", "c3", "c7"]
        assert ids(sink) == [None, *[hub.history.id_of(6)], None, hub.history.id_of(6), hub.history.id_of(7)]

    async def test_a_topic_that_is_added_amid_the_values_is_complete_too(self, hub_with):
        hub = hub_with()
        await publish_keys(hub, "a", "abcd", BIG)
        await publish_keys(hub, "b", "ef")
        sink = join(hub, "a", sink=Sink(room=1))
        await until(lambda: sink.paused)
        sink.subscriber.add("b")
        await publish(hub, "b", "f7", "f")
        await drain(sink)
        await settle(sink)
        assert short(sink) == ["a1", "b2", "c3", "d4", "e1", "f2", "f7"]
        assert ids(sink) == [None] * 5 + [hub.history.id_of(6), hub.history.id_of(7)]

    async def test_what_was_published_under_an_added_topic_while_the_client_was_paused_is_sent_once(self, hub_with):
        hub = hub_with()
        await publish_keys(hub, "a", "a")
        sink = join(hub, "a")
        await settle(sink)
        sink.pause()
        await publish_keys(hub, "b", "cdc")
        await publish(hub, "a", "a5", "a")
        sink.subscriber.add("b")
        await publish(hub, "b", "d6", "d")
        sink.resume()
        await settle(sink)
        assert sink.texts == ["a1", "d2", "c3", "a5", "d6"]

    async def test_the_values_of_a_topic_that_is_removed_amid_them_are_not_sent(self, hub_with):
        hub = hub_with()
        for number, topic in enumerate("ababab"):
            await publish(hub, topic, f"{topic}{number}{BIG}", str(number))
        sink = join(hub, "a", "b", sink=Sink(room=1))
        await until(lambda: sink.paused)
        sink.subscriber.remove("b")
        await drain(sink)
        await settle(sink)
        assert short(sink) == ["a0", "b1", "a2", "a4"]
        assert sink.last_event_id == hub.history.id_of(6)

    async def test_topics_that_are_added_before_the_first_read_belong_to_the_table(self, hub_with):
        hub = hub_with()
        await publish_keys(hub, "a", "a")
        await publish_keys(hub, "b", "bc")
        sink = subscribe(hub, "a", replay="latest")
        sink.subscriber.add("b")
        sink.subscription.start()
        await settle(sink)
        assert sink.texts == ["a1", "b1", "c2"]

    @pytest.mark.parametrize(("topic", "added"), [("a.b", ">"), ("a.*", "a.b")])
    async def test_a_topic_that_overlaps_with_others_repeats_nothing(self, hub_with, topic, added):
        hub = hub_with()
        await publish_keys(hub, "a.b", "a")
        sink = join(hub, topic)
        await settle(sink)
        sink.pause()
        await publish(hub, "a.b", "a2", "a")
        await publish(hub, "a.b", "a3", "a")
        sink.subscriber.add(added)
        sink.resume()
        await settle(sink)
        await publish(hub, "a.b", "a4", "a")
        await until(lambda: sink.texts[-1] == "a4")
        assert sink.texts == ["a1", "a2", "a3", "a4"]

    async def test_also_if_it_is_added_amid_the_values(self, hub_with):
        hub = hub_with()
        await publish_keys(hub, "a", "abcd", BIG)
        sink = join(hub, "a", sink=Sink(room=1))
        await until(lambda: sink.paused)
        await publish(hub, "a", "d5", "d")
        sink.subscriber.add(">")
        await drain(sink)
        await settle(sink)
        assert short(sink) == ["a1", "b2", "c3", "d4", "d5"]

    async def test_a_client_that_is_cut_amid_the_values_of_an_added_topic_gets_all_again(self, hub_with):
        hub = hub_with()
        await publish_keys(hub, "a", "a")
        await publish_keys(hub, "b", "bcde", BIG)
        sink = join(hub, "a", sink=Sink(room=20_000))
        await settle(sink)
        sink.subscriber.add("b")
        await until(lambda: sink.paused)
        assert short(sink) == ["a1", "b1", "c2"]
        sink.subscription.close()
        again = join(hub, "a", "b", after=sink.last_event_id)
        await settle(again)
        assert short(again) == ["gap", "a1", "b1", "c2", "d3", "e4"]

    async def test_a_topic_that_select_adds_is_complete(self, hub_with):
        def select(record):
            sink.subscriber.add("b")
            return True

        hub = hub_with()
        await publish_keys(hub, "b", "b")
        await publish_keys(hub, "a", "a")
        sink = join(hub, "a", select=select)
        await until(lambda: len(sink.texts) == 2)
        await settle(sink)
        assert set(sink.texts) == {"a1", "b1"}

    async def test_select_chooses_among_the_values_of_an_added_topic(self, hub_with):
        hub = hub_with()
        await publish_keys(hub, "b", "cde")
        sink = join(hub, "a", select=lambda record: record.key != "d")
        await settle(sink)
        sink.subscriber.add("b")
        await until(lambda: len(sink.texts) == 2)
        assert sink.texts == ["c1", "e3"]

    async def test_other_streams_get_nothing_of_the_past_when_they_add_a_topic(self, hub_with):
        hub = hub_with()
        await publish_keys(hub, "b", "cd")
        sink = start(hub, "a")
        await settle(sink)
        sink.subscriber.add("b")
        await publish(hub, "b", "c3", "c")
        await until(lambda: sink.texts == ["c3"])


class TestListeners:
    async def test_a_listener_starts_with_the_values(self, hub_with):
        hub = hub_with(history=1)
        await publish_keys(hub, "t", "aba")
        async with hub.listen("t", replay="latest") as records:
            received = [await within(anext(records)) for _ in range(2)]
            await publish(hub, "t", "no a", "a", tombstone=True)
            received.append(await within(anext(records)))
        assert [(each.key, each.event.data, each.tombstone) for each in received] == [
            ("b", "b2", False),
            ("a", "a3", False),
            ("a", "no a", True),
        ]
        assert isinstance(received[2], Tombstone)

    async def test_one_for_which_records_are_missing_gets_the_gap_and_the_values(self, hub_with):
        hub = hub_with(history=1)
        await publish_keys(hub, "t", "aba")
        async with hub.listen("t", replay="latest", after=hub.history.id_of(0), on_gap="signal") as records:
            received = [await within(anext(records)) for _ in range(3)]
        assert isinstance(received[0], Gap)
        assert [each.event.data for each in received[1:]] == ["b2", "a3"]
        async with hub.listen("t", replay="latest", after=hub.history.id_of(0)) as records:
            with pytest.raises(Lagged):
                await within(anext(records))

    async def test_a_small_buffer_gets_the_whole_table(self, hub_with):
        hub = hub_with()
        await publish_keys(hub, "t", "abcdefgh", BIG)
        async with hub.listen("t", replay="latest", buffer=1) as records:
            received = [await within(anext(records)) for _ in range(8)]
        assert [each.key for each in received] == list("abcdefgh")


class TestOptions:
    def test_a_hub_that_keeps_no_values_refuses_the_replay_of_them(self):
        words = r"replay='latest' needs a Hub that keeps the latest records, such as Hub\(latest=10_000\)"
        with pytest.raises(ValueError, match=words):
            start_topic_stream(Hub(), "t", replay="latest")

    async def test_no_stream_and_no_listener_is_opened_on_it(self):
        hub = Hub()
        with pytest.raises(ValueError, match="needs a Hub that keeps the latest records"):
            join(hub, "t")
        with pytest.raises(ValueError, match="needs a Hub that keeps the latest records"):
            hub.listen("t", replay="latest")
        assert hub.statistics().subscribers == 0

    @pytest.mark.parametrize("wrong", [-1, 1.0, True, None, "all"])
    def test_the_number_of_values_is_checked(self, wrong):
        with pytest.raises((TypeError, ValueError), match="latest"):
            Hub(latest=wrong)

    @pytest.mark.parametrize("wrong", [0, -1, 1.0, True, "all"])
    def test_the_size_of_the_values_is_checked(self, wrong):
        with pytest.raises((TypeError, ValueError), match="latest_bytes"):
            Hub(latest_bytes=wrong)

    @pytest.mark.parametrize(
        ("options", "message"),
        [({}, "a tombstone needs the key"), ({"key": "a", "ephemeral": True}, "a tombstone is kept like the value")],
    )
    async def test_a_tombstone_needs_a_key_and_is_kept(self, hub_with, options, message):
        hub = hub_with()
        with pytest.raises(ValueError, match=message):
            await hub.publish("t", "x", tombstone=True, **options)
        assert hub.statistics().published == 0

    async def test_statistics_count_the_values(self, hub_with):
        hub = hub_with(history=1)
        await publish_keys(hub, "t", "aba")
        await publish(hub, "u", "x")
        assert (hub.statistics().latest, hub.statistics().records) == (3, 2)
        await publish(hub, "t", "no a", "a", tombstone=True)
        assert hub.statistics().latest == 2

    async def test_by_default_no_values_are_kept(self):
        hub = Hub()
        await publish_keys(hub, "t", "ab")
        assert hub.statistics().latest == 0
        assert hub.history.latest_records.read(frozenset([">"])).records == []

    async def test_a_thread_publishes_tombstones(self, hub_with):
        hub = hub_with()
        await publish_keys(hub, "t", "ab")
        await asyncio.to_thread(lambda: hub.publish_threadsafe("t", "no a", key="a", tombstone=True).result(timeout=10))
        await until(lambda: hub.statistics().latest == 1)


# The log of a broker.


class Processes:
    """Hubs on one log, each of which stands for a process."""

    def __init__(self) -> None:
        self.log = MemoryLog()
        self.hubs: list[Hub] = []

    async def start(self, *, broker: MemoryBroker | None = None, **options) -> Hub:
        hub = Hub(broker or MemoryBroker(self.log), **{"latest": 1000, **options})
        self.hubs.append(hub)
        hub.open()
        await until(lambda: hub.ready)
        return hub

    async def truncate(self, offset: int) -> None:
        self.log.truncate(offset)
        await until(lambda: all(hub.history.epoch == self.log.epoch for hub in self.hubs))


@pytest.fixture
async def processes():
    processes = Processes()
    yield processes
    for hub in processes.hubs:
        await hub.close()


def table(hub: Hub) -> list[str]:
    return [record.event.data for record in hub.history.latest_records.read(frozenset([">"])).records]


class TestLog:
    async def test_a_process_that_starts_later_has_the_same_values(self, processes):
        first = await processes.start(history=1)
        await publish_keys(first, "t", "abacb")
        await publish(first, "t", "no c", "c", tombstone=True)
        second = await processes.start(history=1)
        assert table(first) == table(second) == ["a3", "b5"]
        sink = join(second, "t")
        await settle(sink)
        assert sink.texts == ["a3", "b5"]

    async def test_a_client_that_changes_to_another_process_gets_only_what_it_missed(self, processes):
        first, second = await processes.start(), await processes.start()
        await publish_keys(first, "t", "ab")
        sink = join(first, "t")
        await settle(sink)
        sink.subscription.close()
        await publish(first, "t", "a3", "a")
        await until(lambda: second.history.end == 3)
        again = join(second, "t", after=sink.last_event_id)
        await settle(again)
        assert again.texts == ["a3"]

    async def test_a_client_that_comes_while_the_broker_is_down_gets_the_values_when_it_is_up(self, processes):
        hub = await processes.start()
        await publish_keys(hub, "t", "ab")
        sink = join(hub, "t", after="nonsense")
        processes.log.stop()
        await until(lambda: not hub.ready)
        processes.log.restart()
        await settle(sink)
        assert sink.texts == ["gap", "a1", "b2"]

    async def test_truncation_restores_the_values_that_are_still_known(self, processes):
        hub = await processes.start()
        await publish_keys(hub, "t", "abc")
        await publish(hub, "t", "a4", "a")
        await publish(hub, "t", "no b", "b", tombstone=True)
        await publish(hub, "t", "d6", "d")
        await processes.truncate(3)
        assert table(hub) == ["a1", "b2", "c3"]
        assert table(await processes.start()) == table(hub)

    async def test_truncation_keeps_the_values_that_were_published_last(self, processes):
        hub = await processes.start(latest=2, history=1)
        await publish_keys(hub, "u", "a")
        await publish_keys(hub, "v", "b")
        await publish_keys(hub, "t", "cd")
        await processes.truncate(3)
        assert table(hub) == table(await processes.start(latest=2, history=1)) == ["b1", "c1"]

    async def test_truncation_does_not_change_what_is_evicted_next(self, processes):
        hub = await processes.start(latest=2)
        await publish(hub, "t", "no a", "a", tombstone=True)
        await publish_keys(hub, "t", "a")
        await publish_keys(hub, "u", "b")
        await processes.truncate(3)
        await publish_keys(hub, "v", "c")
        assert table(hub) == ["b1", "c1"]

    async def test_a_process_that_missed_a_tombstone_has_no_old_value(self, processes, monkeypatch):
        monkeypatch.setattr(MemoryBroker, "confirms", 0.02)
        processes.log = MemoryLog(max_records=1)
        hub = await processes.start(broker=(cable := Cable(processes.log)))
        await publish_keys(hub, "t", "a")
        cable.cut = True
        await until(lambda: not hub.ready)
        other = await processes.start()
        await publish(other, "t", "no a", "a", tombstone=True)
        await publish_keys(other, "u", "b")
        cable.cut = False
        await until(lambda: hub.history.end == 3)
        assert table(hub) == table(other) == ["b1"]

    async def test_truncation_does_not_bring_back_what_was_removed_before(self, processes):
        hub = await processes.start()
        await publish_keys(hub, "t", "ab")
        await publish(hub, "t", "no a", "a", tombstone=True)
        await publish(hub, "t", "a4", "a")
        await processes.truncate(3)
        assert table(hub) == ["b2"]

    async def test_a_live_client_gets_a_gap_and_the_values_after_a_truncation(self, processes):
        hub = await processes.start()
        await publish_keys(hub, "t", "aba")
        sink = join(hub, "t")
        await settle(sink)
        await processes.truncate(2)
        await settle(sink)
        await publish(hub, "t", "c3", "c")
        await until(lambda: sink.texts[-1] == "c3")
        assert sink.texts == ["b2", "a3", "gap", "a1", "b2", "c3"]
        assert json.loads(sink.frames[2].data)["reason"] == "truncated"

    async def test_a_client_amid_the_values_gets_them_from_the_start_after_a_truncation(self, processes):
        hub = await processes.start()
        await publish_keys(hub, "t", "abcda", BIG)
        sink = join(hub, "t", sink=Sink(room=1))
        await until(lambda: sink.paused)
        await processes.truncate(4)
        await drain(sink)
        await settle(sink)
        assert short(sink) == ["b2", "c3", "gap", "a1", "b2", "c3", "d4"]

    async def test_a_topic_that_is_added_before_a_client_has_its_position_is_complete(self, processes):
        hub = await processes.start()
        await publish_keys(hub, "a", "a")
        await publish_keys(hub, "b", "b")
        sink = join(hub, "a", after=f"{hub.history.epoch}-3")
        sink.subscriber.add("b")
        await publish(hub, "a", "a3", "a")
        await settle(sink)
        await publish(hub, "a", "a4", "a")
        await until(lambda: sink.texts[-1] == "a4")
        assert sink.texts == ["b1", "a4"]

    async def test_a_client_that_is_cut_after_the_gap_of_a_truncation_misses_no_value(self, processes):
        hub = await processes.start()
        await publish_keys(hub, "b", "b")
        await publish_keys(hub, "a", "aa")
        lost = hub.history.id_of(3)
        await processes.truncate(2)
        sink = subscribe(hub, "a", after=lost, replay="latest", sink=Sink(room=0))
        sink.pause()
        sink.subscription.start()
        sink.subscriber.add("b")
        sink.resume()
        await until(lambda: sink.paused)
        sink.subscription.close()
        again = join(hub, "a", "b", after=sink.last_event_id)
        await settle(again)
        assert fold([*sink.texts, *again.texts]) == {"a": "a1", "b": "b1"}

    async def test_a_client_with_an_id_that_was_lost_gets_a_gap_and_the_values(self, processes):
        hub = await processes.start()
        await publish_keys(hub, "t", "aba")
        given = hub.history.id_of(3)
        await processes.truncate(2)
        sink = join(hub, "t", after=given)
        await settle(sink)
        assert sink.texts == ["gap", "a1", "b2"]


# Random stories.

TOPICS = ["a", "a.b", "c"]
SUBSCRIPTIONS = [("a",), (">",), ("a", "c"), ("a.*", "c"), ("*",)]


class Page(Sink):
    """A page that keeps a table of what it receives."""

    def __init__(self, client: Client) -> None:
        super().__init__(room=client.room)
        self._client = client

    def received(self, frames: list[Event]) -> None:
        super().received(frames)
        for event in frames:
            if event.name == "gap":
                self._client.clear()
            elif event.data is not None:
                self._client.receive(event.data)


class Client:
    """A browser that has one stream at a time, and reconnects with the ID that it has.

    What it receives without an ID, or after a gap, is the whole table.
    """

    def __init__(self, topics: tuple[str, ...], room: float, options: dict[str, object]) -> None:
        self.topics, self.room, self.options = topics, room, options
        self.table: dict[tuple[str, str], int] = {}
        self.seen: set[int] = set()
        self.unique = True  # a topic that is added may repeat what a wildcard had matched
        self.sink: Sink | None = None
        self._given = ""

    def clear(self) -> None:
        self.table, self.seen = {}, set()

    def receive(self, data: str) -> None:
        topic, key, number, removed = json.loads(data)
        assert number not in self.seen or not self.unique
        self.seen.add(number)
        if removed:
            self.table.pop((topic, key), None)
        else:
            self.table[topic, key] = number

    def connect(self, hub: Hub) -> None:
        self.disconnect()
        if not self._given:
            self.clear()
        self.sink = join(hub, *self.topics, sink=Page(self), after=self._given or None, **self.options)

    def disconnect(self) -> None:
        if self.sink is not None:
            self.sink.subscription.close()
            self._given = self.sink.last_event_id or self._given
            self.sink = None


class Story:
    """One or two processes and some clients."""

    def __init__(self, *, broker: bool, **options: object) -> None:
        self.log = MemoryLog() if broker else None
        self.options = options
        self.hubs = [self.process() for _ in range(2 if broker else 1)]
        self.clients: list[Client] = []
        self.published: list[tuple[str, str, int, bool]] = []
        self.numbers = itertools.count()

    def process(self) -> Hub:
        return Hub(None if self.log is None else MemoryBroker(self.log), latest=1000, **self.options)

    def hub(self, which: int) -> Hub:
        return self.hubs[which % len(self.hubs)]

    async def publish(self, which: int, topic: str, key: str, removed: bool) -> None:
        event = topic, key, next(self.numbers), removed
        self.published.append(event)
        await self.hub(which).publish(topic, json.dumps(event), key=key, tombstone=removed)

    async def join(self, which: int, topics: tuple[str, ...], room: float, options: dict[str, object]) -> None:
        self.clients.append(Client(topics, room, options))
        self.clients[-1].connect(self.hub(which))

    def client(self, which: int) -> Client | None:
        return self.clients[which % len(self.clients)] if self.clients else None

    async def reconnect(self, which: int, hub: int) -> None:
        if (client := self.client(which)) is not None and client.unique:
            client.connect(self.hub(hub))

    async def disconnect(self, which: int) -> None:
        if (client := self.client(which)) is not None and client.unique:
            client.disconnect()

    async def pause(self, which: int) -> None:
        if (client := self.client(which)) is not None and client.sink is not None:
            client.sink.pause()

    async def resume(self, which: int) -> None:
        if (client := self.client(which)) is not None and client.sink is not None:
            client.sink.resume()

    async def add(self, which: int, topic: str) -> None:
        client = self.client(which)
        if client is not None and client.sink is not None and client.sink.subscription.has_start_position:
            client.unique = False
            client.sink.subscriber.add(topic)
            client.topics = (*client.topics, topic)

    async def wait(self, turns: int) -> None:
        await run_other_tasks(turns)

    async def truncate(self, count: int) -> None:
        if self.log is not None:
            self.log.truncate(max(self.log.end - count, 0))
            del self.published[self.log.end :]

    async def replace_process(self, which: int) -> None:
        if self.log is None:
            return
        old = self.hub(which)
        for client in self.clients:
            if client.sink is not None and client.sink.subscription._dispatcher is old._dispatcher:
                if not client.unique:
                    return
                client.disconnect()
        await old.close()
        self.hubs[which % len(self.hubs)] = self.process()

    async def check(self) -> None:
        for hub in self.hubs:
            hub.open()
            if self.log is not None:
                await until(
                    lambda hub=hub: hub.ready and (hub.history.epoch, hub.history.end) == (self.log.epoch, self.log.end)
                )
        for number, client in enumerate(self.clients):
            if client.sink is None:
                client.connect(self.hub(number))
            client.sink.room = float("inf")
        await drain(*[client.sink for client in self.clients])
        for topic in TOPICS:
            await self.publish(0, topic, "last", removed=False)
        for client in self.clients:
            awaited = {
                number
                for topic, _, number, _ in self.published[-len(TOPICS) :]
                if any(matches(pattern, topic) for pattern in client.topics)
            }
            await until(lambda client=client, awaited=awaited: client.seen >= awaited or client.sink.ends)
            assert client.sink.ends == []
        await run_other_tasks()
        model: dict[tuple[str, str], int] = {}
        for topic, key, number, removed in self.published:
            if removed:
                model.pop((topic, key), None)
            else:
                model[topic, key] = number
        for client in self.clients:
            expected = {
                place: number
                for place, number in model.items()
                if any(matches(pattern, place[0]) for pattern in client.topics)
            }
            assert client.table == expected

    async def close(self) -> None:
        for hub in self.hubs:
            await hub.close()


def steps(*, lossy: bool):
    which, client = st.integers(0, 1), st.integers(0, 5)
    options = st.fixed_dictionaries({"prime": st.booleans(), "retry": st.sampled_from([None, 5])})
    publish = st.tuples(st.just("publish"), which, st.sampled_from(TOPICS), st.sampled_from("123"), st.booleans())
    room = st.sampled_from([1, 100, 300, float("inf")])
    kinds = [
        publish,
        publish,
        publish,
        st.tuples(st.just("join"), which, st.sampled_from(SUBSCRIPTIONS), room, options),
        st.tuples(st.just("reconnect"), client, which),
        st.tuples(st.just("disconnect"), client),
        st.tuples(st.just("pause"), client),
        st.tuples(st.just("resume"), client),
        st.tuples(st.just("resume"), client),
        st.tuples(st.just("add"), client, st.sampled_from([*TOPICS, "*"])),
        st.tuples(st.just("wait"), st.integers(1, 4)),
        st.tuples(st.just("replace_process"), which),
    ]
    if lossy:
        kinds.append(st.tuples(st.just("truncate"), st.integers(0, 4)))
    return st.lists(st.one_of(kinds), min_size=20, max_size=60)


async def run(story: Story, told) -> None:
    try:
        for what, *arguments in told:
            await getattr(story, what)(*arguments)
        await story.check()
    finally:
        await story.close()


@pytest.fixture(scope="module")
def quick(quick):
    """Read in small batches, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cursor, "BATCH_SIZE", 100)
        yield


@pytest.mark.usefixtures("quick")
@given(steps(lossy=False), st.booleans(), st.sampled_from([0, 1, 3, 100]), st.sampled_from(["signal", "conflate"]))
@settings(max_examples=200, deadline=None)
def test_every_client_ends_with_the_table_of_all_that_was_published(told, broker, history, on_gap):
    told = [(*step[:-1], {**step[-1], "on_gap": on_gap}) if step[0] == "join" else step for step in told]
    asyncio.run(run(Story(broker=broker, history=history), told))


@pytest.mark.usefixtures("quick")
@given(steps(lossy=True))
@settings(max_examples=200, deadline=None)
def test_after_a_truncation_every_client_ends_with_the_table_of_what_is_left(told):
    asyncio.run(run(Story(broker=True), told))
