"""Run the example application in a process, as a user does."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
START_TIMEOUT = 60.0  # seconds for a process to start or to end


@asynccontextmanager
async def program(*arguments, environment=None, stdout=asyncio.subprocess.PIPE):
    """Run ``python -m example_app`` with warnings as errors, and kill it when the block ends.

    The history is a temporary file unless ``environment`` sets ``HISTORY``.
    """
    with TemporaryDirectory() as folder:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "error", "-m", "example_app", *arguments,
            cwd=ROOT, stdout=stdout, stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "HISTORY": f"{folder}/history.sqlite3", **(environment or {})},
        )  # fmt: skip
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()


async def outcome(process):
    """Wait for a process to end, and return its exit status, stdout and stderr."""
    async with asyncio.timeout(START_TIMEOUT):
        out, err = await process.communicate()
    return process.returncode, (out or b"").decode(), err.decode()


async def serving(process):
    """Wait for the log line ``serving``, and return it."""
    async with asyncio.timeout(START_TIMEOUT):
        while (line := json.loads(await process.stdout.readline()))["event"] == "hub_up":
            pass  # the Hub may be up before the port is open
        return line
