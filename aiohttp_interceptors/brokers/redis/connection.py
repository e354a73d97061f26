"""Settings of a server with which it may lose what it has acknowledged: said once of each server, in the log."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol, TypeAlias, cast

from ..._checks import check_seconds
from ..._logging import log as logger
from ..._tasks import heeding
from ...exceptions import BrokerDown, BrokerError, BrokerRefused, OutcomeUnknown
from .log import Argument, key_of

__all__ = ["Factory", "RedisAdvice", "cluster_node", "sentinel"]


SENTINELS = "__sentinel__:hello"  # the channel on each server that its Sentinels subscribe to


class RedisAdvice:
    """Look at a server's settings as far as it shows them, and warn of those that should be otherwise."""

    def __init__(self, stream: str, *, replaceable: bool) -> None:
        self._stream = stream
        self._replaceable = replaceable  # by Sentinels that are known
        self._warned: set[tuple[str, str]] = set()

    async def look(self, session: RedisSession, server: str, limit: float) -> None:
        """Ask the server with that run id. Raises ``BrokerError`` when it does not answer. Cancelling is safe."""
        memory = await _settings(session, "maxmemory*", limit)
        policy = memory.get("maxmemory-policy", "noeviction")
        if policy != "noeviction" and memory.get("maxmemory") != "0":
            self._warn(
                server, "redis_may_evict", policy,
                "set maxmemory-policy to noeviction: or it deletes events or idempotency keys to make room",
            )  # fmt: skip
        replicas = await _settings(session, "min-replicas-*", limit)
        setting = replicas.get("min-replicas-to-write")
        required = setting != "0" and replicas.get("min-replicas-max-lag") != "0"
        if setting is not None and not required and (self._replaceable or await _may_be_replaced(session, limit)):
            self._warn(
                server, "redis_may_lose", f"min-replicas-to-write {setting}",
                "set min-replicas-to-write to 1 and min-replicas-max-lag to 3 on all servers: or one that another was"
                " promoted for acknowledges events until it notices, and then loses them",
            )  # fmt: skip

    def _warn(self, server: str, event: str, policy: str, advice: str) -> None:
        if (server, event) not in self._warned:
            self._warned.add((server, event))
            logger.warning(event, stream=self._stream, policy=policy, advice=advice)


async def _settings(session: RedisSession, pattern: str, limit: float) -> dict[str, str]:
    """Return the settings under these names; none, if the server does not tell."""
    try:
        reply = await session.ask("CONFIG", "GET", pattern, limit=limit)
    except BrokerRefused:
        return {}
    if not isinstance(reply, dict):  # RESP 2
        flat = cast("list[Reply]", reply)
        reply = dict(zip(cast("list[bytes]", flat[::2]), flat[1::2], strict=True))
    return {name.decode(): cast("bytes", value).decode() for name, value in reply.items()}


async def _may_be_replaced(session: RedisSession, limit: float) -> bool:
    """Tell whether a server has replicas, or Sentinels that may promote one."""
    replication = cast("bytes", await session.ask("INFO", "replication", limit=limit))
    if b"connected_slaves:0" not in replication:
        return True
    try:
        subscribers = await session.ask("PUBSUB", "NUMSUB", SENTINELS, limit=limit)
    except BrokerRefused:
        return False
    return bool(cast("list[int]", subscribers)[1])


Address: TypeAlias = tuple[str, int]
CLOSING = 1.0  # seconds that a server, or connections to some, have to be closed


class _Vote(NamedTuple):
    """What one of those asked knows."""

    epoch: int
    """Of the configuration: the greater one is newer."""
    address: Address


def sentinel(
    sentinels: Sequence[Address],
    name: str,
    *,
    timeout: float = 0.5,  # of each question
    sentinel_options: Mapping[str, object] | None = None,
    **options: object,
) -> Factory:
    """Return a factory for ``RedisBroker`` that leads to the primary ``name`` of these Sentinels.

    All Sentinels are asked at once, and the one with the newest configuration is believed, as soon as more than half
    agree or ``timeout`` seconds are over: neither one that hangs nor one that has slept over a failover does harm.

    Args:
        sentinels: Hosts and ports, all that there are: ``[("sentinel-1", 26379), …]``.
        name: What the Sentinels call the primary.
        timeout: Seconds that a Sentinel has to answer.
        sentinel_options: Arguments of the clients of the Sentinels, such as ``password`` and ``ssl``, as
            ``redis.asyncio.Redis`` has them.
        **options: Arguments of the client of the primary.

    Raises:
        TypeError, ValueError: For arguments that cannot work. The factory raises ``BrokerDown`` when no Sentinel
            answers with a primary. Cancelling it is safe.

    """
    addresses = _checked("sentinels", sentinels, timeout)
    if not isinstance(name, str) or not name:
        raise ValueError(f"name is what the Sentinels call the primary, not {name!r}")

    async def ask(session: RedisSession, address: Address) -> _Vote:
        state = _pairs(await session.ask("SENTINEL", "MASTER", name, limit=timeout))
        if {"s_down", "o_down"} & set(state["flags"].split(",")):
            raise BrokerDown(f"the primary {name!r} is down, says the Sentinel {_shown(address)}")
        return _Vote(int(state["config-epoch"]), (state["ip"], int(state["port"])))

    asking = _Election(addresses, ask, timeout, dict(sentinel_options or {}))
    return Factory(asking, f"the primary {name!r}", options, replaceable=True)


def cluster_node(
    nodes: Sequence[Address],
    *,
    stream: str = "events",
    timeout: float = 0.5,  # of each question
    **options: object,
) -> Factory:
    """Return a factory for ``RedisBroker`` that leads to the node of a Cluster which has the slot of a stream.

    All nodes are asked at once, and the one that knows the newest configuration is believed, as soon as more than half
    agree or ``timeout`` seconds are over. It follows a slot that moves, and a replica that takes over.

    Args:
        nodes: Hosts and ports of some nodes, best of all of them: ``[("node-1", 6379), …]``.
        stream: The stream of the broker.
        timeout: Seconds that a node has to answer.
        **options: Arguments of the clients, such as ``password`` and ``ssl``, as ``redis.asyncio.Redis`` has them.

    Raises:
        TypeError, ValueError: For arguments that cannot work. The factory raises ``BrokerDown`` when no node knows
            who has the slot. Cancelling it is safe.

    """
    addresses = _checked("nodes", nodes, timeout)
    slot = slot_of(key_of(stream))

    async def ask(session: RedisSession, address: Address) -> _Vote:
        slots = await session.ask("CLUSTER", "SLOTS", limit=timeout)
        epoch = _epoch(_text(await session.ask("CLUSTER", "INFO", limit=timeout)))
        for entry in cast("list[list[Reply]]", slots):
            if cast("int", entry[0]) <= slot <= cast("int", entry[1]):
                host, port = cast("list[Reply]", entry[2])[:2]
                found = _text(host)  # none, or "?": that which was asked
                return _Vote(epoch, (address[0] if found in ("", "?") else found, cast("int", port)))
        raise BrokerDown(f"no node of the Cluster has the slot {slot} of {stream!r}, says {_shown(address)}")

    asking = _Election(addresses, ask, timeout, options)
    return Factory(asking, f"the node with the slot {slot} of {stream!r}", options, replaceable=False)


class Factory:
    """An async function that returns a client of the server that is elected when it is called."""

    def __init__(self, election: _Election, what: str, options: Mapping[str, object], *, replaceable: bool) -> None:
        self._election = election
        self._what = what
        self._options = options
        self.replaceable: bool = replaceable
        """Whether there is surely somebody who may put another server in the place of this one."""

    async def __call__(self) -> Redis:
        """Return a new client. Raises ``BrokerDown``. Cancelling is safe."""
        return client_at(*await self._election.hold(self._what), self._options)


class _Election(NamedTuple):
    """Those who are asked where the right server is, and how."""

    addresses: Sequence[Address]
    ask: Callable[[RedisSession, Address], Awaitable[_Vote]]
    timeout: float
    options: Mapping[str, object]

    async def hold(self, what: str) -> Address:
        """Ask all, and return what more than half say, or after the time-out the newest. Raises ``BrokerDown``."""
        sessions = [
            RedisSession(client_at(*address, self.options), self.timeout, fixed=False) for address in self.addresses
        ]
        tasks = [
            asyncio.ensure_future(self.ask(session, address))
            for session, address in zip(sessions, self.addresses, strict=True)
        ]
        try:
            votes, failures = await self._count(set(tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=CLOSING)
            await asyncio.gather(*[session.close() for session in sessions])
        if not votes:
            why = "; ".join(failures) or f"no answer for {self.timeout} s"
            raise BrokerDown(f"{what} is not known: {why} (asked: {', '.join(map(_shown, self.addresses))})")
        return max(votes).address

    async def _count(self, waiting: set[asyncio.Future[_Vote]]) -> tuple[list[_Vote], list[str]]:
        """Return what was answered in time, as far as it takes to know."""
        votes: list[_Vote] = []
        failures: list[str] = []
        end = time.monotonic() + self.timeout
        while waiting and (rest := end - time.monotonic()) > 0:
            done, waiting = await asyncio.wait(waiting, timeout=rest, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                try:
                    votes.append(task.result())
                except Exception as error:  # noqa: BLE001  # of one, and the others may know
                    failures.append(str(error) or repr(error))
            if votes and votes.count(max(votes)) > len(self.addresses) / 2:
                break
        return votes, failures


def _checked(name: str, addresses: Sequence[Address], timeout: float) -> list[Address]:
    check_seconds("timeout", timeout, "")
    found = list(addresses)
    if not found:
        raise ValueError(f"{name} are hosts and ports, one at least, not {addresses!r}")
    for address in found:
        if not isinstance(address, tuple) or [type(part) for part in address] != [str, int]:
            raise TypeError(f"{name} are pairs of a host and a port, as ('localhost', 6379), not {address!r}")
    return found


def _pairs(reply: Reply) -> dict[str, str]:
    """Return what a Sentinel says of a primary."""
    if isinstance(reply, dict):  # RESP 3
        return {_text(key): _text(value) for key, value in reply.items()}
    flat = [_text(part) for part in cast("list[Reply]", reply)]
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _text(raw: Reply) -> str:
    return raw.decode() if isinstance(raw, bytes) else str(raw or "")


def _epoch(about: str) -> int:
    """Return the epoch of the configuration that a node of a Cluster knows."""
    lines = dict(line.split(":", 1) for line in about.split() if ":" in line)
    return int(lines.get("cluster_current_epoch", 0))


def _shown(address: Address) -> str:
    return f"{address[0]}:{address[1]}"


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
