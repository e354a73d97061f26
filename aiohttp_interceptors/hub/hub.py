"""What a Hub holds and has done."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass

from .._checks import check_seconds
from .._tasks import end, finish
from .._threads import call_in_loop, run_in_loop
from ..channel import CloseReason
from ..facts import HubObserver
from ..sse import Event, encode
from .broker import Broker, DeduplicationWindow
from .cursor import Select, StartPosition, SubscriptionPolicy
from .dispatcher import Dispatcher, Located, OnEnd, PendingSubscriptions, Sink, Subscription
from .history import EXPIRED, History
from .message import Message
from .record import Gap, Record
from .replication import ReplicationTask, Replicator
from .topic_history import RetentionPolicy
from .topics import check_pattern, check_topic

__all__ = ["Hub", "HubStatistics", "Subscriber"]


@dataclass(frozen=True, slots=True)
class HubStatistics:
    """What a Hub holds now, and what it has done since it was made."""

    topics: int
    """That have a history."""
    records: int
    """That are kept."""
    bytes: int
    """Of those records, as they go over the wire."""
    subscribers: int
    """Open streams."""
    behind: int
    """Of those, the ones that do not have everything yet."""
    groups: int
    """Sets of streams that are told the same."""
    published: int
    """Events, ephemeral ones too."""
    delivered: int
    """Events written to a stream, each as often as there were streams for it."""
    gaps: int
    """Told to a stream."""


class Subscriber:
    """The topics of one open stream. All methods may be called from any thread, and do nothing once it is over.

    Two of them are equal if they are of the same stream.
    """

    __slots__ = ("_subscription",)

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    @property
    def topics(self) -> frozenset[str]:
        """Names and wildcards; none once the stream is over."""
        return self._subscription.topics

    def add(self, *topics: str) -> None:
        """Subscribe to these names and wildcards too, from now on.

        Raises ``TypeError`` or ``ValueError`` for what is no topic.
        """
        added = frozenset(map(check_pattern, topics))
        self._subscription.in_loop(lambda: self._subscription.change(lambda given: given | added))

    def remove(self, *topics: str) -> None:
        """Unsubscribe from these names and wildcards, as they were given. Others may still match their topics.

        A stream without topics stays open, and waits for an ``add``; ``close`` ends it.

        Raises ``TypeError`` or ``ValueError`` for what is no topic.
        """
        removed = frozenset(map(check_pattern, topics))
        self._subscription.in_loop(lambda: self._subscription.change(lambda given: given - removed))

    def close(self) -> None:
        """End the stream, with the reason ``closed``, after all that was published before."""
        self._subscription.in_loop(lambda: self._subscription.end(CloseReason.CLOSED))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Subscriber) and other._subscription is self._subscription

    def __hash__(self) -> int:
        return hash(self._subscription)


MAX_EVENT_SIZE = 2**20  # bytes; as for a stream that has a channel
CLOSING = 5.0  # seconds that the broker's tail has to end when the Hub closes, and
GIVING_BACK = 30.0  # that the broker has for the publishes that are on their way, and to give back its connections
_POLICY = SubscriptionPolicy()


class Hub:
    """Send what is published under a topic to every stream that asked for it, and remember it for those that return.

    For each topic the latest records are kept: ``history`` of them, of at most ``history_bytes`` bytes on the wire,
    not older than ``history_age`` seconds; ``None`` is no limit. A stream that was away goes on where it was, or is
    told that there is a gap.

    Without a ``broker`` that memory is this process's, and when that ends all its ids become foreign ones. With one,
    all processes that have the same publish to all streams, with the same ids, and a new one begins with the history
    that the broker has. While the broker is away streams stay open, ``publish`` raises, and ``ready`` is false;
    ``observer(fact)`` is told of each change: ``HubUp``, ``HubDown``, ``HubResumed``.

    Topics are tokens separated by dots, at most 255 characters in all. Who subscribes may use wildcards: ``*`` is any
    one token, ``>`` at the end one or more. An event of more than ``max_event_size`` bytes is refused.

    A Hub is of one event loop, the one where it is first used. Raises ``TypeError`` or ``ValueError`` for arguments
    that cannot work.
    """

    def __init__(
        self,
        broker: Broker | None = None,
        *,
        history: int = 1000,
        history_bytes: int | None = 2**20,
        history_age: float | None = 3600.0,
        max_event_size: int | None = MAX_EVENT_SIZE,
        observer: HubObserver | None = None,
    ) -> None:
        size = max_event_size
        if size is not None and (type(size) is not int or size < 1):
            raise (ValueError if type(size) is int else TypeError)(
                f"max_event_size is a number of bytes, 1 or more, or None, not {size!r}"
            )
        confirms = getattr(broker, "confirms", None)
        if confirms is not None:
            check_seconds("confirms of a broker", confirms, "")
        if broker is not None and not (callable(getattr(broker, "publish", None)) and hasattr(broker, "tail")):
            raise TypeError(f"a Hub's broker is a Broker or None, not {broker!r}")
        log = History(RetentionPolicy(history, history_bytes, history_age))
        pending = PendingSubscriptions(log, remote=broker is not None, confirms=confirms)
        self._dispatcher = Dispatcher(log, history_age, pending)
        self._max_event_size = max_event_size
        self._published = 0
        self._deduplication: DeduplicationWindow[str | None] = DeduplicationWindow()
        self._broker = broker
        self._replication_task: ReplicationTask | None = None
        if broker is not None:
            self._replication_task = ReplicationTask(broker, Replicator(self._dispatcher), pending, observer)
        self._following: asyncio.Task[None] | None = None
        self._closed = False  # for good
        self._shut = False

    # Publishing.

    async def publish(
        self,
        topic: str,
        event: Event | str,
        *,
        key: str | None = None,
        ephemeral: bool = False,
        idempotency_key: str | None = None,
        connection: object = None,
    ) -> str | None:
        """Publish an event under a topic and return its id; ``None`` for an ephemeral one.

        It leaves for all streams before the event loop waits again, and no slow one delays that; with a broker, when
        that has it and has brought it to each process. A later event of the same topic and ``key`` makes up for this
        one. An ``ephemeral`` event goes to those that keep up, has no id, and is not kept.

        Of the calls with one ``idempotency_key`` within two minutes only the first publishes, and all return its id: a
        retry cannot double. ``connection`` is a database connection of a broker that can write in the caller's own
        transaction; then nothing is published before that commits, and ``None`` is returned.

        Raises ``TypeError`` or ``ValueError`` (``EventTooLarge``) for what cannot be sent, and then nobody gets it. An
        id of the event's own is refused: the Hub gives ids. With a broker also, in a bounded time, ``BrokerDown`` or
        ``BrokerRefused``, when nobody gets it, and ``OutcomeUnknown``, when they may. Cancelling is safe, but with a
        broker the event may have been published.
        """
        publication = self._check(topic, event, key, ephemeral, idempotency_key)
        if not self._closed:  # a broker that was closed says so by itself
            self.open()
        if self._broker is not None:
            return await self._hand_over(self._broker, publication, connection)
        if connection is not None:
            raise TypeError("a connection is for a broker that writes in its transaction, and this Hub has no broker")
        return self._publish(publication)

    def publish_threadsafe(
        self,
        topic: str,
        event: Event | str,
        *,
        key: str | None = None,
        ephemeral: bool = False,
        idempotency_key: str | None = None,
    ) -> Future[str | None]:
        """Publish from any thread, and return a future of the id, which need not be asked.

        In the event loop's own thread, ``result`` raises ``RuntimeError`` instead of blocking the loop. Raises as
        ``publish``, and ``RuntimeError`` when the Hub has no event loop yet or none any more; what a broker raises,
        the future has.
        """
        publication = self._check(topic, event, key, ephemeral, idempotency_key)
        loop = self._dispatcher.elsewhere()
        broker = self._broker
        if broker is not None:
            return run_in_loop(loop, lambda: self._hand_over(broker, publication))
        return call_in_loop(loop, lambda: self._publish(publication))

    def _check(
        self,
        topic: str,
        event: Event | str,
        key: str | None,
        ephemeral: bool,  # noqa: FBT001
        idempotency_key: str | None,
    ) -> Message:
        if topic not in self._dispatcher.log:
            check_topic(topic)
        return Message(topic, event, key, ephemeral, idempotency_key, self._max_event_size)

    def _publish(self, given: Message) -> str | None:
        """Publish in this process, which is all there is."""
        now = asyncio.get_running_loop().time()
        repeated = None if given.idempotency_key is None else self._deduplication.find(given.idempotency_key, now)
        if repeated is not None:
            return repeated[0]
        if given.ephemeral:
            record = Record(0, None, given.topic, given.event, encode(given.event), given.key, now)
        else:
            record = self._dispatcher.log.append(given.topic, given.event, given.key, now)
        self._published += 1
        self._dispatcher.dispatch(record)
        if given.idempotency_key is not None:
            self._deduplication.note(given.idempotency_key, record.id, now)
        return record.id

    async def _hand_over(self, broker: Broker, given: Message, connection: object = None) -> str | None:
        """Publish by the broker, from whose tail it comes back."""
        key = given.idempotency_key
        position = await broker.publish(given.topic, given.payload(), idempotency_key=key, connection=connection)
        self._published += 1
        return None if given.ephemeral or position is None else f"{position.epoch}-{position.offset}"

    # Subscribing.

    def subscribe(  # each is something of its own
        self,
        topics: Iterable[str],
        sink: Sink,
        on_end: OnEnd,
        *,
        after: str | None = None,
        select: Select | None = None,
        policy: SubscriptionPolicy = _POLICY,
    ) -> Subscription:
        """Register a stream, which gets nothing before its ``start``.

        ``after`` is the id that its client had last. ``on_end(reason, error)`` is called when the Hub ends it. This is
        for who brings an ``Sink``, as ``start_topic_stream`` does.
        """
        dispatcher = self._dispatcher
        self.check_open()
        names = frozenset(map(check_pattern, [topics] if isinstance(topics, str) else topics))

        def beginning(located: Located) -> StartPosition:
            offset, reason = located
            if after is not None:
                return StartPosition(offset, None if reason is None else Gap(reason, after))
            if policy.replay:
                dispatcher.log.expire(dispatcher.now(), EXPIRED)
                offset = dispatcher.log.newest(names, policy.replay)
            return StartPosition(offset, excused=dispatcher.log.end)

        group = dispatcher.enter(names, select, sink.wrap)
        located = dispatcher.pending.locate(after)
        position = None if located is None else beginning(located)
        subscription = Subscription(dispatcher, group, sink, on_end, policy, position)
        if located is None:
            dispatcher.pending.wait(subscription, after, lambda located: subscription.settle(beginning(located)))
        return subscription

    def check_open(self) -> None:
        """Belong to the running event loop. Raises ``RuntimeError`` if a stream could not hear of anything here."""
        self.open()
        if self._closed:
            raise RuntimeError("this Hub was closed, and its broker with it, so that a stream would hear of nothing")

    async def locate(self, given: str | None) -> Located:
        """Return the position after an id, as the log does, when all that may come before it has come.

        Cancelling is safe.
        """
        pending = self._dispatcher.pending
        located = pending.locate(given)
        if located is not None:
            return located
        future: asyncio.Future[Located] = asyncio.get_running_loop().create_future()
        pending.wait(future, given, lambda located: None if future.done() else future.set_result(located))
        try:
            return await future
        finally:
            pending.discard(future)

    # Looking.

    def subscribers(self, topic: str) -> int:
        """Count the open streams that hear of a topic, in this process."""
        return self._dispatcher.listeners(topic)

    @property
    def log(self) -> History:
        """The records that are kept, and their one order."""
        return self._dispatcher.log

    @property
    def ready(self) -> bool:
        """Whether all that was published is here, and what is new comes: for the route that a load balancer asks.

        ``False`` once the Hub is closed, and as soon as the broker's server has not said for some seconds (three and a
        half at most, with our brokers) that there is no more: a process that is late is not ready.
        """
        return self._dispatcher.pending.fresh and not self._shut

    def statistics(self) -> HubStatistics:
        """Return what the Hub holds and has done. Costs the same however much that is."""
        dispatcher = self._dispatcher
        return HubStatistics(
            topics=dispatcher.log.topics,
            records=dispatcher.log.records,
            bytes=dispatcher.log.bytes,
            subscribers=dispatcher.subscribers,
            behind=dispatcher.subscribers - dispatcher.live,
            groups=dispatcher.groups,
            published=self._published,
            delivered=dispatcher.delivered,
            gaps=dispatcher.gaps,
        )

    # The life of a Hub, which setup(app, hub) takes care of.

    def open(self) -> None:
        """Belong to the running event loop, so that other threads can publish, and follow the broker. Idempotent.

        A Hub without a broker opens again after ``close``, also when it is used. Raises ``RuntimeError`` for one whose
        broker was closed, and for one that belongs to another event loop.
        """
        if self._closed:
            raise RuntimeError("this Hub was closed, and its broker with it; make another Hub, with another broker")
        loop = self._dispatcher.bind()
        self._shut = False
        if self._replication_task is not None and self._following is None:
            self._following = loop.create_task(self._replication_task.run())

    async def close(self) -> None:
        """Leave nothing that waits in the event loop, and close the broker for good. The history stays. Idempotent.

        It takes 40 seconds at most, whatever the broker or its server does: what has not ended then is named in the
        log, and left. Raises what the broker's ``close`` raises. When it is cancelled the broker may still be open; it
        can be called again.
        """
        self._shut = True
        self._dispatcher.close()
        self._closed = self._broker is not None
        if self._closed:
            self._dispatcher.end(CloseReason.SHUTDOWN)  # they would hear of nothing any more
        following, broker = self._following, self._broker
        if following is not None:
            await end(following, CLOSING, f"the tail of {broker!r}")
            self._following = None
        if broker is not None:
            await finish(broker.close(), GIVING_BACK, f"the close of {broker!r}")
