"""The log of a Hub in a Redis stream: append, read, and find out whether entries were lost.

The decisions are in the script ``append.lua``, which also describes the stored format, and in ``erase.lua``.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple, TypeAlias, cast

from ...exceptions import BrokerRefused
from ...hub.broker import IDEMPOTENCY_WINDOW, Entry, LogPosition
from ...hub.epochs import new_epoch
from ..base import AppendRequest, LogRetention, lost_before_erasing
from .connection import Argument, RedisConnection, Reply, Script

__all__ = [
    "Checkpoint",
    "Discontinuity",
    "LogState",
    "RawEntry",
    "RedisLog",
    "WrongServer",
    "entry_id",
    "offset_of",
    "stream_key",
]


SEQUENCE_BITS = 20  # of an offset; append.lua assigns no larger sequence number within a millisecond
KEY_TTL = int(IDEMPOTENCY_WINDOW * 1.25 * 1000)  # milliseconds that an idempotency key is stored
MAX_RUNS = 8  # runs whose ancestry is remembered: those that the two connections are in, and a few more

ERASE_STEP = 100  # entries that one call of the script reads: the server does nothing else meanwhile

_IDS, _APPEND, _ERASE = [
    resources.files(__package__).joinpath(f"{name}.lua").read_text("utf-8") for name in ("ids", "append", "erase")
]
_SCRIPT, _ERASE_SCRIPT = Script(_IDS + _APPEND), Script(_IDS + _ERASE)
_WRONG_SERVER = b""  # first element of the reply if the script has done nothing, because the server is another one

RawEntry: TypeAlias = tuple[bytes, list[bytes]]
"""The ID and the fields of an entry, as ``XREAD`` returns them."""


class WrongServer(Exception):  # does not leave the broker
    """The script has done nothing, because the server is not the expected one. The argument is its run ID."""


class Checkpoint(NamedTuple):
    """What a process knows that the log contained: all entries up to a position, in one of its runs."""

    position: LogPosition
    run_id: str
    ancestry: str
    """The runs before, each with the ID of its last entry."""
    time: float
    """When the position was received, by the monotonic clock of this process."""

    def arguments(self, now: float) -> list[Argument]:
        """Return the checkpoint as arguments of the script."""
        end = entry_id(self.position.offset)
        history = b"%b %b %b" % (self.run_id.encode(), end, self.ancestry.encode())
        return [self.position.epoch, self.run_id, end, int((now - self.time) * 1000), history]


NO_CHECKPOINT = Checkpoint(LogPosition("", 0), "", "", 0.0)


class LogState(NamedTuple):
    """The state of the log, and whether a position in it is still valid."""

    end: Checkpoint
    """The newest entry."""
    server_time: int
    """Unix time of the server, in milliseconds."""
    server_run_id: str
    """The server's run ID, which changes when the server is restarted."""
    start: LogPosition
    """Where to resume: the position that was asked for, unless the log was truncated."""
    epoch_end: int | None
    """Offset of the last entry in the epoch of ``start``, or ``None`` for the current epoch."""


class Discontinuity(NamedTuple):
    """The next entry does not follow the previous one: a run begins with it, or entries are missing."""

    previous: int
    """Offset of the entry that it follows."""
    run: str
    """Epoch and run ID from the link of the first entry of a run, otherwise ``""``."""


def stream_key(name: str) -> str:
    """Return the key of a stream, with which all its other keys begin. Raises ``ValueError`` for an invalid name."""
    if not isinstance(name, str) or not name or set(name) & set("{}"):
        raise ValueError(f"stream is the name of a stream, without braces, not {name!r}")
    return f"{{{name}}}"


def offset_of(raw_id: bytes) -> int:
    """Return the offset of an entry ID."""
    milliseconds, _, sequence = raw_id.partition(b"-")
    return int(milliseconds) << SEQUENCE_BITS | int(sequence)


def entry_id(offset: int) -> bytes:
    """Return the entry ID of an offset."""
    return b"%d-%d" % (offset >> SEQUENCE_BITS, offset & ((1 << SEQUENCE_BITS) - 1))


class RedisLog:
    """The log in a stream. It remembers the latest entries of this process, and passes them with each call.

    Args:
        stream: Name of the stream.
        retention: When entries are trimmed.
    """

    def __init__(self, stream: str, retention: LogRetention) -> None:
        self.key: str = stream_key(stream)
        """The key of the stream."""
        self.received: Checkpoint = NO_CHECKPOINT
        """The latest entry that a tail has received."""
        self.acknowledged: Checkpoint = NO_CHECKPOINT
        """The latest entry that a server has acknowledged."""
        self._retention = retention
        self._ancestries: OrderedDict[str, str] = OrderedDict()  # by run ID

    async def append(
        self, connection: RedisConnection, requests: Sequence[AppendRequest], server_run_id: str
    ) -> list[LogPosition]:
        """Append entries, and return their positions.

        Raises:
            WrongServer: The server has another run ID than this one, which is not ``""``. Nothing was appended.
            BrokerError: As ``RedisConnection.request`` raises it.
        """
        _, positions = await self._call(connection, None, requests, server_run_id)
        return positions

    async def erase(self, connection: RedisConnection, topic: str, before: LogPosition) -> None:
        """Delete the entries of a topic before a position, step by step."""
        start: Argument = "0-0"
        fixed = before.epoch, entry_id(before.offset), topic
        while start:
            reply = await connection.run_script(
                _ERASE_SCRIPT, 2, self.key, f"{self.key}:log", *fixed, start, ERASE_STEP
            )
            if reply is None:
                raise lost_before_erasing(topic)
            start = cast("bytes", reply)

    async def erased(self, connection: RedisConnection) -> tuple[int, int]:
        """Return the offset of the first entry, and the one before which entries were erased; 0 if there is none."""
        first = cast("list[RawEntry]", await connection.request("XRANGE", self.key, "-", "+", "COUNT", 1))
        erased = cast("bytes | None", await connection.request("HGET", f"{self.key}:log", "erased"))
        return offset_of(first[0][0]) if first else 0, 0 if erased is None else offset_of(erased)

    async def locate(self, connection: RedisConnection, position: LogPosition | None) -> LogState:
        """Find out whether the log still has the entries up to a position. ``None`` is before the first entry."""
        state, _ = await self._call(connection, position)
        return state

    async def read(
        self, connection: RedisConnection, after: int, count: int, block: float | None
    ) -> Sequence[RawEntry]:
        """Return at most ``count`` entries after an offset.

        If there are none, the server waits up to ``block`` seconds for the first one, or not at all for ``None``.
        """
        options = () if block is None else ("BLOCK", int(block * 1000) or 1)
        reply = await connection.request("XREAD", "COUNT", count, *options, "STREAMS", self.key, entry_id(after))
        return _raw_entries(reply)

    def decode(
        self, raw_entries: Sequence[RawEntry], after: int, server_time: int, runs: Sequence[str]
    ) -> tuple[list[Entry], Discontinuity | None]:
        """Decode entries, up to the first that does not follow the previous one.

        Args:
            raw_entries: The entries after an offset.
            after: That offset.
            server_time: Unix time of the server, in milliseconds.
            runs: Epochs and run IDs, as in the links of first entries. These runs may begin without a discontinuity.

        Raises:
            BrokerRefused: The stream has an entry that was not appended by a broker.
        """
        entries: list[Entry] = []
        expected = entry_id(after)
        raw_id = b""
        try:
            for raw_id, (field, link, _, topic, _, payload) in raw_entries:
                if link != expected:
                    run, _, previous = link.rpartition(b" ")
                    # b"" is not an ID, and raises ValueError.
                    discontinuity = Discontinuity(offset_of(previous if field == b"l" else b""), run.decode())
                    if previous != expected or discontinuity.run not in runs:
                        return entries, discontinuity
                milliseconds, _, sequence = raw_id.partition(b"-")
                timestamp = int(milliseconds)
                age = (server_time - timestamp) / 1000 if server_time > timestamp else 0.0
                entries.append(Entry(timestamp << SEQUENCE_BITS | int(sequence), topic.decode(), payload, age))
                expected = raw_id
        except ValueError as error:
            raise BrokerRefused(
                f"{self.key} has an entry that no broker appended, {raw_id.decode()}: use a stream that nothing but the"
                " Hub writes to"
            ) from error
        return entries, None

    def checkpoint(self, position: LogPosition, run_id: str, ancestry: str = "") -> Checkpoint:
        """Return a checkpoint with the current time. The ancestry of a run is remembered, and needed only once."""
        if ancestry or run_id not in self._ancestries:
            self._ancestries[run_id] = ancestry
            while len(self._ancestries) > MAX_RUNS:
                self._ancestries.popitem(last=False)
        self._ancestries.move_to_end(run_id)
        return Checkpoint(position, run_id, self._ancestries[run_id], time.monotonic())

    async def _call(
        self,
        connection: RedisConnection,
        position: LogPosition | None,
        requests: Sequence[AppendRequest] = (),
        server_run_id: str = "",
    ) -> tuple[LogState, list[LogPosition]]:
        """Run the script, and return the state of the log and the positions of the entries."""
        acknowledged = self.acknowledged
        arguments = self._arguments(position, requests, server_run_id)
        reply = cast("list[bytes]", await connection.run_script(_SCRIPT, *arguments))
        if reply[0] == _WRONG_SERVER:
            raise WrongServer(reply[1].decode())
        epoch, run_id, last, now, start_epoch, start, epoch_end, server, ancestry, is_lost, *raw_positions = reply
        end = self.checkpoint(LogPosition(epoch.decode(), offset_of(last)), run_id.decode(), ancestry.decode())
        positions = [_position(raw, end.position.epoch) for raw in raw_positions]
        if positions:
            self.acknowledged = end
        elif self.acknowledged is acknowledged is not NO_CHECKPOINT:
            self.acknowledged = NO_CHECKPOINT if is_lost else _moved(acknowledged, end)
        state = LogState(
            end=end,
            server_time=int(now),
            server_run_id=server.decode(),
            start=LogPosition(start_epoch.decode(), offset_of(start)),
            epoch_end=offset_of(epoch_end) if epoch_end else None,
        )
        return state, positions

    def _arguments(
        self, position: LogPosition | None, requests: Sequence[AppendRequest], server_run_id: str
    ) -> list[Argument]:
        """Return the arguments of the script: the number of keys, the keys, and the values."""
        keys: list[Argument] = [self.key, f"{self.key}:log"]
        max_records, max_age = self._retention
        epoch, offset = position or LogPosition("", 0)
        known_run = next(reversed(self._ancestries), "")
        values: list[Argument] = [new_epoch(), server_run_id, known_run, epoch, entry_id(offset)]
        values += [max_records, "" if max_age is None else int(max_age * 1000), KEY_TTL]
        now = time.monotonic()
        for checkpoint in self.received, self.acknowledged:
            values += checkpoint.arguments(now)
        for topic, payload, key in requests:
            if key is not None:
                keys.append(f"{self.key}:key:{key}")
            values += ["0" if key is None else len(keys), topic, payload]
        return [len(keys), *keys, *values]


def _moved(checkpoint: Checkpoint, end: Checkpoint) -> Checkpoint:
    """Return a checkpoint of which nothing was lost, as one in the run and the epoch at the end of the log."""
    return end._replace(position=end.position._replace(offset=checkpoint.position.offset), time=checkpoint.time)


def _position(raw: bytes, epoch: str) -> LogPosition:
    """Return the position of an appended entry. One that was appended before comes with its epoch."""
    its_epoch, _, raw_id = raw.rpartition(b" ")
    return LogPosition(its_epoch.decode() or epoch, offset_of(raw_id))


def _raw_entries(reply: Reply) -> Sequence[RawEntry]:
    if not reply:
        return []
    if isinstance(reply, dict):  # RESP 3
        return cast("list[RawEntry]", next(iter(reply.values())))
    return cast("list[tuple[bytes, list[RawEntry]]]", reply)[0][1]
