"""A stream of a Hub without a network: what it is given it shows as a browser would, and it can be full."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp_interceptors.channel import CloseReason
from aiohttp_interceptors.hub.cursor import SubscriptionPolicy
from aiohttp_interceptors.hub.dispatcher import Subscription
from aiohttp_interceptors.hub.hub import Hub, Subscriber
from aiohttp_interceptors.sse import Decoder, Event
from tests.waiting import PATIENCE


def sized(frames: bytes) -> bytes:
    """Put the size before frames, as HTTP/1.1 does: a new object, and no bytes of a frame."""
    return b"%d:%b" % (len(frames), frames)


def plain(frames: bytes) -> bytes:
    """Leave frames as they are, as HTTP/1.0 does."""
    return frames


class Sink:
    """A client that keeps all, and reads when it is told to: beyond ``room`` bytes it pauses, within ``write``."""

    subscription: Subscription

    def __init__(self, room: float = float("inf"), wrap: Callable[[bytes], bytes] = sized) -> None:
        self.room = room
        self.wrap = wrap
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
        if self.wrap is plain:
            return payload
        size, _, frames = payload.partition(b":")
        assert len(frames) == int(size)
        return frames

    def received(self, frames: list[Event]) -> None:
        self.frames += frames

    def ended(self, reason: CloseReason, error: Exception | None) -> None:
        self.ends.append((reason, error))

    @property
    def subscriber(self) -> Subscriber:
        """What an application has of it."""
        return Subscriber(self.subscription)

    @property
    def last_event_id(self) -> str:
        """What it would return with."""
        return self._decoder.last_event_id

    @property
    def texts(self) -> list[str]:
        """What a page has seen, gaps by their name."""
        return [frame.data if frame.name != "gap" else "gap" for frame in self.frames if frame.data is not None]

    # What a transport does.

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
    """Open a stream that has yet to start."""
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
    """Open a stream, which begins in the next flush."""
    sink = subscribe(hub, *topics, **options)
    sink.subscription.start()
    return sink


async def live(hub: Hub, *topics: str, **options) -> Sink:
    """Open a stream that keeps up."""
    sink = start(hub, *topics, **options)
    await turn()
    assert sink.subscription.live
    return sink


async def turn(count: int = 1) -> None:
    """Have the event loop do what was due when this was called."""
    for _ in range(count):
        await asyncio.sleep(0)


async def drain(*sinks: Sink) -> None:
    """Have them read until nothing more comes."""
    async with asyncio.timeout(PATIENCE):
        while any(sink.paused for sink in sinks):
            for sink in sinks:
                sink.resume()
            await turn()


def at_once(awaitable) -> object:
    """Run what is asynchronous and never waits, from a function that is not."""
    try:
        awaitable.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")
