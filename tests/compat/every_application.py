"""A pytest plugin that runs the tests of aiohttp with our middleware in each application.

``--passed=FILE`` writes the names of the tests that pass. ``--passing=FILE`` runs the tests that are listed in the file
with an ``interceptor_middleware()`` without interceptors as the first middleware of each application. All of them must
pass again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from aiohttp_interceptors import interceptor_middleware


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--passed", type=Path, help="write the names of the tests that pass to this file")
    parser.addoption("--passing", type=Path, help="run the tests of this file with our middleware in each application")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.passed is not None:
        config.option.passed.write_text("")
    if config.option.passing is not None:
        _add_middleware()
        config.stash[_passing] = config.option.passing.read_text().splitlines()


def _add_middleware() -> None:
    initialize = web.Application.__init__

    def __init__(self: web.Application, *args: Any, **options: Any) -> None:  # noqa: N807  # replaces the constructor
        initialize(self, *args, **options)
        self.middlewares.insert(0, interceptor_middleware())

    web.Application.__init__ = __init__  # type: ignore[method-assign]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    passing = config.stash.get(_passing, None)
    if passing is None:
        return
    selected, collected = set(passing), list(items)
    items[:] = [item for item in collected if item.nodeid in selected]
    if len(items) != len(passing):
        raise pytest.UsageError(f"{len(passing)} tests passed, and only {len(items)} of them were collected")
    config.hook.pytest_deselected(items=[item for item in collected if item.nodeid not in selected])


class _Outcomes:
    """Records the tests that pass in setup, call and teardown."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._passed: dict[str, bool] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._passed[report.nodeid] = self._passed.get(report.nodeid, True) and report.passed

    def pytest_sessionfinish(self) -> None:
        self._file.write_text("".join(f"{name}\n" for name, passed in self._passed.items() if passed))


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.option.passed is not None:
        session.config.pluginmanager.register(_Outcomes(session.config.option.passed))


_passing: pytest.StashKey[list[str]] = pytest.StashKey()
