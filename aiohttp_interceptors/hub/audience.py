"""Streams that are told the same: what is published for them is joined once, and written to each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol, TypeAlias

from ..errors import FATAL
from ..observe.logs import log
from .record import Record

if TYPE_CHECKING:
    from .subscriber import Subscriber

__all__ = ["BATCH", "Audience", "Outlet", "Select"]

# Bytes that are written to a stream in one piece. A larger one would save no system call worth speaking of, and it is
# what the transport may hold beyond its limit for each stream that does not read.
BATCH = 32 * 1024

Select: TypeAlias = Callable[[Record], object]


class Outlet(Protocol):
    """What carries a subscriber's bytes to its client."""

    paused: bool
    """Whether it takes no more for now; it tells the subscriber when that changes."""

    @property
    def wrap(self) -> Callable[[bytes], bytes]:
        """A function that makes what ``relay`` takes of frames, the same one for all outlets that need the same."""

    def relay(self, payload: bytes, now: float) -> None:
        """Write what ``wrap`` made, at this time of the event loop. A lost client is no error."""


class Audience:
    """Subscribers of the same topics, with the same select function, whose bytes are the same.

    Those that keep up are *live*: all of them have everything up to ``position``, and there is nothing else to know
    of each. Those that *wait* have a position of their own, and read the log from there in the next flush.
    """

    __slots__ = ("_line", "_live", "_waiting", "bytes", "events", "flushing", "pending", "position", "select", "size",
                 "topics", "wrap")  # fmt: skip

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
        self.size: int = 0  # subscribers, also those that are neither live nor waiting
        self._live: dict[Subscriber, None] = {}
        self._line: tuple[Outlet, ...] | None = None  # of the live ones; a tuple is walked faster, and does not change
        self._waiting: dict[Subscriber, int] = {}  # how many were pending when each came

    @property
    def live(self) -> int:
        """How many keep up."""
        return len(self._live)

    def all_live(self) -> list[Subscriber]:
        """Return those that keep up."""
        return list(self._live)

    def join(self, subscriber: Subscriber) -> None:
        """Have somebody keep up who has everything that was flushed."""
        self._live[subscriber] = None
        self._line = None

    def await_flush(self, subscriber: Subscriber) -> None:
        """Have somebody catch up in the next flush."""
        self._waiting.setdefault(subscriber, sys.maxsize if self.flushing else len(self.pending))

    def leave(self, subscriber: Subscriber) -> bool:
        """Take somebody out of both, and return whether they kept up."""
        self._waiting.pop(subscriber, None)
        if subscriber not in self._live:
            return False
        del self._live[subscriber]
        self._line = None
        return True

    def flush(self, now: float) -> int:
        """Write what is pending to those that keep up, have the others catch up, and return the deliveries.

        When called by what it calls itself, which would write the later records first, it does nothing.
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
            for subscriber, before in waiting.items():
                delivered += subscriber.catch_up(now)
                if passing and subscriber in self._live:
                    delivered += self._pass_on(subscriber, records[before:], now)
        return delivered

    def _pass_on(self, subscriber: Subscriber, records: list[Record], now: float) -> int:
        """Write to somebody who has just caught up the ephemeral records, which the log does not have."""
        select = self.select
        try:
            missed = [record for record in records if record.id is None and (select is None or select(record))]
            if missed:
                subscriber.relay(b"".join([record.frame for record in missed]), len(missed), now)
        except FATAL:
            raise
        except BaseException as error:  # noqa: BLE001  # the select function's or a transport's own
            subscriber.fail(error)
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
            return [record for record in records if select(record)]
        except FATAL:
            raise
        except BaseException as error:  # noqa: BLE001  # whatever it is
            for subscriber in list(self._live):
                subscriber.fail(error)
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
            line = self._line = tuple([subscriber.outlet for subscriber in self._live])
        for outlet in line:
            try:
                outlet.relay(payload, now)
            except FATAL:
                raise
            except BaseException as error:  # noqa: BLE001  # a transport's own: its stream ends, and no other
                self._fail(outlet, error)
        return len(line) * len(records)

    def _fail(self, outlet: Outlet, error: BaseException) -> None:
        for subscriber in list(self._live):
            if subscriber.outlet is outlet:
                log.exception("stream_write_failed", topics=sorted(self.topics), exc_info=error)
                subscriber.fail(error)


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
