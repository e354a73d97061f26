"""Bounded queues that drop events on overflow, so that a producer never waits.

``SlidingQueue`` drops the oldest event, ``DroppingQueue`` the newest, and ``ConflatingQueue`` keeps the latest event of
each key. Dropped events are counted, and the stream can report them to its client. To use one, pass a factory as the
``buffer`` of a stream: ``buffer=lambda: SlidingQueue(100, notice=dropped_event)``.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable

from ._checks import check_synchronous
from .sse import Event

__all__ = ["ConflatingQueue", "DroppingQueue", "LossyQueue", "SlidingQueue", "dropped_comment", "dropped_event"]


def dropped_comment(count: int) -> Event:
    """Create a comment such as ``dropped 3 events``, which is visible in the stream but not to the page.

    Args:
        count: Number of dropped events.

    Returns:
        The event, for the ``notice`` of a queue.
    """
    return Event(comment=f"dropped {count} event{'' if count == 1 else 's'}")


def dropped_event(count: int) -> Event:
    """Create an event named ``dropped`` with the data ``{"dropped": count}``, for a page that refetches its state.

    Args:
        count: Number of dropped events.

    Returns:
        The event, for the ``notice`` of a queue.
    """
    return Event.json({"dropped": count}, name="dropped")


class LossyQueue(asyncio.Queue[Event], ABC):
    """Base class of the queues that drop one event when a put exceeds their capacity.

    Events keep their order. With ``notice``, the queue returns one notice in place of each run of dropped events.
    Notices use no capacity and are never dropped. ``qsize``, ``empty`` and ``join`` count them like events; they do not
    count dropped events.

    If ``notice`` fails in ``get`` or ``get_nowait``, these raise ``TypeError`` and the notice stays in the queue.

    Args:
        maxsize: The capacity in events, 1 or more.
        notice: Creates an event from a number of dropped events, for example ``dropped_event``. The constructor calls
            ``notice(1)`` to check it. By default there are no notices.

    Raises:
        TypeError: ``maxsize`` is not an integer, or ``notice(1)`` raised or did not return an ``Event``.
        ValueError: ``maxsize`` is less than 1.
    """

    dropped: int
    """Number of events dropped so far."""

    # Each put has a sequence number. A number after _consumed that is not in _events was dropped. A run of dropped
    # events is a gap in the numbers, so that it needs no entry in the queue, and adjacent runs merge by themselves.

    def __init__(self, maxsize: int, *, notice: Callable[[int], Event] | None = None) -> None:
        if type(maxsize) is not int:
            raise TypeError(f"maxsize is a number of events, not {maxsize!r}")
        if maxsize < 1:
            raise ValueError(f"maxsize is 1 event or more, not {maxsize!r}: without capacity every event is dropped")
        if notice is not None:
            _create_notice(notice, 1)
        self._notice = notice
        super().__init__(maxsize)

    def qsize(self) -> int:
        """Return the number of events and notices in the queue."""
        return len(self._events) + self._notices

    def empty(self) -> bool:
        """Return whether the queue has neither events nor notices."""
        return not self._events and not self._notices

    def full(self) -> bool:
        """Return ``False``, because a put never waits."""
        return False

    def put_nowait(self, item: Event) -> None:
        """Put an event, and drop one if the queue is full. Never raises ``asyncio.QueueFull``."""
        super().put_nowait(item)
        while self._uncounted:  # only now that the new event is counted, or join() would return
            self._uncounted -= 1
            self.task_done()

    @abstractmethod
    def _choose_dropped(self) -> int:
        """Return the sequence number of the event to drop on overflow."""

    def _init(self, maxsize: int) -> None:  # noqa: ARG002  # the signature of asyncio.Queue
        self._events: OrderedDict[int, Event] = OrderedDict()
        self._last = 0  # sequence number of the last put
        self._consumed = 0  # up to this number, each event was returned or its loss was reported
        self._notices = 0  # runs of dropped events after _consumed, if there are notices of them
        self._uncounted = 0  # dropped events that join() still counts
        self.dropped = 0

    def _put(self, item: Event) -> None:
        self._last += 1
        self._events[self._last] = item
        if len(self._events) > self.maxsize:
            self._drop(self._choose_dropped())

    def _get(self) -> Event:
        first = next(iter(self._events), self._last + 1)
        count = first - self._consumed - 1
        if count and self._notice is not None:
            notice = _create_notice(self._notice, count)
            self._consumed = first - 1
            self._notices -= 1
            return notice
        self._consumed = first
        return self._remove(first)

    def _remove(self, number: int) -> Event:
        return self._events.pop(number)

    def _drop(self, number: int) -> None:
        self._remove(number)
        self.dropped += 1
        if self._notice is None:
            self._uncounted += 1
        else:  # join() counts the notice instead of the event; a run that is extended or merged has one notice
            adjacent = self._is_dropped(number - 1) + self._is_dropped(number + 1)
            self._notices += 1 - adjacent
            self._uncounted += adjacent

    def _is_dropped(self, number: int) -> bool:
        return self._consumed < number <= self._last and number not in self._events


class SlidingQueue(LossyQueue):
    """A queue that drops the oldest event on overflow.

    The notice precedes the events that are left. See ``LossyQueue`` for the arguments.
    """

    def _choose_dropped(self) -> int:
        return next(iter(self._events))


class DroppingQueue(LossyQueue):
    """A queue that drops the newest event on overflow, the one that is being put.

    The notice follows the events that are in the queue, and precedes those that are put later. See ``LossyQueue`` for
    the arguments.
    """

    def _choose_dropped(self) -> int:
        return self._last


def _event_name(event: Event) -> str | None:
    return event.name


class ConflatingQueue(SlidingQueue):
    """A queue that keeps only the latest event of each key.

    An event replaces the one with the same key, which is dropped, and goes to the end of the queue. If the queue
    overflows nevertheless, the oldest event of any key is dropped. The notice of a dropped event takes its position.

    ``put`` raises what ``key`` raises, and ``TypeError`` if a key is not hashable; the queue is then unchanged.

    Args:
        maxsize: The capacity in events, 1 or more.
        key: Returns the key of an event, or ``None`` for an event that is not conflated. By default the key is the name
            of the event.
        notice: Creates an event from a number of dropped events, see ``LossyQueue``.

    Raises:
        TypeError: ``key`` is not callable; or as for ``LossyQueue``.
        ValueError: ``maxsize`` is less than 1.
    """

    def __init__(
        self,
        maxsize: int,
        *,
        key: Callable[[Event], Hashable] = _event_name,
        notice: Callable[[int], Event] | None = None,
    ) -> None:
        if not callable(key):
            raise TypeError(f"key must be a function of an event, not {key!r}")
        self._key = key
        super().__init__(maxsize, notice=notice)

    def _init(self, maxsize: int) -> None:
        super()._init(maxsize)
        self._numbers: dict[Hashable, int] = {}  # sequence number by key
        self._keys: dict[int, Hashable] = {}  # key by sequence number

    def _put(self, item: Event) -> None:
        key = check_synchronous(self._key(item), "key")
        if key is not None:
            try:
                replaced = self._numbers.get(key)
            except TypeError as error:
                raise TypeError(f"key must return a hashable or None, and {self._key!r} returned {key!r}") from error
            if replaced is not None:
                self._drop(replaced)
            self._numbers[key] = self._last + 1
            self._keys[self._last + 1] = key
        super()._put(item)

    def _remove(self, number: int) -> Event:
        key = self._keys.pop(number, None)
        if key is not None:
            del self._numbers[key]
        return super()._remove(number)


def _create_notice(notice: Callable[[int], Event], count: int) -> Event:
    """Call ``notice`` and check its result."""
    try:
        event = notice(count)
    except Exception as error:
        raise TypeError(f"notice must return an Event, and {notice!r} raised for count {count}") from error
    if not isinstance(event, Event):
        raise TypeError(f"notice must return an Event, and {notice!r} returned {event!r} for count {count}")
    return event
