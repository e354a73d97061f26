"""Where facts are told: structlog, with the execution id on every line of the task."""

from __future__ import annotations

import contextvars
from collections.abc import Callable

import pytest
import structlog

from aiohttp_interceptors import CloseReason
from aiohttp_interceptors._logging import captured_logs, log, log_fact, logged_execution_id
from aiohttp_interceptors.facts import EventsDropped, StreamClosed, StreamOpened, StreamRefused


def alone(function: Callable[[], None]) -> None:
    """Run a function with context variables of its own, as a task does."""
    contextvars.copy_context().run(function)


def test_the_execution_id_is_on_every_later_line() -> None:
    """Behaviour 118: also on those of other loggers, aiohttp's own lines included where structlog renders them."""

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

    alone(task)


def test_one_task_does_not_see_the_execution_id_of_another() -> None:
    """Behaviour 59."""
    alone(lambda: logged_execution_id.set("run 1") and None)

    def another() -> None:
        with captured_logs() as logs:
            log.debug("event")
        assert logs == [{"event": "event", "log_level": "debug"}]

    alone(another)


def test_importing_the_library_binds_nothing() -> None:
    assert "execution_id" not in structlog.contextvars.get_contextvars()


def test_an_exception_is_logged_as_an_error_with_its_traceback() -> None:
    boom = ValueError("boom")
    with captured_logs() as logs:
        log.exception("event", exc_info=boom)
    assert logs == [{"event": "event", "log_level": "error", "exc_info": boom}]


def test_nothing_is_captured_outside_the_block() -> None:
    with captured_logs() as logs:
        pass
    with captured_logs() as later:
        log.debug("later")
    assert logs == []
    assert len(later) == 1


@pytest.mark.parametrize(
    ("fact", "line"),
    [
        (StreamOpened("run 1", "/a"), {"event": "stream_opened", "log_level": "debug"}),
        (
            StreamRefused("run 1", "/a", 429, "You have too many streams open.", "max_streams_per_key of /b"),
            {
                "event": "stream_refused",
                "log_level": "warning",
                "status": 429,
                "why": "You have too many streams open.",
                "limit": "max_streams_per_key of /b",
            },
        ),
        (
            EventsDropped("run 1", "/a", count=2, total=5),
            {"event": "stream_events_dropped", "log_level": "warning", "count": 2, "total": 5},
        ),
    ],
)
def test_what_happens_to_a_stream_is_one_line(fact, line) -> None:
    with captured_logs() as logs:
        log_fact(fact)
    assert logs == [{"execution_id": "run 1", "path": "/a", **line}]


@pytest.mark.parametrize("reason", CloseReason)
def test_a_client_that_leaves_is_debug_and_one_that_was_cut_is_a_warning(reason) -> None:
    """peer bug 14: closing a tab is nothing that anybody has to look at."""
    with captured_logs() as logs:
        log_fact(StreamClosed("run 1", "/a", str(reason), events=1, bytes=9, dropped=2, seconds=0.5))
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
        }
    ]
