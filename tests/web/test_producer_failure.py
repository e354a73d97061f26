"""What a producer raises is raised by the ``enter`` that opened its stream, after the end of the body."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from aiohttp_interceptors import (
    CloseReason,
    Event,
    Hub,
    Interceptor,
    RequestContext,
    after,
    around,
    as_handler,
    event_stream,
    execute,
    interceptor_middleware,
    on_error,
    setup,
    start_event_stream,
    start_topic_stream,
)
from aiohttp_interceptors.web.app import STREAMS
from tests.waiting import until, within

GET = "GET / HTTP/1.1\nHost: x\n\n"
LAST = b"0\r\n\r\n"


class Broken(Exception):
    """What the producers raise."""


class Unusual(BaseException):
    """A ``BaseException`` that is not an ``Exception``."""


def fails(channel, context):
    channel.put_nowait("x")
    raise Broken


async def fails_later(channel, context):
    await channel.put("x")
    await asyncio.sleep(0)
    raise Broken


async def generator_fails(context):
    yield "x"
    raise Broken


def snapshot_fails(context):
    raise Broken


async def snapshot_fails_midway(context):
    yield "x"
    raise Broken


def subscriber_fails(subscriber, context):
    raise Broken


async def subscriber_fails_later(subscriber, context):
    await asyncio.sleep(0)
    raise Broken


def select_fails(context, record):
    raise Broken


class EnclosedStream:
    """An application with a stream inside an ``@around`` interceptor, and what that interceptor saw."""

    def __init__(self, stream, *between, drain=None) -> None:
        self.seen: list[object] = []
        self.reasons: list[CloseReason] = []

        @around
        async def enclose(context):
            try:
                yield
            except BaseException as error:
                self.seen.append(error)
                raise
            else:
                self.seen.append("commit")

        self.app = web.Application()
        setup(self.app, drain=drain)
        handler = as_handler(enclose, *between, stream) if isinstance(stream, Interceptor) else stream
        if handler is stream:
            self.app.middlewares.append(interceptor_middleware(enclose, *between))
        self.app.router.add_route("*", "/", handler)

    @property
    def slots_in_use(self) -> int:
        return self.app[STREAMS]._limits.in_use


def errors(logged) -> list[dict]:
    return [line for line in logged if line["log_level"] in {"error", "warning"}]


async def body_of(server, request: str = GET) -> bytes:
    return (await server.exchange(request)).partition(b"\r\n\r\n")[2]


HUB_STREAMS = {
    "a snapshot": {"snapshot": snapshot_fails},
    "a snapshot midway": {"snapshot": snapshot_fails_midway},
    "a subscriber's function": {"stream_ready": subscriber_fails},
    "a subscriber's function, later": {"stream_ready": subscriber_fails_later},
    "a subscriber's function behind a snapshot": {"snapshot": lambda c: ["x"], "stream_ready": subscriber_fails_later},
}


class TestAround:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: start_event_stream(fails),
            lambda: start_event_stream(fails_later),
            lambda: event_stream(fails_later),
            lambda: event_stream(generator_fails),
            *[lambda options=options: start_topic_stream(Hub(), "a", **options) for options in HUB_STREAMS.values()],
        ],
        ids=["plain", "async", "decorated", "generator", *HUB_STREAMS],
    )
    async def test_around_sees_what_the_producer_raised_and_aiohttp_reports_it_once(
        self, serve, logged, raised, handler_cancellation, make
    ):
        enclosed = EnclosedStream(make())
        server = await serve(enclosed.app, handler_cancellation=handler_cancellation)
        body = await body_of(server)
        assert not body.endswith(LAST)
        assert [type(seen) for seen in enclosed.seen] == [Broken]
        assert raised() == enclosed.seen
        assert errors(logged) == []
        assert enclosed.slots_in_use == 0

    @pytest.mark.parametrize("held", [True, False])
    async def test_around_sees_what_select_raised(self, serve, logged, raised, held):
        hub = Hub()
        ready = {} if held else {"stream_ready": lambda subscriber, context: None}
        enclosed = EnclosedStream(start_topic_stream(hub, "a", select=select_fails, **ready))
        server = await serve(enclosed.app)
        raw = await server.connect(GET)
        await raw.until(b"\r\n\r\n")
        await until(lambda: hub.statistics().subscribers == 1)
        await hub.publish("a", "x")
        assert not (await within(raw.reader.read())).endswith(LAST)
        await raw.close()
        assert [type(seen) for seen in enclosed.seen] == [Broken]
        assert raised() == enclosed.seen
        assert errors(logged) == []

    async def test_around_sees_what_a_queue_raised(self, serve, raised):
        class Queue(asyncio.Queue):
            def get_nowait(self):
                raise Broken

        async def ready(channel, context):
            await channel.put("x")
            await channel.wait_closed()

        enclosed = EnclosedStream(start_event_stream(ready, buffer=lambda: Queue(3)))
        await body_of(await serve(enclosed.app))
        assert [type(seen) for seen in enclosed.seen] == [Broken]
        assert raised() == enclosed.seen

    @pytest.mark.parametrize("kind", ["plain", "async"])
    @pytest.mark.parametrize(
        "error",
        [Unusual("odd"), GeneratorExit(), BaseExceptionGroup("two", [Unusual()]), asyncio.CancelledError("not mine")],
        ids=lambda error: type(error).__name__,
    )
    @pytest.mark.parametrize("topic_stream", [False, True], ids=["channel", "hub"])
    async def test_around_sees_a_base_exception_as_the_cause_of_an_exception(
        self, serve, logged, raised, kind, error, topic_stream
    ):
        def plain(source, context):
            raise error

        async def later(source, context):
            await asyncio.sleep(0)
            raise error

        ready = plain if kind == "plain" else later
        stream = start_topic_stream(Hub(), "a", stream_ready=ready) if topic_stream else start_event_stream(ready)
        enclosed = EnclosedStream(stream)
        assert not (await body_of(await serve(enclosed.app))).endswith(LAST)
        (seen,) = enclosed.seen
        assert isinstance(seen, RuntimeError)
        assert ready.__qualname__ in str(seen)
        assert isinstance(seen.__cause__, type(error))
        assert raised() == [seen]
        assert errors(logged) == []
        assert enclosed.slots_in_use == 0

    async def test_around_sees_a_base_exception_of_a_snapshot_and_of_a_generator(self, serve, raised):
        def snapshot(context):
            raise Unusual

        async def generate(context):
            yield "x"
            raise Unusual

        for stream in (start_topic_stream(Hub(), "a", snapshot=snapshot), event_stream(generate)):
            enclosed = EnclosedStream(stream)
            await body_of(await serve(enclosed.app))
            assert [type(seen.__cause__) for seen in enclosed.seen] == [Unusual]
        assert len(raised()) == 2

    async def test_an_http_exception_after_commit_is_dropped(self, serve, logged, raised):
        async def ready(channel, context):
            await channel.put("x")
            raise web.HTTPConflict

        enclosed = EnclosedStream(start_event_stream(ready, name="my stream"))
        assert not (await body_of(await serve(enclosed.app))).endswith(LAST)
        assert enclosed.seen == ["commit"]
        (line,) = errors(logged)
        assert (line["event"], line["interceptor"]) == ("change_after_commit_dropped", "my stream")
        assert isinstance(line["exc_info"], web.HTTPConflict)
        assert raised() == []

    @pytest.mark.parametrize("raises", [False, True])
    async def test_a_disconnect_is_not_an_error_unless_the_producer_raises(self, serve, logged, raised, raises):
        async def ready(channel, context):
            await channel.put("x")
            await channel.wait_closed()
            if raises:
                raise Broken

        enclosed = EnclosedStream(start_event_stream(ready))
        server = await serve(enclosed.app)
        raw = await server.connect(GET)
        await raw.until(b"data: x\n\n")
        await raw.close()
        await until(lambda: enclosed.seen)
        await server.stop()
        if raises:
            assert [type(seen) for seen in enclosed.seen] == [Broken]
            assert raised() == enclosed.seen
        else:
            assert enclosed.seen == ["commit"]
            assert raised() == []
        assert errors(logged) == []

    async def test_a_cancelled_chain_logs_the_producers_error(self, serve, logged):
        """The chain raises its cancellation, not the producer's exception."""

        async def ready(channel, context):
            await channel.put("x")
            await channel.wait_closed()
            raise Broken

        enclosed = EnclosedStream(start_event_stream(ready))
        server = await serve(enclosed.app, handler_cancellation=True)
        raw = await server.connect(GET)
        await raw.until(b"data: x\n\n")
        await raw.close()
        await until(lambda: errors(logged))
        (line,) = errors(logged)
        assert line["event"] == "stream_producer_failed"
        assert "ready" in line["producer"]
        await until(lambda: enclosed.slots_in_use == 0)


class TestErrorStage:
    async def test_a_handled_error_is_logged_once_by_the_library(self, serve, logged, raised):
        handled, left = [], []

        @on_error(Broken)
        def handle(context, error):
            handled.append((error, context.error.interceptor, context.error.stage))

        @after
        def leave(context):
            left.append(context.error)

        stream = start_event_stream(fails_later, name="my stream")
        enclosed = EnclosedStream(stream, leave, handle)
        body = await body_of(await serve(enclosed.app))
        assert body.endswith(b"data: x\n\n\r\n")
        assert [(type(error), name, stage) for error, name, stage in handled] == [(Broken, "my stream", "enter")]
        assert (left, enclosed.seen) == ([None], ["commit"])
        (line,) = errors(logged)
        assert (line["event"], line["producer"]) == ("stream_producer_failed", "fails_later")
        assert (line["path"], type(line["exc_info"])) == ("/", Broken)
        assert raised() == []

    @pytest.mark.parametrize("error_event", [None, Event("sorry", "error")])
    async def test_a_handled_error_keeps_the_connection_only_if_the_body_is_complete(self, serve, error_event):
        stream = start_event_stream(fails_later, error_event=error_event)
        server = await serve(EnclosedStream(stream, on_error(Broken)(lambda context, error: None)).app)
        raw = await server.connect(GET)
        await raw.until(b"data: x\n\n\r\n")
        if error_event is None:
            assert await within(raw.reader.read()) == b""
        else:
            await raw.until(LAST)
            raw.writer.write(GET.replace("\n", "\r\n").encode())
            await raw.until(LAST)
        await raw.close()

    async def test_a_response_set_by_the_error_stage_is_dropped(self, serve, logged):
        @on_error(Broken)
        def answer(context, error):
            context.response = web.Response(status=500)

        enclosed = EnclosedStream(start_event_stream(fails_later), answer)
        answered = await (await serve(enclosed.app)).exchange(GET)
        assert answered.count(b"HTTP/1.1") == 1
        assert answered.endswith(b"data: x\n\n\r\n")
        assert [line["event"] for line in errors(logged)] == ["change_after_commit_dropped", "stream_producer_failed"]

    async def test_a_replaced_error_reaches_aiohttp_with_its_cause(self, serve, logged, raised):
        @on_error(Broken)
        def replace(context, error):
            raise LookupError from error

        await body_of(await serve(EnclosedStream(start_event_stream(fails), replace).app))
        (error,) = raised()
        assert isinstance(error, LookupError)
        assert isinstance(error.__cause__, Broken)
        assert errors(logged) == []

    async def test_an_error_that_was_replaced_and_then_handled_is_logged(self, serve, logged, raised):
        @on_error(Broken)
        def replace(context, error):
            raise LookupError

        handle = on_error(LookupError)(lambda context, error: None)
        await body_of(await serve(EnclosedStream(start_event_stream(fails), handle, replace).app))
        assert [(line["event"], type(line["exc_info"])) for line in errors(logged)] == [
            ("stream_producer_failed", Broken)
        ]
        assert raised() == []


class TestOnTheWire:
    @pytest.mark.parametrize(
        "request_lines",
        [
            "GET / HTTP/1.1\nHost: x\n\n",
            "GET / HTTP/1.1\nHost: x\nConnection: close\n\n",
            "GET / HTTP/1.0\nHost: x\n\n",
            "GET / HTTP/1.0\nHost: x\nConnection: keep-alive\n\n",
            "POST / HTTP/1.1\nHost: x\nContent-Length: 3\n\nabc",
            GET * 3,
        ],
        ids=["1.1", "close", "1.0", "1.0 keep-alive", "POST", "pipelined"],
    )
    @pytest.mark.parametrize("error_event", [None, Event("sorry", "error")])
    async def test_nothing_follows_the_end_of_the_body_and_the_connection_is_closed(
        self, serve, raised, caplog, request_lines, error_event, handler_cancellation
    ):
        app = EnclosedStream(start_event_stream(fails_later, error_event=error_event)).app
        server = await serve(app, handler_cancellation=handler_cancellation)
        answer = await server.exchange(request_lines)
        assert answer.count(b"HTTP/1.") == 1
        error_frame = b"" if error_event is None else b"event: error\ndata: sorry\n\n"
        if "HTTP/1.0" in request_lines:
            assert answer.endswith(b"\r\n\r\ndata: x\n\n" + error_frame)
        elif error_event is None:
            assert answer.endswith(b"\r\n\r\n9\r\ndata: x\n\n\r\n")
        else:
            assert answer.endswith(b"\r\n9\r\ndata: x\n\n\r\n%x\r\n%b\r\n" % (len(error_frame), error_frame) + LAST)
        assert [type(error) for error in raised()] == [Broken]
        assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1

    async def test_a_head_request_calls_no_producer(self, serve, raised):
        app = EnclosedStream(start_event_stream(fails)).app
        answer = await (await serve(app)).exchange("HEAD / HTTP/1.1\nHost: x\nConnection: close\n\n")
        assert answer.endswith(b"\r\n\r\n")
        assert raised() == []


class TestProducerName:
    """The log has the name of the user's function."""

    @pytest.mark.parametrize(
        ("make", "name"),
        [
            (lambda: event_stream(generator_fails), "generator_fails"),
            (lambda: event_stream(fails_later), "fails_later"),
            (lambda: start_topic_stream(Hub(), "a", snapshot=snapshot_fails), "snapshot_fails"),
            (lambda: start_topic_stream(Hub(), "a", **HUB_STREAMS["a snapshot midway"]), "snapshot_fails_midway"),
            (
                lambda: start_topic_stream(Hub(), "a", **HUB_STREAMS["a subscriber's function behind a snapshot"]),
                "subscriber_fails_later",
            ),
            (
                lambda: start_topic_stream(
                    Hub(), "a", snapshot=snapshot_fails_midway, stream_ready=subscriber_fails_later
                ),
                "snapshot_fails_midway",
            ),
        ],
    )
    async def test_the_producer_in_the_log(self, serve, logged, make, name):
        enclosed = EnclosedStream(make(), on_error(Broken)(lambda context, error: None))
        await body_of(await serve(enclosed.app))
        assert [line["producer"] for line in errors(logged)] == [name]


class TestSlot:
    """However ``enter`` is called, the stream works or is refused before commit, and its slot is released."""

    @staticmethod
    def wrapped(how: str):
        """Return an interceptor that calls a stream's ``enter`` in the given way."""
        done: list[asyncio.Future[None]] = []

        async def ready(channel, context):
            await channel.put("x")
            await asyncio.sleep(0)
            channel.close()

        stream = start_event_stream(ready, heartbeat=None)

        async def awaits(context):
            await stream.enter(context)

        async def shields(context):
            await asyncio.shield(asyncio.ensure_future(stream.enter(context)))

        async def within_a_group(context):
            async with asyncio.TaskGroup() as group:
                group.create_task(stream.enter(context))

        async def executes(context):
            await execute(context, stream)

        def returns(context):
            return stream.enter(context)

        async def leaves_it_running(context):
            done.append(asyncio.ensure_future(stream.enter(context)))

        async def leaves_it_open(context):
            done.append(asyncio.ensure_future(stream.enter(context)))
            await until(lambda: context.committed)

        async def never_starts(context):
            stream.enter(context).close()

        async def cancels_it(context):
            task = asyncio.ensure_future(stream.enter(context))
            await until(lambda: context.committed)
            task.cancel()
            await asyncio.wait([task])

        async def cancels_it_before_its_first_step(context):
            task = asyncio.ensure_future(stream.enter(context))
            task.cancel()
            await asyncio.wait([task])

        return Interceptor("wrapper", locals()[how]), done

    @pytest.mark.parametrize("how", ["awaits", "shields", "within_a_group", "executes", "returns"])
    async def test_an_awaited_stream_releases_its_slot(self, serve, logged, raised, how):
        interceptor, _ = self.wrapped(how)
        enclosed = EnclosedStream(interceptor)
        server = await serve(enclosed.app)
        for _ in range(3):
            raw = await server.connect(GET)
            await raw.until(b"\r\n\r\n9\r\ndata: x\n\n\r\n" + LAST)
            await raw.close()
        await until(lambda: enclosed.slots_in_use == 0 and len(enclosed.seen) == 3)
        assert enclosed.seen == ["commit"] * 3
        assert errors(logged) == raised() == []

    async def test_a_stage_that_returns_before_its_stream_is_open_is_an_error(self, serve, raised):
        interceptor, done = self.wrapped("leaves_it_running")
        enclosed = EnclosedStream(interceptor)
        answer = await (await serve(enclosed.app)).exchange("GET / HTTP/1.1\nHost: x\nConnection: close\n\n")
        assert answer.startswith(b"HTTP/1.1 500 ")
        with pytest.raises(RuntimeError, match="await what the stream's enter returns"):
            await within(done[0])
        assert enclosed.slots_in_use == 0

    async def test_a_stage_that_returns_while_its_stream_is_open_ends_it(self, serve, logged):
        interceptor, done = self.wrapped("leaves_it_open")
        enclosed = EnclosedStream(interceptor)
        answer = await (await serve(enclosed.app)).exchange(GET)
        assert answer.count(b"HTTP/1.1") == 1
        assert not answer.partition(b"\r\n\r\n")[2].endswith(LAST)  # the headers may end like it: aiohttp/3.12.0
        await within(done[0])
        assert [line["event"] for line in errors(logged)] == ["stream_left_open"]
        assert enclosed.slots_in_use == 0
        assert len(enclosed.app[STREAMS]) == 0

    async def test_a_stream_that_is_never_started_takes_no_slot(self, serve, raised):
        interceptor, _ = self.wrapped("never_starts")
        enclosed = EnclosedStream(interceptor)
        answer = await (await serve(enclosed.app)).exchange(GET)
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert enclosed.slots_in_use == 0

    @pytest.mark.parametrize("how", ["cancels_it", "cancels_it_before_its_first_step"])
    async def test_a_cancelled_stream_releases_its_slot(self, serve, how, raised):
        interceptor, _ = self.wrapped(how)
        enclosed = EnclosedStream(interceptor)
        await (await serve(enclosed.app)).exchange("GET / HTTP/1.1\nHost: x\nConnection: close\n\n")
        assert enclosed.slots_in_use == 0
        assert len(enclosed.app[STREAMS]) == 0

    @pytest.mark.parametrize("where", ["prepare", "observer", "on_close", "stream_ready"])
    async def test_a_callback_that_raises_a_base_exception_releases_the_slot(self, serve, logged, where, monkeypatch):
        def odd(*_):
            raise Unusual

        async def ready(channel, context):
            channel.close()

        def of(name):
            return odd if where == name else None

        app = web.Application()
        setup(app, observer=of("observer"))
        if where == "prepare":

            async def on_prepare(request, response):
                raise Unusual

            app.on_response_prepare.append(on_prepare)

        async def enter(context: RequestContext):
            try:
                await start_event_stream(of("stream_ready") or ready, on_close=of("on_close")).enter(context)
            except Unusual:
                raise Broken from None  # a BaseException would end aiohttp's connection task, and the test

        app.router.add_get("/", as_handler(Interceptor("wrapper", enter)))
        server = await serve(app)
        await server.exchange("GET / HTTP/1.1\nHost: x\nConnection: close\n\n")
        assert app[STREAMS]._limits.in_use == 0
        assert len(app[STREAMS]) == 0
