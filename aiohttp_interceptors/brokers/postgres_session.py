"""A connection to PostgreSQL that is asked one thing at a time, and answers in a bounded time or not at all."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import TypeAlias

from ..errors import BrokerDown, BrokerError, BrokerRefused, OutcomeUnknown
from .writer import Draft

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.rows import tuple_row
except ImportError as _error:
    raise ImportError("a PostgresBroker needs psycopg 3: pip install 'aiohttp-interceptors[postgres]'") from _error

__all__ = ["Connect", "Connection", "PostgresSession", "Row", "checked_connect", "entrust", "in_transaction"]

Connection = psycopg.AsyncConnection
Connect: TypeAlias = str | Callable[[], Awaitable[psycopg.AsyncConnection]]
Values: TypeAlias = Sequence[object] | Mapping[str, object]
Row: TypeAlias = tuple[object, ...]
PREPARE_AFTER = 2  # uses of a statement
# Classes of what a server says of a statement that it has undone, and that may go well another time: resources, locks,
# a conflict, cancelled, a disk's error, a standby.
PASSING = ("25006", "40", "53", "55", "57014", "58")
ENDED = ("08", "57P")  # it ends the connection, perhaps after it had committed
MISSING = ("42P01", "42704", "42883", "3F000")
_ENTRUST = "INSERT INTO {t}_outbox (topic, payload, key) VALUES (%s, %s, %s)"
# A server that refuses a connection has no code for it, only words.
REFUSALS = ("authentication failed", "no pg_hba.conf entry", "does not exist", "permission denied", "no password")


def checked_connect(connect: Connect, name: str = "connect") -> Connect:
    """Return a DSN or a factory as it is. Raises ``TypeError`` or ``ValueError``."""
    if isinstance(connect, str):
        try:
            conninfo_to_dict(connect)
        except psycopg.Error as error:
            raise ValueError(f"{name} is no DSN: {error}") from None
    elif not callable(connect):
        raise TypeError(
            f"{name} is a DSN like postgresql://user@host/database, or an async function that returns a "
            f"psycopg.AsyncConnection, not {connect!r}"
        )
    return connect


class PostgresSession:
    """Ask a server. Raises ``BrokerError`` alone."""

    def __init__(self, connection: psycopg.AsyncConnection, table: str) -> None:
        self._connection = connection
        self._table = table

    @classmethod
    async def open(cls, connect: Connect, table: str, patience: float, *, pooled: bool = False) -> PostgresSession:
        """Connect, which may take ``patience`` seconds.

        Where it is ``pooled``, nothing is prepared, for that would be another's connection's next time.
        """
        prepare = None if pooled else PREPARE_AFTER
        try:
            async with asyncio.timeout(patience):
                if isinstance(connect, str):
                    connection = await psycopg.AsyncConnection.connect(
                        connect, autocommit=True, prepare_threshold=prepare
                    )
                else:
                    connection = _checked_connection(await connect())
                    await connection.set_autocommit(True)
        except TimeoutError as error:
            raise BrokerDown(f"no connection to the server for {patience} s") from error
        except Exception as error:
            raise _unconnected(error) from error
        return cls(connection, table)

    def is_lost(self) -> bool:
        """Tell whether the server has ended the connection, as far as has come to this machine; while nothing runs."""
        if self._connection.closed:
            return True
        with socket.socket(fileno=os.dup(self._connection.fileno())) as end:
            try:
                end.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except OSError as error:
                return not isinstance(error, BlockingIOError)
            return True  # nobody has asked for anything

    async def run(self, statement: str, values: Values, limit: float) -> list[Row]:
        """Run a statement, in a transaction of its own, and return its rows, which take ``limit`` seconds at most.

        In the statement ``{t}`` is the table.
        Raises ``BrokerDown`` or ``BrokerRefused`` when it was surely not done, else ``OutcomeUnknown``. Cancelling
        cuts the connection.
        """
        task = asyncio.create_task(self._execute(statement, values))
        task.add_done_callback(lambda task: task.cancelled() or task.exception())  # who was cancelled asks for none
        try:
            await asyncio.wait([task], timeout=limit)
            if not task.done():
                raise OutcomeUnknown(f"no answer of the server for {limit} s")
        finally:
            # psycopg would ask the server to cancel, and wait for it; one that says nothing is not worth that.
            if not task.done():
                self._cut()
                await asyncio.wait([task])
        try:
            return task.result()
        except Exception as error:
            raise _translated(error, self._table) from error

    async def wait(self, seconds: float) -> bool:
        """Wait until the bell rings, and return whether it did."""
        rung = False
        try:
            async for _ in self._connection.notifies(timeout=seconds, stop_after=1):
                rung = True
        except Exception as error:
            raise BrokerDown(f"the connection was lost: {error}") from error
        return rung

    async def close(self) -> None:
        """Give back the connection. Twice is once."""
        with suppress(psycopg.Error):
            await self._connection.close()

    async def _execute(self, statement: str, values: Values) -> list[Row]:
        cursor = self._connection.cursor(binary=True, row_factory=tuple_row)
        await cursor.execute(statement.replace("{t}", self._table).encode(), values)
        return await cursor.fetchall() if cursor.description else []

    def _cut(self) -> None:
        with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)


def in_transaction(connection: psycopg.AsyncConnection) -> bool:
    """Tell whether a transaction is under way, from what the client knows."""
    return not connection.closed and connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE


async def entrust(connection: psycopg.AsyncConnection, table: str, draft: Draft, limit: float) -> None:
    """Store a draft in the transaction that a connection is in. Raises as ``PostgresSession.run``."""
    statement = _ENTRUST.replace("{t}", table).encode()
    try:
        async with asyncio.timeout(limit):
            await connection.execute(statement, draft)
    except TimeoutError as error:
        raise OutcomeUnknown(f"no answer of the server for {limit} s") from error
    except psycopg.Error as error:
        raise _translated(error, table) from error


def _checked_connection(connection: psycopg.AsyncConnection) -> psycopg.AsyncConnection:
    if not isinstance(connection, psycopg.AsyncConnection):
        raise BrokerRefused(f"connect() returned {connection!r}, which is no psycopg.AsyncConnection")
    return connection


def _unconnected(error: Exception) -> BrokerError:
    if isinstance(error, BrokerError):
        return error
    text = " ".join(str(error).split()) or repr(error)
    return (BrokerRefused if any(word in text for word in REFUSALS) else BrokerDown)(f"no connection: {text}")


def _translated(error: Exception, table: str) -> BrokerError:
    """Return what an error of a statement means for who publishes."""
    text = f"{type(error).__name__}: {error}"
    code = error.sqlstate if isinstance(error, psycopg.Error) else None
    if code is None or code.startswith(ENDED):
        return OutcomeUnknown(f"the connection was lost: {text}")
    if code in MISSING:
        how = f"python -m aiohttp_interceptors.brokers.postgres {table}"
        return BrokerRefused(
            f"{text}; {table} is missing, or is of another release: {how} prints the SQL that makes it"
        )
    if code.startswith(PASSING):
        return BrokerDown(f"the server cannot do it now: {text}")
    return BrokerRefused(f"the server refused: {text}")
