"""Runs: what their readers get, how they end, and what the other nodes know of them."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar

import pytest

from aiohttp_interceptors import (
    BrokerDown,
    BrokerRefused,
    Event,
    EventTooLarge,
    Hub,
    OutcomeUnknown,
    Run,
    RunExists,
    RunState,
    TooManyRuns,
    TopicFinished,
)
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.hub import nodes, publisher, replication, runs
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import TIMEOUT, run_other_tasks, until, within

pytestmark = BOTH_LOOPS

FINISHED, CANCELLED = '{"state":"finished"}', '{"state":"cancelled"}'


def failed(reason):
    return f'{{"state":"failed","reason":"{reason}"}}'


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Notice dead nodes soon, and connect soon."""
    monkeypatch.setattr(nodes, "LEASE_INTERVAL", 0.1)
    monkeypatch.setattr(nodes, "LEASE_TIMEOUT", 1.0)
    monkeypatch.setattr(nodes, "CHECK_INTERVAL", 0.05)
    monkeypatch.setattr(runs, "MAX_ENDING_DELAY", 0.05)
    monkeypatch.setattr(runs, "MAX_RETRY_DELAY", 0.1)
    monkeypatch.setattr(replication, "MAX_RECONNECT_DELAY", 0.05)


class Network(MemoryBroker):
    """A broker whose connection may be cut or slow, and which may store an event and not say so."""

    def __init__(self, log):
        super().__init__(log)
        self.connected = True
        self.fast = asyncio.Event()  # whether what is stored arrives
        self.fast.set()
        self.silent_about = None  # what the payload contains

    async def publish(self, topic, payload, **options):
        self.check()
        position = await super().publish(topic, payload, **options)
        if self.silent_about is not None and self.silent_about in payload:
            self.silent_about = None
            raise OutcomeUnknown("the connection was lost")
        return position

    async def tail(self, after):
        self.check()
        async for item in super().tail(after):
            await self.fast.wait()
            self.check()
            yield item

    def check(self):
        if not self.connected:
            raise BrokerDown("the connection is cut")


@pytest.fixture
async def hub_of():
    """Make Hubs, and close them after the test. With a log, wait until they are ready."""
    hubs = []

    async def make(log=None, *, broker=None, **options):
        hub = Hub(broker or (None if log is None else MemoryBroker(log)), **options)
        hubs.append(hub)
        hub.open()
        await until(lambda: hub.ready)
        return hub

    yield make
    for hub in hubs:
        await within(hub.close())


@pytest.fixture(params=["alone", "with a broker"])
async def hub(request, hub_of, logged):
    return await hub_of(None if request.param == "alone" else MemoryLog())


@pytest.fixture
async def cluster(hub_of, logged):
    """Three nodes, the first of which may be cut off."""

    class Cluster:
        log = MemoryLog()
        network = Network(log)
        hubs = ()

    Cluster.hubs = [await hub_of(broker=Network(Cluster.log) if number else Cluster.network) for number in range(3)]
    yield Cluster
    Cluster.network.connected = True


async def read(hub, topic, after=None):
    """Read a topic to its end, and return the data of its events."""
    async with asyncio.timeout(TIMEOUT):
        return [record.event.data async for record in hub.listen(topic, after=after, replay=0 if after else 1000)]


async def passed(seconds):
    """Wait until so much time has passed."""
    loop = asyncio.get_running_loop()
    since = loop.time()
    await until(lambda: loop.time() > since + seconds)


def published(hub, topic="t"):
    """Return the data of the events in the history."""
    return [record.event.data for record in hub.history.read(0, [topic]).records]


async def found(hub, topic="t"):
    """Wait until a node knows the run of a topic."""
    await until(lambda: hub.find_run(topic) is not None)
    return hub.find_run(topic)


async def counting(count=3):
    for number in range(count):
        yield str(number)
        await asyncio.sleep(0)


def plain_counting(count=3):
    yield from map(str, range(count))


async def waiting(first="0"):
    """Yield one event, and wait until the run is ended."""
    yield first
    await asyncio.Event().wait()


async def failing():
    yield "0"
    raise ValueError("no more")


def cancelled(error):
    raise asyncio.CancelledError


class Gate:
    """A generator that yields an event for each permit, and one that ends it."""

    def __init__(self):
        self.permits = asyncio.Semaphore(0)
        self.closed = False

    def allow(self, count=1):
        for _ in range(count):
            self.permits.release()

    async def events(self, count):
        try:
            for number in range(count):
                await self.permits.acquire()
                yield str(number)
            await self.permits.acquire()
        finally:
            self.closed = True


@pytest.fixture(params=[counting, plain_counting], ids=["async", "plain"])
def generator_function(request):
    return request.param


@pytest.fixture(params=["async", "plain"])
def kind(request):
    return request.param


class TestReading:
    @pytest.mark.parametrize("called", [False, True], ids=["generator", "function"])
    async def test_a_reader_gets_what_the_generator_yields_and_the_end(self, hub, generator_function, called):
        run = await hub.run("t", generator_function() if called else generator_function)
        assert await read(hub, "t") == ["0", "1", "2", FINISHED]
        assert await within(run.wait()) is run.state is RunState.FINISHED
        assert (run.reason, run.error) == (None, None)

    async def test_it_goes_on_without_readers(self, hub):
        run = await hub.run("t", counting)
        assert await within(run.wait()) is RunState.FINISHED
        assert hub.statistics().subscribers == 0
        assert await read(hub, "t") == ["0", "1", "2", FINISHED]

    async def test_a_reader_that_left_comes_back_where_it_was(self, hub):
        gate = Gate()
        await hub.run("t", gate.events(4))
        gate.allow(2)
        async with hub.listen("t", replay=1000) as records:
            seen = [await within(anext(records)) for _ in range(2)]
        gate.allow(3)
        assert await read(hub, "t", after=seen[0].id) == ["1", "2", "3", FINISHED]

    async def test_several_read_along(self, hub):
        gate = Gate()
        await hub.run("t", gate.events(3))
        readers = [asyncio.create_task(read(hub, "t")) for _ in range(3)]
        await until(lambda: hub.statistics().subscribers == 3)
        gate.allow(4)
        assert await within(asyncio.gather(*readers)) == [["0", "1", "2", FINISHED]] * 3

    async def test_the_last_event_has_a_name(self, hub):
        await hub.run("t", counting, end_event="done")
        records = [record async for record in hub.listen("t", replay=1000)]
        assert [record.event.name for record in records] == [None, None, None, "done"]

    async def test_values_are_what_publish_takes(self, hub):
        async def values():
            yield Event("x", name="word")
            yield {"a": 1}

        await hub.run("t", values)
        assert await read(hub, "t") == ["x", '{"a":1}', FINISHED]


class TestGenerators:
    async def test_a_plain_one_runs_in_a_thread_of_its_own(self, hub):
        threads = []
        resumed = threading.Event()

        def blocking():
            threads.append(threading.get_ident())
            assert resumed.wait(TIMEOUT)
            yield "0"

        run = await hub.run("t", blocking)
        await until(lambda: threads)
        resumed.set()
        assert await within(run.wait()) is RunState.FINISHED
        assert threads[0] != threading.get_ident()

    @pytest.mark.parametrize(
        ("value", "error"),
        [(object(), TypeError), (Event("x", id="7"), ValueError), ("x" * 2**20, EventTooLarge)],
        ids=["value", "id", "size"],
    )
    async def test_what_cannot_be_published_raises_at_the_yield(self, hub, kind, value, error):
        async def one():
            with pytest.raises(error):
                yield value
            yield "went on"

        def plain():
            with pytest.raises(error):
                yield value
            yield "went on"

        run = await hub.run("t", one if kind == "async" else plain)
        assert await within(run.wait()) is RunState.FINISHED
        assert published(hub) == ["went on", FINISHED]

    async def test_one_that_does_not_handle_it_fails(self, hub, kind):
        async def one():
            yield object()

        def plain():
            yield object()

        run = await hub.run("t", one if kind == "async" else plain)
        assert await within(run.wait()) is RunState.FAILED
        assert isinstance(run.error, TypeError)

    async def test_one_that_returns_when_it_raises_has_finished(self, hub, kind):
        async def one():
            try:
                yield object()
            except TypeError:
                return

        def plain():
            try:
                yield object()
            except TypeError:
                return

        run = await hub.run("t", one if kind == "async" else plain)
        assert await within(run.wait()) is RunState.FINISHED

    async def test_one_that_keeps_trying_does_not_block_the_event_loop(self, hub):
        async def stubborn():
            while True:
                try:
                    yield object()
                except TypeError:
                    pass

        run = await hub.run("t", stubborn, timeout=0.05)
        assert await within(run.wait()) is RunState.FAILED
        assert run.reason == "timeout"

    async def test_one_that_never_waits_does_not_either(self, hub):
        async def busy():
            while True:
                yield "x"

        run = await hub.run("t", busy, timeout=0.05)
        assert await within(run.wait()) is RunState.FAILED
        assert run.reason == "timeout"

    async def test_it_sees_the_context_variables_of_the_caller(self, hub, kind):
        name = ContextVar("name", default="nobody")

        async def one():
            yield name.get()
            name.set("changed")
            yield name.get()

        def plain():
            yield name.get()
            name.set("changed")
            yield name.get()

        name.set("ann")
        await hub.run("t", one if kind == "async" else plain)
        assert await read(hub, "t") == ["ann", "changed", FINISHED]
        assert name.get() == "ann"

    async def test_it_may_start_other_runs(self, hub):
        async def parent():
            run = await hub.run("child", counting)
            yield await run.wait()

        await hub.run("t", parent)
        assert await read(hub, "t") == ["finished", FINISHED]
        assert await read(hub, "child") == ["0", "1", "2", FINISHED]

    async def test_one_that_has_ended_is_a_run_without_events(self, hub):
        generator = counting()
        await generator.aclose()
        run = await hub.run("t", generator)
        assert await within(run.wait()) is RunState.FINISHED
        assert published(hub) == [FINISHED]

    async def test_one_that_another_run_uses_fails(self, hub):
        gate = Gate()
        generator = gate.events(1)
        first = await hub.run("t", generator)
        second = await hub.run("u", generator)
        assert await within(second.wait()) is RunState.FAILED
        assert isinstance(second.error, RuntimeError)
        gate.allow(2)
        assert await within(first.wait()) is RunState.FINISHED
        assert published(hub) == ["0", FINISHED]

    async def test_a_function_that_returns_something_else_fails(self, hub):
        run = await hub.run("t", lambda: ["0"])
        assert await within(run.wait()) is RunState.FAILED
        assert isinstance(run.error, TypeError)


class TestErrors:
    async def test_an_exception_is_a_state_and_is_logged(self, hub, logged):
        run = await hub.run("t", failing)
        assert await within(run.wait()) is RunState.FAILED
        assert (run.reason, str(run.error)) == ("error", "no more")
        assert published(hub) == ["0", failed("error")]
        await until(lambda: hub.statistics().runs == 0)
        lines = [line for line in logged if line["event"] == "hub_run_failed"]
        assert [(line["topic"], line["run"], line["exc_info"]) for line in lines] == [("t", run.id, run.error)]

    @pytest.mark.parametrize(
        "error_event", [Event("no more", name="oops"), lambda error: Event(str(error), name="oops")], ids=["event", "f"]
    )
    async def test_an_exception_is_an_event_before_the_end(self, hub, error_event):
        await hub.run("t", failing, error_event=error_event)
        records = [record.event async for record in hub.listen("t", replay=1000)]
        assert [(event.name, event.data) for event in records] == [
            (None, "0"),
            ("oops", "no more"),
            ("end", failed("error")),
        ]

    @pytest.mark.parametrize("wrong", [lambda error: 1 / 0, cancelled, lambda error: Event("x", id="7")])
    async def test_an_error_event_that_cannot_be_made_is_logged(self, hub, wrong, logged):
        run = await hub.run("t", failing, error_event=wrong)
        assert await within(run.wait()) is RunState.FAILED
        assert published(hub) == ["0", failed("error")]
        assert "hub_run_error_event_failed" in [line["event"] for line in logged]

    async def test_there_is_no_error_event_without_an_error(self, hub):
        await hub.run("t", counting, max_events=1, error_event=Event("oops"))
        assert await read(hub, "t") == ["0", failed("max_events")]

    @pytest.mark.parametrize("error", [asyncio.CancelledError, GeneratorExit, BaseException])
    async def test_each_kind_of_exception_ends_the_run_only(self, hub, kind, error):
        async def one():
            yield "0"
            raise error

        def plain():
            yield "0"
            raise error

        run = await hub.run("t", one if kind == "async" else plain)
        assert await within(run.wait()) is RunState.FAILED
        assert isinstance(run.error, error)
        assert published(hub) == ["0", failed("error")]

    async def test_an_end_that_is_too_large_is_an_end_without_an_event(self, hub_of):
        hub = await hub_of(max_event_size=len("data: 0\n\n") + 15)
        run = await hub.run("t", counting)
        assert await within(run.wait()) is RunState.FINISHED
        assert published(hub) == ["0", "1", "2"]
        assert hub.statistics().runs == 0

    @pytest.mark.parametrize("error", [BrokerRefused("too large"), asyncio.CancelledError()], ids=repr)
    async def test_an_end_that_is_not_stored_is_known_to_all_nodes(self, cluster, hub_of, error):
        class Refusing(MemoryBroker):
            async def publish(self, topic, payload, **options):
                if b'data: {"state"' in payload:
                    raise error
                return await super().publish(topic, payload, **options)

        gate = Gate()
        run = await (await hub_of(broker=Refusing(cluster.log))).run("t", gate.events(0))
        other = await found(cluster.hubs[1])
        gate.allow()
        assert await within(asyncio.gather(run.wait(), other.wait())) == [RunState.FINISHED] * 2


class TestLimits:
    async def test_a_run_that_takes_too_long_is_ended(self, hub):
        run = await hub.run("t", waiting, timeout=0.05)
        assert await within(run.wait()) is RunState.FAILED
        assert run.reason == "timeout"
        assert published(hub) == ["0", failed("timeout")]

    async def test_a_run_with_too_many_events_is_ended(self, hub, generator_function):
        run = await hub.run("t", lambda: generator_function(5), max_events=3)
        assert await within(run.wait()) is RunState.FAILED
        assert run.reason == "max_events"
        assert published(hub) == ["0", "1", "2", failed("max_events")]

    async def test_a_run_may_have_as_many_events_as_it_is_allowed(self, hub, generator_function):
        run = await hub.run("t", generator_function, max_events=3)
        assert await within(run.wait()) is RunState.FINISHED
        assert published(hub) == ["0", "1", "2", FINISHED]

    async def test_there_are_so_many_runs_at_a_time(self, hub_of):
        hub = await hub_of(max_runs=2)
        first, _ = await hub.run("a", waiting), await hub.run("b", waiting)
        with pytest.raises(TooManyRuns, match="2 already"):
            await hub.run("c", counting)
        await first.cancel()
        await within(first.wait())
        await hub.run("c", waiting)
        assert hub.statistics().runs == 2

    async def test_what_was_not_started_is_not_counted(self, cluster, hub_of):
        hub = await hub_of(cluster.log, max_runs=1)
        await hub.finish("over", "x")
        for _ in range(2):
            with pytest.raises(TopicFinished):
                await hub.run("over", counting)
        cluster.log.stop()
        for _ in range(2):
            with pytest.raises(BrokerDown):
                await hub.run("t", counting)
        cluster.log.restart()
        await hub.run("t", waiting)

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"timeout": 0}, ValueError),
            ({"timeout": "1"}, TypeError),
            ({"max_events": 0}, ValueError),
            ({"max_events": 1.5}, TypeError),
            ({"error_event": "x"}, TypeError),
            ({"end_event": ""}, ValueError),
            ({"end_event": "a\nb"}, ValueError),
            ({"topic": "a.*"}, ValueError),
            ({"events": ["x"]}, TypeError),
            ({"events": read}, TypeError),
        ],
        ids=repr,
    )
    async def test_wrong_arguments_are_refused_and_leave_nothing(self, hub, options, error):
        arguments = {"topic": "t", "events": counting, **options}
        with pytest.raises(error):
            await hub.run(arguments.pop("topic"), arguments.pop("events"), **arguments)
        assert hub.statistics().runs == 0
        assert hub.find_run("t") is None

    def test_max_runs_must_be_a_number(self):
        with pytest.raises(ValueError, match="max_runs"):
            Hub(max_runs=-1)

    async def test_what_cannot_be_published_is_not_counted_as_an_event(self, hub):
        async def generator():
            for value in (object(), object(), "0", "1"):
                try:
                    yield value
                except TypeError:
                    pass

        run = await hub.run("t", generator, max_events=2)
        assert await within(run.wait()) is RunState.FINISHED
        assert published(hub) == ["0", "1", FINISHED]

    async def test_a_clean_up_that_hangs_does_not_delay_the_end(self, hub, monkeypatch, logged):
        monkeypatch.setattr(runs, "SHORT_CLEANUP_TIMEOUT", 0.01)
        monkeypatch.setattr(runs, "CLEANUP_TIMEOUT", 0.01)

        async def generator():
            try:
                while True:
                    yield "x"
            finally:
                await asyncio.Event().wait()

        run = await hub.run("t", generator, max_events=1)
        assert await within(run.wait()) is RunState.FAILED
        assert published(hub) == ["x", failed("max_events")]

    async def test_a_run_that_was_awaited_makes_room_for_the_next_one(self, hub_of):
        hub = await hub_of(MemoryLog(), max_runs=1)
        for topic in "abcdef":
            run = await hub.run(topic, counting)
            await within(run.wait())

    @pytest.mark.parametrize("log", [None, MemoryLog()], ids=["alone", "with a broker"])
    @pytest.mark.parametrize("options", [{"history": 0}, {"history_bytes": 1}, {"history_age": 0.01}], ids=str)
    async def test_the_state_does_not_depend_on_the_history(self, hub_of, logged, log, options):
        hub = await hub_of(log and MemoryLog(), **options)
        run = await hub.run("t", waiting, timeout=0.05)
        assert await within(run.wait()) is RunState.FAILED
        assert run.reason == "timeout"


class TestCancelling:
    async def test_an_async_generator_is_cancelled_where_it_awaits(self, hub):
        ended = []

        async def generator():
            yield "0"
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

        run = await hub.run("t", generator)
        await until(lambda: published(hub))
        await run.cancel()
        assert await within(run.wait()) is RunState.CANCELLED
        assert published(hub) == ["0", CANCELLED]
        assert ended == ["cancelled"]
        assert run.reason is None

    async def test_a_plain_generator_is_closed_at_its_next_yield(self, hub):
        resumed, ended = threading.Event(), []

        def generator():
            try:
                yield "0"
                assert resumed.wait(TIMEOUT)
                yield "not this"
            finally:
                ended.append(threading.get_ident())

        run = await hub.run("t", generator)
        await until(lambda: published(hub))
        await run.cancel()
        await run_other_tasks()
        assert run.state is RunState.RUNNING
        resumed.set()
        assert await within(run.wait()) is RunState.CANCELLED
        assert published(hub) == ["0", CANCELLED]
        assert len(ended) == 1

    async def test_what_it_publishes_while_it_cleans_up_is_before_the_end(self, hub):
        async def generator():
            try:
                yield "0"
                await asyncio.Event().wait()
            finally:
                await hub.publish("t", "bye")

        run = await hub.run("t", generator)
        await until(lambda: published(hub))
        await run.cancel()
        await within(run.wait())
        assert published(hub) == ["0", "bye", CANCELLED]

    async def test_before_its_first_step(self, hub):
        run = await hub.run("t", counting)
        await run.cancel()
        await run.cancel()
        assert await within(run.wait()) is RunState.CANCELLED
        assert published(hub)[-1] == CANCELLED
        assert len(published(hub)) < 4

    async def test_after_its_end_it_does_nothing(self, hub):
        run = await hub.run("t", counting)
        await within(run.wait())
        await run.cancel()
        await hub.find_run("t").cancel()
        assert run.state is RunState.FINISHED
        assert published(hub) == ["0", "1", "2", FINISHED]

    @pytest.mark.parametrize("moment", range(12))
    async def test_at_any_moment_there_is_one_end(self, hub, moment):
        run = await hub.run("t", counting)
        await run_other_tasks(moment)
        await run.cancel()
        state = await within(run.wait())
        events = await read(hub, "t")
        assert events[-1] == f'{{"state":"{state}"}}'
        assert events[:-1] == ["0", "1", "2"][: len(events) - 1]
        assert state is hub.find_run("t").state

    async def test_by_its_own_generator(self, hub):
        async def generator():
            yield "0"
            await hub.find_run("t").cancel()
            await asyncio.Event().wait()

        run = await hub.run("t", generator)
        assert await within(run.wait()) is RunState.CANCELLED
        assert published(hub) == ["0", CANCELLED]

    async def test_an_exception_of_its_clean_up_is_logged(self, hub, logged):
        async def generator():
            try:
                yield "0"
                await asyncio.Event().wait()
            finally:
                raise ValueError("in the clean-up")

        run = await hub.run("t", generator)
        await until(lambda: published(hub))
        await run.cancel()
        assert await within(run.wait()) is RunState.CANCELLED

        def failures():
            return [str(line["exc_info"]) for line in logged if line["event"] == "hub_run_cleanup_failed"]

        await until(failures)  # Python 3.13 closes the generator after the run has ended
        assert failures() == ["in the clean-up"]

    async def test_a_generator_that_does_not_end_is_left_alone(self, hub, monkeypatch, logged):
        """Its thread ends at the next ``yield``."""
        monkeypatch.setattr(runs, "CLEANUP_TIMEOUT", 0.05)
        resumed, ended = threading.Event(), threading.Event()

        def generator():
            try:
                yield "0"
                assert resumed.wait(TIMEOUT)
                yield "not this"
            finally:
                ended.set()

        run = await hub.run("t", generator)
        await until(lambda: published(hub))
        await run.cancel()
        assert await within(run.wait()) is RunState.CANCELLED
        await until(lambda: "thread_abandoned" in [line["event"] for line in logged])
        resumed.set()
        await until(ended.is_set)
        assert published(hub) == ["0", CANCELLED]

    async def test_waiting_for_it_may_be_cancelled(self, hub):
        gate = Gate()
        run = await hub.run("t", gate.events(1))
        waiter, other = asyncio.create_task(run.wait()), asyncio.create_task(run.wait())
        await run_other_tasks()
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert run.state is RunState.RUNNING
        gate.allow(2)
        assert await within(other) is RunState.FINISHED

    async def test_a_generator_that_has_not_started_yet_does_not(self, hub):
        started = []

        async def generator():
            started.append(True)
            yield "0"

        run = await hub.run("t", generator)
        await run.cancel()
        await within(run.wait())
        assert (started, published(hub)) == ([], [CANCELLED])

    async def test_a_generator_that_swallows_it_is_closed_at_its_next_yield(self, hub):
        async def stubborn():
            yield "0"
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass
            yield "not this"

        run = await hub.run("t", stubborn)
        await until(lambda: published(hub))
        await run.cancel()
        assert await within(run.wait()) is RunState.CANCELLED
        assert published(hub) == ["0", CANCELLED]

    async def test_another_event_loop_is_refused(self, hub):
        run = await hub.run("t", waiting)
        for method in run.cancel, run.wait:
            with pytest.raises(RuntimeError, match="event loop"):
                await asyncio.to_thread(asyncio.run, method())
        assert run.state is RunState.RUNNING


class TestTopics:
    async def test_a_topic_has_one_run_at_a_time(self, hub):
        run = await hub.run("t", waiting)
        with pytest.raises(RunExists, match=run.id):
            await hub.run("t", counting)
        await run.cancel()
        await within(run.wait())
        with pytest.raises(TopicFinished):
            await hub.run("t", counting)

    async def test_it_is_found_while_it_runs_and_after_its_end(self, hub):
        assert hub.find_run("t") is None
        run = await hub.run("t", waiting)
        running = hub.find_run("t")
        assert (running.id, running.topic, running.state) == (run.id, "t", RunState.RUNNING)
        assert repr(running) == f"Run(id={run.id!r}, topic='t', state='running')"
        await running.cancel()
        await within(run.wait())
        ended = hub.find_run("t")
        assert (ended.id, ended.state, await ended.wait()) == (run.id, RunState.CANCELLED, RunState.CANCELLED)

    async def test_a_topic_that_the_application_finishes_ends_its_run(self, hub, logged):
        gate = Gate()
        run = await hub.run("t", gate.events(1))
        gate.allow()
        await until(lambda: published(hub))
        await hub.finish("t", "that is all")
        assert await within(run.wait()) is RunState.FINISHED
        await until(lambda: gate.closed and hub.statistics().runs == 0)
        assert published(hub) == ["0", "that is all"]
        assert hub.find_run("t") is None
        assert "hub_published_after_finish" not in [line["event"] for line in logged]

    async def test_also_if_its_own_generator_does(self, hub):
        ended = []

        async def generator():
            try:
                yield "0"
                await hub.finish("t", "that is all")
                yield "not this"
                ended.append("went on")
            finally:
                ended.append("closed")

        run = await hub.run("t", generator)
        assert await within(run.wait()) is RunState.FINISHED
        await until(lambda: hub.statistics().runs == 0)
        assert published(hub) == ["0", "that is all"]
        await until(lambda: ended)  # Python 3.13 closes the generator after the run has ended
        assert ended == ["closed"]

    async def test_a_plain_generator_of_a_finished_topic_is_closed(self, hub):
        resumed, ended = threading.Event(), threading.Event()

        def generator():
            try:
                yield "0"
                assert resumed.wait(TIMEOUT)
                yield "not this"
            finally:
                ended.set()

        await hub.run("t", generator)
        await until(lambda: published(hub))
        await hub.finish("t")
        resumed.set()
        await until(lambda: ended.is_set() and hub.statistics().runs == 0)
        assert published(hub) == ["0"]

    async def test_a_topic_may_be_used_again_when_its_end_has_expired(self, hub_of):
        hub = await hub_of(history_age=0.05)
        for _ in range(2):
            run = await hub.run("t", counting)
            assert await within(run.wait()) is RunState.FINISHED
            await until(lambda: hub.find_run("t") is None)

    async def test_no_event_follows_the_end_of_the_application(self, hub, kind, logged):
        resumed = threading.Event()

        async def one():
            yield "0"
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass
            yield "not this"

        def plain():
            yield "0"
            assert resumed.wait(TIMEOUT)
            yield "not this"

        await hub.run("t", one if kind == "async" else plain)
        await until(lambda: published(hub))
        await hub.finish("t", "that is all")
        resumed.set()
        await until(lambda: hub.statistics().runs == 0)
        await within(hub.close())
        assert published(hub) == ["0", "that is all"]
        assert "hub_published_after_finish" not in [line["event"] for line in logged]

    async def test_a_run_ends_although_the_application_could_not_finish_its_topic(self, cluster, hub_of):
        class Failing(MemoryBroker):
            fails = asyncio.Event()

            async def publish(self, topic, payload, **options):
                if b"data: bye" in payload:
                    await self.fails.wait()
                    raise BrokerDown
                return await super().publish(topic, payload, **options)

        hub, gate = await hub_of(broker=Failing(cluster.log)), Gate()
        await hub.run("t", gate.events(2))
        other = await found(cluster.hubs[1])
        finishing = asyncio.create_task(hub.finish("t", "bye"))
        gate.allow(3)
        await run_other_tasks(20)
        Failing.fails.set()
        with pytest.raises(BrokerDown):
            await within(finishing)
        assert await within(other.wait()) is RunState.FINISHED
        assert published(cluster.hubs[1]) == ["0", "1", FINISHED]

    async def test_a_node_that_starts_later_has_forgotten_it_too(self, hub_of):
        log = MemoryLog()
        hub = await hub_of(log, history_age=0.05)
        await within((await hub.run("t", counting)).wait())
        await until(lambda: hub.find_run("t") is None)
        newcomer = await hub_of(log, history_age=0.05)
        await until(lambda: newcomer.find_run("t") is None)
        await newcomer.run("t", counting)

    async def test_a_node_that_starts_when_it_is_used_again_knows_the_second_run(self, hub_of, monkeypatch):
        monkeypatch.setattr(nodes, "LEASE_INTERVAL", TIMEOUT)
        monkeypatch.setattr(nodes, "LEASE_TIMEOUT", TIMEOUT)
        log = MemoryLog()
        hub = await hub_of(log, history_age=0.05)
        await within((await hub.run("t", counting)).wait())
        await until(lambda: hub.find_run("t") is None)
        run = await hub.run("t", waiting)
        newcomer = await hub_of(log, history_age=0.05)
        assert newcomer.find_run("t").id == run.id
        with pytest.raises(RunExists):
            await newcomer.run("t", counting)


class TestClosing:
    async def test_it_ends_the_runs(self, hub):
        run = await hub.run("t", waiting)
        reader = asyncio.create_task(read(hub, "t"))
        await until(lambda: published(hub))
        await within(hub.close())
        assert await within(run.wait()) is RunState.FAILED
        assert run.reason == "shutdown"
        assert await within(reader) == ["0", failed("shutdown")]
        assert hub.statistics().runs == 0

    async def test_nothing_is_left(self, hub_of, monkeypatch, logged, kind, generator_function):
        before, threads = asyncio.all_tasks(), threading.active_count()
        log = MemoryLog() if kind == "async" else None
        hub = await hub_of(log)
        run = await hub.run("a", generator_function)
        await within(run.wait())
        for topic in "bcd":
            await hub.run(topic, waiting)
        await within(hub.close())
        await until(lambda: asyncio.all_tasks() <= before and threading.active_count() == threads)

    @pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
    @pytest.mark.parametrize("moment", range(0, 24, 3))
    async def test_at_any_moment_of_a_run(self, hub_of, monkeypatch, logged, moment, down):
        monkeypatch.setattr(runs, "CLEANUP_TIMEOUT", 0.05)
        before, log = asyncio.all_tasks(), MemoryLog()
        hub = await hub_of(log)
        run = await hub.run("t", counting)
        waiter = asyncio.create_task(run.wait())
        await run_other_tasks(moment)
        if down:
            log.stop()
        await within(hub.close())
        assert await within(waiter) is run.state is not RunState.RUNNING
        await until(lambda: asyncio.all_tasks() <= before)

    @pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
    @pytest.mark.parametrize("moment", range(8))
    async def test_at_any_moment_of_a_start(self, hub_of, monkeypatch, logged, moment, down):
        monkeypatch.setattr(runs, "CLEANUP_TIMEOUT", 0.05)
        monkeypatch.setattr(runs, "CANCEL_TIMEOUT", 0.05)
        monkeypatch.setattr(publisher, "RECEIVE_TIMEOUT", 0.1)
        before, log = asyncio.all_tasks(), MemoryLog()
        hub = await hub_of(log)
        starting = asyncio.create_task(hub.run("t", counting))
        await run_other_tasks(moment)
        if down:
            log.stop()
        await within(hub.close())
        await asyncio.wait([starting])
        if starting.exception() is None:
            assert await within(starting.result().wait()) is not RunState.RUNNING
        await until(lambda: asyncio.all_tasks() <= before)
        assert hub.statistics().runs == 0

    async def test_a_run_that_is_starting_meanwhile_is_refused(self, cluster, monkeypatch):
        monkeypatch.setattr(runs, "CLEANUP_TIMEOUT", 0.01)
        cluster.network.fast.clear()
        starting = asyncio.create_task(cluster.hubs[0].run("t", waiting))
        await found(cluster.hubs[1])
        await cluster.hubs[0].drain_runs(0.01)
        cluster.network.fast.set()
        with pytest.raises(RuntimeError, match="stopping"):
            await within(starting)
        await until(lambda: [hub.find_run("t") for hub in cluster.hubs] == [None] * 3)

    async def test_the_end_of_a_generator_that_does_not_end_is_published(self, hub, monkeypatch, logged):
        monkeypatch.setattr(runs, "CLEANUP_TIMEOUT", 0.05)
        resumed = threading.Event()

        def generator():
            yield "0"
            assert resumed.wait(TIMEOUT)

        run = await hub.run("t", generator)
        await until(lambda: published(hub))
        await within(hub.close())
        resumed.set()
        assert (run.state, published(hub)) == (RunState.FAILED, ["0", failed("shutdown")])

    async def test_a_run_may_end_by_itself_before(self, hub):
        gate = Gate()
        run = await hub.run("t", gate.events(1))
        draining = asyncio.create_task(hub.drain_runs(TIMEOUT))
        await run_other_tasks()
        with pytest.raises(RuntimeError, match="stopping"):
            await hub.run("u", counting)
        gate.allow(2)
        await within(draining)
        assert run.state is RunState.FINISHED

    async def test_one_that_does_not_is_ended_then(self, hub):
        run = await hub.run("t", waiting)
        await within(hub.drain_runs(0.05))
        assert (run.state, run.reason) == (RunState.FAILED, "shutdown")
        assert published(hub) == ["0", failed("shutdown")]

    @pytest.mark.parametrize("opens", [True, False], ids=["open", "publish"])
    async def test_a_hub_without_a_broker_may_be_opened_again(self, hub_of, opens):
        hub = await hub_of()
        await hub.close()
        if opens:
            hub.open()
        else:
            await hub.publish("u", "x")
        run = await hub.run("t", counting)
        assert await within(run.wait()) is RunState.FINISHED

    async def test_the_end_is_not_awaited_while_the_broker_is_down(self, hub_of, monkeypatch, logged):
        monkeypatch.setattr(runs, "CLEANUP_TIMEOUT", 0.05)
        log, gate = MemoryLog(), Gate()
        hub = await hub_of(log)
        run = await hub.run("t", gate.events(0))
        log.stop()
        gate.allow()
        await until(lambda: gate.closed)
        await within(hub.close())
        assert await within(run.wait()) is RunState.FAILED


class TestNodes:
    async def test_each_node_reads_finds_and_awaits_it(self, cluster):
        gate = Gate()
        run = await cluster.hubs[0].run("t", gate.events(2))
        others = [await found(hub) for hub in cluster.hubs[1:]]
        assert [other.id for other in others] == [run.id] * 2
        waiters = [asyncio.create_task(other.wait()) for other in others]
        readers = [asyncio.create_task(read(hub, "t")) for hub in cluster.hubs]
        gate.allow(3)
        assert await within(asyncio.gather(*waiters)) == [RunState.FINISHED] * 2
        assert await within(asyncio.gather(*readers)) == [["0", "1", FINISHED]] * 3
        assert [hub.find_run("t").state for hub in cluster.hubs] == [RunState.FINISHED] * 3
        assert [hub.statistics().runs for hub in cluster.hubs] == [0] * 3

    async def test_a_reader_comes_back_to_another_node(self, cluster):
        gate = Gate()
        await cluster.hubs[0].run("t", gate.events(3))
        gate.allow(2)
        async with cluster.hubs[1].listen("t", replay=1000) as records:
            first = await within(anext(records))
        gate.allow(2)
        assert await read(cluster.hubs[2], "t", after=first.id) == ["1", "2", FINISHED]

    async def test_each_node_can_cancel_it(self, cluster):
        run = await cluster.hubs[0].run("t", waiting)
        other = await found(cluster.hubs[1])
        await other.cancel()
        await other.cancel()
        assert await within(run.wait()) is RunState.CANCELLED
        assert await within(other.wait()) is RunState.CANCELLED

    async def test_the_others_know_why_it_has_failed(self, cluster):
        run = await cluster.hubs[0].run("t", failing)
        await within(run.wait())
        other = cluster.hubs[1]
        await until(lambda: other.find_run("t") is not None and other.find_run("t").state is RunState.FAILED)
        ended = other.find_run("t")
        assert (ended.id, ended.reason, ended.error) == (run.id, "error", None)

    async def test_a_topic_has_one_run_on_all_nodes(self, cluster):
        run = await cluster.hubs[0].run("t", waiting)
        await found(cluster.hubs[1])
        with pytest.raises(RunExists, match=run.id):
            await cluster.hubs[1].run("t", counting)

    @pytest.mark.parametrize("moment", range(4))
    async def test_of_those_that_start_at_the_same_moment_one_wins(self, cluster, moment):
        async def start(number):
            for _ in range(number * moment):
                await asyncio.sleep(0)
            return await cluster.hubs[number % 3].run("t", waiting(str(number)))

        results = await within(asyncio.gather(*map(start, range(6)), return_exceptions=True))
        winners = [result for result in results if isinstance(result, Run)]
        assert len(winners) == 1
        assert [type(result) for result in results].count(RunExists) == 5
        assert [(await found(hub)).id for hub in cluster.hubs] == [winners[0].id] * 3
        await until(lambda: published(cluster.hubs[0]) == [str(results.index(winners[0]))])

    async def test_a_node_that_is_late_does_not_start_another_one(self, cluster):
        cluster.network.fast.clear()
        run = await cluster.hubs[1].run("t", counting)
        await within(run.wait())
        end = cluster.log.end
        late = asyncio.create_task(cluster.hubs[0].run("t", counting))
        await until(lambda: cluster.log.end > end)
        await until(lambda: cluster.hubs[2].history.end == cluster.log.end)
        cluster.network.fast.set()
        with pytest.raises(TopicFinished):
            await within(late)
        assert [hub.find_run("t").id for hub in cluster.hubs] == [run.id] * 3
        assert [hub.find_run("t").state for hub in cluster.hubs] == [RunState.FINISHED] * 3

    async def test_a_node_that_closes_ends_its_runs_as_shutdown(self, cluster):
        await cluster.hubs[0].run("t", waiting)
        other = await found(cluster.hubs[1])
        await until(lambda: published(cluster.hubs[1]))
        await within(cluster.hubs[0].close())
        assert await within(other.wait()) is RunState.FAILED
        assert other.reason == "shutdown"
        assert published(cluster.hubs[1]) == ["0", failed("shutdown")]

    async def test_who_waits_for_another_node_is_told_that_the_hub_is_closed(self, cluster):
        run = await cluster.hubs[0].run("t", waiting)
        waiter = asyncio.create_task((await found(cluster.hubs[1])).wait())
        await run_other_tasks()
        await within(cluster.hubs[1].close())
        with pytest.raises(RuntimeError, match="may go on"):
            await within(waiter)
        assert run.state is RunState.RUNNING

    async def test_a_node_that_starts_later_knows_it(self, cluster, hub_of):
        run = await cluster.hubs[0].run("t", waiting)
        newcomer = await hub_of(cluster.log)
        other = newcomer.find_run("t")
        assert other.id == run.id
        with pytest.raises(RunExists):
            await newcomer.run("t", counting)
        await other.cancel()
        assert await within(run.wait()) is RunState.CANCELLED
        last = await hub_of(cluster.log)
        assert last.find_run("t").state is RunState.CANCELLED

    async def test_a_lease_tells_those_that_cannot_know_it_otherwise(self, cluster, hub_of):
        """The log no longer has the start of the run."""
        log = MemoryLog(max_records=2)
        hub = await hub_of(log)
        run = await hub.run("t", waiting)
        for number in range(5):
            await hub.publish("other", str(number))
        assert (await found(await hub_of(log))).id == run.id

    async def test_who_waits_for_another_node_afterwards_is_told_too(self, cluster):
        await cluster.hubs[0].run("t", waiting)
        other = await found(cluster.hubs[1])
        await within(cluster.hubs[1].close())
        with pytest.raises(RuntimeError, match="may go on"):
            await within(other.wait())

    async def test_one_that_is_found_while_it_starts_is_the_run(self, cluster):
        hub = cluster.hubs[0]
        starting = asyncio.create_task(hub.run("t", waiting))
        other = await found(hub)
        await other.cancel()
        run = await starting
        assert await within(asyncio.gather(other.wait(), run.wait())) == [RunState.CANCELLED] * 2

    async def test_a_cancellation_that_arrives_with_the_start_counts(self, cluster):
        cluster.network.fast.clear()
        await cluster.hubs[1].publish("other", "x")  # arrives alone
        await until(lambda: published(cluster.hubs[1], "other"))
        starting = asyncio.create_task(cluster.hubs[0].run("t", waiting))
        await (await found(cluster.hubs[1])).cancel()
        cluster.network.fast.set()
        run = await within(starting)
        assert await within(run.wait()) is RunState.CANCELLED

    async def test_of_two_that_start_while_one_receives_nothing_one_wins(self, cluster, monkeypatch):
        monkeypatch.setattr(publisher, "RECEIVE_TIMEOUT", 0.1)
        cluster.network.fast.clear()
        starts = [hub.run("t", waiting) for hub in cluster.hubs[:2]]
        results = await within(asyncio.gather(*starts, return_exceptions=True))
        cluster.network.fast.set()
        assert [type(result) for result in results].count(Run) <= 1
        assert sum(hub.statistics().runs for hub in cluster.hubs) <= 1


class TestOutages:
    async def test_each_event_is_stored_once(self, cluster, kind):
        owner, reader = cluster.hubs[:2]
        loop = asyncio.get_running_loop()

        def disturb(number):
            if number in (2, 7):
                cluster.network.silent_about = f"data: {number}\n".encode()
            if number == 5:
                cluster.log.stop()
                loop.call_later(0.2, cluster.log.restart)

        async def one():
            for number in range(10):
                disturb(number)
                yield str(number)

        def plain():
            for number in range(10):
                loop.call_soon_threadsafe(disturb, number)
                yield str(number)

        run = await owner.run("t", one if kind == "async" else plain)
        assert await within(run.wait()) is RunState.FINISHED
        assert await read(reader, "t") == [*map(str, range(10)), FINISHED]
        assert reader.find_run("t").id == run.id

    @pytest.mark.parametrize("data", ["1", FINISHED])
    async def test_an_event_whose_outcome_is_unknown_is_stored_once(self, cluster, data):
        cluster.network.silent_about = f"data: {data}\n".encode()
        await cluster.hubs[0].run("t", counting)
        assert await read(cluster.hubs[1], "t") == ["0", "1", "2", FINISHED]
        assert cluster.network.silent_about is None

    async def test_the_end_is_told_when_the_broker_is_back(self, cluster):
        gate = Gate()
        run = await cluster.hubs[0].run("t", gate.events(1))
        other = await found(cluster.hubs[1])
        gate.allow()
        await until(lambda: published(cluster.hubs[0]))
        cluster.log.stop()
        gate.allow()
        await until(lambda: gate.closed)
        await run_other_tasks()
        assert (run.state, other.state) == (RunState.RUNNING, RunState.RUNNING)
        cluster.log.restart()
        assert await within(asyncio.gather(run.wait(), other.wait())) == [RunState.FINISHED] * 2
        assert await read(cluster.hubs[1], "t") == ["0", FINISHED]

    async def test_the_limit_in_time_counts(self, cluster):
        async def busy():
            while True:
                yield "x"
                await asyncio.sleep(0)

        run = await cluster.hubs[0].run("t", busy, timeout=0.1)
        cluster.log.stop()
        loop = asyncio.get_running_loop()
        loop.call_later(0.3, cluster.log.restart)
        assert await within(run.wait()) is RunState.FAILED
        assert run.reason == "timeout"

    async def test_it_is_cancelled_meanwhile_on_its_node_only(self, cluster):
        gate = Gate()
        run = await cluster.hubs[0].run("t", gate.events(1))
        other = await found(cluster.hubs[1])
        cluster.log.stop()
        with pytest.raises(BrokerDown):
            await other.cancel()
        gate.allow()
        await run_other_tasks()
        await run.cancel()
        await until(lambda: gate.closed)
        cluster.log.restart()
        assert await within(asyncio.gather(run.wait(), other.wait())) == [RunState.CANCELLED] * 2

    async def test_it_is_not_started_meanwhile(self, cluster):
        cluster.log.stop()
        with pytest.raises(BrokerDown):
            await cluster.hubs[0].run("t", counting)
        cluster.log.restart()
        await until(lambda: all(hub.ready for hub in cluster.hubs))
        assert [hub.find_run("t") for hub in cluster.hubs] == [None] * 3

    async def test_a_long_one_does_not_make_it_lost(self, cluster, hub_of, monkeypatch):
        """A node that has started meanwhile does not take the old lease for that of a dead node either."""
        monkeypatch.setattr(nodes, "LEASE_TIMEOUT", 0.5)
        gate = Gate()
        run = await cluster.hubs[0].run("t", gate.events(1))
        other = await found(cluster.hubs[1])
        cluster.log.stop()
        await passed(0.8)
        cluster.log.restart()
        newcomer = (await hub_of(cluster.log)).find_run("t")
        assert newcomer.id == run.id
        await passed(0.8)
        gate.allow(2)
        assert (
            await within(asyncio.gather(*[each.wait() for each in (run, other, newcomer)])) == [RunState.FINISHED] * 3
        )

    @pytest.mark.parametrize("kept", [0, 2])
    async def test_it_goes_on_when_the_broker_has_lost_events(self, cluster, hub_of, kept):
        gate = Gate()
        run = await cluster.hubs[0].run("t", gate.events(4))
        other = await found(cluster.hubs[1])
        gate.allow(2)
        await until(lambda: published(cluster.hubs[1]) == ["0", "1"])
        cluster.log.truncate(kept)
        gate.allow(3)
        assert await within(asyncio.gather(run.wait(), other.wait())) == [RunState.FINISHED] * 2
        newcomer = await hub_of(cluster.log)
        assert published(newcomer)[-3:] == ["2", "3", FINISHED]
        assert newcomer.find_run("t").id == run.id

    async def test_an_error_event_whose_outcome_is_unknown_is_stored_once(self, cluster):
        cluster.network.silent_about = b"data: oops\n"
        await cluster.hubs[0].run("t", failing, error_event=Event("oops"))
        assert await read(cluster.hubs[1], "t") == ["0", "oops", failed("error")]
        assert cluster.network.silent_about is None

    async def test_a_start_whose_outcome_is_unknown_leaves_no_run(self, cluster):
        await cluster.hubs[0].run("other", waiting)
        cluster.network.silent_about = b'"type":"run"'
        with pytest.raises(OutcomeUnknown):
            await cluster.hubs[0].run("t", waiting)
        await until(lambda: [hub.find_run("t") for hub in cluster.hubs] == [None] * 3)
        assert cluster.hubs[0].statistics().runs == 1

    @pytest.mark.parametrize("moment", range(1, 3))
    async def test_a_start_that_is_cancelled_leaves_no_run(self, cluster, moment):
        await cluster.hubs[0].run("other", waiting)
        starting = asyncio.create_task(cluster.hubs[0].run("t", waiting))
        await run_other_tasks(moment)
        assert starting.cancel()
        await asyncio.wait([starting])
        await cluster.hubs[1].run("last", counting)
        await until(lambda: all(hub.find_run("last") is not None for hub in cluster.hubs))
        await until(lambda: [hub.find_run("t") for hub in cluster.hubs] == [None] * 3)
        assert cluster.hubs[0].statistics().runs == 1

    async def test_one_that_is_cancelled_when_it_begins_has_no_error(self, cluster):
        gate = Gate()
        run = await cluster.hubs[0].run("t", gate.events(1))
        cluster.log.stop()
        gate.allow()
        await run.cancel()
        await run_other_tasks(20)
        cluster.log.restart()
        assert await within(run.wait()) is RunState.CANCELLED
        assert run.error is None

    async def test_a_plain_generator_is_closed_meanwhile(self, cluster, monkeypatch):
        monkeypatch.setattr(runs, "MIN_RETRY_DELAY", 2 * TIMEOUT)
        monkeypatch.setattr(runs, "CLEANUP_TIMEOUT", 0.05)
        closed = threading.Event()

        def generator():
            try:
                while True:
                    yield "x"
            finally:
                closed.set()

        run = await cluster.hubs[0].run("t", generator)
        await until(lambda: published(cluster.hubs[0]))
        cluster.log.stop()
        await until(lambda: not cluster.hubs[0].ready)
        await run.cancel()
        await until(closed.is_set)


class TestLostNodes:
    @pytest.fixture(autouse=True)
    def quicker(self, monkeypatch, quick):
        monkeypatch.setattr(nodes, "LEASE_TIMEOUT", 0.5)

    async def test_its_runs_have_failed_and_their_readers_are_told_once(self, cluster, logged):
        await cluster.hubs[0].run("t", waiting)
        others = [await found(hub) for hub in cluster.hubs[1:]]
        readers = [asyncio.create_task(read(hub, "t")) for hub in cluster.hubs[1:]]
        await until(lambda: published(cluster.hubs[0]))
        cluster.network.connected = False
        assert await within(asyncio.gather(*[other.wait() for other in others])) == [RunState.FAILED] * 2
        assert [other.reason for other in others] == ["lost"] * 2
        assert await within(asyncio.gather(*readers)) == [["0", failed("lost")]] * 2
        assert cluster.hubs[1].find_run("t").reason == "lost"
        assert "hub_published_after_finish" not in [line["event"] for line in logged]

    async def test_one_that_comes_back_stops_and_adds_no_event(self, cluster):
        gate = Gate()
        run = await cluster.hubs[0].run("t", gate.events(3))
        gate.allow()
        other = await found(cluster.hubs[1])
        await until(lambda: published(cluster.hubs[1]) == ["0"])
        cluster.network.connected = False
        gate.allow()  # this one waits for the broker
        await within(other.wait())
        cluster.network.connected = True
        assert await within(run.wait()) is RunState.FAILED
        assert run.reason == "lost"
        await until(lambda: gate.closed and cluster.hubs[0].statistics().runs == 0)
        await cluster.hubs[0].publish("u", "last")
        await until(lambda: all(published(hub, "u") == ["last"] for hub in cluster.hubs))
        assert [published(hub) for hub in cluster.hubs] == [["0", failed("lost")]] * 3

    async def test_a_node_that_comes_back_starts_other_runs(self, cluster):
        run = await cluster.hubs[0].run("t", waiting)
        other = await found(cluster.hubs[1])
        cluster.network.connected = False
        await within(other.wait())
        cluster.network.connected = True
        await within(run.wait())
        await cluster.hubs[0].run("u", counting)
        assert await read(cluster.hubs[1], "u") == ["0", "1", "2", FINISHED]

    async def test_one_that_has_died_long_ago_is_noticed_by_a_new_node(self, hub_of, logged):
        log = MemoryLog()
        network = Network(log)
        hub = await hub_of(broker=network)
        await hub.run("t", waiting)
        await until(lambda: published(hub))
        network.connected = False
        newcomer = await hub_of(log)
        run = newcomer.find_run("t")
        assert await within(run.wait()) is RunState.FAILED
        assert run.reason == "lost"
        assert published(newcomer) == ["0", failed("lost")]
        network.connected = True

    async def test_a_run_that_had_ended_is_not_lost(self, cluster):
        run = await cluster.hubs[0].run("t", counting)
        await cluster.hubs[0].run("u", waiting)
        await within(run.wait())
        other = await found(cluster.hubs[1], "u")
        cluster.network.connected = False
        await within(other.wait())
        assert cluster.hubs[1].find_run("t").state is RunState.FINISHED
        assert published(cluster.hubs[1]) == ["0", "1", "2", FINISHED]

    async def test_one_whose_node_died_during_an_outage_is_lost(self, cluster):
        await cluster.hubs[0].run("t", waiting)
        other = await found(cluster.hubs[1])
        cluster.log.stop()
        cluster.network.connected = False
        await passed(0.8)
        cluster.log.restart()
        assert await within(other.wait()) is RunState.FAILED
        assert other.reason == "lost"

    async def test_an_end_that_the_broker_has_lost_does_not_bring_the_run_back(self, cluster, hub_of):
        run = await cluster.hubs[0].run("t", counting)
        await within(run.wait())
        cluster.log.truncate(2)
        await until(lambda: all(hub.history.epoch == cluster.log.epoch for hub in cluster.hubs))
        newcomer = await hub_of(cluster.log)
        await until(lambda: newcomer.find_run("t") is None or newcomer.find_run("t").state is not RunState.RUNNING)
