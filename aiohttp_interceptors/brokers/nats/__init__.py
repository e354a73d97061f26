"""A broker on NATS JetStream: one stream that the processes of many machines share, replicated if it is configured so.

``NatsBroker`` has a connection to publish, and one for each tail.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence

from ..._checks import check_count, check_seconds
from ...exceptions import BrokerDown, OutcomeUnknown
from ...hub.broker import IDEMPOTENCY_WINDOW, LogPosition
from ..base import AppendRequest, AppendResult, BaseBroker, LogRetention
from .connection import Connect, NatsConnection, NoStreamResponse
from .stream import NatsStream
from .tail import NatsTail

__all__ = ["NatsBroker"]


# Shares of ``publish_timeout``, so that a failure is known with its reason before the timeout is over.
CONNECT_SHARE = 0.5
VERIFY_SHARE = 0.25
ACK_SHARE = 0.9


class NatsBroker(BaseBroker):
    """A ``Broker`` that keeps the records of a Hub in a stream of NATS JetStream, for the processes of many machines.

    An acknowledged record survives the crash of the server's process. With ``sync_interval: always`` in the server's
    configuration it survives a crash of the machine, and with ``replicas=3`` the loss of a server.

    The stream is created if it is missing. An existing one gets the limits that are given here, and must have the
    subjects ``stream.>`` and no others. Changes, and changes that the server refuses, are logged as
    ``nats_stream_limits``. The broker needs nats-server 2.10 or later. The server's ``max_payload``, 1 MiB by default,
    limits the size of an event.

    ``publish`` and ``tail`` raise ``BrokerDown`` while no server answers or the stream has no leader. They raise
    ``BrokerRefused`` while the server denies access, or the stream belongs to another application.

    Args:
        connect: The URL of a server (``nats://``, ``tls://``, ``ws://``, ``wss://``); or a list of URLs of a cluster,
            which are tried in random order and share the time to connect; or an async function that returns a new
            client, for example ``functools.partial(nats.connect, "tls://nats.example", user_credentials="hub.creds")``.
            The function is called for each connection with keyword arguments for ``nats.connect``, which it must pass
            on. The broker closes the client.
        stream: Name of the stream: 1 to 64 letters, digits, ``-`` and ``_``.
        max_records: Number of records to keep.
        max_age: Seconds to keep a record, or ``None`` for no limit. At least 120, because the stream remembers
            idempotency keys as long.
        publish_timeout: Seconds until ``publish`` raises.
        read_timeout: Seconds without a message or a heartbeat after which a server is lost. A tail has as long to
            connect, and for the answer to each request.
        replicas: Number of servers that store the stream. ``None`` keeps that of an existing stream, and is 1 for a
            new one.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has a value that cannot work.
    """

    confirms: float = 2.0
    """Seconds between two ``CaughtUp`` of a tail, at most, while the server answers."""

    def __init__(
        self,
        connect: Connect,
        *,
        stream: str = "events",
        max_records: int = 100_000,
        max_age: float | None = 86_400.0,
        publish_timeout: float = 5.0,
        read_timeout: float = 10.0,
        replicas: int | None = None,
    ) -> None:
        self._connect = _checked_connect(connect)
        if not isinstance(stream, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", stream, re.ASCII):
            raise ValueError(f"stream is 1 to 64 letters, digits, - and _, not {stream!r}")
        check_count("max_records", max_records, 1)
        check_seconds("max_age", max_age, "no limit", minimum=IDEMPOTENCY_WINDOW)
        check_seconds("publish_timeout", publish_timeout, "")
        check_seconds("read_timeout", read_timeout, "")
        if replicas is not None:
            check_count("replicas", replicas, 1)
        super().__init__(publish_timeout)
        self._stream = NatsStream(stream, LogRetention(max_records, max_age), replicas)
        self._publish_timeout = publish_timeout
        self._read_timeout = read_timeout
        self._connection: NatsConnection | None = None  # to publish

    async def _write(self, requests: Sequence[AppendRequest]) -> Sequence[AppendResult]:
        try:
            results = await self._append(requests)
            retries = [number for number, result in enumerate(results) if isinstance(result, NoStreamResponse)]
            if retries:  # the stream was deleted: the next connection creates it
                await self._disconnect()
                retried = await self._append([requests[number] for number in retries])
                for number, result in zip(retries, retried, strict=True):
                    results[number] = result
        except BaseException:
            await self._disconnect()
            raise
        if any(isinstance(result, OutcomeUnknown) for result in results):
            await self._disconnect()
        return results

    async def _append(self, requests: Sequence[AppendRequest]) -> list[AppendResult]:
        connection = await self._connected()
        return await self._stream.append(connection, requests, self._publish_timeout * ACK_SHARE)

    async def _connected(self) -> NatsConnection:
        """Return the connection to publish. When it is opened, the stream is created or verified."""
        if self._connection is not None and self._connection.lost is not None:
            await self._disconnect()
        if self._connection is None:
            connect_timeout = self._publish_timeout * CONNECT_SHARE
            verify_timeout = self._publish_timeout * VERIFY_SHARE
            connection = await NatsConnection.open(self._connect, connect_timeout, ping_timeout=self._read_timeout)
            try:
                async with asyncio.timeout(verify_timeout):
                    await self._stream.verify(connection)
                self._connection = connection
            except TimeoutError:
                raise BrokerDown(f"JetStream has not answered for {verify_timeout} s; nothing was sent") from None
            finally:
                if self._connection is None:
                    await connection.close()
        return self._connection

    async def _erase(self, topic: str, before: LogPosition) -> None:
        connection = await NatsConnection.open(self._connect, self._read_timeout)
        try:
            await self._stream.erase(connection, topic, before)
        finally:
            await connection.close()

    async def _open_tail(self) -> NatsTail:
        return NatsTail(await NatsConnection.open(self._connect, self._read_timeout), self._stream)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


def _checked_connect(connect: Connect) -> Connect:
    if callable(connect):
        return connect
    urls = [connect] if isinstance(connect, str) else connect
    if not isinstance(urls, Iterable) or not all(isinstance(url, str) for url in urls):
        raise TypeError(
            f"connect is a URL like nats://localhost:4222, a list of them, or an async function, not {connect!r}"
        )
    if not urls or not all(re.match(r"(nats|tls|ws|wss)://[^/]", url) for url in urls):
        raise ValueError(f"connect is a URL like nats://localhost:4222, or a list of them, not {connect!r}")
    return connect
