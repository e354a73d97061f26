"""One life of the server in the Hub's soak: from its start to SIGTERM.

    python tests/soak/hub_server.py PORT EPOCH asyncio|uvloop FACTS

As ``server.py``; what is published is written into the file FACTS-ledger.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from hub_feed import AGE, HISTORY, Publisher
from hub_routes import application
from routes import Book
from server import run, serve

from aiohttp_interceptors import Hub


async def live(port: int, epoch: int, facts: Path) -> None:
    hubs = [Hub(history=history, history_age=age) for history, age in zip(HISTORY, AGE, strict=True)]
    with facts.open("w") as file, facts.with_name(f"{facts.name}-ledger").open("w") as ledger:
        publisher, book = Publisher(hubs, epoch, ledger), Book(file)
        app = application(hubs, publisher, book)
        for hub in hubs:
            hub.open()
        await publisher.begin()
        inside = asyncio.create_task(publisher.run())
        try:
            await serve(app, port, book, *hubs)
        finally:
            publisher.stop()
            while not publisher.stopped:  # it may wait for an answer of this event loop
                await asyncio.sleep(0.01)
            await asyncio.sleep(0)
            inside.cancel()


def main() -> None:
    port, epoch, name, facts, *_ = sys.argv[1:]
    run(name, live(int(port), int(epoch), Path(facts)))


if __name__ == "__main__":
    main()
