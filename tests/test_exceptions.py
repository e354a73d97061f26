"""The exceptions of the library and their base classes."""

from __future__ import annotations

import asyncio

import pytest

from aiohttp_interceptors import exceptions


@pytest.mark.parametrize(
    ("ours", "base"),
    [
        (exceptions.QueueClosed, RuntimeError),
        (exceptions.NoResponse, RuntimeError),
        (exceptions.ResponseCommitted, RuntimeError),
        (exceptions.ChannelFull, asyncio.QueueFull),
    ],
)
def test_each_exception_has_a_builtin_base(ours: type[Exception], base: type[Exception]) -> None:
    assert issubclass(ours, base)


def test_the_docstring_lists_every_exception() -> None:
    for name in exceptions.__all__:
        assert f"─ {name}" in (exceptions.__doc__ or "")
        assert issubclass(getattr(exceptions, name), Exception)
    defined = [name for name, value in vars(exceptions).items() if isinstance(value, type) and not name.startswith("_")]
    assert sorted(defined) == sorted(exceptions.__all__)
