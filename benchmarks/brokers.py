"""A Hub on each broker against the client library alone: records taken in, the way between processes, publishing.

Each server is real and of its own; each measurement has a fresh process of its own, on one core, the servers are on
the other. Ours is a whole ``Hub`` with its broker: what is read is in its log, what is received was written to a
stream. The tail is its broker alone. Bare is the library alone, on a server of the same kind, with data of the same
size: it stores, reads into its own objects, waits, and does nothing with what it has. They take turns, and figures are
medians of the rounds, ratios the medians of the rounds' ratios.

    python benchmarks/brokers.py [--quick] [--only ENGINE] [--rounds N] [--write] [--json]

``--write`` keeps the table in ``results/brokers.md``. Linux and two cores only.
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

from comparing.rows import Row, print_rows  # noqa: E402  # as those below

from tests.servers.nats import Nats  # noqa: E402  # after the path that it is found by
from tests.servers.postgres import Postgres  # noqa: E402  # after the path that it is found by
from tests.servers.process import ServerProcess  # noqa: E402  # after the path that it is found by
from tests.servers.valkey import Valkey  # noqa: E402  # after the path that it is found by

RESULTS = Path(__file__).with_name("results") / "brokers.md"
WORKER = Path(__file__).with_name("brokering") / "worker.py"
SERVER_CORE, OUR_CORE = 0, 1
ENGINES = "sqlite", "redis", "postgres", "nats"
SIDES = "ours", "bare"
BARS = {
    "tail": ("records by the tail", 0.6),
    "read": ("records into the Hub", 0.6),
    "p50": ("latency p50", 2.0),
    "p99": ("latency p99", 2.0),
}
Figures = dict[tuple[str, str, str], list[float]]


@contextlib.contextmanager
def served(engine: str, folder: Path) -> Iterator[str]:
    """Start a server, and give the URL of it; SQLite is a file."""
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
            prepare(url)
        yield url
    finally:
        server.kill()


def prepare(dsn: str) -> None:
    """Make our tables."""
    import psycopg  # noqa: PLC0415  # only here

    module = "aiohttp_interceptors.brokers.postgres"
    migration = subprocess.run([sys.executable, "-m", module], check=True, capture_output=True).stdout
    with psycopg.connect(dsn) as connection:
        connection.execute(migration)


def start(what: str, engine: str, who: str, url: str, count: int, core: int) -> subprocess.Popen[bytes]:
    """Start a measurement."""
    command = ["taskset", "-c", str(core), sys.executable, str(WORKER), what, engine, who, url, str(count)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def outcome(process: subprocess.Popen[bytes]) -> dict[str, float]:
    """Wait for what a measurement says. Raises if it failed."""
    out, _ = process.communicate(timeout=120)
    if process.returncode:
        raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
    found: dict[str, float] = json.loads(out.splitlines()[-1])
    return found


def measure(engine: str, who: str, url: str, records: int, times: int) -> dict[str, float]:
    """Have one side publish, read what it has published, and send to another process."""
    published = outcome(start("publish", engine, who, url, records, OUR_CORE))
    read = outcome(start("read", engine, who, url, records, OUR_CORE))
    tail = outcome(start("tail", engine, who, url, records, OUR_CORE)) if who == "ours" else read
    receiving = start("receive", engine, who, url, times, OUR_CORE)
    assert receiving.stdout is not None
    while (line := receiving.stdout.readline()) != b"ready\n":
        assert line, f"the receiver of {engine} ended"
    sending = start("send", engine, who, url, times, SERVER_CORE)
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
    """Return all of it, with the bars."""
    lines = [
        "|  | publishes/s | CPU, µs | records/s into the Hub | CPU, µs | … by the tail | CPU, µs | p50, ms | p99, ms |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    kinds = "publish", "publish cpu", "read", "read cpu", "tail", "tail cpu", "p50", "p99"
    for engine in engines:
        for who in SIDES:
            values = [statistics.median(figures[engine, who, kind]) for kind in kinds]
            cells = [f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" for value in values]
            lines.append(f"| {engine}, {who} | " + " | ".join(cells) + " |")
    lines += ["", "| case | bar | reached |  |", "| --- | --- | --- | --- |"]
    for engine in engines:
        for kind, (name, bar) in BARS.items():
            sides = zip(figures[engine, "ours", kind], figures[engine, "bare", kind], strict=True)
            ratios = [ours / bare for ours, bare in sides]
            middle = statistics.median(ratios)
            least = bar < 1
            held = middle >= bar if least else middle <= bar
            lines.append(
                f"| {engine}: {name}, ours against bare | at {'least' if least else 'most'} {bar} x | "
                f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {'ok' if held else 'MISSED'} |"
            )
    return "\n".join(lines)


def rows(engines: list[str], records: int, times: int) -> Iterator[Row]:
    """Measure one round of ours."""
    for engine in engines:
        with tempfile.TemporaryDirectory() as folder, served(engine, Path(folder) / "server") as url:
            for kind, value in measure(engine, "ours", url, records, times).items():
                if kind in ("p50", "p99"):
                    yield Row(f"{engine}: latency {kind}", value, "ms")
                elif kind.endswith("cpu"):
                    yield Row(f"{engine}: {kind} per record", value, "µs")
                else:
                    yield Row(f"{engine}: {kind}", value, "records/s", "higher")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure a Hub on each broker against the client library alone.")
    parser.add_argument("--quick", action="store_true", help="less of everything: a look, not a measurement")
    parser.add_argument("--only", choices=ENGINES, help="one engine")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"write the table to results/{RESULTS.name}")
    parser.add_argument("--json", action="store_true", help="one round of ours as one line for compare.py")
    options = parser.parse_args()
    engines = [options.only] if options.only else list(ENGINES)
    records, times = (10_000, 200) if options.quick else (50_000, 1_000)
    if options.json:
        print_rows(rows(engines, records, times))
        return
    figures: Figures = {}
    for number in range(options.rounds):
        for engine in engines:
            print(f"round {number + 1} of {options.rounds}: {engine}", file=sys.stderr, flush=True)
            for who in SIDES:
                with tempfile.TemporaryDirectory() as folder, served(engine, Path(folder) / "server") as url:
                    for kind, value in measure(engine, who, url, records, times).items():
                        figures.setdefault((engine, who, kind), []).append(value)
    clients = ", ".join(f"{name} {version(name)}" for name in ("redis", "hiredis", "psycopg", "nats-py"))
    text = (
        "# A Hub on each broker, measured\n\n"
        f"{datetime.now(UTC):%Y-%m-%d}, Linux {release()}, {python_implementation()} {python_version()}; {clients}; "
        f"medians of {options.rounds} rounds of {records:,} records of 100 bytes and {times:,} that were timed.\n\n"
        "Valkey without persistence, PostgreSQL with fsync, NATS with its defaults, SQLite with synchronous=FULL.\n\n"
        f"{table(figures, engines)}\n"
    )
    print(text)
    if options.write:
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
