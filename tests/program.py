"""The example application as a person runs it: a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
PATIENCE = 60.0  # seconds; a new process imports aiohttp first


@asynccontextmanager
async def program(*arguments, environment=None, stdout=asyncio.subprocess.PIPE):
    """Run ``python -m example_app``, with warnings as errors, and end it at the latest when the block ends.

    Its history is its own, unless ``HISTORY`` in the environment says otherwise.
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
    async with asyncio.timeout(PATIENCE):
        out, err = await process.communicate()
    return process.returncode, (out or b"").decode(), err.decode()


async def serving(process):
    """Wait until the program says where it serves, and return that line."""
    async with asyncio.timeout(PATIENCE):
        while (line := json.loads(await process.stdout.readline()))["event"] == "hub_up":
            pass  # its Hub may be up before it serves
        return line
