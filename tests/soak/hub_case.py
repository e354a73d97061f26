"""One stream of a Hub before the judge: each item that came, and each that did not."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import Counter
from typing import Protocol

from hub_ledger import Change, Excuse, Published, Spans
from hub_reading import GAP, PASSING, PRIME, RECORD, STATE, Item, Opening
from hub_routes import PARTS, SNAPSHOT
from wire import PATIENCE

TURN = 1.0  # seconds that a turn of the server's event loop may take, on a busy machine


class Court(Protocol):
    """What all cases have in common."""

    changes: dict[str, list[Change]]
    told: Counter[str]
    seen: Counter[str]

    def published(self, event_id: str) -> tuple[Published, int]:
        """Return the Hub that gave an id, and the position it stands for. Raises ``Wrong`` if none has."""


class Wrong(Exception):
    """Something is not as it must be."""


class Case:
    """One stream before the judge."""

    def __init__(self, court: Court, opening: Opening) -> None:
        self._court = court
        self._opening = opening
        self._spans = Spans(opening.topics, court.changes.get(opening.path.rsplit("/", 1)[1], ()))
        self._hub = Published(opening.hub)
        self._at: int | None = None  # from where all is owed
        self._known = 0  # the latest position that its client knows as an id
        self._last = 0  # nothing may come that is not after this
        self._reach = 0  # up to here all is owed
        self._received: dict[int, float] = {}
        self._passed: set[int] = set()
        self._excuses: list[Excuse] = []
        self._first: str | None = ""  # the id that a gap says comes next; "" if none has said so
        self._states = 0

    def judge(self) -> None:
        """Raise ``Wrong`` if it is."""
        items = self._opening.items
        ids = [item.id for item in items if item.id is not None]
        gaps = [item for item in items if item.kind == GAP]  # of which one without an id goes on where it was
        known = ids[0] if ids else self._opening.asked if gaps else None
        if known is None or (not ids and not self._is_ours(known)):
            return  # ephemeral events, or a snapshot that was cut
        self._hub = self._court.published(known)[0]
        self._ways_to_begin(items[0])
        for item in items:
            if item.id is not None and self._court.published(item.id)[0] is not self._hub:
                raise Wrong(f"{item.id} is of another Hub than {known}")
            getattr(self, f"_{item.kind}")(item)
            self._court.seen[item.kind] += 1
        self._nothing_is_missing()

    def _is_ours(self, event_id: str) -> bool:
        try:
            hub, position = self._court.published(event_id)
        except (Wrong, ValueError):
            return False
        return hub.hub == self._opening.hub and position <= max(hub.lines)

    def _ways_to_begin(self, item: Item) -> None:
        """Check that who returns goes on where it was, or is told why not."""
        asked, kind = self._opening.asked, self._opening.route
        if asked is None:
            # What was published since it was let in may be gone before a busy server comes to write to it.
            late = kind != "snapshot" and item.kind == GAP and json.loads(item.said)["reason"] == "evicted"
            begins = {RECORD, PASSING} if kind == "unprimed" else {STATE} if kind == "snapshot" else {PRIME}
            if item.kind not in begins and not late:
                raise Wrong(f"began with {item}")
            return
        ours = self._is_ours(asked) and self._court.published(asked)[0] is self._hub
        if not ours:
            if item.kind != GAP or json.loads(item.said)["reason"] == "evicted":
                raise Wrong(f"{asked} is no id of this Hub, and it went on with {item}")
        elif kind == "unprimed":
            self._at = self._known = self._last = self._reach = self._court.published(asked)[1]
        elif item.kind not in {PRIME, GAP} or (item.kind == PRIME and item.id != asked):
            raise Wrong(f"went on with {item}")

    # What came.

    def _prime(self, item: Item) -> None:
        if self._at is not None:
            raise Wrong(f"began again with {item}")
        self._at = self._known = self._last = self._reach = self._court.published(str(item.id))[1]

    def _record(self, item: Item) -> None:
        _, position = self._court.published(str(item.id))
        line = self._hub.lines.get(position)
        if line is None or (line.number, line.topic) != (item.number, item.topic):
            raise Wrong(f"{item} came, and {line} was published")
        if self._at is None:
            self._at = self._last = position - 1
        if position <= self._last:
            raise Wrong(f"repeated, or out of order: {item} came after {self._last}")
        if not any(start[0] < position <= end[1] for start, end in self._spans.of(item.topic)):
            raise Wrong(f"{item} is of a topic that it had not asked for then")
        if self._opening.part is not None:
            if item.number % PARTS != self._opening.part:
                raise Wrong(f"{item} was not selected")
        elif self._first not in {"", item.id} and not (self._first and self._opening.route == "conflate"):
            raise Wrong(f"a gap said that {self._first} comes first, and it was {item}")
        self._first = ""
        self._last = self._known = self._reach = position
        self._received[position] = item.time

    def _passing(self, item: Item) -> None:
        line = self._hub.passing.get(item.number)
        if line is None or line.topic != item.topic or item.number in self._passed:
            raise Wrong(f"{item} came, or came twice, and {line} was published")
        self._passed.add(item.number)
        if not line.position:  # written down too late to say where it belongs
            return
        later = self._hub.lines.get(self._last)
        if line.position < self._last and later is not None and later.time < line.time + TURN:
            self._court.seen["passing, after later records of its turn"] += 1  # who catches up has those first
        elif line.position < self._last:
            raise Wrong(f"{item} came after {self._last}, and was published after {line.position}")
        if not any(start[0] <= line.position <= end[1] for start, end in self._spans.of(item.topic)):
            raise Wrong(f"{item} is of a topic that it had not asked for then")
        self._at = line.position if self._at is None else self._at
        self._last = self._reach = max(self._last, line.position)

    def _gap(self, item: Item) -> None:
        said = json.loads(item.said)
        reason, after, first = said["reason"], said["after"], said["first"]
        self._court.told[reason] += 1
        self._first = "" if first is None else first
        position = None if item.id is None else self._court.published(item.id)[1]
        following = None if first is None else self._court.published(first)[1]
        last = following - 1 if following else max(self._hub.lines) if position is None else position
        if said.get("last") is not None:
            last = self._court.published(said["last"])[1]
        begun, asked = self._at is not None, self._opening.asked
        if reason == "evicted":
            hub, since = self._court.published(after)
            if hub is not self._hub or since < self._known or (not begun and asked is not None and after != asked):
                raise Wrong(f"{item} came after {self._known}")
            if not self._hub.oldest_gone(self._spans.names, since, item.time):
                raise Wrong(f"{item} came, and nothing can have been gone")
            self._at = since if self._at is None else self._at
            self._last = self._reach = max(self._last, since)
            self._excuses.append(Excuse(since, following, last, item.time))
        elif begun and self._received:
            raise Wrong(f"{item} came amid the stream")
        elif reason == "foreign":
            self._at = 0
            self._excuses.append(Excuse(0, following, last, item.time))
        elif reason in {"unknown", "future"} and (position is not None or self._opening.route == "snapshot"):
            self._at = position
        else:
            raise Wrong(f"{item} came")
        if asked is not None and not begun and after != asked[:128] and reason != "unknown":
            raise Wrong(f"{item} is not about {asked}")
        if position is not None:
            self._known = self._last = self._reach = max(self._last, position)

    def _state(self, item: Item) -> None:
        if self._received or item.said.split(" ")[1] != str(self._states):
            raise Wrong(f"{item} came amid the stream")
        self._states += 1
        if (item.id is None) == (self._states == SNAPSHOT):
            raise Wrong(f"the id is at {item}")
        if item.id is not None:
            self._at = self._known = self._last = self._reach = self._court.published(item.id)[1]
            self._first = ""
            if item.said.split(" ")[0] != str(self._at):
                raise Wrong(f"{item} has another id than its state")

    # What did not come.

    def _nothing_is_missing(self) -> None:
        """Find what is owed and did not come, without a gap that says so."""
        opening, hub = self._opening, self._hub
        if self._at is None:
            return
        due = hub.under(self._spans.names)
        reach = self._reach
        # It had the time to get these, unless something came all the while: little room lets little through.
        quiet_since = max(opening.reading_since, opening.items[-1].time)
        if opening.end - quiet_since > PATIENCE and opening.left:
            late = [
                place for place in due[bisect_right(due, reach) :] if hub.lines[place].time < opening.end - PATIENCE
            ]
            reach = max(late, default=reach)
        places = sorted(self._received)
        for position in due[bisect_right(due, self._at) : bisect_right(due, reach)]:
            if position in self._received:
                continue
            line = hub.lines[position]
            if opening.part is not None and line.number % PARTS != opening.part:
                continue
            following = bisect_right(places, position)
            when = self._received[places[following]] if following < len(places) else opening.end
            if not (self._excused(position, when) or self._given_back(position)):
                if opening.route == "conflate" and hub.superseded(position, when):
                    self._court.seen["superseded, and left out"] += 1
                    continue
                before, later = places[max(0, following - 3) : following], places[following : following + 3]
                raise Wrong(
                    f"missing: {line}; owed after {self._at}, up to {reach}; {before} came before it, {later} after; "
                    f"gaps {self._excuses}"
                )

    def _came(self, topic: str, after: int, before: int) -> bool:
        """Tell whether a record of a topic came from between these positions."""
        where = self._hub.topics[topic]
        between = where[bisect_right(where, after) : bisect_left(where, before)]
        return any(position in self._received for position in between)

    def _excused(self, position: int, when: float) -> bool:
        """Tell whether a gap says that it is missing: it was there before that was told, and could be gone since."""
        line, seen = self._hub.lines[position], self._court.seen
        for excuse in self._excuses:
            if excuse.after < position <= excuse.last and line.time <= excuse.time and self._hub.gone(position, when):
                seen["missing, as a gap said"] += 1
                seen["... and later than its first"] += bool(excuse.first and excuse.first < position)
                seen["... and gone after it was told"] += not self._hub.gone(position, excuse.time)
                return True
        return False

    def _given_back(self, position: int) -> bool:
        """Tell whether its topic was not asked for then, or given back before the stream had come so far."""
        topic = self._hub.lines[position].topic
        for start, end in self._spans.of(topic):
            if start[1] < position <= end[1] and (end[0] >= 2**62 or self._came(topic, position, end[1] + 1)):
                return False
        return True
