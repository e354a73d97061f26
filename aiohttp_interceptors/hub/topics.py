"""The names of topics, the wildcards that stand for some of them, and who asked for what."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Generic, TypeVar

__all__ = ["Patterns", "check_pattern", "check_topic", "is_wildcard", "matcher"]


MAX_TOPIC = 255  # characters; a name is a key, not content
# Printable, without blanks: a topic is written in logs and in the subjects of brokers.
_NAME = re.compile(rf"[^\s\x00-\x1f\x7f-\x9f\ud800-\udfff]{{1,{MAX_TOPIC}}}")
ONE, REST = "*", ">"

Value = TypeVar("Value")


def check_topic(topic: object) -> str:
    """Return the name of a topic that something is published under.

    Raises ``TypeError`` or ``ValueError`` for what is none: tokens separated by dots, none of them empty or a wildcard.
    """
    name = check_pattern(topic)
    if is_wildcard(name):
        raise ValueError(f"events are published under a topic, and {name!r} is a wildcard for many")
    return name


def check_pattern(pattern: object) -> str:
    """Return the name of a topic, or a wildcard: ``*`` is any one token, ``>`` at the end one or more.

    Raises ``TypeError`` or ``ValueError`` for what is neither.
    """
    if not isinstance(pattern, str):
        raise TypeError(f"a topic is a str, not {pattern!r}")
    if not _NAME.fullmatch(pattern):
        raise ValueError(f"a topic is 1 to {MAX_TOPIC} characters without blanks and controls, not {pattern[:300]!r}")
    tokens = pattern.split(".")
    if "" in tokens:
        raise ValueError(f"a topic is tokens separated by single dots, not {pattern!r}")
    if REST in tokens[:-1]:
        raise ValueError(f"the wildcard > stands for the rest of a topic, so it comes last, not as in {pattern!r}")
    return pattern


def is_wildcard(pattern: str) -> bool:
    """Tell whether a checked name stands for many topics: with ``*`` or ``>`` as a token, not as a part of one."""
    return (ONE in pattern or REST in pattern) and not {ONE, REST}.isdisjoint(pattern.split("."))


@lru_cache(256)
def matcher(names: frozenset[str]) -> Callable[[str], object]:
    """Return a function that tells whether a topic is one of these names, or matches one of these wildcards."""
    if REST in names:
        return lambda _: True
    wildcards = [name for name in names if is_wildcard(name)]
    if not wildcards:
        return names.__contains__
    parts = {ONE: r"[^.]+", REST: r".+"}
    matches = re.compile(
        "|".join(r"\.".join(parts.get(token) or re.escape(token) for token in name.split(".")) for name in wildcards)
    ).fullmatch
    return matches if len(wildcards) == len(names) else lambda topic: topic in names or matches(topic)


class Patterns(Generic[Value]):
    """Values under names and wildcards, found by the topic that matches. Costs a topic's tokens, not the names."""

    def __init__(self) -> None:
        self._exact: dict[str, dict[Value, None]] = {}
        self._root: _Node[Value] = _Node()
        self._wildcards = 0

    def add(self, pattern: str, value: Value) -> None:
        """Put a value under a name or wildcard."""
        if is_wildcard(pattern):
            values = self._root.at(pattern.split(".")).values
            self._wildcards += value not in values
            values[value] = None
        else:
            self._exact.setdefault(pattern, {})[value] = None

    def discard(self, pattern: str, value: Value) -> None:
        """Take a value away again; names that nothing is under any more are forgotten."""
        if is_wildcard(pattern):
            self._wildcards -= self._root.remove(pattern.split("."), value)
        elif pattern in self._exact:
            values = self._exact[pattern]
            values.pop(value, None)
            if not values:
                del self._exact[pattern]

    def matching(self, topic: str) -> tuple[Value, ...]:
        """Return the values whose name or wildcard matches, each once."""
        exact = self._exact.get(topic)
        if not self._wildcards:
            return tuple(exact) if exact else ()
        found = dict(exact) if exact else {}
        for node in self._root.matching(topic.split("."), 0):
            found.update(node.values)
        return tuple(found)

    def __len__(self) -> int:
        """Count names and wildcards with their values."""
        return self._wildcards + sum(map(len, self._exact.values()))


class _Node(Generic[Value]):
    """A place in the tree of wildcards, by token."""

    __slots__ = ("children", "values")

    def __init__(self) -> None:
        self.children: dict[str, _Node[Value]] = {}
        self.values: dict[Value, None] = {}

    def at(self, tokens: list[str]) -> _Node[Value]:
        node = self
        for token in tokens:
            node = node.children.setdefault(token, _Node())
        return node

    def remove(self, tokens: list[str], value: Value) -> bool:
        """Remove a value below here, and the branches that hold nothing any more; return whether it was there."""
        if not tokens:
            return self.values.pop(value, self) is None
        child = self.children.get(tokens[0])
        if child is None:
            return False
        removed = child.remove(tokens[1:], value)
        if not child.children and not child.values:
            del self.children[tokens[0]]
        return removed

    def matching(self, tokens: list[str], depth: int) -> Iterator[_Node[Value]]:
        if depth == len(tokens):
            yield self
            return
        if REST in self.children:
            yield self.children[REST]
        for token in (tokens[depth], ONE):
            if token in self.children:
                yield from self.children[token].matching(tokens, depth + 1)
