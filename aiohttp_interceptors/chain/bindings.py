"""Context variables that a chain has set, with the positions of the binders, outermost first."""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import Any, TypeAlias

__all__ = ["Bindings", "bound", "unbound"]

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
