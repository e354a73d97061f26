"""What an application has of an open stream of a Hub: its topics, and the end of it."""

from __future__ import annotations

from ..sse.channel import CloseReason
from .subscription import Subscription
from .topic import check_pattern

__all__ = ["Subscriber"]


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
