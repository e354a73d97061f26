"""Where facts are told: structlog, with the execution id on every line of the task."""

from __future__ import annotations

import contextvars
from collections.abc import Callable

import structlog

from aiohttp_interceptors.observe.logs import captured_logs, log, logged_execution_id


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
