"""Runs whose process is killed or suspended: the other processes tell their end, once, and their streams end."""

from __future__ import annotations

import json
import signal
import sys

import pytest

from aiohttp_interceptors import Hub, RunState
from aiohttp_interceptors.hub import nodes
from tests.brokers.run_process import LEASE_INTERVAL, LEASE_TIMEOUT, TOPIC, broker, line, owner
from tests.listener import application, listen
from tests.waiting import until, within

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no POSIX signals")

LOST = {"state": "failed", "reason": "lost"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(nodes, "LEASE_INTERVAL", LEASE_INTERVAL)
    monkeypatch.setattr(nodes, "LEASE_TIMEOUT", LEASE_TIMEOUT)


@pytest.fixture
async def hubs(engine, address):
    """Two processes that are left."""
    hubs = [Hub(broker(engine, address)) for _ in range(2)]
    for hub in hubs:
        hub.open()
    await until(lambda: all(hub.ready for hub in hubs))
    yield hubs
    for hub in hubs:
        await hub.close()


@pytest.fixture
async def read_words(serve):
    """Open a stream of each Hub, and read its first words."""
    clients = []

    async def read(hubs):
        for hub in hubs:
            client = await listen(await serve(application(hub, TOPIC, replay=1000)))
            clients.append(client)
            assert await client.data(3) == ["word 0", "word 1", "word 2"]
        return clients

    yield read
    for client in clients:
        await client.close()


def is_in_order(events):
    """Return whether no word is missing or repeated after the first three, and the end is the only other event."""
    return [event.data for event in events[:-1]] == [f"word {number}" for number in range(3, len(events) + 2)]


@pytest.mark.parametrize("engine", ["sqlite", "redis", "postgres", "nats"])
async def test_a_process_that_is_killed_has_lost_its_run(read_words, logged, engine, address, hubs):
    async with owner(engine, address) as process:
        run_id = await line(process)
        clients = await read_words(hubs)
        runs = [hub.find_run(TOPIC) for hub in hubs]
        assert [(run.id, run.state) for run in runs] == [(run_id, RunState.RUNNING)] * 2
        process.kill()
        for client, run in zip(clients, runs, strict=True):
            events = await client.rest()
            assert client.complete
            assert json.loads(events[-1].data) == LOST
            assert is_in_order(events)
            assert await within(run.wait()) is RunState.FAILED
            assert run.reason == "lost"
        assert [hub.find_run(TOPIC).id for hub in hubs] == [run_id] * 2
    assert "hub_published_after_finish" not in [entry["event"] for entry in logged]


@pytest.mark.parametrize("engine", ["redis"])
async def test_one_that_is_suspended_and_goes_on_ends_its_run(read_words, logged, engine, address, hubs):
    """No event follows the end."""
    async with owner(engine, address) as process:
        await line(process)
        clients = await read_words(hubs)
        process.send_signal(signal.SIGSTOP)
        ends = []
        for client in clients:
            events = await client.rest()
            assert json.loads(events[-1].data) == LOST
            assert is_in_order(events)
            ends.append(events[-1].id)
        process.send_signal(signal.SIGCONT)
        assert await line(process) == "failed lost"
        assert await within(process.wait()) == 0
        await hubs[0].publish("other", "last")
        await until(lambda: all(hub.history.newest("other") is not None for hub in hubs))
        assert [hub.history.newest(TOPIC).id for hub in hubs] == ends
