"""Settings of a server with which it may lose what it has acknowledged: said once of each server, in the log."""

from __future__ import annotations

from typing import cast

from ..errors import BrokerRefused
from ..observe.logs import log as logger
from .redis_session import RedisSession, Reply

__all__ = ["RedisAdvice"]

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
