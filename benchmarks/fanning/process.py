"""A server that runs, pinned to its core, and the load that is put on it, pinned to the other one."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Self

from .figures import Figures
from .peers import Peer, compiled

SERVER_CORE, LOAD_CORE = 0, 1
PATIENCE = 20.0  # seconds that a server has to listen
AT_ONCE = 64  # opens on their way at the same time


class Failed(Exception):
    """A server did not do what is measured: an event was lost, came twice, or came not at all."""


class Running:
    """A peer's server and a load of its own, both of which end with the block."""

    def __init__(self, peer: Peer, figures: Figures) -> None:
        self.peer = peer
        self._figures = figures
        self._start = peer.start()
        load = compiled("load")
        os.sched_setaffinity(0, {SERVER_CORE})  # which a child inherits
        self._server = subprocess.Popen(  # commands of ours
            self._start.command, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True
        )
        os.sched_setaffinity(0, {LOAD_CORE})
        try:
            port = self._start.port or int(self._line(self._server))
            self._await_listening(port)
            self._load = subprocess.Popen(  # as above
                [load, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        except BaseException:
            self._end(self._server)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end(self._server)  # before its clients leave, of which some would write
        self._end(self._load)
        if self._start.folder is not None:
            shutil.rmtree(self._start.folder, ignore_errors=True)

    def tell(self, *words: object) -> Any:
        """Give the load a command, and return its answer. Raises ``Failed`` if something came wrong or not at all."""
        assert self._load.stdin is not None
        print(*words, file=self._load.stdin, flush=True)
        answer = json.loads(self._line(self._load))
        if "error" in answer:
            raise Failed(f"{answer['error']} ({' '.join(map(str, words))})")
        if "p99" in answer:
            self._figures.busiest = max(self._figures.busiest, answer["cpu"] / answer["ns"])
        return answer

    def open(self, streams: int, *, first: int = 0, events: int = 0, after: str = "-") -> None:
        """Open more streams, and wait until each has its head and so many events that it had missed."""
        self.tell("open", streams, "/stream", AT_ONCE, first, events, after)

    def publish(self, rounds: int, events: int = 1, size: int = 100) -> float:
        """Publish, and return the server's seconds of CPU per delivery."""
        before = self.cpu()
        answer = self.tell("publish", rounds, events, size, events if self.peer.pipelines else 1)
        deliveries: int = answer["deliveries"]
        return (self.cpu() - before) / max(1, deliveries)

    def cpu(self) -> float:
        """Return the seconds of CPU that the server's processes have taken, in user and system mode."""
        # clock_getcpuclockid(3) for another process, which Python has for threads only; /proc counts in hundredths
        return sum(time.clock_gettime(~pid << 3 | 2) for pid in self._processes())

    def memory(self) -> int:
        """Return the bytes of memory of the server's processes, what they share divided among them."""
        self.tell("collect")
        total = 0
        for pid in self._processes():
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
            total += next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        return total

    def _processes(self) -> list[int]:
        pid = self._server.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
        return [pid, *map(int, children)]

    def _await_listening(self, port: int) -> None:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
            except ConnectionRefusedError:
                if time.monotonic() > end or self._server.poll() is not None:
                    raise Failed("does not listen") from None
                time.sleep(0.02)
            else:
                return

    def _line(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise Failed(f"a process ended ({process.args!r})")
        return line

    def _end(self, process: subprocess.Popen[str]) -> None:
        """End a process at once; nginx is asked, for it has another one to end."""
        if process is self._server and self._start.folder is not None:
            process.terminate()
        else:
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
