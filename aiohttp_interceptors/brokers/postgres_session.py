"""A connection to PostgreSQL that is asked one thing at a time, and answers in a bounded time or not at all."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TypeAlias, TypeVar

from ..errors import BrokerDown, BrokerError, BrokerRefused, OutcomeUnknown
from ..hub.ending import end
from .postgres_hosts import Connect, Connection, checked_connect, close_connection, connect_to, psycopg
from .writer import Draft

__all__ = ["Connect", "Connection", "PostgresSession", "Row", "checked_connect", "entrust", "in_transaction"]

Values: TypeAlias = Sequence[object] | Mapping[str, object]
Row: TypeAlias = tuple[object, ...]
T = TypeVar("T")
PREPARE_AFTER = 2  # uses of a statement
# Classes of what a server says of a statement that it has undone, and that may go well another time: resources, locks,
# a conflict, cancelled, a disk's error, a standby.
PASSING = ("25006", "40", "53", "55", "57014", "58")
ENDED = ("08", "57P")  # it ends the connection, perhaps after it had committed
MAY_NOT = "42501"
MISSING = ("42P01", "42704", "42883", "3F000")
_ENTRUST = "INSERT INTO {t}_outbox (topic, payload, key) VALUES (%s, %s, %s)"
GRACE = 1.0  # seconds that a statement in the caller's transaction has to end when the caller is cancelled
CUT = 1.0  # seconds that psycopg has to find out that a connection was cut


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
        return cls(await connect_to(connect, patience, None if pooled else PREPARE_AFTER), table)

    def is_lost(self) -> bool:
        """Tell whether the server has ended the connection, as far as has come to this machine; while nothing runs."""
        if self._connection.closed:
            return True
        with socket.socket(fileno=os.dup(self._connection.fileno())) as copy:
            try:
                copy.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
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
        await _finished(task, self._connection, limit)
        try:
            return task.result()
        except Exception as error:
            raise _translated(error, self._table) from error

    async def script(self, statements: str, limit: float) -> None:
        """Run several statements without values, which begin and end their own transaction. Raises as ``run``."""
        task = asyncio.create_task(self._connection.execute(statements.encode()))
        await _finished(task, self._connection, limit)
        try:
            task.result()
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
        await close_connection(self._connection)

    async def _execute(self, statement: str, values: Values) -> list[Row]:
        cursor = self._connection.cursor(binary=True, row_factory=psycopg.rows.tuple_row)
        await cursor.execute(statement.replace("{t}", self._table).encode(), values)
        return await cursor.fetchall() if cursor.description else []


def in_transaction(connection: psycopg.AsyncConnection) -> bool:
    """Tell whether a transaction is under way, from what the client knows."""
    return not connection.closed and connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE


async def entrust(connection: psycopg.AsyncConnection, table: str, draft: Draft, limit: float) -> None:
    """Store a draft in the transaction that a connection is in. Raises as ``PostgresSession.run``.

    A connection whose server does not answer for ``limit`` seconds is cut. Cancelling leaves it as it is if the
    statement ends within a second, and cuts it otherwise.
    """
    statement = _ENTRUST.replace("{t}", table).encode()
    task = asyncio.create_task(connection.execute(statement, draft))
    await _finished(task, connection, limit, grace=GRACE)
    try:
        task.result()
    except psycopg.Error as error:
        raise _translated(error, table) from error


async def _finished(task: asyncio.Task[T], connection: Connection, limit: float, *, grace: float = 0.0) -> None:
    """Wait until a task that uses a connection has ended; cut the connection at the limit, or when this is cancelled.

    psycopg would ask the server to cancel the statement, and wait for that up to ten seconds.
    """
    task.add_done_callback(lambda task: task.cancelled() or task.exception())  # a caller that left asks for none
    try:
        await asyncio.wait([task], timeout=limit)
        if not task.done():
            raise OutcomeUnknown(f"no answer of the server for {limit} s")
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=grace)
        raise
    finally:
        if not task.done():
            _cut(connection)
            await asyncio.wait([task], timeout=CUT)
            await end(task, CUT, "a statement on a connection to PostgreSQL that was cut")


def _cut(connection: Connection) -> None:
    with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as copy:
        copy.shutdown(socket.SHUT_RDWR)


def _translated(error: Exception, table: str) -> BrokerError:
    """Return what an error of a statement means for who publishes."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    code = error.sqlstate if isinstance(error, psycopg.Error) else None
    if code is None or code.startswith(ENDED):
        return OutcomeUnknown(f"the connection was lost: {text}")
    if code in MISSING:
        return BrokerRefused(
            f"{text}; {table} is missing, or is of another release: PostgresBroker(…, migrate=True) makes it where its"
            f" role may, and {_prints(table)}"
        )
    if code.startswith(PASSING):
        return BrokerDown(f"the server cannot do it now: {text}")
    if code == MAY_NOT:
        return BrokerRefused(f"the server refused: {text}; where a table is to be made, {_prints(table)}")
    return BrokerRefused(f"the server refused: {text}")


def _prints(table: str) -> str:
    return f"python -m aiohttp_interceptors.brokers.postgres {table} prints the SQL for a role that may"
