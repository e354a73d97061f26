"""Hubs of several processes joined by a table of PostgreSQL, which an application's own transactions can write."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

from ..._checks import check_count, check_seconds
from ..._tasks import end
from ...exceptions import BrokerDown, BrokerError, OutcomeUnknown
from ...hub.broker import LogPosition, TailItem
from ..base import Draft, Writer
from .connection import Connect, Connection, PostgresSession, checked_connect, entrust, in_transaction
from .log import PostgresLog
from .schema import TABLE, checked_table, migrate, migration
from .tail import PostgresBell, PostgresTail

__all__ = ["PostgresBroker"]


POLL = 1.0  # seconds after which one looks for what no bell has told, and
POLL_WITHOUT_BELL = 0.1  # where there is none: so that it is soon all the same
TRIM_EVERY = 10.0  # seconds between two deletions of what is too old, and
TRIM_AFTER = 500  # publishes, of what is too much
CLOSING = 1.0  # seconds that each look at a caller's transaction has to end
WATCH, LONGEST_WATCH = 0.01, 0.2  # seconds between two looks whether a caller's transaction has ended


class PostgresBroker:
    """Join the Hubs that have brokers with the same ``table``. A ``Broker``.

    ``connect`` is a DSN, or an async function that returns a new ``psycopg.AsyncConnection``; what it returns is ours,
    and closed. It is called anew after each loss. A DSN with several hosts needs ``target_session_attrs=read-write``;
    the hosts are tried in turn, and share the time. ``listen`` is another one of the same, for ``LISTEN``, where
    ``connect`` goes through a pooler; without ``notify`` it is not needed. The table is looked at every ``poll``
    seconds, 1.0 at most (``None``: 1.0, and 0.1 without ``notify``, which makes news known at once).

    The tables are made by a migration, which ``python -m aiohttp_interceptors.brokers.postgres [TABLE]`` prints. With
    ``migrate`` what is missing is made at each connection, by one process at a time; the role needs the right to
    create in the schema.

    The latest ``max_records`` are kept that are not older than ``max_age`` seconds (``None``: no limit). A publish
    takes ``publish_timeout`` seconds at most, and a server that says nothing for ``silence`` seconds is lost. Raises
    ``TypeError`` or ``ValueError`` for arguments that cannot work.
    """

    confirms: float = 2.0
    """Seconds at most between two ``CaughtUp`` while the server answers."""

    def __init__(  # noqa: PLR0913  # each is something of its own
        self,
        connect: Connect,
        *,
        table: str = TABLE,
        listen: Connect | None = None,
        notify: bool = True,
        migrate: bool = False,
        poll: float | None = None,
        max_records: int = 100_000,
        max_age: float | None = 86_400.0,
        publish_timeout: float = 5.0,
        silence: float = 10.0,
    ) -> None:
        check_count("max_records", max_records, 1)
        check_seconds("max_age", max_age, "no limit")
        check_seconds("poll", poll, "what is right for the bell")
        if poll is not None and poll > POLL:
            raise ValueError(f"poll is {POLL} seconds at most, not {poll!r}: as often the server has to confirm")
        check_seconds("publish_timeout", publish_timeout, "")
        check_seconds("silence", silence, "")
        for name, value in ("notify", notify), ("migrate", migrate):
            if type(value) is not bool:
                raise TypeError(f"{name} is True or False, not {value!r}")
        self._connect = checked_connect(connect)
        self._log = PostgresLog()
        self._table = checked_table(table)
        listening = self._connect if listen is None else checked_connect(listen, "listen")
        self._max_records = max_records
        self._max_age = max_age
        self._migrate = migrate
        self._poll = poll
        self._publish_timeout = publish_timeout
        self._silence = silence
        self._channel = table if notify else None
        self._pooled = listen is not None or not notify  # else LISTEN works, which shows that nobody is between
        self._bell = PostgresBell(listening if notify else None, table, self._silence)
        self._writer = Writer(self._write, self._publish_timeout)
        self._writing: PostgresSession | None = None
        self._turn = asyncio.Lock()  # to use that
        self._untrimmed, self._trimmed = 0, float("-inf")
        self._watching: dict[Connection, asyncio.Task[None]] = {}

    async def publish(
        self, topic: str, payload: bytes, *, idempotency_key: str | None = None, connection: object = None
    ) -> LogPosition | None:
        """Append an entry, as every ``Broker`` does.

        With a ``connection``, a ``psycopg.AsyncConnection``, it is appended when the transaction commits that this is
        in, holds nobody up before, and is none if that is rolled back. At the isolation level "repeatable read" or
        above the commit raises ``psycopg.errors.SerializationFailure`` when others have published meanwhile. A server
        that does not answer within ``publish_timeout`` loses the transaction: the connection is cut, and
        ``OutcomeUnknown`` is raised. Cancelling keeps the connection if the server answers within a second, else it is
        cut. A key that is no text for PostgreSQL is a ``ValueError``.
        """
        if idempotency_key is not None and "\0" in idempotency_key:
            raise ValueError(f"an idempotency_key has no NUL, as {idempotency_key!r} has")
        if idempotency_key is not None:
            idempotency_key.encode()  # here, where it is the end of no other's
        draft = Draft(topic, payload, idempotency_key)
        if connection is None:
            return await self._writer.put(draft)
        if not isinstance(connection, Connection):
            raise TypeError(f"connection is a psycopg.AsyncConnection, not {connection!r}")
        await entrust(connection, self._table, draft, self._publish_timeout)
        if connection not in self._watching:
            self._watching[connection] = asyncio.create_task(self._watch(connection))
        return None

    async def tail(self, after: LogPosition | None) -> AsyncGenerator[TailItem, None]:
        """Follow the entries after a place, as every ``Broker`` does."""
        session = await self._open(self._silence)
        try:
            self._bell.hang()
            tail = PostgresTail(session, self._log, self._silence)
            yield await tail.join(after)
            while True:
                for item in await tail.items():
                    yield item
                if tail.idle:
                    await self._trim(session)
                    await self._bell.wait(self._poll or (POLL if self._bell.hung else POLL_WITHOUT_BELL))
        except OutcomeUnknown as error:
            raise BrokerDown(str(error)) from error
        finally:
            await self._bell.take_down()
            await session.close()

    async def close(self) -> None:
        """Give back all connections, as every ``Broker`` does. Twice is once."""
        await self._writer.close()
        if watching := list(self._watching.values()):
            await asyncio.gather(*[end(task, CLOSING, "a look at a caller's transaction") for task in watching])
        await self._drop()

    async def _write(self, drafts: Sequence[Draft]) -> Sequence[LogPosition]:
        async with self._turn:
            try:
                if self._writing is not None and self._writing.is_lost():
                    await self._drop()
                if self._writing is None:
                    self._writing = await self._open(self._publish_timeout / 2)
                positions = await self._log.append(self._writing, drafts, self._channel, self._publish_timeout)
            except BaseException:
                await self._drop()
                raise
            self._bell.ring()
            self._untrimmed += len(drafts)
            if self._untrimmed >= TRIM_AFTER:
                with suppress(BrokerError):  # what was published is
                    await self._trim(self._writing, now=True)
            return positions

    async def _open(self, patience: float) -> PostgresSession:
        session = await PostgresSession.open(self._connect, self._table, patience, pooled=self._pooled)
        if self._migrate:
            try:
                await migrate(session, self._table, patience)
            except BaseException:
                await session.close()
                raise
        return session

    async def _trim(self, session: PostgresSession, *, now: bool = False) -> None:
        if now or time.monotonic() - self._trimmed >= TRIM_EVERY:
            more = await self._log.trim(session, self._max_records, self._max_age, self._silence)
            self._untrimmed, self._trimmed = 0, float("-inf") if more else time.monotonic()

    async def _drop(self) -> None:
        session, self._writing = self._writing, None
        if session is not None:
            await session.close()

    async def _watch(self, connection: Connection) -> None:
        """Ring when a caller's transaction has ended, so that its commit need not: that would hold up others'."""
        delay = WATCH
        while in_transaction(connection):
            await asyncio.sleep(delay)  # psycopg tells nobody
            delay = min(delay * 1.1, LONGEST_WATCH)
        del self._watching[connection]
        self._bell.ring()
        if self._channel is not None:
            with suppress(BrokerError):  # there is polling
                await self._write([])


if __name__ == "__main__":
    sys.stdout.write(migration(*sys.argv[1:2]))
