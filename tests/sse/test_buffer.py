"""The queue of a channel is an ``asyncio.Queue``, by class and by what it does, the user's own as well."""

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
from tests.waiting import within


class ByLength(asyncio.PriorityQueue):
    """A user's class: the shortest first, and what was put earlier first among them."""

    __slots__ = ("numbers",)

    def _init(self, maxsize):
        super()._init(maxsize)
        self.numbers = itertools.count()

    def _put(self, item):
        super()._put((len(item.data), next(self.numbers), item))

    def _get(self):
        return super()._get()[-1]


class Replacing(asyncio.Queue):
    """A user's class that overrides the public methods, and has names of its own that a channel might have had."""

    def __init__(self, maxsize):
        super().__init__(maxsize)
        self.owner = self.taken = self.written = "mine"

    def take(self):
        return "mine"

    def add(self):
        return "mine"

    def put_nowait(self, item):
        if self.full():
            self.get_nowait()
        super().put_nowait(item)

    async def put(self, item):
        self.put_nowait(item)


class Uncounted(asyncio.Queue):
    """A user's class that puts without asyncio's part in it."""

    def put_nowait(self, item):
        self._queue.append(item)


WAITING = {"default": 3, "plain": asyncio.Queue, "lifo": asyncio.LifoQueue, "priority": ByLength}
LOSSY = {"sliding": SlidingQueue, "dropping": DroppingQueue, "conflating": ConflatingQueue, "replacing": Replacing}


def factory(make):
    return make if isinstance(make, int) else lambda: make(3)


waiting = pytest.mark.parametrize("make", [pytest.param(factory(make), id=name) for name, make in WAITING.items()])
every_queue = pytest.mark.parametrize(
    "make", [pytest.param(factory(make), id=name) for name, make in (WAITING | LOSSY).items()]
)


class Pump:
    """The stream's side."""

    def __init__(self, make, **options):
        self.channel = EventChannel(make, **options)
        self.woken = 0
        self.channel.attach(self.wake)

    def wake(self):
        self.woken += 1

    def pump(self):
        """Take all there is, and write it."""
        frames = self.channel.take_frames(2**20)
        self.channel.written(len(frames))
        return frames


async def turns():
    for _ in range(5):
        await asyncio.sleep(0)


# By class.


@every_queue
async def test_the_buffer_is_an_asyncio_queue_that_cannot_be_replaced(make):
    channel = EventChannel(make)
    assert isinstance(channel.buffer, asyncio.Queue)
    with pytest.raises(AttributeError):
        channel.buffer = asyncio.Queue()
    assert channel.buffer.maxsize == 3
    assert "maxsize=3" in repr(channel.buffer)


async def test_a_queue_of_the_users_stays_of_its_class_and_keeps_its_own_names():
    mine = Replacing(3)
    buffer = EventChannel(lambda: mine).buffer
    assert buffer is mine
    assert isinstance(mine, Replacing)
    assert type(mine).__name__ == "Replacing"
    assert (mine.owner, mine.taken, mine.written, mine.take(), mine.add()) == ("mine",) * 5
    assert type(EventChannel(lambda: Replacing(3)).buffer) is type(mine)  # and no class for each stream


def test_an_idle_buffer_has_at_most_112_bytes():
    """Of all its parts, before its first event and after its last one."""

    def size(buffer):
        names = [name for kind in type(buffer).__mro__ for name in getattr(kind, "__slots__", ())]
        parts = [getattr(buffer, name) for name in names if name != "_channel_owner"]
        return sys.getsizeof(buffer) + sum(sys.getsizeof(part) for part in parts if part not in (None, 0, 10))

    channel = EventChannel(10)
    assert size(channel.buffer) <= 112
    assert not vars(channel.buffer)
    for _ in range(10):
        channel.put_nowait("a")
    channel.take()
    assert size(channel.buffer) <= 112


# What an asyncio.Queue does.


@given(st.integers(1, 300), st.lists(st.tuples(st.booleans(), st.integers(1, 200)), max_size=40))
def test_it_is_a_bounded_line(maxsize, steps):
    """Against the simplest one there is, whatever takes from it, one after another or many at once."""
    channel, line, number = EventChannel(maxsize), deque(), 0
    buffer = channel.buffer
    for put, count in steps:
        for _ in range(count):
            if put and len(line) < maxsize:
                number += 1
                event = Event(str(number))
                buffer.put_nowait(event)
                line.append(event)
            elif not put and line:
                assert buffer.get_nowait() is line.popleft()
                buffer.task_done()
            assert (buffer.qsize(), buffer.empty(), buffer.full()) == (len(line), not line, len(line) >= maxsize)
        if not put and line:
            frames = channel.take_frames(30)
            channel.written(len(frames))
            for frame in frames:
                assert frame == b"data: %b\n\n" % line.popleft().data.encode()


@waiting
async def test_a_direct_put_waits_for_room_and_get_makes_it(make):
    pump = Pump(make)
    buffer = pump.channel.buffer
    for _ in range(3):
        await buffer.put("a")
    with pytest.raises(asyncio.QueueFull):
        buffer.put_nowait("b")
    waits = [asyncio.create_task(buffer.put("bb")), asyncio.create_task(pump.channel.put("ccc"))]
    await turns()
    assert not any(task.done() for task in waits)
    taken = [await buffer.get(), buffer.get_nowait()]
    await within(asyncio.gather(*waits))
    while not buffer.empty():
        taken.append(buffer.get_nowait())
    assert sorted(event.data for event in taken) == ["a", "a", "a", "bb", "ccc"]
    with pytest.raises(asyncio.QueueEmpty):
        buffer.get_nowait()


@waiting
async def test_get_waits_for_an_event(make):
    pump = Pump(make)
    for put in (pump.channel.put_nowait, pump.channel.buffer.put_nowait):
        (got,) = [asyncio.create_task(pump.channel.buffer.get())]
        await turns()
        assert not got.done()
        put("a")
        assert (await within(got)).data == "a"


@every_queue
async def test_join_waits_until_all_is_written(make):
    pump = Pump(make)
    buffer = pump.channel.buffer
    await within(buffer.join())
    await buffer.put("a")
    await pump.channel.put("b")
    joined = asyncio.create_task(buffer.join())
    await turns()
    frames = pump.channel.take_frames(1)
    assert len(frames) == 1
    pump.channel.written(1)
    await turns()
    assert not joined.done()
    pump.pump()
    await within(joined)
    with pytest.raises(ValueError, match="task_done"):
        buffer.task_done()


@waiting
async def test_join_waits_for_what_somebody_else_took(make):
    pump = Pump(make)
    buffer = pump.channel.buffer
    buffer.put_nowait("a")
    buffer.get_nowait()
    joined = asyncio.create_task(buffer.join())
    await turns()
    assert not joined.done()
    buffer.task_done()
    await within(joined)


async def test_notices_of_what_was_dropped_are_to_be_written_too():
    pump = Pump(lambda: SlidingQueue(1, notice=dropped_event))
    for number in range(5):
        pump.channel.buffer.put_nowait(str(number))
    joined = asyncio.create_task(pump.channel.buffer.join())
    await turns()
    assert not joined.done()
    assert len(pump.pump()) == 2
    await within(joined)


async def test_a_queue_that_counts_nothing_is_pumped_all_the_same():
    pump = Pump(Uncounted)
    pump.channel.buffer.put_nowait("a")
    assert pump.woken == 1
    assert pump.pump() == [b"data: a\n\n"]


# What a channel adds.


@every_queue
async def test_a_direct_put_is_checked_and_wakes_the_stream(make):
    pump = Pump(make, max_event_size=20)
    buffer = pump.channel.buffer
    for put in (buffer.put_nowait, buffer.put):

        async def call(item, put=put):
            result = put(item)
            if result is not None:
                await result

        with pytest.raises(TypeError, match="put takes an Event or a str"):
            await call(7)
        with pytest.raises(EventTooLarge):
            await call("x" * 20)
        assert (buffer.qsize(), pump.woken) == (0, 0)
        await call("a")
        assert pump.woken == 1
        assert pump.pump() == [b"data: a\n\n"]
        pump.woken = 0


@every_queue
async def test_a_direct_put_of_another_thread_is_refused_and_changes_nothing(make):
    pump = Pump(make)
    buffer = pump.channel.buffer
    for call in (
        lambda: buffer.put_nowait("a"),
        lambda: asyncio.run(buffer.put("a")),
        buffer.get_nowait,
    ):
        with pytest.raises(RuntimeError, match="another thread"):
            await asyncio.to_thread(call)
    assert (buffer.qsize(), pump.woken) == (0, 0)


@every_queue
async def test_a_direct_put_makes_no_event_that_can_be_sent_give_way(make):
    sent = []
    channel = EventChannel(make)
    channel.attach(lambda: None, lambda: sent.extend(channel.take_frames(2**20)))
    if not channel.lossy:
        return
    for number in range(100):
        channel.buffer.put_nowait(Event(str(number), "n"))
    assert len(sent) + channel.buffer.qsize() == 100 - channel.dropped
    assert not channel.dropped or isinstance(channel.buffer, ConflatingQueue)


@waiting
@pytest.mark.parametrize("end", [EventChannel.close, lambda channel: channel.end(CloseReason.CLIENT_LEFT)])
async def test_a_put_that_waits_is_released_when_the_stream_ends(make, end):
    pump = Pump(make)
    buffer = pump.channel.buffer
    for _ in range(3):
        buffer.put_nowait("a")
    waits = [asyncio.create_task(buffer.put("b")) for _ in range(2)]
    await turns()
    end(pump.channel)
    assert pump.channel.told
    for task in waits:
        with pytest.raises(ChannelClosed):
            await within(task)
    with pytest.raises(ChannelClosed):
        buffer.put_nowait("c")
    with pytest.raises(ChannelClosed):
        await buffer.put("c")
    assert buffer.qsize() == 3


@every_queue
async def test_get_and_join_are_released_when_the_stream_ends(make):
    pump = Pump(make)
    buffer = pump.channel.buffer
    got = asyncio.create_task(buffer.get())
    await turns()
    pump.channel.end(CloseReason.CLIENT_LEFT)
    with pytest.raises(ChannelClosed):
        await within(got)
    with pytest.raises(ChannelClosed):
        await within(buffer.get())
    other = Pump(make)
    other.channel.buffer.put_nowait("a")
    joined = asyncio.create_task(other.channel.buffer.join())
    await turns()
    other.channel.end(CloseReason.CLIENT_LEFT)
    await within(joined)
    await within(other.channel.buffer.join())


async def test_a_queue_is_of_one_open_stream():
    queue = asyncio.Queue()
    first = EventChannel(lambda: queue)
    with pytest.raises(ValueError, match="another open stream has"):
        EventChannel(lambda: queue)
    first.end(CloseReason.CLIENT_LEFT)
    second = Pump(lambda: queue)  # what the first one left is the second one's
    queue.put_nowait("a")
    assert second.pump() == [b"data: a\n\n"]


@pytest.mark.skipif(sys.version_info < (3, 13), reason="asyncio.Queue.shutdown is new in Python 3.13")
@every_queue
@pytest.mark.parametrize("immediate", [False, True])
async def test_a_shutdown_closes_the_channel(make, immediate):
    pump = Pump(make)
    pump.channel.buffer.put_nowait("a")
    pump.channel.buffer.shutdown(immediate)
    assert pump.channel.closed
    assert len(pump.pump()) == (not immediate)
    with pytest.raises(asyncio.QueueShutDown):
        pump.channel.buffer.put_nowait("b")


async def test_a_full_default_queue_says_channel_full():
    channel = EventChannel(1)
    channel.buffer.put_nowait("a")
    with pytest.raises(ChannelFull, match=r"holds 1 events and has no room"):
        channel.buffer.put_nowait("b")


# What is refused.


@pytest.mark.parametrize("wrong", [True, 1.5, None, "10"])
def test_what_is_no_number_is_refused(wrong):
    with pytest.raises(TypeError, match=r"buffer is a number of events or makes an asyncio\.Queue, not"):
        check_buffer(wrong)


def test_a_line_without_room_is_refused():
    with pytest.raises(ValueError, match="buffer is 1 event or more, not 0"):
        check_buffer(0)


def test_a_factory_makes_a_queue_each_time():
    assert EventChannel(asyncio.Queue).buffer is not EventChannel(asyncio.Queue).buffer
    with pytest.raises(TypeError, match="made \\[\\]"):
        EventChannel(list)
