"""The numbered history that all streams are fed from. Client and server make the same event of the same number."""

from __future__ import annotations

import asyncio

TICK = 0.2  # seconds from one growth of the history to the next
GROWTH = 2  # events


def text(epoch: int, number: int) -> str:
    """Make an event's data: of all sizes that matter, and now and then of several lines."""
    size = 6000 if number % 50 == 0 else number * 7919 % 500
    line = f"{epoch}-{number} " + "0123456789abcdef" * (size // 16)
    return line + "\n\nend" if number % 7 == 0 else line


def event_id(epoch: int, number: int) -> str:
    return f"{epoch}-{number}"


def parse_id(event_id: str | None) -> tuple[int, int]:
    """Return epoch and number; (0, 0) without an id, and no server has epoch 0."""
    epoch, _, number = (event_id or "0-0").partition("-")
    return int(epoch), int(number)


class Feed:
    """How far the history has come. An event is made when it is needed, so that nothing here grows."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.newest = 0
        self._grown = asyncio.Event()

    async def grow(self) -> None:
        """Grow for ever."""
        while True:
            await asyncio.sleep(TICK)
            self.newest += GROWTH
            grown, self._grown = self._grown, asyncio.Event()
            grown.set()

    async def beyond(self, number: int) -> None:
        """Wait until there is an event after this one."""
        while self.newest <= number:
            await self._grown.wait()

    async def growth(self) -> None:
        """Wait until there is something new."""
        await self._grown.wait()
