"""Limits on the number of open streams, in total and per key.

Each application that ``setup`` prepared has its ``Limits``. A stream holds one ``Slot`` under the limits of each
application around it, from the response headers to its end or the loss of its connection.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Literal, Protocol, TypeAlias, cast

from aiohttp import web

from .._checks import check_synchronous
from .._logging import log
from ..exceptions import EXIT_EXCEPTIONS
from ..sse import Event
from .request import too_many_streams

__all__ = ["DEFAULT_KICK_EVENT", "Key", "LimitReached", "Limits", "OnLimit", "Slot", "acquire_slot", "check_slot"]


DEFAULT_KICK_EVENT = Event("a newer stream replaced this one", "kicked")

# For each stream that a key may have, this number of kicks is allowed within this number of seconds. Reloads and
# network changes stay below it. Two tabs that reconnect after each kick reach it.
KICKS_PER_WINDOW = 5
KICK_WINDOW = 60.0

Key: TypeAlias = Callable[[web.Request], Hashable]
OnLimit: TypeAlias = Literal["refuse", "kick"]


class Kickable(Protocol):
    """A stream that can be ended to make room for a newer one with its key."""

    def kick(self, kick_event: Event | None) -> None:
        """End the stream as ``kicked``, with this final event."""


class LimitReached(Exception):
    """No slot is available.

    Args:
        limits: The limits that were reached.
        limit: Name of the option that sets the limit.
        response: The response for the client.
    """

    def __init__(self, limits: Limits, limit: str, response: web.HTTPException) -> None:
        super().__init__(limit)
        self.limits = limits
        self.limit = limit
        self.response = response


class Slot:
    """A slot of one stream under the limits of an application.

    The slots of a stream are linked from the innermost application to the outermost one. The innermost slot represents
    all of them.

    Args:
        limits: The limits of the application.
        key: The key of the stream under these limits.
        outer: The slot under the limits of the next outer application, or ``None``.
    """

    __slots__ = ("_kick_event", "_released", "_stream", "key", "limits", "outer")

    def __init__(self, limits: Limits, key: Hashable, outer: Slot | None) -> None:
        self.limits: Limits = limits
        self.key: Hashable = key
        self.outer: Slot | None = outer
        self._released = False
        self._stream: Kickable | None = None
        self._kick_event: Event | None = None

    def __iter__(self) -> Iterator[Slot]:
        """Iterate over this slot and the outer ones."""
        slot: Slot | None = self
        while slot is not None:
            yield slot
            slot = slot.outer

    def attach(self, stream: Kickable) -> None:
        """Set the stream that holds the slot, or kick it if the slot was evicted before the stream was open."""
        if not self._released:
            self._stream = stream
        else:
            stream.kick(self._kick_event)

    def release(self) -> None:
        """Release the slot under all limits. Idempotent."""
        if self._released:
            return
        self._released = True
        self._stream = None
        for slot in self:
            slot.limits.remove(self, slot.key)

    def evict(self, kick_event: Event | None) -> None:
        """Release the slot and kick its stream, now or when it opens."""
        stream, self._kick_event = self._stream, kick_event
        self.release()
        if stream is not None:
            try:
                stream.kick(kick_event)
            except EXIT_EXCEPTIONS:
                raise
            except BaseException as error:  # noqa: BLE001  # the newer stream must still open
                log.exception("stream_kick_failed", exc_info=error)


class Limits:
    """The limits of one application, and the slots in use under them. See ``setup`` for the options."""

    __slots__ = (
        "_evictions",
        "_in_use",
        "_in_use_by_key",
        "_key",
        "_max_streams",
        "_max_streams_per_key",
        "_slots",
        "kick_event",
    )

    def __init__(
        self,
        max_streams: int | None,
        max_streams_per_key: int | None,
        key: Key | None,
        on_limit: OnLimit = "refuse",
        kick_event: Event | None = DEFAULT_KICK_EVENT,
    ) -> None:
        _check_max("max_streams", max_streams)
        _check_max("max_streams_per_key", max_streams_per_key)
        if (key is None) != (max_streams_per_key is None):
            raise TypeError("max_streams_per_key and key require each other: a number, and a function of the request")
        if key is not None and not callable(key):
            raise TypeError(f"key is a function of the request, not {key!r}")
        if on_limit not in ("refuse", "kick"):
            raise ValueError(f"on_limit is 'refuse' or 'kick', not {on_limit!r}")
        if on_limit == "kick" and not max_streams_per_key:
            raise ValueError(f"on_limit='kick' needs a max_streams_per_key of 1 or more, not {max_streams_per_key!r}")
        if kick_event is not None and not isinstance(kick_event, Event):
            raise TypeError(f"kick_event is an Event or None, not {kick_event!r}")
        self._max_streams = max_streams
        self._max_streams_per_key = max_streams_per_key
        self._key = key
        self.kick_event: Event | None = kick_event
        self._in_use = 0
        self._in_use_by_key: Counter[Hashable] = Counter()
        # Only with on_limit="kick": the slots of each key, oldest first, and the times of its last evictions.
        self._slots: dict[Hashable, dict[Slot, None]] | None = {} if on_limit == "kick" else None
        self._evictions: dict[Hashable, deque[float]] = {}

    @property
    def in_use(self) -> int:
        """Number of slots in use."""
        return self._in_use

    @property
    def enabled(self) -> bool:
        """Whether there is a limit."""
        return self._max_streams is not None or self._max_streams_per_key is not None

    def key_of(self, request: web.Request) -> Hashable:
        """Return the key of a request. Raises what the application's function raises."""
        if self._key is None:
            return None
        key = check_synchronous(self._key(request), "key")
        hash(key)  # raises TypeError before anything is counted
        return key

    def choose_evictions(self, key: Hashable, evicted: Iterable[Slot]) -> list[Slot]:
        """Return the oldest slots of a key that must be evicted for a new stream, without those already ``evicted``.

        Raises:
            LimitReached: Too many streams of the key were evicted recently.
        """
        if self._slots is None or self._max_streams_per_key is None:
            return []
        candidates = [slot for slot in self._slots.get(key, ()) if slot not in evicted]
        chosen = candidates[: max(0, len(candidates) + 1 - self._max_streams_per_key)]
        if chosen:
            start = time.monotonic() - KICK_WINDOW
            recent = sum(evicted_at > start for evicted_at in self._evictions.get(key, ()))
            if recent + len(chosen) > KICKS_PER_WINDOW * self._max_streams_per_key:
                raise LimitReached(self, "max_streams_per_key", too_many_streams(per_key=True))
        return chosen

    def check(self, key: Hashable, evicted: Iterable[Slot]) -> None:
        """Raise ``LimitReached`` if no slot is available after the evictions."""
        freed = [slot.key for innermost in evicted for slot in innermost if slot.limits is self]
        if self._max_streams is not None and self._in_use - len(freed) >= self._max_streams:
            raise LimitReached(self, "max_streams", too_many_streams(per_key=False))
        per_key = self._max_streams_per_key
        if per_key is not None and self._in_use_by_key[key] - freed.count(key) >= per_key:
            raise LimitReached(self, "max_streams_per_key", too_many_streams(per_key=True))

    def add(self, innermost: Slot, key: Hashable) -> None:
        """Count a slot."""
        self._in_use += 1
        if self._key is not None:
            self._in_use_by_key[key] += 1
        if self._slots is not None:
            self._slots.setdefault(key, {})[innermost] = None

    def remove(self, innermost: Slot, key: Hashable) -> None:
        """Stop counting a slot, and forget its key if it was the last one."""
        self._in_use -= 1
        if self._key is None:
            return
        self._in_use_by_key[key] -= 1
        is_last = not self._in_use_by_key[key]
        if is_last:
            del self._in_use_by_key[key]
        if self._slots is not None:
            if is_last:
                del self._slots[key]
                self._evictions.pop(key, None)
            else:
                del self._slots[key][innermost]

    def record_eviction(self, key: Hashable) -> None:
        """Record the time of an eviction, for the limit on their rate."""
        if self._max_streams_per_key is not None:
            times = self._evictions.setdefault(key, deque(maxlen=KICKS_PER_WINDOW * self._max_streams_per_key))
            times.append(time.monotonic())


def acquire_slot(all_limits: Sequence[Limits], request: web.Request) -> Slot | None:
    """Acquire a slot under all of these limits, or under none.

    The streams of evicted slots end before this function returns. It is not a coroutine, so that no other stream can
    acquire a slot between the check and the count.

    Args:
        all_limits: The limits of the request's applications, innermost first.
        request: The request for a stream.

    Returns:
        The innermost slot, or ``None`` without limits.

    Raises:
        LimitReached: No slot is available under one of the limits.
        Exception: What the ``key`` function of an application raises.
    """
    if not all_limits:
        return None
    keys, evicted = _choose(all_limits, request)
    innermost: Slot | None = None
    for limits, key in zip(reversed(all_limits), reversed(keys), strict=True):
        innermost = Slot(limits, key, innermost)
    for slot in innermost or ():
        slot.limits.add(cast("Slot", innermost), slot.key)
    for old, limits in evicted.items():
        limits.record_eviction(next(slot.key for slot in old if slot.limits is limits))
        old.evict(limits.kick_event)
    return innermost


def check_slot(all_limits: Sequence[Limits], request: web.Request) -> None:
    """Raise what ``acquire_slot`` would raise now. Nothing is acquired or evicted.

    Args:
        all_limits: The limits of the request's applications, innermost first.
        request: The request for a stream.
    """
    if all_limits:
        _choose(all_limits, request)


def _choose(all_limits: Sequence[Limits], request: web.Request) -> tuple[list[Hashable], dict[Slot, Limits]]:
    """Return the key under each of the limits, and the slots to evict for a new stream. Raises ``LimitReached``."""
    keys = [limits.key_of(request) for limits in all_limits]
    evicted: dict[Slot, Limits] = {}
    for limits, key in zip(all_limits, keys, strict=True):
        evicted.update(dict.fromkeys(limits.choose_evictions(key, evicted), limits))
    for limits, key in zip(all_limits, keys, strict=True):
        limits.check(key, evicted)
    return keys, evicted


def _check_max(name: str, value: int | None) -> None:
    if value is None:
        return
    if type(value) is not int:
        raise TypeError(f"{name} is a number of streams or None, not {value!r}")
    if value < 0:
        raise ValueError(f"{name} is 0 streams or more, not {value!r}; None means no limit")
