"""Tokens that are redeemed once, on whichever node, such as the tickets of ``EventSource``."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable

from ..exceptions import OutcomeUnknown
from .broker import IDEMPOTENCY_WINDOW
from .nodes import ControlMessage, Nodes
from .publisher import Publisher

__all__ = ["MAX_TOKEN_AGE", "Redemptions"]


# Seconds after which a token must not be valid any more: a broker knows for IDEMPOTENCY_WINDOW what was redeemed.
MAX_TOKEN_AGE = IDEMPOTENCY_WINDOW / 2


class Redemptions:
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
        self._redeemed: dict[str, float] = {}  # on this node: until when that is remembered, in the order of the calls
        self._stored: dict[str, str | None] = {}  # by token that is being redeemed: the call that the broker stored
        if nodes is not None:
            nodes.add_state(self)

    async def redeem(self, token: str) -> bool:
        """Redeem a token, and return whether this call is the first one of all nodes.

        If cancelled, the token may be redeemed.

        Args:
            token: A token that cannot be guessed, and is valid for ``MAX_TOKEN_AGE`` seconds at most.

        Raises:
            BrokerError: It is not known whether another node has redeemed the token.
        """
        now = asyncio.get_running_loop().time()
        self._forget(now)
        if token in self._redeemed:
            return False
        self._redeemed[token] = now + IDEMPOTENCY_WINDOW
        if self._nodes is None or self._publisher is None:
            return True
        try:
            return await self._redeem_on_all_nodes(self._nodes, self._publisher, token)
        except BaseException:
            del self._redeemed[token]
            raise

    async def _redeem_on_all_nodes(self, nodes: Nodes, publisher: Publisher, token: str) -> bool:
        call = secrets.token_hex(8)
        self._stored[token] = None
        try:
            message = {"type": "redeem", "token": token, "call": call}
            position = await nodes.publish(message, idempotency_key=f"redeem:{token}")
            if not await publisher.wait_for(position):
                raise OutcomeUnknown("this process has not received the redemption of the token from the broker")
            return self._stored[token] == call
        finally:
            del self._stored[token]

    def _forget(self, now: float) -> None:
        while self._redeemed:
            token = next(iter(self._redeemed))
            if self._redeemed[token] >= now:
                break
            del self._redeemed[token]

    # Other nodes.

    def receive(self, node: str, message: ControlMessage, age: float) -> None:  # noqa: ARG002  # of the protocol
        """Handle the redemption of a token on any node."""
        if message["type"] == "redeem":
            token = message["token"]
            if token in self._stored and self._stored[token] is None:
                self._stored[token] = message["call"]

    def caught_up(self) -> None:
        """Do nothing: a call that is in progress waits for its entry, or raises."""

    def node_died(self, node: str) -> None:
        """Do nothing: what a node has redeemed stays redeemed."""

    def unsent(self) -> Iterable[ControlMessage]:
        """Return nothing: ``redeem`` sends its message itself."""
        return ()

    def send_failed(self) -> None:
        """Do nothing, for the same reason."""

    def leases(self) -> Iterable[ControlMessage]:
        """Return nothing: no lease is needed."""
        return ()
