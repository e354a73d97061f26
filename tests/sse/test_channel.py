"""The channel between a producer and its stream: who waits, who is told, and that nothing is lost or doubled.

The stream's side is played by the tests: they ``take`` and ``end``. ``turns`` hands over to the other tasks.
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
from aiohttp_interceptors.sse import Event, encode, is_larger


async def turns(count=5):
    """Let the other tasks run until they wait for something."""
    for _ in range(count):
        await asyncio.sleep(0)


def texts(channel):
    """Take what is there."""
    return [event.data for event in channel.take()]


def full_channel(buffer=2):
    channel = EventChannel(buffer)
    for number in range(buffer):
        channel.put_nowait(f"old {number}")
    return channel


def start(*puts):
    return [asyncio.create_task(put) for put in puts]


# Putting.


async def test_what_was_put_is_taken_in_order():
    channel = EventChannel()
    assert await channel.put("a") is True
    assert channel.put_nowait(Event("b", "n")) is True
    assert await channel.put(Event("c", id="1")) is True
    assert channel.take() == [Event("a"), Event("b", "n"), Event("c", id="1")]
    assert channel.take() == []


async def test_a_put_with_room_does_not_give_up_its_turn():
    channel, ran = EventChannel(2), []
    asyncio.get_running_loop().call_soon(ran.append, 1)
    await channel.put("a")
    await channel.put("b")
    assert not ran
    await asyncio.sleep(0)
    assert ran


@pytest.mark.parametrize("wrong", [None, 7, b"a", {"data": "a"}, ["a"], Event])
async def test_what_is_no_event_is_refused(wrong):
    channel = EventChannel()
    with pytest.raises(TypeError, match=r"put takes an Event or a str, not .*; Event.json\(value\) makes an event of"):
        await channel.put(wrong)
    with pytest.raises(TypeError, match="put takes an Event or a str"):
        channel.put_nowait(wrong)
    assert channel.take() == []


async def test_what_cannot_be_sent_is_refused_where_it_is_put():
    """Behaviour 91: a text that cannot be encoded raises in its ``put``, not in the stream (peer bug 41)."""
    channel = EventChannel()
    with pytest.raises(ValueError, match="UTF-8"):
        await channel.put("\ud800")
    assert channel.take() == []
    assert not channel.closed


async def test_ten_events_may_wait_by_default():
    channel = full_channel(10)
    assert EventChannel().put_nowait("a")
    default = EventChannel()
    for number in range(10):
        default.put_nowait(str(number))
    for full in (channel, default):
        with pytest.raises(ChannelFull):
            full.put_nowait("one more")


async def test_put_waits_for_room():
    """Behaviour 111: with a slow client ``put`` waits, nothing is dropped, and memory is bounded."""
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
        await turns()
        assert put - len(taken) <= 3
        taken += texts(channel)
    assert producer.done()
    producer.result()
    assert taken == [str(number) for number in range(1000)]


async def test_put_nowait_says_that_there_is_no_room():
    """Behaviour 112: ``put_nowait`` on a full channel raises ``ChannelFull``, on a closed one it returns ``False``."""
    channel = full_channel(2)
    with pytest.raises(ChannelFull, match=r"holds 2 events and has no room; put\(\) waits") as caught:
        channel.put_nowait("a")
    assert isinstance(caught.value, asyncio.QueueFull)
    assert texts(channel) == ["old 0", "old 1"]
    assert channel.put_nowait("b") is True
    channel.close()
    assert channel.put_nowait("c") is False
    assert texts(channel) == ["b"]


async def test_put_nowait_does_not_overtake_who_waits():
    channel = full_channel(1)
    (waits,) = start(channel.put("waits"))
    await turns()
    channel.take()  # there is room, and it is for the one that waits
    with pytest.raises(ChannelFull):
        channel.put_nowait("overtakes")
    assert await waits
    assert texts(channel) == ["waits"]


@pytest.mark.parametrize("runs_first", ["waits", "late"])
async def test_put_does_not_overtake_who_waits(runs_first):
    channel = full_channel(1)
    (waits,) = start(channel.put("waits"))
    await turns()
    if runs_first == "waits":
        channel.take()
        (late,) = start(channel.put("late"))
    else:
        (late,) = start(channel.put("late"))
        channel.take()
    await turns()
    assert (waits.done(), late.done()) == (True, False)
    assert texts(channel) == ["waits"]
    assert await late
    assert texts(channel) == ["late"]


@pytest.mark.parametrize("buffer", [1, 2, 3, 7])
async def test_who_waits_longest_is_let_in_first(buffer):
    channel = full_channel(buffer)
    puts = start(*(channel.put(str(number)) for number in range(50)))
    taken = []
    for _ in range(60):
        await turns()
        taken += texts(channel)
    assert taken == [f"old {number}" for number in range(buffer)] + [str(number) for number in range(50)]
    assert all(put.result() is True for put in puts)


async def test_as_many_are_let_in_as_there_is_room_for_at_once():
    channel = full_channel(3)
    puts = start(*(channel.put(str(number)) for number in range(5)))
    await turns()
    channel.take()
    await turns()
    assert [put.done() for put in puts] == [True, True, True, False, False]
    assert texts(channel) == ["0", "1", "2"]
    await turns()
    assert all(put.done() for put in puts)


# The end.


async def test_a_put_after_the_end_returns_false():
    """Behaviour 108: the very first ``put`` after the client left returns ``False``."""
    channel = EventChannel()
    assert await channel.put("a")
    channel.end(CloseReason.CLIENT_LEFT)
    assert await channel.put("b") is False
    assert channel.put_nowait("c") is False


async def test_a_put_after_close_returns_false():
    """Behaviour 97: after the producer closed its channel, ``put`` returns ``False``; closing twice is closing once."""
    channel = EventChannel()
    assert channel.closed is False
    channel.close()
    assert channel.closed is True
    channel.close()
    assert await channel.put("b") is False
    assert texts(channel) == []


async def test_all_that_was_put_before_close_is_taken():
    """Behaviour 96: a producer that puts n and closes at once loses none of them."""
    channel = EventChannel(3)
    for text in "abc":
        await channel.put(text)
    channel.close()
    assert texts(channel) == ["a", "b", "c"]


@pytest.mark.parametrize("over", [EventChannel.close, lambda channel: channel.end(CloseReason.CLIENT_LEFT)])
async def test_a_put_that_waits_is_told_of_the_end(over):
    """Behaviour 110: every ``put`` that is blocked on a full channel returns ``False`` promptly."""
    channel = full_channel(2)
    puts = start(*(channel.put(str(number)) for number in range(3)))
    await turns()
    over(channel)
    await turns(2)
    assert [put.result() for put in puts] == [False, False, False]
    assert texts(channel) == ["old 0", "old 1"]


async def test_a_put_that_was_let_in_when_the_end_came_returns_false():
    channel = full_channel(1)
    (put,) = start(channel.put("late"))
    await turns()
    channel.take()
    channel.close()
    assert await put is False
    assert texts(channel) == []


async def test_a_producer_that_ignores_false_lets_others_run():
    channel = EventChannel()
    channel.close()

    async def produce():
        while True:
            await channel.put("a")

    (producer,) = start(produce())
    await turns()
    producer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await producer


async def test_what_is_no_event_is_refused_after_the_end_too():
    channel = EventChannel()
    channel.close()
    with pytest.raises(TypeError):
        await channel.put(7)
    with pytest.raises(TypeError):
        channel.put_nowait(7)


# Cancelling.


async def test_a_cancelled_put_was_not_taken():
    channel = full_channel(1)
    first, second = start(channel.put("first"), channel.put("second"))
    await turns()
    first.cancel()
    await turns()
    assert first.cancelled()
    assert texts(channel) == ["old 0"]
    assert await second
    assert texts(channel) == ["second"]


async def test_room_for_a_cancelled_put_goes_to_the_next():
    channel = full_channel(1)
    first, second, third = start(*(channel.put(text) for text in ("first", "second", "third")))
    await turns()
    channel.take()
    first.cancel()  # in the turn in which it was let in
    await turns()
    assert first.cancelled()
    assert await second
    assert not third.done()
    assert texts(channel) == ["second"]
    assert await third


async def test_room_passes_over_a_put_that_is_being_cancelled():
    channel = full_channel(1)
    first, second = start(channel.put("first"), channel.put("second"))
    await turns()
    first.cancel()
    channel.take()  # before the cancelled one could leave the line
    await turns()
    assert first.cancelled()
    assert second.done()
    assert texts(channel) == ["second"]


async def test_who_comes_while_the_last_in_line_is_being_cancelled_is_let_in():
    channel = full_channel(1)
    (first,) = start(channel.put("first"))
    await turns()
    late = asyncio.get_running_loop().create_task(channel.put("late"))  # runs before ``first`` does again
    first.cancel()
    channel.take()
    await turns()
    assert first.cancelled()
    assert late.done()
    assert texts(channel) == ["late"]


async def test_several_cancelled_at_once_pass_on_all_their_room():
    channel = full_channel(2)
    puts = start(*(channel.put(str(number)) for number in range(4)))
    await turns()
    channel.take()
    puts[0].cancel()
    puts[1].cancel()
    await turns()
    assert [put.done() for put in puts] == [True] * 4
    assert texts(channel) == ["2", "3"]


async def test_cancelling_lets_nobody_in_where_no_room_is():
    channel = full_channel(1)
    first, second = start(channel.put("first"), channel.put("second"))
    await turns()
    first.cancel()
    await turns()
    assert not second.done()
    assert texts(channel) == ["old 0"]
    assert await second


async def test_a_put_cancelled_at_the_end_is_cancelled():
    channel = full_channel(1)
    (put,) = start(channel.put("a"))
    await turns()
    channel.close()
    put.cancel()
    with pytest.raises(asyncio.CancelledError):
        await put
    assert texts(channel) == ["old 0"]


async def test_a_put_may_be_given_up_after_a_time():
    channel = full_channel(1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await channel.put("late")
    assert texts(channel) == ["old 0"]
    assert await channel.put("b")


# Waiting for the end.


async def test_all_who_wait_for_the_end_are_told_why():
    channel = EventChannel()
    waiting = start(channel.wait_closed(), channel.wait_closed(), channel.wait_closed())
    await turns()
    channel.end(CloseReason.STALLED)
    await turns(2)
    assert [wait.result() for wait in waiting] == [CloseReason.STALLED] * 3
    assert await channel.wait_closed() is CloseReason.STALLED


async def test_closing_is_not_yet_the_end():
    """The stream is over when what was put has been sent: ``close`` asks for that, and the stream says it."""
    channel = EventChannel()
    (wait,) = start(channel.wait_closed())
    await turns()
    channel.close()
    await turns()
    assert (channel.closed, channel.reason, wait.done()) == (True, None, False)
    channel.end(CloseReason.CLOSED)
    assert await wait is CloseReason.CLOSED


async def test_the_first_reason_counts():
    channel = EventChannel()
    assert channel.reason is None
    channel.end(CloseReason.LAGGED)
    channel.end(CloseReason.CLIENT_LEFT)
    assert channel.reason is CloseReason.LAGGED
    assert channel.closed


async def test_waiting_for_the_end_may_be_cancelled():
    channel = EventChannel()
    given_up, patient = start(channel.wait_closed(), channel.wait_closed())
    await turns()
    given_up.cancel()
    await turns()
    assert given_up.cancelled()
    channel.end(CloseReason.CLOSED)
    assert await patient is CloseReason.CLOSED


async def test_a_wait_that_is_given_up_leaves_nothing_behind():
    channel = EventChannel()
    for _ in range(100):
        with suppress(TimeoutError):
            async with asyncio.timeout(0):
                await channel.wait_closed()
    assert not channel._over
    channel.end(CloseReason.CLIENT_LEFT)
    assert not channel.told


def test_a_reason_is_a_word():
    assert [str(reason) for reason in CloseReason] == [
        "client_left", "closed", "error", "shutdown", "stalled", "lagged", "expired", "kicked"
    ]  # fmt: skip


# Who knows.


async def test_the_next_put_tells_of_the_end():
    channel = EventChannel()
    assert await channel.put("a")
    assert channel.told is False
    channel.end(CloseReason.CLIENT_LEFT)
    assert channel.told is False
    assert channel.put_nowait("b") is False
    assert channel.told is True


async def test_a_put_that_waited_is_told():
    channel = full_channel(1)
    (put,) = start(channel.put("a"))
    await turns()
    assert channel.told is False
    channel.end(CloseReason.CLIENT_LEFT)
    assert channel.told is True
    assert await put is False


async def test_who_waited_for_the_end_is_told():
    channel = EventChannel()
    (wait,) = start(channel.wait_closed())
    await turns()
    channel.end(CloseReason.CLIENT_LEFT)
    assert channel.told is True
    await wait


async def test_a_put_after_the_end_is_told():
    """Behaviour 108: so a stream does not cancel a producer in the ``put`` that is about to return ``False``."""
    channel = EventChannel()
    channel.end(CloseReason.CLIENT_LEFT)
    (put,) = start(channel.put("a"))
    await asyncio.sleep(0)
    assert (put.done(), channel.told) == (False, True)
    await asyncio.sleep(0)
    assert put.result() is False


async def test_what_is_told_stays_told():
    channel = full_channel(1)
    (put,) = start(channel.put("a"))
    await turns()
    channel.close()
    assert await put is False
    channel.end(CloseReason.CLOSED)
    assert channel.told is True


async def test_who_is_being_cancelled_is_not_told():
    channel = full_channel(1)
    put, wait = start(channel.put("a"), channel.wait_closed())
    await turns()
    put.cancel()
    wait.cancel()
    channel.end(CloseReason.CLIENT_LEFT)
    assert channel.told is False
    await turns()
    assert put.cancelled()
    assert wait.cancelled()


async def test_one_of_several_is_enough():
    channel = full_channel(1)
    puts = start(channel.put("a"), channel.put("b"), channel.put("c"))
    await turns()
    puts[0].cancel()
    puts[2].cancel()
    channel.end(CloseReason.CLIENT_LEFT)
    assert channel.told is True
    assert await puts[1] is False


# The stream is woken.


async def test_the_stream_is_woken_by_the_first_put_since_it_took_and_by_close():
    channel, woken = EventChannel(9), []
    channel.attach(lambda: woken.append(channel.closed))
    await channel.put("a")
    channel.put_nowait("b")
    assert woken == [False]
    assert texts(channel) == ["a", "b"]
    assert woken == [False]
    await channel.put("c")
    assert woken == [False, False]
    assert channel.take_frames(1) == [b"data: c\n\n"]
    await channel.put("d")
    assert woken == [False] * 3
    channel.close()
    assert woken == [False, False, False, True]
    channel.close()
    channel.put_nowait("e")
    assert len(woken) == 4


@pytest.mark.parametrize("closed_before", [False, True])
async def test_a_stream_that_is_ended_is_woken_once_and_never_again(closed_before):
    channel, woken = EventChannel(), []
    if closed_before:
        channel.close()
    channel.attach(lambda: woken.append(1))
    channel.end(CloseReason.KICKED)
    channel.end(CloseReason.CLIENT_LEFT)
    channel.close()
    assert woken == [1]
    assert channel.reason is CloseReason.KICKED


# Other queues.


class Sliding(asyncio.Queue):
    """The newest events: when there are too many, the oldest goes."""

    def __init__(self, limit):
        super().__init__()
        self._limit = limit

    def put_nowait(self, event):
        if self.qsize() == self._limit:
            self.get_nowait()
        super().put_nowait(event)


class Dropping(asyncio.Queue):
    """The oldest events: when there are too many, the newest does not come in."""

    def __init__(self, limit):
        super().__init__()
        self._limit = limit

    def put_nowait(self, event):
        if self.qsize() < self._limit:
            super().put_nowait(event)


class Conflating(asyncio.Queue):
    """The last event of each name."""

    def _init(self, maxsize):
        self._queue = {}

    def _put(self, event):
        self._queue[event.name] = event

    def _get(self):
        return self._queue.pop(next(iter(self._queue)))


class Weighed(asyncio.Queue):
    """Events of up to so many characters together: whether it is full depends on what is in it."""

    limit = 4

    def full(self):
        return sum(len(event.data) for event in self._queue) >= self.limit


@pytest.mark.parametrize(
    ("queue", "kept"),
    [(lambda: Sliding(2), ["c", "d"]), (lambda: Dropping(2), ["a", "b"])],
    ids=["sliding", "dropping"],
)
async def test_a_queue_may_drop(queue, kept):
    channel = EventChannel(queue)
    assert all([await channel.put("a"), await channel.put("b"), channel.put_nowait("c"), channel.put_nowait("d")])
    assert texts(channel) == kept


async def test_a_queue_may_conflate():
    channel = EventChannel(Conflating)
    for event in (Event("1", "x"), Event("2", "y"), Event("3", "x")):
        assert await channel.put(event)
    assert channel.take() == [Event("3", "x"), Event("2", "y")]


async def test_who_finds_the_room_taken_keeps_its_place():
    channel = EventChannel(Weighed)
    for text in ("a", "b", "c", "d"):
        channel.put_nowait(text)
    puts = start(*(channel.put(text) for text in ("large", "e", "f", "g", "h", "i")))
    await turns()
    assert texts(channel) == ["a", "b", "c", "d"]  # room for four as these were, but not for the large one and three
    await turns()
    assert [put.done() for put in puts] == [True, False, False, False, False, False]
    taken = []
    for _ in range(10):
        taken += texts(channel)
        await turns()
    assert taken == ["large", "e", "f", "g", "h", "i"]


async def test_who_waits_again_is_told_of_the_end():
    channel = EventChannel(Weighed)
    for text in ("a", "b", "c", "d"):
        channel.put_nowait(text)
    puts = start(*(channel.put(text) for text in ("large", "e")))
    await turns()
    channel.take()
    await turns()
    assert [put.done() for put in puts] == [True, False]
    channel.close()
    assert await puts[1] is False
    assert texts(channel) == ["large"]


async def test_who_waits_again_may_be_cancelled():
    channel = EventChannel(Weighed)
    for text in ("a", "b", "c", "d"):
        channel.put_nowait(text)
    _, again, last = start(*(channel.put(text) for text in ("large", "e", "f")))
    await turns()
    channel.take()
    await turns()
    again.cancel()
    await turns()
    assert again.cancelled()
    assert not last.done()
    assert texts(channel) == ["large"]
    assert await last
    assert texts(channel) == ["f"]


async def test_two_channels_of_one_factory_share_nothing():
    """Behaviour 100: a buffer factory is called for each channel."""
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
        (True, TypeError, "buffer is a number of events or makes an asyncio.Queue, not True"),
        (2.0, TypeError, r"buffer is a number of events .* not 2\.0"),
        (None, TypeError, "buffer is a number of events .* not None"),
        ("10", TypeError, "buffer is a number of events .* not '10'"),
        (asyncio.Queue(3), TypeError, "buffer is a number of events or makes an asyncio.Queue, not <Queue"),
        (lambda: 10, TypeError, r"buffer is a number of events or makes an asyncio.Queue; <function .* made 10"),
        (list, TypeError, r"<class 'list'> made \[\]"),
    ],
)
def test_a_buffer_that_is_none_is_refused(buffer, error, says):
    with pytest.raises(error, match=says):
        EventChannel(buffer)


def test_a_buffer_of_one_is_enough():
    channel = EventChannel(1)
    assert channel.put_nowait("a")
    with pytest.raises(ChannelFull):
        channel.put_nowait("b")


# Any order of things.

MOVES = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 3)),
    st.tuples(st.just("put_nowait"), st.integers(0, 3)),
    st.tuples(st.just("cancel"), st.integers(0, 3)),
    st.tuples(st.just("take"), st.just(0)),
    st.tuples(st.just("turns"), st.integers(1, 3)),
)


class Producer:
    """Puts what it is told to, one after the other, and keeps what became of each."""

    def __init__(self, name, channel):
        self.name = name
        self.outcomes = {}
        self.waited = []
        self._channel = channel
        self._count = 0
        self._orders = asyncio.Queue()
        self._task = None

    def begin(self):
        """Put another one, after those that wait."""
        self._orders.put_nowait(self._next())
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
        while not self._orders.empty():
            text = self._orders.get_nowait()
            self.outcomes[text] = "waits"
            self.waited.append(text)
            try:
                self.outcomes[text] = await self._channel.put(text)
            except asyncio.CancelledError:
                self.outcomes[text] = "cancelled"


async def play(capacity, moves, end):
    """Play these moves on a full channel with four in line, and return who put what, and what was taken."""
    channel = EventChannel(capacity)
    producers = [Producer(name, channel) for name in "abcd"]
    for turn in range(capacity + 4):
        producers[turn % 4].begin()
    await turns()
    taken = []
    for move, number in moves:
        if move == "put":
            producers[number].begin()
        elif move == "put_nowait":
            producers[number].begin_nowait()
        elif move == "cancel":
            producers[number].cancel()
        elif move == "take":
            taken += texts(channel)
        else:
            await turns(number)
        accepted = sum(outcome is True for producer in producers for outcome in producer.outcomes.values())
        assert accepted - len(taken) <= capacity
    if end:
        channel.close()
    else:  # a stream that reads on lets everybody in
        for _ in range(capacity + 4 + len(moves)):
            await turns(3)
            taken += texts(channel)
    await turns(capacity + 4 + len(moves))
    taken += texts(channel)
    assert not channel._waiting
    return producers, taken


@settings(deadline=None, max_examples=200)
@given(capacity=st.integers(1, 3), moves=st.lists(MOVES, max_size=20), end=st.booleans())
def test_in_any_order_of_things_nothing_is_lost_or_doubled(capacity, moves, end):
    """Putters, cancellations, takes and the end, in any order and in any turn.

    What ``put`` said ``True`` to is taken once, all else never; no more than the capacity is ever between; each
    producer keeps its order; and nobody waits for ever, neither after the end nor while somebody takes.
    """
    producers, taken = asyncio.run(play(capacity, moves, end))
    outcomes = {text: outcome for producer in producers for text, outcome in producer.outcomes.items()}
    assert set(outcomes.values()) <= {True, "full", "cancelled"} | ({False} if end else set())
    assert Counter(taken) == Counter(text for text, outcome in outcomes.items() if outcome is True)
    for producer in producers:
        waited = [text for text in taken if text in producer.waited]
        assert waited == sorted(waited, key=producer.waited.index)


# What a stream takes, as bytes.


async def test_frames_are_taken_until_there_are_enough_bytes():
    channel = full_channel(5)  # 13 bytes each
    assert channel.take_frames(14) == [b"data: old 0\n\n", b"data: old 1\n\n"]
    assert channel.take_frames(13) == [b"data: old 2\n\n"]
    assert channel.take_frames(0) == []
    assert channel.buffered == 2
    assert channel.take_frames(10**6) == [b"data: old 3\n\n", b"data: old 4\n\n"]
    assert channel.take_frames(10**6) == []


async def test_the_first_frame_carries_retry_and_a_take_of_nothing_does_not_lose_it():
    channel = EventChannel(retry=3000)
    assert channel.take_frames(100) == []
    channel.put_nowait("a")
    assert channel.take_frames(0) == []
    channel.put_nowait("b")
    first, second = channel.take_frames(100)
    assert b"retry: 3000\n" in first
    assert b"retry" not in second
    channel.put_nowait("c")
    assert channel.take_frames(100) == [b"data: c\n\n"]


async def test_as_many_puts_go_on_as_frames_were_taken():
    channel = full_channel(4)
    waiting = start(*(channel.put(f"new {number}") for number in range(4)))
    await turns()
    assert len(channel.take_frames(14)) == 2
    await turns()
    assert [put.done() for put in waiting] == [True, True, False, False]
    assert channel.buffered == 4
    assert len(channel.take_frames(10**6)) == 4
    await turns()
    assert all(put.done() for put in waiting)


async def test_what_is_buffered_is_counted():
    channel = EventChannel(3)
    assert channel.buffered == 0
    channel.put_nowait("a")
    await channel.put("b")
    assert channel.buffered == 2
    channel.close()
    assert channel.buffered == 2
    channel.take_frames(1)
    assert channel.buffered == 1


@pytest.mark.parametrize(("buffer", "lossy"), [(2, False), (asyncio.Queue, False), (lambda: SlidingQueue(2), True)])
async def test_what_a_queue_lost_is_counted(buffer, lossy):
    channel = EventChannel(buffer)
    assert channel.lossy is lossy
    assert channel.dropped == 0
    if lossy:
        for number in range(5):
            assert await channel.put(str(number))
        assert channel.dropped == 3
        assert channel.take_frames(100) == [b"data: 3\n\n", b"data: 4\n\n"]
        assert channel.dropped == 3


async def test_a_stream_that_can_send_is_asked_before_a_queue_loses_an_event():
    channel, sent = EventChannel(lambda: SlidingQueue(2)), []
    channel.attach(lambda: None, lambda: sent.extend(channel.take_frames(10**6)))
    for number in range(5):
        channel.put_nowait(str(number))
    assert channel.dropped == 0
    assert sent == [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n", b"data: 3\n\n"]
    assert channel.buffered == 1


# An event may be so large.


@pytest.mark.parametrize("event", [Event("x" * 100), Event("é\n€😀", "name", "id", 10, "comment"), Event("")])
async def test_an_event_of_exactly_the_limit_is_taken_and_a_byte_more_is_refused(event):
    size = len(encode(event))
    assert await EventChannel(max_event_size=size).put(event)
    assert EventChannel(max_event_size=size).put_nowait(event)
    channel = EventChannel(max_event_size=size - 1)
    with pytest.raises(EventTooLarge, match=rf"^the event has {size} bytes and max_event_size is {size - 1}: "):
        await channel.put(event)
    with pytest.raises(EventTooLarge):
        channel.put_nowait(event)
    assert channel.buffered == 0


async def test_a_text_is_measured_as_the_event_it_becomes():
    channel = EventChannel(max_event_size=10)
    assert await channel.put("é")
    assert channel.put_nowait("ab")
    with pytest.raises(EventTooLarge):
        await channel.put("éb")


async def test_one_that_is_too_large_is_refused_in_a_closed_channel_too():
    """An error of the program is seen whether the client is there or not."""
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
def test_larger_is_what_has_more_bytes_on_the_wire(event, distance):
    size = len(encode(event))
    assert is_larger(event, size + distance) is (distance < 0)
