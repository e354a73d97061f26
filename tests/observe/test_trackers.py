"""Error trackers report a failing stream like a failing handler."""

from __future__ import annotations

import pytest
from aiohttp import web
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from aiohttp_interceptors import (
    Hub,
    as_handler,
    event_stream,
    interceptor_middleware,
    on_error,
    start_event_stream,
    start_topic_stream,
)
from tests.sentry import sentry_events
from tests.telemetry import instrumentor
from tests.waiting import until

GET = "GET / HTTP/1.1\nHost: x\nConnection: close\n\n"


class Broken(Exception):
    """Raised after the first bytes."""


async def handler(request):
    """Stream with plain aiohttp, and fail."""
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"data: x\n\n")
    raise Broken


async def ready(channel, context):
    await channel.put("x")
    raise Broken


async def generate(context):
    yield "x"
    raise Broken


def snapshot(context):
    raise Broken


def application(name: str) -> web.Application:
    handlers = {
        "a handler": lambda: handler,
        "a channel": lambda: as_handler(start_event_stream(ready)),
        "a generator": lambda: event_stream(generate),
        "a snapshot": lambda: as_handler(start_topic_stream(Hub(), "a", snapshot=snapshot)),
        "handled": lambda: as_handler(on_error(Broken)(lambda context, error: None), start_event_stream(ready)),
    }
    app = web.Application(middlewares=[interceptor_middleware()])
    app.router.add_get("/", handlers[name]())
    return app


@pytest.fixture(scope="module")
def sentry():
    with sentry_events() as events:
        yield events


@pytest.fixture(autouse=True)
def _raised(raised):
    """Expect errors in aiohttp's log."""


async def sentry_event(serve, sentry, name: str) -> dict | None:
    sentry.clear()
    server = await serve(application(name))
    await server.exchange(GET)
    await server.stop()
    if not sentry:
        return None
    (event,) = sentry
    (exception,) = event["exception"]["values"]
    return {
        "type": exception["type"],
        "mechanism": exception["mechanism"],
        "level": event["level"],
        "url": event["request"]["url"].rpartition(":")[0],
        "method": event["request"]["method"],
    }


@pytest.mark.parametrize("name", ["a channel", "a generator", "a snapshot"])
async def test_sentry_reports_a_failing_stream_like_a_failing_handler(serve, sentry, name):
    of_a_handler = await sentry_event(serve, sentry, "a handler")
    assert of_a_handler["type"] == "Broken"
    assert await sentry_event(serve, sentry, name) == of_a_handler


async def test_sentry_gets_no_event_for_a_handled_exception(serve, sentry, logged):
    assert await sentry_event(serve, sentry, "handled") is None
    assert [line["event"] for line in logged if line["log_level"] == "error"] == ["stream_producer_failed"]


async def opentelemetry_span(serve, name: str) -> dict:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    instrumentation = instrumentor()
    instrumentation.instrument(tracer_provider=provider)  # replaces web.Application
    try:
        app = application(name)
    finally:
        instrumentation.uninstrument()
    server = await serve(app)
    await server.exchange(GET)
    await until(spans.get_finished_spans)
    await server.stop()
    (span,) = spans.get_finished_spans()
    provider.shutdown()
    return {
        "name": span.name,
        "status": (span.status.status_code, span.status.description),
        "events": [(event.name, event.attributes.get("exception.type")) for event in span.events],
        "attributes": {key: value for key, value in span.attributes.items() if "port" not in key and key != "http.url"},
    }


@pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning")
@pytest.mark.parametrize("name", ["a channel", "a generator", "a snapshot"])
async def test_opentelemetry_reports_a_failing_stream_like_a_failing_handler(serve, name):
    of_a_handler = await opentelemetry_span(serve, "a handler")
    assert of_a_handler["status"][0] is StatusCode.ERROR
    assert [event for event, _ in of_a_handler["events"]] == ["exception"]
    assert await opentelemetry_span(serve, name) == of_a_handler
