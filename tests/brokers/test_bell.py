"""A process is woken when another one has stored something, and soon all the same where no bell is."""

# ruff: noqa: F811  # a test has what it takes by name, and its fixtures are imported

from __future__ import annotations

import asyncio
import os
import select
import sqlite3
from contextlib import closing

import pytest

from aiohttp_interceptors.brokers import sqlite
from aiohttp_interceptors.brokers.sqlite.notifier import Bell
from aiohttp_interceptors.hub.broker import CaughtUp
from tests.brokers.contract import broker, brokers, number, tail  # noqa: F401  # fixtures
from tests.brokers.sqlite_site import SqliteSite, site  # noqa: F401  # a fixture
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import until, within

pytestmark = BOTH_LOOPS
NEVER = 3600.0


@pytest.mark.parametrize("where", ["", "long/" * 40])
async def test_another_process_is_woken_by_a_bell(tmp_path, monkeypatch, where):
    """Also when the path has more bytes than a socket's may have."""
    monkeypatch.setattr(sqlite, "POLL", NEVER)
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


async def test_a_bell_is_silent_again_when_it_was_heard(brokers):
    one, other = brokers(), brokers()
    async with tail(one) as reading:
        await reading.until(CaughtUp)
        await other.publish("t", b"x")
        await reading.payloads(1)
        await until(lambda: not readable(one._bell.file))


def readable(file):
    return bool(select.select([file], [], [], 0)[0])


async def test_ones_own_need_no_bell(site, brokers, monkeypatch):
    monkeypatch.setattr(sqlite, "POLL", NEVER)
    monkeypatch.setattr(sqlite, "POLL_WITHOUT_BELL", NEVER)
    site.bells.write_bytes(b"no folder")
    broker = brokers()
    async with tail(broker) as reading:
        await reading.until(CaughtUp)
        await broker.publish("t", b"x")
        assert await reading.payloads(1) == [b"x"]


async def test_what_comes_before_the_bell_hangs_is_not_waited_for(site, brokers, monkeypatch):
    monkeypatch.setattr(sqlite, "POLL", NEVER)
    one, other = brokers(), brokers()
    await other.publish("t", b"1")
    async with tail(one) as reading:
        await reading.item()  # all was read by then, and there is no bell before
        with closing(sqlite3.connect(site.path)) as connection, connection:
            connection.execute("INSERT INTO entry VALUES (2, 0, 't', x'32')")
            connection.execute("UPDATE log SET last = 2")
        assert await reading.payloads(2) == [b"1", b"2"]


async def test_a_bell_that_was_taken_away_is_missed_and_hung_again(site, brokers):
    one, other = brokers(), brokers()
    async with tail(one) as reading:
        await reading.until(CaughtUp)
        waiting = asyncio.create_task(reading.payloads(1))
        await until(lambda: not one._news.is_set())
        (bell,) = site.bells.iterdir()
        bell.unlink()
        await other.publish("t", b"x")
        assert await waiting == [b"x"]
        waiting = asyncio.create_task(reading.payloads(2))
        await until(lambda: site.bells.exists() and [path for path in site.bells.iterdir() if path != bell])
        await other.publish("t", b"y")
        assert await waiting == [b"x", b"y"]


async def test_where_there_are_no_bells_it_looks_often(site, brokers, monkeypatch):
    monkeypatch.setattr(sqlite, "POLL", NEVER)
    site.bells.write_bytes(b"no folder")
    one, other = brokers(), brokers()
    async with tail(one) as reading:
        await reading.until(CaughtUp)
        for n in range(3):
            await other.publish("t", number(n))
            await reading.payloads(n + 1)


async def test_an_event_loop_that_cannot_watch_a_file_looks_often(site, brokers, monkeypatch):
    def add_reader(*_):
        raise NotImplementedError  # as that of Windows does

    monkeypatch.setattr(sqlite, "POLL", NEVER)
    monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", add_reader)
    one, other = brokers(), brokers()
    async with tail(one) as reading:
        await reading.until(CaughtUp)
        await other.publish("t", b"x")
        assert await reading.payloads(1) == [b"x"]
        assert not site.bells.exists()


async def test_who_publishes_takes_away_the_bell_of_a_killed_process(site, broker):
    site.bells.mkdir()
    os.mkfifo(site.bells / "litter")
    await broker.publish("t", b"x")
    assert not list(site.bells.iterdir())


async def test_a_bell_that_nobody_answers_stops_no_publisher(site, broker):
    bell = Bell(site.bells)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(bell.file, b"!" * 4096)
    await within(broker.publish("t", b"x"))
    assert bell.path.exists()
    bell.close()
