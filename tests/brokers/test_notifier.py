"""The tail of a process is notified when another process has appended to the file, and polls without FIFOs."""

# ruff: noqa: F811  # fixtures are imported, and arguments of tests

from __future__ import annotations

import asyncio
import os
import select
import sqlite3
from contextlib import closing

import pytest

from aiohttp_interceptors.brokers.sqlite import tail as sqlite_tail
from aiohttp_interceptors.brokers.sqlite.notifier import Fifo
from aiohttp_interceptors.hub.broker import CaughtUp
from tests.brokers.contract import broker, brokers, number, tail  # noqa: F401  # fixtures
from tests.brokers.sqlite_site import SqliteSite, site  # noqa: F401  # a fixture
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import until, within

pytestmark = BOTH_LOOPS
NEVER = 3600.0


@pytest.mark.parametrize("where", ["", "long/" * 40])
async def test_another_process_is_notified(tmp_path, monkeypatch, where):
    """Also if the path is longer than that of a Unix socket may be."""
    monkeypatch.setattr(sqlite_tail, "POLL_INTERVAL", NEVER)
    folder = tmp_path / where
    folder.mkdir(parents=True, exist_ok=True)
    site = SqliteSite(folder / "hub.db")
    one, other = site.broker(), site.broker()
    async with tail(one) as reading:
        await reading.until(CaughtUp)
        for n in range(20):
            await other.publish("t", number(n))
            await reading.payloads(n + 1)
    await one.close()
    await other.close()


async def test_a_fifo_is_drained_after_a_notification(brokers):
    one, other = brokers(), brokers()
    async with tail(one) as reading:
        await reading.until(CaughtUp)
        await other.publish("t", b"x")
        await reading.payloads(1)
        await until(lambda: not is_readable(one._notifier._fifo.fd))


def is_readable(fd):
    return bool(select.select([fd], [], [], 0)[0])


async def test_the_own_publishes_of_a_process_need_no_fifo(site, brokers, monkeypatch):
    monkeypatch.setattr(sqlite_tail, "POLL_INTERVAL", NEVER)
    monkeypatch.setattr(sqlite_tail, "POLL_INTERVAL_WITHOUT_FIFO", NEVER)
    site.fifos.write_bytes(b"not a directory")
    broker = brokers()
    async with tail(broker) as reading:
        await reading.until(CaughtUp)
        await broker.publish("t", b"x")
        assert await reading.payloads(1) == [b"x"]


async def test_entries_from_before_the_fifo_existed_are_found_at_once(site, brokers, monkeypatch):
    monkeypatch.setattr(sqlite_tail, "POLL_INTERVAL", NEVER)
    one, other = brokers(), brokers()
    await other.publish("t", b"1")
    async with tail(one) as reading:
        await reading.item()  # now the first page has been read, and the FIFO exists
        with closing(sqlite3.connect(site.path)) as connection, connection:
            connection.execute("INSERT INTO entry VALUES (2, 0, 't', x'32')")
            connection.execute("UPDATE log SET last_offset = 2")
        assert await reading.payloads(2) == [b"1", b"2"]


async def test_a_deleted_fifo_is_created_again(site, brokers):
    one, other = brokers(), brokers()
    async with tail(one) as reading:
        await reading.until(CaughtUp)
        waiting = asyncio.create_task(reading.payloads(1))
        await until(lambda: not one._notifier._notified.is_set())
        (fifo,) = site.fifos.iterdir()
        fifo.unlink()
        await other.publish("t", b"x")
        assert await waiting == [b"x"]
        waiting = asyncio.create_task(reading.payloads(2))
        await until(lambda: site.fifos.exists() and [path for path in site.fifos.iterdir() if path != fifo])
        await other.publish("t", b"y")
        assert await waiting == [b"x", b"y"]


async def test_without_fifos_a_tail_polls_frequently(site, brokers, monkeypatch):
    monkeypatch.setattr(sqlite_tail, "POLL_INTERVAL", NEVER)
    site.fifos.write_bytes(b"not a directory")
    one, other = brokers(), brokers()
    async with tail(one) as reading:
        await reading.until(CaughtUp)
        for n in range(3):
            await other.publish("t", number(n))
            await reading.payloads(n + 1)


async def test_with_an_event_loop_that_cannot_watch_files_a_tail_polls_frequently(site, brokers, monkeypatch):
    def add_reader(*_):
        raise NotImplementedError  # as the proactor event loop of Windows does

    monkeypatch.setattr(sqlite_tail, "POLL_INTERVAL", NEVER)
    monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", add_reader)
    one, other = brokers(), brokers()
    async with tail(one) as reading:
        await reading.until(CaughtUp)
        await other.publish("t", b"x")
        assert await reading.payloads(1) == [b"x"]
        assert not site.fifos.exists()


async def test_publishing_deletes_the_fifo_of_a_killed_process(site, broker):
    site.fifos.mkdir()
    os.mkfifo(site.fifos / "stale")
    await broker.publish("t", b"x")
    assert not list(site.fifos.iterdir())


async def test_a_full_fifo_does_not_block_a_publish(site, broker):
    fifo = Fifo(site.fifos)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(fifo.fd, b"!" * 4096)
    await within(broker.publish("t", b"x"))
    assert fifo.path.exists()
    fifo.close()
