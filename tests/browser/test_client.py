"""The module ``event-stream.js`` in a browser: one connection for all tabs, resuming, renewing and ending."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio
from aiohttp import web

from aiohttp_interceptors import Event, Hub, as_handler, event_stream, topic_stream
from aiohttp_interceptors.brokers.sqlite import SqliteBroker
from aiohttp_interceptors.ready import cors
from aiohttp_interceptors.testing import TcpProxy
from tests.browser.client_site import Site, seen, start
from tests.waiting import TIMEOUT, until

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]


async def test_seven_tabs_share_one_connection_and_still_load_pages(site, tabs):
    await site.start()
    pages = [await tabs(site.url) for _ in range(7)]
    for page in pages:
        await start(page, identity="user:7")
    for page in pages:
        await page.wait_for_function("source.readyState === 1")
    await until(lambda: len(site.streams) == 1)
    await site.hub.publish("news", "one")
    for page in pages:
        await seen(page, ["one"])
    await tabs(site.url)


@asynccontextmanager
async def publishing(hub, interval=0.003):
    """Publish numbers all the time, and yield a list of those that were published."""
    published = []

    async def publish():
        while True:
            await hub.publish("news", str(len(published)))
            published.append(str(len(published)))
            await asyncio.sleep(interval)

    task = asyncio.create_task(publish())
    try:
        yield published
    finally:
        task.cancel()
        await asyncio.wait([task])


async def received_without_loss_or_repeat(pages, published):
    """Wait until each page has the last number, and check that it has all others since its first."""
    for page in pages:
        await page.wait_for_function(f"seen.at(-1) === '{published[-1]}'", timeout=TIMEOUT * 1000)
        got = await page.evaluate("seen")
        assert got == published[int(got[0]) :]


async def several(page, count=20):
    before = await page.evaluate("seen.length")
    await page.wait_for_function(f"seen.length >= {before + count}", timeout=TIMEOUT * 1000)


# From its next chunk on, a page reads each one only when it is released.
SLOW = """() => {
  const { read } = ReadableStreamDefaultReader.prototype;
  const waiting = [];
  let released = 0;
  window.release = () => { released += 1; waiting.shift()?.(); };
  ReadableStreamDefaultReader.prototype.read = async function () {
    const chunk = await read.call(this);
    if (!released) await new Promise((resolve) => waiting.push(resolve));
    released -= 1;
    return chunk;
  };
}"""


class Script:
    """Streams whose frames a test writes: ``streams`` has a queue for each request, in their order."""

    def __init__(self):
        self.streams = []

    async def handler(self, request):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        self.streams.append(frames := asyncio.Queue())
        while True:
            await response.write((await frames.get()).encode())

    def write(self, *frames):
        """Write a frame to each stream that gets one, in the order of the requests."""
        for stream, frame in zip(self.streams, frames, strict=False):
            stream.put_nowait(frame)


@pytest_asyncio.fixture(loop_scope="module")
async def script(site):
    script = Script()
    site.routes = [web.get("/script", script.handler)]
    await site.start()
    return script


async def pass_time(context, seconds):
    """Let the clock of all tabs pass, with pauses in which they answer each other."""
    for _ in range(2 * seconds):
        await context.clock.run_for(500)


async def one_connection(site):
    """Wait until the tabs have one connection. They may have more while the position of one is not known."""
    await until(lambda: len(site.streams) == 1)


async def sharing(site, tabs, count, url="/news"):
    """Open tabs that share a stream on which nothing happens, and return their pages."""
    pages = [await tabs(site.url) for _ in range(count)]
    for page in pages:
        await start(page, url, identity="user:7")
        await page.wait_for_function("source.readyState === 1")
    await one_connection(site)
    return pages


async def share(site, pages):
    """Let pages share a stream on which events come all the time."""
    for page in pages:
        await start(page, identity="user:7")
        await several(page)
    await one_connection(site)


async def test_another_tab_takes_over_when_the_leader_is_closed(site, tabs):
    await site.start()
    pages = [await tabs(site.url) for _ in range(4)]
    async with publishing(site.hub) as published:
        await share(site, pages)
        while len(pages) > 1:
            await pages.pop(0).close()
            await several(pages[-1], 50)
    await received_without_loss_or_repeat(pages, published)


async def test_another_tab_takes_over_when_the_leader_crashes(site, tabs):
    await site.start()
    pages = [await tabs(site.url) for _ in range(3)]
    async with publishing(site.hub) as published:
        await share(site, pages)
        session = await tabs.context.new_cdp_session(pages[0])
        crash = asyncio.ensure_future(session.send("Page.crash"))
        await several(pages[1], 50)
        await several(pages[2], 50)
        crash.cancel()
    await received_without_loss_or_repeat(pages[1:], published)


async def test_another_tab_takes_over_when_the_leader_is_frozen_and_both_go_on_later(site, tabs):
    await site.start()
    pages = [await tabs(site.url) for _ in range(3)]
    async with publishing(site.hub) as published:
        await share(site, pages)
        # Headless pages are visible, and are never frozen: the events are those of the page.
        before = await pages[0].evaluate("document.dispatchEvent(new Event('freeze')), seen.length")
        await several(pages[1], 50)
        assert await pages[0].evaluate("[seen.length, source.readyState]") == [before, 0]
        await pages[0].evaluate("document.dispatchEvent(new Event('resume'))")
        await several(pages[0], 50)
        await one_connection(site)
    await received_without_loss_or_repeat(pages, published)


async def test_another_tab_takes_over_from_a_leader_that_does_not_answer(site, tabs):
    await site.start()
    pages = [await tabs(site.url) for _ in range(3)]
    async with publishing(site.hub, 0.02) as published:
        await share(site, pages)
        # The main thread of the leader is blocked, and it keeps its lock.
        blocked = asyncio.ensure_future(
            pages[0].evaluate("() => { const end = Date.now() + 16000; while (Date.now() < end); return seen.length; }")
        )
        await several(pages[1], 1)
        before = await pages[1].evaluate("seen.length")
        await pages[1].wait_for_function(f"seen.length > {before} + 100", timeout=TIMEOUT * 1000)
        assert not blocked.done()
        await blocked
        await several(pages[0])
        await one_connection(site)
    await received_without_loss_or_repeat(pages, published)


async def test_a_tab_that_joins_gets_the_snapshot_and_what_comes_after_it(site, tabs):
    state = []

    async def snapshot(context):
        return [",".join(state)] if state else []

    site.routes = [web.get("/news", topic_stream(site.hub, "news", snapshot=snapshot, retry=20))]
    await site.start()
    pages = []
    async with publishing(site.hub) as published:
        for _ in range(4):
            pages.append(await tabs(site.url))
            await start(pages[-1], identity="user:7")
            await several(pages[-1])
            state[:] = published  # it is older than the records that a tab gets after it
        await one_connection(site)
    for page in pages:
        await page.wait_for_function(f"seen.at(-1) === '{published[-1]}'", timeout=TIMEOUT * 1000)
        first, *others = await page.evaluate("seen")
        assert others == published[int(others[0]) :]
        assert page is pages[0] or first == ",".join(published[: first.count(",") + 1])


@pytest.mark.parametrize("replay", [5, "latest"])
async def test_a_tab_that_joins_an_idle_stream_gets_what_a_stream_of_its_own_would_start_with(site, tabs, replay):
    site.hub = Hub(latest=100)
    site.routes = [web.get("/news", topic_stream(site.hub, "news", replay=replay, retry=20))]
    await site.start()
    first, second = [await tabs(site.url) for _ in range(2)]
    await start(first, identity="user:7")
    await first.wait_for_function("source.readyState === 1")
    for number in range(3):
        await site.hub.publish("news", f"{number}", key=f"{number}")
        await site.hub.publish("other", "not for them")
    await seen(first, ["0", "1", "2"])
    await start(second, identity="user:7")
    await seen(second, ["0", "1", "2"])
    await one_connection(site)
    await site.hub.publish("news", "3")
    await seen(first, ["0", "1", "2", "3"])
    await seen(second, ["0", "1", "2", "3"])
    assert len(site.requested("/news")) == 2


async def test_a_reload_resumes_after_the_last_event_if_the_page_asks_for_it(site, tabs):
    await site.start()
    pages = [await tabs(site.url) for _ in range(3)]
    stored = {id(page): [] for page in pages}

    async def reload(page):
        stored[id(page)] += await page.evaluate("source.close(), seen")
        await page.reload()
        await page.wait_for_function("window.ready")
        await start(page, identity="user:7", resume=True)
        await several(page)

    async with publishing(site.hub) as published:
        for page in pages:
            await start(page, identity="user:7", resume=True)
            await several(page)
        for page in pages * 2:
            await reload(page)
        await one_connection(site)
    for page in pages:
        await page.wait_for_function(f"seen.at(-1) === '{published[-1]}'", timeout=TIMEOUT * 1000)
        got = stored[id(page)] + await page.evaluate("seen")
        assert got == published[int(got[0]) :]


async def test_without_resume_a_reload_starts_anew(site, tabs):
    await site.start()
    page = await tabs(site.url)
    await start(page)
    await page.wait_for_function("source.readyState === 1")
    await site.hub.publish("news", "before")
    await seen(page, ["before"])
    await page.close()
    await site.hub.publish("news", "meanwhile")
    page = await tabs(site.url)
    await start(page)
    await page.wait_for_function("source.readyState === 1")
    await site.hub.publish("news", "after")
    await seen(page, ["after"])


async def test_tabs_of_two_identities_and_tabs_without_one_share_nothing(site, tabs):
    async def own(context):
        return "news." + context.request.cookies["user"]

    site.routes = [web.get("/news", topic_stream(site.hub, own, retry=20))]
    await site.start()
    pages = []
    await tabs.context.clock.install()
    for number, options in enumerate([{"identity": "ada"}, {"identity": "grace"}, {}, {}]):
        pages.append(await tabs(site.url))
        await pages[-1].evaluate(f"document.cookie = 'user={number}'")
        await start(pages[-1], **options)
        await pages[-1].wait_for_function("source.readyState === 1")
    await pass_time(tabs.context, 20)
    assert len(site.streams) == 4
    for number, page in enumerate(pages):
        await site.hub.publish(f"news.{number}", f"for {number}")
        await seen(page, [f"for {number}"])


async def test_a_stream_without_ids_is_shared_too(site, tabs):
    clients = []

    async def idle(channel, context):
        clients.append(channel)

    site.routes = [web.get("/idle", event_stream(idle, retry=20))]
    await site.start()
    pages = await sharing(site, tabs, 3, "/idle")
    for channel in clients:
        channel.put_nowait("tick")
    for page in pages:
        await seen(page, ["tick"])


async def test_a_page_that_is_offline_resumes_when_it_is_back(site, tabs):
    await site.start()
    page = await tabs(site.url)
    await start(page)
    await page.wait_for_function("source.readyState === 1")
    await site.hub.publish("news", "before")
    await seen(page, ["before"])
    await tabs.context.set_offline(True)
    for stream in site.streams:
        stream.abort()
    await page.wait_for_function("errors.length >= 3")
    await site.hub.publish("news", "meanwhile")
    await tabs.context.set_offline(False)
    await seen(page, ["before", "meanwhile"])
    reasons = [error["reason"] for error in await page.evaluate("errors")]
    assert reasons[0] == "cut"
    assert set(reasons[1:]) == {"unreachable"}


@pytest.mark.parametrize("compress", [False, True])
async def test_tabs_resume_when_the_server_is_restarted(site, tabs, tmp_path, compress):
    async def serve():
        site.hub = Hub(SqliteBroker(tmp_path / "hub"))
        site.routes = [web.get("/news", topic_stream(site.hub, "news", retry=20, compress=compress))]
        await site.start()

    await serve()
    pages = await sharing(site, tabs, 3)
    await site.hub.publish("news", "before")
    for page in pages:
        await seen(page, ["before"])
    await site.stop()
    for page in pages:
        await page.wait_for_function("source.readyState === 0")
    await serve()
    await site.hub.publish("news", "after")
    for page in pages:
        await seen(page, ["before", "after"])
        assert (await page.evaluate("errors"))[0]["reason"] == "ended"
    await one_connection(site)


async def test_a_stalled_connection_is_replaced(site, tabs):
    await site.start()
    async with TcpProxy("127.0.0.1", site.port) as proxy:
        page = await tabs(f"http://localhost:{proxy.port}/")
        await start(page)
        await page.wait_for_function("source.readyState === 1")
        proxy.stall()
        await page.wait_for_function("errors.length", timeout=TIMEOUT * 1000)
        assert (await page.evaluate("errors"))[0]["reason"] == "stalled"
        await site.hub.publish("news", "meanwhile")
        proxy.restore()
        await seen(page, ["meanwhile"])


async def test_a_page_of_another_origin_knows_the_interval_of_heartbeats(site, tabs):
    page_site = Site()
    site.routes = [web.route("*", "/news", as_handler(cors("*"), site.routes[0].handler))]
    await site.start()
    await page_site.start()
    try:
        page = await tabs(page_site.url)
        url = f"{site.url}news"
        interval = await page.evaluate(
            f"fetch({url!r}).then(response => response.headers.get('Event-Stream-Heartbeat'))"
        )
        assert interval == "0.2"
        await start(page, url)
        await page.wait_for_function("source.readyState === 1")
        await site.hub.publish("news", "one")
        await seen(page, ["one"])
        for stream in site.streams:
            stream.abort()
        await page.wait_for_function("errors.length")
        await site.hub.publish("news", "two")
        await seen(page, ["one", "two"])  # after a preflight request, which allows Last-Event-ID
    finally:
        await page_site.stop()


async def test_a_gap_is_told_to_all_tabs(site, tabs):
    site.hub = Hub(history=2)
    site.routes = [web.get("/news", topic_stream(site.hub, "news", retry=20))]
    await site.start()
    pages = await sharing(site, tabs, 2)
    await site.hub.publish("news", "0")
    for page in pages:
        await seen(page, ["0"])
    await tabs.context.set_offline(True)
    for stream in site.streams:
        stream.abort()
    await pages[0].wait_for_function("errors.length")
    for number in range(1, 6):
        await site.hub.publish("news", str(number))
    await tabs.context.set_offline(False)
    for page in pages:
        await seen(page, ["0", "gap", "4", "5"])


async def test_a_finished_topic_closes_all_tabs(site, tabs):
    await site.start()
    pages = await sharing(site, tabs, 3)
    await site.hub.finish("news", "the end")
    for page in pages:
        await page.wait_for_function("source.readyState === 2", timeout=TIMEOUT * 1000)
        assert await page.evaluate("seen") == ["the end"]
        *others, last = await page.evaluate("errors")
        assert {error["reason"] for error in others} == {"ended"}  # each tab has asked for itself
        assert last == {
            "reason": "finished",
            "status": 204,
            "delay": None,
            "final": True,
        }
    assert len(site.streams) == 0


async def test_a_tab_that_misses_a_message_of_the_leader_gets_its_events_from_the_server(site, tabs):
    await site.start()
    pages = await sharing(site, tabs, 3)
    await site.hub.publish("news", "0")
    for page in pages:
        await seen(page, ["0"])
    await pages[0].evaluate(
        """() => {
          const { postMessage } = BroadcastChannel.prototype;
          BroadcastChannel.prototype.postMessage = function (message) {
            if (message.type !== "entries") return postMessage.call(this, message);
            window.dropped = message.entries.length;
            BroadcastChannel.prototype.postMessage = postMessage;
          };
        }"""
    )
    await site.hub.publish("news", "1")
    await pages[0].wait_for_function("window.dropped")
    await site.hub.publish("news", "2")
    for page in pages:
        await seen(page, ["0", "1", "2"])
    await one_connection(site)


async def test_a_tab_whose_message_was_lost_notices_it_without_another_event(site, tabs):
    await site.start()
    pages = await sharing(site, tabs, 2)
    await pages[0].evaluate("BroadcastChannel.prototype.postMessage = () => { window.dropped = true; }")
    await site.hub.publish("news", "1")
    await pages[0].wait_for_function("window.dropped")
    await pages[0].reload()  # which takes the lost message with it
    await seen(pages[1], ["1"])


async def test_a_slow_snapshot_is_waited_for(site, tabs):
    loading = asyncio.Event()

    async def snapshot(context):
        if len(site.requested("/news")) > 1:
            await loading.wait()
        return ["state"]

    site.routes = [web.get("/news", topic_stream(site.hub, "news", snapshot=snapshot, retry=20))]
    await site.start()
    pages = [await tabs(site.url) for _ in range(2)]
    await start(pages[0], identity="user:7")
    await seen(pages[0], ["state"])
    await tabs.context.clock.install()
    await start(pages[1], identity="user:7")
    await until(lambda: len(site.streams) == 2)
    await pass_time(tabs.context, 8)
    assert len(site.streams) == 2
    await tabs.context.clock.resume()
    loading.set()
    await seen(pages[1], ["state"])
    await one_connection(site)
    await site.hub.publish("news", "one")
    for page in pages:
        await seen(page, ["state", "one"])


async def test_a_tab_does_not_get_from_the_leader_what_its_snapshot_contains(site, tabs):
    state = []
    site.routes = [web.get("/news", topic_stream(site.hub, "news", snapshot=lambda context: list(state), retry=20))]
    await site.start()
    pages = [await tabs(site.url) for _ in range(2)]
    await start(pages[0], identity="user:7")
    await pages[0].wait_for_function("source.readyState === 1")
    await pages[0].evaluate(SLOW)
    await site.hub.publish("news", "0")  # the leader was reading already
    await seen(pages[0], ["0"])
    await site.hub.publish("news", "1")  # it is slow from here on
    state[:] = ["0", "1"]
    await start(pages[1], identity="user:7")
    await seen(pages[1], ["0", "1"])
    await one_connection(site)
    await pages[0].evaluate("release()")
    await site.hub.publish("news", "2")
    await pages[0].evaluate("release()")
    for page in pages:
        await seen(page, ["0", "1", "2"])


async def test_a_tab_that_joins_is_told_who_is_present(site, tabs):
    stream = topic_stream(site.hub, "news", identity=lambda context: "ada", presence_event="other", retry=20)
    site.routes = [web.get("/news", stream)]
    await site.start()
    for _ in range(3):
        page = await tabs(site.url)
        await start(page, identity="user:7")
        await seen(page, ["other"])
        await one_connection(site)
        assert site.hub.presence("news") == {"ada"}


async def test_a_stream_with_other_ids_is_shared_without_loss_or_repeat(site, tabs):
    """Each connection gets what comes after its last event ID, which is a number, or what comes from now on."""
    events = []
    clients = set()

    async def count(channel, context):
        last = context.last_event_id
        position = len(events) if last is None else int(last.removeprefix("no. ")) + 1
        wake = asyncio.Event()
        clients.add(wake)
        try:
            while True:
                while position < len(events):
                    if not await channel.put(Event(events[position], id=f"no. {position}")):
                        return
                    position += 1
                wake.clear()
                await wake.wait()
        finally:
            clients.discard(wake)

    site.routes = [web.get("/news", event_stream(count, retry=20))]
    await site.start()
    pages = [await tabs(site.url) for _ in range(3)]

    async def publish():
        while True:
            events.append(str(len(events)))
            for wake in clients:
                wake.set()
            await asyncio.sleep(0.005)

    publishing = asyncio.create_task(publish())
    try:
        await share(site, pages)
        await pages.pop(0).close()
        for page in pages:
            await several(page)
        await one_connection(site)
    finally:
        publishing.cancel()
        await asyncio.wait([publishing])
    await received_without_loss_or_repeat(pages, events)


async def test_a_tab_that_is_ahead_of_a_leader_with_other_ids_repeats_nothing(site, tabs, script):
    pages = [await tabs(site.url) for _ in range(2)]
    await start(pages[0], "/script", identity="user:7")
    await pages[0].wait_for_function("source.readyState === 1")
    await pages[0].evaluate(SLOW)
    script.write("id: no. 0\ndata: 0\n\n")
    await seen(pages[0], ["0"])  # it was reading already
    await start(pages[1], "/script", identity="user:7")
    await pages[1].wait_for_function("source.readyState === 1")
    for number in range(1, 4):
        script.write(*[f"id: no. {number}\ndata: {number}\n\n"] * 2)
        await seen(pages[1], [str(each) for each in range(1, number + 1)])
    await pages[0].evaluate("release()")
    await pages[1].wait_for_function("performance.getEntriesByType('resource').at(-1).responseEnd")  # it follows
    for _ in range(3):
        await pages[0].evaluate("release()")
    script.write("id: no. 4\ndata: 4\n\n")
    for page in pages:
        await page.wait_for_function("seen.at(-1) === '4'", timeout=TIMEOUT * 1000)
    assert await pages[0].evaluate("seen") == ["0", "1", "2", "3", "4"]
    assert await pages[1].evaluate("seen") == ["1", "2", "3", "4"]


async def reach_five(pages, tabs, script):
    """Stop the clock of two tabs, and open the stream in both: each on its own connection, with the ID of event 5."""
    await tabs.context.clock.install()
    await tabs.context.clock.pause_at(2_000_000_000)
    for page in pages:
        await start(page, "/script", identity="user:7")
        await page.wait_for_function("source.readyState === 1")
        await until(lambda page=page: len(script.streams) == pages.index(page) + 1)
        script.streams[-1].put_nowait("id: abcdef0123-5\n\n")
        await page.wait_for_function("source.lastEventId")


async def test_a_tab_waits_for_an_event_that_follows_its_id(site, tabs, script):
    pages = [await tabs(site.url) for _ in range(2)]
    await reach_five(pages, tabs, script)
    await tabs.context.clock.run_for(400)
    script.write("", "data: who is here\n\n")
    await seen(pages[1], ["who is here"])
    await pass_time(tabs.context, 2)
    script.write("id: abcdef0123-6\ndata: six\n\n")  # to the leader alone
    await seen(pages[1], ["who is here", "six"])


async def test_a_tab_that_resumes_with_another_id_waits_for_what_it_missed(site, tabs, script):
    pages = [await tabs(site.url) for _ in range(2)]
    await tabs.context.clock.install()
    await start(pages[0], "/script", identity="user:7")
    await until(lambda: len(script.streams) == 1)
    script.write("id: no. 9\ndata: 9\n\n")
    await seen(pages[0], ["9"])
    await start(pages[1], "/script", identity="user:7", lastEventId="no. 7")
    await until(lambda: len(script.streams) == 2)
    script.write("", "id: no. 8\ndata: 8\n\n")
    await seen(pages[1], ["8"])
    await pass_time(tabs.context, 20)
    script.write("", "id: no. 9\ndata: 9\n\n")
    await seen(pages[1], ["8", "9"])
    await pass_time(tabs.context, 2)
    script.write("id: no. 10\ndata: 10\n\n")  # to the leader alone
    await seen(pages[1], ["8", "9", "10"])


async def test_a_tab_does_not_follow_a_leader_that_gets_other_events(site, tabs, script):
    pages = [await tabs(site.url) for _ in range(2)]
    await tabs.context.clock.install()
    for page in pages:
        await start(page, "/script", identity="user:7")
        await page.wait_for_function("source.readyState === 1")
    await until(lambda: len(script.streams) == 2)
    script.write("data: first\n\n", "data: second\n\n")
    await seen(pages[0], ["first"])
    await seen(pages[1], ["second"])
    await pass_time(tabs.context, 20)
    script.write("data: one\n\n", "data: two\n\n")
    await seen(pages[0], ["first", "one"])
    await seen(pages[1], ["second", "two"])


async def test_a_stream_that_differs_from_connection_to_connection_is_not_shared(site, tabs):
    async def own(channel, context):
        name = str(len(site.requested("/own")))
        while await channel.put(name):
            await asyncio.sleep(0.05)

    site.routes = [web.get("/own", event_stream(own, retry=20))]
    await site.start()
    pages = [await tabs(site.url) for _ in range(2)]
    for page in pages:
        await start(page, "/own", identity="user:7")
        await several(page, 100)
    names = [set(await page.evaluate("seen")) for page in pages]
    assert [len(each) for each in names] == [1, 1]
    assert names[0] != names[1]


async def test_a_leader_that_closes_its_stream_hands_over(site, tabs):
    await site.start()
    pages = await sharing(site, tabs, 2)
    await pages[0].evaluate("source.close()")
    await site.hub.publish("news", "one")
    await seen(pages[1], ["one"])
    assert await pages[0].evaluate("[seen, source.readyState, errors]") == [[], 2, []]


async def test_without_locks_or_channels_each_tab_has_its_own_connection(site, tabs):
    await site.start()
    pages = [await tabs(site.url) for _ in range(2)]
    for page in pages:
        await page.evaluate(
            "Object.defineProperty(navigator, 'locks', { get: () => window.locks, configurable: true })"
        )
    denied = "{ throw new DOMException('no', 'SecurityError'); }"
    for broken in (
        "window.locks = undefined",
        f"window.locks = {{ request: async () => {denied} }}",
        f"delete navigator.locks, window.BroadcastChannel = class {{ constructor() {denied} }}",
    ):
        for page in pages:
            await page.evaluate(f"{broken}, 0")
            await page.evaluate("seen.length = 0")
            await start(page, identity="user:7")
            await page.wait_for_function("source.readyState === 1")
        assert len(site.streams) == 2
        await site.hub.publish("news", "one")
        for page in pages:
            await seen(page, ["one"])
            await page.evaluate("source.close()")
        await until(lambda: len(site.streams) == 0)


async def test_a_tab_does_not_give_up_its_connection_for_a_leader_that_waits(site, tabs):
    async def busy_once(request):
        if len(site.requested("/busy")) == 1:
            raise web.HTTPServiceUnavailable(headers={"Retry-After": "3600"})
        return await news(request)

    news = topic_stream(site.hub, "news", heartbeat=None, retry=20)
    site.routes = [web.get("/busy", busy_once)]
    await site.start()
    leader, page = [await tabs(site.url) for _ in range(2)]
    await tabs.context.clock.install()
    await start(leader, "/busy", identity="user:7")
    await leader.wait_for_function("source.readyState === 1")
    for stream in site.streams:
        stream.abort()
    await leader.wait_for_function("errors.at(-1)?.status === 503", timeout=TIMEOUT * 1000)
    await start(page, "/busy", identity="user:7")
    await page.wait_for_function("source.readyState === 1")
    await pass_time(tabs.context, 20)
    await site.hub.publish("news", "one")
    await seen(page, ["one"])
    assert await page.evaluate("states") == [1]


async def test_a_listener_may_close_the_stream_while_its_tab_joins(site, tabs, script):
    pages = [await tabs(site.url) for _ in range(2)]
    raised = []
    pages[1].on("pageerror", lambda error: raised.append(str(error)))
    await reach_five(pages, tabs, script)
    script.write("id: abcdef0123-6\ndata: six\n\n")  # to the leader alone
    await seen(pages[0], ["six"])
    await pages[1].evaluate("source.onmessage = () => source.close(), 0")
    await pass_time(tabs.context, 10)
    await seen(pages[1], ["six"])
    assert await pages[1].evaluate("source.readyState") == 2
    assert raised == []


async def test_all_tabs_are_told_that_an_error_is_not_the_end(site, tabs):
    await site.start()
    pages = await sharing(site, tabs, 2)
    for stream in site.streams:
        stream.abort()
    for page in pages:
        await page.wait_for_function("errors.length", timeout=TIMEOUT * 1000)
        (error, *_) = await page.evaluate("errors")
        assert (error["reason"], error["final"]) == ("cut", False)


async def test_a_handler_that_raises_does_not_end_the_stream(site, tabs):
    await site.start()
    page = await tabs(site.url)
    await start(page)
    await page.wait_for_function("source.readyState === 1")
    await page.evaluate("source.onmessage = () => { throw new Error('mine'); }, source.onopen = source.onmessage, 0")
    await site.hub.publish("news", "one")
    await site.hub.publish("news", "two")
    await seen(page, ["one", "two"])
    assert await page.evaluate("errors") == []
    assert len(site.requested("/news")) == 1
