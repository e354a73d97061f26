"""Spans and metrics of streams, with the SDK of OpenTelemetry and with its instrumentation of aiohttp."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from opentelemetry import trace
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from aiohttp_interceptors import (
    Hub,
    as_handler,
    before,
    on_error,
    start_event_stream,
    start_topic_stream,
)
from aiohttp_interceptors.observe.opentelemetry import LIFETIME
from aiohttp_interceptors.testing import open_stream
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.telemetry import Telemetry
from tests.waiting import until, within

pytestmark = [*BOTH_LOOPS, pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning")]
TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def telemetry():
    made = Telemetry()
    yield made
    made.shutdown()


async def one_event(channel, context):
    await channel.put("x")
    channel.close()


async def one_event_then_waits(channel, context):
    await channel.put("x")
    await channel.wait_closed()


STREAM = as_handler(start_event_stream(one_event))
OPEN_STREAM = as_handler(start_event_stream(one_event_then_waits))
DURATION = "aiohttp_interceptors.stream.duration"


async def page(request):
    return web.Response(text="page")


# Our own server span.


async def test_the_server_span_of_a_stream_ends_when_the_headers_are_sent(serve, session, telemetry):
    server = await serve(telemetry.application(OPEN_STREAM))
    async with open_stream(session, f"{server.url}/events") as stream:
        await stream.next()
        (span,) = await telemetry.spans()  # although the stream is open
        assert (span.name, span.kind) == ("GET /{name}", SpanKind.SERVER)
        assert span.attributes["http.response.status_code"] == 200
        assert span.status.status_code is StatusCode.UNSET
    assert len(await telemetry.spans(2)) == 2


@pytest.mark.parametrize(
    ("header", "attributes"),
    [
        ("Host: x:99999", {}),
        ("Host: a b", {}),
        ("Host: [", {}),
        ("Host: \udca0\u02f2", {}),
        ("Host: x:80\r\nUser-Agent: \udcff", {"server.address": "x", "user_agent.original": "?"}),
        ("Host: x:81\r\nBaggage: a=\udcff", {"server.address": "x", "server.port": 81}),
        ("Host: x:81\r\nTraceparent: 00-\udcff-1-01", {"server.address": "x"}),
    ],
)
async def test_a_request_whose_headers_are_no_text_or_no_host_is_answered_and_exported(
    serve, telemetry, header, attributes
):
    """An exporter cannot encode a surrogate, and loses all spans of its batch."""
    server = await serve(telemetry.application(page))
    raw = await server.connect("")
    raw.writer.write(f"GET /page HTTP/1.1\r\n{header}\r\n\r\n".encode(errors="surrogateescape"))
    answer = await raw.until(b"\r\n\r\n")
    await raw.close()
    if answer.startswith(b"HTTP/1.1 400 "):  # aiohttp knows that it is no host
        return
    assert answer.startswith(b"HTTP/1.1 200 ")
    (span,) = await telemetry.spans()
    assert attributes.items() <= span.attributes.items()
    for value in span.attributes.values():
        str(value).encode()


async def test_a_linked_span_tells_how_a_stream_went(serve, session, telemetry):
    server = await serve(telemetry.application(STREAM))
    async with open_stream(session, f"{server.url}/events") as stream:
        await stream.rest()
    request, stream_span = await telemetry.spans(2)
    assert (stream_span.name, stream_span.kind) == ("stream /{name}", SpanKind.INTERNAL)
    attributes = dict(stream_span.attributes)
    sent = attributes.pop("aiohttp_interceptors.stream.bytes_sent")
    assert sent >= len(b"9\r\ndata: x\n\n\r\n0\r\n\r\n")  # a heartbeat may come first
    assert attributes == {
        "http.route": "/{name}",
        "aiohttp_interceptors.stream.reason": "closed",
        "aiohttp_interceptors.stream.events": 1,
        "aiohttp_interceptors.stream.bytes": len(b"data: x\n\n"),
        "aiohttp_interceptors.stream.dropped": 0,
    }
    assert [link.context for link in stream_span.links] == [request.context]
    assert stream_span.parent is None
    assert stream_span.context.trace_id != request.context.trace_id
    assert [event.name for event in stream_span.events] == ["aiohttp_interceptors.stream.first_event"]


async def test_a_request_has_the_attributes_of_the_semantic_conventions(serve, session, telemetry):
    server = await serve(telemetry.application(page))
    headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "User-Agent": "a client"}
    async with session.get(f"{server.url}/page?secret=1", headers=headers) as response:
        assert response.status == 200
    (span,) = await telemetry.spans()
    assert dict(span.attributes) == {
        "http.request.method": "GET",
        "http.route": "/{name}",
        "http.response.status_code": 200,
        "url.path": "/page",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "server.address": "127.0.0.1",
        "server.port": server.port,
        "client.address": "127.0.0.1",
        "user_agent.original": "a client",
    }
    assert f"{span.context.trace_id:032x}" == TRACE_ID
    assert f"{span.parent.span_id:016x}" == PARENT_ID


async def test_an_unknown_method_is_not_part_of_a_name(serve, telemetry):
    app = telemetry.application(page)
    app.router.add_route("PROPFIND", "/pot", page)
    server = await serve(app)
    await server.exchange("PROPFIND /pot HTTP/1.1\nHost: x\nConnection: close\n\n")
    (span,) = await telemetry.spans()
    assert span.name == "HTTP /pot"
    assert span.attributes["http.request.method"] == "_OTHER"
    assert span.attributes["http.request.method_original"] == "PROPFIND"
    assert "user_agent.original" not in span.attributes


async def test_a_span_of_a_handler_is_a_child_of_the_server_span(serve, session, telemetry):
    tracer = telemetry.tracer_provider.get_tracer("application")

    async def handler(request):
        with tracer.start_as_current_span("query"):
            return web.Response()

    server = await serve(telemetry.application(handler))
    async with session.get(f"{server.url}/page"):
        pass
    query, request = await telemetry.spans(2)
    assert query.parent.span_id == request.context.span_id


@pytest.mark.parametrize(("status", "is_error"), [(404, False), (503, True)])
@pytest.mark.parametrize("how", ["raised", "returned"])
async def test_the_status_of_a_response_is_told(serve, session, telemetry, status, is_error, how):
    async def handler(request):
        if how == "returned":
            return web.Response(status=status)
        raise {404: web.HTTPNotFound, 503: web.HTTPServiceUnavailable}[status]

    server = await serve(telemetry.application(handler))
    async with session.get(f"{server.url}/page") as response:
        assert response.status == status
    (span,) = await telemetry.spans()
    assert span.attributes["http.response.status_code"] == status
    assert span.attributes.get("error.type") == (str(status) if is_error else None)
    assert span.status.status_code is (StatusCode.ERROR if is_error else StatusCode.UNSET)


async def test_an_exception_of_a_handler_is_told(serve, session, telemetry, raised):
    async def handler(request):
        raise ZeroDivisionError("boom")

    server = await serve(telemetry.application(handler))
    async with session.get(f"{server.url}/page") as response:
        assert response.status == 500
    (span,) = await telemetry.spans()
    assert span.attributes["http.response.status_code"] == 500
    assert span.attributes["error.type"] == "ZeroDivisionError"
    assert span.status.status_code is StatusCode.ERROR
    assert [event.attributes["exception.type"] for event in span.events] == ["ZeroDivisionError"]


async def test_a_refused_stream_is_a_request_with_its_status(serve, session, telemetry):
    server = await serve(telemetry.application(STREAM, max_streams=0))
    async with open_stream(session, f"{server.url}/events") as stream:
        assert stream.response.status == 503
    (span,) = await telemetry.spans()
    assert span.attributes["http.response.status_code"] == 503


async def test_a_cancelled_request_ends_its_span(serve, telemetry):
    started = asyncio.Event()

    async def handler(request):
        started.set()
        await asyncio.get_running_loop().create_future()

    server = await serve(telemetry.application(handler), handler_cancellation=True)
    raw = await server.connect("GET /page HTTP/1.1\nHost: x\n\n")
    await within(started.wait())
    await raw.close()
    (span,) = await telemetry.spans()
    assert "http.response.status_code" not in span.attributes
    assert span.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("handled", [False, True])
async def test_the_error_of_a_producer_is_in_the_span_of_the_stream(serve, telemetry, raised, handled):
    async def fails(channel, context):
        await channel.put("x")
        raise ZeroDivisionError("boom")

    stages = [start_event_stream(fails)]
    if handled:
        stages.insert(0, on_error(ZeroDivisionError)(lambda context, error: None))
    server = await serve(telemetry.application(as_handler(*stages)))
    await server.exchange("GET /events HTTP/1.1\nHost: x\nConnection: close\n\n")
    request, stream = await telemetry.spans(2)
    assert request.status.status_code is StatusCode.UNSET
    assert request.attributes["http.response.status_code"] == 200
    assert stream.status.status_code is StatusCode.ERROR
    assert stream.attributes["error.type"] == "ZeroDivisionError"
    assert stream.attributes["aiohttp_interceptors.stream.reason"] == "error"
    assert "exception" in [event.name for event in stream.events]


async def test_a_second_end_of_a_span_is_not_logged(serve, session, telemetry, caplog):
    server = await serve(telemetry.application(STREAM))
    async with open_stream(session, f"{server.url}/events") as stream:
        await stream.rest()
    await telemetry.spans(2)
    await server.stop()
    assert [record for record in caplog.records if record.name.startswith("opentelemetry")] == []


async def test_a_sampler_that_drops_requests_is_respected(serve, session, caplog):
    telemetry = Telemetry(sampler=ALWAYS_OFF)
    server = await serve(telemetry.application(STREAM))
    async with open_stream(session, f"{server.url}/events") as stream:
        assert len(await stream.rest()) == 1
    await until(lambda: telemetry.points(DURATION))
    assert telemetry.exporter.get_finished_spans() == ()
    telemetry.shutdown()


async def test_a_span_that_an_interceptor_has_made_current_is_the_link(serve, session, telemetry):
    """Such as one of another library around a part of the application."""
    tracer = telemetry.tracer_provider.get_tracer("application")
    spans = []

    @before
    def part(context):
        spans.append(tracer.start_span("part"))
        trace.context_api.attach(trace.set_span_in_context(spans[0]))

    server = await serve(telemetry.application(STREAM, part))
    async with open_stream(session, f"{server.url}/events") as stream:
        await stream.rest()
    request, stream_span = await telemetry.spans(2)
    assert request.kind is SpanKind.SERVER
    assert [link.context for link in stream_span.links] == [spans[0].get_span_context()]
    spans[0].end()


# Metrics.


async def test_the_lifetime_of_streams_has_buckets_for_minutes_and_hours(serve, session, telemetry):
    hub = Hub()
    app = telemetry.application(as_handler(start_topic_stream(hub, "a")))
    server = await serve(app)
    async with open_stream(session, f"{server.url}/events") as stream:
        await until(lambda: not hub.statistics().catching_up)
        await hub.publish("a", "x")
        await stream.next()
    await until(lambda: telemetry.points(DURATION))
    (point,) = telemetry.points(DURATION)
    assert dict(point.attributes) == {"http.route": "/{name}", "aiohttp_interceptors.stream.reason": "client_left"}
    assert point.count == 1
    assert point.explicit_bounds == LIFETIME


async def test_many_streams_leave_no_span_behind(serve, session, telemetry):
    server = await serve(telemetry.application(STREAM))
    for _ in range(5):
        async with open_stream(session, f"{server.url}/events") as stream:
            await stream.rest()
    await telemetry.spans(10)
    assert telemetry.traces._open == {}


# With the instrumentation of aiohttp.


async def test_the_span_of_another_instrumentation_is_not_touched(serve, session, telemetry):
    with telemetry.instrumented():
        app = telemetry.application(OPEN_STREAM)
    server = await serve(app)
    async with open_stream(session, f"{server.url}/events") as stream:
        await stream.next()
        assert telemetry.exporter.get_finished_spans() == ()  # it is open as long as the stream
    spans = await telemetry.spans(2)
    (request,) = [span for span in spans if span.kind is SpanKind.SERVER]
    (stream_span,) = [span for span in spans if span.kind is SpanKind.INTERNAL]
    assert request.instrumentation_scope.name == "opentelemetry.instrumentation.aiohttp_server"
    assert not [name for name in request.attributes if name.startswith("aiohttp_interceptors")]
    assert [link.context for link in stream_span.links] == [request.context]
    assert stream_span.attributes["aiohttp_interceptors.stream.reason"] == "client_left"


def seconds_of(telemetry):
    """Return the number of requests in the instrumentation's duration histogram."""
    names = ("http.server.duration", "http.server.request.duration")
    return sum(point.count for name in names for point in telemetry.points(name))


@pytest.mark.parametrize("excluded", [False, True])
async def test_excluded_urls_keep_streams_out_of_the_duration_of_requests(
    serve, session, telemetry, monkeypatch, excluded
):
    """The exclusion of docs/operating.md. Our own server span takes the place of the missing one."""
    if excluded:
        monkeypatch.setenv("OTEL_PYTHON_AIOHTTP_SERVER_EXCLUDED_URLS", "/events$")
    with telemetry.instrumented():
        app = telemetry.application(STREAM)
        app.router.add_get("/pages/{name}", page)
    server = await serve(app)
    async with open_stream(session, f"{server.url}/events") as stream:
        await stream.rest()
    async with session.get(f"{server.url}/pages/one"):
        pass
    spans = await telemetry.spans(3)
    await server.stop()
    assert seconds_of(telemetry) == (1 if excluded else 2)
    assert len(telemetry.points(DURATION)) == 1
    scopes = {span.name: span.instrumentation_scope.name for span in spans if span.kind is SpanKind.SERVER}
    foreign = "opentelemetry.instrumentation.aiohttp_server"
    assert scopes == {"GET /{name}": "aiohttp_interceptors" if excluded else foreign, "GET /pages/{name}": foreign}


async def test_a_view_gives_the_duration_of_requests_buckets_for_streams(serve, session):
    """The view of docs/operating.md."""
    view = View(
        instrument_name="http.server.*duration", aggregation=ExplicitBucketHistogramAggregation([100, 1000, 3_600_000])
    )
    telemetry = Telemetry(views=[view])
    with telemetry.instrumented():
        app = telemetry.application(STREAM)
    server = await serve(app)
    async with open_stream(session, f"{server.url}/events") as stream:
        await stream.rest()
    await telemetry.spans(2)
    await server.stop()
    (point,) = telemetry.points("http.server.duration")
    assert point.explicit_bounds == (100, 1000, 3_600_000)
    assert telemetry.points(DURATION)[0].explicit_bounds == LIFETIME
    telemetry.shutdown()
