"""Hubs of several processes joined by a stream of NATS JetStream."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import NamedTuple, cast

from ..._checks import check_count, check_seconds
from ...exceptions import BrokerDown, BrokerError, BrokerRefused, OutcomeUnknown
from ...hub.broker import IDEMPOTENCY_WINDOW, CaughtUp, Entry, LogPosition, Subscribed, TailItem, Trimmed, Truncated
from ..base import Draft, Outcome, Writer
from .connection import Connect, Msg, NatsSession, NoStream, checked, reply_of
from .log import Confirmation, Limits, Mark, NatsStream, message_id, subject_of, topic_of
from .tail import Consumer

__all__ = ["NatsBroker"]


NANOSECONDS = 10**9
HEADERS = 128  # bytes, at most, of those that we send
TOKENS = 9  # of a message's reply, where the server has no domain


class NatsBroker:
    """Join the Hubs that have brokers with the same stream. A ``Broker``.

    ``connect`` is a URL (``nats://``, ``tls://``, ``ws://``) or a list of those of a cluster; or an async function that
    is called with the options of ``nats.connect`` that matter here and returns a new client, which is ours and closed:
    ``functools.partial(nats.connect, "tls://nats.example", user_credentials="hub.creds")``. It is called anew after
    each loss.

    A stream that is missing is made; one that is there is given our limits: the latest ``max_records``, for ``max_age``
    seconds (``None``: for ever; else two minutes at least, for it is as long that idempotency keys are known), and as
    many ``replicas`` (``None``: what it has; 1 for a new one). What changes is logged, and so is what the server
    refuses to change. It has the subjects below its name and no others. A publish takes ``publish_timeout`` seconds at
    most, and a server that says nothing for ``silence`` seconds is lost. Servers of a list share the time to connect.

    It needs nats-server 2.10. A payload with its headers is no larger than the server's ``max_payload``, 1 MiB unless
    configured. What is acknowledged outlives the server's process; with ``sync_interval: always`` also its machine.
    """

    confirms: float = 2.0
    """Seconds at most between two ``CaughtUp`` while the server answers."""

    def __init__(
        self,
        connect: Connect,
        *,
        stream: str = "events",
        max_records: int = 100_000,
        max_age: float | None = 86_400.0,
        publish_timeout: float = 5.0,
        silence: float = 10.0,
        replicas: int | None = None,
    ) -> None:
        self._connect = _checked_connect(connect)
        if not isinstance(stream, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", stream, re.ASCII):
            raise ValueError(f"stream is 1 to 64 letters, digits, - and _, not {stream!r}")
        check_count("max_records", max_records, 1)
        check_seconds("max_age", max_age, "for ever", least=IDEMPOTENCY_WINDOW)
        check_seconds("publish_timeout", publish_timeout, "")
        check_seconds("silence", silence, "")
        if replicas is not None:
            check_count("replicas", replicas, 1)
        self._stream = NatsStream(stream, Limits(max_records, max_age), replicas)
        self._publish_timeout = publish_timeout
        self._silence = silence
        self._writer = Writer(self._write, self._publish_timeout)
        self._writing: NatsSession | None = None

    async def publish(
        self, topic: str, payload: bytes, *, idempotency_key: str | None = None, connection: object = None
    ) -> LogPosition:
        """Append an entry, as every ``Broker`` does. A key that has no UTF-8 is a ``ValueError``."""
        if connection is not None:
            raise TypeError("a NatsBroker writes in nobody's transaction; connection is for PostgreSQL")
        key = None if idempotency_key is None else message_id(idempotency_key)
        return await self._writer.put(Draft(topic, payload, key))

    async def close(self) -> None:
        """Give back all connections, as every ``Broker`` does. Twice is once."""
        await self._writer.close()
        await self._drop()

    async def tail(self, after: LogPosition | None) -> AsyncGenerator[TailItem, None]:
        """Follow the entries after a place, as every ``Broker`` does."""
        session = await NatsSession.open(self._connect, self._silence)
        consumer = Consumer(session, self._stream.name)
        try:
            log = await self._stream.survey(session, after)
            position = after or log.start
            yield Subscribed(position)
            for item in log.items(position, []):
                position = _place_after(position, item)
                yield item
            await consumer.open(position.offset)
            told = False
            clock, confirmation = log.clock - _now(), Confirmation(position.offset, _now())
            while True:
                if not (told or consumer.pending):
                    told = True
                    yield CaughtUp()
                messages = await consumer.messages()
                if messages:
                    entries = self._entries(consumer, messages, _now() + clock)
                    for item in log.items(position, entries):
                        position = _place_after(position, item)
                        yield item
                if confirmation.due(_now()) and not consumer.pending:
                    asked = _now()
                    found = await self._stream.look(session, log)
                    clock = found.clock - _now()
                    confirmation.answered(found.last, consumer.silences, asked, _now())
                if confirmation.complete(position.offset, consumer.silences, _now()):
                    yield CaughtUp()
        finally:
            await consumer.close()
            await session.close()

    def _entries(self, consumer: Consumer, messages: Sequence[Msg], now: float) -> list[Entry]:
        """Return the entries of messages. Raises ``BrokerDown`` when some did not come that the server has sent."""
        name, entries, tokens = self._stream.name, [], [""]
        for message in messages:
            # $JS.ACK.stream.consumer.delivered.position.count.time.pending, and two more before and one behind where
            # the server has a domain.
            tokens = message.reply.split(".")
            if len(tokens) > TOKENS:
                del tokens[2:4]
            age = now - int(tokens[7]) / NANOSECONDS
            entries.append(
                Entry(int(tokens[5]), topic_of(name, message.subject), message.data, age if age > 0 else 0.0)
            )
        offset, count, time, consumer.pending = map(int, tokens[5:TOKENS])
        if count != consumer.count:
            raise BrokerDown(f"{consumer.count} messages came of {count} that NATS sent")
        self._stream.marks.give(Mark(offset, time))
        return entries

    async def _write(self, drafts: Sequence[Draft]) -> Sequence[Outcome]:
        try:
            outcomes = await self._send(drafts)
            again = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, NoStream)]
            if again:  # the stream was deleted, and is made anew
                await self._drop()
                for number, outcome in zip(again, await self._send([drafts[n] for n in again]), strict=True):
                    outcomes[number] = outcome
        except BaseException:
            await self._drop()
            raise
        if any(isinstance(outcome, OutcomeUnknown) for outcome in outcomes):
            await self._drop()
        return outcomes

    async def _send(self, drafts: Sequence[Draft]) -> list[Outcome]:
        """Send drafts, one after the other, then wait for what becomes of them."""
        session, marks = await self._session(), self._stream.marks
        top = marks.top
        sent = [await self._send_one(session, draft) for draft in drafts]
        futures = [future for future in sent if isinstance(future, asyncio.Future)]
        if futures:
            await asyncio.wait(futures, timeout=self._publish_timeout * 0.9)
        answers = [_answer(one) for one in sent]
        stored = [(a.offset, n) for n, a in enumerate(answers) if isinstance(a, Stored) and not a.repeated]
        if stored:
            if min(stored)[0] <= top:  # as only another stream, or one that lost something, would have it
                await self._stream.survey(session)
            offset, number = max(stored)
            marks.acknowledge(Mark(offset, (self._subject(drafts[number]), drafts[number].payload)))
        log = self._stream.log
        return [log.position(answer.offset) if isinstance(answer, Stored) else answer for answer in answers]

    async def _send_one(self, session: NatsSession, draft: Draft) -> asyncio.Future[Msg] | BrokerError:
        size = len(draft.payload) + (HEADERS if draft.idempotency_key else 0)
        if size > session.max_payload:
            return BrokerRefused(
                f"an event under {draft.topic!r} is {size} bytes with its headers, and this server takes"
                f" {session.max_payload}: set max_payload in the configuration of nats-server, such as max_payload: 8MB"
            )
        headers = {"Nats-Msg-Id": draft.idempotency_key} if draft.idempotency_key else None
        try:
            return await session.send(self._subject(draft), draft.payload, headers)
        except BrokerError as error:
            return error

    def _subject(self, draft: Draft) -> str:
        return subject_of(self._stream.name, draft.topic)

    async def _session(self) -> NatsSession:
        """Return a connection to publish by, to a stream that has what we know of it."""
        if self._writing is not None and self._writing.loss is not None:
            await self._drop()
        if self._writing is None:
            patience = self._publish_timeout / 2
            session = await NatsSession.open(self._connect, patience, silence=self._silence)
            try:
                async with asyncio.timeout(patience / 2):
                    await self._stream.survey(session)
                self._writing = session
            except TimeoutError:
                raise BrokerDown(f"JetStream did not answer for {patience / 2} s, and nothing was sent") from None
            finally:
                if self._writing is None:
                    await session.close()
        return self._writing

    async def _drop(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            await writing.close()


class Stored(NamedTuple):
    """What an acknowledgement says."""

    offset: int
    repeated: bool


def _now() -> float:
    return asyncio.get_running_loop().time()


def _place_after(position: LogPosition, item: TailItem) -> LogPosition:
    if isinstance(item, Truncated):
        return item.position
    return LogPosition(
        position.epoch, item.through if isinstance(item, Trimmed) else cast("Sequence[Entry]", item)[-1].offset
    )


def _answer(sent: asyncio.Future[Msg] | BrokerError) -> Stored | BrokerError:
    """Return what JetStream says of a message."""
    if isinstance(sent, BrokerError):
        return sent
    if not sent.done():
        sent.cancel()
        return OutcomeUnknown("NATS did not acknowledge it in time")
    try:
        reply = checked(reply_of(sent.result()))
    except BrokerError as error:
        return error
    return Stored(cast("int", reply["seq"]), "duplicate" in reply)


def _checked_connect(connect: Connect) -> Connect:
    if callable(connect):
        return connect
    urls = [connect] if isinstance(connect, str) else connect
    if not isinstance(urls, Iterable) or not all(isinstance(url, str) for url in urls):
        raise TypeError(
            f"connect is a URL like nats://localhost:4222, a list of them, or an async function, not {connect!r}"
        )
    if not urls or not all(re.match(r"(nats|tls|ws|wss)://[^/]", url) for url in urls):
        raise ValueError(f"connect is a URL like nats://localhost:4222, or a list of them, not {connect!r}")
    return connect
