"""When the leader of a stream of JetStream was asked last, and whether all that it had has come. Awaits nothing."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Confirmation"]

LOOK = 1.0  # seconds between two looks at the stream, whose leader alone knows what it has
WITHIN = 2.0  # seconds, at most, between a look and what it confirms: an older one says nothing of now
SILENCES = 2  # heartbeats after which what a look told of, and has not come, was deleted


class _Answer(NamedTuple):
    last: int  # the position of the last message that there ever was
    silences: int  # how often the consumer had said by then that there is nothing more
    asked: float


class Confirmation:
    """What one tail knows of the stream. Times are of one clock, in seconds."""

    def __init__(self, position: int, now: float) -> None:
        self._known = position  # up to where all has come that is still there
        self._answer: _Answer | None = None  # of the last look, until all has come that it told of
        self._next = now + LOOK

    def due(self, now: float) -> bool:
        """Tell whether it is time to look at the stream."""
        return self._answer is None and now > self._next

    def answered(self, last: int, silences: int, asked: float, now: float) -> None:
        """Note what a look has found."""
        self._answer, self._next = _Answer(last, silences, asked), now + LOOK

    def complete(self, position: int, silences: int, now: float) -> bool:
        """Tell once for each look whether all has come that it told of, and lately; it came up to a position."""
        answer = self._answer
        self._known = max(self._known, position)
        if answer is None:
            return False
        if silences >= answer.silences + SILENCES:
            self._known = max(self._known, answer.last)
        if self._known < answer.last:
            return False
        self._answer = None
        return now <= answer.asked + WITHIN
