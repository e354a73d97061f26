"""What must be true of a Hub's clients: all that came, against the ledger of who published it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from hub_case import Case, Wrong
from hub_ledger import Change, Published, read
from hub_reading import Opening
from judge import Judge
from reading import Receipt


class HubJudge(Judge):
    """Compare each stream with the ledger, as soon as that is complete."""

    def __init__(self, openings: list[Opening], receipts: dict[str, Receipt]) -> None:
        super().__init__(receipts, 2**62)
        self._openings = openings
        self._published: dict[str, Published] = {}
        self.changes: dict[str, list[Change]] = {}  # of a stream's topics
        self._silent: list[Opening] = []
        self.told: Counter[str] = Counter()  # gaps, by reason
        self.seen: Counter[str] = Counter()  # what was checked

    def read(self, path: Path) -> None:
        """Read the ledger of a server that has ended."""
        published, changes = read(path)
        self._published.update(published)
        self.changes.update(changes)
        for epoch, hub in published.items():
            self.seen["published"] += len(hub.lines) + len(hub.passing)
            if hub.holes:
                self._whose = path.name
                self._wrong(f"{hub.holes} positions of {epoch} belong to nothing that was published")

    def weigh(self) -> None:
        """Judge the streams that are over, and forget what came in them."""
        self._whose = "streams"
        for opening in [opening for opening in self._openings if opening.over]:
            try:
                Case(self, opening).judge()
            except Wrong as wrong:
                opening.problems.append(f"{wrong}; asked to go on after {opening.asked}")
            if opening.silent:
                self._silent.append(opening)
            opening.items = []
            self._receipts[opening.path] = opening
        self._openings[:] = [opening for opening in self._openings if not opening.over]

    def published(self, event_id: str) -> tuple[Published, int]:
        """Return the Hub that gave an id, and the position it stands for."""
        epoch, _, offset = event_id.rpartition("-")
        if epoch not in self._published:
            raise Wrong(f"no Hub has given the id {event_id}")
        return self._published[epoch], int(offset)

    def compare(self) -> None:
        """Compare each stream with what the servers say of it, and none may have kept silent."""
        super().compare()
        for opening in self._silent:
            # A stopping aiohttp reads nothing from a connection that it has just accepted, until shutdown_timeout.
            fact = self._closed.get(opening.path)
            if fact is not None and fact["reason"] == "stalled":  # it did not read when it was cut off, so may not know
                self.seen["silent, after the server gave up"] += 1
            elif fact is not None or opening.status:
                self._wrong(f"{opening.path} ({opening.manner}): the server said nothing for too long; it has {fact}")
            else:
                self.seen["silent, as the server stopped and had not read the request"] += 1

    def tell(self) -> None:
        """Print the counts of what was checked."""
        for what, counts in ("gaps told: ", self.told), ("checked: ", self.seen):
            print(what + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())), flush=True)

    def _stream(self, name: str, receipt: Receipt, fact: dict[str, Any]) -> None:
        assert isinstance(receipt, Opening)
        if receipt.events > fact["events"]:
            self._wrong(f"{name} received {receipt.events} events, and {fact['events']} were sent")
        if receipt.clean:
            self.counted += 1
            if (receipt.events, receipt.bytes) != (fact["events"], fact["bytes"]):
                self._wrong(
                    f"{name} ended as {fact['reason']} with {receipt.events} events of {receipt.bytes} bytes received, "
                    f"and {fact['events']} of {fact['bytes']} sent"
                )
        elif receipt.manner == "stays" and not (receipt.left or receipt.closed):
            self._wrong(f"{name} was read until it ended, as {fact['reason']}, and has no end")
