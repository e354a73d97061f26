"""One tail of the log in a stream, and the guard against publishing to another server than the tail reads from.

The tail reads with ``XREAD`` and follows the links of the entries. It runs the script at the start, after each pause,
and where the next entry does not follow the last one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from ...exceptions import BrokerDown
from ...hub.broker import CaughtUp, Erased, LogPosition, Subscribed, TailItem, Trimmed, Truncated
from .connection import RedisConnection
from .log import Discontinuity, LogState, RawEntry, RedisLog, entry_id, offset_of
from .topology import SettingsCheck

__all__ = ["SPLIT_BRAIN", "RedisTail", "SplitBrainGuard"]


MAX_ENTRIES = 1000  # in one batch
MAX_BYTES = 2**20  # of payload in one batch, estimated by the batches before
MAX_BLOCK = 1.5  # seconds, at most, that the server waits for an entry before the state of the log is checked again
# Seconds that a reply may be late. After a longer pause the server may have been replaced without knowing it yet.
MAX_DELAY = 2.0
SMALL_REPLY = 2**16  # bytes of payload; the network does not explain the delay of a smaller reply

SPLIT_BRAIN = (
    "the connection for publishing leads to another server than the connection for reading; nothing was stored, and"
    " both reconnect until they lead to the same server"
)
T = TypeVar("T")


class RedisTail:
    """Reads the log after a position.

    Args:
        connection: The connection to use. It is closed with the tail.
        log: The log, shared with the publishes of this process.
        read_timeout: Seconds until a server without a reply counts as lost.
        settings_check: Run at the start.
        guard: Notified of the start and the end of the tail.
    """

    def __init__(
        self,
        connection: RedisConnection,
        log: RedisLog,
        read_timeout: float,
        settings_check: SettingsCheck,
        guard: SplitBrainGuard,
    ) -> None:
        self._connection = connection
        self._log = log
        self._settings_check = settings_check
        self._guard = guard
        self._block = min(MAX_BLOCK, read_timeout / 3)
        self._position: LogPosition  # of the last entry that was returned
        self._state: LogState  # of the log, at the last check
        self._checked_at = 0.0
        self._truncated_to: LogPosition | None = None  # to be returned next
        # The offset from which on the tail has everything up to the last check; None after that was returned.
        self._catch_up_offset: int | None = None
        self._accepted_run = ""  # a run that began between the position and the end of the log
        self._payload_size = MAX_BYTES / 16  # estimate in bytes; large at first, so that the first batch has 16 entries
        self._failed = False

    @property
    def server_run_id(self) -> str:
        """Run ID of the server, at the last check."""
        return self._state.server_run_id

    async def start(self, after: LogPosition | None) -> Subscribed:
        """Start after a position, or before the first entry of the log."""
        try:
            await self._check(after)
            self._position = after or self._state.start
            await self._settings_check.run(self._connection, self.server_run_id)
        except Exception:
            self._failed = True
            raise
        self._guard.attach(self)
        return Subscribed(self._position)

    async def poll(self) -> Sequence[TailItem]:
        """Return the next items, or nothing if there are none for some time."""
        try:
            return await self._guard.run(self._next_items())
        except Exception:
            self._failed = True
            raise

    async def close(self) -> None:
        """Close the connection."""
        self._guard.detach(will_reconnect=self._failed)
        await self._connection.close()

    async def _next_items(self) -> Sequence[TailItem]:
        if self._truncated_to is not None:
            return [self._truncate(self._truncated_to)]
        epoch_end = self._state.epoch_end
        if self._catch_up_offset is not None and self._position.offset >= self._catch_up_offset and epoch_end is None:
            self._catch_up_offset = None
            return [CaughtUp()]
        remaining = self._checked_at + self._block - time.monotonic()
        if self._position.offset == epoch_end or remaining <= 0:
            sent = time.monotonic()
            await self._check(self._position)
            self._check_delay(sent)
            return []
        end = self._state.end.position.offset
        is_behind = self._position.offset < end
        raw_entries = await self._read(None if is_behind else remaining)
        if epoch_end is not None:
            raw_entries = [raw for raw in raw_entries if offset_of(raw[0]) <= epoch_end]
        if raw_entries:
            return await self._decode(raw_entries)
        return [self._trim(end if epoch_end is None else epoch_end)] if is_behind else []

    async def _check(self, position: LogPosition | None) -> None:
        """Get the state of the log, and find out whether the position is still valid."""
        self._state = state = await self._log.locate(self._connection, position)
        self._checked_at = time.monotonic()
        self._truncated_to = None if position is None or position == state.start else state.start
        end = state.end.position.offset
        self._catch_up_offset = end if self._catch_up_offset is None else min(self._catch_up_offset, end)
        self._store_checkpoint(state.start)

    def _store_checkpoint(self, position: LogPosition) -> None:
        """Remember a position that the server has, for later checks. It is in the latest run that is known."""
        self._log.received = self._log.checkpoint(position, self._state.end.run_id)

    async def _read(self, block: float | None) -> Sequence[RawEntry]:
        """Read a batch after the position. ``block`` is in seconds; ``None`` does not wait for entries."""
        count = min(MAX_ENTRIES, int(MAX_BYTES / self._payload_size) or 1)
        sent = time.monotonic()
        raw_entries = await self._log.read(self._connection, self._position.offset, count, block)
        if block is not None and sum([len(fields[-1]) for _, fields in raw_entries]) < SMALL_REPLY:
            self._check_delay(sent + block)
        return raw_entries

    @staticmethod
    def _check_delay(due: float) -> None:
        """Raise ``BrokerDown`` if the reply is late, because the server may have been replaced meanwhile."""
        delay = time.monotonic() - due
        if delay > MAX_DELAY:
            raise BrokerDown(f"the server replied {delay:.1f} s late, and may have been replaced; reconnecting")

    async def _decode(self, raw_entries: Sequence[RawEntry]) -> Sequence[TailItem]:
        items: list[TailItem] = []
        server_time = self._state.server_time + int((time.monotonic() - self._checked_at) * 1000)
        runs = f"{self._position.epoch} {self._state.end.run_id}", self._accepted_run
        entries, discontinuity = self._log.decode(raw_entries, self._position.offset, server_time, runs)
        if entries:
            items.append(entries)
            self._position = LogPosition(self._position.epoch, entries[-1].offset)
            self._store_checkpoint(self._position)
            average = sum([len(entry.payload) for entry in entries]) / len(entries)
            self._payload_size = max(average, self._payload_size / 2, 1.0)
        if discontinuity is not None:
            items += await self._resolve(discontinuity)
        return items

    async def _resolve(self, discontinuity: Discontinuity) -> Sequence[Trimmed | Erased | Truncated]:
        """Find out why the next entry does not follow. It is read again afterwards."""
        if discontinuity.previous > self._position.offset:
            first, erased = await self._log.erased(self._connection)
            is_trimmed = first > self._position.offset or discontinuity.previous > erased
            trimmed = self._trim(discontinuity.previous)
            return [trimmed if is_trimmed else Erased(discontinuity.previous, erased)]
        await self._check(self._position)
        if self._truncated_to is not None:
            return [self._truncate(self._truncated_to)]
        if discontinuity.previous < self._position.offset:
            last = entry_id(self._position.offset).decode()
            raise BrokerDown(f"the server no longer has the entry {last}, and has not detected the loss; reconnecting")
        self._accepted_run = discontinuity.run  # it begins after the position, without a loss
        return []

    def _trim(self, through: int) -> Trimmed:
        self._position = LogPosition(self._position.epoch, through)
        self._store_checkpoint(self._position)
        return Trimmed(through)

    def _truncate(self, position: LogPosition) -> Truncated:
        self._truncated_to, self._position = None, position
        return Truncated(position)


class SplitBrainGuard:
    """Keeps a broker from publishing to another server than the one that its tail reads from.

    During a failover two servers may accept writes, and the two connections of a broker may lead to different ones. An
    entry that was published to the wrong one would be acknowledged, and would never reach a client of this process.

    Args:
        read_timeout: Seconds for which publishing waits for a new tail after a mismatch.
    """

    def __init__(self, read_timeout: float) -> None:
        self._read_timeout = read_timeout
        self._tail: RedisTail | None = None  # since its start
        self._poll_timeout: asyncio.Timeout | None = None  # of the poll in progress
        self._mismatch = False  # the tail must reconnect
        self._suspended_until = 0.0  # nothing is published before, unless a tail has started

    @property
    def server_run_id(self) -> str:
        """Run ID of the server that the tail reads from, or ``""`` without a tail."""
        return "" if self._tail is None else self._tail.server_run_id

    def attach(self, tail: RedisTail) -> None:
        """Note a tail that has started."""
        self._tail, self._mismatch, self._suspended_until = tail, False, 0.0

    def detach(self, *, will_reconnect: bool) -> None:
        """Note the end of the tail. If no other one will follow, publishing does not wait for it."""
        if not will_reconnect:
            self._suspended_until = 0.0
        self._tail = None

    def check_publish(self) -> None:
        """Raise ``BrokerDown`` while the tail reconnects after a mismatch."""
        if self._tail is None and time.monotonic() < self._suspended_until:
            raise BrokerDown(SPLIT_BRAIN)

    def report_mismatch(self) -> None:
        """Make the tail reconnect, and suspend publishing until it has, or for ``read_timeout`` seconds."""
        if self._tail is None:
            return
        self._mismatch = True
        self._suspended_until = time.monotonic() + self._read_timeout
        if self._poll_timeout is not None:
            self._poll_timeout.reschedule(asyncio.get_running_loop().time())

    async def run(self, polling: Awaitable[T]) -> T:
        """Await a poll of the tail. Raises ``BrokerDown`` after a mismatch."""
        try:
            async with asyncio.timeout(0 if self._mismatch else None) as self._poll_timeout:
                return await polling
        except TimeoutError as error:
            raise BrokerDown(SPLIT_BRAIN) from error
        finally:
            self._poll_timeout = None
