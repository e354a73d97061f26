"""Each record is delivered exactly once, whenever it is published and wherever the connection breaks."""

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
    """Capture what streams log."""


@pytest.mark.parametrize("snapshot", [False, True])
async def test_a_record_published_while_a_stream_opens_is_delivered_once(serve, snapshot):
    """In each event loop iteration from the request to the first record, and while the history is read."""
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
    for iterations in range(40):
        after = await hub.publish("a", "before")
        await hub.publish("a", "first")
        opening = asyncio.create_task(listen(server, after=after))
        for _ in range(iterations):
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
async def test_each_record_is_delivered_once_and_in_order_across_disconnects(serve, seed):
    """30 clients disconnect again and again after random numbers of bytes, during publishing."""
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

    async def read_all(topics: str) -> int:
        """Read until every record has arrived, and return the number of connections."""
        mine, after, seen, connections = {*CHOICES[topics], "end"}, hub.history.id_of(0), [], 0
        while not seen or seen[-1][1] != "end":
            listener = await listen(server, f"/?topics={topics}", after=after)
            left = 1 + chance.randrange(chance.choice([1, 50, 500, 5000, 20_000]))
            while left > 0 and not (seen and seen[-1][1] == "end"):
                before = listener.received
                seen += [(frame.id, frame.data) for frame in await listener.read(left) if frame.data is not None]
                left -= listener.received - before
            after = listener.last_event_id or after
            connections += 1
            if chance.random() < 0.5:
                listener.raw.reset()
            await listener.close()
        assert seen == [(event_id, data) for event_id, topic, data in published if topic in mine]
        return connections

    async with asyncio.TaskGroup() as group:
        clients = [group.create_task(read_all(chance.choice(list(CHOICES)))) for _ in range(30)]
        group.create_task(publish_all())
    assert sum(client.result() for client in clients) > 60
    await until(lambda: hub.statistics().subscribers == hub.statistics().groups == 0)
    assert hub.statistics().gaps == 0
