"""``Interceptor``: a name with ``enter``, ``leave`` and ``error`` stages, checked when it is made.

Objects with methods of these names are converted by ``as_interceptor``, and nested sequences by ``interceptors_of``.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeAlias, TypeVar, cast

from ._checks import check_call

__all__ = [
    "STAGES",
    "BaseContext",
    "Interceptor",
    "InterceptorLike",
    "Stage",
    "StageResult",
    "as_interceptor",
    "interceptors_of",
]


Stage: TypeAlias = Literal["enter", "leave", "error"]
STAGES: tuple[Stage, ...] = ("enter", "leave", "error")


class BaseContext(MutableMapping[object, object]):
    """What a type checker accepts as the context of a stage. ``Context`` is its only direct subclass."""

    __slots__ = ()


C = TypeVar("C", bound=BaseContext, contravariant=True)  # noqa: PLC0105  # the suffix adds nothing for a reader
X = TypeVar("X", bound=BaseContext)

StageResult: TypeAlias = BaseContext | Awaitable[BaseContext | None] | None
"""What a stage returns: ``None`` to continue with the same context, or the context to continue with."""


@dataclass(frozen=True, slots=True, eq=False)
class Interceptor(Generic[C]):
    """A link of a chain: a name and one to three stages, which are plain or ``async`` functions.

    It has no state of an execution, so one interceptor can be in any number of chains and running requests at once.

    Attributes:
        name: Shown in logs and errors.
        enter: Called with the context on the way in.
        leave: Called with the context on the way out.
        error: Called with the context and the exception if a stage further in, or this interceptor, raised one.

    Raises:
        TypeError: The name is not a ``str``, or a stage is not a function that takes these arguments.
        ValueError: The name is blank, or there is no stage.
    """

    name: str
    enter: Callable[[C], StageResult] | None = None
    leave: Callable[[C], StageResult] | None = None
    error: Callable[[C, Exception], StageResult] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"an interceptor's name is a str, not {self.name!r}")
        if not self.name.strip():
            raise ValueError(f"an interceptor's name must not be blank, as {self.name!r} is: logs and errors show it")
        if self.enter is None and self.leave is None and self.error is None:
            raise ValueError(f"interceptor {self.name!r} has no stage; give it enter, leave or error")
        for stage in STAGES:
            _check_stage(self.name, stage, getattr(self, stage))

    def __repr__(self) -> str:
        stages = ", ".join(stage for stage in STAGES if getattr(self, stage) is not None)
        return f"<Interceptor {self.name!r}: {stages}>"


class _HasEnter(Protocol[C]):
    """An object with an ``enter`` method, and perhaps the others."""

    def enter(self, context: C, /) -> StageResult:
        """Run on the way in."""


class _HasLeave(Protocol[C]):
    """An object with a ``leave`` method, and perhaps the others."""

    def leave(self, context: C, /) -> StageResult:
        """Run on the way out."""


class _HasError(Protocol[C]):
    """An object with an ``error`` method, and perhaps the others."""

    def error(self, context: C, exception: Exception, /) -> StageResult:
        """Run on the way out of an exception."""


InterceptorLike: TypeAlias = (
    "Interceptor[X] | _HasEnter[X] | _HasLeave[X] | _HasError[X] | Sequence[InterceptorLike[X]] | None"
)
"""An interceptor, an object with stage methods, ``None`` (often skipped), or a sequence of these."""


def _check_stage(name: str, stage: Stage, function: object) -> None:
    if function is None:
        return
    where = f"{stage} of interceptor {name!r}"
    if not callable(function) or inspect.isclass(function):
        raise TypeError(f"{where} is a plain or an async function, not {function!r}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(
            f"{where} is a generator, {function!r}; decorate an async generator with one yield with @around"
        )
    check_call(where, stage, function, *(("context", "exception") if stage == "error" else ("context",)))


def as_interceptor(candidate: object) -> Interceptor[BaseContext]:
    """Return an interceptor for an object with ``enter``, ``leave`` or ``error`` methods; an ``Interceptor`` unchanged.

    Its name is the object's ``name`` attribute, or the name of its class. Any other public method is a ``TypeError``,
    because a misspelt stage would never run. Helper methods start with an underscore.
    """
    if isinstance(candidate, Interceptor):
        return cast("Interceptor[BaseContext]", candidate)
    if inspect.isclass(candidate):
        raise TypeError(f"{candidate!r} is a class; pass an instance of it")
    if inspect.isroutine(candidate) or not any(callable(getattr(candidate, stage, None)) for stage in STAGES):
        raise TypeError(
            f"{candidate!r} is not an interceptor; use Interceptor(name, enter=…), @before, @after, @around, "
            "@on_error, or an object with enter, leave or error methods"
        )
    if others := sorted(_public_methods(type(candidate)) - set(STAGES)):
        raise TypeError(
            f"{type(candidate).__name__} has the public method {others[0]!r}, which is not a stage; "
            f"the stages are enter, leave and error; a helper method starts with an underscore: '_{others[0]}'"
        )
    name = getattr(candidate, "name", None) or type(candidate).__name__
    enter, leave, error = (getattr(candidate, stage, None) for stage in STAGES)
    return Interceptor(name, enter, leave, error)


def _public_methods(cls: type) -> set[str]:
    """Return the names of the public functions of a class and its bases."""
    members = (item for base in cls.__mro__[:-1] for item in vars(base).items())
    return {name for name, member in members if inspect.isfunction(member) and not name.startswith("_")}


def interceptors_of(candidates: Iterable[object], *, skip_none: bool = True) -> tuple[Interceptor[BaseContext], ...]:
    """Flatten nested sequences into interceptors. ``None`` is skipped, as in ``[auth, debug if DEBUG else None]``."""
    return tuple(_flatten(candidates, skip_none=skip_none))


_NOT_SEQUENCES = (str, bytes, Mapping, AbstractSet)  # a set has no order


def _flatten(candidates: Iterable[object], *, skip_none: bool) -> Iterator[Interceptor[BaseContext]]:
    for candidate in candidates:
        if isinstance(candidate, Iterable) and not isinstance(candidate, _NOT_SEQUENCES):
            yield from _flatten(candidate, skip_none=skip_none)
        elif candidate is not None or not skip_none:
            yield as_interceptor(candidate)
