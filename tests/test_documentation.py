"""The reference has every public name once, under its tier."""

from __future__ import annotations

import re
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

import aiohttp_interceptors

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [page.read_text() for page in sorted((DOCS / "reference").glob("*.md"))]
REFERENCE = Counter(name for page in PAGES for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE))
TIER = re.compile(r"^\*\*(\w+)\.\*\*(.*?)(?=^\*\*|^Modules:)", re.MULTILINE | re.DOTALL)
MODULES = ["aiohttp_interceptors", "aiohttp_interceptors.ready"]


@pytest.mark.parametrize("module", MODULES)
def test_the_reference_has_every_public_name_once(module):
    names = {f"{module}.{name}" for name in import_module(module).__all__}
    assert {name: REFERENCE[name] for name in names} == dict.fromkeys(names, 1)


def test_the_reference_names_only_what_there_is():
    for name in REFERENCE:
        module, _, attribute = name.rpartition(".")
        try:
            import_module(name)
        except ModuleNotFoundError:
            assert hasattr(import_module(module), attribute), name


def test_the_tiers_of_the_reference_are_those_of_the_package():
    tiers = TIER.findall(aiohttp_interceptors.__doc__)
    assert [tier for tier, _ in tiers] == ["Daily", "Hub", "Operating", "Advanced"]
    for tier, text in tiers:
        page = (DOCS / "reference" / f"{tier.lower()}.md").read_text()
        described = set(re.findall(r"^::: aiohttp_interceptors\.(\w+)$", page, re.MULTILINE))
        mentioned = set(re.findall(r"``(\w+)", text)) & set(aiohttp_interceptors.__all__)
        assert described <= mentioned, f"{tier}: {described - mentioned} is on its page, and not in its paragraph"
