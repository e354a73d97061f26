"""The bounded history of one topic, and the policy that bounds it and all topics together."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from operator import attrgetter

from .._checks import check_count, check_seconds
from ..sse import Event
from .record import Record

__all__ = ["RetentionPolicy", "TopicHistory"]


# Evicted records that may stay at the front of the list. Deleting each one at once would move all others every time.
SLACK = 32
_EVICTED = Record(0, None, "", Event(""), b"", None, 0.0)  # replaces an evicted record, so that its memory is freed
_offset = attrgetter("offset")
_time = attrgetter("time")


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """The limits of a topic's history, and of all topics. Raises ``TypeError`` or ``ValueError`` for invalid ones."""

    history: int
    """Number of records; 0 keeps none."""
    history_bytes: int | None
    """Bytes of the records' frames; ``None`` for no limit."""
    history_age: float | None
    """Age of a record in seconds; ``None`` for no limit."""
    max_topics: int | None = None
    """Number of topics with records; ``None`` for no limit."""
    max_bytes: int | None = None
    """Bytes of the frames of all records; ``None`` for no limit."""

    def __post_init__(self) -> None:
        check_count("history", self.history, 0)
        for name in "history_bytes", "max_topics", "max_bytes":
            value = getattr(self, name)
            if value is not None:
                check_count(name, value, 1)
        check_seconds("history_age", self.history_age, "no limit")


class TopicHistory:
    """The latest records of one topic, oldest first, and the offsets of what it evicted."""

    __slots__ = (
        "_latest",
        "_records",
        "_start",
        "bytes",
        "evicted_through",
        "expiry_scheduled",
        "last_offset",
        "rank",
        "read_after",
        "topic",
        "unsuperseded_through",
    )

    def __init__(self, topic: str, evicted_through: int) -> None:
        self.topic: str = topic
        self.bytes: int = 0
        self.expiry_scheduled: bool = False
        """Whether the ``History`` has scheduled the expiry of the oldest record."""
        self.rank: int = 0
        """The number of its entry among the topics that the ``History`` orders by their last use; 0 without records."""
        self.read_after: int = -1
        """The end of the ``History`` when a stream last began to read the topic."""
        self.last_offset: int = evicted_through
        """Offset of the newest record, even if it was evicted."""
        self.evicted_through: int = evicted_through
        """Offset of the newest evicted record."""
        self.unsuperseded_through: int = evicted_through
        """Offset of the newest evicted record that no later record with its key superseded."""
        self._records: list[Record] = []
        self._start = 0  # index of the oldest record
        self._latest: dict[str, int] | None = None  # by key, the offset of its latest record if that is kept

    def __len__(self) -> int:
        return len(self._records) - self._start

    @property
    def oldest(self) -> Record:
        """The record that is evicted next. The history must not be empty."""
        return self._records[self._start]

    @property
    def last_use(self) -> int:
        """Twice the offset of the newest record; or twice ``read_after`` and one, if the topic was read after it."""
        return max(2 * self.last_offset, 2 * self.read_after + 1)

    @property
    def newest(self) -> Record:
        """The latest record. The history must not be empty."""
        return self._records[-1]

    def append(self, record: Record) -> None:
        """Add a record with the greatest offset."""
        self._records.append(record)
        self.bytes += len(record.frame)
        self.last_offset = record.offset
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
        if offset > self.evicted_through:  # noqa: PLR1730  # max() is slower; a skipped record may be newer
            self.evicted_through = offset
        if not self._is_superseded(record):
            if offset > self.unsuperseded_through:  # noqa: PLR1730
                self.unsuperseded_through = offset
            if record.key is not None and self._latest is not None:
                del self._latest[record.key]
        start += 1
        if start == len(records):  # an empty topic keeps no memory for records
            self._records, self._latest = [], None
            start = 0
        elif start > SLACK and 2 * start > len(records):
            del records[:start]
            start = 0
        else:
            records[start - 1] = _EVICTED
        self._start = start

    def erase(self) -> None:
        """Remove all records, including those that a later record with their key superseded."""
        self.evicted_through = self.unsuperseded_through = max(self.last_offset, self.evicted_through)
        self._records, self._latest, self._start = [], None, 0
        self.bytes = 0

    def skip(self, offset: int) -> None:
        """Count a record that cannot be read as evicted. Its offset is the greatest one."""
        self.last_offset = self.evicted_through = self.unsuperseded_through = offset

    def latest(self, record: Record) -> Record:
        """Return the latest record with the key of ``record``, which must be kept still."""
        latest = None if record.key is None or self._latest is None else self._latest[record.key]
        if latest is None or latest == record.offset:
            return record
        return self._records[bisect_left(self._records, latest, self._start, key=_offset)]

    def after(self, offset: int, max_records: int | None = None) -> list[Record]:
        """Return the records after an offset, oldest first, at most ``max_records``."""
        if offset >= self.last_offset:
            return []
        start = bisect_right(self._records, offset, self._start, key=_offset)
        return self._records[start : None if max_records is None else start + max_records]

    def count_after(self, offset: int) -> int:
        """Return the number of records after an offset."""
        if offset >= self.last_offset:
            return 0
        return len(self._records) - bisect_right(self._records, offset, self._start, key=_offset)

    def count_since(self, time: float) -> int:
        """Return the number of records that were published since a time, in seconds of the history's clock."""
        return len(self._records) - bisect_left(self._records, time, self._start, key=_time)

    def _is_superseded(self, record: Record) -> bool:
        return record.key is not None and self._latest is not None and self._latest[record.key] > record.offset
