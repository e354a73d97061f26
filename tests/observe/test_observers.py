"""What observers of streams and of Hubs are told, and that they are isolated from each other."""

from __future__ import annotations

import asyncio
import sys
import time

import pytest
from aiohttp import web

from aiohttp_interceptors import (
    STREAMS,
    BrokerDown,
    BrokerRefused,
    CloseReason,
    Event,
    EventsDropped,
    Hub,
    HubDown,
    HubFlushed,
    HubGap,
    HubPublished,
    HubResumed,
    HubUp,
    Interceptor,
    OutcomeUnknown,
    SlidingQueue,
    Snapshot,
    StreamClosed,
    StreamFirstEvent,
    StreamOpened,
    StreamRefused,
    as_handler,
    before,
    event_stream,
    interceptor_middleware,
    on_error,
    setup,
    start_event_stream,
    start_topic_stream,
)
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.hub import replication
from aiohttp_interceptors.testing import open_stream
from aiohttp_interceptors.web.transport import Connection
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import run_other_tasks, until, within

pytestmark = BOTH_LOOPS


class Site:
    """An application with an observer, and what it was told."""

    def __init__(self, *hubs, **limits):
        self.facts = []
        self.app = web.Application()
        setup(self.app, *hubs, observer=[self.facts.append], **limits)

    def get(self, path, handler):
        self.app.router.add_get(path, handler)
        return self

    def kinds(self):
        return [type(fact) for fact in self.facts]

    def of(self, kind):
        return [fact for fact in self.facts if isinstance(fact, kind)]

    async def closed(self):
        await until(lambda: self.of(StreamClosed))
        return self.of(StreamClosed)[0]


# Isolation.


async def test_an_observer_that_raises_is_removed_and_the_others_are_told(serve, session, logged):
    told, raised = [], []

    def broken(fact):
        raised.append(fact)
        raise ZeroDivisionError

    async def ready(channel, context):
        await channel.put("x")
        channel.close()

    app = web.Application()
    setup(app, observer=[told.append, broken, told.append])
    app.router.add_get("/", as_handler(start_event_stream(ready)))
    server = await serve(app)
    async with open_stream(session, server.url) as stream:
        assert [event.data for event in await stream.rest()] == ["x"]
    await until(lambda: len(told) == 6)
    assert [type(fact) for fact in told[::2]] == [StreamOpened, StreamFirstEvent, StreamClosed]
    assert told[::2] == told[1::2]
    assert raised == told[:1]
    dropped = [line for line in logged if line["event"] == "stream_observer_dropped"]
    assert len(dropped) == 1
    assert "broken" in dropped[0]["observer"]


async def test_an_observer_is_added_to_an_application_and_removed(serve, session):
    told = []
    app = web.Application()
    setup(app)
    app.router.add_get("/", as_handler(start_event_stream(lambda channel, context: channel.close())))
    server = await serve(app)
    app[STREAMS].add_observer(told.append)
    async with open_stream(session, server.url) as stream:
        await stream.rest()
    await until(lambda: [type(fact) for fact in told] == [StreamOpened, StreamClosed])
    for _ in range(2):
        app[STREAMS].remove_observer(told.append)
    async with open_stream(session, server.url) as stream:
        await stream.rest()
    await until(lambda: not len(app[STREAMS]))
    assert len(told) == 2
    with pytest.raises(TypeError, match="observer is a function of a fact, not None"):
        app[STREAMS].add_observer(None)


async def test_an_observer_of_a_hub_that_raises_is_removed_and_the_others_are_told(logged):
    told, raised = [], []

    def broken(fact):
        raised.append(fact)
        raise asyncio.CancelledError

    hub = Hub(MemoryBroker(MemoryLog()), observer=(broken, told.append))
    hub.add_observer(told.append)
    hub.open()
    await until(lambda: hub.ready)
    await hub.publish("a", "x")
    assert [type(fact) for fact in told[:4]] == [HubUp, HubUp, HubPublished, HubPublished]
    assert len(raised) == 1
    await hub.close()
    assert [line["event"] for line in logged if line["log_level"] == "error"] == ["hub_observer_dropped"]


@pytest.mark.parametrize("observer", ["print", 1, [print, "print"], {print}])
def test_an_observer_is_a_function_or_a_sequence_of_functions(observer):
    wrong = observer[1] if isinstance(observer, list) else observer
    for make in (lambda: setup(web.Application(), observer=observer), lambda: Hub(observer=observer)):
        with pytest.raises(TypeError) as caught:
            make()
        assert str(caught.value) == f"observer is a function of a fact, not {wrong!r}"
    with pytest.raises(TypeError, match="observer is a function of a fact, not None"):
        Hub().add_observer(None)


def test_a_function_that_is_also_a_sequence_is_one_observer():
    class Both(list):
        def __call__(self, fact):
            self.append(fact)

    app = web.Application()
    setup(app, observer=Both(["not a function"]))


# Routes.


async def test_facts_have_the_route_with_its_parameters_and_the_prefix_of_its_application(serve, session):
    async def ready(channel, context):
        await channel.put("x")
        channel.close()

    site = Site(max_streams=1)
    inner = web.Application()
    inner.router.add_get("/rooms/{room}", as_handler(start_event_stream(ready)))
    site.app.add_subapp("/api", inner)
    server = await serve(site.app)
    async with open_stream(session, f"{server.url}/api/rooms/7?x=1") as stream:
        await stream.rest()
    await site.closed()
    assert site.kinds() == [StreamOpened, StreamFirstEvent, StreamClosed]
    assert {(fact.path, fact.route) for fact in site.facts} == {("/api/rooms/7", "/api/rooms/{room}")}


async def test_a_refusal_has_the_route(serve, session):
    async def ready(channel, context):
        await channel.wait_closed()

    site = Site(max_streams=1).get("/{name}", as_handler(start_event_stream(ready)))
    server = await serve(site.app)
    async with open_stream(session, f"{server.url}/one"), open_stream(session, f"{server.url}/two") as refused:
        assert refused.response.status == 503
    (fact,) = site.of(StreamRefused)
    assert (fact.path, fact.route, fact.status) == ("/two", "/{name}", 503)


async def test_a_stream_of_a_middleware_for_a_path_without_a_route_has_none(serve, session):
    async def ready(channel, context):
        channel.close()

    stream_handler = as_handler(start_event_stream(ready))

    @web.middleware
    async def middleware(request, handler):
        return await stream_handler(request)

    site = Site()
    site.app.middlewares.append(middleware)
    server = await serve(site.app)
    async with open_stream(session, f"{server.url}/nowhere") as stream:
        assert await stream.rest() == []
    assert (await site.closed()).route == ""


async def test_dropped_events_have_the_route(serve, session):
    async def ready(channel, context):
        for number in range(9):
            channel.put_nowait(str(number))
        channel.close()

    stage = start_event_stream(ready, buffer=lambda: SlidingQueue(1))
    site = Site().get("/{name}", as_handler(stage))
    server = await serve(site.app)
    async with open_stream(session, f"{server.url}/x") as stream:
        await stream.rest()
    closed = await site.closed()
    assert sum(fact.count for fact in site.of(EventsDropped)) == closed.dropped
    assert {fact.route for fact in site.of(EventsDropped)} <= {"/{name}"}


# The first event.


async def test_the_first_event_of_a_channel_is_told_once_when_it_is_written(serve, session):
    going = asyncio.Event()

    async def ready(channel, context):
        await going.wait()
        await channel.put("one")
        await channel.put("two")
        channel.close()

    site = Site().get("/", as_handler(start_event_stream(ready, heartbeat=0.01)))
    server = await serve(site.app)
    async with open_stream(session, server.url) as stream:
        await stream.next_heartbeat()
        assert site.kinds() == [StreamOpened]
        going.set()
        await stream.rest()
    closed = await site.closed()
    (first,) = site.of(StreamFirstEvent)
    assert 0.01 < first.seconds <= closed.seconds + 0.001  # the heartbeat's interval was over
    assert first.execution_id == closed.execution_id


async def test_the_time_to_the_first_event_of_a_generator_begins_at_its_start(serve, session):
    loop = asyncio.get_running_loop()
    times = []

    async def generate(context):
        times.append(loop.time())
        await asyncio.sleep(0.02)  # the work whose duration is measured
        times.append(loop.time())
        yield "x"

    site = Site().get("/", event_stream(generate))
    server = await serve(site.app)
    async with open_stream(session, server.url) as stream:
        await stream.rest()
    await site.closed()
    (first,) = site.of(StreamFirstEvent)
    assert first.seconds >= times[1] - times[0]


async def test_a_stream_without_an_event_has_no_first_one(serve, session):
    async def ready(channel, context):
        channel.close()

    site = Site().get("/", as_handler(start_event_stream(ready)))
    server = await serve(site.app)
    async with open_stream(session, server.url) as stream:
        assert await stream.rest() == []
    await site.closed()
    assert site.kinds() == [StreamOpened, StreamClosed]


async def test_the_first_event_of_a_topic_stream_is_not_its_initial_frame(serve, session):
    hub = Hub()
    site = Site(hub).get("/", as_handler(start_topic_stream(hub, "a", prime=True)))
    server = await serve(site.app)
    async with open_stream(session, server.url) as stream:
        assert (await stream.next_frame()).id is not None
        await until(lambda: hub.statistics().catching_up == 0)
        assert site.kinds() == [StreamOpened]
        await hub.publish("a", "one")
        assert (await stream.next()).data == "one"
        assert site.kinds() == [StreamOpened, StreamFirstEvent]
        await hub.publish("a", "two")
        assert (await stream.next()).data == "two"
        assert site.kinds() == [StreamOpened, StreamFirstEvent]
        (first,) = site.of(StreamFirstEvent)
        assert 0 <= first.seconds < 30


async def test_the_first_event_of_a_stream_that_resumes_is_told(serve, session):
    hub = Hub()
    site = Site(hub).get("/", as_handler(start_topic_stream(hub, "a")))
    server = await serve(site.app)
    ids = [await hub.publish("a", str(number)) for number in range(3)]
    async with open_stream(session, server.url, last_event_id=ids[0]) as stream:
        assert (await stream.next()).data == "1"
        assert site.kinds() == [StreamOpened, StreamFirstEvent]
        await hub.publish("a", "3")
        assert [(await stream.next()).data for _ in range(2)] == ["2", "3"]
        assert site.kinds() == [StreamOpened, StreamFirstEvent]


async def test_the_first_event_of_a_snapshot_is_told(serve, session):
    hub = Hub()
    site = Site(hub).get("/", as_handler(start_topic_stream(hub, "a", snapshot=lambda context: Snapshot(["state"]))))
    server = await serve(site.app)
    async with open_stream(session, server.url) as stream:
        assert (await stream.next()).data == "state"
        assert site.kinds() == [StreamOpened, StreamFirstEvent]
        await hub.publish("a", "x")
        assert (await stream.next()).data == "x"
        assert site.kinds() == [StreamOpened, StreamFirstEvent]


async def test_many_observed_streams_of_a_topic_get_each_event_once(serve, session):
    hub = Hub()
    site = Site(hub).get("/", as_handler(start_topic_stream(hub, "a", prime=True)))
    server = await serve(site.app)

    async def read():
        async with open_stream(session, server.url) as stream:
            return [(await stream.next()).data for _ in range(3)]

    readers = [asyncio.ensure_future(read()) for _ in range(20)]
    await until(lambda: hub.statistics().subscribers == 20 and not hub.statistics().catching_up)
    for number in range(3):
        await hub.publish("a", str(number))
    assert await within(asyncio.gather(*readers)) == [["0", "1", "2"]] * 20
    assert len(site.of(StreamFirstEvent)) == 20


async def test_a_stream_is_written_to_directly_after_its_first_event(serve, session):
    hub = Hub()
    site = Site(hub).get("/", as_handler(start_topic_stream(hub, "a")))
    server = await serve(site.app)
    async with open_stream(session, server.url) as stream:
        await until(lambda: hub.statistics().subscribers == 1 and not hub.statistics().catching_up)
        for number in range(2):
            await hub.publish("a", str(number))
            assert (await stream.next()).data == str(number)
        (group,) = hub._dispatcher._groups.values()
        assert [type(sink) for sink in group._sinks] == [Connection]


# The end.


async def test_a_closed_stream_tells_what_its_producer_raised(serve, session, raised, logged):
    boom = ValueError("boom")

    async def ready(channel, context):
        await channel.put("x")
        raise boom

    site = Site().get("/", as_handler(start_event_stream(ready)))
    server = await serve(site.app)
    await server.exchange("GET / HTTP/1.1\nHost: x\nConnection: close\n\n")
    closed = await site.closed()
    assert (closed.reason, closed.exception) == (CloseReason.ERROR, boom)
    (line,) = [line for line in logged if line["event"] == "stream_closed"]
    assert "exception" not in line


# Stages.


@pytest.mark.parametrize("fails", [False, True])
async def test_the_time_of_a_handler_is_not_that_of_the_stage_after_it(serve, session, fails):
    facts, times = [], []

    @before
    def observe(context):
        context.add_observer(facts.append)

    async def handler(request):
        started = time.perf_counter()
        await asyncio.sleep(0.05)  # the work whose duration is measured
        times.append(time.perf_counter() - started)
        if fails:
            raise ZeroDivisionError
        return web.Response()

    @on_error(ZeroDivisionError)
    def handle(context, error):
        context.response = web.Response(text="handled")

    leaves = Interceptor("leaves", leave=lambda context: None)
    app = web.Application(middlewares=[interceptor_middleware(observe, handle if fails else leaves)])
    app.router.add_get("/", handler)
    server = await serve(app)
    async with session.get(server.url) as response:
        assert response.status == 200
    fact = facts[-1]
    assert (fact.interceptor, fact.stage) == (("handle", "error") if fails else ("leaves", "leave"))
    assert fact.duration < times[0]
    assert (fact.before["response"] is None) == fails


# Hubs.


class Told:
    """A Hub with an observer, and what it was told."""

    def __init__(self, broker=None, **options):
        self.facts = []
        self.hub = Hub(broker, observer=self.facts.append, **options)
        self.hub.open()

    def of(self, kind):
        return [fact for fact in self.facts if isinstance(fact, kind)]


async def test_a_flush_tells_its_records_and_its_streams(serve, session):
    told = Told()
    hub = told.hub
    site = Site(hub).get(
        "/{topic}", as_handler(start_topic_stream(hub, lambda context: context.request.match_info["topic"]))
    )
    server = await serve(site.app)
    async with (
        open_stream(session, f"{server.url}/a"),
        open_stream(session, f"{server.url}/a"),
        open_stream(session, f"{server.url}/b"),
        open_stream(session, f"{server.url}/c"),
        open_stream(session, f"{server.url}/*"),
    ):
        await until(lambda: hub.statistics().subscribers == 5 and not hub.statistics().catching_up)
        told.facts.clear()
        await hub.publish("a", "x")
        await hub.publish("a", "y")
        await hub.publish("b", "z")
        await hub.publish("no.stream", "z")
        await until(lambda: told.facts)
    (fact,) = told.of(HubFlushed)
    assert (fact.records, fact.streams) == (3, 4)
    assert 0 < fact.seconds < 30
    await hub.close()


async def test_a_flush_for_a_stream_that_catches_up_counts_that_one(serve, session):
    told = Told()
    hub = told.hub
    site = Site(hub).get("/", as_handler(start_topic_stream(hub, "a")))
    site.get("/state", as_handler(start_topic_stream(hub, "a", snapshot=lambda context: ["state"])))
    server = await serve(site.app)
    async with open_stream(session, server.url):
        await until(lambda: hub.statistics().subscribers == 1 and not hub.statistics().catching_up)
        told.facts.clear()
        async with open_stream(session, f"{server.url}/state"):
            await until(lambda: hub.statistics().subscribers == 2 and not hub.statistics().catching_up)
            assert [(fact.records, fact.streams) for fact in told.of(HubFlushed)] == [(0, 1)]
    await hub.close()


@pytest.mark.parametrize("observed", [False, True])
async def test_without_an_observer_a_flush_has_no_facts_to_make(observed):
    called = set()
    hub = Hub(observer=called.add if observed else None)
    hub.open()
    sys.setprofile(lambda frame, event, argument: called.add(frame.f_code.co_name))
    try:
        await hub.publish("a", "x")
        hub._dispatcher.schedule(hub._dispatcher.acquire_group(frozenset({"a"}), None, bytes))
        await run_other_tasks()
    finally:
        sys.setprofile(None)
    assert "_flush_dirty" in called
    assert ("_flush_observed" in called) == observed
    await hub.close()


@pytest.mark.parametrize(
    ("after", "reason"),
    [("nonsense", "unknown"), ("k3jk2l3kj4kl-7", "foreign"), ("evicted", "evicted"), ("future", "future")],
)
async def test_a_gap_tells_its_reason(serve, session, after, reason):
    told = Told(history=2)
    hub = told.hub
    site = Site(hub).get("/", as_handler(start_topic_stream(hub, "a")))
    server = await serve(site.app)
    ids = [await hub.publish("a", str(number)) for number in range(5)]
    epoch = ids[0].rpartition("-")[0]
    after = {"evicted": ids[0], "future": f"{epoch}-999"}.get(after, after)
    async with open_stream(session, server.url, last_event_id=after) as stream:
        gap = await stream.next()
        assert (gap.name, Event.json({"reason": reason}).data[1:-1] in gap.data) == ("gap", True)
        assert told.of(HubGap) == [HubGap(reason)]
        assert hub.statistics().gaps == 1
    await hub.close()


async def test_a_gap_before_a_snapshot_tells_its_reason(serve, session):
    told = Told()
    hub = told.hub
    site = Site(hub).get("/", as_handler(start_topic_stream(hub, "a", snapshot=lambda context: ["state"])))
    server = await serve(site.app)
    async with open_stream(session, server.url, last_event_id="nonsense") as stream:
        assert (await stream.next()).name == "gap"
        assert (await stream.next()).data == "state"
    assert told.of(HubGap) == [HubGap("unknown")]
    await hub.close()


class Failing(MemoryBroker):
    """A broker whose publish raises."""

    error: BaseException | None = None

    async def publish(self, topic, payload, **options):
        if self.error is not None:
            raise self.error
        return await super().publish(topic, payload, **options)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "stored"),
        (BrokerDown("x"), "down"),
        (OutcomeUnknown("x"), "unknown"),
        (BrokerRefused("x"), "refused"),
        (asyncio.CancelledError(), "cancelled"),
        (ZeroDivisionError(), "failed"),
    ],
)
@pytest.mark.parametrize("method", ["publish", "finish"])
async def test_a_publish_to_a_broker_tells_its_outcome(error, outcome, method):
    broker = Failing(MemoryLog())
    told = Told(broker)
    await until(lambda: told.hub.ready)
    broker.error = error
    publishing = asyncio.gather(getattr(told.hub, method)("a", "x"), return_exceptions=True)
    (result,) = await publishing
    assert type(result) is (str if error is None else type(error))
    (fact,) = told.of(HubPublished)
    assert fact.outcome == outcome
    assert 0 < fact.seconds < 30
    assert told.hub.statistics().published == (error is None)
    broker.error = None
    await told.hub.close()


async def test_a_publish_without_a_broker_tells_nothing():
    told = Told()
    await told.hub.publish("a", "x")
    await told.hub.finish("a")
    assert told.of(HubPublished) == []
    await told.hub.close()


async def test_statistics_tell_the_connection_to_the_broker(monkeypatch):
    monkeypatch.setattr(replication, "MAX_RECONNECT_DELAY", 0.005)
    log = MemoryLog()
    told = Told(MemoryBroker(log))
    hub = told.hub
    before = hub.statistics()
    assert (before.connected, before.confirmation_age) == (False, None)
    await until(lambda: hub.ready)
    up = hub.statistics()
    assert up.connected
    assert 0 <= up.confirmation_age < 30
    log.stop()
    await until(lambda: told.of(HubDown))
    down = hub.statistics()
    assert not down.connected
    assert down.confirmation_age >= up.confirmation_age
    log.restart()
    await until(lambda: told.of(HubResumed))
    assert hub.statistics().connected
    await hub.close()
    alone = Hub().statistics()
    assert (alone.connected, alone.confirmation_age) == (None, None)
