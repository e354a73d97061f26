"""Prometheus metrics of an application's streams, Hubs and interceptors.

``pip install 'aiohttp-interceptors[prometheus]'``

    metrics = PrometheusMetrics()
    metrics.watch(hub)
    setup(app, hub, observer=metrics.streams)
    app.router.add_get("/metrics", metrics.handler)

Nothing is done per event: streams are counted when they open and close, a Hub when it flushes, and what a Hub holds is
read from its statistics at each scrape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from aiohttp import hdrs, web

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector
except ImportError as _error:
    raise ImportError(
        "PrometheusMetrics needs prometheus-client: pip install 'aiohttp-interceptors[prometheus]'"
    ) from _error

from .._checks import check_count
from ..chain import Context
from ..facts import (
    EventsDropped,
    HubDown,
    HubFact,
    HubFlushed,
    HubGap,
    HubPublished,
    StageRan,
    StreamClosed,
    StreamFact,
    StreamFirstEvent,
    StreamOpened,
    StreamRefused,
)
from ..hub.hub import Hub, HubStatistics
from ..interceptor import Interceptor
from ..web.commit import CommitGuard

__all__ = ["PrometheusMetrics"]


PREFIX = "aiohttp_interceptors_"
OTHER = "other"  # the label value of all values above the limit

# Upper bounds in seconds. A stream lasts for minutes or hours, and is then closed by max_age or a deploy.
LIFETIME = (1, 10, 60, 300, 900, 1800, 3600, 7200, 14400, 28800, 86400)
FIRST_EVENT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
STAGE = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5)
FLUSH = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1)
PUBLISH = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

_Value: TypeAlias = Callable[[HubStatistics], float | None]

_HUB_GAUGES: dict[str, tuple[str, _Value]] = {
    "topics": ("Topics that have records.", lambda hub: hub.topics),
    "records": ("Records in the history.", lambda hub: hub.records),
    "history_bytes": ("Size of the records in the history, as they are sent.", lambda hub: hub.bytes),
    "latest_records": ("Latest records of a topic and key.", lambda hub: hub.latest),
    "runs": ("Runs of this process that have not ended.", lambda hub: hub.runs),
    "groups": ("Groups of streams that are written the same bytes.", lambda hub: hub.groups),
    "broker_up": ("Whether the broker is connected and its history was read.", lambda hub: hub.connected),
    "broker_confirmation_age_seconds": (
        "Seconds since the broker last confirmed that this process has every record.",
        lambda hub: hub.confirmation_age,
    ),
}
_HUB_COUNTERS: dict[str, tuple[str, _Value]] = {
    "published_events": ("Events that were published by this process.", lambda hub: hub.published),
    "evicted_records": ("Records that were evicted because of max_topics or max_bytes.", lambda hub: hub.evicted),
    "delivered_events": ("Events that were written to streams, once per stream.", lambda hub: hub.delivered),
}


class PrometheusMetrics:
    """The metrics of an application. Their names begin with ``aiohttp_interceptors_``, see ``docs/operating.md``.

    Routes are labelled by their path with its parameters, never by the path of a request. A label has at most
    ``max_label_values`` values, and all others become ``"other"``.

    Args:
        registry: Where the metrics are registered. Default: the global registry of ``prometheus_client``.
        max_label_values: Number of routes, and of interceptors, that get a label value of their own.

    Raises:
        TypeError: ``max_label_values`` is not a whole number.
        ValueError: ``max_label_values`` is less than 1, or the registry has these metrics already.
    """

    def __init__(self, registry: CollectorRegistry | None = None, *, max_label_values: int = 100) -> None:
        check_count("max_label_values", max_label_values, 1)
        self.registry: CollectorRegistry = REGISTRY if registry is None else registry
        """The registry of the metrics."""
        self.stages: Interceptor[Context] = Interceptor("prometheus_stages", self._observe_stages)
        """An interceptor that measures the stages of those after it: put it first.

        It costs some microseconds per stage. The stage in which a stream is open is left out: it takes hours.
        """
        self._routes = _LabelValues(max_label_values)
        self._interceptors = _LabelValues(max_label_values)
        self._make_stream_metrics()
        self._make_hub_metrics()
        self._stage_seconds = self._histogram(
            "stage_seconds", "Duration of the stages of interceptors.", ("interceptor", "stage"), STAGE
        )

    def _make_stream_metrics(self) -> None:
        route = ("route",)
        self._open = Gauge(
            f"{PREFIX}streams_open", "Open streams.", route, registry=self.registry, multiprocess_mode="livesum"
        )
        self._opened = self._counter("streams_opened", "Streams that were opened.", route)
        self._closed = self._counter("streams_closed", "Streams that have ended, by reason.", (*route, "reason"))
        self._refused = self._counter("streams_refused", "Streams that were refused, by status.", (*route, "status"))
        self._lifetime = self._histogram(
            "stream_lifetime_seconds", "Time from the response headers to the end of a stream.", route, LIFETIME
        )
        self._first_event = self._histogram(
            "stream_first_event_seconds",
            "Time from the response headers, or the start of a generator, to the first event.",
            route,
            FIRST_EVENT,
        )
        self._events = self._counter("stream_events", "Events sent, counted when a stream has ended.", route)
        self._event_bytes = self._counter(
            "stream_event_bytes", "Bytes of events before compression, counted when a stream has ended.", route
        )
        self._sent_bytes = self._counter(
            "stream_sent_bytes", "Bytes of bodies as they were sent, counted when a stream has ended.", route
        )
        self._dropped = self._counter("stream_dropped_events", "Events that lossy queues have dropped.", route)

    def _make_hub_metrics(self) -> None:
        hub = ("hub",)
        self._gaps = self._counter("hub_gaps", "Gap events written to streams, by reason.", (*hub, "reason"))
        self._flush = self._histogram("hub_flush_seconds", "Duration of the flushes of a Hub.", hub, FLUSH)
        self._publish = self._histogram(
            "hub_publish_seconds", "Time until the broker has answered a publish.", (*hub, "outcome"), PUBLISH
        )
        self._outages = self._counter("hub_broker_outages", "Times that the broker was lost.", hub)
        self._hubs = _HubCollector()
        self.registry.register(self._hubs)

    def _counter(self, name: str, documentation: str, labels: Iterable[str]) -> Counter:
        return Counter(PREFIX + name, documentation, labels, registry=self.registry)

    def _histogram(self, name: str, documentation: str, labels: Iterable[str], buckets: tuple[float, ...]) -> Histogram:
        return Histogram(PREFIX + name, documentation, labels, registry=self.registry, buckets=buckets)

    # What an application uses.

    def streams(self, fact: StreamFact) -> None:
        """Count a fact of a stream. It is the observer for ``setup(app, observer=metrics.streams)``.

        Args:
            fact: What happened to a stream.
        """
        route = self._routes.limit(fact.route)
        if isinstance(fact, StreamOpened):
            self._open.labels(route).inc()
            self._opened.labels(route).inc()
        elif isinstance(fact, StreamFirstEvent):
            self._first_event.labels(route).observe(fact.seconds)
        elif isinstance(fact, StreamClosed):
            self._open.labels(route).dec()
            self._closed.labels(route, fact.reason).inc()
            self._lifetime.labels(route).observe(fact.seconds)
            self._events.labels(route).inc(fact.events)
            self._event_bytes.labels(route).inc(fact.bytes)
            self._sent_bytes.labels(route).inc(fact.bytes_sent)
        elif isinstance(fact, StreamRefused):
            self._refused.labels(route, str(fact.status)).inc()
        elif isinstance(fact, EventsDropped):
            self._dropped.labels(route).inc(fact.count)

    def watch(self, hub: Hub, name: str = "default") -> None:
        """Measure a Hub: observe its facts, and read its statistics at each scrape.

        Args:
            hub: The Hub, before it is first used.
            name: The value of the label ``hub``, which differs from that of other Hubs.

        Raises:
            TypeError: ``hub`` is not a Hub, or ``name`` is not a string.
            ValueError: Another Hub has this name.
        """
        if not isinstance(hub, Hub):
            raise TypeError(f"metrics.watch takes a Hub, not {hub!r}")
        if not isinstance(name, str):
            raise TypeError(f"the name of a Hub is a str, not {name!r}")
        self._hubs.add(hub, name)
        flush, outages = self._flush.labels(name), self._outages.labels(name)

        def observe(fact: HubFact) -> None:
            if isinstance(fact, HubFlushed):
                flush.observe(fact.seconds)
            elif isinstance(fact, HubPublished):
                self._publish.labels(name, fact.outcome).observe(fact.seconds)
            elif isinstance(fact, HubGap):
                self._gaps.labels(name, fact.reason).inc()
            elif isinstance(fact, HubDown):
                outages.inc()

        hub.add_observer(observe)

    async def handler(self, request: web.Request) -> web.Response:
        """Respond with the metrics of the registry, in the format that the request's ``Accept`` asks for.

        ``app.router.add_get("/metrics", metrics.handler)``

        Args:
            request: The request of the scraper.

        Returns:
            The response, in the text format of Prometheus or of OpenMetrics.
        """
        generate, content_type = choose_encoder(request.headers.get(hdrs.ACCEPT, ""))
        return web.Response(body=generate(self.registry), headers={hdrs.CONTENT_TYPE: content_type})

    # Stages.

    def _observe_stages(self, context: Context) -> None:
        context.add_observer(self._observe_stage)

    def _observe_stage(self, fact: StageRan) -> None:
        if fact.interceptor == self.stages.name or _has_opened_stream(fact):
            return
        self._stage_seconds.labels(self._interceptors.limit(fact.interceptor), fact.stage).observe(fact.duration)


def _has_opened_stream(fact: StageRan) -> bool:
    """Return whether an event stream was open while a stage ran."""
    response = fact.after.get("response")
    is_stream = isinstance(response, CommitGuard) and response._is_event_stream
    return is_stream and fact.before.get("response") is not response


class _LabelValues:
    """The values that a label has so far, and a limit for their number.

    A value stays what it was: it is admitted when it comes first, or never.
    """

    __slots__ = ("_limit", "_values")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: set[str] = set()

    def limit(self, value: str) -> str:
        """Return the value, or ``"other"`` if there are too many."""
        if value in self._values:
            return value
        if len(self._values) >= self._limit:
            return OTHER
        self._values.add(value)
        return value


class _HubCollector(Collector):
    """Reads the statistics of Hubs at each scrape."""

    def __init__(self) -> None:
        self._hubs: dict[str, Hub] = {}

    def add(self, hub: Hub, name: str) -> None:
        """Add a Hub. Raises ``ValueError`` if another one has the name."""
        if name in self._hubs:
            raise ValueError(f"the name {name!r} is that of another Hub; give each its own: metrics.watch(hub, name)")
        self._hubs[name] = hub

    def describe(self) -> Iterable[Metric]:
        """Return the metrics, without values."""
        return self._families([])

    def collect(self) -> Iterable[Metric]:
        """Return the metrics, with their values now."""
        return self._families([(name, hub.statistics(), hub.ready) for name, hub in list(self._hubs.items())])

    def _families(self, read: list[tuple[str, HubStatistics, bool]]) -> Iterator[Metric]:
        subscribers = GaugeMetricFamily(
            f"{PREFIX}hub_subscribers", "Open streams and listeners, by state.", labels=("hub", "state")
        )
        for label, hub, _ in read:
            subscribers.add_metric((label, "caught_up"), hub.subscribers - hub.catching_up)
            subscribers.add_metric((label, "catching_up"), hub.catching_up)
        yield subscribers
        ready = GaugeMetricFamily(
            f"{PREFIX}hub_ready", "Whether this process has received everything that was published.", labels=("hub",)
        )
        for label, _, is_ready in read:
            ready.add_metric((label,), float(is_ready))
        yield ready
        for name, (documentation, value) in _HUB_GAUGES.items():
            gauge = GaugeMetricFamily(f"{PREFIX}hub_{name}", documentation, labels=("hub",))
            for label, hub, _ in read:
                if (number := value(hub)) is not None:
                    gauge.add_metric((label,), float(number))
            yield gauge
        for name, (documentation, value) in _HUB_COUNTERS.items():
            counter = CounterMetricFamily(f"{PREFIX}hub_{name}", documentation, labels=("hub",))
            for label, hub, _ in read:
                counter.add_metric((label,), float(value(hub) or 0))
            yield counter
