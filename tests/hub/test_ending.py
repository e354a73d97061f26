"""A task that is to end does, or is named: also one that swallows its cancellation."""

from __future__ import annotations

import asyncio

import pytest

from aiohttp_interceptors import _tasks as module
from aiohttp_interceptors._tasks import check_cancelled, end, finish, heeding
from tests.waiting import within


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """On a busy machine, too, what ends does so in time."""
    monkeypatch.setattr(module, "AGAIN", 60.0)


class Stubborn:
    """Something that swallows so many cancellations."""

    def __init__(self, times):
        self.left = times
        self.running = asyncio.Event()
        self.let_go = asyncio.Event()

    async def run(self):
        self.running.set()
        while True:
            try:
                await self.let_go.wait()
                return "done"
            except asyncio.CancelledError:
                if not self.left:
                    raise
                self.left -= 1


async def started(stubborn):
    task = asyncio.create_task(stubborn.run())
    await within(stubborn.running.wait())
    return task


class TestEnd:
    async def test_a_task_that_heeds_ends_at_once(self, logged):
        task = await started(Stubborn(0))
        assert await within(end(task, 60.0, "it"))
        assert task.cancelled()
        assert logged == []

    async def test_a_task_that_swallows_a_cancellation_gets_another(self, logged):
        task = await started(Stubborn(1))
        assert await within(end(task, 0.02, "it"))
        assert task.cancelled()
        assert logged == []

    async def test_a_task_that_heeds_none_is_named_and_left(self, logged, monkeypatch):
        monkeypatch.setattr(module, "AGAIN", 0.05)
        stubborn = Stubborn(2)
        task = await started(stubborn)
        assert not await within(end(task, 0.02, "the tail"))
        (line,) = logged
        assert (line["event"], line["what"]) == ("did_not_end", "the tail")
        stubborn.let_go.set()
        assert await within(task) == "done"

    async def test_what_it_raises_is_logged_also_later(self, logged):
        async def fail():
            try:
                await asyncio.Event().wait()
            finally:
                raise ZeroDivisionError("in its cleanup")

        task = asyncio.create_task(fail())
        await asyncio.sleep(0)
        assert await within(end(task, 60.0, "it"))
        (line,) = logged
        assert (line["event"], line["what"], str(line["exc_info"])) == ("ended_by_an_error", "it", "in its cleanup")

    async def test_a_task_that_has_ended_is_left_as_it_is(self, logged):
        task = asyncio.create_task(asyncio.sleep(0, "result"))
        assert await task == "result"
        assert await end(task, 60.0, "it")
        assert task.result() == "result"

    async def test_who_ends_a_task_can_be_cancelled(self):
        stubborn = Stubborn(1)
        task = await started(stubborn)
        ending = asyncio.create_task(end(task, 60.0, "it"))
        while stubborn.left:
            await asyncio.sleep(0)
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(ending)
        assert not task.done()
        task.cancel()
        await asyncio.wait([task])


class TestFinish:
    async def test_what_ends_in_time_is_returned(self):
        assert await within(finish(asyncio.sleep(0, "result"), 60.0, "it")) == "result"

    async def test_what_it_raises_is_raised(self):
        async def fail():
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await within(finish(fail(), 60.0, "it"))

    async def test_what_takes_too_long_is_cancelled_and_named(self, logged):
        stubborn = Stubborn(0)
        assert await within(finish(stubborn.run(), 0.02, "the broker")) is None
        assert [(line["event"], line["what"]) for line in logged] == [("took_too_long", "the broker")]

    async def test_cancelling_it_cancels_what_it_runs(self):
        stubborn = Stubborn(0)
        finishing = asyncio.create_task(finish(stubborn.run(), 60.0, "it"))
        await within(stubborn.running.wait())
        finishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(finishing)
        assert len(asyncio.all_tasks()) == 1


class TestSwallowed:
    """What a task was told that something in it did not hear."""

    @staticmethod
    async def swallow(turns):
        """Return all the same, as ``asyncio.wait_for`` of Python 3.11 does."""
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            turns.append("swallowed")
        return "connection"

    @pytest.mark.parametrize("undone", [False, True])
    async def test_it_is_raised_after_what_swallowed_it_and_what_came_is_given_back(self, undone):
        turns = []

        async def undo(came):
            turns.append(f"{came} closed")

        async def run():
            await heeding(self.swallow(turns), undo if undone else None)
            turns.append("went on")

        task = asyncio.create_task(run())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(task)
        assert turns == ["swallowed", "connection closed"][: 1 + undone]

    async def test_a_loop_can_ask(self):
        async def run():
            while True:
                check_cancelled()
                await self.swallow([])

        task = asyncio.create_task(run())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(task)

    async def test_without_one_everything_goes_on(self):
        check_cancelled()
        assert await heeding(asyncio.sleep(0, "result")) == "result"
