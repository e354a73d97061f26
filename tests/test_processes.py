"""Streams of a server process that is stopped by SIGINT or SIGTERM."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.program import outcome
from tests.servers.process import free_port

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no POSIX signals")

ROOT = Path(__file__).parents[1]
TIMEOUT = 60.0  # seconds, long enough to start a process on a busy machine
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
    """Write the programs, and return a context manager that runs one of them and kills it when the block ends."""
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
                os.killpg(process.pid, signal.SIGKILL)  # the group, since a worker may outlive its master
            except ProcessLookupError:
                pass
            await process.communicate()

    return run


def run_app(port: int, grace: float = 0.0, timeout: float = 1000.0) -> list[str]:
    return ["-W", "error", "run.py", str(port), str(grace), str(timeout)]


@pytest.fixture
def port():
    return free_port()


async def until_line(stream: asyncio.StreamReader, pattern: str) -> re.Match[str]:
    """Read up to a line that matches a pattern."""
    async with asyncio.timeout(TIMEOUT):
        while line := (await stream.readline()).decode():
            if match := re.search(pattern, line):
                return match
    raise AssertionError(f"the process ended without {pattern!r}")


async def open_ticks(port: int, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a stream and read up to its first event."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    async with asyncio.timeout(TIMEOUT):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        await reader.readuntil(b"data: tick\n")
    return reader, writer


async def read_to_end(client) -> bytes:
    """Read until the server closes the connection."""
    reader, writer = client
    async with asyncio.timeout(TIMEOUT):
        data = await reader.read()
    writer.close()
    return data


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_run_app_ends_its_streams_cleanly_and_exits(program, port, number):
    """Each stream ends with the final event and a reconnection time, although ``shutdown_timeout`` is 1,000 s."""
    async with program(*run_app(port)) as process:
        await until_line(process.stdout, "listening")
        clients = [await open_ticks(port, path) for path in ("/ticks", "/idle", "/finite") for _ in range(3)]
        finite = clients[6:]  # the body of a finite stream is not terminated, so that the client sees a failure
        process.send_signal(number)
        for client in clients:
            body = await read_to_end(client)
            assert body.count(FAREWELL) == 1
            assert body.endswith(END) is (client not in finite)
        status, _, err = await outcome(process)
    assert (status, err) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_aiohttp_sse_handler_that_waits_for_a_queue_does_not_delay_the_shutdown(program, port, number):
    async with program(*run_app(port, timeout=10.0)) as process:
        await until_line(process.stdout, "listening")
        clients = [await open_ticks(port, "/queue") for _ in range(3)]
        disconnected = await open_ticks(port, "/queue")
        disconnected[1].close()
        process.send_signal(number)
        for client in clients:
            body = await read_to_end(client)
            assert b"event: farewell\ndata: bye\n\n" in body
            assert body.endswith(END)
        status, out, err = await outcome(process)
    assert (status, err) == (0, "")
    assert out.count("handler ended") == 4


async def test_a_second_ctrl_c_ends_a_long_grace_period_immediately(program, port):
    async with program(*run_app(port, grace=1000)) as process:
        await until_line(process.stdout, "listening")
        finite, endless = await open_ticks(port, "/finite"), await open_ticks(port, "/ticks")
        process.send_signal(signal.SIGINT)
        assert (await read_to_end(endless)).endswith(END)  # the server has handled the signal
        async with asyncio.timeout(TIMEOUT):
            await finite[0].readuntil(b"data: tick\n")  # the finite stream is still open
        process.send_signal(signal.SIGINT)
        body = await read_to_end(finite)
        _, _, err = await outcome(process)
    assert FAREWELL not in body
    assert err == ""


async def test_a_second_ctrl_c_ends_a_producer_whose_cleanup_hangs(program, port):
    async with program(*run_app(port)) as process:
        await until_line(process.stdout, "listening")
        client = await open_ticks(port, "/slow")
        process.send_signal(signal.SIGINT)
        await until_line(process.stdout, "cleaning up")
        process.send_signal(signal.SIGINT)
        await read_to_end(client)
        _, _, err = await outcome(process)
    assert err == ""


async def test_a_server_restarts_on_its_port_while_a_client_keeps_its_connection_open(program, port):
    async with program(*run_app(port)) as process:
        await until_line(process.stdout, "listening")
        reader, writer = await open_ticks(port, "/ticks")
        process.send_signal(signal.SIGINT)
        status, _, err = await outcome(process)
        assert (status, err) == (0, "")
        async with program(*run_app(port)) as successor:
            await until_line(successor.stdout, "listening")
            async with asyncio.timeout(TIMEOUT):
                assert (await reader.read()).endswith(END)
            writer.close()
            again = await open_ticks(port, "/ticks")
            successor.send_signal(signal.SIGINT)
            assert (await read_to_end(again)).endswith(END)
            status, _, err = await outcome(successor)
            assert (status, err) == (0, "")


OLD_WORKER = pytest.mark.skipif(
    aiohttp.__version__.startswith("3.12."),
    reason="the worker of aiohttp 3.12 does not work with this uvloop",
)


@pytest.mark.parametrize("worker", ["GunicornWebWorker", pytest.param("GunicornUVLoopWebWorker", marks=OLD_WORKER)])
async def test_gunicorn_ends_its_streams_cleanly_and_exits(program, worker):
    """SIGTERM goes to the master, as systemd and Kubernetes send it."""
    arguments = ["--worker-class", f"aiohttp.{worker}", "--bind", "127.0.0.1:0", "--graceful-timeout", "1000"]
    async with program("-m", "gunicorn", *arguments, "served:app") as process:
        port = int((await until_line(process.stderr, r"Listening at: http://127\.0\.0\.1:(\d+) "))[1])
        clients = [await open_ticks(port, path) for path in ("/ticks", "/idle") for _ in range(3)]
        process.send_signal(signal.SIGTERM)
        for client in clients:
            body = await read_to_end(client)
            assert body.count(FAREWELL) == 1
            assert body.endswith(END)
        status, _, err = await outcome(process)
    assert status == 0
    assert not re.search(r"Traceback|\[WARNING\]|\[ERROR\]|\[CRITICAL\]", err)
