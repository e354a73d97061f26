"""A model of losses: random stories of two real servers and three processes.

The data of a server is replaced by that of the other one, or by an older copy, as a promotion, a demotion or a restored
backup do, and processes connect to either server. At the end each process has exactly the entries of one server, and
every acknowledged entry is among them, or was lost and reported after its acknowledgement.
"""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from aiohttp_interceptors.brokers.redis import RedisBroker
from aiohttp_interceptors.hub.broker import CaughtUp, Subscribed, Trimmed, Truncated
from tests.brokers.contract import tail
from tests.brokers.redis_site import LOG, STREAM
from tests.servers.valkey import Valkey

PROCESSES = 3
process = st.integers(0, PROCESSES - 1)
server = st.integers(0, 1)
steps = st.one_of(
    st.tuples(st.just("publish"), process, st.integers(1, 3)),
    st.tuples(st.just("publish"), process, st.integers(1, 3)),
    st.tuples(st.just("read"), process, st.none()),
    st.tuples(st.just("read"), process, st.none()),
    st.tuples(st.just("move"), process, server),
    st.tuples(st.just("move"), process, server),
    st.tuples(st.just("copy"), server, st.none()),
    st.tuples(st.just("save"), server, st.none()),
    st.tuples(st.just("load"), server, st.none()),
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two servers, for all examples."""
    made = [Valkey(tmp_path_factory.mktemp(f"server{n}")) for n in range(2)]
    for each in made:
        each.start()
    yield made
    for each in made:
        each.kill()


class Process:
    """A broker, the entries that its tail has received, and when a loss was reported to it."""

    def __init__(self, story) -> None:
        self.story = story
        self.at = 0
        self.broker = RedisBroker(self._connect, read_timeout=5.0)
        self.position = None
        self.view: list[tuple[int, bytes]] = []
        self.received: set[bytes] = set()
        self.truncated_at = -1
        self.truncations = 0

    async def _connect(self):
        return Redis.from_url(self.story.urls[self.at], protocol=2)

    async def move(self, to):
        self.at = to
        await self.broker._disconnect()

    async def publish(self, count):
        for _ in range(count):
            payload = b"%d" % self.story.count
            self.story.count += 1
            await self.broker.publish("t", payload)
            self.story.acknowledged[payload] = self.story.tick()

    async def read(self):
        """Read until the tail has caught up."""
        async with tail(self.broker, self.position) as reading:
            while not isinstance(item := await reading.item(), CaughtUp):
                if isinstance(item, Truncated):
                    self.view = [entry for entry in self.view if entry[0] <= item.position.offset]
                    self.truncated_at = self.story.tick()
                    self.truncations += 1
                    if self.position is not None:
                        assert item.position.epoch != reading.epochs[-1]
                elif not isinstance(item, Subscribed | Trimmed):
                    self.view += [(entry.offset, entry.payload) for entry in item]
                    self.received |= {entry.payload for entry in item}
                assert not isinstance(item, Trimmed)
                if isinstance(item, Subscribed | Truncated):
                    reading.epochs = [*getattr(reading, "epochs", []), item.position.epoch]
            self.position = reading.position
        assert len(self.view) == len(set(self.view))


class Story:
    """Two servers and some processes."""

    def __init__(self, urls) -> None:
        self.urls = urls
        self.count = 0
        self.acknowledged: dict[bytes, int] = {}
        self.now = 0
        self.processes = [Process(self) for _ in range(PROCESSES)]
        self.saved = None

    def tick(self):
        self.now += 1
        return self.now

    async def save(self, server):
        async with Redis.from_url(self.urls[server]) as client:
            self.saved = [await client.dump(key) for key in (STREAM, LOG)]

    async def load(self, server):
        if self.saved is None:
            return
        async with Redis.from_url(self.urls[server]) as client:
            await client.delete(STREAM, LOG)
            for key, dump in zip((STREAM, LOG), self.saved, strict=True):
                if dump is not None:
                    await client.restore(key, 0, dump, replace=True)
        await asyncio.sleep(0.003)  # two entries in one millisecond could have the same ID

    async def copy(self, to):
        saved, self.saved = self.saved, None
        await self.save(1 - to)
        await self.load(to)
        self.saved = saved

    async def run(self, story):
        for each in self.processes:
            await each.read()
        for kind, which, argument in story:
            if kind in ("publish", "read", "move"):
                call = getattr(self.processes[which], kind)
                await (call() if argument is None else call(argument))
            else:
                await getattr(self, kind)(which)

    async def check(self):
        for each in self.processes:
            await each.move(0)
        for _ in range(2):  # the last process may report a loss to the first one
            for each in self.processes:
                await each.read()
        async with Redis.from_url(self.urls[0]) as client:
            there = [fields[b"p"] for _, fields in await client.xrange(STREAM)]
        for each in self.processes:
            assert [payload for _, payload in each.view] == there
            for payload, when in self.acknowledged.items():
                assert payload in each.received or each.truncated_at > when, (payload, when, each.truncated_at)
        assert len({each.position for each in self.processes}) == 1
        truncations = [each.truncations for each in self.processes]
        for each in self.processes:  # nothing further is reported
            await each.read()
        assert [each.truncations for each in self.processes] == truncations

    async def close(self):
        for each in self.processes:
            await each.broker.close()


@given(st.lists(steps, max_size=25))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_acknowledged_entry_is_kept_or_its_loss_is_reported(pair, story):
    async def run():
        for each in pair:
            async with Redis.from_url(each.url) as client:
                await client.flushall()
        world = Story([each.url for each in pair])
        try:
            async with asyncio.timeout(60):
                await world.run(story)
                await world.check()
        finally:
            await world.close()

    asyncio.run(run())
