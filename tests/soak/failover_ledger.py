"""What was acknowledged and what each client received, and the comparison of both. Pure functions, without I/O."""

from __future__ import annotations

import itertools
import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from aiohttp_interceptors import Event

TOPICS = tuple(f"t.{number}" for number in range(4))
PROBE_TIMEOUT = 1.0  # seconds without a response of the readiness route after which a process counts as not ready
SPLIT_TIMEOUT = 15.0  # seconds in which a split must be reported; an old primary is demoted after about ten
MAX_SHOWN = 3  # violations of each kind


class Acknowledged(NamedTuple):
    """An event whose publishing succeeded."""

    number: int
    id: str
    sent: float
    """When the attempt that succeeded was sent."""
    time: float
    """When it was acknowledged."""


class Received(NamedTuple):
    """An event that a client received."""

    number: int
    id: str
    time: float
    process: int
    connected: float
    """When the client's connection received its first event."""


class ReceivedGap(NamedTuple):
    """A gap that a client received."""

    reason: str
    after: str
    through: str
    """The ID up to which events may be missing."""
    time: float


Item: TypeAlias = Received | ReceivedGap
Readiness: TypeAlias = Mapping[int, Sequence[tuple[float, bool]]]
"""By process: when its readiness route responded, and whether it was ready."""


def text(number: int) -> str:
    """Return the data of an event. Sizes vary."""
    return f"{number} {'0123456789' * (number * 7919 % 40)}"


def parse_event(event: Event, last_id: str, time: float, process: int, connected: float) -> Item | None:
    """Return the item of an event, or None if it is not part of the test. Raises ``ValueError`` for invalid data."""
    if event.data is None or event.name == "farewell":
        return None
    if event.name == "gap":
        data = json.loads(event.data)
        through = data.get("last") or (previous_id(data["first"]) if data["first"] else last_id)
        return ReceivedGap(data["reason"], data["after"], through, time)
    number = int(event.data.split(" ", 1)[0])
    if event.data != text(number) or event.name is not None:
        raise ValueError(f"this event was not published: {event.name!r} {event.data[:80]!r}")
    return Received(number, last_id, time, process, connected)


def parse_id(event_id: str) -> tuple[str, int]:
    """Return the epoch and the offset of an ID. An invalid ID gets an epoch of its own."""
    epoch, _, offset = event_id.rpartition("-")
    return (epoch, int(offset)) if epoch and offset.isdigit() else (f"? {event_id}", 0)


def previous_id(event_id: str) -> str:
    epoch, offset = parse_id(event_id)
    return f"{epoch}-{offset - 1}"


def covers(gap: ReceivedGap, event: Acknowledged) -> bool:
    """Whether a gap tells its client that an event may be missing.

    A gap does not cover events that were sent after it. Within one epoch it covers the IDs between its ends. An event
    of an epoch that neither end names was acknowledged by a server whose log was discarded. A gap that follows soon is
    about that log; a later one has another reason.
    """
    if event.sent > gap.time:
        return False
    epoch, offset = parse_id(event.id)
    (after_epoch, after), (through_epoch, through) = parse_id(gap.after), parse_id(gap.through)
    if epoch == through_epoch and offset > through:
        return False
    if epoch not in {after_epoch, through_epoch}:
        return gap.time <= event.time + SPLIT_TIMEOUT
    return epoch != after_epoch or offset > after


@dataclass
class Result:
    """The result of one run."""

    acknowledged: int = 0
    delivered: int = 0
    """Acknowledged events, counted for each client that received them."""
    repeated: int = 0
    """Events that a client received again."""
    missing: int = 0
    """Acknowledged events that a client did not receive."""
    unreported_repeats: int = 0
    unreported_losses: int = 0
    disordered: int = 0
    gaps: Counter[str] = field(default_factory=Counter)
    """Gaps, by reason."""
    max_report_delay: float = 0.0
    """Maximum of the seconds from the acknowledgement of a missing event to the gap that covers it."""
    late: float = 0.0
    """Maximum of the seconds that an acknowledged event was late in a process that was ready all the time."""
    violations: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether each loss and each repeat was reported, and all events were received in order."""
        return not (self.unreported_repeats or self.unreported_losses or self.disordered)


Report: TypeAlias = Callable[[str, str], None]


def compare(
    acknowledged: Iterable[Acknowledged], clients: Mapping[str, Sequence[Item]], readiness: Readiness | None = None
) -> Result:
    """Compare what each client received with what was acknowledged."""
    events = {event.number: event for event in acknowledged}
    result = Result(acknowledged=len(events))
    shown: Counter[str] = Counter()

    def report(kind: str, message: str) -> None:
        shown[kind] += 1
        if shown[kind] <= MAX_SHOWN:
            result.violations.append(f"{kind}: {message}")

    for name, items in clients.items():
        gaps = [item for item in items if isinstance(item, ReceivedGap)]
        received = _check_order(name, items, result, report)
        for gap in gaps:
            result.gaps[gap.reason] += 1
        for number, event in events.items():
            first = received.get(number)
            if first is not None:
                result.delivered += 1
                result.late = max(result.late, _lateness(event, first, readiness or {}))
                continue
            result.missing += 1
            covering = next((gap for gap in gaps if covers(gap, event)), None)
            if covering is None:
                result.unreported_losses += 1
                report("lost and not reported", f"{name} never received {event}; it received the gaps {gaps[-3:]}")
            else:
                result.max_report_delay = max(result.max_report_delay, covering.time - event.time)
    return result


def _check_order(name: str, items: Sequence[Item], result: Result, report: Report) -> dict[int, Received]:
    """Find events that were received again or out of order, and return the first receipt of each event."""
    received: dict[int, Received] = {}
    gaps_before: dict[int, int] = {}  # by number: gaps that preceded the latest receipt
    gaps = 0
    last: Received | None = None
    for item in items:
        if isinstance(item, ReceivedGap):
            gaps, last = gaps + 1, None
            continue
        if item.number in received:
            result.repeated += 1
            if gaps_before[item.number] == gaps:
                result.unreported_repeats += 1
                report("repeated and not reported", f"{name} received {received[item.number]} and again {item}")
        elif last is not None:
            (epoch, offset), (last_epoch, last_offset) = parse_id(item.id), parse_id(last.id)
            if epoch == last_epoch and offset <= last_offset:
                result.disordered += 1
                report("out of order", f"{name} received {last} and then {item}")
        received.setdefault(item.number, item)
        gaps_before[item.number] = gaps
        last = item
    return received


def _lateness(event: Acknowledged, first: Received, readiness: Readiness) -> float:
    """Return the seconds that an event was late, or 0 if its process was not ready or the client not connected."""
    begin = max(event.time, first.connected)
    if begin >= first.time:
        return 0.0
    probes = readiness.get(first.process, ())
    start = max(0, bisect_left(probes, (begin, False)) - 1)
    last_ready = begin
    for time, ready in probes[start:]:
        if time > first.time:
            break
        if not ready or time - last_ready > PROBE_TIMEOUT:
            return 0.0
        last_ready = max(last_ready, time)
    return first.time - begin if first.time - last_ready <= PROBE_TIMEOUT else 0.0


def longest_pause(acknowledged: Iterable[Acknowledged], start: float, end: float) -> float:
    """Return the longest time, in seconds, in which no event was acknowledged."""
    times = [start, *sorted(event.time for event in acknowledged), end]
    return max(later - earlier for earlier, later in itertools.pairwise(times))
