"""The history of a Hub, which keeps the latest records of each topic and orders all records by offset.

The history is stored in memory and does not depend on an event loop. By default, it assigns the offsets itself. If the
Hub has a broker, the history uses the offsets of the broker's log. When the log is trimmed or truncated, so is the
history.
"""

from __future__ import annotations

import heapq
import sys
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter, itemgetter

from .._logging import log as logger
from ..sse import Event, encode, frame_with_id
from .epochs import EpochHistory, new_epoch
from .index import OffsetIndex, TopicIndex
from .latest import NO_INITIAL_RECORDS, InitialRecords, LatestRecords
from .record import GapReason, Record
from .topic_history import RetentionPolicy, TopicHistory
from .topics import compile_patterns, is_wildcard

__all__ = ["EXPIRE_BATCH", "MAX_RECORDS_SCANNED", "History", "ReadResult", "conflate", "limit_bytes"]


EXPIRE_BATCH = 512  # maximum number of expired records to evict in one call, so that no call takes long
# Maximum number of empty topics to keep. As long as a topic is kept, its evictions are not reported as gaps in others.
MAX_EMPTY_TOPICS = 4096
# A heap of topics is compacted when it has twice as many entries as there are topics, and this many more.
HEAP_SLACK = 1024
# Limits for a read with ``max_bytes``. If at most MAX_TOPICS_SCANNED topics have changed, their records are merged.
# Otherwise, up to MAX_RECORDS_SCANNED records of all topics are scanned in offset order.
MAX_TOPICS_SCANNED = 256
MAX_RECORDS_SCANNED = 2048
MIN_FRAME_SIZE = 8  # lower bound in bytes, to convert a limit in bytes to a number of records
WIDENING = 4  # factor by which replay_start widens the search window at each step

_offset = attrgetter("offset")
_start = itemgetter(0)


@dataclass(frozen=True)
class ReadResult:
    """The result of reading the history after an offset."""

    records: list[Record]
    """The matching records in offset order. The list may be cut off at ``max_bytes``."""
    missing_through: int
    """The offset of the newest record after the start that is or may be missing. 0 if no record is missing."""
    unsuperseded_through: int
    """Like ``missing_through``, but ignoring records superseded by a later record with the same topic and key."""
    more: bool
    """Whether there may be more records to read."""
    read_through: int
    """``records`` contains every matching record up to this offset that is still in the history."""

    @cached_property
    def frames(self) -> bytes:
        """The frames of the records. They are joined only once for all cursors that share the result."""
        return b"".join([record.frame for record in self.records])


class History:
    """An ordered log of the records of all topics.

    The retention policy determines how many records are kept for each topic. Offsets are integers. If there is no
    broker, they start at 1. Methods that accept ``now`` expect a time in seconds. You may use any monotonic clock.
    """

    def __init__(
        self, retention: RetentionPolicy, epoch: str | None = None, latest: LatestRecords | None = None
    ) -> None:
        self.end: int = 0
        """The offset of the newest entry, including ephemeral, skipped and evicted entries. 0 if there are none."""
        self.records: int
        """The number of records in the history."""
        self.bytes: int
        """The total size of the frames of these records, in bytes."""
        self.latest_records: LatestRecords = LatestRecords(0, None) if latest is None else latest
        """The latest record of each topic and key, even if it was evicted."""
        self.evicted: int = 0
        """The number of records that were evicted because of ``max_topics`` or ``max_bytes``."""
        self.erasures: int = 0
        """The number of erasures, and of changes of the log in which one may have been missed."""
        self._retention = retention
        self._max_topics = sys.maxsize if retention.max_topics is None else retention.max_topics
        self._max_bytes = sys.maxsize if retention.max_bytes is None else retention.max_bytes
        self._is_bounded = not (retention.max_topics is None and retention.max_bytes is None)
        self._ranked = 0  # topics that were ranked so far
        self._epochs = EpochHistory(epoch or new_epoch())
        # The offset, the time and the key of the end of each finished topic, in the order of the former two.
        self._finished: OrderedDict[str, tuple[int, float, str | None]] = OrderedDict()
        self._unknown_through = 0  # records of any topic may be missing up to this offset
        self._clear()

    def _clear(self) -> None:
        self.records = self.bytes = 0
        self._topics: dict[str, TopicHistory] = {}
        self._topic_index = TopicIndex()
        self._offset_index = OffsetIndex()
        self._unindexed: dict[TopicHistory, None] = {}  # topics whose latest eviction is not indexed yet
        # A heap that contains, for each topic, the time when its oldest record expires.
        self._expiries: list[tuple[float, int, TopicHistory]] = []
        # A heap that contains, for each topic with records, an earlier use or the last one, and the rank of the entry.
        self._uses: list[tuple[int, int, TopicHistory]] = []
        self._empty: OrderedDict[str, TopicHistory] = OrderedDict()  # in the order they became empty
        self._dropped_through = 0  # offset of the newest eviction in the topics that were dropped

    @property
    def topics(self) -> int:
        """The number of topics that have at least one record."""
        return len(self._topics) - len(self._empty)

    def __contains__(self, topic: str) -> bool:
        """Return whether the history knows a topic, even if all records of the topic were evicted."""
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
        """Return the offset to resume after.

        If this is not exactly the position of ``event_id``, also return the reason.

        If the log was truncated since ``event_id`` was assigned, the offset is at most the offset that the log was
        truncated to. If ``event_id`` is from another history, the offset is 0, because the client has not seen any of
        these records. In all other cases, it is unknown what the client has seen. Then, the offset is the end of the
        history, so that no records are repeated.
        """
        return self._epochs.resolve(event_id, self.end)

    def may_arrive(self, event_id: str) -> bool:
        """Return whether ``event_id`` may belong to a record that the broker has not delivered yet."""
        return self._epochs.may_arrive(event_id, self.end)

    # Appending and expiry.

    def append(self, topic: str, event: Event, key: str | None, now: float, kind: type[Record] = Record) -> Record:
        """Append an event to the history and return its record, which has the next offset. ``now`` is in seconds."""
        self.expire(now, EXPIRE_BATCH)
        offset = self.end + 1
        event_id = f"{self._epochs.epoch}-{offset}"
        record = kind(offset, event_id, topic, event, frame_with_id(event_id, encode(event)), key, now)
        self.add(record)
        return record

    def add(self, record: Record) -> None:
        """Add a record, then evict the oldest records of its topic until the topic is within its limits.

        If there are too many topics or bytes, evict records of the topics that were not used for the longest time.

        The offset of the record must be greater than all other offsets.
        """
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
        if len(record.frame) > self._max_bytes and topic_history:  # evicting other topics would make no room for it
            self._evict_for_limits(topic_history, 0)
        self._topic_index.update(topic_history)
        if topic_history.evicted_through > evicted_through:
            self._schedule_indexing(topic_history)
        if not topic_history:
            self._keep_empty(topic_history)
        elif not topic_history.expiry_scheduled and self._retention.history_age is not None:
            self._schedule_expiry(topic_history, self._retention.history_age)
        if not topic_history.rank and topic_history:
            self._rank(topic_history)
        while self.bytes > self._max_bytes:
            self._evict_least_recently_used(self._max_bytes)
        if self.latest_records.enabled:
            if record.tombstone:
                self.latest_records.remove(record.topic, record.key)
            else:
                self.latest_records.add(record)

    def expire(self, now: float, max_records: int | None = None) -> None:
        """Evict expired records. If ``max_records`` is given, evict no more than this number of records."""
        expiries, age = self._expiries, self._retention.history_age
        if self._finished and age is not None:
            self._expire_finished(now - age)
        while age is not None and expiries and expiries[0][0] <= now and max_records != 0:
            _, _, topic_history = heapq.heappop(expiries)
            topic_history.expiry_scheduled = False
            if not topic_history:  # all records were already evicted for another reason
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
        """Return the time when the next record or finished topic may expire, or ``None`` if none will."""
        due = [self._expiries[0][0]] if self._expiries else []
        if self._finished and self._retention.history_age is not None:
            due.append(next(iter(self._finished.values()))[1] + self._retention.history_age)
        return min(due, default=None)

    # Erasing.

    def erase(self, topic: str) -> None:
        """Remove all records of a topic, also its latest ones. They count as evicted."""
        self.erasures += 1
        self.latest_records.remove_topic(topic)
        topic_history = self._topics.get(topic)
        if topic_history is None:
            return
        erased = topic_history.after(0)
        for record in erased:
            self._offset_index.remove(record)
        self.records -= len(erased)
        self.bytes -= topic_history.bytes
        topic_history.erase()
        self._schedule_indexing(topic_history)
        if erased:
            self._keep_empty(topic_history)

    def holds(self, record: Record) -> bool:
        """Return whether a record is the newest one of its topic, or the latest one of its key."""
        return self.latest_records.holds(record) or self.newest(record.topic) is record

    # Finished topics.

    def finish(self, topic: str, offset: int, time: float, key: str | None) -> None:
        """Mark a topic as finished at an offset. The mark expires like a record of that time, in seconds."""
        self.end = offset
        self._finished.pop(topic, None)  # an erasure finishes it again
        self._finished[topic] = offset, time, key

    @property
    def has_finished_topics(self) -> bool:
        """Whether any topic is finished."""
        return bool(self._finished)

    def is_finished(self, topic: str, time: float | None = None) -> bool:
        """Return whether a topic is finished, or was at an earlier time in seconds. A wildcard never is."""
        finished, age = self._finished.get(topic), self._retention.history_age
        if finished is None:
            return False
        if time is None or age is None or time < finished[1] + age:
            return True
        del self._finished[topic]  # it was used again after that
        return False

    def all_finished(self, topics: Collection[str]) -> bool:
        """Return whether there are topics, and all of them are finished."""
        finished = self._finished
        return bool(finished) and bool(topics) and all(topic in finished for topic in topics)

    def finished_at(self, topic: str) -> int:
        """Return the offset at which a finished topic was finished."""
        return self._finished[topic][0]

    def finished_by(self, topic: str) -> str | None:
        """Return the key of the end of a finished topic."""
        return self._finished[topic][2]

    def last_offset(self, topic: str) -> int:
        """Return the offset of the last record of a topic, even if it was evicted; 0 if that is not known."""
        topic_history = self._topics.get(topic)
        return 0 if topic_history is None else topic_history.last_offset

    def newest(self, topic: str) -> Record | None:
        """Return the newest record of a topic, or ``None`` if the history has none."""
        topic_history = self._topics.get(topic)
        return topic_history.newest if topic_history else None

    def last_of_finished(self, topics: Collection[str], offset: int) -> InitialRecords:
        """Return the last record of each finished topic, if it is not after ``offset``, in offset order."""
        if not self._finished:
            return NO_INITIAL_RECORDS
        newest = [self.newest(topic) for topic in topics if topic in self._finished]
        found = [record for record in newest if record is not None and record.offset <= offset]
        return InitialRecords(sorted(found, key=_offset)) if found else NO_INITIAL_RECORDS

    def _expire_finished(self, through: float) -> None:
        """Remove the marks of topics that were finished up to this time."""
        while self._finished and next(iter(self._finished.values()))[1] <= through:
            self._finished.popitem(last=False)

    # Changes of a broker's log.

    def start_after(self, epoch: str, offset: int) -> None:
        """Start after an offset of a broker's log. The history must be empty.

        Records of any topic may be missing up to this offset.
        """
        self._epochs = EpochHistory(epoch)
        self.end = self._unknown_through = offset

    def trim(self, through: int) -> None:
        """Advance to ``through`` after the broker has trimmed the records up to this offset.

        If the history is already past ``through``, this has no effect. Otherwise all records are removed, as any of
        them may have been erased, and the latest ones, as any of them may have been superseded.
        """
        if through > self.end:
            self._clear()
            self.end = self._unknown_through = through
            self.latest_records.clear()
            self.erasures += 1

    def skip(self, topic: str, offset: int) -> None:
        """Advance to the offset of a record that cannot be read. The record counts as missing in ``topic``."""
        topic_history = self._get_or_create_topic(topic)
        topic_history.skip(offset)
        self._topic_index.update(topic_history)
        self._schedule_indexing(topic_history)
        if not topic_history:
            self._keep_empty(topic_history)
        self.end = offset

    def truncate(self, epoch: str, offset: int) -> None:
        """Remove the records after ``offset`` and continue from there in a new epoch."""
        topics = self._topics.values()
        kept = sorted((record for topic_history in topics for record in topic_history.after(0)), key=_offset)
        # From now on, evictions that happened before the truncation count for all topics. This may cause spurious gaps,
        # which is acceptable because truncations are rare.
        evicted = [topic_history.evicted_through for topic_history in topics]
        unknown = max([self._unknown_through, self._dropped_through, *evicted])
        if offset > self.end:  # entries between the end and the offset were never read: as if they were trimmed
            unknown = offset
            kept.clear()
            self.latest_records.clear()
        self._epochs.start_epoch(epoch, offset)
        self._clear()
        self._finished = OrderedDict(item for item in self._finished.items() if item[1][0] <= offset)
        self._unknown_through = min(unknown, offset)
        latest, self.latest_records = self.latest_records, LatestRecords(0, None)
        for record in kept[: bisect_right(kept, offset, key=_offset)]:
            self.add(record)
        self.latest_records = latest
        if latest.enabled:
            latest.restore(kept, offset)
        self.end = offset

    # Reading.

    def read(
        self, offset: int, topics: Collection[str], max_bytes: int | None = None, since: Mapping[str, int] | None = None
    ) -> ReadResult:
        """Return the records after ``offset`` that match any of ``topics``, in offset order.

        If ``max_bytes`` is set, ``MAX_TOPICS_SCANNED`` and ``MAX_RECORDS_SCANNED`` limit the work per read. As a
        consequence, the result may contain no records even though ``more`` is true. If ``max_bytes`` is ``None`` and
        there are many topics, all records after ``offset`` are scanned.

        Args:
            offset: Read the records after this offset.
            topics: The topic names and wildcards to read.
            max_bytes: Stop at the record that brings the total size of the frames to this number of bytes. By default,
                read to the end.
            since: For some of ``topics``, a higher offset to start after.
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
        """Return ``missing_through`` and ``unsuperseded_through`` for a read.

        This takes time linear in the number of topics.
        """
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
        """Return the latest record with the same topic and key as ``record``.

        ``record`` must still be in the history.
        """
        return self._topics[record.topic].latest(record)

    def count_after(self, offset: int, topics: Collection[str], since: Mapping[str, int] | None = None) -> int:
        """Return the number of records that ``read`` has to return, or an upper bound if very many topics match."""
        changed = self._changed_topics(offset, topics, since, MAX_TOPICS_SCANNED)
        if changed is None:
            return max(0, min(self.end - offset, self.records))
        return sum([topic_history.count_after(start) for topic_history, start in changed.values()])

    def topic_histories(self) -> list[TopicHistory]:
        """Return the histories of all topics. Those of topics without records may be empty."""
        return list(self._topics.values())

    def topic_history(self, topic: str) -> TopicHistory | None:
        """Return the history of a topic, or ``None`` if it has no records."""
        return self._topics.get(topic) or None

    def replay_start(self, topics: Collection[str], count: int) -> int:
        """Return the offset to start after in order to replay the last ``count`` matching records.

        If some of them were evicted, fewer records are replayed.
        """
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
        """Return the matching topics that have changed, with the offset to start after for each topic.

        If this would take more than ``max_steps`` steps, return ``None``.
        """
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
                if previous is None or previous[1] > start:  # the pattern that starts earliest wins
                    changed[topic_history.topic] = topic_history, start
        return changed

    def _scan(
        self, offset: int, topics: Collection[str], max_bytes: int | None, since: Mapping[str, int] | None
    ) -> tuple[list[Record], bool, int]:
        """Scan the records of all topics.

        Returns:
            The matching records, whether there may be more of them, and ``read_through``.
        """
        if not topics:
            return [], False, max(self.end, offset)
        patterns: dict[int, list[str]] = {}  # grouped by the offset to start after
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
        """Return the offset up to which matching records of unknown topics may be missing, or 0 if there are none."""
        latest = max(self._dropped_through, self._unknown_through)
        if offset >= latest:
            return 0
        starts = [(topic, max(offset, since.get(topic, 0)) if since else offset) for topic in topics]
        if any(start < self._unknown_through for _, start in starts):
            return latest
        known, dropped = self._topics, self._dropped_through  # a wildcard is never a known topic
        return latest if any(topic not in known and start < dropped for topic, start in starts) else 0

    # The topics in the order of their last use.

    def note_read(self, topics: Iterable[str]) -> None:
        """Count that a stream begins to read some topics as a use of each. Wildcards do not count."""
        for topic in topics:
            topic_history = self._topics.get(topic)
            if topic_history is not None:
                topic_history.read_after = self.end

    def _rank(self, topic_history: TopicHistory) -> None:
        """Rank a topic that has got its first record, and evict another one if there are too many."""
        self._ranked += 1
        topic_history.rank = self._ranked
        if not self._is_bounded:
            return
        while self.topics > self._max_topics:
            self._evict_least_recently_used(0)
        if len(self._uses) > 2 * len(self._topics) + HEAP_SLACK:
            self._uses = [entry for entry in self._uses if entry[1] == entry[2].rank]
            heapq.heapify(self._uses)
        heapq.heappush(self._uses, (topic_history.last_use, topic_history.rank, topic_history))

    def _least_recently_used(self) -> TopicHistory:
        """Return the topic with records that was not used for the longest time.

        The uses since a topic was ranked are found here, so that a use costs nothing.
        """
        uses = self._uses
        while True:
            use, rank, topic_history = uses[0]
            if rank != topic_history.rank:  # it has become empty since
                heapq.heappop(uses)
            elif topic_history.last_use > use:
                heapq.heapreplace(uses, (topic_history.last_use, rank, topic_history))
            else:
                return topic_history

    def _evict_least_recently_used(self, max_bytes: int) -> None:
        """Evict the oldest records of one topic, until all topics together have ``max_bytes`` or it has no more."""
        topic_history = self._least_recently_used()
        self._evict_for_limits(topic_history, max_bytes)
        self._schedule_indexing(topic_history)
        if not topic_history:
            self._keep_empty(topic_history)

    def _evict_for_limits(self, topic_history: TopicHistory, max_bytes: int) -> None:
        """Evict and count the oldest records of a topic. The caller indexes that, and keeps the topic if empty."""
        if not self.evicted:
            logger.warning("hub_history_full", topics=self.topics, records=self.records, bytes=self.bytes)
        while topic_history and self.bytes > max_bytes:
            self._evict(topic_history)
            self.evicted += 1

    # Topics.

    def _get_or_create_topic(self, topic: str) -> TopicHistory:
        """Return the history of a topic, creating it if needed. Called before a record is added to the topic."""
        topic_history = self._topics.get(topic)
        if topic_history is None:
            topic_history = self._topics[topic] = TopicHistory(topic, self._dropped_through)
        elif not topic_history:
            del self._empty[topic]
        return topic_history

    def _schedule_expiry(self, topic_history: TopicHistory, age: float) -> None:
        if len(self._expiries) > 2 * len(self._topics) + HEAP_SLACK:
            self._compact_expiries()
        topic_history.expiry_scheduled = True
        oldest = topic_history.oldest
        heapq.heappush(self._expiries, (oldest.time + age, oldest.offset, topic_history))

    def _compact_expiries(self) -> None:
        """Remove the entries of topics that became empty before their records expired."""
        for _, _, topic_history in self._expiries:
            topic_history.expiry_scheduled = bool(topic_history)
        self._expiries = [entry for entry in self._expiries if entry[2].expiry_scheduled]
        heapq.heapify(self._expiries)

    def _evict(self, topic_history: TopicHistory) -> None:
        record = topic_history.oldest
        self.records -= 1
        self.bytes -= len(record.frame)
        self._offset_index.remove(record)
        topic_history.evict()

    def _schedule_indexing(self, topic_history: TopicHistory) -> None:
        """Index the latest eviction of a topic before the next read.

        Thanks to this delay, several evictions in a row are indexed only once.
        """
        self._unindexed[topic_history] = None
        if len(self._unindexed) > MAX_TOPICS_SCANNED:
            self._index_evictions()

    def _index_evictions(self) -> None:
        unindexed, self._unindexed = self._unindexed, {}
        for topic_history in unindexed:
            self._topic_index.index_eviction(topic_history)

    def _keep_empty(self, topic_history: TopicHistory) -> None:
        """Keep a topic that has become empty, so that gaps are detected exactly.

        If there are more than ``MAX_EMPTY_TOPICS`` empty topics, drop the one that has been empty for the longest time.
        """
        topic_history.rank = 0
        self._empty[topic_history.topic] = topic_history
        if len(self._empty) > MAX_EMPTY_TOPICS:
            self._drop_empty(*self._empty.popitem(last=False))

    def _drop_empty(self, topic: str, topic_history: TopicHistory) -> None:
        self._dropped_through = max(self._dropped_through, topic_history.evicted_through)
        self._unindexed.pop(topic_history, None)
        del self._topics[topic]
        self._topic_index.remove(topic)


def limit_bytes(records: Iterable[Record], max_bytes: int | None) -> tuple[list[Record], bool]:
    """Return records from the start until their frames reach ``max_bytes``, and whether there may be more records."""
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
    """Return the latest record of each topic and key and all records without a key, preserving their order."""
    latest = {(record.topic, record.key): record for record in records}
    return [record for record in records if record.key is None or latest[record.topic, record.key] is record]
