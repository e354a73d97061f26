"""Fixtures: the application of ``site.py``, served by a bare ``AppRunner`` and by aiohttp's test server."""

from __future__ import annotations

import pytest
from aiohttp import ClientSession, CookieJar
from aiohttp.test_utils import TestServer

from tests.conftest import Server
from tests.ecosystem.site import Site


@pytest.fixture(params=["AppRunner", "TestServer"])
def kind(request: pytest.FixtureRequest) -> str:
    """What serves the application. aiohttp's test server cancels handlers whose client leaves."""
    return request.param


@pytest.fixture
async def served(serve, kind):
    """Serve a ``Site``: ``await served("encrypted", max_streams=1)`` is the site, with its ``server``."""
    servers: list[TestServer] = []

    async def start(*args, **options) -> Site:
        site = await Site(*args, **options).install()
        if kind == "AppRunner":
            site.server = await serve(site.app)
        else:
            server = TestServer(site.app)
            servers.append(server)
            await server.start_server()
            site.server = Server(server.runner, server.port)
        return site

    yield start
    for server in servers:
        await server.close()


@pytest.fixture
async def browser():
    """Make clients with cookies of their own, which also keep those of an address without a name."""
    sessions: list[ClientSession] = []

    def start(site: Site) -> ClientSession:
        sessions.append(ClientSession(site.server.url, cookie_jar=CookieJar(unsafe=True)))
        return sessions[-1]

    yield start
    for session in sessions:
        await session.close()


@pytest.fixture
def signed_in(browser):
    """Make a client that has logged in."""

    async def start(site: Site, user: str = "ada") -> ClientSession:
        client = browser(site)
        async with client.get("/login", params={"user": user}) as response:
            assert response.status == 200
            assert await response.text() == f"<p>{user} at login</p>"
        return client

    return start
