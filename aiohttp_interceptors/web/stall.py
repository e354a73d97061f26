"""When a client counts as stalled: it is owed bytes, and takes none of them."""

from __future__ import annotations

__all__ = ["Stall"]

# Looks per timeout. More of them would find the last byte that was taken more exactly, and cost more.
LOOKS = 4


class Stall:
    """Tell, from what was sent and what of it the client has not taken, whether it takes nothing any more.

    It says so at the latest ``timeout`` seconds after the client took its last byte, or was first owed one, and not
    before three quarters of that: between two looks nobody knows when a byte was taken. Decides, and touches nothing.
    """

    __slots__ = ("_since", "_taken", "timeout")

    def __init__(self, timeout: float, now: float) -> None:
        self.timeout = timeout
        self._since = now
        self._taken = 0

    @property
    def period(self) -> float:
        """Seconds from one look to the next."""
        return self.timeout / LOOKS

    def look(self, now: float, sent: int, owed: int) -> bool:
        """Return whether the client is stalled, ``owed`` of the ``sent`` bytes being still on their way."""
        taken = sent - owed
        if owed == 0 or taken > self._taken:
            self._since = now
        self._taken = taken
        return now - self._since >= self.timeout - self.period
