"""Sentry's SDK and its own integration of aiohttp, which collect events instead of sending them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sentry_sdk
from aiohttp import web, web_urldispatcher
from sentry_sdk.integrations.aiohttp import AioHttpIntegration
from sentry_sdk.transport import Transport


class InMemory(Transport):
    """Collect events instead of sending them."""

    events: list[dict] = []  # noqa: RUF012  # there is one instance

    def capture_envelope(self, envelope) -> None:
        event = envelope.get_event()
        if event is not None:
            self.events.append(event)


@contextmanager
def sentry_events(**options) -> Iterator[list[dict]]:
    """Collect the events of a block, and undo Sentry's patches of aiohttp after it."""
    with pytest.MonkeyPatch.context() as patches:
        for owner, name in ((web.Application, "_handle"), (web_urldispatcher.UrlDispatcher, "resolve")):
            patches.setattr(owner, name, getattr(owner, name))
        patches.setattr(sentry_sdk.get_global_scope(), "client", sentry_sdk.get_global_scope().client)
        sentry_sdk.init(
            dsn="https://key@localhost/1", transport=InMemory, integrations=[AioHttpIntegration()], **options
        )
        InMemory.events.clear()
        yield InMemory.events
        sentry_sdk.get_client().close()
