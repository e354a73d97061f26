"""Where a stream is that does not have everything: what to write next, and what to say that is missing."""

from __future__ import annotations

from typing import NamedTuple

from ..sse.wire import encode
from .audience import BATCH, Audience, Select, selected
from .fanout import Fanout
from .gap import Gap, GapReason
from .log import Reading, conflated
from .policy import Policy
from .record import Record

__all__ = ["Beginning", "Lagged", "Reader", "Taken"]


class Lagged(Exception):  # never leaves the Hub
    """The log no longer has what a stream missed, which for such a stream is the end."""


class Beginning(NamedTuple):
    """From where a stream goes on."""

    position: int
    gap: Gap | None = None
    """What is missing before."""
    excused: int = 0
    """Up to here nothing that is missing is told of: its client asked for nothing in particular."""


class Taken(NamedTuple):
    """What a reader took from the log."""

    frames: bytes
    records: int
    gaps: int
    more: bool
    """Whether there may be more to take now."""


class Reader:
    """Read the log from a position of one's own. It decides; who has it writes."""

    __slots__ = ("_begun", "_conflates", "_epoch", "_excused", "_fanout", "_gap", "_policy", "_position", "_prefix",
                 "_since")  # fmt: skip

    def __init__(self, fanout: Fanout, policy: Policy, beginning: Beginning, *, begun: bool = False) -> None:
        self._fanout = fanout
        self._policy = policy
        # Of what is up to _excused the client knows that something is missing.
        self._position, self._gap, self._excused = beginning
        self._epoch = fanout.log.epoch
        self._begun = begun  # the client has been told from where it goes on
        self._prefix = b"" if begun else policy.prefix
        self._conflates = False
        self._since: dict[str, int] | None = None  # topics that were added later than the position

    @property
    def waits(self) -> bool:
        """Whether no frame has come yet to be the first, so that the first record cannot be like everybody's."""
        return bool(self._prefix)

    def go_on(self, beginning: Beginning, *, told: bool) -> None:
        """Go on from there, with that gap, if the client has not been ``told`` so."""
        self._position, self._gap, self._excused = beginning
        self._epoch = self._fanout.log.epoch
        if told:
            self._gap, self._prefix, self._begun = None, b"", True

    def change(self, before: frozenset[str], topics: frozenset[str]) -> None:
        """Read other topics from now on; those that are new count from the log's end."""
        since = {name: end for name, end in (self._since or {}).items() if name in topics}
        since.update(dict.fromkeys(topics - before, self._fanout.log.end))
        self._since = since or None

    def gap(self, topics: frozenset[str]) -> Gap | None:
        """Return what the client would be told now that is missing."""
        self._follow_rewind()
        if self._gap is not None:
            return self._gap
        self._fanout.expire()
        missing, _ = self._fanout.log.gone(self._position, topics, self._since)
        return self._evicted() if missing > self._excused else None

    def take(self, audience: Audience, until: int | None = None) -> Taken:
        """Take the next frames, of about a batch; of records up to a position, if there is one.

        Raises ``Lagged`` when the stream is not to go on, and what the select function raises.
        """
        self._follow_rewind()
        reading, begun = self._read(audience), self._begun
        if not begun:
            if self._gap is None and self._position < reading.missing <= self._excused:
                self._position = reading.missing  # its client asked for no record in particular, and sees no hole
                reading = self._read(audience)
            self._excused = self._position  # from here on it has each record, or is told
        self._note_missing(reading)
        records, more, through = reading.records, reading.more, reading.through
        if until is not None and through >= until:
            records, more, through = [record for record in records if record.position <= until], False, until
        if more and not records:  # what there is to say is said with the first record, or at the end
            self._position = max(self._position, through)
            return Taken(b"", 0, 0, more)
        told = self._beginning()
        gaps = 0
        if told is None:
            told, gaps = self._gap_frame(reading, begun=begun), 1
        if audience.select is not None:
            records = selected(records, audience.select)
        if self._conflates and records:
            records = self._conflated(records, audience.select, until)
        self._position = max(self._position, through)
        if records and not told:
            told, self._prefix = self._prefix, b""
        frames = reading.frames if records is reading.records else b"".join([record.frame for record in records])
        return Taken(told + frames, len(records), gaps, more)

    def _follow_rewind(self) -> None:
        """Go back to where the log of a broker that was rewound goes on."""
        log, epoch = self._fanout.log, self._epoch
        if epoch == log.epoch:
            return
        had = f"{epoch}-{self._position}"
        self._epoch = log.epoch
        self._position, reason = log.locate(had)
        if self._gap is None:
            self._gap = Gap(reason or GapReason.REWOUND, had)
        self._excused = min(self._excused, self._position)
        self._since = {name: min(end, self._position) for name, end in (self._since or {}).items()} or None

    def _read(self, audience: Audience) -> Reading:
        reading = self._fanout.read(self._position, audience.topics, BATCH, self._since)
        if reading.missing > self._excused and self._policy.on_gap == "conflate":
            self._conflates = True
        return reading

    def _conflated(self, records: list[Record], select: Select | None, until: int | None) -> list[Record]:
        """Leave out the records that a later one which is still to come makes up for."""
        kept = []
        for record in records:
            latest = self._fanout.log.latest(record)
            if latest is record or (until is not None and latest.position > until) or not selected([latest], select):
                kept.append(record)
        return conflated(kept)

    def _note_missing(self, reading: Reading) -> None:
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
        return prefix + b"id: %b\n\n" % self._fanout.log.id_of(self._position).encode()

    def _gap_frame(self, reading: Reading, *, begun: bool) -> bytes:
        """Return the frame that tells of a gap, with an id so that it tells once; but none that was sent before."""
        log, gap = self._fanout.log, self._gap
        assert gap is not None  # noqa: S101  # the caller has found it
        self._gap = None
        first_id, before, last = None, reading.through if reading.more else log.end, None
        if reading.records:
            first_id, before = reading.records[0].id, reading.records[0].position - 1
            last = log.id_of(reading.missing) if reading.missing > before else None
        frame = encode(Gap(gap.reason, gap.after, first_id, last).event(self._policy.gap_event))
        prefix, self._prefix = self._prefix, b""
        if begun and before == self._position and gap.reason is GapReason.EVICTED:
            return prefix + frame
        self._position = before
        return b"%bid: %b\n%b" % (prefix, log.id_of(before).encode(), frame)

    def _evicted(self) -> Gap:
        return Gap(GapReason.EVICTED, self._fanout.log.id_of(self._position))
