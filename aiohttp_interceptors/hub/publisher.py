"""Publishing: into the history of this process, or into the log of a broker."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import cast

from ..encoder import Encoder, encode_value
from ..exceptions import BrokerDown, BrokerError, BrokerRefused, OutcomeUnknown, TopicFinished
from ..facts import HubPublished
from ..sse import Event, encode
from .broker import Broker, DeduplicationWindow, LogPosition, SupportsErase
from .dispatcher import Dispatcher
from .message import FINISHED, Kind, Message, encode_payload
from .record import Record, Tombstone
from .topics import check_topic

__all__ = ["Publisher"]


RECEIVE_TIMEOUT = 5.0  # seconds to wait until this process has received what the broker has stored
_ERASURE = encode_payload(b"", None, ephemeral=False, kind=Kind.ERASURE)
_CLASS_OF = {Kind.TOMBSTONE: Tombstone}
_OUTCOMES: tuple[tuple[type[BaseException], str], ...] = (
    (BrokerDown, "down"),
    (OutcomeUnknown, "unknown"),
    (BrokerRefused, "refused"),
    (asyncio.CancelledError, "cancelled"),
    (BaseException, "failed"),
)


class Publisher:
    """Publishes the messages of a Hub. All methods but ``message`` are called in the event loop's thread.

    Args:
        dispatcher: The dispatcher of the Hub.
        broker: The broker, or ``None`` to publish into the history.
        encoder: Makes events of values.
        max_event_size: Maximum size of a frame, in bytes.
    """

    def __init__(
        self, dispatcher: Dispatcher, broker: Broker | None, encoder: Encoder, max_event_size: int | None
    ) -> None:
        self.published: int = 0
        """Number of events that were published."""
        self._dispatcher = dispatcher
        self._broker = broker
        self._encoder = encoder
        self._max_event_size = max_event_size
        self._deduplication: DeduplicationWindow[str | None] = DeduplicationWindow()
        # Of each topic whose end is being stored by the broker: done when it is.
        self._finishing: dict[str, asyncio.Future[None]] = {}
        self._publishing: Counter[str] = Counter()  # publishes to the broker in progress, by topic
        self._published_one: asyncio.Event | None = None  # of a finish that waits for them

    def message(
        self,
        topic: str,
        event: object,
        key: str | None = None,
        *,
        ephemeral: bool = False,
        idempotency_key: str | None = None,
        kind: Kind = Kind.EVENT,
    ) -> Message:
        """Return a checked message. Thread-safe. Raises what ``Hub.publish`` raises for wrong arguments."""
        if topic not in self._dispatcher.history:
            check_topic(topic)
        encoded: Event | None
        if type(event) is Event or (event is None and kind is Kind.FINAL):
            encoded = event
        else:
            encoded = encode_value(self._encoder, event)
        return Message(topic, encoded, key, ephemeral, idempotency_key, self._max_event_size, kind)

    def publish_locally(self, message: Message) -> str | None:
        """Append a message to the history, dispatch it, and return its ID; ``None`` if it is ephemeral."""
        now = asyncio.get_running_loop().time()
        idempotency_key = message.idempotency_key
        earlier = None if idempotency_key is None else self._deduplication.find(idempotency_key, now)
        if earlier is not None:
            return earlier[0]
        self.check_unfinished(message.topic)
        event_id = self._append(message, now)
        self.published += 1
        if idempotency_key is not None:
            self._deduplication.add(idempotency_key, event_id, now)
        return event_id

    def _append(self, message: Message, now: float) -> str | None:
        dispatcher, history = self._dispatcher, self._dispatcher.history
        topic, event, key = message.topic, message.event, message.key
        if event is None:  # the topic is finished without another event
            offset = history.end + 1
            dispatcher.finish(topic, offset, now, key)
            return history.id_of(offset)
        if message.ephemeral:
            record = Record(0, None, topic, event, encode(event), key, now)
        else:
            record = history.append(topic, event, key, now, _CLASS_OF.get(message.kind, Record))
        dispatcher.dispatch(record)
        if message.kind is Kind.FINAL:
            dispatcher.finish(topic, record.offset, now, key)
        return record.id

    async def publish(self, message: Message) -> str | None:
        """Publish a message, and return its ID; ``None`` if it is ephemeral."""
        if self._broker is None:
            return self.publish_locally(message)
        return await self.publish_to_broker(message)

    async def publish_to_broker(self, message: Message, connection: object = None) -> str | None:
        """Store a message, and return its ID. It is dispatched when the tail delivers it."""
        topic, key = message.topic, message.idempotency_key
        await self._wait_for_finish(topic)
        if key is None:
            self.check_unfinished(topic)
        position = await self._store(topic, message.payload(), key, connection)
        self.published += 1
        if key is not None and position is not None and self._is_after_finish(topic, position):
            raise _finished(topic)
        return None if message.ephemeral or position is None else f"{position.epoch}-{position.offset}"

    async def _store(
        self, topic: str, payload: bytes, idempotency_key: str | None = None, connection: object = None
    ) -> LogPosition | None:
        """Store an entry, and return its position. Tell the observers how long that took."""
        broker, observers = self._broker, self._dispatcher.observers
        assert broker is not None  # noqa: S101  # the caller knows that there is a broker
        self._publishing[topic] += 1
        started, outcome = time.perf_counter(), "stored"
        try:
            return await broker.publish(topic, payload, idempotency_key=idempotency_key, connection=connection)
        except BaseException as error:
            outcome = next(name for kind, name in _OUTCOMES if isinstance(error, kind))
            raise
        finally:
            if observers:
                observers.tell(HubPublished(time.perf_counter() - started, outcome))
            self._publishing[topic] -= 1
            if not self._publishing[topic]:
                del self._publishing[topic]
                if self._published_one is not None:
                    self._published_one.set()

    async def _wait_for_finish(self, topic: str) -> None:
        """Wait while this process finishes a topic: until then it is not known whether that succeeds."""
        while (finishing := self._finishing.get(topic)) is not None:
            await asyncio.wait([finishing])

    async def _wait_for_publishes(self, topic: str) -> None:
        """Wait for the publishes that were called before ``finish``, so that none follows the end."""
        while topic in self._publishing:
            if self._published_one is None or self._published_one.is_set():
                self._published_one = asyncio.Event()
            await self._published_one.wait()

    def _is_after_finish(self, topic: str, position: LogPosition) -> bool:
        history = self._dispatcher.history
        return history.is_finished(topic) and position.offset > history.finished_at(topic)

    async def finish(self, message: Message) -> str:
        """Publish a message of the kind ``FINAL``, and return its ID.

        With a broker, wait until this process has received it, so that its topic is finished afterwards.
        """
        topic, key = message.topic, message.idempotency_key
        if self._broker is None:
            event_id = self.publish_locally(message)
            if event_id is None:
                raise ValueError(f"the idempotency_key {key!r} was used for an ephemeral event")
            return event_id
        await self._wait_for_finish(topic)
        if key is None:
            self.check_unfinished(topic)
        finishing = self._finishing[topic] = asyncio.get_running_loop().create_future()
        try:
            await self._wait_for_publishes(topic)
            position = await self._store(topic, message.payload(), key)
            assert position is not None  # noqa: S101  # None is only for a connection
            self.published += 1
            await self.wait_for(position)
        finally:
            del self._finishing[topic]
            finishing.set_result(None)
        if self._is_after_finish(topic, position):
            raise _finished(topic)  # another process was faster
        return f"{position.epoch}-{position.offset}"

    async def erase(self, topic: str, end_key: Callable[[str], str | None]) -> None:
        """Erase a topic in all processes, then in the broker.

        Args:
            topic: The topic.
            end_key: Returns what is kept of the key of the end of a finished topic.
        """
        broker, history = self._broker, self._dispatcher.history
        if broker is None:
            self._dispatcher.erase(topic)
            if history.is_finished(topic):
                now = asyncio.get_running_loop().time()
                self._dispatcher.finish(topic, history.end, now, end_key(topic))
            return
        if not callable(getattr(broker, "erase", None)):
            raise BrokerRefused(f"{topic!r} was not erased: {broker!r} has no method erase, see the protocol Broker")
        while True:
            is_finished = history.is_finished(topic)
            end = encode_payload(FINISHED, end_key(topic), ephemeral=False, kind=Kind.ERASURE)
            position = await self._store_erasure(topic, end if is_finished else _ERASURE)
            if is_finished is history.is_finished(topic):  # otherwise it was finished meanwhile
                break
        await _erase_entries(cast("SupportsErase", broker), topic, position)

    async def _store_erasure(self, topic: str, payload: bytes) -> LogPosition:
        """Store an entry at which all processes drop the earlier ones of a topic, and wait for it in this process."""
        position = await self._store(topic, payload)
        assert position is not None  # noqa: S101  # None is only for a connection
        await self.wait_for(position)
        if self._dispatcher.history.resolve(f"{position.epoch}-{position.offset}")[1] is not None:
            raise OutcomeUnknown(
                f"{topic!r} may be erased or not: this process did not receive its own message; call erase again"
            )
        return position

    async def wait_for(self, position: LogPosition) -> bool:
        """Wait for some seconds until this process has received an entry of the broker, and return whether it has."""
        return await self._wait_for_id(f"{position.epoch}-{position.offset}")

    async def wait_until_loaded(self) -> bool:
        """Wait for some seconds until this process has read the broker's log, and return whether it has."""
        return await self._wait_for_id(None)

    async def _wait_for_id(self, event_id: str | None) -> bool:
        try:
            async with asyncio.timeout(RECEIVE_TIMEOUT):
                await self._dispatcher.unresolved.wait(event_id)
        except TimeoutError:
            return False
        return True

    def check_unfinished(self, topic: str) -> None:
        """Raise ``TopicFinished`` if a topic is finished."""
        history = self._dispatcher.history
        if history.has_finished_topics and history.is_finished(topic, asyncio.get_running_loop().time()):
            raise _finished(topic)


async def _erase_entries(broker: SupportsErase, topic: str, before: LogPosition) -> None:
    """Erase entries in the broker. ``BrokerDown`` would say that nothing was erased, so it is ``OutcomeUnknown``."""
    try:
        await broker.erase(topic, before)
    except BrokerError as error:
        kind = BrokerRefused if isinstance(error, BrokerRefused) else OutcomeUnknown
        text = f"{topic!r} is erased in the memory of all processes, but perhaps not in the broker"
        raise kind(f"{text}; call erase again: {error}") from error


def _finished(topic: str) -> TopicFinished:
    return TopicFinished(f"the topic {topic!r} was finished, and accepts no more events; publish under another one")
