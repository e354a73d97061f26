from __future__ import annotations

import asyncio
import socket
import sys

import pytest
from aiohttp import web

from aiohttp_interceptors import as_handler, setup, start_event_stream
from aiohttp_interceptors.web.transport import SocketOptions, options_on
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture

KEEP = "GET / HTTP/1.1\nHost: x\n\n"
PATIENCE = 10.0

pytestmark = BOTH_LOOPS
linux = pytest.mark.skipif(sys.platform != "linux", reason="the options of Linux")


class Bare:
    """A transport that only has a socket."""

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


class TestOnAPlatform:
    def test_linux_says_early_that_a_client_is_slow_and_at_last_that_it_is_gone(self):
        assert options_on("linux", 60.0) == ((socket.IPPROTO_TCP, 25, 16384), (socket.IPPROTO_TCP, 18, 60_000))

    def test_macos_does_with_other_numbers_and_in_seconds(self):
        assert options_on("darwin", 60.0) == ((socket.IPPROTO_TCP, 0x201, 16384), (socket.IPPROTO_TCP, 0x80, 60))

    @pytest.mark.parametrize("platform", ["win32", "freebsd14"])
    def test_elsewhere_the_kernel_gets_a_small_buffer(self, platform):
        assert options_on(platform, 60.0) == ((socket.SOL_SOCKET, socket.SO_SNDBUF, 65536),)

    @pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
    def test_without_a_stall_limit_the_kernel_has_none_either(self, platform):
        assert len(options_on(platform, None)) == 1

    @pytest.mark.parametrize(("platform", "value"), [("linux", 1), ("darwin", 1)])
    def test_a_tiny_limit_is_not_zero_which_would_mean_none(self, platform, value):
        assert options_on(platform, 0.0001)[1][2] == value

    @linux
    def test_the_numbers_are_those_of_this_kernel(self):
        assert [name for _, name, _ in options_on("linux", 1.0)] == [
            getattr(socket, "TCP_NOTSENT_LOWAT", 25),
            socket.TCP_USER_TIMEOUT,
        ]


@linux
class TestOnASocket:
    def test_they_are_set_and_what_was_there_is_put_back_once(self, pair):
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
    def test_a_platform_without_them_gets_a_send_buffer_and_cannot_tell_what_was_taken(
        self, pair, platform, monkeypatch
    ):
        monkeypatch.setattr("aiohttp_interceptors.web.transport.PLATFORM", platform)
        server, _ = pair
        before = server.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        options = SocketOptions(Bare(server), 2.5)
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * 65536  # Linux doubles what is asked for
        assert (options.acknowledged(), options.unacknowledged()) == (None, 0)
        options.restore()
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) in {before, 2 * before}

    def test_what_the_client_has_taken_is_known_to_the_byte(self, pair):
        server, client = pair
        options = SocketOptions(Bare(server), 2.5)
        first = options.acknowledged()
        server.sendall(b"x" * 1000)
        assert client.recv(1000, socket.MSG_WAITALL) == b"x" * 1000
        while options.unacknowledged():
            pass
        assert options.acknowledged() - first == 1000

    def test_what_a_client_does_not_take_is_owed(self, pair):
        server, _ = pair
        options = SocketOptions(Bare(server), 2.5)
        first, sent = options.acknowledged(), 0
        server.setblocking(False)
        while True:
            try:
                sent += server.send(b"x" * 65536)
            except BlockingIOError:
                break
        assert options.unacknowledged() > 0
        assert options.acknowledged() - first + options.unacknowledged() == sent

    def test_a_closed_socket_owes_nothing_and_is_left_alone(self, pair):
        server, _ = pair
        options = SocketOptions(Bare(server), 2.5)
        server.close()
        assert (options.acknowledged(), options.unacknowledged()) == (None, 0)
        options.restore()
        SocketOptions(Bare(server), 2.5).restore()

    def test_a_unix_socket_and_a_transport_without_one_are_left_alone(self):
        one, other = socket.socketpair()
        with one, other:
            one.sendall(b"x")
            for sock in (one, None):
                options = SocketOptions(Bare(sock), 2.5)
                assert (options.acknowledged(), options.unacknowledged()) == (None, 0)
                options.restore()


@linux
class TestOnAStream:
    async def test_a_reused_connection_is_as_it_was_before_the_stream(self, serve):
        """peer bug 11: socket options and the transport's limits are those of the next request again."""
        seen = []
        opened = asyncio.Event()
        channels = []

        def look(transport) -> tuple:
            sock = transport.get_extra_info("socket")
            return (
                sock.getsockopt(socket.IPPROTO_TCP, 25),
                sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
                transport.get_write_buffer_limits(),
                transport.is_reading(),
                type(transport.get_protocol()).__name__,
            )

        async def other(request: web.Request) -> web.Response:
            seen.append(look(request.transport))
            return web.Response(text="other")

        def ready(channel, context) -> None:
            seen.append(look(context.request.transport))
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
        await asyncio.wait_for(opened.wait(), PATIENCE)
        channels[0].close()
        await raw.until(b"0\r\n\r\n")
        raw.writer.write(KEEP.replace("/ ", "/other ").replace("\n", "\r\n").encode())
        await raw.until(b"other")
        before, during, after = seen
        assert during == (16384, 7500, (4096, 16384), True, "Watcher")
        assert before == after
        assert before[:2] == (0, 0)
        await raw.close()
