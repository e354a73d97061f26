"""Whatever is done to a file and its brokers in whichever order, it is a list that loses its beginning alone."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from aiohttp_interceptors.hub.broker import CaughtUp
from tests.brokers.contract import tail
from tests.brokers.sqlite_site import SqliteSite

MOST = 5  # entries that are kept
BROKERS = 2

which = st.integers(0, BROKERS - 1)
publishes = st.tuples(
    st.just("publish"), which, st.lists(st.sampled_from([None, None, "a", "b"]), min_size=1, max_size=8)
)
others = st.tuples(st.sampled_from(["restart", "open", "close", "age"]), which, st.none())


class World:
    """Some brokers on one file, a tail of each that may be open, and the list that it should be."""

    def __init__(self, path: Path) -> None:
        self.site = SqliteSite(path)
        self.brokers = [self._broker() for _ in range(BROKERS)]
        self.stacks = [AsyncExitStack() for _ in range(BROKERS)]
        self.tails = [None] * BROKERS
        self.positions = [None] * BROKERS  # how far each has read
        self.began = [0] * BROKERS  # after which position the tail that is open began
        self.list: list[bytes] = []
        self.keys: dict[str, int] = {}
        self.trimmed = 0
        self.epoch = None

    def _broker(self):
        return self.site.broker(max_records=MOST, max_age=1000)

    async def publish(self, which, keys):
        payloads = [b"%d" % (len(self.list) + n) for n in range(len(keys))]
        calls = [
            self.brokers[which].publish("t", payload, idempotency_key=key)
            for payload, key in zip(payloads, keys, strict=True)
        ]
        for position, payload, key in zip(await asyncio.gather(*calls), payloads, keys, strict=True):
            expected = self.keys.get(key)
            if expected is None:
                self.list.append(payload)
                expected = len(self.list)
                if key is not None:
                    self.keys[key] = expected
            assert position.offset == expected
            assert position.epoch == (self.epoch or position.epoch)
            self.epoch = position.epoch
        self.trimmed = max(self.trimmed, len(self.list) - MOST)

    async def restart(self, which, _):
        await self.close(which, _)
        await self.brokers[which].close()
        self.brokers[which] = self._broker()

    async def open(self, which, _):
        if self.tails[which] is None:
            self.tails[which] = await self.stacks[which].enter_async_context(
                tail(self.brokers[which], self.positions[which])
            )
            self.began[which] = 0 if self.positions[which] is None else self.positions[which].offset
            await self.tails[which].until(CaughtUp)
            self._compare(which)

    async def close(self, which, _):
        await self.read(which)
        self.tails[which] = None
        await self.stacks[which].aclose()

    async def age(self, *_):
        """Have all that is there too old, which the next publish notes."""
        if self.list:
            self.site.sql("UPDATE entry SET time = 0")
            self.trimmed = len(self.list)

    async def read(self, which):
        reading = self.tails[which]
        if reading is not None and self.list:
            while reading.position.offset < len(self.list):
                await reading.item()
            self._compare(which)

    def _compare(self, which):
        reading = self.tails[which]
        self.positions[which] = reading.position
        for entry in reading.entries:
            assert entry.payload == self.list[entry.offset - 1]
        offsets = [entry.offset for entry in reading.entries]
        assert offsets == sorted(set(offsets))
        kept = range(self.trimmed + 1, len(self.list) + 1)
        assert {offset for offset in kept if offset > self.began[which]} <= set(offsets)

    async def end(self):
        for number in range(BROKERS):
            await self.close(number, None)
            await self.brokers[number].close()


async def live(steps) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder) / "hub.db")
        try:
            for step, number, argument in steps:
                await getattr(world, step)(number, argument)
        finally:
            await world.end()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(publishes, others), min_size=3, max_size=25))
def test_it_is_a_list_that_loses_its_beginning_alone(steps):
    asyncio.run(live(steps))
