"""Clients of the server that is the right one just now: the primary that Sentinels name, or a node of a Cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias, cast

from ..errors import BrokerDown
from ..hub.arguments import check_seconds
from .redis_log import key_of
from .redis_session import Redis, RedisSession, Reply, client_at, slot_of

__all__ = ["Factory", "cluster_node", "sentinel"]

Address: TypeAlias = tuple[str, int]
CLOSING = 1.0  # seconds that the connections to those asked have to be closed


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
