"""Erasing while real servers are lost, killed and frozen, and without the rights that it needs."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from aiohttp_interceptors.brokers.nats import NatsBroker
from aiohttp_interceptors.brokers.postgres import PostgresBroker
from aiohttp_interceptors.brokers.redis import RedisBroker
from aiohttp_interceptors.exceptions import BrokerDown, BrokerRefused, OutcomeUnknown
from aiohttp_interceptors.hub import replication
from aiohttp_interceptors.hub.broker import CaughtUp
from tests.brokers.contract import tail
from tests.brokers.nodes import hub_on  # noqa: F401  # a fixture
from tests.brokers.postgres_site import PostgresSite
from tests.brokers.redis_site import execute
from tests.servers.nats import Nats
from tests.servers.postgres import Postgres
from tests.servers.valkey import DURABLE, Valkey
from tests.waiting import until, within

# ruff: noqa: F811  # fixtures are imported, and arguments of tests

QUICK = {"read_timeout": 3.0, "publish_timeout": 2.5}  # seconds; a busy machine needs them


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Reconnect soon."""
    monkeypatch.setattr(replication, "MAX_RECONNECT_DELAY", 0.05)


@pytest.fixture(params=["redis", "postgres", "nats"])
def engine(request, own, tmp_path):
    """A server for one test, and a function that makes brokers on it."""
    if request.param == "redis":
        server = own(Valkey(tmp_path, *DURABLE))
        return server, lambda: RedisBroker(server.url, **QUICK)
    if request.param == "nats":
        server = own(Nats(tmp_path, durable=True))
        return server, lambda: NatsBroker(server.url, **QUICK)
    server = own(Postgres(tmp_path, template=request.getfixturevalue("postgres_template"), fsync="on"))
    site = PostgresSite(server)
    return server, lambda: site.broker(**QUICK)


async def publish(hub, count=20):
    """Publish under two topics, and wait until the Hub has everything."""
    ids = [
        await hub.publish("ab"[number % 2], f"{'secret' if number % 2 == 0 else 'public'}") for number in range(count)
    ]
    await until(lambda: hub.history.resolve(ids[-1])[1] is None)


async def stored(broker):
    """Return everything that a broker has."""
    async with tail(broker) as reading:
        await reading.until(CaughtUp)
    await broker.close()
    return b"".join(entry.payload for entry in reading.entries)


def records(hub, topic):
    return len(hub.history.read(0, [topic]).records)


async def test_while_the_server_is_away_nothing_is_erased(engine, hub_on):
    server, broker = engine
    hub = await hub_on(broker())
    await publish(hub)
    server.kill()
    await until(lambda: not hub.ready)
    with pytest.raises(BrokerDown):
        await within(hub.erase("a"))
    assert records(hub, "a") == 10
    server.restart()
    await until(lambda: hub.ready)
    assert records(hub, "a") == 10
    assert (await stored(broker())).count(b"secret") == 10
    await within(hub.erase("a"))
    found = await stored(broker())
    assert (found.count(b"secret"), found.count(b"public")) == (0, 10)
    assert (records(hub, "a"), records(hub, "b")) == (0, 10)


async def test_a_server_that_is_killed_between_the_two_steps_is_completed_by_a_second_call(engine, hub_on):
    server, broker = engine
    dying = broker()
    hub, other = await hub_on(dying), await hub_on(broker())
    await publish(hub)
    erase = dying.erase

    async def erase_on_a_dead_server(topic, before):
        server.kill()
        await erase(topic, before)

    dying.erase = erase_on_a_dead_server
    with pytest.raises(OutcomeUnknown, match="'a' is erased in the memory of all processes, but perhaps not in the"):
        await within(hub.erase("a"))
    assert records(hub, "a") == 0
    server.restart()
    await until(lambda: hub.ready and other.ready)
    late = await hub_on(broker())
    assert [records(each, "a") for each in (hub, other, late)] == [0, 0, 0]
    assert [records(each, "b") for each in (hub, other, late)] == [10, 10, 10]
    await within(other.erase("a"))
    found = await stored(broker())
    assert (found.count(b"secret"), found.count(b"public")) == (0, 10)


async def test_a_frozen_server_is_an_error_in_a_bounded_time(engine, hub_on):
    server, broker = engine
    freezing = broker()
    hub = await hub_on(freezing)
    await publish(hub)
    server.freeze()
    try:
        with pytest.raises((BrokerDown, OutcomeUnknown)):
            await within(hub.erase("a"), 10)
    finally:
        server.thaw()
    await until(lambda: hub.ready)
    erase = freezing.erase

    async def erase_on_a_frozen_server(topic, before):
        server.freeze()
        await erase(topic, before)

    freezing.erase = erase_on_a_frozen_server
    try:
        with pytest.raises(OutcomeUnknown):
            await within(hub.erase("a"), 10)
    finally:
        server.thaw()
    freezing.erase = erase
    await until(lambda: hub.ready)
    await within(hub.erase("a"))
    assert (await stored(broker())).count(b"secret") == 0


async def test_an_erasure_that_is_cancelled_is_completed_by_a_second_call(engine, hub_on):
    _, broker = engine
    hub = await hub_on(broker())
    await publish(hub, 200)
    for turns in range(0, 40, 3):
        erasing = asyncio.create_task(hub.erase("a"))
        for _ in range(turns):
            await asyncio.sleep(0)
        erasing.cancel()
        await asyncio.wait([erasing])
    await within(hub.erase("a"))
    late = await hub_on(broker())
    found = await stored(broker())
    assert (found.count(b"secret"), found.count(b"public")) == (0, 100)
    assert (records(late, "a"), records(late, "b")) == (0, 100)


async def test_events_of_other_topics_are_published_while_a_large_topic_is_erased(engine, hub_on):
    server, broker = engine
    size = 300 if isinstance(server, Nats) else 5000  # JetStream takes milliseconds for each
    hub = await hub_on(broker())
    await within(asyncio.gather(*[hub.publish("a", "secret" * 100) for _ in range(size)]), 60)
    erasing = asyncio.create_task(hub.erase("a"))
    count = 0
    while not erasing.done():
        await hub.publish("b", "public")
        count += 1
    await erasing
    found = await stored(broker())
    assert (found.count(b"secret"), found.count(b"public")) == (0, count)


async def test_a_user_of_redis_without_the_right_to_delete_is_refused(own, tmp_path, hub_on):
    server = own(Valkey(tmp_path))
    await execute(server, "ACL", "SETUSER", "writer", "on", ">pw", "~*", "+@all", "-xdel")
    hub = await hub_on(RedisBroker(server.url.replace("//", "//writer:pw@")))
    await publish(hub)
    with pytest.raises(BrokerRefused, match="'a' is erased in the memory of all processes, but perhaps not"):
        await hub.erase("a")
    assert (await stored(RedisBroker(server.url))).count(b"secret") == 10


async def test_a_role_of_postgresql_without_the_privilege_to_update_is_refused(postgres, hub_on):
    site = PostgresSite(postgres)
    site.sql("DO $$ BEGIN CREATE ROLE appender LOGIN PASSWORD 'secret'; EXCEPTION WHEN duplicate_object THEN END $$")
    site.sql(f"GRANT ALL ON {', '.join(site.table + end for end in ('_log', '_keys', '_outbox'))} TO appender")
    site.sql(f"GRANT SELECT, INSERT, DELETE ON {site.table} TO appender")
    hub = await hub_on(PostgresBroker(postgres.dsn_of(user="appender"), table=site.table))
    await publish(hub)
    with pytest.raises(BrokerRefused, match="permission denied"):
        await hub.erase("a")
    site.sql(f"GRANT UPDATE ON {site.table} TO appender")
    await hub.erase("a")
    assert site.sql(f"SELECT count(*) FROM {site.table} WHERE payload <> ''") == [(11,)]


async def test_an_older_migration_of_postgresql_is_enough(postgres, hub_on):
    """Erasing needs no function in the database, so that no migration has to be run again."""
    site = PostgresSite(postgres)
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        functions = connection.execute("SELECT proname FROM pg_proc WHERE proname LIKE %s", [f"{site.table}_%"])
        assert not [name for (name,) in functions if "erase" in name]
    hub = await hub_on(site.broker())
    await publish(hub)
    await hub.erase("a")
    assert site.sql(f"SELECT count(*) FROM {site.table} WHERE topic = 'a' AND payload <> ''") == [(1,)]
