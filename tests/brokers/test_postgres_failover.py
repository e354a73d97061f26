"""What Hubs on PostgreSQL make of a primary that is killed or frozen, and a standby that takes over."""

# ruff: noqa: F811  # a test has what it takes by name, and its fixtures are imported

from __future__ import annotations

import asyncio

import pytest
from tests.hub.sink import live

from aiohttp_interceptors.hub import replication as supervision
from tests.brokers.nodes import hub_on, persist, texts  # noqa: F401  # fixtures
from tests.brokers.postgres_topologies import StandbySite
from tests.waiting import until, within


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A server is back at once, and so is who follows it."""
    monkeypatch.setattr(supervision, "LONGEST_DELAY", 0.05)


@pytest.fixture
def site(tmp_path, postgres_template):
    site = StandbySite(tmp_path, template=postgres_template)
    site.start()
    yield site
    site.end()


@pytest.fixture
def node(site, hub_on):
    """Make Hubs, each as one process has it."""
    return lambda *, ready=True, **options: hub_on(site.broker(**options), ready=ready)


@pytest.mark.parametrize("fault", ["freeze", "kill"])
async def test_a_promoted_second_host_is_reached_past_a_first_one_that_is_gone(site, node, fault):
    hub = await node(publish_timeout=4, silence=2)
    sink = await live(hub, "t")
    await hub.publish("t", "before")
    await texts(sink, 1)
    getattr(site, fault)()
    await asyncio.to_thread(site.promote)
    await within(persist(hub, "after"), 20)
    await texts(sink, 2)
    await until(lambda: hub.ready)
    assert sink.texts == ["before", "after"]
