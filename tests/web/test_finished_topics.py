"""Streams of finished topics over HTTP: they end, and who has everything is told not to come back."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest
from aiohttp import web

from aiohttp_interceptors import CloseReason, Event, Hub, Snapshot, as_handler, publish_handler, setup
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.hub import history, replication
from tests.listener import application, listen
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import until, within

pytestmark = BOTH_LOOPS

SMALL = 4096  # receive buffer of a slow client, in bytes
KILOBYTE = "x" * 1024
MOST_VISITS = 10  # of a browser, before its test gives up


@pytest.fixture(autouse=True)
def quick(monkeypatch, logged):
    """Reconnect without delay: the server is in this process. Capture what streams log."""
    monkeypatch.setattr(replication, "MAX_RECONNECT_DELAY", 0.005)


@pytest.fixture(params=["alone", "with a broker"])
def hub(request):
    return Hub(None if request.param == "alone" else MemoryBroker(MemoryLog()), latest=10)


async def ready(hub):
    await until(lambda: hub.ready)


async def texts(listener):
    """Read to the end, which must be complete, and return the data of the events."""
    events = await listener.rest()
    assert listener.complete
    await listener.close()
    return ["gap" if event.name == "gap" else event.data for event in events]


async def status(server, **options):
    listener = await listen(server, **options)
    await listener.close()
    return listener.status


async def visit(server, **options):
    """Behave as an ``EventSource`` until it is told to stop, and return the texts of each connection."""
    visits, after = [], None
    for _ in range(MOST_VISITS):
        listener = await listen(server, after=after, **options)
        if listener.status == 204:
            await listener.close()
            return visits
        assert listener.status == 200
        visits.append(await texts(listener))
        after = listener.last_event_id or None
    raise AssertionError(f"the browser still comes back: {visits}")


async def test_an_open_stream_gets_the_last_event_and_ends(hub, serve):
    reasons = []
    server = await serve(application(hub, "a", on_close=lambda context, reason: reasons.append(reason)))
    await ready(hub)
    listener = await listen(server)
    await listener.frame()
    await hub.publish("a", "1")
    end = await hub.finish("a", "end")
    assert await texts(listener) == ["1", "end"]
    assert listener.last_event_id == end
    await until(lambda: reasons == [CloseReason.CLOSED])


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("browser", [True, False])
async def test_a_client_that_has_everything_is_answered_with_204(hub, serve, method, browser):
    closed = []
    server = await serve(application(hub, "a", on_close=lambda context, reason: closed.append(reason)))
    first = await hub.publish("a", "1")
    end = await hub.finish("a", "end")
    assert await status(server, method=method, browser=browser, after=end) == 204
    assert closed == []
    for options in {"after": first}, {"after": "strange"}, {}:
        assert await status(server, method=method, browser=browser, **options) == 200


async def test_a_stream_whose_topics_may_change_is_not_answered_with_204(hub, serve):
    server = await serve(application(hub, "a", stream_ready=lambda subscriber, context: subscriber.add("b")))
    end = await hub.finish("a", "end")
    listener = await listen(server, after=end)
    assert listener.status == 200
    await hub.publish("b", "goes on")
    assert await listener.data(1) == ["goes on"]
    await listener.close()


@pytest.mark.parametrize("name", ["lastEventId", "last_event_id"])
async def test_the_id_may_be_in_the_query(hub, serve, name):
    server = await serve(application(hub, "a"))
    first = await hub.publish("a", "1")
    end = await hub.finish("a", "end")
    assert await status(server, path=f"/?{name}={end}") == 204
    assert await texts(await listen(server, f"/?{name}={first}")) == ["end"]


async def test_topics_of_a_function_are_checked_too(hub, serve):
    async def topics(context):
        return [context.request.query["topic"]]

    server = await serve(application(hub, topics))
    end = await hub.finish("a", "end")
    assert await status(server, path="/?topic=a", after=end) == 204
    assert await status(server, path="/?topic=b", after=end) == 200


async def test_a_client_that_comes_back_gets_what_it_missed_and_the_end(hub, serve):
    server = await serve(application(hub, "a"))
    await ready(hub)
    listener = await listen(server)
    await hub.publish("a", "1")
    assert await listener.data(1) == ["1"]
    await listener.close()
    await hub.publish("a", "2")
    await hub.finish("a", "end")
    again = await listen(server, after=listener.last_event_id)
    assert await texts(again) == ["2", "end"]
    assert await status(server, after=again.last_event_id) == 204


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["end"]),
        ({"replay": 2}, ["2", "end"]),
        ({"replay": "latest"}, ["2", "end"]),
        ({"snapshot": lambda context: ["state"]}, ["state"]),
        ({"snapshot": lambda context: []}, []),
        ({"select": lambda context, record: record.key == "k"}, []),
        ({"on_gap": "close"}, ["end"]),
        ({"on_gap": "conflate"}, ["end"]),
        ({"prime": True}, ["end"]),
        ({"prime": False}, ["end"]),
    ],
)
async def test_a_page_that_is_reloaded_gets_the_state_and_the_end_and_stops(hub, serve, options, expected):
    server = await serve(application(hub, "a", **options))
    await hub.publish("a", "1", key="k")
    await hub.publish("a", "2", key="k")
    await hub.finish("a", "end")
    await hub.publish("b", "not this")
    await until(lambda: hub.history.end == 4)
    assert await visit(server) == [expected]


@pytest.mark.parametrize("records", [0, 1])
@pytest.mark.parametrize("options", [{}, {"replay": 5}, {"snapshot": lambda context: []}])
async def test_a_browser_stops_at_a_topic_that_was_finished_without_an_event(hub, serve, options, records):
    server = await serve(application(hub, "a", **options))
    for number in range(records):
        await hub.publish("a", str(number))
    await hub.finish("a")
    expected = ["0"] if records and "snapshot" not in options else []
    assert await visit(server) == [expected]


@pytest.mark.parametrize("history", [0, 1])
async def test_a_browser_stops_although_the_history_is_short(serve, history):
    hub = Hub(history=history)
    server = await serve(application(hub, "a"))
    first = await hub.publish("a", "1")
    await hub.publish("a", "2")
    await hub.finish("a", "end")
    assert await visit(server) == [["end"][:history]]
    listener = await listen(server, after=first)
    assert await texts(listener) == ["gap", "end"][: 1 + history]
    assert await status(server, after=listener.last_event_id) == 204


@pytest.mark.parametrize("options", [{"browser": False}, {"prime": False}])
@pytest.mark.parametrize("case", ["no record", "select", "history", "latest"])
async def test_a_client_that_gets_neither_an_event_nor_an_initial_frame_is_told_to_stop(serve, options, case):
    hub = Hub(history=0 if case == "history" else 10, latest=10)
    stream = {"select": {"select": lambda context, record: False}, "latest": {"replay": "latest"}}.get(case, {})
    server = await serve(application(hub, "a", prime=options.get("prime"), **stream))
    if case != "no record":
        await hub.publish("a", "1", key="k")
        await hub.publish("a", "2", key="k", tombstone=case == "latest")
    await hub.finish("a")
    assert await status(server, browser=options.get("browser", True)) == 204


async def test_a_client_whose_records_a_later_process_has_never_seen_gets_a_gap(serve):
    log = MemoryLog(max_records=2)
    old = Hub(MemoryBroker(log))
    await serve(application(old, "a"))
    await ready(old)
    first = await old.publish("a", "0")
    await old.publish("a", "1")
    await old.publish("b", "x")
    await old.finish("a")
    hub = Hub(MemoryBroker(log))
    server = await serve(application(hub, "a"))
    await ready(hub)
    assert await texts(await listen(server, after=first)) == ["gap"]


async def test_a_client_whose_records_were_dropped_with_their_topic_gets_a_gap(serve, monkeypatch):
    monkeypatch.setattr(history, "MAX_EMPTY_TOPICS", 2)
    hub = Hub(history=0)
    server = await serve(application(hub, "a"))
    before = await hub.publish("b", "x")
    await hub.publish("a", "missed")
    for number in range(5):
        await hub.publish(f"other.{number}", "x")
    await hub.finish("a")
    assert await texts(await listen(server, after=before)) == ["gap"]


@pytest.mark.parametrize("on_gap", ["signal", "close", "conflate"])
async def test_a_client_whose_records_are_gone_gets_a_gap_and_the_end_and_stops(serve, on_gap):
    hub = Hub(history=2)
    server = await serve(application(hub, "a", on_gap=on_gap))
    first = await hub.publish("a", "0")
    for number in range(1, 5):
        await hub.publish("a", str(number))
    await hub.finish("a", "end")
    listener = await listen(server, after=first)
    gap = await listener.event()
    assert json.loads(gap.data)["reason"] == "evicted"
    assert await texts(listener) == ["4", "end"]
    assert await status(server, after=listener.last_event_id) == 204


@pytest.mark.parametrize("browser", [True, False])
async def test_a_client_from_which_select_hides_the_end_is_told_its_id_if_it_is_a_browser(hub, serve, browser):
    server = await serve(application(hub, "a", select=lambda context, record: record.key == "yes"))
    await ready(hub)
    listener = await listen(server, browser=browser)
    await until(lambda: hub.subscribers("a") == 1)
    seen = await hub.publish("a", "x", key="yes")
    end = await hub.finish("a", "no")
    assert await texts(listener) == ["x"]
    assert listener.last_event_id == (end if browser else seen)
    assert await status(server, after=end) == 204


async def test_a_stream_of_several_topics_ends_with_the_last_of_them(hub, serve):
    server = await serve(application(hub, ["a", "b"]))
    await ready(hub)
    listener = await listen(server)
    await listener.frame()
    end = await hub.finish("a", "end of a")
    assert await listener.data(1) == ["end of a"]
    assert await status(server, after=end) == 200
    await hub.publish("b", "1")
    end = await hub.finish("b", "end of b")
    assert await texts(listener) == ["1", "end of b"]
    assert await status(server, after=end) == 204


async def test_a_stream_with_a_wildcard_goes_on(hub, serve):
    server = await serve(application(hub, ["a", "b.*"]))
    await ready(hub)
    listener = await listen(server)
    await listener.frame()
    await hub.finish("a", "end of a")
    end = await hub.finish("b.c", "end of b.c")
    await hub.publish("b.d", "more")
    assert await listener.data(3) == ["end of a", "end of b.c", "more"]
    await listener.close()
    again = await listen(server, after=end)
    assert await again.data(1) == ["more"]
    await again.close()


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_stream_that_removes_its_last_unfinished_topic_ends(hub, serve, when):
    subscribers = []

    def stream_ready(subscriber, context):
        subscribers.append(subscriber)
        if when == "before":
            subscriber.remove("b")

    server = await serve(application(hub, ["a", "b"], stream_ready=stream_ready))
    await ready(hub)
    listener = await listen(server)
    await listener.frame()
    await hub.finish("a", "end")
    if when == "after":
        assert await listener.data(1) == ["end"]
        subscribers[0].remove("b")
        assert await texts(listener) == []
    else:
        assert await texts(listener) == ["end"]


async def test_a_stream_that_adds_a_topic_goes_on(hub, serve):
    server = await serve(application(hub, "a", stream_ready=lambda subscriber, context: subscriber.add("b")))
    await hub.finish("a", "end of a")
    listener = await listen(server)
    assert await listener.data(1) == ["end of a"]
    await hub.publish("b", "1")
    await hub.finish("b", "end of b")
    assert await texts(listener) == ["1", "end of b"]


@pytest.mark.parametrize("snapshot", [None, lambda context: ["state"]])
async def test_stream_ready_may_finish_its_own_topic(hub, serve, snapshot):
    async def stream_ready(subscriber, context):
        await hub.finish("a", "end")

    server = await serve(application(hub, "a", stream_ready=stream_ready, snapshot=snapshot))
    await ready(hub)
    assert await texts(await listen(server)) == [*(["state"] if snapshot else []), "end"]


async def test_a_topic_that_is_finished_while_the_snapshot_is_taken_ends_its_stream(hub, serve):
    taking, go_on = asyncio.Event(), asyncio.Event()

    async def snapshot(context):
        taking.set()
        await go_on.wait()
        return ["state"]

    server = await serve(application(hub, "a", snapshot=snapshot))
    await ready(hub)
    listener = await listen(server)
    await within(taking.wait())
    await hub.publish("a", "1")
    await hub.finish("a", "end")
    go_on.set()
    assert await texts(listener) == ["state", "1", "end"]
    assert await status(server, after=listener.last_event_id) == 204


async def test_a_snapshot_that_contains_the_end_is_not_followed_by_it(hub, serve):
    ids = []
    server = await serve(application(hub, "a", snapshot=lambda context: Snapshot(["state"], id=ids[-1])))
    ids.append(await hub.publish("a", "1"))
    ids.append(await hub.finish("a", "end"))
    assert await visit(server) == [["state"]]


async def test_a_reloaded_page_is_told_when_to_reconnect(hub, serve):
    server = await serve(application(hub, "a", retry=1234))
    await hub.finish("a", "end")
    listener = await listen(server)
    assert await texts(listener) == ["end"]
    assert listener.retry == 1234


async def test_a_client_that_takes_no_frames_without_data_gets_none(hub, serve):
    server = await serve(application(hub, "a", prime=False))
    await ready(hub)
    listener = await listen(server)
    await until(lambda: hub.subscribers("a") == 1)
    await hub.publish("a", "1")
    await hub.finish("a")
    assert await texts(listener) == ["1"]
    assert listener.body.count(b"\n\n") == 1
    assert await status(server, after=listener.last_event_id) == 204


@pytest.mark.skipif(sys.platform not in {"linux", "darwin"}, reason="the kernel buffers an unknown amount")
@pytest.mark.parametrize("stopping", [False, True], ids=["", "while the server stops"])
async def test_a_slow_client_gets_everything(serve, stopping):
    hub, reasons = Hub(history=10_000, history_bytes=None), []
    app = application(hub, "a", stall_timeout=None, on_close=lambda context, reason: reasons.append(reason))
    server = await serve(app, shutdown_timeout=30.0)
    listener = await listen(server, receive_buffer=SMALL)
    await until(lambda: hub.statistics().subscribers == 1 and hub.statistics().catching_up == 0)
    published = 0
    while not hub.statistics().catching_up or published < 500:
        await hub.publish("a", f"{published} {KILOBYTE}")
        await asyncio.sleep(0)
        published += 1
    await hub.finish("a", "end " + KILOBYTE)
    await until(lambda: hub.statistics().subscribers == 0)
    assert reasons == []
    stop = asyncio.create_task(server.stop()) if stopping else None
    await asyncio.sleep(0)
    assert [text.split()[0] for text in await texts(listener)] == [*map(str, range(published)), "end"]
    await until(lambda: reasons == [CloseReason.CLOSED])
    if stop is not None:
        await within(stop)


@pytest.mark.skipif(sys.platform not in {"linux", "darwin"}, reason="the kernel buffers an unknown amount")
async def test_a_last_event_that_is_larger_than_all_buffers_arrives(hub, serve):
    server = await serve(application(hub, "a"))
    await ready(hub)
    listener = await listen(server, receive_buffer=SMALL)
    await listener.frame()
    await hub.finish("a", "x" * 900_000)
    [text] = await texts(listener)
    assert len(text) == 900_000


async def test_a_client_that_leaves_before_the_end_is_written_gets_it_when_it_returns(hub, serve):
    reasons = []
    server = await serve(application(hub, "a", on_close=lambda context, reason: reasons.append(reason)))
    await ready(hub)
    listener = await listen(server)
    await listener.frame()
    listener.raw.reset()
    await until(lambda: reasons == [CloseReason.CLIENT_LEFT])
    await hub.finish("a", "end")
    assert await texts(await listen(server, after=listener.last_event_id)) == ["end"]


async def test_publishing_to_a_finished_topic_is_a_conflict(serve, session):
    hub, app = Hub(), web.Application()
    setup(app, hub)
    app.router.add_post("/", as_handler(publish_handler(hub)))
    server = await serve(app)
    await hub.finish("a", Event("end"))
    async with session.post(server.url, json={"topic": "a", "data": "x"}) as response:
        assert response.status == 409
        assert "'a' was finished" in await response.text()


class TestTwoProcesses:
    @pytest.fixture
    def log(self):
        return MemoryLog()

    @pytest.fixture
    async def nodes(self, serve, log):
        made = []
        for _ in range(2):
            hub = Hub(MemoryBroker(log))
            made.append((hub, await serve(application(hub, "a"))))
            await ready(hub)
        return made

    async def test_the_streams_of_both_end_and_both_answer_204(self, nodes):
        (one, _), (other, _) = nodes
        listeners = [await listen(server) for _, server in nodes]
        for listener in listeners:
            await listener.frame()
        await one.publish("a", "1")
        end = await other.finish("a", "end")
        for listener in listeners:
            assert await texts(listener) == ["1", "end"]
        for _, server in nodes:
            assert await status(server, after=end) == 204

    async def test_an_end_that_this_process_has_not_received_yet_is_waited_for(self, nodes, log):
        (one, server), _ = nodes
        log.stop()
        await until(lambda: not one.ready)
        position = log.append("a", b"\x14\x01data: end\n\n", None)
        end = f"{position.epoch}-{position.offset}"
        listener = await listen(server, after=end)
        log.restart()
        assert await texts(listener) == []
        assert await status(server, after=end) == 204

    async def test_a_stream_that_is_open_while_the_broker_is_down_ends_afterwards(self, nodes, log):
        (one, server), (other, _) = nodes
        first = await one.publish("a", "1")
        log.stop()
        await until(lambda: not one.ready and not other.ready)
        listener = await listen(server, after=first)
        log.restart()
        await other.finish("a", "end")
        assert await texts(listener) == ["end"]

    async def test_a_process_that_starts_later_answers_as_the_others(self, nodes, log, serve):
        (one, _), _ = nodes
        first = await one.publish("a", "1")
        end = await one.finish("a", "end")
        hub = Hub(MemoryBroker(log))
        server = await serve(application(hub, "a"))
        assert await texts(await listen(server)) == ["end"]
        assert await texts(await listen(server, after=first)) == ["end"]
        await ready(hub)
        assert await status(server, after=end) == 204

    async def test_a_lost_end_opens_the_topic_again(self, nodes, log):
        (one, server), _ = nodes
        await one.publish("a", "1")
        end = await one.finish("a", "end")
        log.truncate(1)
        await until(lambda: one.history.epoch == log.epoch)
        listener = await listen(server, after=end)
        await one.publish("a", "2")
        assert json.loads((await listener.event()).data)["reason"] == "truncated"
        await one.finish("a", "end again")
        assert await texts(listener) == ["2", "end again"]
        assert await status(server, after=listener.last_event_id) == 204
