"""Streams that came before the Hub can say from where they go on. Decides, and awaits nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from ..observe.logs import log as logger
from .gap import GapReason
from .log import Log

__all__ = ["Arrivals", "Located"]

Located = tuple[int, GapReason | None]

# Seconds that an id which is ahead of this process may be one that another process has and this one is about to have.
# Processes are milliseconds apart; a client that invented its id can wait.
PATIENCE = 2.0
SLACK = 1.5  # seconds that a confirmation may be late, on a busy machine or in a slow network, before it is missed


class Arrivals:
    """Ids to be located, as soon as the log has come that far.

    With a broker, a process knows nothing until it has read the history, and a client that comes from another process
    may have an id of the next moment: neither is a gap.
    """

    def __init__(self, log: Log, *, remote: bool, confirms: float | None = None) -> None:
        self._log = log
        self._remote = remote
        self._confirms = confirms  # seconds between two confirmations; None if there is one in each tail
        self._confirmed = float("-inf")  # when the latest one came, by the event loop's clock, and
        self._heard = float("-inf")  # by the process's, which can also be asked outside of it
        self._waiting: dict[object, tuple[str | None, float, Callable[[Located], None]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.open: bool = not remote
        """Whether the history has been read."""
        self.up: bool = not remote
        """Whether all there is has come, and what is new will."""

    def locate(self, given: str | None, since: float | None = None) -> Located | None:
        """Return from where the owner of an id goes on, who has waited ``since`` then; ``None`` if he is to wait."""
        if not self.open:
            return None
        if given is None:
            return self._log.end, None
        if self._remote and self._log.is_ahead(given) and not (self.up and self._has_waited(since)):
            return None
        return self._log.locate(given)

    def wait(self, owner: object, given: str | None, then: Callable[[Located], None]) -> None:
        """Have something called when an id can be located, unless its owner is discarded before."""
        self._waiting[owner] = given, self._now(), then
        self._set_timer()

    def discard(self, owner: object) -> None:
        """Wait for somebody no more. Twice is once."""
        self._waiting.pop(owner, None)

    def look(self) -> None:
        """Call what can be called now."""
        if self._waiting and self.open:
            for owner, (given, since, then) in list(self._waiting.items()):
                located = self.locate(given, since)
                if located is not None and self._waiting.pop(owner, None) is not None:
                    try:
                        then(located)
                    except Exception as error:  # noqa: BLE001  # of one, and the others wait as well
                        logger.exception("hub_arrival_failed", exc_info=error)

    @property
    def fresh(self) -> bool:
        """Whether all there is has come, as far as the server has said lately, and what is new will."""
        if self._confirms is None:
            return self.up
        return self.up and time.monotonic() < self._heard + self._confirms + SLACK

    def confirm(self) -> None:
        """Note that the server answered just now, and that all it had has come."""
        self._confirmed, self._heard = self._now(), time.monotonic()
        if self.up:
            self.look()
        else:
            self.begin()

    def begin(self) -> None:
        """Note that all there was has been read. Those who wait for what is ahead have their time from now on."""
        self.open = self.up = True
        now = self._now()
        self._waiting = {owner: (given, now, then) for owner, (given, _, then) in self._waiting.items()}
        self.look()
        self._set_timer()

    def close(self) -> None:
        """Leave nothing that waits in the event loop. Twice is once."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _has_waited(self, since: float | None) -> bool:
        """Tell whether what did not come until now will not: the server has said that it has no more, if it does."""
        if since is None:
            return False
        return (self._now() if self._confirms is None else self._confirmed) >= since + PATIENCE

    def _set_timer(self) -> None:
        if self._confirms is None and self._timer is None and self._waiting and self.up:
            _, since, _ = next(iter(self._waiting.values()))  # who came first
            self._timer = asyncio.get_running_loop().call_at(since + PATIENCE, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.look()
        self._set_timer()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
