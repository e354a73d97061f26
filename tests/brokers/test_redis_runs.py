"""Split brain: two servers that both accept writes. Each loss is reported to every process, and only once."""

# ruff: noqa: F811  # fixtures are imported, and arguments of tests

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from aiohttp_interceptors.brokers.redis import RedisBroker
from aiohttp_interceptors.brokers.redis import tail as redis_tail
from aiohttp_interceptors.exceptions import BrokerDown, OutcomeUnknown
from aiohttp_interceptors.hub import replication
from aiohttp_interceptors.hub.broker import CaughtUp, LogPosition, Truncated
from tests.brokers.contract import tail
from tests.brokers.nodes import changes, hub_on, persist, texts  # noqa: F401  # a fixture
from tests.brokers.redis_site import STREAM, execute, servers  # noqa: F401  # a fixture
from tests.hub.sink import live, start
from tests.waiting import until, within


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Reconnect soon."""
    monkeypatch.setattr(replication, "MAX_RECONNECT_DELAY", 0.05)


@pytest.fixture(params=["valkey", "redis"])
def engine(request):
    return request.param


class Split:
    """A primary, and its replica, which is promoted while the primary still accepts writes."""

    def __init__(self, servers, engine) -> None:
        options = ("--repl-diskless-sync-delay", "0")
        self.old = servers(*options, engine=engine)
        self.new = servers(*options, "--replicaof", f"127.0.0.1 {self.old.port}", engine=engine)
        self.connects = 0

    def factory(self):
        """Return a factory, and a list with the server that it connects to, which the test may change."""
        use = [self.old]

        async def connect():
            self.connects += 1
            return Redis.from_url(use[0].url)

        return connect, use

    async def replicated(self):
        async with asyncio.timeout(20), Redis.from_url(self.old.url) as one, Redis.from_url(self.new.url) as two:
            while await one.xrange(STREAM) != await two.xrange(STREAM) or not await two.xlen(STREAM):
                await asyncio.sleep(0.01)

    async def promote(self):
        await self.replicated()
        await execute(self.new, "REPLICAOF", "NO", "ONE")

    async def demote(self):
        """Make the old primary a replica of the new one: it loses its own entries."""
        await execute(self.old, "REPLICAOF", "127.0.0.1", str(self.new.port))
        async with asyncio.timeout(20):
            while (await execute(self.old, "INFO", "replication")).get("master_link_status") != "up":
                await asyncio.sleep(0.01)


async def disconnect_writer(broker):
    """Close the connection for publishing."""
    await broker._disconnect()


@pytest.fixture
def split(servers, engine):
    return Split(servers, engine)


async def test_nothing_is_published_to_another_server_than_the_tail_reads(split, hub_on, logged):
    """That server would acknowledge events which the clients of this process never receive."""
    connect, use = split.factory()
    hub = await hub_on(RedisBroker(connect))
    sink = await live(hub, "t")
    await hub.publish("t", "0")
    await texts(sink, 1)
    await split.promote()
    use[0] = split.new
    await disconnect_writer(hub._broker)
    with pytest.raises(BrokerDown, match="leads to another server"):
        await hub.publish("t", "refused")
    assert await execute(split.new, "XLEN", STREAM) == 1
    with pytest.raises(BrokerDown, match="leads to another server"):
        await hub.publish("t", "refused too")  # immediately, until there is another tail
    await until(lambda: not hub.ready)
    await until(lambda: hub.ready)
    await hub.publish("t", "1")
    await texts(sink, 2)
    assert sink.texts == ["0", "1"]
    assert await execute(split.new, "XLEN", STREAM) == 2
    assert changes(logged) == ["hub_up", "hub_down", "hub_resumed"]


async def test_publishing_resumes_if_no_tail_reconnects(split):
    connect, use = split.factory()
    broker = RedisBroker(connect, read_timeout=0.5)
    async with tail(broker) as reading:
        await broker.publish("t", b"0")
        await reading.payloads(1)
        await split.promote()
        use[0] = split.new
        await disconnect_writer(broker)
        with pytest.raises(BrokerDown, match="leads to another server"):
            await broker.publish("t", b"refused")
        with pytest.raises(BrokerDown, match="leads to another server"):
            while True:
                await reading.item()
    async with asyncio.timeout(10):
        while True:
            try:
                await broker.publish("t", b"1")
            except BrokerDown:
                await asyncio.sleep(0.01)
            else:
                break
    await broker.close()


async def test_publishing_resumes_when_the_tail_is_closed(split):
    connect, use = split.factory()
    broker = RedisBroker(connect)
    async with tail(broker) as reading:
        await broker.publish("t", b"0")
        await reading.until(CaughtUp)
        await split.promote()
        use[0] = split.new
        await disconnect_writer(broker)
        with pytest.raises(BrokerDown, match="leads to another server"):
            await broker.publish("t", b"refused")
    await broker.publish("t", b"1")
    await broker.close()


class Process:
    """A Hub with a stream, which stands for a process, and the events that were acknowledged to it."""

    def __init__(self, hub, sink, use) -> None:
        self.hub, self.sink, self.use = hub, sink, use
        self.acknowledged = []

    async def publish(self, *words):
        """Publish each word until it is acknowledged."""
        for word in words:
            async with asyncio.timeout(15):
                while True:
                    try:
                        await self.hub.publish("t", word, idempotency_key=word)
                    except (BrokerDown, OutcomeUnknown):
                        await asyncio.sleep(0.01)
                    else:
                        self.acknowledged.append(word)
                        break


@pytest.fixture
async def two(split, hub_on):
    """Two processes, both on the old server."""
    return [await process(split, hub_on) for _ in range(2)]


async def process(split, hub_on):
    connect, use = split.factory()
    hub = await hub_on(RedisBroker(connect))
    return Process(hub, await live(hub, "t"), use)


async def test_events_that_a_demoted_server_acknowledged_are_a_gap_in_every_process(split, two):
    """Each process is on one server, and delivers its events until the old server is demoted."""
    one, other = two
    await one.publish("before")
    for each in two:
        await texts(each.sink, 1)
    await split.promote()
    other.use[0] = split.new
    await disconnect_writer(other.hub._broker)
    await other.publish("right 0")
    await one.publish("lost 0", "lost 1")
    await texts(one.sink, 3)
    await other.publish("right 1")
    await texts(other.sink, 3)
    one.use[0] = split.new
    await split.demote()
    await one.publish("after 0")
    await other.publish("after 1")
    for each in two:
        await until(lambda each=each: each.sink.texts[-1:] == ["after 1"])
    assert one.sink.texts == ["before", "lost 0", "lost 1", "gap", "right 0", "right 1", "after 0", "after 1"]
    assert other.sink.texts == ["before", "right 0", "right 1", "gap", "after 0", "after 1"]
    assert one.hub.history.epoch == other.hub.history.epoch
    assert one.hub.history.end == other.hub.history.end
    # A client that reconnects with the ID of a lost event gets a gap from both.
    lost = one.sink.frames[2].id
    for each in two:
        again = start(each.hub, "t", after=lost)
        await until(lambda again=again: again.texts[-1:] == ["after 1"])
        assert again.texts[0] == "gap"


async def test_each_further_loss_is_one_more_gap(split, two, hub_on):
    """Two processes leave the old server one after the other; a third one was on the new server from the start."""
    one, other = two
    await one.publish("before")
    for each in two:
        await texts(each.sink, 1)
    await split.promote()
    connect, use = split.factory()
    use[0] = split.new
    hub = await hub_on(RedisBroker(connect))
    third = Process(hub, await live(hub, "t"), use)
    await one.publish("lost 0")
    for each in two:
        await texts(each.sink, 2)
    one.use[0] = split.new
    await disconnect_writer(one.hub._broker)
    await one.publish("right 0")
    for each in one, third:
        await until(lambda each=each: each.sink.texts[-1:] == ["right 0"])
    assert third.sink.texts == ["gap", "right 0"]
    await other.publish("lost 1")  # after the first loss was reported
    await texts(other.sink, 3)
    other.use[0] = split.new
    await disconnect_writer(other.hub._broker)
    await other.publish("right 1")
    for each in one, other, third:
        await until(lambda each=each: each.sink.texts[-1:] == ["right 1"])
    assert third.sink.texts == ["gap", "right 0", "gap", "right 1"]
    assert one.sink.texts == ["before", "lost 0", "gap", "right 0", "gap", "right 1"]
    assert other.sink.texts == ["before", "lost 0", "lost 1", "gap", "right 0", "right 1"]
    assert len({each.hub.history.epoch for each in (one, other, third)}) == 1


async def test_a_loss_is_one_gap_however_many_processes_had_received_the_events(split, hub_on):
    processes = [await process(split, hub_on) for _ in range(5)]
    await processes[0].publish("before")
    await split.promote()
    for n, each in enumerate(processes):  # each has another checkpoint
        await each.publish(f"lost {n}")
        await texts(each.sink, n + 2)
    for each in processes:
        each.use[0] = split.new
    split.old.kill()
    await processes[4].publish("after")
    for each in processes:
        await until(lambda each=each: each.sink.texts[-1:] == ["after"])
        assert each.sink.texts.count("gap") == 1
    assert len({each.hub.history.epoch for each in processes}) == 1


async def test_a_process_that_changes_the_server_twice_gets_a_gap_each_time(split, two):
    """On each server the entries of the other one are lost."""
    one, other = two
    await one.publish("before")
    for each in two:
        await texts(each.sink, 1)
    await split.promote()
    one.use[0] = other.use[0] = split.new
    for each in two:
        await disconnect_writer(each.hub._broker)
    await one.publish("right")
    await other.publish("right too")
    for each in two:
        await texts(each.sink, 3)
    one.use[0] = split.old
    await disconnect_writer(one.hub._broker)
    await one.publish("wrong")
    await until(lambda: one.sink.texts[-1:] == ["wrong"])
    assert one.sink.texts == ["before", "right", "right too", "gap", "wrong"]
    one.use[0] = split.new
    await split.demote()
    await one.publish("after")
    for each in two:
        await until(lambda each=each: each.sink.texts[-1:] == ["after"])
    assert one.sink.texts[5:] == ["gap", "right", "right too", "after"]
    assert other.sink.texts == ["before", "right", "right too", "gap", "after"]


async def test_repeated_failovers_without_a_loss_cause_no_gap(split, two, logged):
    """All processes follow the primary, and no event is repeated."""
    one, other = two
    await one.publish("0")
    primary, replica = split.old, split.new
    for n in range(1, 5):
        await other.publish(f"{n}")
        async with asyncio.timeout(20), Redis.from_url(primary.url) as here, Redis.from_url(replica.url) as there:
            while await here.xrange(STREAM) != await there.xrange(STREAM):
                await asyncio.sleep(0.01)
        for each in two:
            await texts(each.sink, n + 1)
            each.use[0] = replica
        await execute(replica, "REPLICAOF", "NO", "ONE")
        await execute(primary, "REPLICAOF", "127.0.0.1", str(replica.port))
        primary, replica = replica, primary
        for each in two:
            await within(asyncio.wait_for(each.publish(f"{n}, {each is one}"), 20), 20)
        async with asyncio.timeout(20):
            while (await execute(replica, "INFO", "replication")).get("master_link_status") != "up":
                await asyncio.sleep(0.01)
        for each in two:
            await until(lambda each=each, n=n: len(each.sink.texts) >= 1 + n + 2 * n)
    for each in two:
        assert "gap" not in each.sink.texts
        assert len(each.sink.texts) == len(set(each.sink.texts)) == 13
    assert "hub_truncated" not in changes(logged)


async def test_a_server_that_was_frozen_during_a_failover_is_left_when_it_is_thawed(split, hub_on, monkeypatch):
    """It accepts writes until it is demoted. No event is repeated."""
    monkeypatch.setattr(redis_tail, "MAX_DELAY", 0.5)
    connect, use = split.factory()
    hub = await hub_on(RedisBroker(connect))
    sink = await live(hub, "t")
    await hub.publish("t", "0")
    await texts(sink, 1)
    await split.promote()
    another = RedisBroker(split.new.url)
    split.old.freeze()
    await another.publish("t", b"\x10data: 1\n\n")
    use[0] = split.new
    await until(lambda: not hub.ready)  # a late reply is no confirmation
    split.old.thaw()
    await until(lambda: hub.ready)
    await texts(sink, 2)
    assert sink.texts == ["0", "1"]
    await persist(hub, "2")
    await texts(sink, 3)
    assert sink.texts == ["0", "1", "2"]
    await another.close()


async def test_an_epoch_that_was_lost_itself_is_truncated(split):
    """A loss began an epoch on a server, and the failover to the other one lost that epoch."""
    connect, use = split.factory()
    broker, late = RedisBroker(connect, read_timeout=0.3), RedisBroker(split.new.url)
    async with tail(broker) as reading:
        first = await broker.publish("t", b"0")
        await reading.payloads(1)
        await split.promote()
        async with tail(RedisBroker(split.old.url), LogPosition(first.epoch, first.offset + 1)) as other:
            await other.until(Truncated)  # a new epoch at the end, on the old server only
            epoch = other.position.epoch
        truncated = await reading.until(Truncated)
        assert truncated.position == LogPosition(epoch, first.offset)
        use[0] = split.new
        split.old.kill()
        with pytest.raises(BrokerDown):
            while True:
                await reading.item()
    async with tail(broker, truncated.position) as reading:
        again = (await reading.until(Truncated)).position
        assert again.epoch not in (first.epoch, epoch)
        assert again.offset == first.offset
    async with tail(late, first) as reading:
        assert (await reading.until(Truncated)).position == again
    for each in broker, late:
        await each.close()
