"""Another process on a file of SQLite: it says in lines what it does, and ends when nobody listens."""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

from aiohttp_interceptors.brokers.sqlite import SqliteBroker
from aiohttp_interceptors.exceptions import BrokerError
from aiohttp_interceptors.hub.broker import CaughtUp, LogPosition
from tests.waiting import within

ROOT = Path(__file__).parents[2]
PAYLOAD = b"\x10data: %d\n\n"  # of a number, as a Hub has it
PATIENCE = 30.0  # seconds in which a process starts, on a machine that has others


def say(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201  # how it answers who started it


async def publish(path: str, which: str = "") -> None:
    """Publish numbers, several at a time, and say which were acknowledged, and as what.

    With a name it says when it has begun, and goes on whatever becomes of them.
    """
    broker = SqliteBroker(path)
    if which:
        await broker.publish("t", PAYLOAD % 0)
        say("up")
    numbers = iter(range(10**9))

    async def one_after_the_other():
        for number in numbers:
            try:
                position = await broker.publish("t", PAYLOAD % number, idempotency_key=f"key {which}{number}")
            except BrokerError:
                if not which:
                    raise
                await asyncio.sleep(0.01)
            else:
                if not which:
                    say(number, position.epoch, position.offset)

    await asyncio.gather(*[one_after_the_other() for _ in range(5)])


async def follow(path: str, most: str) -> None:
    """Say when all that was there has come, and what comes then, up to a number of entries."""
    broker = SqliteBroker(path)
    count, up = 0, False
    position = None
    async for item in broker.tail(None):
        if isinstance(item, CaughtUp):
            if not up:
                say("up")
            up = True
        elif isinstance(item, list):
            for entry in item:
                say(position.epoch, entry.offset)
            count += len(item)
            if count >= int(most):
                break
        else:
            position = item.position
    await broker.close()


async def fill(path: str, limit: str) -> None:
    """Publish until there is no room, say why that ended, and go on once there is more: when a line comes."""
    if int(limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
    broker = SqliteBroker(path, max_records=10**6)
    number = 0
    try:
        while True:
            position = await broker.publish("t", b"%d" % number + b"." * 30_000)
            say(number, position.offset)
            number += 1
    except BrokerError as error:
        say(type(error).__name__, error)
    await asyncio.to_thread(sys.stdin.readline)
    if int(limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    position: LogPosition = await broker.publish("t", b"%d" % number)
    say(number, position.offset)
    await broker.close()


async def churn(path: str, limit: str, count: str) -> None:
    """Keep few events of many, with files that may not be larger than a limit, while somebody reads."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
    broker = SqliteBroker(path, max_records=100)
    reading = asyncio.create_task(_read(broker))
    for number in range(int(count)):
        position = await broker.publish("t", PAYLOAD % number)
    reading.cancel()
    await asyncio.wait([reading])
    await broker.close()
    say(position.offset)


async def _read(broker: SqliteBroker) -> None:
    async with aclosing(broker.tail(None)) as items:
        async for _ in items:
            pass


async def hold(path: str) -> None:
    """Take the lock of who writes, stop as by ``kill -STOP``, and give it back when told to go on."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    say("held")
    os.kill(os.getpid(), signal.SIGSTOP)
    connection.execute("ROLLBACK")
    connection.close()


def hold_opening(path: str) -> None:
    """Take the lock of who opens the file, and stop as by ``kill -STOP``."""
    file = os.open(f"{path}-lock", os.O_RDONLY | os.O_CREAT)
    fcntl.flock(file, fcntl.LOCK_EX)
    say("held")
    os.kill(os.getpid(), signal.SIGSTOP)


def fork(path: str) -> None:
    """Make a broker before a fork, and use it after that, as a server does that loads an application once."""
    broker = SqliteBroker(path)

    async def use() -> None:
        await broker.publish("t", b"x")
        await broker.close()

    children = []
    for _ in range(2):
        child = os.fork()
        if not child:
            asyncio.run(use())
            os._exit(0)
        children.append(child)
    say(*(os.waitpid(child, 0)[1] for child in children))


async def leave(path: str) -> None:
    """End without closing anything, with a tail that is open."""
    broker = SqliteBroker(path)
    await broker.publish("t", b"x")
    tail = broker.tail(None)
    while not isinstance(await anext(tail), CaughtUp):
        pass
    say("left")
    sys.exit()


@asynccontextmanager
async def process(task: str, *arguments: object) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run one of these, and end it at the latest when the block ends."""
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.brokers.sqlite_process", task, *map(str, arguments),
        cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.communicate()


async def line(running: asyncio.subprocess.Process) -> list[str]:
    """Wait for what it says next, in words."""
    return (await within(running.stdout.readline(), PATIENCE)).decode().split()


if __name__ == "__main__":
    task = globals()[sys.argv[1]](*sys.argv[2:])
    if task is not None:
        asyncio.run(task)
