"""Hubs of several processes joined by a stream of Redis or Valkey."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar, cast

from ..._checks import check_count, check_seconds
from ...exceptions import BrokerDown, OutcomeUnknown
from ...hub.broker import LogPosition, TailItem
from ..base import Draft, Retention, Writer
from .connection import Connect, Factory, RedisAdvice, RedisSession, checked_connect, cluster_node, sentinel
from .log import SCRIPT, Elsewhere, RedisLog
from .tail import RedisTail

__all__ = ["RedisBroker", "cluster_node", "sentinel"]


DISAGREED = (
    "publishing is connected to another server than reading: this was not stored, and both connect anew until they"
    " have found the same one"
)
_T = TypeVar("_T")


class RedisBroker:
    """Join the Hubs that have brokers with the same stream. A ``Broker``.

    ``connect`` is a URL (``redis://``, ``rediss://``, ``unix://``), or an async function that returns a new
    ``redis.asyncio.Redis``: that of ``sentinel`` or ``cluster_node``, or one that you write for what a URL cannot say.
    What it returns is ours, and closed. It is called anew after each loss.

    The stream has about the latest ``max_records``, for ``max_age`` seconds (``None``: for ever). All its keys begin
    with ``{stream}``, which is one slot of a cluster. A publish takes ``publish_timeout`` seconds at most, and a server
    that says nothing for ``silence`` seconds is lost.
    """

    confirms: float = 2.0

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
        self._connect = checked_connect(connect)
        self._log = RedisLog(stream, Retention(max_records, max_age))
        self._publish_timeout = publish_timeout
        self._silence = silence
        self._writer = Writer(self._write, publish_timeout)
        self._writing: RedisSession | None = None
        self._tail: RedisTail | None = None  # the one that has joined
        self._scope: asyncio.Timeout | None = None  # of what it waits for
        self._disagreed = False  # it is to end
        self._doubtful = 0.0  # until when nothing is stored unless a tail has joined
        self._advice = RedisAdvice(self._log.stream, replaceable=isinstance(connect, Factory) and connect.replaceable)

    async def publish(
        self, topic: str, payload: bytes, *, idempotency_key: str | None = None, connection: object = None
    ) -> LogPosition:
        """Append an entry, as every ``Broker`` does."""
        if connection is not None:
            raise TypeError("a RedisBroker writes in nobody's transaction; connection is for PostgreSQL")
        return await self._writer.put(Draft(topic, payload, idempotency_key))

    async def close(self) -> None:
        """Give back all connections, as every ``Broker`` does. Twice is once."""
        await self._writer.close()
        await self._drop()

    async def tail(self, after: LogPosition | None) -> AsyncGenerator[TailItem, None]:
        """Follow the entries after a place, as every ``Broker`` does."""
        async with self._session(self._silence) as session:
            tail = RedisTail(session, self._log, self._silence)
            try:
                joined = await tail.join(after)
                await self._advice.look(session, tail.server, self._silence)
                self._tail, self._disagreed, self._doubtful = tail, False, 0.0
                yield joined
                while True:
                    for item in await self._while_agreed(tail.items()):
                        yield item
            except (GeneratorExit, asyncio.CancelledError):
                self._doubtful = 0.0  # there may be no other tail
                raise
            finally:
                self._tail = None

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

    async def _while_agreed(self, doing: Awaitable[_T]) -> _T:
        """Await something of the tail's, which ends with ``BrokerDown`` when the tail is on another server."""
        try:
            async with asyncio.timeout(0 if self._disagreed else None) as self._scope:
                return await doing
        except TimeoutError as error:
            raise BrokerDown(DISAGREED) from error
        finally:
            self._scope = None

    def _disagree(self) -> None:
        """Have the tail end, and store nothing before there is another one, or that takes too long."""
        self._disagreed = True
        self._doubtful = time.monotonic() + self._silence
        if self._scope is not None:
            self._scope.reschedule(asyncio.get_running_loop().time())

    async def _write(self, drafts: Sequence[Draft]) -> Sequence[LogPosition]:
        try:
            if self._tail is None and time.monotonic() < self._doubtful:
                raise BrokerDown(DISAGREED)  # noqa: TRY301  # the connection is closed as for every other reason
            if self._writing is None:
                self._writing = await RedisSession.open(self._connect, self._publish_timeout / 2)
            call = self._log.call(None, drafts, "" if self._tail is None else self._tail.server)
            reply = await self._writing.run(SCRIPT, *call.arguments, limit=self._publish_timeout)
            return self._log.answer(cast("list[bytes]", reply), call).positions
        except Elsewhere as error:
            await self._drop()
            if self._tail is not None:
                self._disagree()
            raise BrokerDown(DISAGREED) from error
        except BaseException:
            await self._drop()
            raise

    async def _drop(self) -> None:
        session, self._writing = self._writing, None
        if session is not None:
            await session.close()
