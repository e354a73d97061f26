"""Connecting to PostgreSQL: one host after the other, each with its share of the time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from ..errors import BrokerDown, BrokerError, BrokerRefused
from .connecting import connect_within

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
