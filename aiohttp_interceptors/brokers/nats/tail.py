"""One tail of the log: a pull consumer that starts after an offset, and confirmations by the stream's leader.

nats-py's ordered consumer is not used, because it resets itself without a report.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple, cast
from uuid import uuid4

from ...exceptions import BrokerDown, BrokerError
from ...hub.broker import CaughtUp, Entry, Erased, LogPosition, Subscribed, TailItem, Trimmed, Truncated
from .connection import JsonObject, Msg, NatsConnection, check_response
from .log import Checkpoint, NatsLog, topic_of
from .stream import NatsStream

__all__ = ["Confirmation", "NatsTail", "PullConsumer"]


MAX_BATCH_MESSAGES = 500  # of a pull request
MAX_BATCH_BYTES = 2**20  # of a pull request: the server sends no more than this before the next one
PULL_EXPIRES = 6  # times the read timeout, after which the server ends a pull request
MAX_HEARTBEAT = 1.0  # seconds between two idle heartbeats of the server
CLOSE_TIMEOUT = 1.0  # seconds to send the deletion of the consumer
MIN_INACTIVE_THRESHOLD = 5.0  # seconds of inactivity, at least, after which the server deletes the consumer
CONFIRM_INTERVAL = 1.0  # seconds between two requests to the leader, which alone knows what the stream has
MAX_CONFIRM_AGE = 2.0  # seconds since a request was sent; an older answer does not confirm that the server answers
CONFIRM_HEARTBEATS = 2  # idle heartbeats after which an entry that the leader reported, and that is missing, is gone
NANOSECONDS = 10**9
ACK_TOKENS = 9  # in the reply subject of a message, if the server has no domain


class NatsTail:
    """Reads the log after a position.

    Args:
        connection: A connection that only this tail uses. Its timeout is the read timeout.
        stream: The stream.
    """

    def __init__(self, connection: NatsConnection, stream: NatsStream) -> None:
        self._connection = connection
        self._stream = stream
        self._consumer = PullConsumer(connection, stream.name)
        self._log: NatsLog  # when the tail started
        self._position: LogPosition  # of the last entry that was returned
        self._clock_offset = 0.0  # seconds from the time of the event loop to that of the server
        self._confirmation: Confirmation | None = None  # from the creation of the consumer on
        self._may_confirm = False  # once after each fetch
        self._caught_up = False  # the first CaughtUp was returned

    async def start(self, after: LogPosition | None) -> Subscribed:
        """Start after a position, or before the first entry of the log."""
        self._log = await self._stream.verify(self._connection, after)
        self._position = after or self._log.start
        return Subscribed(self._position)

    async def poll(self) -> Sequence[TailItem]:
        """Return the next entries, or ``CaughtUp``, or nothing after a heartbeat."""
        consumer = self._consumer
        if self._confirmation is None:
            if items := await self._items([]):  # Truncated and Trimmed before the first entry
                return items
            await consumer.create(self._position.offset)
            self._clock_offset = self._log.clock - _now()
            self._confirmation = Confirmation(self._position.offset, _now())
        if self._may_confirm:
            self._may_confirm = False
            if await self._is_confirmed(self._confirmation):
                return [CaughtUp()]
        if not (self._caught_up or consumer.pending):
            self._caught_up = True
            return [CaughtUp()]
        messages = await consumer.fetch()
        self._may_confirm = True
        return await self._items(self._entries(messages)) if messages else []

    async def close(self) -> None:
        """Delete the consumer and close the connection."""
        await self._consumer.delete()
        await self._connection.close()

    async def _is_confirmed(self, confirmation: Confirmation) -> bool:
        consumer = self._consumer
        if confirmation.is_due(_now()) and not consumer.pending:
            asked = _now()
            log = await self._stream.confirm(self._connection, self._log)
            self._clock_offset = log.clock - _now()
            confirmation.add_answer(log.last, consumer.heartbeats, asked, _now())
        return confirmation.is_complete(self._position.offset, consumer.heartbeats, _now())

    async def _items(self, entries: Sequence[Entry]) -> list[TailItem]:
        """Return the items for the next entries, and advance the position to the last of them."""
        items = list(self._log.items(self._position, entries))
        if entries and any(isinstance(item, Trimmed) for item in items):  # or erased since the last answer
            self._log = await self._stream.confirm(self._connection, self._log)
            items = list(self._log.items(self._position, entries))
        for item in items:
            self._position = _position_after(self._position, item)
        return items

    def _entries(self, messages: Sequence[Msg]) -> list[Entry]:
        """Decode messages. Raises ``BrokerDown`` if the client has lost some."""
        consumer, name = self._consumer, self._stream.name
        now = _now() + self._clock_offset
        entries, tokens = [], [""]
        for message in messages:
            # $JS.ACK.<stream>.<consumer>.<delivered>.<stream sequence>.<consumer sequence>.<timestamp>.<pending>; a
            # server with a domain has two more tokens before the stream and one at the end.
            tokens = message.reply.split(".")
            if len(tokens) > ACK_TOKENS:
                del tokens[2:4]
            age = now - int(tokens[7]) / NANOSECONDS
            entries.append(
                Entry(int(tokens[5]), topic_of(name, message.subject), message.data, age if age > 0 else 0.0)
            )
        offset, sent, timestamp, consumer.pending = map(int, tokens[5:ACK_TOKENS])
        if sent != consumer.received:
            raise BrokerDown(f"received {consumer.received} of the {sent} messages that NATS sent")
        self._stream.checkpoints.add_received(Checkpoint(offset, timestamp))
        return entries


class PullConsumer:
    """An ephemeral pull consumer of JetStream without acknowledgements, with one pull request at a time.

    Args:
        connection: The connection to use. Its timeout is the time until a server without heartbeats is lost.
        stream: Name of the stream.
    """

    def __init__(self, connection: NatsConnection, stream: str) -> None:
        self._connection = connection
        self._stream = stream
        self._name = ""  # once it is created
        self._inbox = ""
        self._queue: deque[Msg] = deque()
        self._arrived = asyncio.Event()  # a message, or the loss of the connection
        self._requested = 0  # messages that the server still has to send
        self._next_is_large = False  # the next message is larger than MAX_BATCH_BYTES
        self.received: int = 0
        """Number of messages received so far."""
        self.pending: int = 0
        """Number of messages that the stream had after the last one, when the server sent that."""
        self.heartbeats: int = 0
        """Number of idle heartbeats, each of which says that there are no more messages."""

    async def create(self, after: int) -> None:
        """Create the consumer, for the messages after a sequence."""
        connection = self._connection
        connection.on_lost = self._arrived.set
        self._inbox = await connection.subscribe(self._on_message)
        name = uuid4().hex  # chosen here, so that a repeated request creates no second consumer
        config = {
            "name": name,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": after + 1,
            "ack_policy": "none",
            "inactive_threshold": _to_nanoseconds(max(connection.timeout, MIN_INACTIVE_THRESHOLD)),
            "mem_storage": True,
            "num_replicas": 1,
        }
        request: JsonObject = {"stream_name": self._stream, "config": config}
        info = check_response(await connection.request(f"CONSUMER.CREATE.{self._stream}.{name}", request))
        self._name, self.pending = name, cast("int", info["num_pending"])

    async def fetch(self) -> list[Msg]:
        """Wait for messages or an idle heartbeat, and return the messages that have arrived."""
        if not self._requested:
            await self._pull()
        connection = self._connection
        try:
            async with asyncio.timeout(connection.timeout):
                await self._arrived.wait()
        except TimeoutError:
            raise BrokerDown(f"neither a message nor a heartbeat from NATS for {connection.timeout} s") from None
        if connection.lost is not None:
            raise BrokerDown(connection.lost)
        self._arrived.clear()
        messages = []
        while self._queue:
            message = self._queue.popleft()
            if message.reply:
                messages.append(message)
            else:
                self._handle_status(message)
        self._requested -= min(len(messages), self._requested)
        self.received += len(messages)
        return messages

    async def delete(self) -> None:
        """Delete the consumer. Raises nothing: the server deletes an inactive one later."""
        if self._name:
            with suppress(BrokerError, TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await self._connection.send(f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._name}", {})

    async def _pull(self) -> None:
        timeout = self._connection.timeout
        heartbeat = _to_nanoseconds(min(timeout / 3, MAX_HEARTBEAT))
        request: JsonObject = {"expires": _to_nanoseconds(PULL_EXPIRES * timeout), "idle_heartbeat": heartbeat}
        self._requested = 1 if self._next_is_large else MAX_BATCH_MESSAGES
        request["batch"] = self._requested
        if not self._next_is_large:
            request["max_bytes"] = MAX_BATCH_BYTES
        self._next_is_large = False
        await self._connection.send(f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._name}", request, self._inbox)

    async def _on_message(self, message: Msg) -> None:
        self._queue.append(message)
        self._arrived.set()

    def _handle_status(self, status: Msg) -> None:
        """Handle a status message of the pull request. Raises ``BrokerDown`` if the consumer is lost."""
        headers = status.headers or {}
        code, text = headers.get("Status", ""), headers.get("Description", "")
        if code == "100":
            self.pending = 0
            self.heartbeats += 1
        elif code in {"404", "408"} or (code == "409" and ("MaxBytes" in text or "Completed" in text)):
            self._next_is_large = "MaxBytes" in text
            self._requested = 0
        else:
            raise BrokerDown(f"the consumer of stream {self._stream} is lost: {code} {text}")


class _Answer(NamedTuple):
    last: int  # the last offset that the leader has
    heartbeats: int  # of the consumer, at that time
    asked: float


class Confirmation:
    """Decides when a tail has received all that the leader of the stream had. Times are of the event loop.

    Args:
        offset: The offset after which the tail starts.
        now: The time.
    """

    def __init__(self, offset: int, now: float) -> None:
        self._received = offset  # up to here the tail has all entries that still exist
        self._answer: _Answer | None = None  # the last one, until it is confirmed
        self._next = now + CONFIRM_INTERVAL

    def is_due(self, now: float) -> bool:
        """Return whether to ask the leader."""
        return self._answer is None and now > self._next

    def add_answer(self, last: int, heartbeats: int, asked: float, now: float) -> None:
        """Add the leader's answer to a request that was sent at the time ``asked``."""
        self._answer, self._next = _Answer(last, heartbeats, asked), now + CONFIRM_INTERVAL

    def is_complete(self, offset: int, heartbeats: int, now: float) -> bool:
        """Return once for each answer whether the tail has all entries up to it, and the answer is recent.

        Args:
            offset: The offset of the last entry that the tail received.
            heartbeats: Number of heartbeats of the consumer.
            now: The time.
        """
        answer = self._answer
        self._received = max(self._received, offset)
        if answer is None:
            return False
        if heartbeats >= answer.heartbeats + CONFIRM_HEARTBEATS:
            self._received = max(self._received, answer.last)
        if self._received < answer.last:
            return False
        self._answer = None
        return now <= answer.asked + MAX_CONFIRM_AGE


def _position_after(position: LogPosition, item: TailItem) -> LogPosition:
    if isinstance(item, Truncated):
        return item.position
    if isinstance(item, Trimmed | Erased):
        return LogPosition(position.epoch, item.through)
    return LogPosition(position.epoch, cast("Sequence[Entry]", item)[-1].offset)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _to_nanoseconds(seconds: float) -> int:
    return int(seconds * NANOSECONDS)
