"""One tail of the log in PostgreSQL: pages while it catches up, then what notifications and polling find."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

from ..._logging import log as logger
from ..._tasks import cancel_and_wait, check_cancelled
from ...exceptions import BrokerError
from ...hub.broker import CaughtUp, LogPosition, Subscribed, TailItem, Trimmed, Truncated
from .connection import Connect, PostgresConnection
from .log import PostgresLog, PostgresPage

__all__ = ["MAX_POLL_INTERVAL", "Notifier", "PostgresTail"]


INITIAL_PAGE_ENTRIES = 100
MAX_PAGE_ENTRIES = 1000
MAX_PAGE_BYTES = 2**20  # of payload, as far as the entries of the next page are as large as those of the last one
CONFIRM_INTERVAL = 0.5  # seconds between two CaughtUp, at least
MAX_CONFIRM_AGE = 2.0  # seconds since a page was asked for; an older answer does not confirm that the server answers
MAX_POLL_INTERVAL = 1.0  # seconds between two reads, with notifications: for missed ones
POLL_INTERVAL_WITHOUT_NOTIFY = 0.1  # seconds, otherwise: this is the latency of an entry
RECONNECT_DELAY = 1.0  # seconds until the next attempt to listen for notifications
STOP_TIMEOUT = 2.0  # seconds that the task that listens has to close its connection


class Notifier:
    """Wakes the tail when something was appended. It listens for ``NOTIFY`` on a separate connection.

    Args:
        connect: How to connect, or ``None`` if the server does not notify.
        table: The table, which is also the name of the channel.
        read_timeout: Seconds without an answer after which the connection is closed and replaced.
    """

    def __init__(self, connect: Connect | None, table: str, read_timeout: float) -> None:
        self._connect = connect
        self._table = table
        self._read_timeout = read_timeout
        self._notified = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.listening: bool = False
        """Whether the server notifies of what others append."""

    def start(self) -> None:
        """Start listening. Idempotent."""
        if self._connect is not None and self._task is None:
            self._task = asyncio.create_task(self._run(self._connect))

    def notify(self) -> None:
        """Wake the tail of this process."""
        self._notified.set()

    async def wait(self, seconds: float) -> None:
        """Wait for a notification since the last call, at most that many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._notified.wait()
        self._notified.clear()

    async def stop(self) -> None:
        """Close the connection. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            await cancel_and_wait(task, STOP_TIMEOUT, f"listening for notifications of {self._table!r}")

    async def _run(self, connect: Connect) -> None:
        lost = False
        while True:
            try:
                await self._listen(connect)
            except BrokerError as error:
                if self.listening or not lost:
                    logger.warning("postgres_notifier_lost", table=self._table, error=str(error))
                lost = True
            check_cancelled()  # psycopg uses asyncio.wait_for
            self.listening = False
            await asyncio.sleep(RECONNECT_DELAY)

    async def _listen(self, connect: Connect) -> None:
        interval = self._read_timeout / 2
        connection = await PostgresConnection.open(connect, self._table, interval, interval)
        try:
            await connection.request(f'LISTEN "{self._table}"')
            self.listening = True
            self.notify()  # for entries that were appended before
            while True:
                check_cancelled()
                if await connection.wait_for_notification(interval):
                    self.notify()
                else:  # the kernel does not report a network that drops all packets
                    await connection.request("SELECT 1")
        finally:
            await connection.close()


class PostgresTail:
    """Reads the log page by page.

    Args:
        connection: The connection to read with, which the tail closes.
        log: The log.
        notifier: Started with the tail, and stopped with it.
        poll_interval: Seconds between two reads, or ``None`` for a default.
    """

    def __init__(
        self, connection: PostgresConnection, log: PostgresLog, notifier: Notifier, poll_interval: float | None
    ) -> None:
        self._connection = connection
        self._log = log
        self._notifier = notifier
        self._poll_interval = poll_interval
        self._position: LogPosition  # of the last entry that was returned
        self._page_entries = INITIAL_PAGE_ENTRIES  # of the next page
        self._is_idle = False  # the last page was not full
        self._history_end: int | None  # the newest offset at the start, until the first CaughtUp
        self._confirmed_at = float("-inf")

    async def start(self, after: LogPosition | None) -> Subscribed:
        """Start after a position, or before the first entry of the log."""
        self._notifier.start()
        page = await self._read(after.offset if after else 0)
        self._position = after or LogPosition(page.epoch, page.start)
        self._history_end = page.last_offset
        return Subscribed(self._position)

    async def poll(self) -> Sequence[TailItem]:
        """Return the next items, or nothing if there are none for some time or another epoch has begun."""
        if self._is_idle:
            await self._wait()
        requested_at = time.monotonic()
        page = await self._read(self._position.offset)
        self._is_idle = False
        if page.epoch in self._log.past_epochs:  # the server was restored from a backup of that epoch
            end = LogPosition(page.epoch, page.last_offset + 1)
            await self._log.begin_epoch(self._connection, end, left=self._position.epoch)
            return []
        if page.epoch != self._position.epoch:
            return [await self._enter_epoch(page)]
        lost = self._log.find_lost(self._position, page)
        if lost is not None:
            await self._log.begin_epoch(self._connection, lost)
            return []
        await self._log.add_run_ids(self._connection, page)
        return self._items(page, requested_at)

    async def close(self) -> None:
        """Stop listening, and close the connection."""
        await self._notifier.stop()
        await self._connection.close()

    async def _wait(self) -> None:
        if self._log.is_trim_due():
            await self._log.trim(self._connection)
        default = MAX_POLL_INTERVAL if self._notifier.listening else POLL_INTERVAL_WITHOUT_NOTIFY
        await self._notifier.wait(self._poll_interval or default)

    async def _read(self, after: int) -> PostgresPage:
        return await self._log.read(self._connection, after, self._page_entries)

    async def _enter_epoch(self, page: PostgresPage) -> Truncated:
        """Continue in the epoch of a page, after the last entry that it shares with the current one."""
        offset = await self._log.shared_offset(self._connection, self._position)
        if offset is None:
            page = await self._read(0)
            offset = page.start
        self._log.past_epochs.add(self._position.epoch)
        self._position = LogPosition(page.epoch, offset)
        return Truncated(self._position)

    def _items(self, page: PostgresPage, requested_at: float) -> list[TailItem]:
        items: list[TailItem] = []
        for entries in page.batches():
            if entries[0].offset > self._position.offset + 1:
                items.append(Trimmed(entries[0].offset - 1))
            items.append(entries)
            self._position = LogPosition(page.epoch, entries[-1].offset)
        count = len(page.entries)
        if not count and page.last_offset > self._position.offset:
            items.append(Trimmed(page.last_offset))
            self._position = LogPosition(page.epoch, page.last_offset)
        self._log.set_read(self._position, page)
        self._is_idle = count < self._page_entries
        if count:
            self._page_entries = max(min(MAX_PAGE_ENTRIES, int(MAX_PAGE_BYTES * count / (page.size + 1))), 1)
        if self._confirm(page, requested_at):
            items.append(CaughtUp())
        return items

    def _confirm(self, page: PostgresPage, requested_at: float) -> bool:
        """Return whether ``CaughtUp`` is due: after the history that there was at the start, then regularly."""
        now = time.monotonic()
        end = page.last_offset
        if self._history_end is not None:
            end = min(self._history_end, end)
        elif now < self._confirmed_at + CONFIRM_INTERVAL or now > requested_at + MAX_CONFIRM_AGE:
            return False
        if self._position.offset < end:
            return False
        self._confirmed_at, self._history_end = now, None
        return True
