"""The chain: a context that runs through interceptors, in order on the way in and in reverse on the way out.

``Context`` is what stages get, ``ContextKey`` names a typed value in it, and ``Failure`` describes an exception that a
stage raised. ``execute`` runs a context through interceptors; its docstring is the specification of the chain. The
rest is internal: ``Execution`` is the state of one run, and ``run_execution`` is the loop.
"""

from __future__ import annotations

import inspect
import itertools
import os
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass
from functools import lru_cache
from inspect import isawaitable
from time import perf_counter
from types import CoroutineType
from typing import Any, ClassVar, Generic, NamedTuple, NoReturn, Self, TypeAlias, TypeVar, cast, overload

from ._checks import check_synchronous
from ._logging import log
from .exceptions import QueueClosed
from .facts import Observer, StageRan
from .interceptor import BaseContext, Interceptor, InterceptorLike, Stage, interceptors_of

__all__ = [
    "EMPTY_CHAIN",
    "Chain",
    "Context",
    "ContextKey",
    "Execution",
    "Failure",
    "compile_chain",
    "enter_generator",
    "execute",
    "leave_generator",
    "run_execution",
    "throw_into_generator",
]


Stages: TypeAlias = tuple[tuple[int, Callable[[Any], Any]], ...]
"""Functions of one stage, with the positions of their interceptors, which count from 1."""


class Chain(NamedTuple):
    """Interceptors in order, and the stages that they have, so that an absent stage costs a request nothing."""

    interceptors: tuple[Interceptor[Any], ...]
    enters: Stages
    leaves: Stages
    """Innermost first."""


def compile_chain(interceptors: tuple[Interceptor[Any], ...]) -> Chain:
    """Return the chain of some interceptors."""
    numbered = [*enumerate(interceptors, 1)]
    enters = tuple([(position, each.enter) for position, each in numbered if each.enter is not None])
    leaves = tuple([(position, each.leave) for position, each in reversed(numbered) if each.leave is not None])
    return Chain(interceptors, enters, leaves)


EMPTY_CHAIN = compile_chain(())

T = TypeVar("T")
D = TypeVar("D")


class ContextKey(Generic[T]):
    """A key for a value of a known type in a context: ``USER = ContextKey[User]("user")``.

    Keys are compared by identity: two keys with the same name are different, so those of two libraries never collide.

    Args:
        name: Shown in the ``repr``.

    Raises:
        TypeError: The name is not a ``str``.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"a ContextKey's name is a str, not {name!r}")
        self.name: str = name

    def __repr__(self) -> str:
        return f"<ContextKey {self.name!r}>"


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception that was raised in a chain, and where.

    Attributes:
        interceptor: Name of the interceptor, or of the handler, that raised it.
        stage: ``"enter"``, ``"leave"`` or ``"error"``.
        exception: The exception.
        execution_id: The ``execution_id`` of the context.
    """

    interceptor: str
    stage: Stage
    exception: Exception
    execution_id: int | str

    def __str__(self) -> str:
        text = str(self.exception)
        return f"{type(self.exception).__name__} in interceptor {self.interceptor!r}, stage {self.stage}" + (
            f": {text}" if text else ""
        )


class Context(BaseContext):
    """The values of one execution, under ``ContextKey`` or ``str`` keys.

    A mutable mapping. The state of the chain (queue, error, observers) is in attributes, never among the values.

    Args:
        values: Initial values. The mapping is copied.
        execution_id: Identifies the execution in logs and facts, for instance a request ID from a proxy. A new number
            if ``None``.

    Attributes:
        execution_id: Identifies the execution.
        error: What was raised, and where, until an ``error`` stage has handled it; otherwise ``None``.

    Raises:
        TypeError: The values are not a mapping, or a key is neither a ``ContextKey`` nor a ``str``.
    """

    __slots__ = ("__weakref__", "_execution", "_observers", "_suppressed", "_values", "error", "execution_id")

    _kind: ClassVar[type[Context]]
    """The class that a context which a stage returns must have."""
    _serial: ClassVar[Iterator[int]]
    execution_id: int | str
    error: Failure | None

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

    # Keys are narrower than MutableMapping allows, so that a ContextKey has a typed value.
    @overload  # type: ignore[override]  # keys are narrower, see above
    def __getitem__(self, key: ContextKey[T]) -> T: ...
    @overload
    def __getitem__(self, key: str) -> object: ...
    def __getitem__(self, key: object) -> object:
        return self._values[key]

    @overload  # type: ignore[override]  # keys are narrower, see above
    def __setitem__(self, key: ContextKey[T], value: T) -> None: ...
    @overload
    def __setitem__(self, key: str, value: object) -> None: ...
    def __setitem__(self, key: object, value: object) -> None:
        if not isinstance(key, (str, ContextKey)):
            raise TypeError(f"a context's key is a ContextKey or a str, not {key!r}")
        self._values[key] = value

    @overload  # type: ignore[override]  # keys are narrower, see above
    def get(self, key: ContextKey[T]) -> T | None: ...
    @overload
    def get(self, key: ContextKey[T], default: D) -> T | D: ...
    @overload
    def get(self, key: str, default: object = None) -> object: ...
    def get(self, key: object, default: object = None) -> object:
        """Return the value under a key.

        Args:
            key: A ``ContextKey`` or a ``str``.
            default: Returned if the key is absent.
        """
        return self._values.get(key, default)

    def __delitem__(self, key: object) -> None:
        del self._values[key]

    def __iter__(self) -> Iterator[object]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __bool__(self) -> bool:
        return True  # also without values, so that "RequestContext.find(request) and ..." is about the context

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.execution_id} {self._values!r}>"

    @property
    def queue(self) -> tuple[Interceptor[Context], ...]:
        """The interceptors that are still to be entered, in order; empty once the chain is leaving."""
        return () if self._execution is None else self._execution.queue

    @property
    def suppressed(self) -> tuple[Failure, ...]:
        """The failures that another exception replaced, newest first.

        Pedestal keeps the exceptions only; a ``Failure`` also has interceptor and stage.
        """
        return self._suppressed

    def enqueue(self, *interceptors: InterceptorLike[Self]) -> None:
        """Append interceptors to the queue. After ``terminate`` this has no effect.

        Args:
            *interceptors: Interceptors, objects with stage methods, or sequences of these.

        Raises:
            QueueClosed: The running stage is not ``enter``. A copy accepts the call; the stage that returns the copy
                then fails with it.
            TypeError: An argument is not an interceptor.
        """
        self._queue_owner("enqueue").enqueue(interceptors_of(interceptors, skip_none=False))

    def inject(self, *interceptors: InterceptorLike[Self]) -> None:
        """Insert interceptors at the front of the queue. After ``terminate`` this has no effect.

        Args:
            *interceptors: Interceptors, objects with stage methods, or sequences of these.

        Raises:
            QueueClosed: The running stage is not ``enter``, as in ``enqueue``.
            TypeError: An argument is not an interceptor.
        """
        self._queue_owner("inject").inject(interceptors_of(interceptors, skip_none=False))

    def terminate(self) -> None:
        """Enter no further interceptor: once this stage returns, the chain leaves. Idempotent.

        Interceptors that are enqueued afterwards, in the same stage too, are not entered. (In Pedestal ``terminate``
        empties the queue, and a later ``enqueue`` fills it again.)

        Raises:
            QueueClosed: The running stage is not ``enter``, as in ``enqueue``.
        """
        self._queue_owner("terminate").terminate()

    def terminate_when(self, predicate: Callable[[Self], object]) -> None:
        """Terminate once a predicate is true. It is evaluated after each ``enter`` that ran, this one included.

        A nested ``execute`` on the same context evaluates it too; a later execution of the context does not. (In
        Pedestal predicates stay in the context.) A predicate that returns an awaitable is a ``TypeError`` of the stage.

        Args:
            predicate: A plain function that takes the context.

        Raises:
            QueueClosed: The running stage is not ``enter``, as in ``enqueue``.
            TypeError: The predicate is not a plain function.
        """
        if not callable(predicate) or inspect.iscoroutinefunction(predicate):
            raise TypeError(f"terminate_when takes a plain function of the context, not {predicate!r}")
        self._queue_owner("terminate_when").terminate_when(predicate)

    def with_error(self, exception: Exception) -> Self:
        """Make the running stage end as if it had raised an exception: ``return context.with_error(exception)``.

        Args:
            exception: An instance of ``Exception``.

        Returns:
            This context.

        Raises:
            RuntimeError: No chain runs with this context.
            TypeError: The argument is not an ``Exception``.
        """
        if not isinstance(exception, Exception):
            raise TypeError(f"with_error takes an exception, not {exception!r}")
        self._stage_owner("with_error").with_error(exception)
        return self

    def bind(self, variable: ContextVar[T], value: T) -> None:
        """Set a context variable for all later stages, until the chain has left this interceptor, by an error or not.

        Bound in ``leave``, in ``error``, or on a copy that is executed on its own, it lasts until the execution ends.
        The running stage itself still sees the old value.

        Args:
            variable: The context variable.
            value: Its value.

        Raises:
            RuntimeError: No chain runs with this context.
            TypeError: The variable is not a ``contextvars.ContextVar``.
        """
        if not isinstance(variable, ContextVar):
            raise TypeError(f"bind takes a contextvars.ContextVar, not {variable!r}")
        self._stage_owner("bind").bind(variable, value)

    def add_observer(self, observer: Observer) -> None:
        """Call a function with a ``StageRan`` after each stage, starting with the running one.

        An observer that raises is logged and removed.

        Args:
            observer: A plain function that takes a ``StageRan``.

        Raises:
            TypeError: The observer is not a plain function.
        """
        if not callable(observer) or inspect.iscoroutinefunction(observer):
            raise TypeError(f"an observer is a plain function of one fact, not {observer!r}")
        self._observers += (observer,)
        if self._execution is not None and self._execution.started:
            self._execution.start_measuring()

    def snapshot(self) -> dict[object, object]:
        """Return a copy of the values. Dictionaries in it are copied too, other values are shared."""
        return {key: _copy_dict(value) for key, value in self._values.items()}

    def copy(self) -> Self:
        """Return a context with the same values, attributes, ID, observers and queue.

        A copy of a running context is in no execution, and can be executed on its own. If a stage returns the copy, the
        chain continues with it, and everything that the stage did to it takes effect: values, a response, ``enqueue``,
        ``inject``, ``terminate``, ``terminate_when``, ``bind``, ``with_error``, ``add_observer``. Changes to a copy
        that no stage returns have no effect. An ``@around`` generator that started with the original context finds
        the copy's state in it after its ``yield``.
        """
        copy = type(self).__new__(type(self))
        self._copy_into(copy)
        copy._execution = None if self._execution is None else self._execution.copy_for(copy)
        return copy

    def _copy_into(self, context: Context) -> None:
        """Copy all attributes to another context, except for the execution."""
        for name in _slots_of(type(self)):
            if name != "_execution" and hasattr(self, name) and hasattr(type(context), name):
                setattr(context, name, getattr(self, name))
        if hasattr(self, "__dict__") and hasattr(context, "__dict__"):  # a subclass without slots
            context.__dict__.update(self.__dict__)
        context._values = dict(self._values)

    def _queue_owner(self, call: str) -> Execution:
        """Return the execution whose queue may change, or raise ``QueueClosed``."""
        if self._execution is None:
            self._execution = Execution(self)
        return self._execution.check_entering(call)

    def _stage_owner(self, call: str) -> Execution:
        """Return the execution of the running stage, or of a copy that a stage may return."""
        execution = self._execution
        if execution is None or not (execution.started or execution.is_copy):
            raise RuntimeError(f"{call}() is for a stage of a running chain; {self!r} is in none")
        return execution

    # Hooks. A subclass overrides them to give the chain a result, such as the response to a request.

    def _start_execution(self) -> None:
        """Prepare for an execution that is not nested in another one."""
        self.error, self._suppressed = None, ()

    def _end_execution(self) -> None:
        """Leave an execution that was not nested in another one."""
        self._execution = None

    def _inherit_from(self, context: Context) -> None:
        """Inherit the chain's state from a context that this one replaces, because a stage returned it."""
        self._observers = context._observers + tuple(o for o in self._observers if o not in context._observers)
        self._suppressed, self.error, self.execution_id = context._suppressed, context.error, context.execution_id

    def _restore_from(self, context: Context) -> None:
        """Take over all state of a context that had replaced this one, which is in use again."""
        context._copy_into(self)

    def _call_handler(self, handler: Callable[[Any], Awaitable[object]]) -> Awaitable[object]:
        """Call the handler at the end of the chain."""
        return handler(self)

    def _set_result(self, result: object) -> None:
        """Accept what the handler returned."""

    def _accept_exception(self, exception: Exception) -> bool:  # noqa: ARG002
        """Accept an exception as the result, and return ``True``; return ``False`` for an error."""
        return False

    def _current_result(self) -> object:
        """Return the result that the chain has by now, or ``None``. A new one ends entering."""
        return None

    def _result_exception(self) -> Exception | None:
        """Return the result if it is an exception, which ``@around`` generators then see at their ``yield``."""
        return None

    def _on_handled(self, failure: Failure) -> None:
        """Note that an ``error`` stage has handled a failure."""


@lru_cache(64)
def _slots_of(kind: type[Context]) -> tuple[str, ...]:
    """Return the names of a class's slots, those of its bases included."""
    slots = (vars(base).get("__slots__", ()) for base in kind.__mro__)
    names = (name for own in slots for name in ((own,) if isinstance(own, str) else own))
    return tuple(name for name in names if name not in ("__weakref__", "__dict__"))


def _copy_dict(value: object) -> object:
    return {key: _copy_dict(item) for key, item in value.items()} if type(value) is dict else value


Context._kind = Context


def _restart_serial() -> None:
    """Start the execution IDs at a random number, so that processes rarely share one. All of them are exact in JSON."""
    Context._serial = itertools.count(secrets.randbits(32) << 20)


_restart_serial()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restart_serial)


_Call: TypeAlias = tuple[str, tuple[Any, ...]]
_QUEUE_CALLS = frozenset({"enqueue", "inject", "terminate", "terminate_when"})


class Execution:
    """The state of one run of a chain.

    ``interceptors`` holds those that were entered, followed by the queue. ``position`` counts them from 1 and is that
    of the interceptor whose stage runs, or ran last. It grows while the chain enters and shrinks while it leaves.

    What a stage requests (``with_error``, ``bind``) is applied when it has returned. ``needs_attention`` is true if
    ``after_stage`` has something to do, so that most stages cost no further call.

    The attributes that every run reads are set in ``__init__``; the others have their defaults on the class.
    """

    __slots__ = (
        "__dict__",
        "abandoned",
        "bindings",
        "chain",
        "context",
        "failure",
        "handler",
        "needs_attention",
        "outer",
        "position",
        "stage",
        "started",
        "terminated",
    )

    initial_result: object = None  # the result that the context had when this execution started
    has_new_result: bool = False  # a stage has set a result, perhaps the same one again
    predicates: tuple[Callable[[Any], object], ...] = ()
    requested_error: Exception | None = None  # by the running stage
    requested_bindings: tuple[tuple[ContextVar[Any], object], ...] = ()  # by the running stage
    generators: dict[int, tuple[AsyncGenerator[None, None], Context]] | None = None  # open @around ones, by position

    is_copy: bool = False  # belongs to a copy of a running context, and has not started
    recorded_calls: tuple[_Call, ...] = ()  # made before the start, and repeated if a stage returns the context
    is_placeholder: bool = False  # only marks a context whose execution continues with another context

    outer_failure: Failure | None = None  # what the outer execution was offering to error stages at that moment
    inner: Execution | None = None  # the execution that the running stage started and that has not ended

    stage_started_at: float = 0.0  # perf_counter() seconds, while there are observers
    values_before: dict[object, object] | None = None  # the context's values at that moment

    def __init__(self, context: Context, chain: Chain = EMPTY_CHAIN) -> None:
        self.context: Context = context
        self.chain: Chain = chain
        self.position: int = 0
        self.stage: Stage = "enter"
        self.handler: Any = None  # while it runs
        self.outer: Execution | None = None  # the execution in one of whose stages this one started
        self.abandoned: bool = False  # the outer execution, or another one, has taken the context
        self.started: bool = False
        self.terminated: bool = False
        self.needs_attention: bool = False
        self.failure: Failure | None = None  # what is being offered to error stages
        self.bindings: tuple[tuple[int, ContextVar[Any], Token[Any]], ...] = ()  # with the binder's position

    @property
    def interceptors(self) -> tuple[Interceptor[Any], ...]:
        """The interceptors that were entered, followed by the queue."""
        return self.chain.interceptors

    @interceptors.setter
    def interceptors(self, interceptors: tuple[Interceptor[Any], ...]) -> None:
        self.chain = compile_chain(interceptors)

    @property
    def queue(self) -> tuple[Interceptor[Any], ...]:
        """The interceptors that are still to be entered."""
        return self.interceptors[self.position :] if self.stage == "enter" else ()

    @property
    def pending_enters(self) -> Stages:
        """The ``enter`` stages of the queue."""
        return tuple([each for each in self.chain.enters if each[0] > self.position])

    @property
    def pending_leaves(self) -> Stages:
        """The ``leave`` stages of the interceptors before the position, innermost first."""
        return tuple([each for each in self.chain.leaves if each[0] < self.position])

    def current_stage(self) -> tuple[str, Stage]:
        """Return the name of the interceptor (or handler) that runs, and its stage."""
        if self.handler is not None:
            return getattr(self.handler, "__name__", None) or repr(self.handler), self.stage
        return self.interceptors[self.position - 1].name, self.stage

    # What a stage requests through its context.

    def check_entering(self, call: str) -> Execution:
        """Return itself while the queue may change; otherwise raise ``QueueClosed``."""
        if self.stage != "enter" or self.handler is not None:
            name, stage = self.current_stage()
            raise QueueClosed(
                f"{call}() was called in stage {stage} of {name!r}; "
                "the queue is fixed once the handler runs or the chain leaves, so call it in enter"
            )
        return self

    def enqueue(self, interceptors: tuple[Interceptor[Any], ...]) -> None:
        """Append to the queue."""
        self._record("enqueue", interceptors)
        if not self.terminated:
            self.interceptors += interceptors
            self.needs_attention = True

    def inject(self, interceptors: tuple[Interceptor[Any], ...]) -> None:
        """Insert at the front of the queue."""
        self._record("inject", interceptors)
        if not self.terminated:
            entered, queue = self.interceptors[: self.position], self.interceptors[self.position :]
            self.interceptors = entered + interceptors + queue
            self.needs_attention = True

    def terminate(self) -> None:
        """Empty the queue for good."""
        self._record("terminate")
        self.terminated = self.needs_attention = True
        if self.position < len(self.interceptors):
            self.interceptors = self.interceptors[: self.position]

    def terminate_when(self, predicate: Callable[[Any], object]) -> None:
        """Evaluate a predicate after each ``enter``."""
        self._record("terminate_when", predicate)
        self.predicates += (predicate,)
        self.needs_attention = True

    def with_error(self, exception: Exception) -> None:
        """Raise an exception once the running stage has returned."""
        self._record("with_error", exception)
        self.requested_error = exception
        self.needs_attention = True

    def bind(self, variable: ContextVar[T], value: T) -> None:
        """Set a variable once the running stage has returned."""
        self._record("bind", variable, value)
        self.requested_bindings += ((variable, value),)
        self.needs_attention = True

    def note_result(self) -> None:
        """Note that a stage has set a result."""
        self.needs_attention = self.has_new_result = True

    def start_measuring(self) -> None:
        """Measure the running stage, or the next one, for the observers."""
        self.stage_started_at = perf_counter()
        self.values_before = self.context.snapshot()
        self.needs_attention = True

    def _record(self, method: str, *arguments: Any) -> None:
        if not self.started:
            self.recorded_calls += ((method, arguments),)

    # Copies.

    def copy_for(self, context: Context) -> Execution:
        """Return the execution of a copied context: with all requests so far, or none if this one has started."""
        copy = Execution(context)
        copy.is_copy = self.is_copy or self.started
        if not self.started:
            copy.chain, copy.terminated = self.chain, self.terminated
            copy.recorded_calls, copy.has_new_result = self.recorded_calls, self.has_new_result
            copy.predicates, copy.needs_attention = self.predicates, self.needs_attention
            copy.requested_error, copy.requested_bindings = self.requested_error, self.requested_bindings
        return copy

    def apply_requests(self) -> None:
        """Apply the requests that were made to a copy, which is now executed on its own."""
        if self.requested_error is not None:
            raise RuntimeError(
                f"with_error({self.requested_error!r}) is for a context that a stage returns, and this copy is executed"
            )
        self._apply_bindings(0)

    # Start and end.

    def start(self) -> None:
        """Start, nested in the execution that has the context now, if there is one."""
        context = self.context
        outer = context._execution
        if outer is None or outer is self:
            context._start_execution()
        else:
            self.outer, outer.inner = outer, self
            self.predicates = outer.predicates
            self.needs_attention = bool(outer.predicates)
            outer.needs_attention = True  # its stage may return while this execution runs
            self.outer_failure = context.error = outer.failure or outer.outer_failure
        context._execution = self
        self.started = True

    def finish(self, initial_context: Context) -> None:
        """Reset all variables that are still bound, and give the context back to the outer execution."""
        if self.bindings:
            self.unbind(0)
        if self.abandoned:
            return
        if self.context._execution is not self and not self.reclaim_context():
            self.raise_overlap()
        context, outer = self.context, self.outer
        if outer is None:
            context._end_execution()
        else:
            context._execution = None
        if context is not initial_context:  # the caller's context shows the final state too
            initial_context._restore_from(context)
            if initial_context._execution is not None and initial_context._execution.is_placeholder:
                initial_context._execution = None
        if outer is not None:
            initial_context._execution = outer
            outer.inner, outer.needs_attention = None, True
            if self.has_new_result:
                outer.has_new_result = True

    def reclaim_context(self) -> bool:
        """Take the context back from a nested execution that a stage left running. Return ``False`` without one."""
        last, nested = self, self.inner
        while nested is not None:
            nested.abandoned = True
            if nested.has_new_result:
                self.has_new_result = True
            last, nested = nested, nested.inner
        if self.abandoned or last is self:
            self.abandoned = True
            return False
        context, self.inner = self.context, None
        if last.context is not context:
            context._restore_from(last.context)
            last.context._execution = None
        context._execution = self
        self.needs_attention = True  # the nested execution may have set a result
        return True

    def raise_overlap(self) -> NoReturn:
        """Raise because another execution has the context, so that requests of a stage may be lost."""
        raise RuntimeError(f"{self.context!r} was executed twice at the same time; give each execution a copy()")

    # What the loop calls.

    def stage_returned(self, returned: object) -> Context:
        """Return the context to continue with after a stage that was awaited or returned a value."""
        context = self.context
        if context._execution is not self:
            self.raise_overlap()
        if returned is not None:
            context = self.replace_context(returned)
        if self.stage == "enter" and context._current_result() is not None:
            self.needs_attention = True  # while it was awaited, the stage may have sent a response without attaching it
        return context

    def after_stage(self) -> None:
        """Apply what a stage requested, notify observers, and terminate if there is a result or a predicate is true.

        Raises the requested error, or what a predicate raised.
        """
        context = self.context
        if context._execution is not self:
            self.raise_overlap()
        if self.failure is None:
            context.error = self.outer_failure  # a nested execution has handled its own errors by now
        self._apply_bindings(self.position if self.stage == "enter" else 0)
        if context._observers:
            self._notify_observers()
        self.needs_attention = bool(context._observers or self.predicates)
        self._raise_requested_error()
        if self.stage == "enter" and (
            self._has_result() or any(map(self._is_true, self.predicates)) or self._has_result()  # set by a predicate
        ):
            self.terminate()

    def handler_returned(self, returned: object) -> Context:
        """Accept what the handler returned, and return the context to continue with."""
        context = self.context
        if context._execution is not self and not self.reclaim_context():
            self.raise_overlap()
        context._set_result(returned)
        return context

    def after_handler(self) -> None:
        """Apply what the handler requested. Raises the requested error."""
        if self.context._observers:
            self.start_measuring()  # the next stage: the handler is none
        self._apply_bindings(0)
        self._raise_requested_error()

    def start_leaving(self, position: int) -> None:
        """Leave the interceptors before this position, innermost first."""
        self.handler, self.stage, self.position = None, "leave", position

    def _raise_requested_error(self) -> None:
        exception, self.requested_error = self.requested_error, None
        if exception is not None:
            raise exception

    def _has_result(self) -> bool:
        result = self.context._current_result()
        return result is not None and (self.has_new_result or result is not self.initial_result)

    def _is_true(self, predicate: Callable[[Any], object]) -> bool:
        return bool(check_synchronous(predicate(self.context), f"the predicate {predicate!r} of terminate_when"))

    def _notify_observers(self) -> None:
        """Call each observer with the stage that returned. One that raises is logged and removed."""
        context, (name, stage), now = self.context, self.current_stage(), perf_counter()
        after = context.snapshot()
        # The observer may have come with another context, or with a nested execution.
        before, started_at = (after, now) if self.values_before is None else (self.values_before, self.stage_started_at)
        fact = StageRan(context.execution_id, name, stage, now - started_at, before, after)
        for observer in context._observers:
            try:
                observer(fact)
            except Exception as error:  # noqa: BLE001  # an observer must not break the chain
                context._observers = tuple(kept for kept in context._observers if kept is not observer)
                log.exception(
                    "observer_dropped", observer=repr(observer), execution_id=context.execution_id, exc_info=error
                )
        self.start_measuring()

    # Replacing the context.

    def replace_context(self, returned: object) -> Context:
        """Continue with the context that a stage returned. Raises ``TypeError`` for anything else."""
        context = self.context
        if returned is context:
            return context
        name, stage = self.current_stage()
        if not isinstance(returned, context._kind):
            if inspect.iscoroutine(returned):
                returned.close()  # otherwise Python warns, far from here, that it was never awaited
            raise TypeError(
                f"interceptor {name!r}, stage {stage}, returned {returned!r}; "
                f"a stage returns None or a {context._kind.__name__}"
            )
        prepared = returned._execution
        if prepared is not None and (prepared.started or prepared.is_placeholder):
            raise TypeError(f"interceptor {name!r}, stage {stage}, returned {returned!r}, which another execution uses")
        calls = () if prepared is None else prepared.recorded_calls
        for call, _ in calls:
            if call in _QUEUE_CALLS:
                self.check_entering(call)
        returned._inherit_from(context)
        context._execution, returned._execution = None, self
        if self.is_copy or self.outer is not None:  # the code that started it still holds the first context
            context._execution = Execution(context)
            context._execution.is_placeholder = True
        self.context = returned
        self.needs_attention = True  # the context may have brought observers, or a result
        if prepared is not None and prepared.has_new_result:
            self.has_new_result = True
        for call, arguments in calls:
            getattr(self, call)(*arguments)
        return returned

    def restore_context(self, earlier: Context) -> None:
        """Continue with a context that the execution had before, which takes over the state of the present one."""
        context = self.context
        if earlier is context or (earlier._execution is not None and not earlier._execution.is_placeholder):
            return
        earlier._restore_from(context)
        context._execution, earlier._execution = None, self
        self.context = earlier

    # Context variables.

    def unbind(self, position: int) -> None:
        """Reset the variables that were bound at this position or further in."""
        while self.bindings and self.bindings[-1][0] >= position:
            _, variable, token = self.bindings[-1]
            self.bindings = self.bindings[:-1]
            variable.reset(token)

    def _apply_bindings(self, position: int) -> None:
        """Set the requested variables, for the interceptor at this position, or at 0 until the execution ends."""
        requested, self.requested_bindings = self.requested_bindings, ()
        for variable, value in requested:
            token = variable.set(value)
            if position:
                self.bindings = (*self.bindings, (position, variable, token))
            else:
                # The earlier bindings of this variable no longer count, and its first value is restored at the end.
                first = next((earlier for _, other, earlier in self.bindings if other is variable), token)
                self.bindings = ((0, variable, first), *(kept for kept in self.bindings if kept[1] is not variable))

    # Exceptions.

    def handle_exception(self, exception: Exception) -> None:
        """Decide what a raised exception is: a result, the failure raised again, or a new failure."""
        self._discard_requests()
        context, (name, stage) = self.context, self.current_stage()
        if context._accept_exception(exception):
            context.error = self.outer_failure
            if self.stage == "error":
                self.failure_handled()
            elif self.stage == "enter":
                self.start_leaving(self.position + 1)
            return
        if self.failure is not None and exception is self.failure.exception:
            context.error = self.failure
        else:
            if self.failure is not None:
                context._suppressed = (self.failure, *context._suppressed)
            if context.error is None or context.error.exception is not exception:  # else a nested execution raised it
                context.error = Failure(name, stage, exception, context.execution_id)
            self.failure = context.error
        if self.stage != "error":
            self.handler, self.stage = None, "error"
            self.position += 1  # the interceptor that raised is offered it first

    def failure_handled(self) -> None:
        """Leave from the next interceptor outward, because an ``error`` stage has returned."""
        if self.failure is not None:
            self.context._on_handled(self.failure)
        self.clear_failure()
        self.start_leaving(self.position)

    def clear_failure(self) -> None:
        """Forget the failure that was being offered."""
        self.failure = None
        self.context.error = self.outer_failure

    def leave_at(self, position: int) -> None:
        """Be in the ``leave`` stage of an interceptor, because everything further in was interrupted."""
        self._discard_requests()
        self.unbind(position + 1)
        self.start_leaving(position)

    def _discard_requests(self) -> None:
        self.requested_bindings, self.requested_error = (), None

    # @around generators.

    def add_generator(self, generator: AsyncGenerator[None, None]) -> None:
        """Keep the generator of the running interceptor until the chain leaves it."""
        if self.generators is None:
            self.generators = {}
        self.generators[self.position] = (generator, self.context)

    def pop_generator(self) -> AsyncGenerator[None, None] | None:
        """Return the running interceptor's generator, if one is open, and continue with the context that it has."""
        generator, context = (self.generators or {}).pop(self.position, (None, None))
        if context is not None:
            self.restore_context(context)
        return generator

    def pop_generators(self) -> Iterator[tuple[int, AsyncGenerator[None, None], Context]]:
        """Yield all open generators with position and context, innermost first."""
        while self.generators:
            position, (generator, context) = self.generators.popitem()
            yield position, generator, context


C = TypeVar("C", bound=Context)


async def execute(context: C | None = None, /, *interceptors: InterceptorLike[C]) -> C:
    """Run a context through a chain of interceptors and return the context after the last stage.

    *Entering.* Interceptors are entered in order: first those that were enqueued before, then those given here. The
    chain calls ``enter(context)`` of each one that has it. A stage that is not ``async`` is called without a task
    switch. A stage returns ``None`` to continue with the same context, or the context to continue with; anything else
    is a ``TypeError`` that names interceptor, stage and value. In ``enter`` the queue can be changed with
    ``context.enqueue`` (append), ``inject`` (put in front), ``terminate``, and ``terminate_when(predicate)``, whose
    predicates are evaluated after each ``enter`` that ran.

    *Leaving.* When the queue is empty, ``leave(context)`` is called in reverse order for all interceptors that were
    entered, including those that have no ``enter``. The queue cannot change any more: trying raises ``QueueClosed``.

    *Errors.* An ``Exception`` in any stage ends entering. The chain offers it to ``error(context, exception)`` of the
    interceptor that raised it, if it did so in ``enter`` or ``leave``, and then of those further out. Returning handles
    it, and the interceptors further out leave as usual. Raising the same exception declines it. Raising another one
    replaces it, and the replaced one goes to the front of ``context.suppressed``. Until it is handled,
    ``context.error`` holds interceptor, stage, exception and execution ID. If no stage handles it, ``execute`` raises
    the exception itself, with a note that names interceptor and stage.

    *Cancellation.* ``CancelledError``, ``KeyboardInterrupt`` and ``SystemExit`` are not offered to ``error`` stages,
    and no ``leave`` is called. They are raised at the ``yield`` of each open ``@around`` generator, innermost first,
    and bindings are reset. If a generator raises an ``Exception`` instead, that is its failure; if one swallows the
    interruption, the chain leaves from there. Otherwise it propagates. Cancelling ``execute`` is safe.

    *Bindings* of ``context.bind`` are visible to the stages after the one that bound, and are reset when the chain has
    left that interceptor. *Observers* are called after each stage that returned.

    *Several executions.* Two executions share nothing but their interceptors. A nested ``execute`` inside a stage, on
    the same context too, has its own queue, evaluates the outer predicates as well, and leaves the outer execution
    unchanged. Executing one context twice at the same time is a ``RuntimeError``: it is raised when a stage returns
    while another execution has its context, and no further interceptor is entered. A nested execution that a handler
    left running, in a task that it did not await, gets that error at its next stage. If a stage returns another
    context, for instance a copy, that one is returned, and the context given here has the same state afterwards.

    Args:
        context: The context to run; a new ``Context`` if ``None``.
        *interceptors: Interceptors, objects with stage methods, or sequences of these. ``None`` is skipped.

    Returns:
        The context after the last stage.

    Raises:
        Exception: What a stage raised and no ``error`` stage handled.
        TypeError: The first argument is not a context, or another one is not an interceptor.
        RuntimeError: The context is executed twice at the same time.
    """
    current = cast("C", Context()) if context is None else context
    if not isinstance(current, Context):
        raise TypeError(f"execute takes a context first, not {current!r}")
    execution = current._execution
    if execution is None or execution.started:
        execution = Execution(current)
    if execution.is_placeholder:
        execution.raise_overlap()
    execution.initial_result, execution.has_new_result = current._current_result(), False
    execution.enqueue(interceptors_of(interceptors))
    if execution.is_copy:
        execution.apply_requests()
    return cast("C", await run_execution(execution))


async def run_execution(  # noqa: C901, PLR0912  # each coroutine more costs every request and open stream
    execution: Execution, handler: Any = None, finalize: Callable[[Any], Any] | None = None
) -> Any:
    """Run an execution and return its context, or what ``finalize`` makes of it.

    ``handler``, if given, is called once the queue is empty, unless the chain was terminated.
    """
    initial_context = execution.context
    context: Any = initial_context
    execution.start()
    try:
        if context._observers:
            execution.start_measuring()
        while True:
            try:
                if execution.stage == "enter":
                    enters = execution.chain.enters
                    while enters:
                        for execution.position, enter in enters:
                            returned: Any = enter(context)
                            if returned is not None:
                                if type(returned) is CoroutineType or isawaitable(returned):
                                    returned = await returned
                                context = execution.stage_returned(returned)
                            if execution.needs_attention:
                                execution.after_stage()
                                enters = execution.pending_enters  # the queue may be another one now
                                break
                        else:
                            break
                    execution.position = len(execution.chain.interceptors)
                    if handler is not None and not execution.terminated:
                        execution.handler = handler
                        returned = await context._call_handler(handler)
                        context = execution.handler_returned(returned)
                    if execution.needs_attention:
                        execution.after_handler()
                    execution.start_leaving(execution.position + 1)
                    leaves = execution.chain.leaves
                else:
                    leaves = execution.pending_leaves
                for execution.position, leave in leaves:
                    if execution.bindings:
                        execution.unbind(execution.position + 1)
                    returned = leave(context)
                    if returned is not None:
                        if type(returned) is CoroutineType or isawaitable(returned):
                            returned = await returned
                        context = execution.stage_returned(returned)
                    if execution.needs_attention:
                        execution.after_stage()
                break
            except BaseException as raised:  # noqa: BLE001  # _recover decides
                context = await _recover(execution, raised)
    finally:
        execution.finish(initial_context)
    if execution.failure is not None:
        raise _with_note(execution.failure)
    return context if finalize is None else finalize(context)


async def _recover(execution: Execution, raised: BaseException) -> Context:
    """Offer what a stage raised to the interceptors further out, and return the context that the loop leaves with.

    Raises it if it is not an ``Exception`` and no generator swallows it, or if another execution has the context.
    """
    while True:
        try:
            if execution.context._execution is not execution and not execution.reclaim_context():
                await _close_generators(execution, raised)
            elif not isinstance(raised, Exception):
                await _interrupt(execution, raised)
            else:
                execution.handle_exception(raised)
                if execution.failure is not None:
                    await _offer_failure(execution, execution.failure.exception)
        except BaseException as another:
            if execution.abandoned or (another is raised and not isinstance(another, Exception)):
                raise
            raised = another  # handled in the same way
        else:
            return execution.context


async def _offer_failure(execution: Execution, exception: Exception) -> None:
    """Call the ``error`` stages outward until one returns, or all of them have been called."""
    for interceptor in reversed(execution.interceptors[: execution.position - 1]):
        execution.position -= 1
        if execution.bindings:
            execution.unbind(execution.position + 1)
        error = interceptor.error
        if error is None:
            continue
        if execution.context._observers:
            execution.start_measuring()  # this stage, without what has raised
        returned: Any = error(execution.context, exception)
        if returned is not None:
            if type(returned) is CoroutineType or isawaitable(returned):
                returned = await returned
            execution.stage_returned(returned)
        if execution.needs_attention:
            execution.after_stage()
        execution.failure_handled()
        return


async def _interrupt(execution: Execution, interruption: BaseException) -> None:
    """Raise an interruption at the ``yield`` of open ``@around`` generators, innermost first, until one swallows it.

    Raises what a generator raises instead, or else the interruption itself.
    """
    for position, generator, context in execution.pop_generators():
        name = execution.interceptors[position - 1].name
        if isinstance(interruption, GeneratorExit):  # the chain's coroutine is being closed, and cannot await anything
            await _close_generator(generator, name, execution.context, interruption)
            continue
        execution.leave_at(position)
        execution.restore_context(context)
        try:
            await _throw(generator, name, interruption)
        except BaseException as another:
            if another is not interruption:
                raise
        else:
            execution.clear_failure()
            return
    raise interruption


async def _close_generators(execution: Execution, raised: BaseException) -> NoReturn:
    """Close the ``@around`` generators of an execution that has lost its context, and raise."""
    for position, generator, _ in execution.pop_generators():
        await _close_generator(generator, execution.interceptors[position - 1].name, execution.context, raised)
    raise raised


async def _close_generator(
    generator: AsyncGenerator[None, None], name: str, context: Context, raised: BaseException
) -> None:
    """Raise an exception at a generator's ``yield``, and log any other one that the generator raises."""
    try:
        if isinstance(raised, GeneratorExit):
            await generator.aclose()
        else:
            await _throw(generator, name, raised)
    except BaseException as error:  # noqa: BLE001  # the chain ends with the first exception
        if error is not raised:
            log.exception("around_not_closed", interceptor=name, execution_id=context.execution_id, exc_info=error)


def _with_note(failure: Failure) -> Exception:
    """Return an exception with a note that names interceptor and stage. The same note is added once."""
    note = f"raised in interceptor {failure.interceptor!r}, stage {failure.stage}"
    if note not in getattr(failure.exception, "__notes__", ()):
        failure.exception.add_note(note)
    return failure.exception


# The three stages of an @around interceptor.


async def enter_generator(context: Context, generator: AsyncGenerator[None, None], name: str) -> None:
    """Run a generator up to its ``yield``."""
    try:
        await anext(generator)
    except StopAsyncIteration:
        raise RuntimeError(
            f"{name!r} ended without a yield; an @around generator has exactly one, at which the chain continues"
        ) from None
    _running(context).add_generator(generator)


async def leave_generator(context: Context, name: str) -> None:
    """Run a generator to its end. A result that is an exception is raised at its ``yield``, and may pass."""
    generator = _running(context).pop_generator()
    if generator is None:
        return
    result = context._result_exception()
    if result is not None:
        try:
            await _throw(generator, name, result)
        except Exception as exception:
            if exception is not result:
                raise
        return
    try:
        await anext(generator)
    except StopAsyncIteration:
        return
    await _refuse_second_yield(generator, name)


async def throw_into_generator(context: Context, name: str, exception: Exception) -> None:
    """Raise an exception at a generator's ``yield``."""
    generator = _running(context).pop_generator()
    if generator is None:  # the generator itself raised it, and is over
        raise exception
    await _throw(generator, name, exception)


def _running(context: Context) -> Execution:
    return cast("Execution", context._execution)  # a stage runs in an execution


async def _throw(generator: AsyncGenerator[None, None], name: str, exception: BaseException) -> None:
    try:
        await generator.athrow(exception)
    except StopAsyncIteration:
        return
    except RuntimeError as wrapped:
        # PEP 479 wraps a StopAsyncIteration that leaves a generator in a RuntimeError; it counts as the same exception.
        if wrapped is not exception and wrapped.__cause__ is exception and isinstance(exception, StopAsyncIteration):
            raise exception from None
        raise
    await _refuse_second_yield(generator, name)


async def _refuse_second_yield(generator: AsyncGenerator[None, None], name: str) -> NoReturn:
    await generator.aclose()
    raise RuntimeError(f"{name!r} has a second yield; an @around generator has exactly one")
