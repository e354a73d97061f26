"""The stream on the server: create and configure it, append to it, and verify that it has lost nothing."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple, cast

from ..._logging import log as logger
from ...exceptions import BrokerDown, BrokerError, BrokerRefused, OutcomeUnknown
from ...hub.broker import IDEMPOTENCY_WINDOW, LogPosition
from ..base import AppendRequest, AppendResult, LogRetention, lost_before_erasing
from .connection import RETRY_INTERVAL, JsonObject, Msg, NatsConnection, check_response, decode_response
from .log import ERASED_KEY, METADATA_KEY, Checkpoint, Checkpoints, NatsLog, StreamInfo, message_id, subject_of

__all__ = ["NatsStream"]


HEADER_BYTES = 128  # at most, of the headers of a message with an idempotency key
NANOSECONDS = 10**9

# Error codes of JetStream (err_code).
_NO_MESSAGE = 10037
_BAD_SEQUENCE = 10043
_NOT_DELETED = 10057
_NAME_IN_USE = 10058
_NO_STREAM = 10059


class NatsStream:
    """The stream, and what this process knows of its log. All methods raise only ``BrokerError``.

    Args:
        name: Name of the stream. Its subjects are ``name.>``.
        retention: When the server deletes entries.
        replicas: Number of replicas; ``None`` for those that the stream has, and 1 for a new one.
    """

    def __init__(self, name: str, retention: LogRetention, replicas: int | None) -> None:
        self.name: str = name
        self.checkpoints: Checkpoints = Checkpoints()
        self._log: NatsLog  # as of the last verify()
        self._retention_config: JsonObject = {
            "discard": "old",
            "max_msgs": retention.max_records,
            "max_age": 0 if retention.max_age is None else int(retention.max_age * NANOSECONDS),
            "duplicate_window": int(IDEMPOTENCY_WINDOW * NANOSECONDS),
        }
        self._replicas = replicas
        self._configured = False
        self._verifying = asyncio.Lock()

    async def verify(self, connection: NatsConnection, after: LogPosition | None = None) -> NatsLog:
        """Return the state of the stream, which is created if it is missing.

        If the server lost entries that this process received or had acknowledged, or the position ``after``, the log
        starts another epoch.
        """
        async with self._verifying:  # a tail and a write must not report the same loss twice
            high_water_mark = self.checkpoints.high_water_mark  # before the request: later entries may not be in it
            log = NatsLog.from_info(await self._ensure_exists(connection))
            self.checkpoints.discard_truncated(log)
            checkpoints = [checkpoint for checkpoint in self.checkpoints if checkpoint.offset <= high_water_mark]
            if after is not None and after.epoch == log.epoch and after.offset > high_water_mark:
                checkpoints.append(Checkpoint(after.offset, None))
            kept = [checkpoint for checkpoint in checkpoints if checkpoint.offset >= log.first]
            lost_after = await self._find_loss(connection, log, kept)
            if lost_after is not None:
                log = await self._truncate(connection, log, lost_after)
                self.checkpoints.discard_truncated(log)
            self._log = log
        return log

    async def confirm(self, connection: NatsConnection, log: NatsLog) -> NatsLog:
        """Return the state that the leader has now. Raises ``BrokerDown`` if it is not a continuation of ``log``."""
        high_water_mark = self.checkpoints.high_water_mark
        now = NatsLog.from_info(_stream_info(await self._request_info(connection)))
        if now.epochs != log.epochs or now.last < high_water_mark:
            raise BrokerDown(f"stream {self.name} was deleted, or has lost its latest entries")
        return now

    async def append(
        self, connection: NatsConnection, requests: Sequence[AppendRequest], ack_timeout: float
    ) -> list[AppendResult]:
        """Publish entries without waiting in between, then wait for the acknowledgements."""
        high_water_mark = self.checkpoints.high_water_mark
        sent = [await self._publish(connection, request) for request in requests]
        futures = [future for future in sent if isinstance(future, asyncio.Future)]
        if futures:
            await asyncio.wait(futures, timeout=ack_timeout)
        acks = [_ack_of(reply) for reply in sent]
        stored = [(ack.seq, n) for n, ack in enumerate(acks) if isinstance(ack, _PubAck) and not ack.duplicate]
        if stored:
            if min(stored)[0] <= high_water_mark:  # the stream is another one, or lost entries
                await self.verify(connection)
            offset, number = max(stored)
            content = self._subject(requests[number]), requests[number].payload
            self.checkpoints.add_acknowledged(Checkpoint(offset, content))
        log = self._log
        return [log.position(ack.seq) if isinstance(ack, _PubAck) else ack for ack in acks]

    async def erase(self, connection: NatsConnection, topic: str, before: LogPosition) -> None:
        """Delete the messages of a topic before a position. A note in the metadata says so before.

        Each is deleted on its own, because then the server overwrites it, which a purge of the subject does not. It
        takes some milliseconds, in which the server stores nothing: they are deleted one after the other.
        """
        info = _stream_info(await self._request_info(connection))
        log = NatsLog.from_info(info)
        if before.epoch != log.epoch or before.offset > log.last:
            raise lost_before_erasing(topic)
        if log.erased < before.offset:
            metadata = cast("dict[str, str]", info["config"].get("metadata") or {})
            config = {**info["config"], "metadata": {**metadata, ERASED_KEY: log.with_erased(before.offset)}}
            check_response(await connection.request(f"STREAM.UPDATE.{self.name}", config))
        offset = 0
        while (found := await self._find_next(connection, topic, offset)) is not None and found < before.offset:
            response = await connection.request(f"STREAM.MSG.DELETE.{self.name}", {"seq": found})
            if not _is_not_found(response):  # otherwise another process was faster
                check_response(response)
            offset = found

    async def _find_next(self, connection: NatsConnection, topic: str, after: int) -> int | None:
        """Return the offset of the next message of a topic, or ``None`` if there is none."""
        selection: JsonObject = {"seq": after + 1, "next_by_subj": subject_of(self.name, topic)}
        response = await connection.request(f"STREAM.MSG.GET.{self.name}", selection)
        if _error_code(response) == _NO_MESSAGE:
            return None
        return cast("int", cast("JsonObject", check_response(response)["message"])["seq"])

    async def _publish(self, connection: NatsConnection, request: AppendRequest) -> asyncio.Future[Msg] | BrokerError:
        key = request.idempotency_key
        size = len(request.payload) + (0 if key is None else HEADER_BYTES)
        if size > connection.max_payload:
            return BrokerRefused(
                f"an event under {request.topic!r} has {size} bytes with its headers, and this server accepts"
                f" {connection.max_payload}: set max_payload in the configuration of nats-server, such as"
                f" max_payload: 8MB"
            )
        headers = None if key is None else {"Nats-Msg-Id": message_id(key)}
        try:
            return await connection.publish(self._subject(request), request.payload, headers)
        except BrokerError as error:
            return error

    def _subject(self, request: AppendRequest) -> str:
        return subject_of(self.name, request.topic)

    async def _request_info(self, connection: NatsConnection) -> JsonObject:
        """Request the stream's info from its leader. Raises ``BrokerDown`` if it has none within the timeout.

        A node that has been isolated for some time answers with what it has, and names no leader.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + connection.timeout
        while True:
            response = await connection.request(f"STREAM.INFO.{self.name}")
            cluster = cast("JsonObject | None", response.get("cluster"))
            if cluster is None or cluster.get("leader"):
                return response
            if clock() + RETRY_INTERVAL > deadline:
                raise BrokerDown(f"stream {self.name} has had no leader for {connection.timeout} s")
            await asyncio.sleep(RETRY_INTERVAL)

    async def _ensure_exists(self, connection: NatsConnection) -> StreamInfo:
        """Return the stream's info. Create the stream if it is missing, and configure it the first time."""
        name = self.name
        response = await self._request_info(connection)
        if _error_code(response) == _NO_STREAM:
            config: JsonObject = {"name": name, "subjects": [f"{name}.>"], "storage": "file", "retention": "limits"}
            config |= {"num_replicas": self._replicas or 1, **self._retention_config}
            response = await connection.request(f"STREAM.CREATE.{name}", config)
            if _error_code(response) == _NAME_IN_USE:  # another process has created it
                response = await self._request_info(connection)
        info = _stream_info(response)
        config = info["config"]
        if config.get("subjects") != [f"{name}.>"] or config.get("retention") != "limits":
            raise BrokerRefused(
                f"stream {name} has the subjects {config.get('subjects')} and the retention {config.get('retention')}:"
                f" a Hub needs a stream with the subjects ['{name}.>'] and the retention limits"
            )
        if not self._configured:
            await self._configure(connection, config)
            self._configured = True
        return info

    async def _configure(self, connection: NatsConnection, config: JsonObject) -> None:
        """Apply the broker's arguments, the replicas last and separately: not every server can change them."""
        changes = {name: value for name, value in self._retention_config.items() if config.get(name) != value}
        if changes:
            config = await self._update(connection, config, changes)
        if self._replicas is not None and config.get("num_replicas") != self._replicas:
            await self._update(connection, config, {"num_replicas": self._replicas})

    async def _update(self, connection: NatsConnection, config: JsonObject, changes: JsonObject) -> JsonObject:
        """Change the configuration, and return the new one, or the old one if the server refuses."""
        response = await connection.request(f"STREAM.UPDATE.{self.name}", {**config, **changes})
        error = response.get("error")
        had = {f"had_{name}": config.get(name) for name in changes}
        (logger.warning if error else logger.info)(
            "nats_stream_limits", stream=self.name, **changes, **had, error=error
        )
        return config if error else cast("StreamInfo", response)["config"]

    async def _find_loss(
        self, connection: NatsConnection, log: NatsLog, checkpoints: Sequence[Checkpoint]
    ) -> int | None:
        """Return the offset after which entries may be lost, or ``None`` if the server has the last checkpoint."""
        if not checkpoints or await self._has(connection, log, checkpoints[-1]):
            return None
        intact, lost = -1, len(checkpoints) - 1
        while lost - intact > 1:
            middle = (intact + lost) // 2
            if await self._has(connection, log, checkpoints[middle]):
                intact = middle
            else:
                lost = middle
        return checkpoints[intact].offset if intact >= 0 else log.first - 1

    async def _has(self, connection: NatsConnection, log: NatsLog, checkpoint: Checkpoint) -> bool:
        """Return whether the server has, or had and deleted, the entry of a checkpoint."""
        if checkpoint.offset > log.last or checkpoint.content is None:
            return checkpoint.offset <= log.last
        response = await connection.request(f"STREAM.MSG.GET.{self.name}", {"seq": checkpoint.offset})
        if _error_code(response) == _NO_MESSAGE:
            return True
        message = cast("dict[str, str]", check_response(response)["message"])
        if isinstance(checkpoint.content, int):
            return _parse_timestamp(message["time"]) == checkpoint.content
        return checkpoint.content == (message["subject"], base64.b64decode(message.get("data", "")))

    async def _truncate(self, connection: NatsConnection, log: NatsLog, offset: int) -> NatsLog:
        """Start another epoch after an offset, unless another process did, and return the state then."""
        info = _stream_info(await self._request_info(connection))
        if NatsLog.from_info(info).epochs == log.epochs:
            metadata = cast("dict[str, str]", info["config"].get("metadata") or {})
            config = {**info["config"], "metadata": {**metadata, METADATA_KEY: log.truncated(offset)}}
            check_response(await connection.request(f"STREAM.UPDATE.{self.name}", config))
            info = _stream_info(await self._request_info(connection))
        return NatsLog.from_info(info)


class _PubAck(NamedTuple):
    """JetStream's acknowledgement of a message."""

    seq: int
    duplicate: bool


def _ack_of(sent: asyncio.Future[Msg] | BrokerError) -> _PubAck | BrokerError:
    if isinstance(sent, BrokerError):
        return sent
    if not sent.done():
        sent.cancel()
        return OutcomeUnknown("NATS did not acknowledge the event in time")
    try:
        response = check_response(decode_response(sent.result()))
    except BrokerError as error:
        return error
    return _PubAck(cast("int", response["seq"]), "duplicate" in response)


def _error_code(response: JsonObject) -> object:
    return cast("JsonObject", response.get("error") or {}).get("err_code")


def _is_not_found(response: JsonObject) -> bool:
    """Return whether there was no message to delete."""
    error, code = cast("JsonObject", response.get("error") or {}), _error_code(response)
    return code == _BAD_SEQUENCE or (code == _NOT_DELETED and "no message found" in str(error.get("description")))


def _stream_info(response: JsonObject) -> StreamInfo:
    return cast("StreamInfo", check_response(response))


def _parse_timestamp(time: str) -> int:
    """Return a timestamp in nanoseconds, which a float cannot hold."""
    seconds, _, fraction = time.removesuffix("Z").partition(".")
    return int(datetime.fromisoformat(f"{seconds}+00:00").timestamp()) * NANOSECONDS + int(fraction.ljust(9, "0"))
