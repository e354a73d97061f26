"""Every row of the benchmarks at an older revision and in the working tree, in interleaved rounds, and what got worse.

REV is checked out into a temporary git worktree. A round runs each program for both packages, one right after the
other, and every other round in the other order: a disturbance meets both alike. Both run with this Python and with the
working tree's programs, so a benchmark that REV does not have is run against its package all the same. A program that
does not run with the older package (it imports what is new) is run as REV has it, if that knows ``--json``; otherwise,
and for rows that only one of them has, the row is printed and not judged.

    python benchmarks/compare.py REV [--rounds 10] [--quick] [NAME …]

NAME is a program, ``fanout``, or one case of it, ``fanout:open``; without, it is all but ``brokers``. ``--quick`` runs
less of each, and the short ones only. Of servers, only ours on asyncio are run.

A row is worse if the newer median is more than 3 % off, and outside the range of the older one's rounds. Exits with 1
if a row is worse, and with 2 if a program failed in the working tree.
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

from comparing.rows import Row, read_rows
from comparing.verdict import Verdict, judge

ROOT = Path(__file__).parents[1]
ALL = ("chain", "wire", "streams", "fanout")
SHORT = ("chain", "wire", "streams:idle", "fanout:one", "fanout:open", "fanout:memory")
LIMIT = 900.0  # seconds that one program may take for one round


class Failed(Exception):
    """A program did not measure; the message is the last line that it printed."""


class Side(NamedTuple):
    """A revision: its name, and the folder that holds its package."""

    name: str
    root: Path

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which Python imports this package, and no other of its name."""
        return {**os.environ, "PYTHONPATH": str(self.root)}

    def check(self) -> None:
        """Raise ``Failed`` if another package than this side's would be measured."""
        code = "import aiohttp_interceptors; print(aiohttp_interceptors.__file__)"
        found = self._run([sys.executable, "-c", code])
        if not Path(found.strip()).is_relative_to(self.root):
            raise Failed(f"{self.name} would measure {found.strip()}")

    def measure(self, program: str, case: str, *, quick: bool, of: Path = ROOT) -> list[Row]:
        """Run one round of a program, which may be another revision's."""
        command = [sys.executable, str(of / "benchmarks" / f"{program}.py"), "--json"]
        command += ["--only", case] if case else []
        command += ["--quick"] if quick else []
        return read_rows(self._run(command).splitlines()[-1])

    def _run(self, command: list[str]) -> str:
        try:
            done = subprocess.run(
                command, cwd=self.root, env=self.environment, capture_output=True, text=True, check=False, timeout=LIMIT
            )
        except subprocess.TimeoutExpired as late:
            raise Failed(f"no result after {late.timeout:.0f} s") from late
        if done.returncode:
            raise Failed(next(reversed(done.stderr.strip().splitlines()), f"status {done.returncode}"))
        return done.stdout


class Comparison:
    """What was measured: of each row a value per round and side."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], tuple[Row, dict[str, list[float]]]] = {}
        self.failed: dict[tuple[str, str], str] = {}
        """Why a program gave no rows, by program and side."""

    def add(self, program: str, side: str, rows: Sequence[Row]) -> None:
        """Note the rows of a round."""
        for row in rows:
            _, values = self.rows.setdefault((program, row.title), (row, {"older": [], "newer": []}))
            values[side].append(row.value)

    def run(self, name: str, side: Side, *, quick: bool) -> None:
        """Measure a round of a program with one side's package."""
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
                rows = side.measure(program, case, quick=quick, of=side.root)
            except Failed as again:
                self.failed[program, side.name] = str(again)
                return
        self.add(program, side.name, rows)

    def lines(self) -> Iterator[tuple[str, Verdict | None]]:
        """Return a line for each row, with what is to be thought of it."""
        for (program, title), (row, values) in self.rows.items():
            what = f"{program}: {title}" + (f", {row.unit}" if row.unit else "")
            older, newer = values["older"], values["newer"]
            if not older or not newer:
                yield f"| {what} | | | | | only in the {'newer' if newer else 'older'} |", None
                continue
            found = judge(older, newer, row.better)
            spread = f"{shown(found.least)} to {shown(found.most)}"
            word = f"**{found.word}**" if found.word == "worse" else found.word
            cells = (what, shown(found.older), spread, shown(found.newer), f"{found.change:+.1%}", word)
            yield f"| {' | '.join(cells)} |", found


def shown(value: float) -> str:
    """Write a figure."""
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """Have a revision in a folder of its own for the length of the block."""
    git = ["git", "-C", str(ROOT)]
    with tempfile.TemporaryDirectory(prefix="compare-") as folder:
        root = Path(folder).resolve() / "older"
        subprocess.run([*git, "worktree", "add", "--quiet", "--detach", str(root), revision], check=True)
        try:
            yield root
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(root)], check=True)


def options_of(arguments: Sequence[str]) -> argparse.Namespace:
    """Read what is asked for."""
    parser = argparse.ArgumentParser(description="Compare the benchmarks of an older revision with the working tree's.")
    parser.add_argument("revision", metavar="REV", help="what the working tree is compared with")
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"programs, or cases of them; else {' '.join(ALL)}")
    parser.add_argument("--rounds", type=int, default=10, help="of each, for each revision (10)")
    parser.add_argument("--quick", action="store_true", help=f"less of each, and only {' '.join(SHORT)}")
    options = parser.parse_intermixed_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds is 1 or more")
    options.names = options.names or (SHORT if options.quick else ALL)
    for name in options.names:
        program = name.partition(":")[0]
        if program not in (*ALL, "brokers"):
            parser.error(f"{name}: there is no program {program!r} that prints rows")
    return options


def main() -> None:
    """Measure and print."""
    options = options_of(sys.argv[1:])
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
    verdicts = []
    for line, found in comparison.lines():
        print(line)
        verdicts.append(found)
    for (program, which), why in comparison.failed.items():
        print(f"\n{program} does not run with the {which} package: {why}")
    if any(which == "newer" for _, which in comparison.failed):
        raise SystemExit(2)
    worse = sum(found is not None and found.word == "worse" for found in verdicts)
    print(f"\n{worse} of {len(verdicts)} rows worse")
    if worse:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
