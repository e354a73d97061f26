"""Queues that drop events on overflow: which event is dropped, the count, the notices and join()."""

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
from tests.waiting import run_other_tasks, within

QUEUES = [SlidingQueue, DroppingQueue, ConflatingQueue]
all_queues = pytest.mark.parametrize("make", QUEUES)


def put(queue, *texts):
    """Put an event for each text. The part before a colon is its name."""
    for text in texts:
        name, colon, _ = text.partition(":")
        queue.put_nowait(Event(text, name if colon else None))


def texts(queue):
    """Remove all events and return their data. A notice becomes its number."""
    result = []
    while not queue.empty():
        event = queue.get_nowait()
        result.append(event.data if event.comment is None else int(event.comment))
        assert len(result) <= 2 * queue.maxsize + 1, "the queue does not become empty"
    return result


def number(count):
    """Create a notice that ``texts`` understands."""
    return Event(comment=str(count))


# Which event is dropped.


def test_a_sliding_queue_keeps_the_newest_events():
    queue = SlidingQueue(3)
    put(queue, *"abcde")
    assert texts(queue) == ["c", "d", "e"]
    assert queue.dropped == 2


def test_a_dropping_queue_keeps_the_oldest_events():
    queue = DroppingQueue(3)
    put(queue, *"abcde")
    assert texts(queue) == ["a", "b", "c"]
    assert queue.dropped == 2


def test_a_conflating_queue_keeps_the_latest_event_of_each_key_at_the_end():
    queue = ConflatingQueue(3)
    put(queue, "a:1", "b:1", "a:2", "a:3", "c:1")
    assert texts(queue) == ["b:1", "a:3", "c:1"]
    assert queue.dropped == 2


def test_a_conflating_queue_drops_the_oldest_event_when_its_keys_exceed_the_capacity():
    queue = ConflatingQueue(2)
    put(queue, "a:1", "b:1", "a:2", "c:1")
    assert texts(queue) == ["a:2", "c:1"]
    assert queue.dropped == 2


def test_a_full_conflating_queue_has_room_for_another_event_of_one_of_its_keys():
    queue = ConflatingQueue(2)
    put(queue, "a:1", "b:1", "b:2")
    assert texts(queue) == ["a:1", "b:2"]
    assert queue.dropped == 1


def test_events_without_a_name_are_not_conflated():
    queue = ConflatingQueue(3)
    put(queue, "x", "a:1", "x", "a:2", "y")
    assert texts(queue) == ["x", "a:2", "y"]
    assert queue.dropped == 2


def test_the_key_may_be_any_hashable_and_none_means_not_conflated():
    queue = ConflatingQueue(9, key=lambda event: (event.data[0], 1) if event.data[0].isalpha() else None)
    put(queue, "a1", "b1", "7", "a2", "7")
    assert texts(queue) == ["b1", "7", "a2", "7"]


@pytest.mark.parametrize("key", ["", 0, False, ()])
def test_a_falsy_key_is_a_key(key):
    queue = ConflatingQueue(9, key=lambda event: key)
    for _ in range(2):
        put(queue, *"abc")
        assert texts(queue) == ["c"]
    assert queue.dropped == 4


def test_an_event_replaces_nothing_after_its_predecessor_was_removed():
    queue = ConflatingQueue(2)
    put(queue, "a:1")
    assert texts(queue) == ["a:1"]
    put(queue, "b:1", "a:2")
    assert texts(queue) == ["b:1", "a:2"]
    assert queue.dropped == 0


@all_queues
def test_events_keep_their_order(make):
    queue, ids = make(4), []
    for count in range(100):
        queue.put_nowait(Event("", f"name {count % 3}", id=count))
        if count % 7 == 0:
            ids.append(int(queue.get_nowait().id))
    ids += [int(queue.get_nowait().id) for _ in range(queue.qsize())]
    assert ids == sorted(ids)


# A put never waits.


@all_queues
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


@all_queues
@pytest.mark.parametrize("through", ["put", "put_nowait"])
async def test_a_channel_with_a_lossy_queue_always_has_room(make, through):
    channel = EventChannel(lambda: make(2, notice=number))
    for count in range(10):
        accepted = channel.put(str(count)) if through == "put" else channel.put_nowait(str(count))
        assert (await accepted if through == "put" else accepted) is True
    assert (channel.buffered, channel.dropped) == (3, 8)


# Counting and notices.


@all_queues
def test_dropped_events_are_counted_and_reported(make):
    queue = make(2, notice=dropped_event)
    put(queue, *"abcde")
    assert queue.dropped == 3
    notice = [Event('{"dropped":3}', "dropped")]
    kept = [Event(text) for text in ("ab" if make is DroppingQueue else "de")]
    expected = kept + notice if make is DroppingQueue else notice + kept
    assert [queue.get_nowait() for _ in range(queue.qsize())] == expected
    assert queue.empty()


def test_the_notice_of_a_sliding_queue_precedes_the_events_that_are_left():
    queue = SlidingQueue(2, notice=number)
    put(queue, *"abc")
    assert texts(queue) == [1, "b", "c"]
    put(queue, *"de")
    assert texts(queue) == ["d", "e"]


def test_the_notice_counts_events_dropped_until_it_is_removed():
    queue = SlidingQueue(2, notice=number)
    put(queue, *"abc")
    put(queue, *"de")
    assert queue.get_nowait() == number(3)
    put(queue, "f")
    assert texts(queue) == [1, "e", "f"]
    assert queue.dropped == 4


def test_the_notice_of_a_dropping_queue_precedes_the_next_event_that_was_accepted():
    queue = DroppingQueue(2, notice=number)
    put(queue, *"abcd")
    assert queue.get_nowait() == Event("a")
    put(queue, *"efg")
    assert queue.qsize() == 4
    assert texts(queue) == ["b", 2, "e", 2]
    put(queue, "h")
    assert texts(queue) == ["h"]


def test_a_notice_is_returned_even_if_nothing_is_put_after_the_drop():
    queue = DroppingQueue(1, notice=number)
    put(queue, *"ab")
    assert queue.get_nowait() == Event("a")
    assert queue.qsize() == 1
    assert not queue.empty()
    assert queue.get_nowait() == number(1)
    assert queue.empty()
    with pytest.raises(asyncio.QueueEmpty):
        queue.get_nowait()


def test_the_notice_of_a_conflated_event_takes_its_position():
    queue = ConflatingQueue(9, notice=number)
    put(queue, "a:1", "b:1", "c:1", "b:2")
    assert texts(queue) == ["a:1", 1, "c:1", "b:2"]


def test_adjacent_runs_of_dropped_events_have_one_notice():
    queue = ConflatingQueue(9, notice=number)
    put(queue, "x", "a:1", "b:1", "c:1", "y", "a:2", "c:2")
    assert queue.qsize() == 7
    put(queue, "b:2")
    assert queue.qsize() == 6
    assert texts(queue) == ["x", 3, "y", "a:2", "c:2", "b:2"]


@all_queues
def test_notices_use_no_capacity(make):
    queue = make(2, notice=number)
    put(queue, *"abc")
    assert queue.qsize() == 3
    queue.get_nowait()
    put(queue, *"de")
    assert len([text for text in texts(queue) if isinstance(text, str)]) == 2


@all_queues
def test_without_notice_only_events_are_returned(make):
    queue = make(2)
    for _ in range(3):
        put(queue, *"abcde")
        assert queue.qsize() == 2
        assert len(texts(queue)) == 2
    assert queue.dropped == 9


@all_queues
def test_without_overflow_there_is_no_notice(make):
    queue = make(3, notice=number)
    for _ in range(3):
        put(queue, *"abc")
        assert texts(queue) == ["a", "b", "c"]
    assert queue.dropped == 0


# Ready-made notices.


def test_dropped_comment_is_only_a_comment():
    assert dropped_comment(3) == Event(comment="dropped 3 events")
    assert dropped_comment(1) == Event(comment="dropped 1 event")
    assert encode(dropped_comment(3)) == b": dropped 3 events\n:\n"


def test_dropped_event_has_a_name_and_json_data():
    assert dropped_event(3) == Event.json({"dropped": 3}, name="dropped")
    assert encode(dropped_event(3)) == b'event: dropped\ndata: {"dropped":3}\n\n'


def test_ready_made_notices_have_no_id():
    assert dropped_event(3).id is dropped_comment(3).id is None


# Invalid arguments.


@all_queues
@pytest.mark.parametrize("wrong", [0, -1])
def test_a_queue_without_capacity_is_rejected(make, wrong):
    with pytest.raises(ValueError, match=f"maxsize is 1 event or more, not {wrong}: without capacity"):
        make(wrong)


@all_queues
@pytest.mark.parametrize("wrong", [None, "10", 2.5, True, number])
def test_a_maxsize_that_is_not_an_integer_is_rejected(make, wrong):
    with pytest.raises(TypeError, match="maxsize is a number of events, not "):
        make(wrong)


@all_queues
@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (7, "7 raised for count 1"),
        ("dropped", "'dropped' raised for count 1"),
        (Event("dropped"), "raised for count 1"),
        (lambda: Event(), "raised for count 1"),
        (lambda count: Event(name=f"{count}\n"), "raised for count 1"),
        (lambda count: None, "returned None for count 1"),
        (str, "returned '1' for count 1"),
    ],
)
def test_a_notice_that_returns_no_event_is_rejected_by_the_constructor(make, wrong, what):
    with pytest.raises(TypeError, match=f"notice must return an Event, and .*{what}"):
        make(1, notice=wrong)


@all_queues
@pytest.mark.parametrize(
    ("later", "what"), [(lambda: None, "returned None for count 2"), (lambda: {}["missing"], "raised for count 2")]
)
def test_a_notice_that_fails_later_raises_in_get_and_is_not_lost(make, later, what):
    broken = True
    queue = make(1, notice=lambda count: later() if broken and count > 1 else number(count))
    put(queue, *"abc")
    kept = [queue.get_nowait().data] if make is DroppingQueue else []
    for _ in range(2):
        with pytest.raises(TypeError, match=f"notice must return an Event, and .*{what}"):
            queue.get_nowait()
    broken = False
    assert kept + texts(queue) == (["a", 2] if make is DroppingQueue else [2, "c"])


def test_a_key_that_is_not_callable_is_rejected():
    with pytest.raises(TypeError, match="key must be a function of an event, not 'name'"):
        ConflatingQueue(1, key="name")


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        (lambda event: [event.name], TypeError, r"key must return a hashable or None, and .* returned \['a'\]"),
        (lambda event: int(event.name), ValueError, "invalid literal for int"),
    ],
    ids=["unhashable", "raises"],
)
def test_an_invalid_key_raises_in_put_and_leaves_the_queue_unchanged(wrong, error, text):
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


def test_lossy_queue_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        LossyQueue(1)


# Memory.


@all_queues
def test_dropped_and_removed_events_and_their_keys_are_released(make):
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


# Waiting tasks.


@all_queues
async def test_waiting_tasks_receive_events_and_notices(make):
    queue = make(1, notice=number)
    readers = [asyncio.create_task(queue.get()) for _ in range(2)]
    await run_other_tasks()
    put(queue, *"abc")
    received = [await within(reader) for reader in readers]
    assert received == ([Event("a"), number(2)] if make is DroppingQueue else [number(2), Event("c")])


@all_queues
async def test_a_task_that_was_woken_for_a_dropped_event_waits_again(make):
    queue = make(1)
    readers = [asyncio.create_task(queue.get()) for _ in range(2)]
    await run_other_tasks()
    put(queue, *"ab")
    await run_other_tasks()
    assert [reader.done() for reader in readers] == [True, False]
    put(queue, "c")
    assert await within(readers[1]) == Event("c")


@all_queues
async def test_cancelling_a_get_loses_no_event(make):
    queue = make(1, notice=number)
    readers = [asyncio.create_task(queue.get()) for _ in range(3)]
    await run_other_tasks()
    put(queue, *"ab")
    readers[0].cancel()
    assert {(await within(reader)).comment for reader in readers[1:]} == {None, "1"}
    with suppress(asyncio.CancelledError):
        await within(readers[0])


def has_joined(queue):
    """Return whether join() would return immediately."""
    joining = queue.join()
    try:
        joining.send(None)
    except StopIteration:
        return True
    finally:
        joining.close()
    return False


@all_queues
@pytest.mark.parametrize("notice", [None, number])
async def test_join_waits_for_removed_events_and_not_for_dropped_ones(make, notice):
    queue = make(2, notice=notice)
    put(queue, *"abcde")
    joining = asyncio.create_task(queue.join())
    for _ in range(queue.qsize()):
        await run_other_tasks()
        assert not joining.done()
        queue.get_nowait()
        queue.task_done()
    await within(joining)
    with pytest.raises(ValueError, match="called too many times"):
        queue.task_done()


@all_queues
@pytest.mark.parametrize("notice", [None, number])
async def test_join_continues_to_wait_when_the_only_event_is_replaced(make, notice):
    queue = make(1, notice=notice)
    put(queue, "a:1")
    joining = asyncio.create_task(queue.join())
    await run_other_tasks()
    put(queue, "a:2")
    await run_other_tasks()
    assert not joining.done()
    for _ in range(queue.qsize()):
        queue.get_nowait()
        queue.task_done()
    await within(joining)


@pytest.mark.skipif(not hasattr(asyncio.Queue, "shutdown"), reason="asyncio.Queue.shutdown is new in Python 3.13")
@all_queues
async def test_after_shutdown_the_queue_can_be_drained_and_put_raises(make):
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
@all_queues
async def test_an_immediate_shutdown_releases_join(make):
    queue = make(1, notice=number)
    put(queue, *"abc")
    joining = asyncio.create_task(queue.join())
    await run_other_tasks()
    queue.shutdown(immediate=True)
    await within(joining)
    assert queue.empty()


# Comparison with a model.


@dataclass
class Dropped:
    """A run of dropped events."""

    count: int


class Model:
    """A queue as a list of events and runs of dropped events."""

    def __init__(self, make, maxsize):
        self.make, self.maxsize, self.items, self.dropped = make, maxsize, [], 0

    def events(self):
        return [item for item in self.items if isinstance(item, Event)]

    def put(self, event):
        same = [other for other in self.events() if other.name is not None and other.name == event.name]
        self.items.append(event)
        if self.make is ConflatingQueue and same:
            self.drop(same[0])
        if len(self.events()) > self.maxsize:
            self.drop(self.events()[-1 if self.make is DroppingQueue else 0])

    def drop(self, event):
        self.dropped += 1
        items = []
        for item in self.items:
            kept = Dropped(1) if item is event else item
            if items and isinstance(items[-1], Dropped) and isinstance(kept, Dropped):
                items[-1] = Dropped(items[-1].count + kept.count)
            else:
                items.append(kept)
        self.items = items

    def get(self, with_notices):
        """Remove the first item, or the first event if there are no notices."""
        while not with_notices and isinstance(self.items[0], Dropped):
            self.items.pop(0)
        return self.items.pop(0)


names = st.sampled_from([None, "a", "b", "c", "d"])
operations = st.lists(names.map(lambda name: ("put", name)) | st.just(("get", None)), max_size=60)
conflation = [("put", name) for name in "xabcyacb"]


@settings(deadline=None)  # a busy machine is no bug
@given(
    make=st.sampled_from(QUEUES),
    maxsize=st.integers(1, 4) | st.just(9),
    notice=st.sampled_from([None, number]),
    operations=operations,
)
@example(make=ConflatingQueue, maxsize=9, notice=number, operations=conflation)
@example(make=DroppingQueue, maxsize=1, notice=number, operations=[("put", None), ("put", None), ("get", None)] * 3)
@example(make=SlidingQueue, maxsize=1, notice=number, operations=[("put", None), ("put", None), ("get", None)] * 3)
async def test_a_queue_behaves_like_a_list_and_accounts_for_every_event(make, maxsize, notice, operations):
    """The queue is ordered and bounded. Each event is removed, in the queue or dropped, and the notices add up."""
    queue, model = make(maxsize, notice=notice), Model(make, maxsize)
    count_put, removed, reported = 0, [], 0

    def get():
        nonlocal reported
        event, expected = queue.get_nowait(), model.get(notice is not None)
        if isinstance(expected, Dropped):
            assert event == number(expected.count)
            reported += expected.count
        else:
            assert event is expected
            removed.append(int(event.data))
            if notice:
                assert removed[-1] == len(removed) - 1 + reported  # each earlier event was removed or reported
        queue.task_done()

    def check():
        waiting = len(model.events())
        assert queue.qsize() == (len(model.items) if notice else waiting)
        assert queue.empty() is (queue.qsize() == 0)
        assert queue.full() is False
        assert waiting <= maxsize
        assert queue.qsize() <= 2 * maxsize + 1
        assert queue.dropped == model.dropped
        assert count_put == len(removed) + waiting + queue.dropped
        assert has_joined(queue) is queue.empty()

    for operation, name in operations:
        if operation == "put":
            event = Event(str(count_put), name)
            queue.put_nowait(event)
            model.put(event)
            count_put += 1
        elif not queue.empty():
            get()
        check()
    for _ in range(queue.qsize()):
        get()
        check()
    assert queue.empty()
    assert removed == sorted(removed)
    assert count_put == len(removed) + queue.dropped
    assert reported == (queue.dropped if notice else 0)


def test_an_asynchronous_key_raises_in_put():
    """No two coroutines are equal, so that no event would be conflated."""

    async def key(event):
        return event.name

    queue = ConflatingQueue(3, key=lambda event: key(event))
    with pytest.raises(TypeError, match="key returned <coroutine"):
        queue.put_nowait(Event("x"))
    assert queue.empty()
