"""The measured values: one per column, peer and round."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

Values = dict[str, list[float]]
"""The values of a column, by peer: one per round."""


class Figures:
    """All values, and the peers that were skipped."""

    def __init__(self) -> None:
        self._values: dict[str, Values] = {}
        self.skipped: dict[str, str] = {}
        """The reason, by peer or by peer and case."""
        self.max_load: float = 0.0
        """Maximum CPU utilisation of the load at a fixed rate. Near 1 it increases the latencies."""

    def add(self, column: str, peer: str, value: float) -> None:
        """Add the value of a round."""
        self._values.setdefault(column, {}).setdefault(peer, []).append(value)

    def rounds(self, column: str, peer: str) -> list[float]:
        """Return the values of all rounds."""
        return self._values.get(column, {}).get(peer, [])

    def columns(self) -> list[str]:
        """Return the names of the columns that were measured."""
        return list(self._values)

    def median(self, column: str, peer: str) -> float | None:
        """Return the median of the rounds, or None without values."""
        values = self.rounds(column, peer)
        return median(values) if values else None

    def map_rounds(self, function: Callable[..., float], *columns: tuple[str, str]) -> list[float]:
        """Apply a function to the values of columns and peers, round by round. Empty if one of them has no values."""
        return [function(*values) for values in zip(*(self.rounds(*column) for column in columns), strict=False)]
