"""How tests wait: for a condition or an awaitable, with a timeout, and never for a fixed time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import coroutine

TIMEOUT = 30.0  # seconds that a test waits for something that must happen
SPINS = 100  # iterations of the event loop, after which a waiting test also sleeps


async def within(awaitable, seconds: float = TIMEOUT):
    return await asyncio.wait_for(awaitable, seconds)


async def until(condition) -> None:
    """Wait until a condition holds. At first only tasks of this loop run, later threads and processes too."""
    async with asyncio.timeout(TIMEOUT):
        spins = 0
        while not condition():
            spins += 1
            await asyncio.sleep(0 if spins < SPINS else 0.001)


async def run_other_tasks(switches: int = 5) -> None:
    """Let the other tasks run until each of them waits."""
    for _ in range(switches):
        await asyncio.sleep(0)


@coroutine
def task_switch() -> Iterator[None]:
    """Yield once to whatever drives the coroutine: an event loop, or a test that calls ``send`` itself."""
    yield
