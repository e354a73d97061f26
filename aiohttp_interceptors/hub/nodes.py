"""The processes that share a broker, called nodes: the control messages between them, and their leases.

A control message is an entry of the broker's log that no stream receives. A node that has something which ends with its
process, such as a user who is present, renews a lease. When it has expired, the other nodes treat the node as dead.
"""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from typing import Any, TypeAlias

from .._logging import log as logger
from .._tasks import cancel_and_wait, run_with_timeout
from ..exceptions import BrokerError
from .broker import Broker, LogPosition
from .epochs import new_epoch
from .message import Kind, encode_payload
from .pending import PendingSubscriptions

__all__ = ["CONTROL_TOPIC", "ControlMessage", "NodeState", "Nodes"]


CONTROL_TOPIC = "_hub"  # of all control messages; no stream receives them, also if it subscribes to this topic
LEASE_INTERVAL = 5.0  # seconds between two renewals of a lease
LEASE_TIMEOUT = 15.0  # seconds without a message from a node, after which it is treated as dead
CHECK_INTERVAL = 1.0  # seconds between two checks for expired leases
RETRY_DELAY = 1.0  # seconds before messages that could not be sent are sent again
BYE_TIMEOUT = 2.0  # seconds that the last message of a node may take

# What a message raises that has not the members or the types that it should have, or is no JSON.
_MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)

ControlMessage: TypeAlias = dict[str, Any]
"""The content of a control message: JSON with the members ``type`` and ``node``, and others."""


class NodeState(ABC):
    """What the nodes of a Hub tell each other about one subject.

    A subject whose messages are sent by a call, and which needs no lease, has only ``receive``.
    """

    __slots__ = ()

    @abstractmethod
    def receive(self, node: str, message: ControlMessage, age: float) -> None:
        """Handle a message of any node, also of this one, that was sent ``age`` seconds ago."""

    def caught_up(self) -> None:  # noqa: B027  # nothing to do by default
        """Called when this node has caught up with the log. It may have missed messages, and others its own."""

    def node_died(self, node: str) -> None:  # noqa: B027  # nothing to do by default
        """Forget a node whose lease has expired, or that has stopped."""

    def unsent(self) -> Iterable[ControlMessage]:
        """Return the messages to send, once each."""
        return ()

    def send_failed(self) -> None:  # noqa: B027  # nothing to do by default
        """Called when messages that ``unsent`` returned may not have been sent."""

    def leases(self) -> Iterable[ControlMessage]:
        """Return messages that renew this node's lease, or nothing if none is needed."""
        return ()


class Nodes:
    """This node and the others of one Hub.

    A task sends the messages, renews the lease and looks for dead nodes. It starts when the first message is sent or
    received.

    Args:
        broker: The broker of the Hub.
        pending: Knows whether this node has received everything from the broker.
    """

    def __init__(self, broker: Broker, pending: PendingSubscriptions) -> None:
        self._broker = broker
        self._pending = pending
        self._states: list[NodeState] = []
        self._last_seen: dict[str, float] = {}  # of other nodes, in seconds of the event loop's clock
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._next_lease = 0.0
        self._sent = False  # whether other nodes may know this one
        self._closed = False

    @cached_property
    def id(self) -> str:
        """Identifies this node. Made when it is first used, since a process may be forked before that."""
        return new_epoch()

    @property
    def caught_up_now(self) -> bool:
        """Whether this node has received everything, so that messages are current."""
        return self._pending.caught_up

    def add_state(self, state: NodeState) -> None:
        """Send and receive the messages of one more subject."""
        self._states.append(state)

    def wake(self) -> None:
        """Send what the states have to send, soon."""
        self._wake.set()
        if self._task is None and not self._closed:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def publish(self, message: ControlMessage, idempotency_key: str | None = None) -> LogPosition:
        """Send a message, and return its position in the log. Raises what the broker's ``publish`` raises.

        Of the messages of all nodes with one key only the first is sent, and all calls return its position.
        """
        content = json.dumps({**message, "node": self.id}, ensure_ascii=False, separators=(",", ":")).encode()
        payload = encode_payload(content, None, ephemeral=True, kind=Kind.CONTROL)
        self._sent = True
        position = await self._broker.publish(CONTROL_TOPIC, payload, idempotency_key=idempotency_key)
        assert position is not None  # noqa: S101  # None is only for a connection
        return position

    # Called for what the tail yields.

    def receive(self, content: bytes, age: float) -> None:
        """Handle a control message that was published ``age`` seconds ago. Never raises."""
        try:
            message: ControlMessage = json.loads(content)
            node, kind = str(message["node"]), message["type"]
            if node != self.id:
                self._last_seen[node] = asyncio.get_running_loop().time() - age
                self.wake()
                if kind == "bye":
                    self._forget(node)
            for state in self._states:
                state.receive(node, message, age)
        except _MALFORMED as error:
            logger.warning("hub_control_malformed", content=content[:200], error=repr(error)[:200])
        except Exception as error:  # noqa: BLE001  # a wrong message must not stop the tail
            logger.exception("hub_control_failed", content=content[:200], exc_info=error)

    def caught_up(self) -> None:
        """Handle that this node has caught up with the log. The leases of the others start again."""
        now = asyncio.get_running_loop().time()
        self._last_seen = dict.fromkeys(self._last_seen, now)
        for state in self._states:
            state.caught_up()
        if self._task is not None:
            self.wake()

    # The task.

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(CHECK_INTERVAL):
                    await self._wake.wait()
            except TimeoutError:
                pass
            await asyncio.sleep(0)  # collect what is changed in this iteration of the event loop
            self._wake.clear()
            try:
                self._expire_leases()
                await self._send()
                continue
            except BrokerError:
                pass
            except Exception as error:  # noqa: BLE001  # a broker's defect must not end the task
                logger.exception("hub_control_failed", exc_info=error)
            for state in self._states:
                state.send_failed()
            await asyncio.sleep(RETRY_DELAY)

    async def _send(self) -> None:
        """Send all messages that are due."""
        if not self._pending.caught_up:
            return  # caught_up wakes the task
        now = asyncio.get_running_loop().time()
        for state in self._states:
            for message in state.unsent():
                await self.publish(message)
        if now >= self._next_lease:
            self._next_lease = now + LEASE_INTERVAL
            for state in self._states:
                for message in state.leases():
                    await self.publish(message)

    def _expire_leases(self) -> None:
        """Forget the nodes that are dead. Time in which this node may have missed their messages does not count."""
        now = asyncio.get_running_loop().time()
        if not self._pending.ready:
            self._last_seen = dict.fromkeys(self._last_seen, now)
            return
        for node, last_seen in list(self._last_seen.items()):
            if last_seen + LEASE_TIMEOUT < now:
                self._forget(node)

    def _forget(self, node: str) -> None:
        self._last_seen.pop(node, None)
        for state in self._states:
            state.node_died(node)

    # Closing.

    async def close(self) -> None:
        """Say goodbye, so that the others need not wait for the end of the lease, and end the task. Idempotent."""
        self._closed = True
        task, self._task = self._task, None
        if task is not None:
            await cancel_and_wait(task, BYE_TIMEOUT, "the control messages of a Hub")
        if self._sent and self._pending.caught_up:
            self._sent = False
            await run_with_timeout(self._say_goodbye(), BYE_TIMEOUT, "the last control message of a Hub")

    async def _say_goodbye(self) -> None:
        try:
            await self.publish({"type": "bye"})
        except Exception as error:  # noqa: BLE001  # the lease expires
            logger.debug("hub_control_failed", error=str(error))
