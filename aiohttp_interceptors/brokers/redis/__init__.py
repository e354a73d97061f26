"""A broker on a stream of Redis or Valkey: one server, or one that fails over with Sentinels or in a Cluster.

``RedisBroker`` has two connections, one for publishing and one for its tail, which ``XREAD`` blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..._checks import check_count, check_seconds
from ...exceptions import BrokerDown
from ...hub.broker import LogPosition
from ..base import AppendRequest, BaseBroker, LogRetention
from .connection import Connect, RedisConnection, check_connect
from .log import RedisLog, WrongServer
from .tail import SPLIT_BRAIN, RedisTail, SplitBrainGuard
from .topology import PrimaryFactory, SettingsCheck, cluster_node, sentinel

__all__ = ["RedisBroker", "cluster_node", "sentinel"]


class RedisBroker(BaseBroker):
    """A ``Broker`` that keeps the records of a Hub in a stream of Redis or Valkey.

    How durable an acknowledged record is depends on the persistence and the replication that the server is configured
    for. If the server loses a record, clients receive a gap event.

    ``publish`` and ``tail`` raise ``BrokerDown`` while the server cannot be reached, is loading, is a replica or lacks
    the replicas that it needs, and while the two connections of the broker lead to different servers. They raise
    ``BrokerRefused`` when authentication fails, a permission is missing, or the memory of the server is full.

    All keys begin with ``{stream}``, so that they are in one slot of a Cluster.

    Args:
        connect: A URL (``redis://``, ``rediss://`` or ``unix://``), or an async function without arguments that returns
            a new ``redis.asyncio.Redis``, such as the result of ``sentinel`` or ``cluster_node``. It is called for each
            connection. The broker closes the client.
        stream: Name of the stream. Hubs whose brokers have the same stream receive the same events.
        max_records: Approximate number of records to keep.
        max_age: Seconds to keep a record, or ``None`` for no limit. Old records are deleted with the next publish.
        publish_timeout: Seconds until ``publish`` raises.
        read_timeout: Seconds without an answer after which a tail has lost the server.

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
    ) -> None:
        check_count("max_records", max_records, 1)
        check_seconds("max_age", max_age, "no limit")
        check_seconds("publish_timeout", publish_timeout, "")
        check_seconds("read_timeout", read_timeout, "")
        check_connect(connect)
        super().__init__(publish_timeout)
        self._connect = connect
        self._publish_timeout = publish_timeout
        self._read_timeout = read_timeout
        self._log = RedisLog(stream, LogRetention(max_records, max_age))
        self._guard = SplitBrainGuard(read_timeout)
        has_sentinels = isinstance(connect, PrimaryFactory) and connect.has_sentinels
        self._settings_check = SettingsCheck(self._log.key, has_sentinels=has_sentinels)
        self._writing: RedisConnection | None = None

    async def _write(self, requests: Sequence[AppendRequest]) -> Sequence[LogPosition]:
        try:
            self._guard.check_publish()
            if self._writing is None:
                self._writing = await RedisConnection.open(
                    self._connect, self._publish_timeout / 2, self._publish_timeout
                )
            return await self._log.append(self._writing, requests, self._guard.server_run_id)
        except WrongServer as error:
            await self._disconnect()
            self._guard.report_mismatch()
            raise BrokerDown(SPLIT_BRAIN) from error
        except BaseException:
            await self._disconnect()
            raise

    async def _erase(self, topic: str, before: LogPosition) -> None:
        connection = await RedisConnection.open(self._connect, self._publish_timeout / 2, self._read_timeout)
        try:
            await self._log.erase(connection, topic, before)
        finally:
            await connection.close()

    async def _open_tail(self) -> RedisTail:
        connection = await RedisConnection.open(self._connect, self._read_timeout, self._read_timeout)
        return RedisTail(connection, self._log, self._read_timeout, self._settings_check, self._guard)

    async def _disconnect(self) -> None:
        connection, self._writing = self._writing, None
        if connection is not None:
            await connection.close()
