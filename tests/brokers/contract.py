"""What every broker promises: one suite, which each engine's test file has for its own, on a real server.

A subclass gives the fixture ``site``: a place where brokers share a log.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Protocol

import pytest

from aiohttp_interceptors.exceptions import BrokerDown
from aiohttp_interceptors.hub.broker import (
    Broker,
    CaughtUp,
    Entry,
    LogPosition,
    Subscribed,
    TailItem,
    Trimmed,
    Truncated,
)
from tests.waiting import within

MEGABYTE = 2**20


class Site(Protocol):
    """An empty log on a real server."""

    def broker(self, **options: object) -> Broker:
        """Make another broker on this log, as another process would; the test closes it.

        Options that every broker has: ``max_records`` (how many entries are kept), ``publish_timeout`` (seconds).
        """

    async def wipe(self) -> None:
        """Delete all there is, as an administrator does who does not know us."""


class Tail:
    """A tail that is read item by item, and what it gave."""

    def __init__(self, items: AsyncIterator[TailItem]) -> None:
        self._items = items
        self.entries: list[Entry] = []
        self.position: LogPosition | None = None

    async def item(self) -> TailItem:
        """Wait for the next item, whatever it is."""
        item = await within(anext(self._items))
        if isinstance(item, Subscribed | Truncated):
            self.position = item.position
        elif isinstance(item, Trimmed):
            assert self.position is not None
            self.position = LogPosition(self.position.epoch, item.through)
        elif not isinstance(item, CaughtUp):
            assert item
            for entry in item:
                assert self.position is not None
                assert entry.offset > self.position.offset
                self.position = LogPosition(self.position.epoch, entry.offset)
                self.entries.append(entry)
        return item

    async def until(self, kind: type) -> TailItem:
        """Read up to an item of a kind, and return it."""
        while not isinstance(item := await self.item(), kind):
            pass
        return item

    async def payloads(self, count: int) -> list[bytes]:
        """Read until there are so many entries in all, and return their payloads."""
        while len(self.entries) < count:
            await self.item()
        return [entry.payload for entry in self.entries]


@asynccontextmanager
async def tail(broker: Broker, after: LogPosition | None = None) -> AsyncIterator[Tail]:
    """Open a tail, and close it at the end of the block."""
    async with aclosing(broker.tail(after)) as items:
        yield Tail(items)


@pytest.fixture
async def brokers(site):
    """Make brokers on one log, which are closed at the end."""
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
    """Check that a broker says how often it confirms: each of ours does."""
    assert 1.0 <= broker.confirms <= 2.0


class Contract:
    """The promises of ``Broker``."""

    async def test_an_empty_log_is_joined_and_up_to_date(self, broker):
        async with tail(broker) as reading:
            joined = await reading.item()
            assert isinstance(joined, Subscribed)
            assert await reading.item() == CaughtUp()

    async def test_it_confirms_again_and_again_what_a_server_has_that_nothing_happens_to(self, broker):
        check_confirms(broker)
        async with tail(broker) as reading:
            for _ in range(4):
                await reading.until(CaughtUp)

    async def test_it_confirms_also_while_others_publish_without_a_pause(self, brokers):
        one, other = brokers(), brokers()
        check_confirms(one)
        enough = asyncio.Event()

        async def publish():
            while not enough.is_set():
                await other.publish("t", b"x")
                await asyncio.sleep(0)

        async with tail(one) as reading:
            await reading.until(CaughtUp)
            publishing = asyncio.create_task(publish())
            for _ in range(3):
                await within(reading.until(CaughtUp))
            enough.set()
            await within(publishing)

    async def test_what_was_acknowledged_before_it_was_asked_is_there_when_it_confirms(self, brokers):
        one, other = brokers(), brokers()
        check_confirms(one)
        async with tail(one) as reading:
            await reading.until(CaughtUp)
            for count in 1, 2:
                position = await other.publish("t", b"x")
                await reading.until(CaughtUp)  # which may have been on its way
                await reading.until(CaughtUp)
                assert len(reading.entries) == count
                assert reading.position == position

    async def test_what_is_published_comes_back_as_it_was_with_its_place(self, broker):
        async with tail(broker) as reading:
            await reading.until(CaughtUp)
            position = await within(broker.publish("a.b", b"\x10data: \xff\x00\r\n\n"))
            await reading.payloads(1)
            (entry,) = reading.entries
            assert entry[:3] == (position.offset, "a.b", b"\x10data: \xff\x00\r\n\n")
            assert position == reading.position
            assert 0 <= entry.age < 60

    async def test_history_comes_before_what_is_new(self, brokers):
        one, other = brokers(), brokers()
        positions = [await one.publish("t", number(n)) for n in range(5)]
        async with tail(other) as reading:
            await reading.until(CaughtUp)
            assert [LogPosition(positions[0].epoch, entry.offset) for entry in reading.entries] == positions
            await one.publish("t", b"new")
            assert await reading.payloads(6) == [b"0", b"1", b"2", b"3", b"4", b"new"]

    async def test_a_tail_goes_on_after_its_place(self, brokers):
        one, other = brokers(), brokers()
        positions = [await one.publish("t", number(n)) for n in range(5)]
        for start, position in enumerate(positions, 1):
            async with tail(other, position) as reading:
                assert await reading.item() == Subscribed(position)
                await reading.until(CaughtUp)
                assert [entry.payload for entry in reading.entries] == [number(n) for n in range(start, 5)]

    async def test_a_tail_that_was_closed_can_be_followed_by_another(self, brokers):
        one, other = brokers(), brokers()
        position = None
        for round_ in range(3):
            async with tail(one, position) as reading:
                await reading.until(CaughtUp)
                await other.publish("t", number(round_))
                await reading.payloads(1)
                assert [entry.payload for entry in reading.entries] == [number(round_)]
                position = reading.position

    async def test_a_tail_can_be_cancelled_while_it_waits(self, brokers):
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

    async def test_all_processes_see_one_order_however_many_publish(self, brokers):
        """Peer bugs 62 and 63: the broker's order is the only one."""
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

    async def test_publishes_at_once_keep_the_order_of_their_calls(self, broker):
        async with tail(broker) as reading:
            await reading.until(CaughtUp)
            await within(asyncio.gather(*[broker.publish("t", number(n)) for n in range(1200)]), 30)
            assert await reading.payloads(1200) == [number(n) for n in range(1200)]

    async def test_a_retry_with_the_key_of_the_first_stores_nothing(self, brokers):
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

    async def test_a_key_may_hold_anything_printable(self, broker):
        for key in "k", "ö/☃ 'x' \"y\" \\ {} %s", "k" * 200:
            first = await broker.publish("t", b"x", idempotency_key=key)
            assert await broker.publish("t", b"x", idempotency_key=key) == first

    async def test_a_topic_may_be_all_that_a_hub_allows(self, broker, topics):
        for topic in topics:
            await broker.publish(topic, topic.encode())
        async with tail(broker) as reading:
            await reading.until(CaughtUp)
            assert [(entry.topic, entry.payload) for entry in reading.entries] == [
                (topic, topic.encode()) for topic in topics
            ]

    async def test_a_payload_of_a_megabyte_is_no_problem(self, broker):
        """Peer bug 65: nothing of it goes where only 8,000 bytes fit."""
        payload = bytes(range(256)) * (MEGABYTE // 256)
        async with tail(broker) as reading:
            await reading.until(CaughtUp)
            await within(broker.publish("t", payload))
            await within(broker.publish("t", b"\x10" + payload))  # as a Hub makes of the longest event it takes
            assert await reading.payloads(2) == [payload, b"\x10" + payload]

    async def test_a_payload_may_be_empty(self, broker):
        await broker.publish("t", b"")
        async with tail(broker) as reading:
            assert await reading.payloads(1) == [b""]

    async def test_what_was_trimmed_past_a_sleeping_tail_is_told(self, brokers, site):
        one, other = brokers(max_records=100), brokers(max_records=100)
        seen = await one.publish("t", b"seen")
        last = [await within(asyncio.gather(*[one.publish("t", number(n)) for n in range(1000)]), 30)][0][-1]
        await self.trimmed(site, one)
        async with tail(other, seen) as reading:
            assert await reading.item() == Subscribed(seen)
            lost = await reading.item()
            assert isinstance(lost, Trimmed)
            assert seen.offset < lost.through < last.offset
            await reading.until(CaughtUp)
            kept = [entry.payload for entry in reading.entries]
            assert kept == [number(n) for n in range(1000 - len(kept), 1000)]
            assert 50 <= len(kept) < 1000
            assert reading.position == last
        async with tail(other) as reading:
            joined = await reading.item()
            assert joined == Subscribed(LogPosition(seen.epoch, lost.through))

    async def trimmed(self, site, broker):
        """Wait until the engine has trimmed what is one too many; most do that as they publish."""

    async def test_what_is_next_is_no_loss_when_all_before_it_was_trimmed(self, brokers, site):
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

    async def test_a_wiped_server_is_told_of_and_gone_on_with(self, brokers, site):
        one, other = brokers(), brokers()
        before = [await one.publish("t", number(n)) for n in range(10)][-1]
        await site.wipe()
        async with tail(one, before) as reading:
            await reading.item()
            rewound = await reading.item()
            assert isinstance(rewound, Truncated)
            assert rewound.position.epoch != before.epoch
            await reading.until(CaughtUp)
            position = await within(other.publish("t", b"new"))
            assert await reading.payloads(1) == [b"new"]
            assert reading.position == position
            assert position.epoch == rewound.position.epoch

    async def test_a_server_that_is_wiped_under_an_open_tail_is_told_of(self, brokers, site):
        one, other = brokers(), brokers()
        async with tail(one) as reading:
            await reading.until(CaughtUp)
            await one.publish("t", b"old")
            await reading.payloads(1)
            epoch = reading.position.epoch
            await site.wipe()
            position = await within(other.publish("t", b"new"))
            assert position.epoch != epoch
            await self.told_of_rewinding(reading, one, other)
            while reading.entries[-1].payload != b"new":
                await reading.item()
            assert reading.position == position

    async def told_of_rewinding(self, reading, one, other):
        """Read until the tail tells that the server was rewound; an engine may have to end it for that."""
        await reading.until(Truncated)

    async def test_to_publish_in_a_transaction_is_refused_by_who_has_none(self, broker):
        with pytest.raises(TypeError, match="connection"):
            await broker.publish("t", b"x", connection=object())

    async def test_a_publish_that_is_cancelled_disturbs_no_other(self, broker):
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

    async def test_it_can_be_closed_twice_and_publishes_nothing_then(self, broker):
        await broker.publish("t", b"x")
        await broker.close()
        await broker.close()
        with pytest.raises(BrokerDown, match="closed"):
            await broker.publish("t", b"y")

    async def test_one_that_was_never_used_can_be_closed(self, broker):
        await broker.close()

    async def test_what_was_on_its_way_is_stored_before_it_is_closed(self, brokers):
        one, other = brokers(), brokers()
        publishing = [asyncio.create_task(one.publish("t", number(n))) for n in range(10)]
        await asyncio.sleep(0)
        await within(one.close())
        positions = await asyncio.gather(*publishing)
        async with tail(other) as reading:
            await reading.until(CaughtUp)
            assert [entry.offset for entry in reading.entries] == [position.offset for position in positions]

    async def test_history_of_many_batches_comes_whole(self, brokers):
        one, other = brokers(), brokers()
        await within(asyncio.gather(*[one.publish(f"t.{n % 7}", number(n)) for n in range(3000)]), 30)
        async with tail(other) as reading:
            await reading.until(CaughtUp)
            assert [entry.payload for entry in reading.entries] == [number(n) for n in range(3000)]


@pytest.fixture
def topics():
    """Topics of every sort that a Hub allows."""
    return ["a", "a.b.c", "rooms.ümläut ☃", "x" * 255, "a.$b.%", "0.-._"]
