"""Faults of a SQLite file: killed processes, locks, full disks, files that are replaced or damaged."""

# ruff: noqa: F811  # fixtures are imported, and arguments of tests

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
from contextlib import AsyncExitStack, closing
from pathlib import Path

import pytest

from aiohttp_interceptors.brokers.sqlite import connection as sqlite_connection
from aiohttp_interceptors.exceptions import BrokerDown, BrokerRefused, OutcomeUnknown
from aiohttp_interceptors.hub import replication
from aiohttp_interceptors.hub.broker import CaughtUp
from aiohttp_interceptors.hub.hub import Hub
from tests.brokers.contract import brokers, tail  # noqa: F401  # fixtures
from tests.brokers.nodes import closed_at_every_moment, hub_on, texts  # noqa: F401  # a fixture
from tests.brokers.sqlite_process import PAYLOAD, line, process
from tests.brokers.sqlite_site import SqliteSite, site  # noqa: F401  # a fixture
from tests.hub.sink import live, start
from tests.waiting import until, within


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Reconnect without a delay: a file needs no time to recover."""
    monkeypatch.setattr(replication, "MAX_RECONNECT_DELAY", 0.01)


@pytest.fixture
def node(site, hub_on):
    """Make Hubs, each of which stands for one process."""
    return lambda *, ready=True, **options: hub_on(site.broker(**options), ready=ready)


@pytest.mark.parametrize("acknowledged", [0, 40, 400])
async def test_records_that_a_killed_process_acknowledged_are_delivered_once(site, brokers, acknowledged):
    broker = brokers()
    async with tail(broker) as reading:
        await reading.until(CaughtUp)
        async with process("publish", site.path) as publishing:
            lines = [await line(publishing) for _ in range(acknowledged)]
            if not acknowledged:
                await until(site.path.exists)
            publishing.kill()
            rest = (await within(publishing.stdout.read())).decode().splitlines(keepends=True)
            lines += [words.split() for words in rest if words.endswith("\n")]
        # Records without a line may be stored; publishing them again with the same key stores no second one.
        known = {int(value) for value, _, _ in lines}
        after = max(known, default=-1) + 10
        for value in range(after):
            await broker.publish("t", PAYLOAD % value, idempotency_key=f"key {value}")
        await reading.payloads(after)
        assert sorted(int(entry.payload[7:]) for entry in reading.entries) == list(range(after))
        positions = {int(entry.payload[7:]): (reading.position.epoch, str(entry.offset)) for entry in reading.entries}
        assert {int(value): (epoch, offset) for value, epoch, offset in lines}.items() <= positions.items()
    assert site.sql("PRAGMA integrity_check") == [("ok",)]


async def test_four_processes_deliver_each_event_once_with_the_same_id(site, node):
    async with AsyncExitStack() as stack:
        others = [await stack.enter_async_context(process("follow", site.path, 50)) for _ in range(3)]
        for other in others:
            assert await line(other) == ["up"]
        hub = await node()
        here = await live(hub, "t")
        ids = [await hub.publish("t", str(n)) for n in range(50)]
        for other in others:
            lines = [await line(other) for _ in range(50)]
            assert [f"{epoch}-{offset}" for epoch, offset in lines] == ids
            assert await within(other.wait(), 30) == 0
        await texts(here, 50)
        assert here.texts == [str(n) for n in range(50)]
        assert [frame.id for frame in here.frames] == ids


async def test_processes_that_start_together_create_one_log(site):
    async with AsyncExitStack() as stack:
        others = [await stack.enter_async_context(process("publish", site.path)) for _ in range(4)]
        lines = [await line(other) for other in others for _ in range(20)]
        assert len({epoch for _, epoch, _ in lines}) == 1
        for other in others:
            other.kill()
            await other.communicate()
    ((entries, keys, last),) = site.sql("SELECT count(*), count(DISTINCT payload), max(offset) FROM entry")
    assert entries == keys == last >= 20  # all processes use the same idempotency keys


async def test_a_late_process_delivers_no_history_to_live_streams(node):
    one = await node()
    for n in range(5):
        await one.publish("t", str(n))
    late = await node(ready=False)
    early = start(late, "t")
    await until(lambda: late.ready)
    sink = await live(late, "t")
    await one.publish("t", "new")
    await texts(sink, 1)
    await texts(early, 1)
    assert sink.texts == early.texts == ["new"]
    await until(lambda: one.history.end == late.history.end == 6)


async def test_a_process_that_stops_with_the_write_lock_delays_others_for_publish_timeout_at_most(site, node):
    """Failed publishes are not delivered, and retried ones are delivered once."""
    hub = await node(publish_timeout=0.3)
    sink = await live(hub, "t")
    await hub.publish("t", "before")
    async with process("hold", site.path) as holding:
        assert await line(holding) == ["held"]
        failed = await within(
            asyncio.gather(
                *[hub.publish("t", f"{n}", idempotency_key=f"{n}") for n in range(3)], return_exceptions=True
            ),
            3,
        )
        assert {type(error) for error in failed} <= {BrokerDown, OutcomeUnknown}
        with pytest.raises((BrokerDown, OutcomeUnknown), match=r"locked|no answer"):
            await within(hub.publish("t", "lost"), 3)
        assert hub.ready  # reading needs no lock
        assert sink.texts == ["before"]
        await until(lambda: is_stopped(holding.pid))
        holding.send_signal(signal.SIGCONT)
        await within(holding.wait())
    for n in range(3):
        await hub.publish("t", f"{n}", idempotency_key=f"{n}")
    await texts(sink, 4)
    assert sink.texts[0] == "before"
    assert sorted(sink.texts[1:]) == ["0", "1", "2"]


def is_stopped(pid):
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


@pytest.fixture(params=["limit", "disk"])
def full(request, tmp_path):
    """Return a path on a small disk, its limit of the file size, and a function that makes the disk larger."""
    if request.param == "limit":
        yield tmp_path / "hub.db", 3_000_000, lambda: None
        return
    folder = tmp_path / "disk"
    folder.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    command = [mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder]
    if os.geteuid() or not mount or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a disk")
    yield folder / "hub.db", 0, lambda: subprocess.run([mount, "-o", "remount,size=64m", folder], check=True)
    subprocess.run([umount, folder], check=True)


async def test_a_full_disk_is_broker_down_until_there_is_space_again(full):
    path, limit, enlarge = full
    async with process("fill", path, limit) as filling:
        lines = [await line(filling)]
        while lines[-1][0].isdigit():
            lines.append(await line(filling))
        *lines, error = lines
        assert len(lines) > 20
        assert error[0] == "BrokerDown"
        assert {"full", "disk"} & set(error)
        site = SqliteSite(path)
        stored = site.sql("SELECT count(*) FROM entry")
        enlarge()
        filling.stdin.write(b"\n")
        assert await line(filling) == [f"{len(lines)}", f"{len(lines) + 1}"]  # the failed publish was not stored
        assert await within(filling.wait(), 30) == 0
    assert stored == [(len(lines),)]
    rows = site.sql("SELECT offset, rtrim(CAST(payload AS TEXT), '.') FROM entry")
    assert rows == [(n + 1, f"{n}") for n in range(len(lines) + 1)]
    assert site.sql("PRAGMA integrity_check") == [("ok",)]


async def test_deleting_the_file_gives_open_streams_a_gap(site, node, logged):
    one, other = await node(), await node()
    sink, elsewhere = await live(one, "t"), await live(other, "t")
    await one.publish("t", "old")
    await texts(sink, 1)
    await texts(elsewhere, 1)
    site.remove()
    await other.publish("t", "new")
    await texts(sink, 3)
    await texts(elsewhere, 3)
    assert sink.texts == elsewhere.texts == ["old", "gap", "new"]
    assert sink.last_event_id == elsewhere.last_event_id
    assert sink.ends == []
    assert [entry["event"] for entry in logged if "truncated" in entry["event"]] == ["hub_truncated", "hub_truncated"]


async def test_replacing_the_file_with_an_older_copy_gives_a_gap_and_no_id_twice(site, node, tmp_path):
    hub = await node()
    sink = await live(hub, "t")
    ids = [await hub.publish("t", "0")]
    site.copy(tmp_path / "backup")
    ids += [await hub.publish("t", f"{n}") for n in range(1, 4)]
    await texts(sink, 4)
    site.remove()
    os.replace(tmp_path / "backup", site.path)  # noqa: PTH105
    ids += [await hub.publish("t", f"{n}") for n in range(4, 8)]
    await texts(sink, 9)
    assert sink.texts == ["0", "1", "2", "3", "gap", "4", "5", "6", "7"]
    assert len(set(ids)) == 8


async def test_a_missing_directory_is_waited_for(tmp_path, logged):
    site = SqliteSite(tmp_path / "mounted" / "hub.db")
    hub = Hub(site.broker())
    sink = start(hub, "t")
    with pytest.raises(BrokerRefused, match="its directory"):
        await hub.publish("t", "lost")
    await until(lambda: hub._replication_task._attempts > 3)
    assert not hub.ready
    assert not sink.ends
    site.path.parent.mkdir()
    await until(lambda: hub.ready)
    await hub.publish("t", "x")
    await texts(sink, 1)
    assert sink.texts == ["x"]
    changes = [entry["event"] for entry in logged if entry["event"].startswith("hub_")]
    assert changes == ["hub_down", "hub_resumed"]
    await hub.close()


async def test_a_damaged_file_is_refused_until_it_is_moved_away(site, node, tmp_path):
    hub = await node()
    sink = await live(hub, "t")
    await asyncio.gather(*[hub.publish("t", f"{n}") for n in range(200)])
    await texts(sink, 200)
    await hub.close()
    with site.path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(site.path.stat().st_size - 4096))
    damaged = await node(ready=False)
    with pytest.raises(BrokerRefused, match="move it away"):
        await damaged.publish("t", "x")
    await until(lambda: damaged._replication_task._attempts > 2)
    assert not damaged.ready
    site.path.rename(tmp_path / "damaged")
    await until(lambda: damaged.ready)
    late = await live(damaged, "t")
    await damaged.publish("t", "y")
    await texts(late, 1)
    assert late.texts == ["y"]


@pytest.mark.parametrize("kept", ["a page", "half"])
async def test_truncating_the_file_under_writing_processes_is_refused_by_those_that_notice(site, node, tmp_path, kept):
    """From its page cache alone, SQLite could continue for long, and the records would be lost."""
    hub, other = await node(), await node()
    sink = await live(hub, "t")
    async with AsyncExitStack() as stack:
        for number in range(2):
            writing = await stack.enter_async_context(process("publish", site.path, number))
            assert await line(writing) == ["up"]
        await asyncio.gather(*[hub.publish("other", "x" * 8000) for _ in range(300)])
        before = hub.history.epoch
        os.truncate(site.path, {"a page": 4096, "half": site.path.stat().st_size // 8192 * 4096}[kept])
        refused = [asyncio.create_task(_refused(one)) for one in (hub, other)]
        # One of them may not need any page of the second half, and continues.
        first = asyncio.FIRST_COMPLETED if kept == "half" else asyncio.ALL_COMPLETED
        done, pending = await within(asyncio.wait(refused, return_when=first))
        assert all("move it away" in task.result() for task in done)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        site.move(tmp_path / "damaged")
    await until(lambda: hub.history.epoch == other.history.epoch != before)
    await until(lambda: hub.ready and other.ready)
    await other.publish("t", "new")
    await until(lambda: sink.frames[-1].data == "new")
    assert "gap" in sink.texts


async def test_truncating_the_file_to_nothing_under_writing_processes_gives_a_new_one_or_is_refused(
    site, node, tmp_path
):
    """It is a new one if no process has written to the ``-wal`` again."""
    hub, other = await node(), await node()
    sink = await live(hub, "t")
    before = hub.history.epoch

    def is_new():
        return hub.history.epoch == other.history.epoch != before and hub.ready and other.ready

    async with AsyncExitStack() as stack:
        for number in range(2):
            writing = await stack.enter_async_context(process("publish", site.path, number))
            assert await line(writing) == ["up"]
        await asyncio.gather(*[hub.publish("other", "x" * 8000) for _ in range(300)])
        os.truncate(site.path, 0)
        await until(lambda: is_new() or not (hub.ready or other.ready))
        if not is_new():
            site.move(tmp_path / "damaged")
    await until(is_new)
    await other.publish("t", "new")
    await until(lambda: sink.frames[-1].data == "new")
    assert "gap" in sink.texts


async def _refused(hub):
    """Publish until it is refused and the Hub is not ready, and return the error."""
    while True:
        try:
            await hub.publish("t", "lost")
        except BrokerRefused as error:
            await until(lambda: not hub.ready)
            return str(error)
        except BrokerDown:
            pass
        await asyncio.sleep(0)


ORDERS = {"alone": [""], "first": ["", "-wal", "-shm"], "last": ["-wal", "-shm", ""]}


@pytest.mark.parametrize("order", ORDERS)
async def test_moving_the_file_away_under_writing_processes_starts_a_clean_one(site, node, tmp_path, order):
    hubs = [await node(), await node()]
    sinks = [await live(hub, "t") for hub in hubs]
    async with AsyncExitStack() as stack:
        for number in range(2):
            writing = await stack.enter_async_context(process("publish", site.path, number))
            assert await line(writing) == ["up"]
        for round_ in range(3):
            before = hubs[0].history.epoch
            site.move(tmp_path / f"moved-{round_}", ORDERS[order])
            await until(lambda: hubs[0].history.epoch == hubs[1].history.epoch != before)  # noqa: B023  # waited for here
            await until(lambda: all(hub.ready for hub in hubs))
            await asyncio.gather(*[_receive(sink, 50) for sink in sinks])
    for sink in sinks:
        ids = [frame.id for frame in sink.frames if frame.id]
        assert len(set(ids)) == len(ids)
        assert "gap" in sink.texts
    assert site.sql("PRAGMA quick_check") == [("ok",)]


@pytest.fixture
async def idle(site):
    """An idle connection that keeps the file open, so that its ``-wal`` and ``-shm`` are not deleted."""
    broker = site.broker()
    await broker.publish("t", b"0")
    with closing(sqlite3.connect(site.path)) as connection:
        connection.execute("SELECT * FROM log").fetchall()
        await broker.close()
        yield connection


async def test_a_new_file_is_created_once_the_old_wal_has_been_moved_away_too(site, brokers, idle, monkeypatch):
    """SQLite would apply the old ``-wal`` to the new file."""
    monkeypatch.setattr(sqlite_connection, "ORPHAN_DELAY", 3600.0)
    broker = brokers(publish_timeout=0.2)
    site.path.unlink()
    with pytest.raises(BrokerDown, match="the file is missing, but its -wal or -shm is still there"):
        await broker.publish("t", b"1")
    assert not site.path.exists()
    site.remove()
    await broker.publish("t", b"2")
    assert await payloads(brokers()) == [b"2"]


async def test_a_new_file_is_created_after_a_delay_although_the_old_wal_stays(site, brokers, idle, monkeypatch):
    broker = brokers(publish_timeout=0.2)
    site.path.unlink()
    with pytest.raises(BrokerDown, match="is still there"):
        await broker.publish("t", b"1")
    monkeypatch.setattr(sqlite_connection, "ORPHAN_DELAY", 0.0)
    await broker.publish("t", b"2")
    assert await payloads(brokers()) == [b"2"]


async def test_a_file_truncated_to_nothing_is_refused_while_it_is_open(site, brokers, idle):
    os.truncate(site.path, 0)
    with pytest.raises(BrokerRefused, match="truncated to nothing; move it away"):
        await brokers().publish("t", b"1")
    site.move(f"{site.path}.damaged")
    await brokers().publish("t", b"2")
    assert await payloads(brokers()) == [b"2"]


async def test_deleting_the_wal_of_an_open_file_starts_a_new_epoch(site, brokers):
    """Transactions that were only in the ``-wal`` are lost."""
    broker = brokers()
    before = await broker.publish("t", b"before")
    for suffix in "-wal", "-shm":
        Path(f"{site.path}{suffix}").unlink()
    async with process("publish", site.path) as publishing:
        await line(publishing)
        after = await broker.publish("t", b"after")
        assert after.epoch != before.epoch
        while int((await line(publishing))[2]) < after.offset:
            pass
    found = await payloads(broker)
    assert found.count(b"after") == 1
    assert len(found) > 2


async def payloads(broker):
    """Return the payloads of the whole log."""
    async with tail(broker) as reading:
        await reading.until(CaughtUp)
        return [entry.payload for entry in reading.entries]


async def _receive(sink, count):
    """Wait until a sink has received so many more frames."""
    before = len(sink.frames)
    await until(lambda: len(sink.frames) >= before + count)


async def test_a_changed_symbolic_link_leads_to_the_new_file(site, node, tmp_path):
    """Some deployments switch a link."""
    for name in "blue", "green":
        (tmp_path / name).mkdir()
    site.path.symlink_to(tmp_path / "blue" / "hub.db")
    hub, other = await node(), await node()
    sink = await live(other, "t")
    await hub.publish("t", "in blue")
    await texts(sink, 1)
    (tmp_path / "new").symlink_to(tmp_path / "green" / "hub.db")
    (tmp_path / "new").rename(site.path)
    await hub.publish("t", "in green")
    await until(lambda: sink.texts[-1] == "in green")
    assert sink.texts == ["in blue", "gap", "in green"]
    await hub.close()
    await other.close()
    assert [path.name for path in (tmp_path / "green").iterdir()] == ["hub.db"]


async def test_brokers_that_close_together_leave_the_database_file_only(site):
    """Without a lock, each could leave the last checkpoint to another."""
    for _ in range(100):
        brokers = [site.broker() for _ in range(3)]
        for broker in brokers:
            await broker.publish("t", b"x")
        await asyncio.gather(*[broker.close() for broker in brokers])
        assert list(site.path.parent.iterdir()) == [site.path]


async def test_a_process_that_stopped_while_it_opened_the_file_is_waited_for(site, node):
    async with process("hold_opening", site.path) as opening:
        assert await line(opening) == ["held"]
        hub = await node(ready=False)
        with pytest.raises(BrokerDown, match="another process"):
            await hub.publish("t", "lost")
        opening.send_signal(signal.SIGCONT)
        await until(lambda: hub.ready)
        await hub.publish("t", "x")


async def test_too_many_open_files_is_broker_down(brokers):
    broker = brokers()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(BrokerDown, match="Too many open files"):
            await broker.publish("t", b"1")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    await broker.publish("t", b"2")
    assert await payloads(broker) == [b"2"]


async def test_the_wal_is_checkpointed_when_the_disk_is_full(tmp_path):
    """Otherwise a small disk stays full of a ``-wal``, although the file itself is small."""
    async with process("churn", tmp_path / "hub.db", 400_000, 500) as churning:
        assert await line(churning) == ["500"]
        assert await within(churning.wait(), 30) == 0
    site = SqliteSite(tmp_path / "hub.db")
    ((first, last, count),) = site.sql("SELECT min(offset), max(offset), count(*) FROM entry")
    assert (last, last - first + 1) == (500, count)


async def test_an_event_of_a_megabyte_is_delivered_to_other_processes(node):
    one, other = await node(), await node()
    sink = await live(other, "t")
    await one.publish("t", "x" * 1_000_000)
    await texts(sink, 1)
    assert sink.texts == ["x" * 1_000_000]


async def test_events_of_processes_that_are_closed_and_killed_are_delivered_once(site, node):
    hub = await node()
    sink = await live(hub, "t")
    expected = []
    for round_ in range(3):
        async with process("publish", site.path) as publishing:
            lines = [await line(publishing) for _ in range(10)]
            publishing.kill()
            await publishing.communicate()
        expected += [await hub.publish("t", f"own {round_}")]
        expected += [f"{epoch}-{offset}" for _, epoch, offset in lines]
    await until(lambda: set(expected) <= {frame.id for frame in sink.frames})
    ids = [frame.id for frame in sink.frames]
    assert len(set(ids)) == len(ids)
    assert [int(each.partition("-")[2]) for each in ids] == list(range(1, len(ids) + 1))


async def test_a_hub_can_be_closed_at_every_moment_of_its_start(site, logged):
    await closed_at_every_moment(site.broker)
    assert [entry for entry in logged if "end" in entry["event"]] == []
