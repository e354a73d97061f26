"""What Hubs on a NATS server make of all that goes wrong: with a real one, killed, frozen, wiped and set back."""

# ruff: noqa: F811  # a test has what it takes by name, and its fixtures are imported

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from contextlib import aclosing

import pytest
from nats.aio.client import Client
from tests.hub.sink import live, start

from aiohttp_interceptors.brokers.nats import connection as nats_session
from aiohttp_interceptors.exceptions import BrokerDown, BrokerError, BrokerRefused, OutcomeUnknown
from aiohttp_interceptors.hub import replication as supervision
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
from tests.servers.nats import Nats
from tests.waiting import until, within

QUICK = {"silence": 3.0, "publish_timeout": 2.0}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A server is back at once, and so is who follows it."""
    monkeypatch.setattr(supervision, "LONGEST_DELAY", 0.05)


@pytest.fixture
def server(own, tmp_path):
    """A server of the test's own, which keeps what it acknowledges."""
    return own(Nats(tmp_path / "nats", durable=True))


@pytest.fixture
def site(server):
    return NatsSite(server)


@pytest.fixture
def node(site, hub_on):
    """Make Hubs, each as one process has it."""
    return lambda *, ready=True, **options: hub_on(site.broker(**{"silence": 5.0, **options}), ready=ready)


def through(network):
    return f"nats://127.0.0.1:{network.port}"


async def test_what_a_killed_server_had_acknowledged_comes_once(node, server, logged):
    """Peer bugs 59 and 64: what failed is told, and what is tried again is stored once."""
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


async def test_a_server_that_holds_still_is_lost_within_the_time_that_is_said(node, server, logged):
    """Peer bug 60."""
    hub = await node(**QUICK)
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


async def test_what_a_still_server_does_not_take_is_unknown_and_closing_waits_for_nobody(own, tmp_path):
    server = own(Nats(tmp_path / "own", max_payload=40 * 2**20))
    broker = NatsSite(server).broker(silence=60, publish_timeout=0.5)
    await broker.publish("t", b"before")
    server.freeze()
    publishing = [broker.publish("t", b"x" * (30 * 2**20), idempotency_key=f"{n}") for n in range(2)]
    outcomes = await within(asyncio.gather(*publishing, return_exceptions=True), 5)
    assert {type(outcome) for outcome in outcomes} <= {BrokerDown, OutcomeUnknown}
    await within(broker.close(), 5)
    server.kill()
    await until(lambda: not nats_session._closing)


async def test_an_id_that_may_still_come_is_no_gap_while_a_server_holds_still(node, server):
    await waits_for_an_id_that_may_still_come(await node(silence=60), server)


@pytest.mark.parametrize("way", ["list", "factory"])
async def test_servers_that_hold_still_leave_time_for_one_that_answers(own, tmp_path, server, way):
    """By itself the client gives up after the first that takes a connection and says nothing, whichever that is."""
    still = [own(Nats(tmp_path / f"still {number}")) for number in range(2)]
    for one in still:
        one.freeze()
    urls = [one.url for one in still] + [server.url]

    async def connect(**options):
        client = Client()
        calls.append(client)
        try:
            await client.connect(urls[(len(calls) - 1) % 3], **options)
        except BaseException:
            await client.close()  # which nats-py itself leaves open
            raise
        return client

    calls = []
    broker = NatsSite(server).broker(connect=urls if way == "list" else connect, publish_timeout=12, silence=6)
    for offset in range(1, 4):
        assert (await within(broker.publish("t", b"x"), 15)).offset == offset
        await broker._drop()
    async with tail(broker) as reading:
        assert len(await within(reading.payloads(3), 15)) == 3
    await broker.close()


async def test_a_client_that_comes_after_it_was_given_up_is_closed(site, server):
    made = []

    async def connect(**options):
        client = Client()
        await client.connect(server.url, **options)
        made.append(client)
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass  # as asyncio.wait_for of Python 3.11 does when what it waits for ends just then
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


async def test_what_was_sent_to_a_server_that_dies_is_unknown_at_once(site, server):
    broker = site.broker(publish_timeout=60)
    await broker.publish("t", b"before")
    server.freeze()
    publishing = asyncio.create_task(broker.publish("t", b"x"))
    await until(lambda: broker._writing._pending)
    server.kill()
    with pytest.raises(OutcomeUnknown, match="lost"):
        await within(publishing)
    with pytest.raises(BrokerDown):
        await within(broker.publish("t", b"y"))
    await broker.close()


async def test_a_server_that_comes_later_is_waited_for(site, server, logged):
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
async def test_a_server_that_stops_in_order_is_followed_when_it_is_back(own, tmp_path, how):
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


async def test_a_wrong_password_is_refused_and_waited_for(own, tmp_path, logged):
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


async def test_what_a_user_may_not_publish_is_refused_at_once(own, tmp_path):
    users = 'authorization { users: [{ user: "a", password: "b", permissions: { publish: { deny: "*.secret" } } }] }'
    server = own(Nats(tmp_path / "own", config=users))
    broker = NatsSite(server).broker(connect=f"nats://a:b@127.0.0.1:{server.port}", publish_timeout=60)
    allowed = asyncio.create_task(broker.publish("open", b"x"))
    with pytest.raises(BrokerRefused, match=r"(?i)permissions"):
        await within(broker.publish("secret", b"x"))
    assert isinstance(await within(allowed), LogPosition)
    await broker.close()


async def test_a_server_of_its_default_size_refuses_what_is_larger_and_says_what_to_set(own, tmp_path):
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


async def test_a_consumer_that_is_deleted_is_made_anew_where_it_was(site, node):
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


async def test_a_stream_that_is_purged_is_no_gap_for_who_had_all(site, node, brokers):
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


async def test_what_was_trimmed_while_a_node_was_cut_off_is_a_gap(network, node):
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


async def test_a_connection_that_is_lost_while_many_publish_costs_nothing(network, node):
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


async def test_a_network_that_swallows_all_is_found_out_and_nothing_is_missed(network, node, logged):
    """Peer bug 60."""
    hub, other = await node(connect=through(network), **QUICK), await node()
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


async def test_a_slow_network_brings_all_without_being_taken_for_lost(network, node, logged):
    """The history takes longer than the silence after which a server counts as lost."""
    other = await node()
    await asyncio.gather(*[other.publish("t", f"{n:0>9000}") for n in range(100)])
    network.rate, network.delay = 300_000, 0.01
    hub = await node(connect=through(network), silence=2)
    assert hub.log.end == 100
    sink = await live(hub, "t")
    await hub.publish("t", "x" * 50_000)
    await texts(sink, 1)
    assert [len(text) for text in sink.texts] == [50_000]
    assert changes(logged) == ["hub_up", "hub_up"]


@pytest.mark.parametrize("most", [100, 1000, 3000, 5000])
async def test_a_connection_that_is_cut_anywhere_leaves_no_half_entry(network, node, most):
    other = await node()
    for n in range(50):
        await other.publish("t", f"{n}" * 20)
    network.cut_after = most
    hub = await node(ready=False, connect=through(network))
    await until(lambda: hub._replication_task._attempts > 3 or hub.ready)
    network.cut_after = None
    await until(lambda: hub.ready)
    sink = start(hub, "t", replay=50)
    await texts(sink, 50)
    assert sink.texts == [f"{n}" * 20 for n in range(50)]


async def test_a_node_that_joins_late_delivers_no_history_to_live_streams(node):
    """Peer bug 61: nor does one that lost its consumer, as nats-py's own ordered consumer would."""
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
    await until(lambda: late.log.end == one.log.end == 6)


async def test_a_stream_that_is_deleted_while_hubs_follow_it_is_a_gap_and_no_end(site, node):
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


async def test_a_store_that_is_wiped_while_the_server_is_away_is_a_gap(site, server, node):
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


async def set_back(server, hubs):
    """Have a server lose all that came since ``saved`` was made, as a disk does that lied."""
    server.kill()
    shutil.rmtree(server.folder / "store")
    shutil.move(server.folder / "saved", server.folder / "store")
    await until(lambda: not any(hub.ready for hub in hubs))


async def saved(server, hubs):
    server.kill()
    shutil.copytree(server.folder / "store", server.folder / "saved")
    await until(lambda: not any(hub.ready for hub in hubs))
    server.restart()
    await until(lambda: all(hub.ready for hub in hubs))


async def test_an_older_store_is_a_gap_and_no_id_is_given_twice(server, node):
    one, other = await node(), await node()
    sink, elsewhere = await live(one, "t"), await live(other, "t")
    ids = [await one.publish("t", f"{n}") for n in range(3)]
    await saved(server, [one, other])
    ids += [await persist(one, f"{n}") for n in range(3, 6)]
    await texts(sink, 6)
    await texts(elsewhere, 6)
    await set_back(server, [one, other])
    server.restart()
    ids += [await persist(other, f"{n}") for n in range(6, 9)]
    await texts(sink, 10)
    await texts(elsewhere, 10)
    assert sink.texts == elsewhere.texts == ["0", "1", "2", "3", "4", "5", "gap", "6", "7", "8"]
    assert [frame.id for frame in sink.frames if frame.name != "gap"] == ids
    assert sink.last_event_id == elsewhere.last_event_id
    assert len(set(ids)) == 9
    late = await node()
    assert late.log.epoch == one.log.epoch == other.log.epoch
    returned = start(late, "t", after=ids[1])
    await texts(returned, 5)
    assert returned.texts == ["gap", "2", "6", "7", "8"]
    void = start(late, "t", after=ids[5])
    await texts(void, 4)
    assert void.texts == ["gap", "6", "7", "8"]


async def test_an_older_store_that_has_gone_on_meanwhile_is_found_by_what_is_in_it(network, server, node):
    hub = await node(connect=through(network))
    sink = await live(hub, "t")
    for n in range(3):
        await hub.publish("t", f"{n}")
    await saved(server, [hub])
    for n in range(3, 6):
        await persist(hub, f"{n}")
    await texts(sink, 6)
    network.cut()
    await set_back(server, [hub])
    server.restart()
    stranger = await node()  # who knows nothing of it, and goes on with the same positions
    for n in range(6, 12):
        await stranger.publish("t", f"{n}")
    strange = await live(stranger, "t")
    network.restore()
    await texts(sink, 13)
    assert sink.texts == ["0", "1", "2", "3", "4", "5", "gap", "6", "7", "8", "9", "10", "11"]
    await until(lambda: stranger.log.epoch == hub.log.epoch)
    await persist(stranger, "last")
    await texts(sink, 14)
    await until(lambda: strange.texts[-1:] == ["last"])
    assert sink.texts[-1] == "last"
    assert sink.last_event_id == strange.last_event_id


async def test_what_only_a_publisher_knew_is_told_when_it_is_lost(server, site, node):
    hub = await node()
    await saved(server, [hub])
    broker = site.broker()
    kept = await broker.publish("t", b"0")
    await broker.publish("t", b"1")
    await set_back(server, [hub])
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
async def test_a_hub_closes_at_every_moment_of_its_beginning(site, server, way, logged):
    """The client waits with ``asyncio.wait_for``, which swallows a cancellation now and then on Python 3.11."""

    async def connect(**options):
        client = Client()
        await asyncio.wait_for(client.connect(server.url, **options), 10)
        return client

    await closed_at_every_moment(lambda: site.broker(connect=server.url if way == "url" else connect))
    assert [entry for entry in logged if "end" in entry["event"]] == []
