"""The contract of all brokers on Redis and Valkey, and what is specific to ``RedisBroker``."""

# ruff: noqa: F811  # fixtures are imported, and arguments of tests

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
    """The contract, with a URL."""


class FactorySite(RedisSite):
    """A site whose brokers have clients with redis-py's own retries and decoding."""

    def broker(self, **options):
        async def connect():
            return Redis.from_url(self.server.url, protocol=3, decode_responses=True)

        return RedisBroker(connect, **options)


class TestRedisByFactory(Contract):
    """The contract, with a factory."""

    @pytest.fixture
    async def site(self, server):
        site = FactorySite(server)
        await site.wipe()
        return site


# Arguments.


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
        (ValueError, ("redis://h",), {"read_timeout": float("inf")}),
        (TypeError, ("redis://h",), {"read_timeout": None}),
        (TypeError, ("redis://h",), {"publish_timeout": "5"}),
    ],
)
def test_invalid_arguments_are_refused_with_the_value(error, arguments, options):
    with pytest.raises(error) as raised:
        RedisBroker(*arguments, **options)
    for name, value in options.items():
        assert name in str(raised.value)
        assert repr(value) in str(raised.value)


def test_without_redis_py_the_import_error_names_the_extra():
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
        (lambda: asyncio.sleep(0, "a client"), BrokerRefused, "'a client', which is not a redis.asyncio.Redis"),
        (failing, BrokerDown, "no such host"),
        (lambda: asyncio.sleep(60), BrokerDown, r"connect\(\) did not return within 0.1 s"),
    ],
)
async def test_a_factory_that_returns_no_client_is_reported(connect, error, words):
    broker = RedisBroker(connect, publish_timeout=0.2, read_timeout=0.1)
    with pytest.raises(error, match=words):
        await broker.publish("t", b"x")
    with pytest.raises(error, match=words):
        await anext(broker.tail(None))
    await broker.close()


# Storage.


async def test_all_keys_are_in_one_slot_and_idempotency_keys_expire(site, broker):
    await broker.publish("t", b"x", idempotency_key="k")
    assert sorted(await site.execute("KEYS", "*")) == [b"{events}", b"{events}:key:k", b"{events}:log"]
    assert 120_000 < await site.execute("PTTL", "{events}:key:k") <= 150_000
    assert await site.execute("PTTL", STREAM) == await site.execute("PTTL", LOG) == -1


async def test_two_streams_of_a_server_are_separate(server, site, brokers):
    one, other = brokers(), RedisBroker(server.url, stream="others")
    await one.publish("t", b"x")
    await other.publish("t", b"y")
    async with tail(other) as reading:
        await reading.until(CaughtUp)
        assert [entry.payload for entry in reading.entries] == [b"y"]
    await other.close()


async def test_old_entries_are_trimmed_as_others_are_published(site, brokers):
    broker = brokers(max_age=0.001)
    first = await broker.publish("t", b"first")
    count = 1
    while await site.execute("XLEN", STREAM) == count:
        assert count < 50_000  # max_records may trim beyond that
        await asyncio.gather(*[broker.publish("t", b"x") for _ in range(200)])
        count += 200
    async with tail(broker, first) as reading:
        await reading.item()
        assert isinstance(await reading.item(), Trimmed)


async def test_without_max_age_nothing_expires(site, brokers):
    broker = brokers(max_age=None)
    for _ in range(5):
        await asyncio.gather(*[broker.publish("t", b"x") for _ in range(200)])
    assert await site.execute("XLEN", STREAM) == 1000


async def test_offsets_increase_when_the_clock_of_the_server_goes_back(site, broker):
    await broker.publish("t", b"x")
    seconds = (await site.execute("TIME"))[0]
    future = int(seconds) * 1000 + 3_600_000
    await site.execute("HSET", LOG, "last", f"{future}-{2**20 - 2}")
    positions = [await broker.publish("t", number(n)) for n in range(3)]
    at = future << 20
    assert [position.offset - at for position in positions] == [2**20 - 1, 2**20, 2**20 + 1]
    async with tail(broker, positions[0]) as reading:
        assert await reading.payloads(2) == [b"1", b"2"]
        assert [entry.age for entry in reading.entries] == [0.0, 0.0]


async def test_an_empty_stream_without_its_state_starts_a_new_log(site, broker):
    await broker.publish("t", b"x")
    seconds = (await site.execute("TIME"))[0]
    await site.execute("HSET", LOG, "last", f"{int(seconds) + 3600}000-0")
    old = await broker.publish("t", b"y")
    await site.execute("XTRIM", STREAM, "MAXLEN", "=", 0)
    await site.execute("DEL", LOG)
    new = await broker.publish("t", b"z")
    assert new.epoch != old.epoch
    assert new.offset < old.offset


async def test_the_payload_of_a_batch_is_limited(broker):
    for _ in range(30):
        await broker.publish("t", b"x" * 300_000)
    async with tail(broker) as reading:
        await reading.item()
        first = await reading.item()
        assert len(await reading.item()) < 5
        await reading.payloads(30)
        assert len(first) <= 16


async def test_a_position_after_the_end_is_truncated(broker):
    """The server has lost entries that no other process knows."""
    last = await broker.publish("t", b"x")
    async with tail(broker, LogPosition(last.epoch, last.offset + 1)) as reading:
        await reading.item()
        truncated = await reading.item()
        assert truncated.position.offset == last.offset
        assert truncated.position.epoch != last.epoch


# Refusals.


async def assert_refused(broker, words):
    with pytest.raises(BrokerRefused, match=words):
        await broker.publish("t", b"x")
    with pytest.raises(BrokerRefused, match=words):
        async with tail(broker) as reading:
            await reading.until(CaughtUp)


async def test_a_key_of_another_type_is_refused(site, broker):
    await site.execute("SET", STREAM, "mine")
    await assert_refused(broker, "WRONGTYPE")
    assert await site.execute("GET", STREAM) == b"mine"


@pytest.mark.parametrize("fields", [("a", "b"), ("a", "0-0", "b", "y", "c", "p"), ("l", "x", "t", "t", "p", "p")])
async def test_an_entry_that_no_broker_appended_is_refused(site, broker, fields):
    await broker.publish("t", b"x")
    raw = await site.execute("XADD", STREAM, "*", *fields)
    async with tail(broker) as reading:
        with pytest.raises(BrokerRefused, match=f"{raw.decode()}: use a stream that nothing but the Hub"):
            while True:
                await reading.item()


async def test_a_missing_permission_is_refused_by_name(site, server):
    await site.execute("ACL", "SETUSER", "reader", "on", ">pw", "~*", "+@all", "-@dangerous")
    broker = RedisBroker(server.url.replace("//", "//reader:pw@"))
    await assert_refused(broker, "right to INFO is missing")
    await site.execute("ACL", "SETUSER", "reader", "+info")
    await broker.publish("t", b"x")
    async with tail(broker) as reading:  # CONFIG GET need not be allowed
        assert await reading.payloads(1) == [b"x"]
    await broker.close()
    await site.execute("ACL", "DELUSER", "reader")


async def test_a_server_without_free_memory_refuses_publishes_and_can_be_read(site, brokers):
    one, other = brokers(), brokers()
    await one.publish("t", b"x")
    await site.execute("CONFIG", "SET", "maxmemory", 1)
    try:
        with pytest.raises(BrokerRefused, match="maxmemory"):
            await one.publish("t", b"y")
        async with tail(other) as reading:
            await reading.until(CaughtUp)
            await site.execute("CONFIG", "SET", "maxmemory", 0)
            await one.publish("t", b"z")
            assert await reading.payloads(2) == [b"x", b"z"]
    finally:
        await site.execute("CONFIG", "SET", "maxmemory", 0)


async def test_publishing_without_the_required_replicas_raises_and_stores_nothing(site, broker):
    await broker.publish("t", b"x")
    await site.execute("CONFIG", "SET", "min-replicas-to-write", 1)
    try:
        with pytest.raises(BrokerDown, match="NOREPLICAS"):
            await broker.publish("t", b"y")
    finally:
        await site.execute("CONFIG", "SET", "min-replicas-to-write", 0)
    await broker.publish("t", b"z")
    async with tail(broker) as reading:
        await reading.until(CaughtUp)
        assert [entry.payload for entry in reading.entries] == [b"x", b"z"]


async def test_an_idempotency_key_that_is_no_valid_text_is_a_value_error(broker):
    with pytest.raises(ValueError):
        await broker.publish("t", b"x", idempotency_key="\ud800")
    await broker.publish("t", b"x")


# Eviction.


@pytest.mark.parametrize(
    ("policy", "limit", "warnings"),
    [("allkeys-lru", 2**30, 1), ("volatile-ttl", 2**30, 1), ("noeviction", 2**30, 0), ("allkeys-lru", 0, 0)],
)
async def test_an_eviction_policy_is_warned_of_once(site, broker, logged, policy, limit, warnings):
    await site.execute("CONFIG", "SET", "maxmemory", limit)
    await site.execute("CONFIG", "SET", "maxmemory-policy", policy)
    try:
        for _ in range(2):
            async with tail(broker) as reading:
                await reading.until(CaughtUp)
    finally:
        await site.execute("CONFIG", "SET", "maxmemory", 0)
        await site.execute("CONFIG", "SET", "maxmemory-policy", "noeviction")
    lines = [line for line in logged if line["event"] == "redis_may_evict"]
    assert len(lines) == warnings
    assert all(line["policy"] == policy and line["stream"] == STREAM for line in lines)


async def test_a_stream_that_is_deleted_without_its_state_is_trimmed(site, brokers):
    one, other, late = brokers(), brokers(), brokers()
    positions = [await one.publish("t", number(n)) for n in range(3)]
    async with tail(one) as reading:
        await reading.payloads(3)
        await site.execute("DEL", STREAM)
        for behind, items in (positions[0], [Trimmed(positions[2].offset), CaughtUp()]), (positions[2], [CaughtUp()]):
            async with tail(other, behind) as other_tail:
                assert [await other_tail.item() for _ in range(1 + len(items))] == [Subscribed(behind), *items]
        new = await other.publish("t", b"new")
        assert new.epoch == positions[0].epoch
        assert await reading.payloads(4) == [b"0", b"1", b"2", b"new"]
    async with tail(late) as reading:
        assert await reading.item() == Subscribed(positions[2])
        assert await reading.payloads(1) == [b"new"]


async def test_state_that_is_deleted_without_its_stream_starts_a_new_log(site, brokers):
    one, other = brokers(read_timeout=0.3), brokers()
    positions = [await one.publish("t", number(n)) for n in range(3)]
    async with tail(one) as reading:
        await reading.payloads(3)
        await site.execute("DEL", LOG)
        new = await other.publish("t", b"new")
        assert new.epoch != positions[0].epoch
        assert new.offset > positions[2].offset
        async with tail(other, positions[1]) as other_tail:
            await other_tail.item()
            assert await other_tail.item() == Truncated(LogPosition(new.epoch, 0))
            assert await other_tail.payloads(4) == [b"0", b"1", b"2", b"new"]
        await reading.until(Truncated)
        await until_position(reading, new)
    assert reading.entries[-1].payload == b"new"


async def until_position(reading, position):
    while reading.position != position:
        await reading.item()


# Losses.


async def test_a_restored_backup_is_truncated(site, brokers):
    one, other = brokers(read_timeout=0.3), brokers(read_timeout=0.3)
    async with tail(one) as reading, tail(other) as also:
        old = [await one.publish("t", number(n)) for n in range(5)][-1]
        backup = await site.backup()
        await asyncio.gather(*[one.publish("t", b"lost") for n in range(5)])
        await reading.payloads(10)
        await also.payloads(10)
        await site.restore(backup)
        for each in reading, also:
            truncated = await each.until(Truncated)
            assert truncated.position.offset == old.offset
            assert truncated.position.epoch != old.epoch
        assert reading.position == also.position
        new = await other.publish("t", b"new")
        assert new.epoch == truncated.position.epoch
        for each in reading, also:
            await each.payloads(11)
            assert each.position == new


async def test_publishing_to_a_restored_backup_assigns_no_position_twice(site, broker):
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


async def test_a_loss_that_shows_only_in_the_links_is_detected(site, brokers):
    """Nothing of the run counts as common, so all of it is read again."""
    one, another, late = brokers(), brokers(), brokers()
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
        await another.publish("t", b"2")
        truncated = await reading.until(Truncated)
        assert truncated.position.offset == first.offset
        assert truncated.position.epoch not in (first.epoch, second.epoch)
        while reading.entries[-1].payload != b"2":
            await reading.item()
        assert [entry.payload for entry in reading.entries[-2:]] == [b"1", b"2"]
    async with tail(late) as reading:
        assert await reading.item() == Subscribed(LogPosition(first.epoch, 0))
        await reading.until(CaughtUp)
        assert [entry.payload for entry in reading.entries] == [b"0", b"1", b"2"]
        assert reading.position.epoch == truncated.position.epoch


async def test_a_tail_that_missed_two_losses_resumes_after_the_last_common_entry(site, brokers):
    """That is the last entry which all epochs in between have."""
    resuming, broker, late = brokers(), brokers(), brokers()
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
    async with tail(resuming, seen) as reading:
        assert await reading.item() == Subscribed(seen)
        assert await reading.item() == Truncated(LogPosition(positions[3].epoch, positions[2].offset))
        assert await reading.payloads(6) == [number(n) for n in range(3, 9)]
        assert reading.position == positions[-1]
    async with tail(late) as reading:  # each entry has the position that its publisher got
        given = []
        while len(given) < 9:
            item = await reading.item()
            assert not isinstance(item, Trimmed)
            if isinstance(item, list):
                given += [LogPosition(reading.position.epoch, entry.offset) for entry in item]
        assert given == positions


async def test_a_deleted_entry_is_trimmed(site, broker):
    positions = [await broker.publish("t", number(n)) for n in range(3)]
    raw = (await site.execute("XRANGE", STREAM, "-", "+"))[1][0]
    await site.execute("XDEL", STREAM, raw)
    async with tail(broker, positions[0]) as reading:
        await reading.item()
        assert await reading.item() == Trimmed(positions[1].offset)
        assert await reading.payloads(1) == [b"2"]


async def test_a_script_that_the_server_has_unloaded_is_sent_again(site, broker):
    async with tail(broker) as reading:
        await reading.until(CaughtUp)
        for n in range(3):
            await broker.publish("t", number(n))
            await site.execute("SCRIPT", "FLUSH")
        assert await reading.payloads(3) == [b"0", b"1", b"2"]


async def test_closing_leaves_no_connection(site, brokers):
    broker = brokers()
    async with tail(broker) as reading:
        await broker.publish("t", b"x")
        await reading.payloads(1)
        assert len((await site.execute("CLIENT", "LIST")).splitlines()) == 3
    await broker.close()
    async with asyncio.timeout(10):
        while len((await site.execute("CLIENT", "LIST")).splitlines()) > 1:  # the server notices it later
            await asyncio.sleep(0)


async def test_a_tail_ends_when_its_server_stops(servers):
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
