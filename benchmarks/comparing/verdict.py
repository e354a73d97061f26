"""Whether a row got worse between two revisions."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from .rows import Better

TOLERANCE = 0.03
"""The share by which a median may be off before it counts."""


class Verdict(NamedTuple):
    """What a row's rounds say."""

    older: float
    """The older one's median."""
    newer: float
    least: float
    """The least value of the older one's rounds, and the greatest: its spread."""
    most: float
    change: float
    """How much the newer one's median is off, as a share of the older one's; infinite from zero to something."""
    word: str
    """``worse``, ``better`` or ``same``."""


def judge(older: Sequence[float], newer: Sequence[float], better: Better) -> Verdict:
    """Compare the rounds of a row: it changed if its median is over 3 % off and outside the older one's spread."""
    before, after = median(older), median(newer)
    least, most = min(older), max(older)
    difference = after - before
    change = difference / abs(before) if before else (0.0 if not difference else float("inf") * difference)
    word = "same"
    if abs(change) > TOLERANCE and not least <= after <= most:
        word = "worse" if (difference > 0) == (better == "lower") else "better"
    return Verdict(before, after, least, most, change, word)
