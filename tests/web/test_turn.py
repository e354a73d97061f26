from __future__ import annotations

import asyncio

from aiohttp_interceptors.web.timers import flush_queue


class Flushable:
    """A stream that notes when it is pumped, and may ask for it again."""

    def __init__(self, order, again=None):
        self.order, self.again = order, again

    def pump(self):
        self.order.append(self)
        if self.again is not None:
            again, self.again = self.again, None
            flush_queue().add(again)


async def test_all_streams_of_a_turn_are_pumped_before_the_loop_waits_again():
    order = []
    streams = [Flushable(order) for _ in range(3)]
    for stream in streams:
        flush_queue().add(stream)
    assert order == []
    await asyncio.sleep(0)
    assert order == streams
    await asyncio.sleep(0)
    assert order == streams


async def test_one_that_is_added_while_others_are_pumped_has_its_turn_next():
    order = []
    late = Flushable(order)
    first, second = Flushable(order, again=late), Flushable(order)
    flush_queue().add(first)
    flush_queue().add(second)
    await asyncio.sleep(0)
    assert order == [first, second]
    await asyncio.sleep(0)
    assert order == [first, second, late]


def test_each_event_loop_has_its_own():
    async def mine():
        assert flush_queue() is flush_queue()
        return flush_queue()

    assert asyncio.run(mine()) is not asyncio.run(mine())
