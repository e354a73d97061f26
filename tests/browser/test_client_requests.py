"""The module ``event-stream.js`` in a browser: its requests, its waiting, and its parser."""

from __future__ import annotations

import asyncio
import email.utils
import random
import time

import pytest
from aiohttp import web

from aiohttp_interceptors import Decoder, Event, as_handler, event_stream, topic_stream
from aiohttp_interceptors.ready import TICKET, Tickets, cors
from tests.browser.client_site import seen, start
from tests.waiting import TIMEOUT, until

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]


async def failed(page, number=1):
    """Wait for errors, and return them."""
    await page.wait_for_function(f"errors.length >= {number}", timeout=TIMEOUT * 1000)
    return await page.evaluate("errors")


# Parsing.

PIECES = [
    *("data: a\n", "data:b\r", "data\r\n", "data:  c\n", "data: é€😀\n", "data: \ufeff\n", "data: a:b\n"),
    *("\n", "\r", "\r\n", "\n\n", "event: other\n", "event:\n", "event\r", "event: message\n"),
    *("id: 1\n", "id\n", "id: 2\r\n", "id: 3\0\n", "id: é\n", "retry: 5\n", "retry: x\n", "retry:\n", "retry: -1\n"),
    *(": comment\n", ":\n", "unknown: x\n", "dat: x\n", " data: x\n", "Data: x\n", "data : x\n"),
    *("\ufeff", "data: x", "\u2028"),
]


def soup(seed):
    """Return the bytes of an event stream in random chunks."""
    rng = random.Random(seed)
    text = rng.choice(["", "", "\ufeff"]) + "".join(rng.choices(PIECES, k=rng.randint(1, 40)))
    body = text.encode() + rng.choice([b"", b"data: \xff\xc3\n\n", b"data: \xe2\x82"]) + rng.choice([b"", b"\n\n"])
    chunks = []
    while body:
        size = rng.choice([1, 1, 2, 3, 10, 100])
        chunks.append(body[:size])
        body = body[size:]
    return chunks


COLLECT = """(Kind, url) => new Promise((resolve) => {
  const source = new Kind(url), found = [];
  const note = ({ type, data, lastEventId }) => found.push([type, data, lastEventId]);
  for (const type of ["message", "other"]) source.addEventListener(type, note);
  source.onerror = (event) => { source.close(); resolve(found); };
})"""


async def test_the_parser_dispatches_what_a_browser_and_the_decoder_do(site, tabs):
    async def serve(request):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for chunk in soup(int(request.match_info["seed"])):
            await response.write(chunk)
            if random.random() < 0.2:
                await asyncio.sleep(0.0005)
        return response

    site.routes = [web.get("/soup/{seed}", serve)]
    await site.start()
    page = await tabs(site.url)
    dispatched = 0
    for seed in range(150):
        url = f"/soup/{seed}"
        native = await page.evaluate(f"({COLLECT})(EventSource, {url!r})")
        ours = await page.evaluate(f"({COLLECT})(EventStream, {url!r})")
        decoder, decoded = Decoder(), []
        last_id = ""
        for chunk in soup(seed):
            for event in decoder.feed(chunk):
                last_id = last_id if event.id is None else event.id
                if event.data is not None:
                    decoded.append([event.name or "message", event.data, last_id])
        pushed = await page.evaluate(
            """(chunks) => {
              const parser = new Parser(), entries = chunks.flatMap((chunk) => parser.push(Uint8Array.from(chunk)));
              return entries.filter(({ type }) => type).map(({ type, data, id }) => [type, data, id]);
            }""",
            [list(chunk) for chunk in soup(seed)],
        )
        assert ours == native, soup(seed)
        assert pushed == decoded, soup(seed)
        assert ours == [each for each in decoded if each[0] in ("message", "other")], soup(seed)
        dispatched += len(ours)
    assert dispatched > 100


async def test_the_parser_says_what_a_reconnection_needs(site, tabs):
    await site.start()
    page = await tabs(site.url)
    parsed = await page.evaluate(
        """(() => {
          const parser = new Parser("0"), encode = (text) => new TextEncoder().encode(text);
          return [
            parser.push(encode("id: 1\\n")), parser.lastEventId,
            parser.push(encode("retry: 70\\n\\ndata: x\\n\\n")), parser.lastEventId, parser.retry,
            parser.push(encode("retry: 7x\\n\\n")), parser.retry,
          ];
        })()"""
    )
    assert parsed == [
        [],
        "0",  # not before the blank line
        [{"id": "1", "hasId": True}, {"id": "1", "hasId": False, "type": "message", "data": "x"}],
        "1",
        70,
        [],
        70,
    ]


# Requests.


async def test_a_post_request_sends_its_body_and_headers_and_ends_once(site, tabs):
    @event_stream
    async def answer(request):
        prompt = (await request.json())["prompt"]
        for word in (prompt, request.headers["X-Model"], request.cookies["user"]):
            yield word

    site.routes = [web.post("/answer", answer)]
    await site.start()
    page = await tabs(site.url)
    await page.evaluate("document.cookie = 'user=7'")
    headers = {"Content-Type": "application/json", "X-Model": "small"}
    await start(page, "/answer", method="POST", body='{"prompt": "hello"}', headers=headers)
    await seen(page, ["hello", "small", "7"])
    assert await failed(page) == [{"reason": "ended", "status": 200, "delay": None, "final": True}]
    assert await page.evaluate("source.readyState") == 2
    assert len(site.requested("/answer")) == 1


async def test_a_post_request_that_is_closed_is_aborted_and_one_that_is_cut_says_so(site, tabs):
    ended = []

    async def answer(channel, context):
        await channel.put("one")

    handler = event_stream(answer, on_close=lambda context, reason: ended.append(str(reason)))
    site.routes = [web.post("/answer", handler)]
    await site.start()
    page = await tabs(site.url)
    await start(page, "/answer", method="POST")
    await seen(page, ["one"])
    await page.evaluate("source.close()")
    await until(lambda: ended == ["client_left"])
    assert await page.evaluate("[source.readyState, errors]") == [2, []]
    await start(page, "/answer", method="POST")
    await seen(page, ["one", "one"])
    for stream in site.streams:
        stream.abort()
    (error,) = await failed(page)
    assert (error["reason"], error["final"]) == ("cut", True)
    assert len(site.requested("/answer")) == 2


async def test_an_event_id_is_sent_as_an_event_source_sends_it(site, tabs):
    sent = []

    @event_stream(retry=1)
    async def echo(request):
        sent.append(request.headers.get("Last-Event-ID"))
        yield Event("x", id="größer €")

    site.routes = [web.get("/echo", echo)]
    await site.start()
    page = await tabs(site.url)
    for kind in ("EventSource", "EventStream"):
        await page.evaluate(f"window.source = new {kind}('/echo'), undefined")
        await until(lambda: len(sent) >= 2)
        await page.evaluate("source.close()")
        assert sent[:2] == [None, "größer €"]
        sent.clear()


async def test_headers_may_be_a_function_that_is_called_for_each_request(site, tabs):
    await site.start()
    page = await tabs(site.url)
    await page.evaluate(
        """() => {
          let calls = 0;
          open_("/news", { headers: async () => {
            if (++calls === 1) throw new Error("not yet");
            return { "X-Call": `${calls}` };
          } });
        }"""
    )
    await page.wait_for_function("source.readyState === 1", timeout=TIMEOUT * 1000)
    for stream in site.streams:
        stream.abort()
    await until(lambda: len(site.requested("/news")) == 2)
    assert [request.headers["X-Call"] for request in site.requested("/news")] == ["2", "3"]
    assert [error["reason"] for error in await failed(page, 2)] == ["unreachable", "cut"]


async def test_a_get_request_is_not_repeated_if_the_page_says_so(site, tabs):
    await site.start()
    page = await tabs(site.url)
    await start(page, reconnect=False)
    await page.wait_for_function("source.readyState === 1")
    for stream in site.streams:
        stream.abort()
    assert await failed(page) == [{"reason": "cut", "status": 200, "delay": None, "final": True}]
    assert await page.evaluate("source.readyState") == 2


@pytest.mark.parametrize(("server", "page_option", "stalls"), [(None, 0.2, True), (None, None, False), (0.2, 0, False)])
async def test_the_page_may_know_the_interval_of_heartbeats_better(site, tabs, server, page_option, stalls):
    site.routes = [web.get("/news", topic_stream(site.hub, "news", heartbeat=server, retry=20))]
    await site.start()
    page = await tabs(site.url)
    await tabs.context.clock.install()
    await start(page, **({} if page_option is None else {"heartbeat": page_option}))
    await page.wait_for_function("source.readyState === 1")
    await tabs.context.clock.run_for(10_000)  # the server's clock stands still meanwhile
    if stalls:
        assert (await failed(page))[0]["reason"] == "stalled"
    else:
        await site.hub.publish("news", "one")
        await seen(page, ["one"])
        assert await page.evaluate("errors") == []


# Access.


async def test_the_hook_renews_a_token_and_the_stream_resumes(site, tabs):
    valid = ["Bearer 1"]

    async def guarded(request):
        if request.headers.get("Authorization") not in valid:
            raise web.HTTPUnauthorized
        return await news(request)

    news = topic_stream(site.hub, "news", retry=20)
    site.routes = [web.get("/guarded", guarded)]
    await site.start()
    page = await tabs(site.url)
    await page.evaluate(
        """() => {
          window.tokens = 1; window.asked = [];
          open_("/guarded", { headers: { Authorization: "Bearer 1" }, onUnauthorized: async ({ status, url }) => {
            asked.push([status, new URL(url).pathname]);
            return { headers: { Authorization: `Bearer ${++tokens}` } };
          } });
        }"""
    )
    await page.wait_for_function("source.readyState === 1")
    await site.hub.publish("news", "one")
    await seen(page, ["one"])
    for number in (2, 3):
        valid[:] = [f"Bearer {number}"]
        for stream in site.streams:
            stream.abort()
        await site.hub.publish("news", str(number))
        await page.wait_for_function(f"seen.length === {number}")
    await seen(page, ["one", "2", "3"])
    assert await page.evaluate("asked") == [[401, "/guarded"]] * 2
    valid.clear()  # the renewed token is refused, too
    for stream in site.streams:
        stream.abort()
    await page.wait_for_function("source.readyState === 2")
    assert (await page.evaluate("errors"))[-1]["reason"] == "unauthorized"
    assert len(await page.evaluate("asked")) == 3


@pytest.mark.parametrize("hook", ["undefined", "async () => null", "() => {}"])
@pytest.mark.parametrize("status", [401, 403])
async def test_without_other_access_a_stream_that_is_refused_ends(site, tabs, status, hook):
    async def refuse(request):
        return web.Response(status=status)

    site.routes = [web.get("/guarded", refuse)]
    await site.start()
    page = await tabs(site.url)
    await page.evaluate(f"open_('/guarded', {{ headers: {{ Authorization: 'x' }}, onUnauthorized: {hook} }})")
    assert await failed(page) == [{"reason": "unauthorized", "status": status, "delay": None, "final": True}]
    assert await page.evaluate("source.readyState") == 2
    assert len(site.requested("/guarded")) == 1


async def test_a_hook_that_fails_is_called_again(site, tabs):
    async def guarded(request):
        if "Authorization" not in request.headers:
            raise web.HTTPUnauthorized
        return await site.news(request)

    site.routes = [web.get("/guarded", guarded)]
    await site.start()
    page = await tabs(site.url)
    await page.evaluate(
        """() => {
          let calls = 0;
          open_("/guarded", { onUnauthorized: async () => {
            if (++calls < 2) throw new Error("no network");
            return { headers: { Authorization: "Bearer 1" } };
          } });
        }"""
    )
    await page.wait_for_function("source.readyState === 1", timeout=TIMEOUT * 1000)
    (error,) = await page.evaluate("errors")
    assert error["reason"] == "unauthorized"
    assert error["delay"] > 0


@pytest.mark.parametrize("between", ["freeze", "offline"])
async def test_other_access_stays_and_is_renewed_after_a_pause(site, tabs, between):
    valid = ["Bearer 2"]

    async def guarded(request):
        if request.headers.get("Authorization") not in valid:
            raise web.HTTPUnauthorized
        return await site.news(request)

    site.routes = [web.get("/guarded", guarded)]
    await site.start()
    page = await tabs(site.url)
    await page.evaluate(
        """() => {
          let tokens = 1;
          window.renewed = (headers) => headers;
          open_("/guarded", { headers: { Authorization: "Bearer 1" }, onUnauthorized: async () => {
            return renewed({ headers: { Authorization: `Bearer ${++tokens}` } });
          } });
        }"""
    )
    await page.wait_for_function("source.readyState === 1")
    if between == "freeze":
        await page.evaluate("for (const type of ['freeze', 'resume']) document.dispatchEvent(new Event(type)); 0")
    else:
        # The network is lost while the token is renewed, and that token is not valid any more when it is back.
        await page.evaluate(
            """() => {
              const { fetch } = window;
              renewed = (access) => {
                window.fetch = async () => { window.fetch = fetch; throw new TypeError("offline"); };
                return access;
              };
            }"""
        )
        valid[:] = ["Bearer 4"]
        for stream in site.streams:
            stream.abort()
        await until(lambda: len(site.requested("/guarded")) == 4)
        await page.evaluate("renewed = (access) => access, 0")
    await page.wait_for_function("source.readyState === 1", timeout=TIMEOUT * 1000)
    sent = [request.headers["Authorization"] for request in site.requested("/guarded")]
    numbers = {"freeze": [1, 2, 2], "offline": [1, 2, 2, 3, 4]}[between]
    assert sent == [f"Bearer {number}" for number in numbers]


async def test_the_hook_fetches_a_ticket_for_all_tabs(site, tabs):
    tickets = Tickets("a secret of the tests, which is long enough", site.hub)

    async def issue(request):
        assert request.headers["Authorization"] == "Bearer x"
        return web.json_response({"ticket": tickets.issue("user:7", "orders.7")})

    orders = topic_stream(site.hub, lambda context: context[TICKET].topics, retry=20)
    site.routes = [web.post("/ticket", issue), web.get("/orders", as_handler(tickets.redeem, orders))]
    await site.start()
    pages = [await tabs(site.url) for _ in range(3)]
    for page in pages:
        await page.evaluate(
            """() => open_("/orders", { identity: "user:7", onUnauthorized: async ({ url }) => {
              const answer = await fetch("/ticket", { method: "POST", headers: { Authorization: "Bearer x" } });
              const renewed = new URL(url);
              renewed.searchParams.set("ticket", (await answer.json()).ticket);
              return { url: renewed.href };
            } })"""
        )
        await page.wait_for_function("source.readyState === 1")
    await until(lambda: len(site.streams) == 1)
    await site.hub.publish("orders.7", "one")
    for page in pages:
        await seen(page, ["one"])
    await pages.pop(0).close()
    await site.hub.publish("orders.7", "two")
    for page in pages:
        await seen(page, ["one", "two"])


# Waiting.


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_a_retry_after_is_waited_for(site, tabs, form):
    times = []

    async def busy(request):
        times.append(time.time())
        if len(times) == 1:
            asked = "2" if form == "seconds" else email.utils.formatdate(times[0] + 3, usegmt=True)
            raise web.HTTPServiceUnavailable(headers={"Retry-After": asked})
        return await site.news(request)

    site.routes = [web.get("/busy", busy)]
    await site.start()
    page = await tabs(site.url)
    await start(page, "/busy")
    (error,) = await failed(page)
    await page.evaluate("dispatchEvent(new Event('online'))")  # it is the server that asked to wait
    await page.wait_for_function("source.readyState === 1", timeout=TIMEOUT * 1000)
    assert (error["reason"], error["status"], error["final"]) == ("refused", 503, False)
    assert times[1] - times[0] >= 1.9  # without it, the delay would be a second and a half at most
    assert 1900 <= error["delay"] <= 4600


async def test_the_delay_grows_from_the_retry_of_the_server_and_a_network_that_is_back_ends_it(site, tabs):
    site.routes = [web.get("/news", topic_stream(site.hub, "news", retry=40))]
    await site.start()
    page = await tabs(site.url)
    await start(page)
    await page.wait_for_function("source.readyState === 1")
    await tabs.context.set_offline(True)
    for stream in site.streams:
        stream.abort()
    delays = [error["delay"] for error in await failed(page, 8)]
    for number, delay in enumerate(delays[:8]):
        assert 40 * 2**number <= delay <= 60 * 2**number
    assert len(set(delays)) == len(delays)
    await page.evaluate("window.before = performance.now()")
    await tabs.context.set_offline(False)  # fires the event "online"
    await page.wait_for_function("source.readyState === 1")
    assert await page.evaluate("performance.now() - before") < 2500


@pytest.mark.parametrize(
    ("status", "content_type"),
    [(404, "text/plain"), (400, "text/event-stream"), (200, "text/html"), (200, "text/event-streamer")],
)
async def test_a_response_that_is_no_stream_ends_it(site, tabs, status, content_type):
    async def other(request):
        return web.Response(status=status, text="x", content_type=content_type)

    site.routes = [web.get("/other", other)]
    await site.start()
    page = await tabs(site.url)
    await start(page, "/other")
    assert await failed(page) == [{"reason": "refused", "status": status, "delay": None, "final": True}]
    assert await page.evaluate("source.readyState") == 2


@pytest.mark.parametrize("status", [500, 502, 503, 429, 425])
async def test_a_temporary_refusal_is_asked_again(site, tabs, status):
    async def other(request):
        if len(site.requested("/other")) == 0:
            return web.Response(status=status)
        return await site.news(request)

    site.routes = [web.get("/other", other)]
    await site.start()
    page = await tabs(site.url)
    await start(page, "/other")
    await page.wait_for_function("source.readyState === 1", timeout=TIMEOUT * 1000)
    (error,) = await page.evaluate("errors")
    assert (error["reason"], error["status"], error["final"]) == ("refused", status, False)


# The page.


async def test_a_page_that_is_kept_for_the_back_button_has_no_connection_and_resumes(site, tabs):
    await site.start()
    pages = [await tabs(site.url) for _ in range(2)]
    for page in pages:
        await start(page, identity="user:7")
        await page.wait_for_function("source.readyState === 1")
    await until(lambda: len(site.streams) == 1)
    # Playwright turns the cache off, so that the events are those of the page alone.
    await pages[0].evaluate("dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))")
    await site.hub.publish("news", "one")
    await seen(pages[1], ["one"])
    assert await pages[0].evaluate("[seen, source.readyState]") == [[], 0]
    await pages[0].evaluate("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
    await seen(pages[0], ["one"])
    await until(lambda: len(site.streams) == 1)
    await site.hub.publish("news", "two")
    for page in pages:
        await seen(page, ["one", "two"])


async def test_the_interface_is_that_of_an_event_source(site, tabs):
    await site.start()
    page = await tabs(site.url)
    found = await page.evaluate(
        """async () => {
          const source = new EventStream("/news", { withCredentials: true }), found = [];
          found.push(source.url, source.readyState, EventStream.CONNECTING, EventStream.OPEN, source.CLOSED);
          found.push(source instanceof EventTarget, source.onmessage, source.lastEventId);
          await new Promise((resolve) => { source.onopen = resolve; });
          found.push(source.readyState);
          source.close();
          source.close();
          found.push(source.readyState);
          return found;
        }"""
    )
    assert found == [f"{site.url}news", 0, 0, 1, 2, True, None, "", 1, 2]


async def test_options_that_exclude_each_other_are_refused(site, tabs):
    await site.start()
    page = await tabs(site.url)
    for options in (
        '{ method: "POST", identity: "user:7" }',
        '{ method: "POST", identity: "user:7", reconnect: true }',
        '{ identity: "user:7", reconnect: false }',
        "{ identity: 7 }",
        '{ identity: Promise.resolve("user:7") }',  # each user would share with all others
    ):
        error = await page.evaluate(
            f"(() => {{ try {{ new EventStream('/', {options}) }} catch (e) {{ return e.message }} }})()"
        )
        assert "an identity is a string, of a GET request" in error


async def test_a_relative_url_is_that_of_an_event_source(site, tabs):
    await site.start()
    page = await tabs(site.url)
    await page.evaluate("document.head.insertAdjacentHTML('afterbegin', '<base href=\"/app/\">')")
    for kind in ("EventSource", "EventStream"):
        url = await page.evaluate(f"window.source = new {kind}('news'), source.close(), source.url")
        assert url == f"{site.url}app/news"


FRAMES = """<!doctype html><link rel=icon href="data:,"><script>window.ready = true;</script>
<iframe sandbox=allow-scripts src="/"></iframe>
<iframe sandbox=allow-scripts srcdoc='<script type=module>
import { EventStream } from "/event-stream.js";
window.EventStream = EventStream;
window.seen = [];
window.open_ = (url, options) => {
  window.source = new EventStream(url, options);
  source.onmessage = ({ data }) => seen.push(data);
};
window.ready = true;
</script>'></iframe>"""


@pytest.mark.parametrize("number", [1, 2])
async def test_a_sandboxed_frame_has_a_stream_of_its_own(site, tabs, number):
    async def frames(request):
        return web.Response(text=FRAMES, content_type="text/html")

    site.routes = [web.get("/frames", frames), web.route("*", "/news", as_handler(cors("*"), site.news))]
    await site.start()
    page = await tabs(f"{site.url}frames")
    frame = page.frames[number]
    await frame.wait_for_function("window.ready")
    await start(frame, identity="user:7", resume=True)
    await frame.wait_for_function("source.readyState === 1", timeout=TIMEOUT * 1000)
    await site.hub.publish("news", "one")
    await seen(frame, ["one"])


async def test_what_something_else_has_stored_does_not_keep_a_stream_from_opening(site, tabs):
    await site.start()
    page = await tabs(site.url)
    await start(page, resume=True)
    await page.wait_for_function("sessionStorage.length")
    for stored in ("{", "7", "null"):
        await page.evaluate(
            f"source.close(), seen.length = 0, sessionStorage.setItem(sessionStorage.key(0), {stored!r})"
        )
        await start(page, resume=True)
        await page.wait_for_function("source.readyState === 1")
        await site.hub.publish("news", stored)
        await seen(page, [stored])


async def test_a_stream_that_is_closed_when_its_state_changes_tells_no_more(site, tabs):
    await site.start()
    page = await tabs(site.url)
    await start(page)
    await page.wait_for_function("source.readyState === 1")
    await page.evaluate("source.onstatechange = () => source.close(), 0")
    for stream in site.streams:
        stream.abort()
    await page.wait_for_function("source.readyState === 2")
    assert await page.evaluate("new Promise((resolve) => setTimeout(() => resolve(errors)))") == []


async def test_a_stream_that_is_closed_by_its_headers_has_no_connection(site, tabs):
    await site.start()
    page = await tabs(site.url)
    await page.evaluate("open_('/news', { headers: () => window.signedOut && source.close() })")
    await page.wait_for_function("source.readyState === 1")
    await page.evaluate("window.signedOut = true")
    await page.evaluate("for (const type of ['freeze', 'resume']) document.dispatchEvent(new Event(type)); 0")
    await page.wait_for_function("source.readyState === 2")
    await until(lambda: len(site.streams) == 0)
    await start(page, "/news?later")
    await page.wait_for_function("source.readyState === 1")
    assert len(site.streams) == 1


async def test_a_browser_without_streams_uses_its_event_source(site, tabs):
    await site.start()
    page = await tabs(site.url)
    await page.evaluate("delete Response.prototype.body")
    await start(page, identity="user:7", lastEventId="x")
    await page.wait_for_function("source.readyState === 1")
    await site.hub.publish("news", "one")
    await site.hub.publish("news", Event("two", "other"))
    await seen(page, ["gap", "one", "other"])
    for stream in site.streams:
        stream.abort()
    await failed(page)
    await site.hub.publish("news", "three")
    await seen(page, ["gap", "one", "other", "three"])
    assert site.requests[-1].query.get("last_event_id") == "x"
    await start(page, reconnect=False)
    await page.wait_for_function("source.readyState === 1")
    for stream in site.streams:
        stream.abort()
    await page.wait_for_function("source.readyState === 2")
    error = await page.evaluate(
        "(() => { try { new EventStream('/', { headers: {} }) } catch (e) { return e.message } })()"
    )
    assert "EventSource" in error
