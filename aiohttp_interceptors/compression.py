"""Compression of event streams with gzip, where streams that are sent the same frames share the work.

A gzip body is a head, blocks of DEFLATE and a trailer with the checksum and the size of what was compressed. A block
may refer to the 32 KiB before it, so a stream decodes a shared block only if it was sent the same 32 KiB, or everything
that the compressor has seen since its last boundary. ``Audience`` holds that rule: it knows for each stream since when
it was sent only what all are sent. ``SharedEncoder`` is the side of one stream. What it compresses for its stream alone
refers to nothing, and lets the stream enter the audience anew.

Source: RFC 1951, RFC 1952.
"""

from __future__ import annotations

import threading
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeAlias, TypeVar

from ._checks import check_count

__all__ = [
    "GZIP_HEAD",
    "MIN_SHARED",
    "Audience",
    "BodyEncoder",
    "ChannelEncoder",
    "Compression",
    "Framing",
    "SharedEncoder",
    "accepts_gzip",
    "compress_replay",
    "compression_of",
    "forget_replays",
]


GZIP_HEAD = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
"""The first bytes of a body: no name, no time, an unknown system. Source: RFC 1952, 2.3."""
_LAST_BLOCK = b"\x03\x00"  # empty, with the fixed codes

MAX_LEVEL = 9
MAX_WINDOW = 2**15  # bytes; what every decoder of gzip holds
MIN_WINDOW = 2**9
# The smallest audience for which a compressor is kept, which takes 192 KiB. Frames for fewer streams are compressed
# without what came before them.
MIN_SHARED = 16
# Bytes that frames can refer to which are compressed alone, of which there are at most some 16 KiB. It makes them as
# small as a larger window does, in a third of the memory.
WINDOW_ALONE = 2**13
MAX_MEMORY_LEVEL = 7  # of zlib; 8, its default, takes 64 KiB more, and saves nothing

Framing: TypeAlias = Callable[[bytes], bytes]
"""Frames bytes of the body, for example as an HTTP chunk."""


@dataclass(frozen=True, slots=True)
class Compression:
    """How event streams are compressed.

    Args:
        level: From 1, the fastest, to 9, the smallest.
        window: Bytes that a compressor can refer to, a power of two from 512 to 32768. A stream with a channel has a
            compressor of its own, which takes six to eight times as much memory. The streams of a Hub share theirs.
        with_select: Whether streams with a ``select`` function may be compressed. The length of a compressed stream
            tells an observer of the network something about secrets that are compressed together with text of others.

    Raises:
        TypeError: ``level`` or ``window`` is not an integer.
        ValueError: ``level`` or ``window`` is out of range.
    """

    level: int = 6
    window: int = MAX_WINDOW
    with_select: bool = False

    def __post_init__(self) -> None:
        check_count("level", self.level, 1)
        check_count("window", self.window, MIN_WINDOW)
        if self.level > MAX_LEVEL:
            raise ValueError(f"level is at most {MAX_LEVEL}, not {self.level}")
        if self.window > MAX_WINDOW or self.window & (self.window - 1):
            raise ValueError(f"window is a power of two and at most {MAX_WINDOW}, not {self.window}")


DEFAULT = Compression()
"""What ``compress=True`` means."""


def compression_of(compress: bool | Compression) -> Compression | None:  # noqa: FBT001  # the value of an option
    """Return what the option ``compress`` means. Raises ``TypeError`` if it is neither a bool nor a ``Compression``."""
    if isinstance(compress, Compression):
        return compress
    if not isinstance(compress, bool):
        raise TypeError(f"compress is a bool or a Compression, not {compress!r}")
    return DEFAULT if compress else None


def accepts_gzip(accept_encoding: str | None) -> bool:
    """Return whether a client prefers gzip to no coding. A client without an ``Accept-Encoding`` header does not.

    A weight that is not a number counts as 0, because every client can read a stream that is not compressed.

    Source: RFC 9110, 12.5.3.
    """
    weights: dict[str, float] = {}
    for part in (accept_encoding or "").lower().split(","):
        coding, _, parameters = part.partition(";")
        name, _, value = parameters.partition("=")
        try:
            weights[coding.strip()] = float(value) if name.strip() == "q" else 1.0
        except ValueError:
            weights[coding.strip()] = 0.0
    gzip = weights.get("gzip", weights.get("x-gzip", weights.get("*", 0.0)))
    return gzip > 0 and gzip >= weights.get("identity", 0.0)


# Compressors.


class _Compressor:
    """A compressor whose output ends with each call at a whole byte.

    Args:
        level: The level.
        window: Bytes that it can refer to.
        boundary: The size of the audience from which on it refers to what it has compressed.
    """

    __slots__ = ("_compress", "boundary")

    def __init__(self, level: int, window: int, boundary: int = 0) -> None:
        bits = window.bit_length() - 1
        self._compress = zlib.compressobj(level, zlib.DEFLATED, -bits, min(MAX_MEMORY_LEVEL, bits - 7))
        self.boundary: int = boundary

    def encode(self, frames: bytes) -> bytes:
        return self._compress.compress(frames) + self._compress.flush(zlib.Z_SYNC_FLUSH)

    def reset(self, boundary: int) -> None:
        """Refer to nothing that was compressed before."""
        self._compress.flush(zlib.Z_FULL_FLUSH)  # an empty block, which no stream needs
        self.boundary = boundary

    def encode_alone(self, frames: bytes) -> bytes:
        """Compress without reference to what came before or comes after."""
        return self._compress.compress(frames) + self._compress.flush(zlib.Z_FULL_FLUSH)


class _Compressors(threading.local):
    """The compressors of a thread that refer to nothing, by their settings. Two threads must not mix their calls."""

    def __init__(self) -> None:
        self.by_settings: dict[Compression, _Compressor] = {}


_compressors = _Compressors()


def compress_alone(settings: Compression, frames: bytes) -> bytes:
    """Return blocks that can be decoded after any others."""
    compressor = _compressors.by_settings.get(settings)
    if compressor is None:
        compressor = _Compressor(settings.level, min(settings.window, WINDOW_ALONE))
        _compressors.by_settings[settings] = compressor
    return compressor.encode_alone(frames)


@lru_cache(8)
def compress_replay(settings: Compression, frames: bytes) -> bytes:
    """Return the same blocks. Clients that reconnect together are sent the same, as are idle ones."""
    return compress_alone(settings, frames)


def forget_replays() -> None:
    """Forget the frames that this thread has compressed for streams alone, because the history has lost some."""
    compress_replay.cache_clear()
    _compressors.by_settings.clear()  # their windows hold the latest frames


# Streams.


class BodyEncoder(ABC):
    """Compresses the body of one stream.

    Args:
        framing: The function that frames bytes of the body.
    """

    __slots__ = ("_crc", "_size", "framing")

    def __init__(self, framing: Framing) -> None:
        self.framing: Framing = framing
        self._crc = self._size = 0  # of what was compressed

    def __call__(self, frames: bytes) -> bytes:
        """Return what only this stream is sent, framed."""
        return self.framing(self.encode(frames))

    @abstractmethod
    def encode(self, frames: bytes) -> bytes:
        """Return what only this stream is sent, without framing."""

    def _count(self, frames: bytes) -> None:
        self._crc = zlib.crc32(frames, self._crc)
        self._size += len(frames)

    def finish(self) -> bytes:
        """Return the end of the body, without framing. Source: RFC 1952, 2.3.1."""
        return _LAST_BLOCK + self._crc.to_bytes(4, "little") + (self._size & 0xFFFFFFFF).to_bytes(4, "little")


class ChannelEncoder(BodyEncoder):
    """Compresses what is sent to one stream, with a compressor of its own."""

    __slots__ = ("_compressor",)

    def __init__(self, framing: Framing, settings: Compression) -> None:
        super().__init__(framing)
        self._compressor = _Compressor(settings.level, settings.window)

    def encode(self, frames: bytes) -> bytes:
        self._count(frames)
        return self._compressor.encode(frames)


class SharedEncoder(BodyEncoder):
    """Compresses what only one stream is sent, and follows what its audience is sent.

    Encoders are equal if their streams can be in one audience.
    """

    __slots__ = ("_left", "audience", "entered", "settings")

    def __init__(self, framing: Framing, settings: Compression) -> None:
        super().__init__(framing)
        self.settings: Compression = settings
        self.audience: Audience[Any] | None = None
        """The audience whose frames the stream is sent."""
        self.entered: int = 0
        """The size of the audience when the stream entered it, or was last sent something alone."""
        # The checksum and the size of what the audience was sent until the stream left. In an audience, _crc is that of
        # the stream combined with that of the audience, so that neither changes with a write.
        self._left: tuple[int, int] | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SharedEncoder) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[Framing, Compression]:
        return self.framing, self.settings

    def encode(self, frames: bytes) -> bytes:
        audience = self.audience
        self.leave()
        self._settle()
        self._count(frames)
        if audience is not None:
            self.enter(audience)  # anew: what it was sent now is not what the others were sent
        return compress_replay(self.settings, frames)

    def enter(self, audience: Audience[Any]) -> None:
        """Follow an audience from now on."""
        self._settle()
        self._crc ^= audience.crc
        self.entered = audience.size
        self.audience = audience
        audience.add()

    def leave(self) -> None:
        """Follow no audience. Idempotent."""
        audience, self.audience = self.audience, None
        if audience is not None:
            self._left = audience.crc, audience.size - self.entered
            audience.remove(self.entered)

    def finish(self) -> bytes:
        self.leave()
        self._settle()
        return super().finish()

    def _settle(self) -> None:
        """Add what the audience was sent, which takes some microseconds. Most streams end without it."""
        if self._left is not None:
            (crc, size), self._left = self._left, None
            self._crc = _append_zeros(self._crc, size) ^ crc
            self._size += size


# Audiences.


S = TypeVar("S")
"""The sink of a stream of an audience."""


class Audience(Generic[S]):
    """Streams that are sent the same frames. It compresses them once or twice, however many streams there are.

    Streams that entered lately are compressed for apart, by a compressor with frequent boundaries, so that those of the
    others stay rare. They join the others as soon as both were sent the same ``window`` bytes, without a boundary. If
    the bytes that they cost until then outweigh a boundary for the others, there is one for all.

    Args:
        framing: The function that frames bytes of the body, for example as an HTTP chunk.
        settings: The level and the window.
        encoder_of: Returns the encoder of a stream.
    """

    __slots__ = (
        "_encoder_of",
        "_extra",
        "_framing",
        "_main",
        "_newest",
        "_parts",
        "_recent",
        "_recent_since",
        "_sinks",
        "_streams",
        "_unsent",
        "_warm_up",
        "_warming",
        "crc",
        "settings",
        "size",
    )

    def __init__(self, framing: Framing, settings: Compression, encoder_of: Callable[[S], SharedEncoder]) -> None:
        self._framing = framing
        self.settings: Compression = settings
        self.crc: int = 0
        """The checksum of all frames so far."""
        self.size: int = 0
        """The number of bytes of all frames so far, before compression."""
        self._encoder_of = encoder_of
        self._streams = 0
        self._unsent = 0  # streams that were sent nothing since they entered
        self._main: _Compressor | None = None
        self._recent: _Compressor | None = None  # for the streams that entered lately
        self._sinks: Sequence[S] | None = None  # those that were divided into _parts
        self._parts: tuple[tuple[S, ...], tuple[S, ...]] = (), ()
        self._recent_since = self._newest = 0  # when the oldest and the newest of the recent streams entered
        self._forget_costs()

    def add(self) -> None:
        """Count a stream that enters."""
        self._streams += 1
        self._unsent += 1
        self._changed()

    def remove(self, entered: int) -> None:
        """Count a stream that leaves.

        Args:
            entered: The size of the audience when it entered.
        """
        self._streams -= 1
        if entered == self.size:
            self._unsent -= 1
        self._changed()

    def _changed(self) -> None:
        """Divide the streams anew, because one has entered or left. One that left is not referred to any more."""
        self._sinks, self._parts = None, ((), ())
        if self._unsent == self._streams:  # each had a heartbeat since the last frames, so none can refer to them
            self.forget()

    def forget(self) -> None:
        """Keep nothing of the frames so far. The next ones refer to nothing before them."""
        self._main = self._recent = None

    def encode(self, frames: bytes, sinks: Sequence[S]) -> list[tuple[bytes, Sequence[S]]]:
        """Compress frames for all streams, and return what each part of them is sent.

        Args:
            frames: The frames.
            sinks: The sinks of the streams that follow this audience, in an object that changes with them.
        """
        start = self.size
        self.crc = zlib.crc32(frames, self.crc)
        self.size = start + len(frames)
        if frames:
            self._unsent = 0
        if len(sinks) < MIN_SHARED:
            self._main = self._recent = None
            return [(self._framing(compress_alone(self.settings, frames)), sinks)]
        if self._main is None:
            self._main = _Compressor(self.settings.level, self.settings.window, start)
            self._forget_costs()
        settled, recent = self._divide(sinks, self._horizon(self._main, start))
        if recent and self._boundary_pays(settled):
            self._main.reset(start)
            self._forget_costs()
            settled, recent = self._divide(sinks, start)
        shared = self._main.encode(frames)
        if not recent:
            self._recent = None
            return [(self._framing(shared), settled)]
        latest = self._encode_recent(frames, start, len(shared))
        return [(self._framing(shared), settled), (self._framing(latest), recent)]

    def _horizon(self, compressor: _Compressor, size: int) -> int:
        """Return when, at the latest, a stream must have entered to decode what the compressor makes next."""
        return max(compressor.boundary, size - self.settings.window)

    def _divide(self, sinks: Sequence[S], horizon: int) -> tuple[tuple[S, ...], tuple[S, ...]]:
        """Return the streams that can decode the main compressor's output, and the others."""
        settled, recent = self._parts
        if self._sinks is not sinks or (recent and self._recent_since <= horizon):
            entered = [self._encoder_of(sink).entered for sink in sinks]
            later = [since for since in entered if since > horizon]
            if later:
                self._recent_since, self._newest = min(later), max(later)
                settled = tuple([sink for sink, since in zip(sinks, entered, strict=True) if since <= horizon])
                recent = tuple([sink for sink, since in zip(sinks, entered, strict=True) if since > horizon])
            else:
                settled, recent = tuple(sinks), ()
            self._sinks, self._parts = sinks, (settled, recent)
        return settled, recent

    # What recent streams cost.

    def _forget_costs(self) -> None:
        self._extra = 0  # bytes that the recent streams were sent more than if they had settled
        self._warming = 0  # bytes of these for one stream since the last boundary
        self._warm_up = 0  # the most that it was, which is what a boundary costs one stream

    def _boundary_pays(self, settled: Sequence[S]) -> bool:
        """Return whether the recent streams have cost twice what a boundary costs the others."""
        return not settled or 0 < 2 * len(settled) * self._warm_up <= self._extra

    def _encode_recent(self, frames: bytes, start: int, shared_size: int) -> bytes:
        """Compress frames for the recent streams, and note what they are sent more than ``shared_size`` bytes."""
        compressor, (_, recent) = self._recent, self._parts
        if compressor is None:
            compressor = self._recent = _Compressor(self.settings.level, self.settings.window, start)
        if self._newest > self._horizon(compressor, start):
            compressor.reset(start)
            self._warming = 0
        encoded = compressor.encode(frames)
        extra = len(encoded) - shared_size
        self._warming += extra
        self._warm_up = max(self._warm_up, self._warming)
        self._extra += len(recent) * extra
        return encoded


# Checksums.

SIZE_BITS = 64


def _multiply(a: int, b: int) -> int:
    """Multiply two polynomials modulo that of CRC-32, whose highest power is the lowest bit."""
    product = 0
    bit = 1 << 31
    while a:
        if a & bit:
            product ^= b
            a ^= bit
        bit >>= 1
        b = (b >> 1) ^ (0xEDB88320 if b & 1 else 0)
    return product


def _squares() -> list[int]:
    """Return x to the powers 8, 16, 32 and so on, as far as a size in bytes has bits."""
    squares = [1 << (31 - 8)]
    while len(squares) < SIZE_BITS:
        squares.append(_multiply(squares[-1], squares[-1]))
    return squares


_SQUARES = _squares()


@lru_cache(1024)  # streams that entered together leave together
def _shift(size: int) -> int:
    """Return what a checksum is multiplied with when ``size`` zeros follow."""
    shift = 1 << 31
    for bit in range(size.bit_length()):
        if size >> bit & 1:
            shift = _multiply(_SQUARES[bit], shift)
    return shift


def _append_zeros(crc: int, size: int) -> int:
    """Return the change of a checksum by ``size`` bytes, without that by their content."""
    return _multiply(_shift(size), crc) if crc else 0
