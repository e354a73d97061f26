"""What was raised in a chain, and where."""

from __future__ import annotations

import inspect
import itertools
import os
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from contextvars import ContextVar, Token
from dataclasses import dataclass
from functools import lru_cache
from inspect import isawaitable
from operator import length_hint
from time import perf_counter
from types import CoroutineType
from typing import Any, ClassVar, Generic, NoReturn, Self, TypeAlias, TypeVar, cast, overload

from ._checks import synchronous
from ._logging import log
from .decorators import throw
from .exceptions import QueueClosed
from .facts import Observer, StageRan
from .interceptor import Interceptor, InterceptorLike, Stage, interceptors_of

__all__ = ["Bindings", "Chain", "Context", "ContextKey", "Execution", "Failure", "bound", "drive", "execute", "unbound"]


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception that nobody has handled yet, and where it was raised."""

    interceptor: str
    stage: Stage
    exception: Exception
    execution_id: int | str

    def __str__(self) -> str:
        text = str(self.exception)
        return f"{type(self.exception).__name__} in interceptor {self.interceptor!r}, stage {self.stage}" + (
            f": {text}" if text else ""
        )


Bindings: TypeAlias = tuple[tuple[int, ContextVar[Any], Token[Any]], ...]


def bound(bindings: Bindings, position: int, variable: ContextVar[Any], value: object) -> Bindings:
    """Set a variable for the interceptor at this position, from 1, or at 0 for the rest of the execution."""
    token = variable.set(value)
    if position:
        return (*bindings, (position, variable, token))
    # On the way out the inner binders have no say any more, and what was there before them comes back last.
    first = next((earlier for _, other, earlier in bindings if other is variable), token)
    return ((0, variable, first), *(kept for kept in bindings if kept[1] is not variable))


def unbound(bindings: Bindings, position: int) -> Bindings:
    """Take back what was set from this position inwards."""
    while bindings and bindings[-1][0] >= position:
        _, variable, token = bindings[-1]
        bindings = bindings[:-1]
        variable.reset(token)
    return bindings


class Chain:
    """Some interceptors, and of those their stages: ``enters`` in order, ``leaves`` in reverse. Immutable.

    A route's chain is made once, so that a request pays nothing for stages that are absent.
    """

    __slots__ = ("enters", "leaves", "steps")

    def __init__(self, steps: Iterable[Interceptor[Any]] = ()) -> None:
        self.steps: tuple[Interceptor[Any], ...] = tuple(steps)
        self.enters: tuple[Callable[[Any], Any], ...] = tuple(
            step.enter for step in self.steps if step.enter is not None
        )
        self.leaves: tuple[Callable[[Any], Any], ...] = tuple(
            step.leave for step in reversed(self.steps) if step.leave is not None
        )

    def position_entered(self, entered: int) -> int:
        """Return the position, from 1, of the interceptor whose ``enter`` was called as the nth; 0 for none."""
        return self._position_of(entered, [step.enter is not None for step in self.steps])

    def position_leaving(self, remaining: int) -> int:
        """Return the position, from 1, of the interceptor with so many ``leave`` further out, its own included."""
        return self._position_of(remaining, [step.leave is not None for step in self.steps])

    @staticmethod
    def _position_of(nth: int, has_stage: list[bool]) -> int:
        if nth == 0:
            return 0
        for position, present in enumerate(has_stage, 1):
            nth -= present
            if nth == 0:
                return position
        raise IndexError("there are not so many stages")


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


D = TypeVar("D")


class ContextKey(Generic[T]):
    """Name a value of a context together with its type: ``USER = ContextKey[User]("user")``.

    Two keys of one name are two keys: a key is the object, so no two libraries can collide.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"a ContextKey's name is a str, not {name!r}")
        self.name: str = name

    def __repr__(self) -> str:
        return f"<ContextKey {self.name!r}>"


class Context(MutableMapping[object, object]):
    """The values of one execution, under ``ContextKey`` or ``str`` keys.

    What the chain itself keeps (queue, error, observers) is in attributes and never among the values.
    ``execution_id`` is kept when given (a request id from a proxy, say) and made otherwise.
    """

    __slots__ = ("__weakref__", "_execution", "_observers", "_suppressed", "_values", "error", "execution_id")

    _kind: ClassVar[type[Context]]  # what a stage may return in place of this one
    _serial: ClassVar[Iterator[int]]
    execution_id: int | str
    error: Failure | None
    """What was raised and not yet handled; an ``error`` stage reads here who raised it, and where."""

    def __init__(self, values: Mapping[str, object] | None = None, /, execution_id: int | str | None = None) -> None:
        self._values: dict[object, object] = {}
        if values is not None:
            if not isinstance(values, Mapping):
                raise TypeError(f"a context's values are a mapping, not {values!r}")
            for key, value in values.items():
                self[key] = value
        self._observers: tuple[Observer, ...] = ()
        self._suppressed: tuple[Failure, ...] = ()
        self._execution: Execution | None = None
        self.error = None
        self.execution_id = next(Context._serial) if execution_id is None else execution_id

    # The keys are narrower than a mapping's in general: that is the point of them.
    @overload  # type: ignore[override]  # as said
    def __getitem__(self, key: ContextKey[T]) -> T: ...
    @overload
    def __getitem__(self, key: str) -> object: ...
    def __getitem__(self, key: object) -> object:
        return self._values[key]

    @overload  # type: ignore[override]  # as said
    def __setitem__(self, key: ContextKey[T], value: T) -> None: ...
    @overload
    def __setitem__(self, key: str, value: object) -> None: ...
    def __setitem__(self, key: object, value: object) -> None:
        if not isinstance(key, (str, ContextKey)):
            raise TypeError(f"a context's key is a ContextKey or a str, not {key!r}")
        self._values[key] = value

    @overload  # type: ignore[override]  # as said
    def get(self, key: ContextKey[T]) -> T | None: ...
    @overload
    def get(self, key: ContextKey[T], default: D) -> T | D: ...
    @overload
    def get(self, key: str, default: object = None) -> object: ...
    def get(self, key: object, default: object = None) -> object:
        """Return the value of that key, or the default."""
        return self._values.get(key, default)

    def __delitem__(self, key: object) -> None:
        del self._values[key]

    def __iter__(self) -> Iterator[object]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.execution_id} {self._values!r}>"

    def copy(self) -> Self:
        """Return another context with the same values and attributes, id, observers and queued interceptors.

        The copy of a running context is in no execution: it can be executed by itself. When a stage returns it, the
        chain goes on with it, and what the stage did to it counts as done to the original: values, a response,
        ``enqueue``, ``inject``, ``terminate``, ``terminate_when``, ``bind``, ``with_error``, ``add_observer``. What a
        stage did to a copy that it does not return counts for nothing. An ``@around`` that began with the original
        finds the state of the copy in it after its ``yield``.
        """
        twin = type(self).__new__(type(self))
        self._copy_into(twin)
        twin._execution = None if self._execution is None else self._execution.copied_for(twin)
        return twin

    def _copy_into(self, twin: Context) -> None:
        """Give another context all attributes of this one but for the execution that it is in."""
        for name in _slots_of(type(self)):
            if name != "_execution" and hasattr(self, name) and hasattr(type(twin), name):
                setattr(twin, name, getattr(self, name))
        if hasattr(self, "__dict__") and hasattr(twin, "__dict__"):  # of a subclass without slots
            twin.__dict__.update(self.__dict__)
        twin._values = dict(self._values)

    def _continue(self, context: Context) -> None:
        """Become the context of an execution that another one has run so far."""
        self._observers = context._observers + tuple(o for o in self._observers if o not in context._observers)
        self._suppressed, self.error, self.execution_id = context._suppressed, context.error, context.execution_id

    def _resume(self, context: Context) -> None:
        """Become the context again of an execution that has gone on with another one; take over the other's state."""
        context._copy_into(self)

    def _begin(self) -> None:
        """Become the context of an execution that is not inside of another one."""
        self.error, self._suppressed = None, ()

    @property
    def queue(self) -> tuple[Interceptor[Context], ...]:
        """What has not been entered yet, in order; empty once the chain is leaving."""
        return () if self._execution is None else self._execution.queue

    @property
    def suppressed(self) -> tuple[Failure, ...]:
        """The failures that another one replaced, newest first: each with its interceptor, stage and exception.

        Pedestal keeps the exceptions alone.
        """
        return self._suppressed

    def enqueue(self, *interceptors: InterceptorLike[Self]) -> None:
        """Append to what is still to be entered; after ``terminate``, do nothing.

        Raises ``QueueClosed`` outside ``enter``, ``TypeError`` for what is no interceptor. On a copy, ``QueueClosed``
        is raised when a stage other than ``enter`` returns the copy.
        """
        self._pending("enqueue").append(interceptors_of(interceptors, skip_none=False))

    def inject(self, *interceptors: InterceptorLike[Self]) -> None:
        """Put in front of what is still to be entered. Raises as ``enqueue`` does."""
        self._pending("inject").prepend(interceptors_of(interceptors, skip_none=False))

    def terminate(self) -> None:
        """Enter nothing more: once this stage returns, the chain leaves. Raises ``QueueClosed`` outside ``enter``.

        What is queued after it, in the same stage too, is not entered. (In Pedestal it is: there ``terminate`` empties
        the queue, and a later ``enqueue`` fills it again.)
        """
        self._pending("terminate").terminate()

    def terminate_when(self, predicate: Callable[[Self], object]) -> None:
        """Ask this after each ``enter`` that ran; when true, enter nothing more. Raises ``QueueClosed`` as above.

        An ``execute`` inside a stage, on the same context, asks it as well; a later execution of the context does not.
        (In Pedestal predicates stay with the context.) One that returns an awaitable is a ``TypeError`` of the stage.
        """
        if not callable(predicate) or inspect.iscoroutinefunction(predicate):
            raise TypeError(f"terminate_when takes a plain function of the context, not {predicate!r}")
        self._pending("terminate_when").add_predicate(predicate)

    def with_error(self, exception: Exception) -> Self:
        """Return the context so that this stage ends as if it had raised the exception: ``return c.with_error(e)``."""
        if not isinstance(exception, Exception):
            raise TypeError(f"with_error takes an exception, not {exception!r}")
        self._in_stage("with_error").attach(exception)
        return self

    def bind(self, variable: ContextVar[T], value: T) -> None:
        """Set a context variable for all later stages, until the chain unwinds past this interceptor, error or not.

        Bound in ``leave`` or ``error``, or to a copy that is executed by itself, it lasts until the execution ends.
        """
        if not isinstance(variable, ContextVar):
            raise TypeError(f"bind takes a contextvars.ContextVar, not {variable!r}")
        self._in_stage("bind").bind(variable, value)

    def add_observer(self, observer: Observer) -> None:
        """Tell this callable of each stage that ran, the caller's included; one that raises is logged and dropped."""
        if not callable(observer) or inspect.iscoroutinefunction(observer):
            raise TypeError(f"an observer is a plain function of one fact, not {observer!r}")
        self._observers += (observer,)
        if self._execution is not None and self._execution.cursor is not None:
            self._execution.observe()

    def snapshot(self) -> dict[object, object]:
        """Return the values as they are now; dictionaries in it are copied, other values shared."""
        return {key: _copied(value) for key, value in self._values.items()}

    def _pending(self, verb: str) -> Execution:
        """Give the execution whose queue may change, or raise ``QueueClosed``."""
        if self._execution is None:
            self._execution = Execution(self)
        return self._execution.still_entering(verb)

    def _in_stage(self, verb: str) -> Execution:
        """Give the execution that a stage of this context runs in, or for a copy, the one that a stage may return."""
        execution = self._execution
        if execution is None or (execution.cursor is None and not execution.is_copy):
            raise RuntimeError(f"{verb}() is for a stage of a running chain; {self!r} is in none")
        return execution

    def _invoke(self, handler: Callable[[Any], Awaitable[object]]) -> Awaitable[object]:
        """Call what stands behind the chain, with what it takes at this edge."""
        return handler(self)

    def _receive(self, result: object) -> None:
        """Take what the handler returned; the edge knows what that means."""

    def _release(self) -> None:
        """Be in no execution any more."""
        self._execution = None

    def _absorb(self, exception: Exception) -> bool:  # noqa: ARG002
        """Say whether an exception is an outcome rather than an error; the edge overrides it for HTTP."""
        return False

    def _handled(self, failure: Failure) -> None:
        """Note that an ``error`` stage has handled a failure; the edge overrides it."""

    def _outcome(self) -> Exception | None:
        """Return the exception that the chain leaves with without an error; the edge overrides it for HTTP."""
        return None

    def _completion(self) -> object:
        """Return what leaves nothing to enter for, if anything does; the edge overrides it for a response."""
        return None


@lru_cache(64)
def _slots_of(kind: type[Context]) -> tuple[str, ...]:
    """Name the attributes that instances of a class have in slots."""
    slots = (vars(base).get("__slots__", ()) for base in kind.__mro__)
    names = (name for own in slots for name in ((own,) if isinstance(own, str) else own))
    return tuple(name for name in names if name not in ("__weakref__", "__dict__"))


def _copied(value: object) -> object:
    return {key: _copied(item) for key, item in value.items()} if type(value) is dict else value


Context._kind = Context


def _count_anew() -> None:
    """Count execution ids from where no other process is likely to count; all of them fit a JSON number."""
    Context._serial = itertools.count(secrets.randbits(32) << 20)


_count_anew()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_anew)


C = TypeVar("C", bound=Context)


async def execute(context: C | None = None, /, *interceptors: InterceptorLike[C]) -> C:
    """Run a context through a chain of interceptors and return the context that comes out.

    *The way in.* Interceptors run in order, those that were enqueued before and then those given here: each one's
    ``enter(context)``, if it has one. A stage that is not ``async`` is called without a task switch. A stage returns
    ``None``, and the same context goes on, or a context, and that one goes on; anything else is a ``TypeError`` that
    names interceptor, stage and value. In ``enter`` the context can ``enqueue`` (append), ``inject`` (put in front),
    ``terminate``, and ``terminate_when(predicate)``, whose predicates are asked after each ``enter`` that ran.

    *The way out.* When the queue is empty, ``leave(context)`` runs in reverse for all that were entered, also for
    those that have no ``enter``. The queue cannot change any more: trying raises ``QueueClosed``.

    *Errors.* An ``Exception`` in any stage ends the way in. From the interceptor that raised, itself included when it
    raised in ``enter`` or ``leave``, ``error(context, exception)`` is offered outward. Returning handles it, and the
    interceptors further out leave as usual. Raising the same exception declines. Raising another one replaces it,
    and the old one goes to the front of ``context.suppressed``. ``context.error`` tells interceptor, stage, exception
    and execution id for as long as nobody has handled it. If nobody does, ``execute`` raises the exception itself,
    with a note that names interceptor and stage.

    *Cancellation.* ``CancelledError``, ``KeyboardInterrupt`` and ``SystemExit`` are offered to no ``error`` stage, and
    no ``leave`` runs. They are raised at the ``yield`` of each open ``@around``, in reverse, and bindings are taken
    back. If one of these generators raises an ``Exception`` in its place, that is its failure; if one swallows it, the
    chain leaves from there. Otherwise the exception goes on.

    *Bindings* of ``context.bind`` are seen by the stages after the one that bound, and are taken back when the chain
    unwinds past it. *Observers* are told of each stage that returned.

    Two executions share nothing but their interceptors. An ``execute`` inside a stage, on the same context too, has a
    queue of its own, asks the outer predicates as well, and leaves the outer execution as it was. Executing one
    context twice at the same time is a ``RuntimeError``, raised when a stage returns while another execution has its
    context: nothing more is entered. An execution that a handler left running, in a task it did not wait for, gets that
    error when it comes to its next stage. Without a context, a new one is made. A stage may return
    another context, a copy say: then that one comes out, and the context given here has the same state afterwards.
    """
    current = cast("C", Context()) if context is None else context
    if not isinstance(current, Context):
        raise TypeError(f"execute takes a context first, not {current!r}")
    execution = current._execution
    if execution is None or execution.cursor is not None:
        execution = Execution(current)
    if execution.lent:
        execution.refuse_overlap()
    execution.completed_before, execution.completed_anew = current._completion(), False
    execution.append(interceptors_of(interceptors))
    if execution.is_copy:
        execution.begin()
    return cast("C", await drive(execution))


async def drive(  # noqa: C901, PLR0912, PLR0915  # split up, it costs each request several coroutines more
    execution: Execution, handler: Any = None, conclude: Callable[[Any], Any] | None = None
) -> Any:
    """Run an execution and return its context, or what ``conclude`` makes of it.

    The handler, if any, is called once the queue is empty and nothing has terminated the chain.

    One function and not five, and nothing allocated per stage: this runs for each stage of each request.
    """
    context: Any = execution.context
    began_with = context
    outer = context._execution
    if outer is not None and outer is not execution:
        execution.begin_inside(outer)
    else:
        outer = None
        context._begin()
    context._execution = execution
    execution.cursor = iter(execution.chain.enters)
    try:
        if context._observers:
            execution.observe()
        while True:
            try:
                while execution.stage == "enter":
                    for enter in execution.cursor:
                        result = enter(context)
                        if result is not None:
                            if type(result) is CoroutineType:  # not in _adopted: in here a stream waits
                                result = await result
                                if context._execution is not execution:
                                    execution.refuse_overlap()
                                if result is not None:
                                    context = execution.adopt(result)
                            else:
                                context = await _adopted(execution, result)
                            if context._completion() is not None:
                                execution.alert = True  # what it waited for may have answered without attaching
                        if execution.alert and execution.attend():
                            break  # the queue is another one now
                    else:
                        if handler is not None and not execution.terminated:
                            execution.handler = handler
                            result = await context._invoke(handler)
                            context = execution.context
                            if context._execution is not execution and not execution.regain():
                                execution.refuse_overlap()
                            context._receive(result)
                        if execution.alert:
                            execution.handler_returned()
                        else:  # the same, where nothing is bound: one call less for each request
                            execution.handler = None
                            execution.stage, execution.cursor = "leave", iter(execution.chain.leaves)
                for leave in execution.cursor:
                    result = leave(context)
                    if result is not None:
                        context = await _adopted(execution, result)
                    if execution.alert:
                        execution.attend()
                break
            except BaseException as raised:  # noqa: BLE001  # what it means is decided there
                context = await _recover(execution, raised)
    finally:
        if outer is None and context is began_with and not execution.bindings and context._execution is execution:
            context._release()
        else:
            execution.finish(began_with)
    if execution.failure is not None:
        raise _noted(execution)
    return context if conclude is None else conclude(context)


async def _recover(execution: Execution, raised: BaseException) -> Context:
    """Have what was raised handled further out, if it can be; the loop then leaves what is left."""
    while True:
        try:
            if execution.context._execution is not execution and not execution.regain():
                await _abandon(execution, raised)
            elif not isinstance(raised, Exception):
                await _interrupt(execution, raised)
            else:
                execution.take(raised)
                if execution.failure is not None:
                    await _offer(execution)
        except BaseException as another:
            if execution.left_behind or (another is raised and not isinstance(another, Exception)):
                raise
            raised = another  # it takes the same way
        else:
            return execution.context


async def _interrupt(execution: Execution, interruption: BaseException) -> None:
    """Raise an interruption at the ``yield`` of what ``@around`` opened, inner ones first, until one swallows it.

    Raises what a generator makes of it, or else the interruption itself.
    """
    for position, (generator, known) in execution.open_brackets():
        interceptor = execution.chain.steps[position - 1]
        if isinstance(interruption, GeneratorExit):  # the chain itself is being closed, and cannot wait for anything
            await _close(generator, interceptor.name, execution.context, interruption)
            continue
        execution.leave_at(position)
        execution.resume(known)
        try:
            await throw(generator, interceptor.name, interruption)
        except BaseException as another:
            if another is not interruption:
                raise
        else:
            execution.interruption_handled()
            return
    raise interruption


async def _abandon(execution: Execution, raised: BaseException) -> None:
    """Close what ``@around`` opened in an execution that has lost its context, and raise: no stage has a say."""
    for position, (generator, _) in execution.open_brackets():
        await _close(generator, execution.chain.steps[position - 1].name, execution.context, raised)
    raise raised


async def _close(generator: AsyncGenerator[None, None], name: str, context: Context, raised: BaseException) -> None:
    """Raise an exception at a generator's only yield, and log what else comes of that: the chain ends with the first.

    For a ``GeneratorExit`` that is closing it.
    """
    try:
        if isinstance(raised, GeneratorExit):
            await generator.aclose()
        else:
            await throw(generator, name, raised)
    except BaseException as error:  # noqa: BLE001  # as said
        if error is not raised:
            log.exception("around_not_closed", interceptor=name, execution_id=context.execution_id, exc_info=error)


async def _offer(execution: Execution) -> None:
    """Ask the ``error`` stages, inner ones first, until one returns."""
    for interceptor in execution.cursor or ():
        if interceptor.error is not None and execution.failure is not None:
            result = interceptor.error(execution.context, execution.failure)
            if result is not None:
                await _adopted(execution, result)
            if execution.alert:
                execution.attend()
            execution.handled()
            return
        execution.unbind(execution.position)


async def _adopted(execution: Execution, result: Any) -> Context:
    """Wait for what a stage returned and go on with the context that it names, if it names one."""
    if type(result) is CoroutineType or isawaitable(result):
        result = await result
    if execution.context._execution is not execution:
        execution.refuse_overlap()
    return execution.context if result is None else execution.adopt(result)


def _noted(execution: Execution) -> Exception:
    """Write on the exception that nobody handled where in the chain it was raised, once."""
    report = cast("Failure", execution.report)
    note = f"raised in interceptor {report.interceptor!r}, stage {report.stage}"
    if note not in getattr(report.exception, "__notes__", ()):
        report.exception.add_note(note)
    return report.exception
