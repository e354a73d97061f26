"""A Hub is ready, and rejects a future ID, only while its broker confirms that nothing is missing."""

from __future__ import annotations

import asyncio

import pytest

from aiohttp_interceptors import Hub, HubDown, HubResumed, HubUp
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.hub import pending
from aiohttp_interceptors.hub.broker import CaughtUp, Entry, LogPosition, Subscribed
from tests.hub.sink import start
from tests.waiting import until


class ScriptedBroker(MemoryBroker):
    """A broker whose tail gives the items of the test."""

    confirms = 2.0

    def __init__(self):
        super().__init__(MemoryLog())
        self.items = asyncio.Queue()

    async def tail(self, after):
        yield Subscribed(after or LogPosition("e", 3))
        while (item := await self.items.get()) is not None:
            yield item


class ConfirmsOnce(ScriptedBroker):
    confirms = None


class Clock:
    """A monotonic clock that the test advances."""

    now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(pending, "time", clock)
    return clock


@pytest.fixture
async def hub_of(clock):
    hubs = []

    def make(broker):
        facts = []
        hub = Hub(broker, observer=facts.append)
        hub.facts = facts
        hub.open()
        hubs.append(hub)
        return hub

    yield make
    for hub in hubs:
        await hub.close()


async def sleep(seconds):
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    await until(lambda: loop.time() > deadline)


async def test_a_hub_is_not_ready_while_its_server_does_not_confirm(hub_of, clock):
    broker = ScriptedBroker()
    hub = hub_of(broker)
    assert not hub.ready
    for _ in range(2):
        broker.items.put_nowait(CaughtUp())
        await until(lambda: hub.ready)
        clock.now += broker.confirms + pending.CONFIRMATION_TOLERANCE - 0.1
        assert hub.ready
        clock.now += 0.2
        assert not hub.ready
    assert hub.facts == [HubUp(0)]


async def test_entries_are_no_confirmation(hub_of, clock):
    """They may be old entries that the process is late to read."""
    broker = ScriptedBroker()
    hub = hub_of(broker)
    broker.items.put_nowait(CaughtUp())
    await until(lambda: hub.ready)
    clock.now += 60
    broker.items.put_nowait([Entry(4, "a", b"\x10data: x\n\n")])
    await until(lambda: hub.history.end == 4)
    assert not hub.ready


async def test_a_broker_without_confirms_is_ready_while_its_tail_runs(hub_of, clock):
    broker = ConfirmsOnce()
    hub = hub_of(broker)
    broker.items.put_nowait(CaughtUp())
    await until(lambda: hub.ready)
    clock.now += 3600
    assert hub.ready
    broker.items.put_nowait(None)
    await until(lambda: not hub.ready)


async def test_repeated_confirmations_are_reported_as_one_fact(hub_of):
    broker = ScriptedBroker()
    hub = hub_of(broker)
    for _ in range(5):
        broker.items.put_nowait(CaughtUp())
    broker.items.put_nowait(None)
    await until(lambda: len(hub.facts) == 2)
    for _ in range(5):
        broker.items.put_nowait(CaughtUp())
    await until(lambda: broker.items.empty() and hub.ready)
    assert [type(fact) for fact in hub.facts] == [HubUp, HubDown, HubResumed]


class TestFutureIds:
    @pytest.fixture
    async def hub(self, hub_of, monkeypatch):
        monkeypatch.setattr(pending, "FUTURE_ID_TIMEOUT", 0.05)
        self.broker = ScriptedBroker()
        hub = hub_of(self.broker)
        self.broker.items.put_nowait(CaughtUp())
        await until(lambda: hub.ready)
        return hub

    async def test_a_future_id_is_no_gap_while_the_server_does_not_confirm(self, hub):
        sink = start(hub, "a", after="e-4")
        await sleep(0.3)
        assert sink.frames == []
        entries = [Entry(4, "a", b"\x10data: 4\n\n"), Entry(5, "a", b"\x10data: 5\n\n")]
        self.broker.items.put_nowait(entries)
        await until(lambda: sink.texts == ["5"])

    async def test_a_future_id_is_a_gap_after_a_confirmation(self, hub):
        sink = start(hub, "a", after="e-9")
        await sleep(0.1)
        assert sink.frames == []
        self.broker.items.put_nowait(CaughtUp())
        await until(lambda: sink.texts == ["gap"])
        assert '"future"' in sink.frames[0].data

    async def test_a_confirmation_before_the_timeout_does_not_count(self, hub, monkeypatch):
        monkeypatch.setattr(pending, "FUTURE_ID_TIMEOUT", 60.0)
        sink = start(hub, "a", after="e-9")
        for _ in range(3):
            self.broker.items.put_nowait(CaughtUp())
        await until(self.broker.items.empty)
        await asyncio.sleep(0)
        assert sink.frames == []

    async def test_a_future_id_needs_another_confirmation_after_an_outage(self, hub):
        sink = start(hub, "a", after="e-9")
        self.broker.items.put_nowait(None)
        await until(lambda: len(hub.facts) == 2)
        await sleep(0.1)
        self.broker.items.put_nowait(CaughtUp())
        await until(lambda: len(hub.facts) == 3)
        assert sink.frames == []
        await sleep(0.1)
        self.broker.items.put_nowait(CaughtUp())
        await until(lambda: sink.texts == ["gap"])


@pytest.mark.parametrize(
    ("confirms", "error"), [("2", TypeError), (True, TypeError), (0, ValueError), (-1, ValueError)]
)
def test_confirms_must_be_a_positive_number(confirms, error):
    class Wrong(MemoryBroker):
        pass

    Wrong.confirms = confirms
    with pytest.raises(error, match="confirms"):
        Hub(Wrong(MemoryLog()))
