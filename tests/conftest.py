"""Fixtures that all tests share: a server on a real port, a client session, and captured logs."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest
from aiohttp import ClientSession, web

from aiohttp_interceptors.testing import captured_logs
from tests.limit import (  # noqa: F401  # pytest finds hooks by their names
    pytest_configure,
    pytest_exception_interact,
    pytest_runtest_call,
    pytest_runtest_setup,
    pytest_runtest_teardown,
    pytest_timeout_cancel_timer,
    pytest_timeout_set_timer,
    pytest_unconfigure,
)
from tests.waiting import TIMEOUT


def pytest_collection_finish() -> None:
    """Leave the tests themselves out of garbage collection, of which tests of leaks ask for many."""
    gc.collect()
    gc.freeze()


@dataclass
class Server:
    """An application that is served on a port."""

    runner: web.AppRunner
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def stop(self) -> None:
        """Stop as ``web.run_app`` does. Idempotent."""
        await self.runner.cleanup()

    async def connect(self, request: str) -> Raw:
        """Open a connection and send the text of a request; line feeds become CRLF."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request.replace("\n", "\r\n").encode())
        return Raw(reader, writer)

    async def exchange(self, request: str) -> bytes:
        """Send the text of a request and return every byte that arrives until the server closes."""
        raw = await self.connect(request)
        async with asyncio.timeout(TIMEOUT):
            response = await raw.reader.read()
        await raw.close()
        return response


@dataclass
class Raw:
    """A TCP connection without an HTTP client."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def until(self, separator: bytes) -> bytes:
        """Read up to and including a separator."""
        async with asyncio.timeout(TIMEOUT):
            return await self.reader.readuntil(separator)

    async def close(self) -> None:
        """Close as a browser does when its tab is closed."""
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass

    def reset(self) -> None:
        """Close with a TCP reset."""
        self.writer.transport.abort()


Serve = Callable[..., Awaitable[Server]]


@pytest.fixture(params=[False, True], ids=["production", "handler_cancellation"])
def handler_cancellation(request: pytest.FixtureRequest) -> bool:
    """Run a test with and without cancelled handlers: aiohttp's test server cancels them on a disconnect."""
    return request.param


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Serve applications on free ports with an ``AppRunner``."""
    servers: list[Server] = []

    async def start(app: web.Application, **settings: object) -> Server:
        runner = web.AppRunner(app, **{"shutdown_timeout": 1.0, **settings})
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server = Server(runner, runner.addresses[0][1])
        servers.append(server)
        return server

    yield start
    for server in servers:
        await server.stop()


@pytest.fixture
async def session() -> AsyncIterator[ClientSession]:
    async with ClientSession() as session:
        yield session


@pytest.fixture
def raised(caplog: pytest.LogCaptureFixture) -> Callable[[], list[BaseException | None]]:
    """List the exceptions that reached aiohttp, as logged by it."""
    return lambda: [
        record.exc_info and record.exc_info[1]
        for record in caplog.records
        if record.name == "aiohttp.server" and record.levelname == "ERROR"
    ]


@pytest.fixture
def logged():
    """Capture log lines as dictionaries."""
    with captured_logs() as lines:
        yield lines
