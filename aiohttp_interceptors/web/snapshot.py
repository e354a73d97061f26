"""The state that a stream begins with, before the changes that follow it."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import TypeAlias, cast

from ..sse.event import Event
from ..sse.wire import encode, frame_with_id
from .connection import BATCH
from .context import RequestContext

__all__ = ["Snapshot", "SnapshotOf"]

Events: TypeAlias = Iterable[Event | str] | AsyncIterable[Event | str]


class Snapshot:
    """Events that show a state, and the id of the last record whose effect they show.

    ``events`` is a list or an async iterable of events and strings; ``id`` is one that ``publish`` returned, or
    ``None`` if it is not known: then records may follow whose effect is shown already.
    """

    __slots__ = ("events", "id")

    def __init__(self, events: Events, id: str | None = None) -> None:  # noqa: A002  # the field's name
        if isinstance(events, (str, bytes, Event, Mapping)) or not isinstance(events, (Iterable, AsyncIterable)):
            raise TypeError(f"a snapshot is a list or an async iterable of events, or a Snapshot, not {events!r}")
        if id is not None and not isinstance(id, str):
            raise TypeError(f"a snapshot's id is what publish returned, a str or None, not {id!r}")
        self.events: Events = events
        self.id: str | None = id

    @classmethod
    async def taken(cls, snapshot_of: SnapshotOf, context: RequestContext) -> Snapshot:
        """Call a function that gives a snapshot, or its events alone."""
        taken: object = snapshot_of(context)
        if inspect.isawaitable(taken):
            taken = await taken
        return taken if isinstance(taken, Snapshot) else cls(cast("Events", taken))

    async def frames(self, beginning: bytes, id: str) -> AsyncGenerator[tuple[int, bytes], None]:  # noqa: A002  # as above
        """Give the frames in pieces, each with its number of events; the last one has the id.

        ``beginning`` goes before the first. A list is joined to pieces of about a batch; what an async iterable gives
        goes out when its next one is there, since only then it is known not to be the last.
        """
        count, ready = 0, beginning
        last: bytes | None = None
        async with aclosing(_frames(self.events)) as frames:
            async for frame, waits in frames:
                if last is not None:
                    count, ready = count + 1, ready + last
                    if waits or len(ready) >= BATCH:
                        yield count, ready
                        count, ready = 0, b""
                last = frame
        if last is not None:
            yield count + 1, ready + frame_with_id(id, last)


async def _frames(events: Events) -> AsyncGenerator[tuple[bytes, bool], None]:
    """Give each event's frame, and whether the next one is to be waited for."""
    if isinstance(events, AsyncGenerator):
        async with aclosing(events):
            async for event in events:
                yield _frame(event), True
    elif isinstance(events, AsyncIterable):
        async for event in events:
            yield _frame(event), True
    else:
        for event in events:
            yield _frame(event), False


def _frame(event: object) -> bytes:
    if isinstance(event, str):
        event = Event(event)
    if not isinstance(event, Event):
        raise TypeError(f"a snapshot holds events and strings, not {event!r}")
    if event.id is not None:
        raise ValueError(f"the Hub gives ids, and {event!r} of a snapshot has one")
    return encode(event)


SnapshotOf: TypeAlias = Callable[[RequestContext], Snapshot | Events | Awaitable[Snapshot | Events]]
