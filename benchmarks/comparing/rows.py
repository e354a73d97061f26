"""The figures of one round, which a program prints with ``--json`` for ``compare.py``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Literal, NamedTuple

Better = Literal["lower", "higher"]


class Row(NamedTuple):
    """One figure of this library."""

    title: str
    value: float
    unit: str
    better: Better = "lower"


def print_rows(rows: Iterable[Row]) -> None:
    """Print rows on one line."""
    print(json.dumps(list(rows)), flush=True)


def read_rows(line: str) -> list[Row]:
    """Parse a line of ``print_rows``."""
    return [Row(*row) for row in json.loads(line)]
