"""How much of the event loop an inspector may take."""

from __future__ import annotations

import asyncio
import time

__all__ = ["Pacer"]


SLICE = 0.001  # seconds of work after which other tasks get their turn
MIN_INTERVAL = 1.0  # seconds between two samples of a page
MAX_SHARE = 0.02  # of the time of the event loop; a page with more to do is updated less often


class Pacer:
    """Divides the work for one page into slices, and measures it."""

    __slots__ = ("_began", "_began_cpu", "spent")

    def __init__(self) -> None:
        self._began = self._began_cpu = 0.0
        self.spent: float = 0.0
        """Seconds of computing since ``begin``, without other tasks, threads and processes."""

    def begin(self) -> None:
        """Begin the work for one sample."""
        self.spent = 0.0
        self._begin_slice()

    @property
    def due(self) -> bool:
        """Whether the slice is over."""
        return time.perf_counter() - self._began >= SLICE

    async def give_way(self) -> None:
        """Let other tasks run. Cancelling is safe."""
        self.end()
        await asyncio.sleep(0)
        self._begin_slice()

    def end(self) -> None:
        """Count the slice."""
        self.spent += time.thread_time() - self._began_cpu

    def _begin_slice(self) -> None:
        self._began, self._began_cpu = time.perf_counter(), time.thread_time()

    @property
    def interval(self) -> float:
        """Seconds from the beginning of this sample to the next one."""
        return max(MIN_INTERVAL, self.spent / MAX_SHARE)
