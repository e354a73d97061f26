"""The stream of a Hub in JetStream: made, given its limits, and asked whether it still has what it had."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from datetime import datetime
from typing import cast

from ..errors import BrokerDown, BrokerRefused
from ..hub.broker import Place
from ..observe.logs import log as logger
from .nats_log import ERAS, Limits, Mark, Marks, NatsLog, StreamInfo
from .nats_session import AGAIN, NatsSession, Reply, checked

__all__ = ["NatsStream"]

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

    async def survey(self, session: NatsSession, after: Place | None = None) -> NatsLog:
        """Return the log as it is, and have it go on in another epoch if it has lost what we know of."""
        async with self._surveying:  # what a tail and a write find at once is one thing
            top = self.marks.top  # as what is given meanwhile may be more than what is told
            log = NatsLog.of(await self._info(session))
            self.marks.follow(log)
            marks = [mark for mark in self.marks if mark.position <= top]
            if after is not None and after.epoch == log.epoch and after.position > top:
                marks.append(Mark(after.position, None))
            border = await self._border(session, log, [mark for mark in marks if mark.position >= log.first])
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
        return marks[intact].position if intact >= 0 else log.first - 1

    async def _has(self, session: NatsSession, log: NatsLog, mark: Mark) -> bool:
        """Tell whether the server has the entry of a mark; one that was deleted alone it had."""
        if mark.position > log.last or mark.content is None:
            return mark.position <= log.last
        reply = await session.ask(f"STREAM.MSG.GET.{self.name}", {"seq": mark.position})
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
