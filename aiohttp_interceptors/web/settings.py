"""The options of the stream interceptors, checked when an interceptor is made."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypedDict

from .._checks import check_call, check_max_event_size, check_seconds
from ..channel import CloseReason, EventChannel, EventQueue, check_buffer
from ..compression import BodyEncoder, ChannelEncoder, Compression, Framing, SharedEncoder, compression_of
from ..hub.owners import Owners
from ..sse import Event
from .access import ExpiresAt, Owner, Revalidate
from .context import RequestContext

__all__ = [
    "DEFAULT_MAX_EVENT_SIZE",
    "ChannelSettings",
    "ErrorEvent",
    "OnClose",
    "StreamOptions",
    "StreamSettings",
    "check_function",
]


OnClose: TypeAlias = Callable[[RequestContext, CloseReason], object]
ErrorEvent: TypeAlias = Event | Callable[[BaseException], Event]

DEFAULT_MAX_EVENT_SIZE = 2**20  # bytes; nchan and Mercure accept as much


class StreamOptions(TypedDict, total=False):
    """The keyword arguments of ``start_event_stream``."""

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
    owner: Owner | None
    expires_at: ExpiresAt | None
    revalidate: Revalidate | None
    revalidate_interval: float
    compress: bool | Compression


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """The options that all streams of one interceptor share. Raises ``TypeError`` or ``ValueError``."""

    heartbeat: float | None = 10.0
    retry: int | None = None
    on_close: OnClose | None = None
    stall_timeout: float | None = 60.0
    max_age: float | None = None
    strict: bool = False
    error_event: ErrorEvent | None = None
    finite: bool | None = False
    """Whether the response has an end; ``None``: for each method but GET."""
    grace: float = 0.0
    """Seconds that a producer has to observe the end of the stream."""
    owner: Owner | None = None
    expires_at: ExpiresAt | None = None
    revalidate: Revalidate | None = None
    revalidate_interval: float = 60.0
    compress: bool | Compression = False

    @property
    def encoder_class(self) -> type[ChannelEncoder | SharedEncoder]:
        """The class of the encoders of compressed streams."""
        return ChannelEncoder

    def make_encoder(self) -> Callable[[Framing], BodyEncoder] | None:
        """Return the function that makes the encoder of a stream, or ``None`` if streams are not compressed."""
        compression = compression_of(self.compress)
        return None if compression is None else _encoder_factory(self.encoder_class, compression)

    @property
    def has_access(self) -> bool:
        """Whether the application decides about a stream over its life."""
        return self.owner is not None or self.expires_at is not None or self.revalidate is not None

    @property
    def hub_owners(self) -> Owners | None:
        """The owners of the streams of a Hub, if it is a Hub's stream."""
        return None

    @property
    def defers_headers(self) -> bool:
        """Whether the headers are sent together with the first frames."""
        return False

    def __post_init__(self) -> None:
        check_seconds("heartbeat", self.heartbeat, "no heartbeat")
        check_seconds("stall_timeout", self.stall_timeout, "no limit")
        check_seconds("max_age", self.max_age, "no limit")
        check_seconds("grace", self.grace, "", minimum=0)
        Event("", retry=self.retry)  # checks retry
        compression_of(self.compress)
        check_seconds("revalidate_interval", self.revalidate_interval, "")
        for name in ("owner", "expires_at", "revalidate"):
            function = getattr(self, name)
            if function is not None:
                check_function(name, function, "context")
            if name != "revalidate" and inspect.iscoroutinefunction(function):
                raise TypeError(f"{name} is a plain function of the context, not {function!r}")
        if self.on_close is not None:
            check_function("on_close", self.on_close, "context", "reason")
        if self.has_access:
            RequestContext._note_time()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSettings(StreamSettings):
    """The options of streams with a channel."""

    buffer: int | Callable[[], EventQueue] = 10
    max_event_size: int | None = DEFAULT_MAX_EVENT_SIZE
    finite: bool | None = None
    grace: float = 5.0

    def __post_init__(self) -> None:
        StreamSettings.__post_init__(self)  # super() fails: slots=True replaces the class
        check_buffer(self.buffer)
        check_max_event_size(self.max_event_size)
        if self.error_event is not None and not isinstance(self.error_event, Event):
            check_function("error_event", self.error_event, "exception")

    def create_channel(self) -> EventChannel:
        """Create the channel of a new stream. Raises what the application's queue factory raises."""
        return EventChannel(self.buffer, retry=self.retry, max_event_size=self.max_event_size)


@functools.lru_cache(64)
def _encoder_factory(
    encoder_class: type[ChannelEncoder | SharedEncoder], compression: Compression
) -> Callable[[Framing], BodyEncoder]:
    """Return what makes the encoder of a stream. Streams with the same options share it, as they keep it."""
    return functools.partial(encoder_class, settings=compression)


def check_function(name: str, function: object, *arguments: str) -> None:
    """Raise ``TypeError`` if an option is not a function that can be called with these arguments."""
    if not callable(function):
        raise TypeError(f"{name} is a plain or an async function, not {function!r}")
    check_call(name, name, function, *arguments)
