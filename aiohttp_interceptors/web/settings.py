"""How an event stream behaves: the options of ``start_event_stream``, checked before anybody opens one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypedDict

from ..chain.interceptor import check_call
from ..sse.buffer import EventQueue, new_buffer
from ..sse.channel import CloseReason
from ..sse.event import Event
from .context import RequestContext

__all__ = ["MAX_EVENT_SIZE", "OnClose", "StreamOptions", "StreamSettings", "check_seconds"]

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
    finite: bool
    strict: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """What all streams of one interceptor share. Raises ``TypeError`` or ``ValueError`` for what cannot work."""

    heartbeat: float | None
    buffer: int | Callable[[], EventQueue]
    retry: int | None
    on_close: OnClose | None
    stall_timeout: float | None
    max_age: float | None
    max_event_size: int | None
    error_event: ErrorEvent | None
    finite: bool
    strict: bool

    def __post_init__(self) -> None:
        check_seconds("heartbeat", self.heartbeat, "no heartbeat")
        check_seconds("stall_timeout", self.stall_timeout, "no limit")
        check_seconds("max_age", self.max_age, "no limit")
        if not callable(self.buffer):
            new_buffer(self.buffer)
        Event("", retry=self.retry)
        size = self.max_event_size
        if size is not None and (type(size) is not int or size < 1):
            raise (ValueError if type(size) is int else TypeError)(
                f"max_event_size is a number of bytes, 1 or more, or None, not {size!r}"
            )
        if self.on_close is not None:
            _check_function("on_close", self.on_close, "context", "reason")
        if self.error_event is not None and not isinstance(self.error_event, Event):
            _check_function("error_event", self.error_event, "exception")


def check_seconds(name: str, value: object, none: str, least: float | None = None) -> None:
    """Raise for what is neither a number of seconds nor ``None``; ``least`` may be reached, 0 otherwise not."""
    if value is None and none:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is a number of seconds{' or None' if none else ''}, not {value!r}")
    if not ((least is not None and value == least) or 0 < value < float("inf")):
        bound = "more than 0 seconds" if least is None else f"{least} seconds or more"
        raise ValueError(f"{name} is {bound}, not {value!r}" + (f"; None means {none}" if none else ""))


def _check_function(name: str, function: object, *arguments: str) -> None:
    if not callable(function):
        raise TypeError(f"{name} is a plain or an async function, not {function!r}")
    check_call(name, name, function, *arguments)
