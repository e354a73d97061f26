"""One stream of a Hub: live, or behind with a position of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from ..errors import FATAL
from ..observe.logs import log as logger
from ..sse.channel import CloseReason
from .audience import Audience, Outlet
from .gap import Gap
from .policy import Policy
from .reader import Beginning, Lagged, Reader

if TYPE_CHECKING:
    from .fanout import Fanout

__all__ = ["OnEnd", "Subscription"]

OnEnd: TypeAlias = Callable[[CloseReason, BaseException | None], None]


class Subscription:
    """What a Hub knows of one open stream: its topics, and how far it has come.

    A live one has what its audience has. One whose outlet is paused has a position and nothing else, and reads the log
    from there when there is room again. This is for the owner of the outlet; an application has a ``Subscriber``.
    """

    __slots__ = ("_audience", "_bytes", "_events", "_fanout", "_on_end", "_policy", "_reader", "_rest", "_settled",
                 "_started", "outlet")  # fmt: skip

    def __init__(  # made by the Hub alone
        self,
        fanout: Fanout,
        audience: Audience,
        outlet: Outlet,
        on_end: OnEnd,
        policy: Policy,
        beginning: Beginning | None,
    ) -> None:
        self._fanout = fanout
        self._audience: Audience | None = audience
        self._on_end = on_end
        self._policy = policy
        self._settled = beginning is not None  # it is known from where it goes on
        self._reader: Reader | None = Reader(fanout, policy, beginning or Beginning(fanout.log.end))  # none while live
        self._rest: tuple[Audience, int] | None = None  # what it was and up to where, when it ended with some to write
        self._events = self._bytes = 0  # while live, less what its audience had when it became that
        self._started = False
        self.outlet: Outlet = outlet
        audience.enter(self)

    @property
    def topics(self) -> frozenset[str]:
        """Names and wildcards; none once the stream is over."""
        return frozenset() if self._audience is None else self._audience.topics

    @property
    def live(self) -> bool:
        """Whether it has all that was published."""
        return self._reader is None and self._audience is not None

    @property
    def events(self) -> int:
        """Events that were written, gaps among them."""
        return self._events + (self._audience.events if self._reader is None and self._audience else 0)

    @property
    def written(self) -> int:
        """Bytes of those events, and of the first frame."""
        return self._bytes + (self._audience.bytes if self._reader is None and self._audience else 0)

    # Topics.

    def in_loop(self, call: Callable[[], None]) -> None:
        """Call something in the event loop's thread, at once if that is this one; nothing once the stream is over."""
        if self._audience is not None:
            self._fanout.in_loop(call)

    def change(self, change: Callable[[frozenset[str]], frozenset[str]]) -> None:
        """Hear of the topics that a function makes of those of now. Once the stream is over, nothing happens."""
        self._settle()
        audience = self._audience
        if audience is None or (topics := change(audience.topics)) == audience.topics:
            return
        complete = self._reader is None and not audience.flushing
        reader = self._reader or self._fall_behind(audience)
        if self._started:  # before, all topics count from where it begins, as if they had been given at once
            reader.change(audience.topics, topics)
        audience.leave(self)
        self._audience = new = self._fanout.move(audience, topics)
        new.enter(self)
        if complete and not new.pending and not new.flushing:
            self._become_live(new)
        elif self._started and not self.outlet.paused:
            self._wait()

    def _settle(self) -> None:
        """Have what was published so far go to whom it was published for, before something else holds."""
        if self._reader is None and self._audience is not None and self._audience.pending:
            self._fanout.flush(self._audience)

    # The life of a subscriber.

    def gap(self) -> Gap | None:
        """Return what its client would be told now that is missing."""
        return None if self._reader is None else self._reader.gap(self.topics)

    def count_gap(self) -> None:
        """Count a gap that its client was told of by somebody else."""
        self._fanout.gaps += 1

    @property
    def settled(self) -> bool:
        """Whether it is known from where it goes on."""
        return self._settled

    def settle(self, beginning: Beginning) -> None:
        """Go on from there, which could not be said before."""
        self._settled = True
        if self._reader is not None and self._audience is not None:
            self._reader.go_on(beginning, told=False)
            self.resume()

    def start(self, position: int | None = None, gap: Gap | None = None, *, told: bool = False) -> None:
        """Begin to write, in the next flush. Idempotent.

        With a ``position`` it goes on from there, with that ``gap``, if its client has not been ``told`` so.
        """
        if self._started or self._audience is None:
            return
        self._started = True
        if position is not None and self._reader is not None:
            self._reader.go_on(Beginning(position, gap), told=told)
        if not self.outlet.paused:
            self._wait()

    def first(self) -> bytes:
        """Begin, as ``start`` does, but give the first frames to the caller, who writes them at once."""
        if self._started or self._audience is None:
            return b""
        self._started = True
        if not self._settled:
            return b""
        frames, count, more = self._step(self._audience)
        self._fanout.delivered += count
        if more:
            self._wait()
        return frames

    def pause(self) -> None:
        """Note that the outlet takes no more: the position is all that is kept from now on."""
        if self._reader is None and self._audience is not None:
            self._fall_behind(self._audience)

    def resume(self) -> None:
        """Catch up, in the next flush."""
        if self._started and self._reader is not None and self._audience is not None:
            self._wait()

    def close(self) -> None:
        """Hear of nothing any more, but keep what was published before for ``rest``. Idempotent.

        The stream's owner calls this when the stream ends, and is not called back. ``end`` calls the owner.
        """
        self._settle()
        audience, reader = self._audience, self._reader
        if audience is not None:
            self._leave()
            if self._started and self._settled and reader is not None:
                self._reader, self._rest = reader, (audience, self._fanout.log.end)

    def rest(self) -> bool:
        """Write a piece of what was published before the end, if the outlet takes it; return whether there is more."""
        if self._rest is not None and self._reader is not None and not self.outlet.paused:
            try:
                taken = self._reader.take(*self._rest)
            except FATAL:
                raise
            except BaseException as error:  # noqa: BLE001  # the select function's, whatever it is; or it has lagged
                if not isinstance(error, Lagged):
                    logger.exception("stream_rest_failed", exc_info=error)
                self._rest = None
                return False
            if taken.frames:
                self.relay(taken.frames, taken.records + taken.gaps, self._fanout.now())
            self._fanout.delivered += taken.records
            self._fanout.gaps += taken.gaps
            if not taken.more:
                self._rest = None
        return self._rest is not None

    def end(self, reason: CloseReason) -> None:
        """End the stream, after what was published before. Idempotent."""
        if self._audience is not None:
            self.close()
            self._call_on_end(reason, None)

    def _leave(self) -> None:
        audience = self._audience
        if audience is not None:
            if self._reader is None:
                self._fall_behind(audience)
            audience.leave(self)
            self._audience = None
            self._fanout.leave(audience)
            if not self._settled:
                self._fanout.arrivals.discard(self)

    def fail(self, error: BaseException) -> None:
        """End the stream because of an error."""
        self._end(CloseReason.ERROR, error)

    def _end(self, reason: CloseReason, error: BaseException | None = None) -> None:
        if self._audience is not None:
            self._leave()
            self._call_on_end(reason, error)

    def _call_on_end(self, reason: CloseReason, error: BaseException | None) -> None:
        try:
            self._on_end(reason, error)
        except FATAL:
            raise
        except BaseException as failure:  # noqa: BLE001  # a defect, and the other streams are still to be served
            logger.exception("stream_end_failed", reason=reason.value, exc_info=failure)

    def _wait(self) -> None:
        if self._audience is not None and self._settled:
            self._audience.await_flush(self)
            self._fanout.mark(self._audience)

    def _fall_behind(self, audience: Audience) -> Reader:
        """Have a position of its own, from now on: that of its audience."""
        audience.enter(self)
        self._fanout.live -= 1
        self._events += audience.events
        self._bytes += audience.bytes
        # While nothing is on its way, that is everything there is, whenever it last was something for this audience.
        position = audience.position if audience.pending or audience.flushing else self._fanout.log.end
        self._reader = reader = Reader(self._fanout, self._policy, Beginning(position), begun=True)
        return reader

    def _become_live(self, audience: Audience) -> None:
        audience.join(self)
        self._reader = None
        self._fanout.live += 1
        self._events -= audience.events
        self._bytes -= audience.bytes

    # Catching up.

    def catch_up(self, now: float) -> int:
        """Write a piece of what the log has after the position, and return how many records that were.

        If there is more, another one follows in the next flush: in between, the event loop is everybody's.
        """
        if self.outlet.paused or self._audience is None:
            return 0
        frames, count, more = self._step(self._audience)
        if frames:
            try:
                self.outlet.relay(self.outlet.wrap(frames), now)
            except FATAL:
                raise
            except BaseException as error:  # noqa: BLE001  # a transport's own: its stream ends, and no other
                self.fail(error)
        if more and not self.outlet.paused:
            self.resume()
        return count

    def relay(self, frames: bytes, count: int, now: float) -> None:
        """Write so many events of this stream alone."""
        self._events += count
        self._bytes += len(frames)
        self.outlet.relay(self.outlet.wrap(frames), now)

    def _step(self, audience: Audience) -> tuple[bytes, int, bool]:
        """Take the next frames from the log, their number of records, and whether there may be more to take now."""
        reader = self._reader
        if reader is None:
            return b"", 0, False
        try:
            taken = reader.take(audience)
        except Lagged:
            self._end(CloseReason.LAGGED)
            return b"", 0, False
        except FATAL:
            raise
        except BaseException as error:  # noqa: BLE001  # the select function's, whatever it is
            self.fail(error)
            return b"", 0, False
        self._events += taken.records + taken.gaps
        self._bytes += len(taken.frames)
        self._fanout.gaps += taken.gaps
        if taken.more or audience is not self._audience or self.outlet.paused:  # with room again it goes on
            return taken.frames, taken.records, taken.more
        if audience.pending or audience.flushing:  # published in this very flush
            self._wait()
        elif reader.waits:
            audience.await_flush(self)
        else:
            self._become_live(audience)
        return taken.frames, taken.records, False
