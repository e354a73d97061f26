"""Break streams at random, against a server that also restarts, and see that nothing leaks and no event is lost.

    python tests/soak/soak.py [--seconds 180] [--clients 250] [--seed N]

Clients with bare connections read, read slowly, stop reading, leave, reset, half-close, resume, send bodies and
nonsense. The server, a process of its own, is built with the public interface. It is told to stop in the middle of
this several times, and a new one takes its port, on the selector loop and on uvloop in turns; the last one on each
is asked, when all clients have gone, what it holds. Ends by itself, on the loopback interface only; exits with 1, and
says what was wrong, if anything was. Chance is seeded: the same seed makes the same clients, but not the same times.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import resource
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Coroutine
from functools import partial
from pathlib import Path

import psutil
from clients import Client, Ledger
from judge import Judge, Life
from wire import Wire

HERE = Path(__file__).parent
LIFE = 30.0  # seconds of load on one server process, about
FILES = 3  # that a client may have open at once, and the server for it
SAMPLE = 0.2  # seconds between two looks at the server's memory
STARTS = 20.0  # seconds that a server has to start, and to end
CALM = 15.0  # seconds in which what clients have left behind must be gone; aiohttp lingers for 10
SHOWN = 25  # kinds of problems
REASONS = ("client_left", "closed", "error", "expired", "shutdown", "stalled")  # for which streams must have ended
say = partial(print, flush=True)


class Soak:
    """One run."""

    program = "server.py"

    def __init__(self, seconds: float, clients: int, seed: int, folder: Path) -> None:
        self.lives: list[Life] = []
        self.ledger = Ledger()
        self.max_streams = max(2, clients * 4 // 5)
        self._planned = max(4, 2 * round(seconds / LIFE / 2))
        self._seconds = seconds / self._planned
        self._clients = clients
        self._seed = seed
        self._folder = folder
        self._port = free_port()
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Have one server after the other."""
        try:
            for epoch in range(1, self._planned + 1):
                await self._live(epoch, quiet=epoch > self._planned - 2)
        finally:
            await self._leave()

    async def _live(self, epoch: int, *, quiet: bool) -> None:
        if quiet:
            await self._leave()
        name = ("asyncio", "uvloop")[epoch % 2]
        life = Life(epoch, name, self._folder / f"facts-{epoch}", self._folder / f"log-{epoch}")
        self.lives.append(life)
        arguments = (self._port, epoch, name, life.facts, self.max_streams, 3)
        with life.log.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-W", "always::ResourceWarning", HERE / self.program, *map(str, arguments),
                stdout=asyncio.subprocess.PIPE, stderr=log,
            )  # fmt: skip
        try:
            await self._load(life, process, quiet=quiet)
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(STARTS):
                life.status = await process.wait()
        except (TimeoutError, ValueError, ProcessLookupError) as error:
            self.ledger.problems.append(f"server {epoch} ({name}) did not start, answer or end: {error!r}")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        asked = ", and was asked what it holds" if quiet else ""
        say(f"server {epoch} on {name}: had clients for {life.seconds:.0f} s{asked}; exit status {life.status}")

    async def _load(self, life: Life, process: asyncio.subprocess.Process, *, quiet: bool) -> None:
        assert process.stdout is not None
        async with asyncio.timeout(STARTS):
            control = int(await process.stdout.readline())
        fresh = await self._ask(self._port, "/options")
        self.ledger.fresh[fresh["epoch"]] = fresh
        if quiet:  # nobody has been there yet
            await self._ask(control, "/remember")
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._client(number, life.epoch)) for number in range(self._clients)]
        memory = psutil.Process(process.pid).memory_info
        began = time.monotonic()
        while (passed := time.monotonic() - began) < self._seconds and process.returncode is None:
            life.memory.append(memory().rss / 2**20)
            await asyncio.sleep(SAMPLE)
        life.seconds = passed
        if quiet:
            await self._leave()
            life.left = await self._ask(control, f"/calm?patience={CALM}")

    def _client(self, number: int, epoch: int) -> Coroutine[None, None, None]:
        """Be a client until cancelled."""
        users = max(1, self._clients * 2 // 7)  # some have more clients than they may have streams
        return Client(number, self._seed + epoch, self._port, self.ledger, users, epoch).run()

    async def _leave(self) -> None:
        """Have all clients go."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, port: int, path: str) -> dict[str, int]:
        wire = await Wire.open(port)
        wire.patience = CALM + STARTS
        wire.request("GET", path, Connection="close")
        await wire.read_head()
        answer: dict[str, int] = json.loads(await wire.body())
        await wire.until_closed()
        wire.close(random.Random(1))
        return answer


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def as_many_as_files(clients: int) -> int:
    """Return how many clients there may be, after asking for as many open files as they need."""
    need = clients * FILES + 100
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < need:
        soft = need if hard == resource.RLIM_INFINITY else min(need, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < need:
            clients = max(1, (soft - 100) // FILES)
            say(f"only {clients} clients: a process may have {soft} files open")
    return clients


def table(soak: Soak, judge: Judge) -> None:
    """Print what happened."""
    say("\nserver loop      opened refused  MB: middle    end  stop (s)  ended as")
    for life in soak.lives:
        middle, end = life.medians()
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(life.closed.items()))
        say(
            f"{life.epoch:6} {life.loop:8} {life.opened:7} {life.refused:7} {middle:11.1f} {end:6.1f} "
            f"{life.cleanup:9.2f}  {reasons}"
        )
    if not all(life.long_enough for life in soak.lives):
        say("memory is not judged: so short a life tells nothing of it")
    events = sum(receipt.events for receipt in soak.ledger.receipts.values())
    say(f"events that clients have checked: {events}")
    say(f"streams with an end, whose events were counted on both sides: {judge.counted}")
    say("clients:", listed(soak.ledger.did))
    say("warnings logged:", listed(sum((life.warnings for life in soak.lives), Counter())))


def listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def verdict(problems: list[str], seed: int) -> int:
    """Print what was wrong, each kind of it once, and return the exit status."""
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kinds.setdefault(re.sub(r"\d+|/\w+", "#", problem), []).append(problem)
    for alike in list(kinds.values())[:SHOWN]:
        say(f"  * {alike[0]}" + (f" [and {len(alike) - 1} like it]" if alike[1:] else ""))
    if problems:
        say(f"FAILED: {len(problems)} problems of {len(kinds)} kinds; seed {seed}")
        return 1
    say("passed: nothing leaked, and no event was lost, repeated or out of order")
    return 0


def options(what: str, clients: int) -> tuple[float, int, int]:
    """Return the seconds, the number of clients and the seed that the command line asks for."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--clients", type=int, default=clients)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    asked = parser.parse_args()
    clients = as_many_as_files(asked.clients)
    say(f"{clients} clients for {asked.seconds:.0f} s, seed {asked.seed}")
    return asked.seconds, clients, asked.seed


def main() -> int:
    seconds, clients, seed = options("Break streams at random, and see that nothing leaks or is lost.", clients=250)
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(seconds, clients, seed, Path(folder))
        asyncio.run(soak.run())
        judge = Judge(soak.ledger.receipts, soak.max_streams)
        for life in soak.lives:
            judge.look_at(life)
        judge.compare()
        soak.ledger.compare_connections()
        judge.expect(REASONS, soak.lives)
    table(soak, judge)
    return verdict(soak.ledger.problems + judge.problems, seed)


if __name__ == "__main__":
    sys.exit(main())
