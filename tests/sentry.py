"""Sentry's SDK and its own integration of aiohttp, which collect events instead of sending them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sentry_sdk
from aiohttp import web, web_urldispatcher
from sentry_sdk import integrations
from sentry_sdk.integrations import Integration
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
def sentry_events(*others: Integration, **options) -> Iterator[list[dict]]:
    """Collect the events of a block with the integration of aiohttp and others, and undo its patches of aiohttp.

    Options are those of the integration of aiohttp.
    """
    with pytest.MonkeyPatch.context() as patches:
        for owner, name in ((web.Application, "_handle"), (web_urldispatcher.UrlDispatcher, "resolve")):
            patches.setattr(owner, name, getattr(owner, name))
        patches.setattr(sentry_sdk.get_global_scope(), "client", sentry_sdk.get_global_scope().client)
        for done in (integrations._processed_integrations, integrations._installed_integrations):
            done.discard(AioHttpIntegration.identifier)  # or aiohttp is patched once in a process
        sentry_sdk.init(
            dsn="https://key@localhost/1",
            transport=InMemory,
            integrations=[AioHttpIntegration(**options), *others],
            default_integrations=False,
            auto_enabling_integrations=False,
        )
        InMemory.events.clear()
        yield InMemory.events
        sentry_sdk.get_client().close()
