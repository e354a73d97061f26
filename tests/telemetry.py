"""The SDK of OpenTelemetry, which exports into memory, and the instrumentation of aiohttp on top of it."""

from __future__ import annotations

import warnings
from contextlib import contextmanager

import pytest
from aiohttp import web
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from aiohttp_interceptors import interceptor_middleware, setup
from aiohttp_interceptors.observe.opentelemetry import OpenTelemetryTraces
from tests.waiting import until

with warnings.catch_warnings():  # aiohttp 3.12 warns of the subclass of web.Application that the import makes
    warnings.simplefilter("ignore", DeprecationWarning)
    from opentelemetry.instrumentation import aiohttp_server


def instrumentor() -> aiohttp_server.AioHttpServerInstrumentor:
    """Return the instrumentation of aiohttp, or skip the test if its release has one provider for the process."""
    if not hasattr(aiohttp_server, "create_aiohttp_middleware"):
        pytest.skip("this release of the instrumentation of aiohttp takes no provider of tracers")
    return aiohttp_server.AioHttpServerInstrumentor()


class Telemetry:
    """The SDK, which exports into memory."""

    def __init__(self, views=(), **options):
        self.exporter = InMemorySpanExporter()
        self.tracer_provider = TracerProvider(**options)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meter_provider = MeterProvider([self.reader], views=views)
        self.traces = OpenTelemetryTraces(self.tracer_provider, self.meter_provider)

    def application(self, handler, *interceptors, **options):
        """Return an application with our interceptor and our observer, as documented."""
        app = web.Application(middlewares=[interceptor_middleware(self.traces.requests, *interceptors)])
        setup(app, observer=self.traces.streams, **options)
        app.router.add_get("/{name}", handler)
        return app

    @contextmanager
    def instrumented(self):
        """Instrument the applications that are made in the block, as a package that an operator installs does."""
        instrumentation = instrumentor()
        with pytest.MonkeyPatch.context() as patches:  # the global provider can be set once in a process
            patches.setattr("opentelemetry.metrics._internal._METER_PROVIDER", self.meter_provider)
            instrumentation.instrument(tracer_provider=self.tracer_provider)
        try:
            yield
        finally:
            instrumentation.uninstrument()

    async def spans(self, count=1):
        """Wait for finished spans, and return them."""
        await until(lambda: len(self.exporter.get_finished_spans()) >= count)
        return self.exporter.get_finished_spans()

    def points(self, name):
        """Return the data points of a metric."""
        data = self.reader.get_metrics_data()
        metrics = (
            []
            if data is None
            else [
                metric
                for resource in data.resource_metrics
                for scope in resource.scope_metrics
                for metric in scope.metrics
            ]
        )
        return [point for metric in metrics if metric.name == name for point in metric.data.data_points]

    def shutdown(self):
        self.tracer_provider.shutdown()
        self.meter_provider.shutdown()
