"""Publish an event under a topic, and every stream that asked for it has it in the same turn of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import Future

from ..errors import EventTooLarge
from ..sse.event import Event
from ..sse.wire import encode, is_larger
from .audience import Outlet, Select
from .fanout import Fanout
from .gap import Gap
from .log import Log
from .policy import Policy
from .record import Record
from .ring import Bounds
from .statistics import HubStatistics
from .subscriber import OnEnd, Subscriber
from .topic import check_pattern, check_topic

__all__ = ["Hub"]

MAX_EVENT_SIZE = 2**20  # bytes; as for a stream that has a channel
_POLICY = Policy()


class Hub:
    """Send what is published under a topic to every stream that asked for it, and remember it for those that return.

    For each topic the latest records are kept: ``history`` of them, of at most ``history_bytes`` bytes on the wire,
    not older than ``history_age`` seconds; ``None`` is no limit. A stream that was away goes on where it was, or is
    told that there is a gap. The memory is this process's, and when that ends all its ids become foreign ones.

    Topics are tokens separated by dots, at most 255 characters in all. Who subscribes may use wildcards: ``*`` is any
    one token, ``>`` at the end one or more. An event of more than ``max_event_size`` bytes is refused.

    A Hub is of one event loop, the one where it is first used. Raises ``TypeError`` or ``ValueError`` for arguments
    that cannot work.
    """

    def __init__(
        self,
        *,
        history: int = 1000,
        history_bytes: int | None = 2**20,
        history_age: float | None = 3600.0,
        max_event_size: int | None = MAX_EVENT_SIZE,
    ) -> None:
        size = max_event_size
        if size is not None and (type(size) is not int or size < 1):
            raise (ValueError if type(size) is int else TypeError)(
                f"max_event_size is a number of bytes, 1 or more, or None, not {size!r}"
            )
        self._fanout = Fanout(Log(Bounds(history, history_bytes, history_age)), history_age)
        self._max_event_size = max_event_size
        self._published = 0

    # Publishing.

    async def publish(
        self, topic: str, event: Event | str, *, key: str | None = None, ephemeral: bool = False
    ) -> str | None:
        """Publish an event under a topic and return its id; ``None`` for an ephemeral one.

        It leaves for all streams before the event loop waits again, and no slow one delays that. A later event of the
        same topic and ``key`` makes up for this one. An ``ephemeral`` event goes to those that keep up, has no id, and
        is not kept.

        Raises ``TypeError`` or ``ValueError`` (``EventTooLarge``) for what cannot be sent, and then nobody gets it. An
        id of the event's own is refused: the Hub gives ids. Cancelling is safe.
        """
        event = self._check(topic, event, key)
        self._fanout.bind()
        return self._publish(topic, event, key, ephemeral)

    def publish_threadsafe(
        self, topic: str, event: Event | str, *, key: str | None = None, ephemeral: bool = False
    ) -> Future[str | None]:
        """Publish from any thread, and return a future of the id, which need not be asked.

        In the event loop's own thread do not wait for it. Raises as ``publish``, and ``RuntimeError`` when the Hub
        has no event loop yet or none any more.
        """
        event = self._check(topic, event, key)
        future: Future[str | None] = Future()

        def publish() -> None:
            if future.set_running_or_notify_cancel():
                future.set_result(self._publish(topic, event, key, ephemeral))

        self._fanout.elsewhere().call_soon_threadsafe(publish)
        return future

    def _check(self, topic: str, event: Event | str, key: str | None) -> Event:
        """Return the event, if all of it can be published."""
        if topic not in self._fanout.log:
            check_topic(topic)
        if not isinstance(event, Event):
            if not isinstance(event, str):
                raise TypeError(
                    f"an Event or a str is published, not {event!r}; Event.json(value) makes one of a value"
                )
            event = Event(event)
        if event.id is not None:
            raise ValueError(f"the Hub gives events their ids, and {event!r} has one; see key")
        if key is not None and not isinstance(key, str):
            raise TypeError(f"an event's key is a str or None, not {key!r}")
        size = self._max_event_size
        if size is not None and is_larger(event, size):
            raise EventTooLarge(f"an event of more than {size} bytes was published under {topic!r}; see max_event_size")
        return event

    def _publish(self, topic: str, event: Event, key: str | None, ephemeral: bool) -> str | None:  # noqa: FBT001
        now = asyncio.get_running_loop().time()
        if ephemeral:
            record = Record(0, None, topic, event, encode(event), key, now)
        else:
            record = self._fanout.log.append(topic, event, key, now)
        self._published += 1
        self._fanout.spread(record)
        return record.id

    # Subscribing.

    def subscribe(  # each is something of its own
        self,
        topics: Iterable[str],
        outlet: Outlet,
        on_end: OnEnd,
        *,
        after: str | None = None,
        select: Select | None = None,
        policy: Policy = _POLICY,
    ) -> Subscriber:
        """Register a stream, which gets nothing before its ``start``.

        ``after`` is the id that its client had last. ``on_end(reason, error)`` is called when the Hub ends it. This is
        for who brings an ``Outlet``, as ``start_topic_stream`` does.
        """
        fanout = self._fanout
        fanout.bind()
        names = frozenset(map(check_pattern, [topics] if isinstance(topics, str) else topics))
        gap: Gap | None = None
        if after is not None:
            position, reason = fanout.log.locate(after)
            gap = None if reason is None else Gap(reason, after, None)
        elif policy.replay:
            fanout.log.expire(asyncio.get_running_loop().time())  # or what goes when it is read would be a gap
            position = fanout.log.newest(names, policy.replay)
        else:
            position = fanout.log.end
        audience = fanout.enter(names, select, outlet.wrap)
        return Subscriber(fanout, audience, outlet, on_end, policy, position, gap)

    # Looking.

    def subscribers(self, topic: str) -> int:
        """Count the open streams that hear of a topic, in this process."""
        return self._fanout.listeners(topic)

    @property
    def log(self) -> Log:
        """The records that are kept, and their one order."""
        return self._fanout.log

    def statistics(self) -> HubStatistics:
        """Return what the Hub holds and has done. Costs the same however much that is."""
        fanout = self._fanout
        return HubStatistics(
            topics=fanout.log.topics,
            records=fanout.log.records,
            bytes=fanout.log.bytes,
            subscribers=fanout.subscribers,
            behind=fanout.subscribers - fanout.live,
            audiences=fanout.audiences,
            published=self._published,
            delivered=fanout.delivered,
            gaps=fanout.gaps,
        )

    # The life of a Hub, which setup(app, hub) takes care of.

    def open(self) -> None:
        """Belong to the running event loop, so that other threads can publish. Twice is once."""
        self._fanout.bind()

    def close(self) -> None:
        """Leave nothing that waits in the event loop. Its history stays; twice is once."""
        self._fanout.close()
