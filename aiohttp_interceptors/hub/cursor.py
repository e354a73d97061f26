"""What all streams of one kind have in common for the Hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias, get_args

from .._checks import synchronous
from ..sse import Event, encode
from .history import EXPIRED, History, ReadResult, conflated
from .record import Gap, GapReason, Record

__all__ = [
    "BATCH",
    "Cursor",
    "CursorRead",
    "HistoryReader",
    "Lagged",
    "OnGap",
    "Select",
    "StartPosition",
    "SubscriptionPolicy",
    "selected",
]


OnGap: TypeAlias = Literal["signal", "close", "conflate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionPolicy:
    """How streams begin, and what they do about a gap. Raises ``TypeError`` or ``ValueError`` for what cannot work."""

    on_gap: OnGap = "signal"
    """What happens to one that was paused for so long that the log has not all of what it missed."""
    gap_event: str = "gap"
    """The name of the event that tells of a gap."""
    replay: int = 0
    """The latest records that one without a position begins with."""
    prime: bool = True
    """Whether there is a first frame with an id, although nothing was published."""
    retry: int | None = None
    """The reconnection time in the first frame, in milliseconds."""
    prefix: bytes = field(init=False)
    """The lines that go into the first frame."""

    def __post_init__(self) -> None:
        if self.on_gap not in get_args(OnGap):
            raise ValueError(f"on_gap is one of {', '.join(get_args(OnGap))}, not {self.on_gap!r}")
        if Event("", self.gap_event).name is None:
            raise ValueError(f"gap_event is the name of an event, not {self.gap_event!r}")
        if type(self.replay) is not int or self.replay < 0:
            raise (ValueError if type(self.replay) is int else TypeError)(
                f"replay is a number of records, 0 or more, not {self.replay!r}"
            )
        Event("", retry=self.retry)
        object.__setattr__(self, "prefix", b"" if self.retry is None else b"retry: %d\n" % self.retry)


# Bytes that are written to a stream in one piece. A larger one would save no system call worth speaking of, and it is
# what the transport may hold beyond its limit for each stream that does not read.
BATCH = 32 * 1024

Select: TypeAlias = Callable[[Record], object]


class Lagged(Exception):  # never leaves the Hub
    """The log no longer has what a stream missed, which for such a stream is the end."""


class StartPosition(NamedTuple):
    """From where a stream goes on."""

    offset: int
    gap: Gap | None = None
    """What is missing before."""
    excused: int = 0
    """Up to here nothing that is missing is told of: its client asked for nothing in particular."""


class CursorRead(NamedTuple):
    """What a reader took from the log."""

    frames: bytes
    records: int
    gaps: int
    more: bool
    """Whether there may be more to take now."""


class HistoryReader:
    """Read the log for all that have a position in it. Equal readings one after the other are made once.

    Of a thousand clients that were cut off together, all ask for the same.
    """

    def __init__(self, log: History, now: Callable[[], float]) -> None:
        self.log: History = log
        self._now = now
        self._latest: tuple[tuple[object, ...], ReadResult] | None = None

    def expire(self) -> None:
        """Evict some of what is too old."""
        self.log.expire(self._now(), EXPIRED)

    def read(self, offset: int, topics: frozenset[str], most: int, since: Mapping[str, int] | None) -> ReadResult:
        """Read about as many bytes of the log, from which what is too old is gone."""
        log = self.log
        self.expire()
        if since:
            return log.after(offset, topics, most, since)
        asked = offset, topics, most, log.end, log.records
        if self._latest is None or self._latest[0] != asked:
            self._latest = asked, log.after(offset, topics, most)
        return self._latest[1]

    def forget(self) -> None:
        """Forget the latest reading, after the log's past has changed."""
        self._latest = None


class Cursor:
    """Read the log from a position of one's own. It decides; who has it writes."""

    __slots__ = (
        "_begun",
        "_conflates",
        "_epoch",
        "_excused",
        "_gap",
        "_offset",
        "_policy",
        "_prefix",
        "_shared",
        "_since",
    )  # fmt: skip

    def __init__(
        self, shared: HistoryReader, policy: SubscriptionPolicy, beginning: StartPosition, *, begun: bool = False
    ) -> None:
        self._shared = shared
        self._policy = policy
        # Of what is up to _excused the client knows that something is missing.
        self._offset, self._gap, self._excused = beginning
        self._epoch = self._shared.log.epoch
        self._begun = begun  # the client has been told from where it goes on
        self._prefix = b"" if begun else policy.prefix
        self._conflates = False
        self._since: dict[str, int] | None = None  # topics that were added later than the position

    @property
    def waits(self) -> bool:
        """Whether no frame has come yet to be the first, so that the first record cannot be like everybody's."""
        return bool(self._prefix)

    def go_on(self, beginning: StartPosition, *, told: bool) -> None:
        """Go on from there, with that gap, if the client has not been ``told`` so."""
        self._offset, self._gap, self._excused = beginning
        self._epoch = self._shared.log.epoch
        if told:
            self._gap, self._prefix, self._begun = None, b"", True

    def change(self, before: frozenset[str], topics: frozenset[str]) -> None:
        """Read other topics from now on; those that are new count from the log's end."""
        since = {name: end for name, end in (self._since or {}).items() if name in topics}
        since.update(dict.fromkeys(topics - before, self._shared.log.end))
        self._since = since or None

    def gap(self, topics: frozenset[str]) -> Gap | None:
        """Return what the client would be told now that is missing."""
        self._follow_rewind()
        if self._gap is not None:
            return self._gap
        self._shared.expire()
        missing, _ = self._shared.log.gone(self._offset, topics, self._since)
        return self._evicted() if missing > self._excused else None

    def take(self, topics: frozenset[str], select: Select | None, until: int | None = None) -> CursorRead:
        """Take the next frames, of about a batch; of records up to a position, if there is one.

        Raises ``Lagged`` when the stream is not to go on, and what the select function raises.
        """
        self._follow_rewind()
        reading, begun = self._read(topics), self._begun
        self._note_missing(reading)
        records, more, through = reading.records, reading.more, reading.through
        if until is not None and through >= until:
            records, more, through = [record for record in records if record.offset <= until], False, until
        if more and not records:  # what there is to say is said with the first record, or at the end
            self._offset = max(self._offset, through)
            return CursorRead(b"", 0, 0, more)
        told = self._beginning()
        gaps = 0
        if told is None:
            told, gaps = self._gap_frame(reading, begun=begun), 1
        if select is not None:
            records = selected(records, select)
        if self._conflates and records:
            records = self._conflated(records, select, until)
        self._offset = max(self._offset, through)
        if records and not told:
            told, self._prefix = self._prefix, b""
        frames = reading.frames if records is reading.records else b"".join([record.frame for record in records])
        return CursorRead(told + frames, len(records), gaps, more)

    def _follow_rewind(self) -> None:
        """Go back to where the log of a broker that was rewound goes on."""
        log, epoch = self._shared.log, self._epoch
        if epoch == log.epoch:
            return
        had = f"{epoch}-{self._offset}"
        self._epoch = log.epoch
        self._offset, reason = log.locate(had)
        if self._gap is None:
            self._gap = Gap(reason or GapReason.REWOUND, had)
        self._excused = min(self._excused, self._offset)
        self._since = {name: min(end, self._offset) for name, end in (self._since or {}).items()} or None

    def _read(self, topics: frozenset[str]) -> ReadResult:
        reading = self._shared.read(self._offset, topics, BATCH, self._since)
        if reading.missing > self._excused and self._policy.on_gap == "conflate":
            self._conflates = True
        return reading

    def _conflated(self, records: list[Record], select: Select | None, until: int | None) -> list[Record]:
        """Leave out the records that a later one which is still to come makes up for."""
        kept = []
        for record in records:
            latest = self._shared.log.latest(record)
            if latest is record or (until is not None and latest.offset > until) or not selected([latest], select):
                kept.append(record)
        return conflated(kept)

    def _note_missing(self, reading: ReadResult) -> None:
        """Note what is to be told of as missing. Raises ``Lagged`` when the stream is not to go on."""
        missing = reading.lost if self._conflates else reading.missing
        if self._gap is None and missing > self._excused:
            if self._begun and self._policy.on_gap == "close":
                raise Lagged
            self._gap = self._evicted()
        self._excused = max(self._excused, missing)

    def _beginning(self) -> bytes | None:
        """Return what says from where the stream goes on, if its client does not know; ``None`` if that is a gap."""
        begun, self._begun = self._begun, True
        if self._gap is not None:
            return None
        if begun or not self._policy.prime:
            return b""
        prefix, self._prefix = self._prefix, b""
        return prefix + b"id: %b\n\n" % self._shared.log.id_of(self._offset).encode()

    def _gap_frame(self, reading: ReadResult, *, begun: bool) -> bytes:
        """Return the frame that tells of a gap, with an id so that it tells once; but none that was sent before."""
        log, gap = self._shared.log, self._gap
        assert gap is not None  # noqa: S101  # the caller has found it
        self._gap = None
        first_id, before, last = None, reading.through if reading.more else log.end, None
        if reading.records:
            first_id, before = reading.records[0].id, reading.records[0].offset - 1
            last = log.id_of(reading.missing) if reading.missing > before else None
        frame = encode(Gap(gap.reason, gap.after, first_id, last).event(self._policy.gap_event))
        prefix, self._prefix = self._prefix, b""
        if begun and before == self._offset and gap.reason is GapReason.EVICTED:
            return prefix + frame
        self._offset = before
        return b"%bid: %b\n%b" % (prefix, log.id_of(before).encode(), frame)

    def _evicted(self) -> Gap:
        return Gap(GapReason.EVICTED, self._shared.log.id_of(self._offset))


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
