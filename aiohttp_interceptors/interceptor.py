"""An interceptor: a name with ``enter``, ``leave`` and ``error`` stages. Checked when built, trusted ever after."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeAlias, TypeVar, cast

if TYPE_CHECKING:
    from .chain import Context

__all__ = [
    "Interceptor",
    "InterceptorLike",
    "Result",
    "Stage",
    "as_interceptor",
    "check_call",
    "interceptors_of",
    "unwrapped",
]


Stage: TypeAlias = Literal["enter", "leave", "error"]
STAGES: tuple[Stage, ...] = ("enter", "leave", "error")

C = TypeVar("C", bound="Context", contravariant=True)  # noqa: PLC0105  # the reader needs no suffix to read it
X = TypeVar("X", bound="Context")

Result: TypeAlias = "Context | Awaitable[Context | None] | None"
"""What a stage may return: nothing (the same context goes on), or the context that goes on from here."""


@dataclass(frozen=True, slots=True, eq=False)
class Interceptor(Generic[C]):
    """Name one link of a chain; any stage may be absent, but not all.

    A stage is a plain or an ``async`` function. ``enter`` and ``leave`` take the context, ``error`` takes the context
    and the exception. Holds no state of a run, so one object serves any number of chains and requests at once.

    Raises ``TypeError`` or ``ValueError`` with the value that is wrong.
    """

    name: str
    enter: Callable[[C], Result] | None = None
    leave: Callable[[C], Result] | None = None
    error: Callable[[C, Exception], Result] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"an interceptor's name is a str, not {self.name!r}")
        if not self.name.strip():
            raise ValueError(f"an interceptor's name is not blank, as {self.name!r} is: logs and errors speak of it")
        if self.enter is None and self.leave is None and self.error is None:
            raise ValueError(f"interceptor {self.name!r} has no stage; give it enter, leave or error")
        for stage in STAGES:
            _check_stage(self.name, stage, getattr(self, stage))

    def __repr__(self) -> str:
        stages = ", ".join(stage for stage in STAGES if getattr(self, stage) is not None)
        return f"<Interceptor {self.name!r}: {stages}>"


class Entering(Protocol[C]):
    """An object with an ``enter`` method; it may have ``leave`` and ``error`` too."""

    def enter(self, context: C, /) -> Result:
        """Run on the way in."""


class Leaving(Protocol[C]):
    """An object with a ``leave`` method; it may have ``enter`` and ``error`` too."""

    def leave(self, context: C, /) -> Result:
        """Run on the way out."""


class Handling(Protocol[C]):
    """An object with an ``error`` method; it may have ``enter`` and ``leave`` too."""

    def error(self, context: C, exception: Exception, /) -> Result:
        """Run on the way out of an exception."""


InterceptorLike: TypeAlias = (
    "Interceptor[X] | Entering[X] | Leaving[X] | Handling[X] | Sequence[InterceptorLike[X]] | None"
)
"""An interceptor, an object with stage methods, ``None`` (builders skip it), or a sequence of these."""


def _check_stage(name: str, stage: Stage, function: object) -> None:
    """Refuse what cannot be called as that stage."""
    if function is None:
        return
    where = f"{stage} of interceptor {name!r}"
    if not callable(function) or inspect.isclass(function):
        raise TypeError(f"{where} is a plain or an async function, not {function!r}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{where} is a generator, {function!r}; an async generator with one yield goes under @around")
    check_call(where, stage, function, *(("context", "exception") if stage == "error" else ("context",)))


def check_call(what: str, call: str, function: Callable[..., object], *arguments: str) -> None:
    """Refuse a function that does not take these arguments; ``call`` is how it is called."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # some builtins have none; then the call itself will tell
        return
    try:
        signature.bind(*arguments)
    except TypeError as mismatch:
        shown = f"{call}({', '.join(arguments)})"
        raise TypeError(f"{what} is called as {shown}, which {function!r} does not take: {mismatch}") from None


def unwrapped(function: object) -> object:
    """Return what a ``functools.partial``, perhaps of another one, calls; anything else as it is."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def as_interceptor(candidate: object) -> Interceptor[Context]:
    """Make an interceptor of an object that has ``enter``, ``leave`` or ``error`` methods, or raise ``TypeError``.

    Its name is its ``name`` attribute or else its class's. Every other public method of the class is refused,
    because a misspelt stage would never run; call helpers of your own ``_like_this``.
    """
    if isinstance(candidate, Interceptor):
        return cast("Interceptor[Context]", candidate)
    if inspect.isclass(candidate):
        raise TypeError(f"{candidate!r} is a class; pass an instance of it")
    if inspect.isroutine(candidate) or not any(callable(getattr(candidate, stage, None)) for stage in STAGES):
        raise TypeError(
            f"{candidate!r} is not an interceptor; use Interceptor(name, enter=…), @before, @after, @around, "
            "@on_error, or an object with enter, leave or error methods"
        )
    if strays := sorted(_public_methods(type(candidate)) - set(STAGES)):
        raise TypeError(
            f"{type(candidate).__name__} has the public method {strays[0]!r}, which is no stage; "
            f"a stage is enter, leave or error, and a method for its own use is called '_{strays[0]}'"
        )
    name = getattr(candidate, "name", None) or type(candidate).__name__
    enter, leave, error = (getattr(candidate, stage, None) for stage in STAGES)
    return Interceptor(name, enter, leave, error)


def _public_methods(cls: type) -> set[str]:
    """Name the functions that a class and its bases define in public."""
    members = (item for base in cls.__mro__[:-1] for item in vars(base).items())
    return {name for name, member in members if inspect.isfunction(member) and not name.startswith("_")}


def interceptors_of(candidates: Iterable[object], *, skip_none: bool = True) -> tuple[Interceptor[Context], ...]:
    """Flatten what a builder was given; ``None`` is skipped, so that ``a if debug else None`` reads well."""
    return tuple(_flatten(candidates, skip_none=skip_none))


_NO_SEQUENCE = (str, bytes, Mapping, AbstractSet)  # a set has no order


def _flatten(candidates: Iterable[object], *, skip_none: bool) -> Iterator[Interceptor[Context]]:
    for candidate in candidates:
        if isinstance(candidate, Iterable) and not isinstance(candidate, _NO_SEQUENCE):
            yield from _flatten(candidate, skip_none=skip_none)
        elif candidate is not None or not skip_none:
            yield as_interceptor(candidate)
