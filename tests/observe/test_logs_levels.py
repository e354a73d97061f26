"""Log lines by level, in an application that configured only the standard library."""

from __future__ import annotations

import logging

import pytest
import structlog

from aiohttp_interceptors._logging import _built_in_configuration, log
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
