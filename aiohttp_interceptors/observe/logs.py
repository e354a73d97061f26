"""Facts to structlog; nobody else imports it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Protocol, cast

import structlog
from structlog.testing import capture_logs
from structlog.typing import EventDict

from .facts import (
    EventsDropped,
    HubDown,
    HubFact,
    HubResumed,
    HubUp,
    StreamClosed,
    StreamFact,
    StreamOpened,
    StreamRefused,
)

__all__ = ["Log", "captured_logs", "log", "log_fact", "logged_execution_id"]


class Log(Protocol):
    """The part of a structlog logger that the library uses."""

    def debug(self, event: str, /, **values: object) -> object:
        """Log what only a developer wants to know."""

    def info(self, event: str, /, **values: object) -> object:
        """Log what somebody may want to know."""

    def warning(self, event: str, /, **values: object) -> object:
        """Log what somebody should look at."""

    def exception(self, event: str, /, **values: object) -> object:
        """Log an error with its traceback."""


log: Log = cast("Log", structlog.get_logger("aiohttp_interceptors"))

_token = structlog.contextvars.bind_contextvars(execution_id="")["execution_id"]
logged_execution_id: ContextVar[int | str] = _token.var
"""What puts the execution id on every later structlog line of a task; setting it costs a tenth of bind_contextvars."""
logged_execution_id.reset(_token)


def captured_logs() -> AbstractContextManager[list[EventDict]]:
    """Capture what is logged inside the ``with`` block, as dictionaries, the context variables included."""
    return capture_logs(processors=[structlog.contextvars.merge_contextvars])


_LINES: dict[type[StreamFact | HubFact], str] = {
    HubDown: "hub_down",
    HubResumed: "hub_resumed",
    HubUp: "hub_up",
    StreamOpened: "stream_opened",
    StreamClosed: "stream_closed",
    StreamRefused: "stream_refused",
    EventsDropped: "stream_events_dropped",
}
# Somebody should look at these; everything else that ends a stream happens all day.
_REMARKABLE = ("stalled", "lagged")


def log_fact(fact: StreamFact | HubFact) -> None:
    """Log what happened: at debug if it happens all day, or as a warning if somebody should look at it."""
    write = log.warning
    if isinstance(fact, StreamOpened) or (isinstance(fact, StreamClosed) and fact.reason not in _REMARKABLE):
        write = log.debug
    elif isinstance(fact, HubUp | HubResumed):
        write = log.info
    told = {name: getattr(fact, name) for name in type(fact).__slots__}  # asdict copies, ten times as long
    write(_LINES[type(fact)], **told)
