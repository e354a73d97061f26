"""What waits in a channel: a bounded line of events, or a queue of the user's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from .event import Event

__all__ = ["BoundedBuffer", "Buffer", "EventQueue", "new_buffer"]

EventQueue = asyncio.Queue[Event]

COMPACT = 64  # places that may be empty in front before the others move up; moving less often than that costs nothing


class Buffer(Protocol):
    """What a channel needs of an ``asyncio.Queue``."""

    def full(self) -> bool:
        """Tell whether a producer has to wait."""

    def empty(self) -> bool:
        """Tell whether there is nothing to take."""

    def qsize(self) -> int:
        """Count what can be taken."""

    def put_nowait(self, item: Event, /) -> None:
        """Append an event."""

    def get_nowait(self) -> Event:
        """Take the first event."""


class BoundedBuffer:
    """A line of at most so many events. An ``asyncio.Queue`` of them would cost each open stream 3 KB."""

    __slots__ = ("_events", "_first", "maxsize")

    def __init__(self, maxsize: int) -> None:
        self.maxsize: int = maxsize
        self._events: list[Event] = []
        self._first = 0  # those before it were taken

    def full(self) -> bool:
        """Tell whether a producer has to wait."""
        return len(self._events) - self._first >= self.maxsize

    def empty(self) -> bool:
        """Tell whether there is nothing to take."""
        return self._first == len(self._events)

    def qsize(self) -> int:
        """Count what can be taken."""
        return len(self._events) - self._first

    def put_nowait(self, item: Event, /) -> None:
        """Append an event; the channel has looked whether there is room."""
        self._events.append(item)

    def get_nowait(self) -> Event:
        """Take the first event."""
        event = self._events[self._first]
        self._first += 1
        if self._first == len(self._events):
            self._events = []  # frees the room that a burst took
            self._first = 0
        elif self._first >= COMPACT and self._first * 2 >= len(self._events):
            del self._events[: self._first]
            self._first = 0
        return event


def new_buffer(buffer: int | Callable[[], EventQueue]) -> Buffer:
    """Make a channel's buffer, or say what is wrong with ``buffer``."""
    if callable(buffer):
        queue = buffer()
        if not isinstance(queue, asyncio.Queue):
            raise TypeError(f"buffer is a number of events or makes an asyncio.Queue; {buffer!r} made {queue!r}")
        return queue
    if type(buffer) is not int:
        raise TypeError(f"buffer is a number of events or makes an asyncio.Queue, not {buffer!r}")
    if buffer < 1:
        raise ValueError(f"buffer is 1 event or more, not {buffer!r}: without a bound a slow client fills the memory")
    return BoundedBuffer(buffer)
