"""What a stream asked for and the log no longer has."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ..sse.event import Event

__all__ = ["Gap", "GapReason"]

SHOWN = 128  # characters of a client's own id that are told back to it; ours have fewer


class GapReason(StrEnum):
    """Why the log cannot say what came after a position."""

    EVICTED = "evicted"
    """Some of it is no longer kept, or was written by a later release than this process can read."""
    FOREIGN = "foreign"
    """The id is of another life of the Hub, or of another Hub."""
    UNKNOWN = "unknown"
    """It is no id of a Hub at all."""
    FUTURE = "future"
    """The Hub has not come that far."""
    REWOUND = "rewound"
    """Its broker has lost some of what it had taken."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Of the records after an id some are missing."""

    reason: GapReason
    after: str
    """The last id that the stream had, or said that it had."""
    first: str | None = None
    """The id of the first of those that are not; ``None`` if there is none yet."""
    last: str | None = None
    """The id up to which others may be missing, if one topic has what another one of that time has not."""

    def event(self, name: str) -> Event:
        """Return what tells a page of it."""
        after = self.after[:SHOWN].encode(errors="replace").decode()
        told = {"reason": self.reason.value, "after": after, "first": self.first}
        if self.last is not None:
            told["last"] = self.last
        return Event.json(told, name=name)
