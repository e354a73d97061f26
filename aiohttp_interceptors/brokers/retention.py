"""What a log keeps."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Retention"]


class Retention(NamedTuple):
    """What is kept, whichever is reached first."""

    max_records: int
    max_age: float | None
    """In seconds; ``None`` is no limit."""
