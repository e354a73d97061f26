"""How open streams end when the server stops."""

from __future__ import annotations

import asyncio
import gc
import math
import re
import socket
import sys
import threading
from types import SimpleNamespace

import psutil
import pytest
import uvloop
from aiohttp import web

from aiohttp_interceptors import (
    CloseReason,
    Drain,
    Event,
    Hub,
    as_handler,
    before,
    interceptor_middleware,
    setup,
    start_event_stream,
    start_topic_stream,
)
from aiohttp_interceptors.web.app import STREAMS
from aiohttp_interceptors.web.timers import flush_queue, timer_queue
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import TIMEOUT, until, within

if sys.platform != "win32":
    import resource

pytestmark = BOTH_LOOPS

GET = "GET / HTTP/1.1\nHost: x\n\n"
END = b"0\r\n\r\n"
HEARTBEAT = b"2\r\n:\n\r\n"
FOREVER = 60.0  # seconds; longer than a test waits
DRAIN_TIMEOUT = 2.0  # seconds; a fifth of it must be enough for a clean-up on a busy machine


@pytest.fixture(autouse=True)
def quiet(logged):
    """Capture the log lines of a thousand streams."""


def chunk(frame: str) -> bytes:
    return b"%x\r\n%b\r\n" % (len(frame), frame.encode())


def application(ready, drain: Drain | None = None, **options) -> SimpleNamespace:
    """Return an application with a stream at ``/``, and the reasons why its streams ended."""
    reasons: list[CloseReason] = []
    options.setdefault("on_close", lambda context, reason: reasons.append(reason))
    app = web.Application()
    setup(app, drain=drain)
    app.router.add_get("/", as_handler(start_event_stream(ready, **options)))
    return SimpleNamespace(app=app, reasons=reasons, streams=app[STREAMS])


async def connected(server, path: str = "/"):
    """Open a stream and read its head."""
    raw = await server.connect(GET.replace("/", path, 1))
    await raw.until(b"\r\n\r\n")
    return raw


async def rest(raw) -> bytes:
    """Read until the server closes the connection, without heartbeats."""
    data = await within(raw.reader.read())
    await raw.close()
    return data.replace(HEARTBEAT, b"")


async def waits(channel, context):
    await channel.wait_closed()


def aborted(logged) -> list[int]:
    return [line["streams"] for line in logged if line["event"] == "streams_aborted"]


class TestFinalEvent:
    async def test_each_client_receives_it_and_a_complete_body(self, serve):
        """A browser reports no error."""
        opened = application(waits, Drain(farewell=Event("bye", name="farewell")))
        server = await serve(opened.app, shutdown_timeout=FOREVER)
        clients = [await connected(server) for _ in range(5)]
        await within(server.stop())
        for client in clients:
            assert await rest(client) == chunk("event: farewell\ndata: bye\n\n") + END
        assert opened.reasons == [CloseReason.SHUTDOWN] * 5
        assert len(opened.streams) == 0

    async def test_it_follows_buffered_events(self, serve):
        channels = []

        async def ready(channel, context):
            channels.append(channel)
            await channel.wait_closed()

        app = web.Application()

        async def put_last(app):
            assert channels[0].put_nowait("last")

        app.on_shutdown.append(put_last)  # the streams end in the same iteration
        setup(app, drain=Drain(farewell=Event("bye")))
        app.router.add_get("/", as_handler(start_event_stream(ready)))
        server = await serve(app, shutdown_timeout=FOREVER)
        client = await connected(server)
        await until(lambda: channels)
        await within(server.stop())
        assert await rest(client) == chunk("data: last\n\n") + chunk("data: bye\n\n") + END

    async def test_put_returns_false_immediately_and_accepted_events_are_sent(self, serve):
        """A waiting put returns before the client reads again."""
        returned = asyncio.Event()
        accepted = 0
        streams = []

        async def ready(channel, context):
            nonlocal accepted
            streams.append(context.stream)
            while await channel.put(f"{accepted} " + "x" * 50_000):
                accepted += 1
            returned.set()

        opened = application(ready, Drain(farewell=Event("bye"), timeout=FOREVER))
        server = await serve(opened.app, shutdown_timeout=FOREVER)
        client = await server.connect(GET)
        client.writer.transport.pause_reading()
        await until(lambda: streams and streams[0].statistics().buffered == 10)
        stopping = asyncio.ensure_future(server.stop())
        await within(returned.wait())
        assert not stopping.done()
        client.writer.transport.resume_reading()
        body = await rest(client)
        await within(stopping)
        assert [int(number) for number in re.findall(rb"data: (\d+) x", body)] == list(range(accepted))
        assert body.endswith(chunk("data: bye\n\n") + END)

    @pytest.mark.parametrize(
        ("drain", "expected"), [(Drain(), b""), (Drain(farewell=Event("bye")), chunk("data: bye\n\n"))]
    )
    async def test_a_stream_without_retry_sends_no_frame_without_data(self, serve, drain, expected):
        """Clients other than browsers may report such a frame as an empty event."""
        server = await serve(application(waits, drain).app)
        client = await connected(server)
        await within(server.stop())
        assert await rest(client) == expected + END


class TestSpread:
    @pytest.mark.usefixtures("many_files")
    async def test_reconnection_times_are_uniformly_distributed(self, serve):
        """A Kolmogorov-Smirnov test, which fails by chance less than once in a million runs."""
        count, retry, spread = 1000, 2000, 5.0
        opened = application(waits, Drain(spread=spread), retry=retry)
        server = await serve(opened.app)
        clients = await plain_clients(server, opened, count)
        await within(server.stop())
        values = []
        for client in clients:
            body = (await received(client)).partition(b"\r\n\r\n")[2]
            values.append(int(re.fullmatch(rb"[0-9a-f]+\r\nretry: (\d+)\n\n\r\n0\r\n\r\n", body)[1]))
            client.close()
        assert retry <= min(values)
        assert max(values) <= retry + spread * 1000
        bound = math.sqrt(math.log(2 / 1e-6) / (2 * count))  # Dvoretzky, Kiefer, Wolfowitz and Massart
        assert distance_from_uniform([(value - retry) / (spread * 1000) for value in values]) < bound + 0.001

    async def test_the_final_event_has_the_reconnection_time(self, serve):
        server = await serve(application(waits, Drain(farewell=Event("bye"), spread=1.0), retry=2000).app)
        client = await connected(server)
        await within(server.stop())
        frame = re.fullmatch(rb"[0-9a-f]+\r\ndata: bye\nretry: (\d+)\n\n\r\n0\r\n\r\n", await rest(client))
        assert 2000 <= int(frame[1]) <= 3000

    async def test_without_a_spread_retry_is_unchanged(self, serve):
        server = await serve(application(waits, Drain(spread=0), retry=2000).app)
        client = await connected(server)
        await within(server.stop())
        assert await rest(client) == chunk("retry: 2000\n\n") + END


def distance_from_uniform(values: list[float]) -> float:
    """Return the Kolmogorov-Smirnov distance of the values from the uniform distribution over 0 to 1."""
    ordered, count = sorted(values), len(values)
    return max(max((index + 1) / count - value, value - index / count) for index, value in enumerate(ordered))


class TestGrace:
    async def test_a_finite_stream_ends_by_itself_and_is_complete(self, serve, logged):
        """Other streams end immediately."""
        proceed, put = asyncio.Event(), []

        async def answer(channel, context):
            await proceed.wait()
            put.extend([await channel.put(word) for word in ("the", "whole", "answer")])
            channel.close()

        opened = application(waits, Drain(farewell=Event("bye"), grace=FOREVER))
        opened.app.router.add_get("/answer", as_handler(start_event_stream(answer, finite=True)))
        server = await serve(opened.app, shutdown_timeout=FOREVER)
        endless, finite = await connected(server), await connected(server, "/answer")
        stopping = asyncio.ensure_future(server.stop())
        assert await rest(endless) == chunk("data: bye\n\n") + END
        assert len(opened.streams) == 1
        assert not stopping.done()
        proceed.set()
        body = await rest(finite)
        await within(stopping)
        assert re.findall(rb"data: (.+)", body) == [b"the", b"whole", b"answer"]
        assert body.endswith(b"data: answer\n\n\r\n" + END)
        assert put == [True] * 3
        assert not aborted(logged)

    async def test_a_finite_stream_that_does_not_end_is_ended_after_the_grace_period(self, serve, logged):
        opened = application(waits, Drain(farewell=Event("bye"), grace=0.05), finite=True)
        server = await serve(opened.app, shutdown_timeout=FOREVER)
        client = await connected(server)
        await within(server.stop())
        assert await rest(client) == chunk("data: bye\n\n")  # no last chunk: the body is incomplete
        assert opened.reasons == [CloseReason.SHUTDOWN]
        assert not aborted(logged)

    async def test_a_disconnect_ends_the_grace_period(self, serve):
        opened = application(waits, Drain(grace=FOREVER), finite=True)
        server = await serve(opened.app, shutdown_timeout=FOREVER)
        client = await connected(server)
        await until(lambda: len(opened.streams) == 1)
        stopping = asyncio.ensure_future(server.stop())
        await until(lambda: opened.streams.closing)
        client.reset()
        await within(stopping)
        assert opened.reasons == [CloseReason.CLIENT_LEFT]

    async def test_without_a_grace_period_a_finite_stream_ends_immediately(self, serve):
        opened = application(waits, Drain(grace=0), finite=True)
        server = await serve(opened.app, shutdown_timeout=FOREVER)
        client = await connected(server)
        await within(server.stop())
        assert await rest(client) == b""


class TestTimeout:
    """Streams that do not end within the timeout are aborted and logged."""

    async def test_a_client_that_does_not_read_is_disconnected(self, serve, logged, handler_cancellation):
        streams = []

        async def ready(channel, context):
            streams.append(context.stream)
            while await channel.put("x" * 50_000):
                pass

        opened = application(ready, Drain(timeout=0.05))
        server = await serve(opened.app, shutdown_timeout=FOREVER, handler_cancellation=handler_cancellation)
        client = await server.connect(GET)
        client.writer.transport.pause_reading()
        await until(lambda: streams and streams[0].statistics().buffered == 10)
        await within(server.stop())
        assert aborted(logged) == [1]
        assert opened.reasons == [CloseReason.SHUTDOWN]
        client.reset()

    async def test_the_socket_of_a_client_that_does_not_read_the_last_bytes_is_closed(
        self, serve, handler_cancellation
    ):
        """The write buffer is below the high-water mark, and the kernel's send buffer is full."""
        streams, channels = [], []

        async def ready(channel, context):
            streams.append(context.stream)
            channels.append(channel)
            await channel.wait_closed()

        opened = application(ready, Drain(timeout=0.05))
        server = await serve(opened.app, shutdown_timeout=FOREVER, handler_cancellation=handler_cancellation)
        client = plain_client(server.port, receive_buffer=4096)
        await until(lambda: channels)
        full = 0
        while full < 1000:  # iterations of the event loop without a change
            full = full + 1 if streams[0].statistics().unsent else 0
            if not full:
                channels[0].put_nowait("x" * 2000)
            await asyncio.sleep(0)
        transport = streams[0]._connection._transport
        assert not streams[0]._connection.paused
        await within(server.stop())
        await until(lambda: transport.get_extra_info("socket").fileno() < 0)
        client.close()

    async def test_a_producer_that_ignores_its_cancellation_is_abandoned(self, serve, logged, handler_cancellation):
        free, returned = asyncio.Event(), asyncio.Event()

        async def ready(channel, context):
            while not free.is_set():
                try:
                    await free.wait()
                except asyncio.CancelledError:
                    pass
            returned.set()

        opened = application(ready, Drain(farewell=Event("bye"), timeout=DRAIN_TIMEOUT))
        server = await serve(opened.app, shutdown_timeout=FOREVER, handler_cancellation=handler_cancellation)
        client = await connected(server)
        try:
            await within(server.stop())
            assert await rest(client) == chunk("data: bye\n\n") + END
            assert aborted(logged) == [1]
            assert [line["event"] for line in logged].count("stream_producer_ignores_its_end") == 1
            assert not returned.is_set()
        finally:
            free.set()
            await within(returned.wait())

    async def test_a_producer_is_cancelled_again_in_a_slow_clean_up(self, serve, logged, handler_cancellation):
        ends = []

        async def ready(channel, context):
            try:
                await asyncio.Event().wait()
            finally:
                try:
                    await asyncio.Event().wait()
                finally:
                    ends.append(channel.reason)

        opened = application(ready, Drain(farewell=Event("bye"), timeout=DRAIN_TIMEOUT))
        server = await serve(opened.app, shutdown_timeout=FOREVER, handler_cancellation=handler_cancellation)
        client = await connected(server)
        await within(server.stop())
        assert await rest(client) == chunk("data: bye\n\n") + END
        assert ends == [CloseReason.SHUTDOWN]
        assert aborted(logged) == [1]

    async def test_an_on_close_that_does_not_return_is_cancelled(self, serve, logged, handler_cancellation):
        ends = []

        async def on_close(context, reason):
            try:
                await asyncio.Event().wait()
            finally:
                ends.append(reason)

        opened = application(waits, Drain(timeout=DRAIN_TIMEOUT), on_close=on_close)
        server = await serve(opened.app, shutdown_timeout=FOREVER, handler_cancellation=handler_cancellation)
        client = await connected(server)
        await within(server.stop())
        assert await rest(client) == END
        assert ends == [CloseReason.SHUTDOWN]
        assert aborted(logged) == [1]

    async def test_a_producer_that_cleans_up_in_time_is_not_aborted(self, serve, logged):
        cleaning, cleaned = asyncio.Event(), asyncio.Event()

        async def ready(channel, context):
            try:
                await asyncio.Event().wait()
            finally:
                cleaning.set()
                await cleaned.wait()

        opened = application(ready, Drain(timeout=FOREVER), grace=0)
        server = await serve(opened.app, shutdown_timeout=FOREVER)
        client = await connected(server)
        stopping = asyncio.ensure_future(server.stop())
        await within(cleaning.wait())
        assert not stopping.done()
        cleaned.set()
        await within(stopping)
        assert await rest(client) == END
        assert not aborted(logged)


class TestNewStreams:
    """A request for a stream while the server stops is refused, or its stream ends like the others."""

    async def test_they_are_refused_with_503_and_different_retry_after_times(self, serve):
        proceed, entered, count = asyncio.Event(), [], 60

        @before
        async def slow(context):
            entered.append(context)
            await proceed.wait()

        def ready(channel, context):
            raise AssertionError("a stream was started")

        app = web.Application(middlewares=[interceptor_middleware(slow)])
        setup(app, drain=Drain(spread=20.0))
        app.router.add_get("/", as_handler(start_event_stream(ready)))
        server = await serve(app, shutdown_timeout=FOREVER)
        clients = [await server.connect(GET) for _ in range(count)]
        await until(lambda: len(entered) == count)
        stopping = asyncio.ensure_future(server.stop())
        await until(lambda: app[STREAMS].closing)
        proceed.set()
        answers = [await rest(client) for client in clients]
        await within(stopping)
        assert all(answer.startswith(b"HTTP/1.1 503 ") for answer in answers)
        times = {int(re.search(rb"\r\nRetry-After: (\d+)\r\n", answer)[1]) for answer in answers}
        assert 1 <= min(times) < max(times) <= 20
        assert len(app[STREAMS]) == 0

    @pytest.mark.parametrize("finite", [False, True])
    async def test_a_stream_that_was_admitted_before_ends_after_its_head(self, serve, finite):
        proceed, preparing, results = asyncio.Event(), asyncio.Event(), []

        async def slow(request, response):
            preparing.set()
            await proceed.wait()

        async def ready(channel, context):
            results.append(await channel.put("x"))
            await channel.wait_closed()

        opened = application(ready, Drain(farewell=Event("bye")), finite=finite)
        opened.app.on_response_prepare.append(slow)
        server = await serve(opened.app, shutdown_timeout=FOREVER)
        client = await server.connect(GET)
        await within(preparing.wait())
        assert len(opened.streams) == 0
        stopping = asyncio.ensure_future(server.stop())
        await until(lambda: opened.streams.closing)
        proceed.set()
        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        assert await rest(client) == chunk("data: bye\n\n") + (b"" if finite else END)
        await within(stopping)
        assert True not in results
        assert opened.reasons == [CloseReason.SHUTDOWN]
        assert len(opened.streams) == 0


class TestCleanUp:
    async def test_a_hundred_streams_end_whatever_their_producers_do(self, serve):
        """Producers wait for the end, are idle, or are busy. None delays the shutdown until aiohttp's timeout."""

        async def ready(channel, context):
            if context.request.query["does"] == "waits":
                await channel.wait_closed()
            elif context.request.query["does"] == "idles":
                await asyncio.Event().wait()
            else:
                while await channel.put("x"):
                    await asyncio.sleep(0)

        opened = application(ready)
        server = await serve(opened.app, shutdown_timeout=FOREVER)
        clients = [await connected(server, f"/?does={does}") for does in ("waits", "idles", "works") for _ in range(34)]
        await until(lambda: len(opened.streams) == 102)
        await within(server.stop())
        assert opened.reasons == [CloseReason.SHUTDOWN] * 102
        for client in clients:
            assert (await rest(client)).endswith(END)

    @pytest.mark.usefixtures("many_files")
    async def test_a_thousand_streams_leave_nothing(self, serve):
        """No task, no timer and no open file is left."""
        count = 1000
        opened = application(waits, Drain(farewell=Event("bye")), retry=1000, max_age=FOREVER)
        server = await serve(opened.app, shutdown_timeout=FOREVER)
        tasks, timers, files = asyncio.all_tasks(), running_timers(), psutil.Process().num_fds()
        clients = await plain_clients(server, opened, count)
        assert len(asyncio.all_tasks() - tasks) >= count
        assert running_timers() > timers
        await within(server.stop())
        assert asyncio.all_tasks() == tasks
        assert running_timers() == timers
        assert timer_queue()._handle is None
        for client in clients:
            body = await received(client)
            assert b"\r\ndata: bye\nretry: " in body
            assert body.endswith(END)
        assert (
            psutil.Process().num_fds() == files - 1 + count
        )  # the server's socket is closed, those of the clients are not
        for client in clients:
            client.close()


def plain_client(port: int, receive_buffer: int | None = None) -> socket.socket:
    """Request a stream with a socket that belongs to no event loop and isn't read."""
    client = socket.socket()
    client.settimeout(TIMEOUT)
    if receive_buffer is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.connect(("127.0.0.1", port))
    client.sendall(GET.replace("\n", "\r\n").encode())
    client.setblocking(False)
    return client


async def plain_clients(server, opened, count: int) -> list[socket.socket]:
    """Open streams, a hundred at a time because of the backlog of the server's socket."""
    clients = []
    while len(clients) < count:
        clients.extend([plain_client(server.port) for _ in range(100)])
        await until(lambda: len(opened.streams) == len(clients))
    return clients


async def received(client: socket.socket) -> bytes:
    """Read until the server closes the connection, without heartbeats."""
    data = b""
    while more := await within(asyncio.get_running_loop().sock_recv(client, 65536)):
        data += more
    return data.replace(HEARTBEAT, b"")


def running_timers() -> int:
    """Return the number of active timers of the running event loop."""
    loop = asyncio.get_running_loop()
    if isinstance(loop, uvloop.Loop):
        handles = [each for each in gc.get_objects() if isinstance(each, uvloop.loop.TimerHandle)]
    else:
        handles = loop._scheduled
    return sum(not handle.cancelled() for handle in handles)


@pytest.fixture
def many_files():
    """Allow as many open files as a thousand streams and their clients need."""
    if sys.platform == "win32":
        pytest.skip("there is no limit of open files")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = 2500
    if soft != resource.RLIM_INFINITY and soft < need:
        if hard != resource.RLIM_INFINITY and hard < need:
            pytest.skip(f"a process may open {hard} files here")
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class TestTwoServers:
    async def test_the_second_server_is_not_affected_when_the_first_stops(self, serve):
        """Two applications in one process share an interceptor, and nothing else."""
        channels = {}

        async def ready(channel, context):
            channels[context.request.path] = channel
            await channel.wait_closed()

        stream = start_event_stream(ready)
        servers, clients = [], []
        for path in ("/first", "/second"):
            app = web.Application()
            setup(app, drain=Drain(farewell=Event(f"bye {path}")))
            app.router.add_get(path, as_handler(stream))
            servers.append(await serve(app, shutdown_timeout=FOREVER))
            clients.append(await connected(servers[-1], path))
        await until(lambda: len(channels) == 2)
        await within(servers[0].stop())
        assert await rest(clients[0]) == chunk("data: bye /first\n\n") + END
        assert await channels["/second"].put("still here")
        await clients[1].until(b"data: still here\n\n\r\n")
        another = await connected(servers[1], "/second")
        await within(servers[1].stop())
        assert await rest(clients[1]) == await rest(another) == chunk("data: bye /second\n\n") + END


@pytest.mark.parametrize("second", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("first", [asyncio.SelectorEventLoop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_two_event_loops_in_two_threads_share_an_interceptor(first, second):
    """Nothing is bound to another event loop, and stopping one server does not affect the other."""

    async def ready(channel, context):
        while await channel.put("tick"):
            await asyncio.sleep(0.001)

    handler = as_handler(start_event_stream(ready, heartbeat=0.1, max_age=FOREVER))
    drain = Drain(farewell=Event("bye"))
    one, two = (ThreadedServer(factory, handler, drain) for factory in (first, second))
    try:
        assert one.queues.isdisjoint(two.queues)
        clients = [socket.create_connection(("127.0.0.1", each.port), TIMEOUT) for each in (one, two)]
        readers = [client.makefile("rb") for client in clients]
        for client, reader in zip(clients, readers, strict=True):
            client.sendall(GET.replace("\n", "\r\n").encode())
            while reader.readline() != b"data: tick\n":
                pass
        one.stop()
        assert readers[0].read().endswith(chunk("data: bye\n\n") + END)
        for _ in range(3):
            while readers[1].readline() != b"data: tick\n":
                pass
        two.stop()
        assert readers[1].read().endswith(chunk("data: bye\n\n") + END)
        for each in (*readers, *clients):
            each.close()
    finally:
        for each in (one, two):
            each.stop()


class ThreadedServer:
    """A server in its own thread and event loop."""

    def __init__(self, new_loop, handler, drain: Drain) -> None:
        self._handler, self._drain = handler, drain
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._main, args=[new_loop], daemon=True)
        self._thread.start()
        assert self._started.wait(TIMEOUT)

    def _main(self, new_loop) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        app = web.Application()
        setup(app, drain=self._drain)
        app.router.add_get("/", self._handler)
        runner = web.AppRunner(app, shutdown_timeout=FOREVER)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self.queues = {flush_queue(), timer_queue()}  # shared by the streams of this event loop only
        self._started.set()
        await self._stopping.wait()
        await runner.cleanup()

    def stop(self) -> None:
        """Stop the server and join the thread. Idempotent."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(TIMEOUT)
            assert not self._thread.is_alive()


class TestRequestBeforeItsStream:
    """A request that waits for its body, or for the application's function, before its stream opens."""

    @pytest.fixture(params=["body", "topics"])
    def pending(self, request):
        facts, waiting, hub = [], asyncio.Event(), Hub()

        async def topics(context):
            waiting.set()
            await asyncio.sleep(FOREVER)
            return "news"

        @before
        def note(context):
            if request.param == "body":
                waiting.set()

        app = web.Application()
        setup(app, hub, observer=facts.append, max_streams=1)
        stream = start_topic_stream(hub, topics if request.param == "topics" else "news")
        app.router.add_route("*", "/", as_handler(note, stream))
        head = "POST / HTTP/1.1\nHost: x\nContent-Length: 100\n\nno more" if request.param == "body" else GET
        return SimpleNamespace(app=app, head=head, waiting=waiting, facts=facts)

    async def test_it_is_refused_when_the_server_stops(self, serve, pending):
        server = await serve(pending.app, shutdown_timeout=FOREVER)
        client = await server.connect(pending.head)
        await within(pending.waiting.wait())
        await within(server.stop())
        answer = await within(client.reader.read())
        await client.close()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: " in answer
        assert [(fact.status, fact.limit) for fact in pending.facts] == [(503, "")]

    async def test_it_is_refused_if_it_starts_to_wait_afterwards(self, serve, pending):
        server = await serve(pending.app, shutdown_timeout=FOREVER)
        pending.app[STREAMS].closing = True
        client = await server.connect(pending.head)
        answer = await within(client.until(b"\r\n\r\n"))
        await client.close()
        assert answer.startswith(b"HTTP/1.1 503 ")
