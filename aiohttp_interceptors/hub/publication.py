"""What is about to be published, checked: from then on it can be sent."""

from __future__ import annotations

from ..errors import EventTooLarge
from ..sse.event import Event
from ..sse.wire import encode, is_larger
from .payload import MAX_KEY, pack

__all__ = ["Publication"]

LONGEST_IDEMPOTENCY_KEY = 200  # characters: room for a URL with a number, and no server minds


class Publication:
    """An event, and what the Hub has to know to publish it. Raises ``TypeError`` or ``ValueError`` for what cannot be.

    The topic is checked by who makes it, for those that have a history are right.
    """

    __slots__ = ("ephemeral", "event", "idempotency_key", "key", "topic")

    def __init__(
        self,
        topic: str,
        event: Event | str,
        key: str | None,
        ephemeral: bool,  # noqa: FBT001  # only the Hub makes one
        idempotency_key: str | None,
        size: int | None,
    ) -> None:
        if not isinstance(event, Event):
            if not isinstance(event, str):
                raise TypeError(
                    f"an Event or a str is published, not {event!r}; Event.json(value) makes one of a value"
                )
            event = Event(event)
        if event.id is not None:
            raise ValueError(f"the Hub gives events their ids, and {event!r} has one; see key")
        if key is not None:
            _check_key(key)
        if idempotency_key is not None:
            _check_idempotency_key(idempotency_key)
        if size is not None and is_larger(event, size):
            raise EventTooLarge(f"an event of more than {size} bytes was published under {topic!r}; see max_event_size")
        self.topic: str = topic
        self.event: Event = event
        self.key: str | None = key
        self.ephemeral: bool = ephemeral
        self.idempotency_key: str | None = idempotency_key

    def payload(self) -> bytes:
        """Return what a broker carries of it."""
        return pack(encode(self.event), self.key, ephemeral=self.ephemeral)


def _check_key(key: str) -> None:
    if not isinstance(key, str):
        raise TypeError(f"an event's key is a str or None, not {key!r}")
    try:
        size = len(key) if key.isascii() else len(key.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"an event's key is sent as UTF-8, which cannot carry {key!r}: {error.reason}") from None
    if size > MAX_KEY:
        raise ValueError(f"an event's key has at most {MAX_KEY} bytes, not {size}")


def _check_idempotency_key(key: str) -> None:
    if not isinstance(key, str):
        raise TypeError(f"an idempotency_key is a str or None, not {key!r}")
    if not (0 < len(key) <= LONGEST_IDEMPOTENCY_KEY and key.isprintable()):
        raise ValueError(f"an idempotency_key is 1 to {LONGEST_IDEMPOTENCY_KEY} printable characters, not {key!r}")
