"""One measurement in a process of its own: ``worker.py WHAT ENGINE WHO URL COUNT``; it prints one line of JSON.

WHO is ``ours``, a Hub with a broker, or ``bare``, the client library alone; ``tail`` reads a broker without a Hub.
``receive`` prints ``ready`` first, and then waits for COUNT events whose data is when they were published, in
nanoseconds of the machine's clock.
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
from aiohttp_interceptors.hub.broker import Broker, CaughtUp, Subscribed, Trimmed, Truncated
from brokering.bare import BARE, Bare

BROKERS: dict[str, Callable[[str], Broker]] = {
    "sqlite": SqliteBroker,
    "redis": RedisBroker,
    "postgres": PostgresBroker,
    "nats": NatsBroker,
}
TOGETHER = 200  # publishes that are on their way at the same time
PAUSE = 0.003  # seconds between two events whose way is timed: nobody is to wait for the one before
DATA = b"x" * 100


class Outlet:
    """A stream of the Hub without a network, which notes when it is told."""

    paused = False

    def __init__(self, took: list[float], count: int) -> None:
        self.began = asyncio.Event()
        self.done = asyncio.Event()
        self._took = took
        self._count = count

    @property
    def wrap(self) -> Callable[[bytes], bytes]:
        """As a client of HTTP/1.0 has it."""
        return bytes

    def write(self, payload: bytes, now: float) -> None:  # noqa: ARG002  # what a Hub calls
        """Take what came."""
        self.began.set()
        for line in payload.split(b"\n"):
            if line.startswith(b"data: "):
                note(self._took, line[6:])
        if len(self._took) >= self._count:
            self.done.set()


def ended(reason: CloseReason, error: BaseException | None) -> None:
    """Stop: a stream that ends before its Hub measures nothing."""
    assert reason is CloseReason.SHUTDOWN, (reason, error)


async def hub_of(engine: str, url: str) -> Hub:
    """Return a Hub that has read its history."""
    hub = Hub(BROKERS[engine](url))
    hub.open()
    while not hub.ready:  # noqa: ASYNC110  # as a health route does
        await asyncio.sleep(0.0005)
    return hub


async def bare_of(engine: str, url: str) -> Bare:
    """Return a client that is connected."""
    bare = BARE[engine](url)
    await bare.open()
    return bare


async def publish(engine: str, who: str, url: str, count: int) -> dict[str, float]:
    """Publish so many as fast as they are taken."""
    if who == "ours":
        hub = await hub_of(engine, url)
        began, cpu = time.perf_counter(), time.process_time()
        for start in range(0, count, TOGETHER):
            await asyncio.gather(
                *[hub.publish(f"rooms.{n % 10}", DATA.decode()) for n in range(start, start + TOGETHER)]
            )
        spent = time.perf_counter() - began, time.process_time() - cpu
        await hub.close()
    else:
        bare = await bare_of(engine, url)
        began, cpu = time.perf_counter(), time.process_time()
        for _ in range(0, count, TOGETHER):
            await bare.append([DATA] * TOGETHER)
        spent = time.perf_counter() - began, time.process_time() - cpu
        await bare.close()
    return {"rate": count / spent[0], "cpu": spent[1] / count * 1e6}


async def read(engine: str, who: str, url: str, count: int) -> dict[str, float]:
    """Read so many that are there, from the beginning."""
    if who == "ours":
        began, cpu = time.perf_counter(), time.process_time()
        hub = await hub_of(engine, url)
        spent = time.perf_counter() - began, time.process_time() - cpu
        assert hub.history.records == min(count, 10_000), hub.history.records  # ten topics, of each the latest thousand
        await hub.close()
    else:
        began, cpu = time.perf_counter(), time.process_time()
        bare = await bare_of(engine, url)
        await bare.read(count)
        spent = time.perf_counter() - began, time.process_time() - cpu
        await bare.close()
    return {"rate": count / spent[0], "cpu": spent[1] / count * 1e6}


async def tail(engine: str, who: str, url: str, count: int) -> dict[str, float]:  # as the others
    """Read so many by a broker, and do nothing with them."""
    began, cpu = time.perf_counter(), time.process_time()
    broker, got = BROKERS[engine](url), 0
    async with aclosing(broker.tail(None)) as items:
        async for item in items:
            if isinstance(item, CaughtUp):
                break
            got += 0 if isinstance(item, Subscribed | Trimmed | Truncated) else len(item)
    spent = time.perf_counter() - began, time.process_time() - cpu
    assert got == count, got
    await broker.close()
    return {"rate": count / spent[0], "cpu": spent[1] / count * 1e6}


async def send(engine: str, who: str, url: str, count: int) -> dict[str, float]:
    """Publish so many, one at a time, each with the time of its publishing."""
    hub = await hub_of(engine, url) if who == "ours" else None
    bare = await bare_of(engine, url) if who == "bare" else None
    for _ in range(count):
        await asyncio.sleep(PAUSE)
        now = str(time.monotonic_ns())
        if hub is not None:
            await hub.publish("rooms.1", now)
        if bare is not None:
            await bare.append([now.encode()])
    if hub is not None:
        await hub.close()
    return {}


async def receive(engine: str, who: str, url: str, count: int) -> dict[str, float]:
    """Wait for so many, and tell how long they took."""
    took: list[float] = []
    async with asyncio.timeout(60):
        await (heard if who == "ours" else told)(engine, url, took, count)
    cuts = statistics.quantiles(took[:count], n=100)
    return {"p50": cuts[49], "p99": cuts[98]}


async def heard(engine: str, url: str, took: list[float], count: int) -> None:
    """Note when a stream of a Hub is told."""
    hub, outlet = await hub_of(engine, url), Outlet(took, count)
    hub.subscribe(["rooms.>"], outlet, ended).start()
    await outlet.began.wait()
    print("ready", flush=True)
    await outlet.done.wait()
    await hub.close()


async def told(engine: str, url: str, took: list[float], count: int) -> None:
    """Note when a client is told."""
    bare = await bare_of(engine, url)
    receiving = bare.receive()
    first = asyncio.ensure_future(anext(receiving))
    await asyncio.sleep(0.3)  # a library does not say when it has begun to wait
    print("ready", flush=True)
    payload = await first
    note(took, payload)
    async for payload in receiving:
        note(took, payload)
        if len(took) >= count:
            break


def note(took: list[float], data: bytes) -> None:
    """Note how long an event took, in milliseconds."""
    took.append((time.monotonic_ns() - int(data)) / 1e6)


WHAT: dict[str, Callable[[str, str, str, int], Coroutine[None, None, dict[str, float]]]] = {
    "publish": publish,
    "read": read,
    "tail": tail,
    "send": send,
    "receive": receive,
}

if __name__ == "__main__":
    what, engine, who, url, count = sys.argv[1:]
    print(json.dumps(asyncio.run(WHAT[what](engine, who, url, int(count)))), flush=True)
