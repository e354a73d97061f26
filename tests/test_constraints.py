"""The installed packages have the versions of constraints.txt."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
import re
import sys
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LINES = (ROOT / "constraints.txt").read_text().splitlines()
LINE = re.compile(r'([a-z0-9-]+)==([0-9][0-9a-z.]*)( ; python_version (==|>=) "3\.\d+")?')
PLACE = Path(sys.prefix, "place")  # written by scripts/setup: which versions the environment was made with


@pytest.fixture
def lock():
    """Import scripts/lock."""
    loader = importlib.machinery.SourceFileLoader("lock", str(ROOT / "scripts" / "lock"))
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        module = importlib.util.module_from_spec(importlib.util.spec_from_loader("lock", loader))
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-oldest.txt"])
def test_each_line_is_a_version_and_not_a_url(file):
    first, *lines = (ROOT / file).read_text().splitlines()
    assert first.startswith("# ")
    for line in lines:
        assert LINE.fullmatch(line), line
    assert lines == sorted(lines, key=lambda line: line.partition("==")[0])


def test_the_oldest_versions_are_the_lower_bounds_of_pyproject(lock):
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()[1:]
    pinned = dict(line.split("==") for line in lines)
    oldest = lock.oldest()
    assert oldest
    assert {name: Version(pinned[name]) for name in oldest} == {name: Version(text) for name, text in oldest.items()}


@pytest.mark.skipif(
    not PLACE.exists() or " locked " not in PLACE.read_text(),
    reason="the environment was not made by scripts/setup with the versions of constraints.txt",
)
def test_installed_packages_have_the_versions_of_constraints():
    pinned = {}
    for line in LINES[1:]:
        name, version, marker, _ = LINE.fullmatch(line).groups()
        if marker is None or Marker(marker.removeprefix(" ; ")).evaluate():
            pinned[name] = version
    installed = {}
    for found in importlib.metadata.distributions(path=[path for path in sys.path if path.startswith(sys.prefix)]):
        installed[re.sub(r"[-_.]+", "-", found.name).lower()] = found.version
    assert installed.pop("aiohttp-interceptors")
    wrong = {name: (version, pinned.get(name)) for name, version in installed.items() if version != pinned.get(name)}
    assert wrong == {}, (
        "run `make clean` to remove packages that were installed by hand, or `make lock` to add those of pyproject.toml"
    )


def test_a_package_with_different_versions_has_a_line_for_each_python(lock):
    found = {
        (3, 11): {"same": "1", "moved": "1", "backport": "2"},
        (3, 12): {"same": "1", "moved": "1"},
        (3, 13): {"same": "1", "moved": "2"},
    }
    assert lock.lines(found) == [
        "backport==2",
        'moved==1 ; python_version == "3.11"',
        'moved==1 ; python_version == "3.12"',
        'moved==2 ; python_version >= "3.13"',
        "same==1",
    ]
    assert all(LINE.fullmatch(line) for line in lock.lines(found))
