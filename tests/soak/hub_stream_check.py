"""Checks of one stream of a Hub: each item that the client received, and each record that it did not receive."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import Counter
from typing import Protocol

from tests.soak.connection import READ_TIMEOUT
from tests.soak.hub_client_stream import EPHEMERAL, GAP, INITIAL_ID, RECORD, STATE, HubClientStream, Item
from tests.soak.hub_ledger import NEVER, HubLedger, ReportedGap, TopicChange, TopicIntervals
from tests.soak.hub_routes import PARTS, SNAPSHOT

ITERATION = 1.0  # seconds that one iteration of the server's event loop may take on a busy machine


class CheckContext(Protocol):
    """What the checks of all streams share."""

    changes: dict[str, list[TopicChange]]
    gaps: Counter[str]
    checked: Counter[str]

    def resolve(self, event_id: str) -> tuple[HubLedger, int]:
        """Return the Hub that assigned an ID, and the offset. Raises ``CheckFailed`` if no Hub did."""


class CheckFailed(Exception):
    """A stream is not as it must be."""


class StreamCheck:
    """The check of one stream."""

    def __init__(self, context: CheckContext, stream: HubClientStream) -> None:
        self._context = context
        self._stream = stream
        token = stream.path.rsplit("/", 1)[1]
        self._intervals = TopicIntervals(stream.topics, context.changes.get(token, ()))
        self._ledger = HubLedger(stream.hub)
        self._start: int | None = None  # all records after this offset are due
        self._acknowledged = 0  # the latest offset that the client knows from an ID
        self._last = 0  # no record up to this offset may follow
        self._due_through = 0  # all records up to this offset are due
        self._received: dict[int, float] = {}  # time by offset
        self._ephemeral: set[int] = set()  # numbers
        self._gaps: list[ReportedGap] = []
        self._announced: str | None = ""  # the ID that the latest gap says comes next; "" if none is announced
        self._states = 0

    def run(self) -> None:
        """Raise ``CheckFailed`` for the first problem."""
        items = self._stream.items
        ids = [item.id for item in items if item.id is not None]
        gaps = [item for item in items if item.kind == GAP]  # a gap without an ID refers to the requested one
        known_id = ids[0] if ids else self._stream.last_event_id if gaps else None
        if known_id is None or (not ids and not self._is_of_this_hub(known_id)):
            return  # only ephemeral events, or a snapshot that was interrupted
        self._ledger = self._context.resolve(known_id)[0]
        self._check_start(items[0])
        for item in items:
            if item.id is not None and self._context.resolve(item.id)[0] is not self._ledger:
                raise CheckFailed(f"{item.id} is of another Hub than {known_id}")
            getattr(self, f"_check_{item.kind}")(item)
            self._context.checked[item.kind] += 1
        self._check_missing()

    def _is_of_this_hub(self, event_id: str) -> bool:
        try:
            ledger, offset = self._context.resolve(event_id)
        except (CheckFailed, ValueError):
            return False
        return ledger.hub == self._stream.hub and offset <= max(ledger.records)

    def _check_start(self, item: Item) -> None:
        """Check that a client that reconnected resumes, or receives the reason why it does not."""
        last_event_id, route = self._stream.last_event_id, self._stream.route
        if last_event_id is None:
            # Records that were published after the request may be evicted before a busy server writes them.
            late = route != "snapshot" and item.kind == GAP and json.loads(item.data)["reason"] == "evicted"
            expected = {RECORD, EPHEMERAL} if route == "unprimed" else {STATE} if route == "snapshot" else {INITIAL_ID}
            if item.kind not in expected and not late:
                raise CheckFailed(f"started with {item}")
            return
        same_hub = self._is_of_this_hub(last_event_id) and self._context.resolve(last_event_id)[0] is self._ledger
        if not same_hub:
            if item.kind != GAP or json.loads(item.data)["reason"] == "evicted":
                raise CheckFailed(f"{last_event_id} is not an ID of this Hub, and the stream started with {item}")
        elif route == "unprimed":
            self._move_to(self._context.resolve(last_event_id)[1])
        elif item.kind not in {INITIAL_ID, GAP} or (item.kind == INITIAL_ID and item.id != last_event_id):
            raise CheckFailed(f"resumed with {item}")

    def _move_to(self, offset: int) -> None:
        self._start = self._acknowledged = self._last = self._due_through = offset

    # What the client received.

    def _check_initial_id(self, item: Item) -> None:
        if self._start is not None:
            raise CheckFailed(f"started again with {item}")
        self._move_to(self._context.resolve(str(item.id))[1])

    def _check_record(self, item: Item) -> None:
        _, offset = self._context.resolve(str(item.id))
        record = self._ledger.records.get(offset)
        if record is None or (record.number, record.topic) != (item.number, item.topic):
            raise CheckFailed(f"received {item}, and {record} was published")
        if self._start is None:
            self._start = self._last = offset - 1
        if offset <= self._last:
            raise CheckFailed(f"repeated, or out of order: {item} was received after {self._last}")
        if not any(start[0] < offset <= end[1] for start, end in self._intervals.matching(item.topic)):
            raise CheckFailed(f"{item} is of a topic without a subscription at that offset")
        if self._stream.part is not None:
            if item.number % PARTS != self._stream.part:
                raise CheckFailed(f"{item} was not selected")
        elif self._announced not in {"", item.id} and not (self._announced and self._stream.route == "conflate"):
            raise CheckFailed(f"a gap said that {self._announced} is next, and it was {item}")
        self._announced = ""
        self._last = self._acknowledged = self._due_through = offset
        self._received[offset] = item.time

    def _check_ephemeral(self, item: Item) -> None:
        event = self._ledger.ephemeral.get(item.number)
        if event is None or event.topic != item.topic or item.number in self._ephemeral:
            raise CheckFailed(f"received {item}, perhaps twice, and {event} was published")
        self._ephemeral.add(item.number)
        if not event.offset:  # the ledger does not know its offset
            return
        last = self._ledger.records.get(self._last)
        if event.offset < self._last and last is not None and last.time < event.time + ITERATION:
            # A stream that is catching up receives the records of the same iteration first.
            self._context.checked["ephemeral, after later records of its iteration"] += 1
        elif event.offset < self._last:
            raise CheckFailed(f"{item} was received after {self._last}, and was published after {event.offset}")
        if not any(start[0] <= event.offset <= end[1] for start, end in self._intervals.matching(item.topic)):
            raise CheckFailed(f"{item} is of a topic without a subscription at that offset")
        self._start = event.offset if self._start is None else self._start
        self._last = self._due_through = max(self._last, event.offset)

    def _check_gap(self, item: Item) -> None:
        data = json.loads(item.data)
        reason, after, first = data["reason"], data["after"], data["first"]
        self._context.gaps[reason] += 1
        self._announced = "" if first is None else first
        offset = None if item.id is None else self._context.resolve(item.id)[1]
        first_offset = None if first is None else self._context.resolve(first)[1]
        last = first_offset - 1 if first_offset else max(self._ledger.records) if offset is None else offset
        if data.get("last") is not None:
            last = self._context.resolve(data["last"])[1]
        started, last_event_id = self._start is not None, self._stream.last_event_id
        if reason == "evicted":
            ledger, since = self._context.resolve(after)
            wrong_start = not started and last_event_id is not None and after != last_event_id
            if ledger is not self._ledger or since < self._acknowledged or wrong_start:
                raise CheckFailed(f"received {item} after {self._acknowledged}")
            if not self._ledger.any_may_be_evicted(self._intervals.patterns, since, item.time):
                raise CheckFailed(f"received {item}, and no record can have been evicted")
            self._start = since if self._start is None else self._start
            self._last = self._due_through = max(self._last, since)
            self._gaps.append(ReportedGap(since, first_offset, last, item.time))
        elif started and self._received:
            raise CheckFailed(f"received {item} after records")
        elif reason == "foreign":
            self._start = 0
            self._gaps.append(ReportedGap(0, first_offset, last, item.time))
        elif reason in {"unknown", "future"} and (offset is not None or self._stream.route == "snapshot"):
            self._start = offset
        else:
            raise CheckFailed(f"received {item}")
        if last_event_id is not None and not started and after != last_event_id[:128] and reason != "unknown":
            raise CheckFailed(f"{item} is not about {last_event_id}")
        if offset is not None:
            self._acknowledged = self._last = self._due_through = max(self._last, offset)

    def _check_state(self, item: Item) -> None:
        if self._received or item.data.split(" ")[1] != str(self._states):
            raise CheckFailed(f"received {item} after records or out of order")
        self._states += 1
        if (item.id is None) == (self._states == SNAPSHOT):
            raise CheckFailed(f"only the last event of a snapshot has an ID: {item}")
        if item.id is not None:
            self._move_to(offset := self._context.resolve(item.id)[1])
            self._announced = ""
            if item.data.split(" ")[0] != str(offset):
                raise CheckFailed(f"the ID of {item} is not that of its state")

    # What the client did not receive.

    def _check_missing(self) -> None:
        """Find records that are due, were not received, and are not covered by a gap."""
        stream, ledger = self._stream, self._ledger
        if self._start is None:
            return
        matching = ledger.matching(self._intervals.patterns)
        due_through = self._due_through
        # A client that has read for long must have these too, unless items arrived until the end: with a small receive
        # buffer it falls behind.
        quiet_since = max(stream.reading_since, stream.items[-1].time)
        if stream.end - quiet_since > READ_TIMEOUT and stream.disconnected:
            overdue = [
                offset
                for offset in matching[bisect_right(matching, due_through) :]
                if ledger.records[offset].time < stream.end - READ_TIMEOUT
            ]
            due_through = max(overdue, default=due_through)
        received = sorted(self._received)
        for offset in matching[bisect_right(matching, self._start) : bisect_right(matching, due_through)]:
            if offset in self._received:
                continue
            record = ledger.records[offset]
            if stream.part is not None and record.number % PARTS != stream.part:
                continue
            index = bisect_right(received, offset)
            when = self._received[received[index]] if index < len(received) else stream.end
            if self._reported(offset, when) or self._unsubscribed(offset):
                continue
            if stream.route == "conflate" and ledger.superseded(offset, when):
                self._context.checked["superseded, and omitted"] += 1
                continue
            before, later = received[max(0, index - 3) : index], received[index : index + 3]
            raise CheckFailed(
                f"missing: {record}; due after {self._start}, up to {due_through}; received {before} before it and "
                f"{later} after it; gaps {self._gaps}"
            )

    def _received_between(self, topic: str, after: int, before: int) -> bool:
        """Whether the client received a record of a topic between two offsets."""
        offsets = self._ledger.topics[topic]
        between = offsets[bisect_right(offsets, after) : bisect_left(offsets, before)]
        return any(offset in self._received for offset in between)

    def _reported(self, offset: int, when: float) -> bool:
        """Whether a gap covers a missing record that was published before the gap and may be evicted."""
        record, ledger, checked = self._ledger.records[offset], self._ledger, self._context.checked
        for gap in self._gaps:
            if gap.after < offset <= gap.last and record.time <= gap.time and ledger.may_be_evicted(offset, when):
                checked["missing, and reported"] += 1
                checked["... after the first ID of the gap"] += bool(gap.first and gap.first < offset)
                checked["... and evicted after the gap was sent"] += not ledger.may_be_evicted(offset, gap.time)
                return True
        return False

    def _unsubscribed(self, offset: int) -> bool:
        """Whether the record's topic had no subscription at its offset, or lost it before the stream got that far."""
        topic = self._ledger.records[offset].topic
        for start, end in self._intervals.matching(topic):
            subscribed = start[1] < offset <= end[1]
            if subscribed and (end == NEVER or self._received_between(topic, offset, end[1] + 1)):
                return False
        return True
