"""The pages of the recipes: each file is shown whole, and each page says what to try and what to mind."""

from __future__ import annotations

import re

import pytest

from tests.recipes.pages import PAGES, shown
from tests.recipes.site import FOLDER, ROOT

FILES = sorted(file.name for file in FOLDER.iterdir() if file.suffix in {".py", ".html", ".conf"})
RECIPES = sorted(page for page in PAGES.glob("*.md") if page.stem != "index")


def test_each_file_is_shown_once_and_whole():
    pages = list(shown())
    assert sorted(name for name, _ in pages) == FILES
    for name, code in pages:
        assert code == (FOLDER / name).read_text(), f"{name} has changed: run python -m tests.recipes.pages"


@pytest.mark.parametrize("page", RECIPES, ids=lambda page: page.stem)
def test_a_page_says_what_to_try_and_what_to_mind(page):
    text = page.read_text()
    assert re.findall(r"^## (.*)", text, re.MULTILINE)[-2:] == ["Try it", "In production"]
    programs = re.findall(r"^`(\w+\.py)`:", text, re.MULTILINE)
    assert programs
    for program in programs:
        assert f"python {program}" in text


@pytest.mark.parametrize("page", RECIPES, ids=lambda page: page.stem)
def test_a_page_is_in_the_navigation_and_in_the_table(page):
    assert f"recipes/{page.name}" in (ROOT / "mkdocs.yml").read_text()
    assert f"({page.name})" in (PAGES / "index.md").read_text()


@pytest.mark.parametrize("file", [name for name in FILES if name.endswith(".py")])
def test_a_program_marks_what_a_reader_changes_and_runs_by_itself(file):
    text = (FOLDER / file).read_text()
    assert "# change: " in text
    assert text.startswith('"""')
    assert '\nif __name__ == "__main__":\n' in text
