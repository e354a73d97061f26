"""How many streams there may be, in all and of one key, and what happens at the limit."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Literal, Protocol, TypeAlias, cast

from aiohttp import web

from .._checks import synchronous
from .._logging import log
from ..exceptions import FATAL
from ..sse import Event
from .request import too_many

__all__ = ["KICKED", "Key", "LimitReached", "Limits", "OnLimit", "Slot", "take_slot"]


Key: TypeAlias = Callable[[web.Request], Hashable]
OnLimit: TypeAlias = Literal["refuse", "kick"]

KICKED = Event("a newer stream took the place of this one", "kicked")
# Each stream that a key may have is replaced at most so often in so many seconds. Reloads and changed networks stay
# below; two tabs that reconnect after being kicked reach it.
KICKS = 5
KICK_WINDOW = 60.0


class Kickable(Protocol):
    """A stream that a newer one of its key may replace."""

    def kick(self, final: Event | None) -> None:
        """End as ``kicked``, with this as the last event."""


class LimitReached(Exception):
    """There is no place: ``answer`` is for the client, ``limit`` and ``limits`` tell which limit it was."""

    def __init__(self, limits: Limits, limit: str, answer: web.HTTPException) -> None:
        super().__init__(limit)
        self.limits = limits
        self.limit = limit
        self.answer = answer


class Slot:
    """A place for one stream under an application's limits; ``outer`` is the one under the next application's.

    The innermost one stands for all of them.
    """

    __slots__ = ("_final", "_given_back", "_stream", "key", "limits", "outer")

    def __init__(self, limits: Limits, key: Hashable, outer: Slot | None) -> None:
        self.limits: Limits = limits
        self.key: Hashable = key
        self.outer: Slot | None = outer
        self._given_back = False
        self._stream: Kickable | None = None
        self._final: Event | None = None

    def __iter__(self) -> Iterator[Slot]:
        """Walk outwards, from this one."""
        slot: Slot | None = self
        while slot is not None:
            yield slot
            slot = slot.outer

    def attach(self, stream: Kickable) -> None:
        """Note which stream has it. One whose place was taken before it was open is kicked now."""
        if not self._given_back:
            self._stream = stream
        else:
            stream.kick(self._final)

    def release(self) -> None:
        """Count the stream no longer, under any limit. Idempotent."""
        if self._given_back:
            return
        self._given_back = True
        self._stream = None
        for slot in self:
            slot.limits.remove(self, slot.key)

    def kick(self, final: Event | None) -> None:
        """Give it back, and end its stream with this as the last event."""
        stream, self._final = self._stream, final
        self.release()
        if stream is not None:  # or else when it is open
            try:
                stream.kick(final)
            except FATAL:
                raise
            except BaseException as error:  # noqa: BLE001  # its queue's, perhaps; the newer stream is none the worse
                log.exception("stream_kick_failed", exc_info=error)


class Limits:
    """The limits of one application, and the places that are taken under them."""

    __slots__ = ("_all", "_each", "_key", "_kicks", "_of_each", "_slots", "_total", "final")

    def __init__(
        self,
        max_streams: int | None,
        max_streams_per_key: int | None,
        key: Key | None,
        on_limit: OnLimit = "refuse",
        final: Event | None = KICKED,
    ) -> None:
        _check_count("max_streams", max_streams)
        _check_count("max_streams_per_key", max_streams_per_key)
        if (key is None) != (max_streams_per_key is None):
            raise TypeError("max_streams_per_key and key come together: a number, and whose streams are counted")
        if key is not None and not callable(key):
            raise TypeError(f"key is a function of the request, not {key!r}")
        if on_limit not in ("refuse", "kick"):
            raise ValueError(f"on_limit is 'refuse' or 'kick', not {on_limit!r}")
        if on_limit == "kick" and not max_streams_per_key:
            raise ValueError(f"on_limit='kick' needs a max_streams_per_key of 1 or more, not {max_streams_per_key!r}")
        if final is not None and not isinstance(final, Event):
            raise TypeError(f"kick_event is an Event or None, not {final!r}")
        self._all = max_streams
        self._each = max_streams_per_key
        self._key = key
        self.final: Event | None = final
        self._total = 0
        self._of_each: Counter[Hashable] = Counter()
        # With "kick" only: the places themselves, oldest first, and when some were replaced, of keys that have any.
        self._slots: dict[Hashable, dict[Slot, None]] | None = {} if on_limit == "kick" else None
        self._kicks: dict[Hashable, deque[float]] = {}

    @property
    def taken(self) -> int:
        """How many places are taken."""
        return self._total

    @property
    def counts(self) -> bool:
        """Whether there is a limit at all."""
        return self._all is not None or self._each is not None

    def key_of(self, request: web.Request) -> Hashable:
        """Return whose stream it would be. Raises what the application's function raises."""
        if self._key is None:
            return None
        key = synchronous(self._key(request), "key")
        hash(key)  # before anything is counted
        return key

    def replaced_by(self, key: Hashable, others: Iterable[Slot]) -> list[Slot]:
        """Choose the oldest places, for a new stream of the key to take; ``others`` are replaced anyway.

        Raises ``LimitReached`` if the key's streams were replaced too often.
        """
        if self._slots is None or self._each is None:
            return []
        candidates = [slot for slot in self._slots.get(key, ()) if slot not in others]
        chosen = candidates[: max(0, len(candidates) + 1 - self._each)]
        if chosen:
            start = time.monotonic() - KICK_WINDOW
            if sum(kick > start for kick in self._kicks.get(key, ())) + len(chosen) > KICKS * self._each:
                raise LimitReached(self, "max_streams_per_key", too_many(of_one=True))
        return chosen

    def check(self, key: Hashable, replaced: Iterable[Slot]) -> None:
        """Raise ``LimitReached`` if there is no place, also without those that are ``replaced``."""
        freed = [slot.key for head in replaced for slot in head if slot.limits is self]
        if self._all is not None and self._total - len(freed) >= self._all:
            raise LimitReached(self, "max_streams", too_many(of_one=False))
        if self._each is not None and self._of_each[key] - freed.count(key) >= self._each:
            raise LimitReached(self, "max_streams_per_key", too_many(of_one=True))

    def add(self, head: Slot, key: Hashable) -> None:
        """Count a stream."""
        self._total += 1
        if self._key is not None:
            self._of_each[key] += 1
        if self._slots is not None:
            self._slots.setdefault(key, {})[head] = None

    def remove(self, head: Slot, key: Hashable) -> None:
        """Count a stream no longer."""
        self._total -= 1
        if self._key is None:
            return
        self._of_each[key] -= 1
        last = not self._of_each[key]
        if last:
            del self._of_each[key]
        if self._slots is not None:
            if last:
                del self._slots[key]
                self._kicks.pop(key, None)
            else:
                del self._slots[key][head]

    def note_kick(self, key: Hashable) -> None:
        """Remember when a stream of the key was replaced."""
        if self._each is not None:
            self._kicks.setdefault(key, deque(maxlen=KICKS * self._each)).append(time.monotonic())


def take_slot(counting: Sequence[Limits], request: web.Request) -> Slot | None:
    """Take a place under all of these limits, innermost first, or under none. ``None`` if nothing is limited.

    A stream that has to go for this one ends before this returns its place; nothing is awaited between looking and
    counting, so that the counts are exact. Raises ``LimitReached``, and what an application's ``key`` raises.
    """
    if not counting:
        return None
    keys = [limits.key_of(request) for limits in counting]
    replaced: dict[Slot, Limits] = {}
    for limits, key in zip(counting, keys, strict=True):
        replaced.update(dict.fromkeys(limits.replaced_by(key, replaced), limits))
    for limits, key in zip(counting, keys, strict=True):
        limits.check(key, replaced)
    head: Slot | None = None
    for limits, key in zip(reversed(counting), reversed(keys), strict=True):
        head = Slot(limits, key, head)
    for slot in head or ():
        slot.limits.add(cast("Slot", head), slot.key)
    for old, limits in replaced.items():
        limits.note_kick(next(slot.key for slot in old if slot.limits is limits))
        old.kick(limits.final)
    return head


def _check_count(name: str, value: int | None) -> None:
    if value is None:
        return
    if type(value) is not int:
        raise TypeError(f"{name} is a number of streams or None, not {value!r}")
    if value < 0:
        raise ValueError(f"{name} is 0 streams or more, not {value!r}; None means no limit")
