"""Two servers that each take themselves for the primary: what one process sees of both, and what all are told."""

# ruff: noqa: F811  # a test has what it takes by name, and its fixtures are imported

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis
from tests.hub.sink import live, start

from aiohttp_interceptors.brokers.redis import RedisBroker
from aiohttp_interceptors.brokers.redis import tail as redis_tail
from aiohttp_interceptors.exceptions import BrokerDown, OutcomeUnknown
from aiohttp_interceptors.hub import replication as supervision
from aiohttp_interceptors.hub.broker import CaughtUp, LogPosition, Truncated
from tests.brokers.contract import tail
from tests.brokers.nodes import changes, hub_on, persist, texts  # noqa: F401  # a fixture
from tests.brokers.redis_site import STREAM, ask, servers  # noqa: F401  # a fixture
from tests.waiting import until, within


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A server is back at once, and so is who follows it."""
    monkeypatch.setattr(supervision, "LONGEST_DELAY", 0.05)


@pytest.fixture(params=["valkey", "redis"])
def engine(request):
    return request.param


class Split:
    """A primary, and its replica, which was promoted while the primary went on."""

    def __init__(self, servers, engine) -> None:
        at_once = ("--repl-diskless-sync-delay", "0")
        self.old = servers(*at_once, engine=engine)
        self.new = servers(*at_once, "--replicaof", f"127.0.0.1 {self.old.port}", engine=engine)
        self.connects = 0

    def factory(self):
        """Return a factory, and what it leads to, which may be changed."""
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
        await ask(self.new, "REPLICAOF", "NO", "ONE")

    async def demote(self):
        """Have the old one follow the new one, and lose what it had alone."""
        await ask(self.old, "REPLICAOF", "127.0.0.1", str(self.new.port))
        async with asyncio.timeout(20):
            while (await ask(self.old, "INFO", "replication")).get("master_link_status") != "up":
                await asyncio.sleep(0.01)


async def cut_writer(broker):
    """Cut the connection that writes, as ``CLIENT KILL`` does."""
    await broker._drop()


@pytest.fixture
def split(servers, engine):
    return Split(servers, engine)


async def test_nothing_is_stored_where_the_tail_is_not(split, hub_on, logged):
    """What one server acknowledged, and lost when it was demoted, came nowhere, and no client was told."""
    connect, use = split.factory()
    hub = await hub_on(RedisBroker(connect))
    sink = await live(hub, "t")
    await hub.publish("t", "0")
    await texts(sink, 1)
    await split.promote()
    use[0] = split.new
    await cut_writer(hub._broker)
    with pytest.raises(BrokerDown, match="another server than reading"):
        await hub.publish("t", "refused")
    assert await ask(split.new, "XLEN", STREAM) == 1
    with pytest.raises(BrokerDown, match="another server than reading"):
        await hub.publish("t", "refused too")  # at once, as long as there is no other tail
    await until(lambda: not hub.ready)
    await until(lambda: hub.ready)
    await hub.publish("t", "1")
    await texts(sink, 2)
    assert sink.texts == ["0", "1"]
    assert await ask(split.new, "XLEN", STREAM) == 2
    assert changes(logged) == ["hub_up", "hub_down", "hub_resumed"]


async def test_a_tail_that_finds_no_server_does_not_stop_publishing_for_ever(split):
    connect, use = split.factory()
    broker = RedisBroker(connect, silence=0.5)
    async with tail(broker) as reading:
        await broker.publish("t", b"0")
        await reading.payloads(1)
        await split.promote()
        use[0] = split.new
        await cut_writer(broker)
        with pytest.raises(BrokerDown, match="another server"):
            await broker.publish("t", b"refused")
        with pytest.raises(BrokerDown, match="another server"):
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


async def test_a_tail_that_was_closed_does_not_hold_up_publishing(split):
    connect, use = split.factory()
    broker = RedisBroker(connect)
    async with tail(broker) as reading:
        await broker.publish("t", b"0")
        await reading.until(CaughtUp)
        await split.promote()
        use[0] = split.new
        await cut_writer(broker)
        with pytest.raises(BrokerDown, match="another server"):
            await broker.publish("t", b"refused")
    await broker.publish("t", b"1")
    await broker.close()


class Process:
    """A Hub with a stream, of a process that publishes, and the ledger of both."""

    def __init__(self, hub, sink, use) -> None:
        self.hub, self.sink, self.use = hub, sink, use
        self.acknowledged = []

    async def publish(self, *words):
        """Publish until it is acknowledged, once each."""
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
    """Two processes, both at the old server."""
    return [await process(split, hub_on) for _ in range(2)]


async def process(split, hub_on):
    connect, use = split.factory()
    hub = await hub_on(RedisBroker(connect))
    return Process(hub, await live(hub, "t"), use)


async def test_what_was_acknowledged_by_a_server_that_was_demoted_is_told_in_every_process(split, two):
    """One process is wholly on each: each delivers what it acknowledges, until one of the servers is no more."""
    one, other = two
    await one.publish("before")
    for each in two:
        await texts(each.sink, 1)
    await split.promote()
    other.use[0] = split.new
    await cut_writer(other.hub._broker)
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
    assert one.hub.log.epoch == other.hub.log.epoch
    assert one.hub.log.end == other.hub.log.end
    # Who comes back with an id of what was lost, or of before, is told in both.
    lost = one.sink.frames[2].id
    for each in two:
        again = start(each.hub, "t", after=lost)
        await until(lambda again=again: again.texts[-1:] == ["after 1"])
        assert again.texts[0] == "gap"


async def test_a_further_loss_is_told_once_more_and_none_twice(split, two, hub_on):
    """Two processes on the old server, of which one leaves it earlier; a third has been on the new one all the time."""
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
    await cut_writer(one.hub._broker)
    await one.publish("right 0")
    for each in one, third:
        await until(lambda each=each: each.sink.texts[-1:] == ["right 0"])
    assert third.sink.texts == ["gap", "right 0"]
    await other.publish("lost 1")  # after it was told
    await texts(other.sink, 3)
    other.use[0] = split.new
    await cut_writer(other.hub._broker)
    await other.publish("right 1")
    for each in one, other, third:
        await until(lambda each=each: each.sink.texts[-1:] == ["right 1"])
    assert third.sink.texts == ["gap", "right 0", "gap", "right 1"]
    assert one.sink.texts == ["before", "lost 0", "gap", "right 0", "gap", "right 1"]
    assert other.sink.texts == ["before", "lost 0", "lost 1", "gap", "right 0", "right 1"]
    assert len({each.hub.log.epoch for each in (one, other, third)}) == 1


async def test_a_loss_is_told_once_however_many_processes_had_it(split, hub_on):
    processes = [await process(split, hub_on) for _ in range(5)]
    await processes[0].publish("before")
    await split.promote()
    for n, each in enumerate(processes):  # each has another claim
        await each.publish(f"lost {n}")
        await texts(each.sink, n + 2)
    for each in processes:
        each.use[0] = split.new
    split.old.kill()
    await processes[4].publish("after")
    for each in processes:
        await until(lambda each=each: each.sink.texts[-1:] == ["after"])
        assert each.sink.texts.count("gap") == 1
    assert len({each.hub.log.epoch for each in processes}) == 1


async def test_who_was_told_of_a_loss_on_the_wrong_server_is_told_again_on_the_right_one(split, two):
    """To the one on which it is, the other one's entries are lost; and the other way round."""
    one, other = two
    await one.publish("before")
    for each in two:
        await texts(each.sink, 1)
    await split.promote()
    one.use[0] = other.use[0] = split.new
    for each in two:
        await cut_writer(each.hub._broker)
    await one.publish("right")
    await other.publish("right too")
    for each in two:
        await texts(each.sink, 3)
    one.use[0] = split.old
    await cut_writer(one.hub._broker)
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


async def test_a_server_that_was_promoted_and_lost_nothing_is_no_gap_however_often(split, two, logged):
    """The primary changes to and fro; each reader goes along, and nothing is repeated."""
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
        await ask(replica, "REPLICAOF", "NO", "ONE")
        await ask(primary, "REPLICAOF", "127.0.0.1", str(replica.port))
        primary, replica = replica, primary
        for each in two:
            await within(asyncio.wait_for(each.publish(f"{n}, {each is one}"), 20), 20)
        async with asyncio.timeout(20):
            while (await ask(replica, "INFO", "replication")).get("master_link_status") != "up":
                await asyncio.sleep(0.01)
        # What comes next counts from here.
        for each in two:
            await until(lambda each=each, n=n: len(each.sink.texts) >= 1 + n + 2 * n)
    for each in two:
        assert "gap" not in each.sink.texts
        assert len(each.sink.texts) == len(set(each.sink.texts)) == 13
    assert "hub_rewound" not in changes(logged)


async def test_a_server_that_was_away_for_long_is_left_when_it_is_back(split, hub_on, monkeypatch):
    """A primary that slept while another was promoted takes itself for one until it is told; nothing is repeated."""
    monkeypatch.setattr(redis_tail, "LATE", 0.5)
    connect, use = split.factory()
    hub = await hub_on(RedisBroker(connect))
    sink = await live(hub, "t")
    await hub.publish("t", "0")
    await texts(sink, 1)
    await split.promote()
    stranger = RedisBroker(split.new.url)
    split.old.freeze()
    await stranger.publish("t", b"\x10data: 1\n\n")
    use[0] = split.new
    await until(lambda: not hub.ready)  # late is not ready
    split.old.thaw()
    await until(lambda: hub.ready)
    await texts(sink, 2)
    assert sink.texts == ["0", "1"]
    await persist(hub, "2")
    await texts(sink, 3)
    assert sink.texts == ["0", "1", "2"]
    await stranger.close()


async def test_an_epoch_that_was_lost_is_told_of_anew(split):
    """A loss was told by a server that lost that in turn: who heard of it knows an epoch that the other does not."""
    connect, use = split.factory()
    broker, late = RedisBroker(connect, silence=0.3), RedisBroker(split.new.url)
    async with tail(broker) as reading:
        first = await broker.publish("t", b"0")
        await reading.payloads(1)
        await split.promote()
        async with tail(RedisBroker(split.old.url), LogPosition(first.epoch, first.offset + 1)) as other:
            await other.until(Truncated)  # a new epoch, at the end, on the old one alone
            epoch = other.position.epoch
        rewound = await reading.until(Truncated)
        assert rewound.position == LogPosition(epoch, first.offset)
        use[0] = split.new
        split.old.kill()
        with pytest.raises(BrokerDown):
            while True:
                await reading.item()
    async with tail(broker, rewound.position) as reading:
        again = (await reading.until(Truncated)).position
        assert again.epoch not in (first.epoch, epoch)
        assert again.offset == first.offset
    async with tail(late, first) as reading:
        assert (await reading.until(Truncated)).position == again
    for each in broker, late:
        await each.close()
