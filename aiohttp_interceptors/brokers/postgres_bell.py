"""A connection of its own on which PostgreSQL tells that there is something new."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from ..errors import BrokerError
from ..hub.ending import check_cancelled, end
from ..observe.logs import log as logger
from .postgres_session import Connect, PostgresSession

__all__ = ["PostgresBell"]

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
