"""Checks of a soak test: the facts and logs of each server are compared with what the clients observed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from tests.soak.client_stream import ClientStream

INVALID_REQUEST = "aiohttp.http_exceptions."  # what aiohttp raises for invalid requests
# Megabytes by which the memory at the end of a run may exceed that in the middle, since allocators are not exact. More
# than a thousand streams are opened in between, so a leak of a few kilobytes a stream is detected.
MEMORY_TOLERANCE = 4.0
TRACEBACK_LENGTH = 1200  # characters from the end of a traceback that are shown
MIN_SECONDS = 14.0  # of load, to tell growth of memory from warming up


@dataclass
class ServerRun:
    """One server process, from its start to its end."""

    epoch: int
    loop: str
    facts: Path
    log: Path
    seconds: float = 0.0  # under load
    memory: list[float] = field(default_factory=list)  # megabytes, sampled under load
    leaks: dict[str, int] | None = None  # what was left after all clients had disconnected, while the server ran
    status: int | None = None  # exit status
    opened: int = 0
    closed: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    cleanup: float = 0.0  # seconds
    warnings: Counter[str] = field(default_factory=Counter)

    @property
    def long_enough(self) -> bool:
        """Whether its memory can be checked."""
        return self.seconds >= MIN_SECONDS

    def memory_medians(self) -> tuple[float, float]:
        """Return the memory in the middle and at the end of the run, in megabytes."""
        samples = self.memory or [0.0]
        count = len(samples)
        return (median(samples[count * 2 // 5 : count * 3 // 5 + 1]), median(samples[count * 4 // 5 :]))


class Checker:
    """Collects problems."""

    def __init__(self, streams: dict[str, ClientStream], max_streams: int) -> None:
        self._streams = streams
        self._max_streams = max_streams
        self._closed: dict[str, dict[str, Any]] = {}
        self._refused: dict[str, int] = {}
        self._subject = ""  # prefix of problems
        self.problems: list[str] = []
        self.compared = 0  # streams that ended and whose events were counted on both sides

    def check_server(self, run: ServerRun) -> None:
        """Check the facts, the log, the memory and the leaks of one server."""
        self._subject = f"server {run.epoch} ({run.loop})"
        if run.status != 0:
            self._problem(f"its exit status is {run.status}")
        lines = [json.loads(line) for line in run.facts.read_text().splitlines()]
        failed_producers = self._check_facts(run, lines)
        self._check_log(run, failed_producers)
        for when, leaks in (
            ("after all clients had disconnected", run.leaks),
            ("after its end", self._read_totals(run, lines)),
        ):
            if leaks:
                self._problem(f"{when} it holds more than before: " + ", ".join(f"{n} +{c}" for n, c in leaks.items()))
        middle, end = run.memory_medians()
        if run.long_enough and end > middle + MEMORY_TOLERANCE:
            self._problem(f"its memory grew from {middle:.1f} MB to {end:.1f} MB")

    def _read_totals(self, run: ServerRun, lines: list[dict[str, Any]]) -> dict[str, int] | None:
        totals = {line["kind"]: line["value"] for line in lines if not line["path"]}
        if "leaks" not in totals:
            self._problem("it did not shut down completely")
            return None
        run.cleanup = totals["cleanup"]
        run.warnings["connection accepted as the server closed"] += totals.get("late", 0)
        leaks: dict[str, int] = totals["leaks"]
        return leaks

    def _check_facts(self, run: ServerRun, lines: list[dict[str, Any]]) -> int:
        """Check the order of the facts, and return the number of failed producers."""
        open_now: set[str] = set()
        reasons: dict[str, str] = {}  # passed to on_close
        failed_producers = 0
        for line in lines:
            kind, path = line["kind"], line["path"]
            if kind == "opened":
                if path in open_now or path in self._closed:
                    self._problem(f"{path} was opened twice")
                open_now.add(path)
                run.opened += 1
                if line["slots"] > self._max_streams:
                    self._problem(f"{line['slots']} slots are in use, and max_streams is {self._max_streams}")
            elif kind == "closed":
                if path not in open_now:
                    self._problem(f"{path} was closed and is not open")
                open_now.discard(path)
                if path in self._closed:
                    self._problem(f"{path} was closed twice")
                self._closed[path] = line
                run.closed[line["reason"]] += 1
                if (reason := reasons.pop(path, None)) != line["reason"]:
                    self._problem(f"{path} was closed as {line['reason']}, and on_close received {reason}")
            elif kind == "on_close":
                if path in reasons or path in self._closed:
                    self._problem(f"on_close was called twice for {path}")
                reasons[path] = line["reason"]
            elif kind == "refused":
                self._refused[path] = line["status"]
                run.refused += 1
            elif kind == "producer_failed":
                failed_producers += 1
        for path in open_now:
            self._problem(f"{path} was opened and never closed")
        return failed_producers

    def _check_log(self, run: ServerRun, failed_producers: int) -> None:
        """Find unexpected lines: not warnings, invalid requests, or the errors of producers that fail on purpose."""
        for line in run.log.read_text(errors="replace").splitlines():
            if line.startswith("{"):
                entry = json.loads(line)
                if entry["level"] == "warning":
                    run.warnings[entry["event"]] += 1
                elif entry.get("kind", "").startswith(INVALID_REQUEST):
                    run.warnings["invalid request, logged by aiohttp"] += 1
                elif entry.get("kind", "").endswith(".ProducerFailed"):
                    failed_producers -= 1
                else:
                    self._problem(f"it logged {entry['event']}\n{entry.get('exception', '')[-TRACEBACK_LENGTH:]}")
            else:
                self._problem(f"it printed: {line[:300]}")
        if failed_producers:
            self._problem(f"{failed_producers} more producers failed than were logged")

    def check_streams(self) -> None:
        """Compare what each client received with what the servers report."""
        self._subject = "streams"
        for path, stream in self._streams.items():
            name = f"{path} ({stream.behavior})"
            for problem in stream.problems:
                self._problem(f"{name}: {problem}")
            if stream.status in {429, 503} and self._refused.get(path) != stream.status:
                self._problem(f"{name} was refused with {stream.status}, and the fact says {self._refused.get(path)}")
            if stream.status != 200:
                continue
            fact = self._closed.get(path)
            if fact is None:
                self._problem(f"{name} received a response head, and no server reports the stream")
            else:
                self._compare(name, stream, fact)

    def check_coverage(self, reasons: Iterable[str], runs: Iterable[ServerRun]) -> None:
        """Find close reasons that did not occur at all, so that nothing was tested about them."""
        self._subject = "all servers"
        ended = sum((run.closed for run in runs), Counter())
        for reason in reasons:
            if not ended[reason]:
                self._problem(f"no stream ended as {reason}")
        if not self.compared:
            self._problem("no stream ended completely")

    def _compare(self, name: str, stream: ClientStream, fact: dict[str, Any]) -> None:
        if stream.events > fact["events"]:
            self._problem(f"{name} received {stream.events} events, and {fact['events']} were sent")
        if not stream.complete:
            if stream.prompt and not stream.disconnected:
                self._problem(f"{name} was read until it ended, as {fact['reason']}, and its body has no end")
            return
        self.compared += 1
        if stream.events != fact["events"] or stream.bytes != fact["bytes"]:
            self._problem(
                f"{name} ended as {fact['reason']} with {stream.events} events of {stream.bytes} bytes received, and "
                f"{fact['events']} of {fact['bytes']} sent"
            )
        accepted = stream.numbered + stream.missing + (stream.behavior == "posts a body")
        if accepted != fact["accepted"] or stream.missing != fact["dropped"]:
            self._problem(
                f"{name} ended as {fact['reason']} with {stream.numbered} events received and {stream.missing} "
                f"reported as dropped; {fact['accepted']} were put and {fact['dropped']} dropped"
            )

    def _problem(self, message: str) -> None:
        self.problems.append(f"{self._subject}: {message}")
