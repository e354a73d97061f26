"""What Hubs on three nodes of NATS make of a leader that is killed or frozen."""

# ruff: noqa: F811  # a test has what it takes by name, and its fixtures are imported

from __future__ import annotations

import asyncio

import pytest

from aiohttp_interceptors.hub import supervision
from tests.brokers.nats_topologies import NatsCluster
from tests.brokers.nodes import hub_on, persist, texts  # noqa: F401  # fixtures
from tests.hub.outlet import live
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
    outlet = await live(hub, "t")
    await hub.publish("t", "before")
    await texts(outlet, 1)
    await asyncio.to_thread(cluster.replicated)
    await asyncio.to_thread(getattr(cluster, fault))
    await within(persist(hub, "after"), LONG)
    await within(texts(outlet, 2), LONG)
    await until(lambda: hub.ready)
    assert outlet.texts == ["before", "after"]
