"""The log of a Hub in a stream of JetStream: its eras, its names, and what was given of it. Awaits nothing."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import NamedTuple, TypedDict, cast
from urllib.parse import quote, unquote

from ..hub.broker import IDEMPOTENCY_WINDOW, Entry, Lost, Place, Rewound, TailItem
from ..hub.eras import successor

__all__ = ["Limits", "Mark", "Marks", "NatsLog", "StreamInfo", "message_id", "subject_of", "topic_of"]

ERAS = "aiohttp_interceptors_eras"  # in the stream's metadata: of which stream, and where each later era begins
MOST_ERAS = 16
MOST_MARKS = 1000
NANOSECONDS = 10**9
_ERA = re.compile(r"([0-9a-z]{1,32}):([0-9]{1,19})", re.ASCII)


class _State(TypedDict):
    first_seq: int
    last_seq: int


class StreamInfo(TypedDict):
    """What JetStream tells of a stream, as far as it matters here."""

    config: dict[str, object]
    created: str
    state: _State
    ts: str


class Limits(NamedTuple):
    """What a stream keeps."""

    max_records: int
    max_age: float | None

    def config(self) -> dict[str, object]:
        """Return them as JetStream has them."""
        return {
            "discard": "old",
            "max_msgs": self.max_records,
            "max_age": 0 if self.max_age is None else int(self.max_age * NANOSECONDS),
            "duplicate_window": int(IDEMPOTENCY_WINDOW * NANOSECONDS),
        }


def subject_of(stream: str, topic: str) -> str:
    """Return the subject of a topic: what a subject cannot hold is percent-encoded."""
    return f"{stream}.{quote(topic, safe='')}"


def topic_of(stream: str, subject: str) -> str:
    """Return the topic of a subject."""
    return unquote(subject[len(stream) + 1 :])


def message_id(idempotency_key: str) -> str:
    """Return what a header can hold of a key."""
    return sha256(idempotency_key.encode()).hexdigest()


class NatsLog(NamedTuple):
    """What a stream has, and which epochs that is of.

    The first epoch is made of the time when the stream was created, so that a stream which was deleted and created
    anew is another log, without anybody having written that down. Those after a rewind are in the stream's metadata.
    """

    eras: tuple[Place, ...]
    """Where each begins."""
    first: int
    """The position of the first entry that is kept, or of the next if none is."""
    last: int
    clock: float
    """What the server's clock said, in seconds."""

    @classmethod
    def of(cls, info: StreamInfo) -> NatsLog:
        """Return what JetStream tells."""
        origin = Place(successor(f"{info['config']['name']} {info['created']}"), 0)
        metadata = cast("Mapping[str, str]", info["config"].get("metadata") or {})
        whose, *later = metadata.get(ERAS, "").split() or [""]
        eras = [origin]
        if whose == origin.epoch:  # or it came with the configuration of another stream
            eras += [Place(era[1], int(era[2])) for era in map(_ERA.fullmatch, later) if era]
        state = info["state"]
        last = state["last_seq"]
        clock = datetime.fromisoformat(info["ts"]).timestamp()
        return cls(tuple(eras), state["first_seq"] or last + 1, last, clock)

    @property
    def epoch(self) -> str:
        """Of what is appended."""
        return self.eras[-1].epoch

    @property
    def start(self) -> Place:
        """The place before the first entry."""
        position = self.first - 1
        return Place(next(era.epoch for era in reversed(self.eras) if era.position <= position), position)

    def place(self, position: int) -> Place:
        """Return the place of an entry."""
        return Place(next(era.epoch for era in reversed(self.eras) if era.position < position), position)

    def rewound(self, border: int) -> str:
        """Return the metadata that says that what was after a position is void.

        The epoch is made of that position too: who takes another border for it goes on in another epoch.
        """
        kept = [Place(era.epoch, min(era.position, border)) for era in self.eras[1:]][1 - MOST_ERAS :]
        eras = [*kept, Place(successor(f"{self.epoch}-{border}"), border)]
        return " ".join([self.eras[0].epoch, *(f"{era.epoch}:{era.position}" for era in eras)])

    def items(self, place: Place, entries: Sequence[Entry]) -> Iterator[TailItem]:
        """Tell what follows a place, up to the last of the entries that the server gave after it."""
        numbers = {era.epoch: number for number, era in enumerate(self.eras)}
        given = 0
        while True:
            number = numbers.get(place.epoch, -1)
            following = self.start if number < 0 else self.eras[number + 1] if place.epoch != self.epoch else None
            if following is not None and (number < 0 or place.position >= following.position):
                yield Rewound(following)
                place = following
                continue
            ahead = entries[given].position if given < len(entries) else self.first
            if ahead - 1 > place.position:
                through = ahead - 1 if following is None else min(ahead - 1, following.position)
                yield Lost(through)
                place = Place(place.epoch, through)
                continue
            if given == len(entries):
                return
            count = _run(entries, given, None if following is None else following.position)
            yield entries[given : given + count]
            given += count
            place = Place(place.epoch, entries[given - 1].position)


def _run(entries: Sequence[Entry], start: int, border: int | None) -> int:
    """Count the entries that follow each other without a hole, and not beyond a border."""
    first, last = entries[start].position, entries[-1].position
    if last - first == len(entries) - start - 1 and (border is None or last <= border):
        return len(entries) - start
    count = 1
    for entry in entries[start + 1 :]:
        if entry.position != first + count or (border is not None and entry.position > border):
            break
        count += 1
    return count


class Mark(NamedTuple):
    """By what an entry is known again: its time to the nanosecond, or what was published, or nothing."""

    position: int
    content: int | tuple[str, bytes] | None


class Marks:
    """Entries that were given or acknowledged: whether the server still has them tells whether it was rewound."""

    def __init__(self) -> None:
        self._given: deque[Mark] = deque(maxlen=MOST_MARKS)
        self._acknowledged: Mark | None = None
        self._eras: tuple[Place, ...] = ()

    def give(self, mark: Mark) -> None:
        """Note the last entry of a batch."""
        if not self._given or self._given[-1].position < mark.position:
            self._given.append(mark)

    def acknowledge(self, mark: Mark) -> None:
        """Note the last entry of a write."""
        if self._acknowledged is None or self._acknowledged.position < mark.position:
            self._acknowledged = mark

    def follow(self, log: NatsLog) -> None:
        """Forget what is void in a log."""
        for era in log.eras:
            if self._eras and era not in self._eras:  # the first one, too, which is another stream's
                self._keep(era.position)
        self._eras = log.eras

    def _keep(self, border: int) -> None:
        while self._given and self._given[-1].position > border:
            self._given.pop()
        if self._acknowledged is not None and self._acknowledged.position > border:
            self._acknowledged = None

    @property
    def top(self) -> int:
        """The last position that was given or acknowledged; 0 if none was."""
        return max((mark.position for mark in self), default=0)

    def __iter__(self) -> Iterator[Mark]:
        marks = list(self._given)
        if self._acknowledged is not None and (not marks or marks[-1].position < self._acknowledged.position):
            marks.append(self._acknowledged)
        return iter(marks)
