"""Compare the benchmarks of an older revision with those of the working tree, in interleaved rounds.

REV is checked out into a temporary git worktree. A round runs each program with both packages, one after the other, and
the order alternates, so that a busy machine affects both. Both use this Python and the programs of the working tree, so
a new benchmark also measures the older package. A program that does not run with the older package is run as it is in
REV, if that version supports ``--json``. A row that only one package has is printed without a comparison.

    python benchmarks/compare.py REV [--rounds 10] [--quick] [NAME …]

NAME is a program such as ``fanout``, or one of its cases such as ``fanout:open``. The default is all but ``brokers``.
``--quick`` runs fewer and shorter cases. Only this library's servers on asyncio are run.

A row is worse if the newer median differs by more than 3 % and is outside the range of the older rounds. The exit
status is 1 if a row is worse, and 2 if a program failed in the working tree.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from comparing.comparison import RowComparison, compare
from comparing.rows import Row, read_rows

ROOT = Path(__file__).parents[1]
ALL = ("chain", "wire", "streams", "fanout")
SHORT = ("chain", "wire", "streams:idle", "fanout:one", "fanout:open", "fanout:memory")
TIMEOUT = 900.0  # seconds for one round of a program


class Failed(Exception):
    """A program failed. The message is the last line that it printed."""


class Side(NamedTuple):
    """A revision: its name, and the folder with its package."""

    name: str
    root: Path

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables with which Python imports this package."""
        return {**os.environ, "PYTHONPATH": str(self.root)}

    def check(self) -> None:
        """Raise ``Failed`` if another package would be imported."""
        code = "import aiohttp_interceptors; print(aiohttp_interceptors.__file__)"
        found = self._run([sys.executable, "-c", code])
        if not Path(found.strip()).is_relative_to(self.root):
            raise Failed(f"{self.name} would measure {found.strip()}")

    def measure(self, program: str, case: str, *, quick: bool, root: Path = ROOT) -> list[Row]:
        """Run one round of a program of the revision at ``root``."""
        command = [sys.executable, str(root / "benchmarks" / f"{program}.py"), "--json"]
        command += ["--only", case] if case else []
        command += ["--quick"] if quick else []
        return read_rows(self._run(command).splitlines()[-1])

    def _run(self, command: list[str]) -> str:
        try:
            done = subprocess.run(
                command, cwd=self.root, env=self.environment, capture_output=True, text=True, check=False,
                timeout=TIMEOUT,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise Failed(f"no result after {error.timeout:.0f} s") from error
        if done.returncode:
            raise Failed(next(reversed(done.stderr.strip().splitlines()), f"status {done.returncode}"))
        return done.stdout


class Comparison:
    """The values of all rows, one per round and side."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], tuple[Row, dict[str, list[float]]]] = {}
        self.failed: dict[tuple[str, str], str] = {}
        """Why a program printed no rows, by program and side."""

    def add(self, program: str, side: str, rows: Sequence[Row]) -> None:
        """Add the rows of a round."""
        for row in rows:
            _, values = self.rows.setdefault((program, row.title), (row, {"older": [], "newer": []}))
            values[side].append(row.value)

    def run(self, name: str, side: Side, *, quick: bool) -> None:
        """Run a round of a program with the package of one side."""
        program, _, case = name.partition(":")
        if (program, side.name) in self.failed:
            return
        try:
            rows = side.measure(program, case, quick=quick)
        except Failed as failed:
            own = side.root / "benchmarks" / f"{program}.py"
            if side.name == "newer" or not own.exists() or '"--json"' not in own.read_text(encoding="utf-8"):
                self.failed[program, side.name] = str(failed)
                return
            try:
                rows = side.measure(program, case, quick=quick, root=side.root)
            except Failed as again:
                self.failed[program, side.name] = str(again)
                return
        self.add(program, side.name, rows)

    def lines(self) -> Iterator[tuple[str, RowComparison | None]]:
        """Yield a line of Markdown for each row, and its comparison."""
        for (program, title), (row, values) in self.rows.items():
            name = f"{program}: {title}" + (f", {row.unit}" if row.unit else "")
            older, newer = values["older"], values["newer"]
            if not older or not newer:
                yield f"| {name} | | | | | only in the {'newer' if newer else 'older'} |", None
                continue
            found = compare(older, newer, row.better)
            spread = f"{format_value(found.minimum)} to {format_value(found.maximum)}"
            word = f"**{found.word}**" if found.word == "worse" else found.word
            cells = (
                name, format_value(found.older), spread, format_value(found.newer), f"{found.change:+.1%}", word,
            )  # fmt: skip
            yield f"| {' | '.join(cells)} |", found


def format_value(value: float) -> str:
    """Format a figure."""
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """Check out a revision into a temporary folder."""
    git = ["git", "-C", str(ROOT)]
    with tempfile.TemporaryDirectory(prefix="compare-") as folder:
        root = Path(folder).resolve() / "older"
        subprocess.run([*git, "worktree", "add", "--quiet", "--detach", str(root), revision], check=True)
        try:
            yield root
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(root)], check=True)


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Compare the benchmarks of an older revision with the working tree's.")
    parser.add_argument("revision", metavar="REV", help="the revision to compare the working tree with")
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"programs or cases (default: {' '.join(ALL)})")
    parser.add_argument("--rounds", type=int, default=10, help="rounds for each revision (default: 10)")
    parser.add_argument("--quick", action="store_true", help=f"fewer events, and only {' '.join(SHORT)}")
    options = parser.parse_intermixed_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")
    options.names = options.names or (SHORT if options.quick else ALL)
    for name in options.names:
        program = name.partition(":")[0]
        if program not in (*ALL, "brokers"):
            parser.error(f"{name}: there is no program {program!r} that prints rows")
    return options


def main() -> None:
    """Measure and print the comparison."""
    options = parse_options(sys.argv[1:])
    comparison = Comparison()
    with checked_out(options.revision) as folder:
        sides = [Side("older", folder), Side("newer", ROOT)]
        for side in sides:
            side.check()
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
            for name in options.names:
                for side in sides if number % 2 == 0 else reversed(sides):
                    comparison.run(name, side, quick=options.quick)
    print(f"{options.revision} against the working tree, medians of {options.rounds} rounds\n")
    print("| row | older | its spread | newer | change | |", "|---|---|---|---|---|---|", sep="\n")
    rows = []
    for line, found in comparison.lines():
        print(line)
        rows.append(found)
    for (program, side_name), reason in comparison.failed.items():
        print(f"\n{program} does not run with the {side_name} package: {reason}")
    if any(side_name == "newer" for _, side_name in comparison.failed):
        raise SystemExit(2)
    worse = sum(found is not None and found.word == "worse" for found in rows)
    print(f"\n{worse} of {len(rows)} rows worse")
    if worse:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
