"""A pytest plugin that has aiohttp's own tests run with our middleware in front of everything.

With ``--passed=FILE`` it notes which tests pass as they are. With ``--passing=FILE`` each application has an
``interceptor_middleware()`` without interceptors as its first middleware, and those tests run that are noted there: all
of them must pass again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from aiohttp_interceptors import interceptor_middleware


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--passed", type=Path, help="note here what passes")
    parser.addoption("--passing", type=Path, help="run what is noted here, with our middleware in each application")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.passed is not None:
        config.option.passed.write_text("")
    if config.option.passing is not None:
        _put_in_front()
        config.stash[_passing] = config.option.passing.read_text().splitlines()


def _put_in_front() -> None:
    initialize = web.Application.__init__

    def __init__(self: web.Application, *args: Any, **options: Any) -> None:  # noqa: N807  # it takes that one's place
        initialize(self, *args, **options)
        self.middlewares.insert(0, interceptor_middleware())

    web.Application.__init__ = __init__  # type: ignore[method-assign]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    passing = config.stash.get(_passing, None)
    if passing is None:
        return
    noted, wanted = set(passing), list(items)
    items[:] = [item for item in wanted if item.nodeid in noted]
    if len(items) != len(passing):
        raise pytest.UsageError(f"{len(passing)} tests passed, and {len(items)} of them are found again")
    config.hook.pytest_deselected(items=[item for item in wanted if item.nodeid not in noted])


class _Outcomes:
    """Notes what passes from its setup to its teardown."""

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
