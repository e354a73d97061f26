"""Random chains: ``execute`` and a naive implementation of its docstring have the same trace and the same outcome."""

from __future__ import annotations

import contextvars
import itertools
import types
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from aiohttp_interceptors.chain import Context, execute
from aiohttp_interceptors.decorators import around
from aiohttp_interceptors.exceptions import QueueClosed
from aiohttp_interceptors.interceptor import Interceptor
from tests.waiting import task_switch

many = settings(deadline=None, max_examples=300)


# Random chains.

Script = tuple[tuple[Any, ...], ...]
"""What a stage does, in order: ``("enqueue", plans)``, ``("raise", number)`` and so on."""


@dataclass(frozen=True)
class Plan:
    """One interceptor; a stage that is None is absent."""

    name: str
    is_generator: bool
    asynchronous: bool
    enter: Script | None
    leave: Script | None
    error: Script | None
    depth: int = 0
    """How many nested copies of the context the stages make; they change and return the last one."""


EXCEPTIONS = st.integers(0, 2)  # few, so that a stage sometimes raises the very exception that it was offered
PREDICATES = st.tuples(st.just("terminate_when"), st.integers(1, 12), st.none() | EXCEPTIONS)
QUIET_ACTS = st.tuples(st.sampled_from(["raise", "attach"]), EXCEPTIONS)  # a generator cannot return anything
LAST_ACTS = QUIET_ACTS | st.sampled_from([("same",), ("copy",), ("garbage",)])


@st.composite
def chains(draw: st.DrawFn) -> list[Plan]:
    """Draw a tree of interceptors: its branches are the ones that stages enqueue."""
    numbers = itertools.count()

    def plans(depth: int, most: int) -> list[Plan]:
        return [plan(depth) for _ in range(draw(st.integers(0, most)))]

    def plan(depth: int) -> Plan:
        is_generator = draw(st.integers(0, 3)) == 0
        absent = 0 if is_generator else 2
        stages = {
            stage: script(stage, depth, is_generator) if draw(st.integers(0, 5)) >= absent else None
            for stage in ("enter", "leave", "error")
        }
        if not any(stages.values()):
            stages["enter"] = (("nothing",),)
        depth = 0 if is_generator else draw(st.sampled_from([0, 0, 1, 2]))  # a generator cannot return anything
        return Plan(f"i{next(numbers)}", is_generator, draw(st.booleans()), **stages, depth=depth)

    def script(stage: str, depth: int, is_generator: bool) -> Script:
        acts: list[tuple[Any, ...]] = []
        if depth > 0 and draw(st.integers(0, 3)) == 0:
            acts.append((draw(st.sampled_from(["enqueue", "inject"])), plans(depth - 1, 2)))
        if draw(st.integers(0, 7)) == 0:
            acts.append(draw(PREDICATES))
        if draw(st.integers(0, 7)) == 0:
            acts.append(("terminate",))
        last = draw((QUIET_ACTS if is_generator else LAST_ACTS) if draw(st.booleans()) else st.just(("nothing",)))
        if stage == "error" and draw(st.booleans()):
            last = draw(st.sampled_from([("decline",), ("decline by attaching",)]))
        return (*acts, last)

    return plans(2, 5)


# The stages, the same for both implementations.


class World:
    """The trace of a chain, and the exceptions that it raises."""

    def __init__(self, build: Callable[[World, Plan], Any]) -> None:
        self.build = build
        self.trace: list[object] = []
        self.exceptions = [KeyError(number) for number in range(3)]
        self.context: Any = None

    def label(self, exception: BaseException | None) -> object:
        """Identify an exception by its number, or by its type if the chain made it."""
        same = [number for number, known in enumerate(self.exceptions) if known is exception]
        return same[0] if same else type(exception)

    def play(self, plan: Plan, stage: str, context: Any, exception: Exception | None = None) -> object:
        """Run as a stage: record everything that is visible, and do what the script says."""
        self.context = context
        failure = context.error
        self.trace.append(
            (
                plan.name,
                stage,
                self.label(exception),
                failure and (failure.interceptor, failure.stage, self.label(failure.exception)),
                [(failure.interceptor, failure.stage, self.label(failure.exception)) for failure in context.suppressed],
                [queued.name for queued in context.queue],
                context.get("copies", 0),
            )
        )
        acts = getattr(plan, stage)
        given = context
        # Outside enter, queue changes raise; those of a copy raise when it is returned, which a raising stage does not.
        for _ in range(plan.depth if stage == "enter" or len(acts) == 1 else 0):
            context = context.copy()
        for act, *arguments in acts:
            result = self._act(act, arguments, context, exception)
        if context is not given and result in (None, context):
            self.context = context
        return context if result is None and context is not given else result

    def _act(self, act: str, arguments: list[Any], context: Any, exception: Exception | None) -> object:
        match act:
            case "enqueue" | "inject":
                getattr(context, act)(*(self.build(self, plan) for plan in arguments[0]))
            case "terminate":
                context.terminate()
            case "terminate_when":
                context.terminate_when(self._predicate(*arguments))
            case "raise":
                raise self.exceptions[arguments[0]]
            case "attach":
                return context.with_error(self.exceptions[arguments[0]])
            case "decline":
                assert exception is not None
                raise exception
            case "decline by attaching":
                return context.with_error(exception)
            case "same":
                return context
            case "garbage":
                return "garbage"
            case "copy":
                self.context = context.copy()
                self.context["copies"] = context.get("copies", 0) + 1
                return self.context
        return None

    def _predicate(self, length: int, raises: int | None) -> Callable[[Any], bool]:
        def predicate(_: Any) -> bool:
            self.trace.append(f"evaluated at {length}")
            if len(self.trace) >= length and raises is not None:
                raise self.exceptions[raises]
            return len(self.trace) >= length

        return predicate


# The library.


def real(world: World, plan: Plan) -> Interceptor[Any]:
    """Make the interceptor of a plan."""
    if plan.is_generator:
        return _generator(world, plan)

    def plain(stage: str) -> Callable[..., object]:
        if stage == "error":
            return lambda context, exception: world.play(plan, stage, context, exception)
        return lambda context: world.play(plan, stage, context)

    def asynchronous(stage: str) -> Callable[..., object]:
        async def play(context: Context) -> object:
            await task_switch()
            return world.play(plan, stage, context)

        async def handle(context: Context, exception: Exception) -> object:
            await task_switch()
            return world.play(plan, stage, context, exception)

        return handle if stage == "error" else play

    make = asynchronous if plan.asynchronous else plain
    stages: dict[str, Any] = {
        stage: make(stage) for stage in ("enter", "leave", "error") if getattr(plan, stage) is not None
    }
    return Interceptor(plan.name, **stages)


def _generator(world: World, plan: Plan) -> Interceptor[Any]:
    async def generator(context: Context) -> Any:
        await task_switch()
        world.play(plan, "enter", context)
        try:
            yield
        except Exception as exception:  # noqa: BLE001  # which of them it handles is in its script
            world.play(plan, "error", context, exception)
        else:
            world.play(plan, "leave", context)

    generator.__name__ = plan.name
    return around(generator)


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Drive a coroutine to its end, without an event loop."""
    while True:
        try:
            coroutine.send(None)
        except StopIteration as finished:
            return finished.value


# The naive implementation: every sentence of the docstring of ``execute``, without regard to speed.


class Naive:
    """A context: values, and a state shared by all copies."""

    def __init__(self, values: dict[str, Any], state: types.SimpleNamespace) -> None:
        self.values = values
        self.state = state

    error = property(lambda self: self.state.error)
    suppressed = property(lambda self: self.state.suppressed)
    queue = property(lambda self: self._still_entering().queue if self.state.entering else [])

    def get(self, key: str, default: object) -> object:
        return self.values.get(key, default)

    def __setitem__(self, key: str, value: object) -> None:
        self.values[key] = value

    def copy(self) -> Naive:
        return Naive(dict(self.values), self.state)

    def with_error(self, exception: Exception) -> Naive:
        self.state.attached = exception
        return self

    def enqueue(self, *plans: Plan) -> None:
        self._still_entering().queue += plans

    def inject(self, *plans: Plan) -> None:
        self._still_entering().queue[:0] = plans

    def terminate(self) -> None:
        self._still_entering().queue.clear()

    def terminate_when(self, predicate: Callable[[Any], object]) -> None:
        self._still_entering().predicates.append(predicate)

    def _still_entering(self) -> types.SimpleNamespace:
        if not self.state.entering:
            raise QueueClosed
        return self.state


def reference(world: World, context: Naive, plans: list[Plan]) -> Naive:
    """Run a chain as the docstring of ``execute`` specifies."""
    state, entered, opened = context.state, [], set()
    state.queue = list(plans)

    def call(plan: Plan, stage: str, *exception: Exception) -> None:
        nonlocal context
        state.attached = None
        if plan.is_generator and stage != "enter":
            if len(entered) not in opened:
                raise exception[0]
            opened.remove(len(entered))
        result = world.play(plan, stage, context, *exception)
        if plan.is_generator and stage == "enter":
            opened.add(len(entered) - 1)
        if result is not None and not isinstance(result, Naive):
            raise TypeError
        context = context if result is None else result
        if state.attached is not None:
            raise state.attached
        if stage == "enter" and any(predicate(context) for predicate in state.predicates):
            state.queue.clear()

    def attempt(plan: Plan, stage: str, *exception: Exception) -> None:
        try:
            if getattr(plan, stage) is not None:
                call(plan, stage, *exception)
                state.error = None
        except Exception as raised:  # noqa: BLE001
            if state.error is not None and state.error.exception is not raised:
                state.suppressed = (state.error, *state.suppressed)
            if state.error is None or state.error.exception is not raised:
                state.error = types.SimpleNamespace(interceptor=plan.name, stage=stage, exception=raised)

    while state.queue and state.error is None:
        entered.append(state.queue.pop(0))
        attempt(entered[-1], "enter")
    state.entering = False
    while entered:
        plan = entered.pop()
        if state.error is None:
            attempt(plan, "leave")
        if state.error is not None:
            attempt(plan, "error", state.error.exception)
    if state.error is not None:
        state.error.exception.add_note(f"raised in interceptor {state.error.interceptor!r}, stage {state.error.stage}")
        raise state.error.exception
    return context


def outcome(world: World, chain: Callable[[], Any]) -> tuple[object, ...]:
    """Run a chain and return its outcome."""
    try:
        context = chain()
    except Exception as raised:  # noqa: BLE001
        result: object = (world.label(raised), raised.__notes__)
    else:
        assert world.context in (None, context)
        result = context.get("copies", 0)
    suppressed = () if world.context is None else world.context.suppressed
    return result, [world.label(failure.exception) for failure in suppressed], world.trace


@many
@given(chains())
def test_any_chain_does_what_the_docstring_says(plans: list[Plan]) -> None:
    ours, theirs = World(real), World(lambda world, plan: plan)
    state = types.SimpleNamespace(queue=[], predicates=[], entering=True, attached=None, error=None, suppressed=())
    expected = outcome(theirs, lambda: reference(theirs, Naive({}, state), plans))
    assert outcome(ours, lambda: run(execute(None, *(real(ours, plan) for plan in plans)))) == expected


# Context variables.

VARIABLES: tuple[ContextVar[int], ...] = tuple(ContextVar(f"VARIABLE{number}") for number in range(3))

binds = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 99)), max_size=2)
stages = st.none() | st.tuples(binds, st.sampled_from(["return", "return", "raise", "cancel"]))
binders = st.tuples(stages, stages, stages).filter(any)


@many
@given(st.lists(st.integers(0, 99) | st.none(), min_size=3, max_size=3), st.lists(binders, max_size=6))
def test_after_any_chain_every_variable_has_its_old_value(values: list[int | None], plans: list[Any]) -> None:
    def stage(plan: Any) -> Callable[..., None] | None:
        if plan is None:
            return None

        def run_stage(context: Context, exception: Exception | None = None) -> None:
            for number, value in plan[0]:
                context.bind(VARIABLES[number], value)
            if plan[1] == "raise":
                raise KeyError
            if plan[1] == "cancel":
                raise KeyboardInterrupt

        return run_stage

    def check() -> None:
        for variable, value in zip(VARIABLES, values, strict=True):
            if value is not None:
                variable.set(value)
        try:
            run(execute(None, *(Interceptor("a", *map(stage, plan)) for plan in plans)))
        except (KeyError, KeyboardInterrupt):
            pass
        assert [variable.get(None) for variable in VARIABLES] == values

    contextvars.copy_context().run(check)


@many
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 99), st.booleans()), max_size=6), st.none() | st.integers(0, 6)
)
def test_each_stage_sees_the_bindings_of_outer_interceptors(
    bindings: list[tuple[int, int, bool]], fails_at: int | None
) -> None:
    """``leave`` and ``error`` also see what the ``enter`` of their own interceptor bound."""
    seen: list[list[int | None]] = []
    states: list[list[int | None]] = [[None] * 3]

    def link(number: int, value: int, decline: bool) -> Interceptor[Any]:
        def enter(context: Context) -> None:
            context.bind(VARIABLES[number], value)

        def record(*_: object) -> None:
            seen.append([variable.get(None) for variable in VARIABLES])

        def error(context: Context, exception: Exception) -> None:
            record()
            if decline:
                raise exception

        return Interceptor("a", enter, record, error)

    def fail(context: Context) -> None:
        raise KeyError

    chain = [link(*binding) for binding in bindings]
    if fails_at is not None:
        chain[fails_at:] = [Interceptor("fails", enter=fail)]
    for number, value, _ in bindings[: len(chain) if fails_at is None else fails_at]:
        states.append([value if number == index else old for index, old in enumerate(states[-1])])

    def check() -> None:
        try:
            run(execute(None, *chain))
        except KeyError:
            pass

    contextvars.copy_context().run(check)
    assert seen == states[:0:-1]
