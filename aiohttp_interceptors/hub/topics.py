"""Topic names and wildcards, in the syntax of NATS subjects.

A topic is one or more tokens separated by dots. A pattern is a topic or a wildcard, in which ``*`` matches any one
token and a final ``>`` matches one or more. ``PatternIndex`` finds the patterns that match a topic.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Generic, TypeVar

__all__ = ["PatternIndex", "check_pattern", "check_topic", "compile_patterns", "is_wildcard"]


MAX_TOPIC = 255  # characters
ONE, REST = "*", ">"  # the wildcard tokens: any one token, one or more tokens at the end
# Printable characters without whitespace, because topics are written to logs and to the subjects of brokers.
_NAME = re.compile(rf"[^\s\x00-\x1f\x7f-\x9f\ud800-\udfff]{{1,{MAX_TOPIC}}}")

Value = TypeVar("Value")


def check_topic(topic: object) -> str:
    """Return a topic to publish under. Raises ``TypeError`` or ``ValueError`` if it is invalid or a wildcard."""
    name = check_pattern(topic)
    if is_wildcard(name):
        raise ValueError(f"events are published under a topic, and {name!r} is a wildcard")
    return name


def check_pattern(pattern: object) -> str:
    """Return a topic or wildcard to subscribe to. Raises ``TypeError`` or ``ValueError`` if it is neither."""
    if not isinstance(pattern, str):
        raise TypeError(f"a topic is a str, not {pattern!r}")
    _check_name(pattern)
    return pattern


@lru_cache(1024)
def _check_name(pattern: str) -> None:
    """Raise ``ValueError`` if a text is neither a topic nor a wildcard."""
    if not _NAME.fullmatch(pattern):
        raise ValueError(
            f"a topic is 1 to {MAX_TOPIC} characters without whitespace and control characters, not {pattern[:300]!r}"
        )
    tokens = pattern.split(".")
    if "" in tokens:
        raise ValueError(f"a topic is tokens separated by single dots, not {pattern!r}")
    if REST in tokens[:-1]:
        raise ValueError(
            f"the wildcard > matches the rest of a topic and must be the last token, not as in {pattern!r}"
        )


def is_wildcard(pattern: str) -> bool:
    """Return whether a checked pattern has ``*`` or ``>`` as a whole token. As a part of a token they are literal."""
    return (ONE in pattern or REST in pattern) and not {ONE, REST}.isdisjoint(pattern.split("."))


@lru_cache(256)
def compile_patterns(patterns: frozenset[str]) -> Callable[[str], object]:
    """Return a predicate that is true for the topics that match any of the patterns."""
    if REST in patterns:
        return lambda _: True
    wildcards = [pattern for pattern in patterns if is_wildcard(pattern)]
    if not wildcards:
        return patterns.__contains__
    parts = {ONE: r"[^.]+", REST: r".+"}
    matches = re.compile(
        "|".join(r"\.".join(parts.get(token) or re.escape(token) for token in each.split(".")) for each in wildcards)
    ).fullmatch
    return matches if len(wildcards) == len(patterns) else lambda topic: topic in patterns or matches(topic)


class PatternIndex(Generic[Value]):
    """Values by pattern. A lookup costs the number of tokens of the topic, not the number of patterns."""

    def __init__(self) -> None:
        self._exact: dict[str, dict[Value, None]] = {}
        self._wildcards: _Node[Value] = _Node()
        self._wildcard_count = 0

    def add(self, pattern: str, value: Value) -> None:
        """Add a value under a pattern. Idempotent."""
        if is_wildcard(pattern):
            values = self._wildcards.descend(pattern.split(".")).values
            self._wildcard_count += value not in values
            values[value] = None
        else:
            self._exact.setdefault(pattern, {})[value] = None

    def discard(self, pattern: str, value: Value) -> None:
        """Remove a value from a pattern, and the pattern with its last value. Idempotent."""
        if is_wildcard(pattern):
            self._wildcard_count -= self._wildcards.remove(pattern.split("."), value)
        elif pattern in self._exact:
            values = self._exact[pattern]
            values.pop(value, None)
            if not values:
                del self._exact[pattern]

    def matching(self, topic: str) -> tuple[Value, ...]:
        """Return the values whose patterns match the topic, without duplicates."""
        exact = self._exact.get(topic)
        if not self._wildcard_count:
            return tuple(exact) if exact else ()
        found = dict(exact) if exact else {}
        for node in self._wildcards.matching(topic.split("."), 0):
            found.update(node.values)
        return tuple(found)

    def __len__(self) -> int:
        """Return the number of pairs of a pattern and a value."""
        return self._wildcard_count + sum(map(len, self._exact.values()))


class _Node(Generic[Value]):
    """A node of the trie of wildcards, keyed by token."""

    __slots__ = ("children", "values")

    def __init__(self) -> None:
        self.children: dict[str, _Node[Value]] = {}
        self.values: dict[Value, None] = {}

    def descend(self, tokens: list[str]) -> _Node[Value]:
        """Return the node for the tokens, which is created if it does not exist."""
        node = self
        for token in tokens:
            node = node.children.setdefault(token, _Node())
        return node

    def remove(self, tokens: list[str], value: Value) -> bool:
        """Remove a value and the nodes that are empty without it. Return whether the value existed."""
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
        """Iterate over the nodes whose wildcards match the tokens from ``depth`` on."""
        if depth == len(tokens):
            yield self
            return
        if REST in self.children:
            yield self.children[REST]
        for token in (tokens[depth], ONE):
            if token in self.children:
                yield from self.children[token].matching(tokens, depth + 1)
