"""One frozen dataclass per fact: something that happened, told to observers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

__all__ = [
    "EventsDropped",
    "HubDown",
    "HubFact",
    "HubObserver",
    "HubResumed",
    "HubUp",
    "Observer",
    "StageRan",
    "StreamClosed",
    "StreamFact",
    "StreamObserver",
    "StreamOpened",
    "StreamRefused",
]


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


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The head of an event stream is on the wire."""

    execution_id: int | str
    path: str


@dataclass(frozen=True, slots=True)
class StreamClosed:
    """An event stream is over, and its producer has been seen off."""

    execution_id: int | str
    path: str
    reason: str
    """A ``CloseReason``."""
    events: int
    bytes: int
    """Of the events sent, without heartbeats and the chunk sizes of HTTP."""
    dropped: int
    """Events that a queue which loses events has lost."""
    seconds: float
    """From the head on the wire to the end."""


@dataclass(frozen=True, slots=True)
class StreamRefused:
    """A request got no stream, because there are too many or the server stops."""

    execution_id: int | str
    path: str
    status: int
    why: str
    limit: str = ""
    """Which limit was reached, with the prefix of a sub-application that has it: ``"max_streams of /api"``."""


@dataclass(frozen=True, slots=True)
class EventsDropped:
    """A queue that loses events has lost some since the last such fact of its stream."""

    execution_id: int | str
    path: str
    count: int
    total: int
    """Since the stream was opened."""


StreamFact: TypeAlias = StreamOpened | StreamClosed | StreamRefused | EventsDropped
StreamObserver: TypeAlias = Callable[[StreamFact], object]


@dataclass(frozen=True, slots=True)
class HubUp:
    """A Hub has read its broker's history, and hears of what is new."""

    records: int
    """That were read."""


@dataclass(frozen=True, slots=True)
class HubDown:
    """A Hub has lost its broker, or never had it: nothing new comes, and publishing fails."""

    since: float
    """When, in seconds of Unix time."""
    error: str


@dataclass(frozen=True, slots=True)
class HubResumed:
    """A Hub has its broker back, and all that was published meanwhile, but for what is told as a gap."""

    missed: int
    """Records that came late."""
    seconds: float
    """That it was down."""


HubFact: TypeAlias = HubUp | HubDown | HubResumed
HubObserver: TypeAlias = Callable[[HubFact], object]
