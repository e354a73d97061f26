"""Streams in a server of its own process, stopped by the signals that stop servers."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of this kind are POSIX's")

ROOT = Path(__file__).parents[1]
PATIENCE = 60.0  # seconds; a busy machine takes its time to start a process
FAREWELL = b"\r\nevent: farewell\ndata: bye\nretry: "
END = b"\r\n0\r\n\r\n"

APPLICATION = """
import asyncio
from aiohttp import web
from aiohttp_sse import sse_response
from aiohttp_interceptors import Drain, Event, EventStreamResponse, as_handler, setup, start_event_stream


async def ticks(channel, context):
    while await channel.put("tick"):
        await asyncio.sleep(0.01)


async def idle(channel, context):
    await channel.put("tick")
    await asyncio.Event().wait()


async def slow(channel, context):
    await channel.put("tick")
    try:
        await asyncio.Event().wait()
    finally:
        print("cleaning up", flush=True)
        await asyncio.Event().wait()


async def queue(request):
    async with sse_response(request, response_cls=EventStreamResponse, sep="\\n") as stream:
        await stream.send("tick")
        try:
            while True:
                await stream.send(await asyncio.Queue().get())
        finally:
            print("handler ended", flush=True)


def make_app(**options):
    app = web.Application()
    setup(app, drain=Drain(farewell=Event("bye", name="farewell"), **options))
    app.router.add_get("/ticks", as_handler(start_event_stream(ticks, retry=1000)))
    app.router.add_get("/idle", as_handler(start_event_stream(idle, retry=1000)))
    app.router.add_get("/finite", as_handler(start_event_stream(ticks, retry=1000, finite=True)))
    app.router.add_get("/queue", queue)
    app.router.add_get("/slow", as_handler(start_event_stream(slow)))
    return app
"""

RUN_APP = """
import sys
from application import make_app, web

web.run_app(
    make_app(grace=float(sys.argv[2]), timeout=float(sys.argv[3])),
    host="127.0.0.1",
    port=int(sys.argv[1]),
    access_log=None,
    shutdown_timeout=1000,
    print=lambda _: print("listening", flush=True),
)
"""


@pytest.fixture
def program(tmp_path):
    """Write the programs, and return how one of them is run: with warnings as errors, until the block ends."""
    (tmp_path / "application.py").write_text(APPLICATION)
    (tmp_path / "served.py").write_text("from application import make_app\napp = make_app()\n")
    (tmp_path / "run.py").write_text(RUN_APP)

    @asynccontextmanager
    async def run(*arguments: str):
        process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, cwd=tmp_path, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        )  # fmt: skip
        try:
            yield process
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)  # a worker may have outlived its master
            except ProcessLookupError:
                pass
            await process.communicate()

    return run


def run_app(port: int, grace: float = 0.0, timeout: float = 1000.0) -> list[str]:
    return ["-W", "error", "run.py", str(port), str(grace), str(timeout)]


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


async def until_line(stream: asyncio.StreamReader, pattern: str) -> re.Match[str]:
    """Read up to a line that matches."""
    async with asyncio.timeout(PATIENCE):
        while line := (await stream.readline()).decode():
            if match := re.search(pattern, line):
                return match
    raise AssertionError(f"the process ended without {pattern!r}")


async def opened(port: int, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a stream and read up to its first event."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    async with asyncio.timeout(PATIENCE):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        await reader.readuntil(b"data: tick\n")
    return reader, writer


async def rest(client) -> bytes:
    """Read what still comes, until the server closes."""
    reader, writer = client
    async with asyncio.timeout(PATIENCE):
        data = await reader.read()
    writer.close()
    return data


async def outcome(process) -> tuple[int, str, str]:
    async with asyncio.timeout(PATIENCE):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_run_app_ends_its_streams_cleanly_and_exits(program, port, number):
    """The farewell, a time to return and the end of the body, though ``shutdown_timeout`` is 1,000 s."""
    async with program(*run_app(port)) as process:
        await until_line(process.stdout, "listening")
        clients = [await opened(port, path) for path in ("/ticks", "/idle", "/finite") for _ in range(3)]
        cut = clients[6:]  # their producer would have ended them
        process.send_signal(number)
        for client in clients:
            body = await rest(client)
            assert body.count(FAREWELL) == 1
            assert body.endswith(END) is (client not in cut)
        status, _, err = await outcome(process)
    assert (status, err) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_handler_of_aiohttp_sse_s_interface_that_waits_in_a_queue_does_not_hold_up_the_end(
    program, port, number
):
    async with program(*run_app(port, timeout=10.0)) as process:
        await until_line(process.stdout, "listening")
        clients = [await opened(port, "/queue") for _ in range(3)]
        left = await opened(port, "/queue")
        left[1].close()
        process.send_signal(number)
        for client in clients:
            body = await rest(client)
            assert b"event: farewell\ndata: bye\n\n" in body
            assert body.endswith(END)
        status, out, err = await outcome(process)
    assert (status, err) == (0, "")
    assert out.count("handler ended") == 4


async def test_a_second_ctrl_c_ends_a_long_grace_at_once(program, port):
    async with program(*run_app(port, grace=1000)) as process:
        await until_line(process.stdout, "listening")
        finite, endless = await opened(port, "/finite"), await opened(port, "/ticks")
        process.send_signal(signal.SIGINT)
        assert (await rest(endless)).endswith(END)  # it has seen the signal
        async with asyncio.timeout(PATIENCE):
            await finite[0].readuntil(b"data: tick\n")  # and this one goes on
        process.send_signal(signal.SIGINT)
        body = await rest(finite)
        _, _, err = await outcome(process)
    assert FAREWELL not in body
    assert err == ""


async def test_a_second_ctrl_c_ends_a_long_timeout_at_once(program, port):
    """peer bug 28: clean-up code that hangs does not hold up the person at the terminal."""
    async with program(*run_app(port)) as process:
        await until_line(process.stdout, "listening")
        client = await opened(port, "/slow")
        process.send_signal(signal.SIGINT)
        await until_line(process.stdout, "cleaning up")
        process.send_signal(signal.SIGINT)
        await rest(client)
        _, _, err = await outcome(process)
    assert err == ""


async def test_a_server_restarts_on_its_port_while_a_browser_is_there(program, port):
    """peer bug 25: the browser's connection is still open when the next server comes, and it returns by itself."""
    async with program(*run_app(port)) as process:
        await until_line(process.stdout, "listening")
        reader, writer = await opened(port, "/ticks")
        process.send_signal(signal.SIGINT)
        status, _, err = await outcome(process)
        assert (status, err) == (0, "")
        async with program(*run_app(port)) as successor:
            await until_line(successor.stdout, "listening")
            async with asyncio.timeout(PATIENCE):
                assert (await reader.read()).endswith(END)
            writer.close()
            again = await opened(port, "/ticks")
            successor.send_signal(signal.SIGINT)
            assert (await rest(again)).endswith(END)
            status, _, err = await outcome(successor)
            assert (status, err) == (0, "")


OLD_WORKER = pytest.mark.skipif(
    aiohttp.__version__.startswith("3.12."),
    reason="aiohttp 3.12's worker asks uvloop for a loop that it no longer makes",
)


@pytest.mark.parametrize("worker", ["GunicornWebWorker", pytest.param("GunicornUVLoopWebWorker", marks=OLD_WORKER)])
async def test_gunicorn_ends_its_streams_cleanly_and_exits(program, worker):
    """peer bug 23: SIGTERM to the master, as systemd and Kubernetes send it."""
    arguments = ["--worker-class", f"aiohttp.{worker}", "--bind", "127.0.0.1:0", "--graceful-timeout", "1000"]
    async with program("-m", "gunicorn", *arguments, "served:app") as process:
        port = int((await until_line(process.stderr, r"Listening at: http://127\.0\.0\.1:(\d+) "))[1])
        clients = [await opened(port, path) for path in ("/ticks", "/idle") for _ in range(3)]
        process.send_signal(signal.SIGTERM)
        for client in clients:
            body = await rest(client)
            assert body.count(FAREWELL) == 1
            assert body.endswith(END)
        status, _, err = await outcome(process)
    assert status == 0
    assert not re.search(r"Traceback|\[WARNING\]|\[ERROR\]|\[CRITICAL\]", err)
