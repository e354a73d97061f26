"""One execution's book-keeping: what is entered, what is queued, what must be undone. Decides; runs no stage."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Iterator
from contextvars import ContextVar
from operator import length_hint
from time import perf_counter
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeVar, cast

from .._checks import synchronous
from ..errors import QueueClosed
from ..observe.facts import StageRan
from ..observe.logs import log
from .bindings import Bindings, bound, unbound
from .chain import Chain
from .failure import Failure
from .interceptor import Interceptor, Stage

if TYPE_CHECKING:
    from .context import Context

__all__ = ["Execution"]

# What changes the queue: the method here, and the context's verb for it.
QUEUE_VERBS = {
    "append": "enqueue",
    "prepend": "inject",
    "terminate": "terminate",
    "add_predicate": "terminate_when",
}

T = TypeVar("T")

Bracket: TypeAlias = "tuple[AsyncGenerator[None, None], Context]"
"""An ``@around`` generator that has yielded, and the context that it was called with."""


class Execution:
    """Where one execution is.

    ``chain`` is what was entered and then what is queued; ``cursor`` is the iterator that the loop walks, over the
    chain's ``enter`` functions on the way in and its ``leave`` functions on the way out. It knows how far it is
    (``length_hint``), so that the loop counts nothing. ``alert`` is true when a stage may need more care than its
    return value: the loop looks at this one attribute after a stage.

    The attributes that the loop reads are slots; what most executions never use has its default on the class.
    """

    __slots__ = (
        "__dict__", "alert", "bindings", "chain", "context", "cursor", "failure", "handler", "inner",
        "stage", "terminated",
    )  # fmt: skip

    changed: bool = False  # whether the queue is another one than when the stage began
    outer: Execution | None = None  # the execution that one of whose stages started this one
    is_copy: bool = False  # not begun, of a context that was copied from a running one
    completed_anew: bool = False  # a stage, or who made this copy, attached something that completes the context
    verbs: tuple[tuple[str, object], ...] = ()  # what was asked for before it began, and of what
    predicates: tuple[Callable[[Any], object], ...] = ()
    attached: Exception | None = None
    requested: tuple[tuple[ContextVar[Any], object], ...] = ()  # bound by the stage that runs now
    brackets: dict[int, Bracket] | None = None  # open generators by position
    since: float = 0.0  # perf_counter seconds when the observed stage began
    values: dict[object, object] | None = None  # the context's values at that moment
    report: Failure | None = None  # of the failure that is being offered outward
    left_behind: bool = False  # the outer one has gone on without it
    lent: bool = False  # only says of a context that an execution has begun with it and gone on with another one
    completed_before: object = None  # what completes the context without this execution's doing
    inherited: Failure | None = None  # what was being offered outward when this execution began inside another one

    def __init__(self, context: Context, chain: Chain = Chain()) -> None:  # noqa: B008  # it is immutable
        self.context: Context = context
        self.chain: Chain = chain
        # What a stage started and has not ended; set when there is one, read when in doubt.
        self.inner: Execution | None
        self.cursor: Iterator[Any] | None = None  # until it is started
        self.handler: object = None  # what stands behind the chain, while it runs
        self.stage: Stage = "enter"
        self.alert: bool = False
        self.terminated: bool = False
        self.failure: Exception | None = None
        self.bindings: Bindings = ()

    @property
    def position(self) -> int:
        """Count from 1 the interceptor that runs now; the handler has the position of the last one."""
        if self.cursor is None:
            return 0
        ahead = length_hint(self.cursor)
        if self.handler is not None:
            return len(self.chain.steps)
        if self.stage == "enter":
            return self.chain.position_entered(len(self.chain.enters) - ahead)
        return self.chain.position_leaving(ahead + 1) if self.stage == "leave" else ahead + 1

    @property
    def queue(self) -> tuple[Interceptor[Any], ...]:
        """What is still to be entered."""
        return self.chain.steps[self.position :] if self.stage == "enter" else ()

    def where(self) -> tuple[str, Stage]:
        """Name the interceptor (or the handler) that runs now, and its stage."""
        if self.handler is not None:
            return getattr(self.handler, "__name__", None) or repr(self.handler), self.stage
        return self.chain.steps[self.position - 1].name, self.stage

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

    def append(self, interceptors: tuple[Interceptor[Any], ...]) -> None:
        """Have these entered after what is queued."""
        self._note("append", interceptors)
        self._set_queue(self.queue + interceptors)

    def prepend(self, interceptors: tuple[Interceptor[Any], ...]) -> None:
        """Have these entered next."""
        self._note("prepend", interceptors)
        self._set_queue(interceptors + self.queue)

    def terminate(self) -> None:
        """Have nothing more entered, whatever is queued later."""
        self._note("terminate", None)
        self.terminated = True
        self._set_queue(())

    def _set_queue(self, queue: tuple[Interceptor[Any], ...]) -> None:
        entered = self.chain.steps[: self.position]
        queue = () if self.terminated else queue
        self.chain = Chain(entered + queue)
        if self.cursor is not None:
            self.cursor = iter(Chain(queue).enters)
            self.alert = self.changed = True

    def add_predicate(self, predicate: Callable[[Any], object]) -> None:
        """Ask this after each ``enter``."""
        self._note("add_predicate", predicate)
        self.predicates += (predicate,)
        self.alert = True

    def attach(self, exception: Exception) -> None:
        """Have the stage that runs now end as if it had raised this."""
        self._note("attach", exception)
        self.attached = exception
        self.alert = True

    def bind(self, variable: ContextVar[T], value: T) -> None:
        """Set a variable once the stage that runs now has returned."""
        self._note("bind", (variable, value))
        self.requested += ((variable, value),)
        self.alert = True

    def _note(self, verb: str, argument: object) -> None:
        """Keep what was asked of a context that no chain runs yet, for the chain of a stage that returns it."""
        if self.cursor is None:
            self.verbs += ((verb, argument),)

    def copied_for(self, twin: Context) -> Execution:
        """Return what a copy of the context begins with: all that was asked for, or nothing if that is under way."""
        copy = Execution(twin)
        copy.is_copy = self.is_copy or self.cursor is not None
        if self.cursor is None:
            copy.chain, copy.terminated, copy.verbs = self.chain, self.terminated, self.verbs
            copy.completed_anew = self.completed_anew
            copy.predicates, copy.attached, copy.requested = self.predicates, self.attached, self.requested
        return copy

    def observe(self) -> None:
        """Begin to measure the stage that runs now, or the next one."""
        self.since = perf_counter()
        self.values = self.context.snapshot()
        self.alert = True

    def open_bracket(self, generator: AsyncGenerator[None, None]) -> None:
        """Keep a generator until the chain unwinds past the interceptor that runs now."""
        if self.brackets is None:
            self.brackets = {}
        self.brackets[self.position] = (generator, self.context)

    def close_bracket(self) -> AsyncGenerator[None, None] | None:
        """Hand out the generator of the interceptor that runs now, once, and go on with the context that it knows."""
        bracket = None if self.brackets is None else self.brackets.pop(self.position, None)
        if bracket is None:
            return None
        generator, known = bracket
        self.resume(known)
        return generator

    def resume(self, known: Context) -> None:
        """Go on with a context that the execution had before; it takes over the state of the present one."""
        context = self.context
        if known is context or (known._execution is not None and not known._execution.lent):
            return
        known._resume(context)
        context._execution, known._execution = None, self
        self.context = known

    # What the loop asks for.

    def begin_inside(self, outer: Execution) -> None:
        """Take the context from an execution, one of whose stages started this one."""
        self.outer, self.predicates, self.alert = outer, outer.predicates, bool(outer.predicates)
        outer.inner, outer.alert = self, True  # its stage may return while this one runs
        self.inherited = self.context.error = outer.report or outer.inherited

    def regain(self) -> bool:
        """Take the context back from an execution inside of this one that was left running; false if there is none."""
        last, left = self, getattr(self, "inner", None)
        while left is not None:
            left.left_behind = True
            if left.completed_anew:
                self.completed_anew = True
            last, left = left, getattr(left, "inner", None)
        if self.left_behind or last is self:
            self.left_behind = True
            return False
        context, self.inner = self.context, None
        if last.context is not context:
            context._resume(last.context)
            last.context._execution = None
        context._execution = self
        self.alert = True  # it may have attached a response
        return True

    def refuse_overlap(self) -> NoReturn:
        """Raise: the context is another execution's, so that what a stage asked of it may be lost."""
        raise RuntimeError(f"{self.context!r} was executed twice at the same time; give each execution a copy()")

    def turn(self) -> None:
        """Begin to leave, from the interceptor that is the last of the chain now."""
        self.handler = None
        self.stage = "leave"
        self.cursor = iter(self.chain.leaves)
        self.unwind()

    def unwind(self) -> None:
        """Take back what was bound further in than the ``leave`` that comes next."""
        if self.bindings and self.cursor is not None:
            self.unbind(self.chain.position_leaving(length_hint(self.cursor)) + 1)

    def adopt(self, result: object) -> Context:
        """Go on with the context that a stage returned, or raise ``TypeError``."""
        context = self.context
        if result is context:
            return context
        name, stage = self.where()
        if not isinstance(result, context._kind):
            if inspect.iscoroutine(result):
                result.close()  # or it would be reported as never awaited, far from here
            raise TypeError(
                f"interceptor {name!r}, stage {stage}, returned {result!r}; "
                f"a stage returns None or a {context._kind.__name__}"
            )
        asked = result._execution
        if asked is not None and (asked.cursor is not None or asked.lent):
            raise TypeError(f"interceptor {name!r}, stage {stage}, returned {result!r}, which another execution uses")
        verbs = () if asked is None else asked.verbs
        for verb, _ in verbs:
            if verb in QUEUE_VERBS:
                self.still_entering(QUEUE_VERBS[verb])
        result._continue(context)
        context._execution, result._execution = None, self
        if self.is_copy or self.outer is not None:  # who began it can return the context that it began with
            context._execution = Execution(context)
            context._execution.lent = True
        self.context = result
        self.alert = True  # it may have brought observers, or a response
        if asked is not None and asked.completed_anew:
            self.completed_anew = True
        for verb, argument in verbs:
            self._ask(verb, argument)
        return result

    def _ask(self, verb: str, argument: Any) -> None:
        """Do what was asked of a context before it became that of this execution."""
        if verb == "terminate":
            self.terminate()
        elif verb == "bind":
            self.bind(*argument)
        else:
            getattr(self, verb)(argument)

    def attend(self) -> bool:
        """Do after a stage what its return value did not say, and tell whether the queue is another one now.

        Raises what the stage attached, or what a predicate raised.
        """
        context = self.context
        if context._execution is not self:
            self.refuse_overlap()
        if self.failure is None:
            context.error = self.inherited  # not that of an execution inside this stage, which has dealt with it
        self._bind_requested(self.position if self.stage == "enter" else 0)
        if context._observers:
            self._tell()
        exception, self.attached = self.attached, None
        self.alert = bool(context._observers or self.predicates or self.bindings)
        if exception is not None:
            raise exception
        if self.stage == "leave":
            self.unwind()
        elif self.stage == "enter" and (
            self._is_complete() or any(map(self._holds, self.predicates)) or self._is_complete()  # a predicate's doing
        ):
            self.terminate()
        changed, self.changed = self.changed, False
        return changed

    def handler_returned(self) -> None:
        """Do after the handler what it asked for by way of the context, and begin to leave. Raises what it attached."""
        self._bind_requested(0)
        exception, self.attached = self.attached, None
        if exception is not None:
            raise exception
        self.turn()

    def _bind_requested(self, position: int) -> None:
        requested, self.requested = self.requested, ()
        for variable, value in requested:
            self.bindings = bound(self.bindings, position, variable, value)

    def note_completion(self) -> None:
        """Have the loop ask whether there is anything left to enter for, because a stage attached something."""
        self.alert = self.completed_anew = True

    def _is_complete(self) -> bool:
        completion = self.context._completion()
        return completion is not None and (self.completed_anew or completion is not self.completed_before)

    def _holds(self, predicate: Callable[[Any], object]) -> bool:
        """Ask a predicate; an awaitable is true whatever it is about to say, so it is refused."""
        return bool(synchronous(predicate(self.context), f"the predicate {predicate!r} of terminate_when"))

    def begin(self) -> None:
        """Start a copy that is executed by itself with what was asked of it."""
        if self.attached is not None:
            raise RuntimeError(
                f"with_error({self.attached!r}) is for a context that a stage returns, and this copy is executed"
            )
        self._bind_requested(0)

    def leave_at(self, position: int) -> None:
        """Be in the ``leave`` of the interceptor at this position, whatever stage was interrupted further in."""
        self.requested, self.attached, self.changed = (), None, False
        self.unbind(position + 1)
        self.chain = Chain(self.chain.steps[:position])
        self.handler, self.stage, self.cursor = None, "leave", iter(self.chain.leaves)
        next(self.cursor)

    def interruption_handled(self) -> None:
        """Record that the interceptor that runs now swallowed an interruption: those further out leave as usual."""
        self.failure = self.report = None
        self.context.error = self.inherited
        self.unwind()

    def take(self, exception: Exception) -> None:
        """Decide what a raised exception means: an outcome, a decline, or a failure to be offered outward."""
        self.requested, self.attached, self.changed = (), None, False
        context, where, position = self.context, self.where(), self.position
        if context._absorb(exception):
            context.error = self.inherited
            self._absorbed(position)
            return
        if exception is self.failure:
            context.error = self.report  # declined
        else:
            if self.failure is not None:
                context._suppressed = (cast("Failure", self.report), *context._suppressed)
            if context.error is None or context.error.exception is not exception:
                context.error = Failure(*where, exception, context.execution_id)
            self.failure, self.report = exception, context.error
        if self.stage == "error":
            self.unbind(position)  # it has had its say
        else:
            self.chain = Chain(self.chain.steps[:position])  # nothing more is entered, and itself is asked first
            self.handler, self.stage, self.cursor = None, "error", reversed(self.chain.steps)

    def _absorbed(self, position: int) -> None:
        """Go on as if the stage had returned."""
        if self.stage == "error":
            self.handled()
        elif self.stage == "leave":
            self.unwind()
        else:
            self.chain = Chain(self.chain.steps[:position])
            self.turn()

    def handled(self) -> None:
        """Record that an ``error`` stage returned: the interceptors further out leave as usual."""
        if self.report is not None:
            self.context._handled(self.report)
        self.failure = self.report = None
        self.context.error = self.inherited
        self.chain = Chain(self.chain.steps[: self.position - 1])
        self.turn()

    def unbind(self, position: int) -> None:
        """Take back what was bound from this position inwards."""
        self.bindings = unbound(self.bindings, position)

    def open_brackets(self) -> Iterator[tuple[int, Bracket]]:
        """Hand out all generators that are still open, inner ones first."""
        while self.brackets:
            yield self.brackets.popitem()  # the newest, and what is further in is newer

    def finish(self, began_with: Context) -> None:
        """Take back all that is still bound, and give the context back to the outer execution, if there is one."""
        if self.bindings:
            self.unbind(0)
        if self.left_behind:
            return
        if self.context._execution is not self and not self.regain():
            self.refuse_overlap()
        context = self.context
        if self.outer is None:
            context._release()
        else:
            context._execution = None
        if context is not began_with:  # it was asked to run, and shall show what came of it
            began_with._resume(context)
            if began_with._execution is not None and began_with._execution.lent:
                began_with._execution = None
        if self.outer is not None:
            began_with._execution = self.outer
            self.outer.inner, self.outer.alert = None, True
            if self.completed_anew:
                self.outer.completed_anew = True

    def _tell(self) -> None:
        """Tell each observer of the stage that returned; one that raises is logged and dropped."""
        context, (name, stage), now = self.context, self.where(), perf_counter()
        after = context.snapshot()
        # The observer may have come with another context or with an execution inside this stage.
        before, since = (after, now) if self.values is None else (self.values, self.since)
        fact = StageRan(context.execution_id, name, stage, now - since, before, after)
        for observer in context._observers:
            try:
                observer(fact)
            except Exception as error:  # noqa: BLE001  # whatever it is, the chain is not its victim
                context._observers = tuple(kept for kept in context._observers if kept is not observer)
                log.exception(
                    "observer_dropped", observer=repr(observer), execution_id=context.execution_id, exc_info=error
                )
        self.observe()
