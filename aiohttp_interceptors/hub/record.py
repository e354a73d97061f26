"""A record of the history, and the gap that is reported to a client when records are missing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ..sse import Decoder, Event

__all__ = ["Gap", "GapReason", "PresenceRecord", "Record", "Tombstone"]


MAX_ECHOED_ID = 128  # characters of an invalid ID that a gap event repeats; the IDs of a Hub are shorter


class Record:
    """A published event with its topic, offset and ID. The Hub makes it; treat it as immutable.

    Args:
        offset: The offset in the history, greater than that of every earlier record; 0 for an ephemeral event.
        id: The event ID that clients receive; ``None`` for an ephemeral event.
        topic: The topic under which the event was published.
        event: The event; ``None`` if it is to be decoded from the frame on first use.
        frame: The frame as it is sent to every client, with the ID.
        key: What the event is about.
        time: When the event was published, in seconds of the history's clock.
    """

    __slots__ = ("_event", "frame", "id", "key", "offset", "time", "topic")

    tombstone: bool = False
    """Whether the key has no value after this record, as ``Hub.publish(tombstone=True)`` says."""

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
        """The offset in the history, greater than that of every earlier record; 0 for an ephemeral event."""
        self.id: str | None = id
        """The event ID that clients receive; ``None`` for an ephemeral event."""
        self.topic: str = topic
        """The topic under which the event was published."""
        self._event = event  # None if it came from a broker and was not decoded yet
        self.frame: bytes = frame
        """The frame as it is sent to every client, with the ID."""
        self.key: str | None = key
        """What the event is about: a later record of the same topic and key supersedes this one."""
        self.time: float = time
        """When the event was published, in seconds of the history's clock."""

    @property
    def event(self) -> Event:
        """The event as it was published, without an ID. Decoded from the frame on first use."""
        if self._event is None:
            frame = self.frame if self.id is None else self.frame.partition(b"\n")[2]
            (self._event,) = Decoder().feed(frame)
        return self._event

    def __repr__(self) -> str:
        return f"Record(id={self.id!r}, topic={self.topic!r}, event={self.event!r}, key={self.key!r})"


class Tombstone(Record):
    """A record after which its key has no value any more."""

    __slots__ = ()

    tombstone = True


class PresenceRecord(Record):
    """An event that tells a stream who is present. It is ephemeral, and ``select`` is not asked about it."""

    __slots__ = ()


class GapReason(StrEnum):
    """Why records may be missing after an event ID."""

    EVICTED = "evicted"
    """Some records are no longer kept, or were written by a later release that this process cannot read."""
    FOREIGN = "foreign"
    """The ID is from another Hub, or from an earlier run of a Hub whose history was not kept."""
    UNKNOWN = "unknown"
    """The ID is not in the format of a Hub's IDs, or the client was cut within its first latest records."""
    FUTURE = "future"
    """The ID is ahead of the newest record."""
    TRUNCATED = "truncated"
    """The broker lost records that it had acknowledged."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Records are missing after an event ID."""

    reason: GapReason
    """Why they are missing."""
    after: str
    """The last ID that the stream sent, or that the client sent in ``Last-Event-ID``."""
    first: str | None = None
    """The ID of the first record after the gap; ``None`` if there is none yet."""
    last: str | None = None
    """The ID up to which records of some topics may be missing, if that is after ``first``; ``None`` otherwise."""

    def event(self, name: str) -> Event:
        """Return the event that reports the gap to the client, as JSON.

        Args:
            name: Name of the event.
        """
        after = self.after[:MAX_ECHOED_ID].encode(errors="replace").decode()
        data = {"reason": self.reason.value, "after": after, "first": self.first}
        if self.last is not None:
            data["last"] = self.last
        return Event.json(data, name=name)
