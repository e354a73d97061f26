"""Tokens that are redeemed once, on whichever node, such as the tickets of ``EventSource``."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field

from ..exceptions import OutcomeUnknown
from .broker import IDEMPOTENCY_WINDOW
from .nodes import ControlMessage, Nodes, NodeState
from .publisher import Publisher

__all__ = ["MAX_TOKEN_AGE", "Redemptions"]


# Seconds after which a token must not be valid any more: a broker knows for IDEMPOTENCY_WINDOW what was redeemed.
MAX_TOKEN_AGE = IDEMPOTENCY_WINDOW / 2


@dataclass(slots=True)
class _Redemption:
    """What this node knows of a token that it has redeemed, or has tried to."""

    remembered_until: float
    """In seconds of the event loop's clock."""
    call: str = field(default_factory=lambda: secrets.token_hex(8))
    """Names the call in the log. A call after one that has failed continues it, under the same name."""
    failed: bool = False
    stored: str | None = None
    """The call that the broker has stored, once this node has received it."""


class Redemptions(NodeState):
    """The tokens that were redeemed.

    With a broker, the redemption is a control message with the token as its idempotency key. The broker stores only the
    first one of all nodes, which names the call that redeemed the token.

    Args:
        nodes: The nodes of the Hub, or ``None`` if there is only this process.
        publisher: Knows what this process has received.
    """

    def __init__(self, nodes: Nodes | None = None, publisher: Publisher | None = None) -> None:
        self._nodes = nodes
        self._publisher = publisher
        self._redemptions: dict[str, _Redemption] = {}  # by token, in the order of the first calls
        if nodes is not None:
            nodes.add_state(self)

    async def redeem(self, token: str) -> bool:
        """Redeem a token, and return whether this call is the first one of all nodes.

        After a call that has failed or was cancelled, the next one on this node redeems the token, unless another node
        has. Cancelling is safe.

        Args:
            token: A token that cannot be guessed, and is valid for ``MAX_TOKEN_AGE`` seconds at most.

        Raises:
            BrokerError: It is not known whether another node has redeemed the token.
        """
        now = asyncio.get_running_loop().time()
        self._forget(now)
        redemption = self._redemptions.get(token)
        if redemption is None:
            redemption = self._redemptions[token] = _Redemption(now + IDEMPOTENCY_WINDOW)
        elif not redemption.failed:
            return False
        redemption.failed = False
        if self._nodes is None or self._publisher is None:
            return True
        try:
            await self._store(self._nodes, self._publisher, token, redemption.call)
        except BaseException:
            redemption.failed = True
            raise
        return redemption.stored == redemption.call

    async def _store(self, nodes: Nodes, publisher: Publisher, token: str, call: str) -> None:
        """Store that a call has redeemed a token, and wait until this node has received what the broker has stored."""
        message = {"type": "redeem", "token": token, "call": call}
        position = await nodes.publish(message, idempotency_key=f"redeem:{token}")
        if not await publisher.wait_for(position):
            raise OutcomeUnknown("this process has not received the redemption of the token from the broker")

    def _forget(self, now: float) -> None:
        while self._redemptions:
            token = next(iter(self._redemptions))
            if self._redemptions[token].remembered_until >= now:
                break
            del self._redemptions[token]

    # Other nodes.

    def receive(self, node: str, message: ControlMessage, age: float) -> None:  # noqa: ARG002  # of the protocol
        """Handle the redemption of a token on any node."""
        if message["type"] == "redeem":
            redemption = self._redemptions.get(message["token"])
            if redemption is not None and redemption.stored is None:
                redemption.stored = message["call"]
