"""Owners whose streams end on all nodes: the control record, nodes that are cut off, and what is remembered."""

from __future__ import annotations

import asyncio
import json
import time
from types import SimpleNamespace

import pytest
from aiohttp import web

from aiohttp_interceptors import Event, Hub, event_stream, setup, topic_stream
from aiohttp_interceptors.brokers.memory import MemoryBroker
from aiohttp_interceptors.exceptions import BrokerDown
from aiohttp_interceptors.hub import owners as owners_module
from aiohttp_interceptors.hub.owners import OPENING_TIMEOUT, Owners
from aiohttp_interceptors.web.app import STREAMS
from tests.hub.sink import live
from tests.hub.watcher import Cable, Cluster, quick
from tests.listener import listen
from tests.waiting import run_other_tasks, until, within


@pytest.fixture
async def cluster(monkeypatch, logged):
    quick(monkeypatch)
    cluster = Cluster()
    yield cluster
    await cluster.close()


def user(context):
    return context.request.query.get("user")


@event_stream(owner=user, heartbeat=None)
async def channel_stream(context):
    yield "hello"
    await asyncio.Event().wait()


class Node:
    """A served application with a Hub: topic streams at ``/``, channel streams at ``/channel``."""

    def __init__(self, hub, server, app) -> None:
        self.hub = hub
        self.server = server
        self.streams = app[STREAMS]

    async def open(self, path="/?user=ann"):
        before = len(self.streams)
        listener = await listen(self.server, path)
        await until(lambda: len(self.streams) == before + 1)
        return listener


@pytest.fixture
async def node(serve, cluster):
    """Serve an application with a Hub of the cluster."""

    async def start(broker=None, *, topics=">", **options):
        hub = await cluster.node(broker)
        app = web.Application()
        setup(app, hub)
        app.router.add_get("/", topic_stream(hub, topics, owner=user, heartbeat=None, prime=False, **options))
        app.router.add_get("/channel", channel_stream)
        return Node(hub, await serve(app), app)

    return start


async def last(listener):
    """Read to the end, and return the last event."""
    events = await listener.rest()
    await listener.close()
    return events[-1] if events else None


class TestDisconnect:
    async def test_all_streams_of_an_owner_end_on_all_nodes(self, cluster, node):
        nodes = [await node() for _ in range(3)]
        listeners = [await each.open(path) for each in nodes for path in ("/?user=ann", "/channel?user=ann")]
        others = [await each.open(path) for each in nodes for path in ("/?user=bob", "/channel?user=bob", "/")]
        await nodes[1].hub.disconnect("ann", Event("bye", "logout"))
        for listener in listeners:
            event = await last(listener)
            assert (event.name, event.data) == ("logout", "bye")
            assert listener.complete
        await until(lambda: [len(each.streams) for each in nodes] == [3] * 3)
        for each in nodes:
            assert each.streams.owners.count("ann") == 0
        for other in others:
            await other.close()

    @pytest.mark.parametrize(
        "event",
        [
            None,
            Event("two\nlines", "ü"),
            Event("", "logout"),
            Event("x", retry=60_000),
            Event(retry=60_000),
            Event("x", comment="c"),
        ],
        ids=str,
    )
    async def test_each_node_sends_the_same_final_event(self, cluster, node, event):
        nodes = [await node() for _ in range(2)]
        listeners = [await each.open() for each in nodes]
        await nodes[0].hub.disconnect("ann", event)
        for listener in listeners:
            await last(listener)
        assert listeners[0].body == listeners[1].body
        assert (listeners[0].body == b"") == (event is None)
        assert {listener.retry for listener in listeners} == {event.retry if event else None}

    async def test_the_owner_may_be_any_printable_text(self, cluster, node):
        nodes = [await node() for _ in range(2)]
        owner = 'session:"é\\ %s' % ("x" * 200)
        listener = await nodes[0].open(f'/?user=session:"%C3%A9%5C%20{"x" * 200}')
        await nodes[1].hub.disconnect(owner)
        assert await last(listener) is None

    async def test_it_reaches_no_stream_and_no_listener(self, cluster, node):
        first, second = await node(), await node()
        sinks = [await live(first.hub, ">"), await live(second.hub, ">", "_hub"), await live(second.hub, "_hub")]
        listeners = [first.hub.listen(">"), second.hub.listen([">", "_hub"])]
        stream = await second.open("/")
        await first.hub.disconnect("ann", Event("secret"))
        record = await first.hub.publish("a", "x")
        for listener in listeners:
            assert (await within(anext(listener))).event.data == "x"
        assert await stream.data(1) == ["x"]
        assert [sink.texts for sink in sinks] == [["x"], ["x"], []]
        assert stream.last_event_id == record
        assert b"secret" not in stream.body
        await stream.close()

    async def test_a_process_that_reads_history_does_not_end_a_new_login(self, cluster, node):
        first = await node()
        await first.hub.disconnect("ann")
        await first.hub.disconnect("ann", Event("bye"))
        second = await node()
        listener = await second.open()
        await first.hub.publish("a", "x")
        assert await listener.data(1) == ["x"]
        await first.hub.disconnect("ann")
        assert await last(listener) is None

    async def test_a_stream_that_opens_on_another_node_ends(self, cluster, node):
        reached, may_go_on = asyncio.Event(), asyncio.Event()

        async def topics(context):
            reached.set()
            await may_go_on.wait()
            return "a"

        first, second = await node(), await node(topics=topics)
        opening = asyncio.create_task(listen(second.server, "/?user=ann"))
        await within(reached.wait())
        await first.hub.disconnect("ann", Event("bye", "logout"))
        await first.hub.publish("a", "x")
        await until(lambda: second.hub.history.end == first.hub.history.end)
        may_go_on.set()
        assert (await last(await opening)).name == "logout"

    async def test_streams_of_an_application_without_the_hub_do_not_end(self, serve, cluster, node):
        first = await node()
        app = web.Application()
        setup(app)
        app.router.add_get("/channel", channel_stream)
        stranger = Node(None, await serve(app), app)
        listener = await stranger.open("/channel?user=ann")
        await first.hub.disconnect("ann")
        await run_other_tasks()
        assert next(iter(stranger.streams)).reason is None
        stranger.streams.disconnect("ann")
        await last(listener)

    async def test_two_hubs_of_one_application_reach_the_streams_of_both(self, serve, cluster, logged):
        hubs, app = [Hub(), await cluster.node()], web.Application()
        setup(app, *hubs)
        for number, hub in enumerate(hubs):
            app.router.add_get(f"/{number}", topic_stream(hub, "a", owner=user, heartbeat=None))
        both = Node(None, await serve(app), app)
        for hub in hubs:
            listeners = [await both.open(f"/{number}?user=ann") for number in range(2)]
            await hub.disconnect("ann")
            for listener in listeners:
                assert await last(listener) is None
            await until(lambda: len(both.streams) == 0)

    async def test_a_closed_hub_with_a_broker_raises(self, cluster):
        hub = await cluster.node()
        await hub.close()
        with pytest.raises(RuntimeError, match="closed"):
            await hub.disconnect("ann")

    async def test_a_wrong_control_record_is_logged_and_ends_nothing(self, cluster, node, logged):
        first = await node()
        listener = await first.open()
        wrong = [{}, {"owner": 7, "event": None}, {"owner": "", "event": None}, {"owner": "ann", "event": 7}]
        for content in wrong:
            cluster.send(json.dumps({"type": "disconnect", "node": "other", **content}).encode())
        await first.hub.publish("a", "x")
        assert await listener.data(1) == ["x"]
        assert [line["event"] for line in logged].count("hub_control_malformed") == len(wrong)
        await listener.close()

    async def test_one_from_the_future_does_not_end_later_streams(self, cluster, node):
        """The clocks of a server and of a process differ."""

        class Ahead(MemoryBroker):
            async def tail(self, after):
                async for item in super().tail(after):
                    yield [entry._replace(age=-100.0) for entry in item] if isinstance(item, list) else item

        first, second = await node(), await node(Ahead(cluster.log))
        listener = await second.open()
        await first.hub.disconnect("ann")
        await last(listener)
        again = await second.open()
        await first.hub.publish("a", "x")
        assert await again.data(1) == ["x"]
        await again.close()


class TestBrokerAway:
    async def test_local_streams_end_and_it_raises_and_may_be_repeated(self, cluster, node):
        first, second = await node(), await node()
        here, there = await first.open(), await second.open()
        cluster.log.stop()
        await until(lambda: not (first.hub.ready or second.hub.ready))
        with pytest.raises(BrokerDown):
            await first.hub.disconnect("ann", Event("bye", "logout"))
        assert (await last(here)).name == "logout"
        cluster.log.restart()
        await until(lambda: first.hub.ready and second.hub.ready)
        assert len(second.streams) == 1
        await first.hub.disconnect("ann", Event("bye", "logout"))
        assert (await last(there)).name == "logout"

    async def test_local_streams_end_at_once_while_the_broker_hangs(self, cluster, node):
        cable = Cable(cluster.log)
        first, second = await node(cable), await node()
        here, there = await first.open(), await second.open()
        cable.freeze()
        disconnecting = asyncio.create_task(first.hub.disconnect("ann"))
        assert await last(here) is None
        assert not disconnecting.done()
        again = await first.open()  # after the disconnect
        disconnecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await disconnecting
        cable.thaw()
        assert len(second.streams) == 1
        await first.hub.disconnect("ann")
        for listener in there, again:
            assert await last(listener) is None

    async def test_a_stream_that_was_requested_while_the_broker_hung_stays(self, cluster, node):
        cable = Cable(cluster.log)
        first = await node(cable)
        cable.freeze()
        disconnecting = asyncio.create_task(first.hub.disconnect("ann"))
        await run_other_tasks()
        listener = await first.open()
        cable.thaw()
        await within(disconnecting)
        await first.hub.publish("a", "x")
        assert await listener.data(1) == ["x"]
        await listener.close()

    async def test_a_node_that_was_cut_off_ends_only_the_streams_from_before(self, cluster, node):
        cable = Cable(cluster.log)
        first, second = await node(), await node(cable)
        old = await second.open()
        cable.cut = True
        cluster.log.stop()  # the tail ends
        cluster.log.restart()
        await until(lambda: not second.hub.ready and first.hub.ready)
        await first.hub.disconnect("ann", Event("bye", "logout"))
        new = await second.open()
        assert len(second.streams) == 2
        cable.cut = False
        assert (await last(old)).name == "logout"
        await until(lambda: second.hub.ready)
        await first.hub.publish("a", "x")
        assert await new.data(1) == ["x"]
        await new.close()


class FakeStream:
    def __init__(self, requested_at, error=None) -> None:
        self.requested_at = requested_at
        self.kicks = []
        self._error = error

    def kick(self, kick_event) -> None:
        self.kicks.append(kick_event)
        if self._error is not None:
            raise self._error


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(owners_module, "time", SimpleNamespace(monotonic=lambda: clock.now, time=lambda: clock.now))
    return clock


class TestOwners:
    def test_a_stream_that_raises_does_not_keep_the_others_open(self, clock, logged):
        owners, streams = Owners(), [FakeStream(1.0, LookupError("no")), FakeStream(1.0)]
        for stream in streams:
            owners.add(stream, ["ann"])
        owners.disconnect("ann", None)
        assert [stream.kicks for stream in streams] == [[None]] * 2
        assert [line["event"] for line in logged] == ["stream_end_failed"]

    def test_one_that_was_requested_before_a_disconnect_ends_when_it_is_added(self, clock):
        owners, event = Owners(), Event("bye")
        owners.disconnect("ann", event, age=10.0)
        before, after = FakeStream(989.0), FakeStream(991.0)
        for stream in before, after:
            owners.add(stream, ["bob", "ann"])
        assert (before.kicks, after.kicks) == ([event], [])

    def test_an_older_disconnect_that_arrives_late_changes_nothing(self, clock):
        owners = Owners()
        owners.disconnect("ann", None)
        owners.disconnect("ann", None, age=100.0)
        stream = FakeStream(950.0)
        owners.add(stream, ["ann"])
        assert stream.kicks == [None]

    def test_disconnects_are_forgotten(self, clock):
        owners = Owners()
        for number in range(1000):
            owners.disconnect(f"user:{number}", None)
        clock.now += OPENING_TIMEOUT - 1
        stream = FakeStream(999.0)
        owners.add(stream, ["user:7"])
        assert stream.kicks == [None]
        clock.now += 2
        owners.disconnect("ann", None)
        assert len(owners._disconnected) == 1

    def test_the_history_that_a_process_reads_is_not_remembered(self, clock):
        owners = Owners()
        for number in range(1000):
            owners.disconnect(f"user:{number}", None, age=10_000.0 - number)
        assert len(owners._disconnected) <= 1

    def test_a_linked_registry_remembers_too_and_is_linked_once(self, clock):
        owners, linked = Owners(), Owners()
        owners.link(linked)
        owners.link(linked)
        stream = FakeStream(1.0)
        linked.add(stream, ["ann"])
        owners.disconnect("ann", None)
        assert stream.kicks == [None]
        late = FakeStream(2.0)
        linked.add(late, ["ann"])
        assert late.kicks == [None]

    def test_nothing_is_kept_of_streams_that_were_removed(self, clock):
        owners, streams = Owners(), [FakeStream(1.0) for _ in range(10)]
        for stream in streams:
            owners.add(stream, ["ann", "session"])
        assert owners.count("ann") == 10
        for stream in streams * 2:
            owners.discard(stream, ["ann", "session"])
        assert owners._streams == {}


async def test_a_disconnect_is_a_control_record(cluster):
    hub = await cluster.node()
    before = time.time()
    await hub.disconnect("ann", Event("bye", "logout"))
    (message,) = cluster.control_messages()
    assert message.pop("node")
    assert before <= message.pop("at") <= time.time()
    assert message == {"type": "disconnect", "owner": "ann", "event": "event: logout\ndata: bye\n\n"}
    assert hub.statistics().records == hub.statistics().published == 0
