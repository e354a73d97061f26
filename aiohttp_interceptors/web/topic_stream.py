"""How streams of a Hub behave: the options of ``start_topic_stream``, checked before anybody opens one."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TypeAlias, cast

from .._threads import check_loop
from ..channel import CloseReason
from ..hub.cursor import OnGap, SubscriptionPolicy
from ..hub.hub import Hub, Subscriber
from ..hub.record import Gap, Record
from ..hub.topics import check_pattern
from ..interceptor import Interceptor, check_call
from ..sse import Event, encode, frame_with_id
from .app import Streams
from .context import RequestContext
from .producer import Producer, name_of
from .request import is_of_event_source, last_event_id_of
from .response import ChannelResponse
from .settings import OnClose, StreamSettings, check_function
from .stream import Stream, StreamStatistics, enter_stream
from .transport import BATCH, Connection

__all__ = [
    "Select",
    "Snapshot",
    "SnapshotOf",
    "SubscriberReady",
    "TopicSettings",
    "TopicStream",
    "Topics",
    "names_of",
    "start_topic_stream",
]


Topics: TypeAlias = (
    str | Iterable[str] | Callable[[RequestContext], str | Iterable[str] | Awaitable[str | Iterable[str]]]
)
Select: TypeAlias = Callable[[RequestContext, Record], object]
SubscriberReady: TypeAlias = Callable[[Subscriber, RequestContext], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSettings(StreamSettings):
    """What all streams of one ``start_topic_stream`` share."""

    select: Select | None
    snapshot: SnapshotOf | None
    stream_ready: SubscriberReady | None
    policy: SubscriptionPolicy
    unprimed: SubscriptionPolicy | None
    """That of clients which are not to be primed; ``None`` if all have the same."""

    @property
    def held(self) -> bool:
        """Whether the head waits for the first frames: nobody is called who must find it on the wire."""
        return self.snapshot is None and self.stream_ready is None

    def __post_init__(self) -> None:
        StreamSettings.__post_init__(self)  # super() does not know a class that was made anew to have slots
        if self.select is not None:
            check_function("select", self.select, "context", "record")
            if inspect.iscoroutinefunction(self.select):  # what it returns is true, whatever it is about to say
                raise TypeError(f"select is a plain function, called for each record, not {self.select!r}")
        if self.snapshot is not None:
            check_function("snapshot", self.snapshot, "context")
        if self.stream_ready is not None:
            check_function("stream_ready", self.stream_ready, "subscriber", "context")
        if self.snapshot is not None and self.policy.replay:
            raise ValueError("a stream begins with a snapshot or with a replay of records, not with both")


def names_of(topics: object) -> tuple[str, ...]:
    """Return the names of one topic or of many, checked. Raises ``TypeError`` or ``ValueError``."""
    if isinstance(topics, str):
        return (check_pattern(topics),)
    if not isinstance(topics, Iterable):
        raise TypeError(f"topics are a str, some of them, or a function of the context, not {topics!r}")
    return tuple(map(check_pattern, topics))


Events: TypeAlias = Iterable[Event | str] | AsyncIterable[Event | str]


class Snapshot:
    """Events that show a state, and the id of the last record whose effect they show.

    ``events`` is a list or an async iterable of events and strings; ``id`` is one that ``publish`` returned, or
    ``None`` if it is not known: then records may follow whose effect is shown already.
    """

    __slots__ = ("events", "id")

    def __init__(self, events: Events, id: str | None = None) -> None:  # noqa: A002  # the field's name
        if isinstance(events, (str, bytes, Event, Mapping)) or not isinstance(events, (Iterable, AsyncIterable)):
            raise TypeError(f"a snapshot is a list or an async iterable of events, or a Snapshot, not {events!r}")
        if id is not None and not isinstance(id, str):
            raise TypeError(f"a snapshot's id is what publish returned, a str or None, not {id!r}")
        self.events: Events = events
        self.id: str | None = id

    @classmethod
    async def taken(cls, snapshot_of: SnapshotOf, context: RequestContext) -> Snapshot:
        """Call a function that gives a snapshot, or its events alone."""
        taken: object = snapshot_of(context)
        if inspect.isawaitable(taken):
            taken = await taken
        return taken if isinstance(taken, Snapshot) else cls(cast("Events", taken))

    async def frames(self, beginning: bytes, id: str) -> AsyncGenerator[tuple[int, bytes], None]:  # noqa: A002  # as above
        """Give the frames in pieces, each with its number of events; the last one has the id.

        ``beginning`` goes before the first. A list is joined to pieces of about a batch; what an async iterable gives
        goes out when its next one is there, since only then it is known not to be the last.
        """
        count, ready = 0, beginning
        last: bytes | None = None
        async with aclosing(_frames(self.events)) as frames:
            async for frame, waits in frames:
                if last is not None:
                    count, ready = count + 1, ready + last
                    if waits or len(ready) >= BATCH:
                        yield count, ready
                        count, ready = 0, b""
                last = frame
        if last is not None:
            yield count + 1, ready + frame_with_id(id, last)


async def _frames(events: Events) -> AsyncGenerator[tuple[bytes, bool], None]:
    """Give each event's frame, and whether the next one is to be waited for."""
    if isinstance(events, AsyncGenerator):
        async with aclosing(events):
            async for event in events:
                yield _frame(event), True
    elif isinstance(events, AsyncIterable):
        async for event in events:
            yield _frame(event), True
    else:
        for event in events:
            yield _frame(event), False


def _frame(event: object) -> bytes:
    if isinstance(event, str):
        event = Event(event)
    if not isinstance(event, Event):
        raise TypeError(f"a snapshot holds events and strings, not {event!r}")
    if event.id is not None:
        raise ValueError(f"the Hub gives ids, and {event!r} of a snapshot has one")
    return encode(event)


SnapshotOf: TypeAlias = Callable[[RequestContext], Snapshot | Events | Awaitable[Snapshot | Events]]


# What was published before such an end is still written; after any other the client comes back for it, or is gone.
_COMPLETED = (CloseReason.CLOSED, CloseReason.SHUTDOWN)


class TopicStream(Stream):
    """One open stream of what is published under some topics."""

    __slots__ = ("_after", "_events", "_hub", "_reason", "_subscription", "_topic_settings")

    told: bool = False
    """Whether the functions that were called for the stream can know that it is over."""

    def __init__(  # made in one place
        self,
        context: RequestContext,
        response: ChannelResponse,
        connection: Connection,
        streams: Streams,
        settings: TopicSettings,
        hub: Hub,
        topics: tuple[str, ...],
    ) -> None:
        super().__init__(context, response, connection, streams, settings)
        self._topic_settings = settings
        self._hub = hub
        self._after = last_event_id_of(context.request)  # be it text or not: what is no id is answered with a gap
        self._events = 0  # of the snapshot
        self._reason: CloseReason | None = None
        policy = settings.policy
        if settings.unprimed is not None and not is_of_event_source(context.request.headers):
            policy = settings.unprimed
        select = None if settings.select is None else functools.partial(settings.select, context)
        self._subscription = hub.subscribe(
            topics, connection, self._on_end, after=self._after, select=select, policy=policy
        )

    @property
    def subscriber(self) -> Subscriber:
        """Its topics, which can be changed."""
        return Subscriber(self._subscription)

    @property
    def reason(self) -> CloseReason | None:
        """Why it ended; ``None`` as long as it has not."""
        return self._reason

    def end(self, reason: CloseReason) -> None:
        """End the stream, for this reason if it is the first: it hears of nothing any more."""
        check_loop(self.over.get_loop(), "end(reason)", "loop.call_soon_threadsafe(stream.end, reason)")
        if self._reason is None:
            self._reason = reason
            try:
                self._subscription.close()
            finally:
                self._finish()

    def close(self) -> None:
        """End the stream because a function failed that was called for it."""
        self.end(CloseReason.ERROR)

    def statistics(self) -> StreamStatistics:
        """Return what the stream has done so far."""
        return StreamStatistics(
            events=self._events + self._subscription.events,
            bytes=self._connection.bytes + self._subscription.written,
            buffered=0,
            unsent=self._connection.unsent,
            dropped=0,
            seconds=self._seconds,
            reason=self._reason,
        )

    async def end_of_body(self) -> None:
        """Send what was published before the end, a piece in each turn of the event loop, and then as any stream."""
        connection = self._connection
        while self._write_rest() and not connection.lost:
            if connection.paused:
                await connection.writable()
            else:
                await asyncio.sleep(0)
        await super().end_of_body()

    async def wind_up(self, *, patient: bool) -> None:
        """See off the functions that were called for it, and tell how it went. Runs to its end also when cancelled."""
        if self._producer is None and self._settings.on_close is not None:
            self._producer = Producer(self, self._context)
        await super().wind_up(patient=patient)

    def _first_frames(self) -> bytes:
        return self._subscription.first()

    def _start(self) -> None:
        called = self._topic_settings.stream_ready or self._topic_settings.snapshot
        if called is not None and not self._settings.held:
            self._producer = producer = Producer(self, self._context, name_of(called))
            producer.start(self._feed, producer)

    def _write_rest(self) -> bool:
        return self.reason in _COMPLETED and self._subscription.rest()

    def connection_changed(self) -> None:
        """Note that the connection is lost, or has room again."""
        if self._connection.loss is not None:
            self.end(self._connection.loss)
        else:
            self._subscription.resume()

    def connection_paused(self) -> None:
        """Note that the connection has no room any more."""
        self._subscription.pause()

    def _on_end(self, reason: CloseReason, error: BaseException | None) -> None:
        if error is not None:
            if self._producer is None:
                self._producer = Producer(self, self._context)
            if self._producer.error is None and self._topic_settings.select is not None:
                self._producer.name = name_of(self._topic_settings.select)
            self._producer.fail(error)
        self.end(reason)

    def _feed(self, producer: Producer) -> Awaitable[object] | None:
        """Call the functions that an application has for its streams, and return what of it is to be awaited."""
        settings = self._topic_settings
        ready = None if settings.stream_ready is None else settings.stream_ready(self.subscriber, self._context)
        awaited = ready if inspect.isawaitable(ready) else None
        if self._reason is not None:  # it has closed its stream, which begins with nothing then
            return awaited
        if settings.snapshot is None or (self._subscription.settled and self._is_resumed()):
            self._subscription.start()
            return awaited
        beginning = asyncio.ensure_future(self._begin_with(settings.snapshot, awaited, producer))
        if inspect.iscoroutine(awaited):
            beginning.add_done_callback(lambda _: awaited.close())  # if it never came to it
        return beginning

    def _is_resumed(self) -> bool:
        """Tell whether the client has the state already, and lacks only changes that the log has."""
        return self._after is not None and self._subscription.gap() is None

    async def _begin_with(self, snapshot_of: SnapshotOf, then: Awaitable[object] | None, producer: Producer) -> None:
        """Write the state before the changes. What is cut before its last event begins with the state again."""
        subscription, log = self._subscription, self._hub.log
        if not subscription.settled:
            await self._hub.locate(self._after)  # before that nobody knew whether it has the state
            if self._is_resumed():
                subscription.start()
                if then is not None:
                    await then
                return
        gap, offset = subscription.gap(), log.end
        policy = self._topic_settings.policy
        ready, producer.name = producer.name, name_of(snapshot_of)
        snapshot = await Snapshot.taken(snapshot_of, self._context)
        if snapshot.id is not None:
            offset, reason = await self._hub.locate(snapshot.id)
            gap = gap if reason is None else Gap(reason, snapshot.id, None)
        beginning = policy.prefix
        if gap is not None:
            beginning += encode(gap.event(policy.gap_event))
        told = await self._write_snapshot(snapshot, beginning, log.id_of(offset))
        if self._reason is not None:
            return
        if told and gap is not None:
            self._events += 1
            subscription.count_gap()
        subscription.start(offset, gap, told=told)
        producer.name = ready
        if then is not None:
            await then

    async def _write_snapshot(self, snapshot: Snapshot, beginning: bytes, event_id: str) -> bool:
        """Write the events of a snapshot until the stream ends, and return whether there was one."""
        connection, told = self._connection, False
        async with aclosing(snapshot.frames(beginning, event_id)) as pieces:
            async for count, frames in pieces:
                if connection.paused:
                    await connection.writable()
                if self._reason is not None:  # a frame now would come after what ends the stream
                    break
                connection.write_frames(frames)
                self._events += count
                told = True
        return told


def start_topic_stream(  # noqa: PLR0913  # each is an option of its own, and has a default
    hub: Hub,
    topics: Topics,
    *,
    select: Select | None = None,
    snapshot: SnapshotOf | None = None,
    on_gap: OnGap = "signal",
    gap_event: str = "gap",
    replay: int = 0,
    prime: bool | None = None,
    stream_ready: SubscriberReady | None = None,
    heartbeat: float | None = 10.0,
    retry: int | None = None,
    on_close: OnClose | None = None,
    stall_timeout: float | None = 60.0,
    max_age: float | None = None,
    strict: bool = False,
    name: str | None = None,
) -> Interceptor[RequestContext]:
    """Make an interceptor that commits an event stream of a Hub's topics, and pauses the chain while it is open.

    ``topics`` are a name or a wildcard, some of them, or a function of the context, plain or ``async``, that gives
    them: it may raise an ``HTTPException``, and what it makes of a client's words it must check, for ``>`` is every
    topic there is. Each record goes out once, however many of them it matches.

    A client that returns with ``Last-Event-ID``, or with the query's ``lastEventId`` (of a polyfill) or
    ``last_event_id`` (of the page), goes on after that record. If some of what followed is not kept any more, or the
    id is none of this Hub's life, it is told first, by an event ``gap_event`` with the JSON ``{"reason", "after",
    "first"}``. A client without an id begins now, or with the latest ``replay`` records.

    With ``prime`` the first frame has ``retry`` (milliseconds) and the id to return with, although nothing was
    published: a client that is cut before its first event misses nothing. Many that are not browsers take such a frame
    for an event without data, so by default only a request of an ``EventSource`` gets it, which its headers tell.
    Without it ``retry`` waits for the first event.

    ``select(context, record)`` says whether a client gets a record. ``snapshot(context)``, plain or ``async``, gives
    the state that a stream begins with, as a list or an async iterable of events or as a ``Snapshot``: it is called
    when the stream has its position, and its events go out before any record. A client that returned and missed
    nothing has the state already, and gets none. ``stream_ready(subscriber, context)`` is called once the stream is
    registered: the stream hears of what is published then, and topics that it adds are gone on with as the others are.
    An ``async`` one runs after the snapshot, is cancelled when the stream ends, and ends it when it raises. Later
    ``subscriber.add`` and ``remove`` change the topics of the open stream.

    A client that reads slowly costs no memory and delays nobody: it gets from the history what it has missed. When
    that is gone, ``on_gap`` says what happens: ``"signal"`` tells it and goes on, ``"close"`` ends the stream, as
    ``lagged``, and ``"conflate"`` gives the latest event per topic and ``key``, and tells only of what no later event
    makes up for. ``heartbeat``, ``on_close``, ``stall_timeout``, ``max_age`` and ``strict`` as in
    ``start_event_stream``.

    Raises ``TypeError`` or ``ValueError`` for arguments that cannot work.
    """
    if not isinstance(hub, Hub):
        raise TypeError(f"hub is a Hub, not {hub!r}")
    policy = SubscriptionPolicy(
        on_gap=on_gap, gap_event=gap_event, prime=prime is not False, replay=replay, retry=retry
    )
    settings = TopicSettings(
        select=select,
        snapshot=snapshot,
        stream_ready=stream_ready,
        policy=policy,
        unprimed=replace(policy, prime=False) if prime is None else None,
        heartbeat=heartbeat,
        retry=retry,
        on_close=on_close,
        stall_timeout=stall_timeout,
        max_age=max_age,
        strict=strict,
    )
    computed = topics if callable(topics) else None
    fixed = () if computed is not None else names_of(topics)
    if computed is not None:
        check_call("topics", "topics", computed, "context")
    if name is None:
        name = f"start_topic_stream({getattr(topics, '__name__', 'topics') if computed else ', '.join(fixed)})"

    def choose(context: RequestContext) -> Awaitable[tuple[str, ...]] | tuple[str, ...]:
        hub.check_open()  # one of another event loop, or one that was closed, says so while there can be another answer
        if computed is None:
            return fixed
        chosen = computed(context)
        return _awaited(chosen) if inspect.isawaitable(chosen) else names_of(chosen)

    def make(
        context: RequestContext,
        response: ChannelResponse,
        connection: Connection,
        streams: Streams,
        names: tuple[str, ...],
    ) -> Stream:
        return TopicStream(context, response, connection, streams, settings, hub, names)

    def enter(context: RequestContext) -> Coroutine[None, None, None]:
        if not isinstance(context, RequestContext):
            raise TypeError(f"{name} needs the RequestContext of an aiohttp request, not {context!r}")
        return enter_stream(context, settings, make, choose)

    return Interceptor(name, enter)


async def _awaited(topics: Awaitable[object]) -> tuple[str, ...]:
    return names_of(await topics)
