"""Streams that came before the Hub can say from where they go on. Decides, and awaits nothing."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Protocol, TypeAlias

from .._logging import log
from .._logging import log as logger
from ..channel import CloseReason
from ..exceptions import FATAL
from .cursor import BATCH, Cursor, HistoryReader, Lagged, Select, StartPosition, SubscriptionPolicy, selected
from .history import EXPIRED, History
from .record import Gap, GapReason, Record
from .topics import Patterns

__all__ = [
    "Allowance",
    "Dispatcher",
    "Located",
    "OnEnd",
    "PendingSubscriptions",
    "Sink",
    "SubscriberGroup",
    "Subscription",
]


Located = tuple[int, GapReason | None]

# Seconds that an id which is ahead of this process may be one that another process has and this one is about to have.
# Processes are milliseconds apart; a client that invented its id can wait.
PATIENCE = 2.0
SLACK = 1.5  # seconds that a confirmation may be late, on a busy machine or in a slow network, before it is missed


class PendingSubscriptions:
    """Ids to be located, as soon as the log has come that far.

    With a broker, a process knows nothing until it has read the history, and a client that comes from another process
    may have an id of the next moment: neither is a gap.
    """

    def __init__(self, log: History, *, remote: bool, confirms: float | None = None) -> None:
        self._log = log
        self._remote = remote
        self._confirms = confirms  # seconds between two confirmations; None if there is one in each tail
        self._confirmed = float("-inf")  # when the latest one came, by the event loop's clock, and
        self._heard = float("-inf")  # by the process's, which can also be asked outside of it
        self._waiting: dict[object, tuple[str | None, float, Callable[[Located], None]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.open: bool = not remote
        """Whether the history has been read."""
        self.up: bool = not remote
        """Whether all there is has come, and what is new will."""

    def locate(self, given: str | None, since: float | None = None) -> Located | None:
        """Return from where the owner of an id goes on, who has waited ``since`` then; ``None`` if he is to wait."""
        if not self.open:
            return None
        if given is None:
            return self._log.end, None
        if self._remote and self._log.is_ahead(given) and not (self.up and self._has_waited(since)):
            return None
        return self._log.locate(given)

    def wait(self, owner: object, given: str | None, then: Callable[[Located], None]) -> None:
        """Have something called when an id can be located, unless its owner is discarded before."""
        self._waiting[owner] = given, self._now(), then
        self._set_timer()

    def discard(self, owner: object) -> None:
        """Wait for somebody no more. Twice is once."""
        self._waiting.pop(owner, None)

    def look(self) -> None:
        """Call what can be called now."""
        if self._waiting and self.open:
            for owner, (given, since, then) in list(self._waiting.items()):
                located = self.locate(given, since)
                if located is not None and self._waiting.pop(owner, None) is not None:
                    try:
                        then(located)
                    except Exception as error:  # noqa: BLE001  # of one, and the others wait as well
                        logger.exception("hub_arrival_failed", exc_info=error)

    @property
    def fresh(self) -> bool:
        """Whether all there is has come, as far as the server has said lately, and what is new will."""
        if self._confirms is None:
            return self.up
        return self.up and time.monotonic() < self._heard + self._confirms + SLACK

    def confirm(self) -> None:
        """Note that the server answered just now, and that all it had has come."""
        self._confirmed, self._heard = self._now(), time.monotonic()
        if self.up:
            self.look()
        else:
            self.begin()

    def begin(self) -> None:
        """Note that all there was has been read. Those who wait for what is ahead have their time from now on."""
        self.open = self.up = True
        now = self._now()
        self._waiting = {owner: (given, now, then) for owner, (given, _, then) in self._waiting.items()}
        self.look()
        self._set_timer()

    def close(self) -> None:
        """Leave nothing that waits in the event loop. Twice is once."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _has_waited(self, since: float | None) -> bool:
        """Tell whether what did not come until now will not: the server has said that it has no more, if it does."""
        if since is None:
            return False
        return (self._now() if self._confirms is None else self._confirmed) >= since + PATIENCE

    def _set_timer(self) -> None:
        if self._confirms is None and self._timer is None and self._waiting and self.up:
            _, since, _ = next(iter(self._waiting.values()))  # who came first
            self._timer = asyncio.get_running_loop().call_at(since + PATIENCE, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.look()
        self._set_timer()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


class Sink(Protocol):
    """What carries a subscription's bytes to its client."""

    paused: bool
    """Whether it takes no more for now; it tells the subscription when that changes."""

    @property
    def wrap(self) -> Callable[[bytes], bytes]:
        """A function that makes what ``write`` takes of frames, the same one for all outlets that need the same."""

    def write(self, payload: bytes, now: float) -> None:
        """Write what ``wrap`` made, at this time of the event loop. A lost client is no error."""


class Allowance:
    """The time that is left in a flush for streams that do not keep up: the first one of them always has some."""

    __slots__ = ("postponed", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds: float = seconds
        self.postponed: bool = False
        """Whether one had none, of the audience that was flushed last."""


class SubscriberGroup:
    """Subscribers of the same topics, with the same select function, whose bytes are the same.

    Those that keep up are *live*: all of them have everything up to ``offset``, and there is nothing else to know
    of each. Those that *wait* have a position of their own, and read the log from there in the next flush.
    """

    __slots__ = (
        "_behind",
        "_line",
        "_live",
        "_waiting",
        "bytes",
        "events",
        "flushing",
        "offset",
        "pending",
        "select",
        "topics",
        "wrap",
    )  # fmt: skip

    def __init__(
        self, topics: frozenset[str], select: Select | None, wrap: Callable[[bytes], bytes], offset: int
    ) -> None:
        self.topics: frozenset[str] = topics
        self.select: Select | None = select
        self.wrap: Callable[[bytes], bytes] = wrap
        self.offset: int = offset
        self.pending: list[Record] = []  # published since the last flush
        self.flushing: bool = False  # some of those that keep up have not got all of the records of this flush
        self.events: int = 0  # sent to whoever was live all the time
        self.bytes: int = 0
        self._live: dict[Subscription, None] = {}
        self._line: tuple[Sink, ...] | None = None  # of the live ones; a tuple is walked faster, and does not change
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
                delivered = self._dispatch(records, now)
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
                subscription.write(b"".join([record.frame for record in missed]), len(missed), now)
        except FATAL:
            raise
        except BaseException as error:  # noqa: BLE001  # the select function's or a transport's own
            subscription.fail(error)
            return 0
        return len(missed)

    def _dispatch(self, records: list[Record], now: float) -> int:
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
        self.offset = max(self.offset, *(record.offset for record in records), 0)

    def _write(self, records: list[Record], frames: bytes, now: float) -> int:
        """Write a piece to everybody who keeps up."""
        self._advance(records)  # before: whoever is paused by this has it
        self.events += len(records)
        self.bytes += len(frames)
        payload = self.wrap(frames)
        line = self._line
        if line is None:
            line = self._line = tuple([subscription.sink for subscription in self._live])
        for sink in line:
            try:
                sink.write(payload, now)
            except FATAL:
                raise
            except BaseException as error:  # noqa: BLE001  # a transport's own: its stream ends, and no other
                self._fail(sink, error)
        return len(line) * len(records)

    def _fail(self, sink: Sink, error: BaseException) -> None:
        for subscription in list(self._live):
            if subscription.sink is sink:
                log.exception("stream_write_failed", topics=sorted(self.topics), exc_info=error)
                subscription.fail(error)


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


OnEnd: TypeAlias = Callable[[CloseReason, BaseException | None], None]


class Subscription:
    """What a Hub knows of one open stream: its topics, and how far it has come.

    A live one has what its audience has. One whose outlet is paused has a position and nothing else, and reads the log
    from there when there is room again. This is for the owner of the outlet; an application has a ``Subscriber``.
    """

    __slots__ = (
        "_bytes",
        "_cursor",
        "_dispatcher",
        "_events",
        "_group",
        "_on_end",
        "_policy",
        "_rest",
        "_settled",
        "_started",
        "sink",
    )  # fmt: skip

    def __init__(  # made by the Hub alone
        self,
        dispatcher: Dispatcher,
        group: SubscriberGroup,
        sink: Sink,
        on_end: OnEnd,
        policy: SubscriptionPolicy,
        beginning: StartPosition | None,
    ) -> None:
        self._dispatcher = dispatcher
        self._group: SubscriberGroup | None = group
        self._on_end = on_end
        self._policy = policy
        self._settled = beginning is not None  # it is known from where it goes on
        self._cursor: Cursor | None = Cursor(
            dispatcher.cursor, policy, beginning or StartPosition(dispatcher.log.end)
        )  # none while live
        self._rest: tuple[SubscriberGroup, int] | None = (
            None  # what it was and up to where, when it ended with some to write
        )
        self._events = self._bytes = 0  # while live, less what its audience had when it became that
        self._started = False
        self.sink: Sink = sink
        group.enter(self)

    @property
    def topics(self) -> frozenset[str]:
        """Names and wildcards; none once the stream is over."""
        return frozenset() if self._group is None else self._group.topics

    @property
    def live(self) -> bool:
        """Whether it has all that was published."""
        return self._cursor is None and self._group is not None

    @property
    def events(self) -> int:
        """Events that were written, gaps among them."""
        return self._events + (self._group.events if self._cursor is None and self._group else 0)

    @property
    def written(self) -> int:
        """Bytes of those events, and of the first frame."""
        return self._bytes + (self._group.bytes if self._cursor is None and self._group else 0)

    # Topics.

    def in_loop(self, call: Callable[[], None]) -> None:
        """Call something in the event loop's thread, at once if that is this one; nothing once the stream is over."""
        if self._group is not None:
            self._dispatcher.in_loop(call)

    def change(self, change: Callable[[frozenset[str]], frozenset[str]]) -> None:
        """Hear of the topics that a function makes of those of now. Once the stream is over, nothing happens."""
        self._settle()
        group = self._group
        if group is None or (topics := change(group.topics)) == group.topics:
            return
        complete = self._cursor is None and not group.flushing
        cursor = self._cursor or self._fall_behind(group)
        if self._started:  # before, all topics count from where it begins, as if they had been given at once
            cursor.change(group.topics, topics)
        group.leave(self)
        self._group = new = self._dispatcher.move(group, topics)
        new.enter(self)
        if complete and not new.pending and not new.flushing:
            self._become_live(new)
        elif self._started and not self.sink.paused:
            self._wait()

    def _settle(self) -> None:
        """Have what was published so far go to whom it was published for, before something else holds."""
        if self._cursor is None and self._group is not None and self._group.pending:
            self._dispatcher.flush(self._group)

    # The life of a subscriber.

    def gap(self) -> Gap | None:
        """Return what its client would be told now that is missing."""
        return None if self._cursor is None else self._cursor.gap(self.topics)

    def count_gap(self) -> None:
        """Count a gap that its client was told of by somebody else."""
        self._dispatcher.gaps += 1

    @property
    def settled(self) -> bool:
        """Whether it is known from where it goes on."""
        return self._settled

    def settle(self, beginning: StartPosition) -> None:
        """Go on from there, which could not be said before."""
        self._settled = True
        if self._cursor is not None and self._group is not None:
            self._cursor.go_on(beginning, told=False)
            self.resume()

    def start(self, offset: int | None = None, gap: Gap | None = None, *, told: bool = False) -> None:
        """Begin to write, in the next flush. Idempotent.

        With a ``offset`` it goes on from there, with that ``gap``, if its client has not been ``told`` so.
        """
        if self._started or self._group is None:
            return
        self._started = True
        if offset is not None and self._cursor is not None:
            self._cursor.go_on(StartPosition(offset, gap), told=told)
        if not self.sink.paused:
            self._wait()

    def first(self) -> bytes:
        """Begin, as ``start`` does, but give the first frames to the caller, who writes them at once."""
        if self._started or self._group is None:
            return b""
        self._started = True
        if not self._settled:
            return b""
        frames, count, more = self._step(self._group)
        self._dispatcher.delivered += count
        if more:
            self._wait()
        return frames

    def pause(self) -> None:
        """Note that the outlet takes no more: the position is all that is kept from now on."""
        if self._cursor is None and self._group is not None:
            self._fall_behind(self._group)

    def resume(self) -> None:
        """Catch up, in the next flush."""
        if self._started and self._cursor is not None and self._group is not None:
            self._wait()

    def close(self) -> None:
        """Hear of nothing any more, but keep what was published before for ``rest``. Idempotent.

        The stream's owner calls this when the stream ends, and is not called back. ``end`` calls the owner.
        """
        self._settle()
        group, cursor = self._group, self._cursor
        if group is not None:
            self._leave()
            if self._started and self._settled and cursor is not None:
                self._cursor, self._rest = cursor, (group, self._dispatcher.log.end)

    def rest(self) -> bool:
        """Write a piece of what was published before the end, if the outlet takes it; return whether there is more."""
        if self._rest is not None and self._cursor is not None and not self.sink.paused:
            try:
                group, until = self._rest
                taken = self._cursor.take(group.topics, group.select, until)
            except FATAL:
                raise
            except BaseException as error:  # noqa: BLE001  # the select function's, whatever it is; or it has lagged
                if not isinstance(error, Lagged):
                    logger.exception("stream_rest_failed", exc_info=error)
                self._rest = None
                return False
            if taken.frames:
                self.write(taken.frames, taken.records + taken.gaps, self._dispatcher.now())
            self._dispatcher.delivered += taken.records
            self._dispatcher.gaps += taken.gaps
            if not taken.more:
                self._rest = None
        return self._rest is not None

    def end(self, reason: CloseReason) -> None:
        """End the stream, after what was published before. Idempotent."""
        if self._group is not None:
            self.close()
            self._call_on_end(reason, None)

    def _leave(self) -> None:
        group = self._group
        if group is not None:
            if self._cursor is None:
                self._fall_behind(group)
            group.leave(self)
            self._group = None
            self._dispatcher.leave(group)
            if not self._settled:
                self._dispatcher.pending.discard(self)

    def fail(self, error: BaseException) -> None:
        """End the stream because of an error."""
        self._end(CloseReason.ERROR, error)

    def _end(self, reason: CloseReason, error: BaseException | None = None) -> None:
        if self._group is not None:
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
        if self._group is not None and self._settled:
            self._group.await_flush(self)
            self._dispatcher.mark(self._group)

    def _fall_behind(self, group: SubscriberGroup) -> Cursor:
        """Have a position of its own, from now on: that of its audience."""
        group.enter(self)
        self._dispatcher.live -= 1
        self._events += group.events
        self._bytes += group.bytes
        # While nothing is on its way, that is everything there is, whenever it last was something for this audience.
        offset = group.offset if group.pending or group.flushing else self._dispatcher.log.end
        self._cursor = cursor = Cursor(self._dispatcher.cursor, self._policy, StartPosition(offset), begun=True)
        return cursor

    def _become_live(self, group: SubscriberGroup) -> None:
        group.join(self)
        self._cursor = None
        self._dispatcher.live += 1
        self._events -= group.events
        self._bytes -= group.bytes

    # Catching up.

    def catch_up(self, now: float) -> int:
        """Write a piece of what the log has after the position, and return how many records that were.

        If there is more, another one follows in the next flush: in between, the event loop is everybody's.
        """
        if self.sink.paused or self._group is None:
            return 0
        frames, count, more = self._step(self._group)
        if frames:
            try:
                self.sink.write(self.sink.wrap(frames), now)
            except FATAL:
                raise
            except BaseException as error:  # noqa: BLE001  # a transport's own: its stream ends, and no other
                self.fail(error)
        if more and not self.sink.paused:
            self.resume()
        return count

    def write(self, frames: bytes, count: int, now: float) -> None:
        """Write so many events of this stream alone."""
        self._events += count
        self._bytes += len(frames)
        self.sink.write(self.sink.wrap(frames), now)

    def _step(self, group: SubscriberGroup) -> tuple[bytes, int, bool]:
        """Take the next frames from the log, their number of records, and whether there may be more to take now."""
        cursor = self._cursor
        if cursor is None:
            return b"", 0, False
        try:
            taken = cursor.take(group.topics, group.select)
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
        self._dispatcher.gaps += taken.gaps
        if taken.more or group is not self._group or self.sink.paused:  # with room again it goes on
            return taken.frames, taken.records, taken.more
        if group.pending or group.flushing:  # published in this very flush
            self._wait()
        elif cursor.waits:
            group.await_flush(self)
        else:
            self._become_live(group)
        return taken.frames, taken.records, False


# Looks per history_age at topics in which nothing happens: what is too old is not read anyhow, only kept.
LOOKS = 16
# Seconds of a turn of the event loop that go into bringing up streams which have more to read than a turn's records.
CATCHING_UP = 0.005

_Key = tuple[frozenset[str], Select | None, Callable[[bytes], bytes]]


class Dispatcher:
    """The audiences of a Hub, its log, and the flush that brings them together. One event loop's."""

    def __init__(self, log: History, history_age: float | None, pending: PendingSubscriptions | None = None) -> None:
        self.log: History = log
        self.pending: PendingSubscriptions = pending or PendingSubscriptions(log, remote=False)
        self.subscribers: int = 0
        self.live: int = 0
        self.gaps: int = 0
        self.delivered: int = 0
        self._history_age = history_age
        self._groups: dict[_Key, SubscriberGroup] = {}
        self._patterns: Patterns[SubscriberGroup] = Patterns()
        self._dirty: dict[SubscriberGroup, None] = {}
        self._scheduled = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._expiry: asyncio.TimerHandle | None = None
        self.cursor: HistoryReader = HistoryReader(log, self.now)

    # The event loop.

    def bind(self) -> asyncio.AbstractEventLoop:
        """Belong to the running event loop. Raises ``RuntimeError`` while another one runs, or has open streams."""
        loop, old = asyncio.get_running_loop(), self._loop
        if loop is not old:
            if old is not None and not old.is_closed() and (self.subscribers or old.is_running()):
                raise RuntimeError("this Hub belongs to another event loop; publish_threadsafe reaches its streams")
            self.close()
            self._loop, self._thread = loop, threading.get_ident()
            self._scheduled = False
            if self._dirty:
                self._schedule(loop)
            self._expire()
        return loop

    def elsewhere(self) -> asyncio.AbstractEventLoop:
        """Return the event loop, for another thread. Raises ``RuntimeError`` as long as there is none."""
        if self._loop is None:
            raise RuntimeError("this Hub has no event loop yet: setup(app, hub) gives it the application's")
        return self._loop

    def now(self) -> float:
        """Return the time of the event loop."""
        return self.bind().time()

    def in_loop(self, call: Callable[[], None]) -> None:
        """Call something in the event loop's thread, at once if that is this one."""
        if threading.get_ident() == self._thread:
            call()
        else:
            self.elsewhere().call_soon_threadsafe(call)

    def close(self) -> None:
        """Wait for nothing any more. Twice is once."""
        self.pending.close()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def end(self, reason: CloseReason) -> None:
        """End all open streams, after what was published before."""
        for group in list(self._groups.values()):
            for subscription in group.all():
                subscription.end(reason)

    # What is new.

    def dispatch(self, record: Record) -> None:
        """Have a record written in this turn to all who keep up and asked for its topic."""
        for group in self._patterns.matching(record.topic):
            group.pending.append(record)
            self._dirty[group] = None
        loop = self._loop
        assert loop is not None  # noqa: S101  # bound before anything is published
        if self._dirty and not self._scheduled:
            self._schedule(loop)
        if self._expiry is None and self._history_age is not None:
            self._expiry = loop.call_later(self._history_age, self._expire)

    def mark(self, group: SubscriberGroup) -> None:
        """Have an audience flushed in this turn."""
        self._dirty[group] = None
        if not self._scheduled and self._loop is not None:
            self._schedule(self._loop)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_soon(self._flush)  # first, as it may fail: what is noted as scheduled is never scheduled again
        self._scheduled = True

    def _flush(self) -> None:
        """Write to all who keep up, and bring up others as far as the time goes; the rest are first next time."""
        self._scheduled = False
        dirty, self._dirty = self._dirty, {}
        allowance, late = Allowance(CATCHING_UP), []
        for group in dirty:
            in_time, allowance.postponed = allowance.seconds > 0, False
            self.flush(group, allowance)
            if allowance.postponed:
                self.mark(group)
                if not in_time:
                    late.append(group)
        if late:
            self._dirty = dict.fromkeys(late) | self._dirty

    def flush(self, group: SubscriberGroup, allowance: Allowance | None = None) -> None:
        """Flush one audience now."""
        alone = allowance is None
        allowance = allowance or Allowance(CATCHING_UP)
        loop = self._loop
        assert loop is not None  # noqa: S101  # only somebody with an audience flushes
        try:
            self.delivered += group.flush(loop.time(), allowance)
        except FATAL:
            raise
        except BaseException as error:  # noqa: BLE001  # a defect, and no reason to leave the other audiences waiting
            logger.exception("hub_flush_failed", topics=sorted(group.topics), exc_info=error)
            for subscription in group.all():  # it is not known what they have; their clients come back with it
                subscription.fail(error)
        if alone and allowance.postponed:
            self.mark(group)

    def miss(self, topic: str, offset: int) -> None:
        """Have all who asked for a topic told that a record of it is missing, once for all that are in this turn."""
        live: list[Subscription] = []
        for group in self._patterns.matching(topic):
            if group.live:
                self.flush(group)  # what came before
                live += group.all_live()
        for subscription in live:
            subscription.pause()
        self.log.miss(topic, offset)
        for group in self._patterns.matching(topic):
            group.offset = offset  # all that is not live looks for itself
        for subscription in live:
            subscription.resume()

    def interrupt(self, change: Callable[[], None]) -> None:
        """Change the log's past or its order, and have each stream find out for itself what that means for it."""
        self._flush()
        live = [subscription for group in self._groups.values() for subscription in group.all_live()]
        for subscription in live:
            subscription.pause()
        try:
            change()
        finally:  # whatever came of it, the streams look for themselves
            self.cursor.forget()
            for group in self._groups.values():
                group.offset = self.log.end
            for subscription in live:
                subscription.resume()

    # What was.

    def _expire(self) -> None:
        self._expiry = None
        loop, age = self._loop, self._history_age
        if loop is not None and age is not None:
            now = loop.time()
            self.log.expire(now, EXPIRED)
            due = self.log.next_expiry()
            if due is not None:  # what is due already, because so much was, goes in the next turn
                self._expiry = loop.call_at(now if due <= now else max(due, now + age / LOOKS), self._expire)

    # Who is there.

    def enter(self, topics: frozenset[str], select: Select | None, wrap: Callable[[bytes], bytes]) -> SubscriberGroup:
        """Return the audience for one more subscription, which is counted."""
        self.subscribers += 1
        return self._join(topics, select, wrap)

    def move(self, group: SubscriberGroup, topics: frozenset[str]) -> SubscriberGroup:
        """Return the audience of a subscription that leaves another one because its topics changed."""
        new = self._join(topics, group.select, group.wrap)
        self._leave(group)
        return new

    def leave(self, group: SubscriberGroup) -> None:
        """Count one subscription less."""
        self.subscribers -= 1
        self._leave(group)

    def listeners(self, topic: str) -> int:
        """Count the subscribers that hear of a topic."""
        return sum(group.size for group in self._patterns.matching(topic))

    @property
    def groups(self) -> int:
        """How many sets of subscribers there are that are told the same."""
        return len(self._groups)

    def _join(self, topics: frozenset[str], select: Select | None, wrap: Callable[[bytes], bytes]) -> SubscriberGroup:
        key = topics, select, wrap
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = SubscriberGroup(topics, select, wrap, self.log.end)
            for name in topics:
                self._patterns.add(name, group)
        return group

    def _leave(self, group: SubscriberGroup) -> None:
        """Forget an audience when its last subscription has left."""
        if not group.size:
            del self._groups[group.topics, group.select, group.wrap]
            for name in group.topics:
                self._patterns.discard(name, group)
