"""The resources of a stream are released exactly once and immediately, however it ends."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
from aiohttp import web

from aiohttp_interceptors import (
    CloseReason,
    Event,
    Hub,
    Interceptor,
    RequestContext,
    StreamRefused,
    as_handler,
    before,
    setup,
    start_event_stream,
    start_topic_stream,
)
from aiohttp_interceptors.web import limits as limits_module
from aiohttp_interceptors.web.app import STREAMS
from aiohttp_interceptors.web.context import contexts
from aiohttp_interceptors.web.timers import timer_queue
from tests.listener import listen
from tests.waiting import until, within


class Custom(BaseException):
    """A BaseException that is not an Exception."""


class Broken(Exception):
    """Raised by a function of an application."""


@pytest.fixture(autouse=True)
def quiet(logged):
    """Capture the log lines of streams."""


def by_user(request):
    return request.headers.get("User", "somebody")


def get(user="alice", path="/", method="GET", more=""):
    return f"{method} {path} HTTP/1.1\nHost: x\nUser: {user}\n{more}\n"


async def waits(channel, context):
    await channel.put("x")
    await channel.wait_closed()


class Site:
    """An application with streams of both kinds."""

    def __init__(self, *interceptors, limits=None, wrap=None, observer=None, hub_options=None, **options):
        self.hub = Hub()
        self.closes: list[CloseReason] = []
        self.facts: list[object] = []
        self.tasks: list[asyncio.Task] = []
        self.requests: list[web.Request] = []
        self.app = web.Application()
        limits = {"max_streams": 3, "max_streams_per_key": 2, "key": by_user} if limits is None else limits
        setup(self.app, self.hub, observer=observer or self.facts.append, **limits)
        options.setdefault("stream_ready", waits)
        common = {"on_close": lambda context, reason: self.closes.append(reason), "max_age": 1000.0}
        channel = start_event_stream(**{**common, **options})
        topic = start_topic_stream(self.hub, "a", **{"prime": True, **common, **(hub_options or {})})

        @before
        def note(context):
            self.tasks.append(asyncio.current_task())
            self.requests.append(context.request)

        for path, stream in (("/", channel), ("/topic", topic)):
            last = stream if wrap is None else wrap(stream)
            self.app.router.add_route("*", path, as_handler(note, *interceptors, last))

    def held(self):
        """Return the number of each resource of streams and their requests."""
        streams = self.app[STREAMS]
        limits = streams._limits
        return {
            "slots": limits.in_use,
            "keys": len(limits._in_use_by_key) + len(limits._slots or ()) + len(limits._evictions),
            "streams": len(streams),
            "contexts": len(contexts),
            "subscribers": self.hub.statistics().subscribers + self.hub.statistics().catching_up,
            "timers": timer_queue()._active,
        }

    async def until_nothing_is_held(self):
        try:
            await until(lambda: not any(self.held().values()))
        except TimeoutError:
            raise AssertionError(self.held()) from None


BOTH_KINDS = pytest.mark.parametrize("path", ["/", "/topic"])


class TestRelease:
    """Each resource is released when a stream ends in one way, and the next stream gets its slot."""

    async def check(self, site, serve, run, **settings):
        server = await serve(site.app, **settings)
        for _ in range(3):  # more than the limit for a key
            await run(server)
            await site.until_nothing_is_held()

    @BOTH_KINDS
    @pytest.mark.parametrize("how", ["close", "reset"])
    async def test_client_disconnects(self, serve, path, how, handler_cancellation):
        async def run(server):
            raw = await server.connect(get(path=path))
            await raw.until(b"\n\n\r\n")
            raw.reset() if how == "reset" else await raw.close()

        await self.check(Site(), serve, run, handler_cancellation=handler_cancellation)

    @BOTH_KINDS
    async def test_client_disconnects_before_the_head(self, serve, path, handler_cancellation):
        asked, going = asyncio.Event(), asyncio.Event()

        @before
        async def slow(context):
            asked.set()
            await going.wait()

        async def run(server):
            asked.clear()
            going.clear()
            raw = await server.connect(get(path=path))
            await within(asked.wait())
            raw.reset()
            await until(lambda: site.requests[-1].transport is None)
            going.set()

        site = Site(slow)
        await self.check(site, serve, run, handler_cancellation=handler_cancellation)
        assert not [fact for fact in site.facts if isinstance(fact, StreamRefused)]

    @BOTH_KINDS
    async def test_client_disconnects_in_on_response_prepare(self, serve, path, handler_cancellation):
        asked, going = asyncio.Event(), asyncio.Event()

        async def hook(request, response):
            asked.set()
            await going.wait()

        async def run(server):
            asked.clear()
            going.clear()
            raw = await server.connect(get(path=path))
            await within(asked.wait())
            raw.reset()
            await until(lambda: site.requests[-1].transport is None)
            going.set()

        site = Site()
        site.app.on_response_prepare.append(hook)
        await self.check(site, serve, run, handler_cancellation=handler_cancellation)

    @BOTH_KINDS
    @pytest.mark.parametrize("error", [Broken, ConnectionError, web.HTTPForbidden])
    async def test_on_response_prepare_raises(self, serve, path, error):
        async def hook(request, response):
            if response.status == 200:
                raise error

        async def run(server):
            answer = await server.exchange(get(path=path, more="Connection: close\n"))
            assert re.match(rb"HTTP/1.1 (500|403) ", answer)

        site = Site()
        site.app.on_response_prepare.append(hook)
        await self.check(site, serve, run)

    @BOTH_KINDS
    async def test_task_is_cancelled(self, serve, path):
        async def run(server):
            raw = await server.connect(get(path=path))
            await raw.until(b"\n\n\r\n")
            site.tasks[-1].cancel()
            await raw.reader.read()
            await raw.close()

        site = Site()
        await self.check(site, serve, run)
        assert site.closes == [CloseReason.SHUTDOWN] * 3

    @BOTH_KINDS
    @pytest.mark.parametrize("when", ["never started", "cancelled before its first step", "cancelled at once"])
    async def test_stream_coroutine_is_not_completed(self, serve, path, when):
        def wrap(stream):
            async def enter(context: RequestContext):
                coroutine = stream.enter(context)
                if when == "never started":
                    coroutine.close()
                else:
                    task = asyncio.ensure_future(coroutine)
                    if when == "cancelled at once":
                        await asyncio.sleep(0)
                    task.cancel()
                    await asyncio.wait([task])
                if not context.committed:
                    context.response = web.Response()

            return Interceptor("wrapper", enter)

        async def run(server):
            assert (await server.exchange(get(path=path, more="Connection: close\n"))).startswith(b"HTTP/1.1 200 ")

        await self.check(Site(wrap=wrap), serve, run)

    @BOTH_KINDS
    async def test_stage_returns_while_the_stream_is_open(self, serve, path):
        kept = []

        def wrap(stream):
            async def enter(context: RequestContext):
                kept.append(asyncio.ensure_future(stream.enter(context)))
                await until(lambda: context.stream is not None)

            return Interceptor("wrapper", enter)

        async def run(server):
            await server.exchange(get(path=path, more="Connection: close\n"))
            await asyncio.wait(kept)
            for task in kept:
                task.cancelled() or task.exception()

        await self.check(Site(wrap=wrap), serve, run)

    @BOTH_KINDS
    async def test_head_request(self, serve, path):
        async def run(server):
            raw = await server.connect(get(path=path, method="HEAD") * 3)
            for _ in range(3):
                assert (await raw.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
            await raw.close()

        await self.check(Site(), serve, run)

    @BOTH_KINDS
    async def test_stream_is_opened_after_a_committed_response(self, serve, path):
        @before
        async def answers(context: RequestContext):
            response = web.StreamResponse()
            await response.prepare(context.request)
            await response.write(b"done")

        async def run(server):
            answer = await server.exchange(get(path=path, more="Connection: close\n"))
            assert answer.count(b"HTTP/1.1") == 1

        await self.check(Site(answers), serve, run)

    @BOTH_KINDS
    @pytest.mark.parametrize("error", [Broken, Custom])
    async def test_observer_raises(self, serve, path, error):
        """The stream is already registered when it is reported."""

        def observer(fact):
            raise error

        def wrap(stream):
            async def enter(context: RequestContext):
                try:
                    await stream.enter(context)
                except Custom:
                    raise Broken from None  # it would end the task of aiohttp's connection, and fail the test

            return Interceptor("wrapper", enter)

        async def run(server):
            raw = await server.connect(get(path=path))
            await raw.until(b"\r\n\r\n")
            await raw.close()

        await self.check(Site(wrap=wrap, observer=observer), serve, run)

    @BOTH_KINDS
    @pytest.mark.parametrize("error", [Broken, Custom, asyncio.CancelledError])
    @pytest.mark.parametrize("plain", [True, False])
    async def test_stream_ready_raises(self, serve, path, error, plain):
        def at_once(_, context):
            raise error

        async def later(_, context):
            await asyncio.sleep(0)
            raise error

        ready = at_once if plain else later

        async def run(server):
            await server.exchange(get(path=path, more="Connection: close\n"))

        site = Site(stream_ready=ready, hub_options={"stream_ready": ready})
        await self.check(site, serve, run)
        assert site.closes == [CloseReason.ERROR] * 3

    @BOTH_KINDS
    @pytest.mark.parametrize("error", [Broken, Custom])
    async def test_on_close_raises(self, serve, path, error):
        def on_close(context, reason):
            raise error

        async def run(server):
            raw = await server.connect(get(path=path))
            await raw.until(b"\n\n\r\n")
            await raw.close()

        await self.check(Site(on_close=on_close, hub_options={"on_close": on_close}), serve, run)

    async def test_queue_factory_raises(self, serve):
        """The head was sent before."""

        def factory():
            raise Broken

        async def run(server):
            await server.exchange(get(more="Connection: close\n"))

        site = Site(buffer=factory)
        await self.check(site, serve, run)
        assert site.closes == []

    @pytest.mark.parametrize("fails_from", range(1, 12))
    async def test_queue_raises_after_some_calls(self, serve, fails_from):
        calls = 0

        class Queue(asyncio.Queue):
            def qsize(self):
                nonlocal calls
                calls += 1
                if calls >= fails_from:
                    raise Broken
                return super().qsize()

        async def ready(channel, context):
            for _ in range(3):
                if not await channel.put("x"):
                    break
            channel.close()

        async def run(server):
            nonlocal calls
            calls = 0
            raw = await server.connect(get())
            await raw.until(b"\r\n\r\n")
            await raw.close()

        await self.check(Site(stream_ready=ready, buffer=lambda: Queue(10)), serve, run)

    @pytest.mark.parametrize(
        "key", [lambda request: [], lambda request: request.headers["Absent"], lambda request: 1 / 0]
    )
    async def test_key_function_raises_or_returns_an_unhashable_key(self, serve, key):
        async def run(server):
            answer = await server.exchange(get(more="Connection: close\n"))
            assert answer.startswith(b"HTTP/1.1 500 ")

        await self.check(Site(limits={"max_streams": 3, "max_streams_per_key": 2, "key": key}), serve, run)

    @BOTH_KINDS
    async def test_server_stops(self, serve, path):
        site = Site()
        server = await serve(site.app)
        raw = await server.connect(get(path=path))
        await raw.until(b"\n\n\r\n")
        await server.stop()
        await site.until_nothing_is_held()
        assert site.closes == [CloseReason.SHUTDOWN]
        await raw.close()


class TestReleaseTime:
    @pytest.mark.parametrize("end", ["client", "application", "producer"])
    async def test_a_slot_is_released_before_the_producer_cleans_up_and_the_leave_stages_run(
        self, serve, end, handler_cancellation
    ):
        """A browser that reloads its page gets its stream although the old one is still cleaning up."""
        cleaned, left, streams = asyncio.Event(), asyncio.Event(), []

        async def ready(channel, context):
            streams.append(context.stream)
            if len(streams) > 1:
                return
            if end == "producer":
                await channel.put("x")
                channel.close()
            else:
                while await channel.put("x"):
                    await channel.wait_closed()
            await cleaned.wait()

        async def leave(context):
            await left.wait()

        options = {"max_streams": 1, "max_streams_per_key": 1, "key": by_user}
        site = Site(Interceptor("slow", leave=leave), limits=options, stream_ready=ready)
        server = await serve(site.app, handler_cancellation=handler_cancellation)
        first = await server.connect(get())
        await first.until(b"data: x\n\n\r\n")
        if end == "client":
            await first.close()
            await until(lambda: streams[0].reason is not None)
        elif end == "application":
            streams[0].end(CloseReason.KICKED)
        else:
            await until(lambda: streams[0].reason is not None)
        assert site.app[STREAMS]._limits.in_use == 0
        second = await server.connect(get())
        assert (await second.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert site.app[STREAMS]._limits.in_use == 1
        assert len(site.app[STREAMS]) == 2  # the first one is still cleaning up
        cleaned.set()
        await until(lambda: len(site.app[STREAMS]) == 1)
        left.set()
        assert site.app[STREAMS]._limits.in_use == 1  # the slot is not released twice
        for raw in (first, second):
            await raw.close()
        await site.until_nothing_is_held()


KICK = {"max_streams_per_key": 1, "key": by_user, "on_limit": "kick"}


class TestKick:
    @BOTH_KINDS
    async def test_the_oldest_stream_sends_the_kick_event_and_ends(self, serve, path):
        site = Site(limits=KICK)
        server = await serve(site.app)
        old = await listen(server, path)
        await until(lambda: len(site.app[STREAMS]) == 1)
        new = await listen(server, path)
        assert new.status == 200
        last = (await old.rest())[-1]
        assert (last.name, bool(last.data)) == ("kicked", True)
        assert old.complete
        assert site.closes == [CloseReason.KICKED]
        assert site.app[STREAMS]._limits.in_use == 1
        for listener in (old, new):
            await listener.close()
        await site.until_nothing_is_held()

    @pytest.mark.parametrize("event", [Event.json({"why": "elsewhere"}, name="bye", retry=60_000), None])
    async def test_the_kick_event_can_be_configured(self, serve, event):
        site = Site(limits={**KICK, "kick_event": event})
        server = await serve(site.app)
        old = await listen(server)
        await old.event()
        new = await listen(server)
        rest = await old.rest()
        if event is None:
            assert rest == []
        else:
            assert [(last.name, json.loads(last.data)) for last in rest] == [("bye", {"why": "elsewhere"})]
            assert old.retry == 60_000
        for listener in (old, new):
            await listener.close()

    async def test_streams_of_other_keys_and_newer_streams_of_the_key_are_not_kicked(self, serve):
        site = Site(limits={**KICK, "max_streams_per_key": 2})
        server = await serve(site.app)
        users = ["alice", "bob", "alice", "alice"]
        raws = []
        for user in users:
            raws.append(await server.connect(get(user)))
            await raws[-1].until(b"data: x\n\n\r\n")
        assert b"event: kicked\n" in await raws[0].until(b"0\r\n\r\n")
        assert site.closes == [CloseReason.KICKED]
        assert site.app[STREAMS]._limits.in_use == 3
        for raw in raws:
            await raw.close()
        await site.until_nothing_is_held()

    async def test_a_newer_stream_does_not_wait_for_a_stalled_old_one(self, serve):
        streams = []

        async def ready(channel, context):
            streams.append(context.stream)
            if len(streams) == 1:
                while await channel.put("x" * 100_000):
                    pass
                await asyncio.Event().wait()  # the producer hangs

        site = Site(limits=KICK, stream_ready=ready, max_event_size=None, grace=1000.0)
        server = await serve(site.app)
        old = await listen(server, receive_buffer=4096)
        await until(lambda: streams and streams[0]._connection.paused)
        new = await listen(server)
        assert new.status == 200
        assert streams[0].reason is CloseReason.KICKED
        body = b""
        try:
            while data := await within(old.raw.reader.read(65536)):
                body += data
        except ConnectionError:
            pass
        assert b"kicked" not in body  # the connection was aborted
        for listener in (old, new):
            await listener.close()

    async def test_a_finite_stream_that_is_kicked_is_incomplete(self, serve):
        site = Site(limits=KICK)
        server = await serve(site.app)
        old = await listen(server, method="POST")
        await old.event()
        new = await listen(server, method="POST")
        assert [event.name for event in await old.rest()] == ["kicked"]
        assert not old.complete
        for listener in (old, new):
            await listener.close()

    async def test_at_max_streams_only_a_stream_of_the_same_key_can_be_replaced(self, serve):
        site = Site(limits={**KICK, "max_streams": 1})
        server = await serve(site.app)
        old = await server.connect(get("alice"))
        await old.until(b"data: x\n\n\r\n")
        other = await server.exchange(get("bob", more="Connection: close\n"))
        assert other.startswith(b"HTTP/1.1 503 ")
        new = await server.connect(get("alice"))
        await new.until(b"data: x\n\n\r\n")
        await old.until(b"event: kicked\n")
        for raw in (old, new):
            await raw.close()

    async def test_a_stream_whose_head_is_not_sent_is_kicked_when_it_opens(self, serve):
        asked, going, requests = asyncio.Event(), asyncio.Event(), []

        async def hook(request, response):
            requests.append(request)
            if len(requests) == 1:
                asked.set()
                await going.wait()

        site = Site(limits=KICK)
        site.app.on_response_prepare.append(hook)
        server = await serve(site.app)
        old = await server.connect(get("somebody"))
        await within(asked.wait())
        new = await listen(server)
        assert new.status == 200
        going.set()
        await old.until(b"event: kicked\n")
        await old.until(b"0\r\n\r\n")
        await until(lambda: site.closes == [CloseReason.KICKED])
        assert site.app[STREAMS]._limits.in_use == 1
        for raw in (old, new.raw):
            await raw.close()
        await site.until_nothing_is_held()

    async def test_two_tabs_that_reconnect_are_refused_after_five_kicks(self, serve, monkeypatch):
        """The sixth kick in a minute is refused with 429, after which an EventSource does not reconnect."""
        site = Site(limits=KICK)
        server = await serve(site.app)
        statuses, open_now = [], []
        while 429 not in statuses and len(statuses) < 100:
            listener = await listen(server)
            statuses.append(listener.status)
            open_now.append(listener)
        assert statuses == [200] * 6 + [429]
        assert site.app[STREAMS]._limits.in_use == 1
        assert site.facts[-1] == StreamRefused(
            site.facts[-1].execution_id, "/", 429, "You have too many streams open.", "max_streams_per_key", "/"
        )
        other = await server.connect(get("bob"))
        await other.until(b"data: x\n\n\r\n")  # the rate is limited per key
        monkeypatch.setattr(limits_module, "KICK_WINDOW", 0.0)  # a minute later
        listener = await listen(server)
        assert listener.status == 200
        for raw in (listener.raw, other, *(each.raw for each in open_now)):
            await raw.close()
        await site.until_nothing_is_held()

    async def test_a_page_with_many_streams_can_replace_all_of_them(self, serve):
        site = Site(limits={**KICK, "max_streams_per_key": 6})
        server = await serve(site.app)
        listeners = [await listen(server) for _ in range(12)]
        assert [listener.status for listener in listeners] == [200] * 12
        assert site.app[STREAMS]._limits.in_use == 6
        for listener in listeners:
            await listener.close()
        await site.until_nothing_is_held()

    async def test_a_disconnected_client_kicks_no_stream(self, serve):
        asked, going = asyncio.Event(), asyncio.Event()

        @before
        async def slow(context: RequestContext):
            if context.request.query_string:
                asked.set()
                await going.wait()

        site = Site(slow, limits=KICK)
        server = await serve(site.app)
        old = await listen(server)
        await old.event()
        gone = await server.connect(get("somebody", path="/?slow"))
        await within(asked.wait())
        gone.reset()
        await until(lambda: site.requests[-1].transport is None)
        going.set()
        await until(lambda: site.tasks[-1].done() or CloseReason.CLIENT_LEFT in site.closes)
        assert CloseReason.KICKED not in site.closes
        assert site.app[STREAMS]._limits.in_use == 1
        await old.close()
        await gone.close()
        await site.until_nothing_is_held()

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"on_limit": "newest"}, ValueError, "on_limit is 'refuse' or 'kick', not 'newest'"),
            ({"on_limit": None}, ValueError, "on_limit is 'refuse' or 'kick', not None"),
            ({"on_limit": "kick"}, ValueError, "on_limit='kick' needs a max_streams_per_key of 1 or more, not None"),
            (
                {"on_limit": "kick", "max_streams_per_key": 0, "key": str},
                ValueError,
                "on_limit='kick' needs a max_streams_per_key of 1 or more, not 0",
            ),
            ({"kick_event": "bye"}, TypeError, "kick_event is an Event or None, not 'bye'"),
        ],
    )
    def test_invalid_options_raise_and_nothing_is_set_up(self, options, error, message):
        app = web.Application()
        with pytest.raises(error, match=f"^{re.escape(message)}$"):
            setup(app, **options)
        assert STREAMS not in app

    def test_options_in_a_second_call_raise(self):
        for option in (KICK, {"kick_event": None}):
            app = web.Application()
            setup(app)
            with pytest.raises(RuntimeError, match="give it all its options in one call"):
                setup(app, **option)


class Nested:
    """An application with a sub-application, which has one too. Those with options are set up."""

    def __init__(self, outer=None, middle=None, inner=None):
        self.facts = []
        self.apps = [web.Application() for _ in range(3)]
        self.streams = []

        async def ready(channel, context):
            self.streams.append(context.stream)
            await waits(channel, context)

        for app, options in zip(self.apps, (outer, middle, inner), strict=True):
            if options is not None:
                setup(app, observer=self.facts.append, **options)
            app.router.add_get("/s", as_handler(start_event_stream(ready)))
        self.apps[1].add_subapp("/inner", self.apps[2])
        self.apps[0].add_subapp("/middle", self.apps[1])

    @property
    def in_use(self):
        return [app[STREAMS]._limits.in_use if STREAMS in app else None for app in self.apps]


INNER, MIDDLE, OUTER = "/middle/inner/s", "/middle/s", "/s"


class TestSubApplications:
    async def test_a_stream_counts_under_each_application_around_it_with_setup(self, serve):
        nested = Nested({"max_streams": 9}, None, {"max_streams": 9, "max_streams_per_key": 9, "key": by_user})
        server = await serve(nested.apps[0])
        raws = [await server.connect(get(path=path)) for path in (INNER, MIDDLE, OUTER)]
        for raw in raws:
            await raw.until(b"data: x\n\n\r\n")
        assert nested.in_use == [3, None, 1]
        for raw in raws:
            await raw.close()
        await until(lambda: nested.in_use == [0, None, 0])
        assert not nested.apps[2][STREAMS]._limits._in_use_by_key

    @pytest.mark.parametrize(
        ("limits", "path", "status", "limit"),
        [
            (({"max_streams": 1}, {}, {}), INNER, 503, "max_streams"),
            (({"max_streams": 1}, {}, None), INNER, 503, "max_streams"),
            (({"max_streams": 1}, None, {"max_streams": 5}), INNER, 503, "max_streams"),
            (({"max_streams": 5}, {"max_streams": 1}, {"max_streams": 5}), INNER, 503, "max_streams of /middle"),
            (({"max_streams": 5}, {}, {"max_streams": 1}), INNER, 503, "max_streams of /middle/inner"),
            (
                ({}, {"max_streams_per_key": 1, "key": by_user}, {"max_streams": 5}),
                INNER,
                429,
                "max_streams_per_key of /middle",
            ),
            (({"max_streams": 1}, {}, {}), OUTER, 503, "max_streams"),
        ],
    )
    async def test_all_slots_are_acquired_or_none_and_the_refusal_names_the_application(
        self, serve, limits, path, status, limit
    ):
        nested = Nested(*limits)
        server = await serve(nested.apps[0])
        raw = await server.connect(get(path=INNER))
        await raw.until(b"data: x\n\n\r\n")
        previous = nested.in_use
        for _ in range(3):
            answer = await server.exchange(get(path=path, more="Connection: close\n"))
            assert answer.startswith(b"HTTP/1.1 %d " % status)
            assert b"\r\nRetry-After: " in answer
            assert nested.in_use == previous
        refused = [fact for fact in nested.facts if isinstance(fact, StreamRefused)]
        assert [(fact.status, fact.limit) for fact in refused] == [(status, limit)] * 3
        await raw.close()
        await until(lambda: not any(nested.in_use))

    async def test_an_exception_in_an_outer_key_function_acquires_no_inner_slot(self, serve):
        nested = Nested({"max_streams_per_key": 1, "key": lambda request: 1 / 0}, {}, {"max_streams": 1})
        server = await serve(nested.apps[0])
        for _ in range(2):
            answer = await server.exchange(get(path=INNER, more="Connection: close\n"))
            assert answer.startswith(b"HTTP/1.1 500 ")
            assert nested.in_use == [0, 0, 0]

    async def test_an_outer_kick_releases_inner_slots(self, serve):
        """The outer application keeps the newest stream of a user, in whichever application it is."""
        nested = Nested({**KICK, "kick_event": Event("out", "out")}, {}, {**KICK, "kick_event": Event("in", "in")})
        server = await serve(nested.apps[0])
        first = await server.connect(get(path=INNER))
        await first.until(b"data: x\n\n\r\n")
        second = await server.connect(get(path=INNER))
        await second.until(b"data: x\n\n\r\n")
        assert b"event: in\n" in await first.until(b"0\r\n\r\n")
        third = await server.connect(get(path=OUTER))
        await third.until(b"data: x\n\n\r\n")
        assert b"event: out\n" in await second.until(b"0\r\n\r\n")
        assert nested.in_use == [1, 0, 0]
        assert [stream.reason for stream in nested.streams] == [CloseReason.KICKED, CloseReason.KICKED, None]
        for raw in (first, second, third):
            await raw.close()
        await until(lambda: not any(nested.in_use))

    async def test_no_stream_is_kicked_for_one_that_is_refused(self, serve):
        nested = Nested({"max_streams_per_key": 2, "key": lambda request: "all"}, {}, KICK)
        server = await serve(nested.apps[0])
        raws = []
        for path in (INNER, OUTER):
            raws.append(await server.connect(get(path=path)))
            await raws[-1].until(b"data: x\n\n\r\n")
        answer = await server.exchange(get("bob", path=INNER, more="Connection: close\n"))
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert nested.streams[0].reason is None
        raws.append(await server.connect(get(path=INNER)))  # kicks the first one
        await raws[-1].until(b"data: x\n\n\r\n")
        assert nested.in_use == [2, 0, 1]
        for raw in raws:
            await raw.close()
        await until(lambda: not any(nested.in_use))
