"""The client libraries alone: they store, read and wait in the most direct way."""

from __future__ import annotations

import asyncio
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import cast

import nats
import psycopg
from nats.js.api import DeliverPolicy, StreamConfig
from redis.asyncio import Redis

__all__ = ["BARE", "Bare"]

PAGE = 1000  # entries per read, as in the brokers
POLL_INTERVAL = 0.001  # seconds; for a library without notifications


class Bare(ABC):
    """One connection to a server, with its own log there."""

    def __init__(self, url: str) -> None:
        self.url = url

    @abstractmethod
    async def open(self) -> None:
        """Connect, and create the log."""

    @abstractmethod
    async def append(self, payloads: Sequence[bytes]) -> None:
        """Store payloads, in one round trip if possible, and wait for the acknowledgement."""

    @abstractmethod
    async def read(self, count: int) -> None:
        """Read ``count`` entries from the start, as objects of the library."""

    @abstractmethod
    def receive(self) -> AsyncIterator[bytes]:
        """Yield new payloads."""

    @abstractmethod
    async def close(self) -> None:
        """Disconnect."""


class BareRedis(Bare):
    """XADD in a pipeline, and XREAD."""

    async def open(self) -> None:
        self._client = Redis.from_url(self.url)

    async def append(self, payloads: Sequence[bytes]) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for payload in payloads:
            pipeline.xadd("bare", {"t": "topic", "p": payload})  # type: ignore[unused-awaitable]  # a pipeline does not return a coroutine
        await pipeline.execute()

    async def read(self, count: int) -> None:
        last, got = b"0", 0
        while got < count:
            entries = await self._page(last)
            got += len(entries)
            last = entries[-1][0]

    async def receive(self) -> AsyncIterator[bytes]:
        last = b"$"
        while True:
            entries = await self._page(last, block=0)
            for _, fields in entries:
                yield fields[b"p"]
            last = entries[-1][0]

    async def _page(self, last: bytes, block: int | None = None) -> list[tuple[bytes, dict[bytes, bytes]]]:
        reply = await self._client.xread({"bare": last}, count=PAGE, block=block)
        return cast("list[list[list[tuple[bytes, dict[bytes, bytes]]]]]", reply)[0][1]

    async def close(self) -> None:
        await self._client.aclose()


class BarePostgres(Bare):
    """INSERT with NOTIFY, LISTEN and SELECT."""

    async def open(self) -> None:
        self._connection = await psycopg.AsyncConnection.connect(self.url, autocommit=True)
        await self._connection.execute(
            "CREATE TABLE IF NOT EXISTS bare (id bigserial PRIMARY KEY, topic text, payload bytea)"
        )

    async def append(self, payloads: Sequence[bytes]) -> None:
        topics = ["topic"] * len(payloads)
        await self._connection.execute(
            "WITH stored AS"
            " (INSERT INTO bare (topic, payload) SELECT * FROM unnest(%s::text[], %b::bytea[]) RETURNING 1)"
            " SELECT pg_notify('bare', '') FROM stored LIMIT 1",
            (topics, list(payloads)),
        )

    async def _page(self, last: int) -> list[tuple[int, str, bytes]]:
        cursor = self._connection.cursor(binary=True)
        await cursor.execute(
            "SELECT id, topic, payload FROM bare WHERE id > %s ORDER BY id LIMIT %s", (last, PAGE), prepare=True
        )
        return await cursor.fetchall()

    async def read(self, count: int) -> None:
        last = got = 0
        while got < count:
            rows = await self._page(last)
            got += len(rows)
            last = rows[-1][0]

    async def receive(self) -> AsyncIterator[bytes]:
        cursor = await self._connection.execute("SELECT coalesce(max(id), 0) FROM bare")
        ((last,),) = await cursor.fetchall()
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as listening:
            await listening.execute("LISTEN bare")
            async for _ in listening.notifies():
                rows = await self._page(last)
                for _, _, payload in rows:
                    yield payload
                last = rows[-1][0] if rows else last

    async def close(self) -> None:
        await self._connection.close()


class BareNats(Bare):
    """Concurrent publishes, and an ordered consumer."""

    async def open(self) -> None:
        self._client = await nats.connect(self.url)
        self._stream = self._client.jetstream()
        await self._stream.add_stream(StreamConfig(name="bare", subjects=["bare.>"]))

    async def append(self, payloads: Sequence[bytes]) -> None:
        await asyncio.gather(*[self._stream.publish("bare.topic", payload) for payload in payloads])

    async def read(self, count: int) -> None:
        subscription = await self._stream.subscribe("bare.>", ordered_consumer=True, pending_bytes_limit=2**30)
        for _ in range(count):
            await subscription.next_msg(timeout=10)
        await subscription.unsubscribe()

    async def receive(self) -> AsyncIterator[bytes]:
        subscription = await self._stream.subscribe("bare.>", ordered_consumer=True, deliver_policy=DeliverPolicy.NEW)
        while True:
            yield (await subscription.next_msg(timeout=60)).data

    async def close(self) -> None:
        await self._client.close()


class BareSqlite(Bare):
    """INSERT in one transaction, and polling of data_version every millisecond."""

    async def open(self) -> None:
        self._connection = sqlite3.connect(self.url + ".bare", isolation_level=None, timeout=10)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("CREATE TABLE IF NOT EXISTS bare (id INTEGER PRIMARY KEY, topic TEXT, payload BLOB)")

    async def append(self, payloads: Sequence[bytes]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany("INSERT INTO bare (topic, payload) VALUES ('topic', ?)", [(p,) for p in payloads])
        self._connection.execute("COMMIT")

    def _page(self, last: int) -> list[tuple[int, str, bytes]]:
        return self._connection.execute(
            "SELECT id, topic, payload FROM bare WHERE id > ? ORDER BY id LIMIT ?", (last, PAGE)
        ).fetchall()

    async def read(self, count: int) -> None:
        last = got = 0
        while got < count:
            rows = self._page(last)
            got += len(rows)
            last = rows[-1][0]

    async def receive(self) -> AsyncIterator[bytes]:
        ((last,),) = self._connection.execute("SELECT coalesce(max(id), 0) FROM bare").fetchall()
        seen = None
        while True:
            ((version,),) = self._connection.execute("PRAGMA data_version").fetchall()
            if version == seen:
                await asyncio.sleep(POLL_INTERVAL)
                continue
            seen = version
            rows = self._page(last)
            for _, _, payload in rows:
                yield payload
            last = rows[-1][0] if rows else last

    async def close(self) -> None:
        self._connection.close()


BARE: dict[str, type[Bare]] = {
    "sqlite": BareSqlite,
    "redis": BareRedis,
    "postgres": BarePostgres,
    "nats": BareNats,
}
