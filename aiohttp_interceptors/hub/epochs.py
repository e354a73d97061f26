"""Positions and the ids that clients know them by. Decides, and awaits nothing."""

from __future__ import annotations

import hashlib
import re
import secrets
from bisect import bisect_right
from operator import itemgetter

from .record import GapReason

__all__ = ["EpochHistory", "new_epoch", "successor"]


_ID = re.compile(r"([0-9a-z]{1,32})-([0-9]{1,19})", re.ASCII)  # as many digits as a position has
EPOCH_BYTES = 5  # of chance: that two lives of a Hub share an epoch is less likely than a disk that lies
LONGEST = 64  # characters; no id has as many
_last = itemgetter(0)


def new_epoch() -> str:
    """Return an epoch that nobody has used."""
    return secrets.token_hex(EPOCH_BYTES)


def successor(epoch: str) -> str:
    """Return the epoch that follows one whose log was rewound: the same for each process that finds that out."""
    return hashlib.sha256(epoch.encode()).hexdigest()[: 2 * EPOCH_BYTES]


class EpochHistory:
    """Spans of positions, each with an epoch: the first from 0 on, and another wherever a broker was rewound."""

    def __init__(self, epoch: str) -> None:
        self.epoch: str = epoch
        """Of what is appended."""
        self._start = 0
        # The last position of each era that is over (0: nothing is left of it), and its epoch.
        self._past: list[tuple[int, str]] = []

    def id_of(self, offset: int) -> str:
        """Return the id of a position. That on the border of two eras is the later one's."""
        if offset >= self._start:
            return f"{self.epoch}-{offset}"
        return f"{self._past[bisect_right(self._past, offset, key=_last)][1]}-{offset}"

    def locate(self, given: str, end: int) -> tuple[int, GapReason | None]:
        """Return the position to go on from after an id, and why that is not where its owner was, if it is not.

        After another life's id, that is the beginning of this one, of which its owner has seen nothing; after one that
        says nothing, the end. After one of an era that is over, it is where that ended at the latest.
        """
        found = _ID.fullmatch(given) if len(given) <= LONGEST else None
        if found is None:
            return end, GapReason.UNKNOWN
        epoch, offset = found[1], int(found[2])
        if epoch == self.epoch and offset >= self._start:
            return (offset, None) if offset <= end else (end, GapReason.FUTURE)
        for last, past in reversed(self._past):
            if past == epoch and last:
                return min(offset, last), GapReason.REWOUND
        return (self._start, GapReason.REWOUND) if epoch == self.epoch else (0, GapReason.FOREIGN)

    def is_ahead(self, given: str, end: int) -> bool:
        """Tell whether an id may be one that is still to come: of this era after that position, or of an unknown one.

        Another process may have been told of a new era before this one.
        """
        found = _ID.fullmatch(given) if len(given) <= LONGEST else None
        if found is None:
            return False
        if found[1] == self.epoch:
            return int(found[2]) > end
        return all(past != found[1] for _, past in self._past)

    def begin(self, epoch: str, offset: int) -> None:
        """Begin another era after a position; what was after it in those before is void."""
        over = [*self._past, (offset, self.epoch)]
        self._past = [(min(last, offset), name) for last, name in over]
        self.epoch, self._start = epoch, offset
