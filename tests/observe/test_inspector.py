"""The inspector: who may mount and open it, what it shows, and how it ends streams."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import weakref
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from aiohttp import web
from aiohttp_sse import sse_response

from aiohttp_interceptors import (
    STREAMS,
    Drain,
    Event,
    EventStreamResponse,
    Hub,
    HubDown,
    StreamClosed,
    as_handler,
    before,
    setup,
    start_event_stream,
    topic_stream,
)
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.hub.history import History
from aiohttp_interceptors.hub.topic_history import RetentionPolicy
from aiohttp_interceptors.observe.inspector import application, inspector, pacer, streams
from aiohttp_interceptors.observe.inspector.order import FirstEntries
from aiohttp_interceptors.observe.inspector.raw import MAX_SHOWN, MAX_WAITING, MAX_WAITING_BYTES, RawView, Write, mask
from aiohttp_interceptors.observe.inspector.recorder import MAX_FACTS, Recorder
from aiohttp_interceptors.testing import open_stream
from aiohttp_interceptors.web.app import Streams
from aiohttp_interceptors.web.transport import Tap
from tests.listener import listen
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import TIMEOUT, until

pytestmark = BOTH_LOOPS
JSON = {"Content-Type": "application/json"}


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """Take samples more often than once in a second."""
    monkeypatch.setattr(pacer, "MIN_INTERVAL", 0.02)


def owner_of(context):
    return context.request.query.getall("owner", [])


async def require_admin(context):
    if context.request.headers.get("Authorization") != "admin":
        raise web.HTTPUnauthorized(text="operators only\n")


class Page:
    """What a page knows: it applies the samples of its stream."""

    def __init__(self, stream):
        self.stream = stream
        self.rows, self.topics = {}, {}
        self.facts, self.samples = [], {}

    async def next(self):
        event = await self.stream.next()
        assert event.name == "sample"
        self.sample = sample = json.loads(event.data)
        for known, rows, order in (
            (self.rows, sample["stream_rows"], sample["streams"]["order"]),
            (self.topics, sample["topic_rows"], sample["topics"]["order"]),
        ):
            known.update(rows)
            if order is not None:
                kept = {key: known[key] for key in order}
                known.clear()
                known.update(kept)
        self.facts += sample["facts"]
        self.samples.update({second[0]: second for second in sample["samples"]})
        return self

    async def until(self, condition):
        """Read samples until a condition holds."""
        async with asyncio.timeout(TIMEOUT):
            while True:
                await self.next()
                if condition(self):
                    return self

    @property
    def paths(self):
        return [row["path"] for row in self.rows.values()]

    def row(self, path):
        return next(row for row in self.rows.values() if row["path"] == path)

    def named(self, path):
        """Return what a page sends to name a stream."""
        return {"process": self.sample["process"]["key"], "stream": self.key(path)}

    def raw(self, path):
        """Return the address of the raw view of a stream."""
        return "/inspector/raw?" + "&".join(f"{name}={value}" for name, value in self.named(path).items())

    def key(self, path):
        return next(key for key, row in self.rows.items() if row["path"] == path)


class Site:
    """A served application with an inspector."""

    def __init__(self, serve, session, *hubs, options=None, **limits):
        self.serve, self.session = serve, session
        self.app = web.Application()
        self.hubs = hubs
        setup(self.app, *hubs, **limits)
        self.options = {"public": True, **(options or {})}
        if hubs:
            self.get("/news/{topic}", topic_stream(hubs[0], topics_of, owner=owner_of))
        self.get("/clock", as_handler(start_event_stream(waits, owner=owner_of)))

    def get(self, path, handler):
        self.app.router.add_get(path, handler)
        return self

    async def start(self, **settings):
        self.app.add_subapp("/inspector", inspector(*self.hubs, **self.options))
        self.server = await self.serve(self.app, **settings)
        return self

    def stream(self, path, **options):
        return open_stream(self.session, self.server.url + path, **options)

    @asynccontextmanager
    async def page(self, **query):
        query = "&".join(f"{name}={value}" for name, value in query.items())
        async with self.stream(f"/inspector/feed?{query}") as stream:
            assert stream.response.status == 200
            yield await Page(stream).next()

    async def post(self, path, body, **headers):
        url = f"{self.server.url}/inspector/{path}"
        async with self.session.post(url, data=json.dumps(body), headers={**JSON, **headers}) as response:
            return response.status, await response.text()


async def waits(channel, context):
    await channel.put("open")
    await channel.wait_closed()


def topics_of(context):
    return [context.request.match_info["topic"], *context.request.query.getall("topic", [])]


@pytest.fixture
def site(serve, session):
    return lambda *hubs, **options: Site(serve, session, *hubs, **options)


# Mounting.


@pytest.mark.parametrize("interceptors", [[], (), [None]])
def test_it_is_not_made_without_an_interceptor(interceptors):
    with pytest.raises(ValueError, match=r"interceptors=\[require_admin\].*public=True allows every client"):
        inspector(Hub(), interceptors=interceptors)


def test_public_allows_every_client():
    assert isinstance(inspector(public=True), web.Application)


@pytest.mark.parametrize("options", [{"public": 1}, {"public": True, "show_data": "yes"}, {"interceptors": [42]}])
def test_options_of_a_wrong_type_are_refused(options):
    with pytest.raises(TypeError):
        inspector(**options)


def test_only_hubs_are_taken():
    with pytest.raises(TypeError, match="inspector takes Hubs, not <Application"):
        inspector(web.Application(), public=True)


def test_a_hub_is_taken_once():
    hub = Hub()
    with pytest.raises(ValueError, match="inspector takes each Hub once"):
        inspector(hub, Hub(), hub, public=True)


# Authorization. Each address of the inspector, and one that it does not have.

ADDRESSES = [
    *(("GET", path) for path in ("", "/", "/inspector.js", "/inspector.css", "/icon.svg", "/feed", "/raw?stream=x")),
    *(("POST", path) for path in ("/end", "/disconnect")),
    ("GET", "/elsewhere"),
    ("GET", "/end"),
]


@pytest.mark.parametrize(("method", "path"), ADDRESSES)
async def test_a_request_that_is_not_allowed_gets_the_status_of_the_interceptor_everywhere(site, method, path):
    hub = Hub()
    site = await site(hub, options={"public": False, "interceptors": [before(require_admin)]}).start()
    async with site.stream("/clock?owner=a") as stream:
        await stream.next()
        url, body = f"{site.server.url}/inspector{path}", json.dumps({"owner": "a"}) if method == "POST" else None
        async with site.session.request(method, url, data=body, headers=JSON, allow_redirects=False) as response:
            assert response.status == 401
            assert await response.text() == "operators only\n"
            assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
        assert len(site.app[STREAMS]) == 1


async def test_an_operator_gets_the_page_its_streams_and_its_actions(site):
    site = await site(options={"public": False, "interceptors": [before(require_admin)]}).start()
    admin = {"Authorization": "admin"}
    async with site.session.get(f"{site.server.url}/inspector", headers=admin) as response:
        assert response.status == 200
        assert response.url.path == "/inspector/"
        assert "<title>Inspector</title>" in await response.text()
    async with site.stream("/inspector/feed", headers=admin) as stream:
        assert (await stream.next()).name == "sample"
    assert await site.post("disconnect", {"owner": "a"}, **admin) == (200, '{"disconnected": "a"}')


async def test_the_page_may_not_run_other_scripts_nor_be_framed(site):
    site = await site().start()
    for path in ("", "inspector.js", "inspector.css", "icon.svg"):
        async with site.session.get(f"{site.server.url}/inspector/{path}") as response:
            policy = response.headers["Content-Security-Policy"].split("; ")
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Cache-Control"] == "no-store"
        assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"} <= set(policy)
        assert not [directive for directive in policy if "unsafe" in directive or "http" in directive]


async def test_its_files_load_nothing_from_elsewhere(site):
    site = await site().start()
    for path in ("", "inspector.js", "inspector.css"):
        async with site.session.get(f"{site.server.url}/inspector/{path}") as response:
            text = (await response.text()).replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text
        assert "https:" not in text
        assert "//cdn" not in text


CROSS_SITE = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
]


@pytest.mark.parametrize("headers", CROSS_SITE, ids=str)
@pytest.mark.parametrize("action", ["end", "disconnect"])
async def test_an_action_of_another_site_is_refused(site, action, headers):
    site = await site().start()
    async with site.stream("/clock?owner=a") as stream:
        await stream.next()
        async with site.page() as page:
            body = page.named("/clock") if action == "end" else {"owner": "a"}
            status, _ = await site.post(action, body, **headers)
            assert status == 403
            await page.next()
            assert page.paths == ["/clock"]
            status, _ = await site.post(action, body, Origin=site.server.url)
            assert status == 200


@pytest.mark.parametrize("action", ["end", "disconnect"])
async def test_an_action_takes_json_only_as_a_form_needs_no_permission(site, action):
    site = await site().start()
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        status, _ = await site.post(action, {}, **{"Content-Type": content_type})
        assert status == 415


@pytest.mark.parametrize(
    ("body", "status"), [({}, 422), ({"owner": 7}, 422), ({"owner": ""}, 422), ({"owner": "a\n"}, 422), ([], 422)]
)
async def test_an_invalid_action_is_refused(site, body, status):
    site = await site().start()
    assert (await site.post("disconnect", body))[0] == status


async def test_a_proxy_that_changes_the_host_needs_the_origin_of_the_page(site):
    site = await site(options={"origins": ["https://admin.example"]}).start()
    headers = {"Origin": "https://admin.example"}
    assert (await site.post("disconnect", {"owner": "a"}, **headers))[0] == 200


@pytest.mark.parametrize("path", ["feed", "raw"])
async def test_the_page_of_another_site_cannot_open_its_streams(site, path):
    site = await site().start()
    for value, status in ("cross-site", 403), ("same-site", 403), ("same-origin", {"feed": 200, "raw": 409}[path]):
        async with site.stream(f"/inspector/{path}", headers={"Sec-Fetch-Site": value}) as stream:
            assert stream.response.status == status


# What it shows.


async def test_streams_of_each_kind_are_shown(site):
    hub = Hub()

    async def compatible(request):
        async with sse_response(request, response_cls=EventStreamResponse) as response:
            await response.send("x")
            await response.wait()
        return response

    site = await site(hub).get("/compatible", compatible).start()
    async with (
        site.stream("/news/a.b?topic=c.>&owner=user:7&owner=session:1") as topics,
        site.stream("/clock") as channel,
        site.stream("/compatible") as other,
    ):
        await hub.publish("a.b", "x")
        for stream in (topics, channel, other):
            await stream.next()
        async with site.page() as page:
            assert sorted(page.paths) == ["/clock", "/compatible", "/news/a.b"]
            row = page.row("/news/a.b")
            assert row["route"] == "/news/{topic}"
            assert row["kind"] == "topics"
            assert row["topics"] == ["a.b", "c.>"]
            assert row["owners"] == ["user:7", "session:1"]
            assert (row["offset"], row["behind"], row["unsent"], row["events"]) == (1, 0, 0, 1)
            assert row["peer"] == "127.0.0.1"
            assert page.row("/clock")["kind"] == "channel"
            assert page.row("/clock")["offset"] is None
            assert page.row("/compatible")["kind"] == "aiohttp-sse"
            assert abs(page.sample["now"] - row["opened"]) < TIMEOUT
            assert page.sample["streams"]["total"] == 3


async def test_streams_of_sub_applications_are_shown(site):
    inner, with_setup = web.Application(), web.Application()
    setup(with_setup)
    for app in (inner, with_setup):
        app.router.add_get("/clock", as_handler(start_event_stream(waits)))
    site = site()
    site.app.add_subapp("/inner", inner)
    site.app.add_subapp("/other", with_setup)
    await site.start()
    async with site.stream("/inner/clock"), site.stream("/other/clock"), site.page() as page:
        await page.until(lambda page: sorted(page.paths) == ["/inner/clock", "/other/clock"])


async def test_streams_without_setup_are_shown_and_those_of_other_applications_are_not(serve, session):
    servers = []
    for name in ("one", "two"):
        app = web.Application()
        app.router.add_get(f"/{name}", as_handler(start_event_stream(waits)))
        app.add_subapp("/inspector", inspector(public=True))
        servers.append(await serve(app))
    async with (
        open_stream(session, f"{servers[0].url}/one") as one,
        open_stream(session, f"{servers[1].url}/two") as two,
    ):
        await one.next()
        await two.next()
        for server, path in zip(servers, ("/one", "/two"), strict=True):
            async with open_stream(session, f"{server.url}/inspector/feed") as stream:
                page = await Page(stream).next()
                assert page.paths == [path]


async def test_on_a_port_of_its_own_the_page_is_at_the_root(serve, session):
    server = await serve(inspector(Hub(), public=True))
    async with session.get(server.url) as response:
        assert (response.status, response.content_type) == (200, "text/html")


async def test_the_path_of_a_mounted_inspector_redirects_to_its_page(serve, session):
    app = web.Application()
    app.add_subapp("/inspector", inspector(Hub(), public=True))
    server = await serve(app)
    async with session.get(f"{server.url}/inspector") as response:
        assert (response.url.path, response.content_type) == ("/inspector/", "text/html")


async def test_on_a_port_of_its_own_it_shows_all_applications_of_the_process(site, serve):
    hub = Hub()
    bare = web.Application()
    bare.router.add_get("/bare", as_handler(start_event_stream(waits)))
    site, bare = await site(hub).start(), await serve(bare)
    inspecting = await serve(inspector(hub, public=True))
    async with site.stream("/clock?owner=a"), open_stream(site.session, f"{bare.url}/bare"), site.page():
        async with open_stream(site.session, f"{inspecting.url}/feed") as stream:
            page = await Page(stream).next()
            await page.until(lambda page: sorted(page.paths) == ["/bare", "/clock"])
            assert page.sample["streams"]["own"] == 2
        async with site.session.post(f"{inspecting.url}/disconnect", json={"owner": "a"}) as response:
            assert response.status == 200
        await until(lambda: len(site.app[STREAMS]) == 0)


async def test_a_request_that_reaches_another_process_is_told_apart(serve, session):
    one, two = [await Site(serve, session).start() for _ in range(2)]
    async with one.stream("/clock"), one.page() as page:
        named, path = page.named("/clock"), page.raw("/clock")
        status, text = await two.post("end", named)
        assert status == 409
        assert text.startswith("This stream is one of another process")
        async with two.stream(path) as raw:
            assert raw.response.status == 409
        assert (await one.post("end", named))[0] == 200


async def test_an_error_that_cannot_be_encoded_does_not_end_the_page(site):
    hub = Hub()
    site = await site(hub).start()
    hub._dispatcher.observers.tell(HubDown(0.0, "lone \ud800 surrogate"))
    async with site.page() as page:
        assert [fact["text"] for fact in page.facts] == ["lone \ud800 surrogate"]


async def test_its_own_streams_are_counted_apart(site):
    site = await site().start()
    async with site.page() as one, site.page():
        await one.until(lambda page: page.sample["streams"]["own"] == 2)
        assert one.sample["streams"]["total"] == 0
        assert len(site.app[STREAMS]) == 0


async def test_a_stalled_client_falls_behind_and_can_be_ended(site):
    hub = Hub()
    site = await site(hub).start()
    stalled = await listen(site.server, "/news/a", receive_buffer=4096)
    async with site.stream("/news/a") as reader, site.page() as page:
        unsent, behind = set(), set()
        while len(behind) < 5:
            await hub.publish("a", "x" * 4000)
            await reader.next()
            await page.next()
            slow = next(iter(page.rows.values()))  # the one that is most behind comes first
            unsent.add(slow["unsent"])
            behind.add(slow["behind"])
        assert max(unsent) > 0
        assert slow["paused"]
        key = next(iter(page.rows))
        named = {**page.named("/news/a"), "stream": key}
        assert slow["offset"] < hub.history.end
        others = [row for row in page.rows.values() if row is not slow]
        assert [(row["behind"], row["offset"]) for row in others] == [(0, hub.history.end)]
        assert await site.post("end", named) == (200, '{"ended": 1}')
        await page.until(lambda page: key not in page.rows)
        assert len(page.rows) == 1
        assert await site.post("end", named) == (404, "This stream has ended.\n")
        facts = [fact for fact in page.facts if fact["name"] == "StreamClosed"]
        assert [fact["text"].split()[0] for fact in facts] == ["kicked"]
    await stalled.close()


async def test_a_stream_that_is_caught_up_is_at_the_end_whatever_the_topic_of_the_last_record(site):
    hub = Hub()
    site = await site(hub).start()
    async with site.stream("/news/a") as stream, site.page() as page:
        await hub.publish("a", "x")
        await stream.next()
        await hub.publish("b", "x")
        await page.until(lambda page: page.sample["hubs"][0]["offset"] == 2)
        await page.until(lambda page: page.row("/news/a")["offset"] == 2)
        assert page.row("/news/a")["behind"] == 0


@pytest.mark.parametrize("topic", ["a", "*"])
async def test_a_stream_whose_records_were_evicted_is_marked_and_comes_first(site, topic):
    hub = Hub(history=2)
    site = await site(hub).get("/stalled", topic_stream(hub, topic)).start()
    async with site.stream("/news/b"), site.page() as page:  # the older one comes first if both are caught up
        stalled = await listen(site.server, "/stalled", receive_buffer=4096)
        await page.until(lambda page: len(page.rows) == 2)
        assert [(row["path"], row["behind"], row["evicted"]) for row in page.rows.values()] == [
            ("/news/b", 0, 0),
            ("/stalled", 0, 0),
        ]
        while not page.row("/stalled")["evicted"]:
            await hub.publish("a", "x" * 4000)
            await page.next()
        assert page.row("/stalled")["behind"] == 2
        await hub.erase("a")
        await page.until(lambda page: page.row("/stalled")["behind"] == 0)
        assert [(row["path"], row["evicted"]) for row in page.rows.values()] == [("/stalled", 1), ("/news/b", 0)]
    await stalled.close()


async def test_events_that_wait_in_a_channel_are_behind(site):
    async def floods(channel, context):
        while await channel.put("x" * 10_000):
            pass

    site = await site().get("/flood", as_handler(start_event_stream(floods, buffer=7))).start()
    stalled = await listen(site.server, "/flood", receive_buffer=4096)
    async with site.page() as page:
        await page.until(lambda page: page.rows and page.row("/flood")["behind"] == 7)
        assert page.row("/flood")["unsent"] > 0
    await stalled.close()


@pytest.mark.parametrize("path", [b"/any/%ff", b"/any/%C3%A4%E2%80%A8", b"/any/%ED%A0%80", b"/any/%00%0a"])
async def test_a_path_that_is_no_text_does_not_end_the_page(site, path):
    site = await site().get("/any/{name}", as_handler(start_event_stream(waits))).start()
    client = await site.server.connect("")
    client.writer.write(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path)
    assert b"200 OK" in await client.until(b"\r\n\r\n")
    async with site.page() as page:
        await page.until(lambda page: page.rows and page.facts)
        assert page.paths[0].startswith("/any/")
        assert page.facts[0]["where"] == page.paths[0]
        assert (await site.post("end", page.named(page.paths[0])))[0] == 200
    await client.close()


@pytest.mark.parametrize("waiting", [True, False])
async def test_a_stream_of_aiohttp_sse_is_disconnected(site, waiting):
    released = asyncio.Event()

    async def compatible(request):
        async with sse_response(request, response_cls=EventStreamResponse) as response:
            await response.send("x")
            await (response.wait() if waiting else released.wait())
        released.set()
        return response

    site = await site().get("/compatible", compatible).start()
    client = await listen(site.server, "/compatible")
    async with site.page() as page:
        await page.until(lambda page: page.rows)
        assert (await site.post("end", page.named("/compatible")))[0] == 200
        with pytest.raises((EOFError, ConnectionResetError)):
            while True:
                await client.read()
        await page.until(lambda page: not page.rows)
        assert released.is_set() == waiting
        released.set()
    await client.close()


async def test_all_streams_of_an_owner_end_on_all_nodes(serve, session):
    log = MemoryLog()
    sites = [await Site(serve, session, Hub(MemoryBroker(log))).start() for _ in range(2)]
    await until(lambda: all(site.hubs[0].ready for site in sites))
    async with AsyncExitStack() as stack:
        for site in sites:
            for path in ("/news/a?owner=a", "/clock?owner=a", "/clock?owner=b"):
                await stack.enter_async_context(site.stream(path))
        assert await sites[0].post("disconnect", {"owner": "a"}) == (200, '{"disconnected": "a"}')
        await until(lambda: [len(site.app[STREAMS]) for site in sites] == [1, 1])


async def test_all_streams_of_an_owner_end_without_a_hub(site):
    inner = web.Application()
    setup(inner)
    inner.router.add_get("/clock", as_handler(start_event_stream(waits, owner=owner_of)))
    site = site()
    site.app.add_subapp("/inner", inner)
    await site.start()
    async with site.stream("/clock?owner=a"), site.stream("/inner/clock?owner=a"), site.stream("/clock?owner=b"):
        assert (await site.post("disconnect", {"owner": "a"}))[0] == 200
        await until(lambda: (len(site.app[STREAMS]), len(inner[STREAMS])) == (1, 0))


async def test_a_broker_that_is_down_is_told_and_the_streams_of_this_process_have_ended(site):
    log = MemoryLog()
    hub = Hub(MemoryBroker(log))
    site = await site(hub).start()
    await until(lambda: hub.ready)
    async with site.stream("/clock?owner=a"):
        log.up = False
        status, text = await site.post("disconnect", {"owner": "a"})
        assert status == 502
        assert text.startswith("The streams of this process have ended, and other processes may not know of it: ")
        await until(lambda: len(site.app[STREAMS]) == 0)
    log.up = True


@pytest.mark.parametrize(
    ("words", "paths"),
    [
        ("news", {"/news/orders.1", "/news/rooms.2"}),
        ("ORDERS", {"/news/orders.1"}),
        ("user:7", {"/news/orders.1", "/clock"}),
        ("user:7 orders", {"/news/orders.1"}),
        ("owner:user:7", {"/news/orders.1", "/clock"}),
        ("owner:orders", set()),
        ("topic:rooms.2", {"/news/rooms.2"}),
        ("route:{topic}", {"/news/orders.1", "/news/rooms.2"}),
        ("peer:127.0.0.1", {"/news/orders.1", "/news/rooms.2", "/clock"}),
        ("127.0.0.2", set()),
        ("nothing", set()),
    ],
)
async def test_streams_are_filtered_by_route_topic_owner_and_address(site, words, paths):
    site = await site(Hub()).start()
    async with (
        site.stream("/news/orders.1?owner=user:7"),
        site.stream("/news/rooms.2?owner=user:8"),
        site.stream("/clock?owner=user:7"),
        site.page(filter=words) as page,
    ):
        assert set(page.paths) == paths
        assert page.sample["streams"]["matching"] == len(paths)
        assert page.sample["streams"]["total"] == 3


@pytest.mark.parametrize("sort", streams.COLUMNS)
@pytest.mark.parametrize("order", ["ascending", "descending"])
async def test_streams_are_sorted_by_each_column(site, sort, order):
    hub = Hub()
    site = await site(hub).start()
    async with AsyncExitStack() as stack:
        for path in ("/news/b?owner=x", "/clock?owner=z", "/news/a?owner=y"):
            await stack.enter_async_context(site.stream(path))
            opened_at = asyncio.get_running_loop().time()  # uvloop's clock has milliseconds
            await until(lambda opened_at=opened_at: asyncio.get_running_loop().time() > opened_at)
        page = await stack.enter_async_context(site.page(sort=sort, order=order))
        expected = {
            "path": ["/clock", "/news/a", "/news/b"],
            "kind": ["/clock", "/news/b", "/news/a"],
            "age": ["/news/a", "/clock", "/news/b"],
            "topics": ["/clock", "/news/a", "/news/b"],
            "offset": ["/clock", "/news/b", "/news/a"],
            "owners": ["/news/b", "/news/a", "/clock"],
        }
        if order == "descending":
            expected = {name: paths[::-1] for name, paths in expected.items()}
            expected |= {"kind": ["/news/b", "/news/a", "/clock"], "offset": ["/news/b", "/news/a", "/clock"]}
        assert page.paths == expected.get(sort, ["/news/b", "/clock", "/news/a"])  # of equal ones the oldest first


@pytest.mark.parametrize("query", [{"sort": "size"}, {"filter": "a" * 301}, {"filter": "+".join("abcdefghi")}])
async def test_a_query_that_cannot_be_answered_is_refused(site, query):
    site = await site().start()
    query = "&".join(f"{name}={value}" for name, value in query.items())
    async with site.session.get(f"{site.server.url}/inspector/feed?{query}") as response:
        assert response.status == 400


async def test_a_page_receives_the_first_streams_of_the_order_and_how_many_there_are(site, monkeypatch):
    monkeypatch.setattr(streams, "MAX_ROWS", 3)
    site = await site().start()
    async with AsyncExitStack() as stack:
        for number in range(10):
            await stack.enter_async_context(site.stream(f"/clock?owner={number}"))
        async with site.page(sort="owners", order="ascending") as page:
            assert [row["owners"] for row in page.rows.values()] == [["0"], ["1"], ["2"]]
            assert page.sample["streams"]["matching"] == 10


async def test_only_rows_that_have_changed_are_sent_again(site):
    hub = Hub()
    site = await site(hub).start()
    async with site.stream("/clock"), site.stream("/news/a"), site.page(sort="path") as page:
        for _ in range(3):
            await page.next()
            assert page.sample["stream_rows"] == {}
            assert page.sample["streams"]["order"] is None
        await hub.publish("a", "x")
        await page.until(lambda page: page.sample["stream_rows"])
        assert list(page.sample["stream_rows"]) == [page.key("/news/a")]
        assert page.sample["streams"]["order"] is None


async def test_topics_have_rates_subscribers_and_records(site):
    hub = Hub()
    site = await site(hub).start()
    async with site.stream("/news/a?topic=c.*&topic=quiet") as stream:
        for topic in ("a", "a", "c.x", "unheard"):
            await hub.publish(topic, "x")
        await stream.next()
        async with site.page() as page:
            assert {
                row["topic"]: (row["subscribers"], row["records"], row["rate"]) for row in page.topics.values()
            } == {
                "a": (1, 2, 0.2),
                "c.x": (1, 1, 0.1),
                "quiet": (1, 0, 0.0),
                "unheard": (0, 1, 0.1),
            }
            assert next(iter(page.topics.values()))["topic"] == "a"
            assert page.topics["Hub a"]["bytes"] > 0
            assert page.sample["topics"]["total"] == 4
        async with site.page(topics="C.") as page:
            assert list(page.topics) == ["Hub c.x"]


async def test_hubs_are_shown_with_the_state_of_their_brokers(serve, session, monkeypatch):
    log = MemoryLog()
    site = await Site(serve, session, Hub(), Hub(MemoryBroker(log))).start()
    async with site.page() as page:
        await page.until(lambda page: page.sample["hubs"][1]["state"] == "connected")
        assert [hub["name"] for hub in page.sample["hubs"]] == ["Hub 1", "Hub 2"]
        assert page.sample["hubs"][0]["state"] == "no broker"
        assert page.sample["hubs"][1]["broker"] == "MemoryBroker"
        assert page.sample["hubs"][1]["confirmation_age"] >= 0
        log.up = False
        await page.until(lambda page: page.sample["hubs"][1]["state"] == "down")
        assert page.sample["hubs"][1]["since"] <= page.sample["now"]
        assert page.sample["hubs"][1]["error"]
        log.up = True
        await page.until(lambda page: page.sample["hubs"][1]["state"] == "connected")
        assert page.sample["hubs"][1]["since"] is None
        await page.until(lambda page: page.facts[-1]["name"] == "HubResumed")
        told = [(fact["name"], fact["where"], fact["notable"]) for fact in page.facts]
        assert told == [("HubUp", "Hub 2", False), ("HubDown", "Hub 2", True), ("HubResumed", "Hub 2", True)]


async def test_hubs_are_shown_with_all_numbers_of_their_statistics(site):
    hub = Hub(max_topics=1, latest=10)
    site = await site(hub).start()
    for topic in "abc":
        await hub.publish(topic, "x")
    async with site.page() as page:
        shown = page.sample["hubs"][0]
    numbers = dataclasses.asdict(hub.statistics())
    del numbers["connected"]  # it is the state
    assert {name: shown.get(name, "not shown") for name in numbers} == numbers
    assert shown["evicted"] == 2


# Facts and samples.


async def test_facts_from_before_the_first_page_are_shown(site):
    site = await site(max_streams=1).start()
    async with site.stream("/clock") as stream:
        await stream.next()
        async with site.stream("/clock") as refused:
            assert refused.response.status == 503
    await until(lambda: not len(site.app[STREAMS]))
    async with site.page() as page:
        shown = [(fact["name"], fact["where"], fact["notable"]) for fact in page.facts]
        assert shown == [
            ("StreamOpened", "/clock", False),
            ("StreamFirstEvent", "/clock", False),
            ("StreamRefused", "/clock", True),
            ("StreamClosed", "/clock", False),
        ]
        assert page.facts[2]["text"] == "503: max_streams"
        assert page.facts[3]["text"].startswith("client_left after ")
        assert sum(sample[3] for sample in page.samples.values()) == 1


async def test_facts_of_another_application_are_not_shown(serve, session):
    sites = [Site(serve, session) for _ in range(2)]  # both are there when the first one starts
    for site in sites:
        await site.start()
    for site in sites:
        async with site.stream("/clock") as stream:
            await stream.next()
    async with sites[0].page() as page:
        assert len([fact for fact in page.facts if fact["name"] == "StreamOpened"]) == 1
        for site in reversed(sites):
            async with site.stream("/clock") as stream:
                await stream.next()
        await page.until(lambda page: len([fact for fact in page.facts if fact["name"] == "StreamClosed"]) == 2)
        assert len([fact for fact in page.facts if fact["name"] == "StreamOpened"]) == 2


async def test_many_everyday_facts_do_not_push_out_notable_ones(site):
    site = await site(max_streams=1).start()
    async with site.stream("/clock"), site.stream("/clock") as refused:
        assert refused.response.status == 503
    for _ in range(MAX_FACTS // 3 + 1):
        await until(lambda: not len(site.app[STREAMS]))
        async with site.stream("/clock") as stream:
            await stream.next()
    async with site.page() as page:
        assert len(page.facts) == MAX_FACTS + 1
        assert page.facts[0]["name"] == "StreamRefused"


async def test_the_exception_of_a_producer_is_named_and_not_kept(site, raised):
    class Big(Exception):
        pass

    async def fails(channel, context):
        raise Big("secret")

    site = await site().get("/fails", as_handler(start_event_stream(fails))).start()
    async with site.stream("/fails"):
        pass
    async with site.page() as page:
        await page.until(lambda page: any(fact["name"] == "StreamClosed" for fact in page.facts))
        fact = next(fact for fact in page.facts if fact["name"] == "StreamClosed")
        assert fact["notable"]
        assert fact["text"].endswith("Big in its producer")
        assert "secret" not in json.dumps(page.facts)
    assert [type(error) for error in raised()] == [Big]


def test_what_a_producer_raised_is_not_kept_in_memory():
    class Big(Exception):
        pass

    recorder, error = Recorder(), Big()
    kept = weakref.ref(error)
    recorder.stream_observer(Streams())(StreamClosed(1, "/", "error", 0, 0, 0, 0.0, exception=error))
    del error
    assert kept() is None
    assert len(recorder.facts_after(0)[0]) == 1


async def test_rates_and_delays_are_sampled_while_a_page_is_open(site):
    hub = Hub()
    site = await site(hub).start()
    await hub.publish("a", "before")
    async with site.stream("/news/a") as stream, site.page() as page:
        for _ in range(5):
            await hub.publish("a", "x")
            await stream.next()
        await page.until(lambda page: sum(sample[1] or 0 for sample in page.samples.values()) >= 5)
        assert sum(sample[1] or 0 for sample in page.samples.values()) == 5
        assert sum(sample[2] or 0 for sample in page.samples.values()) == 5
        assert all(sample[5] >= 0 for sample in page.samples.values() if sample[5] is not None)
        assert any(sample[6] is not None for sample in page.samples.values())


async def test_nothing_is_sampled_while_no_page_is_open(site):
    site = await site(Hub()).start()
    before = asyncio.all_tasks()
    async with site.page(), site.page() as page:
        await page.next()
        assert [task for task in asyncio.all_tasks() - before if "Sampler" in repr(task.get_coro())]
    await until(lambda: not [task for task in asyncio.all_tasks() - before if "Sampler" in repr(task.get_coro())])


async def test_observers_are_removed_when_the_application_is_cleaned_up(site):
    hub = Hub()
    site = await site(hub).start()
    assert site.app[STREAMS]._observers
    assert hub._dispatcher.observers
    await site.server.stop()
    assert not site.app[STREAMS]._observers
    assert not hub._dispatcher.observers


# Limits, and the end.


async def test_it_opens_at_a_full_server_and_takes_no_place_of_others(site):
    site = await site(max_streams=1).start()
    async with site.page(), site.stream("/clock") as stream, site.page() as page:
        assert stream.response.status == 200
        assert page.paths == ["/clock"]
        async with site.stream("/clock") as refused:
            assert refused.response.status == 503


async def test_a_key_of_the_application_is_not_asked_for_it(site):
    site = await site(max_streams_per_key=1, key=lambda request: "same").start()
    async with site.page(), site.page() as page:
        await page.next()


async def test_its_own_streams_have_a_limit(site):
    site = await site().start()
    async with AsyncExitStack() as stack:
        for _ in range(20):
            await stack.enter_async_context(site.page())
        async with site.stream("/inspector/feed") as refused:
            assert refused.response.status == 503


@pytest.mark.parametrize("path", ["feed", "raw"])
async def test_its_streams_end_in_a_drain(site, path, handler_cancellation):
    site = await site(drain=Drain(timeout=1.0)).start(handler_cancellation=handler_cancellation)
    client = await listen(site.server, "/clock")
    async with site.page() as page:
        path = {"feed": "/inspector/feed", "raw": page.raw("/clock")}[path]
    async with site.stream(path) as stream:
        await stream.next()
        async with asyncio.timeout(TIMEOUT):
            _, rest = await asyncio.gather(site.server.stop(), stream.rest())
        assert {event.name for event in rest if event.data is not None} <= {"sample", "ended", "writes"}
    await client.close()


async def test_it_works_again_when_the_application_is_served_again(serve, session):
    app = web.Application()
    app.router.add_get("/clock", as_handler(start_event_stream(waits)))
    app.add_subapp("/inspector", inspector(Hub(), public=True))
    for _ in range(2):
        server = await serve(app)
        async with open_stream(session, f"{server.url}/clock") as clock:
            await clock.next()
            async with open_stream(session, f"{server.url}/inspector/feed") as stream:
                page = await Page(stream).next()
                assert page.paths == ["/clock"]
                assert page.facts[-1]["name"] == "StreamFirstEvent"
        await server.stop()


# The raw view.


async def opened_raw(stream):
    event = await stream.next()
    assert event.name == "tap"
    return json.loads(event.data)


async def written(stream):
    """Return the text of the next writes."""
    while True:
        event = await stream.next()
        if event.name == "writes" and (writes := json.loads(event.data)["writes"]):
            return "".join(write["text"] for write in writes)


@pytest.mark.parametrize("show_data", [False, True])
async def test_the_bytes_of_a_stream_are_shown_as_they_go_out(site, show_data):
    hub = Hub()
    site = await site(hub, options={"show_data": show_data}).start()
    client = await listen(site.server, "/news/a")
    async with site.page() as page, site.stream(page.raw("/news/a")) as raw:
        assert await opened_raw(raw) == {"masked": not show_data, "compressed": False}
        event_id = await hub.publish("a", Event("first line\nsecond: 2", "name"))
        text = await written(raw)
    size, _, frame = text.partition("\r\n")
    assert int(size, 16) == len(frame) - 2
    if show_data:
        assert frame == f"id: {event_id}\nevent: name\ndata: first line\ndata: second: 2\n\n\r\n"
    else:
        hidden = "x" * len(event_id)
        assert frame == f"id: {hidden}\nevent: name\ndata: {'x' * 10}\ndata: {'x' * 9}\n\n\r\n"
    await client.close()


@pytest.mark.parametrize("show_data", [False, True])
async def test_of_a_compressed_stream_only_the_sizes_of_writes_are_shown(site, session, show_data):
    hub = Hub()
    site = site(hub, options={"show_data": show_data}).get("/packed", topic_stream(hub, "a", compress=True))
    site = await site.start()
    async with (
        open_stream(session, f"{site.server.url}/packed", headers={"Accept-Encoding": "gzip"}) as client,
        site.page() as page,
        site.stream(page.raw("/packed")) as raw,
    ):
        assert await opened_raw(raw) == {"masked": not show_data, "compressed": True}
        await hub.publish("a", "secret " * 1000)
        assert (await client.next()).data == "secret " * 1000
        while not (writes := json.loads((await raw.next()).data)["writes"]):
            pass
        assert [(write["shown"], write["text"]) for write in writes] == [(0, "")]
        assert 0 < writes[0]["size"] < 1000


async def test_the_tap_exists_while_a_view_is_open(site):
    hub = Hub()
    site = await site(hub).start()
    client = await listen(site.server, "/news/a")
    async with site.page() as page:
        (connection,) = [stream.connection for stream in site.app[STREAMS]]
        transport = connection._transport
        path = page.raw("/news/a")
        async with site.stream(path) as one, site.stream(path) as two:
            for raw in (one, two):
                await opened_raw(raw)
            assert isinstance(connection._transport, Tap)
            await hub.publish("a", "x")
            assert await written(one) == await written(two)
        await until(lambda: connection._transport is transport)
    await client.close()


async def test_the_view_ends_with_its_stream(site):
    hub = Hub()
    site = await site(hub).start()
    async with site.stream("/news/a"), site.page() as page:
        path, named = page.raw("/news/a"), page.named("/news/a")
        async with site.stream(path) as raw:
            await opened_raw(raw)
            await site.post("end", named)
            assert (await raw.rest())[-1].name == "ended"
        async with site.stream(path) as raw:
            assert raw.response.status == 404


async def test_what_is_written_last_is_shown_before_the_view_ends(site, monkeypatch):
    """A page takes the writes four times a second, and a stream may end in between."""
    monkeypatch.setattr(application, "RAW_INTERVAL", 0.2)
    hub = Hub()
    site = await site(hub, options={"show_data": True}).start()
    client = await listen(site.server, "/news/a?owner=user:7")
    async with site.page() as page, site.stream(page.raw("/news/a")) as raw:
        await opened_raw(raw)
        await hub.publish("a", "first")
        assert "data: first" in await written(raw)
        await hub.publish("a", "last")
        await hub.disconnect("user:7", Event("goodbye", "kicked"))
        events = await raw.rest()
    writes = [write for event in events if event.name == "writes" for write in json.loads(event.data)["writes"]]
    text = "".join(write["text"] for write in writes)
    assert "data: last" in text
    assert "data: goodbye" in text
    assert events[-1].name == "ended"
    await client.close()


async def test_the_view_ends_when_the_client_leaves(site):
    site = await site().start()
    client = await listen(site.server, "/clock")
    async with site.page() as page, site.stream(page.raw("/clock")) as raw:
        await opened_raw(raw)
        await client.close()
        assert (await raw.rest())[-1].name == "ended"


async def test_its_own_streams_have_no_raw_view_which_would_show_itself(site):
    site = await site().start()
    async with site.stream("/clock"), site.page() as page:
        (own,) = [stream for registry in site.app[STREAMS].all_in(site.app) if registry.separate for stream in registry]
        path = page.raw("/clock").replace(page.key("/clock"), streams.key_of(own))
        async with site.stream(path) as raw:
            assert raw.response.status == 404


def test_a_view_that_is_not_read_counts_what_it_drops():
    view = RawView()
    for number in range(MAX_WAITING + 10):
        view.written(b"%d" % number)
    writes, skipped = view.take()
    assert [write.data for write in writes] == [b"%d" % number for number in range(MAX_WAITING)]
    assert skipped == 10
    assert view.take() == ([], 0)


def test_a_view_that_is_not_read_keeps_few_bytes():
    view = RawView()
    for _ in range(MAX_WAITING):
        view.written(bytes(MAX_SHOWN))
    view.written(b"a short one is left out as well, because it comes after those")
    writes, skipped = view.take()
    assert sum(len(write.data) for write in writes) == MAX_WAITING_BYTES
    assert len(writes) + skipped == MAX_WAITING + 1


def test_a_view_keeps_the_beginning_of_a_long_write():
    view = RawView()
    view.written(b"x" * (MAX_SHOWN + 1))
    ((write,), _) = view.take()
    assert (write.size, len(write.data)) == (MAX_SHOWN + 1, MAX_SHOWN)


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"data: secret\n\n", b"data: xxxxxx\n\n"),
        (b"data:secret\r\n\r\n", b"data:xxxxxx\r\n\r\n"),
        (b"data\n\n", b"xxxx\n\n"),
        (b": secret\n\n", b": xxxxxx\n\n"),
        (b":\n\n", b":\n\n"),
        (b"id: 1-2\rretry: 10\r\r", b"id: xxx\rretry: 10\r\r"),
        (b"event: name\n", b"event: name\n"),
        (b"retry: secret\n", b"xxxxxxxxxxxxx\n"),
        (b"secret: data\n", b"xxxxxxxxxxxx\n"),
        (b"DATA: secret\n", b"xxxxxxxxxxxx\n"),
        ("data: ä\n\n".encode(), b"data: xx\n\n"),
        (b"8\r\ndata: x\n\r\n", b"8\r\ndata: x\n\r\n"),
        (b"abc\r\ndata: y\n\r\n", b"xxx\r\ndata: x\n\r\n"),  # no size of this chunk
        (b"", b""),
    ],
)
def test_data_ids_and_comments_are_masked_byte_by_byte(data, shown):
    assert mask(Write(0.0, len(data), data)) == shown
    assert len(shown) == len(data)


def test_the_size_of_a_chunk_is_shown_if_only_its_beginning_is():
    assert mask(Write(0.0, 0x5000 + 8, b"5000\r\ndata: secret")) == b"5000\r\ndata: xxxxxx"


# The parts.


def test_the_first_entries_of_an_order_are_those_of_a_sort():
    rng = random.Random(7)
    for descending in (False, True):
        keys = [(rng.randrange(20), number) for number in range(500)]
        first = FirstEntries(10, descending=descending)
        for key in keys:
            first.add(key, key)
        assert first.entries() == sorted(keys, reverse=descending)[:10]


def test_the_number_of_records_after_an_offset_is_that_of_a_read():
    rng = random.Random(7)
    history = History(RetentionPolicy(20, None, 50.0))
    for now in range(300):
        history.append(rng.choice(["a", "b", "c.d", "c.e"]), Event("x"), None, float(now))
        offset = rng.randrange(history.end + 1)
        for topics in ({"a"}, {"a", "b"}, {"c.*"}, {">"}, {"a", ">"}, {"none"}, set()):
            assert history.count_after(offset, topics) == len(history.read(offset, topics).records)


def test_the_records_since_a_time_are_counted_without_evicted_ones():
    history = History(RetentionPolicy(5, None, None))
    for now in range(10):
        history.append("a", Event("x"), None, float(now))
    counts = {since: history.topic_history("a").count_since(since) for since in (0.0, 5.0, 7.5, 9.0, 9.5)}
    assert counts == {0.0: 5, 5.0: 5, 7.5: 2, 9.0: 1, 9.5: 0}
