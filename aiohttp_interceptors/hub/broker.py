"""The port of a Hub: what carries its records to other processes, and to the next life of this one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeAlias, TypeVar

__all__ = [
    "Batch",
    "Broker",
    "CaughtUp",
    "DeduplicationWindow",
    "Entry",
    "LogPosition",
    "Subscribed",
    "TailItem",
    "Trimmed",
    "Truncated",
]


class LogPosition(NamedTuple):
    """Where a record is: a position counts only together with the epoch that it is of."""

    epoch: str
    """1 to 32 of the characters 0 to 9 and a to z; no two logs share one."""
    offset: int
    """Greater than that of every record before it; 0 is before the first. Less than 2**63."""


class Entry(NamedTuple):
    """A record as a broker carries it."""

    offset: int
    topic: str
    payload: bytes
    """What was given to ``publish``, byte for byte."""
    age: float = 0.0
    """Seconds since it was published, by the clock of the broker alone; about 0 for one that has just come."""


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The server answers, and what follows comes after this place. The first item of every tail, and only that.

    It is the place that was asked for; for ``None``, the one before the first entry that the broker still has.
    """

    position: LogPosition


Batch: TypeAlias = Sequence[Entry]
"""What follows, in order."""


@dataclass(frozen=True, slots=True)
class Trimmed:
    """What followed, up to and including this position, is gone, or some of it: it was trimmed."""

    through: int


@dataclass(frozen=True, slots=True)
class Truncated:
    """What this broker gave or acknowledged after a position is void, for the server has lost it.

    What comes now is of another epoch, comes after that position, and may have those of the lost again. A server that
    has lost everything is rewound to the place before its first entry.
    """

    position: LogPosition


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """The server answered just now, and all that it had when it was asked has been given.

    The first one of a tail ends the history; what follows is new. From a broker that has ``confirms`` others follow.
    """


TailItem: TypeAlias = Subscribed | Batch | Trimmed | Truncated | CaughtUp


class Broker(Protocol):
    """Keep the records of a Hub in one order that all its processes see.

    A broker is of one event loop and one Hub. Where a Hub has several processes, each has a broker of its own, made
    with the same arguments. Making one connects to nothing and raises ``TypeError`` or ``ValueError`` for arguments
    that cannot work; the other methods are called in the event loop.

    **Order.** Positions grow, for every process in the same order, and nobody is given an entry before one with a
    smaller position that ``publish`` acknowledged or will acknowledge: not even when two processes publish at the
    same time, and whichever of their clocks is wrong.

    **Delivery.** Each entry comes once in a tail. A tail after a place gives what follows that place, without a hole
    that it does not tell of by ``Trimmed`` or ``Truncated``. An entry that was acknowledged is not lost as long as the
    server keeps what it acknowledges, which is a setting of each server; what it lost after all is told by
    ``Truncated``, in all processes that had seen it or had it acknowledged.

    **Confirmation.** A broker may have an attribute ``confirms``: the seconds, at most, between two ``CaughtUp`` of a
    tail, from the first one on and while the server answers. The Hub is ``ready`` only while the latest is younger than
    that and 1.5 seconds, and takes an id that may still come for a wrong one only after another. Without the attribute
    there is one ``CaughtUp`` in each tail, and the records count as complete as long as that tail lives.
    """

    async def publish(
        self, topic: str, payload: bytes, *, idempotency_key: str | None = None, connection: object = None
    ) -> LogPosition | None:
        """Append an entry, and return its place when it is stored as safely as the server is told to.

        Two calls with the same ``idempotency_key`` within ``IDEMPOTENCY_WINDOW`` append one entry and return its
        place; so who retries with it cannot double. ``connection`` is a connection of the caller's, in whose
        transaction the entry is written; its place is not known before that commits, so that ``None`` is returned.
        A broker that has no such connections raises ``TypeError``.

        Raises, in a bounded time: ``BrokerDown`` when the entry was surely not stored, so that a retry cannot double;
        ``OutcomeUnknown`` when it may have been, so that a retry needs an ``idempotency_key``; ``BrokerRefused`` when
        it was not and the same will not be, however often it is tried. Cancelling leaves the outcome unknown.
        """
        ...

    def tail(self, after: LogPosition | None) -> AsyncGenerator[TailItem, None]:
        """Follow the entries after a place; with ``None``, from the first that the broker still has.

        It begins with ``Subscribed``, gives what there is, then ``CaughtUp``, then what comes, for ever, with an
        ``CaughtUp`` again and again if the broker ``confirms``: one that ends has lost its server. It raises
        ``BrokerDown`` when it cannot reach the server or the server does not answer, ``BrokerRefused`` when that says
        no. It reconnects by itself to nothing: who reads it begins another one at the place up to which it has read,
        and decides when. One tail at a time. Cancelling, and closing it, is safe.
        """
        ...

    async def close(self) -> None:
        """Give back all connections, after those publishes that are on their way. Idempotent.

        ``publish`` raises ``BrokerDown`` after it. A tail is closed before. It takes a bounded time; the Hub cancels
        it after 30 seconds.
        """
        ...


IDEMPOTENCY_WINDOW = 120.0  # seconds, at least: as long as JetStream remembers, and longer than anybody retries


T = TypeVar("T")


class DeduplicationWindow(Generic[T]):
    """Results by idempotency key, for a window. ``now`` is in seconds of any one clock that does not go back."""

    def __init__(self) -> None:
        self._results: OrderedDict[str, tuple[float, T]] = OrderedDict()

    def find(self, key: str, now: float) -> tuple[T] | None:
        """Return the result of the first call with a key, in a tuple, or ``None`` if there was none."""
        results = self._results
        while results and next(iter(results.values()))[0] + IDEMPOTENCY_WINDOW < now:
            results.popitem(last=False)
        found = results.get(key)
        return None if found is None else (found[1],)

    def note(self, key: str, result: T, now: float) -> None:
        """Note the result of the first call with a key."""
        self._results[key] = now, result

    def forget(self, is_void: Callable[[T], bool]) -> None:
        """Forget the keys whose results are void: to try again is a first call."""
        for key in [key for key, (_, result) in self._results.items() if is_void(result)]:
            del self._results[key]
