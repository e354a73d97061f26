from __future__ import annotations

import asyncio

from aiohttp_interceptors.web.timers import flush_queue


class Flushable:
    """Record the order of flushes, and optionally add another stream during one."""

    def __init__(self, order, then=None):
        self.order, self.then = order, then

    def flush(self):
        self.order.append(self)
        if self.then is not None:
            then, self.then = self.then, None
            flush_queue().add(then)


async def test_all_streams_are_flushed_in_the_next_iteration_of_the_event_loop():
    order = []
    streams = [Flushable(order) for _ in range(3)]
    for stream in streams:
        flush_queue().add(stream)
    assert order == []
    await asyncio.sleep(0)
    assert order == streams
    await asyncio.sleep(0)
    assert order == streams


async def test_a_stream_that_is_added_during_a_flush_is_flushed_in_the_iteration_after_it():
    order = []
    late = Flushable(order)
    first, second = Flushable(order, then=late), Flushable(order)
    flush_queue().add(first)
    flush_queue().add(second)
    await asyncio.sleep(0)
    assert order == [first, second]
    await asyncio.sleep(0)
    assert order == [first, second, late]


def test_each_event_loop_has_its_own_queue():
    async def queue():
        assert flush_queue() is flush_queue()
        return flush_queue()

    assert asyncio.run(queue()) is not asyncio.run(queue())
