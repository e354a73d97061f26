"""A Hub is ready, and sure that an id will not come, only as far as its broker's server has said lately."""

from __future__ import annotations

import asyncio

import pytest
from tests.hub.sink import start

from aiohttp_interceptors import Hub, HubDown, HubResumed, HubUp
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.hub import dispatcher as module
from aiohttp_interceptors.hub.broker import CaughtUp, Entry, LogPosition, Subscribed
from tests.waiting import until


class Told(MemoryBroker):
    """A broker whose tail says what the test says, and nothing while its server is frozen."""

    confirms = 2.0

    def __init__(self):
        super().__init__(MemoryLog())
        self.items = asyncio.Queue()

    async def tail(self, after):
        yield Subscribed(after or LogPosition("e", 3))
        while (item := await self.items.get()) is not None:
            yield item


class ToldOnce(Told):
    confirms = None


class Clock:
    """The time of the process, which goes on when the test says so."""

    now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
async def follow(clock):
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


async def seconds(number):
    loop = asyncio.get_running_loop()
    over = loop.time() + number
    await until(lambda: loop.time() > over)


async def test_a_server_that_says_nothing_leaves_its_hub_not_ready_and_one_that_speaks_again_ready(follow, clock):
    broker = Told()
    hub = follow(broker)
    assert not hub.ready
    for _ in range(2):
        broker.items.put_nowait(CaughtUp())
        await until(lambda: hub.ready)
        clock.now += broker.confirms + module.SLACK - 0.1
        assert hub.ready
        clock.now += 0.2
        assert not hub.ready
    assert hub.facts == [HubUp(0)]


async def test_events_alone_do_not_say_that_there_are_no_more(follow, clock):
    """A replay of what was long ago is events, too."""
    broker = Told()
    hub = follow(broker)
    broker.items.put_nowait(CaughtUp())
    await until(lambda: hub.ready)
    clock.now += 60
    broker.items.put_nowait([Entry(4, "a", b"\x10data: x\n\n")])
    await until(lambda: hub.log.end == 4)
    assert not hub.ready


async def test_a_broker_that_says_it_once_in_each_tail_is_ready_as_long_as_that_lives(follow, clock):
    broker = ToldOnce()
    hub = follow(broker)
    broker.items.put_nowait(CaughtUp())
    await until(lambda: hub.ready)
    clock.now += 3600
    assert hub.ready
    broker.items.put_nowait(None)
    await until(lambda: not hub.ready)


async def test_it_is_told_once_that_it_is_up_however_often_the_server_says_so(follow):
    broker = Told()
    hub = follow(broker)
    for _ in range(5):
        broker.items.put_nowait(CaughtUp())
    broker.items.put_nowait(None)
    await until(lambda: len(hub.facts) == 2)
    for _ in range(5):
        broker.items.put_nowait(CaughtUp())
    await until(lambda: broker.items.empty() and hub.ready)
    assert [type(fact) for fact in hub.facts] == [HubUp, HubDown, HubResumed]


class TestAnIdThatMayStillCome:
    @pytest.fixture
    async def hub(self, follow, monkeypatch):
        monkeypatch.setattr(module, "PATIENCE", 0.05)
        self.broker = Told()
        hub = follow(self.broker)
        self.broker.items.put_nowait(CaughtUp())
        await until(lambda: hub.ready)
        return hub

    async def test_it_is_no_gap_while_the_server_says_nothing(self, hub):
        sink = start(hub, "a", after="e-4")
        await seconds(0.3)
        assert sink.frames == []
        entries = [Entry(4, "a", b"\x10data: 4\n\n"), Entry(5, "a", b"\x10data: 5\n\n")]
        self.broker.items.put_nowait(entries)
        await until(lambda: sink.texts == ["5"])

    async def test_it_is_one_when_the_server_has_said_that_there_is_no_more(self, hub):
        sink = start(hub, "a", after="e-9")
        await seconds(0.1)
        assert sink.frames == []
        self.broker.items.put_nowait(CaughtUp())
        await until(lambda: sink.texts == ["gap"])
        assert '"future"' in sink.frames[0].data

    async def test_what_the_server_said_before_its_time_was_over_does_not_count(self, hub, monkeypatch):
        monkeypatch.setattr(module, "PATIENCE", 60.0)
        sink = start(hub, "a", after="e-9")
        for _ in range(3):
            self.broker.items.put_nowait(CaughtUp())
        await until(self.broker.items.empty)
        await asyncio.sleep(0)
        assert sink.frames == []

    async def test_a_server_that_was_away_is_asked_anew(self, hub):
        sink = start(hub, "a", after="e-9")
        self.broker.items.put_nowait(None)
        await until(lambda: len(hub.facts) == 2)
        await seconds(0.1)
        self.broker.items.put_nowait(CaughtUp())
        await until(lambda: len(hub.facts) == 3)
        assert sink.frames == []
        await seconds(0.1)
        self.broker.items.put_nowait(CaughtUp())
        await until(lambda: sink.texts == ["gap"])


@pytest.mark.parametrize(
    ("confirms", "error"), [("2", TypeError), (True, TypeError), (0, ValueError), (-1, ValueError)]
)
def test_confirms_is_a_number_of_seconds(confirms, error):
    class Wrong(MemoryBroker):
        pass

    Wrong.confirms = confirms
    with pytest.raises(error, match="confirms"):
        Hub(Wrong(MemoryLog()))
