"""Whether a row got worse between two revisions."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from .rows import Better

TOLERANCE = 0.03
"""Relative change of a median that is ignored."""


class RowComparison(NamedTuple):
    """The comparison of one row between two revisions."""

    older: float
    """Median of the older revision."""
    newer: float
    """Median of the newer revision."""
    minimum: float
    """Minimum of the older revision's rounds."""
    maximum: float
    """Maximum of the older revision's rounds."""
    change: float
    """Relative change of the median; infinite if the older one is zero and the newer one is not."""
    word: str
    """``worse``, ``better`` or ``same``."""


def compare(older: Sequence[float], newer: Sequence[float], better: Better) -> RowComparison:
    """Compare the rounds of a row. It changed if its median differs by over 3 % and is outside the older range."""
    before, after = median(older), median(newer)
    minimum, maximum = min(older), max(older)
    difference = after - before
    change = difference / abs(before) if before else (0.0 if not difference else float("inf") * difference)
    word = "same"
    if abs(change) > TOLERANCE and not minimum <= after <= maximum:
        word = "worse" if (difference > 0) == (better == "lower") else "better"
    return RowComparison(before, after, minimum, maximum, change, word)
