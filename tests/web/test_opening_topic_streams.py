"""How a request becomes an open topic stream: the order of the checks, and the release of slots."""

from __future__ import annotations

import asyncio
import threading

import pytest
from aiohttp import web

from aiohttp_interceptors import CloseReason, Hub, StreamClosed, StreamOpened, StreamRefused, as_handler, setup
from aiohttp_interceptors import start_topic_stream as start
from aiohttp_interceptors.web.app import STREAMS
from tests.listener import listen
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import until, within

pytestmark = BOTH_LOOPS


@pytest.fixture(autouse=True)
def quiet(logged):
    """Capture what streams log."""


class Application:
    """An application with one topic stream, and a record of its streams."""

    def __init__(self, topics="a", limits: dict | None = None, **options: object) -> None:
        self.hub = Hub()
        self.facts: list[object] = []
        self.reasons: list[CloseReason] = []
        options.setdefault("on_close", lambda context, reason: self.reasons.append(reason))
        self.app = web.Application()
        setup(self.app, self.hub, observer=self.facts.append, **(limits or {}))
        self.app.router.add_route("*", "/", as_handler(start(self.hub, topics, heartbeat=None, **options)))

    async def until_empty(self) -> None:
        await until(lambda: self.hub.statistics().subscribers == len(self.app[STREAMS]) == 0)


class NullSink:
    """A sink that discards what is written to it."""

    paused = False
    encoder = staticmethod(lambda frames: frames)

    def write(self, payload: bytes, now: float) -> None:
        pass


async def test_topics_are_computed_before_a_slot_is_taken_and_a_refusal_takes_none(serve):
    async def topics(context) -> str:
        await asyncio.sleep(0)
        if context.request.query_string:
            raise web.HTTPForbidden
        return "a"

    served = Application(topics, {"max_streams": 1})
    server = await serve(served.app)
    for path, method, status in [
        ("/?no", "GET", 403),
        ("/", "HEAD", 200),
        ("/", "GET", 200),  # it is open from here on
        ("/", "GET", 503),
        ("/?no", "GET", 403),
        ("/", "HEAD", 200),
    ]:
        listener = await listen(server, path, method=method)
        assert listener.status == status
        if (method, status) == ("GET", 200):
            first = listener
        else:
            await listener.close()
    assert [type(fact) for fact in served.facts] == [StreamOpened, StreamRefused]
    await first.close()
    await served.until_empty()
    assert served.reasons == [CloseReason.CLIENT_LEFT]
    again = await listen(server)
    assert again.status == 200
    await again.close()


async def test_a_failure_after_commit_releases_the_slot(serve):
    """A stream_ready that raises, and a snapshot that raises."""

    def fail(*_) -> None:
        raise LookupError

    for options in {"stream_ready": fail}, {"snapshot": fail}:
        served = Application("a", {"max_streams": 1}, **options)
        server = await serve(served.app)
        for _ in range(3):
            listener = await listen(server)
            assert listener.status == 200
            assert await listener.rest() == []
            await listener.close()
            await served.until_empty()
        assert served.reasons == [CloseReason.ERROR] * 3
        assert [type(fact) for fact in served.facts] == [StreamOpened, StreamClosed] * 3


@pytest.mark.parametrize("ready", [None, lambda subscriber, context: None])
async def test_a_hub_of_another_event_loop_is_an_error_before_commit(serve, ready):
    """The Hub has streams in the other loop and cannot move, so the answer is a 500."""
    served = Application("a", {"max_streams": 1}, stream_ready=ready)
    subscribed, release = threading.Event(), threading.Event()

    async def elsewhere() -> None:
        subscriber = served.hub.subscribe(["a"], NullSink(), lambda reason, error: None)
        subscribed.set()
        await asyncio.to_thread(release.wait)
        subscriber.close()
        await served.hub.close()

    thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
    thread.start()
    await asyncio.to_thread(subscribed.wait)
    app = web.Application()
    setup(app)
    app.router.add_get("/", as_handler(start(served.hub, "a", stream_ready=ready)))
    server = await serve(app)
    listener = await listen(server)
    release.set()
    thread.join()
    assert listener.status == 500
    assert b"Content-Type: text/event-stream" not in listener.head
    body = await listener.raw.until(b"trouble")
    assert body.startswith(b"500 Internal Server Error")
    assert len(app[STREAMS]) == 0
    await listener.close()


async def test_a_client_that_disconnects_while_its_topics_are_computed_is_not_subscribed(serve, handler_cancellation):
    release, called, subscribers = asyncio.Event(), asyncio.Event(), []

    async def topics(context) -> str:
        called.set()
        await release.wait()
        return "a"

    served = Application(topics, stream_ready=lambda subscriber, context: subscribers.append(subscriber))
    server = await serve(served.app, handler_cancellation=handler_cancellation)
    raw = await server.connect("GET / HTTP/1.1\nHost: x\n\n")
    await within(called.wait())
    raw.reset()
    await raw.close()
    for _ in range(10):
        await asyncio.sleep(0)
    release.set()
    other = await listen(server)
    await until(lambda: served.hub.statistics().catching_up == 0)
    assert served.hub.subscribers("a") == 1
    assert len(subscribers) - len(served.reasons) == 1  # only the other stream is open
    await other.close()
    await served.until_empty()


async def test_a_body_is_read_before_the_stream_starts(serve):
    """A client may post the topics that it wants."""
    texts = []

    async def topics(context) -> list[str]:
        texts.append(await context.request.text())
        return texts[-1].split(",")

    served = Application(topics)
    raw = await (await serve(served.app)).connect("POST / HTTP/1.1\nHost: x\nContent-Length: 3\n\nb,c")
    await raw.until(b"\r\n\r\n")
    await until(lambda: served.hub.subscribers("c") == 1)
    await served.hub.publish("c", "x")
    assert b"data: x\n\n" in await raw.until(b"data: x\n\n")
    assert texts == ["b,c"]
    await raw.close()


async def test_a_pipelined_request_waits_for_the_end_of_the_stream(serve):
    served = Application("a", stream_ready=lambda subscriber, context: streams.append(context.stream), prime=True)
    streams = []
    server = await serve(served.app)
    raw = await server.connect("GET / HTTP/1.1\nHost: x\n\nGET / HTTP/1.1\nHost: x\n\n")
    await raw.until(b"\n\n\r\n")  # the initial frame
    await served.hub.publish("a", "one")
    streams[0].end(CloseReason.CLOSED)
    assert b"data: one\n\n" in await raw.until(b"0\r\n\r\n")
    assert b"HTTP/1.1 200 OK" in await raw.until(b"\r\n\r\n")
    await raw.until(b"\n\n\r\n")
    await served.hub.publish("a", "two")
    assert b"data: two\n\n" in await raw.until(b"\n\n\r\n")
    await raw.close()
    await served.until_empty()


@pytest.mark.parametrize("prime", [True, False])
async def test_a_stream_without_records_does_no_work(serve, monkeypatch, prime):
    """With or without an initial frame, no callback runs until something is published."""
    served = Application("a", prime=prime, retry=1000)
    listener = await listen(await serve(served.app))
    await until(lambda: served.hub.statistics().subscribers == 1)
    for _ in range(20):
        await asyncio.sleep(0)
    reads = 0
    expire = served.hub.history.expire  # called before each read of the history

    def counting(*arguments: float) -> None:
        nonlocal reads
        reads += 1
        expire(*arguments)

    monkeypatch.setattr(served.hub.history, "expire", counting)
    for _ in range(50):
        await asyncio.sleep(0)
    assert reads == 0
    await served.hub.publish("a", "x")
    assert await listener.data(1) == ["x"]
    assert reads > 0
    await listener.close()
