"""A Hub closes within a time limit, at any moment and whatever its broker does."""

from __future__ import annotations

import asyncio

import pytest

from aiohttp_interceptors import BrokerDown, Hub
from aiohttp_interceptors import _tasks as ending
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.hub import hub as hub_module
from aiohttp_interceptors.hub import replication
from tests.waiting import until, within


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(ending, "CANCEL_TIMEOUT", 60.0)
    monkeypatch.setattr(hub_module, "TAIL_CLOSE_TIMEOUT", 0.05)
    monkeypatch.setattr(replication, "MIN_RECONNECT_DELAY", 0.001)


async def swallow():
    """Wait, and return when cancelled, as ``asyncio.wait_for`` of Python 3.11 may do."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        pass


class Swallows(MemoryBroker):
    """A broker whose client swallows a cancellation at one place."""

    def __init__(self, where):
        super().__init__(MemoryLog())
        self.where = where
        self.waits = False
        self.tails = self.ended = 0

    async def tail(self, after):
        self.tails += 1
        try:
            if self.where == "connecting":
                await self.swallow()
                raise BrokerDown("no connection")
            async for item in super().tail(after):
                yield item
                if self.where == "reading":
                    await self.swallow()
        finally:
            self.ended += 1
            if self.where == "closing":
                await self.swallow()

    async def swallow(self):
        self.waits = True
        await swallow()


@pytest.mark.parametrize("where", ["connecting", "reading"])
async def test_a_tail_that_swallows_a_cancellation_ends(where, logged):
    broker = Swallows(where)
    hub = Hub(broker)
    hub.open()
    await until(lambda: broker.waits)
    await within(hub.close())
    assert (broker.tails, broker.ended) == (1, 1)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert [line for line in logged if line["event"] == "did_not_end"] == []


@pytest.mark.parametrize("turns", range(12))
@pytest.mark.parametrize("where", ["connecting", "reading", "closing"])
async def test_a_hub_can_be_closed_at_every_moment(where, turns):
    broker = Swallows(where)
    hub = Hub(broker)
    hub.open()
    for _ in range(turns):
        await asyncio.sleep(0)
    await within(hub.close())
    assert broker.ended == broker.tails
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_tail_that_ignores_cancellation_is_logged_and_the_broker_is_closed(logged, monkeypatch):
    monkeypatch.setattr(ending, "CANCEL_TIMEOUT", 0.05)
    let_go = asyncio.Event()

    class Stubborn(MemoryBroker):
        async def tail(self, after):
            while not let_go.is_set():
                try:
                    await let_go.wait()
                except asyncio.CancelledError:
                    continue
            yield None

        def __repr__(self):
            return "Stubborn()"

    broker = Stubborn(MemoryLog())
    hub = Hub(broker)
    hub.open()
    await asyncio.sleep(0)
    before = asyncio.all_tasks()
    await within(hub.close())
    assert [(line["event"], line["what"]) for line in logged] == [("did_not_end", "the tail of Stubborn()")]
    with pytest.raises(BrokerDown, match="closed"):
        await broker.publish("a", b"")
    let_go.set()
    await asyncio.wait(before - {asyncio.current_task()})


async def test_a_broker_that_hangs_in_close_is_logged(logged, monkeypatch):
    monkeypatch.setattr(hub_module, "BROKER_CLOSE_TIMEOUT", 0.05)

    class Hangs(MemoryBroker):
        async def close(self):
            await asyncio.Event().wait()

        def __repr__(self):
            return "Hangs()"

    hub = Hub(Hangs(MemoryLog()))
    await within(hub.close())
    assert [(line["event"], line["what"]) for line in logged] == [("took_too_long", "the close of Hangs()")]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_exceptions_of_broker_close_are_raised():
    class Fails(MemoryBroker):
        async def close(self):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await Hub(Fails(MemoryLog())).close()


async def test_a_cancelled_close_can_be_repeated(monkeypatch):
    monkeypatch.setattr(hub_module, "TAIL_CLOSE_TIMEOUT", 60.0)
    hold = asyncio.Event()

    class Slow(MemoryBroker):
        async def tail(self, after):
            try:
                async for item in super().tail(after):
                    yield item
            finally:
                await hold.wait()

    broker = Slow(MemoryLog())
    hub = Hub(broker)
    hub.open()
    await until(lambda: hub.ready)
    closing = asyncio.create_task(hub.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(closing)
    assert not hub.ready
    await broker.publish("a", b"")
    hold.set()
    await within(hub.close())
    with pytest.raises(BrokerDown, match="closed"):
        await broker.publish("a", b"")
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_two_tasks_can_close_a_hub_at_the_same_time():
    hub = Hub(MemoryBroker(MemoryLog()))
    hub.open()
    await until(lambda: hub.ready)
    await within(asyncio.gather(hub.close(), hub.close()))
    assert asyncio.all_tasks() == {asyncio.current_task()}
