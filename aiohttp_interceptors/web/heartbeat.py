"""The heartbeat of all streams of an event loop, from one timer."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from typing import Protocol
from weakref import WeakKeyDictionary

__all__ = ["Heartbeat", "Idle", "heartbeat"]

# Beats that are due within this many seconds leave with the one that is due now: fewer wake-ups, and a proxy's
# idle timeout is thousands of times as long.
TOGETHER = 0.02


class Idle(Protocol):
    """What the heartbeat keeps alive."""

    last_write: float
    """When bytes were last written, in the loop's seconds."""

    def beat(self) -> None:
        """Write a heartbeat."""


class Heartbeat:
    """Call ``beat`` on each connection that has been idle for its interval."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Idle, float]] = []  # a heap; an entry may be older than the last write
        self._beating: set[Idle] = set()
        self._serial = itertools.count()  # orders entries that are due at the same time
        self._timer: asyncio.TimerHandle | None = None

    def add(self, connection: Idle, interval: float) -> None:
        """Begin; ``interval`` is in seconds."""
        self._beating.add(connection)
        self._push(connection.last_write + interval, connection, interval)
        self._schedule()

    def discard(self, connection: Idle) -> None:
        """End; with the last connection the timer goes too. Twice is once."""
        self._beating.discard(connection)
        if not self._beating:
            self._due.clear()
            self._schedule()

    def _push(self, due: float, connection: Idle, interval: float) -> None:
        heapq.heappush(self._due, (due, next(self._serial), connection, interval))

    def _schedule(self) -> None:
        """Have the timer go off when the first entry is due."""
        if self._timer is not None:
            if self._due and self._timer.when() <= self._due[0][0]:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(self._due[0][0], self._tick) if self._due else None

    def _tick(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self._due and self._due[0][0] <= now + TOGETHER:
            _, _, connection, interval = heapq.heappop(self._due)
            if connection not in self._beating:
                continue
            due = connection.last_write + interval
            if due <= now + TOGETHER:
                connection.beat()
                due = now + interval
            self._push(due, connection, interval)
        self._schedule()


_hearts: WeakKeyDictionary[asyncio.AbstractEventLoop, Heartbeat] = WeakKeyDictionary()


def heartbeat() -> Heartbeat:
    """Return the heartbeat of the running event loop."""
    return _hearts.setdefault(asyncio.get_running_loop(), Heartbeat())
