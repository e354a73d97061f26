"""Each record comes exactly once, whenever it is published and wherever its stream is cut."""

from __future__ import annotations

import asyncio
import random

import pytest

from aiohttp_interceptors import Hub, Snapshot
from tests.listener import application, listen
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import until, within

pytestmark = BOTH_LOOPS


@pytest.fixture(autouse=True)
def quiet(logged):
    """Keep what is logged of streams to ourselves."""


@pytest.mark.parametrize("snapshot", [False, True])
async def test_what_is_published_at_any_moment_of_opening_comes_exactly_once(serve, snapshot):
    """peer bug 40: in each turn of the event loop from the request to the first record, and while the log is read."""
    hub = Hub()

    async def state(context) -> Snapshot:
        await asyncio.sleep(0)
        return Snapshot([])

    def publish_while_reading(context, record) -> bool:
        if record.event.data == "first":
            task = hub.publish("a", "while reading")
            with pytest.raises(StopIteration):
                task.send(None)
        return True

    server = await serve(
        application(hub, "a", select=publish_while_reading, **({"snapshot": state} if snapshot else {}))
    )
    for turns in range(40):
        after = await hub.publish("a", "before")
        await hub.publish("a", "first")
        opening = asyncio.create_task(listen(server, after=after))
        for _ in range(turns):
            await asyncio.sleep(0)
        await hub.publish("a", "meanwhile")
        listener = await within(opening)
        await hub.publish("a", "last")
        events = []
        while {"while reading", "last", "meanwhile", "first"} - {event.data for event in events}:
            events.append(await listener.event())
        offsets = [int(event.id.partition("-")[2]) for event in events]
        start = int(after.partition("-")[2])
        assert offsets == list(range(start + 1, start + 1 + len(events)))
        assert sorted(event.data for event in events) == ["first", "last", "meanwhile", "while reading"]
        await listener.close()
        await until(lambda: hub.statistics().subscribers == 0)


TOPICS = ["a.1", "a.2", "b.1", "b.2"]
CHOICES = {"a.*": {"a.1", "a.2"}, ">": set(TOPICS), "a.1,b.*": {"a.1", "b.1", "b.2"}, "b.2": {"b.2"}}


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_the_cuts_each_record_comes_exactly_once_and_in_order(serve, seed):
    """peer bugs 40, 47 and 58: 30 clients, each cut after any number of bytes again and again, under publishing."""
    chance = random.Random(seed)
    hub = Hub()
    server = await serve(application(hub, lambda context: [*context.request.query["topics"].split(","), "end"]))
    published: list[tuple[str, str, str]] = []

    async def publish(topic: str, data: str) -> None:
        published.append((await hub.publish(topic, data), topic, data))

    async def publish_all() -> None:
        for number in range(400):
            await publish(chance.choice(TOPICS), f"{number}\n{'é' * chance.randrange(200)}")
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
        await publish("end", "end")

    async def visit(topics: str) -> int:
        """Read until all is there, and return the number of connections that it took."""
        mine, after, seen, cuts = {*CHOICES[topics], "end"}, hub.log.id_of(0), [], 0
        while not seen or seen[-1][1] != "end":
            listener = await listen(server, f"/?topics={topics}", after=after)
            left = 1 + chance.randrange(chance.choice([1, 50, 500, 5000, 20_000]))
            while left > 0 and not (seen and seen[-1][1] == "end"):
                before = listener.received
                seen += [(frame.id, frame.data) for frame in await listener.read(left) if frame.data is not None]
                left -= listener.received - before
            after = listener.last_event_id or after
            cuts += 1
            if chance.random() < 0.5:
                listener.raw.reset()
            await listener.close()
        assert seen == [(event_id, data) for event_id, topic, data in published if topic in mine]
        return cuts

    async with asyncio.TaskGroup() as group:
        visits = [group.create_task(visit(chance.choice(list(CHOICES)))) for _ in range(30)]
        group.create_task(publish_all())
    assert sum(visit.result() for visit in visits) > 60
    await until(lambda: hub.statistics().subscribers == hub.statistics().audiences == 0)
    assert hub.statistics().gaps == 0
