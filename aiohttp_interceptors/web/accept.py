"""Whether a request takes an event stream for an answer, and whether an ``EventSource`` made it."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["accepts_event_stream", "is_of_event_source"]

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


def is_of_event_source(headers: Mapping[str, str]) -> bool:
    """Tell whether a request with these headers is an ``EventSource``'s, which reads frames as the standard says.

    Such a request has the cache mode ``no-store``, for which the Fetch standard sends ``Pragma`` and
    ``Cache-Control``; a proxy may drop the first. Libraries that copy a part of that, and requests of ``fetch``, read
    frames each in its own way. Source: WHATWG HTML 9.2.2, WHATWG Fetch 4.5.
    """
    if headers.get("Accept") != "text/event-stream" or "no-cache" not in headers.get("Cache-Control", ""):
        return False
    return (
        headers.get("Pragma") == "no-cache"
        or "Sec-Fetch-Mode" in headers
        or headers.get("User-Agent", "").startswith("Mozilla/")
    )


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
