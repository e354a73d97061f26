"""The numbered events that all streams send. Client and server compute the same event from the same number."""

from __future__ import annotations

import asyncio

INTERVAL = 0.2  # seconds between two additions of events
EVENTS_PER_INTERVAL = 2


def text(epoch: int, number: int) -> str:
    """Return the data of an event. Sizes vary, and some have several lines."""
    size = 6000 if number % 50 == 0 else number * 7919 % 500
    line = f"{epoch}-{number} " + "0123456789abcdef" * (size // 16)
    return line + "\n\nend" if number % 7 == 0 else line


def event_id(epoch: int, number: int) -> str:
    return f"{epoch}-{number}"


def parse_id(event_id: str | None) -> tuple[int, int]:
    """Return epoch and number, or (0, 0) without an ID. No server has epoch 0."""
    epoch, _, number = (event_id or "0-0").partition("-")
    return int(epoch), int(number)


class Feed:
    """The number of the newest event. Events are computed when needed, so that memory does not grow here."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.newest = 0
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Add events until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL)
            self.newest += EVENTS_PER_INTERVAL
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    async def wait_beyond(self, number: int) -> None:
        """Wait until there is an event after a number."""
        while self.newest <= number:
            await self._changed.wait()

    async def wait_for_more(self) -> None:
        """Wait until events are added."""
        await self._changed.wait()
