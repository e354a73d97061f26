"""Fail brokers over under load, and compare what was acknowledged with what each client received or was told.

    python -m tests.soak.failover [--engine NAME]... [--fault NAME]... [--seconds 8] [--seed N] [--logs FOLDER]

For each engine and fault: two application processes with a Hub each on the same broker, publishing by HTTP with
retries under idempotency keys, and four clients, two of which also change the process. A run holds if each acknowledged
event came to each client or lies under a gap that the client was told of, each repeat follows a gap, all was
acknowledged in the end, both processes are ready again, and end when they are told to. Prints a table in Markdown, and
exits with 1 if a run does not hold. Chance is seeded: the same seed makes the same delays, but not the same times.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from aiohttp import ClientSession, ClientTimeout, TCPConnector

from tests.servers.process import free_port
from tests.soak.failover_clients import LOST, Listener, Publishers, eventually, watch
from tests.soak.failover_ledger import SHOWN, Item, Verdict, judge, longest_pause
from tests.soak.failover_sites import (
    BareSentinel,
    NatsThree,
    PostgresAsynchronous,
    PostgresStandby,
    Site,
    SqliteFile,
    ValkeyCluster,
    ValkeySentinel,
)  # fmt: skip

ROOT = Path(__file__).parents[2]
SITES: tuple[type[Site], ...] = (
    SqliteFile, ValkeySentinel, BareSentinel, ValkeyCluster, PostgresStandby, PostgresAsynchronous, NatsThree,
)  # fmt: skip
PROCESSES = 2
STARTS = 30.0  # seconds that a process has to start and to become ready, on a busy machine
ENDS = 15.0  # seconds that a process has to end after SIGTERM
CALM = 3.0  # seconds of load before a fault and after it
TOLD = 3.0  # seconds that a loss which was told has to come after all
ANSWERS = 45.0  # seconds after the fault in which all must be acknowledged
ARRIVES = 20.0  # seconds after that in which all must have come
LATE = 6.0  # seconds that an event may be late, on a busy machine, in a process that says that it is ready
LIMIT = 240.0  # seconds that one run may take
# By name: the process where a client begins, and the seconds, at least and at most, after which it changes to another.
CLIENTS = (("stays", 0, None), ("stays too", 1, None), ("wanders", 0, (1.0, 4.0)), ("changes", 1, (4.0, 12.0)))
say = partial(print, flush=True)


class ApplicationProcess:
    """A process with a Hub, which is started several times on the same port."""

    def __init__(self, number: int, broker: dict[str, object], folder: Path, session: ClientSession) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self.problems: list[str] = []
        self.log = folder / f"process-{number}.log"
        self._command = [sys.executable, "-m", "tests.soak.failover_server", str(port), json.dumps(broker)]
        self._number = number
        self._session = session
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it, and wait until it serves. Raises ``RuntimeError`` if it does not."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        if not await eventually(lambda: self._answers({200, 503}), STARTS):
            raise RuntimeError(f"process {self._number} does not serve: {self.log.read_text()[-2000:]}")

    async def ready(self) -> bool:
        return await self._answers({200})

    async def stop(self) -> None:
        """End it as a deployment does."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(ENDS):
                status = await process.wait()
        except TimeoutError:
            self.problems.append(f"process {self._number} did not end within {ENDS:.0f} s of SIGTERM")
            await self.kill()
        else:
            if status:
                self.problems.append(f"process {self._number} ended with status {status}")

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def complaints(self) -> list[str]:
        """Return what was logged as an error, or in another way than the library's own lines."""
        lines = self.log.read_text().splitlines()
        found = [line for line in lines if not line.startswith("{") or '"level": "error"' in line]
        return [f"process {self._number} logged: {line[:300]}" for line in found[:SHOWN]]

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGCONT)

    async def _answers(self, statuses: set[int]) -> bool:
        try:
            async with self._session.get(f"{self.url}/ready", timeout=ClientTimeout(2)) as response:
                return response.status in statuses
        except LOST:
            return False


@dataclass
class Run:
    """What one fault did to one engine."""

    engine: str
    fault: str
    verdict: Verdict = field(default_factory=Verdict)
    pause: float = 0.0  # seconds in which nothing was acknowledged
    longest: float = 0.0  # seconds that an attempt to publish took
    answers: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        return self.verdict.holds and not self.problems


async def run_fault(
    site: Site,
    fault: str,
    folder: Path,
    *,
    seconds: float = 8.0,
    calm: float = CALM,
    seed: int = 0,
    limit: float = LIMIT,
) -> Run:
    """Run one fault under load, with a server away for ``seconds``, and leave nothing that runs.

    Args:
        site: The engine, which was not started.
        fault: One of its faults.
        folder: Where the logs of the processes and the ledger go.
        seconds: How long a server is dead or frozen.
        calm: Seconds of load before the fault and after it.
        seed: What the delays are made of.
        limit: Seconds that all of it may take.

    """
    run, began = Run(site.engine, fault), time.monotonic()
    site.chance = chance = random.Random(f"{seed} {site.engine} {fault}")
    try:
        async with asyncio.timeout(limit), AsyncExitStack() as stack:
            session = await stack.enter_async_context(ClientSession(connector=TCPConnector(limit=0, force_close=True)))
            stack.push_async_callback(site.stop)
            await site.start()
            processes = [ApplicationProcess(number, site.broker, folder, session) for number in range(PROCESSES)]
            for process in processes:
                stack.push_async_callback(process.kill)
            await asyncio.gather(*(process.start() for process in processes))
            if not await eventually(lambda: _ready(processes), STARTS):
                raise RuntimeError(f"the processes are not ready after {STARTS:.0f} s")
            load = Load(session, [process.url for process in processes], chance)
            stack.push_async_callback(load.end)
            await load.start()
            await asyncio.sleep(calm)
            await site.inflict(fault, processes, seconds)
            await asyncio.sleep(calm)
            await load.finish(run)
            if not await eventually(lambda: _ready(processes), ARRIVES):
                run.problems.append("a process is not ready at the end")
            await load.end()
            load.account(run, folder)
            await asyncio.gather(*(process.stop() for process in processes))
            run.problems += [problem for process in processes for problem in process.problems + process.complaints()]
    except Exception as error:  # noqa: BLE001  # the other runs are worth having
        run.problems.append(f"the run ended early: {error!r}")
    run.seconds = time.monotonic() - began
    return run


class Load:
    """The publishers and the clients of one run."""

    def __init__(self, session: ClientSession, urls: Sequence[str], chance: random.Random) -> None:
        self._session = session
        self._urls = urls
        self._publishers = Publishers(session, urls)
        self._readiness: dict[int, list[tuple[float, bool]]] = {number: [] for number, _ in enumerate(urls)}
        self._listeners = {
            name: Listener(session, urls, process, stay, random.Random(chance.random()))
            for name, process, stay in CLIENTS
        }
        self._tasks: list[asyncio.Task[None]] = []
        self._publishing: asyncio.Task[None] | None = None
        self._began = 0.0
        self._finished = 0.0

    @property
    def _items(self) -> dict[str, list[Item]]:
        return {name: listener.items for name, listener in self._listeners.items()}

    async def start(self) -> None:
        """Connect all clients, and begin to publish once each has an id to return with."""
        for number, url in enumerate(self._urls):
            self._tasks.append(asyncio.create_task(watch(self._session, url, self._readiness[number])))
        self._tasks += [asyncio.create_task(listener.run()) for listener in self._listeners.values()]
        async with asyncio.timeout(STARTS):
            for listener in self._listeners.values():
                await listener.connected.wait()
        self._began = time.monotonic()
        self._publishing = asyncio.create_task(self._publishers.run())
        self._tasks.append(self._publishing)

    async def finish(self, run: Run) -> None:
        """Publish nothing new, and wait until all is acknowledged and has come, or was told to be missing."""
        assert self._publishing is not None
        self._publishers.stopped = True
        await asyncio.wait([self._publishing], timeout=ANSWERS)
        self._finished = time.monotonic()
        if self._publishers.pending:
            run.problems.append(
                f"{len(self._publishers.pending)} events were not acknowledged {ANSWERS:.0f} s after the load ended"
            )
        settled = _Settled()
        await eventually(lambda: settled.look(judge(self._publishers.acknowledged, self._items)), ARRIVES)

    async def end(self) -> None:
        """End all of it. Idempotent."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=ENDS)

    def account(self, run: Run, folder: Path) -> None:
        """Judge what came, and write it down for who looks for the reason of a violation."""
        acknowledged = self._publishers.acknowledged
        run.verdict = judge(acknowledged, self._items, self._readiness)
        run.answers, run.longest = self._publishers.answers, self._publishers.longest
        if run.verdict.late > LATE:
            run.problems.append(
                f"a process said that it was ready, and an event was {run.verdict.late:.1f} s late there"
            )
        run.pause = longest_pause(acknowledged, self._began, self._finished)
        run.problems += [problem for listener in self._listeners.values() for problem in listener.problems[:3]]
        run.problems += [
            f"a part of the rig failed: {task.exception()!r}"
            for task in self._tasks
            if task.done() and not task.cancelled() and task.exception() is not None
        ]
        with (folder / "ledger.txt").open("w") as file:
            for name, came in {"acknowledged": acknowledged, **self._items}.items():
                file.writelines(f"{name}: {item}\n" for item in came)


class _Settled:
    """Whether all has come, or all that did not was told some seconds ago."""

    def __init__(self) -> None:
        self._told_since: float | None = None

    def look(self, verdict: Verdict) -> bool:
        if not verdict.missing:
            return True
        if verdict.untold_losses:
            self._told_since = None
            return False
        self._told_since = self._told_since or time.monotonic()
        return time.monotonic() > self._told_since + TOLD


async def _ready(processes: Sequence[ApplicationProcess]) -> bool:
    return all(await asyncio.gather(*(process.ready() for process in processes)))


def table(runs: Sequence[Run]) -> str:
    """Return the table of all runs, in Markdown."""
    heads = ("engine", "fault", "acknowledged", "delivered", "missing (untold)", "repeated (untold)", "gaps", "pause",
             "late", "holds")  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---|---|--:|--:|--:|--:|---|--:|--:|---|"]
    for run in runs:
        verdict = run.verdict
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(verdict.told.items())) or "–"
        lines.append(
            f"| {run.engine} | {run.fault} | {verdict.acknowledged} | {verdict.delivered} | "
            f"{verdict.missing} ({verdict.untold_losses}) | {verdict.repeated} ({verdict.untold_repeats}) | {told} | "
            f"{run.pause:.1f} | {verdict.late:.1f} | {'yes' if run.holds else '**no**'} |"
        )
    return "\n".join(lines)


def details(run: Run) -> str:
    """Return what is worth knowing of one run."""
    answers = ", ".join(f"{count} {answer}" for answer, count in run.answers.most_common())
    what = "holds" if run.holds else "DOES NOT HOLD"
    return "\n".join([
        f"{run.engine}, {run.fault}: {what}, in {run.seconds:.0f} s",
        f"  attempts: {answers}; the longest took {run.longest:.1f} s",
        f"  a loss was told {run.verdict.told_after:.1f} s after its acknowledgement, at most",
        *(f"  * {problem}" for problem in [*run.problems, *run.verdict.violations]),
    ])  # fmt: skip


async def run_all(asked: argparse.Namespace, runs: list[Run]) -> None:
    """Run what is asked for. At Ctrl-C or SIGTERM it ends what runs; a second one does not disturb that."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    for number in signal.SIGINT, signal.SIGTERM:
        loop.add_signal_handler(number, lambda: task.cancelling() or task.cancel())
    with tempfile.TemporaryDirectory() as temporary:
        for site_of in SITES:
            if asked.engine and site_of.engine.lower() not in asked.engine:
                continue
            for fault in site_of.faults:
                if asked.fault and fault not in asked.fault:
                    continue
                folder = (asked.logs or Path(temporary)) / f"{site_of.engine}-{fault}".replace(" ", "-")
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                try:
                    site = site_of(folder / "site")
                except pytest.skip.Exception as missing:
                    say(f"{site_of.engine} was not run: {missing}")
                    break
                runs.append(await run_fault(site, fault, folder, seconds=asked.seconds, seed=asked.seed))
                say(details(runs[-1]))


def main() -> int:
    parser = argparse.ArgumentParser(description="Fail brokers over under load.")
    names = [site.engine.lower() for site in SITES]
    parser.add_argument("--engine", action="append", type=str.lower, choices=names)
    parser.add_argument("--fault", action="append", choices=("kill", "freeze", "rolling", "quick", "apps", "fence"))
    parser.add_argument("--seconds", type=float, default=8, help="that a server is dead or frozen")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--logs", type=Path, help="a folder for all logs and ledgers, which are thrown away otherwise")
    asked = parser.parse_args()
    runs: list[Run] = []
    early = False
    say(f"seed {asked.seed}")
    try:
        asyncio.run(run_all(asked, runs))
    except (KeyboardInterrupt, asyncio.CancelledError):
        early = True
    say("\n" + table(runs))
    failed = [run for run in runs if not run.holds]
    say(f"\n{len(runs) - len(failed)} of {len(runs)} runs hold{', and it was ended early' * early}; seed {asked.seed}")
    return 1 if failed or early or not runs else 0


if __name__ == "__main__":
    sys.exit(main())
