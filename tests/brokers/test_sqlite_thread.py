"""A disk that hangs blocks a thread, and neither the process nor its event loop."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from contextlib import aclosing

import pytest

from aiohttp_interceptors.brokers import sqlite
from aiohttp_interceptors.brokers.sqlite import SqliteBroker
from aiohttp_interceptors.brokers.sqlite import tail as sqlite_tail
from aiohttp_interceptors.brokers.sqlite.log import SqliteLog
from aiohttp_interceptors.exceptions import BrokerDown
from aiohttp_interceptors.hub.broker import CaughtUp
from aiohttp_interceptors.hub.hub import Hub
from tests.waiting import until, within

HANGING = """
import asyncio, sys, threading
from aiohttp_interceptors import Hub
from aiohttp_interceptors.brokers import sqlite
from aiohttp_interceptors.brokers.sqlite import tail
from aiohttp_interceptors.brokers.sqlite.log import SqliteLog

tail.READ_TIMEOUT = sqlite.CLOSE_TIMEOUT = 0.2

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
    """Make each read of the log hang until the second event is set. The first one tells that a read hangs."""
    hangs, released = threading.Event(), threading.Event()

    def hang(*_):
        hangs.set()
        released.wait(60)

    monkeypatch.setattr(sqlite, "CLOSE_TIMEOUT", 0.05)
    monkeypatch.setattr(sqlite_tail, "READ_TIMEOUT", 0.05)
    monkeypatch.setattr(SqliteLog, "read", hang)
    yield hangs, released
    released.set()


def threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("sqlite-")}


@pytest.mark.parametrize("how", ["closed", "left open"])
async def test_a_process_exits_although_its_disk_hangs(tmp_path, how):
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


async def test_a_hub_closes_although_its_disk_hangs_and_logs_the_thread(tmp_path, hanging, logged):
    hub = Hub(SqliteBroker(tmp_path / "hub.db"))
    hub.open()
    hangs, released = hanging
    await until(hangs.is_set)
    hanging_threads = threads()
    await within(hub.close())
    assert [line["what"] for line in logged if line["event"] == "did_not_end"] == [
        "the thread 'sqlite-read', which waits for the disk"
    ]
    released.set()
    for thread in hanging_threads:
        await asyncio.to_thread(thread.join, 10)
    assert not threads() & hanging_threads


async def test_the_threads_of_a_closed_broker_end(tmp_path):
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
async def test_the_threads_of_a_garbage_collected_broker_end(tmp_path):
    before = threads()
    broker = SqliteBroker(tmp_path / "hub.db")
    await broker.publish("t", b"x")
    mine = threads() - before
    del broker
    async with asyncio.timeout(10):
        while threads() & mine:  # a thread may still be about to release the broker
            gc.collect()
            await asyncio.sleep(0.01)


async def test_the_threads_make_progress_while_the_event_loop_is_never_idle(tmp_path):
    """Each callback is shorter than the switch interval, so the loop takes the GIL back before a thread has woken."""
    broker = SqliteBroker(tmp_path / "hub.db", publish_timeout=30.0)

    async def spin():
        while True:
            sum(range(100_000))
            await asyncio.sleep(0)

    busy = asyncio.create_task(spin())
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


async def test_a_call_that_is_cancelled_before_it_started_does_not_run(tmp_path):
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


async def test_an_exception_of_a_call_is_raised(tmp_path):
    broker = SqliteBroker(tmp_path / "hub.db")
    with pytest.raises(ZeroDivisionError):
        await within(broker._reading.run(lambda _: 1 / 0))
    await broker.close()
