from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from aiohttp_interceptors import Drain, as_handler, setup, start_event_stream
from aiohttp_interceptors.facts import StreamClosed, StreamOpened, StreamRefused
from aiohttp_interceptors.web.app import STREAMS, Streams
from aiohttp_interceptors.web.limits import Limits
from tests.waiting import PATIENCE

REQUEST = make_mocked_request("GET", "/path")


class Open:
    """A stream that notes what it is told, and ends when it is aborted or, if it is obedient, at the farewell."""

    def __init__(self, streams: Streams, *, finite: bool = False, obedient: bool = True) -> None:
        self._streams = streams
        self._obedient = obedient
        self.finite = finite
        self.told: list[str] = []

    def say_farewell(self, drain: Drain) -> None:
        self.told.append("farewell")
        if self._obedient:
            self._streams.discard(self)

    def hurry(self) -> None:
        self.told.append("hurry")

    def abort(self) -> None:
        self.told.append("abort")
        self._streams.discard(self)


class TestTheOpenOnes:
    def test_are_counted_and_walked_over(self):
        streams = Streams()
        assert (len(streams), list(streams)) == (0, [])
        one, two = Open(streams), Open(streams)
        streams.add(one)
        streams.add(two)
        assert (len(streams), set(streams)) == (2, {one, two})
        streams.discard(one)
        assert (len(streams), list(streams)) == (1, [two])

    def test_a_registry_without_any_is_true(self):
        assert Streams()

    def test_they_may_end_while_somebody_walks_over_them(self):
        streams = Streams()
        for _ in range(3):
            streams.add(Open(streams))
        for stream in streams:
            streams.discard(stream)
        assert len(streams) == 0

    def test_forgetting_one_twice_is_forgetting_it_once(self):
        streams = Streams()
        stream = Open(streams)
        streams.add(stream)
        streams.discard(stream)
        streams.discard(stream)
        assert len(streams) == 0

    async def test_the_count_is_there_for_handlers(self, serve, session):
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
    def test_a_place_is_taken_and_given_back(self):
        limits = Limits(1, None, None)
        app = web.Application()
        app[STREAMS] = Streams(None, limits)
        slot = app[STREAMS].admit(make_mocked_request("GET", "/path", app=app), 1)
        assert limits.taken == 1
        for _ in range(2):
            slot.release()
            assert limits.taken == 0

    async def test_there_is_none_once_it_closes_and_that_is_told(self):
        limits, facts = Limits(None, None, None), []
        streams = Streams(Drain(spread=7), limits, facts.append)
        await streams.close()
        with pytest.raises(web.HTTPServiceUnavailable) as refusal:
            streams.admit(REQUEST, 42)
        assert 1 <= int(refusal.value.headers["Retry-After"]) <= 7
        assert facts == [StreamRefused(42, "/path", status=503, why="The server is stopping.")]
        assert limits.taken == 0

    @pytest.mark.parametrize(("spread", "most"), [(0, 1), (0.5, 1), (1.5, 2)])
    async def test_the_time_to_return_is_at_least_a_second(self, spread, most):
        streams = Streams(Drain(spread=spread))
        await streams.close()
        with pytest.raises(web.HTTPServiceUnavailable) as refusal:
            streams.admit(REQUEST, 1)
        assert 1 <= int(refusal.value.headers["Retry-After"]) <= most

    async def test_one_that_opens_afterwards_is_told_to_end(self):
        """peer bug 24: it was let in before, and its head took until now."""
        streams = Streams()
        await streams.close()
        late = Open(streams)
        streams.add(late)
        assert late.told == ["farewell"]
        assert len(streams) == 0


class TestTelling:
    def test_an_observer_is_told_and_the_log_too(self, logged):
        facts = []
        Streams(observer=facts.append).tell(StreamOpened(1, "/"))
        assert facts == [StreamOpened(1, "/")]
        assert [line["event"] for line in logged] == ["stream_opened"]

    def test_an_observer_that_raises_is_logged_and_not_told_again(self, logged):
        told = []

        def observer(fact):
            told.append(fact)
            raise ValueError("no")

        streams = Streams(observer=observer)
        for number in range(2):
            streams.tell(StreamOpened(number, "/"))
        assert told == [StreamOpened(0, "/")]
        assert [line["event"] for line in logged] == ["stream_opened", "stream_observer_dropped", "stream_opened"]

    async def test_each_stream_is_told_at_its_beginning_and_its_end(self, serve, session):
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
        opened, closed = facts
        assert opened == StreamOpened(closed.execution_id, "/")
        expected = StreamClosed(
            opened.execution_id, "/", reason="closed", events=1, bytes=9, dropped=0, seconds=closed.seconds
        )
        assert closed == expected


class TestClosing:
    async def test_all_are_told_and_waited_for(self, logged):
        streams = Streams()
        opened = [Open(streams), Open(streams)]
        for stream in opened:
            streams.add(stream)
        await streams.close()
        assert streams.closing
        assert [stream.told for stream in opened] == [["farewell"]] * 2
        assert not logged

    async def test_twice_is_once(self):
        streams = Streams()
        stream = Open(streams)
        streams.add(stream)
        await streams.close()
        await streams.close()
        assert stream.told == ["farewell"]

    async def test_a_finite_one_is_left_alone_for_the_grace_only(self):
        streams = Streams(Drain(grace=0.01))
        endless, finite = Open(streams), Open(streams, finite=True)
        streams.add(endless)
        streams.add(finite)
        told = []
        finite.say_farewell = lambda drain: (told.append(list(endless.told)), streams.discard(finite))
        await streams.close()
        assert told == [["farewell"]]
        assert endless.told == ["farewell"]

    async def test_stragglers_are_aborted_and_counted(self, logged):
        """peer bug 28."""
        streams = Streams(Drain(timeout=0.01))
        obedient, deaf, deaf_too = Open(streams), Open(streams, obedient=False), Open(streams, obedient=False)
        for stream in (obedient, deaf, deaf_too):
            streams.add(stream)
        await streams.close()
        assert [stream.told for stream in (obedient, deaf, deaf_too)] == [
            ["farewell"],
            ["farewell", "hurry", "abort"],
            ["farewell", "hurry", "abort"],
        ]
        assert logged == [{"event": "streams_aborted", "log_level": "warning", "streams": 2, "seconds": 0.01}]

    async def test_one_that_does_not_even_end_then_is_not_waited_for(self, monkeypatch):
        monkeypatch.setattr("aiohttp_interceptors.web.app.ABORTED", 0.01)
        streams = Streams(Drain(timeout=0.01))
        stream = Open(streams, obedient=False)
        stream.abort = lambda: None
        streams.add(stream)
        async with asyncio.timeout(10):
            await streams.close()
        assert list(streams) == [stream]

    async def test_cancelling_it_is_safe(self):
        streams = Streams(Drain(timeout=1000))
        stream = Open(streams, obedient=False)
        streams.add(stream)
        closing = asyncio.ensure_future(streams.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert streams.closing
        streams.discard(stream)  # nobody waits for that any more
        assert len(streams) == 0


class TestWhose:
    async def test_the_innermost_application_that_was_set_up_has_a_stream(self, serve, session):
        """And those of no such application are together."""
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
    async def test_one_that_fails_at_its_end_keeps_no_other_from_it(self, logged, error):
        class Failing(Open):
            def say_farewell(self, drain):
                raise error("no farewell")

            def hurry(self):
                raise error("no hurry")

            def abort(self):
                self._streams.discard(self)
                raise error("no abort")

        streams = Streams(Drain(timeout=0.2))
        failing = Failing(streams)
        streams.add(failing)
        obedient = Open(streams)
        streams.add(obedient)
        async with asyncio.timeout(PATIENCE):
            await streams.close()
        assert not list(streams)
        events = {line["event"] for line in logged if line["log_level"] == "error"}
        assert events == {"stream_farewell_failed", "stream_abort_failed"}

    async def test_one_that_cannot_be_hurried_is_aborted(self, logged):
        class Stubborn(Open):
            def hurry(self):
                raise ValueError("no hurry")

        streams = Streams(Drain(timeout=0.2))
        streams.add(Stubborn(streams, obedient=False))
        async with asyncio.timeout(PATIENCE):
            await streams.close()
        assert "stream_end_failed" in {line["event"] for line in logged}
        assert not list(streams)
