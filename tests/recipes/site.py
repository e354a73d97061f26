"""A recipe as its reader runs it: a process of its own, in a folder of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.servers.process import ServerProcess

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "recipes"
PORT = "8080"  # of each recipe, unless it says otherwise


class Recipe(ServerProcess):
    """The program of a recipe, with warnings as errors, on a free port.

    The program is a copy, beside a copy of its page, in which texts are replaced: at least the port.
    """

    def __init__(
        self, folder: Path, name: str, *, port_as_argument: bool = False, replace: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(folder)
        self._arguments = [str(self.port)] if port_as_argument else []
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._program = folder / f"{name}.py"
        self._expected: list[str] = []
        replacements = {PORT: str(self.port), **(replace or {})}
        for file in FOLDER.glob(f"{name}.*"):
            text = file.read_text()
            for old, new in replacements.items():
                text = text.replace(old, new)
            (folder / file.name).write_text(text)

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    def log_may_have(self, exception: str) -> None:
        """Expect an exception of this name in the log."""
        self._expected.append(exception)

    def check_log(self) -> None:
        """Fail if the program has logged an exception or an error that the test did not expect."""
        log = (self.folder / "log").read_text()
        if self._expected:
            assert all(name in log for name in self._expected), log
        else:
            assert "Traceback" not in log, log
            assert "rror" not in log, log

    def command(self) -> list[str]:
        return [sys.executable, "-u", "-W", "error", str(self._program), *self._arguments]

    def answers(self) -> bool:
        return self.accepts()
