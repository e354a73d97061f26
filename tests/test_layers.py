"""Imports point left, without a circle, and each third-party name has its owner."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "aiohttp_interceptors"
ORDER = (
    *("exceptions", "facts", "_logging", "_checks", "_tasks", "_threads"),
    *("interceptor", "chain", "decorators", "debug"),
    *("sse", "queues", "channel", "hub", "brokers", "web", "testing"),
)
FILES = sorted(PACKAGE.rglob("*.py"))

OWNERS = {
    "structlog": ("_logging.py",),
    "aiohttp": ("web/", "testing.py"),
    "aiohttp_sse": ("web/",),
    "multidict": ("web/",),
    "redis": ("brokers/redis/",),
    "psycopg": ("brokers/postgres/",),
    "nats": ("brokers/nats/",),
}
"""Which files may import a name that is neither ours nor Python's; a folder ends with a slash."""


def imports(file: Path) -> Iterator[tuple[str, ...]]:
    """Walk all imports of a file, those under TYPE_CHECKING and inside functions too, as absolute dotted paths."""
    package = file.relative_to(PACKAGE.parent).parts[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = tuple(node.module.split(".")) if node.module else ()
            yield from ((*start, *module, alias.name) for alias in node.names)


def module_of(imported: tuple[str, ...]) -> str | None:
    """Return the file, relative to the package, that an import of ours reads."""
    for length in range(len(imported), 1, -1):
        path = PACKAGE.joinpath(*imported[1:length])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.exists():
                return file.relative_to(PACKAGE).as_posix()
    return None


@pytest.fixture(params=FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def file(request: pytest.FixtureRequest) -> Path:
    """One file of the library after the other."""
    return request.param  # type: ignore[no-any-return]


def test_imports_point_left(file: Path) -> None:
    room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        return  # the package's own file shows all rooms
    for imported in imports(file):
        if imported[0] == PACKAGE.name:
            assert len(imported) > 1, f"{room} imports the package itself"
            assert ORDER.index(imported[1]) <= ORDER.index(room), f"{room} imports {'.'.join(imported)}"


def test_no_imports_form_a_circle_those_for_annotations_included() -> None:
    graph = {
        file.relative_to(PACKAGE).as_posix(): {
            module
            for imported in imports(file)
            if imported[0] == PACKAGE.name and (module := module_of(imported)) is not None
        }
        - {file.relative_to(PACKAGE).as_posix()}
        for file in FILES
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, with the circle


def test_each_third_party_name_has_its_owner(file: Path) -> None:
    path = file.relative_to(PACKAGE).as_posix()
    for imported in imports(file):
        name = imported[0]
        if name == PACKAGE.name or name in sys.stdlib_module_names:
            continue
        assert name in OWNERS, f"{path} imports {name}, which nobody owns"
        assert path.startswith(OWNERS[name]), f"{path} imports {name}, whose owner is {OWNERS[name]}"


@pytest.mark.parametrize("room", ["exceptions", "debug", "chain", "decorators", "channel", "queues", "sse", "hub.hub"])
def test_what_is_left_of_the_web_works_without_aiohttp(room: str) -> None:
    code = f"""
import sys
sys.modules.update(dict.fromkeys(["aiohttp", "aiohttp_sse", "multidict"]))
import {PACKAGE.name}.{room}
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
