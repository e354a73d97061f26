"""One stream of a Hub: live, or behind with a position of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from ..observe.logs import log as logger
from ..sse.channel import CloseReason
from ..sse.wire import encode
from .audience import BATCH, Audience, Outlet
from .gap import Gap, GapReason
from .log import Reading, conflated, first
from .policy import Policy
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
        self._fanout.in_loop(lambda: self._change(lambda topics: topics.union(added)))

    def remove(self, *topics: str) -> None:
        """Hear no more of these names and wildcards, as they were given. Others may still match their topics."""
        self._fanout.in_loop(lambda: self._change(lambda given: given.difference(topics)))

    def _change(self, change: Callable[[frozenset[str]], frozenset[str]]) -> None:
        self._settle()
        audience = self._audience
        if audience is None or (topics := change(audience.topics)) == audience.topics:
            return
        complete = self._live and not audience.flushing
        if self._live:
            self._fall_behind()
        if self._started:  # before, all topics count from where it begins, as if they had been given at once
            self._since = {name: end for name, end in (self._since or {}).items() if name in topics}
            self._since.update(dict.fromkeys(topics - audience.topics, self._fanout.log.end))
        audience.leave(self)
        self._audience = new = self._fanout.move(audience, topics)
        if complete and not new.pending and not new.flushing:
            self._become_live(new)
        elif self._started and not self.outlet.paused:
            self._wait()

    def _settle(self) -> None:
        """Have what was published so far go to whom it was published for, before something else holds."""
        if self._live and self._audience is not None and self._audience.pending:
            self._fanout.flush(self._audience)

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

    def first(self) -> bytes:
        """Begin, as ``start`` does, but give the first frames to the caller, who writes them at once."""
        if self._started or self._audience is None:
            return b""
        self._started = True
        frames, count, more = self._step(self._audience)
        self._fanout.delivered += count
        if more:
            self._wait()
        return frames

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
        self._settle()
        self._leave()

    def _leave(self) -> None:
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
        if self._audience is None:
            return
        self._leave()
        try:
            self._on_end(reason, error)
        except Exception as failure:  # noqa: BLE001  # a defect, and the other streams are still to be served
            logger.exception("stream_end_failed", reason=reason.value, exc_info=failure)

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
        # While nothing is on its way, that is everything there is, whenever it last was something for this audience.
        self._position = audience.position if audience.pending or audience.flushing else self._fanout.log.end
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
        delivered, more = 0, True
        while more and not self.outlet.paused and self._audience is not None:
            frames, count, more = self._step(self._audience)
            if frames:
                try:
                    self.outlet.relay(self.outlet.wrap(frames), now)
                except Exception as error:  # noqa: BLE001  # a transport's own: its stream ends, and no other
                    self.fail(error)
            delivered += count
        return delivered

    def relay(self, frames: bytes, count: int, now: float) -> None:
        """Write so many events that are for nobody else."""
        self._events += count
        self._bytes += len(frames)
        self.outlet.relay(self.outlet.wrap(frames), now)

    def _step(self, audience: Audience) -> tuple[bytes, int, bool]:
        """Take the next frames from the log, their number of records, and whether there may be more to take now."""
        try:
            frames, count, through, more = self._next(audience)
        except Exception as error:  # noqa: BLE001  # the select function's, whatever it is
            self.fail(error)
            return b"", 0, False
        self._events += count
        self._bytes += len(frames)
        self._position = max(self._position, through)
        if more or audience is not self._audience or self.outlet.paused:  # with room again it goes on
            return frames, count, more
        if audience.pending or audience.flushing:  # published in this very flush
            self._wait()
        elif self._prefix:  # no frame has come to be the first
            audience.await_flush(self)
        else:
            self._become_live(audience)
        return frames, count, False

    def _next(self, audience: Audience) -> tuple[bytes, int, int, bool]:
        """Return the next frames, their number of records, the position they come to, and whether there may be more."""
        most = None if self._conflates else BATCH
        reading = self._fanout.read(self._position, audience.topics, most, self._since)
        if reading.missing > self._excused and self._policy.on_gap == "conflate" and not self._conflates:
            self._conflates = True
            reading = self._fanout.read(self._position, audience.topics, None, self._since)
        told = self._beginning_or_gap(reading)
        if told is None:
            return b"", 0, self._position, False
        records, more = reading.records, reading.more
        through = records[-1].position if records else self._position
        if audience.select is not None:
            records = [record for record in records if audience.select(record)]
        if self._conflates and records:
            records, more = first(conflated(records), BATCH)
            through = records[-1].position if more else through
        if records and not told:
            told, self._prefix = self._prefix, b""
        frames = reading.frames if records is reading.records else b"".join([record.frame for record in records])
        return told + frames, len(records), through, more

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
        self._excused = max(self._excused, missing)
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
