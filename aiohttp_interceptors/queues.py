"""Queues for a producer that must never wait: what finds no room is dropped, and never silently.

Pass a factory of one as the ``buffer`` of a stream: ``buffer=lambda: SlidingQueue(100, notice=dropped_event)``.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable

from ._checks import synchronous
from .sse import Event

__all__ = ["ConflatingQueue", "DroppingQueue", "LossyQueue", "SlidingQueue", "dropped_comment", "dropped_event"]


def dropped_comment(count: int) -> Event:
    """Make a comment of the number of dropped events: seen in the stream, and by no page."""
    return Event(comment=f"dropped {count} event{'' if count == 1 else 's'}")


def dropped_event(count: int) -> Event:
    """Make an event named ``dropped`` of the number of dropped events, for a page that fetches what it missed."""
    return Event.json({"dropped": count}, name="dropped")


class LossyQueue(asyncio.Queue[Event], ABC):
    """Hold ``maxsize`` events, 1 or more, and drop one for each put that finds no room, so that no put ever waits.

    What is taken is in the order it was put. ``notice`` makes an event of a number: the reader takes it where that
    many events are missing, one for each hole, after which the hole is forgotten. Notices need no room, are never
    dropped, and count in ``qsize`` and ``empty``, and in ``join`` as what is to be done; dropped events do not.

    Raises ``TypeError`` or ``ValueError`` for a wrong ``maxsize``, and ``TypeError`` when ``notice`` raises or makes
    no ``Event``: when the queue is built, as ``notice(1)`` is tried, or else where the notice should be taken.
    """

    # Events are numbered as they are put. A number above _told that is not waiting was dropped, so that a hole is a
    # gap in the numbers, needs no entry of its own, and two that meet are one.

    dropped: int
    """How many events were put and then gave way to another, so that nobody will take them."""

    def __init__(self, maxsize: int, *, notice: Callable[[int], Event] | None = None) -> None:
        if type(maxsize) is not int:
            raise TypeError(f"maxsize is a number of events, not {maxsize!r}")
        if maxsize < 1:
            raise ValueError(f"maxsize is 1 event or more, not {maxsize!r}: without room for one nothing is ever taken")
        if notice is not None:
            _notice(notice, 1)
        self._make_notice = notice
        super().__init__(maxsize)

    def qsize(self) -> int:
        """How many events can be taken now, notices among them."""
        return len(self._waiting) + self._holes

    def empty(self) -> bool:
        """Whether nothing can be taken now, not even a notice."""
        return not self._waiting and not self._holes

    def full(self) -> bool:
        """Give ``False``: there is always a way to put."""
        return False

    def put_nowait(self, item: Event) -> None:
        """Put an event, and drop one when there is no room; never raises ``asyncio.QueueFull``."""
        super().put_nowait(item)
        while self._gone:  # only now that the new one counts, or join() would be told that there is nothing to do
            self._gone -= 1
            self.task_done()

    @abstractmethod
    def _surplus(self) -> int:
        """Tell which number goes when one too many waits."""

    def _init(self, maxsize: int) -> None:  # noqa: ARG002  # asyncio.Queue calls it so
        self._waiting: OrderedDict[int, Event] = OrderedDict()
        self._last = 0  # the number of what was put last
        self._told = 0  # up to here the reader has taken, or knows what is missing
        self._holes = 0  # between _told and _last, if there are to be notices of them
        self._gone = 0  # what join() still waits for and nobody can take any more
        self.dropped = 0

    def _put(self, item: Event) -> None:
        self._last += 1
        self._waiting[self._last] = item
        if len(self._waiting) > self.maxsize:
            self._drop(self._surplus())

    def _get(self) -> Event:
        first = next(iter(self._waiting), self._last + 1)
        missing = first - self._told - 1
        if missing and self._make_notice is not None:
            notice = _notice(self._make_notice, missing)
            self._told = first - 1
            self._holes -= 1
            return notice
        self._told = first
        return self._remove(first)

    def _remove(self, number: int) -> Event:
        return self._waiting.pop(number)

    def _drop(self, number: int) -> None:
        self._remove(number)
        self.dropped += 1
        if self._make_notice is None:
            self._gone += 1
        else:  # it leaves a hole, whose notice is to be taken in its stead; but one hole with those it touches
            touched = self._is_missing(number - 1) + self._is_missing(number + 1)
            self._holes += 1 - touched
            self._gone += touched

    def _is_missing(self, number: int) -> bool:
        return self._told < number <= self._last and number not in self._waiting


class SlidingQueue(LossyQueue):
    """When there is no room, drop the oldest: the reader is told what is missing first, and then gets the newest."""

    def _surplus(self) -> int:
        return next(iter(self._waiting))


class DroppingQueue(LossyQueue):
    """When there is no room, drop the one being put: the reader gets what was there, and then is told what is missing.

    Before what is accepted next, and also when nothing is put any more.
    """

    def _surplus(self) -> int:
        return self._last


def _name(event: Event) -> str | None:
    """Give the key by which a queue conflates unless told otherwise: the name, and ``None`` without one."""
    return event.name


class ConflatingQueue(SlidingQueue):
    """Keep the latest event of each key: one that is put drops the waiting one of its key, and goes to the end.

    ``key`` makes a hashable of an event, or ``None`` for one that is never conflated; by default it is the event's
    name, and events without one are kept. When there is no room in spite of that the oldest goes, of whatever key.

    Each dropped event leaves its hole where it was. A put raises what ``key`` raises, and ``TypeError`` for a key that
    cannot be hashed; the queue is then as it was.
    """

    def __init__(
        self,
        maxsize: int,
        *,
        key: Callable[[Event], Hashable] = _name,
        notice: Callable[[int], Event] | None = None,
    ) -> None:
        if not callable(key):
            raise TypeError(f"key makes a key of an event, and {key!r} cannot be called")
        self._make_key = key
        super().__init__(maxsize, notice=notice)

    def _init(self, maxsize: int) -> None:
        super()._init(maxsize)
        self._latest: dict[Hashable, int] = {}
        self._keys: dict[int, Hashable] = {}

    def _put(self, item: Event) -> None:
        key = synchronous(self._make_key(item), "key")
        if key is not None:
            try:
                older = self._latest.get(key)
            except TypeError as error:
                raise TypeError(f"key makes a hashable, or None, and {self._make_key!r} made {key!r}") from error
            if older is not None:
                self._drop(older)
            self._latest[key] = self._last + 1
            self._keys[self._last + 1] = key
        super()._put(item)

    def _remove(self, number: int) -> Event:
        key = self._keys.pop(number, None)
        if key is not None:
            del self._latest[key]
        return super()._remove(number)


def _notice(make: Callable[[int], Event], count: int) -> Event:
    """Make the notice of a hole, or raise ``TypeError``."""
    try:
        notice = make(count)
    except Exception as error:
        raise TypeError(f"notice makes an Event of a number of events, and {make!r} raised for {count}") from error
    if not isinstance(notice, Event):
        raise TypeError(f"notice makes an Event of a number of events, and {make!r} made {notice!r} of {count}")
    return notice
