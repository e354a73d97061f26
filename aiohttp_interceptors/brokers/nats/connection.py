"""A connection to NATS that does nothing by itself, and ends with the first error."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias, cast

from ..._tasks import end, heeding
from ...exceptions import BrokerDown, BrokerError, BrokerRefused, OutcomeUnknown
from ..base import connect_within

try:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
except ImportError as _error:
    raise ImportError("a NatsBroker needs nats-py: pip install 'aiohttp-interceptors[nats]'") from _error

__all__ = ["AGAIN", "Connect", "Msg", "NatsSession", "NoStream", "Reply", "checked", "reply_of"]

Factory: TypeAlias = Callable[..., Awaitable[Client]]
Connect: TypeAlias = str | Sequence[str] | Factory
Reply: TypeAlias = dict[str, object]
HOSTS = 3  # calls of a factory in the time that there is, for its client may choose a server that holds still
AGAIN = 1.0  # seconds after which JetStream is asked again: without a leader it drops what it is asked
CLOSING = 1.0  # seconds that a server has to take leave
OLDEST = (2, 10)  # whose streams have metadata
PASSING = (408, 409, 429)  # of the codes of errors: late, in conflict with another just now, one of too many
DENIED = ("authorization", "authentication")
_closing: set[asyncio.Task[None]] = set()  # so that one that takes longer is not forgotten


class NoStream(BrokerDown):
    """No stream takes a message: it was surely not stored."""


class NatsSession:
    """Ask a server. Raises ``BrokerError`` alone. ``patience`` is the seconds after which a silent server is lost."""

    def __init__(self, patience: float) -> None:
        self.patience: float = patience
        self.on_loss: Callable[[], object] = lambda: None
        """Called when the connection is lost."""
        self.loss: str | None = None
        """Why it is lost, if it is."""
        self._client = Client()
        self._error: object = None
        self._inbox = ""
        self._numbers = itertools.count()
        self._pending: dict[str, tuple[str, asyncio.Future[Msg]]] = {}

    @classmethod
    async def open(cls, connect: Connect, patience: float, *, silence: float = 3600.0) -> NatsSession:
        """Connect. The server is pinged, so that one that is silent for ``silence`` seconds is lost when nobody asks.

        A consumer needs no pings, and in a slow network the answer to one would be late, behind its messages. The
        servers of a list are tried in any order, each with an equal share of the ``patience`` that is left.
        """
        if callable(connect):
            attempts: list[str | Factory] = [connect] * HOSTS
        else:  # one at a time, for the client itself gives up after the first that takes a connection and says nothing
            attempts = [*([connect] if isinstance(connect, str) else random.sample(connect, len(connect)))]
        clock = asyncio.get_running_loop().time
        deadline, failures = clock() + patience, dict[str, None]()
        for number, attempt in enumerate(attempts):
            session, share = cls(patience), max(deadline - clock(), 0.0) / (len(attempts) - number)
            try:
                await session._open(attempt, share, silence)
            except BrokerDown as error:
                failures[str(error)] = None
                if callable(connect) and not isinstance(error.__cause__, TimeoutError):
                    break
            else:
                return session
        raise BrokerDown("; ".join(failures))

    async def _open(self, connect: str | Factory, share: float, silence: float) -> None:
        """Connect to one server, or call a factory once. Closes what it has not connected."""
        try:
            connecting = self._connect(connect, share, silence)
            await connect_within(share, connecting, lambda _: self.close(), "connecting to NATS")
        except Exception as error:
            translated = self._translated(error, share)  # before closing brings errors of its own
            await self.close()
            raise translated from error
        except BaseException:
            await self.close()
            raise

    async def _connect(self, connect: str | Factory, share: float, silence: float) -> None:
        # The client's own second attempts would double what they repeat, and its buffers send what is long given up.
        options: dict[str, object] = {
            "allow_reconnect": False,
            "max_reconnect_attempts": 1,
            "reconnect_time_wait": 0,
            "connect_timeout": share,
            "ping_interval": silence / 3,
            "max_outstanding_pings": 2,
            "pending_size": 0,
            "error_cb": self._on_error,
            "closed_cb": self._on_closed,
        }
        if callable(connect):
            client = await connect(**options)
            if not isinstance(client, Client):
                raise BrokerRefused(f"connect() returned {client!r}, which is no nats.NATS")
            self._client = client
            if self.loss is not None:  # it came too late
                await client.close()
                raise BrokerDown(self.loss)
            if client.options["allow_reconnect"]:
                raise BrokerRefused("connect(**options) made a client without the options that it was called with")
        else:
            await self._client.connect([connect], **options)  # type: ignore[arg-type]  # each is of its type
        version = self._client.connected_server_version
        if (version.major, version.minor) < OLDEST:
            raise BrokerRefused(f"a NatsBroker needs nats-server {OLDEST[0]}.{OLDEST[1]} or later, not {version}")
        self._inbox = self._client.new_inbox()
        await self._client.subscribe(f"{self._inbox}.*", cb=self._on_reply, pending_bytes_limit=0)

    @property
    def max_payload(self) -> int:
        """How many bytes the server takes in a message, with its headers."""
        return self._client.max_payload

    async def ask(self, call: str, request: Reply | None = None) -> Reply:
        """Ask JetStream for something that may be asked several times, and return its reply, which may be an error.

        It is asked again each second while it says nothing.
        """
        text = b"" if request is None else json.dumps(request).encode()
        asked: list[asyncio.Future[Msg]] = []
        try:
            async with asyncio.timeout(self.patience):
                while True:
                    asked.append(await self.send(f"$JS.API.{call}", text))
                    done, _ = await asyncio.wait(asked, timeout=AGAIN, return_when=asyncio.FIRST_COMPLETED)
                    if done:
                        return reply_of(done.pop().result())
        except TimeoutError:
            raise BrokerDown(f"no answer of JetStream to {call} for {self.patience} s") from None
        except OutcomeUnknown as error:
            raise BrokerDown(str(error)) from error
        finally:
            for future in asked:
                future.cancel()

    async def send(self, subject: str, payload: bytes, headers: dict[str, str] | None = None) -> asyncio.Future[Msg]:
        """Send a message, and return a future of what is replied, or ``OutcomeUnknown``.

        Waits only if a thousand others are still on their way to a server that takes nothing.
        """
        if self.loss is not None:
            raise BrokerDown(self.loss)
        token = str(next(self._numbers))
        future: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda _: self._pending.pop(token, None))
        self._pending[token] = subject, future
        try:
            await heeding(self._client.publish(subject, payload, f"{self._inbox}.{token}", headers))
        except asyncio.CancelledError:
            future.cancel()
            raise
        except Exception as error:
            future.cancel()
            raise BrokerDown(f"not sent: {type(error).__name__}: {error}") from error
        return future

    async def tell(self, subject: str, request: Reply, reply: str = "") -> None:
        """Send something that needs no reply, or has it sent elsewhere."""
        if self.loss is not None:
            raise BrokerDown(self.loss)
        try:
            async with asyncio.timeout(self.patience):
                await heeding(self._client.publish(subject, json.dumps(request).encode(), reply))
        except Exception as error:
            raise BrokerDown(f"not sent: {type(error).__name__}: {error}") from error

    async def listen(self, take: Callable[[Msg], Awaitable[None]]) -> str:
        """Have what comes to a new inbox taken, and return that."""
        inbox = self._client.new_inbox()
        try:
            await self._client.subscribe(inbox, cb=take, pending_msgs_limit=0, pending_bytes_limit=0)
        except Exception as error:
            raise BrokerDown(f"not subscribed: {type(error).__name__}: {error}") from error
        return inbox

    async def close(self) -> None:
        """Close the connection; that of a server which does not take it is cut a second later. Idempotent."""
        self.loss = self.loss or "the connection is closed"
        closing = asyncio.create_task(self._client.close())
        _closing.add(closing)
        closing.add_done_callback(_closed)
        await asyncio.wait([closing], timeout=CLOSING)
        if not closing.done():  # it waits until all has been sent, and goes on with that when it is cancelled once
            self._cut()
            await end(closing, CLOSING, "closing a connection to NATS")
            await self._on_closed()

    def _cut(self) -> None:
        writer: object = getattr(getattr(self._client, "_transport", None), "_io_writer", None)
        if isinstance(writer, asyncio.StreamWriter):
            writer.transport.abort()

    def _translated(self, error: Exception, share: float) -> BrokerError:
        """Return what it means that there is no connection."""
        if isinstance(error, BrokerError):
            return error
        reason = f"{self._error or error!r}" if str(error) else f"no answer for {share:.3g} s"
        denied = any(word in f"{error} {self._error}".lower() for word in DENIED)
        if denied or isinstance(error, TypeError | ValueError):
            return BrokerRefused(f"no connection to NATS is possible: {reason}")
        return BrokerDown(f"no connection to NATS: {reason}")

    async def _on_reply(self, message: Msg) -> None:
        waiting = self._pending.get(message.subject[len(self._inbox) + 1 :])
        if waiting is not None and not waiting[1].done():
            waiting[1].set_result(message)

    async def _on_error(self, error: Exception) -> None:
        self._error = error
        text = str(error).lower()
        if "permissions violation for publish" in text:
            for subject, future in list(self._pending.values()):
                if f'"{subject.lower()}"' in text and not future.done():
                    future.set_exception(BrokerRefused(f"NATS refused: {error}"))
                    future.exception()

    async def _on_closed(self) -> None:
        self.loss = self.loss or f"the connection to NATS was lost: {self._error or 'the server closed it'}"
        for _, future in list(self._pending.values()):
            if not future.done():
                future.set_exception(OutcomeUnknown(self.loss))
                future.exception()  # who waits for it has gone, perhaps
        self.on_loss()


def _closed(closing: asyncio.Task[None]) -> None:
    _closing.discard(closing)
    if not closing.cancelled():
        closing.exception()  # of a connection that nobody needs any more


def reply_of(message: Msg) -> Reply:
    """Return what JetStream replied. Raises ``NoStream``."""
    if not message.data:
        raise NoStream("no JetStream answers: it is not enabled, has no leader now, or has no such stream")
    return cast("Reply", json.loads(message.data))


def checked(reply: Reply) -> Reply:
    """Return a reply that is no error. Raises ``BrokerDown`` for one that may pass, else ``BrokerRefused``."""
    if "error" not in reply:
        return reply
    error = cast("dict[str, object]", reply["error"])
    code = cast("int", error.get("code", 500))  # as in HTTP
    kind = BrokerDown if code >= 500 or code in PASSING else BrokerRefused  # noqa: PLR2004
    raise kind(f"JetStream refused: {error.get('description')} (error {error.get('err_code')})")
