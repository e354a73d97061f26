"""Redis and Valkey keep what all brokers promise, and what this one does in its own way."""

# ruff: noqa: F811  # a test has what it takes by name, and its fixtures are imported

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from redis.asyncio import Redis

from aiohttp_interceptors.brokers.redis import RedisBroker
from aiohttp_interceptors.exceptions import BrokerDown, BrokerRefused
from aiohttp_interceptors.hub.broker import CaughtUp, LogPosition, Subscribed, Trimmed, Truncated
from tests.brokers.contract import Contract, broker, brokers, number, tail, topics  # noqa: F401  # fixtures
from tests.brokers.redis_site import LOG, STREAM, RedisSite, server, servers, site  # noqa: F401  # fixtures
from tests.waiting import within


class TestRedis(Contract):
    """As it says."""


class FactorySite(RedisSite):
    """Whose brokers have clients as a user makes them, with all that redis-py does by itself."""

    def broker(self, **options):
        async def connect():
            return Redis.from_url(self.server.url, protocol=3, decode_responses=True)

        return RedisBroker(connect, **options)


class TestRedisByFactory(Contract):
    """As it says, whatever the client is set to."""

    @pytest.fixture
    async def site(self, server):
        site = FactorySite(server)
        await site.wipe()
        return site


# How it is made.


@pytest.mark.parametrize(
    ("error", "arguments", "options"),
    [
        (TypeError, (7,), {}),
        (ValueError, ("http://localhost",), {}),
        (ValueError, ("redis://h",), {"stream": ""}),
        (ValueError, ("redis://h",), {"stream": "a{b}"}),
        (ValueError, ("redis://h",), {"max_records": 0}),
        (TypeError, ("redis://h",), {"max_records": "many"}),
        (TypeError, ("redis://h",), {"max_records": 1.0}),
        (TypeError, ("redis://h",), {"max_records": True}),
        (ValueError, ("redis://h",), {"max_age": 0}),
        (ValueError, ("redis://h",), {"publish_timeout": -1}),
        (ValueError, ("redis://h",), {"silence": float("inf")}),
        (TypeError, ("redis://h",), {"silence": None}),
        (TypeError, ("redis://h",), {"publish_timeout": "5"}),
    ],
)
def test_what_cannot_work_is_refused_with_the_value(error, arguments, options):
    with pytest.raises(error) as raised:
        RedisBroker(*arguments, **options)
    for name, value in options.items():
        assert name in str(raised.value)
        assert repr(value) in str(raised.value)


def test_who_has_no_client_library_is_told_which_extra_has_it():
    code = """
import sys
sys.modules["redis"] = None
import aiohttp_interceptors.brokers.redis
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert "pip install 'aiohttp-interceptors[redis]'" in done.stderr


def failing():
    raise OSError("no such host")


@pytest.mark.parametrize(
    ("connect", "error", "words"),
    [
        (lambda: asyncio.sleep(0, "a client"), BrokerRefused, "'a client', which is no redis.asyncio.Redis"),
        (failing, BrokerDown, "no such host"),
        (lambda: asyncio.sleep(60), BrokerDown, r"connect\(\) did not return for 0.1 s"),
    ],
)
async def test_a_factory_that_makes_no_client_is_told_of(connect, error, words):
    broker = RedisBroker(connect, publish_timeout=0.2, silence=0.1)
    with pytest.raises(error, match=words):
        await broker.publish("t", b"x")
    with pytest.raises(error, match=words):
        await anext(broker.tail(None))
    await broker.close()


# What is kept.


async def test_keys_are_of_one_slot_and_those_of_retries_go_away(site, broker):
    await broker.publish("t", b"x", idempotency_key="k")
    assert sorted(await site.ask("KEYS", "*")) == [b"{events}", b"{events}:key:k", b"{events}:log"]
    assert 120_000 < await site.ask("PTTL", "{events}:key:k") <= 150_000
    assert await site.ask("PTTL", STREAM) == await site.ask("PTTL", LOG) == -1


async def test_two_streams_have_nothing_in_common(server, site, brokers):
    one, other = brokers(), RedisBroker(server.url, stream="others")
    await one.publish("t", b"x")
    await other.publish("t", b"y")
    async with tail(other) as reading:
        await reading.until(CaughtUp)
        assert [entry.payload for entry in reading.entries] == [b"y"]
    await other.close()


async def test_what_is_too_old_goes_as_others_come(site, brokers):
    broker = brokers(max_age=0.001)
    first = await broker.publish("t", b"first")
    count = 1
    while await site.ask("XLEN", STREAM) == count:
        assert count < 50_000  # or something else may trim it
        await asyncio.gather(*[broker.publish("t", b"x") for _ in range(200)])
        count += 200
    async with tail(broker, first) as reading:
        await reading.item()
        assert isinstance(await reading.item(), Trimmed)


async def test_what_has_no_age_limit_stays(site, brokers):
    broker = brokers(max_age=None)
    for _ in range(5):
        await asyncio.gather(*[broker.publish("t", b"x") for _ in range(200)])
    assert await site.ask("XLEN", STREAM) == 1000


async def test_a_clock_that_was_put_back_gives_no_smaller_id(site, broker):
    await broker.publish("t", b"x")
    seconds = (await site.ask("TIME"))[0]
    future = int(seconds) * 1000 + 3_600_000
    await site.ask("HSET", LOG, "last", f"{future}-{2**20 - 2}")
    positions = [await broker.publish("t", number(n)) for n in range(3)]
    at = future << 20
    assert [position.offset - at for position in positions] == [2**20 - 1, 2**20, 2**20 + 1]
    async with tail(broker, positions[0]) as reading:
        assert await reading.payloads(2) == [b"1", b"2"]
        assert [entry.age for entry in reading.entries] == [0.0, 0.0]


async def test_an_empty_stream_that_nothing_is_known_of_is_begun_anew(site, broker):
    await broker.publish("t", b"x")
    seconds = (await site.ask("TIME"))[0]
    await site.ask("HSET", LOG, "last", f"{int(seconds) + 3600}000-0")
    old = await broker.publish("t", b"y")
    await site.ask("XTRIM", STREAM, "MAXLEN", "=", 0)
    await site.ask("DEL", LOG)
    new = await broker.publish("t", b"z")
    assert new.epoch != old.epoch
    assert new.offset < old.offset


async def test_a_batch_has_no_more_bytes_than_are_good_for_others(broker):
    for _ in range(30):
        await broker.publish("t", b"x" * 300_000)
    async with tail(broker) as reading:
        await reading.item()
        first = await reading.item()
        assert len(await reading.item()) < 5
        await reading.payloads(30)
        assert len(first) <= 16


async def test_who_asks_for_a_place_in_the_future_is_sent_back(broker):
    """A server that has less than it had, and nobody else to tell."""
    last = await broker.publish("t", b"x")
    async with tail(broker, LogPosition(last.epoch, last.offset + 1)) as reading:
        await reading.item()
        rewound = await reading.item()
        assert rewound.position.offset == last.offset
        assert rewound.position.epoch != last.epoch


# What the server says no to.


async def refused(broker, words):
    with pytest.raises(BrokerRefused, match=words):
        await broker.publish("t", b"x")
    with pytest.raises(BrokerRefused, match=words):
        async with tail(broker) as reading:
            await reading.until(CaughtUp)


async def test_a_key_of_another_type_is_refused(site, broker):
    await site.ask("SET", STREAM, "mine")
    await refused(broker, "WRONGTYPE")
    assert await site.ask("GET", STREAM) == b"mine"


@pytest.mark.parametrize("fields", [("a", "b"), ("a", "0-0", "b", "y", "c", "p"), ("l", "x", "t", "t", "p", "p")])
async def test_an_entry_that_no_broker_wrote_is_told_of(site, broker, fields):
    await broker.publish("t", b"x")
    raw = await site.ask("XADD", STREAM, "*", *fields)
    async with tail(broker) as reading:
        with pytest.raises(BrokerRefused, match=f"{raw.decode()}: a Hub needs a stream of its own"):
            while True:
                await reading.item()


async def test_who_has_no_right_is_refused_and_told_which(site, server):
    await site.ask("ACL", "SETUSER", "reader", "on", ">pw", "~*", "+@all", "-@dangerous")
    broker = RedisBroker(server.url.replace("//", "//reader:pw@"))
    await refused(broker, "right to INFO is missing")
    await site.ask("ACL", "SETUSER", "reader", "+info")
    await broker.publish("t", b"x")
    async with tail(broker) as reading:  # and nobody need ask for the configuration
        assert await reading.payloads(1) == [b"x"]
    await broker.close()
    await site.ask("ACL", "DELUSER", "reader")


async def test_a_server_that_is_full_refuses_and_is_read_all_the_same(site, brokers):
    one, other = brokers(), brokers()
    await one.publish("t", b"x")
    await site.ask("CONFIG", "SET", "maxmemory", 1)
    try:
        with pytest.raises(BrokerRefused, match="maxmemory"):
            await one.publish("t", b"y")
        async with tail(other) as reading:
            await reading.until(CaughtUp)
            await site.ask("CONFIG", "SET", "maxmemory", 0)
            await one.publish("t", b"z")
            assert await reading.payloads(2) == [b"x", b"z"]
    finally:
        await site.ask("CONFIG", "SET", "maxmemory", 0)


async def test_a_server_that_waits_for_replicas_is_down_and_has_stored_nothing(site, broker):
    await broker.publish("t", b"x")
    await site.ask("CONFIG", "SET", "min-replicas-to-write", 1)
    try:
        with pytest.raises(BrokerDown, match="NOREPLICAS"):
            await broker.publish("t", b"y")
    finally:
        await site.ask("CONFIG", "SET", "min-replicas-to-write", 0)
    await broker.publish("t", b"z")
    async with tail(broker) as reading:
        await reading.until(CaughtUp)
        assert [entry.payload for entry in reading.entries] == [b"x", b"z"]


async def test_what_cannot_be_sent_is_refused(broker):
    with pytest.raises(BrokerRefused):
        await broker.publish("t", b"x", idempotency_key="\ud800")
    await broker.publish("t", b"x")


# What may be evicted.


@pytest.mark.parametrize(
    ("policy", "limit", "warnings"),
    [("allkeys-lru", 2**30, 1), ("volatile-ttl", 2**30, 1), ("noeviction", 2**30, 0), ("allkeys-lru", 0, 0)],
)
async def test_a_server_that_may_evict_the_log_is_warned_of_once(site, broker, logged, policy, limit, warnings):
    await site.ask("CONFIG", "SET", "maxmemory", limit)
    await site.ask("CONFIG", "SET", "maxmemory-policy", policy)
    try:
        for _ in range(2):
            async with tail(broker) as reading:
                await reading.until(CaughtUp)
    finally:
        await site.ask("CONFIG", "SET", "maxmemory", 0)
        await site.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    told = [line for line in logged if line["event"] == "redis_may_evict"]
    assert len(told) == warnings
    assert all(line["policy"] == policy and line["stream"] == STREAM for line in told)


async def test_a_stream_that_is_evicted_alone_is_a_loss_for_who_had_not_read_it(site, brokers):
    one, other, late = brokers(), brokers(), brokers()
    positions = [await one.publish("t", number(n)) for n in range(3)]
    async with tail(one) as reading:
        await reading.payloads(3)
        await site.ask("DEL", STREAM)
        for behind, items in (positions[0], [Trimmed(positions[2].offset), CaughtUp()]), (positions[2], [CaughtUp()]):
            async with tail(other, behind) as sleeper:
                assert [await sleeper.item() for _ in range(1 + len(items))] == [Subscribed(behind), *items]
        new = await other.publish("t", b"new")
        assert new.epoch == positions[0].epoch
        assert await reading.payloads(4) == [b"0", b"1", b"2", b"new"]
    async with tail(late) as reading:
        assert await reading.item() == Subscribed(positions[2])
        assert await reading.payloads(1) == [b"new"]


async def test_what_is_known_of_a_stream_that_is_evicted_alone_is_another_log(site, brokers):
    one, other = brokers(silence=0.3), brokers()
    positions = [await one.publish("t", number(n)) for n in range(3)]
    async with tail(one) as reading:
        await reading.payloads(3)
        await site.ask("DEL", LOG)
        new = await other.publish("t", b"new")
        assert new.epoch != positions[0].epoch
        assert new.offset > positions[2].offset
        async with tail(other, positions[1]) as sleeper:
            await sleeper.item()
            assert await sleeper.item() == Truncated(LogPosition(new.epoch, 0))
            assert await sleeper.payloads(4) == [b"0", b"1", b"2", b"new"]
        await reading.until(Truncated)
        await until_place(reading, new)
    assert reading.entries[-1].payload == b"new"


async def until_place(reading, position):
    while reading.position != position:
        await reading.item()


# What was lost.


async def test_an_older_state_in_place_of_this_one_is_told_of(site, brokers):
    one, other = brokers(silence=0.3), brokers(silence=0.3)
    async with tail(one) as reading, tail(other) as also:
        old = [await one.publish("t", number(n)) for n in range(5)][-1]
        backup = await site.backup()
        await asyncio.gather(*[one.publish("t", b"lost") for n in range(5)])
        await reading.payloads(10)
        await also.payloads(10)
        await site.restore(backup)
        for each in reading, also:
            rewound = await each.until(Truncated)
            assert rewound.position.offset == old.offset
            assert rewound.position.epoch != old.epoch
        assert reading.position == also.position
        new = await other.publish("t", b"new")
        assert new.epoch == rewound.position.epoch
        for each in reading, also:
            await each.payloads(11)
            assert each.position == new


async def test_who_publishes_to_an_older_state_gives_no_id_twice(site, broker):
    old = await broker.publish("t", b"old", idempotency_key="k")
    backup = await site.backup()
    lost = await broker.publish("t", b"lost")
    await site.restore(backup)
    new = await broker.publish("t", b"new")
    assert new.epoch != lost.epoch
    assert await broker.publish("t", b"old", idempotency_key="k") == old
    async with tail(broker, lost) as reading:
        await reading.item()
        assert await reading.item() == Truncated(LogPosition(new.epoch, old.offset))
        assert await reading.payloads(1) == [b"new"]


async def test_a_loss_that_nobody_could_see_but_in_the_order_of_entries_is_told_of(site, brokers):
    """What follows what is not known, so everything of this life is read again."""
    one, stranger, late = brokers(), brokers(), brokers()
    async with tail(one) as reading:
        first = await one.publish("t", b"0")
        backup = await site.backup()
        await one.publish("t", b"lost")
        await site.restore(backup)
        second = await one.publish("t", b"1")
        assert second.epoch != first.epoch
        backup = await site.backup()
        await one.publish("t", b"lost")
        while (
            reading.entries[-1:] == []
            or reading.entries[-1].payload != b"lost"
            or reading.position.epoch != second.epoch
        ):
            await reading.item()
        await site.restore(backup)
        await stranger.publish("t", b"2")
        rewound = await reading.until(Truncated)
        assert rewound.position.offset == first.offset
        assert rewound.position.epoch not in (first.epoch, second.epoch)
        while reading.entries[-1].payload != b"2":
            await reading.item()
        assert [entry.payload for entry in reading.entries[-2:]] == [b"1", b"2"]
    async with tail(late) as reading:
        assert await reading.item() == Subscribed(LogPosition(first.epoch, 0))
        await reading.until(CaughtUp)
        assert [entry.payload for entry in reading.entries] == [b"0", b"1", b"2"]
        assert reading.position.epoch == rewound.position.epoch


async def test_a_tail_that_slept_over_two_losses_is_told_what_is_left(site, brokers):
    """What it has in common with the log is what all the epochs in between have."""
    sleeper, broker, late = brokers(), brokers(), brokers()
    positions = [await broker.publish("t", number(n)) for n in range(3)]
    backup = await site.backup()
    seen = [await broker.publish("t", b"lost") for _ in range(3)][-1]
    await site.restore(backup)
    positions += [await broker.publish("t", number(n)) for n in range(3, 8)]
    backup = await site.backup()
    await broker.publish("t", b"lost too")
    await site.restore(backup)
    positions.append(await broker.publish("t", b"8"))
    assert len({position.epoch for position in positions}) == 3
    async with tail(sleeper, seen) as reading:
        assert await reading.item() == Subscribed(seen)
        assert await reading.item() == Truncated(LogPosition(positions[3].epoch, positions[2].offset))
        assert await reading.payloads(6) == [number(n) for n in range(3, 9)]
        assert reading.position == positions[-1]
    async with tail(late) as reading:  # which gives each entry the id that its publisher has
        given = []
        while len(given) < 9:
            item = await reading.item()
            assert not isinstance(item, Trimmed)
            if isinstance(item, list):
                given += [LogPosition(reading.position.epoch, entry.offset) for entry in item]
        assert given == positions


async def test_an_entry_that_somebody_deleted_is_a_loss(site, broker):
    positions = [await broker.publish("t", number(n)) for n in range(3)]
    raw = (await site.ask("XRANGE", STREAM, "-", "+"))[1][0]
    await site.ask("XDEL", STREAM, raw)
    async with tail(broker, positions[0]) as reading:
        await reading.item()
        assert await reading.item() == Trimmed(positions[1].offset)
        assert await reading.payloads(1) == [b"2"]


async def test_scripts_that_the_server_forgot_are_sent_again(site, broker):
    async with tail(broker) as reading:
        await reading.until(CaughtUp)
        for n in range(3):
            await broker.publish("t", number(n))
            await site.ask("SCRIPT", "FLUSH")
        assert await reading.payloads(3) == [b"0", b"1", b"2"]


async def test_it_leaves_no_connection(site, brokers):
    broker = brokers()
    async with tail(broker) as reading:
        await broker.publish("t", b"x")
        await reading.payloads(1)
        assert len((await site.ask("CLIENT", "LIST")).splitlines()) == 3
    await broker.close()
    async with asyncio.timeout(10):
        while len((await site.ask("CLIENT", "LIST")).splitlines()) > 1:  # the server takes note in its own time
            await asyncio.sleep(0)


async def test_a_tail_ends_with_its_server(servers):
    server = servers()
    broker = RedisBroker(server.url)
    async with tail(broker) as reading:
        await reading.until(CaughtUp)
        server.stop()
        with pytest.raises(BrokerDown):
            await reading.item()
    with pytest.raises(BrokerDown, match="connect"):
        await broker.publish("t", b"x")
    with pytest.raises(BrokerDown, match="connect"):
        await within(anext(broker.tail(None)))
    await broker.close()
