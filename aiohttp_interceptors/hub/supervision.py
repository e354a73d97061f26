"""A Hub and its broker, over outages: one tail after the other, and one line for each change."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import aclosing

from ..errors import FATAL, BrokerError
from ..observe.facts import HubDown, HubFact, HubObserver, HubResumed, HubUp
from ..observe.logs import log as logger
from ..observe.logs import log_fact
from .arrivals import Arrivals
from .broker import Broker, Rewound, TailItem, UpToDate
from .ending import check_cancelled
from .intake import Intake

__all__ = ["Supervision"]

FIRST_DELAY = 0.1  # seconds; a server that restarts is back as soon
# Seconds that a server which came back has to wait for us at most. With the jitter, fifty processes that lost it
# together do not all come in one moment.
LONGEST_DELAY = 5.0
JITTER = 0.5  # the part of a delay that is left to chance


class Supervision:
    """Follow a broker, and again when it was lost, from the place where that happened."""

    def __init__(self, broker: Broker, intake: Intake, arrivals: Arrivals, observer: HubObserver | None) -> None:
        self._broker = broker
        self._intake = intake
        self._arrivals = arrivals
        self._observer = observer
        self._attempts = 0
        self._since: float | None = None  # when it was lost; None if it was not, or nobody was told yet
        self._lost = 0.0
        self._taken = 0  # entries, when it was lost
        self._read = False  # whether this tail has given all there was

    async def run(self) -> None:
        """Follow it until the task is cancelled, also where the broker's client swallows that."""
        while True:
            check_cancelled()
            self._read = False
            try:
                async with aclosing(self._broker.tail(self._intake.place)) as tail:
                    async for item in tail:
                        check_cancelled()
                        self._take(item)
                        if isinstance(item, Sequence):
                            await asyncio.sleep(0)  # what has come goes out before more is asked for
                # A connection that was closed in order is lost, too.
                error: BaseException = BrokerError("the tail ended")
            except BrokerError as failure:
                error = failure
            except (*FATAL, GeneratorExit):
                raise
            except BaseException as failure:  # a defect, of the broker or of ours; streams still live
                task = asyncio.current_task()
                if isinstance(failure, asyncio.CancelledError) and (task is None or task.cancelling()):
                    raise  # ours; what a broker's client cancelled of its own is no reason to follow it no more
                logger.exception("hub_tail_failed", exc_info=failure)
                error = failure
            check_cancelled()
            self._note_loss(error)
            await asyncio.sleep(self._delay())

    def _take(self, item: TailItem) -> None:
        self._intake.take(item)
        if isinstance(item, UpToDate):
            if self._read:
                return  # it says so again, while there is nothing to tell
            self._read = True
            self._attempts = 0
            read = self._intake.entries - self._taken
            if self._since is None:
                self._tell(HubUp(read))
            else:
                self._tell(HubResumed(read, time.monotonic() - self._lost))
                self._since = None
        elif isinstance(item, Rewound):
            logger.warning("hub_rewound", epoch=item.place.epoch, position=item.place.position)

    def _note_loss(self, error: BaseException) -> None:
        """Tell that it is lost, once."""
        self._arrivals.up = False
        if self._since is None:
            self._since, self._lost, self._taken = time.time(), time.monotonic(), self._intake.entries
            self._tell(HubDown(self._since, str(error) or repr(error)))

    def _delay(self) -> float:
        """Return how long to wait before the next attempt, in seconds."""
        self._attempts += 1
        delay: float = min(FIRST_DELAY * 2 ** min(self._attempts - 1, 16), LONGEST_DELAY)
        return delay * random.uniform(1 - JITTER, 1)  # noqa: S311

    def _tell(self, fact: HubFact) -> None:
        log_fact(fact)
        if self._observer is not None:
            try:
                self._observer(fact)
            except Exception as error:  # noqa: BLE001  # an observer's, which is no reason to lose the broker
                logger.exception("hub_observer_failed", fact=fact, exc_info=error)
