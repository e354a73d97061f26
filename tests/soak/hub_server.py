"""The server process of the Hub's soak test. It runs until SIGTERM.

    python -m tests.soak.hub_server PORT EPOCH asyncio|uvloop FACTS

Like ``server.py``. The events that are published are written to the file FACTS-ledger.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from aiohttp_interceptors import Hub
from tests.soak.hub_publisher import HISTORY, HISTORY_AGE, Publisher
from tests.soak.hub_routes import application
from tests.soak.routes import FactLog
from tests.soak.server import run, serve


async def serve_hubs(port: int, epoch: int, facts: Path) -> None:
    hubs = [Hub(history=history, history_age=age) for history, age in zip(HISTORY, HISTORY_AGE, strict=True)]
    with facts.open("w") as file, facts.with_name(f"{facts.name}-ledger").open("w") as ledger:
        publisher, log = Publisher(hubs, epoch, ledger), FactLog(file)
        app = application(hubs, publisher, log)
        for hub in hubs:
            hub.open()
        await publisher.start()
        publishing = asyncio.create_task(publisher.run())
        try:
            await serve(app, port, log, *hubs)
        finally:
            publisher.stop()
            while not publisher.stopped:  # the thread may wait for a result of this event loop
                await asyncio.sleep(0.01)
            await asyncio.sleep(0)
            publishing.cancel()


def main() -> None:
    port, epoch, loop_name, facts, *_ = sys.argv[1:]
    run(loop_name, serve_hubs(int(port), int(epoch), Path(facts)))


if __name__ == "__main__":
    main()
