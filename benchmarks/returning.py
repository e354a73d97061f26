"""The worst lag of the event loop while clients return to a Hub of many topics.

Each topic has one record. A client that returns asks for all of them, by a wildcard; it reads as fast as it is written
to, which is the worst case: no stream pauses. A lag is the longest turn of the event loop, in CPU time, so that
what else runs is not in it. The pauses of Python's garbage collector are measured by themselves and taken off,
for they are the application's as a whole: with ``gc.freeze()`` after the history is there, the collector does not look
at it any more. One process, no socket.

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
MANY = 200  # clients that return at once
NAME = "room.{}.state"


class Client:
    """A client that takes all that it is given."""

    paused = False
    subscription: Subscription

    def __init__(self) -> None:
        self.events = self.gaps = 0

    @property
    def wrap(self) -> Callable[[bytes], bytes]:
        """Leave frames as they are."""
        return bytes

    def write(self, payload: bytes, now: float) -> None:  # noqa: ARG002  # as an Outlet has it
        """Count events."""
        self.events += payload.count(b"\ndata: ")
        self.gaps += payload.count(b"\nevent: gap\n")


def ended(reason: CloseReason, error: BaseException | None) -> None:
    """Stop: a stream that ends measures nothing."""
    raise AssertionError((reason, error))


def returned(hub: Hub, *topics: str, after: str | None = None, replay: int = 0) -> Client:
    """Have a client return."""
    client = Client()
    policy = SubscriptionPolicy(prime=False, replay=replay)
    client.subscription = hub.subscribe(topics, client, ended, after=after, policy=policy)
    client.subscription.start()
    return client


class Lag:
    """The longest turn of the event loop, without the garbage collector's pauses, which are counted apart."""

    def __init__(self) -> None:
        self.worst = self.collected = self.longest_collection = 0.0
        self.turns = 0
        self._began = 0.0

    def collector(self, phase: str, info: dict[str, int]) -> None:  # noqa: ARG002  # as gc calls it
        """Note a collection; a callback of ``gc``."""
        if phase == "start":
            self._began = time.thread_time()
        else:
            pause = time.thread_time() - self._began
            self.collected += pause
            self.longest_collection = max(self.longest_collection, pause)

    async def until(self, done: Callable[[], bool]) -> None:
        """Measure until something holds."""
        deadline = time.thread_time() + 120
        while not done():
            began, collected = time.thread_time(), self.collected
            await asyncio.sleep(0)
            ended = time.thread_time()
            self.worst = max(self.worst, ended - began - (self.collected - collected))
            self.turns += 1
            assert ended < deadline


@contextmanager
def measured() -> Iterator[Lag]:
    """Measure within."""
    lag = Lag()
    gc.callbacks.append(lag.collector)
    try:
        yield lag
    finally:
        gc.callbacks.remove(lag.collector)


async def filled(topics: int, age: float | None = None, history: int = 1000) -> tuple[Hub, str]:
    """Return a Hub with a record of each topic, and the id from which all of them follow."""
    hub = Hub(history_age=age, history=history)
    start = hub.history.id_of(0)
    for number in range(topics):
        await hub.publish(NAME.format(number), TEXT)
        if not number % 100:
            await asyncio.sleep(0)
    return hub, start


async def one_returns(hub: Hub, start: str, topics: int, wildcard: str, lag: Lag) -> None:
    """Let one client return."""
    began = time.thread_time()
    client = returned(hub, wildcard, after=start)
    lag.worst = time.thread_time() - began
    await lag.until(lambda: client.subscription.live)
    assert client.events == topics + client.gaps
    client.subscription.close()


async def many_return(hub: Hub, start: str, topics: int, lag: Lag) -> None:
    """Let many return, each from another position, that is not shared."""
    expected: list[tuple[Client, int]] = []
    began = time.thread_time()
    for number in range(MANY):
        back = topics - number * topics // MANY // 10
        expected.append((returned(hub, ">", after=hub.history.id_of(topics - back)), back))
    lag.worst = (time.thread_time() - began) / MANY  # each comes with a request of its own
    await lag.until(lambda: all(client.events == count for client, count in expected))
    for client, _ in expected:
        client.subscription.close()


async def one_begins(hub: Hub, topics: int, wildcard: str, lag: Lag) -> None:
    """Let one without an id begin with the latest thousand."""
    began = time.thread_time()
    client = returned(hub, wildcard, replay=1000)
    lag.worst = time.thread_time() - began
    await lag.until(lambda: client.events == min(1000, topics))
    client.subscription.close()


async def one_adds(hub: Hub, lag: Lag) -> None:
    """Let a live one add wildcards and remove them."""
    client = returned(hub, "other")
    await lag.until(lambda: client.subscription.live)
    subscriber = Subscriber(client.subscription)
    for change in subscriber.add, subscriber.remove:
        began = time.thread_time()
        change("room.>", "*.*.state")
        lag.worst = max(lag.worst, time.thread_time() - began)
        await lag.until(lambda: client.subscription.live)
    client.subscription.close()


async def all_expire(topics: int, lag: Lag) -> None:
    """Let all records become too old at once."""
    age = topics / 1000 / 10 + 0.5
    hub, _ = await filled(topics, age)
    await lag.until(lambda: hub.statistics().records == 0)
    await hub.close()


async def case(topics: int, *, freeze: bool) -> None:
    """Measure all with so many topics."""
    hub, start = await filled(topics)
    gone, _ = await filled(topics, history=1)
    for number in range(topics):
        await gone.publish(NAME.format(number), TEXT)
    gc.collect()
    if freeze:
        gc.freeze()
    runs: dict[str, Callable[[Lag], Awaitable[None]]] = {
        "one returns, >": lambda lag: one_returns(hub, start, topics, ">", lag),
        "one returns, room.*.state": lambda lag: one_returns(hub, start, topics, "room.*.state", lag),
        "one returns to a gap": lambda lag: one_returns(gone, gone.history.id_of(0), topics, "room.*.state", lag),
        f"{MANY} return at once": lambda lag: many_return(hub, start, topics, lag),
        "one begins with 1,000": lambda lag: one_begins(hub, topics, "room.*.state", lag),
        "one adds wildcards": lambda lag: one_adds(hub, lag),
        "all are too old": lambda lag: all_expire(topics, lag),
    }
    for title, run in runs.items():
        began = time.thread_time()
        with measured() as lag:
            await run(lag)
        took = time.thread_time() - began
        late = "" if lag.worst * 1000 < GOAL else "  <- over the goal"
        print(
            f"{topics:>8,}  {'frozen' if freeze else '':<7} {title:<26} {lag.worst * 1000:8.2f} "
            f"{lag.longest_collection * 1000:10.1f} {lag.turns:8,} {took:8.2f}{late}",
            flush=True,
        )
    with measured() as lag:
        gc.collect()
    print(f"{topics:>8,}  {'frozen' if freeze else '':<7} {'a full collection':<26} {'':8} "
          f"{lag.longest_collection * 1000:10.1f}")  # fmt: skip
    await hub.close()
    gc.unfreeze()


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description="The worst lag of the event loop while clients return.")
    parser.add_argument("--topics", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    arguments = parser.parse_args()
    print(f"{'topics':>8}  {'':<7} {'':<26} {'lag, ms':>8} {'gc, ms':>10} {'turns':>8} {'s':>8}   goal: {GOAL:.0f} ms")
    for topics in arguments.topics:
        for freeze in False, True:
            asyncio.run(case(topics, freeze=freeze))


if __name__ == "__main__":
    main()
