"""The history of a Hub: all records in one order, and for each topic the latest ones.

The history is in memory, and independent of any event loop. Without a broker it assigns the offsets. With one it uses
the offsets of the broker's log, and is trimmed and truncated with it.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter, itemgetter

from ..sse import Event, encode, frame_with_id
from .epochs import EpochHistory, new_epoch
from .index import OffsetIndex, TopicIndex
from .record import GapReason, Record
from .topic_history import RetentionPolicy, TopicHistory
from .topics import compile_patterns, is_wildcard

__all__ = ["EXPIRE_BATCH", "History", "ReadResult", "conflate", "limit_bytes"]


EXPIRE_BATCH = 512  # records that one call evicts because of their age, so that no call takes long
# Number of empty topics to keep, so that an eviction in one is not reported as a gap in others.
MAX_EMPTY_TOPICS = 4096
# Bounds of one read with ``max_bytes``: up to MAX_TOPICS_SCANNED changed topics are merged. If there are more, the
# records of all topics are scanned in offset order, up to MAX_RECORDS_SCANNED.
MAX_TOPICS_SCANNED = 256
MAX_RECORDS_SCANNED = 2048
MIN_FRAME_SIZE = 8  # bytes; lower bound of a frame, to convert a limit in bytes into one in records
WIDENING = 4  # factor by which replay_start widens its search window

_offset = attrgetter("offset")
_start = itemgetter(0)


@dataclass(frozen=True)
class ReadResult:
    """What the history has after an offset."""

    records: list[Record]
    """Matching records in offset order, possibly cut off at ``max_bytes``."""
    missing_through: int
    """Offset of the newest record after the start that is missing, or may be; 0 if there is none."""
    unsuperseded_through: int
    """Like ``missing_through``, but without the records that a later one with the same topic and key superseded."""
    more: bool
    """Whether there may be more records to read."""
    read_through: int
    """Every kept record up to this offset that matches is in ``records``."""

    @cached_property
    def frames(self) -> bytes:
        """The frames of the records, joined once for all cursors that share the result."""
        return b"".join([record.frame for record in self.records])


class History:
    """The records of all topics in one order, for each topic as many as the retention policy keeps.

    Offsets are integers, starting with 1 if there is no broker. ``now`` is in seconds of any monotonic clock.
    """

    def __init__(self, retention: RetentionPolicy, epoch: str | None = None) -> None:
        self.end: int = 0
        """Offset of the newest entry, including ephemeral, skipped and evicted ones; 0 before the first."""
        self.records: int
        """Number of records kept."""
        self.bytes: int
        """Bytes of their frames."""
        self._retention = retention
        self._epochs = EpochHistory(epoch or new_epoch())
        self._unknown_through = 0  # up to this offset, records of any topic may be missing
        self._clear()

    def _clear(self) -> None:
        self.records = self.bytes = 0
        self._topics: dict[str, TopicHistory] = {}
        self._topic_index = TopicIndex()
        self._offset_index = OffsetIndex()
        self._unindexed: dict[TopicHistory, None] = {}  # topics whose latest eviction is not in the index yet
        # A heap with one entry for each topic: when its oldest record expires.
        self._expiries: list[tuple[float, int, TopicHistory]] = []
        self._empty: OrderedDict[str, TopicHistory] = OrderedDict()  # topics without records, longest empty first
        self._dropped_through = 0  # offset of the newest eviction in an empty topic that was dropped

    @property
    def topics(self) -> int:
        """Number of topics that have a record."""
        return len(self._topics) - len(self._empty)

    def __contains__(self, topic: str) -> bool:
        """Return whether state is kept for a topic, even if all of its records were evicted."""
        return topic in self._topics

    # Offsets and IDs.

    @property
    def epoch(self) -> str:
        """The epoch of new records."""
        return self._epochs.epoch

    def id_of(self, offset: int) -> str:
        """Return the event ID of an offset."""
        return self._epochs.id_of(offset)

    def resolve(self, event_id: str) -> tuple[int, GapReason | None]:
        """Return the offset to resume after, and a reason unless that is exactly the position of ``event_id``.

        An ID from before a truncation resolves to at most the offset that the log was truncated to. An ID from another
        history resolves to 0, because its client has seen none of these records. For anything else it is unknown what
        the client has seen, so it resolves to the end rather than repeat records.
        """
        return self._epochs.resolve(event_id, self.end)

    def may_arrive(self, event_id: str) -> bool:
        """Return whether ``event_id`` may belong to a record that the broker has not delivered yet."""
        return self._epochs.may_arrive(event_id, self.end)

    # Appending and expiry.

    def append(self, topic: str, event: Event, key: str | None, now: float) -> Record:
        """Append an event as a record with the next offset, and return it. ``now`` is in seconds."""
        self.expire(now, EXPIRE_BATCH)
        offset = self.end + 1
        event_id = f"{self._epochs.epoch}-{offset}"
        record = Record(offset, event_id, topic, event, frame_with_id(event_id, encode(event)), key, now)
        self.add(record)
        return record

    def add(self, record: Record) -> None:
        """Add a record whose offset is greater than all others, and evict what exceeds the limits of its topic."""
        self.end = record.offset
        topic_history = self._get_or_create_topic(record.topic)
        topic_history.append(record)
        self._offset_index.append(record)
        self.records += 1
        self.bytes += len(record.frame)
        max_bytes = self._retention.history_bytes
        evicted_through = topic_history.evicted_through
        while len(topic_history) > self._retention.history or (
            max_bytes is not None and topic_history.bytes > max_bytes
        ):
            self._evict(topic_history)
        self._topic_index.update(topic_history)
        if topic_history.evicted_through > evicted_through:
            self._schedule_indexing(topic_history)
        if not topic_history:
            self._keep_empty(topic_history)
        elif not topic_history.expiry_scheduled and self._retention.history_age is not None:
            self._schedule_expiry(topic_history, self._retention.history_age)

    def expire(self, now: float, max_records: int | None = None) -> None:
        """Evict expired records, at most ``max_records``."""
        expiries, age = self._expiries, self._retention.history_age
        while age is not None and expiries and expiries[0][0] <= now and max_records != 0:
            _, _, topic_history = heapq.heappop(expiries)
            topic_history.expiry_scheduled = False
            if not topic_history:  # its records were evicted for another reason
                continue
            while topic_history and topic_history.oldest.time + age <= now and max_records != 0:
                self._evict(topic_history)
                max_records = None if max_records is None else max_records - 1
            self._schedule_indexing(topic_history)
            if topic_history:
                self._schedule_expiry(topic_history, age)
            else:
                self._keep_empty(topic_history)

    def next_expiry(self) -> float | None:
        """Return when the next record may expire, or ``None`` if there is none."""
        return self._expiries[0][0] if self._expiries else None

    # Changes of a broker's log.

    def start_after(self, epoch: str, offset: int) -> None:
        """Start at an offset of a broker's log. Records of any topic up to it may be missing. The history is empty."""
        self._epochs = EpochHistory(epoch)
        self.end = self._unknown_through = offset

    def trim(self, through: int) -> None:
        """Advance to an offset up to which the broker trimmed records. A smaller one has no effect."""
        if through > self.end:
            self.end = self._unknown_through = through

    def skip(self, topic: str, offset: int) -> None:
        """Advance to an offset whose record cannot be read. It counts as missing in its topic."""
        topic_history = self._get_or_create_topic(topic)
        topic_history.skip(offset)
        self._topic_index.update(topic_history)
        self._schedule_indexing(topic_history)
        if not topic_history:
            self._keep_empty(topic_history)
        self.end = offset

    def truncate(self, epoch: str, offset: int) -> None:
        """Remove the records after an offset, and continue from there in another epoch."""
        topics = self._topics.values()
        kept = sorted((record for topic_history in topics for record in topic_history.after(0)), key=_offset)
        # From now on, evictions before the truncation count for all topics. A spurious gap is acceptable, because
        # truncations are rare.
        evicted = [topic_history.evicted_through for topic_history in topics]
        unknown = max([self._unknown_through, self._dropped_through, *evicted])
        if offset > self.end:  # the records in between were never read
            unknown = offset
        self._epochs.start_epoch(epoch, offset)
        self._clear()
        self._unknown_through = min(unknown, offset)
        for record in kept[: bisect_right(kept, offset, key=_offset)]:
            self.add(record)
        self.end = offset

    # Reading.

    def read(
        self, offset: int, topics: Collection[str], max_bytes: int | None = None, since: Mapping[str, int] | None = None
    ) -> ReadResult:
        """Return the records after ``offset`` that match any of ``topics``, in offset order.

        With ``max_bytes`` the work is bounded by ``MAX_TOPICS_SCANNED`` and ``MAX_RECORDS_SCANNED``, so the result may
        have no records although ``more`` is true. Without it, a read of many topics scans everything after ``offset``.

        Args:
            offset: Exclusive lower bound.
            topics: Topic names and wildcards.
            max_bytes: Stop after the record that reaches this many bytes of frames; ``None`` reads to the end.
            since: A later lower bound for some of ``topics``.
        """
        missing_through, unsuperseded_through = self.missing_after(offset, topics, since)
        changed = self._changed_topics(offset, topics, since, MAX_TOPICS_SCANNED)
        if changed is None:
            records, more, read_through = self._scan(offset, topics, max_bytes, since)
            return ReadResult(records, missing_through, unsuperseded_through, more, read_through)
        max_records = None if max_bytes is None else max_bytes // MIN_FRAME_SIZE + 1
        found = [topic_history.after(start, max_records) for topic_history, start in changed.values()]
        records, more = limit_bytes(found[0] if len(found) == 1 else heapq.merge(*found, key=_offset), max_bytes)
        read_through = records[-1].offset if records else offset
        return ReadResult(records, missing_through, unsuperseded_through, more, read_through)

    def missing_after(
        self, offset: int, topics: Collection[str], since: Mapping[str, int] | None = None
    ) -> tuple[int, int]:
        """Return ``missing_through`` and ``unsuperseded_through`` of a read, in time linear to the number of topics."""
        self._index_evictions()
        missing_through = unsuperseded_through = self._unknown_after(offset, topics, since)
        for topic in topics:
            start = max(offset, since.get(topic, 0)) if since else offset
            if is_wildcard(topic):
                evicted, lost = self._topic_index.missing_through(topic)
            elif (topic_history := self._topics.get(topic)) is not None:
                evicted, lost = topic_history.evicted_through, topic_history.unsuperseded_through
            else:
                continue
            missing_through = max(missing_through, evicted if evicted > start else 0)
            unsuperseded_through = max(unsuperseded_through, lost if lost > start else 0)
        return missing_through, unsuperseded_through

    def latest(self, record: Record) -> Record:
        """Return the latest record with the topic and key of ``record``, which must be kept still."""
        return self._topics[record.topic].latest(record)

    def replay_start(self, topics: Collection[str], count: int) -> int:
        """Return the offset after which to replay the last ``count`` matching records, fewer if some were evicted."""
        start, span = self.end, count
        changed: list[TopicHistory] = []
        offsets: list[int] = []
        while start and len(offsets) < count:
            start, span = max(self.end - span, 0), span * WIDENING
            changed = [topic_history for topic_history, _ in (self._changed_topics(start, topics) or {}).values()]
            offsets = [record.offset for topic_history in changed for record in topic_history.after(start)[-count:]]
        if not offsets:
            return self.end
        offset = max(heapq.nlargest(count, offsets)[-1] - 1, *(each.evicted_through for each in changed))
        return max(offset, self._unknown_after(offset, topics, None))

    def _changed_topics(
        self,
        offset: int,
        topics: Collection[str],
        since: Mapping[str, int] | None = None,
        max_steps: int | None = None,
    ) -> dict[str, tuple[TopicHistory, int]] | None:
        """Return the changed topics, each with the offset to read it after; ``None`` beyond ``max_steps`` of them."""
        if max_steps is not None and len(topics) > max_steps:
            return None
        changed: dict[str, tuple[TopicHistory, int]] = {}
        for topic in topics:
            start = max(offset, since.get(topic, 0)) if since else offset
            if is_wildcard(topic):
                found = self._topic_index.changed_after(topic, start, max_steps)
                if found is None:
                    return None
                if max_steps is not None:
                    max_steps -= len(found)
            else:
                exact = self._topics.get(topic)
                found = [exact] if exact is not None and exact.last_offset > start else []
            for topic_history in found:
                previous = changed.get(topic_history.topic)
                if previous is None or previous[1] > start:  # of several patterns, the one that starts earliest counts
                    changed[topic_history.topic] = topic_history, start
        return changed

    def _scan(
        self, offset: int, topics: Collection[str], max_bytes: int | None, since: Mapping[str, int] | None
    ) -> tuple[list[Record], bool, int]:
        """Scan the records of all topics. Return those that match, whether there may be more, and ``read_through``."""
        if not topics:
            return [], False, max(self.end, offset)
        patterns: dict[int, list[str]] = {}  # by the offset to read after
        for topic in topics:
            patterns.setdefault(max(offset, since.get(topic, 0)) if since else offset, []).append(topic)
        matchers = [(start, compile_patterns(frozenset(names))) for start, names in patterns.items()]
        first, matches = min(matchers, key=_start)
        others = matchers if len(matchers) > 1 else ()
        found: list[Record] = []
        size, read_through = 0, offset
        for scanned, record in enumerate(self._offset_index.after(first)):
            if max_bytes is not None and (scanned == MAX_RECORDS_SCANNED or size >= max_bytes):
                return found, True, read_through
            read_through = record.offset
            topic = record.topic
            if matches(topic) or (others and any(read_through > start and match(topic) for start, match in others)):
                found.append(record)
                size += len(record.frame)
        return found, False, max(self.end, offset)

    def _unknown_after(self, offset: int, topics: Collection[str], since: Mapping[str, int] | None) -> int:
        """Return the newest offset at which a missing record of an unknown topic may have matched; 0 if none."""
        latest = max(self._dropped_through, self._unknown_through)
        if offset >= latest:
            return 0
        starts = [(topic, max(offset, since.get(topic, 0)) if since else offset) for topic in topics]
        if any(start < self._unknown_through for _, start in starts):
            return latest
        known, dropped = self._topics, self._dropped_through  # a wildcard is never among the known topics
        return latest if any(topic not in known and start < dropped for topic, start in starts) else 0

    # Topics.

    def _get_or_create_topic(self, topic: str) -> TopicHistory:
        """Return the history of a topic that is about to get a record."""
        topic_history = self._topics.get(topic)
        if topic_history is None:
            topic_history = self._topics[topic] = TopicHistory(topic, self._dropped_through)
        elif not topic_history:
            del self._empty[topic]
        return topic_history

    def _schedule_expiry(self, topic_history: TopicHistory, age: float) -> None:
        topic_history.expiry_scheduled = True
        oldest = topic_history.oldest
        heapq.heappush(self._expiries, (oldest.time + age, oldest.offset, topic_history))

    def _evict(self, topic_history: TopicHistory) -> None:
        record = topic_history.oldest
        self.records -= 1
        self.bytes -= len(record.frame)
        self._offset_index.remove(record)
        topic_history.evict()

    def _schedule_indexing(self, topic_history: TopicHistory) -> None:
        """Index the latest eviction of a topic before the next read, so that many in a row are indexed once."""
        self._unindexed[topic_history] = None
        if len(self._unindexed) > MAX_TOPICS_SCANNED:
            self._index_evictions()

    def _index_evictions(self) -> None:
        unindexed, self._unindexed = self._unindexed, {}
        for topic_history in unindexed:
            self._topic_index.index_eviction(topic_history)

    def _keep_empty(self, topic_history: TopicHistory) -> None:
        """Keep an emptied topic for exact gap detection. Beyond ``MAX_EMPTY_TOPICS``, drop the longest empty one."""
        self._empty[topic_history.topic] = topic_history
        if len(self._empty) > MAX_EMPTY_TOPICS:
            self._drop_empty(*self._empty.popitem(last=False))

    def _drop_empty(self, topic: str, topic_history: TopicHistory) -> None:
        self._dropped_through = max(self._dropped_through, topic_history.evicted_through)
        self._unindexed.pop(topic_history, None)
        del self._topics[topic]
        self._topic_index.remove(topic)


def limit_bytes(records: Iterable[Record], max_bytes: int | None) -> tuple[list[Record], bool]:
    """Return the first records, up to the one that reaches ``max_bytes``, and whether there may be more."""
    if max_bytes is None:
        return list(records), False
    found, size = [], 0
    for record in records:
        found.append(record)
        size += len(record.frame)
        if size >= max_bytes:
            return found, True
    return found, False


def conflate(records: list[Record]) -> list[Record]:
    """Return the latest record of each topic and key, and all records without a key, in order."""
    latest = {(record.topic, record.key): record for record in records}
    return [record for record in records if record.key is None or latest[record.topic, record.key] is record]
