"""Connecting to PostgreSQL: one host after the other, each with its share of the time."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import TypeAlias, TypeVar

from ..._tasks import end
from ...exceptions import BrokerDown, BrokerError, BrokerRefused, OutcomeUnknown
from ..base import Draft, connect_within

__all__ = ["Connect", "Connection", "PostgresSession", "Row", "checked_connect", "entrust", "in_transaction"]


try:
    import psycopg  # for our other files, too, so that this is said wherever it is missing
    from psycopg.conninfo import conninfo_attempts_async, conninfo_to_dict, make_conninfo
except ImportError as _error:
    raise ImportError("a PostgresBroker needs psycopg 3: pip install 'aiohttp-interceptors[postgres]'") from _error

__all__ = ["Connect", "Connection", "checked_connect", "close_connection", "connect_to", "psycopg"]

Connection = psycopg.AsyncConnection
Connect: TypeAlias = str | Callable[[], Awaitable[psycopg.AsyncConnection]]
CLOSING = 1.0  # seconds that a pool has to take its connection back
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


async def connect_to(connect: Connect, limit: float, prepare: int | None) -> Connection:
    """Return a connection that commits each statement, within ``limit`` seconds and a moment.

    The hosts of a DSN, and the addresses of each, are tried in their order; each has an equal share of the time that
    is left, so that one that does not answer leaves some to the next.

    Raises:
        BrokerDown: No host can be reached now.
        BrokerRefused: Each says no.

    """
    try:
        if isinstance(connect, str):
            return await _connect_to_hosts(connect, limit, prepare)
        return await connect_within(limit, _made(connect), close_connection, "a factory of connections to PostgreSQL")
    except TimeoutError as error:
        raise BrokerDown(f"no connection to the server for {limit} s") from error
    except BrokerError:
        raise
    except Exception as error:
        raise _failure([error]) from error


async def close_connection(connection: Connection) -> None:
    """Close a connection, or give it back to its pool, which has a second for that. Raises nothing."""
    closing = asyncio.ensure_future(connection.close())
    closing.add_done_callback(lambda closing: closing.cancelled() or closing.exception())
    await asyncio.wait([closing], timeout=CLOSING)
    if not closing.done():
        closing.cancel()
        connection.pgconn.finish()


async def _connect_to_hosts(dsn: str, limit: float, prepare: int | None) -> Connection:
    clock = asyncio.get_running_loop().time
    deadline = clock() + limit
    async with asyncio.timeout(limit):
        attempts = await conninfo_attempts_async(conninfo_to_dict(dsn))
    failures: list[Exception] = []
    for number, attempt in enumerate(attempts):
        share = max(deadline - clock(), 0.0) / (len(attempts) - number)
        where = f"{attempt.get('host') or attempt.get('hostaddr') or 'the server'}:{attempt.get('port') or 5432}"
        connecting = Connection.connect(make_conninfo("", **attempt), autocommit=True, prepare_threshold=prepare)
        try:
            return await connect_within(share, connecting, close_connection, f"connecting to {where}")
        except TimeoutError:
            failures.append(TimeoutError(f"{where} did not answer for {share:.3g} s"))
        except psycopg.Error as error:
            failures.append(error)
    raise _failure(failures) from failures[-1]


async def _made(connect: Callable[[], Awaitable[Connection]]) -> Connection:
    connection = await connect()
    if not isinstance(connection, Connection):
        raise BrokerRefused(f"connect() returned {connection!r}, which is no psycopg.AsyncConnection")
    await connection.set_autocommit(True)
    return connection


def _failure(errors: list[Exception]) -> BrokerError:
    """Return what it means that nothing was connected: a refusal only where all refuse."""
    texts = [" ".join(str(error).split()) or repr(error) for error in errors]
    refused = all(any(word in text for word in REFUSALS) for text in texts)
    return (BrokerRefused if refused else BrokerDown)(f"no connection: {'; '.join(texts)}")


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
