"""Every exception of the library can be caught as what it is of Python's own."""

from __future__ import annotations

import asyncio

import pytest

from aiohttp_interceptors import exceptions as errors


@pytest.mark.parametrize(
    ("ours", "base"),
    [
        (errors.QueueClosed, RuntimeError),
        (errors.NoResponse, RuntimeError),
        (errors.ResponseCommitted, RuntimeError),
        (errors.ChannelFull, asyncio.QueueFull),
    ],
)
def test_each_exception_is_one_of_pythons_own(ours: type[Exception], base: type[Exception]) -> None:
    assert issubclass(ours, base)


def test_the_tree_in_the_docstring_is_the_whole_tree() -> None:
    for name in errors.__all__:
        assert f"─ {name}" in (errors.__doc__ or "")
        assert issubclass(getattr(errors, name), Exception)
    defined = [name for name, value in vars(errors).items() if isinstance(value, type) and not name.startswith("_")]
    assert sorted(defined) == sorted(errors.__all__)
