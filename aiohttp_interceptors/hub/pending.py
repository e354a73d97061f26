"""Event IDs that cannot be resolved to an offset yet, because the process has not read that far."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeAlias

from .._logging import log as logger
from .history import History
from .record import GapReason

__all__ = ["PendingSubscriptions", "ResolvedId"]


# Seconds after which an ID that is ahead of this process is treated as invalid. Processes are milliseconds apart, so it
# would have arrived.
FUTURE_ID_TIMEOUT = 2.0
# Seconds that a broker's confirmation may be late on a busy machine or a slow network.
CONFIRMATION_TOLERANCE = 1.5

ResolvedId: TypeAlias = tuple[int, GapReason | None]
"""The offset to resume after, and the reason if records may be missing there."""


class PendingSubscriptions:
    """Event IDs that cannot be resolved to an offset yet, each with a callback.

    With a broker there are two reasons to wait. Before the history has been read, no ID can be resolved. And a client
    that was connected to another process may have an ID that this process has not received yet.
    """

    def __init__(self, history: History, *, remote: bool, confirms: float | None = None) -> None:
        self._history = history
        self._remote = remote  # there is a broker
        self._confirms = confirms  # seconds between two CaughtUp of a tail; None if there is only one
        # When the latest CaughtUp came: by the event loop's clock, and by one that can be read from any thread.
        self._caught_up_at = float("-inf")
        self._caught_up_monotonic = float("-inf")
        self._waiting: dict[object, tuple[str | None, float, Callable[[ResolvedId], None]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.loaded: bool = not remote
        """Whether the history has been read."""
        self.caught_up: bool = not remote
        """Whether the tail has yielded everything that the broker had, and is still connected."""

    @property
    def ready(self) -> bool:
        """Whether the tail is caught up, and the broker has confirmed so recently."""
        if self._confirms is None:
            return self.caught_up
        limit = self._caught_up_monotonic + self._confirms + CONFIRMATION_TOLERANCE
        return self.caught_up and time.monotonic() < limit

    @property
    def confirmation_age(self) -> float | None:
        """Seconds since the tail was last caught up; ``None`` if the broker does not confirm, or has not done so."""
        age = time.monotonic() - self._caught_up_monotonic
        return None if self._confirms is None or age == float("inf") else age

    def resolve(self, event_id: str | None, since: float | None = None) -> ResolvedId | None:
        """Resolve an event ID to an offset, or return ``None`` if it cannot be resolved yet.

        Args:
            event_id: The ID; ``None`` resolves to the end of the history.
            since: When the wait for it began, by the event loop's clock.
        """
        if not self.loaded:
            return None
        if event_id is None:
            return self._history.end, None
        if self._remote and self._history.may_arrive(event_id) and not (self.caught_up and self._has_timed_out(since)):
            return None
        return self._history.resolve(event_id)

    async def wait(self, event_id: str | None) -> ResolvedId:
        """Resolve an event ID to an offset, and wait for it if it may still arrive. Cancelling is safe."""
        resolved = self.resolve(event_id)
        if resolved is not None:
            return resolved
        future: asyncio.Future[ResolvedId] = asyncio.get_running_loop().create_future()
        self.add(future, event_id, lambda it: None if future.done() else future.set_result(it))
        try:
            return await future
        finally:
            self.discard(future)

    def add(self, owner: object, event_id: str | None, callback: Callable[[ResolvedId], None]) -> None:
        """Call a function once the ID can be resolved, unless the owner is discarded before."""
        self._waiting[owner] = event_id, self._now(), callback
        self._set_timer()

    def discard(self, owner: object) -> None:
        """Do not call the owner's callback. Idempotent."""
        self._waiting.pop(owner, None)

    def resolve_all(self) -> None:
        """Call the callbacks of all IDs that can be resolved now."""
        if not (self._waiting and self.loaded):
            return
        for owner, (event_id, since, callback) in list(self._waiting.items()):
            resolved = self.resolve(event_id, since)
            if resolved is not None and self._waiting.pop(owner, None) is not None:
                try:
                    callback(resolved)
                except Exception as error:  # noqa: BLE001  # the other callbacks must still be called
                    logger.exception("hub_subscription_failed", exc_info=error)

    def on_caught_up(self) -> None:
        """Handle a ``CaughtUp`` of the tail."""
        now = self._now()
        self._caught_up_at, self._caught_up_monotonic = now, time.monotonic()
        if self.caught_up:
            self.resolve_all()
            return
        self.loaded = self.caught_up = True
        # The timeout of an ID starts again when the tail is connected: it could not arrive before.
        self._waiting = {owner: (event_id, now, call) for owner, (event_id, _, call) in self._waiting.items()}
        self.resolve_all()
        self._set_timer()

    def close(self) -> None:
        """Cancel the timer. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _has_timed_out(self, since: float | None) -> bool:
        """Return whether an ID that has not arrived since then is not expected any more.

        If the broker confirms, only a ``CaughtUp`` after the timeout counts: a broker that is frozen may still have it.
        """
        if since is None:
            return False
        return (self._now() if self._confirms is None else self._caught_up_at) >= since + FUTURE_ID_TIMEOUT

    def _set_timer(self) -> None:
        if self._confirms is None and self._timer is None and self._waiting and self.caught_up:
            _, since, _ = next(iter(self._waiting.values()))  # the oldest
            self._timer = asyncio.get_running_loop().call_at(since + FUTURE_ID_TIMEOUT, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.resolve_all()
        self._set_timer()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
