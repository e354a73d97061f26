"""Publishes that wait while a write runs go into the next one together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeAlias

from ..errors import BrokerDown, BrokerError, OutcomeUnknown
from ..hub.broker import Place

__all__ = ["Draft", "Outcome", "Write", "Writer"]

MOST = 500  # publishes in one write, and
MOST_BYTES = 2**20  # of their payloads: so that no server is busy with one of ours for longer than others can wait


class Draft(NamedTuple):
    """What is to be stored."""

    topic: str
    payload: bytes
    idempotency_key: str | None


Outcome: TypeAlias = Place | BrokerError
Write: TypeAlias = Callable[[Sequence[Draft]], Awaitable[Sequence[Outcome]]]
_Waiting: TypeAlias = tuple[Draft, asyncio.Future[Place]]


class Writer:
    """Have one write at a time done, in a task of its own, so that who cancels a publish cuts no connection.

    ``write`` stores drafts in their order and returns what became of each, or raises a ``BrokerError`` that all of
    them get. It has ``timeout`` seconds, and is cancelled then.
    """

    def __init__(self, write: Write, timeout: float) -> None:
        self._write = write
        self._timeout = timeout
        self._waiting: deque[_Waiting] = deque()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def put(self, draft: Draft) -> Place:
        """Store a draft and return its place. Raises ``BrokerError`` within the timeout. Cancelling is safe."""
        if self._closed:
            raise BrokerDown(f"{draft.topic!r} was published after this broker was closed")
        waiting: _Waiting = draft, asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        try:
            async with asyncio.timeout(self._timeout):
                return await waiting[1]
        except TimeoutError:
            what = f"no answer of the broker for {self._timeout} s about an event under {draft.topic!r}"
            if waiting in self._waiting:
                raise BrokerDown(f"{what}, which was not sent") from None
            raise OutcomeUnknown(what) from None
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)

    async def close(self) -> None:
        """Take no more, and wait for what is on its way. Twice is once."""
        self._closed = True
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            while self._waiting:
                taken = self._take()
                outcomes = await self._outcomes([draft for draft, _ in taken])
                for (_, future), outcome in zip(taken, outcomes, strict=True):
                    if future.done():
                        continue
                    if isinstance(outcome, BrokerError):
                        future.set_exception(outcome)
                    else:
                        future.set_result(outcome)
        finally:
            self._task = None

    def _take(self) -> list[_Waiting]:
        taken = [self._waiting.popleft()]
        size = len(taken[0][0].payload)
        while self._waiting and len(taken) < MOST and size < MOST_BYTES:
            taken.append(self._waiting.popleft())
            size += len(taken[-1][0].payload)
        return taken

    async def _outcomes(self, drafts: Sequence[Draft]) -> Sequence[Outcome]:
        error: BrokerError
        try:
            async with asyncio.timeout(self._timeout):
                return await self._write(drafts)
        except TimeoutError:
            error = OutcomeUnknown(f"no answer of the broker for {self._timeout} s")
        except BrokerError as failure:
            error = failure
        except Exception as failure:  # noqa: BLE001  # a defect, and nobody knows what it left
            error = OutcomeUnknown(f"publishing failed: {failure!r}")
            error.__cause__ = failure
        return [type(error)(*error.args).with_traceback(error.__traceback__) for _ in drafts]
