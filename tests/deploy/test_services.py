"""The application of ``docs/deploy`` under systemd, gunicorn and Kubernetes."""

from __future__ import annotations

import asyncio
import configparser
import inspect
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
import yaml
from aiohttp import ClientSession, TCPConnector

from aiohttp_interceptors import Drain, Hub, live_handler
from aiohttp_interceptors.brokers.sqlite import SqliteBroker
from aiohttp_interceptors.testing import open_stream
from tests.servers.engines import needs
from tests.servers.process import free_port
from tests.servers.proxies import DEPLOY, PROXIES
from tests.waiting import TIMEOUT, until, within

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither systemd nor gunicorn")

ROOT = DEPLOY.parents[1]

ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.execv(sys.executable, [sys.executable, "-W", "error", "shop.py"])
"""


class Shop:
    """The application, whose history is a file in a temporary folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.history = folder / "events.sqlite3"
        text = (DEPLOY / "shop.py").read_text()
        (folder / "shop.py").write_text(replaced(text, "/var/lib/shop/events.sqlite3", str(self.history)))

    @asynccontextmanager
    async def run(self, *command: str, **options: object):
        """Run a process, and kill it with its children when the block ends."""
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=self.folder,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
            **{"env": self.environment, **options},
        )
        try:
            yield process
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            await process.wait()

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{self.folder}"}


def replaced(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


@pytest.fixture
def shop(tmp_path):
    return Shop(tmp_path)


@pytest.fixture
async def hub(shop):
    hub = Hub(SqliteBroker(shop.history))
    yield hub
    await hub.close()


@pytest.fixture
def started(tmp_path):
    """Return a function that starts a proxy."""
    with ExitStack() as stack:

        def start(program: str):
            proxy = PROXIES[program](tmp_path / program)
            proxy.start()
            stack.callback(proxy.kill)
            return proxy

        yield start


@pytest.fixture
async def session():
    async with ClientSession(connector=TCPConnector(ssl=False)) as session:
        yield session


def activated(shop: Shop, listener: socket.socket):
    """Run the application as systemd does: the socket is descriptor 3, and it stays open when the process ends."""
    fd = listener.fileno()
    environment = {**shop.environment, "LISTEN_FDS": "1"}
    return shop.run(sys.executable, "-c", ACTIVATE, str(fd), pass_fds=(fd,), env=environment)


@pytest.mark.parametrize("program", ["nginx", "haproxy"])
async def test_a_browser_that_reconnects_while_systemd_restarts_the_application_waits(
    shop, hub, program, started, session
):
    proxy = started(program)
    with socket.create_server(("127.0.0.1", proxy.backend), backlog=4096) as listener:
        url = f"{proxy.url}/prices"
        async with activated(shop, listener) as process, open_stream(session, url, timeout=TIMEOUT) as stream:
            await within(hub.publish("prices", "one"))
            assert (await stream.next()).data == "one"
            process.send_signal(signal.SIGTERM)
            assert await stream.rest() == []
            last = stream.last_event_id
            assert await within(process.wait()) == 0
        await within(hub.publish("prices", "two"))
        again = open_stream(session, url, last_event_id=last, timeout=TIMEOUT)
        opening = asyncio.ensure_future(again.__aenter__())
        await until(lambda: waiting_connections(listener) == 1)
        async with activated(shop, listener):
            stream = await within(opening)
            assert stream.response.status == 200
            assert (await stream.next()).data == "two"
            await again.__aexit__(None, None, None)


def waiting_connections(listener: socket.socket) -> int:
    """Return the number of connections of a listening socket that were not accepted. Source: tcp_info, tcpi_unacked."""
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int.from_bytes(info[24:28], sys.byteorder)


async def test_gunicorn_workers_are_one_hub(shop, hub, session):
    port = free_port()
    (shop.folder / "gunicorn.conf.py").write_text(
        replaced((DEPLOY / "gunicorn.conf.py").read_text(), "127.0.0.1:8080", f"127.0.0.1:{port}")
    )
    url = f"http://127.0.0.1:{port}/prices"
    async with shop.run(sys.executable, "-m", "gunicorn", "--config", "gunicorn.conf.py", "shop:app") as process:
        await listening(port)
        async with open_stream(session, url, timeout=TIMEOUT) as one, open_stream(session, url, timeout=TIMEOUT) as two:
            await within(hub.publish("prices", "one"))
            assert [(await one.next()).data, (await two.next()).data] == ["one", "one"]
            process.send_signal(signal.SIGTERM)
            assert [await one.rest(), await two.rest()] == [[], []]
        assert await within(process.wait()) == 0


async def listening(port: int) -> None:
    """Wait until a port is open."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.01)
                continue
            writer.close()
            return await writer.wait_closed()


def test_systemd_accepts_the_units(tmp_path):
    verify = needs("systemd-analyze", shutil.which("systemd-analyze"))
    units = [tmp_path / "shop.socket", tmp_path / "shop.service"]
    for unit in units:
        text = (DEPLOY / unit.name).read_text()
        unit.write_text(text.replace("/srv/shop/.venv/bin/python", sys.executable).replace("User=shop", "User=root"))
    done = subprocess.run([verify, "verify", "--man=no", *units], capture_output=True, text=True, check=False)
    found = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "shop." in line]
    assert (done.returncode, found) == (0, []), done.stderr


SHUTDOWN_TIMEOUT = float(re.search(r"shutdown_timeout=(\d+)", (DEPLOY / "shop.py").read_text())[1])


def longest_stop(shutdown_timeout: float = SHUTDOWN_TIMEOUT) -> float:
    """Return the seconds of a stop with ordinary requests and a Hub whose broker does not answer."""
    drain = Drain()
    return drain.grace + drain.timeout + 1 + 2 * shutdown_timeout + 50


def test_a_process_has_time_to_stop_before_it_is_killed():
    units = configparser.ConfigParser(interpolation=None)
    units.read(DEPLOY / "shop.service")
    assert units.getfloat("Service", "TimeoutStopSec") >= longest_stop()
    settings: dict[str, object] = {}
    exec((DEPLOY / "gunicorn.conf.py").read_text(), settings)
    assert settings["graceful_timeout"] >= longest_stop(shutdown_timeout=0)
    (pod,) = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    spec = pod["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    asleep = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert spec["terminationGracePeriodSeconds"] >= asleep + longest_stop()
    max_lag = inspect.signature(live_handler).parameters["max_lag"].default
    assert container["livenessProbe"]["timeoutSeconds"] > max_lag


async def test_the_command_of_a_pod_answers_its_probes_and_receives_the_signal_of_its_end(shop, session):
    (pod,) = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    (container,) = pod["spec"]["template"]["spec"]["containers"]
    assert container["ports"] == [{"containerPort": 8080}]
    port = free_port()
    program = shop.folder / "shop.py"
    program.write_text(replaced(program.read_text(), '"port": 8080', f'"port": {port}'))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}"
    async with shop.run(*container["command"], env={**shop.environment, "PATH": path}) as process:
        await listening(port)
        for probe in ("readinessProbe", "livenessProbe"):
            asked = container[probe]["httpGet"]
            assert asked["port"] == 8080
            await answers(session, f"http://127.0.0.1:{port}{asked['path']}")
        process.send_signal(signal.SIGTERM)
        assert await within(process.wait()) == 0


async def answers(session: ClientSession, url: str) -> None:
    """Wait until a probe is answered with 200. The process is not ready before its Hub has read the history."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            async with session.get(url) as response:
                assert response.status in (200, 503)
                if response.status == 200:
                    return


def test_the_page_shows_the_files_that_are_tested():
    page = (DEPLOY.parent / "deploy.md").read_text()
    shown = re.findall(r"^```\w*\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    for file in DEPLOY.iterdir():
        assert file.read_text() in shown, f"deploy.md does not show {file.name} as it is"
