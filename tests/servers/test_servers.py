"""The servers that tests start: persistence, freezing, wrong clocks and passwords."""

from __future__ import annotations

import time

import nats as client
import psycopg
import pytest
import redis

from tests.servers.nats import Nats
from tests.servers.postgres import Postgres
from tests.servers.valkey import DURABLE, Valkey


@pytest.mark.parametrize("engine", ["valkey", "redis"])
def test_valkey_keeps_acknowledged_writes(tmp_path, engine):
    server = Valkey(tmp_path, *DURABLE, engine=engine, password="secret")
    server.start()
    try:
        with redis.Redis.from_url(server.url) as connection:
            connection.set("a", "1")
        server.kill()
        assert not server.running
        server.restart()
        with redis.Redis.from_url(server.url) as connection:
            assert connection.get("a") == b"1"
    finally:
        server.stop()
    assert not server.accepts()


def test_a_frozen_server_does_not_respond_until_it_is_thawed(tmp_path):
    server = Valkey(tmp_path)
    server.start()
    try:
        server.freeze()
        with pytest.raises(redis.TimeoutError), redis.Redis.from_url(server.url, socket_timeout=0.05) as connection:
            connection.ping()
        server.thaw()
        with redis.Redis.from_url(server.url) as connection:
            assert connection.ping()
    finally:
        server.kill()


def test_a_server_can_have_a_wrong_clock(tmp_path):
    server = Valkey(tmp_path, engine="redis", clock=-60)
    server.start()
    try:
        with redis.Redis.from_url(server.url) as connection:
            assert connection.time()[0] == pytest.approx(time.time() - 60, abs=10)
    finally:
        server.stop()


def test_postgres_keeps_committed_rows_and_checks_passwords(tmp_path):
    server = Postgres(tmp_path, fsync="on")
    server.start()
    try:
        with psycopg.connect(server.dsn) as connection:
            connection.execute("create table t (a int)")
            connection.execute("insert into t values (1)")
        server.kill()
        server.restart()
        with psycopg.connect(server.dsn) as connection:
            assert connection.execute("select a from t").fetchall() == [(1,)]
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(server.dsn_of(password="wrong"))
    finally:
        server.stop()
    assert not server.running


async def test_nats_keeps_acknowledged_messages(tmp_path):
    server = Nats(tmp_path, password="secret", durable=True)
    server.start()
    try:
        connection = await client.connect(server.url, allow_reconnect=False)
        stream = connection.jetstream()
        await stream.add_stream(name="s", subjects=["s.>"])
        assert (await stream.publish("s.a", b"1")).seq == 1
        await connection.close()
        server.kill()
        server.restart()
        connection = await client.connect(server.url, allow_reconnect=False)
        assert (await connection.jetstream().get_msg("s", 1)).data == b"1"
        await connection.close()
    finally:
        server.stop()
    assert not server.running
