"""Fail-over in a NATS cluster of three nodes: the stream's leader is killed or frozen."""

# ruff: noqa: F811  # fixtures are imported, and arguments of tests

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

import pytest
from nats.aio.client import Client

from aiohttp_interceptors.exceptions import BrokerDown, OutcomeUnknown
from aiohttp_interceptors.hub import replication
from aiohttp_interceptors.hub.broker import LogPosition
from tests.brokers.nats_site import jetstream
from tests.brokers.nats_topologies import NatsCluster
from tests.brokers.nodes import hub_on, persist, texts  # noqa: F401  # fixtures
from tests.hub.sink import live
from tests.waiting import until, within

ELECTION_TIMEOUT = 30.0  # seconds until a cluster has elected another leader, on a busy machine


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Reconnect almost without a delay."""
    monkeypatch.setattr(replication, "MAX_RECONNECT_DELAY", 0.05)


@pytest.fixture
def cluster(tmp_path):
    cluster = NatsCluster(tmp_path)
    cluster.start()
    yield cluster
    cluster.end()


@pytest.fixture
def node(cluster, hub_on):
    """Make Hubs, each of which stands for one process."""
    return lambda *, ready=True, **options: hub_on(cluster.broker(**options), ready=ready)


@pytest.mark.parametrize("fault", ["freeze", "kill"])
async def test_no_acknowledged_record_is_lost_when_the_leader_is_lost(cluster, node, fault):
    hub = await node(read_timeout=4)
    sink = await live(hub, "t")
    await hub.publish("t", "before")
    await texts(sink, 1)
    await asyncio.to_thread(cluster.replicated)
    await asyncio.to_thread(getattr(cluster, fault))
    await within(persist(hub, "after"), ELECTION_TIMEOUT)
    await within(texts(sink, 2), ELECTION_TIMEOUT)
    await until(lambda: hub.ready)
    assert sink.texts == ["before", "after"]


async def test_a_request_is_repeated_until_the_stream_has_a_leader(cluster):
    requests = []

    class Counting(Client):
        async def publish(self, subject, *arguments, **options):
            if "STREAM.INFO" in subject:
                requests.append(subject)
            await super().publish(subject, *arguments, **options)

    async def connect(**options):
        client = Counting()
        await client.connect(alone.url, **options)
        return client

    broker = cluster.broker()
    position = await within(broker.publish("t", b"x"), ELECTION_TIMEOUT)
    await broker.close()
    await asyncio.to_thread(cluster.replicated)
    alone = cluster.followers()[0]
    others = [node for node in cluster.nodes if node is not alone]
    for node in others:
        node.kill()
    follower = cluster.broker(connect, read_timeout=600)
    async with aclosing(follower.tail(None)) as items:
        reading = asyncio.create_task(anext(items))
        async with asyncio.timeout(ELECTION_TIMEOUT):
            while len(requests) < 3:
                await asyncio.sleep(0)
        for node in others:
            await asyncio.to_thread(node.restart)
        subscribed = await within(reading, ELECTION_TIMEOUT)
        assert subscribed.position == LogPosition(position.epoch, position.offset - 1)
    assert await within(first_after(follower, subscribed.position), ELECTION_TIMEOUT) == "t"
    await follower.close()


async def first_after(broker, position):
    """Return the topic of the entry after a position. Tails are repeated, as a new consumer may have no leader yet."""
    while True:
        try:
            async with aclosing(broker.tail(position)) as items:
                async for item in items:
                    if isinstance(item, Sequence):
                        return item[0].topic
        except BrokerDown:
            await asyncio.sleep(0.01)


async def test_replicas_are_applied_to_an_existing_stream_and_without_the_argument_kept(cluster, logged):
    for replicas, expected in (None, 1), (3, 3), (None, 3):
        broker = cluster.broker(replicas=replicas)
        await within(persisted(broker), ELECTION_TIMEOUT)
        await broker.close()
        async with jetstream(cluster.nodes[0].url) as js:
            assert (await js.stream_info(cluster.stream)).config.num_replicas == expected
    await asyncio.to_thread(cluster.replicated)
    changed = [entry for entry in logged if entry["event"] == "nats_stream_limits"]
    assert [(entry["num_replicas"], entry["had_num_replicas"], entry["error"]) for entry in changed] == [(3, 1, None)]


async def persisted(broker):
    """Publish until the record is acknowledged."""
    while True:
        try:
            return await broker.publish("t", b"x", idempotency_key="x")
        except (BrokerDown, OutcomeUnknown):
            await asyncio.sleep(0)
