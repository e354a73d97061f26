"""A Hub on each broker against the client library alone: reading, latency between processes, and publishing.

Each measurement has a new process on one core; the servers run on the other core. "ours" is a ``Hub`` with its broker:
records that are read are in its history, and events that are received were written to a stream. "tail" is the broker
alone. "bare" is the client library alone, on a server of the same kind and with data of the same size: it stores, reads
and waits, and does nothing with the results. Both sides are measured in turn. Figures are medians of the rounds, and
ratios are medians of the rounds' ratios.

    python benchmarks/brokers.py [--quick] [--only ENGINE] [--rounds N] [--write] [--json]

``--write`` writes the table to ``results/brokers.md``. Linux with two cores only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from platform import python_implementation, python_version, release

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from comparing.rows import Row, print_rows  # noqa: E402  # the path must be set first

from tests.servers.nats import Nats  # noqa: E402  # the path must be set first
from tests.servers.postgres import Postgres  # noqa: E402  # the path must be set first
from tests.servers.process import ServerProcess  # noqa: E402  # the path must be set first
from tests.servers.valkey import Valkey  # noqa: E402  # the path must be set first

RESULTS = Path(__file__).with_name("results") / "brokers.md"
WORKER = Path(__file__).with_name("brokering") / "worker.py"
SERVER_CORE, OUR_CORE = 0, 1
ENGINES = "sqlite", "redis", "postgres", "nats"
SIDES = "ours", "bare"
GOALS = {
    "tail": ("records by the tail", 0.6),
    "read": ("records into the Hub", 0.6),
    "p50": ("latency p50", 2.0),
    "p99": ("latency p99", 2.0),
}
Figures = dict[tuple[str, str, str], list[float]]


@contextlib.contextmanager
def served(engine: str, folder: Path) -> Iterator[str]:
    """Start a server and yield its URL, which for SQLite is a path."""
    folder.mkdir()
    if engine == "sqlite":
        yield str(folder / "events.sqlite3")
        return
    os.sched_setaffinity(0, {SERVER_CORE})
    server: ServerProcess
    if engine == "postgres":
        server = Postgres(folder, fsync="on")
    else:
        server = Nats(folder) if engine == "nats" else Valkey(folder)
    server.start()
    url = server.dsn if isinstance(server, Postgres) else str(getattr(server, "url", ""))
    try:
        if engine == "postgres":
            create_tables(url)
        yield url
    finally:
        server.kill()


def create_tables(dsn: str) -> None:
    """Create the tables of the broker."""
    import psycopg  # noqa: PLC0415  # used only here

    module = "aiohttp_interceptors.brokers.postgres"
    migration = subprocess.run([sys.executable, "-m", module], check=True, capture_output=True).stdout
    with psycopg.connect(dsn) as connection:
        connection.execute(migration)


def start(action: str, engine: str, side: str, url: str, count: int, core: int) -> subprocess.Popen[bytes]:
    """Start a measurement on a core."""
    command = ["taskset", "-c", str(core), sys.executable, str(WORKER), action, engine, side, url, str(count)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def outcome(process: subprocess.Popen[bytes]) -> dict[str, float]:
    """Wait for the result of a measurement. Raises ``RuntimeError`` if it failed."""
    out, _ = process.communicate(timeout=120)
    if process.returncode:
        raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
    found: dict[str, float] = json.loads(out.splitlines()[-1])
    return found


def measure(engine: str, side: str, url: str, records: int, events: int) -> dict[str, float]:
    """Measure one side: publish ``records``, read them, and send ``events`` to another process one at a time."""
    published = outcome(start("publish", engine, side, url, records, OUR_CORE))
    read = outcome(start("read", engine, side, url, records, OUR_CORE))
    tail = outcome(start("tail", engine, side, url, records, OUR_CORE)) if side == "ours" else read
    receiving = start("receive", engine, side, url, events, OUR_CORE)
    assert receiving.stdout is not None
    while (line := receiving.stdout.readline()) != b"ready\n":
        assert line, f"the receiver of {engine} ended"
    sending = start("send", engine, side, url, events, SERVER_CORE)
    received = outcome(receiving)
    outcome(sending)
    return {
        "publish": published["rate"],
        "publish cpu": published["cpu"],
        "read": read["rate"],
        "read cpu": read["cpu"],
        "tail": tail["rate"],
        "tail cpu": tail["cpu"],
        **received,
    }


def table(figures: Figures, engines: list[str]) -> str:
    """Return the tables of figures and of goals in Markdown."""
    lines = [
        "|  | publishes/s | CPU, µs | records/s into the Hub | CPU, µs | … by the tail | CPU, µs | p50, ms | p99, ms |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    kinds = "publish", "publish cpu", "read", "read cpu", "tail", "tail cpu", "p50", "p99"
    for engine in engines:
        for side in SIDES:
            values = [statistics.median(figures[engine, side, kind]) for kind in kinds]
            cells = [f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" for value in values]
            lines.append(f"| {engine}, {side} | " + " | ".join(cells) + " |")
    lines += ["", "| case | goal | reached |  |", "| --- | --- | --- | --- |"]
    for engine in engines:
        for kind, (name, goal) in GOALS.items():
            pairs = zip(figures[engine, "ours", kind], figures[engine, "bare", kind], strict=True)
            ratios = [ours / bare for ours, bare in pairs]
            ratio = statistics.median(ratios)
            is_minimum = goal < 1
            reached = ratio >= goal if is_minimum else ratio <= goal
            lines.append(
                f"| {engine}: {name}, ours against bare | at {'least' if is_minimum else 'most'} {goal} x | "
                f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {'ok' if reached else 'MISSED'} |"
            )
    return "\n".join(lines)


def rows(engines: list[str], records: int, events: int) -> Iterator[Row]:
    """Measure one round of ours."""
    for engine in engines:
        with tempfile.TemporaryDirectory() as folder, served(engine, Path(folder) / "server") as url:
            for kind, value in measure(engine, "ours", url, records, events).items():
                if kind in ("p50", "p99"):
                    yield Row(f"{engine}: latency {kind}", value, "ms")
                elif kind.endswith("cpu"):
                    yield Row(f"{engine}: {kind} per record", value, "µs")
                else:
                    yield Row(f"{engine}: {kind}", value, "records/s", "higher")


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description="Measure a Hub on each broker against the client library alone.")
    parser.add_argument("--quick", action="store_true", help="fewer records: less exact")
    parser.add_argument("--only", choices=ENGINES, help="one engine")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"write the table to results/{RESULTS.name}")
    parser.add_argument("--json", action="store_true", help="one round of ours as one line for compare.py")
    options = parser.parse_args()
    engines = [options.only] if options.only else list(ENGINES)
    records, events = (10_000, 200) if options.quick else (50_000, 1_000)
    if options.json:
        print_rows(rows(engines, records, events))
        return
    figures: Figures = {}
    for number in range(options.rounds):
        for engine in engines:
            print(f"round {number + 1} of {options.rounds}: {engine}", file=sys.stderr, flush=True)
            for side in SIDES:
                with tempfile.TemporaryDirectory() as folder, served(engine, Path(folder) / "server") as url:
                    for kind, value in measure(engine, side, url, records, events).items():
                        figures.setdefault((engine, side, kind), []).append(value)
    clients = ", ".join(f"{name} {version(name)}" for name in ("redis", "hiredis", "psycopg", "nats-py"))
    text = (
        "# A Hub on each broker, measured\n\n"
        f"{datetime.now(UTC):%Y-%m-%d}, Linux {release()}, {python_implementation()} {python_version()}; {clients}; "
        f"medians of {options.rounds} rounds of {records:,} records of 100 bytes and {events:,} timed events.\n\n"
        "Valkey without persistence, PostgreSQL with fsync, NATS with its defaults, SQLite with synchronous=FULL.\n\n"
        f"{table(figures, engines)}\n"
    )
    print(text)
    if options.write:
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
