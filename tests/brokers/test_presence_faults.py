"""Presence between real processes that share a real broker, one of which is killed or frozen."""

# ruff: noqa: F811  # fixtures are imported, and arguments of tests

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack

import pytest

from aiohttp_interceptors.brokers.redis import RedisBroker
from aiohttp_interceptors.brokers.sqlite import SqliteBroker
from aiohttp_interceptors.hub import nodes
from tests.brokers.nodes import hub_on  # noqa: F401  # a fixture
from tests.brokers.presence_process import node
from tests.brokers.sqlite_process import line
from tests.hub.watcher import join, seen
from tests.servers.valkey import Valkey
from tests.waiting import until, within

LEASE_TIMEOUT = 1.5  # long enough for a process on a busy machine to renew its lease


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(nodes, "LEASE_TIMEOUT", LEASE_TIMEOUT)
    monkeypatch.setattr(nodes, "CHECK_INTERVAL", 0.05)


@pytest.fixture(params=["sqlite", "valkey"])
def place(request, tmp_path, own):
    """An engine, and the path or the URL of its log."""
    if request.param == "sqlite":
        return "sqlite", tmp_path / "hub.db"
    return "valkey", own(Valkey(tmp_path / "valkey")).url


@pytest.fixture
async def hub(place, hub_on):
    """The node of this process."""
    engine, where = place
    hub = await hub_on(RedisBroker(where) if engine == "valkey" else SqliteBroker(where))
    hub.presence("room")
    return hub


async def enter(process, *users, stack: AsyncExitStack) -> None:
    """Open a stream of another process for each user."""
    (port,) = await line(process)
    for user in users:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
        stack.callback(writer.close)
        writer.write(f"GET /?user={user} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert (await within(reader.readuntil(b"\r\n\r\n"))).startswith(b"HTTP/1.1 200")


async def test_the_users_of_a_killed_process_leave(place, hub):
    watcher = join(hub, "room", identity="ann")
    async with AsyncExitStack() as stack:
        process = await stack.enter_async_context(node(*place))
        await enter(process, "bob", "cat", stack=stack)
        await until(lambda: watcher.present == {"room": {"ann", "bob", "cat"}})
        loop = asyncio.get_running_loop()
        killed = loop.time()
        process.send_signal(signal.SIGKILL)
        await within(process.wait())
        assert seen(hub) == {"ann", "bob", "cat"}
        await until(lambda: watcher.present == {"room": {"ann"}})
        assert LEASE_TIMEOUT / 2 < loop.time() - killed < LEASE_TIMEOUT + 5
    assert watcher.told[-2:] == [{"topic": "room", "left": "bob"}, {"topic": "room", "left": "cat"}]


async def test_the_users_of_a_stopped_process_leave_at_once(monkeypatch, place, hub):
    monkeypatch.setattr(nodes, "LEASE_TIMEOUT", 1000.0)
    watcher = join(hub, "room", identity="ann")
    async with AsyncExitStack() as stack:
        process = await stack.enter_async_context(node(*place))
        await enter(process, "bob", stack=stack)
        await until(lambda: watcher.present == {"room": {"ann", "bob"}})
        process.send_signal(signal.SIGTERM)
        await until(lambda: watcher.present == {"room": {"ann"}})
        assert await within(process.wait()) == 0


async def test_the_users_of_a_frozen_process_leave_and_come_back(place, hub):
    watcher = join(hub, "room", identity="ann")
    async with AsyncExitStack() as stack:
        process = await stack.enter_async_context(node(*place))
        await enter(process, "bob", stack=stack)
        await until(lambda: watcher.present == {"room": {"ann", "bob"}})
        process.send_signal(signal.SIGSTOP)
        await until(lambda: watcher.present == {"room": {"ann"}})
        process.send_signal(signal.SIGCONT)
        await until(lambda: watcher.present == {"room": {"ann", "bob"}})
