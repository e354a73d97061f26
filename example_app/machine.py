"""The machine that this runs on: samples of its load, the last minute of them, and how to wait for newer ones."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import psutil  # type: ignore[import-untyped, unused-ignore]  # its types are a package of their own
import structlog

__all__ = ["HISTORY", "Machine", "Sample"]

HISTORY = 60  # samples that a page gets when it opens: a minute

log = structlog.get_logger("example_app")


@dataclass(frozen=True, slots=True)
class Sample:
    """What the machine did since the sample before."""

    number: int
    time: float  # Unix seconds
    cores: list[float]  # percent, one per core
    memory_used: int  # bytes
    memory_total: int
    received: float | None  # bytes per second; None where the machine does not tell, as in some containers
    sent: float | None
    read: float | None
    written: float | None


class Counters(NamedTuple):
    """What the kernel has counted since boot; a rate is the difference of two of these."""

    at: float
    received: int | None
    sent: int | None
    read: int | None
    written: int | None

    @classmethod
    def now(cls) -> Counters:
        network, disk = psutil.net_io_counters(), psutil.disk_io_counters()
        return cls(
            time.monotonic(),
            network and network.bytes_recv,
            network and network.bytes_sent,
            disk and disk.read_bytes,
            disk and disk.write_bytes,
        )


class Machine:
    """Samples of this machine: one task takes them, any number of streams follow.

    Streams have no queue here, only a position. One that is slow, or comes back, asks for what is newer than that.
    """

    def __init__(self) -> None:
        # Numbers begin at 1 in each life of the process. A page that comes back after a restart knows numbers of the
        # life before, so an id names the life too: "3f9a1c-17".
        self.life = secrets.token_hex(3)
        self._history: deque[Sample] = deque(maxlen=HISTORY)
        self._news = asyncio.Condition()

    def id_of(self, sample: Sample) -> str:
        """Return the event id of a sample."""
        return f"{self.life}-{sample.number}"

    def number_of(self, event_id: str) -> int:
        """Return the number in an event id, or 0, which is before all samples, if it is not one of this life."""
        life, _, number = event_id.partition("-")
        try:
            return int(number) if life == self.life else 0
        except ValueError:
            return 0

    async def newer(self, number: int) -> list[Sample]:
        """Wait until there are samples with a higher number, and return them, oldest first."""
        async with self._news:
            await self._news.wait_for(lambda: bool(self._history) and self._history[-1].number > number)
            return [sample for sample in self._history if sample.number > number]

    async def watch(self, interval: float) -> None:
        """Take a sample every so many seconds, until cancelled."""
        psutil.cpu_percent(percpu=True)  # it tells what was since the call before; the first one knows nothing
        before = Counters.now()
        number = 0
        while True:
            await asyncio.sleep(interval)
            try:
                after = Counters.now()
                sample = _sample(number + 1, before, after)
            except (OSError, RuntimeError, psutil.Error):
                log.exception("sample_failed")  # the next one may succeed, and the streams stay open
                continue
            before, number = after, sample.number
            async with self._news:
                self._history.append(sample)
                self._news.notify_all()


def _sample(number: int, before: Counters, after: Counters) -> Sample:
    memory = psutil.virtual_memory()
    seconds = after.at - before.at
    return Sample(
        number=number,
        time=time.time(),
        cores=psutil.cpu_percent(percpu=True),
        memory_used=memory.total - memory.available,
        memory_total=memory.total,
        received=_rate(before.received, after.received, seconds),
        sent=_rate(before.sent, after.sent, seconds),
        read=_rate(before.read, after.read, seconds),
        written=_rate(before.written, after.written, seconds),
    )


def _rate(before: int | None, after: int | None, seconds: float) -> float | None:
    if before is None or after is None:
        return None
    return round(max(0, after - before) / seconds, 1)  # a device that was unplugged takes its count with it
