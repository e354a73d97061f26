"""A model of the log in a file: whatever the brokers do, it is a list from whose beginning entries are deleted."""

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

MAX_RECORDS = 5
BROKERS = 2

which = st.integers(0, BROKERS - 1)
publishes = st.tuples(
    st.just("publish"), which, st.lists(st.sampled_from([None, None, "a", "b"]), min_size=1, max_size=8)
)
others = st.tuples(st.sampled_from(["restart", "open", "close", "age"]), which, st.none())


class World:
    """Brokers on one file, a tail of each that may be open, and the expected list."""

    def __init__(self, path: Path) -> None:
        self.site = SqliteSite(path)
        self.brokers = [self._broker() for _ in range(BROKERS)]
        self.stacks = [AsyncExitStack() for _ in range(BROKERS)]
        self.tails = [None] * BROKERS
        self.positions = [None] * BROKERS  # of the last entry that each has read
        self.starts = [0] * BROKERS  # the offset after which each open tail started
        self.payloads: list[bytes] = []
        self.keys: dict[str, int] = {}
        self.trimmed = 0
        self.epoch = None

    def _broker(self):
        return self.site.broker(max_records=MAX_RECORDS, max_age=1000)

    async def publish(self, which, keys):
        payloads = [b"%d" % (len(self.payloads) + n) for n in range(len(keys))]
        calls = [
            self.brokers[which].publish("t", payload, idempotency_key=key)
            for payload, key in zip(payloads, keys, strict=True)
        ]
        for position, payload, key in zip(await asyncio.gather(*calls), payloads, keys, strict=True):
            expected = self.keys.get(key)
            if expected is None:
                self.payloads.append(payload)
                expected = len(self.payloads)
                if key is not None:
                    self.keys[key] = expected
            assert position.offset == expected
            assert position.epoch == (self.epoch or position.epoch)
            self.epoch = position.epoch
        self.trimmed = max(self.trimmed, len(self.payloads) - MAX_RECORDS)

    async def restart(self, which, _):
        await self.close(which, _)
        await self.brokers[which].close()
        self.brokers[which] = self._broker()

    async def open(self, which, _):
        if self.tails[which] is None:
            self.tails[which] = await self.stacks[which].enter_async_context(
                tail(self.brokers[which], self.positions[which])
            )
            self.starts[which] = 0 if self.positions[which] is None else self.positions[which].offset
            await self.tails[which].until(CaughtUp)
            self._compare(which)

    async def close(self, which, _):
        await self.read(which)
        self.tails[which] = None
        await self.stacks[which].aclose()

    async def age(self, *_):
        """Make all entries too old; the next publish deletes them."""
        if self.payloads:
            self.site.sql("UPDATE entry SET published_at = 0")
            self.trimmed = len(self.payloads)

    async def read(self, which):
        reading = self.tails[which]
        if reading is not None and self.payloads:
            while reading.position.offset < len(self.payloads):
                await reading.item()
            self._compare(which)

    def _compare(self, which):
        reading = self.tails[which]
        self.positions[which] = reading.position
        for entry in reading.entries:
            assert entry.payload == self.payloads[entry.offset - 1]
        offsets = [entry.offset for entry in reading.entries]
        assert offsets == sorted(set(offsets))
        kept = range(self.trimmed + 1, len(self.payloads) + 1)
        assert {offset for offset in kept if offset > self.starts[which]} <= set(offsets)

    async def end(self):
        for number in range(BROKERS):
            await self.close(number, None)
            await self.brokers[number].close()


async def run(steps) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder) / "hub.db")
        try:
            for step, number, argument in steps:
                await getattr(world, step)(number, argument)
        finally:
            await world.end()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(publishes, others), min_size=3, max_size=25))
def test_the_log_is_a_list_whose_beginning_is_deleted(steps):
    asyncio.run(run(steps))
