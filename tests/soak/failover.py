"""Fail-over test: brokers fail under load, and what was acknowledged is compared with what each client received.

    python -m tests.soak.failover [--engine NAME]... [--fault NAME]... [--seconds 8] [--seed N] [--logs FOLDER]

For each engine and fault there are two application processes with a Hub on the same broker, publishers that retry over
HTTP with idempotency keys, and four subscribers, two of which change the process. A run passes if each subscriber
received each acknowledged event or a gap that covers it, each repeat follows a gap, all events are acknowledged in the
end, and both processes become ready again and end after SIGTERM. Prints a table in Markdown, and exits with 1 if a run
fails. The same seed results in the same delays, but not in the same times.
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
from tests.soak.failover_clients import CONNECTION_ERRORS, Publishers, Subscriber, eventually, probe_readiness
from tests.soak.failover_ledger import MAX_SHOWN, Item, Result, compare, longest_pause
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
START_TIMEOUT = 30.0  # seconds that a process has to start and to become ready, on a busy machine
STOP_TIMEOUT = 15.0  # seconds that a process has to end after SIGTERM
CALM = 3.0  # seconds of load before a fault and after it
REPORTED_DELAY = 3.0  # seconds in which an event that a gap covers may still be received
ACKNOWLEDGE_TIMEOUT = 45.0  # seconds after the fault in which all events must be acknowledged
DELIVERY_TIMEOUT = 20.0  # seconds after that in which all events must be received
MAX_LATE = 6.0  # seconds that an event may be late in a process that is ready, on a busy machine
RUN_TIMEOUT = 240.0  # seconds that one run may take
# By name: the first process of a subscriber, and the range of seconds after which it changes to another.
SUBSCRIBERS = (("first", 0, None), ("second", 1, None), ("changes often", 0, (1.0, 4.0)), ("changes", 1, (4.0, 12.0)))
say = partial(print, flush=True)


class ApplicationProcess:
    """A process with a Hub. It can be restarted on the same port."""

    def __init__(self, number: int, broker: dict[str, object], folder: Path, session: ClientSession) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self.problems: list[str] = []
        self.log = folder / f"process-{number}.log"
        self._command = [sys.executable, "-m", "tests.soak.failover_server", str(port), json.dumps(broker)]
        self._number = number
        self._session = session
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start the process, and wait until it serves. Raises ``RuntimeError`` if it does not."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        if not await eventually(lambda: self._responds({200, 503}), START_TIMEOUT):
            raise RuntimeError(f"process {self._number} does not serve: {self.log.read_text()[-2000:]}")

    async def ready(self) -> bool:
        return await self._responds({200})

    async def stop(self) -> None:
        """Send SIGTERM, and wait for the end."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                status = await process.wait()
        except TimeoutError:
            self.problems.append(f"process {self._number} did not end within {STOP_TIMEOUT:.0f} s of SIGTERM")
            await self.kill()
        else:
            if status:
                self.problems.append(f"process {self._number} ended with status {status}")

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def logged_errors(self) -> list[str]:
        """Return the lines with level ``error``, and those that are not JSON."""
        lines = self.log.read_text().splitlines()
        found = [line for line in lines if not line.startswith("{") or '"level": "error"' in line]
        return [f"process {self._number} logged: {line[:300]}" for line in found[:MAX_SHOWN]]

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGCONT)

    async def _responds(self, statuses: set[int]) -> bool:
        try:
            async with self._session.get(f"{self.url}/ready", timeout=ClientTimeout(2)) as response:
                return response.status in statuses
        except CONNECTION_ERRORS:
            return False


@dataclass
class Run:
    """One fault of one engine, and its result."""

    engine: str
    fault: str
    result: Result = field(default_factory=Result)
    pause: float = 0.0  # longest time without an acknowledgement, in seconds
    longest: float = 0.0  # longest attempt to publish, in seconds
    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return self.result.passed and not self.problems


async def run_fault(
    site: Site,
    fault: str,
    folder: Path,
    *,
    seconds: float = 8.0,
    calm: float = CALM,
    seed: int = 0,
    limit: float = RUN_TIMEOUT,
) -> Run:
    """Run one fault under load, and stop everything that was started.

    Args:
        site: The engine, not started.
        fault: One of its faults.
        folder: Folder for the logs of the processes and the ledger.
        seconds: How long a server is dead or frozen.
        calm: Seconds of load before the fault and after it.
        seed: Seed of the random delays.
        limit: Seconds that the whole run may take.

    """
    run, started = Run(site.engine, fault), time.monotonic()
    site.rng = rng = random.Random(f"{seed} {site.engine} {fault}")
    try:
        async with asyncio.timeout(limit), AsyncExitStack() as stack:
            session = await stack.enter_async_context(ClientSession(connector=TCPConnector(limit=0, force_close=True)))
            stack.push_async_callback(site.stop)
            await site.start()
            processes = [ApplicationProcess(number, site.broker, folder, session) for number in range(PROCESSES)]
            for process in processes:
                stack.push_async_callback(process.kill)
            await asyncio.gather(*(process.start() for process in processes))
            if not await eventually(lambda: _ready(processes), START_TIMEOUT):
                raise RuntimeError(f"the processes are not ready after {START_TIMEOUT:.0f} s")
            load = Load(session, [process.url for process in processes], rng)
            stack.push_async_callback(load.stop)
            await load.start()
            await asyncio.sleep(calm)
            await site.inflict(fault, processes, seconds)
            await asyncio.sleep(calm)
            await load.finish(run)
            if not await eventually(lambda: _ready(processes), DELIVERY_TIMEOUT):
                run.problems.append("a process is not ready at the end")
            await load.stop()
            load.compare(run, folder)
            await asyncio.gather(*(process.stop() for process in processes))
            run.problems += [problem for process in processes for problem in process.problems + process.logged_errors()]
    except Exception as error:  # noqa: BLE001  # the other runs continue
        run.problems.append(f"the run ended early: {error!r}")
    run.seconds = time.monotonic() - started
    return run


class Load:
    """The publishers and the subscribers of one run."""

    def __init__(self, session: ClientSession, urls: Sequence[str], rng: random.Random) -> None:
        self._session = session
        self._urls = urls
        self._publishers = Publishers(session, urls)
        self._readiness: dict[int, list[tuple[float, bool]]] = {number: [] for number, _ in enumerate(urls)}
        self._subscribers = {
            name: Subscriber(session, urls, process, stay, random.Random(rng.random()))
            for name, process, stay in SUBSCRIBERS
        }
        self._tasks: list[asyncio.Task[None]] = []
        self._publishing: asyncio.Task[None] | None = None
        self._started = 0.0
        self._finished = 0.0

    @property
    def _items(self) -> dict[str, list[Item]]:
        return {name: subscriber.items for name, subscriber in self._subscribers.items()}

    async def start(self) -> None:
        """Connect all subscribers, and start to publish when each has an ID to resume with."""
        for number, url in enumerate(self._urls):
            self._tasks.append(asyncio.create_task(probe_readiness(self._session, url, self._readiness[number])))
        self._tasks += [asyncio.create_task(subscriber.run()) for subscriber in self._subscribers.values()]
        async with asyncio.timeout(START_TIMEOUT):
            for subscriber in self._subscribers.values():
                await subscriber.connected.wait()
        self._started = time.monotonic()
        self._publishing = asyncio.create_task(self._publishers.run())
        self._tasks.append(self._publishing)

    async def finish(self, run: Run) -> None:
        """Stop publishing, and wait until all events are acknowledged, and received or reported as missing."""
        assert self._publishing is not None
        self._publishers.stopped = True
        await asyncio.wait([self._publishing], timeout=ACKNOWLEDGE_TIMEOUT)
        self._finished = time.monotonic()
        if self._publishers.pending:
            run.problems.append(
                f"{len(self._publishers.pending)} events were not acknowledged {ACKNOWLEDGE_TIMEOUT:.0f} s after the "
                "load ended"
            )
        delivery = _Delivery()
        await eventually(
            lambda: delivery.complete(compare(self._publishers.acknowledged, self._items)), DELIVERY_TIMEOUT
        )

    async def stop(self) -> None:
        """Cancel all tasks. Idempotent."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_TIMEOUT)

    def compare(self, run: Run, folder: Path) -> None:
        """Compare what was received with what was acknowledged, and write both to ``ledger.txt``."""
        acknowledged = self._publishers.acknowledged
        run.result = compare(acknowledged, self._items, self._readiness)
        run.outcomes, run.longest = self._publishers.outcomes, self._publishers.longest
        if run.result.late > MAX_LATE:
            run.problems.append(f"an event was {run.result.late:.1f} s late in a process that was ready")
        run.pause = longest_pause(acknowledged, self._started, self._finished)
        run.problems += [problem for subscriber in self._subscribers.values() for problem in subscriber.problems[:3]]
        run.problems += [
            f"a task of the test failed: {task.exception()!r}"
            for task in self._tasks
            if task.done() and not task.cancelled() and task.exception() is not None
        ]
        with (folder / "ledger.txt").open("w") as file:
            for name, items in {"acknowledged": acknowledged, **self._items}.items():
                file.writelines(f"{name}: {item}\n" for item in items)


class _Delivery:
    """Whether all events were received, or all missing ones were reported some seconds ago."""

    def __init__(self) -> None:
        self._reported_since: float | None = None

    def complete(self, result: Result) -> bool:
        if not result.missing:
            return True
        if result.unreported_losses:
            self._reported_since = None
            return False
        self._reported_since = self._reported_since or time.monotonic()
        return time.monotonic() > self._reported_since + REPORTED_DELAY


async def _ready(processes: Sequence[ApplicationProcess]) -> bool:
    return all(await asyncio.gather(*(process.ready() for process in processes)))


def table(runs: Sequence[Run]) -> str:
    """Return a table of all runs in Markdown."""
    heads = ("engine", "fault", "acknowledged", "delivered", "missing (unreported)", "repeated (unreported)", "gaps",
             "pause", "late", "passed")  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---|---|--:|--:|--:|--:|---|--:|--:|---|"]
    for run in runs:
        result = run.result
        gaps = ", ".join(f"{count} {reason}" for reason, count in sorted(result.gaps.items())) or "–"
        lines.append(
            f"| {run.engine} | {run.fault} | {result.acknowledged} | {result.delivered} | "
            f"{result.missing} ({result.unreported_losses}) | {result.repeated} ({result.unreported_repeats}) | "
            f"{gaps} | {run.pause:.1f} | {result.late:.1f} | {'yes' if run.passed else '**no**'} |"
        )
    return "\n".join(lines)


def details(run: Run) -> str:
    """Return the outcomes, the delays and the problems of one run."""
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in run.outcomes.most_common())
    return "\n".join([
        f"{run.engine}, {run.fault}: {'passed' if run.passed else 'FAILED'}, in {run.seconds:.0f} s",
        f"  attempts: {outcomes}; the longest took {run.longest:.1f} s",
        f"  losses were reported at most {run.result.max_report_delay:.1f} s after their acknowledgement",
        *(f"  * {problem}" for problem in [*run.problems, *run.result.violations]),
    ])  # fmt: skip


async def run_all(options: argparse.Namespace, runs: list[Run]) -> None:
    """Run the selected engines and faults. Ctrl-C or SIGTERM stops the current run; a second one is ignored."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    for number in signal.SIGINT, signal.SIGTERM:
        loop.add_signal_handler(number, lambda: task.cancelling() or task.cancel())
    with tempfile.TemporaryDirectory() as temporary:
        for site_class in SITES:
            if options.engine and site_class.engine.lower() not in options.engine:
                continue
            for fault in site_class.faults:
                if options.fault and fault not in options.fault:
                    continue
                folder = (options.logs or Path(temporary)) / f"{site_class.engine}-{fault}".replace(" ", "-")
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                try:
                    site = site_class(folder / "site")
                except pytest.skip.Exception as missing:
                    say(f"{site_class.engine} was not run: {missing}")
                    break
                runs.append(await run_fault(site, fault, folder, seconds=options.seconds, seed=options.seed))
                say(details(runs[-1]))


def main() -> int:
    parser = argparse.ArgumentParser(description="Fail brokers over under load.")
    names = [site.engine.lower() for site in SITES]
    parser.add_argument("--engine", action="append", type=str.lower, choices=names)
    parser.add_argument("--fault", action="append", choices=("kill", "freeze", "rolling", "quick", "apps", "fence"))
    parser.add_argument("--seconds", type=float, default=8, help="how long a server is dead or frozen")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--logs", type=Path, help="keep the logs and ledgers in this folder")
    options = parser.parse_args()
    runs: list[Run] = []
    interrupted = False
    say(f"seed {options.seed}")
    try:
        asyncio.run(run_all(options, runs))
    except (KeyboardInterrupt, asyncio.CancelledError):
        interrupted = True
    say("\n" + table(runs))
    failed = [run for run in runs if not run.passed]
    say(f"\n{len(runs) - len(failed)} of {len(runs)} runs passed{' (interrupted)' * interrupted}; seed {options.seed}")
    return 1 if failed or interrupted or not runs else 0


if __name__ == "__main__":
    sys.exit(main())
