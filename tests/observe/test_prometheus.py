"""Prometheus metrics of streams, Hubs and interceptors, scraped over HTTP."""

from __future__ import annotations

import asyncio
import re
from contextlib import nullcontext

import pytest
from aiohttp import ClientPayloadError, web
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from aiohttp_interceptors import (
    STREAMS,
    BrokerDown,
    ConflatingQueue,
    Hub,
    Interceptor,
    SlidingQueue,
    StageRan,
    StreamClosed,
    StreamOpened,
    as_handler,
    before,
    event_stream,
    interceptor_middleware,
    on_error,
    setup,
    start_event_stream,
    start_topic_stream,
)
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.hub import replication
from aiohttp_interceptors.observe.prometheus import LIFETIME, PrometheusMetrics
from aiohttp_interceptors.testing import open_stream
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import TIMEOUT, until

pytestmark = BOTH_LOOPS
PREFIX = "aiohttp_interceptors_"


class Site:
    """A served application with metrics, as documented, and a registry of its own."""

    def __init__(self, *hubs, middlewares=(), limits=None, **options):
        self.metrics = PrometheusMetrics(CollectorRegistry(), **options)
        for hub in hubs:
            self.metrics.watch(hub)
        self.app = web.Application(middlewares=[interceptor_middleware(*middlewares)] if middlewares else [])
        setup(self.app, *hubs, observer=self.metrics.streams, **(limits or {}))
        self.app.router.add_get("/metrics", self.metrics.handler)

    def get(self, path, handler):
        self.app.router.add_get(path, handler)
        return self

    async def start(self, serve, session):
        self.session = session
        self.server = await serve(self.app)
        return self

    def stream(self, path="/", **options):
        return open_stream(self.session, self.server.url + path, **options)

    async def scrape(self, **headers):
        async with (
            asyncio.timeout(TIMEOUT),
            self.session.get(f"{self.server.url}/metrics", headers=headers) as response,
        ):
            assert response.status == 200
            return response.headers["Content-Type"], await response.text()

    async def samples(self):
        """Return the value of each sample, by its name without the prefix and the values of its labels."""
        _, text = await self.scrape()
        return {
            (sample.name.removeprefix(PREFIX), *values_of(sample.labels)): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    async def until(self, name, value=1.0):
        """Scrape until a sample has a value, and return all samples."""
        async with asyncio.timeout(TIMEOUT):
            while (samples := await self.samples()).get(name) != value:
                pass
        return samples


def values_of(labels):
    """Return the values of labels; first comes that of what is measured."""
    return [labels[name] for name in sorted(labels, key=lambda name: name not in {"route", "hub", "interceptor"})]


async def one_event(channel, context):
    await channel.put("x")
    channel.close()


async def waits(channel, context):
    await channel.wait_closed()


# Streams.


async def test_a_stream_is_counted_when_it_opens_and_when_it_closes(serve, session):
    async def ready(channel, context):
        await channel.put("x")
        await channel.wait_closed()

    site = await Site().get("/rooms/{room}", as_handler(start_event_stream(ready))).start(serve, session)
    route = "/rooms/{room}"
    async with site.stream("/rooms/1") as one, site.stream("/rooms/2") as two:
        for stream in (one, two):
            await stream.next()
        samples = await site.samples()
        assert samples["streams_open", route] == 2
        assert samples["streams_opened_total", route] == 2
        assert samples["stream_first_event_seconds_count", route] == 2
        assert ("streams_closed_total", route, "client_left") not in samples
    samples = await site.until(("streams_closed_total", route, "client_left"), 2)
    assert samples["streams_open", route] == 0
    assert samples["stream_lifetime_seconds_count", route] == 2
    assert samples["stream_events_total", route] == 2
    assert samples["stream_event_bytes_total", route] == 2 * len(b"data: x\n\n")
    assert samples["stream_sent_bytes_total", route] >= 2 * len(b"9\r\ndata: x\n\n\r\n")  # heartbeats may be more
    assert not [key for key in samples if "/rooms/1" in key]


async def test_streams_are_counted_by_the_reason_of_their_end(serve, session, raised):
    async def fails(channel, context):
        raise ValueError

    site = Site().get("/closed", as_handler(start_event_stream(one_event)))
    site.get("/error", as_handler(start_event_stream(fails)))
    site.get("/expired", as_handler(start_event_stream(waits, max_age=0.01)))
    await site.start(serve, session)
    for reason in ("closed", "error", "expired"):
        async with site.stream(f"/{reason}") as stream:
            with pytest.raises(ClientPayloadError) if reason == "error" else nullcontext():
                await stream.rest()
        await site.until(("streams_closed_total", f"/{reason}", reason))


async def test_refusals_are_counted_by_status(serve, session):
    site = Site(limits={"max_streams": 1}).get("/", as_handler(start_event_stream(waits)))
    await site.start(serve, session)
    async with site.stream(), site.stream() as refused:
        assert refused.response.status == 503
    samples = await site.until(("streams_closed_total", "/", "client_left"))
    assert samples["streams_refused_total", "/", "503"] == 1
    assert samples["streams_opened_total", "/"] == 1


@pytest.mark.parametrize("queue", [SlidingQueue, lambda size: ConflatingQueue(size)], ids=["sliding", "conflating"])
async def test_dropped_events_are_counted(serve, session, queue):
    async def ready(channel, context):
        for number in range(9):
            channel.put_nowait(f"{number}" * 100_000)
        channel.close()

    site = Site().get("/", as_handler(start_event_stream(ready, buffer=lambda: queue(1))))
    await site.start(serve, session)
    closed = []
    site.app[STREAMS]._observers.add(lambda fact: isinstance(fact, StreamClosed) and closed.append(fact))
    async with site.stream() as stream:
        await stream.rest()
    await until(lambda: closed)
    assert closed[0].dropped > 0
    assert (await site.samples())["stream_dropped_events_total", "/"] == closed[0].dropped


async def test_lifetimes_have_buckets_for_minutes_and_hours(serve, session):
    site = await Site().start(serve, session)
    for seconds in (0.5, 100, 5000, 100_000):
        site.metrics.streams(StreamClosed(1, "/", "closed", 0, 0, 0, seconds, "/"))
    samples = await site.samples()
    bounds = [f"{float(bound)}" for bound in LIFETIME]
    counts = [samples["stream_lifetime_seconds_bucket", "/", bound] for bound in [*bounds, "+Inf"]]
    assert counts == [1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4]
    assert bounds[-1] == "86400.0"


async def test_the_number_of_routes_is_limited(serve, session):
    site = await Site(max_label_values=3).start(serve, session)
    for number in range(50):
        site.metrics.streams(StreamOpened(number, "/", f"/{number}"))
    samples = await site.samples()
    opened = {key[1]: value for key, value in samples.items() if key[0] == "streams_opened_total"}
    assert opened == {"/0": 1, "/1": 1, "/2": 1, "other": 47}
    for number in range(50):  # a stream is closed under the label that it was opened under
        site.metrics.streams(StreamClosed(number, "/", "closed", 0, 0, 0, 1.0, f"/{number}"))
    samples = await site.samples()
    assert {value for key, value in samples.items() if key[0] == "streams_open"} == {0}


async def test_the_path_of_a_request_is_no_label(serve, session):
    site = await Site().get("/{tail:.*}", as_handler(start_event_stream(one_event))).start(serve, session)
    for path in ("/secret-token-1", "/secret-token-2"):
        async with site.stream(path) as stream:
            await stream.rest()
    await site.until(("streams_closed_total", "/{tail}", "closed"), 2)
    assert "secret" not in (await site.scrape())[1]


# The format.


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", r"text/plain; version=(0\.0\.4|1\.0\.0); charset=utf-8.*"),
        (
            "application/openmetrics-text; version=1.0.0",
            r"application/openmetrics-text; version=1\.0\.0; charset=utf-8.*",
        ),
    ],
)
async def test_the_handler_answers_in_the_format_that_is_asked_for(serve, session, accept, content_type):
    hub = Hub(MemoryBroker(MemoryLog()))
    site = await Site(hub).get("/", as_handler(start_event_stream(one_event))).start(serve, session)
    async with site.stream() as stream:
        await stream.rest()
    await site.until(("streams_closed_total", "/", "closed"))
    answered, text = await site.scrape(Accept=accept)
    assert re.fullmatch(content_type, answered)
    parse = parse_openmetrics if "openmetrics" in answered else text_string_to_metric_families
    names = {family.name for family in parse(text)}
    assert {f"{PREFIX}streams_open", f"{PREFIX}hub_subscribers", f"{PREFIX}stream_lifetime_seconds"} <= names
    await hub.close()


async def test_a_registry_takes_the_metrics_once():
    registry = CollectorRegistry()
    PrometheusMetrics(registry)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        PrometheusMetrics(registry)


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), ("1", TypeError), (1.5, TypeError)])
def test_the_limit_of_label_values_is_checked(value, error):
    with pytest.raises(error, match="max_label_values is"):
        PrometheusMetrics(CollectorRegistry(), max_label_values=value)


# Hubs.


async def test_a_hub_is_measured(serve, session):
    hub = Hub(history=2, latest=10, max_topics=1)
    site = await Site(hub).get("/", as_handler(start_topic_stream(hub, "a"))).start(serve, session)
    await hub.publish("b", "x")
    ids = [await hub.publish("a", str(number), key="k") for number in range(5)]
    async with site.stream(last_event_id=ids[0]) as stream:
        assert (await stream.next()).name == "gap"
        await until(lambda: hub.statistics().catching_up == 0)
        await hub.publish("a", "x")
        assert [(await stream.next()).data for _ in range(3)] == ["3", "4", "x"]
        samples = await site.samples()
    assert samples["hub_subscribers", "default", "caught_up"] == 1
    assert samples["hub_subscribers", "default", "catching_up"] == 0
    assert samples["hub_gaps_total", "default", "evicted"] == 1
    assert samples["hub_published_events_total", "default"] == 7
    assert samples["hub_evicted_records_total", "default"] == 1
    assert samples["hub_delivered_events_total", "default"] == 3
    assert samples["hub_flush_seconds_count", "default"] >= 1
    assert 0 < samples["hub_flush_seconds_sum", "default"] < 30
    assert samples["hub_records", "default"] == 2
    assert samples["hub_latest_records", "default"] == 3  # of the key, of none, and of the other topic
    assert samples["hub_topics", "default"] == 1
    assert samples["hub_groups", "default"] == 1
    assert samples["hub_history_bytes", "default"] == hub.statistics().bytes > 0
    assert samples["hub_runs", "default"] == 0
    assert samples["hub_ready", "default"] == 1
    assert not [key for key in samples if key[0].startswith(("hub_broker_up", "hub_broker_confirmation"))]


async def test_a_stream_that_has_not_caught_up_is_counted_as_such(serve, session):
    hub, going = Hub(), asyncio.Event()

    async def snapshot(context):
        await going.wait()
        return ["state"]

    site = Site(hub).get("/", as_handler(start_topic_stream(hub, "a", snapshot=snapshot)))
    await site.start(serve, session)
    async with site.stream() as stream:
        samples = await site.samples()
        assert samples["hub_subscribers", "default", "caught_up"] == 0
        assert samples["hub_subscribers", "default", "catching_up"] == 1
        going.set()
        await stream.next()
        samples = await site.until(("hub_subscribers", "default", "caught_up"))
        assert samples["hub_subscribers", "default", "catching_up"] == 0


async def test_a_run_is_a_gauge(serve, session):
    hub = Hub()
    site = await Site(hub).start(serve, session)
    going = asyncio.Event()

    async def generate():
        await going.wait()
        yield "x"

    await hub.run("job", generate())
    assert (await site.samples())["hub_runs", "default"] == 1
    going.set()
    await site.until(("hub_runs", "default"), 0)


async def test_a_broker_is_measured(serve, session, monkeypatch):
    monkeypatch.setattr(replication, "MAX_RECONNECT_DELAY", 0.005)
    log = MemoryLog()
    hub = Hub(MemoryBroker(log))
    site = await Site(hub).start(serve, session)
    await until(lambda: hub.ready)
    await hub.publish("a", "x")
    samples = await site.samples()
    assert samples["hub_broker_up", "default"] == 1
    assert samples["hub_publish_seconds_count", "default", "stored"] == 1
    assert samples["hub_broker_outages_total", "default"] == 0
    assert 0 <= samples["hub_broker_confirmation_age_seconds", "default"] < 30
    log.stop()
    with pytest.raises(BrokerDown):
        await hub.publish("a", "x")
    samples = await site.until(("hub_broker_up", "default"), 0)
    assert samples["hub_publish_seconds_count", "default", "down"] == 1
    assert samples["hub_broker_outages_total", "default"] == 1
    assert samples["hub_ready", "default"] == 0
    log.restart()
    await site.until(("hub_broker_up", "default"), 1)


async def test_several_hubs_have_names(serve, session):
    one, two = Hub(), Hub()
    metrics = PrometheusMetrics(CollectorRegistry())
    metrics.watch(one, "orders")
    with pytest.raises(ValueError, match="the name 'orders' is that of another Hub"):
        metrics.watch(two, "orders")
    metrics.watch(two, "chat")
    await two.publish("a", "x")
    value = metrics.registry.get_sample_value
    assert value(f"{PREFIX}hub_published_events_total", {"hub": "orders"}) == 0
    assert value(f"{PREFIX}hub_published_events_total", {"hub": "chat"}) == 1
    await two.close()


@pytest.mark.parametrize("arguments", [("hub",), (None,), (Hub(), 1)])
def test_what_is_watched_is_a_hub_with_a_name(arguments):
    with pytest.raises(TypeError, match=r"metrics\.watch takes a Hub, not|the name of a Hub is a str, not 1"):
        PrometheusMetrics(CollectorRegistry()).watch(*arguments)


# Stages.


async def test_stages_are_measured_by_interceptor(serve, session):
    metrics = PrometheusMetrics(CollectorRegistry())
    seen = []

    @before
    def auth(context):
        seen.append(context)

    async def page(request):
        return web.Response(text="x")

    app = web.Application(
        middlewares=[interceptor_middleware(metrics.stages, auth, Interceptor("timing", leave=seen.append))]
    )
    app.router.add_get("/", page)
    server = await serve(app)
    for _ in range(3):
        async with session.get(server.url) as response:
            assert await response.text() == "x"

    def value(interceptor, stage, suffix="count"):
        labels = {"interceptor": interceptor, "stage": stage}
        return metrics.registry.get_sample_value(f"{PREFIX}stage_seconds_{suffix}", labels)

    assert value("auth", "enter") == 3
    assert value("timing", "leave") == 3
    assert 0 < value("auth", "enter", "sum") < 30
    assert value("prometheus_stages", "enter") is None
    assert value("auth", "leave") is None


@pytest.mark.parametrize("kind", ["stage", "decorated", "handled"])
async def test_the_stage_in_which_a_stream_is_open_is_left_out(serve, session, kind):
    async def generate(context):
        yield "x"

    async def fails(channel, context):
        await channel.put("x")
        raise ValueError

    @before
    def auth(context):
        context["user"] = "alice"

    handlers = {
        "stage": as_handler(start_event_stream(one_event, name="stream")),
        "decorated": event_stream(generate),
        "handled": as_handler(
            on_error(ValueError)(lambda context, error: None), start_event_stream(fails, name="stream")
        ),
    }
    metrics = PrometheusMetrics(CollectorRegistry())
    timing = Interceptor("timing", leave=lambda context: None)
    app = web.Application(middlewares=[interceptor_middleware(metrics.stages, auth, timing)])
    setup(app)
    app.router.add_get("/", handlers[kind])
    server = await serve(app)
    await server.exchange("GET / HTTP/1.1\nHost: x\nConnection: close\n\n")
    await server.stop()
    names = {
        sample.labels["interceptor"]
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == f"{PREFIX}stage_seconds_count"
    }
    assert names - {"<lambda>"} == {"auth", "timing"}


def test_the_number_of_interceptors_is_limited():
    metrics = PrometheusMetrics(CollectorRegistry(), max_label_values=2)
    for number in range(9):
        metrics._observe_stage(StageRan(1, f"made at run time {number}", "enter", 0.1, {}, {}))
    names = {
        sample.labels["interceptor"]
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == f"{PREFIX}stage_seconds_count"
    }
    assert names == {"made at run time 0", "made at run time 1", "other"}
