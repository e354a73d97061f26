"""Log lines and facts, with the execution ID on every line of a task."""

from __future__ import annotations

import contextvars
from collections.abc import Callable

import pytest
import structlog

from aiohttp_interceptors import CloseReason
from aiohttp_interceptors._logging import captured_logs, log, log_fact, logged_execution_id
from aiohttp_interceptors.facts import EventsDropped, StreamClosed, StreamOpened, StreamRefused


def in_own_context(function: Callable[[], None]) -> None:
    """Run a function with its own context variables, like a task."""
    contextvars.copy_context().run(function)


def test_later_lines_have_the_execution_id() -> None:
    """Lines of other loggers have it too."""

    def task() -> None:
        logged_execution_id.set("run 1")
        with captured_logs() as logs:
            log.warning("ours", user="alice")
            structlog.get_logger("theirs").info("theirs")
        assert logs == [
            {"event": "ours", "log_level": "warning", "user": "alice", "execution_id": "run 1"},
            {"event": "theirs", "log_level": "info", "execution_id": "run 1"},
        ]
        assert structlog.contextvars.get_contextvars()["execution_id"] == "run 1"

    in_own_context(task)


def test_a_task_does_not_see_the_execution_id_of_another() -> None:
    in_own_context(lambda: logged_execution_id.set("run 1") and None)

    def another() -> None:
        with captured_logs() as logs:
            log.debug("event")
        assert logs == [{"event": "event", "log_level": "debug"}]

    in_own_context(another)


def test_importing_the_library_binds_no_context_variable() -> None:
    assert "execution_id" not in structlog.contextvars.get_contextvars()


def test_an_exception_is_logged_as_an_error_with_its_traceback() -> None:
    boom = ValueError("boom")
    with captured_logs() as logs:
        log.exception("event", exc_info=boom)
    assert logs == [{"event": "event", "log_level": "error", "exc_info": boom}]


def test_only_lines_in_the_block_are_captured() -> None:
    with captured_logs() as logs:
        pass
    with captured_logs() as later:
        log.debug("later")
    assert logs == []
    assert len(later) == 1


@pytest.mark.parametrize(
    ("fact", "line"),
    [
        (StreamOpened("run 1", "/a", "/{name}"), {"event": "stream_opened", "log_level": "debug"}),
        (
            StreamRefused(
                "run 1", "/a", 429, "You have too many streams open.", "max_streams_per_key of /b", "/{name}"
            ),
            {
                "event": "stream_refused",
                "log_level": "warning",
                "status": 429,
                "why": "You have too many streams open.",
                "limit": "max_streams_per_key of /b",
            },
        ),
        (
            EventsDropped("run 1", "/a", count=2, total=5, route="/{name}"),
            {"event": "stream_events_dropped", "log_level": "warning", "count": 2, "total": 5},
        ),
    ],
)
def test_each_stream_fact_is_one_line(fact, line) -> None:
    with captured_logs() as logs:
        log_fact(fact)
    assert logs == [{"execution_id": "run 1", "path": "/a", "route": "/{name}", **line}]


@pytest.mark.parametrize("reason", CloseReason)
def test_a_disconnect_is_logged_at_debug_and_a_slow_client_as_a_warning(reason) -> None:
    """Operators need not look at closed tabs."""
    with captured_logs() as logs:
        exception = ValueError("logged elsewhere")
        log_fact(
            StreamClosed("run 1", "/a", str(reason), 1, 9, dropped=2, seconds=0.5, bytes_sent=7, exception=exception)
        )
    assert logs == [
        {
            "event": "stream_closed",
            "log_level": "warning" if reason in (CloseReason.STALLED, CloseReason.LAGGED) else "debug",
            "execution_id": "run 1",
            "path": "/a",
            "reason": reason,
            "events": 1,
            "bytes": 9,
            "dropped": 2,
            "seconds": 0.5,
            "route": "",
            "bytes_sent": 7,
        }
    ]
