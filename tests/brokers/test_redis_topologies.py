"""``RedisBroker`` with real Sentinels and with a real Cluster: finding the primary, and failovers."""

# ruff: noqa: F811  # fixtures are imported, and arguments of tests

from __future__ import annotations

import asyncio
import time

import pytest
import redis

from aiohttp_interceptors.brokers.redis import RedisBroker, cluster_node, sentinel
from aiohttp_interceptors.exceptions import BrokerDown, BrokerRefused, OutcomeUnknown
from aiohttp_interceptors.hub import replication
from tests.brokers.nodes import hub_on  # noqa: F401  # a fixture
from tests.brokers.redis_topologies import ClusterSite, SentinelSite, ask, wait_for
from tests.hub.sink import live
from tests.waiting import until

KEY = "{events}"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Reconnect soon."""
    monkeypatch.setattr(replication, "MAX_RECONNECT_DELAY", 0.1)


@pytest.fixture
def sentinels(tmp_path):
    site = SentinelSite(tmp_path)
    site.start()
    yield site
    site.stop()


@pytest.fixture
def cluster(tmp_path):
    site = ClusterSite(tmp_path, engine="redis", replicas=1)
    site.start()
    yield site
    site.stop()


@pytest.fixture(scope="module")
def lone_cluster(tmp_path_factory):
    """A Cluster without replicas, which tests share."""
    site = ClusterSite(tmp_path_factory.mktemp("cluster"))
    site.start()
    yield site
    site.stop()


async def in_thread(call, *arguments):
    """Call a function that blocks, while the Hubs run."""
    return await asyncio.to_thread(call, *arguments)


class Ledger:
    """Publishes with Hubs during a fault until each event is acknowledged, and records what their streams receive."""

    def __init__(self, *hubs) -> None:
        self.hubs = hubs
        self.acknowledged = {}  # the time of each
        self.sinks = []
        self.gap_times = {}  # when each stream received its latest gap, at the earliest
        self._running = True
        self._tasks = []

    async def __aenter__(self):
        self.sinks = [await live(hub, "t") for hub in self.hubs]
        self._tasks = [asyncio.create_task(self._publish(n, hub)) for n, hub in enumerate(self.hubs)]
        self._tasks.append(asyncio.create_task(self._watch()))
        await self.more()
        return self

    async def __aexit__(self, *error):
        self._running = False
        await asyncio.wait(self._tasks, timeout=60)
        assert all(task.done() for task in self._tasks)
        if not any(error):
            for task in self._tasks:
                task.result()

    async def _publish(self, number, hub):
        count = 0
        while self._running:
            await self._persist(hub, f"{number}.{count}")
            count += 1
            await asyncio.sleep(0.005)

    async def _persist(self, hub, word):
        async with asyncio.timeout(60):
            while word not in self.acknowledged:
                try:
                    await hub.publish("t", word, idempotency_key=word)
                except (BrokerDown, OutcomeUnknown):
                    await asyncio.sleep(0.02)
                else:
                    self.acknowledged[word] = time.monotonic()

    async def _watch(self):
        """Record the times of gaps: the time of the last look before each."""
        gaps = [0] * len(self.sinks)
        while self._running:
            before = time.monotonic()
            await asyncio.sleep(0.005)
            for n, sink in enumerate(self.sinks):
                count = sink.texts.count("gap")
                if count > gaps[n]:
                    gaps[n], self.gap_times[n] = count, before

    async def more(self):
        """Wait until every process has published ten more events, and each stream has received them."""
        async with asyncio.timeout(60):
            for number, _ in enumerate(self.hubs):
                count = self._count(number)
                while self._count(number) < count + 10:
                    await asyncio.sleep(0.02)
            latest = {max((word for word in self.acknowledged if word.startswith(f"{n}.")), key=_number)
                      for n, _ in enumerate(self.hubs)}  # fmt: skip
            while not all(latest <= set(sink.texts) for sink in self.sinks):
                await asyncio.sleep(0.02)

    def _count(self, number):
        return sum(word.startswith(f"{number}.") for word in self.acknowledged)

    async def check(self, *, repeated=0):
        """Check that a gap followed each missing event, and return how many are missing from each stream."""
        for n, hub in enumerate(self.hubs):
            await self._persist(hub, f"final {n}")
        missing = []
        for n, sink in enumerate(self.sinks):
            await until(lambda sink=sink: {f"final {n}" for n, _ in enumerate(self.hubs)} <= set(sink.texts))
            received = [text for text in sink.texts if text != "gap"]
            lost = set(self.acknowledged) - set(received)
            unreported = [word for word in lost if self.acknowledged[word] > self.gap_times.get(n, 0.0)]
            assert not unreported
            assert len(received) - len(set(received)) <= repeated
            missing.append(len(lost))
        return missing


def _number(word):
    return int(word.partition(".")[2])


OPTIONS = {"publish_timeout": 2.0, "read_timeout": 4.0}


async def two(hub_on, factory):
    return [await hub_on(RedisBroker(factory(), **OPTIONS)) for _ in range(2)]


# Sentinel.


async def test_a_requested_failover_repeats_no_event(tmp_path, hub_on):
    """With the recommended settings and two replicas. Events that were not replicated yet may be lost, with a gap."""
    site = SentinelSite(tmp_path, "--min-replicas-to-write", "1", "--min-replicas-max-lag", "3", replicas=2)
    site.start()
    try:
        async with Ledger(*await two(hub_on, lambda: sentinel(site.addresses, "main"))) as ledger:
            await in_thread(site.promote)
            await ledger.more()
        await ledger.check()
        assert all(sink.texts.count("gap") <= 2 for sink in ledger.sinks)  # one for each process on the old primary
    finally:
        site.stop()


async def test_events_that_a_replaced_primary_acknowledges_are_a_gap(sentinels, hub_on):
    """Without these settings it acknowledges events for ten seconds, until its Sentinels demote it."""
    async with Ledger(*await two(hub_on, lambda: sentinel(sentinels.addresses, "main"))) as ledger:
        old = sentinels.primary()
        await in_thread(sentinels.promote)
        # One process connects to the new primary, and the other one stays.
        await ledger.hubs[0]._broker._disconnect()
        await in_thread(sentinels.demoted, old)
        await ledger.more()
    await ledger.check(repeated=2000)
    for sink in ledger.sinks:
        received = [text for text in sink.texts if text != "gap"]
        assert "gap" in sink.texts
        before = sink.texts[: sink.texts.index("gap")]
        assert len(before) == len(set(before))
        assert len(received) > 20


async def test_a_frozen_primary_is_left_and_no_history_is_repeated(sentinels, hub_on):
    async with Ledger(*await two(hub_on, lambda: sentinel(sentinels.addresses, "main"))) as ledger:
        old = sentinels.primary()
        await in_thread(sentinels.replicated)
        old.freeze()
        await in_thread(sentinels.promoted, old)
        await ledger.more()
        old.thaw()
        await ledger.more()
        await in_thread(sentinels.demoted, old)
        await ledger.more()
    await ledger.check(repeated=10)  # far less than the history
    for sink in ledger.sinks:
        assert sink.texts.count("gap") <= 2  # events that it acknowledged to each process and did not replicate


async def test_a_frozen_sentinel_does_not_delay_publishing(sentinels):
    sentinels.sentinels[0].freeze()
    broker = RedisBroker(sentinel(sentinels.addresses, "main"))
    begun = time.monotonic()
    await broker.publish("t", b"x")
    assert time.monotonic() - begun < 4.0  # two of three agree sooner
    sentinels.sentinels[1].freeze()
    await broker._disconnect()
    await broker.publish("t", b"y")  # a single reply is used after half a second
    await broker.close()


async def test_a_sentinel_that_missed_a_failover_is_outvoted(sentinels):
    late = sentinels.sentinels[0]
    late.freeze()
    old = sentinels.primary()
    await in_thread(ask, sentinels.sentinels[1].port, "SENTINEL", "FAILOVER", "main")
    new = await in_thread(sentinels.promoted, old)
    client = await sentinel(sentinels.addresses, "main")()
    assert client.connection_pool.connection_kwargs["port"] == new.port
    await client.aclose()
    late.thaw()
    for order in (sentinels.addresses, sentinels.addresses[::-1]):
        client = await sentinel(order, "main")()
        assert client.connection_pool.connection_kwargs["port"] == new.port
        await client.aclose()


async def test_an_unknown_primary_and_unreachable_sentinels_are_reported(sentinels):
    broker = RedisBroker(sentinel(sentinels.addresses, "other"))
    with pytest.raises(BrokerDown, match=r"the primary 'other' is not known.*No such master"):
        await broker.publish("t", b"x")
    await broker.close()
    addresses = sentinels.addresses
    for one in sentinels.sentinels:
        one.kill()
    broker = RedisBroker(sentinel(addresses, "main"))
    with pytest.raises(BrokerDown, match=f"asked: 127.0.0.1:{addresses[0][1]}"):
        await broker.publish("t", b"x")
    await broker.close()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: sentinel([], "main"), ValueError, r"sentinels .* not \[\]"),
        (lambda: sentinel(["localhost:26379"], "main"), TypeError, "'localhost:26379'"),
        (lambda: sentinel([("localhost", "26379")], "main"), TypeError, "'26379'"),
        (lambda: sentinel([("localhost", 26379)], ""), ValueError, "name .* not ''"),
        (lambda: sentinel([("localhost", 26379)], "main", timeout=0), ValueError, "timeout .* not 0"),
        (lambda: cluster_node([]), ValueError, r"nodes .* not \[\]"),
        (lambda: cluster_node([("localhost", 6379)], stream="a{b}"), ValueError, "a{b}"),
        (lambda: cluster_node([("localhost", 6379)], timeout="1"), TypeError, "timeout .* not '1'"),
    ],
)
def test_invalid_arguments_of_a_factory_are_refused_with_the_value(make, error, words):
    with pytest.raises(error, match=words):
        make()


# Settings.


async def test_a_primary_with_a_replica_is_warned_of_once(sentinels, hub_on, logged):
    def lines():
        return [line for line in logged if line["event"] == "redis_may_lose"]

    factory = sentinel(sentinels.addresses, "main")
    hub = await hub_on(RedisBroker(factory, **OPTIONS))
    assert len(lines()) == 1
    assert "min-replicas-to-write" in lines()[0]["advice"]
    ask(sentinels.primary().port, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await until(lambda: not hub.ready)
    await until(lambda: hub.ready)
    assert len(lines()) == 1
    old = sentinels.primary()
    old.kill()
    await in_thread(sentinels.promoted, old)
    async with asyncio.timeout(30):
        while len(lines()) < 2:  # for the new primary, which has no replica, but Sentinels
            await asyncio.sleep(0.02)


async def test_a_primary_that_waits_for_its_replicas_is_not_warned_of(sentinels, hub_on, logged):
    ask(sentinels.primary().port, "CONFIG", "SET", "min-replicas-to-write", 1)
    await hub_on(RedisBroker(sentinel(sentinels.addresses, "main")))
    assert not [line for line in logged if line["event"] == "redis_may_lose"]


# Cluster.


async def test_a_requested_failover_of_the_node_with_the_slot_is_followed(cluster, hub_on):
    async with Ledger(*await two(hub_on, lambda: cluster_node(cluster.addresses[:3]))) as ledger:
        await in_thread(cluster.promote, KEY)
        await ledger.more()
    assert await ledger.check() == [0, 0]


async def test_a_killed_node_is_replaced(cluster, hub_on):
    async with Ledger(*await two(hub_on, lambda: cluster_node(cluster.addresses))) as ledger:
        old = cluster.owner(KEY)
        old.kill()
        await in_thread(cluster.promoted, KEY, old)
        await ledger.more()
    await ledger.check(repeated=10)


async def test_a_slot_that_moves_to_another_node_is_followed(lone_cluster, hub_on):
    site = lone_cluster
    async with Ledger(*await two(hub_on, lambda: cluster_node(site.addresses))) as ledger:
        for _ in range(2):
            old = site.owner(KEY)
            to = next(server for server in site.servers if server is not old)
            await in_thread(site.move, KEY, to)
            await ledger.more()
    assert await ledger.check() == [0, 0]


async def test_a_frozen_node_without_the_slot_does_not_delay_publishing(lone_cluster):
    site = lone_cluster
    frozen = next(server for server in site.servers if server is not site.owner(KEY))
    addresses = sorted(site.addresses, key=lambda address: address[1] != frozen.port)
    frozen.freeze()
    try:
        broker = RedisBroker(cluster_node(addresses))
        await broker.publish("t", b"x")
        await broker.close()
    finally:
        frozen.thaw()
    wait_for("the Cluster", lambda: all(b"cluster_state:ok" in cluster_info(server.port) for server in site.servers))


def cluster_info(port):
    with redis.Redis(port=port, socket_timeout=2.0) as client:
        return "".join(f"{key}:{value}\n" for key, value in client.cluster("INFO").items()).encode()


async def test_the_url_of_a_node_without_the_slot_is_refused_with_advice(lone_cluster):
    site = lone_cluster
    other = next(server for server in site.servers if server is not site.owner(KEY))
    broker = RedisBroker(other.url)
    with pytest.raises(BrokerRefused, match=r"brokers\.redis\.cluster_node.*MovedError"):
        await broker.publish("t", b"x")
    with pytest.raises(BrokerRefused, match="cluster_node"):
        await anext(broker.tail(None))
    await broker.close()
    broker = RedisBroker(site.owner(KEY).url)
    await broker.publish("t", b"x")
    await broker.close()


async def test_a_cluster_that_lacks_the_slot_is_down(tmp_path):
    site = ClusterSite(tmp_path)
    site.start()
    try:
        owner = site.owner(KEY)
        slot = ask(owner.port, "CLUSTER", "KEYSLOT", KEY)
        for server in site.servers:
            ask(server.port, "CLUSTER", "DELSLOTS", slot)
        broker = RedisBroker(cluster_node(site.addresses))
        with pytest.raises(BrokerDown, match=f"has the slot {slot} of 'events'"):
            await broker.publish("t", b"x")
        await broker.close()
        broker = RedisBroker(owner.url)
        with pytest.raises(BrokerDown, match="ClusterDownError"):
            await broker.publish("t", b"x")
        await broker.close()
    finally:
        site.stop()
