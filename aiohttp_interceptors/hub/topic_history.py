"""The bounded history of one topic."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from operator import attrgetter

from .._checks import check_count, check_seconds
from ..sse import Event
from .record import Record

__all__ = ["RetentionPolicy", "TopicHistory"]

_offset = attrgetter("offset")
_GONE = Record(0, None, "", Event(""), b"", None, 0.0)  # in the place of an evicted one, so that its memory is free
# Evicted records that may stay in front of a ring's list: moving the rest for each one that goes would cost its length.
SLACK = 32


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """What a topic's history is bounded by, whichever is reached first. Raises for what cannot be meant."""

    history: int
    """Records; 0 for none."""
    history_bytes: int | None
    """Bytes on the wire; ``None`` for no limit."""
    history_age: float | None
    """Seconds; ``None`` for no limit."""

    def __post_init__(self) -> None:
        for name, value, least in ("history", self.history, 0), ("history_bytes", self.history_bytes, 1):
            if value is None and name != "history":
                continue
            check_count(name, value, least)
        check_seconds("history_age", self.history_age, "no limit")


class TopicHistory:
    """The latest records of one topic, oldest first, and what it no longer has."""

    __slots__ = ("_latest", "_records", "_start", "bytes", "due", "evicted", "last", "lost", "topic")

    def __init__(self, topic: str, evicted: int) -> None:
        self.topic: str = topic
        self.bytes: int = 0
        self.due: bool = False
        """Whether the log will look at it when its oldest record is too old."""
        self.last: int = evicted
        """The position of the latest record that it was ever given."""
        self.evicted: int = evicted
        """The position of the latest record that it no longer has."""
        self.lost: int = evicted
        """That of the latest one which it no longer had when no other made up for it."""
        self._records: list[Record] = []
        self._start = 0
        self._latest: dict[str, int] | None = None  # of each key the position of its latest record, while it is here

    def __len__(self) -> int:
        return len(self._records) - self._start

    @property
    def oldest(self) -> Record:
        """The record that is evicted next; there must be one."""
        return self._records[self._start]

    def append(self, record: Record) -> None:
        """Add a record, whose position is greater than all here."""
        self._records.append(record)
        self.bytes += len(record.frame)
        self.last = record.offset
        if record.key is not None:
            if self._latest is None:
                self._latest = {}
            self._latest[record.key] = record.offset

    def evict(self) -> None:
        """Remove the oldest record."""
        records, start = self._records, self._start
        record = records[start]
        self.bytes -= len(record.frame)
        offset = record.offset
        if offset > self.evicted:  # noqa: PLR1730  # max takes three times as long; a later one may never have come
            self.evicted = offset
        if not self._is_superseded(record):
            if offset > self.lost:  # noqa: PLR1730
                self.lost = offset
            if record.key is not None and self._latest is not None:
                del self._latest[record.key]
        start += 1
        if start == len(records):  # a topic without records keeps no memory for any
            self._records, self._latest = [], None
            start = 0
        elif start > SLACK and 2 * start > len(records):
            del records[:start]
            start = 0
        else:
            records[start - 1] = _GONE
        self._start = start

    def miss(self, offset: int) -> None:
        """Count a record that cannot be here as evicted. Its position is greater than all here."""
        self.last = self.evicted = self.lost = offset

    def latest(self, record: Record) -> Record:
        """Return the latest record with the key of one that is here."""
        latest = None if record.key is None or self._latest is None else self._latest[record.key]
        if latest is None or latest == record.offset:
            return record
        return self._records[bisect_left(self._records, latest, self._start, key=_offset)]

    def _is_superseded(self, record: Record) -> bool:
        return record.key is not None and self._latest is not None and self._latest[record.key] > record.offset

    def after(self, offset: int, most: int | None = None) -> list[Record]:
        """Return the records after a position, oldest first, that many at most."""
        if offset >= self.last:
            return []
        start = bisect_right(self._records, offset, self._start, key=_offset)
        return self._records[start : None if most is None else start + most]
