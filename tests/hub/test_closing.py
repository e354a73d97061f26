"""A Hub closes within a limit, whatever its broker does, and at whichever moment."""

from __future__ import annotations

import asyncio

import pytest

from aiohttp_interceptors import BrokerDown, Hub
from aiohttp_interceptors import _tasks as ending
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.hub import hub as module
from aiohttp_interceptors.hub import replication as supervision
from tests.waiting import until, within


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(ending, "AGAIN", 60.0)
    monkeypatch.setattr(module, "CLOSING", 0.05)
    monkeypatch.setattr(supervision, "FIRST_DELAY", 0.001)


async def swallow():
    """Wait, and return when cancelled, as ``asyncio.wait_for`` of Python 3.11 may."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        pass


class Swallows(MemoryBroker):
    """A broker whose client swallows the cancellation that comes at one place."""

    def __init__(self, where):
        super().__init__(MemoryLog())
        self.where = where
        self.waits = False
        self.tails = self.ended = 0

    async def tail(self, after):
        self.tails += 1
        try:
            if self.where == "connecting":
                await self.lose()
                raise BrokerDown("no connection")
            async for item in super().tail(after):
                yield item
                if self.where == "reading":
                    await self.lose()
        finally:
            self.ended += 1
            if self.where == "closing":
                await self.lose()

    async def lose(self):
        self.waits = True
        await swallow()


@pytest.mark.parametrize("where", ["connecting", "reading"])
async def test_a_tail_that_swallows_its_cancellation_ends_all_the_same(where, logged):
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
async def test_it_closes_at_every_moment(where, turns):
    broker = Swallows(where)
    hub = Hub(broker)
    hub.open()
    for _ in range(turns):
        await asyncio.sleep(0)
    await within(hub.close())
    assert broker.ended == broker.tails
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_tail_that_heeds_nothing_is_named_and_the_broker_closed(logged, monkeypatch):
    monkeypatch.setattr(ending, "AGAIN", 0.05)
    let_go = asyncio.Event()

    class Heedless(MemoryBroker):
        async def tail(self, after):
            while not let_go.is_set():
                try:
                    await let_go.wait()
                except asyncio.CancelledError:
                    continue
            yield None

        def __repr__(self):
            return "Heedless()"

    broker = Heedless(MemoryLog())
    hub = Hub(broker)
    hub.open()
    await asyncio.sleep(0)
    before = asyncio.all_tasks()
    await within(hub.close())
    assert [(line["event"], line["what"]) for line in logged] == [("did_not_end", "the tail of Heedless()")]
    with pytest.raises(BrokerDown, match="closed"):
        await broker.publish("a", b"")
    let_go.set()
    await asyncio.wait(before - {asyncio.current_task()})


async def test_a_broker_that_hangs_when_it_is_closed_is_named(logged, monkeypatch):
    monkeypatch.setattr(module, "GIVING_BACK", 0.05)

    class Hangs(MemoryBroker):
        async def close(self):
            await asyncio.Event().wait()

        def __repr__(self):
            return "Hangs()"

    hub = Hub(Hangs(MemoryLog()))
    await within(hub.close())
    assert [(line["event"], line["what"]) for line in logged] == [("took_too_long", "the close of Hangs()")]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_what_a_broker_raises_when_it_is_closed_is_raised():
    class Fails(MemoryBroker):
        async def close(self):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await Hub(Fails(MemoryLog())).close()


async def test_a_close_that_was_cancelled_can_be_done_again(monkeypatch):
    monkeypatch.setattr(module, "CLOSING", 60.0)
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


async def test_it_can_be_closed_by_two_at_once():
    hub = Hub(MemoryBroker(MemoryLog()))
    hub.open()
    await until(lambda: hub.ready)
    await within(asyncio.gather(hub.close(), hub.close()))
    assert asyncio.all_tasks() == {asyncio.current_task()}
