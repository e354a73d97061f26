"""Fixtures of the fuzzers: one application for all examples, on an event loop that runs between them."""

from __future__ import annotations

import asyncio

import pytest

from tests.hostile.site import served


@pytest.fixture(scope="module")
def runner():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def handler_cancellation() -> bool:
    """Serve as in production. A module whose clients disconnect may do both."""
    return False


@pytest.fixture(scope="module")
def site(runner, handler_cancellation):
    """Serve the application for all examples of a test module."""
    serving = served(handler_cancellation=handler_cancellation)
    yield runner.run(serving.__aenter__())
    runner.run(serving.__aexit__(None, None, None))
