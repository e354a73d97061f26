"""Faults of a Redis or Valkey server under a Hub: real servers that are killed, frozen, wiped and replaced."""

# ruff: noqa: F811  # fixtures are imported, and arguments of tests

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from redis.asyncio import Redis

from aiohttp_interceptors.brokers.redis import RedisBroker
from aiohttp_interceptors.exceptions import BrokerDown, BrokerRefused, OutcomeUnknown
from aiohttp_interceptors.hub import replication
from aiohttp_interceptors.hub.broker import CaughtUp, LogPosition, Truncated
from aiohttp_interceptors.testing import TcpProxy
from tests.brokers.contract import number, tail
from tests.brokers.nodes import changes, hub_on, texts  # noqa: F401  # a fixture
from tests.brokers.redis_site import STREAM, RedisSite, execute, node, server, servers, site  # noqa: F401  # fixtures
from tests.hub.sink import live, start
from tests.servers.clock import environment
from tests.servers.valkey import DURABLE
from tests.waiting import until, within

QUICK = {"read_timeout": 3.0, "publish_timeout": 2.5}  # seconds; a busy machine needs them


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Reconnect soon."""
    monkeypatch.setattr(replication, "MAX_RECONNECT_DELAY", 0.05)


@pytest.fixture(params=["valkey", "redis"])
def engine(request):
    return request.param


async def publish(hub, count, prefix=""):
    return [await hub.publish("t", f"{prefix}{n}") for n in range(count)]


def through(proxy):
    return f"redis://127.0.0.1:{proxy.port}/0"


# The server is lost, and returns.


async def test_events_that_a_killed_server_acknowledged_are_delivered_once(servers, node, engine, logged):
    """Events that are published again with the same key are delivered once too."""
    server = servers(*DURABLE, engine=engine)
    hub, other = await node(server.url), await node(server.url)
    sink, elsewhere = await live(hub, "t"), await live(other, "t")
    count, outcomes = 400, {}

    async def publish_one(n):
        try:
            outcomes[n] = await hub.publish("t", f"{n}", idempotency_key=f"key {n}")
        except (BrokerDown, OutcomeUnknown) as error:
            outcomes[n] = error

    publishing = [asyncio.create_task(publish_one(n)) for n in range(count // 2)]
    await until(lambda: outcomes)
    publishing += [asyncio.create_task(publish_one(n)) for n in range(count // 2, count)]
    await asyncio.sleep(0)
    server.kill()
    await within(asyncio.gather(*publishing))
    await until(lambda: not hub.ready and not other.ready)
    with pytest.raises(BrokerDown):
        await hub.publish("t", "down")
    assert sink.ends == elsewhere.ends == []
    server.restart()
    await until(lambda: hub.ready and other.ready)
    for n in range(count):
        again = await hub.publish("t", f"{n}", idempotency_key=f"key {n}")
        assert outcomes[n] == again or not isinstance(outcomes[n], str)
    for each in sink, elsewhere:
        await texts(each, count)
        assert sorted(map(int, each.texts)) == list(range(count))  # and no gap, because nothing was lost
        assert each.ends == []
    assert any(isinstance(outcome, str) for outcome in outcomes.values())
    assert sorted(changes(logged)) == sorted(["hub_up", "hub_down", "hub_resumed"] * 2)


@pytest.mark.parametrize("by", ["a URL", "a factory"])
async def test_connections_that_the_server_closes_cause_no_gap(site, node, logged, by):

    async def connect():
        return Redis.from_url(site.server.url, protocol=3)

    hub = await node(connect if by == "a factory" else site.server.url)
    sink = await live(hub, "t")
    await hub.publish("t", "0")
    for n in range(1, 4):
        await site.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await until(lambda: not hub.ready)
        await hub.publish("t", f"{n}")
        await until(lambda: hub.ready)
    await texts(sink, 4)
    assert sink.texts == ["0", "1", "2", "3"]
    assert changes(logged) == ["hub_up"] + ["hub_down", "hub_resumed"] * 3


async def test_a_frozen_server_is_detected_and_used_again_when_it_is_thawed(servers, node, engine, logged):
    server = servers(engine=engine)
    hub = await node(server.url, **QUICK)
    sink = await live(hub, "t")
    await hub.publish("t", "before")
    server.freeze()
    failed = await within(
        asyncio.gather(*[hub.publish("t", f"{n}", idempotency_key=f"{n}") for n in range(3)], return_exceptions=True),
        20,
    )
    assert {type(error) for error in failed} <= {OutcomeUnknown, BrokerDown}
    await until(lambda: not hub.ready)
    with pytest.raises(BrokerDown, match="no connection"):
        await within(hub.publish("t", "lost"), 20)
    assert sink.ends == []
    server.thaw()
    await until(lambda: hub.ready)
    for n in range(3):
        await hub.publish("t", f"{n}", idempotency_key=f"{n}")
    await texts(sink, 4)
    assert sink.texts == ["before", "0", "1", "2"]
    assert changes(logged) == ["hub_up", "hub_down", "hub_resumed"]


async def test_a_short_pause_of_the_server_does_not_disconnect(site, node, logged):
    hub = await node(site.server.url)
    sink = await live(hub, "t")
    await site.execute("CLIENT", "PAUSE", 200, "ALL")
    await hub.publish("t", "x")
    await texts(sink, 1)
    assert changes(logged) == ["hub_up"]


async def test_a_hub_waits_for_a_server_that_is_down_at_the_start(servers, node, logged):
    server = servers()
    server.stop()
    hub = await node(server.url, ready=False)
    sink = start(hub, "t")
    with pytest.raises(BrokerDown, match="connect"):
        await hub.publish("t", "lost")
    await until(lambda: hub._replication_task._attempts > 3)
    assert not hub.ready
    assert not sink.ends
    server.restart()
    await until(lambda: hub.ready)
    await hub.publish("t", "x")
    await texts(sink, 1)
    assert sink.texts == ["x"]
    assert changes(logged) == ["hub_down", "hub_resumed"]


@pytest.mark.parametrize("credentials", [":wrong@", ""])
async def test_a_wrong_password_is_refused_until_it_is_corrected(servers, node, logged, credentials):
    server = servers(password="secret")
    hub = await node(server.url.replace(":secret@", credentials), ready=False)
    with pytest.raises(BrokerRefused, match="Authentication"):
        await hub.publish("t", "x")
    await until(lambda: hub._replication_task._attempts > 2)
    assert not hub.ready
    assert changes(logged) == ["hub_down"]
    assert "Authentication" in next(line["error"] for line in logged if line["event"] == "hub_down")
    async with Redis.from_url(server.url) as client:
        await client.config_set("requirepass", "wrong" if credentials else "")
    await until(lambda: hub.ready)


# The network.


async def test_a_cut_network_causes_no_gap(site, node, logged):
    async with TcpProxy("127.0.0.1", site.server.port) as proxy:
        here, there = await node(through(proxy)), await node(site.server.url)
        sink = await live(here, "t")
        await publish(here, 3)
        proxy.cut()
        await until(lambda: not here.ready)
        with pytest.raises((BrokerDown, OutcomeUnknown)):
            await within(here.publish("t", "lost"))
        await publish(there, 3, "meanwhile ")
        proxy.restore()
        await until(lambda: here.ready)
        await texts(sink, 6)
        assert sink.texts == ["0", "1", "2", "meanwhile 0", "meanwhile 1", "meanwhile 2"]
        assert "hub_truncated" not in changes(logged)
        await here.close()


async def test_a_network_that_drops_all_packets_is_detected(site, node):
    async with TcpProxy("127.0.0.1", site.server.port) as proxy:
        here, there = await node(through(proxy), **QUICK), await node(site.server.url)
        sink = await live(here, "t")
        await here.publish("t", "w")
        proxy.stall()
        with pytest.raises(OutcomeUnknown):
            await here.publish("t", "x", idempotency_key="x")
        await until(lambda: not here.ready)
        await there.publish("t", "y")
        proxy.restore()
        await until(lambda: here.ready)
        await here.publish("t", "x", idempotency_key="x")
        await texts(sink, 3)
        assert sorted(sink.texts) == ["w", "x", "y"]
        await here.close()


async def test_an_incomplete_reply_leaves_the_outcome_unknown(site):
    async with TcpProxy("127.0.0.1", site.server.port) as proxy:
        broker = RedisBroker(through(proxy))
        await broker.publish("t", b"0")
        proxy.cut_after = 1000
        await broker._disconnect()
        with pytest.raises(OutcomeUnknown):
            for _ in range(10):
                await asyncio.gather(*[broker.publish("t", b"x") for _ in range(20)])
        await broker.close()


async def test_a_megabyte_is_delivered_through_a_slow_network(site, node):
    async with TcpProxy("127.0.0.1", site.server.port) as proxy:
        proxy.delay, proxy.rate = 0.002, 5e6
        here, there = await node(through(proxy)), await node(site.server.url)
        sink, elsewhere = await live(here, "t"), await live(there, "t")
        await here.publish("t", "x" * 1_000_000)
        await there.publish("t", "y" * 1_000_000)
        for each in sink, elsewhere:
            await texts(each, 2)
            assert each.texts == ["x" * 1_000_000, "y" * 1_000_000]
        await here.close()


async def test_events_that_are_trimmed_while_a_node_is_disconnected_are_one_gap(site, node):
    async with TcpProxy("127.0.0.1", site.server.port) as proxy:
        here = await node(through(proxy), max_records=100)
        there = await node(site.server.url, max_records=100)
        sink = await live(here, "t")
        await here.publish("t", "seen")
        await texts(sink, 1)
        proxy.cut()
        await until(lambda: not here.ready)
        await asyncio.gather(*[there.publish("t", f"{n}") for n in range(1000)])
        proxy.restore()
        await until(lambda: sink.texts[-1] == "999")
        kept = sink.texts[2:]
        assert sink.texts[:2] == ["seen", "gap"]
        assert kept == [f"{n}" for n in range(1000 - len(kept), 1000)]
        assert len(kept) < 999
        await here.close()


# Nodes.


async def test_a_late_node_delivers_no_history_to_live_streams(site, node):
    one = await node(site.server.url)
    await publish(one, 5)
    late = await node(site.server.url, ready=False)
    early = start(late, "t")
    await until(lambda: late.ready)
    sink = await live(late, "t")
    await one.publish("t", "new")
    await texts(sink, 1)
    await texts(early, 1)
    assert sink.texts == early.texts == ["new"]
    assert late.history.end == one.history.end


CLOCK = """
import asyncio, sys, time
from aiohttp_interceptors.brokers.redis import RedisBroker

async def main():
    broker = RedisBroker(sys.argv[1])
    for n in range(5):
        await broker.publish("t", b"\\x10data: %s %d\\n\\n" % (sys.argv[2].encode(), n))
    async for item in broker.tail(None):
        if isinstance(item, list):
            print(time.time(), max(entry.age for entry in item))
            break
    await broker.close()

asyncio.run(main())
"""


async def test_nodes_with_different_clocks_see_the_same_order(site, node):
    """Only the clock of the server is used."""
    hub = await node(site.server.url)
    sink = await live(hub, "t")
    clocks = []
    for skew in ("+60", "-60", "+60"):
        skewed = {**environment(int(skew)), "PYTHONPATH": "."}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CLOCK, site.server.url, skew, env=skewed, stdout=subprocess.PIPE
        )
        out, _ = await within(process.communicate(), 30)
        clock, age = map(float, out.split())
        clocks.append(clock)
        assert 0 <= age < 30
    assert clocks[0] - clocks[1] > 90
    await texts(sink, 15)
    assert sink.texts == [f"{skew} {n}" for skew in ("+60", "-60", "+60") for n in range(5)]
    offsets = [int(frame.id.partition("-")[2]) for frame in sink.frames]
    assert offsets == sorted(set(offsets))


# The server has lost entries.


@pytest.mark.parametrize("publisher", ["one", "other"])
async def test_a_wiped_server_is_a_gap_and_ends_no_stream(site, node, logged, publisher):
    one, other = await node(site.server.url), await node(site.server.url)
    sink, elsewhere = await live(one, "t"), await live(other, "t")
    await one.publish("t", "old")
    await texts(sink, 1)
    await texts(elsewhere, 1)
    await site.wipe()
    new = await {"one": one, "other": other}[publisher].publish("t", "new")
    for each in sink, elsewhere:
        await texts(each, 3)
        assert each.texts == ["old", "gap", "new"]
        assert each.last_event_id == new
        assert each.ends == []
    assert changes(logged) == ["hub_up", "hub_up", "hub_truncated", "hub_truncated"]


async def test_a_restart_without_persistence_is_a_gap(servers, node, engine):
    server = servers(engine=engine)
    hub = await node(server.url)
    sink = await live(hub, "t")
    await hub.publish("t", "old")
    await texts(sink, 1)
    server.kill()
    await until(lambda: not hub.ready)
    server.restart()
    await until(lambda: hub.ready)
    await hub.publish("t", "new")
    await texts(sink, 3)
    assert sink.texts == ["old", "gap", "new"]


class Pair:
    """A primary, its replica, and a factory that connects to the one in ``use``."""

    def __init__(self, servers, engine, clock) -> None:
        self.primary = servers("--repl-diskless-sync-delay", "0", engine=engine)
        skew = {"clock": clock} if clock else {}
        self.replica = servers("--replicaof", f"127.0.0.1 {self.primary.port}", engine=engine, **skew)
        self.use = self.primary

    async def connect(self):
        return Redis.from_url(self.use.url)

    async def replicated(self):
        """Wait until the replica has all entries."""
        async with (
            asyncio.timeout(20),
            Redis.from_url(self.primary.url) as one,
            Redis.from_url(self.replica.url) as two,
        ):
            while await one.xrange(STREAM) != await two.xrange(STREAM) or not await two.xlen(STREAM):
                await asyncio.sleep(0)

    async def promote(self):
        await execute(self.replica, "REPLICAOF", "NO", "ONE")

    def move(self):
        self.primary.kill()
        self.use = self.replica


@pytest.fixture(params=[("valkey", 0), ("redis", 0), ("redis", -60), ("redis", +60)], ids=str)
def pair(request, servers):
    return Pair(servers, *request.param)


async def test_a_failover_without_a_loss_causes_no_gap(pair, node, logged):
    one, other = await node(pair.connect), await node(pair.connect)
    sink, elsewhere = await live(one, "t"), await live(other, "t")
    ids = await publish(one, 5)
    await pair.replicated()
    await texts(elsewhere, 5)
    await pair.promote()
    pair.move()
    await until(lambda: not one.ready and not other.ready)
    await until(lambda: one.ready and other.ready)
    ids += await publish(other, 5, "new ")
    for each in sink, elsewhere:
        await texts(each, 10)
        assert each.texts == [*map(str, range(5)), *[f"new {n}" for n in range(5)]]
        assert [frame.id for frame in each.frames] == ids
    assert "hub_truncated" not in changes(logged)


@pytest.mark.parametrize("first", ["a node", "another process"])
async def test_a_failover_that_lost_acknowledged_events_is_a_gap_for_all(pair, node, first):
    """For every first publisher on the new server, and with every clock."""
    one, other = await node(pair.connect), await node(pair.connect)
    sink, elsewhere = await live(one, "t"), await live(other, "t")
    kept = await publish(one, 3, "kept ")
    await pair.replicated()
    await pair.promote()
    lost = await publish(one, 30, "lost ")
    await texts(sink, 33)
    await texts(elsewhere, 33)
    another = RedisBroker(pair.replica.url)
    expected = [f"kept {n}" for n in range(3)]
    if first == "another process":
        for n in range(3):
            await another.publish("t", b"\x10data: another %d\n\n" % n)
        expected += [f"another {n}" for n in range(3)]
    pair.move()
    await until(lambda: not one.ready and not other.ready)
    await until(lambda: one.ready and other.ready)
    new = await publish(other, 3, "new ")
    expected += [f"new {n}" for n in range(3)]
    for each in sink, elsewhere:
        await until(lambda each=each: each.texts[-1] == "new 2")
        assert each.texts == [
            *[f"kept {n}" for n in range(3)], *[f"lost {n}" for n in range(30)], "gap", *expected[3:]
        ]  # fmt: skip
        assert each.last_event_id == new[-1]
        assert each.ends == []
    assert not {*kept, *lost} & set(new)
    # Clients that reconnect with the ID of a lost event, or of the last common one, get a gap too.
    for after in lost[-1], kept[-1]:
        again = start(one, "t", after=after)
        await until(lambda again=again: again.texts[-1:] == ["new 2"])
        assert again.texts == ["gap", *expected[3:]]
    late = await node(pair.connect)
    assert late.history.end == one.history.end
    assert late.history.epoch == one.history.epoch
    await another.close()


async def test_an_event_that_was_acknowledged_and_lost_before_its_delivery_is_a_gap(servers, node, engine):
    """Only the node that published it knows of it."""
    pair = Pair(servers, engine, 0)
    hub = await node(pair.connect)
    sink = await live(hub, "t")
    await hub.publish("t", "kept")
    await pair.replicated()
    await texts(sink, 1)
    await pair.promote()
    broker = hub._broker
    async with TcpProxy("127.0.0.1", pair.primary.port) as proxy:
        tailing = broker._connect
        broker._connect = lambda: asyncio.sleep(0, Redis.from_url(through(proxy)))
        await execute(pair.primary, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await until(lambda: not hub.ready)
        await until(lambda: hub.ready)
        proxy.stall()
        broker._connect = pair.connect
        await broker._disconnect()
        await hub.publish("t", "lost")
        broker._connect = tailing
        pair.move()
        proxy.cut()
        await until(lambda: not hub.ready)
        await until(lambda: hub.ready)
        await until(lambda: sink.texts == ["kept", "gap"])
        broker._connect = pair.connect
    await broker._disconnect()
    await hub.publish("t", "new")
    await texts(sink, 3)
    assert sink.texts == ["kept", "gap", "new"]


async def test_a_demoted_server_refuses_publishes_and_is_left(servers, node, engine):
    pair = Pair(servers, engine, 0)
    hub = await node(pair.connect, read_timeout=3.0)
    sink = await live(hub, "t")
    await hub.publish("t", "0")
    await pair.replicated()
    await pair.promote()
    await execute(pair.primary, "REPLICAOF", "127.0.0.1", pair.replica.port)
    with pytest.raises(BrokerDown, match="ReadOnlyError"):
        await hub.publish("t", "refused")
    await until(lambda: not hub.ready)
    pair.use = pair.replica
    await until(lambda: hub.ready)
    await hub.publish("t", "1")
    await texts(sink, 2)
    assert sink.texts == ["0", "1"]


async def test_a_stream_that_the_server_evicts_is_a_gap(site, node):
    one = await node(site.server.url)
    sink = await live(one, "t")
    await publish(one, 3)
    await texts(sink, 3)
    await site.execute("CONFIG", "SET", "maxmemory-policy", "allkeys-random")
    await site.execute("CONFIG", "SET", "maxmemory", 1)
    try:
        async with asyncio.timeout(10):
            while await site.execute("DBSIZE"):
                with pytest.raises(Exception, match="OOM"):
                    await site.execute("SET", "other", "x" * 100)
    finally:
        await site.execute("CONFIG", "SET", "maxmemory", 0)
        await site.execute("CONFIG", "SET", "maxmemory-policy", "noeviction")
    await one.publish("t", "new")
    await texts(sink, 5)
    assert sink.texts == ["0", "1", "2", "gap", "new"]


async def test_a_loss_that_another_process_has_seen_does_not_move_the_last_common_entry(servers, engine):
    pair = Pair(servers, engine, 0)
    broker, resuming, another = RedisBroker(pair.connect), RedisBroker(pair.connect), RedisBroker(pair.replica.url)
    async with tail(resuming) as reading:
        kept = await broker.publish("t", b"kept")
        await pair.replicated()
        await pair.promote()
        lost = await broker.publish("t", b"lost")
        await reading.payloads(2)
    pair.move()
    replica = RedisSite(pair.replica)
    await another.publish("t", b"1")
    backup = await replica.backup()
    await another.publish("t", b"lost too")
    await replica.restore(backup)
    new = await another.publish("t", b"2")
    assert new.epoch != kept.epoch
    async with tail(resuming, lost) as reading:
        await reading.item()
        assert await reading.item() == Truncated(LogPosition(new.epoch, kept.offset))
        assert await reading.payloads(2) == [b"1", b"2"]
        assert reading.position == new
    for each in broker, resuming, another:
        await each.close()


async def test_a_tail_that_missed_a_failover_resumes_after_the_last_common_entry(servers, engine):
    pair = Pair(servers, engine, 0)
    broker, resuming = RedisBroker(pair.connect), RedisBroker(pair.connect)
    async with tail(resuming) as reading:
        await broker.publish("t", b"0")
        await pair.replicated()
        await pair.promote()
        last = [await broker.publish("t", b"lost") for _ in range(3)][-1]
        await reading.payloads(4)
    pair.move()
    await broker._disconnect()
    for n in range(1, 3):
        await broker.publish("t", number(n))
    async with tail(resuming, last) as reading:
        await reading.until(CaughtUp)
        assert [entry.payload for entry in reading.entries] == [b"1", b"2"]
    for each in broker, resuming:
        await each.close()
