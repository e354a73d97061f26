"""All records that are kept, whatever their topic, in their one order."""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from operator import attrgetter

from .record import Record

__all__ = ["Order"]

CHUNK = 256  # records: to remove one moves those behind it in its chunk, and no others
FEW = CHUNK // 4
_position = attrgetter("position")


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
            self._lasts[-1] = record.position
            self._chunks.append([])
            self._lasts.append(sys.maxsize)

    def remove(self, record: Record) -> None:
        """Remove a record, which must be here."""
        chunk, number = self._chunks[0], 0
        if chunk and chunk[0] is record:  # often the oldest of all
            del chunk[0]
        else:
            number = bisect_left(self._lasts, record.position)
            chunk = self._chunks[number]
            del chunk[bisect_left(chunk, record.position, key=_position)]
        if len(chunk) in (0, FEW) and number + 1 < len(self._chunks):
            self._shrink(number)

    def _shrink(self, number: int) -> None:
        """Join a chunk of which little is left with the next one, so that few records are in few chunks."""
        chunk, later = self._chunks[number], self._chunks[number + 1]
        if not chunk or len(chunk) + len(later) < CHUNK:
            self._chunks[number : number + 2] = [chunk + later]
            del self._lasts[number]

    def after(self, position: int) -> Iterator[Record]:
        """Walk over the records after a position. Nothing may be added or removed meanwhile."""
        number = bisect_right(self._lasts, position)
        chunk = self._chunks[number]
        yield from chunk[bisect_right(chunk, position, key=_position) :]
        for later in range(number + 1, len(self._chunks)):
            yield from self._chunks[later]
