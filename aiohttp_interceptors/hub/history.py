"""The Hub's memory: one order of all records, and for each topic the latest ones. Decides, and awaits nothing."""

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
from .index import Order, TopicTree
from .record import GapReason, Record
from .topic_history import RetentionPolicy, TopicHistory
from .topics import is_wildcard, matcher

__all__ = ["EXPIRED", "History", "ReadResult", "conflated", "first"]


_offset = attrgetter("offset")
# Topics without a record whose names are still known, so that a gap in one is none for the others.
EMPTIED = 4096
SMALLEST = 8  # bytes that every frame has: of each topic no more records are looked at than can be wanted
# A reading walks over as many topics at most; if more have changed, it looks at the records in their order instead, and
# at so many at most, whatever there is. Both take less than a millisecond.
RINGS = 256
LOOKS = 2048
EXPIRED = 512  # records that are too old: no more of them go at once, be it that all of a minute ago are due
WIDEN = 4  # the latest records are looked for in so many times as many positions, until there are enough
_start = itemgetter(0)


@dataclass(frozen=True)
class ReadResult:
    """What the log has after a position."""

    records: list[Record]
    """In order; the first ones, if there are more bytes than were asked for."""
    missing: int
    """The position of the latest record that is no longer there, or may have been; 0 if none is missing."""
    lost: int
    """That of the latest one which no other of its topic and key made up for when it went; 0 if there is none."""
    more: bool
    """Whether there may be more records than these."""
    through: int
    """Up to this position there are no others."""

    @cached_property
    def frames(self) -> bytes:
        """The bytes of the records: made once, however many come back from the same place."""
        return b"".join([record.frame for record in self.records])


class History:
    """Give records their place in one order, and keep of each topic as many as the bounds say.

    A position is a whole number, 1 for the first record of a Hub that has no broker. An id is an epoch, which no other
    log has, and a position. ``now`` is in seconds of any one clock that does not go back.
    """

    def __init__(self, bounds: RetentionPolicy, epoch: str | None = None) -> None:
        self.end: int = 0
        """The position of the latest record."""
        self.records: int
        self.bytes: int
        self._bounds = bounds
        self._epochs = EpochHistory(epoch or new_epoch())
        self._floor = 0  # of what was up to here, some may be missing under any name
        self._clear()

    def _clear(self) -> None:
        self.records = self.bytes = 0
        self._rings: dict[str, TopicHistory] = {}
        self._tree = TopicTree()
        self._order = Order()
        self._unnoted: dict[TopicHistory, None] = {}  # whose latest eviction the tree does not know
        self._ages: list[
            tuple[float, int, TopicHistory]
        ] = []  # a heap, of each ring once: when its oldest record is too old
        self._emptied: OrderedDict[str, TopicHistory] = OrderedDict()  # the one that was emptied first comes first
        self._forgotten = 0  # the latest eviction of a topic whose name is no longer known

    @property
    def topics(self) -> int:
        """How many topics have a record."""
        return len(self._rings) - len(self._emptied)

    def __contains__(self, topic: str) -> bool:
        """Whether the name of the topic is known."""
        return topic in self._rings

    # Positions and ids.

    @property
    def epoch(self) -> str:
        """What the ids of new records begin with."""
        return self._epochs.epoch

    def id_of(self, offset: int) -> str:
        """Return the id of a position."""
        return self._epochs.id_of(offset)

    def locate(self, given: str) -> tuple[int, GapReason | None]:
        """Return the position to go on from after an id, and why that is not where its owner was, if it is not.

        After another life's id, that is the beginning of this one, of which its owner has seen nothing; after one that
        says nothing, the end. After one from before a broker was rewound, it is not later than what that still had.
        """
        return self._epochs.locate(given, self.end)

    def is_ahead(self, given: str) -> bool:
        """Tell whether an id may be that of a record which is still to come."""
        return self._epochs.is_ahead(given, self.end)

    # Writing.

    def append(self, topic: str, event: Event, key: str | None, now: float) -> Record:
        """Give an event the next place."""
        self.expire(now, EXPIRED)
        offset = self.end + 1
        event_id = f"{self._epochs.epoch}-{offset}"
        record = Record(offset, event_id, topic, event, frame_with_id(event_id, encode(event)), key, now)
        self.add(record)
        return record

    def add(self, record: Record) -> None:
        """Add a record that has its place, after all others, and evict what is one too many."""
        self.end = record.offset
        ring = self._ring(record.topic)
        ring.append(record)
        self._order.append(record)
        self.records += 1
        self.bytes += len(record.frame)
        most = self._bounds.history_bytes
        evicted = ring.evicted
        while len(ring) > self._bounds.history or (most is not None and ring.bytes > most):
            self._evict(ring)
        self._tree.touch(ring)
        if ring.evicted > evicted:
            self._have_noted(ring)
        if not ring:
            self._note_empty(ring)
        elif not ring.due and self._bounds.history_age is not None:
            self._await_age(ring, self._bounds.history_age)

    # What a broker says of its own.

    def begin(self, epoch: str, offset: int) -> None:
        """Begin after a position of a broker's, up to which nothing is known. The log must be empty."""
        self._epochs = EpochHistory(epoch)
        self.end = self._floor = offset

    def lose(self, offset: int) -> None:
        """Note that after the end, up to and including a position, something is missing, of whichever topic."""
        if offset > self.end:
            self.end = self._floor = offset

    def miss(self, topic: str, offset: int) -> None:
        """Give a record of a topic that cannot be read its place, after all others: it is missing from then on."""
        ring = self._ring(topic)
        ring.miss(offset)
        self._tree.touch(ring)
        self._have_noted(ring)
        if not ring:
            self._note_empty(ring)
        self.end = offset

    def truncate(self, epoch: str, offset: int) -> None:
        """Forget what is after a position, and go on from there in another epoch."""
        rings = self._rings.values()
        kept = sorted((record for ring in rings for record in ring.after(0)), key=_offset)
        # Which topic lacks what of the rest is not worth knowing: this happens once in years.
        gone = max([self._floor, self._forgotten, *(ring.evicted for ring in rings)])
        if offset > self.end:  # what was between was never here
            gone = offset
        self._epochs.begin(epoch, offset)
        self._clear()
        self._floor = min(gone, offset)
        for record in kept[: bisect_right(kept, offset, key=_offset)]:
            self.add(record)
        self.end = offset

    def _ring(self, topic: str) -> TopicHistory:
        """Return the topic's ring, which is about to have a record."""
        ring = self._rings.get(topic)
        if ring is None:
            ring = self._rings[topic] = TopicHistory(topic, self._forgotten)
        elif not ring:
            del self._emptied[topic]
        return ring

    def expire(self, now: float, most: int | None = None) -> None:
        """Evict what is too old, that many records at most."""
        ages, age = self._ages, self._bounds.history_age
        while age is not None and ages and ages[0][0] <= now and most != 0:
            _, _, ring = heapq.heappop(ages)
            ring.due = False
            if not ring:  # emptied for another reason, and perhaps forgotten
                continue
            while ring and ring.oldest.time + age <= now and most != 0:
                self._evict(ring)
                most = None if most is None else most - 1
            self._have_noted(ring)
            if ring:
                self._await_age(ring, age)
            else:
                self._note_empty(ring)

    def _await_age(self, ring: TopicHistory, age: float) -> None:
        """Have a ring looked at when the record that is its oldest one now is too old."""
        ring.due = True
        heapq.heappush(self._ages, (ring.oldest.time + age, ring.oldest.offset, ring))

    def next_expiry(self) -> float | None:
        """Return when ``expire`` may have something to do, or ``None`` for never."""
        return self._ages[0][0] if self._ages else None

    def _evict(self, ring: TopicHistory) -> None:
        record = ring.oldest
        self.records -= 1
        self.bytes -= len(record.frame)
        self._order.remove(record)
        ring.evict()

    def _note_empty(self, ring: TopicHistory) -> None:
        """Note that a ring has no record any more, and forget the one of which that was noted first."""
        self._emptied[ring.topic] = ring
        if len(self._emptied) > EMPTIED:
            self._forget(*self._emptied.popitem(last=False))

    def _have_noted(self, ring: TopicHistory) -> None:
        """Have the tree know of a ring's eviction before somebody asks: of many in a row, it notes the last."""
        self._unnoted[ring] = None
        if len(self._unnoted) > RINGS:
            self._note_evictions()

    def _note_evictions(self) -> None:
        unnoted, self._unnoted = self._unnoted, {}
        for ring in unnoted:
            self._tree.evict(ring)

    def _forget(self, topic: str, ring: TopicHistory) -> None:
        """Forget the name of a topic that has no record."""
        self._forgotten = max(self._forgotten, ring.evicted)
        self._unnoted.pop(ring, None)
        del self._rings[topic]
        self._tree.remove(topic)

    # Reading.

    def after(
        self, offset: int, topics: Collection[str], most: int | None = None, since: Mapping[str, int] | None = None
    ) -> ReadResult:
        """Return the records after a position under these names and wildcards, in order.

        ``most`` is how many bytes are wanted about. A name in ``since`` counts from the position there, if that is the
        later one. Costs what it returns, not what the log holds; with ``most`` it takes no longer than about a
        millisecond, and may then return no record although there are ``more``, which are after ``through``.
        """
        missing, lost = self.gone(offset, topics, since)
        rings = self._few(offset, topics, since)
        if rings is None:
            records, more, through = self._look(offset, topics, most, since)
            return ReadResult(records, missing, lost, more, through)
        count = None if most is None else most // SMALLEST + 1
        found = [ring.after(start, count) for ring, start in rings.values()]
        records, more = first(found[0] if len(found) == 1 else heapq.merge(*found, key=_offset), most)
        return ReadResult(records, missing, lost, more, records[-1].offset if records else offset)

    def gone(self, offset: int, topics: Collection[str], since: Mapping[str, int] | None = None) -> tuple[int, int]:
        """Return ``missing`` and ``lost`` of what ``after`` would read. Costs the names."""
        self._note_evictions()
        missing = lost = self._unknown(offset, topics, since)
        for name in topics:
            start = max(offset, since.get(name, 0)) if since else offset
            if is_wildcard(name):
                evicted, unreplaced = self._tree.gone(name)
            elif (ring := self._rings.get(name)) is not None:
                evicted, unreplaced = ring.evicted, ring.lost
            else:
                continue
            missing = max(missing, evicted if evicted > start else 0)
            lost = max(lost, unreplaced if unreplaced > start else 0)
        return missing, lost

    def latest(self, record: Record) -> Record:
        """Return the latest record with the topic and the key of one that is kept."""
        return self._rings[record.topic].latest(record)

    def _few(
        self, offset: int, topics: Collection[str], since: Mapping[str, int] | None
    ) -> dict[str, tuple[TopicHistory, int]] | None:
        """Return what ``_starts`` returns, or ``None`` if that takes too many steps."""
        if len(topics) > RINGS:
            return None
        starts: dict[str, tuple[TopicHistory, int]] = {}
        left = RINGS
        for name in topics:
            start = max(offset, since.get(name, 0)) if since else offset
            if is_wildcard(name):
                rings = self._tree.few(name, start, left)
                if rings is None:
                    return None
                left -= len(rings)
            else:
                ring = self._rings.get(name)
                rings = [ring] if ring is not None and ring.last > start else []
            _start_at(starts, rings, start)
        return starts

    def _look(
        self, offset: int, topics: Collection[str], most: int | None, since: Mapping[str, int] | None
    ) -> tuple[list[Record], bool, int]:
        """Look at the records after a position, in order, for those under these names and wildcards.

        Returns them, whether there may be more, and up to where that is all.
        """
        names: dict[int, list[str]] = {}  # by the position from which they count
        for name in topics:
            names.setdefault(max(offset, since.get(name, 0)) if since else offset, []).append(name)
        wanted = [(start, matcher(frozenset(some))) for start, some in names.items()]
        begin, matches = min(wanted, default=(self.end, bool), key=_start)
        later = wanted if len(wanted) > 1 else ()
        found: list[Record] = []
        size, through = 0, offset
        for looks, record in enumerate(self._order.after(begin)):
            if most is not None and (looks == LOOKS or size >= most):
                return found, True, through
            through = record.offset
            topic = record.topic
            if matches(topic) or (later and any(through > start and match(topic) for start, match in later)):
                found.append(record)
                size += len(record.frame)
        return found, False, max(self.end, offset)

    def newest(self, topics: Collection[str], count: int) -> int:
        """Return the position before the latest records under these names and wildcards, that many at most.

        None is missing after it: it is not before what was evicted last.
        """
        start, span = self.end, count
        rings: list[TopicHistory] = []
        offsets: list[int] = []
        while start and len(offsets) < count:
            start, span = max(self.end - span, 0), span * WIDEN
            rings = [ring for ring, _ in self._starts(start, topics, None).values()]
            offsets = [record.offset for ring in rings for record in ring.after(start)[-count:]]
        if not offsets:
            return self.end
        offset = max(heapq.nlargest(count, offsets)[-1] - 1, *(ring.evicted for ring in rings))
        return max(offset, self._unknown(offset, topics, None))

    def _starts(
        self, offset: int, topics: Collection[str], since: Mapping[str, int] | None
    ) -> dict[str, tuple[TopicHistory, int]]:
        """Return the rings that have seen something after the position, and from where each is to be read."""
        starts: dict[str, tuple[TopicHistory, int]] = {}
        for name in topics:
            start = max(offset, since.get(name, 0)) if since else offset
            if is_wildcard(name):
                rings: Iterable[TopicHistory] = self._tree.active(name, start)
            else:
                ring = self._rings.get(name)
                rings = (ring,) if ring is not None and ring.last > start else ()
            _start_at(starts, rings, start)
        return starts

    def _unknown(self, offset: int, topics: Collection[str], since: Mapping[str, int] | None) -> int:
        """Return the latest position after that one of which nobody knows whether it was under one of these names."""
        latest = max(self._forgotten, self._floor)
        if offset >= latest:
            return 0
        starts = [(name, max(offset, since.get(name, 0)) if since else offset) for name in topics]
        if any(start < self._floor for _, start in starts):
            return latest
        known = self._rings  # of which no wildcard is one
        return latest if any(name not in known and start < self._forgotten for name, start in starts) else 0


def _start_at(starts: dict[str, tuple[TopicHistory, int]], rings: Iterable[TopicHistory], start: int) -> None:
    """Have rings read from a position, unless they are from an earlier one."""
    for ring in rings:
        known = starts.get(ring.topic)
        if known is None or known[1] > start:
            starts[ring.topic] = ring, start


def first(records: Iterable[Record], most: int | None) -> tuple[list[Record], bool]:
    """Return the first records, until they have about that many bytes, and whether there may be more."""
    if most is None:
        return list(records), False
    found, size = [], 0
    for record in records:
        found.append(record)
        size += len(record.frame)
        if size >= most:
            return found, True
    return found, False


def conflated(records: list[Record]) -> list[Record]:
    """Return of the records of one topic and key the latest only."""
    latest = {(record.topic, record.key): record for record in records}
    return [record for record in records if record.key is None or latest[record.topic, record.key] is record]
