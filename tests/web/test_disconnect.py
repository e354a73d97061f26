from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import struct

import pytest
import trustme
import uvloop
from aiohttp import web

from aiohttp_interceptors import (
    CloseReason,
    EventChannel,
    Interceptor,
    RequestContext,
    around,
    as_handler,
    before,
    interceptor_middleware,
    setup,
    start_event_stream,
)
from aiohttp_interceptors.web.app import STREAMS
from aiohttp_interceptors.web.timers import timer_queue
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import until, within

KEEP = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"
FULL = "x" * 16384

pytestmark = BOTH_LOOPS


@pytest.fixture(params=["plain", "tls"])
def tls(request) -> bool:
    return request.param == "tls"


class Iterations:
    """Count the iterations of the event loop, and record in which one something happened."""

    def __init__(self) -> None:
        self.count = 0
        self.at: dict[str, int] = {}
        self._loop = asyncio.get_running_loop()
        self._count_one()

    def _count_one(self) -> None:
        self.count += 1
        self._next = self._loop.call_soon(self._count_one)

    def record(self, what: str) -> None:
        self.at.setdefault(what, self.count)

    def after_the_kernel(self, what: str) -> int:
        """Return how many iterations after the kernel's report this happened."""
        return self.at[what] - self.at["the kernel reports it"]

    def stop(self) -> None:
        self._next.cancel()


class ProtocolSpy(asyncio.Protocol):
    """Wrap the protocol of an open stream, and record when the event loop reports the disconnect."""

    def __init__(self, transport: asyncio.Transport, iterations: Iterations) -> None:
        self._wrapped = transport.get_protocol()
        self._iterations = iterations
        transport.set_protocol(self)

    def data_received(self, data):
        self._wrapped.data_received(data)

    def eof_received(self):
        self._iterations.record("the kernel reports it")
        return self._wrapped.eof_received()

    def connection_lost(self, exc):
        self._iterations.record("the kernel reports it")
        self._wrapped.connection_lost(exc)

    def pause_writing(self):
        self._wrapped.pause_writing()

    def resume_writing(self):
        self._wrapped.resume_writing()


class Client:
    """A client with a blocking socket, which reads only when a test calls ``read_until``."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._unread = b""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    async def read_until(self, mark: bytes | None) -> bytes:
        return await within(asyncio.to_thread(self._read_until, mark))

    def _read_until(self, mark: bytes | None) -> bytes:
        """Read up to these bytes, or up to the end.

        It reads in large pieces: each takes the GIL from the event loop, which is busy counting iterations.
        """
        while mark is None or mark not in self._unread:
            piece = self.sock.recv(65536)
            if not piece:
                seen, self._unread = self._unread, b""
                return seen
            self._unread += piece
        end = self._unread.index(mark) + len(mark)
        seen, self._unread = self._unread[:end], self._unread[end:]
        return seen

    def leave(self, how: str) -> None:
        if how == "half-close":
            self.sock.shutdown(socket.SHUT_WR)
        else:
            if how == "reset":
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.sock.close()

    def close(self) -> None:
        self.sock.close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


class Site:
    """A server, with or without TLS, and its clients."""

    def __init__(self, server, port: int, trust: ssl.SSLContext | None) -> None:
        self.server = server
        self._port = port
        self._trust = trust
        self.clients: list[Client] = []

    async def connect(self, request: bytes = KEEP) -> Client:
        client = Client(await within(asyncio.to_thread(self._connect, request)))
        self.clients.append(client)
        return client

    def _connect(self, request: bytes) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self._port), timeout=10)
        if self._trust is not None:
            sock = self._trust.wrap_socket(sock, server_hostname="localhost")
        sock.sendall(request)
        return sock


@pytest.fixture
async def listen(serve, tls, authority):
    sites: list[Site] = []

    async def start(app: web.Application, **settings: object) -> Site:
        server = await serve(app, **settings)
        port, trust = server.port, None
        if tls:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            authority.issue_cert("localhost").configure_cert(context)
            await web.TCPSite(server.runner, "127.0.0.1", 0, ssl_context=context).start()
            port, trust = server.runner.addresses[-1][1], ssl.create_default_context()
            authority.configure_trust(trust)
        sites.append(Site(server, port, trust))
        return sites[-1]

    yield start
    for site in sites:
        for client in site.clients:
            client.close()


class ObservedStream:
    """An application with a stream that records how it ends. Its producer fills the client's buffers, or waits."""

    def __init__(self, *, fill: bool = False, path: str = "/", **options: object) -> None:
        self.iterations = Iterations()
        self.opened = asyncio.Event()
        self.over = asyncio.Event()
        self.left = asyncio.Event()
        self.channel: EventChannel | None = None
        self.context: RequestContext | None = None
        self.reasons: list[CloseReason] = []
        self.leaves = 0
        self.cancelling: list[int] = []
        self.put_results: list[bool] = []
        self.body = b""
        self._fill = fill

        def on_close(context: RequestContext, reason: CloseReason) -> None:
            self.iterations.record("on_close")
            self.reasons.append(reason)
            self.over.set()

        @around
        async def leaving(context: RequestContext):
            try:
                yield
            finally:
                self.leaves += 1
                self.cancelling.append(asyncio.current_task().cancelling())
                self.left.set()

        options = {"heartbeat": None, "buffer": 4, "on_close": on_close, **options}
        self.app = web.Application(middlewares=[interceptor_middleware(leaving)])
        setup(self.app)
        self.app.router.add_route("*", path, as_handler(start_event_stream(self._ready, **options)))
        self.app.router.add_get("/next", self._next)
        self.answered = 0

    async def _ready(self, channel: EventChannel, context: RequestContext) -> None:
        self.channel, self.context = channel, context
        self.body = await context.request.read()
        self.opened.set()
        while self._fill:
            accepted = await channel.put(FULL)
            if not accepted:
                self.iterations.record("put returned False")
                self.put_results.append(accepted)
                break
        else:
            await channel.wait_closed()
            self.iterations.record("wait_closed returned")

    async def _next(self, request: web.Request) -> web.Response:
        self.answered += 1
        return web.Response(text=f"answer {self.answered}.")

    @property
    def connection(self):
        return self.context.response.connection

    async def is_open(self) -> None:
        """Wait until the stream is open, and interpose the spy."""
        await within(self.opened.wait())
        ProtocolSpy(self.context.request.transport, self.iterations)

    async def is_full(self) -> None:
        """Wait until a put waits because the client doesn't read."""
        await self.is_open()
        await until(lambda: self.channel._putters and self.connection.paused)

    async def has_ended(self) -> None:
        await within(self.left.wait())
        self.iterations.stop()


class TestDetection:
    """A disconnect is handled one iteration of the event loop after it was reported, without polling or heartbeats."""

    @pytest.mark.parametrize("how", ["close", "reset", "half-close"])
    async def test_an_idle_stream_ends_in_the_next_iteration(self, listen, handler_cancellation, how, logged, caplog):
        """``on_close`` is called and ``wait_closed`` returns."""
        stream = ObservedStream()
        site = await listen(stream.app, handler_cancellation=handler_cancellation)
        client = await site.connect()
        await stream.is_open()
        client.leave(how)
        await stream.has_ended()
        assert stream.iterations.after_the_kernel("on_close") <= 1
        assert stream.iterations.after_the_kernel("wait_closed returned") <= 1
        assert stream.reasons == [CloseReason.CLIENT_LEFT]
        assert {line["log_level"] for line in logged} <= {"debug", "info"}
        assert [record for record in caplog.records if record.levelname in {"WARNING", "ERROR"}] == []

    @pytest.mark.parametrize("how", ["reset", "half-close"])
    async def test_with_a_full_write_buffer_a_waiting_put_returns_in_the_next_iteration(
        self,
        listen,
        handler_cancellation,
        how,
        tls,
        event_loop_policy,  # noqa: F811  # the fixture that is imported
    ):
        """The client disconnects without having read anything, and the producer returns by itself."""
        if tls and how == "half-close" and isinstance(event_loop_policy, uvloop.EventLoopPolicy):
            pytest.skip("uvloop does not report it, see the next test")
        stream = ObservedStream(fill=True)
        site = await listen(stream.app, handler_cancellation=handler_cancellation)
        client = await site.connect()
        await stream.is_full()
        client.leave(how)
        await stream.has_ended()
        assert stream.iterations.after_the_kernel("on_close") <= 1
        assert stream.iterations.after_the_kernel("put returned False") <= 1
        assert stream.put_results == [False]
        assert stream.reasons == [CloseReason.CLIENT_LEFT]

    async def test_a_disconnect_that_the_event_loop_does_not_report_is_a_stall(self, listen):
        """uvloop doesn't report a half-close without close_notify while the TLS buffer is full."""
        stream = ObservedStream(fill=True, stall_timeout=2.5)
        site = await listen(stream.app)
        client = await site.connect()
        await stream.is_full()
        client.leave("half-close")
        await stream.has_ended()
        assert stream.put_results == [False]
        assert stream.reasons[0] in {CloseReason.CLIENT_LEFT, CloseReason.STALLED}

    @pytest.mark.parametrize("how", ["close", "half-close"])
    @pytest.mark.parametrize("together", [True, False], ids=["same segment", "later"])
    async def test_forty_pipelined_requests_do_not_hide_a_disconnect(self, listen, together, how):
        stream = ObservedStream()
        site = await listen(stream.app)
        client = await site.connect(KEEP + NEXT * 40 if together else KEEP)
        await stream.is_open()
        if not together:
            client.send(NEXT * 40)
        client.leave(how)
        await stream.has_ended()
        assert stream.iterations.after_the_kernel("on_close") <= 1
        assert stream.reasons == [CloseReason.CLIENT_LEFT]
        assert stream.answered == 0

    async def test_more_pipelined_requests_than_are_kept_do_not_hide_a_disconnect(self, listen):
        stream = ObservedStream()
        site = await listen(stream.app)
        client = await site.connect()
        await stream.is_open()
        await within(asyncio.to_thread(client.send, NEXT * 10_000))
        client.leave("half-close")
        await stream.has_ended()
        assert stream.iterations.after_the_kernel("on_close") <= 1
        assert stream.reasons == [CloseReason.CLIENT_LEFT]

    @pytest.mark.parametrize("late", [False, True], ids=["with the head", "after the head"])
    @pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
    async def test_after_a_request_body(self, listen, late, chunked):
        """Without reading a POST request to its end, its disconnect would not be detected."""
        stream = ObservedStream()
        site = await listen(stream.app)
        framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 8"
        head = b"POST / HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n\r\n"
        body = b"8\r\nquestion\r\n0\r\n\r\n" if chunked else b"question"
        client = await site.connect(head if late else head + body)
        if late:
            assert not stream.opened.is_set()
            client.send(body)
        await stream.is_open()
        assert stream.body == b"question"
        client.leave("close")
        await stream.has_ended()
        assert stream.iterations.after_the_kernel("on_close") <= 1
        assert stream.reasons == [CloseReason.CLIENT_LEFT]


class TestPipelinedRequests:
    @pytest.mark.parametrize("together", [True, False], ids=["same segment", "later"])
    async def test_forty_requests_are_answered_in_order_after_the_stream(self, listen, together):
        stream = ObservedStream()
        site = await listen(stream.app)
        client = await site.connect(KEEP + NEXT * 40 if together else KEEP)
        await within(stream.opened.wait())
        if not together:
            client.send(NEXT * 40)
        assert stream.channel.put_nowait("x")
        assert (await client.read_until(b"data: x\n\n\r\n")).count(b"HTTP/1.1") == 1
        assert stream.answered == 0
        stream.channel.close()
        answers = await client.read_until(b"answer 40.")
        assert answers.startswith(b"0\r\n\r\nHTTP/1.1 200 OK\r\n")
        assert [answers.index(b"answer %d." % number) for number in range(1, 41)] == sorted(
            answers.index(b"answer %d." % number) for number in range(1, 41)
        )
        client.send(NEXT)
        await client.read_until(b"answer 41.")

    async def test_more_requests_than_are_kept_are_discarded_and_the_connection_is_closed_after_the_stream(
        self, listen
    ):
        """The memory for pipelined requests is bounded, and the client can see which ones were not answered."""
        stream = ObservedStream()
        site = await listen(stream.app)
        client = await site.connect()
        await within(stream.opened.wait())
        interposed = stream.connection._interposed
        sending = asyncio.ensure_future(asyncio.to_thread(client.send, NEXT * 10_000))
        held = 0
        while not (sending.done() and interposed.overflowed):
            held = max(held, len(interposed._held or b""))
            await asyncio.sleep(0)
        assert held <= 64 * 1024
        assert stream.channel.put_nowait("x")
        stream.channel.close()
        everything = await client.read_until(None)
        assert everything.endswith(b"data: x\n\n\r\n0\r\n\r\n")
        assert stream.answered == 0
        assert stream.reasons == [CloseReason.CLOSED]

    async def test_a_request_body_that_never_arrives_times_out(self, listen):
        stream = ObservedStream(stall_timeout=0.2)
        site = await listen(stream.app)
        client = await site.connect(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\nques")
        answer = await client.read_until(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert not stream.opened.is_set()
        assert len(stream.app[STREAMS]) == 0

    async def test_a_disconnect_within_a_request_body_opens_no_stream(self, listen):
        stream = ObservedStream()
        site = await listen(stream.app)
        client = await site.connect(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\nques")
        client.leave("close")
        await stream.has_ended()
        assert not stream.opened.is_set()
        assert stream.reasons == []


class TestCleanUp:
    @pytest.mark.parametrize("end", ["client", "close", "shutdown", "error"])
    async def test_leave_stages_and_on_close_run_once_whatever_ended_the_stream(
        self, listen, end, handler_cancellation, monkeypatch
    ):
        """A cancellation of the producer does not reach the chain."""
        stream = ObservedStream()
        site = await listen(stream.app, handler_cancellation=handler_cancellation)
        client = await site.connect()
        await within(stream.opened.wait())
        if end == "client":
            client.leave("close")
        elif end == "close":
            stream.channel.close()
        elif end == "shutdown":
            await site.server.stop()
        else:
            stream.channel.end(CloseReason.ERROR)
        await stream.has_ended()
        await site.server.stop()
        assert stream.leaves == len(stream.reasons) == 1
        if not handler_cancellation:
            assert stream.cancelling == [0]

    async def test_a_disconnect_before_the_head_opens_no_stream(self, listen, handler_cancellation, logged):
        """No stream is registered and no event is buffered."""
        arrived = asyncio.Event()
        tried = asyncio.Event()

        @before
        async def wait(context: RequestContext) -> None:
            arrived.set()
            while context.request.transport is not None:
                await asyncio.sleep(0)

        called = []
        over = Interceptor("over", leave=lambda context: tried.set(), error=lambda context, error: tried.set())
        app = web.Application()
        setup(app)
        ready = lambda channel, context: called.append(1)
        app.router.add_get("/", as_handler(over, wait, start_event_stream(ready, on_close=ready)))
        site = await listen(app, handler_cancellation=False)
        client = await site.connect()
        await within(arrived.wait())
        client.leave("close")
        await within(tried.wait())
        assert called == []
        assert len(app[STREAMS]) == 0
        assert {line["log_level"] for line in logged} <= {"debug", "info"}


async def test_a_thousand_streams_leave_nothing(serve):
    """No task, no timer, no stream and no channel is left."""
    closes = []

    async def ready(channel, context):
        await channel.put("x")
        await channel.wait_closed()

    app = web.Application()
    setup(app)
    app.router.add_get("/", as_handler(start_event_stream(ready, on_close=lambda *end: closes.append(end[1]))))
    server = await serve(app)
    loop = asyncio.get_running_loop()
    other = await server.connect(KEEP.decode().replace("\r\n", "\n"))  # keeps the shared timer in use
    await other.until(b"data: x\n\n\r\n")

    def counts() -> tuple[int, ...]:
        timers = [timer for timer in getattr(loop, "_scheduled", ()) if not timer.cancelled()]
        return len(asyncio.all_tasks()), len(timers), len(app[STREAMS]), timer_queue()._active

    async def open_and_leave(number: int) -> None:
        raw = await server.connect(KEEP.decode().replace("\r\n", "\n"))
        if number % 3:
            await raw.until(b"data: x\n\n\r\n")
        if number % 2:
            raw.reset()
        else:
            await raw.close()

    baseline, channels = counts(), _channels()  # aiohttp caches the applications of other tests
    for number in range(1000):
        await open_and_leave(number)
    while counts() != baseline:  # asyncio.timeout would be a timer
        await asyncio.sleep(0)
    await until(lambda: _channels() <= channels + 1)  # uvloop may keep one
    await other.close()
    assert set(closes) == {CloseReason.CLIENT_LEFT}
    assert len(timer_queue()._heap) < 200


def _channels() -> int:
    gc.collect()
    return sum(isinstance(thing, EventChannel) for thing in gc.get_objects())


async def test_the_timer_of_a_closed_connection_marks_the_client_as_disconnected(serve):
    """The socket is closed, and uvloop's raises another exception than asyncio's."""
    opened, closed = asyncio.get_running_loop().create_future(), asyncio.get_running_loop().create_future()

    async def ready(channel: EventChannel, context: RequestContext) -> None:
        connection = context.response.connection
        connection._transport.abort()
        opened.set_result(connection.on_timer(connection.last_write + 30))
        await channel.wait_closed()
        closed.set_result(channel.reason)

    app = web.Application()
    app.router.add_get("/", as_handler(start_event_stream(ready)))
    server = await serve(app)
    raw = await server.connect("GET / HTTP/1.1\nHost: x\n\n")
    assert await within(opened) is None
    assert await within(closed) is CloseReason.CLIENT_LEFT
    await raw.close()
