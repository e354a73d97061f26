"""What the Hub's tests share: cost, as a number that does not depend on the machine."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable

import pytest


@pytest.fixture
def operations() -> Callable[..., int]:
    """Count the calls of functions, ours and Python's, and the resumptions of generators, while something runs."""

    def count(call: Callable[..., object], *arguments: object) -> int:
        counted = 0

        def profile(frame: object, event: str, argument: object) -> None:
            nonlocal counted
            counted += event in ("call", "c_call")

        before = sys.getprofile()
        gc.disable()  # who is called by it, as Hypothesis is, has nothing to do with this
        sys.setprofile(profile)
        try:
            call(*arguments)
        finally:
            sys.setprofile(before)
            gc.enable()
        return counted

    return count
