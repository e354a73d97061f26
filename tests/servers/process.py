"""A server process: start it on a free port, kill, freeze, thaw and restart it."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path

TIMEOUT = 20.0  # seconds to start or to end, on a busy machine
FIRST_EPHEMERAL_PORT = 32_768  # Linux uses the ports from here on for outgoing connections
POLL_INTERVAL = 0.01  # seconds


def free_port() -> int:
    """Return a free port that is not an ephemeral port, so that it is likely to stay free."""
    generator = random.SystemRandom()
    while True:
        port = generator.randrange(10_000, FIRST_EPHEMERAL_PORT)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:  # it is in use
            continue
        return port


class ServerProcess(ABC):
    """One server. All methods are synchronous, for fixtures of any scope."""

    stop_signal = signal.SIGTERM

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.environment: dict[str, str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command line."""

    @abstractmethod
    def answers(self) -> bool:
        """Return whether the server is ready."""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server in its folder, and wait until it is ready."""
        assert not self.running
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, env=self.environment,
            )  # fmt: skip
        deadline = time.monotonic() + TIMEOUT
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{self.command()} is not ready: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(POLL_INTERVAL)

    def kill(self) -> None:
        """Kill the server and its children, as a power failure does. Idempotent."""
        if self._process is not None:
            for pid in self.processes():
                _signal(pid, signal.SIGKILL)
            self._process.wait(TIMEOUT)

    def stop(self) -> None:
        """Shut the server down. Idempotent."""
        if self._process is not None and self._process.poll() is None:
            self.thaw()
            self._process.send_signal(self.stop_signal)
            try:
                self._process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                self.kill()

    def restart(self) -> None:
        """Start the server again, with what it has stored."""
        self.start()

    def freeze(self) -> None:
        """Suspend the server. Its connections stay open."""
        for pid in self.processes():
            _signal(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume the server. Idempotent."""
        for pid in self.processes():
            _signal(pid, signal.SIGCONT)

    def processes(self) -> list[int]:
        """Return the PIDs of the server and its descendants."""
        pids: list[int] = [self.pid]
        children: dict[int, list[int]] = {}
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                number, _, rest = status.read_text().partition(" (")
            except OSError:  # it has ended
                continue
            children.setdefault(int(rest.rpartition(") ")[2].split()[1]), []).append(int(number))
        for pid in pids:  # also those that are added here
            pids += children.get(pid, [])
        return pids

    def accepts(self) -> bool:
        """Return whether the port is open."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
