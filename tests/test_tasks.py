"""Tasks that are cancelled and awaited, those that swallow a cancellation included."""

from __future__ import annotations

import asyncio

import pytest

from aiohttp_interceptors import _tasks as module
from aiohttp_interceptors._tasks import cancel_and_wait, cancellable, check_cancelled, run_with_timeout
from tests.waiting import within


@pytest.fixture(autouse=True)
def long_timeout(monkeypatch):
    """Do not time out on a busy machine."""
    monkeypatch.setattr(module, "CANCEL_TIMEOUT", 60.0)


class Stubborn:
    """Swallows a number of cancellations."""

    def __init__(self, times):
        self.swallows = times
        self.running = asyncio.Event()
        self.released = asyncio.Event()

    async def run(self):
        self.running.set()
        while True:
            try:
                await self.released.wait()
                return "done"
            except asyncio.CancelledError:
                if not self.swallows:
                    raise
                self.swallows -= 1


async def started(stubborn):
    task = asyncio.create_task(stubborn.run())
    await within(stubborn.running.wait())
    return task


class TestCancelAndWait:
    async def test_a_task_is_cancelled(self, logged):
        task = await started(Stubborn(0))
        assert await within(cancel_and_wait(task, 60.0, "it"))
        assert task.cancelled()
        assert logged == []

    async def test_a_task_that_swallows_a_cancellation_is_cancelled_again(self, logged):
        task = await started(Stubborn(1))
        assert await within(cancel_and_wait(task, 0.02, "it"))
        assert task.cancelled()
        assert logged == []

    async def test_a_task_that_swallows_both_is_logged_and_left_running(self, logged, monkeypatch):
        monkeypatch.setattr(module, "CANCEL_TIMEOUT", 0.05)
        stubborn = Stubborn(2)
        task = await started(stubborn)
        assert not await within(cancel_and_wait(task, 0.02, "the tail"))
        (line,) = logged
        assert (line["event"], line["what"]) == ("did_not_end", "the tail")
        stubborn.released.set()
        assert await within(task) == "done"

    async def test_an_exception_of_the_task_is_logged(self, logged):
        async def fail():
            try:
                await asyncio.Event().wait()
            finally:
                raise ZeroDivisionError("in its cleanup")

        task = asyncio.create_task(fail())
        await asyncio.sleep(0)
        assert await within(cancel_and_wait(task, 60.0, "it"))
        (line,) = logged
        assert (line["event"], line["what"], str(line["exc_info"])) == ("ended_by_an_error", "it", "in its cleanup")

    async def test_a_task_that_has_ended_keeps_its_result(self, logged):
        task = asyncio.create_task(asyncio.sleep(0, "result"))
        assert await task == "result"
        assert await cancel_and_wait(task, 60.0, "it")
        assert task.result() == "result"

    async def test_waiting_can_be_cancelled(self):
        stubborn = Stubborn(1)
        task = await started(stubborn)
        ending = asyncio.create_task(cancel_and_wait(task, 60.0, "it"))
        while stubborn.swallows:
            await asyncio.sleep(0)
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(ending)
        assert not task.done()
        task.cancel()
        await asyncio.wait([task])


class TestRunWithTimeout:
    async def test_the_result_is_returned(self):
        assert await within(run_with_timeout(asyncio.sleep(0, "result"), 60.0, "it")) == "result"

    async def test_an_exception_is_raised(self):
        async def fail():
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await within(run_with_timeout(fail(), 60.0, "it"))

    async def test_a_coroutine_that_takes_too_long_is_cancelled_and_logged(self, logged):
        stubborn = Stubborn(0)
        assert await within(run_with_timeout(stubborn.run(), 0.02, "the broker")) is None
        assert [(line["event"], line["what"]) for line in logged] == [("took_too_long", "the broker")]

    async def test_cancelling_cancels_the_coroutine(self):
        stubborn = Stubborn(0)
        finishing = asyncio.create_task(run_with_timeout(stubborn.run(), 60.0, "it"))
        await within(stubborn.running.wait())
        finishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(finishing)
        assert len(asyncio.all_tasks()) == 1


class TestSwallowedCancellation:
    """A cancellation that the awaited code swallowed."""

    @staticmethod
    async def swallow(calls):
        """Swallow a cancellation, as ``asyncio.wait_for`` of Python 3.11 does."""
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            calls.append("swallowed")
        return "connection"

    @pytest.mark.parametrize("undone", [False, True])
    async def test_cancelled_error_is_raised_afterwards_and_the_result_released(self, undone):
        calls = []

        async def undo(result):
            calls.append(f"{result} closed")

        async def run():
            await cancellable(self.swallow(calls), undo if undone else None)
            calls.append("continued")

        task = asyncio.create_task(run())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(task)
        assert calls == ["swallowed", "connection closed"][: 1 + undone]

    async def test_check_cancelled_raises_in_a_loop(self):
        async def run():
            while True:
                check_cancelled()
                await self.swallow([])

        task = asyncio.create_task(run())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(task)

    async def test_without_a_cancellation_nothing_is_raised(self):
        check_cancelled()
        assert await cancellable(asyncio.sleep(0, "result")) == "result"
