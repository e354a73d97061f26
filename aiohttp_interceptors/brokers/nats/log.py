"""The log in a JetStream stream: subjects, epochs, and how to detect that the server lost messages. Without I/O.

An offset of the log is a sequence of the stream. The first epoch is derived from the time when the stream was created,
so that a stream that is deleted and created again is another log. Later epochs start where the log was truncated, and
are kept in the stream's metadata.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import NamedTuple, TypedDict, cast
from urllib.parse import quote, unquote

from ...hub.broker import Entry, Erased, LogPosition, TailItem, Trimmed, Truncated
from ...hub.epochs import successor

__all__ = [
    "ERASED_KEY",
    "METADATA_KEY",
    "Checkpoint",
    "Checkpoints",
    "NatsLog",
    "StreamInfo",
    "message_id",
    "subject_of",
    "topic_of",
]


METADATA_KEY = "aiohttp_interceptors_epochs"  # the first epoch, then epoch:offset of each later one
ERASED_KEY = "aiohttp_interceptors_erased"  # in the metadata: the first epoch, then the offset of ``erased``
MAX_EPOCHS = 16  # in the metadata
MAX_CHECKPOINTS = 1000

_EPOCH = re.compile(r"([0-9a-z]{1,32}):([0-9]{1,19})", re.ASCII)


class _State(TypedDict):
    first_seq: int
    last_seq: int


class StreamInfo(TypedDict):
    """The part of JetStream's ``StreamInfo`` that is used here."""

    config: dict[str, object]
    created: str
    state: _State
    ts: str


def subject_of(stream: str, topic: str) -> str:
    """Return the subject of a topic, percent-encoded where a subject cannot hold a character."""
    return f"{stream}.{quote(topic, safe='')}"


def topic_of(stream: str, subject: str) -> str:
    """Return the topic of a subject."""
    return unquote(subject[len(stream) + 1 :])


def message_id(idempotency_key: str) -> str:
    """Return the ``Nats-Msg-Id`` of a key, whose characters a header may not be able to hold."""
    return sha256(idempotency_key.encode()).hexdigest()


class NatsLog(NamedTuple):
    """The state of a stream at one time."""

    epochs: tuple[LogPosition, ...]
    """Each epoch, with the offset after which it starts."""
    first: int
    """The offset of the first entry; that of the next one if the stream is empty."""
    last: int
    """The offset of the last entry that was ever stored."""
    clock: float
    """The server's time, in seconds."""
    erased: int = 0
    """The offset of the last entry before which a topic was erased, or 0."""

    @classmethod
    def from_info(cls, info: StreamInfo) -> NatsLog:
        """Read the state from JetStream's description of a stream."""
        first_epoch = LogPosition(successor(f"{info['config']['name']} {info['created']}"), 0)
        metadata = cast("Mapping[str, str]", info["config"].get("metadata") or {})
        owner, *later = metadata.get(METADATA_KEY, "").split() or [""]
        epochs = [first_epoch]
        if owner == first_epoch.epoch:  # otherwise it was copied with the configuration of another stream
            epochs += [LogPosition(match[1], int(match[2])) for match in map(_EPOCH.fullmatch, later) if match]
        state = info["state"]
        last = state["last_seq"]
        clock = datetime.fromisoformat(info["ts"]).timestamp()
        owner, _, erased = metadata.get(ERASED_KEY, "").partition(" ")
        is_own = owner == first_epoch.epoch and erased.isdecimal()
        return cls(tuple(epochs), state["first_seq"] or last + 1, last, clock, int(erased) if is_own else 0)

    @property
    def epoch(self) -> str:
        """The current epoch, which new entries get."""
        return self.epochs[-1].epoch

    @property
    def start(self) -> LogPosition:
        """The position before the first entry."""
        offset = self.first - 1
        return LogPosition(next(epoch.epoch for epoch in reversed(self.epochs) if epoch.offset <= offset), offset)

    def position(self, offset: int) -> LogPosition:
        """Return the position of an entry."""
        return LogPosition(next(epoch.epoch for epoch in reversed(self.epochs) if epoch.offset < offset), offset)

    def truncated(self, offset: int) -> str:
        """Return the metadata of this log after it was truncated to an offset, with another epoch.

        The name of the epoch depends on the offset, so that processes which find different offsets start different
        epochs.
        """
        kept = [LogPosition(epoch.epoch, min(epoch.offset, offset)) for epoch in self.epochs[1:]][1 - MAX_EPOCHS :]
        epochs = [*kept, LogPosition(successor(f"{self.epoch}-{offset}"), offset)]
        return " ".join([self.epochs[0].epoch, *(f"{epoch.epoch}:{epoch.offset}" for epoch in epochs)])

    def with_erased(self, offset: int) -> str:
        """Return the metadata that says that a topic was erased before an offset."""
        return f"{self.epochs[0].epoch} {offset}"

    def items(self, position: LogPosition, entries: Sequence[Entry]) -> Iterator[TailItem]:
        """Yield what follows a position, up to the last of the entries that the server delivered after it.

        A missing sequence becomes ``Trimmed``, or ``Erased`` if it is between others and a topic was erased after it.
        The end of the position's epoch becomes ``Truncated``.
        """
        numbers = {epoch.epoch: number for number, epoch in enumerate(self.epochs)}
        done = 0
        while True:
            number = numbers.get(position.epoch, -1)
            truncation = self.start if number < 0 else self.epochs[number + 1] if position.epoch != self.epoch else None
            if truncation is not None and (number < 0 or position.offset >= truncation.offset):
                yield Truncated(truncation)
                position = truncation
                continue
            following = entries[done].offset if done < len(entries) else self.first
            if following - 1 > position.offset:
                through = following - 1 if truncation is None else min(following - 1, truncation.offset)
                is_erased = self.first <= position.offset + 1 and through < self.erased
                yield Erased(through, self.erased) if is_erased else Trimmed(through)
                position = LogPosition(position.epoch, through)
                continue
            if done == len(entries):
                return
            count = _count_dense(entries, done, None if truncation is None else truncation.offset)
            yield entries[done : done + count]
            done += count
            position = LogPosition(position.epoch, entries[done - 1].offset)


def _count_dense(entries: Sequence[Entry], start: int, limit: int | None) -> int:
    """Count the entries from ``start`` on that have consecutive offsets, up to an offset."""
    first, last = entries[start].offset, entries[-1].offset
    if last - first == len(entries) - start - 1 and (limit is None or last <= limit):
        return len(entries) - start
    count = 1
    for entry in entries[start + 1 :]:
        if entry.offset != first + count or (limit is not None and entry.offset > limit):
            break
        count += 1
    return count


class Checkpoint(NamedTuple):
    """An entry that the server must still have, unless it was deleted."""

    offset: int
    content: int | tuple[str, bytes] | None
    """What identifies the entry: its timestamp in nanoseconds, or its subject and payload, or nothing."""


class Checkpoints:
    """Entries that this process received or had acknowledged. If the server has others, it lost some of them."""

    def __init__(self) -> None:
        self._received: deque[Checkpoint] = deque(maxlen=MAX_CHECKPOINTS)
        self._acknowledged: Checkpoint | None = None
        self._epochs: tuple[LogPosition, ...] = ()

    def add_received(self, checkpoint: Checkpoint) -> None:
        """Add the last entry of a batch that was received."""
        if not self._received or self._received[-1].offset < checkpoint.offset:
            self._received.append(checkpoint)

    def add_acknowledged(self, checkpoint: Checkpoint) -> None:
        """Add the last entry of a write."""
        if self._acknowledged is None or self._acknowledged.offset < checkpoint.offset:
            self._acknowledged = checkpoint

    def discard_truncated(self, log: NatsLog) -> None:
        """Discard the entries that are lost in a log."""
        for epoch in log.epochs:
            if self._epochs and epoch not in self._epochs:  # for the first epoch of another stream, all of them
                self._discard_after(epoch.offset)
        self._epochs = log.epochs

    def _discard_after(self, offset: int) -> None:
        while self._received and self._received[-1].offset > offset:
            self._received.pop()
        if self._acknowledged is not None and self._acknowledged.offset > offset:
            self._acknowledged = None

    @property
    def high_water_mark(self) -> int:
        """The last offset that was received or acknowledged; 0 if there is none."""
        return max((checkpoint.offset for checkpoint in self), default=0)

    def __iter__(self) -> Iterator[Checkpoint]:
        checkpoints = list(self._received)
        acknowledged = self._acknowledged
        if acknowledged is not None and (not checkpoints or checkpoints[-1].offset < acknowledged.offset):
            checkpoints.append(acknowledged)
        return iter(checkpoints)
