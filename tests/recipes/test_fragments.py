"""The recipes for htmx and Datastar: the wire format, and a page with a small stand-in for each script.

The stand-ins do what the recipes use of the scripts: they connect, swap or patch, and post.
"""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from aiohttp_interceptors.testing import open_stream
from tests.browser.accessibility import violations

HTMX = """
const [connect] = document.querySelectorAll("[sse-connect]");
const source = new EventSource(connect.getAttribute("sse-connect"), { withCredentials: true });
for (const element of document.querySelectorAll("[sse-swap]"))
  source.addEventListener(element.getAttribute("sse-swap"), ({ data }) => { element.innerHTML = data; });
for (const button of document.querySelectorAll("[hx-post]"))
  button.onclick = () => fetch(button.getAttribute("hx-post"), { method: "POST" });
"""
DATASTAR = """
const url = (element, name) => element.getAttribute(name).match(/'(.*?)'/)[1];
const [connect] = document.querySelectorAll("[data-init]");
let last;
(async function read() {
  try {
    const headers = { Accept: "text/event-stream, text/html", ...(last && { "last-event-id": last }) };
    const response = await fetch(url(connect, "data-init") + "?datastar={}", { headers });
    let rest = "";
    for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
      const frames = (rest + text).split("\\n\\n");
      rest = frames.pop();
      for (const frame of frames) {
        if (!/^event: datastar-patch-elements$/m.test(frame)) continue;
        last = frame.match(/^id: (.*)$/m)?.[1] ?? last;
        const found = document.createElement("template");
        found.innerHTML = [...frame.matchAll(/^data: elements (.*)$/gm)].map((line) => line[1]).join("\\n");
        for (const element of [...found.content.children]) document.getElementById(element.id).replaceWith(element);
      }
    }
  } catch { setTimeout(read, 100); }
})();
for (const button of document.querySelectorAll("[data-on\\\\:click]"))
  button.onclick = () => fetch(url(button, "data-on:click"), { method: "POST" });
"""
SCRIPTS = {"htmx": HTMX, "datastar": DATASTAR}


def with_stand_in(recipe, name):
    """Put the stand-in into the page in place of the script."""
    page_file = recipe.folder / f"{name}.html"
    lines = [line for line in page_file.read_text().splitlines(keepends=True) if "<script" not in line]
    page_file.write_text("".join(lines) + f"<script>{SCRIPTS[name]}</script>")
    return recipe


async def vote(session, recipe, option):
    async with session.post(f"{recipe.url}/votes/{option}") as response:
        return response.status


async def frames(stream, count):
    return [(frame.name, frame.data) for frame in [await stream.next() for _ in range(count)]]


async def test_htmx_gets_an_event_named_as_its_element_with_the_html(session, run):
    recipe = run("htmx")
    async with open_stream(session, f"{recipe.url}/votes") as stream:
        assert await frames(stream, 2) == [("tea", "tea: <b>0</b>"), ("coffee", "coffee: <b>0</b>")]
        assert await vote(session, recipe, "tea") == 204
        assert await frames(stream, 1) == [("tea", "tea: <b>1</b>")]
    assert await vote(session, recipe, "milk") == 404


async def test_datastar_gets_events_that_patch_elements_by_their_ids(session, run):
    recipe = run("datastar")
    accept = {"Accept": "text/event-stream, text/html, application/json"}
    async with open_stream(session, f"{recipe.url}/votes?datastar=%7B%7D", headers=accept) as stream:
        name = "datastar-patch-elements"
        assert await frames(stream, 2) == [
            (name, 'elements <p id="tea">tea: <b>0</b></p>'),
            (name, 'elements <p id="coffee">coffee: <b>0</b></p>'),
        ]
        assert await vote(session, recipe, "tea") == 204
        assert await frames(stream, 1) == [(name, 'elements <p id="tea">tea: <b>1</b></p>')]


async def test_datastar_gets_each_line_and_each_option_on_a_line_of_its_own(session, run):
    """The order is that of the SDKs: the options, then the elements."""
    more = """return patch_elements("<p>\\n  more\\n</p>", selector="#list", mode="append")\n    patch_elements("""
    recipe = run("datastar", replace={"return patch_elements(": more})
    async with open_stream(session, f"{recipe.url}/votes") as stream:
        event = await stream.next()
        assert event.data.split("\n") == [
            "selector #list",
            "mode append",
            "elements <p>",
            "elements   more",
            "elements </p>",
        ]


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", SCRIPTS)
async def test_the_page_shows_the_votes_of_all_also_after_the_server_was_killed(visit, run, name, console_errors):
    recipe = with_stand_in(run(name), name)
    one, two = await visit(recipe.url), await visit(recipe.url)
    for page in one, two:
        await expect(page.locator("p")).to_have_text(["tea: 0", "coffee: 0"])
    await one.get_by_role("button", name="Tea").click()
    for page in one, two:
        await expect(page.locator("p")).to_have_text(["tea: 1", "coffee: 0"])
    recipe.kill()
    recipe.restart()
    for page in one, two:  # the votes were in the memory of the process
        await expect(page.locator("p")).to_have_text(["tea: 0", "coffee: 0"])
    console_errors[:] = [each for each in console_errors if "ERR_" not in each]


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", SCRIPTS)
async def test_the_page_has_no_violations_for_axe(visit, run, name):
    page = await visit(with_stand_in(run(name), name).url)
    await expect(page.locator("p")).to_have_text(["tea: 0", "coffee: 0"])
    assert await violations(page) == []
    await page.context.close()
