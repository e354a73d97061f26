"""A model of erasing and evicting: nothing is sent after it was erased, and nothing is missing without a gap."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiohttp_interceptors import BrokerDown, Event, Hub, OutcomeUnknown
from aiohttp_interceptors.brokers.memory import MemoryBroker
from aiohttp_interceptors.hub import publisher
from aiohttp_interceptors.hub.broker import Erased
from tests.hub.sink import start
from tests.hub.test_delivery_over_a_broker import TOPICS, Client, Cluster, Page, run, steps
from tests.waiting import run_other_tasks


class DeletingBroker(MemoryBroker):
    """A broker that keeps no places of erased entries, as those on Redis and NATS."""

    async def erase(self, topic, before):
        self._log.erased_by = max(getattr(self._log, "erased_by", 0), before.offset)
        await super().erase(topic, before)

    async def tail(self, after):
        async for item in super().tail(after):
            if not isinstance(item, list):
                yield item
                continue
            batch = []
            for entry in item:
                if entry.payload:
                    batch.append(entry)
                    continue
                if batch:
                    yield batch
                batch = []
                yield Erased(entry.offset, self._log.erased_by)
            if batch:
                yield batch


class ErasingPage(Page):
    """A page that checks that nothing is sent which this process has erased."""

    def __init__(self, client: ErasingClient, erased: dict[str, int]) -> None:
        super().__init__(client)
        self._erased = erased

    def received(self, frames: list[Event]) -> None:
        for event in frames:
            if event.name != "gap" and event.data is not None:
                topic = self._client.published[int(event.data)]
                assert int(event.data) >= self._erased[topic], (event, self._erased)
        super().received(frames)


class ErasingClient(Client):
    """A browser whose streams are ``ErasingPage`` objects."""

    cluster: ErasingCluster

    def connect(self, hub: Hub) -> None:
        self.disconnect()
        page = ErasingPage(self, self.cluster.erased[self.cluster.hubs.index(hub)])
        self.sink = start(hub, *self.topics, sink=page, after=self._given or None, prime=True)


class ErasingCluster(Cluster):
    """Processes that may erase."""

    def __init__(self, broker: type[MemoryBroker], **options: int | None) -> None:
        super().__init__()
        self.broker, self.options = broker, options
        self.hubs = [self.hub() for _ in range(2)]
        self.lossless = False
        # By process and topic, the number of the first event that is not erased.
        self.erased: list[dict[str, int]] = [defaultdict(int) for _ in range(2)]
        self.tasks: list[asyncio.Task[None]] = []

    def hub(self) -> Hub:
        return Hub(self.broker(self.log), **self.options)

    async def connect(self, which: int, topics: tuple[str, ...]) -> None:
        await self.synchronize()
        self.clients.append(ErasingClient(topics, self.published))
        self.clients[-1].cluster = self
        self.clients[-1].connect(self.hubs[which])
        await run_other_tasks(3)

    async def replace_process(self, which: int) -> None:
        await super().replace_process(which)
        self.hubs[which] = self.hub()

    async def erase(self, which: int, topic: str) -> None:
        """Erase in one process. The other one does when it has everything."""
        hub, count, epoch = self.hubs[which], len(self.published), self.log.epoch
        try:
            await hub.erase(topic)
        except (BrokerDown, OutcomeUnknown):
            return
        if self.hubs[which] is hub and self.log.epoch == epoch:
            self.erased[which][topic] = count

    async def erase_meanwhile(self, which: int, topic: str) -> None:
        """Erase while the story goes on."""
        self.tasks.append(asyncio.create_task(self.erase(which, topic)))
        await asyncio.sleep(0)

    async def truncate(self, count: int) -> None:
        """Lose records, and perhaps an erasure, which is as if it had not been."""
        await super().truncate(count)
        for erased in self.erased:
            erased.clear()

    async def interrupt(self, turns: int) -> None:
        """Cancel what is being erased after some turns."""
        await run_other_tasks(turns)
        for task in self.tasks:
            task.cancel()

    async def synchronize(self) -> None:
        self.log.restart()
        if self.tasks:
            await asyncio.wait(self.tasks)
            for task in self.tasks:
                if not task.cancelled():
                    task.result()
        self.tasks.clear()
        await super().synchronize()
        for topic in TOPICS:
            count = max(erased[topic] for erased in self.erased)
            for erased in self.erased:
                erased[topic] = count

    async def check(self) -> None:
        await super().check()
        for hub, erased in zip(self.hubs, self.erased, strict=True):
            for record in hub.history.read(0, [">"]).records:
                assert int(record.event.data) >= erased[record.topic]

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await super().close()


def stories(*, lossy: bool):
    which, topic = st.integers(0, 1), st.sampled_from(TOPICS)
    step = st.one_of(
        st.tuples(st.just("erase"), which, topic),
        st.tuples(st.just("erase_meanwhile"), which, topic),
        st.tuples(st.just("interrupt"), st.integers(0, 10)),
    )
    return st.tuples(steps(lossy=lossy), st.lists(st.tuples(st.integers(0, 60), step), max_size=8)).map(_merged)


def _merged(parts):
    story, erasures = list(parts[0]), parts[1]
    for index, step in sorted(erasures, reverse=True):
        story.insert(min(index, len(story)), step)
    return story


@pytest.fixture(autouse=True, scope="module")
def short_wait(quick):
    """Do not wait long for an entry that does not come, either."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publisher, "RECEIVE_TIMEOUT", 0.02)
        yield


limits = st.fixed_dictionaries(
    {"max_topics": st.none() | st.integers(1, 2), "max_bytes": st.none() | st.integers(30, 300)}
)


@pytest.mark.parametrize("broker", [MemoryBroker, DeletingBroker])
@given(options=limits, story=stories(lossy=False))
@settings(max_examples=150, deadline=None)
def test_what_is_erased_or_evicted_is_a_gap_and_is_not_sent_afterwards(broker, options, story):
    asyncio.run(run(ErasingCluster(broker, **options), story))


@pytest.mark.parametrize("broker", [MemoryBroker, DeletingBroker])
@given(options=limits, story=stories(lossy=True))
@settings(max_examples=100, deadline=None)
def test_that_holds_also_if_the_server_loses_and_trims_records(broker, options, story):
    asyncio.run(run(ErasingCluster(broker, **options), story))


class Alone(ErasingCluster):
    """One process without a broker. It is called by both numbers."""

    def __init__(self, **options: int | None) -> None:
        super().__init__(MemoryBroker, **options)
        self.hubs = [Hub(**options)] * 2
        self.erased = self.erased[:1] * 2

    async def synchronize(self) -> None:
        await run_other_tasks(3)

    async def replace_process(self, which: int) -> None:
        """Do nothing: the history would be another one."""


@given(options=limits, story=stories(lossy=False))
@settings(max_examples=150, deadline=None)
def test_a_hub_without_a_broker_erases_and_evicts_alike(options, story):
    async def tell():
        cluster = Alone(**options)
        for _ in range(2):
            await cluster.connect(0, (">",))
        for what, *arguments in story:
            await getattr(cluster, what)(*arguments)
        await cluster.check()

    asyncio.run(tell())
