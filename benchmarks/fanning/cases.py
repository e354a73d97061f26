"""The cases. Each runs one round with a peer, and adds the results to the figures."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import NamedTuple

from .figures import Figures
from .peers import OURS, OURS_PROMETHEUS, Peer
from .process import Running

COUNTS = (100, 1_000, 8_000)
BURST = 50
MISSED = 100  # events that a client receives when it reconnects
STOPPED, LARGE = 100, 8_192  # streams that stop reading, and the size of their events in bytes
RATE = 10  # events per second
TURNS = 40  # with metrics, and as many without


class Size(NamedTuple):
    """The size of a round."""

    deliveries: int
    counts: tuple[int, ...]
    bursts: int
    opens: int
    fill: int  # events that fill the buffers of streams that stopped reading
    paced: int  # events at a fixed rate
    idle: int


FULL = Size(deliveries=60_000, counts=COUNTS, bursts=20, opens=5_000, fill=640, paced=40, idle=3_000)
QUICK = Size(deliveries=15_000, counts=COUNTS[:2], bursts=4, opens=500, fill=640, paced=5, idle=700)


def one(peer: Peer, size: Size, figures: Figures) -> None:
    """Publish one event at a time, the next one when every stream has received it."""
    with Running(peer, figures) as server:
        opened = 0
        for count in size.counts:
            server.open(count - opened)
            opened = count
            server.publish(max(2, 20_000 // count))  # warms up imports, caches and the specialising interpreter
            figures.add(f"one {count}", peer.name, server.publish(max(5, size.deliveries // count)) * 1e6)


def burst(peer: Peer, size: Size, figures: Figures) -> None:
    """Publish events back to back to 1,000 streams."""
    with Running(peer, figures) as server:
        server.open(1_000)
        server.publish(10)
        server.publish(2, BURST)
        figures.add("burst", peer.name, server.publish(size.bursts, BURST) * 1e6)


def opens(peer: Peer, size: Size, figures: Figures) -> None:
    """Open streams without an ID, close them, and open streams that resume after some missed events."""
    with Running(peer, figures) as server:
        server.open(300)
        figures.add("open", peer.name, growth(server.cpu, server.open, size.opens) * 1e6)
        if peer.closes:
            figures.add("close", peer.name, growth(server.cpu, server.close, size.opens) * 1e6)
    if peer.replays:
        with Running(peer, figures) as server:
            reconnect = prepare_reconnects(server)
            reconnect(300)
            figures.add("reconnect", peer.name, growth(server.cpu, reconnect, size.opens) * 1e6)
            server.publish(1)  # fails if a stream received too many events


def growth(measure: Callable[[], float], change: Callable[[int], None], streams: int) -> float:
    """Return by how much a figure of a server grows for each stream that is opened or closed."""
    before = measure()
    change(streams)
    return (measure() - before) / streams


def prepare_reconnects(server: Running) -> Callable[[int], None]:
    """Publish events, and return a function that opens streams which have missed some of them."""
    server.open(1)
    server.publish(3 * MISSED)
    first = 2 * MISSED
    last = server.command("id", first - 1)["id"]
    return partial(server.open, first=first, events=MISSED, after=last)


def stopped(peer: Peer, size: Size, figures: Figures) -> None:
    """Measure the latency of 900 streams beside 100 that read, and beside 100 that stopped reading."""
    for column, number in (("reading", 0), ("stopped", STOPPED)):
        with Running(peer, figures) as server:
            server.open(STOPPED)
            server.publish(20)
            server.command("stop", number)
            server.publish(size.fill, size=LARGE)
            server.open(1_000 - STOPPED)
            server.publish(5, size=LARGE)
            result = server.command("rate", RATE, size.paced, LARGE, STOPPED)
            for quantile in ("p50", "p99"):
                figures.add(f"{column} {quantile}", peer.name, result[quantile] / 1e3)


def latency(peer: Peer, size: Size, figures: Figures) -> None:
    """Measure the latency from publish to receive, at a fixed rate, with 1,000 streams."""
    with Running(peer, figures) as server:
        server.open(1_000)
        server.publish(20)
        result = server.command("rate", RATE, size.paced, 100, 0)
        for quantile in ("p50", "p99"):
            figures.add(f"latency {quantile}", peer.name, result[quantile] / 1e3)


def memory(peer: Peer, size: Size, figures: Figures) -> None:
    """Measure how much the memory of the processes grows per idle stream."""
    with Running(peer, figures) as server:
        server.open(1_000)
        figures.add("memory", peer.name, growth(server.memory, server.open, size.idle) / 1024)
    if peer.replays:
        with Running(peer, figures) as server:
            reconnect = prepare_reconnects(server)
            reconnect(1_000)
            figures.add("memory again", peer.name, growth(server.memory, reconnect, size.idle) / 1024)


def metrics(peer: Peer, size: Size, figures: Figures) -> None:
    """Publish one event at a time to 1,000 streams, in turns with and without the observers of Prometheus.

    It is one server with the same streams: two processes of the same program differ by up to a tenth.
    """
    if peer is not OURS:
        return
    turns: dict[bool, list[float]] = {False: [], True: []}
    with Running(OURS_PROMETHEUS, figures) as server:
        server.open(1_000)
        server.publish(20)
        for turn in range(2 * TURNS):
            observed = turn % 4 in (1, 2)
            server.post(f"/observe/{int(observed)}")
            server.publish(2)
            turns[observed].append(server.publish(max(5, size.deliveries // 1_000 // 4)))
    without = median(turns[False])
    figures.add("without metrics", OURS.name, without * 1e6)
    figures.add("with metrics", OURS.name, without * median(map(operator.truediv, turns[True], turns[False])) * 1e6)


CASES: dict[str, Callable[[Peer, Size, Figures], None]] = {
    "one": one,
    "burst": burst,
    "open": opens,
    "stopped": stopped,
    "latency": latency,
    "memory": memory,
    "metrics": metrics,
}
SILENT = ("open", "memory")  # the cases for a peer that does not publish
