"""The README's programs run: the first one as written, and the tests that it shows."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

from aiohttp_interceptors.testing import open_stream
from tests.servers.process import free_port

ROOT = Path(__file__).parents[1]
PROGRAMS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


async def test_the_first_program_runs(session):
    port = free_port()
    program = PROGRAMS[0].replace("port=8080", f"port={port}")
    assert str(port) in program
    server = await asyncio.create_subprocess_exec(sys.executable, "-u", "-c", program, stdout=subprocess.PIPE)
    try:
        while b"Running on" not in (line := await server.stdout.readline()):
            assert line
        async with open_stream(session, f"http://127.0.0.1:{port}/clock") as stream:
            assert re.fullmatch(r"\d\d:\d\d:\d\d", (await stream.next()).data)
    finally:
        server.terminate()
        await server.communicate()


# The names that the interceptors use and the README does not define.
DEFINITIONS = """
pool, User = None, dict


async def user_of(request):
    return None


"""


def test_the_tests_of_the_readme_pass(tmp_path):
    streams, interceptors = "".join(PROGRAMS[:3]), PROGRAMS[3]
    (tests,) = (program for program in PROGRAMS if "from my_application import" in program)
    (tmp_path / "my_application.py").write_text(streams + DEFINITIONS + interceptors)
    (tmp_path / "test_mine.py").write_text(tests)
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_the_first_program_is_short_and_all_are_valid_python():
    assert sum(bool(line.strip()) for line in PROGRAMS[0].splitlines()) <= 16
    for program in PROGRAMS:
        compile(program, "README.md", "exec")
