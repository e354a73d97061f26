"""A fixture that measures cost independently of the machine."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable

import pytest


@pytest.fixture
def operations() -> Callable[..., int]:
    """Count function calls, built-in ones included, and resumptions of generators while a function runs."""

    def count(call: Callable[..., object], *arguments: object) -> int:
        counted = 0

        def profile(frame: object, event: str, argument: object) -> None:
            nonlocal counted
            counted += event in ("call", "c_call")

        before = sys.getprofile()
        gc.disable()  # its callbacks, as those of Hypothesis, are not part of the cost
        sys.setprofile(profile)
        try:
            call(*arguments)
        finally:
            sys.setprofile(before)
            gc.enable()
        return counted

    return count
