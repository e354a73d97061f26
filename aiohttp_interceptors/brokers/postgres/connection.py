"""Connections to PostgreSQL: connect, run statements within a timeout, close, and translate errors.

When a statement takes too long or is cancelled, psycopg asks the server to cancel it, and waits up to ten seconds for
that. Here the socket is shut down instead, so that a server that does not answer delays nothing.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import TypeAlias, TypeVar

from ..._tasks import cancel_and_wait
from ...exceptions import BrokerDown, BrokerError, BrokerRefused, OutcomeUnknown
from ..base import AppendRequest, connect_within

try:
    import psycopg
    from psycopg import AsyncConnection
    from psycopg.conninfo import conninfo_attempts_async, conninfo_to_dict, make_conninfo
except ImportError as _error:
    raise ImportError("a PostgresBroker needs psycopg 3: pip install 'aiohttp-interceptors[postgres]'") from _error

__all__ = [
    "AsyncConnection",
    "Connect",
    "PostgresConnection",
    "Row",
    "checked_connect",
    "in_transaction",
    "write_to_outbox",
]


PREPARE_THRESHOLD = 2  # uses of a statement until it is prepared
CLOSE_TIMEOUT = 1.0  # seconds that a pool has to take its connection back
CANCEL_GRACE = 1.0  # seconds that a statement in the caller's transaction has to end after a cancellation
SHUTDOWN_TIMEOUT = 1.0  # seconds that psycopg has to notice that a socket was shut down

# An error on connecting has no SQLSTATE. These texts are of errors that a retry does not resolve.
REFUSALS = ("authentication failed", "no pg_hba.conf entry", "does not exist", "permission denied", "no password")
# The SQLSTATEs of errors that a retry may resolve, or their first characters: a read-only standby, serialization
# failures, insufficient resources, locks, a cancelled statement, I/O errors. The statement was rolled back.
TRANSIENT = ("25006", "40", "53", "55", "57014", "58")
CONNECTION_LOST = ("08", "57P")  # the server ends the connection, perhaps after it has committed
INSUFFICIENT_PRIVILEGE = "42501"
UNDEFINED = ("42P01", "42703", "42704", "42883", "3F000")  # a table, a column, an object, a function or a schema

_INSERT_INTO_OUTBOX = "INSERT INTO {table}_outbox (topic, payload, key) VALUES (%s, %s, %s)"

Connect: TypeAlias = str | Callable[[], Awaitable[AsyncConnection]]
Parameters: TypeAlias = Sequence[object] | Mapping[str, object]
Row: TypeAlias = tuple[object, ...]
T = TypeVar("T")


class PostgresConnection:
    """A connection that commits each statement. Its methods raise only ``BrokerError``.

    Args:
        connection: A connection of psycopg in autocommit mode.
        table: What ``{table}`` stands for in statements.
        read_timeout: Seconds until a request without an answer fails, and the connection is closed.
    """

    def __init__(self, connection: AsyncConnection, table: str, read_timeout: float) -> None:
        self._connection = connection
        self._table = table
        self._read_timeout = read_timeout

    @classmethod
    async def open(
        cls, connect: Connect, table: str, connect_timeout: float, read_timeout: float, *, pooled: bool = False
    ) -> PostgresConnection:
        """Connect within ``connect_timeout`` seconds. Cancelling is safe.

        With ``pooled`` no statement is prepared, because the pooler may run the next one on another connection.
        """
        connection = await _connect(connect, connect_timeout, None if pooled else PREPARE_THRESHOLD)
        return cls(connection, table, read_timeout)

    def is_lost(self) -> bool:
        """Return whether the connection is known to have ended. Must not be called during a statement."""
        if self._connection.closed:
            return True
        with socket.socket(fileno=os.dup(self._connection.fileno())) as copy:
            try:
                copy.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except OSError as error:
                return not isinstance(error, BlockingIOError)
            return True  # the end of the stream, or the message that announces it: there was no statement

    async def request(
        self, statement: str, parameters: Parameters = (), read_timeout: float | None = None
    ) -> list[Row]:
        """Run a statement in a separate transaction, and return its rows.

        If the server does not answer within the timeout, or if the call is cancelled before, the connection is closed.

        Args:
            statement: The SQL.
            parameters: The values of its placeholders.
            read_timeout: Seconds, if not those of the connection.

        Raises:
            BrokerDown: The statement was certainly not committed, and a retry may succeed.
            BrokerRefused: It was not committed, and a retry will fail too.
            OutcomeUnknown: It may have been committed.
        """
        task = asyncio.create_task(self._execute(statement, parameters))
        await _wait_for_statement(task, self._connection, self._read_timeout if read_timeout is None else read_timeout)
        try:
            return task.result()
        except Exception as error:
            raise _translate(error, self._table) from error

    async def run_script(self, statements: str, read_timeout: float) -> None:
        """Run several statements without parameters, with their own ``BEGIN`` and ``COMMIT``. See ``request``."""
        task = asyncio.create_task(self._connection.execute(statements.encode()))
        await _wait_for_statement(task, self._connection, read_timeout)
        try:
            task.result()
        except Exception as error:
            raise _translate(error, self._table) from error

    async def wait_for_notification(self, seconds: float) -> bool:
        """Wait for a notification, at most that many seconds. Return whether there was one."""
        notified = False
        try:
            async for _ in self._connection.notifies(timeout=seconds, stop_after=1):
                notified = True
        except Exception as error:
            raise BrokerDown(f"the connection was lost: {error}") from error
        return notified

    async def close(self) -> None:
        """Close the connection, or return it to its pool. Idempotent."""
        await _close(self._connection)

    async def _execute(self, statement: str, parameters: Parameters) -> list[Row]:
        cursor = self._connection.cursor(binary=True, row_factory=psycopg.rows.tuple_row)
        await cursor.execute(_with_table(statement, self._table), parameters)
        return await cursor.fetchall() if cursor.description else []


def checked_connect(connect: Connect, name: str = "connect") -> Connect:
    """Return a DSN or a factory unchanged. Raises ``TypeError`` or ``ValueError`` for anything else."""
    if isinstance(connect, str):
        try:
            conninfo_to_dict(connect)
        except psycopg.Error as error:
            raise ValueError(f"{name} is not a DSN: {error}") from None
    elif not callable(connect):
        raise TypeError(
            f"{name} is a DSN like postgresql://user@host/database, or an async function that returns a "
            f"psycopg.AsyncConnection, not {connect!r}"
        )
    return connect


def in_transaction(connection: AsyncConnection) -> bool:
    """Return whether a connection is in a transaction, as far as the client knows."""
    return not connection.closed and connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE


async def write_to_outbox(connection: AsyncConnection, table: str, request: AppendRequest, read_timeout: float) -> None:
    """Write an entry in the transaction of a caller's connection. Raises as ``PostgresConnection.request``.

    If the server does not answer within ``read_timeout`` seconds, the connection is closed. If the call is
    cancelled, the connection is closed only if the statement does not end within a second.
    """
    task = asyncio.create_task(connection.execute(_with_table(_INSERT_INTO_OUTBOX, table), request))
    await _wait_for_statement(task, connection, read_timeout, cancel_grace=CANCEL_GRACE)
    try:
        task.result()
    except psycopg.Error as error:
        raise _translate(error, table) from error


def _with_table(statement: str, table: str) -> bytes:
    return statement.replace("{table}", table).encode()


async def _connect(connect: Connect, connect_timeout: float, prepare_threshold: int | None) -> AsyncConnection:
    """Return a connection in autocommit mode. It takes a moment longer than the timeout at most.

    Raises:
        BrokerDown: No host can be reached now.
        BrokerRefused: All hosts refuse the connection.
    """
    try:
        if isinstance(connect, str):
            return await _connect_to_hosts(connect, connect_timeout, prepare_threshold)
        what = "a factory of connections to PostgreSQL"
        return await connect_within(connect_timeout, _call_factory(connect), _close, what)
    except TimeoutError as error:
        raise BrokerDown(f"no connection to the server for {connect_timeout} s") from error
    except BrokerError:
        raise
    except Exception as error:
        raise _connect_error([error]) from error


async def _connect_to_hosts(dsn: str, connect_timeout: float, prepare_threshold: int | None) -> AsyncConnection:
    """Try the hosts of a DSN, and the addresses of each, in their order.

    Each has an equal share of the time that is left, so that one that does not answer leaves time for the next.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + connect_timeout
    async with asyncio.timeout(connect_timeout):
        attempts = await conninfo_attempts_async(conninfo_to_dict(dsn))
    errors: list[Exception] = []
    for number, attempt in enumerate(attempts):
        share = max(deadline - clock(), 0.0) / (len(attempts) - number)
        host = f"{attempt.get('host') or attempt.get('hostaddr') or 'the server'}:{attempt.get('port') or 5432}"
        connecting = AsyncConnection.connect(
            make_conninfo("", **attempt), autocommit=True, prepare_threshold=prepare_threshold
        )
        try:
            return await connect_within(share, connecting, _close, f"connecting to {host}")
        except TimeoutError:
            errors.append(TimeoutError(f"{host} did not answer for {share:.3g} s"))
        except psycopg.Error as error:
            errors.append(error)
    raise _connect_error(errors) from errors[-1]


async def _call_factory(connect: Callable[[], Awaitable[AsyncConnection]]) -> AsyncConnection:
    connection = await connect()
    if not isinstance(connection, AsyncConnection):
        raise BrokerRefused(f"connect() returned {connection!r}, which is not a psycopg.AsyncConnection")
    await connection.set_autocommit(True)
    return connection


async def _close(connection: AsyncConnection) -> None:
    """Close a connection, or return it to its pool. Raises nothing. Idempotent."""
    closing = asyncio.ensure_future(connection.close())
    closing.add_done_callback(lambda closing: closing.cancelled() or closing.exception())
    await asyncio.wait([closing], timeout=CLOSE_TIMEOUT)
    if not closing.done():
        closing.cancel()
        connection.pgconn.finish()


async def _wait_for_statement(
    task: asyncio.Task[T], connection: AsyncConnection, read_timeout: float, *, cancel_grace: float = 0.0
) -> None:
    """Wait until a task that uses a connection has ended, and shut the connection down if it takes too long.

    If the caller is cancelled, the task has ``cancel_grace`` more seconds to end.
    """
    task.add_done_callback(lambda task: task.cancelled() or task.exception())  # a cancelled caller retrieves none
    try:
        await asyncio.wait([task], timeout=read_timeout)
        if not task.done():
            raise OutcomeUnknown(f"no answer from the server for {read_timeout} s")
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=cancel_grace)
        raise
    finally:
        if not task.done():
            _shut_down(connection)
            await asyncio.wait([task], timeout=SHUTDOWN_TIMEOUT)
            await cancel_and_wait(task, SHUTDOWN_TIMEOUT, "a statement on a connection to PostgreSQL that was closed")


def _shut_down(connection: AsyncConnection) -> None:
    """Shut down the socket, so that psycopg finds the connection lost."""
    with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as copy:
        copy.shutdown(socket.SHUT_RDWR)


def _connect_error(errors: list[Exception]) -> BrokerError:
    """Return the error for a failure to connect: ``BrokerRefused`` only if all hosts refuse."""
    texts = [" ".join(str(error).split()) or repr(error) for error in errors]
    refused = all(any(refusal in text for refusal in REFUSALS) for text in texts)
    return (BrokerRefused if refused else BrokerDown)(f"no connection: {'; '.join(texts)}")


def _translate(error: Exception, table: str) -> BrokerError:
    """Return the ``BrokerError`` for the error of a statement, with advice for the administrator."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    code = error.sqlstate if isinstance(error, psycopg.Error) else None
    if code is None or code.startswith(CONNECTION_LOST):
        return OutcomeUnknown(f"the connection was lost: {text}")
    if code in UNDEFINED:
        return BrokerRefused(
            f"{text}; {table} is missing, or was created by another release: PostgresBroker(…, migrate=True) creates "
            f"it if its role may, and {_print_advice(table)}"
        )
    if code.startswith(TRANSIENT):
        return BrokerDown(f"the server cannot execute the statement now: {text}")
    if code == INSUFFICIENT_PRIVILEGE:
        return BrokerRefused(f"the server refused: {text}; if a table is to be created, {_print_advice(table)}")
    return BrokerRefused(f"the server refused: {text}")


def _print_advice(table: str) -> str:
    return f"python -m aiohttp_interceptors.brokers.postgres {table} prints the SQL to create it with another role"
