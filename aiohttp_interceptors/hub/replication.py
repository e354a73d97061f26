"""Replication of a broker's log into the history of this process.

The ``Replicator`` applies the items of a tail to the history and dispatches the new records. The ``ReplicationTask``
reads one tail after the other: when the broker fails, it reconnects with backoff and jitter, and resumes after the last
entry.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import aclosing

from .._logging import log as logger
from .._logging import log_fact
from .._observers import Observers
from .._tasks import check_cancelled
from ..exceptions import EXIT_EXCEPTIONS, BrokerError
from ..facts import HubDown, HubFact, HubResumed, HubUp
from ..sse import frame_with_id
from .broker import Broker, CaughtUp, Entry, Erased, LogPosition, Subscribed, TailItem, Trimmed, Truncated
from .dispatcher import Dispatcher
from .history import EXPIRE_BATCH
from .message import ERASED, FINISHED, DecodedPayload, Kind, decode_payload, is_ephemeral
from .nodes import Nodes
from .pending import PendingSubscriptions
from .record import Record, Tombstone

__all__ = ["ReplicationTask", "Replicator"]


# Seconds between two attempts to connect: the first delay, which doubles up to the last.
MIN_RECONNECT_DELAY = 0.1
MAX_RECONNECT_DELAY = 5.0
# The random part of a delay, so that many processes do not reconnect to a restarted server at the same moment.
RECONNECT_JITTER = 0.5


class Replicator:
    """Applies the items of a broker's tails to the history, and dispatches the records.

    Args:
        dispatcher: The dispatcher of the Hub.
        nodes: Receives the control messages.
    """

    def __init__(self, dispatcher: Dispatcher, nodes: Nodes | None = None) -> None:
        self._dispatcher = dispatcher
        self._nodes = nodes
        self._pending = dispatcher.unresolved
        self._subscribed = False
        self._missed = False  # some control messages may have been missed
        self._erased_by = 0  # until this offset, an erasure may be of entries that were not received
        self._unreadable: set[bytes] = set()  # first bytes of payloads that could not be decoded, logged once each
        self.entries: int = 0
        """Number of entries that were received."""

    @property
    def position(self) -> LogPosition | None:
        """The position to resume after; ``None`` before the first tail."""
        history = self._dispatcher.history
        return LogPosition(history.epoch, history.end) if self._subscribed else None

    def apply(self, item: TailItem) -> None:
        """Apply one item of a tail."""
        dispatcher = self._dispatcher
        if isinstance(item, Subscribed):
            if not self._subscribed:
                self._subscribed = True
                dispatcher.change_history(lambda: dispatcher.history.start_after(*item.position))
        elif isinstance(item, Trimmed):
            self._missed = True
            dispatcher.change_history(lambda: dispatcher.history.trim(item.through))
        elif isinstance(item, Erased):
            self._erased_by = item.erased_by
        elif isinstance(item, Truncated):
            self._missed = True
            self._erased_by = 0
            dispatcher.change_history(lambda: dispatcher.history.truncate(*item.position))
        elif isinstance(item, CaughtUp):
            missed, self._missed = self._missed or not self._pending.caught_up, False
            self._pending.on_caught_up()
            if self._nodes is not None and missed:
                self._nodes.caught_up()
        else:
            self._append(item)
        self._pending.resolve_all()

    def _append(self, entries: Sequence[Entry]) -> None:
        dispatcher, history = self._dispatcher, self._dispatcher.history
        now = asyncio.get_running_loop().time()
        id_prefix = f"{history.epoch}-"
        history.expire(now, EXPIRE_BATCH)
        self.entries += len(entries)
        for offset, topic, payload, age in entries:
            if offset <= history.end:
                continue  # delivered twice by the broker
            if payload == ERASED:
                dispatcher.skip(topic, offset)
                continue
            try:
                decoded = decode_payload(payload)
            except ValueError as error:
                self._skip(topic, offset, payload, error)
                continue
            if decoded.ephemeral or decoded.kind is not Kind.EVENT or history.has_finished_topics:
                self._apply_entry(offset, topic, decoded, now, age)
                continue
            event_id = f"{id_prefix}{offset}"
            frame = frame_with_id(event_id, decoded.frame)
            record = Record(offset, event_id, topic, None, frame, decoded.key, now - age)
            history.add(record)
            dispatcher.dispatch(record)

    def _erase(self, offset: int, topic: str) -> None:
        """Drop the earlier records of a topic. If some may not have been received, its subscribers get a gap."""
        dispatcher = self._dispatcher
        dispatcher.erase(topic)
        if offset <= self._erased_by:
            dispatcher.skip(topic, offset)
        dispatcher.history.end = offset

    def _apply_entry(  # noqa: C901  # one branch for each kind
        self, offset: int, topic: str, decoded: DecodedPayload, now: float, age: float
    ) -> None:
        """Apply an entry of any kind."""
        dispatcher, history = self._dispatcher, self._dispatcher.history
        frame, key, ephemeral, kind = decoded
        if kind is Kind.CONTROL:
            history.end = offset
            if self._nodes is not None:
                self._nodes.receive(frame, age)
        elif kind is Kind.ERASURE:
            self._erase(offset, topic)
            if frame == FINISHED:
                dispatcher.finish(topic, offset, now - age, key)
        elif history.is_finished(topic, now - age):
            history.end = offset
            if self._pending.caught_up:  # an old one was logged before
                logger.warning("hub_published_after_finish", topic=topic, offset=offset)
        elif ephemeral:
            history.end = offset
            if self._pending.caught_up:  # otherwise published while the broker was down or this process was starting
                dispatcher.dispatch(Record(0, None, topic, None, frame, key, now))
        else:
            if frame:
                event_id = history.id_of(offset)
                make = Tombstone if kind is Kind.TOMBSTONE else Record
                record = make(offset, event_id, topic, None, frame_with_id(event_id, frame), key, now - age)
                history.add(record)
                dispatcher.dispatch(record)
            if kind is Kind.FINAL:
                dispatcher.finish(topic, offset, now - age, key)

    def _skip(self, topic: str, offset: int, payload: bytes, error: ValueError) -> None:
        """Skip an entry that this release cannot read: the subscribers of its topic get a gap."""
        if payload[:1] not in self._unreadable:
            self._unreadable.add(payload[:1])
            logger.warning(
                "hub_entry_skipped",
                topic=topic,
                offset=offset,
                error=str(error),
                advice="run the same release in all processes; until then clients get a gap for each such entry",
            )
        if is_ephemeral(payload):
            self._dispatcher.history.end = offset
        else:
            self._dispatcher.skip(topic, offset)


class ReplicationTask:
    """Reads the tail of a broker, and reconnects when it ends or fails. Reports each outage to the observers."""

    def __init__(
        self, broker: Broker, replicator: Replicator, pending: PendingSubscriptions, observers: Observers[HubFact]
    ) -> None:
        self._broker = broker
        self._replicator = replicator
        self._pending = pending
        self._observers = observers
        self._attempts = 0  # to connect, since the tail was last caught up
        self._caught_up = False  # the current tail has been caught up
        self._down_since: float | None = None  # monotonic time; None while the broker is up, and before the first tail
        self._entries_before = 0  # the entries that had been received when the broker went down

    async def run(self) -> None:
        """Read tails until the task is cancelled, even if the broker's client swallows the cancellation."""
        while True:
            check_cancelled()
            self._caught_up = False
            try:
                async with aclosing(self._broker.tail(self._replicator.position)) as tail:
                    async for item in tail:
                        check_cancelled()
                        self._handle(item)
                        if isinstance(item, Sequence):
                            await asyncio.sleep(0)  # flush these entries before more are read
                error: BaseException = BrokerError("the tail ended")
            except BrokerError as failure:
                error = failure
            except (*EXIT_EXCEPTIONS, GeneratorExit):
                raise
            except BaseException as failure:  # a defect: streams stay open, and the tail is read again
                task = asyncio.current_task()
                # A client may raise CancelledError although this task was not cancelled.
                if isinstance(failure, asyncio.CancelledError) and (task is None or task.cancelling()):
                    raise
                logger.exception("hub_tail_failed", exc_info=failure)
                error = failure
            check_cancelled()
            self._on_down(error)
            await asyncio.sleep(self._next_delay())

    def _handle(self, item: TailItem) -> None:
        self._replicator.apply(item)
        if isinstance(item, CaughtUp) and not self._caught_up:
            self._caught_up = True
            self._attempts = 0
            self._on_up()
        elif isinstance(item, Truncated):
            logger.warning("hub_truncated", epoch=item.position.epoch, offset=item.position.offset)

    def _on_up(self) -> None:
        entries = self._replicator.entries - self._entries_before
        if self._down_since is None:
            self._report(HubUp(entries))
        else:
            self._report(HubResumed(entries, time.monotonic() - self._down_since))
            self._down_since = None

    def _on_down(self, error: BaseException) -> None:
        self._pending.caught_up = False
        if self._down_since is None:  # not a failed attempt to reconnect
            self._down_since, self._entries_before = time.monotonic(), self._replicator.entries
            self._report(HubDown(time.time(), str(error) or repr(error)))

    def _next_delay(self) -> float:
        """Return the seconds to wait before the next attempt."""
        self._attempts += 1
        delay: float = min(MIN_RECONNECT_DELAY * 2 ** min(self._attempts - 1, 16), MAX_RECONNECT_DELAY)
        return delay * random.uniform(1 - RECONNECT_JITTER, 1)  # noqa: S311

    def _report(self, fact: HubUp | HubDown | HubResumed) -> None:
        log_fact(fact)
        self._observers.tell(fact)
