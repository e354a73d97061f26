"""SECURITY.md names tests that exist, for each threat."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "SECURITY.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)`", PAGE)))
THREATS = re.search(r"## Threats\n(.*)## Limits", PAGE, re.DOTALL)[1]


@pytest.mark.parametrize("named", NAMED)
def test_a_test_that_is_named_exists(named):
    file, _, name = named.partition("::")
    assert (ROOT / file).is_file()
    functions = {node.name for node in ast.walk(ast.parse((ROOT / file).read_text())) if hasattr(node, "name")}
    assert not name or name in functions


def test_each_section_names_a_test():
    for section in THREATS.split("\n### ")[1:]:
        assert "`tests/" in section, section


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http)([^)#]+)", PAGE))
def test_a_link_leads_to_a_page(path):
    assert (ROOT / path).is_file()
