"""What numbers that somebody is made with have to be."""

from __future__ import annotations

__all__ = ["check_count", "check_seconds"]


def check_count(name: str, value: object, least: int) -> None:
    """Raise ``TypeError`` or ``ValueError`` for what is no whole number, or less than that."""
    if type(value) is not int:
        raise TypeError(f"{name} is a whole number, not {value!r}")
    if value < least:
        raise ValueError(f"{name} is {least} or more, not {value!r}")


def check_seconds(name: str, value: object, none: str, least: float | None = None) -> None:
    """Raise ``TypeError`` or ``ValueError`` for what is no number of seconds, nor ``None`` if that means something.

    ``least`` may be reached, 0 otherwise not.
    """
    if value is None and none:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is a number of seconds{' or None' if none else ''}, not {value!r}")
    enough = value > 0 if least is None else value >= least
    if not (enough and value < float("inf")):
        bound = "more than 0 seconds" if least is None else f"{least} seconds or more"
        raise ValueError(f"{name} is {bound}, not {value!r}" + (f"; None means {none}" if none else ""))
