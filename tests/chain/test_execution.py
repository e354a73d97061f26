"""Bindings, observers and the handler of an execution."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest
import structlog
from aiohttp import web

from aiohttp_interceptors.chain import Context, Execution, compile_chain, execute, run_execution
from aiohttp_interceptors.decorators import after, around, before
from aiohttp_interceptors.exceptions import QueueClosed
from aiohttp_interceptors.facts import StageRan
from aiohttp_interceptors.interceptor import Interceptor
from aiohttp_interceptors.testing import captured_logs, request_context
from tests.stages import raising
from tests.waiting import task_switch

VARIABLE: ContextVar[int] = ContextVar("VARIABLE", default=0)
UNSET: ContextVar[int] = ContextVar("UNSET")


def nothing(*_: object) -> None:
    """A stage that does nothing."""


def binding(value: int, variable: ContextVar[int] = VARIABLE) -> Callable[..., None]:
    """Make a stage that binds."""
    return lambda context, *_: context.bind(variable, value)


class Readings(list[tuple[str, int]]):
    """The values of a variable that stages read, in order."""

    def __init__(self, variable: ContextVar[int] = VARIABLE) -> None:
        self.variable = variable

    def stage(self, name: str, then: Callable[..., Any] = nothing) -> Callable[..., Any]:
        """Make a stage that reads and then does something."""

        def stage(context: Context, *exception: Exception) -> object:
            self.append((name, self.variable.get(0)))
            return then(context, *exception)

        return stage


def error_stage(stage: Callable[..., Any]) -> Callable[[Context, Exception], Any]:
    """Give a function the signature of an error stage."""
    return lambda context, exception: stage(context, exception)


class TestBind:
    async def test_later_stages_see_a_binding(self) -> None:
        """The stage that binds does not see it; its interceptor's ``leave`` does."""
        readings = Readings()

        def bind(context: Context) -> None:
            context.bind(VARIABLE, 1)
            readings.append(("bind", VARIABLE.get()))

        await execute(
            None,
            Interceptor("a", readings.stage("enter a"), readings.stage("leave a")),
            Interceptor("b", bind, readings.stage("leave b")),
            Interceptor("c", readings.stage("enter c"), readings.stage("leave c")),
        )
        assert readings == [("enter a", 0), ("bind", 0), ("enter c", 1), ("leave c", 1), ("leave b", 1), ("leave a", 0)]
        assert VARIABLE.get() == 0

    async def test_error_stages_up_to_the_binder_see_a_binding(self) -> None:
        readings = Readings()

        def decline(context: Context, exception: Exception) -> None:
            raise exception

        with pytest.raises(KeyError):
            await execute(
                None,
                Interceptor("a", error=error_stage(readings.stage("error a", decline))),
                Interceptor("b", binding(1), error=error_stage(readings.stage("error b", decline))),
                Interceptor("c", readings.stage("enter c", raising(KeyError()))),
            )
        assert readings == [("enter c", 1), ("error b", 1), ("error a", 0)]
        assert VARIABLE.get() == 0

    async def test_a_binding_is_reset_although_its_binder_has_no_leave_and_no_error(self) -> None:
        readings = Readings()
        outer = Interceptor("a", leave=readings.stage("leave a"), error=error_stage(readings.stage("error a")))
        await execute(None, outer, before(binding(1)), Interceptor("c", error=error_stage(readings.stage("error c"))))
        await execute(None, outer, before(binding(1)), before(raising(KeyError())))
        assert readings == [("leave a", 0), ("error a", 0)]

    async def test_after_a_handled_error_the_outer_stages_see_the_outer_value(self) -> None:
        readings = Readings()
        await execute(
            None,
            after(readings.stage("leave a")),
            before(binding(1), name="b"),
            after(readings.stage("leave c")),
            before(binding(2), name="d"),
            Interceptor("e", error=error_stage(readings.stage("error e"))),
            before(binding(3), name="f"),
            before(raising(KeyError())),
        )
        assert readings == [("error e", 2), ("leave c", 1), ("leave a", 0)]

    async def test_bindings_are_reset_one_by_one(self) -> None:
        readings = Readings()
        links = [
            Interceptor(f"{n}", readings.stage(f"enter {n}", binding(n)), readings.stage(f"leave {n}"))
            for n in (1, 2, 3)
        ]
        await execute(None, *links)
        assert readings == [
            ("enter 1", 0),
            ("enter 2", 1),
            ("enter 3", 2),
            ("leave 3", 3),
            ("leave 2", 2),
            ("leave 1", 1),
        ]

    async def test_two_bindings_of_one_variable_in_one_stage_are_both_reset(self) -> None:
        readings = Readings()

        def twice(context: Context) -> None:
            context.bind(VARIABLE, 1)
            context.bind(VARIABLE, 2)

        await execute(None, after(readings.stage("leave a")), before(twice), after(readings.stage("leave b")))
        assert readings == [("leave b", 2), ("leave a", 0)]

    async def test_a_binding_in_leave_lasts_until_the_end(self) -> None:
        readings = Readings()
        await execute(
            None,
            after(readings.stage("leave a")),
            Interceptor("b", binding(1), readings.stage("leave b", binding(3))),
            after(readings.stage("leave c", binding(2))),
            before(binding(4), name="d"),
            after(readings.stage("leave e")),
        )
        assert readings == [("leave e", 4), ("leave c", 1), ("leave b", 2), ("leave a", 3)]
        assert VARIABLE.get() == 0

    async def test_a_binding_in_leave_does_not_affect_other_variables(self) -> None:
        here, there = Readings(), Readings(UNSET)

        def read(name: str, then: Callable[..., Any] = nothing) -> Callable[..., Any]:
            return here.stage(name, there.stage(name, then))

        await execute(
            None,
            after(read("leave a")),
            before(binding(1, UNSET), name="b"),
            after(read("leave c")),
            after(binding(2), name="d"),
        )
        assert here == [("leave c", 2), ("leave a", 2)]
        assert there == [("leave c", 1), ("leave a", 0)]
        assert (VARIABLE.get(), UNSET.get(None)) == (0, None)

    async def test_a_binding_in_error_lasts_until_the_end(self) -> None:
        readings = Readings()
        await execute(
            None,
            after(readings.stage("leave a")),
            after(readings.stage("leave b")),
            Interceptor("c", binding(1), error=error_stage(binding(2))),
            before(raising(KeyError())),
        )
        assert readings == [("leave b", 2), ("leave a", 2)]
        assert VARIABLE.get() == 0

    async def test_a_variable_without_a_value_has_none_afterwards(self) -> None:
        for chain in (
            [before(binding(1, UNSET))],
            [after(binding(1, UNSET))],
            [Interceptor("a", *[binding(1, UNSET)] * 2)],
        ):
            await execute(None, *chain)
            with pytest.raises(LookupError):
                UNSET.get()

    async def test_a_stage_that_raises_binds_nothing(self) -> None:
        readings = Readings()

        def bind_and_raise(context: Context) -> None:
            context.bind(VARIABLE, 1)
            raise KeyError

        await execute(
            None,
            after(readings.stage("leave a")),
            Interceptor("b", bind_and_raise, error=error_stage(readings.stage("error b"))),
        )
        assert readings == [("error b", 0), ("leave a", 0)]

    async def test_a_stage_that_calls_with_error_binds(self) -> None:
        readings = Readings()

        def bind_and_attach(context: Context) -> Context:
            context.bind(VARIABLE, 1)
            return context.with_error(KeyError())

        await execute(None, Interceptor("b", bind_and_attach, error=error_stage(readings.stage("error b"))))
        assert readings == [("error b", 1)]

    async def test_the_handler_sees_a_binding(self) -> None:
        readings, seen = Readings(), []

        async def handler(context: Context) -> None:
            seen.append(VARIABLE.get())
            context.bind(VARIABLE, 2)

        context = Context()
        context.enqueue(after(readings.stage("leave a")), Interceptor("b", binding(1), readings.stage("leave b")))
        assert context._execution is not None
        await run_execution(context._execution, handler)
        assert seen == [1]
        assert readings[0][0] == "leave b"
        assert VARIABLE.get() == 0

    async def test_a_cancelled_chain_resets_its_bindings(self) -> None:
        """A generator that closes sees what its interceptor bound."""
        readings, reached = Readings(), asyncio.Event()

        @around
        async def bracket(context: Context) -> Any:
            context.bind(VARIABLE, 2)
            try:
                yield
            finally:
                readings.append(("finally", VARIABLE.get()))

        async def wait(context: Context) -> None:
            reached.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                readings.append(("cancelled", VARIABLE.get()))
                raise

        async def outside() -> None:
            try:
                await execute(None, before(binding(1)), bracket, before(binding(3)), before(wait))
            finally:
                readings.append(("outside", VARIABLE.get()))

        task = asyncio.ensure_future(outside())
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert readings == [("cancelled", 3), ("finally", 2), ("outside", 0)]

    async def test_a_nested_execute_resets_its_own_bindings(self) -> None:
        readings = Readings()

        async def nest(context: Context) -> None:
            await execute(context, before(binding(2)), after(readings.stage("inside")))
            readings.append(("after", VARIABLE.get()))

        await execute(None, before(binding(1)), before(nest), before(readings.stage("enter c")))
        assert readings == [("inside", 2), ("after", 1), ("enter c", 1)]

    async def test_concurrent_executions_see_only_their_own_bindings(self) -> None:
        """The same holds for structlog's context variables."""

        async def work(context: Context) -> None:
            for _ in range(3):
                await task_switch()
                context["seen"] = VARIABLE.get(), structlog.contextvars.get_contextvars()["number"]
            gate.set()
            await gate.wait()
            context["again"] = VARIABLE.get()

        def bind(context: Context) -> None:
            context.bind(VARIABLE, context["number"])  # type: ignore[arg-type]
            structlog.contextvars.bind_contextvars(number=context["number"])

        gate = asyncio.Event()
        contexts = [Context({"number": number}) for number in range(20)]
        await asyncio.gather(*(execute(context, before(bind), before(work)) for context in contexts))
        for number, context in enumerate(contexts):
            assert context["seen"] == (number, number)
            assert context["again"] == number
        assert VARIABLE.get() == 0


class TestObservers:
    """Observers are called with a ``StageRan`` after each stage that returned."""

    @staticmethod
    def seen(facts: list[StageRan]) -> list[tuple[str, str]]:
        return [(fact.stage, fact.interceptor) for fact in facts]

    async def test_each_stage_that_returned_is_reported(self) -> None:
        facts: list[StageRan] = []
        context = Context({"a": 1}, execution_id="run 1")
        context.add_observer(facts.append)
        await execute(
            context,
            Interceptor("a", enter=lambda context: context.update(b=2)),
            Interceptor("b", leave=lambda context: context.pop("a") and None),
        )
        assert self.seen(facts) == [("enter", "a"), ("leave", "b")]
        assert [fact.execution_id for fact in facts] == ["run 1", "run 1"]
        assert [(fact.before, fact.after) for fact in facts] == [
            ({"a": 1}, {"a": 1, "b": 2}),
            ({"a": 1, "b": 2}, {"b": 2}),
        ]
        assert all(0 <= fact.duration < 10 for fact in facts)

    async def test_a_stage_that_raised_is_not_reported(self) -> None:
        facts: list[StageRan] = []
        context = Context()
        context.add_observer(facts.append)
        await execute(
            context,
            Interceptor("outer", nothing, nothing, error_stage(nothing)),
            Interceptor("middle", nothing, nothing),
            Interceptor("inner", raising(KeyError()), nothing),
        )
        assert self.seen(facts) == [("enter", "outer"), ("enter", "middle"), ("error", "outer")]

    async def test_a_stage_that_called_with_error_is_reported(self) -> None:
        facts: list[StageRan] = []
        context = Context()
        context.add_observer(facts.append)
        with pytest.raises(KeyError):
            await execute(context, before(lambda context: context.with_error(KeyError()), name="a"))
        assert self.seen(facts) == [("enter", "a")]

    async def test_the_stage_that_adds_an_observer_is_reported(self) -> None:
        facts: list[StageRan] = []
        await execute(
            None, Interceptor("a", nothing, nothing), before(lambda c: c.add_observer(facts.append), name="b")
        )
        assert self.seen(facts) == [("enter", "b"), ("leave", "a")]

    @pytest.mark.parametrize("stage", ["leave", "error"])
    async def test_an_observer_can_be_added_in_leave_and_error(self, stage: str) -> None:
        facts: list[StageRan] = []
        add = {"error": lambda context, _: context.add_observer(facts.append)}
        stages = {stage: add.get(stage, lambda context: context.add_observer(facts.append))}
        failing = before(raising(KeyError())) if stage == "error" else before(nothing)
        await execute(None, after(nothing), Interceptor("b", **stages), failing)
        assert self.seen(facts) == [(stage, "b"), ("leave", "nothing")]

    async def test_a_stage_that_returns_a_context_with_an_observer_is_reported(self) -> None:
        facts: list[StageRan] = []

        def replace(context: Context) -> Context:
            copy = context.copy()
            copy.add_observer(facts.append)
            return copy

        await execute(Context({"a": 1}), before(replace), before(nothing))
        assert self.seen(facts) == [("enter", "replace"), ("enter", "nothing")]
        assert facts[0].before == facts[0].after == {"a": 1}
        assert facts[0].duration == 0

    async def test_observers_of_both_contexts_are_called_in_order_and_once(self) -> None:
        calls: list[tuple[str, str]] = []

        def first(fact: StageRan) -> None:
            calls.append(("first", fact.interceptor))

        def second(fact: StageRan) -> None:
            calls.append(("second", fact.interceptor))

        def replace(context: Context) -> Context:
            copy = Context()
            copy.add_observer(second)
            copy.add_observer(first)
            return copy

        context = Context()
        context.add_observer(first)
        await execute(context, before(nothing), before(replace))
        assert calls == [("first", "nothing"), ("first", "replace"), ("second", "replace")]

    async def test_an_observer_that_raises_is_logged_and_removed(self) -> None:
        """It is not an error of the interceptor, and other observers are still called."""
        boom, calls = ValueError("boom"), []

        class Broken:
            def __call__(self, fact: StageRan) -> None:
                raise boom

            def __repr__(self) -> str:
                return "<broken>"

        context = Context(execution_id="run 1")
        context.add_observer(Broken())
        context.add_observer(calls.append)
        with captured_logs() as logs:
            await execute(context, Interceptor("a", nothing, nothing))
        assert self.seen(calls) == [("enter", "a"), ("leave", "a")]
        assert logs == [
            {
                "event": "observer_dropped",
                "log_level": "error",
                "observer": "<broken>",
                "execution_id": "run 1",
                "exc_info": boom,
            }
        ]

    async def test_an_observer_can_be_added_after_the_only_one_was_removed(self) -> None:
        facts: list[StageRan] = []
        context = Context()
        context.add_observer(raising(ValueError()))
        with captured_logs() as logs:
            await execute(
                context, before(nothing), before(nothing), before(lambda c: c.add_observer(facts.append), name="c")
            )
        assert len(logs) == 1
        assert self.seen(facts) == [("enter", "c")]

    async def test_an_async_stage_is_reported_once_when_it_has_ended(self) -> None:
        facts: list[StageRan] = []
        context = Context()
        context.add_observer(facts.append)

        async def enter(context: Context) -> None:
            await task_switch()
            context["entered"] = True

        async def handle(context: Context, exception: Exception) -> None:
            await task_switch()

        await execute(context, Interceptor("a", enter=enter, error=handle), before(raising(KeyError())))
        assert self.seen(facts) == [("enter", "a"), ("error", "a")]
        assert facts[0].after == {"entered": True}

    async def test_a_fact_has_the_values_of_its_time(self) -> None:
        """Later changes of the context, and of dictionaries in it, do not show."""
        facts: list[StageRan] = []
        context = Context({"user": {"name": "alice"}})
        context.add_observer(facts.append)

        def rename(context: Context) -> None:
            context["user"]["name"] += "!"  # type: ignore[index]

        await execute(context, before(rename), before(rename))
        assert [(fact.before["user"], fact.after["user"]) for fact in facts] == [
            ({"name": "alice"}, {"name": "alice!"}),
            ({"name": "alice!"}, {"name": "alice!!"}),
        ]

    async def test_an_observer_added_in_a_nested_execute_stays(self) -> None:
        """It is called after the stage that ran the nested execute, and after outer stages."""
        facts: list[StageRan] = []

        async def nest(context: Context) -> None:
            await execute(context, before(lambda context: context.add_observer(facts.append), name="inner"))

        await execute(Context({"a": 1}), Interceptor("outer", nest, nothing), before(nothing))
        assert self.seen(facts) == [("enter", "inner"), ("enter", "outer"), ("enter", "nothing"), ("leave", "outer")]
        assert facts[1].before == facts[1].after == {"a": 1}
        assert facts[1].duration == 0

    async def test_a_nested_execute_and_its_stage_are_both_reported(self) -> None:
        facts: list[StageRan] = []

        async def nest(context: Context) -> None:
            await execute(context, before(lambda context: context.update(a=2), name="inner"))

        context = Context({"a": 1})
        context.add_observer(facts.append)
        await execute(context, before(nest))
        assert self.seen(facts) == [("enter", "inner"), ("enter", "nest")]
        assert [(fact.before, fact.after) for fact in facts] == [({"a": 1}, {"a": 2})] * 2


class TestHandler:
    """The handler at the end of a chain."""

    async def test_a_failure_of_the_handler_has_its_name(self) -> None:
        calls: list[tuple[str, str]] = []

        async def page(context: Context) -> None:
            raise KeyError

        def handle(context: Context, exception: Exception) -> None:
            assert context.error is not None
            calls.append((context.error.interceptor, context.error.stage))

        context = Context()
        context.enqueue(Interceptor("a", error=handle))
        assert context._execution is not None
        await run_execution(context._execution, page)
        assert calls == [("page", "enter")]

    async def test_a_handler_without_a_name_is_shown_by_its_repr(self) -> None:
        class Page:
            async def __call__(self, context: Context) -> None:
                context.terminate()

            def __repr__(self) -> str:
                return "<page>"

        with pytest.raises(QueueClosed, match=r"terminate\(\) was called in stage enter of '<page>'") as caught:
            await run_execution(Execution(Context()), Page())
        assert caught.value.__notes__ == ["raised in interceptor '<page>', stage enter"]

    async def test_the_handler_is_called_between_the_last_enter_and_the_first_leave(self) -> None:
        trail: list[str] = []

        async def page(context: Context) -> None:
            assert context.queue == ()
            trail.append("page")

        context = Context()
        more = Interceptor("b", lambda _: trail.append("enter b"), lambda _: trail.append("leave b"))
        context.enqueue(Interceptor("a", lambda context: context.enqueue(more), lambda _: trail.append("leave a")))
        assert context._execution is not None
        await run_execution(context._execution, page)
        assert trail == ["enter b", "page", "leave b", "leave a"]

    async def test_a_failure_after_the_handler_names_the_interceptor_that_leaves(self) -> None:
        async def page(context: Context) -> None: ...

        boom, readings = KeyError(), Readings()
        chain = (after(readings.stage("leave a")), Interceptor("b", binding(1), raising(boom)), after(nothing))
        with pytest.raises(KeyError):
            await run_execution(Execution(Context(), compile_chain(chain)), page)
        assert boom.__notes__ == ["raised in interceptor 'b', stage leave"]
        chain = (after(readings.stage("leave a")), before(binding(1)), after(readings.stage("leave c")))
        await run_execution(Execution(Context(), compile_chain(chain)), page)
        assert readings == [("leave c", 1), ("leave a", 0)]

    async def test_the_chain_leaves_with_the_context_that_the_handler_continued_with(self) -> None:
        seen: list[Context] = []
        copies: list[Context] = []

        async def page(context: Context) -> None:
            copies.append(context.copy())
            assert context._execution is not None
            context._execution.replace_context(copies[0])

        came_out = await run_execution(Execution(Context(), compile_chain((after(seen.append, name="a"),))), page)
        assert came_out is seen[0] is copies[0]

    async def test_the_handler_s_response_is_attached_to_a_request_context(self) -> None:
        response = web.Response()

        async def page(request: web.Request) -> web.Response:
            assert request is context.request
            return response

        context = request_context()
        await run_execution(Execution(context), page)
        assert context.response is response

    async def test_finalize_makes_the_result(self) -> None:
        context = Context()
        finalized: list[Context] = []
        assert await run_execution(Execution(context), None, lambda context: finalized.append(context) or 42) == 42
        assert finalized[0] is context
