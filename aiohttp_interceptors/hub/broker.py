"""The protocol of a broker: an ordered log that connects the processes of a Hub and outlives them."""

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
    "Erased",
    "LogPosition",
    "Subscribed",
    "SupportsErase",
    "TailItem",
    "Trimmed",
    "Truncated",
]


# Seconds, at least, for which an idempotency key is remembered. It is the default of JetStream, and longer than clients
# usually retry.
IDEMPOTENCY_WINDOW = 120.0

T = TypeVar("T")


class LogPosition(NamedTuple):
    """A position in a log. Offsets of different epochs cannot be compared."""

    epoch: str
    """1 to 32 characters of 0 to 9 and a to z. No two logs have the same one."""
    offset: int
    """Greater than the offset of every earlier entry, and less than 2**63. 0 is before the first entry."""


class Entry(NamedTuple):
    """An entry of the log."""

    offset: int
    topic: str
    payload: bytes
    """The bytes that were given to ``publish``; or none, if the entry was erased and its place was kept."""
    age: float = 0.0
    """Seconds since the entry was published, by the broker's clock. About 0 for a new entry."""


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The broker answered, and the items after this one follow this position. The first item of every tail.

    The position is the one that was given to ``tail``. For ``None`` it is the one before the first entry that the
    broker still has.
    """

    position: LogPosition


Batch: TypeAlias = Sequence[Entry]
"""The next entries, in order."""


@dataclass(frozen=True, slots=True)
class Trimmed:
    """Some or all of the entries that would follow, up to and including this offset, were trimmed."""

    through: int


@dataclass(frozen=True, slots=True)
class Truncated:
    """The broker lost the entries after this position, although it had delivered or acknowledged them.

    The entries that follow have another epoch and come after this position. They may repeat lost ones. For a broker
    that lost everything, the position is the one before its first entry.
    """

    position: LogPosition


@dataclass(frozen=True, slots=True)
class Erased:
    """Some of the entries that would follow, up to and including an offset, were erased, and all others are yielded.

    A broker yields it only if it keeps no places of erased entries.
    """

    through: int
    """The offset of the last one of these entries, or a later one."""
    erased_by: int
    """The offset of the last ``before`` that was given to ``erase``, or a later one."""


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """The broker answered just now, and every entry that it had when it was asked has been yielded.

    The first one of a tail ends the history, and later entries are new. A broker with ``confirms`` repeats it.
    """


TailItem: TypeAlias = Subscribed | Batch | Trimmed | Erased | Truncated | CaughtUp


class Broker(Protocol):
    """An ordered log of a Hub's records, which all its processes share.

    A broker belongs to one event loop and one Hub. Each process of a Hub has its own broker, made with the same
    arguments. The constructor does not connect, and raises ``TypeError`` or ``ValueError`` for invalid arguments. All
    other methods are called in the event loop.

    **Order.** Offsets increase, and all processes see the entries in the same order. A tail never yields an entry
    before another one with a smaller offset that ``publish`` has acknowledged or will acknowledge. This holds when two
    processes publish at the same time, and when their clocks are wrong.

    **Delivery.** A tail yields each entry once. A tail after a position yields every entry that follows, except those
    that it reports by ``Trimmed`` or ``Truncated``. An acknowledged entry is not lost as long as the server keeps what
    it acknowledges, which is a setting of each server. If the server loses it after all, the tail reports ``Truncated``
    in every process that had received the entry or its acknowledgement.

    **Erasure.** A broker may have a method ``erase``, as ``SupportsErase`` describes it. Without it ``Hub.erase`` is
    refused. Of an entry that was erased the broker may keep the place: the entry then has an empty payload. Otherwise a
    tail that has not yielded the entry reports ``Erased`` before the entry that follows.

    **Confirmation.** A broker may have an attribute ``confirms``: the maximum number of seconds between two
    ``CaughtUp`` of a tail, after the first one and while the server answers. The Hub is then ``ready`` only while the
    latest one is not older than ``confirms`` and 1.5 seconds. An ID that is ahead of the process is treated as invalid
    only after another ``CaughtUp``. Without the attribute a tail yields one ``CaughtUp``, and the records count as
    complete as long as that tail runs.
    """

    async def publish(
        self, topic: str, payload: bytes, *, idempotency_key: str | None = None, connection: object = None
    ) -> LogPosition | None:
        """Append an entry, and wait until the server has stored it as durably as it is configured to.

        Cancelling leaves the outcome unknown.

        Args:
            topic: The topic of the entry.
            payload: The content of the entry, which the broker does not interpret.
            idempotency_key: Calls with the same key within ``IDEMPOTENCY_WINDOW`` append one entry, and all return its
                position.
            connection: A database connection of the caller. The entry is written in its transaction.

        Returns:
            The position of the entry, or ``None`` with ``connection``: the position is not known before the commit.

        Raises:
            TypeError: The broker does not support ``connection``.
            BrokerDown: The entry was certainly not stored, so it is safe to publish again. Raised in a bounded time, as
                are the following.
            OutcomeUnknown: The entry may have been stored, so it is safe to publish again only with an
                ``idempotency_key``.
            BrokerRefused: The entry was not stored, and the same call will fail again.
        """
        ...

    def tail(self, after: LogPosition | None) -> AsyncGenerator[TailItem, None]:
        """Read the entries after a position, or from the first one that the broker still has.

        A tail yields ``Subscribed``, then the entries that there are, then ``CaughtUp``, then new entries as they are
        published. A broker with ``confirms`` repeats ``CaughtUp``. A tail that ends has lost its server. It does not
        reconnect: the caller decides when to start the next one, after the last entry that it received.

        The Hub reads one tail at a time. Cancelling and closing a tail is safe.

        Args:
            after: The position to resume after; ``None`` to read from the start.

        Raises:
            BrokerDown: The server cannot be reached, or stopped answering.
            BrokerRefused: The server refused, and will refuse again.
        """
        ...

    async def close(self) -> None:
        """Close all connections, after the calls of ``publish`` that are in progress. Idempotent.

        After it, ``publish`` raises ``BrokerDown``. The tail is closed before. It takes a bounded time, and the Hub
        cancels it after 30 seconds.
        """
        ...


class SupportsErase(Protocol):
    """What a ``Broker`` has beside its methods if its entries can be erased."""

    async def erase(self, topic: str, before: LogPosition) -> None:
        """Delete the contents of the entries of a topic before a position. Idempotent.

        The contents are deleted from wherever the broker itself stores them. Tails that are reading go on. Idempotency
        keys are kept. Cancelling leaves the outcome unknown.

        Args:
            topic: The topic.
            before: The position of an entry of this topic, which is kept.

        Raises:
            BrokerDown: The server cannot be reached, or stopped answering. Some entries may be erased. Raised in a
                bounded time, as are the following.
            OutcomeUnknown: The same, or the broker has lost the entry at the position.
            BrokerRefused: The server refused, and will refuse again.
        """
        ...


class DeduplicationWindow(Generic[T]):
    """The results of calls by idempotency key, for ``IDEMPOTENCY_WINDOW`` seconds. ``now`` is of a monotonic clock."""

    def __init__(self) -> None:
        self._results: OrderedDict[str, tuple[float, T]] = OrderedDict()

    def find(self, key: str, now: float) -> tuple[T] | None:
        """Return the result of the first call with a key, in a tuple, or ``None`` if there was no call."""
        results = self._results
        while results and next(iter(results.values()))[0] + IDEMPOTENCY_WINDOW < now:
            results.popitem(last=False)
        found = results.get(key)
        return None if found is None else (found[1],)

    def add(self, key: str, result: T, now: float) -> None:
        """Add the result of the first call with a key."""
        self._results[key] = now, result

    def discard_if(self, is_void: Callable[[T], bool]) -> None:
        """Discard the keys whose results are void, so that the next call with such a key counts as the first."""
        for key in [key for key, (_, result) in self._results.items() if is_void(result)]:
            del self._results[key]
