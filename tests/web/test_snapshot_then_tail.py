"""A snapshot and the records after it, with publishing at every point of a stream's start."""

from __future__ import annotations

import asyncio
import json
import random

import pytest

from aiohttp_interceptors import Event, Hub, Snapshot
from tests.listener import Listener, application, listen
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import until, within

pytestmark = BOTH_LOOPS


@pytest.fixture(autouse=True)
def quiet(logged):
    """Capture what streams log."""


class Board:
    """An application's state that changes at every point where other tasks may run."""

    def __init__(self, seed: int) -> None:
        self.hub = Hub()
        self.state: dict[str, int] = {}
        self.total = 0
        self.id: str | None = None
        self.chance = random.Random(seed)
        self.number = 0

    async def change(self) -> None:
        self.number += 1
        key = self.chance.choice("abc")
        self.state[key] = self.number  # the state changes before the change is published
        self.id = await self.hub.publish("board", Event.json([key, self.number], name="change"))
        self.total += self.number

    async def point(self) -> None:
        for _ in range(self.chance.choice([0, 0, 1, 3])):
            await self.change()
        await asyncio.sleep(0)
        for _ in range(self.chance.choice([0, 0, 1, 3])):
            await self.change()

    async def points(self) -> None:
        for _ in range(self.chance.randrange(3)):
            await self.point()

    async def topics(self, context) -> str:
        await self.points()
        return "board"

    async def with_an_id(self, context) -> Snapshot:
        await self.points()
        total, last = self.total, self.id
        await self.points()

        async def events():
            await self.points()
            yield Event(str(total), "total")
            await self.points()
            yield Event("done", "done")
            await self.points()

        return Snapshot(events(), last or self.hub.history.id_of(0))

    async def at_one_time(self, context) -> list[Event]:
        await self.points()
        state = [Event.json([key, self.state.get(key)], name="state") for key in "abc"]
        await self.points()
        return state

    async def over_some_time(self, context):
        await self.points()
        for key in "abc":
            yield Event.json([key, self.state.get(key)], name="state")  # each read at another time
            await self.points()


class Page:
    """A client that applies the snapshot and the records."""

    def __init__(self) -> None:
        self.state: dict[str, int] = {}
        self.total = 0

    async def follow(self, listener: Listener, last: int) -> None:
        """Read until the last change has arrived."""
        number = -1
        while number < last:
            event = await listener.event()
            if event.name == "total":
                self.total = int(event.data)
            elif event.name == "state":
                key, value = json.loads(event.data)
                self.state[key] = value
            elif event.name == "change":
                key, number = json.loads(event.data)
                self.state[key] = number
                self.total += number


@pytest.mark.parametrize("form", ["with_an_id", "at_one_time", "over_some_time"])
async def test_a_snapshot_and_the_records_after_it_miss_no_change(serve, form):
    """Each of a thousand streams gets other changes at other points. With an id, no change is repeated."""
    board = Board(0)
    server = await serve(application(board.hub, board.topics, snapshot=getattr(board, form)))
    for seed in range(1000):
        board.chance.seed(seed)
        opening = asyncio.create_task(listen(server))
        await board.points()
        listener = await within(opening)
        await board.points()
        await until(lambda: board.hub.statistics().subscribers == 1 and board.hub.statistics().catching_up == 0)
        await board.change()
        page = Page()
        await page.follow(listener, board.number)
        if form == "with_an_id":
            assert page.total == board.total
        else:
            assert page.state == board.state
        listener.raw.reset()
        await listener.close()
        await until(lambda: board.hub.statistics().subscribers == 0)
    assert board.number > 5000
