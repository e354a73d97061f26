"""Checks of the soak test of a Hub: what clients received is compared with the ledgers of the servers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from tests.soak.checker import Checker
from tests.soak.client_stream import ClientStream
from tests.soak.hub_client_stream import HubClientStream
from tests.soak.hub_ledger import HubLedger, TopicChange, read_ledger
from tests.soak.hub_stream_check import CheckFailed, StreamCheck


class HubChecker(Checker):
    """Compares each stream with the ledger when that is complete."""

    def __init__(self, unchecked: list[HubClientStream], streams: dict[str, ClientStream]) -> None:
        super().__init__(streams, 2**62)
        self._unchecked = unchecked
        self._ledgers: dict[str, HubLedger] = {}  # by epoch
        self.changes: dict[str, list[TopicChange]] = {}  # by token
        self._timed_out: list[HubClientStream] = []
        self.gaps: Counter[str] = Counter()  # by reason
        self.checked: Counter[str] = Counter()

    def read_ledger(self, path: Path) -> None:
        """Read the ledger of a server that has ended."""
        ledgers, changes = read_ledger(path)
        self._ledgers.update(ledgers)
        self.changes.update(changes)
        for epoch, ledger in ledgers.items():
            self.checked["published"] += len(ledger.records) + len(ledger.ephemeral)
            if ledger.unused_offsets:
                self._subject = path.name
                self._problem(f"{ledger.unused_offsets} offsets of {epoch} belong to no published event")

    def check_finished_streams(self) -> None:
        """Check the streams that have finished, and discard their items."""
        self._subject = "streams"
        for stream in [stream for stream in self._unchecked if stream.finished]:
            try:
                StreamCheck(self, stream).run()
            except CheckFailed as problem:
                stream.problems.append(f"{problem}; the request had the ID {stream.last_event_id}")
            if stream.timed_out:
                self._timed_out.append(stream)
            stream.items = []
            self._streams[stream.path] = stream
        self._unchecked[:] = [stream for stream in self._unchecked if not stream.finished]

    def resolve(self, event_id: str) -> tuple[HubLedger, int]:
        """Return the Hub that assigned an ID, and the offset."""
        epoch, _, offset = event_id.rpartition("-")
        if epoch not in self._ledgers:
            raise CheckFailed(f"no Hub has assigned the ID {event_id}")
        return self._ledgers[epoch], int(offset)

    def check_streams(self) -> None:
        """Compare each stream with what the servers report. None may have timed out."""
        super().check_streams()
        for stream in self._timed_out:
            # A stopping aiohttp reads nothing from a connection that it has just accepted, until shutdown_timeout.
            fact = self._closed.get(stream.path)
            if fact is not None and fact["reason"] == "stalled":  # the client did not read when it was disconnected
                self.checked["timed out, after the server disconnected"] += 1
            elif fact is not None or stream.status:
                self._problem(f"{stream.path} ({stream.behavior}): the server sent nothing for too long; {fact}")
            else:
                self.checked["timed out, while the server stopped and had not read the request"] += 1

    def print_counts(self) -> None:
        """Print how often each kind of gap and item was checked."""
        for title, counts in ("gaps: ", self.gaps), ("checked: ", self.checked):
            print(title + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())), flush=True)

    def _compare(self, name: str, stream: ClientStream, fact: dict[str, Any]) -> None:
        assert isinstance(stream, HubClientStream)
        if stream.events > fact["events"]:
            self._problem(f"{name} received {stream.events} events, and {fact['events']} were sent")
        if stream.complete:
            self.compared += 1
            if (stream.events, stream.bytes) != (fact["events"], fact["bytes"]):
                self._problem(
                    f"{name} ended as {fact['reason']} with {stream.events} events of {stream.bytes} bytes received, "
                    f"and {fact['events']} of {fact['bytes']} sent"
                )
        elif stream.behavior == "reads all" and not (stream.disconnected or stream.ended):
            self._problem(f"{name} was read until it ended, as {fact['reason']}, and its body has no end")
