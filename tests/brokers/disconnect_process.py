"""Another process, which ends the streams of an owner and prints a line."""

from __future__ import annotations

import asyncio
import sys

from aiohttp_interceptors import Event, Hub
from tests.brokers.run_process import broker

OWNER = "user:7"


async def disconnect(engine: str, address: str) -> None:
    hub = Hub(broker(engine, address))
    await hub.disconnect(OWNER, Event("bye", "logout"))
    print("disconnected", flush=True)  # noqa: T201  # it is the output of this program
    await hub.close()


if __name__ == "__main__":
    asyncio.run(disconnect(*sys.argv[1:]))
