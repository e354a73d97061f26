"""A pytest plugin that runs the tests of aiohttp-sse with our class, like an application that replaces the class.

``EventSourceResponse`` is ``EventStreamResponse`` when the tests import it, and the default of ``sse_response``.
Nothing else changes. A test of an intended difference must fail, with the expected message.
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
    """An intended difference."""

    tests: tuple[str, ...]
    message: str
    """A regular expression for the failures of these tests."""
    reason: str


DIFFERENCES = (
    Difference(
        ("test_func",),
        r"assert 'no-cache, no-transform' == 'no-cache'",
        "Cache-Control has no-transform, because a proxy might compress the stream and delay events; Connection is "
        "set by aiohttp, which knows whether the connection is kept alive",
    ),
    Difference(
        ("test_ping_reset", "test_ping_auto_close"),
        r"assert None( is not None)?\n.*_ping_task",
        "there is no ping task: one timer serves all streams and writes heartbeats to the transport, not with write(); "
        "use is_connected() and wait() instead of the state of the task",
    ),
    Difference(
        ("test_connection_is_not_alive",),
        r"ClientConnectionResetError: the client has disconnected",
        "a second prepare() after a disconnect raises ConnectionResetError, as send() does: a CancelledError without "
        "a call of cancel() silently ends task groups and timeouts",
    ),
)


def pytest_configure() -> None:
    aiohttp_sse.EventSourceResponse = EventStreamResponse
    aiohttp_sse.sse_response = functools.partial(aiohttp_sse.sse_response, response_cls=EventStreamResponse)


@pytest.hookimpl(tryfirst=True)  # before -k deselects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.module.EventSourceResponse is not EventStreamResponse:
            raise pytest.UsageError(f"{item.nodeid} would run with {item.module.EventSourceResponse}")
    for name, difference in _expected.items():
        affected = [item for item in items if item.originalname == name]
        if not affected:
            raise pytest.UsageError(f"there is no test {name}, which shows the difference: {difference.reason}")
        for item in affected:
            item.add_marker(pytest.mark.xfail(reason=difference.reason, strict=True))


class _ErrorHandler(logging.Handler):
    """Keeps the exceptions of request handlers, which aiohttp only logs if the response was already sent."""

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
    handler, logger = _ErrorHandler(), logging.getLogger("aiohttp.server")
    logger.addHandler(handler)
    try:
        result = yield
    finally:
        logger.removeHandler(handler)
    if handler.errors:
        raise handler.errors[0]
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    expected_failure = report.when == "call" and report.skipped and hasattr(report, "wasxfail")
    if expected_failure and re.search(_expected[item.originalname].message, str(report.longrepr)) is None:
        report.outcome = "failed"
        del report.wasxfail
    return report


_expected = {name: difference for difference in DIFFERENCES for name in difference.tests}
