"""The broker on tables of PostgreSQL, and publishing in transactions of the application."""

# ruff: noqa: F811  # fixtures are imported, and arguments of tests

from __future__ import annotations

import asyncio
import runpy
import subprocess
import sys
from contextlib import aclosing

import psycopg
import pytest

from aiohttp_interceptors.brokers.postgres import PostgresBroker
from aiohttp_interceptors.brokers.postgres import tail as postgres_tail
from aiohttp_interceptors.brokers.postgres.schema import migration
from aiohttp_interceptors.exceptions import BrokerDown, BrokerRefused, OutcomeUnknown
from aiohttp_interceptors.hub.broker import CaughtUp, Subscribed, Trimmed
from tests.brokers.contract import Contract, broker, brokers, number, tail, topics  # noqa: F401  # fixtures
from tests.brokers.postgres_site import site  # noqa: F401  # a fixture
from tests.waiting import until, within

DSN = "postgresql://user@host/database"


class TestPostgres(Contract):
    """The contract of all brokers."""


@pytest.fixture
async def connections(site):
    """Open connections as an application does. They are closed after the test."""
    made = []

    async def connect(**options):
        made.append(await psycopg.AsyncConnection.connect(site.server.dsn, **options))
        return made[-1]

    yield connect
    for connection in made:
        await connection.close()


# Publishing in transactions of the application.


async def test_entries_of_transactions_are_in_the_order_of_the_commits(brokers, connections):
    broker = brokers()
    first, second = await connections(), await connections()
    async with tail(broker) as reading:
        await reading.until(CaughtUp)
        assert await broker.publish("t", b"first a", connection=first) is None
        await broker.publish("t", b"second", connection=second)
        await broker.publish("t", b"first b", connection=first)
        await second.commit()
        await reading.payloads(1)
        await first.commit()
        assert await reading.payloads(3) == [b"second", b"first a", b"first b"]
        assert [entry.offset for entry in reading.entries] == [1, 2, 3]


async def test_a_rolled_back_entry_is_not_appended_and_takes_no_offset(brokers, connections, site):
    broker = brokers()
    connection = await connections()
    async with tail(broker) as reading:
        await reading.until(CaughtUp)
        await broker.publish("t", b"rolled back", connection=connection)
        await connection.rollback()
        async with connection.transaction():
            await broker.publish("t", b"kept", connection=connection)
            with pytest.raises(ZeroDivisionError):
                async with connection.transaction():
                    await broker.publish("t", b"rolled back too", connection=connection)
                    raise ZeroDivisionError
        position = await broker.publish("t", b"last")
        assert await reading.payloads(2) == [b"kept", b"last"]
        assert position.offset == 2
    assert site.sql(f"SELECT count(*) FROM {site.table}_outbox") == [(0,)]


async def test_an_open_transaction_does_not_delay_others(brokers, connections):
    one, other = brokers(publish_timeout=2), brokers(publish_timeout=2)
    long, short = await connections(), await connections()
    async with tail(other) as reading:
        await reading.until(CaughtUp)
        await one.publish("t", b"long", connection=long)
        assert (await one.publish("t", b"1")).offset == 1
        assert (await other.publish("t", b"2")).offset == 2
        async with short.transaction():
            await one.publish("t", b"3", connection=short)
        assert await reading.payloads(3) == [b"1", b"2", b"3"]
        await long.commit()
        assert (await reading.payloads(4))[3] == b"long"


async def test_with_immediate_constraints_a_transaction_holds_the_lock_until_its_end(brokers, connections):
    broker = brokers(publish_timeout=0.3)
    connection = await connections()
    await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
    await broker.publish("t", b"early", connection=connection)
    with pytest.raises((BrokerDown, OutcomeUnknown), match=r"no answer"):
        await within(broker.publish("t", b"late"))
    await connection.commit()
    async with tail(broker) as reading:
        assert (await reading.payloads(1))[0] == b"early"


@pytest.mark.parametrize("level", [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE])
async def test_a_transaction_with_an_old_snapshot_fails_to_serialize_at_its_commit(brokers, connections, level):
    broker = brokers()
    connection = await connections()
    await connection.set_isolation_level(level)
    await broker.publish("t", b"1")
    await connection.execute("SELECT 1")
    await broker.publish("t", b"quiet", connection=connection)
    await connection.commit()
    await connection.execute("SELECT 1")
    await broker.publish("t", b"rolled back", connection=connection)
    await broker.publish("t", b"3")
    with pytest.raises(psycopg.errors.SerializationFailure):
        await connection.commit()
    async with tail(broker) as reading:
        await reading.until(CaughtUp)
        assert [entry.payload for entry in reading.entries] == [b"1", b"quiet", b"3"]


async def test_an_idempotency_key_applies_in_transactions_too(brokers, connections):
    broker = brokers()
    connection = await connections()
    await broker.publish("t", b"once", idempotency_key="k", connection=connection)
    await connection.commit()
    await broker.publish("t", b"again", idempotency_key="k", connection=connection)
    await connection.commit()
    assert (await broker.publish("t", b"and again", idempotency_key="k")).offset == 1
    async with tail(broker) as reading:
        await reading.until(CaughtUp)
        assert [entry.payload for entry in reading.entries] == [b"once"]


async def test_an_autocommit_connection_appends_immediately(brokers, connections):
    broker = brokers()
    await broker.publish("t", b"x", connection=await connections(autocommit=True))
    async with tail(broker) as reading:
        assert await reading.payloads(1) == [b"x"]


@pytest.fixture
def no_polling(monkeypatch):
    """Turn off polling while the notifier is listening."""
    monkeypatch.setattr(postgres_tail, "MAX_POLL_INTERVAL", 3600.0)


async def test_the_commit_of_a_transaction_notifies_other_processes(brokers, connections, no_polling):
    one, other = brokers(), brokers()
    connection = await connections()
    async with tail(other) as reading:
        await reading.until(CaughtUp)
        await until(lambda: other._notifier.listening)
        for n in range(5):
            await one.publish("t", number(n), connection=connection)
            await connection.commit()
            await reading.payloads(n + 1)


async def test_a_failed_transaction_is_refused_and_a_lost_connection_is_an_unknown_outcome(brokers, connections, site):
    broker = brokers()
    connection = await connections()
    with pytest.raises(psycopg.errors.DivisionByZero):
        await connection.execute("SELECT 1 / 0")
    with pytest.raises(BrokerRefused, match="aborted"):
        await broker.publish("t", b"x", connection=connection)
    await connection.rollback()
    await broker.publish("t", b"y", connection=connection)
    site.sql("SELECT pg_terminate_backend(%s, 5000)", connection.info.backend_pid)
    with pytest.raises(OutcomeUnknown):
        await broker.publish("t", b"z", connection=connection)
    async with tail(broker) as reading:
        await reading.until(CaughtUp)
        assert reading.entries == []


async def test_a_broker_can_be_closed_while_a_transaction_is_open(brokers, connections):
    broker = brokers()
    connection = await connections()
    await broker.publish("t", b"x", connection=connection)
    await within(broker.close())
    await connection.commit()
    async with tail(brokers()) as reading:
        assert await reading.payloads(1) == [b"x"]


# Notifications.


async def test_each_publish_notifies_other_processes(brokers, no_polling):
    one, other = brokers(), brokers()
    async with tail(other) as reading:
        await reading.until(CaughtUp)
        await until(lambda: other._notifier.listening)
        for n in range(20):
            await one.publish("t", number(n))
            await reading.payloads(n + 1)


async def test_without_notify_the_table_is_polled(brokers, site):
    one, other = brokers(notify=False), brokers(notify=False, poll=0.01)
    async with tail(other) as reading:
        await reading.until(CaughtUp)
        await one.publish("t", b"x")
        assert await reading.payloads(1) == [b"x"]
        assert site.sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE %s", f'LISTEN "{site.table}%') == [(0,)]


# Retention.


async def test_a_tail_deletes_expired_entries_and_keys(brokers, site, monkeypatch):
    one, other = brokers(max_age=3600), brokers(max_age=3600)
    await one.publish("t", b"old", idempotency_key="k")
    site.sql(f"UPDATE {site.table} SET published_at = published_at - interval '2 h'")
    site.sql(f"UPDATE {site.table}_keys SET used_at = used_at - interval '2 h'")
    await one.publish("t", b"young")
    async with tail(other) as reading:
        await reading.until(CaughtUp)
        assert 7200 - 60 < reading.entries[0].age < 7200 + 60
    async with aclosing(other.tail(None)) as items:
        other._log._trimmed_at = float("-inf")
        while not isinstance(await within(anext(items)), CaughtUp):
            pass
        following = asyncio.create_task(anext(items))
        await until(lambda: site.sql(f"SELECT payload FROM {site.table}") == [(b"young",)])
        await one.publish("t", b"new")
        await within(following)
    assert site.sql(f"SELECT trimmed_through FROM {site.table}_log") == [(1,)]
    assert site.sql(f"SELECT * FROM {site.table}_keys") == []


async def test_rows_that_were_deleted_by_hand_are_reported_as_trimmed(brokers, site):
    broker = brokers()
    positions = [await broker.publish("t", number(n)) for n in range(1, 11)]
    site.sql(f"DELETE FROM {site.table} WHERE position IN (1, 5, 9, 10)")
    async with tail(brokers()) as reading:
        assert await reading.item() == Subscribed(positions[0])
        assert [entry.offset for entry in await reading.item()] == [2, 3, 4]
        assert await reading.item() == Trimmed(5)
        assert [entry.offset for entry in await reading.item()] == [6, 7, 8]
        site.sql(f"DELETE FROM {site.table}")
        assert await reading.item() == Trimmed(10)
        assert await reading.item() == CaughtUp()
    async with tail(brokers()) as reading:
        assert await reading.item() == Subscribed(positions[9])


async def test_the_keys_of_a_wiped_log_are_forgotten(brokers, site):
    broker = brokers()
    old = await broker.publish("t", b"old", idempotency_key="k")
    site.sql(f"TRUNCATE {site.table}, {site.table}_log")
    new = await broker.publish("t", b"new", idempotency_key="k")
    assert new.epoch != old.epoch
    async with tail(broker) as reading:
        assert await reading.payloads(1) == [b"new"]


# Arguments, factories and tables.


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"connect": 7}, TypeError),
        ({"connect": "no dsn"}, ValueError),
        ({"listen": 7}, TypeError),
        ({"listen": "no dsn"}, ValueError),
        ({"table": 7}, TypeError),
        ({"table": "x; drop table y"}, ValueError),
        ({"table": "x" * 51}, ValueError),
        ({"notify": 1}, TypeError),
        ({"poll": 0}, ValueError),
        ({"poll": "1"}, TypeError),
        ({"poll": 1.1}, ValueError),
        ({"migrate": "yes"}, TypeError),
        ({"max_records": 0}, ValueError),
        ({"max_records": 1.5}, TypeError),
        ({"max_age": -1}, ValueError),
        ({"publish_timeout": True}, TypeError),
        ({"read_timeout": float("inf")}, ValueError),
    ],
)
def test_a_bad_argument_is_refused_with_its_name(options, error):
    with pytest.raises(error, match=next(iter(options))):
        PostgresBroker(**{"connect": DSN, **options})


@pytest.mark.parametrize("connection", [object(), "postgresql://"])
async def test_a_connection_that_is_no_async_connection_of_psycopg_is_a_type_error(broker, connection):
    with pytest.raises(TypeError, match=r"psycopg\.AsyncConnection"):
        await broker.publish("t", b"x", connection=connection)


@pytest.mark.parametrize("key", ["a\0b", "\ud800"])
async def test_a_key_that_is_no_text_does_not_fail_the_batch(broker, key):
    good = asyncio.create_task(broker.publish("t", b"x"))
    with pytest.raises(ValueError, match=r"NUL|surrogates"):
        await broker.publish("t", b"y", idempotency_key=key)
    assert (await good).offset == 1


async def test_a_factory_may_return_a_connection_with_any_row_factory(brokers, site):
    async def connect():
        return await psycopg.AsyncConnection.connect(site.server.dsn, row_factory=psycopg.rows.dict_row)

    broker = brokers(connect=connect)
    async with tail(broker) as reading:
        await reading.until(CaughtUp)
        await broker.publish("t", b"x")
        assert await reading.payloads(1) == [b"x"]


async def test_the_error_of_a_factory_that_fails_is_in_the_message(brokers):
    async def wrong():
        return "connection"

    async def failing():
        raise ZeroDivisionError("what")

    with pytest.raises(BrokerRefused, match=r"'connection', which is not a psycopg\.AsyncConnection"):
        await brokers(connect=wrong).publish("t", b"x")
    with pytest.raises(BrokerDown, match="what"):
        await brokers(connect=failing).publish("t", b"x")


async def test_a_missing_table_is_refused_with_the_command_that_creates_it(brokers, site):
    site.sql(f"DROP TABLE {site.table}, {site.table}_log, {site.table}_outbox CASCADE")
    broker = brokers()
    how = rf"migrate=True.*python -m aiohttp_interceptors\.brokers\.postgres {site.table} prints"
    with pytest.raises(BrokerRefused, match=how):
        await broker.publish("t", b"x")
    with pytest.raises(BrokerRefused, match=how):
        async with tail(broker) as reading:
            await reading.item()
    async with await psycopg.AsyncConnection.connect(site.server.dsn) as connection:
        with pytest.raises(BrokerRefused, match=how):
            await broker.publish("t", b"x", connection=connection)
    site.sql(migration(site.table))
    assert (await broker.publish("t", b"x")).offset == 1


async def test_a_missing_column_is_refused_with_the_command_that_creates_the_tables(brokers, site):
    """A table of another release."""
    site.sql(f"ALTER TABLE {site.table} RENAME COLUMN run_id TO another")
    how = rf"another release.*python -m aiohttp_interceptors\.brokers\.postgres {site.table} prints"
    with pytest.raises(BrokerRefused, match=how):
        await brokers().publish("t", b"x")


async def test_the_migration_can_be_run_again_and_keeps_the_log(broker, site):
    await broker.publish("t", b"x")
    site.sql(migration(site.table))
    async with tail(broker) as reading:
        assert await reading.payloads(1) == [b"x"]
        assert (await broker.publish("t", b"y")).offset == 2


async def test_several_brokers_create_missing_tables_at_the_same_time(brokers, site, logged):
    table = f"{site.table}_created"
    several = [brokers(table=table, migrate=True) for _ in range(6)]
    positions = await within(asyncio.gather(*[one.publish("t", b"x") for one in several]), 30)
    assert sorted(position.offset for position in positions) == [1, 2, 3, 4, 5, 6]
    assert len({position.epoch for position in positions}) == 1
    site.sql(f"DROP TABLE {table}, {table}_log, {table}_keys, {table}_outbox CASCADE")
    async with tail(brokers(table=table, migrate=True)) as reading:
        await reading.until(CaughtUp)
    assert {entry["event"] for entry in logged} == {"postgres_migrated"}
    assert f"{table}_log" in logged[-1]["missing"]


async def test_tables_that_exist_are_not_changed_and_need_no_privilege(brokers, site, logged):
    site.sql("DO $$ BEGIN CREATE ROLE reader LOGIN PASSWORD 'secret'; EXCEPTION WHEN duplicate_object THEN END $$")
    site.sql(f"GRANT ALL ON {', '.join(site.table + end for end in ('', '_log', '_keys', '_outbox'))} TO reader")
    dsn = site.server.dsn_of(user="reader")
    assert (await brokers(connect=dsn, migrate=True).publish("t", b"x")).offset == 1
    assert logged == []
    missing = f"{site.table}_missing"
    with pytest.raises(BrokerRefused, match=r"permission denied for schema public.*prints the SQL"):
        await brokers(connect=dsn, table=missing, migrate=True).publish("t", b"x")
    assert site.sql("SELECT to_regclass(%s)", missing) == [(None,)]


async def test_a_migration_that_takes_too_long_is_down_and_succeeds_later(brokers, site, connections):
    table = f"{site.table}_slow"
    connection = await connections()
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (table,))
    broker = brokers(table=table, migrate=True, publish_timeout=1)
    with pytest.raises(BrokerDown, match=f"{table} could not be created"):
        await within(broker.publish("t", b"x"))
    await connection.rollback()
    later = brokers(table=table, migrate=True)
    assert (await within(later.publish("t", b"x"))).offset == 1


async def test_a_table_in_a_schema_outside_the_search_path(brokers, site, connections):
    site.sql("CREATE SCHEMA IF NOT EXISTS elsewhere")
    site.sql(migration("elsewhere.records"))
    broker = brokers(table="elsewhere.records")
    connection = await connections()
    async with tail(broker) as reading:
        await reading.until(CaughtUp)
        await broker.publish("t", b"x")
        await broker.publish("t", b"y", connection=connection)
        await connection.commit()
        assert await reading.payloads(2) == [b"x", b"y"]


def test_the_module_prints_the_migration(monkeypatch, capsys):
    command = [sys.executable, "-m", "aiohttp_interceptors.brokers.postgres"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == migration()
    monkeypatch.setattr(sys, "argv", ["postgres", "other.name"])
    runpy.run_module("aiohttp_interceptors.brokers.postgres", run_name="__main__")
    assert capsys.readouterr().out == migration("other.name")


def test_without_psycopg_the_import_error_says_what_to_install():
    code = "import sys; sys.modules['psycopg'] = None; import aiohttp_interceptors.brokers.postgres"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert "pip install 'aiohttp-interceptors[postgres]'" in done.stderr
