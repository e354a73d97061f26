"""When a client counts as stalled: it is owed bytes, and takes none of them."""

from __future__ import annotations

__all__ = ["LOOKS", "Stall"]

# Looks per timeout. More of them would find the last byte that was taken more exactly, and cost more.
LOOKS = 4
ROUNDING = 1e-6  # seconds


class Stall:
    """Tell, from how much the client has taken and what it is owed, whether it takes nothing any more.

    It says so at the latest ``timeout`` seconds after the client took its last byte, or was first owed one, and not
    before half of that: between two looks nobody knows when a byte was sent or taken. Decides, and touches nothing.
    """

    __slots__ = ("_since", "_taken", "timeout")

    def __init__(self, timeout: float, now: float, taken: int = 0) -> None:
        self.timeout: float = timeout
        self._since = now
        self._taken = taken

    def next_look(self, now: float) -> float:
        """Return when to look again at the latest."""
        up = self._since + self.timeout * (1 - 1 / LOOKS)
        return min(now + self.timeout / LOOKS, up) if up > now else now + self.timeout / LOOKS

    def look(self, now: float, taken: int, owed: int) -> bool:
        """Return whether the client is stalled, having taken so many bytes in all and being owed so many."""
        if owed == 0 or taken > self._taken:
            self._since = now
        self._taken = taken
        return now - self._since >= self.timeout * (1 - 1 / LOOKS) - ROUNDING
