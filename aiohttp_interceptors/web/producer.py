"""The application's function that produces a stream's events.

A ``Producer`` calls it once, ends the stream if it raises, and waits for it after the stream has ended. An
``EarlyProducer`` calls it before the response headers are sent, so that it can still refuse the request.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from typing import Any, ParamSpec, Protocol, TypeAlias

from .._checks import unwrap_partial
from .._logging import log
from ..channel import CloseReason, EventChannel
from ..exceptions import EXIT_EXCEPTIONS, ChannelClosed
from ..sse import Event
from .context import RequestContext
from .settings import ChannelSettings, OnClose

__all__ = ["EarlyProducer", "EarlyReady", "ProducedStream", "Producer", "StreamReady", "function_name"]


StreamReady: TypeAlias = Callable[[EventChannel, RequestContext], object]

P = ParamSpec("P")

# Seconds that a producer has to clean up after it observed the end of its stream, and again after it was cancelled.
# Cleaning up may involve a database. Until the producer returns, the chain does not leave.
CLEANUP_TIMEOUT = 5.0


class ProducedStream(Protocol):
    """The part of a stream that its producer uses."""

    @property
    def reason(self) -> CloseReason | None:
        """Why the stream ended; ``None`` while it is open."""

    @property
    def closed(self) -> bool:
        """Whether the stream accepts no more events."""

    @property
    def end_observed(self) -> bool:
        """Whether the producer has observed that the stream ended, for example by a ``put`` that returned false."""

    def producer_failed(self) -> None:
        """End the stream, after the events that it has, because the producer raised."""


class _Interrupts:
    """Futures that shorten the wait for a producer."""

    __slots__ = ("aborted", "cancelled")

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.aborted: asyncio.Future[None] = loop.create_future()
        self.cancelled: asyncio.Future[None] = loop.create_future()


class Producer:
    """Calls a producing function. What that raises ends the stream."""

    __slots__ = ("_context", "_interrupts", "_stream", "_task", "error", "name")

    def __init__(self, stream: ProducedStream, context: RequestContext, name: str = "") -> None:
        self._stream = stream
        self._context = context
        self.name: str = name
        """Name in the log; the function's own name unless given."""
        self.error: BaseException | None = None
        """What the function raised, if it did."""
        self._task: asyncio.Future[Any] | None = None  # while the function is a coroutine
        self._interrupts: _Interrupts | None = None  # while it is awaited, or from abort() on

    @property
    def failure(self) -> Exception | None:
        """The exception to raise in the chain: ``error``, or a ``RuntimeError`` caused by a ``BaseException``."""
        error = self.error
        if error is None or isinstance(error, (Exception, *EXIT_EXCEPTIONS)):
            return error if isinstance(error, Exception) else None
        failure = RuntimeError(f"the producer {self.name} raised {error!r}, which is not an Exception")
        failure.__cause__ = error
        return failure

    def attach(self, stream: ProducedStream) -> None:
        """Continue for another stream, which takes the place of an ``EarlyProducer``."""
        self._stream = stream
        if self.error is not None:  # it failed while the headers were sent
            stream.producer_failed()

    def settle(self) -> None:
        """Handle the result of a function that has ended, without waiting for the event loop to report it."""
        if self._task is not None and self._task.done() and self._task.remove_done_callback(self._on_done):
            self._on_done(self._task)

    def start(self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call the function. A task is made only if the result is awaitable."""
        self.name = self.name or function_name(function)
        try:
            result = function(*args, **kwargs)
        except EXIT_EXCEPTIONS:
            raise
        except ChannelClosed as error:
            self._channel_closed(error)
            return
        except BaseException as error:  # noqa: BLE001  # any exception ends the stream, and is raised in the chain
            self.fail(error)
            return
        if inspect.isawaitable(result):
            self._task = asyncio.ensure_future(result)
            self._task.add_done_callback(self._on_done)
        elif isinstance(result, AsyncGenerator | Generator):
            self.fail(TypeError(f"{self.name} returned {result!r}; decorate a generator function with @event_stream"))

    def fail(self, error: BaseException) -> None:
        """End the stream because of an exception. Only the first one is kept; others are logged."""
        if self.error is None:
            self.error = error
            self._stream.producer_failed()
        else:
            self.log(error)

    def log(self, error: BaseException) -> None:
        """Log an exception that is not raised to aiohttp, which would log it."""
        log.exception(
            "stream_producer_failed",
            producer=self.name,
            path=self._context.request.path,
            execution_id=self._context.execution_id,
            exc_info=error,
        )

    async def finish(self, on_close: OnClose | None, grace: float) -> None:
        """Call ``on_close`` with the reason, and wait until the producer has returned.

        A producer that has observed the end of the stream is left to clean up. Any other has ``grace`` seconds to
        observe it with its next ``put``, and is then cancelled. Completes even while being cancelled, and raises the
        cancellation afterwards.
        """
        task = self._running_task()
        if task is not None and not grace and not self._end_observed():
            task.cancel()
        closing = self._call_on_close(on_close)
        if closing is not None or task is not None:
            await _run_to_completion(self._wait(closing, grace))

    def cancel(self) -> None:
        """End the grace period of ``finish``: cancel the producer now unless it has observed the end."""
        if self._interrupts is not None and not self._interrupts.cancelled.done():
            self._interrupts.cancelled.set_result(None)

    def abort(self) -> None:
        """Cancel the producer, and let ``finish`` return without waiting for it."""
        if self._task is not None:
            self._task.cancel()
        if self._interrupts is None:
            self._interrupts = _Interrupts()
        if not self._interrupts.aborted.done():
            self._interrupts.aborted.set_result(None)

    def _running_task(self) -> asyncio.Future[Any] | None:
        return None if self._task is None or self._task.done() else self._task

    def _end_observed(self) -> bool:
        return self._stream.end_observed or self._stream.reason is CloseReason.CLOSED

    def _on_done(self, task: asyncio.Future[object]) -> None:
        error: BaseException | None
        try:
            error = task.exception()
        except asyncio.CancelledError as cancelled:
            if self._stream.reason is not None:
                return  # cancelled because the stream has ended
            error = cancelled  # the producer awaited something that was cancelled
        if isinstance(error, ChannelClosed):
            self._channel_closed(error)
        elif error is not None:
            self.fail(error)

    def _channel_closed(self, error: ChannelClosed) -> None:
        """Handle what a direct put on the channel's queue raises; it is an error only while the stream is open."""
        if not self._stream.closed:
            self.fail(error)

    def _call_on_close(self, on_close: OnClose | None) -> Awaitable[object] | None:
        """Call ``on_close``, and return its result if that is awaitable."""
        if on_close is None:
            return None
        try:
            result = on_close(self._context, self._stream.reason or CloseReason.CLOSED)
        except EXIT_EXCEPTIONS:
            raise
        except BaseException as error:  # noqa: BLE001  # the stream is closed in any case
            self._log_on_close_error(error)
            return None
        return result if inspect.isawaitable(result) else None

    async def _wait(self, closing: Awaitable[object] | None, grace: float) -> None:
        """Wait for ``on_close`` and for the producer, concurrently."""
        if self._interrupts is None:
            self._interrupts = _Interrupts()
        # No wait with a timeout for a producer that has returned: asyncio keeps the cancelled timer, and with it the
        # whole request.
        task = self._running_task()
        if task is None:
            if closing is not None:
                await self._wait_on_close(closing, self._interrupts)
        elif closing is None:
            await self._wait_producer(task, self._interrupts, grace)
        else:
            await asyncio.gather(
                self._wait_on_close(closing, self._interrupts), self._wait_producer(task, self._interrupts, grace)
            )

    async def _wait_on_close(self, closing: Awaitable[object], interrupts: _Interrupts) -> None:
        """Wait without a timeout, and cancel ``on_close`` only on ``abort``."""
        future: asyncio.Future[Any] = asyncio.ensure_future(closing)
        await asyncio.wait([future, interrupts.aborted], return_when=asyncio.FIRST_COMPLETED)
        if not future.done():
            future.cancel()
            await asyncio.wait([future], timeout=0)  # one event loop iteration, to be cancelled in
        error = future.exception() if future.done() and not future.cancelled() else None
        if error is not None and not isinstance(error, EXIT_EXCEPTIONS):
            self._log_on_close_error(error)

    async def _wait_producer(self, task: asyncio.Future[Any], interrupts: _Interrupts, grace: float) -> None:
        """Wait for the grace period, for the clean-up, and once more after a cancellation; then abandon the task."""
        if grace and not self._end_observed():
            await asyncio.wait(
                [task, interrupts.aborted, interrupts.cancelled],
                timeout=grace,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not self._end_observed():
                task.cancel()
        for _ in range(2):
            await asyncio.wait([task, interrupts.aborted], timeout=CLEANUP_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
            task.cancel()
            if interrupts.aborted.done():
                await asyncio.wait([task], timeout=0)  # one event loop iteration, to be cancelled in
            if task.done():
                return
        if self.error is None:
            task.add_done_callback(self._log_late_error)
        log.warning(
            "stream_producer_ignores_its_end",
            producer=self.name,
            path=self._context.request.path,
            execution_id=self._context.execution_id,
        )

    def _log_late_error(self, _: object) -> None:
        """Log what an abandoned producer raised."""
        if self.error is not None:
            self.log(self.error)

    def _log_on_close_error(self, error: BaseException) -> None:
        log.exception("stream_on_close_failed", execution_id=self._context.execution_id, exc_info=error)


class EarlyProducer:
    """A producer that starts before the response headers are sent.

    Until it puts its first event, it may raise an ``HTTPException``, stage headers, or fail like a plain handler. It is
    the ``ProducedStream`` of its ``Producer`` until there is a stream.

    Args:
        context: The context of the request.
        settings: The options of the stream.
        ready: The function that produces the events.
        stop_timeout: Returns the seconds that the producer may take to clean up if the server is stopping, or else
            ``None``.
    """

    __slots__ = (
        "_attached",
        "_decided",
        "_gate",
        "_raised",
        "_stop_timeout",
        "_waiter",
        "channel",
        "producer",
        "started_at",
    )

    def __init__(
        self,
        context: RequestContext,
        settings: ChannelSettings,
        ready: EarlyReady,
        stop_timeout: Callable[[], float | None],
    ) -> None:
        self.channel: EventChannel = settings.create_channel()
        self.channel._attach(lambda: None)
        self._decided = False  # at the first event, at the end of the producer, or when the time is over
        self._waiter: asyncio.Future[None] | None = None  # of wait()
        self._attached = False  # there is a stream, or will be none
        self._gate: asyncio.Future[None] | None = None  # of put()
        self._raised = False  # wait() has raised what the producer raised
        self._stop_timeout = stop_timeout
        self.started_at: float = asyncio.get_running_loop().time()
        """When the producer was started, by the event loop's clock."""
        self.producer: Producer = Producer(self, context)
        self.producer.start(ready, self, context)

    @property
    def reason(self) -> CloseReason | None:
        return self.channel.reason

    @property
    def closed(self) -> bool:
        return self.channel.closed

    @property
    def end_observed(self) -> bool:
        return self.channel._end_observed

    def producer_failed(self) -> None:
        self._decide()

    def _decide(self) -> None:
        self._decided = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _open_gate(self) -> None:
        self._attached = True
        if self._gate is not None and not self._gate.done():
            self._gate.set_result(None)

    # Called by the producing function.

    async def put(self, event: Event) -> bool:
        """Put the first event, and wait until there is a stream. As ``EventChannel.put`` otherwise."""
        is_open = await self.channel.put(event)
        if is_open and not self._attached:
            self._decide()
            self._gate = asyncio.get_running_loop().create_future()
            await self._gate
            return not self.channel.closed
        return is_open

    def end(self) -> None:
        """Close the channel, because there are no more events."""
        self.channel.close()
        self._decide()

    # Called where the stream is opened.

    async def start(self) -> bool:
        """Let the producer run for one iteration of the event loop. Return whether ``wait`` would not wait.

        Most producers have an event or an error by then, and need no timer.
        """
        try:
            await asyncio.sleep(0)
        except BaseException:
            await self.discard()
            raise
        self.producer.settle()
        return self._decided

    async def wait(self, seconds: float) -> None:
        """Wait for the first event, for the end of the producer, or until the time is over.

        If it is cancelled, the producer is cancelled too.

        Args:
            seconds: The time to wait.
        """
        if self._decided:
            return
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        handle = loop.call_later(seconds, self._decide)
        try:
            await self._waiter
        except BaseException:
            await self.discard()
            raise
        finally:
            handle.cancel()
        self.producer.settle()

    def check(self) -> None:
        """Raise what the producer raised, unless it has put an event before."""
        error = self.producer.error
        if error is not None and not self.channel.buffered:
            self._raised = True
            self.channel.end(CloseReason.ERROR)
            raise self.producer.failure or error

    def attach(self, stream: ProducedStream) -> None:
        """Let the producer go on for a stream."""
        self.producer.attach(stream)
        self._open_gate()

    async def discard(self) -> None:
        """Cancel the producer, because no stream opens, and wait for its clean-up. Idempotent."""
        self.channel.end(CloseReason.CLIENT_LEFT)
        self._open_gate()  # a thread may wait there, which cannot be cancelled
        stop_timeout = self._stop_timeout()
        handle = None
        if stop_timeout is not None:  # the stop of the server must not wait longer than for an open stream
            handle = asyncio.get_running_loop().call_later(stop_timeout, self.producer.abort)
        try:
            await self.producer.finish(None, 0)
        finally:
            if handle is not None:
                handle.cancel()
        self.producer.settle()
        if self.producer.error is not None and not self._raised:
            self._raised = True
            self.producer.log(self.producer.error)


EarlyReady: TypeAlias = Callable[[EarlyProducer, RequestContext], object]


def function_name(function: Callable[..., object]) -> str:
    """Return the name of a user's function for the log."""
    unwrapped = unwrap_partial(function)
    return getattr(unwrapped, "__qualname__", "") or type(unwrapped).__qualname__


async def _run_to_completion(coroutine: Coroutine[None, None, None]) -> None:
    """Run a coroutine to its end even if the caller is cancelled, and raise the cancellation afterwards.

    aiohttp's ``handler_cancellation`` cancels the handler when the client disconnects.
    """
    task = asyncio.create_task(coroutine)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()
