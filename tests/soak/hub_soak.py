"""Have a Hub's clients come and go at random, and see that each has had every event of its topics or knows of the gap.

    python tests/soak/hub_soak.py [--seconds 180] [--clients 500] [--seed N]

As ``soak.py``, which this shares its servers' lives with: clients with bare connections read, stop, are cut anywhere,
and come back with the last id, at once or much later, also to another server. Each server publishes under many topics
of several Hubs, in its event loop and from a thread, and writes a ledger, with which all that came is compared.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Coroutine
from pathlib import Path

from hub_clients import HubClient, Ledger
from hub_judge import HubJudge
from soak import Soak, options, say, table, verdict

REASONS = ("client_left", "expired", "shutdown")  # for which streams must have ended
LATER = ("lagged", "stalled")  # and for these, if there was time enough


class HubSoak(Soak):
    """One run."""

    program = "hub_server.py"

    def __init__(self, seconds: float, clients: int, seed: int, folder: Path) -> None:
        super().__init__(seconds, clients, seed, folder)
        self.max_streams = sys.maxsize
        self.heard = Ledger()
        self.judge = HubJudge(self.heard.openings, self.ledger.receipts)

    def _client(self, number: int, epoch: int) -> Coroutine[None, None, None]:
        return HubClient(number, self._seed + epoch, self._port, self.heard, epoch).run()

    async def _live(self, epoch: int, *, quiet: bool) -> None:
        await super()._live(epoch, quiet=quiet)
        self.judge.read(self._folder / f"facts-{epoch}-ledger")
        self.judge.weigh()  # now, because all that has come takes much memory
        if problems := self.heard.problems + self.judge.problems:
            say(f"{len(problems)} problems so far; the latest: {problems[-1]}")


def main() -> int:
    seconds, clients, seed = options("Have a Hub's clients come and go, and see that nothing is lost.", clients=500)
    with tempfile.TemporaryDirectory() as folder:
        soak = HubSoak(seconds, clients, seed, Path(folder))
        asyncio.run(soak.run())
        judge = soak.judge
        judge.weigh()
        for life in soak.lives:
            judge.look_at(life)
        judge.compare()
        judge.expect(REASONS + LATER * all(life.long_enough for life in soak.lives), soak.lives)
    if soak.heard.unread > len(soak.lives):  # one of a stop is aiohttp's
        soak.heard.problems.append(f"{soak.heard.unread} requests had no answer at all")
    soak.ledger.did = soak.heard.did
    table(soak, judge)
    judge.tell()
    return verdict(soak.heard.problems + soak.ledger.problems + judge.problems, seed)


if __name__ == "__main__":
    sys.exit(main())
