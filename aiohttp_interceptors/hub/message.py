"""What a broker carries of an event: its frame as it goes over the wire, and what the Hub has to know besides."""

from __future__ import annotations

from typing import NamedTuple

from ..exceptions import EventTooLarge
from ..sse import Event, encode, is_larger

__all__ = ["Content", "Message", "is_ephemeral", "pack", "unpack"]


# The first byte says how to read the rest, so that processes of different versions understand each other or say so:
# the upper half is the version of the format, the lower half has flags. docs/format.md says what may change.
VERSION = 0xF0
PLAIN = 0x10
KEYED = 0x01
EPHEMERAL = 0x02
MAX_KEY = 0xFFFF  # bytes, since two say how many


class Content(NamedTuple):
    """What is in a payload."""

    frame: bytes
    key: str | None
    ephemeral: bool


def pack(frame: bytes, key: str | None, *, ephemeral: bool) -> bytes:
    """Return the payload for a frame without an id."""
    flags = PLAIN | (EPHEMERAL if ephemeral else 0)
    if key is None:
        return b"%c%b" % (flags, frame)
    encoded = key.encode()  # of at most MAX_KEY bytes, which who calls has checked
    return b"%c%b%b%b" % (flags | KEYED, len(encoded).to_bytes(2, "big"), encoded, frame)


def is_ephemeral(payload: bytes) -> bool:
    """Tell whether a payload, also one with flags of a later release, is for those alone that keep up."""
    flags = payload[0] if payload else 0
    return flags & VERSION == PLAIN and bool(flags & EPHEMERAL)


def unpack(payload: bytes) -> Content:
    """Return what was packed. Raises ``ValueError`` for what was not, by this version."""
    flags = payload[0] if payload else 0
    if flags == PLAIN:
        return Content(payload[1:], None, False)  # noqa: FBT003
    if flags & ~(KEYED | EPHEMERAL) != PLAIN:
        raise ValueError(f"no payload of a Hub, or of a later version of it, begins with {payload[:1]!r}")
    if not flags & KEYED:
        return Content(payload[1:], None, bool(flags & EPHEMERAL))
    end = 3 + int.from_bytes(payload[1:3], "big")
    if len(payload) < end:
        raise ValueError(f"a payload of {len(payload)} bytes was cut before byte {end}")
    return Content(payload[end:], payload[3:end].decode(), bool(flags & EPHEMERAL))


LONGEST_IDEMPOTENCY_KEY = 200  # characters: room for a URL with a number, and no server minds


class Message:
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
