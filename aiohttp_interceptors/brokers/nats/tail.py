"""What is read of a stream of JetStream, from a position of our own."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import cast
from uuid import uuid4

from ...exceptions import BrokerDown, BrokerError
from .connection import Msg, NatsSession, Reply, checked

__all__ = ["Consumer"]


MOST = 500  # messages that we ask for at once, and
MOST_BYTES = 2**20  # of them: what is under way at most
CLOSING = 1.0  # seconds that the server has to take the consumer's end
LASTING = 6  # times the patience for which the server is asked at once
HEARTBEAT = 1.0  # seconds, at most, in which the server says that there is nothing


class Consumer:
    """What follows a position in a stream, in order. We ask for so many at a time, so that nobody is flooded."""

    def __init__(self, session: NatsSession, stream: str) -> None:
        self._session = session
        self._stream = stream
        self._name = ""
        self._inbox = ""
        self._came: deque[Msg] = deque()
        self._news = asyncio.Event()
        self._asked = 0  # messages that the server still has to send
        self._huge = False  # whether the next one is more than we ask for at once
        self.count: int = 0
        """How many messages came."""
        self.pending: int = 0
        """How many the server has had after them, when it sent the last of them."""
        self.silences: int = 0
        """How often the server said that there is nothing more."""

    async def open(self, after: int) -> None:
        """Have the server make it."""
        session = self._session
        session.on_loss = self._news.set
        self._inbox = await session.listen(self._take)
        name = uuid4().hex  # so that to ask again makes no second one
        config = {
            "name": name,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": after + 1,
            "ack_policy": "none",
            "inactive_threshold": _nanoseconds(max(session.patience, 5.0)),
            "mem_storage": True,
            "num_replicas": 1,
        }
        request: Reply = {"stream_name": self._stream, "config": config}
        made = checked(await session.ask(f"CONSUMER.CREATE.{self._stream}.{name}", request))
        self._name, self.pending = name, cast("int", made["num_pending"])

    async def messages(self) -> list[Msg]:
        """Wait for news and return them: what came, or nothing when the server said that there is nothing."""
        if not self._asked:
            await self._ask()
        session = self._session
        try:
            async with asyncio.timeout(session.patience):
                await self._news.wait()
        except TimeoutError:
            raise BrokerDown(f"nothing from NATS for {session.patience} s, not even a heartbeat") from None
        if session.loss is not None:
            raise BrokerDown(session.loss)
        self._news.clear()
        messages = []
        while self._came:
            message = self._came.popleft()
            if message.reply:
                messages.append(message)
            else:
                self._heed(message)
        self._asked -= min(len(messages), self._asked)
        self.count += len(messages)
        return messages

    async def _take(self, message: Msg) -> None:
        self._came.append(message)
        self._news.set()

    async def _ask(self) -> None:
        patience = self._session.patience
        heartbeat = _nanoseconds(min(patience / 3, HEARTBEAT))
        request: Reply = {"expires": _nanoseconds(LASTING * patience), "idle_heartbeat": heartbeat}
        request |= {"batch": 1} if self._huge else {"batch": MOST, "max_bytes": MOST_BYTES}
        self._asked, self._huge = (1 if self._huge else MOST), False
        await self._session.tell(f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._name}", request, self._inbox)

    def _heed(self, status: Msg) -> None:
        """Heed what the server says of what we asked for. Raises ``BrokerDown`` when the consumer is no more."""
        headers = status.headers or {}
        code, text = headers.get("Status", ""), headers.get("Description", "")
        if code == "100":
            self.pending = 0
            self.silences += 1
        elif code in {"404", "408"} or (code == "409" and ("MaxBytes" in text or "Completed" in text)):
            self._huge = "MaxBytes" in text
            self._asked = 0
        else:
            raise BrokerDown(f"the consumer of stream {self._stream} is lost: {code} {text}")

    async def close(self) -> None:
        """Have the server take it down. Raises nothing."""
        if self._name:
            with suppress(BrokerError, TimeoutError):
                async with asyncio.timeout(CLOSING):
                    await self._session.tell(f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._name}", {})


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 10**9)
