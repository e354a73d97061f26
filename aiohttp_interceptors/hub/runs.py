"""Runs: generators whose events are published under a topic, and which go on when their readers have left."""

from __future__ import annotations

import asyncio
import random
import secrets
import threading
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterable, Iterator
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any, TypeAlias

from .._checks import check_count, check_seconds
from .._logging import log as logger
from .._tasks import CANCEL_TIMEOUT, cancel_and_wait, check_cancelled
from .._threads import run_in_loop, run_in_thread
from ..exceptions import (
    EXIT_EXCEPTIONS,
    BrokerDown,
    EventTooLarge,
    OutcomeUnknown,
    RunExists,
    TooManyRuns,
    TopicFinished,
)
from ..sse import Event
from .dispatcher import Dispatcher
from .message import Kind
from .nodes import ControlMessage, Nodes, NodeState
from .publisher import Publisher
from .topics import check_topic

__all__ = ["DEFAULT_END_EVENT", "Events", "Run", "RunOptions", "RunState", "Runs"]


MAX_RETRY_DELAY = 5.0  # seconds between two attempts to publish while the broker is down; the first is MIN_RETRY_DELAY
MIN_RETRY_DELAY = 0.1
SHORT_CLEANUP_TIMEOUT = 0.5  # seconds that a generator may take to clean up before the end of its run is published
SHUTDOWN_CLEANUP_TIMEOUT = 0.1  # the same while the process stops, since its readers are about to be disconnected
CLEANUP_TIMEOUT = 5.0  # seconds that it may take after that
RUNS_PER_LEASE = 200  # runs that one message names
MAX_WITHDRAWN = 1000  # runs that were given up, to be remembered
MAX_RUN_ID = 64  # characters
MAX_ENDING_DELAY = 1.0  # seconds over which the nodes try to publish the end of a run whose node has died
DEFAULT_END_EVENT = "end"
_KEY = "run:"  # the beginning of the key of a run's last event
_CANCELLED = "cancelled"

Events: TypeAlias = (
    AsyncGenerator[object, None]
    | Generator[object, None, None]
    | Callable[[], AsyncGenerator[object, None] | Generator[object, None, None]]
)
"""An async or a plain generator of events, or a function without arguments that returns one."""


class RunState(StrEnum):
    """The state of a run. The last event of its topic contains it, too."""

    RUNNING = "running"
    """The generator runs."""
    FINISHED = "finished"
    """The generator has ended."""
    FAILED = "failed"
    """The generator has raised, was ended by a limit or by the stop of its process, or its process has died."""
    CANCELLED = "cancelled"
    """``Run.cancel`` was called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The options of a run. Raises ``TypeError`` or ``ValueError``."""

    timeout: float | None
    max_events: int | None
    error_event: Event | Callable[[BaseException], Event] | None
    end_event: str

    def __post_init__(self) -> None:
        check_seconds("timeout", self.timeout, "no limit")
        if self.max_events is not None:
            check_count("max_events", self.max_events, 1)
        if self.error_event is not None and not isinstance(self.error_event, Event) and not callable(self.error_event):
            raise TypeError(f"error_event is an Event, or a function of the exception, not {self.error_event!r}")
        if Event("", self.end_event).name is None:
            raise ValueError(f"end_event is the name of an event, not {self.end_event!r}")


@dataclass(eq=False, slots=True)
class _Execution:
    """A run as this node knows it."""

    id: str
    topic: str
    node: str
    end_event: str
    state: RunState = RunState.RUNNING
    reason: str | None = None
    start_id: str | None = None
    error: BaseException | None = None
    stop: asyncio.Future[str] | None = None  # on the node of the run; its result is why the run is ended
    task: asyncio.Task[None] | None = None  # on that node, once the run has started
    waiters: list[asyncio.Future[None]] = field(default_factory=list)  # of wait()

    def end(self, reason: str) -> None:
        """End the generator on the node of the run. Only the first reason counts."""
        if self.stop is not None and not self.stop.done():
            self.stop.set_result(reason)


class Run:
    """A generator that publishes its events under a topic, on this node or on another one. ``Hub.run`` returns it.

    Args:
        execution: The run as this node knows it. The Hub makes both.
        runs: The runs of the Hub.
    """

    def __init__(self, execution: _Execution, runs: Runs) -> None:
        self._execution = execution
        self._runs = runs

    @property
    def id(self) -> str:
        """Identifies the run among all runs."""
        return self._execution.id

    @property
    def topic(self) -> str:
        """The topic of its events."""
        return self._execution.topic

    @property
    def start_id(self) -> str | None:
        """An ID before the first event, in the process of the run; ``None`` in the others.

        A reader that starts after it (``?last_event_id=`` in the URL of its stream) gets all events, or a gap event if
        the history does not have all of them any more.
        """
        return self._execution.start_id

    @property
    def state(self) -> RunState:
        """The state, as far as this process knows."""
        return self._execution.state

    @property
    def reason(self) -> str | None:
        """Why the run has failed; ``None`` if it has not.

        ``"error"``: the generator has raised; ``"timeout"`` and ``"max_events"``: a limit; ``"shutdown"``: its process
        has stopped; ``"lost"``: its process has died or lost its connection to the broker.
        """
        return self._execution.reason

    @property
    def error(self) -> BaseException | None:
        """What the generator has raised. Only of the object that ``Hub.run`` returned; ``None`` of others."""
        return self._execution.error

    async def cancel(self) -> None:
        """End the run, from any node. Does nothing if it has ended.

        Nothing that the generator yields from then on is published. It is cancelled where it awaits, and a plain one is
        closed at its next ``yield``. ``wait`` returns when the end is published. Cancelling is safe, but the run may
        end.

        Raises:
            RuntimeError: This is not the event loop of the Hub.
            BrokerError: The run is on another node, and the broker does not answer.
        """
        await self._runs.cancel(self._execution)

    async def wait(self) -> RunState:
        """Wait until the run has ended, and return its state. Cancelling is safe, and does not end the run.

        Raises:
            RuntimeError: The Hub was closed while the run goes on elsewhere, or this is not its event loop.
        """
        return await self._runs.wait(self._execution)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"Run(id={self.id!r}, topic={self.topic!r}, state={str(self.state)!r})"


class Runs(NodeState):
    """The runs of a Hub on all nodes.

    Args:
        dispatcher: The dispatcher of the Hub.
        publisher: Publishes the events.
        nodes: The nodes that share the broker, or ``None`` without one.
        max_runs: Number of runs of this process, or ``None`` for no limit.
    """

    def __init__(self, dispatcher: Dispatcher, publisher: Publisher, nodes: Nodes | None, max_runs: int | None) -> None:
        self._dispatcher = dispatcher
        self._history = dispatcher.history
        self._publisher = publisher
        self._nodes = nodes
        self._max_runs = max_runs
        self._running: dict[str, _Execution] = {}  # by topic, on all nodes
        self._local: dict[str, _Execution] = {}  # by ID, on this node, from before their start to their end
        self._tasks: set[asyncio.Task[None]] = set()
        self._withdrawn: deque[str] = deque(maxlen=MAX_WITHDRAWN)  # a broker may store their starts later
        self._unsent: list[ControlMessage] = []
        self._sent: list[ControlMessage] = []
        self._closing = False
        self._closed = False
        dispatcher.on_finish = self.topic_finished
        if nodes is not None:
            nodes.add_state(self)

    @property
    def _node(self) -> str:
        return "" if self._nodes is None else self._nodes.id

    def open(self) -> None:
        """Accept new runs. Idempotent."""
        self._closing = self._closed = False

    @property
    def local(self) -> int:
        """Number of runs of this process."""
        return len(self._local)

    def is_local(self, topics: Iterable[str]) -> bool:
        """Return whether there are topics, and each of them is that of a run of this process."""
        if not self._local:
            return False
        executions = [self._running.get(topic) for topic in topics]
        return bool(executions) and all(each is not None and each.id in self._local for each in executions)

    def find(self, topic: str) -> Run | None:
        """Return the run of a topic, or ``None``."""
        execution = self._running.get(topic)
        if execution is None and self._history.is_finished(topic, asyncio.get_running_loop().time()):
            ended = _parse_key(self._history.finished_by(topic))
            if ended is not None:
                run_id, state, reason = ended
                execution = _Execution(run_id, topic, "", "", state, reason)
        return None if execution is None else Run(execution, self)

    def end_key(self, topic: str) -> str | None:
        """Return the key of the end of a finished topic if that is the end of a run, which it describes."""
        key = self._history.finished_by(topic) if self._history.is_finished(topic) else None
        return None if _parse_key(key) is None else key

    # Starting.

    async def start(self, topic: str, events: Events, options: RunOptions) -> Run:
        """Start a run. See ``Hub.run``."""
        self._check_open(topic)
        if self._max_runs is not None and len(self._local) >= self._max_runs:
            raise TooManyRuns(f"the run of {topic!r} was not started: this process has {self._max_runs} already")
        self._check_free(topic)
        self._publisher.check_unfinished(topic)
        execution = _Execution(secrets.token_hex(8), topic, self._node, options.end_event)
        execution.stop = asyncio.get_running_loop().create_future()
        self._local[execution.id] = execution
        try:
            if self._nodes is None:
                self._running[topic] = execution
                execution.start_id = self._history.id_of(self._history.end)
            else:
                await self._announce(self._nodes, execution)
            self._check_open(topic)
        except BaseException:
            self._withdraw(execution, RunState.FAILED, "lost")
            raise
        execution.task = self._create_task(self._run(execution, events, options, execution.stop))
        return Run(execution, self)

    def _check_open(self, topic: str) -> None:
        if self._closing:
            raise RuntimeError(f"the run of {topic!r} was not started: this process is stopping")

    def _check_free(self, topic: str) -> None:
        execution = self._running.get(topic)
        if execution is not None:
            raise RunExists(f"the topic {topic!r} has a run already: {Run(execution, self)!r}")

    async def _announce(self, nodes: Nodes, execution: _Execution) -> None:
        """Tell all nodes of a run, and wait until this one knows that it is the only one of its topic."""
        topic = execution.topic
        message = {"type": "run", "id": execution.id, "topic": topic, "end_event": execution.end_event}
        position = await nodes.publish(message)
        execution.start_id = f"{position.epoch}-{position.offset}"
        if not await self._publisher.wait_for(position):
            raise OutcomeUnknown(f"the run of {topic!r} was not started: this process did not receive its own message")
        if self._running.get(topic) is not execution:  # another node was faster
            self._check_free(topic)
            self._publisher.check_unfinished(topic)
            raise RunExists(f"the topic {topic!r} had another run in this moment")
        nodes.wake()

    def _withdraw(self, execution: _Execution, state: RunState, reason: str | None) -> None:
        """End a run whose end is not in the log, and tell the other nodes, who may know of it."""
        if self._nodes is not None:
            message = {"type": "withdrawn", "id": execution.id, "topic": execution.topic}
            self._unsent.append({**message, "state": state.value, "reason": reason})
            self._nodes.wake()
        self._end(execution, state, reason)

    # Running.

    async def _run(self, execution: _Execution, events: Events, options: RunOptions, stop: asyncio.Future[str]) -> None:
        """Run a generator to its end, whatever that is, and finish its topic.

        What a generator yields after it was stopped is not published, and a slow clean-up does not delay the end.
        """
        topic, producing = execution.topic, None
        if not stop.done():
            producing = asyncio.create_task(self._produce(execution, events, options, stop))
            waiting: list[asyncio.Future[Any]] = [producing, stop]
            await asyncio.wait(waiting, timeout=options.timeout, return_when=asyncio.FIRST_COMPLETED)
        state, reason = _outcome(execution, producing, stop)
        was_running = producing is not None and not producing.done()
        try:
            if producing is not None and producing.cancel():
                seconds = SHUTDOWN_CLEANUP_TIMEOUT if reason == "shutdown" else SHORT_CLEANUP_TIMEOUT
                await asyncio.wait([producing], timeout=seconds)
            if execution.state is RunState.RUNNING:
                if execution.error is not None and options.error_event is not None:
                    await self._publish_error(execution, options.error_event, execution.error)
                await self._publish_end(execution, state, reason)
        finally:
            self._end(execution, state, reason)
            if execution.state is RunState.FAILED:
                error, why = execution.error, execution.reason
                logger.exception("hub_run_failed", topic=topic, run=execution.id, reason=why, exc_info=error)
        if producing is not None and was_running:
            await _wait_for_cleanup(producing, topic)

    async def _produce(
        self, execution: _Execution, events: Events, options: RunOptions, stop: asyncio.Future[str]
    ) -> None:
        """Publish what a generator yields."""
        generator = events() if callable(events) else events
        put = _EventPublisher(self._publisher, execution, options.max_events, stop, idempotent=self._nodes is not None)
        if isinstance(generator, AsyncGenerator):
            await _publish_all(generator, put)
        elif isinstance(generator, Generator):
            loop, name = asyncio.get_running_loop(), f"the generator of {execution.topic}"
            await run_in_thread(name, lambda stopped: _publish_all_threadsafe(generator, put, loop, stopped))
        else:
            raise TypeError(f"a run takes a generator, or a function that returns one, not {generator!r}")

    async def _publish_error(
        self, execution: _Execution, error_event: Event | Callable[[BaseException], Event], error: BaseException
    ) -> None:
        try:
            event = error_event if isinstance(error_event, Event) else error_event(error)
            key = None if self._nodes is None else f"{_KEY}{execution.id} error"
            message = self._publisher.message(execution.topic, event, idempotency_key=key)
            await _retry(lambda: self._publisher.publish(message), None)
        except EXIT_EXCEPTIONS:
            raise
        except BaseException as failure:  # noqa: BLE001  # the run ends without the event
            check_cancelled()
            logger.exception("hub_run_error_event_failed", topic=execution.topic, exc_info=failure)

    async def _publish_end(self, execution: _Execution, state: RunState, reason: str | None) -> None:
        """Publish the last event of a run, once the broker is up, and set its state."""
        data = {"state": state.value} | ({} if reason is None else {"reason": reason})
        make = partial(
            self._publisher.message,
            execution.topic,
            key=_end_key(execution.id, state, reason),
            idempotency_key=f"{_KEY}{execution.id} end",
            kind=Kind.FINAL,
        )
        try:
            message = make(Event.json(data, name=execution.end_event))
        except EventTooLarge:
            message = make(None)
        try:
            await _retry(lambda: self._publisher.finish(message), None)
        except TopicFinished:
            pass
        except EXIT_EXCEPTIONS:
            raise
        except BaseException as error:  # noqa: BLE001  # the state must be set in any case
            check_cancelled()
            logger.exception("hub_run_end_failed", topic=execution.topic, run=execution.id, exc_info=error)
            self._withdraw(execution, state, reason)
        self._end(execution, state, reason)  # in case that this process has not received the end yet

    def _create_task(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Ending.

    def topic_finished(self, topic: str, key: str | None) -> None:
        """End the run of a topic that is finished, if there is one. The key of the end says how."""
        execution = self._running.get(topic)
        if execution is None:
            return
        ended = _parse_key(key)
        if ended is not None and ended[0] == execution.id:
            self._end(execution, ended[1], ended[2])
        else:  # the application has finished the topic
            self._end(execution, RunState.FINISHED, None)
        execution.end("lost")

    def _end(self, execution: _Execution, state: RunState, reason: str | None) -> None:
        """Set the state of a run that has ended. Idempotent."""
        self._local.pop(execution.id, None)
        if self._running.get(execution.topic) is execution:
            del self._running[execution.topic]
        if execution.state is RunState.RUNNING:
            execution.state, execution.reason = state, reason
            for waiter in execution.waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def wait(self, execution: _Execution) -> RunState:
        """Wait until a run has ended."""
        self._check_loop()
        while execution.state is RunState.RUNNING:
            if self._closed:
                raise _hub_closed(execution)
            await self._wait_for([execution], None)
        return execution.state

    async def cancel(self, execution: _Execution) -> None:
        """End a run, or ask its node to."""
        self._check_loop()
        if execution.id in self._local:
            execution.end(_CANCELLED)
        elif execution.state is RunState.RUNNING and self._nodes is not None:
            await self._nodes.publish({"type": "cancel", "id": execution.id})

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._dispatcher.get_loop():
            raise RuntimeError("a run belongs to the event loop of its Hub; use asyncio.run_coroutine_threadsafe")

    async def drain(self, seconds: float) -> None:
        """Refuse new runs, give those of this process time to end, and end the others. Cancelling is safe."""
        self._closing = True
        if seconds:
            await self._wait_for(self._local.values(), seconds)
        for execution in list(self._local.values()):
            execution.end("shutdown")
        await self._wait_for(self._local.values(), CLEANUP_TIMEOUT)

    async def _wait_for(self, executions: Iterable[_Execution], seconds: float | None) -> None:
        """Wait until some runs have ended, or the time is over."""
        loop = asyncio.get_running_loop()
        waiting = {loop.create_future(): execution for execution in executions}
        for waiter, execution in waiting.items():
            execution.waiters.append(waiter)
        try:
            if waiting:
                await asyncio.wait(waiting, timeout=seconds)
        finally:
            for waiter, execution in waiting.items():
                execution.waiters.remove(waiter)
        for waiter in waiting:
            if waiter.done():
                waiter.result()

    async def close(self) -> None:
        """End all runs of this process, and wait for their generators. Idempotent."""
        await self.drain(0)
        self._closed = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLEANUP_TIMEOUT + CANCEL_TIMEOUT)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CANCEL_TIMEOUT)
        for execution in list(self._local.values()):
            self._end(execution, RunState.FAILED, "shutdown")
        for execution in self._running.values():
            for waiter in execution.waiters:
                if not waiter.done():
                    waiter.set_exception(_hub_closed(execution))
        self._running.clear()

    # Other nodes.

    def receive(self, node: str, message: ControlMessage, age: float) -> None:
        """Handle a message about runs."""
        kind = message["type"]
        if kind == "run" and message["topic"] not in self._running:
            self._add(node, message["topic"], message["id"], message["end_event"], age)
        elif kind == "runs" and node != self._node:
            for topic, run_id, end_event in message["runs"]:
                known = self._running.get(topic)
                if known is None or (known.id != run_id and known.node != self._node):
                    if known is not None:
                        self._end(known, RunState.FAILED, "lost")
                    self._add(node, topic, run_id, end_event, age)
        elif kind == "withdrawn":
            self._withdrawn.append(message["id"])
            known = self._running.get(message["topic"])
            if known is not None and known.id == message["id"]:
                self._end(known, RunState(message["state"]), message["reason"])
        elif kind == "cancel" and message["id"] in self._local:
            self._local[message["id"]].end(_CANCELLED)

    def _add(self, node: str, topic: str, run_id: str, end_event: str, age: float) -> None:
        _check_run(topic, run_id, end_event)
        if run_id in self._withdrawn or self._history.is_finished(topic, asyncio.get_running_loop().time() - age):
            return
        if node != self._node:
            self._running[topic] = _Execution(run_id, topic, node, end_event)
        elif run_id in self._local:  # otherwise its start was given up
            self._running[topic] = self._local[run_id]

    def node_died(self, node: str) -> None:
        """Publish the end of the runs of a node that has died. All nodes that are left try, and one succeeds."""
        for execution in self._running.values():
            if execution.node == node:
                _ = self._create_task(self._end_lost(execution))

    async def _end_lost(self, execution: _Execution) -> None:
        await asyncio.sleep(random.uniform(0, MAX_ENDING_DELAY))  # noqa: S311  # not for security
        if execution.state is RunState.RUNNING:
            logger.warning("hub_run_lost", topic=execution.topic, run=execution.id)
            await self._publish_end(execution, RunState.FAILED, "lost")

    def unsent(self) -> list[ControlMessage]:
        """Return the messages about runs that were given up. ``start`` and ``cancel`` send theirs themselves."""
        self._sent, self._unsent = self._unsent, []
        return self._sent

    def send_failed(self) -> None:
        """Send the messages again."""
        self._unsent = self._sent + self._unsent
        self._sent = []

    def leases(self) -> Iterator[ControlMessage]:
        """Yield messages that name all runs of this node."""
        runs = [[each.topic, each.id, each.end_event] for each in self._local.values() if each.task is not None]
        for start in range(0, len(runs), RUNS_PER_LEASE):
            yield {"type": "runs", "runs": runs[start : start + RUNS_PER_LEASE]}


def _check_run(topic: object, run_id: object, end_event: str) -> None:
    """Raise ``TypeError`` or ``ValueError`` if the end of a run of another node could not be published."""
    check_topic(topic)
    if not (isinstance(run_id, str) and 0 < len(run_id) <= MAX_RUN_ID and run_id.isprintable()):
        raise ValueError(f"the ID of a run is 1 to {MAX_RUN_ID} printable characters, not {run_id!r}")
    Event(name=end_event)


class _Stopped(Exception):
    """The run has ended, so that nothing more is published."""


class _EventPublisher:
    """Publishes the events of one run, each once, also if the broker fails meanwhile.

    Args:
        publisher: The publisher of the Hub.
        execution: The run.
        max_events: Number of events that may be published.
        stop: Why the run is ended.
        idempotent: Whether to number the events, so that the broker does not store one twice.
    """

    def __init__(
        self,
        publisher: Publisher,
        execution: _Execution,
        max_events: int | None,
        stop: asyncio.Future[str],
        *,
        idempotent: bool,
    ) -> None:
        self._publisher = publisher
        self._execution = execution
        self._max_events = max_events
        self._stop = stop
        self._idempotent = idempotent
        self._events = 0

    async def __call__(self, value: object) -> None:
        """Publish an event, once the broker is up. Raises what ``Hub.publish`` raises otherwise.

        Raises:
            _Stopped: The run has ended, or this event is one too many.
        """
        execution, stop = self._execution, self._stop
        if not stop.done() and self._events == self._max_events:
            execution.end("max_events")
        if stop.done():
            raise _Stopped
        self._publisher.check_unfinished(execution.topic)
        key = f"{_KEY}{execution.id} {self._events + 1}" if self._idempotent else None
        message = self._publisher.message(execution.topic, value, idempotency_key=key)
        await _retry(lambda: self._publisher.publish(message), stop)
        self._events += 1


async def _retry(publish: Callable[[], Awaitable[object]], stop: asyncio.Future[str] | None) -> None:
    """Call a function until the broker is up, or until ``stop`` is done. Raises what it raises then."""
    delay = MIN_RETRY_DELAY
    while True:
        try:
            await publish()
        except (BrokerDown, OutcomeUnknown):
            if stop is not None and stop.done():
                raise
        else:
            return
        if stop is None:
            await asyncio.sleep(delay)
        else:
            await asyncio.wait([stop], timeout=delay)
        delay = min(2 * delay, MAX_RETRY_DELAY)


async def _publish_all(generator: AsyncGenerator[object, None], put: _EventPublisher) -> None:
    """Publish what an async generator yields. What ``put`` raises is raised at its ``yield``."""
    async with aclosing(generator):
        step = anext(generator)
        while True:
            try:
                value = await step
            except StopAsyncIteration:
                return
            await asyncio.sleep(0)  # a generator that never waits must not block the event loop
            try:
                await put(value)
            except (_Stopped, TopicFinished):
                return
            except Exception as error:  # noqa: BLE001  # what was yielded is wrong: the traceback shows where
                step = generator.athrow(error)
            else:
                step = anext(generator)


def _publish_all_threadsafe(
    generator: Generator[object, None, None],
    put: _EventPublisher,
    loop: asyncio.AbstractEventLoop,
    stopped: threading.Event,
) -> None:
    """Publish what a plain generator yields, in its thread."""
    with closing(generator):
        value = next(generator, _END)
        while value is not _END and not stopped.is_set():
            try:
                run_in_loop(loop, partial(put, value)).result()
            except (_Stopped, TopicFinished):
                return
            except Exception as error:  # noqa: BLE001  # as in _publish_all
                if stopped.is_set() or loop.is_closed():
                    return
                try:
                    value = generator.throw(error)
                except StopIteration:
                    return
            else:
                value = next(generator, _END)


_END = object()


def _outcome(
    execution: _Execution, producing: asyncio.Task[None] | None, stop: asyncio.Future[str]
) -> tuple[RunState, str | None]:
    """Return the state and the reason of a run whose generator has ended, or is to be ended."""
    if producing is not None and producing.done():
        error = asyncio.CancelledError() if producing.cancelled() else producing.exception()
        if not stop.done():
            execution.error = error
            return (RunState.FINISHED, None) if error is None else (RunState.FAILED, "error")
    execution.end("timeout")
    reason = stop.result()
    return (RunState.CANCELLED, None) if reason == _CANCELLED else (RunState.FAILED, reason)


async def _wait_for_cleanup(producing: asyncio.Task[None], topic: str) -> None:
    """Wait for a generator that was cancelled. A second cancellation would abandon its thread."""
    await asyncio.wait([producing], timeout=CLEANUP_TIMEOUT)
    if not producing.done():
        await cancel_and_wait(producing, CANCEL_TIMEOUT, f"the generator of {topic!r}")
    elif not producing.cancelled() and producing.exception() is not None:
        logger.exception("hub_run_cleanup_failed", topic=topic, exc_info=producing.exception())


def _hub_closed(execution: _Execution) -> RuntimeError:
    return RuntimeError(f"the Hub was closed; the run of {execution.topic!r} may go on")


def _end_key(run_id: str, state: RunState, reason: str | None) -> str:
    """Return the key of the last event of a run, which names the run and how it has ended."""
    return f"{_KEY}{run_id}:{state}" + ("" if reason is None else f":{reason}")


def _parse_key(key: str | None) -> tuple[str, RunState, str | None] | None:
    """Return the ID, the state and the reason that a key names; ``None`` for another key."""
    parts = (key or "").split(":")
    if len(parts) not in (3, 4) or f"{parts[0]}:" != _KEY or parts[2] not in list(RunState):
        return None
    return parts[1], RunState(parts[2]), parts[3] if parts[3:] else None
