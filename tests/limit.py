"""The timeout of a test: hooks that make a hanging test fail and print the stacks of all tasks and threads.

pytest-timeout supplies the duration: ``timeout`` in pyproject.toml, ``--timeout``, or a mark. When it expires, the
stacks are printed and an exception is raised in the test. The test's teardown then has a timeout as well. A test that
swallows the exception, or that blocks where signals are not handled, ends the whole run with status 1.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import signal
import sys
import traceback

import psutil
import pytest
from pytest_timeout import is_debugging

TEARDOWN_TIMEOUT = 30.0  # seconds that a failed test has for its teardown, before it fails again
MAX_ATTEMPTS = 4  # failures of one test, after which the run ends
EXIT_TIMEOUT = 60.0  # seconds that the interpreter has to end after the last test

_stderr = pytest.StashKey[int]()
_attempts = pytest.StashKey[int]()
_in_test = pytest.StashKey[bool]()  # whether code of the test runs, rather than pytest's, which may be slow to report


class TimeoutExceeded(KeyboardInterrupt):
    """A test exceeded its timeout. Event loops and Hypothesis pass on only a ``KeyboardInterrupt``, wherever raised."""


def pytest_configure(config):
    config.stash[_stderr] = os.dup(sys.__stderr__.fileno())  # before output is captured


@pytest.hookimpl(trylast=True)  # pytest's own hook would cancel it
def pytest_unconfigure(config):
    faulthandler.dump_traceback_later(EXIT_TIMEOUT, exit=True, file=config.stash[_stderr])
    _write_running_test(config, None)


def pytest_timeout_set_timer(item, settings):
    if not hasattr(signal, "setitimer"):
        return None
    _write_running_test(item.config, item)
    item.stash[_attempts] = 0
    item.stash[_in_test] = False
    signal.signal(signal.SIGALRM, lambda *_: _on_timeout(item, settings))
    _start_timer(item, settings.timeout)
    return True


def pytest_timeout_cancel_timer(item):
    if not hasattr(signal, "setitimer"):
        return None
    signal.setitimer(signal.ITIMER_REAL, 0)
    faulthandler.cancel_dump_traceback_later()
    return True


@pytest.hookimpl(trylast=True)  # pytest and pytest-timeout cancel their timers here, but the teardown may hang
def pytest_exception_interact(node):
    if hasattr(signal, "setitimer") and _attempts in node.stash and not node.config.option.usepdb:
        _start_timer(node, TEARDOWN_TIMEOUT)


def _fail_on_timeout(item):
    """Turn ``TimeoutExceeded``, which would end the run, into a failure of the test."""
    item.stash[_in_test] = True
    try:
        return (yield)
    except TimeoutExceeded as timeout:
        item.stash[_in_test] = False
        pytest.fail(str(timeout))
    finally:
        item.stash[_in_test] = False


pytest_runtest_setup = pytest.hookimpl(_fail_on_timeout, wrapper=True)
pytest_runtest_call = pytest.hookimpl(_fail_on_timeout, wrapper=True)
pytest_runtest_teardown = pytest.hookimpl(_fail_on_timeout, wrapper=True)


def _write_running_test(config, item):
    """Keep the name of the running test in a file, for when the process is killed."""
    file = config.rootpath / ".pytest_cache" / "running"
    if item is None:
        file.unlink(missing_ok=True)
    else:
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"{item.nodeid}\n")


def _start_timer(item, seconds):
    signal.setitimer(signal.ITIMER_REAL, seconds)
    # For code that blocks signals or holds the GIL: faulthandler's thread needs neither.
    delay = seconds + MAX_ATTEMPTS * TEARDOWN_TIMEOUT
    faulthandler.dump_traceback_later(delay, exit=True, file=item.config.stash[_stderr])


def _on_timeout(item, settings):
    if is_debugging() and not settings.disable_debugger_detection:
        return
    item.stash[_attempts] += 1
    message = f"{item.nodeid} exceeded its timeout of {settings.timeout:g} s"
    with os.fdopen(os.dup(item.config.stash[_stderr]), "w") as stderr:
        attempt = f" (attempt {item.stash[_attempts]})" if item.stash[_attempts] > 1 else ""
        print(f"\n\n{message}{attempt}", file=stderr)
        print_tasks(stderr)
        stderr.flush()
        faulthandler.dump_traceback(file=stderr)
        if item.stash[_attempts] > MAX_ATTEMPTS:
            print(f"{message} and cannot be stopped; ending the run", file=stderr, flush=True)
            _exit()
    _start_timer(item, TEARDOWN_TIMEOUT)
    if item.stash[_in_test]:
        raise TimeoutExceeded(message)


def _exit():
    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.NoSuchProcess:
            pass
    os._exit(1)


def print_tasks(file):
    """Print the tasks of all event loops, each with its stack from the outermost coroutine to the innermost."""
    for loop in [each for each in gc.get_objects() if isinstance(each, asyncio.AbstractEventLoop)]:
        if loop.is_closed():
            continue
        for task in asyncio.all_tasks(loop):
            print(f"\nTask {task.get_name()} of {loop!r}, {task!r}:", file=file)
            awaited = task.get_coro()
            while (frame := _frame(awaited)) is not None:
                traceback.print_stack(frame, limit=1, file=file)
                awaited = _awaited(awaited)


def _frame(awaited):
    """Return the frame of a coroutine, a generator or an asynchronous generator, or None for other objects."""
    return next((frame for name in _FRAMES if (frame := getattr(awaited, name, None)) is not None), None)


def _awaited(awaited):
    return next(value for name in _AWAITS if (value := getattr(awaited, name, _MISSING)) is not _MISSING)


_FRAMES = ("cr_frame", "gi_frame", "ag_frame")
_AWAITS = ("cr_await", "gi_yieldfrom", "ag_await")
_MISSING = object()
