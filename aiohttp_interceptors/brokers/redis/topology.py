"""Servers with replicas: factories that find the primary, and a check of the settings that protect entries.

``sentinel`` and ``cluster_node`` ask all listed servers and use the newest configuration. ``SettingsCheck`` logs a
warning for a server that may lose entries which it has acknowledged.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias, cast

from redis.crc import key_slot

from ..._checks import check_seconds
from ..._logging import log as logger
from ...exceptions import BrokerDown, BrokerRefused
from .connection import CLOSE_TIMEOUT, Redis, RedisConnection, Reply, make_client
from .log import stream_key

__all__ = ["PrimaryFactory", "SettingsCheck", "cluster_node", "sentinel"]


SENTINEL_CHANNEL = "__sentinel__:hello"  # Sentinels subscribe to this channel of each server that they monitor

Address: TypeAlias = tuple[str, int]


class _Configuration(NamedTuple):
    """What one server knows of the topology."""

    epoch: int
    """The configuration epoch. The configuration with the greatest one is the newest."""
    primary: Address


def sentinel(
    sentinels: Sequence[Address],
    name: str,
    *,
    timeout: float = 0.5,
    sentinel_options: Mapping[str, object] | None = None,
    **options: object,
) -> PrimaryFactory:
    """Return a factory for ``RedisBroker`` that connects to the primary that Sentinels monitor.

    All Sentinels are asked at once. The newest configuration is used as soon as more than half of the Sentinels agree,
    or after the timeout, so that neither a Sentinel that hangs nor one that missed a failover does harm.

    The factory raises ``BrokerDown`` if no Sentinel knows a primary. Cancelling it is safe.

    Args:
        sentinels: Host and port of each Sentinel, as in ``[("sentinel-1", 26379), …]``. List all of them.
        name: Name of the primary in the configuration of the Sentinels.
        timeout: Seconds that the Sentinels have to reply.
        sentinel_options: Arguments of ``redis.asyncio.Redis`` for the connections to the Sentinels, such as
            ``password`` and ``ssl``.
        **options: Arguments of ``redis.asyncio.Redis`` for the connections to the primary.

    Returns:
        The factory.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has a value that cannot work.
    """
    check_seconds("timeout", timeout, "")
    addresses = _checked_addresses("sentinels", sentinels)
    if not isinstance(name, str) or not name:
        raise ValueError(f"name is the name of the primary in the configuration of the Sentinels, not {name!r}")

    async def ask(connection: RedisConnection, address: Address) -> _Configuration:
        state = _decode_pairs(await connection.request("SENTINEL", "MASTER", name))
        if {"s_down", "o_down"} & set(state["flags"].split(",")):
            raise BrokerDown(f"the Sentinel {_format(address)} reports that the primary {name!r} is down")
        return _Configuration(int(state["config-epoch"]), (state["ip"], int(state["port"])))

    lookup = _Lookup(addresses, ask, timeout, dict(sentinel_options or {}))
    return PrimaryFactory(lookup, f"the primary {name!r}", options, has_sentinels=True)


def cluster_node(
    nodes: Sequence[Address],
    *,
    stream: str = "events",
    timeout: float = 0.5,
    **options: object,
) -> PrimaryFactory:
    """Return a factory for ``RedisBroker`` that connects to the node of a Cluster that has the slot of a stream.

    All nodes are asked at once. The newest configuration is used as soon as more than half of the nodes agree, or after
    the timeout. A slot that moves is followed, and so is a failover to a replica.

    The factory raises ``BrokerDown`` if no node knows which one has the slot. Cancelling it is safe.

    Args:
        nodes: Host and port of some nodes, as in ``[("node-1", 6379), …]``. List all of them, if possible.
        stream: The ``stream`` of the broker.
        timeout: Seconds that the nodes have to reply.
        **options: Arguments of ``redis.asyncio.Redis`` for all connections, such as ``password`` and ``ssl``.

    Returns:
        The factory.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has a value that cannot work.
    """
    check_seconds("timeout", timeout, "")
    addresses = _checked_addresses("nodes", nodes)
    slot = key_slot(stream_key(stream).encode())

    async def ask(connection: RedisConnection, address: Address) -> _Configuration:
        slots = await connection.request("CLUSTER", "SLOTS")
        epoch = _cluster_epoch(_decode(await connection.request("CLUSTER", "INFO")))
        for entry in cast("list[list[Reply]]", slots):
            if cast("int", entry[0]) <= slot <= cast("int", entry[1]):
                raw_host, port = cast("list[Reply]", entry[2])[:2]
                host = _decode(raw_host)
                # A node that does not know its own address returns none, or "?".
                return _Configuration(epoch, (address[0] if host in ("", "?") else host, cast("int", port)))
        raise BrokerDown(f"{_format(address)} reports that no node of the Cluster has the slot {slot} of {stream!r}")

    lookup = _Lookup(addresses, ask, timeout, options)
    return PrimaryFactory(lookup, f"the node with the slot {slot} of {stream!r}", options, has_sentinels=False)


class PrimaryFactory:
    """An async function that returns a client of the server that is the primary when it is called."""

    def __init__(self, lookup: _Lookup, what: str, options: Mapping[str, object], *, has_sentinels: bool) -> None:
        self._lookup = lookup
        self._what = what
        self._options = options
        self.has_sentinels: bool = has_sentinels
        """Whether Sentinels may promote another server."""

    async def __call__(self) -> Redis:
        """Return a new client. Raises ``BrokerDown``. Cancelling is safe."""
        return make_client(*await self._lookup.primary(self._what), self._options)


class _Lookup(NamedTuple):
    """The servers that know the primary, and how to ask them."""

    addresses: Sequence[Address]
    ask: Callable[[RedisConnection, Address], Awaitable[_Configuration]]
    timeout: float
    options: Mapping[str, object]

    async def primary(self, what: str) -> Address:
        """Ask all servers and return the address of the primary. Raises ``BrokerDown``, which names it as ``what``."""
        connections = [
            RedisConnection(make_client(*address, self.options), self.timeout, self.timeout, fixed_address=False)
            for address in self.addresses
        ]
        tasks = [
            asyncio.ensure_future(self.ask(connection, address))
            for connection, address in zip(connections, self.addresses, strict=True)
        ]
        try:
            configurations, errors = await self._collect(set(tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=CLOSE_TIMEOUT)
            await asyncio.gather(*[connection.close() for connection in connections])
        if not configurations:
            why = "; ".join(errors) or f"no reply for {self.timeout} s"
            raise BrokerDown(f"{what} is not known: {why} (asked: {', '.join(map(_format, self.addresses))})")
        return max(configurations).primary

    async def _collect(self, pending: set[asyncio.Future[_Configuration]]) -> tuple[list[_Configuration], list[str]]:
        """Return the replies and the errors, until more than half of the servers agree on the newest configuration."""
        configurations: list[_Configuration] = []
        errors: list[str] = []
        deadline = time.monotonic() + self.timeout
        while pending and (remaining := deadline - time.monotonic()) > 0:
            done, pending = await asyncio.wait(pending, timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                try:
                    configurations.append(task.result())
                except Exception as error:  # noqa: BLE001  # another server may reply
                    errors.append(str(error) or repr(error))
            if configurations and configurations.count(max(configurations)) > len(self.addresses) / 2:
                break
        return configurations, errors


class SettingsCheck:
    """Logs a warning for settings with which a server may lose acknowledged entries, once for each server.

    Args:
        key: The key of the stream, for the log.
        has_sentinels: Whether Sentinels may promote another server.
    """

    def __init__(self, key: str, *, has_sentinels: bool) -> None:
        self._key = key
        self._has_sentinels = has_sentinels
        self._warned: set[tuple[str, str]] = set()

    async def run(self, connection: RedisConnection, server_run_id: str) -> None:
        """Read the settings, if the server allows it. Raises ``BrokerError`` without a reply. Cancelling is safe."""
        memory = await _read_settings(connection, "maxmemory*")
        policy = memory.get("maxmemory-policy", "noeviction")
        if policy != "noeviction" and memory.get("maxmemory") != "0":
            self._warn(
                server_run_id,
                "redis_may_evict",
                policy,
                "set maxmemory-policy to noeviction; otherwise the server deletes events or idempotency keys when its"
                " memory is full",
            )
        replicas = await _read_settings(connection, "min-replicas-*")
        setting = replicas.get("min-replicas-to-write")
        required = setting != "0" and replicas.get("min-replicas-max-lag") != "0"
        if setting is not None and not required and (self._has_sentinels or await _has_failover(connection)):
            self._warn(
                server_run_id,
                "redis_may_lose",
                f"min-replicas-to-write {setting}",
                "set min-replicas-to-write to 1 and min-replicas-max-lag to 3 on all servers; otherwise a primary that"
                " was replaced acknowledges events until it notices, and then loses them",
            )

    def _warn(self, server_run_id: str, event: str, policy: str, advice: str) -> None:
        if (server_run_id, event) not in self._warned:
            self._warned.add((server_run_id, event))
            logger.warning(event, stream=self._key, policy=policy, advice=advice)


async def _read_settings(connection: RedisConnection, pattern: str) -> dict[str, str]:
    """Return the settings whose names match, or none if the server does not allow ``CONFIG GET``."""
    try:
        return _decode_pairs(await connection.request("CONFIG", "GET", pattern))
    except BrokerRefused:
        return {}


async def _has_failover(connection: RedisConnection) -> bool:
    """Return whether a server has replicas, or Sentinels that may promote one."""
    replication = cast("bytes", await connection.request("INFO", "replication"))
    if b"connected_slaves:0" not in replication:
        return True
    try:
        subscribers = await connection.request("PUBSUB", "NUMSUB", SENTINEL_CHANNEL)
    except BrokerRefused:
        return False
    return bool(cast("list[int]", subscribers)[1])


def _checked_addresses(name: str, addresses: Sequence[Address]) -> list[Address]:
    found = list(addresses)
    if not found:
        raise ValueError(f"{name} are one or more pairs of a host and a port, not {addresses!r}")
    for address in found:
        if not isinstance(address, tuple) or [type(part) for part in address] != [str, int]:
            raise TypeError(f"{name} are pairs of a host and a port, as ('localhost', 6379), not {address!r}")
    return found


def _decode_pairs(reply: Reply) -> dict[str, str]:
    if isinstance(reply, dict):  # RESP 3
        return {_decode(name): _decode(value) for name, value in reply.items()}
    flat = [_decode(part) for part in cast("list[Reply]", reply)]
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _decode(raw: Reply) -> str:
    return raw.decode() if isinstance(raw, bytes) else str(raw or "")


def _cluster_epoch(cluster_info: str) -> int:
    """Return the configuration epoch from a reply to ``CLUSTER INFO``."""
    lines = dict(line.split(":", 1) for line in cluster_info.split() if ":" in line)
    return int(lines.get("cluster_current_epoch", 0))


def _format(address: Address) -> str:
    return f"{address[0]}:{address[1]}"
