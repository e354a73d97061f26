"""The code of docs/packages.md is that of the application which the tests serve."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_functions_of_the_page_are_those_of_the_site():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/packages.md").read_text(), re.DOTALL)
    imports, *functions = [part.strip() for part in code.split("\n\n\n")][:-1]
    site = (ROOT / "tests/ecosystem/site.py").read_text()
    assert len(functions) == 2
    for part in (imports.splitlines()[-1], *functions):
        assert part in site
