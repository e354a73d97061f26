"""An application with everything that reads a request, what it holds, and what it has logged."""

from __future__ import annotations

import asyncio
import gc
import logging
import traceback
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import pydantic
from aiohttp import web
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry

import aiohttp_interceptors
from aiohttp_interceptors import (
    ContextKey,
    Hub,
    as_handler,
    event_stream,
    interceptor_middleware,
    publish_handler,
    setup,
    start_topic_stream,
    topic_stream,
)
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.observe.opentelemetry import OpenTelemetryTraces
from aiohttp_interceptors.observe.prometheus import PrometheusMetrics
from aiohttp_interceptors.ready import (
    Tickets,
    bearer,
    cors,
    csrf,
    json_body,
    jwt_verifier,
    negotiate,
    problem_details,
    rate_limit,
    request_id,
    request_log,
)
from aiohttp_interceptors.web.app import STREAMS
from aiohttp_interceptors.web.timers import timer_queue
from tests.waiting import until

SECRET = "a secret that is long enough for HS256"
PACKAGE = Path(aiohttp_interceptors.__file__).parent
LIBRARY = "aiohttp_interceptors"
LOGGERS = [logging.getLogger(name) for name in (LIBRARY, "aiohttp.server", "asyncio")]
BODY_TIMEOUT = 0.05  # seconds for each piece of a body
BODY_ROUTES = ("/publish", "/order", "/struct", "/model", "/list")
STREAM_ROUTES = ("/fixed", "/remote", "/latest", "/finished", "/topic/{name}", "/topics", "/generated", "/answer")
OTHER_ROUTES = ("/media", "/secret", "/csrf", "/ticket")


@dataclass
class Leaf:
    price: float
    name: str | None = None


@dataclass
class Branch:
    left: Leaf | Branch
    right: Leaf | Branch | list[Branch] | dict[str, Leaf]


class Struct(msgspec.Struct):
    price: float
    children: list[Struct] = []


class Model(pydantic.BaseModel):
    price: float
    children: list[Model] = []


def _by_user(request: web.Request) -> str:
    return request.headers.get("User", "")


def _owner(context) -> str | None:
    return context.request.headers.get("User")


@event_stream(heartbeat=None, stall_timeout=BODY_TIMEOUT)
async def _generated(request: web.Request) -> AsyncIterator[str]:
    yield "one"
    await asyncio.Event().wait()


@event_stream(heartbeat=None, stall_timeout=BODY_TIMEOUT, as_json=lambda values: values, owner=_owner, compress=True)
async def _answer(request: web.Request) -> AsyncIterator[str]:
    yield "one"


async def _plain(request: web.Request) -> web.Response:
    return web.Response(text="plain")


class Site:
    """The application, served on a port."""

    def __init__(self) -> None:
        self.hub = Hub()
        self.log = MemoryLog()
        self.remote = Hub(MemoryBroker(self.log))
        self.published = Hub(history=10)
        self.latest = Hub(latest=10)
        self.app = app = web.Application(middlewares=[self._count])
        self.metrics = PrometheusMetrics(registry=CollectorRegistry())
        traces = OpenTelemetryTraces(tracer_provider=TracerProvider())
        app.middlewares.append(
            interceptor_middleware(
                traces.requests,
                request_id(accept=r".*"),
                request_log(paths=True),
                cors(lambda context, origin: True, credentials=True),
                problem_details(),
                rate_limit(1_000_000, 1, key=lambda context: context.request.headers.get("User"), max_keys=5),
            )
        )
        setup(
            app,
            *(self.hub, self.remote, self.published, self.latest),
            max_streams=30,
            max_streams_per_key=5,
            key=_by_user,
            on_limit="kick",
            observer=[self.metrics.streams, traces.streams],
        )
        for hub in self.hub, self.remote, self.latest:
            self.metrics.watch(hub, str(id(hub)))
        for path, handler in self._handlers().items():
            app.router.add_route("*", path, handler)
        self.lines: list[Line] = []
        self.port = 0
        self.in_flight = 0  # requests whose handler or interceptors run

    @web.middleware
    async def _count(self, request: web.Request, handler) -> web.StreamResponse:
        self.in_flight += 1
        try:
            return await handler(request)
        finally:
            self.in_flight -= 1

    def _handlers(self) -> dict[str, object]:
        options = {"heartbeat": None, "stall_timeout": BODY_TIMEOUT}
        item: ContextKey[object] = ContextKey("item")
        bodies = {"/order": Branch, "/struct": Struct, "/model": Model, "/list": list[Leaf | None]}
        checked = {
            path: as_handler(json_body(item, into, read_timeout=BODY_TIMEOUT), _plain) for path, into in bodies.items()
        }
        return {
            "/fixed": as_handler(
                start_topic_stream(self.hub, ["news", "a.*"], strict=True, replay=2, owner=_owner, **options)
            ),
            "/remote": topic_stream(
                self.remote,
                "news",
                identity=_owner,
                presence_event="who",
                snapshot=lambda context: ["state"],
                **options,
            ),
            "/latest": topic_stream(self.latest, "news", replay="latest", on_gap="conflate", compress=True, **options),
            "/finished": topic_stream(self.hub, "finished", **options),
            "/topic/{name}": topic_stream(self.hub, lambda context: context.request.match_info["name"], **options),
            "/topics": topic_stream(self.hub, lambda context: context.request.query.getall("topic", []), **options),
            "/generated": _generated,
            "/answer": _answer,
            "/publish": publish_handler(self.published, read_timeout=BODY_TIMEOUT),
            "/media": as_handler(negotiate("text/html", "application/json", "image/png"), _plain),
            "/secret": as_handler(bearer(jwt_verifier(lambda header: SECRET, algorithms=["HS256"])), _plain),
            "/ticket": as_handler(Tickets(SECRET, self.remote).redeem, _plain),
            "/csrf": as_handler(csrf(origins=["https://example.com"]), _plain),
            **checked,
        }

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    # What is left behind.

    async def settled(self) -> None:
        """Wait until no stream and no request is there any more."""
        streams = self.app[STREAMS]
        await until(lambda: not len(streams) and not streams._limits.in_use)
        await until(lambda: not any(_is_of_a_connection(task) for task in asyncio.all_tasks()))

    async def holdings(self) -> Counter[str]:
        """Count what the process holds: tasks, objects of the library, and what is in their containers."""
        await self.settled()
        for _ in range(3):
            await asyncio.sleep(0)
            gc.collect()
        counts: Counter[str] = Counter(tasks=len(asyncio.all_tasks()), timers=timer_queue()._active)
        for thing in (*EARLIER, *gc.get_objects()):
            kind = type(thing)
            if not _is_of_the_library(thing):
                continue
            counts[kind.__qualname__] += 1
            for name in _attributes(thing):
                value = getattr(thing, name, None)
                if isinstance(value, (dict, list, set, deque, OrderedDict)):
                    counts[f"{kind.__qualname__}.{name}"] += len(value)
        return counts

    def errors(self) -> list[str]:
        """Return what the library has logged with a traceback, and its exceptions that have reached aiohttp.

        aiohttp logs a request that is no HTTP with a traceback of its own parser. That is not counted.
        """
        return [str(line) for line in self.lines if line.is_error]


def _is_of_the_library(thing: object) -> bool:
    return str(type(thing).__module__).startswith(LIBRARY)


# Objects of the library's modules. When the tests have been collected these are left out of garbage collection.
EARLIER = [thing for thing in gc.get_objects() if _is_of_the_library(thing)]


def _is_ours(error: BaseException | None) -> bool:
    """Return whether an exception has passed through the library."""
    frames = traceback.extract_tb(error and error.__traceback__)
    return any(Path(frame.filename).is_relative_to(PACKAGE) for frame in frames)


def _is_of_a_connection(task: asyncio.Task[object]) -> bool:
    """Return whether a task is that of a connection: aiohttp's, which ends with it."""
    return "RequestHandler" in getattr(task.get_coro(), "__qualname__", "")


def _attributes(thing: object) -> set[str]:
    slots = {name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())}
    return slots | set(getattr(thing, "__dict__", ()))


class Line(NamedTuple):
    """What was logged, without the traceback, which refers to everything that was there."""

    logger: str
    message: str
    error: str
    is_error: bool


class _Handler(logging.Handler):
    """Keeps the lines of a logger. Handlers further out get no traceback either: pytest would keep it."""

    def __init__(self, lines: list[Line]) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info and record.exc_info[1]
        is_error = record.name == "asyncio" or bool(error and (record.name == LIBRARY or _is_ours(error)))
        self._lines.append(Line(record.name, record.getMessage(), repr(error), is_error))
        record.exc_info = None


@asynccontextmanager
async def served(*, handler_cancellation: bool = False) -> AsyncIterator[Site]:
    """Serve the application on a free port."""
    site = Site()
    options = {"shutdown_timeout": 1.0, "keepalive_timeout": 0.2, "lingering_time": 0.2}  # seconds
    runner = web.AppRunner(site.app, access_log=None, handler_cancellation=handler_cancellation, **options)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    site.port = runner.addresses[0][1]
    handler = _Handler(site.lines)
    for logger in LOGGERS:
        logger.addHandler(handler)
    try:
        for hub in site.hub, site.latest:
            await hub.publish("news", "first")
        await site.remote.publish("news", "first")
        await site.hub.finish("finished", "last")
        await until(lambda: site.remote.ready)
        yield site
    finally:
        for logger in LOGGERS:
            logger.removeHandler(handler)
        await runner.cleanup()
