"""A connection of its own on which PostgreSQL tells that there is something new."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from ..._logging import log as logger
from ..._tasks import check_cancelled, end
from ...exceptions import BrokerError
from ...hub.broker import CaughtUp, LogPosition, Subscribed, TailItem, Trimmed, Truncated
from .connection import Connect, PostgresSession
from .log import Page, PostgresLog

__all__ = ["PostgresBell", "PostgresTail"]


ENDING = 2.0  # seconds that a connection has to be given back
RETRY = 1.0  # seconds before the next attempt to hear something


class PostgresBell:
    """Be told of news by ``NOTIFY``, or by who calls ``ring``; without a connection by that alone."""

    def __init__(self, connect: Connect | None, table: str, silence: float) -> None:
        self._connect = connect
        self._table = table
        self._silence = silence
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.hung: bool = False
        """Whether the server tells."""

    def hang(self) -> None:
        """Begin to listen. Twice is once."""
        if self._connect is not None and self._task is None:
            self._task = asyncio.create_task(self._run(self._connect))

    def ring(self) -> None:
        """Wake who waits."""
        self._news.set()

    async def wait(self, seconds: float) -> None:
        """Wait until it has rung since this was called last."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()
        self._news.clear()

    async def take_down(self) -> None:
        """Give back the connection. Twice is once."""
        task, self._task = self._task, None
        if task is not None:
            await end(task, ENDING, f"listening for news of {self._table!r}")

    async def _run(self, connect: Connect) -> None:
        lost = False
        while True:
            try:
                await self._listen(connect)
            except BrokerError as error:
                if self.hung or not lost:
                    logger.warning("postgres_bell_lost", table=self._table, error=str(error))
                lost = True
            check_cancelled()  # psycopg uses asyncio.wait_for
            self.hung = False
            await asyncio.sleep(RETRY)

    async def _listen(self, connect: Connect) -> None:
        session = await PostgresSession.open(connect, self._table, self._silence / 2)
        try:
            await session.run(f'LISTEN "{self._table}"', (), self._silence / 2)
            self.hung = True
            self.ring()  # for what came before
            while True:
                check_cancelled()
                if await session.wait(self._silence / 2):
                    self.ring()
                else:  # the kernel does not tell of a network that swallows all
                    await session.run("SELECT 1", (), self._silence / 2)
        finally:
            await session.close()


MOST = 1000  # entries in one batch
MOST_BYTES = 2**20  # of their payloads, if they are like those before
CONFIRM = 0.5  # seconds between two confirmations, at least, and
CONFIRMED_WITHIN = 2.0  # seconds, at most, that the server had for one: an older answer says nothing of now


class PostgresTail:
    """Follow a log after a place, one page after the other. Raises ``BrokerError`` alone."""

    def __init__(self, session: PostgresSession, log: PostgresLog, silence: float) -> None:
        self._session = session
        self._log = log
        self._silence = silence
        self._at: LogPosition
        self._count = 100  # entries in the next page
        self._goal = 0  # the position that is up to date
        self._confirmed = float("-inf")  # when that was told last
        self.idle: bool = False
        """Whether nothing more was there."""

    async def join(self, after: LogPosition | None) -> Subscribed:
        """Begin after a place. It comes first, and once."""
        page = await self._read(after.offset if after else 0)
        self._at = after or LogPosition(page.epoch, page.start)
        self._goal = page.last
        return Subscribed(self._at)

    async def items(self) -> Sequence[TailItem]:
        """Return what comes next; nothing, if that is nothing, or if the log goes on in another epoch."""
        asked = time.monotonic()
        page = await self._read(self._at.offset)
        self.idle = False
        if page.epoch in self._log.past:
            void = LogPosition(page.epoch, page.last + 1)
            await self._log.rewind(self._session, void, self._silence, left=self._at.epoch)
            return []
        if page.epoch != self._at.epoch:
            return [await self._go_over(page)]
        lost = self._log.void(self._at, page)
        if lost is not None:
            await self._log.rewind(self._session, lost, self._silence)
            return []
        await self._log.learn(self._session, page, self._silence)
        return self._take(page, asked)

    def _take(self, page: Page, asked: float) -> list[TailItem]:
        items: list[TailItem] = []
        for entries in page.runs():
            if entries[0].offset > self._at.offset + 1:
                items.append(Trimmed(entries[0].offset - 1))
            items.append(entries)
            self._at = LogPosition(page.epoch, entries[-1].offset)
        if not page.rows and page.last > self._at.offset:
            items.append(Trimmed(page.last))
            self._at = LogPosition(page.epoch, page.last)
        self._log.see(self._at, page)
        self.idle = len(page.rows) < self._count
        if page.rows:
            self._count = max(min(MOST, int(MOST_BYTES * len(page.rows) / (page.size + 1))), 1)
        if self._confirms(page, asked):
            items.append(CaughtUp())
        return items

    def _confirms(self, page: Page, asked: float) -> bool:
        """Tell whether a page says that all has come: the first time all there was at the beginning, then all."""
        now = time.monotonic()
        first = self._goal < sys.maxsize
        new = first or (now >= self._confirmed + CONFIRM and now <= asked + CONFIRMED_WITHIN)
        if not new or self._at.offset < min(self._goal, page.last):
            return False
        self._confirmed, self._goal = now, sys.maxsize
        return True

    async def _go_over(self, page: Page) -> Truncated:
        border = await self._log.border(self._session, self._at, self._silence)
        if border is None:
            page = await self._read(0)
            border = page.start
        self._log.past.add(self._at.epoch)
        self._at = LogPosition(page.epoch, border)
        return Truncated(self._at)

    async def _read(self, after: int) -> Page:
        return await self._log.read(self._session, after, self._count, self._silence)
