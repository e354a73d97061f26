"""Epochs, and the translation between offsets and event IDs.

An event ID is an epoch and an offset, as ``epoch-offset``. Every log has a unique epoch. When its broker loses
acknowledged records it starts another epoch, so that an offset that is assigned twice has two IDs.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from bisect import bisect_right
from operator import itemgetter

from .record import GapReason

__all__ = ["EpochHistory", "new_epoch", "successor"]


EPOCH_BYTES = 5  # random bytes of an epoch, which make a collision of two epochs negligible
MAX_ID_LENGTH = 64  # characters; no ID is as long
_ID = re.compile(r"([0-9a-z]{1,32})-([0-9]{1,19})", re.ASCII)  # an offset is less than 2**63: 19 digits
_last_offset = itemgetter(0)


def new_epoch() -> str:
    """Return a random epoch."""
    return secrets.token_hex(EPOCH_BYTES)


def successor(epoch: str) -> str:
    """Return the epoch that follows when a log is truncated. All processes compute the same one."""
    return hashlib.sha256(epoch.encode()).hexdigest()[: 2 * EPOCH_BYTES]


class EpochHistory:
    """The epochs of a log, each with its range of offsets: a new one starts wherever the log was truncated."""

    def __init__(self, epoch: str) -> None:
        self.epoch: str = epoch
        """The current epoch, which new records get."""
        self._start = 0  # the offset after which the current epoch starts
        # The last offset of each past epoch (0 if none of its records is left) and the epoch, ordered by offset.
        self._past: list[tuple[int, str]] = []

    def id_of(self, offset: int) -> str:
        """Return the event ID of an offset. At the boundary of two epochs the later one counts."""
        if offset >= self._start:
            return f"{self.epoch}-{offset}"
        return f"{self._past[bisect_right(self._past, offset, key=_last_offset)][1]}-{offset}"

    def resolve(self, event_id: str, end: int) -> tuple[int, GapReason | None]:
        """Return the offset to resume after, and a reason if that is not the position that the ID names.

        An ID of a past epoch resolves to at most the last offset of that epoch. An ID of an unknown epoch resolves to
        0, because its client has seen none of these records. Anything else resolves to ``end``.
        """
        match = _ID.fullmatch(event_id) if len(event_id) <= MAX_ID_LENGTH else None
        if match is None:
            return end, GapReason.UNKNOWN
        epoch, offset = match[1], int(match[2])
        if epoch == self.epoch and offset >= self._start:
            return (offset, None) if offset <= end else (end, GapReason.FUTURE)
        for last, past in reversed(self._past):
            if past == epoch and last:
                return min(offset, last), GapReason.TRUNCATED
        return (self._start, GapReason.TRUNCATED) if epoch == self.epoch else (0, GapReason.FOREIGN)

    def may_arrive(self, event_id: str, end: int) -> bool:
        """Return whether an ID may be of a record that this process has not read yet.

        That is an ID after ``end`` in the current epoch, or one of an unknown epoch: another process may have learnt of
        a truncation earlier than this one.
        """
        match = _ID.fullmatch(event_id) if len(event_id) <= MAX_ID_LENGTH else None
        if match is None:
            return False
        if match[1] == self.epoch:
            return int(match[2]) > end
        return all(past != match[1] for _, past in self._past)

    def start_epoch(self, epoch: str, offset: int) -> None:
        """Start another epoch after an offset. Later offsets of the past epochs become invalid."""
        ended = [*self._past, (offset, self.epoch)]
        self._past = [(min(last, offset), past) for last, past in ended]
        self.epoch, self._start = epoch, offset
