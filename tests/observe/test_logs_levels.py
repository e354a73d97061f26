"""Log lines by level, in an application that configured only the standard library."""

from __future__ import annotations

import io
import logging
import subprocess
import sys

import pytest
import structlog

from aiohttp_interceptors import EventsDropped, HubResumed, StreamOpened
from aiohttp_interceptors._logging import _built_in_configuration, log, log_fact, logs_everyday_facts
from aiohttp_interceptors.testing import captured_logs

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "exception": logging.ERROR}


@pytest.mark.parametrize("method", LEVELS)
def test_a_line_reaches_the_standard_library_at_its_level(caplog, method):
    with caplog.at_level(LEVELS[method], "aiohttp_interceptors"):
        getattr(log, method)("something_happened", interceptor="auth")
    assert [record.levelno for record in caplog.records] == [LEVELS[method]]
    assert "auth" in caplog.text


@pytest.mark.parametrize("method", LEVELS)
def test_a_line_below_the_level_is_not_logged(caplog, method):
    with caplog.at_level(LEVELS[method] + 1, "aiohttp_interceptors"):
        getattr(log, method)("something_happened")
    assert caplog.records == []


@pytest.mark.parametrize("method", LEVELS)
def test_captured_lines_go_to_structlog(caplog, method):
    with captured_logs() as lines:
        getattr(log, method)("something_happened", interceptor="auth")
    assert [(line["event"], line["interceptor"]) for line in lines] == [("something_happened", "auth")]
    assert caplog.records == []


@pytest.fixture
def structlog_defaults():
    yield
    structlog.reset_defaults()


@pytest.mark.usefixtures("structlog_defaults")
@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL])
def test_facts_that_happen_all_day_are_not_made_for_a_structlog_logger_that_drops_them(level):
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level))
    assert not logs_everyday_facts()


class UnhashableFactory:
    """Makes loggers, as a class does."""

    __hash__ = None

    def __call__(self, *arguments, **options):
        return structlog.BoundLogger(*arguments, **options)


@pytest.mark.usefixtures("structlog_defaults")
@pytest.mark.parametrize(
    "wrapper",
    [
        structlog.make_filtering_bound_logger(logging.DEBUG),
        structlog.BoundLogger,
        structlog.stdlib.BoundLogger,
        type("Subclass", (structlog.make_filtering_bound_logger(logging.INFO),), {}),
        UnhashableFactory(),
    ],
)
def test_facts_that_happen_all_day_are_made_for_each_other_structlog_logger(wrapper):
    structlog.configure(wrapper_class=wrapper, cache_logger_on_first_use=False, processors=[])
    assert logs_everyday_facts()


@pytest.mark.usefixtures("structlog_defaults")
@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR])
def test_structlog_receives_the_facts_that_its_level_lets_pass(level):
    facts = {
        logging.DEBUG: StreamOpened(1, "/news"),
        logging.INFO: HubResumed(missed=2, seconds=0.5),
        logging.WARNING: EventsDropped(1, "/news", count=3, total=3),
    }
    output = io.StringIO()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(output),
        processors=[structlog.processors.KeyValueRenderer()],
    )
    for fact in facts.values():
        log_fact(fact)
    assert output.getvalue().count("\n") == sum(of >= level for of in facts)


CACHED_AND_CONFIGURED_AGAIN = """
import logging
import structlog
from aiohttp_interceptors import StreamOpened
from aiohttp_interceptors._logging import log_fact

for number, level in enumerate([logging.DEBUG, logging.WARNING]):
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        processors=[structlog.processors.KeyValueRenderer()],
        cache_logger_on_first_use=True,
    )
    log_fact(StreamOpened(number, "/news"))
"""


def test_facts_are_logged_as_long_as_structlog_keeps_a_logger_that_lets_them_pass():
    """In a process of its own, because a logger that structlog has cached stays so."""
    output = subprocess.run([sys.executable, "-c", CACHED_AND_CONFIGURED_AGAIN], capture_output=True, check=True).stdout
    assert output.count(b"stream_opened") == 2


def test_the_default_configuration_is_found_although_the_application_configured_structlog():
    """The library may be imported after the application has configured structlog."""
    ours = [structlog.processors.JSONRenderer()]
    structlog.configure(processors=ours)
    try:
        assert _built_in_configuration()["processors"] != ours
        assert structlog.get_config()["processors"] is ours
    finally:
        structlog.reset_defaults()
    assert _built_in_configuration()["processors"] != ours
