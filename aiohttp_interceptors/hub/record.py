"""An event that has its place in the Hub's order."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ..sse import Decoder, Event

__all__ = ["Gap", "GapReason", "Record"]


class Record:
    """An event, its topic, and its place in the Hub's one order. Nobody changes one."""

    __slots__ = ("_event", "frame", "id", "key", "offset", "time", "topic")

    def __init__(
        self,
        offset: int,
        id: str | None,  # noqa: A002  # the field's name in the standard
        topic: str,
        event: Event | None,
        frame: bytes,
        key: str | None,
        time: float,
    ) -> None:
        self.offset: int = offset
        """Greater than that of every record before it; 0 for an ephemeral event, which has no place."""
        self.id: str | None = id
        """The position as a client knows it; ``None`` for an ephemeral event."""
        self.topic: str = topic
        self._event = event  # None for what a broker brought, until somebody asks
        self.frame: bytes = frame
        """What goes over the wire, the same to everybody."""
        self.key: str | None = key
        """What it is about: a later record of its topic with the same key makes up for it."""
        self.time: float = time
        """When it was published, in seconds of the log's clock."""

    @property
    def event(self) -> Event:
        """What was published."""
        if self._event is None:
            frame = self.frame if self.id is None else self.frame.partition(b"\n")[2]
            (self._event,) = Decoder().feed(frame)
        return self._event

    def __repr__(self) -> str:
        return f"Record(id={self.id!r}, topic={self.topic!r}, event={self.event!r}, key={self.key!r})"


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
