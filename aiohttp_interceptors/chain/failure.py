"""What was raised in a chain, and where."""

from __future__ import annotations

from dataclasses import dataclass

from .interceptor import Stage

__all__ = ["Failure"]


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception that nobody has handled yet, and where it was raised."""

    interceptor: str
    stage: Stage
    exception: Exception
    execution_id: int | str

    def __str__(self) -> str:
        text = str(self.exception)
        return f"{type(self.exception).__name__} in interceptor {self.interceptor!r}, stage {self.stage}" + (
            f": {text}" if text else ""
        )
