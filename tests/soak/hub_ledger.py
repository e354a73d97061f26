"""The ledger of a server, complete: what one Hub has published, and what of it could be gone when."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from hub_feed import AGE, HISTORY

ALLOWANCE = 0.1  # seconds; an event is written down a moment after it got its time


class Line(NamedTuple):
    """An event that was published."""

    offset: int  # of an ephemeral one, that of the record before it; 0 if nobody knows
    number: int
    time: float
    topic: str
    key: str


class Change(NamedTuple):
    """A name that an open stream took, or gave back, at one of these positions."""

    verb: str
    topic: str
    earliest: int
    latest: int


class Excuse(NamedTuple):
    """A gap that a client was told of at this time: some are missing after one position, up to another."""

    after: int
    first: int | None
    last: int
    time: float


class Published:
    """What one Hub has published in one server's life."""

    def __init__(self, hub: int) -> None:
        self.hub = hub
        self.lines: dict[int, Line] = {}
        self.passing: dict[int, Line] = {}  # by number
        self.topics: dict[str, list[int]] = defaultdict(list)
        self._keys: dict[tuple[str, str], list[int]] = defaultdict(list)
        self._under: dict[tuple[str, ...], list[int]] = {}

    def order(self) -> None:
        """Take the lines as complete: what threads have published is not in order."""
        for offset in sorted(self.lines):
            line = self.lines[offset]
            self.topics[line.topic].append(offset)
            self._keys[line.topic, line.key].append(offset)

    @property
    def holes(self) -> int:
        """How many positions nobody has published."""
        return max(self.lines, default=0) - len(self.lines)

    def under(self, patterns: tuple[str, ...]) -> list[int]:
        """Return the positions of all records under some names and wildcards."""
        if patterns not in self._under:
            some = [where for topic, where in self.topics.items() if any(matches(name, topic) for name in patterns)]
            self._under[patterns] = sorted(offset for where in some for offset in where)
        return self._under[patterns]

    def gone(self, offset: int, when: float) -> bool:
        """Tell whether a record could be evicted then: too old, or there were enough later ones of its topic."""
        line, age = self.lines[offset], AGE[self.hub]
        later = self.topics[line.topic]
        enough = bisect_right(later, offset) + HISTORY[self.hub] - 1
        if enough < len(later) and self.lines[later[enough]].time <= when:
            return True
        return age is not None and line.time + age <= when + ALLOWANCE

    def superseded(self, offset: int, when: float) -> bool:
        """Tell whether there was a later record of the same topic and key then."""
        line = self.lines[offset]
        later = self._keys[line.topic, line.key]
        following = bisect_right(later, offset)
        return line.key != "-" and following < len(later) and self.lines[later[following]].time <= when

    def oldest_gone(self, patterns: tuple[str, ...], offset: int, when: float) -> bool:
        """Tell whether any record under these names after a position could be evicted then."""
        for topic, where in self.topics.items():
            following = bisect_right(where, offset)
            asked = following < len(where) and any(matches(name, topic) for name in patterns)
            if asked and self.gone(where[following], when):
                return True
        return False


def matches(pattern: str, topic: str) -> bool:
    """Tell whether a name or wildcard stands for a topic."""
    asked, given = pattern.split("."), topic.split(".")
    if asked[-1] == ">":
        asked, given, enough = asked[:-1], given[: len(asked) - 1], len(given) >= len(asked)
    else:
        enough = len(given) == len(asked)
    return enough and all(one in {"*", other} for one, other in zip(asked, given, strict=True))


def read(path: Path) -> tuple[dict[str, Published], dict[str, list[Change]]]:
    """Return what each Hub has published, by epoch, and how the topics of streams have changed, by token."""
    hubs: dict[str, Published] = {}
    changes: dict[str, list[Change]] = defaultdict(list)
    for text in path.read_text().splitlines():
        verb, *words = text.split(" ")
        if verb == "published":
            epoch, hub, offset, ephemeral, number, time, topic, key = words
            published = hubs.setdefault(epoch, Published(int(hub)))
            line = Line(int(offset), int(number), float(time), topic, key)
            if ephemeral == "1":
                published.passing[line.number] = line
            else:
                published.lines[line.offset] = line
        else:
            token, topic, earliest, latest = words
            changes[token].append(Change(verb, topic, int(earliest), int(latest)))
    for published in hubs.values():
        published.order()
    return hubs, changes


class Spans:
    """The positions between which a stream heard of each of its names."""

    def __init__(self, names: Iterable[str], changes: Iterable[Change]) -> None:
        start, never = (0, 0), (2**62, 2**62)
        self._spans: dict[str, list[tuple[tuple[int, int], tuple[int, int]]]] = {
            name: [(start, never)] for name in names
        }
        for change in changes:
            spans, at = self._spans.setdefault(change.topic, []), (change.earliest, change.latest)
            if change.verb == "add":
                spans.append((at, never))
            elif spans:
                spans[-1] = (spans[-1][0], at)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._spans))

    def of(self, topic: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        """Give the spans of all names that stand for a topic."""
        for name, spans in self._spans.items():
            if matches(name, topic):
                yield from spans
