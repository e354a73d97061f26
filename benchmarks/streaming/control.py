"""What the client tells a server and asks it, the same for all servers."""

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
    """Return the data of the events, each with its number."""
    return [f"{number:08d}".ljust(SIZE, "x") for number in range(count)]


@cache
def frames(count: int) -> list[bytes]:
    """Return the same events as bytes."""
    return [f"data: {text}\n\n".encode() for text in texts(count)]


class Load:
    """What the streams of one measurement wait for, and where the paced ones take their events."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.done = asyncio.Event()
        self.sinks: list[Sink] = []

    async def pace(self, events: int) -> None:
        """Go round all streams, an event each, and let the event loop turn."""
        for text in texts(events):
            for sink in self.sinks:
                await sink(text)
            await asyncio.sleep(0)


class Control:
    """What the client tells a server, and asks it."""

    def __init__(self) -> None:
        self.load = Load()
        self.closed: dict[int, float] = {}  # when the server knew that a client had left
        self.refused: dict[int, float] = {}  # when a put that was waiting returned False
        self.tasks: set[asyncio.Task[None]] = set()

    def obey(self, verb: str, events: int) -> object:
        """Do it, and return what is known."""
        match verb:
            case "new":
                self.load = Load()
                frames(events)
            case "burst":
                self.load.go.set()
            case "paced":
                self.tasks.add(asyncio.create_task(self.load.pace(events)))
            case "done":
                self.load.done.set()
            case "memory":
                gc.collect()
                return {"rss": resident(), "tasks": len(asyncio.all_tasks()), "timers": timers()}
            case "left":
                return {"closed": self.closed, "refused": self.refused}
        return {}


def resident() -> int:
    """Return the bytes of memory that this process holds, as the kernel counts them."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss:"))


def timers() -> int:
    """Return how many timers of a stock event loop are still to go off."""
    now = time.monotonic()
    found = [thing for thing in gc.get_objects() if isinstance(thing, asyncio.TimerHandle)]
    return sum(not timer.cancelled() and timer.when() > now for timer in found)
