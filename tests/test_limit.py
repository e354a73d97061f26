"""A test that hangs fails at its timeout, and its name and all stacks are printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGALRM")

HEAD = "import asyncio, time, pytest\n"
NEXT = "\ndef test_next(): pass\n"
HOOKS = """
from tests import limit
from tests.limit import *

limit.TEARDOWN_TIMEOUT = 3.0  # long enough for a busy machine
limit.EXIT_TIMEOUT = 1.0

import gc
gc.disable()  # before CPython 3.11.8, a finalizer that prints a traceback can break pytest's parsing (gh-106905)
"""


@pytest.fixture
def run(tmp_path):
    """Run test files with a timeout of one second, and return the exit status, stdout and stderr."""

    def run(*files):
        (tmp_path / "conftest.py").write_text(HOOKS)
        (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\ntimeout = 1\n")
        for number, tests in enumerate(files):
            (tmp_path / f"test_{number}.py").write_text(HEAD + textwrap.dedent(tests) + NEXT)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-rfE", "-p", "no:cacheprovider"], cwd=tmp_path, timeout=250, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    return run


def test_awaiting_forever_fails_with_the_stacks_of_all_tasks(run):
    status, out, err = run("""
        async def deep(): await asyncio.Event().wait()
        async def aside(): await deep()
        async def test_it():
            task = asyncio.create_task(aside(), name="beside")
            await deep()
        """)
    assert status == 1
    assert "test_0.py::test_it exceeded its timeout of 1 s" in err
    beside = err[err.index("Task beside") :]
    assert re.search(r"in aside\n.*\n.*in deep\n.*\n.*in wait\n", beside)
    assert re.search(r"in test_it\n.*\n.*in deep\n.*\n.*in wait\n", err)
    assert "FAILED test_0.py::test_it - Failed: test_0.py::test_it exceeded its timeout" in out
    assert "1 failed, 1 passed" in out


BLOCKS = {
    "sleep": "def test_it(): time.sleep(1000)",
    "the loop": "async def test_it(): time.sleep(1000)",
    "a lock": "import threading\ndef test_it(): threading.Event().wait()",
    "a subprocess": "import subprocess\ndef test_it(): subprocess.run(['sleep', '1000'])",
    "a spinning task": """
async def spin():
    while True: await asyncio.sleep(0)
async def test_it():
    tasks = [asyncio.create_task(spin()) for _ in range(20)]
    await asyncio.Event().wait()""",
    "a property": """
from hypothesis import given, settings, strategies as st
@given(st.integers())
@settings(deadline=None)
def test_it(number): time.sleep(1000)""",
    "uvloop": """
import uvloop
pytestmark = pytest.mark.filterwarnings("ignore")
@pytest.fixture
def event_loop_policy(): return uvloop.EventLoopPolicy()
async def test_it():
    assert "uvloop" in str(asyncio.get_running_loop())
    await asyncio.Event().wait()""",
    "a task that is never cancelled": """
async def uncancellable():
    while True:
        try: await asyncio.sleep(1000)
        except asyncio.CancelledError: pass
async def test_it():
    task = asyncio.create_task(uncancellable())
    await asyncio.sleep(0)
    await asyncio.Event().wait()""",
}


def test_any_way_to_block_fails_and_the_next_test_runs(run):
    status, out, err = run(*BLOCKS.values())
    assert status == 1, out
    for number, what in enumerate(BLOCKS):
        assert f"test_{number}.py::test_it exceeded its timeout of 1 s" in err, what
        assert f"FAILED test_{number}.py::test_it" in out, what
    assert f"{len(BLOCKS)} failed, {len(BLOCKS)} passed" in out


@pytest.mark.parametrize("part", ["setup", "teardown"])
def test_a_hanging_fixture_is_an_error_of_its_test(run, part):
    setup, teardown = ("await asyncio.Event().wait()", "") if part == "setup" else ("", "await asyncio.Event().wait()")
    status, out, err = run(f"""
        @pytest.fixture
        async def it():
            {setup}
            yield
            {teardown}
        def test_it(it): pass
        """)
    assert status == 1
    assert "test_0.py::test_it exceeded its timeout of 1 s" in err
    assert "ERROR test_0.py::test_it" in out


def test_a_teardown_that_hangs_after_a_failure_has_a_timeout(run):
    status, out, _ = run("""
        @pytest.fixture
        def it():
            yield
            time.sleep(1000)
        def test_it(it): assert False
        """)
    assert status == 1
    assert "FAILED test_0.py::test_it - assert False" in out
    assert "ERROR test_0.py::test_it - Failed: test_0.py::test_it exceeded its timeout" in out
    assert "1 failed, 1 passed, 1 error" in out


def test_a_test_that_swallows_its_failure_ends_the_run(run):
    status, _, err = run("""
        def test_it():
            while True:
                try: time.sleep(1000)
                except BaseException: pass
        """)
    assert status == 1
    assert "test_0.py::test_it exceeded its timeout of 1 s and cannot be stopped; ending the run" in err


def test_a_test_that_blocks_while_it_holds_the_gil_ends_the_run(run, tmp_path):
    status, _, err = run("""
        import ctypes
        def test_it():
            mutex = ctypes.create_string_buffer(1024)
            library = ctypes.PyDLL(None)
            library.pthread_mutex_lock(mutex)
            library.pthread_mutex_lock(mutex)
        """)
    assert status == 1
    assert "in test_it" in err
    assert (tmp_path / ".pytest_cache" / "running").read_text() == "test_0.py::test_it\n"


def test_a_thread_that_never_ends_does_not_keep_the_process_alive(run, tmp_path):
    status, out, err = run("""
        import threading
        def test_it(): threading.Thread(target=time.sleep, args=[1000]).start()
        """)
    assert status == 1
    assert "2 passed" in out
    assert "Timeout" in err
    assert not (tmp_path / ".pytest_cache" / "running").exists()
