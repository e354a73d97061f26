"""Every exception of the library, sorted by who must act.

::

    Exception
    ├── RuntimeError
    │   ├── BrokerError          the publisher, who may publish again:
    │   │   ├── BrokerDown           the broker does not answer, and the event was surely not stored
    │   │   ├── OutcomeUnknown       it may have been: publish again with the same ``idempotency_key``
    │   │   └── BrokerRefused        whoever configures the broker: it said no, and will again
    │   ├── QueueClosed          the author of a stage: the queue was changed while the chain was leaving
    │   ├── NoResponse           the author of a route: the chain ended and nobody attached a response
    │   └── ResponseCommitted    the author of a stage: the head is on the wire (logged, never raised into a stage)
    ├── ValueError
    │   └── EventTooLarge        the producer: the event has more bytes than ``max_event_size``
    ├── asyncio.QueueFull
    │   └── ChannelFull          the producer: wait with ``put``, or drop the event
    └── asyncio.QueueShutDown    (from Python 3.13 on, before that ``Exception``)
        └── ChannelClosed        the producer that uses the queue directly: stop, the stream takes no more

``StopReconnecting`` (in ``web``) is a response: a raised one answers 204.

What is wrong when something is built is a plain ``TypeError`` or ``ValueError`` with the value in its text.
"""

from __future__ import annotations

import asyncio
import sys

__all__ = [
    "BrokerDown",
    "BrokerError",
    "BrokerRefused",
    "ChannelClosed",
    "ChannelFull",
    "EventTooLarge",
    "NoResponse",
    "OutcomeUnknown",
    "QueueClosed",
    "ResponseCommitted",
]


FATAL = (KeyboardInterrupt, SystemExit)
"""What ends the process, and so is never an error of one stream."""


class BrokerError(RuntimeError):
    """A broker could not do what it was to do."""


class BrokerDown(BrokerError):
    """The broker does not answer. What was to be published was surely not stored: to try again later is safe."""


class OutcomeUnknown(BrokerError):
    """What was published may have been stored, or not: with the same ``idempotency_key`` to try again is safe."""


class BrokerRefused(BrokerError):
    """The broker answers, and says no: what was to be published was not stored, and trying again does not help."""


class QueueClosed(RuntimeError):
    """A stage other than ``enter`` tried to change what is still to be entered."""


class NoResponse(RuntimeError):
    """A chain without a handler ended and no interceptor had attached a response."""


class ResponseCommitted(RuntimeError):
    """Something tried to change a response whose head had gone to the wire; the change was dropped."""


class EventTooLarge(ValueError):
    """An event has more bytes on the wire than the stream takes; it was not taken."""


class ChannelFull(asyncio.QueueFull):
    """``put_nowait`` found no room; the event was not taken."""


if sys.version_info >= (3, 13):

    class ChannelClosed(asyncio.QueueShutDown):
        """A call on the queue of a channel that takes no more events, or has no stream any more that takes them."""

else:

    class ChannelClosed(Exception):
        """A call on the queue of a channel that takes no more events, or has no stream any more that takes them."""
