"""Snapshots that fail, and clients that leave before theirs is complete."""

from __future__ import annotations

import asyncio

import pytest

from aiohttp_interceptors import CloseReason, Event, Hub, Snapshot
from tests.listener import application, listen
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import until, within

pytestmark = BOTH_LOOPS


class TransportListener:
    """Streams of a Hub, and why they ended."""

    def __init__(self, snapshot, **options: object) -> None:
        self.hub = Hub()
        self.reasons: list[CloseReason] = []
        options.setdefault("on_close", lambda context, reason: self.reasons.append(reason))
        self.app = application(self.hub, "a", snapshot=snapshot, **options)


def errors(logged) -> list[dict]:
    return [line for line in logged if line["log_level"] in {"error", "critical", "warning"}]


def fails(context):
    raise LookupError("no state")


async def fails_later(context):
    await asyncio.sleep(0)
    raise LookupError("no state")


async def fails_midway(context):
    yield "one"
    yield "two"
    raise LookupError("no state")


def fails_in_a_list(context):
    yield "one"
    raise LookupError("no state")


@pytest.mark.parametrize("ready", [False, True])
@pytest.mark.parametrize("snapshot", [fails, fails_later, fails_midway, fails_in_a_list])
async def test_a_snapshot_that_raises_ends_its_stream_and_is_logged_once(serve, logged, raised, snapshot, ready):
    """Its client has no id to return with, and begins again; a stream_ready that was to come after never begins."""

    async def stream_ready(subscriber, context) -> None:
        raise AssertionError

    watched = TransportListener(snapshot, stream_ready=stream_ready if ready else None)
    listener = await listen(await serve(watched.app))
    assert [event.data for event in await listener.rest()] in ([], ["one"])
    assert not listener.complete
    assert listener.last_event_id == ""
    assert watched.reasons == [CloseReason.ERROR]
    assert [str(error) for error in raised()] == ["no state"]
    assert errors(logged) == []
    assert watched.hub.statistics().subscribers == 0
    await listener.close()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, "a snapshot is a list or an async iterable of events, or a Snapshot, not None"),
        ("text", "a snapshot is a list or an async iterable of events, or a Snapshot, not 'text'"),
        (5, "a snapshot is a list or an async iterable of events, or a Snapshot, not 5"),
        ([5], "a snapshot holds events and strings, not 5"),
        ([b"x"], "a snapshot holds events and strings, not b'x'"),
        (["x", Event("y", id=1), "z"], "the Hub gives ids, and Event(data='y', id='1') of a snapshot has one"),
        (["\ud800"], "an event's data is sent as UTF-8"),
    ],
)
async def test_what_is_no_snapshot_ends_its_stream_and_the_log_has_the_value(serve, raised, wrong, message):
    watched = TransportListener(lambda context: wrong)
    listener = await listen(await serve(watched.app))
    await listener.rest()
    assert watched.reasons == [CloseReason.ERROR]
    (error,) = raised()
    assert message in str(error)
    await listener.close()


@pytest.mark.parametrize("wait", ["in the function", "between events", "for room"])
@pytest.mark.parametrize("reset", [False, True])
async def test_a_client_that_leaves_during_its_snapshot_is_no_error_and_what_made_it_is_closed(
    serve, logged, handler_cancellation, wait, reset
):
    waits, closed, entered, kept = asyncio.Event(), asyncio.Event(), [], []

    async def generate():
        try:
            yield "one"
            while wait == "for room":
                waits.set()
                yield "x" * 1024
            waits.set()
            await asyncio.Event().wait()
            yield "two"
        finally:
            closed.set()

    async def snapshot(context) -> Snapshot:
        if wait == "in the function":
            waits.set()
            try:
                await asyncio.Event().wait()
            finally:
                closed.set()
        kept.append(generate())  # so that nobody closes it by forgetting it
        return Snapshot(kept[0])

    async def stream_ready(subscriber, context) -> None:
        entered.append(subscriber)

    watched = TransportListener(snapshot, stream_ready=stream_ready)
    server = await serve(watched.app, handler_cancellation=handler_cancellation)
    listener = await listen(server)
    if wait == "for room":
        listener.raw.writer.transport.pause_reading()
    await within(waits.wait())
    if wait == "for room":
        await until(lambda: watched.hub.statistics().subscribers == 1)
    if reset:
        listener.raw.reset()
    else:
        listener.raw.writer.close()
    await within(closed.wait())
    await until(lambda: watched.reasons)
    assert watched.reasons == [CloseReason.CLIENT_LEFT]
    assert errors(logged) == entered == []
    await until(lambda: watched.hub.statistics().subscribers == 0)
    await listener.close()


async def test_a_stop_of_the_server_ends_a_snapshot_that_is_not_complete(serve, logged):
    closed = asyncio.Event()

    async def snapshot(context):
        try:
            yield "one"
            yield "two"
            await asyncio.Event().wait()
        finally:
            closed.set()

    watched = TransportListener(snapshot)
    server = await serve(watched.app)
    listener = await listen(server)
    assert await listener.data(1) == ["one"]
    await server.stop()
    assert [event.data for event in await listener.rest()] == []
    assert listener.complete
    assert closed.is_set()
    assert watched.reasons == [CloseReason.SHUTDOWN]
    assert errors(logged) == []
    await listener.close()


async def test_a_state_that_takes_longer_than_the_history_lasts_is_followed_by_a_gap(serve, logged):
    """The records between are lost to this client, and it is told so."""
    hub = Hub(history=3)
    going = asyncio.Event()

    async def snapshot(context) -> list[str]:
        await going.wait()
        return ["state"]

    listener = await listen(await serve(application(hub, "a", snapshot=snapshot)))
    await until(lambda: hub.statistics().subscribers == 1)
    for _ in range(3):
        await asyncio.sleep(0)
    for number in range(10):
        await hub.publish("a", str(number))
    going.set()
    events = [await listener.event() for _ in range(5)]
    assert [event.name or event.data for event in events] == ["state", "gap", "7", "8", "9"]
    await listener.close()
    assert errors(logged) == []
