"""Stages that tests of chains share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Stage = Callable[..., Any]


def raising(exception: BaseException) -> Stage:
    """Make a stage that raises an exception."""

    def stage(*_: object) -> None:
        raise exception

    return stage


def returning(value: object) -> Stage:
    """Make a stage that returns a value."""
    return lambda *_: value
