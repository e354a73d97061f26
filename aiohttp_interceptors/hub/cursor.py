"""Cursors, which track the position of a subscription in the history and render the frames to write next.

A ``Cursor`` determines which records come next, whether to send an initial frame, and when to report a gap. The caller
of the cursor writes the frames. All cursors of a Hub share a ``HistoryReader``. When several clients reconnect at the
same offset, this makes it possible to read the history only once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Literal, NamedTuple, TypeAlias, get_args

from .._checks import check_synchronous
from ..sse import Event, encode, frame_with_id
from .history import EXPIRE_BATCH, MAX_RECORDS_SCANNED, History, ReadResult, conflate
from .latest import NO_INITIAL_RECORDS, InitialRecords
from .record import Gap, GapReason, PresenceRecord, Record
from .topics import compile_patterns

__all__ = [
    "BATCH_SIZE",
    "Cursor",
    "CursorRead",
    "HistoryReader",
    "Lagged",
    "OnGap",
    "Replay",
    "Select",
    "StartPosition",
    "SubscriptionPolicy",
    "select_records",
]


# Size of a write while catching up, in bytes. On each stream, a write may exceed the high-water mark of the sink by
# this much. Increasing the size would save few system calls.
BATCH_SIZE = 32 * 1024

PARTIAL = "-partial"  # the end of the ID of a client that was cut within the latest records; no record has it

_offset = attrgetter("offset")

OnGap: TypeAlias = Literal["signal", "close", "conflate"]
Replay: TypeAlias = int | Literal["latest"]
Select: TypeAlias = Callable[[Record], object]


class Lagged(Exception):  # caught by the dispatcher
    """Raised when records are missing and the policy is to close the stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionPolicy:
    """How a stream starts and how it handles gaps.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option has an invalid value.
    """

    on_gap: OnGap = "signal"
    """What to do when records are missing.

    ``"signal"`` reports the gap, ``"close"`` closes the stream, and ``"conflate"`` sends the latest record of each key.
    """
    gap_event: str = "gap"
    """The name of the event that reports a gap."""
    replay: Replay = 0
    """The number of latest records to send to a client that connects without an ID.

    ``"latest"`` sends the latest record of each topic and key, also to a client for which records are missing.
    """
    prime: bool = True
    """Whether to send an initial frame before the first record. It contains an ID and ``retry``, but no data."""
    retry: int | None = None
    """The reconnection time to send in the first frame, in milliseconds."""
    presence_event: str | None = None
    """The name of the events that tell who is present; ``None`` sends none."""
    prefix: bytes = field(init=False)
    """The ``retry`` line of the first frame. Empty if ``retry`` is ``None``."""

    def __post_init__(self) -> None:
        if self.on_gap not in get_args(OnGap):
            raise ValueError(f"on_gap is one of {', '.join(get_args(OnGap))}, not {self.on_gap!r}")
        if Event("", self.gap_event).name is None:
            raise ValueError(f"gap_event is the name of an event, not {self.gap_event!r}")
        if self.presence_event is not None and Event("", self.presence_event).name is None:
            raise ValueError(f"presence_event is the name of an event, or None, not {self.presence_event!r}")
        if self.replay != "latest" and (type(self.replay) is not int or self.replay < 0):
            raise (ValueError if isinstance(self.replay, (int, str)) and self.replay is not True else TypeError)(
                f"replay is a number of records, 0 or more, or 'latest', not {self.replay!r}"
            )
        Event("", retry=self.retry)  # validates retry
        object.__setattr__(self, "prefix", b"" if self.retry is None else b"retry: %d\n" % self.retry)


class StartPosition(NamedTuple):
    """Where a subscription starts reading."""

    offset: int
    """Reading starts after this offset."""
    gap: Gap | None = None
    """The gap to report before the first record."""
    ignore_gaps_through: int = 0
    """Missing records up to this offset are not reported, because the client did not ask for them."""
    newcomer: bool = False
    """Whether the client has no earlier state, so that it gets the initial records before those after ``offset``."""


class CursorRead(NamedTuple):
    """The frames to write and a description of their contents."""

    frames: bytes
    records: list[Record]
    gap: Gap | None
    """The gap that is reported before the records, or ``None``."""
    more: bool
    """Whether there may be more records to read immediately."""

    @property
    def gaps(self) -> int:
        """The number of gap events."""
        return 0 if self.gap is None else 1

    @property
    def events(self) -> int:
        """The number of records and gap events."""
        return len(self.records) + self.gaps


class Cursor:
    """Reads the history for a subscription and renders the initial frame, gap events and records.

    A cursor must not be used again after it has raised an exception.

    Args:
        reader: The reader of the Hub's history.
        policy: How the subscription starts and how it handles gaps.
        start: Where to start reading.
        announced: Whether the client has already received the ID and the gap of ``start``.
    """

    __slots__ = (
        "_announced",
        "_conflating",
        "_epoch",
        "_erasures",
        "_gap",
        "_ignore_gaps_through",
        "_initial",
        "_initial_sent",
        "_newcomer",
        "_offset",
        "_policy",
        "_prefix",
        "_reader",
        "_since",
        "presence_known",
    )

    def __init__(
        self, reader: HistoryReader, policy: SubscriptionPolicy, start: StartPosition, *, announced: bool = False
    ) -> None:
        self._reader = reader
        self._policy = policy
        self._offset, self._gap, self._ignore_gaps_through, self._newcomer = start
        self._initial: InitialRecords = NO_INITIAL_RECORDS  # to send before the records after the offset
        self._initial_sent = 0
        self._erasures = 0  # those of the history when the initial records were set
        self._epoch = reader.history.epoch
        self._announced = announced  # the client has received the initial frame or a gap event instead
        self._prefix = b"" if announced else policy.prefix
        self._conflating = False
        self.presence_known: int | None = None  # the changes of its group's presence that the client knows
        self._since: dict[str, int] | None = None  # start offsets of topics that were added later

    @property
    def offset(self) -> int:
        """The offset up to which the client has received records, or will have with those that are being sent."""
        return self._offset

    def count_missing(self, topics: frozenset[str]) -> int:
        """Return the number of records of these topics that are still to be read."""
        return self._reader.history.count_after(self._offset, topics, self._since)

    def lacks_evicted(self, topics: frozenset[str]) -> bool:
        """Return whether records of these topics were evicted before they were read."""
        if self._gap is not None:
            return True
        missing_through, _ = self._reader.history.missing_after(self._offset, topics, self._since)
        return missing_through > self._ignore_gaps_through

    def take_prefix(self) -> bytes:
        """Return the prefix of the next frame, which the caller sends."""
        prefix, self._prefix = self._prefix, b""
        return prefix

    @property
    def has_initial_records(self) -> bool:
        """Whether there are records to send before those after the offset."""
        return self._initial_sent < len(self._initial)

    @property
    def prefix_unsent(self) -> bool:
        """Whether the next frame must contain the prefix, so that it differs from the frame of other subscriptions."""
        return bool(self._prefix)

    def seek(self, start: StartPosition, *, announced: bool) -> None:
        """Continue reading from ``start``.

        If ``announced`` is true, the client already has the ID and the gap of ``start``, so they are not sent again.
        """
        self._offset, self._gap, self._ignore_gaps_through, self._newcomer = start
        if announced or self._newcomer or self._gap is not None:  # the client has everything, or gets it otherwise
            self._set_initial(NO_INITIAL_RECORDS)
        self._epoch = self._reader.history.epoch
        if announced:
            self._gap, self._prefix, self._announced = None, b"", True

    def change_topics(self, before: frozenset[str], topics: frozenset[str]) -> None:
        """Read ``topics`` instead of ``before`` from now on.

        Added topics are read after the current end of the history. If the policy is to send the latest records, those
        of the added topics come first.
        """
        self.presence_known = None
        self._drop_erased()
        history, added = self._reader.history, topics - before
        since = {topic: offset for topic, offset in (self._since or {}).items() if topic in topics}
        since.update(dict.fromkeys(added, history.end))
        self._since = since or None
        is_latest = self._policy.replay == "latest" and not self._newcomer and self._gap is None
        if not (is_latest or self.has_initial_records):
            return
        matches, matched = compile_patterns(topics), compile_patterns(before)
        initial = [record for record in self._initial.records[self._initial_sent :] if matches(record.topic)]
        if is_latest and added:
            latest = history.latest_records.read(added).records
            initial = sorted([*initial, *(each for each in latest if not matched(each.topic))], key=_offset)
        self._set_initial(InitialRecords(initial))

    def find_gap(self, topics: frozenset[str]) -> Gap | None:
        """Return the gap that the next read would report, or ``None``.

        If the history was truncated, move back first. This also evicts a batch of expired records.
        """
        self._follow_truncation()
        if self._gap is not None:
            return self._gap
        self._reader.expire()
        missing_through, _ = self._reader.history.missing_after(self._offset, topics, self._since)
        return self._eviction_gap() if missing_through > self._ignore_gaps_through else None

    def read(self, topics: frozenset[str], select: Select | None, until: int | None = None) -> CursorRead:
        """Read about ``BATCH_SIZE`` bytes of frames and advance.

        If ``until`` is given, stop at that offset. Exceptions raised by ``select`` propagate.

        Raises:
            Lagged: If records are missing and ``on_gap`` is ``"close"``.
        """
        self._follow_truncation()
        self._drop_erased()
        initial = self._next_initial_batch(topics, select, until)
        if initial is not None:
            return initial
        announced, result = self._announced, self._read_history(topics)
        if self._gap is not None and self._policy.replay == "latest" and self._read_initial(topics, until):
            return self._initial_batch(select, self._take_gap())
        records, more, read_through = result.records, result.more, result.read_through
        if until is not None and read_through >= until:
            records, more, read_through = [record for record in records if record.offset <= until], False, until
        if more and not records:  # delay the initial frame, as its ID precedes the first record
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
        # If no record was left out, use the frames that were joined once for all cursors.
        frames = result.frames if records is result.records else b"".join([record.frame for record in records])
        return CursorRead(first + frames, records, gap, more)

    def _read_history(self, topics: frozenset[str]) -> ReadResult:
        """Read the history after the offset, and set the gap if records are missing.

        Raises:
            Lagged: If records are missing and the policy is to close the stream.
        """
        result = self._reader.read(self._offset, topics, BATCH_SIZE, self._since)
        if not self._announced:
            if self._gap is None and self._offset < result.missing_through <= self._ignore_gaps_through:
                self._offset = result.missing_through  # start the replay after the evicted records
                result = self._reader.read(self._offset, topics, BATCH_SIZE, self._since)
            self._ignore_gaps_through = self._offset  # report missing records from here on
        self._detect_gap(result)
        return result

    def _set_initial(self, initial: InitialRecords) -> None:
        self._initial, self._initial_sent = initial, 0
        self._erasures = self._reader.history.erasures

    def _drop_erased(self) -> None:
        """If a topic was erased since the initial records were set, send only those that the history still has."""
        history = self._reader.history
        if self.has_initial_records and self._erasures != history.erasures:
            rest = self._initial.records[self._initial_sent :]
            self._set_initial(InitialRecords([record for record in rest if history.holds(record)]))

    def _read_initial(self, topics: frozenset[str], until: int | None) -> bool:
        """Set the records to send before those after the offset, and return whether there are any.

        Latest records are those at the end of the history, or at ``until``, so that reading continues there.
        """
        history = self._reader.history
        if self._policy.replay == "latest":
            initial = history.latest_records.read(topics)
            if until is not None and initial.records and initial.records[-1].offset > until:
                initial = InitialRecords([record for record in initial.records if record.offset <= until])
            if initial.records:
                self._offset = self._ignore_gaps_through = history.end if until is None else min(history.end, until)
        else:
            initial = history.last_of_finished(topics, self._offset)
        self._set_initial(initial)
        return bool(initial.records)

    def _next_initial_batch(
        self, topics: frozenset[str], select: Select | None, until: int | None
    ) -> CursorRead | None:
        gap = None
        if self._newcomer:
            self._newcomer = False
            if self._read_initial(topics, until):
                gap = self._take_gap()
        return self._initial_batch(select, gap) if self.has_initial_records else None

    def _initial_batch(self, select: Select | None, gap: Gap | None = None) -> CursorRead:
        """Return the next initial records.

        Only the last one has an ID, that of the offset. The first one of several latest records has an ID that is
        unknown when the client comes back: one that was cut gets a gap event, and all of them again.
        """
        first, numbers = self._initial_sent, self._select_initial(select)
        records, frames = self._initial.records, self._initial.frames
        batch = [frames[number] for number in numbers]
        is_last = not self.has_initial_records
        is_cut_unnoticed = gap is None and not first and self._policy.replay == "latest"
        if batch and is_cut_unnoticed and not (is_last and len(batch) == 1):
            batch[0] = frame_with_id(f"{self._epoch}{PARTIAL}", batch[0])
        if gap is not None:
            batch.insert(0, encode(gap.event(self._policy.gap_event)))
        if is_last:
            self._set_initial(NO_INITIAL_RECORDS)
            if batch:
                batch[-1] = frame_with_id(self._reader.history.id_of(self._offset), batch[-1])
                self._announced, self._ignore_gaps_through = True, self._offset
        if batch:
            batch[0], self._prefix = self._prefix + batch[0], b""
        return CursorRead(b"".join(batch), [records[number] for number in numbers], gap, more=True)

    def _select_initial(self, select: Select | None) -> list[int]:
        """Return the indexes of about ``BATCH_SIZE`` bytes of initial records, and advance.

        The last one that ``select`` accepts is held back until it is known whether there is another one.
        """
        records, frames, start = self._initial.records, self._initial.frames, self._initial_sent
        accepted: list[int] = []
        size = 0
        number = start
        while number < len(records) and (size < BATCH_SIZE or len(accepted) <= 1):
            if number - start >= MAX_RECORDS_SCANNED and not accepted:
                break
            if select is None or select_records([records[number]], select):
                accepted.append(number)
                size += len(frames[number])
            number += 1
        if number < len(records) and accepted and select is not None:
            number = accepted.pop()
        self._initial_sent = number
        return accepted

    def _take_gap(self) -> Gap | None:
        gap, self._gap = self._gap, None
        return gap

    def _follow_truncation(self) -> None:
        """If the log was truncated, move back to where it was truncated and set a gap."""
        history, epoch = self._reader.history, self._epoch
        if epoch == history.epoch:
            return
        event_id = f"{epoch}-{self._offset}"
        self._set_initial(NO_INITIAL_RECORDS)
        self._epoch = history.epoch
        self._offset, reason = history.resolve(event_id)
        if self._gap is None:
            self._gap = Gap(reason or GapReason.TRUNCATED, event_id)
        self._ignore_gaps_through = min(self._ignore_gaps_through, self._offset)
        self._since = {topic: min(offset, self._offset) for topic, offset in (self._since or {}).items()} or None

    def _detect_gap(self, result: ReadResult) -> None:
        """Set the gap if records are missing.

        Raises:
            Lagged: If records are missing and the policy is to close the stream.
        """
        if result.missing_through > self._ignore_gaps_through and self._policy.on_gap == "conflate":
            self._conflating = True
        missing_through = result.unsuperseded_through if self._conflating else result.missing_through
        if self._gap is None and missing_through > self._ignore_gaps_through:
            if self._announced and self._policy.on_gap == "close":
                raise Lagged
            self._gap = self._eviction_gap()
        self._ignore_gaps_through = max(self._ignore_gaps_through, missing_through)

    def _initial_frame(self) -> bytes | None:
        """Return the initial frame.

        If the client already has it or the policy disables it, return ``b""``. If a gap event must be sent instead,
        return ``None``.
        """
        announced, self._announced = self._announced, True
        if self._gap is not None:
            return None
        if announced or not self._policy.prime:
            return b""
        prefix, self._prefix = self._prefix, b""
        return prefix + b"id: %b\n\n" % self._reader.history.id_of(self._offset).encode()

    def _gap_frame(self, result: ReadResult, *, announced: bool) -> tuple[bytes, Gap]:
        """Return the frame of the gap event and the gap that it reports.

        The ID of the event belongs to the offset just before the first record. This prevents the same gap from being
        reported again when the client reconnects. After an eviction, the ID is omitted if the client already has it.
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
        """Drop superseded records, even if the record that supersedes them is not in this batch."""
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
    """Reads the history for all cursors.

    The latest result is cached, so that clients that reconnect at the same offset share it.
    """

    def __init__(self, history: History, now: Callable[[], float]) -> None:
        self.history: History = history
        self._now = now
        self._cached: tuple[tuple[object, ...], ReadResult] | None = None  # arguments and result

    def expire(self) -> None:
        """Evict up to ``EXPIRE_BATCH`` expired records."""
        self.history.expire(self._now(), EXPIRE_BATCH)

    def read(self, offset: int, topics: frozenset[str], max_bytes: int, since: Mapping[str, int] | None) -> ReadResult:
        """Evict up to ``EXPIRE_BATCH`` expired records, then read like ``History.read``."""
        history = self.history
        self.expire()
        if since:
            return history.read(offset, topics, max_bytes, since)
        key = offset, topics, max_bytes, history.end, history.records
        if self._cached is None or self._cached[0] != key:
            self._cached = key, history.read(offset, topics, max_bytes)
        return self._cached[1]

    def invalidate(self) -> None:
        """Drop the cached result.

        This is required after any change to the history except appending and expiry, for example after a truncation.
        """
        self._cached = None


def select_records(records: list[Record], select: Select | None) -> list[Record]:
    """Return the records for which ``select`` returns a true value.

    If ``select`` is ``None``, return ``records`` itself. Exceptions raised by ``select`` propagate.

    Raises:
        TypeError: If ``select`` returns an awaitable or an iterator.
    """
    if select is None:
        return records
    selected: list[Record] = []
    for record in records:
        if type(record) is PresenceRecord:
            selected.append(record)
            continue
        answer = select(record)
        if answer is True or (answer is not False and check_synchronous(answer, "select")):
            selected.append(record)
    return selected
