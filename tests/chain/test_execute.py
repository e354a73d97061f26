"""``execute``: order, queue, predicates, errors, nesting and cancellation, as its docstring specifies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest
from aiohttp import web

from aiohttp_interceptors.chain import Context, Execution, compile_chain, execute, run_execution
from aiohttp_interceptors.decorators import around
from aiohttp_interceptors.exceptions import QueueClosed
from aiohttp_interceptors.interceptor import Interceptor
from aiohttp_interceptors.testing import request_context, run_chain
from tests.stages import raising, returning
from tests.waiting import task_switch

Function = Callable[..., Any]


def suppressed(context: Context) -> tuple[Exception, ...]:
    return tuple(failure.exception for failure in context.suppressed)


def nothing(*_: object) -> None:
    """A stage that does nothing."""


def declines(_: Context, exception: Exception) -> None:
    """An error stage that declines."""
    raise exception


class Trail(list[str]):
    """Records what ran, as ``enter a``, and makes the interceptors that it records: all plain or all async."""

    def __init__(self, flavour: str) -> None:
        self.flavour = flavour

    def link(
        self,
        name: str,
        enter: Function | None = nothing,
        leave: Function | None = nothing,
        error: Function | None = None,
    ) -> Interceptor[Any]:
        """Make an interceptor whose stages are recorded and then call the functions."""
        return Interceptor(
            name,
            self._stage(f"enter {name}", enter),
            self._stage(f"leave {name}", leave),
            self._stage(f"error {name}", error),
        )

    def _stage(self, entry: str, function: Function | None) -> Function | None:
        def plain(*args: object) -> object:
            self.append(entry)
            return None if function is None else function(*args)

        def takes_an_exception(context: Context, exception: Exception) -> object:
            return plain(context, exception)

        def takes_none(context: Context) -> object:
            return plain(context)

        async def awaits(context: Context) -> object:
            await task_switch()
            return plain(context)

        async def awaits_with_an_exception(context: Context, exception: Exception) -> object:
            await task_switch()
            return plain(context, exception)

        if function is None:
            return None
        if entry.startswith("error"):
            return takes_an_exception if self.flavour == "plain" else awaits_with_an_exception
        return takes_none if self.flavour == "plain" else awaits


@pytest.fixture(params=["plain", "async"])
def trail(request: pytest.FixtureRequest) -> Trail:
    """Run a test with plain stages and with async stages."""
    return Trail(request.param)


class TestOrder:
    @pytest.mark.parametrize("supply", ["enqueued", "arguments", "list", "both"])
    async def test_enter_runs_in_order_and_leave_in_reverse(self, trail: Trail, supply: str) -> None:
        a, b, c = trail.link("a"), trail.link("b"), trail.link("c")
        context = Context()
        if supply == "enqueued":
            context.enqueue(a, b, c)
            await execute(context)
        elif supply == "arguments":
            await execute(context, a, b, c)
        elif supply == "list":
            await execute(context, [a, b, c])
        else:
            context.enqueue(a)
            await execute(context, b, c)
        assert trail == ["enter a", "enter b", "enter c", "leave c", "leave b", "leave a"]

    async def test_interceptors_injected_before_the_start_precede_enqueued_ones(self, trail: Trail) -> None:
        context = Context()
        context.enqueue(trail.link("b"))
        context.inject(trail.link("a"))
        assert [link.name for link in context.queue] == ["a", "b"]
        await execute(context)
        assert trail[:2] == ["enter a", "enter b"]

    async def test_absent_stages_are_skipped_and_interceptors_without_enter_leave(self, trail: Trail) -> None:
        await execute(None, trail.link("a"), trail.link("b", enter=None), trail.link("c", leave=None))
        assert trail == ["enter a", "enter c", "leave b", "leave a"]

    async def test_the_chain_leaves_once_the_queue_is_empty(self, trail: Trail) -> None:
        context = Context()
        assert await execute(context, trail.link("a")) is context
        assert trail == ["enter a", "leave a"]

    async def test_an_empty_chain_returns_the_context(self) -> None:
        context = Context()
        assert await execute(context) is context
        assert isinstance(await execute(), Context)
        assert isinstance(await execute(None), Context)

    async def test_later_stages_get_the_context_that_a_stage_returned(self, trail: Trail) -> None:
        seen: dict[str, Context] = {}
        began, entered, left = Context({"user": "alice"}), Context(), Context()
        came_out = await execute(
            began,
            trail.link("a", leave=lambda context: seen.update(leave_a=context)),
            trail.link("b", enter=returning(entered), leave=lambda context: seen.update(leave_b=context) or left),
            trail.link("c", enter=lambda context: seen.update(enter_c=context)),
        )
        assert seen["enter_c"] is entered
        assert seen["leave_b"] is entered
        assert seen["leave_a"] is left
        assert came_out is left

    async def test_a_returned_context_keeps_execution_id_and_suppressed(self, trail: Trail) -> None:
        first, second = KeyError("first"), KeyError("second")
        context = Context()
        came_out = await execute(
            context,
            trail.link("a", leave=returning(Context({"kept": True}))),
            trail.link("b", error=nothing),
            trail.link("c", enter=raising(first), error=raising(second)),
        )
        assert came_out is not context
        assert came_out["kept"] is True
        assert came_out.execution_id == context.execution_id
        assert [failure.exception for failure in came_out.suppressed] == [first]

    async def test_outer_stages_get_the_context_that_an_error_stage_returned(self, trail: Trail) -> None:
        other, seen = Context(), []
        came_out = await execute(
            None,
            trail.link("a", leave=seen.append),
            trail.link("b", error=returning(other)),
            trail.link("c", enter=raising(KeyError())),
        )
        assert seen == [other]
        assert seen[0] is came_out is other

    async def test_a_replaced_context_can_be_executed_again(self, trail: Trail) -> None:
        began = Context()
        await execute(began, trail.link("a", enter=returning(Context())))
        assert await execute(began, trail.link("b")) is began

    async def test_an_interceptor_can_be_in_a_chain_twice(self, trail: Trail) -> None:
        a = trail.link("a")
        await execute(None, a, a)
        assert trail == ["enter a", "enter a", "leave a", "leave a"]

    async def test_a_context_can_be_executed_again(self, trail: Trail) -> None:
        failed, replaced = KeyError(), KeyError()
        context = Context()
        with pytest.raises(KeyError):
            await execute(context, trail.link("a", enter=raising(replaced), error=raising(failed)))
        assert context.error is not None
        assert [failure.exception for failure in context.suppressed] == [replaced]
        errors: list[object] = []
        await execute(context, trail.link("b", enter=lambda context: errors.append(context.error)))
        assert errors == [None]
        assert context.suppressed == ()

    async def test_the_first_argument_is_a_context(self, trail: Trail) -> None:
        with pytest.raises(TypeError, match="execute takes a context first, not <Interceptor 'a'"):
            await execute(trail.link("a"))

    async def test_a_wrong_argument_is_refused_before_any_stage_runs(self, trail: Trail) -> None:
        with pytest.raises(TypeError, match="42 is not an interceptor"):
            await execute(None, trail.link("a"), 42)
        assert trail == []

    async def test_none_is_skipped(self, trail: Trail) -> None:
        await execute(None, None, trail.link("a"), [None, trail.link("b")])
        assert trail[:2] == ["enter a", "enter b"]


class TestTheQueue:
    async def test_enqueue_appends(self, trail: Trail) -> None:
        z = trail.link("z")
        await execute(None, trail.link("a"), trail.link("b", enter=lambda context: context.enqueue(z)), trail.link("c"))
        assert trail == [f"enter {name}" for name in "abcz"] + [f"leave {name}" for name in "zcba"]

    async def test_inject_prepends(self, trail: Trail) -> None:
        y, z = trail.link("y"), trail.link("z")
        await execute(
            None, trail.link("a"), trail.link("b", enter=lambda context: context.inject(y, z)), trail.link("c")
        )
        assert trail == [f"enter {name}" for name in "abyzc"] + [f"leave {name}" for name in "czyba"]

    async def test_the_last_interceptor_can_enqueue_and_inject(self, trail: Trail) -> None:
        def more(context: Context) -> None:
            context.enqueue(trail.link("z"))
            context.inject(trail.link("y"))

        await execute(None, trail.link("a", enter=more))
        assert trail[:3] == ["enter a", "enter y", "enter z"]

    async def test_nested_sequences_are_flattened(self, trail: Trail) -> None:
        links = {name: trail.link(name) for name in "abcdef"}
        context = Context()
        context.enqueue(links["b"], [links["c"], (links["d"],)])
        context.enqueue((links["e"], links["f"]))
        context.inject([links["a"]])
        assert [link.name for link in context.queue] == list("abcdef")

    async def test_the_queue_holds_the_interceptors_not_yet_entered(self, trail: Trail) -> None:
        seen: list[list[str]] = []

        def record(context: Context, *_: object) -> None:
            seen.append([link.name for link in context.queue])

        await execute(
            None,
            trail.link("a", record, record, record),
            trail.link("b", enter=record),
            trail.link("c", enter=record),
            trail.link("d"),
        )
        assert seen == [["b", "c", "d"], ["c", "d"], ["d"], []]

    async def test_the_queue_is_empty_in_error_stages(self, trail: Trail) -> None:
        seen: list[object] = []
        record = trail.link("a", error=lambda context, _: seen.append(context.queue))
        await execute(None, record, trail.link("b", enter=raising(KeyError())), trail.link("c"))
        assert seen == [()]

    async def test_terminate_ends_entering(self, trail: Trail) -> None:
        """The interceptor that terminates leaves too."""
        await execute(None, trail.link("a"), trail.link("b", enter=Context.terminate), trail.link("c"))
        assert trail == ["enter a", "enter b", "leave b", "leave a"]

    @pytest.mark.parametrize("verb", ["enqueue", "inject", "terminate", "terminate_when"])
    @pytest.mark.parametrize("stage", ["leave", "error"])
    async def test_the_queue_cannot_change_once_the_chain_leaves(self, trail: Trail, verb: str, stage: str) -> None:
        refused: list[str] = []

        def attempt(context: Context, *_: object) -> None:
            argument = {"terminate": (), "terminate_when": (bool,)}.get(verb, (trail.link("z"),))
            with pytest.raises(QueueClosed) as caught:
                getattr(context, verb)(*argument)
            refused.append(str(caught.value))

        failing = trail.link("c", enter=raising(KeyError()) if stage == "error" else nothing)
        context = await execute(None, trail.link("a"), trail.link("b", leave=attempt, error=attempt), failing)
        assert len(refused) == 1
        assert refused[0].startswith(f"{verb}() was called in stage {stage} of 'b';")
        assert trail[-2:] == [f"{stage} b", "leave a"]
        assert "enter z" not in trail
        assert context.queue == ()

    async def test_queue_closed_is_offered_to_error_stages(self, trail: Trail) -> None:
        offered: list[Exception] = []
        await execute(
            None,
            trail.link("a", error=lambda _, exception: offered.append(exception)),
            trail.link("b", leave=Context.terminate),
        )
        assert [type(exception) for exception in offered] == [QueueClosed]

    async def test_enqueueing_a_wrong_value_is_an_error_of_the_stage(self, trail: Trail) -> None:
        with pytest.raises(TypeError, match="'z' is not an interceptor") as caught:
            await execute(None, trail.link("b", enter=lambda context: context.enqueue("z")))
        assert caught.value.__notes__ == ["raised in interceptor 'b', stage enter"]


class TestTerminators:
    @pytest.mark.parametrize("truth", [True, 1, "yes"])
    async def test_a_true_predicate_ends_entering(self, trail: Trail, truth: object) -> None:
        """Any true value counts, and one true predicate of several is enough."""
        context = Context()
        context.terminate_when(lambda context: None)
        context.terminate_when(lambda context: truth if "done" in context else 0)
        context.terminate_when(lambda context: False)
        await execute(
            context, trail.link("a"), trail.link("b", enter=lambda context: context.update(done=True)), trail.link("c")
        )
        assert trail == ["enter a", "enter b", "leave b", "leave a"]

    async def test_predicates_are_evaluated_only_after_an_enter_that_ran(self, trail: Trail) -> None:
        """A predicate that is true from the start takes effect after the first ``enter``."""
        context = Context()
        context.terminate_when(lambda context: trail.append("evaluated") or True)
        await execute(context, trail.link("a", enter=None), trail.link("b"), trail.link("c"))
        assert trail == ["enter b", "evaluated", "leave b", "leave a"]

    async def test_a_predicate_is_evaluated_after_every_enter(self, trail: Trail) -> None:
        context = Context()
        context.terminate_when(lambda context: trail.append("evaluated"))
        await execute(
            context, trail.link("a"), trail.link("b", enter=None), trail.link("c"), trail.link("d", error=nothing)
        )
        assert trail[:6] == ["enter a", "evaluated", "enter c", "evaluated", "enter d", "evaluated"]
        assert trail.count("evaluated") == 3

    async def test_a_predicate_added_in_enter_is_evaluated_after_that_enter(self, trail: Trail) -> None:
        await execute(
            None, trail.link("a", enter=lambda context: context.terminate_when(returning(True))), trail.link("b")
        )
        assert trail == ["enter a", "leave a"]

    async def test_no_predicate_is_evaluated_after_an_error(self, trail: Trail) -> None:
        context = Context()
        context.terminate_when(lambda context: trail.append("evaluated"))
        await execute(context, trail.link("a", error=nothing), trail.link("b", enter=raising(KeyError())))
        assert trail == ["enter a", "evaluated", "enter b", "error a"]

    async def test_an_exception_in_a_predicate_belongs_to_the_interceptor_that_ran(self, trail: Trail) -> None:
        where: list[object] = []
        context = Context()
        context.terminate_when(lambda context: 1 / 0 if len(trail) > 1 else False)
        handler = trail.link(
            "b", error=lambda context, _: where.append((context.error.interceptor, context.error.stage))
        )
        await execute(context, trail.link("a"), handler, trail.link("c"))
        assert where == [("b", "enter")]
        assert trail == ["enter a", "enter b", "error b", "leave a"]

    async def test_a_terminated_chain_does_not_call_its_handler(self, trail: Trail) -> None:
        handled: list[Context] = []

        async def handler(context: Context) -> None:
            handled.append(context)

        await run_execution(Execution(Context(), compile_chain((trail.link("a", enter=Context.terminate),))), handler)
        assert handled == []
        context = Context()
        await run_execution(Execution(context, compile_chain((trail.link("a"),))), handler)
        assert len(handled) == 1
        assert handled[0] is context


class TestResponses:
    """A ``RequestContext`` in the chain, without aiohttp's server; ``tests/web`` has the rest."""

    async def test_an_attached_response_ends_entering(self, trail: Trail) -> None:
        response = web.Response()

        def attach(context: Any) -> None:
            context.response = response

        context = await run_chain(request_context(), trail.link("a"), trail.link("b", enter=attach), trail.link("c"))
        assert trail == ["enter a", "enter b", "leave b", "leave a"]
        assert context.response is response

    async def test_attaching_a_wrong_response_is_an_error_of_the_stage(self, trail: Trail) -> None:
        """An ``error`` stage can attach a response."""
        heard: list[str] = []

        def attach(context: Any) -> None:
            context.response = {"status": 200}

        def respond(context: Any, exception: Exception) -> None:
            heard.append(f"{context.error.interceptor}: {exception}")
            context.response = web.Response(status=500)

        context = await run_chain(
            request_context(), trail.link("a"), trail.link("b", error=respond), trail.link("c", enter=attach)
        )
        assert heard == ["c: context.response is a web.StreamResponse or None, not {'status': 200}"]
        assert context.response is not None
        assert context.response.status == 500
        assert trail == ["enter a", "enter b", "enter c", "error b", "leave a"]

    async def test_without_a_response_the_whole_chain_runs(self, trail: Trail) -> None:
        context = await run_chain(request_context(), trail.link("a"), trail.link("b"))
        assert trail == ["enter a", "enter b", "leave b", "leave a"]
        assert context.response is None

    @pytest.mark.parametrize("stage", ["enter", "leave", "error"])
    async def test_a_raised_http_exception_is_a_response(self, trail: Trail, stage: str) -> None:
        """It ends entering, and no ``error`` stage is called."""
        refusal, seen = web.HTTPForbidden(), []
        stages = {"enter": raising(KeyError()) if stage == "error" else nothing, stage: raising(refusal)}
        context = await run_chain(
            request_context(),
            trail.link("a", leave=lambda context: seen.append(context.error), error=declines),
            trail.link("b", **stages),
            trail.link("c"),
        )
        assert context.response is refusal
        assert seen == [None]
        expected = {
            "enter": ["enter a", "enter b", "leave b", "leave a"],
            "leave": ["enter a", "enter b", "enter c", "leave c", "leave b", "leave a"],
            "error": ["enter a", "enter b", "error b", "leave a"],
        }
        assert trail == expected[stage]

    @pytest.mark.parametrize("stage", ["enter", "leave"])
    async def test_an_http_exception_raised_after_a_caught_error_leaves_no_error(
        self, trail: Trail, stage: str
    ) -> None:
        seen: list[object] = []

        async def nest(context: Any) -> None:
            with pytest.raises(KeyError):
                await run_chain(context, trail.link("inner", enter=raising(KeyError())))
            raise web.HTTPForbidden

        await run_chain(
            request_context(),
            trail.link("a", leave=lambda context: seen.append(context.error)),
            Interceptor("b", **{stage: nest}),
        )
        assert seen == [None]

    @pytest.mark.parametrize("when", ["before", "after"])
    async def test_a_generator_may_raise_an_http_exception(self, trail: Trail, when: str) -> None:
        refusal = web.HTTPForbidden()

        @around
        async def bracket(context: Any) -> Any:
            if when == "before":
                raise refusal
            yield
            raise refusal

        context = await run_chain(request_context(), trail.link("a"), bracket)
        assert context.response is refusal
        assert trail == ["enter a", "leave a"]

    async def test_bindings_are_reset_when_a_leave_raises_a_response(self, trail: Trail) -> None:
        variable: ContextVar[int] = ContextVar("variable", default=0)
        seen: list[int] = []
        record = lambda context: seen.append(variable.get())
        await run_chain(
            request_context(),
            trail.link("a", leave=record),
            trail.link("b", lambda context: context.bind(variable, 1), raising(web.HTTPForbidden())),
            trail.link("c", leave=record),
        )
        assert seen == [1, 0]

    async def test_a_plain_context_cannot_replace_a_request_context(self, trail: Trail) -> None:
        with pytest.raises(TypeError, match="a stage returns None or a RequestContext"):
            await run_chain(request_context(), trail.link("a", enter=returning(Context())))


class TestErrors:
    async def test_an_unhandled_exception_is_raised_with_a_note(self, trail: Trail) -> None:
        """It is the exception itself, not a wrapper as in Pedestal."""
        boom = KeyError("boom")
        with pytest.raises(KeyError) as caught:
            await execute(None, trail.link("a"), trail.link("b", error=declines), trail.link("c", enter=raising(boom)))
        assert caught.value is boom
        assert boom.__cause__ is None
        assert boom.__notes__ == ["raised in interceptor 'c', stage enter"]
        assert trail == ["enter a", "enter b", "enter c", "error b"]

    async def test_an_exception_raised_again_gets_each_note_once(self, trail: Trail) -> None:
        boom = KeyError("boom")
        for _ in range(2):
            with pytest.raises(KeyError):
                await execute(None, trail.link("a", enter=raising(boom)))
        with pytest.raises(KeyError):
            await execute(None, trail.link("b", leave=raising(boom)))
        assert boom.__notes__ == ["raised in interceptor 'a', stage enter", "raised in interceptor 'b', stage leave"]

    async def test_once_handled_the_outer_interceptors_leave(self, trail: Trail) -> None:
        """An interceptor that handles an exception does not leave."""
        await execute(
            None,
            *(trail.link(name) for name in "ab"),
            trail.link("c", error=nothing),
            *(trail.link(name) for name in "de"),
            trail.link("f", enter=raising(KeyError())),
            trail.link("g"),
        )
        assert trail == [*(f"enter {name}" for name in "abcdef"), "error c", "leave b", "leave a"]

    async def test_an_interceptor_whose_enter_raised_is_offered_the_exception_first(self, trail: Trail) -> None:
        await execute(None, trail.link("a", error=nothing), trail.link("b", raising(KeyError()), error=declines))
        assert trail == ["enter a", "enter b", "error b", "error a"]

    async def test_an_interceptor_whose_leave_raised_is_offered_the_exception_first(self, trail: Trail) -> None:
        """In Pedestal the next outer interceptor is first."""
        await execute(
            None,
            trail.link("a"),
            trail.link("b", leave=raising(KeyError()), error=nothing),
            trail.link("c", error=nothing),
        )
        assert trail == ["enter a", "enter b", "enter c", "leave c", "leave b", "error b", "leave a"]

    @pytest.mark.parametrize(("name", "stage"), [("b", "enter"), ("d", "enter"), ("b", "leave"), ("a", "leave")])
    async def test_absent_stages_do_not_change_who_raised(self, name: str, stage: str) -> None:
        chain = {
            "a": {"leave": nothing},
            "b": {"enter": nothing, "leave": nothing},
            "c": {"error": declines},
            "d": {"enter": nothing},
        }
        boom = KeyError("boom")
        chain[name][stage] = raising(boom)
        with pytest.raises(KeyError):
            await execute(None, *(Interceptor(name, **stages) for name, stages in chain.items()))
        assert boom.__notes__ == [f"raised in interceptor {name!r}, stage {stage}"]

    async def test_a_leave_that_raised_does_not_run_again(self, trail: Trail) -> None:
        await execute(
            None,
            trail.link("a"),
            trail.link("b", error=nothing),
            trail.link("c", leave=raising(KeyError())),
            trail.link("d"),
        )
        assert trail[4:] == ["leave d", "leave c", "error b", "leave a"]

    async def test_a_second_error_after_a_handled_one_is_offered_outward_too(self, trail: Trail) -> None:
        first, second = KeyError("first"), KeyError("second")
        context = await execute(
            None,
            trail.link("a", error=nothing),
            trail.link("b", leave=raising(second)),
            trail.link("c", error=nothing),
            trail.link("d", enter=raising(first)),
        )
        assert trail[4:] == ["error c", "leave b", "error a"]
        assert context.suppressed == ()

    @pytest.mark.parametrize("stage", ["enter", "leave", "error"])
    async def test_context_error_holds_interceptor_stage_exception_and_execution_id(
        self, trail: Trail, stage: str
    ) -> None:
        """Attributes of the exception do not matter."""

        class Boom(Exception):
            stage = interceptor = execution_id = "not this"

        seen = []
        boom = Boom("boom")
        context = Context(execution_id="run 1")
        stages = {"enter": raising(KeyError()) if stage == "error" else nothing, stage: raising(boom)}
        await execute(
            context, trail.link("a", error=lambda context, _: seen.append(context.error)), trail.link("b", **stages)
        )
        (failure,) = seen
        assert (failure.interceptor, failure.stage, failure.execution_id) == ("b", stage, "run 1")
        assert failure.exception is boom
        assert str(failure) == f"Boom in interceptor 'b', stage {stage}: boom"

    async def test_a_failure_without_a_message_ends_without_a_colon(self, trail: Trail) -> None:
        seen = []
        await execute(
            None, trail.link("a", raising(ValueError()), error=lambda context, _: seen.append(str(context.error)))
        )
        assert seen == ["ValueError in interceptor 'a', stage enter"]

    async def test_context_error_is_set_until_the_exception_is_handled(self, trail: Trail) -> None:
        seen: list[bool] = []

        def record(context: Context, *_: object) -> None:
            seen.append(context.error is not None)

        def record_and_decline(context: Context, exception: Exception) -> None:
            record(context)
            raise exception

        context = await execute(
            None,
            trail.link("a", record, record),
            trail.link("b", error=record),
            trail.link("c", error=record_and_decline),
            trail.link("d", enter=raising(KeyError())),
        )
        assert seen == [False, True, True, False]
        assert context.error is None

    async def test_raising_the_same_exception_declines(self, trail: Trail) -> None:
        """``raise exception`` and ``raise context.error.exception`` are equivalent."""
        boom = KeyError("boom")

        def raises_from_the_context(context: Context, exception: Exception) -> None:
            assert context.error is not None
            raise context.error.exception

        offered: list[object] = []

        def handles(context: Context, exception: Exception) -> None:
            offered.append((exception, context.error and (context.error.interceptor, context.error.stage)))

        context = await execute(
            None,
            trail.link("a", error=handles),
            trail.link("b", error=raises_from_the_context),
            trail.link("c", error=declines),
            trail.link("d", enter=raising(boom)),
        )
        assert offered == [(boom, ("d", "enter"))]
        assert context.suppressed == ()

    async def test_with_error_of_the_same_exception_declines(self, trail: Trail) -> None:
        boom, offered = KeyError("boom"), []
        context = await execute(
            None,
            trail.link("a", error=lambda _, exception: offered.append(exception)),
            trail.link("b", error=lambda context, exception: context.with_error(exception)),
            trail.link("c", enter=raising(boom)),
        )
        assert offered == [boom]
        assert trail == ["enter a", "enter b", "enter c", "error b", "error a"]
        assert context.suppressed == ()

    @pytest.mark.parametrize("how", ["raised", "attached"])
    async def test_another_exception_replaces_it(self, trail: Trail, how: str) -> None:
        old, new, offered = KeyError("old"), ValueError("new"), []
        replace = raising(new) if how == "raised" else lambda context, _: context.with_error(new)
        context = await execute(
            None,
            trail.link(
                "a", error=lambda context, exception: offered.append((exception, context.error, context.suppressed))
            ),
            trail.link("b", error=replace),
            trail.link("c", enter=raising(old)),
        )
        ((exception, failure, suppressed),) = offered
        assert exception is new
        assert (failure.interceptor, failure.stage, failure.exception) == ("b", "error", new)
        assert suppressed == context.suppressed
        assert [(failure.interceptor, failure.stage, failure.exception) for failure in suppressed] == [
            ("c", "enter", old)
        ]

    async def test_an_unhandled_replacement_is_raised(self, trail: Trail) -> None:
        old, new = KeyError("old"), ValueError("new")
        context = Context()
        with pytest.raises(ValueError, match="new") as caught:
            await execute(
                context, trail.link("a"), trail.link("b", error=raising(new)), trail.link("c", enter=raising(old))
            )
        assert caught.value is new
        assert new.__notes__ == ["raised in interceptor 'b', stage error"]
        assert new.__context__ is old
        assert [failure.exception for failure in context.suppressed] == [old]

    async def test_suppressed_is_newest_first(self, trail: Trail) -> None:
        first, second, third = KeyError(1), KeyError(2), KeyError(3)
        context = await execute(
            None,
            trail.link("a", error=nothing),
            trail.link("b", error=raising(third)),
            trail.link("c", error=raising(second)),
            trail.link("d", enter=raising(first)),
        )
        assert [failure.exception for failure in context.suppressed] == [second, first]

    async def test_with_error_in_enter_ends_entering(self, trail: Trail) -> None:
        boom, offered = KeyError("boom"), []
        await execute(
            None,
            trail.link("a"),
            trail.link(
                "b", lambda context: context.with_error(boom), error=lambda _, exception: offered.append(exception)
            ),
            trail.link("c"),
        )
        assert offered == [boom]
        assert trail == ["enter a", "enter b", "error b", "leave a"]

    async def test_with_error_in_leave_is_like_raising(self, trail: Trail) -> None:
        boom = KeyError("boom")
        with pytest.raises(KeyError) as caught:
            await execute(None, trail.link("a"), trail.link("b", leave=lambda context: context.with_error(boom)))
        assert caught.value is boom
        assert boom.__notes__ == ["raised in interceptor 'b', stage leave"]
        assert trail == ["enter a", "enter b", "leave b"]

    async def test_a_raised_exception_takes_precedence_over_with_error(self, trail: Trail) -> None:
        attached, raised, offered = KeyError("attached"), KeyError("raised"), []

        def both(context: Context) -> None:
            context.with_error(attached)
            raise raised

        await execute(
            None, trail.link("a", error=lambda _, e: offered.append(e)), trail.link("b", enter=both), trail.link("c")
        )
        assert offered == [raised]
        assert trail == ["enter a", "enter b", "error a"]

    @pytest.mark.parametrize("stage", ["enter", "leave", "error"])
    async def test_returning_none_continues_with_the_same_context(self, trail: Trail, stage: str) -> None:
        context = Context()
        failing = trail.link("b", enter=raising(KeyError()) if stage == "error" else nothing)
        assert await execute(context, trail.link("a", **{stage: returning(None)}), failing) is context

    @pytest.mark.parametrize("stage", ["enter", "leave", "error"])
    @pytest.mark.parametrize("value", ["text", (), 0, False, {"status": 200}, Context], ids=repr)
    async def test_returning_anything_else_is_a_type_error(self, trail: Trail, stage: str, value: object) -> None:
        """It is offered to ``error`` stages, and names interceptor, stage and value."""
        offered: list[str] = []
        stages = {"enter": raising(KeyError()) if stage == "error" else nothing, stage: returning(value)}
        await execute(
            None, trail.link("a", error=lambda _, error: offered.append(str(error))), trail.link("b", **stages)
        )
        assert offered == [f"interceptor 'b', stage {stage}, returned {value!r}; a stage returns None or a Context"]

    async def test_returning_the_context_of_another_execution_is_a_type_error(self, trail: Trail) -> None:
        async def nest(context: Context) -> None:
            await execute(Context(), trail.link("b", enter=returning(context)))

        with pytest.raises(TypeError, match=r"interceptor 'b', stage enter, returned .*, which another execution uses"):
            await execute(None, Interceptor("a", enter=nest))

    async def test_inner_error_stages_are_not_offered_an_outer_exception(self, trail: Trail) -> None:
        with pytest.raises(KeyError):
            await execute(None, trail.link("a", enter=raising(KeyError())), trail.link("b", error=nothing))
        assert trail == ["enter a"]

    async def test_stop_async_iteration_propagates_from_a_plain_stage(self, trail: Trail) -> None:
        """Python turns it into a RuntimeError when it leaves a coroutine, so the stage is plain."""
        trail.flavour = "plain"
        boom = StopAsyncIteration()
        with pytest.raises(StopAsyncIteration) as caught:
            await execute(None, trail.link("a"), trail.link("b", enter=raising(boom)))
        assert caught.value is boom

    async def test_stop_iteration_from_a_plain_stage_is_offered_to_error_stages(self, trail: Trail) -> None:
        """``execute`` itself can only raise a RuntimeError with it as the cause (PEP 479)."""
        trail.flavour = "plain"
        boom, offered = StopIteration(), []
        with pytest.raises(RuntimeError, match="StopIteration") as caught:
            await execute(None, trail.link("a", raising(boom)))
        assert caught.value.__cause__ is boom
        await execute(None, trail.link("a", raising(boom), error=lambda _, exception: offered.append(exception)))
        assert offered == [boom]


class TestAsync:
    async def test_plain_and_async_stages_can_be_mixed(self) -> None:
        trail, errors = Trail("plain"), {"b": nothing, "c": declines, "d": declines}
        links = []
        for name in "abcd":
            trail.flavour = "async" if name in "bd" else "plain"
            links.append(trail.link(name, error=errors.get(name)))
        mixed = Interceptor("e", enter=raising(KeyError()), error=trail.link("e", error=declines).error)
        await execute(None, *links, mixed)
        assert trail == [*(f"enter {name}" for name in "abcd"), "error e", "error d", "error c", "error b", "leave a"]

    async def test_exceptions_of_async_stages_are_not_wrapped(self) -> None:
        trail, offered = Trail("async"), []
        first, second = KeyError("enter"), KeyError("error")
        await execute(
            None,
            trail.link(
                "a",
                error=lambda context, exception: offered.append(
                    (exception, *(failure.exception for failure in context.suppressed))
                ),
            ),
            trail.link("b", error=raising(second)),
            trail.link("c", enter=raising(first)),
        )
        assert offered == [(second, first)]

    async def test_a_stage_may_return_any_awaitable(self) -> None:
        context, other = Context(), Context()
        future: asyncio.Future[Context] = asyncio.get_running_loop().create_future()
        future.set_result(other)
        assert await execute(context, Interceptor("a", enter=returning(future))) is other

    async def test_an_awaitable_of_an_awaitable_is_a_type_error(self) -> None:
        async def twice(context: Context) -> Any:
            return asyncio.get_running_loop().create_future()

        with pytest.raises(TypeError, match="interceptor 'a', stage enter, returned <Future pending"):
            await execute(None, Interceptor("a", enter=twice))

    def test_plain_stages_run_without_a_task_switch(self) -> None:
        """The first ``send`` runs the whole chain, with errors, predicates and generators."""
        trail = Trail("plain")

        @around
        async def bracket(context: Context) -> Any:
            yield

        context = Context()
        context.terminate_when(lambda context: "enter d" in trail)
        coroutine = execute(
            context,
            trail.link("a"),
            bracket,
            trail.link("b", error=nothing),
            trail.link("c", leave=raising(KeyError())),
            trail.link("d"),
            trail.link("e"),
        )
        with pytest.raises(StopIteration) as finished:
            coroutine.send(None)
        assert finished.value.value is context
        assert trail == [*(f"enter {name}" for name in "abcd"), "leave d", "leave c", "error b", "leave a"]

    def test_an_exception_propagates_without_a_task_switch(self) -> None:
        with pytest.raises(KeyError):
            execute(Context(), Interceptor("a", enter=raising(KeyError()))).send(None)


class TestNesting:
    @pytest.mark.parametrize("stage", ["enter", "leave", "error"])
    async def test_a_nested_execute_leaves_the_outer_execution_unchanged(self, trail: Trail, stage: str) -> None:
        inner = trail.link("x"), trail.link("y", enter=Context.terminate), trail.link("z")

        async def nest(context: Context, *_: object) -> None:
            trail.append(f"{stage} b")
            queue = context.queue
            assert await execute(context, *inner) is context
            assert context.queue == queue

        nesting = {"error": lambda context, exception: nest(context, exception)}.get(
            stage, lambda context: nest(context)
        )
        b = Interceptor("b", **{stage: nesting})
        failing = trail.link("c", enter=raising(KeyError()) if stage == "error" else nothing)
        await execute(None, trail.link("a"), b, failing)
        nested = [f"{stage} b", "enter x", "enter y", "leave y", "leave x"]
        expected = {
            "enter": ["enter a", *nested, "enter c", "leave c", "leave a"],
            "leave": ["enter a", "enter c", "leave c", *nested, "leave a"],
            "error": ["enter a", "enter c", *nested, "leave a"],
        }
        assert trail == expected[stage]

    async def test_after_a_nested_execute_the_outer_queue_can_change(self, trail: Trail) -> None:
        async def nest(context: Context) -> None:
            await execute(context, trail.link("x"))
            context.enqueue(trail.link("z"))

        await execute(None, Interceptor("a", enter=nest), trail.link("b"))
        assert trail == ["enter x", "leave x", "enter b", "enter z", "leave z", "leave b"]

    async def test_a_nested_stage_changes_the_nested_queue(self, trail: Trail) -> None:
        async def nest(context: Context) -> None:
            await execute(context, trail.link("x", enter=lambda context: context.enqueue(trail.link("y"))))
            assert [link.name for link in context.queue] == ["b"]

        await execute(None, Interceptor("a", enter=nest), trail.link("b"))
        assert trail == ["enter x", "enter y", "leave y", "leave x", "enter b", "leave b"]

    async def test_a_nested_execute_on_another_context_shares_nothing(self, trail: Trail) -> None:
        boom = KeyError("boom")
        inner = Context()

        async def nest(context: Context) -> None:
            with pytest.raises(KeyError):
                await execute(inner, trail.link("x", enter=raising(boom)))
            assert context.error is None

        context = Context()
        context.terminate_when(lambda context: False)
        assert await execute(context, Interceptor("a", enter=nest), trail.link("b")) is context
        assert trail == ["enter x", "enter b", "leave b"]
        assert inner.error is not None

    async def test_outer_predicates_are_evaluated_in_a_nested_execute(self, trail: Trail) -> None:
        async def nest(context: Context) -> None:
            context.terminate_when(lambda context: "done" in context)
            await execute(context, trail.link("x", enter=lambda context: context.update(done=True)), trail.link("y"))

        await execute(None, Interceptor("a", enter=nest), trail.link("b"))
        assert trail == ["enter x", "leave x"]

    async def test_inner_predicates_are_not_evaluated_outside(self, trail: Trail) -> None:
        async def nest(context: Context) -> None:
            await execute(context, trail.link("x", enter=lambda context: context.terminate_when(returning(True))))

        await execute(None, Interceptor("a", enter=nest), trail.link("b"))
        assert trail == ["enter x", "leave x", "enter b", "leave b"]

    @pytest.mark.parametrize("copied", [False, True])
    async def test_a_nested_failure_names_the_inner_interceptor(self, trail: Trail, copied: bool) -> None:
        boom, seen = KeyError("boom"), []

        async def nest(context: Context) -> None:
            replace = trail.link("x", enter=Context.copy if copied else nothing)
            await execute(context, replace, trail.link("y", enter=raising(boom)))

        def record(context: Context, exception: Exception) -> None:
            seen.append(context.error and (context.error.interceptor, context.error.stage))
            raise exception

        with pytest.raises(KeyError) as caught:
            await execute(None, trail.link("a", error=record), Interceptor("b", enter=nest))
        assert seen == [("y", "enter")]
        assert caught.value is boom
        assert boom.__notes__ == ["raised in interceptor 'y', stage enter"]

    async def test_a_nested_exception_that_the_stage_caught_is_no_failure(self, trail: Trail) -> None:
        seen: list[object] = []

        async def nest(context: Context) -> None:
            with pytest.raises(KeyError):
                await execute(context, trail.link("x", enter=raising(KeyError())))
            seen.append(context.error is not None)  # until the stage returns

        record = trail.link("b", enter=lambda context: seen.append(context.error))
        await execute(None, Interceptor("a", enter=nest), record)
        assert seen == [True, None]

    async def test_a_caught_nested_exception_is_not_seen_by_the_next_nested_execute(self, trail: Trail) -> None:
        seen: list[object] = []

        async def nest(context: Context) -> None:
            with pytest.raises(KeyError):
                await execute(context, trail.link("x", enter=raising(KeyError())))
            await execute(context, trail.link("y", enter=lambda context: seen.append(context.error)))

        await execute(None, Interceptor("a", enter=nest))
        assert seen == [None]

    async def test_a_nested_execute_in_an_error_stage_keeps_the_outer_failure(self, trail: Trail) -> None:
        boom, seen = KeyError("outer"), []

        def record(context: Context, *_: object) -> None:
            seen.append(context.error and context.error.interceptor)

        async def nest(context: Context, exception: Exception) -> None:
            await execute(
                context, trail.link("x", error=nothing), trail.link("y", record, raising(ValueError()), error=declines)
            )
            record(context)
            raise exception

        context = Context()
        context.terminate_when(lambda context: False)
        with pytest.raises(KeyError) as caught:
            await execute(
                context,
                trail.link("a", error=declines),
                Interceptor("b", error=nest),
                trail.link("c", enter=raising(boom)),
            )
        assert seen == ["c", "c"]
        assert boom.__notes__ == ["raised in interceptor 'c', stage enter"]
        assert caught.value is boom
        assert context.suppressed == ()

    async def test_the_outer_failure_is_seen_two_levels_deep(self, trail: Trail) -> None:
        seen: list[object] = []

        async def deeper(context: Context) -> None:
            await execute(context, trail.link("x", enter=lambda context: seen.append(context.error)))

        async def nest(context: Context, exception: Exception) -> None:
            seen.append(context.error)
            await execute(context, Interceptor("deeper", enter=deeper))
            seen.append(context.error)

        await execute(None, Interceptor("b", error=nest), trail.link("c", enter=raising(KeyError())))
        assert seen[0] is not None
        assert seen == [seen[0]] * 3

    async def test_a_caught_nested_exception_in_an_error_stage_leaves_no_trace(self, trail: Trail) -> None:
        boom, seen = KeyError("outer"), []

        async def nest(context: Context, exception: Exception) -> None:
            with pytest.raises(ValueError, match="inner"):
                await execute(context, trail.link("x", enter=raising(ValueError("inner"))))
            raise exception

        def record(context: Context, exception: Exception) -> None:
            seen.append((context.error and context.error.interceptor, exception, suppressed(context)))

        await execute(
            None, trail.link("a", error=record), Interceptor("b", error=nest), trail.link("c", enter=raising(boom))
        )
        assert seen == [("c", boom, ())]

    async def test_a_nested_exception_in_an_error_stage_replaces_the_outer_one(self, trail: Trail) -> None:
        outer, inner, seen = KeyError("outer"), KeyError("inner"), []

        async def nest(context: Context, exception: Exception) -> None:
            await execute(context, trail.link("x", enter=raising(inner)))

        def record(context: Context, exception: Exception) -> None:
            seen.append((context.error and context.error.interceptor, exception, suppressed(context)))

        await execute(
            None, trail.link("a", error=record), Interceptor("b", error=nest), trail.link("c", enter=raising(outer))
        )
        assert seen == [("x", inner, (outer,))]

    async def test_a_stage_may_return_the_context_of_a_nested_execute(self, trail: Trail) -> None:
        inner, seen = Context(), []

        async def nest(context: Context) -> Context:
            return await execute(context, trail.link("x", enter=returning(inner)))

        await execute(None, Interceptor("a", enter=nest), trail.link("b", enter=seen.append))
        assert seen[0] is inner

    async def test_executions_can_be_nested_three_deep(self, trail: Trail) -> None:
        def nesting(name: str, *inner: Interceptor[Any]) -> Interceptor[Any]:
            async def nest(context: Context) -> None:
                trail.append(f"enter {name}")
                await execute(context, *inner)
                assert context.queue == ()

            return Interceptor(name, enter=nest, leave=lambda context: trail.append(f"leave {name}"))

        await execute(None, nesting("a", nesting("b", nesting("c", trail.link("d")))))
        assert trail == [*(f"enter {name}" for name in "abcd"), *(f"leave {name}" for name in "dcba")]


class TestConcurrency:
    async def test_concurrent_executions_share_only_interceptors(self) -> None:
        async def enter(context: Context) -> None:
            for _ in range(context["number"] % 4):  # type: ignore[operator]
                await task_switch()
            context["trail"].append(f"enter {context['number']}")  # type: ignore[attr-defined]

        async def leave(context: Context) -> None:
            for _ in range(context["number"] % 3):  # type: ignore[operator]
                await task_switch()
            context["trail"].append(f"leave {context['number']}")  # type: ignore[attr-defined]

        @around
        async def bracket(context: Context) -> Any:
            yield
            context["trail"].append(f"after {context['number']}")  # type: ignore[attr-defined]

        async def fail(context: Context) -> None:
            await task_switch()
            if context["number"] % 2:  # type: ignore[operator]
                raise KeyError(context["number"])

        def handle(context: Context, exception: Exception) -> None:
            context["trail"].append(f"error {exception}")  # type: ignore[attr-defined]

        outer, handler = Interceptor("outer", enter, leave), Interceptor("handler", error=handle)
        shared = (outer, bracket, handler, Interceptor("fail", fail, leave))
        contexts = [Context({"number": number, "trail": []}) for number in range(50)]
        await asyncio.gather(*(execute(context, *shared) for context in contexts))
        for number, context in enumerate(contexts):
            middle = f"error {number}" if number % 2 else f"leave {number}"
            assert context["trail"] == [f"enter {number}", middle, f"after {number}", f"leave {number}"]
        assert len({context.execution_id for context in contexts}) == 50

    async def test_executing_a_context_twice_at_the_same_time_is_a_runtime_error(self, trail: Trail) -> None:
        context, gate = Context(), asyncio.Event()

        async def wait(context: Context) -> None:
            await gate.wait()

        first = asyncio.ensure_future(execute(context, Interceptor("a", enter=wait)))
        await task_switch()
        second = asyncio.ensure_future(execute(context, Interceptor("b", enter=wait)))
        await task_switch()
        gate.set()
        with pytest.raises(
            RuntimeError, match=r"<Context .* was executed twice at the same time; give each .* a copy\(\)"
        ):
            await first
        with pytest.raises(RuntimeError, match="twice at the same time"):
            await second

    @pytest.mark.parametrize("how", ["terminate", "with_error", "enqueue", "bind"])
    async def test_after_an_overlap_no_further_interceptor_is_entered(self, how: str) -> None:
        context, gates, entered = Context(), [asyncio.Event(), asyncio.Event()], []

        async def auth(context: Context) -> None:
            await gates[0].wait()
            match how:
                case "terminate":
                    context.terminate()
                case "with_error":
                    context.with_error(PermissionError())
                case "enqueue":
                    context.enqueue(Interceptor("check", lambda _: entered.append("check")))
                case "bind":
                    context.bind(ContextVar("user"), "anonymous")

        async def wait(context: Context) -> None:
            await gates[1].wait()

        secret = Interceptor("secret", lambda _: entered.append("secret"))
        first = asyncio.ensure_future(execute(context, Interceptor("auth", auth), secret))
        await task_switch()
        second = asyncio.ensure_future(execute(context, Interceptor("wait", wait)))
        await task_switch()
        gates[0].set()
        with pytest.raises(RuntimeError, match="twice at the same time"):
            await first
        gates[1].set()
        with pytest.raises(RuntimeError, match="twice at the same time"):
            await second
        assert entered == []
        await execute(context, secret)  # it is free again
        assert entered == ["secret"]

    async def test_generators_see_the_error_of_an_overlap(self) -> None:
        context, gates, heard = Context(), [asyncio.Event(), asyncio.Event()], []

        @around
        async def bracket(context: Context) -> Any:
            try:
                yield
            except RuntimeError as error:
                heard.append(str(error))
                raise

        def wait_for(gate: asyncio.Event) -> Interceptor[Any]:
            async def wait(context: Context) -> None:
                await gate.wait()

            return Interceptor("wait", wait)

        tasks = []
        for gate in gates:
            tasks.append(asyncio.ensure_future(execute(context, bracket, wait_for(gate))))
            await task_switch()
        for gate, task in zip(gates, tasks, strict=True):
            gate.set()
            with pytest.raises(RuntimeError, match="twice at the same time"):
                await task
        assert len(heard) == 2

    async def test_copies_can_be_executed_at_the_same_time(self) -> None:
        context = Context({"user": "alice"})

        async def rename(context: Context) -> None:
            await task_switch()
            context["user"] = f"{context['user']}!"

        one, two = await asyncio.gather(
            *(execute(copy, Interceptor("a", enter=rename)) for copy in (context.copy(), context.copy()))
        )
        assert (context["user"], one["user"], two["user"]) == ("alice", "alice!", "alice!")


class TestCancellation:
    """No ``error`` and no ``leave`` stage is called, and ``@around`` generators are closed in reverse."""

    @staticmethod
    def bracket(trail: list[str], name: str) -> Interceptor[Any]:
        async def generator(context: Context) -> Any:
            try:
                yield
            finally:
                trail.append(f"closing {name}")
                await task_switch()
                trail.append(f"closed {name}")

        generator.__name__ = name
        return around(generator)

    @pytest.mark.parametrize("stage", ["enter", "leave", "error"])
    @pytest.mark.parametrize("kind", [asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit])
    def test_base_exceptions_are_not_offered_to_error_stages(self, stage: str, kind: type[BaseException]) -> None:
        trail = Trail("plain")
        boom = kind()
        stages = {
            "enter": raising(KeyError()) if stage == "error" else nothing,
            "error": declines,
            stage: raising(boom),
        }
        coroutine = execute(
            None, trail.link("a", error=nothing), self.bracket(trail, "b"), trail.link("c", **stages), trail.link("d")
        )
        with pytest.raises(kind) as caught:
            while True:
                coroutine.send(None)
        assert caught.value is boom
        inner = {
            "enter": ["enter c"],
            "leave": ["enter c", "enter d", "leave d", "leave c"],
            "error": ["enter c", "error c"],
        }
        assert trail == ["enter a", *inner[stage], "closing b", "closed b"]
        assert not hasattr(boom, "__notes__")

    @pytest.mark.parametrize("stage", ["enter", "leave", "error"])
    async def test_cancelling_a_stage_closes_open_generators_in_reverse(self, stage: str) -> None:
        """A ``finally`` may await."""
        trail, reached = Trail("async"), asyncio.Event()

        async def wait(context: Context, *_: object) -> None:
            reached.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                trail.append("cancelled")
                raise

        waits = {"error": lambda context, exception: wait(context)}.get(stage, lambda context: wait(context))
        failing = trail.link("d", raising(KeyError()) if stage == "error" else nothing, None)
        context = Context()
        task = asyncio.ensure_future(
            execute(
                context,
                trail.link("a", error=nothing),
                self.bracket(trail, "b"),
                self.bracket(trail, "c"),
                Interceptor("wait", **{stage: waits}),
                failing,
            )
        )
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        entered = ["enter a"] if stage == "enter" else ["enter a", "enter d"]
        assert trail == [*entered, "cancelled", "closing c", "closed c", "closing b", "closed b"]
        assert context.queue == ()

    async def test_a_finished_generator_is_not_closed_again(self) -> None:
        trail, reached = Trail("plain"), asyncio.Event()

        async def wait(context: Context) -> None:
            reached.set()
            await asyncio.Event().wait()

        task = asyncio.ensure_future(
            execute(None, self.bracket(trail, "a"), Interceptor("b", leave=wait), self.bracket(trail, "c"))
        )
        await reached.wait()
        assert trail == ["closing c", "closed c"]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert trail == ["closing c", "closed c", "closing a", "closed a"]

    async def test_an_exception_raised_instead_of_a_cancellation_is_the_failure(self) -> None:
        trail, boom = Trail("plain"), ValueError("in finally")

        @around
        async def broken(context: Context) -> Any:
            try:
                yield
            finally:
                raise boom

        outer, inner = self.bracket(trail, "outer"), self.bracket(trail, "inner")
        cancel = raising(asyncio.CancelledError())
        with pytest.raises(ValueError, match="in finally") as caught:
            await execute(Context(execution_id="run 1"), outer, broken, inner, trail.link("a", cancel))
        assert caught.value is boom
        assert boom.__notes__ == ["raised in interceptor 'broken', stage leave"]
        assert trail == ["enter a", "closing inner", "closed inner", "closing outer", "closed outer"]

    async def test_a_cancellation_while_a_generator_closes_propagates_outward(self) -> None:
        trail, reached, closing = Trail("plain"), asyncio.Event(), asyncio.Event()

        @around
        async def slow(context: Context) -> Any:
            try:
                yield
            finally:
                closing.set()
                await asyncio.Event().wait()

        async def wait(context: Context) -> None:
            reached.set()
            await asyncio.Event().wait()

        task = asyncio.ensure_future(execute(None, self.bracket(trail, "a"), slow, Interceptor("b", enter=wait)))
        await reached.wait()
        task.cancel()
        await closing.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert trail == ["closing a", "closed a"]

    async def test_cancelling_a_nested_execute_closes_both_chains(self) -> None:
        trail, reached = Trail("plain"), asyncio.Event()

        async def wait(context: Context) -> None:
            reached.set()
            await asyncio.Event().wait()

        async def nest(context: Context) -> None:
            await execute(context, self.bracket(trail, "inner"), Interceptor("b", enter=wait))

        context = Context()
        task = asyncio.ensure_future(execute(context, self.bracket(trail, "outer"), Interceptor("a", enter=nest)))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert trail == ["closing inner", "closed inner", "closing outer", "closed outer"]
        assert await execute(context) is context

    async def test_the_chain_continues_after_a_stage_that_swallows_its_cancellation(self, trail: Trail) -> None:
        reached = asyncio.Event()

        async def stubborn(context: Context) -> None:
            reached.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                trail.append("swallowed")

        task = asyncio.ensure_future(execute(None, Interceptor("a", enter=stubborn), trail.link("b")))
        await reached.wait()
        task.cancel()
        await task
        assert trail == ["swallowed", "enter b", "leave b"]
