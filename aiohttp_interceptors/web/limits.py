"""How many streams there may be, in all and of one client."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import TypeAlias

from aiohttp import web

from .._checks import synchronous
from .refusal import too_many

__all__ = ["Key", "Limits"]

Key: TypeAlias = Callable[[web.Request], Hashable]


class Limits:
    """Count open streams, and refuse one too many.

    A place is taken before the head is sent and given back when the stream is over, whatever ended it; nothing is
    awaited between looking and counting, so that the count is exact.
    """

    __slots__ = ("_all", "_each", "_key", "_of_each", "_total")

    def __init__(self, max_streams: int | None, max_streams_per_key: int | None, key: Key | None) -> None:
        _check_count("max_streams", max_streams)
        _check_count("max_streams_per_key", max_streams_per_key)
        if (key is None) != (max_streams_per_key is None):
            raise TypeError("max_streams_per_key and key come together: a number, and whose streams are counted")
        if key is not None and not callable(key):
            raise TypeError(f"key is a function of the request, not {key!r}")
        self._all = max_streams
        self._each = max_streams_per_key
        self._key = key
        self._total = 0
        self._of_each: Counter[Hashable] = Counter()

    @property
    def taken(self) -> int:
        """How many places are taken."""
        return self._total

    def take(self, request: web.Request) -> Hashable:
        """Take a place and return whose it is. Raises ``HTTPServiceUnavailable`` or ``HTTPTooManyRequests``."""
        if self._all is not None and self._total >= self._all:
            raise too_many(of_one=False)
        whose = None
        if self._key is not None and self._each is not None:
            whose = synchronous(self._key(request), "key")
            if self._of_each[whose] >= self._each:
                raise too_many(of_one=True)
            self._of_each[whose] += 1
        self._total += 1
        return whose

    def give_back(self, whose: Hashable) -> None:
        """Give a place back, once for each that was taken."""
        self._total -= 1
        if self._key is not None:
            self._of_each[whose] -= 1
            if not self._of_each[whose]:
                del self._of_each[whose]


def _check_count(name: str, value: int | None) -> None:
    if value is None:
        return
    if type(value) is not int:
        raise TypeError(f"{name} is a number of streams or None, not {value!r}")
    if value < 0:
        raise ValueError(f"{name} is 0 streams or more, not {value!r}; None means no limit")
