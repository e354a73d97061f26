"""What must be true of a soak: what the server wrote down and logged, against what the clients saw."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from reading import Receipt

NONSENSE = "aiohttp.http_exceptions."  # what aiohttp says of requests that are none
# Megabytes by which the memory at the end of a life may exceed that in the middle: an allocator is not exact. What a
# stream leaves behind is seen from some kilobytes on, as more than a thousand are opened in between.
NOISE = 4.0
LINES = 1200  # characters of a traceback's end that are shown
JUDGED = 14.0  # seconds of load from which on a life is long enough to tell growth from warming up


@dataclass
class Life:
    """One server process, from its start to its end."""

    epoch: int
    loop: str
    facts: Path
    log: Path
    seconds: float = 0.0  # under load
    memory: list[float] = field(default_factory=list)  # megabytes, over the time under load
    left: dict[str, int] | None = None  # what was left when all clients had gone and it went on
    status: int | None = None  # of the process
    opened: int = 0
    closed: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    cleanup: float = 0.0
    warnings: Counter[str] = field(default_factory=Counter)

    @property
    def long_enough(self) -> bool:
        """Whether its memory tells anything."""
        return self.seconds >= JUDGED

    def medians(self) -> tuple[float, float]:
        """Return the memory in the middle and at the end, in megabytes."""
        samples = self.memory or [0.0]
        count = len(samples)
        return (median(samples[count * 2 // 5 : count * 3 // 5 + 1]), median(samples[count * 4 // 5 :]))


class Judge:
    """Compare, and collect what is wrong."""

    def __init__(self, receipts: dict[str, Receipt], max_streams: int) -> None:
        self._receipts = receipts
        self._max_streams = max_streams
        self._closed: dict[str, dict[str, Any]] = {}
        self._refused: dict[str, int] = {}
        self.problems: list[str] = []
        self.counted = 0  # streams whose events were counted on both sides

    def look_at(self, life: Life) -> None:
        """Look at one server: its facts, its log, its memory, what it left."""
        self._whose = f"server {life.epoch} ({life.loop})"
        if life.status != 0:
            self._wrong(f"its exit status is {life.status}")
        lines = [json.loads(line) for line in life.facts.read_text().splitlines()]
        broke = self._facts(life, lines)
        self._log(life, broke)
        for when, left in (("after all clients had gone", life.left), ("after its end", self._end(life, lines))):
            if left:
                self._wrong(f"{when} it has more than before: " + ", ".join(f"{n} +{c}" for n, c in left.items()))
        middle, end = life.medians()
        if life.long_enough and end > middle + NOISE:
            self._wrong(f"its memory grew from {middle:.1f} MB to {end:.1f} MB")

    def _end(self, life: Life, lines: list[dict[str, Any]]) -> dict[str, int] | None:
        totals = {line["kind"]: line["value"] for line in lines if not line["path"]}
        if "left" not in totals:
            self._wrong("it did not come to its end")
            return None
        life.cleanup = totals["cleanup"]
        life.warnings["connection accepted as the server closed"] += totals.get("late", 0)
        left: dict[str, int] = totals["left"]
        return left

    def _facts(self, life: Life, lines: list[dict[str, Any]]) -> int:
        open_now: set[str] = set()
        told: dict[str, str] = {}
        broke = 0
        for line in lines:
            kind, path = line["kind"], line["path"]
            if kind == "opened":
                if path in open_now or path in self._closed:
                    self._wrong(f"{path} was opened twice")
                open_now.add(path)
                life.opened += 1
                if line["places"] > self._max_streams:
                    self._wrong(f"{line['places']} places are taken, and max_streams is {self._max_streams}")
            elif kind == "closed":
                if path not in open_now:
                    self._wrong(f"{path} was closed and is not open")
                open_now.discard(path)
                if path in self._closed:
                    self._wrong(f"{path} was closed twice")
                self._closed[path] = line
                life.closed[line["reason"]] += 1
                if told.pop(path, None) != line["reason"]:
                    self._wrong(f"{path} was closed as {line['reason']}, and on_close was told otherwise or nothing")
            elif kind == "on_close":
                if path in told or path in self._closed:
                    self._wrong(f"on_close was called twice for {path}")
                told[path] = line["reason"]
            elif kind == "refused":
                self._refused[path] = line["status"]
                life.refused += 1
            elif kind == "broke":
                broke += 1
        for path in open_now:
            self._wrong(f"{path} was opened and never closed")
        return broke

    def _log(self, life: Life, broke: int) -> None:
        """Find what should not be said: all but warnings, and the errors of the producers that are made to fail."""
        for line in life.log.read_text(errors="replace").splitlines():
            if line.startswith("{"):
                entry = json.loads(line)
                if entry["level"] == "warning":
                    life.warnings[entry["event"]] += 1
                elif entry.get("kind", "").startswith(NONSENSE):
                    life.warnings["nonsense, logged by aiohttp"] += 1
                elif entry.get("kind", "").endswith(".Broken"):
                    broke -= 1
                else:
                    self._wrong(f"it logged {entry['event']}\n{entry.get('exception', '')[-LINES:]}")
            else:
                self._wrong(f"it said: {line[:300]}")
        if broke:
            self._wrong(f"{broke} more producers failed than were logged")

    def compare(self) -> None:
        """Compare each stream's receipt with what the servers say of it."""
        self._whose = "streams"
        for path, receipt in self._receipts.items():
            name = f"{path} ({receipt.manner})"
            for problem in receipt.problems:
                self._wrong(f"{name}: {problem}")
            if receipt.status in {429, 503} and self._refused.get(path) != receipt.status:
                self._wrong(f"{name} was refused with {receipt.status}, and the fact is {self._refused.get(path)}")
            if receipt.status != 200:
                continue
            fact = self._closed.get(path)
            if fact is None:
                self._wrong(f"{name} had a head, and no server knows of it")
            else:
                self._stream(name, receipt, fact)

    def expect(self, reasons: Iterable[str], lives: Iterable[Life]) -> None:
        """Find what did not happen at all, so that nothing is said about it."""
        self._whose = "all servers"
        ended = sum((life.closed for life in lives), Counter())
        for reason in reasons:
            if not ended[reason]:
                self._wrong(f"no stream ended as {reason}")
        if not self.counted:
            self._wrong("no stream had an end")

    def _stream(self, name: str, receipt: Receipt, fact: dict[str, Any]) -> None:
        if receipt.events > fact["events"]:
            self._wrong(f"{name} received {receipt.events} events, and {fact['events']} were sent")
        if not receipt.clean:
            if receipt.prompt and not receipt.left:
                self._wrong(f"{name} was read until it ended, as {fact['reason']}, and has no end")
            return
        self.counted += 1
        if receipt.events != fact["events"] or receipt.bytes != fact["bytes"]:
            self._wrong(
                f"{name} ended as {fact['reason']} with {receipt.events} events of {receipt.bytes} bytes received, and "
                f"{fact['events']} of {fact['bytes']} sent"
            )
        accepted = receipt.numbered + receipt.missing + (receipt.manner == "chats")
        if accepted != fact["accepted"] or receipt.missing != fact["dropped"]:
            self._wrong(
                f"{name} ended as {fact['reason']} with {receipt.numbered} events received and {receipt.missing} said "
                f"to be missing; {fact['accepted']} were put and {fact['dropped']} dropped"
            )

    def _wrong(self, what: str) -> None:
        self.problems.append(f"{self._whose}: {what}")
