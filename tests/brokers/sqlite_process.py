"""Another process that uses a SQLite file: it prints what it does, line by line, and ends when its pipe is closed."""

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
PAYLOAD = b"\x10data: %d\n\n"  # of a number, as a Hub encodes it
START_TIMEOUT = 30.0  # seconds, on a busy machine


def report(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201  # it is the output of this program


async def publish(path: str, name: str = "") -> None:
    """Publish numbers, several at a time, and print each that was acknowledged, with its epoch and offset.

    With a name, print only a line at the start, and continue after errors.
    """
    broker = SqliteBroker(path)
    if name:
        await broker.publish("t", PAYLOAD % 0)
        report("up")
    numbers = iter(range(10**9))

    async def publish_in_turn():
        for number in numbers:
            try:
                position = await broker.publish("t", PAYLOAD % number, idempotency_key=f"key {name}{number}")
            except BrokerError:
                if not name:
                    raise
                await asyncio.sleep(0.01)
            else:
                if not name:
                    report(number, position.epoch, position.offset)

    await asyncio.gather(*[publish_in_turn() for _ in range(5)])


async def follow(path: str, most: str) -> None:
    """Print each entry, up to a number of entries, and a line when the tail has caught up."""
    broker = SqliteBroker(path)
    count, up = 0, False
    position = None
    async for item in broker.tail(None):
        if isinstance(item, CaughtUp):
            if not up:
                report("up")
            up = True
        elif isinstance(item, list):
            for entry in item:
                report(position.epoch, entry.offset)
            count += len(item)
            if count >= int(most):
                break
        else:
            position = item.position
    await broker.close()


async def fill(path: str, limit: str) -> None:
    """Publish until the disk is full, print the error, wait for a line on stdin, and publish once more."""
    if int(limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
    broker = SqliteBroker(path, max_records=10**6)
    number = 0
    try:
        while True:
            position = await broker.publish("t", b"%d" % number + b"." * 30_000)
            report(number, position.offset)
            number += 1
    except BrokerError as error:
        report(type(error).__name__, error)
    await asyncio.to_thread(sys.stdin.readline)
    if int(limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    position: LogPosition = await broker.publish("t", b"%d" % number)
    report(number, position.offset)
    await broker.close()


async def churn(path: str, limit: str, count: str) -> None:
    """Publish many events and keep few, with a limit of the file size, while a tail reads."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
    broker = SqliteBroker(path, max_records=100)
    reading = asyncio.create_task(_read(broker))
    for number in range(int(count)):
        position = await broker.publish("t", PAYLOAD % number)
    reading.cancel()
    await asyncio.wait([reading])
    await broker.close()
    report(position.offset)


async def _read(broker: SqliteBroker) -> None:
    async with aclosing(broker.tail(None)) as items:
        async for _ in items:
            pass


async def hold(path: str) -> None:
    """Take the write lock, stop as by ``kill -STOP``, and release it after ``kill -CONT``."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    report("held")
    os.kill(os.getpid(), signal.SIGSTOP)
    connection.execute("ROLLBACK")
    connection.close()


def hold_opening(path: str) -> None:
    """Take the lock for opening the file, and stop as by ``kill -STOP``."""
    file = os.open(f"{path}-lock", os.O_RDONLY | os.O_CREAT)
    fcntl.flock(file, fcntl.LOCK_EX)
    report("held")
    os.kill(os.getpid(), signal.SIGSTOP)


def fork(path: str) -> None:
    """Make a broker before a fork, and use it afterwards, as a pre-forking server does."""
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
    report(*(os.waitpid(child, 0)[1] for child in children))


async def leave(path: str) -> None:
    """Exit without closing the broker or its tail."""
    broker = SqliteBroker(path)
    await broker.publish("t", b"x")
    tail = broker.tail(None)
    while not isinstance(await anext(tail), CaughtUp):
        pass
    report("left")
    sys.exit()


@asynccontextmanager
async def process(task: str, *arguments: object) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run one of these functions in a process, which is killed at the end of the block."""
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
    """Wait for the next line that a process prints, and return its words."""
    return (await within(running.stdout.readline(), START_TIMEOUT)).decode().split()


if __name__ == "__main__":
    task = globals()[sys.argv[1]](*sys.argv[2:])
    if task is not None:
        asyncio.run(task)
