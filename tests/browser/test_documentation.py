"""The documentation as a site: it is read and searched from files, and loads nothing from other servers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import expect

from tests.servers.engines import needs

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    needs("mkdocs-material", "material" if find_spec("material") else None)
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert built.returncode == 0, built.stderr
    return folder


@pytest_asyncio.fixture(loop_scope="module")
async def read(site, visit):
    """Open a file of the site. What it loads must be files, too."""
    addresses = []

    async def read(name):
        page = await visit("about:blank")
        page.on("request", lambda request: addresses.append(request.url))
        await page.goto((site / name).as_uri())
        return page

    yield read
    assert (site / "search/search_index.js").as_uri() in addresses
    assert [address for address in addresses if not address.startswith(("file:", "data:"))] == []


async def search(page, word):
    await page.locator(".md-search__input").press_sequentially(word)


@pytest.mark.parametrize("start", ["index.html", "recipes/chat.html"])
async def test_the_search_of_a_site_in_files_finds_a_page_by_a_word(site, read, start):
    page = await read(start)
    await search(page, "tombstone")
    result = f"{(site / 'hub.html').as_uri()}?h=tombstone"
    await page.locator(f".md-search-result a[href^='{result}']").first.click()
    await expect(page).to_have_url(re.compile(f"^{re.escape(result)}"))
    await expect(page.get_by_role("heading", level=1)).to_contain_text("The Hub")


async def test_a_word_that_no_page_has_is_not_found_in_files(read):
    page = await read("reference/hub.html")
    await search(page, "xylophone")
    await expect(page.locator(".md-search-result__meta")).to_have_text("No matching documents")


async def test_no_page_names_a_file_of_another_host_to_load(site):
    for file in site.rglob("*.html"):
        text = file.read_text()
        tags = re.findall(r"<(?!a\b)\w+ [^>]*>", text)
        assert [tag for tag in tags if re.search(r"(?:src|srcset|href)=[\"']?(?:https?:)?//", tag)] == [], file
