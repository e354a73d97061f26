"""The broker within one process."""

from __future__ import annotations

import pytest

from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from tests.brokers.contract import Contract, broker, brokers, topics  # noqa: F401  # fixtures


class MemorySite:
    """A log in memory."""

    def __init__(self) -> None:
        self.log = MemoryLog()

    def broker(self, *, max_records=None, publish_timeout=None):
        if max_records is not None:
            self.log._max_records = max_records
        return MemoryBroker(self.log)

    async def wipe(self):
        self.log.truncate(0)


@pytest.fixture
def site():
    return MemorySite()


class TestMemory(Contract):
    """The contract of all brokers."""


async def test_a_lost_entry_can_be_published_again_with_the_same_key():
    log = MemoryLog()
    publisher = MemoryBroker(log)
    kept = await publisher.publish("t", b"kept", idempotency_key="k")
    await publisher.publish("t", b"lost", idempotency_key="l")
    log.truncate(1)
    assert await publisher.publish("t", b"kept", idempotency_key="k") == kept
    again = await publisher.publish("t", b"lost", idempotency_key="l")
    assert (again.epoch, again.offset) == (log.epoch, 2)


def test_a_log_of_another_type_is_refused():
    with pytest.raises(TypeError, match="MemoryLog"):
        MemoryBroker("log")
