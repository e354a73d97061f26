"""Streams on real connections: CPU per event, memory per open stream, time to notice a client that left; and peers'.

Every server is a process of its own, pinned to one core; the client is this process, on another one. The servers'
CPU is counted by the kernel (user and system time of the process) between the first event and the last one. All
events are counted and compared, in order. Servers take turns, round by round: a disturbance meets all alike, and a
ratio is the median of the rounds' ratios. Times are of CPU per unit; they mean something beside each other only.

Memory is the growth of the server's resident set (``Rss`` in ``/proc/self/smaps_rollup``, after ``gc.collect()``)
from the first half of its open streams to the second, per stream, in a fresh process each time; the kernel's socket
buffers are not in it. Linux only: others do not pin.

    python benchmarks/streams.py [--quick] [--only CASE] [--write] [--json]

CASE is ``one``, ``many``, ``paced``, ``idle`` or ``leaving``. ``--write`` keeps the table in ``results/streams.md``.
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
from streaming.client import Cost, Delivery, Latency, Server, deliver, hold, leave

CASES = ("one", "many", "paced", "idle", "leaving")
SERVER_CORE, CLIENT_CORE = 0, 1
OURS, THEIRS = ("ours", "asyncio"), ("aiohttp-sse", "asyncio")
BARE = (
    "bare",
    "asyncio",
)  # aiohttp's own StreamResponse.write of finished bytes: nobody who writes each event is below
DELIVERING = (OURS, THEIRS, BARE, ("ours", "uvloop"), ("aiohttp-sse", "uvloop"), ("sse-starlette", "uvloop"))
HOLDING = (("bare", "/idle"), ("ours", "/plain"), ("ours", "/idle"), ("aiohttp-sse", "/idle"))
LEAVING = (OURS, ("ours", "uvloop"), ("sse-starlette", "uvloop"), THEIRS)
BOUND = 5.0  # seconds after which nobody waits any more to see whether a server notices
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
    goal: float | None  # times as many as aiohttp-sse
    title: str


class Size(NamedTuple):
    """How much is measured."""

    rounds: int
    events: int  # of the one stream
    streams: int
    each: int  # events of each of the many
    leaving: int


FULL = Size(rounds=3, events=100_000, streams=1_000, each=100, leaving=200)
QUICK = Size(rounds=1, events=20_000, streams=200, each=100, leaving=100)

Row = tuple[str, ...]
"""A line of the result: what, measured, goal, verdict."""


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Write a median and the range that it is from."""
    middle = f"{median(values):,.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def verdict(reached: bool) -> str:  # noqa: FBT001  # it is the whole question
    """Say whether a goal was reached."""
    return "ok" if reached else "MISSED"


def shapes_of(size: Size) -> dict[str, Shape]:
    """Return how the events of each case are sent."""
    return {
        "one": Shape("burst", 1, size.events, 3.0, f"1 stream, {size.events:,} events"),
        "many": Shape("burst", size.streams, size.each, 2.0, f"{size.streams:,} streams, {size.each} events each"),
        "paced": Shape("paced", size.streams, size.each, None, f"{size.streams:,} streams, {size.each} in rounds"),
    }


def of_deliveries(size: Size, cases: Sequence[str]) -> Iterator[Row]:
    """Measure the CPU of events: one stream, many, and many whose events come one by one."""
    shapes = shapes_of(size)
    wanted = [case for case in cases if case in shapes]
    if not wanted:
        return
    got: dict[tuple[str, Kind], list[Delivery]] = {}
    with ExitStack() as stack:
        servers = {kind: stack.enter_context(Server(*kind, SERVER_CORE)) for kind in DELIVERING}
        for server in servers.values():  # imports, caches and the interpreter's own specialisation
            for path in ("burst", "paced"):
                deliver(server, path, 10, 500)
        for _ in range(size.rounds):
            for case in wanted:
                path, streams, events, *_ = shapes[case]
                for kind, server in servers.items():
                    got.setdefault((case, kind), []).append(deliver(server, path, streams, events))
    for case in wanted:
        yield from rows_of(shapes[case], {kind: got[case, kind] for kind in DELIVERING})


def rows_of(shape: Shape, got: dict[Kind, list[Delivery]]) -> Iterator[Row]:
    """Write what was measured of one shape."""
    title, goal = shape.title, shape.goal
    for kind, rounds in got.items():
        cpu, chunk = spread([one.cpu * 1e6 for one in rounds]), median(one.chunk for one in rounds)
        yield f"{title}: {' on '.join(kind)}", f"{cpu} µs of CPU per event, {chunk:,.1f} in a chunk", "", ""
    for mine, peer in AGAINST:
        ratios = [his.cpu / one.cpu for one, his in zip(got[mine], got[peer], strict=True)]
        reached = ("", "")
        if goal is not None and mine == OURS:
            reached = f"at least {goal} x", verdict(median(ratios) >= goal)
        yield f"{title}: {' on '.join(mine)} against {' on '.join(peer)}", f"**{spread(ratios)} x**", *reached
    everybody = [one for rounds in got.values() for one in rounds]
    busiest, laziest = max(one.client for one in everybody), min(one.server for one in everybody)
    yield f"{title}: at work", f"client at most {busiest:.0%} of the time, servers at least {laziest:.0%}", "", ""


def of_idle(size: Size) -> Iterator[Row]:
    """Measure what an open stream costs that has nothing to send."""
    got: dict[tuple[str, str], list[Cost]] = {}
    for _ in range(size.rounds):
        for name, path in HOLDING:
            with Server(name, "asyncio", SERVER_CORE) as server:
                got.setdefault((name, path), []).append(hold(server, path, size.streams))
    floor = Cost(*map(median, zip(*got["bare", "/idle"], strict=True)))
    titles = {("ours", "/plain"): "ours, a plain function", ("ours", "/idle"): "ours, an async function that waits"}
    for kind, costs in got.items():
        what = f"idle stream: {titles.get(kind, kind[0])}"
        memory = [cost.memory / 1024 for cost in costs]
        mine = kind[0] == "ours"
        goal = "at most bare + 4 KiB" if mine else ""
        said = f"{spread(memory, 1)} KiB" + (
            "" if kind[0] == "bare" else f", bare {median(memory) - floor.memory / 1024:+.1f} KiB"
        )
        yield what, said, goal, verdict(median(memory) <= floor.memory / 1024 + 4) if mine else ""
        tasks, timers = max(cost.tasks for cost in costs), max(cost.timers for cost in costs)
        allowed = 3 if kind == ("ours", "/idle") else 2  # an async function has a task, be it the library's or not
        goal = f"{allowed} tasks, timers as bare" if mine else ""
        met = verdict(round(tasks, 2) <= allowed and round(timers, 2) <= round(floor.timers, 2)) if mine else ""
        yield what, f"{tasks:.2f} tasks, {timers:.2f} timers", goal, met


def of_leaving(size: Size) -> Iterator[Row]:
    """Measure the time until a server knows that a client has left."""
    got: dict[Kind, list[Latency]] = {}
    for number in range(size.rounds):
        for kind in LEAVING:
            if kind != THEIRS or number == 0:  # it takes the whole bound
                with Server(*kind, SERVER_CORE) as server:
                    got.setdefault(kind, []).append(leave(server, size.streams, size.leaving, BOUND))
    for kind, rounds in got.items():
        what, mine = f"{size.leaving} of {size.streams:,} leave: {' on '.join(kind)}", kind[0] == "ours"
        if mine:
            yield f"{what}, put returns False", *in_milliseconds([one.refused for one in rounds], goal=True)
        yield (
            f"{what}, {'on_close' if mine else 'it knows'}",
            *in_milliseconds([one.closed for one in rounds], goal=mine),
        )


def in_milliseconds(rounds: Sequence[Sequence[float]], *, goal: bool) -> Row:
    """Write the latencies of some rounds: the medians of what each round had."""

    def written(of: Callable[[Sequence[float]], float]) -> str:
        value = median(map(of, rounds)) * 1000
        return f"> {BOUND:.0f} s" if value == inf else f"{value:.2f} ms"

    known, everybody = sum(value < inf for one in rounds for value in one), sum(map(len, rounds))
    said = f"p50 {written(median)}, p99 {written(p99)}, max {written(max)}"
    said += "" if known == everybody else f"; {known} of {everybody} within {BOUND:.0f} s"
    return said, "p99 under 20 ms" if goal else "", verdict(median(map(p99, rounds)) < 0.020) if goal else ""


def p99(values: Sequence[float]) -> float:
    """Return what one value in a hundred exceeds."""
    return inf if max(values) == inf else quantiles(values, n=100, method="inclusive")[98]


def figures(size: Size, cases: Sequence[str]) -> Iterator[Figure]:
    """Measure one round of ours on asyncio."""
    shapes = shapes_of(size)
    for case in cases:
        if case in shapes:
            path, streams, events, *_, title = shapes[case]
            with Server(*OURS, SERVER_CORE) as server:
                for warm in ("burst", "paced"):
                    deliver(server, warm, 10, 500)
                yield Figure(f"{title}: CPU per event", deliver(server, path, streams, events).cpu * 1e6, "µs")
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
                left = leave(server, size.streams, size.leaving, BOUND)
            yield Figure(f"{size.leaving} of {size.streams:,} leave: on_close p50", median(left.closed) * 1e3, "ms")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure streams, ours and those of peers.")
    parser.add_argument("--quick", action="store_true", help="less of everything: a look, not a measurement")
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
    measured = [of_deliveries(size, cases)]
    measured += [of_idle(size)] if "idle" in cases else []
    measured += [of_leaving(size)] if "leaving" in cases else []
    for rows in measured:
        for row in rows:
            lines.append(f"| {' | '.join(row)} |")
            print(lines[-1], flush=True)
    if options.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text("\n".join(["# Streams, measured", "", *lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
