"""What is left of a closed stream: nothing, without a run of Python's garbage collector."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter

import pytest
from aiohttp import web

from aiohttp_interceptors import (
    CloseReason,
    EventStreamResponse,
    Hub,
    Interceptor,
    RequestContext,
    Stream,
    as_handler,
    event_stream,
    execute,
    interceptor_middleware,
    setup,
    start_event_stream,
    start_topic_stream,
)
from aiohttp_interceptors.web.app import STREAMS
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import TIMEOUT, until

pytestmark = BOTH_LOOPS
STREAMS_CLOSED = 3
GET = "GET / HTTP/1.1\nHost: x\nAccept-Encoding: gzip\n\n"
CLOSING_GET = "GET / HTTP/1.1\nHost: x\nConnection: close\n\n"
AUDIT = Interceptor("audit", lambda context: None)


@pytest.fixture
def hub():
    return Hub()


async def wait_closed(channel, context):
    await channel.wait_closed()


async def generate(context):
    yield "first"
    await asyncio.get_running_loop().create_future()


async def send_with_aiohttp_sse(request):
    response = EventStreamResponse()
    await response.prepare(request)
    await response.send("first")
    await response.wait()
    return response


async def take_snapshot(context):
    return ["state"]


def topics(hub, **options):
    return as_handler(start_topic_stream(hub, "t", **options))


KINDS = {
    "topics": topics,
    "compressed": lambda hub: topics(hub, compress=True),
    "selected": lambda hub: topics(hub, select=lambda context, record: True),
    "snapshot": lambda hub: topics(hub, snapshot=take_snapshot),
    "guarded": lambda hub: topics(hub, owner=lambda context: "ann", revalidate=lambda context: True, max_age=60),
    "on_close": lambda hub: topics(hub, on_close=lambda context, reason: None, identity=lambda context: "ann"),
    "subscriber": lambda hub: topics(hub, stream_ready=lambda subscriber, context: subscriber.add("u")),
    "channel": lambda hub: as_handler(start_event_stream(lambda channel, context: channel.put_nowait("first"))),
    "producer": lambda hub: as_handler(start_event_stream(wait_closed, compress=True)),
    "generator": lambda hub: event_stream(generate),
    "aiohttp-sse": lambda hub: send_with_aiohttp_sse,
}


def objects() -> Counter[str]:
    """Count the objects of this library and of aiohttp's server that belong to a request."""
    found = Counter(
        type(each).__name__ for each in gc.get_objects() if str(type(each).__module__).startswith("aiohttp")
    )
    return Counter({name: found[name] for name in found if name not in {"FrozenList", "Signal"}})


@pytest.fixture
def uncollected():
    """Let nothing be collected, so that only what nothing refers to is freed."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def leave(server, raw, app):
    await raw.close()


async def reset(server, raw, app):
    raw.writer.transport.abort()
    await raw.close()


async def end(server, raw, app):
    for stream in app[STREAMS]:
        if isinstance(stream, Stream):
            stream.end(CloseReason.KICKED)
        else:
            stream.stop_streaming()
    await raw.until(b"0\r\n\r\n")
    await raw.close()


def read_statistics(context):
    if context.stream is not None:  # it is one of aiohttp-sse otherwise
        context.stream.statistics()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("closing", [leave, reset, end])
@pytest.mark.usefixtures("uncollected")
async def test_a_closed_stream_is_freed_at_once(serve, hub, kind, closing):
    await open_and_close_streams(serve, hub, kind, closing, Interceptor("read", leave=read_statistics))


async def open_and_close_streams(serve, hub, kind, closing, interceptor) -> None:
    """Open and close some streams inside an interceptor, and wait until nothing is left of them."""
    app = web.Application(middlewares=[interceptor_middleware(interceptor)])
    setup(app, hub, max_streams_per_key=10, key=lambda request: "ann")
    app.router.add_get("/", KINDS[kind](hub))
    server = await serve(app)

    async def open_and_close() -> None:
        raw = await server.connect(GET)
        await raw.until(b"\r\n\r\n")
        await until(lambda: len(app[STREAMS]) == 1)
        await closing(server, raw, app)
        await until(lambda: len(app[STREAMS]) == len(server.runner.server.connections) == 0)

    await open_and_close()  # what is made once
    before = objects()
    for _ in range(STREAMS_CLOSED):
        await open_and_close()
    await until(lambda: not left_since(before))


@pytest.mark.parametrize("kind", ["topics", "producer"])
@pytest.mark.parametrize("stage", ["enter", "leave"])
@pytest.mark.usefixtures("uncollected")
async def test_a_closed_stream_is_freed_at_once_although_a_stage_returned_a_copy_of_the_context(
    serve, hub, kind, stage
):
    replace = Interceptor("replace", **{stage: lambda context: context.copy()})
    await open_and_close_streams(serve, hub, kind, leave, replace)


def left_since(before: Counter[str]) -> set[str]:
    """Return the names of the classes of which there is one object more for each stream, or a context more."""
    left = objects() - before
    return {name for name, count in left.items() if count >= STREAMS_CLOSED} | (left.keys() & {"RequestContext"})


async def test_what_a_closed_stream_tells_can_be_read_when_its_chain_has_ended(serve, hub):
    """The context can be executed again, and the stream ended once more."""
    contexts: list[RequestContext] = []
    look = Interceptor("look", contexts.append)
    app = web.Application()
    setup(app, hub)
    app.router.add_get("/", as_handler(look, start_topic_stream(hub, "t", owner=lambda context: "ann")))
    server = await serve(app)
    raw = await server.connect(GET)
    await raw.until(b"\r\n\r\n")
    await raw.close()
    await until(lambda: contexts and contexts[0]._execution is None)
    (context,) = contexts
    for _ in range(2):
        await execute(context, AUDIT)
        stream = context.stream
        assert stream.statistics().reason is stream.reason is CloseReason.CLIENT_LEFT
        assert stream.request is context.request
        stream.end(CloseReason.KICKED)
        assert stream.reason is CloseReason.CLIENT_LEFT


async def test_a_copy_that_is_executed_while_a_stream_ends_leaves_it_what_is_still_to_be_sent(serve, hub):
    contexts: list[RequestContext] = []
    go, executed = asyncio.Event(), asyncio.Event()

    async def ready(subscriber, context):
        contexts.append(context)
        await go.wait()
        await execute(context.copy(), AUDIT)
        executed.set()

    app = web.Application()
    setup(app, hub)
    app.router.add_get("/", topics(hub, stream_ready=ready))
    server = await serve(app)
    raw = await server.connect(CLOSING_GET)
    await raw.until(b"\r\n\r\n")
    await until(lambda: contexts)
    for _ in range(100):  # more than the sockets take
        await hub.publish("t", "x" * 60_000)
    await hub.finish("t", "the last one")
    await until(lambda: contexts[0].stream.reason is CloseReason.CLOSED)
    go.set()
    async with asyncio.timeout(TIMEOUT):
        await executed.wait()
        assert b"the last one" in await raw.reader.read()
    await raw.close()


@pytest.mark.parametrize("executed", [lambda context: context, RequestContext.copy], ids=["context", "copy"])
async def test_an_execution_in_an_error_stage_leaves_the_line_about_the_producer(serve, executed, logged):
    async def fail(channel, context):
        raise ValueError("no data")

    async def handle(context, error):
        await execute(executed(context), AUDIT)

    app = web.Application(middlewares=[interceptor_middleware(Interceptor("handle", error=handle))])
    setup(app)
    app.router.add_get("/", as_handler(start_event_stream(fail)))
    server = await serve(app)
    await server.exchange(CLOSING_GET)
    await until(lambda: "stream_producer_failed" in [line["event"] for line in logged])
