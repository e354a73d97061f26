"""The handlers for health checks: a process that lives, and one that should receive requests."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from aiohttp import web

from aiohttp_interceptors import Hub, event_stream, live_handler, ready_handler, setup, topic_stream
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from tests.listener import listen
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import TIMEOUT, until, within

pytestmark = BOTH_LOOPS


async def ask(session, server, path, method="GET"):
    """Return the status of an answer, and its content."""
    async with session.request(method, f"{server.url}{path}") as response:
        assert response.headers["Cache-Control"] == "no-store"
        text = await response.text()
        return response.status, json.loads(text) if text else None


class TestLive:
    async def test_a_loop_that_runs_is_live(self, serve, session, logged):
        app = web.Application()
        app.router.add_get("/live", live_handler())
        server = await serve(app)
        status, answer = await ask(session, server, "/live")
        assert (status, answer["live"]) == (200, True)
        assert 0 <= answer["lag"] < 5
        assert await ask(session, server, "/live", "HEAD") == (200, None)

    async def test_a_loop_whose_iteration_takes_longer_is_not(self, serve, session, logged):
        async def block(request, handler):
            asyncio.get_running_loop().call_soon(time.sleep, 0.06)
            return await handler(request)

        app = web.Application(middlewares=[web.middleware(block)])
        app.router.add_get("/live", live_handler(max_lag=0.05))
        app.router.add_get("/patient", live_handler(max_lag=5))
        server = await serve(app)
        status, answer = await ask(session, server, "/live")
        assert (status, answer["live"]) == (503, False)
        assert answer["lag"] >= 0.06
        status, answer = await ask(session, server, "/patient")
        assert (status, answer["live"]) == (200, True)

    async def test_a_broker_that_is_away_does_not_count(self, serve, session, logged):
        log = MemoryLog()
        log.stop()
        app = web.Application()
        setup(app, Hub(MemoryBroker(log)))
        app.router.add_get("/live", live_handler())
        assert (await ask(session, await serve(app), "/live"))[0] == 200

    @pytest.mark.parametrize("max_lag", [0, -1, float("inf"), float("nan"), None, "5", True])
    async def test_an_invalid_lag_is_refused(self, max_lag):
        with pytest.raises((TypeError, ValueError), match=r"^max_lag is "):
            live_handler(max_lag=max_lag)


class TestReady:
    async def test_it_follows_each_hub(self, serve, session, logged):
        log, hubs = MemoryLog(), [Hub(), Hub()]
        hubs[1] = Hub(MemoryBroker(log))
        app = web.Application()
        setup(app, *hubs)
        app.router.add_get("/ready", ready_handler(*hubs))
        app.router.add_get("/", topic_stream(hubs[1], "a", heartbeat=None))
        server = await serve(app)
        await until(lambda: hubs[1].ready)
        expected = {"ready": True, "stopping": False, "hubs": [True, True], "streams": 0}
        assert await ask(session, server, "/ready") == (200, expected)
        listener = await listen(server)
        log.stop()
        await until(lambda: not hubs[1].ready)
        expected = {"ready": False, "stopping": False, "hubs": [True, False], "streams": 1}
        assert await ask(session, server, "/ready") == (503, expected)
        assert await ask(session, server, "/ready", "HEAD") == (503, None)
        log.restart()
        await until(lambda: hubs[1].ready)
        expected = {"ready": True, "stopping": False, "hubs": [True, True], "streams": 1}
        assert await ask(session, server, "/ready") == (200, expected)
        await listener.close()

    async def test_without_hubs_and_setup_it_is_ready(self, serve, session, logged):
        app = web.Application()
        app.router.add_get("/ready", ready_handler())
        status, answer = await ask(session, await serve(app), "/ready")
        assert (status, answer["ready"], answer["hubs"]) == (200, True, [])

    async def test_a_hub_that_was_closed_is_not(self, serve, session, logged):
        hub, app = Hub(), web.Application()
        app.router.add_get("/ready", ready_handler(hub))
        server = await serve(app)
        await hub.close()
        status, answer = await ask(session, server, "/ready")
        assert (status, answer["hubs"]) == (503, [False])

    @pytest.mark.parametrize("place", ["the application", "a sub-application", "one with its own setup"])
    async def test_an_application_that_stops_is_not(self, serve, session, logged, place):
        reached, may_go_on, end = asyncio.Event(), asyncio.Event(), asyncio.Event()

        @event_stream(finite=True, heartbeat=None)
        async def until_end(request: web.Request):
            yield "x"
            await end.wait()

        @web.middleware
        async def wait(request, handler):
            if request.path.endswith("/ready"):
                reached.set()
                await may_go_on.wait()
            return await handler(request)

        app = web.Application(middlewares=[wait])
        setup(app)
        app.router.add_get("/", until_end)
        inner = web.Application() if place != "the application" else app
        if place == "one with its own setup":
            setup(inner)
        inner.router.add_get("/ready", ready_handler())
        if inner is not app:
            app.add_subapp("/inner/", inner)
        server = await serve(app, shutdown_timeout=TIMEOUT)
        listener = await listen(server)
        assert await listener.data(1) == ["x"]
        asking = asyncio.create_task(ask(session, server, "/ready" if inner is app else "/inner/ready"))
        await within(reached.wait())
        stopping = asyncio.create_task(server.stop())
        later = asyncio.get_running_loop().time() + 0.05
        await until(lambda: asyncio.get_running_loop().time() > later)
        may_go_on.set()
        status, answer = await within(asking)
        assert (status, answer["ready"], answer["stopping"]) == (503, False, True)
        assert not listener.complete
        end.set()
        await within(stopping)
        await listener.close()

    @pytest.mark.parametrize("argument", [None, "hub", MemoryLog()])
    async def test_anything_but_a_hub_is_refused(self, argument):
        with pytest.raises(TypeError, match=r"^ready_handler takes Hubs, not "):
            ready_handler(Hub(), argument)
