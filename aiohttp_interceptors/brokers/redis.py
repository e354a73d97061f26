"""Hubs of several processes joined by a stream of Redis or Valkey."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import cast

from ..errors import BrokerDown, BrokerRefused, OutcomeUnknown
from ..hub.arguments import check_count, check_seconds
from ..hub.broker import Place, TailItem
from ..observe.logs import log as logger
from .redis_log import SCRIPT, RedisLog
from .redis_session import Connect, RedisSession, Reply, checked_connect
from .redis_tail import RedisTail
from .retention import Retention
from .writer import Draft, Writer

__all__ = ["RedisBroker"]


class RedisBroker:
    """Join the Hubs that have brokers with the same stream. A ``Broker``.

    ``connect`` is a URL (``redis://``, ``rediss://``, ``unix://``), or an async function that returns a new
    ``redis.asyncio.Redis``, for Sentinel and whatever else a URL cannot say; what it returns is ours, and closed. It is
    called anew after each loss.

    The stream has about the latest ``max_records``, for ``max_age`` seconds (``None``: for ever). All its keys begin
    with ``{stream}``, which is one slot of a cluster. A publish takes ``publish_timeout`` seconds at most, and a server
    that says nothing for ``silence`` seconds is lost.
    """

    def __init__(
        self,
        connect: Connect,
        *,
        stream: str = "events",
        max_records: int = 100_000,
        max_age: float | None = 86_400.0,
        publish_timeout: float = 5.0,
        silence: float = 10.0,
    ) -> None:
        check_count("max_records", max_records, 1)
        check_seconds("max_age", max_age, "for ever")
        check_seconds("publish_timeout", publish_timeout, "")
        check_seconds("silence", silence, "")
        if not isinstance(stream, str) or not stream or set(stream) & set("{}"):
            raise ValueError(f"stream is the name of a stream, without braces, not {stream!r}")
        self._connect = checked_connect(connect)
        self._log = RedisLog(stream, Retention(max_records, max_age))
        self._publish_timeout = publish_timeout
        self._silence = silence
        self._writer = Writer(self._write, publish_timeout)
        self._writing: RedisSession | None = None
        self._warned = False

    async def publish(
        self, topic: str, payload: bytes, *, idempotency_key: str | None = None, connection: object = None
    ) -> Place:
        """Append an entry, as every ``Broker`` does."""
        if connection is not None:
            raise TypeError("a RedisBroker writes in nobody's transaction; connection is for PostgreSQL")
        return await self._writer.put(Draft(topic, payload, idempotency_key))

    async def close(self) -> None:
        """Give back all connections, as every ``Broker`` does. Twice is once."""
        await self._writer.close()
        await self._drop()

    async def tail(self, after: Place | None) -> AsyncGenerator[TailItem, None]:
        """Follow the entries after a place, as every ``Broker`` does."""
        async with self._session(self._silence) as session:
            await self._warn(session)
            tail = RedisTail(session, self._log, self._silence)
            yield await tail.join(after)
            while True:
                for item in await tail.items():
                    yield item

    @asynccontextmanager
    async def _session(self, patience: float) -> AsyncIterator[RedisSession]:
        """Open a session for one tail, to which an unknown outcome is a lost server."""
        session = await RedisSession.open(self._connect, patience)
        try:
            yield session
        except OutcomeUnknown as error:
            raise BrokerDown(str(error)) from error
        finally:
            await session.close()

    async def _write(self, drafts: Sequence[Draft]) -> Sequence[Place]:
        try:
            if self._writing is None:
                self._writing = await RedisSession.open(self._connect, self._publish_timeout / 2)
            arguments = self._log.call(None, drafts)
            reply = await self._writing.run(SCRIPT, *arguments, limit=self._publish_timeout)
        except BaseException:
            await self._drop()
            raise
        answer = self._log.answer(cast("list[bytes]", reply))
        self._log.acknowledged = answer.latest
        return answer.places

    async def _drop(self) -> None:
        session, self._writing = self._writing, None
        if session is not None:
            await session.close()

    async def _warn(self, session: RedisSession) -> None:
        """Warn, once, when the server may delete the log to make room; not every server tells."""
        if self._warned:
            return
        try:
            reply = await session.ask("CONFIG", "GET", "maxmemory*", limit=self._silence)
        except BrokerRefused:
            return
        pairs = reply if isinstance(reply, dict) else _pairs(cast("list[bytes]", reply))
        policy = cast("bytes", pairs.get(b"maxmemory-policy", b"noeviction")).decode()
        if policy != "noeviction" and pairs.get(b"maxmemory") != b"0":
            self._warned = True
            logger.warning(
                "redis_may_evict",
                stream=self._log.stream,
                policy=policy,
                advice="set maxmemory-policy to noeviction: or it deletes events or idempotency keys to make room",
            )


def _pairs(reply: list[bytes]) -> dict[bytes, Reply]:
    return dict(zip(reply[::2], reply[1::2], strict=True))
