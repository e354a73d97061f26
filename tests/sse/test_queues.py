"""Queues that lose events: who goes when there is no room, that it is counted, and that the reader is told where."""

import asyncio
import gc
import weakref
from contextlib import suppress
from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiohttp_interceptors.channel import EventChannel
from aiohttp_interceptors.queues import (
    ConflatingQueue,
    DroppingQueue,
    LossyQueue,
    SlidingQueue,
    dropped_comment,
    dropped_event,
)
from aiohttp_interceptors.sse import Event, encode

QUEUES = [SlidingQueue, DroppingQueue, ConflatingQueue]
every_queue = pytest.mark.parametrize("make", QUEUES)


def put(queue, *texts):
    """Put an event for each text; what stands before a colon is its name."""
    for text in texts:
        name, colon, _ = text.partition(":")
        queue.put_nowait(Event(text, name if colon else None))


def texts(queue):
    """Take what is there, as a reader does that asks first; a notice is the number in it."""
    taken = []
    while not queue.empty():
        event = queue.get_nowait()
        taken.append(event.data if event.comment is None else int(event.comment))
        assert len(taken) <= 2 * queue.maxsize + 1, "there is no end of it"
    return taken


def number(count):
    """Make a notice that ``texts`` understands."""
    return Event(comment=str(count))


async def soon(waiting):
    """Wait for what must come, but not for ever."""
    async with asyncio.timeout(10):
        return await waiting


async def turns(count=5):
    """Let the other tasks run until they wait for something."""
    for _ in range(count):
        await asyncio.sleep(0)


# Who goes.


def test_a_sliding_queue_keeps_the_newest():
    queue = SlidingQueue(3)
    put(queue, *"abcde")
    assert texts(queue) == ["c", "d", "e"]
    assert queue.dropped == 2


def test_a_dropping_queue_keeps_what_it_has():
    queue = DroppingQueue(3)
    put(queue, *"abcde")
    assert texts(queue) == ["a", "b", "c"]
    assert queue.dropped == 2


def test_a_conflating_queue_keeps_the_latest_of_each_key_and_puts_it_at_the_end():
    queue = ConflatingQueue(3)
    put(queue, "a:1", "b:1", "a:2", "a:3", "c:1")
    assert texts(queue) == ["b:1", "a:3", "c:1"]
    assert queue.dropped == 2


def test_a_conflating_queue_drops_the_oldest_when_it_holds_as_many_keys_as_it_may():
    queue = ConflatingQueue(2)
    put(queue, "a:1", "b:1", "a:2", "c:1")
    assert texts(queue) == ["a:2", "c:1"]
    assert queue.dropped == 2


def test_a_conflating_queue_with_all_its_keys_has_room_for_another_event_of_one_of_them():
    queue = ConflatingQueue(2)
    put(queue, "a:1", "b:1", "b:2")
    assert texts(queue) == ["a:1", "b:2"]
    assert queue.dropped == 1


def test_events_without_a_name_are_not_conflated_but_slide():
    queue = ConflatingQueue(3)
    put(queue, "x", "a:1", "x", "a:2", "y")
    assert texts(queue) == ["x", "a:2", "y"]
    assert queue.dropped == 2


def test_the_key_may_be_anything_hashable_of_the_event_and_none_for_an_event_that_is_kept():
    queue = ConflatingQueue(9, key=lambda event: (event.data[0], 1) if event.data[0].isalpha() else None)
    put(queue, "a1", "b1", "7", "a2", "7")
    assert texts(queue) == ["b1", "7", "a2", "7"]


@pytest.mark.parametrize("key", ["", 0, False, ()])
def test_a_key_that_is_false_is_a_key(key):
    queue = ConflatingQueue(9, key=lambda event: key)
    for _ in range(2):
        put(queue, *"abc")
        assert texts(queue) == ["c"]
    assert queue.dropped == 4


def test_an_event_whose_predecessor_was_taken_replaces_nothing():
    queue = ConflatingQueue(2)
    put(queue, "a:1")
    assert texts(queue) == ["a:1"]
    put(queue, "b:1", "a:2")
    assert texts(queue) == ["b:1", "a:2"]
    assert queue.dropped == 0


@every_queue
def test_ids_stay_in_the_order_they_were_put(make):
    queue, ids = make(4), []
    for count in range(100):
        queue.put_nowait(Event("", f"name {count % 3}", id=count))
        if count % 7 == 0:
            ids.append(int(queue.get_nowait().id))
    ids += [int(queue.get_nowait().id) for _ in range(queue.qsize())]
    assert ids == sorted(ids)


# That a put never waits.


@every_queue
async def test_a_put_never_waits(make):
    queue = make(2)
    ran = []
    asyncio.get_running_loop().call_soon(ran.append, 1)
    for count in range(10):
        await queue.put(Event(str(count)))
        assert not queue.full()
    assert not ran
    assert queue.qsize() == queue.maxsize == 2
    assert queue.dropped == 8


@every_queue
@pytest.mark.parametrize("through", ["put", "put_nowait"])
async def test_a_channel_with_such_a_queue_always_has_room(make, through):
    channel = EventChannel(lambda: make(2, notice=number))
    for count in range(10):
        accepted = channel.put(str(count)) if through == "put" else channel.put_nowait(str(count))
        assert (await accepted if through == "put" else accepted) is True
    assert (channel.buffered, channel.dropped) == (3, 8)


# That it is never silent.


@every_queue
def test_overflow_without_storage_is_never_silent(make):
    """Peer bug 33: what was dropped is counted, and the reader is told how many are missing, and where."""
    queue = make(2, notice=dropped_event)
    put(queue, *"abcde")
    assert queue.dropped == 3
    hole = [Event('{"dropped":3}', "dropped")]
    kept = [Event(text) for text in ("ab" if make is DroppingQueue else "de")]
    expected = kept + hole if make is DroppingQueue else hole + kept
    assert [queue.get_nowait() for _ in range(queue.qsize())] == expected
    assert queue.empty()


def test_the_notice_of_a_sliding_queue_comes_before_what_follows():
    queue = SlidingQueue(2, notice=number)
    put(queue, *"abc")
    assert texts(queue) == [1, "b", "c"]
    put(queue, *"de")
    assert texts(queue) == ["d", "e"]


def test_what_slides_out_before_the_notice_was_taken_is_in_it():
    queue = SlidingQueue(2, notice=number)
    put(queue, *"abc")
    put(queue, *"de")
    assert queue.get_nowait() == number(3)
    put(queue, "f")
    assert texts(queue) == [1, "e", "f"]
    assert queue.dropped == 4


def test_the_notice_of_a_dropping_queue_comes_after_what_was_there_and_before_what_is_accepted_next():
    queue = DroppingQueue(2, notice=number)
    put(queue, *"abcd")
    assert queue.get_nowait() == Event("a")
    put(queue, *"efg")
    assert queue.qsize() == 4
    assert texts(queue) == ["b", 2, "e", 2]
    put(queue, "h")
    assert texts(queue) == ["h"]


def test_a_notice_is_not_lost_when_nothing_is_put_any_more():
    queue = DroppingQueue(1, notice=number)
    put(queue, *"ab")
    assert queue.get_nowait() == Event("a")
    assert queue.qsize() == 1
    assert not queue.empty()
    assert queue.get_nowait() == number(1)
    assert queue.empty()
    with pytest.raises(asyncio.QueueEmpty):
        queue.get_nowait()


def test_the_notice_of_a_conflated_event_stands_where_the_event_was():
    queue = ConflatingQueue(9, notice=number)
    put(queue, "a:1", "b:1", "c:1", "b:2")
    assert texts(queue) == ["a:1", 1, "c:1", "b:2"]


def test_holes_that_meet_are_one():
    queue = ConflatingQueue(9, notice=number)
    put(queue, "x", "a:1", "b:1", "c:1", "y", "a:2", "c:2")
    assert queue.qsize() == 7
    put(queue, "b:2")
    assert queue.qsize() == 6
    assert texts(queue) == ["x", 3, "y", "a:2", "c:2", "b:2"]


@every_queue
def test_notices_take_no_room(make):
    queue = make(2, notice=number)
    put(queue, *"abc")
    assert queue.qsize() == 3
    queue.get_nowait()
    put(queue, *"de")
    assert len([text for text in texts(queue) if isinstance(text, str)]) == 2


@every_queue
def test_without_notice_only_events_are_taken(make):
    queue = make(2)
    for _ in range(3):
        put(queue, *"abcde")
        assert queue.qsize() == 2
        assert len(texts(queue)) == 2
    assert queue.dropped == 9


@every_queue
def test_without_overflow_there_is_no_notice(make):
    queue = make(3, notice=number)
    for _ in range(3):
        put(queue, *"abc")
        assert texts(queue) == ["a", "b", "c"]
    assert queue.dropped == 0


# Notices.


def test_a_dropped_comment_is_seen_by_no_page():
    assert dropped_comment(3) == Event(comment="dropped 3 events")
    assert dropped_comment(1) == Event(comment="dropped 1 event")
    assert encode(dropped_comment(3)) == b": dropped 3 events\n:\n"


def test_a_dropped_event_is_heard_by_its_name():
    assert dropped_event(3) == Event.json({"dropped": 3}, name="dropped")
    assert encode(dropped_event(3)) == b'event: dropped\ndata: {"dropped":3}\n\n'


def test_ready_made_notices_leave_the_last_event_id_as_it_is():
    assert dropped_event(3).id is dropped_comment(3).id is None


# What is refused.


@every_queue
@pytest.mark.parametrize("wrong", [0, -1])
def test_a_queue_without_room_is_refused(make, wrong):
    with pytest.raises(ValueError, match=f"maxsize is 1 event or more, not {wrong}: without room"):
        make(wrong)


@every_queue
@pytest.mark.parametrize("wrong", [None, "10", 2.5, True, number])
def test_a_maxsize_that_is_no_whole_number_is_refused(make, wrong):
    with pytest.raises(TypeError, match="maxsize is a number of events, not "):
        make(wrong)


@every_queue
@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (7, "7 raised for 1"),
        ("dropped", "'dropped' raised for 1"),
        (Event("dropped"), "raised for 1"),
        (lambda: Event(), "raised for 1"),
        (lambda count: Event(name=f"{count}\n"), "raised for 1"),
        (lambda count: None, "made None of 1"),
        (str, "made '1' of 1"),
    ],
)
def test_a_notice_that_makes_no_event_is_refused_when_the_queue_is_built(make, wrong, what):
    with pytest.raises(TypeError, match=f"notice makes an Event of a number of events, and .*{what}"):
        make(1, notice=wrong)


@every_queue
@pytest.mark.parametrize(("later", "what"), [(lambda: None, "made None of 2"), (lambda: {}["missing"], "raised for 2")])
def test_a_notice_that_makes_no_event_later_raises_where_it_should_be_taken_and_is_not_lost(make, later, what):
    broken = True
    queue = make(1, notice=lambda count: later() if broken and count > 1 else number(count))
    put(queue, *"abc")
    kept = [queue.get_nowait().data] if make is DroppingQueue else []
    for _ in range(2):
        with pytest.raises(TypeError, match=f"notice makes an Event of a number of events, and .*{what}"):
            queue.get_nowait()
    broken = False
    assert kept + texts(queue) == (["a", 2] if make is DroppingQueue else [2, "c"])


def test_a_key_that_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match="key makes a key of an event, and 'name' cannot be called"):
        ConflatingQueue(1, key="name")


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        (lambda event: [event.name], TypeError, r"key makes a hashable, or None, and .* made \['a'\]"),
        (lambda event: int(event.name), ValueError, "invalid literal for int"),
    ],
    ids=["unhashable", "raises"],
)
def test_a_wrong_key_is_refused_where_it_is_put_and_the_queue_is_as_it_was(wrong, error, text):
    key = lambda event: event.name
    queue = ConflatingQueue(2, key=lambda event: key(event), notice=number)
    put(queue, "a:1", "b:1")
    key = wrong
    with pytest.raises(error, match=text):
        put(queue, "a:2")
    assert queue.qsize() == 2
    assert queue.dropped == 0
    key = lambda event: event.name
    put(queue, "a:3")
    assert texts(queue) == [1, "b:1", "a:3"]


def test_what_goes_when_there_is_no_room_is_a_matter_of_each_queue():
    with pytest.raises(TypeError, match="abstract"):
        LossyQueue(1)


# That nothing is held.


@every_queue
def test_what_was_dropped_or_taken_is_held_no_longer(make):
    class Held(Event):
        __slots__ = ("__weakref__",)

    class Key:
        pass

    keys = [Key() for _ in range(10)]
    alive = [weakref.ref(key) for key in keys]
    by_name = {} if make is not ConflatingQueue else {"key": lambda event: keys[int(event.name)]}
    queue = make(5, **by_name)
    for count in range(100):
        event = Held(str(count), str(count % 10))
        alive.append(weakref.ref(event))
        queue.put_nowait(event)
        if count % 4 == 0:
            queue.get_nowait()
    del event
    keys.clear()
    gc.collect()
    assert sum(reference() is not None for reference in alive) == queue.qsize() * (1 + bool(by_name))
    texts(queue)
    gc.collect()
    assert not any(reference() for reference in alive)


# Tasks that wait.


@every_queue
async def test_who_waits_for_an_event_gets_it_and_who_waits_longer_the_notice(make):
    queue = make(1, notice=number)
    readers = [asyncio.create_task(queue.get()) for _ in range(2)]
    await turns()
    put(queue, *"abc")
    taken = [await soon(reader) for reader in readers]
    assert taken == ([Event("a"), number(2)] if make is DroppingQueue else [number(2), Event("c")])


@every_queue
async def test_who_was_woken_for_an_event_that_was_dropped_goes_on_waiting(make):
    queue = make(1)
    readers = [asyncio.create_task(queue.get()) for _ in range(2)]
    await turns()
    put(queue, *"ab")
    await turns()
    assert [reader.done() for reader in readers] == [True, False]
    put(queue, "c")
    assert await soon(readers[1]) == Event("c")


@every_queue
async def test_cancelling_who_waits_loses_nothing(make):
    queue = make(1, notice=number)
    readers = [asyncio.create_task(queue.get()) for _ in range(3)]
    await turns()
    put(queue, *"ab")
    readers[0].cancel()
    assert {(await soon(reader)).comment for reader in readers[1:]} == {None, "1"}
    with suppress(asyncio.CancelledError):
        await soon(readers[0])


def has_joined(queue):
    """Tell whether join() has nothing to wait for now."""
    joining = queue.join()
    try:
        joining.send(None)
    except StopIteration:
        return True
    finally:
        joining.close()
    return False


@every_queue
@pytest.mark.parametrize("notice", [None, number])
async def test_join_waits_for_what_was_taken_and_not_for_what_was_dropped(make, notice):
    queue = make(2, notice=notice)
    put(queue, *"abcde")
    joining = asyncio.create_task(queue.join())
    for _ in range(queue.qsize()):
        await turns()
        assert not joining.done()
        queue.get_nowait()
        queue.task_done()
    await soon(joining)
    with pytest.raises(ValueError, match="called too many times"):
        queue.task_done()


@every_queue
@pytest.mark.parametrize("notice", [None, number])
async def test_join_goes_on_waiting_when_the_only_event_is_replaced(make, notice):
    queue = make(1, notice=notice)
    put(queue, "a:1")
    joining = asyncio.create_task(queue.join())
    await turns()
    put(queue, "a:2")
    await turns()
    assert not joining.done()
    for _ in range(queue.qsize()):
        queue.get_nowait()
        queue.task_done()
    await soon(joining)


@pytest.mark.skipif(not hasattr(asyncio.Queue, "shutdown"), reason="asyncio.Queue.shutdown is new in Python 3.13")
@every_queue
async def test_after_shutdown_all_that_is_there_can_be_taken_and_nothing_put(make):
    queue = make(1, notice=number)
    put(queue, *"abc")
    queue.shutdown()
    with pytest.raises(asyncio.QueueShutDown):
        put(queue, "d")
    assert texts(queue) == (["a", 2] if make is DroppingQueue else [2, "c"])
    assert queue.dropped == 2
    with pytest.raises(asyncio.QueueShutDown):
        await queue.get()


@pytest.mark.skipif(not hasattr(asyncio.Queue, "shutdown"), reason="asyncio.Queue.shutdown is new in Python 3.13")
@every_queue
async def test_an_immediate_shutdown_lets_join_go(make):
    queue = make(1, notice=number)
    put(queue, *"abc")
    joining = asyncio.create_task(queue.join())
    await turns()
    queue.shutdown(immediate=True)
    await soon(joining)
    assert queue.empty()


# What holds whatever happens.


@dataclass
class Hole:
    """A place where events are missing."""

    count: int


class Model:
    """What a queue does, said naively: a list of events, and of holes where events were."""

    def __init__(self, make, maxsize):
        self.make, self.maxsize, self.line, self.dropped = make, maxsize, [], 0

    def waiting(self):
        return [item for item in self.line if isinstance(item, Event)]

    def put(self, event):
        same = [other for other in self.waiting() if other.name is not None and other.name == event.name]
        self.line.append(event)
        if self.make is ConflatingQueue and same:
            self.lose(same[0])
        if len(self.waiting()) > self.maxsize:
            self.lose(self.waiting()[-1 if self.make is DroppingQueue else 0])

    def lose(self, event):
        self.dropped += 1
        line = []
        for item in self.line:
            lost = Hole(1) if item is event else item
            if line and isinstance(line[-1], Hole) and isinstance(lost, Hole):
                line[-1] = Hole(line[-1].count + lost.count)
            else:
                line.append(lost)
        self.line = line

    def take(self, with_notices):
        """Take the first item, or the first event if there are no notices."""
        while not with_notices and isinstance(self.line[0], Hole):
            self.line.pop(0)
        return self.line.pop(0)


names = st.sampled_from([None, "a", "b", "c", "d"])
operations = st.lists(names.map(lambda name: ("put", name)) | st.just(("take", None)), max_size=60)
conflation = [("put", name) for name in "xabcyacb"]


@settings(deadline=None)  # a busy machine is no bug
@given(
    make=st.sampled_from(QUEUES),
    maxsize=st.integers(1, 4) | st.just(9),
    notice=st.sampled_from([None, number]),
    operations=operations,
)
@example(make=ConflatingQueue, maxsize=9, notice=number, operations=conflation)
@example(make=DroppingQueue, maxsize=1, notice=number, operations=[("put", None), ("put", None), ("take", None)] * 3)
@example(make=SlidingQueue, maxsize=1, notice=number, operations=[("put", None), ("put", None), ("take", None)] * 3)
async def test_any_puts_and_takes_give_what_a_list_gives_and_account_for_every_event(make, maxsize, notice, operations):
    """In order, bounded, each put event is taken, waiting or dropped, and the notices say so where it is."""
    queue, model = make(maxsize, notice=notice), Model(make, maxsize)
    count_put, taken, missing = 0, [], 0

    def take():
        nonlocal missing
        event, expected = queue.get_nowait(), model.take(notice is not None)
        if isinstance(expected, Hole):
            assert event == number(expected.count)
            missing += expected.count
        else:
            assert event is expected
            taken.append(int(event.data))
            if notice:
                assert taken[-1] == len(taken) - 1 + missing  # each number up to here was taken or told to be missing
        queue.task_done()

    def check():
        waiting = len(model.waiting())
        assert queue.qsize() == (len(model.line) if notice else waiting)
        assert queue.empty() is (queue.qsize() == 0)
        assert queue.full() is False
        assert waiting <= maxsize
        assert queue.qsize() <= 2 * maxsize + 1
        assert queue.dropped == model.dropped
        assert count_put == len(taken) + waiting + queue.dropped
        assert has_joined(queue) is queue.empty()

    for operation, name in operations:
        if operation == "put":
            event = Event(str(count_put), name)
            queue.put_nowait(event)
            model.put(event)
            count_put += 1
        elif not queue.empty():
            take()
        check()
    for _ in range(queue.qsize()):
        take()
        check()
    assert queue.empty()
    assert taken == sorted(taken)
    assert count_put == len(taken) + queue.dropped
    assert missing == (queue.dropped if notice else 0)


def test_a_key_that_is_to_be_awaited_is_refused_where_the_event_is_put():
    """Each coroutine is unlike any other: nothing would ever be conflated."""

    async def key(event):
        return event.name

    queue = ConflatingQueue(3, key=lambda event: key(event))
    with pytest.raises(TypeError, match="key returned <coroutine"):
        queue.put_nowait(Event("x"))
    assert queue.empty()
