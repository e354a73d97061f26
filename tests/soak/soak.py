"""Soak test: clients misbehave at random while servers restart. Nothing may leak, and no event may be lost.

    python -m tests.soak.soak [--seconds 180] [--clients 250] [--seed N]

Clients read, read slowly, stop reading, disconnect, reset, half-close, resume, and send bodies and garbage. The server
process uses the public interface. It is stopped several times under load, and a new one is started on its port, on
asyncio's event loop and uvloop in turn. The last one on each loop is asked for leaks after all clients have
disconnected. Only the loopback interface is used. The exit status is 1 if there were problems, which are printed. The
same seed results in the same clients, but not in the same times.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Coroutine
from functools import partial
from pathlib import Path

import psutil

from tests.servers.process import free_port
from tests.soak.checker import Checker, ServerRun
from tests.soak.clients import Client, ClientResults
from tests.soak.connection import Connection

ROOT = Path(__file__).parents[2]
SECONDS_PER_SERVER = 30.0  # of load, about
FILES_PER_CLIENT = 3  # that a client may have open at once, and the server for it
SAMPLE_INTERVAL = 0.2  # seconds between two samples of the server's memory
START_TIMEOUT = 20.0  # seconds that a server has to start, and to end
RELEASE_TIMEOUT = 15.0  # seconds in which a server must release what clients used; aiohttp lingers for 10
MAX_SHOWN = 25  # kinds of problems
REASONS = ("client_left", "closed", "error", "expired", "shutdown", "stalled")  # each must occur
say = partial(print, flush=True)


class Soak:
    """One run of the soak test."""

    program = "tests.soak.server"

    def __init__(self, seconds: float, clients: int, seed: int, folder: Path) -> None:
        self.runs: list[ServerRun] = []
        self.results = ClientResults()
        self.max_streams = max(2, clients * 4 // 5)
        self._servers = max(4, 2 * round(seconds / SECONDS_PER_SERVER / 2))
        self._seconds = seconds / self._servers
        self._clients = clients
        self._seed = seed
        self._folder = folder
        self._port = free_port()
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Run one server after the other."""
        try:
            for epoch in range(1, self._servers + 1):
                await self._run_server(epoch, check_leaks=epoch > self._servers - 2)
        finally:
            await self._stop_clients()

    async def _run_server(self, epoch: int, *, check_leaks: bool) -> None:
        if check_leaks:
            await self._stop_clients()
        loop_name = ("asyncio", "uvloop")[epoch % 2]
        run = ServerRun(epoch, loop_name, self._folder / f"facts-{epoch}", self._folder / f"log-{epoch}")
        self.runs.append(run)
        arguments = (self._port, epoch, loop_name, run.facts, self.max_streams, 3)
        with run.log.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-W", "always::ResourceWarning", "-m", self.program, *map(str, arguments),
                cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=log,
            )  # fmt: skip
        try:
            await self._load(run, process, check_leaks=check_leaks)
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(START_TIMEOUT):
                run.status = await process.wait()
        except (TimeoutError, ValueError, ProcessLookupError) as error:
            self.results.problems.append(f"server {epoch} ({loop_name}) did not start, respond or end: {error!r}")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        checked = ", checked for leaks" if check_leaks else ""
        say(f"server {epoch} on {loop_name}: {run.seconds:.0f} s of load{checked}; exit status {run.status}")

    async def _load(self, run: ServerRun, process: asyncio.subprocess.Process, *, check_leaks: bool) -> None:
        assert process.stdout is not None
        async with asyncio.timeout(START_TIMEOUT):
            control = int(await process.stdout.readline())
        settings = await self._get(self._port, "/options")
        self.results.baseline[settings["epoch"]] = settings
        if check_leaks:  # no client has connected yet
            await self._get(control, "/baseline")
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._client(number, run.epoch)) for number in range(self._clients)]
        memory = psutil.Process(process.pid).memory_info
        started = time.monotonic()
        while (passed := time.monotonic() - started) < self._seconds and process.returncode is None:
            run.memory.append(memory().rss / 2**20)
            await asyncio.sleep(SAMPLE_INTERVAL)
        run.seconds = passed
        if check_leaks:
            await self._stop_clients()
            run.leaks = await self._get(control, f"/leaks?timeout={RELEASE_TIMEOUT}")

    def _client(self, number: int, epoch: int) -> Coroutine[None, None, None]:
        """Return the coroutine of a client."""
        users = max(1, self._clients * 2 // 7)  # more clients for some users than they may have streams
        return Client(number, self._seed + epoch, self._port, self.results, users, epoch).run()

    async def _stop_clients(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _get(self, port: int, path: str) -> dict[str, int]:
        connection = await Connection.open(port)
        connection.read_timeout = RELEASE_TIMEOUT + START_TIMEOUT
        connection.request("GET", path, Connection="close")
        await connection.read_head()
        found: dict[str, int] = json.loads(await connection.read_body())
        await connection.wait_closed_by_server()
        connection.close(random.Random(1))
        return found


def raise_file_limit(clients: int) -> int:
    """Raise the limit of open files for this many clients. Return how many clients it allows."""
    need = clients * FILES_PER_CLIENT + 100
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < need:
        soft = need if hard == resource.RLIM_INFINITY else min(need, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < need:
            clients = max(1, (soft - 100) // FILES_PER_CLIENT)
            say(f"only {clients} clients: a process may have {soft} files open")
    return clients


def print_table(soak: Soak, checker: Checker) -> None:
    """Print what happened."""
    say("\nserver loop      opened refused  MB: middle    end  stop (s)  ended as")
    for run in soak.runs:
        middle, end = run.memory_medians()
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(run.closed.items()))
        say(
            f"{run.epoch:6} {run.loop:8} {run.opened:7} {run.refused:7} {middle:11.1f} {end:6.1f} "
            f"{run.cleanup:9.2f}  {reasons}"
        )
    if not all(run.long_enough for run in soak.runs):
        say("the memory of short runs was not checked")
    events = sum(stream.events for stream in soak.results.streams.values())
    say(f"events that clients have checked: {events}")
    say(f"complete streams, whose events were counted on both sides: {checker.compared}")
    say("clients:", format_counts(soak.results.behaviors))
    say("warnings logged:", format_counts(sum((run.warnings for run in soak.runs), Counter())))


def format_counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def report(problems: list[str], seed: int) -> int:
    """Print the problems, one of each kind, and return the exit status."""
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kinds.setdefault(re.sub(r"\d+|/\w+", "#", problem), []).append(problem)
    for alike in list(kinds.values())[:MAX_SHOWN]:
        say(f"  * {alike[0]}" + (f" [and {len(alike) - 1} similar]" if alike[1:] else ""))
    if problems:
        say(f"FAILED: {len(problems)} problems of {len(kinds)} kinds; seed {seed}")
        return 1
    say("passed: nothing leaked, and no event was lost, repeated or out of order")
    return 0


def parse_options(description: str, clients: int) -> tuple[float, int, int]:
    """Return the seconds, the number of clients and the seed of the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--clients", type=int, default=clients)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    clients = raise_file_limit(options.clients)
    say(f"{clients} clients for {options.seconds:.0f} s, seed {options.seed}")
    return options.seconds, clients, options.seed


def main() -> int:
    seconds, clients, seed = parse_options("Run misbehaving clients, and check for leaks and lost events.", clients=250)
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(seconds, clients, seed, Path(folder))
        asyncio.run(soak.run())
        checker = Checker(soak.results.streams, soak.max_streams)
        for run in soak.runs:
            checker.check_server(run)
        checker.check_streams()
        soak.results.check_connections()
        checker.check_coverage(REASONS, soak.runs)
    print_table(soak, checker)
    return report(soak.results.problems + checker.problems, seed)


if __name__ == "__main__":
    sys.exit(main())
