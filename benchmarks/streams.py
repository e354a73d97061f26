"""Streams on real connections: CPU per event, memory per open stream, and time to detect a disconnect, with peers.

Every server is a process pinned to one core; the client is this process, on another core. CPU is the user and system
time of the server's process between the first and the last event. All events are counted and compared. The servers
alternate in rounds, so that a busy machine affects all of them, and a ratio is the median of the rounds' ratios.
Compare figures only within one run.

Memory is the growth of the server's resident set (``Rss`` in ``/proc/self/smaps_rollup``, after ``gc.collect()``) from
the first half of its open streams to the second, per stream, in a new process each time. It does not include the
kernel's socket buffers. Linux only, since processes are pinned.

    python benchmarks/streams.py [--quick] [--only CASE] [--write] [--json]

CASE is ``one``, ``many``, ``paced``, ``short``, ``idle`` or ``leaving``. ``--write`` writes the table to
``results/streams.md``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from math import inf
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

from comparing.rows import Row as Figure
from comparing.rows import print_rows
from streaming.client import Cost, Delivery, Latency, Server, deliver, disconnect, hold, request

CASES = ("one", "many", "paced", "short", "idle", "leaving")
SERVER_CORE, CLIENT_CORE = 0, 1
OURS, THEIRS = ("ours", "asyncio"), ("aiohttp-sse", "asyncio")
BARE = ("bare", "asyncio")  # aiohttp's StreamResponse.write of encoded events: the floor of one write per event
DELIVERING = (OURS, THEIRS, BARE, ("ours", "uvloop"), ("aiohttp-sse", "uvloop"), ("sse-starlette", "uvloop"))
REQUESTED = (("bare", "asyncio"), OURS, THEIRS)
HOLDING = (("bare", "/idle"), ("ours", "/plain"), ("ours", "/idle"), ("aiohttp-sse", "/idle"))
LEAVING = (OURS, ("ours", "uvloop"), ("sse-starlette", "uvloop"), THEIRS)
TIMEOUT = 5.0  # seconds in which a server must detect a disconnect
RESULTS = Path(__file__).with_name("results") / "streams.md"


AGAINST = (
    (OURS, THEIRS),
    (("ours", "uvloop"), ("aiohttp-sse", "uvloop")),
    (("ours", "uvloop"), ("sse-starlette", "uvloop")),
    (BARE, THEIRS),
)
Kind = tuple[str, str]
"""A server and its event loop."""


class Shape(NamedTuple):
    """How events are sent."""

    path: str
    streams: int
    events: int
    goal: float | None  # ratio to aiohttp-sse
    title: str


class Size(NamedTuple):
    """The size of the measurement."""

    rounds: int
    events: int  # of the case with one stream
    streams: int
    events_per_stream: int  # of the cases with many streams
    leaving: int  # streams whose clients disconnect
    requests: int  # of a stream of one event


FULL = Size(rounds=3, events=100_000, streams=1_000, events_per_stream=100, leaving=200, requests=5_000)
QUICK = Size(rounds=1, events=20_000, streams=200, events_per_stream=100, leaving=100, requests=1_000)

Row = tuple[str, ...]
"""A row of the table: title, measured, goal, and whether it was reached."""


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Format a median and the range of the values."""
    middle = f"{median(values):,.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def outcome(reached: bool) -> str:  # noqa: FBT001  # the only argument
    """Format whether a goal was reached."""
    return "ok" if reached else "MISSED"


def shapes_of(size: Size) -> dict[str, Shape]:
    """Return how the events of each case are sent."""
    return {
        "one": Shape("burst", 1, size.events, 3.0, f"1 stream, {size.events:,} events"),
        "many": Shape(
            "burst",
            size.streams,
            size.events_per_stream,
            2.0,
            f"{size.streams:,} streams, {size.events_per_stream} events each",
        ),
        "paced": Shape(
            "paced",
            size.streams,
            size.events_per_stream,
            None,
            f"{size.streams:,} streams, {size.events_per_stream} in rounds",
        ),
    }


def measure_deliveries(size: Size, cases: Sequence[str]) -> Iterator[Row]:
    """Measure the CPU per event: one stream, many streams, and many streams with one event at a time."""
    shapes = shapes_of(size)
    selected = [case for case in cases if case in shapes]
    if not selected:
        return
    measured: dict[tuple[str, Kind], list[Delivery]] = {}
    with ExitStack() as stack:
        servers = {kind: stack.enter_context(Server(*kind, SERVER_CORE)) for kind in DELIVERING}
        for server in servers.values():  # warms up imports, caches and the specialising interpreter
            for path in ("burst", "paced"):
                deliver(server, path, 10, 500)
        for _ in range(size.rounds):
            for case in selected:
                path, streams, events, *_ = shapes[case]
                for kind, server in servers.items():
                    measured.setdefault((case, kind), []).append(deliver(server, path, streams, events))
    for case in selected:
        yield from delivery_rows(shapes[case], {kind: measured[case, kind] for kind in DELIVERING})


def delivery_rows(shape: Shape, measured: dict[Kind, list[Delivery]]) -> Iterator[Row]:
    """Yield the rows of one shape."""
    title, goal = shape.title, shape.goal
    for kind, rounds in measured.items():
        cpu = spread([delivery.cpu * 1e6 for delivery in rounds])
        chunk = median(delivery.chunk for delivery in rounds)
        yield f"{title}: {' on '.join(kind)}", f"{cpu} µs of CPU per event, {chunk:,.1f} in a chunk", "", ""
    for ours, peer in AGAINST:
        ratios = [their.cpu / our.cpu for our, their in zip(measured[ours], measured[peer], strict=True)]
        reached = ("", "")
        if goal is not None and ours == OURS:
            reached = f"at least {goal} x", outcome(median(ratios) >= goal)
        yield f"{title}: {' on '.join(ours)} against {' on '.join(peer)}", f"**{spread(ratios)} x**", *reached
    deliveries = [delivery for rounds in measured.values() for delivery in rounds]
    client, servers = max(each.client for each in deliveries), min(each.server for each in deliveries)
    yield f"{title}: CPU utilisation", f"client at most {client:.0%}, servers at least {servers:.0%}", "", ""


def measure_requests(size: Size) -> Iterator[Row]:
    """Measure a stream of a generator from its request to its end."""
    measured: dict[Kind, list[float]] = {}
    with ExitStack() as stack:
        servers = {kind: stack.enter_context(Server(*kind, SERVER_CORE)) for kind in REQUESTED}
        for server in servers.values():
            request(server, "/short", 300)
        for _ in range(size.rounds):
            for kind, server in servers.items():
                measured.setdefault(kind, []).append(request(server, "/short", size.requests))
    for kind, rounds in measured.items():
        yield f"a stream of one event: {kind[0]}", f"{spread([cpu * 1e6 for cpu in rounds])} µs of CPU", "", ""


def measure_idle(size: Size) -> Iterator[Row]:
    """Measure the cost of an open stream without events."""
    measured: dict[tuple[str, str], list[Cost]] = {}
    for _ in range(size.rounds):
        for name, path in HOLDING:
            with Server(name, "asyncio", SERVER_CORE) as server:
                measured.setdefault((name, path), []).append(hold(server, path, size.streams))
    floor = Cost(*map(median, zip(*measured["bare", "/idle"], strict=True)))
    titles = {("ours", "/plain"): "ours, a plain function", ("ours", "/idle"): "ours, an async function that waits"}
    for kind, costs in measured.items():
        title = f"idle stream: {titles.get(kind, kind[0])}"
        memory = [cost.memory / 1024 for cost in costs]
        is_ours = kind[0] == "ours"
        goal = "at most bare + 4 KiB" if is_ours else ""
        difference = "" if kind[0] == "bare" else f", bare {median(memory) - floor.memory / 1024:+.1f} KiB"
        reached = outcome(median(memory) <= floor.memory / 1024 + 4) if is_ours else ""
        yield title, f"{spread(memory, 1)} KiB{difference}", goal, reached
        tasks, timers = max(cost.tasks for cost in costs), max(cost.timers for cost in costs)
        allowed = 3 if kind == ("ours", "/idle") else 2  # an async function needs a task, with any library
        goal = f"{allowed} tasks, timers as bare" if is_ours else ""
        met = round(tasks, 2) <= allowed and round(timers, 2) <= round(floor.timers, 2)
        yield title, f"{tasks:.2f} tasks, {timers:.2f} timers", goal, outcome(met) if is_ours else ""


def measure_disconnects(size: Size) -> Iterator[Row]:
    """Measure the time until a server detects that a client disconnected."""
    measured: dict[Kind, list[Latency]] = {}
    for number in range(size.rounds):
        for kind in LEAVING:
            if kind != THEIRS or number == 0:  # it takes the whole timeout
                with Server(*kind, SERVER_CORE) as server:
                    measured.setdefault(kind, []).append(disconnect(server, size.streams, size.leaving, TIMEOUT))
    for kind, rounds in measured.items():
        title, is_ours = f"{size.leaving} of {size.streams:,} leave: {' on '.join(kind)}", kind[0] == "ours"
        if is_ours:
            yield f"{title}, put returns False", *latency_cells([latency.refused for latency in rounds], goal=True)
        yield (
            f"{title}, {'on_close' if is_ours else 'detected'}",
            *latency_cells([latency.closed for latency in rounds], goal=is_ours),
        )


def latency_cells(rounds: Sequence[Sequence[float]], *, goal: bool) -> Row:
    """Format the latencies of some rounds, as medians over the rounds."""

    def formatted(function: Callable[[Sequence[float]], float]) -> str:
        value = median(map(function, rounds)) * 1000
        return f"> {TIMEOUT:.0f} s" if value == inf else f"{value:.2f} ms"

    detected, total = sum(value < inf for values in rounds for value in values), sum(map(len, rounds))
    text = f"p50 {formatted(median)}, p99 {formatted(p99)}, max {formatted(max)}"
    text += "" if detected == total else f"; {detected} of {total} within {TIMEOUT:.0f} s"
    return text, "p99 under 20 ms" if goal else "", outcome(median(map(p99, rounds)) < 0.020) if goal else ""


def p99(values: Sequence[float]) -> float:
    """Return the 99th percentile."""
    return inf if max(values) == inf else quantiles(values, n=100, method="inclusive")[98]


def figures(size: Size, cases: Sequence[str]) -> Iterator[Figure]:
    """Measure one round of this library on asyncio."""
    shapes = shapes_of(size)
    for case in cases:
        if case in shapes:
            path, streams, events, *_, title = shapes[case]
            with Server(*OURS, SERVER_CORE) as server:
                for warm_up in ("burst", "paced"):
                    deliver(server, warm_up, 10, 500)
                yield Figure(f"{title}: CPU per event", deliver(server, path, streams, events).cpu * 1e6, "µs")
        elif case == "short":
            with Server(*OURS, SERVER_CORE) as server:
                request(server, "/short", 300)
                yield Figure(
                    "a stream of one event, of a generator", request(server, "/short", size.requests) * 1e6, "µs"
                )
        elif case == "idle":
            for name, path in HOLDING:
                if name == OURS[0]:
                    with Server(*OURS, SERVER_CORE) as server:
                        cost = hold(server, path, size.streams)
                    yield Figure(f"idle stream, {path[1:]}: memory", cost.memory / 1024, "KiB")
                    yield Figure(f"idle stream, {path[1:]}: tasks", cost.tasks, "")
                    yield Figure(f"idle stream, {path[1:]}: timers", cost.timers, "")
        else:
            with Server(*OURS, SERVER_CORE) as server:
                latency = disconnect(server, size.streams, size.leaving, TIMEOUT)
            yield Figure(f"{size.leaving} of {size.streams:,} leave: on_close p50", median(latency.closed) * 1e3, "ms")


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description="Measure streams, with this library and peers.")
    parser.add_argument("--quick", action="store_true", help="fewer events and streams: less exact")
    parser.add_argument("--only", choices=CASES, help="one case")
    parser.add_argument("--write", action="store_true", help=f"write the table to {RESULTS.parent.name}/{RESULTS.name}")
    parser.add_argument("--json", action="store_true", help="one round of ours on asyncio as one line for compare.py")
    options = parser.parse_args()
    cores = os.sched_getaffinity(0)
    assert {SERVER_CORE, CLIENT_CORE} <= cores, f"a server and the client need two cores, and there are {cores}"
    os.sched_setaffinity(0, {CLIENT_CORE})
    size, cases = QUICK if options.quick else FULL, [options.only] if options.only else CASES
    if options.json:
        print_rows(figures(size, cases))
        return
    lines = ["| what | measured | goal | |", "|---|---|---|---|"]
    print(*lines, sep="\n")
    measurements = [measure_deliveries(size, cases)]
    measurements += [measure_requests(size)] if "short" in cases else []
    measurements += [measure_idle(size)] if "idle" in cases else []
    measurements += [measure_disconnects(size)] if "leaving" in cases else []
    for rows in measurements:
        for row in rows:
            lines.append(f"| {' | '.join(row)} |")
            print(lines[-1], flush=True)
    if options.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text("\n".join(["# Streams, measured", "", *lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
