"""One event to many streams: CPU per delivery, bursts, reconnects, stalled clients, latency, memory; and peers'.

Each server is a process of its own on one core, with one worker, and is told by HTTP what to publish. The load is one
process in C on the other core, the same for all: it opens the streams, counts what arrives, and stops the measurement
if a stream got an event twice, not at all, or out of order. CPU is what the kernel counted for the server's processes
(user and system time), memory is their proportional set size, and latencies are from the publisher's clock in the
event's data to the same process's reading of it. Every peer has a fresh process for each case and round, and peers
take turns: a disturbance meets all alike. Figures are medians of the rounds, ratios the medians of the rounds' ratios.
They mean something beside each other only.

    python benchmarks/fanout.py [--quick] [--only CASE] [--peers NAME,NAME] [--rounds N] [--write] [--json]

``scripts/fanout-peers`` installs who is not Python. Who is missing is named, and the others go on. ``--write`` keeps
the tables in ``results/fanout.md`` and a plot in ``results/fanout.svg``. Linux and two cores only.
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
from fanning.report import setting, tables

RESULTS = Path(__file__).with_name("results")


def measure(peers: Sequence[Peer], cases: Sequence[str], size: Size, rounds: int) -> Figures:
    """Have the peers take turns."""
    figures = Figures()
    for number in range(rounds):
        for case in cases:
            print(f"round {number + 1} of {rounds}: {case}", file=sys.stderr, flush=True)
            for peer in peers:
                where = f"{peer.name} in {case}"
                if {where, peer.name} & figures.without.keys() or not (peer.publishes or case in SILENT):
                    continue
                try:
                    CASES[case](peer, size, figures)
                except Missing as missing:
                    figures.without[peer.name] = str(missing)
                except Failed as failed:
                    figures.without[where] = str(failed)
    return figures


def curves(figures: Figures, peers: Sequence[Peer]) -> list[Curve]:
    """Return what the plot shows."""
    found = []
    for peer in peers:
        values = [(count, figures.median(f"one {count}", peer.name)) for count in COUNTS]
        points = [(count, value) for count, value in values if value is not None]
        found += [Curve(peer.name, points)] if points else []
    return found


def rows(figures: Figures) -> Iterator[Row]:
    """Return the figures of ours. Raises ``Failed`` if a case did not do its work."""
    for where, why in figures.without.items():
        raise Failed(f"{where}: {why}")
    for column in figures.columns():
        value = figures.median(column, OURS.name)
        if value is not None:
            yield Row(
                column, value, "KiB" if column == "memory" else "ms" if column.split()[-1] in ("p50", "p99") else "µs"
            )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure one event to many streams, ours and those of peers.")
    parser.add_argument("--quick", action="store_true", help="less of everything: a look, not a measurement")
    parser.add_argument("--only", choices=CASES, help="one case")
    parser.add_argument("--peers", help=f"some of: {', '.join(peer.name for peer in PEERS)}")
    parser.add_argument("--rounds", type=int, help="turns of each peer")
    parser.add_argument("--write", action="store_true", help=f"write tables and plot to {RESULTS.name}/fanout.*")
    parser.add_argument("--json", action="store_true", help="one round of ours on asyncio as one line for compare.py")
    options = parser.parse_args()
    assert {SERVER_CORE, LOAD_CORE} <= os.sched_getaffinity(0), "a server and the load need two cores"
    os.sched_setaffinity(0, {LOAD_CORE})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # no server is left behind
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if options.json:
        print_rows(
            rows(measure([OURS], [options.only] if options.only else list(CASES), QUICK if options.quick else FULL, 1))
        )
        return
    names = None if options.peers is None else {name.strip() for name in options.peers.split(",")}
    if names is not None and names - {peer.name for peer in PEERS}:
        parser.error(f"--peers are some of: {', '.join(peer.name for peer in PEERS)}")
    peers = [peer for peer in PEERS if names is None or peer.name in names]
    size, rounds = (QUICK, options.rounds or 1) if options.quick else (FULL, options.rounds or 3)
    figures = measure(peers, [options.only] if options.only else list(CASES), size, rounds)
    lines = [*setting(peers, rounds), *tables(figures, peers)]
    print(*lines, sep="\n")
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        text = "\n".join(["# One event to many streams, measured", "", "![CPU per delivery](fanout.svg)", "", *lines])
        (RESULTS / "fanout.md").write_text(text + "\n", encoding="utf-8")
        drawn = curves(figures, peers)
        if drawn:
            (RESULTS / "fanout.svg").write_text(plot(drawn), encoding="utf-8")
    if any(name.startswith("ours") for name in figures.without):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
