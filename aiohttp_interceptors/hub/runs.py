"""Runs: generators whose events are published under a topic, and which go on when their readers have left."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Iterator
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any, TypeAlias

from .._checks import check_count, check_seconds
from .._logging import log as logger
from .._tasks import CANCEL_TIMEOUT, cancel_and_wait
from .._threads import run_in_loop, run_in_thread
from ..exceptions import EXIT_EXCEPTIONS, BrokerDown, OutcomeUnknown, RunExists, TooManyRuns, TopicFinished
from ..sse import Event
from .history import History
from .message import Kind
from .nodes import ControlMessage, Nodes
from .publisher import Publisher

__all__ = ["DEFAULT_END_EVENT", "Events", "Run", "RunOptions", "RunState", "Runs"]


MAX_RETRY_DELAY = 5.0  # seconds between two attempts to publish while the broker is down; the first is MIN_RETRY_DELAY
MIN_RETRY_DELAY = 0.1
CLEANUP_TIMEOUT = 5.0  # seconds that a generator may take to clean up when its run is ended
RUNS_PER_LEASE = 200  # runs that one message names
MAX_ENDING_DELAY = 1.0  # seconds over which the nodes try to publish the end of a run whose node has died
DEFAULT_END_EVENT = "end"
_KEY = "run:"  # of the last event of a run, followed by its ID
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
    error: BaseException | None = None
    stop: asyncio.Future[str] | None = None  # on the node of the run; its result is why the run is ended
    task: asyncio.Task[None] | None = None
    waiters: list[asyncio.Future[None]] = field(default_factory=list)  # of wait()


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
        """What the generator has raised, in the process of the run; ``None`` in the others."""
        return self._execution.error

    async def cancel(self) -> None:
        """End the run, from any node. Does nothing if it has ended.

        The generator is cancelled where it awaits, and a plain one is closed at its next ``yield``. ``wait`` returns
        when the run has ended. Cancelling is safe, but the run may end.

        Raises:
            BrokerError: The run is on another node, and the broker does not answer.
        """
        await self._runs.cancel(self._execution)

    async def wait(self) -> RunState:
        """Wait until the run has ended, and return its state. Cancelling is safe, and does not end the run."""
        return await self._runs.wait(self._execution)

    def __repr__(self) -> str:
        return f"Run(id={self.id!r}, topic={self.topic!r}, state={str(self.state)!r})"


class Runs:
    """The runs of a Hub on all nodes.

    Args:
        history: The history of the Hub.
        publisher: Publishes the events.
        nodes: The nodes that share the broker, or ``None`` without one.
        max_runs: Number of runs of this process, or ``None`` for no limit.
    """

    def __init__(self, history: History, publisher: Publisher, nodes: Nodes | None, max_runs: int | None) -> None:
        self._history = history
        self._publisher = publisher
        self._nodes = nodes
        self._node = "" if nodes is None else nodes.id
        self._max_runs = max_runs
        self._running: dict[str, _Execution] = {}  # by topic, on all nodes
        self._local: dict[str, _Execution] = {}  # by ID, on this node, until its end is published
        self._starting = 0
        self._ending: set[asyncio.Task[None]] = set()  # ends of runs whose nodes have died
        self._closing = False
        if nodes is not None:
            nodes.add_state(self)

    def open(self) -> None:
        """Accept new runs. Idempotent."""
        self._closing = False

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
        """Return the run of a topic, or ``None``. One that has ended is known as long as its topic is finished."""
        execution = self._running.get(topic)
        if execution is None:
            execution = self._ended(topic)
        return None if execution is None else Run(execution, self)

    def _ended(self, topic: str) -> _Execution | None:
        """Make a run of the last event of a finished topic."""
        record = self._history.newest(topic) if self._history.is_finished(topic) else None
        if record is None or record.key is None or not record.key.startswith(_KEY):
            return None
        execution = _Execution(record.key.removeprefix(_KEY), topic, "", record.event.name or "")
        execution.state, execution.reason = _parse_state(record.event.data)
        return execution

    # Starting.

    async def start(self, topic: str, events: Events, options: RunOptions) -> Run:
        """Start a run. See ``Hub.run``."""
        if self._closing:
            raise RuntimeError(f"the run of {topic!r} was not started: this process is stopping")
        if self._max_runs is not None and len(self._local) + self._starting >= self._max_runs:
            raise TooManyRuns(f"the run of {topic!r} was not started: this process has {self._max_runs} already")
        self._check_free(topic)
        self._publisher.check_unfinished(topic)
        execution = _Execution(secrets.token_hex(8), topic, self._node, options.end_event)
        if self._nodes is None:
            self._running[topic] = execution
        else:
            self._starting += 1
            try:
                await self._announce(self._nodes, execution)
            finally:
                self._starting -= 1
        execution.stop = asyncio.get_running_loop().create_future()
        self._local[execution.id] = execution
        execution.task = asyncio.create_task(self._run(execution, events, options, execution.stop))
        return Run(execution, self)

    async def _announce(self, nodes: Nodes, execution: _Execution) -> None:
        """Tell all nodes of a run, and wait until this one knows that it is the only one of its topic."""
        topic = execution.topic
        message = {"type": "run", "id": execution.id, "topic": topic, "end_event": execution.end_event}
        await self._publisher.wait_for(await nodes.publish(message))
        known = self._running.get(topic)
        if known is None or known.id != execution.id:
            self._check_free(topic)  # another node was faster
            self._publisher.check_unfinished(topic)
        self._running[topic] = execution
        nodes.wake()

    def _check_free(self, topic: str) -> None:
        execution = self._running.get(topic)
        if execution is not None:
            raise RunExists(f"the topic {topic!r} has a run already: {Run(execution, self)!r}")

    # Running.

    async def _run(self, execution: _Execution, events: Events, options: RunOptions, stop: asyncio.Future[str]) -> None:
        """Run a generator to its end, whatever that is, and finish its topic."""
        topic = execution.topic
        producing = asyncio.create_task(self._produce(execution, events, options))
        waiting: list[asyncio.Future[Any]] = [producing, stop]
        await asyncio.wait(waiting, timeout=options.timeout, return_when=asyncio.FIRST_COMPLETED)
        if producing.done():
            state, reason = _outcome(execution, producing)
        else:
            self.stop(execution, "timeout")
            reason = stop.result()
            state = RunState.CANCELLED if reason == _CANCELLED else RunState.FAILED
            await cancel_and_wait(producing, CLEANUP_TIMEOUT, f"the generator of {topic!r}")
        if execution.state is RunState.RUNNING:
            if execution.error is not None and options.error_event is not None:
                await self._publish_error(execution, options.error_event, execution.error)
            await self._publish_end(execution, state, reason)
        if execution.state is RunState.FAILED:
            error = execution.error
            logger.exception("hub_run_failed", topic=topic, run=execution.id, reason=execution.reason, exc_info=error)
        self._local.pop(execution.id, None)

    async def _produce(self, execution: _Execution, events: Events, options: RunOptions) -> str | None:
        """Publish what a generator yields, and return ``None``, or the reason why it was ended before its end."""
        generator = events() if callable(events) else events
        put = _EventPublisher(self._publisher, execution, options.max_events, idempotent=self._nodes is not None)
        if isinstance(generator, AsyncGenerator):
            return await _publish_all(generator, put)
        if isinstance(generator, Generator):
            loop, name = asyncio.get_running_loop(), f"the generator of {execution.topic}"
            return await run_in_thread(name, lambda stop: _publish_all_threadsafe(generator, put, loop, stop))
        raise TypeError(f"a run takes a generator, or a function that returns one, not {generator!r}")

    async def _publish_error(
        self, execution: _Execution, error_event: Event | Callable[[BaseException], Event], error: BaseException
    ) -> None:
        try:
            event = error_event if isinstance(error_event, Event) else error_event(error)
            put = _EventPublisher(self._publisher, execution, None, idempotent=False)
            await put(event)
        except Exception as failure:  # noqa: BLE001  # the run ends without the event
            logger.exception("hub_run_error_event_failed", topic=execution.topic, exc_info=failure)

    async def _publish_end(self, execution: _Execution, state: RunState, reason: str | None) -> None:
        """Publish the last event of a run, once the broker is up, and set its state."""
        data = {"state": state.value} | ({} if reason is None or state is not RunState.FAILED else {"reason": reason})
        message = self._publisher.message(
            execution.topic,
            Event.json(data, name=execution.end_event),
            f"{_KEY}{execution.id}",
            idempotency_key=f"{_KEY}{execution.id} end",
            kind=Kind.FINAL,
        )
        try:
            await _retry(lambda: self._publisher.finish(message), lambda: execution.state is not RunState.RUNNING)
        except TopicFinished:
            pass
        except Exception as error:  # noqa: BLE001  # the state must be set in any case
            logger.exception("hub_run_end_failed", topic=execution.topic, run=execution.id, exc_info=error)
        if execution.state is RunState.RUNNING:  # this process has not received the end yet, or never will
            self._end(execution, state, reason)

    # Ending.

    def topic_finished(self, topic: str) -> None:
        """End the run of a topic that is finished, if there is one. Its last event says how."""
        execution = self._running.get(topic)
        if execution is None:
            return
        record = self._history.newest(topic)
        is_own = record is not None and record.key == f"{_KEY}{execution.id}"
        self._end(execution, *_parse_state(record.event.data if record is not None and is_own else None))
        self.stop(execution, "lost")  # another node, or the application, has finished the topic

    def _end(self, execution: _Execution, state: RunState, reason: str | None) -> None:
        execution.state, execution.reason = state, reason if state is RunState.FAILED else None
        if self._running.get(execution.topic) is execution:
            del self._running[execution.topic]
        for waiter in execution.waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, execution: _Execution) -> RunState:
        """Wait until a run has ended."""
        while execution.state is RunState.RUNNING:
            waiter = asyncio.get_running_loop().create_future()
            execution.waiters.append(waiter)
            try:
                await waiter
            finally:
                execution.waiters.remove(waiter)
        return execution.state

    async def cancel(self, execution: _Execution) -> None:
        """End a run, or ask its node to."""
        if execution.id in self._local:
            self.stop(execution, _CANCELLED)
        elif execution.state is RunState.RUNNING and self._nodes is not None:
            await self._nodes.publish({"type": "cancel", "id": execution.id})

    @staticmethod
    def stop(execution: _Execution, reason: str) -> None:
        """End the generator of a run of this process."""
        if execution.stop is not None and not execution.stop.done():
            execution.stop.set_result(reason)

    async def drain(self, seconds: float) -> None:
        """Refuse new runs, give those of this process time to end, and end the others. Cancelling is safe."""
        self._closing = True
        await self._wait_for_local(seconds)
        for execution in self._local.values():
            self.stop(execution, "shutdown")
        await self._wait_for_local(CLEANUP_TIMEOUT)

    async def close(self) -> None:
        """End all runs of this process. ``Run.wait`` of runs of other nodes raises ``RuntimeError``. Idempotent."""
        await self.drain(0)
        tasks: list[asyncio.Task[None]] = [
            *self._ending,
            *(each.task for each in self._local.values() if each.task is not None),
        ]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CANCEL_TIMEOUT)
        for execution in [*self._local.values()]:
            self._end(execution, RunState.FAILED, "shutdown")
        for execution in self._running.values():
            for waiter in execution.waiters:
                if not waiter.done():
                    waiter.set_exception(RuntimeError(f"the Hub was closed; the run of {execution.topic!r} goes on"))
        self._local.clear()
        self._running.clear()

    async def _wait_for_local(self, seconds: float) -> None:
        tasks = [each.task for each in self._local.values() if each.task is not None]
        if tasks and seconds:
            await asyncio.wait(tasks, timeout=seconds)

    # Other nodes.

    def receive(self, node: str, message: ControlMessage) -> None:
        """Handle a message about runs."""
        kind = message["type"]
        if kind == "run" and message["topic"] not in self._running:
            self._add(node, message["topic"], message["id"], message["end_event"])
        elif kind == "runs" and node != self._node:
            for topic, run_id, end_event in message["runs"]:
                known = self._running.get(topic)
                if known is None or known.id != run_id:
                    self._add(node, topic, run_id, end_event)
        elif kind == "cancel" and message["id"] in self._local:
            self.stop(self._local[message["id"]], _CANCELLED)

    def _add(self, node: str, topic: str, run_id: str, end_event: str) -> None:
        if not self._history.is_finished(topic):
            self._running[topic] = _Execution(run_id, topic, node, end_event)

    def node_died(self, node: str) -> None:
        """Publish the end of the runs of a node that has died. All nodes that are left try, and one succeeds."""
        for execution in self._running.values():
            if execution.node == node:
                task = asyncio.create_task(self._end_lost(execution))
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)

    async def _end_lost(self, execution: _Execution) -> None:
        await asyncio.sleep(random.uniform(0, MAX_ENDING_DELAY))  # noqa: S311  # not for security
        if execution.state is RunState.RUNNING:
            logger.warning("hub_run_lost", topic=execution.topic, run=execution.id)
            await self._publish_end(execution, RunState.FAILED, "lost")

    def caught_up(self) -> None:
        """Do nothing: the next lease names the runs of this node."""

    def send_failed(self) -> None:
        """Do nothing, for the same reason."""

    def unsent(self) -> Iterable[ControlMessage]:
        """Return nothing: ``start`` and ``cancel`` send their messages themselves."""
        return ()

    def leases(self) -> Iterator[ControlMessage]:
        """Yield messages that name all runs of this node."""
        runs = [[each.topic, each.id, each.end_event] for each in self._local.values()]
        for start in range(0, len(runs), RUNS_PER_LEASE):
            yield {"type": "runs", "runs": runs[start : start + RUNS_PER_LEASE]}


class _EventPublisher:
    """Publishes the events of one run, each once, also if the broker fails meanwhile.

    Args:
        publisher: The publisher of the Hub.
        execution: The run.
        max_events: Number of events that may be published.
        idempotent: Whether to number the events, so that the broker does not store one twice.
    """

    def __init__(
        self, publisher: Publisher, execution: _Execution, max_events: int | None, *, idempotent: bool
    ) -> None:
        self._publisher = publisher
        self._execution = execution
        self._max_events = max_events
        self._idempotent = idempotent
        self._events = 0

    @property
    def full(self) -> bool:
        """Whether no more events may be published."""
        return self._max_events is not None and self._events >= self._max_events

    async def __call__(self, value: object) -> None:
        """Publish an event, once the broker is up. Raises what ``Hub.publish`` raises otherwise."""
        self._events += 1
        execution = self._execution
        key = f"{_KEY}{execution.id} {self._events}" if self._idempotent else None
        message = self._publisher.message(execution.topic, value, idempotency_key=key)
        await _retry(lambda: self._publisher.publish(message), lambda: execution.stop is None or execution.stop.done())


async def _retry(publish: Callable[[], Awaitable[object]], is_over: Callable[[], bool]) -> None:
    """Call a function until the broker is up. Raises what it raises if waiting is no longer of use."""
    delay = MIN_RETRY_DELAY
    while True:
        try:
            await publish()
        except (BrokerDown, OutcomeUnknown):
            if is_over():
                raise
        else:
            return
        await asyncio.sleep(delay)
        delay = min(2 * delay, MAX_RETRY_DELAY)


async def _publish_all(generator: AsyncGenerator[object, None], put: _EventPublisher) -> str | None:
    """Publish what an async generator yields. What ``put`` raises is raised at its ``yield``."""
    async with aclosing(generator):
        step = anext(generator)
        while True:
            try:
                value = await step
            except StopAsyncIteration:
                return None
            if put.full:
                return "max_events"
            try:
                await put(value)
            except TopicFinished:
                return None
            except Exception as error:  # noqa: BLE001  # what was yielded is wrong: the traceback shows where
                await asyncio.sleep(0)  # a generator that handles it and goes on must not block the event loop
                step = generator.athrow(error)
            else:
                step = anext(generator)


def _publish_all_threadsafe(
    generator: Generator[object, None, None],
    put: _EventPublisher,
    loop: asyncio.AbstractEventLoop,
    stop: threading.Event,
) -> str | None:
    """Publish what a plain generator yields, in its thread."""
    with closing(generator):
        value = next(generator, _END)
        while value is not _END and not stop.is_set():
            if put.full:
                return "max_events"
            try:
                run_in_loop(loop, partial(put, value)).result()
            except TopicFinished:
                return None
            except Exception as error:  # noqa: BLE001  # as in _publish_all
                if stop.is_set() or loop.is_closed():
                    return None
                try:
                    value = generator.throw(error)
                except StopIteration:
                    return None
            else:
                value = next(generator, _END)
    return None


_END = object()


def _outcome(execution: _Execution, producing: asyncio.Task[str | None]) -> tuple[RunState, str | None]:
    """Return the state and the reason of a run whose generator has ended."""
    try:
        reason = producing.result()
    except EXIT_EXCEPTIONS:
        raise
    except BaseException as error:  # noqa: BLE001  # whatever a generator raises ends its run only
        execution.error = error
        return RunState.FAILED, "error"
    return (RunState.FINISHED if reason is None else RunState.FAILED), reason


def _parse_state(data: str | None) -> tuple[RunState, str | None]:
    """Return the state and the reason that the last event of a run contains."""
    try:
        content = json.loads(data or "")
        state = RunState(content["state"])
    except (ValueError, KeyError, TypeError):  # the application has finished the topic itself
        return RunState.FINISHED, None
    return state, content.get("reason")
