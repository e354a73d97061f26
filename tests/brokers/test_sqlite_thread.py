"""A disk that hangs holds a thread, and neither the process nor its event loop."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from contextlib import aclosing

import pytest

from aiohttp_interceptors.brokers import sqlite as module
from aiohttp_interceptors.brokers.sqlite import SqliteBroker
from aiohttp_interceptors.brokers.sqlite.log import SqliteLog
from aiohttp_interceptors.exceptions import BrokerDown
from aiohttp_interceptors.hub.broker import CaughtUp
from aiohttp_interceptors.hub.hub import Hub
from tests.waiting import until, within

HANGING = """
import asyncio, sys, threading
from aiohttp_interceptors import Hub
from aiohttp_interceptors.brokers import sqlite
from aiohttp_interceptors.brokers.sqlite.log import SqliteLog

sqlite.SILENCE = 0.2

hangs = threading.Event()

def hang(*_):
    print("hangs", flush=True)
    hangs.set()
    threading.Event().wait()

SqliteLog.read = hang

async def main():
    hub = Hub(sqlite.SqliteBroker(sys.argv[1]))
    hub.open()
    while not hangs.is_set():
        await asyncio.sleep(0)
    if sys.argv[2] == "closed":
        await hub.close()

asyncio.run(main())
print("ended", flush=True)
"""


@pytest.fixture
def hanging(monkeypatch):
    """Have the disk hang when the log is read, until it is let go."""
    hangs, let_go = threading.Event(), threading.Event()

    def hang(*_):
        hangs.set()
        let_go.wait(60)

    monkeypatch.setattr(module, "SILENCE", 0.05)
    monkeypatch.setattr(SqliteLog, "read", hang)
    yield hangs, let_go
    let_go.set()


def threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("sqlite-")}


@pytest.mark.parametrize("how", ["closed", "left open"])
async def test_a_process_ends_although_its_disk_hangs(tmp_path, how):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HANGING, str(tmp_path / "hub.db"), how),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, errors = await within(process.communicate(), 30)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert out.decode().split() == ["hangs", "ended"], errors.decode()
    assert process.returncode == 0


async def test_a_hub_closes_although_its_disk_hangs_and_says_what_was_left(tmp_path, hanging, logged):
    hub = Hub(SqliteBroker(tmp_path / "hub.db"))
    hub.open()
    hangs, let_go = hanging
    await until(hangs.is_set)
    left = threads()
    await within(hub.close())
    assert [line["what"] for line in logged if line["event"] == "did_not_end"] == [
        "the thread 'sqlite-read', which the disk holds"
    ]
    let_go.set()
    for thread in left:
        await asyncio.to_thread(thread.join, 10)
    assert not threads() & left


async def test_no_thread_is_left_of_a_broker_that_was_closed(tmp_path):
    before = threads()
    broker = SqliteBroker(tmp_path / "hub.db")
    await broker.publish("t", b"x")
    mine = threads() - before
    assert mine
    await broker.close()
    for thread in mine:
        await asyncio.to_thread(thread.join, 10)
    assert not threads() & mine
    with pytest.raises(BrokerDown):
        await broker.publish("t", b"x")


@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
async def test_nor_of_one_that_was_forgotten(tmp_path):
    before = threads()
    broker = SqliteBroker(tmp_path / "hub.db")
    await broker.publish("t", b"x")
    mine = threads() - before
    del broker
    async with asyncio.timeout(10):
        while threads() & mine:  # which may just be about to let go of it
            gc.collect()
            await asyncio.sleep(0.01)


async def test_an_event_loop_that_never_rests_lets_it_work(tmp_path):
    """With turns shorter than the interpreter's interval: the loop has it back before a thread has woken."""
    broker = SqliteBroker(tmp_path / "hub.db", publish_timeout=30.0)

    async def never_rest():
        while True:
            sum(range(100_000))
            await asyncio.sleep(0)

    busy = asyncio.create_task(never_rest())
    try:
        async with asyncio.timeout(30):
            for number in range(5):
                await asyncio.gather(*[broker.publish("t", b"%d" % number) for _ in range(100)])
            count = 0
            async with aclosing(broker.tail(None)) as tail:
                async for item in tail:
                    count += len(item) if isinstance(item, list) else 0
                    if isinstance(item, CaughtUp):
                        break
        assert count == 500
    finally:
        busy.cancel()
        await broker.close()


async def test_what_is_cancelled_before_it_began_is_not_done(tmp_path):
    broker = SqliteBroker(tmp_path / "hub.db")
    hold, done = threading.Event(), []
    first = asyncio.create_task(broker._reading.run(lambda _: hold.wait(60)))
    second = asyncio.create_task(broker._reading.run(lambda _: done.append("second")))
    third = asyncio.create_task(broker._reading.run(lambda _: "third"))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.sleep(0)
    hold.set()
    assert await within(first)
    assert await within(third) == "third"
    assert done == []
    await broker.close()


async def test_what_the_work_raises_is_raised(tmp_path):
    broker = SqliteBroker(tmp_path / "hub.db")
    with pytest.raises(ZeroDivisionError):
        await within(broker._reading.run(lambda _: 1 / 0))
    await broker.close()
