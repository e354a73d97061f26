"""The worst lag of the event loop while clients reconnect to a Hub with many topics.

Each topic has one record, and a client that resumes subscribes to all of them with a wildcard. Clients read without
pauses, which is the worst case for the event loop. The lag is the CPU time of the longest iteration of the event loop,
so that other processes do not count. Pauses of Python's garbage collector are measured separately and subtracted,
because their length depends on the whole application; after ``gc.freeze()`` the collector ignores the history. One
process, no socket.

    python benchmarks/returning.py [--topics 1000 10000 100000]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from aiohttp_interceptors import CloseReason, Hub, Subscriber
from aiohttp_interceptors.hub.cursor import SubscriptionPolicy
from aiohttp_interceptors.hub.dispatcher import Subscription

GOAL = 20.0  # milliseconds
TEXT = "x" * 80
MANY = 200  # clients that resume at once
NAME = "room.{}.state"


class Client:
    """A sink that is never paused, and counts events."""

    paused = False
    subscription: Subscription

    def __init__(self) -> None:
        self.events = self.gaps = 0

    @property
    def encoder(self) -> Callable[[bytes], bytes]:
        """Return the framing of payloads: none."""
        return bytes

    def write(self, payload: bytes, now: float) -> None:  # noqa: ARG002  # the signature of a Sink
        """Count events."""
        self.events += payload.count(b"\ndata: ")
        self.gaps += payload.count(b"\nevent: gap\n")


def on_end(reason: CloseReason, error: BaseException | None) -> None:
    """Fail: no stream may end during the measurement."""
    raise AssertionError((reason, error))


def connect(hub: Hub, *topics: str, after: str | None = None, replay: int = 0) -> Client:
    """Subscribe a client."""
    client = Client()
    policy = SubscriptionPolicy(prime=False, replay=replay)
    client.subscription = hub.subscribe(topics, client, on_end, after=after, policy=policy)
    client.subscription.start()
    return client


class Lag:
    """The CPU time of the longest iteration of the event loop, without garbage collections."""

    def __init__(self) -> None:
        self.worst = self.collected = self.longest_collection = 0.0
        self.iterations = 0
        self._collection_started = 0.0

    def on_collection(self, phase: str, info: dict[str, int]) -> None:  # noqa: ARG002  # a callback of gc
        """Measure a garbage collection."""
        if phase == "start":
            self._collection_started = time.thread_time()
        else:
            pause = time.thread_time() - self._collection_started
            self.collected += pause
            self.longest_collection = max(self.longest_collection, pause)

    async def measure_until(self, condition: Callable[[], bool]) -> None:
        """Measure all iterations of the event loop until a condition holds."""
        deadline = time.thread_time() + 120
        while not condition():
            started, collected = time.thread_time(), self.collected
            await asyncio.sleep(0)
            ended = time.thread_time()
            self.worst = max(self.worst, ended - started - (self.collected - collected))
            self.iterations += 1
            assert ended < deadline


@contextmanager
def measuring() -> Iterator[Lag]:
    """Measure garbage collections while the block runs, and yield the ``Lag``."""
    lag = Lag()
    gc.callbacks.append(lag.on_collection)
    try:
        yield lag
    finally:
        gc.callbacks.remove(lag.on_collection)


async def filled_hub(topics: int, age: float | None = None, history: int = 1000) -> tuple[Hub, str]:
    """Return a Hub with one record per topic, and the ID before all of them."""
    hub = Hub(history_age=age, history=history)
    start = hub.history.id_of(0)
    for number in range(topics):
        await hub.publish(NAME.format(number), TEXT)
        if not number % 100:
            await asyncio.sleep(0)
    return hub, start


async def resume(hub: Hub, start: str, topics: int, wildcard: str, lag: Lag) -> None:
    """One client resumes before all records."""
    started = time.thread_time()
    client = connect(hub, wildcard, after=start)
    lag.worst = time.thread_time() - started
    await lag.measure_until(lambda: client.subscription.live)
    assert client.events == topics + client.gaps
    client.subscription.close()


async def resume_many(hub: Hub, topics: int, lag: Lag) -> None:
    """Many clients resume, each at another offset, so that they share no reads."""
    expected: list[tuple[Client, int]] = []
    started = time.thread_time()
    for number in range(MANY):
        missed = topics - number * topics // MANY // 10
        expected.append((connect(hub, ">", after=hub.history.id_of(topics - missed)), missed))
    lag.worst = (time.thread_time() - started) / MANY  # in a server, each connects in its own iteration
    await lag.measure_until(lambda: all(client.events == count for client, count in expected))
    for client, _ in expected:
        client.subscription.close()


async def replay(hub: Hub, topics: int, wildcard: str, lag: Lag) -> None:
    """A client without an ID starts with the latest 1,000 records."""
    started = time.thread_time()
    client = connect(hub, wildcard, replay=1000)
    lag.worst = time.thread_time() - started
    await lag.measure_until(lambda: client.events == min(1000, topics))
    client.subscription.close()


async def change_topics(hub: Hub, lag: Lag) -> None:
    """A live subscription adds wildcards and removes them."""
    client = connect(hub, "other")
    await lag.measure_until(lambda: client.subscription.live)
    subscriber = Subscriber(client.subscription)
    for change in subscriber.add, subscriber.remove:
        started = time.thread_time()
        change("room.>", "*.*.state")
        lag.worst = max(lag.worst, time.thread_time() - started)
        await lag.measure_until(lambda: client.subscription.live)
    client.subscription.close()


async def expire(topics: int, lag: Lag) -> None:
    """All records become too old at the same time."""
    age = topics / 1000 / 10 + 0.5
    hub, _ = await filled_hub(topics, age)
    await lag.measure_until(lambda: hub.statistics().records == 0)
    await hub.close()


async def measure(topics: int, *, freeze: bool) -> None:
    """Measure all cases with a number of topics, and print a line for each."""
    hub, start = await filled_hub(topics)
    evicting, _ = await filled_hub(topics, history=1)
    for number in range(topics):
        await evicting.publish(NAME.format(number), TEXT)
    gc.collect()
    if freeze:
        gc.freeze()
    cases: dict[str, Callable[[Lag], Awaitable[None]]] = {
        "resume, >": lambda lag: resume(hub, start, topics, ">", lag),
        "resume, room.*.state": lambda lag: resume(hub, start, topics, "room.*.state", lag),
        "resume with a gap": lambda lag: resume(evicting, evicting.history.id_of(0), topics, "room.*.state", lag),
        f"{MANY} resume at once": lambda lag: resume_many(hub, topics, lag),
        "replay of 1,000": lambda lag: replay(hub, topics, "room.*.state", lag),
        "change of wildcards": lambda lag: change_topics(hub, lag),
        "all records expire": lambda lag: expire(topics, lag),
    }
    for title, case in cases.items():
        started = time.thread_time()
        with measuring() as lag:
            await case(lag)
        seconds = time.thread_time() - started
        missed = "" if lag.worst * 1000 < GOAL else "  <- over the goal"
        print(
            f"{topics:>8,}  {'frozen' if freeze else '':<7} {title:<26} {lag.worst * 1000:8.2f} "
            f"{lag.longest_collection * 1000:10.1f} {lag.iterations:8,} {seconds:8.2f}{missed}",
            flush=True,
        )
    with measuring() as lag:
        gc.collect()
    print(f"{topics:>8,}  {'frozen' if freeze else '':<7} {'a full collection':<26} {'':8} "
          f"{lag.longest_collection * 1000:10.1f}")  # fmt: skip
    await hub.close()
    gc.unfreeze()


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description="Measure the worst lag of the event loop while clients reconnect.")
    parser.add_argument("--topics", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    arguments = parser.parse_args()
    print(f"{'topics':>8}  {'':<7} {'':<26} {'lag, ms':>8} {'gc, ms':>10} {'loops':>8} {'s':>8}   goal: {GOAL:.0f} ms")
    for topics in arguments.topics:
        for freeze in False, True:
            asyncio.run(measure(topics, freeze=freeze))


if __name__ == "__main__":
    main()
