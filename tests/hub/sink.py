"""A sink without a network. It decodes the frames as a browser does, and its buffer can be full."""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Callable

from aiohttp_interceptors.channel import CloseReason
from aiohttp_interceptors.compression import Compression, SharedEncoder
from aiohttp_interceptors.hub.cursor import SubscriptionPolicy
from aiohttp_interceptors.hub.dispatcher import Subscription
from aiohttp_interceptors.hub.hub import Hub, Subscriber
from aiohttp_interceptors.sse import Decoder, Event
from tests.waiting import TIMEOUT, run_other_tasks


def sized(frames: bytes) -> bytes:
    """Encode frames with their size in front, as HTTP/1.1 does. This makes a new object."""
    return b"%d:%b" % (len(frames), frames)


def plain(frames: bytes) -> bytes:
    """Return frames unchanged, as HTTP/1.0 does."""
    return frames


def compressed(frames: bytes) -> bytes:
    """Mark a sink that compresses. It has an encoder of its own, with the smallest window, to which much is new."""
    raise NotImplementedError


class Sink:
    """A sink that keeps what it is given. It pauses in ``write`` when more than ``room`` bytes are unread."""

    subscription: Subscription

    def __init__(self, room: float = float("inf"), encoder: Callable[[bytes], bytes] = sized) -> None:
        self.room = room
        self.encoder = SharedEncoder(sized, Compression(window=512)) if encoder is compressed else encoder
        self._decompressor = zlib.decompressobj(-15)
        self._decompressed = b""
        self.paused = False
        self.unread = 0
        self.payloads: list[bytes] = []
        self.frames: list[Event] = []
        self.ends: list[tuple[CloseReason, Exception | None]] = []
        self._decoder = Decoder()

    def write(self, payload: bytes, now: float) -> None:
        assert payload
        self.payloads.append(payload)
        self.received(self._decoder.feed(self._unwrapped(payload)))
        self.unread += len(payload)
        if self.unread > self.room:
            self.pause()

    def _unwrapped(self, payload: bytes) -> bytes:
        if self.encoder is plain:
            return payload
        size, _, frames = payload.partition(b":")
        assert len(frames) == int(size)
        return self._decompress(frames) if isinstance(self.encoder, SharedEncoder) else frames

    def _decompress(self, blocks: bytes) -> bytes:
        frames = self._decompressor.decompress(blocks)
        self._decompressed += frames
        return frames

    def finish(self) -> bytes:
        """Return all frames, once the end of what is compressed was checked."""
        last_block, checksum, size = struct.unpack("<2sLL", self.encoder.finish())
        self._decompressor.decompress(last_block)
        assert self._decompressor.eof
        assert (checksum, size) == (zlib.crc32(self._decompressed), len(self._decompressed))
        return self._decompressed

    def received(self, frames: list[Event]) -> None:
        self.frames += frames

    def ended(self, reason: CloseReason, error: Exception | None) -> None:
        self.ends.append((reason, error))

    @property
    def subscriber(self) -> Subscriber:
        """The subscriber that an application would get."""
        return Subscriber(self.subscription)

    @property
    def last_event_id(self) -> str:
        """The ID that the client would reconnect with."""
        return self._decoder.last_event_id

    @property
    def texts(self) -> list[str]:
        """The data of the events; "gap" for a gap event."""
        return [frame.data if frame.name != "gap" else "gap" for frame in self.frames if frame.data is not None]

    # Flow control.

    def pause(self) -> None:
        if not self.paused:
            self.paused = True
            self.subscription.pause()

    def resume(self) -> None:
        self.unread = 0
        if self.paused:
            self.paused = False
            self.subscription.resume()


def subscribe(hub: Hub, *topics: str, sink: Sink | None = None, after=None, select=None, **policy) -> Sink:
    """Subscribe a sink without starting it."""
    sink = sink or Sink()
    sink.subscription = hub.subscribe(
        topics,
        sink,
        lambda *end: sink.ended(*end),
        after=after,
        select=select,
        policy=SubscriptionPolicy(**{"prime": False, **policy}),
    )
    return sink


def start(hub: Hub, *topics: str, **options) -> Sink:
    """Subscribe a sink and start it."""
    sink = subscribe(hub, *topics, **options)
    sink.subscription.start()
    return sink


async def live(hub: Hub, *topics: str, **options) -> Sink:
    """Subscribe a sink and wait until it is live."""
    sink = start(hub, *topics, **options)
    await run_other_tasks(1)
    assert sink.subscription.live
    return sink


async def drain(*sinks: Sink) -> None:
    """Resume sinks until none is paused."""
    async with asyncio.timeout(TIMEOUT):
        while any(sink.paused for sink in sinks):
            for sink in sinks:
                sink.resume()
            await run_other_tasks(1)


def at_once(awaitable) -> object:
    """Run a coroutine that never waits, and return its result."""
    try:
        awaitable.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("the coroutine waits")
