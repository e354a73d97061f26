"""Whatever happens to processes, streams and their broker: nothing comes twice or is missing without a gap."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.hub.sink import Sink, start, turn

from aiohttp_interceptors import BrokerDown, Event, GapReason, Hub
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.hub import dispatcher as pending
from aiohttp_interceptors.hub import replication as supervision
from tests.hub.reference import matches
from tests.waiting import until

TOPICS = ["a", "b", "b.c"]
ASKED = [("a",), ("b",), (">",), ("a", "b.>"), ("*",)]


class Page(Sink):
    """A client that notes what had been published when it was told of a gap."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client

    def received(self, frames: list[Event]) -> None:
        super().received(frames)
        published = len(self._client.published)
        for event in frames:
            if event.name == "gap" and json.loads(event.data)["reason"] == GapReason.FOREIGN:
                self._client.foreign = len(self._client.seen)
            if event.data is not None:
                self._client.seen.append(published if event.name == "gap" else event.data)


class Client:
    """A browser: it has one stream at a time, of whichever process, and returns with the id that it had last."""

    def __init__(self, topics: tuple[str, ...], published: list[str]) -> None:
        self.topics = topics
        self.published = published
        self.since = len(published)  # what was published before is none of its business
        self.seen: list[str | int] = []  # the data of events, and how many had been published at each gap
        self.foreign = 0  # where in there the latest foreign gap is
        self.sink: Sink | None = None
        self._given = ""

    def connect(self, hub: Hub) -> None:
        self.disconnect()
        self.sink = start(hub, *self.topics, sink=Page(self), after=self._given or None, prime=True)

    def disconnect(self) -> None:
        if self.sink is not None:
            self.sink.subscription.close()  # which still writes what is on its way
            self._given = self.sink.last_event_id or self._given
            self.sink = None


class World:
    """Two processes, some clients, and the server between them."""

    def __init__(self) -> None:
        self.log = MemoryLog()
        self.hubs = [Hub(MemoryBroker(self.log)) for _ in range(2)]
        self.clients: list[Client] = []
        self.published: list[str] = []  # the topic of each event; its data is its place in here
        self.harmless = True  # nothing happened that can lose anything

    async def publish(self, which: int, topic: str) -> None:
        self.published.append(topic)
        try:
            await self.hubs[which].publish(topic, str(len(self.published) - 1))
        except BrokerDown:
            self.published[-1] = ""

    async def connect(self, which: int, topics: tuple[str, ...]) -> None:
        hub = self.hubs[which]
        await self.settle()
        self.clients.append(Client(topics, self.published))
        self.clients[-1].connect(hub)
        await turn(3)

    def client(self, which: int) -> Client | None:
        return self.clients[which % len(self.clients)] if self.clients else None

    async def returns(self, which: int, hub: int) -> None:
        if (client := self.client(which)) is not None:
            client.connect(self.hubs[hub])

    async def leaves(self, which: int) -> None:
        if (client := self.client(which)) is not None:
            client.disconnect()

    async def pauses(self, which: int) -> None:
        if (client := self.client(which)) is not None and client.sink is not None:
            client.sink.pause()

    async def reads(self, which: int) -> None:
        if (client := self.client(which)) is not None and client.sink is not None:
            client.sink.resume()

    async def stops(self) -> None:
        self.log.stop()

    async def restarts(self) -> None:
        self.log.restart()

    async def loses(self, count: int) -> None:
        self.harmless = False
        self.log.truncate(max(self.log.end - count, self.log.trimmed))

    async def trims(self, count: int) -> None:
        self.harmless = False
        for _ in range(min(count, len(self.log._entries))):
            self.log.trimmed = self.log._entries.popleft().offset

    async def passes(self, turns: int) -> None:
        await turn(turns)

    async def joins_late(self, which: int) -> None:
        old = self.hubs[which]
        for client in self.clients:
            if client.sink is not None and client.sink.subscription._dispatcher is old._dispatcher:
                client.disconnect()
        await old.close()
        self.hubs[which] = Hub(MemoryBroker(self.log))

    async def settle(self) -> None:
        """Wait until both processes have everything."""
        self.log.restart()
        for hub in self.hubs:
            hub.open()
            await until(lambda hub=hub: hub.ready and (hub.log.epoch, hub.log.end) == (self.log.epoch, self.log.end))
        await turn(3)

    async def judge(self) -> None:
        await self.settle()
        for number, client in enumerate(self.clients):
            if client.sink is None:
                client.connect(self.hubs[number % 2])
            client.sink.resume()
        for hub in self.hubs:
            await until(lambda hub=hub: not hub._dispatcher.pending._waiting)
        await turn(5)
        for client in self.clients:
            self.judge_one(client)

    def judge_one(self, client: Client) -> None:
        # After a foreign gap a client is sent all there is, from the beginning.
        numbers = [int(said) for said in client.seen[client.foreign :] if isinstance(said, str)]
        assert numbers == sorted(set(numbers)), client.seen
        if self.harmless:
            assert len(numbers) == len(client.seen), client.seen
        before, told = client.since - 1, 0
        for said in [*client.seen, str(len(self.published))]:
            if isinstance(said, int):
                told = said
                continue
            missing = [number for number in range(max(before + 1, told), int(said)) if self.is_for(client, number)]
            assert not missing, (missing, client.seen, self.published)
            before = int(said)

    def is_for(self, client: Client, number: int) -> bool:
        topic = self.published[number]
        return bool(topic) and any(matches(name, topic) for name in client.topics)

    async def close(self) -> None:
        for hub in self.hubs:
            await hub.close()


def steps(*, harmful: bool):
    which = st.integers(0, 1)
    client = st.integers(0, 5)
    kinds = [
        st.tuples(st.just("publish"), which, st.sampled_from(TOPICS)),
        st.tuples(st.just("publish"), which, st.sampled_from(TOPICS)),
        st.tuples(st.just("connect"), which, st.sampled_from(ASKED)),
        st.tuples(st.just("returns"), client, which),
        st.tuples(st.just("leaves"), client),
        st.tuples(st.just("pauses"), client),
        st.tuples(st.just("reads"), client),
        st.tuples(st.just("stops")),
        st.tuples(st.just("restarts")),
        st.tuples(st.just("passes"), st.integers(1, 8)),
        st.tuples(st.just("joins_late"), which),
    ]
    if harmful:
        kinds += [st.tuples(st.just("loses"), st.integers(0, 3)), st.tuples(st.just("trims"), st.integers(1, 3))]
    return st.lists(st.one_of(kinds), min_size=20, max_size=60)


async def live_through(story) -> None:
    world = World()
    try:
        for which in range(2):
            await world.connect(which, (">",))
        for what, *arguments in story:
            await getattr(world, what)(*arguments)
        await world.judge()
    finally:
        await world.close()


@pytest.fixture(autouse=True, scope="module")
def quick():
    """A server in this process is back at once, and so is who follows it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervision, "FIRST_DELAY", 0.0001)
        patch.setattr(supervision, "LONGEST_DELAY", 0.001)
        patch.setattr(pending, "PATIENCE", 0.05)
        patch.setattr(MemoryBroker, "confirms", 0.02)
        yield


@given(steps(harmful=False))
@settings(max_examples=150, deadline=None)
def test_nothing_is_lost_repeated_or_told_to_be_missing_over_outages_and_new_processes(story):
    asyncio.run(live_through(story))


@given(steps(harmful=True))
@settings(max_examples=300, deadline=None)
def test_what_a_server_lost_or_trimmed_is_told_and_nothing_else_is_missing(story):
    asyncio.run(live_through(story))
