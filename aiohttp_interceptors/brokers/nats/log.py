"""When the leader of a stream of JetStream was asked last, and whether all that it had has come. Awaits nothing."""

from __future__ import annotations

import asyncio
import base64
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import NamedTuple, TypedDict, cast
from urllib.parse import quote, unquote

from ..._logging import log as logger
from ...exceptions import BrokerDown, BrokerRefused
from ...hub.broker import IDEMPOTENCY_WINDOW, Entry, LogPosition, TailItem, Trimmed, Truncated
from ...hub.epochs import successor
from .connection import AGAIN, NatsSession, Reply, checked

__all__ = [
    "Confirmation",
    "Limits",
    "Mark",
    "Marks",
    "NatsLog",
    "NatsStream",
    "StreamInfo",
    "message_id",
    "subject_of",
    "topic_of",
]


LOOK = 1.0  # seconds between two looks at the stream, whose leader alone knows what it has
WITHIN = 2.0  # seconds, at most, between a look and what it confirms: an older one says nothing of now
SILENCES = 2  # heartbeats after which what a look told of, and has not come, was deleted


class _Answer(NamedTuple):
    last: int  # the position of the last message that there ever was
    silences: int  # how often the consumer had said by then that there is nothing more
    asked: float


class Confirmation:
    """What one tail knows of the stream. Times are of one clock, in seconds."""

    def __init__(self, offset: int, now: float) -> None:
        self._known = offset  # up to where all has come that is still there
        self._answer: _Answer | None = None  # of the last look, until all has come that it told of
        self._next = now + LOOK

    def due(self, now: float) -> bool:
        """Tell whether it is time to look at the stream."""
        return self._answer is None and now > self._next

    def answered(self, last: int, silences: int, asked: float, now: float) -> None:
        """Note what a look has found."""
        self._answer, self._next = _Answer(last, silences, asked), now + LOOK

    def complete(self, offset: int, silences: int, now: float) -> bool:
        """Tell once for each look whether all has come that it told of, and lately; it came up to a position."""
        answer = self._answer
        self._known = max(self._known, offset)
        if answer is None:
            return False
        if silences >= answer.silences + SILENCES:
            self._known = max(self._known, answer.last)
        if self._known < answer.last:
            return False
        self._answer = None
        return now <= answer.asked + WITHIN


NO_MESSAGE, NO_STREAM, OTHER_STREAM = 10037, 10059, 10058  # what JetStream calls these errors
NANOSECONDS = 10**9


class NatsStream:
    """What is known of a stream in one process. Raises ``BrokerError`` alone."""

    def __init__(self, name: str, limits: Limits, replicas: int | None) -> None:
        self.name: str = name
        self.marks: Marks = Marks()
        self.log: NatsLog
        """As it was at the latest ``survey``."""
        self._limits = limits
        self._replicas = replicas
        self._surveying = asyncio.Lock()
        self._limited = False

    async def look(self, session: NatsSession, log: NatsLog) -> NatsLog:
        """Return the log as its leader has it now. Raises ``BrokerDown`` when it is not what it was."""
        top = self.marks.top
        now = NatsLog.of(_told(checked(await self._ask_leader(session))))
        if now.eras != log.eras or now.last < top:
            raise BrokerDown(f"stream {self.name} was deleted, or has lost what was last")
        return now

    async def survey(self, session: NatsSession, after: LogPosition | None = None) -> NatsLog:
        """Return the log as it is, and have it go on in another epoch if it has lost what we know of."""
        async with self._surveying:  # what a tail and a write find at once is one thing
            top = self.marks.top  # as what is given meanwhile may be more than what is told
            log = NatsLog.of(await self._info(session))
            self.marks.follow(log)
            marks = [mark for mark in self.marks if mark.offset <= top]
            if after is not None and after.epoch == log.epoch and after.offset > top:
                marks.append(Mark(after.offset, None))
            border = await self._border(session, log, [mark for mark in marks if mark.offset >= log.first])
            if border is not None:
                log = await self._rewind(session, log, border)
                self.marks.follow(log)
            self.log = log
        return log

    async def _ask_leader(self, session: NatsSession) -> Reply:
        """Return what the stream's leader says of it. Raises ``BrokerDown`` when there is none for the patience.

        A node that has been alone for some time answers, too, with what it happens to have, and names no leader.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + session.patience
        while True:
            reply = await session.ask(f"STREAM.INFO.{self.name}")
            cluster = cast("Reply | None", reply.get("cluster"))
            if cluster is None or cluster.get("leader"):
                return reply
            if clock() + AGAIN > deadline:
                raise BrokerDown(f"stream {self.name} has had no leader for {session.patience} s")
            await asyncio.sleep(AGAIN)

    async def _info(self, session: NatsSession) -> StreamInfo:
        """Return what there is to know of the stream, which is made if it is missing."""
        name = self.name
        reply = await self._ask_leader(session)
        if _error_code(reply) == NO_STREAM:
            config: Reply = {"name": name, "subjects": [f"{name}.>"], "storage": "file", "retention": "limits"}
            config |= {"num_replicas": self._replicas or 1, **self._limits.config()}
            reply = await session.ask(f"STREAM.CREATE.{name}", config)
            if _error_code(reply) == OTHER_STREAM:  # another process was quicker
                reply = await self._ask_leader(session)
        info = _told(checked(reply))
        config = info["config"]
        if config.get("subjects") != [f"{name}.>"] or config.get("retention") != "limits":
            raise BrokerRefused(
                f"stream {name} has the subjects {config.get('subjects')} and retention {config.get('retention')}:"
                f" a Hub needs one of its own, with ['{name}.>'] and limits"
            )
        if not self._limited:
            await self._limit(session, config)
            self._limited = True
        return info

    async def _limit(self, session: NatsSession, config: Reply) -> None:
        """Give the stream what the broker's arguments say, its replicas last, which not every server can change."""
        changes = {name: value for name, value in self._limits.config().items() if config.get(name) != value}
        if changes:
            config = await self._update(session, config, changes)
        if self._replicas is not None and config.get("num_replicas") != self._replicas:
            await self._update(session, config, {"num_replicas": self._replicas})

    async def _update(self, session: NatsSession, config: Reply, changes: Reply) -> Reply:
        """Return the configuration that a stream has with changes, or that it still has when they are refused."""
        reply = await session.ask(f"STREAM.UPDATE.{self.name}", {**config, **changes})
        error = reply.get("error")
        had = {f"had_{name}": config.get(name) for name in changes}
        (logger.warning if error else logger.info)(
            "nats_stream_limits", stream=self.name, **changes, **had, error=error
        )
        return config if error else _told(reply)["config"]

    async def _border(self, session: NatsSession, log: NatsLog, marks: Sequence[Mark]) -> int | None:
        """Return the last position that is surely what it was, or ``None`` when all is."""
        if not marks or await self._has(session, log, marks[-1]):
            return None
        intact, void = -1, len(marks) - 1
        while void - intact > 1:
            middle = (intact + void) // 2
            if await self._has(session, log, marks[middle]):
                intact = middle
            else:
                void = middle
        return marks[intact].offset if intact >= 0 else log.first - 1

    async def _has(self, session: NatsSession, log: NatsLog, mark: Mark) -> bool:
        """Tell whether the server has the entry of a mark; one that was deleted alone it had."""
        if mark.offset > log.last or mark.content is None:
            return mark.offset <= log.last
        reply = await session.ask(f"STREAM.MSG.GET.{self.name}", {"seq": mark.offset})
        if _error_code(reply) == NO_MESSAGE:
            return True
        message = cast("dict[str, str]", checked(reply)["message"])
        if isinstance(mark.content, int):
            return _nanoseconds(message["time"]) == mark.content
        return mark.content == (message["subject"], base64.b64decode(message.get("data", "")))

    async def _rewind(self, session: NatsSession, log: NatsLog, border: int) -> NatsLog:
        """Have the log go on in another epoch after a position, unless another process did."""
        info = _told(checked(await self._ask_leader(session)))
        if NatsLog.of(info).eras == log.eras:
            metadata = {**cast("dict[str, str]", info["config"].get("metadata") or {}), ERAS: log.rewound(border)}
            request = {**info["config"], "metadata": metadata}
            checked(await session.ask(f"STREAM.UPDATE.{self.name}", request))
            info = _told(checked(await self._ask_leader(session)))
        return NatsLog.of(info)


def _error_code(reply: Reply) -> object:
    return cast("Reply", reply.get("error") or {}).get("err_code")


def _told(reply: Reply) -> StreamInfo:
    return cast("StreamInfo", reply)


def _nanoseconds(time: str) -> int:
    """Return a time to the nanosecond, which a float would not hold."""
    seconds, _, fraction = time.removesuffix("Z").partition(".")
    return int(datetime.fromisoformat(f"{seconds}+00:00").timestamp()) * NANOSECONDS + int(fraction.ljust(9, "0"))


ERAS = "aiohttp_interceptors_eras"  # in the stream's metadata: of which stream, and where each later era begins
MOST_ERAS = 16
MOST_MARKS = 1000
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

    eras: tuple[LogPosition, ...]
    """Where each begins."""
    first: int
    """The position of the first entry that is kept, or of the next if none is."""
    last: int
    clock: float
    """What the server's clock said, in seconds."""

    @classmethod
    def of(cls, info: StreamInfo) -> NatsLog:
        """Return what JetStream tells."""
        origin = LogPosition(successor(f"{info['config']['name']} {info['created']}"), 0)
        metadata = cast("Mapping[str, str]", info["config"].get("metadata") or {})
        whose, *later = metadata.get(ERAS, "").split() or [""]
        eras = [origin]
        if whose == origin.epoch:  # or it came with the configuration of another stream
            eras += [LogPosition(era[1], int(era[2])) for era in map(_ERA.fullmatch, later) if era]
        state = info["state"]
        last = state["last_seq"]
        clock = datetime.fromisoformat(info["ts"]).timestamp()
        return cls(tuple(eras), state["first_seq"] or last + 1, last, clock)

    @property
    def epoch(self) -> str:
        """Of what is appended."""
        return self.eras[-1].epoch

    @property
    def start(self) -> LogPosition:
        """The place before the first entry."""
        offset = self.first - 1
        return LogPosition(next(era.epoch for era in reversed(self.eras) if era.offset <= offset), offset)

    def position(self, offset: int) -> LogPosition:
        """Return the place of an entry."""
        return LogPosition(next(era.epoch for era in reversed(self.eras) if era.offset < offset), offset)

    def rewound(self, border: int) -> str:
        """Return the metadata that says that what was after a position is void.

        The epoch is made of that position too: who takes another border for it goes on in another epoch.
        """
        kept = [LogPosition(era.epoch, min(era.offset, border)) for era in self.eras[1:]][1 - MOST_ERAS :]
        eras = [*kept, LogPosition(successor(f"{self.epoch}-{border}"), border)]
        return " ".join([self.eras[0].epoch, *(f"{era.epoch}:{era.offset}" for era in eras)])

    def items(self, position: LogPosition, entries: Sequence[Entry]) -> Iterator[TailItem]:
        """Tell what follows a place, up to the last of the entries that the server gave after it."""
        numbers = {era.epoch: number for number, era in enumerate(self.eras)}
        given = 0
        while True:
            number = numbers.get(position.epoch, -1)
            following = self.start if number < 0 else self.eras[number + 1] if position.epoch != self.epoch else None
            if following is not None and (number < 0 or position.offset >= following.offset):
                yield Truncated(following)
                position = following
                continue
            ahead = entries[given].offset if given < len(entries) else self.first
            if ahead - 1 > position.offset:
                through = ahead - 1 if following is None else min(ahead - 1, following.offset)
                yield Trimmed(through)
                position = LogPosition(position.epoch, through)
                continue
            if given == len(entries):
                return
            count = _run(entries, given, None if following is None else following.offset)
            yield entries[given : given + count]
            given += count
            position = LogPosition(position.epoch, entries[given - 1].offset)


def _run(entries: Sequence[Entry], start: int, border: int | None) -> int:
    """Count the entries that follow each other without a hole, and not beyond a border."""
    first, last = entries[start].offset, entries[-1].offset
    if last - first == len(entries) - start - 1 and (border is None or last <= border):
        return len(entries) - start
    count = 1
    for entry in entries[start + 1 :]:
        if entry.offset != first + count or (border is not None and entry.offset > border):
            break
        count += 1
    return count


class Mark(NamedTuple):
    """By what an entry is known again: its time to the nanosecond, or what was published, or nothing."""

    offset: int
    content: int | tuple[str, bytes] | None


class Marks:
    """Entries that were given or acknowledged: whether the server still has them tells whether it was rewound."""

    def __init__(self) -> None:
        self._given: deque[Mark] = deque(maxlen=MOST_MARKS)
        self._acknowledged: Mark | None = None
        self._eras: tuple[LogPosition, ...] = ()

    def give(self, mark: Mark) -> None:
        """Note the last entry of a batch."""
        if not self._given or self._given[-1].offset < mark.offset:
            self._given.append(mark)

    def acknowledge(self, mark: Mark) -> None:
        """Note the last entry of a write."""
        if self._acknowledged is None or self._acknowledged.offset < mark.offset:
            self._acknowledged = mark

    def follow(self, log: NatsLog) -> None:
        """Forget what is void in a log."""
        for era in log.eras:
            if self._eras and era not in self._eras:  # the first one, too, which is another stream's
                self._keep(era.offset)
        self._eras = log.eras

    def _keep(self, border: int) -> None:
        while self._given and self._given[-1].offset > border:
            self._given.pop()
        if self._acknowledged is not None and self._acknowledged.offset > border:
            self._acknowledged = None

    @property
    def top(self) -> int:
        """The last position that was given or acknowledged; 0 if none was."""
        return max((mark.offset for mark in self), default=0)

    def __iter__(self) -> Iterator[Mark]:
        marks = list(self._given)
        if self._acknowledged is not None and (not marks or marks[-1].offset < self._acknowledged.offset):
            marks.append(self._acknowledged)
        return iter(marks)
