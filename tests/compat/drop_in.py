"""A pytest plugin that has aiohttp-sse's own tests run on our class, as an application that exchanges the class would.

``EventSourceResponse`` is ours when the tests import it, and the default of ``sse_response`` too. Nothing else is
touched. A test that stands for a difference we want must fail, and must show that difference and no other.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Generator
from dataclasses import dataclass

import aiohttp_sse
import pytest

from aiohttp_interceptors import EventStreamResponse


@dataclass(frozen=True)
class Difference:
    """What we do otherwise on purpose."""

    tests: tuple[str, ...]
    shows: str
    """A regular expression for what these tests fail with."""
    reason: str


DIFFERENCES = (
    Difference(
        ("test_func",),
        r"assert 'no-cache, no-transform' == 'no-cache'",
        "the head says no-transform, or a proxy may compress the stream and hold events back; and Connection is "
        "left to aiohttp, which knows whether it will be kept",
    ),
    Difference(
        ("test_ping_reset", "test_ping_auto_close"),
        r"assert None( is not None)?\n.*_ping_task",
        "there is no ping task: one timer serves all streams, and what is sent goes to the transport and not through "
        "write(); is_connected() and wait() tell what the task's state told",
    ),
    Difference(
        ("test_connection_is_not_alive",),
        r"ClientConnectionResetError: the client has disconnected",
        "a second prepare() for a lost client raises ConnectionResetError, as send() does: a CancelledError that "
        "nobody asked for ends task groups and timeouts in silence",
    ),
)


def pytest_configure() -> None:
    aiohttp_sse.EventSourceResponse = EventStreamResponse
    aiohttp_sse.sse_response = functools.partial(aiohttp_sse.sse_response, response_cls=EventStreamResponse)


@pytest.hookimpl(tryfirst=True)  # before -k deselects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.module.EventSourceResponse is not EventStreamResponse:
            raise pytest.UsageError(f"{item.nodeid} would run on {item.module.EventSourceResponse}")
    for name, difference in _expected.items():
        concerned = [item for item in items if item.originalname == name]
        if not concerned:
            raise pytest.UsageError(f"there is no test {name}, which shows a difference: {difference.reason}")
        for item in concerned:
            item.add_marker(pytest.mark.xfail(reason=difference.reason, strict=True))


class _Raised(logging.Handler):
    """Keeps what handlers raised: aiohttp logs it, and a test whose client has its answer already would not see it."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self.errors.append(record.exc_info[1])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    if item.originalname not in _expected:
        return (yield)
    raised, logger = _Raised(), logging.getLogger("aiohttp.server")
    logger.addHandler(raised)
    try:
        result = yield
    finally:
        logger.removeHandler(raised)
    if raised.errors:
        raise raised.errors[0]
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and report.skipped and hasattr(report, "wasxfail"):
        shown = str(report.longrepr)
        if re.search(_expected[item.originalname].shows, shown) is None:
            report.outcome = "failed"
            del report.wasxfail
    return report


_expected = {name: difference for difference in DIFFERENCES for name in difference.tests}
