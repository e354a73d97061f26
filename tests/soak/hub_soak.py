"""Soak test of a Hub: each client must receive every event of its topics, or a gap that covers it.

    python -m tests.soak.hub_soak [--seconds 180] [--clients 500] [--seed N]

Servers are started and stopped as in ``soak.py``. Clients read, stop reading, disconnect at any point, and reconnect
with the last ID, at once or much later, also to another server. Each server publishes under many topics of several
Hubs, in its event loop and from a thread, and writes a ledger, which is compared with what the clients received.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Coroutine
from pathlib import Path

from tests.soak.hub_checker import HubChecker
from tests.soak.hub_clients import HubClient, HubClientResults
from tests.soak.soak import Soak, parse_options, print_table, report, say

REASONS = ("client_left", "expired", "shutdown")  # each must occur
LATER_REASONS = ("lagged", "stalled")  # and these, if the servers ran long enough


class HubSoak(Soak):
    """One run of the soak test."""

    program = "tests.soak.hub_server"

    def __init__(self, seconds: float, clients: int, seed: int, folder: Path) -> None:
        super().__init__(seconds, clients, seed, folder)
        self.max_streams = sys.maxsize
        self.hub_results = HubClientResults()
        self.checker = HubChecker(self.hub_results.streams, self.results.streams)

    def _client(self, number: int, epoch: int) -> Coroutine[None, None, None]:
        return HubClient(number, self._seed + epoch, self._port, self.hub_results, epoch).run()

    async def _run_server(self, epoch: int, *, check_leaks: bool) -> None:
        await super()._run_server(epoch, check_leaks=check_leaks)
        self.checker.read_ledger(self._folder / f"facts-{epoch}-ledger")
        self.checker.check_finished_streams()  # after each server, since the received items take much memory
        if problems := self.hub_results.problems + self.checker.problems:
            say(f"{len(problems)} problems so far; the latest: {problems[-1]}")


def main() -> int:
    seconds, clients, seed = parse_options("Run clients of a Hub, and check for lost events and leaks.", clients=500)
    with tempfile.TemporaryDirectory() as folder:
        soak = HubSoak(seconds, clients, seed, Path(folder))
        asyncio.run(soak.run())
        checker = soak.checker
        checker.check_finished_streams()
        for run in soak.runs:
            checker.check_server(run)
        checker.check_streams()
        checker.check_coverage(REASONS + LATER_REASONS * all(run.long_enough for run in soak.runs), soak.runs)
    soak.results.behaviors = soak.hub_results.behaviors
    print_table(soak, checker)
    checker.print_counts()
    return report(soak.hub_results.problems + soak.results.problems + checker.problems, seed)


if __name__ == "__main__":
    sys.exit(main())
