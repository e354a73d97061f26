"""A recipe in a process, and Chromium."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import browser, console_errors, visit  # noqa: F401  # fixtures
from tests.recipes.site import Recipe
from tests.servers.process import ServerProcess


@pytest.fixture
def run(tmp_path: Path, own: object) -> Iterator[Callable[..., Recipe]]:
    """Start the program of a recipe: ``run("progress")``. At the end it is stopped, before the servers of ``own``.

    Its log must have no error that the test does not expect.
    """
    started: list[Recipe] = []

    def start(name: str, *, folder: str = "recipe", **options: Any) -> Recipe:
        recipe = Recipe(tmp_path / folder, name, **options)
        started.append(recipe)
        recipe.start()
        return recipe

    yield start
    for recipe in started:
        recipe.stop()
    for recipe in started:
        recipe.check_log()


@pytest.fixture
def own() -> Iterator[Callable[[ServerProcess], ServerProcess]]:
    """Start a server for one test, which is killed after it."""
    servers: list[ServerProcess] = []

    def start(server: ServerProcess) -> ServerProcess:
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.kill()
