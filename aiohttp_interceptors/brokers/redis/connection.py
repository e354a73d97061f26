"""The connection of a ``RedisBroker`` to a Redis or Valkey server.

``RedisConnection`` sends each command once, with a timeout, and translates the errors of redis-py. It uses the client's
connections directly, because the client repeats commands that may have been executed.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Protocol, TypeAlias, cast

from ..._tasks import cancellable
from ...exceptions import BrokerDown, BrokerError, BrokerRefused, OutcomeUnknown

try:
    from redis.asyncio import Redis
    from redis.asyncio.connection import parse_url
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
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

__all__ = ["Argument", "Connect", "Redis", "RedisConnection", "Reply", "Script", "check_connect", "make_client"]


CLOSE_TIMEOUT = 1.0  # seconds until a connection that does not close is abandoned

# Errors of a server that starts, of a replica, and of a Cluster that is being changed. A retry may succeed.
_TRANSIENT = (BusyLoadingError, ReadOnlyError, TryAgainError, ClusterDownError, MovedError, AskError)
_TRANSIENT_CODES = ("NOREPLICAS", "BUSY", "-READONLY", "UNBLOCKED")
# Timeouts are ours, and a request is its own health check. Every server supports RESP 2.
_CLIENT_OPTIONS: Mapping[str, object] = {"protocol": 2, "socket_timeout": None, "health_check_interval": 0}
_USE_CLUSTER_NODE = (
    "this node of a Cluster does not have the slot of the stream; connect with"
    " aiohttp_interceptors.brokers.redis.cluster_node, which finds the node that has it"
)

Argument: TypeAlias = str | bytes | int
Reply: TypeAlias = "bytes | int | list[Reply] | dict[bytes, Reply] | None"
Connect: TypeAlias = str | Callable[[], Awaitable[Redis]]


class _Connection(Protocol):
    """The part of a connection of redis-py that is used here."""

    async def send_command(self, *command: Argument, check_health: bool) -> None: ...

    async def read_response(self, disable_decoding: bool, timeout: float) -> Reply: ...  # noqa: FBT001, ASYNC109

    async def connect(self) -> None: ...

    async def disconnect(self, nowait: bool) -> None: ...  # noqa: FBT001


class _Pool(Protocol):
    """The part of a connection pool of redis-py that is used here."""

    async def get_connection(self) -> _Connection: ...

    async def release(self, connection: _Connection) -> None: ...


class Script:
    """A Lua script, and the SHA-1 digest that names it in ``EVALSHA``."""

    def __init__(self, text: str) -> None:
        self.text: str = text
        self.sha1: str = hashlib.sha1(text.encode()).hexdigest()  # noqa: S324  # Redis takes no other digest


class RedisConnection:
    """A connection to a server, opened at the first request. All methods raise only ``BrokerError``.

    Args:
        client: The client to use. It is closed with this connection.
        connect_timeout: Seconds until an attempt to connect fails.
        read_timeout: Seconds until a request without a response fails.
        fixed_address: Whether the client connects to the same address after a failover too.
    """

    def __init__(self, client: Redis, connect_timeout: float, read_timeout: float, *, fixed_address: bool) -> None:
        self._client = client
        self._pool = cast("_Pool", client.connection_pool)
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._fixed_address = fixed_address

    @classmethod
    async def open(cls, connect: Connect, connect_timeout: float, read_timeout: float) -> RedisConnection:
        """Make a client from a URL or by a factory, which has ``connect_timeout`` seconds. Cancelling is safe."""
        if isinstance(connect, str):
            return cls(_client_from_url(connect, connect_timeout), connect_timeout, read_timeout, fixed_address=True)
        try:
            async with asyncio.timeout(connect_timeout):
                client = await cancellable(connect(), undo=_close_client)
        except Exception as error:
            raise _translate(error, f"connect() did not return within {connect_timeout} s", sent=False) from error
        if not isinstance(client, Redis):
            raise BrokerRefused(f"connect() returned {client!r}, which is not a redis.asyncio.Redis")
        return cls(client, connect_timeout, read_timeout, fixed_address=False)

    async def request(self, *command: Argument) -> Reply:
        """Send a command once and return the reply. Cancelling is safe, and disconnects.

        Raises:
            BrokerDown: The command was not executed. A retry may succeed.
            BrokerRefused: The command was not executed, and a retry will fail too.
            OutcomeUnknown: The command may have been executed.
        """
        connection = await self._acquire()
        try:
            async with asyncio.timeout(self._read_timeout):
                await cancellable(connection.send_command(*command, check_health=False))
                # After this timeout read_response returns None, which looks like a reply. Ours is shorter.
                timeout = self._read_timeout + self._connect_timeout
                return await connection.read_response(disable_decoding=True, timeout=timeout)
        except Exception as error:
            if not isinstance(error, ResponseError):
                await connection.disconnect(nowait=True)
            if self._fixed_address and isinstance(error, MovedError):
                raise BrokerRefused(f"{_USE_CLUSTER_NODE}: {type(error).__name__}: {error}") from error
            raise _translate(error, f"no reply from the server for {self._read_timeout} s", sent=True) from error
        finally:
            await self._pool.release(connection)

    async def run_script(self, script: Script, *arguments: Argument) -> Reply:
        """Run a script, as ``request`` does. Its text is sent only to a server that has not loaded it."""
        try:
            return await self.request("EVALSHA", script.sha1, *arguments)
        except BrokerError as error:
            if not isinstance(error.__cause__, NoScriptError):
                raise
        return await self.request("EVAL", script.text, *arguments)

    async def close(self) -> None:
        """Close the client. Idempotent."""
        with suppress(Exception):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._client.aclose()
                await self._client.connection_pool.disconnect()

    async def _acquire(self) -> _Connection:
        """Take a connection from the pool, and reconnect it if the server has closed it."""
        try:
            async with asyncio.timeout(self._connect_timeout):
                connection = await cancellable(self._pool.get_connection())
                can_read = getattr(connection, "can_read", None)  # of redis-py 8, whose pool does not check by default
                if can_read is not None and await can_read():  # the end, or data that was not requested
                    await connection.disconnect(nowait=True)
                    await cancellable(connection.connect())
                return connection
        except Exception as error:
            text = f"no connection to the server for {self._connect_timeout} s"
            raise _translate(error, text, sent=False) from error


def check_connect(connect: Connect) -> None:
    """Raise ``TypeError`` or ``ValueError`` for what is neither a URL nor a factory."""
    if isinstance(connect, str):
        parse_url(connect)
    elif not callable(connect):
        raise TypeError(f"connect is a URL like redis://localhost:6379/0, or an async function, not {connect!r}")


def make_client(host: str, port: int, options: Mapping[str, object]) -> Redis:
    """Return a client of a host and a port, with further arguments of ``redis.asyncio.Redis``."""
    arguments = {**_CLIENT_OPTIONS, "retry": Retry(NoBackoff(), 0), **options, "host": host, "port": port}
    return cast("Callable[..., Redis]", Redis)(**arguments)


def _client_from_url(url: str, connect_timeout: float) -> Redis:
    client: Redis = cast("Callable[..., Redis]", Redis.from_url)(
        url, **_CLIENT_OPTIONS, retry=Retry(NoBackoff(), 0), socket_connect_timeout=connect_timeout
    )
    return client


async def _close_client(client: object) -> None:
    if isinstance(client, Redis):
        await client.aclose()


def _translate(error: Exception, timeout_text: str, *, sent: bool) -> BrokerError:
    """Return the ``BrokerError`` for an error. ``sent``: whether the server may have executed a command."""
    if isinstance(error, BrokerError):
        return error
    text = timeout_text if type(error) is TimeoutError else f"{type(error).__name__}: {error}"
    if isinstance(error, _TRANSIENT) or (
        isinstance(error, ResponseError) and any(code in text for code in _TRANSIENT_CODES)
    ):
        return BrokerDown(f"the server cannot execute the command now: {text}")
    if isinstance(error, AuthenticationError | AuthorizationError | ResponseError | DataError | UnicodeError):
        return BrokerRefused(f"the server refused: {text}")
    return OutcomeUnknown(text) if sent else BrokerDown(text)
