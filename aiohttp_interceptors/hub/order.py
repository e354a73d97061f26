"""All records that are kept, whatever their topic, in their one order."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from operator import attrgetter

from .record import Record

__all__ = ["Order"]

CHUNK = 512  # records: to remove one moves those behind it in its chunk, and no others
_position = attrgetter("position")


class Order:
    """Records by position: appended at the end, removed anywhere, and read from any position on."""

    __slots__ = ("_chunks", "_lasts")

    def __init__(self) -> None:
        self._chunks: list[list[Record]] = []  # none of them empty
        self._lasts: list[int] = []  # a position for each chunk: not less than its own, less than the next chunk's

    def append(self, record: Record) -> None:
        """Add a record, whose position is greater than all here."""
        if not self._chunks or len(self._chunks[-1]) >= CHUNK:
            self._chunks.append([])
            self._lasts.append(0)
        self._chunks[-1].append(record)
        self._lasts[-1] = record.position

    def remove(self, record: Record) -> None:
        """Remove a record, which must be here."""
        position = record.position
        number = 0 if position <= self._lasts[0] else bisect_left(self._lasts, position)
        chunk = self._chunks[number]
        place = position - chunk[0].position  # if no position between was skipped or removed
        if place >= len(chunk) or chunk[place] is not record:
            place = bisect_left(chunk, position, key=_position)
        del chunk[place]
        if len(chunk) < CHUNK // 4:
            self._shrink(number)

    def _shrink(self, number: int) -> None:
        """Join a chunk of which little is left with the next one, so that few records are in few chunks."""
        chunk = self._chunks[number]
        if not chunk:
            del self._chunks[number], self._lasts[number]
        elif number + 1 < len(self._chunks) and len(chunk) + len(self._chunks[number + 1]) <= CHUNK:
            chunk += self._chunks.pop(number + 1)
            del self._lasts[number]

    def after(self, position: int) -> Iterator[Record]:
        """Walk over the records after a position. Nothing may be added or removed meanwhile."""
        number = bisect_right(self._lasts, position)
        if number == len(self._chunks):
            return
        chunk = self._chunks[number]
        yield from chunk[bisect_right(chunk, position, key=_position) :]
        for later in range(number + 1, len(self._chunks)):
            yield from self._chunks[later]
