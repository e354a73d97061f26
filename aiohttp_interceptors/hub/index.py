"""Two indexes of a history: all records by offset, and the topic histories by token.

``OffsetIndex`` reads the records of all topics in one order. ``TopicIndex`` finds the topics that match a wildcard and
changed after an offset, without visiting the topics that did not change.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import attrgetter

from .record import Record
from .topic_history import TopicHistory
from .topics import ONE, REST, compile_patterns

__all__ = ["OffsetIndex", "TopicIndex"]


CHUNK = 256  # records; removing one moves only the later records of its chunk
SMALL_CHUNK = CHUNK // 4  # records; a chunk that shrinks to this size is merged with the next one if they fit
MAX_CACHED_WILDCARDS = 16  # wildcards with a * before the last token, whose evictions need a search
_offset = attrgetter("offset")


class OffsetIndex:
    """Records ordered by offset, in chunks: appended at the end, removed anywhere, and read from any offset on."""

    __slots__ = ("_chunks", "_last_offsets")

    def __init__(self) -> None:
        self._chunks: list[list[Record]] = [[]]  # only the last chunk may be empty
        # For each chunk an upper bound of its offsets, less than the offsets of the next chunk.
        self._last_offsets: list[int] = [sys.maxsize]

    def append(self, record: Record) -> None:
        """Add a record with the greatest offset."""
        chunk = self._chunks[-1]
        chunk.append(record)
        if len(chunk) >= CHUNK:
            self._last_offsets[-1] = record.offset
            self._chunks.append([])
            self._last_offsets.append(sys.maxsize)

    def remove(self, record: Record) -> None:
        """Remove a record, which must be in the index."""
        chunk, number = self._chunks[0], 0
        if chunk and chunk[0] is record:  # the oldest record, which is the common case
            del chunk[0]
        else:
            number = bisect_left(self._last_offsets, record.offset)
            chunk = self._chunks[number]
            del chunk[bisect_left(chunk, record.offset, key=_offset)]
        if len(chunk) in (0, SMALL_CHUNK) and number + 1 < len(self._chunks):
            self._merge(number)

    def _merge(self, number: int) -> None:
        """Merge a chunk with the next one if it is empty or both fit into one."""
        chunk, following = self._chunks[number], self._chunks[number + 1]
        if not chunk or len(chunk) + len(following) < CHUNK:
            self._chunks[number : number + 2] = [chunk + following]
            del self._last_offsets[number]

    def after(self, offset: int) -> Iterator[Record]:
        """Iterate over the records after an offset. The index must not change during the iteration."""
        number = bisect_right(self._last_offsets, offset)
        chunk = self._chunks[number]
        yield from chunk[bisect_right(chunk, offset, key=_offset) :]
        for following in range(number + 1, len(self._chunks)):
            yield from self._chunks[following]


class TopicIndex:
    """A trie of topic histories by token, whose nodes have the offsets of their latest change and eviction.

    The children of a node are ordered by their latest change, so that a search stops at the first unchanged one. The
    offsets of evictions never decrease, even when a topic is removed.
    """

    def __init__(self) -> None:
        self._root = _Node()
        self._cached: dict[str, tuple[int, int]] = {}  # missing_through of wildcards that need a search

    def update(self, history: TopicHistory) -> None:
        """Move a topic that has a new record to the front. Adds the topic if it is new."""
        node, last_offset = self._root, history.last_offset
        node.last_offset = last_offset
        for token in history.topic.split("."):
            child = node.children.pop(token, None)
            if child is None:
                child = _Node()
            node.children[token] = child  # moves to the end
            child.last_offset = last_offset
            node = child
        if node.history is not history:
            node.history = history
            if history.evicted_through:
                self.index_eviction(history)

    def index_eviction(self, history: TopicHistory) -> None:
        """Record the latest eviction of a topic, which must be in the index."""
        evicted, lost = history.evicted_through, history.unsuperseded_through
        parent = node = self._root
        for token in history.topic.split("."):
            node.evicted_through = max(node.evicted_through, evicted)
            node.unsuperseded_through = max(node.unsuperseded_through, lost)
            parent, node = node, node.children[token]
        parent.child_evicted_through = max(parent.child_evicted_through, evicted)
        parent.child_unsuperseded_through = max(parent.child_unsuperseded_through, lost)
        for wildcard, (known_evicted, known_lost) in self._cached.items():
            if compile_patterns(frozenset([wildcard]))(history.topic):
                self._cached[wildcard] = max(known_evicted, evicted), max(known_lost, lost)

    def missing_through(self, wildcard: str) -> tuple[int, int]:
        """Return the greatest ``evicted_through`` and the greatest ``unsuperseded_through`` of the matching topics."""
        tokens = wildcard.split(".")
        if ONE not in tokens[:-1]:
            return self._root.missing_through(tokens, 0, (0, 0))
        found = self._cached.get(wildcard)
        if found is None:
            if len(self._cached) >= MAX_CACHED_WILDCARDS:
                del self._cached[next(iter(self._cached))]
            found = self._cached[wildcard] = self._root.missing_through(tokens, 0, (0, 0))
        return found

    def remove(self, topic: str) -> None:
        """Remove a topic, and the nodes that lead to no other topic."""
        self._root.remove(topic.split("."))

    def changed_after(self, wildcard: str, offset: int, max_steps: int | None = None) -> list[TopicHistory] | None:
        """Return the matching topics that changed after an offset, or ``None`` if that takes too many steps."""
        steps = self._root.changed_after(wildcard.split("."), 0, offset)
        if max_steps is not None:
            found = list(islice(steps, max_steps + 1))
            if len(found) > max_steps:
                return None
            return [history for history in found if history is not None]
        return [history for history in steps if history is not None]


class _Node:
    """A node of the trie. The offsets cover all topics below it, those of ``child_`` only its direct children."""

    __slots__ = (
        "child_evicted_through",
        "child_unsuperseded_through",
        "children",
        "evicted_through",
        "history",
        "last_offset",
        "unsuperseded_through",
    )

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}  # ordered by last_offset
        self.history: TopicHistory | None = None
        self.last_offset = 0
        self.evicted_through = self.unsuperseded_through = 0
        self.child_evicted_through = self.child_unsuperseded_through = 0

    def remove(self, tokens: list[str]) -> None:
        if not tokens:
            self.history = None
            return
        child = self.children[tokens[0]]
        child.remove(tokens[1:])
        if not child.children and child.history is None:
            del self.children[tokens[0]]

    def missing_through(self, tokens: list[str], depth: int, found: tuple[int, int]) -> tuple[int, int]:
        """Return the greatest offsets of ``found`` and of the matching topics below this node."""
        token, (evicted, lost) = tokens[depth], found
        if depth == len(tokens) - 1:
            if token == ONE:
                return max(evicted, self.child_evicted_through), max(lost, self.child_unsuperseded_through)
            if token == REST:
                return max(evicted, self.evicted_through), max(lost, self.unsuperseded_through)
            child = self.children.get(token)
            if child is None or child.history is None:
                return found
            return max(evicted, child.history.evicted_through), max(lost, child.history.unsuperseded_through)
        if token == ONE:
            children: Iterable[_Node] = reversed(self.children.values())
        else:
            children = [self.children[token]] if token in self.children else ()
        for child in children:
            if child.evicted_through > found[0] or child.unsuperseded_through > found[1]:
                found = child.missing_through(tokens, depth + 1, found)
        return found

    def changed_after(self, tokens: list[str], depth: int, offset: int) -> Iterator[TopicHistory | None]:
        """Iterate over the matching topics that changed after an offset, with ``None`` for each step without one."""
        if self.last_offset <= offset:
            return
        if depth == len(tokens):
            yield self.history if self.history is not None and self.history.last_offset > offset else None
            return
        token = tokens[depth]
        if token not in (ONE, REST):
            child = self.children.get(token)
            yield None
            if child is not None:
                yield from child.changed_after(tokens, depth + 1, offset)
            return
        yield None
        for child in reversed(self.children.values()):
            if child.last_offset <= offset:
                return
            yield from child.all_after(offset) if token == REST else child.changed_after(tokens, depth + 1, offset)

    def all_after(self, offset: int) -> Iterator[TopicHistory | None]:
        """Iterate over all topics from this node on that changed after an offset, as ``changed_after`` does."""
        yield self.history if self.history is not None and self.history.last_offset > offset else None
        for child in reversed(self.children.values()):
            if child.last_offset <= offset:
                return
            yield from child.all_after(offset)
