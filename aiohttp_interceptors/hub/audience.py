"""Streams that are told the same: what is published for them is joined once, and written to each."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol, TypeAlias

from .._checks import synchronous
from ..errors import FATAL
from ..observe.logs import log
from .record import Record

if TYPE_CHECKING:
    from .subscription import Subscription

__all__ = ["BATCH", "Allowance", "Audience", "Outlet", "Select", "selected"]

# Bytes that are written to a stream in one piece. A larger one would save no system call worth speaking of, and it is
# what the transport may hold beyond its limit for each stream that does not read.
BATCH = 32 * 1024

Select: TypeAlias = Callable[[Record], object]


class Outlet(Protocol):
    """What carries a subscription's bytes to its client."""

    paused: bool
    """Whether it takes no more for now; it tells the subscription when that changes."""

    @property
    def wrap(self) -> Callable[[bytes], bytes]:
        """A function that makes what ``relay`` takes of frames, the same one for all outlets that need the same."""

    def relay(self, payload: bytes, now: float) -> None:
        """Write what ``wrap`` made, at this time of the event loop. A lost client is no error."""


class Allowance:
    """The time that is left in a flush for streams that do not keep up: the first one of them always has some."""

    __slots__ = ("postponed", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds: float = seconds
        self.postponed: bool = False
        """Whether one had none, of the audience that was flushed last."""


class Audience:
    """Subscribers of the same topics, with the same select function, whose bytes are the same.

    Those that keep up are *live*: all of them have everything up to ``position``, and there is nothing else to know
    of each. Those that *wait* have a position of their own, and read the log from there in the next flush.
    """

    __slots__ = ("_behind", "_line", "_live", "_waiting", "bytes", "events", "flushing", "pending", "position",
                 "select", "topics", "wrap")  # fmt: skip

    def __init__(
        self, topics: frozenset[str], select: Select | None, wrap: Callable[[bytes], bytes], position: int
    ) -> None:
        self.topics: frozenset[str] = topics
        self.select: Select | None = select
        self.wrap: Callable[[bytes], bytes] = wrap
        self.position: int = position
        self.pending: list[Record] = []  # published since the last flush
        self.flushing: bool = False  # some of those that keep up have not got all of the records of this flush
        self.events: int = 0  # sent to whoever was live all the time
        self.bytes: int = 0
        self._live: dict[Subscription, None] = {}
        self._line: tuple[Outlet, ...] | None = None  # of the live ones; a tuple is walked faster, and does not change
        self._behind: dict[Subscription, None] | None = None  # all others; none, and no memory, while all are live
        self._waiting: dict[Subscription, int] = {}  # of those; how many records were pending when each came

    @property
    def live(self) -> int:
        """How many keep up."""
        return len(self._live)

    def all_live(self) -> list[Subscription]:
        """Return those that keep up."""
        return list(self._live)

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self._live) + len(self._behind or ())

    def all(self) -> list[Subscription]:
        """Return all that there are."""
        return [*self._live, *(self._behind or ())]

    def enter(self, subscription: Subscription) -> None:
        """Add one that does not keep up yet, or that keeps up no more."""
        self.leave(subscription)
        if self._behind is None:
            self._behind = {}
        self._behind[subscription] = None

    def join(self, subscription: Subscription) -> None:
        """Have somebody keep up who has everything that was flushed."""
        self.leave(subscription)
        self._live[subscription] = None
        self._line = None

    def await_flush(self, subscription: Subscription) -> None:
        """Have somebody catch up in the next flush."""
        self._waiting.setdefault(subscription, sys.maxsize if self.flushing else len(self.pending))

    def leave(self, subscription: Subscription) -> None:
        """Remove one. Idempotent."""
        self._waiting.pop(subscription, None)
        if subscription in self._live:
            del self._live[subscription]
            self._line = None
        elif self._behind is not None:
            self._behind.pop(subscription, None)
            if not self._behind:
                self._behind = None

    def flush(self, now: float, allowance: Allowance) -> int:
        """Write what is pending to those that keep up, have others read a piece each, and return the deliveries.

        Those for whom no time is left read theirs in the next flush. When called by what it calls itself, which would
        write the later records first, it does nothing.
        """
        if self.flushing:
            return 0
        records, self.pending = self.pending, []
        delivered = 0
        if records:
            self.flushing = True
            try:
                delivered = self._spread(records, now)
            finally:
                self.flushing = False
            self._advance(records)
        if self._waiting:
            waiting, self._waiting = self._waiting, {}
            passing = any(record.id is None for record in records)
            began, late = time.monotonic(), {}
            for subscription, before in waiting.items():
                if allowance.seconds <= 0:
                    if self._behind is not None and subscription in self._behind:
                        late[subscription] = 0
                    continue
                delivered += subscription.catch_up(now)
                if passing and subscription in self._live:
                    delivered += self._pass_on(subscription, records[before:], now)
                began, before_that = time.monotonic(), began
                allowance.seconds -= began - before_that
            if late:  # they come before those that had their piece and want another
                allowance.postponed = True
                self._waiting = late | {each: before for each, before in self._waiting.items() if each not in late}
        return delivered

    def _pass_on(self, subscription: Subscription, records: list[Record], now: float) -> int:
        """Write to somebody who has just caught up the ephemeral records, which the log does not have."""
        select = self.select
        try:
            missed = selected([record for record in records if record.id is None], select)
            if missed:
                subscription.relay(b"".join([record.frame for record in missed]), len(missed), now)
        except FATAL:
            raise
        except BaseException as error:  # noqa: BLE001  # the select function's or a transport's own
            subscription.fail(error)
            return 0
        return len(missed)

    def _spread(self, records: list[Record], now: float) -> int:
        """Write records to those that keep up, and return the deliveries."""
        if self._live and self.select is not None:
            records = self._selected(records, self.select)
        if not self._live:
            return 0
        if len(records) == 1:
            return self._write(records, records[0].frame, now)
        return sum(self._write(piece, b"".join([record.frame for record in piece]), now) for piece in pieces(records))

    def _selected(self, records: list[Record], select: Select) -> list[Record]:
        """Return those that the select function wants; if it raises, its streams end, and no other."""
        try:
            return selected(records, select)
        except FATAL:
            raise
        except BaseException as error:  # noqa: BLE001  # whatever it is
            for subscription in list(self._live):
                subscription.fail(error)
            return []

    def _advance(self, records: list[Record]) -> None:
        """Note that who keeps up has these; ephemeral ones have no place."""
        self.position = max(self.position, *(record.position for record in records), 0)

    def _write(self, records: list[Record], frames: bytes, now: float) -> int:
        """Write a piece to everybody who keeps up."""
        self._advance(records)  # before: whoever is paused by this has it
        self.events += len(records)
        self.bytes += len(frames)
        payload = self.wrap(frames)
        line = self._line
        if line is None:
            line = self._line = tuple([subscription.outlet for subscription in self._live])
        for outlet in line:
            try:
                outlet.relay(payload, now)
            except FATAL:
                raise
            except BaseException as error:  # noqa: BLE001  # a transport's own: its stream ends, and no other
                self._fail(outlet, error)
        return len(line) * len(records)

    def _fail(self, outlet: Outlet, error: BaseException) -> None:
        for subscription in list(self._live):
            if subscription.outlet is outlet:
                log.exception("stream_write_failed", topics=sorted(self.topics), exc_info=error)
                subscription.fail(error)


def selected(records: list[Record], select: Select | None) -> list[Record]:
    """Return the records that a select function wants. Raises what it raises, and ``TypeError`` for an awaitable."""
    if select is None:
        return records
    wanted = []
    for record in records:
        answer = select(record)
        if answer is True or (answer is not False and synchronous(answer, "select")):
            wanted.append(record)
    return wanted


def pieces(records: Iterable[Record]) -> list[list[Record]]:
    """Part records into pieces of about a batch of bytes."""
    parted: list[list[Record]] = []
    size = BATCH
    for record in records:
        if size >= BATCH:
            parted.append([])
            size = 0
        parted[-1].append(record)
        size += len(record.frame)
    return parted
