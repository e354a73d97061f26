"""Event streams with a channel: opening, producing, disconnects, shutdown, heartbeats and statistics."""

from __future__ import annotations

import asyncio
import dataclasses
import traceback

import pytest
from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from aiohttp_interceptors import (
    CloseReason,
    Event,
    EventChannel,
    Interceptor,
    RequestContext,
    SlidingQueue,
    StreamClosed,
    StreamOpened,
    after,
    around,
    as_handler,
    before,
    event_stream,
    interceptor_middleware,
    setup,
    start_event_stream,
)
from aiohttp_interceptors.testing import open_stream
from aiohttp_interceptors.web.app import STREAMS
from tests.waiting import until, within

GET = "GET / HTTP/1.1\nHost: x\nConnection: close\n\n"
KEEP = "GET / HTTP/1.1\nHost: x\n\n"


class ObservedStream:
    """An application with one stream, and a record of what happens to its producer and its chain."""

    def __init__(self, ready=None, **options: object) -> None:
        self.opened = asyncio.Event()
        self.closed = asyncio.Event()
        self.chain_left = asyncio.Event()
        self.channel: EventChannel | None = None
        self.context: RequestContext | None = None
        self.closes: list[tuple[bool, CloseReason]] = []
        self._ready = ready

        async def stream_ready(channel: EventChannel, context: RequestContext) -> None:
            self.channel, self.context = channel, context
            self.opened.set()
            if self._ready is not None:
                await self._ready(channel, context)

        def on_close(context: RequestContext, reason: CloseReason) -> None:
            self.closes.append((self.channel.closed, reason))
            self.closed.set()

        @after
        def leaving(context: RequestContext) -> None:
            self.chain_left.set()

        options.setdefault("on_close", on_close)
        self.app = web.Application(middlewares=[interceptor_middleware(leaving)])
        self.app.router.add_route("*", "/", as_handler(start_event_stream(stream_ready, **options)))


def levels(logged, *wanted: str) -> list[dict]:
    return [line for line in logged if line["log_level"] in wanted]


class TestOpening:
    async def test_the_head_is_sent_before_stream_ready_is_called_and_needs_no_event(self, serve):
        """Status 200 and the headers are sent at once; the content type has no charset."""
        stream = ObservedStream(heartbeat=None)
        server = await serve(stream.app)
        raw = await server.connect(GET)
        head = await raw.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        lines = head.split(b"\r\n")
        assert b"Content-Type: text/event-stream" in lines
        assert b"Cache-Control: no-cache, no-transform" in lines
        assert b"X-Accel-Buffering: no" in lines
        await within(stream.opened.wait())
        assert stream.context.committed
        await raw.close()

    async def test_the_response_does_not_say_connection_close(self, serve):
        server = await serve(ObservedStream().app)
        raw = await server.connect(KEEP)
        assert b"\r\nConnection:" not in await raw.until(b"\r\n\r\n")
        await raw.close()

    async def test_headers_staged_in_enter_are_sent(self, serve, session):
        """Headers and cookies, for example those of a CORS interceptor."""

        @before
        def stage(context: RequestContext) -> None:
            context.response_headers["Access-Control-Allow-Origin"] = "*"
            context.response_headers["Content-Type"] = "text/plain"
            context.response_headers.add("Set-Cookie", "a=1")
            context.response_headers.add("Set-Cookie", "b=2")

        app = web.Application()
        app.router.add_get("/", as_handler(stage, start_event_stream(lambda channel, context: channel.close())))
        server = await serve(app)
        async with open_stream(session, server.url) as stream:
            headers = stream.response.headers
            assert headers["Access-Control-Allow-Origin"] == "*"
            assert headers.getall("Set-Cookie") == ["a=1", "b=2"]
            assert headers["Content-Type"] == "text/event-stream"

    async def test_stream_ready_gets_the_channel_and_the_context_once(self, serve, session):
        """Path parameters and Last-Event-ID are available through the context."""
        calls = []

        async def ready(channel: EventChannel, context: RequestContext) -> None:
            calls.append((context.request.match_info["room"], context.last_event_id))
            channel.close()

        app = web.Application()
        app.router.add_get("/{room}", as_handler(start_event_stream(ready)))
        server = await serve(app)
        async with open_stream(session, server.url + "/kitchen", last_event_id="41") as stream:
            assert await stream.rest() == []
        assert calls == [("kitchen", "41")]

    @pytest.mark.parametrize("method", ["HEAD", "GET", "POST"])
    async def test_a_head_request_gets_headers_and_no_stream(self, serve, session, method):
        """Other methods get a stream."""
        stream = ObservedStream(lambda channel, context: channel.put("x"), heartbeat=None)
        server = await serve(stream.app)
        async with session.request(method, server.url) as response:
            assert response.headers["Content-Type"] == "text/event-stream"
            if method == "HEAD":
                assert await response.read() == b""
                assert not stream.opened.is_set()
            else:
                assert await response.content.readany() == b"data: x\n\n"
                response.close()

    async def test_http_1_0_streams_without_chunks_and_ends_with_the_connection(self, serve):
        async def ready(channel, context):
            await channel.put("one")
            channel.close()

        server = await serve(ObservedStream(ready).app)
        answer = await server.exchange("GET / HTTP/1.0\nHost: x\nConnection: keep-alive\n\n")
        head, body = answer.split(b"\r\n\r\n", 1)
        assert b"chunked" not in head
        assert body == b"data: one\n\n"

    async def test_the_same_connection_serves_the_next_request(self, serve):
        async def ready(channel, context):
            await channel.put("one")
            channel.close()

        server = await serve(ObservedStream(ready).app)
        raw = await server.connect(KEEP)
        for _ in range(3):
            assert (await raw.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
            assert await raw.until(b"0\r\n\r\n") == b"b\r\ndata: one\n\n\r\n0\r\n\r\n"
            raw.writer.write(KEEP.replace("\n", "\r\n").encode())
        await raw.close()

    async def test_one_interceptor_makes_independent_streams(self, serve, session):
        """Each stream has its own channel and its own queue, also with a queue factory."""
        channels = []

        async def ready(channel, context):
            channels.append(channel)
            await channel.put(f"{len(channels)}")

        app = web.Application()
        app.router.add_get("/", as_handler(start_event_stream(ready, buffer=lambda: asyncio.Queue(2))))
        server = await serve(app)
        async with open_stream(session, server.url) as one, open_stream(session, server.url) as two:
            assert [(await one.next()).data, (await two.next()).data] == ["1", "2"]
            channels[0].close()
            assert await one.rest() == []
            assert channels[1].put_nowait("still open")
            assert (await two.next()).data == "still open"


class TestProducing:
    @pytest.mark.parametrize("kind", ["async", "plain", "plain that returns an awaitable"])
    async def test_plain_and_async_functions_are_called(self, serve, session, kind):
        async def ready(channel, context):
            await channel.put("x")
            channel.close()

        def plain(channel, context):
            channel.put_nowait("x")
            channel.close()

        function = {"async": ready, "plain": plain}.get(kind, lambda channel, context: ready(channel, context))
        app = web.Application()
        app.router.add_get("/", as_handler(start_event_stream(function)))
        async with open_stream(session, (await serve(app)).url) as stream:
            assert [event.data async for event in stream] == ["x"]

    async def test_twenty_puts_into_a_buffer_of_ten_all_arrive(self, serve, session):
        """Events are written before stream_ready returns, and all events put before close() are sent."""

        async def ready(channel, context):
            for number in range(20):
                assert await channel.put(Event("bar", "foo", id=number))
            channel.close()

        async with open_stream(session, (await serve(ObservedStream(ready, buffer=10).app)).url) as stream:
            events = await stream.rest()
        assert [(event.name, event.data, event.id) for event in events] == [("foo", "bar", str(n)) for n in range(20)]

    async def test_the_stream_outlives_stream_ready(self, serve, session):
        """A task that holds the channel can still put after stream_ready returned."""
        returned = asyncio.Event()
        tasks = []

        def ready(channel, context):
            async def later():
                await returned.wait()
                await channel.put("later")
                channel.close()

            tasks.append(asyncio.create_task(later()))

        app = web.Application()
        app.router.add_get("/", as_handler(start_event_stream(ready)))
        async with open_stream(session, (await serve(app)).url) as stream:
            returned.set()
            assert [event.data async for event in stream] == ["later"]

    async def test_close_ends_the_body_and_keeps_the_connection(self, serve):
        """After close() put returns False. close() is idempotent."""
        answers = []

        async def ready(channel, context):
            await channel.put("x")
            channel.close()
            channel.close()
            answers.append((await channel.put("y"), channel.put_nowait("z"), channel.closed))

        stream = ObservedStream(ready)
        server = await serve(stream.app)
        assert (await server.exchange(GET)).endswith(b"\r\n\r\n9\r\ndata: x\n\n\r\n0\r\n\r\n")
        await within(stream.chain_left.wait())
        assert answers == [(False, False, True)]
        assert stream.closes == [(True, CloseReason.CLOSED)]
        assert stream.channel.reason is CloseReason.CLOSED

    @pytest.mark.parametrize("kind", ["async", "plain"])
    async def test_a_producer_that_raises_ends_the_stream_after_its_events(self, serve, logged, raised, kind):
        """The exception is reported once with its traceback, the channel is closed and on_close is called."""

        async def ready(channel, context):
            channel.put_nowait("x")
            raise LookupError("broken")

        def plain(channel, context):
            channel.put_nowait("x")
            raise LookupError("broken")

        stream = ObservedStream(ready)
        app = stream.app
        if kind == "plain":
            closes = stream.closes
            app = web.Application()
            app.router.add_get(
                "/", as_handler(start_event_stream(plain, on_close=lambda c, reason: closes.append((True, reason))))
            )
        server = await serve(app)
        assert (await server.exchange(GET)).endswith(b"\r\n\r\n9\r\ndata: x\n\n\r\n")
        await server.stop()
        assert stream.closes == [(True, CloseReason.ERROR)]
        assert levels(logged, "error", "warning") == []
        (error,) = raised()
        assert isinstance(error, LookupError)
        assert traceback.extract_tb(error.__traceback__)[-1].line == 'raise LookupError("broken")'

    async def test_a_producer_that_awaits_a_cancelled_task_ends_its_stream(self, serve, logged, raised):
        async def ready(channel, context):
            await channel.put("x")
            task = asyncio.create_task(asyncio.Event().wait())
            task.cancel()
            await task

        stream = ObservedStream(ready)
        server = await serve(stream.app)
        assert (await server.exchange(GET)).endswith(b"\r\n\r\n9\r\ndata: x\n\n\r\n")
        assert stream.closes == [(True, CloseReason.ERROR)]
        assert levels(logged, "error") == []
        (error,) = raised()
        assert type(error) is RuntimeError
        assert isinstance(error.__cause__, asyncio.CancelledError)

    async def test_an_event_that_cannot_be_encoded_raises_in_the_producer(self, serve, raised):
        caught = []

        class Unprintable:
            def __str__(self) -> str:
                raise RuntimeError

        async def ready(channel, context):
            try:
                await channel.put(Unprintable())
            except TypeError as error:
                caught.append(str(error)[:32])
            await channel.put("still fine")
            channel.put_nowait(Event("\ud800"))

        server = await serve(ObservedStream(ready).app)
        assert b"data: still fine\n\n" in await server.exchange(GET)
        assert caught == ["put takes an Event or a str, not"]
        assert [type(error) for error in raised()] == [ValueError]

    async def test_retry_is_sent_with_the_first_event(self, serve):
        """There is no frame without data, because some clients report it as an empty event."""

        more = asyncio.Event()

        async def ready(channel, context):
            channel.put_nowait("one")
            channel.put_nowait("two")
            await more.wait()
            await channel.put("three")
            channel.close()

        server = await serve(ObservedStream(ready, retry=1500).app)
        raw = await server.connect(GET)
        await raw.until(b"data: one\nretry: 1500\n\ndata: two\n\n\r\n")
        more.set()
        assert await raw.until(b"0\r\n\r\n") == b"d\r\ndata: three\n\n\r\n0\r\n\r\n"
        await raw.close()

    async def test_put_waits_for_a_slow_client(self, serve):
        """Memory is bounded, and nothing is lost when the client reads again."""
        put = []

        async def ready(channel, context):
            for number in range(300):
                await channel.put(Event("x" * 65536, id=number))
                put.append(number)
            channel.close()

        stream = ObservedStream(ready)
        server = await serve(stream.app)
        raw = await server.connect(GET)
        await raw.until(b"\r\n\r\n")
        await until(lambda: stream.channel is not None and stream.channel._putters)
        held = len(put)
        assert held < 300
        async with asyncio.timeout(20):
            body = await raw.reader.read()
        assert body.count(b"id: ") == 300
        assert body.endswith(b"id: 299\n\n\r\n0\r\n\r\n")
        await raw.close()


class TestChainPauses:
    async def test_leave_stages_run_after_the_stream_has_ended(self, serve, session):
        """Around interceptors enclose the whole stream."""
        trace = []

        @around
        async def timing(context: RequestContext):
            trace.append("in")
            yield
            trace.append("out")

        async def ready(channel, context):
            await channel.wait_closed()

        stream = ObservedStream(ready)
        app = web.Application(middlewares=[interceptor_middleware(timing)])
        app.add_subapp("/s", stream.app)
        server = await serve(app)
        async with open_stream(session, server.url + "/s/"):
            await within(stream.opened.wait())
            assert trace == ["in"]
            assert not stream.chain_left.is_set()
        await within(stream.chain_left.wait())
        await server.stop()
        assert trace == ["in", "out"]

    async def test_a_leave_stage_that_raises_after_the_stream_is_logged_once(self, serve, caplog):
        """Nothing is appended to the body, and the channel is closed."""

        def broken(context: RequestContext) -> None:
            raise LookupError("too late")

        async def ready(channel, context):
            await channel.put("x")
            channel.close()

        stream = ObservedStream(ready)
        app = web.Application(middlewares=[interceptor_middleware(Interceptor("broken", leave=broken))])
        app.add_subapp("/s", stream.app)
        server = await serve(app)
        answer = await server.exchange(KEEP.replace("/ ", "/s/ "))
        assert answer.endswith(b"\r\n\r\n9\r\ndata: x\n\n\r\n0\r\n\r\n")
        assert await stream.channel.put("y") is False
        records = [record for record in caplog.records if record.name == "aiohttp.server"]
        assert [str(record.exc_info[1]) for record in records] == ["too late"]


class TestClientDisconnects:
    @pytest.mark.parametrize("farewell", ["close", "reset"])
    async def test_a_waiting_put_returns_false_at_once(self, serve, handler_cancellation, farewell):
        """So does every later put."""
        answers: asyncio.Queue[bool] = asyncio.Queue()

        async def ready(channel, context):
            while await channel.put("x" * 65536):
                pass
            answers.put_nowait(False)
            answers.put_nowait(await channel.put("later"))

        stream = ObservedStream(ready)
        server = await serve(stream.app, handler_cancellation=handler_cancellation)
        raw = await server.connect(KEEP)
        await within(stream.opened.wait())
        await until(lambda: stream.channel._putters)
        raw.reset() if farewell == "reset" else raw.writer.close()
        assert await within(answers.get()) is False
        assert await within(answers.get()) is False
        await within(stream.closed.wait())
        assert stream.closes == [(True, CloseReason.CLIENT_LEFT)]
        raw.reset()

    async def test_an_idle_stream_detects_a_disconnect_without_heartbeat_or_put(
        self, serve, handler_cancellation, logged
    ):
        """The reason is reported at once, and nothing is logged above debug."""

        async def ready(channel, context):
            await channel.wait_closed()

        stream = ObservedStream(ready, heartbeat=None)
        server = await serve(stream.app, handler_cancellation=handler_cancellation)
        raw = await server.connect(KEEP)
        await within(stream.opened.wait())
        await raw.close()
        await within(stream.closed.wait())
        assert stream.closes == [(True, CloseReason.CLIENT_LEFT)]
        await until(lambda: any(line["event"] == "stream_closed" for line in logged))
        await server.stop()
        assert levels(logged, "error", "warning", "info") == []
        (line,) = [line for line in logged if line["event"] == "stream_closed"]
        assert (line["log_level"], line["reason"], line["events"]) == ("debug", "client_left", 0)

    @pytest.mark.parametrize("grace", [0, 0.01])
    async def test_a_producer_that_does_not_wait_on_its_channel_is_cancelled(self, serve, handler_cancellation, grace):
        """A producer that awaits its own queue ends too, and its finally block runs."""
        cleaned = asyncio.Event()

        async def ready(channel, context):
            try:
                await asyncio.Queue().get()
            finally:
                cleaned.set()

        stream = ObservedStream(ready, grace=grace)
        server = await serve(stream.app, handler_cancellation=handler_cancellation)
        raw = await server.connect(KEEP)
        await within(stream.opened.wait())
        await raw.close()
        await within(cleaned.wait())
        if not handler_cancellation:
            await within(stream.chain_left.wait())

    async def test_a_producer_that_observed_the_end_may_finish_its_work(self, serve):
        done = asyncio.Event()

        async def ready(channel, context):
            await channel.wait_closed()
            for _ in range(10):
                await asyncio.sleep(0)  # the clean-up takes several iterations
            done.set()

        stream = ObservedStream(ready)
        server = await serve(stream.app)
        raw = await server.connect(KEEP)
        await within(stream.opened.wait())
        await raw.close()
        await within(stream.chain_left.wait())
        assert done.is_set()

    async def test_a_producer_that_ignores_its_cancellation_is_abandoned_with_a_warning(
        self, serve, logged, monkeypatch
    ):
        monkeypatch.setattr("aiohttp_interceptors.web.producer.CLEANUP_TIMEOUT", 0.01)
        release = asyncio.Event()
        finished = asyncio.Event()

        async def ready(channel, context):
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    pass
            finished.set()

        stream = ObservedStream(ready, grace=0)
        server = await serve(stream.app)
        raw = await server.connect(KEEP)
        await within(stream.opened.wait())
        await raw.close()
        await within(stream.chain_left.wait())
        assert [line["event"] for line in levels(logged, "warning")] == ["stream_producer_ignores_its_end"]
        release.set()
        await within(finished.wait())

    async def test_on_close_is_called_once_and_may_await_and_raise(self, serve, logged):
        """What it raises is logged, and the clean-up completes."""
        calls = []

        async def on_close(context: RequestContext, reason: CloseReason) -> None:
            await asyncio.sleep(0)
            calls.append(reason)
            raise LookupError("in the hook")

        async def ready(channel, context):
            channel.close()

        stream = ObservedStream(ready, on_close=on_close)
        server = await serve(stream.app)
        assert (await server.exchange(GET)).endswith(b"0\r\n\r\n")
        await within(stream.chain_left.wait())
        assert calls == [CloseReason.CLOSED]
        assert [line["event"] for line in levels(logged, "error")] == ["stream_on_close_failed"]

    async def test_cancellation_by_aiohttp_cleans_up_and_is_raised_again(self, serve):
        seen = asyncio.Queue()

        async def ready(channel, context):
            await asyncio.Event().wait()

        stream = ObservedStream(ready)

        async def outer(request: web.Request) -> web.StreamResponse:
            seen.put_nowait(asyncio.current_task())
            return await handler(request)

        handler = stream.app.router.routes()._routes[0].handler
        app = web.Application()
        app.router.add_get("/", outer)
        server = await serve(app)
        raw = await server.connect(KEEP)
        task = await within(seen.get())
        await within(stream.opened.wait())
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert stream.closes == [(True, CloseReason.SHUTDOWN)]
        await raw.close()

    async def test_a_client_that_disconnects_before_the_head_is_not_an_error(self, serve, logged, caplog):
        """No stream is registered and stream_ready is not called."""
        disconnected = asyncio.Event()
        arrived = asyncio.Event()
        chain_left = asyncio.Event()

        @before
        async def wait(context: RequestContext) -> None:
            arrived.set()
            await disconnected.wait()
            while context.request.transport is not None:
                await asyncio.sleep(0)

        called = []
        outermost = Interceptor("outermost", leave=lambda context: chain_left.set())
        app = web.Application()
        app.router.add_get(
            "/", as_handler(outermost, wait, start_event_stream(lambda channel, context: called.append(1)))
        )
        server = await serve(app)
        raw = await server.connect(KEEP)
        await within(arrived.wait())
        raw.reset()
        disconnected.set()
        await within(chain_left.wait())
        await server.stop()
        assert called == []
        assert levels(logged, "error", "warning") == []
        assert [record for record in caplog.records if record.levelname == "ERROR"] == []


class TestApplicationEndsStream:
    async def test_a_kicked_client_gets_the_end_of_the_body_and_on_close_gets_the_reason(self, serve):
        async def ready(channel, context):
            await channel.put("x")
            await channel.wait_closed()

        stream = ObservedStream(ready, heartbeat=None)
        server = await serve(stream.app)
        raw = await server.connect(GET)
        await raw.until(b"data: x\n\n\r\n")
        stream.channel.end(CloseReason.KICKED)
        assert (await raw.reader.read()).removeprefix(b"2\r\n:\n\r\n") == b"0\r\n\r\n"
        await within(stream.chain_left.wait())
        assert stream.closes == [(True, CloseReason.KICKED)]
        await raw.close()

    async def test_a_kicked_client_that_reads_nothing_is_disconnected(self, serve):
        async def ready(channel, context):
            while await channel.put("x" * 65536):
                pass

        stream = ObservedStream(ready, heartbeat=None)
        server = await serve(stream.app)
        raw = await server.connect(GET)
        await within(stream.opened.wait())
        await until(lambda: stream.channel._putters and stream.context.response.connection.paused)
        stream.channel.end(CloseReason.KICKED)
        await within(stream.chain_left.wait())
        assert stream.closes == [(True, CloseReason.KICKED)]
        raw.reset()

    async def test_a_connection_lost_while_remaining_events_are_sent_ends_the_stream(self, serve):
        """The stream does not retry for ever."""

        async def ready(channel, context):
            for _ in range(3):
                channel.put_nowait("x" * 20_000)  # each a batch of its own
            context.response.connection._transport.close()  # connection_lost() is called in the next iteration
            await context.stream.finish_body()

        stream = ObservedStream(ready, heartbeat=None)
        server = await serve(stream.app)
        raw = await server.connect(GET)
        await within(stream.chain_left.wait())
        assert stream.closes == [(True, CloseReason.CLIENT_LEFT)]
        await raw.close()

    async def test_a_queue_that_raises_ends_its_stream_and_is_not_used_again(self, serve, logged, raised):
        class Broken(asyncio.Queue):
            def get_nowait(self):
                raise LookupError("lost")

        async def ready(channel, context):
            await channel.put("x")
            await channel.wait_closed()

        stream = ObservedStream(ready, buffer=lambda: Broken(3), error_event=Event("sorry", "error"))
        server = await serve(stream.app)
        assert (await server.exchange(GET)).endswith(b"event: error\ndata: sorry\n\n\r\n0\r\n\r\n")
        assert stream.closes == [(True, CloseReason.ERROR)]
        assert [type(error) for error in raised()] == [LookupError]
        assert levels(logged, "error") == []


class TestShutdown:
    async def test_every_stream_ends_cleanly_when_the_application_stops(self, serve):
        """Channels are closed, put returns False, and clients get the end of the body."""
        answers = []

        async def ready(channel, context):
            await channel.put("x")
            await channel.wait_closed()
            answers.append(await channel.put("y"))

        stream = ObservedStream(ready)
        setup(stream.app)
        server = await serve(stream.app, shutdown_timeout=1000)  # longer than the test may take
        clients = [await server.connect(KEEP) for _ in range(5)]
        for client in clients:
            await client.until(b"data: x\n\n\r\n")
        assert len(stream.app[STREAMS]) == 5
        await within(server.stop())
        assert len(stream.app[STREAMS]) == 0
        for client in clients:
            assert (await client.reader.read()).removeprefix(b"2\r\n:\n\r\n") == b"0\r\n\r\n"
            await client.close()
        assert stream.closes == [(True, CloseReason.SHUTDOWN)] * 5
        assert answers == [False] * 5

    async def test_a_client_that_reads_nothing_does_not_delay_the_shutdown(self, serve):
        async def ready(channel, context):
            while await channel.put("x" * 65536):
                pass

        stream = ObservedStream(ready)
        setup(stream.app)
        server = await serve(stream.app, shutdown_timeout=1000)
        raw = await server.connect(KEEP)
        await within(stream.opened.wait())
        await until(lambda: stream.channel._putters and stream.context.response.connection.paused)
        await within(server.stop())
        assert stream.closes == [(True, CloseReason.SHUTDOWN)]
        raw.reset()

    async def test_a_stopping_application_refuses_new_streams(self, serve, session):
        app = ObservedStream().app
        setup(app)
        server = await serve(app)
        await app.shutdown()
        async with session.get(server.url) as response:
            assert response.status == 503
            assert 1 <= int(response.headers["Retry-After"]) <= 5


class TestHeartbeat:
    async def test_an_idle_stream_sends_heartbeats_that_a_browser_ignores(self, serve, session):
        """One comment per interval, also while stream_ready is still running."""

        async def ready(channel, context):
            await channel.wait_closed()

        async with open_stream(session, (await serve(ObservedStream(ready, heartbeat=0.01).app)).url) as stream:
            for _ in range(3):
                await stream.next_heartbeat()
            assert stream.raw.replace(b":\n", b"") == b""

    async def test_a_heartbeat_is_never_written_inside_a_frame(self, serve, session):
        """Several tasks put concurrently, and a heartbeat is written in every event loop iteration."""
        expected = [f"{task}\n{number}\n" for task in range(4) for number in range(100)]

        async def ready(channel, context):
            async def put(task: int) -> None:
                for number in range(100):
                    await channel.put(f"{task}\n{number}\n")
                    await asyncio.sleep(0)

            async def beat() -> None:
                while True:
                    context.response.connection.send_heartbeat()
                    await asyncio.sleep(0)

            beating = asyncio.create_task(beat())
            await asyncio.gather(*map(put, range(4)))
            beating.cancel()
            channel.close()

        async with open_stream(session, (await serve(ObservedStream(ready).app)).url) as stream:
            assert sorted(event.data for event in await stream.rest()) == sorted(expected)
            assert stream.heartbeats > 10


class TestEventStream:
    async def test_a_generator_of_events_is_a_handler(self, serve, session):
        closed = asyncio.Event()

        @event_stream(heartbeat=None)
        async def ticks(context: RequestContext):
            try:
                for number in range(3):
                    yield Event(number, id=number)
                yield "text"
            finally:
                closed.set()

        assert ticks.__name__ == "ticks"
        app = web.Application()
        app.router.add_get("/", ticks)
        async with open_stream(session, (await serve(app)).url) as stream:
            assert [event.data async for event in stream] == ["0", "1", "2", "text"]
        assert closed.is_set()

    @pytest.mark.parametrize("waits", ["in put", "elsewhere"])
    async def test_a_generator_is_closed_when_the_client_leaves(self, serve, session, waits):
        closed = asyncio.Event()

        @event_stream
        async def ticks(context: RequestContext):
            try:
                while True:
                    yield "x" * 65536 if waits == "in put" else "x"
                    if waits == "elsewhere":
                        await asyncio.Event().wait()
            finally:
                closed.set()

        app = web.Application()
        app.router.add_get("/", ticks)
        async with open_stream(session, (await serve(app)).url) as stream:
            await stream.next()
        await within(closed.wait())

    async def test_a_stream_ready_function_is_a_handler(self, serve, session):
        @event_stream
        async def ready(channel: EventChannel, context: RequestContext) -> None:
            await channel.put("x")
            channel.close()

        app = web.Application()
        app.router.add_get("/", ready)
        async with open_stream(session, (await serve(app)).url) as stream:
            assert [event.data async for event in stream] == ["x"]


class TestStatistics:
    async def test_statistics_are_available_while_open_and_after_the_end(self, serve):
        seen = []

        async def ready(channel, context):
            seen.append(context.stream.statistics())
            await channel.put("x" * 10)
            await channel.put(Event("é", id="1"))
            seen.append(context.stream.statistics())
            while context.stream.statistics().buffered:
                await asyncio.sleep(0)
            seen.append(context.stream.statistics())
            channel.close()

        stream = ObservedStream(ready, heartbeat=None)
        server = await serve(stream.app)
        body = (await server.exchange(GET)).partition(b"\r\n\r\n")[2]
        await within(stream.chain_left.wait())
        final = stream.context.stream.statistics()
        frames = len(b"data: xxxxxxxxxx\n\n" + "data: é\nid: 1\n\n".encode())
        assert [(done.events, done.bytes, done.buffered, done.reason) for done in [*seen, final]] == [
            (0, 0, 0, None),
            (0, 0, 2, None),
            (2, frames, 0, None),
            (2, frames, 0, CloseReason.CLOSED),
        ]
        assert sum(map(len, body.split(b"\r\n")[1:-3:2])) == frames
        assert 0 <= seen[0].seconds <= seen[1].seconds <= seen[2].seconds <= final.seconds
        assert stream.context.stream.statistics() == final
        assert (final.dropped, final.unsent) == (0, 0)

    async def test_statistics_are_immutable(self, serve):
        stream = ObservedStream(lambda channel, context: channel.put("x"), heartbeat=None)
        raw = await (await serve(stream.app)).connect(GET)
        await within(stream.opened.wait())
        done = stream.context.stream.statistics()
        for field in dataclasses.fields(done):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(done, field.name, 1)
        await raw.close()

    async def test_unsent_bytes_and_dropped_events_are_counted(self, serve):
        async def ready(channel, context):
            while context.stream.statistics().dropped < 5:
                await channel.put("x" * 65536)
            await channel.wait_closed()

        stream = ObservedStream(ready, heartbeat=None, buffer=lambda: SlidingQueue(3))
        raw = await (await serve(stream.app)).connect(GET)
        await until(lambda: stream.context is not None and stream.context.stream.statistics().dropped >= 5)
        done = stream.context.stream.statistics()
        assert done.buffered == 3
        assert done.unsent > 0
        assert done.bytes == done.events * 65544
        raw.reset()

    async def test_the_log_and_an_observer_get_the_sizes_once_each(self, serve, logged):
        """They equal what the client received."""
        facts = []
        stream = ObservedStream(lambda channel, context: finish(channel), heartbeat=None)
        setup(stream.app, observer=facts.append)
        server = await serve(stream.app)
        body = (await server.exchange(GET)).partition(b"\r\n\r\n")[2]
        await within(stream.chain_left.wait())
        size = sum(map(len, body.split(b"\r\n")[1:-3:2]))
        opened, _, closed = facts
        run = stream.context.execution_id
        assert opened == StreamOpened(run, "/", "/")
        expected = StreamClosed(run, "/", "closed", 2, size, 0, 0, "/", len(body))
        assert dataclasses.replace(closed, seconds=0) == expected
        lines = [line for line in logged if line["event"].startswith("stream_")]
        assert [(line["event"], line["log_level"]) for line in lines] == [
            ("stream_opened", "debug"),
            ("stream_closed", "debug"),
        ]
        assert {name: lines[1][name] for name in ("reason", "events", "bytes")} == {
            "reason": "closed",
            "events": 2,
            "bytes": size,
        }

    @pytest.mark.parametrize("leaves", [False, True])
    async def test_the_access_log_has_the_bytes_sent(self, serve, leaves):
        """Also for a client that disconnected, for which aiohttp alone counts nothing."""
        sizes = []

        class AccessLogger(AbstractAccessLogger):
            def log(self, request, response, time):
                sizes.append((response.status, response.body_length))

        async def ready(channel, context):
            await channel.put("x")
            if not leaves:
                channel.close()
            await channel.wait_closed()

        stream = ObservedStream(ready, heartbeat=None)
        server = await serve(stream.app, access_log_class=AccessLogger)
        raw = await server.connect(GET)
        answer = await raw.until(b"data: x\n\n\r\n" if leaves else b"0\r\n\r\n")
        head = answer.index(b"\r\n\r\n") + 4
        await raw.close()
        await until(lambda: sizes)
        ((status, size),) = sizes
        assert status == 200
        assert size in (len(answer), len(answer) - head, len(answer) - head - (0 if leaves else 5)), (size, answer)


async def finish(channel):
    await channel.put("x")
    await channel.put(Event("y", id="1"))
    channel.close()


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"heartbeat": 0}, ValueError, "heartbeat is more than 0 seconds, not 0; None means no heartbeat"),
            ({"heartbeat": -1.5}, ValueError, "heartbeat is more than 0 seconds, not -1.5"),
            ({"heartbeat": float("inf")}, ValueError, "heartbeat is more than 0 seconds, not inf"),
            ({"heartbeat": "10"}, TypeError, "heartbeat is a number of seconds or None, not '10'"),
            ({"heartbeat": True}, TypeError, "heartbeat is a number of seconds or None, not True"),
            ({"buffer": 0}, ValueError, "buffer is 1 event or more, not 0"),
            ({"buffer": None}, TypeError, "buffer is a number of events or a factory of asyncio.Queue, not None"),
            ({"retry": -1}, ValueError, "retry is a whole number of milliseconds from 0 to 9007199254740991, not -1"),
            ({"retry": 1.5}, TypeError, "retry is a whole number of milliseconds from 0 to 9007199254740991, not 1.5"),
            (
                {"on_close": 1},
                TypeError,
                r"on_close is a plain or an async function, not 1",
            ),
            (
                {"on_close": lambda: None},
                TypeError,
                r"on_close is called as on_close\(context, reason\), which .* does not take",
            ),
            ({"name": ""}, ValueError, "an interceptor's name must not be blank"),
            ({"name": 1}, TypeError, "an interceptor's name is a str, not 1"),
        ],
    )
    def test_an_invalid_option_is_refused_when_the_interceptor_is_made(self, arguments, error, message):
        with pytest.raises(error, match=message):
            start_event_stream(lambda channel, context: None, **arguments)
        with pytest.raises(error, match=message):
            event_stream(**arguments)(lambda channel, context: None)

    @pytest.mark.parametrize("wrong", [None, "ready", lambda channel: None, lambda: None])
    def test_an_invalid_stream_ready_is_refused_when_the_interceptor_is_made(self, wrong):
        with pytest.raises(TypeError, match="stream_ready is"):
            start_event_stream(wrong)

    def test_an_invalid_generator_is_refused_when_the_handler_is_made(self):
        async def generate():
            yield "x"

        with pytest.raises(
            TypeError, match=r"a generator of events is called as generate\(context\), which .* does not take"
        ):
            event_stream(generate)

    async def test_a_chain_without_a_request_raises_type_error(self):
        from aiohttp_interceptors import Context, execute  # noqa: PLC0415

        with pytest.raises(TypeError, match="needs the RequestContext of an aiohttp request"):
            await execute(Context(), start_event_stream(lambda channel, context: None))
