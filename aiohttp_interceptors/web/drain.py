"""How open streams end when the server stops."""

from __future__ import annotations

from dataclasses import dataclass

from ..hub.arguments import check_seconds
from ..sse.event import Event

__all__ = ["Drain"]


@dataclass(frozen=True, slots=True)
class Drain:
    """What ``setup`` does with open streams when the application stops; durations in seconds.

    New streams get 503 with a ``Retry-After``. Each open one gets what was put, the ``farewell`` if there is one, and
    a clean end of the body; those that use ``retry`` are told to come back a random time of up to ``spread`` later
    than usual, so that not all browsers return at once. Finite streams may go on for ``grace`` before; one that is not
    closed by then ends without the last chunk. A producer that has not come back to its channel is cancelled after
    four fifths of ``timeout``. Whatever is open ``timeout`` after its farewell, because its client does not read or its
    producer does not return, is aborted.
    """

    farewell: Event | None = None
    spread: float = 5.0
    grace: float = 5.0
    timeout: float = 1.0

    def __post_init__(self) -> None:
        if self.farewell is not None and not isinstance(self.farewell, Event):
            raise TypeError(f"farewell is an Event or None, not {self.farewell!r}")
        check_seconds("spread", self.spread, "", least=0)
        check_seconds("grace", self.grace, "", least=0)
        check_seconds("timeout", self.timeout, "")
