"""Sentry and OpenTelemetry around an application with all the other packages."""

from __future__ import annotations

import pytest
from aiohttp import web
from opentelemetry.trace import SpanKind, StatusCode
from sentry_sdk.integrations.dedupe import DedupeIntegration
from sentry_sdk.integrations.logging import LoggingIntegration

from aiohttp_interceptors import CloseReason, StreamClosed, on_error
from aiohttp_interceptors.testing import open_stream
from tests.ecosystem.site import MARKS, Broken, Site
from tests.loops import event_loop_policy  # noqa: F401  # a fixture
from tests.sentry import sentry_events
from tests.telemetry import Telemetry
from tests.waiting import until

pytestmark = [*MARKS, pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning")]


@pytest.fixture
def sentry():
    """Run Sentry with the integrations that it has by default and that hear of errors."""
    with sentry_events(LoggingIntegration(), DedupeIntegration()) as events:
        yield events


@pytest.fixture
def telemetry():
    made = Telemetry()
    yield made
    made.shutdown()


async def closed(site: Site, number: int = 1) -> list[StreamClosed]:
    """Wait until as many streams have ended."""

    def ended() -> list[StreamClosed]:
        return [fact for fact in site.facts if isinstance(fact, StreamClosed)]

    await until(lambda: len(ended()) >= number)
    return ended()


# Sentry.


async def test_sentry_reports_what_a_producer_raises_once(served, browser, sentry, raised):
    site = await served()
    async with open_stream(browser(site), "/broken") as stream:
        assert (await stream.next()).data == "x"
    await closed(site)
    await until(lambda: sentry)
    await site.server.stop()
    (event,) = sentry
    (exception,) = event["exception"]["values"]
    assert exception["type"] == "Broken"
    assert event["request"]["url"].endswith("/broken")


async def test_sentry_reports_once_what_a_stage_has_handled(served, browser, sentry):
    """The library logs it, because aiohttp does not see it, and Sentry reads the log."""

    @on_error(Broken)
    def handle(context, error) -> None:
        """Handle it: the headers of the stream were sent."""

    site = await served(stages=[handle])
    async with open_stream(browser(site), "/broken") as stream:
        await stream.next()
    await closed(site)
    await until(lambda: sentry)
    await site.server.stop()
    assert [event["exception"]["values"][0]["type"] for event in sentry] == ["Broken"]


async def test_sentry_reports_no_client_that_leaves_and_no_stream_that_a_stop_ends(served, browser, sentry):
    site = await served()
    client = browser(site)
    async with open_stream(client, "/address") as stream:
        await stream.next()
    raw = await site.server.connect("GET /address HTTP/1.1\nHost: x\n\n")
    await raw.until(b"data:")
    raw.reset()
    await closed(site, 2)
    async with open_stream(client, "/address") as stream:
        await stream.next()
        await site.server.stop()
    reasons = [fact.reason for fact in await closed(site, 3)]
    assert reasons == [CloseReason.CLIENT_LEFT, CloseReason.CLIENT_LEFT, CloseReason.SHUTDOWN]
    assert sentry == []


@pytest.mark.parametrize(("path", "status"), [("/visits", 401), ("/conflict", 409)])
async def test_sentry_reports_no_refusal(served, browser, sentry, path, status):
    async with open_stream(browser(await served()), path) as stream:
        assert stream.response.status == status
    assert sentry == []


@pytest.mark.parametrize(("options", "reported"), [({}, 1), ({"failed_request_status_codes": {500, 502, 504}}, 0)])
async def test_sentry_reports_refusals_with_503_unless_it_is_told_not_to(served, browser, options, reported):
    """As those of a handler."""
    with sentry_events(**options) as events:
        async with open_stream(browser(await served(max_streams=0)), "/address") as stream:
            assert stream.response.status == 503
        assert [event["exception"]["values"][0]["type"] for event in events] == ["HTTPServiceUnavailable"] * reported


# OpenTelemetry.


@pytest.mark.parametrize("instrumented", [False, True])
async def test_a_topic_stream_has_a_server_span_and_a_linked_span(served, signed_in, telemetry, instrumented):
    options = {"observer": telemetry.traces.streams, "stages": [telemetry.traces.requests]}
    if instrumented:
        with telemetry.instrumented():
            site = await served(application=web.Application, **options)
    else:
        site = await served(**options)
    client = await signed_in(site)
    telemetry.exporter.clear()
    async with open_stream(client, "/rooms/kitchen") as stream:
        site.may_publish.set()
        async with client.post("/rooms/kitchen", data="tea?"):
            assert (await stream.next()).data == "tea?"
    await closed(site)
    spans = {span.name: span for span in await telemetry.spans(3)}
    assert set(spans) == {"GET /rooms/{room}", "POST /rooms/{room}", "stream /rooms/{room}"}
    server, streamed = spans["GET /rooms/{room}"], spans["stream /rooms/{room}"]
    assert server.kind is SpanKind.SERVER
    assert server.instrumentation_scope.name.startswith("opentelemetry" if instrumented else "aiohttp_interceptors")
    assert [link.context.span_id for link in streamed.links] == [server.context.span_id]
    assert streamed.attributes["aiohttp_interceptors.stream.reason"] == "client_left"
    assert streamed.attributes["aiohttp_interceptors.stream.events"] == 1


async def test_spans_and_sentry_tell_the_same_of_a_broken_producer(served, browser, telemetry, sentry, raised):
    with telemetry.instrumented():
        site = await served(application=web.Application, observer=telemetry.traces.streams)
    async with open_stream(browser(site), "/broken") as stream:
        await stream.next()
    spans = {span.name: span for span in await telemetry.spans(2)}
    await until(lambda: sentry)
    await site.server.stop()
    assert spans["stream /broken"].status.status_code is StatusCode.ERROR
    assert spans["stream /broken"].attributes["error.type"] == "Broken"
    assert [event["exception"]["values"][0]["type"] for event in sentry] == ["Broken"]


async def test_the_span_of_a_request_tells_the_address_of_the_client(served, browser, telemetry):
    site = await served(observer=telemetry.traces.streams, stages=[telemetry.traces.requests])
    async with open_stream(browser(site), "/address", headers={"X-Forwarded-For": "192.0.2.7"}) as stream:
        await stream.next()
    await closed(site)
    spans = {span.name: span for span in await telemetry.spans(2)}
    assert spans["GET /address"].attributes["client.address"] == "192.0.2.7"
