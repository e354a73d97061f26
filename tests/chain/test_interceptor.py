"""Interceptors are checked when they are made, and messages hold the wrong value."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from aiohttp_interceptors.chain import Context, execute
from aiohttp_interceptors.interceptor import Interceptor, as_interceptor, interceptors_of


def plain(context: Context) -> None:
    """A stage."""


async def asynchronous(context: Context) -> None:
    """A stage."""


def handler(context: Context, exception: Exception) -> None:
    """An error stage."""


def generator(context: Context) -> Iterator[None]:
    """Not a stage."""
    yield


async def async_generator(context: Context) -> AsyncIterator[None]:
    """Not a stage, but @around takes it."""
    yield


class Callable:
    """A callable object."""

    def __call__(self, context: Context) -> None:
        """A stage."""


class TestInterceptor:
    """The arguments of ``Interceptor``."""

    @pytest.mark.parametrize(
        "stage", [plain, asynchronous, Callable(), Callable().__call__, functools.partial(plain), print]
    )
    def test_a_stage_is_any_callable_that_takes_a_context(self, stage: Any) -> None:
        interceptor: Interceptor[Context] = Interceptor("a", enter=stage)
        assert (interceptor.name, interceptor.enter, interceptor.leave, interceptor.error) == ("a", stage, None, None)

    def test_the_stages_come_in_order(self) -> None:
        interceptor = Interceptor("a", plain, asynchronous, handler)
        assert (interceptor.enter, interceptor.leave, interceptor.error) == (plain, asynchronous, handler)

    def test_an_interceptor_is_frozen(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            Interceptor("a", plain).name = "b"  # type: ignore[misc]

    def test_the_repr_has_name_and_stages(self) -> None:
        assert repr(Interceptor("a", plain, error=handler)) == "<Interceptor 'a': enter, error>"

    def test_interceptors_are_compared_by_identity(self) -> None:
        one, two = Interceptor("a", plain), Interceptor("a", plain)
        assert len({one, two}) == 2

    @pytest.mark.parametrize("name", [None, 42, b"a", plain])
    def test_a_name_is_a_str(self, name: Any) -> None:
        with pytest.raises(TypeError) as caught:
            Interceptor(name, plain)
        assert str(caught.value) == f"an interceptor's name is a str, not {name!r}"

    @pytest.mark.parametrize("name", ["", "  "])
    def test_a_name_is_not_blank(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"an interceptor's name must not be blank, as '{name}' is"):
            Interceptor(name, plain)

    def test_an_interceptor_has_at_least_one_stage(self) -> None:
        with pytest.raises(ValueError, match="interceptor 'a' has no stage; give it enter, leave or error"):
            Interceptor("a")

    @pytest.mark.parametrize("stage", ["enter", "leave", "error"])
    @pytest.mark.parametrize("value", [42, "plain", (), Callable, Interceptor("b", plain)], ids=repr)
    def test_a_stage_is_not_a_class_or_another_value(self, stage: str, value: Any) -> None:
        with pytest.raises(TypeError) as caught:
            Interceptor("a", **{stage: value})
        assert str(caught.value) == f"{stage} of interceptor 'a' is a plain or an async function, not {value!r}"

    @pytest.mark.parametrize("stage", ["enter", "leave", "error"])
    @pytest.mark.parametrize("function", [generator, async_generator, functools.partial(generator)])
    def test_a_generator_function_is_refused_in_favour_of_around(self, stage: str, function: Any) -> None:
        with pytest.raises(TypeError) as caught:
            Interceptor("a", **{stage: function})
        message = str(caught.value)
        assert message.startswith(f"{stage} of interceptor 'a' is a generator, {function!r};")
        assert message.endswith("decorate an async generator with one yield with @around")

    @pytest.mark.parametrize(
        ("stage", "function", "call"),
        [
            ("enter", lambda: None, "enter(context)"),
            ("enter", handler, "enter(context)"),
            ("leave", handler, "leave(context)"),
            ("error", plain, "error(context, exception)"),
            ("error", lambda *, context, exception: None, "error(context, exception)"),
            ("enter", lambda context, *, user: None, "enter(context)"),
        ],
    )
    def test_a_stage_must_take_its_arguments(self, stage: str, function: Any, call: str) -> None:
        with pytest.raises(TypeError) as caught:
            Interceptor("a", **{stage: function})
        message = f"{stage} of interceptor 'a' is called as {call}, which {function!r} does not take: "
        assert str(caught.value).startswith(message)
        assert len(str(caught.value)) > len(message)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__

    def test_a_stage_may_have_further_parameters_with_defaults(self) -> None:
        Interceptor("a", enter=lambda context, user="alice": None, error=lambda *args, **kwargs: None)

    def test_a_callable_without_a_signature_is_not_checked(self) -> None:
        assert Interceptor("a", enter=dict.update).enter is dict.update


class Timer:
    """A class with stage methods and a field."""

    def __init__(self, clock: list[str]) -> None:
        self.clock = clock

    def enter(self, context: Context) -> None:
        """A stage."""
        self.clock.append("start")

    async def leave(self, context: Context) -> None:
        """A stage."""
        self._stop()

    def _stop(self) -> None:
        self.clock.append("stop")


class TestAsInterceptor:
    async def test_an_object_with_stage_methods_becomes_an_interceptor(self) -> None:
        clock: list[str] = []
        interceptor = as_interceptor(Timer(clock))
        assert repr(interceptor) == "<Interceptor 'Timer': enter, leave>"
        await execute(None, Timer(clock), interceptor)
        assert clock == ["start", "start", "stop", "stop"]

    def test_the_name_attribute_of_an_object_is_the_name(self) -> None:
        timer: Any = Timer([])
        timer.name = "request timer"
        assert as_interceptor(timer).name == "request timer"

    def test_a_name_that_is_none_counts_as_absent(self) -> None:
        timer: Any = Timer([])
        timer.name = None
        assert as_interceptor(timer).name == "Timer"

    def test_an_interceptor_is_returned_unchanged(self) -> None:
        interceptor = Interceptor("a", plain)
        assert as_interceptor(interceptor) is interceptor

    def test_inherited_stages_count(self) -> None:
        class Stopwatch(Timer):
            def error(self, context: Context, exception: Exception) -> None: ...

        assert repr(as_interceptor(Stopwatch([]))) == "<Interceptor 'Stopwatch': enter, leave, error>"

    def test_a_class_is_refused(self) -> None:
        with pytest.raises(TypeError) as caught:
            as_interceptor(Timer)
        assert str(caught.value) == f"{Timer!r} is a class; pass an instance of it"

    @pytest.mark.parametrize(
        "candidate", [None, 42, "enter", {"enter": plain}, object(), plain, asynchronous, len], ids=repr
    )
    def test_a_value_without_stages_is_refused(self, candidate: object) -> None:
        with pytest.raises(TypeError) as caught:
            as_interceptor(candidate)
        assert str(caught.value) == (
            f"{candidate!r} is not an interceptor; use Interceptor(name, enter=…), @before, @after, @around, "
            "@on_error, or an object with enter, leave or error methods"
        )

    def test_a_function_with_a_stage_attribute_is_refused(self) -> None:
        def function(context: Context) -> None: ...

        function.enter = plain  # type: ignore[attr-defined]
        with pytest.raises(TypeError, match=r"function at .* is not an interceptor"):
            as_interceptor(function)

    def test_stage_attributes_that_are_not_callable_do_not_count(self) -> None:
        class Door:
            enter = "left"

        with pytest.raises(TypeError, match="is not an interceptor"):
            as_interceptor(Door())

    def test_other_public_methods_are_refused(self) -> None:
        """A misspelt stage would never run."""

        class Misspelt(Timer):
            def on_error(self, context: Context, exception: Exception) -> None: ...

        class Derived(Misspelt):
            pass

        for candidate in (Misspelt([]), Derived([])):
            with pytest.raises(TypeError) as caught:
                as_interceptor(candidate)
            assert str(caught.value) == (
                f"{type(candidate).__name__} has the public method 'on_error', which is not a stage; "
                "the stages are enter, leave and error; a helper method starts with an underscore: '_on_error'"
            )

    def test_stage_methods_are_checked_like_functions(self) -> None:
        class Wrong:
            def enter(self) -> None: ...

        with pytest.raises(TypeError, match=r"enter of interceptor 'Wrong' is called as enter\(context\)"):
            as_interceptor(Wrong())

    def test_public_attributes_and_properties_are_allowed(self) -> None:
        class Configured(Timer):
            limit = 3

            @property
            def running(self) -> bool:
                return True

        assert as_interceptor(Configured([])).name == "Configured"


class TestInterceptorsOf:
    def test_sequences_are_flattened_and_none_is_skipped(self) -> None:
        a, b = Interceptor("a", plain), Interceptor("b", plain)
        assert interceptors_of([a, None, (b, [a, None]), []]) == (a, b, a)
        assert interceptors_of(iter((a, b))) == (a, b)
        assert interceptors_of([iter((a, b))]) == (a, b)

    def test_none_can_be_refused(self) -> None:
        with pytest.raises(TypeError, match="None is not an interceptor"):
            interceptors_of([[None]], skip_none=False)

    @pytest.mark.parametrize(
        "unordered", [{Interceptor("a", plain)}, frozenset({Interceptor("a", plain)}), {"a": 1}, Context()]
    )
    def test_unordered_collections_are_refused(self, unordered: object) -> None:
        with pytest.raises(TypeError, match="is not an interceptor"):
            interceptors_of([unordered])
