"""The log of a Hub in a stream of Redis: what the script is sent, and what its replies mean. Awaits nothing."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from ..errors import BrokerRefused
from ..hub.broker import IDEMPOTENCY_WINDOW, Entry, Place
from ..hub.eras import new_epoch
from .redis_script import ELSEWHERE
from .retention import Retention
from .writer import Draft

__all__ = [
    "Answer",
    "Argument",
    "Break",
    "Call",
    "Claim",
    "Elsewhere",
    "RawEntry",
    "RedisLog",
    "key_of",
    "position",
    "stream_id",
]

SEQUENCE = 20  # bits of a position; the script lets no more than these be numbered in a millisecond
WINDOW = int(IDEMPOTENCY_WINDOW * 1.25 * 1000)  # milliseconds that a key is remembered
LIVES = 8  # whose past is remembered: those that connections are in, and a few more

Argument: TypeAlias = str | bytes | int
RawEntry: TypeAlias = tuple[bytes, list[bytes]]


class Elsewhere(Exception):  # never leaves the broker
    """The script has done nothing, for this is another server than the one that was expected."""


class Claim(NamedTuple):
    """What the log had in one of its lives: all up to a position."""

    epoch: str
    life: str
    position: int
    past: str = ""
    """The lives before, each with the id where it ended."""
    since: float = 0.0
    """When the latest of it had come, by this process's clock."""

    def arguments(self, now: float) -> list[Argument]:
        """Return it as the script takes it."""
        till = stream_id(self.position)
        history = b"%b %b %b" % (self.life.encode(), till, self.past.encode())
        return [self.epoch, self.life, till, int((now - self.since) * 1000), history]


NO_CLAIM = Claim("", "", 0)


class Call(NamedTuple):
    """A run of the script."""

    arguments: list[Argument]
    acknowledged: Claim
    """What it claims of publishes."""


class Answer(NamedTuple):
    """What the script returns."""

    latest: Claim
    """What there is now."""
    now: int
    """The time of the server, in milliseconds."""
    start: Place
    """Where to go on: the place that was asked for, unless that is void."""
    through: int | None
    """The position where the epoch of that place ended, if it is over."""
    server: str
    """The run id of the server, which it has until it is started again."""
    places: list[Place]
    """Of the drafts."""


class Break(NamedTuple):
    """The next entry does not simply follow the one before it here."""

    before: int
    """The position that it follows."""
    mark: str
    """The epoch and the life that begin with it, if they do."""


def key_of(stream: str) -> str:
    """Return the key of a stream, which every other key begins with. Raises ``ValueError`` for what can be none."""
    if not isinstance(stream, str) or not stream or set(stream) & set("{}"):
        raise ValueError(f"stream is the name of a stream, without braces, not {stream!r}")
    return f"{{{stream}}}"


def position(raw: bytes) -> int:
    """Return the position that an id of Redis stands for."""
    milliseconds, _, sequence = raw.partition(b"-")
    return int(milliseconds) << SEQUENCE | int(sequence)


def stream_id(position: int) -> bytes:
    """Return the id of Redis that a position stands for."""
    return b"%d-%d" % (position >> SEQUENCE, position & ((1 << SEQUENCE) - 1))


class RedisLog:
    """Say what is sent to the server, and read what it answers."""

    def __init__(self, name: str, retention: Retention) -> None:
        self.stream: str = key_of(name)
        self.given: Claim = NO_CLAIM
        """What came in tails."""
        self.acknowledged: Claim = NO_CLAIM
        """What came after publishes."""
        self._retention = retention
        self._pasts: OrderedDict[str, str] = OrderedDict()  # what was before each life

    def call(self, after: Place | None, drafts: Sequence[Draft] = (), server: str = "") -> Call:
        """Return a run of the script: to find out about a place, or to store drafts, on that server if it has to be."""
        keys: list[Argument] = [self.stream, f"{self.stream}:log"]
        most, age = self._retention
        epoch, at = after or Place("", 0)
        known = next(reversed(self._pasts), "")
        values: list[Argument] = [new_epoch(), server, known, epoch, stream_id(at)]
        values += [most, "" if age is None else int(age * 1000), WINDOW]
        now = time.monotonic()
        for claim in self.given, self.acknowledged:
            values += claim.arguments(now)
        for topic, payload, key in drafts:
            if key is not None:
                keys.append(f"{self.stream}:key:{key}")
            values += ["0" if key is None else len(keys), topic, payload]
        return Call([len(keys), *keys, *values], self.acknowledged)

    def answer(self, reply: Sequence[bytes], call: Call) -> Answer:
        """Read what the script returned, which knows now of all that was claimed. Raises ``Elsewhere``."""
        if reply[0] == ELSEWHERE:
            raise Elsewhere(reply[1].decode())
        epoch, life, last, now, era, at, through, server, past, gone, *raws = reply
        latest = self.claim(epoch.decode(), life.decode(), position(last), past.decode())
        places = []
        for raw in raws:
            its_own, _, where = raw.rpartition(b" ")
            places.append(Place(its_own.decode() or latest.epoch, position(where)))
        if places:
            self.acknowledged = latest
        elif self.acknowledged is call.acknowledged is not NO_CLAIM:
            old = call.acknowledged  # of which all is there still, or else it was told
            self.acknowledged = NO_CLAIM if gone else latest._replace(position=old.position, since=old.since)
        start = Place(era.decode(), position(at))
        return Answer(latest, int(now), start, position(through) if through else None, server.decode(), places)

    def claim(self, epoch: str, life: str, position: int, past: str = "") -> Claim:
        """Make a claim about now. The ``past`` of a life has to be given once."""
        if past or life not in self._pasts:
            self._pasts[life] = past
            while len(self._pasts) > LIVES:
                self._pasts.popitem(last=False)
        self._pasts.move_to_end(life)
        return Claim(epoch, life, position, self._pasts[life], time.monotonic())

    def entries(
        self, raws: Sequence[RawEntry], at: int, now: int, marks: Sequence[str]
    ) -> tuple[list[Entry], Break | None]:
        """Read entries, up to the first that does not follow the one before, which for the first is that ``at``.

        One that begins a life follows if that is one of ``marks``. ``now`` is the time of the server, in milliseconds.
        Raises ``BrokerRefused`` for what no broker wrote.
        """
        made: list[Entry] = []
        make = tuple.__new__  # what an Entry's own does, less a call for each
        expected = stream_id(at)
        raw = b""
        try:
            for raw, (link, before, _, topic, _, payload) in raws:
                if before != expected:
                    mark, _, previous = before.rpartition(b" ")
                    broken = Break(position(previous if link == b"l" else b""), mark.decode())  # b"" is no id
                    if previous != expected or broken.mark not in marks:
                        return made, broken
                milliseconds, _, sequence = raw.partition(b"-")
                stamp = int(milliseconds)
                age = (now - stamp) / 1000 if now > stamp else 0.0
                made.append(make(Entry, (stamp << SEQUENCE | int(sequence), topic.decode(), payload, age)))
                expected = raw
        except ValueError as error:
            raise BrokerRefused(
                f"{self.stream} has an entry that no broker wrote, {raw.decode()}: a Hub needs a stream of its own"
            ) from error
        return made, None
