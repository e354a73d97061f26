"""What was measured: of each column, for each peer, a value per round."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

Values = dict[str, list[float]]
"""The values of a column, by peer: one per round."""


class Figures:
    """All values, and those peers that have none, with the reason."""

    def __init__(self) -> None:
        self._values: dict[str, Values] = {}
        self.without: dict[str, str] = {}
        self.busiest: float = (
            0.0  # share of the time that the load was at work at a fixed rate; near 1 it adds to latencies
        )

    def add(self, column: str, peer: str, value: float) -> None:
        """Note the value of a round."""
        self._values.setdefault(column, {}).setdefault(peer, []).append(value)

    def rounds(self, column: str, peer: str) -> list[float]:
        """Return the values of all rounds; none if it was not measured."""
        return self._values.get(column, {}).get(peer, [])

    def columns(self) -> list[str]:
        """Name the columns that were measured, in their order."""
        return list(self._values)

    def median(self, column: str, peer: str) -> float | None:
        """Return the median of the rounds."""
        values = self.rounds(column, peer)
        return median(values) if values else None

    def each(self, of: Callable[..., float], *which: tuple[str, str]) -> list[float]:
        """Apply a function to some columns of peers, round by round; empty if one of them was not measured."""
        return [of(*values) for values in zip(*(self.rounds(*one) for one in which), strict=False)]
