"""How tests wait: for the thing itself, and never longer than a person would."""

from __future__ import annotations

import asyncio

PATIENCE = 30.0  # seconds that a test waits for what must come
TURNS = 100  # of the event loop, after which it rests between two looks


async def within(awaitable, seconds: float = PATIENCE):
    return await asyncio.wait_for(awaitable, seconds)


async def until(condition) -> None:
    """Give way to others until it holds: for a while to those of this loop alone, then to threads and processes too."""
    async with asyncio.timeout(PATIENCE):
        turns = 0
        while not condition():
            turns += 1
            await asyncio.sleep(0 if turns < TURNS else 0.001)
