"""A stage that works on a copy of its context and returns it: as if it had worked on the context itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest

from aiohttp_interceptors import Context, Interceptor, QueueClosed, after, around, before, execute
from aiohttp_interceptors.testing import request_context

VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="as before")


def copy_of(context: Any, depth: int = 1) -> Any:
    for _ in range(depth):
        context = context.copy()
    return context


def on_a_copy(work: Callable[[Any], object], depth: int = 1) -> Callable[[Any], Any]:
    def stage(context: Any) -> Any:
        copy = copy_of(context, depth)
        work(copy)
        return copy

    return stage


def noting(trail: list[str], name: str) -> Interceptor[Any]:
    return Interceptor(
        name, enter=lambda _: trail.append(f"enter {name}"), leave=lambda _: trail.append(f"leave {name}")
    )


@pytest.mark.parametrize("depth", [0, 1, 2])
class TestWhatWasDoneToACopyCounts:
    async def test_enqueue_and_inject(self, depth: int) -> None:
        trail: list[str] = []

        def work(context: Context) -> None:
            context.enqueue(noting(trail, "last"))
            context.inject(noting(trail, "next"))

        await execute(None, Interceptor("a", enter=on_a_copy(work, depth)), noting(trail, "b"))
        assert trail[:3] == ["enter next", "enter b", "enter last"]

    async def test_terminate(self, depth: int) -> None:
        trail: list[str] = []
        await execute(None, Interceptor("a", enter=on_a_copy(Context.terminate, depth)), noting(trail, "b"))
        assert trail == []

    async def test_terminate_when(self, depth: int) -> None:
        trail: list[str] = []
        work = on_a_copy(lambda context: context.terminate_when(lambda _: bool(trail)), depth)
        await execute(None, Interceptor("a", enter=work), noting(trail, "b"), noting(trail, "c"))
        assert trail == ["enter b", "leave b"]

    async def test_bind(self, depth: int) -> None:
        seen: list[str] = []
        work = on_a_copy(lambda context: context.bind(VARIABLE, "bound"), depth)
        look = Interceptor("look", leave=lambda _: seen.append(VARIABLE.get()))
        await execute(None, look, Interceptor("a", enter=work), look)
        assert seen == ["bound", "as before"]

    async def test_with_error(self, depth: int) -> None:
        boom = KeyError("boom")
        with pytest.raises(KeyError) as caught:
            await execute(None, Interceptor("a", enter=lambda context: copy_of(context, depth).with_error(boom)))
        assert caught.value is boom

    async def test_a_value_and_an_observer(self, depth: int) -> None:
        facts: list[Any] = []

        def work(context: Context) -> None:
            context["user"] = "alice"
            context.add_observer(facts.append)

        given = Context()
        came_out = await execute(
            given, Interceptor("a", enter=on_a_copy(work, depth)), before(lambda _: None, name="b")
        )
        assert came_out["user"] == given["user"] == "alice"
        assert [fact.interceptor for fact in facts] == ["a", "b"]

    @pytest.mark.parametrize("verb", [Context.terminate, lambda context: context.terminate_when(bool)])
    async def test_changing_the_queue_on_the_way_out_is_refused(self, depth: int, verb: Any) -> None:
        with pytest.raises(QueueClosed, match="was called in stage leave of 'a'"):
            await execute(None, Interceptor("a", leave=on_a_copy(verb, depth)))

    async def test_a_copy_made_inside_a_nested_execution_reaches_the_outer_one(self, depth: int) -> None:
        """Also when the stage that began it ignores what comes out."""

        def work(context: Context) -> None:
            context["user"] = "alice"

        async def nest(context: Context) -> None:
            await execute(context, Interceptor("inner", enter=on_a_copy(work, depth)))

        assert (await execute(None, Interceptor("a", enter=nest)))["user"] == "alice"


class TestWhatWasDoneToACopyThatIsNotReturnedDoesNotCount:
    async def test_verbs_and_values(self) -> None:
        trail: list[str] = []

        def experiment(context: Context) -> None:
            copy = context.copy()
            copy.terminate()
            copy.enqueue(noting(trail, "never"))
            copy.bind(VARIABLE, "never")
            copy["user"] = "never"

        context = await execute(None, Interceptor("a", enter=experiment), noting(trail, "b"))
        assert trail == ["enter b", "leave b"]
        assert "user" not in context

    async def test_a_copy_can_be_executed_by_itself(self) -> None:
        trail: list[str] = []

        async def nest(context: Context) -> None:
            copy = context.copy()
            copy.enqueue(noting(trail, "queued"))
            copy.bind(VARIABLE, "bound")
            await execute(copy, before(lambda _: trail.append(VARIABLE.get()), name="given"))

        await execute(None, Interceptor("a", enter=nest), noting(trail, "b"))
        assert trail == ["enter queued", "bound", "leave queued", "enter b", "leave b"]
        assert VARIABLE.get() == "as before"

    async def test_with_error_on_a_copy_that_is_executed_is_refused(self) -> None:
        async def nest(context: Context) -> None:
            await execute(context.copy().with_error(KeyError()), noting([], "b"))

        with pytest.raises(RuntimeError, match="is for a context that a stage returns"):
            await execute(None, Interceptor("a", enter=nest))


class TestACopyHasEveryAttribute:
    @pytest.mark.parametrize("make", [Context, request_context])
    def test_of_the_classes_of_the_library(self, make: Callable[[], Context]) -> None:
        context = make()
        twin = context.copy()
        slots = {name for base in type(context).__mro__ for name in getattr(base, "__slots__", ())} - {"__weakref__"}
        assert slots
        for name in slots:
            assert hasattr(twin, name) == hasattr(context, name), name
            if name not in ("_values", "_execution"):
                assert getattr(twin, name, None) == getattr(context, name, None), name

    def test_of_a_class_of_the_users(self) -> None:
        class Mine(Context):
            def __init__(self, tenant: str) -> None:
                super().__init__()
                self.tenant = tenant

        class Slotted(Context):
            __slots__ = ("region",)

        assert Mine("acme").copy().tenant == "acme"
        slotted = Slotted()
        slotted.region = "eu"
        assert slotted.copy().region == "eu"

    def test_a_queue_that_waits_for_its_execution(self) -> None:
        context = Context()
        context.enqueue(noting([], "a"))
        twin = context.copy()
        twin.enqueue(noting([], "b"))
        assert [queued.name for queued in context.queue] == ["a"]
        assert [queued.name for queued in twin.queue] == ["a", "b"]


class TestWhatIsAroundFollows:
    async def test_a_generator_sees_the_state_of_the_copy_after_its_yield(self) -> None:
        seen: list[object] = []

        @around
        async def outer(context: Context) -> Any:
            yield
            seen.append(context.get("user"))
            context["outer"] = True

        def work(context: Context) -> None:
            context["user"] = "alice"

        given = Context()
        came_out = await execute(given, outer, Interceptor("a", enter=on_a_copy(work)))
        assert seen == ["alice"]
        assert came_out["outer"] is given["outer"] is True

    async def test_also_when_the_chain_fails(self) -> None:
        seen: list[object] = []

        @around
        async def outer(context: Context) -> Any:
            try:
                yield
            except KeyError:
                seen.append((context.get("user"), context.error is not None))
                context["handled"] = True

        def work(context: Context) -> None:
            context["user"] = "alice"

        def fail(context: Context) -> None:
            raise KeyError

        came_out = await execute(
            None, after(lambda context: seen.append("handled" in context), name="look"), outer,
            Interceptor("a", enter=on_a_copy(work)), before(fail),
        )  # fmt: skip
        assert seen == [("alice", True), True]
        assert came_out["handled"]

    async def test_also_when_it_is_cancelled(self) -> None:
        seen, reached = [], asyncio.Event()

        @around
        async def outer(context: Context) -> Any:
            try:
                yield
            except asyncio.CancelledError:
                seen.append(context.get("user"))
                raise

        def work(context: Context) -> None:
            context["user"] = "alice"

        async def wait(context: Context) -> None:
            reached.set()
            await asyncio.Event().wait()

        task = asyncio.ensure_future(execute(None, outer, Interceptor("a", enter=on_a_copy(work)), before(wait)))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen == ["alice"]

    async def test_a_stage_that_returns_a_coroutine_instead_of_a_context_is_refused_in_each_stage(self) -> None:
        async def other() -> None:
            """Never run."""

        async def gives(context: Context, *_: Exception) -> Any:
            return other()

        def fail(context: Context) -> None:
            raise KeyError

        for chain in (
            [Interceptor("a", enter=gives)],
            [Interceptor("a", leave=gives)],
            [Interceptor("a", error=gives), before(fail)],
        ):
            with pytest.raises(TypeError, match="a stage returns None or a Context"):
                await execute(None, *chain)

    async def test_a_predicate_that_is_to_be_awaited_is_refused(self) -> None:
        async def later(_: Context) -> bool:
            return False

        def ask(context: Context) -> None:
            context.terminate_when(lambda context: later(context))

        with pytest.raises(TypeError, match="of terminate_when returned <coroutine"):
            await execute(None, before(ask), noting([], "b"))
