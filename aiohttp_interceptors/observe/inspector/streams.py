"""The open streams of an application as rows of a table: filtered, sorted, and no more than a page can show."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, Protocol, TypeAlias

from aiohttp import web

from ...channel import CloseReason
from ...sse import Event
from ...web.app import Drainable, Streams
from ...web.event_stream import ChannelStream
from ...web.lifecycle import StreamLifecycle
from ...web.request import route_of
from ...web.response import EventStreamResponse
from ...web.topic_stream import TopicStream
from ...web.transport import Connection
from .order import FirstEntries
from .pacer import Pacer

__all__ = ["COLUMNS", "MAX_ROWS", "ListedStream", "Query", "Row", "Scope", "Selection", "find_stream"]


MAX_ROWS = 500
"""Number of streams that a page receives: the first ones of its order."""
MAX_TERMS = 8  # words of a filter
MAX_FILTER = 300  # characters of a filter
MAX_PATH = 200  # characters of a path
MAX_NAMES = 5  # topics, and owners, of a row
CHECK_EVERY = 8  # streams between two looks at the clock
BATCH = 1024  # streams that are compared with a key at once

Row: TypeAlias = dict[str, str | int | float | list[str] | None]


class ListedStream(Protocol):
    """An open stream, as an inspector reads it."""

    @property
    def kind(self) -> str:
        """What fills it: ``"topics"``, ``"channel"`` or ``"aiohttp-sse"``."""

    @property
    def request(self) -> web.Request:
        """The request for the stream."""

    @property
    def connection(self) -> Connection:
        """The connection to the client."""

    @property
    def opened_at(self) -> float:
        """When it was opened, in seconds of the event loop's clock."""

    @property
    def owners(self) -> tuple[str, ...]:
        """Whose stream it is."""

    @property
    def topics(self) -> frozenset[str]:
        """The topic names and wildcards."""

    @property
    def offset(self) -> int | None:
        """The offset up to which it has received records; ``None`` without a Hub."""

    @property
    def behind(self) -> int:
        """The number of records, or of events of a channel, that wait for it."""

    @property
    def lacks_evicted(self) -> bool:
        """Whether records were evicted before it received them, which ``behind`` does not count."""

    @property
    def reason(self) -> CloseReason | None:
        """Why it ended; ``None`` while it is open."""

    def kick(self, kick_event: Event | None) -> None:
        """End it as ``kicked``."""


class _ResponseStream:
    """An open stream of aiohttp-sse's interface. The class of the response has no names of its own for these."""

    __slots__ = ("connection", "opened_at", "request", "response")

    kind = "aiohttp-sse"
    owners: tuple[str, ...] = ()
    topics: frozenset[str] = frozenset()
    offset = None
    behind = 0
    lacks_evicted = False

    def __init__(self, response: EventStreamResponse, request: web.Request, connection: Connection) -> None:
        self.response = response
        self.request: web.Request = request
        self.connection: Connection = connection
        self.opened_at: float = response._opened_at

    @property
    def reason(self) -> CloseReason | None:
        return self.connection.close_reason

    def kick(self, kick_event: Event | None) -> None:  # noqa: ARG002  # it may be in the middle of an event
        self.connection.mark_disconnected(CloseReason.KICKED)
        self.connection.abort()


class Scope(NamedTuple):
    """What an inspector looks at."""

    root: web.Application | None
    """The outermost application; ``None`` for all of the process."""
    registries: list[Streams]
    """The registries of its streams."""

    def streams(self) -> Iterator[ListedStream]:
        """Yield the open streams, without those of inspectors. They may end while this is iterated over."""
        for streams in self.registries:
            if streams.separate:
                continue
            of_others = self.root is not None and streams.is_shared
            for stream in streams:
                listed = stream if isinstance(stream, (ChannelStream, TopicStream)) else _listed(stream)
                if listed is not None and not (of_others and _root_of(listed.request) is not self.root):
                    yield listed

    def own(self) -> int:
        """Return the number of open streams of inspectors."""
        return sum(len(streams) for streams in self.registries if streams.separate)


def _listed(stream: Drainable) -> ListedStream | None:
    if isinstance(stream, EventStreamResponse):
        request, connection = stream._req, stream.connection
        if isinstance(request, web.Request) and connection is not None:
            return _ResponseStream(stream, request, connection)
    return None


def _root_of(request: web.Request) -> web.Application | None:
    return next(iter(request.match_info.apps), None)


def key_of(stream: ListedStream) -> str:
    """Return what identifies a stream of this process in a page."""
    about = stream.response if isinstance(stream, _ResponseStream) else stream
    return f"{id(about):x}-{int(stream.opened_at * 1e6):x}"


async def find_stream(streams: Iterable[ListedStream], key: str) -> ListedStream | None:
    """Return the open stream with a key, or ``None``. Cancelling is safe."""
    for number, stream in enumerate(streams):
        if number % BATCH == 0:
            await asyncio.sleep(0)
        if key_of(stream) == key:
            return stream if stream.reason is None else None
    return None


# What a page asks for

_SORT: Mapping[str, Callable[[ListedStream], float | str]] = {
    "path": lambda stream: stream.request.path,
    "kind": lambda stream: stream.kind,
    "age": lambda stream: -stream.opened_at,
    "topics": lambda stream: min(stream.topics, default=""),
    "offset": lambda stream: -1 if stream.offset is None else stream.offset,
    "behind": lambda stream: stream.behind + stream.lacks_evicted,
    "unsent": lambda stream: stream.connection.unsent,
    "peer": lambda stream: stream.request.remote or "",
    "owners": lambda stream: ", ".join(stream.owners),
}
COLUMNS = tuple(_SORT)
"""The columns by which streams can be sorted."""

_FIELDS: Mapping[str, Callable[[ListedStream], Iterable[str]]] = {
    "route": lambda stream: (stream.request.path, route_of(stream.request)),
    "topic": lambda stream: stream.topics,
    "owner": lambda stream: stream.owners,
    "peer": lambda stream: (stream.request.remote or "",),
}


Term: TypeAlias = tuple[str, Callable[[ListedStream], Iterable[str]]]
"""A word of a filter, and the function that returns what to look at."""


@dataclass(frozen=True, slots=True)
class Query:
    """Which streams a page shows, and in which order.

    Raises:
        ValueError: There is no such column, or the filter is too long.
    """

    filter: str = ""
    """Words that must all be in a path, route, topic, owner or address. ``owner:7`` looks at owners only."""
    sort: str = "behind"
    """The column to sort by."""
    descending: bool = True
    """Whether the greatest value comes first."""

    def __post_init__(self) -> None:
        if self.sort not in _SORT:
            raise ValueError(f"sort is one of {', '.join(_SORT)}, not {self.sort[:50]!r}")
        if len(self.filter) > MAX_FILTER or len(self.filter.split()) > MAX_TERMS:
            raise ValueError(f"a filter has at most {MAX_TERMS} words and {MAX_FILTER} characters")

    def terms(self) -> list[Term]:
        """Return the words of the filter in lower case, each with the function that returns what to look at."""
        return [_term(word) for word in self.filter.casefold().split()]


def _term(word: str) -> Term:
    field, colon, value = word.partition(":")
    if colon and value and field in _FIELDS:
        return value, _FIELDS[field]
    return word, _all_fields


def _matches(stream: ListedStream, terms: Iterable[Term]) -> bool:
    return all(any(word in value.casefold() for value in values(stream)) for word, values in terms)


def _all_fields(stream: ListedStream) -> Iterator[str]:
    return chain.from_iterable(values(stream) for values in _FIELDS.values())


# What a page gets


@dataclass(frozen=True, slots=True)
class Selection:
    """The streams that a page shows."""

    total: int
    """Number of open streams."""
    matching: int
    """Number of streams that match the filter."""
    rows: dict[str, Row]
    """The first ones of the order, by key."""

    @classmethod
    async def of(cls, streams: Iterable[ListedStream], query: Query, epoch: float, pacer: Pacer) -> Selection:
        """Select the streams for a query. Other tasks run in between, so streams may open and end. Cancelling is safe.

        Args:
            streams: The open streams.
            query: What the page asks for.
            epoch: Unix time at which the event loop's clock was 0, in seconds.
            pacer: Says when it is time for other tasks.
        """
        sort_key, terms = _SORT[query.sort], query.terms()
        first: FirstEntries[ListedStream] = FirstEntries(MAX_ROWS, descending=query.descending)
        total = matching = 0
        for number, stream in enumerate(streams):
            if number % CHECK_EVERY == 0 and pacer.due:
                await pacer.give_way()
            if stream.reason is not None:
                continue
            total += 1
            if terms and not _matches(stream, terms):
                continue
            matching += 1
            opened_at = stream.opened_at
            first.add((sort_key(stream), -opened_at if query.descending else opened_at), stream)  # the oldest first
        await pacer.give_way()
        rows: dict[str, Row] = {}
        for number, stream in enumerate(first.entries()):
            if number % CHECK_EVERY == 0 and pacer.due:
                await pacer.give_way()
            if stream.reason is None:
                rows[key_of(stream)] = row_of(stream, epoch)
        return cls(total, matching, rows)


def row_of(stream: ListedStream, epoch: float) -> Row:
    """Return what a page shows of a stream."""
    request, connection = stream.request, stream.connection
    row: Row = {
        "path": request.path[:MAX_PATH],
        "route": route_of(request)[:MAX_PATH],
        "method": request.method,
        "kind": stream.kind,
        "opened": round(epoch + stream.opened_at, 1),
        "topics": heapq.nsmallest(MAX_NAMES, stream.topics),
        "topic_count": len(stream.topics),
        "offset": stream.offset,
        "behind": stream.behind,
        "evicted": int(stream.lacks_evicted),
        "unsent": connection.unsent,
        "paused": int(connection.paused),
        "peer": request.remote or "",
        "owners": list(stream.owners[:MAX_NAMES]),
        "owner_count": len(stream.owners),
    }
    if isinstance(stream, StreamLifecycle):
        statistics = stream.statistics()
        row |= {"events": statistics.events, "bytes": statistics.bytes, "dropped": statistics.dropped}
        row["bytes_sent"] = statistics.bytes_sent
    return row
