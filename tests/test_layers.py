"""Imports follow the order of the modules, without circles, and a third-party package is imported in one place."""

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
    *("exceptions", "facts", "_logging", "_observers", "_checks", "_signature", "_tasks", "_threads"),
    *("interceptor", "chain", "decorators", "debug"),
    *(
        "sse",
        "encoder",
        "schema",
        "queues",
        "channel",
        "compression",
        "hub",
        "brokers",
        "web",
        "ready",
        "observe",
        "testing",
        "__main__",
    ),
)
FILES = sorted(PACKAGE.rglob("*.py"))

THIRD_PARTY = {
    "structlog": ("_logging.py",),
    "aiohttp": ("web/", "ready/", "observe/", "testing.py"),
    "aiohttp_sse": ("web/",),
    "multidict": ("web/",),
    "redis": ("brokers/redis/",),
    "psycopg": ("brokers/postgres/",),
    "nats": ("brokers/nats/",),
    "jwt": ("ready/bearer.py", "ready/tickets.py"),
    "prometheus_client": ("observe/prometheus.py",),
    "opentelemetry": ("observe/opentelemetry.py",),
}
"""The files that may import a third-party package. A folder ends with a slash."""


def imports(file: Path) -> Iterator[tuple[str, ...]]:
    """Yield the absolute dotted paths of all imports of a file, also under TYPE_CHECKING and inside functions."""
    package = file.relative_to(PACKAGE.parent).parts[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = tuple(node.module.split(".")) if node.module else ()
            yield from ((*start, *module, alias.name) for alias in node.names)


def module_of(imported: tuple[str, ...]) -> str | None:
    """Return the file, relative to the package, that an import of the package loads."""
    for length in range(len(imported), 1, -1):
        path = PACKAGE.joinpath(*imported[1:length])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.exists():
                return file.relative_to(PACKAGE).as_posix()
    return None


@pytest.fixture(params=FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def file(request: pytest.FixtureRequest) -> Path:
    """Each file of the library."""
    return request.param  # type: ignore[no-any-return]


def test_imports_point_left(file: Path) -> None:
    module = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if module == "__init__":
        return  # the package exports names of all modules
    for imported in imports(file):
        if imported[0] == PACKAGE.name:
            assert len(imported) > 1, f"{module} imports the package itself"
            assert ORDER.index(imported[1]) <= ORDER.index(module), f"{module} imports {'.'.join(imported)}"


def test_imports_form_no_circle_also_for_annotations() -> None:
    graph = {
        file.relative_to(PACKAGE).as_posix(): {
            module
            for imported in imports(file)
            if imported[0] == PACKAGE.name and (module := module_of(imported)) is not None
        }
        - {file.relative_to(PACKAGE).as_posix()}
        for file in FILES
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_third_party_packages_are_imported_in_one_place(file: Path) -> None:
    path = file.relative_to(PACKAGE).as_posix()
    for imported in imports(file):
        name = imported[0]
        if name == PACKAGE.name or name in sys.stdlib_module_names:
            continue
        assert name in THIRD_PARTY, f"{path} imports {name}, which is not in THIRD_PARTY"
        assert path.startswith(THIRD_PARTY[name]), f"{path} imports {name}, which only {THIRD_PARTY[name]} may import"


@pytest.mark.parametrize(
    "module", ["exceptions", "debug", "chain", "decorators", "channel", "queues", "sse", "hub.hub"]
)
def test_modules_left_of_web_work_without_aiohttp(module: str) -> None:
    code = f"""
import sys
sys.modules.update(dict.fromkeys(["aiohttp", "aiohttp_sse", "multidict"]))
import {PACKAGE.name}.{module}
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
