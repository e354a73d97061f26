"""The history of a Hub: all records in one order, and for each topic the latest ones.

The history is in memory and knows no event loop. Without a broker it assigns the offsets. With a broker it has the
offsets of the broker's log, and follows when that is trimmed or truncated.
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

__all__ = ["EXPIRE_BATCH", "History", "ReadResult", "conflate", "take_bytes"]


EXPIRE_BATCH = 512  # records that one call evicts because of their age, so that no call takes long
# Number of empty topics to remember, so that an eviction in one is not reported as a gap in others.
MAX_EMPTY_TOPICS = 4096
# A read visits at most so many changed topics. If there are more it scans the records of all topics in their order, at
# most so many. Either takes less than a millisecond.
MAX_TOPICS_SCANNED = 256
MAX_RECORDS_SCANNED = 2048
MIN_FRAME_SIZE = 8  # bytes of the smallest frame, which bounds the number of records in a number of bytes
WIDENING = 4  # each search for the latest records covers so many times more offsets than the one before

_offset = attrgetter("offset")
_start = itemgetter(0)


@dataclass(frozen=True)
class ReadResult:
    """What the history has after an offset."""

    records: list[Record]
    """The records in order, or the first of them if there are more bytes than requested."""
    missing_through: int
    """Offset of the newest record that is missing, or that may be; 0 if none is."""
    lost_through: int
    """Offset of the newest missing record that no later record with its key superseded; 0 if there is none."""
    more: bool
    """Whether there may be more records to read."""
    read_through: int
    """The offset up to which there are no other records."""

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
        """Offset of the newest record, even if it is not kept."""
        self.records: int
        """Number of records."""
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
        self._empty: OrderedDict[str, TopicHistory] = OrderedDict()  # topics without records, the oldest first
        self._forgotten_through = 0  # offset of the newest eviction in a topic that is not remembered

    @property
    def topics(self) -> int:
        """Number of topics that have a record."""
        return len(self._topics) - len(self._empty)

    def __contains__(self, topic: str) -> bool:
        """Return whether the topic is remembered."""
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
        """Return the offset to resume after, and a reason if that is not the position that the ID names.

        An ID from before a truncation resolves to at most the offset that the log was truncated to. An ID from another
        history resolves to 0, because its client has seen none of these records. For anything else it is unknown what
        the client has seen, so it resolves to the end rather than repeat records.
        """
        return self._epochs.resolve(event_id, self.end)

    def may_arrive(self, event_id: str) -> bool:
        """Return whether an ID may be of a record that a broker is yet to deliver."""
        return self._epochs.may_arrive(event_id, self.end)

    # Appending and expiry.

    def append(self, topic: str, event: Event, key: str | None, now: float) -> Record:
        """Make a record of an event, with the next offset."""
        self.expire(now, EXPIRE_BATCH)
        offset = self.end + 1
        event_id = f"{self._epochs.epoch}-{offset}"
        record = Record(offset, event_id, topic, event, frame_with_id(event_id, encode(event)), key, now)
        self.add(record)
        return record

    def add(self, record: Record) -> None:
        """Add a record that has the greatest offset, and evict what exceeds the limits of its topic."""
        self.end = record.offset
        topic_history = self._topic_for(record.topic)
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
            self._note_eviction(topic_history)
        if not topic_history:
            self._note_empty(topic_history)
        elif not topic_history.expiry_scheduled and self._retention.history_age is not None:
            self._schedule_expiry(topic_history, self._retention.history_age)

    def expire(self, now: float, max_records: int | None = None) -> None:
        """Evict the records that are too old, at most ``max_records``."""
        expiries, age = self._expiries, self._retention.history_age
        while age is not None and expiries and expiries[0][0] <= now and max_records != 0:
            _, _, topic_history = heapq.heappop(expiries)
            topic_history.expiry_scheduled = False
            if not topic_history:  # its records were evicted for another reason
                continue
            while topic_history and topic_history.oldest.time + age <= now and max_records != 0:
                self._evict(topic_history)
                max_records = None if max_records is None else max_records - 1
            self._note_eviction(topic_history)
            if topic_history:
                self._schedule_expiry(topic_history, age)
            else:
                self._note_empty(topic_history)

    def next_expiry(self) -> float | None:
        """Return when the next record may expire, or ``None`` if there is none."""
        return self._expiries[0][0] if self._expiries else None

    # What happened to a broker's log.

    def start_after(self, epoch: str, offset: int) -> None:
        """Start after an offset of a broker's log, up to which nothing is known. The history must be empty."""
        self._epochs = EpochHistory(epoch)
        self.end = self._unknown_through = offset

    def trim(self, through: int) -> None:
        """Note that records of unknown topics after the end, up to and including an offset, were trimmed."""
        if through > self.end:
            self.end = self._unknown_through = through

    def skip(self, topic: str, offset: int) -> None:
        """Note that the record with the greatest offset cannot be read. It is missing in its topic from then on."""
        topic_history = self._topic_for(topic)
        topic_history.skip(offset)
        self._topic_index.update(topic_history)
        self._note_eviction(topic_history)
        if not topic_history:
            self._note_empty(topic_history)
        self.end = offset

    def truncate(self, epoch: str, offset: int) -> None:
        """Remove the records after an offset, and continue from there in another epoch."""
        topics = self._topics.values()
        kept = sorted((record for topic_history in topics for record in topic_history.after(0)), key=_offset)
        # Earlier evictions are from now on known for all topics together, not per topic. A truncation is rare.
        unknown = max([self._unknown_through, self._forgotten_through, *(each.evicted_through for each in topics)])
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
        """Return the records after an offset that match any of the topics and wildcards, in order.

        ``max_bytes`` is about how many bytes of frames to return. A topic or wildcard in ``since`` is read after the
        offset there, if that is greater. The cost depends on what is returned, not on the size of the history. With
        ``max_bytes`` a read takes about a millisecond at most, and may return no records although there are ``more``.
        """
        missing_through, lost_through = self.missing_after(offset, topics, since)
        changed = self._changed_topics(offset, topics, since, MAX_TOPICS_SCANNED)
        if changed is None:
            records, more, read_through = self._scan(offset, topics, max_bytes, since)
            return ReadResult(records, missing_through, lost_through, more, read_through)
        max_records = None if max_bytes is None else max_bytes // MIN_FRAME_SIZE + 1
        found = [topic_history.after(start, max_records) for topic_history, start in changed.values()]
        records, more = take_bytes(found[0] if len(found) == 1 else heapq.merge(*found, key=_offset), max_bytes)
        return ReadResult(records, missing_through, lost_through, more, records[-1].offset if records else offset)

    def missing_after(
        self, offset: int, topics: Collection[str], since: Mapping[str, int] | None = None
    ) -> tuple[int, int]:
        """Return ``missing_through`` and ``lost_through`` of a read. The cost depends on the number of topics."""
        self._index_evictions()
        missing_through = lost_through = self._unknown_after(offset, topics, since)
        for topic in topics:
            start = max(offset, since.get(topic, 0)) if since else offset
            if is_wildcard(topic):
                evicted, lost = self._topic_index.missing_through(topic)
            elif (topic_history := self._topics.get(topic)) is not None:
                evicted, lost = topic_history.evicted_through, topic_history.lost_through
            else:
                continue
            missing_through = max(missing_through, evicted if evicted > start else 0)
            lost_through = max(lost_through, lost if lost > start else 0)
        return missing_through, lost_through

    def latest(self, record: Record) -> Record:
        """Return the latest record with the topic and key of one that is kept."""
        return self._topics[record.topic].latest(record)

    def replay_start(self, topics: Collection[str], count: int) -> int:
        """Return the offset before the latest records that match, at most ``count``, with none missing after it."""
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
        """Return each topic that changed, and the offset to read it after; ``None`` if that takes too many steps."""
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
                topic_history = self._topics.get(topic)
                found = [topic_history] if topic_history is not None and topic_history.last_offset > start else []
            for each in found:
                known = changed.get(each.topic)
                if known is None or known[1] > start:  # of several patterns, the one with the earliest offset counts
                    changed[each.topic] = each, start
        return changed

    def _scan(
        self, offset: int, topics: Collection[str], max_bytes: int | None, since: Mapping[str, int] | None
    ) -> tuple[list[Record], bool, int]:
        """Scan the records of all topics. Return those that match, whether there may be more, and ``read_through``."""
        patterns: dict[int, list[str]] = {}  # by the offset to read after
        for topic in topics:
            patterns.setdefault(max(offset, since.get(topic, 0)) if since else offset, []).append(topic)
        matchers = [(start, compile_patterns(frozenset(some))) for start, some in patterns.items()]
        first, matches = min(matchers, default=(self.end, bool), key=_start)
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
        """Return the newest offset at which a record of an unknown topic may have matched; 0 if there is none."""
        latest = max(self._forgotten_through, self._unknown_through)
        if offset >= latest:
            return 0
        starts = [(topic, max(offset, since.get(topic, 0)) if since else offset) for topic in topics]
        if any(start < self._unknown_through for _, start in starts):
            return latest
        known, forgotten = self._topics, self._forgotten_through  # a wildcard is never among the known topics
        return latest if any(topic not in known and start < forgotten for topic, start in starts) else 0

    # Topics.

    def _topic_for(self, topic: str) -> TopicHistory:
        """Return the history of a topic that is about to get a record."""
        topic_history = self._topics.get(topic)
        if topic_history is None:
            topic_history = self._topics[topic] = TopicHistory(topic, self._forgotten_through)
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

    def _note_eviction(self, topic_history: TopicHistory) -> None:
        """Index an eviction before the next read, so that many in a row are indexed once."""
        self._unindexed[topic_history] = None
        if len(self._unindexed) > MAX_TOPICS_SCANNED:
            self._index_evictions()

    def _index_evictions(self) -> None:
        unindexed, self._unindexed = self._unindexed, {}
        for topic_history in unindexed:
            self._topic_index.note_eviction(topic_history)

    def _note_empty(self, topic_history: TopicHistory) -> None:
        """Remember an empty topic, and forget the one that has been empty for longest if there are too many."""
        self._empty[topic_history.topic] = topic_history
        if len(self._empty) > MAX_EMPTY_TOPICS:
            self._forget(*self._empty.popitem(last=False))

    def _forget(self, topic: str, topic_history: TopicHistory) -> None:
        self._forgotten_through = max(self._forgotten_through, topic_history.evicted_through)
        self._unindexed.pop(topic_history, None)
        del self._topics[topic]
        self._topic_index.remove(topic)


def take_bytes(records: Iterable[Record], max_bytes: int | None) -> tuple[list[Record], bool]:
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
    """Return the records without those that a later one with the same topic and key supersedes."""
    latest = {(record.topic, record.key): record for record in records}
    return [record for record in records if record.key is None or latest[record.topic, record.key] is record]
