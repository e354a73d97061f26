"""The public interface of an open event stream, which ``context.stream`` holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from ..channel import CloseReason

__all__ = ["Stream", "StreamStatistics"]


@dataclass(frozen=True, slots=True)
class StreamStatistics:
    """What an event stream has sent so far. The values do not change after the stream has closed."""

    events: int
    """Events sent, without heartbeats."""
    bytes: int
    """Bytes of the events sent, before compression, and without heartbeats and HTTP chunk framing."""
    bytes_sent: int
    """Bytes of the body sent: compressed, with heartbeats and HTTP chunk framing."""
    buffered: int
    """Events waiting in the channel."""
    unsent: int
    """Bytes in the transport's buffer, which the kernel has not accepted yet."""
    dropped: int
    """Events dropped by a lossy queue."""
    seconds: float
    """Seconds from the response headers to the close of the stream, or to now while it is open."""
    reason: CloseReason | None
    """Why the stream ended; ``None`` while it is open."""


class Stream(ABC):
    """An open event stream: one SSE response to one client.

    ``context.stream`` holds it from the moment the response headers are sent.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def reason(self) -> CloseReason | None:
        """Why the stream ended; ``None`` while it is open."""

    @abstractmethod
    def end(self, reason: CloseReason) -> None:
        """End the stream now. Idempotent: the first reason is kept.

        Args:
            reason: Reported to ``on_close``, in the log and in the statistics. ``CloseReason.KICKED`` is meant for an
                application's own use.

        Raises:
            RuntimeError: The calling thread is not the one of the stream's event loop.
        """

    @abstractmethod
    def statistics(self) -> StreamStatistics:
        """Return what the stream has sent so far."""

    @abstractmethod
    def _is_producer_error(self, exception: BaseException) -> bool:
        """Return whether the producer raised this exception, or it wraps what the producer raised."""

    @abstractmethod
    def _release(self) -> None:
        """Let go of the context, which refers to the stream, so that both are freed at once.

        Called when the chain has ended, or the execution of a copy of the context, which changes nothing.
        """

    @abstractmethod
    def _log_producer_error(self) -> None:
        """Log what the producer raised, when it is not raised to aiohttp."""
