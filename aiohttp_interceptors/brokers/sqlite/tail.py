"""One tail of the log in a database file: pages while it catches up, then what notifications and polling find."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ...exceptions import BrokerDown
from ...hub.broker import CaughtUp, LogPosition, Subscribed, TailItem, Trimmed, Truncated
from .log import HighWaterMark, SqlitePage
from .notifier import Notifier
from .thread import SqliteThread

__all__ = ["SqliteTail"]


READ_TIMEOUT = 10.0  # seconds until a disk that does not answer counts as lost
POLL_INTERVAL = 0.25  # seconds between two reads, if other processes can notify this one: for missed notifications
POLL_INTERVAL_WITHOUT_FIFO = 0.015  # seconds, otherwise: this is the latency of a record
CONFIRM_INTERVAL = 0.25  # seconds between two CaughtUp, at least
MAX_CONFIRM_AGE = 2.0  # seconds since a read began; the result of an older one does not confirm that the disk answers


class SqliteTail:
    """Reads the log page by page.

    Args:
        thread: The thread to read in.
        notifier: Wakes the tail when something was appended.
        high_water_mark: Advanced to each position that is read.
    """

    def __init__(self, thread: SqliteThread, notifier: Notifier, high_water_mark: HighWaterMark) -> None:
        self._thread = thread
        self._notifier = notifier
        self._high_water_mark = high_water_mark
        self._first_page: SqlitePage | None = None  # from start() to the first poll()
        self._position: LogPosition  # of the last entry that was returned
        self._has_more = False
        self._read_began = 0.0
        self._confirmed = float("-inf")
        self._may_confirm = False  # once for each page

    async def start(self, after: LogPosition | None) -> Subscribed:
        """Start after a position, or before the first entry of the log."""
        if after is not None and self._high_water_mark.position is None:
            self._high_water_mark.position = after
        self._first_page = page = await self._read(after)
        self._notifier.start()
        return Subscribed(page.start if after is None else after)

    async def poll(self) -> Sequence[TailItem]:
        """Return the next page, or ``CaughtUp`` after the last one, or nothing if nothing new was found."""
        page, self._first_page = self._first_page, None
        if page is None:
            if self._may_confirm:
                self._may_confirm = False
                if self._is_confirmation_due():
                    return [CaughtUp()]
            page = await self._next_page()
        return self._items(page)

    async def close(self) -> None:
        """Delete the FIFO. The thread belongs to the broker."""
        self._notifier.stop()

    async def _next_page(self) -> SqlitePage:
        notified = self._has_more or await self._notifier.wait(
            POLL_INTERVAL_WITHOUT_FIFO if self._notifier.path is None else POLL_INTERVAL
        )
        self._notifier.clear()
        page = await self._read(self._position)
        if page.entries and not notified:
            self._notifier.start()  # the process that appended them has not found the FIFO
        return page

    async def _read(self, after: LogPosition | None) -> SqlitePage:
        self._read_began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                return await self._thread.run(lambda log: log.read(after))
        except TimeoutError:
            raise BrokerDown(f"the disk has not answered for {READ_TIMEOUT} s") from None

    def _items(self, page: SqlitePage) -> list[TailItem]:
        items: list[TailItem] = []
        if page.truncated is not None:
            self._high_water_mark.advance(page.truncated)
            items.append(Truncated(page.truncated))
        if page.trimmed:
            items.append(Trimmed(page.start.offset))
        self._position = page.start
        if page.entries:
            self._position = LogPosition(page.start.epoch, page.entries[-1].offset)
            self._high_water_mark.advance(self._position)
            items.append(page.entries)
        self._has_more, self._may_confirm = page.has_more, not page.has_more
        return items

    def _is_confirmation_due(self) -> bool:
        now = asyncio.get_running_loop().time()
        is_first = self._confirmed < 0
        if now < self._confirmed + CONFIRM_INTERVAL or (now > self._read_began + MAX_CONFIRM_AGE and not is_first):
            return False
        self._confirmed = now
        return True
