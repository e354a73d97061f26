"""How event streams behave: the options of their interceptors, checked before anybody opens one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypedDict

from .._checks import check_seconds
from ..channel import CloseReason, EventQueue, check_buffer
from ..interceptor import check_call
from ..sse import Event
from .context import RequestContext

__all__ = [
    "MAX_EVENT_SIZE",
    "ChannelSettings",
    "ErrorEvent",
    "OnClose",
    "StreamOptions",
    "StreamSettings",
    "check_function",
]


OnClose: TypeAlias = Callable[[RequestContext, CloseReason], object]
ErrorEvent: TypeAlias = Event | Callable[[BaseException], Event]

MAX_EVENT_SIZE = 2**20  # bytes; what nchan and Mercure take, and more than any page should be told at once


class StreamOptions(TypedDict, total=False):
    """The options of ``start_event_stream``."""

    heartbeat: float | None
    buffer: int | Callable[[], EventQueue]
    retry: int | None
    on_close: OnClose | None
    name: str | None
    stall_timeout: float | None
    max_age: float | None
    max_event_size: int | None
    error_event: ErrorEvent | None
    finite: bool | None
    grace: float
    strict: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """What all streams of one interceptor share. Raises ``TypeError`` or ``ValueError`` for what cannot work."""

    heartbeat: float | None
    retry: int | None
    on_close: OnClose | None
    stall_timeout: float | None
    max_age: float | None
    strict: bool
    finite: bool | None = False
    """``None`` for every method but GET."""
    grace: float = 0.0
    """Seconds that a producer has to come back to its channel when the stream is over."""

    @property
    def held(self) -> bool:
        """Whether the head waits for the first frames, to go out with them."""
        return False

    def __post_init__(self) -> None:
        check_seconds("heartbeat", self.heartbeat, "no heartbeat")
        check_seconds("stall_timeout", self.stall_timeout, "no limit")
        check_seconds("max_age", self.max_age, "no limit")
        check_seconds("grace", self.grace, "", least=0)
        Event("", retry=self.retry)
        if self.on_close is not None:
            check_function("on_close", self.on_close, "context", "reason")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSettings(StreamSettings):
    """What all streams share that have a channel."""

    buffer: int | Callable[[], EventQueue]
    max_event_size: int | None
    error_event: ErrorEvent | None

    def __post_init__(self) -> None:
        StreamSettings.__post_init__(self)  # super() does not know a class that was made anew to have slots
        check_buffer(self.buffer)
        size = self.max_event_size
        if size is not None and (type(size) is not int or size < 1):
            raise (ValueError if type(size) is int else TypeError)(
                f"max_event_size is a number of bytes, 1 or more, or None, not {size!r}"
            )
        if self.error_event is not None and not isinstance(self.error_event, Event):
            check_function("error_event", self.error_event, "exception")


def check_function(name: str, function: object, *arguments: str) -> None:
    """Raise ``TypeError`` for what cannot be called with these arguments."""
    if not callable(function):
        raise TypeError(f"{name} is a plain or an async function, not {function!r}")
    check_call(name, name, function, *arguments)
