"""A stage that returns a copy of its context has the same effect as one that changed the context itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest

from aiohttp_interceptors import Context, Interceptor, QueueClosed, after, around, before, execute
from aiohttp_interceptors.testing import request_context

VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="unset")


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


def recording(trail: list[str], name: str) -> Interceptor[Any]:
    return Interceptor(
        name, enter=lambda _: trail.append(f"enter {name}"), leave=lambda _: trail.append(f"leave {name}")
    )


@pytest.mark.parametrize("depth", [0, 1, 2])
class TestReturnedCopy:
    async def test_enqueue_and_inject(self, depth: int) -> None:
        trail: list[str] = []

        def work(context: Context) -> None:
            context.enqueue(recording(trail, "last"))
            context.inject(recording(trail, "next"))

        await execute(None, Interceptor("a", enter=on_a_copy(work, depth)), recording(trail, "b"))
        assert trail[:3] == ["enter next", "enter b", "enter last"]

    async def test_terminate(self, depth: int) -> None:
        trail: list[str] = []
        await execute(None, Interceptor("a", enter=on_a_copy(Context.terminate, depth)), recording(trail, "b"))
        assert trail == []

    async def test_terminate_when(self, depth: int) -> None:
        trail: list[str] = []
        work = on_a_copy(lambda context: context.terminate_when(lambda _: bool(trail)), depth)
        await execute(None, Interceptor("a", enter=work), recording(trail, "b"), recording(trail, "c"))
        assert trail == ["enter b", "leave b"]

    async def test_bind(self, depth: int) -> None:
        seen: list[str] = []
        work = on_a_copy(lambda context: context.bind(VARIABLE, "bound"), depth)
        read = Interceptor("read", leave=lambda _: seen.append(VARIABLE.get()))
        await execute(None, read, Interceptor("a", enter=work), read)
        assert seen == ["bound", "unset"]

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

    @pytest.mark.parametrize("call", [Context.terminate, lambda context: context.terminate_when(bool)])
    async def test_changing_the_queue_while_leaving_is_refused(self, depth: int, call: Any) -> None:
        with pytest.raises(QueueClosed, match="was called in stage leave of 'a'"):
            await execute(None, Interceptor("a", leave=on_a_copy(call, depth)))

    async def test_the_state_of_a_nested_copy_reaches_the_outer_execution(self, depth: int) -> None:
        """The stage that started the nested execution ignores its result."""

        def work(context: Context) -> None:
            context["user"] = "alice"

        async def nest(context: Context) -> None:
            await execute(context, Interceptor("inner", enter=on_a_copy(work, depth)))

        assert (await execute(None, Interceptor("a", enter=nest)))["user"] == "alice"


class TestOtherCopies:
    async def test_calls_and_values_have_no_effect(self) -> None:
        trail: list[str] = []

        def experiment(context: Context) -> None:
            copy = context.copy()
            copy.terminate()
            copy.enqueue(recording(trail, "never"))
            copy.bind(VARIABLE, "never")
            copy["user"] = "never"

        context = await execute(None, Interceptor("a", enter=experiment), recording(trail, "b"))
        assert trail == ["enter b", "leave b"]
        assert "user" not in context

    async def test_a_copy_can_be_executed_on_its_own(self) -> None:
        trail: list[str] = []

        async def nest(context: Context) -> None:
            copy = context.copy()
            copy.enqueue(recording(trail, "queued"))
            copy.bind(VARIABLE, "bound")
            await execute(copy, before(lambda _: trail.append(VARIABLE.get()), name="given"))

        await execute(None, Interceptor("a", enter=nest), recording(trail, "b"))
        assert trail == ["enter queued", "bound", "leave queued", "enter b", "leave b"]
        assert VARIABLE.get() == "unset"

    async def test_with_error_on_a_copy_that_is_executed_is_refused(self) -> None:
        async def nest(context: Context) -> None:
            await execute(context.copy().with_error(KeyError()), recording([], "b"))

        with pytest.raises(RuntimeError, match="is for a context that a stage returns"):
            await execute(None, Interceptor("a", enter=nest))


class TestAttributes:
    @pytest.mark.parametrize("make", [Context, request_context])
    def test_a_copy_has_every_attribute_of_a_library_class(self, make: Callable[[], Context]) -> None:
        context = make()
        copy = context.copy()
        slots = {name for base in type(context).__mro__ for name in getattr(base, "__slots__", ())} - {"__weakref__"}
        assert slots
        for name in slots:
            assert hasattr(copy, name) == hasattr(context, name), name
            if name not in ("_values", "_execution"):
                assert getattr(copy, name, None) == getattr(context, name, None), name

    def test_a_copy_has_every_attribute_of_a_subclass(self) -> None:
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

    def test_a_copy_has_its_own_queue(self) -> None:
        context = Context()
        context.enqueue(recording([], "a"))
        copy = context.copy()
        copy.enqueue(recording([], "b"))
        assert [queued.name for queued in context.queue] == ["a"]
        assert [queued.name for queued in copy.queue] == ["a", "b"]

    async def test_a_copy_has_the_predicates(self) -> None:
        trail: list[str] = []
        context = Context()
        context.terminate_when(lambda _: True)
        await execute(context.copy(), recording(trail, "a"), recording(trail, "b"))
        assert trail == ["enter a", "leave a"]


class TestAround:
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

    async def test_a_generator_sees_the_state_of_the_copy_after_an_error(self) -> None:
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
            None, after(lambda context: seen.append("handled" in context), name="record"), outer,
            Interceptor("a", enter=on_a_copy(work)), before(fail),
        )  # fmt: skip
        assert seen == [("alice", True), True]
        assert came_out["handled"]

    async def test_a_generator_sees_the_state_of_the_copy_after_a_cancellation(self) -> None:
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

    async def test_a_coroutine_that_returns_a_coroutine_is_refused_in_each_stage(self) -> None:
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

    async def test_a_predicate_that_returns_an_awaitable_is_refused(self) -> None:
        async def later(_: Context) -> bool:
            return False

        def enter(context: Context) -> None:
            context.terminate_when(lambda context: later(context))

        with pytest.raises(TypeError, match="of terminate_when returned <coroutine"):
            await execute(None, before(enter), recording([], "b"))
