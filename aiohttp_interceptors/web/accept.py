"""Whether a request takes an event stream for an answer."""

from __future__ import annotations

__all__ = ["accepts_event_stream"]

# The media ranges that an event stream is in, and how exactly each names it.
_RANGES = {"text/event-stream": 3, "text/*": 2, "*/*": 1}


def accepts_event_stream(accept: str | None) -> bool:
    """Tell whether an ``Accept`` header admits ``text/event-stream``; without one, everything is admitted.

    The most exact of the ranges that match decides, and a weight of 0 excludes. Source: RFC 9110, 12.5.1.
    """
    if accept is None or not accept.strip():
        return True
    exactness, accepted = 0, False
    for part in accept.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        found = _RANGES.get(name, 0)
        if found > exactness:
            exactness, accepted = found, _weight(parameters) > 0
    return accepted


def _weight(parameters: list[str]) -> float:
    """Read ``q``; one that is no number counts as none."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 1.0
    return 1.0
