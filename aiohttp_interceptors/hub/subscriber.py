"""One stream of a Hub: live, or behind with a position of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from ..sse.channel import CloseReason
from ..sse.wire import encode
from .audience import BATCH, Audience, Outlet
from .gap import Gap, GapReason
from .log import Reading, first
from .policy import Policy
from .record import Record
from .topic import check_pattern

if TYPE_CHECKING:
    from .fanout import Fanout

__all__ = ["OnEnd", "Subscriber"]

OnEnd: TypeAlias = Callable[[CloseReason, Exception | None], None]


class Subscriber:
    """What a Hub knows of one open stream: its topics, and how far it has come.

    A live one has what its audience has. One whose outlet is paused has a position and nothing else, and reads the log
    from there when there is room again. ``add`` and ``remove`` may be called from any thread.
    """

    __slots__ = ("_audience", "_begun", "_bytes", "_conflates", "_events", "_excused", "_fanout", "_gap", "_live",
                 "_on_end", "_policy", "_position", "_prefix", "_since", "_started", "outlet")  # fmt: skip

    def __init__(  # made by the Hub alone
        self,
        fanout: Fanout,
        audience: Audience,
        outlet: Outlet,
        on_end: OnEnd,
        policy: Policy,
        position: int,
        gap: Gap | None,
    ) -> None:
        self._fanout = fanout
        self._audience: Audience | None = audience
        self._on_end = on_end
        self._policy = policy
        self._position = position
        self._gap = gap
        self._prefix = policy.prefix
        self._events = self._bytes = 0  # while live, less what its audience had when it became that
        self._started = self._live = self._conflates = False
        self._begun = False  # its client has been told from where it goes on
        self._excused = 0  # up to here its client knows that something is missing
        self._since: dict[str, int] | None = None  # topics that were added later than the position
        self.outlet: Outlet = outlet

    @property
    def topics(self) -> frozenset[str]:
        """Names and wildcards; none once the stream is over."""
        return frozenset() if self._audience is None else self._audience.topics

    @property
    def live(self) -> bool:
        """Whether it has all that was published."""
        return self._live

    @property
    def events(self) -> int:
        """Events that were written, gaps among them."""
        return self._events + (self._audience.events if self._live and self._audience else 0)

    @property
    def written(self) -> int:
        """Bytes of those events, and of the first frame."""
        return self._bytes + (self._audience.bytes if self._live and self._audience else 0)

    # Topics.

    def add(self, *topics: str) -> None:
        """Hear of these names and wildcards too, from now on. Once the stream is over, nothing happens.

        Raises ``TypeError`` or ``ValueError`` for what is no topic.
        """
        added = [check_pattern(topic) for topic in topics]
        self._fanout.in_loop(lambda: self._change(self.topics.union(added)))

    def remove(self, *topics: str) -> None:
        """Hear no more of these names and wildcards, as they were given. Others may still match their topics."""
        self._fanout.in_loop(lambda: self._change(self.topics.difference(topics)))

    def _change(self, topics: frozenset[str]) -> None:
        audience = self._audience
        if audience is None or topics == audience.topics:
            return
        if self._live and audience.pending:
            self._fanout.flush(audience)  # what was published before goes to whom it was published for
        now_live = self._live
        if now_live:
            self._fall_behind()
            self._position = self._fanout.log.end
        elif self._started:  # before, all topics count from where it begins, as if they had been given at once
            self._since = {name: end for name, end in (self._since or {}).items() if name in topics}
            self._since.update(dict.fromkeys(topics - audience.topics, self._fanout.log.end))
        audience.leave(self)
        self._audience = self._fanout.move(audience, topics)
        if self._started and not self.outlet.paused:
            self._wait()

    # The life of a subscriber.

    def gap(self) -> Gap | None:
        """Return what its client would be told now that is missing."""
        if self._gap is not None:
            return self._gap
        reading = self._fanout.read(self._position, self.topics, 1, self._since)
        return Gap(GapReason.EVICTED, self._fanout.log.id_of(self._position), None) if reading.missing else None

    def count_gap(self) -> None:
        """Count a gap that its client was told of by somebody else."""
        self._fanout.gaps += 1

    def start(self, position: int | None = None, gap: Gap | None = None, *, told: bool = False) -> None:
        """Begin to write, in the next flush. Twice is once.

        With a ``position`` it goes on from there, with that ``gap``, if its client has not been ``told`` so.
        """
        if self._started or self._audience is None:
            return
        self._started = True
        if position is not None:
            self._position, self._gap = position, gap
        if told:
            self._gap, self._prefix, self._begun = None, b"", True
        if not self.outlet.paused:
            self._wait()

    def pause(self) -> None:
        """Note that the outlet takes no more: the position is all that is kept from now on."""
        if self._live:
            self._fall_behind()

    def resume(self) -> None:
        """Catch up, in the next flush."""
        if self._started and not self._live and self._audience is not None:
            self._wait()

    def close(self) -> None:
        """Hear of nothing any more. Twice is once."""
        if self._live and self._audience is not None and self._audience.pending:
            self._fanout.flush(self._audience)  # what was published before its end is for it too
        audience = self._audience
        if audience is not None:
            if self._live:
                self._fall_behind()
            audience.leave(self)
            self._audience = None
            self._fanout.leave(audience)

    def fail(self, error: Exception) -> None:
        """End the stream because of an error."""
        self._end(CloseReason.ERROR, error)

    def _end(self, reason: CloseReason, error: Exception | None = None) -> None:
        self.close()
        self._on_end(reason, error)

    def _wait(self) -> None:
        if self._audience is not None:
            self._audience.await_flush(self)
            self._fanout.mark(self._audience)

    def _fall_behind(self) -> None:
        audience = self._audience
        assert audience is not None  # noqa: S101  # a live one has one
        audience.leave(self)
        self._live = False
        self._fanout.live -= 1
        self._position = audience.position
        self._events += audience.events
        self._bytes += audience.bytes

    def _become_live(self, audience: Audience) -> None:
        self._since, self._conflates = None, False
        audience.join(self)
        self._live = True
        self._fanout.live += 1
        self._events -= audience.events
        self._bytes -= audience.bytes

    # Catching up.

    def catch_up(self, now: float) -> int:
        """Write what the log has after the position, as far as the outlet takes it, and return how many records."""
        delivered = 0
        while not self.outlet.paused and not self._live:
            audience = self._audience
            if audience is None:
                break
            try:
                told, records, through = self._next(audience)
            except Exception as error:  # noqa: BLE001  # the select function's, whatever it is
                self.fail(error)
                break
            if told or records:
                frames = told + b"".join([record.frame for record in records])
                self._events += len(records)
                self._bytes += len(frames)
                delivered += len(records)
                self.outlet.relay(self.outlet.wrap(frames), now)
            if through > self._position:
                self._position = through
            elif audience.pending:  # published in this very flush
                self._wait()
                break
            elif self._prefix:  # no frame has come to be the first
                audience.await_flush(self)
                break
            elif audience is self._audience:
                self._become_live(audience)
        return delivered

    def _next(self, audience: Audience) -> tuple[bytes, list[Record], int]:
        """Return what to say of the stream itself, the records to write, and the position that this comes to."""
        most = None if self._conflates else BATCH
        reading = self._fanout.read(self._position, audience.topics, most, self._since)
        if reading.missing > self._excused and self._policy.on_gap == "conflate" and not self._conflates:
            self._conflates = True
            reading = self._fanout.read(self._position, audience.topics, None, self._since)
        told = self._beginning_or_gap(reading)
        if told is None:
            return b"", [], self._position
        records = reading.records
        through = records[-1].position if records else self._position
        if audience.select is not None:
            records = [record for record in records if audience.select(record)]
        if self._conflates and records:
            records = first(conflated(records), BATCH)
            through = records[-1].position
        if records and not told:
            told, self._prefix = self._prefix, b""
        return told, records, through

    def _beginning_or_gap(self, reading: Reading) -> bytes | None:
        """Return the frame that says from where the stream goes on, if any; ``None`` when it does not go on."""
        gap, begun = self._gap, self._begun
        self._gap, self._begun = None, True
        missing = reading.lost if self._conflates else reading.missing
        if gap is None and missing > self._excused:
            if begun and self._policy.on_gap == "close":
                self._end(CloseReason.LAGGED)
                return None
            gap = Gap(GapReason.EVICTED, self._fanout.log.id_of(self._position), None)
        self._excused = max(self._excused, reading.missing)
        prefix = self._prefix
        if gap is not None:
            self._prefix = b""
            return prefix + self._gap_frame(gap, reading)
        if begun or not self._policy.prime:
            return b""
        self._prefix = b""
        return prefix + b"id: %b\n\n" % self._fanout.log.id_of(self._position).encode()

    def _gap_frame(self, gap: Gap, reading: Reading) -> bytes:
        """Return the frame that tells of a gap; with an id, if that is not the client's own, so that it tells once."""
        log = self._fanout.log
        first, before = None, log.end
        if reading.records:
            first, before = reading.records[0].id, reading.records[0].position - 1
        frame = encode(Gap(gap.reason, gap.after, first).event(self._policy.gap_event))
        self._events += 1
        self._fanout.gaps += 1
        if before == self._position and gap.reason is GapReason.EVICTED:
            return frame
        self._position = before
        return b"id: %b\n%b" % (log.id_of(before).encode(), frame)


def conflated(records: list[Record]) -> list[Record]:
    """Return of the records of one topic and key the latest only."""
    latest = {(record.topic, record.key): record for record in records}
    return [record for record in records if record.key is None or latest[record.topic, record.key] is record]
