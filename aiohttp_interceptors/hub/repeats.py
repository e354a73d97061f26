"""What was published under an idempotency key lately, in the memory of one process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from .broker import IDEMPOTENCY_WINDOW

__all__ = ["Repeats"]

T = TypeVar("T")


class Repeats(Generic[T]):
    """Results by idempotency key, for a window. ``now`` is in seconds of any one clock that does not go back."""

    def __init__(self) -> None:
        self._results: OrderedDict[str, tuple[float, T]] = OrderedDict()

    def find(self, key: str, now: float) -> tuple[T] | None:
        """Return the result of the first call with a key, in a tuple, or ``None`` if there was none."""
        results = self._results
        while results and next(iter(results.values()))[0] + IDEMPOTENCY_WINDOW < now:
            results.popitem(last=False)
        found = results.get(key)
        return None if found is None else (found[1],)

    def note(self, key: str, result: T, now: float) -> None:
        """Note the result of the first call with a key."""
        self._results[key] = now, result

    def forget(self, is_void: Callable[[T], bool]) -> None:
        """Forget the keys whose results are void: to try again is a first call."""
        for key in [key for key, (_, result) in self._results.items() if is_void(result)]:
            del self._results[key]
