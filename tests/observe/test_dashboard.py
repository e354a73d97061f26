"""The dashboard and the page on operating name the metrics that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, CollectorRegistry

from aiohttp_interceptors import Hub
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.facts import (
    EventsDropped,
    HubFlushed,
    HubGap,
    HubPublished,
    StageRan,
    StreamClosed,
    StreamFirstEvent,
    StreamOpened,
    StreamRefused,
)
from aiohttp_interceptors.observe.prometheus import PrometheusMetrics
from tests.waiting import until

DOCS = Path(__file__).parents[2] / "docs"
DASHBOARD = json.loads((DOCS / "grafana.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
NAME = re.compile(r"aiohttp_interceptors_\w+")
OF_PROMETHEUS = {"le", "instance"}


@pytest.fixture
async def samples():
    """Return the labels of each sample, by name, after each fact was told once."""
    metrics = PrometheusMetrics(CollectorRegistry())
    hub = Hub(MemoryBroker(MemoryLog()))
    metrics.watch(hub)
    for fact in (
        StreamOpened(1, "/", "/"),
        StreamFirstEvent(1, "/", "/", 1.0),
        EventsDropped(1, "/", 1, 1, "/"),
        StreamClosed(1, "/", "closed", 1, 1, 1, 1.0, "/"),
        StreamRefused(1, "/", 503, "x", route="/"),
    ):
        metrics.streams(fact)
    for fact in (HubFlushed(0.1, 1, 1), HubPublished(0.1, "stored"), HubGap("evicted")):
        hub._dispatcher.observers.tell(fact)
    metrics._observe_stage(StageRan(1, "auth", "enter", 0.1, {}, {}))
    hub.open()
    await until(lambda: hub.ready)
    found = {sample.name: set(sample.labels) for family in metrics.registry.collect() for sample in family.samples}
    await hub.close()
    return found


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_a_panel_uses_metrics_and_labels_that_there_are(expression, samples):
    names = NAME.findall(expression)
    assert names
    for name in names:
        assert name in samples
        used = re.findall(r"by \(([^)]*)\)", expression)
        labels = {label.strip() for group in used for label in group.split(",")}
        assert labels <= samples[name] | OF_PROMETHEUS


@pytest.mark.parametrize("panel", PANELS, ids=[panel["title"] for panel in PANELS])
def test_the_legend_of_a_panel_uses_labels_that_its_expression_keeps(panel):
    for target in panel["targets"]:
        kept = set(re.split(r"[\s,]+", " ".join(re.findall(r"by \(([^)]*)\)", target["expr"]))))
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= kept


def base(name):
    """Return the name of a metric, without the suffix of a histogram's sample."""
    return re.sub(r"_(bucket|sum|count)$", "", name)


def test_the_dashboard_shows_every_metric(samples):
    shown = {base(name) for expression in EXPRESSIONS for name in NAME.findall(expression)}
    assert {base(name) for name in samples if not name.endswith("_created")} == shown


def test_the_page_on_operating_lists_every_metric_with_its_labels(samples):
    page = (DOCS / "operating.md").read_text()
    rows = re.findall(r"^\| `([a-z_]+)` \| ([^|]*) \|", page, re.MULTILINE)
    listed = {f"aiohttp_interceptors_{name}": set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    expected = {
        base(name): labels - {"le"} for name, labels in samples.items() if not name.endswith(("_created", "_bucket"))
    }
    assert listed == expected


PROGRAMS = re.findall(r"```python\n(.*?)```", (DOCS / "operating.md").read_text(), re.DOTALL)


@pytest.fixture
def _registered():
    """Remove what a test has registered in the global registry."""
    before = set(REGISTRY._collector_to_names)
    yield
    for collector in set(REGISTRY._collector_to_names) - before:
        REGISTRY.unregister(collector)


@pytest.mark.usefixtures("_registered")
async def test_the_programs_of_the_page_on_operating_run(serve, session):
    metered: dict[str, object] = {}
    exec(PROGRAMS[0], metered)
    server = await serve(metered["app"])
    async with session.get(f"{server.url}/metrics") as response:
        assert 'aiohttp_interceptors_hub_ready{hub="default"} 1.0' in await response.text()
    traced: dict[str, object] = {}
    exec(PROGRAMS[1], traced)
    server = await serve(traced["app"])
    async with session.get(f"{server.url}/nowhere") as response:
        assert response.status == 404
    readers = []
    exec(PROGRAMS[2], {"readers": readers})
    assert len(PROGRAMS) == 3


def test_panels_have_ids_of_their_own_and_do_not_overlap():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for grid in [panel["gridPos"]]
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
