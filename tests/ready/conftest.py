"""Fixtures of the ready-made interceptors: an application that is served with some of them."""

from __future__ import annotations

import pytest

from tests.ready.site import PLACES, application, plain


@pytest.fixture(params=PLACES)
def place(request) -> str:
    """Where the interceptors are: around the application, or around one handler."""
    return request.param


@pytest.fixture
def site(serve, place, handler_cancellation):
    """Serve a handler behind interceptors: ``await site(cors("*"), handler=…)`` is the server."""

    async def start(*interceptors, handler=plain, path="/", **options):
        app = application(place, interceptors, handler, path, **options)
        return await serve(app, handler_cancellation=handler_cancellation)

    return start


@pytest.fixture
def fetch(session):
    """Send a request, and return its status, headers and text."""

    async def send(server, method="GET", path="/", **options):
        async with session.request(method, server.url + path, allow_redirects=False, **options) as response:
            return response.status, response.headers, await response.text()

    return send
