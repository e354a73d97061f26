"""What Hubs on three nodes of NATS make of a leader that is killed or frozen."""

# ruff: noqa: F811  # a test has what it takes by name, and its fixtures are imported

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

import pytest
from nats.aio.client import Client
from tests.hub.sink import live

from aiohttp_interceptors.exceptions import BrokerDown, OutcomeUnknown
from aiohttp_interceptors.hub import replication as supervision
from aiohttp_interceptors.hub.broker import LogPosition
from tests.brokers.nats_site import jetstream
from tests.brokers.nats_topologies import NatsCluster
from tests.brokers.nodes import hub_on, persist, texts  # noqa: F401  # fixtures
from tests.waiting import until, within

LONG = 30.0  # seconds in which a cluster has elected another leader, on a machine that has others


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A server is back at once, and so is who follows it."""
    monkeypatch.setattr(supervision, "LONGEST_DELAY", 0.05)


@pytest.fixture
def cluster(tmp_path):
    cluster = NatsCluster(tmp_path)
    cluster.start()
    yield cluster
    cluster.end()


@pytest.fixture
def node(cluster, hub_on):
    """Make Hubs, each as one process has it."""
    return lambda *, ready=True, **options: hub_on(cluster.broker(**options), ready=ready)


@pytest.mark.parametrize("fault", ["freeze", "kill"])
async def test_a_cluster_whose_leader_is_gone_goes_on_with_all_that_was_acknowledged(cluster, node, fault):
    hub = await node(silence=4)
    sink = await live(hub, "t")
    await hub.publish("t", "before")
    await texts(sink, 1)
    await asyncio.to_thread(cluster.replicated)
    await asyncio.to_thread(getattr(cluster, fault))
    await within(persist(hub, "after"), LONG)
    await within(texts(sink, 2), LONG)
    await until(lambda: hub.ready)
    assert sink.texts == ["before", "after"]


async def test_what_is_asked_while_nobody_leads_is_asked_again_and_answered_when_somebody_does(cluster):
    asked = []

    class Counting(Client):
        async def publish(self, subject, *arguments, **options):
            if "STREAM.INFO" in subject:
                asked.append(subject)
            await super().publish(subject, *arguments, **options)

    async def connect(**options):
        client = Counting()
        await client.connect(alone.url, **options)
        return client

    broker = cluster.broker()
    position = await within(broker.publish("t", b"x"), LONG)
    await broker.close()
    await asyncio.to_thread(cluster.replicated)
    alone = cluster.followers()[0]
    others = [node for node in cluster.nodes if node is not alone]
    for node in others:
        node.kill()
    follower = cluster.broker(connect, silence=600)
    async with aclosing(follower.tail(None)) as items:
        reading = asyncio.create_task(anext(items))
        async with asyncio.timeout(LONG):
            while len(asked) < 3:
                await asyncio.sleep(0)
        for node in others:
            await asyncio.to_thread(node.restart)
        joined = await within(reading, LONG)
        assert joined.position == LogPosition(position.epoch, position.offset - 1)
    assert await within(first_after(follower, joined.position), LONG) == "t"
    await follower.close()


async def first_after(broker, position):
    """Return the topic of the entry after a place. A consumer may have no leader yet, and the next tail has one."""
    while True:
        try:
            async with aclosing(broker.tail(position)) as items:
                async for item in items:
                    if isinstance(item, Sequence):
                        return item[0].topic
        except BrokerDown:
            await asyncio.sleep(0.01)


async def test_replicas_are_applied_to_a_stream_that_has_fewer_and_left_to_it_when_none_are_said(cluster, logged):
    for replicas, expected in (None, 1), (3, 3), (None, 3):
        broker = cluster.broker(replicas=replicas)
        await within(persisted(broker), LONG)
        await broker.close()
        async with jetstream(cluster.nodes[0].url) as js:
            assert (await js.stream_info(cluster.stream)).config.num_replicas == expected
    await asyncio.to_thread(cluster.replicated)
    changed = [entry for entry in logged if entry["event"] == "nats_stream_limits"]
    assert [(entry["num_replicas"], entry["had_num_replicas"], entry["error"]) for entry in changed] == [(3, 1, None)]


async def persisted(broker):
    """Publish until it is known to be stored."""
    while True:
        try:
            return await broker.publish("t", b"x", idempotency_key="x")
        except (BrokerDown, OutcomeUnknown):
            await asyncio.sleep(0)
