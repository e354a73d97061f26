"""How streams of a Hub behave: the options of ``start_topic_stream``, checked before anybody opens one."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from ..hub.policy import Policy
from ..hub.record import Record
from ..hub.subscriber import Subscriber
from ..hub.topic import check_pattern
from .context import RequestContext
from .settings import StreamSettings, check_function
from .snapshot import SnapshotOf

__all__ = ["Select", "SubscriberReady", "TopicSettings", "Topics", "names_of"]

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
    policy: Policy
    unprimed: Policy | None
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
