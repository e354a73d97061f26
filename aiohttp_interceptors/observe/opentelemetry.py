"""OpenTelemetry spans of requests and streams, and a histogram of how long streams last.

``pip install 'aiohttp-interceptors[opentelemetry]'``, and an SDK that the application configures.

    traces = OpenTelemetryTraces()
    setup(app, observer=traces.streams)
    app.middlewares.append(interceptor_middleware(traces.requests))

A span is exported when it ends, and a trace is read as one request. Therefore the server span of a stream ends when the
response headers have been sent, and a second span, which is linked to it, tells how the stream went. A server span of
another instrumentation is not touched, and stays open as long as the stream.

Names are those of the semantic conventions for HTTP where there are some.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace

from aiohttp import web

try:
    from opentelemetry import context as otel_context
    from opentelemetry import propagate, trace
    from opentelemetry.context import Context as OTelContext
    from opentelemetry.metrics import MeterProvider, get_meter
    from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, TracerProvider
    from opentelemetry.util.types import AttributeValue
except ImportError as _error:
    raise ImportError(
        "OpenTelemetryTraces needs the OpenTelemetry API: pip install 'aiohttp-interceptors[opentelemetry]'"
    ) from _error

from ..decorators import around
from ..facts import StreamClosed, StreamFact, StreamFirstEvent, StreamOpened
from ..interceptor import Interceptor
from ..web.context import RequestContext
from ..web.request import route_of

__all__ = ["OpenTelemetryTraces"]


NAME = "aiohttp_interceptors"
SCHEMA_URL = "https://opentelemetry.io/schemas/1.26.0"

HTTP_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
SERVER_ERROR = 500

# Upper bounds in seconds: the conventions' own for HTTP end at 10.
LIFETIME = (1, 10, 60, 300, 900, 1800, 3600, 7200, 14400, 28800, 86400)

_SERVER_SPAN = otel_context.create_key("aiohttp_interceptors.server_span")


class OpenTelemetryTraces:
    """The spans of an application's requests and streams.

    Args:
        tracer_provider: Makes the spans. Default: the global one.
        meter_provider: Makes the histogram ``aiohttp_interceptors.stream.duration``. Default: the global one.
    """

    def __init__(
        self, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
    ) -> None:
        self._tracer = trace.get_tracer(NAME, None, tracer_provider, SCHEMA_URL)
        self._duration = get_meter(NAME, "", meter_provider, SCHEMA_URL).create_histogram(
            "aiohttp_interceptors.stream.duration",
            unit="s",
            description="Time from the response headers to the end of a stream.",
            explicit_bucket_boundaries_advisory=LIFETIME,
        )
        self._open: dict[int | str, Span] = {}  # spans of open streams, by execution ID
        traced = around(self._trace_request)
        self.requests: Interceptor[RequestContext] = replace(traced, name="opentelemetry_requests")
        """An interceptor that makes a server span for each request that has none: put it first.

        The span has ended when a stream's headers were sent.
        """

    async def _trace_request(self, context: RequestContext) -> AsyncGenerator[None, None]:
        current = trace.get_current_span().get_span_context()
        if current.is_valid and not current.is_remote:  # that of another instrumentation
            yield
            return
        request = context.request
        parent = _parent_of(request)
        name = f"{_method(request)} {route_of(request)}".rstrip()
        span = self._tracer.start_span(name, parent, SpanKind.SERVER, _attributes(request))
        active = otel_context.set_value(_SERVER_SPAN, span, trace.set_span_in_context(span, parent))
        token = otel_context.attach(active)
        try:
            yield
        except web.HTTPException as response:
            _set_status(span, response)
            raise
        except Exception as error:
            if span.is_recording():
                span.set_attribute("http.response.status_code", SERVER_ERROR)
                _set_error(span, error)
            raise
        else:
            _set_status(span, context.response)
        finally:
            otel_context.detach(token)
            _end_once(span)

    def streams(self, fact: StreamFact) -> None:
        """Make spans of the facts of streams. It is the observer for ``setup(app, observer=traces.streams)``.

        Args:
            fact: What happened to a stream.
        """
        if isinstance(fact, StreamOpened):
            self._open[fact.execution_id] = self._start_stream(fact)
        elif isinstance(fact, StreamFirstEvent):
            if fact.execution_id in self._open:
                self._open[fact.execution_id].add_event("aiohttp_interceptors.stream.first_event")
        elif isinstance(fact, StreamClosed):
            span = self._open.pop(fact.execution_id, None)
            attributes = _stream_attributes(fact)
            self._duration.record(fact.seconds, attributes)
            if span is not None:
                _end_stream(span, fact, attributes)

    def _start_stream(self, fact: StreamOpened) -> Span:
        """End our own server span, and start a span that is linked to the current one."""
        current = trace.get_current_span().get_span_context()
        server_span = otel_context.get_value(_SERVER_SPAN)
        if isinstance(server_span, Span):
            if server_span.is_recording():
                server_span.set_attribute("http.response.status_code", 200)
            _end_once(server_span)
        return self._tracer.start_span(
            f"stream {fact.route}".rstrip(),
            OTelContext(),  # a trace of its own, so that the request's trace is complete
            attributes={"http.route": fact.route} if fact.route else None,
            links=[Link(current)] if current.is_valid else None,
        )


def _method(request: web.Request) -> str:
    """Return the method for names and attributes, which has few values."""
    return request.method if request.method in HTTP_METHODS else "HTTP"


def _attributes(request: web.Request) -> dict[str, AttributeValue]:
    """Return the attributes of a server span."""
    method, route = request.method, route_of(request)
    attributes: dict[str, AttributeValue] = {
        "http.request.method": method if method in HTTP_METHODS else "_OTHER",
        "url.path": _exportable(request.path),
        "url.scheme": request.scheme,
        "network.protocol.version": f"{request.version.major}.{request.version.minor}",
    }
    if method not in HTTP_METHODS:
        attributes["http.request.method_original"] = method
    if route:
        attributes["http.route"] = route
    host, port = _server_of(request)
    if host:
        attributes["server.address"] = _exportable(host)
    if port:
        attributes["server.port"] = port
    if request.remote:
        attributes["client.address"] = request.remote
    user_agent = request.headers.get("User-Agent")
    if user_agent:
        attributes["user_agent.original"] = _exportable(user_agent)
    return attributes


def _parent_of(request: web.Request) -> OTelContext:
    """Return the context that the request's headers propagate. They are ignored if they are not UTF-8."""
    try:
        return propagate.extract(request.headers)
    except ValueError:  # raised by the propagator of baggage
        return otel_context.get_current()


def _server_of(request: web.Request) -> tuple[str | None, int | None]:
    """Return host and port of a request, or ``None`` for both if its ``Host`` is not a host."""
    try:
        return request.url.host, request.url.port
    except ValueError:
        return None, None


def _exportable(text: str) -> str:
    """Return a text as UTF-8 has it. An exporter loses all spans of a batch for a byte that is not UTF-8."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def _set_status(span: Span, response: web.StreamResponse | None) -> None:
    """Set the status of a response, unless the span has ended with the headers of a stream."""
    if response is not None and span.is_recording():
        span.set_attribute("http.response.status_code", response.status)
        if response.status >= SERVER_ERROR:
            span.set_attribute("error.type", str(response.status))
            span.set_status(Status(StatusCode.ERROR))


def _set_error(span: Span, error: BaseException) -> None:
    span.record_exception(error)
    span.set_attribute("error.type", type(error).__qualname__)
    span.set_status(Status(StatusCode.ERROR, str(error)))


def _end_once(span: Span) -> None:
    """End a span, unless it has ended: an SDK warns of a second end."""
    if span.is_recording():
        span.end()


def _stream_attributes(fact: StreamClosed) -> dict[str, AttributeValue]:
    """Return the attributes with few values, which the span and the histogram have."""
    attributes: dict[str, AttributeValue] = {"aiohttp_interceptors.stream.reason": fact.reason}
    if fact.route:
        attributes["http.route"] = fact.route
    if fact.exception is not None:
        attributes["error.type"] = type(fact.exception).__qualname__
    return attributes


def _end_stream(span: Span, fact: StreamClosed, attributes: dict[str, AttributeValue]) -> None:
    """Set how a stream went, and end its span."""
    span.set_attributes(attributes)
    span.set_attribute("aiohttp_interceptors.stream.events", fact.events)
    span.set_attribute("aiohttp_interceptors.stream.bytes", fact.bytes)
    span.set_attribute("aiohttp_interceptors.stream.bytes_sent", fact.bytes_sent)
    span.set_attribute("aiohttp_interceptors.stream.dropped", fact.dropped)
    if fact.exception is not None:
        _set_error(span, fact.exception)
    span.end()
