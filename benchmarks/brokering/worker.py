"""A process that runs one measurement: ``worker.py ACTION ENGINE SIDE URL COUNT``. It prints one line of JSON.

SIDE is ``ours``, a Hub with a broker, or ``bare``, the client library alone. The action ``tail`` reads a broker without
a Hub. The action ``receive`` prints ``ready`` first, and then waits for COUNT events whose data is the time when they
were published, in nanoseconds of the monotonic clock.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from aiohttp_interceptors import CloseReason, Hub
from aiohttp_interceptors.brokers.nats import NatsBroker
from aiohttp_interceptors.brokers.postgres import PostgresBroker
from aiohttp_interceptors.brokers.redis import RedisBroker
from aiohttp_interceptors.brokers.sqlite import SqliteBroker
from aiohttp_interceptors.hub.broker import Broker, CaughtUp, Erased, Subscribed, Trimmed, Truncated
from brokering.bare import BARE, Bare

BROKERS: dict[str, Callable[[str], Broker]] = {
    "sqlite": SqliteBroker,
    "redis": RedisBroker,
    "postgres": PostgresBroker,
    "nats": NatsBroker,
}
CONCURRENT = 200  # concurrent publishes
INTERVAL = 0.003  # seconds between two timed events, longer than their latency
DATA = b"x" * 100


class Receiver:
    """A sink of the Hub that measures latencies."""

    paused = False

    def __init__(self, latencies: list[float], count: int) -> None:
        self.started = asyncio.Event()
        self.done = asyncio.Event()
        self._latencies = latencies
        self._count = count

    @property
    def encoder(self) -> Callable[[bytes], bytes]:
        """Return the framing of payloads: none."""
        return bytes

    def write(self, payload: bytes, now: float) -> None:  # noqa: ARG002  # the signature of a Sink
        """Measure the latency of each event."""
        self.started.set()
        for line in payload.split(b"\n"):
            if line.startswith(b"data: "):
                add_latency(self._latencies, line[6:])
        if len(self._latencies) >= self._count:
            self.done.set()


def on_end(reason: CloseReason, error: BaseException | None) -> None:
    """Fail if the stream ends before the Hub is closed."""
    assert reason is CloseReason.SHUTDOWN, (reason, error)


class Stopwatch:
    """The time and the CPU time since its creation."""

    def __init__(self) -> None:
        self._started, self._cpu = time.perf_counter(), time.process_time()
        self._seconds = self._cpu_seconds = 0.0

    def stop(self) -> None:
        """Stop the measurement."""
        self._seconds, self._cpu_seconds = time.perf_counter() - self._started, time.process_time() - self._cpu

    def per(self, count: int) -> dict[str, float]:
        """Return the operations per second, and the CPU microseconds per operation."""
        return {"rate": count / self._seconds, "cpu": self._cpu_seconds / count * 1e6}


async def open_hub(engine: str, url: str) -> Hub:
    """Return a Hub that has read its history."""
    hub = Hub(BROKERS[engine](url))
    hub.open()
    while not hub.ready:  # noqa: ASYNC110  # polled, as by a readiness route
        await asyncio.sleep(0.0005)
    return hub


async def open_bare(engine: str, url: str) -> Bare:
    """Return a connected client."""
    bare = BARE[engine](url)
    await bare.open()
    return bare


async def publish(engine: str, side: str, url: str, count: int) -> dict[str, float]:
    """Publish ``count`` events as fast as possible."""
    if side == "ours":
        hub = await open_hub(engine, url)
        stopwatch = Stopwatch()
        for start in range(0, count, CONCURRENT):
            await asyncio.gather(
                *[hub.publish(f"rooms.{n % 10}", DATA.decode()) for n in range(start, start + CONCURRENT)]
            )
        stopwatch.stop()
        await hub.close()
    else:
        bare = await open_bare(engine, url)
        stopwatch = Stopwatch()
        for _ in range(0, count, CONCURRENT):
            await bare.append([DATA] * CONCURRENT)
        stopwatch.stop()
        await bare.close()
    return stopwatch.per(count)


async def read(engine: str, side: str, url: str, count: int) -> dict[str, float]:
    """Read ``count`` stored events from the start."""
    stopwatch = Stopwatch()
    if side == "ours":
        hub = await open_hub(engine, url)
        stopwatch.stop()
        assert hub.history.records == min(count, 10_000), hub.history.records  # the latest 1,000 of ten topics
        await hub.close()
    else:
        bare = await open_bare(engine, url)
        await bare.read(count)
        stopwatch.stop()
        await bare.close()
    return stopwatch.per(count)


async def tail(engine: str, side: str, url: str, count: int) -> dict[str, float]:
    """Read ``count`` stored events from a broker without a Hub."""
    stopwatch = Stopwatch()
    broker, received = BROKERS[engine](url), 0
    async with aclosing(broker.tail(None)) as items:
        async for item in items:
            if isinstance(item, CaughtUp):
                break
            received += 0 if isinstance(item, Subscribed | Trimmed | Erased | Truncated) else len(item)
    stopwatch.stop()
    assert received == count, received
    await broker.close()
    return stopwatch.per(count)


async def send(engine: str, side: str, url: str, count: int) -> dict[str, float]:
    """Publish ``count`` events one at a time. Their data is the current time."""
    hub = await open_hub(engine, url) if side == "ours" else None
    bare = await open_bare(engine, url) if side == "bare" else None
    for _ in range(count):
        await asyncio.sleep(INTERVAL)
        now = str(time.monotonic_ns())
        if hub is not None:
            await hub.publish("rooms.1", now)
        if bare is not None:
            await bare.append([now.encode()])
    if hub is not None:
        await hub.close()
    return {}


async def receive(engine: str, side: str, url: str, count: int) -> dict[str, float]:
    """Receive ``count`` events, and return the quantiles of their latencies in milliseconds."""
    latencies: list[float] = []
    async with asyncio.timeout(60):
        await (receive_with_hub if side == "ours" else receive_bare)(engine, url, latencies, count)
    cuts = statistics.quantiles(latencies[:count], n=100)
    return {"p50": cuts[49], "p99": cuts[98]}


async def receive_with_hub(engine: str, url: str, latencies: list[float], count: int) -> None:
    """Measure when a stream of a Hub is written to."""
    hub, receiver = await open_hub(engine, url), Receiver(latencies, count)
    hub.subscribe(["rooms.>"], receiver, on_end).start()
    await receiver.started.wait()
    print("ready", flush=True)
    await receiver.done.wait()
    await hub.close()


async def receive_bare(engine: str, url: str, latencies: list[float], count: int) -> None:
    """Measure when a client library returns a payload."""
    bare = await open_bare(engine, url)
    receiving = bare.receive()
    first = asyncio.ensure_future(anext(receiving))
    await asyncio.sleep(0.3)  # a library does not tell when it has subscribed
    print("ready", flush=True)
    payload = await first
    add_latency(latencies, payload)
    async for payload in receiving:
        add_latency(latencies, payload)
        if len(latencies) >= count:
            break


def add_latency(latencies: list[float], data: bytes) -> None:
    """Append the latency of an event, in milliseconds."""
    latencies.append((time.monotonic_ns() - int(data)) / 1e6)


ACTIONS: dict[str, Callable[[str, str, str, int], Coroutine[None, None, dict[str, float]]]] = {
    "publish": publish,
    "read": read,
    "tail": tail,
    "send": send,
    "receive": receive,
}

if __name__ == "__main__":
    action, engine, side, url, count = sys.argv[1:]
    print(json.dumps(asyncio.run(ACTIONS[action](engine, side, url, int(count)))), flush=True)
