from __future__ import annotations

import asyncio
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiohttp_interceptors.sse.buffer import COMPACT, BoundedBuffer, new_buffer
from aiohttp_interceptors.sse.event import Event


@given(st.integers(1, 300), st.lists(st.tuples(st.booleans(), st.integers(1, 200)), max_size=40))
def test_it_is_a_bounded_line(maxsize, steps):
    """Against the simplest one there is, also where the places in front are given up."""
    buffer, line, number = BoundedBuffer(maxsize), deque(), 0
    for put, count in steps:
        for _ in range(count):
            if put and len(line) < maxsize:
                number += 1
                event = Event(str(number))
                buffer.put_nowait(event)
                line.append(event)
            elif not put and line:
                assert buffer.get_nowait() is line.popleft()
            assert (buffer.qsize(), buffer.empty(), buffer.full()) == (len(line), not line, len(line) >= maxsize)


def test_a_line_that_is_never_empty_does_not_grow():
    """peer bug 35."""
    buffer = BoundedBuffer(10)
    for number in range(5):
        buffer.put_nowait(Event(str(number)))
    for number in range(5, 10_000):
        buffer.put_nowait(Event(str(number)))
        assert buffer.get_nowait().data == str(number - 5)
        assert len(buffer._events) <= 2 * COMPACT + 10


@pytest.mark.parametrize("wrong", [True, 1.5, None, "10"])
def test_what_is_no_number_is_refused(wrong):
    with pytest.raises(TypeError, match=r"buffer is a number of events or makes an asyncio\.Queue, not"):
        new_buffer(wrong)


def test_a_line_without_room_is_refused():
    with pytest.raises(ValueError, match="buffer is 1 event or more, not 0"):
        new_buffer(0)


def test_a_factory_makes_a_queue_each_time():
    assert new_buffer(asyncio.Queue) is not new_buffer(asyncio.Queue)
    with pytest.raises(TypeError, match="made \\[\\]"):
        new_buffer(list)
