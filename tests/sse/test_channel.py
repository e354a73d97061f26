"""EventChannel: back pressure, order, closing, cancellation, custom queues and the size limit.

There is no stream. The tests remove events themselves, with ``take``.
"""

import asyncio
from collections import Counter
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiohttp_interceptors.channel import CloseReason, EventChannel
from aiohttp_interceptors.exceptions import ChannelFull, EventTooLarge
from aiohttp_interceptors.queues import SlidingQueue
from aiohttp_interceptors.sse import Decoder, Event, encode, is_larger
from tests.waiting import run_other_tasks


def take(channel):
    """Remove all events, as a stream does."""
    frames = channel._get_frames(10**6)
    channel._frames_written(len(frames))
    return Decoder().feed(b"".join(frames))


def texts(channel):
    """Remove all events and return their data."""
    return [event.data for event in take(channel)]


def full_channel(buffer=2):
    channel = EventChannel(buffer)
    for number in range(buffer):
        channel.put_nowait(f"old {number}")
    return channel


def start(*puts):
    return [asyncio.create_task(put) for put in puts]


# Putting.


async def test_events_keep_their_order():
    channel = EventChannel()
    assert await channel.put("a") is True
    assert channel.put_nowait(Event("b", "n")) is True
    assert await channel.put(Event("c", id="1")) is True
    assert take(channel) == [Event("a"), Event("b", "n"), Event("c", id="1")]
    assert take(channel) == []


async def test_put_with_room_does_not_yield_to_the_event_loop():
    channel, ran = EventChannel(2), []
    asyncio.get_running_loop().call_soon(ran.append, 1)
    await channel.put("a")
    await channel.put("b")
    assert not ran
    await asyncio.sleep(0)
    assert ran


@pytest.mark.parametrize("wrong", [None, 7, b"a", {"data": "a"}, ["a"], Event])
async def test_put_rejects_what_is_neither_event_nor_str(wrong):
    channel = EventChannel()
    with pytest.raises(TypeError, match=r"put takes an Event or a str, not .*; Event.json\(value\) makes an event of"):
        await channel.put(wrong)
    with pytest.raises(TypeError, match="put takes an Event or a str"):
        channel.put_nowait(wrong)
    assert take(channel) == []


async def test_put_rejects_text_that_cannot_be_encoded():
    channel = EventChannel()
    with pytest.raises(ValueError, match="UTF-8"):
        await channel.put("\ud800")
    assert take(channel) == []
    assert not channel.closed


async def test_the_default_capacity_is_ten_events():
    channel = full_channel(10)
    assert EventChannel().put_nowait("a")
    default = EventChannel()
    for number in range(10):
        default.put_nowait(str(number))
    for full in (channel, default):
        with pytest.raises(ChannelFull):
            full.put_nowait("one more")


async def test_put_waits_for_room_and_drops_nothing():
    channel = EventChannel(3)
    put = 0

    async def produce():
        nonlocal put
        for number in range(1000):
            assert await channel.put(str(number))
            put += 1

    (producer,) = start(produce())
    taken = []
    for _ in range(1000):
        await run_other_tasks()
        assert put - len(taken) <= 3
        taken += texts(channel)
    assert producer.done()
    producer.result()
    assert taken == [str(number) for number in range(1000)]


async def test_put_nowait_raises_when_full_and_returns_false_when_closed():
    channel = full_channel(2)
    with pytest.raises(ChannelFull, match=r"holds 2 events and has no room; put\(\) waits") as caught:
        channel.put_nowait("a")
    assert isinstance(caught.value, asyncio.QueueFull)
    assert texts(channel) == ["old 0", "old 1"]
    assert channel.put_nowait("b") is True
    channel.close()
    assert channel.put_nowait("c") is False
    assert texts(channel) == ["b"]


async def test_put_nowait_does_not_overtake_a_waiting_put():
    channel = full_channel(1)
    (waits,) = start(channel.put("waits"))
    await run_other_tasks()
    take(channel)  # makes room for the waiting put
    with pytest.raises(ChannelFull):
        channel.put_nowait("overtakes")
    assert await waits
    assert texts(channel) == ["waits"]


@pytest.mark.parametrize("runs_first", ["waits", "late"])
async def test_put_does_not_overtake_a_waiting_put(runs_first):
    channel = full_channel(1)
    (waits,) = start(channel.put("waits"))
    await run_other_tasks()
    if runs_first == "waits":
        take(channel)
        (late,) = start(channel.put("late"))
    else:
        (late,) = start(channel.put("late"))
        take(channel)
    await run_other_tasks()
    assert (waits.done(), late.done()) == (True, False)
    assert texts(channel) == ["waits"]
    assert await late
    assert texts(channel) == ["late"]


@pytest.mark.parametrize("buffer", [1, 2, 3, 7])
async def test_waiting_puts_are_served_first_come_first_served(buffer):
    channel = full_channel(buffer)
    puts = start(*(channel.put(str(number)) for number in range(50)))
    taken = []
    for _ in range(60):
        await run_other_tasks()
        taken += texts(channel)
    assert taken == [f"old {number}" for number in range(buffer)] + [str(number) for number in range(50)]
    assert all(put.result() is True for put in puts)


async def test_as_many_waiting_puts_proceed_as_events_were_removed():
    channel = full_channel(3)
    puts = start(*(channel.put(str(number)) for number in range(5)))
    await run_other_tasks()
    take(channel)
    await run_other_tasks()
    assert [put.done() for put in puts] == [True, True, True, False, False]
    assert texts(channel) == ["0", "1", "2"]
    await run_other_tasks()
    assert all(put.done() for put in puts)


# The end.


async def test_the_first_put_after_the_end_returns_false():
    channel = EventChannel()
    assert await channel.put("a")
    channel.end(CloseReason.CLIENT_LEFT)
    assert await channel.put("b") is False
    assert channel.put_nowait("c") is False


async def test_put_returns_false_after_close():
    """``close`` is idempotent."""
    channel = EventChannel()
    assert channel.closed is False
    channel.close()
    assert channel.closed is True
    channel.close()
    assert await channel.put("b") is False
    assert texts(channel) == []


async def test_events_put_before_close_are_kept():
    channel = EventChannel(3)
    for text in "abc":
        await channel.put(text)
    channel.close()
    assert texts(channel) == ["a", "b", "c"]


@pytest.mark.parametrize("end", [EventChannel.close, lambda channel: channel.end(CloseReason.CLIENT_LEFT)])
async def test_waiting_puts_return_false_at_the_end(end):
    channel = full_channel(2)
    puts = start(*(channel.put(str(number)) for number in range(3)))
    await run_other_tasks()
    end(channel)
    await run_other_tasks(2)
    assert [put.result() for put in puts] == [False, False, False]
    assert texts(channel) == ["old 0", "old 1"]


async def test_a_put_that_was_woken_for_room_returns_false_if_the_channel_was_closed_since():
    channel = full_channel(1)
    (put,) = start(channel.put("late"))
    await run_other_tasks()
    take(channel)
    channel.close()
    assert await put is False
    assert texts(channel) == []


async def test_a_producer_that_ignores_false_does_not_block_the_event_loop():
    channel = EventChannel()
    channel.close()

    async def produce():
        while True:
            await channel.put("a")

    (producer,) = start(produce())
    await run_other_tasks()
    producer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await producer


async def test_put_rejects_invalid_events_after_close_too():
    channel = EventChannel()
    channel.close()
    with pytest.raises(TypeError):
        await channel.put(7)
    with pytest.raises(TypeError):
        channel.put_nowait(7)


# Cancelling.


async def test_a_cancelled_put_puts_nothing():
    channel = full_channel(1)
    first, second = start(channel.put("first"), channel.put("second"))
    await run_other_tasks()
    first.cancel()
    await run_other_tasks()
    assert first.cancelled()
    assert texts(channel) == ["old 0"]
    assert await second
    assert texts(channel) == ["second"]


async def test_room_of_a_cancelled_put_goes_to_the_next_one():
    channel = full_channel(1)
    first, second, third = start(*(channel.put(text) for text in ("first", "second", "third")))
    await run_other_tasks()
    take(channel)
    first.cancel()  # after it was notified, and before it runs
    await run_other_tasks()
    assert first.cancelled()
    assert await second
    assert not third.done()
    assert texts(channel) == ["second"]
    assert await third


async def test_room_goes_past_a_put_that_is_being_cancelled():
    channel = full_channel(1)
    first, second = start(channel.put("first"), channel.put("second"))
    await run_other_tasks()
    first.cancel()
    take(channel)  # before the cancelled task runs
    await run_other_tasks()
    assert first.cancelled()
    assert second.done()
    assert texts(channel) == ["second"]


async def test_a_put_proceeds_if_the_only_waiting_one_is_being_cancelled():
    channel = full_channel(1)
    (first,) = start(channel.put("first"))
    await run_other_tasks()
    late = asyncio.get_running_loop().create_task(channel.put("late"))  # runs before the cancelled task
    first.cancel()
    take(channel)
    await run_other_tasks()
    assert first.cancelled()
    assert late.done()
    assert texts(channel) == ["late"]


async def test_several_puts_cancelled_at_once_pass_on_all_their_room():
    channel = full_channel(2)
    puts = start(*(channel.put(str(number)) for number in range(4)))
    await run_other_tasks()
    take(channel)
    puts[0].cancel()
    puts[1].cancel()
    await run_other_tasks()
    assert [put.done() for put in puts] == [True] * 4
    assert texts(channel) == ["2", "3"]


async def test_cancelling_a_put_creates_no_room():
    channel = full_channel(1)
    first, second = start(channel.put("first"), channel.put("second"))
    await run_other_tasks()
    first.cancel()
    await run_other_tasks()
    assert not second.done()
    assert texts(channel) == ["old 0"]
    assert await second


async def test_a_put_that_is_cancelled_at_the_end_raises_cancelled_error():
    channel = full_channel(1)
    (put,) = start(channel.put("a"))
    await run_other_tasks()
    channel.close()
    put.cancel()
    with pytest.raises(asyncio.CancelledError):
        await put
    assert texts(channel) == ["old 0"]


async def test_put_with_a_timeout():
    channel = full_channel(1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await channel.put("late")
    assert texts(channel) == ["old 0"]
    assert await channel.put("b")


# Waiting for the end.


async def test_wait_closed_returns_the_reason_to_all_waiters():
    channel = EventChannel()
    waiting = start(channel.wait_closed(), channel.wait_closed(), channel.wait_closed())
    await run_other_tasks()
    channel.end(CloseReason.STALLED)
    await run_other_tasks(2)
    assert [wait.result() for wait in waiting] == [CloseReason.STALLED] * 3
    assert await channel.wait_closed() is CloseReason.STALLED


async def test_close_does_not_end_the_stream_yet():
    """The stream ends when the events in the buffer have been sent."""
    channel = EventChannel()
    (wait,) = start(channel.wait_closed())
    await run_other_tasks()
    channel.close()
    await run_other_tasks()
    assert (channel.closed, channel.reason, wait.done()) == (True, None, False)
    channel.end(CloseReason.CLOSED)
    assert await wait is CloseReason.CLOSED


async def test_the_first_reason_is_kept():
    channel = EventChannel()
    assert channel.reason is None
    channel.end(CloseReason.LAGGED)
    channel.end(CloseReason.CLIENT_LEFT)
    assert channel.reason is CloseReason.LAGGED
    assert channel.closed


async def test_wait_closed_may_be_cancelled():
    channel = EventChannel()
    given_up, patient = start(channel.wait_closed(), channel.wait_closed())
    await run_other_tasks()
    given_up.cancel()
    await run_other_tasks()
    assert given_up.cancelled()
    channel.end(CloseReason.CLOSED)
    assert await patient is CloseReason.CLOSED


async def test_a_cancelled_wait_closed_leaves_no_waiter():
    channel = EventChannel()
    for _ in range(100):
        with suppress(TimeoutError):
            async with asyncio.timeout(0):
                await channel.wait_closed()
    assert not channel._close_waiters
    channel.end(CloseReason.CLIENT_LEFT)
    assert not channel._end_observed


def test_close_reasons_are_strings():
    assert [str(reason) for reason in CloseReason] == [
        "client_left", "closed", "error", "shutdown", "stalled", "lagged", "expired", "kicked"
    ]  # fmt: skip


# Whether a producer has observed the end.


async def test_the_next_put_observes_the_end():
    channel = EventChannel()
    assert await channel.put("a")
    assert channel._end_observed is False
    channel.end(CloseReason.CLIENT_LEFT)
    assert channel._end_observed is False
    assert channel.put_nowait("b") is False
    assert channel._end_observed is True


async def test_a_waiting_put_observes_the_end():
    channel = full_channel(1)
    (put,) = start(channel.put("a"))
    await run_other_tasks()
    assert channel._end_observed is False
    channel.end(CloseReason.CLIENT_LEFT)
    assert channel._end_observed is True
    assert await put is False


async def test_wait_closed_observes_the_end():
    channel = EventChannel()
    (wait,) = start(channel.wait_closed())
    await run_other_tasks()
    channel.end(CloseReason.CLIENT_LEFT)
    assert channel._end_observed is True
    await wait


async def test_a_put_observes_the_end_before_it_returns():
    """Otherwise the stream would cancel its producer in a ``put`` that is about to return False."""
    channel = EventChannel()
    channel.end(CloseReason.CLIENT_LEFT)
    (put,) = start(channel.put("a"))
    await asyncio.sleep(0)
    assert (put.done(), channel._end_observed) == (False, True)
    await asyncio.sleep(0)
    assert put.result() is False


async def test_an_observed_end_stays_observed():
    channel = full_channel(1)
    (put,) = start(channel.put("a"))
    await run_other_tasks()
    channel.close()
    assert await put is False
    channel.end(CloseReason.CLOSED)
    assert channel._end_observed is True


async def test_a_task_that_is_being_cancelled_does_not_observe_the_end():
    channel = full_channel(1)
    put, wait = start(channel.put("a"), channel.wait_closed())
    await run_other_tasks()
    put.cancel()
    wait.cancel()
    channel.end(CloseReason.CLIENT_LEFT)
    assert channel._end_observed is False
    await run_other_tasks()
    assert put.cancelled()
    assert wait.cancelled()


async def test_one_of_several_puts_is_enough_to_observe_the_end():
    channel = full_channel(1)
    puts = start(channel.put("a"), channel.put("b"), channel.put("c"))
    await run_other_tasks()
    puts[0].cancel()
    puts[2].cancel()
    channel.end(CloseReason.CLIENT_LEFT)
    assert channel._end_observed is True
    assert await puts[1] is False


# Notification of the stream.


async def test_the_stream_is_notified_of_the_first_event_since_it_removed_any_and_of_close():
    channel, notified = EventChannel(9), []
    channel._attach(lambda: notified.append(channel.closed))
    await channel.put("a")
    channel.put_nowait("b")
    assert notified == [False]
    assert texts(channel) == ["a", "b"]
    assert notified == [False]
    await channel.put("c")
    assert notified == [False, False]
    assert channel._get_frames(1) == [b"data: c\n\n"]
    await channel.put("d")
    assert notified == [False] * 3
    channel.close()
    assert notified == [False, False, False, True]
    channel.close()
    channel.put_nowait("e")
    assert len(notified) == 4


@pytest.mark.parametrize("closed_before", [False, True])
async def test_the_stream_is_notified_once_of_its_end(closed_before):
    channel, notified = EventChannel(), []
    if closed_before:
        channel.close()
    channel._attach(lambda: notified.append(1))
    channel.end(CloseReason.KICKED)
    channel.end(CloseReason.CLIENT_LEFT)
    channel.close()
    assert notified == [1]
    assert channel.reason is CloseReason.KICKED


# Custom queues.


class Sliding(asyncio.Queue):
    """Drops the oldest event on overflow."""

    def __init__(self, limit):
        super().__init__()
        self._limit = limit

    def put_nowait(self, event):
        if self.qsize() == self._limit:
            self.get_nowait()
        super().put_nowait(event)


class Dropping(asyncio.Queue):
    """Drops the newest event on overflow."""

    def __init__(self, limit):
        super().__init__()
        self._limit = limit

    def put_nowait(self, event):
        if self.qsize() < self._limit:
            super().put_nowait(event)


class Conflating(asyncio.Queue):
    """Keeps the last event of each name."""

    def _init(self, maxsize):
        self._queue = {}

    def _put(self, event):
        self._queue[event.name] = event

    def _get(self):
        return self._queue.pop(next(iter(self._queue)))


class Weighed(asyncio.Queue):
    """Has a capacity in characters."""

    limit = 4

    def full(self):
        return sum(len(event.data) for event in self._queue) >= self.limit


@pytest.mark.parametrize(
    ("queue", "kept"),
    [(lambda: Sliding(2), ["c", "d"]), (lambda: Dropping(2), ["a", "b"])],
    ids=["sliding", "dropping"],
)
async def test_a_custom_queue_may_drop_events(queue, kept):
    channel = EventChannel(queue)
    assert all([await channel.put("a"), await channel.put("b"), channel.put_nowait("c"), channel.put_nowait("d")])
    assert texts(channel) == kept


async def test_a_custom_queue_may_conflate_events():
    channel = EventChannel(Conflating)
    for event in (Event("1", "x"), Event("2", "y"), Event("3", "x")):
        assert await channel.put(event)
    assert take(channel) == [Event("3", "x"), Event("2", "y")]


async def test_a_woken_put_that_finds_no_room_keeps_its_position():
    channel = EventChannel(Weighed)
    for text in ("a", "b", "c", "d"):
        channel.put_nowait(text)
    puts = start(*(channel.put(text) for text in ("large", "e", "f", "g", "h", "i")))
    await run_other_tasks()
    assert texts(channel) == ["a", "b", "c", "d"]  # room for four events, but not for the large one and three others
    await run_other_tasks()
    assert [put.done() for put in puts] == [True, False, False, False, False, False]
    taken = []
    for _ in range(10):
        taken += texts(channel)
        await run_other_tasks()
    assert taken == ["large", "e", "f", "g", "h", "i"]


async def test_a_put_that_waits_again_returns_false_at_the_end():
    channel = EventChannel(Weighed)
    for text in ("a", "b", "c", "d"):
        channel.put_nowait(text)
    puts = start(*(channel.put(text) for text in ("large", "e")))
    await run_other_tasks()
    take(channel)
    await run_other_tasks()
    assert [put.done() for put in puts] == [True, False]
    channel.close()
    assert await puts[1] is False
    assert texts(channel) == ["large"]


async def test_a_put_that_waits_again_may_be_cancelled():
    channel = EventChannel(Weighed)
    for text in ("a", "b", "c", "d"):
        channel.put_nowait(text)
    _, again, last = start(*(channel.put(text) for text in ("large", "e", "f")))
    await run_other_tasks()
    take(channel)
    await run_other_tasks()
    again.cancel()
    await run_other_tasks()
    assert again.cancelled()
    assert not last.done()
    assert texts(channel) == ["large"]
    assert await last
    assert texts(channel) == ["f"]


async def test_a_buffer_factory_is_called_for_each_channel():
    made = []

    def queue():
        made.append(Sliding(2))
        return made[-1]

    first, second = EventChannel(queue), EventChannel(queue)
    await first.put("a")
    assert texts(second) == []
    assert texts(first) == ["a"]
    assert len(made) == 2


@pytest.mark.parametrize(
    ("buffer", "error", "says"),
    [
        (0, ValueError, r"buffer is 1 event or more, not 0: without a bound a slow client fills the memory"),
        (-1, ValueError, "buffer is 1 event or more, not -1"),
        (True, TypeError, "buffer is a number of events or a factory of asyncio.Queue, not True"),
        (2.0, TypeError, r"buffer is a number of events .* not 2\.0"),
        (None, TypeError, "buffer is a number of events .* not None"),
        ("10", TypeError, "buffer is a number of events .* not '10'"),
        (asyncio.Queue(3), TypeError, "buffer is a number of events or a factory of asyncio.Queue, not <Queue"),
        (
            lambda: 10,
            TypeError,
            r"buffer is a number of events or a factory of asyncio.Queue; <function .* returned 10",
        ),
        (list, TypeError, r"<class 'list'> returned \[\]"),
    ],
)
def test_an_invalid_buffer_is_rejected(buffer, error, says):
    with pytest.raises(error, match=says):
        EventChannel(buffer)


def test_a_buffer_may_hold_one_event():
    channel = EventChannel(1)
    assert channel.put_nowait("a")
    with pytest.raises(ChannelFull):
        channel.put_nowait("b")


# Random interleavings.

STEPS = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 3)),
    st.tuples(st.just("put_nowait"), st.integers(0, 3)),
    st.tuples(st.just("cancel"), st.integers(0, 3)),
    st.tuples(st.just("take"), st.just(0)),
    st.tuples(st.just("switch"), st.integers(1, 3)),
)


class Producer:
    """Puts events one after the other, and records the outcome of each put."""

    def __init__(self, name, channel):
        self.name = name
        self.outcomes = {}
        self.waited = []
        self._channel = channel
        self._count = 0
        self._texts = asyncio.Queue()
        self._task = None

    def begin(self):
        """Put another event after those that wait."""
        self._texts.put_nowait(self._next())
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    def begin_nowait(self):
        text = self._next()
        try:
            self.outcomes[text] = self._channel.put_nowait(text)
        except ChannelFull:
            self.outcomes[text] = "full"

    def cancel(self):
        if self._task is not None:
            self._task.cancel()

    def _next(self):
        self._count += 1
        return f"{self.name} {self._count}"

    async def _run(self):
        while not self._texts.empty():
            text = self._texts.get_nowait()
            self.outcomes[text] = "waiting"
            self.waited.append(text)
            try:
                self.outcomes[text] = await self._channel.put(text)
            except asyncio.CancelledError:
                self.outcomes[text] = "cancelled"


async def run_steps(capacity, steps, end):
    """Apply the steps to a full channel with four waiting puts. Returns the producers and what was removed."""
    channel = EventChannel(capacity)
    producers = [Producer(name, channel) for name in "abcd"]
    for index in range(capacity + 4):
        producers[index % 4].begin()
    await run_other_tasks()
    taken = []
    for step, number in steps:
        if step == "put":
            producers[number].begin()
        elif step == "put_nowait":
            producers[number].begin_nowait()
        elif step == "cancel":
            producers[number].cancel()
        elif step == "take":
            taken += texts(channel)
        else:
            await run_other_tasks(number)
        accepted = sum(outcome is True for producer in producers for outcome in producer.outcomes.values())
        assert accepted - len(taken) <= capacity
    if end:
        channel.close()
    else:  # all puts proceed if the stream continues to remove events
        for _ in range(capacity + 4 + len(steps)):
            await run_other_tasks(3)
            taken += texts(channel)
    await run_other_tasks(capacity + 4 + len(steps))
    taken += texts(channel)
    assert not channel._putters
    return producers, taken


@settings(deadline=None, max_examples=200)
@given(capacity=st.integers(1, 3), steps=st.lists(STEPS, max_size=20), end=st.booleans())
def test_no_event_is_lost_or_duplicated_in_any_interleaving(capacity, steps, end):
    """Puts, cancellations, removals and the end, in any order.

    An event is removed once if its ``put`` returned True, and otherwise never. The capacity is never exceeded. The
    events of a producer keep their order. No put waits forever, neither after the end nor while events are removed.
    """
    producers, taken = asyncio.run(run_steps(capacity, steps, end))
    outcomes = {text: outcome for producer in producers for text, outcome in producer.outcomes.items()}
    assert set(outcomes.values()) <= {True, "full", "cancelled"} | ({False} if end else set())
    assert Counter(taken) == Counter(text for text, outcome in outcomes.items() if outcome is True)
    for producer in producers:
        waited = [text for text in taken if text in producer.waited]
        assert waited == sorted(waited, key=producer.waited.index)


# The interface for the stream.


async def test_frames_are_removed_up_to_a_size():
    channel = full_channel(5)  # 13 bytes each
    assert channel._get_frames(14) == [b"data: old 0\n\n", b"data: old 1\n\n"]
    assert channel._get_frames(13) == [b"data: old 2\n\n"]
    assert channel._get_frames(0) == []
    assert channel.buffered == 2
    assert channel._get_frames(10**6) == [b"data: old 3\n\n", b"data: old 4\n\n"]
    assert channel._get_frames(10**6) == []


async def test_the_first_frame_carries_retry():
    channel = EventChannel(retry=3000)
    assert channel._get_frames(100) == []
    channel.put_nowait("a")
    assert channel._get_frames(0) == []
    channel.put_nowait("b")
    first, second = channel._get_frames(100)
    assert b"retry: 3000\n" in first
    assert b"retry" not in second
    channel.put_nowait("c")
    assert channel._get_frames(100) == [b"data: c\n\n"]


async def test_as_many_waiting_puts_proceed_as_frames_were_removed():
    channel = full_channel(4)
    waiting = start(*(channel.put(f"new {number}") for number in range(4)))
    await run_other_tasks()
    assert len(channel._get_frames(14)) == 2
    await run_other_tasks()
    assert [put.done() for put in waiting] == [True, True, False, False]
    assert channel.buffered == 4
    assert len(channel._get_frames(10**6)) == 4
    await run_other_tasks()
    assert all(put.done() for put in waiting)


async def test_buffered_counts_events():
    channel = EventChannel(3)
    assert channel.buffered == 0
    channel.put_nowait("a")
    await channel.put("b")
    assert channel.buffered == 2
    channel.close()
    assert channel.buffered == 2
    channel._get_frames(1)
    assert channel.buffered == 1


@pytest.mark.parametrize(("buffer", "lossy"), [(2, False), (asyncio.Queue, False), (lambda: SlidingQueue(2), True)])
async def test_dropped_counts_the_events_that_the_queue_dropped(buffer, lossy):
    channel = EventChannel(buffer)
    assert channel.lossy is lossy
    assert channel.dropped == 0
    if lossy:
        for number in range(5):
            assert await channel.put(str(number))
        assert channel.dropped == 3
        assert channel._get_frames(100) == [b"data: 3\n\n", b"data: 4\n\n"]
        assert channel.dropped == 3


async def test_the_stream_may_send_before_the_queue_drops_an_event():
    channel, sent = EventChannel(lambda: SlidingQueue(2)), []
    channel._attach(lambda: None, lambda: sent.extend(channel._get_frames(10**6)))
    for number in range(5):
        channel.put_nowait(str(number))
    assert channel.dropped == 0
    assert sent == [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n", b"data: 3\n\n"]
    assert channel.buffered == 1


# The size limit.


@pytest.mark.parametrize("event", [Event("x" * 100), Event("é\n€😀", "name", "id", 10, "comment"), Event("")])
async def test_an_event_of_exactly_the_limit_is_accepted_and_one_byte_more_is_rejected(event):
    size = len(encode(event))
    assert await EventChannel(max_event_size=size).put(event)
    assert EventChannel(max_event_size=size).put_nowait(event)
    channel = EventChannel(max_event_size=size - 1)
    with pytest.raises(EventTooLarge, match=rf"^the event has {size} bytes and max_event_size is {size - 1}: "):
        await channel.put(event)
    with pytest.raises(EventTooLarge):
        channel.put_nowait(event)
    assert channel.buffered == 0


async def test_a_str_is_measured_as_the_event_that_it_becomes():
    channel = EventChannel(max_event_size=10)
    assert await channel.put("é")
    assert channel.put_nowait("ab")
    with pytest.raises(EventTooLarge):
        await channel.put("éb")


async def test_a_closed_channel_rejects_events_that_are_too_large_too():
    """A programming error is visible whether or not the client is connected."""
    channel = EventChannel(max_event_size=10)
    channel.close()
    with pytest.raises(EventTooLarge):
        await channel.put("x" * 11)


LINES = st.text(st.sampled_from("aé€😀\n\r:"), max_size=30)
ONE_LINE = st.none() | st.text("aé€", max_size=10)


@given(
    st.builds(Event, LINES, ONE_LINE, ONE_LINE, st.none() | st.integers(0, 10**6), st.none() | LINES),
    st.integers(-4, 4),
)
def test_is_larger_compares_the_size_of_the_frame(event, distance):
    size = len(encode(event))
    assert is_larger(event, size + distance) is (distance < 0)
