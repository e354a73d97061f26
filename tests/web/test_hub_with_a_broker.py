"""Streams of Hubs that share a log, over HTTP."""

from __future__ import annotations

import pytest
from aiohttp import web

from aiohttp_interceptors import Event, Hub, Snapshot, as_handler, setup, start_topic_stream
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.hub import replication
from tests.listener import application, listen
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import until

pytestmark = BOTH_LOOPS


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Reconnect without delay: the server is in this process."""
    monkeypatch.setattr(replication, "MAX_RECONNECT_DELAY", 0.005)


@pytest.fixture
def log():
    return MemoryLog()


@pytest.fixture
def node(serve, log):
    """Start an application with its own Hub and HTTP server, as another process would."""

    async def make(topics="a", **options):
        hub = Hub(MemoryBroker(log))
        return hub, await serve(application(hub, topics, **options))

    return make


async def test_a_client_that_reconnects_to_another_process_resumes_without_loss_or_repetition(node):
    (one, server), (other, elsewhere) = await node(), await node()
    listener = await listen(server)
    await until(lambda: one.ready and other.ready)
    for number in range(3):
        await other.publish("a", str(number))
    assert await listener.data(3) == ["0", "1", "2"]
    await listener.close()
    await one.publish("a", "missed")
    again = await listen(elsewhere, after=listener.last_event_id)
    await one.publish("a", "new")
    assert await again.data(2) == ["missed", "new"]
    await again.close()


async def test_a_stream_stays_open_with_heartbeats_while_the_broker_is_down(node, log):
    log.stop()
    hub, server = await node(heartbeat=0.01)
    listener = await listen(server)
    assert listener.status == 200
    await listener.heartbeat()
    log.restart()
    await until(lambda: hub.ready)
    await hub.publish("a", "x")
    assert (await listener.event()).data == "x"
    await listener.close()


async def test_the_initial_id_frame_is_sent_when_the_history_has_been_read(node, log):
    log.stop()
    _, server = await node(retry=1234)
    listener = await listen(server)
    log.append("a", b"\x10data: history\n\n", None)
    log.restart()
    frame = await listener.frame()
    assert (frame.id, frame.retry, frame.data) == (f"{log.epoch}-1", 1234, None)
    await listener.close()


async def test_a_server_that_stops_while_its_broker_is_down_ends_its_streams(node, log):
    log.stop()
    _, server = await node()
    listener = await listen(server)
    await server.stop()
    assert await listener.rest() == []
    assert listener.body in (b"", b":\n")  # and no initial id frame
    assert listener.complete
    await listener.close()


async def test_a_snapshot_id_that_this_process_has_not_received_yet_is_waited_for(node, log):
    ahead = []

    def snapshot(context):
        position = log.append("a", b"\x10data: in the state\n\n", None)
        ahead.append(f"{position.epoch}-{position.offset}")
        return Snapshot(["state"], id=ahead[0])

    hub, server = await node(snapshot=snapshot)
    await until(lambda: hub.ready)
    listener = await listen(server)
    state = await listener.event()
    assert (state.data, state.id) == ("state", ahead[0])
    await hub.publish("a", "new")
    assert (await listener.event()).data == "new"
    await listener.close()


@pytest.mark.parametrize("kept", [True, False])
async def test_a_client_that_reconnects_before_the_history_is_read_gets_a_snapshot_only_after_a_gap(node, log, kept):
    first, _ = await node()
    await until(lambda: first.ready)
    event_id = await first.publish("a", "had")
    await first.publish("a", "missed")
    log.stop()
    _, server = await node(snapshot=lambda context: ["state"])
    listener = await listen(server, after=event_id if kept else "strange-1")
    log.restart()
    if kept:
        assert await listener.data(1) == ["missed"]
    else:
        assert (await listener.event()).name == "gap"
        assert await listener.data(1) == ["state"]
    await listener.close()


async def test_topics_that_are_added_before_the_history_is_read_take_effect(node, log):
    log.stop()

    def ready(subscriber, context):
        subscriber.add("b")

    hub, server = await node(stream_ready=ready)
    listener = await listen(server)
    await until(lambda: hub.subscribers("b") == 1)
    log.restart()
    await until(lambda: hub.ready)
    await hub.publish("b", "x")
    assert await listener.data(1) == ["x"]
    await listener.close()


async def test_ready_answers_a_health_check(serve, session, log):
    hub, app = Hub(MemoryBroker(log)), web.Application()
    setup(app, hub)
    app.router.add_get("/events", as_handler(start_topic_stream(hub, "a")))

    async def health(_: web.Request) -> web.Response:
        return web.Response(status=200 if hub.ready else 503)

    app.router.add_get("/health", health)
    log.stop()
    server = await serve(app)
    async with session.get(f"{server.url}/health") as response:
        assert response.status == 503
    log.restart()
    await until(lambda: hub.ready)
    async with session.get(f"{server.url}/health") as response:
        assert response.status == 200


async def test_the_application_closes_the_broker(serve, log):
    closed = []

    class Recording(MemoryBroker):
        async def close(self):
            closed.append(self)
            await super().close()

    hub = Hub(Recording(log))
    server = await serve(application(hub, "a"))
    await until(lambda: hub.ready)
    await hub.publish("a", Event("x"))
    assert closed == []
    await server.stop()
    assert len(closed) == 1
