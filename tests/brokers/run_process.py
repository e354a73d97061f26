"""Another process that has a run: it prints the state of the run when it has ended, or is killed before."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp_interceptors import Hub
from aiohttp_interceptors.brokers.nats import NatsBroker
from aiohttp_interceptors.brokers.postgres import PostgresBroker
from aiohttp_interceptors.brokers.redis import RedisBroker
from aiohttp_interceptors.brokers.sqlite import SqliteBroker
from aiohttp_interceptors.hub import nodes
from tests.waiting import within

ROOT = Path(__file__).parents[2]
START_TIMEOUT = 30.0  # seconds, on a busy machine
LEASE_INTERVAL, LEASE_TIMEOUT = 0.2, 1.5
TOPIC = "answers.1"
BROKERS = {
    "sqlite": SqliteBroker,
    "redis": RedisBroker,
    "postgres": lambda dsn: PostgresBroker(dsn, table="runs"),
    "nats": lambda url: NatsBroker(url, stream="runs"),
}


def broker(engine: str, address: str):
    return BROKERS[engine](address)


async def words():
    number = 0
    while True:
        yield f"word {number}"
        number += 1
        await asyncio.sleep(0.01)


async def own(engine: str, address: str) -> None:
    nodes.LEASE_INTERVAL, nodes.LEASE_TIMEOUT = LEASE_INTERVAL, LEASE_TIMEOUT
    hub = Hub(broker(engine, address))
    run = await hub.run(TOPIC, words())
    print(run.id, flush=True)  # noqa: T201  # it is the output of this program
    print(await run.wait(), run.reason, flush=True)  # noqa: T201
    await hub.close()


@asynccontextmanager
async def owner(engine: str, address: object) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a process with a run, which is killed at the end of the block."""
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.brokers.run_process", engine, str(address), cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.communicate()


async def line(running: asyncio.subprocess.Process) -> str:
    """Wait for the next line that a process prints."""
    return (await within(running.stdout.readline(), START_TIMEOUT)).decode().rstrip()


if __name__ == "__main__":
    asyncio.run(own(*sys.argv[1:]))
