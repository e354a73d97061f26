"""Facts: frozen dataclasses that describe what has happened. Observers are called with them, and logs are made of them.

``context.add_observer`` takes an ``Observer`` of stages, ``setup(app, observer=...)`` a ``StreamObserver`` or several,
and ``Hub(observer=...)`` a ``HubObserver`` or several. Later releases may add facts, so an observer ignores those that
it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

__all__ = [
    "EventsDropped",
    "HubDown",
    "HubFact",
    "HubFlushed",
    "HubGap",
    "HubObserver",
    "HubPublished",
    "HubResumed",
    "HubUp",
    "Observer",
    "StageRan",
    "StreamClosed",
    "StreamFact",
    "StreamFirstEvent",
    "StreamObserver",
    "StreamOpened",
    "StreamRefused",
]


@dataclass(frozen=True, slots=True)
class StageRan:
    """A stage of an interceptor has returned.

    Attributes:
        execution_id: The ``execution_id`` of the context.
        interceptor: Name of the interceptor.
        stage: ``"enter"``, ``"leave"`` or ``"error"``.
        duration: Seconds that the stage took; for the stage that added the observer, seconds since then.
        before: The context's values when the stage began. Dictionaries in it are copies, other values are shared.
        after: The values when the stage had returned, copied in the same way.
    """

    execution_id: int | str
    interceptor: str
    stage: str
    duration: float
    before: Mapping[object, object]
    after: Mapping[object, object]


Observer: TypeAlias = Callable[[StageRan], object]


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The response headers of an event stream have been sent.

    Attributes:
        execution_id: The ``execution_id`` of the request's context.
        path: Path of the request.
        route: Path of the route with its parameters, as in ``"/rooms/{room}"``; ``""`` if there is none.
    """

    execution_id: int | str
    path: str
    route: str = ""


@dataclass(frozen=True, slots=True)
class StreamFirstEvent:
    """An event stream has written its first event. It is not logged.

    Attributes:
        execution_id: The ``execution_id`` of the request's context.
        path: Path of the request.
        route: Path of the route with its parameters; ``""`` if there is none.
        seconds: Seconds from the response headers to the first event. For a generator, which runs before the headers
            are sent, seconds since it started.
    """

    execution_id: int | str
    path: str
    route: str
    seconds: float


@dataclass(frozen=True, slots=True)
class StreamClosed:
    """An event stream has ended, and its producer too.

    Attributes:
        execution_id: The ``execution_id`` of the request's context.
        path: Path of the request.
        reason: A ``CloseReason``.
        events: Number of events sent, without heartbeats.
        bytes: Bytes of the events sent, before compression, and without heartbeats and HTTP chunk framing.
        dropped: Number of events that a lossy queue has dropped.
        seconds: Seconds from the response headers to the end.
        route: Path of the route with its parameters; ``""`` if there is none.
        bytes_sent: Bytes of the body sent: compressed, with heartbeats and HTTP chunk framing.
        exception: What the producer raised, or ``None``. It is not in the line that is logged of this fact.
    """

    execution_id: int | str
    path: str
    reason: str
    events: int
    bytes: int
    dropped: int
    seconds: float
    route: str = ""
    bytes_sent: int = 0
    exception: BaseException | None = None


@dataclass(frozen=True, slots=True)
class StreamRefused:
    """A request for an event stream was refused: a limit, a server that is stopping, or an invalid topic or owner.

    Attributes:
        execution_id: The ``execution_id`` of the request's context.
        path: Path of the request.
        status: HTTP status of the response.
        why: The reason. That of an invalid topic, owner or identity has the value, which the response does not have.
        limit: The limit that was reached, with the prefix of the sub-application that sets it, as in
            ``"max_streams of /api"``. Empty if it is no limit.
        route: Path of the route with its parameters; ``""`` if there is none.
    """

    execution_id: int | str
    path: str
    status: int
    why: str
    limit: str = ""
    route: str = ""


@dataclass(frozen=True, slots=True)
class EventsDropped:
    """A lossy queue has dropped events since the last such fact of its stream.

    Attributes:
        execution_id: The ``execution_id`` of the request's context.
        path: Path of the request.
        count: Number of events dropped since the last fact.
        total: Number of events dropped since the stream was opened.
        route: Path of the route with its parameters; ``""`` if there is none.
    """

    execution_id: int | str
    path: str
    count: int
    total: int
    route: str = ""


StreamFact: TypeAlias = StreamOpened | StreamFirstEvent | StreamClosed | StreamRefused | EventsDropped
StreamObserver: TypeAlias = Callable[[StreamFact], object]


@dataclass(frozen=True, slots=True)
class HubUp:
    """A Hub has read its broker's history, and receives new records.

    Attributes:
        records: Number of records read.
    """

    records: int


@dataclass(frozen=True, slots=True)
class HubDown:
    """A Hub has no connection to its broker: no new records arrive, and publishing fails.

    Attributes:
        since: Unix time, in seconds, at which the connection was lost or could not be opened.
        error: The error, as text.
    """

    since: float
    error: str


@dataclass(frozen=True, slots=True)
class HubResumed:
    """A Hub is connected to its broker again, and has read what was published meanwhile, except for reported gaps.

    Attributes:
        missed: Number of records that arrived late.
        seconds: Seconds without a connection.
    """

    missed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class HubFlushed:
    """A Hub has written what was published since the last flush, and let streams catch up. It is not logged.

    Attributes:
        seconds: Seconds that the flush took, in which the event loop did nothing else.
        records: Number of records that were published since the last flush and match a stream.
        streams: Number of streams that were written to: those that are caught up and match a record, and those that
            read the history.
    """

    seconds: float
    records: int
    streams: int


@dataclass(frozen=True, slots=True)
class HubPublished:
    """A Hub with a broker has published an event, or has failed to. It is not logged.

    Without a broker, publishing is an append in memory, and not reported.

    Attributes:
        seconds: Seconds until the broker answered.
        outcome: ``"stored"``, ``"down"`` (``BrokerDown``), ``"unknown"`` (``OutcomeUnknown``), ``"refused"``
            (``BrokerRefused``), ``"cancelled"``, or ``"failed"`` for another exception.
    """

    seconds: float
    outcome: str


@dataclass(frozen=True, slots=True)
class HubGap:
    """A stream was written a gap event, because records are missing for its client. It is not logged.

    Attributes:
        reason: A ``GapReason``.
    """

    reason: str


HubFact: TypeAlias = HubUp | HubDown | HubResumed | HubFlushed | HubPublished | HubGap
HubObserver: TypeAlias = Callable[[HubFact], object]
