from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from aiohttp_interceptors import Drain, as_handler, setup, start_event_stream
from aiohttp_interceptors.facts import StreamClosed, StreamFirstEvent, StreamOpened, StreamRefused
from aiohttp_interceptors.web.app import STREAMS, Streams
from aiohttp_interceptors.web.limits import Limits
from tests.waiting import TIMEOUT

REQUEST = make_mocked_request("GET", "/path")


class FakeStream:
    """Record the calls of the registry. The stream ends on ``abort``, and with ``ends=True`` on ``shut_down``."""

    def __init__(self, streams: Streams, *, finite: bool = False, ends: bool = True) -> None:
        self._streams = streams
        self._ends = ends
        self.finite = finite
        self.calls: list[str] = []

    def shut_down(self, drain: Drain) -> None:
        self.calls.append("shut down")
        if self._ends:
            self._streams.discard(self)

    def cancel_producer(self) -> None:
        self.calls.append("cancel")

    def abort(self) -> None:
        self.calls.append("abort")
        self._streams.discard(self)


class TestOpenStreams:
    def test_they_are_counted_and_iterated(self):
        streams = Streams()
        assert (len(streams), list(streams)) == (0, [])
        one, two = FakeStream(streams), FakeStream(streams)
        streams.add(one)
        streams.add(two)
        assert (len(streams), set(streams)) == (2, {one, two})
        streams.discard(one)
        assert (len(streams), list(streams)) == (1, [two])

    def test_an_empty_registry_is_true(self):
        assert Streams()

    def test_they_may_end_during_an_iteration(self):
        streams = Streams()
        for _ in range(3):
            streams.add(FakeStream(streams))
        for stream in streams:
            streams.discard(stream)
        assert len(streams) == 0

    def test_discarding_is_idempotent(self):
        streams = Streams()
        stream = FakeStream(streams)
        streams.add(stream)
        streams.discard(stream)
        streams.discard(stream)
        assert len(streams) == 0

    async def test_handlers_can_read_the_count(self, serve, session):
        async def count(request):
            return web.json_response(len(request.config_dict[STREAMS]))

        app = web.Application()
        setup(app)
        app.router.add_get("/count", count)
        app.router.add_get("/", as_handler(start_event_stream(lambda channel, context: None)))
        server = await serve(app)
        async with session.get(server.url), session.get(f"{server.url}/count") as response:
            assert await response.json() == 1


class TestAdmission:
    def test_a_slot_is_acquired_and_released(self):
        limits = Limits(1, None, None)
        app = web.Application()
        app[STREAMS] = Streams(None, limits)
        slot = app[STREAMS].admit(make_mocked_request("GET", "/path", app=app), 1)
        assert limits.in_use == 1
        for _ in range(2):
            slot.release()
            assert limits.in_use == 0

    async def test_a_closing_registry_refuses_and_reports_it(self):
        limits, facts = Limits(None, None, None), []
        streams = Streams(Drain(spread=7), limits, facts.append)
        await streams.close()
        with pytest.raises(web.HTTPServiceUnavailable) as refusal:
            streams.admit(REQUEST, 42)
        assert 1 <= int(refusal.value.headers["Retry-After"]) <= 7
        assert facts == [StreamRefused(42, "/path", status=503, why="The server is stopping.")]
        assert limits.in_use == 0

    @pytest.mark.parametrize(("spread", "most"), [(0, 1), (0.5, 1), (1.5, 2)])
    async def test_retry_after_is_at_least_a_second(self, spread, most):
        streams = Streams(Drain(spread=spread))
        await streams.close()
        with pytest.raises(web.HTTPServiceUnavailable) as refusal:
            streams.admit(REQUEST, 1)
        assert 1 <= int(refusal.value.headers["Retry-After"]) <= most

    async def test_a_stream_that_is_added_after_closing_is_shut_down(self):
        """It was admitted before, and sending its head took until now."""
        streams = Streams()
        await streams.close()
        late = FakeStream(streams)
        streams.add(late)
        assert late.calls == ["shut down"]
        assert len(streams) == 0


class TestReporting:
    def test_a_fact_is_logged_and_passed_to_the_observer(self, logged):
        facts = []
        Streams(observer=facts.append).report(StreamOpened(1, "/"))
        assert facts == [StreamOpened(1, "/")]
        assert [line["event"] for line in logged] == ["stream_opened"]

    def test_an_observer_that_raises_is_logged_and_removed(self, logged):
        observed = []

        def observer(fact):
            observed.append(fact)
            raise ValueError("no")

        streams = Streams(observer=observer)
        for number in range(2):
            streams.report(StreamOpened(number, "/"))
        assert observed == [StreamOpened(0, "/")]
        assert [line["event"] for line in logged] == ["stream_opened", "stream_observer_dropped", "stream_opened"]

    async def test_each_stream_is_reported_when_it_opens_and_closes(self, serve, session):
        facts = []

        async def ready(channel, context):
            await channel.put("x")
            channel.close()

        app = web.Application()
        setup(app, observer=facts.append)
        app.router.add_get("/", as_handler(start_event_stream(ready)))
        server = await serve(app)
        async with session.get(server.url) as response:
            await response.read()
        await server.stop()
        opened, first, closed = facts
        assert opened == StreamOpened(closed.execution_id, "/", "/")
        assert first == StreamFirstEvent(closed.execution_id, "/", "/", first.seconds)
        expected = StreamClosed(
            opened.execution_id, "/", reason="closed", events=1, bytes=9, dropped=0, seconds=closed.seconds, route="/"
        )
        assert replace(closed, bytes_sent=0) == expected


class TestClosing:
    async def test_all_streams_are_shut_down_and_awaited(self, logged):
        streams = Streams()
        opened = [FakeStream(streams), FakeStream(streams)]
        for stream in opened:
            streams.add(stream)
        await streams.close()
        assert streams.closing
        assert [stream.calls for stream in opened] == [["shut down"]] * 2
        assert not logged

    async def test_closing_is_idempotent(self):
        streams = Streams()
        stream = FakeStream(streams)
        streams.add(stream)
        await streams.close()
        await streams.close()
        assert stream.calls == ["shut down"]

    async def test_finite_streams_are_shut_down_after_the_grace_period(self):
        streams = Streams(Drain(grace=0.01))
        endless, finite = FakeStream(streams), FakeStream(streams, finite=True)
        streams.add(endless)
        streams.add(finite)
        order = []
        finite.shut_down = lambda drain: (order.append(list(endless.calls)), streams.discard(finite))
        await streams.close()
        assert order == [["shut down"]]
        assert endless.calls == ["shut down"]

    async def test_streams_that_do_not_end_are_cancelled_then_aborted_and_counted(self, logged):
        streams = Streams(Drain(timeout=0.01))
        opened = [FakeStream(streams), FakeStream(streams, ends=False), FakeStream(streams, ends=False)]
        for stream in opened:
            streams.add(stream)
        await streams.close()
        assert [stream.calls for stream in opened] == [
            ["shut down"],
            ["shut down", "cancel", "abort"],
            ["shut down", "cancel", "abort"],
        ]
        assert logged == [{"event": "streams_aborted", "log_level": "warning", "streams": 2, "seconds": 0.01}]

    async def test_an_aborted_stream_that_does_not_end_is_not_awaited(self, monkeypatch):
        monkeypatch.setattr("aiohttp_interceptors.web.app.ABORT_TIMEOUT", 0.01)
        streams = Streams(Drain(timeout=0.01))
        stream = FakeStream(streams, ends=False)
        stream.abort = lambda: None
        streams.add(stream)
        async with asyncio.timeout(10):
            await streams.close()
        assert list(streams) == [stream]

    async def test_cancelling_is_safe(self):
        streams = Streams(Drain(timeout=1000))
        stream = FakeStream(streams, ends=False)
        streams.add(stream)
        closing = asyncio.ensure_future(streams.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert streams.closing
        streams.discard(stream)  # no task waits for it any more
        assert len(streams) == 0


class TestLookup:
    async def test_the_innermost_application_with_setup_is_used(self, serve, session):
        """Applications without ``setup`` share a registry."""
        outer, middle, inner, bare = (web.Application() for _ in range(4))
        found = {}

        async def handler(request):
            found[request.path] = Streams.of(request)
            return web.Response()

        for each in (outer, middle, inner, bare):
            each.router.add_get("/x", handler)
        setup(outer)
        setup(middle)
        middle.add_subapp("/inner", inner)
        outer.add_subapp("/middle", middle)
        outer.add_subapp("/bare", bare)
        server = await serve(outer)
        alone = web.Application()
        alone.router.add_get("/alone", handler)
        other = await serve(alone)
        paths = ["/x", "/middle/x", "/middle/inner/x", "/bare/x"]
        for url in [*(server.url + path for path in paths), f"{other.url}/alone"]:
            async with session.get(url) as response:
                assert response.status == 200
        assert [found[path] for path in paths] == [outer[STREAMS], middle[STREAMS], middle[STREAMS], outer[STREAMS]]
        assert found["/alone"] not in (outer[STREAMS], middle[STREAMS])
        assert not found["/alone"].closing

    @pytest.mark.parametrize("error", [ValueError, RuntimeError])
    async def test_an_exception_of_one_stream_does_not_affect_other_streams(self, logged, error):
        class Failing(FakeStream):
            def shut_down(self, drain):
                raise error("no shutdown")

            def cancel_producer(self):
                raise error("no cancellation")

            def abort(self):
                self._streams.discard(self)
                raise error("no abort")

        streams = Streams(Drain(timeout=0.2))
        failing = Failing(streams)
        streams.add(failing)
        streams.add(FakeStream(streams))
        async with asyncio.timeout(TIMEOUT):
            await streams.close()
        assert not list(streams)
        events = {line["event"] for line in logged if line["log_level"] == "error"}
        assert events == {"stream_farewell_failed", "stream_abort_failed"}

    async def test_a_stream_whose_producer_cannot_be_cancelled_is_aborted(self, logged):
        class Failing(FakeStream):
            def cancel_producer(self):
                raise ValueError("no cancellation")

        streams = Streams(Drain(timeout=0.2))
        streams.add(Failing(streams, ends=False))
        async with asyncio.timeout(TIMEOUT):
            await streams.close()
        assert "stream_end_failed" in {line["event"] for line in logged}
        assert not list(streams)
