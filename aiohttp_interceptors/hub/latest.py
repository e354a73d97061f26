"""The latest record of each key, which is kept after the history has evicted it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from functools import cached_property
from operator import attrgetter

from .._logging import log as logger
from .record import Record
from .topics import REST, compile_patterns, is_wildcard

__all__ = ["NO_INITIAL_RECORDS", "InitialRecords", "LatestRecords"]


_offset = attrgetter("offset")


class InitialRecords:
    """Records that are sent before those of a position. Shared by all newcomers that get the same ones.

    Args:
        records: The records, in offset order.
    """

    def __init__(self, records: list[Record]) -> None:
        self.records: list[Record] = records

    @cached_property
    def frames(self) -> list[bytes]:
        """The frames of the records, without their IDs."""
        return [record.frame.partition(b"\n")[2] for record in self.records]

    def __len__(self) -> int:
        return len(self.records)


NO_INITIAL_RECORDS = InitialRecords([])


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
        self._cached: tuple[frozenset[str], InitialRecords] | None = None  # the latest read, while nothing changes

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
        if self._max_bytes is not None and len(record.frame) > self._max_bytes:
            self._count_eviction()
            return
        self._records[place] = record
        self._by_topic.setdefault(record.topic, {})[record.key] = record
        self.bytes += len(record.frame)
        while len(self._records) > self._max_records or (self._max_bytes is not None and self.bytes > self._max_bytes):
            self.remove(*next(iter(self._records)))
            self._count_eviction()

    def _count_eviction(self) -> None:
        if not self.evicted:
            logger.warning("hub_latest_dropped", records=len(self._records), bytes=self.bytes)
        self.evicted += 1

    def remove(self, topic: str, key: str | None) -> None:
        """Remove the record of a topic and key. Idempotent."""
        self._cached = None
        record = self._records.pop((topic, key), None)
        if record is not None:
            self.bytes -= len(record.frame)
            records = self._by_topic[topic]
            del records[key]
            if not records:
                del self._by_topic[topic]

    def remove_topic(self, topic: str) -> None:
        """Remove all records of a topic. Idempotent."""
        for key in list(self._by_topic.get(topic, ())):
            self.remove(topic, key)

    def holds(self, record: Record) -> bool:
        """Return whether a record is kept."""
        return self._records.get((record.topic, record.key)) is record

    def clear(self) -> None:
        """Remove all records."""
        self._records.clear()
        self._by_topic.clear()
        self.bytes, self._cached = 0, None

    def restore(self, records: Iterable[Record], offset: int) -> None:
        """Keep only the records up to an offset, and those of ``records``, which are the ones that are known still.

        Tombstones among them count.
        """
        known = {record.offset: record for record in (*self._records.values(), *records) if record.offset <= offset}
        evicted = self.evicted
        self.clear()
        for _, record in sorted(known.items()):
            self.remove(record.topic, record.key) if record.tombstone else self.add(record)
        self.evicted = evicted

    def read(self, topics: frozenset[str]) -> InitialRecords:
        """Return the records that match any of ``topics``, in offset order. A wildcard visits every topic."""
        if self._cached is None or self._cached[0] != topics:
            self._cached = topics, InitialRecords(self._matching(topics))
        return self._cached[1]

    def _matching(self, topics: frozenset[str]) -> list[Record]:
        if REST in topics:
            return list(self._records.values())
        names: set[str] = set(topics & self._by_topic.keys())
        wildcards = frozenset(filter(is_wildcard, topics))
        if wildcards:
            names.update(filter(compile_patterns(wildcards), self._by_topic))
        return sorted((record for name in names for record in self._by_topic[name].values()), key=_offset)
