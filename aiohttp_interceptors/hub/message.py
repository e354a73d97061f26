"""A message to publish, and the payload that a broker stores for it.

A payload is one byte with the version of the format and flags, the kind of the entry if it is not an event, the key if
there is one, and the event's frame without an ID. ``docs/format.md`` specifies it, and what a later release may change.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from ..exceptions import EventTooLarge
from ..sse import Event, encode, is_larger

__all__ = ["DecodedPayload", "Kind", "Message", "decode_payload", "encode_payload", "is_ephemeral"]


VERSION_MASK = 0xF0  # the upper half of the first byte is the version, the lower half is flags
VERSION_1 = 0x10
FLAG_KEY = 0x01
FLAG_EPHEMERAL = 0x02
FLAG_KIND = 0x04
MAX_KEY_BYTES = 0xFFFF  # the length of a key takes two bytes
MAX_IDEMPOTENCY_KEY = 200  # characters: enough for a URL and a number, and within the limits of all brokers


class Kind(IntEnum):
    """What an entry of the log is. The values are stored."""

    EVENT = 0
    """An event."""
    FINAL = 1
    """The last event of its topic. Its frame is empty if the topic is finished without an event."""
    TOMBSTONE = 2
    """An event after which its key has no value any more."""
    CONTROL = 3
    """A message from one Hub to the others, as JSON. It is not sent to streams."""
    ERASURE = 4
    """The earlier entries of its topic were erased. If the topic was finished before, its frame says so."""


class Message:
    """An event to publish, with its topic and options, checked.

    The caller checks the topic, because it knows the topics that were checked before.

    Raises ``TypeError`` or ``ValueError`` (``EventTooLarge`` for more than ``max_size`` bytes).
    """

    __slots__ = ("ephemeral", "event", "idempotency_key", "key", "kind", "topic")

    def __init__(
        self,
        topic: str,
        event: Event | None,
        key: str | None,
        ephemeral: bool,  # noqa: FBT001  # made only by the Hub
        idempotency_key: str | None,
        max_size: int | None,
        kind: Kind = Kind.EVENT,
    ) -> None:
        if event is not None and event.id is not None:
            raise ValueError(
                f"the Hub assigns the ids of events, and {event!r} already has one; to supersede earlier events use key"
            )
        if key is not None:
            _check_key(key)
        if idempotency_key is not None:
            _check_idempotency_key(idempotency_key)
        if kind is Kind.TOMBSTONE and key is None:
            raise ValueError("a tombstone needs the key whose value it removes")
        if kind is Kind.TOMBSTONE and ephemeral:
            raise ValueError("a tombstone is kept like the value that it removes, and cannot be ephemeral")
        if event is not None and max_size is not None and is_larger(event, max_size):
            raise EventTooLarge(
                f"an event of more than {max_size} bytes was published under {topic!r}; see max_event_size"
            )
        self.topic: str = topic
        self.event: Event | None = event
        self.key: str | None = key
        self.ephemeral: bool = ephemeral
        self.idempotency_key: str | None = idempotency_key
        self.kind: Kind = kind

    def payload(self) -> bytes:
        """Encode the payload for a broker."""
        frame = b"" if self.event is None else encode(self.event)
        return encode_payload(frame, self.key, ephemeral=self.ephemeral, kind=self.kind)


class DecodedPayload(NamedTuple):
    """The parts of a payload."""

    frame: bytes
    """The event as it is sent to clients, without an ID."""
    key: str | None
    ephemeral: bool
    kind: Kind = Kind.EVENT


ERASED = b""  # what a broker may leave in place of the payload of an erased entry
FINISHED = b"finished"  # the frame of an erasure of a topic that was finished before, and still is


def encode_payload(frame: bytes, key: str | None, *, ephemeral: bool, kind: Kind = Kind.EVENT) -> bytes:
    """Return the payload for a frame without an ID. The key must have been checked."""
    flags = VERSION_1 | (FLAG_EPHEMERAL if ephemeral else 0)
    if kind is not Kind.EVENT:
        flags |= FLAG_KIND
    head = b"" if kind is Kind.EVENT else b"%c" % kind
    if key is None:
        return b"%c%b%b" % (flags, head, frame)
    encoded = key.encode()
    return b"%c%b%b%b%b" % (flags | FLAG_KEY, head, len(encoded).to_bytes(2, "big"), encoded, frame)


def decode_payload(payload: bytes) -> DecodedPayload:
    """Return the parts of a payload. Raises ``ValueError`` if this release cannot read it."""
    flags = payload[0] if payload else 0
    if flags == VERSION_1:
        return DecodedPayload(payload[1:], None, False)  # noqa: FBT003
    start, kind = 1, Kind.EVENT
    if flags & FLAG_KIND and payload[1:2] in _KINDS:
        start, kind = 2, _KINDS[payload[1:2]]
        flags &= ~FLAG_KIND
    if flags & ~(FLAG_KEY | FLAG_EPHEMERAL) != VERSION_1:
        shown = payload[: 2 if flags & VERSION_MASK == VERSION_1 and flags & FLAG_KIND else 1]
        raise ValueError(f"a payload that begins with {shown!r} was not written by a Hub, or by one of a later release")
    ephemeral = bool(flags & FLAG_EPHEMERAL)
    if not flags & FLAG_KEY:
        return DecodedPayload(payload[start:], None, ephemeral, kind)
    end = start + 2 + int.from_bytes(payload[start : start + 2], "big")
    if len(payload) < end:
        raise ValueError(f"a payload of {len(payload)} bytes was cut before byte {end}, where its key ends")
    return DecodedPayload(payload[end:], payload[start + 2 : end].decode(), ephemeral, kind)


_KINDS = {b"%c" % kind: kind for kind in Kind if kind is not Kind.EVENT}


def is_ephemeral(payload: bytes) -> bool:
    """Return whether a payload of version 1 is flagged as ephemeral, even if it has flags of a later release."""
    flags = payload[0] if payload else 0
    return flags & VERSION_MASK == VERSION_1 and bool(flags & FLAG_EPHEMERAL)


def _check_key(key: str) -> None:
    if not isinstance(key, str):
        raise TypeError(f"an event's key is a str or None, not {key!r}")
    try:
        size = len(key) if key.isascii() else len(key.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"an event's key is sent as UTF-8, which cannot encode {key!r}: {error.reason}") from None
    if size > MAX_KEY_BYTES:
        raise ValueError(f"an event's key has at most {MAX_KEY_BYTES} bytes, not {size}")


def _check_idempotency_key(key: str) -> None:
    if not isinstance(key, str):
        raise TypeError(f"an idempotency_key is a str or None, not {key!r}")
    if not (0 < len(key) <= MAX_IDEMPOTENCY_KEY and key.isprintable()):
        raise ValueError(f"an idempotency_key is 1 to {MAX_IDEMPOTENCY_KEY} printable characters, not {key!r}")
