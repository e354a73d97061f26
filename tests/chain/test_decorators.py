"""The decorators ``@before``, ``@after``, ``@around`` and ``@on_error``."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest

from aiohttp_interceptors.chain import Context, execute
from aiohttp_interceptors.decorators import after, around, before, on_error
from aiohttp_interceptors.interceptor import Interceptor
from tests.waiting import task_switch


def failing(exception: BaseException, name: str = "failing", stage: str = "enter") -> Interceptor[Any]:
    """Make an interceptor that raises."""

    def fail(context: Context) -> None:
        raise exception

    return Interceptor(name, **{stage: fail})


class TestBeforeAndAfter:
    def test_before_makes_an_enter_stage_named_after_the_function(self) -> None:
        @before
        def load_user(context: Context) -> None: ...

        assert repr(load_user) == "<Interceptor 'load_user': enter>"

    def test_after_makes_a_leave_stage_named_after_the_function(self) -> None:
        @after
        async def save_user(context: Context) -> None: ...

        assert repr(save_user) == "<Interceptor 'save_user': leave>"

    @pytest.mark.parametrize(("decorator", "stage"), [(before, "enter"), (after, "leave")])
    def test_a_name_can_be_given(self, decorator: Any, stage: str) -> None:
        def function(context: Context) -> None: ...

        for made in (decorator(name="given")(function), decorator(function, name="given")):
            assert repr(made) == f"<Interceptor 'given': {stage}>"
            assert getattr(made, stage) is function
        assert decorator()(function).name == "function"
        assert decorator(name="partial")(functools.partial(function)).name == "partial"

    async def test_before_runs_on_the_way_in_and_after_on_the_way_out(self) -> None:
        trail: list[str] = []

        @before
        async def first(context: Context) -> None:
            trail.append("first")

        @after
        def last(context: Context) -> None:
            trail.append("last")

        await execute(None, last, first)
        assert trail == ["first", "last"]

    @pytest.mark.parametrize("decorator", [before, after])
    @pytest.mark.parametrize(
        "wrong", [42, "name", asyncio, Interceptor("a", enter=lambda context: None), functools.partial(print)], ids=repr
    )
    def test_a_value_without_a_name_is_refused(self, decorator: Any, wrong: object) -> None:
        with pytest.raises(TypeError) as caught:
            decorator(wrong)
        assert str(caught.value) == f"@{decorator.__name__} takes a function with a name, not {wrong!r}"

    @pytest.mark.parametrize("decorator", [before, after])
    def test_a_function_that_cannot_be_a_stage_is_refused(self, decorator: Any) -> None:
        with pytest.raises(TypeError, match=r"of interceptor '<lambda>' is called as (enter|leave)\(context\)"):
            decorator(lambda: None)
        with pytest.raises(TypeError, match="is a plain or an async function, not <class"):
            decorator(Context)
        with pytest.raises(TypeError, match="an interceptor's name is a str, not 42"):
            decorator(name=42)(print)


class TestAround:
    async def test_enter_runs_up_to_the_yield_and_leave_from_there(self) -> None:
        trail: list[str] = []

        @around
        async def bracket(context: Context) -> Any:
            trail.append("enter")
            yield
            trail.append("leave")

        assert repr(bracket) == "<Interceptor 'bracket': enter, leave, error>"
        await execute(None, bracket, before(lambda context: trail.append("inside")))
        assert trail == ["enter", "inside", "leave"]

    async def test_each_execution_and_position_has_its_own_generator(self) -> None:
        trail: list[str] = []

        @around
        async def bracket(context: Context) -> Any:
            context["depth"] = depth = context.get("depth", 0) + 1  # type: ignore[operator]
            trail.append(f"enter {depth}")
            yield
            trail.append(f"leave {depth}")

        await execute(None, bracket, bracket)
        await execute(None, bracket)
        assert trail == ["enter 1", "enter 2", "leave 2", "leave 1", "enter 1", "leave 1"]

    @pytest.mark.parametrize("stage", ["enter", "leave"])
    async def test_an_exception_is_raised_at_the_yield_and_catching_it_handles_it(self, stage: str) -> None:
        boom, caught, left = KeyError("boom"), [], []

        @around
        async def catching(context: Context) -> Any:
            try:
                yield
            except KeyError as exception:
                caught.append((exception, context.error is not None))

        context = await execute(
            None, after(lambda context: left.append(context.error)), catching, failing(boom, stage=stage)
        )
        assert caught == [(boom, True)]
        assert left == [None]
        assert context.suppressed == ()

    async def test_not_catching_an_exception_declines_it(self) -> None:
        boom, trail = KeyError("boom"), []

        @around
        async def closing(context: Context) -> Any:
            try:
                yield
                trail.append("never")
            finally:
                trail.append("finally")

        context = Context()
        with pytest.raises(KeyError) as caught:
            await execute(context, closing, closing, failing(boom))
        assert caught.value is boom
        assert boom.__notes__ == ["raised in interceptor 'failing', stage enter"]
        assert trail == ["finally", "finally"]
        assert context.suppressed == ()

    async def test_raising_the_caught_exception_again_declines_it(self) -> None:
        boom = KeyError("boom")

        @around
        async def again(context: Context) -> Any:
            try:
                yield
            except KeyError:
                raise

        context = Context()
        with pytest.raises(KeyError) as caught:
            await execute(context, again, failing(boom))
        assert caught.value is boom
        assert context.suppressed == ()

    async def test_raising_another_exception_replaces_the_first(self) -> None:
        old, new, failures = KeyError("old"), ValueError("new"), []

        @around
        async def replacing(context: Context) -> Any:
            try:
                yield
            except KeyError as exception:
                raise new from exception

        context = await execute(
            None, Interceptor("a", error=lambda context, _: failures.append(context.error)), replacing, failing(old)
        )
        (failure,) = failures
        assert (failure.interceptor, failure.stage, failure.exception) == ("replacing", "error", new)
        assert new.__cause__ is old
        assert [failure.exception for failure in context.suppressed] == [old]

    @pytest.mark.parametrize("when", ["before", "after"])
    async def test_a_generator_is_not_offered_its_own_exception(self, when: str) -> None:
        """Its interceptor is asked first, and declines because the generator is over."""
        boom, failures = KeyError(when), []

        @around
        async def broken(context: Context) -> Any:
            if when == "before":
                raise boom
            yield
            raise boom

        context = await execute(
            None, Interceptor("a", error=lambda context, e: failures.append((e, context.error))), broken
        )
        ((exception, failure),) = failures
        assert exception is boom
        assert (failure.interceptor, failure.stage) == ("broken", "enter" if when == "before" else "leave")
        assert context.suppressed == ()

    async def test_an_exception_of_a_predicate_is_raised_at_the_yield(self) -> None:
        boom, caught = KeyError("boom"), []

        @around
        async def catching(context: Context) -> Any:
            try:
                yield
            except KeyError as exception:
                caught.append(exception)

        def predicate(context: Context) -> None:
            raise boom

        context = Context()
        context.terminate_when(predicate)
        await execute(context, catching)
        assert caught == [boom]

    @pytest.mark.parametrize("boom", [StopAsyncIteration(), StopAsyncIteration("boom")])
    async def test_stop_async_iteration_propagates_through_generators(self, boom: Exception) -> None:
        """Python turns it into a RuntimeError when it leaves a generator (PEP 479); the chain restores it."""

        @around
        async def bracket(context: Context) -> Any:
            yield

        context = Context()
        with pytest.raises(StopAsyncIteration) as caught:
            await execute(context, bracket, bracket, failing(boom))
        assert caught.value is boom
        assert context.suppressed == ()

    async def test_a_runtime_error_raised_instead_of_stop_async_iteration_is_kept(self) -> None:
        old = StopAsyncIteration()

        @around
        async def replacing(context: Context) -> Any:
            try:
                yield
            except StopAsyncIteration:
                raise RuntimeError("new") from None

        context = Context()
        with pytest.raises(RuntimeError, match="new"):
            await execute(context, replacing, failing(old))
        assert [failure.exception for failure in context.suppressed] == [old]

    async def test_a_runtime_error_propagates_through_a_generator(self) -> None:
        cause, boom = StopAsyncIteration(), RuntimeError("boom")
        boom.__cause__ = cause

        @around
        async def bracket(context: Context) -> Any:
            yield

        context = Context()
        with pytest.raises(RuntimeError) as caught:
            await execute(context, bracket, failing(boom))
        assert caught.value is boom
        assert context.suppressed == ()

    async def test_a_runtime_error_raised_instead_of_another_exception_is_kept(self) -> None:
        old = KeyError("old")

        @around
        async def replacing(context: Context) -> Any:
            try:
                yield
            except KeyError as exception:
                raise RuntimeError("new") from exception

        context = Context()
        with pytest.raises(RuntimeError, match="new"):
            await execute(context, replacing, failing(old))
        assert [failure.exception for failure in context.suppressed] == [old]

    async def test_finally_runs_on_cancellation_and_may_await(self) -> None:
        trail, reached = [], asyncio.Event()

        @around
        async def closing(context: Context) -> Any:
            try:
                yield
            except asyncio.CancelledError:
                trail.append("cancelled")
                raise
            finally:
                await task_switch()
                trail.append("finally")

        async def wait(context: Context) -> None:
            reached.set()
            await asyncio.Event().wait()

        task = asyncio.ensure_future(execute(None, closing, before(wait)))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert trail == ["cancelled", "finally"]

    @pytest.mark.parametrize("stage", ["enter", "leave"])
    async def test_a_generator_can_be_cancelled_in_its_own_code(self, stage: str) -> None:
        trail, reached = [], asyncio.Event()

        @around
        async def waiting(context: Context) -> Any:
            try:
                if stage == "leave":
                    yield
                reached.set()
                await asyncio.Event().wait()
                if stage == "enter":
                    yield
            finally:
                trail.append("finally")

        task = asyncio.ensure_future(execute(None, waiting))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert trail == ["finally"]

    async def test_a_generator_without_a_yield_is_a_runtime_error(self) -> None:
        @around
        async def no_yield(context: Context) -> Any:
            if "never" in context:
                yield

        with pytest.raises(
            RuntimeError, match="'no_yield' ended without a yield; an @around generator has exactly one"
        ):
            await execute(None, no_yield)

    @pytest.mark.parametrize("how", ["leave", "error"])
    async def test_a_second_yield_is_a_runtime_error(self, how: str) -> None:
        trail: list[str] = []

        @around
        async def two_yields(context: Context) -> Any:
            try:
                try:
                    yield
                except KeyError:
                    yield
                yield
            finally:
                trail.append("closed")

        chain = [two_yields] if how == "leave" else [two_yields, failing(KeyError())]
        with pytest.raises(RuntimeError, match="'two_yields' has a second yield; an @around generator has exactly one"):
            await execute(None, *chain)
        assert trail == ["closed"]

    async def test_a_generator_continues_after_another_stage_returned_a_new_context(self) -> None:
        trail: list[str] = []

        @around
        async def bracket(context: Context) -> Any:
            yield
            trail.append("leave")

        await execute(None, bracket, Interceptor("b", enter=lambda context: Context()))
        assert trail == ["leave"]

    def test_around_takes_an_async_generator_function(self) -> None:
        def plain(context: Context) -> None: ...

        def generator(context: Context) -> Any:
            yield

        async def asynchronous(context: Context) -> None: ...

        for function in (plain, generator, asynchronous):
            with pytest.raises(TypeError) as caught:
                around(function)  # type: ignore[arg-type]
            assert str(caught.value) == f"@around takes an async generator function with one yield, not {function!r}"

    @pytest.mark.parametrize("wrong", [42, None])
    def test_a_value_without_a_name_is_refused(self, wrong: Any) -> None:
        with pytest.raises(TypeError, match=f"@around takes a function with a name, not {wrong}"):
            around(wrong)

    def test_the_generator_function_must_take_the_context(self) -> None:
        async def no_argument() -> Any:
            yield

        with pytest.raises(
            TypeError, match=r"enter of interceptor 'no_argument' is called as enter\(context\), which <function"
        ):
            around(no_argument)  # type: ignore[arg-type]


class TestOnError:
    async def test_it_handles_its_types_and_declines_others(self) -> None:
        handled: list[Exception] = []

        @on_error(KeyError, ValueError)
        def missing(context: Context, exception: Exception) -> None:
            handled.append(exception)

        assert repr(missing) == "<Interceptor 'missing': error>"
        key, value, other = KeyError(), UnicodeError(), TypeError()
        await execute(None, missing, failing(key))
        await execute(None, missing, failing(value))  # a subclass counts
        context = Context()
        with pytest.raises(TypeError) as caught:
            await execute(context, missing, failing(other))
        assert handled == [key, value]
        assert caught.value is other
        assert context.suppressed == ()
        assert other.__notes__ == ["raised in interceptor 'failing', stage enter"]

    async def test_it_may_be_async(self) -> None:
        handled: list[Exception] = []

        @on_error(KeyError)
        async def missing(context: Context, exception: KeyError) -> Context:
            handled.append(exception)
            return Context({"handled": True})

        context = await execute(None, missing, failing(KeyError()))
        assert len(handled) == 1
        assert context["handled"] is True

    async def test_it_may_replace_what_it_handles(self) -> None:
        @on_error(KeyError)
        def refuse(context: Context, exception: KeyError) -> None:
            raise ValueError("new") from exception

        with pytest.raises(ValueError, match="new"):
            await execute(None, refuse, failing(KeyError()))

    @pytest.mark.parametrize(
        ("clause", "handles"),
        [
            ({"interceptor": "failing"}, True),
            ({"interceptor": "other"}, False),
            ({"stage": "enter"}, True),
            ({"stage": "leave"}, False),
            ({"interceptor": "failing", "stage": "enter"}, True),
            ({"interceptor": "failing", "stage": "leave"}, False),
            ({"interceptor": "other", "stage": "enter"}, False),
        ],
    )
    async def test_it_can_be_restricted_to_an_interceptor_or_a_stage(
        self, clause: dict[str, Any], handles: bool
    ) -> None:
        handled: list[Exception] = []
        handler = on_error(KeyError, name="handler", **clause)(lambda context, exception: handled.append(exception))
        chain = handler, failing(KeyError())
        if handles:
            await execute(None, *chain)
        else:
            with pytest.raises(KeyError):
                await execute(None, *chain)
        assert bool(handled) is handles
        assert handler.name == "handler"

    async def test_the_inner_one_of_two_that_match_handles(self) -> None:
        handled: list[str] = []
        outer = on_error(KeyError)(lambda context, exception: handled.append("outer"))
        inner = on_error(KeyError, interceptor="failing")(lambda context, exception: handled.append("inner"))
        await execute(None, outer, inner, failing(KeyError()))
        await execute(None, outer, inner, failing(KeyError(), name="other"))
        assert handled == ["inner", "outer"]

    async def test_without_a_failure_in_the_context_only_the_type_counts(self) -> None:
        """An application's test may call the stage directly."""
        handled: list[Exception] = []
        handler = on_error(KeyError, interceptor="a")(lambda context, exception: handled.append(exception))
        assert handler.error is not None
        handler.error(Context(), KeyError())
        with pytest.raises(ValueError, match="boom"):
            handler.error(Context(), ValueError("boom"))
        assert len(handled) == 1

    def test_it_takes_at_least_one_type(self) -> None:
        with pytest.raises(
            TypeError, match=r"@on_error takes the exception types to handle, as in @on_error\(KeyError\)"
        ):
            on_error()

    @pytest.mark.parametrize(
        "wrong", [42, "KeyError", int, KeyError(), KeyboardInterrupt, (KeyError,), print], ids=repr
    )
    def test_a_type_is_a_subclass_of_exception(self, wrong: Any) -> None:
        with pytest.raises(TypeError) as caught:
            on_error(KeyError, wrong)
        assert str(caught.value) == f"@on_error takes subclasses of Exception, not {wrong!r}"

    def test_a_stage_is_one_of_three(self) -> None:
        with pytest.raises(ValueError, match=r"@on_error\(stage=…\) is one of enter, leave, error, not 'entre'"):
            on_error(KeyError, stage="entre")  # type: ignore[arg-type]

    def test_the_interceptor_is_given_by_name(self) -> None:
        link = failing(KeyError())
        with pytest.raises(
            TypeError, match=r"@on_error\(interceptor=…\) is the name of an interceptor, not <Interceptor 'failing'"
        ):
            on_error(KeyError, interceptor=link)  # type: ignore[arg-type]

    def test_the_function_must_take_context_and_exception(self) -> None:
        with pytest.raises(
            TypeError, match=r"error of interceptor '<lambda>' is called as error\(context, exception\)"
        ):
            on_error(KeyError)(lambda context: None)  # type: ignore[arg-type, misc]

    def test_the_function_must_have_a_name(self) -> None:
        with pytest.raises(TypeError, match="@on_error takes a function with a name, not 42"):
            on_error(KeyError)(42)  # type: ignore[arg-type]
