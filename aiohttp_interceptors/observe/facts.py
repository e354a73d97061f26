"""One frozen dataclass per fact: something that happened, told to observers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Observer", "StageRan"]


@dataclass(frozen=True, slots=True)
class StageRan:
    """One stage of one interceptor returned."""

    execution_id: int | str
    interceptor: str
    stage: str
    duration: float
    """Seconds; for the stage that added the observer, since it was added."""
    before: Mapping[object, object]
    """The context's values when the stage began; dictionaries in it are copied, other values shared."""
    after: Mapping[object, object]


Observer: TypeAlias = Callable[[StageRan], object]
