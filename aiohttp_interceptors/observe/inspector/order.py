"""The first entries of an order, found without sorting all of them."""

from __future__ import annotations

import heapq
from operator import itemgetter
from typing import Generic, TypeAlias, TypeVar

__all__ = ["FirstEntries"]


T = TypeVar("T")
_Key: TypeAlias = tuple[float | str, float | str]
_order = itemgetter(0, 1)


class FirstEntries(Generic[T]):
    """Keeps the entries with the smallest or the greatest keys.

    What comes after all that are kept is dropped at once, so that few of very many entries are ever sorted.

    Args:
        limit: Number of entries to keep.
        descending: Whether the greatest keys come first.
    """

    __slots__ = ("_descending", "_entries", "_last", "_limit", "_number")

    def __init__(self, limit: int, *, descending: bool) -> None:
        self._limit = limit
        self._descending = descending
        self._entries: list[tuple[_Key, int, T]] = []
        self._last: _Key | None = None  # of as many entries as are kept, the last key
        self._number = 0

    def add(self, key: _Key, entry: T) -> None:
        """Add an entry.

        Args:
            key: What it is sorted by, and what decides between equal ones. Numbers and strings must not be mixed.
            entry: The entry.
        """
        last = self._last
        if last is not None and (key <= last if self._descending else key >= last):
            return
        self._number += 1  # so that two entries are never compared
        self._entries.append((key, self._number, entry))
        if len(self._entries) == 2 * self._limit:
            self._entries = self._first()
            self._last = self._entries[-1][0]

    def entries(self) -> list[T]:
        """Return the entries in order."""
        return [entry for _, _, entry in self._first()]

    def _first(self) -> list[tuple[_Key, int, T]]:
        choose = heapq.nlargest if self._descending else heapq.nsmallest
        return choose(self._limit, self._entries, key=_order)
