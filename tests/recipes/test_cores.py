"""The recipe of a process for each core: workers that share a port, and their supervisor."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
from aiohttp import ClientError, ClientSession, TCPConnector

from aiohttp_interceptors.testing import open_stream
from tests.recipes.site import Recipe
from tests.servers.engines import needs
from tests.servers.proxies import DEPLOY
from tests.waiting import TIMEOUT, until, within

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux distributes the connections of a port")


@pytest.fixture
async def session():
    """Connect anew for each request, so that the kernel chooses a worker for it."""
    async with ClientSession(connector=TCPConnector(force_close=True)) as session:
        yield session


@pytest.fixture
def two_workers(run, monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    return run("cores", replace={"os.cpu_count() or 1": "2"})


@asynccontextmanager
async def streams_of_two_workers(session, server):
    """Open streams until there is one of each worker, and yield them by the PID of their worker."""
    async with AsyncExitStack() as stack:
        found = {}
        async with asyncio.timeout(TIMEOUT):
            while len(found) < 2:
                opening = open_stream(session, f"{server.url}/news", timeout=TIMEOUT)
                stream = await opening.__aenter__()
                if worker_of(stream.response) in found:
                    await opening.__aexit__(None, None, None)
                else:
                    found[worker_of(stream.response)] = stream
                    stack.push_async_exit(opening)
        yield found


def worker_of(response):
    return int(response.headers["X-Worker"])


async def say(session, server, text):
    """Publish a text, and return the PID of the worker that did it."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            with suppress(ClientError):  # a worker that is killed resets what it has not accepted
                async with session.post(f"{server.url}/news", data=text) as response:
                    assert response.status == 200
                    return worker_of(response)


async def events_reach_streams_of_the_other_worker(session, server):
    async with streams_of_two_workers(session, server) as streams:
        published_by = set()
        while len(published_by) < 2:
            published_by.add(await within(say(session, server, "hello")))
            assert [(await stream.next()).data for stream in streams.values()] == ["hello", "hello"]
        assert published_by == streams.keys()


def has_long_backlogs(port):
    """Return whether 4,096 connections, or as many as the kernel allows, may wait at each of two sockets."""
    ss = needs("ss", shutil.which("ss"))
    done = subprocess.run([ss, "-Hltn", f"sport = :{port}"], capture_output=True, text=True, check=True)
    longest = int(Path("/proc/sys/net/core/somaxconn").read_text())
    return [int(line.split()[2]) for line in done.stdout.splitlines()] == [min(4096, longest)] * 2


async def test_an_event_of_each_worker_reaches_the_streams_of_both(session, two_workers):
    await events_reach_streams_of_the_other_worker(session, two_workers)


async def test_browsers_that_reconnect_at_once_wait_at_a_socket_of_each_worker(session, two_workers):
    async with streams_of_two_workers(session, two_workers):
        assert has_long_backlogs(two_workers.port)


async def test_a_worker_that_was_killed_is_started_again_and_its_client_resumes(session, two_workers):
    async with streams_of_two_workers(session, two_workers) as streams:
        await say(session, two_workers, "one")
        for stream in streams.values():
            assert (await stream.next()).data == "one"
        (killed, cut), (_, other) = streams.items()
        os.kill(killed, signal.SIGKILL)
        with pytest.raises(ClientError):
            await cut.next()
        await say(session, two_workers, "two")
        assert (await other.next()).data == "two"
        resumed = open_stream(session, f"{two_workers.url}/news", last_event_id=cut.last_event_id, timeout=TIMEOUT)
        async with resumed as stream:
            assert (await stream.next()).data == "two"
    async with streams_of_two_workers(session, two_workers) as streams:
        assert killed not in streams
    assert f"worker {killed} ended with status -9" in (two_workers.folder / "log").read_text()


def terminate(recipe):
    os.kill(recipe.pid, signal.SIGTERM)


def press_ctrl_c(recipe):
    os.killpg(recipe.pid, signal.SIGINT)  # as a terminal does


def close_the_terminal(recipe):
    os.killpg(recipe.pid, signal.SIGHUP)


@pytest.mark.parametrize("stop", [terminate, press_ctrl_c, close_the_terminal])
async def test_all_workers_end_their_streams_in_order(session, two_workers, stop):
    async with streams_of_two_workers(session, two_workers) as streams:
        stop(two_workers)
        assert [await stream.rest() for stream in streams.values()] == [[], []]
        await until(lambda: not two_workers.running)
        assert not any(is_running(worker) for worker in streams)
    assert "ended with" not in (two_workers.folder / "log").read_text()


class UnderNohup(Recipe):
    def command(self):
        return [needs("nohup", shutil.which("nohup")), *super().command()]


async def test_under_nohup_the_end_of_the_terminal_stops_nothing(session, own, tmp_path):
    recipe = own(UnderNohup(tmp_path / "nohup", "cores", replace={"os.cpu_count() or 1": "2"}))
    async with streams_of_two_workers(session, recipe) as streams:
        close_the_terminal(recipe)
        (killed, cut), (goes_on, _) = streams.items()
        os.kill(killed, signal.SIGKILL)
        with pytest.raises(ClientError):
            await cut.next()
    async with streams_of_two_workers(session, recipe) as streams:
        assert goes_on in streams
        assert killed not in streams


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_second_supervisor_does_not_share_the_port_with_the_first(two_workers):
    second = await asyncio.create_subprocess_exec(
        *two_workers.command(), cwd=two_workers.folder, env=two_workers.environment, stderr=asyncio.subprocess.PIPE
    )
    try:
        assert await within(second.wait()) == 1
        assert b"Address already in use" in await second.stderr.read()
    finally:
        if second.returncode is None:
            second.terminate()
            await second.communicate()


class Gunicorn(Recipe):
    """The application of the recipe under gunicorn, as ``docs/deploy`` configures it."""

    def __init__(self, folder):
        super().__init__(folder, "cores")
        text = (DEPLOY / "gunicorn.conf.py").read_text()
        assert "127.0.0.1:8080" in text
        (folder / "gunicorn.conf.py").write_text(text.replace("127.0.0.1:8080", f"127.0.0.1:{self.port}"))
        self.environment["PYTHONPATH"] += f"{os.pathsep}{folder}"

    def command(self):
        return [sys.executable, "-m", "gunicorn", "--config", "gunicorn.conf.py", "cores:app"]


@pytest.fixture
def gunicorn(own, tmp_path):
    return own(Gunicorn(tmp_path / "gunicorn"))


async def test_with_gunicorn_an_event_of_each_worker_reaches_the_streams_of_both(session, gunicorn):
    await events_reach_streams_of_the_other_worker(session, gunicorn)


async def test_with_gunicorn_browsers_wait_at_a_socket_of_each_worker(session, gunicorn):
    async with streams_of_two_workers(session, gunicorn):
        assert has_long_backlogs(gunicorn.port)
