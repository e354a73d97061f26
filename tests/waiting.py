"""How tests wait: for the thing itself, and never longer than a person would."""

from __future__ import annotations

import asyncio

PATIENCE = 30.0  # seconds that a test waits for what must come


async def within(awaitable, seconds: float = PATIENCE):
    return await asyncio.wait_for(awaitable, seconds)


async def until(condition) -> None:
    """Give way to others until it holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0)
