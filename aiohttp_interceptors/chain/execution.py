"""One execution's book-keeping: what is entered, what is queued, what must be undone. Decides; runs no stage."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextvars import ContextVar, Token
from operator import length_hint
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import QueueClosed
from ..observe.facts import StageRan
from ..observe.logs import log
from .failure import Failure
from .interceptor import Interceptor, Stage

if TYPE_CHECKING:
    from .context import Context

__all__ = ["Execution"]

T = TypeVar("T")


class Execution:
    """Where one execution is.

    ``steps`` are what was entered and then what is queued; ``cursor`` is the iterator that the loop walks over them,
    forward on the way in, backward on the way out. It sees what is queued while it walks, and it knows how far it is
    (``length_hint``), so that the loop counts nothing. ``alert`` is true when a stage may need more care than its
    return value: the loop looks at this one attribute after a stage.

    The attributes that the loop reads are slots; what most executions never use has its default on the class.
    """

    __slots__ = ("__dict__", "alert", "bindings", "context", "cursor", "failure", "handler", "kind", "stage", "steps")

    terminated = False
    outer: Execution | None = None  # the execution that one of whose stages started this one
    predicates: tuple[Callable[[Any], object], ...] = ()
    attached: Exception | None = None
    requested: tuple[tuple[ContextVar[Any], object], ...] = ()  # bound by the stage that runs now
    brackets: dict[int, AsyncGenerator[None, None]] | None = None  # open generators by position
    since = 0.0  # perf_counter seconds when the observed stage began
    values: dict[object, object]  # the context's values at that moment

    def __init__(self, context: Context, kind: type[Context], steps: Iterable[Interceptor[Any]] = ()) -> None:
        self.context = context
        self.kind = kind
        self.steps = list(steps)
        self.cursor: Iterator[Interceptor[Any]] | None = None  # until it is started
        self.handler: object = None  # what stands behind the chain, while it runs
        self.stage: Stage = "enter"
        self.alert = False
        self.failure: Exception | None = None
        self.bindings: tuple[tuple[int, ContextVar[Any], Token[Any]], ...] = ()  # with positions, outermost first

    @property
    def position(self) -> int:
        """Count from 1 the interceptor that runs now; the handler has the position of the last one."""
        if self.cursor is None:
            return 0
        ahead = length_hint(self.cursor)
        return len(self.steps) - ahead if self.stage == "enter" else ahead + 1

    @property
    def queue(self) -> tuple[Interceptor[Any], ...]:
        """What is still to be entered."""
        return tuple(self.steps[self.position :]) if self.stage == "enter" else ()

    def where(self) -> tuple[str, Stage]:
        """Name the interceptor (or the handler) that runs now, and its stage."""
        if self.handler is not None:
            return getattr(self.handler, "__name__", None) or repr(self.handler), self.stage
        return self.steps[self.position - 1].name, self.stage

    # What a stage may ask for.

    def still_entering(self, verb: str) -> Execution:
        """Return itself while the queue may change, else raise ``QueueClosed``."""
        if self.stage != "enter" or self.handler is not None:
            name, stage = self.where()
            raise QueueClosed(
                f"{verb}() was called in stage {stage} of {name!r}; "
                "the queue is fixed once the handler runs or the chain leaves, so call it in enter"
            )
        return self

    def append(self, interceptors: Iterable[Interceptor[Any]]) -> None:
        self.steps.extend(interceptors)

    def prepend(self, interceptors: Iterable[Interceptor[Any]]) -> None:
        position = self.position
        self.steps[position:position] = interceptors

    def terminate(self) -> None:
        del self.steps[self.position :]
        self.terminated = True

    def add_predicate(self, predicate: Callable[[Any], object]) -> None:
        self.predicates += (predicate,)
        self.alert = True

    def attach(self, exception: Exception) -> None:
        self.attached = exception
        self.alert = True

    def bind(self, variable: ContextVar[T], value: T) -> None:
        self.requested += ((variable, value),)
        self.alert = True

    def observe(self) -> None:
        """Begin to measure the stage that runs now, or the next one."""
        self.since = perf_counter()
        self.values = self.context.snapshot()
        self.alert = True

    def open_bracket(self, generator: AsyncGenerator[None, None]) -> None:
        """Keep a generator until the chain unwinds past the interceptor that runs now."""
        if self.brackets is None:
            self.brackets = {}
        self.brackets[self.position] = generator

    def close_bracket(self) -> AsyncGenerator[None, None] | None:
        """Hand out the generator of the interceptor that runs now, once."""
        return None if self.brackets is None else self.brackets.pop(self.position, None)

    # What the loop asks for.

    def begin_inside(self, outer: Execution) -> None:
        """Take the context from an execution, one of whose stages started this one."""
        self.outer, self.predicates, self.alert = outer, outer.predicates, bool(outer.predicates)

    def turn(self) -> None:
        """Begin to leave, from the interceptor that was entered last."""
        self.handler = None
        self.stage = "leave"
        self.cursor = reversed(self.steps)

    def adopt(self, result: object) -> Context:
        """Go on with the context that a stage returned, or raise ``TypeError``."""
        context = self.context
        if result is context:
            return context
        name, stage = self.where()
        if not isinstance(result, self.kind):
            raise TypeError(
                f"interceptor {name!r}, stage {stage}, returned {result!r}; "
                f"a stage returns None or a {self.kind.__name__}"
            )
        if result._execution is not None:
            raise TypeError(f"interceptor {name!r}, stage {stage}, returned {result!r}, which another execution uses")
        result._continue(context)
        context._execution, result._execution = None, self
        self.context = result
        return result

    def attend(self) -> None:
        """Do after a stage what its return value did not say; raise what it attached or a predicate raised."""
        context = self.context
        if self.failure is None:
            context.error = None  # of an execution inside this stage, which the stage has dealt with
        requested, self.requested = self.requested, ()
        for variable, value in requested:
            self._bind_now(variable, value)
        if context._observers:
            self._tell()
        exception, self.attached = self.attached, None
        self.alert = bool(context._observers or self.predicates)
        if exception is not None:
            raise exception
        if self.stage == "enter" and (context._complete() or any(asked(context) for asked in self.predicates)):
            self.terminate()

    def take(self, exception: Exception) -> None:
        """Decide what a raised exception means: an outcome, a decline, or a failure to be offered outward."""
        self.requested, self.attached = (), None
        context, where = self.context, self.where()
        if context._absorb(exception):
            failure = None
        elif exception is self.failure:
            failure = exception  # declined
        else:
            failure = exception
            if self.failure is not None:
                context._suppressed = (self.failure, *context._suppressed)
            if context.error is None or context.error.exception is not exception:
                context.error = Failure(*where, exception, context.execution_id)
        self.failure = failure
        if failure is None:
            context.error = None
        if self.stage == "enter" or (self.stage == "leave" and failure is not None):
            del self.steps[self.position :]  # nothing more is entered, and this interceptor itself is asked first
            self.turn()
        else:
            self.unbind()  # it has had its say
        if failure is not None:
            self.stage = "error"

    def handled(self) -> None:
        """Record that an ``error`` stage returned: the outer interceptors leave as usual."""
        self.failure = self.context.error = None

    def unbind(self, position: int | None = None) -> None:
        """Take back what was bound from this position inwards, by default that of the interceptor that ran."""
        limit = self.position if position is None else position
        while self.bindings and self.bindings[-1][0] >= limit:
            _, variable, token = self.bindings[-1]
            self.bindings = self.bindings[:-1]
            variable.reset(token)

    def open_brackets(self) -> Iterator[tuple[int, AsyncGenerator[None, None]]]:
        """Hand out all generators that are still open, inner ones first."""
        while self.brackets:
            yield self.brackets.popitem()  # the newest, and what is further in is newer

    def finish(self, began_with: Context) -> None:
        """Take back all that is still bound, and give the context back to the outer execution, if there is one."""
        if self.bindings:
            self.unbind(0)
        if self.context._execution is not self:
            raise RuntimeError(f"{self.context!r} was executed twice at the same time; give each execution a copy()")
        self.context._execution = None
        if self.outer is not None:
            began_with._execution = self.outer
            self.outer.alert = True

    def _bind_now(self, variable: ContextVar[Any], value: object) -> None:
        token = variable.set(value)
        if self.stage == "enter":
            self.bindings += ((self.position, variable, token),)
            return
        # Bound on the way out: the inner binders have no say any more, and what was there before them comes back last.
        first = next((earlier for _, bound, earlier in self.bindings if bound is variable), token)
        self.bindings = ((0, variable, first), *(kept for kept in self.bindings if kept[1] is not variable))

    def _tell(self) -> None:
        """Tell each observer of the stage that returned; one that raises is logged and dropped."""
        context, (name, stage) = self.context, self.where()
        fact = StageRan(context.execution_id, name, stage, perf_counter() - self.since, self.values, context.snapshot())
        for observer in context._observers:
            try:
                observer(fact)
            except Exception as error:  # noqa: BLE001  # whatever it is, the chain is not its victim
                context._observers = tuple(kept for kept in context._observers if kept is not observer)
                log.exception(
                    "observer_dropped", observer=repr(observer), execution_id=context.execution_id, exc_info=error
                )
        self.observe()
