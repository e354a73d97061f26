"""What a broker's tail brings, into the log and to the streams. Decides, and awaits nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..observe.logs import log as logger
from ..sse.wire import frame_with_id
from .broker import Entry, Joined, Lost, Place, Rewound, TailItem, UpToDate
from .fanout import Fanout
from .log import EXPIRED
from .payload import PLAIN, is_ephemeral, unpack
from .record import Record

__all__ = ["Intake"]


class Intake:
    """Take the items of a tail, one tail after the other."""

    def __init__(self, fanout: Fanout) -> None:
        self._fanout = fanout
        self._arrivals = fanout.arrivals
        self._joined = False
        self._unread: set[bytes] = set()  # what payloads that cannot be read begin with, as far as that was logged
        self.entries: int = 0
        """That were taken."""

    @property
    def place(self) -> Place | None:
        """Where the next tail goes on; ``None`` before the first one."""
        log = self._fanout.log
        return Place(log.epoch, log.end) if self._joined else None

    def take(self, item: TailItem) -> None:
        """Take an item."""
        fanout = self._fanout
        if isinstance(item, Joined):
            if not self._joined:
                self._joined = True
                fanout.interrupt(lambda: fanout.log.begin(*item.place))
        elif isinstance(item, Lost):
            fanout.interrupt(lambda: fanout.log.lose(item.through))
        elif isinstance(item, Rewound):
            fanout.interrupt(lambda: fanout.log.rewind(*item.place))
        elif isinstance(item, UpToDate):
            self._arrivals.confirm()
        else:
            self._add(item)
        self._arrivals.look()

    def _add(self, entries: Sequence[Entry]) -> None:
        fanout, log = self._fanout, self._fanout.log
        now = asyncio.get_running_loop().time()
        start = f"{log.epoch}-"
        log.expire(now, EXPIRED)
        self.entries += len(entries)
        for position, topic, payload, age in entries:
            if position <= log.end:
                continue  # a broker that gives twice is mended by this, and no stream need know
            key, ephemeral = None, False
            frame = payload[1:]
            if payload[:1] != PLAIN_MARK:
                try:
                    frame, key, ephemeral = unpack(payload)
                except ValueError as error:
                    self._miss(topic, position, payload, error)
                    continue
            if ephemeral:
                log.end = position
                if not self._arrivals.up:
                    continue  # what was for those who kept up is late, and nobody did
                record = Record(0, None, topic, None, frame, key, now)
            else:
                event_id = f"{start}{position}"
                record = Record(position, event_id, topic, None, frame_with_id(event_id, frame), key, now - age)
                log.add(record)
            fanout.spread(record)

    def _miss(self, topic: str, position: int, payload: bytes, error: ValueError) -> None:
        """Tell who asked for a topic that a record of it is missing, which this release cannot read."""
        if payload[:1] not in self._unread:
            self._unread.add(payload[:1])
            logger.warning(
                "hub_entry_skipped",
                topic=topic,
                position=position,
                error=str(error),
                advice="have all processes use one release: until then each such entry is told as a gap",
            )
        if is_ephemeral(payload):
            self._fanout.log.end = position
        else:
            self._fanout.miss(topic, position)


PLAIN_MARK = b"%c" % PLAIN  # of nearly all payloads: those are not worth a call
