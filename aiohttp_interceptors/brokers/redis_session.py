"""A client of Redis that is asked one thing at a time, never twice, and answers in a bounded time or not at all."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Protocol, TypeAlias, cast

from ..errors import BrokerDown, BrokerError, BrokerRefused, OutcomeUnknown
from ..hub.ending import heeding
from .redis_log import Argument

try:
    from redis.asyncio import Redis
    from redis.asyncio.connection import parse_url
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.crc import key_slot
    from redis.exceptions import (
        AskError,
        AuthenticationError,
        AuthorizationError,
        BusyLoadingError,
        ClusterDownError,
        DataError,
        MovedError,
        NoScriptError,
        ReadOnlyError,
        ResponseError,
        TryAgainError,
    )
except ImportError as _error:
    raise ImportError("a RedisBroker needs redis-py: pip install 'aiohttp-interceptors[redis]'") from _error

__all__ = ["Connect", "Redis", "RedisSession", "Reply", "checked_connect", "client_at", "slot_of"]

Reply: TypeAlias = "bytes | int | list[Reply] | dict[bytes, Reply] | None"
Connect: TypeAlias = str | Callable[[], Awaitable[Redis]]
CLOSING = 1.0  # seconds that a server has to take leave
# What the server says that will be otherwise soon: it starts, or is none to write to any more, or not yet.
PASSING = (BusyLoadingError, ReadOnlyError, TryAgainError, ClusterDownError, MovedError, AskError)
PASSING_CODES = ("NOREPLICAS", "BUSY", "-READONLY", "UNBLOCKED")
QUIET: Mapping[str, object] = {"protocol": 2, "socket_timeout": None, "health_check_interval": 0}
MOVED = (
    "this node of a Cluster does not have the slot of the stream: connect by"
    " aiohttp_interceptors.brokers.redis.cluster_node, which asks the nodes who has it"
)


class _Connection(Protocol):
    async def send_command(self, *command: Argument, check_health: bool) -> None: ...

    async def read_response(self, disable_decoding: bool, timeout: float) -> Reply: ...  # noqa: FBT001, ASYNC109

    async def connect(self) -> None: ...

    async def disconnect(self, nowait: bool) -> None: ...  # noqa: FBT001


class _Pool(Protocol):
    async def get_connection(self) -> _Connection: ...

    async def release(self, connection: _Connection) -> None: ...


def checked_connect(connect: Connect) -> Connect:
    """Return a URL or a factory as it is. Raises ``TypeError`` or ``ValueError``."""
    if isinstance(connect, str):
        parse_url(connect)
    elif not callable(connect):
        raise TypeError(f"connect is a URL like redis://localhost:6379/0, or an async function, not {connect!r}")
    return connect


class RedisSession:
    """Ask a server. Raises ``BrokerError`` alone."""

    def __init__(self, client: Redis, patience: float, *, fixed: bool) -> None:
        self._client = client
        self._fixed = fixed  # it leads to this address, whatever happens
        self._pool = cast("_Pool", client.connection_pool)
        self._patience = patience

    @classmethod
    async def open(cls, connect: Connect, patience: float) -> RedisSession:
        """Make the client. ``patience`` is the seconds that connecting may take."""
        if isinstance(connect, str):
            return cls(_client(connect, patience), patience, fixed=True)
        try:
            async with asyncio.timeout(patience):
                client = await heeding(connect(), undo=_close)
        except Exception as error:
            raise _translated(error, f"connect() did not return for {patience} s", sent=False) from error
        if not isinstance(client, Redis):
            raise BrokerRefused(f"connect() returned {client!r}, which is no redis.asyncio.Redis")
        return cls(client, patience, fixed=False)

    async def run(self, script: str, *arguments: Argument, limit: float) -> Reply:
        """Run a script as ``ask`` does, and send its text only to a server that does not know it."""
        name = hashlib.sha1(script.encode()).hexdigest()  # noqa: S324  # what the server calls it
        try:
            return await self.ask("EVALSHA", name, *arguments, limit=limit)
        except BrokerError as error:
            if not isinstance(error.__cause__, NoScriptError):
                raise
        return await self.ask("EVAL", script, *arguments, limit=limit)

    async def ask(self, *command: Argument, limit: float) -> Reply:
        """Send a command, once, and return what the server answers within ``limit`` seconds.

        Raises ``BrokerDown`` when it was surely not done, ``BrokerRefused`` when the server will not do it, and
        ``OutcomeUnknown``. Cancelling closes the connection.
        """
        connection = await self._connection()
        try:
            async with asyncio.timeout(limit):
                await heeding(connection.send_command(*command, check_health=False))
                # Its own time-out looks like an answer, so ours comes first.
                return await connection.read_response(disable_decoding=True, timeout=limit + self._patience)
        except Exception as error:
            if not isinstance(error, ResponseError):
                await connection.disconnect(nowait=True)
            if self._fixed and isinstance(error, MovedError):
                raise BrokerRefused(f"{MOVED}: {type(error).__name__}: {error}") from error
            raise _translated(error, f"no answer of the server for {limit} s", sent=True) from error
        finally:
            await self._pool.release(connection)

    async def _connection(self) -> _Connection:
        """Return a connection that was alive just now."""
        try:
            async with asyncio.timeout(self._patience):
                connection = await heeding(self._pool.get_connection())
                look = getattr(connection, "can_read", None)  # the pool of redis-py 8 does not, by default
                if look is not None and await look():  # data that nobody asked for, or the end
                    await connection.disconnect(nowait=True)
                    await heeding(connection.connect())
                return connection
        except Exception as error:
            raise _translated(error, f"no connection to the server for {self._patience} s", sent=False) from error

    async def close(self) -> None:
        """Give back the connections. Twice is once."""
        with suppress(Exception):
            async with asyncio.timeout(CLOSING):
                await self._client.aclose()
                await self._client.connection_pool.disconnect()


async def _close(client: object) -> None:
    if isinstance(client, Redis):
        await client.aclose()


def _client(url: str, patience: float) -> Redis:
    """Return a client that does nothing by itself: redis-py's own repeats what may have been done."""
    client: Redis = cast("Callable[..., Redis]", Redis.from_url)(
        url, **QUIET, retry=Retry(NoBackoff(), 0), socket_connect_timeout=patience
    )
    return client


def client_at(host: str, port: int, options: Mapping[str, object]) -> Redis:
    """Return such a client of a host and a port, with more arguments of redis-py's."""
    arguments = {**QUIET, "retry": Retry(NoBackoff(), 0), **options, "host": host, "port": port}
    return cast("Callable[..., Redis]", Redis)(**arguments)


def slot_of(key: str) -> int:
    """Return the slot of a key in a Cluster."""
    return int(key_slot(key.encode()))


def _translated(error: Exception, silence: str, *, sent: bool) -> BrokerError:
    """Return what an error means for who publishes."""
    if isinstance(error, BrokerError):
        return error
    text = silence if type(error) is TimeoutError else f"{type(error).__name__}: {error}"
    if isinstance(error, PASSING) or (isinstance(error, ResponseError) and any(code in text for code in PASSING_CODES)):
        return BrokerDown(f"the server cannot do it now: {text}")
    if isinstance(error, AuthenticationError | AuthorizationError | ResponseError | DataError | UnicodeError):
        return BrokerRefused(f"the server refused: {text}")
    return OutcomeUnknown(text) if sent else BrokerDown(text)
