"""All records that are kept, whatever their topic, in their one order."""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import islice
from operator import attrgetter

from .record import Record
from .topic_history import TopicHistory
from .topics import ONE, REST, matcher

__all__ = ["Order", "TopicTree"]


CHUNK = 256  # records: to remove one moves those behind it in its chunk, and no others
FEW = CHUNK // 4
_offset = attrgetter("offset")


class Order:
    """Records by position: appended at the end, removed anywhere, and read from any position on."""

    __slots__ = ("_chunks", "_lasts")

    def __init__(self) -> None:
        self._chunks: list[list[Record]] = [[]]  # none of them empty but the last
        self._lasts: list[int] = [sys.maxsize]  # of each chunk, not less than its positions, less than the next chunk's

    def append(self, record: Record) -> None:
        """Add a record, whose position is greater than all here."""
        chunk = self._chunks[-1]
        chunk.append(record)
        if len(chunk) >= CHUNK:
            self._lasts[-1] = record.offset
            self._chunks.append([])
            self._lasts.append(sys.maxsize)

    def remove(self, record: Record) -> None:
        """Remove a record, which must be here."""
        chunk, number = self._chunks[0], 0
        if chunk and chunk[0] is record:  # often the oldest of all
            del chunk[0]
        else:
            number = bisect_left(self._lasts, record.offset)
            chunk = self._chunks[number]
            del chunk[bisect_left(chunk, record.offset, key=_offset)]
        if len(chunk) in (0, FEW) and number + 1 < len(self._chunks):
            self._shrink(number)

    def _shrink(self, number: int) -> None:
        """Join a chunk of which little is left with the next one, so that few records are in few chunks."""
        chunk, later = self._chunks[number], self._chunks[number + 1]
        if not chunk or len(chunk) + len(later) < CHUNK:
            self._chunks[number : number + 2] = [chunk + later]
            del self._lasts[number]

    def after(self, offset: int) -> Iterator[Record]:
        """Walk over the records after a position. Nothing may be added or removed meanwhile."""
        number = bisect_right(self._lasts, offset)
        chunk = self._chunks[number]
        yield from chunk[bisect_right(chunk, offset, key=_offset) :]
        for later in range(number + 1, len(self._chunks)):
            yield from self._chunks[later]


KNOWN = 16  # wildcards with a * that is not at the end: what is gone under each is kept up to date


class TopicTree:
    """Find the rings under a wildcard that changed after a position, without looking at those that did not.

    Also what was evicted last under a wildcard. That never becomes less, also when a topic is removed.
    """

    def __init__(self) -> None:
        self._root = _Branch()
        self._known: dict[str, tuple[int, int]] = {}  # what is gone under some wildcards, for which one has to search

    def touch(self, ring: TopicHistory) -> None:
        """Note that a ring has a new latest record."""
        branch, last = self._root, ring.last
        branch.last = last
        for token in ring.topic.split("."):
            child = branch.children.pop(token, None)
            if child is None:
                child = _Branch()
            branch.children[token] = child  # at the end
            child.last = last
            branch = child
        if branch.ring is not ring:
            branch.ring = ring
            if ring.evicted:
                self.evict(ring)

    def evict(self, ring: TopicHistory) -> None:
        """Note that a ring, which is here, has lost a record."""
        parent = branch = self._root
        for token in ring.topic.split("."):
            branch.evicted, branch.lost = max(branch.evicted, ring.evicted), max(branch.lost, ring.lost)
            parent, branch = branch, branch.children[token]
        parent.evicted_next = max(parent.evicted_next, ring.evicted)
        parent.lost_next = max(parent.lost_next, ring.lost)
        for wildcard, (evicted, lost) in self._known.items():
            if matcher(frozenset([wildcard]))(ring.topic):
                self._known[wildcard] = max(evicted, ring.evicted), max(lost, ring.lost)

    def gone(self, wildcard: str) -> tuple[int, int]:
        """Return the latest ``evicted`` and the latest ``lost`` of all rings that match."""
        tokens = wildcard.split(".")
        if ONE not in tokens[:-1]:
            return self._root.gone(tokens, 0, (0, 0))
        known = self._known.get(wildcard)
        if known is None:
            if len(self._known) >= KNOWN:
                del self._known[next(iter(self._known))]
            known = self._known[wildcard] = self._root.gone(tokens, 0, (0, 0))
        return known

    def remove(self, topic: str) -> None:
        """Forget a topic's ring, and the branches that lead to no other."""
        self._root.remove(topic.split("."))

    def active(self, wildcard: str, offset: int) -> Iterator[TopicHistory]:
        """Walk over the rings that match and changed after the position."""
        return (ring for ring in self._root.active(wildcard.split("."), 0, offset) if ring is not None)

    def few(self, wildcard: str, offset: int, most: int) -> list[TopicHistory] | None:
        """Return the rings that match and changed after the position, or ``None`` if that takes too many steps."""
        steps = list(islice(self._root.active(wildcard.split("."), 0, offset), most + 1))
        return None if len(steps) > most else [ring for ring in steps if ring is not None]


class _Branch:
    __slots__ = ("children", "evicted", "evicted_next", "last", "lost", "lost_next", "ring")

    def __init__(self) -> None:
        self.children: dict[str, _Branch] = {}
        self.last = 0  # the latest change from here on
        self.ring: TopicHistory | None = None
        self.evicted = self.lost = 0  # the latest of the rings below here
        self.evicted_next = self.lost_next = 0  # and of those that are one token below

    def remove(self, tokens: list[str]) -> None:
        if not tokens:
            self.ring = None
            return
        child = self.children[tokens[0]]
        child.remove(tokens[1:])
        if not child.children and child.ring is None:
            del self.children[tokens[0]]

    def gone(self, tokens: list[str], depth: int, known: tuple[int, int]) -> tuple[int, int]:
        """Return the latest of what is known and of the rings below here that match."""
        token, rest = tokens[depth], len(tokens) - depth
        evicted, lost = known
        if rest == 1 and token in (ONE, REST):
            of_one = token == ONE
            return (
                max(evicted, self.evicted_next if of_one else self.evicted),
                max(lost, self.lost_next if of_one else self.lost),
            )
        child = self.children.get(token)
        for each in reversed(self.children.values()) if token == ONE else () if child is None else (child,):
            if rest == 1:
                ring = each.ring
                return known if ring is None else (max(evicted, ring.evicted), max(lost, ring.lost))
            if each.evicted > known[0] or each.lost > known[1]:
                known = each.gone(tokens, depth + 1, known)
        return known

    def active(self, tokens: list[str], depth: int, offset: int) -> Iterator[TopicHistory | None]:
        """Walk over the rings that match and changed after the position, with ``None`` for a step that found none."""
        if self.last <= offset:
            return
        if depth == len(tokens):
            yield self.ring if self.ring is not None and self.ring.last > offset else None
            return
        token = tokens[depth]
        if token not in (ONE, REST):
            child = self.children.get(token)
            yield None
            if child is not None:
                yield from child.active(tokens, depth + 1, offset)
            return
        yield None
        for child in reversed(self.children.values()):
            if child.last <= offset:
                return
            yield from child.all(offset) if token == REST else child.active(tokens, depth + 1, offset)

    def all(self, offset: int) -> Iterator[TopicHistory | None]:
        """Walk over all rings from here on that changed after the position, with ``None`` for a step without one."""
        yield self.ring if self.ring is not None and self.ring.last > offset else None
        for child in reversed(self.children.values()):
            if child.last <= offset:
                return
            yield from child.all(offset)
