"""What a Hub on a file of SQLite makes of all that goes wrong: with other processes, real locks and full disks."""

# ruff: noqa: F811  # a test has what it takes by name, and its fixtures are imported

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
from tests.hub.sink import live, start

from aiohttp_interceptors.brokers.sqlite import connection as sqlite_file
from aiohttp_interceptors.exceptions import BrokerDown, BrokerRefused, OutcomeUnknown
from aiohttp_interceptors.hub import replication as supervision
from aiohttp_interceptors.hub.broker import CaughtUp
from aiohttp_interceptors.hub.hub import Hub
from tests.brokers.contract import brokers, tail  # noqa: F401  # fixtures
from tests.brokers.nodes import closed_at_every_moment, hub_on, texts  # noqa: F401  # a fixture
from tests.brokers.sqlite_process import PAYLOAD, line, process
from tests.brokers.sqlite_site import SqliteSite, site  # noqa: F401  # a fixture
from tests.waiting import until, within


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A file is back at once, and so is who follows it."""
    monkeypatch.setattr(supervision, "LONGEST_DELAY", 0.01)


@pytest.fixture
def node(site, hub_on):
    """Make Hubs, each as one process has it."""
    return lambda *, ready=True, **options: hub_on(site.broker(**options), ready=ready)


@pytest.mark.parametrize("acknowledged", [0, 40, 400])
async def test_what_a_killed_process_had_acknowledged_comes_once(site, brokers, acknowledged):
    broker = brokers()
    async with tail(broker) as reading:
        await reading.until(CaughtUp)
        async with process("publish", site.path) as publishing:
            said = [await line(publishing) for _ in range(acknowledged)]
            if not acknowledged:
                await until(site.path.exists)
            publishing.kill()
            rest = (await within(publishing.stdout.read())).decode().splitlines(keepends=True)
            said += [words.split() for words in rest if words.endswith("\n")]
        # What it did not come to say is unknown, and a retry with its key is no second one.
        sure = {int(which) for which, _, _ in said}
        after = max(sure, default=-1) + 10
        for which in range(after):
            await broker.publish("t", PAYLOAD % which, idempotency_key=f"key {which}")
        await reading.payloads(after)
        assert sorted(int(entry.payload[7:]) for entry in reading.entries) == list(range(after))
        positions = {int(entry.payload[7:]): (reading.position.epoch, str(entry.offset)) for entry in reading.entries}
        assert {int(which): (epoch, offset) for which, epoch, offset in said}.items() <= positions.items()
    assert site.sql("PRAGMA integrity_check") == [("ok",)]


async def test_four_processes_have_each_event_once_under_one_id(site, node):
    """Peer bug 63."""
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


async def test_processes_that_start_at_once_make_one_log(site):
    async with AsyncExitStack() as stack:
        others = [await stack.enter_async_context(process("publish", site.path)) for _ in range(4)]
        lines = [await line(other) for other in others for _ in range(20)]
        assert len({epoch for _, epoch, _ in lines}) == 1
        for other in others:
            other.kill()
            await other.communicate()
    ((entries, keys, last),) = site.sql("SELECT count(*), count(DISTINCT payload), max(position) FROM entry")
    assert entries == keys == last >= 20  # for they have the same keys


async def test_a_node_that_joins_late_delivers_no_history_to_live_streams(node):
    """Peer bug 61."""
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
    await until(lambda: one.log.end == late.log.end == 6)


async def test_a_process_that_stops_with_the_lock_stops_nobody_for_longer_than_is_said(site, node):
    """Peer bugs 59 and 64: what failed is not delivered, and what is retried is so once."""
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
        assert hub.ready  # to read needs no lock
        assert sink.texts == ["before"]
        await until(lambda: stopped(holding.pid))
        holding.send_signal(signal.SIGCONT)
        await within(holding.wait())
    for n in range(3):
        await hub.publish("t", f"{n}", idempotency_key=f"{n}")
    await texts(sink, 4)
    assert sink.texts[0] == "before"
    assert sorted(sink.texts[1:]) == ["0", "1", "2"]


def stopped(pid):
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


@pytest.fixture(params=["limit", "disk"])
def full(request, tmp_path):
    """Have a path where there is little room, and return it, the room, and what makes more."""
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


async def test_a_disk_that_is_full_is_told_of_and_used_again_when_there_is_room(full):
    path, room, make_room = full
    async with process("fill", path, room) as filling:
        said = [await line(filling)]
        while said[-1][0].isdigit():
            said.append(await line(filling))
        *said, error = said
        assert len(said) > 20
        assert error[0] == "BrokerDown"
        assert {"full", "disk"} & set(error)
        site = SqliteSite(path)
        stored = site.sql("SELECT count(*) FROM entry")
        make_room()
        filling.stdin.write(b"\n")
        assert await line(filling) == [f"{len(said)}", f"{len(said) + 1}"]  # and it was not stored before
        assert await within(filling.wait(), 30) == 0
    assert stored == [(len(said),)]
    rows = site.sql("SELECT position, rtrim(CAST(payload AS TEXT), '.') FROM entry")
    assert rows == [(n + 1, f"{n}") for n in range(len(said) + 1)]
    assert site.sql("PRAGMA integrity_check") == [("ok",)]


async def test_a_file_that_is_deleted_while_streams_are_open_is_a_gap_and_no_end(site, node, logged):
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
    assert [entry["event"] for entry in logged if "rewound" in entry["event"]] == ["hub_rewound", "hub_rewound"]


async def test_an_older_copy_in_place_of_the_file_is_a_gap_and_no_id_is_given_twice(site, node, tmp_path):
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


async def test_a_folder_that_comes_later_is_waited_for(tmp_path, logged):
    site = SqliteSite(tmp_path / "mounted" / "hub.db")
    hub = Hub(site.broker())
    sink = start(hub, "t")
    with pytest.raises(BrokerRefused, match="folder"):
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


async def test_a_damaged_file_is_told_of_until_it_is_moved_away(site, node, tmp_path):
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
async def test_a_file_that_is_cut_short_under_processes_that_write_is_refused_by_those_who_find_it_out(
    site, node, tmp_path, kept
):
    """What SQLite has in its cache would go on for long, and come to nothing."""
    hub, other = await node(), await node()
    sink = await live(hub, "t")
    async with AsyncExitStack() as stack:
        for number in range(2):
            writing = await stack.enter_async_context(process("publish", site.path, number))
            assert await line(writing) == ["up"]
        await asyncio.gather(*[hub.publish("other", "x" * 8000) for _ in range(300)])
        before = hub.log.epoch
        os.truncate(site.path, {"a page": 4096, "half": site.path.stat().st_size // 8192 * 4096}[kept])
        refused = [asyncio.create_task(_refused(one)) for one in (hub, other)]
        # What the cut took of the latter half may not be met by one of them, who goes on then.
        first = asyncio.FIRST_COMPLETED if kept == "half" else asyncio.ALL_COMPLETED
        done, pending = await within(asyncio.wait(refused, return_when=first))
        assert all("move it away" in task.result() for task in done)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        site.move(tmp_path / "damaged")
    await until(lambda: hub.log.epoch == other.log.epoch != before)
    await until(lambda: hub.ready and other.ready)
    await other.publish("t", "new")
    await until(lambda: sink.frames[-1].data == "new")
    assert "gap" in sink.texts


async def test_a_file_that_is_cut_to_nothing_under_processes_that_write_is_a_new_one_or_refused(site, node, tmp_path):
    """It is a new one if the last who had it open had nothing more to write."""
    hub, other = await node(), await node()
    sink = await live(hub, "t")
    before = hub.log.epoch

    def is_new():
        return hub.log.epoch == other.log.epoch != before and hub.ready and other.ready

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
    """Publish until that is refused and the Hub is not ready, and return why."""
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
async def test_a_file_that_is_moved_away_under_processes_that_write_leaves_nothing_to_the_new_one(
    site, node, tmp_path, order
):
    hubs = [await node(), await node()]
    sinks = [await live(hub, "t") for hub in hubs]
    async with AsyncExitStack() as stack:
        for number in range(2):
            writing = await stack.enter_async_context(process("publish", site.path, number))
            assert await line(writing) == ["up"]
        for round_ in range(3):
            before = hubs[0].log.epoch
            site.move(tmp_path / f"moved-{round_}", ORDERS[order])
            await until(lambda: hubs[0].log.epoch == hubs[1].log.epoch != before)  # noqa: B023  # waited for here
            await until(lambda: all(hub.ready for hub in hubs))
            await asyncio.gather(*[_more(sink, 50) for sink in sinks])
    for sink in sinks:
        ids = [frame.id for frame in sink.frames if frame.id]
        assert len(set(ids)) == len(ids)
        assert "gap" in sink.texts
    assert site.sql("PRAGMA quick_check") == [("ok",)]


@pytest.fixture
async def idle(site):
    """Someone who has the file open, so that what is beside it stays there, and does nothing."""
    broker = site.broker()
    await broker.publish("t", b"0")
    with closing(sqlite3.connect(site.path)) as connection:
        connection.execute("SELECT * FROM log").fetchall()
        await broker.close()
        yield connection


async def test_a_file_is_made_when_what_was_beside_the_one_before_it_is_moved_too(site, brokers, idle, monkeypatch):
    """Until then, or until that takes too long: it would be taken for the new one's."""
    monkeypatch.setattr(sqlite_file, "MOVING", 3600.0)
    broker = brokers(publish_timeout=0.2)
    site.path.unlink()
    with pytest.raises(BrokerDown, match="it is not there, and what is beside it is"):
        await broker.publish("t", b"1")
    assert not site.path.exists()
    site.remove()
    await broker.publish("t", b"2")
    assert await payloads(brokers()) == [b"2"]


async def test_a_file_is_made_after_a_while_though_what_was_beside_the_one_before_it_stays(
    site, brokers, idle, monkeypatch
):
    broker = brokers(publish_timeout=0.2)
    site.path.unlink()
    with pytest.raises(BrokerDown, match="what is beside it is"):
        await broker.publish("t", b"1")
    monkeypatch.setattr(sqlite_file, "MOVING", 0.0)
    await broker.publish("t", b"2")
    assert await payloads(brokers()) == [b"2"]


async def test_a_file_that_was_cut_to_nothing_is_refused_while_someone_has_it_open(site, brokers, idle):
    os.truncate(site.path, 0)
    with pytest.raises(BrokerRefused, match="cut to nothing; move it away"):
        await brokers().publish("t", b"1")
    site.move(f"{site.path}.damaged")
    await brokers().publish("t", b"2")
    assert await payloads(brokers()) == [b"2"]


async def test_who_has_open_what_was_deleted_beside_the_file_leaves_it(site, brokers):
    """What was in it alone is lost, and that is told."""
    broker = brokers()
    before = await broker.publish("t", b"before")
    for end in "-wal", "-shm":
        Path(f"{site.path}{end}").unlink()
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
    """Return all that is in the log."""
    async with tail(broker) as reading:
        await reading.until(CaughtUp)
        return [entry.payload for entry in reading.entries]


async def _more(sink, count):
    """Wait until more has come."""
    mark = len(sink.frames)
    await until(lambda: len(sink.frames) >= mark + count)


async def test_a_file_behind_a_symbolic_link_is_followed_to_another_one(site, node, tmp_path):
    """As a deployment has it that changes a link."""
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


async def test_those_who_close_at_once_leave_the_file_alone(site):
    """Each would leave it to the other to be the last, and a damaged file would be whole by what is beside it."""
    for _ in range(100):
        brokers = [site.broker() for _ in range(3)]
        for broker in brokers:
            await broker.publish("t", b"x")
        await asyncio.gather(*[broker.close() for broker in brokers])
        assert list(site.path.parent.iterdir()) == [site.path]


async def test_a_process_that_was_stopped_while_it_opened_the_file_is_waited_for(site, node):
    async with process("hold_opening", site.path) as opening:
        assert await line(opening) == ["held"]
        hub = await node(ready=False)
        with pytest.raises(BrokerDown, match="another process"):
            await hub.publish("t", "lost")
        opening.send_signal(signal.SIGCONT)
        await until(lambda: hub.ready)
        await hub.publish("t", "x")


async def test_a_process_that_has_no_file_to_open_is_down_until_it_has(brokers):
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


async def test_what_is_beside_the_file_is_taken_into_it_when_it_may_grow_no_more(tmp_path):
    """It would fill a small disk, with next to nothing in the file, and stay as it is when there is room again."""
    async with process("churn", tmp_path / "hub.db", 400_000, 500) as churning:
        assert await line(churning) == ["500"]
        assert await within(churning.wait(), 30) == 0
    site = SqliteSite(tmp_path / "hub.db")
    ((first, last, count),) = site.sql("SELECT min(position), max(position), count(*) FROM entry")
    assert (last, last - first + 1) == (500, count)


async def test_an_event_of_a_megabyte_comes_to_other_processes(node):
    """Peer bug 65."""
    one, other = await node(), await node()
    sink = await live(other, "t")
    await one.publish("t", "x" * 1_000_000)
    await texts(sink, 1)
    assert sink.texts == ["x" * 1_000_000]


async def test_processes_come_and_go_and_each_event_is_there_once(site, node):
    """Some are closed, some are killed."""
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


async def test_a_hub_closes_at_every_moment_of_its_beginning(site, logged):
    await closed_at_every_moment(site.broker)
    assert [entry for entry in logged if "end" in entry["event"]] == []
