"""What was acknowledged, what each client received, and what follows from both. Decides, and awaits nothing."""

from __future__ import annotations

import itertools
import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from aiohttp_interceptors import Event

TOPICS = tuple(f"t.{number}" for number in range(4))
BLIND = 1.0  # seconds without an answer of the health route after which a process counts as not ready
SOON = 15.0  # seconds in which a split must be told: an old primary is demoted after about ten
SHOWN = 3  # of each kind of violation


class Acknowledged(NamedTuple):
    """An event whose publishing succeeded."""

    number: int
    id: str
    began: float
    """When the attempt that was acknowledged was sent."""
    time: float
    """When the acknowledgement came."""


class Received(NamedTuple):
    """An event that came to a client."""

    number: int
    id: str
    time: float
    process: int
    opened: float
    """When the client's connection began to deliver."""


class Told(NamedTuple):
    """A gap that came to a client."""

    reason: str
    after: str
    reach: str
    """The id up to which events may be missing."""
    time: float


Item: TypeAlias = Received | Told
Readiness: TypeAlias = Mapping[int, Sequence[tuple[float, bool]]]
"""By process: when its health route answered, and whether it was ready."""


def text(number: int) -> str:
    """Make the data of an event, whose length varies."""
    return f"{number} {'0123456789' * (number * 7919 % 40)}"


def item_of(event: Event, last_id: str, time: float, process: int, opened: float) -> Item | None:
    """Return what a frame says; ``None`` for one that says nothing to a page. Raises ``ValueError``."""
    if event.data is None or event.name == "farewell":
        return None
    if event.name == "gap":
        said = json.loads(event.data)
        reach = said.get("last") or (before(said["first"]) if said["first"] else last_id)
        return Told(said["reason"], said["after"], reach, time)
    number = int(event.data.split(" ", 1)[0])
    if event.data != text(number) or event.name is not None:
        raise ValueError(f"this was not published: {event.name!r} {event.data[:80]!r}")
    return Received(number, last_id, time, process, opened)


def place(event_id: str) -> tuple[str, int]:
    """Return the epoch and the offset of an id, and an epoch of its own for what is none."""
    epoch, _, offset = event_id.rpartition("-")
    return (epoch, int(offset)) if epoch and offset.isdigit() else (f"? {event_id}", 0)


def before(event_id: str) -> str:
    """Return the id before one."""
    epoch, offset = place(event_id)
    return f"{epoch}-{offset - 1}"


def covers(gap: Told, event: Acknowledged) -> bool:
    """Tell whether a client that was told of this gap knows that the event may be missing.

    A gap says nothing of what was sent to be published after it was told. Of one history it covers the ids between its
    ends. An event of a history that neither end knows was acknowledged by a server whose log was given up, which a gap
    that comes soon is about, and one that comes later for another reason is not.
    """
    if event.began > gap.time:
        return False
    epoch, offset = place(event.id)
    (after_epoch, after), (reach_epoch, reach) = place(gap.after), place(gap.reach)
    if epoch == reach_epoch and offset > reach:
        return False
    if epoch not in {after_epoch, reach_epoch}:
        return gap.time <= event.time + SOON
    return epoch != after_epoch or offset > after


@dataclass
class Verdict:
    """What became of the events of one run."""

    acknowledged: int = 0
    delivered: int = 0
    """Of ``acknowledged`` for each client."""
    repeated: int = 0
    """Events that came to a client again."""
    missing: int = 0
    """Acknowledged events that did not come to a client."""
    untold_repeats: int = 0
    untold_losses: int = 0
    disordered: int = 0
    told: Counter[str] = field(default_factory=Counter)
    """Gaps, by reason."""
    told_after: float = 0.0
    """Seconds, at most, from the acknowledgement of a missing event to the gap that covers it."""
    late: float = 0.0
    """Seconds, at most, that an acknowledged event was late in a process that said all the time that it was ready."""
    violations: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether each loss and each repeat was told, and all came in order."""
        return not (self.untold_repeats or self.untold_losses or self.disordered)


def judge(
    acknowledged: Iterable[Acknowledged], clients: Mapping[str, Sequence[Item]], readiness: Readiness | None = None
) -> Verdict:
    """Compare what each client received with what was acknowledged while it was there."""
    owed = {event.number: event for event in acknowledged}
    verdict = Verdict(acknowledged=len(owed))
    shown: Counter[str] = Counter()

    def wrong(kind: str, what: str) -> None:
        shown[kind] += 1
        if shown[kind] <= SHOWN:
            verdict.violations.append(f"{kind}: {what}")

    for name, items in clients.items():
        gaps = [item for item in items if isinstance(item, Told)]
        received = _judge_order(name, items, verdict, wrong)
        for gap in gaps:
            verdict.told[gap.reason] += 1
        for number, event in owed.items():
            first = received.get(number)
            if first is not None:
                verdict.delivered += 1
                verdict.late = max(verdict.late, _late(event, first, readiness or {}))
                continue
            verdict.missing += 1
            covering = next((gap for gap in gaps if covers(gap, event)), None)
            if covering is None:
                verdict.untold_losses += 1
                wrong("lost, and not told", f"{name} never received {event}; it was told of {gaps[-3:]}")
            else:
                verdict.told_after = max(verdict.told_after, covering.time - event.time)
    return verdict


def _judge_order(name: str, items: Sequence[Item], verdict: Verdict, wrong) -> dict[int, Received]:
    """Look for what came again or out of order, and return the first receipt of each event."""
    received: dict[int, Received] = {}
    when: dict[int, int] = {}  # how many gaps had been told when an event came last
    told = 0
    last: Received | None = None
    for item in items:
        if isinstance(item, Told):
            told, last = told + 1, None
            continue
        if item.number in received:
            verdict.repeated += 1
            if when[item.number] == told:
                verdict.untold_repeats += 1
                wrong("repeated, and not told", f"{name} received {received[item.number]} and again {item}")
        elif last is not None:
            (epoch, offset), (last_epoch, last_offset) = place(item.id), place(last.id)
            if epoch == last_epoch and offset <= last_offset:
                verdict.disordered += 1
                wrong("out of order", f"{name} received {last} and then {item}")
        received.setdefault(item.number, item)
        when[item.number] = told
        last = item
    return received


def _late(event: Acknowledged, first: Received, readiness: Readiness) -> float:
    """Return how late an event was, as far as its process said that it was ready and the client was there."""
    begin = max(event.time, first.opened)
    if begin >= first.time:
        return 0.0
    answers = readiness.get(first.process, ())
    start = max(0, bisect_left(answers, (begin, False)) - 1)
    seen = begin
    for at, ready in answers[start:]:
        if at > first.time:
            break
        if not ready or at - seen > BLIND:
            return 0.0
        seen = max(seen, at)
    return first.time - begin if first.time - seen <= BLIND else 0.0


def longest_pause(acknowledged: Iterable[Acknowledged], start: float, end: float) -> float:
    """Return the longest time, in seconds, in which nothing was acknowledged."""
    times = [start, *sorted(event.time for event in acknowledged), end]
    return max(later - earlier for earlier, later in itertools.pairwise(times))
