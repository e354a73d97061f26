"""The broker in a file keeps what all brokers promise, and what is its own."""

# ruff: noqa: F811  # a test has what it takes by name, and its fixtures are imported

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import tempfile
import threading
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from aiohttp_interceptors.brokers import sqlite
from aiohttp_interceptors.brokers.sqlite import SqliteBroker
from aiohttp_interceptors.brokers.sqlite.log import BOOT
from aiohttp_interceptors.exceptions import BrokerDown, BrokerError, BrokerRefused
from aiohttp_interceptors.hub.broker import CaughtUp, LogPosition, Subscribed, Trimmed, Truncated
from tests.brokers.contract import Contract, broker, brokers, number, tail, topics  # noqa: F401  # fixtures
from tests.brokers.sqlite_process import line, process
from tests.brokers.sqlite_site import SqliteSite, site  # noqa: F401  # a fixture
from tests.waiting import within

NOBODY = 65534


class TestSqlite(Contract):
    """As it says."""


async def payloads(broker):
    async with tail(broker) as reading:
        await reading.until(CaughtUp)
        return [entry.payload for entry in reading.entries]


# What it is made with.


@pytest.mark.parametrize(
    ("error", "path", "options"),
    [
        (TypeError, 7, {}),
        (TypeError, b"hub.db", {}),
        (ValueError, "", {}),
        (ValueError, ":memory:", {}),
        (ValueError, "file:hub.db", {}),
        (TypeError, "hub.db", {"max_records": 1.0}),
        (TypeError, "hub.db", {"max_records": True}),
        (ValueError, "hub.db", {"max_records": 0}),
        (TypeError, "hub.db", {"max_age": "1 h"}),
        (ValueError, "hub.db", {"max_age": 0}),
        (TypeError, "hub.db", {"publish_timeout": None}),
        (ValueError, "hub.db", {"publish_timeout": float("nan")}),
        (ValueError, "hub.db", {"publish_timeout": float("inf")}),
        (ValueError, "hub.db", {"synchronous": "OFF"}),
    ],
)
def test_what_cannot_work_is_refused_with_its_value(error, path, options):
    with pytest.raises(error) as raised:
        SqliteBroker(path, **options)
    assert repr([path, *options.values()][-1]) in str(raised.value)


async def test_it_touches_nothing_before_it_is_used(site):
    broker = site.broker()
    assert not list(site.path.parent.iterdir())
    await broker.close()
    assert not list(site.path.parent.iterdir())


async def test_a_process_may_change_its_folder(site, brokers, monkeypatch):
    monkeypatch.chdir(site.path.parent)
    here = SqliteBroker("hub.db")
    monkeypatch.chdir("/")
    await here.publish("t", b"x")
    await here.close()
    assert await payloads(brokers()) == [b"x"]


async def test_a_key_that_is_no_text_is_an_error_of_who_gave_it(broker):
    bad, good = await asyncio.gather(
        broker.publish("t", b"bad", idempotency_key="\udc00"), broker.publish("t", b"good"), return_exceptions=True
    )
    assert isinstance(bad, ValueError)
    assert good.offset == 1


async def test_a_topic_that_is_no_text_leaves_nothing_locked(site, brokers):
    one, other = brokers(publish_timeout=1), brokers(publish_timeout=1)
    with pytest.raises((BrokerError, ValueError)):
        await one.publish("\udc00", b"x")
    assert (await other.publish("t", b"x")).offset == 1
    assert (await one.publish("t", b"y")).offset == 2


# From one life to the next.


async def test_history_and_positions_outlive_all_processes(site):
    first = site.broker()
    positions = [await first.publish("t", number(n), idempotency_key=f"{n}") for n in range(3)]
    await first.close()
    second = site.broker()
    assert await second.publish("t", b"again", idempotency_key="1") == positions[1]
    assert await second.publish("t", b"3") == LogPosition(positions[0].epoch, 4)
    async with tail(second, positions[0]) as reading:
        assert await reading.payloads(3) == [b"1", b"2", b"3"]
    await second.close()


@pytest.mark.parametrize("synchronous", ["FULL", "NORMAL"])
async def test_what_is_left_after_all_were_closed_is_the_file(site, synchronous):
    one, other = site.broker(synchronous=synchronous), site.broker(synchronous=synchronous)
    async with tail(one) as reading, tail(other) as also:
        await reading.until(CaughtUp)
        await also.until(CaughtUp)
        await one.publish("t", b"x")
        await also.payloads(1)
    await one.close()
    await other.close()
    assert list(site.path.parent.iterdir()) == [site.path]


async def test_a_copy_is_another_log(site, brokers, tmp_path):
    """Whose clients have seen what comes after it in the first one."""
    first = await brokers().publish("t", b"x")
    copied = SqliteSite(tmp_path / "copy.db")
    site.copy(copied.path)
    copy = copied.broker()
    async with tail(copy, first) as reading:
        await reading.item()
        rewound = await reading.item()
        assert isinstance(rewound, Truncated)
        assert rewound.position.offset == first.offset
        assert rewound.position.epoch != first.epoch
        assert await copy.publish("t", b"y") == LogPosition(rewound.position.epoch, 2)
    await copy.close()
    again = copied.broker()
    assert (await again.publish("t", b"z")).epoch == rewound.position.epoch
    await again.close()


@pytest.mark.skipif(not BOOT.exists(), reason="this operating system does not say when it was started")
async def test_a_file_that_a_crash_may_have_shortened_goes_on_in_another_epoch(site):
    """For NORMAL leaves it to the operating system when the disk has what was acknowledged."""
    before = site.broker(synchronous="NORMAL")
    first = await before.publish("t", b"x")
    await before.close()
    same = site.broker(synchronous="NORMAL")
    assert (await same.publish("t", b"y")).epoch == first.epoch
    await same.close()
    (boot,) = BOOT.read_text().split()
    site.sql(f"UPDATE log SET home = replace(home, '{boot}', 'the one before')")
    after = site.broker(synchronous="NORMAL")
    position = await after.publish("t", b"z")
    assert position.offset == 3
    assert position.epoch != first.epoch
    await after.close()


# What is kept.


async def test_it_keeps_the_latest_entries(site, brokers):
    broker = brokers(max_records=10)
    for n in range(25):
        await broker.publish("t", number(n))
    assert await payloads(broker) == [number(n) for n in range(15, 25)]
    assert site.sql("SELECT count(*) FROM entry") == [(10,)]


async def test_what_is_too_old_is_deleted_with_the_next_publish(site, brokers):
    broker = brokers(max_age=60)
    positions = [await broker.publish("t", number(n)) for n in range(5)]
    site.sql("UPDATE entry SET time = time - 61 WHERE position <= 3")
    await broker.publish("t", b"new")
    async with tail(broker, positions[0]) as reading:
        await reading.item()
        assert await reading.item() == Trimmed(3)
        assert await reading.payloads(3) == [b"3", b"4", b"new"]
    async with tail(broker, positions[1]) as reading:
        await reading.item()
        assert await reading.item() == Trimmed(3)  # which is that one alone


async def test_without_an_age_nothing_is_too_old(site, brokers):
    broker = brokers(max_age=None)
    await broker.publish("t", b"old")
    site.sql("UPDATE entry SET time = 0")
    await broker.publish("t", b"new")
    assert await payloads(broker) == [b"old", b"new"]


async def test_much_that_is_too_much_is_deleted_bit_by_bit(site, brokers):
    many, few = brokers(), brokers(max_records=10)
    await asyncio.gather(*[many.publish("t", number(n)) for n in range(1000)])
    counts = []
    while not counts or counts[-1] > 10:
        await few.publish("t", b"x")
        counts += site.sql("SELECT count(*) FROM entry")[0]
    assert counts[0] > 800
    assert counts == sorted(counts, reverse=True)


async def test_positions_are_never_those_of_what_was_deleted(site, brokers):
    broker = brokers(max_age=60)
    await broker.publish("t", b"x")
    site.sql("UPDATE entry SET time = 0")
    last = await broker.publish("t", b"y")
    site.sql("UPDATE entry SET time = 0")
    await broker.close()
    assert (await brokers(max_age=60).publish("t", b"z")).offset == last.offset + 1


async def test_a_key_is_known_for_a_window_and_then_forgotten(site, brokers):
    broker = brokers(max_records=1)
    position = await broker.publish("t", b"x", idempotency_key="k")
    await broker.publish("t", b"y", idempotency_key="other")
    site.sql("UPDATE repeat SET time = time - 119")
    assert await broker.publish("t", b"x", idempotency_key="k") == position
    site.sql("UPDATE repeat SET time = time - 2")
    assert (await broker.publish("t", b"x", idempotency_key="k")).offset == 3
    assert site.sql("SELECT key FROM repeat") == [("k",)]


async def test_the_files_stay_small_under_a_tail_that_is_always_there(site, brokers):
    broker = brokers(max_records=500)
    async with tail(broker) as reading:
        await reading.until(CaughtUp)
        for _ in range(10):
            positions = await asyncio.gather(*[broker.publish("t", b"x" * 1000) for _ in range(2000)])
            while reading.position < positions[-1]:
                await reading.item()
    sizes = [Path(f"{site.path}{end}").stat().st_size for end in ("", "-wal")]
    assert sizes[0] < 4 * 2**20
    assert sizes[1] < 16 * 2**20


async def test_a_page_has_no_more_bytes_than_are_good_for_others(broker):
    for _ in range(8):
        await broker.publish("t", b"x" * 300_000)
    async with tail(broker) as reading:
        await reading.item()
        first = await reading.item()
        assert 1 < len(first) < 8
        await reading.payloads(8)


async def test_an_age_is_not_less_than_nothing_when_the_clock_was_put_back(site, brokers):
    broker = brokers()
    await broker.publish("t", b"of tomorrow")
    site.sql("UPDATE entry SET time = time + 86400")
    await broker.publish("t", b"of today")
    async with tail(broker) as reading:
        await reading.until(CaughtUp)
        assert [entry.payload for entry in reading.entries] == [b"of tomorrow", b"of today"]
        assert reading.entries[0].age == 0.0


# Files that are not as they should be.


async def refused(broker, words):
    with pytest.raises(BrokerRefused, match=words):
        await broker.publish("t", b"x")
    with pytest.raises(BrokerRefused, match=words):
        async with tail(broker) as reading:
            await reading.item()


async def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(site, broker):
    site.path.write_bytes(b"the accounts of 1998" * 1000)
    await refused(broker, f"{site.path}.*another path")
    assert site.path.read_bytes() == b"the accounts of 1998" * 1000


@pytest.mark.parametrize("statement", ["CREATE TABLE account (x)", "PRAGMA application_id = 7"])
async def test_a_database_of_something_else_is_refused_and_left_as_it_is(site, broker, statement):
    site.sql(statement)
    before = site.path.read_bytes()
    await refused(broker, "something else")
    assert site.path.read_bytes() == before


async def test_a_file_of_a_later_version_is_refused(site, brokers):
    await brokers().publish("t", b"x")
    site.sql("PRAGMA user_version = 2")
    await refused(brokers(), "version 2.*knows 1")


async def test_a_folder_that_is_not_there_is_refused(tmp_path):
    broker = SqliteBroker(tmp_path / "missing" / "hub.db")
    await refused(broker, "missing/hub.db.*folder")
    await broker.close()


async def test_a_folder_in_place_of_the_file_is_refused(site, broker):
    site.path.mkdir()
    await refused(broker, "unable to open")


@contextmanager
def somebody():
    """Have no more rights than others, in a folder of this one."""
    folder = Path(tempfile.mkdtemp())
    root = os.geteuid() == 0
    try:
        folder.chmod(0o755)
        if root:
            os.seteuid(NOBODY)
        yield folder
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


async def test_a_file_that_may_not_be_written_is_refused():
    with somebody() as folder:
        if os.geteuid() != NOBODY:
            folder.chmod(0o555)
        broker = SqliteBroker(folder / "hub.db")
        await refused(broker, "hub.db.*allowed to write")
        await broker.close()


async def test_tables_that_somebody_dropped_are_told_of(site, brokers):
    await brokers().publish("t", b"x")
    site.sql("DROP TABLE entry")
    await refused(brokers(), "no such table")


# Files that are taken away.


async def test_a_file_that_was_deleted_alone_is_made_anew(site, brokers):
    """What it leaves beside it is not taken for the new one's."""
    one, other, late = brokers(), brokers(), brokers()
    async with tail(one) as reading, tail(other) as also:
        for each in reading, also:
            await each.until(CaughtUp)
        await asyncio.gather(*[one.publish("t", number(n)) for n in range(300)])
        await reading.payloads(300)
        await also.payloads(300)
        site.path.unlink()
        new = await other.publish("t", b"new")
        for each in reading, also:
            assert (await each.until(Truncated)).position == LogPosition(new.epoch, 0)
            await each.payloads(301)
            assert each.entries[-1].payload == b"new"
    assert await one.publish("t", b"newer") == LogPosition(new.epoch, 2)
    assert await payloads(late) == [b"new", b"newer"]
    assert site.sql("PRAGMA integrity_check") == [("ok",)]


async def test_an_older_copy_in_place_of_the_file_is_told_of(site, brokers, tmp_path):
    one, other = brokers(), brokers()
    async with tail(one) as reading, tail(other) as also:
        await reading.until(CaughtUp)
        await also.until(CaughtUp)
        old = [await one.publish("t", number(n)) for n in range(5)][-1]
        site.copy(tmp_path / "backup")
        await asyncio.gather(*[one.publish("t", b"lost") for n in range(5)])
        await reading.payloads(10)
        await also.payloads(10)
        (tmp_path / "backup").replace(site.path)
        for each in reading, also:
            rewound = await each.until(Truncated)
            assert rewound.position.offset == old.offset
            assert rewound.position.epoch != old.epoch
        assert reading.position == also.position
        assert await other.publish("t", b"new") == LogPosition(rewound.position.epoch, 6)
        await reading.payloads(11)
        assert reading.entries[-1].payload == b"new"
    assert await payloads(one) == [b"0", b"1", b"2", b"3", b"4", b"new"]


def restore(site, path):
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(site.path)) as target:
        source.backup(target)


async def test_a_backup_that_was_put_into_the_file_is_told_of(site, brokers, tmp_path):
    one, other, gone = brokers(), brokers(), brokers()
    async with tail(one) as reading:
        await reading.until(CaughtUp)
        old = [await gone.publish("t", number(n)) for n in range(5)][-1]
        site.copy(tmp_path / "backup")
        await asyncio.gather(*[gone.publish("t", b"lost") for n in range(5)])
        await reading.payloads(10)
        await gone.close()  # so that only who read it can know
        restore(site, tmp_path / "backup")
        rewound = await reading.until(Truncated)
        assert rewound.position.offset == old.offset
        assert rewound.position.epoch != old.epoch
        assert await other.publish("t", b"new") == LogPosition(rewound.position.epoch, 6)
        await reading.payloads(11)


async def test_who_publishes_after_a_backup_was_put_into_the_file_gives_no_id_twice(site, brokers, tmp_path):
    broker = brokers()
    old = await broker.publish("t", b"old")
    site.copy(tmp_path / "backup")
    lost = await broker.publish("t", b"lost")
    restore(site, tmp_path / "backup")
    new = await broker.publish("t", b"new")
    assert new.offset == lost.offset
    assert new.epoch != lost.epoch
    async with tail(broker, lost) as reading:
        await reading.item()
        assert await reading.item() == Truncated(LogPosition(new.epoch, old.offset))
        assert await reading.payloads(1) == [b"new"]


async def test_a_tail_that_slept_over_two_losses_is_told_what_is_left(site, brokers, tmp_path):
    """What it has in common with the log is what all the eras in between have."""
    sleeper, broker = brokers(), brokers()
    for n in range(3):
        await broker.publish("t", number(n))
    site.copy(tmp_path / "backup")
    seen = [await broker.publish("t", b"lost") for _ in range(3)][-1]
    restore(site, tmp_path / "backup")
    for n in range(3, 8):
        await broker.publish("t", number(n))
    site.copy(tmp_path / "second")
    await broker.publish("t", b"lost too")
    restore(site, tmp_path / "second")
    last = await broker.publish("t", b"8")
    async with tail(sleeper, seen) as reading:
        assert await reading.item() == Subscribed(seen)
        assert await reading.item() == Truncated(LogPosition(last.epoch, 3))
        assert await reading.payloads(6) == [number(n) for n in range(3, 9)]
        assert reading.position == last


async def test_what_was_rewound_to_and_trimmed_is_told_as_both(site, brokers):
    one, other = brokers(max_records=2), brokers(max_records=2)
    before = await one.publish("t", b"x")
    await site.wipe()
    for n in range(5):
        last = await other.publish("t", number(n))
    async with tail(one, before) as reading:
        await reading.item()
        assert await reading.item() == Truncated(LogPosition(last.epoch, 0))
        assert await reading.item() == Trimmed(3)
        assert await reading.payloads(2) == [b"3", b"4"]


# Threads.


async def test_a_disk_that_does_not_answer_is_lost(broker, monkeypatch):
    disk = threading.Event()
    async with tail(broker) as reading:
        await reading.until(CaughtUp)
        hanging = asyncio.create_task(broker._reading.run(lambda _: disk.wait()))
        with monkeypatch.context() as patch, pytest.raises(BrokerDown, match="disk"):
            patch.setattr(sqlite, "SILENCE", 0.05)
            while True:
                await reading.item()
        disk.set()
        await hanging
    async with tail(broker) as reading:
        await reading.until(CaughtUp)


async def test_to_read_waits_for_nobody_who_writes(site, brokers):
    one, other = brokers(publish_timeout=0.2), brokers()
    await other.publish("t", b"x")
    with closing(sqlite3.connect(site.path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        assert await payloads(one) == [b"x"]
        with pytest.raises(BrokerDown, match=r"locked.*another process"):
            await one.publish("t", b"y")
        connection.execute("ROLLBACK")
    await one.publish("t", b"z")
    assert await payloads(other) == [b"x", b"z"]


async def test_a_broker_that_was_made_before_a_fork_works_after_it(site, brokers):
    async with process("fork", site.path) as forking:
        assert await line(forking) == ["0", "0"]
    assert await payloads(brokers()) == [b"x", b"x"]


async def test_a_process_that_closes_nothing_ends_all_the_same(site):
    async with process("leave", site.path) as leaving:
        assert await line(leaving) == ["left"]
        assert await within(leaving.wait(), 30) == 0


async def test_a_tail_of_a_broker_that_was_closed_is_none(broker):
    await broker.close()
    with pytest.raises(BrokerDown, match="closed"):
        await anext(broker.tail(None))
