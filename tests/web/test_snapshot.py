"""Snapshots: the state that a stream starts with, and the records that follow it."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from aiohttp_interceptors import Event, Hub, Snapshot
from aiohttp_interceptors.web.app import STREAMS
from tests.listener import application, listen
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import until

pytestmark = BOTH_LOOPS


@pytest.fixture(autouse=True)
def quiet(logged):
    """Capture what streams log."""


@pytest.mark.parametrize("after", ["nothing", "gap"])
async def test_an_incomplete_snapshot_is_sent_again_and_a_complete_one_is_not(serve, after):
    """The connection is closed after each byte in turn. Only the last event has an id."""
    hub = Hub(history=4)
    first = await hub.publish("a", "0")
    for number in range(1, 8):
        await hub.publish("a", str(number))
    state = [Event("one", "state"), "two", Event("drei\nvier")]
    server = await serve(application(hub, "a", snapshot=lambda context: state, retry=2000))
    given = None if after == "nothing" else first
    whole = await listen(server, after=given)
    while len(whole.body.split(b"vier\n\n")) == 1:
        await whole.read()
    await whole.close()
    gaps = [] if given is None else [json.dumps({"reason": "evicted", "after": given, "first": None})]
    for size in range(len(whole.body) + 1):
        listener = await listen(server, after=given)
        while len(listener.body) < size:
            await listener.read(1)
        await listener.close()
        complete = size == len(whole.body)
        assert listener.last_event_id == (hub.history.id_of(8) if complete else "")
        listener = await listen(server, after=listener.last_event_id or given)
        await until(lambda: hub.statistics().catching_up == 0 and hub.statistics().subscribers >= 1)
        await hub.publish("a", "end", ephemeral=True)
        seen = [(await listener.event()).data.replace(",", ", ").replace(":", ": ")]
        while seen[-1] != "end":
            seen.append((await listener.event()).data)
        assert seen == (["end"] if complete else [*gaps, "one", "two", "drei\nvier", "end"])
        await listener.close()
        await until(lambda: hub.statistics().subscribers == 0)


class TestSnapshot:
    @pytest.mark.parametrize("form", ["list", "tuple", "generator", "async list", "async generator", "Snapshot"])
    async def test_each_form_is_accepted_and_only_the_last_event_has_an_id(self, serve, form):
        hub = Hub()
        await hub.publish("a", "old")

        async def later(context):
            return ["x", Event("y")]

        async def generate(context):
            for data in "xy":
                yield data

        snapshot = {
            "list": lambda context: ["x", Event("y")],
            "tuple": lambda context: ("x", "y"),
            "generator": lambda context: (data for data in "xy"),
            "async list": later,
            "async generator": generate,
            "Snapshot": lambda context: Snapshot(["x", "y"], hub.history.id_of(1)),
        }[form]
        listener = await listen(await serve(application(hub, "a", snapshot=snapshot, retry=2000)))
        assert await listener.frame() == Event("x", retry=2000)
        assert await listener.frame() == Event("y", id=hub.history.id_of(1))
        await hub.publish("a", "z")
        assert await listener.frame() == Event("z", id=hub.history.id_of(2))
        await listener.close()

    @pytest.mark.parametrize("prime", [True, False])
    async def test_an_empty_snapshot_changes_nothing(self, serve, prime):
        hub = Hub()
        server = await serve(application(hub, "a", snapshot=lambda context: [], retry=2000, prime=prime))
        listener = await listen(server)
        if prime:
            assert await listener.frame() == Event(id=hub.history.id_of(0), retry=2000)
        await until(lambda: hub.statistics().subscribers == 1)
        await hub.publish("a", "x")
        assert await listener.frame() == Event("x", id=hub.history.id_of(1), retry=None if prime else 2000)
        await listener.close()

    async def test_a_resuming_client_gets_one_only_after_a_gap(self, serve):
        hub = Hub(history=2)
        ids = [await hub.publish("a", str(number)) for number in range(5)]
        app = application(hub, "a", snapshot=lambda context: ["state"], gap_event="hole")
        server = await serve(app)
        for after, seen in [
            (ids[4], []),
            (ids[2], ["3", "4"]),
            (ids[1], ["evicted", "state"]),
            ("x", ["unknown", "state"]),
            ("0-1", ["foreign", "state"]),
            (hub.history.id_of(9), ["future", "state"]),
        ]:
            listener = await listen(server, after=after)
            await until(lambda: hub.statistics().subscribers == 1 and hub.statistics().catching_up == 0)
            await hub.publish("a", "end", ephemeral=True)
            events = [await listener.event() for _ in range(len(seen) + 1)]
            assert [json.loads(e.data)["reason"] if e.name == "hole" else e.data for e in events] == [*seen, "end"]
            (stream,) = app[STREAMS]
            assert (stream.statistics().events, stream.statistics().bytes) == (len(events), len(listener.body))
            await listener.close()
            await until(lambda: hub.statistics().subscribers == 0)
        assert hub.statistics().gaps == 4

    @pytest.mark.parametrize(("given", "reason"), [("x", "unknown"), ("0-1", "foreign"), ("FUTURE", "future")])
    async def test_an_unusable_snapshot_id_is_reported_as_a_gap(self, serve, given, reason):
        hub = Hub()
        await hub.publish("a", "old")
        given = hub.history.id_of(7) if given == "FUTURE" else given
        snapshot = Snapshot(["state"], given)
        listener = await listen(await serve(application(hub, "a", snapshot=lambda context: snapshot)))
        gap = await listener.event()
        assert json.loads(gap.data) == {"reason": reason, "after": given, "first": None}
        assert (await listener.event()).data == "state"
        if reason == "foreign":  # all records of this run follow the state of another run
            assert (await listener.event()).data == "old"
        await listener.close()

    @pytest.mark.parametrize("form", ["generator", "async generator"])
    async def test_it_is_produced_no_faster_than_the_client_reads(self, serve, form):
        """Of twenty megabytes, only what fits the buffers of a small client is produced."""
        hub, produced = Hub(), []

        def generate(context):
            for number in range(20_000):
                produced.append(number)
                yield f"{number} {'x' * 1024}"

        async def generate_later(context):
            for event in generate(context):
                yield event

        streams = []
        app = application(
            hub,
            "a",
            snapshot=generate if form == "generator" else generate_later,
            stream_ready=lambda subscriber, context: streams.append(context.stream),
        )
        listener = await listen(await serve(app), receive_buffer=4096)
        await until(lambda: streams and streams[0].statistics().unsent)
        before = -1
        while before != len(produced):
            before = len(produced)
            for _ in range(100):
                await asyncio.sleep(0)
        assert len(produced) < 1000
        assert streams[0].statistics().unsent < 128 * 1024
        assert [data.split()[0] for data in await listener.data(2000)] == [str(number) for number in range(2000)]
        await listener.close()


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_plain_stream_ready_runs_before_the_snapshot_and_an_async_one_after_it(serve, asynchronous):
    hub, order = Hub(), []

    def ready(subscriber, context) -> None:
        order.append("ready")

    async def ready_later(subscriber, context) -> None:
        order.append("ready")
        await hub.publish("a", "from stream_ready")

    def snapshot(context) -> list[str]:
        order.append("snapshot")
        return ["state"]

    app = application(hub, "a", snapshot=snapshot, stream_ready=ready_later if asynchronous else ready)
    listener = await listen(await serve(app))
    assert await listener.data(1) == ["state"]
    if asynchronous:
        assert await listener.data(1) == ["from stream_ready"]
    assert order == (["snapshot", "ready"] if asynchronous else ["ready", "snapshot"])
    await listener.close()


@pytest.mark.parametrize(
    ("events", "given", "error", "message"),
    [
        ("text", None, TypeError, "a snapshot is a list or an async iterable of events, or a Snapshot, not 'text'"),
        (Event("x"), None, TypeError, "not Event(data='x')"),
        (None, None, TypeError, "not None"),
        (5, None, TypeError, "not 5"),
        (b"x", None, TypeError, "not b'x'"),
        ({"a": 1}, None, TypeError, "not {'a': 1}"),
        ([], 5, TypeError, "a snapshot's id is what publish returned, a str or None, not 5"),
    ],
)
def test_an_invalid_snapshot_is_refused(events, given, error, message):
    with pytest.raises(error, match=re.escape(message)):
        Snapshot(events, given)
