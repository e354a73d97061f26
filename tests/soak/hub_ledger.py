"""The complete ledger of a server: what each Hub published, and which records it may have evicted at which time."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.soak.hub_publisher import HISTORY, HISTORY_AGE

TIME_TOLERANCE = 0.1  # seconds; an event is written to the ledger a moment after it got its time
FIRST, NEVER = (0, 0), (2**62, 2**62)


class PublishedEvent(NamedTuple):
    """An event that was published."""

    offset: int  # of an ephemeral event: that of the record before it, or 0 if unknown
    number: int
    time: float
    topic: str
    key: str


class TopicChange(NamedTuple):
    """A topic that an open stream added or removed, at an offset from ``earliest`` to ``latest``."""

    verb: str
    topic: str
    earliest: int
    latest: int


class ReportedGap(NamedTuple):
    """A gap that a client received at a time: records after one offset up to another are missing."""

    after: int
    first: int | None
    last: int
    time: float


class HubLedger:
    """What one Hub published in one run of a server."""

    def __init__(self, hub: int) -> None:
        self.hub = hub
        self.records: dict[int, PublishedEvent] = {}  # by offset
        self.ephemeral: dict[int, PublishedEvent] = {}  # by number
        self.topics: dict[str, list[int]] = defaultdict(list)  # offsets
        self._keys: dict[tuple[str, str], list[int]] = defaultdict(list)  # offsets
        self._matching: dict[tuple[str, ...], list[int]] = {}

    def build_index(self) -> None:
        """Index the complete ledger. Events of threads are not in the order of their offsets."""
        for offset in sorted(self.records):
            record = self.records[offset]
            self.topics[record.topic].append(offset)
            self._keys[record.topic, record.key].append(offset)

    @property
    def unused_offsets(self) -> int:
        """The number of offsets without a record."""
        return max(self.records, default=0) - len(self.records)

    def matching(self, patterns: tuple[str, ...]) -> list[int]:
        """Return the offsets of all records whose topic matches a pattern."""
        if patterns not in self._matching:
            matching = [
                offsets
                for topic, offsets in self.topics.items()
                if any(matches(pattern, topic) for pattern in patterns)
            ]
            self._matching[patterns] = sorted(offset for offsets in matching for offset in offsets)
        return self._matching[patterns]

    def may_be_evicted(self, offset: int, when: float) -> bool:
        """Whether a record was too old at a time, or had enough successors in its topic."""
        record, age = self.records[offset], HISTORY_AGE[self.hub]
        offsets = self.topics[record.topic]
        index = bisect_right(offsets, offset) + HISTORY[self.hub] - 1
        if index < len(offsets) and self.records[offsets[index]].time <= when:
            return True
        return age is not None and record.time + age <= when + TIME_TOLERANCE

    def superseded(self, offset: int, when: float) -> bool:
        """Whether there was a later record of the same topic and key at a time."""
        record = self.records[offset]
        offsets = self._keys[record.topic, record.key]
        index = bisect_right(offsets, offset)
        return record.key != "-" and index < len(offsets) and self.records[offsets[index]].time <= when

    def any_may_be_evicted(self, patterns: tuple[str, ...], after: int, when: float) -> bool:
        """Whether any matching record after an offset may have been evicted at a time."""
        for topic, offsets in self.topics.items():
            index = bisect_right(offsets, after)
            relevant = index < len(offsets) and any(matches(pattern, topic) for pattern in patterns)
            if relevant and self.may_be_evicted(offsets[index], when):
                return True
        return False


def matches(pattern: str, topic: str) -> bool:
    """Whether a pattern matches a topic."""
    wanted, given = pattern.split("."), topic.split(".")
    if wanted[-1] == ">":
        wanted, given, enough = wanted[:-1], given[: len(wanted) - 1], len(given) >= len(wanted)
    else:
        enough = len(given) == len(wanted)
    return enough and all(one in {"*", other} for one, other in zip(wanted, given, strict=True))


def read_ledger(path: Path) -> tuple[dict[str, HubLedger], dict[str, list[TopicChange]]]:
    """Return what each Hub published, by epoch, and how the topics of streams changed, by token."""
    hubs: dict[str, HubLedger] = {}
    changes: dict[str, list[TopicChange]] = defaultdict(list)
    for line in path.read_text().splitlines():
        verb, *words = line.split(" ")
        if verb == "published":
            epoch, hub, offset, ephemeral, number, time, topic, key = words
            ledger = hubs.setdefault(epoch, HubLedger(int(hub)))
            event = PublishedEvent(int(offset), int(number), float(time), topic, key)
            if ephemeral == "1":
                ledger.ephemeral[event.number] = event
            else:
                ledger.records[event.offset] = event
        else:
            token, topic, earliest, latest = words
            changes[token].append(TopicChange(verb, topic, int(earliest), int(latest)))
    for ledger in hubs.values():
        ledger.build_index()
    return hubs, changes


class TopicIntervals:
    """The intervals of offsets in which a stream was subscribed to each of its patterns.

    An interval has a start and an end, each as the earliest and the latest offset where the change may have happened.
    """

    def __init__(self, patterns: Iterable[str], changes: Iterable[TopicChange]) -> None:
        self._intervals: dict[str, list[tuple[tuple[int, int], tuple[int, int]]]] = {
            pattern: [(FIRST, NEVER)] for pattern in patterns
        }
        for change in changes:
            intervals, offsets = self._intervals.setdefault(change.topic, []), (change.earliest, change.latest)
            if change.verb == "add":
                intervals.append((offsets, NEVER))
            elif intervals:
                intervals[-1] = (intervals[-1][0], offsets)

    @property
    def patterns(self) -> tuple[str, ...]:
        return tuple(sorted(self._intervals))

    def matching(self, topic: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        """Yield the intervals of all patterns that match a topic."""
        for pattern, intervals in self._intervals.items():
            if matches(pattern, topic):
                yield from intervals
