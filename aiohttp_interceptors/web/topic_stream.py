"""Streams of a Hub's topics: ``start_topic_stream``, ``Snapshot``, and the stream that they open."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias, TypedDict, Unpack, cast

from aiohttp import web

from .._checks import check_call, check_synchronous
from .._threads import check_loop
from ..channel import CloseReason
from ..compression import Compression, SharedEncoder, compression_of
from ..encoder import Encoder, encode_value, has_named_fields
from ..hub.cursor import OnGap, Replay, SubscriptionPolicy
from ..hub.hub import Hub, Subscriber
from ..hub.owners import Owners
from ..hub.presence import check_identity
from ..hub.record import Gap, Record
from ..hub.topics import check_pattern
from ..interceptor import Interceptor
from ..sse import Event, encode, frame_with_id
from .access import ExpiresAt, Owner, Revalidate, check_derived
from .app import Streams
from .context import RequestContext
from .lifecycle import StreamLifecycle, make_interceptor
from .middleware import Handler, as_handler
from .producer import Producer, function_name
from .request import StopReconnecting, is_event_source_request, last_event_id_of
from .response import ChannelResponse
from .settings import OnClose, StreamSettings, check_function
from .stream import StreamStatistics
from .transport import BATCH_SIZE, Connection

__all__ = [
    "Select",
    "Snapshot",
    "SnapshotFunction",
    "SubscriberReady",
    "TopicSettings",
    "TopicStream",
    "TopicStreamOptions",
    "Topics",
    "start_topic_stream",
    "topic_stream",
]


Topics: TypeAlias = (
    str | Iterable[str] | Callable[[RequestContext], str | Iterable[str] | Awaitable[str | Iterable[str]]]
)
Select: TypeAlias = Callable[[RequestContext, Record], object]
Identity: TypeAlias = Callable[[RequestContext], str | None]
SubscriberReady: TypeAlias = Callable[[Subscriber, RequestContext], object]

# Reasons after which the records published before the end are still sent. After the others the client reconnects and
# gets them then, or it has disconnected.
_FLUSHED_REASONS = (CloseReason.CLOSED, CloseReason.SHUTDOWN)


def start_topic_stream(  # noqa: PLR0913  # each option is independent and has a default
    hub: Hub,
    topics: Topics,
    *,
    select: Select | None = None,
    snapshot: SnapshotFunction | None = None,
    on_gap: OnGap = "signal",
    gap_event: str = "gap",
    replay: Replay = 0,
    prime: bool | None = None,
    stream_ready: SubscriberReady | None = None,
    identity: Identity | None = None,
    presence_event: str | None = None,
    heartbeat: float | None = 10.0,
    retry: int | None = None,
    on_close: OnClose | None = None,
    stall_timeout: float | None = 60.0,
    max_age: float | None = None,
    strict: bool = False,
    owner: Owner | None = None,
    expires_at: ExpiresAt | None = None,
    revalidate: Revalidate | None = None,
    revalidate_interval: float = 60.0,
    compress: bool | Compression = False,
    name: str | None = None,
) -> Interceptor[RequestContext]:
    """Make an interceptor that opens a stream of a Hub's topics, and pauses the chain until the stream has closed.

    Its ``enter`` sends the response headers and then each record that is published under one of the topics, once.

    A client that reconnects sends the ID of its last event, as ``Last-Event-ID`` (WHATWG HTML 9.2.4) or in the query
    as ``lastEventId`` or ``last_event_id``, and gets the records after it. If records are missing, or the ID is not of
    this Hub, it first gets a gap event with the JSON ``{"reason", "after", "first"}``. A client without an ID starts at
    the end of the history, or with the latest ``replay`` records.

    A slow client does not delay other clients, and needs no buffer: it catches up from the history.

    The stream ends as ``closed`` when all of its topics are finished, see ``Hub.finish``. A client that has everything
    is then answered with 204.

    Args:
        hub: The Hub.
        topics: A topic name or a wildcard, several of them, or a plain or async function of the context that returns
            them. The function may raise an ``HTTPException`` to refuse the request. It must check what it takes from
            the request, because ``>`` matches every topic. A text that is not a topic is answered with 400.
        select: A plain function ``select(context, record)`` that returns whether the client gets a record.
        snapshot: A plain or async function ``snapshot(context)`` that returns the state as a list or an async iterable
            of events, or as a ``Snapshot``. It is called once the stream has its position in the history, and its
            events are sent before all records. It is not called for a client that resumes without a gap.
        on_gap: What happens if records are missing for a client. ``"signal"`` sends the gap event and continues,
            ``"close"`` ends the stream with the reason ``lagged``, and ``"conflate"`` sends the latest record of each
            topic and ``key``, and a gap event only for records that no later one supersedes.
        gap_event: Name of the gap event.
        replay: Number of records that a client without an ID starts with, or ``"latest"`` for the latest record of each
            topic and key (see ``Hub(latest=...)``), which a client for which records are missing gets as well. Not
            together with ``snapshot``.
        prime: Whether the stream starts with an initial frame, which has an ID and ``retry`` but no data. A client that
            disconnects before its first event then misses no record. Many clients other than browsers report the frame
            as an empty event. Default: only for requests of an ``EventSource``, recognized by their headers.
        stream_ready: A plain or async function ``stream_ready(subscriber, context)``, called once when the stream is
            subscribed. ``subscriber.add`` and ``remove`` change the topics, now or later. An async function runs after
            the snapshot, and is cancelled when the stream ends. The stream ends if it raises.
        identity: A plain function ``identity(context)`` that returns who the client is, such as the ID of a user as a
            text, or ``None``. Who has an open stream of a topic is present there, see ``Hub.presence``. It may raise an
            ``HTTPException`` to refuse the request. An invalid one is answered with 400.
        presence_event: The name of the events that tell the client who is present, or ``None`` for no such events.
            Their data is JSON: when the client has caught up, also after an interruption, it gets
            ``{"topic", "present": [...]}`` for each topic that is not a wildcard, and then ``{"topic", "joined"}`` and
            ``{"topic", "left"}`` with an identity. They have no ID, and ``select`` is not asked.
        heartbeat: Seconds of idleness after which a comment is sent; ``None`` for no heartbeats.
        retry: The reconnection time of browsers in milliseconds, sent with the initial frame or the first event.
        on_close: A plain or async function that is called once as ``on_close(context, reason)`` when the stream has
            ended, for any reason.
        stall_timeout: Seconds after which a client that acknowledges none of the sent bytes is disconnected, with the
            reason ``stalled``; ``None`` for no limit.
        max_age: Seconds after which the stream ends with the reason ``expired``, so that the client reconnects; the
            time is shortened by a random part of up to a fifth. ``None`` for no limit.
        strict: Answer 406 if the request's ``Accept`` header excludes event streams.
        owner: A plain function ``owner(context)`` that returns whose the stream is: a text such as ``"user:7"``,
            several, or ``None``. ``Hub.disconnect`` and ``Streams.disconnect`` end all streams of an owner. It and
            ``expires_at`` are called before anything else is done for the stream. An invalid owner is
            answered with 400.
        expires_at: A plain function ``expires_at(context)`` that returns when the stream ends with the reason
            ``expired``, such as the ``exp`` of a token: seconds of the Unix epoch, a ``datetime`` with a time zone, or
            ``None``. A moment that is over is answered with 401.
        revalidate: A plain or async function ``revalidate(context)`` that returns whether the stream may go on.
            ``False`` ends it as ``kicked``. An exception is logged and ends it as ``error``, so that the client has to
            ask again.
        revalidate_interval: Seconds between two calls of ``revalidate``, shortened by a random part of up to a fifth.
            It is also the time that an async one may take.
        compress: Whether streams are compressed with gzip for clients that accept it, or how. What streams of the same
            topics are sent is compressed once for all of them. Not together with ``select``, unless
            ``Compression(with_select=True)`` says that no secret is in the records.
        name: Name of the interceptor. Default: made from the topics.

    Returns:
        An interceptor for a chain that runs for an aiohttp request.

    Raises:
        TypeError: An argument has the wrong type, or a function does not take the arguments described.
        ValueError: A topic is invalid, a number is out of range, or options exclude each other.
    """
    if not isinstance(hub, Hub):
        raise TypeError(f"hub is a Hub, not {hub!r}")
    policy = SubscriptionPolicy(
        on_gap=on_gap,
        gap_event=gap_event,
        prime=prime is not False,
        replay=replay,
        retry=retry,
        presence_event=presence_event,
    )
    hub._check_policy(policy)
    if identity is not None or presence_event is not None:
        hub._share_presence()
    settings = TopicSettings(
        hub=hub,
        select=select,
        snapshot=snapshot,
        stream_ready=stream_ready,
        identity=identity,
        policy=policy,
        non_browser_policy=replace(policy, prime=False) if prime is None else None,
        heartbeat=heartbeat,
        retry=retry,
        on_close=on_close,
        stall_timeout=stall_timeout,
        max_age=max_age,
        strict=strict,
        owner=owner,
        expires_at=expires_at,
        revalidate=revalidate,
        revalidate_interval=revalidate_interval,
        compress=compress,
    )
    topics_function = topics if callable(topics) else None
    fixed_topics = () if topics_function is not None else _topic_names(topics)
    if topics_function is not None:
        check_call("topics", "topics", topics_function, "context")
    if name is None:
        listed = ", ".join(fixed_topics) if topics_function is None else getattr(topics, "__name__", "topics")
        name = f"start_topic_stream({listed})"

    def prepare(context: RequestContext) -> Awaitable[_Subject] | _Subject:
        hub._bind()  # raises while there can still be another response
        if topics_function is None:
            return _subject(hub, settings, fixed_topics, context)
        result = topics_function(context)
        if not inspect.isawaitable(result):
            return _subject(hub, settings, _derived_topics(result, context), context)
        request = context.request
        subject = functools.partial(_await_subject, hub, settings, result, context)
        return Streams.of(request).run_unless_shutdown(request, context.execution_id, subject)

    def make(
        context: RequestContext,
        response: ChannelResponse,
        connection: Connection,
        streams: Streams,
        subject: _Subject,
    ) -> StreamLifecycle:
        return TopicStream(context, response, connection, streams, settings, hub, subject)

    return make_interceptor(name, settings, make, prepare)


class TopicStreamOptions(TypedDict, total=False):
    """The keyword arguments of ``start_topic_stream``."""

    select: Select | None
    snapshot: SnapshotFunction | None
    on_gap: OnGap
    gap_event: str
    replay: Replay
    prime: bool | None
    stream_ready: SubscriberReady | None
    identity: Identity | None
    presence_event: str | None
    heartbeat: float | None
    retry: int | None
    on_close: OnClose | None
    stall_timeout: float | None
    max_age: float | None
    strict: bool
    owner: Owner | None
    expires_at: ExpiresAt | None
    revalidate: Revalidate | None
    revalidate_interval: float
    compress: bool | Compression
    name: str | None


def topic_stream(hub: Hub, topics: Topics, **options: Unpack[TopicStreamOptions]) -> Handler:
    """Make the handler of a route that streams topics of a Hub.

    ``app.router.add_get("/news", topic_stream(hub, "news"))`` is the same as with
    ``as_handler(start_topic_stream(hub, "news"))``.

    Args:
        hub: The Hub.
        topics: A topic name or a wildcard, several of them, or a function of the context, as for
            ``start_topic_stream``.
        **options: Options of ``start_topic_stream``.

    Returns:
        The handler.

    Raises:
        TypeError: As for ``start_topic_stream``.
        ValueError: As for ``start_topic_stream``.
    """
    if unknown := options.keys() - TopicStreamOptions.__annotations__.keys():
        raise TypeError(f"topic_stream() has no option {min(unknown)!r}")
    return as_handler(start_topic_stream(hub, topics, **options))


def _topic_names(topics: object, check: Callable[[object], str] = check_pattern) -> tuple[str, ...]:
    """Return the validated names of one topic or of several."""
    if isinstance(topics, str):
        return (check(topics),)
    if not isinstance(topics, Iterable):
        raise TypeError(f"topics are a str, several of them, or a function of the context, not {topics!r}")
    return tuple(map(check, tuple(topics)))  # what an iterator raises is not about a topic


def _derived_topics(topics: object, context: RequestContext) -> tuple[str, ...]:
    """Return the topics that the application's function returned. Raises the 400 response to an invalid one."""
    return _topic_names(topics, functools.partial(check_derived, context, "topic", check_pattern))


class _Subject(NamedTuple):
    """What a stream is about, and whose it is."""

    topics: tuple[str, ...]
    identity: str | None


async def _await_subject(
    hub: Hub, settings: TopicSettings, topics: Awaitable[object], context: RequestContext
) -> _Subject:
    return _subject(hub, settings, _derived_topics(await topics, context), context)


def _subject(hub: Hub, settings: TopicSettings, topics: tuple[str, ...], context: RequestContext) -> _Subject:
    """Return the subject of a stream. Raises the 204 response if its topics are finished and the client has them."""
    identity = None if settings.identity is None else check_synchronous(settings.identity(context), "identity")
    if identity is not None:
        check_derived(context, "identity", check_identity, identity)
    # With stream_ready the topics may change, and a snapshot is sent to each client without an ID.
    if hub.history.has_finished_topics and settings.stream_ready is None:
        request, select = context.request, _bind_select(settings, context)
        event_id = last_event_id_of(request)
        if (event_id is not None or settings.snapshot is None) and hub._has_everything(
            topics, event_id, select, settings.policy_for(request)
        ):
            raise StopReconnecting
    return _Subject(topics, identity)


def _bind_select(settings: TopicSettings, context: RequestContext) -> Callable[[Record], object] | None:
    return None if settings.select is None else functools.partial(settings.select, context)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSettings(StreamSettings):
    """The options that all streams of one ``start_topic_stream`` share."""

    hub: Hub
    select: Select | None
    snapshot: SnapshotFunction | None
    stream_ready: SubscriberReady | None
    identity: Identity | None
    policy: SubscriptionPolicy
    non_browser_policy: SubscriptionPolicy | None
    """The policy for clients other than an ``EventSource``; ``None`` if it is the same."""

    @property
    def defers_headers(self) -> bool:
        """Whether the headers are sent together with the first frames: no function requires them to be sent before."""
        return self.snapshot is None and self.stream_ready is None

    @property
    def encoder_class(self) -> type[SharedEncoder]:
        return SharedEncoder

    @property
    def hub_owners(self) -> Owners:
        return self.hub._owners

    def policy_for(self, request: web.Request) -> SubscriptionPolicy:
        """Return the policy for the kind of client that a request comes from."""
        if self.non_browser_policy is not None and not is_event_source_request(request.headers):
            return self.non_browser_policy
        return self.policy

    def __post_init__(self) -> None:
        StreamSettings.__post_init__(self)  # super() fails: slots=True replaces the class
        if self.select is not None:
            check_function("select", self.select, "context", "record")
            if inspect.iscoroutinefunction(self.select):  # a coroutine is always true
                raise TypeError(f"select is a plain function, called for each record, not {self.select!r}")
        if self.snapshot is not None:
            check_function("snapshot", self.snapshot, "context")
        if self.stream_ready is not None:
            check_function("stream_ready", self.stream_ready, "subscriber", "context")
        if self.identity is not None:
            if not callable(self.identity) or inspect.iscoroutinefunction(self.identity):
                raise TypeError(f"identity is a plain function of the context, not {self.identity!r}")
            check_function("identity", self.identity, "context")
        if self.snapshot is not None and self.policy.replay:
            raise ValueError("a stream starts with a snapshot or with a replay of records, not with both")
        compression = compression_of(self.compress)
        if self.select is not None and compression is not None and not compression.with_select:
            raise ValueError(
                "the length of a compressed stream tells something about what select leaves in it; without secrets in "
                "the records, use compress=Compression(with_select=True)"
            )


SnapshotEvents: TypeAlias = Iterable[object] | AsyncIterable[object]


class Snapshot:
    """Events that contain the state of some topics, and the ID of the last record that the state includes.

    Without an ID, records that the state already includes may be sent after it.

    Args:
        events: A list or an async iterable of events, strings, or values for the Hub's ``encoder``. The events have no
            ID.
        id: An ID that ``publish`` returned, or ``None`` if it is not known.

    Raises:
        TypeError: ``events`` is not such an iterable, or ``id`` is not a string.
    """

    __slots__ = ("events", "id")

    def __init__(self, events: SnapshotEvents, id: str | None = None) -> None:  # noqa: A002  # the field's name
        is_object = has_named_fields(type(events)) or hasattr(events, "_fields")  # pydantic models are iterable, too
        is_one = is_object or isinstance(events, (str, bytes, Event, Mapping))
        if is_one or not isinstance(events, (Iterable, AsyncIterable)):
            raise TypeError(f"a snapshot is a list or an async iterable of events, or a Snapshot, not {events!r}")
        if id is not None and not isinstance(id, str):
            raise TypeError(f"a snapshot's id is what publish returned, a str or None, not {id!r}")
        self.events: SnapshotEvents = events
        self.id: str | None = id


SnapshotFunction: TypeAlias = Callable[
    [RequestContext], Snapshot | SnapshotEvents | Awaitable[Snapshot | SnapshotEvents]
]


async def _take_snapshot(function: SnapshotFunction, context: RequestContext) -> Snapshot:
    result: object = function(context)
    if inspect.isawaitable(result):
        result = await result
    return result if isinstance(result, Snapshot) else Snapshot(cast("SnapshotEvents", result))


async def _snapshot_batches(
    events: SnapshotEvents, encoder: Encoder, prefix: bytes, event_id: str
) -> AsyncGenerator[tuple[int, bytes], None]:
    """Encode the events in batches, each with its number of events. The first has the prefix, the last event the ID.

    A list is encoded in batches of about ``BATCH_SIZE``. An event of an async iterable is yielded when the next one is
    available, because only then it is known not to be the last.
    """
    count, batch = 0, prefix
    previous: bytes | None = None
    async with aclosing(_encode_events(events, encoder)) as frames:
        async for frame, is_async in frames:
            if previous is not None:
                count, batch = count + 1, batch + previous
                if is_async or len(batch) >= BATCH_SIZE:
                    yield count, batch
                    count, batch = 0, b""
            previous = frame
    if previous is not None:
        yield count + 1, batch + frame_with_id(event_id, previous)


async def _encode_events(events: SnapshotEvents, encoder: Encoder) -> AsyncGenerator[tuple[bytes, bool], None]:
    """Yield the frame of each event, and whether the events come from an async iterable."""
    if isinstance(events, AsyncGenerator):
        async with aclosing(events):
            async for value in events:
                yield _encode_event(value, encoder), True
    elif isinstance(events, AsyncIterable):
        async for value in events:
            yield _encode_event(value, encoder), True
    else:
        for value in events:
            yield _encode_event(value, encoder), False


def _encode_event(value: object, encoder: Encoder) -> bytes:
    event = encode_value(encoder, value)
    if event.id is not None:
        raise ValueError(f"the Hub assigns the ids of events, and {event!r} of a snapshot already has one")
    return encode(event)


class TopicStream(StreamLifecycle):
    """An open stream of the records that are published under some topics."""

    __slots__ = ("_hub", "_last_event_id", "_reason", "_snapshot_events", "_subscription")

    _settings: TopicSettings  # type: ignore[mutable-override]  # assigned once, by the constructor

    def __init__(
        self,
        context: RequestContext,
        response: ChannelResponse,
        connection: Connection,
        streams: Streams,
        settings: TopicSettings,
        hub: Hub,
        subject: _Subject,
    ) -> None:
        super().__init__(context, response, connection, streams, settings)
        self._hub = hub
        self._last_event_id = last_event_id_of(context.request)  # not validated: an invalid ID is reported as a gap
        self._snapshot_events = 0  # sent
        self._reason: CloseReason | None = None
        policy = settings.policy_for(context.request)
        select = _bind_select(settings, context)
        self._subscription = hub.subscribe(
            subject.topics,
            _FirstEventSink(self, connection) if streams._observers else connection,
            self._on_subscription_end,
            after=self._last_event_id,
            select=select,
            identity=subject.identity,
            policy=policy,
        )

    # State

    @property
    def subscriber(self) -> Subscriber:
        """The topics of the stream, which can be changed."""
        return Subscriber(self._subscription)

    @property
    def reason(self) -> CloseReason | None:
        return self._reason

    @property
    def closed(self) -> bool:
        return self._reason is not None

    @property
    def end_observed(self) -> bool:
        """``False``, because the application's functions are cancelled when the stream ends."""
        return False

    @property
    def kind(self) -> str:
        return "topics"

    @property
    def topics(self) -> frozenset[str]:
        return self._subscription.topics

    @property
    def offset(self) -> int:
        return self._subscription.offset

    @property
    def behind(self) -> int:
        return self._subscription.behind

    @property
    def lacks_evicted(self) -> bool:
        return self._subscription.lacks_evicted

    def statistics(self) -> StreamStatistics:
        return StreamStatistics(
            events=self._snapshot_events + self._subscription.events_written,
            bytes=self._connection.frame_bytes + self._subscription.bytes_written,
            bytes_sent=self._connection.bytes_sent,
            buffered=0,
            unsent=self._connection.unsent,
            dropped=0,
            seconds=self._duration,
            reason=self._reason,
        )

    # Opening

    def _initial_frames(self) -> bytes:
        return self._subscription.start_and_read()

    def _start_producer(self) -> None:
        self.look_for_first_event()  # it may have been sent with the headers
        function = self._settings.stream_ready or self._settings.snapshot
        if function is not None and not self._settings.defers_headers:
            self._producer = producer = Producer(self, self._context, function_name(function))
            producer.start(self._call_functions, producer)

    def _call_functions(self, producer: Producer) -> Awaitable[object] | None:
        """Call ``stream_ready``, start the subscription or take the snapshot, and return what remains to be awaited."""
        settings = self._settings
        result = None if settings.stream_ready is None else settings.stream_ready(self.subscriber, self._context)
        ready = result if inspect.isawaitable(result) else None
        if self._reason is not None:  # stream_ready has closed the stream
            return ready
        if settings.snapshot is None or (self._subscription.has_start_position and self._resumes_without_gap()):
            self._subscription.start()
            return ready
        starting = asyncio.ensure_future(self._start_with_snapshot(settings.snapshot, ready, producer))
        if inspect.iscoroutine(ready):
            starting.add_done_callback(lambda _: ready.close())  # has no effect once it was awaited
        return starting

    def _resumes_without_gap(self) -> bool:
        """Return whether the client has the state, and the history has all records that it lacks."""
        return self._last_event_id is not None and self._subscription.find_gap() is None

    async def _start_with_snapshot(
        self, function: SnapshotFunction, ready: Awaitable[object] | None, producer: Producer
    ) -> None:
        """Write the snapshot, start the subscription, and await ``stream_ready``.

        Only the last event of the snapshot has an ID, so that a client which disconnects before gets a snapshot again.
        """
        subscription, history = self._subscription, self._hub.history
        if not subscription.has_start_position:
            await self._hub._pending.wait(self._last_event_id)
            if self._resumes_without_gap():
                subscription.start()
                if ready is not None:
                    await ready
                return
        gap, offset = subscription.find_gap(), history.end
        ready_name, producer.name = producer.name, function_name(function)
        snapshot = await _take_snapshot(function, self._context)
        if snapshot.id is not None:
            offset, reason = await self._hub._pending.wait(snapshot.id)
            gap = gap if reason is None else Gap(reason, snapshot.id, None)
        policy = self._settings.policy
        prefix = policy.prefix
        if gap is not None:
            prefix += encode(gap.event(policy.gap_event))
        written = await self._write_snapshot(snapshot.events, prefix, history.id_of(offset))
        if self._reason is not None:
            return
        if written and gap is not None:
            self._snapshot_events += 1
            subscription.count_gap(gap)
        subscription.start(offset, gap, announced=written)
        producer.name = ready_name
        if ready is not None:
            await ready

    async def _write_snapshot(self, events: SnapshotEvents, prefix: bytes, event_id: str) -> bool:
        """Write a snapshot's events until the stream ends, and return whether there were any."""
        connection, written = self._connection, False
        async with aclosing(_snapshot_batches(events, self._hub.encoder, prefix, event_id)) as batches:
            async for count, frames in batches:
                if connection.paused:
                    await connection.wait_writable()
                if self._reason is not None:  # the final event may be written already
                    break
                connection.write_frames(frames)
                self._snapshot_events += count
                written = True
                self.look_for_first_event()
        return written

    # The first event

    def look_for_first_event(self) -> None:
        """Report the first event if the stream is observed and has written one. Idempotent."""
        subscription, connection = self._subscription, self._connection
        if subscription.sink is not connection and (self._snapshot_events or subscription.events_written):
            subscription.replace_sink(connection)
            self._report_first_event(self._opened_at)

    def _drop_rest(self) -> None:
        self._subscription.drop_backlog()

    # Flow control

    def connection_changed(self) -> None:
        """Called when the client has disconnected, or writing can resume."""
        if self._connection.close_reason is not None:
            self.end(self._connection.close_reason)
        else:
            self._subscription.resume()

    def connection_paused(self) -> None:
        """Called when the write buffer exceeds the high-water mark."""
        self._subscription.pause()

    # Ending and closing

    def _is_finite(self) -> bool:
        """Return whether all topics are those of runs of this process, which a stopping server waits for."""
        return self._hub._runs.is_local(self._subscription.topics)

    def end(self, reason: CloseReason) -> None:
        check_loop(self.ended.get_loop(), "end(reason)", "loop.call_soon_threadsafe(stream.end, reason)")
        if self._reason is None:
            self._reason = reason
            try:
                self._subscription.close()
            finally:
                self._mark_ended()

    def producer_failed(self) -> None:
        self.end(CloseReason.ERROR)

    def _on_subscription_end(self, reason: CloseReason, error: BaseException | None) -> None:
        """End the stream because the Hub ended the subscription, or because ``select`` raised."""
        if error is not None:
            if self._producer is None:
                self._producer = Producer(self, self._context)
            if self._producer.error is None and self._settings.select is not None:
                self._producer.name = function_name(self._settings.select)
            self._producer.fail(error)
        self.end(reason)

    async def finish_body(self) -> None:
        """Write the records published before the end, one batch per event loop iteration, and end the body."""
        connection = self._connection
        while self._write_remaining() and not connection.disconnected:
            if connection.paused:
                await connection.wait_writable()
            else:
                await asyncio.sleep(0)
        await super().finish_body()

    def _write_remaining(self) -> bool:
        return self.reason in _FLUSHED_REASONS and self._subscription.write_backlog()

    async def close(self, *, allow_grace: bool) -> None:
        """Close the stream. If no function was called for it, there still is an ``on_close`` to call."""
        if self._producer is None and self._settings.on_close is not None:
            self._producer = Producer(self, self._context)
        await super().close(allow_grace=allow_grace)


class _FirstEventSink:
    """The sink of an observed stream up to its first event: its connection, and a look at what was written."""

    __slots__ = ("_connection", "_stream")

    def __init__(self, stream: TopicStream, connection: Connection) -> None:
        self._stream = stream
        self._connection = connection

    @property
    def paused(self) -> bool:
        return self._connection.paused

    @property
    def encoder(self) -> Callable[[bytes], bytes]:
        return self._connection.encoder

    def write(self, payload: bytes, now: float) -> None:
        self._connection.write(payload, now)
        self._stream.look_for_first_event()
