"""A model of delivery over a broker: no event is repeated, or missing without a gap."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiohttp_interceptors import BrokerDown, Event, GapReason, Hub
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from tests.hub.reference import matches
from tests.hub.sink import Sink, start
from tests.waiting import run_other_tasks, until

pytestmark = pytest.mark.usefixtures("quick")

TOPICS = ["a", "b", "b.c"]
SUBSCRIPTIONS = [("a",), ("b",), (">",), ("a", "b.>"), ("*",)]


class Page(Sink):
    """A sink that notes how many events had been published when it received a gap."""

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
    """A browser: it has one stream at a time, to any process, and reconnects with its last event ID."""

    def __init__(self, topics: tuple[str, ...], published: list[str]) -> None:
        self.topics = topics
        self.published = published
        self.since = len(published)  # earlier events are not for this client
        self.seen: list[str | int] = []  # data of events; for a gap, the number published then
        self.foreign = 0  # index of the latest foreign gap in ``seen``
        self.sink: Sink | None = None
        self._given = ""

    def connect(self, hub: Hub) -> None:
        self.disconnect()
        self.sink = start(hub, *self.topics, sink=Page(self), after=self._given or None, prime=True)

    def disconnect(self) -> None:
        if self.sink is not None:
            self.sink.subscription.close()  # flushes what is pending
            self._given = self.sink.last_event_id or self._given
            self.sink = None


class Cluster:
    """Two processes, some clients, and the server."""

    def __init__(self) -> None:
        self.log = MemoryLog()
        self.hubs = [Hub(MemoryBroker(self.log)) for _ in range(2)]
        self.clients: list[Client] = []
        self.published: list[str] = []  # the topic of each event; its data is its index
        self.lossless = True  # the server has not lost or trimmed records

    async def publish(self, which: int, topic: str) -> None:
        self.published.append(topic)
        try:
            await self.hubs[which].publish(topic, str(len(self.published) - 1))
        except BrokerDown:
            self.published[-1] = ""

    async def connect(self, which: int, topics: tuple[str, ...]) -> None:
        hub = self.hubs[which]
        await self.synchronize()
        self.clients.append(Client(topics, self.published))
        self.clients[-1].connect(hub)
        await run_other_tasks(3)

    def client(self, which: int) -> Client | None:
        return self.clients[which % len(self.clients)] if self.clients else None

    async def reconnect(self, which: int, hub: int) -> None:
        if (client := self.client(which)) is not None:
            client.connect(self.hubs[hub])

    async def disconnect(self, which: int) -> None:
        if (client := self.client(which)) is not None:
            client.disconnect()

    async def pause(self, which: int) -> None:
        if (client := self.client(which)) is not None and client.sink is not None:
            client.sink.pause()

    async def resume(self, which: int) -> None:
        if (client := self.client(which)) is not None and client.sink is not None:
            client.sink.resume()

    async def stop_server(self) -> None:
        self.log.stop()

    async def restart_server(self) -> None:
        self.log.restart()

    async def truncate(self, count: int) -> None:
        self.lossless = False
        self.log.truncate(max(self.log.end - count, self.log.trimmed))

    async def trim(self, count: int) -> None:
        self.lossless = False
        for _ in range(min(count, len(self.log._entries))):
            self.log.trimmed = self.log._entries.popleft().offset

    async def wait(self, turns: int) -> None:
        await run_other_tasks(turns)

    async def replace_process(self, which: int) -> None:
        old = self.hubs[which]
        for client in self.clients:
            if client.sink is not None and client.sink.subscription._dispatcher is old._dispatcher:
                client.disconnect()
        await old.close()
        self.hubs[which] = Hub(MemoryBroker(self.log))

    async def synchronize(self) -> None:
        """Wait until both processes have everything."""
        self.log.restart()
        for hub in self.hubs:
            hub.open()
            await until(
                lambda hub=hub: hub.ready and (hub.history.epoch, hub.history.end) == (self.log.epoch, self.log.end)
            )
        await run_other_tasks(3)

    async def check(self) -> None:
        await self.synchronize()
        for number, client in enumerate(self.clients):
            if client.sink is None:
                client.connect(self.hubs[number % 2])
            client.sink.resume()
        for hub in self.hubs:
            await until(lambda hub=hub: not hub._pending._waiting)
        await run_other_tasks(5)
        for client in self.clients:
            self.check_client(client)

    def check_client(self, client: Client) -> None:
        # After a foreign gap a client receives the whole history.
        numbers = [int(item) for item in client.seen[client.foreign :] if isinstance(item, str)]
        assert numbers == sorted(set(numbers)), client.seen
        if self.lossless:
            assert len(numbers) == len(client.seen), client.seen
        before, reported = client.since - 1, 0
        for item in [*client.seen, str(len(self.published))]:
            if isinstance(item, int):
                reported = item
                continue
            missing = [number for number in range(max(before + 1, reported), int(item)) if self.is_for(client, number)]
            assert not missing, (missing, client.seen, self.published)
            before = int(item)

    def is_for(self, client: Client, number: int) -> bool:
        topic = self.published[number]
        return bool(topic) and any(matches(name, topic) for name in client.topics)

    async def close(self) -> None:
        for hub in self.hubs:
            await hub.close()


def steps(*, lossy: bool):
    which = st.integers(0, 1)
    client = st.integers(0, 5)
    kinds = [
        st.tuples(st.just("publish"), which, st.sampled_from(TOPICS)),
        st.tuples(st.just("publish"), which, st.sampled_from(TOPICS)),
        st.tuples(st.just("connect"), which, st.sampled_from(SUBSCRIPTIONS)),
        st.tuples(st.just("reconnect"), client, which),
        st.tuples(st.just("disconnect"), client),
        st.tuples(st.just("pause"), client),
        st.tuples(st.just("resume"), client),
        st.tuples(st.just("stop_server")),
        st.tuples(st.just("restart_server")),
        st.tuples(st.just("wait"), st.integers(1, 8)),
        st.tuples(st.just("replace_process"), which),
    ]
    if lossy:
        kinds += [st.tuples(st.just("truncate"), st.integers(0, 3)), st.tuples(st.just("trim"), st.integers(1, 3))]
    return st.lists(st.one_of(kinds), min_size=20, max_size=60)


async def run(cluster: Cluster, story) -> None:
    """Have two clients, tell a story, and check what they received."""
    try:
        for which in range(2):
            await cluster.connect(which, (">",))
        for what, *arguments in story:
            await getattr(cluster, what)(*arguments)
        await cluster.check()
    finally:
        await cluster.close()


@given(steps(lossy=False))
@settings(max_examples=150, deadline=None)
def test_outages_and_new_processes_cause_no_loss_repetition_or_gap(story):
    asyncio.run(run(Cluster(), story))


@given(steps(lossy=True))
@settings(max_examples=300, deadline=None)
def test_only_records_that_the_server_lost_or_trimmed_are_missing_and_they_are_reported(story):
    asyncio.run(run(Cluster(), story))
