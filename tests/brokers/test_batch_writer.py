"""Group commit: requests keep their order, are written in batches, one at a time, and each gets its own result."""

from __future__ import annotations

import asyncio
import gc
import traceback

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiohttp_interceptors import _tasks
from aiohttp_interceptors.brokers import base
from aiohttp_interceptors.brokers.base import MAX_BATCH_BYTES, MAX_BATCH_REQUESTS, AppendRequest, BatchWriter
from aiohttp_interceptors.exceptions import BrokerDown, BrokerError, BrokerRefused, OutcomeUnknown
from aiohttp_interceptors.hub.broker import LogPosition
from tests.waiting import TIMEOUT, until, within


class Server:
    """A server that answers while its gate is open. The topic of a request decides the result."""

    def __init__(self, *, is_open=True):
        self.writes = []  # the payloads of each write
        self.cancelled = 0
        self.error = None  # raised by each write that begins from now on
        self.gate = asyncio.Event()
        self._writing = False
        if is_open:
            self.gate.set()

    async def write(self, requests):
        assert not self._writing, "one write at a time"
        self._writing, error = True, self.error
        self.writes.append([request.payload for request in requests])
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self._writing = False
        if error is not None:
            raise error
        return [self.result(request) for request in requests]

    def result(self, request):
        return BrokerRefused(f"no {request.payload!r}") if request.topic == "refused" else position(request.payload)


def position(payload):
    return LogPosition("e", int(payload[:9] or b"0"))


def request(number, topic="a"):
    return AppendRequest(topic, b"%d" % number, None)


def large(number, size=MAX_BATCH_BYTES):
    return AppendRequest("a", b"%09d" % number + b" " * (size - 9), None)


async def results(*appends):
    return await within(asyncio.gather(*appends, return_exceptions=True))


async def started(*appends):
    """Return tasks that have run until they wait."""
    tasks = [asyncio.ensure_future(append) for append in appends]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


@pytest.fixture(autouse=True)
async def nothing_is_left():
    """Check that no task and no unretrieved exception is left."""
    unretrieved = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unretrieved.append(context))
    before = asyncio.all_tasks()
    yield
    await until(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()})
    gc.collect()
    assert unretrieved == []


class TestOrder:
    async def test_a_single_request_is_written_at_once(self):
        server = Server()
        writer = BatchWriter(server.write, TIMEOUT)
        for number in 1, 2, 3:
            assert await within(writer.append(request(number))) == LogPosition("e", number)
        assert server.writes == [[b"1"], [b"2"], [b"3"]]

    async def test_requests_during_a_write_are_written_together_in_their_order(self):
        server = Server(is_open=False)
        writer = BatchWriter(server.write, TIMEOUT)
        tasks = await started(writer.append(request(1)))
        tasks += await started(*[writer.append(request(number)) for number in (2, 3, 4)])
        tasks += await started(writer.append(request(5)))
        assert server.writes == [[b"1"]]
        server.gate.set()
        assert await results(*tasks) == [LogPosition("e", number) for number in range(1, 6)]
        assert server.writes == [[b"1"], [b"2", b"3", b"4", b"5"]]

    async def test_requests_are_written_unchanged(self):
        requests = [AppendRequest("a.b", b"x", "key"), AppendRequest("c", b"", None)]
        written = []

        async def write(requests):
            written.extend(requests)
            return [LogPosition("e", number) for number, _ in enumerate(requests, 1)]

        writer = BatchWriter(write, TIMEOUT)
        assert await results(*map(writer.append, requests)) == [LogPosition("e", 1), LogPosition("e", 2)]
        assert written == requests

    async def test_a_batch_has_a_limited_number_of_requests(self):
        server = Server()
        writer = BatchWriter(server.write, TIMEOUT)
        numbers = range(2 * MAX_BATCH_REQUESTS + 1)
        assert await results(*[writer.append(request(number)) for number in numbers]) == [
            LogPosition("e", n) for n in numbers
        ]
        assert [len(write) for write in server.writes] == [MAX_BATCH_REQUESTS, MAX_BATCH_REQUESTS, 1]
        assert [payload for write in server.writes for payload in write] == [b"%d" % number for number in numbers]

    async def test_a_batch_has_a_limited_number_of_bytes_except_for_a_single_request(self):
        server = Server()
        writer = BatchWriter(server.write, TIMEOUT)
        half = MAX_BATCH_BYTES // 2
        sizes = [half, half, half, half - 1, 9, 9, MAX_BATCH_BYTES, 2 * MAX_BATCH_BYTES, 9]
        await results(*[writer.append(large(number, size)) for number, size in enumerate(sizes)])
        written = [[len(payload) for payload in write] for write in server.writes]
        assert written == [[half, half], [half, half - 1, 9], [9, MAX_BATCH_BYTES], [2 * MAX_BATCH_BYTES], [9]]

    async def test_a_finished_request_is_removed_without_a_search(self):
        """A search among ten thousand requests would take seconds."""
        compared = 0

        class Payload(bytes):
            __slots__ = ()
            __hash__ = bytes.__hash__

            def __eq__(self, other):
                nonlocal compared
                compared += 1
                return bytes.__eq__(self, other)

        server = Server()
        writer = BatchWriter(server.write, TIMEOUT)
        await results(*[writer.append(AppendRequest("a", Payload(b"1"), None)) for _ in range(3 * MAX_BATCH_REQUESTS)])
        assert len(server.writes) == 3
        assert compared == 0


class TestResults:
    async def test_each_request_gets_its_own_position_or_error(self):
        server = Server()
        writer = BatchWriter(server.write, TIMEOUT)
        topics = ["a", "refused", "a", "refused"]
        found = await results(*[writer.append(request(number, topic)) for number, topic in enumerate(topics)])
        assert found[::2] == [LogPosition("e", 0), LogPosition("e", 2)]
        assert [(type(error), str(error)) for error in found[1::2]] == [
            (BrokerRefused, "no b'1'"),
            (BrokerRefused, "no b'3'"),
        ]
        assert len(server.writes) == 1

    @pytest.mark.parametrize("kind", [BrokerDown, BrokerRefused, OutcomeUnknown])
    async def test_each_request_of_a_failed_write_gets_its_own_copy_of_the_error(self, kind):
        server = Server()
        writer = BatchWriter(server.write, TIMEOUT)
        server.error, cause = kind("no, for a reason"), OSError("the reason")
        server.error.__cause__ = cause
        found = await results(*[writer.append(request(number)) for number in range(3)])
        assert [(type(error), error.args, error.__cause__) for error in found] == 3 * [
            (kind, ("no, for a reason",), cause)
        ]
        assert len({id(error) for error in found}) == 3
        assert all("raise error" in "".join(traceback.format_exception(error)) for error in found), "the traceback"
        server.error = None
        assert await within(writer.append(request(3))) == LogPosition("e", 3)

    @pytest.mark.parametrize(
        "defect", [ValueError("a defect"), KeyError("k"), asyncio.CancelledError("closed")], ids=repr
    )
    async def test_any_other_exception_is_outcome_unknown(self, defect):
        """A client that closes its connection may cancel its own requests."""
        server = Server()
        writer = BatchWriter(server.write, TIMEOUT)
        server.error = defect
        found = await results(writer.append(request(1)), writer.append(request(2)))
        for error in found:
            assert type(error) is OutcomeUnknown
            assert str(error) == f"publishing failed: {defect!r}"
            assert error.__cause__ is defect
        server.error = None
        assert await within(writer.append(request(3))) == LogPosition("e", 3)

    async def test_requests_that_waited_during_a_failed_write_are_written(self):
        server = Server(is_open=False)
        writer = BatchWriter(server.write, TIMEOUT)
        server.error = BrokerDown("away")
        (first,) = await started(writer.append(request(1)))
        (second,) = await started(writer.append(request(2)))
        server.error = None
        server.gate.set()
        assert await results(second) == [LogPosition("e", 2)]
        assert type(first.exception()) is BrokerDown


class TestTimeout:
    async def test_a_write_without_an_answer_is_outcome_unknown_and_is_cancelled(self):
        server = Server(is_open=False)
        writer = BatchWriter(server.write, 0.05)
        found = await results(writer.append(request(1, "orders")), writer.append(request(2, "orders")))
        for error in found:
            assert type(error) is OutcomeUnknown
            assert str(error) in {
                "no answer from the broker within 0.05 s for an event under 'orders'",
                "no answer from the broker within 0.05 s",
            }
        await until(lambda: server.cancelled == 1)

    async def test_a_request_that_was_not_sent_is_broker_down_and_is_never_written(self):
        server = Server(is_open=False)
        writer = BatchWriter(server.write, 0.05)
        sent, unsent = await results(writer.append(large(1)), writer.append(request(2, "orders")))
        assert type(sent) is OutcomeUnknown
        assert type(unsent) is BrokerDown
        assert str(unsent) == "no answer from the broker within 0.05 s for an event under 'orders', which was not sent"
        server.gate.set()
        assert await within(writer.append(request(3))) == LogPosition("e", 3)
        assert [write[-1][:9] for write in server.writes] == [b"000000001", b"3"]

    async def test_a_timeout_of_the_client_is_outcome_unknown(self):
        server = Server()
        server.error = TimeoutError("the client's own")
        (error,) = await results(BatchWriter(server.write, TIMEOUT).append(request(1)))
        assert type(error) is OutcomeUnknown

    async def test_after_a_timeout_the_next_request_is_written(self):
        server = Server(is_open=False)
        writer = BatchWriter(server.write, 0.05)
        await results(writer.append(request(1)))
        await until(lambda: server.cancelled == 1)
        server.gate.set()
        assert await within(writer.append(request(2))) == LogPosition("e", 2)


class TestCancelling:
    async def test_a_cancelled_request_that_was_not_sent_is_not_written(self):
        server = Server(is_open=False)
        writer = BatchWriter(server.write, TIMEOUT)
        (first,) = await started(writer.append(request(1)))
        waiting = await started(*[writer.append(request(number)) for number in (2, 3, 4)])
        waiting[1].cancel()
        await until(waiting[1].done)
        server.gate.set()
        assert await results(first, waiting[0], waiting[2]) == [LogPosition("e", number) for number in (1, 2, 4)]
        assert waiting[1].cancelled()
        assert server.writes == [[b"1"], [b"2", b"4"]]

    @pytest.mark.parametrize("number", [0, 1])
    async def test_cancelling_a_request_that_was_sent_does_not_cancel_the_write(self, number):
        server = Server(is_open=False)
        writer = BatchWriter(server.write, TIMEOUT)
        tasks = await started(writer.append(request(0)), writer.append(request(1)))
        tasks[number].cancel()
        await until(tasks[number].done)
        assert server.cancelled == 0
        server.gate.set()
        assert await results(tasks[1 - number]) == [LogPosition("e", 1 - number)]
        assert tasks[number].cancelled()
        assert server.writes == [[b"0", b"1"]]

    @pytest.mark.parametrize("topic", ["a", "refused"])
    async def test_cancelling_a_request_that_has_its_result_leaves_no_unretrieved_exception(self, topic):
        server = Server(is_open=False)
        writer = BatchWriter(server.write, TIMEOUT)
        (task,) = await started(writer.append(request(1, topic)))
        server.gate.set()
        await asyncio.sleep(0)  # the write has answered, and the publisher has not run since
        task.cancel()
        await until(task.done)
        assert task.cancelled()
        await until(lambda: len(asyncio.all_tasks()) == 1)

    async def test_all_requests_of_a_write_may_be_cancelled(self):
        server = Server(is_open=False)
        writer = BatchWriter(server.write, TIMEOUT)
        tasks = await started(*[writer.append(request(number)) for number in range(3)])
        tasks += await started(*[writer.append(request(number)) for number in range(3, 6)])
        for task in tasks:
            task.cancel()
        await until(lambda: all(task.done() for task in tasks))
        server.gate.set()
        assert await within(writer.append(request(6))) == LogPosition("e", 6)
        assert server.writes == [[b"0", b"1", b"2"], [b"6"]]


class TestClose:
    async def test_close_finishes_the_requests_in_progress_and_refuses_others(self):
        server = Server(is_open=False)
        writer = BatchWriter(server.write, TIMEOUT)
        tasks = await started(writer.append(request(1)))
        tasks += await started(writer.append(request(2)))
        closing = await started(writer.close(), writer.close())
        with pytest.raises(BrokerDown, match="'orders' was published after the broker was closed"):
            await writer.append(request(3, "orders"))
        assert not any(task.done() for task in closing)
        server.gate.set()
        await within(asyncio.gather(*closing))
        assert await results(*tasks) == [LogPosition("e", 1), LogPosition("e", 2)]
        assert server.writes == [[b"1"], [b"2"]]

    async def test_close_takes_no_longer_than_the_timeout(self):
        server = Server(is_open=False)
        writer = BatchWriter(server.write, 0.05)
        (task,) = await started(writer.append(request(1)))
        await within(writer.close())
        assert type((await results(task))[0]) is OutcomeUnknown
        assert server.cancelled == 1

    async def test_cancelling_close_does_not_cancel_a_write(self):
        server = Server(is_open=False)
        writer = BatchWriter(server.write, TIMEOUT)
        (task,) = await started(writer.append(request(1)))
        (closing,) = await started(writer.close())
        closing.cancel()
        await until(closing.done)
        server.gate.set()
        assert await results(task) == [LogPosition("e", 1)]

    async def test_close_without_requests_is_idempotent(self):
        server = Server()
        writer = BatchWriter(server.write, TIMEOUT)
        await writer.close()
        await writer.close()
        used = BatchWriter(server.write, TIMEOUT)
        await used.append(request(1))
        await used.close()
        with pytest.raises(BrokerDown):
            await used.append(request(2))
        assert server.writes == [[b"1"]]


def test_when_the_event_loop_is_closed_requests_are_cancelled():
    server = None

    async def leave():
        nonlocal server
        server = Server(is_open=False)
        unretrieved = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: unretrieved.append(context))
        return await started(BatchWriter(server.write, TIMEOUT).append(request(1))), unretrieved

    tasks, unretrieved = asyncio.run(leave())
    assert [task.cancelled() for task in tasks] == [True]
    assert server.cancelled == 1
    gc.collect()
    assert unretrieved == []


async def test_cancelling_all_tasks_ends_the_write():
    server = Server(is_open=False)
    writer = BatchWriter(server.write, 0.05)
    before = asyncio.all_tasks()
    tasks = await started(writer.append(large(1)), writer.append(request(2)))
    (writing,) = asyncio.all_tasks() - before - {*tasks}
    writing.cancel()
    await until(writing.done)
    assert writing.cancelled()
    assert [type(error) for error in await results(*tasks)] == [OutcomeUnknown, BrokerDown]
    assert len(server.writes) == 1


actions = st.lists(
    st.sampled_from(["append", "append", "append", "refused", "cancel", "step", "steps", "fail", "gate"]), max_size=40
)


@settings(deadline=None, max_examples=200)
@given(actions)
def test_any_sequence_of_actions_gives_each_request_the_right_result_in_order(actions):
    async def run():
        server = Server(is_open=False)
        writer = BatchWriter(server.write, TIMEOUT)
        tasks = []
        for number, action in enumerate(actions):
            if action in ("append", "refused"):
                tasks.append((number, action, asyncio.ensure_future(writer.append(request(number, action)))))
            elif action == "cancel" and tasks:
                tasks[number % len(tasks)][2].cancel()
            elif action == "fail":
                server.error = None if server.error else BrokerDown("away")
            elif action == "gate":
                (server.gate.clear if server.gate.is_set() else server.gate.set)()
            for _ in range({"step": 1, "steps": 4}.get(action, 0)):
                await asyncio.sleep(0)
        server.gate.set()
        await results(*[task for *_, task in tasks])
        await within(writer.close())
        written = [int(payload) for write in server.writes for payload in write]
        assert written == sorted(set(written))
        assert {number for number, _, task in tasks if not task.cancelled()} <= set(written)
        for number, action, task in tasks:
            if not task.cancelled():
                error = task.exception()
                assert isinstance(error, BrokerError) or (
                    action == "append" and task.result() == LogPosition("e", number)
                )
                assert type(error) in (BrokerDown, BrokerRefused if action == "refused" else type(None))
        await until(lambda: len(asyncio.all_tasks()) == 1)

    asyncio.run(run())


class Swallowing(Server):
    """A server whose client swallows the first cancellation of each write."""

    async def write(self, requests):
        if not self.gate.is_set():
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
        return await super().write(requests)


async def test_a_write_that_swallows_its_cancellation_is_cancelled_again(monkeypatch):
    monkeypatch.setattr(base, "WRITE_CLEANUP", 0.05)
    server = Swallowing(is_open=False)
    writer = BatchWriter(server.write, 0.05)
    with pytest.raises(OutcomeUnknown):
        await within(writer.append(request(1)))
    await until(lambda: server.cancelled == 2)
    server.gate.set()
    assert await within(writer.append(request(2))) == position(b"2")
    await within(writer.close())


async def test_closing_with_a_write_that_swallows_its_cancellation_takes_a_bounded_time(monkeypatch):
    monkeypatch.setattr(_tasks, "CANCEL_TIMEOUT", 60.0)
    monkeypatch.setattr(base, "WRITE_CLEANUP", 0.05)
    server = Swallowing(is_open=False)
    writer = BatchWriter(server.write, 0.05)
    tasks = [asyncio.create_task(writer.append(request(number))) for number in range(3)]
    await until(lambda: writer._task is not None)
    await within(writer.close())
    done = await within(asyncio.gather(*tasks, return_exceptions=True))
    assert all(isinstance(error, BrokerError) for error in done)
    assert asyncio.all_tasks() == {asyncio.current_task()}
