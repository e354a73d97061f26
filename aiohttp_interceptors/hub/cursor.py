"""The position of a subscription in the history, and the frames that it has to receive next.

A ``Cursor`` decides which records are next, which initial frame the stream has, and when to report a gap. Its caller
writes the frames. All cursors read through one ``HistoryReader``, so that clients that reconnect at the same offset
share a read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias, get_args

from .._checks import check_synchronous
from ..sse import Event, encode
from .history import EXPIRE_BATCH, History, ReadResult, conflate
from .record import Gap, GapReason, Record

__all__ = [
    "BATCH_SIZE",
    "Cursor",
    "CursorRead",
    "HistoryReader",
    "Lagged",
    "OnGap",
    "Select",
    "StartPosition",
    "SubscriptionPolicy",
    "select_records",
]


# Bytes per write while catching up. A write may overshoot the sink's high-water mark by this much, for each stream.
# Larger batches would save few system calls.
BATCH_SIZE = 32 * 1024

OnGap: TypeAlias = Literal["signal", "close", "conflate"]
Select: TypeAlias = Callable[[Record], object]


class Lagged(Exception):  # caught by the dispatcher
    """Records are missing, and the policy closes the stream in that case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionPolicy:
    """How a stream starts, and how it handles gaps. Raises ``TypeError`` or ``ValueError`` for invalid options."""

    on_gap: OnGap = "signal"
    """What to do when records are missing: report the gap, close the stream, or send the latest record per key."""
    gap_event: str = "gap"
    """Name of the event that reports a gap."""
    replay: int = 0
    """Number of latest records to send to a client without an ID."""
    prime: bool = True
    """Whether to send an initial frame, with an ID and ``retry`` but no data, before the first record."""
    retry: int | None = None
    """The reconnection time, in milliseconds, which the first frame carries."""
    prefix: bytes = field(init=False)
    """The ``retry`` line that goes into the first frame; empty without ``retry``."""

    def __post_init__(self) -> None:
        if self.on_gap not in get_args(OnGap):
            raise ValueError(f"on_gap is one of {', '.join(get_args(OnGap))}, not {self.on_gap!r}")
        if Event("", self.gap_event).name is None:
            raise ValueError(f"gap_event is the name of an event, not {self.gap_event!r}")
        if type(self.replay) is not int or self.replay < 0:
            raise (ValueError if type(self.replay) is int else TypeError)(
                f"replay is a number of records, 0 or more, not {self.replay!r}"
            )
        Event("", retry=self.retry)  # validates retry
        object.__setattr__(self, "prefix", b"" if self.retry is None else b"retry: %d\n" % self.retry)


class StartPosition(NamedTuple):
    """Where a subscription starts to read."""

    offset: int
    """The offset to read after."""
    gap: Gap | None = None
    """The gap to report before the first record."""
    ignore_gaps_through: int = 0
    """Missing records up to this offset are not reported, because the client did not ask for them."""


class CursorRead(NamedTuple):
    """Frames to write, and what they contain."""

    frames: bytes
    records: list[Record]
    gap: Gap | None
    """What the gap event reports that precedes the records, if there is one."""
    more: bool
    """Whether there may be more to read now."""

    @property
    def gaps(self) -> int:
        """Number of gap events."""
        return 0 if self.gap is None else 1

    @property
    def events(self) -> int:
        """Number of records and gap events."""
        return len(self.records) + self.gaps


class Cursor:
    """Reads the history for one subscription, and renders its initial, gap and record frames.

    Not reusable after an exception.

    Args:
        reader: The reader of the Hub's history.
        policy: How the subscription starts, and what it does about gaps.
        start: Where to start.
        announced: Whether the client has received the ID of ``start``, and its gap.
    """

    __slots__ = (
        "_announced",
        "_conflating",
        "_epoch",
        "_gap",
        "_ignore_gaps_through",
        "_offset",
        "_policy",
        "_prefix",
        "_reader",
        "_since",
    )

    def __init__(
        self, reader: HistoryReader, policy: SubscriptionPolicy, start: StartPosition, *, announced: bool = False
    ) -> None:
        self._reader = reader
        self._policy = policy
        self._offset, self._gap, self._ignore_gaps_through = start
        self._epoch = reader.history.epoch
        self._announced = announced  # the client has received the initial frame, or a gap event in place of it
        self._prefix = b"" if announced else policy.prefix
        self._conflating = False
        self._since: dict[str, int] | None = None  # topics that were added later, and the offsets to read them after

    @property
    def prefix_unsent(self) -> bool:
        """Whether the next frame has to carry the prefix, and therefore differs from that of other subscriptions."""
        return bool(self._prefix)

    def seek(self, start: StartPosition, *, announced: bool) -> None:
        """Continue from ``start``. With ``announced``, the client has its ID and its gap, and neither is sent."""
        self._offset, self._gap, self._ignore_gaps_through = start
        self._epoch = self._reader.history.epoch
        if announced:
            self._gap, self._prefix, self._announced = None, b"", True

    def change_topics(self, before: frozenset[str], topics: frozenset[str]) -> None:
        """Read other topics from now on. Added topics are read after the current end of the history."""
        since = {topic: offset for topic, offset in (self._since or {}).items() if topic in topics}
        since.update(dict.fromkeys(topics - before, self._reader.history.end))
        self._since = since or None

    def find_gap(self, topics: frozenset[str]) -> Gap | None:
        """Return the gap that the next read would report, or ``None``.

        Applies a truncation of the history, and evicts a batch of expired records.
        """
        self._follow_truncation()
        if self._gap is not None:
            return self._gap
        self._reader.expire()
        missing_through, _ = self._reader.history.missing_after(self._offset, topics, self._since)
        return self._eviction_gap() if missing_through > self._ignore_gaps_through else None

    def read(self, topics: frozenset[str], select: Select | None, until: int | None = None) -> CursorRead:
        """Read about ``BATCH_SIZE`` bytes of frames, and advance. With ``until``, stop at that offset.

        Raises ``Lagged`` if records are missing under ``on_gap="close"``, and any exception of ``select``.
        """
        self._follow_truncation()
        result, announced = self._reader.read(self._offset, topics, BATCH_SIZE, self._since), self._announced
        if not announced:
            if self._gap is None and self._offset < result.missing_through <= self._ignore_gaps_through:
                self._offset = result.missing_through  # a replay starts after the records that were evicted since
                result = self._reader.read(self._offset, topics, BATCH_SIZE, self._since)
            self._ignore_gaps_through = self._offset  # from here on missing records are reported
        self._detect_gap(result)
        records, more, read_through = result.records, result.more, result.read_through
        if until is not None and read_through >= until:
            records, more, read_through = [record for record in records if record.offset <= until], False, until
        if more and not records:  # the ID of the initial frame is the one before the first record
            self._offset = max(self._offset, read_through)
            return CursorRead(b"", [], None, more)
        first, gap = self._initial_frame(), None
        if first is None:
            first, gap = self._gap_frame(result, announced=announced)
        if select is not None:
            records = select_records(records, select)
        if self._conflating and records:
            records = self._conflate(records, select, until)
        self._offset = max(self._offset, read_through)
        if records and not first:
            first, self._prefix = self._prefix, b""
        # If nothing was left out, all cursors share the frames, which are joined once.
        frames = result.frames if records is result.records else b"".join([record.frame for record in records])
        return CursorRead(first + frames, records, gap, more)

    def _follow_truncation(self) -> None:
        """Move back to the offset that the log was truncated to, with a gap."""
        history, epoch = self._reader.history, self._epoch
        if epoch == history.epoch:
            return
        event_id = f"{epoch}-{self._offset}"
        self._epoch = history.epoch
        self._offset, reason = history.resolve(event_id)
        if self._gap is None:
            self._gap = Gap(reason or GapReason.TRUNCATED, event_id)
        self._ignore_gaps_through = min(self._ignore_gaps_through, self._offset)
        self._since = {topic: min(offset, self._offset) for topic, offset in (self._since or {}).items()} or None

    def _detect_gap(self, result: ReadResult) -> None:
        """Set the gap if records are missing. Raises ``Lagged`` if the policy closes the stream in that case."""
        if result.missing_through > self._ignore_gaps_through and self._policy.on_gap == "conflate":
            self._conflating = True
        missing_through = result.unsuperseded_through if self._conflating else result.missing_through
        if self._gap is None and missing_through > self._ignore_gaps_through:
            if self._announced and self._policy.on_gap == "close":
                raise Lagged
            self._gap = self._eviction_gap()
        self._ignore_gaps_through = max(self._ignore_gaps_through, missing_through)

    def _initial_frame(self) -> bytes | None:
        """Return the initial frame, or ``b""`` if the client has it; ``None`` if a gap event comes instead."""
        announced, self._announced = self._announced, True
        if self._gap is not None:
            return None
        if announced or not self._policy.prime:
            return b""
        prefix, self._prefix = self._prefix, b""
        return prefix + b"id: %b\n\n" % self._reader.history.id_of(self._offset).encode()

    def _gap_frame(self, result: ReadResult, *, announced: bool) -> tuple[bytes, Gap]:
        """Return the frame of the gap event, and the gap that it reports.

        Its ID is that of the offset just before the first record, so that reconnecting with it does not report the same
        gap again. It is omitted after an eviction if the client has that ID already.
        """
        history, gap = self._reader.history, self._gap
        assert gap is not None  # noqa: S101  # checked by _initial_frame
        self._gap = None
        first_id, before, last_id = None, result.read_through if result.more else history.end, None
        if result.records:
            first_id, before = result.records[0].id, result.records[0].offset - 1
            last_id = history.id_of(result.missing_through) if result.missing_through > before else None
        reported = Gap(gap.reason, gap.after, first_id, last_id)
        frame = encode(reported.event(self._policy.gap_event))
        prefix, self._prefix = self._prefix, b""
        if announced and before == self._offset and gap.reason is GapReason.EVICTED:
            return prefix + frame, reported
        self._offset = before
        return b"%bid: %b\n%b" % (prefix, history.id_of(before).encode(), frame), reported

    def _conflate(self, records: list[Record], select: Select | None, until: int | None) -> list[Record]:
        """Drop superseded records, including those whose successor is beyond this batch."""
        kept = []
        for record in records:
            latest = self._reader.history.latest(record)
            if (
                latest is record
                or (until is not None and latest.offset > until)
                or not select_records([latest], select)
            ):
                kept.append(record)
        return conflate(kept)

    def _eviction_gap(self) -> Gap:
        return Gap(GapReason.EVICTED, self._reader.history.id_of(self._offset))


class HistoryReader:
    """Reads the history for all cursors. Caches the latest result, for clients that reconnect at the same offset."""

    def __init__(self, history: History, now: Callable[[], float]) -> None:
        self.history: History = history
        self._now = now
        self._cached: tuple[tuple[object, ...], ReadResult] | None = None  # the arguments, and the result

    def expire(self) -> None:
        """Evict up to ``EXPIRE_BATCH`` expired records."""
        self.history.expire(self._now(), EXPIRE_BATCH)

    def read(self, offset: int, topics: frozenset[str], max_bytes: int, since: Mapping[str, int] | None) -> ReadResult:
        """Evict up to ``EXPIRE_BATCH`` expired records, then read as ``History.read`` does."""
        history = self.history
        self.expire()
        if since:
            return history.read(offset, topics, max_bytes, since)
        key = offset, topics, max_bytes, history.end, history.records
        if self._cached is None or self._cached[0] != key:
            self._cached = key, history.read(offset, topics, max_bytes)
        return self._cached[1]

    def invalidate(self) -> None:
        """Drop the cached result. Required after changes other than appending and expiry, such as a truncation."""
        self._cached = None


def select_records(records: list[Record], select: Select | None) -> list[Record]:
    """Return the records for which ``select`` is true, or ``records`` itself if it is ``None``.

    Raises what ``select`` raises, and ``TypeError`` if it returns an awaitable or an iterator.
    """
    if select is None:
        return records
    selected = []
    for record in records:
        answer = select(record)
        if answer is True or (answer is not False and check_synchronous(answer, "select")):
            selected.append(record)
    return selected
