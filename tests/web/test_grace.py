"""The grace period in which a producer may observe that its stream has ended."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest
from aiohttp import web

from aiohttp_interceptors import (
    CloseReason,
    Drain,
    Hub,
    after,
    as_handler,
    event_stream,
    setup,
    start_event_stream,
    start_topic_stream,
)
from aiohttp_interceptors.web.app import STREAMS
from tests.waiting import TIMEOUT, until, within

GET = "GET / HTTP/1.1\nHost: x\n\n"
LONG = 60.0  # seconds; longer than a test may take


class ServedStream:
    """A served stream, and what happened in which order."""

    def __init__(self, ready, drain: Drain | None = None, **options: object) -> None:
        self.events: list[object] = []
        self.reasons: list[CloseReason] = []

        def on_close(context, reason):
            self.reasons.append(reason)
            self.events.append("on_close")

        @after
        def leave(context):
            self.events.append("leave")

        self.app = web.Application()
        setup(self.app, drain=drain)
        stream = ready if not callable(ready) else start_event_stream(ready, on_close=on_close, **options)
        self.app.router.add_get("/", as_handler(leave, stream))

    async def open(self, serve, **settings) -> SimpleNamespace:
        server = await serve(self.app, shutdown_timeout=LONG, **settings)
        raw = await server.connect(GET)
        await raw.until(b"data: x\n\n")
        return SimpleNamespace(server=server, raw=raw)


def sleeper(events: list[object], seconds: float = 0.1):
    """Return the usual producer: put, sleep, and clean up once put returns False."""

    async def ready(channel, context):
        try:
            while await channel.put("x"):
                await asyncio.sleep(seconds)
            events.append("clean-up")
            await asyncio.sleep(0)
            events.append("cleaned up")
        except asyncio.CancelledError:
            events.append("cancelled")
            raise

    return ready


def warnings(logged) -> list[str]:
    return [line["event"] for line in logged if line["log_level"] in {"error", "warning"}]


class TestClientDisconnects:
    async def test_a_sleeping_producer_reaches_its_next_put_and_cleans_up(self, serve, logged, handler_cancellation):
        events: list[object] = []
        served = ServedStream(sleeper(events))
        served.events = events
        opened = await served.open(serve, handler_cancellation=handler_cancellation)
        await opened.raw.close()
        await until(lambda: "cleaned up" in events)
        if not handler_cancellation:
            await until(lambda: "leave" in events)
        await until(lambda: len(served.app[STREAMS]) == 0)
        expected = ["on_close", "clean-up", "cleaned up", "leave"]
        assert events == (expected[:-1] if handler_cancellation else expected)
        assert served.reasons == [CloseReason.CLIENT_LEFT]
        assert warnings(logged) == []

    async def test_put_nowait_observes_the_end_and_the_clean_up_may_exceed_the_grace(self, serve, logged):
        free, events = asyncio.Event(), []

        async def ready(channel, context):
            try:
                while channel.put_nowait("x"):
                    await asyncio.sleep(0.001)
                events.append("end observed")
                await free.wait()
                events.append("cleaned up")
            except asyncio.CancelledError:
                events.append("cancelled")
                raise

        served = ServedStream(ready, grace=0.05, buffer=10_000)
        opened = await served.open(serve)
        began = time.monotonic()
        await opened.raw.close()
        await until(lambda: events == ["end observed"] and time.monotonic() - began > 0.2)
        free.set()
        await until(lambda: len(events) == 2)
        assert events == ["end observed", "cleaned up"]
        assert warnings(logged) == []

    async def test_a_producer_that_does_not_put_is_cancelled_after_the_grace_without_a_warning(self, serve, logged):
        events: list[object] = []
        served = ServedStream(sleeper(events, LONG), grace=0.1)
        opened = await served.open(serve)
        began = time.monotonic()
        await opened.raw.close()
        await until(lambda: "cancelled" in events)
        assert time.monotonic() - began >= 0.09
        await until(lambda: served.events == ["on_close", "leave"])
        assert warnings(logged) == []

    async def test_a_producer_that_ignores_cancellation_is_abandoned_with_a_warning(self, serve, logged, monkeypatch):
        monkeypatch.setattr("aiohttp_interceptors.web.producer.CLEANUP_TIMEOUT", 0.01)
        free = asyncio.Event()

        async def ready(channel, context):
            await channel.put("x")
            while not free.is_set():
                try:
                    await free.wait()
                except asyncio.CancelledError:
                    pass
            raise LookupError("too late")

        served = ServedStream(ready, grace=0.01)
        opened = await served.open(serve)
        await opened.raw.close()
        await until(lambda: "leave" in served.events)
        assert warnings(logged) == ["stream_producer_ignores_its_end"]
        free.set()
        await until(lambda: len(warnings(logged)) == 2)
        assert warnings(logged)[1] == "stream_producer_failed"

    async def test_on_close_is_called_at_once_and_a_slow_one_does_not_prolong_the_grace(self, serve):
        events, free = [], asyncio.Event()

        async def on_close(context, reason):
            events.append("on_close")
            await free.wait()

        app = web.Application()
        setup(app)
        app.router.add_get("/", as_handler(start_event_stream(sleeper(events, LONG), on_close=on_close, grace=0.05)))
        server = await serve(app)
        raw = await server.connect(GET)
        await raw.until(b"data: x\n\n")
        await raw.close()
        await until(lambda: events == ["on_close", "cancelled"])
        free.set()
        await until(lambda: len(app[STREAMS]) == 0)

    async def test_a_generator_is_cancelled_at_once(self, serve):
        events = []

        async def generate(context):
            try:
                yield "x"
                await asyncio.sleep(LONG)
            except asyncio.CancelledError:
                events.append("cancelled")
                raise

        app = web.Application()
        app.router.add_get("/", event_stream(generate))
        server = await serve(app)
        raw = await server.connect(GET)
        await raw.until(b"data: x\n\n")
        began = time.monotonic()
        await raw.close()
        await until(lambda: events)
        assert time.monotonic() - began < 4  # the default grace is 5

    async def test_stream_ready_of_a_topic_stream_is_cancelled_at_once(self, serve):
        events = []

        async def ready(subscriber, context):
            try:
                await asyncio.sleep(LONG)
            except asyncio.CancelledError:
                events.append("cancelled")
                raise

        hub = Hub()
        app = web.Application()
        app.router.add_get("/", as_handler(start_topic_stream(hub, "a", stream_ready=ready)))
        server = await serve(app)
        raw = await server.connect(GET)
        await until(lambda: hub.statistics().subscribers == 1)
        began = time.monotonic()
        await raw.close()
        await until(lambda: events)
        assert time.monotonic() - began < 4

    def test_a_generator_takes_no_grace(self):
        async def generate(context):
            yield "x"

        with pytest.raises(TypeError, match="grace is for a function that calls put"):
            event_stream(grace=1.0)(generate)

    @pytest.mark.parametrize(("grace", "error"), [(-1, ValueError), ("1", TypeError), (None, TypeError)])
    def test_grace_is_a_number_of_seconds(self, grace, error):
        with pytest.raises(error, match="grace"):
            start_event_stream(lambda channel, context: None, grace=grace)


class TestServerStops:
    async def test_a_sleeping_producer_cleans_up_within_the_drain(self, serve, logged):
        events: list[object] = []
        served = ServedStream(sleeper(events, 0.05), Drain(timeout=TIMEOUT))
        opened = await served.open(serve)
        await within(opened.server.stop())
        assert events == ["clean-up", "cleaned up"]
        assert served.events == ["on_close", "leave"]
        assert warnings(logged) == []
        await opened.raw.close()

    @pytest.mark.parametrize("leaves_before", [False, True])
    async def test_a_producer_that_sleeps_too_long_is_cancelled_and_no_stream_is_aborted(
        self, serve, logged, leaves_before
    ):
        events: list[object] = []
        served = ServedStream(sleeper(events, LONG), Drain(timeout=8.0), grace=LONG)
        opened = await served.open(serve)
        if leaves_before:
            await opened.raw.close()
            await until(lambda: served.reasons)
        began = time.monotonic()
        await within(opened.server.stop())
        assert 5 < time.monotonic() - began < 30
        assert events == ["cancelled"]
        assert served.events == ["on_close", "leave"]
        assert warnings(logged) == []
        await opened.raw.close()

    async def test_a_grace_shorter_than_the_drain_is_kept(self, serve, logged):
        events: list[object] = []
        served = ServedStream(sleeper(events, LONG), Drain(timeout=LONG), grace=0.05)
        opened = await served.open(serve)
        await within(opened.server.stop())
        assert events == ["cancelled"]
        assert warnings(logged) == []
        await opened.raw.close()

    async def test_a_cancelled_chain_does_not_wait_for_the_grace(self, serve):
        """Without ``setup`` aiohttp cancels the handlers."""
        events: list[object] = []
        app = web.Application()
        app.router.add_get("/", as_handler(start_event_stream(sleeper(events, LONG), grace=LONG)))
        server = await serve(app, shutdown_timeout=0.05)
        raw = await server.connect(GET)
        await raw.until(b"data: x\n\n")
        await within(server.stop())
        await until(lambda: events == ["cancelled"])
        await raw.close()
