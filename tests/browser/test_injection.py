"""No text from a user becomes another field or another event, as Chromium's ``EventSource`` reads one stream of them.

Hypothesis makes the texts. After each event comes a marker, so that a lost, a changed and an additional event show.
"""

from __future__ import annotations

import json

import pytest
import pytest_asyncio
from aiohttp import web
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from aiohttp_interceptors import Event, event_stream, setup
from aiohttp_interceptors.sse import Decoder, encode

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

CASES = 1_000
FIELDS = ["data", "name", "id", "comment"]
PIECES = ["\r", "\n", "\r\n", "\n\n", "\r\r", "\0", " ", ":", "\ufeff", "\u2028", "\u2029", "\x85", "\x0b", "\x0c"]
INJECTIONS = ["data: injected", "event: injected", "id: injected", "retry: 0", "data", ": injected", "price", "é", "😀"]
TEXTS = st.lists(st.sampled_from(PIECES + INJECTIONS) | st.text(max_size=3), min_size=1, max_size=6).map("".join)
VALID = {"data": "price: 1", "name": "tick", "id": "41", "retry": 9000, "comment": "no. 41"}

PAGE = """<!doctype html><link rel=icon href="data:,"><title>injection</title><p id=state></p><script>
const seen = [];
fetch("/names").then((response) => response.json()).then((names) => {
  const source = new EventSource("/events");
  const note = (event) => seen.push([event.type, event.data, event.lastEventId]);
  for (const name of names) source.addEventListener(name, note);
  source.addEventListener("finished", () => {
    source.close();
    document.getElementById("state").textContent = "finished";
  });
});
</script>"""


def accepted(field: str, text: str) -> Event | None:
    """Return an event with a hostile text, or ``None`` if it is refused."""
    try:
        return Event(**{**VALID, field: text})
    except ValueError:
        return None


def hostile_events() -> list[tuple[str, str, Event]]:
    """Let Hypothesis make events whose text was accepted, always the same ones."""
    cases: list[tuple[str, str, Event]] = []

    @settings(max_examples=CASES, database=None, derandomize=True, phases=[Phase.generate], deadline=None)
    @given(field=st.sampled_from(FIELDS), text=TEXTS)
    def collect(field, text):
        event = accepted(field, text)
        if event is not None:
            cases.append((field, text, event))
        else:
            assert field in ("name", "id"), text  # the texts have no surrogates

    collect()
    return cases


def expected(field: str, text: str) -> tuple[str, str, str]:
    """Return the type, the data and the last event ID that a page gets, which the standard and the input define."""
    blank = not text.strip()
    return (
        "message" if field == "name" and blank else text if field == "name" else VALID["name"],
        text.replace("\r\n", "\n").replace("\r", "\n") if field == "data" else VALID["data"],
        "" if field == "id" and not text else VALID["id"] if field != "id" or blank else text,
    )


@pytest.fixture(scope="module")
def cases():
    return hostile_events()


@pytest_asyncio.fixture(loop_scope="module")
async def site(cases):
    """Serve the page, and a stream with the events, each followed by a marker that sets the ID again."""

    @event_stream
    async def events(request: web.Request):
        for index, (_, _, event) in enumerate(cases):
            yield event
            yield Event(str(index), "marker", VALID["id"])
        yield Event("", "finished")

    async def names(request: web.Request) -> web.Response:
        every = {expected(field, text)[0] for field, text, _ in cases}
        return web.json_response(sorted(every | {"message", "marker", "injected", "tick"}))

    async def page(request: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html")

    app = web.Application()
    setup(app)
    app.add_routes([web.get("/", page), web.get("/names", names), web.get("/events", events)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    await runner.cleanup()


def sequence(cases) -> list[list[str]]:
    """Return what a page has to get."""
    wanted: list[list[str]] = []
    for index, (field, text, _) in enumerate(cases):
        wanted += [list(expected(field, text)), ["marker", str(index), VALID["id"]]]
    return wanted


async def test_texts_of_every_kind_are_among_the_cases(cases):
    """Or the next tests would show nothing."""
    assert len(cases) > CASES // 3
    for field, wanted in [("data", "\n"), ("data", "\r"), ("data", "\0"), ("comment", "\n"), ("name", "\0")]:
        assert [text for name, text, _ in cases if name == field and wanted in text]
    assert [text for name, text, _ in cases if name == "id" and "data: injected" in text]


async def test_our_decoder_reads_one_event_of_each_text(cases):
    decoder, read = Decoder(), []
    for index, (_, _, event) in enumerate(cases):
        for sent in (event, Event(str(index), "marker", VALID["id"])):
            frames = decoder.feed(encode(sent))
            read += [[frame.name or "message", frame.data, decoder.last_event_id] for frame in frames]
    assert read == sequence(cases)


async def test_chromium_reads_one_event_of_each_text(visit, site, cases):
    page = await visit(site)
    await page.wait_for_function("document.getElementById('state').textContent === 'finished'", timeout=60_000)
    seen, wanted = json.loads(await page.evaluate("JSON.stringify(seen)")), sequence(cases)
    for index, (got, want) in enumerate(zip(seen, wanted, strict=False)):
        assert got == want, cases[index // 2]
    assert len(seen) == len(wanted)
