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
from aiohttp_interceptors.web.transport import CHECKS_PER_TIMEOUT, options_on
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import PATIENCE, until, within

KEEP = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
STALL = 0.3
LATER = (
    1000.0  # the timeout of a stream until its test has it stall: nothing is cut before, however busy the machine is
)
SMALL = 4096  # bytes of a client's receive buffer; the kernel makes a little more of it
KILOBYTE = "x" * 1024
TCP_CLOSED = b"\x07"  # the state of a socket that the kernel gave up, TCP_CLOSE in <netinet/tcp.h>

pytestmark = [
    *BOTH_LOOPS,
    pytest.mark.skipif(sys.platform not in {"linux", "darwin"}, reason="the kernel does not tell what was taken"),
]


@pytest.fixture(params=["plain", "tls"])
def tls(request) -> bool:
    return request.param == "tls"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


class Open:
    """One open stream, as its test sees it."""

    def __init__(self, channel: EventChannel, context: RequestContext) -> None:
        self.channel = channel
        self.context = context
        self.stream = context.stream
        self.connection = context.response.connection
        self.over = asyncio.Event()
        self.reason: CloseReason | None = None
        self.put_said: bool | None = None

    def stalls(self, notices: str = "both") -> None:
        """Give it its timeout from now on; with one of the two that notice a stall, only to that one."""
        if notices != "the stream":
            sock = self.context.request.transport.get_extra_info("socket")
            sock.setsockopt(*options_on(sys.platform, STALL)[1])
        if notices != "the kernel":
            self.connection._stall_timeout = STALL
            self.connection._stall = None
            self.connection._cancel_visit()
            self.connection._visit = timer_queue().add(self.connection, self.connection.loop.time())

    def taken(self) -> int:
        """Count the bytes that its client's kernel has confirmed."""
        return self.connection._taken_and_owed()[0]

    async def fill(self) -> None:
        """Put until the stream is over."""
        while self.put_said is not False:
            self.put_said = await self.channel.put(KILOBYTE)

    async def fill_the_kernel(self, event: str) -> None:
        """Put until its client's kernel has no room and ours has some for what is still to come."""
        while self.connection._options.unacknowledged() < 2 * SMALL:
            assert self.channel.put_nowait(event)
            await asyncio.sleep(0)

    async def is_full(self) -> None:
        await until(lambda: self.channel._waiting and self.connection.paused)

    async def looked(self) -> None:
        """Wait until the connection has looked once more after its client, or is lost."""
        if (visit := self.connection._visit) is not None:
            due = visit.due
            await until(lambda: visit.cancelled or visit.due != due)


class Streams:
    """An application of streams, and those that were opened, in order."""

    def __init__(self, **options: object) -> None:
        self.opened: asyncio.Queue[Open] = asyncio.Queue()
        self.facts: list[object] = []
        streams: dict[int | str, Open] = {}

        def ready(channel: EventChannel, context: RequestContext) -> None:
            streams[context.execution_id] = Open(channel, context)
            self.opened.put_nowait(streams[context.execution_id])

        def on_close(context: RequestContext, reason: CloseReason) -> None:
            streams[context.execution_id].reason = reason
            streams[context.execution_id].over.set()

        self.app = web.Application()
        setup(self.app, observer=self.facts.append)
        options = {"heartbeat": None, "stall_timeout": LATER, "on_close": on_close, **options}
        self.app.router.add_get("/", as_handler(start_event_stream(ready, **options)))


@pytest.fixture
async def connect(serve, tls, authority):
    """Serve the streams, and give each client's socket, which reads nothing by itself, and its stream."""
    sockets, served = [], {}

    async def start(streams: Streams, *, receive: int | None = SMALL) -> tuple[socket.socket, Open]:
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
            sock.settimeout(PATIENCE)
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


class TestAClientThatStopsReading:
    async def test_is_cut_and_the_producer_that_waits_is_told(self, connect):
        """peer bugs 8 and 34."""
        streams = Streams()
        _, stream = await connect(streams)
        filling = asyncio.create_task(stream.fill())
        await stream.is_full()
        stream.stalls()
        await within(stream.over.wait())
        await within(filling)
        assert stream.reason is CloseReason.STALLED
        assert stream.put_said is False
        await until(lambda: len(streams.app[STREAMS]) == 0)
        assert [fact.reason for fact in streams.facts if isinstance(fact, StreamClosed)] == ["stalled"]

    @pytest.mark.parametrize("notices", ["the stream", "the kernel"])
    async def test_is_cut_too_when_only_heartbeats_are_written(self, connect, notices):
        """peer bug 9: its buffers are full, the server's are not, and no put ever waits."""
        _, stream = await connect(Streams(heartbeat=0.05))
        await stream.fill_the_kernel(KILOBYTE)
        events, sent = stream.stream.statistics().events, stream.connection.sent
        assert not stream.connection.paused
        await until(lambda: stream.connection.sent > sent)  # heartbeats
        stream.stalls(notices)
        await within(stream.over.wait())
        assert stream.reason is CloseReason.STALLED
        assert stream.stream.statistics().events == events

    async def test_is_stalled_too_when_a_write_is_the_first_to_meet_what_the_kernel_decided(self, connect):
        """A failed write closes the transport; why it failed is told in a later turn."""
        _, stream = await connect(Streams(heartbeat=1000.0))
        await stream.fill_the_kernel(KILOBYTE)
        stream.stalls("the kernel")
        sock = stream.context.request.transport.get_extra_info("socket")
        while sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) != TCP_CLOSED:
            time.sleep(0.01)  # noqa: ASYNC251  # the event loop must not see it first
        stream.connection.beat()
        stream.connection.visit(asyncio.get_running_loop().time())
        await within(stream.over.wait())
        assert stream.reason is CloseReason.STALLED

    @pytest.mark.parametrize("notices", ["the stream", "the kernel"])
    async def test_is_cut_too_when_small_events_never_fill_the_buffers(self, connect, notices):
        """peer bug 8: a put that never waits says nothing about its client; and TLS has a buffer that nobody sees."""
        _, stream = await connect(Streams())
        last, same = 0, 0
        while same < 20 and not stream.connection.paused:
            stream.channel.put_nowait(KILOBYTE)
            await asyncio.sleep(0)
            owed = stream.connection._options.unacknowledged()
            last, same = owed, same + 1 if owed == last else 0
        stream.stalls(notices)
        async with asyncio.timeout(PATIENCE):
            while not stream.over.is_set():
                if not stream.connection.paused and not stream.connection.lost:
                    stream.channel.put_nowait("small")
                    await stream.looked()
                await asyncio.sleep(0)
        assert stream.reason is CloseReason.STALLED

    async def test_is_cut_while_its_stream_is_being_closed(self, connect):
        _, stream = await connect(Streams())
        while not stream.connection.paused:
            stream.channel.put_nowait(KILOBYTE)
            await asyncio.sleep(0)
        stream.channel.put_nowait(KILOBYTE)
        stream.channel.close()
        stream.stalls()
        await within(stream.over.wait())
        assert stream.reason is CloseReason.STALLED

    async def test_delays_nobody_else(self, connect):
        """peer bugs 10 and 31: what is put is handed to the other connections in the same turn of the event loop."""
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


class TestASlowClient:
    """The looks after it are the test's own, at the times that the connection asks for."""

    async def test_that_takes_a_little_between_two_looks_is_not_stalled(self, connect):
        sock, stream = await connect(Streams())
        filling = asyncio.create_task(stream.fill())
        await stream.is_full()
        now = stream.connection.loop.time()
        for _ in range(5 * CHECKS_PER_TIMEOUT):  # five times as long as a stalled one has
            taken = stream.taken()
            now = stream.connection.visit(now)
            assert now is not None
            while stream.taken() == taken:
                await read(sock, 1024)
        assert stream.reason is None
        for _ in range(CHECKS_PER_TIMEOUT + 1):  # it stops, and the first look still sees what it took
            now = stream.connection.visit(now)
            if now is None:
                break
        await within(stream.over.wait())
        assert stream.reason is CloseReason.STALLED
        await within(filling)

    @pytest.mark.parametrize("tls", [True])
    async def test_that_is_sent_more_than_it_takes_in_tiny_events_is_not_stalled(self, connect):
        """With TLS every one of them is many times as long on the wire as it was when it was put."""
        sock, stream = await connect(Streams())
        await stream.fill_the_kernel("x")
        now = stream.connection.loop.time()
        for _ in range(5 * CHECKS_PER_TIMEOUT):
            taken = stream.taken()
            now = stream.connection.visit(now)
            assert now is not None
            while stream.taken() == taken:
                for _ in range(2):
                    if not stream.connection.paused:
                        stream.channel.put_nowait("x")
                    await asyncio.sleep(0)
                await read(sock, 14)
        assert stream.reason is None
        stream.stream.abort()


_NUMBERS = itertools.count()


@pytest.fixture
def faraway():
    """Give two addresses, ours and that of a network of its own, what runs a program there, and what cuts it off."""
    allowed = sys.platform == "linux" and os.geteuid() == 0 and shutil.which("ip") is not None
    if not allowed:
        pytest.skip("a network namespace takes Linux, root and iproute2")
    number = (os.getpid() + next(_NUMBERS)) % 16384  # names of its own: what is deleted is gone only after a while
    name, link = f"faraway{number}", f"faraway{number}"
    ours, theirs = (f"198.18.{number // 64}.{number % 64 * 4 + place}" for place in (1, 2))

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)

    def cut_off() -> None:
        """Let every packet that it sends disappear."""
        ip("-n", name, "route", "add", "blackhole", f"{ours}/32")

    try:
        ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        if "CI" in os.environ:
            raise  # there it must not go untested unnoticed
        pytest.skip(f"no network namespace can be made here: {error.stderr}")
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


@pytest.mark.parametrize("notices", ["the stream", "the kernel"])
@pytest.mark.parametrize("what", ["heartbeats", "events"])
async def test_a_client_that_vanishes_without_a_word_is_cut(serve, faraway, what, notices):
    """peer bug 7: no FIN, no RST, nothing is confirmed any more."""
    ours, inside, cut_off = faraway
    streams = Streams(heartbeat=0.05 if what == "heartbeats" else None)
    server = await serve(streams.app)
    site = web.TCPSite(server.runner, ours, 0)
    await site.start()
    port = server.runner.addresses[-1][1]
    client = await asyncio.to_thread(subprocess.Popen, [*inside, sys.executable, "-c", CLIENT, ours, str(port)])
    try:
        stream = await within(streams.opened.get())
        assert stream.channel.put_nowait("x")
        await until(lambda: stream.stream.statistics().events == 1 and not stream.connection._options.unacknowledged())
        cut_off()
        if what == "events":
            assert stream.channel.put_nowait("x")
        stream.stalls(notices)
        await within(stream.over.wait())
        assert stream.reason is CloseReason.STALLED
        assert client.poll() is None  # it waits on
    finally:
        client.kill()
        client.wait()
