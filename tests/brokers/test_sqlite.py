"""The broker on a SQLite file."""

# ruff: noqa: F811  # fixtures are imported, and arguments of tests

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

from aiohttp_interceptors.brokers.sqlite import SqliteBroker
from aiohttp_interceptors.brokers.sqlite import tail as sqlite_tail
from aiohttp_interceptors.brokers.sqlite.log import BOOT_ID
from aiohttp_interceptors.exceptions import BrokerDown, BrokerError, BrokerRefused
from aiohttp_interceptors.hub.broker import CaughtUp, LogPosition, Subscribed, Trimmed, Truncated
from tests.brokers.contract import Contract, broker, brokers, number, tail, topics  # noqa: F401  # fixtures
from tests.brokers.sqlite_process import line, process
from tests.brokers.sqlite_site import SqliteSite, site  # noqa: F401  # a fixture
from tests.waiting import within

NOBODY = 65534  # the user ID


class TestSqlite(Contract):
    """The contract of all brokers."""


async def payloads(broker):
    async with tail(broker) as reading:
        await reading.until(CaughtUp)
        return [entry.payload for entry in reading.entries]


# Arguments.


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
def test_a_bad_argument_is_refused_with_its_value(error, path, options):
    with pytest.raises(error) as raised:
        SqliteBroker(path, **options)
    assert repr([path, *options.values()][-1]) in str(raised.value)


async def test_an_unused_broker_creates_no_file(site):
    broker = site.broker()
    assert not list(site.path.parent.iterdir())
    await broker.close()
    assert not list(site.path.parent.iterdir())


async def test_the_process_may_change_its_working_directory(site, brokers, monkeypatch):
    monkeypatch.chdir(site.path.parent)
    here = SqliteBroker("hub.db")
    monkeypatch.chdir("/")
    await here.publish("t", b"x")
    await here.close()
    assert await payloads(brokers()) == [b"x"]


async def test_a_key_that_cannot_be_encoded_fails_its_own_publish_only(broker):
    bad, good = await asyncio.gather(
        broker.publish("t", b"bad", idempotency_key="\udc00"), broker.publish("t", b"good"), return_exceptions=True
    )
    assert isinstance(bad, ValueError)
    assert good.offset == 1


async def test_a_topic_that_cannot_be_encoded_leaves_no_lock(site, brokers):
    one, other = brokers(publish_timeout=1), brokers(publish_timeout=1)
    with pytest.raises((BrokerError, ValueError)):
        await one.publish("\udc00", b"x")
    assert (await other.publish("t", b"x")).offset == 1
    assert (await one.publish("t", b"y")).offset == 2


# From one process to the next.


async def test_history_positions_and_keys_survive_a_restart(site):
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
async def test_closing_all_brokers_leaves_the_database_file_only(site, synchronous):
    one, other = site.broker(synchronous=synchronous), site.broker(synchronous=synchronous)
    async with tail(one) as reading, tail(other) as also:
        await reading.until(CaughtUp)
        await also.until(CaughtUp)
        await one.publish("t", b"x")
        await also.payloads(1)
    await one.close()
    await other.close()
    assert list(site.path.parent.iterdir()) == [site.path]


async def test_a_copy_of_the_file_starts_a_new_epoch(site, brokers, tmp_path):
    """Its offsets would otherwise name other records than those of the original."""
    first = await brokers().publish("t", b"x")
    copied = SqliteSite(tmp_path / "copy.db")
    site.copy(copied.path)
    copy = copied.broker()
    async with tail(copy, first) as reading:
        await reading.item()
        truncated = await reading.item()
        assert isinstance(truncated, Truncated)
        assert truncated.position.offset == first.offset
        assert truncated.position.epoch != first.epoch
        assert await copy.publish("t", b"y") == LogPosition(truncated.position.epoch, 2)
    await copy.close()
    again = copied.broker()
    assert (await again.publish("t", b"z")).epoch == truncated.position.epoch
    await again.close()


@pytest.mark.skipif(not BOOT_ID.exists(), reason="this operating system has no boot ID")
async def test_after_a_reboot_synchronous_normal_starts_a_new_epoch(site):
    """With NORMAL, SQLite does not wait for the disk, so that a crash of the machine may lose acknowledged records."""
    before = site.broker(synchronous="NORMAL")
    first = await before.publish("t", b"x")
    await before.close()
    same = site.broker(synchronous="NORMAL")
    assert (await same.publish("t", b"y")).epoch == first.epoch
    await same.close()
    (boot,) = BOOT_ID.read_text().split()
    site.sql(f"UPDATE log SET identity = replace(identity, '{boot}', 'the one before')")
    after = site.broker(synchronous="NORMAL")
    position = await after.publish("t", b"z")
    assert position.offset == 3
    assert position.epoch != first.epoch
    await after.close()


# Retention.


async def test_the_newest_entries_are_kept(site, brokers):
    broker = brokers(max_records=10)
    for n in range(25):
        await broker.publish("t", number(n))
    assert await payloads(broker) == [number(n) for n in range(15, 25)]
    assert site.sql("SELECT count(*) FROM entry") == [(10,)]


async def test_old_entries_are_deleted_with_the_next_publish(site, brokers):
    broker = brokers(max_age=60)
    positions = [await broker.publish("t", number(n)) for n in range(5)]
    site.sql("UPDATE entry SET published_at = published_at - 61 WHERE offset <= 3")
    await broker.publish("t", b"new")
    async with tail(broker, positions[0]) as reading:
        await reading.item()
        assert await reading.item() == Trimmed(3)
        assert await reading.payloads(3) == [b"3", b"4", b"new"]
    async with tail(broker, positions[1]) as reading:
        await reading.item()
        assert await reading.item() == Trimmed(3)  # one entry


async def test_without_max_age_no_entry_is_too_old(site, brokers):
    broker = brokers(max_age=None)
    await broker.publish("t", b"old")
    site.sql("UPDATE entry SET published_at = 0")
    await broker.publish("t", b"new")
    assert await payloads(broker) == [b"old", b"new"]


async def test_a_large_surplus_is_deleted_step_by_step(site, brokers):
    many, few = brokers(), brokers(max_records=10)
    await asyncio.gather(*[many.publish("t", number(n)) for n in range(1000)])
    counts = []
    while not counts or counts[-1] > 10:
        await few.publish("t", b"x")
        counts += site.sql("SELECT count(*) FROM entry")[0]
    assert counts[0] > 800
    assert counts == sorted(counts, reverse=True)


async def test_offsets_of_deleted_entries_are_not_reused(site, brokers):
    broker = brokers(max_age=60)
    await broker.publish("t", b"x")
    site.sql("UPDATE entry SET published_at = 0")
    last = await broker.publish("t", b"y")
    site.sql("UPDATE entry SET published_at = 0")
    await broker.close()
    assert (await brokers(max_age=60).publish("t", b"z")).offset == last.offset + 1


async def test_an_idempotency_key_expires_after_its_window(site, brokers):
    broker = brokers(max_records=1)
    position = await broker.publish("t", b"x", idempotency_key="k")
    await broker.publish("t", b"y", idempotency_key="other")
    site.sql("UPDATE idempotency_key SET used_at = used_at - 119")
    assert await broker.publish("t", b"x", idempotency_key="k") == position
    site.sql("UPDATE idempotency_key SET used_at = used_at - 2")
    assert (await broker.publish("t", b"x", idempotency_key="k")).offset == 3
    assert site.sql("SELECT key FROM idempotency_key") == [("k",)]


async def test_the_files_stay_small_while_a_tail_is_open(site, brokers):
    broker = brokers(max_records=500)
    async with tail(broker) as reading:
        await reading.until(CaughtUp)
        for _ in range(10):
            positions = await asyncio.gather(*[broker.publish("t", b"x" * 1000) for _ in range(2000)])
            while reading.position < positions[-1]:
                await reading.item()
    sizes = [Path(f"{site.path}{suffix}").stat().st_size for suffix in ("", "-wal")]
    assert sizes[0] < 4 * 2**20
    assert sizes[1] < 16 * 2**20


async def test_a_batch_has_a_limited_number_of_bytes(broker):
    for _ in range(8):
        await broker.publish("t", b"x" * 300_000)
    async with tail(broker) as reading:
        await reading.item()
        first = await reading.item()
        assert 1 < len(first) < 8
        await reading.payloads(8)


async def test_an_age_is_not_negative_after_the_clock_was_set_back(site, brokers):
    broker = brokers()
    await broker.publish("t", b"of tomorrow")
    site.sql("UPDATE entry SET published_at = published_at + 86400")
    await broker.publish("t", b"of today")
    async with tail(broker) as reading:
        await reading.until(CaughtUp)
        assert [entry.payload for entry in reading.entries] == [b"of tomorrow", b"of today"]
        assert reading.entries[0].age == 0.0


# Bad files.


async def check_refused(broker, words):
    with pytest.raises(BrokerRefused, match=words):
        await broker.publish("t", b"x")
    with pytest.raises(BrokerRefused, match=words):
        async with tail(broker) as reading:
            await reading.item()


async def test_a_file_that_is_not_a_database_is_refused_and_unchanged(site, broker):
    site.path.write_bytes(b"the accounts of 1998" * 1000)
    await check_refused(broker, f"{site.path}.*another path")
    assert site.path.read_bytes() == b"the accounts of 1998" * 1000


@pytest.mark.parametrize("statement", ["CREATE TABLE account (x)", "PRAGMA application_id = 7"])
async def test_a_database_of_another_application_is_refused_and_unchanged(site, broker, statement):
    site.sql(statement)
    before = site.path.read_bytes()
    await check_refused(broker, "another application")
    assert site.path.read_bytes() == before


async def test_a_file_of_a_later_version_is_refused(site, brokers):
    await brokers().publish("t", b"x")
    site.sql("PRAGMA user_version = 2")
    await check_refused(brokers(), "version 2.*supports 1")


async def test_a_missing_directory_is_refused(tmp_path):
    broker = SqliteBroker(tmp_path / "missing" / "hub.db")
    await check_refused(broker, "missing/hub.db.*directory")
    await broker.close()


async def test_a_directory_at_the_path_is_refused(site, broker):
    site.path.mkdir()
    await check_refused(broker, "unable to open")


@contextmanager
def unprivileged_directory():
    """Make a directory, and act as a user who may not write to it."""
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


async def test_a_directory_without_write_permission_is_refused():
    with unprivileged_directory() as folder:
        if os.geteuid() != NOBODY:
            folder.chmod(0o555)
        broker = SqliteBroker(folder / "hub.db")
        await check_refused(broker, "hub.db.*allowed to write")
        await broker.close()


async def test_a_missing_table_is_refused(site, brokers):
    await brokers().publish("t", b"x")
    site.sql("DROP TABLE entry")
    await check_refused(brokers(), "no such table")


# Files that are deleted or replaced.


async def test_a_deleted_file_is_created_again_without_the_old_wal(site, brokers):
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


async def test_replacing_the_file_with_an_older_copy_truncates_the_log(site, brokers, tmp_path):
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
            truncated = await each.until(Truncated)
            assert truncated.position.offset == old.offset
            assert truncated.position.epoch != old.epoch
        assert reading.position == also.position
        assert await other.publish("t", b"new") == LogPosition(truncated.position.epoch, 6)
        await reading.payloads(11)
        assert reading.entries[-1].payload == b"new"
    assert await payloads(one) == [b"0", b"1", b"2", b"3", b"4", b"new"]


def restore(site, path):
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(site.path)) as target:
        source.backup(target)


async def test_restoring_a_backup_into_the_file_truncates_the_log(site, brokers, tmp_path):
    one, other, publisher = brokers(), brokers(), brokers()
    async with tail(one) as reading:
        await reading.until(CaughtUp)
        old = [await publisher.publish("t", number(n)) for n in range(5)][-1]
        site.copy(tmp_path / "backup")
        await asyncio.gather(*[publisher.publish("t", b"lost") for n in range(5)])
        await reading.payloads(10)
        await publisher.close()  # only the reader can notice the loss
        restore(site, tmp_path / "backup")
        truncated = await reading.until(Truncated)
        assert truncated.position.offset == old.offset
        assert truncated.position.epoch != old.epoch
        assert await other.publish("t", b"new") == LogPosition(truncated.position.epoch, 6)
        await reading.payloads(11)


async def test_publishing_after_a_restored_backup_uses_no_position_twice(site, brokers, tmp_path):
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


async def test_a_tail_that_missed_two_truncations_gets_the_last_common_position(site, brokers, tmp_path):
    late, broker = brokers(), brokers()
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
    async with tail(late, seen) as reading:
        assert await reading.item() == Subscribed(seen)
        assert await reading.item() == Truncated(LogPosition(last.epoch, 3))
        assert await reading.payloads(6) == [number(n) for n in range(3, 9)]
        assert reading.position == last


async def test_a_log_that_was_replaced_and_trimmed_gives_truncated_and_trimmed(site, brokers):
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


async def test_a_tail_raises_when_the_disk_does_not_answer(broker, monkeypatch):
    disk = threading.Event()
    async with tail(broker) as reading:
        await reading.until(CaughtUp)
        hanging = asyncio.create_task(broker._reading.run(lambda _: disk.wait()))
        with monkeypatch.context() as patch, pytest.raises(BrokerDown, match="disk"):
            patch.setattr(sqlite_tail, "READ_TIMEOUT", 0.05)
            while True:
                await reading.item()
        disk.set()
        await hanging
    async with tail(broker) as reading:
        await reading.until(CaughtUp)


async def test_reading_does_not_wait_for_a_write_lock(site, brokers):
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


async def test_a_broker_that_was_made_before_a_fork_works_afterwards(site, brokers):
    async with process("fork", site.path) as forking:
        assert await line(forking) == ["0", "0"]
    assert await payloads(brokers()) == [b"x", b"x"]


async def test_a_process_that_does_not_close_its_broker_exits(site):
    async with process("leave", site.path) as leaving:
        assert await line(leaving) == ["left"]
        assert await within(leaving.wait(), 30) == 0


async def test_a_tail_of_a_closed_broker_raises(broker):
    await broker.close()
    with pytest.raises(BrokerDown, match="closed"):
        await anext(broker.tail(None))
