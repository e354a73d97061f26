"""Several worker processes that share a port: what a second core adds to the deliveries, and what an engine costs.

Each worker serves the same application on the same port, with ``reuse_port``, and the kernel distributes the streams.
A broker makes the workers one Hub: SQLite with one file, Valkey with one server. A worker without a broker is the
reference. All events have the same topic, to which all streams are subscribed, and are published in the first worker.

* **Paced**: one event at a time at a fixed rate. The latency is from the publisher's ``send`` until the last of all
  streams has received the event.
* **Unpaced**: the next event is published as soon as the one before it has been acknowledged. A worker that lags writes
  several events at once.

Worker number i is pinned to core i. The engine and the load, which is the C program of ``fanout.py``, run where there
is room: with two workers on two cores they take their share from the workers, and the table has the share of the load.
SQLite runs in the workers, and its CPU is in theirs. Eight workers are calculated, see ``on_paper``. Figures are
medians of the rounds.

    python benchmarks/workers.py [--rounds N] [--streams N] [--events N] [--rate HERTZ] [--engines NAME,NAME] [--write]

``--write`` writes the tables to ``results/workers.md``. Linux with two cores and a C compiler only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.client import HTTPConnection
from pathlib import Path
from platform import python_implementation, python_version, release
from typing import Any

import structlog
from aiohttp import web

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from fanning.peers import compiled  # noqa: E402  # the path must be set first

from aiohttp_interceptors import STREAMS, Hub, setup, topic_stream  # noqa: E402  # the path must be set first
from aiohttp_interceptors.brokers.redis import RedisBroker  # noqa: E402  # the path must be set first
from aiohttp_interceptors.brokers.sqlite import SqliteBroker  # noqa: E402  # the path must be set first
from tests.servers.process import free_port  # noqa: E402  # the path must be set first
from tests.servers.valkey import Valkey  # noqa: E402  # the path must be set first

RESULTS = Path(__file__).with_name("results") / "workers.md"
CASES = [("none", 1), ("sqlite", 1), ("sqlite", 2), ("valkey", 1), ("valkey", 2)]
ENGINES = "none", "sqlite", "valkey"
CORES = 2
ON_PAPER = 8  # workers
SIZE = 100  # bytes of an event
CONCURRENT_OPENS = 64
TIMEOUT = 120.0  # seconds for one answer of a worker or of the load, which itself gives up after 60
DELIVERY, ENGINE = "CPU per delivery, µs", "CPU of the engine per event, µs"
Figures = dict[str, float]


# A worker.


async def serve(engine: str, url: str, port: int) -> None:
    """Serve streams on the common port, and commands on a port that is printed when the Hub is ready."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    hub = Hub({"sqlite": SqliteBroker, "valkey": RedisBroker}[engine](url) if engine != "none" else None)
    app = web.Application()
    setup(app, hub)

    async def publish(request: web.Request) -> web.Response:
        for line in (await request.text()).split("\n"):
            await hub.publish("news", line)
            await asyncio.sleep(0)  # without a broker all events would be one write
        return web.Response(status=204)

    async def streams(request: web.Request) -> web.Response:
        return web.json_response(len(request.app[STREAMS]))

    app.router.add_get("/stream", topic_stream(hub, "news", heartbeat=None, prime=True))
    app.router.add_post("/publish", publish)
    app.router.add_get("/streams", streams)
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=3600)
    await runner.setup()
    commands = web.TCPSite(runner, "127.0.0.1", 0)
    await commands.start()
    await web.TCPSite(runner, "127.0.0.1", port, reuse_port=True, backlog=4096).start()
    async with asyncio.timeout(TIMEOUT):
        while not hub.ready:  # noqa: ASYNC110  # polled, as by a readiness route
            await asyncio.sleep(0.001)
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


# The measurement.


@contextlib.contextmanager
def engine_of(name: str, folder: Path) -> Iterator[tuple[str, list[int]]]:
    """Start an engine. Yields its URL, and its processes: none for SQLite."""
    if name != "valkey":
        yield str(folder / "events.sqlite3"), []
        return
    server = Valkey(folder / "valkey")
    server.start()
    try:
        yield server.url, [server.pid]
    finally:
        server.kill()


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Start a process, and kill it at the end of the block."""
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def answer(process: subprocess.Popen[str]) -> Any:
    """Return the next line of a process, which is JSON."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], TIMEOUT)
    line = process.stdout.readline() if ready else ""
    if not line:
        raise RuntimeError(f"{process.args!r} ended, or did not answer in {TIMEOUT:.0f} s")
    return json.loads(line)


class Load:
    """The load, which opens the streams, has events published, and checks that each stream receives all of them."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def command(self, *words: object) -> Any:
        """Send a command, and return its result."""
        print(*words, file=self._process.stdin, flush=True)
        result = answer(self._process)
        if "error" in result:
            raise RuntimeError(f"{result['error']} ({' '.join(map(str, words))})")
        return result


def cpu(pids: list[int]) -> float:
    """Return the CPU seconds of processes."""
    # What clock_getcpuclockid(3) returns, which Python lacks. /proc counts in hundredths of a second.
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)


def count_streams(port: int) -> int:
    """Return the number of streams of a worker."""
    connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    connection.request("GET", "/streams")
    found = int(connection.getresponse().read())
    connection.close()
    return found


def measure(engine: str, count: int, options: argparse.Namespace) -> Figures:
    """Measure one engine with some workers."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        url, engine_pids = stack.enter_context(engine_of(engine, Path(folder)))
        workers: list[subprocess.Popen[str]] = []
        for number in range(count):
            pinned = ["taskset", "-c", str(number % CORES), sys.executable, __file__, "--serve", engine, url, str(port)]
            workers.append(stack.enter_context(started(pinned)))
        ports = [answer(worker) for worker in workers]
        pids = [worker.pid for worker in workers]
        load = Load(stack.enter_context(started([str(compiled("load")), str(port), str(ports[0])])))
        load.command("open", options.streams, "/stream", CONCURRENT_OPENS, 0, 0, "-")
        spread = [count_streams(each) for each in ports]
        load.command("publish", 5, 1, SIZE, 1)  # to warm up

        before = cpu(pids), cpu(engine_pids)
        paced = load.command("rate", options.rate, options.events, SIZE, 0)
        used, engine_used = cpu(pids) - before[0], cpu(engine_pids) - before[1]

        before = cpu(pids), cpu(engine_pids)
        unpaced = load.command("publish", 1, options.events, SIZE, 1)
        unpaced_used, unpaced_engine = cpu(pids) - before[0], cpu(engine_pids) - before[1]
    return {
        "least": min(spread),
        "most": max(spread),
        "last50": paced["last50"] / 1000,
        "last99": paced["last99"] / 1000,
        "paced cpu": used / paced["deliveries"] * 1e6,
        "paced engine": engine_used / options.events * 1e6,
        "rate": unpaced["deliveries"] / unpaced["ns"] * 1e9,
        "cpu": unpaced_used / unpaced["deliveries"] * 1e6,
        "engine": unpaced_engine / options.events * 1e6,
        "load": unpaced["cpu"] / unpaced["ns"] / CORES,
        "busy": unpaced_used / unpaced["ns"] * 1e9 / count,
    }


def on_paper(one: Figures, two: Figures, streams: int) -> tuple[float, float, str]:
    """Calculate the deliveries per second of eight workers, the engine's CPU per event in µs, and which is the limit.

    A worker delivers ``1 / CPU per delivery``, that of two workers when events are paced; the receiving of an event is
    in it. The engine stores an event once and sends it to each worker, so that each further worker adds to its CPU
    per event what the second one added. That is taken from unpaced events, since an idle engine uses some CPU too.
    """
    workers = ON_PAPER / two["paced cpu"] * 1e6
    engine = two["engine"] + (ON_PAPER - 2) * max(0.0, two["engine"] - one["engine"])
    limit = streams / engine * 1e6 if engine else float("inf")
    return min(workers, limit), engine, "workers" if workers <= limit else "engine"


def header(*cells: str) -> list[str]:
    """Return the first lines of a table in Markdown."""
    return ["| " + " | ".join(cells) + " |", "|" + " --- |" * len(cells)]


def tables(figures: dict[tuple[str, int], Figures], streams: int) -> str:
    """Return the tables in Markdown."""

    def engine_cpu(engine: str, used: float) -> str:
        return {"none": "-", "sqlite": "in the workers"}.get(engine, f"{used:.0f}")

    paced = header("paced", "workers", "streams of each", "last receiver p50, ms", "p99, ms", DELIVERY, ENGINE)
    unpaced = header("unpaced", "workers", "deliveries/s", DELIVERY, ENGINE, "a worker at work", "load, of both cores")
    paper = header("on paper", "workers", "deliveries/s", ENGINE, "limit")
    for (engine, count), found in figures.items():
        spread = f"{found['least']:,.0f}" + (f" and {found['most']:,.0f}" if count > 1 else "")
        paced.append(
            f"| {engine} | {count} | {spread} | {found['last50']:.1f} | {found['last99']:.1f} "
            f"| {found['paced cpu']:.2f} | {engine_cpu(engine, found['paced engine'])} |"
        )
        unpaced.append(
            f"| {engine} | {count} | {found['rate']:,.0f} | {found['cpu']:.2f} | {engine_cpu(engine, found['engine'])} "
            f"| {found['busy']:.0%} | {found['load']:.0%} |"
        )
    for engine in ("sqlite", "valkey"):
        if (engine, 2) in figures:
            rate, used, limit = on_paper(figures[engine, 1], figures[engine, 2], streams)
            paper.append(f"| {engine} | {ON_PAPER} | {rate:,.0f} | {engine_cpu(engine, used)} | {limit} |")
    return "\n".join([*paced, "", *unpaced, "", *paper])


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description="Measure several worker processes that share a port.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--events", type=int, default=200, help="events of a round, paced and unpaced each")
    parser.add_argument("--rate", type=int, default=10, help="paced events per second")
    parser.add_argument("--engines", default=",".join(ENGINES), help=f"some of {', '.join(ENGINES)}")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--serve", nargs=3, metavar=("ENGINE", "URL", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        engine, url, port = options.serve
        asyncio.run(serve(engine, url, int(port)))
        return
    cases = [case for case in CASES if case[0] in options.engines.split(",")]
    rounds = []
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
        rounds.append({case: measure(*case, options) for case in cases})
    figures = {
        case: {key: statistics.median(each[case][key] for each in rounds) for key in rounds[0][case]} for case in cases
    }
    text = (
        f"{datetime.now(UTC):%Y-%m-%d}, Linux {release()}, {python_implementation()} {python_version()}; medians of "
        f"{options.rounds} rounds of {options.events} events of {SIZE} bytes to {options.streams:,} streams, paced at "
        f"{options.rate} a second, and unpaced.\n\n{tables(figures, options.streams)}\n"
    )
    print(text)
    if options.write:
        RESULTS.write_text(f"# Workers that share a port, measured\n\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()
