"""What a page of another site, and a page that is open on a telephone, may expect of each recipe."""

from __future__ import annotations

import pytest

from tests.recipes.site import FOLDER

FORMS = [
    ("progress", "/jobs"),
    ("presence", "/"),
    ("htmx", "/votes/tea"),
    ("datastar", "/votes/tea"),
    ("notifications", "/login"),
    ("notifications", "/logout"),
]
ELSEWHERE = {"Origin": "https://other.example", "Sec-Fetch-Site": "cross-site"}


@pytest.mark.parametrize(("name", "path"), FORMS, ids=lambda value: value.strip("/").replace("/", "-"))
async def test_a_form_of_another_site_is_refused(session, run, name, path):
    recipe = run(name)
    for headers, refused in (ELSEWHERE, True), ({"Origin": recipe.url, "Sec-Fetch-Site": "same-origin"}, False):
        async with session.post(
            recipe.url + path, data={"user": "ann"}, headers=headers, allow_redirects=False
        ) as response:
            assert (response.status == 403) is refused


@pytest.mark.parametrize(("name", "path"), [("chat", "/answers"), ("orders", "/orders"), ("mcp_server", "/mcp")])
async def test_json_that_a_form_of_another_site_can_send_is_refused(session, run, name, path):
    """A form has three content types, of which text/plain may look like JSON."""
    recipe = run(name)
    headers = {**ELSEWHERE, "Content-Type": "text/plain"}
    async with session.post(recipe.url + path, data='{"prompt": "x", "article": "tea"}', headers=headers) as response:
        assert response.status in {403, 415}


@pytest.mark.parametrize("page", sorted(FOLDER.glob("*.html")), ids=lambda page: page.stem)
def test_a_page_fits_on_a_telephone_and_makes_no_html_of_what_it_gets(page):
    text = page.read_text()
    assert '<meta name="viewport" content="width=device-width">' in text
    assert "innerHTML" not in text
    assert "insertAdjacentHTML" not in text
