"""Where log lines go in a program that configured nothing, the standard library, or structlog."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import asyncio, logging, logging.config
from aiohttp import web
{before}
from aiohttp_interceptors import (
    Interceptor, as_handler, debug_observer, event_stream, setup, interceptor_middleware, start_event_stream
)
{after}

async def ready(channel, context):
    channel.close()

def late(context):
    context.response_headers["X-Late"] = "100 %s"

async def main():
    app = web.Application()
    setup(app)
    app.router.add_get("/", as_handler(Interceptor("late", leave=late), start_event_stream(ready)))
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    reader, writer = await asyncio.open_connection(*runner.addresses[0][:2])
    writer.write(b"GET / HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
    await reader.read()
    writer.close()
    await runner.cleanup()

asyncio.run(main())
"""
CAPTURE_ONCE = """
import structlog.testing
with structlog.testing.capture_logs():
    pass
"""
STRUCTLOG = """
import structlog
structlog.configure(processors=[
    structlog.contextvars.merge_contextvars, structlog.processors.format_exc_info, structlog.processors.JSONRenderer(),
])
"""
STRUCTLOG_TO_STDLIB = """
import structlog
structlog.configure(
    processors=[
        structlog.stdlib.filter_by_level, structlog.stdlib.add_logger_name, structlog.stdlib.render_to_log_kwargs,
    ],
    logger_factory=structlog.stdlib.LoggerFactory(), wrapper_class=structlog.stdlib.BoundLogger,
)
logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
"""
DICT_CONFIG = """
logging.config.dictConfig({
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(levelname)s|%(name)s|%(funcName)s|%(message)s"}},
    "handlers": {"out": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stdout"}},
    "loggers": {"aiohttp_interceptors": {"level": "DEBUG", "handlers": ["out"], "propagate": False}},
})
"""


def run(before: str = "", after: str = "") -> tuple[str, str]:
    """Run a program with one stream, where an interceptor stages a header too late; return stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM.replace("{before}", before).replace("{after}", after)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize("before", ["", CAPTURE_ONCE], ids=["nothing", "lines were captured once"])
@pytest.mark.parametrize("after", ["", CAPTURE_ONCE], ids=["nothing", "lines were captured later"])
def test_without_configuration_errors_go_to_stderr_and_debug_lines_nowhere(before: str, after: str) -> None:
    out, err = run(before, after)
    assert out == ""
    line, *trace = err.splitlines()
    assert line.startswith("change_after_commit_dropped ")
    assert trace[0] == "Traceback (most recent call last):"
    assert "ResponseCommitted" in trace[-1]
    assert "stream_opened" not in err
    assert "stream_closed" not in err


def test_the_message_has_interceptor_stage_attempt_and_execution_id() -> None:
    _, err = run()
    line = err.splitlines()[0]
    for part in ("interceptor='late'", "stage='leave'", "attempted=", "X-Late", "execution_id="):
        assert part in line


@pytest.mark.parametrize("configured", ["before", "after"])
def test_basic_config_at_warning_drops_debug_lines_and_keeps_errors(configured: str) -> None:
    out, err = run(**{configured: "logging.basicConfig(level=logging.WARNING)"})
    assert out == ""
    assert err.startswith("ERROR:aiohttp_interceptors:change_after_commit_dropped ")
    assert "stream_" not in err.replace("start_event_stream", "")


@pytest.mark.parametrize("configured", ["before", "after"])
def test_basic_config_at_debug_logs_opened_and_closed_streams(configured: str) -> None:
    out, err = run(**{configured: "logging.basicConfig(level=logging.DEBUG)"})
    assert out == ""
    lines = [line for line in err.splitlines() if ":aiohttp_interceptors:" in line]
    assert [line.split()[0] for line in lines] == [
        "DEBUG:aiohttp_interceptors:stream_opened",
        "DEBUG:aiohttp_interceptors:stream_closed",
        "ERROR:aiohttp_interceptors:change_after_commit_dropped",
    ]
    assert "path='/'" in lines[0]
    assert "reason='closed'" in lines[1]


def test_dict_config_configures_the_library_s_logger() -> None:
    out, err = run(after=DICT_CONFIG)
    assert err == ""
    lines = [line.split("|") for line in out.splitlines() if line.count("|") == 3]
    assert [(level, name, message.split()[0]) for level, name, _, message in lines] == [
        ("DEBUG", "aiohttp_interceptors", "stream_opened"),
        ("DEBUG", "aiohttp_interceptors", "stream_closed"),
        ("ERROR", "aiohttp_interceptors", "change_after_commit_dropped"),
    ]
    assert lines[-1][2] not in ("exception", "_log_to_stdlib")  # the line is that of the caller
    assert "Traceback" in out


@pytest.mark.parametrize("configured", ["before", "after"])
@pytest.mark.parametrize("captured", ["", CAPTURE_ONCE], ids=["never captured", "captured once"])
def test_with_structlog_configured_all_lines_go_there(configured: str, captured: str) -> None:
    out, err = run(**{configured: STRUCTLOG + captured})
    assert err == ""
    assert ['"event": "' + name + '"' in line for name, line in zip(
        ["stream_opened", "stream_closed", "change_after_commit_dropped"], out.splitlines(), strict=True
    )] == [True] * 3  # fmt: skip
    assert "Traceback" in out


def test_structlog_over_the_standard_library_logs_each_line_once() -> None:
    out, err = run(before=STRUCTLOG_TO_STDLIB)
    assert out == ""
    assert err.startswith("ERROR aiohttp_interceptors change_after_commit_dropped")
    assert err.count("change_after_commit_dropped") == 1
    assert "stream_opened" not in err


def test_lines_are_captured_without_configuration() -> None:
    out, err = run(
        after="""
from aiohttp_interceptors.testing import captured_logs
capture = captured_logs()
lines = capture.__enter__()
import atexit
@atexit.register
def show():
    capture.__exit__(None, None, None)
    print([line["event"] for line in lines])
"""
    )
    assert out == "['stream_opened', 'stream_closed', 'change_after_commit_dropped']\n"
    assert err == ""


def test_a_capture_that_was_open_at_import_continues() -> None:
    out, _ = run(
        before="""
import structlog.testing
capture = structlog.testing.capture_logs()
lines = capture.__enter__()
""",
        after="""
import structlog
structlog.get_logger().info("theirs")
print(lines)
capture.__exit__(None, None, None)
structlog.get_logger().info("printed")
""",
    )
    assert out.startswith("[{'event': 'theirs', 'log_level': 'info'}]\n")
    assert out.count("\n") == 2
    assert "printed" in out
