"""The connection to a NATS server: connect, publish, send requests to JetStream, translate errors.

A ``NatsConnection`` does not reconnect. If it did, nats-py would send buffered messages whose ``publish`` has failed.
The broker opens another connection, and decides what to repeat.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias, cast

from ..._tasks import cancel_and_wait, cancellable
from ...exceptions import BrokerDown, BrokerError, BrokerRefused, OutcomeUnknown
from ..base import connect_within

try:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
except ImportError as _error:
    raise ImportError("a NatsBroker needs nats-py: pip install 'aiohttp-interceptors[nats]'") from _error

__all__ = [
    "RETRY_INTERVAL",
    "Connect",
    "JsonObject",
    "Msg",
    "NatsConnection",
    "NoStreamResponse",
    "check_response",
    "decode_response",
]


RETRY_INTERVAL = 1.0  # seconds until a request to JetStream is repeated: without a leader, the servers drop it
FACTORY_ATTEMPTS = 3  # calls of a factory within the connect timeout: its client may choose a server that is frozen
CLOSE_TIMEOUT = 1.0  # seconds until a connection that does not close is aborted
NO_PINGS = 3600.0  # seconds: in effect no pings, which nats-py cannot turn off
MIN_SERVER_VERSION = (2, 10)  # the first one whose streams have metadata

# Error codes of JetStream, as in HTTP: timeout, conflict with a concurrent change, too many requests.
_TRANSIENT_CODES = (408, 409, 429)
_SERVER_ERROR = 500
_AUTHORIZATION_ERRORS = ("authorization", "authentication")

Factory: TypeAlias = Callable[..., Awaitable[Client]]
Connect: TypeAlias = str | Sequence[str] | Factory
JsonObject: TypeAlias = dict[str, object]

_closing: set[asyncio.Task[None]] = set()  # strong references: the event loop holds only weak ones


class NoStreamResponse(BrokerDown):
    """No stream accepted a message, so it was certainly not stored."""


class NatsConnection:
    """A connection to a NATS server. All methods raise only ``BrokerError``.

    Args:
        timeout: Seconds until a request that is not answered fails.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout: float = timeout
        self.on_lost: Callable[[], object] = lambda: None
        """Called when the connection is lost."""
        self.lost: str | None = None
        """Why the connection is lost, or ``None``."""
        self._client = Client()
        self._error: object = None  # the last one that nats-py reported
        self._inbox = ""
        self._tokens = itertools.count()
        self._pending: dict[str, tuple[str, asyncio.Future[Msg]]] = {}  # subject and reply by token

    @classmethod
    async def open(cls, connect: Connect, timeout: float, *, ping_timeout: float = NO_PINGS) -> NatsConnection:  # noqa: ASYNC109
        """Connect within ``timeout`` seconds, which is also the timeout of each request.

        The servers of a list are tried in random order, each with an equal share of the time that is left. nats-py
        gives up after the first one that accepts the connection and does not answer.

        A server that does not answer pings for ``ping_timeout`` seconds is lost. A tail needs no pings, because it has
        the heartbeats of its consumer. In a slow network a pong would be late, behind the messages.
        """
        attempts: list[str | Factory]
        if callable(connect):
            attempts = [connect] * FACTORY_ATTEMPTS
        else:
            attempts = [*([connect] if isinstance(connect, str) else random.sample(connect, len(connect)))]
        clock = asyncio.get_running_loop().time
        deadline, failures = clock() + timeout, dict[str, None]()
        for number, attempt in enumerate(attempts):
            connection = cls(timeout)
            attempt_timeout = max(deadline - clock(), 0.0) / (len(attempts) - number)
            try:
                await connection._open(attempt, attempt_timeout, ping_timeout)
            except BrokerDown as error:
                failures[str(error)] = None
                if callable(connect) and not isinstance(error.__cause__, TimeoutError):
                    break
            else:
                return connection
        raise BrokerDown("; ".join(failures))

    async def _open(self, connect: str | Factory, connect_timeout: float, ping_timeout: float) -> None:
        """Connect to one server, or call a factory once."""
        try:
            connecting = self._connect(connect, connect_timeout, ping_timeout)
            await connect_within(connect_timeout, connecting, lambda _: self.close(), "connecting to NATS")
        except Exception as error:
            translated = self._translate(error, connect_timeout)  # before close() reports more errors
            await self.close()
            raise translated from error
        except BaseException:
            await self.close()
            raise

    async def _connect(self, connect: str | Factory, connect_timeout: float, ping_timeout: float) -> None:
        options: dict[str, object] = {
            "allow_reconnect": False,
            "max_reconnect_attempts": 1,
            "reconnect_time_wait": 0,
            "connect_timeout": connect_timeout,
            "ping_interval": ping_timeout / 3,
            "max_outstanding_pings": 2,
            "pending_size": 0,
            "error_cb": self._on_error,
            "closed_cb": self._on_closed,
        }
        if callable(connect):
            client = await connect(**options)
            if not isinstance(client, Client):
                raise BrokerRefused(f"connect() returned {client!r}, which is not a nats.NATS client")
            self._client = client
            if self.lost is not None:  # closed after the timeout, while the factory was connecting
                await client.close()
                raise BrokerDown(self.lost)
            if client.options["allow_reconnect"]:
                raise BrokerRefused(
                    "connect(**options) returned a client without the options: pass them to nats.connect"
                )
        else:
            await self._client.connect([connect], **options)  # type: ignore[arg-type]  # each is of its type
        version = self._client.connected_server_version
        if (version.major, version.minor) < MIN_SERVER_VERSION:
            oldest = ".".join(map(str, MIN_SERVER_VERSION))
            raise BrokerRefused(f"a NatsBroker needs nats-server {oldest} or later, not {version}")
        self._inbox = self._client.new_inbox()
        await self._client.subscribe(f"{self._inbox}.*", cb=self._on_reply, pending_bytes_limit=0)

    @property
    def max_payload(self) -> int:
        """The maximum number of bytes of a message that the server accepts, including its headers."""
        return self._client.max_payload

    async def request(self, api: str, body: JsonObject | None = None) -> JsonObject:
        """Send an idempotent request to the JetStream API and return the response, which may be an error.

        The request is repeated every ``RETRY_INTERVAL`` seconds until the first response.
        """
        payload = b"" if body is None else json.dumps(body).encode()
        replies: list[asyncio.Future[Msg]] = []
        try:
            async with asyncio.timeout(self.timeout):
                while True:
                    replies.append(await self.publish(f"$JS.API.{api}", payload))
                    done, _ = await asyncio.wait(replies, timeout=RETRY_INTERVAL, return_when=asyncio.FIRST_COMPLETED)
                    if done:
                        return decode_response(done.pop().result())
        except TimeoutError:
            raise BrokerDown(f"JetStream has not answered {api} for {self.timeout} s") from None
        except OutcomeUnknown as error:
            raise BrokerDown(str(error)) from error
        finally:
            for reply in replies:
                reply.cancel()

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str] | None = None) -> asyncio.Future[Msg]:
        """Publish a message and return a future of its reply, or of ``OutcomeUnknown`` if the connection is lost.

        Blocks only if the server does not read and nats-py's queue of flushes is full.
        """
        if self.lost is not None:
            raise BrokerDown(self.lost)
        token = str(next(self._tokens))
        future: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda _: self._pending.pop(token, None))
        self._pending[token] = subject, future
        try:
            await cancellable(self._client.publish(subject, payload, f"{self._inbox}.{token}", headers))
        except asyncio.CancelledError:
            future.cancel()
            raise
        except Exception as error:
            future.cancel()
            raise BrokerDown(f"not sent: {type(error).__name__}: {error}") from error
        return future

    async def send(self, subject: str, body: JsonObject, reply: str = "") -> None:
        """Publish a request without waiting for a reply, which goes to the inbox ``reply`` if there is one."""
        if self.lost is not None:
            raise BrokerDown(self.lost)
        try:
            async with asyncio.timeout(self.timeout):
                await cancellable(self._client.publish(subject, json.dumps(body).encode(), reply))
        except Exception as error:
            raise BrokerDown(f"not sent: {type(error).__name__}: {error}") from error

    async def subscribe(self, callback: Callable[[Msg], Awaitable[None]]) -> str:
        """Call a function with each message to a new inbox, and return the inbox."""
        inbox = self._client.new_inbox()
        try:
            await self._client.subscribe(inbox, cb=callback, pending_msgs_limit=0, pending_bytes_limit=0)
        except Exception as error:
            raise BrokerDown(f"not subscribed: {type(error).__name__}: {error}") from error
        return inbox

    async def close(self) -> None:
        """Close the connection, and abort it if that takes longer than ``CLOSE_TIMEOUT``. Idempotent."""
        self.lost = self.lost or "the connection is closed"
        closing = asyncio.create_task(self._client.close())
        _closing.add(closing)
        closing.add_done_callback(_on_close_done)
        await asyncio.wait([closing], timeout=CLOSE_TIMEOUT)
        if not closing.done():  # nats-py waits until all is flushed, and continues when it is cancelled once
            self._abort()
            await cancel_and_wait(closing, CLOSE_TIMEOUT, "closing a connection to NATS")
            await self._on_closed()

    def _abort(self) -> None:
        writer: object = getattr(getattr(self._client, "_transport", None), "_io_writer", None)
        if isinstance(writer, asyncio.StreamWriter):
            writer.transport.abort()

    def _translate(self, error: Exception, connect_timeout: float) -> BrokerError:
        """Return the ``BrokerError`` for a failed attempt to connect."""
        if isinstance(error, BrokerError):
            return error
        reason = f"{self._error or error!r}" if str(error) else f"no answer for {connect_timeout:.3g} s"
        denied = any(word in f"{error} {self._error}".lower() for word in _AUTHORIZATION_ERRORS)
        if denied or isinstance(error, TypeError | ValueError):
            return BrokerRefused(f"cannot connect to NATS: {reason}")
        return BrokerDown(f"no connection to NATS: {reason}")

    async def _on_reply(self, message: Msg) -> None:
        pending = self._pending.get(message.subject[len(self._inbox) + 1 :])
        if pending is not None and not pending[1].done():
            pending[1].set_result(message)

    async def _on_error(self, error: Exception) -> None:
        self._error = error
        text = str(error).lower()
        if "permissions violation for publish" in text:
            for subject, future in list(self._pending.values()):
                if f'"{subject.lower()}"' in text and not future.done():
                    _fail(future, BrokerRefused(f"NATS refused: {error}"))

    async def _on_closed(self) -> None:
        self.lost = self.lost or f"the connection to NATS was lost: {self._error or 'the server closed it'}"
        for _, future in list(self._pending.values()):
            if not future.done():
                _fail(future, OutcomeUnknown(self.lost))
        self.on_lost()


def _fail(future: asyncio.Future[Msg], error: BrokerError) -> None:
    future.set_exception(error)
    future.exception()  # so that Python does not warn if its caller was cancelled


def _on_close_done(closing: asyncio.Task[None]) -> None:
    _closing.discard(closing)
    if not closing.cancelled():
        closing.exception()  # so that Python does not warn: an error of a closed connection does not matter


def decode_response(message: Msg) -> JsonObject:
    """Decode a response of JetStream. Raises ``NoStreamResponse`` if nothing responded."""
    if not message.data:
        raise NoStreamResponse(
            "no response from JetStream: it is not enabled, it has no leader now, or there is no such stream"
        )
    return cast("JsonObject", json.loads(message.data))


def check_response(response: JsonObject) -> JsonObject:
    """Return a response, or raise its error: ``BrokerDown`` if a retry may succeed, ``BrokerRefused`` otherwise."""
    if "error" not in response:
        return response
    error = cast("JsonObject", response["error"])
    code = cast("int", error.get("code", _SERVER_ERROR))
    kind = BrokerDown if code >= _SERVER_ERROR or code in _TRANSIENT_CODES else BrokerRefused
    raise kind(f"JetStream refused: {error.get('description')} (error {error.get('err_code')})")
