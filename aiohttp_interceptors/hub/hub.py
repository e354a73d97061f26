"""The Hub: publishing, subscribing, and its lifecycle."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from .._checks import check_count, check_max_event_size, check_seconds
from .._observers import Observers
from .._tasks import cancel_and_wait, run_with_timeout
from .._threads import call_in_loop, run_in_loop
from ..channel import CloseReason
from ..encoder import Encoder, check_encoder, default_encoder
from ..facts import HubFact, HubObserver
from ..sse import Event
from .broker import Broker
from .cursor import OnGap, Replay, Select, StartPosition, SubscriptionPolicy, select_records
from .dispatcher import Dispatcher, OnEnd, RecordSubscription, Sink, Subscription
from .history import EXPIRE_BATCH, History
from .latest import LatestRecords
from .listener import Listener
from .message import Kind
from .nodes import CONTROL_TOPIC, Nodes
from .owners import Owners, check_disconnect
from .pending import PendingSubscriptions, ResolvedId
from .presence import check_identity
from .publisher import Publisher
from .record import Gap, GapReason, Record
from .redemption import Redemptions
from .replication import ReplicationTask, Replicator
from .runs import DEFAULT_END_EVENT, Events, Run, RunOptions, Runs
from .topic_history import RetentionPolicy
from .topics import check_pattern, check_topic

__all__ = ["Hub", "HubStatistics", "Subscriber"]


MAX_EVENT_SIZE = 2**20  # bytes; the default of start_event_stream, too
TAIL_CLOSE_TIMEOUT = 5.0  # seconds for the tail to end when the Hub is closed
BROKER_CLOSE_TIMEOUT = 30.0  # seconds for the broker to finish the publishes in progress and to close its connections
_DEFAULT_POLICY = SubscriptionPolicy()

S = TypeVar("S", bound=Subscription)


@dataclass(frozen=True, slots=True)
class HubStatistics:
    """What a Hub holds now, and what it has done since it was made. All numbers are of this process."""

    topics: int
    """Topics that have records."""
    records: int
    """Records in the history."""
    bytes: int
    """Size of those records, in bytes as they are sent."""
    evicted: int
    """Records that were evicted because of ``Hub(max_topics=…, max_bytes=…)``. The limits are too low if it grows."""
    latest: int
    """Latest records of a topic and key, see ``Hub(latest=...)``."""
    subscribers: int
    """Open streams and listeners."""
    catching_up: int
    """Open streams that do not have every record yet: catching up, paused, or not started."""
    runs: int
    """Runs of this process that have not ended."""
    groups: int
    """Groups of streams that are written the same bytes."""
    published: int
    """Events that were published by this process, with ephemeral ones."""
    delivered: int
    """Events that were written to streams, counted once per stream."""
    gaps: int
    """Gap events that were written to streams."""
    connected: bool | None
    """Whether the broker is connected, and everything that it had then was received; ``None`` without a broker."""
    confirmation_age: float | None
    """Seconds since the broker last confirmed that this process has everything; ``None`` if it has not, or never does.

    The records of this process are at most this old, and usually newer. With the brokers of this library it is about
    a second or two, and ``Hub.ready`` is false when it is too long.
    """


class Subscriber:
    """The topics of one open stream.

    All methods are thread-safe, and do nothing when the stream has ended. Two subscribers are equal if they belong to
    the same stream.

    Args:
        subscription: The stream's subscription. The Hub makes both.
    """

    __slots__ = ("_subscription",)

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    @property
    def topics(self) -> frozenset[str]:
        """The topic names and wildcards of the stream, as they were given. Empty when the stream has ended."""
        return self._subscription.topics

    def add(self, *topics: str) -> None:
        """Subscribe to more topics. The stream receives what is published from now on.

        Args:
            topics: Topic names and wildcards.

        Raises:
            TypeError: A topic is not a string.
            ValueError: A topic is invalid. The topics of the stream do not change.
        """
        added = frozenset(map(check_pattern, topics))
        subscription = self._subscription
        subscription.call_threadsafe(lambda: subscription.update_topics(lambda current: current | added))

    def remove(self, *topics: str) -> None:
        """Unsubscribe from topics. A wildcard that remains may still match some of them.

        A stream without topics stays open until ``close`` is called.

        Args:
            topics: Topic names and wildcards, as they were given. Others are ignored.

        Raises:
            TypeError: A topic is not a string.
            ValueError: A topic is invalid. The topics of the stream do not change.
        """
        removed = frozenset(map(check_pattern, topics))
        subscription = self._subscription
        subscription.call_threadsafe(lambda: subscription.update_topics(lambda current: current - removed))

    def close(self) -> None:
        """End the stream with the reason ``closed``, after everything that was published before. Idempotent."""
        subscription = self._subscription
        subscription.call_threadsafe(lambda: subscription.end(CloseReason.CLOSED))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Subscriber) and other._subscription is self._subscription

    def __hash__(self) -> int:
        return hash(self._subscription)


class Hub:
    """Delivers events that are published under a topic to all streams that subscribed to it.

    The Hub keeps the latest records of each topic. A client that reconnects with the ID of the last event it received
    gets the records that it missed, or a gap event if some of them are no longer kept.

    Without a broker the history is in the memory of this process, and IDs from an earlier run are not known. With one,
    all Hubs with the same broker deliver the same events with the same IDs, and a new process reads the history from
    the broker. While the broker is down streams stay open, ``publish`` raises, and ``ready`` is false.

    Topics are tokens separated by dots, at most 255 characters in all. A subscription may contain wildcards: ``*``
    matches one token, and ``>`` at the end matches one or more.

    A Hub belongs to the event loop in which it is first used.

    Args:
        broker: The broker, or ``None``.
        history: Number of records to keep per topic.
        history_bytes: Maximum size of the records of a topic, in bytes as they are sent. ``None`` means unlimited.
        history_age: Maximum age of a record, in seconds. ``None`` means unlimited.
        max_topics: Number of topics that have records. ``None`` means unlimited. Beyond it the records of the topic
            that was not used for the longest time are evicted. A publish is a use, and so is a stream or a listener
            that begins to read the topic by its name.
        max_bytes: Maximum size of the records of all topics, in bytes as they are sent. ``None`` means unlimited.
            Beyond it the oldest records of that topic are evicted.
        latest: Number of records to keep for ``replay="latest"``: the latest one of each topic and key, also when the
            history has evicted it. A record without a key counts as the only key of its topic. Beyond this number the
            record that was published first is dropped. 0 keeps none.
        latest_bytes: Maximum size of these records, in bytes as they are sent. ``None`` means unlimited.
        max_event_size: Maximum size of the frame of an event, in bytes. ``None`` means unlimited.
        max_runs: Number of runs of this process, from which ``run`` raises ``TooManyRuns``. ``None`` means unlimited.
        observer: A plain function, or a sequence of them, that is called with each fact: ``HubUp``, ``HubDown`` and
            ``HubResumed`` when the broker comes up or goes down, ``HubPublished``, ``HubFlushed`` and ``HubGap``. One
            that raises is logged and removed; the others stay.
        encoder: A plain function that makes an event, or its data, of what is published, unless it is an ``Event``.

    Raises:
        TypeError: An argument is of a wrong type.
        ValueError: An argument is out of range.
    """

    def __init__(  # noqa: PLR0913  # each option is independent and has a default
        self,
        broker: Broker | None = None,
        *,
        history: int = 1000,
        history_bytes: int | None = 2**20,
        history_age: float | None = 3600.0,
        max_topics: int | None = 100_000,
        max_bytes: int | None = 2**28,
        latest: int = 0,
        latest_bytes: int | None = 2**24,
        max_event_size: int | None = MAX_EVENT_SIZE,
        max_runs: int | None = None,
        observer: HubObserver | Sequence[HubObserver] | None = None,
        encoder: Encoder = default_encoder,
    ) -> None:
        check_count("latest", latest, 0)
        if latest_bytes is not None:
            check_count("latest_bytes", latest_bytes, 1)
        check_max_event_size(max_event_size)
        check_encoder(encoder)
        confirms = getattr(broker, "confirms", None)
        if confirms is not None:
            check_seconds("confirms of a broker", confirms, "")
        if broker is not None and not (callable(getattr(broker, "publish", None)) and hasattr(broker, "tail")):
            raise TypeError(f"a Hub's broker is a Broker or None, not {broker!r}")
        latest_records = LatestRecords(latest, latest_bytes)
        retention = RetentionPolicy(history, history_bytes, history_age, max_topics, max_bytes)
        records = History(retention, latest=latest_records)
        if max_runs is not None:
            check_count("max_runs", max_runs, 0)
        self._pending = PendingSubscriptions(records, remote=broker is not None, confirms=confirms)
        self._dispatcher = Dispatcher(records, history_age, self._pending)
        observers: Observers[HubFact] = Observers(observer, "hub_observer_dropped")
        self._dispatcher.observers = observers
        self.encoder: Encoder = encoder
        """Makes an event of a value that is published."""
        self._publisher = Publisher(self._dispatcher, broker, encoder, max_event_size)
        self._broker = broker
        self._nodes = None if broker is None else Nodes(broker, self._pending)
        self._owners = Owners()
        if self._nodes is not None:
            self._owners.share(self._nodes)
        self._redemptions = Redemptions(self._nodes, self._publisher)
        self._runs = Runs(self._dispatcher, self._publisher, self._nodes, max_runs)
        self._replication_task: ReplicationTask | None = None
        if broker is not None:
            replicator = Replicator(self._dispatcher, self._nodes)
            self._replication_task = ReplicationTask(broker, replicator, self._pending, observers)
        self._tail: asyncio.Task[None] | None = None
        self._closed = False
        self._broker_closed = False  # then the Hub cannot be opened again

    # Publishing.

    async def publish(
        self,
        topic: str,
        event: object,
        *,
        key: str | None = None,
        tombstone: bool = False,
        ephemeral: bool = False,
        idempotency_key: str | None = None,
        connection: object = None,
    ) -> str | None:
        """Publish an event under a topic.

        Without a broker the event is written to all streams that are caught up before the event loop waits again. With
        one, it is written when the broker has stored it and has delivered it to each process. Slow clients delay
        neither. Cancelling is safe, but with a broker the event may have been published.

        Args:
            topic: The topic, without wildcards.
            event: The event, its data as a ``str``, or a value for the ``encoder``. An ``Event`` must not have an ID,
                because the Hub assigns one.
            key: What the event is about. A later event of the same topic and key supersedes this one.
            tombstone: The key has no value after this event, so that newcomers with ``replay="latest"`` do not get it.
            ephemeral: Write the event only to streams that are caught up, without an ID, and do not keep it.
            idempotency_key: Of several calls with the same key within two minutes, only the first publishes, and all
                return its ID. At most 200 printable characters.
            connection: A database connection of the caller, for a broker that supports it (``PostgresBroker``). The
                event is published when the transaction commits.

        Returns:
            The ID of the record, or ``None`` for an ephemeral event and with ``connection``.

        Raises:
            TypeError: An argument is of a wrong type, or ``connection`` is not supported.
            ValueError: An argument is invalid, or the event has an ID.
            Exception: What the application's ``encoder`` raises.
            EventTooLarge: The event has more than ``max_event_size`` bytes.
            TopicFinished: The topic was finished.
            RuntimeError: The Hub belongs to another event loop.
            BrokerDown: The event was not published, because the broker does not answer.
            OutcomeUnknown: The event may have been published. Retry with the same ``idempotency_key``.
            BrokerRefused: The event was not published, and a retry will fail as well.
        """
        kind = Kind.TOMBSTONE if tombstone else Kind.EVENT
        message = self._publisher.message(
            topic, event, key, ephemeral=ephemeral, idempotency_key=idempotency_key, kind=kind
        )
        if not self._broker_closed:  # otherwise the broker raises
            self._bind()
        if self._broker is not None:
            return await self._publisher.publish_to_broker(message, connection)
        if connection is not None:
            raise TypeError("connection needs a broker that writes in its transaction, and this Hub has no broker")
        return self._publisher.publish_locally(message)

    def publish_threadsafe(
        self,
        topic: str,
        event: object,
        *,
        key: str | None = None,
        tombstone: bool = False,
        ephemeral: bool = False,
        idempotency_key: str | None = None,
    ) -> Future[str | None]:
        """Publish from any thread, as ``publish`` does in the event loop's.

        Args:
            topic: The topic, without wildcards.
            event: The event, its data as a ``str``, or a value for the ``encoder``.
            key: What the event is about: a later event of the same topic and key supersedes it.
            tombstone: The key has no value after this event.
            ephemeral: Send the event to the streams that are caught up, without an ID, and do not keep it.
            idempotency_key: Of the calls with one key within two minutes only the first one publishes.

        Returns:
            A future of what ``publish`` returns or of what the broker raises. It may be ignored. In the event loop's
            own thread its ``result`` raises ``RuntimeError`` until it is done, because waiting would block the loop.

        Raises:
            TypeError: An argument is of a wrong type.
            ValueError: An argument is invalid, or the event has an ID.
            EventTooLarge: The event has more than ``max_event_size`` bytes.
            RuntimeError: The Hub has no event loop yet, or the event loop is closed.
        """
        kind = Kind.TOMBSTONE if tombstone else Kind.EVENT
        message = self._publisher.message(
            topic, event, key, ephemeral=ephemeral, idempotency_key=idempotency_key, kind=kind
        )
        loop = self._dispatcher.get_loop()
        if self._broker is not None:
            return run_in_loop(loop, lambda: self._publisher.publish_to_broker(message))
        return call_in_loop(loop, lambda: self._publisher.publish_locally(message))

    async def finish(
        self, topic: str, event: object = None, *, key: str | None = None, idempotency_key: str | None = None
    ) -> str:
        """Publish the last event of a topic, and end its streams as ``closed`` once they have sent it.

        A stream of several topics ends when all of them are finished, and one with a wildcard goes on. A client that
        comes back gets what it missed and the end; one without an ID (a page that was reloaded) gets the snapshot, the
        replay or else the last event, and the end. One that has the last ID is answered with 204, which stops an
        ``EventSource``.

        The topic is forgotten ``history_age`` seconds later, like a record, and can be used again. With a broker, an
        event may follow the end in the log: one of a process that does not know the end yet, or of a transaction
        (``connection``) that commits later. It is dropped, and every process logs ``hub_published_after_finish``.
        Events that this process published before come before the end. Cancelling is safe, but with a broker the topic
        may be finished.

        Args:
            topic: The topic, without wildcards.
            event: The last event, as for ``publish``; ``None`` to finish without another one.
            key: What the event is about.
            idempotency_key: As for ``publish``. A call with the key of an earlier one returns its ID.

        Returns:
            The ID of the end.

        Raises:
            TypeError: An argument is of a wrong type.
            ValueError: An argument is invalid, or the event has an ID.
            Exception: What the application's ``encoder`` raises.
            EventTooLarge: The event has more than ``max_event_size`` bytes.
            TopicFinished: The topic was finished before.
            RuntimeError: The Hub belongs to another event loop.
            BrokerDown: The topic is not finished, because the broker does not answer.
            OutcomeUnknown: The topic may be finished. Retry with the same ``idempotency_key``.
            BrokerRefused: The topic is not finished, and a retry will fail as well.
        """
        message = self._publisher.message(topic, event, key, idempotency_key=idempotency_key, kind=Kind.FINAL)
        if not self._broker_closed:
            self._bind()
        return await self._publisher.finish(message)

    def finish_threadsafe(
        self, topic: str, event: object = None, *, key: str | None = None, idempotency_key: str | None = None
    ) -> Future[str]:
        """Finish a topic from any thread, as ``finish`` does in the event loop's.

        Args:
            topic: The topic, without wildcards.
            event: The last event, or ``None``.
            key: What the event is about.
            idempotency_key: As for ``publish``.

        Returns:
            A future of what ``finish`` returns or raises.

        Raises:
            RuntimeError: The Hub has no event loop yet, or the event loop is closed.
        """
        finish = partial(self.finish, topic, event, key=key, idempotency_key=idempotency_key)
        return run_in_loop(self._dispatcher.get_loop(), finish)

    # Erasing.

    async def erase(self, topic: str) -> None:
        """Erase all records of a topic that were published before, here, in all other processes, and in the broker.

        When it returns, no stream of this process is sent any of them, and with a broker other processes drop them as
        soon as they receive the erasure: within milliseconds, or when they are connected again. Clients that have not
        received them get a gap event. What was sent before is with the clients, and is not taken back. Events that are
        published after it are as before, and a topic that was finished remains finished.

        A retry of a publish before the erasure, with its ``idempotency_key``, does not store the event again. With a
        broker, what a transaction (``connection``) commits later is published later. Cancelling is safe, but the topic
        may be erased in part. Calling it again completes what was interrupted.

        Args:
            topic: The topic, without wildcards.

        Raises:
            TypeError: The topic is not a string.
            ValueError: The topic is invalid, or that of the Hub's own messages.
            RuntimeError: The Hub belongs to another event loop, or its broker was closed.
            BrokerDown: Nothing was erased, because the broker does not answer.
            OutcomeUnknown: The topic may be erased, or only in the memory of the processes. Call it again.
            BrokerRefused: The broker cannot erase, or refuses to. If it refuses, the message says what is erased.
        """
        check_topic(topic)
        if topic == CONTROL_TOPIC:
            raise ValueError(f"the topic {topic!r} has the messages between the processes of a Hub, and is not erased")
        self._bind()
        await self._publisher.erase(topic, self._runs.end_key)

    def erase_threadsafe(self, topic: str) -> Future[None]:
        """Erase a topic from any thread, as ``erase`` does in the event loop's.

        Args:
            topic: The topic, without wildcards.

        Returns:
            A future of what ``erase`` raises, or of ``None``.

        Raises:
            RuntimeError: The Hub has no event loop yet, or the event loop is closed.
        """
        return run_in_loop(self._dispatcher.get_loop(), partial(self.erase, topic))

    # Runs.

    async def run(
        self,
        topic: str,
        events: Events,
        *,
        timeout: float | None = 600.0,  # noqa: ASYNC109  # the limit is that of the run, not of this call
        max_events: int | None = None,
        error_event: Event | Callable[[BaseException], Event] | None = None,
        end_event: str = DEFAULT_END_EVENT,
    ) -> Run:
        """Publish what a generator yields under a topic, and go on when its readers have left.

        Readers subscribe to the topic: several may read along, and one that comes back resumes after its last event.
        The run ends with an ``end`` event, which finishes the topic as ``finish`` does. Its data is JSON, such as
        ``{"state": "finished"}`` or ``{"state": "failed", "reason": "timeout"}``; see ``RunState`` and ``Run.reason``.

        With a broker, any node can read, find and cancel the run. While the broker is down the generator waits at its
        ``yield``, and each event is published once. If the process dies, the other nodes publish the end as ``failed``
        and ``lost``, about 15 seconds later. When the application stops, its runs have four fifths of ``Drain.grace``
        to end by themselves, and then end as ``failed`` because of ``shutdown``.

        What cannot be published raises at the ``yield``. An exception of the generator ends the run as ``failed``, and
        is logged.

        Args:
            topic: The topic, without wildcards. It must be a new one for each run.
            events: An async generator, a plain one (which runs in a thread), or a function without arguments that
                returns one. It yields what ``publish`` takes.
            timeout: Seconds after which the run is ended. ``None`` for no limit.
            max_events: Number of events after which the run is ended. ``None`` for no limit.
            error_event: An event to publish before the end if the generator raises, or a function that makes it of the
                exception.
            end_event: The name of the last event.

        Returns:
            The run. It goes on if this is not kept.

        Raises:
            TypeError: An argument is of a wrong type.
            ValueError: An argument is invalid.
            RunExists: The topic has a run already.
            TooManyRuns: This process has ``max_runs`` runs.
            TopicFinished: The topic was finished.
            RuntimeError: The application stops, or the Hub belongs to another event loop.
            BrokerError: The run was not started, because the broker does not answer.
        """
        check_topic(topic)
        given: object = events
        if inspect.iscoroutine(given):
            given.close()  # so that Python does not warn
        is_generator = isinstance(given, AsyncGenerator | Generator)
        if not (is_generator or callable(events)) or inspect.iscoroutinefunction(events):
            raise TypeError(f"a run takes a generator, or a function that returns one, not {events!r}")
        options = RunOptions(timeout=timeout, max_events=max_events, error_event=error_event, end_event=end_event)
        self._bind()
        return await self._runs.start(topic, events, options)

    def find_run(self, topic: str) -> Run | None:
        """Return the run of a topic, on any node; ``None`` if there is none.

        With a broker, a process that has just started finds it when the Hub is ``ready``. A run that has ended is found
        as long as its topic is finished, ``history_age`` seconds, unless the application has finished the topic.

        Args:
            topic: The topic of the run.

        Raises:
            TypeError: The topic is not a string.
            ValueError: The topic is invalid.
        """
        check_topic(topic)
        return self._runs.find(topic)

    async def drain_runs(self, seconds: float) -> None:
        """Refuse new runs, let those of this process end, and end those that have not. Cancelling is safe.

        ``setup(app, hub)`` calls this when the application begins to stop.

        Args:
            seconds: The time that runs have to end by themselves.
        """
        await self._runs.drain(seconds)

    # Presence.

    def presence(self, topic: str) -> frozenset[str]:
        """Return the identities that are present in a topic: those of its open streams, on all nodes.

        A stream has an identity if it was opened with one. With a broker the other nodes are asked when this process
        first uses presence, and answer within milliseconds. The users of a process that dies are present for at most
        16 seconds more, and those of a client that vanished until its stream ends as ``stalled``.

        Args:
            topic: The topic, without wildcards.

        Raises:
            TypeError: The topic is not a string.
            ValueError: The topic is invalid.
        """
        check_topic(topic)
        self._share_presence()
        return self._dispatcher.presence.members(topic)

    # Access.

    async def disconnect(self, owner: str, event: Event | None = None) -> None:
        """End all streams of an owner as ``kicked``, on all nodes, within a second.

        It ends the streams of this Hub, and all other streams of the applications that were set up with it, if they
        were requested before this call: a client that comes back meets the stages in front of its stream again, which
        refuse it or not. Revoke the session or the token first, then disconnect.

        The streams of this process end first. While the broker is down they end as well, and this raises. Cancelling
        is safe, but other nodes may have received it.

        Args:
            owner: What the ``owner`` function of the streams returned, such as ``"user:7"``.
            event: The final event of the streams, or ``None`` for no such event.

        Raises:
            TypeError: An argument is of a wrong type.
            ValueError: The owner is empty or too long, or the event has an ID.
            RuntimeError: The Hub belongs to another event loop, or its broker was closed.
            BrokerError: Other nodes may not have ended their streams. Call it again.
        """
        check_disconnect(owner, event)
        self._bind()
        at = time.time()
        self._owners.disconnect(owner, event, at=at)  # first: the broker may take seconds to refuse
        if self._nodes is not None:
            await self._nodes.publish(self._owners.message(owner, event, at))

    async def _redeem(self, token: str) -> bool:
        """Redeem a token, and return whether no node has redeemed it before. Raises what ``publish`` raises."""
        self._bind()
        return await self._redemptions.redeem(token)

    async def _knows_disconnects(self) -> bool:
        """Wait for some seconds until this process has read the disconnects in the log, and return whether it has."""
        self._bind()
        return await self._publisher.wait_until_loaded()

    def _share_presence(self) -> None:
        if self._nodes is not None:
            self._dispatcher.presence.share(self._nodes)

    # Subscribing.

    def subscribe(
        self,
        topics: Iterable[str],
        sink: Sink,
        on_end: OnEnd,
        *,
        after: str | None = None,
        select: Select | None = None,
        identity: str | None = None,
        policy: SubscriptionPolicy = _DEFAULT_POLICY,
    ) -> Subscription:
        """Subscribe a sink, for a transport of your own. ``start_topic_stream`` does this for an HTTP response.

        Nothing is written before ``start`` of the subscription is called. The owner of the sink also calls ``pause``
        and ``resume`` when the sink's buffer is full and when it has room again, and ``close`` when its client has
        disconnected.

        Args:
            topics: Topic names and wildcards.
            sink: Where the frames are written.
            on_end: Called with a ``CloseReason`` and the error, if there is one, when the Hub ends the subscription.
            after: The ID of the last event that the client received.
            select: Called with each record; the subscription gets the record if it returns true.
            identity: Who is present in the topics until the subscription ends, or ``None``.
            policy: How the subscription starts, and what it does about gaps.

        Returns:
            The subscription.

        Raises:
            TypeError: A topic is not a string.
            ValueError: A topic is invalid.
            RuntimeError: The Hub belongs to another event loop, or its broker was closed.
        """
        return self._subscribe(Subscription, topics, sink, on_end, after, select, policy, identity)

    def listen(  # noqa: PLR0913  # each option is independent and has a default
        self,
        topics: str | Iterable[str],
        *,
        after: str | None = None,
        replay: Replay = 0,
        select: Select | None = None,
        on_gap: OnGap = "close",
        identity: str | None = None,
        presence_event: str | None = None,
        buffer: int = 256,
    ) -> Listener:
        """Iterate over the records of some topics in this process: ``async for record in hub.listen("orders.>")``.

        It has the guarantees of a stream: each record that is published from this call on arrives once, in order, and
        what is missing is announced. A slow consumer does not delay streams, and catches up from the history. The
        iteration ends when the application begins to stop, or the Hub is closed.

        Args:
            topics: A topic name or a wildcard, or several of them.
            after: An ID; the records after it come first.
            replay: Number of the latest records that come first, or ``"latest"`` for the latest record of each topic
                and key. A number is not together with ``after``.
            select: A plain function of a record; the records for which it returns true are yielded.
            on_gap: What happens if records are missing. ``"close"`` raises ``Lagged`` after the records before it,
                ``"signal"`` yields a ``Gap``, and ``"conflate"`` yields the latest record of each topic and key, and a
                ``Gap`` only for records that no later one supersedes.
            identity: Who is present in the topics until the iteration ends, for example the user of a WebSocket.
            presence_event: The name of the events that tell who is present, as for ``start_topic_stream``.
            buffer: Number of records to hold for the consumer. More are read from the history when it has consumed
                half of them.

        Returns:
            The iterator, which is also an async context manager that ends the subscription.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: A topic is invalid, a number is out of range, or options exclude each other.
            RuntimeError: The Hub belongs to another event loop, or its broker was closed.
        """
        check_count("buffer", buffer, 1)
        if after is not None and not isinstance(after, str):
            raise TypeError(f"after is an event ID, a str, or None, not {after!r}")
        if after is not None and replay and replay != "latest":
            raise ValueError("a listener starts after an ID or with a replay of records, not with both")
        # The listener itself decides what a gap at the start is, too.
        in_cursor: OnGap = "conflate" if on_gap == "conflate" else "signal"
        policy = SubscriptionPolicy(on_gap=on_gap, replay=replay, prime=False, presence_event=presence_event)
        listener = Listener(buffer, on_gap)
        sink = listener._sink
        sink.subscription = self._subscribe(
            RecordSubscription, topics, sink, sink.ended, after, select, replace(policy, on_gap=in_cursor), identity
        )
        sink.subscription.start()
        return listener

    def end_listeners(self) -> None:
        """End the iteration of every listener of this process, after the records that it has received. Idempotent.

        ``setup(app, hub)`` calls this when the application begins to stop.
        """
        self._dispatcher.end_listeners(CloseReason.SHUTDOWN)

    def _subscribe(  # noqa: PLR0913, PLR0917  # what subscribe and listen have in common
        self,
        make: type[S],
        topics: Iterable[str],
        sink: Sink,
        on_end: OnEnd,
        after: str | None,
        select: Select | None,
        policy: SubscriptionPolicy,
        identity: str | None,
    ) -> S:
        self._bind()
        if identity is not None:
            check_identity(identity)
        if identity is not None or policy.presence_event is not None:
            self._share_presence()
        self._check_policy(policy)
        dispatcher, history = self._dispatcher, self._dispatcher.history
        names = frozenset(map(check_pattern, [topics] if isinstance(topics, str) else topics))
        # A listener gets what is published from now on, also if its topics are finished.
        newcomers = make is not RecordSubscription or policy.replay == "latest"

        def start_position(resolved: ResolvedId) -> StartPosition:
            offset, reason = resolved
            history.note_read(names)
            if after is not None:
                gap = None if reason is None else Gap(reason, after)
                is_newcomer = newcomers and reason in (GapReason.UNKNOWN, GapReason.FUTURE)
                return StartPosition(offset, gap, newcomer=is_newcomer)
            if isinstance(policy.replay, int) and policy.replay:
                history.expire(dispatcher.now(), EXPIRE_BATCH)
                offset = history.replay_start(names, policy.replay)
            return StartPosition(offset, ignore_gaps_through=history.end, newcomer=newcomers)

        group = dispatcher.acquire_group(names, select, sink.encoder, policy.presence_event)
        resolved = self._pending.resolve(after)
        start = None if resolved is None else start_position(resolved)
        subscription = make(dispatcher, group, sink, on_end, policy, start)
        if resolved is None:
            self._pending.add(subscription, after, lambda it: subscription.set_start_position(start_position(it)))
        if identity is not None:
            dispatcher.presence.joined(subscription, identity, names)
        return subscription

    def _check_policy(self, policy: SubscriptionPolicy) -> None:
        """Raise ``ValueError`` if the policy is to send the latest records, and the Hub keeps none."""
        if policy.replay == "latest" and not self._dispatcher.history.latest_records.enabled:
            raise ValueError("replay='latest' needs a Hub that keeps the latest records, such as Hub(latest=10_000)")

    # Inspection.

    def add_observer(self, observer: HubObserver) -> None:
        """Call a function with the facts of this Hub from now on, as ``observer=`` does from the start.

        Args:
            observer: A plain function of a fact. It is logged and removed if it raises.

        Raises:
            TypeError: The observer is not a function.
        """
        self._dispatcher.observers.add(observer)

    def subscribers(self, topic: str) -> int:
        """Return the number of open streams of this process that match a topic.

        Args:
            topic: The topic, without wildcards.
        """
        return self._dispatcher.count_subscribers(topic)

    def _has_everything(
        self, topics: Iterable[str], event_id: str | None, select: Select | None, policy: SubscriptionPolicy
    ) -> bool:
        """Return whether all topics are finished, and there is nothing more to send to a client with this event ID."""
        dispatcher, history = self._dispatcher, self._dispatcher.history
        names = frozenset(topics)
        history.expire(dispatcher.now(), EXPIRE_BATCH)
        if not history.all_finished(names):
            return False
        if event_id is None:  # one that gets neither an event nor an initial frame would never have an ID
            return not (policy.prime or select_records(self._for_newcomer(names, policy), select))
        resolved = self._pending.resolve(event_id)
        if resolved is None or resolved[1] is not None:
            return False
        offset, _ = resolved
        if history.missing_after(offset, names)[0]:
            return False
        records = history.read(offset, names).records
        return not (records if policy.prime else select_records(records, select))

    def _for_newcomer(self, topics: frozenset[str], policy: SubscriptionPolicy) -> list[Record]:
        """Return the records that a client without an ID gets of finished topics."""
        history = self._dispatcher.history
        if policy.replay == "latest":
            return history.latest_records.read(topics).records
        start = history.replay_start(topics, policy.replay) if policy.replay else history.end
        return history.last_of_finished(topics, start).records + history.read(start, topics).records

    @property
    def history(self) -> History:
        """The records that this process keeps, and their IDs. Read it only: the Hub writes to it."""
        return self._dispatcher.history

    @property
    def ready(self) -> bool:
        """Whether this process has received everything that was published. Use it for a health check.

        ``False`` while the broker is down, a few seconds after it stopped confirming (3.5 at most with the brokers of
        this library), and when the Hub is closed.
        """
        return self._pending.ready and not self._closed

    def statistics(self) -> HubStatistics:
        """Return the counters of the Hub, in constant time."""
        dispatcher = self._dispatcher
        return HubStatistics(
            topics=dispatcher.history.topics,
            records=dispatcher.history.records,
            bytes=dispatcher.history.bytes,
            evicted=dispatcher.history.evicted,
            latest=len(dispatcher.history.latest_records),
            subscribers=dispatcher.subscribers,
            catching_up=dispatcher.subscribers - dispatcher.live,
            runs=self._runs.local,
            groups=dispatcher.groups,
            published=self._publisher.published,
            delivered=dispatcher.delivered,
            gaps=dispatcher.gaps,
            connected=None if self._broker is None else self._pending.caught_up,
            confirmation_age=self._pending.confirmation_age,
        )

    # Lifecycle. setup(app, hub) calls both.

    def open(self) -> None:
        """Bind the Hub to the running event loop, and start to read from the broker. Idempotent.

        Afterwards other threads can publish. Using the Hub opens it. A Hub without a broker can be opened again after
        ``close``.

        Raises:
            RuntimeError: The Hub belongs to another event loop, or its broker was closed.
        """
        self._bind()
        self._runs.open()

    def _bind(self) -> None:
        if self._broker_closed:
            raise RuntimeError("this Hub was closed, and its broker with it; make another Hub, with another broker")
        loop = self._dispatcher.bind()
        if self._closed:
            self._closed = False
            self._runs.open()
        if self._replication_task is not None and self._tail is None:
            self._tail = loop.create_task(self._replication_task.run())

    async def close(self) -> None:
        """End all runs and listeners, cancel all timers, and with a broker end all streams and close it. Idempotent.

        The history is kept. This takes 50 seconds at most, whatever the broker or its server does: what has not ended
        by then is logged and abandoned. Raises what the broker's ``close`` raises. If it is cancelled, the broker may
        still be open, and it can be called again.
        """
        self._closed = True
        await self._runs.close()
        self._dispatcher.close()
        self._broker_closed = self._broker is not None
        self.end_listeners()
        if self._broker_closed:
            self._dispatcher.end_all(CloseReason.SHUTDOWN)
        if self._nodes is not None:
            await self._nodes.close()
        tail, broker = self._tail, self._broker
        if tail is not None:
            await cancel_and_wait(tail, TAIL_CLOSE_TIMEOUT, f"the tail of {broker!r}")
            self._tail = None
        if broker is not None:
            await run_with_timeout(broker.close(), BROKER_CLOSE_TIMEOUT, f"the close of {broker!r}")
