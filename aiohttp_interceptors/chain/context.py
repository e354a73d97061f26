"""A context: the values of one execution, and the verbs that change what remains to run."""

from __future__ import annotations

import inspect
import itertools
import os
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, ClassVar, Generic, Self, TypeVar, overload

from ..observe.facts import Observer
from .execution import Execution
from .failure import Failure
from .interceptor import Interceptor, InterceptorLike, interceptors_of

__all__ = ["Context", "ContextKey"]

T = TypeVar("T")
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
