"""The pages of the recipes show the files as they are: ``python -m tests.recipes.pages`` copies them there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.recipes.site import FOLDER, ROOT

PAGES = ROOT / "docs" / "recipes"
# A line that names a file, and the block of code below it.
SHOWN = re.compile(r"(?<=^`)([\w.]+)(`:\n\n```(\w+)\n)(.*?)(?=^```$)", re.MULTILINE | re.DOTALL)


def shown() -> Iterator[tuple[str, str]]:
    """Yield the name of each file that a page shows, and what the page shows of it."""
    for page in sorted(PAGES.glob("*.md")):
        for name, _, _, code in SHOWN.findall(page.read_text()):
            yield name, code


def updated(page: Path) -> str:
    """Return the text of a page with the files as they are."""
    return SHOWN.sub(lambda found: f"{found[1]}{found[2]}{(FOLDER / found[1]).read_text()}", page.read_text())


if __name__ == "__main__":
    for page in PAGES.glob("*.md"):
        page.write_text(updated(page))
