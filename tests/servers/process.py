"""A server's process: started on a free port, killed, frozen, thawed and started again, and surely ended."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path

PATIENCE = 20.0  # seconds that a server has to answer, or to end, on a busy machine
EPHEMERAL = 32_768  # the first port that Linux gives to an outgoing connection
LOOK = 0.01  # seconds between two looks whether it answers


def free_port() -> int:
    """Return a free port, of those that the kernel gives to no connection: it may stay free for a moment."""
    chance = random.SystemRandom()
    while True:
        port = chance.randrange(10_000, EPHEMERAL)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:  # it is somebody's
            continue
        return port


class ServerProcess(ABC):
    """One server. All is synchronous, so that fixtures of any scope can have it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.environment: dict[str, str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def command(self) -> list[str]:
        """Return how it is started."""

    @abstractmethod
    def answers(self) -> bool:
        """Tell whether it is there and serves."""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it in its folder, on its port, and wait until it answers."""
        assert not self.running
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, env=self.environment,
            )  # fmt: skip
        deadline = time.monotonic() + PATIENCE
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{self.command()} does not serve: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(LOOK)

    def kill(self) -> None:
        """Kill it and all its children, as a power failure does. Twice is once."""
        if self._process is not None:
            for victim in self.processes():
                _signal(victim, signal.SIGKILL)
            self._process.wait(PATIENCE)

    def stop(self) -> None:
        """End it in order. Twice is once."""
        if self._process is not None and self._process.poll() is None:
            self.thaw()
            self._process.send_signal(self.stop_signal)
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.kill()

    stop_signal = signal.SIGTERM

    def restart(self) -> None:
        """Start it again, with what it has kept."""
        self.start()

    def freeze(self) -> None:
        """Have it hold still, with all its connections open."""
        for one in self.processes():
            _signal(one, signal.SIGSTOP)

    def thaw(self) -> None:
        """Have it go on. Twice is once."""
        for one in self.processes():
            _signal(one, signal.SIGCONT)

    def processes(self) -> list[int]:
        """Return the process and its children."""
        found: list[int] = [self.pid]
        known: dict[int, list[int]] = {}
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                process, _, rest = status.read_text().partition(" (")
            except OSError:  # it has ended meanwhile
                continue
            known.setdefault(int(rest.rpartition(") ")[2].split()[1]), []).append(int(process))
        for pid in found:
            found += known.get(pid, [])
        return found

    def accepts(self) -> bool:
        """Tell whether its port is open."""
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
