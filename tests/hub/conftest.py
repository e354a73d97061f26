"""Fixtures of the Hub's tests: Hubs that are ready, a server that is in this process, and the cost of a function."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable

import pytest

from aiohttp_interceptors import Hub
from aiohttp_interceptors.brokers.memory import MemoryBroker
from aiohttp_interceptors.hub import pending, replication
from tests.waiting import until


@pytest.fixture(scope="module")
def quick():
    """Reconnect without delay: the server is in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replication, "MIN_RECONNECT_DELAY", 0.0001)
        patch.setattr(replication, "MAX_RECONNECT_DELAY", 0.001)
        patch.setattr(pending, "FUTURE_ID_TIMEOUT", 0.05)
        patch.setattr(MemoryBroker, "confirms", 0.02)
        yield


@pytest.fixture
async def hub_on():
    """Make Hubs that are ready, and close them after the test."""
    hubs = []

    async def make(broker=None, **options):
        hubs.append(hub := Hub(broker, **options))
        hub.open()
        await until(lambda: hub.ready)
        return hub

    yield make
    for hub in hubs:
        await hub.close()


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
