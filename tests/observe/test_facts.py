"""A fact is what happened, and nobody can change it."""

from __future__ import annotations

import dataclasses

import pytest

from aiohttp_interceptors.observe.facts import StageRan


def test_a_fact_is_frozen() -> None:
    fact = StageRan("run 1", "a", "enter", 0.1, {}, {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        fact.stage = "leave"  # type: ignore[misc]
