"""What all streams of one kind have in common for the Hub."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from ..sse.event import Event

__all__ = ["OnGap", "Policy"]

OnGap: TypeAlias = Literal["signal", "close", "conflate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How streams begin, and what they do about a gap. Raises ``TypeError`` or ``ValueError`` for what cannot work."""

    on_gap: OnGap = "signal"
    """What happens to one that was paused for so long that the log has not all of what it missed."""
    gap_event: str = "gap"
    """The name of the event that tells of a gap."""
    replay: int = 0
    """The latest records that one without a position begins with."""
    prime: bool = True
    """Whether there is a first frame with an id, although nothing was published."""
    retry: int | None = None
    """The reconnection time in the first frame, in milliseconds."""
    prefix: bytes = field(init=False)
    """The lines that go into the first frame."""

    def __post_init__(self) -> None:
        if self.on_gap not in get_args(OnGap):
            raise ValueError(f"on_gap is one of {', '.join(get_args(OnGap))}, not {self.on_gap!r}")
        if Event("", self.gap_event).name is None:
            raise ValueError(f"gap_event is the name of an event, not {self.gap_event!r}")
        if type(self.replay) is not int or self.replay < 0:
            raise (ValueError if type(self.replay) is int else TypeError)(
                f"replay is a number of records, 0 or more, not {self.replay!r}"
            )
        Event("", retry=self.retry)
        object.__setattr__(self, "prefix", b"" if self.retry is None else b"retry: %d\n" % self.retry)
