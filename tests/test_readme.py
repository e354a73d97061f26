"""The README's first program, as it stands but for the port, and what it promises."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from aiohttp_interceptors.testing import open_stream

ROOT = Path(__file__).parents[1]
PROGRAMS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


async def test_the_first_program_runs(port, session):
    program = PROGRAMS[0].replace("port=8080", f"port={port}")
    assert str(port) in program
    server = await asyncio.create_subprocess_exec(sys.executable, "-u", "-c", program, stdout=subprocess.PIPE)
    try:
        while b"Running on" not in (line := await server.stdout.readline()):
            assert line
        url = f"http://127.0.0.1:{port}"
        async with session.get(url) as page:
            assert "new EventSource('/ticks')" in await page.text()
        async with open_stream(session, url + "/ticks", last_event_id="41") as stream:
            event = await stream.next()
            assert (event.data, event.id) == ("tick 41", "42")
    finally:
        server.terminate()
        printed, _ = await server.communicate()
    assert b"/ticks 200" in printed


MY_APPLICATION = """
import types

pool, psycopg = None, types.SimpleNamespace(AsyncConnection=object)


async def user_of(request):
    return None
"""


def test_its_tests_run_as_they_stand(tmp_path):
    first, interceptors, *others = PROGRAMS
    (tests,) = (program for program in others if "from my_application import" in program)
    (tmp_path / "my_application.py").write_text(first + MY_APPLICATION + interceptors)
    (tmp_path / "test_mine.py").write_text(tests)
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_it_is_short_and_the_other_programs_are_python():
    assert sum(bool(line.strip()) for line in PROGRAMS[0].splitlines()) <= 22
    for program in PROGRAMS:
        compile(program, "README.md", "exec")
