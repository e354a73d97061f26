"""Faults of a NATS server: killed, frozen, wiped, restored from an older copy, and a network that fails."""

# ruff: noqa: F811  # fixtures are imported, and arguments of tests

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from contextlib import aclosing

import pytest
from nats.aio.client import Client

from aiohttp_interceptors.brokers.nats import connection as nats_connection
from aiohttp_interceptors.exceptions import BrokerDown, BrokerError, BrokerRefused, OutcomeUnknown
from aiohttp_interceptors.hub import replication
from aiohttp_interceptors.hub.broker import CaughtUp, LogPosition, Truncated
from aiohttp_interceptors.hub.hub import Hub
from tests.brokers.contract import brokers, number, tail  # noqa: F401  # fixtures
from tests.brokers.nats_site import NatsSite
from tests.brokers.nodes import (  # noqa: F401  # fixtures
    changes,
    closed_at_every_moment,
    hub_on,
    network,
    persist,
    texts,
    waits_for_an_id_that_may_still_come,
)
from tests.hub.sink import live, start
from tests.servers.nats import Nats
from tests.waiting import run_other_tasks, until, within

SHORT_TIMEOUTS = {"read_timeout": 3.0, "publish_timeout": 2.0}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Reconnect almost without a delay: the servers restart at once."""
    monkeypatch.setattr(replication, "MAX_RECONNECT_DELAY", 0.05)


@pytest.fixture
def server(own, tmp_path):
    """A server for one test, which keeps what it acknowledges."""
    return own(Nats(tmp_path / "nats", durable=True))


@pytest.fixture
def site(server):
    return NatsSite(server)


@pytest.fixture
def node(site, hub_on):
    """Make Hubs, each of which stands for one process."""
    return lambda *, ready=True, **options: hub_on(site.broker(**{"read_timeout": 5.0, **options}), ready=ready)


def through(network):
    return f"nats://127.0.0.1:{network.port}"


async def test_records_that_a_killed_server_acknowledged_are_delivered_once(node, server, logged):
    """A publish in progress raises, and its retry with the same key stores the record once."""
    hub, other = await node(), await node()
    sink, elsewhere = await live(hub, "t"), await live(other, "t")
    ids, failures = {}, []

    async def publish(which):
        for n in range(100):
            text = f"{which}-{n}"
            try:
                ids[text] = await hub.publish("t", text, idempotency_key=text)
            except BrokerError as error:
                failures.append(error)
                ids[text] = await persist(hub, text)

    publishing = [asyncio.create_task(publish(which)) for which in range(4)]
    await until(lambda: len(ids) > 100)
    server.freeze()  # so that there is a publish in progress when it is killed
    await run_other_tasks(20)
    server.kill()
    server.restart()
    await within(asyncio.gather(*publishing), 30)
    await texts(sink, 400)
    await texts(elsewhere, 400)
    assert {type(error) for error in failures} <= {BrokerDown, OutcomeUnknown}
    assert failures
    assert sink.texts == elsewhere.texts
    assert sorted(sink.texts) == sorted(ids)
    assert {frame.data: frame.id for frame in sink.frames} == ids
    assert changes(logged) == ["hub_up", "hub_up", "hub_down", "hub_down", "hub_resumed", "hub_resumed"]


async def test_a_frozen_server_is_lost_within_the_timeouts(node, server, logged):
    hub = await node(**SHORT_TIMEOUTS)
    sink = await live(hub, "t")
    await hub.publish("t", "before")
    server.freeze()
    with pytest.raises(OutcomeUnknown):
        await within(hub.publish("t", "unknown", idempotency_key="unknown"))
    await until(lambda: not hub.ready)
    with pytest.raises(BrokerDown):
        await within(hub.publish("t", "lost"))
    assert not sink.ends
    server.thaw()
    await until(lambda: hub.ready)
    await persist(hub, "unknown")
    await persist(hub, "after")
    await texts(sink, 3)
    assert sink.texts == ["before", "unknown", "after"]
    assert changes(logged) == ["hub_up", "hub_down", "hub_resumed"]


async def test_a_frozen_server_that_reads_nothing_blocks_neither_publish_nor_close(own, tmp_path):
    server = own(Nats(tmp_path / "own", max_payload=40 * 2**20))
    broker = NatsSite(server).broker(read_timeout=60, publish_timeout=0.5)
    await broker.publish("t", b"before")
    server.freeze()
    publishing = [broker.publish("t", b"x" * (30 * 2**20), idempotency_key=f"{n}") for n in range(2)]
    outcomes = await within(asyncio.gather(*publishing, return_exceptions=True), 5)
    assert {type(outcome) for outcome in outcomes} <= {BrokerDown, OutcomeUnknown}
    await within(broker.close(), 5)
    server.kill()
    await until(lambda: not nats_connection._closing)


async def test_an_id_that_may_still_arrive_is_no_gap_while_the_server_is_frozen(node, server):
    await waits_for_an_id_that_may_still_come(await node(read_timeout=60), server)


@pytest.mark.parametrize("way", ["list", "factory"])
async def test_frozen_servers_leave_time_for_one_that_answers(own, tmp_path, server, way):
    """nats-py itself gives up after the first server that accepts the connection and does not answer."""
    frozen = [own(Nats(tmp_path / f"frozen {number}")) for number in range(2)]
    for one in frozen:
        one.freeze()
    urls = [one.url for one in frozen] + [server.url]

    async def connect(**options):
        client = Client()
        calls.append(client)
        try:
            await client.connect(urls[(len(calls) - 1) % 3], **options)
        except BaseException:
            await client.close()  # nats-py leaves the connection open
            raise
        return client

    calls = []
    broker = NatsSite(server).broker(connect=urls if way == "list" else connect, publish_timeout=12, read_timeout=6)
    for offset in range(1, 4):
        assert (await within(broker.publish("t", b"x"), 15)).offset == offset
        await broker._disconnect()
    async with tail(broker) as reading:
        assert len(await within(reading.payloads(3), 15)) == 3
    await broker.close()


async def test_a_client_that_is_returned_after_the_timeout_is_closed(site, server):
    made = []

    async def connect(**options):
        client = Client()
        await client.connect(server.url, **options)
        made.append(client)
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass  # as asyncio.wait_for of Python 3.11 does if its future is done in the same iteration
        return client

    broker = site.broker(connect=connect, publish_timeout=3)
    with pytest.raises((BrokerDown, OutcomeUnknown)):
        await within(broker.publish("t", b"x"))
    async with aclosing(broker.tail(None)) as items:
        count = len(made)
        reading = asyncio.create_task(anext(items))
        await until(lambda: len(made) > count)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(reading)
    await broker.close()
    await until(lambda: all(client.is_closed for client in made))


async def test_the_outcome_of_a_publish_to_a_server_that_dies_is_unknown_at_once(site, server):
    broker = site.broker(publish_timeout=60)
    await broker.publish("t", b"before")
    server.freeze()
    publishing = asyncio.create_task(broker.publish("t", b"x"))
    await until(lambda: broker._connection._pending)
    server.kill()
    with pytest.raises(OutcomeUnknown, match="lost"):
        await within(publishing)
    with pytest.raises(BrokerDown):
        await within(broker.publish("t", b"y"))
    await broker.close()


async def test_a_hub_connects_to_a_server_that_starts_later(site, server, logged):
    server.kill()
    hub = Hub(site.broker())
    sink = start(hub, "t")
    with pytest.raises(BrokerDown):
        await within(hub.publish("t", "lost"))
    await until(lambda: hub._replication_task._attempts > 3)
    assert not hub.ready
    assert not sink.ends
    server.restart()
    await until(lambda: hub.ready)
    await hub.publish("t", "x")
    await texts(sink, 1)
    assert sink.texts == ["x"]
    assert changes(logged) == ["hub_down", "hub_resumed"]
    await hub.close()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGUSR2])
async def test_a_hub_reconnects_to_a_server_that_was_shut_down(own, tmp_path, how):
    server = own(Nats(tmp_path / "own", config='lame_duck_duration: "30s"\nlame_duck_grace_period: "10ms"'))
    hub = Hub(NatsSite(server).broker())
    hub.open()
    await until(lambda: hub.ready)
    sink = await live(hub, "t")
    first = await hub.publish("t", "before")
    await texts(sink, 1)
    os.kill(server.pid, how)
    await until(lambda: not hub.ready)
    server.kill()
    server.restart()
    await until(lambda: hub.ready)
    assert (await persist(hub, "after")).split("-")[0] == first.split("-")[0]
    await texts(sink, 2)
    assert sink.texts == ["before", "after"]
    await hub.close()


async def test_a_wrong_password_is_refused_and_tried_again(own, tmp_path, logged):
    server = own(Nats(tmp_path / "own", password="right"))
    site = NatsSite(server)
    hub = Hub(site.broker(connect=server.url.replace("right", "wrong")))
    hub.open()
    with pytest.raises(BrokerRefused, match=r"(?i)authorization"):
        await within(hub.publish("t", "x"))
    await until(lambda: hub._replication_task._attempts > 2)
    assert not hub.ready
    await hub.close()
    assert [entry["event"] for entry in logged] == ["hub_down"]
    assert "uthorization" in logged[0]["error"]


async def test_a_publish_without_permission_is_refused_at_once(own, tmp_path):
    users = 'authorization { users: [{ user: "a", password: "b", permissions: { publish: { deny: "*.secret" } } }] }'
    server = own(Nats(tmp_path / "own", config=users))
    broker = NatsSite(server).broker(connect=f"nats://a:b@127.0.0.1:{server.port}", publish_timeout=60)
    allowed = asyncio.create_task(broker.publish("open", b"x"))
    with pytest.raises(BrokerRefused, match=r"(?i)permissions"):
        await within(broker.publish("secret", b"x"))
    assert isinstance(await within(allowed), LogPosition)
    await broker.close()


async def test_a_payload_above_the_default_max_payload_is_refused_with_the_setting(own, tmp_path):
    server = own(Nats(tmp_path / "own", max_payload=2**20))
    broker = NatsSite(server).broker()
    at_once = await asyncio.gather(
        broker.publish("t", b"x" * 2**20),
        broker.publish("t", b"x" * (2**20 + 1)),
        broker.publish("t", b"x" * 2**20, idempotency_key="k"),
        broker.publish("t", b"small"),
        return_exceptions=True,
    )
    assert [type(one) for one in at_once] == [LogPosition, BrokerRefused, BrokerRefused, LogPosition]
    assert "max_payload" in str(at_once[1])
    assert "1048577" in str(at_once[1])
    async with tail(broker) as reading:
        assert [len(payload) for payload in await reading.payloads(2)] == [2**20, 5]
    await broker.close()


async def test_a_consumer_that_was_deleted_is_created_again_at_the_same_position(site, node):
    hub, other = await node(), await node()
    sink = await live(hub, "t")
    for round_ in range(3):
        await other.publish("t", f"{round_}")
        await texts(sink, round_ + 1)
        async with site.administrator() as js:
            for consumer in await js.consumers_info(site.stream):
                await js.delete_consumer(site.stream, consumer.name)
        await until(lambda: not hub.ready)
        await until(lambda: hub.ready and other.ready)
    await other.publish("t", "3")
    await texts(sink, 4)
    assert sink.texts == ["0", "1", "2", "3"]


async def test_a_purge_is_no_gap_for_streams_that_had_everything(site, node, brokers):
    hub = await node()
    sink = await live(hub, "t")
    ids = [await hub.publish("t", f"{n}") for n in range(3)]
    await texts(sink, 3)
    async with site.administrator() as js:
        await js.purge_stream(site.stream)
    await hub.publish("t", "after")
    await texts(sink, 4)
    assert sink.texts == ["0", "1", "2", "after"]
    late = await node()
    returned = start(late, "t", after=ids[0])
    await texts(returned, 2)
    assert returned.texts == ["gap", "after"]


async def test_records_trimmed_while_a_process_was_disconnected_are_a_gap(network, node):
    hub, other = await node(connect=through(network), max_records=20), await node(max_records=20)
    sink = await live(hub, "t")
    await other.publish("t", "seen")
    await texts(sink, 1)
    network.cut()
    await until(lambda: not hub.ready)
    await asyncio.gather(*[other.publish("t", f"{n}") for n in range(100)])
    network.restore()
    await texts(sink, 22)
    assert sink.texts == ["seen", "gap", *[f"{n}" for n in range(80, 100)]]
    assert not sink.ends


async def test_a_connection_lost_during_publishes_loses_and_repeats_nothing(network, node):
    hub, other = await node(connect=through(network)), await node()
    sink = await live(hub, "t")

    async def publish():
        for n in range(200):
            await other.publish("t", f"{n}")

    publishing = asyncio.create_task(publish())
    for count in 20, 60, 120:
        await texts(sink, count)
        network.cut()
        network.restore()
    await within(publishing)
    await texts(sink, 200)
    assert sink.texts == [f"{n}" for n in range(200)]


async def test_a_network_that_delivers_nothing_is_noticed_and_no_record_is_missed(network, node, logged):
    hub, other = await node(connect=through(network), **SHORT_TIMEOUTS), await node()
    sink = await live(hub, "t")
    await hub.publish("t", "0")
    network.stall()
    with pytest.raises(OutcomeUnknown):
        await within(hub.publish("t", "1", idempotency_key="1"))
    await until(lambda: not hub.ready)
    await other.publish("t", "2")
    assert not sink.ends
    network.restore()
    await persist(hub, "1")
    await persist(hub, "3")
    await texts(sink, 4)
    assert sorted(sink.texts) == ["0", "1", "2", "3"]
    assert changes(logged) == ["hub_up", "hub_up", "hub_down", "hub_resumed"]


async def test_a_slow_network_does_not_count_as_lost(network, node, logged):
    """The history takes longer than the read timeout."""
    other = await node()
    await asyncio.gather(*[other.publish("t", f"{n:0>9000}") for n in range(100)])
    network.rate, network.delay = 300_000, 0.01
    hub = await node(connect=through(network), read_timeout=2)
    assert hub.history.end == 100
    sink = await live(hub, "t")
    await hub.publish("t", "x" * 50_000)
    await texts(sink, 1)
    assert [len(text) for text in sink.texts] == [50_000]
    assert changes(logged) == ["hub_up", "hub_up"]


@pytest.mark.parametrize("size", [100, 1000, 3000, 5000])
async def test_a_connection_that_is_cut_after_some_bytes_leaves_no_partial_entry(network, node, size):
    other = await node()
    for n in range(50):
        await other.publish("t", f"{n}" * 20)
    network.cut_after = size
    hub = await node(ready=False, connect=through(network))
    await until(lambda: hub._replication_task._attempts > 3 or hub.ready)
    network.cut_after = None
    await until(lambda: hub.ready)
    sink = start(hub, "t", replay=50)
    await texts(sink, 50)
    assert sink.texts == [f"{n}" * 20 for n in range(50)]


async def test_a_late_process_delivers_no_history_to_live_streams(node):
    one = await node()
    for n in range(5):
        await one.publish("t", f"{n}")
    late = await node(ready=False)
    early = start(late, "t")
    await until(lambda: late.ready)
    sink = await live(late, "t")
    await one.publish("t", "new")
    await texts(sink, 1)
    await texts(early, 1)
    assert sink.texts == early.texts == ["new"]
    await until(lambda: late.history.end == one.history.end == 6)


async def test_a_stream_that_is_deleted_under_hubs_is_a_gap(site, node):
    one, other = await node(), await node()
    sink, elsewhere = await live(one, "t"), await live(other, "t")
    ids = [await one.publish("t", f"{n}") for n in range(3)]
    await texts(sink, 3)
    await texts(elsewhere, 3)
    await site.wipe()
    ids += [await persist(other, f"{n}") for n in range(3, 6)]
    await texts(sink, 7)
    await texts(elsewhere, 7)
    assert sink.texts == elsewhere.texts == ["0", "1", "2", "gap", "3", "4", "5"]
    assert [frame.id for frame in sink.frames if frame.name != "gap"] == ids
    assert len(set(ids)) == 6


async def test_a_store_that_is_wiped_while_the_server_is_down_is_a_gap(site, server, node):
    hub = await node()
    sink = await live(hub, "t")
    await hub.publish("t", "old")
    await texts(sink, 1)
    server.kill()
    shutil.rmtree(server.folder / "store")
    server.restart()
    await persist(hub, "new")
    await texts(sink, 3)
    assert sink.texts == ["old", "gap", "new"]


async def save(server, hubs):
    """Copy the store of a server."""
    server.kill()
    shutil.copytree(server.folder / "store", server.folder / "saved")
    await until(lambda: not any(hub.ready for hub in hubs))
    server.restart()
    await until(lambda: all(hub.ready for hub in hubs))


async def restore(server, hubs):
    """Kill a server and replace its store by the copy, as if the disk had lost the latest writes."""
    server.kill()
    shutil.rmtree(server.folder / "store")
    shutil.move(server.folder / "saved", server.folder / "store")
    await until(lambda: not any(hub.ready for hub in hubs))


async def test_an_older_store_is_a_gap_and_no_id_is_assigned_twice(server, node):
    one, other = await node(), await node()
    sink, elsewhere = await live(one, "t"), await live(other, "t")
    ids = [await one.publish("t", f"{n}") for n in range(3)]
    await save(server, [one, other])
    ids += [await persist(one, f"{n}") for n in range(3, 6)]
    await texts(sink, 6)
    await texts(elsewhere, 6)
    await restore(server, [one, other])
    server.restart()
    ids += [await persist(other, f"{n}") for n in range(6, 9)]
    await texts(sink, 10)
    await texts(elsewhere, 10)
    assert sink.texts == elsewhere.texts == ["0", "1", "2", "3", "4", "5", "gap", "6", "7", "8"]
    assert [frame.id for frame in sink.frames if frame.name != "gap"] == ids
    assert sink.last_event_id == elsewhere.last_event_id
    assert len(set(ids)) == 9
    late = await node()
    assert late.history.epoch == one.history.epoch == other.history.epoch
    returned = start(late, "t", after=ids[1])
    await texts(returned, 5)
    assert returned.texts == ["gap", "2", "6", "7", "8"]
    lost = start(late, "t", after=ids[5])
    await texts(lost, 4)
    assert lost.texts == ["gap", "6", "7", "8"]


async def test_an_older_store_with_new_entries_at_the_same_offsets_is_noticed(network, server, node):
    hub = await node(connect=through(network))
    sink = await live(hub, "t")
    for n in range(3):
        await hub.publish("t", f"{n}")
    await save(server, [hub])
    for n in range(3, 6):
        await persist(hub, f"{n}")
    await texts(sink, 6)
    network.cut()
    await restore(server, [hub])
    server.restart()
    stranger = await node()  # did not see the lost entries, and uses their offsets
    for n in range(6, 12):
        await stranger.publish("t", f"{n}")
    strange = await live(stranger, "t")
    network.restore()
    await texts(sink, 13)
    assert sink.texts == ["0", "1", "2", "3", "4", "5", "gap", "6", "7", "8", "9", "10", "11"]
    await until(lambda: stranger.history.epoch == hub.history.epoch)
    await persist(stranger, "last")
    await texts(sink, 14)
    await until(lambda: strange.texts[-1:] == ["last"])
    assert sink.texts[-1] == "last"
    assert sink.last_event_id == strange.last_event_id


async def test_the_loss_of_an_entry_that_only_its_publisher_knows_is_noticed(server, site, node):
    hub = await node()
    await save(server, [hub])
    broker = site.broker()
    kept = await broker.publish("t", b"0")
    await broker.publish("t", b"1")
    await restore(server, [hub])
    server.restart()
    async with tail(broker) as reading:
        await reading.until(CaughtUp)
        assert reading.position.epoch != kept.epoch
        position = await broker.publish("t", b"2")
        assert position.epoch == reading.position.epoch
    async with tail(broker, kept) as reading:
        assert (await reading.until(Truncated)).position == LogPosition(position.epoch, 0)
        assert await reading.payloads(1) == [number(2)]
    await broker.close()


@pytest.mark.parametrize("way", ["url", "factory"])
async def test_a_hub_can_be_closed_at_every_moment_of_its_start(site, server, way, logged):
    """nats-py uses ``asyncio.wait_for``, which on Python 3.11 may swallow a cancellation."""

    async def connect(**options):
        client = Client()
        await asyncio.wait_for(client.connect(server.url, **options), 10)
        return client

    await closed_at_every_moment(lambda: site.broker(connect=server.url if way == "url" else connect))
    assert [entry for entry in logged if "end" in entry["event"]] == []
