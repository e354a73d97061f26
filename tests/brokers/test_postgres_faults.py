"""Hubs on a real PostgreSQL that is killed, frozen, wiped and restored from a backup, and on a faulty network."""

# ruff: noqa: F811  # fixtures are imported, and arguments of tests

from __future__ import annotations

import asyncio
import shutil
from contextlib import aclosing

import psycopg
import pytest

from aiohttp_interceptors.brokers.postgres import tail as postgres_tail
from aiohttp_interceptors.brokers.postgres.schema import migration
from aiohttp_interceptors.exceptions import BrokerDown, BrokerError, BrokerRefused, OutcomeUnknown
from aiohttp_interceptors.hub import replication
from aiohttp_interceptors.hub.broker import CaughtUp, LogPosition, Truncated
from tests.brokers.contract import brokers, number, tail  # noqa: F401  # fixtures
from tests.brokers.nodes import (  # noqa: F401  # fixtures
    changes,
    closed_at_every_moment,
    hub_on,
    network,
    persist,
    texts,
    waits_for_an_id_that_may_still_come,
)
from tests.brokers.postgres_site import PostgresSite
from tests.hub.sink import live, start
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import Postgres
from tests.waiting import until, within

QUICK = {"read_timeout": 3.0, "publish_timeout": 2.0, "poll": 0.1}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Reconnect immediately."""
    monkeypatch.setattr(replication, "MAX_RECONNECT_DELAY", 0.05)
    monkeypatch.setattr(postgres_tail, "RECONNECT_DELAY", 0.05)


@pytest.fixture
def server(own, tmp_path, postgres_template):
    """A server for one test, which does not lose commits when it is killed."""
    return own(Postgres(tmp_path / "postgres", template=postgres_template, fsync="on"))


@pytest.fixture
def site(server):
    return PostgresSite(server)


@pytest.fixture
def node(site, hub_on):
    """Make Hubs, each with its broker, as one process has it."""
    return lambda *, ready=True, **options: hub_on(site.broker(**{"read_timeout": 5.0, **options}), ready=ready)


def through(network, server):
    return server.dsn_of(port=network.port)


async def publish_all(hub, which, count, ids, failures):
    for n in range(count):
        text = f"{which}-{n}"
        try:
            ids[text] = await hub.publish("t", text, idempotency_key=text)
        except BrokerError as error:
            failures.append(error)
            ids[text] = await persist(hub, text)


async def test_acknowledged_events_survive_a_killed_server_and_retries_add_no_copies(node, server, logged):
    hub, other = await node(), await node()
    sink, elsewhere = await live(hub, "t"), await live(other, "t")
    ids, failures = {}, []
    publishing = [asyncio.create_task(publish_all(hub, which, 100, ids, failures)) for which in range(4)]
    await until(lambda: len(ids) > 100)
    server.kill()
    await asyncio.to_thread(server.restart)
    await within(asyncio.gather(*publishing), 30)
    await texts(sink, 400)
    await texts(elsewhere, 400)
    assert {type(error) for error in failures} <= {BrokerDown, OutcomeUnknown}
    assert failures
    assert sink.texts == elsewhere.texts
    assert sorted(sink.texts) == sorted(ids)
    assert {frame.data: frame.id for frame in sink.frames} == ids
    assert sorted(changes(logged)) == ["hub_down", "hub_down", "hub_resumed", "hub_resumed", "hub_up", "hub_up"]


async def test_connections_that_the_server_terminates_lose_no_event(node, site, logged):
    hub, other = await node(), await node()
    sink, elsewhere = await live(hub, "t"), await live(other, "t")
    ids, failures = {}, []
    publishing = asyncio.create_task(publish_all(hub, "a", 100, ids, failures))
    for goal in 20, 40, 60:
        await until(lambda goal=goal: len(ids) >= goal)
        site.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND "
                 "backend_type = 'client backend'")  # fmt: skip
        await until(lambda: hub.ready and other.ready)
    await within(publishing, 30)
    await texts(sink, 100)
    await texts(elsewhere, 100)
    assert sink.texts == elsewhere.texts == [f"a-{n}" for n in range(100)]
    assert [frame.id for frame in sink.frames] == [frame.id for frame in elsewhere.frames] == list(ids.values())
    assert not sink.ends


async def test_a_lost_notifier_reconnects_and_the_table_is_polled_meanwhile(node, site, logged, monkeypatch):
    monkeypatch.setattr(postgres_tail, "RECONNECT_DELAY", 3600)
    hub, other = await node(), await node()
    notifier = hub._broker._notifier
    sink = await live(hub, "t")
    await until(lambda: notifier.listening)
    monkeypatch.setattr(postgres_tail, "RECONNECT_DELAY", 0.05)
    site.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")
    for n in range(50):
        await other.publish("t", str(n))
    await texts(sink, 50)
    await until(lambda: notifier.listening)
    assert sink.texts == [str(n) for n in range(50)]
    assert changes(logged) == ["hub_up", "hub_up"]
    assert "postgres_notifier_lost" in [entry["event"] for entry in logged]


async def test_a_notifier_behind_a_stalled_network_is_lost_and_polling_finds_the_event(node, network, server, logged):
    hub, other = await node(listen=through(network, server), **QUICK), await node()
    sink = await live(hub, "t")
    await until(lambda: hub._broker._notifier.listening)
    network.stall()
    await until(lambda: "postgres_notifier_lost" in [entry["event"] for entry in logged])
    await other.publish("t", "x")
    await texts(sink, 1)
    assert changes(logged) == ["hub_up", "hub_up"]


async def test_a_frozen_server_is_lost_within_the_read_timeout(node, server, logged):
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


async def test_a_frozen_server_does_not_delay_closing(site, server):
    broker = site.broker(**QUICK)
    await broker.publish("t", b"x")
    async with tail(broker) as reading:
        await reading.until(CaughtUp)
        server.freeze()
        with pytest.raises(BrokerDown, match="no answer"):
            while True:
                await reading.item()
    await within(broker.close(), 5)
    server.thaw()


async def test_a_network_that_drops_everything_is_detected_and_missed_events_arrive_later(
    node, network, server, logged
):
    far, near = await node(connect=through(network, server), **QUICK), await node()
    sink = await live(far, "t")
    await near.publish("t", "1")
    await texts(sink, 1)
    network.stall()
    await near.publish("t", "2")
    await until(lambda: not far.ready)
    with pytest.raises((BrokerDown, OutcomeUnknown)):
        await within(far.publish("t", "lost"))
    network.cut()
    network.restore()
    await until(lambda: far.ready)
    await near.publish("t", "3")
    await until(lambda: sink.texts[-1] == "3")
    assert [text for text in sink.texts if text != "lost"] == ["1", "2", "3"]
    assert changes(logged) == ["hub_up", "hub_up", "hub_down", "hub_resumed"]


async def test_a_tail_resumes_after_the_network_was_cut(node, network, server):
    far, near = await node(connect=through(network, server)), await node()
    sink = await live(far, "t")
    network.cut()
    await until(lambda: not far.ready)
    with pytest.raises((BrokerDown, OutcomeUnknown)):
        await far.publish("t", "lost")
    await near.publish("t", "missed")
    network.restore()
    await until(lambda: far.ready)
    await texts(sink, 1)
    assert sink.texts == ["missed"]


async def test_a_slow_network_loses_no_event(node, network, server):
    network.delay = 0.02
    far, near = await node(connect=through(network, server)), await node()
    sink = await live(far, "t")
    await asyncio.gather(*[near.publish("t", str(n)) for n in range(300)])
    await far.publish("t", "x" * 2**19)
    await texts(sink, 301)
    assert sink.texts[:300] == [str(n) for n in range(300)]


async def test_a_lost_answer_leaves_the_outcome_unknown(site, network, server):
    broker = site.broker(connect=through(network, server))
    await broker.publish("t", b"1")
    network.delay = 0.05
    publishing = asyncio.create_task(broker.publish("t", b"2", idempotency_key="2"))
    await until(lambda: site.sql(f"SELECT last_position FROM {site.table}_log") == [(2,)])
    network.cut()
    with pytest.raises(OutcomeUnknown):
        await within(publishing)
    network.restore()
    assert (await within(broker.publish("t", b"2", idempotency_key="2"))).offset == 2
    await broker.close()


async def test_a_server_that_starts_later_is_found(node, server, logged):
    server.stop()
    hub = await node(ready=False)
    sink = start(hub, "t")
    await until(lambda: changes(logged) == ["hub_down"])
    with pytest.raises(BrokerDown):
        await hub.publish("t", "lost")
    await asyncio.to_thread(server.restart)
    await until(lambda: hub.ready)
    await persist(hub, "x")
    await texts(sink, 1)
    assert changes(logged) == ["hub_down", "hub_resumed"]


async def test_a_wrong_password_is_refused(site, server):
    broker = site.broker(connect=server.dsn_of(password="wrong"))
    with pytest.raises(BrokerRefused, match="password"):
        await broker.publish("t", b"x")
    with pytest.raises(BrokerRefused, match="password"):
        async with tail(broker) as reading:
            await reading.item()
    await broker.close()


async def test_a_role_without_privileges_is_refused(site, server):
    site.sql("CREATE ROLE guest LOGIN PASSWORD 'secret'")
    broker = site.broker(connect=server.dsn_of(user="guest"))
    with pytest.raises(BrokerRefused, match="permission denied"):
        await broker.publish("t", b"x")
    with pytest.raises(BrokerRefused, match="permission denied"):
        async with tail(broker) as reading:
            await reading.item()
    await broker.close()


async def test_publishing_to_a_read_only_server_is_down(site, server):
    broker = site.broker(connect=f"{server.dsn}?options=-cdefault_transaction_read_only%3Don")
    with pytest.raises(BrokerDown, match="read-only"):
        await broker.publish("t", b"x")
    await broker.close()


async def test_a_payload_may_be_larger_than_that_of_notify(node):
    hub, other = await node(), await node()
    sink = await live(other, "t")
    payload = "ü" * 2**18
    await hub.publish("t", payload)
    await texts(sink, 1)
    assert sink.texts == [payload]


async def test_tables_that_were_dropped_and_created_again_are_another_log(node, site, logged):
    hub, other = await node(**QUICK), await node(**QUICK)
    sink, elsewhere = await live(hub, "t"), await live(other, "t")
    await hub.publish("t", "old")
    await texts(elsewhere, 1)
    ends = ("", "_log", "_keys", "_outbox")
    site.sql(f"DROP TABLE {', '.join(site.table + end for end in ends)} CASCADE")
    await until(lambda: not (hub.ready or other.ready))
    with pytest.raises(BrokerRefused, match="prints the SQL"):
        await hub.publish("t", "lost")
    site.sql(migration(site.table))
    await until(lambda: hub.ready and other.ready)
    await hub.publish("t", "new")
    await until(lambda: sink.texts[-1] == elsewhere.texts[-1] == "new")
    assert sink.texts == elsewhere.texts == ["old", "gap", "new"]


async def test_a_hub_that_starts_late_delivers_no_history_to_live_streams(node):
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


async def test_events_that_were_trimmed_while_a_hub_was_cut_off_are_a_gap(node, network, server):
    far, near = await node(connect=through(network, server), **QUICK), await node(max_records=100)
    sink = await live(far, "t")
    await near.publish("t", "first")
    await texts(sink, 1)
    network.cut()
    await until(lambda: not far.ready)
    await asyncio.gather(*[near.publish("t", str(n)) for n in range(1500)])
    network.restore()
    await until(lambda: sink.texts[-1] == "1499")
    assert sink.texts[:2] == ["first", "gap"]
    assert len(sink.texts) < 1500


class Backup:
    """A backup of a server's data."""

    def __init__(self, server):
        self._server = server
        self._backup = server.folder / "backup"

    def take(self):
        self._server.stop()
        shutil.copytree(self._server.folder / "data", self._backup)
        self._server.restart()

    def restore(self):
        self._server.stop()
        shutil.rmtree(self._server.folder / "data")
        shutil.copytree(self._backup, self._server.folder / "data")
        self._server.restart()


@pytest.fixture
def backup(server):
    return Backup(server)


@pytest.mark.parametrize("count", [0, 1, 3, 10], ids=lambda count: f"{count} new")
async def test_every_broker_reports_entries_that_were_lost_and_replaced(site, brokers, backup, count):
    """Also when their offsets were assigned again, so that offsets do not show it."""
    one, other, third = brokers(), brokers(), brokers()
    for n in range(3):
        await one.publish("t", number(n))
    backup.take()
    lost = []
    async with tail(one) as here, tail(other) as there:
        while len(lost) < 5:
            try:
                lost.append(await one.publish("t", b"lost"))
            except BrokerError:
                pass
        await here.payloads(8)
        await there.payloads(8)
    epoch = lost[-1].epoch
    backup.restore()
    for n in range(count):
        assert (await third.publish("t", b"new %d" % n)).epoch == epoch
    new = [b"new %d" % n for n in range(count)]
    for broker, position in (other, lost[-1]), (one, lost[-1]), (third, LogPosition(epoch, 3)):
        async with tail(broker, position) as reading:
            truncated = await reading.until(Truncated)
            assert truncated.position.offset == 3
            assert truncated.position.epoch != epoch
            await reading.until(CaughtUp)
            assert [entry.payload for entry in reading.entries] == new
    position = await one.publish("t", b"after")
    assert position == LogPosition(truncated.position.epoch, 4 + count)


@pytest.mark.parametrize("count", [0, 1, 5])
async def test_an_entry_that_was_lost_after_its_acknowledgement_and_before_it_was_read_is_reported(
    site, brokers, backup, count
):
    one, other = brokers(), brokers()
    first = await one.publish("t", b"first")
    backup.take()
    lost = None
    while lost is None:
        try:
            lost = await one.publish("t", b"lost")
        except BrokerError:
            pass
    backup.restore()
    for n in range(count):
        await other.publish("t", b"new %d" % n)
    if not count:
        position = await one.publish("t", b"new")
        assert position.epoch != first.epoch
        assert position.offset == 2
    async with tail(one, first) as reading:
        assert (await reading.until(Truncated)).position.offset == 1
        await reading.until(CaughtUp)
        assert [entry.payload for entry in reading.entries] == ([b"new %d" % n for n in range(count)] or [b"new"])


async def test_streams_receive_a_gap_for_lost_events_and_continue(node, backup, logged):
    hub, other = await node(), await node()
    sink, elsewhere = await live(hub, "t"), await live(other, "t")
    await hub.publish("t", "kept")
    backup.take()
    await persist(hub, "lost")
    await texts(sink, 2)
    await texts(elsewhere, 2)
    backup.restore()
    await persist(hub, "new")
    await until(lambda: sink.texts[-1] == elsewhere.texts[-1] == "new")
    assert sink.texts == elsewhere.texts == ["kept", "lost", "gap", "new"]


async def test_restoring_the_same_backup_twice_is_reported_twice(node, backup, logged):
    hub, other = await node(), await node()
    sink, elsewhere = await live(hub, "t"), await live(other, "t")
    first = await hub.publish("t", "kept")
    backup.take()
    ids = [first]
    for n in range(2):
        ids.append(await persist(hub, f"lost {n}"))
        await texts(sink, len(ids) + n)
        await texts(elsewhere, len(ids) + n)
        backup.restore()
        await until(lambda: not (hub.ready and other.ready))
        await until(lambda: hub.ready and other.ready)
        await until(lambda n=n: sink.texts.count("gap") == elsewhere.texts.count("gap") == n + 1)
    ids.append(await persist(hub, "new"))
    await until(lambda: sink.texts[-1] == elsewhere.texts[-1] == "new")
    assert sink.texts == elsewhere.texts == ["kept", "lost 0", "gap", "lost 1", "gap", "new"]
    assert len(set(ids)) == 4


async def test_a_restart_that_loses_nothing_causes_no_gap(node, server, logged):
    hub = await node()
    sink = await live(hub, "t")
    await hub.publish("t", "before")
    server.stop()
    await asyncio.to_thread(server.restart)
    await persist(hub, "after")
    await texts(sink, 2)
    assert sink.texts == ["before", "after"]
    assert changes(logged)[-1] == "hub_resumed"


async def test_a_pooler_works_with_a_direct_connection_to_listen(own, tmp_path, site, node, server, monkeypatch):
    pooler = own(PgBouncer(tmp_path / "pgbouncer", server))
    monkeypatch.setattr(postgres_tail, "MAX_POLL_INTERVAL", 3600.0)
    hubs = [await node(connect=pooler.dsn, listen=server.dsn) for _ in range(3)]
    sinks = [await live(hub, "t") for hub in hubs]
    await until(lambda: all(hub._broker._notifier.listening for hub in hubs))
    for n in range(30):
        await hubs[n % 3].publish("t", str(n), idempotency_key=str(n))
    async with await psycopg.AsyncConnection.connect(pooler.dsn, prepare_threshold=None) as connection:
        await hubs[0].publish("t", "30", connection=connection)
    for sink in sinks:
        await texts(sink, 31)
        assert sink.texts == [str(n) for n in range(31)]


# Timeouts that psycopg alone would exceed.


@pytest.fixture
async def application(server):
    """A connection of an application. The test may freeze the server."""
    connection = await psycopg.AsyncConnection.connect(server.dsn)
    yield connection
    server.thaw()
    await connection.close()


async def test_a_publish_in_a_transaction_on_a_frozen_server_raises_within_the_publish_timeout(
    site, server, application
):
    """psycopg's own cancellation waits for up to ten seconds more."""
    broker = site.broker(publish_timeout=2.0)
    await broker.publish("t", b"lost", connection=application)
    server.freeze()
    with pytest.raises(OutcomeUnknown, match=r"no answer.*2\.0 s"):
        await within(broker.publish("t", b"x", connection=application), 8)
    with pytest.raises(psycopg.OperationalError):
        await within(application.commit(), 5)
    await within(broker.close(), 5)
    server.thaw()
    await until(lambda: site.sql("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%'") == [(0,)])
    assert site.sql(f"SELECT count(*) FROM {site.table}_outbox") == [(0,)]


async def test_cancelling_a_publish_in_a_transaction_does_not_wait_for_a_frozen_server(site, server, application):
    broker = site.broker()
    await application.execute("SELECT 1")
    server.freeze()
    publishing = asyncio.create_task(broker.publish("t", b"x", connection=application))
    await until(lambda: application.info.transaction_status == psycopg.pq.TransactionStatus.ACTIVE)
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(publishing, 8)
    await broker.close()


async def test_cancelling_a_publish_in_a_transaction_keeps_the_connection_if_the_server_answers(site, application):
    broker = site.broker()
    publishing = asyncio.create_task(broker.publish("t", b"x", connection=application))
    await until(lambda: application.lock.locked())
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(publishing)
    await application.rollback()
    await broker.publish("t", b"y", connection=application)
    await application.commit()
    async with tail(broker) as reading:
        assert await reading.payloads(1) == [b"y"]
    await broker.close()


async def test_a_factory_that_hangs_in_a_statement_times_out(site, server, network):
    async def connect():
        connection = await psycopg.AsyncConnection.connect(through(network, server))
        network.stall()
        await connection.execute("SELECT 1")
        return connection

    broker = site.broker(connect=connect, publish_timeout=0.5)
    with pytest.raises((BrokerDown, OutcomeUnknown)):
        await within(broker.publish("t", b"x"), 5)
    await within(broker.close(), 5)


async def test_a_connection_that_a_factory_returns_after_its_timeout_is_closed(site, server):
    made = []

    async def connect():
        made.append(await psycopg.AsyncConnection.connect(server.dsn))
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass  # as asyncio.wait_for of Python 3.11 may do
        return made[-1]

    broker = site.broker(connect=connect, publish_timeout=0.5)
    with pytest.raises((BrokerDown, OutcomeUnknown)):
        await within(broker.publish("t", b"x"))
    async with aclosing(broker.tail(None)) as items:
        reading = asyncio.create_task(anext(items))
        await until(lambda: len(made) == 2)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(reading)
    await until(lambda: all(connection.closed for connection in made))
    await broker.close()


async def test_a_frozen_host_leaves_time_for_the_next_one(own, tmp_path, postgres_template, site, server):
    frozen = own(Postgres(tmp_path / "frozen", template=postgres_template))
    frozen.freeze()
    hosts = f"127.0.0.1:{frozen.port},127.0.0.1:{server.port}"
    broker = site.broker(connect=f"postgresql://tester:secret@{hosts}/postgres?connect_timeout=60", publish_timeout=8)
    assert (await within(broker.publish("t", b"x"))).offset == 1
    async with tail(broker) as reading:
        assert await reading.payloads(1) == [b"x"]
    server.freeze()
    other = site.broker(connect=f"postgresql://tester:secret@{hosts}/postgres", publish_timeout=1)
    both = rf"127.0.0.1:{frozen.port} did not answer.*127.0.0.1:{server.port} did not answer"
    with pytest.raises(BrokerDown, match=both):
        await within(other.publish("t", b"y"))
    server.thaw()
    await broker.close()
    await other.close()


async def test_a_refusal_of_one_of_several_hosts_is_down(site, server):
    hosts = f"127.0.0.1:1,127.0.0.1:{server.port}"
    broker = site.broker(connect=f"postgresql://tester:wrong@{hosts}/postgres")
    with pytest.raises(BrokerDown, match=r"refused.*password"):
        await within(broker.publish("t", b"x"))
    await broker.close()


async def test_an_id_that_may_still_arrive_causes_no_gap_while_the_server_is_frozen(node, server):
    await waits_for_an_id_that_may_still_come(await node(read_timeout=60), server)


@pytest.mark.parametrize("way", ["dsn", "factory"])
async def test_a_hub_can_be_closed_at_every_moment_of_its_start(site, server, way, logged):
    """A factory that waits with ``asyncio.wait_for`` may swallow a cancellation on Python 3.11."""

    async def connect():
        return await asyncio.wait_for(psycopg.AsyncConnection.connect(server.dsn), 10)

    await closed_at_every_moment(lambda: site.broker(connect=server.dsn if way == "dsn" else connect))
    assert [entry for entry in logged if "end" in entry["event"]] == []
