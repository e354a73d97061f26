"""Publishes of one process on their way to a broker: in order, together, one write at a time, and each with its end."""

from __future__ import annotations

import asyncio
import gc
import traceback

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiohttp_interceptors import _tasks as ending
from aiohttp_interceptors.brokers import base as module
from aiohttp_interceptors.brokers.base import MOST, MOST_BYTES, Draft, Writer
from aiohttp_interceptors.exceptions import BrokerDown, BrokerError, BrokerRefused, OutcomeUnknown
from aiohttp_interceptors.hub.broker import LogPosition
from tests.waiting import PATIENCE, until, within


class Server:
    """What is written to: it answers when its gate is open, with what a draft's topic asks for."""

    def __init__(self, *, is_open=True):
        self.writes = []  # the payloads of each
        self.cancelled = 0
        self.error = None  # of the writes that begin
        self.gate = asyncio.Event()
        self._writing = False
        if is_open:
            self.gate.set()

    async def write(self, drafts):
        assert not self._writing, "one write at a time"
        self._writing, error = True, self.error
        self.writes.append([draft.payload for draft in drafts])
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self._writing = False
        if error is not None:
            raise error
        return [self.outcome(draft) for draft in drafts]

    def outcome(self, draft):
        return BrokerRefused(f"no {draft.payload!r}") if draft.topic == "refused" else position(draft.payload)


def position(payload):
    return LogPosition("e", int(payload[:9] or b"0"))


def draft(number, topic="a"):
    return Draft(topic, b"%d" % number, None)


def large(number, size=MOST_BYTES):
    return Draft("a", b"%09d" % number + b" " * (size - 9), None)


async def outcomes(*puts):
    return await within(asyncio.gather(*puts, return_exceptions=True))


async def began(*puts):
    """Return tasks that have come as far as they can by themselves."""
    tasks = [asyncio.ensure_future(put) for put in puts]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


@pytest.fixture(autouse=True)
async def nothing_is_left():
    """No task, and no exception that nobody has seen."""
    unseen = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unseen.append(context))
    before = asyncio.all_tasks()
    yield
    await until(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()})
    gc.collect()
    assert unseen == []


class TestOrder:
    async def test_one_that_is_alone_goes_at_once(self):
        server = Server()
        writer = Writer(server.write, PATIENCE)
        for number in 1, 2, 3:
            assert await within(writer.put(draft(number))) == LogPosition("e", number)
        assert server.writes == [[b"1"], [b"2"], [b"3"]]

    async def test_those_that_wait_while_a_write_runs_go_together_in_their_order(self):
        server = Server(is_open=False)
        writer = Writer(server.write, PATIENCE)
        puts = await began(writer.put(draft(1)))
        puts += await began(*[writer.put(draft(number)) for number in (2, 3, 4)])
        puts += await began(writer.put(draft(5)))
        assert server.writes == [[b"1"]]
        server.gate.set()
        assert await outcomes(*puts) == [LogPosition("e", number) for number in range(1, 6)]
        assert server.writes == [[b"1"], [b"2", b"3", b"4", b"5"]]

    async def test_a_draft_comes_as_it_was_put(self):
        drafts = [Draft("a.b", b"x", "key"), Draft("c", b"", None)]
        written = []

        async def write(drafts):
            written.extend(drafts)
            return [LogPosition("e", number) for number, _ in enumerate(drafts, 1)]

        writer = Writer(write, PATIENCE)
        assert await outcomes(*map(writer.put, drafts)) == [LogPosition("e", 1), LogPosition("e", 2)]
        assert written == drafts

    async def test_not_too_many_go_together(self):
        server = Server()
        writer = Writer(server.write, PATIENCE)
        numbers = range(2 * MOST + 1)
        assert await outcomes(*[writer.put(draft(number)) for number in numbers]) == [
            LogPosition("e", n) for n in numbers
        ]
        assert [len(write) for write in server.writes] == [MOST, MOST, 1]
        assert [payload for write in server.writes for payload in write] == [b"%d" % number for number in numbers]

    async def test_not_too_many_bytes_go_together_but_a_large_one_goes(self):
        server = Server()
        writer = Writer(server.write, PATIENCE)
        half = MOST_BYTES // 2
        sizes = [half, half, half, half - 1, 9, 9, MOST_BYTES, 2 * MOST_BYTES, 9]
        await outcomes(*[writer.put(large(number, size)) for number, size in enumerate(sizes)])
        written = [[len(payload) for payload in write] for write in server.writes]
        assert written == [[half, half], [half, half - 1, 9], [9, MOST_BYTES], [2 * MOST_BYTES], [9]]

    async def test_nobody_is_looked_for_among_those_that_wait_when_he_has_his_answer(self):
        """That would cost seconds for ten thousand."""
        compared = 0

        class Payload(bytes):
            __slots__ = ()
            __hash__ = bytes.__hash__

            def __eq__(self, other):
                nonlocal compared
                compared += 1
                return bytes.__eq__(self, other)

        server = Server()
        writer = Writer(server.write, PATIENCE)
        await outcomes(*[writer.put(Draft("a", Payload(b"1"), None)) for _ in range(3 * MOST)])
        assert len(server.writes) == 3
        assert compared == 0


class TestOutcomes:
    async def test_each_has_its_own_of_either_kind(self):
        server = Server()
        writer = Writer(server.write, PATIENCE)
        topics = ["a", "refused", "a", "refused"]
        found = await outcomes(*[writer.put(draft(number, topic)) for number, topic in enumerate(topics)])
        assert found[::2] == [LogPosition("e", 0), LogPosition("e", 2)]
        assert [(type(error), str(error)) for error in found[1::2]] == [
            (BrokerRefused, "no b'1'"),
            (BrokerRefused, "no b'3'"),
        ]
        assert len(server.writes) == 1

    @pytest.mark.parametrize("kind", [BrokerDown, BrokerRefused, OutcomeUnknown])
    async def test_what_a_write_raises_all_its_drafts_get_each_one_of_its_own_and_the_next_goes(self, kind):
        server = Server()
        writer = Writer(server.write, PATIENCE)
        server.error, cause = kind("no, for a reason"), OSError("the reason")
        server.error.__cause__ = cause
        found = await outcomes(*[writer.put(draft(number)) for number in range(3)])
        assert [(type(error), error.args, error.__cause__) for error in found] == 3 * [
            (kind, ("no, for a reason",), cause)
        ]
        assert len({id(error) for error in found}) == 3
        assert all("raise error" in "".join(traceback.format_exception(error)) for error in found), "it shows where"
        server.error = None
        assert await within(writer.put(draft(3))) == LogPosition("e", 3)

    @pytest.mark.parametrize(
        "defect", [ValueError("a defect"), KeyError("k"), asyncio.CancelledError("closed")], ids=repr
    )
    async def test_after_anything_else_nobody_knows_and_the_next_goes(self, defect):
        """A client that closes its connection may cancel what it was asked for."""
        server = Server()
        writer = Writer(server.write, PATIENCE)
        server.error = defect
        found = await outcomes(writer.put(draft(1)), writer.put(draft(2)))
        for error in found:
            assert type(error) is OutcomeUnknown
            assert str(error) == f"publishing failed: {defect!r}"
            assert error.__cause__ is defect
        server.error = None
        assert await within(writer.put(draft(3))) == LogPosition("e", 3)

    async def test_those_that_waited_while_a_write_failed_are_written(self):
        server = Server(is_open=False)
        writer = Writer(server.write, PATIENCE)
        server.error = BrokerDown("away")
        (first,) = await began(writer.put(draft(1)))
        (second,) = await began(writer.put(draft(2)))
        server.error = None
        server.gate.set()
        assert await outcomes(second) == [LogPosition("e", 2)]
        assert type(first.exception()) is BrokerDown


class TestTime:
    async def test_what_was_sent_and_not_answered_is_unknown_and_its_write_is_cancelled(self):
        server = Server(is_open=False)
        writer = Writer(server.write, 0.05)
        found = await outcomes(writer.put(draft(1, "orders")), writer.put(draft(2, "orders")))
        for error in found:
            assert type(error) is OutcomeUnknown
            assert str(error) in {
                "no answer of the broker for 0.05 s about an event under 'orders'",
                "no answer of the broker for 0.05 s",
            }
        await until(lambda: server.cancelled == 1)

    async def test_what_was_not_sent_was_surely_not_stored_and_never_will_be(self):
        server = Server(is_open=False)
        writer = Writer(server.write, 0.05)
        sent, unsent = await outcomes(writer.put(large(1)), writer.put(draft(2, "orders")))
        assert type(sent) is OutcomeUnknown
        assert type(unsent) is BrokerDown
        assert str(unsent) == "no answer of the broker for 0.05 s about an event under 'orders', which was not sent"
        server.gate.set()
        assert await within(writer.put(draft(3))) == LogPosition("e", 3)
        assert [write[-1][:9] for write in server.writes] == [b"000000001", b"3"]

    async def test_a_client_that_gives_up_by_itself_leaves_it_unknown(self):
        server = Server()
        server.error = TimeoutError("the client's own")
        (error,) = await outcomes(Writer(server.write, PATIENCE).put(draft(1)))
        assert type(error) is OutcomeUnknown

    async def test_after_a_server_that_was_silent_the_next_is_written(self):
        server = Server(is_open=False)
        writer = Writer(server.write, 0.05)
        await outcomes(writer.put(draft(1)))
        await until(lambda: server.cancelled == 1)
        server.gate.set()
        assert await within(writer.put(draft(2))) == LogPosition("e", 2)


class TestCancelling:
    async def test_what_was_not_sent_is_not_and_the_others_are(self):
        server = Server(is_open=False)
        writer = Writer(server.write, PATIENCE)
        (first,) = await began(writer.put(draft(1)))
        waiting = await began(*[writer.put(draft(number)) for number in (2, 3, 4)])
        waiting[1].cancel()
        await until(waiting[1].done)
        server.gate.set()
        assert await outcomes(first, waiting[0], waiting[2]) == [LogPosition("e", number) for number in (1, 2, 4)]
        assert waiting[1].cancelled()
        assert server.writes == [[b"1"], [b"2", b"4"]]

    @pytest.mark.parametrize("number", [0, 1])
    async def test_what_was_sent_is_written_to_its_end_with_the_others(self, number):
        server = Server(is_open=False)
        writer = Writer(server.write, PATIENCE)
        puts = await began(writer.put(draft(0)), writer.put(draft(1)))
        puts[number].cancel()
        await until(puts[number].done)
        assert server.cancelled == 0
        server.gate.set()
        assert await outcomes(puts[1 - number]) == [LogPosition("e", 1 - number)]
        assert puts[number].cancelled()
        assert server.writes == [[b"0", b"1"]]

    @pytest.mark.parametrize("topic", ["a", "refused"])
    async def test_when_it_has_its_outcome_already_nobody_misses_that(self, topic):
        server = Server(is_open=False)
        writer = Writer(server.write, PATIENCE)
        (put,) = await began(writer.put(draft(1, topic)))
        server.gate.set()
        await asyncio.sleep(0)  # the write goes on, and answers; its publisher has not heard of it
        put.cancel()
        await until(put.done)
        assert put.cancelled()
        await until(lambda: len(asyncio.all_tasks()) == 1)

    async def test_all_may_be_cancelled(self):
        server = Server(is_open=False)
        writer = Writer(server.write, PATIENCE)
        puts = await began(*[writer.put(draft(number)) for number in range(3)])
        puts += await began(*[writer.put(draft(number)) for number in range(3, 6)])
        for put in puts:
            put.cancel()
        await until(lambda: all(put.done() for put in puts))
        server.gate.set()
        assert await within(writer.put(draft(6))) == LogPosition("e", 6)
        assert server.writes == [[b"0", b"1", b"2"], [b"6"]]


class TestClose:
    async def test_what_is_on_its_way_goes_and_then_nothing_more(self):
        server = Server(is_open=False)
        writer = Writer(server.write, PATIENCE)
        puts = await began(writer.put(draft(1)))
        puts += await began(writer.put(draft(2)))
        closing = await began(writer.close(), writer.close())
        with pytest.raises(BrokerDown, match=r"'orders' was published after this broker was closed"):
            await writer.put(draft(3, "orders"))
        assert not any(task.done() for task in closing)
        server.gate.set()
        await within(asyncio.gather(*closing))
        assert await outcomes(*puts) == [LogPosition("e", 1), LogPosition("e", 2)]
        assert server.writes == [[b"1"], [b"2"]]

    async def test_it_takes_no_longer_than_a_silent_server_may(self):
        server = Server(is_open=False)
        writer = Writer(server.write, 0.05)
        (put,) = await began(writer.put(draft(1)))
        await within(writer.close())
        assert type((await outcomes(put))[0]) is OutcomeUnknown
        assert server.cancelled == 1

    async def test_to_cancel_it_cuts_no_write(self):
        server = Server(is_open=False)
        writer = Writer(server.write, PATIENCE)
        (put,) = await began(writer.put(draft(1)))
        (closing,) = await began(writer.close())
        closing.cancel()
        await until(closing.done)
        server.gate.set()
        assert await outcomes(put) == [LogPosition("e", 1)]

    async def test_there_may_be_nothing_to_wait_for(self):
        server = Server()
        writer = Writer(server.write, PATIENCE)
        await writer.close()
        await writer.close()
        used = Writer(server.write, PATIENCE)
        await used.put(draft(1))
        await used.close()
        with pytest.raises(BrokerDown):
            await used.put(draft(2))
        assert server.writes == [[b"1"]]


def test_an_event_loop_that_ends_takes_its_publishes_with_it():
    server = None

    async def leave():
        nonlocal server
        server = Server(is_open=False)
        unseen = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: unseen.append(context))
        return await began(Writer(server.write, PATIENCE).put(draft(1))), unseen

    puts, unseen = asyncio.run(leave())
    assert [put.cancelled() for put in puts] == [True]
    assert server.cancelled == 1
    gc.collect()
    assert unseen == []


async def test_who_cancels_all_tasks_ends_it():
    server = Server(is_open=False)
    writer = Writer(server.write, 0.05)
    before = asyncio.all_tasks()
    puts = await began(writer.put(large(1)), writer.put(draft(2)))
    (task,) = asyncio.all_tasks() - before - {*puts}
    task.cancel()
    await until(task.done)
    assert task.cancelled()
    assert [type(error) for error in await outcomes(*puts)] == [OutcomeUnknown, BrokerDown]
    assert len(server.writes) == 1


actions = st.lists(
    st.sampled_from(["put", "put", "put", "refused", "cancel", "turn", "turns", "fail", "gate"]), max_size=40
)


@settings(deadline=None, max_examples=200)
@given(actions)
def test_whatever_happens_each_has_the_right_end_and_all_that_was_written_is_in_order(story):
    async def run():
        server = Server(is_open=False)
        writer = Writer(server.write, PATIENCE)
        puts = []
        for number, action in enumerate(story):
            if action in ("put", "refused"):
                puts.append((number, action, asyncio.ensure_future(writer.put(draft(number, action)))))
            elif action == "cancel" and puts:
                puts[number % len(puts)][2].cancel()
            elif action == "fail":
                server.error = None if server.error else BrokerDown("away")
            elif action == "gate":
                (server.gate.clear if server.gate.is_set() else server.gate.set)()
            for _ in range({"turn": 1, "turns": 4}.get(action, 0)):
                await asyncio.sleep(0)
        server.gate.set()
        await outcomes(*[put for *_, put in puts])
        await within(writer.close())
        written = [int(payload) for write in server.writes for payload in write]
        assert written == sorted(set(written))
        assert {number for number, _, put in puts if not put.cancelled()} <= set(written)
        for number, action, put in puts:
            if not put.cancelled():
                error = put.exception()
                assert isinstance(error, BrokerError) or (action == "put" and put.result() == LogPosition("e", number))
                assert type(error) in (BrokerDown, BrokerRefused if action == "refused" else type(None))
        await until(lambda: len(asyncio.all_tasks()) == 1)

    asyncio.run(run())


class Swallowing(Server):
    """A server whose client swallows the first cancellation of each write, and waits on."""

    async def write(self, drafts):
        if not self.gate.is_set():
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
        return await super().write(drafts)


async def test_a_write_that_swallows_the_end_of_its_time_does_not_hold_up_the_next_for_ever(monkeypatch):
    monkeypatch.setattr(module, "ENDING", 0.05)
    server = Swallowing(is_open=False)
    writer = Writer(server.write, 0.05)
    with pytest.raises(OutcomeUnknown):
        await within(writer.put(draft(1)))
    await until(lambda: server.cancelled == 2)
    server.gate.set()
    assert await within(writer.put(draft(2))) == position(b"2")
    await within(writer.close())


async def test_closing_waits_as_long_as_what_was_put_can_wait_and_no_longer(monkeypatch):
    monkeypatch.setattr(ending, "AGAIN", 60.0)
    monkeypatch.setattr(module, "ENDING", 0.05)
    server = Swallowing(is_open=False)
    writer = Writer(server.write, 0.05)
    putting = [asyncio.create_task(writer.put(draft(number))) for number in range(3)]
    await until(lambda: writer._task is not None)
    await within(writer.close())
    done = await within(asyncio.gather(*putting, return_exceptions=True))
    assert all(isinstance(error, BrokerError) for error in done)
    assert asyncio.all_tasks() == {asyncio.current_task()}
