"""Hubs on a primary of PostgreSQL that is killed or frozen, and on the standby that is promoted."""

# ruff: noqa: F811  # fixtures are imported, and arguments of tests

from __future__ import annotations

import asyncio

import pytest

from aiohttp_interceptors.hub import replication
from tests.brokers.nodes import hub_on, persist, texts  # noqa: F401  # fixtures
from tests.brokers.postgres_topologies import StandbySite
from tests.hub.sink import live
from tests.waiting import until, within


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Reconnect immediately."""
    monkeypatch.setattr(replication, "MAX_RECONNECT_DELAY", 0.05)


@pytest.fixture
def site(tmp_path, postgres_template):
    site = StandbySite(tmp_path, template=postgres_template)
    site.start()
    yield site
    site.end()


@pytest.fixture
def node(site, hub_on):
    """Make Hubs, each with its broker, as one process has it."""
    return lambda *, ready=True, **options: hub_on(site.broker(**options), ready=ready)


@pytest.mark.parametrize("fault", ["freeze", "kill"])
async def test_hubs_reach_the_promoted_standby_when_the_first_host_is_gone(site, node, fault):
    hub = await node(publish_timeout=4, read_timeout=2)
    sink = await live(hub, "t")
    await hub.publish("t", "before")
    await texts(sink, 1)
    getattr(site, fault)()
    await asyncio.to_thread(site.promote)
    await within(persist(hub, "after"), 20)
    await texts(sink, 2)
    await until(lambda: hub.ready)
    assert sink.texts == ["before", "after"]
