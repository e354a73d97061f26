"""Garbage collections while 6,000 streams open at once, receive events, are replaced, and leave.

A server on one core measures its CPU, its collections and the longest one with ``gc.callbacks``. The load of
``fanout.py`` on the other core opens, counts and closes the streams. Pauses are CPU time, so that other processes do
not count. Each server is a new process, servers alternate, and figures are medians of the rounds.

* ``bare``: idle streams of aiohttp alone.
* ``topic``: topic streams of this library.

    python benchmarks/collecting.py [--rounds N] [--streams N] [--objects N] [--write]

A number is a first threshold. *Frozen* servers call ``gc.freeze()`` before they listen, and one of them again when all
streams are open. ``--objects`` are those that an application keeps beside its streams. Dead streams are the responses
that exist when all clients have left and their requests have ended. Linux with two cores only.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import resource
import socket
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from aiohttp import web
from fanning.figures import Figures
from fanning.peers import Peer, Start, package_versions
from fanning.process import LOAD_CORE, Running
from fanning.server import bare, ours, serve_aiohttp

RESULT = Path(__file__).parent / "results" / "collecting.md"
WINDOW = 2_000  # streams that are opening: fewer than the kernel keeps for the server
EVENTS = 20
TURNS = 5  # in each of them the oldest 20 % of the streams leave and come back
OBJECTS = web.AppKey("objects", list[list[int]])


class Setting(NamedTuple):
    """What a server does with its collector."""

    threshold: int = 0  # 0: Python's own
    freeze: bool = False
    freeze_open: bool = False
    disable: bool = False


SETTINGS = {
    "Python's own": Setting(),
    "10,000": Setting(threshold=10_000),
    "50,000": Setting(threshold=50_000),
    "frozen": Setting(freeze=True),
    "10,000, frozen": Setting(threshold=10_000, freeze=True),
    "10,000, frozen, again when open": Setting(threshold=10_000, freeze=True, freeze_open=True),
    "off in the storm": Setting(disable=True),
}
COLUMNS = {
    "storm cpu": "CPU per open, µs",
    "storm share": "collections, %",
    "storm longest": "longest, ms",
    "storm counts": "by generation",
    "events share": "events: collections, %",
    "turns share": "20 % return: collections, %",
    "turns longest": "longest, ms",
    "dead": "dead streams",
    "kept": "… after a full collection",
    "memory": "MiB more than before",
}


class Collector:
    """Python's collector, and what it has done since the last report."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._runs: list[tuple[int, float]] = []
        self._started = self._cpu = self._memory = 0.0
        gc.callbacks.append(self._on_collection)

    async def start(self, _: web.Application) -> None:
        """Prepare the collector as an application does that has started."""
        if self._setting.threshold:
            gc.set_threshold(self._setting.threshold, *gc.get_threshold()[1:])
        if self._setting.freeze:
            gc.collect()
            gc.freeze()

    def before(self) -> dict[str, Any]:
        """Prepare for the storm."""
        gc.collect()
        self._memory = memory()
        if self._setting.disable:
            gc.disable()
        return self.report()

    def opened(self) -> dict[str, Any]:
        """Report the storm."""
        found = self.report()
        gc.enable()
        if self._setting.freeze_open:
            gc.freeze()
        return found

    def report(self) -> dict[str, Any]:
        """Return CPU seconds, their share in collections, the longest one in milliseconds, and the counts."""
        now, runs = time.process_time(), self._runs
        cpu, self._cpu, self._runs = now - self._cpu, now, []
        seconds = [seconds for _, seconds in runs]
        counts = [sum(run[0] == generation for run in runs) for generation in range(3)]
        longest = max(seconds, default=0.0)
        return {"cpu": cpu, "share": sum(seconds) / cpu * 100, "longest": longest * 1e3, "counts": counts}

    def left(self) -> dict[str, Any]:
        """Report what the streams have left behind."""
        found = {"memory": memory() - self._memory}
        dead = responses()
        gc.collect()
        gc.unfreeze()
        kept = responses()
        return found | {"dead": dead + kept, "kept": kept}

    def _on_collection(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._started = time.thread_time()
        else:
            self._runs.append((info["generation"], time.thread_time() - self._started))


def memory() -> float:
    """Return the memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize() / 2**20


def responses() -> int:
    """Return the number of responses of streams that the collector knows, which excludes frozen ones."""
    streams = (each for each in gc.get_objects() if issubclass(type(each), web.StreamResponse))
    return sum(not isinstance(each, web.Response) for each in streams)


async def serve(kind: str, setting: Setting, objects: int) -> None:
    """Serve until killed. Prints the port."""
    app = {"bare": bare, "topic": ours}[kind]()
    app[OBJECTS] = [[number] for number in range(objects)]
    collector = Collector(setting)

    async def command(request: web.Request) -> web.Response:
        return web.json_response(getattr(collector, request.match_info["name"])())

    app.router.add_post("/collector/{name}", command)
    app.on_startup.append(collector.start)
    listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
    print(listening.getsockname()[1], flush=True)
    await serve_aiohttp(app, listening, cancel=kind == "bare")


def measure(kind: str, setting: str, streams: int, objects: int) -> dict[str, Any]:
    """Run one server, and return its figures by column."""
    command = [sys.executable, __file__, "--serve", kind, setting, "--objects", str(objects)]
    with Running(Peer(kind, lambda: Start(command), package_versions("aiohttp")), Figures()) as server:

        def report(name: str = "report") -> dict[str, Any]:
            return dict(json.loads(server.post(f"/collector/{name}")))

        server.open(300)
        server.close(300)
        report("before")
        server.open(streams, window=WINDOW)
        steps = {"storm": report("opened")}
        report()
        if kind == "topic":
            server.publish(EVENTS)
        steps["events"] = report()
        for _ in range(TURNS):
            server.close(streams // TURNS)
            server.open(streams // TURNS, window=WINDOW)
        steps["turns"] = report()
        server.close(streams)
        left = report("left")
    steps["storm"]["cpu"] *= 1e6 / streams
    return left | {f"{step} {name}": value for step, values in steps.items() for name, value in values.items()}


def cell(column: str, values: list[Any]) -> str:
    """Format the median of the rounds."""
    if column.endswith("counts"):
        return " / ".join(f"{median(each):.0f}" for each in zip(*values, strict=True))
    return f"{median(values):,.{1 if column.endswith(('share', 'longest')) else 0}f}"


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="Measure garbage collections while many streams open and leave.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=6_000)
    parser.add_argument("--objects", type=int, default=0, help="objects of the application")
    parser.add_argument("--write", action="store_true", help=f"write the table to results/{RESULT.name}")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    if options.serve:
        kind, setting = options.serve
        asyncio.run(serve(kind, SETTINGS[setting], options.objects))
        return
    os.sched_setaffinity(0, {LOAD_CORE})
    pairs = [(kind, setting) for kind in ("bare", "topic") for setting in SETTINGS]
    rounds = [{pair: measure(*pair, options.streams, options.objects) for pair in pairs} for _ in range(options.rounds)]
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}, {gc.get_threshold()}"
    size = f"{options.streams:,} streams, {options.objects:,} other objects, medians of {options.rounds} rounds"
    lines = ["# Garbage collections, measured", "", f"{system}; {size}.", ""]
    lines += [f"| server | thresholds | {' | '.join(COLUMNS.values())} |", f"|---|---|{'--:|' * len(COLUMNS)}"]
    for pair in pairs:
        cells = [cell(column, [each[pair][column] for each in rounds]) for column in COLUMNS]
        lines.append(f"| {' | '.join([*pair, *cells])} |")
    print(*lines, sep="\n")
    if options.write:
        RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
