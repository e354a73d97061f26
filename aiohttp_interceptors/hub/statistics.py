"""What a Hub holds and has done."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["HubStatistics"]


@dataclass(frozen=True, slots=True)
class HubStatistics:
    """What a Hub holds now, and what it has done since it was made."""

    topics: int
    """That have a history."""
    records: int
    """That are kept."""
    bytes: int
    """Of those records, as they go over the wire."""
    subscribers: int
    """Open streams."""
    behind: int
    """Of those, the ones that do not have everything yet."""
    audiences: int
    """Sets of streams that are told the same."""
    published: int
    """Events, ephemeral ones too."""
    delivered: int
    """Events written to a stream, each as often as there were streams for it."""
    gaps: int
    """Told to a stream."""
