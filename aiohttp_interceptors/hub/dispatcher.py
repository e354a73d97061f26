"""Subscriptions, and the dispatch of records to them.

A ``Subscription`` is one open stream of a Hub. Subscriptions with the same topics, ``select`` function and encoder form
a ``SubscriberGroup``. A subscription that has caught up with its group is live. The group writes the same bytes to all
live subscriptions, while the others read from the history with a cursor until they have caught up. The ``Dispatcher``
schedules one flush per event loop iteration for all groups that have something to write.

All methods are synchronous. ``call_threadsafe``, ``get_loop`` and ``Subscription.topics`` are thread-safe. Everything
else must be used from the thread of the event loop.

When a ``select`` function or a sink raises an exception, only the affected streams are closed. This also applies to
``asyncio.CancelledError``. Since this module never awaits, that exception cannot be a cancellation of its own code.
Only ``EXIT_EXCEPTIONS`` propagate.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterable
from enum import Enum
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple, Protocol, TypeAlias, cast

from .._logging import log as logger
from .._observers import Observers
from ..channel import CloseReason
from ..compression import Audience, SharedEncoder, forget_replays
from ..exceptions import EXIT_EXCEPTIONS
from ..facts import HubFact, HubFlushed, HubGap
from ..sse import encode
from .cursor import (
    BATCH_SIZE,
    Cursor,
    CursorRead,
    HistoryReader,
    Lagged,
    Select,
    StartPosition,
    SubscriptionPolicy,
    select_records,
)
from .history import EXPIRE_BATCH, History
from .pending import PendingSubscriptions
from .presence import Presence, presence_event
from .record import Gap, PresenceRecord, Record
from .topics import PatternIndex, is_wildcard

__all__ = [
    "Dispatcher",
    "OnEnd",
    "RecordSink",
    "RecordSubscription",
    "Sink",
    "State",
    "SubscriberGroup",
    "Subscription",
    "TimeBudget",
    "as_records",
]


# Time that a flush may spend on catch-up reads, in seconds. The remaining reads are postponed to the next flush. Writes
# to live subscriptions do not count towards this limit. It may be exceeded by the duration of a single read.
CATCH_UP_BUDGET = 0.005
# The expiry timer runs about this many times per ``history_age`` to limit how long expired records stay in memory.
# Reads evict a batch of expired records first, so they return expired records only if more than EXPIRE_BATCH records
# expired at once.
EXPIRY_CHECKS = 16

OnEnd: TypeAlias = Callable[[CloseReason, BaseException | None], None]
"""Called once when a subscription ends, with the reason and the exception, if any.

It is not called if the owner closes the subscription with ``close`` first.
"""

_GroupKey: TypeAlias = tuple[frozenset[str], Select | None, Callable[[bytes], bytes], str | None]


class Sink(Protocol):
    """The transport of a subscription, which writes bytes to a single client.

    When ``paused`` changes, the owner of the sink must call ``Subscription.pause`` or ``Subscription.resume``.
    """

    @property
    def paused(self) -> bool:
        """Whether the sink's buffer is full."""

    @property
    def encoder(self) -> Callable[[bytes], bytes]:
        """The function that encodes frames for ``write``, for example as an HTTP chunk.

        Subscriptions in the same group share the encoded payload if their sinks have equal encoders.
        """

    def write(self, payload: bytes, now: float) -> None:
        """Write a payload without blocking.

        This method may call ``Subscription.pause``. If the client has disconnected, it does nothing. If it raises an
        exception, the subscription is closed.

        Args:
            payload: The bytes returned by ``encoder``.
            now: The current time of the event loop, in seconds.
        """


class State(Enum):
    """The states of a ``Subscription``. See ``Subscription`` for the transitions."""

    PENDING = "pending"
    CATCHING_UP = "catching up"
    LIVE = "live"
    PAUSED = "paused"
    CLOSED = "closed"


_NOTHING = CursorRead(b"", [], None, more=False)


class _Backlog(NamedTuple):
    """The records that a closed subscription still has to write, up to and including the offset ``through``."""

    cursor: Cursor
    topics: frozenset[str]
    select: Select | None
    through: int
    last_frame: bytes = b""
    """The frame to write after the records."""


class Subscription:
    """An open stream, with its topics, its sink and its position in the history.

    =============  ============================================  =============================================
    State          Meaning                                       Next
    =============  ============================================  =============================================
    PENDING        Not started, or the start position is not     started and position known: CATCHING_UP, or
                   known. Nothing is written.                    PAUSED if the sink is paused
    CATCHING_UP    Reads the history with a cursor, one batch    end of the history: LIVE; ``pause``: PAUSED
                   per flush.
    LIVE           Has every record that its group has flushed.  ``pause``: PAUSED; history changes: CATCHING_UP;
                   It has no cursor. The group writes to it.     topics change: CATCHING_UP or LIVE
    PAUSED         The sink is full. Only the cursor is kept.    ``resume``: CATCHING_UP
    CLOSED         Has left its group. ``write_backlog`` may     final; ``close``, ``end`` and errors lead here
                   write records published before.               from every state
    =============  ============================================  =============================================

    ``sink.paused`` may change in any state. A PENDING subscription waits until its start position is known and its
    owner has called ``start``. This may happen in either order.

    Subscriptions are created by ``Hub.subscribe``. The owner of the sink calls ``start``, ``pause``, ``resume`` and
    ``close``. Applications use a ``Subscriber`` instead.

    Args:
        dispatcher: The dispatcher of the Hub.
        group: The group for the topics, ``select`` function and encoder of this subscription.
        sink: The sink to write frames to.
        on_end: Called when the subscription ends. See ``OnEnd``.
        policy: How the subscription starts and how it handles gaps.
        start: Where to start reading, or ``None`` if ``set_start_position`` will be called later.
    """

    __slots__ = (
        "_backlog",
        "_bytes",
        "_cursor",
        "_dispatcher",
        "_events",
        "_group",
        "_on_end",
        "_policy",
        "_started",
        "has_start_position",
        "sink",
        "state",
    )

    def __init__(
        self,
        dispatcher: Dispatcher,
        group: SubscriberGroup,
        sink: Sink,
        on_end: OnEnd,
        policy: SubscriptionPolicy,
        start: StartPosition | None,
    ) -> None:
        self.sink: Sink = sink
        self.state: State = State.PENDING
        self.has_start_position: bool = start is not None
        """Whether the start position is known."""
        self._started = False
        self._dispatcher = dispatcher
        self._group = group
        self._on_end = on_end
        self._policy = policy
        # None while LIVE.
        self._cursor: Cursor | None = Cursor(dispatcher.reader, policy, start or StartPosition(dispatcher.history.end))
        self._backlog: _Backlog | None = None
        # Events and bytes written to this subscription alone. When it becomes live, the group's totals are subtracted,
        # so that adding the group's current totals gives the totals of this subscription.
        self._events = self._bytes = 0
        group.add(self)

    @property
    def topics(self) -> frozenset[str]:
        """The topic names and wildcards. Empty once the subscription is closed."""
        return self._group.topics

    @property
    def live(self) -> bool:
        """Whether the group writes to this subscription directly."""
        return self.state is State.LIVE

    @property
    def events_written(self) -> int:
        """The number of events written, including gap events."""
        return self._events + (self._group.events if self.live else 0)

    @property
    def bytes_written(self) -> int:
        """The number of bytes written, including the initial frame. Frames are counted before they are encoded."""
        return self._bytes + (self._group.bytes if self.live else 0)

    @property
    def offset(self) -> int:
        """The offset up to which the subscription has received the records of its topics."""
        if self._cursor is not None:
            return self._cursor.offset
        return self._group.written_through(self._dispatcher.history.end)

    @property
    def behind(self) -> int:
        """The number of records in the history that it has to receive, before ``select``. Evicted ones do not count."""
        if self._cursor is not None:
            return self._cursor.count_missing(self._group.topics)
        return len(self._group.unflushed)

    @property
    def lacks_evicted(self) -> bool:
        """Whether records were evicted that it had to receive, which ``behind`` does not count."""
        return self._cursor is not None and self._cursor.lacks_evicted(self._group.topics)

    # Starting, pausing and resuming.

    def find_gap(self) -> Gap | None:
        """Return the gap that the next read would report, or ``None``.

        This evicts a batch of expired records.
        """
        return None if self._cursor is None else self._cursor.find_gap(self.topics)

    def count_gap(self, gap: Gap) -> None:
        """Count a gap event that the caller has written itself."""
        self._dispatcher.count_gap(gap)

    def replace_sink(self, sink: Sink) -> None:
        """Write to another sink, which has the same encoder."""
        self.sink = sink
        self._group.forget_sinks()

    def set_start_position(self, start: StartPosition) -> None:
        """Set the start position if it could not be resolved when the subscription was created."""
        self.has_start_position = True
        if self.state is State.PENDING:
            self._seek(start)
            self._activate()

    def start(self, offset: int | None = None, gap: Gap | None = None, *, announced: bool = False) -> None:
        """Start writing with the next flush. This method is idempotent.

        Args:
            offset: Start after this offset instead of the start position. The start position must already be known.
            gap: The gap to report before the first record. Ignored if ``offset`` is ``None``.
            announced: Set this flag if the caller has already written the ID of ``offset`` and the gap event.
        """
        if self.state is not State.PENDING or self._started:
            return
        self._started = True
        if offset is not None:
            self._seek(StartPosition(offset, gap), announced=announced)
        self._activate()

    def start_and_read(self) -> bytes:
        """Start the subscription and return the first frames.

        This makes it possible to send them together with the response headers. If the start position is unknown, return
        ``b""``. In that case, a later flush writes the frames. If the read fails, close the subscription and call
        ``on_end`` before returning.
        """
        if self.state is not State.PENDING or self._started:
            return b""
        self._started = True
        if not self.has_start_position:
            return b""
        self.state = State.PAUSED if self.sink.paused else State.CATCHING_UP
        read = self._read_batch()
        self._dispatcher.delivered += len(read.records)
        if read.more and self.state is State.CATCHING_UP:
            self._schedule_catch_up()
        self._dispatcher.schedule_if_finished(self._group)
        return read.frames

    def pause(self) -> None:
        """Stop writing because the sink's buffer is full.

        ``resume`` continues to read from the cursor. This method is idempotent.
        """
        if self.state is State.LIVE:
            self._attach_cursor()
        if self.state is State.CATCHING_UP:
            self.state = State.PAUSED

    def resume(self) -> None:
        """Continue reading with the next flush, from where ``pause`` stopped. This method is idempotent."""
        if self.state is State.PAUSED:
            self.state = State.CATCHING_UP
            self._schedule_catch_up()

    def call_threadsafe(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` in the thread of the event loop.

        When called from that thread, run ``callback`` immediately. Otherwise, schedule it with
        ``call_soon_threadsafe``. This method is thread-safe.

        If the subscription is closed, do nothing. It may also be closed between scheduling and running ``callback``.

        Raises:
            RuntimeError: If the Hub has no event loop yet, or if the event loop is closed.
        """
        if self.state is not State.CLOSED:
            self._dispatcher.call_threadsafe(callback)

    # Topics.

    def update_topics(self, update: Callable[[frozenset[str]], frozenset[str]]) -> None:
        """Replace the topics with ``update(topics)``.

        Added topics are read from now on. If the subscription is closed, do nothing.
        """
        self._flush_pending()
        if self.state is State.CLOSED:
            return
        group = self._group
        topics = update(group.topics)
        if topics == group.topics:
            return
        has_all = self.live and not group.flushing
        if self.live:
            self._attach_cursor()
        if self._started and self._cursor is not None:  # otherwise, all topics are read from the start position
            self._cursor.change_topics(group.topics, topics)
        self._dispatcher.history.note_read(topics - group.topics)
        group.remove(self)
        self._group = new = self._dispatcher.replace_group(group, topics)
        new.add(self)
        has_initial = self._cursor is not None and self._cursor.has_initial_records
        if has_all and not (new.unflushed or new.flushing or has_initial or new.presence_event):
            self._become_live()
        elif self.state is State.CATCHING_UP:
            self._schedule_catch_up()
        self._dispatcher.presence.topics_changed(self, group.topics, topics)
        self._dispatcher.schedule_if_finished(new)

    # Writing.

    def catch_up(self, now: float) -> int:
        """Read the next batch from the history, write it and return the number of records.

        If there may be more records, the next batch is written in the next flush to avoid blocking the event loop.
        """
        if self.state is not State.CATCHING_UP:
            return 0
        if self.sink.paused:
            self.pause()
            return 0
        read = self._read_batch()
        if read.frames:
            try:
                self._deliver(read, now)
            except EXIT_EXCEPTIONS:
                raise
            except BaseException as error:  # noqa: BLE001  # the transport raised, so only this stream ends
                self.fail(error)
        if read.more and self.state is State.CATCHING_UP:
            self._schedule_catch_up()
        return len(read.records)

    def write(self, read: CursorRead, now: float) -> None:
        """Write to this subscription only, and count the events and bytes."""
        self._events += read.events
        self._bytes += len(read.frames)
        self._deliver(read, now)

    def _deliver(self, read: CursorRead, now: float) -> None:
        """Write the result of a read to the sink, without counting it."""
        self.sink.write(self.sink.encoder(read.frames), now)

    def write_backlog(self) -> bool:
        """Write one batch of the records that were published before ``close``. Return whether to call this again.

        While the sink is paused, write nothing and return ``True`` if there are records left. If ``select`` raises, or
        if records are missing and ``on_gap`` is ``"close"``, drop the remaining records and return ``False``.
        Exceptions raised by the sink propagate.
        """
        backlog = self._backlog
        if backlog is None or self.sink.paused:
            return backlog is not None
        try:
            read = backlog.cursor.read(backlog.topics, backlog.select, backlog.through)
        except Lagged:
            self._backlog = None
            return False
        except EXIT_EXCEPTIONS:
            raise
        except BaseException as error:  # noqa: BLE001  # select may raise anything
            self._backlog = None
            self._backlog_failed(error)
            return False
        if not read.more and backlog.last_frame:
            read = read._replace(frames=read.frames + backlog.last_frame)
        if read.frames:
            self.write(read, self._dispatcher.now())
        self._dispatcher.delivered += len(read.records)
        if read.gap is not None:
            self._dispatcher.count_gap(read.gap)
        if not read.more:
            self._backlog = None
        return read.more

    @staticmethod
    def _backlog_failed(error: BaseException) -> None:
        logger.exception("stream_rest_failed", exc_info=error)

    def drop_backlog(self) -> None:
        """Drop the records that were published before ``close``."""
        self._backlog = None

    def _read_batch(self) -> CursorRead:
        """Read a batch, count it, and become live at the end of the history.

        If the read fails, end the subscription and return an empty result.
        """
        cursor, group = self._cursor, self._group
        if cursor is None:
            return _NOTHING
        try:
            read = cursor.read(group.topics, group.select)
        except Lagged:
            self._abort(CloseReason.LAGGED)
            return _NOTHING
        except EXIT_EXCEPTIONS:
            raise
        except BaseException as error:  # noqa: BLE001  # select may raise anything
            self.fail(error)
            return _NOTHING
        self._events += read.events
        self._bytes += len(read.frames)
        if read.gap is not None:
            self._dispatcher.count_gap(read.gap)
        # Check the state and the group again, because select may close the subscription or change its topics.
        if not read.more and self.state is State.CATCHING_UP and group is self._group:
            return self._finish_catching_up(read, cursor, group)
        return read

    def _finish_catching_up(self, read: CursorRead, cursor: Cursor, group: SubscriberGroup) -> CursorRead:
        """Become live at the end of the history if that is possible. Return what to write."""
        if group.unflushed or group.flushing:
            self._schedule_catch_up()
            return read
        presence = self._presence_records(cursor, group)
        if cursor.prefix_unsent and not presence:
            group.schedule_catch_up(self)  # its next frame must contain ``retry``
            return read
        self._become_live()
        return self._with_presence(read, cursor.take_prefix(), presence) if presence else read

    def _presence_records(self, cursor: Cursor, group: SubscriberGroup) -> list[PresenceRecord]:
        """Return the records that tell who is present, unless the client knows it."""
        if group.presence_event is None or cursor.presence_known == group.presence_changes:
            return []
        return self._dispatcher.presence_records(group.topics, group.presence_event)

    def _with_presence(self, read: CursorRead, prefix: bytes, records: list[PresenceRecord]) -> CursorRead:
        """Add who is present in each topic. From then on, the group writes who joins and leaves."""
        self._events += len(records)
        frames = read.frames + prefix + b"".join([record.frame for record in records])
        self._bytes += len(frames) - len(read.frames)
        return read._replace(frames=frames, records=[*read.records, *records])

    # Closing.

    def close(self) -> None:
        """Close the subscription and leave the group.

        Records that were published before this call can still be written with ``write_backlog``.

        The owner of the sink calls this method. It does not call ``on_end``. It is idempotent.
        """
        self._close()
        self._on_end = _ignore_end

    def _close(self) -> None:
        self._flush_pending()
        if self.state is State.CLOSED:
            return
        if self.live and self._group.flushing:  # closed during a flush, before receiving all records
            self._attach_cursor()
        state, cursor, group = self.state, self._cursor, self._group
        self._detach()
        if cursor is not None and state is not State.PENDING:
            self._backlog = _Backlog(cursor, group.topics, group.select, self._dispatcher.history.end)

    def end(self, reason: CloseReason) -> None:
        """Close the subscription and call ``on_end`` with ``reason``. This method is idempotent."""
        self._flush_pending()
        if self._group.is_finished():
            self.finish()
        if self.state is not State.CLOSED:
            self._close()
            self._call_on_end(reason, None)

    def finish(self) -> None:
        """End the subscription as closed, because all of its topics are finished. Idempotent.

        If its last record is not the end of the topics, the client is sent the ID of that end, so that it is known to
        have everything if it reconnects. A subscription that is PENDING ends when it has started.
        """
        self._flush_pending()
        if self.state in (State.PENDING, State.CLOSED):
            return
        group, history = self._group, self._dispatcher.history
        needs_id = self._policy.prime and (group.select is not None or group.finished_without_event(history))
        if needs_id and self.live:
            self._attach_cursor()
        self._close()
        if needs_id and self._backlog is not None:
            last_frame = b"id: %b\n\n" % history.id_of(self._backlog.through).encode()
            self._backlog = self._backlog._replace(last_frame=last_frame)
        self._call_on_end(CloseReason.CLOSED, None)

    def fail(self, error: BaseException) -> None:
        """Close the subscription without a backlog, and call ``on_end`` with ``error``. This method is idempotent."""
        self._abort(CloseReason.ERROR, error)

    def _abort(self, reason: CloseReason, error: BaseException | None = None) -> None:
        if self.state is not State.CLOSED:
            self._detach()
            self._call_on_end(reason, error)

    def _call_on_end(self, reason: CloseReason, error: BaseException | None) -> None:
        on_end, self._on_end = self._on_end, _ignore_end  # which mostly refers to the subscription
        try:
            on_end(reason, error)
        except EXIT_EXCEPTIONS:
            raise
        except BaseException as failure:  # noqa: BLE001  # the other streams must still be served
            logger.exception("stream_end_failed", reason=reason.value, exc_info=failure)

    # Transitions.

    def switch_to_cursor(self) -> None:
        """Move from LIVE to CATCHING_UP. Called when the history is about to change."""
        if self.state is State.LIVE:
            self._attach_cursor()
            self._schedule_catch_up()

    def _activate(self) -> None:
        """Move from PENDING to CATCHING_UP or PAUSED if ``start`` was called and the start position is known."""
        if not (self._started and self.has_start_position):
            return
        if self.sink.paused:
            self.state = State.PAUSED
        else:
            self.state = State.CATCHING_UP
            self._schedule_catch_up()
        self._dispatcher.schedule_if_finished(self._group)

    def _become_live(self) -> None:
        """Move from CATCHING_UP to LIVE."""
        group = self._group
        group.add_live(self)
        self.state = State.LIVE
        self._cursor = None
        self._dispatcher.live += 1
        self._events -= group.events
        self._bytes -= group.bytes

    def _attach_cursor(self) -> None:
        """Move from LIVE to CATCHING_UP, with a cursor at the offset of the group.

        The caller must schedule the catch-up.
        """
        group = self._group
        group.add(self)
        self.state = State.CATCHING_UP
        self._dispatcher.live -= 1
        self._events += group.events
        self._bytes += group.bytes
        offset = group.written_through(self._dispatcher.history.end)
        self._cursor = Cursor(self._dispatcher.reader, self._policy, StartPosition(offset), announced=True)
        if group.presence_event is not None and not group.flushing:
            self._cursor.presence_known = group.presence_changes - group.unflushed_presence

    def _detach(self) -> None:
        """Move from any state to CLOSED."""
        if self.live:
            self._attach_cursor()
        group, self._group = self._group, _NO_GROUP
        self.state = State.CLOSED
        group.remove(self)
        self._dispatcher.release_group(group)
        self._dispatcher.presence.left(self, group.topics)
        if not self.has_start_position:
            self._dispatcher.unresolved.discard(self)

    def _seek(self, start: StartPosition, *, announced: bool = False) -> None:
        if self._cursor is not None:
            self._cursor.seek(start, announced=announced)

    def _schedule_catch_up(self) -> None:
        self._group.schedule_catch_up(self)
        self._dispatcher.schedule(self._group)

    def _flush_pending(self) -> None:
        """Write the records that are already published. Called before this subscription changes."""
        group = self._group
        if self.live and len(group.unflushed) > group.unflushed_presence:
            self._dispatcher.flush(group)


def _ignore_end(reason: CloseReason, error: BaseException | None) -> None:
    """Do nothing: a subscription ends once."""


class TimeBudget:
    """The time remaining for catch-up reads in a flush. The first read is always performed."""

    __slots__ = ("postponed", "seconds")

    def __init__(self) -> None:
        self.seconds: float = CATCH_UP_BUDGET
        self.postponed: bool = False
        """Whether reads were postponed in the group that was flushed last."""


class SubscriberGroup:
    """Subscriptions that receive the same bytes because they have the same topics, ``select`` function and encoder.

    Live subscriptions have received everything up to ``offset``. The group stores no other state for them. All other
    subscriptions have a cursor. If they are scheduled to catch up, they read a batch in the next flush.
    """

    __slots__ = (
        "_catching_up",
        "_live",
        "_not_live",
        "_sinks",
        "bytes",
        "encoder",
        "events",
        "finished",
        "flushing",
        "offset",
        "presence_changes",
        "presence_event",
        "select",
        "topics",
        "unflushed",
        "unflushed_presence",
    )

    def __init__(
        self,
        topics: frozenset[str],
        select: Select | None,
        encoder: Callable[[bytes], bytes],
        offset: int,
        presence_event: str | None = None,
    ) -> None:
        self.topics: frozenset[str] = topics
        self.presence_event: str | None = presence_event
        self.presence_changes: int = 0  # total number of changes of who is present
        self.unflushed_presence: int = 0  # those among ``unflushed``
        self.finished: dict[str, int] | None = None  # the topics that are finished, with the offsets of their ends
        self.select: Select | None = select
        self.encoder: Callable[[bytes], bytes] = encoder
        self.offset: int = offset
        self.unflushed: list[Record] = []  # published since the last flush
        self.flushing: bool = False  # during a flush, some live subscriptions may be ahead of others
        self.events: int = 0  # total written to live subscriptions since the group was created
        self.bytes: int = 0
        self._live: dict[Subscription, None] = {}
        self._sinks: tuple[Sink, ...] | None = None  # cached sinks of the live subscriptions; None when stale
        self._not_live: dict[Subscription, None] | None = None  # None instead of empty, to save memory
        # Subscriptions that catch up in the next flush. Once live, they also receive the ephemeral records in
        # ``unflushed`` from this index on. The index is sys.maxsize for a subscription that was scheduled during a
        # flush, so that it receives no ephemeral records from that flush.
        self._catching_up: dict[Subscription, int] = {}

    @property
    def live_count(self) -> int:
        """The number of live subscriptions."""
        return len(self._live)

    @property
    def size(self) -> int:
        """The number of subscriptions."""
        return len(self._live) + len(self._not_live or ())

    @property
    def due_count(self) -> int:
        """The number of subscriptions that the next flush writes to."""
        return (len(self._live) if self.unflushed else 0) + len(self._catching_up)

    def forget_sinks(self) -> None:
        """Read the sinks of the live subscriptions again, because one of them has changed."""
        self._sinks = None

    def forget_frames(self) -> None:
        """Keep nothing of the frames that were written, because records were erased."""

    def live_subscriptions(self) -> list[Subscription]:
        """Return the live subscriptions."""
        return list(self._live)

    def subscriptions(self) -> list[Subscription]:
        """Return all subscriptions."""
        return [*self._live, *(self._not_live or ())]

    def add_presence(self, record: PresenceRecord) -> None:
        """Add a change of who is present to the next flush."""
        self.unflushed.append(record)
        self.unflushed_presence += 1
        self.presence_changes += 1

    def finish(self, topic: str, offset: int) -> None:
        """Remember that a topic is finished. It is remembered longer than by the history, for slow subscriptions."""
        if self.finished is None:
            self.finished = {}
        self.finished[topic] = offset

    def is_finished(self) -> bool:
        """Return whether there are topics, and all of them are finished."""
        return self.finished is not None and bool(self.topics) and len(self.finished) == len(self.topics)

    def finished_without_event(self, history: History) -> bool:
        """Return whether the last of the ends is not an event, so that no client knows its ID."""
        topic, offset = max((self.finished or {}).items(), key=itemgetter(1))
        return history.last_offset(topic) != offset

    def add(self, subscription: Subscription) -> None:
        """Add a subscription that is not live. If it was live, it no longer is."""
        self.remove(subscription)
        if self._not_live is None:
            self._not_live = {}
        self._not_live[subscription] = None

    def add_live(self, subscription: Subscription) -> None:
        """Make a subscription live. The subscription must have received every record that the group has flushed."""
        self.remove(subscription)
        self._live[subscription] = None
        self._sinks = None

    def schedule_catch_up(self, subscription: Subscription) -> None:
        """Let a subscription catch up in the next flush. This method is idempotent."""
        self._catching_up.setdefault(subscription, sys.maxsize if self.flushing else len(self.unflushed))

    def remove(self, subscription: Subscription) -> None:
        """Remove a subscription. This method is idempotent."""
        self._catching_up.pop(subscription, None)
        if subscription in self._live:
            del self._live[subscription]
            self._sinks = None
        elif self._not_live is not None:
            self._not_live.pop(subscription, None)
            if not self._not_live:
                self._not_live = None

    def written_through(self, end: int) -> int:
        """Return the offset up to which the live subscriptions have all records, if the history ends at ``end``.

        ``offset`` alone does not advance when other topics receive records. Of those topics too many may have been
        evicted to remember each, so that a gap would be reported after an older offset.
        """
        return self.offset if self.flushing else _offset_before(self.unflushed, end)

    def flush(self, now: float, budget: TimeBudget, end: int) -> int:
        """Write new records to the live subscriptions, then let other subscriptions catch up.

        If a sink or a ``select`` function calls this method during a flush, do nothing and return 0. Otherwise, newer
        records would be written before the current flush is complete.

        Args:
            now: The current time of the event loop, in seconds.
            budget: The time that remains for catching up.
            end: The offset of the end of the history.

        Returns:
            The number of deliveries.
        """
        if self.flushing:
            return 0
        records, self.unflushed = self.unflushed, []
        self.unflushed_presence = 0
        delivered = 0
        if records:
            self.flushing = True
            if not records[0].offset or self.select is not None:  # otherwise the first write advances it
                self.offset = max(self.offset, _offset_before(records, end))
            try:
                delivered = self._write_to_live(records, now)
            finally:
                self.flushing = False
            self._advance(records)  # include the records that select rejected, which _write did not see
        if self._catching_up:
            delivered += self._catch_up(records, now, budget)
        return delivered

    # Live subscriptions.

    def _write_to_live(self, records: list[Record], now: float) -> int:
        if self._live and self.select is not None:
            records = self._select(records, self.select)
        if not self._live:
            return 0
        if len(records) == 1:
            return self._write(records, records[0].frame, now)
        return sum(self._write(batch, b"".join([record.frame for record in batch]), now) for batch in batches(records))

    def _select(self, records: list[Record], select: Select) -> list[Record]:
        """Return the records that ``select`` accepts. If ``select`` raises, all live subscriptions fail."""
        try:
            return select_records(records, select)
        except EXIT_EXCEPTIONS:
            raise
        except BaseException as error:  # noqa: BLE001  # select may raise anything
            for subscription in list(self._live):
                subscription.fail(error)
            return []

    def _write(self, records: list[Record], frames: bytes, now: float) -> int:
        """Write a batch to every live subscription."""
        self._count(records, frames)
        sinks = self._live_sinks()
        for payload, part in self._encode(frames, sinks):
            self._write_payload(payload, part, now)
        return len(sinks) * len(records)

    def _encode(self, frames: bytes, sinks: tuple[Sink, ...]) -> Iterable[tuple[bytes, Iterable[Sink]]]:
        """Return what each part of the sinks is to be written."""
        return ((self.encoder(frames), sinks),)

    def _count(self, records: list[Record], frames: bytes) -> None:
        """Count a batch before it is written, so that a subscription paused by the write resumes after it."""
        self._advance(records)
        self.events += len(records)
        self.bytes += len(frames)

    def _live_sinks(self) -> tuple[Sink, ...]:
        if self._sinks is None:
            self._sinks = tuple([subscription.sink for subscription in self._live])
        return self._sinks

    def _write_payload(self, payload: bytes, sinks: Iterable[Sink], now: float) -> None:
        for sink in sinks:
            try:
                sink.write(payload, now)
            except EXIT_EXCEPTIONS:
                raise
            except BaseException as error:  # noqa: BLE001  # the transport raised, so only this stream ends
                self._fail(sink, error)

    def _advance(self, records: list[Record]) -> None:
        self.offset = max(self.offset, *(record.offset for record in records), 0)  # ephemeral records have offset 0

    def _fail(self, sink: Sink, error: BaseException) -> None:
        for subscription in list(self._live):
            if subscription.sink is sink:
                logger.exception("stream_write_failed", topics=sorted(self.topics), exc_info=error)
                subscription.fail(error)

    # Subscriptions that catch up.

    def _catch_up(self, records: list[Record], now: float, budget: TimeBudget) -> int:
        """Let the scheduled subscriptions read a batch each until the time budget is exhausted."""
        scheduled, self._catching_up = self._catching_up, {}
        has_ephemeral = any(record.id is None for record in records)
        postponed: dict[Subscription, int] = {}
        delivered = 0
        started = time.monotonic()
        for subscription, index in scheduled.items():
            if budget.seconds <= 0:
                if self._not_live is not None and subscription in self._not_live:  # it may have left the group
                    postponed[subscription] = 0
                continue
            delivered += subscription.catch_up(now)
            if has_ephemeral and subscription in self._live:
                delivered += self._write_ephemeral(subscription, records[index:], now)
            ended = time.monotonic()
            budget.seconds -= ended - started
            started = ended
        if postponed:
            budget.postponed = True
            # Start the next flush with the postponed subscriptions. Those that need another batch come after them.
            others = {each: index for each, index in self._catching_up.items() if each not in postponed}
            self._catching_up = postponed | others
        return delivered

    def _write_ephemeral(self, subscription: Subscription, records: list[Record], now: float) -> int:
        """Write the ephemeral records to a subscription that has just become live.

        Ephemeral records are not in the history, so the subscription could not read them with its cursor.
        """
        try:
            ephemeral = [each for each in records if each.id is None and type(each) is not PresenceRecord]
            ephemeral = select_records(ephemeral, self.select)
            if ephemeral:
                frames = b"".join([record.frame for record in ephemeral])
                subscription.write(CursorRead(frames, ephemeral, None, more=False), now)
        except EXIT_EXCEPTIONS:
            raise
        except BaseException as error:  # noqa: BLE001  # select or the transport may raise anything
            subscription.fail(error)
            return 0
        return len(ephemeral)


def _offset_before(records: list[Record], end: int) -> int:
    """Return the offset before the first of the records that is in the history, or ``end`` if none is."""
    first = records[0].offset if records else 0
    if not first:  # an ephemeral one, or one that tells who is present
        first = next((record.offset for record in records if record.offset), end + 1)
    return first - 1


_NO_GROUP = SubscriberGroup(frozenset(), None, bytes, 0)
"""The group of all closed subscriptions. They refer to it so that the group they have left can be freed."""


def as_records(frames: bytes) -> bytes:
    """Mark a sink that receives records instead of frames. This encoder is never called."""
    return frames


class RecordSink(Protocol):
    """A sink that receives records in this process instead of frames."""

    paused: bool
    """Whether the sink's buffer is full."""

    def write_records(self, records: list[Record], gap: Gap | None) -> None:
        """Receive records.

        This method may call ``Subscription.pause``.

        Args:
            records: The records, in order.
            gap: The gap before the first record, or ``None``.
        """

    def fail(self, error: BaseException) -> None:
        """Receive an error of ``select`` that ends the records."""


class RecordSubscription(Subscription):
    """A subscription whose sink is a ``RecordSink``."""

    __slots__ = ()

    def _deliver(self, read: CursorRead, now: float) -> None:  # noqa: ARG002
        cast("RecordSink", self.sink).write_records(read.records, read.gap)

    def _backlog_failed(self, error: BaseException) -> None:  # type: ignore[override]  # a static method is enough there
        cast("RecordSink", self.sink).fail(error)


class _RecordGroup(SubscriberGroup):
    """A group whose sinks are ``RecordSink`` objects."""

    __slots__ = ()

    def _write(self, records: list[Record], frames: bytes, now: float) -> int:  # noqa: ARG002
        self._count(records, frames)
        subscriptions = self.live_subscriptions()
        for subscription in subscriptions:
            cast("RecordSink", subscription.sink).write_records(records, None)
        return len(subscriptions) * len(records)


class _CompressedGroup(SubscriberGroup):
    """A group whose sinks compress. What the live ones are sent is compressed once for all."""

    __slots__ = ("_audience",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        encoder = cast("SharedEncoder", self.encoder)
        self._audience: Audience[Sink] = Audience(encoder.framing, encoder.settings, _encoder_of)

    def add_live(self, subscription: Subscription) -> None:
        super().add_live(subscription)
        _encoder_of(subscription.sink).enter(self._audience)

    def remove(self, subscription: Subscription) -> None:
        if subscription in self._live:
            _encoder_of(subscription.sink).leave()
        super().remove(subscription)

    def forget_frames(self) -> None:
        self._audience.forget()

    def _encode(self, frames: bytes, sinks: tuple[Sink, ...]) -> Iterable[tuple[bytes, Iterable[Sink]]]:
        return self._audience.encode(frames, sinks)


_encoder_of: Callable[[Sink], SharedEncoder] = attrgetter("encoder")


def _group_class(encoder: Callable[[bytes], bytes]) -> type[SubscriberGroup]:
    if isinstance(encoder, SharedEncoder):
        return _CompressedGroup
    return _RecordGroup if encoder is as_records else SubscriberGroup


def batches(records: Iterable[Record]) -> list[list[Record]]:
    """Split records into batches of about ``BATCH_SIZE`` bytes."""
    split: list[list[Record]] = []
    size = BATCH_SIZE
    for record in records:
        if size >= BATCH_SIZE:
            split.append([])
            size = 0
        split[-1].append(record)
        size += len(record.frame)
    return split


class Dispatcher:
    """Dispatches the records of a Hub to its groups of subscriptions.

    A dispatcher is bound to a single event loop at a time.

    Args:
        history: The history of the Hub.
        history_age: The maximum age of a record, in seconds. ``None`` means no limit.
        unresolved: The subscriptions whose start position is not known yet.
    """

    def __init__(self, history: History, history_age: float | None, unresolved: PendingSubscriptions) -> None:
        self.history: History = history
        self.reader: HistoryReader = HistoryReader(history, self.now)
        self.unresolved: PendingSubscriptions = unresolved
        self.subscribers: int = 0
        """The number of open subscriptions."""
        self.live: int = 0
        """The number of subscriptions that are live."""
        self.gaps: int = 0
        """The number of gap events written since the dispatcher was created."""
        self.delivered: int = 0
        """The number of deliveries since the dispatcher was created.

        A record that is written to two subscriptions counts as two deliveries.
        """
        self.presence: Presence = Presence(self._presence_changed)
        """Who is present in each topic."""
        self._presence_lists: dict[str, dict[str, PresenceRecord]] = {}  # by topic and name, until a change
        self.on_finish: Callable[[str, str | None], None] | None = None
        """Called with each topic that is finished, and the key of its end."""
        self.observers: Observers[HubFact] = Observers(None, "hub_observer_dropped")
        """The functions that are called with each fact of the Hub."""
        self._history_age = history_age
        self._groups: dict[_GroupKey, SubscriberGroup] = {}
        self._patterns: PatternIndex[SubscriberGroup] = PatternIndex()
        self._dirty: dict[SubscriberGroup, None] = {}  # groups to flush
        self._scheduled = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._expiry: asyncio.TimerHandle | None = None
        self._forgotten = 0.0  # when the groups last forgot the frames that they had written

    # Event loop.

    def bind(self) -> asyncio.AbstractEventLoop:
        """Bind to the running event loop and return it.

        Raises:
            RuntimeError: If the Hub is bound to another event loop that is not closed, and that loop is running or has
                open streams.
        """
        loop, old = asyncio.get_running_loop(), self._loop
        if loop is not old:
            if old is not None and not old.is_closed() and (self.subscribers or old.is_running()):
                raise RuntimeError("this Hub belongs to another event loop; from here, publish with publish_threadsafe")
            self.close()
            self._loop, self._thread = loop, threading.get_ident()
            self._scheduled = False
            if self._dirty:
                self._schedule_flush(loop)
            self._expire()
        return loop

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop. This method is thread-safe.

        Raises:
            RuntimeError: If the Hub has no event loop yet.
        """
        if self._loop is None:
            raise RuntimeError("this Hub has no event loop yet; setup(app, hub) binds it to that of the application")
        return self._loop

    def now(self) -> float:
        """Bind to the running event loop and return its time, in seconds.

        This method raises the same exceptions as ``bind``.
        """
        return self.bind().time()

    def call_threadsafe(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` in the thread of the event loop. This method is thread-safe.

        When called from that thread, run ``callback`` immediately.
        """
        if threading.get_ident() == self._thread:
            callback()
        else:
            self.get_loop().call_soon_threadsafe(callback)

    def close(self) -> None:
        """Cancel all timers. This method is idempotent."""
        self.unresolved.close()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def end_all(self, reason: CloseReason) -> None:
        """End every subscription with ``reason``, after flushing the records that were already published."""
        for group in list(self._groups.values()):
            for subscription in group.subscriptions():
                subscription.end(reason)

    def end_listeners(self, reason: CloseReason) -> None:
        """End every subscription whose sink is a ``RecordSink``, after flushing what was already published."""
        for group in list(self._groups.values()):
            if isinstance(group, _RecordGroup):
                for subscription in group.subscriptions():
                    subscription.end(reason)

    # Dispatch.

    def dispatch(self, record: Record) -> None:
        """Append a record to each group that matches its topic, and schedule a flush.

        Nothing is written until the flush.
        """
        for group in self._patterns.matching(record.topic):
            group.unflushed.append(record)
            self._dirty[group] = None
            if group.finished is not None:  # the topic was forgotten, and is used again
                group.finished.pop(record.topic, None)
        loop = self._loop
        assert loop is not None  # noqa: S101  # a Hub is bound before anything is published
        if self._dirty and not self._scheduled:
            self._schedule_flush(loop)
        if self._expiry is None and self._history_age is not None:
            self._expiry = loop.call_later(self._history_age, self._expire)

    def finish(self, topic: str, offset: int, time: float, key: str | None) -> None:
        """Mark a topic as finished at an offset. End the subscriptions whose topics are all finished in the next flush.

        ``time`` is in seconds of the event loop's clock, and ``key`` is that of the end.
        """
        self.history.finish(topic, offset, time, key)
        if self.on_finish is not None:
            self.on_finish(topic, key)
        for group in self._patterns.matching(topic):
            if topic in group.topics:
                group.finish(topic, offset)
                self.schedule_if_finished(group)
        if self._expiry is None:
            self._expire()

    def presence_records(self, topics: Iterable[str], name: str) -> list[PresenceRecord]:
        """Return the records that tell who is present in some topics, one for each topic that is not a wildcard."""
        return [self._presence_list(topic, name) for topic in sorted(topics) if not is_wildcard(topic)]

    def _presence_list(self, topic: str, name: str) -> PresenceRecord:
        lists = self._presence_lists.setdefault(topic, {})
        if name not in lists:
            lists[name] = self._presence_record(topic, name, present=sorted(self.presence.members(topic)))
        return lists[name]

    def _presence_changed(self, topic: str, identity: str, joined: bool) -> None:  # noqa: FBT001
        """Dispatch to the groups that asked for it who has joined or left a topic."""
        self._presence_lists.pop(topic, None)
        for group in self._patterns.matching(topic):
            if group.presence_event is not None and topic in group.topics:
                change = {"joined" if joined else "left": identity}
                group.add_presence(self._presence_record(topic, group.presence_event, **change))
                self.schedule(group)

    def _presence_record(self, topic: str, name: str, **content: object) -> PresenceRecord:
        event = presence_event(name, topic, **content)
        return PresenceRecord(0, None, topic, event, encode(event), None, self.now())

    def schedule_if_finished(self, group: SubscriberGroup) -> None:
        """Flush a group in the next iteration of the event loop if all of its topics are finished."""
        if group.is_finished():
            self.schedule(group)

    def schedule(self, group: SubscriberGroup) -> None:
        """Flush a group in the next iteration of the event loop. This method is idempotent."""
        self._dirty[group] = None
        if not self._scheduled and self._loop is not None:
            self._schedule_flush(self._loop)

    def _schedule_flush(self, loop: asyncio.AbstractEventLoop) -> None:
        # If this raises because the loop is closed, dispatch tries again.
        loop.call_soon(self._flush_observed if self.observers else self._flush_dirty)
        self._scheduled = True

    def _flush_observed(self) -> None:
        """Flush all groups that have something to write, and tell the observers."""
        records = len({record for group in self._dirty for record in group.unflushed})
        streams = sum(group.due_count for group in self._dirty)
        started = time.perf_counter()
        self._flush_dirty()
        self.observers.tell(HubFlushed(time.perf_counter() - started, records, streams))

    def _flush_dirty(self) -> None:
        """Flush all groups that have something to write.

        If there is no time left for a group to catch up, it comes first in the next flush.
        """
        self._scheduled = False
        dirty, self._dirty = self._dirty, {}
        budget, late = TimeBudget(), []
        for group in dirty:
            in_time, budget.postponed = budget.seconds > 0, False
            self._flush(group, budget)
            if budget.postponed:
                self.schedule(group)
                if not in_time:
                    late.append(group)
        if late:
            self._dirty = dict.fromkeys(late) | self._dirty

    def flush(self, group: SubscriberGroup) -> None:
        """Flush a group immediately."""
        budget = TimeBudget()
        self._flush(group, budget)
        if budget.postponed:
            self.schedule(group)

    def _flush(self, group: SubscriberGroup, budget: TimeBudget) -> None:
        loop = self._loop
        assert loop is not None  # noqa: S101  # a Hub is bound before anything is published
        try:
            self.delivered += group.flush(loop.time(), budget, self.history.end)
            if group.is_finished() and not group.flushing:
                for subscription in group.subscriptions():
                    subscription.finish()
        except EXIT_EXCEPTIONS:
            raise
        except BaseException as error:  # noqa: BLE001  # other groups must be flushed despite a bug
            logger.exception("hub_flush_failed", topics=sorted(group.topics), exc_info=error)
            for subscription in group.subscriptions():  # make clients reconnect, as it is unknown what was written
                subscription.fail(error)

    def count_gap(self, gap: Gap) -> None:
        """Count a gap event that was written to a stream, and tell the observers."""
        self.gaps += 1
        self.observers.tell(HubGap(str(gap.reason)))

    # Changes of the history.

    def skip(self, topic: str, offset: int) -> None:
        """Skip a record that cannot be read, and report a gap to the subscriptions that match its topic."""
        live: list[Subscription] = []
        for group in self._patterns.matching(topic):
            if group.live_count:
                self.flush(group)  # write the records before the gap
                live += group.live_subscriptions()
        for subscription in live:
            subscription.switch_to_cursor()
        self.history.skip(topic, offset)
        for group in self._patterns.matching(topic):
            group.offset = offset

    def erase(self, topic: str) -> None:
        """Remove all records of a topic from the history. Live streams receive what was published before.

        Streams that have not read that far get a gap.
        """
        for group in self._patterns.matching(topic):
            if group.unflushed:
                self.flush(group)
            group.forget_frames()
        self.history.erase(topic)
        self.reader.invalidate()
        forget_replays()

    def change_history(self, change: Callable[[], None]) -> None:
        """Call ``change`` after flushing all groups and switching every live subscription to a cursor.

        Exceptions raised by ``change`` propagate.
        """
        self._flush_dirty()
        for group in self._groups.values():
            for subscription in group.live_subscriptions():
                subscription.switch_to_cursor()
        try:
            change()
        finally:
            self.reader.invalidate()
            forget_replays()
            for group in self._groups.values():
                group.forget_frames()
                group.offset = self.history.end

    def _expire(self) -> None:
        """Evict a batch of expired records, and schedule the next run of the expiry timer."""
        self._expiry = None
        loop, age = self._loop, self._history_age
        if loop is not None and age is not None:
            now = loop.time()
            self.history.expire(now, EXPIRE_BATCH)
            due = self.history.next_expiry()
            forget_replays()
            if due is None or self._forgotten + age <= now:  # without records, there is no further check
                self._forget_frames(now)
            if due is not None:
                when = now if due <= now else max(due, now + age / EXPIRY_CHECKS)
                self._expiry = loop.call_at(when, self._expire)

    def _forget_frames(self, now: float) -> None:
        """Keep nothing of the frames that were written. Called rarely, because groups compress worse after it."""
        self._forgotten = now
        for group in self._groups.values():
            group.forget_frames()

    # Groups.

    def acquire_group(
        self,
        topics: frozenset[str],
        select: Select | None,
        encoder: Callable[[bytes], bytes],
        presence_event: str | None = None,
    ) -> SubscriberGroup:
        """Return the group for these arguments, creating it if needed, and increment the number of subscribers."""
        self.subscribers += 1
        return self._get_group(topics, select, encoder, presence_event)

    def replace_group(self, group: SubscriberGroup, topics: frozenset[str]) -> SubscriberGroup:
        """Return the group that differs only in its ``topics``, creating it if needed.

        Discard ``group`` if it is empty.
        """
        new = self._get_group(topics, group.select, group.encoder, group.presence_event)
        for topic, offset in (group.finished or {}).items():
            if topic in topics:
                new.finish(topic, offset)
        self._discard_if_empty(group)
        return new

    def release_group(self, group: SubscriberGroup) -> None:
        """Decrement the number of subscribers, and discard ``group`` if it is empty."""
        self.subscribers -= 1
        self._discard_if_empty(group)

    def count_subscribers(self, topic: str) -> int:
        """Return the number of subscriptions that match ``topic``."""
        return sum(group.size for group in self._patterns.matching(topic))

    def subscribed_topics(self) -> set[str]:
        """Return the topic names and wildcards of all subscriptions."""
        return {topic for group in self._groups.values() for topic in group.topics}

    @property
    def groups(self) -> int:
        """The number of groups."""
        return len(self._groups)

    def _get_group(
        self,
        topics: frozenset[str],
        select: Select | None,
        encoder: Callable[[bytes], bytes],
        presence_event: str | None,
    ) -> SubscriberGroup:
        key = topics, select, encoder, presence_event
        group = self._groups.get(key)
        if group is None:
            make = _group_class(encoder)
            group = self._groups[key] = make(topics, select, encoder, self.history.end, presence_event)
            for name in topics:
                self._patterns.add(name, group)
                if self.history.is_finished(name):
                    group.finish(name, self.history.finished_at(name))
        return group

    def _discard_if_empty(self, group: SubscriberGroup) -> None:
        if not group.size:
            del self._groups[group.topics, group.select, group.encoder, group.presence_event]
            for name in group.topics:
                self._patterns.discard(name, group)
                if group.presence_event is not None:
                    self._presence_lists.pop(name, None)
