"""Every exception of the library, sorted by who must act.

::

    Exception
    ├── RuntimeError
    │   ├── QueueClosed          the author of a stage: the queue was changed while the chain was leaving
    │   ├── NoResponse           the author of a route: the chain ended and nobody attached a response
    │   └── ResponseCommitted    the author of a stage: the head is on the wire (logged, never raised into a stage)
    ├── ValueError
    │   └── EventTooLarge        the producer: the event has more bytes than ``max_event_size``
    └── asyncio.QueueFull
        └── ChannelFull          the producer: wait with ``put``, or drop the event

``StopReconnecting`` (in ``web``) is a response: a raised one answers 204.

What is wrong when something is built is a plain ``TypeError`` or ``ValueError`` with the value in its text.
"""

from __future__ import annotations

import asyncio

__all__ = ["ChannelFull", "EventTooLarge", "NoResponse", "QueueClosed", "ResponseCommitted"]


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
