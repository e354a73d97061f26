"""A chain: interceptors in order, compiled into what the loop walks over."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .interceptor import Interceptor

__all__ = ["Chain"]


class Chain:
    """Some interceptors, and of those their stages: ``enters`` in order, ``leaves`` in reverse. Immutable.

    A route's chain is made once, so that a request pays nothing for stages that are absent.
    """

    __slots__ = ("enters", "leaves", "steps")

    def __init__(self, steps: Iterable[Interceptor[Any]] = ()) -> None:
        self.steps: tuple[Interceptor[Any], ...] = tuple(steps)
        self.enters: tuple[Callable[[Any], Any], ...] = tuple(
            step.enter for step in self.steps if step.enter is not None
        )
        self.leaves: tuple[Callable[[Any], Any], ...] = tuple(
            step.leave for step in reversed(self.steps) if step.leave is not None
        )

    def position_entered(self, entered: int) -> int:
        """Return the position, from 1, of the interceptor whose ``enter`` was called as the nth; 0 for none."""
        return self._position_of(entered, [step.enter is not None for step in self.steps])

    def position_leaving(self, remaining: int) -> int:
        """Return the position, from 1, of the interceptor with so many ``leave`` further out, its own included."""
        return self._position_of(remaining, [step.leave is not None for step in self.steps])

    @staticmethod
    def _position_of(nth: int, has_stage: list[bool]) -> int:
        if nth == 0:
            return 0
        for position, present in enumerate(has_stage, 1):
            nth -= present
            if nth == 0:
                return position
        raise IndexError("there are not so many stages")
