"""Access to a stream over its life: owners whose streams are disconnected, expiry, and revalidation."""

from __future__ import annotations

import asyncio
import contextvars
import datetime as dt
import gc
import time
import weakref
from types import SimpleNamespace

import pytest
from aiohttp import web

from aiohttp_interceptors import (
    CloseReason,
    Drain,
    Event,
    Hub,
    StreamClosed,
    as_handler,
    before,
    event_stream,
    setup,
    start_event_stream,
    start_topic_stream,
    topic_stream,
)
from aiohttp_interceptors.web import access
from aiohttp_interceptors.web.app import STREAMS
from tests.listener import Listener, listen
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.stages import raising, returning
from tests.waiting import TIMEOUT, run_other_tasks, until, within

pytestmark = BOTH_LOOPS

KINDS = ["channel", "generator", "topics"]
INTERVAL = 0.05  # seconds between two revalidations, where they are awaited
LOGOUT = Event("signed out", "logout")


def user(context):
    """Return the user of the query as the owner, or several of them."""
    users = context.request.query.getall("user", [])
    return users[0] if len(users) == 1 else users


class Application:
    """An application with a stream of one kind, and what it reports."""

    def __init__(self, kind="channel", *stages, ready=None, drain=None, topics="a", hub=None, **options) -> None:
        self.hub = hub or Hub()
        self.facts = []
        self.reasons: list[CloseReason] = []
        self.started = 0
        self.app = web.Application()
        setup(self.app, self.hub, observer=self.facts.append, drain=drain)
        options = {"heartbeat": None, "on_close": lambda context, reason: self.reasons.append(reason), **options}

        async def wait(channel, context):
            self.started += 1
            await channel.put("hello")
            await channel.wait_closed()

        @event_stream(**options)
        async def generate(context):
            self.started += 1
            yield "hello"
            await asyncio.Event().wait()

        if kind == "channel":
            handler = as_handler(*stages, start_event_stream(ready or wait, **options))
        elif kind == "generator":
            handler = as_handler(*stages, generate)
        else:
            handler = as_handler(*stages, start_topic_stream(self.hub, topics, **options))
        self.app.router.add_route("*", "/", handler)

    @property
    def streams(self):
        return self.app[STREAMS]

    async def until_open(self, count: int = 1) -> None:
        await until(lambda: len(self.streams) == count)

    async def until_closed(self) -> None:
        await until(lambda: len(self.streams) == 0)

    @property
    def closed(self) -> list[str]:
        """The reasons of the facts about closed streams."""
        return [fact.reason for fact in self.facts if isinstance(fact, StreamClosed)]


async def last(listener: Listener) -> str | None:
    """Read to the end, and return the name of the last event."""
    events = await listener.rest()
    await listener.close()
    return events[-1].name if events else None


async def status(server, path="/", method="GET") -> int:
    """Return the status of a response."""
    listener = await listen(server, path, method=method)
    await listener.close()
    return listener.status


async def is_open(server, application, listener) -> bool:
    """Return whether a stream is open and its client gets a new one's events, too."""
    again = await listen(server)
    await application.until_open(2)
    await again.close()
    await application.until_open(1)
    return not listener.complete


def errors(logged) -> list[str]:
    return [line["event"] for line in logged if line["log_level"] in {"error", "critical", "warning"}]


class TestOwner:
    @pytest.mark.parametrize("kind", KINDS)
    async def test_a_disconnect_ends_all_streams_of_the_owner_and_no_other(
        self, serve, logged, kind, handler_cancellation
    ):
        application = Application(kind, owner=user)
        server = await serve(application.app, handler_cancellation=handler_cancellation)
        paths = ["/?user=ann", "/?user=ann", "/?user=bob", "/"]
        *anns, bob, nobody = [await listen(server, path) for path in paths]
        await application.until_open(4)
        stream = next(iter(application.streams))
        application.streams.disconnect("ann", LOGOUT)
        for listener in anns:
            assert await last(listener) == "logout"
            assert listener.complete
        await application.until_open(2)
        assert application.reasons == [CloseReason.KICKED] * 2
        assert application.closed == ["kicked"] * 2
        assert {stream.reason for stream in application.streams} == {None}
        assert stream.statistics().reason in {CloseReason.KICKED, None}
        assert application.streams.owners.count("ann") == 0
        assert application.streams.owners.count("bob") == 1
        for listener in bob, nobody:
            assert not listener.complete
            await listener.close()
        await application.until_closed()
        assert application.streams.owners.count("bob") == 0
        assert errors(logged) == []

    async def test_a_stream_of_several_owners_ends_with_each_of_them(self, serve, logged):
        application = Application(owner=user)
        server = await serve(application.app)
        for owner in "user:7", "session:é 1":
            listener = await listen(server, "/?user=user:7&user=session:%C3%A9%201")
            await application.until_open()
            application.streams.disconnect(owner)
            assert await last(listener) is None
            await application.until_closed()
            assert [application.streams.owners.count(each) for each in ("user:7", "session:é 1")] == [0, 0]

    async def test_without_a_final_event_the_body_ends_and_the_client_reconnects(self, serve, logged):
        application = Application("topics", owner=user)
        listener = await listen(await serve(application.app), "/?user=ann")
        await application.until_open()
        application.streams.disconnect("ann")
        assert await listener.rest() == []
        assert listener.complete
        await listener.close()

    async def test_the_client_that_comes_back_meets_the_stages_again(self, serve, logged):
        revoked = set()

        @before
        def authenticate(context):
            if context.request.query["user"] in revoked:
                raise web.HTTPUnauthorized

        application = Application("topics", authenticate, owner=user)
        server = await serve(application.app)
        listener = await listen(server, "/?user=ann")
        await application.until_open()
        revoked.add("ann")
        await application.hub.disconnect("ann")
        await last(listener)
        assert await status(server, "/?user=ann") == 401

    async def test_one_that_signs_in_again_keeps_its_new_stream(self, serve, logged):
        application = Application(owner=user)
        server = await serve(application.app)
        first = await listen(server, "/?user=ann")
        await application.until_open()
        application.streams.disconnect("ann")
        second = await listen(server, "/?user=ann")
        await last(first)
        await application.until_open()
        assert await is_open(server, application, second)
        await second.close()

    @pytest.mark.parametrize("kind", KINDS)
    async def test_a_disconnect_of_nobody_and_a_second_one_do_nothing(self, serve, logged, kind):
        application = Application(kind, owner=user)
        server = await serve(application.app)
        application.streams.disconnect("ann")
        await application.hub.disconnect("nobody")
        listener = await listen(server, "/?user=ann")
        await application.until_open()
        application.streams.disconnect("ann", Event("1", "first"))
        application.streams.disconnect("ann", Event("2", "second"))
        assert await last(listener) == "first"
        await application.until_closed()
        assert application.closed == ["kicked"]

    async def test_thousands_of_streams_of_one_owner_end_together(self, serve, logged):
        count = 1000
        application = Application("topics", owner=user)
        server = await serve(application.app, backlog=count)
        listeners = [await listen(server, "/?user=ann") for _ in range(count)]
        await application.until_open(count)
        application.streams.disconnect("ann", LOGOUT)
        assert {await last(listener) for listener in listeners} == {"logout"}
        await application.until_closed()
        assert application.closed == ["kicked"] * count
        assert application.streams.owners.count("ann") == 0

    async def test_on_close_comes_before_the_leave_stages(self, serve, logged):
        order = []

        def stage(context):
            order.append("leave")

        application = Application(
            "topics", SimpleNamespace(leave=stage), owner=user, on_close=lambda context, reason: order.append(reason)
        )
        listener = await listen(await serve(application.app), "/?user=ann")
        await application.until_open()
        application.streams.disconnect("ann")
        await last(listener)
        await until(lambda: order == [CloseReason.KICKED, "leave"])

    async def test_a_client_that_does_not_read_is_disconnected_at_once(self, serve, logged):
        hub = Hub()
        application = Application("topics", hub=hub, owner=user, stall_timeout=None)
        server = await serve(application.app)
        listener = await listen(server, "/?user=ann", receive_buffer=4096)
        await application.until_open()
        while hub.statistics().catching_up == 0:
            await hub.publish("a", "x" * 1024)
            await asyncio.sleep(0)
        application.streams.disconnect("ann", LOGOUT)
        await application.until_closed()
        assert application.closed == ["kicked"]
        await listener.close()

    async def test_a_post_request_has_an_owner_too(self, serve, logged):
        application = Application("generator", owner=user)
        server = await serve(application.app)
        raw = await server.connect("POST /?user=ann HTTP/1.1\nHost: x\nContent-Length: 2\n\nhi")
        await raw.until(b"data: hello\n\n")
        application.streams.disconnect("ann", LOGOUT)
        await raw.until(b"event: logout\ndata: signed out\n\n")
        await application.until_closed()
        await raw.close()

    @pytest.mark.parametrize("kind", KINDS)
    async def test_head_asks_for_the_owner_and_leaves_nothing(self, serve, logged, kind):
        application = Application(kind, owner=user)
        server = await serve(application.app)
        for path, status in ("/?user=ann", 200), ("/?user=" + "x" * 300, 400):
            listener = await listen(server, path, method="HEAD")
            assert listener.status == status
            await listener.close()
        await until(lambda: application.streams.owners.count("ann") == 0)

    @pytest.mark.parametrize(
        "owners",
        [7, 0, False, b"ann", ["ann", 7], (name for name in ["ann"])],
        ids=repr,
    )
    async def test_another_value_than_an_owner_is_an_error_before_the_headers(self, serve, logged, raised, owners):
        application = Application("generator", owner=returning(owners))
        listener = await listen(await serve(application.app))
        assert listener.status == 500
        assert application.started == 0
        assert len(application.streams) == 0
        assert type(raised()[0]) is TypeError
        await listener.close()

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("owners", ["", "a\nb", "x" * 256, ["ann", "\udcff"]], ids=repr)
    async def test_an_invalid_owner_is_a_400_and_only_the_log_has_the_value(self, serve, logged, raised, owners, kind):
        """It was made of the request, such as of a cookie."""
        application = Application(kind, owner=returning(owners))
        server = await serve(application.app)
        answer = await server.exchange("GET / HTTP/1.1\nHost: x\nConnection: close\n\n")
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.endswith(b"\r\n\r\nThe owner of this request is not valid.\n")
        assert (application.started, len(application.streams), raised()) == (0, 0, [])
        (line,) = logged
        assert (line["event"], line["log_level"]) == ("stream_refused", "warning")
        assert repr(owners if isinstance(owners, str) else owners[-1]) in line["why"]

    async def test_a_coroutine_function_is_refused(self, serve, logged, raised):
        async def owner(context):
            return "ann"

        for option in "owner", "expires_at":
            with pytest.raises(TypeError, match=f"^{option} is a plain function of the context, not <function"):
                start_event_stream(lambda channel, context: None, **{option: owner})
            with pytest.raises(TypeError, match=f"^{option} is a plain function of the context, not <function"):
                topic_stream(Hub(), "a", **{option: owner})
            application = Application(**{option: lambda context: owner(context)})
            listener = await listen(await serve(application.app))
            assert listener.status == 500
            await listener.close()
        assert [type(error) for error in raised()] == [TypeError] * 2

    @pytest.mark.parametrize("option", ["owner", "expires_at"])
    async def test_an_http_exception_is_the_response_and_nothing_starts(self, serve, logged, option):
        application = Application("generator", **{option: raising(web.HTTPForbidden())})
        listener = await listen(await serve(application.app))
        assert listener.status == 403
        assert application.started == 0
        await listener.close()

    async def test_the_final_event_and_the_owner_are_checked(self, serve, logged):
        application = Application(owner=user)
        server = await serve(application.app)
        listener = await listen(server, "/?user=ann")
        await application.until_open()
        for arguments in ("ann", "bye"), ("ann", b"bye"), (7,), (None,), (["ann"],):
            with pytest.raises(TypeError):
                application.streams.disconnect(*arguments)
            with pytest.raises(TypeError):
                await application.hub.disconnect(*arguments)
        for arguments in ("ann", Event("bye", id="1")), ("",), ("x" * 256,), ("a\nb",):
            with pytest.raises(ValueError, match=r"owner is|has no id"):
                application.streams.disconnect(*arguments)
            with pytest.raises(ValueError, match=r"owner is|has no id"):
                await application.hub.disconnect(*arguments)
        assert application.closed == []
        await listener.close()

    async def test_an_application_without_a_hub_disconnects_by_its_registry(self, serve, logged):
        @event_stream(owner=user, heartbeat=None)
        async def events(context):
            yield "hello"
            await asyncio.Event().wait()

        async def logout(request):
            request.config_dict[STREAMS].disconnect(request.query["user"])
            return web.Response()

        app = web.Application()
        setup(app)
        app.router.add_get("/", events)
        app.router.add_get("/logout", logout)
        server = await serve(app)
        listener = await listen(server, "/?user=ann")
        assert await listener.data(1) == ["hello"]
        answer = await listen(server, "/logout?user=ann")
        assert answer.status == 200
        assert await last(listener) is None
        await answer.close()

    @pytest.mark.parametrize("own_setup", [False, True], ids=["one setup", "two setups"])
    async def test_streams_of_sub_applications_end_too(self, serve, logged, own_setup):
        application = Application(owner=user)
        inner = web.Application()
        if own_setup:
            setup(inner)
        handler = start_event_stream(lambda channel, context: channel.put_nowait("hello"), owner=user, heartbeat=None)
        inner.router.add_get("/", as_handler(handler))
        application.app.add_subapp("/inner/", inner)
        server = await serve(application.app)
        for disconnect in application.streams.disconnect, application.hub.disconnect:
            listener = await listen(server, "/inner/?user=ann")
            assert await listener.data(1) == ["hello"]
            if (awaitable := disconnect("ann")) is not None:
                await awaitable
            assert await last(listener) is None
        await until(lambda: application.streams.owners.count("ann") == 0)

    async def test_a_topic_stream_of_an_application_without_setup_ends_with_its_hub(self, serve, logged):
        hub, app = Hub(), web.Application()
        app.router.add_get("/", topic_stream(hub, "a", owner=user, heartbeat=None))
        listener = await listen(await serve(app), "/?user=ann")
        await until(lambda: hub.subscribers("a") == 1)
        await hub.disconnect("ann")
        assert await last(listener) is None

    async def test_nothing_is_kept_after_many_streams(self, serve, logged):
        application = Application(owner=user)
        server = await serve(application.app)
        for number in range(50):
            raw = await server.connect(f"GET /?user=u{number} HTTP/1.1\nHost: x\n\n")
            if number % 2:
                await raw.until(b"data: hello\n\n")
            if number % 3:
                raw.reset()
            else:
                await raw.close()
        await until(lambda: len(application.closed) == application.started)
        await application.until_closed()
        assert [application.streams.owners.count(f"u{number}") for number in range(50)] == [0] * 50


async def test_nothing_refers_to_a_stream_that_has_ended_whenever_its_token_does(serve, logged):
    contexts = []

    def in_a_month(context):
        contexts.append(weakref.ref(context))
        return time.time() + 30 * 86_400

    application = Application("topics", owner=user, expires_at=in_a_month, revalidate=returning(True))
    server = await serve(application.app)
    for number in range(5):
        listener = await listen(server, "/?user=ann")
        await application.until_open()
        if number % 2:
            application.streams.disconnect("ann")
        await listener.close()
        await application.until_closed()
    del listener

    def are_gone():
        gc.collect()
        return all(context() is None for context in contexts)

    await until(are_gone)
    assert len(contexts) == 5


class Waiting:
    """A part of a request that waits until it may go on."""

    def __init__(self, result=None) -> None:
        self.reached = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self._result = result

    async def __call__(self, *_: object) -> object:
        self.reached.set()
        await self.may_go_on.wait()
        return self._result


class TestWhileOpening:
    """A disconnect comes after the application has looked at the session, and before the stream is open."""

    @pytest.mark.parametrize("where", ["a stage", "the topics"])
    async def test_a_request_that_waits_has_a_stream_that_ends(self, serve, logged, where, handler_cancellation):
        waiting = Waiting("a" if where == "the topics" else None)
        stages = [SimpleNamespace(enter=waiting)] if where == "a stage" else []
        application = Application("topics", *stages, topics=waiting if where == "the topics" else "a", owner=user)
        server = await serve(application.app, handler_cancellation=handler_cancellation)
        opening = asyncio.create_task(listen(server, "/?user=ann"))
        await within(waiting.reached.wait())
        await application.hub.disconnect("ann", LOGOUT)
        waiting.may_go_on.set()
        assert await last(await opening) == "logout"
        await application.until_closed()
        assert application.closed == ["kicked"]
        assert application.streams.owners.count("ann") == 0

    async def test_a_generator_that_has_not_yielded_has_a_stream_that_ends(self, serve, logged):
        waiting = Waiting()

        @event_stream(owner=user, open_after=TIMEOUT, heartbeat=None)
        async def events(context):
            await waiting()
            yield "too late"
            await asyncio.Event().wait()

        app = web.Application()
        setup(app)
        app.router.add_get("/", events)
        opening = asyncio.create_task(listen(await serve(app), "/?user=ann"))
        await within(waiting.reached.wait())
        app[STREAMS].disconnect("ann")
        waiting.may_go_on.set()
        listener = await opening
        await listener.rest()
        assert listener.complete
        await listener.close()
        await until(lambda: len(app[STREAMS]) == app[STREAMS].owners.count("ann") == 0)

    @pytest.mark.parametrize("kind", ["channel", "topics"])
    async def test_a_request_whose_body_arrives_has_a_stream_that_ends(self, serve, logged, kind):
        waiting = asyncio.Event()
        application = Application(kind, SimpleNamespace(enter=lambda context: waiting.set()), owner=user)
        server = await serve(application.app)
        raw = await server.connect("POST /?user=ann HTTP/1.1\nHost: x\nContent-Length: 2\n\nh")
        await within(waiting.wait())
        application.streams.disconnect("ann", LOGOUT)
        raw.writer.write(b"i")
        await raw.until(b"event: logout\ndata: signed out\n\n")
        await application.until_closed()
        assert application.closed == ["kicked"]
        await raw.close()

    async def test_a_request_that_is_refused_leaves_nothing(self, serve, logged):
        application = Application("topics", topics=raising(web.HTTPNotFound()), owner=user)
        listener = await listen(await serve(application.app), "/?user=ann")
        assert listener.status == 404
        assert application.streams.owners.count("ann") == 0
        await listener.close()

    async def test_a_client_that_disconnects_meanwhile_leaves_nothing(self, serve, logged, handler_cancellation):
        waiting = Waiting("a")
        application = Application("topics", topics=waiting, owner=user)
        server = await serve(application.app, handler_cancellation=handler_cancellation)
        raw = await server.connect("GET /?user=ann HTTP/1.1\nHost: x\n\n")
        await within(waiting.reached.wait())
        assert application.streams.owners.count("ann") == 1
        raw.reset()
        await run_other_tasks()
        waiting.may_go_on.set()
        await until(lambda: application.streams.owners.count("ann") == 0)
        await application.until_closed()

    async def test_a_stage_may_return_another_context_meanwhile(self, serve, logged):
        waiting = Waiting()

        async def replace(context):
            await waiting()
            return type(context)(context.request)

        application = Application("topics", SimpleNamespace(enter=replace), owner=user)
        opening = asyncio.create_task(listen(await serve(application.app), "/?user=ann"))
        await within(waiting.reached.wait())
        application.streams.disconnect("ann", LOGOUT)
        waiting.may_go_on.set()
        assert await last(await opening) == "logout"


class TestShutdown:
    async def test_a_finite_stream_in_its_grace_period_can_be_disconnected(self, serve, logged):
        application = Application(owner=user, finite=True, drain=Drain(grace=TIMEOUT))
        server = await serve(application.app, shutdown_timeout=TIMEOUT)
        listener = await listen(server, "/?user=ann")
        assert await listener.data(1) == ["hello"]
        stopping = asyncio.create_task(server.stop())
        await until(lambda: application.streams.closing)
        await application.hub.disconnect("ann", LOGOUT)
        assert await last(listener) == "logout"
        await within(stopping)
        assert application.closed == ["kicked"]

    async def test_after_it_a_disconnect_does_nothing(self, serve, logged):
        application = Application(owner=user)
        server = await serve(application.app)
        listener = await listen(server, "/?user=ann")
        await application.until_open()
        await server.stop()
        application.streams.disconnect("ann")
        assert application.closed == ["shutdown"]
        assert application.streams.owners.count("ann") == 0
        await listener.close()


@pytest.fixture
def clock(monkeypatch):
    """A clock of the day that can be set; timers do not follow it."""
    clock = SimpleNamespace(offset=0.0)
    real = time.time
    monkeypatch.setattr(access, "time", SimpleNamespace(time=lambda: real() + clock.offset))
    return clock


def in_seconds(seconds):
    return lambda context: time.time() + seconds


class TestExpiry:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("form", ["seconds", "a datetime"])
    async def test_a_stream_ends_at_the_moment_that_its_token_does(
        self, serve, logged, kind, form, handler_cancellation
    ):
        requested = []

        def expires_at(context):
            requested.append(time.time())
            moment = requested[0] + 0.1
            return moment if form == "seconds" else dt.datetime.fromtimestamp(moment, dt.UTC)

        application = Application(kind, expires_at=expires_at)
        server = await serve(application.app, handler_cancellation=handler_cancellation)
        listener = await listen(server)
        await listener.rest()
        assert time.time() >= requested[0] + 0.1 - access.TIMER_SLACK
        assert listener.complete
        await application.until_closed()
        assert application.reasons == [CloseReason.EXPIRED]
        assert application.closed == ["expired"]
        await listener.close()
        await until(lambda: time.time() > requested[0] + 0.1)
        assert await status(server) == 401
        assert errors(logged) == []

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
    async def test_one_that_is_over_is_a_401_and_nothing_starts(self, serve, logged, kind, method):
        application = Application(kind, expires_at=in_seconds(-0.001), owner=user)
        listener = await listen(await serve(application.app), "/?user=ann", method=method)
        assert listener.status == 401
        assert application.started == 0
        assert application.facts == []
        assert application.streams.owners.count("ann") == 0
        await listener.close()

    async def test_one_that_is_over_when_the_topics_are_known_is_a_401(self, serve, logged, clock):
        async def topics(context):
            clock.offset = 100.0
            return "a"

        application = Application("topics", topics=topics, expires_at=in_seconds(50), owner=user)
        listener = await listen(await serve(application.app), "/?user=ann")
        assert listener.status == 401
        assert application.streams.owners.count("ann") == 0
        await listener.close()

    @pytest.mark.parametrize(
        "moment",
        [
            *(True, "2030", b"1", [1], 10**400, float("nan"), float("inf"), time.time() * 1000 + 1e6),
            dt.datetime(2100, 1, 1),  # noqa: DTZ001  # refused for that
        ],
        ids=str,
    )
    async def test_an_invalid_moment_is_an_error_before_the_headers(self, serve, logged, raised, moment):
        application = Application("generator", expires_at=returning(moment))
        listener = await listen(await serve(application.app))
        assert listener.status == 500
        assert application.started == 0
        assert "expires_at returns" in str(raised()[0])
        await listener.close()

    @pytest.mark.parametrize(
        "moment", [None, time.time() + 30 * 86_400, dt.datetime.max.replace(tzinfo=dt.UTC)], ids=str
    )
    async def test_a_late_one_stays_open_and_does_not_delay_others(self, serve, logged, moment):
        application = Application(expires_at=lambda context: time.time() + 0.1 if context.request.query else moment)
        server = await serve(application.app)
        listener = await listen(server)
        for _ in range(2):
            await last(await listen(server, "/?soon=1"))
        await application.until_open()
        assert application.closed == ["expired"] * 2
        assert not listener.complete
        await listener.close()

    async def test_a_clock_that_is_set_forward_is_noticed(self, serve, logged, monkeypatch, clock):
        monkeypatch.setattr(access, "MAX_CLOCK_ERROR", 0.02)
        application = Application(expires_at=in_seconds(1000))
        listener = await listen(await serve(application.app))
        await application.until_open()
        clock.offset = 1001.0
        await last(listener)
        await application.until_closed()
        assert application.closed == ["expired"]

    async def test_a_clock_that_is_set_back_ends_no_stream_early(self, serve, logged, clock):
        application = Application(expires_at=in_seconds(0.2), revalidate=lambda context: bool(asked.append(1)) or True)
        asked = []
        opened = time.time()
        listener = await listen(await serve(application.app))
        await application.until_open()
        clock.offset = -0.2
        await last(listener)
        assert time.time() - opened > 0.35
        assert application.closed == ["expired"]
        assert asked == []

    async def test_a_client_that_does_not_read_has_its_stall_timeout(self, serve, logged):
        hub = Hub()
        application = Application("topics", hub=hub, expires_at=in_seconds(0.5), stall_timeout=0.3)
        server = await serve(application.app)
        listener = await listen(server, receive_buffer=4096)
        await application.until_open()
        while hub.statistics().catching_up == 0:
            await hub.publish("a", "x" * 1024)
            await asyncio.sleep(0)
        await application.until_closed()
        assert application.closed in (["expired"], ["stalled"])
        await listener.close()


class TestJson:
    """A client that asks for JSON has no stream, and is refused as a stream is."""

    @staticmethod
    def application(stage=None, **options):
        started = []

        @event_stream(as_json=list, **options)
        async def generate(context):
            started.append(context)
            yield "hello"
            if stage is not None:
                stage()

        app = web.Application()
        setup(app)
        app.router.add_route("*", "/", generate)
        return app, started

    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"expires_at": in_seconds(-0.001)}, 401),
            ({"expires_at": in_seconds(100)}, 200),
            ({"owner": raising(web.HTTPForbidden)}, 403),
            ({"owner": returning("a\nb")}, 400),
            ({"owner": returning("ann")}, 200),
        ],
    )
    async def test_the_functions_of_the_application_decide_about_it(self, serve, logged, method, options, expected):
        app, started = self.application(**options)
        listener = await listen(await serve(app), "/", method=method, browser=False)
        assert listener.status == expected
        assert len(started) == (expected == 200)
        assert app[STREAMS].owners.count("ann") == 0
        await listener.close()

    async def test_access_that_is_over_when_the_values_are_known_is_a_401(self, serve, logged, clock):
        app, _ = self.application(lambda: setattr(clock, "offset", 100.0), expires_at=in_seconds(50))
        listener = await listen(await serve(app), browser=False)
        assert listener.status == 401
        await listener.close()


class Question:
    """A revalidate function with a plain answer, which may change."""

    def __init__(self, answer: object = True) -> None:
        self.answer = answer
        self.asked: list[object] = []

    def __call__(self, context):
        self.asked.append(context)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def asynchronous(question):
    async def revalidate(context):
        await asyncio.sleep(0)
        return question(context)

    return revalidate


class TestRevalidation:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("form", [lambda question: question, asynchronous], ids=["plain", "async"])
    async def test_a_no_ends_the_stream_as_kicked(self, serve, logged, kind, form, handler_cancellation):
        question = Question()
        application = Application(kind, revalidate=form(question), revalidate_interval=INTERVAL)
        listener = await listen(await serve(application.app, handler_cancellation=handler_cancellation))
        await until(lambda: len(question.asked) == 3)
        assert application.closed == []
        question.answer = False
        await last(listener)
        assert listener.complete
        await application.until_closed()
        assert application.reasons == [CloseReason.KICKED]
        assert application.closed == ["kicked"]
        assert len(question.asked) == 4
        assert len({id(context) for context in question.asked}) == 1
        assert errors(logged) == []

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("form", [lambda question: question, asynchronous], ids=["plain", "async"])
    @pytest.mark.parametrize(
        "answer", [LookupError("no database"), web.HTTPForbidden(), asyncio.CancelledError(), None, 1, "yes"], ids=repr
    )
    async def test_anything_but_a_bool_is_logged_and_ends_the_stream_as_an_error(
        self, serve, logged, kind, form, answer
    ):
        application = Application(kind, revalidate=form(Question(answer)), revalidate_interval=INTERVAL)
        listener = await listen(await serve(application.app))
        await listener.rest()
        assert not listener.complete
        await application.until_closed()
        assert application.closed == ["error"]
        (line,) = [line for line in logged if line["event"] == "stream_revalidation_failed"]
        assert line["path"] == "/"
        assert isinstance(line["exc_info"], type(answer) if isinstance(answer, BaseException) else TypeError)
        await listener.close()

    @pytest.mark.parametrize("obstinate", [False, True], ids=["it can be cancelled", "it cannot"])
    async def test_one_that_hangs_ends_the_stream_as_an_error(self, serve, logged, obstinate):
        cancelled, released = [], asyncio.Event()

        async def hang(context):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(context)
                if not obstinate:
                    raise
                await released.wait()
            return True

        application = Application(revalidate=hang, revalidate_interval=INTERVAL)
        listener = await listen(await serve(application.app))
        await listener.rest()
        await application.until_closed()
        assert application.closed == ["error"]
        assert len(cancelled) == 1
        (line,) = [line for line in logged if line["event"] == "stream_revalidation_failed"]
        assert isinstance(line["exc_info"], TimeoutError)
        assert str(line["exc_info"]) == ("revalidate did not end when it was cancelled" if obstinate else "")
        released.set()
        await listener.close()

    async def test_a_slow_one_is_not_asked_twice_at_once(self, serve, logged):
        running, most = [], []

        async def slow(context):
            running.append(context)
            most.append(len(running))
            await asyncio.sleep(0.9 * 4 * INTERVAL)  # longer than the shortest interval between two calls
            running.pop()
            return len(most) < 4

        application = Application(revalidate=slow, revalidate_interval=4 * INTERVAL)
        await last(await listen(await serve(application.app)))
        await application.until_closed()
        assert application.closed == ["kicked"]
        assert most == [1] * 4

    @pytest.mark.parametrize("then", [True, False, LookupError("too late")], ids=repr)
    @pytest.mark.parametrize("kind", KINDS)
    async def test_one_may_end_the_stream_itself(self, serve, logged, kind, then):
        async def end(context):
            context.stream.end(CloseReason.EXPIRED)
            if isinstance(then, Exception):
                raise then
            return then

        application = Application(kind, revalidate=end, revalidate_interval=INTERVAL)
        listener = await listen(await serve(application.app))
        await last(listener)
        assert listener.complete
        await application.until_closed()
        assert application.closed == ["expired"]
        assert errors(logged) == (["stream_revalidation_failed"] if isinstance(then, Exception) else [])

    @pytest.mark.parametrize("end", ["the client leaves", "the server stops", "the owner is disconnected"])
    async def test_one_that_runs_is_cancelled_when_the_stream_ends(self, serve, logged, end, handler_cancellation):
        running, cancelled = asyncio.Event(), asyncio.Event()

        async def wait(context):
            running.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        application = Application(owner=user, revalidate=wait, revalidate_interval=1.0)
        server = await serve(application.app, handler_cancellation=handler_cancellation)
        listener = await listen(server, "/?user=ann")
        await within(running.wait())
        if end == "the client leaves":
            await listener.close()
        elif end == "the server stops":
            await server.stop()
        else:
            application.streams.disconnect("ann")
        await within(cancelled.wait())
        await application.until_closed()
        assert len(application.closed) == 1
        assert errors(logged) == []
        await listener.close()

    async def test_each_is_asked_with_the_context_variables_of_its_request(self, serve, logged):
        tenant = contextvars.ContextVar("tenant", default="none")
        seen: dict[str, set[str]] = {"ann": set(), "bob": set(), "eve": set()}

        @before
        def choose(context):
            tenant.set(context.request.query["user"])

        async def ask(context):
            seen[context.request.query["user"]].add(tenant.get())
            return True

        application = Application("topics", choose, revalidate=ask, revalidate_interval=INTERVAL)
        server = await serve(application.app)
        listeners = [await listen(server, f"/?user={name}") for name in seen]
        await until(lambda: all(seen.values()))
        assert seen == {name: {name} for name in seen}
        for listener in listeners:
            await listener.close()

    async def test_streams_that_opened_together_are_not_asked_together(self, serve, logged):
        times, loop = {}, asyncio.get_running_loop()
        application = Application(
            revalidate=lambda context: bool(times.setdefault(id(context), loop.time())), revalidate_interval=1.0
        )
        server = await serve(application.app)
        started = loop.time()
        listeners = [await listen(server) for _ in range(20)]
        opening = loop.time() - started
        await until(lambda: len(times) == 20)
        assert max(times.values()) - min(times.values()) > opening + 0.01
        assert min(times.values()) - started > 1.0 - access.JITTER - 2 * access.TIMER_SLACK
        for listener in listeners:
            await listener.close()

    @pytest.mark.parametrize("interval", [0, -1, None, "1", float("inf"), float("nan"), True])
    async def test_an_invalid_interval_is_refused(self, interval):
        with pytest.raises((TypeError, ValueError), match=r"^revalidate_interval is "):
            start_event_stream(lambda channel, context: None, revalidate_interval=interval)

    @pytest.mark.parametrize("option", ["owner", "expires_at", "revalidate"])
    async def test_a_function_that_cannot_be_called_is_refused(self, option):
        for function in "ann", 7, lambda: True, lambda one, two: True:
            with pytest.raises(TypeError, match=f"^{option} is "):
                topic_stream(Hub(), "a", **{option: function})


async def test_a_stream_without_these_options_has_no_guard(serve, logged):
    application = Application("topics")
    server = await serve(application.app)
    listener = await listen(server)
    await application.until_open()
    assert next(iter(application.streams))._guard is None
    await listener.close()
