"""Snapshots that fail, and clients that disconnect before theirs is complete."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import pydantic
import pytest

from aiohttp_interceptors import CloseReason, Event, Hub, Snapshot
from tests.listener import application, listen
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import until, within

pytestmark = BOTH_LOOPS


class ObservedStreams:
    """Topic streams of a Hub, and why they ended."""

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
    """The client has no id yet and starts again. An async stream_ready, which follows the snapshot, does not run."""

    async def stream_ready(subscriber, context) -> None:
        raise AssertionError

    streams = ObservedStreams(snapshot, stream_ready=stream_ready if ready else None)
    listener = await listen(await serve(streams.app))
    assert [event.data for event in await listener.rest()] in ([], ["one"])
    assert not listener.complete
    assert listener.last_event_id == ""
    assert streams.reasons == [CloseReason.ERROR]
    assert [str(error) for error in raised()] == ["no state"]
    assert errors(logged) == []
    assert streams.hub.statistics().subscribers == 0
    await listener.close()


class Model(pydantic.BaseModel):
    """A model is iterable, and yields its fields."""

    text: str = "x"


class Pair(NamedTuple):
    a: int
    b: int


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, "a snapshot is a list or an async iterable of events, or a Snapshot, not None"),
        ("text", "a snapshot is a list or an async iterable of events, or a Snapshot, not 'text'"),
        (5, "a snapshot is a list or an async iterable of events, or a Snapshot, not 5"),
        (Model(), "a snapshot is a list or an async iterable of events, or a Snapshot, not Model("),
        (Pair(1, 2), "a snapshot is a list or an async iterable of events, or a Snapshot, not Pair("),
        ([None], "a plain JSON value other than None, not of None; encoder= encodes anything else"),
        ([b"x"], "a plain JSON value other than None, not of b'x'; encoder= encodes anything else"),
        (
            ["x", Event("y", id=1), "z"],
            "the Hub assigns the ids of events, and Event(data='y', id='1') of a snapshot already has one",
        ),
        (["\ud800"], "an event's data is sent as UTF-8"),
    ],
)
async def test_an_invalid_snapshot_ends_its_stream_and_its_value_is_logged(serve, raised, wrong, message):
    streams = ObservedStreams(lambda context: wrong)
    listener = await listen(await serve(streams.app))
    await listener.rest()
    assert streams.reasons == [CloseReason.ERROR]
    (error,) = raised()
    assert message in str(error)
    await listener.close()


@pytest.mark.parametrize("wait", ["in the function", "between events", "for room"])
@pytest.mark.parametrize("reset", [False, True])
async def test_a_disconnect_during_the_snapshot_is_not_an_error_and_closes_its_generator(
    serve, logged, handler_cancellation, wait, reset
):
    waiting, closed, subscribers, generators = asyncio.Event(), asyncio.Event(), [], []

    async def generate():
        try:
            yield "one"
            while wait == "for room":
                waiting.set()
                yield "x" * 1024
            waiting.set()
            await asyncio.Event().wait()
            yield "two"
        finally:
            closed.set()

    async def snapshot(context) -> Snapshot:
        if wait == "in the function":
            waiting.set()
            try:
                await asyncio.Event().wait()
            finally:
                closed.set()
        generators.append(generate())  # a reference, so that garbage collection does not close it
        return Snapshot(generators[0])

    async def stream_ready(subscriber, context) -> None:
        subscribers.append(subscriber)

    streams = ObservedStreams(snapshot, stream_ready=stream_ready)
    server = await serve(streams.app, handler_cancellation=handler_cancellation)
    listener = await listen(server)
    if wait == "for room":
        listener.raw.writer.transport.pause_reading()
    await within(waiting.wait())
    if wait == "for room":
        await until(lambda: streams.hub.statistics().subscribers == 1)
    if reset:
        listener.raw.reset()
    else:
        listener.raw.writer.close()
    await within(closed.wait())
    await until(lambda: streams.reasons)
    assert streams.reasons == [CloseReason.CLIENT_LEFT]
    assert errors(logged) == subscribers == []
    await until(lambda: streams.hub.statistics().subscribers == 0)
    await listener.close()


async def test_a_server_stop_ends_an_incomplete_snapshot(serve, logged):
    closed = asyncio.Event()

    async def snapshot(context):
        try:
            yield "one"
            yield "two"
            await asyncio.Event().wait()
        finally:
            closed.set()

    streams = ObservedStreams(snapshot)
    server = await serve(streams.app)
    listener = await listen(server)
    assert await listener.data(1) == ["one"]
    await server.stop()
    assert [event.data for event in await listener.rest()] == []
    assert listener.complete
    assert closed.is_set()
    assert streams.reasons == [CloseReason.SHUTDOWN]
    assert errors(logged) == []
    await listener.close()


async def test_a_snapshot_slower_than_the_history_is_followed_by_a_gap(serve, logged):
    """The records in between were trimmed, and the client is notified."""
    hub = Hub(history=3)
    release = asyncio.Event()

    async def snapshot(context) -> list[str]:
        await release.wait()
        return ["state"]

    listener = await listen(await serve(application(hub, "a", snapshot=snapshot)))
    await until(lambda: hub.statistics().subscribers == 1)
    for _ in range(3):
        await asyncio.sleep(0)
    for number in range(10):
        await hub.publish("a", str(number))
    release.set()
    events = [await listener.event() for _ in range(5)]
    assert [event.name or event.data for event in events] == ["state", "gap", "7", "8", "9"]
    await listener.close()
    assert errors(logged) == []
