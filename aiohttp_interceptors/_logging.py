"""The library's logger. It writes to structlog if the application configured it, otherwise to the standard library."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Protocol, TypeAlias, cast

import structlog
from structlog.testing import capture_logs
from structlog.typing import EventDict

from .facts import (
    EventsDropped,
    HubDown,
    HubResumed,
    HubUp,
    StreamClosed,
    StreamOpened,
    StreamRefused,
)

__all__ = [
    "WARN_REASONS",
    "Log",
    "LoggedFact",
    "captured_logs",
    "log",
    "log_fact",
    "logged_execution_id",
    "logged_variable",
    "logs_everyday_facts",
]


NAME = "aiohttp_interceptors"
"""Name of the logger, in structlog and in the standard library."""

ExcInfo: TypeAlias = "BaseException | tuple[type[BaseException], BaseException, TracebackType | None] | bool | None"


class Log(Protocol):
    """The part of a structlog logger that the library uses."""

    def debug(self, event: str, /, **values: object) -> object:
        """Log something for a developer."""

    def info(self, event: str, /, **values: object) -> object:
        """Log a change of state."""

    def warning(self, event: str, /, **values: object) -> object:
        """Log something that an operator should look at."""

    def exception(self, event: str, /, **values: object) -> object:
        """Log an error with its traceback."""


_structlog: Log = cast("Log", structlog.get_logger(NAME))
_stdlib = logging.getLogger(NAME)


def _built_in_configuration() -> dict[str, Any]:
    """Return structlog's default configuration."""
    if not structlog.is_configured():
        configuration = structlog.get_config()
    else:
        configured = structlog.get_config()
        structlog.reset_defaults()
        configuration = structlog.get_config()
        structlog.configure(**configured)
    # A copy: capture_logs changes structlog's own list in place.
    return {**configuration, "processors": list(configuration["processors"])}


_BUILT_IN = _built_in_configuration()
_MINIMUM_LEVELS: dict[int, int] = {
    id(structlog.make_filtering_bound_logger(level)): level
    for level in (logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)
}
"""The levels of structlog's loggers that filter by level, by the ID of their class.

structlog makes one class for each level. An application's wrapper class need not be hashable.
"""


def _structlog_configuration() -> dict[str, Any] | None:
    """Return structlog's configuration if the application made it, or captures its log lines now, or else ``None``.

    ``structlog.is_configured()`` is not enough: it stays true after the first ``capture_logs()``.
    """
    if not structlog.is_configured():
        return None
    configuration = structlog.get_config()
    return None if configuration == _BUILT_IN else configuration


class _Logger:
    """A logger that chooses between structlog and the standard library for each line.

    An application may configure its logging before or after it imports this library.
    """

    def debug(self, event: str, /, **values: object) -> None:
        """Log at DEBUG."""
        if _structlog_configuration():
            _structlog.debug(event, **values)
        elif _stdlib.isEnabledFor(logging.DEBUG):
            _log_to_stdlib(logging.DEBUG, event, values)

    def info(self, event: str, /, **values: object) -> None:
        """Log at INFO."""
        if _structlog_configuration():
            _structlog.info(event, **values)
        elif _stdlib.isEnabledFor(logging.INFO):
            _log_to_stdlib(logging.INFO, event, values)

    def warning(self, event: str, /, **values: object) -> None:
        """Log at WARNING."""
        if _structlog_configuration():
            _structlog.warning(event, **values)
        elif _stdlib.isEnabledFor(logging.WARNING):
            _log_to_stdlib(logging.WARNING, event, values)

    def exception(self, event: str, /, **values: object) -> None:
        """Log at ERROR, with the traceback of ``exc_info`` or of the exception that is being handled."""
        if _structlog_configuration():
            _structlog.exception(event, **values)
        elif _stdlib.isEnabledFor(logging.ERROR):
            _log_to_stdlib(logging.ERROR, event, {"exc_info": True, **values})

    def enabled_for(self, level: int) -> bool:
        """Return whether a line of this level may be logged; a structlog processor can still drop it."""
        configuration = _structlog_configuration()
        if configuration is not None:
            cached = vars(_structlog).get("bind")  # with cache_logger_on_first_use: it is not configured again
            wrapper_class = configuration["wrapper_class"] if cached is None else type(cached())
            return level >= _MINIMUM_LEVELS.get(id(wrapper_class), logging.NOTSET)
        return _stdlib.isEnabledFor(level)


def _log_to_stdlib(level: int, event: str, values: dict[str, object]) -> None:
    """Log a line of the form ``event name=value …``, with structlog's context variables among the values.

    Values are arguments of the message, not part of it, so that an error tracker groups lines of the same event.
    """
    fields = {**structlog.contextvars.get_contextvars(), **values}
    exc_info = cast("ExcInfo", fields.pop("exc_info", None))
    message = event + "".join(f" {name.replace('%', '%%')}=%r" for name in fields)
    _stdlib.log(level, message, *fields.values(), exc_info=exc_info, stacklevel=3)


_logger = _Logger()
log: Log = _logger


def logged_variable(name: str) -> ContextVar[int | str]:
    """Return structlog's context variable of a name: its value is in every line that is logged while it is set."""
    token = structlog.contextvars.bind_contextvars(**{name: ""})[name]
    variable: ContextVar[int | str] = token.var
    variable.reset(token)
    return variable


logged_execution_id = logged_variable("execution_id")
"""The context variable of the execution ID. Setting it directly costs a tenth of ``bind_contextvars``."""


def captured_logs() -> AbstractContextManager[list[EventDict]]:
    """Capture the lines that are logged in a ``with`` block, as dictionaries with the context variables."""
    return capture_logs(processors=[structlog.contextvars.merge_contextvars])


LoggedFact: TypeAlias = StreamOpened | StreamClosed | StreamRefused | EventsDropped | HubUp | HubDown | HubResumed
_EVENTS: dict[type[LoggedFact], str] = {
    HubDown: "hub_down",
    HubResumed: "hub_resumed",
    HubUp: "hub_up",
    StreamOpened: "stream_opened",
    StreamClosed: "stream_closed",
    StreamRefused: "stream_refused",
    EventsDropped: "stream_events_dropped",
}
WARN_REASONS = ("stalled", "lagged")  # a client was too slow; all other reasons are everyday ones


def logs_everyday_facts() -> bool:
    """Return whether facts that happen all day may be logged. Making them costs more than asking."""
    return _logger.enabled_for(logging.DEBUG)


def log_fact(fact: LoggedFact) -> None:
    """Log a fact: at DEBUG if it happens all day, at INFO for a Hub that works again, otherwise as a warning."""
    level, write = logging.WARNING, log.warning
    if isinstance(fact, StreamOpened) or (isinstance(fact, StreamClosed) and fact.reason not in WARN_REASONS):
        level, write = logging.DEBUG, log.debug
    elif isinstance(fact, HubUp | HubResumed):
        level, write = logging.INFO, log.info
    if _logger.enabled_for(level):
        # asdict() takes ten times as long. An exception is logged with its traceback elsewhere.
        values = {name: getattr(fact, name) for name in type(fact).__slots__ if name != "exception"}
        write(_EVENTS[type(fact)], **values)
