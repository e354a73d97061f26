"""Samples of the load of this machine, with a history of one minute."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import psutil  # type: ignore[import-untyped, unused-ignore]  # its types are a separate package
import structlog

__all__ = ["HISTORY", "Machine", "Sample"]

HISTORY = 60  # samples that a page receives when it opens

log = structlog.get_logger("example_app")


@dataclass(frozen=True, slots=True)
class Sample:
    """The load of the machine since the previous sample."""

    number: int
    time: float  # Unix seconds
    cores: list[float]  # percent, one per core
    memory_used: int  # bytes
    memory_total: int
    received: float | None  # bytes per second; None where the system has no counter, as in some containers
    sent: float | None
    read: float | None
    written: float | None


class Counters(NamedTuple):
    """The kernel's counters since boot. A rate is the difference of two of these."""

    time: float
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
    """Samples of this machine. One task takes them, and any number of streams read them.

    A stream has no queue here, only the number of its latest sample. A stream that is slow or resumes asks for newer
    samples.
    """

    def __init__(self) -> None:
        # Numbers begin at 1 in each run of the process. A page that reconnects after a restart has a number of the
        # previous run, so event IDs contain a run ID: "3f9a1c-17".
        self.run_id = secrets.token_hex(3)
        self._history: deque[Sample] = deque(maxlen=HISTORY)
        self._changed = asyncio.Condition()

    def id_of(self, sample: Sample) -> str:
        """Return the event ID of a sample."""
        return f"{self.run_id}-{sample.number}"

    def number_of(self, event_id: str) -> int:
        """Return the number in an event ID, or 0, which is before all samples, if the ID is not from this run."""
        run_id, _, number = event_id.partition("-")
        try:
            return int(number) if run_id == self.run_id else 0
        except ValueError:
            return 0

    async def newer(self, number: int) -> list[Sample]:
        """Wait until there are samples with a higher number, and return them, oldest first."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._history) and self._history[-1].number > number)
            return [sample for sample in self._history if sample.number > number]

    async def take_samples(self, interval: float) -> None:
        """Take a sample every ``interval`` seconds, until cancelled."""
        psutil.cpu_percent(percpu=True)  # measures since the previous call, so the first result has no meaning
        before = Counters.now()
        number = 0
        while True:
            await asyncio.sleep(interval)
            try:
                after = Counters.now()
                sample = _sample(number + 1, before, after)
            except (OSError, RuntimeError, psutil.Error):
                log.exception("sample_failed")  # the next one may succeed; the streams stay open
                continue
            before, number = after, sample.number
            async with self._changed:
                self._history.append(sample)
                self._changed.notify_all()


def _sample(number: int, before: Counters, after: Counters) -> Sample:
    memory = psutil.virtual_memory()
    seconds = after.time - before.time
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
    return round(max(0, after - before) / seconds, 1)  # the sum decreases when a device is unplugged
