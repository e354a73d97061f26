"""Runs over HTTP: a client that leaves and comes back, a page that is reloaded, and a server that stops."""

from __future__ import annotations

import asyncio
import threading

import pytest
from aiohttp import WSMsgType, web

from aiohttp_interceptors import (
    Drain,
    Event,
    Hub,
    Interceptor,
    RunExists,
    RunState,
    TooManyRuns,
    as_handler,
    setup,
    start_topic_stream,
    topic_stream,
)
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from tests import listener
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import TIMEOUT, run_other_tasks, until, within

pytestmark = BOTH_LOOPS

FINISHED = '{"state":"finished"}'
SHUTDOWN = '{"state":"failed","reason":"shutdown"}'


def topic_of(context):
    return f"answers.{context.request.match_info['id']}"


class Answers:
    """An application whose answers are runs: POST starts one and streams it, and GET streams what there is of it.

    Each answer gets a word for each permit, and one permit more ends it.
    """

    def __init__(self, hub=None, *, words=4, drain=None, **options):
        self.hub = hub or Hub()
        self.words = words
        self.options = options
        self.permits = asyncio.Semaphore(0)
        self.closed = 0
        self.app = web.Application()
        setup(self.app, self.hub, drain=drain)
        start = Interceptor("start", enter=self.start)
        streams = start_topic_stream(self.hub, topic_of, replay=1000, heartbeat=None)
        self.app.router.add_post("/{id}", as_handler(start, streams))
        self.app.router.add_get("/{id}", topic_stream(self.hub, topic_of, replay=1000, heartbeat=None))
        self.app.router.add_delete("/{id}", self.cancel)

    async def start(self, context):
        try:
            await self.hub.run(topic_of(context), self.answer(), **self.options)
        except RunExists:
            raise web.HTTPConflict from None
        except TooManyRuns:
            raise web.HTTPServiceUnavailable from None

    async def answer(self):
        try:
            for number in range(self.words):
                await self.permits.acquire()
                yield f"word {number}"
            await self.permits.acquire()
        finally:
            self.closed += 1

    async def cancel(self, request):
        run = self.hub.find_run(f"answers.{request.match_info['id']}")
        if run is None:
            raise web.HTTPNotFound
        await run.cancel()
        return web.json_response({"state": await run.wait()})

    def allow(self, count=1):
        for _ in range(count):
            self.permits.release()

    async def until_alone(self):
        await until(lambda: self.hub.statistics().subscribers == 0)


@pytest.fixture
async def listen():
    """Open streams, and close them after the test."""
    opened = []

    async def connect(*arguments, **options):
        opened.append(await listener.listen(*arguments, **options))
        return opened[-1]

    yield connect
    for each in opened:
        await each.close()


def words(*numbers):
    return [f"word {number}" for number in numbers]


async def datas(client):
    return [event.data for event in await client.rest()]


class TestClients:
    async def test_a_post_starts_a_run_and_streams_it_to_its_end(self, serve, listen):
        answers = Answers()
        client = await listen(await serve(answers.app), "/1", method="POST")
        answers.allow(5)
        events = await client.rest()
        assert [event.data for event in events] == [*words(0, 1, 2, 3), FINISHED]
        assert events[-1].name == "end"
        assert client.complete
        assert answers.hub.statistics().runs == 0

    async def test_a_client_that_left_comes_back_where_it_was(self, serve, handler_cancellation, listen):
        answers = Answers()
        server = await serve(answers.app, handler_cancellation=handler_cancellation)
        client = await listen(server, "/1", method="POST")
        answers.allow(2)
        assert await client.data(2) == words(0, 1)
        await client.close()
        await answers.until_alone()
        answers.allow(1)
        back = await listen(server, "/1", after=client.last_event_id)
        assert await back.data(1) == words(2)
        answers.allow(2)
        assert await datas(back) == [*words(3), FINISHED]

    async def test_the_answer_ends_without_its_client(self, serve, handler_cancellation, listen):
        answers = Answers()
        server = await serve(answers.app, handler_cancellation=handler_cancellation)
        client = await listen(server, "/1", method="POST")
        await client.close()
        await answers.until_alone()
        answers.allow(5)
        run = answers.hub.find_run("answers.1")
        assert await within(run.wait()) is RunState.FINISHED
        assert answers.closed == 1

    async def test_a_page_that_is_reloaded_gets_everything(self, serve, listen):
        answers = Answers()
        server = await serve(answers.app)
        client = await listen(server, "/1", method="POST")
        answers.allow(2)
        assert await client.data(2) == words(0, 1)
        await client.close()
        for _ in range(2):
            page = await listen(server, "/1")
            assert await page.data(2) == words(0, 1)
        answers.allow(3)
        assert await datas(page) == [*words(2, 3), FINISHED]
        late = await listen(server, "/1")
        assert await datas(late) == [*words(0, 1, 2, 3), FINISHED]

    async def test_one_that_has_everything_is_told_to_stay_away(self, serve, listen):
        answers = Answers()
        server = await serve(answers.app)
        client = await listen(server, "/1", method="POST")
        answers.allow(5)
        await client.rest()
        assert (await listen(server, "/1", after=client.last_event_id)).status == 204

    async def test_several_read_along(self, serve, listen):
        answers = Answers()
        server = await serve(answers.app)
        clients = [await listen(server, "/1", method="POST")]
        clients += [await listen(server, "/1") for _ in range(3)]
        answers.allow(5)
        for client in clients:
            assert await datas(client) == [*words(0, 1, 2, 3), FINISHED]

    async def test_another_client_can_cancel_it(self, serve, session, listen):
        answers = Answers()
        server = await serve(answers.app)
        client = await listen(server, "/1", method="POST")
        answers.allow()
        assert await client.data(1) == words(0)
        async with session.delete(f"{server.url}/1") as response:
            assert await response.json() == {"state": "cancelled"}
        assert await datas(client) == ['{"state":"cancelled"}']
        assert answers.closed == 1

    async def test_a_second_post_reads_nothing_and_starts_nothing(self, serve, listen):
        answers = Answers()
        server = await serve(answers.app)
        await listen(server, "/1", method="POST")
        assert (await listen(server, "/1", method="POST")).status == 409
        assert answers.hub.statistics().runs == 1
        answers.allow(5)

    async def test_one_too_many_is_refused(self, serve, listen):
        answers = Answers(Hub(max_runs=1))
        server = await serve(answers.app)
        client = await listen(server, "/1", method="POST")
        assert (await listen(server, "/2", method="POST")).status == 503
        answers.allow(5)
        await client.rest()
        assert (await listen(server, "/2", method="POST")).status == 200
        answers.allow(5)

    async def test_an_error_is_an_event(self, serve, logged, listen):
        answers = Answers(error_event=lambda error: Event(str(error), name="oops"))
        answers.answer = self.broken
        client = await listen(await serve(answers.app), "/1", method="POST")
        assert [(event.name, event.data) for event in await client.rest()] == [
            (None, "word 0"),
            ("oops", "no more"),
            ("end", '{"state":"failed","reason":"error"}'),
        ]

    @staticmethod
    async def broken():
        yield "word 0"
        raise ValueError("no more")

    async def test_a_plain_generator_is_a_run_too(self, serve, listen):
        resumed = threading.Event()

        def plain():
            yield "word 0"
            assert resumed.wait(TIMEOUT)
            yield "word 1"

        answers = Answers()
        answers.answer = plain
        server = await serve(answers.app)
        client = await listen(server, "/1", method="POST")
        assert await client.data(1) == words(0)
        await client.close()
        back = await listen(server, "/1", after=client.last_event_id)
        resumed.set()
        assert await datas(back) == [*words(1), FINISHED]


class TestReadingInTheProcess:
    async def test_a_websocket_reads_along(self, serve, session, listen):
        answers = Answers()

        async def socket(request):
            response = web.WebSocketResponse()
            await response.prepare(request)
            async for record in answers.hub.listen("answers.1", replay=1000):
                await response.send_str(record.event.data)
            await response.close()
            return response

        answers.app.router.add_get("/socket/1", socket)
        server = await serve(answers.app)
        client = await listen(server, "/1", method="POST")
        answers.allow(2)
        assert await client.data(2) == words(0, 1)
        async with session.ws_connect(f"{server.url}/socket/1") as opened:
            assert [await within(opened.receive_str()) for _ in range(2)] == words(0, 1)
            answers.allow(3)
            assert [await within(opened.receive_str()) for _ in range(3)] == [*words(2, 3), FINISHED]
            assert (await within(opened.receive())).type is WSMsgType.CLOSE
        assert await datas(client) == [*words(2, 3), FINISHED]

    async def test_a_listener_reads_along(self, serve, listen):
        answers = Answers()
        server = await serve(answers.app)
        client = await listen(server, "/1", method="POST")

        async def read():
            return [record.event.data async for record in answers.hub.listen("answers.*")]

        reading = asyncio.create_task(read())
        await until(lambda: answers.hub.statistics().subscribers == 2)
        answers.allow(5)
        await client.rest()
        assert not reading.done()  # a wildcard is never finished
        answers.hub.end_listeners()
        assert await within(reading) == [*words(0, 1, 2, 3), FINISHED]


@pytest.mark.parametrize("broker", [False, True], ids=["alone", "with a broker"])
class TestStopping:
    def answers(self, broker, **options):
        return Answers(Hub(MemoryBroker(MemoryLog())) if broker else None, **options)

    async def opened(self, listen, serve, answers):
        server = await serve(answers.app, shutdown_timeout=TIMEOUT)
        await until(lambda: answers.hub.ready)
        client = await listen(server, "/1", method="POST")
        answers.allow()
        assert await client.data(1) == words(0)
        return server, client

    async def test_a_run_that_ends_in_time_is_read_to_its_end(self, serve, broker, listen):
        answers = self.answers(broker, drain=Drain(grace=TIMEOUT, farewell=Event("bye")))
        server, client = await self.opened(listen, serve, answers)
        stopping = asyncio.create_task(server.stop())
        await run_other_tasks(20)
        assert not stopping.done()
        answers.allow(4)
        assert await datas(client) == [*words(1, 2, 3), FINISHED]
        assert client.complete
        await within(stopping)
        assert answers.closed == 1

    async def test_one_that_does_not_is_ended_before_its_readers(self, serve, broker, logged, listen):
        answers = self.answers(broker, drain=Drain(grace=1.0))
        server, client = await self.opened(listen, serve, answers)
        also = await listen(server, "/1")
        stopping = asyncio.create_task(server.stop())
        assert await datas(client) == [SHUTDOWN]
        assert await datas(also) == [*words(0), SHUTDOWN]
        await within(stopping)
        assert answers.closed == 1
        assert answers.hub.statistics().runs == 0

    @pytest.mark.parametrize("kind", ["async", "plain"])
    async def test_its_readers_get_the_end_although_it_still_cleans_up(self, serve, broker, logged, listen, kind):
        resumed = threading.Event()

        async def slow():
            try:
                yield "word 0"
                await asyncio.Event().wait()
            finally:
                await until(resumed.is_set)

        def blocking():
            yield "word 0"
            assert resumed.wait(TIMEOUT)

        answers = self.answers(broker, drain=Drain(grace=1.0))
        answers.answer = slow if kind == "async" else blocking
        server, client = await self.opened(listen, serve, answers)
        stopping = asyncio.create_task(server.stop())
        assert await datas(client) == [SHUTDOWN]
        resumed.set()
        await within(stopping)

    async def test_without_a_grace_period_it_is_ended_at_once(self, serve, broker, logged, listen):
        answers = self.answers(broker, drain=Drain(grace=0))
        server, client = await self.opened(listen, serve, answers)
        run = answers.hub.find_run("answers.1")
        await within(server.stop())
        assert (await within(run.wait()), run.reason) == (RunState.FAILED, "shutdown")
        await client.rest()
        assert answers.closed == 1

    async def test_one_without_readers_is_waited_for_too(self, serve, broker, listen):
        answers = self.answers(broker, drain=Drain(grace=TIMEOUT))
        server, client = await self.opened(listen, serve, answers)
        run = answers.hub.find_run("answers.1")
        await client.close()
        await answers.until_alone()
        stopping = asyncio.create_task(server.stop())
        await run_other_tasks(20)
        assert run.state is RunState.RUNNING
        answers.allow(4)
        await within(stopping)
        assert run.state is RunState.FINISHED

    async def test_a_stream_of_other_topics_is_not_waited_for(self, serve, broker, listen):
        answers = self.answers(broker, drain=Drain(grace=TIMEOUT))
        both = ["answers.1", "news"]
        answers.app.router.add_get("/both/", topic_stream(answers.hub, both, replay=1000, heartbeat=None))
        answers.app.router.add_get("/all/", topic_stream(answers.hub, ">", replay=1000, heartbeat=None))
        server, client = await self.opened(listen, serve, answers)
        others = [await listen(server, path) for path in ("/both/", "/all/")]
        stopping = asyncio.create_task(server.stop())
        for other in others:
            assert await datas(other) == words(0)
        answers.allow(4)
        assert await datas(client) == [*words(1, 2, 3), FINISHED]
        await within(stopping)

    async def test_no_run_is_started_meanwhile(self, serve, broker, listen):
        answers = self.answers(broker, drain=Drain(grace=TIMEOUT))
        server, client = await self.opened(listen, serve, answers)
        stopping = asyncio.create_task(server.stop())
        await run_other_tasks(20)
        with pytest.raises(RuntimeError, match="stopping"):
            await answers.hub.run("answers.2", answers.answer)
        answers.allow(4)
        await client.rest()
        await within(stopping)


class TestNodes:
    @pytest.fixture
    async def sites(self, serve):
        """Two servers that share a broker."""
        log = MemoryLog()
        sites = [Answers(Hub(MemoryBroker(log)), drain=Drain(grace=TIMEOUT)) for _ in range(2)]
        servers = [await serve(site.app, shutdown_timeout=TIMEOUT) for site in sites]
        await until(lambda: all(site.hub.ready for site in sites))
        return sites, servers

    async def test_a_client_comes_back_to_another_node(self, sites, listen):
        (site, _), (server, other) = sites
        client = await listen(server, "/1", method="POST")
        site.allow(2)
        assert await client.data(2) == words(0, 1)
        await client.close()
        back = await listen(other, "/1", after=client.last_event_id)
        site.allow(3)
        assert await datas(back) == [*words(2, 3), FINISHED]
        assert (await listen(other, "/1", after=back.last_event_id)).status == 204

    async def test_a_run_of_another_node_does_not_delay_the_stop(self, sites, listen):
        """Its readers come back to a node that is left."""
        (site, _), (server, other) = sites
        client = await listen(server, "/1", method="POST")
        reader = await listen(other, "/1")
        site.allow(2)
        assert await reader.data(2) == words(0, 1)
        await within(other.stop())
        assert await datas(reader) == []
        back = await listen(server, "/1", after=reader.last_event_id)
        site.allow(3)
        assert await datas(back) == [*words(2, 3), FINISHED]
        assert await datas(client) == [*words(0, 1, 2, 3), FINISHED]

    async def test_readers_of_another_node_are_told_that_its_process_stops(self, sites, logged, listen):
        (site, _), (server, other) = sites
        await listen(server, "/1", method="POST")
        reader = await listen(other, "/1")
        await site.hub.drain_runs(0.01)
        assert await datas(reader) == [SHUTDOWN]
