"""The topics that have a history, by token, and in each branch the one that changed last at the end."""

from __future__ import annotations

from collections.abc import Iterator

from .ring import Ring
from .topic import ONE, REST

__all__ = ["TopicTree"]


class TopicTree:
    """Find the rings under a wildcard that changed after a position, without looking at those that did not."""

    def __init__(self) -> None:
        self._root = _Branch()

    def touch(self, ring: Ring) -> None:
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
        branch.ring = ring

    def remove(self, topic: str) -> None:
        """Forget a topic's ring, and the branches that lead to no other."""
        self._root.remove(topic.split("."))

    def active(self, wildcard: str, position: int) -> Iterator[Ring]:
        """Walk over the rings that match and changed after the position."""
        return self._root.active(wildcard.split("."), 0, position)


class _Branch:
    __slots__ = ("children", "last", "ring")

    def __init__(self) -> None:
        self.children: dict[str, _Branch] = {}
        self.last = 0  # the latest change below here
        self.ring: Ring | None = None

    def remove(self, tokens: list[str]) -> None:
        if not tokens:
            self.ring = None
            return
        child = self.children[tokens[0]]
        child.remove(tokens[1:])
        if not child.children and child.ring is None:
            del self.children[tokens[0]]

    def active(self, tokens: list[str], depth: int, position: int) -> Iterator[Ring]:
        if self.last <= position:
            return
        if depth == len(tokens):
            if self.ring is not None and self.ring.last > position:
                yield self.ring
            return
        token = tokens[depth]
        if token not in (ONE, REST):
            child = self.children.get(token)
            if child is not None:
                yield from child.active(tokens, depth + 1, position)
            return
        for child in reversed(self.children.values()):
            if child.last <= position:
                return
            yield from child.all(position) if token == REST else child.active(tokens, depth + 1, position)

    def all(self, position: int) -> Iterator[Ring]:
        """Walk over all rings from here on that changed after the position."""
        if self.ring is not None and self.ring.last > position:
            yield self.ring
        for child in reversed(self.children.values()):
            if child.last <= position:
                return
            yield from child.all(position)
