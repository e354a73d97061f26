"""What a broker carries of an event: its frame as it goes over the wire, and what the Hub has to know besides."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Content", "is_ephemeral", "pack", "unpack"]

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
