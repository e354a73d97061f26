"""A chain is compiled once into the functions that the loop calls, and knows whose each one is."""

from __future__ import annotations

import pytest

from aiohttp_interceptors.chain import Chain, Context
from aiohttp_interceptors.interceptor import Interceptor


def stage(context: Context) -> None:
    """Be a stage."""


def other(context: Context) -> None:
    """Be another stage."""


CHAIN = Chain(
    [
        Interceptor("leaves", leave=stage),
        Interceptor("both", stage, stage),
        Interceptor("handles", error=lambda context, exception: None),
        Interceptor("enters", other),
    ]
)


def test_enters_are_in_order_and_leaves_in_reverse() -> None:
    chain = Chain([Interceptor("a", stage, other), Interceptor("b", leave=stage), Interceptor("c", other)])
    assert chain.enters == (stage, other)
    assert chain.leaves == (stage, other)
    assert [step.name for step in chain.steps] == ["a", "b", "c"]


def test_an_empty_chain_has_nothing_to_call() -> None:
    assert (Chain().steps, Chain().enters, Chain().leaves) == ((), (), ())


def test_the_nth_enter_is_that_of_the_nth_that_has_one() -> None:
    assert [CHAIN.position_entered(entered) for entered in range(3)] == [0, 2, 4]


def test_with_n_leaves_to_go_the_nth_from_outside_is_next() -> None:
    assert [CHAIN.position_leaving(remaining) for remaining in range(3)] == [0, 1, 2]


def test_there_are_not_more_than_there_are() -> None:
    with pytest.raises(IndexError, match="there are not so many stages"):
        CHAIN.position_leaving(3)
