"""Presence over HTTP: who has an open response of a topic, and what clients are sent about it."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest
from aiohttp import web

from aiohttp_interceptors import CloseReason, Hub, RequestContext, topic_stream
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.sse import Event
from tests.hub.watcher import EVENT, fold, join, quick, seen
from tests.listener import Listener, application, listen
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import until, within

pytestmark = BOTH_LOOPS


@pytest.fixture(autouse=True)
def quiet(logged):
    """Capture what streams log."""


@pytest.fixture
def hub() -> Hub:
    return Hub()


def identity(context: RequestContext) -> str | None:
    return context.request.query.get("user")


def room(hub: Hub, topics="room", **options) -> web.Application:
    """Create an application that streams a room at ``/``, to a ``user`` of the query."""
    return application(hub, topics, **{"identity": identity, "presence_event": EVENT, **options})


class Client:
    """A client that knows who is present from the events it has received."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.present: dict[str, set[str]] = {}
        self.told: list[dict[str, object]] = []

    async def event(self) -> Event:
        """Wait for the next event."""
        event = await self.listener.event()
        if event.name == EVENT:
            fold(self.present, event)
            self.told.append(json.loads(event.data))
        return event

    async def sees(self, *identities: str, topic: str = "room") -> None:
        """Wait until it knows that these are present."""
        while self.present.get(topic) != set(identities):
            await self.event()

    async def close(self) -> None:
        await self.listener.close()


@pytest.fixture
async def connect():
    """Send a request, and close the connection after the test."""
    listeners: list[Listener] = []

    async def connect(server, path: str = "/", **options) -> Listener:
        listeners.append(await listen(server, path, **options))
        return listeners[-1]

    yield connect
    for listener in listeners:
        await listener.close()


@pytest.fixture
def enter(connect):
    """Open a stream, with a user or without one."""

    async def enter(server, user: str | None = None, **options) -> Client:
        return Client(await connect(server, "/" if user is None else f"/?user={user}", **options))

    return enter


@pytest.mark.parametrize("options", [{}, {"version": "1.0"}, {"method": "POST"}, {"browser": False}])
async def test_clients_are_told_who_is_there_and_who_joins_and_leaves(serve, enter, hub, options):
    server = await serve(room(hub))
    ann = await enter(server, "ann", **options)
    await ann.sees("ann")
    bob = await enter(server, "bob", **options)
    await bob.sees("ann", "bob")
    await ann.sees("ann", "bob")
    await bob.close()
    await ann.sees("ann")
    assert ann.told == [
        {"topic": "room", "present": ["ann"]},
        {"topic": "room", "joined": "bob"},
        {"topic": "room", "left": "bob"},
    ]


async def test_a_client_without_an_identity_only_watches(serve, enter, hub):
    server = await serve(room(hub))
    watcher = await enter(server)
    await watcher.sees()
    ann = await enter(server, "ann")
    await watcher.sees("ann")
    ann.listener.raw.reset()
    await watcher.sees()


async def test_the_events_do_not_change_the_id_to_resume_from(serve, enter, hub):
    server = await serve(room(hub))
    ann = await enter(server, "ann")
    position = await hub.publish("room", "x")
    bob = await enter(server, "bob")
    await ann.sees("ann", "bob")
    assert ann.listener.last_event_id == position
    await ann.close()
    await bob.sees("bob")
    await hub.publish("room", "y")
    again = await enter(server, "ann", after=position)
    assert (await again.event()).data == "y"
    await again.sees("ann", "bob")


async def test_a_stream_with_select_a_snapshot_and_a_function_of_topics(serve, enter, hub):
    async def topics(context):
        await asyncio.sleep(0)
        return ["room", "room.*"]

    async def snapshot(context):
        await asyncio.sleep(0)
        return ["state"]

    server = await serve(room(hub, topics, select=lambda context, record: False, snapshot=snapshot))
    ann = await enter(server, "ann")
    assert (await ann.event()).data == "state"
    await ann.sees("ann")
    bob = await enter(server, "bob")
    await ann.sees("ann", "bob")
    await bob.close()
    await ann.sees("ann")


async def test_topics_that_the_application_adds_when_the_stream_opens(serve, enter, hub):
    server = await serve(room(hub, stream_ready=lambda subscriber, context: subscriber.add("lobby")))
    ann = await enter(server, "ann")
    await ann.sees("ann", topic="lobby")
    bob = await enter(server, "bob")
    await ann.sees("ann", "bob", topic="lobby")
    await ann.sees("ann", "bob")
    await bob.close()
    await ann.sees("ann")
    assert hub.presence("lobby") == {"ann"}


class TestJoining:
    @pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
    async def test_identity_may_refuse_the_request(self, serve, connect, hub, method):
        def refuse(context):
            raise web.HTTPForbidden

        server = await serve(room(hub, identity=refuse))
        refused = await connect(server, "/?user=ann", method=method)
        assert refused.status == 403
        assert hub.presence("room") == set()
        assert hub.statistics().subscribers == 0

    async def later(context):  # noqa: N805  # an async function
        return "ann"

    @pytest.mark.parametrize("value", ["", "a\nb", "x" * 256, "\udcff"])
    async def test_an_invalid_identity_is_a_400_and_only_the_log_has_the_value(
        self, serve, connect, hub, value, logged, raised
    ):
        """It was made of the request, such as of a token."""
        server = await serve(room(hub, identity=lambda context: value))
        assert (await connect(server)).status == 400
        assert raised() == []
        (line,) = logged
        assert (line["event"], line["status"]) == ("stream_refused", 400)
        assert repr(value) in line["why"]
        assert hub.statistics().subscribers == 0

    @pytest.mark.parametrize("value", [5, b"ann", ["ann"], iter("ann")])
    async def test_another_value_than_an_identity_is_an_error(self, serve, connect, hub, value, raised):
        server = await serve(room(hub, identity=lambda context: value, snapshot=lambda context: []))
        assert (await connect(server)).status == 500
        assert [type(error) for error in raised()] == [TypeError]
        assert hub.statistics().subscribers == 0

    async def test_an_async_function_is_refused(self, serve, connect, hub, raised):
        with pytest.raises(TypeError, match="identity"):
            room(hub, identity=TestJoining.later)
        server = await serve(room(hub, identity=lambda context: TestJoining.later(context)))
        assert (await connect(server)).status == 500
        assert "identity" in str(raised()[0])

    async def test_a_head_request_does_not_join(self, serve, enter, connect, hub):
        server = await serve(room(hub))
        watcher = await enter(server)
        assert (await connect(server, "/?user=ann", method="HEAD")).status == 200
        bob = await enter(server, "bob")
        await watcher.sees("bob")
        await bob.close()
        assert watcher.told == [{"topic": "room", "present": []}, {"topic": "room", "joined": "bob"}]

    async def test_nobody_joins_whose_stream_is_not_opened(self, serve, enter, connect, hub):
        async def fail(request, response):
            if "fails" in request.query and response.status == 200:
                raise web.HTTPServiceUnavailable

        app = room(hub)
        app.on_response_prepare.append(fail)
        server = await serve(app)
        watcher = await enter(server)
        assert (await connect(server, "/?user=ann&fails=1")).status == 503
        await enter(server, "bob")
        await watcher.sees("bob")
        assert watcher.told == [{"topic": "room", "present": []}, {"topic": "room", "joined": "bob"}]

    async def test_topics_that_are_finished_are_answered_without_joining(self, serve, connect, hub):
        server = await serve(room(hub))
        position = await hub.finish("room", "over")
        assert (await connect(server, "/?user=ann", after=position)).status == 204
        assert hub.presence("room") == set()


class TestLeaving:
    @pytest.mark.parametrize("how", ["closes", "resets", "is kicked", "expires", "fails"])
    async def test_however_the_stream_ends_its_user_leaves_once(self, serve, enter, connect, hub, how):
        subscribers, reasons = {}, []

        def fail(context, record):
            if "fails" in context.request.query:
                raise RuntimeError("select failed")
            return True

        app = room(
            hub,
            select=fail,
            stream_ready=lambda subscriber, context: subscribers.setdefault(identity(context), subscriber),
            on_close=lambda context, reason: reasons.append(reason),
        )
        short = topic_stream(hub, "room", identity=identity, max_age=0.01)
        app.router.add_get("/short", short)
        server = await serve(app)
        watcher = await enter(server)
        await watcher.sees()
        path = "/short?user=ann" if how == "expires" else f"/?user=ann{'&fails=1' if how == 'fails' else ''}"
        ann = await connect(server, path)
        await watcher.sees("ann")
        if how == "closes":
            await ann.close()
        elif how == "resets":
            ann.raw.reset()
        elif how == "is kicked":
            subscribers["ann"].close()
        elif how == "fails":
            await hub.publish("room", "x")
        await watcher.sees()
        await ann.close()
        bob = await enter(server, "bob")
        await watcher.sees("bob")
        assert [each for each in watcher.told if "left" in each] == [{"topic": "room", "left": "ann"}]
        await bob.close()

    @pytest.mark.skipif(sys.platform not in {"linux", "darwin"}, reason="the kernel buffers an unknown amount")
    async def test_a_client_that_reads_nothing_leaves_as_stalled(self, serve, enter, hub):
        reasons = []
        app = room(hub, stall_timeout=0.2, on_close=lambda context, reason: reasons.append(reason))
        server = await serve(app)
        ann = await enter(server, "ann", receive_buffer=4096)
        await ann.sees("ann")
        while hub.presence("room"):
            await hub.publish("room", "x" * 100_000)
            await asyncio.sleep(0)
        await until(lambda: reasons)
        assert reasons == [CloseReason.STALLED]

    async def test_all_leave_when_the_server_stops(self, serve, enter, hub):
        server = await serve(room(hub))
        for user in "ann", "bob":
            await (await enter(server, user)).sees(*sorted({"ann", user}))
        await server.stop()
        assert hub.presence("room") == set()


async def test_a_slow_client_is_told_who_is_present_when_it_reads_on(serve, enter, hub):
    server = await serve(room(hub, stall_timeout=None))
    slow = await enter(server, receive_buffer=4096)
    await slow.sees()
    while hub.statistics().catching_up == 0:
        await hub.publish("room", "x" * 10_000)
        await asyncio.sleep(0)
    await enter(server, "ann")
    bob = await enter(server, "bob")
    await until(lambda: seen(hub) == {"ann", "bob"})
    await bob.close()
    await until(lambda: seen(hub) == {"ann"})
    await slow.sees("ann")
    assert slow.told[-1] == {"topic": "room", "present": ["ann"]}


async def test_a_slow_client_gets_a_list_that_is_larger_than_all_buffers_once(serve, enter, hub):
    server = await serve(room(hub, stall_timeout=None))
    for number in range(5000):
        join(hub, "room", identity=f"{number:0200}", watches=False)
    slow = await enter(server, receive_buffer=4096)
    await slow.sees(*hub.presence("room"))
    await hub.publish("room", "x")
    assert (await slow.event()).data == "x"


async def test_many_clients_come_and_go(serve, enter, hub):
    server = await serve(room(hub))
    watcher = await enter(server)
    users = [f"user-{number}" for number in range(100)]
    clients = await asyncio.gather(*[enter(server, user) for user in users])
    await watcher.sees(*users)
    await asyncio.gather(*[client.sees(*users) for client in clients])
    await asyncio.gather(*[client.close() for client in clients[1:]])
    await watcher.sees(users[0])
    await clients[0].sees(users[0])


class TestNodes:
    @pytest.fixture
    def log(self, monkeypatch):
        quick(monkeypatch)
        return MemoryLog()

    @pytest.fixture
    async def node(self, serve, log):
        """Serve another node."""

        async def start() -> tuple[Hub, object]:
            hub = Hub(MemoryBroker(log))
            server = await serve(room(hub))
            await until(lambda: hub.ready)
            return hub, server

        return start

    async def test_a_user_with_two_tabs_on_two_nodes(self, node, enter):
        (first, here), (second, there) = await node(), await node()
        ann, bob = await enter(here, "ann"), await enter(there, "bob")
        await ann.sees("ann", "bob")
        await bob.sees("ann", "bob")
        other_tab = await enter(there, "ann")
        await other_tab.sees("ann", "bob")
        await ann.close()
        await bob.close()
        await other_tab.sees("ann")
        await until(lambda: seen(first) == seen(second) == {"ann"})

    async def test_the_users_of_a_node_that_stops_leave_at_once(self, node, enter):
        (_, here), (_, there) = await node(), await node()
        ann = await enter(here, "ann")
        await enter(there, "bob")
        await ann.sees("ann", "bob")
        await within(there.stop())
        await ann.sees("ann")

    async def test_users_come_and_go_during_an_outage(self, node, enter, log):
        (first, here), (second, there) = await node(), await node()
        ann, bob = await enter(here, "ann"), await enter(there, "bob")
        await ann.sees("ann", "bob")
        log.stop()
        await until(lambda: not first.ready and not second.ready)
        await bob.close()
        cat = await enter(there, "cat")
        await cat.sees("ann", "cat")
        log.restart()
        await ann.sees("ann", "cat")
        await cat.sees("ann", "cat")


def test_the_options_are_checked(hub):
    with pytest.raises(TypeError, match="identity"):
        topic_stream(hub, "room", identity="ann")
    with pytest.raises(ValueError, match="presence_event"):
        topic_stream(hub, "room", presence_event="")
