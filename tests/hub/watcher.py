"""Streams that watch who is present, and Hubs that stand for nodes whose connection to the broker can fail."""

from __future__ import annotations

import asyncio
import json

from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.exceptions import BrokerDown
from aiohttp_interceptors.hub import nodes, replication
from aiohttp_interceptors.hub.cursor import SubscriptionPolicy
from aiohttp_interceptors.hub.hub import Hub
from aiohttp_interceptors.hub.message import Kind, decode_payload, encode_payload
from aiohttp_interceptors.sse import Event
from tests.hub.sink import Sink
from tests.waiting import until

EVENT = "who"  # the name of the events about presence


def fold(present: dict[str, set[str]], event: Event) -> None:
    """Apply an event about presence to what a client knows. It must fit."""
    content = json.loads(event.data)
    topic = content.pop("topic")
    ((kind, value),) = content.items()
    if kind == "present":
        assert value == sorted(set(value))
        present[topic] = set(value)
    elif kind == "joined":
        assert value not in present[topic]
        present[topic].add(value)
    else:
        assert kind == "left"
        present[topic].remove(value)


class Watcher(Sink):
    """A client that knows who is present from what it is sent."""

    def __init__(self, *options, **named_options) -> None:
        super().__init__(*options, **named_options)
        self.present: dict[str, set[str]] = {}

    def received(self, frames: list[Event]) -> None:
        super().received(frames)
        for frame in frames:
            if frame.name == EVENT:
                fold(self.present, frame)

    @property
    def told(self) -> list[dict[str, object]]:
        """The contents of the events about presence."""
        return [json.loads(frame.data) for frame in self.frames if frame.name == EVENT]


def join(hub: Hub, *topics: str, identity=None, watches=True, sink=None, select=None, **policy) -> Watcher:
    """Open a stream with an identity. It watches who is present, unless ``watches`` is false."""
    sink = sink or Watcher()
    if watches:
        policy["presence_event"] = EVENT
    sink.subscription = hub.subscribe(
        topics,
        sink,
        lambda *end: sink.ended(*end),
        select=select,
        identity=identity,
        policy=SubscriptionPolicy(**{"prime": False, **policy}),
    )
    sink.subscription.start()
    return sink


def watch(hub: Hub, *topics: str, **options) -> Watcher:
    """Open a stream without an identity that watches who is present."""
    return join(hub, *topics, **options)


class Cable(MemoryBroker):
    """The connection of one node to the log, which can be cut, and a node that can be frozen."""

    def __init__(self, log: MemoryLog) -> None:
        super().__init__(log)
        self.cut = False
        self.thawed = asyncio.Event()
        self.thawed.set()

    def freeze(self) -> None:
        """Send nothing, as a process that is stopped."""
        self.thawed.clear()

    def thaw(self) -> None:
        self.thawed.set()

    async def publish(self, topic, payload, **options):
        await self.thawed.wait()
        if self.cut:
            raise BrokerDown("cut")
        return await super().publish(topic, payload, **options)

    async def tail(self, after):
        if self.cut:
            raise BrokerDown("cut")
        async for item in super().tail(after):
            if self.cut:
                raise BrokerDown("cut")
            yield item


def quick(monkeypatch, *, lease_timeout: float = 60.0) -> None:
    """Wait no longer than needed for what takes seconds. A lease does not expire during a test, by default."""
    monkeypatch.setattr(nodes, "LEASE_INTERVAL", 0.02)
    monkeypatch.setattr(nodes, "LEASE_TIMEOUT", lease_timeout)
    monkeypatch.setattr(nodes, "CHECK_INTERVAL", 0.01)
    monkeypatch.setattr(nodes, "RETRY_DELAY", 0.01)
    monkeypatch.setattr(replication, "MIN_RECONNECT_DELAY", 0.001)
    monkeypatch.setattr(replication, "MAX_RECONNECT_DELAY", 0.01)


class Cluster:
    """Hubs on one log, each of which stands for one process."""

    def __init__(self, log: MemoryLog | None = None) -> None:
        self.log = log or MemoryLog()
        self.hubs: list[Hub] = []

    async def node(self, broker: MemoryBroker | None = None, *, ready: bool = True) -> Hub:
        """Start a node."""
        hub = Hub(broker or MemoryBroker(self.log))
        self.hubs.append(hub)
        hub.open()
        if ready:
            await until(lambda: hub.ready)
        return hub

    async def close(self) -> None:
        self.log.restart()
        for hub in self.hubs:
            await hub.close()

    def control_messages(self) -> list[dict[str, object]]:
        """The control messages in the log, in order."""
        position, messages = self.log.start, []
        while entries := self.log.after(position):
            for entry in entries:
                frame, _, _, kind = decode_payload(entry.payload)
                if kind is Kind.CONTROL:
                    messages.append(json.loads(frame))
            position = position._replace(offset=entries[-1].offset)
        return messages

    def send(self, content: bytes) -> int:
        """Append a control message to the log, and return its offset."""
        payload = encode_payload(content, None, ephemeral=True, kind=Kind.CONTROL)
        return self.log.append("_hub", payload, None).offset


def seen(hub: Hub, topic: str = "room") -> set[str]:
    """Return who a node knows to be present."""
    return set(hub.presence(topic))
