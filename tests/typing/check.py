"""Check what type checkers say of an application that uses the library: ``python -m tests.typing.check``.

``accepted.py`` has no error with mypy's strict mode and pyright. ``refused.py`` has exactly the errors that
its comments name: ``# refused: mypy[...] pyright[...]``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
FILES = [HERE / "accepted.py", HERE / "refused.py"]
EXPECTED = re.compile(r"# refused: (?:mypy\[([\w, -]+)\])? ?(?:pyright\[([\w, -]+)\])?$", re.MULTILINE)
REPORTED = re.compile(r"(.+):(\d+): error: (.*)  \[([\w-]+)\]")

Errors = dict[tuple[str, int], list[str]]


def expected(group: int) -> Errors:
    """Return the codes that the comments name, by file and line."""
    return {
        (file.name, number): sorted(match[group].split(", "))
        for file in FILES
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if (match := EXPECTED.search(line)) and match[group]
    }


def collect(errors: list[tuple[str, int, str]]) -> Errors:
    found: Errors = {}
    for file, line, code in errors:
        found.setdefault((Path(file).name, line), []).append(code)
    return {place: sorted(set(codes)) for place, codes in found.items()}


def of_mypy() -> Errors:
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--no-pretty", "--hide-error-context"]
    done = subprocess.run([*command, *FILES], capture_output=True, text=True, check=False)
    errors = REPORTED.findall(done.stdout)
    if done.returncode not in (0, 1) or done.stderr or (done.returncode == 1) != bool(errors):
        sys.exit(f"mypy failed:\n{done.stdout}{done.stderr}")
    return collect([(file, int(line), code) for file, line, _, code in errors])


def of_pyright() -> Errors:
    environment = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run([*command, *FILES], capture_output=True, text=True, check=False, env=environment)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        sys.exit(f"pyright failed:\n{done.stdout}{done.stderr}")
    if report["summary"]["filesAnalyzed"] != len(FILES):
        sys.exit(f"pyright did not check the files:\n{done.stdout}{done.stderr}")
    return collect(
        [
            (each["file"], each["range"]["start"]["line"] + 1, each.get("rule", "syntax"))
            for each in report["generalDiagnostics"]
            if each["severity"] == "error"
        ]
    )


def main() -> None:
    wrong = []
    for name, group, found in ("mypy", 1, of_mypy()), ("pyright", 2, of_pyright()):
        named = expected(group)
        for file, line in sorted(found.keys() | named.keys()):
            got, wanted = found.get((file, line), []), named.get((file, line), [])
            if got != wanted:
                wrong.append(f"tests/typing/{file}:{line}: {name} reports {got}, not {wanted}")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
