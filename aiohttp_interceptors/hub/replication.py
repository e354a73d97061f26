"""What a broker's tail brings, into the log and to the streams. Decides, and awaits nothing."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import aclosing

from .._logging import log as logger
from .._logging import log_fact
from .._tasks import check_cancelled
from ..exceptions import FATAL, BrokerError
from ..facts import HubDown, HubFact, HubObserver, HubResumed, HubUp
from ..sse import frame_with_id
from .broker import Broker, CaughtUp, Entry, LogPosition, Subscribed, TailItem, Trimmed, Truncated
from .dispatcher import Dispatcher, PendingSubscriptions
from .history import EXPIRED
from .message import PLAIN, is_ephemeral, unpack
from .record import Record

__all__ = ["ReplicationTask", "Replicator"]


class Replicator:
    """Take the items of a tail, one tail after the other."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._pending = dispatcher.pending
        self._joined = False
        self._unread: set[bytes] = set()  # what payloads that cannot be read begin with, as far as that was logged
        self.entries: int = 0
        """That were taken."""

    @property
    def position(self) -> LogPosition | None:
        """Where the next tail goes on; ``None`` before the first one."""
        log = self._dispatcher.log
        return LogPosition(log.epoch, log.end) if self._joined else None

    def take(self, item: TailItem) -> None:
        """Take an item."""
        dispatcher = self._dispatcher
        if isinstance(item, Subscribed):
            if not self._joined:
                self._joined = True
                dispatcher.interrupt(lambda: dispatcher.log.begin(*item.position))
        elif isinstance(item, Trimmed):
            dispatcher.interrupt(lambda: dispatcher.log.lose(item.through))
        elif isinstance(item, Truncated):
            dispatcher.interrupt(lambda: dispatcher.log.truncate(*item.position))
        elif isinstance(item, CaughtUp):
            self._pending.confirm()
        else:
            self._add(item)
        self._pending.look()

    def _add(self, entries: Sequence[Entry]) -> None:
        dispatcher, log = self._dispatcher, self._dispatcher.log
        now = asyncio.get_running_loop().time()
        start = f"{log.epoch}-"
        log.expire(now, EXPIRED)
        self.entries += len(entries)
        for offset, topic, payload, age in entries:
            if offset <= log.end:
                continue  # a broker that gives twice is mended by this, and no stream need know
            key, ephemeral = None, False
            frame = payload[1:]
            if payload[:1] != PLAIN_MARK:
                try:
                    frame, key, ephemeral = unpack(payload)
                except ValueError as error:
                    self._miss(topic, offset, payload, error)
                    continue
            if ephemeral:
                log.end = offset
                if not self._pending.up:
                    continue  # what was for those who kept up is late, and nobody did
                record = Record(0, None, topic, None, frame, key, now)
            else:
                event_id = f"{start}{offset}"
                record = Record(offset, event_id, topic, None, frame_with_id(event_id, frame), key, now - age)
                log.add(record)
            dispatcher.dispatch(record)

    def _miss(self, topic: str, offset: int, payload: bytes, error: ValueError) -> None:
        """Tell who asked for a topic that a record of it is missing, which this release cannot read."""
        if payload[:1] not in self._unread:
            self._unread.add(payload[:1])
            logger.warning(
                "hub_entry_skipped",
                topic=topic,
                offset=offset,
                error=str(error),
                advice="have all processes use one release: until then each such entry is told as a gap",
            )
        if is_ephemeral(payload):
            self._dispatcher.log.end = offset
        else:
            self._dispatcher.miss(topic, offset)


PLAIN_MARK = b"%c" % PLAIN  # of nearly all payloads: those are not worth a call


FIRST_DELAY = 0.1  # seconds; a server that restarts is back as soon
# Seconds that a server which came back has to wait for us at most. With the jitter, fifty processes that lost it
# together do not all come in one moment.
LONGEST_DELAY = 5.0
JITTER = 0.5  # the part of a delay that is left to chance


class ReplicationTask:
    """Follow a broker, and again when it was lost, from the place where that happened."""

    def __init__(
        self, broker: Broker, replicator: Replicator, pending: PendingSubscriptions, observer: HubObserver | None
    ) -> None:
        self._broker = broker
        self._replicator = replicator
        self._pending = pending
        self._observer = observer
        self._attempts = 0
        self._since: float | None = None  # when it was lost; None if it was not, or nobody was told yet
        self._lost = 0.0
        self._taken = 0  # entries, when it was lost
        self._read = False  # whether this tail has given all there was

    async def run(self) -> None:
        """Follow it until the task is cancelled, also where the broker's client swallows that."""
        while True:
            check_cancelled()
            self._read = False
            try:
                async with aclosing(self._broker.tail(self._replicator.position)) as tail:
                    async for item in tail:
                        check_cancelled()
                        self._take(item)
                        if isinstance(item, Sequence):
                            await asyncio.sleep(0)  # what has come goes out before more is asked for
                # A connection that was closed in order is lost, too.
                error: BaseException = BrokerError("the tail ended")
            except BrokerError as failure:
                error = failure
            except (*FATAL, GeneratorExit):
                raise
            except BaseException as failure:  # a defect, of the broker or of ours; streams still live
                task = asyncio.current_task()
                if isinstance(failure, asyncio.CancelledError) and (task is None or task.cancelling()):
                    raise  # ours; what a broker's client cancelled of its own is no reason to follow it no more
                logger.exception("hub_tail_failed", exc_info=failure)
                error = failure
            check_cancelled()
            self._note_loss(error)
            await asyncio.sleep(self._delay())

    def _take(self, item: TailItem) -> None:
        self._replicator.take(item)
        if isinstance(item, CaughtUp):
            if self._read:
                return  # it says so again, while there is nothing to tell
            self._read = True
            self._attempts = 0
            read = self._replicator.entries - self._taken
            if self._since is None:
                self._tell(HubUp(read))
            else:
                self._tell(HubResumed(read, time.monotonic() - self._lost))
                self._since = None
        elif isinstance(item, Truncated):
            logger.warning("hub_rewound", epoch=item.position.epoch, offset=item.position.offset)

    def _note_loss(self, error: BaseException) -> None:
        """Tell that it is lost, once."""
        self._pending.up = False
        if self._since is None:
            self._since, self._lost, self._taken = time.time(), time.monotonic(), self._replicator.entries
            self._tell(HubDown(self._since, str(error) or repr(error)))

    def _delay(self) -> float:
        """Return how long to wait before the next attempt, in seconds."""
        self._attempts += 1
        delay: float = min(FIRST_DELAY * 2 ** min(self._attempts - 1, 16), LONGEST_DELAY)
        return delay * random.uniform(1 - JITTER, 1)  # noqa: S311

    def _tell(self, fact: HubFact) -> None:
        log_fact(fact)
        if self._observer is not None:
            try:
                self._observer(fact)
            except Exception as error:  # noqa: BLE001  # an observer's, which is no reason to lose the broker
                logger.exception("hub_observer_failed", fact=fact, exc_info=error)
