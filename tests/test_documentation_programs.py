"""The programs of the documentation run: the blocks of a page in order, and then the applications that they make.

A page is one module. What it presupposes, such as the users of an application, is in ``GIVEN``.
"""

from __future__ import annotations

import ast
import asyncio
import gc
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import aiohttp_session
import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry

from aiohttp_interceptors import STREAMS, ContextKey, Hub, as_handler, before, event_stream, setup
from aiohttp_interceptors.brokers.sqlite import SqliteBroker
from aiohttp_interceptors.ready import jwt_verifier
from aiohttp_interceptors.testing import captured_logs, open_stream, request_context, run_chain
from tests.recipes.site import FOLDER as RECIPES
from tests.servers.process import ServerProcess, free_port
from tests.servers.proxies import DEPLOY
from tests.servers.valkey import Valkey
from tests.waiting import until, within

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^( *)```python.*?\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
BLOCKS = {
    str(page.relative_to(ROOT)): blocks
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if (blocks := [textwrap.dedent(code) for _, code in BLOCK.findall(page.read_text())])
}
# Whole programs, which run in processes of their own, and the lines that they print.
PRINTED = {
    "docs/explanations/back_pressure.md": [['dropped {"dropped":9}', "IBM 249", "INTC 31"]],
    "docs/explanations/chain.md": [["enter", "seen at the yield: KeyError('article 7')", "not found"]],
    "docs/upstream.md": [[], ["False"]],
}
(SERVER,) = [block for block in BLOCKS["docs/scaling.md"] if block.startswith("web.run_app(")]  # see the last test
FOLLOWED = {"docs/start.md"}  # word by word, by test_documentation.py
FILES = {page for page in BLOCKS if page.startswith("docs/recipes/")} | {"docs/deploy.md"}  # run by their own tests
RUN = sorted(BLOCKS.keys() - PRINTED.keys() - FOLLOWED - FILES)

USER = ContextKey[Any]("user")
SESSION = ContextKey[Any]("session")
TOKEN = ContextKey[dict]("token")
SECRET = "a secret of more than thirty-two bytes"
ISSUER, AUDIENCE = "https://login.example.com", "https://api.example.com"
PRIVATE_KEY = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
ANN = SimpleNamespace(id=7, name="ann", is_admin=False, regions=["eu"])


@before
async def authenticate(context):
    context[USER] = ANN
    context[SESSION] = SimpleNamespace(number=3)
    context[TOKEN] = {"exp": 4_000_000_000}


@before
async def allow(context):
    pass


async def words(*_):
    """Take the place of a model, or of a source of prices."""
    for word in ("one", "two"):
        yield word


async def returning(value):
    return value


def token(**claims):
    claims = {"sub": "ann", "exp": 4_000_000_000, "aud": AUDIENCE, "iss": ISSUER, **claims}
    return jwt.encode(claims, PRIVATE_KEY, "RS256")


class Sessions:
    """The sessions of an application, which can be revoked."""

    def __init__(self):
        self.revoked = []

    async def revoke(self, session):
        self.revoked.append(session)


class Database:
    """A pool of connections, which records the statements."""

    def __init__(self):
        self.executed = []

    def connection(self):
        return nullcontext(self)

    def transaction(self):
        return nullcontext()

    async def execute(self, statement, values):
        self.executed.append((statement, values))


async def work(records):
    async for _ in records:
        pass


def application(**names) -> Callable[[], dict[str, Any]]:
    return lambda: {"app": web.Application(), "hub": Hub(), "USER": USER, **names}


GIVEN: dict[str, Callable[[], dict[str, Any]]] = {
    "README.md": lambda: {
        "User": SimpleNamespace,
        "admins_only": allow,
        "pool": Database(),
        "user_of": lambda request: returning(ANN),
        "watch": words,
    },
    "docs/access.md": lambda: {
        **application(SESSION=SESSION, TOKEN=TOKEN, SECRET=SECRET)(),
        "may_read_orders": lambda context: returning(True),
        "sessions": Sessions(),
        "verify": jwt_verifier(PRIVATE_KEY.public_key(), algorithms=["RS256"], audience=AUDIENCE, issuer=ISSUER),
    },
    "docs/browser.md": application(),
    "docs/hub.md": lambda: {
        "USER": USER,
        "answer": words,
        "authenticate": authenticate,
        "authorize": allow,
        "my_topics": lambda context: [f"orders.{region}" for region in context[USER].regions],
        "work": work,
    },
    "docs/inspector.md": application(require_admin=allow),
    "docs/operating.md": lambda: {"readers": [InMemoryMetricReader()]},
    "docs/packages.md": application(),
    "docs/ready.md": lambda: {
        "SECRET": SECRET,
        "hub": Hub(),
        "is_developer": lambda context: True,
        "names_in_database": lambda: returning(["ann"]),
        "orders": allow,
        "pool": Database(),
        "public_key": PRIVATE_KEY.public_key(),
    },
    "docs/streams.md": lambda: {
        "app": web.Application(),
        "model": words,
        "prompt_of": lambda request: returning("hello"),
    },
}


class Page:
    """A page as a module that has been run, and its applications, which are served."""

    def __init__(self, name: str, given: dict[str, Any], replaced: dict[str, str]) -> None:
        self.module = ModuleType("my_application")
        self.blocks: list[dict[str, Any]] = []  # the names after each block
        self.apps: list[web.Application] = []
        self.hubs: list[Hub] = []
        self.runners: list[web.AppRunner] = []
        self.urls: list[str] = []
        self._name = name
        self._replaced = replaced
        vars(self.module).update(given)
        self._collect(None)

    async def run(self) -> None:
        for number, block in enumerate(BLOCKS[self._name]):
            if block != SERVER:
                self._collect(await self._execute(self.text(block), f"{self._name}:{number}"))
            self.blocks.append(dict(vars(self.module)))

    def text(self, block: str) -> str:
        """Return a block with the addresses of this test."""
        for old, new in self._replaced.items():
            block = block.replace(old, new)
        return block

    async def _execute(self, code: str, name: str) -> object:
        """Run a block, and return the value of its last line if that is an expression."""
        tree = ast.parse(code)
        last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
        value = None
        for part, mode in [(tree, "exec"), *([(last, "eval")] if last else [])]:
            program = compile(part, name, mode, flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            value = eval(program, vars(self.module))
            if inspect.iscoroutine(value):
                value = await value
        return value

    def _collect(self, value: object) -> None:
        """Find what a block has made. A middleware that it only shows gets an application of its own."""
        if inspect.iscoroutinefunction(value) and hasattr(value, "__middleware_version__"):
            app = web.Application(middlewares=[value])
            app.router.add_get("/", lambda request: returning(web.Response(text="hello")))
            self.apps.append(app)
        for item in list(vars(self.module).values()):
            if isinstance(item, web.Application) and item not in self.apps:
                self.apps.append(item)
            elif isinstance(item, Hub) and item not in self.hubs:
                self.hubs.append(item)
            elif isinstance(item, web.AppRunner) and item not in self.runners:
                self.runners.append(item)

    async def serve(self) -> None:
        routes = [item for item in vars(self.module).values() if isinstance(item, web.RouteTableDef)]
        for table in routes:
            self.apps.append(web.Application())
            self.apps[-1].add_routes(table)
        for app in self.apps:
            if STREAMS not in app:
                setup(app)
            runner = web.AppRunner(app, shutdown_timeout=1.0)
            self.runners.append(runner)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.urls = [f"http://127.0.0.1:{runner.addresses[0][1]}" for runner in self.runners]

    def url_of(self, path: str) -> str:
        """Return the URL of a path, of the last application that has a route for it."""
        paths = [{route.resource.canonical for route in runner.app.router.routes()} for runner in self.runners]
        return [url for url, known in zip(self.urls, paths, strict=True) if path in known][-1] + path

    async def close(self) -> None:
        for runner in self.runners:
            await runner.cleanup()
        for hub in self.hubs:
            await hub.close()


@pytest.fixture
async def run(tmp_path, monkeypatch, raised) -> AsyncIterator[Callable[..., Any]]:
    """Run the blocks of a page in an empty folder, and serve its applications. ``routes`` adds some to the last one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("aiohttp_interceptors.observe.prometheus.REGISTRY", CollectorRegistry())
    async with AsyncExitStack() as stack:
        stack.callback(gc.set_threshold, *gc.get_threshold())  # a page changes this process's collector
        stack.callback(gc.unfreeze)

        async def run_page(name: str, routes: Callable[[Page], list] = lambda page: []) -> Page:
            replaced = {"/var/lib/shop/": f"{tmp_path}/", '"127.0.0.1", 9000': f'"127.0.0.1", {free_port()}'}
            if "redis://events.internal" in "".join(BLOCKS[name]):
                valkey = Valkey(tmp_path / "valkey")
                stack.callback(valkey.kill)
                valkey.start()
                replaced["redis://events.internal:6379/0"] = valkey.url
            page = Page(name, GIVEN.get(name, dict)(), replaced)
            stack.push_async_callback(page.close)
            monkeypatch.setitem(sys.modules, "my_application", page.module)
            await page.run()
            if added := routes(page):
                page.apps[-1].add_routes(added)
            await page.serve()
            return page

        yield run_page
    assert raised() == []


@pytest.mark.parametrize("name", RUN)
async def test_the_programs_of_a_page_run_and_what_they_serve_answers(name, run, session):
    page = await run(name)
    for hub in page.hubs:
        await within(hub.publish("page", "hello"))
    for url, runner in zip(page.urls, page.runners, strict=True):
        for route in runner.app.router.routes():
            if route.method == "GET" and "{" not in (path := route.resource.canonical):
                async with session.get(url + path) as response:
                    assert response.status < 500, path


@pytest.mark.parametrize("name", PRINTED)
async def test_a_whole_program_prints_what_its_page_says(name, tmp_path):
    for code, lines in zip(BLOCKS[name], PRINTED[name], strict=True):
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", code],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stdout.splitlines() == lines
        text = (ROOT / name).read_text()
        assert all(f"`{line}`" in text or f"# {line}" in text for line in lines)


def test_the_other_programs_are_files_that_their_own_tests_run():
    files = {file.read_text() for folder in (RECIPES, DEPLOY) for file in folder.glob("*.py")}
    for name in FILES:
        for code in BLOCKS[name]:
            assert code in files, name


# What a page tells of its programs.


async def test_the_commit_page_refuses_before_the_first_event_and_logs_a_late_header(run, session):
    page = await run("docs/explanations/commit.md")
    url = page.url_of("/orders")
    async with session.get(url) as response:
        assert (response.status, response.headers["X-Shop"]) == (401, "north")
    with captured_logs() as lines:
        async with open_stream(session, f"{url}?user=7") as stream:
            assert [(await stream.next()).data for _ in range(2)] == ["first", "second"]
        await until(lambda: lines)
    assert [line["attempted"] for line in lines if line["event"] == "change_after_commit_dropped"]
    assert "X-Late" in str(lines)


async def test_an_announcement_of_the_page_on_brokers_is_stored_once(run):
    page = await run("docs/explanations/brokers.md")
    hub = Hub()
    order = {"id": 7, "state": "paid"}
    assert await page.module.announce(hub, order) == await page.module.announce(hub, order)
    await hub.close()


async def test_a_ticket_of_the_page_on_access_opens_one_stream(run, session):
    page = await run("docs/access.md", lambda page: [web.post("/ticket", page.module.issue)])
    async with session.post(page.url_of("/ticket"), headers={"Authorization": f"Bearer {token()}"}) as response:
        ticket = (await response.json())["ticket"]
    async with open_stream(session, f"{page.url_of('/orders')}?ticket={ticket}") as stream:
        await page.module.hub.publish("orders.ann", "shipped")
        assert (await stream.next()).data == "shipped"
    async with session.get(f"{page.url_of('/orders')}?ticket={ticket}") as response:
        assert response.status == 401


async def test_the_logout_of_the_page_on_access_ends_the_streams_of_the_session(run, session):
    def routes(page):
        setup(page.module.app, page.module.hub)
        orders = as_handler(authenticate, page.blocks[0]["orders"])
        return [web.get("/my-orders", orders), web.post("/logout", as_handler(authenticate, page.module.logout))]

    page = await run("docs/access.md", routes)
    async with open_stream(session, page.url_of("/my-orders")) as stream:
        async with session.post(page.url_of("/logout"), allow_redirects=False) as response:
            assert response.status == 303
        assert (await stream.next()).name == "logout"
        assert await stream.rest() == []
    assert len(page.module.sessions.revoked) == 1


async def test_the_page_on_the_hub_has_prices_an_answer_a_room_and_a_socket(run, session):
    page = await run("docs/hub.md")
    page.module.hub = page.blocks[1]["hub"]  # the last block only shows another one
    async with open_stream(session, page.url_of("/room")) as stream:
        assert json.loads((await stream.next()).data) == {"topic": "room.1", "present": ["ann"]}
        assert page.module.hub.presence("room.1") == {"ann"}
    async with session.post(page.url_of("/answers"), data="why?") as response:
        path = (await response.json())["url"]
    async with open_stream(session, page.url_of("/room").removesuffix("/room") + path) as stream:
        assert [(await stream.next()).data for _ in range(2)] == ["one", "two"]
        assert json.loads((await stream.next()).data) == {"state": "finished"}
    async with session.ws_connect(page.url_of("/socket")) as socket:
        published = {"topic": "orders.eu", "data": "shipped", "name": "state"}
        async with session.post(page.url_of("/publish"), json=published) as response:
            assert response.status == 201
        assert published.items() <= (await within(socket.receive_json())).items()


async def test_the_page_on_the_inspector_lets_operators_in_only(run):
    page = await run("docs/inspector.md")

    async def status(is_admin):
        context = request_context("GET", "/inspector/")
        context[USER] = SimpleNamespace(is_admin=is_admin)
        return (await run_chain(context, page.module.require_admin)).response

    assert (await status(False)).status == 403
    assert await status(True) is None


async def test_the_page_on_ready_made_interceptors_has_routes_that_use_them(run, session):
    page = await run("docs/ready.md")
    async with session.get(page.url_of("/report"), headers={"Accept": "text/csv"}) as response:
        assert (response.content_type, await response.text()) == ("text/csv", "article,count\ntea,2\n")
    for body, status in [({"article": "tea"}, 201), ({"count": "two"}, 422)]:
        async with session.post(page.url_of("/orders"), json=body) as response:
            assert response.status == status
    for scopes, status in [("profile", 200), ("", 403)]:
        headers = {"Authorization": f"Bearer {token(scope=scopes)}"}
        async with session.get(page.url_of("/me"), headers=headers) as response:
            assert response.status == status
    async with session.post(page.url_of("/articles")) as response:
        assert response.status == 201
    assert page.module.pool.executed == [("INSERT INTO articles VALUES (%s)", ["tea"])]


async def test_the_page_on_streams_answers_as_a_stream_or_as_json(run, session):
    def routes(page):
        return [web.post("/answer", page.module.answer), web.post("/completion", page.module.completion)]

    page = await run("docs/streams.md", routes)
    async with session.post(page.url_of("/answer"), json={}) as response:
        assert response.status == 400
    async with session.post(page.url_of("/answer"), json={"prompt": "hello"}) as response:
        assert 'event: Token\ndata: {"text":"one"}' in await response.text()
    async with session.post(page.url_of("/completion"), json={"stream": False}) as response:
        assert await response.json() == {"text": "onetwo"}


@pytest.mark.filterwarnings("ignore:It is recommended to use web.RequestKey")  # aiohttp-session has a text as its key
async def test_a_session_that_a_stream_of_the_page_on_packages_changes_is_saved(run, session):
    @event_stream
    async def visits(request):
        (await aiohttp_session.get_session(request))["visits"] = 1
        yield "hello"

    def routes(page):
        page.module.app.middlewares.insert(0, aiohttp_session.session_middleware(aiohttp_session.SimpleCookieStorage()))
        return [web.get("/visits", visits)]

    page = await run("docs/packages.md", routes)
    async with open_stream(session, page.url_of("/visits")) as stream:
        assert (await stream.next()).data == "hello"
        assert "visits" in stream.response.headers["Set-Cookie"]


class Shop(ServerProcess):
    """A process with the first programs of the page on scaling."""

    def command(self):
        return [sys.executable, "-u", "-W", "error", "shop.py"]

    def answers(self):
        return "Running on" in (self.folder / "log").read_text()  # the port is open if the other process runs


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux distributes the connections of a port")
async def test_processes_of_the_page_on_scaling_share_a_port_and_a_history(tmp_path, session):
    first, second = BLOCKS["docs/scaling.md"][:2]
    assert second == SERVER
    history = tmp_path / "events.sqlite3"
    shops = [Shop(tmp_path / name) for name in ("one", "two")]
    with ExitStack() as stack:
        for shop in shops:
            shop.port = shops[0].port
            text = (first + second).replace("/var/lib/shop/events.sqlite3", str(history))
            (shop.folder / "shop.py").write_text(text.replace("port=8080", f"port={shop.port}"))
            shop.environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            stack.callback(shop.kill)
            shop.start()
        hub = Hub(SqliteBroker(history))
        async with AsyncExitStack() as streams:
            url = f"http://127.0.0.1:{shops[0].port}/news"
            opened = [await streams.enter_async_context(open_stream(session, url)) for _ in range(4)]
            await hub.publish("news", "hello")
            assert [(await stream.next()).data for stream in opened] == ["hello"] * 4
        await hub.close()


# Commands that pages show.


def commands(name):
    """Return the lines of the only block of commands of a page, as words."""
    (block,) = re.findall(r"^```sh\n(.*?)^```", (ROOT / name).read_text(), re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for line in block.splitlines()]


async def output(words, folder, lines=None):
    """Run a command of Python, and return its output. With a number of lines, end it after these."""
    assert words[0] == "python"
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words[1:], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    )
    try:
        if lines is None:
            return (await within(process.communicate()))[0].decode()
        return "".join([(await within(process.stdout.readline())).decode() for _ in range(lines)])
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_the_commands_of_the_page_on_the_hub_publish_and_print(tmp_path):
    publish, tail = commands("docs/hub.md")
    (server,) = (word for word in tail if word.startswith("redis://"))
    valkey = Valkey(tmp_path / "valkey")
    (tmp_path / "my_application.py").write_text(
        "from aiohttp_interceptors.brokers.redis import RedisBroker\n"
        f"def make_broker(): return RedisBroker({valkey.url!r})\n"
    )
    valkey.start()
    try:
        record_id = (await output(publish, tmp_path)).strip()
        tail[tail.index(server)] = valkey.url
        record = json.loads(await output(tail, tmp_path, lines=1))
    finally:
        valkey.kill()
    assert record == {"id": record_id, "topic": "orders.eu", "data": "shipped", "name": "state", "key": "7"}


async def test_the_command_of_the_page_on_the_browser_prints_where_the_module_is(tmp_path):
    (command,) = commands("docs/browser.md")
    folder = Path((await output(command, tmp_path)).strip())
    assert any("EventSource" in file.read_text() for file in folder.glob("*.js"))
