"""The buffer of a channel is an ``asyncio.Queue`` by class and behaviour, the default one and a user's."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiohttp_interceptors.channel import CloseReason, EventChannel, check_buffer
from aiohttp_interceptors.exceptions import ChannelClosed, ChannelFull, EventTooLarge
from aiohttp_interceptors.queues import ConflatingQueue, DroppingQueue, SlidingQueue, dropped_event
from aiohttp_interceptors.sse import Event
from tests.waiting import run_other_tasks, within


class ByLength(asyncio.PriorityQueue):
    """A user's class: the shortest event first."""

    __slots__ = ("numbers",)

    def _init(self, maxsize):
        super()._init(maxsize)
        self.numbers = itertools.count()

    def _put(self, item):
        super()._put((len(item.data), next(self.numbers), item))

    def _get(self):
        return super()._get()[-1]


class Replacing(asyncio.Queue):
    """A user's class that overrides public methods, and has names that a channel could use."""

    def __init__(self, maxsize):
        super().__init__(maxsize)
        self.owner = self.waiters = self.done = "mine"

    def detach(self):
        return "mine"

    def remove(self):
        return "mine"

    def put_nowait(self, item):
        if self.full():
            self.get_nowait()
        super().put_nowait(item)

    async def put(self, item):
        self.put_nowait(item)


class Uncounted(asyncio.Queue):
    """A user's class that bypasses the counting of ``asyncio.Queue``."""

    def put_nowait(self, item):
        self._queue.append(item)


BLOCKING = {"default": 3, "plain": asyncio.Queue, "lifo": asyncio.LifoQueue, "priority": ByLength}
LOSSY = {"sliding": SlidingQueue, "dropping": DroppingQueue, "conflating": ConflatingQueue, "replacing": Replacing}


def factory(make):
    return make if isinstance(make, int) else lambda: make(3)


blocking_queues = pytest.mark.parametrize(
    "make", [pytest.param(factory(make), id=name) for name, make in BLOCKING.items()]
)
all_queues = pytest.mark.parametrize(
    "make", [pytest.param(factory(make), id=name) for name, make in (BLOCKING | LOSSY).items()]
)


class Stream:
    """A stream without a connection."""

    def __init__(self, make, **options):
        self.channel = EventChannel(make, **options)
        self.notifications = 0
        self.channel._attach(self.notify)

    def notify(self):
        self.notifications += 1

    def write_all(self):
        frames = self.channel._get_frames(2**20)
        self.channel._frames_written(len(frames))
        return frames


# Class and size.


@all_queues
async def test_the_buffer_is_an_asyncio_queue_that_cannot_be_replaced(make):
    channel = EventChannel(make)
    assert isinstance(channel.buffer, asyncio.Queue)
    with pytest.raises(AttributeError):
        channel.buffer = asyncio.Queue()
    assert channel.buffer.maxsize == 3
    assert "maxsize=3" in repr(channel.buffer)


async def test_a_users_queue_remains_of_its_class_and_keeps_its_attributes():
    mine = Replacing(3)
    buffer = EventChannel(lambda: mine).buffer
    assert buffer is mine
    assert isinstance(mine, Replacing)
    assert type(mine).__name__ == "Replacing"
    assert (mine.owner, mine.waiters, mine.done, mine.detach(), mine.remove()) == ("mine",) * 5
    assert type(EventChannel(lambda: Replacing(3)).buffer) is type(mine)  # the derived class is cached


def test_an_idle_buffer_has_at_most_112_bytes():
    """Before the first event and after the last one."""

    def size(buffer):
        names = [name for kind in type(buffer).__mro__ for name in getattr(kind, "__slots__", ())]
        parts = [getattr(buffer, name) for name in names if name != "_channel_owner"]
        return sys.getsizeof(buffer) + sum(sys.getsizeof(part) for part in parts if part not in (None, 0, 10, ()))

    channel = EventChannel(10)
    assert size(channel.buffer) <= 112
    assert not vars(channel.buffer)
    for _ in range(10):
        channel.put_nowait("a")
    channel._frames_written(len(channel._get_frames(2**20)))
    assert size(channel.buffer) <= 112


# The behaviour of asyncio.Queue.


@given(st.integers(1, 300), st.lists(st.tuples(st.booleans(), st.integers(1, 200)), max_size=40))
def test_it_is_a_bounded_fifo_queue(maxsize, steps):
    """Compare it with a deque, when events are removed one by one and in batches."""
    channel, model, number = EventChannel(maxsize), deque(), 0
    buffer = channel.buffer
    for put, count in steps:
        for _ in range(count):
            if put and len(model) < maxsize:
                number += 1
                event = Event(str(number))
                buffer.put_nowait(event)
                model.append(event)
            elif not put and model:
                assert buffer.get_nowait() is model.popleft()
                buffer.task_done()
            assert (buffer.qsize(), buffer.empty(), buffer.full()) == (len(model), not model, len(model) >= maxsize)
        if not put and model:
            frames = channel._get_frames(30)
            channel._frames_written(len(frames))
            for frame in frames:
                assert frame == b"data: %b\n\n" % model.popleft().data.encode()


@blocking_queues
async def test_a_direct_put_waits_for_room_and_get_makes_room(make):
    stream = Stream(make)
    buffer = stream.channel.buffer
    for _ in range(3):
        await buffer.put("a")
    with pytest.raises(asyncio.QueueFull):
        buffer.put_nowait("b")
    waits = [asyncio.create_task(buffer.put("bb")), asyncio.create_task(stream.channel.put("ccc"))]
    await run_other_tasks()
    assert not any(task.done() for task in waits)
    removed = [await buffer.get(), buffer.get_nowait()]
    await within(asyncio.gather(*waits))
    while not buffer.empty():
        removed.append(buffer.get_nowait())
    assert sorted(event.data for event in removed) == ["a", "a", "a", "bb", "ccc"]
    with pytest.raises(asyncio.QueueEmpty):
        buffer.get_nowait()


@blocking_queues
async def test_get_waits_for_an_event(make):
    stream = Stream(make)
    for put in (stream.channel.put_nowait, stream.channel.buffer.put_nowait):
        (got,) = [asyncio.create_task(stream.channel.buffer.get())]
        await run_other_tasks()
        assert not got.done()
        put("a")
        assert (await within(got)).data == "a"


@all_queues
async def test_join_waits_until_all_events_are_written(make):
    stream = Stream(make)
    buffer = stream.channel.buffer
    await within(buffer.join())
    await buffer.put("a")
    await stream.channel.put("b")
    joined = asyncio.create_task(buffer.join())
    await run_other_tasks()
    frames = stream.channel._get_frames(1)
    assert len(frames) == 1
    stream.channel._frames_written(1)
    await run_other_tasks()
    assert not joined.done()
    stream.write_all()
    await within(joined)
    with pytest.raises(ValueError, match="task_done"):
        buffer.task_done()


@blocking_queues
async def test_join_waits_for_events_that_were_removed_directly(make):
    stream = Stream(make)
    buffer = stream.channel.buffer
    buffer.put_nowait("a")
    buffer.get_nowait()
    joined = asyncio.create_task(buffer.join())
    await run_other_tasks()
    assert not joined.done()
    buffer.task_done()
    await within(joined)


async def test_join_waits_for_notices_too():
    stream = Stream(lambda: SlidingQueue(1, notice=dropped_event))
    for number in range(5):
        stream.channel.buffer.put_nowait(str(number))
    joined = asyncio.create_task(stream.channel.buffer.join())
    await run_other_tasks()
    assert not joined.done()
    assert len(stream.write_all()) == 2
    await within(joined)


async def test_events_of_a_queue_that_does_not_count_are_sent():
    stream = Stream(Uncounted)
    stream.channel.buffer.put_nowait("a")
    assert stream.notifications == 1
    assert stream.write_all() == [b"data: a\n\n"]


# What the channel adds.


@all_queues
async def test_a_direct_put_is_validated_and_notifies_the_stream(make):
    stream = Stream(make, max_event_size=20)
    buffer = stream.channel.buffer
    for put in (buffer.put_nowait, buffer.put):

        async def call(item, put=put):
            result = put(item)
            if result is not None:
                await result

        with pytest.raises(TypeError, match="put takes an Event or a str"):
            await call(7)
        with pytest.raises(EventTooLarge):
            await call("x" * 20)
        assert (buffer.qsize(), stream.notifications) == (0, 0)
        await call("a")
        assert stream.notifications == 1
        assert stream.write_all() == [b"data: a\n\n"]
        stream.notifications = 0


@all_queues
async def test_a_direct_put_from_another_thread_raises_and_has_no_effect(make):
    stream = Stream(make)
    buffer = stream.channel.buffer
    for call in (
        lambda: buffer.put_nowait("a"),
        lambda: asyncio.run(buffer.put("a")),
        buffer.get_nowait,
    ):
        with pytest.raises(RuntimeError, match="another thread"):
            await asyncio.to_thread(call)
    assert (buffer.qsize(), stream.notifications) == (0, 0)


@all_queues
async def test_a_direct_put_drops_no_event_that_could_be_sent(make):
    sent = []
    channel = EventChannel(make)
    channel._attach(lambda: None, lambda: sent.extend(channel._get_frames(2**20)))
    if not channel.lossy:
        return
    for number in range(100):
        channel.buffer.put_nowait(Event(str(number), "n"))
    assert len(sent) + channel.buffer.qsize() == 100 - channel.dropped
    assert not channel.dropped or isinstance(channel.buffer, ConflatingQueue)


@blocking_queues
@pytest.mark.parametrize("end", [EventChannel.close, lambda channel: channel.end(CloseReason.CLIENT_LEFT)])
async def test_a_waiting_direct_put_raises_when_the_stream_ends(make, end):
    stream = Stream(make)
    buffer = stream.channel.buffer
    for _ in range(3):
        buffer.put_nowait("a")
    waits = [asyncio.create_task(buffer.put("b")) for _ in range(2)]
    await run_other_tasks()
    end(stream.channel)
    assert stream.channel._end_observed
    for task in waits:
        with pytest.raises(ChannelClosed):
            await within(task)
    with pytest.raises(ChannelClosed):
        buffer.put_nowait("c")
    with pytest.raises(ChannelClosed):
        await buffer.put("c")
    assert buffer.qsize() == 3


@all_queues
async def test_get_and_join_return_when_the_stream_ends(make):
    stream = Stream(make)
    buffer = stream.channel.buffer
    got = asyncio.create_task(buffer.get())
    await run_other_tasks()
    stream.channel.end(CloseReason.CLIENT_LEFT)
    with pytest.raises(ChannelClosed):
        await within(got)
    with pytest.raises(ChannelClosed):
        await within(buffer.get())
    other = Stream(make)
    other.channel.buffer.put_nowait("a")
    joined = asyncio.create_task(other.channel.buffer.join())
    await run_other_tasks()
    other.channel.end(CloseReason.CLIENT_LEFT)
    await within(joined)
    await within(other.channel.buffer.join())


async def test_two_open_streams_cannot_share_a_queue():
    queue = asyncio.Queue()
    first = EventChannel(lambda: queue)
    with pytest.raises(ValueError, match="another open stream uses"):
        EventChannel(lambda: queue)
    first.end(CloseReason.CLIENT_LEFT)
    second = Stream(lambda: queue)  # the queue is free again
    queue.put_nowait("a")
    assert second.write_all() == [b"data: a\n\n"]


@pytest.mark.skipif(sys.version_info < (3, 13), reason="asyncio.Queue.shutdown is new in Python 3.13")
@all_queues
@pytest.mark.parametrize("immediate", [False, True])
async def test_a_shutdown_closes_the_channel(make, immediate):
    stream = Stream(make)
    stream.channel.buffer.put_nowait("a")
    stream.channel.buffer.shutdown(immediate)
    assert stream.channel.closed
    assert len(stream.write_all()) == (not immediate)
    with pytest.raises(asyncio.QueueShutDown):
        stream.channel.buffer.put_nowait("b")


async def test_a_full_default_queue_raises_channel_full():
    channel = EventChannel(1)
    channel.buffer.put_nowait("a")
    with pytest.raises(ChannelFull, match=r"holds 1 events and has no room"):
        channel.buffer.put_nowait("b")


# Invalid buffers.


@pytest.mark.parametrize("wrong", [True, 1.5, None, "10"])
def test_a_buffer_of_the_wrong_type_is_rejected(wrong):
    with pytest.raises(TypeError, match=r"buffer is a number of events or a factory of asyncio\.Queue, not"):
        check_buffer(wrong)


def test_a_buffer_without_capacity_is_rejected():
    with pytest.raises(ValueError, match="buffer is 1 event or more, not 0"):
        check_buffer(0)


def test_the_factory_is_called_for_each_channel():
    assert EventChannel(asyncio.Queue).buffer is not EventChannel(asyncio.Queue).buffer
    with pytest.raises(TypeError, match="returned \\[\\]"):
        EventChannel(list)
