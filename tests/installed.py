"""What an installed package does. A process without this checkout runs it: see test_package.py and scripts/package.

python -I -W error -X dev installed.py [--path FOLDER]... [--without MODULE]... EXTRA...
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
import tempfile
from pathlib import Path

PACKAGE = "aiohttp_interceptors"
NEEDS = {
    "brokers.redis": "redis",
    "brokers.postgres": "postgres",
    "brokers.nats": "nats",
    "observe.prometheus": "prometheus",
    "observe.opentelemetry": "opentelemetry",
}
SECRET = "a secret of at least thirty-two bytes"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--path", action="append", default=[])
    parser.add_argument("--without", action="append", default=[])
    parser.add_argument("extras", nargs="*")
    arguments = parser.parse_args()
    sys.path[:0] = arguments.path
    sys.modules.update(dict.fromkeys(arguments.without))  # an import of None fails like one of a missing module
    extras = set(arguments.extras)
    root = Path(importlib.import_module(PACKAGE).__file__).parent
    assert not Path(__file__).is_relative_to(root.parent), f"{root} is the checkout, not an installed package"
    import_all(root, extras)
    import_names()
    verify_tokens(extras)
    asyncio.run(serve(extras))
    print(f"{PACKAGE} with {', '.join(sorted(extras)) or 'no extra'}: ok")


def import_all(root: Path, extras: set[str]) -> None:
    """Import each module. One whose extra is missing names it."""
    files = [file.relative_to(root.parent).with_suffix("") for file in sorted(root.rglob("*.py"))]
    names = [".".join(file.parts).removesuffix(".__init__") for file in files if file.name != "__main__"]
    assert len(names) > 100, names
    for name in names:
        part = ".".join(name.split(".")[1:3])
        extra = NEEDS.get(part)
        try:
            importlib.import_module(name)
        except ImportError as error:
            assert extra is not None, f"{name} needs something that is no dependency: {error}"
            assert extra not in extras, f"{name} needs more than its extra: {error}"
            assert f"pip install 'aiohttp-interceptors[{extra}]'" in str(error), error
        else:
            assert extra is None or extra in extras, f"{name} was imported without its extra"


def import_names() -> None:
    """Look up each public name of the package, which is imported when it is used first."""
    package = importlib.import_module(PACKAGE)
    for name in package.__all__:
        getattr(package, name)


def verify_tokens(extras: set[str]) -> None:
    from aiohttp_interceptors.ready import Tickets, jwt_verifier

    for make in (lambda: jwt_verifier(SECRET, algorithms=["HS256"]), lambda: Tickets(SECRET)):
        try:
            make()
        except ImportError as error:
            assert "jwt" not in extras, error
            assert "pip install 'aiohttp-interceptors[jwt]'" in str(error), error
        else:
            assert "jwt" in extras


async def serve(extras: set[str]) -> None:
    """Serve a stream, a Hub with a file, the module for pages, and the inspector, to a client."""
    from aiohttp import ClientSession, web

    from aiohttp_interceptors import Event, Hub, event_stream, interceptor_middleware, setup, topic_stream
    from aiohttp_interceptors.brokers.sqlite import SqliteBroker
    from aiohttp_interceptors.observe.inspector import inspector
    from aiohttp_interceptors.testing import open_stream

    @event_stream
    async def count(context):
        for number in range(3):
            yield Event(str(number), id=number)

    app = web.Application()
    with tempfile.TemporaryDirectory() as folder:
        hub = Hub(SqliteBroker(Path(folder, "events.sqlite3")))
        observers = []
        if "prometheus" in extras:
            from aiohttp_interceptors.observe.prometheus import PrometheusMetrics

            metrics = PrometheusMetrics()
            metrics.watch(hub)
            observers.append(metrics.streams)
            app.router.add_get("/metrics", metrics.handler)
        if "opentelemetry" in extras:
            from aiohttp_interceptors.observe.opentelemetry import OpenTelemetryTraces

            traces = OpenTelemetryTraces()
            observers.append(traces.streams)
            app.middlewares.append(interceptor_middleware(traces.requests))
        setup(app, hub, client="/event-stream.js", observer=observers)
        app.router.add_get("/count", count)
        app.router.add_get("/news", topic_stream(hub, "news"))
        app.add_subapp("/inspector", inspector(hub, public=True))
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            async with ClientSession(url) as client:
                async with open_stream(client, "/count") as stream:
                    assert [(await stream.next()).data for _ in range(3)] == ["0", "1", "2"]
                async with open_stream(client, "/news") as stream:
                    await hub.publish("news", "hello")
                    assert (await stream.next()).data == "hello"
                pages = {"/event-stream.js": "EventSource", "/inspector/": "inspector.js"}
                pages |= {"/metrics": "streams_open"} if "prometheus" in extras else {}
                for page, word in pages.items():
                    async with client.get(page) as response:
                        assert response.status == 200, page
                        assert word in await response.text(), page
        finally:
            await runner.cleanup()


if __name__ == "__main__":
    main()
