"""The tests of the ``Broker`` protocol, which every engine passes on a real server.

An engine's test file derives a class from ``Contract`` and defines the fixture ``site``: a log that brokers share.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Protocol

import pytest

from aiohttp_interceptors.channel import CloseReason
from aiohttp_interceptors.exceptions import BrokerDown, OutcomeUnknown, TopicFinished
from aiohttp_interceptors.hub.broker import (
    Broker,
    CaughtUp,
    Entry,
    Erased,
    LogPosition,
    Subscribed,
    TailItem,
    Trimmed,
    Truncated,
)
from aiohttp_interceptors.hub.hub import Hub
from tests.hub.sink import start as start_stream
from tests.waiting import until, within

MEGABYTE = 2**20


class Site(Protocol):
    """An empty log on a real server."""

    def broker(self, **options: object) -> Broker:
        """Make a broker on this log, as another process does. The test closes it.

        Every broker has the options ``max_records`` and ``publish_timeout`` (seconds).
        """

    async def wipe(self) -> None:
        """Delete everything, as an administrator may."""


class Tail:
    """Reads a tail item by item, and collects its entries."""

    def __init__(self, items: AsyncIterator[TailItem]) -> None:
        self._items = items
        self.entries: list[Entry] = []
        self.position: LogPosition | None = None

    async def item(self) -> TailItem:
        """Wait for the next item."""
        item = await within(anext(self._items))
        if isinstance(item, Subscribed | Truncated):
            self.position = item.position
        elif isinstance(item, Trimmed | Erased):
            assert self.position is not None
            assert item.through > self.position.offset
            self.position = LogPosition(self.position.epoch, item.through)
        elif not isinstance(item, CaughtUp):
            assert item
            for entry in item:
                assert self.position is not None
                assert entry.offset > self.position.offset
                self.position = LogPosition(self.position.epoch, entry.offset)
                self.entries.append(entry)
        return item

    @property
    def kept(self) -> list[tuple[str, bytes]]:
        """The topics and payloads of the entries that were not erased."""
        return [(entry.topic, entry.payload) for entry in self.entries if entry.payload]

    async def until(self, kind: type) -> TailItem:
        """Read up to the next item of a type, and return it."""
        while not isinstance(item := await self.item(), kind):
            pass
        return item

    async def payloads(self, count: int) -> list[bytes]:
        """Read until there are ``count`` entries in all, and return their payloads."""
        while len(self.entries) < count:
            await self.item()
        return [entry.payload for entry in self.entries]


@asynccontextmanager
async def tail(broker: Broker, after: LogPosition | None = None) -> AsyncIterator[Tail]:
    """Open a tail, which is closed at the end of the block."""
    async with aclosing(broker.tail(after)) as items:
        yield Tail(items)


@pytest.fixture
async def brokers(site):
    """Make brokers on one log, which are closed after the test."""
    made = []

    def make(**options):
        made.append(site.broker(**options))
        return made[-1]

    yield make
    for broker in made:
        await broker.close()


@pytest.fixture
def broker(brokers):
    return brokers()


def number(value: int) -> bytes:
    return b"%d" % value


def check_confirms(broker: Broker) -> None:
    """Check that a broker repeats ``CaughtUp``, as each of ours does."""
    assert 1.0 <= broker.confirms <= 2.0


class Contract:
    """The tests of ``Broker``."""

    async def test_a_tail_of_an_empty_log_is_subscribed_and_caught_up(self, broker):
        async with tail(broker) as reading:
            subscribed = await reading.item()
            assert isinstance(subscribed, Subscribed)
            assert await reading.item() == CaughtUp()

    async def test_caught_up_is_repeated_while_nothing_is_published(self, broker):
        check_confirms(broker)
        async with tail(broker) as reading:
            for _ in range(4):
                await reading.until(CaughtUp)

    async def test_caught_up_is_repeated_while_others_publish_without_pause(self, brokers):
        one, other = brokers(), brokers()
        check_confirms(one)
        stop = asyncio.Event()

        async def publish():
            while not stop.is_set():
                await other.publish("t", b"x")
                await asyncio.sleep(0)

        async with tail(one) as reading:
            await reading.until(CaughtUp)
            publishing = asyncio.create_task(publish())
            for _ in range(3):
                await within(reading.until(CaughtUp))
            stop.set()
            await within(publishing)

    async def test_caught_up_comes_after_all_that_was_acknowledged_before(self, brokers):
        one, other = brokers(), brokers()
        check_confirms(one)
        async with tail(one) as reading:
            await reading.until(CaughtUp)
            for count in 1, 2:
                position = await other.publish("t", b"x")
                await reading.until(CaughtUp)  # this one may be older than the publish
                await reading.until(CaughtUp)
                assert len(reading.entries) == count
                assert reading.position == position

    async def test_an_entry_has_the_topic_payload_and_offset_of_its_publish(self, broker):
        async with tail(broker) as reading:
            await reading.until(CaughtUp)
            position = await within(broker.publish("a.b", b"\x10data: \xff\x00\r\n\n"))
            await reading.payloads(1)
            (entry,) = reading.entries
            assert entry[:3] == (position.offset, "a.b", b"\x10data: \xff\x00\r\n\n")
            assert position == reading.position
            assert 0 <= entry.age < 60

    async def test_history_comes_before_new_entries(self, brokers):
        one, other = brokers(), brokers()
        positions = [await one.publish("t", number(n)) for n in range(5)]
        async with tail(other) as reading:
            await reading.until(CaughtUp)
            assert [LogPosition(positions[0].epoch, entry.offset) for entry in reading.entries] == positions
            await one.publish("t", b"new")
            assert await reading.payloads(6) == [b"0", b"1", b"2", b"3", b"4", b"new"]

    async def test_a_tail_starts_after_the_given_position(self, brokers):
        one, other = brokers(), brokers()
        positions = [await one.publish("t", number(n)) for n in range(5)]
        for start, position in enumerate(positions, 1):
            async with tail(other, position) as reading:
                assert await reading.item() == Subscribed(position)
                await reading.until(CaughtUp)
                assert [entry.payload for entry in reading.entries] == [number(n) for n in range(start, 5)]

    async def test_a_new_tail_resumes_where_a_closed_one_ended(self, brokers):
        one, other = brokers(), brokers()
        position = None
        for round_ in range(3):
            async with tail(one, position) as reading:
                await reading.until(CaughtUp)
                await other.publish("t", number(round_))
                await reading.payloads(1)
                assert [entry.payload for entry in reading.entries] == [number(round_)]
                position = reading.position

    async def test_cancelling_a_waiting_tail_loses_no_entry(self, brokers):
        one, other = brokers(), brokers()
        async with tail(one) as reading:
            await reading.until(CaughtUp)
            waiting = asyncio.create_task(reading.item())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            position = reading.position
        await other.publish("t", b"after")
        async with tail(one, position) as reading:
            assert await reading.payloads(1) == [b"after"]

    async def test_all_processes_see_concurrent_publishes_in_one_order(self, brokers):
        processes = [brokers() for _ in range(4)]
        async with tail(processes[0]) as one, tail(processes[1]) as other:
            await one.until(CaughtUp)
            await other.until(CaughtUp)

            async def publish(which):
                return [await processes[which].publish(f"t.{which}", number(n)) for n in range(50)]

            positions = await within(asyncio.gather(*map(publish, range(4))), 30)
            await one.payloads(200)
            await other.payloads(200)
            assert [entry[:3] for entry in one.entries] == [entry[:3] for entry in other.entries]
            for which in range(4):
                mine = [entry for entry in one.entries if entry.topic == f"t.{which}"]
                assert [entry.payload for entry in mine] == [number(n) for n in range(50)]
                assert [entry.offset for entry in mine] == [position.offset for position in positions[which]]

    async def test_concurrent_publishes_keep_the_order_of_their_calls(self, broker):
        async with tail(broker) as reading:
            await reading.until(CaughtUp)
            await within(asyncio.gather(*[broker.publish("t", number(n)) for n in range(1200)]), 30)
            assert await reading.payloads(1200) == [number(n) for n in range(1200)]

    async def test_a_retry_with_the_same_idempotency_key_stores_nothing(self, brokers):
        one, other = brokers(), brokers()
        first = await one.publish("t", b"x", idempotency_key="order 7")
        assert await one.publish("t", b"x", idempotency_key="order 7") == first
        assert await other.publish("t", b"x", idempotency_key="order 7") == first
        at_once = await asyncio.gather(*[one.publish("t", b"y", idempotency_key="order 8") for _ in range(5)])
        assert len(set(at_once)) == 1
        assert await other.publish("t", b"z", idempotency_key="order 9") not in {first, at_once[0]}
        async with tail(one) as reading:
            await reading.until(CaughtUp)
            assert [entry.payload for entry in reading.entries] == [b"x", b"y", b"z"]

    async def test_an_idempotency_key_may_have_any_printable_character(self, broker):
        for key in "k", "ö/☃ 'x' \"y\" \\ {} %s", "k" * 200:
            first = await broker.publish("t", b"x", idempotency_key=key)
            assert await broker.publish("t", b"x", idempotency_key=key) == first

    async def test_a_topic_may_have_any_character_that_a_hub_allows(self, broker, topics):
        for topic in topics:
            await broker.publish(topic, topic.encode())
        async with tail(broker) as reading:
            await reading.until(CaughtUp)
            assert [(entry.topic, entry.payload) for entry in reading.entries] == [
                (topic, topic.encode()) for topic in topics
            ]

    async def test_a_payload_of_a_megabyte_is_delivered(self, broker):
        """For example, PostgreSQL's NOTIFY carries 8,000 bytes at most."""
        payload = bytes(range(256)) * (MEGABYTE // 256)
        async with tail(broker) as reading:
            await reading.until(CaughtUp)
            await within(broker.publish("t", payload))
            await within(broker.publish("t", b"\x10" + payload))  # a Hub's payload of the largest event
            assert await reading.payloads(2) == [payload, b"\x10" + payload]

    async def test_a_payload_may_be_empty(self, broker):
        await broker.publish("t", b"")
        async with tail(broker) as reading:
            assert await reading.payloads(1) == [b""]

    async def test_a_tail_behind_the_trimmed_entries_gets_trimmed(self, brokers, site):
        one, other = brokers(max_records=100), brokers(max_records=100)
        seen = await one.publish("t", b"seen")
        last = [await within(asyncio.gather(*[one.publish("t", number(n)) for n in range(1000)]), 30)][0][-1]
        await self.trimmed(site, one)
        async with tail(other, seen) as reading:
            assert await reading.item() == Subscribed(seen)
            trimmed = await reading.item()
            assert isinstance(trimmed, Trimmed)
            assert seen.offset < trimmed.through < last.offset
            await reading.until(CaughtUp)
            kept = [entry.payload for entry in reading.entries]
            assert kept == [number(n) for n in range(1000 - len(kept), 1000)]
            assert 50 <= len(kept) < 1000
            assert reading.position == last
        async with tail(other) as reading:
            subscribed = await reading.item()
            assert subscribed == Subscribed(LogPosition(seen.epoch, trimmed.through))

    async def trimmed(self, site, broker):
        """Wait until the engine has deleted the entries beyond its limit. Most do that as they publish."""

    async def test_a_tail_just_before_the_first_entry_is_not_trimmed(self, brokers, site):
        one, other = brokers(max_records=100), brokers(max_records=100)
        positions = [await within(asyncio.gather(*[one.publish("t", number(n)) for n in range(1000)]), 30)][0]
        await self.trimmed(site, one)
        async with tail(other) as reading:
            await reading.until(CaughtUp)
            before = next(p for p in positions if p.offset == reading.entries[0].offset)
        previous = positions[positions.index(before) - 1]
        async with tail(other, previous) as reading:
            await reading.item()
            assert not isinstance(await reading.item(), Trimmed)

    async def test_after_a_wipe_a_new_tail_gets_truncated_and_the_new_entries(self, brokers, site):
        one, other = brokers(), brokers()
        before = [await one.publish("t", number(n)) for n in range(10)][-1]
        await site.wipe()
        async with tail(one, before) as reading:
            await reading.item()
            truncated = await reading.item()
            assert isinstance(truncated, Truncated)
            assert truncated.position.epoch != before.epoch
            await reading.until(CaughtUp)
            position = await within(other.publish("t", b"new"))
            assert await reading.payloads(1) == [b"new"]
            assert reading.position == position
            assert position.epoch == truncated.position.epoch

    async def test_a_wipe_under_an_open_tail_gives_truncated(self, brokers, site):
        one, other = brokers(), brokers()
        async with tail(one) as reading:
            await reading.until(CaughtUp)
            await one.publish("t", b"old")
            await reading.payloads(1)
            epoch = reading.position.epoch
            await site.wipe()
            position = await within(other.publish("t", b"new"))
            assert position.epoch != epoch
            await self.read_until_truncated(reading, one, other)
            while reading.entries[-1].payload != b"new":
                await reading.item()
            assert reading.position == position

    async def read_until_truncated(self, reading, one, other):
        """Read until ``Truncated``; with some engines the tail ends first, and a new one gives it."""
        await reading.until(Truncated)

    async def test_erased_entries_are_gone_and_the_others_stay(self, brokers):
        one, other = brokers(), brokers()
        for n, topic in enumerate(["b", "a", "a.b", "a", "a*", "b", "A", "a"]):
            await one.publish(topic, number(n))
        last = await one.publish("a", b"erasure")
        await other.publish("a", b"later")
        await within(other.erase("a", last))
        async with tail(one) as reading:
            await reading.until(CaughtUp)
            expected = [("b", b"0"), ("a.b", b"2"), ("a*", b"4"), ("b", b"5"), ("A", b"6"), ("a", b"erasure")]
            assert reading.kept == [*expected, ("a", b"later")]
            position = await other.publish("a", b"new")
            while reading.kept[-1] != ("a", b"new"):
                await reading.item()
            assert reading.position == position

    async def test_a_topic_with_any_character_can_be_erased(self, broker, topics):
        for topic in topics:
            await broker.publish(topic, b"old")
        for number_, topic in enumerate(topics, 1):
            await within(broker.erase(topic, await broker.publish(topic, b"erasure")))
            async with tail(broker) as reading:
                await reading.until(CaughtUp)
                kept = [(name, b"old") for name in topics[number_:]]
                assert reading.kept == [*kept, *((name, b"erasure") for name in topics[:number_])]

    async def test_a_tail_that_is_behind_learns_that_entries_were_erased_and_gets_all_others(self, brokers):
        """It is not told that anything else was trimmed or lost."""
        one, other = brokers(), brokers()
        start = await one.publish("b", b"start")
        for n in range(300):
            await one.publish("a" if n % 3 else "b", number(n))
        erasure = await one.publish("a", b"erasure")
        await within(one.erase("a", erasure))
        await one.publish("b", b"end")
        async with tail(other, start) as reading:
            found = []
            while not isinstance(item := await reading.item(), CaughtUp):
                found.append(item)
                assert not isinstance(item, Trimmed | Truncated)
                assert not isinstance(item, Erased) or item.through < erasure.offset <= item.erased_by
            kept = [("b", number(n)) for n in range(0, 300, 3)]
            assert reading.kept == [*kept, ("a", b"erasure"), ("b", b"end")]
            places = [entry for entry in reading.entries if not entry.payload]
            assert {entry.topic for entry in places} <= {"a"}
            assert len(places) == 200 or any(isinstance(item, Erased) for item in found)

    async def test_a_tail_goes_on_while_what_it_reads_is_erased(self, brokers):
        one, other, third = brokers(), brokers(), brokers()
        await other.publish("b", b"start")
        async with tail(one) as reading:
            await reading.until(CaughtUp)

            async def publish():
                return [await other.publish(f"{'ab'[n % 2]}", number(n)) for n in range(400)]

            async def erase():
                for _ in range(5):
                    await third.erase("a", await third.publish("a", b"erasure"))

            await within(asyncio.gather(publish(), erase()), 60)
            last = await other.publish("b", b"end")
            while reading.position != last:
                assert not isinstance(await reading.item(), Trimmed | Truncated)
            assert [kept for kept in reading.kept if kept[0] == "b"] == [
                ("b", b"start"),
                *(("b", number(n)) for n in range(1, 400, 2)),
                ("b", b"end"),
            ]

    async def test_erasing_is_idempotent_and_may_be_concurrent(self, brokers):
        one, other = brokers(), brokers()
        for n in range(50):
            await one.publish("a" if n % 2 else "b", number(n))
        first, second = await one.publish("a", b"first"), await other.publish("a", b"second")
        await within(asyncio.gather(one.erase("a", first), other.erase("a", second), one.erase("a", second)))
        await within(one.erase("a", first))
        await within(other.erase("a", second))
        async with tail(one) as reading:
            await reading.until(CaughtUp)
            assert reading.kept == [*(("b", number(n)) for n in range(0, 50, 2)), ("a", b"second")]

    async def test_a_retry_of_an_erased_entry_stores_nothing(self, brokers):
        one, other = brokers(), brokers()
        first = await one.publish("a", b"x", idempotency_key="k")
        await one.erase("a", await one.publish("a", b"erasure"))
        assert await one.publish("a", b"x", idempotency_key="k") == first
        assert await other.publish("a", b"x", idempotency_key="k") == first

    async def test_a_log_with_erased_entries_is_trimmed_as_another_one(self, brokers, site):
        one, other = brokers(max_records=100), brokers(max_records=100)
        seen = await one.publish("b", b"seen")
        for n in range(60):
            await one.publish("a" if n % 2 else "b", number(n))
        await one.erase("a", await one.publish("a", b"erasure"))
        await within(asyncio.gather(*[one.publish("b", number(n)) for n in range(1000)]), 30)
        last = await one.publish("b", b"last")
        await self.trimmed(site, one)
        async with tail(other, seen) as reading:
            await reading.item()
            assert isinstance(await reading.item(), Trimmed)
            await reading.until(CaughtUp)
            assert reading.position == last
            assert 50 <= len(reading.entries) < 1000

    async def test_what_was_trimmed_before_an_erasure_is_not_reported_as_erased(self, brokers, site):
        one, other = brokers(max_records=100), brokers(max_records=100)
        seen = await one.publish("b", b"seen")
        await within(asyncio.gather(*[one.publish("b", number(n)) for n in range(1000)]), 30)
        await self.trimmed(site, one)
        await one.publish("a", b"old")
        await one.publish("b", b"between")
        await one.erase("a", await one.publish("a", b"erasure"))
        async with tail(other, seen) as reading:
            await reading.item()
            assert isinstance(await reading.item(), Trimmed)
            await reading.until(CaughtUp)
            assert reading.kept[-2:] == [("b", b"between"), ("a", b"erasure")]

    async def test_what_a_log_has_lost_is_not_erased_in_the_next_one(self, brokers, site):
        one, other = brokers(), brokers()
        for _ in range(10):
            lost = await one.publish("a", b"lost")
        await site.wipe()
        await within(other.publish("a", b"new"))
        with pytest.raises(OutcomeUnknown, match="lost its latest entries, and with them the erasure of 'a'"):
            await within(other.erase("a", lost))
        async with tail(other) as reading:
            await reading.until(CaughtUp)
            assert reading.kept == [("a", b"new")]

    async def test_a_closed_broker_erases_nothing(self, broker):
        position = await broker.publish("a", b"x")
        await broker.close()
        with pytest.raises(BrokerDown, match="closed"):
            await broker.erase("a", position)

    async def test_what_one_hub_erases_is_erased_in_all_of_them(self, brokers):
        hubs = [Hub(brokers(), latest=100) for _ in range(2)]
        try:
            sinks = [start_stream(hub, ">") for hub in hubs]
            await until(lambda: all(sink.subscription.live for sink in sinks))
            await hubs[0].publish("b", "0")
            ids = [await hubs[0].publish(topic, text) for topic, text in ["a1", "b2", "a3"]]
            await until(lambda: all(len(sink.texts) == 4 for sink in sinks))
            await within(hubs[1].erase("a"))
            last = await hubs[0].publish("a", "4")
            hubs.append(Hub(brokers(), latest=100))
            for hub in hubs:
                hub.open()
                await until(lambda hub=hub: hub.history.id_of(hub.history.end) == last)
                assert [record.event.data for record in hub.history.read(0, [">"]).records] == ["0", "2", "4"]
                back = [start_stream(hub, "a", after=event_id) for event_id in (ids[0], ids[2], last)]
                back.append(start_stream(hub, "b", after=ids[0]))
                back.append(start_stream(hub, ">", replay="latest"))
                await until(lambda back=back: all(sink.subscription.live for sink in back))
                # A process that starts later may not know which record of the topic was the last one before.
                assert back.pop(1).texts in (["4"], ["gap", "4"] if hub is hubs[2] else ["4"])
                assert [sink.texts for sink in back] == [["gap", "4"], [], ["2"], ["2", "4"]]
            assert [sink.texts for sink in sinks] == [["0", "1", "2", "3", "4"]] * 2
        finally:
            for hub in hubs:
                await hub.close()

    async def test_an_erasure_that_was_interrupted_between_its_steps_is_completed_by_another_process(self, brokers):
        dying = brokers()
        hubs = [Hub(dying), Hub(brokers())]
        try:
            for hub in hubs:
                hub.open()
                await until(lambda hub=hub: hub.ready)
            for text in "secret", "public":
                await hubs[0].publish(text, text)
            reached = asyncio.Event()

            async def die(topic, before):
                reached.set()
                await asyncio.Event().wait()

            dying.erase = die
            erasing = asyncio.create_task(hubs[0].erase("secret"))
            await within(reached.wait())
            erasing.cancel()
            hubs.append(Hub(brokers()))
            hubs[2].open()
            await until(lambda: hubs[2].ready)
            for hub in hubs:  # also the one that has read the old entries
                await until(lambda hub=hub: hub.history.end == hubs[0].history.end)
                assert [record.event.data for record in hub.history.read(0, [">"]).records] == ["public"]
            await within(hubs[2].erase("secret"))
            async with tail(brokers()) as reading:
                await reading.until(CaughtUp)
                assert b"data: secret" not in b"".join(entry.payload for entry in reading.entries)
        finally:
            for hub in hubs:
                await hub.close()

    async def test_a_hub_that_catches_up_while_another_one_erases_sends_no_erased_record_afterwards(self, brokers):
        hub, late = [Hub(brokers(), history=10_000) for _ in range(2)]
        try:
            hub.open()
            await until(lambda: hub.ready)
            first = await hub.publish("b", "first")
            await within(asyncio.gather(*[hub.publish("ab"[n % 2], f"{n}") for n in range(2000)]), 30)
            late.open()
            sink = start_stream(late, "a", "b", after=first)
            await within(hub.erase("a"), 30)
            last = await hub.publish("b", "last")
            await until(lambda: sink.texts[-1:] == ["last"])
            await until(lambda: late.history.id_of(late.history.end) == last)
            texts = [text for text in sink.texts if text != "gap"]
            assert [text for text in texts if text == "last" or int(text) % 2] == [*map(str, range(1, 2000, 2)), "last"]
            erased = [text for text in texts if text != "last" and not int(text) % 2]
            assert erased == [str(n) for n in range(0, 2 * len(erased), 2)]
            assert "gap" in sink.texts or len(erased) == 1000
            assert not [record for record in late.history.read(0, [">"]).records if record.topic == "a"]
        finally:
            await late.close()
            await hub.close()

    async def test_a_connection_of_the_wrong_type_is_a_type_error(self, broker):
        with pytest.raises(TypeError, match="connection"):
            await broker.publish("t", b"x", connection=object())

    async def test_cancelling_a_publish_does_not_affect_others(self, broker):
        publishing = [asyncio.create_task(broker.publish("t", number(n))) for n in range(20)]
        await asyncio.sleep(0)
        publishing[3].cancel()
        done = await asyncio.gather(*publishing, return_exceptions=True)
        assert {n for n, position in enumerate(done) if not isinstance(position, LogPosition)} <= {3}
        await broker.publish("t", b"last")
        async with tail(broker) as reading:
            await reading.until(CaughtUp)
            payloads = [entry.payload for entry in reading.entries if entry.payload != b"3"]
            assert payloads == [number(n) for n in range(20) if n != 3] + [b"last"]

    async def test_closing_is_idempotent_and_publish_raises_afterwards(self, broker):
        await broker.publish("t", b"x")
        await broker.close()
        await broker.close()
        with pytest.raises(BrokerDown, match="closed"):
            await broker.publish("t", b"y")

    async def test_an_unused_broker_can_be_closed(self, broker):
        await broker.close()

    async def test_close_waits_for_the_publishes_in_progress(self, brokers):
        one, other = brokers(), brokers()
        publishing = [asyncio.create_task(one.publish("t", number(n))) for n in range(10)]
        await asyncio.sleep(0)
        await within(one.close())
        positions = await asyncio.gather(*publishing)
        async with tail(other) as reading:
            await reading.until(CaughtUp)
            assert [entry.offset for entry in reading.entries] == [position.offset for position in positions]

    async def test_a_history_of_many_batches_is_complete(self, brokers):
        one, other = brokers(), brokers()
        await within(asyncio.gather(*[one.publish(f"t.{n % 7}", number(n)) for n in range(3000)]), 30)
        async with tail(other) as reading:
            await reading.until(CaughtUp)
            assert [entry.payload for entry in reading.entries] == [number(n) for n in range(3000)]

    async def test_a_hub_that_starts_later_has_the_same_latest_values(self, brokers):
        hubs, tables = [Hub(brokers(), latest=100, history=1) for _ in range(2)], []
        try:
            for data, (topic, key) in enumerate([("t", "a"), ("u", "ä"), ("t", "b"), ("t", "a"), ("u", None)]):
                await within(hubs[0].publish(topic, str(data), key=key))
            last = await within(hubs[0].publish("t", "no b", key="b", tombstone=True))
            for hub in hubs:
                hub.open()
                await until(lambda hub=hub: hub.history.id_of(hub.history.end) == last)
                assert hub.statistics().latest == 3
                async with hub.listen(">", replay="latest") as records:
                    tables.append([await within(anext(records)) for _ in range(3)])
        finally:
            for hub in hubs:
                await hub.close()
        assert [(each.topic, each.key, each.event.data) for each in tables[0]] == [
            ("u", "ä", "1"),
            ("t", "a", "3"),
            ("u", None, "4"),
        ]
        assert [(each.id, each.key, each.frame) for each in tables[0]] == [
            (each.id, each.key, each.frame) for each in tables[1]
        ]

    async def test_a_topic_that_one_hub_finishes_is_finished_in_all_of_them(self, brokers):
        hubs = [Hub(brokers()) for _ in range(2)]
        try:
            sinks = [start_stream(hub, "a") for hub in hubs]
            await until(lambda: all(sink.subscription.live for sink in sinks))
            await hubs[0].publish("a", "1")
            end = await hubs[1].finish("a", "end", idempotency_key="k")
            await until(lambda: all(sink.ends for sink in sinks))
            hubs.append(Hub(brokers()))
            sinks.append(start_stream(hubs[2], "a"))
            await until(lambda: sinks[2].ends)
            while sinks[2].subscription.write_backlog():
                pass
            assert [sink.texts for sink in sinks] == [["1", "end"], ["1", "end"], ["end"]]
            assert [sink.ends for sink in sinks] == [[(CloseReason.CLOSED, None)]] * 3
            for hub in hubs:
                assert await hub.finish("a", "end", idempotency_key="k") == end
                with pytest.raises(TopicFinished):
                    await hub.publish("a", "x")
        finally:
            for hub in hubs:
                await hub.close()


@pytest.fixture
def topics():
    """Topics with each kind of character that a Hub allows."""
    return ["a", "a.b.c", "rooms.ümläut ☃", "x" * 255, "a.$b.%", "0.-._"]
