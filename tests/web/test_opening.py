"""From a request to an open stream of a Hub: what is asked in which order, and what is given back."""

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
    """Keep what is logged of streams to ourselves."""


class Application:
    """An application of one stream of a Hub, and what happened to its streams."""

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


class Silence:
    """An outlet that nobody listens to."""

    paused = False
    wrap = staticmethod(lambda frames: frames)

    def relay(self, payload: bytes, now: float) -> None:
        pass


async def test_topics_are_asked_before_a_place_is_taken_and_a_refusal_takes_none(serve):
    async def topics(context) -> str:
        await asyncio.sleep(0)
        if context.request.query_string:
            raise web.HTTPForbidden
        return "a"

    one = Application(topics, {"max_streams": 1})
    server = await serve(one.app)
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
    assert [type(fact) for fact in one.facts] == [StreamOpened, StreamRefused]
    await first.close()
    await one.until_empty()
    assert one.reasons == [CloseReason.CLIENT_LEFT]
    again = await listen(server)
    assert again.status == 200
    await again.close()


async def test_what_fails_after_commit_gives_the_place_back(serve):
    """A stream_ready that raises, and a snapshot that does."""

    def fail(*_) -> None:
        raise LookupError

    for options in {"stream_ready": fail}, {"snapshot": fail}:
        one = Application("a", {"max_streams": 1}, **options)
        server = await serve(one.app)
        for _ in range(3):
            listener = await listen(server)
            assert listener.status == 200
            assert await listener.rest() == []
            await listener.close()
            await one.until_empty()
        assert one.reasons == [CloseReason.ERROR] * 3
        assert [type(fact) for fact in one.facts] == [StreamOpened, StreamClosed] * 3


@pytest.mark.parametrize("ready", [None, lambda subscriber, context: None])
async def test_a_hub_of_another_event_loop_is_an_error_before_commit(serve, ready):
    """One that has streams there, or it would come over: the answer is a clean 500."""
    one = Application("a", {"max_streams": 1}, stream_ready=ready)
    began, going = threading.Event(), threading.Event()

    async def elsewhere() -> None:
        subscriber = one.hub.subscribe(["a"], Silence(), lambda reason, error: None)
        began.set()
        await asyncio.to_thread(going.wait)
        subscriber.close()
        await one.hub.close()

    thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
    thread.start()
    await asyncio.to_thread(began.wait)
    app = web.Application()
    setup(app)
    app.router.add_get("/", as_handler(start(one.hub, "a", stream_ready=ready)))
    server = await serve(app)
    listener = await listen(server)
    going.set()
    thread.join()
    assert listener.status == 500
    assert b"Content-Type: text/event-stream" not in listener.head
    body = await listener.raw.until(b"trouble")
    assert body.startswith(b"500 Internal Server Error")
    assert len(app[STREAMS]) == 0
    await listener.close()


async def test_a_client_that_leaves_while_its_topics_are_computed_is_no_subscriber(serve, handler_cancellation):
    going, asked, left = asyncio.Event(), asyncio.Event(), []

    async def topics(context) -> str:
        asked.set()
        await going.wait()
        return "a"

    one = Application(topics, stream_ready=lambda subscriber, context: left.append(subscriber))
    server = await serve(one.app, handler_cancellation=handler_cancellation)
    raw = await server.connect("GET / HTTP/1.1\nHost: x\n\n")
    await within(asked.wait())
    raw.reset()
    await raw.close()
    for _ in range(10):
        await asyncio.sleep(0)
    going.set()
    other = await listen(server)
    await until(lambda: one.hub.statistics().behind == 0)
    assert one.hub.subscribers("a") == 1
    assert len(left) - len(one.reasons) == 1  # each that began has ended, but for the other
    await other.close()
    await one.until_empty()


async def test_a_body_is_read_before_the_stream_begins(serve):
    """A client that posts what it wants to hear of gets a stream all the same."""
    texts = []

    async def topics(context) -> list[str]:
        texts.append(await context.request.text())
        return texts[-1].split(",")

    one = Application(topics)
    raw = await (await serve(one.app)).connect("POST / HTTP/1.1\nHost: x\nContent-Length: 3\n\nb,c")
    await raw.until(b"\r\n\r\n")
    await until(lambda: one.hub.subscribers("c") == 1)
    await one.hub.publish("c", "x")
    assert b"data: x\n\n" in await raw.until(b"data: x\n\n")
    assert texts == ["b,c"]
    await raw.close()


async def test_a_second_request_of_the_connection_waits_for_the_end_of_the_stream(serve):
    one = Application("a", stream_ready=lambda subscriber, context: streams.append(context.stream), prime=True)
    streams = []
    server = await serve(one.app)
    raw = await server.connect("GET / HTTP/1.1\nHost: x\n\nGET / HTTP/1.1\nHost: x\n\n")
    await raw.until(b"\n\n\r\n")  # the first frame
    await one.hub.publish("a", "one")
    streams[0].end(CloseReason.CLOSED)
    assert b"data: one\n\n" in await raw.until(b"0\r\n\r\n")
    assert b"HTTP/1.1 200 OK" in await raw.until(b"\r\n\r\n")
    await raw.until(b"\n\n\r\n")
    await one.hub.publish("a", "two")
    assert b"data: two\n\n" in await raw.until(b"\n\n\r\n")
    await raw.close()
    await one.until_empty()


@pytest.mark.parametrize("prime", [True, False])
async def test_a_stream_that_waits_for_its_first_record_does_nothing_meanwhile(serve, monkeypatch, prime):
    """With or without a first frame: nothing goes round in the event loop as long as nothing is published."""
    one = Application("a", prime=prime, retry=1000)
    listener = await listen(await serve(one.app))
    await until(lambda: one.hub.statistics().subscribers == 1)
    for _ in range(20):
        await asyncio.sleep(0)
    looks = 0
    expire = one.hub.log.expire  # comes before each look at what was published

    def counted(*arguments: float) -> None:
        nonlocal looks
        looks += 1
        expire(*arguments)

    monkeypatch.setattr(one.hub.log, "expire", counted)
    for _ in range(50):
        await asyncio.sleep(0)
    assert looks == 0
    await one.hub.publish("a", "x")
    assert await listener.data(1) == ["x"]
    assert looks > 0
    await listener.close()
