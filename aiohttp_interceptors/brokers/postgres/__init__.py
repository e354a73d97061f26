"""A broker on tables of PostgreSQL, which an application can write to in its own transactions.

``PostgresBroker`` has up to three connections: to publish, to read, and to listen for notifications.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from ..._checks import check_count, check_seconds
from ..._tasks import cancel_and_wait
from ...exceptions import BrokerError
from ...hub.broker import LogPosition
from ..base import AppendRequest, BaseBroker, LogRetention
from .connection import AsyncConnection, Connect, PostgresConnection, checked_connect, in_transaction, write_to_outbox
from .log import PostgresLog
from .schema import DEFAULT_TABLE, checked_table, migrate
from .tail import MAX_POLL_INTERVAL, Notifier, PostgresTail

__all__ = ["PostgresBroker"]


# Seconds between two checks whether a caller's transaction has ended, which psycopg does not report.
MIN_CHECK_INTERVAL = 0.01
MAX_CHECK_INTERVAL = 0.2
CHECK_INTERVAL_FACTOR = 1.1
CANCEL_TIMEOUT = 1.0  # seconds that each of these checks has to end when the broker is closed


class PostgresBroker(BaseBroker):
    """A ``Broker`` that keeps the records of a Hub in tables of PostgreSQL, for all processes with the same ``table``.

    The tables are created by a migration, which ``python -m aiohttp_interceptors.brokers.postgres [TABLE]`` prints, or
    by the broker with ``migrate``.

    Args:
        connect: A DSN, or an async function that returns a new ``psycopg.AsyncConnection``, which the broker closes.
            The function is called again after each lost connection. The hosts of a DSN are tried in turn, each with an
            equal share of the time; several hosts need ``target_session_attrs=read-write``.
        table: Name of the table, optionally after a schema and a dot. Names of other objects begin with it.
        listen: Like ``connect``, for ``LISTEN``. Needed if ``connect`` goes through a pooler and ``notify`` is true.
        notify: Whether to announce new entries with ``NOTIFY``. Without it, other processes poll.
        migrate: Whether to create missing tables and functions at each connection. The role then needs the privilege
            to create objects in the schema. Objects of another release are not changed.
        poll: Seconds between two reads of the table, at most 1.0. ``None`` is 1.0 while the broker is notified, and 0.1
            otherwise.
        max_records: Number of records to keep.
        max_age: Seconds to keep a record, or ``None`` for no limit.
        publish_timeout: Seconds until ``publish`` raises.
        read_timeout: Seconds without an answer after which a tail has lost the server.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has a value that cannot work.
    """

    confirms: float = 2.0
    """Seconds between two ``CaughtUp`` of a tail, at most, while the server answers."""

    def __init__(  # noqa: PLR0913  # independent options
        self,
        connect: Connect,
        *,
        table: str = DEFAULT_TABLE,
        listen: Connect | None = None,
        notify: bool = True,
        migrate: bool = False,
        poll: float | None = None,
        max_records: int = 100_000,
        max_age: float | None = 86_400.0,
        publish_timeout: float = 5.0,
        read_timeout: float = 10.0,
    ) -> None:
        check_count("max_records", max_records, 1)
        check_seconds("max_age", max_age, "no limit")
        check_seconds("poll", poll, f"{MAX_POLL_INTERVAL} with notifications and less without")
        if poll is not None and poll > MAX_POLL_INTERVAL:
            raise ValueError(
                f"poll is at most {MAX_POLL_INTERVAL} seconds, not {poll!r}: each read confirms that the server answers"
            )
        check_seconds("publish_timeout", publish_timeout, "")
        check_seconds("read_timeout", read_timeout, "")
        for name, value in ("notify", notify), ("migrate", migrate):
            if type(value) is not bool:
                raise TypeError(f"{name} is True or False, not {value!r}")
        super().__init__(publish_timeout)
        self._connect = checked_connect(connect)
        self._table = checked_table(table)
        listening = self._connect if listen is None else checked_connect(listen, "listen")
        self._pooled = listen is not None or not notify  # there may be a pooler: LISTEN does not work through one
        self._notify = notify
        self._migrate = migrate
        self._poll_interval = poll
        self._publish_timeout = publish_timeout
        self._read_timeout = read_timeout
        self._log = PostgresLog(LogRetention(max_records, max_age), table if notify else None)
        self._notifier = Notifier(listening if notify else None, table, read_timeout)
        self._writing: PostgresConnection | None = None
        self._write_lock = asyncio.Lock()  # for _writing: publishing and _notify_after_commit share it
        self._commit_watchers: dict[AsyncConnection, asyncio.Task[None]] = {}

    async def publish(
        self, topic: str, payload: bytes, *, idempotency_key: str | None = None, connection: object = None
    ) -> LogPosition | None:
        """Append an entry to the log.

        With ``connection``, the entry is written in the transaction of that connection, and appended when it commits.
        An open transaction does not delay others. With the isolation level "repeatable read" or "serializable", the
        commit raises ``psycopg.errors.SerializationFailure`` if another entry was appended since the transaction began.

        If the call is cancelled, the entry may be stored or not; other calls are not affected. A call with
        ``connection`` then waits up to a second for the server, and closes the connection if there is no answer.

        Args:
            topic: The topic of the entry.
            payload: The bytes that every tail receives.
            idempotency_key: Calls with the same key within two minutes append one entry.
            connection: A ``psycopg.AsyncConnection`` of the caller.

        Returns:
            The position of the entry. With a key that was used before, that of the first entry. With ``connection``,
            ``None``: the position is assigned at the commit.

        Raises:
            TypeError: ``connection`` is not a ``psycopg.AsyncConnection``.
            ValueError: The key contains NUL, or cannot be encoded as UTF-8.
            BrokerDown: The entry was not stored. It is safe to retry.
            OutcomeUnknown: The entry may have been stored. It is safe to retry with the same key. With ``connection``
                the transaction is lost, and the connection was closed if the server did not answer within
                ``publish_timeout`` seconds.
            BrokerRefused: The entry was not stored, and a retry will fail too.
        """
        if idempotency_key is not None and "\0" in idempotency_key:
            raise ValueError(f"idempotency_key must not contain NUL, as {idempotency_key!r} does")
        if idempotency_key is not None:
            idempotency_key.encode()  # within a batch it would fail the other requests too
        request = AppendRequest(topic, payload, idempotency_key)
        if connection is None:
            return await self._writer.append(request)
        if not isinstance(connection, AsyncConnection):
            raise TypeError(f"connection is a psycopg.AsyncConnection, not {connection!r}")
        await write_to_outbox(connection, self._table, request, self._publish_timeout)
        if connection not in self._commit_watchers:
            self._commit_watchers[connection] = asyncio.create_task(self._notify_after_commit(connection))
        return None

    async def _write(self, requests: Sequence[AppendRequest]) -> Sequence[LogPosition]:
        async with self._write_lock:
            try:
                if self._writing is not None and self._writing.is_lost():
                    await self._close_writing()
                if self._writing is None:
                    self._writing = await self._open(self._publish_timeout / 2, self._publish_timeout)
                positions = await self._log.append(self._writing, requests)
            except BaseException:
                await self._close_writing()
                raise
            self._notifier.notify()
            if self._log.is_trim_due(after_append=True):
                with suppress(BrokerError):  # the entries are stored
                    await self._log.trim(self._writing, self._read_timeout)
            return positions

    async def _erase(self, topic: str, before: LogPosition) -> None:
        connection = await self._open(self._publish_timeout / 2, self._read_timeout)
        try:
            await self._log.erase(connection, topic, before)
        finally:
            await connection.close()

    async def _open_tail(self) -> PostgresTail:
        connection = await self._open(self._read_timeout, self._read_timeout)
        return PostgresTail(connection, self._log, self._notifier, self._poll_interval)

    async def _disconnect(self) -> None:
        if watchers := list(self._commit_watchers.values()):
            what = "a check whether a caller's transaction has ended"
            await asyncio.gather(*[cancel_and_wait(task, CANCEL_TIMEOUT, what) for task in watchers])
        await self._close_writing()

    async def _open(self, connect_timeout: float, read_timeout: float) -> PostgresConnection:
        connection = await PostgresConnection.open(
            self._connect, self._table, connect_timeout, read_timeout, pooled=self._pooled
        )
        if self._migrate:
            try:
                await migrate(connection, self._table, connect_timeout)
            except BaseException:
                await connection.close()
                raise
        return connection

    async def _close_writing(self) -> None:
        connection, self._writing = self._writing, None
        if connection is not None:
            await connection.close()

    async def _notify_after_commit(self, connection: AsyncConnection) -> None:
        """Notify when a caller's transaction has ended. ``NOTIFY`` within it would delay the commits of others."""
        interval = MIN_CHECK_INTERVAL
        while in_transaction(connection):
            await asyncio.sleep(interval)
            interval = min(interval * CHECK_INTERVAL_FACTOR, MAX_CHECK_INTERVAL)
        del self._commit_watchers[connection]
        self._notifier.notify()
        if self._notify:
            with suppress(BrokerError):  # the other processes poll too
                await self._write([])
