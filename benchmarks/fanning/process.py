"""A running server, pinned to one core, and its load, pinned to the other core."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Self

from .figures import Figures
from .peers import Peer, compiled

SERVER_CORE, LOAD_CORE = 0, 1
START_TIMEOUT = 20.0  # seconds that a server has to listen
STOP_TIMEOUT = 60.0  # seconds in which streams whose clients have left end
CONCURRENT_OPENS = 64


class Failed(Exception):
    """A server failed: it ended, or an event was lost, repeated or out of order."""


class Running:
    """A peer's server and its load. Both end with the block."""

    def __init__(self, peer: Peer, figures: Figures) -> None:
        self.peer = peer
        self._figures = figures
        self._start = peer.start()
        load = compiled("load")
        os.sched_setaffinity(0, {SERVER_CORE})  # inherited by the child process
        self._server = subprocess.Popen(
            self._start.command, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True
        )
        os.sched_setaffinity(0, {LOAD_CORE})
        try:
            port = self._start.port or int(self._read_line(self._server))
            self._wait_listening(port)
            self._port = port
            self._load = subprocess.Popen([load, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        except BaseException:
            self._stop(self._server)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop(self._server)  # before the load: a server may write when clients disconnect
        self._stop(self._load)
        if self._start.folder is not None:
            shutil.rmtree(self._start.folder, ignore_errors=True)

    def command(self, *words: object) -> Any:
        """Send a command to the load, and return its result. Raises ``Failed`` if the load reports an error."""
        assert self._load.stdin is not None
        print(*words, file=self._load.stdin, flush=True)
        result = json.loads(self._read_line(self._load))
        if "error" in result:
            raise Failed(f"{result['error']} ({' '.join(map(str, words))})")
        if "p99" in result:
            self._figures.max_load = max(self._figures.max_load, result["cpu"] / result["ns"])
        return result

    def open(
        self, streams: int, *, window: int = CONCURRENT_OPENS, first: int = 0, events: int = 0, after: str = "-"
    ) -> None:
        """Open more streams, and wait until each received its response head and ``events`` events."""
        self.command("open", streams, "/stream", window, first, events, after)

    def close(self, streams: int) -> None:
        """Close the oldest streams, and wait until a server of aiohttp has ended them."""
        left = int(self.post("/connections")) - streams
        self.command("close", streams)
        end = time.monotonic() + STOP_TIMEOUT
        while int(self.post("/connections")) > left:
            if time.monotonic() > end:
                raise Failed("streams of clients that left do not end")

    def publish(self, rounds: int, events: int = 1, size: int = 100) -> float:
        """Publish, and return the server's CPU seconds per delivery."""
        before = self.cpu()
        result = self.command("publish", rounds, events, size, events if self.peer.pipelines else 1)
        deliveries: int = result["deliveries"]
        return (self.cpu() - before) / max(1, deliveries)

    def post(self, path: str) -> bytes:
        """Send the server a POST request, and return the body of the response."""
        connection = HTTPConnection("127.0.0.1", self._port, timeout=START_TIMEOUT)
        connection.request("POST", path)
        response = connection.getresponse()
        body = response.read()
        assert response.status < HTTPStatus.BAD_REQUEST, body
        connection.close()
        return body

    def cpu(self) -> float:
        """Return the CPU seconds of the server's processes, in user and system mode."""
        # What clock_getcpuclockid(3) returns, which Python lacks. /proc counts in hundredths of a second.
        return sum(time.clock_gettime(~pid << 3 | 2) for pid in self._processes())

    def memory(self) -> int:
        """Return the proportional set size of the server's processes in bytes."""
        self.command("collect")
        total = 0
        for pid in self._processes():
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
            total += next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        return total

    def _processes(self) -> list[int]:
        pid = self._server.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
        return [pid, *map(int, children)]

    def _wait_listening(self, port: int) -> None:
        end = time.monotonic() + START_TIMEOUT
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=START_TIMEOUT).close()
            except ConnectionRefusedError:
                if time.monotonic() > end or self._server.poll() is not None:
                    raise Failed("does not listen") from None
                time.sleep(0.02)
            else:
                return

    def _read_line(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise Failed(f"a process ended ({process.args!r})")
        return line

    def _stop(self, process: subprocess.Popen[str]) -> None:
        """Kill a process. nginx gets SIGTERM, since it has to stop its worker."""
        if process is self._server and self._start.folder is not None:
            process.terminate()
        else:
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
