from __future__ import annotations

import asyncio
import socket
import sys

import pytest
from aiohttp import web

from aiohttp_interceptors import as_handler, setup, start_event_stream
from aiohttp_interceptors.web.transport import SocketOptions, socket_options
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture

KEEP = "GET / HTTP/1.1\nHost: x\n\n"
TIMEOUT = 10.0  # seconds

pytestmark = BOTH_LOOPS
linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


class Bare:
    """A transport that has nothing but a socket."""

    def __init__(self, sock) -> None:
        self.sock = sock

    def get_extra_info(self, name: str):
        assert name == "socket"
        return self.sock


@pytest.fixture
def pair():
    """Both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        server, _ = listening.accept()
    with client, server:
        yield server, client


class TestPlatforms:
    def test_linux_limits_unsent_data_and_the_time_without_acknowledgment(self):
        assert socket_options("linux", 60.0) == ((socket.IPPROTO_TCP, 25, 16384), (socket.IPPROTO_TCP, 18, 60_000))

    def test_macos_has_other_constants_and_seconds(self):
        assert socket_options("darwin", 60.0) == ((socket.IPPROTO_TCP, 0x201, 16384), (socket.IPPROTO_TCP, 0x80, 60))

    @pytest.mark.parametrize("platform", ["win32", "freebsd14"])
    def test_other_platforms_use_a_small_send_buffer(self, platform):
        assert socket_options(platform, 60.0) == ((socket.SOL_SOCKET, socket.SO_SNDBUF, 65536),)

    @pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
    def test_without_a_stall_timeout_the_timeout_option_is_not_set(self, platform):
        assert len(socket_options(platform, None)) == 1

    @pytest.mark.parametrize(("platform", "value"), [("linux", 1), ("darwin", 1)])
    def test_a_tiny_timeout_is_rounded_up_because_zero_means_none(self, platform, value):
        assert socket_options(platform, 0.0001)[1][2] == value

    @linux
    def test_the_constants_match_the_socket_module(self):
        assert [name for _, name, _ in socket_options("linux", 1.0)] == [
            getattr(socket, "TCP_NOTSENT_LOWAT", 25),
            socket.TCP_USER_TIMEOUT,
        ]


@linux
class TestSocket:
    def test_options_are_set_and_restored_once(self, pair):
        server, _ = pair
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1234)
        options = SocketOptions(Bare(server), 2.5)
        assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 2500
        assert server.getsockopt(socket.IPPROTO_TCP, 25) == 16384
        options.restore()
        assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1234
        assert server.getsockopt(socket.IPPROTO_TCP, 25) == 0
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 99)
        options.restore()
        assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 99

    @pytest.mark.parametrize("platform", ["win32"])
    def test_other_platforms_set_the_send_buffer_and_report_no_acknowledgments(self, pair, platform, monkeypatch):
        monkeypatch.setattr("aiohttp_interceptors.web.transport.PLATFORM", platform)
        server, _ = pair
        before = server.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        options = SocketOptions(Bare(server), 2.5)
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * 65536  # Linux doubles the value
        assert (options.acked_bytes(), options.unacked_bytes()) == (None, 0)
        options.restore()
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) in {before, 2 * before}

    def test_acknowledged_bytes_are_counted_exactly(self, pair):
        server, client = pair
        options = SocketOptions(Bare(server), 2.5)
        first = options.acked_bytes()
        server.sendall(b"x" * 1000)
        assert client.recv(1000, socket.MSG_WAITALL) == b"x" * 1000
        while options.unacked_bytes():
            pass
        assert options.acked_bytes() - first == 1000

    def test_unacknowledged_bytes_are_counted_exactly(self, pair):
        server, _ = pair
        options = SocketOptions(Bare(server), 2.5)
        first, sent = options.acked_bytes(), 0
        server.setblocking(False)
        while True:
            try:
                sent += server.send(b"x" * 65536)
            except BlockingIOError:
                break
        assert options.unacked_bytes() > 0
        assert options.acked_bytes() - first + options.unacked_bytes() == sent

    def test_a_closed_socket_is_ignored(self, pair):
        server, _ = pair
        options = SocketOptions(Bare(server), 2.5)
        server.close()
        assert (options.acked_bytes(), options.unacked_bytes()) == (None, 0)
        options.restore()
        SocketOptions(Bare(server), 2.5).restore()

    def test_a_unix_socket_and_a_transport_without_a_socket_are_ignored(self):
        one, other = socket.socketpair()
        with one, other:
            one.sendall(b"x")
            for sock in (one, None):
                options = SocketOptions(Bare(sock), 2.5)
                assert (options.acked_bytes(), options.unacked_bytes()) == (None, 0)
                options.restore()


@linux
class TestStream:
    async def test_a_reused_connection_has_its_previous_settings(self, serve):
        seen = []
        opened = asyncio.Event()
        channels = []

        def settings_of(transport) -> tuple:
            sock = transport.get_extra_info("socket")
            return (
                sock.getsockopt(socket.IPPROTO_TCP, 25),
                sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
                transport.get_write_buffer_limits(),
                transport.is_reading(),
                type(transport.get_protocol()).__name__,
            )

        async def other(request: web.Request) -> web.Response:
            seen.append(settings_of(request.transport))
            return web.Response(text="other")

        def ready(channel, context) -> None:
            seen.append(settings_of(context.request.transport))
            channels.append(channel)
            opened.set()

        app = web.Application()
        setup(app)
        app.router.add_get("/", as_handler(start_event_stream(ready, stall_timeout=7.5)))
        app.router.add_get("/other", other)
        server = await serve(app)
        raw = await server.connect(KEEP.replace("/ ", "/other "))
        await raw.until(b"other")
        raw.writer.write(KEEP.replace("\n", "\r\n").encode())
        await asyncio.wait_for(opened.wait(), TIMEOUT)
        channels[0].close()
        await raw.until(b"0\r\n\r\n")
        raw.writer.write(KEEP.replace("/ ", "/other ").replace("\n", "\r\n").encode())
        await raw.until(b"other")
        before, during, after = seen
        assert during == (16384, 7500, (4096, 16384), True, "InterposedProtocol")
        assert before == after
        assert before[:2] == (0, 0)
        await raw.close()
