"""The observers of an application's streams, or of a Hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from ._logging import log
from .exceptions import EXIT_EXCEPTIONS

__all__ = ["Observers"]


F = TypeVar("F")


class Observers(Generic[F]):
    """Functions that are called with each fact. One that raises is logged and removed, and the others are called.

    It is true if there are observers, so that a fact which is not logged need not be made without them.

    Args:
        observers: An observer, several of them, or ``None``.
        dropped: The event that is logged when an observer is removed.

    Raises:
        TypeError: An observer is not a function.
    """

    __slots__ = ("_dropped", "_functions")

    def __init__(self, observers: Callable[[F], object] | Sequence[Callable[[F], object]] | None, dropped: str) -> None:
        self._dropped = dropped
        self._functions: tuple[Callable[[F], object], ...] = ()
        if callable(observers) or isinstance(observers, str) or not isinstance(observers, Sequence):
            observers = () if observers is None else (observers,)
        for observer in observers:
            self.add(observer)

    def __bool__(self) -> bool:
        return bool(self._functions)

    def add(self, observer: Callable[[F], object]) -> None:
        """Call a function with the facts from now on.

        Args:
            observer: A plain function of a fact.

        Raises:
            TypeError: The observer is not a function.
        """
        if not callable(observer):
            raise TypeError(f"observer is a function of a fact, not {observer!r}")
        self._functions += (observer,)

    def remove(self, observer: Callable[[F], object]) -> None:
        """Do not call a function any more. Idempotent.

        Args:
            observer: The function that was added.
        """
        self._functions = tuple(each for each in self._functions if each != observer)

    def tell(self, fact: F) -> None:
        """Call the observers with a fact."""
        for observer in self._functions:
            try:
                observer(fact)
            except EXIT_EXCEPTIONS:
                raise
            except BaseException as error:  # noqa: BLE001  # an observer must affect neither streams nor other observers
                self._functions = tuple(each for each in self._functions if each is not observer)
                log.exception(self._dropped, observer=repr(observer), exc_info=error)
