"""One event to many streams: CPU per delivery, bursts, reconnects, stalled clients, latency and memory, with peers.

Each server is a process with one worker on one core, and receives events to publish by HTTP. The load is a C program
on the other core, the same for all servers. It opens the streams, counts the events, and stops the measurement if a
stream received an event twice, not at all, or out of order. CPU is the user and system time of the server's processes,
memory is their proportional set size, and latencies are measured by the load, which publishes and receives.

Each peer has a new process for each case and round, and the peers alternate, so that a busy machine affects all of
them. Figures are medians of the rounds, and ratios are medians of the rounds' ratios. Compare figures only within one
run.

    python benchmarks/fanout.py [--quick] [--only CASE] [--peers NAME,NAME] [--rounds N] [--write] [--json]

``scripts/fanout-peers`` installs the peers that are not Python packages. Missing peers are skipped and reported.
``--write`` writes the tables to ``results/fanout.md`` and a plot to ``results/fanout.svg``. Linux with two cores only.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from comparing.rows import Row, print_rows
from fanning.cases import CASES, COUNTS, FULL, QUICK, SILENT, Size
from fanning.figures import Figures
from fanning.peers import OURS, PEERS, Missing, Peer
from fanning.plot import Curve, plot
from fanning.process import LOAD_CORE, SERVER_CORE, Failed
from fanning.report import environment, tables

RESULTS = Path(__file__).with_name("results")


def measure(peers: Sequence[Peer], cases: Sequence[str], size: Size, rounds: int) -> Figures:
    """Measure the cases with all peers in turn."""
    figures = Figures()
    for number in range(rounds):
        for case in cases:
            print(f"round {number + 1} of {rounds}: {case}", file=sys.stderr, flush=True)
            for peer in peers:
                name = f"{peer.name} in {case}"
                if {name, peer.name} & figures.skipped.keys() or not measured(peer, case):
                    continue
                try:
                    CASES[case](peer, size, figures)
                except Missing as missing:
                    figures.skipped[peer.name] = str(missing)
                except Failed as failed:
                    figures.skipped[name] = str(failed)
    return figures


def measured(peer: Peer, case: str) -> bool:
    """Return whether a peer is measured in a case."""
    return case == "open" if peer.opens_only else peer.publishes or case in SILENT


def curves(figures: Figures, peers: Sequence[Peer]) -> list[Curve]:
    """Return the curves of the plot."""
    found = []
    for peer in peers:
        values = [(count, figures.median(f"one {count}", peer.name)) for count in COUNTS]
        points = [(count, value) for count, value in values if value is not None]
        found += [Curve(peer.name, points)] if points else []
    return found


def rows(figures: Figures) -> Iterator[Row]:
    """Yield the figures of this library. Raises ``Failed`` if a case failed."""
    for name, reason in figures.skipped.items():
        raise Failed(f"{name}: {reason}")
    for column in figures.columns():
        value = figures.median(column, OURS.name)
        if value is not None:
            yield Row(
                column, value, "KiB" if column == "memory" else "ms" if column.split()[-1] in ("p50", "p99") else "µs"
            )


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description="Measure one event to many streams, with this library and peers.")
    parser.add_argument("--quick", action="store_true", help="fewer events and streams: less exact")
    parser.add_argument("--only", choices=CASES, help="one case")
    parser.add_argument("--peers", help=f"comma-separated: {', '.join(peer.name for peer in PEERS)}")
    parser.add_argument("--rounds", type=int, help="rounds of each peer")
    parser.add_argument("--write", action="store_true", help=f"write tables and plot to {RESULTS.name}/fanout.*")
    parser.add_argument("--json", action="store_true", help="one round of ours on asyncio as one line for compare.py")
    options = parser.parse_args()
    assert {SERVER_CORE, LOAD_CORE} <= os.sched_getaffinity(0), "a server and the load need two cores"
    os.sched_setaffinity(0, {LOAD_CORE})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # context managers stop the servers
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    cases = [options.only] if options.only else list(CASES)
    if options.json:
        print_rows(rows(measure([OURS], cases, QUICK if options.quick else FULL, 1)))
        return
    names = None if options.peers is None else {name.strip() for name in options.peers.split(",")}
    if names is not None and names - {peer.name for peer in PEERS}:
        parser.error(f"--peers must be some of: {', '.join(peer.name for peer in PEERS)}")
    peers = [peer for peer in PEERS if names is None or peer.name in names]
    size, rounds = (QUICK, options.rounds or 1) if options.quick else (FULL, options.rounds or 3)
    figures = measure(peers, cases, size, rounds)
    lines = [*environment(peers, rounds), *tables(figures, peers)]
    print(*lines, sep="\n")
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        text = "\n".join(["# One event to many streams, measured", "", "![CPU per delivery](fanout.svg)", "", *lines])
        (RESULTS / "fanout.md").write_text(text + "\n", encoding="utf-8")
        if found := curves(figures, peers):
            (RESULTS / "fanout.svg").write_text(plot(found), encoding="utf-8")
    if any(name.startswith("ours") for name in figures.skipped):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
