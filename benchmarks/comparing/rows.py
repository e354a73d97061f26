"""The figures of one round as a program prints them with ``--json``: a line that ``compare.py`` reads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Literal, NamedTuple

Better = Literal["lower", "higher"]


class Row(NamedTuple):
    """One figure of ours."""

    title: str
    value: float
    unit: str
    better: Better = "lower"


def print_rows(rows: Iterable[Row]) -> None:
    """Print them on one line."""
    print(json.dumps(list(rows)), flush=True)


def read_rows(line: str) -> list[Row]:
    """Return the rows of such a line."""
    return [Row(*row) for row in json.loads(line)]
