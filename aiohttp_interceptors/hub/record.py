"""An event that has its place in the Hub's order."""

from __future__ import annotations

from ..sse.event import Event
from ..sse.wire import Decoder

__all__ = ["Record"]


class Record:
    """An event, its topic, and its place in the Hub's one order. Nobody changes one."""

    __slots__ = ("_event", "frame", "id", "key", "position", "time", "topic")

    def __init__(
        self,
        position: int,
        id: str | None,  # noqa: A002  # the field's name in the standard
        topic: str,
        event: Event | None,
        frame: bytes,
        key: str | None,
        time: float,
    ) -> None:
        self.position: int = position
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
