"""``benchmarks/compare.py``: what counts as worse, and the rows that programs print."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def compare(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    found = importlib.import_module("comparing.comparison").compare
    yield found
    for name in [name for name in sys.modules if name.split(".")[0] == "comparing"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("older", "newer", "better", "word"),
    [
        ([100, 101, 102], [105, 106, 107], "lower", "worse"),
        ([100, 101, 102], [105, 106, 107], "higher", "better"),
        ([100, 101, 102], [95, 96, 97], "lower", "better"),
        ([100, 101, 102], [95, 96, 97], "higher", "worse"),
        ([90, 101, 120], [110, 111, 112], "lower", "same"),  # within the range of the older rounds
        ([100, 101, 102], [102, 103, 104], "lower", "same"),  # outside the range, but only by 2 %
        ([0, 0, 0], [0, 0, 0], "lower", "same"),
        ([0, 0, 0], [1, 1, 1], "lower", "worse"),
        ([0, 0, 0], [1, 1, 1], "higher", "better"),
        ([-1, -1, -1], [1, 1, 1], "lower", "worse"),
    ],
)
def test_a_row_changed_if_its_median_differs_by_three_percent_and_is_outside_the_older_range(
    compare, older, newer, better, word
):
    assert compare(older, newer, better).word == word


@pytest.mark.parametrize("program", ["chain", "wire"])
def test_a_program_prints_its_rows_on_one_line(program):
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{program}.py"), "--quick", "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    rows = json.loads(done.stdout)
    assert rows
    assert all(value > 0 and better == "lower" for _, value, _, better in rows)


def test_an_unknown_program_is_refused_before_anything_is_checked_out():
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "compare.py"), "HEAD", "nothing"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "there is no program 'nothing' that prints rows" in done.stderr
