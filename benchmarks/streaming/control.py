"""The commands of the client, the same for all servers."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path

Sink = Callable[[str], Awaitable[object]]

SIZE = 100  # bytes of an event's data


@cache
def texts(count: int) -> list[str]:
    """Return the data of numbered events."""
    return [f"{number:08d}".ljust(SIZE, "x") for number in range(count)]


@cache
def frames(count: int) -> list[bytes]:
    """Return the same events, encoded."""
    return [f"data: {text}\n\n".encode() for text in texts(count)]


class Load:
    """The events that the streams of one measurement wait for, and the sinks of paced streams."""

    def __init__(self) -> None:
        self.start = asyncio.Event()
        self.done = asyncio.Event()
        self.sinks: list[Sink] = []

    async def send_paced(self, events: int) -> None:
        """Send one event to all streams, then yield to the event loop, and repeat."""
        for text in texts(events):
            for sink in self.sinks:
                await sink(text)
            await asyncio.sleep(0)


class Control:
    """The state of a server that the client controls."""

    def __init__(self) -> None:
        self.load = Load()
        self.closed: dict[int, float] = {}  # when the server detected a disconnect, by number
        self.refused: dict[int, float] = {}  # when a waiting put returned False, by number
        self.tasks: set[asyncio.Task[None]] = set()

    def execute(self, verb: str, events: int) -> object:
        """Execute a command, and return its result."""
        match verb:
            case "new":
                self.load = Load()
                frames(events)
            case "burst":
                self.load.start.set()
            case "paced":
                self.tasks.add(asyncio.create_task(self.load.send_paced(events)))
            case "done":
                self.load.done.set()
            case "memory":
                gc.collect()
                return {"rss": resident(), "tasks": len(asyncio.all_tasks()), "timers": timers()}
            case "disconnects":
                return {"closed": self.closed, "refused": self.refused}
        return {}


def resident() -> int:
    """Return the resident set size of this process in bytes."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss:"))


def timers() -> int:
    """Return the number of pending timers of asyncio's event loop."""
    now = time.monotonic()
    found = [thing for thing in gc.get_objects() if isinstance(thing, asyncio.TimerHandle)]
    return sum(not timer.cancelled() and timer.when() > now for timer in found)
