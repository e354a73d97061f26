"""A message to publish, and the payload that a broker stores for it.

A payload is one byte with the version of the format and flags, the key if there is one, and the event's frame without
an ID. ``docs/format.md`` specifies it, and what a later release may change.
"""

from __future__ import annotations

from typing import NamedTuple

from ..exceptions import EventTooLarge
from ..sse import Event, encode, is_larger

__all__ = ["DecodedPayload", "Message", "decode_payload", "encode_payload", "is_ephemeral"]


VERSION_MASK = 0xF0  # the upper half of the first byte is the version, the lower half is flags
VERSION_1 = 0x10
FLAG_KEY = 0x01
FLAG_EPHEMERAL = 0x02
MAX_KEY_BYTES = 0xFFFF  # the length of a key takes two bytes
MAX_IDEMPOTENCY_KEY = 200  # characters: enough for a URL and a number, and within the limits of all brokers


class Message:
    """An event to publish, with its topic and options, checked.

    The caller checks the topic, because it knows the topics that were checked before.

    Raises ``TypeError`` or ``ValueError`` (``EventTooLarge`` for more than ``max_size`` bytes).
    """

    __slots__ = ("ephemeral", "event", "idempotency_key", "key", "topic")

    def __init__(
        self,
        topic: str,
        event: Event,
        key: str | None,
        ephemeral: bool,  # noqa: FBT001  # made only by the Hub
        idempotency_key: str | None,
        max_size: int | None,
    ) -> None:
        if event.id is not None:
            raise ValueError(
                f"the Hub assigns the ids of events, and {event!r} already has one; to supersede earlier events use key"
            )
        if key is not None:
            _check_key(key)
        if idempotency_key is not None:
            _check_idempotency_key(idempotency_key)
        if max_size is not None and is_larger(event, max_size):
            raise EventTooLarge(
                f"an event of more than {max_size} bytes was published under {topic!r}; see max_event_size"
            )
        self.topic: str = topic
        self.event: Event = event
        self.key: str | None = key
        self.ephemeral: bool = ephemeral
        self.idempotency_key: str | None = idempotency_key

    def payload(self) -> bytes:
        """Encode the payload for a broker."""
        return encode_payload(encode(self.event), self.key, ephemeral=self.ephemeral)


class DecodedPayload(NamedTuple):
    """The parts of a payload."""

    frame: bytes
    """The event as it is sent to clients, without an ID."""
    key: str | None
    ephemeral: bool


def encode_payload(frame: bytes, key: str | None, *, ephemeral: bool) -> bytes:
    """Return the payload for a frame without an ID. The key must have been checked."""
    flags = VERSION_1 | (FLAG_EPHEMERAL if ephemeral else 0)
    if key is None:
        return b"%c%b" % (flags, frame)
    encoded = key.encode()
    return b"%c%b%b%b" % (flags | FLAG_KEY, len(encoded).to_bytes(2, "big"), encoded, frame)


def decode_payload(payload: bytes) -> DecodedPayload:
    """Return the parts of a payload. Raises ``ValueError`` if this release cannot read it."""
    flags = payload[0] if payload else 0
    if flags == VERSION_1:
        return DecodedPayload(payload[1:], None, False)  # noqa: FBT003
    if flags & ~(FLAG_KEY | FLAG_EPHEMERAL) != VERSION_1:
        raise ValueError(
            f"a payload that begins with {payload[:1]!r} was not written by a Hub, or by one of a later release"
        )
    if not flags & FLAG_KEY:
        return DecodedPayload(payload[1:], None, bool(flags & FLAG_EPHEMERAL))
    end = 3 + int.from_bytes(payload[1:3], "big")
    if len(payload) < end:
        raise ValueError(f"a payload of {len(payload)} bytes was cut before byte {end}, where its key ends")
    return DecodedPayload(payload[end:], payload[3:end].decode(), bool(flags & FLAG_EPHEMERAL))


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
