"""The latest record of each key, which is kept after the history has evicted it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable
from operator import attrgetter

from .._logging import log as logger
from .record import Record
from .topics import compile_patterns, is_wildcard

__all__ = ["LatestRecords"]


_offset = attrgetter("offset")


class LatestRecords:
    """The latest record of each topic and key. Records without a key count as those of one key.

    If there are more than ``max_records``, or more than ``max_bytes`` in their frames, the record that was published
    first is evicted.

    Args:
        max_records: Number of records to keep; 0 keeps none.
        max_bytes: Total size of their frames in bytes, or ``None`` for no limit.
    """

    def __init__(self, max_records: int, max_bytes: int | None) -> None:
        self.bytes: int = 0
        """Total size of the frames, in bytes."""
        self.evicted: int = 0
        """Number of records that were evicted since the process started. The first one is logged."""
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._records: OrderedDict[tuple[str, str | None], Record] = OrderedDict()  # by offset
        self._by_topic: dict[str, dict[str | None, Record]] = {}

    def __len__(self) -> int:
        return len(self._records)

    @property
    def enabled(self) -> bool:
        """Whether any records are kept."""
        return self._max_records > 0

    def add(self, record: Record) -> None:
        """Add a record, unless a later one with its topic and key is kept."""
        place = record.topic, record.key
        previous = self._records.get(place)
        if previous is not None and previous.offset >= record.offset:
            return
        self.remove(*place)
        self._records[place] = record
        self._by_topic.setdefault(record.topic, {})[record.key] = record
        self.bytes += len(record.frame)
        while len(self._records) > self._max_records or (self._max_bytes is not None and self.bytes > self._max_bytes):
            self.remove(*next(iter(self._records)))
            if not self.evicted:
                logger.warning("hub_latest_dropped", records=len(self._records), bytes=self.bytes)
            self.evicted += 1

    def remove(self, topic: str, key: str | None) -> None:
        """Remove the record of a topic and key. Idempotent."""
        record = self._records.pop((topic, key), None)
        if record is not None:
            self.bytes -= len(record.frame)
            records = self._by_topic[topic]
            del records[key]
            if not records:
                del self._by_topic[topic]

    def truncate(self, offset: int) -> None:
        """Remove the records after an offset. ``add`` then adds the earlier ones of their keys that are still kept."""
        for (topic, key), record in list(self._records.items()):
            if record.offset > offset:
                self.remove(topic, key)

    def read(self, topics: Collection[str]) -> list[Record]:
        """Return the records that match any of ``topics``, in offset order. A wildcard visits every topic."""
        wildcards = frozenset(filter(is_wildcard, topics))
        matching: Iterable[str] = dict.fromkeys(topic for topic in topics if topic in self._by_topic)
        if wildcards:
            matches = compile_patterns(wildcards)
            matching = {**dict.fromkeys(matching), **dict.fromkeys(filter(matches, self._by_topic))}
        return sorted((record for topic in matching for record in self._by_topic[topic].values()), key=_offset)
