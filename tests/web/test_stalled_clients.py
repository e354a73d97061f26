from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time

import pytest
import trustme
from aiohttp import web

from aiohttp_interceptors import (
    CloseReason,
    EventChannel,
    RequestContext,
    StreamClosed,
    as_handler,
    setup,
    start_event_stream,
)
from aiohttp_interceptors.web.app import STREAMS
from aiohttp_interceptors.web.timers import timer_queue
from aiohttp_interceptors.web.transport import CHECKS_PER_TIMEOUT, socket_options
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import TIMEOUT, until, within

KEEP = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
STALL = 0.3
# Stall timeout until a test calls shorten_timeout: no client is disconnected before, even on a busy machine.
LONG = 1000.0
SMALL = 4096  # size of a client's receive buffer; the kernel rounds it up
KILOBYTE = "x" * 1024
TCP_CLOSED = b"\x07"  # TCP_CLOSE in <netinet/tcp.h>: the kernel has dropped the connection

pytestmark = [
    *BOTH_LOOPS,
    pytest.mark.skipif(sys.platform not in {"linux", "darwin"}, reason="the kernel does not report acknowledgments"),
]


@pytest.fixture(params=["plain", "tls"])
def tls(request) -> bool:
    return request.param == "tls"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


class OpenStream:
    """One open stream."""

    def __init__(self, channel: EventChannel, context: RequestContext) -> None:
        self.channel = channel
        self.context = context
        self.stream = context.stream
        self.connection = context.response.connection
        self.over = asyncio.Event()
        self.reason: CloseReason | None = None
        self.put_result: bool | None = None

    def shorten_timeout(self, detector: str = "both") -> None:
        """Set a short stall timeout in the stream, in the kernel, or in both."""
        if detector != "the stream":
            sock = self.context.request.transport.get_extra_info("socket")
            sock.setsockopt(*socket_options(sys.platform, STALL)[1])
        if detector != "the kernel":
            self.connection._stall_timeout = STALL
            self.connection._stall_detector = None
            self.connection._cancel_timer()
            self.connection._timer = timer_queue().add(self.connection, self.connection.loop.time())

    def acked(self) -> int:
        """Return the number of bytes that the client has acknowledged."""
        return self.connection._acked_and_outstanding()[0]

    async def fill(self) -> None:
        """Put events until the stream ends."""
        while self.put_result is not False:
            self.put_result = await self.channel.put(KILOBYTE)

    async def fill_the_kernel(self, event: str) -> None:
        """Put events until the client's receive buffer is full, but the server's send buffer isn't."""
        while self.connection._options.unacked_bytes() < 2 * SMALL:
            assert self.channel.put_nowait(event)
            await asyncio.sleep(0)

    async def is_full(self) -> None:
        await until(lambda: self.channel._putters and self.connection.paused)

    async def checked(self) -> None:
        """Wait until the connection has run one more stall check, or the client is disconnected."""
        if (timer := self.connection._timer) is not None:
            due = timer.due
            await until(lambda: timer.cancelled or timer.due != due)


class Streams:
    """An application with a stream, and a queue of the streams that were opened."""

    def __init__(self, **options: object) -> None:
        self.opened: asyncio.Queue[OpenStream] = asyncio.Queue()
        self.facts: list[object] = []
        streams: dict[int | str, OpenStream] = {}

        def ready(channel: EventChannel, context: RequestContext) -> None:
            streams[context.execution_id] = OpenStream(channel, context)
            self.opened.put_nowait(streams[context.execution_id])

        def on_close(context: RequestContext, reason: CloseReason) -> None:
            streams[context.execution_id].reason = reason
            streams[context.execution_id].over.set()

        self.app = web.Application()
        setup(self.app, observer=self.facts.append)
        options = {"heartbeat": None, "stall_timeout": LONG, "on_close": on_close, **options}
        self.app.router.add_get("/", as_handler(start_event_stream(ready, **options)))


@pytest.fixture
async def connect(serve, tls, authority):
    """Serve an application and open streams: each is the socket of a client that doesn't read, and its stream."""
    sockets, served = [], {}

    async def start(streams: Streams, *, receive: int | None = SMALL) -> tuple[socket.socket, OpenStream]:
        if streams not in served:
            server, trust = await serve(streams.app), None
            if tls:
                context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
                authority.issue_cert("localhost").configure_cert(context)
                await web.TCPSite(server.runner, "127.0.0.1", 0, ssl_context=context).start()
                trust = ssl.create_default_context()
                authority.configure_trust(trust)
            served[streams] = server.runner.addresses[-1][:2], trust
        address, trust = served[streams]

        def dial() -> socket.socket:
            sock = socket.socket()
            if receive is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
            sock.settimeout(TIMEOUT)
            sock.connect(address)
            if trust is not None:
                sock = trust.wrap_socket(sock, server_hostname="localhost")
            sock.sendall(KEEP)
            return sock

        sockets.append(await asyncio.to_thread(dial))
        return sockets[-1], await within(streams.opened.get())

    yield start
    for sock in sockets:
        sock.close()


async def read(sock: socket.socket, count: int) -> bytes:
    return await within(asyncio.to_thread(sock.recv, count))


class TestStalledClient:
    async def test_it_is_disconnected_and_a_waiting_put_returns_false(self, connect):
        streams = Streams()
        _, stream = await connect(streams)
        filling = asyncio.create_task(stream.fill())
        await stream.is_full()
        stream.shorten_timeout()
        await within(stream.over.wait())
        await within(filling)
        assert stream.reason is CloseReason.STALLED
        assert stream.put_result is False
        await until(lambda: len(streams.app[STREAMS]) == 0)
        assert [fact.reason for fact in streams.facts if isinstance(fact, StreamClosed)] == ["stalled"]

    @pytest.mark.parametrize("detector", ["the stream", "the kernel"])
    async def test_it_is_disconnected_if_only_heartbeats_are_sent(self, connect, detector):
        """The client's buffers are full, those of the server are not, and no put waits."""
        _, stream = await connect(Streams(heartbeat=0.05))
        await stream.fill_the_kernel(KILOBYTE)
        events, sent = stream.stream.statistics().events, stream.connection.bytes_sent
        assert not stream.connection.paused
        await until(lambda: stream.connection.bytes_sent > sent)  # heartbeats
        stream.shorten_timeout(detector)
        await within(stream.over.wait())
        assert stream.reason is CloseReason.STALLED
        assert stream.stream.statistics().events == events

    async def test_the_reason_is_a_stall_if_a_write_fails_after_the_kernel_dropped_the_connection(self, connect):
        """A failed write closes the transport. ``connection_lost``, which has the reason, is called later."""
        _, stream = await connect(Streams(heartbeat=1000.0))
        await stream.fill_the_kernel(KILOBYTE)
        stream.shorten_timeout("the kernel")
        sock = stream.context.request.transport.get_extra_info("socket")
        while sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) != TCP_CLOSED:
            time.sleep(0.01)  # noqa: ASYNC251  # the event loop must not detect it first
        stream.connection.send_heartbeat()
        stream.connection.on_timer(asyncio.get_running_loop().time())
        await within(stream.over.wait())
        assert stream.reason is CloseReason.STALLED

    @pytest.mark.parametrize("detector", ["the stream", "the kernel"])
    async def test_it_is_disconnected_if_small_events_do_not_fill_the_buffers(self, connect, detector):
        """A put that doesn't wait says nothing about the client. TLS has a buffer whose size is unknown."""
        _, stream = await connect(Streams())
        last, same = 0, 0
        while same < 20 and not stream.connection.paused:
            stream.channel.put_nowait(KILOBYTE)
            await asyncio.sleep(0)
            outstanding = stream.connection._options.unacked_bytes()
            last, same = outstanding, same + 1 if outstanding == last else 0
        stream.shorten_timeout(detector)
        async with asyncio.timeout(TIMEOUT):
            while not stream.over.is_set():
                if not stream.connection.paused and not stream.connection.disconnected:
                    stream.channel.put_nowait("small")
                    await stream.checked()
                await asyncio.sleep(0)
        assert stream.reason is CloseReason.STALLED

    async def test_it_is_disconnected_while_its_stream_is_closing(self, connect):
        _, stream = await connect(Streams())
        while not stream.connection.paused:
            stream.channel.put_nowait(KILOBYTE)
            await asyncio.sleep(0)
        stream.channel.put_nowait(KILOBYTE)
        stream.channel.close()
        stream.shorten_timeout()
        await within(stream.over.wait())
        assert stream.reason is CloseReason.STALLED

    async def test_it_does_not_delay_other_clients(self, connect):
        """Events are written to the other connections in the same iteration of the event loop."""
        streams = Streams(stall_timeout=None)
        others = [(await connect(streams, receive=None))[1] for _ in range(20)]
        _, stalled = await connect(streams)
        filling = asyncio.create_task(stalled.fill())
        await stalled.is_full()
        for number in range(1, 101):
            for other in others:
                assert other.channel.put_nowait("x")
            await asyncio.sleep(0)
            assert {other.stream.statistics().events for other in others} == {number}
            assert {other.connection.unsent for other in others} == {0}
        assert stalled.reason is None
        stalled.stream.abort()
        await within(filling)


class TestSlowClient:
    """Stall checks are called directly, at the times that the connection returns."""

    async def test_it_is_not_disconnected_if_it_reads_a_little_between_two_checks(self, connect):
        sock, stream = await connect(Streams())
        filling = asyncio.create_task(stream.fill())
        await stream.is_full()
        now = stream.connection.loop.time()
        for _ in range(5 * CHECKS_PER_TIMEOUT):  # five times the timeout
            acked = stream.acked()
            now = stream.connection.on_timer(now)
            assert now is not None
            while stream.acked() == acked:
                await read(sock, 1024)
        assert stream.reason is None
        for _ in range(CHECKS_PER_TIMEOUT + 1):  # it stops reading, which the second check detects
            now = stream.connection.on_timer(now)
            if now is None:
                break
        await within(stream.over.wait())
        assert stream.reason is CloseReason.STALLED
        await within(filling)

    @pytest.mark.parametrize("tls", [True])
    async def test_it_is_not_disconnected_if_tiny_events_arrive_faster_than_it_reads(self, connect):
        """With TLS a tiny event is many times as long on the wire."""
        sock, stream = await connect(Streams())
        await stream.fill_the_kernel("x")
        now = stream.connection.loop.time()
        for _ in range(5 * CHECKS_PER_TIMEOUT):
            acked = stream.acked()
            now = stream.connection.on_timer(now)
            assert now is not None
            while stream.acked() == acked:
                for _ in range(2):
                    if not stream.connection.paused:
                        stream.channel.put_nowait("x")
                    await asyncio.sleep(0)
                await read(sock, 14)
        assert stream.reason is None
        stream.stream.abort()


_NUMBERS = itertools.count()


@pytest.fixture
def namespace():
    """Create a network namespace. Yield the host's address, a command prefix and a function that drops all packets."""
    allowed = sys.platform == "linux" and os.geteuid() == 0 and shutil.which("ip") is not None
    if not allowed:
        pytest.skip("a network namespace requires Linux, root and iproute2")
    number = (os.getpid() + next(_NUMBERS)) % 16384  # unique names, because deletion is asynchronous
    name = link = f"stalled{number}"
    ours, theirs = (f"198.18.{number // 64}.{number % 64 * 4 + place}" for place in (1, 2))

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)

    def cut_off() -> None:
        """Drop all packets that the namespace sends."""
        ip("-n", name, "route", "add", "blackhole", f"{ours}/32")

    try:
        ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        if "CI" in os.environ:
            raise  # never skipped in CI
        pytest.skip(f"a network namespace cannot be created: {error.stderr}")
    try:
        ip("link", "add", link, "type", "veth", "peer", "name", "e0", "netns", name)
        ip("addr", "add", f"{ours}/30", "dev", link)
        ip("link", "set", link, "up")
        ip("-n", name, "addr", "add", f"{theirs}/30", "dev", "e0")
        ip("-n", name, "link", "set", "e0", "up")
        yield ours, ["ip", "netns", "exec", name], cut_off
    finally:
        ip("netns", "del", name)


CLIENT = """
import socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
connection.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
while connection.recv(65536):
    pass
"""


@pytest.mark.parametrize("detector", ["the stream", "the kernel"])
@pytest.mark.parametrize("what", ["heartbeats", "events"])
async def test_a_client_that_vanishes_is_disconnected(serve, namespace, what, detector):
    """There is no FIN, no RST and no acknowledgment."""
    ours, inside, cut_off = namespace
    streams = Streams(heartbeat=0.05 if what == "heartbeats" else None)
    server = await serve(streams.app)
    site = web.TCPSite(server.runner, ours, 0)
    await site.start()
    port = server.runner.addresses[-1][1]
    client = await asyncio.to_thread(subprocess.Popen, [*inside, sys.executable, "-c", CLIENT, ours, str(port)])
    try:
        stream = await within(streams.opened.get())
        assert stream.channel.put_nowait("x")
        await until(lambda: stream.stream.statistics().events == 1 and not stream.connection._options.unacked_bytes())
        cut_off()
        if what == "events":
            assert stream.channel.put_nowait("x")
        stream.shorten_timeout(detector)
        await within(stream.over.wait())
        assert stream.reason is CloseReason.STALLED
        assert client.poll() is None  # it is still waiting
    finally:
        client.kill()
        client.wait()
